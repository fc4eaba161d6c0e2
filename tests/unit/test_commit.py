"""Committing a batch: side by side, through every kind of failure, until all is settled or time is up."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.ledger import next_write
from aggregation_worker.ledger import pages as ledger_pages
from aggregation_worker.ledger.commit import EXPIRED, MAX_IN_FLIGHT, RESTORED, Committer, Deadline, Outcome
from aggregation_worker.ledger.failures import CommitError, Throttle
from aggregation_worker.ledger.next_write import next_start
from aggregation_worker.ledger.receipts import Posting, aggregate_name, partition_of, row_receipts
from aggregation_worker.ledger.writes import Add, Archive, Late
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, Clock, FaultyDynamoDB, ImmediateExecutor, Request, cancelled, client_error
from tests.postings import REFERENCE, postings
from tests.records import CREATED_AT, DAY, insert, modify, order
from tests.sizes import examples

TARGET = "item_count_by_date"
TIMED_OUT = botocore.exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1")
NONE = {"Code": "None"}
CONFLICT = {"Code": "TransactionConflict"}
SHARED = definitions(aggregation_text(), aggregation_text('count = "orders"', name="orders", sum=None))


class Commits:
    """A committer over a fake, on a clock that moves only when it pauses; every request takes `latency` seconds."""

    def __init__(self, *, latency: float = 0.0, jitter: float = 1.0, defined: Definitions = REFERENCE) -> None:
        self.defined = defined
        self.client = FaultyDynamoDB(defined)
        self.clock = Clock()
        self.latency = latency
        self.client.on_request = self._take_time
        self.sent_at: list[float] = []
        self.committer = self.with_executor(ImmediateExecutor(), jitter)

    def with_executor(self, executor: Executor, jitter: float = 1.0) -> Committer:
        client: Any = self.client
        return Committer(
            client,
            LEDGER,
            retention_days=60,
            executor=executor,
            clock=self.clock,
            sleep=self.clock.sleep,
            now=lambda: CREATED_AT + self.clock.time,
            jitter=lambda: jitter,
        )

    def in_real_time(self, executor: Executor) -> Committer:
        committer = self.with_executor(executor)
        committer.clock, committer.sleep = time.monotonic, time.sleep
        return committer

    def deadline(self, seconds: float, *, stop_sending: float = 5.0, stop_waiting: float = 1.0) -> Deadline:
        end = self.clock.time + seconds
        return Deadline(lambda: end - self.clock.time, stop_sending, stop_waiting)

    def run(self, *raws: Any, seconds: float = 60.0) -> Outcome:
        self.client.requests.clear()
        self.sent_at.clear()
        return self.committer.commit(postings(*raws, defined=self.defined), self.deadline(seconds))

    def quantity(self, item: str = "item123") -> Decimal:
        return self.client.total(TARGET, "quantity", item, DAY)

    def row(self) -> dict[str, Any]:
        """The row of most tests, to be changed by them."""
        return self.client.row(TARGET, "item123", DAY)

    def partition(self) -> str:
        """Of the row's pages."""
        return partition_of(TARGET, ("item123", DAY), row_receipts(self.row(), TARGET).generation)

    def delete_pages(self) -> None:
        """What their expiry does."""
        for key in self.client.tables[LEDGER].items.copy():
            del self.client.tables[LEDGER].items[key]

    def _take_time(self, request: Request) -> None:
        if not request.is_read:
            self.sent_at.append(self.clock.time)
        self.clock.time += self.latency


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows hold three receipts, and pages two."""
    set_tiny(monkeypatch)


def set_tiny(limits: pytest.MonkeyPatch, receipts_in_a_row: int = 3, receipts_on_a_page: int = 2) -> None:
    """Rows and pages hold so many receipts of one number."""
    limits.setattr(next_write, "ROW_STEP", 1)
    limits.setattr(next_write, "LEAST_ROOM", receipts_in_a_row * 43)
    limits.setattr(ledger_pages, "MAX_PAGE_RECEIPTS", receipts_on_a_page)


def real_deadline(seconds: float, *, stop_sending: float = 1.0, stop_waiting: float = 0.5) -> Deadline:
    end = time.monotonic() + seconds
    return Deadline(lambda: end - time.monotonic(), stop_sending, stop_waiting)


def records(outcome: Outcome) -> dict[str, list[int]]:
    """The records in each list of an outcome."""
    return {
        "applied": sorted(posting.record for posting in outcome.applied),
        "duplicates": sorted(posting.record for posting in outcome.duplicates),
        "refused": sorted(posting.record for posting, _ in outcome.refused),
        "unsettled": sorted(posting.record for posting in outcome.unsettled),
    }


def all_in(name: str, count: int) -> dict[str, list[int]]:
    """Every one of `count` records in one list."""
    return {"applied": [], "duplicates": [], "refused": [], "unsettled": []} | {name: list(range(count))}


def in_turn(count: int, *, first: int = 0, **attributes: Any) -> list[Any]:
    """Records of one row, each of a second of its own."""
    return [insert(order(**attributes), created_at=CREATED_AT + first + number) for number in range(count)]


def rows(count: int) -> list[Any]:
    return [insert(order(item=f"item{number:03}")) for number in range(count)]


# --- Without failures -----------------------------------------------------------------------------------------------


def test_batch__brings_totals_and_receipts_in() -> None:
    commits = Commits()

    outcome = commits.run(insert(order(quantity=10)), insert(order(quantity=30)), insert(order(item="item312")))

    assert records(outcome) == all_in("applied", 3)
    assert commits.quantity() == 40
    assert commits.quantity("item312") == 10
    assert len(commits.client.receipts()) == 3
    assert (outcome.writes, outcome.conflicts) == (Counter({Add: 2}), 0)


def test_nothing_to_commit__sends_nothing() -> None:
    commits = Commits()

    outcome = commits.committer.commit([], commits.deadline(60))

    assert outcome == Outcome()
    assert commits.client.requests == []


def test_rows__are_read_a_hundred_at_a_time_at_half_the_price() -> None:
    commits = Commits()

    commits.run(*rows(250))

    reads = [request.parameters["RequestItems"] for request in commits.client.requests if request.is_read]
    assert [len(read[TARGET]["Keys"]) for read in reads] == [100, 100, 50]
    assert not any("ConsistentRead" in read[TARGET] for read in reads)


@pytest.mark.usefixtures("tiny")
def test_row_that_fills_up__archives_and_takes_late_records() -> None:
    commits = Commits()

    outcomes = [commits.run(raw).writes for raw in in_turn(4, first=10)]
    late = commits.run(*in_turn(3))

    assert outcomes == [Counter({kind: 1}) for kind in (Add, Add, Add, Archive)]
    assert records(late) == all_in("applied", 3)
    assert late.writes == Counter({Late: 1})
    assert commits.client.sent() == ["query", "transact_write_items"]
    assert commits.quantity() == 70
    assert len(commits.client.receipts()) == 7
    assert len(commits.client.pages(commits.partition())) > 2
    assert commits.row()["late#item_count_by_date"] == {"N": "1"}


@pytest.mark.usefixtures("tiny")
def test_late_and_new_records_of_one_row__are_two_writes() -> None:
    commits = Commits()
    commits.run(*in_turn(5, first=10))

    outcome = commits.run(*in_turn(1), *in_turn(1, first=20))

    assert records(outcome) == all_in("applied", 2)
    assert sum(outcome.writes.values()) == 2
    assert outcome.writes[Late] == 1


@pytest.mark.usefixtures("tiny")
def test_row_that_was_deleted__starts_anew_in_another_generation() -> None:
    commits = Commits()
    raws = in_turn(5)
    commits.run(*raws)
    before = commits.partition()
    commits.client.delete_item(TableName=TARGET, Key={"item_number": {"S": "item123"}, "order_date": {"S": DAY}})

    outcome = commits.run(*raws)

    assert records(outcome) == all_in("applied", 5)
    assert commits.quantity() == 50
    assert commits.partition() != before


def test_lag__is_of_the_oldest_record_in_milliseconds() -> None:
    commits = Commits()  # its time of day is 1,000 seconds past CREATED_AT

    outcome = commits.run(
        insert(created_at=CREATED_AT + 400), insert(created_at=CREATED_AT + 300), insert(created_at=CREATED_AT + 900)
    )

    assert outcome.oldest_lag == 700_000


def test_lag_of_a_record_from_the_future__is_zero() -> None:
    assert Commits().run(insert(created_at=CREATED_AT + 5_000)).oldest_lag == 0


@pytest.mark.usefixtures("tiny")
def test_pages__expire_after_the_retention_counted_from_now() -> None:
    commits = Commits()

    commits.run(*in_turn(5))

    expires = {page["expires_at"]["N"] for page in commits.client.tables[LEDGER].items.values()}
    assert expires == {str(CREATED_AT + 1_000 + 60 * 86_400)}


def test_starting_values__go_in_once_beside_the_records() -> None:
    commits = Commits(defined=SHARED)
    commits.run(insert())
    values = [replace(one, receipt="stream") for one in postings(insert(order(quantity=1_000)), defined=SHARED)]
    commits.committer.plan = next_start
    commits.client.after.extend([TIMED_OUT, None])

    first, second = (commits.committer.commit(values, commits.deadline(60)) for _ in range(2))

    assert (records(first)["applied"], records(first)["duplicates"]) == ([0], [0])
    assert records(second)["duplicates"] == [0, 0]
    assert commits.quantity() == 1_010


# --- Duplicates -----------------------------------------------------------------------------------------------------


def test_batch_delivered_again__costs_no_write_units() -> None:
    commits = Commits()
    raws = [insert(order(quantity=10)), insert(order(quantity=30)), insert(order(item="item312"))]
    commits.run(*raws)
    written = commits.client.writes

    outcome = commits.run(*raws)

    assert records(outcome) == all_in("duplicates", 3)
    assert commits.quantity() == 40
    assert (commits.client.sent(), commits.client.writes) == ([], written)
    assert (outcome.writes, outcome.oldest_lag) == (Counter(), None)


@pytest.mark.usefixtures("tiny")
def test_archived_batch_delivered_again__costs_no_write_units() -> None:
    commits = Commits()
    raws = in_turn(9)
    commits.run(*raws)

    outcome = commits.run(*raws)

    assert records(outcome) == all_in("duplicates", 9)
    assert commits.client.sent() == ["query"]


def test_overlapping_batch__adds_only_what_is_new() -> None:
    commits = Commits()
    first, second, third = (insert(order(quantity=quantity)) for quantity in (1, 10, 100))
    commits.run(first, second)

    outcome = commits.run(second, third)

    assert records(outcome) == {"applied": [1], "duplicates": [0], "refused": [], "unsettled": []}
    assert commits.quantity() == 111
    assert commits.client.sent() == ["update_item"]
    assert commits.clock.pauses == []


@pytest.mark.usefixtures("tiny")
def test_receipts_of_another_amount__are_told_and_add_nothing() -> None:
    commits = Commits()
    commits.run(*(insert(order(quantity=1), created_at=CREATED_AT + n, sequence_number=10**21 + n) for n in range(5)))

    outcome = commits.run(
        *(insert(order(quantity=2), created_at=CREATED_AT + n, sequence_number=10**21 + n) for n in range(5))
    )

    assert records(outcome) == all_in("duplicates", 5)
    assert sorted(posting.record for posting in outcome.differing) == list(range(5))
    assert commits.quantity() == 5


# --- What was read is only what was read ----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [client_error("AccessDeniedException"), client_error("Throttling"), TIMED_OUT])
def test_rows_that_cannot_be_read__are_written_all_the_same(error: Exception) -> None:
    commits = Commits()
    raw = insert()
    commits.run(raw)
    commits.client.reads.append(error)

    outcome = commits.run(raw, insert())

    assert records(outcome) == {"applied": [1], "duplicates": [0], "refused": [], "unsettled": []}
    assert commits.client.sent() == ["update_item", "update_item"]  # the first one's condition returns the row
    assert commits.quantity() == 20


def between(commits: Commits, *raws: Any) -> None:
    """Another worker commits these records one by one, each before a write of the worker."""
    left = list(raws)

    def on_request(request: Request) -> None:
        if not request.is_read and left:
            commits.client.on_request = lambda request: None
            commits.committer.commit(postings(left.pop(0)), commits.deadline(60))
            commits.client.on_request = on_request

    commits.client.on_request = on_request


def test_row_that_has_changed__is_written_with_what_is_left() -> None:
    commits = Commits()
    raws = [insert(order(quantity=quantity)) for quantity in (1, 10, 100)]
    between(commits, raws[1])

    outcome = commits.run(*raws)

    assert records(outcome) == {"applied": [0, 2], "duplicates": [1], "refused": [], "unsettled": []}
    assert commits.quantity() == 111
    assert commits.clock.pauses == []


@pytest.mark.usefixtures("tiny")
def test_row_changed_before_it_is_archived__is_archived_anew() -> None:
    commits = Commits()
    commits.run(*in_turn(3))
    between(commits, *in_turn(1, first=5))

    outcome = commits.run(*in_turn(2, first=10))

    assert records(outcome) == all_in("applied", 2)
    assert commits.quantity() == 60
    assert len(commits.client.receipts()) == 6


@pytest.mark.usefixtures("tiny")
def test_page_that_has_changed__is_read_again() -> None:
    commits = Commits()
    commits.run(*in_turn(6, first=10))
    late = in_turn(2)
    between(commits, late[0])

    outcome = commits.run(*late)

    assert records(outcome) == {"applied": [1], "duplicates": [0], "refused": [], "unsettled": []}
    assert commits.quantity() == 80
    assert len(commits.client.receipts()) == 8


@pytest.mark.usefixtures("tiny")
def test_row_found_changed_again_and_again__is_paused_for() -> None:
    commits = Commits()
    commits.run(*in_turn(3))
    commits.client.before.extend(
        cancelled([NONE, {"Code": "ConditionalCheckFailed", "Item": commits.row()}]) for _ in range(7)
    )

    outcome = commits.run(*in_turn(1, first=10))

    assert records(outcome) == all_in("applied", 1)
    assert commits.clock.pauses == pytest.approx([0.010, 0.020])


@pytest.mark.usefixtures("tiny")
def test_late_records__have_pages_read_up_to_the_last_of_them() -> None:
    commits = Commits()
    for raw in in_turn(40, first=10):
        commits.run(raw)
    assert len(commits.client.pages(commits.partition())) > 15

    alone = commits.run(*in_turn(1))
    queries = commits.client.sent().count("query")
    apart = commits.run(*in_turn(1, first=1), *in_turn(1, first=24))

    assert records(alone) == all_in("applied", 1)
    assert records(apart) == all_in("applied", 2)
    assert queries == 1
    assert 1 < commits.client.sent().count("query") < 8
    assert len(commits.client.receipts()) == 43


# --- Pages that are not there ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_page_that_becomes_visible_late__is_waited_for() -> None:
    commits = Commits()
    commits.run(*in_turn(6, first=10))
    hidden = dict(commits.client.tables[LEDGER].items)
    commits.delete_pages()
    looks = []

    def on_request(request: Request) -> None:
        if request.operation == "query":
            looks.append(commits.clock.time)
            if len(looks) == 4:
                commits.client.tables[LEDGER].items.update(hidden)

    commits.client.on_request = on_request

    outcome = commits.run(*in_turn(1))

    assert records(outcome) == all_in("applied", 1)
    assert len(looks) == 4
    assert len(commits.client.receipts()) == 7


@pytest.mark.usefixtures("tiny")
def test_record_of_an_expired_page__is_refused_with_that_reason() -> None:
    commits = Commits(jitter=0.0)
    commits.run(*in_turn(6, first=10))
    commits.delete_pages()

    outcome = commits.run(*in_turn(1), *in_turn(1, first=30))

    assert records(outcome) == {"applied": [1], "duplicates": [], "refused": [0], "unsettled": []}
    assert outcome.refused[0][1] == EXPIRED
    assert sum(commits.clock.pauses) >= 1  # where a transaction's items appear within milliseconds
    assert commits.quantity() == 70


@pytest.mark.usefixtures("tiny")
def test_pages_of_each_aggregation__are_looked_for_as_long() -> None:
    commits = Commits(defined=SHARED)
    commits.run(*in_turn(6, first=10))
    commits.delete_pages()

    outcome = commits.run(*in_turn(1))

    assert [reason for _, reason in outcome.refused] == [EXPIRED] * 2
    assert commits.client.sent() == ["query"] * 14


@pytest.mark.usefixtures("tiny")
def test_later_page_alone__takes_no_record_of_an_earlier_one() -> None:
    commits = Commits()
    commits.run(*in_turn(9, first=10))
    first, *_ = commits.client.pages(commits.partition())
    commits.client.delete_item(
        TableName=LEDGER, Key={"aggregate": {"S": commits.partition()}, "page": {"S": first.key}}
    )

    outcome = commits.run(*in_turn(1))

    assert records(outcome) == all_in("refused", 1)


@pytest.mark.usefixtures("tiny")
def test_restored_row__refuses_what_would_be_archived_again() -> None:
    commits = Commits()
    commits.run(*in_turn(3))
    backup = dict(commits.row())
    commits.run(*in_turn(1, first=3))
    commits.client.put_item(TableName=TARGET, Item=backup)

    outcome = commits.run(*in_turn(1, first=20))

    assert records(outcome) == all_in("refused", 1)
    assert outcome.refused[0][1] == RESTORED
    assert commits.row() == backup


# --- Conflicts and throttling ---------------------------------------------------------------------------------------


def test_conflicts_of_a_plain_update__are_tried_again() -> None:
    commits = Commits()
    commits.client.before.extend([client_error("TransactionConflictException")] * 12)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert commits.quantity() == 10
    assert outcome.conflicts == 12


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("reasons", [[CONFLICT, NONE], [NONE, CONFLICT], ["ConditionalCheckFailed", CONFLICT]])
def test_conflicts_of_an_archive__are_tried_again(reasons: list[Any]) -> None:
    commits = Commits()
    commits.run(*in_turn(3))
    commits.client.before.extend([cancelled(reasons)] * 3)

    outcome = commits.run(*in_turn(1, first=3))

    assert records(outcome) == all_in("applied", 1)
    assert outcome.conflicts == 3
    assert len(commits.client.receipts()) == 4


@pytest.mark.parametrize(
    ("reason", "throttle"),
    [
        ("TableWriteKeyRangeThroughputExceeded", Throttle.KEY),
        ("TableWriteProvisionedThroughputExceeded", Throttle.TABLE),
        ("TableWriteAccountLimitExceeded", Throttle.ACCOUNT),
        (None, Throttle.UNKNOWN),
    ],
)
def test_throttling__is_counted_by_whose_limit_it_was(reason: str | None, throttle: Throttle) -> None:
    commits = Commits()
    more: Any = {"ThrottlingReasons": [{"reason": reason}]} if reason else {}
    commits.client.before.extend([client_error("ThrottlingException", **more)] * 3)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert outcome.throttled == Counter({throttle: 3})


@pytest.mark.usefixtures("tiny")
def test_throttled_query__is_tried_again() -> None:
    commits = Commits()
    commits.run(*in_turn(6, first=10))
    commits.client.reads.extend([None, client_error("ProvisionedThroughputExceededException")])

    outcome = commits.run(*in_turn(1))

    assert records(outcome) == all_in("applied", 1)
    assert outcome.throttled == Counter({Throttle.UNKNOWN: 1})
    assert commits.client.sent() == ["query", "query", "transact_write_items"]


@pytest.mark.parametrize(
    ("error", "first", "longest"),
    [
        (client_error("TransactionConflictException"), 0.010, 0.500),
        (client_error("ThrottlingException"), 0.050, 2.000),
        (cancelled([NONE, {"Code": "ThrottlingError"}]), 0.050, 2.000),
        (TIMED_OUT, 0.050, 2.000),
    ],
    ids=["conflict", "throttled request", "throttled row", "no answer"],
)
@pytest.mark.parametrize(("jitter", "part"), [(0.0, 0.5), (1.0, 1.0)])
def test_pauses__double_up_to_the_longest_and_are_jittered(
    error: Exception, first: float, longest: float, jitter: float, part: float
) -> None:
    commits = Commits(jitter=jitter)
    commits.client.before.extend([error] * 10)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert commits.clock.pauses == pytest.approx([min(longest, first * 2**attempt) * part for attempt in range(10)])


def test_pauses__begin_short_again_after_a_success() -> None:
    commits = Commits()
    commits.client.before.extend([TIMED_OUT, TIMED_OUT, None, TIMED_OUT])
    raws = [insert(order(quantity=quantity)) for quantity in ("1E125", "1E-130")]  # two writes

    commits.run(*raws)

    assert commits.clock.pauses == pytest.approx([0.05, 0.1, 0.05])


def test_pause_of_one_row__holds_up_none_of_the_others() -> None:
    commits = Commits()
    commits.client.before.append(client_error("ThrottlingException"))

    commits.run(*rows(3))

    assert commits.sent_at == pytest.approx([1_000.0, 1_000.0, 1_000.0, 1_000.05])


def test_pause__ends_though_another_request_hangs() -> None:
    commits = Commits()
    tried_again = threading.Event()
    attempts: list[Request] = []

    def on_request(request: Request) -> None:
        if request.is_read:
            return
        if touches(request, "hangs"):
            assert tried_again.wait(10)
            return
        attempts.append(request)
        if len(attempts) == 1:
            raise client_error("TransactionConflictException")
        tried_again.set()

    commits.client.on_request = on_request
    with ThreadPoolExecutor(4) as executor:
        committer = commits.in_real_time(executor)
        outcome = committer.commit(
            postings(insert(order(item="hangs")), insert(order(item="paused"))), real_deadline(20)
        )

    assert len(attempts) == 2
    assert len(outcome.applied) == 2


def touches(request: Request, item: str) -> bool:
    """Whether a write changes the total of an item."""
    return bool(request.actions()[-1]["Key"]["item_number"] == {"S": item})


# --- Refusals -------------------------------------------------------------------------------------------------------


def test_refused_row__is_refused_and_the_rest_applied() -> None:
    commits = Commits()
    commits.run(insert())
    commits.row()["quantity"] = {"S": "many"}

    outcome = commits.run(insert(), *rows(2), insert())

    assert records(outcome) == {"applied": [1, 2], "duplicates": [], "refused": [0, 3], "unsettled": []}
    assert "incorrect data type" in outcome.refused[0][1]
    assert commits.quantity("item001") == 10
    assert commits.clock.pauses == []


def test_shared_row_with_a_refused_measure__takes_the_other() -> None:
    commits = Commits(defined=SHARED)
    commits.run(insert())
    commits.row()["quantity"] = {"S": "many"}

    outcome = commits.run(insert(), insert())

    assert [posting.aggregate.aggregation.name for posting, _ in outcome.refused] == ["item_count_by_date"] * 2
    assert [posting.aggregate.aggregation.name for posting in outcome.applied] == ["orders"] * 2
    assert commits.client.total(TARGET, "orders", "item123", DAY) == 3
    assert commits.client.sent() == ["update_item"] * 5  # together, each aggregation, each receipt of the refused one


def test_overflow__refuses_the_record_that_causes_it() -> None:
    commits = Commits()
    commits.run(insert(order(quantity="9" * 38)))

    outcome = commits.run(insert(order(quantity="0.5")), insert(order(quantity=-1)))

    assert records(outcome) == {"applied": [1], "duplicates": [], "refused": [0], "unsettled": []}
    assert commits.quantity() == int("9" * 38) - 1


@pytest.mark.usefixtures("tiny")
def test_refused_archive__refuses_the_record_that_causes_it() -> None:
    commits = Commits()
    commits.run(*in_turn(2), *in_turn(1, first=2, quantity="9" * 37))
    outcome = commits.run(*in_turn(1, first=5), *in_turn(1, first=6, quantity="1E-20"))

    assert records(outcome) == {"applied": [0], "duplicates": [], "refused": [1], "unsettled": []}
    assert commits.quantity() == int("9" * 37) + 30
    assert len(commits.client.receipts()) == 4


@pytest.mark.usefixtures("tiny")
def test_refused_late_write__refuses_the_record_that_causes_it() -> None:
    commits = Commits()
    commits.run(*in_turn(5, first=10), *in_turn(1, first=20, quantity="9" * 37))

    outcome = commits.run(*in_turn(1), *in_turn(1, first=1, quantity="1E-20"))

    assert records(outcome) == {"applied": [0], "duplicates": [], "refused": [1], "unsettled": []}
    assert len(commits.client.receipts()) == 7


@pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException", "SomethingNew"])
def test_error_that_refuses_everything__raises(code: str) -> None:
    commits = Commits()
    commits.client.before.append(client_error(code))

    with pytest.raises(CommitError, match=code):
        commits.run(*rows(2))


def test_table_that_is_missing__raises() -> None:
    commits = Commits()
    del commits.client.tables[TARGET]

    with pytest.raises(CommitError, match="non-existent table"):
        commits.run(*rows(2))


@pytest.mark.usefixtures("tiny")
def test_ledger_that_is_missing__raises() -> None:
    commits = Commits()
    del commits.client.tables[LEDGER]

    with pytest.raises(CommitError, match="non-existent table"):
        commits.run(*in_turn(5))


def test_index_of_another_type__raises_and_refuses_no_record() -> None:
    commits = Commits()
    message = "One or more parameter values were invalid: Type mismatch for Index Key quantity Expected: S Actual: N"
    commits.client.before.append(client_error("ValidationException", message))

    with pytest.raises(CommitError, match="Index Key quantity"):
        commits.run(insert(), insert())


def test_error_that_refuses_everything__starts_nothing_more() -> None:
    commits = Commits()
    release = threading.Event()
    sent: list[Request] = []

    def on_request(request: Request) -> None:
        if request.is_read:
            return
        sent.append(request)
        if len(sent) == 1:
            raise client_error("AccessDeniedException")
        release.wait(10)

    commits.client.on_request = on_request
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(CommitError):
            commits.with_executor(executor).commit(postings(*rows(100)), commits.deadline(60))
        release.set()

    assert len(sent) <= 2


@pytest.mark.parametrize("where", ["before", "reads"])
def test_bug_in_the_worker__is_raised_as_it_is(where: str) -> None:
    commits = Commits()
    getattr(commits.client, where).append(ZeroDivisionError("a bug"))

    with pytest.raises(ZeroDivisionError):
        commits.run(insert())


# --- Lost answers ---------------------------------------------------------------------------------------------------

LOST = [TIMED_OUT, client_error("InternalServerError", status=500)]


@pytest.mark.parametrize("error", LOST, ids=["timed out", "error of the service"])
@pytest.mark.usefixtures("tiny")
def test_answer_lost_after_the_commit__counts_once(error: Exception) -> None:
    commits = Commits()

    for raws, kind in (
        (in_turn(2, first=10), "update_item"),
        (in_turn(1, first=20), "update_item"),
        (in_turn(3, first=30), "transact_write_items"),
        (in_turn(3), "transact_write_items"),
    ):
        commits.client.after.extend([error, error])
        outcome = commits.run(*raws)

        assert records(outcome) == all_in("duplicates", len(raws))
        assert commits.client.sent()[-1] in (kind, "query")
    assert commits.quantity() == 90
    assert len(commits.client.receipts()) == 9


@pytest.mark.parametrize("error", LOST, ids=["timed out", "error of the service"])
@pytest.mark.usefixtures("tiny")
def test_answer_lost_before_the_commit__is_sent_again(error: Exception) -> None:
    commits = Commits()

    for raws in (in_turn(2, first=10), in_turn(1, first=20), in_turn(3, first=30), in_turn(3)):
        commits.client.before.extend([error, error])
        outcome = commits.run(*raws)

        assert records(outcome) == all_in("applied", len(raws))
    assert commits.quantity() == 90
    assert len(commits.client.receipts()) == 9


def test_answer_lost_and_time_over__is_unsettled_and_in_once() -> None:
    commits = Commits(latency=4.0)
    commits.client.after.append(TIMED_OUT)
    raw = insert()

    first = commits.run(raw, seconds=12.0)
    second = commits.run(raw)

    assert records(first) == all_in("unsettled", 1)
    assert records(second) == all_in("duplicates", 1)
    assert commits.quantity() == 10


# --- The deadline ---------------------------------------------------------------------------------------------------


def test_time_that_is_up_already__sends_nothing_and_reports_all() -> None:
    commits = Commits()

    outcome = commits.run(*rows(3), seconds=5.0)

    assert records(outcome) == all_in("unsettled", 3)
    assert commits.client.requests == []


def test_deadline__stops_sending_in_time_and_reports_the_rest() -> None:
    commits = Commits(latency=2.0)

    outcome = commits.run(*rows(100), seconds=15.0)  # ten seconds to send in, of which reading takes two

    assert commits.sent_at == [1_002.0, 1_004.0, 1_006.0, 1_008.0]
    assert records(outcome)["applied"] == list(range(4))
    assert records(outcome)["unsettled"] == list(range(4, 100))


def test_deadline_in_a_pause__ends_the_pause_and_reports() -> None:
    commits = Commits()
    commits.client.before.extend([TIMED_OUT] * 1_000)

    outcome = commits.run(insert(), seconds=10.0)

    assert records(outcome) == all_in("unsettled", 1)
    assert commits.clock.time == pytest.approx(1_005.0)
    assert max(commits.sent_at) < 1_005.0


def test_conflict_without_end__is_reported_unsettled() -> None:
    commits = Commits(latency=0.01)
    commits.client.before.extend([client_error("TransactionConflictException")] * 10_000)

    outcome = commits.run(insert(), insert(order(item="item312")), seconds=10.0)

    assert records(outcome) == all_in("unsettled", 2)
    assert 10 < len(commits.client.sent()) < 100
    assert commits.clock.time < 1_006.0


def test_answers_after_the_last_request__are_still_waited_for() -> None:
    commits = Commits(latency=3.0)  # sent with 2.5 seconds left to send in, answered when that time is over

    outcome = commits.run(insert(), seconds=10.5)

    assert records(outcome) == all_in("applied", 1)


class Hanging:
    """Real time and threads; requests hang until released."""

    def __init__(self) -> None:
        self.commits = Commits()
        self.release = threading.Event()
        self.commits.client.on_request = lambda request: None if request.is_read else self._hang()
        self.started = 0
        self.first_at: float | None = None

    def _hang(self) -> None:
        self.started += 1
        self.first_at = self.first_at or time.monotonic()
        self.release.wait(10)

    def commit(self, executor: Executor, count: int) -> tuple[Outcome, float]:
        committer, begin = self.commits.in_real_time(executor), time.monotonic()
        deadline = Deadline(self._seconds_left, stop_sending=2.8, stop_waiting=2.7)
        return committer.commit(postings(*rows(count)), deadline), time.monotonic() - begin

    def _seconds_left(self) -> float:
        """Three seconds until the first request has started, which then pass."""
        return 3.0 if self.first_at is None else 3.0 - (time.monotonic() - self.first_at)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    found = Hanging()
    yield found
    found.release.set()


def test_answers_that_do_not_come__are_given_up_in_time(hanging: Hanging) -> None:
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as executor:
        outcome, seconds = hanging.commit(executor, 100)
        hanging.release.set()

    assert records(outcome) == all_in("unsettled", 100)
    assert 0.2 < seconds < 8  # they hang for ten


def test_requests_waiting_for_a_thread__are_not_sent_too_late(hanging: Hanging) -> None:
    with ThreadPoolExecutor(1) as executor:
        outcome, _ = hanging.commit(executor, 200)
        started = hanging.started
        hanging.release.set()
        executor.shutdown(wait=True)

    assert records(outcome) == all_in("unsettled", 200)
    assert started == hanging.started == 1


# --- Side by side ---------------------------------------------------------------------------------------------------


class Watched(FaultyDynamoDB):
    """Records how many writes are in flight at once, and on which rows."""

    def __init__(self) -> None:
        super().__init__(REFERENCE)
        self.most = 0
        self.twice: list[Any] = []
        self._in_flight: Counter[Any] = Counter()
        self._watching = threading.Lock()

    def _between_faults(self, call: Callable[..., dict[str, Any]], request: Request) -> dict[str, Any]:
        if request.is_read:
            return super()._between_faults(call, request)
        row = request.row()
        with self._watching:
            self._in_flight[row] += 1
            self.most = max(self.most, self._in_flight.total())
            self.twice += [row] if self._in_flight[row] > 1 else []
        time.sleep(0.002)
        try:
            return super()._between_faults(call, request)
        finally:
            with self._watching:
                self._in_flight[row] -= 1


def commit_side_by_side(watched: Watched, raws: Sequence[Any], in_flight: int = MAX_IN_FLIGHT) -> Outcome:
    client: Any = watched
    with ThreadPoolExecutor(2 * in_flight) as executor:
        committer = Committer(client, LEDGER, 60, executor, max_in_flight=in_flight)
        return committer.commit(postings(*raws), real_deadline(30))


def test_rows__are_written_side_by_side_up_to_the_limit() -> None:
    watched = Watched()

    outcome = commit_side_by_side(watched, rows(200), in_flight=4)

    assert records(outcome) == all_in("applied", 200)
    assert watched.most == 4


@pytest.mark.usefixtures("tiny")
def test_writes_of_one_row__are_never_in_flight_together() -> None:
    watched = Watched()
    raws = [*in_turn(40, item="hot", quantity=1), *rows(60), *in_turn(20, first=-99, item="hot", quantity=1)]
    watched.before.extend([None, client_error("TransactionConflictException"), TIMED_OUT, None] * 3)
    watched.after.extend([None, None, TIMED_OUT])

    outcome = commit_side_by_side(watched, raws)

    assert len(outcome.applied) + len(outcome.duplicates) == 120
    assert watched.twice == []
    assert watched.most > 1
    assert watched.total(TARGET, "quantity", "hot", DAY) == 60
    assert len(watched.receipts()) == 120


# --- Any faults at all ----------------------------------------------------------------------------------------------


def all_none_but(at: int, reason: str) -> Callable[[Request], Exception]:
    """A transaction cancelled because of one action; of a plain update, the same reason as an error of its own."""

    def fault(request: Request) -> Exception:
        if request.operation != "transact_write_items":
            return client_error("TransactionConflictException" if "Conflict" in reason else "ThrottlingException")
        reasons: list[Any] = [NONE] * len(request.actions())
        reasons[at] = reason
        return cancelled(reasons)

    return fault


FAULTS: list[Callable[[Request], Exception | None] | None] = [
    None,
    None,
    None,
    lambda request: client_error("TransactionConflictException"),
    lambda request: client_error("ThrottlingException"),
    lambda request: client_error("InternalServerError", status=500),
    lambda request: TIMED_OUT,
    all_none_but(0, "TransactionConflict"),
    all_none_but(-1, "TransactionConflict"),
    all_none_but(-1, "ThrottlingError"),
    all_none_but(-1, "None"),
]
faults: st.SearchStrategy[list[int]] = st.just([]) | st.lists(st.sampled_from(range(len(FAULTS))), max_size=25)


@examples(50, long=1000)
@given(st.data())
def test_any_faults_and_any_overlap__count_every_record_once(data: st.DataObject) -> None:
    """Rows and pages hold one receipt and more, aggregations share the rows, and rows are read as they once were."""
    commits = Commits(latency=0.05, defined=data.draw(st.sampled_from([REFERENCE, SHARED])))
    raws = [
        insert(order(item=f"item{item}", quantity=quantity), created_at=CREATED_AT + second, event_id=event_id)
        if quantity >= 0
        else modify(
            order(item=f"item{item}", quantity=-quantity),
            order(item="item0", quantity=-quantity),
            created_at=CREATED_AT + second,
        )
        for item, quantity, second, event_id in data.draw(
            st.lists(
                st.tuples(
                    st.sampled_from([0, 0, 1]),
                    st.integers(-3, 9),
                    st.integers(0, 9),
                    st.sampled_from([None, None, "same"]),
                ),
                min_size=4,
                max_size=15,
            )
        )
    ]
    deliveries = data.draw(st.lists(st.lists(st.sampled_from(raws), min_size=1, unique_by=id), min_size=3, max_size=8))
    with pytest.MonkeyPatch.context() as limits:
        set_tiny(limits, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3)))
        moments = [None, commits.client.copy()]
        for batch in deliveries:
            commits.client.earlier = data.draw(st.sampled_from(moments))
            for laid in (commits.client.before, commits.client.reads):
                laid.extend(FAULTS[fault] for fault in data.draw(faults))
            commits.client.after.extend(
                FAULTS[fault] for fault in data.draw(st.just([]) | st.lists(st.sampled_from([0, 0, 6])))
            )
            outcome = commits.run(*batch, seconds=data.draw(st.sampled_from([5.5, 7.0, 300.0])))
            assert identities(settled(outcome)) == identities(postings(*batch, defined=commits.defined))
            assert outcome.refused == []
            moments.append(commits.client.copy())
        commits.client.earlier = None
        for laid in (commits.client.before, commits.client.reads, commits.client.after):
            laid.clear()
        final = commits.run(*raws, seconds=3_000)

    expected = postings(*raws, defined=commits.defined)
    assert (final.unsettled, final.refused, final.differing) == ([], [], [])
    names = [aggregate_name(one.aggregate.aggregation.name, one.aggregate.row.group) for one in expected]
    receipts = [(name, one.receipt, one.amounts) for name, one in zip(names, expected, strict=True)]
    found = commits.client.receipts()
    assert sorted((name, receipt, amounts) for name, _, receipt, amounts in found) == sorted(receipts)
    for item in {posting.aggregate.row.group[0] for posting in expected}:
        of_item = [one for one in expected if one.aggregate.row.group[0] == item]
        sums = [one.amounts[0] for one in of_item if one.aggregate.aggregation.name == TARGET]
        assert commits.quantity(item) == sum(sums)


def settled(outcome: Outcome) -> list[Posting]:
    """The postings of all four lists."""
    return [*outcome.applied, *outcome.duplicates, *(posting for posting, _ in outcome.refused), *outcome.unsettled]


def identities(found: Sequence[Posting]) -> Counter[tuple[int, str, tuple[str, ...]]]:
    """What tells the postings of a batch apart."""
    return Counter(
        (posting.record, posting.aggregate.aggregation.name, posting.aggregate.row.group) for posting in found
    )

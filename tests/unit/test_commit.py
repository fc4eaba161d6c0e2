"""Running transactions: side by side, through every kind of failure, until all is settled or time is up."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.ledger.commit import MAX_IN_FLIGHT, Committer, Deadline, Outcome
from aggregation_worker.ledger.receipts import Posting
from aggregation_worker.ledger.settlement import CommitError
from aggregation_worker.ledger.transactions import FEWEST_ACTIONS, Transaction, plan
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, Clock, FaultyDynamoDB, ImmediateExecutor, Request, cancelled, client_error
from tests.postings import REFERENCE, postings, transactions
from tests.records import CREATED_AT, DAY, insert, modify, order
from tests.sizes import examples

TARGET = "item_count_by_date"
TIMED_OUT = botocore.exceptions.ReadTimeoutError(endpoint_url="http://127.0.0.1")
NONE = {"Code": "None"}
CONFLICT = {"Code": "TransactionConflict"}


class Commits:
    """A committer over a fake, on a clock that moves only when it pauses; every request takes `latency` seconds."""

    def __init__(self, *, latency: float = 0.0, jitter: float = 1.0) -> None:
        self.client = FaultyDynamoDB(REFERENCE)
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
        return self.committer.commit(transactions(*raws), self.deadline(seconds))

    def tokens(self) -> list[str]:
        return [request.token for request in self.client.requests]

    def quantity(self, item: str = "item123") -> Decimal:
        return self.client.total(TARGET, "quantity", item, DAY)

    def _take_time(self, request: Request) -> None:
        self.sent_at.append(self.clock.time)
        self.clock.time += self.latency


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


def rows(count: int) -> list[Any]:
    return [insert(order(item=f"item{number:03}")) for number in range(count)]


# --- Without failures -----------------------------------------------------------------------------------------------


def test_transactions__write_totals_and_receipts() -> None:
    commits = Commits()

    outcome = commits.run(insert(order(quantity=10)), insert(order(quantity=30)), insert(order(item="item312")))

    assert records(outcome) == all_in("applied", 3)
    assert commits.quantity() == 40
    assert commits.quantity("item312") == 10
    assert len(commits.client.receipts()) == 3
    assert (outcome.transactions, outcome.conflicts) == (1, 0)


def test_nothing_to_commit__sends_nothing() -> None:
    commits = Commits()

    outcome = commits.committer.commit([], commits.deadline(60))

    assert outcome == Outcome()
    assert commits.client.requests == []


def test_lag__is_of_the_oldest_record_in_milliseconds() -> None:
    commits = Commits()  # its time of day is 1,000 seconds past CREATED_AT

    outcome = commits.run(
        insert(created_at=CREATED_AT + 400), insert(created_at=CREATED_AT + 300), insert(created_at=CREATED_AT + 900)
    )

    assert outcome.oldest_lag == 700_000


def test_lag_of_a_record_from_the_future__is_zero() -> None:
    assert Commits().run(insert(created_at=CREATED_AT + 5_000)).oldest_lag == 0


def test_receipts__expire_after_the_retention_counted_from_now() -> None:
    commits = Commits()

    commits.run(insert())

    (page,) = commits.client.tables[LEDGER].items.values()
    assert page["expires_at"] == {"N": str(CREATED_AT + 1_000 + 60 * 86_400)}


def test_every_transaction__has_a_token_of_its_own() -> None:
    commits = Commits()

    outcome = commits.run(*rows(120))

    assert len(commits.client.requests) == outcome.transactions == 3
    assert len(set(commits.tokens())) == 3


# --- Duplicates -----------------------------------------------------------------------------------------------------


def test_batch_delivered_again__adds_nothing() -> None:
    commits = Commits()
    raws = [insert(order(quantity=10)), insert(order(quantity=30)), insert(order(item="item312"))]
    commits.run(*raws)

    outcome = commits.run(*raws)

    assert records(outcome) == all_in("duplicates", 3)
    assert commits.quantity() == 40
    assert commits.quantity("item312") == 10
    assert (outcome.transactions, outcome.oldest_lag) == (0, None)


def test_overlapping_batch__adds_only_what_is_new() -> None:
    commits = Commits()
    first, second, third = (insert(order(quantity=quantity)) for quantity in (1, 10, 100))
    commits.run(first, second)

    outcome = commits.run(second, third)

    assert records(outcome) == {"applied": [1], "duplicates": [0], "refused": [], "unsettled": []}
    assert commits.quantity() == 111
    assert len(set(commits.tokens())) == len(commits.tokens()) == 3
    assert commits.clock.pauses == []


# --- Conflicts and throttling ---------------------------------------------------------------------------------------


def test_conflicts__are_tried_again_until_they_succeed() -> None:
    commits = Commits()
    commits.client.before.extend([client_error("TransactionConflictException")] * 12)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert commits.quantity() == 10
    assert outcome.conflicts == 12
    assert len(set(commits.tokens())) == 13


def test_hot_row__is_retried_apart_from_cold_ones() -> None:
    commits = Commits()
    commits.client.before.append(cancelled([NONE, CONFLICT, *[NONE] * 98]))
    commits.client.before.extend([None, None, cancelled([CONFLICT, NONE])])

    outcome = commits.run(*rows(50))

    assert records(outcome) == all_in("applied", 50)
    assert [len(request.items) for request in commits.client.requests] == [100, 50, 48, 2, 2]
    assert commits.sent_at[1] == commits.sent_at[0]
    assert outcome.conflicts == 2


def test_transactions__shrink_after_conflicts_and_grow_again() -> None:
    commits = Commits()

    def sizes(*raws: Any) -> list[int]:
        commits.client.requests.clear()
        outcome = commits.run(*raws)
        assert len(outcome.applied) == len(raws)
        return [len(request.items) for request in commits.client.requests]

    batches = [[insert(order(item=f"item{number}")) for number in range(50)] for _ in range(4)]
    commits.client.before.append(client_error("TransactionConflictException"))

    assert [sizes(*batch) for batch in batches] == [[100, 100], [50, 50], [54, 46], [58, 42]]
    assert commits.quantity("item49") == 40


def test_conflicts_in_every_batch__leave_two_rows_a_transaction() -> None:
    commits = Commits()

    for number in range(8):
        commits.client.requests.clear()
        commits.client.before.append(client_error("TransactionConflictException"))
        commits.run(*(insert(order(item=f"item{row}"), created_at=CREATED_AT + number) for row in range(6)))

    assert {len(request.items) for request in commits.client.requests} == {FEWEST_ACTIONS}
    assert commits.quantity("item5") == 80


@pytest.mark.parametrize("error", [client_error("ThrottlingException"), TIMED_OUT], ids=["throttled", "no answer"])
def test_errors_other_than_conflicts__shrink_no_transactions(error: Exception) -> None:
    commits = Commits()
    commits.client.before.append(error)

    commits.run(*rows(50))
    commits.client.requests.clear()
    commits.run(*(insert(order(item=f"item{number}"), created_at=CREATED_AT + 1) for number in range(50)))

    assert [len(request.items) for request in commits.client.requests] == [100]


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
def test_pauses__double_with_jitter_up_to_the_longest(
    error: Exception, first: float, longest: float, jitter: float, part: float
) -> None:
    commits = Commits(jitter=jitter)
    commits.client.before.extend([error] * 10)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert commits.clock.pauses == pytest.approx([min(longest, first * 2**attempt) * part for attempt in range(10)])


def test_pause_of_one_row__does_not_delay_the_others() -> None:
    commits = Commits()
    commits.client.before.append(cancelled([NONE, {"Code": "ThrottlingError"}, *[NONE] * 4]))

    commits.run(*rows(3))

    assert commits.sent_at[:2] == [1_000.0, 1_000.0]
    assert commits.sent_at[2] == pytest.approx(1_000.05)


def test_pause__ends_while_another_request_hangs() -> None:
    commits = Commits()
    tried_again = threading.Event()
    attempts: list[Request] = []

    def on_request(request: Request) -> None:
        if touches(request, "hangs"):
            assert tried_again.wait(10)
            return
        attempts.append(request)
        if len(attempts) == 1:
            raise client_error("TransactionConflictException")
        tried_again.set()

    commits.client.on_request = on_request
    first, second = transactions(*(insert(order(item="hangs")) for _ in range(121)))
    (paused,) = transactions(insert(order(item="paused")))
    with ThreadPoolExecutor(4) as executor:
        committer = commits.in_real_time(executor)
        outcome = committer.commit([first, paused, second], real_deadline(20))

    assert len(attempts) == 2
    assert len(outcome.applied) == 122


def touches(request: Request, item: str) -> bool:
    """Whether a request changes the total of an item."""
    return any(action["Update"]["Key"].get("item_number") == {"S": item} for action in request.items)


# --- Refusals -------------------------------------------------------------------------------------------------------


def test_row_that_dynamodb_refuses__leaves_the_rest_applied() -> None:
    commits = Commits()
    commits.run(insert(order(item="item000")))
    (row,) = commits.client.tables[TARGET].items.values()
    row["quantity"] = {"S": "many"}

    outcome = commits.run(*rows(3))

    assert records(outcome) == {"applied": [1, 2], "duplicates": [], "refused": [0], "unsettled": []}
    assert "incorrect data type" in outcome.refused[0][1]
    assert commits.quantity("item001") == 10


def test_shared_row_with_a_bad_measure__counts_the_other() -> None:
    shared = definitions(aggregation_text(), aggregation_text('count = "orders"', name="orders", sum=None))
    commits = Commits()
    deadline = commits.deadline(60)
    commits.committer.commit(transactions(insert(), defined=shared), deadline)
    (row,) = commits.client.tables[TARGET].items.values()
    row["quantity"] = {"S": "many"}

    outcome = commits.committer.commit(transactions(insert(), defined=shared), deadline)

    assert [posting.aggregate.aggregation.name for posting, _ in outcome.refused] == ["item_count_by_date"]
    assert [posting.aggregate.aggregation.name for posting in outcome.applied] == ["orders"]
    assert commits.client.total(TARGET, "orders", "item123", DAY) == 2


def test_overflow__refuses_the_record_that_causes_it() -> None:
    commits = Commits()
    commits.run(insert(order(quantity="9" * 38)))

    outcome = commits.run(insert(order(quantity="0.5")), insert(order(item="item312")))

    assert records(outcome) == {"applied": [1], "duplicates": [], "refused": [0], "unsettled": []}
    assert commits.quantity() == Decimal("9" * 38)


def test_request_refused_as_a_whole__is_halved_to_the_guilty_row() -> None:
    commits = Commits()

    def refuse(request: Request) -> Exception | None:
        guilty = touches(request, "item003")
        return client_error("ValidationException", "Item size has exceeded the maximum") if guilty else None

    commits.client.before.extend([refuse] * 20)

    outcome = commits.run(*rows(8))

    assert records(outcome) == {"applied": [0, 1, 2, 4, 5, 6, 7], "duplicates": [], "refused": [3], "unsettled": []}
    assert commits.clock.pauses == []


@pytest.mark.parametrize("code", ["AccessDeniedException", "ResourceNotFoundException", "SomethingNew"])
def test_error_that_refuses_everything__raises(code: str) -> None:
    commits = Commits()
    commits.client.before.append(client_error(code))

    with pytest.raises(CommitError, match=code):
        commits.run(*rows(2))


def test_error_that_refuses_everything__starts_nothing_more() -> None:
    commits = Commits()
    release = threading.Event()
    sent: list[Request] = []

    def on_request(request: Request) -> None:
        sent.append(request)
        if len(sent) == 1:
            raise client_error("AccessDeniedException")
        release.wait(10)

    commits.client.on_request = on_request
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(CommitError):
            commits.with_executor(executor).commit(transactions(*rows(400)), commits.deadline(60))
        release.set()

    assert len(sent) <= 2


def test_bug_in_the_worker__is_raised_as_it_is() -> None:
    commits = Commits()
    commits.client.before.append(ZeroDivisionError("a bug"))

    with pytest.raises(ZeroDivisionError):
        commits.run(insert())


# --- Lost answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TIMED_OUT, client_error("InternalServerError", status=500)])
def test_answer_lost_after_the_commit__counts_once(error: Exception) -> None:
    commits = Commits()
    commits.client.after.extend([error, error])

    outcome = commits.run(insert(), insert())

    assert records(outcome) == all_in("applied", 2)
    assert commits.quantity() == 20
    first, second, third = commits.client.requests
    assert first == second == third


def test_answer_lost_before_the_commit__sends_the_same_request() -> None:
    commits = Commits()
    commits.client.before.append(TIMED_OUT)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert commits.client.requests[0] == commits.client.requests[1]


def test_answer_lost_then_cancelled__sends_what_is_left() -> None:
    commits = Commits()
    raws = [insert(order(quantity=1)), insert(order(quantity=10))]
    commits.run(raws[0])
    commits.client.before.extend([TIMED_OUT, None])

    outcome = commits.run(*raws)

    assert records(outcome) == {"applied": [1], "duplicates": [0], "refused": [], "unsettled": []}
    lost, cancelled_, again = commits.tokens()[1:]
    assert lost == cancelled_ != again
    assert commits.quantity() == 11


@pytest.mark.parametrize(
    "error",
    [
        client_error("TransactionConflictException"),
        cancelled([CONFLICT, NONE]),
        cancelled([NONE, {"Code": "ThrottlingError"}]),
        cancelled([NONE, NONE]),
    ],
)
def test_cancelled_transaction__is_sent_with_a_new_token(error: Exception) -> None:
    commits = Commits()
    commits.client.before.append(error)

    commits.run(insert())

    first, second = commits.client.requests
    assert first.token != second.token
    assert first.items == second.items


def test_request_sent_again_much_later__is_the_same() -> None:
    commits = Commits(latency=7.0)
    commits.client.after.append(TIMED_OUT)

    outcome = commits.run(insert())

    assert records(outcome) == all_in("applied", 1)
    assert commits.quantity() == 10


# --- The deadline ---------------------------------------------------------------------------------------------------


def test_time_that_is_up_already__sends_nothing_and_reports_all() -> None:
    commits = Commits()

    outcome = commits.run(*rows(3), seconds=5.0)

    assert records(outcome) == all_in("unsettled", 3)
    assert commits.client.requests == []


def test_deadline__stops_sending_in_time_and_reports_the_rest() -> None:
    commits = Commits(latency=2.0)

    outcome = commits.run(*rows(50 * 20), seconds=15.0)  # ten seconds to send in

    assert commits.sent_at == [1_000.0, 1_002.0, 1_004.0, 1_006.0, 1_008.0]
    assert records(outcome)["applied"] == list(range(250))
    assert records(outcome)["unsettled"] == list(range(250, 1_000))


def test_deadline_in_a_pause__ends_the_pause_and_reports() -> None:
    commits = Commits()
    commits.client.before.extend([TIMED_OUT] * 1_000)

    outcome = commits.run(insert(), seconds=10.0)

    assert records(outcome) == all_in("unsettled", 1)
    assert commits.clock.time == pytest.approx(1_005.0)
    assert max(commits.sent_at) < 1_005.0


def test_endless_conflict__is_reported_unsettled() -> None:
    commits = Commits(latency=0.01)
    commits.client.before.extend([client_error("TransactionConflictException")] * 10_000)

    outcome = commits.run(insert(), insert(order(item="item312")), seconds=10.0)

    assert records(outcome) == all_in("unsettled", 2)
    assert 10 < len(commits.client.requests) < 100
    assert commits.clock.time < 1_006.0


def test_answers_after_the_last_request__are_still_waited_for() -> None:
    commits = Commits(latency=6.0)  # sent with 5.5 seconds left to send in, answered when that time is over

    outcome = commits.run(insert(), seconds=10.5)

    assert records(outcome) == all_in("applied", 1)


class Hanging:
    """Real time and threads; requests hang until released."""

    def __init__(self) -> None:
        self.commits = Commits()
        self.release = threading.Event()
        self.commits.client.on_request = lambda request: self._hang()
        self.started = 0
        self.first_at: float | None = None

    def _hang(self) -> None:
        self.started += 1
        self.first_at = self.first_at or time.monotonic()
        self.release.wait(10)

    def commit(self, executor: Executor, count: int) -> tuple[Outcome, float]:
        committer, begin = self.commits.in_real_time(executor), time.monotonic()
        deadline = Deadline(self._seconds_left, stop_sending=2.8, stop_waiting=2.7)
        return committer.commit(transactions(*rows(count)), deadline), time.monotonic() - begin

    def _seconds_left(self) -> float:
        """Three seconds until the first request has started, which then pass."""
        return 3.0 if self.first_at is None else 3.0 - (time.monotonic() - self.first_at)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    found = Hanging()
    yield found
    found.release.set()


def test_answers_that_do_not_come__are_reported_in_time(hanging: Hanging) -> None:
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as executor:
        outcome, seconds = hanging.commit(executor, 100)
        hanging.release.set()

    assert records(outcome) == all_in("unsettled", 100)
    assert 0.2 < seconds < 8  # they hang for ten


def test_requests_waiting_for_a_thread__are_not_sent_late(hanging: Hanging) -> None:
    with ThreadPoolExecutor(1) as executor:
        outcome, _ = hanging.commit(executor, 200)
        started = hanging.started
        hanging.release.set()
        executor.shutdown(wait=True)

    assert records(outcome) == all_in("unsettled", 200)
    assert started == hanging.started == 1


# --- Side by side ---------------------------------------------------------------------------------------------------


class Watched:
    """Records how many requests are in flight at once, and on which rows."""

    def __init__(self) -> None:
        self.client = FaultyDynamoDB(REFERENCE)
        self.most = 0
        self.twice: list[Any] = []
        self._in_flight: Counter[Any] = Counter()
        self._requests = 0
        self._lock = threading.Lock()
        self._carry_out = self.client.transact_write_items
        self.batch_get_item = self.client.batch_get_item

    def transact_write_items(self, *, TransactItems: list[dict[str, Any]], ClientRequestToken: str) -> None:  # noqa: N803 - boto3's names
        keys = Request(ClientRequestToken, TransactItems).keys()
        with self._lock:
            self._requests += 1
            self.most = max(self.most, self._requests)
            self._in_flight.update(keys)
            self.twice += [key for key in keys if self._in_flight[key] > 1]
        time.sleep(0.002)
        try:
            self._carry_out(TransactItems=TransactItems, ClientRequestToken=ClientRequestToken)
        finally:
            with self._lock:
                self._requests -= 1
                self._in_flight.subtract(keys)


def commit_side_by_side(watched: Watched, planned: list[Transaction], in_flight: int = MAX_IN_FLIGHT) -> Outcome:
    client: Any = watched
    with ThreadPoolExecutor(2 * in_flight) as executor:
        committer = Committer(client, LEDGER, 60, executor, max_in_flight=in_flight)
        return committer.commit(planned, real_deadline(30))


def test_independent_transactions__run_in_parallel() -> None:
    watched = Watched()

    outcome = commit_side_by_side(watched, transactions(*rows(1_000)), in_flight=4)

    assert records(outcome) == all_in("applied", 1_000)
    assert watched.most == 4


def test_changes_of_one_row__are_never_in_flight_together() -> None:
    watched = Watched()
    hot = [insert(order(item="hot", quantity=1)) for _ in range(120 * 6)]
    raws = [*hot, *rows(100)]
    watched.client.before.extend([None, client_error("TransactionConflictException"), TIMED_OUT, None] * 3)

    outcome = commit_side_by_side(watched, transactions(*raws))

    assert records(outcome) == all_in("applied", 820)
    assert watched.twice == []
    assert watched.most > 1
    assert watched.client.total(TARGET, "quantity", "hot", DAY) == 720


def test_transaction_waiting_for_its_row__keeps_its_place() -> None:
    commits = Commits()
    commits.client.before.append(client_error("ThrottlingException"))
    raws = [insert(order(quantity=1)) for _ in range(360)]

    commits.run(*raws)

    receipts = [len(request.items[0]["Update"]["ExpressionAttributeNames"]) for request in commits.client.requests]
    assert receipts == [120] * 4
    assert commits.client.requests[0].items == commits.client.requests[3].items


# --- Any faults at all ----------------------------------------------------------------------------------------------

FAULTS: list[Callable[[Request], Exception | None] | None] = [
    None,
    None,
    lambda request: client_error("TransactionConflictException"),
    lambda request: client_error("ThrottlingException"),
    lambda request: client_error("InternalServerError", status=500),
    lambda request: TIMED_OUT,
    lambda request: cancelled([CONFLICT, *[NONE] * (len(request.items) - 1)]),
    lambda request: cancelled([*[NONE] * (len(request.items) - 1), CONFLICT]),
    lambda request: cancelled([*[NONE] * (len(request.items) - 1), {"Code": "ThrottlingError"}]),
    lambda request: cancelled([NONE] * len(request.items)),
]


@examples(20, long=200)
@given(
    st.lists(st.sampled_from(range(len(FAULTS))), max_size=25),
    st.lists(st.sampled_from([0, 0, 5]), max_size=25),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 9), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(0, 40),
    st.sampled_from([5.5, 7.0, 300.0]),
)
def test_any_faults_and_any_overlap__count_every_record_once(
    before: list[int], after: list[int], orders: list[tuple[int, int, int]], again: int, seconds: float
) -> None:
    commits = Commits(latency=0.05)
    raws = [
        insert(order(item=f"item{item}", quantity=quantity), created_at=CREATED_AT + second)
        if quantity >= 0
        else modify(order(item=f"item{item}", quantity=-quantity), order(item="item0", quantity=-quantity))
        for item, quantity, second in orders
    ]
    commits.client.before.extend(FAULTS[fault] for fault in before)
    commits.client.after.extend(FAULTS[fault] for fault in after)

    outcome = commits.run(*raws, seconds=seconds)
    settled = [*outcome.applied, *outcome.duplicates, *(posting for posting, _ in outcome.refused), *outcome.unsettled]
    final = commits.committer.commit(transactions(*raws[again:], *raws[:again]), commits.deadline(3_000))

    planned, _ = plan(postings(*raws))
    expected = [posting for one in planned for change in one for posting in change.postings]
    assert identities(settled) == identities(expected)
    assert (final.unsettled, final.refused) == ([], [])
    receipts = [(one.aggregate.name, one.page, one.receipt, one.amounts) for one in expected]
    assert commits.client.receipts() == sorted(receipts)
    for item in {posting.aggregate.row.group[0] for posting in expected}:
        of_item = [posting.amounts[0] for posting in expected if posting.aggregate.row.group[0] == item]
        assert commits.quantity(item) == sum(of_item)


def identities(found: list[Posting]) -> Counter[tuple[int, str]]:
    """What tells postings of two plans of one batch apart."""
    return Counter((posting.record, posting.aggregate.name) for posting in found)

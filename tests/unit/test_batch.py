"""A batch from beginning to end: what becomes of each record, once and only once."""

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.batch import BatchResult, RecordOutcome, process
from aggregation_worker.dead_letters import Notice, ParkedRecord, read_dead_letter
from aggregation_worker.ledger.commit import EXPIRED, Committer, Deadline
from aggregation_worker.ledger.failures import CommitError
from aggregation_worker.streams.records import StreamViewTypeError, UnexpectedEventError
from tests.dead_letter_fakes import ParkingPlace
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import Clock, FaultyDynamoDB, ImmediateExecutor, client_error
from tests.json_values import JSON
from tests.postings import REFERENCE
from tests.records import CREATED_AT, DAY, STREAM_ARN, changed, insert, modify, order, remove, stream_record

APPLIED, DUPLICATE, NOT_COUNTED, NOTICED, PARKED, RETRIED = RecordOutcome
TARGET = "item_count_by_date"


class Worker:
    """The worker over fakes."""

    def __init__(self, defined: Definitions = REFERENCE) -> None:
        self.definitions = defined
        self.client = FaultyDynamoDB(defined)
        self.place = ParkingPlace()
        self.clock = Clock()

    def deliver(self, *raws: Any, seconds: float = 60.0) -> BatchResult:
        client: Any = self.client
        committer = Committer(
            client, "ledger", 60, ImmediateExecutor(), clock=self.clock, sleep=self.clock.sleep, now=self.clock
        )
        end = self.clock.time + seconds
        deadline = Deadline(lambda: end - self.clock.time, stop_sending=5.0, stop_waiting=1.0)
        return process(list(raws), self.definitions, committer, self.place.queue(), deadline)

    def quantity(self, item: str = "item123") -> Decimal:
        return self.client.total(TARGET, "quantity", item, DAY)

    def kept(self, item: str = "item123") -> Decimal:
        return self.client.total(TARGET, f"kept#{TARGET}#quantity", item, DAY)

    def parked(self) -> list[Any]:
        return [read_dead_letter(body) for body in self.place.sqs.taken]


BAD = changed(insert(), "dynamodb.NewImage", {**order(), "quantity": {"S": "ten"}})
UNREADABLE = changed(insert(), "dynamodb.Keys")
UNCHANGED = modify(order(), order(note={"S": "gift"}))


# --- Outcomes -------------------------------------------------------------------------------------------------------


def test_every_kind_of_record__has_its_outcome() -> None:
    worker = Worker()
    known = insert(order(quantity=1))
    worker.deliver(known)

    result = worker.deliver(
        insert(order(quantity=10)),
        known,
        remove(),
        UNCHANGED,
        insert(order() | {"quantity": {"NULL": True}}),
        BAD,
        UNREADABLE,
    )

    assert result.outcomes == (APPLIED, DUPLICATE, APPLIED, NOT_COUNTED, NOT_COUNTED, NOTICED, PARKED)
    assert worker.quantity() == 11
    assert worker.kept() == 10
    assert [type(letter) for letter in worker.parked()] == [Notice, ParkedRecord]
    assert [letter.record for letter in worker.parked()] == [BAD, UNREADABLE]


def test_empty_batch__does_nothing() -> None:
    worker = Worker()

    result = worker.deliver()

    assert (result.outcomes, result.reasons) == ((), {})
    assert worker.client.requests == []
    assert worker.place.clients_made == []


def test_indexes__are_those_with_the_outcome() -> None:
    result = Worker().deliver(UNCHANGED, insert(), UNCHANGED)

    assert result.indexes(NOT_COUNTED) == [0, 2]
    assert result.indexes(APPLIED) == [1]
    assert result.indexes(PARKED) == []


def test_same_record_twice_in_a_batch__counts_once() -> None:
    worker = Worker()
    raw = insert()

    result = worker.deliver(raw, raw)

    assert result.outcomes == (APPLIED, DUPLICATE)
    assert worker.quantity() == 10


@pytest.mark.parametrize(("seconds", "outcome"), [(5.0, RETRIED), (60.0, PARKED)])
def test_same_record_twice_in_a_batch__has_one_outcome(seconds: float, outcome: RecordOutcome) -> None:
    worker = Worker()
    worker.deliver(insert())
    (row,) = worker.client.tables[TARGET].items.values()
    row["quantity"] = {"S": "many"}
    raw = insert()

    result = worker.deliver(raw, raw, seconds=seconds)

    assert result.outcomes == (outcome, outcome)


def test_move_with_one_new_contribution__is_applied() -> None:
    worker = Worker()
    raw = modify(order(item="item123"), order(item="item312"))
    worker.deliver(raw)
    worker.client.row(TARGET, "item312", DAY)["receipts#item_count_by_date"]["M"].clear()

    result = worker.deliver(raw)

    assert result.outcomes == (APPLIED,)
    assert worker.quantity("item123") == -10
    assert worker.quantity("item312") == 20


# --- Refusals -------------------------------------------------------------------------------------------------------

BOTH = definitions(aggregation_text(), aggregation_text(name="revenue", table="revenue", sum='{ revenue = "price" }'))
FREE = {"S": "free"}


PROBLEM = "revenue: price: summed over a value of type S where N belongs"


def test_image_that_one_of_two_aggregations_cannot_use__is_told_of_and_counted_by_the_other() -> None:
    worker = Worker(BOTH)
    raw = insert(order(price=FREE))

    result = worker.deliver(raw)

    assert result.outcomes == (NOTICED,)
    assert worker.quantity() == 10
    assert worker.parked() == [Notice(raw, (PROBLEM,), "revenue")]
    assert result.reasons == {0: (PROBLEM,)}


def test_record_told_of_that_comes_again__counts_nothing_more() -> None:
    worker = Worker(BOTH)
    raw = insert(order(price=FREE))
    worker.deliver(raw)

    result = worker.deliver(raw)

    assert result.outcomes == (NOTICED,)
    assert worker.quantity() == 10


def test_image_that_no_aggregation_can_use__has_a_notice_for_each() -> None:
    worker = Worker(BOTH)

    worker.deliver(insert(order(quantity="x", price=FREE)))

    assert [(letter.aggregation, letter.reasons) for letter in worker.parked()] == [
        ("item_count_by_date", ("item_count_by_date: quantity: not a number",)),
        ("revenue", (PROBLEM,)),
    ]


def test_correction__brings_the_total_right_by_itself() -> None:
    """Of an order that changed to what cannot be used, back, to another item, and went."""
    worker = Worker()
    bad = order(quantity="x")
    history = [
        (insert(order(quantity=5)), 5),
        (modify(order(quantity=5), bad), 0),
        (modify(bad, order(quantity="y")), 0),
        (modify(order(quantity="y"), order(quantity=12)), 12),
        (modify(order(quantity=12), bad), 0),
        (modify(bad, order(item="item312")), 0),
    ]
    for raw, total in history:
        worker.deliver(raw)
        worker.deliver(raw)

        assert worker.quantity() == total
    assert worker.quantity("item312") == 10
    assert {type(letter) for letter in worker.parked()} == {Notice}


def test_record_refused_by_dynamodb_with_an_image_that_cannot_be_used__has_both_letters() -> None:
    worker = Worker(BOTH)
    worker.deliver(insert(order(price={"N": "1"})))
    (row,) = worker.client.tables[TARGET].items.values()
    row["quantity"] = {"S": "many"}
    raw = insert(order(price=FREE))

    result = worker.deliver(raw)

    assert result.outcomes == (PARKED,)
    notice, parked = worker.parked()
    assert (notice.aggregation, type(parked), parked.record) == ("revenue", ParkedRecord, raw)
    assert len(result.reasons[0]) == 2


def test_difference_that_no_dynamodb_number_holds__is_parked() -> None:
    worker = Worker()

    result = worker.deliver(modify(order(quantity="1E-130"), order(quantity="1E125")), insert())

    assert result.outcomes == (PARKED, APPLIED)
    assert worker.quantity() == 10


def test_record_that_dynamodb_refuses__is_parked_with_the_reason() -> None:
    worker = Worker()
    worker.deliver(insert())
    (row,) = worker.client.tables[TARGET].items.values()
    row["quantity"] = {"S": "many"}
    raws = [insert(), insert(), insert(order(item="item312"))]

    result = worker.deliver(*raws)

    assert result.outcomes == (PARKED, PARKED, APPLIED)
    reason = "item_count_by_date: An operand in the update expression has an incorrect data type"
    assert worker.parked() == [ParkedRecord(raw, (reason,)) for raw in raws[:2]]


def test_move_refused_twice_for_one_reason__names_it_once() -> None:
    worker = Worker()
    worker.deliver(insert(), insert(order(item="item312")))
    for row in worker.client.tables[TARGET].items.values():
        row["quantity"] = {"S": "many"}

    result = worker.deliver(modify(order(), order(item="item312")))

    assert result.outcomes == (PARKED,)
    assert len(result.reasons[0]) == 1


def test_move_refused_in_one_group__counts_in_the_other() -> None:
    worker = Worker()
    worker.deliver(insert())
    (row,) = worker.client.tables[TARGET].items.values()
    row["quantity"] = {"S": "many"}

    result = worker.deliver(modify(order(), order(item="item312")))

    assert result.outcomes == (PARKED,)
    assert worker.quantity("item312") == 10


def test_record_of_an_expired_page__is_parked_with_what_to_do() -> None:
    worker = Worker()
    worker.deliver(*(insert(created_at=CREATED_AT + 100 + second) for second in range(60)))
    worker.client.tables["ledger"].items.clear()
    raw = insert()

    result = worker.deliver(raw)

    assert result.outcomes == (PARKED,)
    assert worker.parked() == [ParkedRecord(raw, (f"item_count_by_date: {EXPIRED}",))]


def test_record_that_is_retried__is_not_told_of_yet() -> None:
    worker = Worker(BOTH)

    result = worker.deliver(insert(order(price=FREE)), seconds=5.0)

    assert result.outcomes == (RETRIED,)
    assert worker.place.sqs.requests == []
    assert 0 in result.reasons


def test_queue_that_takes_nothing__retries_the_record() -> None:
    worker = Worker()
    worker.place.sqs.faults.append(client_error("AccessDenied"))

    result = worker.deliver(insert(), BAD, insert())

    assert result.outcomes == (APPLIED, RETRIED, APPLIED)
    assert any("the dead-letter queue could not be written" in reason for reason in result.reasons[1])


def test_queue_that_refuses_some__retries_only_those() -> None:
    worker = Worker()
    worker.place.sqs.faults.append((1,))

    result = worker.deliver(BAD, insert(), UNREADABLE)

    assert result.outcomes == (NOTICED, APPLIED, RETRIED)


# --- Time -----------------------------------------------------------------------------------------------------------


def test_time_that_is_up__retries_every_record_that_counts() -> None:
    worker = Worker()

    result = worker.deliver(insert(), UNCHANGED, BAD, seconds=5.0)

    assert result.outcomes == (RETRIED, NOT_COUNTED, RETRIED)
    assert "no time was left to park it" in result.reasons[2]
    assert worker.place.clients_made == []


def test_time_that_is_short__is_used() -> None:
    assert Worker().deliver(insert(), BAD, seconds=5.5).outcomes == (APPLIED, NOTICED)


def test_time_that_runs_out_while_committing__parks_nothing_more() -> None:
    worker = Worker()
    worker.client.before.extend([client_error("ThrottlingException")] * 1_000)

    result = worker.deliver(insert(), BAD, seconds=10.0)

    assert result.outcomes == (RETRIED, RETRIED)
    assert worker.place.sqs.requests == []


def test_batch_that_is_retried_30_times__parks_a_bad_record_once() -> None:
    worker = Worker()
    good, bad = insert(), changed(insert(), "dynamodb.Keys")
    for _ in range(30):
        worker.client.before.extend([client_error("ThrottlingException")] * 1_000)
        assert worker.deliver(good, bad, seconds=10.0).outcomes[0] is RETRIED
        worker.client.before.clear()

    assert worker.deliver(good, bad).outcomes == (APPLIED, PARKED)
    assert len(worker.parked()) == 1


def test_record_with_an_unsettled_contribution__is_retried() -> None:
    worker = Worker(BOTH)
    worker.client.before.append(None)
    worker.client.before.extend([client_error("ThrottlingException")] * 100)

    result = worker.deliver(insert(order(price={"N": "5"})), seconds=10.0)

    assert result.outcomes == (RETRIED,)
    assert worker.quantity() == 10


# --- What raises ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (stream_record("MODIFY", new=order()), StreamViewTypeError),
        (insert(stream_arn=STREAM_ARN.replace("Order_by_item", "Customers")), UnexpectedEventError),
    ],
)
def test_record_of_a_wrong_deployment__raises_before_any_write(raw: dict[str, Any], error: type[Exception]) -> None:
    worker = Worker()

    with pytest.raises(error):
        worker.deliver(insert(), BAD, raw)

    assert worker.client.requests == []
    assert worker.place.clients_made == []


def test_error_that_refuses_everything__raises_and_parks_nothing() -> None:
    worker = Worker()
    worker.client.before.append(client_error("AccessDeniedException"))

    with pytest.raises(CommitError):
        worker.deliver(insert(), BAD)

    assert worker.place.clients_made == []


def test_index_of_another_type__raises_and_parks_nothing() -> None:
    worker = Worker()
    message = "One or more parameter values were invalid: Type mismatch for Index Key quantity Expected: S Actual: N"
    worker.client.before.append(client_error("ValidationException", message))

    with pytest.raises(CommitError, match="Index Key quantity"):
        worker.deliver(insert(), insert(), BAD)

    assert worker.place.clients_made == []


# --- Anything at all ------------------------------------------------------------------------------------------------

TYPED = st.dictionaries(st.sampled_from(["S", "N", "NULL", "M", "L", "BOOL", "SS"]), JSON | st.text(), max_size=2)
IMAGES = st.dictionaries(st.sampled_from(["item_number", "order_date", "quantity", "status"]), TYPED | JSON) | JSON
EVENTFUL = definitions(aggregation_text("remove = 'retract'\nwhere = \"status != 'open'\""))


@given(st.lists(st.tuples(st.sampled_from(["INSERT", "MODIFY", "REMOVE"]), IMAGES, IMAGES, JSON), max_size=5))
def test_any_images__have_an_outcome_or_a_wrong_view_type(
    batch: list[tuple[str, Any, Any, Any]],
) -> None:
    worker = Worker(EVENTFUL)
    raws = []
    for name, old, new, identity in batch:
        raw = stream_record(name, old={}, new={})
        raw["dynamodb"] |= {"OldImage": old, "NewImage": new}
        raws.append({**raw, "userIdentity": identity})

    try:
        result = worker.deliver(*raws)
    except StreamViewTypeError:
        return

    assert len(result.outcomes) == len(raws)
    assert RETRIED not in result.outcomes
    told = Counter(result.outcomes)
    assert told[PARKED] + told[NOTICED] == len(worker.place.sqs.taken)

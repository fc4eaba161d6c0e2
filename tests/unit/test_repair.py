"""Corrections: made once, whatever happens between the observation and the write, and around the write."""

import json
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group
from aggregation_worker.aggregations.definitions import load_definitions, parse_definitions
from aggregation_worker.ledger.corrections import correction_page
from aggregation_worker.ledger.markers import CUT, FINISHED_AT, STARTED_AT, Cut, Marker, close_to_backfill, read_marker
from aggregation_worker.ledger.reading import ChangesTooFastError
from aggregation_worker.ledger.receipts import (
    BACKFILL_PAGE,
    aggregate_of,
    backfill_attribute,
    backfill_value,
    first_position,
    receipt_name,
    receipts_attribute,
)
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.reconciliation.observation import Observation, observe
from aggregation_worker.reconciliation.repair import (
    MOST_ATTEMPTS,
    CorrectionOutcome,
    CorrectionRefusedError,
    Repairer,
    described,
)
from aggregation_worker.reconciliation.waiting_letters import UnreadableLetterError, groups_waiting
from aggregation_worker.streams.records import StreamRecord
from tests.faulty_dynamodb import cancelled, client_error
from tests.records import SOURCE_TABLE, changed, insert, modify, order, validated
from tests.totals_in_memory import LEDGER, TotalsInMemory, make_rows_small

DEFINITIONS = load_definitions(SAMPLE_FILE)
(AGGREGATION,) = DEFINITIONS.aggregations
GROUP: Group = ("item123", "2024-07-15")
AGGREGATE = aggregate_of(AGGREGATION, GROUP)
# Of a correction that nothing disturbs: an observation, the transaction.
REQUESTS = 4
NOW = datetime(2026, 11, 24, 4, 5, 6, tzinfo=UTC)


def amounts(*numbers: int | str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, numbers))


def record(quantity: int, **options: Any) -> StreamRecord:
    return validated(insert(order(quantity=quantity), **options))


@dataclass(slots=True)
class Ward:
    """A total of 10 with its receipt, and 5 too much in it."""

    totals: TotalsInMemory = field(default_factory=lambda: TotalsInMemory([AGGREGATION]))
    pauses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.apply(10)
        self.totals.add(AGGREGATION, GROUP, amounts(5))

    def apply(self, quantity: int) -> None:
        self.totals.apply([AGGREGATION], record(quantity))

    def observe(self) -> Observation:
        client: Any = self.totals
        return observe(client, LEDGER, AGGREGATE)

    def repairer(self, run: str = "run") -> Repairer:
        client: Any = self.totals
        return Repairer(client, LEDGER, run, now=lambda: NOW, sleep=self.pauses.append, jitter=lambda: 1.0)

    def correct(self, seen: Observation, *, run: str = "run", is_later: Any = lambda key: True) -> CorrectionOutcome:
        return self.repairer(run).correct(AGGREGATE, seen, amounts(5), "", is_later)

    @property
    def total(self) -> int:
        return int(self.totals.total(AGGREGATION, GROUP)[0])

    def corrections(self) -> dict[tuple[str, str], Any]:
        return {
            key: value[0]
            for key, value in self.totals.receipts(AGGREGATION, GROUP).items()
            if key[0].startswith("repair|")
        }

    def assert_receipts_add_up(self) -> None:
        assert sum(one[0] for one in self.totals.receipts(AGGREGATION, GROUP).values()) == self.total


@pytest.fixture(autouse=True)
def rows_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that receipts stand on pages, too."""
    make_rows_small(monkeypatch)


@pytest.fixture
def ward() -> Ward:
    return Ward()


def at_request(ward: Ward, number: int, action: Any) -> list[str]:
    """Does something before the request with this number, counted from 1."""
    requests: list[str] = []

    def on_request(operation: str) -> None:
        requests.append(operation)
        if len(requests) == number:
            action()

    ward.totals.on_request = on_request
    return requests


def test_correction__has_a_receipt_and_one_for_what_had_none(ward: Ward) -> None:
    seen = ward.observe()
    requests = at_request(ward, 0, None)

    outcome = ward.correct(seen)

    assert (outcome, ward.total) == (CorrectionOutcome.DONE, 10)
    assert requests == ["GetItem", "Query", "GetItem", "TransactWriteItems"]
    assert len(requests) == REQUESTS
    assert ward.corrections() == {
        ("repair|000001", "2026-11-24T04:05:06Z|run"): -5,
        ("repair|000001", "2026-11-24T04:05:06Z|run|found"): 5,
    }
    page = ward.totals.ledger[ward.totals.partition(AGGREGATION, GROUP), "repair|000001"]
    assert "expires_at" not in page
    ward.assert_receipts_add_up()


def test_correction_of_what_was_lost__needs_no_other_receipt() -> None:
    """The total is what its receipts say, and too low."""
    ward = Ward(TotalsInMemory([AGGREGATION]))
    ward.totals.add(AGGREGATION, GROUP, amounts(-5))

    ward.repairer().correct(AGGREGATE, ward.observe(), amounts(-3), "", lambda key: True)

    assert ward.total == 13
    assert ward.corrections() == {("repair|000001", "2026-11-24T04:05:06Z|run"): 3}
    ward.assert_receipts_add_up()


def test_receipts_before_the_first_page__count_for_what_has_none() -> None:
    ward = Ward()
    ward.totals.apply([AGGREGATION], record(100, created_at=1_600_000_000))
    client: Any = ward.totals
    first = first_position(1_700_000_000)
    seen = observe(client, LEDGER, AGGREGATE, first)

    ward.repairer().correct(AGGREGATE, seen, amounts(5), first, lambda key: True)

    assert ward.corrections()["repair|000001", "2026-11-24T04:05:06Z|run|found"] == 5
    ward.assert_receipts_add_up()


def test_row_that_is_gone__is_made_again() -> None:
    ward = Ward()
    ward.totals.tables[AGGREGATION.table].items.clear()

    outcome = ward.repairer().correct(AGGREGATE, ward.observe(), amounts(-10), "", lambda key: True)

    assert (outcome, ward.total) == (CorrectionOutcome.DONE, 10)
    ward.assert_receipts_add_up()


def test_row_without_receipts__gets_a_generation_for_the_page() -> None:
    """Nobody but its owner has written to it; the worker's records find it as if they had made it."""
    ward = Ward(TotalsInMemory([AGGREGATION]))
    ward.totals.tables[AGGREGATION.table].items.clear()
    ward.totals.add(AGGREGATION, GROUP, amounts(15))

    assert ward.correct(ward.observe()) is CorrectionOutcome.DONE
    ward.apply(7)

    assert ward.total == 17
    assert len(ward.totals.stored(AGGREGATION, GROUP).receipts) == 1
    ward.assert_receipts_add_up()


@pytest.mark.parametrize("request_number", range(1, 1 + REQUESTS))
def test_row_deleted_meanwhile__is_observed_first(ward: Ward, request_number: int) -> None:
    """Also when its total is, by chance, what was seen."""
    seen = ward.observe()

    def begin_anew() -> None:
        ward.totals.tables[AGGREGATION.table].items.clear()
        ward.apply(15)

    at_request(ward, request_number, begin_anew)

    assert ward.correct(seen) is CorrectionOutcome.OVERTAKEN
    assert ward.total == 15
    assert ward.corrections() == {}


@pytest.mark.parametrize("kind", ["archive", "late write"])
def test_write_that_is_half_seen__makes_no_wrong_correction(ward: Ward, kind: str) -> None:
    """Its pages are there during all that is observed, its part of the row comes last."""
    for second in range(8):
        ward.totals.apply([AGGREGATION], record(1, created_at=1_721_036_400 + second))
    rows = ward.totals.tables[AGGREGATION.table].items
    before = rows[GROUP]
    if kind == "archive":
        for second in range(4):
            ward.totals.apply([AGGREGATION], record(2, created_at=1_721_036_500 + second))
    else:
        ward.totals.apply([AGGREGATION], record(2, created_at=1_721_036_401))
    after, rows[GROUP] = rows[GROUP], before
    seen = ward.observe()
    assert seen.total is not None
    wrong = seen.total[0] - sum(one[0][0] for one in seen.receipts_from("").values())

    def appear(operation: str) -> None:
        if operation == "TransactWriteItems" and rows[GROUP] is before:
            rows[GROUP] = after

    ward.totals.on_request = appear

    outcome = ward.repairer().correct(AGGREGATE, seen, (wrong,), "", lambda receipt: True)

    if kind == "archive":
        assert (outcome, ward.total) == (CorrectionOutcome.DONE, 10 + 8 + 8)
    else:
        assert (outcome, ward.total) == (CorrectionOutcome.OVERTAKEN, 15 + 8 + 2)
        assert wrong == 5 - 2
        assert ward.corrections() == {}


@pytest.mark.parametrize("request_number", range(1, 1 + REQUESTS))
def test_record_applied_meanwhile__is_counted_too(ward: Ward, request_number: int) -> None:
    seen = ward.observe()
    at_request(ward, request_number, lambda: ward.apply(7))

    outcome = ward.correct(seen)

    assert (outcome, ward.total) == (CorrectionOutcome.DONE, 17)
    ward.assert_receipts_add_up()


def test_records_that_cancel_each_other_meanwhile__do_no_harm(ward: Ward) -> None:
    """The total is what was seen; the difference still is, too."""
    seen = ward.observe()

    def both() -> None:
        ward.apply(7)
        ward.apply(-7)

    at_request(ward, REQUESTS, both)

    assert ward.correct(seen) is CorrectionOutcome.DONE
    assert ward.total == 10
    ward.assert_receipts_add_up()


@pytest.mark.parametrize("moved_by", [5, -5, 1])
def test_total_moved_by_something_else__is_not_corrected(ward: Ward, moved_by: int) -> None:
    seen = ward.observe()
    ward.totals.add(AGGREGATION, GROUP, amounts(moved_by))

    assert ward.correct(seen) is CorrectionOutcome.OVERTAKEN
    assert ward.total == 15 + moved_by
    assert ward.corrections() == {}


def test_receipt_of_a_possibly_earlier_record__is_observed_first(ward: Ward) -> None:
    """It has moved the difference, though total and receipts agree."""
    seen = ward.observe()
    ward.apply(-5)

    assert ward.correct(seen, is_later=lambda key: False) is CorrectionOutcome.OVERTAKEN
    assert ward.total == 10


@pytest.mark.parametrize("request_number", range(1, 1 + REQUESTS))
def test_two_repairs__correct_once_even_if_the_total_comes_back(ward: Ward, request_number: int) -> None:
    """The other one's correction and a new record leave the total as it was: only the correction's number tells."""
    seen = ward.observe()

    def other() -> None:
        assert ward.correct(seen, run="other") is CorrectionOutcome.DONE
        ward.apply(5)

    requests: list[str] = []

    def on_request(operation: str) -> None:
        requests.append(operation)
        if len(requests) == request_number:
            ward.totals.on_request = lambda _: None
            other()

    ward.totals.on_request = on_request

    assert ward.correct(seen) is CorrectionOutcome.OVERTAKEN
    assert ward.total == 15
    assert len({page for page, _ in ward.corrections()}) == 1


def test_second_correction_of_an_aggregate__has_the_next_number(ward: Ward) -> None:
    ward.correct(ward.observe(), run="first")
    ward.totals.add(AGGREGATION, GROUP, amounts(5))
    starting_value = {backfill_attribute(AGGREGATION.name): backfill_value("stream 2024", amounts(0))}
    ward.totals.set(AGGREGATION, GROUP, starting_value)

    assert ward.correct(ward.observe(), run="second") is CorrectionOutcome.DONE
    assert {page for page, _ in ward.corrections()} == {"repair|000001", "repair|000002"}
    ward.assert_receipts_add_up()


def test_second_correction_of_one_run__is_recognized(ward: Ward) -> None:
    """The same run has corrected this aggregate before: that is not the correction at hand."""
    ward.correct(ward.observe())
    ward.totals.add(AGGREGATION, GROUP, amounts(5))

    assert ward.correct(ward.observe()) is CorrectionOutcome.DONE
    assert ward.total == 10


@pytest.mark.parametrize(
    "faults",
    [["lost"], ["unsent"], ["unsent", "lost"], [client_error("InternalServerError", status=500), "lost"]],
    ids=str,
)
def test_answer_that_is_lost__is_found_in_the_ledger(ward: Ward, faults: list[Any]) -> None:
    ward.totals.faults.extend(faults)

    assert ward.correct(ward.observe()) is CorrectionOutcome.DONE
    assert ward.total == 10
    assert len(ward.totals.tokens) == len(faults) + (faults[-1] != "lost")
    ward.assert_receipts_add_up()


@pytest.mark.parametrize(
    "code", ["TransactionConflictException", "ThrottlingException", "TransactionInProgressException"]
)
def test_trouble_that_passes__is_waited_out(ward: Ward, code: str) -> None:
    ward.totals.faults.extend([client_error(code)] * 9)

    assert ward.correct(ward.observe()) is CorrectionOutcome.DONE
    assert ward.pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]


@pytest.mark.parametrize("code", ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded", "None"])
def test_cancelled_for_what_passes__is_tried_again(ward: Ward, code: str) -> None:
    ward.totals.faults.append(cancelled(["None", code]))

    assert ward.correct(ward.observe()) is CorrectionOutcome.DONE
    assert ward.total == 10


def test_total_that_never_holds_still__is_given_up(ward: Ward) -> None:
    def on_request(operation: str) -> None:
        if operation == "TransactWriteItems":
            ward.apply(1)

    seen = ward.observe()
    ward.totals.on_request = on_request

    assert ward.correct(seen) is CorrectionOutcome.CHANGES_TOO_FAST
    assert len(ward.totals.tokens) == MOST_ATTEMPTS
    assert ward.corrections() == {}


def test_total_that_changes_too_fast__is_observed_again(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A while in which receipts move between any two requests."""
    make_rows_small(monkeypatch, receipts_in_a_row=1)
    ward.totals.page_size = 1_000
    requests = 0

    def on_request(operation: str) -> None:
        nonlocal requests
        requests += 1
        if requests < 300:
            ward.apply(1)

    seen = ward.observe()
    ward.totals.on_request = on_request

    assert ward.correct(seen) is CorrectionOutcome.DONE
    assert len(ward.totals.tokens) == 1
    assert 1 < len(ward.pauses) < 10
    ward.assert_receipts_add_up()


def test_what_dynamodb_refuses__is_told(ward: Ward) -> None:
    ward.totals.faults.append(cancelled(["None", {"Code": "ValidationError", "Message": "Number overflow"}]))

    with pytest.raises(CorrectionRefusedError, match="Number overflow"):
        ward.correct(ward.observe())


def test_difference_that_fits_no_dynamodb_number__is_refused(ward: Ward) -> None:
    with pytest.raises(CorrectionRefusedError, match="38 digits"):
        ward.repairer().correct(AGGREGATE, ward.observe(), amounts("1" * 39), "", lambda key: True)

    assert ward.totals.tokens == []


def test_missing_permission__is_raised(ward: Ward) -> None:
    ward.totals.faults.append(client_error("AccessDeniedException"))

    with pytest.raises(ClientError, match="AccessDenied"):
        ward.correct(ward.observe())


def test_total_that_is_not_a_number_any_more__is_left_alone(ward: Ward) -> None:
    seen = ward.observe()
    ward.totals.set(AGGREGATION, GROUP, {"quantity": {"S": "ten"}})

    assert ward.correct(seen) is CorrectionOutcome.OVERTAKEN


SEVERAL = """
[source]
table = "Order_by_item"
partition_key = "orderid"
sort_key = "order_date"

[[aggregations]]
name = "sold"
table = "totals"
partition_key = { name = "item_number", from = "item_number" }
sum = { quantity = "quantity", price = "price" }
count = "orders"
remove = "retract"
"""


def test_several_measures__must_all_be_as_they_were() -> None:
    (aggregation,) = parse_definitions(SEVERAL).aggregations
    totals: Any = TotalsInMemory([aggregation])
    aggregate = aggregate_of(aggregation, ("item123",))
    totals.add(aggregation, ("item123",), amounts(2, 0, 7))  # orders, price, quantity
    seen = observe(totals, LEDGER, aggregate, "0")
    moved: list[bool] = []

    def on_request(operation: str) -> None:
        if operation == "TransactWriteItems" and not moved:
            moved.append(True)
            totals.set(aggregation, ("item123",), {"price": {"N": "1"}})

    totals.on_request = on_request
    repairer = Repairer(totals, LEDGER, "run", sleep=lambda _: None)

    assert repairer.correct(aggregate, seen, amounts(1, 0, 7), "", lambda key: True) is CorrectionOutcome.OVERTAKEN
    totals.set(aggregation, ("item123",), {"price": {"N": "0"}})
    assert repairer.correct(aggregate, seen, amounts(1, 0, 7), "", lambda key: True) is CorrectionOutcome.DONE
    assert totals.total(aggregation, ("item123",)) == amounts(1, 0, 0)


@pytest.mark.parametrize(
    ("correction", "text"),
    [(amounts(5), "+5"), (amounts(-3, "0.50"), "-3, +0.5"), (amounts(0), "+0")],
)
def test_correction_in_words(correction: tuple[Decimal, ...], text: str) -> None:
    assert described(correction) == text


def test_pages_of_corrections__sort_by_number() -> None:
    pages = [correction_page(number) for number in range(1, 12)]

    assert sorted(pages) == pages


def test_random_histories__end_exact_however_many_repair_at_once() -> None:
    """Records, other repairs, lost answers and deaths at every request; afterwards one more repair sets all right."""

    class Dead(BaseException):
        pass

    for seed in range(400):
        chance = random.Random(seed)
        ward = Ward()
        ward.totals.page_size = 100
        expected = 10

        def repair(depth: int, ward: Ward = ward, chance: random.Random = chance) -> None:
            """Looks until there is no difference, as a run does."""
            for _ in range(30):
                try:
                    seen = ward.observe()
                except ChangesTooFastError:
                    continue
                assert seen.total is not None
                wrong = seen.total[0] - sum(one[0][0] for one in seen.receipts_from("").values())
                if not wrong:
                    return
                ward.repairer(f"run{depth}-{chance.random()}").correct(AGGREGATE, seen, (wrong,), "", lambda key: True)

        nested = [0]

        def somebody_else(
            operation: str, ward: Ward = ward, chance: random.Random = chance, nested: list[int] = nested
        ) -> None:
            nonlocal expected
            if nested[0] >= 2:
                return
            what = chance.random()
            if what < 0.25:
                quantity = chance.choice([5, -5, 7])
                expected += quantity
                ward.apply(quantity)
            elif what < 0.35:
                nested[0] += 1
                repair(nested[0])
                nested[0] -= 1
            elif what < 0.40:
                ward.totals.faults.append(chance.choice(["lost", "unsent", None]))
            elif what < 0.42 and nested[0] == 0:
                raise Dead

        ward.totals.on_request = somebody_else
        try:
            repair(0)
        except Dead:
            nested[0] = 0
        ward.totals.on_request = lambda operation: None
        ward.totals.faults.clear()
        repair(0)

        assert ward.total == expected, f"seed {seed}"
        ward.assert_receipts_add_up()


# --- A backfill must not come on top ----------------------------------------------------------------------------------

CUT_NOW = Cut("stream 2024-07-01T00:00:00.000", NOW)


@pytest.mark.parametrize(
    ("marker", "may_correct", "cut_afterwards"),
    [
        (None, True, "repair"),
        (Marker(CUT_NOW.name, 1, 2, 3, 0), True, CUT_NOW.name),
        (Marker(CUT_NOW.name, 1, None, 0, 0), False, CUT_NOW.name),
        (Marker("stream of old", 1, None, 0, 0), True, "repair"),
        (Marker("repair", 1, 1, 0, 0), True, "repair"),
    ],
)
def test_correction_and_backfill__exclude_each_other(
    marker: Marker | None, may_correct: bool, cut_afterwards: str
) -> None:
    totals: Any = TotalsInMemory([AGGREGATION])
    put_marker(totals, marker)

    assert close_to_backfill(totals, LEDGER, AGGREGATION, CUT_NOW, marker) is may_correct

    standing = read_marker(totals, LEDGER, AGGREGATION.name)
    assert standing is not None
    assert standing.cut == cut_afterwards
    assert (standing.finished_at is not None) is may_correct


@pytest.mark.parametrize(
    ("meanwhile", "may_correct"),
    [(Marker(CUT_NOW.name, 5, None, 0, 0), False), (Marker("repair", 5, 5, 0, 0), True)],
    ids=["backfill", "another repair"],
)
def test_marker_that_appears_meanwhile__decides(meanwhile: Marker, may_correct: bool) -> None:
    totals: Any = TotalsInMemory([AGGREGATION])
    put_marker(totals, meanwhile)

    assert close_to_backfill(totals, LEDGER, AGGREGATION, CUT_NOW, None) is may_correct
    standing = read_marker(totals, LEDGER, AGGREGATION.name)
    assert standing == meanwhile


def put_marker(totals: TotalsInMemory, marker: Marker | None) -> None:
    if marker is not None:
        finished = {} if marker.finished_at is None else {FINISHED_AT: {"N": str(marker.finished_at)}}
        item = {CUT: {"S": marker.cut}, STARTED_AT: {"N": str(marker.started_at)}, **finished}
        totals.put_page(AGGREGATION.name, BACKFILL_PAGE, item | {"aggregates": {"N": str(marker.aggregates)}})


# --- Dead letters -----------------------------------------------------------------------------------------------------


def waiting(totals: Any, *raw: Any, definitions: Definitions = DEFINITIONS) -> set[tuple[str, Group]]:
    return groups_waiting(totals, LEDGER, definitions, raw, among=Everything())


class Everything:
    """All aggregates there are."""

    def __contains__(self, _: object) -> bool:
        return True


def test_letter_of_an_aggregate_that_is_right__costs_no_reading() -> None:
    asked_for_nothing: Any = None

    assert groups_waiting(asked_for_nothing, LEDGER, DEFINITIONS, [insert()], among=()) == set()


def test_letter_without_its_receipt__holds_back_its_aggregate() -> None:
    totals = TotalsInMemory([AGGREGATION])
    counted, other = insert(order(quantity=1)), insert(order(quantity=2, item="item312"))
    totals.apply([AGGREGATION], validated(counted))

    assert waiting(totals, counted) == set()
    assert waiting(totals, counted, other) == {("item_count_by_date", ("item312", "2024-07-15"))}


def test_letter_that_is_half_counted__holds_back_the_other_half() -> None:
    totals = TotalsInMemory([AGGREGATION])
    moved = modify(order(quantity=1), order(quantity=1, item="item312"))
    receipts = {receipt_name(validated(moved)): {"N": "-1"}}
    totals.set(AGGREGATION, GROUP, {receipts_attribute(AGGREGATION.name): {"M": receipts}})

    assert waiting(totals, moved) == {("item_count_by_date", ("item312", "2024-07-15"))}


def test_letter_with_an_image_that_cannot_be_used__holds_back_what_the_other_one_changes() -> None:
    malformed = {**order(), "quantity": {"S": "ten"}}

    assert waiting(TotalsInMemory([AGGREGATION]), modify(order(item="item312"), malformed)) == {
        ("item_count_by_date", ("item312", "2024-07-15"))
    }
    assert waiting(TotalsInMemory([AGGREGATION]), insert(malformed)) == set()


def test_letter_that_contributes_nothing__holds_back_nothing() -> None:
    assert waiting(TotalsInMemory([AGGREGATION]), modify(order(), order(note={"S": "gift"}))) == set()


def test_aggregate__is_read_once_for_many_letters() -> None:
    totals = TotalsInMemory([AGGREGATION])
    requests: list[str] = []
    totals.on_request = requests.append

    waiting(totals, *(insert(order(quantity=number)) for number in range(50)))

    assert requests == ["GetItem", "GetItem"]


@pytest.mark.parametrize(
    "raw",
    [
        "not a record",
        changed(insert(), "dynamodb.SequenceNumber"),
        changed(insert(), "eventSourceARN", "arn:aws:dynamodb:us-east-1:1:table/other/stream/2024"),
        changed(modify(order(), order()), "dynamodb.OldImage"),
        changed(json.loads(json.dumps(insert())), "eventName", "RENAME"),
    ],
)
def test_letter_that_cannot_be_read__is_refused(raw: Any) -> None:
    with pytest.raises(UnreadableLetterError, match="cannot be read"):
        waiting(TotalsInMemory([AGGREGATION]), insert(), raw)


def test_source_of_these_tests__is_the_definitions_own() -> None:
    assert DEFINITIONS.source.table == SOURCE_TABLE
    assert isinstance(AGGREGATION, Aggregation)

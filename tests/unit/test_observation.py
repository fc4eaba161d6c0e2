"""Observations of single aggregates: a total and exactly its receipts, and what several of them say together."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from aggregation_worker.aggregations.contributions import Contribution, Group
from aggregation_worker.aggregations.definitions import load_definitions, parse_definitions
from aggregation_worker.ledger.corrections import Correction
from aggregation_worker.ledger.reading import ChangesTooFastError, Stored
from aggregation_worker.ledger.receipts import (
    aggregate_of,
    backfill_attribute,
    backfill_value,
    first_position,
    postings,
)
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.reconciliation.observation import (
    ComparedTotal,
    Observation,
    Observations,
    VerdictSoFar,
    measures_in,
    observe,
    rows_of,
    worth_in,
)
from aggregation_worker.streams.records import StreamRecord
from tests.model.in_memory_dynamodb import InMemoryDynamoDB
from tests.records import insert, order, validated
from tests.totals_in_memory import LEDGER, TotalsInMemory, make_rows_small

(AGGREGATION,) = load_definitions(SAMPLE_FILE).aggregations
GROUP: Group = ("item123", "2024-07-15")
AGGREGATE = aggregate_of(AGGREGATION, GROUP)


def amounts(*numbers: int | str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, numbers))


def record(quantity: int, created_at: int = 1_721_036_400) -> StreamRecord:
    return validated(insert(order(quantity=quantity), created_at=created_at))


def observed(client: Any, first: str = "") -> Observation:
    return observe(client, LEDGER, AGGREGATE, first)


def correct(totals: TotalsInMemory, added: int) -> None:
    """As another repair does."""
    seen = totals.stored(AGGREGATION, GROUP)
    correction = Correction(AGGREGATE, 1 + len(seen.corrections), "other", amounts(added))
    request = correction.request(LEDGER, seen, amounts(0), datetime.now(UTC), "generation")
    totals.undisturbed.transact_write_items(TransactItems=request)


def contributed(found: Observation, first: str = "") -> list[tuple[Decimal, ...]]:
    return [contribution for contribution, _ in found.receipts_from(first).values()]


def seen_in(found: Observation) -> Decimal:
    """The sum of what an observation has seen receipts of."""
    seen = [*contributed(found), *found.stored.corrections.values()]
    return sum((one[0] for one in seen), Decimal(0))


@pytest.fixture(autouse=True)
def rows_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that receipts stand on pages, too."""
    make_rows_small(monkeypatch)


# --- One observation --------------------------------------------------------------------------------------------------


def test_observation__shows_total_and_receipts_from_a_position_on() -> None:
    totals = TotalsInMemory([AGGREGATION])
    records = [record(quantity, created_at=1_721_036_400 + quantity) for quantity in range(1, 11)]
    for one in records:
        totals.apply([AGGREGATION], one)

    found = observed(totals, first_position(1_721_036_404))

    assert found.total == amounts(55)
    assert sorted(contributed(found)) == [amounts(quantity) for quantity in range(4, 11)]
    assert found.receipts_from(first_position(1_721_036_409)).keys() == set(sorted(found.stored.receipts)[-2:])
    assert found.stored.corrections == {}
    assert 0 < len(found.stored.pages) < 7


def test_observation__tells_starting_value_and_corrections_from_records() -> None:
    totals = TotalsInMemory([AGGREGATION])
    totals.apply([AGGREGATION], record(1))
    starting_value = {backfill_attribute(AGGREGATION.name): backfill_value("stream 2024", amounts(7))}
    totals.set(AGGREGATION, GROUP, starting_value)
    totals.put_page(totals.partition(AGGREGATION, GROUP), "repair|000001", {"2024-07-15T00:00:00Z|run": {"N": "-2"}})

    found = observed(totals)

    assert contributed(found) == [amounts(1)]
    assert found.stored.starting_value == ("stream 2024", amounts(7))
    assert found.stored.corrections == {(1, "2024-07-15T00:00:00Z|run"): amounts(-2)}


@pytest.mark.parametrize("request_number", range(1, 4))
@pytest.mark.parametrize("created_at", [1_721_036_400, 1_721_036_402, 1_721_036_500])
def test_records_applied_meanwhile__are_in_both_or_in_neither(request_number: int, created_at: int) -> None:
    """Late ones, and so many that others are archived."""
    totals = TotalsInMemory([AGGREGATION])
    for second in range(7):
        totals.apply([AGGREGATION], record(1, created_at=1_721_036_400 + second))
    requests: list[str] = []

    def somebody_else(operation: str) -> None:
        requests.append(operation)
        if len(requests) == request_number:
            for quantity in range(10, 14):
                totals.apply([AGGREGATION], record(quantity, created_at=created_at))

    totals.on_request = somebody_else

    found = observed(totals)

    assert found.total == (seen_in(found),)
    if request_number == 2:  # between the two readings of the row, pages change: all is read again
        assert requests[:2] + requests[-1:] == ["GetItem", "Query", "GetItem"]
        assert requests.count("GetItem") == 3


def test_record_added_to_the_row_meanwhile__needs_no_other_reading() -> None:
    totals = TotalsInMemory([AGGREGATION])
    totals.apply([AGGREGATION], record(1))
    requests: list[str] = []

    def somebody_else(operation: str) -> None:
        requests.append(operation)
        if operation == "Query":
            totals.apply([AGGREGATION], record(10))

    totals.on_request = somebody_else

    found = observed(totals)

    assert found.total == (seen_in(found),) == amounts(11)
    assert requests == ["GetItem", "Query", "GetItem"]


@pytest.mark.parametrize("request_number", range(1, 4))
def test_correction_meanwhile__is_in_both_or_in_neither(request_number: int) -> None:
    totals = TotalsInMemory([AGGREGATION])
    totals.apply([AGGREGATION], record(1))
    requests: list[str] = []

    def somebody_else(operation: str) -> None:
        requests.append(operation)
        if len(requests) == request_number:
            correct(totals, 5)

    totals.on_request = somebody_else

    found = observed(totals)

    assert found.total == (seen_in(found),) == amounts(6)


def test_row_that_is_deleted_meanwhile__is_seen_anew() -> None:
    """At each request in turn; receipts and pages of the old row belong to nothing any more."""
    for request_number in range(1, 4):
        totals = TotalsInMemory([AGGREGATION])
        for second in range(10):
            totals.apply([AGGREGATION], record(1, created_at=1_721_036_400 + second))
        requests: list[str] = []

        def delete(
            operation: str, totals: TotalsInMemory = totals, requests: Any = requests, at: int = request_number
        ) -> None:
            requests.append(operation)
            if len(requests) == at:
                totals.tables[AGGREGATION.table].items.clear()
                totals.apply([AGGREGATION], record(7, created_at=1_721_036_402))

        totals.on_request = delete

        found = observed(totals)

        assert found.total == (seen_in(found),) == amounts(7)


def test_aggregate_that_never_holds_still__is_given_up() -> None:
    totals = TotalsInMemory([AGGREGATION])
    totals.page_size = 1_000

    def many(operation: str) -> None:
        for _ in range(5):
            totals.apply([AGGREGATION], record(1))

    totals.on_request = many

    with pytest.raises(ChangesTooFastError, match="item123"):
        observed(totals)


@pytest.mark.parametrize("seconds_back", [0, 50])
def test_hot_aggregate__is_seen_between_its_records(seconds_back: int) -> None:
    """To read all its pages takes many requests, and every tenth brings a record: a new one, or one further back."""
    totals = TotalsInMemory([AGGREGATION])
    for second in range(120):
        totals.apply([AGGREGATION], record(1, created_at=1_721_036_400 + second))
    requests: list[str] = []

    def meanwhile(operation: str) -> None:
        requests.append(operation)
        if len(requests) % 10 == 0 and len(requests) < 200:
            totals.apply([AGGREGATION], record(1, created_at=1_721_036_519 - seconds_back))

    totals.on_request = meanwhile

    found = observed(totals)

    assert found.total == (seen_in(found),)
    assert len(found.stored.receipts) > 120
    if not seconds_back:
        assert len(requests) < 200


def test_receipt_far_back_in_a_hot_aggregate__is_not_missed() -> None:
    """At each request of the observation, in turn."""
    for late in range(1, 30):
        totals = TotalsInMemory([AGGREGATION])
        for second in range(30):
            totals.apply([AGGREGATION], record(1, created_at=1_721_036_400 + second))
        requests: list[str] = []

        def meanwhile(
            operation: str, totals: TotalsInMemory = totals, requests: Any = requests, late: int = late
        ) -> None:
            requests.append(operation)
            if len(requests) == 5:
                totals.apply([AGGREGATION], record(1, created_at=1_721_036_500))
            if len(requests) == late:
                totals.apply([AGGREGATION], record(1_000, created_at=1_721_036_401))

        totals.on_request = meanwhile

        found = observed(totals)

        assert found.total == (seen_in(found),), f"at request {late}"


def test_moment_of_an_observation__is_after_its_last_read() -> None:
    totals = TotalsInMemory([AGGREGATION])
    times = iter(range(100))
    passed = []
    totals.on_request = lambda operation: passed.append(next(times))

    found = observe(totals, LEDGER, AGGREGATE, clock=lambda: next(times))  # type: ignore[arg-type]  # a fake client

    assert found.seen_at > max(passed)


# --- Rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "measures"),
    [
        ({}, amounts(0)),
        ({"quantity": {"N": "1.50"}}, amounts("1.50")),
        ({"quantity": {"S": "ten"}}, None),
        ({"quantity": {"NULL": True}}, None),
    ],
)
def test_measures_of_a_row(row: dict[str, Any], measures: Any) -> None:
    assert measures_in(AGGREGATION, row) == measures


SHARED = """
[source]
table = "orders"
partition_key = "orderid"

[[aggregations]]
name = "by_item"
table = "totals"
partition_key = { name = "key", from = "item", prefix = "item#" }
sort_key = { name = "number", from = "number", type = "N" }
sum = { quantity = "quantity" }

[[aggregations]]
name = "by_customer"
table = "totals"
partition_key = { name = "key", from = "customer", prefix = "customer#" }
sort_key = { name = "number", from = "number", type = "N" }
sum = { quantity = "quantity" }

[[aggregations]]
name = "orders"
table = "totals"
partition_key = { name = "key", from = "customer", prefix = "customer#" }
sort_key = { name = "number", from = "number", type = "N" }
count = "orders"
"""


def test_rows_of_a_shared_table__are_told_apart() -> None:
    aggregations = {one.name: one for one in parse_definitions(SHARED).aggregations}

    client: Any = InMemoryDynamoDB()
    client.create("totals", ("key", "S"), ("number", "N"))

    def row(key: str, number: str, **measures: str) -> dict[str, Any]:
        return {
            "key": {"S": key},
            "number": {"N": number},
            **{name: {"N": text} for name, text in measures.items()},
        }

    for item in (
        row("item#a", "1", quantity="1"),
        row("customer#b", "1E+1", quantity="2"),
        row("customer#c", "2.50", quantity="3", orders="4"),
        row("customer#d", "1", orders="5"),
        row("item#e", "1", something="6"),
        row("customer#f", "1") | {"orders": {"S": "x"}},
    ):
        client.put_item(TableName="totals", Item=item)
    client.page_size = 1

    def found(name: str) -> dict[Group, Any]:
        rows = rows_of(client, aggregations[name])
        return {group: worth_in(aggregations[name], row) for group, row in rows}

    assert found("by_item") == {("item#a", "1"): amounts(1)}
    assert found("by_customer") == {("customer#b", "10"): amounts(2), ("customer#c", "2.5"): amounts(3)}
    assert found("orders") == {
        ("customer#c", "2.5"): amounts(4),
        ("customer#d", "1"): amounts(5),
        ("customer#f", "1"): None,
    }


# --- The difference ---------------------------------------------------------------------------------------------------


def compared(
    total: int | str | None, receipts: Sequence[int], later: Mapping[int, int], baseline: int | str, kept: int = 0
) -> ComparedTotal:
    """Receipts, and what later records contribute by the receipts' names."""
    stored = Stored({}, {str(number): (amounts(number), ()) for number in receipts}, {}, None, {})
    observation = Observation("", stored, None if total is None else amounts(total), amounts(kept))
    contributions = {str(name): (amounts(number), amounts()) for name, number in later.items()}
    return ComparedTotal(observation, contributions, amounts(baseline))


@pytest.mark.parametrize(
    ("total", "receipts", "later", "baseline", "expected"),
    [
        (10, (), (), 10, 0),
        (15, (5,), (5,), 10, 0),
        (15, (5,), (5, 7), 10, 0),  # 7 is in flight
        (15, (5,), (), 10, 5),  # the receipt is of a record from before the cut: it is in the baseline
        (12, (5,), (5,), 10, -3),
    ],
)
def test_difference__leaves_out_what_later_records_have_added(
    total: int, receipts: tuple[int, ...], later: tuple[int, ...], baseline: int, expected: int
) -> None:
    contributions = {number: number for number in later}

    assert compared(total, receipts, contributions, baseline).difference == amounts(expected)


def test_difference__is_by_contribution_not_by_receipt() -> None:
    """A worker that counted something else than the definitions say has made a drift."""
    found = compared(15, [5], {5: 4}, 10)

    assert found.difference == amounts(1)
    assert found.differing == 1


def test_difference__leaves_out_what_is_kept() -> None:
    found = compared(15, [5], {5: 5}, 3, kept=7)

    assert found.expected == amounts(15)
    assert (found.difference, found.differing) == (amounts(0), 0)


def test_later_record_that_keeps__explains_what_is_kept() -> None:
    stored = Stored({}, {"1": (amounts(0), amounts(7))}, {}, None, {})
    observation = Observation("", stored, amounts(10), amounts(7))

    found = ComparedTotal(observation, {"1": (amounts(0), amounts(7))}, amounts(10))

    assert (found.expected, found.difference) == (amounts(10), amounts(0))


def test_kept_that_is_not_a_number__makes_the_difference_unknown() -> None:
    observation = Observation("", Stored({}, {}, {}, None, {}), amounts(10), None)

    assert ComparedTotal(observation, {}, amounts(10)).difference is None


def test_difference_of_what_is_not_a_number__is_unknown() -> None:
    assert compared(None, [], {}, 10).difference is None


def test_difference__is_never_rounded() -> None:
    assert compared("1E+30", [], {}, "1E-30").difference == (Decimal("9" * 30 + "." + "9" * 30),)


# --- Several observations ---------------------------------------------------------------------------------------------

PATIENCE = 60.0
A, B = "a", "b"


def several(*seen: tuple[float, int | None, set[Any]]) -> Observations:
    observations = Observations()
    for at, differs, waiting in seen:
        observations.add(None if differs is None else amounts(differs), waiting, at)
    return observations


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ([], VerdictSoFar.OPEN),
        ([(0, 0, set())], VerdictSoFar.EQUAL),
        ([(0, 0, {A})], VerdictSoFar.OPEN),
        ([(0, 0, {A}), (10, 0, {B})], VerdictSoFar.EQUAL),  # the worker keeps up
        ([(0, 0, {A}), (10, 0, {A, B})], VerdictSoFar.OPEN),
        ([(0, 0, {A}), (60, 0, {A, B})], VerdictSoFar.BEHIND),
        ([(0, 5, set())], VerdictSoFar.OPEN),
        ([(0, 5, set()), (1, 5, set())], VerdictSoFar.DIFFERENT),  # every record has its receipt
        ([(0, 5, {A}), (30, 5, {A})], VerdictSoFar.OPEN),
        ([(0, 5, {A}), (30, 5, {B})], VerdictSoFar.DIFFERENT),  # the worker keeps up
        ([(0, 5, {A}), (30, 5, set())], VerdictSoFar.DIFFERENT),
        ([(0, 5, set()), (30, 5, set()), (60, 5, set())], VerdictSoFar.DIFFERENT),
        ([(0, 5, set()), (30, 4, set())], VerdictSoFar.OPEN),
        ([(0, 5, {A}), (30, 4, {A}), (60, 4, {A})], VerdictSoFar.OPEN),
        ([(0, 5, {A}), (30, 4, {A}), (90, 4, {A})], VerdictSoFar.DIFFERENT),
        ([(0, 5, set()), (59, 0, set())], VerdictSoFar.EQUAL),
        ([(0, 5, {A}), (60, 5, {A})], VerdictSoFar.DIFFERENT),  # whoever asks sees what is stuck
        ([(0, None, set()), (60, None, set())], VerdictSoFar.DIFFERENT),
        ([(0, 0, set()), (60, 5, set())], VerdictSoFar.OPEN),
    ],
)
def test_verdict_so_far(seen: list[tuple[float, int | None, set[Any]]], verdict: VerdictSoFar) -> None:
    assert several(*seen).verdict_so_far(PATIENCE) is verdict


@pytest.mark.parametrize("patience", [0.0, PATIENCE])
def test_one_observation_alone__never_decides_a_difference(patience: float) -> None:
    """It may have met a transaction between its two writes."""
    assert several((0, 5, set())).verdict_so_far(patience) is VerdictSoFar.OPEN
    assert several((0, 0, {A})).verdict_so_far(patience) is VerdictSoFar.OPEN


def test_stuck_record__is_one_that_has_waited_all_the_time() -> None:
    observations = several((0, 0, {A, B}), (30, 0, {A}), (60, 0, {A, B}))

    assert observations.stuck(PATIENCE) == [A]


def test_postings_and_observations__name_aggregates_alike() -> None:
    """What the worker writes is what is observed."""
    (posting,) = postings([(0, record(1), [Contribution(AGGREGATION, GROUP, amounts(1))])])

    assert posting.aggregate.aggregation is AGGREGATE.aggregation
    assert posting.aggregate.row.key() == AGGREGATE.row.key()

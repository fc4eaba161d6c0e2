"""Whole reconciles over a source, a stream, a worker and totals in memory, in random histories: nothing stands still.

Between any two requests items are written, records appear in the stream or are counted, shards split, others repair.
The same seed gives the same history.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from functools import reduce
from typing import Any
from unittest.mock import patch

import pytest

from tests.busy_source import BusySource, Written, _Datetime
from tests.fake_totals import LEDGER, FakeTotals
from tests.faulty_dynamodb import ImmediateExecutor
from worker.aggregations import Aggregation, Definitions, Group, contributions
from worker.attribute_paths import Image
from worker.definitions import parse_definitions
from worker.numbers import EXACT
from worker.operations.recompute import totals_of
from worker.reconciliation import reconcile
from worker.reconciliation.reconcile import OutOfTimeError, Reconciliation, Report, Verdict
from worker.reconciliation.spool import Spool

DEFINITIONS = """
[source]
table = "Order_by_item"
partition_key = "orderid"

[[aggregations]]
name = "sold"
table = "totals"
partition_key = { name = "item_number", from = "item_number" }
sum = { quantity = "quantity" }
count = "orders"
remove = "retract"
"""
ITEMS = 8
PATIENCE = 60.0
ZERO = (Decimal(0), Decimal(0))


def make_order(chance: random.Random, key: str) -> Image:
    return {
        "orderid": {"S": key},
        "item_number": {"S": f"item{chance.randrange(ITEMS)}"},
        "quantity": {"N": str(chance.randrange(1, 9))},
    }


def make_order_or_rubbish(chance: random.Random, key: str) -> Image:
    order = dict(make_order(chance, key))
    if chance.random() < 0.15:
        order["quantity"] = {"S": "rubbish"}
    return order


@dataclass
class World:
    """A source, and totals that a worker keeps; before the stream began all was counted.

    Attributes:
        worker: whether the worker counts.
        lag: how many records the worker is behind, about.
    """

    source: BusySource
    totals: FakeTotals = field(init=False)
    aggregation: Aggregation = field(init=False)
    definitions: Definitions = field(init=False)
    worker: bool = True
    lag: int = 5
    todo: list[Written] = field(default_factory=list)
    known: int = 0
    parked: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        parsed = parse_definitions(DEFINITIONS)
        self.definitions = Definitions(self.source.source, parsed.aggregations)
        (self.aggregation,) = parsed.aggregations
        self.totals = FakeTotals(parsed.aggregations)
        self.totals.page_size = 200  # each request makes new pages: with few a time they would never end
        for group, amounts in self.fold(self.source.at_the_beginning).items():
            self.totals.add(self.aggregation, group, amounts)
        self.totals.on_request = lambda operation: self.go_on()

    def fold(self, items: dict[str, Image]) -> dict[Group, tuple[Decimal, ...]]:
        return {
            group: amounts for (_, group), amounts in totals_of([self.aggregation], items.values()).by_group.items()
        }

    def go_on(self) -> None:
        """Writes, and the worker counts some of what was written, in any order between keys."""
        self.source.go_on()
        self.work(keep=self.lag)

    def work(self, keep: int = 0) -> None:
        self.todo += self.source.written[self.known :]
        self.known = len(self.source.written)
        while self.worker and len(self.todo) > keep:
            written = self.todo.pop(self.source.random.randrange(min(3, len(self.todo))))
            refusals = contributions([self.aggregation], written.record)[1]
            if refusals:
                self.parked.append(written)
            self.totals.apply([self.aggregation], written.record)

    def run(self, *, repair: bool = False, letters: Callable[[], Any] = list, **options: Any) -> Report:
        clock = self.source.clock
        # At LATEST a position that expires is lost, and so is the run; see `stream_shards`.
        self.source.iterators_expire = repair
        with Spool(None) as spool:
            return Reconciliation(
                client=self.totals,  # type: ignore[arg-type]
                definitions=self.definitions,
                aggregations=self.definitions.aggregations,
                ledger_table=LEDGER,
                items=self.source,
                reader=self.source.reader("TRIM_HORIZON" if repair else "LATEST"),
                executor=ImmediateExecutor(),
                patience=PATIENCE,
                letters=letters if repair else None,
                clock=clock.monotonic,
                sleep=clock.sleep,
                **options,
            ).run(spool)

    def plant(self, count: int) -> set[Group]:
        chance = self.source.random
        planted: set[Group] = set()
        for group in chance.sample([(f"item{number}",) for number in range(ITEMS + 2)], count):
            self.totals.add(self.aggregation, group, (Decimal(0), Decimal(chance.choice([-3, 2, 10**9]))))
            planted.add(group)
        return planted

    def wrong(self) -> dict[Group, tuple[Decimal, ...]]:
        """What is wrong with the totals when the worker has counted everything: total minus fold."""
        self.work()
        expected = self.fold(self.source.items)
        groups = expected.keys() | self.totals.rows[self.aggregation.table].keys()
        found = {
            group: tuple(map(EXACT.subtract, self.totals.total(self.aggregation, group), expected.get(group, ZERO)))
            for group in groups
        }
        return {group: difference for group, difference in found.items() if any(difference)}


@contextmanager
def a_world(seed: int, make_item: Callable[[random.Random, str], Image] = make_order) -> Iterator[World]:
    source = BusySource(seed, make_item, keys=30)
    source.writes_per_request = 1.0
    source.disorder = source.random.choice([0.0, 3.0])
    # With clocks that are wrong by more than is allowed for, it may take longer, and is as exact.
    clocks = timedelta(seconds=source.random.choice([900, 2, -100]))
    with (
        source.as_the_world(),
        patch.object(reconcile, "datetime", _Datetime(source.clock)),
        patch.object(reconcile, "_CLOCKS", clocks),
    ):
        world = World(source)
        for _ in range(source.random.randrange(60)):
            world.go_on()
        world.lag = source.random.choice([0, 5, 20])
        yield world


def found(report: Report, *verdicts: Verdict) -> dict[Group, Any]:
    return {finding.group: finding.difference for finding in report.findings if finding.verdict in verdicts}


@pytest.mark.parametrize("part", range(4))
def test_drift__is_found_exactly_and_nothing_else(part: int) -> None:
    for seed in range(part * 25, part * 25 + 25):
        with a_world(seed) as world:
            world.plant(world.source.random.randrange(5))

            report = world.run()

            assert found(report, *Verdict) == found(report, Verdict.DRIFT) == world.wrong(), f"seed {seed}"


@pytest.mark.parametrize("part", range(4))
def test_repair__makes_every_total_exact_and_a_second_one_finds_nothing(part: int) -> None:
    for seed in range(part * 25, part * 25 + 25):
        with a_world(seed) as world:
            planted = world.plant(world.source.random.randrange(5))
            world.totals.faults.extend(world.source.random.choices([None, "lost", "unsent"], (6, 2, 2), k=20))

            report = world.run(repair=True)
            again = world.run(repair=True)

            assert set(found(report, Verdict.REPAIRED)) == planted, f"seed {seed}"
            assert (report.findings and report.drifted, again.findings) == (report.findings and 0, ()), f"seed {seed}"
            assert world.wrong() == {}, f"seed {seed}"


def test_repairs_that_run_into_each_other__correct_once() -> None:
    """The second run starts and ends inside the first one, at any of its requests."""
    for seed in range(40):
        with a_world(seed) as world:
            world.plant(4)
            inner: list[Report] = []
            begins_at = world.source.random.randrange(40)
            requests = [0]

            def go_on(
                operation: str,
                world: World = world,
                inner: list[Report] = inner,
                begins_at: int = begins_at,
                requests: list[int] = requests,
            ) -> None:
                world.go_on()
                requests[0] += operation == "TransactWriteItems" or requests[0] > 0
                if requests[0] == 1 + begins_at % 7 and not inner:
                    inner.append(Report((), 0, 0, 0, (), (), (), None, 0))  # type: ignore[arg-type]  # not again
                    inner[0] = world.run(repair=True)

            world.totals.on_request = go_on

            report = world.run(repair=True)

            assert inner, f"seed {seed}"
            assert (report.drifted, inner[0].drifted) == (0, 0), f"seed {seed}"
            assert world.wrong() == {}, f"seed {seed}"


def test_malformed_orders__come_right_once_their_letters_are_discarded() -> None:
    """The worker refuses records with a malformed image, old or new; nobody will ever count them."""
    corrected = 0
    for seed in range(40):
        with a_world(seed, make_order_or_rubbish) as world:
            for _ in range(100):
                world.go_on()
            world.source.writes_per_request = 1e-9  # else new ones would never end

            report = world.run(repair=True)

            assert world.parked, f"seed {seed}"
            assert report.drifted == 0, f"seed {seed}"
            assert world.wrong() == {}, f"seed {seed}"
            corrected += report.count(Verdict.REPAIRED)
    assert corrected > 40


def test_malformed_orders__are_left_alone_while_their_letters_wait() -> None:
    for seed in range(20):
        with a_world(seed, make_order_or_rubbish) as world:
            for _ in range(100):
                world.go_on()
            world.source.writes_per_request = 1e-9

            def letters(world: World = world) -> list[Any]:
                return [as_delivered(written) for written in world.parked]

            report = world.run(repair=True, letters=letters)

            wrong = world.wrong()
            assert found(report, Verdict.WAITS) == wrong, f"seed {seed}"
            assert wrong, f"seed {seed}"
            assert report.count(Verdict.REPAIRED) == 0, f"seed {seed}"


def as_delivered(written: Written) -> dict[str, Any]:
    from tests.busy_source import STREAM_ARN
    from worker.stream import from_get_records

    return from_get_records(written.raw, STREAM_ARN)


def test_worker_that_stands_still__is_neither_healthy_nor_repaired() -> None:
    for seed in range(20):
        with a_world(seed) as world:
            world.worker = False
            for _ in range(20):
                world.go_on()

            live, whole = world.run(), world.run(repair=True)

            assert world.todo, f"seed {seed}"
            assert (live.drifted, whole.drifted) == (0, 0), f"seed {seed}"
            assert live.undecided, f"seed {seed}"
            assert whole.undecided, f"seed {seed}"
            assert whole.count(Verdict.REPAIRED) == 0
            world.worker = True
            assert world.wrong() == {}, f"seed {seed}"


def test_drift_of_a_worker_that_stands_still__is_seen_when_every_record_is_known() -> None:
    """From the stream's beginning, what is in flight can be told from what is wrong."""
    for seed in range(20):
        with a_world(seed) as world:
            world.worker = False
            planted = world.plant(3)

            report = world.run(repair=True)

            assert set(found(report, Verdict.REPAIRED)) == planted, f"seed {seed}"
            world.worker = True
            assert world.wrong() == {}, f"seed {seed}"


def test_run_whose_time_is_up__says_so_wherever_it_is() -> None:
    """At no moment does it return a report that looks complete."""
    ended = 0
    for seed in range(60):
        with a_world(seed % 6) as world:
            planted = world.plant(2)
            left = [seed * 4]

            def seconds_left(left: list[int] = left) -> float:
                left[0] -= 1
                return float(left[0])

            try:
                report = world.run(seconds_left=seconds_left)
            except OutOfTimeError:
                ended += 1
            else:
                assert set(found(report, Verdict.DRIFT)) == planted
    assert ended > 10


def test_difference_that_never_stands_still__is_left_open() -> None:
    with a_world(1) as world:

        def go_on(operation: str) -> None:
            world.go_on()
            if operation == "GetItem":
                world.totals.add(world.aggregation, ("item1",), (Decimal(0), Decimal(1)))

        world.totals.on_request = go_on

        report = world.run()

    assert set(found(report, Verdict.UNSETTLED)) == {("item1",)}
    assert (report.drifted, report.undecided, report.is_decided) == (0, 1, False)


def test_total_that_is_no_number__is_drift_that_no_repair_touches() -> None:
    with a_world(1) as world:
        world.worker = False
        world.source.writes_per_request = 1e-9
        world.totals.rows["totals"]["item1",]["quantity"] = {"S": "ten"}

        report = world.run(repair=True)

        (finding,) = (one for one in report.findings if one.verdict is Verdict.DRIFT)
        assert (finding.group, finding.total) == (("item1",), None)
        assert "by hand" in finding.note
        assert world.totals.rows["totals"]["item1",]["quantity"] == {"S": "ten"}


def test_receipts__still_add_up_to_every_total_after_a_repair() -> None:
    with a_world(3) as world:
        planted = world.plant(4)

        world.run(repair=True)

        world.work()
        for group in planted:
            receipts = world.totals.receipts(world.aggregation, group).values()
            total = reduce(lambda one, other: tuple(map(EXACT.add, one, other)), receipts)
            assert total == world.totals.total(world.aggregation, group)

"""Whole reconciles over a source, a stream, a worker and totals in memory, in random histories: nothing stands still.

Between any two requests items are written, records appear in the stream or are counted, shards split, others repair.
The same seed gives the same history.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from functools import reduce
from typing import Any
from unittest.mock import patch

import pytest

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import (
    Aggregation,
    Definitions,
    Group,
    Measure,
    RemovePolicy,
    contributions,
)
from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.aggregations.numbers import EXACT, sum_of
from aggregation_worker.dead_letters import Notice
from aggregation_worker.ledger.receipts import backfill_attribute, backfill_value
from aggregation_worker.local.recompute import totals_of
from aggregation_worker.reconciliation import observer, reconcile, repair
from aggregation_worker.reconciliation.observation import Observations
from aggregation_worker.reconciliation.observer import Observer
from aggregation_worker.reconciliation.reconcile import OutOfTimeError, Reconciliation, Repairs
from aggregation_worker.reconciliation.report import Report, Verdict
from aggregation_worker.reconciliation.snapshot import read_back
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.reconciliation.waiting_letters import Waiting, WaitingNotice
from aggregation_worker.streams.records import Image, from_get_records
from aggregation_worker.streams.shards import IncompleteDescriptionError
from tests.busy_source import STREAM_ARN, BusySource, Written, _Datetime
from tests.faulty_dynamodb import ImmediateExecutor
from tests.sizes import chosen, seeds, size
from tests.totals_in_memory import LEDGER, RETENTION_DAYS, TotalsInMemory, make_rows_small

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
remove = "POLICY"
"""
POLICIES = ("retract", "keep")
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


@dataclass(frozen=True, slots=True)
class BlindMeasure(Measure):
    """What a worker with a fault sums: it cannot use odd quantities."""

    def amount(self, image: Image) -> Decimal | None:
        amount = Measure.amount(self, image)
        if self.factors and amount is not None and amount % 2:
            raise MalformedValueError(f"{self.name}: odd")
        return amount


@dataclass
class World:
    """A source, and totals that a worker keeps; before the stream began all was counted.

    Attributes:
        worker: whether the worker counts.
        lag: how many records the worker is behind, about.
        deployed: how the worker reads images; not as `aggregation` says where it has a fault.
        notices: those that it has sent.
        clocks: by how many seconds a run believes that clocks may differ.
    """

    source: BusySource
    policy: str = "retract"
    totals: TotalsInMemory = field(init=False)
    aggregation: Aggregation = field(init=False)
    definitions: Definitions = field(init=False)
    worker: bool = True
    lag: int = 5
    todo: list[Written] = field(default_factory=list)
    known: int = 0
    deployed: Aggregation = field(init=False)
    notices: list[Notice] = field(default_factory=list)
    clocks: float = 900

    def __post_init__(self) -> None:
        parsed = parse_definitions(DEFINITIONS.replace("POLICY", self.policy))
        self.definitions = Definitions(self.source.source, parsed.aggregations)
        (self.aggregation,) = parsed.aggregations
        self.deployed = self.aggregation
        self.totals = TotalsInMemory(parsed.aggregations)
        self.totals.page_size = 200  # each request makes new pages: with few a time they would never end
        for group, amounts in self.fold(self.source.at_the_beginning).items():
            self.begin_with(group, amounts)
        self.totals.on_request = lambda operation: self.go_on()

    def begin_with(self, group: Group, amounts: tuple[Decimal, ...]) -> None:
        """Adds a starting value, with its receipt, to a total."""
        self.totals.add(self.aggregation, group, amounts)
        self.totals.set(self.aggregation, group, {backfill_attribute("sold"): backfill_value("stream", amounts)})

    def fold(self, items: dict[str, Image]) -> dict[Group, tuple[Decimal, ...]]:
        return {group: amounts for (_, group), amounts in totals_of([self.aggregation], items.values()).items()}

    def go_on(self) -> None:
        """Writes, and the worker counts some of what was written, in any order between keys."""
        self.source.go_on()
        self.work(keep=self.lag)

    def work(self, keep: int = 0) -> None:
        self.todo += self.source.written[self.known :]
        self.known = len(self.source.written)
        while self.worker and len(self.todo) > keep:
            written = self.todo.pop(self.source.random.randrange(min(3, len(self.todo))))
            self.deliver(written)

    def deliver(self, written: Written) -> None:
        raw = from_get_records(written.raw, STREAM_ARN)
        for unusable in contributions([self.deployed], written.record)[1]:
            self.notices.append(Notice(raw, (unusable.reason,), unusable.aggregation))
        self.totals.apply([self.deployed], written.record)

    @property
    def blind(self) -> Aggregation:
        """As a worker with a fault reads images."""
        measures = (BlindMeasure(one.name, one.factors) for one in self.aggregation.measures)
        return replace(self.aggregation, measures=tuple(measures))

    def kept(self, group: Group) -> tuple[Decimal, ...]:
        row = self.totals.row(self.aggregation, group)
        names = (f"kept#sold#{measure.name}" for measure in self.aggregation.measures)
        return tuple(Decimal(row.get(name, {"N": "0"})["N"]) for name in names)

    def off(self) -> dict[Group, Any]:
        """Where total or kept are not those of a worker that was right all along, and had counted everything."""
        totals, kept = dict(self.fold(self.source.at_the_beginning)), dict[Group, tuple[Decimal, ...]]()
        for written in self.source.written:
            for change in contributions([self.aggregation], written.record)[0]:
                totals[change.group] = sum_of([change.amounts], totals.get(change.group, ZERO))
                kept[change.group] = sum_of([change.kept or ZERO], kept.get(change.group, ZERO))
        groups = totals.keys() | self.totals.tables[self.aggregation.table].items.keys()
        right = {group: (totals.get(group, ZERO), kept.get(group, ZERO)) for group in groups}
        found = {group: (self.totals.total(self.aggregation, group), self.kept(group)) for group in groups}
        return {group: (found[group], right[group]) for group in groups if found[group] != right[group]}

    def settle(self, steps: int) -> None:
        """Goes on for a while; then nobody writes any more, and the worker has seen everything."""
        for _ in range(steps):
            self.go_on()
        self.source.writes_per_request = 1e-9
        self.work()
        self.lag = 0

    def run(
        self, *, repair: bool = False, letters: Callable[[], Waiting] = lambda: Waiting([], []), **options: Any
    ) -> Report:
        clock = self.source.clock
        # At LATEST a position that expires is lost, and so is the run; see `stream_shards`.
        self.source.iterators_expire = repair
        while True:
            try:
                with Spool(None) as spool:
                    return Reconciliation(
                        client=self.totals,  # type: ignore[arg-type]  # a fake client
                        definitions=self.definitions,
                        aggregations=self.definitions.aggregations,
                        ledger_table=LEDGER,
                        items=self.source,
                        reader=self.source.reader("TRIM_HORIZON" if repair else "LATEST"),
                        executor=ImmediateExecutor(),
                        patience=PATIENCE,
                        repairs=Repairs(letters, RETENTION_DAYS) if repair else None,
                        clock=clock.monotonic,
                        sleep=clock.sleep,
                        **options,
                    ).run(spool)
            except IncompleteDescriptionError:
                continue  # it says: begin again

    def repair(self, letters: Callable[[], Waiting] = lambda: Waiting([], [])) -> Report:
        """Repairs once; where clocks differ by more than the run believes, again as long as its report asks for it."""
        report = self.run(repair=True, letters=letters)
        findings = {finding.name_and_group: finding for finding in report.findings}
        for _ in range(3 if self.clocks < self.source.disorder else 0):
            if any("run this again" in finding.note for finding in findings.values()):
                report = self.run(repair=True, letters=letters)
                findings |= {finding.name_and_group: finding for finding in report.findings}
        return replace(report, findings=tuple(findings.values()))

    def plant(self, count: int) -> set[Group]:
        chance = self.source.random
        planted: set[Group] = set()
        for group in chance.sample([(f"item{number}",) for number in range(ITEMS + 2)], count):
            self.totals.add(self.aggregation, group, (Decimal(0), Decimal(chance.choice([-3, 2, 10**9]))))
            planted.add(group)
        return planted

    def wrong(self) -> dict[Group, tuple[Decimal, ...]]:
        """What is wrong with the totals when the worker has counted everything: total minus kept minus fold."""
        self.work()
        expected = self.fold(self.source.items)
        groups = expected.keys() | self.totals.tables[self.aggregation.table].items.keys()
        found = {
            group: tuple(
                map(
                    EXACT.subtract,
                    self.totals.total(self.aggregation, group),
                    sum_of([self.kept(group)], expected.get(group, ZERO)),
                )
            )
            for group in groups
        }
        return {group: difference for group, difference in found.items() if any(difference)}


@contextmanager
def a_world(seed: int, make_item: Callable[[random.Random, str], Image] = make_order) -> Iterator[World]:
    source = BusySource(seed, make_item, keys=30)
    source.writes_per_request = 1.0
    source.disorder = source.random.choice([0.0, 3.0])
    # With clocks that are wrong by more than is allowed for, it may take longer, and is as exact.
    clocks = source.random.choice([900, 2, -100])
    with (
        source.as_the_world(),
        patch.object(reconcile, "datetime", _Datetime(source.clock)),
        patch.object(reconcile, "_CLOCKS", timedelta(seconds=clocks)),
    ):
        world = World(source, POLICIES[seed % len(POLICIES)], clocks=clocks)
        for _ in range(source.random.randrange(60)):
            world.go_on()
        world.lag = source.random.choice([0, 5, 20])
        yield world


@pytest.fixture(autouse=True)
def rows_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that receipts stand on pages, too."""
    make_rows_small(monkeypatch, receipts_in_a_row=10, receipts_on_a_page=8)


def found(report: Report, *verdicts: Verdict) -> dict[Group, Any]:
    return {finding.group: finding.difference for finding in report.findings if finding.verdict in verdicts}


@seeds(2, long=32)
def test_drift__is_found_exactly_and_nothing_else(seed: int | None) -> None:
    with a_world(chosen(seed)) as world:
        world.plant(world.source.random.randrange(5))

        report = world.run()

        assert found(report, *Verdict) == found(report, Verdict.DRIFT) == world.wrong()


@seeds(2, long=24)
def test_repair__makes_every_total_exact(seed: int | None) -> None:
    with a_world(chosen(seed)) as world:
        planted = world.plant(world.source.random.randrange(5))
        world.totals.faults.extend(world.source.random.choices([None, "lost", "unsent"], (6, 2, 2), k=20))

        report = world.repair()
        again = world.run(repair=True)

        assert set(found(report, *Verdict)) == set(found(report, Verdict.REPAIRED)) == planted
        assert again.findings == ()
        assert world.wrong() == {}


@seeds(2, long=24)
def test_rows_that_are_deleted__begin_anew_and_are_set_right(seed: int | None) -> None:
    """Their receipts have gone with them: what the worker has counted is counted again, and once."""
    with a_world(chosen(seed)) as world:
        rows = world.totals.tables[world.aggregation.table].items
        deleted = set(world.source.random.sample(sorted(rows), min(3, len(rows))))
        for group in deleted:
            del rows[group]

        report = world.repair()
        again = world.run(repair=True)

        assert set(found(report, *Verdict)) == set(found(report, Verdict.REPAIRED)) <= deleted
        assert again.findings == ()
        assert world.wrong() == {}
        for written in world.source.written:  # the whole stream once more
            world.totals.apply([world.aggregation], written.record)
        assert world.wrong() == {}


def test_row_deleted_while_the_worker_stands_still__keeps_what_waits_apart() -> None:
    """What nobody has counted yet is not counted by a repair; what the items were worth at the cut is added."""
    with a_world(3) as world:
        world.settle(30)
        world.worker = False
        group = next(iter(world.fold(world.source.at_the_beginning)))
        del world.totals.tables[world.aggregation.table].items[group]

        report = world.run(repair=True)

        assert group in found(report, Verdict.REPAIRED)
        assert report.drifted == 0
        assert not world.totals.stored(world.aggregation, group).receipts


@seeds(2, long=32)
def test_repairs_that_run_into_each_other__correct_once(seed: int | None) -> None:
    """The second run starts and ends inside the first one, between any two requests of its correcting."""
    with a_world(chosen(seed)) as world:
        world.plant(4)
        begins_at = world.source.random.randrange(10)
        requests: list[str] = []
        inner: list[Report] = []

        def go_on(operation: str) -> None:
            world.go_on()
            if requests or operation == "TransactWriteItems":
                requests.append(operation)
            if len(requests) == 1 + begins_at:
                inner.append(world.repair())

        world.totals.on_request = go_on

        report = world.repair()

        assert (report.drifted, [one.drifted for one in inner]) == (0, [0])
        assert world.wrong() == {}


def test_aggregation_that_ignores_what_is_removed__is_proved_by_receipts_alone() -> None:
    with a_world(2) as world:
        ignoring = replace(world.aggregation, remove=RemovePolicy.IGNORE)
        world.aggregation = world.deployed = ignoring
        world.definitions = Definitions(world.source.source, (ignoring,))
        for key in [*world.source.items][:6]:
            world.source.write(key, None)
        world.settle(0)
        world.source.rest()
        planted = world.plant(2)

        report, repaired = world.run(), world.run(repair=True)

        assert set(found(report, Verdict.UNEXPLAINED)) == planted
        assert found(report, Verdict.UNPROVABLE)
        assert found(repaired, Verdict.UNEXPLAINED) == found(report, Verdict.UNEXPLAINED)
        assert repaired.count(Verdict.REPAIRED) == 0
        assert (report.drifted, report.undecided, report.unproved, report.is_decided) == (2, 0, ("sold",), False)


def test_paused_worker_and_a_quiet_source__is_behind_and_no_drift() -> None:
    """Whether or not the run begins at the stream's beginning; what is wrong besides is told."""
    with a_world(0) as world:
        world.settle(30)
        world.worker = False
        one_write(world, "order-0", {**make_order(random.Random(1), "order-0"), "item_number": {"S": "alone"}})
        world.source.rest()

        behind = world.run()
        world.totals.add(world.aggregation, ("item-x",), (Decimal(0), Decimal(3)))
        wrong = world.run()

        assert ("alone",) in found(behind, Verdict.UNSETTLED)
        assert (behind.drifted, behind.is_decided) == (0, False)
        assert found(wrong, Verdict.DRIFT) == {("item-x",): (Decimal(0), Decimal(3))}


def test_difference_where_nothing_waits__is_decided_within_seconds() -> None:
    with a_world(0) as world:
        world.settle(30)
        planted = world.plant(3)
        world.source.rest()

        report = world.run()

        assert set(found(report, Verdict.DRIFT)) == planted
        assert report.seconds < PATIENCE  # some times the stream's lag, and what the requests take


@pytest.mark.parametrize("archived", [False, True], ids=["in the row", "on pages"])
def test_total_that_its_receipts_do_not_explain__is_told_and_repaired(archived: bool) -> None:
    """The source says that it is right by now: somebody has changed it, and an item as well."""
    with a_world(0) as world:
        world.source.writes_per_request = 1e-9
        order = {"orderid": {"S": "order-0"}, "item_number": {"S": "alone"}, "quantity": {"N": "1"}}
        for quantity in range(2, 40 if archived else 4):
            one_write(world, "order-0", order | {"quantity": {"N": str(quantity)}})
        world.settle(0)
        world.source.rest()
        assert bool(world.totals.stored(world.aggregation, ("alone",)).pages) is archived
        right = world.run()
        world.totals.add(world.aggregation, ("alone",), (Decimal(0), Decimal(5)))
        # And its record was lost with an earlier stream.
        world.source.items["order-0"] = order | {"quantity": {"N": str(quantity + 5)}}
        world.source.forget()

        wrong, repaired, after = world.run(), world.run(repair=True), world.run()

        assert (right.findings, after.findings) == ((), ())
        assert found(wrong, *Verdict) == found(wrong, Verdict.UNEXPLAINED) == {("alone",): (Decimal(0), Decimal(5))}
        assert wrong.drifted == 1
        assert found(repaired, *Verdict).keys() == found(repaired, Verdict.REPAIRED).keys() == {("alone",)}
        assert world.wrong() == {}


def test_total_and_what_is_kept_of_it_changed_alike__is_told() -> None:
    """The source sees nothing of it."""
    with a_world(1) as world:
        world.settle(30)
        group = min(world.fold(world.source.items))
        kept = {"N": str(world.kept(group)[1] + 5)}
        world.totals.add(world.aggregation, group, (Decimal(0), Decimal(5)))
        world.totals.set(world.aggregation, group, {"kept#sold#quantity": kept})

        report = world.run()

        (finding,) = report.findings
        assert (finding.group, finding.verdict) == (group, Verdict.UNEXPLAINED)
        assert finding.note == "what is kept of it by 0, 5, see aggregator explain"
        assert world.wrong() == {}


def test_total_of_which_pages_have_expired__is_not_compared_with_its_receipts() -> None:
    with a_world(0) as world:
        world.source.writes_per_request = 1e-9
        order = {"orderid": {"S": "order-0"}, "item_number": {"S": "alone"}, "quantity": {"N": "1"}}
        for quantity in range(2, 40):
            one_write(world, "order-0", order | {"quantity": {"N": str(quantity)}})
        world.settle(0)
        world.source.rest()
        del world.totals.ledger[min(key for key in world.totals.ledger if "alone" in key[0])]

        assert world.run().findings == ()


def test_record_parked_while_the_totals_are_observed__is_known_before_anything_is_corrected() -> None:
    """It leaves the stream before the run has begun to read that, and comes into the queue after the first reading."""
    with a_world(1) as world:
        world.settle(30)
        world.worker = False
        world.source._places["order-x"] = 0.5
        world.source.write("order-x", alone("6"))
        raw = from_get_records(world.source.written[-1].raw, STREAM_ARN)
        world.source.forget()
        readings = iter([Waiting([], [])])

        report = world.run(repair=True, letters=lambda: next(readings, Waiting([raw], [])))

        assert ("alone",) in found(report, Verdict.WAITS)
        assert world.totals.total(world.aggregation, ("alone",)) == ZERO


# --- Images that cannot be used ---------------------------------------------------------------------------------------


def told(notices: Iterable[Notice]) -> Waiting:
    """Notices in the dead-letter queue."""
    return Waiting([], [WaitingNotice(str(number), notice) for number, notice in enumerate(notices)])


@seeds(2, long=24)
def test_orders_that_cannot_be_used__are_no_drift_and_leave_none(seed: int | None) -> None:
    """They are worth nothing, and their corrections bring the totals right."""
    with a_world(chosen(seed), make_order_or_rubbish) as world:
        world.settle(100)

        report = world.repair(lambda: told(world.notices))

        assert world.notices
        assert (report.findings, report.settled) == ((), ())
        assert (world.wrong(), world.off()) == ({}, {})


@seeds(4, long=24)
def test_worker_that_was_wrong__is_made_up_for(seed: int | None) -> None:
    """Afterwards the totals are those of a worker that was right all along, and the notices are settled."""
    with a_world(chosen(seed)) as world:
        chance = world.source.random
        world.work()
        world.deployed = world.blind
        for _ in range(chance.randrange(60)):
            world.go_on()
        world.work()  # what the blind worker has begun it ends
        world.deployed = world.aggregation
        for written in chance.sample(world.source.written, min(20, len(world.source.written))):
            world.totals.apply([world.deployed], written.record)  # delivered again
        forgotten = chance.random() < 0.5
        if forgotten:
            world.source.forget()

        report = world.repair(lambda: told(world.notices))
        again = world.run(repair=True)

        assert len(report.settled) == len(world.notices)
        assert report.drifted == report.undecided == 0
        assert again.findings == ()
        assert world.wrong() == {}
        assert world.off() == {}


GOOD, ODD = "6", "5"
ALONE = {"orderid": {"S": "order-x"}, "item_number": {"S": "alone"}}


def alone(quantity: str | None, item: str = "alone") -> Image | None:
    return None if quantity is None else ALONE | {"item_number": {"S": item}, "quantity": {"N": quantity}}


# What happens to one order under a worker that cannot use odd quantities, and then under a mended one.
WRONG_WORKER: dict[str, tuple[list[Image | None], list[Image | None]]] = {
    "inserted, then changed under the mended one": ([alone(ODD)], [alone(GOOD)]),
    "inserted and changed several times": ([alone(ODD), alone("7"), alone("9"), alone(GOOD), alone("3")], []),
    "good, then removed": ([alone(GOOD), alone(ODD), None], []),
    "inserted and removed": ([alone(ODD), None], []),
    "inserted, and removed under the mended one": ([alone(ODD)], [None]),
    "moved to another item": ([alone(GOOD), alone(ODD, "other")], []),
    "moved on under the mended one": ([alone(GOOD), alone(ODD, "other")], [alone(GOOD, "third")]),
    "changed back": ([alone(GOOD), alone(ODD), alone(GOOD)], [alone("7")]),
}


def under_the_blind_worker(world: World, history: str) -> None:
    """Brings the order into the source, and each of its records twice into the totals; others are few from then on."""
    world.source.writes_per_request = 0.1
    blind, mended = WRONG_WORKER[history]
    for aggregation, images in ((world.blind, blind), (world.aggregation, mended)):
        world.deployed = aggregation
        for image in images:
            world.source.write("order-x", image)
            world.work()
            world.totals.apply([world.deployed], world.source.written[-1].record)
    world.deployed = world.aggregation


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("history", WRONG_WORKER)
def test_history_under_a_worker_that_was_wrong__ends_right(history: str, policy: str, forgotten: bool) -> None:
    with a_world(POLICIES.index(policy)) as world:
        world.source._places["order-x"] = 0.5
        world.work()
        under_the_blind_worker(world, history)
        if forgotten:
            world.source.forget()

        report = world.run(repair=True, letters=lambda: told(world.notices))

        assert len(report.settled) == len(world.notices) > 0
        assert (report.drifted, report.undecided) == (0, 0)
        if history == "inserted and changed several times":  # the receipt of its last change is of a wrong amount
            assert any("hold another amount" in hint for hint in report.hints) is not forgotten
        if not forgotten:
            for written in world.source.written:  # all of it once more
                world.totals.apply([world.aggregation], written.record)
        assert (world.wrong(), world.off()) == ({}, {})


@pytest.mark.parametrize(
    ("policy", "left"),
    [
        ("keep", "none"),
        pytest.param("retract", "none", marks=pytest.mark.only_long),
        pytest.param("retract", "the last", marks=pytest.mark.only_long),
        pytest.param("keep", "the last", marks=pytest.mark.only_long),
    ],
)
@pytest.mark.parametrize("history", WRONG_WORKER)
def test_replay_between_the_two_workers__loses_nothing_while_the_stream_knows(
    history: str, policy: str, left: str
) -> None:
    """By the blind worker, which deletes the notices of what has changed since; or it is interrupted."""
    with a_world(POLICIES.index(policy)) as world:
        world.source._places["order-x"] = 0.5
        world.work()
        under_the_blind_worker(world, history)
        notices = {"the last": world.notices[-1:], "none": []}[left]

        first = world.run(repair=True, letters=lambda: told(notices))

        assert first.drifted == 0
        for finding in first.findings:
            if finding.verdict is Verdict.UNSETTLED:
                assert "unsettled until 20" in finding.note
        world.source.clock.now += 86_400
        world.work()
        world.source.forget()
        last = world.run(repair=True)
        assert (last.drifted, last.undecided) == (0, 0)
        assert world.wrong() == {}


@seeds(2, long=24)
def test_worker_that_stands_still__is_not_healthy_nor_repaired(seed: int | None) -> None:
    with a_world(chosen(seed)) as world:
        world.worker = False
        for _ in range(20):
            world.go_on()

        live, whole = world.run(), world.run(repair=True)

        assert (live.drifted, whole.drifted, whole.count(Verdict.REPAIRED)) == (0, 0, 0)
        assert live.undecided
        assert whole.undecided
        world.worker = True
        assert world.wrong() == {}


@seeds(2, long=24)
def test_drift_beside_a_worker_that_stands_still__is_repaired(seed: int | None) -> None:
    """From the stream's beginning, what is in flight can be told from what is wrong."""
    with a_world(chosen(seed)) as world:
        world.worker = False
        planted = world.plant(3)

        report = world.repair()

        assert set(found(report, Verdict.REPAIRED)) == planted
        world.worker = True
        assert world.wrong() == {}


@seeds(2, long=24)
def test_every_single_observation__shows_exactly_what_is_wrong(
    seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in flight: a difference is no estimate that gets better."""
    with a_world(chosen(seed)) as world:
        world.work()  # all that was written before the cut is counted
        planted = world.plant(3)
        wrong = world.wrong()
        assert wrong.keys() == planted
        seen: list[tuple[Group, Any]] = []
        observe = Observer.observe

        def observed(observer: Observer, aggregates: Any) -> Iterator[Any]:
            for chunk in observe(observer, aggregates):
                seen.extend((one.group, compared.difference) for one, compared in chunk if compared is not None)
                yield chunk

        monkeypatch.setattr(Observer, "observe", observed)

        world.run()

        assert len(seen) > 2 * len(planted)
        assert all(difference == wrong.get(group, ZERO) for group, difference in seen)


def one_write(world: World, key: str, item: Image) -> None:
    """Writes one item of one's own choice, in the place of the random ones."""
    world.source.write(key, item)


def test_drift_that_a_record_on_its_way_hides__is_found() -> None:
    """When the totals are read, this one is its baseline, by a record that is counted and not yet in the stream."""
    with a_world(0) as world:
        world.settle(30)
        order = {"orderid": {"S": "order-0"}, "item_number": {"S": "alone"}, "quantity": {"N": "7"}}
        one_write(world, "order-0", order)
        world.settle(0)
        world.totals.add(world.aggregation, ("alone",), (Decimal(0), Decimal(-5)))

        def hide(operation: str) -> None:
            if operation == "Scan":
                one_write(world, "order-0", order | {"quantity": {"N": "12"}})
                world.work()
            world.source.go_on()

        world.totals.on_request = hide

        assert found(world.run(), Verdict.DRIFT) == {("alone",): (Decimal(0), Decimal(-5))}


def test_receipt_before_the_first_page__spoils_no_observation(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is ahead of the stream's by more than is allowed for."""
    with a_world(0) as world:
        world.settle(30)
        monkeypatch.setattr(reconcile, "_CLOCKS", timedelta(seconds=-1_000))
        order = {"orderid": {"S": "order-0"}, "item_number": {"S": "alone"}, "quantity": {"N": "7"}}
        one_write(world, "order-0", order)
        world.settle(0)
        world.source.rest()
        world.totals.add(world.aggregation, ("alone",), (Decimal(0), Decimal(-5)))
        seen: list[Any] = []
        scanned: list[bool] = []

        def meanwhile(operation: str) -> None:
            if operation == "Scan":
                scanned.append(True)
            if operation == "GetItem" and scanned and not seen:  # between two readings of the pages
                seen.append(None)
                one_write(world, "order-0", order | {"quantity": {"N": "12"}})
                world.work()
            world.source.go_on()

        world.totals.on_request = meanwhile
        add = Observations.add

        def added(observations: Observations, difference: Any, waiting: Any, seen_at: float) -> None:
            seen.append(difference)
            add(observations, difference, waiting, seen_at)

        monkeypatch.setattr(Observations, "add", added)

        assert found(world.run(), Verdict.DRIFT) == {("alone",): (Decimal(0), Decimal(-5))}
        assert set(seen[1:]) == {(Decimal(0), Decimal(-5))}


def test_order_that_has_become_malformed__is_worth_nothing() -> None:
    """It is older than the stream, and all there is of its total."""
    with a_world(0) as world:
        world.settle(30)
        old = {"orderid": {"S": "old"}, "item_number": {"S": "alone"}, "quantity": {"N": "7"}}
        world.source._places["old"] = 0.5
        world.source.items["old"] = old
        world.begin_with(("alone",), (Decimal(1), Decimal(7)))
        one_write(world, "old", old | {"quantity": {"S": "seven"}})
        world.settle(0)

        report = world.run(repair=True)

        assert report.findings == ()
        assert world.totals.total(world.aggregation, ("alone",)) == ZERO
        assert world.wrong() == {}


def test_what_is_not_counted_yet__is_not_called_drift() -> None:
    """The total that lacks a record from before the cut is touched by none after it; others are."""
    with a_world(0) as world:
        world.settle(30)
        world.worker = False
        one_write(world, "order-0", {**make_order(random.Random(1), "order-0"), "item_number": {"S": "alone"}})
        world.source.rest()

        def others(operation: str) -> None:
            if operation == "Scan":
                one_write(world, "order-1", {**make_order(random.Random(1), "order-1"), "item_number": {"S": "other"}})
            world.source.go_on()

        world.totals.on_request = others

        report = world.run()

        assert ("alone",) in found(report, Verdict.UNSETTLED)
        assert report.drifted == 0


@pytest.mark.long
def test_run_whose_time_is_up__says_so_at_once_wherever_it_is() -> None:
    """At no moment does it return a report that looks complete."""
    moments = range(1, 121, size(13, long=4))
    ended = 0
    for seconds in moments:
        with a_world(seconds % 6) as world:
            planted = world.plant(2)
            clock = world.source.clock
            end = clock.now + seconds

            try:
                report = world.run(seconds_left=lambda end=end, clock=clock: end - clock.now)
            except OutOfTimeError:
                assert clock.now - end < 3
                ended += 1
            else:
                assert set(found(report, Verdict.DRIFT)) == planted
    assert 8 / 15 < ended / len(moments) < 1


def test_difference_that_keeps_changing__is_left_open() -> None:
    with a_world(1) as world:

        def go_on(operation: str) -> None:
            world.go_on()
            if operation == "GetItem":
                world.totals.add(world.aggregation, ("item1",), (Decimal(0), Decimal(1)))

        world.totals.on_request = go_on

        report = world.run()

    assert set(found(report, Verdict.UNSETTLED)) == {("item1",)}
    assert (report.drifted, report.undecided, report.is_decided) == (0, 1, False)


def test_round_that_outlasts_the_patience__leaves_nothing_open() -> None:
    """Many totals, or a slow DynamoDB: those that are observed last have the whole patience, too."""
    with a_world(6) as world:
        world.settle(20)
        world.plant(3)
        pauses = iter([10 * PATIENCE])
        world.totals.on_request = lambda operation: (
            world.source.clock.sleep(next(pauses, 0.1)) if operation == "Query" else None
        )

        report = world.run()

        assert found(report, *Verdict) == found(report, Verdict.DRIFT) == world.wrong() != {}


def test_stream_whose_beginning_takes_long_to_read__leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    with a_world(1) as world:
        world.settle(50)
        planted = world.plant(3)

        def slowly(*arguments: Any) -> None:
            world.source.clock.sleep(100 * PATIENCE)
            read_back(*arguments)

        monkeypatch.setattr(observer, "read_back", slowly)
        report = world.run()

    assert found(report, *Verdict).keys() == found(report, Verdict.DRIFT).keys() == planted


def test_total_that_is_not_a_number__is_drift_left_alone() -> None:
    with a_world(1) as world:
        world.worker = False
        world.source.writes_per_request = 1e-9
        world.totals.set(world.aggregation, ("item1",), {"quantity": {"S": "ten"}})

        report = world.run(repair=True)

        (finding,) = (one for one in report.findings if one.verdict is Verdict.DRIFT)
        assert (finding.group, finding.total) == (("item1",), None)
        assert "by hand" in finding.note
        assert world.totals.tables["totals"].items["item1",]["quantity"] == {"S": "ten"}


def test_total_that_changes_too_fast__is_told_after_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "_LONGEST_PAUSE", 0.0)
    attempts = 0
    with a_world(5) as world:
        (group,) = world.plant(1)

        def go_on(operation: str) -> None:
            nonlocal attempts
            if operation == "TransactWriteItems":
                attempts += 1
                quantity = {"N": str(100 + attempts)}
                one_write(
                    world,
                    "order-0",
                    {"orderid": {"S": "order-0"}, "item_number": {"S": group[0]}, "quantity": quantity},
                )
                world.work()
            world.go_on()

        world.totals.on_request = go_on
        report = world.run(repair=True)

        (finding,) = (one for one in report.findings if one.group == group)
        assert (finding.verdict, finding.note) == (
            Verdict.DRIFT,
            "not corrected: it changes all the time; run this again",
        )
        assert attempts == repair.MOST_ATTEMPTS
        world.totals.on_request = lambda operation: world.go_on()
        assert found(world.run(repair=True), Verdict.REPAIRED).keys() == {group}
        assert world.wrong() == {}


def test_hot_total__is_corrected_between_its_records() -> None:
    """To read its receipts of the last minutes takes 40 requests, and every twentieth brings another."""
    with a_world(6) as world, patch.object(reconcile, "_CLOCKS", timedelta(minutes=15)):
        world.settle(0)
        world.source.disorder = 2.0
        requests, quantities = itertools.count(), itertools.count(1)

        def hot_write() -> None:
            world.source.clock.now += 1
            quantity = {"N": str(next(quantities))}
            one_write(
                world, "order-0", {"orderid": {"S": "order-0"}, "item_number": {"S": "hot"}, "quantity": quantity}
            )
            world.work()

        for _ in range(400):
            hot_write()
        world.source.rest()
        world.totals.add(world.aggregation, ("hot",), (Decimal(0), Decimal(-5)))
        world.totals.page_size = 10

        def go_on(operation: str) -> None:
            if next(requests) % 20 == 0:
                hot_write()
            world.source.go_on()

        world.totals.on_request = go_on
        report = world.run(repair=True)

        assert found(report, Verdict.REPAIRED).keys() == {("hot",)}
        assert world.wrong() == {}


def test_receipts__still_add_up_to_every_total_after_a_repair() -> None:
    with a_world(3) as world:
        planted = world.plant(4)

        world.run(repair=True)

        world.work()
        for group in planted:
            receipts = world.totals.receipts(world.aggregation, group).values()
            total = reduce(lambda one, other: tuple(map(EXACT.add, one, other)), receipts)
            assert total == world.totals.total(world.aggregation, group)

"""The join of a table's items with its stream, against the fold of what the items really were at the cut."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Group, KeyType, Source, contributions
from aggregation_worker.aggregations.numbers import EXACT, Amounts
from aggregation_worker.ledger.receipts import net, receipt_name
from aggregation_worker.reconciliation.items import ItemPage, Pages
from aggregation_worker.reconciliation.progress import Stage
from aggregation_worker.reconciliation.snapshot import Snapshot, SnapshotError, take_snapshot
from aggregation_worker.reconciliation.spool import Spool, SpoolMismatchError
from aggregation_worker.streams.reader import HistoryLostError
from aggregation_worker.streams.records import Image, StreamRecord, StreamViewTypeError
from aggregation_worker.streams.shards import IncompleteDescriptionError, StartingPosition
from tests.busy_source import BEGAN, SOURCE_TABLE, BusySource, Killed
from tests.definition_texts import aggregation_text, definitions
from tests.sizes import examples

Totals = dict[Group, Amounts]
seeds = st.integers(0, 2**32)

ITEM = '{ name = "item", from = "item" }'
RETRACT = aggregation_text(
    'count = "orders"\nremove = "retract"', name="retract", table="table-1", partition_key=ITEM, sort_key=None
)
IGNORE = aggregation_text('remove = "ignore"', name="ignore", table="table-2", partition_key=ITEM, sort_key=None)
EXPIRING = aggregation_text(
    'remove = "retract_unless_expired"\nwhere = "quantity > `2`"',
    name="expiring",
    table="table-3",
    partition_key=ITEM,
    sort_key=None,
)
AGGREGATIONS = definitions(RETRACT, IGNORE, EXPIRING).aggregations


def an_order(chance: random.Random, key: str) -> Image:
    quantity = chance.choice(["0", "1", "2", "3.5", "-4", "1234567890123456789012345678901234"])
    return {"orderid": {"S": key}, "item": {"S": chance.choice("abcde")}, "quantity": {"N": quantity}}


def an_order_or_nonsense(chance: random.Random, key: str) -> Image:
    order = an_order(chance, key)
    if chance.random() < 0.2:
        # Less than any fraction, it needs more digits than DynamoDB has: such a change is refused, too.
        return {**order, "quantity": {"N": "12345678901234567890123456789012345678"}}
    return {**order, "quantity": {"S": "many"}} if chance.random() < 0.3 else order


def summed(pairs: Iterable[tuple[Group, Amounts]]) -> Totals:
    """Totals by group; those that are zero left out, as a baseline is that is zero."""
    sums: Totals = {}
    for group, amounts in pairs:
        before = sums.get(group)
        sums[group] = amounts if before is None else tuple(map(EXACT.add, before, amounts))
    return {group: amounts for group, amounts in sums.items() if any(amounts)}


def fold(aggregation: Aggregation, items: Iterable[Image | None]) -> Totals:
    """What the definition says of items."""
    return summed(value for item in items if item is not None and (value := usable(aggregation, item)) is not None)


def usable(aggregation: Aggregation, item: Image) -> tuple[Group, Amounts] | None:
    try:
        return aggregation.value(item)
    except MalformedValueError:
        return None


def unusable(aggregation: Aggregation, items: Iterable[Image]) -> int:
    count = 0
    for item in items:
        try:
            aggregation.value(item)
        except MalformedValueError:
            count += 1
    return count


def changes(aggregation: Aggregation, records: Iterable[StreamRecord]) -> list[tuple[Group, Amounts]]:
    """What the worker adds for records."""
    return [
        (one.group, net(one.amounts, one.kept)) for record in records for one in contributions([aggregation], record)[0]
    ]


def plus(first: Totals, second: Totals) -> Totals:
    return summed([*first.items(), *second.items()])


def a_snapshot(
    world: BusySource, spool: Spool, aggregations: Sequence[Aggregation] = AGGREGATIONS, **options: Any
) -> Snapshot:
    start = options.pop("start", "TRIM_HORIZON")
    return take_snapshot(aggregations, world.source, world, world.reader(start), spool, **options)


def read_to_the_end(world: BusySource, snapshot: Snapshot) -> None:
    """All that was ever written is read, without a further write."""
    world.writes_per_request = 1e-9
    world.rest()
    snapshot.pump_until(world.clock.monotonic())


def baselines(spool: Spool, aggregation: Aggregation) -> Totals:
    return dict(spool.baselines(aggregation.name))


def assert_later_records_are(spool: Spool, aggregation: Aggregation, records: Iterable[StreamRecord]) -> None:
    """Exactly these records' receipts are known, as the ledger names them, and add up with the baselines."""
    later = [(record, change) for record in records for change in contributions([aggregation], record)[0]]
    found = {(one.group, one.receipt, one.amounts, one.kept) for one in spool.later_receipts(aggregation.name)}
    assert found == {(change.group, receipt_name(record), change.amounts, change.kept) for record, change in later}
    compared = list(spool.compare(aggregation.name))
    assert {one.group for one in compared if one.touched} == {change.group for _, change in later}
    changed = summed((change.group, net(change.amounts, change.kept)) for _, change in later)
    assert summed((one.group, one.expected) for one in compared) == plus(baselines(spool, aggregation), changed)


def expected_now(spool: Spool, aggregation: Aggregation) -> Totals:
    """Baselines and later records together."""
    return summed((one.group, one.expected) for one in spool.compare(aggregation.name))


@examples(8, long=200)
@given(seed=seeds)
def test_from_the_beginning__baseline_is_what_the_table_held_then(seed: int) -> None:
    world = BusySource(seed, an_order_or_nonsense)
    world.go_on(writes=world.random.randrange(300))

    with world.as_the_world(), Spool(None) as spool:
        snapshot = a_snapshot(world, spool, whole_history=True)
        read_to_the_end(world, snapshot)

        for aggregation in AGGREGATIONS:
            held = world.at_the_beginning.values()
            assert baselines(spool, aggregation) == fold(aggregation, held)
            assert spool.unusable(aggregation.name) == unusable(aggregation, held)
            assert_later_records_are(spool, aggregation, [one.record for one in world.written])


@examples(8, long=200)
@given(seed=seeds)
def test_from_now__baseline_and_later_records_make_the_state(seed: int) -> None:
    world = BusySource(seed, an_order)
    world.iterators_expire = False
    world.go_on(writes=world.random.randrange(300))

    with world.as_the_world(), Spool(None) as spool:
        snapshot = a_snapshot(world, spool, start="LATEST")
        read_to_the_end(world, snapshot)

        later = world.written_after_latest()
        first: dict[str, Image | None] = {}
        for one in later:
            first.setdefault(one.key, one.record.old_image)
        for aggregation in AGGREGATIONS:
            assert baselines(spool, aggregation) == fold(aggregation, (world.items | first).values())
            assert_later_records_are(spool, aggregation, [one.record for one in later])
        retract = AGGREGATIONS[0]
        assert expected_now(spool, retract) == fold(retract, world.items.values())


def first_counted(world: BusySource, since: int) -> dict[str, Image | None]:
    """Each key's item as it was before its first record that counts."""
    found: dict[str, Image | None] = {}
    for one in world.written:
        if one.record.created_at >= since:
            found.setdefault(one.key, one.record.old_image)
    return found


def uncounted_that_follow(world: BusySource, since: int) -> list[StreamRecord]:
    """Records that do not count after one, of the same key, that does."""
    counting: set[str] = set()
    found = []
    for one in world.written:
        if one.record.created_at >= since:
            counting.add(one.key)
        elif one.key in counting:
            found.append(one.record)
    return found


@examples(8, long=200)
@given(seed=seeds)
def test_since__baseline_and_counted_records_make_the_state(seed: int) -> None:
    world = BusySource(seed, an_order)
    world.go_on(writes=world.random.randrange(100))
    since = int(world.clock.now) + 10
    world.disorder = 8.0
    while world.clock.now < since + 20:
        world.go_on(writes=4)
    world.disorder = 1.0
    world.clock.now = since + 130
    counting_from = [replace(one, since=since) for one in AGGREGATIONS]
    mixed = [AGGREGATIONS[0], *(replace(one, name=one.name + "_new") for one in counting_from)]

    with world.as_the_world(), Spool(None) as spool:
        snapshot = a_snapshot(world, spool, mixed, whole_history=True)
        read_to_the_end(world, snapshot)

        records = [one.record for one in world.written]
        at_cut = world.items | first_counted(world, since)
        for aggregation in mixed[1:]:
            everything = replace(aggregation, since=None)
            passed_over = summed(changes(everything, uncounted_that_follow(world, since)))
            assert baselines(spool, aggregation) == plus(fold(aggregation, at_cut.values()), passed_over)
            assert_later_records_are(spool, aggregation, records)
        retract = mixed[1]
        assert expected_now(spool, retract) == fold(retract, world.items.values())
        assert baselines(spool, mixed[0]) == fold(mixed[0], world.at_the_beginning.values())


@examples(3, long=60)
@given(seed=seeds)
def test_killed_again_and_again__continues_from_its_spool_exactly(seed: int) -> None:
    world = BusySource(seed, an_order_or_nonsense)
    world.go_on(writes=world.random.randrange(100))
    runs = 0

    with world.as_the_world(), TemporaryDirectory() as folder:
        path = Path(folder, "spool")
        while True:
            runs += 1
            world.kill = world.requests + world.random.randrange(1, 40) if runs < 12 else None
            with Spool(path) as spool:
                try:
                    snapshot = a_snapshot(world, spool, whole_history=True)
                    world.kill = None
                    read_to_the_end(world, snapshot)
                except (Killed, IncompleteDescriptionError):
                    continue
                for aggregation in AGGREGATIONS:
                    held = world.at_the_beginning.values()
                    assert baselines(spool, aggregation) == fold(aggregation, held)
                    assert spool.unusable(aggregation.name) == unusable(aggregation, held)
                    assert_later_records_are(spool, aggregation, [one.record for one in world.written])
                break


@examples(4, long=60)
@given(seed=seeds)
def test_killed_with_since__continues_from_its_spool_exactly(seed: int) -> None:
    world = BusySource(seed, an_order)
    since = int(world.clock.now) + 10
    world.disorder = 8.0
    while world.clock.now < since + 20:
        world.go_on(writes=4)
    world.disorder = 1.0
    world.clock.now = since + 130
    retract = replace(AGGREGATIONS[0], since=since)
    runs = 0

    with world.as_the_world(), TemporaryDirectory() as folder:
        while True:
            runs += 1
            world.kill = world.requests + world.random.randrange(1, 40) if runs < 8 else None
            with Spool(Path(folder, "spool")) as spool:
                try:
                    snapshot = a_snapshot(world, spool, [retract], whole_history=True)
                    world.kill = None
                    read_to_the_end(world, snapshot)
                except (Killed, IncompleteDescriptionError):
                    continue
                assert expected_now(spool, retract) == fold(retract, world.items.values())
                break


def test_progress__tells_of_items_then_the_stream_then_the_sums() -> None:
    world = BusySource(1, an_order)
    told: list[tuple[Stage, int]] = []

    with world.as_the_world(), Spool(None) as spool:
        snapshot = a_snapshot(world, spool, progress=lambda stage, done, of: told.append((stage, done)))

        assert [stage for stage, _ in groupby(told, itemgetter(0))] == [Stage.ITEMS, Stage.STREAM, Stage.SUMS]
        assert [done for stage, done in told if stage is Stage.ITEMS][-1] == spool.items_read() > 0
        assert 0 < told[-1][1] <= snapshot.records_read


def test_complete_spool__is_taken_as_it_is(tmp_path: Path) -> None:
    world = BusySource(2, an_order)
    with world.as_the_world():
        with Spool(tmp_path / "spool") as spool:
            a_snapshot(world, spool)
            assert spool.is_complete
        world.go_on(writes=20)
        told: list[Stage] = []

        with Spool(tmp_path / "spool") as spool:
            snapshot = a_snapshot(world, spool, progress=lambda stage, done, of: told.append(stage))
            read_to_the_end(world, snapshot)

            assert told == []
            for aggregation in AGGREGATIONS:
                assert baselines(spool, aggregation) == fold(aggregation, world.at_the_beginning.values())
                assert_later_records_are(spool, aggregation, [one.record for one in world.written])


def test_spool_of_a_run_from_latest__is_of_no_use_to_another(tmp_path: Path) -> None:
    world = BusySource(3, an_order)
    with world.as_the_world():
        with Spool(tmp_path / "spool") as spool:
            a_snapshot(world, spool, start="LATEST")
        world.clock.now += 1

        with Spool(tmp_path / "spool") as spool, pytest.raises(SpoolMismatchError, match="stream was"):
            a_snapshot(world, spool, start="LATEST")


def test_spool_with_another_definition__refused(tmp_path: Path) -> None:
    world = BusySource(4, an_order)
    with world.as_the_world():
        with Spool(tmp_path / "spool") as spool:
            a_snapshot(world, spool)

        changed = [replace(AGGREGATIONS[0], definition="{}"), *AGGREGATIONS[1:]]
        with Spool(tmp_path / "spool") as spool, pytest.raises(SpoolMismatchError, match="aggregations was"):
            a_snapshot(world, spool, changed)


def test_spool_older_than_the_stream_remembers__refused(tmp_path: Path) -> None:
    world = BusySource(5, an_order)
    with world.as_the_world():
        world.kill = 30
        with Spool(tmp_path / "spool") as spool, pytest.raises(Killed):
            a_snapshot(world, spool)
        world.clock.now += 24 * 3600

        with Spool(tmp_path / "spool") as spool, pytest.raises(SnapshotError, match="begin with a new one"):
            a_snapshot(world, spool)


def test_stream_older_than_its_memory__whole_history_is_refused() -> None:
    world = BusySource(6, an_order)
    world.clock.now += 23.6 * 3600

    with world.as_the_world(), Spool(None) as spool:
        with pytest.raises(HistoryLostError):
            a_snapshot(world, spool, whole_history=True)
        assert (spool.items_read(), spool.is_complete) == (0, False)


def test_stream_that_grows_too_old_meanwhile__refused_at_the_end() -> None:
    world = BusySource(7, an_order)
    world.clock.now = BEGAN.timestamp() + 23.5 * 3600 - 3

    with world.as_the_world(), Spool(None) as spool:
        with pytest.raises(HistoryLostError):
            a_snapshot(world, spool, whole_history=True)
        assert spool.items_read() > 0
        assert not spool.is_complete


def test_since_in_an_old_stream__only_what_follows_must_be_there() -> None:
    world = BusySource(8, an_order)
    world.clock.now += 48 * 3600
    aggregation = replace(AGGREGATIONS[0], since=int(world.clock.now) - 3600)

    with world.as_the_world(), Spool(None) as spool:
        a_snapshot(world, spool, [aggregation], whole_history=True)

        assert spool.is_complete


@pytest.mark.parametrize(("seconds_ago", "refused"), [(119, True), (121, False), (-10, True)])
def test_since__must_lie_in_the_past(seconds_ago: int, refused: bool) -> None:
    world = BusySource(9, an_order)
    world.clock.now += 3600
    aggregation = replace(AGGREGATIONS[0], since=int(world.clock.now) - seconds_ago)
    world.writes_per_request = 1e-9

    with world.as_the_world(), Spool(None) as spool:
        if refused:
            with pytest.raises(SnapshotError, match=r"'retract': since .* must lie 120 s before .* wait"):
                a_snapshot(world, spool, [aggregation])
        else:
            a_snapshot(world, spool, [aggregation])


class _Exported:
    """The items of a world as they were at one moment, to within less than a minute."""

    description = "export"
    estimated_items = None

    def __init__(self, world: BusySource, read_at: datetime) -> None:
        self.read_at: datetime | None = read_at
        self._items = list(world.items.values())

    def pages(self, resume: Any) -> Pages:
        yield ItemPage(0, self._items, {"done": True})


def test_export__joined_with_the_stream_from_its_beginning() -> None:
    world = BusySource(10, an_order)
    world.clock.now += 600
    world.go_on(writes=100)
    exported = _Exported(world, datetime.fromtimestamp(world.clock.now, UTC))
    world.go_on(writes=100)

    with world.as_the_world(), Spool(None) as spool:
        take_snapshot(AGGREGATIONS, world.source, exported, world.reader(), spool, whole_history=True)

        for aggregation in AGGREGATIONS:
            assert baselines(spool, aggregation) == fold(aggregation, world.at_the_beginning.values())


@pytest.mark.parametrize(
    ("age", "start"),
    [
        (timedelta(hours=1, seconds=-30), "TRIM_HORIZON"),  # before the stream began, to within a minute
        (timedelta(minutes=5), "LATEST"),
    ],
)
def test_export_from_before_the_cut__refused(age: timedelta, start: StartingPosition) -> None:
    world = BusySource(11, an_order)
    world.clock.now += 3600
    exported = _Exported(world, datetime.fromtimestamp(world.clock.now, UTC) - age)

    with world.as_the_world(), Spool(None) as spool, pytest.raises(SnapshotError, match="take a new export"):
        take_snapshot(AGGREGATIONS, world.source, exported, world.reader(start), spool)


def test_export_older_than_the_stream_remembers__refused() -> None:
    world = BusySource(12, an_order)
    world.clock.now += 100 * 3600
    exported = _Exported(world, datetime.fromtimestamp(world.clock.now, UTC) - timedelta(hours=24))

    with world.as_the_world(), Spool(None) as spool, pytest.raises(SnapshotError, match="take a new export"):
        take_snapshot(AGGREGATIONS, world.source, exported, world.reader(), spool)


def test_keys_that_the_definition_does_not_name__refused() -> None:
    world = BusySource(13, an_order)
    world.go_on(writes=10)
    world.rest()
    other = Source(SOURCE_TABLE, (("orderid", KeyType.STRING), ("order_date", KeyType.STRING)))

    with (
        world.as_the_world(),
        Spool(None) as spool,
        pytest.raises(SnapshotError, match=r"correct \[source\]|no attribute order_date"),
    ):
        take_snapshot(AGGREGATIONS, other, world, world.reader(), spool)


def test_stream_without_old_images__refused() -> None:
    world = BusySource(14, an_order)
    world.go_on(writes=200)
    world.rest()
    for shard in world.shards.values():
        for record in shard.records:
            record["dynamodb"].pop("OldImage", None)

    with world.as_the_world(), Spool(None) as spool, pytest.raises(StreamViewTypeError):
        a_snapshot(world, spool)


def test_numbers_as_keys__have_one_form_however_they_are_written() -> None:
    source = Source(SOURCE_TABLE, (("id", KeyType.NUMBER), ("day", KeyType.STRING)))
    world = BusySource(16, an_order)
    with world.as_the_world(), Spool(None) as spool:
        spool.begin({}, {"retract": 0})
        snapshot = Snapshot(AGGREGATIONS[:1], source, world.reader(), spool)

        digests = {
            snapshot._digest({"id": {"N": number}, "day": {"S": "1"}}) for number in ("10", "1E+1", "10.0", "1e1")
        }

        assert len(digests) == 1
        assert snapshot._digest({"id": {"N": "1"}, "day": {"S": "01"}}) not in digests


def test_keys_that_only_look_alike__have_digests_of_their_own() -> None:
    source = Source(SOURCE_TABLE, (("one", KeyType.STRING), ("two", KeyType.STRING)))
    world = BusySource(17, an_order)
    with world.as_the_world(), Spool(None) as spool:
        spool.begin({}, {"retract": 0})
        snapshot = Snapshot(AGGREGATIONS[:1], source, world.reader(), spool)

        pairs = [("ab", "c"), ("a", "bc"), ("", "abc"), ("a", "S2:bc"), ("aS2:bc", "")]

        assert len({snapshot._digest({"one": {"S": one}, "two": {"S": two}}) for one, two in pairs}) == len(pairs)

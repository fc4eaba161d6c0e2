"""How totals scale with the number of shards: a simulation up to 1,000 of them, and a measured run of up to 16 workers.

    uv run python -m tests.benchmarks.concurrency              # the simulation
    uv run python -m tests.benchmarks.concurrency --measure    # and workers on DynamoDB Local

DynamoDB Local never raises TransactionConflict, so the measured run shows that concurrent totals stay exact and what
the server can take, and the simulation shows conflicts. Its rules are DynamoDB's documented ones; the times are
assumptions, stated below as constants. Packing, retries and pauses are the worker's.

An aggregate that were split into N slots, chosen by the record, would behave as N aggregates: read it off their rows.
"""

import argparse
import heapq
import itertools
import math
import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from aggregation_worker.ledger.settlement import Pause
from aggregation_worker.ledger.transactions import MAX_ACTIONS, MAX_RECEIPTS_PER_ACTION, halved

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT, Committer
from tests.benchmarks.compare import WORKER, server, warm_up
from tests.benchmarks.contenders import ThisWorker, set_up
from tests.benchmarks.workloads import REFERENCE, Choice, batches
from tests.benchmarks.write_units import Meter

# --- Assumed: seconds -----------------------------------------------------------------------------------------------
# From the worker to DynamoDB, and back again.
NETWORK = 0.001
# For which a transaction holds its items: once, and for each action.
HOLD = 0.005
HOLD_PER_ACTION = 0.000_25
# Between two invocations of a shard, for reading records and planning them.
BETWEEN_BATCHES = 0.020
# --- Documented ("Best practices for designing partition keys", "Quotas", Amazon DynamoDB developer guide) ----------
UNITS_PER_SECOND_AND_PARTITION = 1_000  # an aggregate, and each of its pages, is in one partition
MAX_ITEM_BYTES = 400 * 1024
# --- The worker's, as `write_units` measures them: bytes -------------------------------------------------------------
PAGE_BYTES = 120
RECEIPT_BYTES = 33

RECORDS_PER_SECOND_AND_SHARD = 250


@dataclass(frozen=True, slots=True)
class Change:
    """What one transaction does to one aggregate: receipts by page, the page named by its second."""

    aggregate: int
    pages: tuple[tuple[int, int], ...]

    @property
    def receipts(self) -> int:
        """On all pages."""
        return sum(receipts for _, receipts in self.pages)

    @property
    def actions(self) -> int:
        """The pages, and the ADD."""
        return len(self.pages) + 1

    def items(self) -> list[tuple[int, int | None]]:
        """The items it writes: its pages, and the aggregate itself."""
        return [*((self.aggregate, second) for second, _ in self.pages), (self.aggregate, None)]


@dataclass(slots=True)
class Sending:
    """A transaction that waits, or is on its way."""

    shard: "Shard"
    changes: tuple[Change, ...]
    not_before: float = 0.0
    pauses: int = 0


@dataclass(slots=True)
class Shard:
    """One shard and the one invocation that works on its records; `pacing` is its function's committer.

    Attributes:
        conflicts: transactions of this batch that met one.
    """

    pacing: Committer
    conflicts: int = 0
    taken: int = 0
    next_window: float = 0.0
    waiting: deque[Sending] = field(default_factory=deque)
    in_flight: int = 0
    busy: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Curve:
    """What a simulated run came to."""

    shards: int
    aggregates: int
    offered: float = 0.0  # records a second
    committed: float = 0.0  # records a second
    transactions: int = 0
    conflicts: int = 0  # transactions cancelled by a conflict
    throttled: int = 0  # transactions that met a partition without capacity left
    refused: int = 0  # receipts for a page that is full: parked
    units: int = 0
    wasted_units: int = 0


class Simulation:
    """A discrete-event simulation of shards that write to aggregates."""

    def __init__(self, shards: int, aggregates: int, *, seconds: float, seed: int = 1) -> None:
        """Prepares `shards` that receive records for uniformly chosen `aggregates` for so many seconds."""
        self.curve = Curve(shards, aggregates)
        self._seconds = seconds
        self._chance = random.Random(seed)
        # Committers that send nothing: they are asked for pauses, and how large transactions may be.
        nothing: Any = None
        executor = ThreadPoolExecutor(1)
        self._shards = [Shard(Committer(nothing, "", 1, executor, jitter=self._chance.random)) for _ in range(shards)]
        self._events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._held_until: dict[tuple[int, int | None], float] = {}
        self._page_bytes: defaultdict[tuple[int, int | None], int] = defaultdict(lambda: PAGE_BYTES)
        self._spent: Counter[tuple[int, int | None, int]] = Counter()

    def run(self) -> Curve:
        """Runs to the end; figures are those of the second half."""
        for shard in self._shards:
            self._at(self._chance.random() * deployment.MAPPING.maximum_batching_window_seconds, self._invoke, shard)
        half = self._seconds / 2
        counted = Curve(0, 0)
        while self._events and self._events[0][0] < self._seconds:
            now, _, action, arguments = heapq.heappop(self._events)
            if now >= half and not counted.offered:
                counted = replace(self.curve, offered=1)
            action(now, *arguments)
        curve = self.curve
        for name in ("transactions", "conflicts", "throttled", "refused", "units", "wasted_units"):
            setattr(curve, name, getattr(curve, name) - getattr(counted, name))
        curve.committed = (curve.committed - counted.committed) / half
        curve.offered = curve.shards * RECORDS_PER_SECOND_AND_SHARD
        return curve

    def _at(self, moment: float, action: Any, *arguments: Any) -> None:
        heapq.heappush(self._events, (moment, next(self._order), action, arguments))

    def _invoke(self, now: float, shard: Shard) -> None:
        """Takes a whole batch or, at the end of the batching window, what has arrived."""
        arrived = int(now * RECORDS_PER_SECOND_AND_SHARD) - shard.taken
        size = min(arrived, deployment.MAPPING.batch_size)
        if size < deployment.MAPPING.batch_size and now < shard.next_window:
            self._at(shard.next_window, self._invoke, shard)
            return
        shard.next_window = now + deployment.MAPPING.maximum_batching_window_seconds
        if shard.taken:
            shard.pacing._adapt(shard.conflicts)
        shard.conflicts = 0
        receipts: dict[int, Counter[int]] = defaultdict(Counter)
        chosen = self._chance.choices(range(self.curve.aggregates), k=size)
        for position, aggregate in enumerate(chosen, start=shard.taken):
            receipts[aggregate][position // RECORDS_PER_SECOND_AND_SHARD] += 1
        shard.taken += size
        changes = [_cut(aggregate, pages) for aggregate, pages in receipts.items()]
        rounds = itertools.zip_longest(*changes)
        shard.waiting.extend(
            Sending(shard, packed)
            for packed in _pack(
                [change for round_ in rounds for change in round_ if change], shard.pacing._most_actions
            )
        )
        if size:
            self._send(now, shard)
        else:
            self._at(shard.next_window, self._invoke, shard)

    def _send(self, now: float, shard: Shard) -> None:
        """Sends what may be sent; what changes a row that is under way, or pauses, waits."""
        kept = []
        ahead = set(shard.busy)
        while shard.waiting and shard.in_flight < MAX_IN_FLIGHT:
            sending = shard.waiting.popleft()
            rows = {change.aggregate for change in sending.changes}
            if sending.not_before <= now and ahead.isdisjoint(rows):
                shard.in_flight += 1
                shard.busy |= rows
                self._at(now + NETWORK, self._arrive, sending)
            else:
                kept.append(sending)
            ahead |= rows
        shard.waiting.extendleft(reversed(kept))

    def _arrive(self, now: float, sending: Sending) -> None:
        """DynamoDB decides: no capacity, in conflict, or prepared and committed a little later."""
        curve = self.curve
        for change in sending.changes:
            if any(self._full(page, change) for page in change.pages):
                curve.refused += change.receipts
                sending.changes = tuple(other for other in sending.changes if other is not change)
        units = sum(self._units(change) for change in sending.changes)
        second = int(now)
        items = [item for change in sending.changes for item in change.items()]
        in_conflict = {item[0] for item in items if self._held_until.get(item, 0.0) > now}
        if any(self._spent[*item, second] >= UNITS_PER_SECOND_AND_PARTITION for item in items):
            curve.throttled += 1
            self._at(now + NETWORK, self._again, sending, list(sending.changes), [], Pause.THROTTLED)
        elif in_conflict:
            curve.conflicts += 1
            curve.units += units
            curve.wasted_units += units
            self._spend(sending, second)
            alone = [change for change in sending.changes if change.aggregate in in_conflict]
            together = [change for change in sending.changes if change.aggregate not in in_conflict]
            self._at(now + NETWORK, self._again, sending, alone, together, Pause.CONFLICT)
        else:
            curve.units += units
            self._spend(sending, second)
            done = now + HOLD + HOLD_PER_ACTION * sum(change.actions for change in sending.changes)
            for item in items:
                self._held_until[item] = done
            self._at(done, self._commit, sending)

    def _full(self, page: tuple[int, int], change: Change) -> bool:
        second, receipts = page
        return self._page_bytes[change.aggregate, second] + receipts * RECEIPT_BYTES > MAX_ITEM_BYTES

    def _page_units(self, change: Change, second: int, receipts: int) -> int:
        return 2 * math.ceil((self._page_bytes[change.aggregate, second] + receipts * RECEIPT_BYTES) / 1024)

    def _units(self, change: Change) -> int:
        return 2 + sum(self._page_units(change, *page) for page in change.pages)

    def _spend(self, sending: Sending, second: int) -> None:
        for change in sending.changes:
            self._spent[change.aggregate, None, second] += 2
            for page, receipts in change.pages:
                self._spent[change.aggregate, page, second] += self._page_units(change, page, receipts)

    def _commit(self, now: float, sending: Sending) -> None:
        self.curve.transactions += 1
        for change in sending.changes:
            self.curve.committed += change.receipts
            for second, receipts in change.pages:
                self._page_bytes[change.aggregate, second] += receipts * RECEIPT_BYTES
        self._at(now + NETWORK, self._again, sending, [], [], Pause.NONE)

    def _again(self, now: float, sending: Sending, alone: list[Change], together: list[Change], pause: Pause) -> None:
        """The answer is there: reposts what did not go through as `settlement` does, and sends what it held up."""
        shard = sending.shard
        shard.in_flight -= 1
        shard.busy -= {change.aggregate for change in (*sending.changes,)}
        most_actions = MAX_ACTIONS
        if pause is Pause.CONFLICT:
            shard.conflicts += 1
            most_actions = halved(sum(change.actions for change in sending.changes))
        for change in alone:
            later = now + shard.pacing._seconds(pause, sending.pauses)
            shard.waiting.append(Sending(shard, (change,), later, sending.pauses + 1))
            self._at(later, self._send, shard)
        shard.waiting.extend(Sending(shard, packed, now, sending.pauses) for packed in _pack(together, most_actions))
        self._send(now, shard)
        if not shard.waiting and not shard.in_flight:
            self._at(now + BETWEEN_BATCHES, self._invoke, shard)


def _cut(aggregate: int, pages: Counter[int]) -> list[Change]:
    """As `ledger.row_changes`: up to 120 receipts a page, one change after another."""
    pieces = [
        [(second, min(MAX_RECEIPTS_PER_ACTION, count - at)) for at in range(0, count, MAX_RECEIPTS_PER_ACTION)]
        for second, count in pages.items()
    ]
    layers = itertools.zip_longest(*pieces)
    return [Change(aggregate, tuple(piece for piece in layer if piece)) for layer in layers]


def _pack(changes: Sequence[Change], most_actions: int) -> list[tuple[Change, ...]]:
    """As `ledger.pack`: up to so many actions, each aggregate once a transaction."""
    packed: list[tuple[Change, ...]] = []
    current: list[Change] = []
    rows: set[int] = set()
    actions = 0
    for change in changes:
        if current and (actions + change.actions > most_actions or change.aggregate in rows):
            packed.append(tuple(current))
            current, rows, actions = [], set(), 0
        current.append(change)
        rows.add(change.aggregate)
        actions += change.actions
    return [*packed, tuple(current)] if current else packed


def measured(endpoint: str, workers: int, groups: int, seconds: float) -> dict[str, float]:
    """Several workers side by side on one server, each with batches of its own.

    Raises:
        AssertionError: the totals are not those of the records.
    """
    workload = replace(REFERENCE, groups=groups, choice=Choice.UNIFORM, batch=250)
    with set_up(WORKER, endpoint, workers=workers) as setup:
        assert isinstance(setup.contender, ThisWorker)
        contender = setup.contender
        delivered: list[list[Any]] = [[] for _ in range(workers)]
        start_together = threading.Barrier(workers + 1)
        end = [0.0]

        def work(number: int) -> None:
            source = batches(workload, seed=number)
            start_together.wait()
            while time.monotonic() < end[0]:
                batch = next(source)
                contender.deliver(batch)
                delivered[number].extend(batch)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        end[0] = time.monotonic() + seconds
        start_together.wait()
        start = time.monotonic()
        for thread in threads:
            thread.join()
        took = time.monotonic() - start
        records = [raw["dynamodb"]["NewImage"] for part in delivered for raw in part]
        assert sum(setup.totals().values()) == sum(int(image["quantity"]["N"]) for image in records)
        meter = Meter(setup.keys)
        for request in setup.client.log:
            meter.add(request)
        transactions = sum(not request.failed for request in setup.client.log)
        return {
            "records_per_second": len(records) / took,
            "conflicts_per_transaction": contender.conflicts / max(1, transactions),
            "wasted_units": meter.wasted / max(1, meter.units),
        }


def simulated_table(aggregates: Sequence[int], shards: Sequence[int], seconds: float) -> Iterator[str]:
    """The simulation's figures as the lines of a Markdown table."""
    yield (
        "| aggregates | shards | records/s offered | committed | conflicts/transaction | throttled/transaction "
        "| wasted units | units/record |\n|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for number, count in itertools.product(aggregates, shards):
        curve = Simulation(count, number, seconds=seconds).run()
        transactions = max(1, curve.transactions)
        yield (
            f"| {number:,} | {count:,} | {curve.offered:,.0f} | {curve.committed:,.0f} "
            f"| {curve.conflicts / transactions:.2f} | {curve.throttled / transactions:.2f} "
            f"| {curve.wasted_units / max(1, curve.units):.0%} "
            f"| {curve.units / max(1.0, curve.committed * seconds / 2):.2f} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.concurrency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16, 64, 250, 1_000])
    parser.add_argument("--aggregates", type=int, nargs="+", default=[1, 10, 100, 1_000])
    parser.add_argument("--seconds", type=float, default=6, help="simulated (default: %(default)s)")
    parser.add_argument("--measure", action="store_true", help="run workers on DynamoDB Local as well")
    options = parser.parse_args(arguments)
    for line in simulated_table(options.aggregates, options.shards, options.seconds):
        print(line, flush=True)
    if options.measure:
        print("\n| aggregates | workers | records/s | conflicts/transaction | wasted units |\n|--:|--:|--:|--:|--:|")
        with server("dynamodb-local") as endpoint:
            warm_up(endpoint, 4)
            for groups, workers in itertools.product((1, 1_000), (1, 2, 4, 8, 16)):
                found = measured(endpoint, workers, groups, seconds=4)
                print(
                    f"| {groups:,} | {workers} | {found['records_per_second']:,.0f} "
                    f"| {found['conflicts_per_transaction']:.2f} | {found['wasted_units']:.0%} |"
                )


if __name__ == "__main__":
    main()

"""How totals scale with the number of shards: a simulation of many of them, and a measured run of up to 16 workers.

    uv run python -m tests.benchmarks.concurrency              # the simulation
    uv run python -m tests.benchmarks.concurrency --measure    # and workers on DynamoDB Local

DynamoDB Local never raises a conflict, so the measured run shows that concurrent totals stay exact and what the server
can take, and the simulation shows conflicts. Its rules are DynamoDB's documented ones; the times are assumptions, given
below as constants. Every shard's writes, what it learns from failures, and its pauses are the worker's own, over a
DynamoDB in memory.

An aggregate that were split into N slots, chosen by the record, would behave as N aggregates: read it off their rows.
"""

import argparse
import heapq
import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT, Committer, Deadline, Outcome, _Work
from aggregation_worker.ledger.writes import Look, Write
from tests.benchmarks.compare import WORKER, server, warm_up
from tests.benchmarks.contenders import ThisWorker, set_up
from tests.benchmarks.meter import Meter, Place, Request
from tests.benchmarks.workloads import REFERENCE, Choice, batches
from tests.benchmarks.write_units import BEGINNING, LEDGER, RECEIPTS_BEFORE, TABLES, AtOnce, posted
from tests.model.in_memory_dynamodb import InMemoryDynamoDB, cancelled, client_error

if TYPE_CHECKING:
    from aggregation_worker.ledger.receipts import Row

# --- Assumed: seconds -----------------------------------------------------------------------------------------------
# From the worker to DynamoDB, and back again.
NETWORK = 0.001
# For which a transaction holds its items: once, and for each action.
HOLD = 0.005
HOLD_PER_ACTION = 0.000_25
# Between two invocations of a shard, for reading records and planning them.
BETWEEN_BATCHES = 0.020
# --- Documented ("Best practices for designing partition keys", Amazon DynamoDB developer guide) --------------------
UNITS_PER_SECOND_AND_PARTITION = 1_000  # a row, and each page, is in one partition

RECORDS_PER_SECOND_AND_SHARD = 250
_NO_END = Deadline(lambda: 60.0, 0, 0)


@dataclass(slots=True)
class Curve:
    """What a simulated run came to.

    Attributes:
        offered, committed: records a second.
        writes: that went in.
        conflicts: writes that met a running transaction on one of their items.
        changed: writes whose condition did not hold any more; each tells what to write next.
        throttled: writes that met a partition without capacity left.
    """

    offered: float = 0.0
    committed: float = 0.0
    writes: int = 0
    conflicts: int = 0
    changed: int = 0
    throttled: int = 0
    units: int = 0
    wasted_units: int = 0


class Server:
    """DynamoDB with its conflicts and its limit for each partition; the client of every simulated worker.

    Attributes:
        now: seconds of the simulation.
        ends: when the last write that was carried out ends.
    """

    def __init__(self) -> None:
        self.now = self.ends = 0.0
        self.curve = Curve()
        self.meter = Meter({name: [key for key, _ in table.keys] for name, table in TABLES.items()})
        self._database = InMemoryDynamoDB()
        for name, table in TABLES.items():
            self._database.create(name, *((key, kind.value) for key, kind in table.keys))
        self._held_until: dict[Place, float] = {}
        self._spent: Counter[tuple[Place, int]] = Counter()
        # The worker's reads.
        self.batch_get_item = self._database.batch_get_item
        self.get_paginator = self._database.get_paginator

    def update_item(self, **request: Any) -> Any:
        """As the client's."""
        if self._busy([request]):
            self._fails("update_item", request)
            raise client_error("TransactionConflictException", "Transaction is ongoing for the item", "UpdateItem")
        self.ends = self.now
        return self._carried_out("update_item", request, [request])

    def transact_write_items(self, **request: Any) -> Any:
        """As the client's; a transaction holds its items for a while."""
        actions = [parameters for action in request["TransactItems"] for parameters in action.values()]
        if any(busy := self._busy(actions)):
            self._fails("transact_write_items", request)
            raise cancelled([{"Code": "TransactionConflict" if one else "None"} for one in busy])
        self.ends = self.now
        answer = self._carried_out("transact_write_items", request, actions)
        self.ends = self.now + HOLD + HOLD_PER_ACTION * len(actions)
        for action in actions:
            self._held_until[self._place(action)] = self.ends
        return answer

    def _busy(self, actions: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which of the actions meet a running transaction; a partition without capacity refuses before that."""
        places = [self._place(action) for action in actions]
        if any(self._spent[place, int(self.now)] >= UNITS_PER_SECOND_AND_PARTITION for place in places):
            self.curve.throttled += 1
            self.ends = self.now
            raise client_error("ThrottlingException", "Throughput exceeds the current capacity", "UpdateItem")
        busy = [self._held_until.get(place, 0.0) > self.now for place in places]
        return busy if any(busy) else []

    def _fails(self, operation: str, request: Mapping[str, Any]) -> None:
        self.curve.conflicts += 1
        self.ends = self.now
        self.meter.add(Request(operation, request, failed=True))

    def _carried_out(self, operation: str, request: Mapping[str, Any], actions: Sequence[Mapping[str, Any]]) -> Any:
        before, failed = self.meter.units, True
        try:
            answer = getattr(self._database, operation)(**request)
            failed = False
            self.curve.writes += 1
        except ClientError:
            self.curve.changed += 1
            raise
        finally:
            self.meter.add(Request(operation, request, failed=failed))
            for action in actions:
                self._spent[self._place(action), int(self.now)] += (self.meter.units - before) // len(actions)
        return answer

    def _place(self, action: Mapping[str, Any]) -> Place:
        return self.meter.place(action["TableName"], action["Item"] if "Item" in action else action["Key"])


@dataclass(slots=True)
class Shard:
    """One shard and the one invocation that works on its records."""

    committer: Committer
    outcome: Outcome = field(default_factory=Outcome)
    taken: int = 0
    next_window: float = 0.0
    ready: deque[_Work] = field(default_factory=deque)
    paused: int = 0
    in_flight: int = 0


class Simulation:
    """A discrete-event simulation of shards that write to aggregates."""

    def __init__(self, shards: int, aggregates: int, *, seconds: float, seed: int = 1) -> None:
        """Prepares `shards` that receive records for uniformly chosen `aggregates` for so many seconds."""
        self._seconds = seconds
        self._chance = random.Random(seed)
        self._aggregates = aggregates
        self._numbers = itertools.count(10**20)
        self._server = Server()
        self._shards = [Shard(self._committer()) for _ in range(shards)]
        self._events: list[tuple[float, int, Any, tuple[Any, ...]]] = []
        self._order = itertools.count()

    def _committer(self) -> Committer:
        client: Any = self._server
        return Committer(
            client,
            LEDGER,
            deployment.LEDGER_RETENTION_DAYS,
            AtOnce(),
            clock=lambda: self._server.now,
            now=lambda: BEGINNING + self._server.now,
            jitter=self._chance.random,
        )

    def run(self) -> Curve:
        """Runs to the end; figures are those of the second half."""
        for aggregate in range(self._aggregates):
            count = self._chance.randint(*RECEIPTS_BEFORE)
            self._shards[0].committer.commit(
                posted([(BEGINNING - 60.0, aggregate)] * count, self._numbers, self._chance), _NO_END
            )
        for shard in self._shards:
            self._at(self._chance.random() * deployment.MAPPING.maximum_batching_window_seconds, self._invoke, shard)
        half, counting = self._seconds / 2, False
        while self._events and self._events[0][0] < self._seconds:
            now, _, action, arguments = heapq.heappop(self._events)
            if now >= half and not counting:
                counting = True
                self._server.curve = Curve()
                self._server.meter.reset()
            self._server.now = now
            action(now, *arguments)
        curve, meter = self._server.curve, self._server.meter
        curve.committed /= half
        curve.offered = len(self._shards) * RECORDS_PER_SECOND_AND_SHARD
        curve.units, curve.wasted_units = meter.units, meter.wasted
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
        if not size:
            self._at(shard.next_window, self._invoke, shard)
            return
        times = (BEGINNING + number / RECORDS_PER_SECOND_AND_SHARD for number in range(shard.taken, shard.taken + size))
        shard.taken += size
        works: dict[Row, _Work] = {}
        found = [(created_at, self._chance.randrange(self._aggregates)) for created_at in times]
        for posting in posted(found, self._numbers, self._chance):
            row = posting.aggregate.row
            works.setdefault(row, _Work(row, deque([[]]))).groups[0].append(posting)
        shard.committer._read_rows(list(works.values()), _NO_END)
        shard.ready.extend(works.values())
        self._at(now + 2 * NETWORK, self._send, shard)

    def _send(self, now: float, shard: Shard) -> None:
        """Sends what may be sent, and takes the next batch when all is done."""
        while shard.ready and shard.in_flight < MAX_IN_FLIGHT:
            work = shard.ready.popleft()
            then = shard.committer._next(work, shard.outcome)
            if then is not None:
                shard.in_flight += 1
                self._at(now + NETWORK, self._arrive, shard, work, then)
            elif work.groups:
                self._pause(work, shard)
        if not shard.ready and not shard.in_flight and not shard.paused:
            self._server.curve.committed += len(shard.outcome.applied)
            shard.outcome = Outcome()
            self._at(now + BETWEEN_BATCHES, self._invoke, shard)

    def _arrive(self, now: float, shard: Shard, work: _Work, then: Write | Look) -> None:
        future = shard.committer.executor.submit(shard.committer._send, then)
        ends = now if isinstance(then, Look) else self._server.ends
        self._at(ends + NETWORK, self._learn, shard, work, then, future)

    def _learn(self, now: float, shard: Shard, work: _Work, then: Write | Look, future: Future[Any]) -> None:
        shard.in_flight -= 1
        shard.committer._learn(work, then, future, shard.outcome)
        if work.not_before > now:
            self._pause(work, shard)
        else:
            shard.ready.append(work)
        self._send(now, shard)

    def _pause(self, work: _Work, shard: Shard) -> None:
        shard.paused += 1
        self._at(work.not_before, self._resume, shard, work)

    def _resume(self, now: float, shard: Shard, work: _Work) -> None:
        shard.paused -= 1
        shard.ready.append(work)
        self._send(now, shard)


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
        "| aggregates | shards | records/s offered | committed | conflicts/write | changed/write | throttled/write "
        "| wasted units | units/record |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for number, count in itertools.product(aggregates, shards):
        curve = Simulation(count, number, seconds=seconds).run()
        writes = max(1, curve.writes)
        yield (
            f"| {number:,} | {count:,} | {curve.offered:,.0f} | {curve.committed:,.0f} "
            f"| {curve.conflicts / writes:.2f} | {curve.changed / writes:.2f} | {curve.throttled / writes:.2f} "
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
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4, 16, 64])
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

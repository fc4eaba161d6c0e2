"""What the worker's requests cost per record by AWS's documented rules, for traffic of many shapes, without a server.

    uv run python -m tests.benchmarks.write_units

The worker's own committer plans, sends and learns, batch after batch, over a DynamoDB in memory whose answers are held
to those of DynamoDB Local; a `Meter` adds up what its requests cost. A table follows beside three other ways of keeping
totals. The exit status is 0 only if every goal is met.
"""

import argparse
import itertools
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aggregation_worker.aggregations.contributions import Contribution, Group
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.commit import Committer, Deadline
from aggregation_worker.ledger.receipts import Posting, postings
from aggregation_worker.streams.records import EventName, StreamRecord
from tests.benchmarks.meter import Meter, RecordingClient, item_bytes
from tests.benchmarks.workloads import Choice
from tests.definition_texts import aggregation_text, definitions
from tests.model.in_memory_dynamodb import InMemoryDynamoDB
from tests.records import DAY

LEDGER = "ledger"
SKEWS = (0, 3, 10)
# With an index for the top N, whose price is told apart.
_INDEX = 'indexes = [{ name = "by_day", partition_key = "order_date", sort_key = "quantity" }]'
_DEFINITIONS = definitions(aggregation_text(_INDEX))
(_AGGREGATION,) = _DEFINITIONS.aggregations
TABLES = deployment.target_tables(_DEFINITIONS) | {LEDGER: deployment.LEDGER}
BEGINNING = 1_789_651_658
# Receipts of a row before the run begins: a row that archives holds between half of its room and all of it.
RECEIPTS_BEFORE = (9, 19)
# What others pay for a record: an ADD; one and two writes of a marker; a transaction of a marker and an ADD.
OTHERS = {"naive": 1, "Powertools": 3, "marker per record": 4}


@dataclass(frozen=True, slots=True)
class Traffic:
    """One row of the table.

    Attributes:
        rate: records a second over all shards.
        batch: records in a batch of one shard.
        groups: how many there are; 0: each record has one of its own.
        seconds: how long it is watched, the first half uncounted.
        goals: the most write units per record, by the seconds between one shard's records and the next one's.
    """

    rate: int
    shards: int
    batch: int
    groups: int
    choice: Choice
    seconds: int
    goals: tuple[tuple[int, float], ...]

    @property
    def name(self) -> str:
        """What tells it apart in the table."""
        groups = f"{self.groups:,} {self.choice}" if self.groups else "all distinct"
        return f"{self.rate:,}/s over {self.shards}, batches of {self.batch:,}, {groups}"


def _goals(*units: float) -> tuple[tuple[int, float], ...]:
    return tuple(zip(SKEWS, units, strict=False))


TRAFFIC = (
    *(Traffic(4, 4, 1, groups, Choice.UNIFORM, 1_500, _goals(1.3, 1.3, 1.6)) for groups in (10, 1_000)),
    *(Traffic(100, 4, 25, groups, Choice.UNIFORM, 100, _goals(1.28, 1.28, 1.6)) for groups in (10, 100)),
    Traffic(100, 4, 25, 1_000, Choice.UNIFORM, 400, _goals(1.28, 1.28, 1.6)),
    Traffic(1_000, 4, 250, 10, Choice.ZIPF, 40, _goals(0.28, 0.3, 1.6)),
    Traffic(1_000, 4, 250, 1_000, Choice.ZIPF, 40, _goals(0.8, 0.95, 1.6)),
    Traffic(1_000, 4, 250, 1_000, Choice.UNIFORM, 40, _goals(1.2, 1.2, 1.6)),
    Traffic(1_000, 4, 250, 0, Choice.UNIFORM, 8, _goals(1.02, 1.02, 1.6)),
    Traffic(1_000, 1, 1_000, 10, Choice.ZIPF, 20, _goals(0.08)),
    Traffic(1_000, 1, 1_000, 1_000, Choice.ZIPF, 20, _goals(0.52)),
    Traffic(1_000, 1, 1_000, 1_000, Choice.UNIFORM, 20, _goals(0.95)),
    *(Traffic(1_000, 4, 10, groups, Choice.ZIPF, 20, _goals(2.2, 2.6)) for groups in (10, 1_000)),
)


@dataclass(frozen=True, slots=True)
class Price:
    """What the worker's requests cost, per stream record.

    Attributes:
        units, read_units, requests, dollars: of one record, without the index.
        index_units: write units of the index, which come on top.
        ledger_bytes: by which the ledger grew.
        largest: bytes of the largest item of each table.
    """

    units: float
    index_units: float
    read_units: float
    requests: float
    dollars: float
    ledger_bytes: float
    largest: dict[str, int]


class AtOnce(Executor):
    """Does what it is given before it returns."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        """As any executor's."""
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@dataclass(slots=True)
class World:
    """A worker over tables in memory, and what its requests cost."""

    database: InMemoryDynamoDB = field(default_factory=InMemoryDynamoDB)
    meter: Meter = field(init=False)
    counted: defaultdict[Group, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    _client: RecordingClient = field(init=False)
    _committer: Committer = field(init=False)

    def __post_init__(self) -> None:
        """Creates the tables."""
        for name, table in TABLES.items():
            self.database.create(name, *((key, kind.value) for key, kind in table.keys))
        self.meter = Meter(
            {name: [key for key, _ in table.keys] for name, table in TABLES.items()},
            {name: table.indexes for name, table in TABLES.items()},
        )
        self._client = RecordingClient(self.database)
        client: Any = self._client
        self._committer = Committer(client, LEDGER, deployment.LEDGER_RETENTION_DAYS, AtOnce())

    def deliver(self, batch: Sequence[Posting]) -> None:
        """One invocation that makes these postings.

        Raises:
            RuntimeError: a posting was not counted.
        """
        outcome = self._committer.commit(batch, Deadline(lambda: 60.0, 0, 0))
        if len(outcome.applied) != len(batch):
            raise RuntimeError(f"not everything was counted: {outcome}")
        for posting in batch:
            self.counted[posting.aggregate.row.group] += posting.amounts[0]
        for request in self._client.log:
            self.meter.add(request)
        self._client.log.clear()

    @property
    def rows(self) -> Mapping[Group, Mapping[str, Any]]:
        """The target's rows by group."""
        return self.database.tables[_AGGREGATION.table].items

    @property
    def ledger_bytes(self) -> int:
        """The size of all pages."""
        return sum(map(item_bytes, self.database.tables[LEDGER].items.values()))

    def check(self) -> None:
        """A worker that counted wrong has no price.

        Raises:
            RuntimeError: a total is not the sum of what was posted.
        """
        if {group: Decimal(row["quantity"]["N"]) for group, row in self.rows.items()} != self.counted:
            raise RuntimeError("the totals are not those of the records")


def posted(found: Iterable[tuple[float, int]], numbers: Iterator[int], chance: random.Random) -> list[Posting]:
    """The postings of a batch.

    Args:
        found: each record's creation, in epoch seconds, and its group.
        numbers: sequence numbers.
    """
    batch = []
    for index, (created_at, group) in enumerate(found):
        event_id, number = f"{chance.getrandbits(128):032x}", str(next(numbers) * 1_000)
        record = StreamRecord(EventName.INSERT, event_id, number, int(created_at), None, {}, False)
        amounts = (Decimal(chance.randint(1, 99)),)
        batch.append((index, record, [Contribution(_AGGREGATION, (f"item{group:06}", DAY), amounts)]))
    return postings(batch)


def price(traffic: Traffic, skew: int) -> Price:
    """The worker's price for one shape of traffic, each shard's records `skew` seconds before the next shard's."""
    chance = random.Random(1)
    world = World()
    numbers = itertools.count(10**20)
    distinct = itertools.count()
    weights = [1 / rank if traffic.choice is Choice.ZIPF else 1.0 for rank in range(1, traffic.groups + 1)]
    cumulated = list(itertools.accumulate(weights))

    def groups() -> Iterable[int]:
        if not cumulated:
            return itertools.islice(distinct, traffic.batch)
        return chance.choices(range(traffic.groups), cum_weights=cumulated, k=traffic.batch)

    for group in range(traffic.groups):
        count = chance.randint(*RECEIPTS_BEFORE)
        world.deliver(posted([(BEGINNING - 60.0, group)] * count, numbers, chance))
    span = traffic.batch * traffic.shards / traffic.rate
    counted = ledger_bytes = 0
    for turn in range(turns := round(traffic.seconds / span)):
        if turn == turns // 2:
            world.meter.reset()
            counted, ledger_bytes = 0, world.ledger_bytes
        for shard in range(traffic.shards):
            began = BEGINNING + turn * span - skew * shard
            times = (began + position * span / traffic.batch for position in range(traffic.batch))
            world.deliver(posted(zip(times, groups(), strict=True), numbers, chance))
            counted += traffic.batch
    world.check()
    meter = world.meter
    return Price(
        meter.units / counted,
        meter.index_units / counted,
        meter.read_units / counted,
        meter.requests / counted,
        meter.dollars / counted,
        (world.ledger_bytes - ledger_bytes) / counted,
        meter.largest,
    )


def table(prices: dict[tuple[Traffic, int], Price]) -> Iterator[str]:
    """The prices beside their goals, as the lines of a Markdown table."""
    yield (
        "| traffic | in step | 3 s apart | 10 s apart | index | requests | read units | largest row | largest page "
        "| $/million |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for traffic, found in itertools.groupby(prices, key=lambda one: one[0]):
        mine = {skew: prices[traffic, skew] for _, skew in found}
        goals = dict(traffic.goals)
        cells = [f"{mine[skew].units:.2f} (≤ {goals[skew]:g})" if skew in mine else "" for skew in SKEWS]
        row, page = (
            max(price.largest.get(table, 0) for price in mine.values()) for table in (_AGGREGATION.table, LEDGER)
        )
        first = next(iter(mine.values()))
        yield (
            f"| {traffic.name} | {' | '.join(cells)} | +{first.index_units:.2f} | {first.requests:.3f} "
            f"| {first.read_units:.3f} | {row:,} B | {page:,} B | {first.dollars * 1e6:.2f} |"
        )


def beside_others(prices: Iterable[Price]) -> Iterator[str]:
    """What a million records cost with others and with the worker, as the lines of a Markdown table."""
    yield "| | write units/record | $/million |\n|---|--:|--:|"
    for name, units in OTHERS.items():
        yield f"| {name} | {units} | {units * deployment.DOLLARS_PER_MILLION_WRITE_UNITS:.2f} |"
    found = sorted(prices, key=lambda price: price.dollars)
    least, most = found[0], found[-1]
    yield (
        f"| this worker | {least.units:.2f} to {most.units:.2f} "
        f"| {least.dollars * 1e6:.2f} to {most.dollars * 1e6:.2f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.write_units",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only traffic whose name contains this")
    options = parser.parse_args(arguments)
    wanted = [(one, skew) for one in TRAFFIC if options.only in one.name for skew, _ in one.goals]
    if not wanted:
        parser.error(f"no traffic contains {options.only!r}")
    with ProcessPoolExecutor() as processes:
        prices = dict(zip(wanted, processes.map(price, *zip(*wanted, strict=True)), strict=True))
    print("\n".join(table(prices)), "\n")
    print("\n".join(beside_others(prices.values())))
    goals = {(one, skew): goal for one in TRAFFIC for skew, goal in one.goals}
    missed = [f"{one.name}, {skew} s apart" for (one, skew), found in prices.items() if found.units > goals[one, skew]]
    print("\nevery goal is met" if not missed else "\nmissed: " + "; ".join(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

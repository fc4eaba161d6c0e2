"""A source table in memory that is written to while it is scanned and its stream is read, as a real one is.

Every request lets some time pass on a clock of its own, in which writers change items, a shard splits, and records
appear in the stream some while after their write. The same seed gives the same history.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from unittest.mock import patch

from aggregation_worker.aggregations.contributions import KeyType, Source
from aggregation_worker.reconciliation import snapshot
from aggregation_worker.reconciliation.items import ItemPage, Pages
from aggregation_worker.streams import reader as stream_reader
from aggregation_worker.streams import shards as stream_shards
from aggregation_worker.streams.records import Image, Origin, StreamRecord, from_get_records, read_record
from tests.stream_fakes import FakeShard, FakeStreamsClient

BEGAN = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)
SOURCE_TABLE = "Order_by_item"
STREAM_ARN = f"arn:aws:dynamodb:us-east-1:123456789012:table/{SOURCE_TABLE}/stream/2026-11-24T06:00:00.000"
# Seconds after which a record is in the stream at the latest, and how many empty pages come where there is more.
STREAM_LAG = 5.0
EMPTY_PAGES = 3


class Killed(BaseException):
    """The process ends here, without a last word."""


@dataclass
class Clock:
    """What the code under test takes for the time: `monotonic` and `time` in seconds, `sleep` passes it."""

    now: float = BEGAN.timestamp()
    on_sleep: Callable[[], None] = lambda: None

    def monotonic(self) -> float:
        return self.now - 1_000_000_000

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()


@dataclass(frozen=True)
class Written:
    """One write: its record, and where in the stream it stands."""

    raw: dict[str, Any]
    key: str
    shard_id: str
    index: int

    @cached_property
    def record(self) -> StreamRecord:
        """As the worker reads it."""
        return read_record(from_get_records(self.raw, STREAM_ARN), Origin(SOURCE_TABLE))


class _Partition:
    """Part of the keys: those whose place is between `low` and `high`."""

    def __init__(self, low: float, high: float, shard: FakeShard) -> None:
        self.low, self.high, self.shard = low, high, shard
        self.pending: list[tuple[float, dict[str, Any]]] = []
        self.written = 0


class BusySource(FakeStreamsClient):
    """The table, its writers, and the client of its stream.

    Attributes:
        items: by order id, as they are now.
        written: every write since the stream began.
        make_item: the image of an order; writers call it for every new version.
        disorder: how many seconds a record's creation time may be wrong.
        kill: the number of the request at which the process is killed.
    """

    def __init__(self, seed: int, make_item: Callable[[random.Random, str], Image], *, keys: int = 60) -> None:
        super().__init__(records_per_page=7)
        self.random = random.Random(seed)
        self.clock = Clock(on_sleep=self.go_on)
        self.make_item = make_item
        self.disorder = 0.0
        self.iterators_expire = True
        self.writes_per_request = 3.0
        self.kill: int | None = None
        self.requests = 0
        self.written: list[Written] = []
        self._latest: dict[str, float] = {}
        self._keys = [f"order-{number}" for number in range(keys)]
        self._places = {key: self.random.random() for key in self._keys}
        self._sequence = 10**21
        self._to_list: list[tuple[float, FakeShard]] = []
        self._partitions = [_Partition(0, 0.4, FakeShard("shard-0")), _Partition(0.4, 1, FakeShard("shard-1"))]
        self._empty_in_a_row: Counter[str] = Counter()
        self._shards_made = 2
        for partition in self._partitions:
            self.add(partition.shard)
        held = self.random.sample(self._keys, self.random.randrange(keys))
        self.items: dict[str, Image] = {key: make_item(self.random, key) for key in held}
        self.at_the_beginning = dict(self.items)

    source = Source(SOURCE_TABLE, (("orderid", KeyType.STRING),))

    @contextmanager
    def as_the_world(self) -> Iterator[None]:
        """Inside, the code under test has this table's clock."""
        with (
            patch.object(stream_reader, "time", self.clock),
            patch.object(stream_shards, "time", self.clock),
            patch.object(snapshot, "time", self.clock),
            patch.object(stream_reader, "datetime", _Datetime(self.clock)),
            patch.object(snapshot, "datetime", _Datetime(self.clock)),
        ):
            yield

    def reader(self, start: stream_shards.StartingPosition = "TRIM_HORIZON") -> stream_reader.StreamReader:
        """A reader of the stream."""
        client: Any = self
        return stream_reader.StreamReader(
            client, STREAM_ARN, start, stream_lag=STREAM_LAG, empty_pages=EMPTY_PAGES, poll_interval=0.1
        )

    def go_on(self, writes: int | None = None) -> None:
        """Some time passes: writes, a split, records that appear."""
        chance = self.random
        for _ in range(int(chance.expovariate(1 / self.writes_per_request)) if writes is None else writes):
            self.clock.now += chance.random() * 0.2
            self._write(chance.choice(self._keys))
        self.clock.now += chance.random() * 0.05
        if chance.random() < 0.01 and len(self._partitions) < 8:
            self._split(chance.choice(self._partitions))
        self._show()

    def rest(self) -> None:
        """All that was written has appeared."""
        self.clock.now += 2 * STREAM_LAG
        self._show()

    def describe_stream(self, **request: Any) -> dict[str, Any]:
        self._request()
        answer = super().describe_stream(**request)
        if self.describe_calls == 1:
            self._latest = {shard_id: float("inf") for shard_id, shard in self.shards.items() if shard.closed}
        return answer

    def get_shard_iterator(self, **request: Any) -> dict[str, Any]:
        self._request()
        answer = super().get_shard_iterator(**request)
        if request["ShardIteratorType"] == "LATEST":
            self._latest[request["ShardId"]] = int(answer["ShardIterator"].split("/")[1])
        return answer

    def written_after_latest(self) -> list[Written]:
        """What stands in the stream after the position of a reader that began at LATEST."""
        return [one for one in self.written if one.index >= self._latest.get(one.shard_id, 0)]

    def get_records(self, **request: Any) -> dict[str, Any]:
        self._request()
        if self.iterators_expire and self.random.random() < 0.02:
            raise self.exceptions.ExpiredIteratorException
        shard_id = request["ShardIterator"].split("/")[0]
        if self._empty_in_a_row[shard_id] < EMPTY_PAGES - 1 and self.random.random() < 0.2:
            self._empty_in_a_row[shard_id] += 1
            return {"Records": [], "NextShardIterator": request["ShardIterator"]}
        self._empty_in_a_row[shard_id] = 0
        return super().get_records(**request)

    def _request(self) -> None:
        self.requests += 1
        if self.requests == self.kill:
            raise Killed
        self.go_on()

    def _write(self, key: str) -> None:
        self.write(
            key, self.make_item(self.random, key) if key not in self.items or self.random.random() < 0.7 else None
        )

    def forget(self) -> None:
        """All that the stream holds leaves it, as after a day."""
        self.rest()
        for shard in self.shards.values():
            shard.trimmed = len(shard.records)

    def write(self, key: str, new: Image | None) -> None:
        """One write of an order; `None` removes it."""
        old = self.items.get(key)
        if new == old:
            return
        name = "REMOVE" if new is None else "INSERT" if old is None else "MODIFY"
        self._sequence += self.random.randrange(1, 9**20)
        created = int(self.clock.now + self.random.uniform(-self.disorder, self.disorder))
        raw: dict[str, Any] = {
            "eventID": f"event-{self._sequence}",
            "eventName": name,
            "eventSource": "aws:dynamodb",
            "dynamodb": {
                "ApproximateCreationDateTime": datetime.fromtimestamp(created, UTC),
                "Keys": {"orderid": {"S": key}},
                "SequenceNumber": str(self._sequence),
            },
        }
        if old is not None:
            raw["dynamodb"]["OldImage"] = old
        if new is not None:
            raw["dynamodb"]["NewImage"] = new
            self.items[key] = new
        else:
            del self.items[key]
            if self.random.random() < 0.5:
                raw["userIdentity"] = {"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"}
        partition = next(part for part in self._partitions if part.low <= self._places[key] < part.high)
        appears = self.clock.now + self.random.random() * STREAM_LAG * 0.9
        if partition.pending:
            appears = max(appears, partition.pending[-1][0])
        partition.pending.append((appears, raw))
        self.written.append(Written(raw, key, partition.shard.shard_id, partition.written))
        partition.written += 1

    def _split(self, partition: _Partition) -> None:
        """The shard closes when its records are there; its children are listed a little later."""
        for _, raw in partition.pending:
            partition.shard.put(raw)
        partition.shard.closed = True
        self._partitions.remove(partition)
        middle = self.random.uniform(partition.low, partition.high)
        for low, high in ((partition.low, middle), (middle, partition.high)):
            child = FakeShard(f"shard-{self._shards_made}", partition.shard.shard_id)
            self._shards_made += 1
            self._partitions.append(_Partition(low, high, child))
            self._to_list.append((self.clock.now + self.random.random() * STREAM_LAG, child))

    def _show(self) -> None:
        for appears, shard in self._to_list[:]:
            if appears <= self.clock.now:
                self.add(shard)
                self._to_list.remove((appears, shard))
        for partition in self._partitions:
            while partition.pending and partition.pending[0][0] <= self.clock.now:
                partition.shard.put(partition.pending.pop(0)[1])

    # The scan.

    description = f"scan of {SOURCE_TABLE}"
    estimated_items = None
    read_at = None

    def pages(self, resume: Mapping[int, Any]) -> Pages:
        """The items in pages of three segments, in any order of these; each page as the table is at its moment."""
        ends = {segment: (segment + 1) / 3 for segment in range(3)}
        places = {segment: segment / 3 for segment in ends} | {int(one): place for one, place in resume.items()}
        todo = [segment for segment in ends if places[segment] < ends[segment]]
        while todo:
            self._request()
            if self.random.random() < 0.3:
                yield None
                continue
            segment = self.random.choice(todo)
            inside = sorted(
                (self._places[key], key) for key in self.items if places[segment] <= self._places[key] < ends[segment]
            )
            page = inside[: self.random.randrange(1, 6)]
            places[segment] = page[-1][0] + 1e-12 if len(page) < len(inside) else ends[segment]
            if places[segment] == ends[segment]:
                todo.remove(segment)
            yield ItemPage(segment, [self.items[key] for _, key in page], places[segment])


class _Datetime:
    """`datetime` with this clock's `now`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def now(self, zone: Any) -> datetime:
        return datetime.fromtimestamp(self._clock.now, zone)

    def __getattr__(self, name: str) -> Any:
        return getattr(datetime, name)

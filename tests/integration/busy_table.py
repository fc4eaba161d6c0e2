"""A source table that is written to at random all the time, and a worker that follows its stream: what adopting an
existing table looks like."""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group
from aggregation_worker.batch import RecordOutcome, process
from aggregation_worker.ledger.catalogue import register
from aggregation_worker.ledger.commit import Deadline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of
from aggregation_worker.streams.records import from_get_records
from aggregation_worker.streams.shards import StreamShards
from tests.integration.world import World

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

_BATCH = 25  # items of a BatchWriteItem
_LOADERS = 6
# Where two delete one item at once, DynamoDB Local's stream has a second REMOVE, without an old image.
_one_deletes = threading.Lock()


@dataclass(frozen=True, slots=True)
class Orders:
    """What a random order looks like: how many different items, customers and days there are."""

    items: int = 40
    customers: int = 3_000
    days: int = 5

    def order(self, orderid: str, chance: random.Random) -> dict[str, Any]:
        """An order with this key."""
        return {
            "orderid": {"S": orderid},
            "item_number": {"S": f"item{chance.randrange(self.items)}"},
            "order_date": {"S": f"2024-07-{1 + chance.randrange(self.days):02}"},
            "customer": {"N": str(chance.randrange(self.customers))},
            "quantity": {"N": str(chance.randrange(-5, 100))},
        }


def create_without_stream(client: "DynamoDBClient", table: str) -> None:
    """A table such as one that has existed for years."""
    client.create_table(
        TableName=table,
        KeySchema=[{"AttributeName": "orderid", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "orderid", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )


def enable_stream(client: "DynamoDBClient", table: str) -> str:
    """Switches the stream on; returns its ARN."""
    answer = client.update_table(
        TableName=table, StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
    )
    return answer["TableDescription"]["LatestStreamArn"]


def load(client: "DynamoDBClient", table: str, items: Sequence[dict[str, Any]]) -> None:
    """Writes many items quickly."""

    def write(batch: Sequence[dict[str, Any]]) -> None:
        answer = client.batch_write_item(RequestItems={table: [{"PutRequest": {"Item": item}} for item in batch]})
        assert not answer["UnprocessedItems"]

    with ThreadPoolExecutor(_LOADERS) as threads:
        left = iter(items)
        list(threads.map(write, iter(lambda: list(islice(left, _BATCH)), [])))


class Background:
    """Calls a function again and again in a thread until the end of the `with` block; its error fails the test."""

    def __init__(self, step: Callable[[], Any]) -> None:
        self._step = step
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> "Background":
        """Begins."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends, and raises what the function has raised."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._step()
        except BaseException as error:  # the test's thread raises it
            self._error = error


@dataclass(slots=True)
class Writer:
    """Inserts, replaces, updates, moves and deletes orders at random.

    Attributes:
        existing: how many orders, numbered from 0, the table was loaded with.
        pause: seconds between two writes.
    """

    client: "DynamoDBClient"
    table: str
    orders: Orders
    existing: int
    chance: random.Random
    pause: float = 0.004
    writes: int = 0

    def __call__(self) -> None:
        """One write."""
        # Few new ones, so that many keys have several records.
        number = self.chance.randrange(self.existing) if self.chance.random() < 0.6 else -self.chance.randrange(500)
        order = self.orders.order(str(number), self.chance)
        key = {"orderid": order["orderid"]}
        kind = self.chance.choices(("put", "update", "move", "delete"), (3, 4, 2, 2))[0]
        if kind == "put":
            self.client.put_item(TableName=self.table, Item=order)
        elif kind == "delete":
            with _one_deletes:
                self.client.delete_item(TableName=self.table, Key=key)
        else:
            moves = ("item_number", "customer", "order_date")
            attribute = "quantity" if kind == "update" else self.chance.choice(moves)
            self._set(key, attribute, order[attribute])
        self.writes += 1
        time.sleep(self.pause * 2 * self.chance.random())

    def _set(self, key: dict[str, Any], attribute: str, value: dict[str, str]) -> None:
        try:
            self.client.update_item(
                TableName=self.table,
                Key=key,
                UpdateExpression="SET #attribute = :value",
                ConditionExpression="attribute_exists(orderid)",
                ExpressionAttributeNames={"#attribute": attribute},
                ExpressionAttributeValues={":value": value},
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ConditionalCheckFailedException":
                raise


@dataclass(slots=True)
class Follower:
    """The worker of an event source mapping: applies the stream from its beginning.

    Attributes:
        definitions: by which it counts; a new deployment sets others, and continues where the last one was.
    """

    world: World
    streams: "DynamoDBStreamsClient"
    stream_arn: str
    definitions: Definitions
    pause: float = 0.02
    records: int = 0
    _shards: StreamShards = field(init=False)

    def __post_init__(self) -> None:
        self._shards = StreamShards(self.streams, self.stream_arn, "TRIM_HORIZON")

    def deploy(self, definitions: Definitions) -> None:
        """What every worker does when it starts."""
        register(self.world.client, self.world.ledger_table, definitions.aggregations)
        self.definitions = definitions

    def __call__(self) -> int:
        """One batch of each shard; returns the number of records."""
        found = 0
        for shard in self._shards.readable():
            records = [from_get_records(record, self.stream_arn) for record in shard.read(300)]
            if records:
                end = time.monotonic() + 60
                deadline = Deadline(lambda end=end: end - time.monotonic(), 1, 0.1)  # type: ignore[misc]  # a default binds the loop's value
                result = process(records, self.definitions, self.world.committer(), self.world.dead_letters, deadline)
                assert RecordOutcome.RETRIED not in result.outcomes
                found += len(records)
            elif shard.exhausted:
                self._shards.finish(shard)
        self.records += found
        if not found:
            time.sleep(self.pause)
        return found

    def drain(self) -> None:
        """Applies all that is there; nobody may be writing."""
        empty = 0
        while empty < 3:
            empty = 0 if self() else empty + 1


@contextmanager
def busy(*steps: Callable[[], Any]) -> Iterator[None]:
    """Keeps writers and followers at work."""
    running = [Background(step).start() for step in steps]
    try:
        yield
    finally:
        for thread in running:
            thread.stop()


def drift(world: World, source: str, aggregations: Sequence[Aggregation]) -> dict[tuple[str, Group], Any]:
    """Every total that differs from the fold of the source, as (stored, expected); zero is as good as no row."""
    expected = totals_of(aggregations, scan(world.client, source))
    stored: dict[tuple[str, Group], tuple[Decimal, ...]] = {
        (aggregation.name, group): amounts
        for aggregation in aggregations
        for group, amounts in stored_totals(world.client, aggregation).items()
    }
    assert any(map(any, expected.values()))
    zero = (Decimal(0),)
    return {
        key: (stored.get(key), expected.get(key))
        for key in stored.keys() | expected.keys()
        if stored.get(key, zero * len(expected.get(key, zero))) != expected.get(key, zero * len(stored.get(key, zero)))
    }

"""The worker against real tables: what the integration tests deliver to, and how they ask whether totals are exact."""

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.contributions import Definitions, Group
from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.aggregations.numbers import EXACT
from aggregation_worker.batch import BatchResult, process
from aggregation_worker.dead_letters import DeadLetterQueue, Notice, ParkedRecord
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT, Committer, Deadline
from aggregation_worker.ledger.pages import Page, page_of
from aggregation_worker.ledger.receipts import (
    AFTER,
    AGGREGATE_KEY,
    backfill_attribute,
    group_of,
    net,
    partition_of,
    position_in,
    read_backfill,
    read_receipt,
    row_receipts,
)
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.local.recompute import scan, stored_totals

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

STREAM_ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/Order_by_item/stream/2024-07-01T00:00:00.000"
REFERENCE = """
[source]
table = "Order_by_item"
partition_key = "orderid"
sort_key = "order_date"

[[aggregations]]
name = "item_count_by_date"
table = "TARGET"
partition_key = { name = "item_number", from = "item_number" }
sort_key = { name = "order_date", from = "order_date", truncate = "day" }
sum = { quantity = "quantity" }
"""


@dataclass(slots=True)
class ParkedInMemory(DeadLetterQueue):
    """A dead-letter queue that only remembers; the real one has tests of its own."""

    parked: list[ParkedRecord | Notice] = field(default_factory=list)

    def park(
        self, letters: Sequence[ParkedRecord | Notice], in_time: Callable[[], bool] = lambda: True
    ) -> dict[int, str]:
        """Takes everything."""
        self.parked.extend(letters)
        return {}


Call = Callable[..., Any]


class ClientWith:
    """A DynamoDB client each of whose writes goes through a function, which gets it and its request.

    Everything else is the real client's.
    """

    def __init__(self, client: "DynamoDBClient", spoilt: Callable[[Call, dict[str, Any]], Any]) -> None:
        self._client = client
        self.update_item = lambda **request: spoilt(client.update_item, request)
        self.transact_write_items = lambda **request: spoilt(client.transact_write_items, request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


@dataclass(slots=True)
class World:
    """Tables of one test, and the worker over them."""

    client: "DynamoDBClient"
    definitions: Definitions
    ledger_table: str
    executor: ThreadPoolExecutor
    dead_letters: ParkedInMemory
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100_000_000_000_000_000_001))

    def committer(self, client: Any = None) -> Committer:
        """What a worker of its own commits with."""
        return Committer(client or self.client, self.ledger_table, deployment.LEDGER_RETENTION_DAYS, self.executor)

    def deliver(
        self, records: Sequence[Any], *, client: Any = None, time_is_up: Callable[[], bool] = lambda: False
    ) -> BatchResult:
        """One invocation with these records; once `time_is_up`, nothing is sent any more, but answers are waited for.

        Time passes only there, so that what a test finds does not hang on how quick the machine is.
        """
        deadline = Deadline(lambda: 1.0 if time_is_up() else 60.0, stop_sending=2.0, stop_waiting=0.5)
        return process(records, self.definitions, self.committer(client), self.dead_letters, deadline)

    def totals(self) -> dict[tuple[str, Group], tuple[Decimal, ...]]:
        """Every total without what is kept of it, by aggregation name and group."""
        return {
            (aggregation.name, group): amounts
            for aggregation in self.definitions.aggregations
            for group, amounts in stored_totals(self.client, aggregation).items()
        }

    def quantity(self, item: str, day: str = "2024-07-15") -> int:
        """The reference aggregation's total for an item and day."""
        return int(self.totals().get(("item_count_by_date", (item, day)), (Decimal(0),))[0])

    def pages(self) -> dict[str, list[Page]]:
        """The pages of the ledger by their partition, the oldest first."""
        found: dict[str, list[Page]] = {}
        for item in scan(self.client, self.ledger_table):
            if AFTER in item:  # not an aggregation's definition, nor the marker of its backfill
                found.setdefault(item[AGGREGATE_KEY]["S"], []).append(page_of(item))
        return {partition: sorted(pages, key=lambda page: page.key) for partition, pages in found.items()}

    def receipts(self) -> dict[tuple[str, Group], dict[str, tuple[Decimal, ...]]]:
        """What every receipt adds without what it keeps, by total, a backfill's too; each stands where it belongs."""
        pages = self.pages()
        found = {}
        for aggregation in self.definitions.aggregations:
            for row in scan(self.client, aggregation.table):
                seen, group = row_receipts(row, aggregation.name), group_of(aggregation.keys, row)
                receipts = {name: net(*read_receipt(value)) for name, value in (seen.values or {}).items()}
                assert all(position_in(name) > seen.archived for name in receipts)
                after = ""
                for page in pages.pop(partition_of(aggregation.name, group, seen.generation), ()):
                    assert page.after == after < page.key
                    after = page.key
                    on_page = {name: net(*receipt) for name, receipt in page.receipts().items()}
                    assert all(page.after < position_in(name) <= page.key for name in on_page)
                    receipts |= on_page
                assert after == seen.archived
                starting_value = row.get(backfill_attribute(aggregation.name))
                if starting_value is not None:
                    receipts |= [read_backfill(starting_value)]
                if receipts:
                    found[aggregation.name, group] = receipts
        assert not pages, "pages are nobody's"
        return found

    def assert_totals_are_the_sum_of_receipts(self) -> None:
        """Every total equals the sum of its receipts, and every receipt belongs to a total."""
        sums = {
            total: tuple(reduce(EXACT.add, column) for column in zip(*receipts.values(), strict=True))
            for total, receipts in self.receipts().items()
        }
        assert sums == self.totals()

    def record(
        self,
        item: str | None = None,
        quantity: int | str = 1,
        *,
        old: tuple[str, int | str] | None = None,
        created_at: int = 1_789_651_658,
        attributes: Mapping[str, Any] | None = None,
        removed: bool = False,
    ) -> dict[str, Any]:
        """A change of an order of its own: INSERT, MODIFY if it has an old image, REMOVE if `removed`."""
        number = next(self.numbers)
        keys = {"orderid": {"S": str(number)}, "order_date": {"S": "2024-07-15"}}

        def image(item: str, quantity: int | str) -> dict[str, Any]:
            return {**keys, "item_number": {"S": item}, "quantity": {"N": str(quantity)}, **(attributes or {})}

        change: dict[str, Any] = {
            "Keys": keys,
            "SequenceNumber": str(number),
            "ApproximateCreationDateTime": created_at,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        }
        if item is not None:
            change["NewImage"] = image(item, quantity)
        if old is not None:
            change["OldImage"] = image(*old)
        return {
            "eventID": uuid.uuid4().hex,
            "eventName": "REMOVE" if removed else "MODIFY" if old else "INSERT",
            "eventSource": "aws:dynamodb",
            "eventVersion": "1.1",
            "awsRegion": "us-east-1",
            "eventSourceARN": STREAM_ARN,
            "dynamodb": change,
        }


@contextmanager
def a_world(client: "DynamoDBClient", definitions: str = REFERENCE) -> Iterator[World]:
    """Creates the tables of a definitions text (in which TARGET stands for a name) and removes them at the end."""
    suffix = uuid.uuid4().hex[:12]
    parsed = parse_definitions(definitions.replace("TARGET", f"target-{suffix}"))
    tables = {**deployment.target_tables(parsed), f"ledger-{suffix}": deployment.LEDGER}
    for name, table in tables.items():
        create_table(client, name, table)
    dead_letters = ParkedInMemory("", "", _no_client, _no_client)
    with ThreadPoolExecutor(MAX_IN_FLIGHT) as executor:
        yield World(client, parsed, f"ledger-{suffix}", executor, dead_letters)
    for name in tables:
        client.delete_table(TableName=name)


def _no_client() -> Any:
    raise AssertionError("nothing is sent to the real queue")


def side_by_side(*calls: Callable[[], Any]) -> list[Any]:
    """Runs calls in threads that begin at the same moment; returns what they return."""
    barrier = threading.Barrier(len(calls))

    def at_once(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as executor:
        return list(executor.map(at_once, calls))

"""Target tables and a ledger in memory for a reconcile, with a worker that is a method.

Every request is one moment; between two of them `on_request` lets anybody else do something.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import pytest
from botocore.exceptions import ConnectionClosedError

from aggregation_worker.aggregations.contributions import Aggregation, Group, contributions
from aggregation_worker.aggregations.numbers import EXACT, Amounts
from aggregation_worker.ledger import next_write, pages
from aggregation_worker.ledger.catalogue import register
from aggregation_worker.ledger.commit import Committer, Deadline
from aggregation_worker.ledger.corrections import correction_page
from aggregation_worker.ledger.reading import Stored, read_stored
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    PAGE_KEY,
    aggregate_of,
    partition_of,
    postings,
    row_receipts,
)
from aggregation_worker.streams.records import StreamRecord
from tests.faulty_dynamodb import ImmediateExecutor
from tests.model.in_memory_dynamodb import InMemoryDynamoDB, Item

LEDGER = "ledger"
RETENTION_DAYS = 60


def make_rows_small(limits: pytest.MonkeyPatch, receipts_in_a_row: int = 4, receipts_on_a_page: int = 3) -> None:
    """Rows and pages hold only so many receipts, or a few more, so that they are archived often."""
    limits.setattr(next_write, "ROW_STEP", 1)
    limits.setattr(next_write, "LEAST_ROOM", receipts_in_a_row * 44)
    limits.setattr(pages, "MAX_PAGE_RECEIPTS", receipts_on_a_page)


class TotalsInMemory(InMemoryDynamoDB):
    """What boto3's `dynamodb` client is to a reconcile.

    Attributes:
        on_request: called before every request.
        faults: for each transaction to come what goes wrong: `lost` (carried out, no answer), `unsent` (no answer, not
            carried out), an exception that is raised before it is carried out, or `None`.
    """

    def __init__(self, aggregations: Sequence[Aggregation]) -> None:
        super().__init__()
        self.on_request: Callable[[str], None] = lambda operation: None
        self.faults: deque[Any] = deque()
        self.page_size = 3
        self.tokens: list[str] = []
        self.ledger = self.create(LEDGER, (AGGREGATE_KEY, "S"), (PAGE_KEY, "S")).items
        for table, keys in {aggregation.table: aggregation.keys for aggregation in aggregations}.items():
            self.create(table, *((key.name, key.type.value) for key in keys))
        # The same tables, in requests during which nobody else does anything.
        undisturbed = InMemoryDynamoDB()
        undisturbed.tables = self.tables
        self.undisturbed = cast("Any", undisturbed)
        self._committer = Committer(self.undisturbed, LEDGER, RETENTION_DAYS, ImmediateExecutor())
        register(self.undisturbed, LEDGER, aggregations)

    # --- The worker, and others -----------------------------------------------------------------------------------

    def apply(self, aggregations: Sequence[Aggregation], record: StreamRecord) -> None:
        """Counts one record, once, as the worker does."""
        found = postings([(0, record, contributions(aggregations, record)[0])])
        outcome = self._committer.commit(found, Deadline(lambda: 100.0, 0.0, 0.0))
        assert not outcome.refused
        assert not outcome.unsettled

    def put_page(self, partition: str, page: str, attributes: Item) -> None:
        """Puts an item into the ledger and does nothing else."""
        self.ledger[partition, page] = {AGGREGATE_KEY: {"S": partition}, PAGE_KEY: {"S": page}, **attributes}

    def add(self, aggregation: Aggregation, group: Group, amounts: Amounts) -> None:
        """Adds to a total and to nothing else."""
        sums = map(EXACT.add, self.total(aggregation, group), amounts)
        names = (measure.name for measure in aggregation.measures)
        self.set(aggregation, group, {name: {"N": str(amount)} for name, amount in zip(names, sums, strict=True)})

    def set(self, aggregation: Aggregation, group: Group, attributes: Item) -> None:
        """Sets attributes of a row."""
        keys = {key.name: {key.type.value: text} for key, text in zip(aggregation.keys, group, strict=True)}
        rows = self.tables[aggregation.table].items
        rows[group] = rows.get(group, keys) | attributes

    def row(self, aggregation: Aggregation, group: Group) -> Item:
        """A row as it stands; empty where there is none."""
        return self.tables[aggregation.table].items.get(group, {})

    def total(self, aggregation: Aggregation, group: Group) -> Amounts:
        """A total as it stands; zeros where there is none."""
        row = self.row(aggregation, group)
        return tuple(Decimal(row.get(measure.name, {"N": "0"})["N"]) for measure in aggregation.measures)

    def partition(self, aggregation: Aggregation, group: Group) -> str:
        """The ledger's partition of an aggregate's pages."""
        generation = row_receipts(self.row(aggregation, group), aggregation.name).generation
        return partition_of(aggregation.name, group, generation)

    def stored(self, aggregation: Aggregation, group: Group) -> Stored:
        """All that is stored of an aggregate."""
        return read_stored(self.undisturbed, LEDGER, aggregate_of(aggregation, group))

    def receipts(self, aggregation: Aggregation, group: Group) -> dict[tuple[str, str], Amounts]:
        """All receipts of an aggregate, by where they stand and their names: `row`, or the key of a page."""
        stored = self.stored(aggregation, group)
        found = {(stored.pages.get(name, "row"), name): amounts for name, (amounts, _) in stored.receipts.items()}
        found |= {(correction_page(number), name): amounts for (number, name), amounts in stored.corrections.items()}
        if stored.starting_value is not None:
            cut, amounts = stored.starting_value
            found["row", cut] = amounts
        return found

    # --- The client's calls ---------------------------------------------------------------------------------------

    def get_item(self, **request: Any) -> dict[str, Any]:
        """One item, of the ledger or of a target table."""
        return self._read("GetItem", super().get_item, request)

    def query(self, **request: Any) -> dict[str, Any]:
        """The pages of an aggregate from one on."""
        return self._read("Query", super().query, request)

    def scan(self, **request: Any) -> dict[str, Any]:
        """A target table's rows."""
        return self._read("Scan", super().scan, request)

    def _read(self, operation: str, read: Callable[..., dict[str, Any]], request: Mapping[str, Any]) -> dict[str, Any]:
        assert request["ConsistentRead"]
        self.on_request(operation)
        return read(**request)

    def batch_get_item(self, **request: Any) -> dict[str, Any]:
        """Rows, before what the worker will never bring is counted."""
        self.on_request("BatchGetItem")
        return super().batch_get_item(**request)

    def update_item(self, **request: Any) -> dict[str, Any]:
        """Counts what the worker will never bring."""
        self.on_request("UpdateItem")
        return super().update_item(**request)

    def put_item(self, **request: Any) -> dict[str, Any]:
        """An item of the ledger, if the condition holds."""
        assert request["TableName"] == LEDGER
        self.on_request("PutItem")
        return super().put_item(**request)

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        """A correction, or an archive or late write: pages of the ledger, and the row's Update."""
        self.on_request("TransactWriteItems")
        if "ClientRequestToken" in request:
            assert request["ClientRequestToken"] not in self.tokens
            self.tokens.append(request["ClientRequestToken"])
        fault = self.faults.popleft() if self.faults else None
        if isinstance(fault, BaseException):
            raise fault
        if fault == "unsent":
            raise ConnectionClosedError(endpoint_url="http://unsent")
        answer = super().transact_write_items(**request)
        if fault == "lost":
            raise ConnectionClosedError(endpoint_url="http://lost")
        return answer

"""Target tables and a ledger in memory for a reconcile, with a worker that is a method.

Every request is one moment; between two of them `on_request` lets anybody else do something.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from botocore.exceptions import ConnectionClosedError

from aggregation_worker.aggregations.contributions import Aggregation, Group, contributions
from aggregation_worker.aggregations.numbers import EXACT, Amounts
from aggregation_worker.ledger.definition_guard import check_definitions
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    EXPIRES_AT,
    NO_RECEIPTS,
    PAGE_KEY,
    aggregate_name,
    postings,
    read_receipt,
    receipt_value,
)
from aggregation_worker.streams.records import StreamRecord
from tests.model.in_memory_dynamodb import InMemoryDynamoDB, Item

LEDGER = "ledger"


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
        client: Any = self
        check_definitions(client, LEDGER, aggregations)

    # --- The worker, and others -----------------------------------------------------------------------------------

    def apply(self, aggregations: Sequence[Aggregation], record: StreamRecord) -> None:
        """Counts one record, once."""
        for posting in postings([(0, record, contributions(aggregations, record)[0])]):
            aggregate, page = posting.aggregate, posting.page
            if posting.receipt not in self.ledger.get((aggregate.name, page), {}):
                receipt = {posting.receipt: receipt_value(posting.amounts), EXPIRES_AT: {"N": "9999999999"}}
                self.put_receipts(aggregate.name, page, receipt)
                self.add(aggregate.aggregation, aggregate.row.group, posting.amounts)

    def put_receipts(self, aggregate: str, page: str, receipts: Item) -> None:
        """Adds attributes to a page of the ledger and to nothing else."""
        keys = {AGGREGATE_KEY: {"S": aggregate}, PAGE_KEY: {"S": page}}
        self.ledger[aggregate, page] = self.ledger.get((aggregate, page), keys) | receipts

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

    def total(self, aggregation: Aggregation, group: Group) -> Amounts:
        """A total as it stands; zeros where there is none."""
        row = self.tables[aggregation.table].items.get(group, {})
        return tuple(Decimal(row.get(measure.name, {"N": "0"})["N"]) for measure in aggregation.measures)

    def receipts(self, aggregation: Aggregation, group: Group) -> dict[tuple[str, str], Amounts]:
        """All receipts of an aggregate, corrections included, by page and name."""
        wanted = aggregate_name(aggregation.name, group)
        return {
            (page, name): read_receipt(value)
            for (aggregate, page), item in self.ledger.items()
            if aggregate == wanted
            for name, value in item.items()
            if name not in NO_RECEIPTS
        }

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

    def put_item(self, **request: Any) -> dict[str, Any]:
        """An item of the ledger, if the condition holds."""
        assert request["TableName"] == LEDGER
        self.on_request("PutItem")
        return super().put_item(**request)

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        """A correction: the ledger's Put and the row's Update."""
        self.on_request("TransactWriteItems")
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

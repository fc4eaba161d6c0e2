"""A DynamoDB client in memory whose requests fail as a test says, with a clock and threads that tests control."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.pages import Page, page_of
from aggregation_worker.ledger.receipts import (
    AFTER,
    AGGREGATE_KEY,
    aggregate_name,
    group_of,
    partition_of,
    position_in,
    read_receipt,
    row_receipts,
)
from tests.model.in_memory_dynamodb import InMemoryDynamoDB

LEDGER = "ledger"
_READS = ("batch_get_item", "query")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was sent: UpdateItem, TransactWriteItems, BatchGetItem or Query, by boto3's names."""

    operation: str
    parameters: Mapping[str, Any]

    @property
    def is_read(self) -> bool:
        """Whether it writes nothing."""
        return self.operation in _READS

    def actions(self) -> list[Mapping[str, Any]]:
        """The updates and puts of a write; a row's is the last."""
        if self.operation == "transact_write_items":
            return [next(iter(action.values())) for action in self.parameters["TransactItems"]]
        return [] if self.is_read else [self.parameters]

    def row(self) -> tuple[str, str]:
        """Table and key of the row that it writes to."""
        action = self.actions()[-1]
        return action["TableName"], repr(action["Key"])


Fault = Callable[[Request], Exception | None] | Exception | None


class FaultyDynamoDB(InMemoryDynamoDB):
    """The tables of some definitions, and their ledger.

    Attributes:
        before: a fault for each write to come, raised before it is carried out; when they are used up there are none.
        after: the same, raised when it is carried out: its answer is lost.
        reads: a fault for each BatchGetItem and Query to come.
        earlier: what BatchGetItem reads instead, as an eventually consistent read may; see `copy`.
        requests: every request sent, in order.
        on_request: called at the beginning of each request; what it raises is the answer.
    """

    def __init__(self, definitions: Definitions) -> None:
        super().__init__()
        self.definitions = definitions
        self.before: deque[Fault] = deque()
        self.after: deque[Fault] = deque()
        self.reads: deque[Fault] = deque()
        self.earlier: InMemoryDynamoDB | None = None
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda request: None
        for name, table in {**deployment.target_tables(definitions), LEDGER: deployment.LEDGER}.items():
            self.create(name, *((key, kind.value) for key, kind in table.keys))

    def update_item(self, **parameters: Any) -> dict[str, Any]:
        """An update between the faults laid for it."""
        return self._between_faults(super().update_item, Request("update_item", parameters))

    def transact_write_items(self, **parameters: Any) -> dict[str, Any]:
        """A transaction between the faults laid for it."""
        return self._between_faults(super().transact_write_items, Request("transact_write_items", parameters))

    def batch_get_item(self, **parameters: Any) -> dict[str, Any]:
        """A read after the fault laid for it."""
        read = super().batch_get_item if self.earlier is None else self.earlier.batch_get_item
        return self._between_faults(read, Request("batch_get_item", parameters))

    def query(self, **parameters: Any) -> dict[str, Any]:
        """A read after the fault laid for it."""
        return self._between_faults(super().query, Request("query", parameters))

    def _between_faults(self, call: Callable[..., dict[str, Any]], request: Request) -> dict[str, Any]:
        self.requests.append(request)
        self.on_request(request)
        _raise(self.reads if request.is_read else self.before, request)
        answer = call(**request.parameters)
        _raise(deque() if request.is_read else self.after, request)
        return answer

    def sent(self) -> list[str]:
        """The operations of all writes and queries, in order."""
        return [request.operation for request in self.requests if request.operation != "batch_get_item"]

    def copy(self) -> InMemoryDynamoDB:
        """The tables as they are now."""
        found = InMemoryDynamoDB()
        found.tables = {name: replace(table, items=dict(table.items)) for name, table in self.tables.items()}
        return found

    # --- What is in the tables ------------------------------------------------------------------------------------

    def row(self, table: str, *group: str) -> dict[str, Any]:
        """One row, by its string keys; empty where there is none."""
        for item in self.tables[table].items.values():
            if [item[name]["S"] for name, _ in self.tables[table].keys] == list(group):
                return item
        return {}

    def total(self, table: str, measure: str, *group: str) -> Decimal:
        """One total, by the row's string keys; zero where there is none."""
        return Decimal(self.row(table, *group).get(measure, {"N": "0"})["N"])

    def pages(self, partition: str) -> list[Page]:
        """The pages of one generation of an aggregate, sorted."""
        items = (item for item in self.tables[LEDGER].items.values() if item[AGGREGATE_KEY]["S"] == partition)
        return sorted((page_of(item) for item in items if AFTER in item), key=lambda page: page.key)

    def receipts(self) -> list[tuple[str, str, str, tuple[Decimal, ...]]]:
        """Every receipt of every row: aggregate, page (empty: in the row), name and contribution, sorted.

        It stands where it belongs: in the row after the watermark, and before it on pages without a gap or an overlap.
        """
        found = []
        for aggregation in self.definitions.aggregations:
            for item in self.tables[aggregation.table].items.values():
                seen, group = row_receipts(item, aggregation.name), group_of(aggregation.keys, item)
                name = aggregate_name(aggregation.name, group)
                found += [(name, "", one, read_receipt(value)[0]) for one, value in (seen.values or {}).items()]
                assert all(position_in(receipt) > seen.archived for receipt in seen.values or {})
                after = ""
                for page in self.pages(partition_of(aggregation.name, group, seen.generation)):
                    assert page.after == after < page.key
                    after = page.key
                    for receipt, (amounts, _) in page.receipts().items():
                        assert page.after < position_in(receipt) <= page.key
                        found.append((name, page.key, receipt, amounts))
                assert after == seen.archived
        return sorted(found)


def client_error(code: str, message: str = "told by the test", status: int = 400, **more: Any) -> ClientError:
    """An error of a whole request; `more` are further parts of the response."""
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    return ClientError(response, "TransactWriteItems")  # type: ignore[arg-type]  # only what the worker reads


def cancelled(reasons: Sequence[Mapping[str, Any] | str]) -> ClientError:
    """A cancelled transaction; a reason is its code or the whole of it."""
    listed = [{"Code": reason} if isinstance(reason, str) else dict(reason) for reason in reasons]
    error = client_error("TransactionCanceledException", "Transaction cancelled")
    error.response["CancellationReasons"] = listed  # type: ignore[typeddict-item]  # only what the worker reads
    return error


def _raise(faults: deque[Fault], request: Request) -> None:
    fault = faults.popleft() if faults else None
    error = fault if fault is None or isinstance(fault, Exception) else fault(request)
    if error is not None:
        raise error


@dataclass(slots=True)
class Clock:
    """Time that passes only when somebody sleeps or a test lets it."""

    time: float = 1_000.0
    pauses: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        """A pause that takes no time."""
        assert seconds >= 0
        self.pauses.append(seconds)
        self.time += seconds


class ImmediateExecutor(Executor):
    """Runs each call at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As a thread pool's, but done when it returns."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # as a thread pool does
            future.set_exception(error)
        return future

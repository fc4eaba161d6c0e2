"""A DynamoDB client in memory whose requests fail as a test says, with a clock and threads that tests control."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.receipts import AGGREGATE_KEY, NO_RECEIPTS, PAGE_KEY, read_receipt
from tests.model.in_memory_dynamodb import InMemoryDynamoDB

LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class Request:
    """One TransactWriteItems as it was sent."""

    token: str
    items: Sequence[Mapping[str, Any]]

    def keys(self) -> list[tuple[str, str]]:
        """The items it writes to: table and key."""
        return [(item["Update"]["TableName"], repr(item["Update"]["Key"])) for item in self.items]


Fault = Callable[[Request], Exception | None] | Exception | None


class FaultyDynamoDB(InMemoryDynamoDB):
    """The tables of some definitions, and their ledger.

    Attributes:
        before: a fault for each request to come, raised before it is carried out; when they are used up there are none.
        after: the same, raised when it is carried out: its answer is lost.
        requests: every transaction sent, in order.
        on_request: called at the beginning of each request; what it raises is the answer.
    """

    def __init__(self, definitions: Definitions) -> None:
        super().__init__()
        self.before: deque[Fault] = deque()
        self.after: deque[Fault] = deque()
        self.requests: list[Request] = []
        self.on_request: Callable[[Request], None] = lambda request: None
        for name, table in {**deployment.target_tables(definitions), LEDGER: deployment.LEDGER}.items():
            self.create(name, *((key, kind.value) for key, kind in table.keys))

    def transact_write_items(
        self,
        *,
        TransactItems: Sequence[Mapping[str, Any]],  # noqa: N803 - boto3's name
        ClientRequestToken: str | None = None,  # noqa: N803 - boto3's name
    ) -> dict[str, Any]:
        """Carries out a transaction between the faults laid for it."""
        assert ClientRequestToken is not None
        request = Request(ClientRequestToken, TransactItems)
        self.requests.append(request)
        self.on_request(request)
        _raise(self.before, request)
        answer = super().transact_write_items(TransactItems=TransactItems, ClientRequestToken=ClientRequestToken)
        _raise(self.after, request)
        return answer

    def total(self, table: str, measure: str, *group: str) -> Decimal:
        """One total, by the row's string keys; zero where there is none."""
        for item in self.tables[table].items.values():
            if [item[name]["S"] for name, _ in self.tables[table].keys] == list(group):
                return Decimal(item.get(measure, {"N": "0"})["N"])
        return Decimal(0)

    def receipts(self) -> list[tuple[str, str, str, tuple[Decimal, ...]]]:
        """Every receipt in the ledger: aggregate, page, name and contribution, sorted."""
        return sorted(
            (page[AGGREGATE_KEY]["S"], page[PAGE_KEY]["S"], name, read_receipt(value))
            for page in self.tables[LEDGER].items.values()
            if "#" in page[AGGREGATE_KEY]["S"]  # no aggregation's definition, and no marker of its backfill
            for name, value in page.items()
            if name not in NO_RECEIPTS
        )


def client_error(code: str, message: str = "told by the test", status: int = 400) -> ClientError:
    """An error of a whole request."""
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
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

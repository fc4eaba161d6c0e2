"""The four ways of keeping totals that are compared, each over tables of its own.

The three that are not this worker are written as their documentation or common practice has them: records one by one,
in order, with boto3's default client.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol
from unittest import mock

import boto3
from aws_lambda_powertools.utilities.batch import BatchProcessor, EventType, process_partial_response
from aws_lambda_powertools.utilities.data_classes.dynamo_db_stream_event import DynamoDBRecord
from aws_lambda_powertools.utilities.idempotency import (
    DynamoDBPersistenceLayer,
    IdempotencyConfig,
    idempotent_function,
)
from botocore.config import Config

from aggregation_worker import handler
from aggregation_worker.aggregations.contributions import Definitions, KeyType
from aggregation_worker.batch import BatchResult, process
from aggregation_worker.dead_letters import DeadLetterQueue
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.settings import TableDefinition
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT, Committer, Deadline
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.local.recompute import stored_totals
from aggregation_worker.local.usual_handler import add_request, changes_of, usual_handler
from tests.benchmarks.meter import RecordingClient
from tests.definition_texts import aggregation_text, definitions
from tests.records import event

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# What the Idempotency utility asks Lambda's context for.
_CONTEXT: Any = SimpleNamespace(get_remaining_time_in_millis=lambda: 60_000)
_MARKERS = TableDefinition((("id", KeyType.STRING),))


class Contender(Protocol):
    """A way of keeping totals."""

    def deliver(self, batch: Sequence[dict[str, Any]]) -> None:
        """One invocation with these records."""


def client_of(endpoint: str, config: Config | None = None) -> "DynamoDBClient":
    """A client of a server on this machine; `config` is what a contender asks for."""
    local = Config(account_id_endpoint_mode="disabled", proxies={})
    return boto3.client(
        "dynamodb",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="000000000000",
        aws_secret_access_key="local",
        config=config.merge(local) if config else local,
    )


@dataclass(slots=True)
class Naive:
    """The usual handler; a batch that is delivered twice counts twice."""

    client: Any
    target: str

    def deliver(self, batch: Sequence[dict[str, Any]]) -> None:
        """One invocation with these records."""
        usual_handler(self.client, self.target)(event(*batch), _CONTEXT)


@dataclass(slots=True)
class MarkerPerRecord:
    """One `TransactWriteItems` per record: a marker that must not exist, and the ADD."""

    client: Any
    target: str
    markers: str

    def deliver(self, batch: Sequence[dict[str, Any]]) -> None:
        """One invocation with these records."""
        for raw in batch:
            actions: list[Any] = [{"Update": add_request(self.target, key, amount)} for key, amount in changes_of(raw)]
            marker = {
                "TableName": self.markers,
                "Item": {"id": {"S": raw["eventID"]}, "expires_at": {"N": "1794835658"}},
                "ConditionExpression": "attribute_not_exists(id)",
            }
            try:
                self.client.transact_write_items(TransactItems=[{"Put": marker}, *actions])
            except self.client.exceptions.TransactionCanceledException as error:
                if error.response["CancellationReasons"][0]["Code"] != "ConditionalCheckFailed":
                    raise


@dataclass(slots=True)
class Powertools:
    """Powertools' `BatchProcessor` with its Idempotency utility around the ADD."""

    client: Any
    target: str
    markers: str
    _config: IdempotencyConfig = field(init=False)
    _handle: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        """Decorates the record handler."""

        self._config = IdempotencyConfig(event_key_jmespath="eventID")

        def add(record: dict[str, Any]) -> None:
            for key, amount in changes_of(record):
                self.client.update_item(**add_request(self.target, key, amount))

        add_once = idempotent_function(
            add,
            data_keyword_argument="record",
            persistence_store=DynamoDBPersistenceLayer(self.markers, boto3_client=self.client),
            config=self._config,
            key_prefix="benchmark",
        )

        def handle(record: DynamoDBRecord) -> None:
            add_once(record=record.raw_event)

        self._handle = handle

    def deliver(self, batch: Sequence[dict[str, Any]]) -> None:
        """One invocation with these records.

        Raises:
            RuntimeError: a record failed.
        """
        self._config.register_lambda_context(_CONTEXT)
        processor = BatchProcessor(event_type=EventType.DynamoDBStreams)
        answer = process_partial_response(event(*batch), self._handle, processor)
        if answer["batchItemFailures"]:
            raise RuntimeError(f"Powertools failed {len(answer['batchItemFailures'])} records: {processor.exceptions}")


@dataclass(slots=True)
class ThisWorker:
    """The worker, as its handler sets it up."""

    committer: Committer
    definitions: Definitions
    conflicts: int = 0

    def deliver(self, batch: Sequence[dict[str, Any]]) -> None:
        """One invocation with these records.

        Raises:
            RuntimeError: a record was not counted.
        """
        result = self.process(batch)
        self.conflicts += result.commit.conflicts
        if result.reasons or result.commit.unsettled:
            raise RuntimeError(
                f"not everything was counted: {result.reasons}, {len(result.commit.unsettled)} unsettled"
            )

    def process(self, batch: Sequence[dict[str, Any]]) -> BatchResult:
        """The worker's own result."""
        deadline = Deadline(lambda: 600.0, stop_sending=1, stop_waiting=0.1)
        return process(batch, self.definitions, self.committer, _NOTHING_IS_PARKED, deadline)


def _no_client() -> Any:
    raise AssertionError("a benchmark's records are never parked")


_NOTHING_IS_PARKED = DeadLetterQueue("", "", _no_client, _no_client)
NAMES = ("naive", "marker per record", "Powertools", "this worker")


@dataclass(frozen=True, slots=True)
class Setup:
    """One contender over new tables.

    Attributes:
        client: a `RecordingClient`, which it writes with.
        keys: key attributes of its tables by name, as a `Meter` wants them.
    """

    contender: Contender
    client: Any
    keys: dict[str, tuple[str, ...]]
    definitions: Definitions

    def totals(self) -> dict[str, int]:
        """Quantity by item, as the target table has it."""
        (aggregation,) = self.definitions.aggregations
        return {group[0]: int(amounts[0]) for group, amounts in stored_totals(self.client, aggregation).items()}


@contextmanager
def set_up(name: str, endpoint: str, *, workers: int = 1, round_trip: float = 0.0) -> Iterator[Setup]:
    """A contender over tables of its own, which are removed at the end.

    Args:
        name: one of `NAMES`.
        workers: how many callers will use it at the same time.
        round_trip: seconds that every answer is held back.
    """
    suffix = uuid.uuid4().hex[:10]
    defined = definitions(aggregation_text(table=f"target-{suffix}"))
    tables = deployment.target_tables(defined)
    other = f"other-{suffix}"
    if name != "naive":
        tables[other] = deployment.LEDGER if name == "this worker" else _MARKERS
    (target,) = deployment.target_tables(defined)
    config = handler._config(total_max_attempts=1) if name == "this worker" else Config()
    client: Any = RecordingClient(client_of(endpoint, config), round_trip)
    threads = ThreadPoolExecutor(MAX_IN_FLIGHT * workers)
    contender: Contender
    with mock.patch.dict(os.environ, {"AWS_LAMBDA_FUNCTION_NAME": "benchmark"}), threads:
        for table, definition in tables.items():
            create_table(client, table, definition)
        match name:
            case "naive":
                contender = Naive(client, target)
            case "marker per record":
                contender = MarkerPerRecord(client, target, other)
            case "Powertools":
                contender = Powertools(client, target, other)
            case _:
                committer = Committer(client, other, deployment.LEDGER_RETENTION_DAYS, threads)
                contender = ThisWorker(committer, defined)
        keys = {table: tuple(key for key, _ in definition.keys) for table, definition in tables.items()}
        yield Setup(contender, client, keys, defined)
        for table in tables:
            client.delete_table(TableName=table)

"""What is deployed, apart from where: tables, event source mapping, queue and bucket, each value with its reason.

The CDK app builds from here and the pipeline on one machine runs from here, so that a changed setting cannot differ
between the two. Plain values and pure functions; the function itself never imports this.
"""

from dataclasses import dataclass
from enum import StrEnum

from aggregation_worker.aggregations.contributions import Definitions, Index, KeyType, RemovePolicy
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.receipts import EXPIRES_AT, LEDGER_KEYS
from aggregation_worker.streams.records import EventName
from aggregation_worker.streams.shards import StartingPosition


# --- The event source mapping -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class MappingSettings:
    """An event source mapping in AWS's own terms ("Lambda parameters for Amazon DynamoDB event source mappings", AWS
    Lambda developer guide). The defaults are what is deployed.
    """

    # Most records of one invocation. All of a batch that belong to one row are written together, so a bigger batch
    # costs less; 1,000 records are still committed in well under a second.
    batch_size: int = 1_000
    # A quiet shard waits this long for more records; totals lag by no more than this because of it.
    maximum_batching_window_seconds: int = 1
    # Several batches of one shard at once would write the same hot rows: fail each other's conditions, meet each
    # other's transactions, and come late for what another has archived already. Order does not matter to sums, so a
    # user with thousands of aggregates can raise it.
    parallelization_factor: int = 1
    # The worker parks what can never succeed, so what fails is an outage or a wrong deployment, and an operator decides
    # how long it lasts. An attempt that fails as a whole takes 30 seconds (`handler.FAILURE_PAUSE`; AWS documents no
    # pause of its own), so that these last for the stream's 24 hours, and the maximum record age alone decides: for six
    # hours nothing goes to the dead-letter bucket. With 30 retries, and nothing held back, the first record of a batch
    # of 1,000 would be there after 40 invocations of milliseconds (9 splits, which cost no retry, and 31 of its own),
    # and another one after every 31 more. -1 is no limit.
    maximum_retry_attempts: int = 2_880
    # Well inside the stream's 24 hours, so that the on-failure document can still be written from the stream, and long
    # enough for an operator to wake up and repair before records take the longer way through the dead-letter queue.
    # -1 is no limit but the stream's.
    maximum_record_age_seconds: int = 6 * 3600
    # The start of the stream: with LATEST, records written while the mapping is being created are missed.
    starting_position: StartingPosition = "TRIM_HORIZON"
    # Without bisecting, Lambda discards the healthy records after a failing one when its retries are used up.
    bisect_batch_on_function_error: bool = True
    # Without it Lambda ignores what the function returns.
    report_batch_item_failures: bool = True
    # Of the local pipeline only: the pause before a batch's first retry, which doubles up to 64 times as long. AWS does
    # not document its own.
    retry_pause_seconds: float = 0.1

    @property
    def oldest_delivered_seconds(self) -> int:
        """The age at which a record is discarded: the maximum record age, and at most the stream's retention."""
        retention = STREAM_RETENTION_DAYS * 86_400
        return retention if self.maximum_record_age_seconds == -1 else min(self.maximum_record_age_seconds, retention)


MAPPING = MappingSettings()


# What Lambda takes: "CreateEventSourceMapping" and "CreateFunction", AWS Lambda API reference.
_RANGES = {
    "batch_size": range(1, 10_001),
    "batching_window_seconds": range(301),
    "parallelization_factor": range(1, 11),
    "memory_mb": range(128, 10_241),
}


def check_ranges(**chosen: int) -> None:
    """Refuses what Lambda would refuse while it deploys.

    Raises:
        DeploymentError: a value is out of its range.
    """
    for name, value in chosen.items():
        if value not in _RANGES[name]:
            raise DeploymentError(f"{name}={value}: {_RANGES[name][0]} to {_RANGES[name][-1]} is what Lambda takes")


def event_names(definitions: Definitions) -> tuple[EventName, ...]:
    """The mapping's filter: REMOVE is delivered unless every aggregation ignores it."""
    if all(aggregation.remove is RemovePolicy.IGNORE for aggregation in definitions.aggregations):
        return EventName.INSERT, EventName.MODIFY
    return tuple(EventName)


# --- The function -------------------------------------------------------------------------------------------------
# Seconds. A batch takes well under one; the rest is for riding out throttling and conflicts without a redelivery.
FUNCTION_TIMEOUT_SECONDS = 60
# Megabytes. CPU comes with memory: 1,769 MB are one core, so this is 0.58 of one. Of a core, 1,000 records a second in
# one shard take a fifth in batches of 1,000 and half in batches of 10, most of it in botocore, 0.4 ms for each request;
# lone records mostly wait, and more memory would be paid for the waiting. Peak use for the largest event, 6 MB, is
# under 200 MB.
FUNCTION_MEMORY_MB = 1_024

# --- The scheduled reconcile --------------------------------------------------------------------------------------
# Seconds: the longest that Lambda allows.
RECONCILE_TIMEOUT_SECONDS = 900
# Seconds of them for reading the source. The other half is for the totals, which can be as many as the items, for the
# stream to pass the last item read, and for looking again at totals that differ.
RECONCILE_READING_SECONDS = 450
# Bytes of items a second: 10,000 items of 100 bytes. One core reads and sums up three times as many (38,000 items of 60
# bytes, tests/benchmarks/snapshot.py), and more bytes of larger ones; a table on demand gives 12 MB/s from the start.
RECONCILE_BYTES_PER_SECOND = 1_000_000
# A larger table cannot be compared in time for certain; `aggregator reconcile` on a machine has all the time it needs.
# Only the function can know how large a table is, and it refuses before it reads anything of it.
MAX_SCHEDULED_RECONCILE_BYTES = RECONCILE_READING_SECONDS * RECONCILE_BYTES_PER_SECOND
# Megabytes: one core. The items pass through one thread, so a second core would idle; memory stays flat.
RECONCILE_MEMORY_MB = 1_769
# Megabytes of /tmp, the most there can be, where the items' contributions are gathered and sorted: up to 300 bytes for
# each item and aggregation, so the largest table in items of 100 bytes fits seven times. A run pays $0.0003 for it.
RECONCILE_STORAGE_MB = 10_240
# Two at once would read the table twice, to say the same.
RECONCILE_CONCURRENCY = 1
# One that failed would read the whole table and fail again: an operator must act, and the schedule runs it again.
RECONCILE_RETRY_ATTEMPTS = 0
# Seconds that a run waits for the one before it to end, if the two would otherwise be at work at once.
RECONCILE_WAITS_SECONDS = 1_800

# --- Lifetimes, in days -------------------------------------------------------------------------------------------
STREAM_RETENTION_DAYS = 1
# SQS keeps no message longer.
QUEUE_RETENTION_DAYS = 14
# The records themselves, where a message only refers to them.
DEAD_LETTER_OBJECT_DAYS = 30
# A page must outlive every way in which its records can come back: the three above one after another, and a margin. It
# expires so long after its last write. A late record whose page has expired is parked, so a retention that is too short
# costs an operator's attention, and never makes a total wrong.
LEDGER_RETENTION_DAYS = 60

STREAM_VIEW_TYPE = "NEW_AND_OLD_IMAGES"

# --- The stack ----------------------------------------------------------------------------------------------------
STACK_NAME = "DynamoDBAggregationWorker"


class Output(StrEnum):
    """The outputs that the `aggregator` command and the CDK app read, so that ARNs need not be copied by hand."""

    NAME = "DashboardName"  # the worker's, with which the names of its alarms begin
    SOURCE_TABLE = "SourceTableName"
    TARGET_TABLES = "TargetTableNames"
    LEDGER_TABLE = "LedgerTableName"
    LEDGER_RETENTION_DAYS = "LedgerRetentionDays"
    DEAD_LETTER_QUEUE_URL = "DeadLetterQueueUrl"
    DEAD_LETTER_BUCKET = "DeadLetterBucketName"
    FUNCTION_NAME = "FunctionName"
    EVENT_SOURCE_MAPPING = "EventSourceMappingUuid"
    ALARM_TOPIC = "AlarmTopicArn"


# US dollars, us-east-1: on-demand request units ("Amazon DynamoDB pricing"), requests, and a gigabyte for a second on
# arm64 ("AWS Lambda pricing").
DOLLARS_PER_MILLION_WRITE_UNITS = 0.625
DOLLARS_PER_MILLION_READ_UNITS = 0.125
DOLLARS_PER_MILLION_INVOCATIONS = 0.20
DOLLARS_PER_GB_SECOND = 0.0000133334


class DeploymentError(WorkerError):
    """Settings that do not fit together; the message says which and why."""


@dataclass(frozen=True, slots=True)
class TableDefinition:
    """A DynamoDB table as it must be created.

    Attributes:
        keys: attribute name and type: partition key, then sort key if there is one.
        stream_view_type: of its stream, or `None` for no stream.
        ttl_attribute: the attribute that holds an item's expiry in epoch seconds, or `None`.
        indexes: its global secondary indexes.
    """

    keys: tuple[tuple[str, KeyType], ...]
    stream_view_type: str | None = None
    ttl_attribute: str | None = None
    indexes: tuple[Index, ...] = ()

    @property
    def key_types(self) -> dict[str, KeyType]:
        """The type of every attribute by which the table or an index finds its items."""
        return dict((*self.keys, *(key for index in self.indexes for key in index.keys)))


LEDGER = TableDefinition(LEDGER_KEYS, ttl_attribute=EXPIRES_AT)


def source_table(definitions: Definitions) -> TableDefinition:
    """The source table as it is created where it does not exist yet."""
    return TableDefinition(definitions.source.keys, stream_view_type=STREAM_VIEW_TYPE)


def target_tables(definitions: Definitions) -> dict[str, TableDefinition]:
    """The target tables by name; aggregations that share one have the same keys, and it has the indexes of them all."""
    tables: dict[str, TableDefinition] = {}
    for aggregation in definitions.aggregations:
        before = tables.get(aggregation.table)
        keys = tuple((key.name, key.type) for key in aggregation.keys)
        indexes = (*(before.indexes if before else ()), *aggregation.indexes)
        tables[aggregation.table] = TableDefinition(keys, indexes=indexes)
    return tables


def check_scheduled_reconcile(definitions: Definitions) -> None:
    """Refuses a schedule that could never prove anything.

    Raises:
        DeploymentError: every aggregation ignores what is removed.
    """
    if all(one.remove is RemovePolicy.IGNORE for one in definitions.aggregations):
        raise DeploymentError(
            'a scheduled reconcile would prove nothing: every aggregation has remove = "ignore", so that no total can '
            'be computed from the source once an item is removed; define remove = "keep" (a new name, and a backfill)'
        )


def price_of_keeping(definitions: Definitions) -> str | None:
    """What `keep` costs where items are removed, in a sentence; `None` where no aggregation has it."""
    names = ", ".join(one.name for one in definitions.aggregations if one.remove is RemovePolicy.KEEP)
    if not names:
        return None
    return (
        f'remove = "keep" ({names}): an item that is removed costs a second write unit, so on a table whose items '
        'expire every item does; "ignore" costs none, but then no total can be proved any more'
    )


def shortest_ledger_retention(dead_letter_object_days: int = DEAD_LETTER_OBJECT_DAYS) -> int:
    """Days that a page must be kept at least: stream, queue and object, one after another."""
    return STREAM_RETENTION_DAYS + QUEUE_RETENTION_DAYS + dead_letter_object_days


def check_ledger_retention(days: int, dead_letter_object_days: int = DEAD_LETTER_OBJECT_DAYS) -> None:
    """Refuses a ledger that forgets a page while its records can still come back.

    Raises:
        DeploymentError: the retention is too short.
    """
    shortest = shortest_ledger_retention(dead_letter_object_days)
    if days < shortest:
        raise DeploymentError(
            f"the ledger keeps receipts for {days} days, but a dead letter can come back for {shortest} days "
            f"({STREAM_RETENTION_DAYS} in the stream, {QUEUE_RETENTION_DAYS} in the queue, {dead_letter_object_days} "
            "as an object): its replay would be refused; keep receipts longer, or dead-letter objects for a shorter "
            "time"
        )

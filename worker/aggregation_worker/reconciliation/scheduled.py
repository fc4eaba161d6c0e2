"""The scheduled reconcile: `reconciliation.scheduled.lambda_handler`, a Lambda function that only reads.

Compares every total with the source and says how many differ, as the metric `AggregateDrift`. A run that cannot decide
raises and publishes nothing: no value is better than one that looks healthy. For tables that can be read within a
function's life; `aggregator reconcile` has no such limit.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config

from aggregation_worker.aggregations.definitions import (
    DEFINITIONS_FILE,
    load_definitions,
    source_of_stream,
    with_keys_of,
)
from aggregation_worker.reconciliation.observer import OBSERVED_AT_ONCE
from aggregation_worker.reconciliation.reconcile import PATIENCE, ReconcileError, Reconciliation
from aggregation_worker.reconciliation.report import Report, Verdict
from aggregation_worker.reconciliation.scan import SEGMENTS, ScanSource
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.settings import SettingsError
from aggregation_worker.streams.reader import StreamReader
from aggregation_worker.telemetry import Metric, emit, new_logger, new_metrics

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

# Seconds before the invocation's end at which the run stops, so that it can say why.
STOP_BEFORE_END = 15.0
# Seconds assumed where no context tells, as in a call by hand.
_DEFAULT_REMAINING = 900.0

logger = new_logger()
metrics = new_metrics()


class SourceTooLargeError(ReconcileError):
    """The source is too large to be read within a function's life."""


class UndecidedError(ReconcileError):
    """Of some totals it could not be decided whether they are right, and of none that it is wrong."""


@dataclass(frozen=True, slots=True)
class ScheduledSettings:
    """What the deployment sets.

    Attributes:
        aggregations_file: `AGGREGATIONS_FILE`, the definitions file; default: the bundled one.
        ledger_table: `LEDGER_TABLE`.
        stream_arn: `SOURCE_STREAM_ARN`, the source table's stream.
        table_prefix: `TABLE_PREFIX`, see `settings`.
        max_source_bytes: `MAX_SOURCE_BYTES`, the largest source table that is tried; 0 for no limit (default).
    """

    aggregations_file: Path
    ledger_table: str
    stream_arn: str
    max_source_bytes: int
    table_prefix: str = ""


def read_scheduled_settings(environment: Mapping[str, str]) -> ScheduledSettings:
    """Reads the settings.

    Raises:
        SettingsError: a variable is missing or cannot be used.
    """
    missing = [name for name in ("LEDGER_TABLE", "SOURCE_STREAM_ARN") if not environment.get(name)]
    if missing:
        raise SettingsError(f"missing environment variables: {', '.join(missing)}")
    limit = environment.get("MAX_SOURCE_BYTES") or "0"
    if not (limit.isascii() and limit.isdecimal()):
        raise SettingsError(f"MAX_SOURCE_BYTES must be a whole number of bytes, not {limit!r}")
    return ScheduledSettings(
        Path(environment.get("AGGREGATIONS_FILE") or DEFINITIONS_FILE),
        environment["LEDGER_TABLE"],
        environment["SOURCE_STREAM_ARN"],
        int(limit),
        environment.get("TABLE_PREFIX", ""),
    )


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:  # noqa: ARG001 - a schedule says nothing
    """Compares every total with the source.

    Args:
        event: EventBridge's; not used.
        context: Lambda's context; only the remaining time and the request id are used.

    Returns:
        How many aggregates there are, and how many have which verdict.

    Raises:
        SettingsError, DefinitionError, CatalogueError: the deployment is at fault.
        SourceTooLargeError, OutOfTimeError, UndecidedError: nothing is known of the totals, or of some.
        StreamGapError, StreamViewTypeError, ClientError, BotoCoreError: source, stream or totals cannot be read.
    """
    logger.append_keys(request_id=getattr(context, "aws_request_id", None))
    tell = getattr(context, "get_remaining_time_in_millis", None)
    remaining = tell() / 1000 if callable(tell) else _DEFAULT_REMAINING
    end = time.monotonic() + remaining - min(STOP_BEFORE_END, remaining / 4)
    try:
        report = reconcile(
            read_scheduled_settings(os.environ),
            boto3.client("dynamodb", config=_config()),
            boto3.client("dynamodbstreams", config=_config()),
            seconds_left=lambda: end - time.monotonic(),
        )
        counts = {verdict.value: report.count(verdict) for verdict in Verdict}
        # No keys: they are taken from items, whose contents do not belong into a log.
        logger.info(
            "reconciled",
            aggregates=report.aggregates,
            items=report.items,
            seconds=round(report.seconds, 1),
            verdicts=counts,
            hints=report.hints,
        )
        _check_decided(report)
    except Exception:
        logger.exception("nothing is known of the totals, or not of all")
        raise
    emit(metrics, {Metric.AGGREGATE_DRIFT: report.drifted})
    return {"aggregates": report.aggregates, "items": report.items, "verdicts": counts}


def _check_decided(report: Report) -> None:
    """A drift that was found is told whatever else is open; without one, what is open must not look healthy."""
    if report.drifted or report.is_decided:
        return
    if report.undecided:
        raise UndecidedError(
            f"of {report.undecided} of {report.aggregates} totals it could not be decided whether they are right: the "
            "worker is behind, or they changed all the time; see aggregator status, or run aggregator reconcile"
        )
    if report.left_out:
        raise UndecidedError("not all aggregations can be compared: " + "; ".join(report.hints))
    raise UndecidedError('nothing could be proved: every aggregation ignores what is removed (remove = "ignore")')


def reconcile(
    settings: ScheduledSettings,
    client: "DynamoDBClient",
    streams: "DynamoDBStreamsClient",
    *,
    seconds_left: Callable[[], float],
    patience: float = PATIENCE,
) -> Report:
    """One run, over all aggregations, from now on in the stream.

    Raises:
        SourceTooLargeError: the table is larger than the limit; nothing was read of it.
    """
    definitions = load_definitions(
        settings.aggregations_file, source_of_stream(settings.stream_arn), settings.table_prefix
    )
    table = definitions.source.table
    described = client.describe_table(TableName=table)["Table"]
    definitions = with_keys_of(definitions, described)
    size = described.get("TableSizeBytes", 0)
    if settings.max_source_bytes and size > settings.max_source_bytes:
        raise SourceTooLargeError(
            f"table {table} has {size:,} bytes, more than the {settings.max_source_bytes:,} that can be read within a "
            "function's life: turn the scheduled reconcile off, and run aggregator reconcile on a machine"
        )
    # Lambda has one folder that can be written to; the spool's file there goes with the process, however that ends.
    os.environ.setdefault("SQLITE_TMPDIR", tempfile.gettempdir())
    with ThreadPoolExecutor(OBSERVED_AT_ONCE, thread_name_prefix="observation") as executor, Spool(None) as spool:
        return Reconciliation(
            client=client,
            definitions=definitions,
            aggregations=definitions.aggregations,
            ledger_table=settings.ledger_table,
            items=ScanSource(client, table, segments=SEGMENTS),
            reader=StreamReader(streams, settings.stream_arn, "LATEST"),
            executor=executor,
            patience=patience,
            seconds_left=seconds_left,
        ).run(spool)


def _config() -> Config:
    return Config(
        retries={"mode": "standard", "total_max_attempts": 5},
        connect_timeout=2,
        read_timeout=5,
        max_pool_connections=OBSERVED_AT_ONCE + SEGMENTS,
    )

"""The Lambda function: `aggregation_worker.handler.lambda_handler`.

Gives Lambda's event and deadline to `batch`, turns the outcomes into Lambda's answer, and keeps what lives as long as
the process: clients, threads and checked settings.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.aggregations.definitions import load_definitions, source_of_stream
from aggregation_worker.batch import REPORT_OUTCOMES, BatchResult, RecordOutcome, process
from aggregation_worker.dead_letters import DeadLetterQueue
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.catalogue import register
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT, Committer, Deadline
from aggregation_worker.ledger.failures import Throttle
from aggregation_worker.ledger.writes import Add, Archive, Late
from aggregation_worker.settings import Settings, SettingsError, read_settings
from aggregation_worker.streams.records import created_at_of, records_of, sequence_number_of
from aggregation_worker.telemetry import Metric, emit, new_logger, new_metrics

# Seconds. A request that has no answer by then is given up and sent again; DynamoDB answers in milliseconds.
CONNECT_TIMEOUT = 1
READ_TIMEOUT = 3

# Seconds before the invocation's end: no request is sent that could still be without an answer when the invocation
# ends, and a little is kept for the answer to Lambda. A function with a short timeout gives up these parts of it.
STOP_SENDING = CONNECT_TIMEOUT + READ_TIMEOUT + 1.0
STOP_WAITING = 1.0
_STOP_SENDING_PART = 1 / 4
_STOP_WAITING_PART = 1 / 8
# Seconds that a batch which fails as a whole is held before it is given back to the mapping, or half of what is left of
# the invocation. An operator must act, and until then each attempt fails within milliseconds: bisected down to single
# records, these would use up their retries one after another within moments, and go to the dead-letter bucket. So held,
# the retries outlast the records (`maximum_retry_attempts` in `deployment.settings`).
FAILURE_PAUSE = 30.0
# Milliseconds assumed where there is no context, as in a call by hand.
_DEFAULT_REMAINING = 60_000

T = TypeVar("T")

logger = new_logger()
metrics = new_metrics()


class ParkingError(WorkerError):
    """A record without a sequence number could not be parked: the whole batch must fail."""


@dataclass(frozen=True, slots=True)
class Worker:
    """All that lives as long as the process."""

    definitions: Definitions
    committer: Committer
    dead_letters: DeadLetterQueue


def lambda_handler(event: Any, context: Any) -> dict[str, Any]:
    """Counts one batch of stream records.

    Args:
        event: what Lambda delivers from a DynamoDB stream.
        context: Lambda's context; only the remaining time and the request id are used.

    Returns:
        `batchItemFailures`: the sequence number of every record that must be delivered again. A replay asks for
        `outcomes` too (`REPORT_OUTCOMES`): one `RecordOutcome` a record, in their order.

    Raises:
        SettingsError, DefinitionError, CatalogueError, UnexpectedEventError, StreamViewTypeError, CommitError,
        ParkingError, ClientError, BotoCoreError: the deployment is at fault; nothing is lost, the whole batch is
        delivered again.
    """
    return handled(event, context)[0]


def handled(event: Any, context: Any) -> tuple[dict[str, Any], BatchResult]:
    """As `lambda_handler`; with the answer comes what became of the batch."""
    logger.append_keys(request_id=getattr(context, "aws_request_id", None))
    received = len(event["Records"]) if isinstance(event, dict) and isinstance(event.get("Records"), list) else 0
    counts = {Metric.RECORDS_RECEIVED: float(received), Metric.RECORDS_RETRIED: float(received)}
    deadline = deadline_of(context)
    try:
        records = records_of(event)
        counts |= _counted_up_to(event, records, [0])
        worker = _worker(read_settings(os.environ))
        result = process(records, worker.definitions, worker.committer, worker.dead_letters, deadline)
        counts = _counts(result) | _counted_up_to(event, records, result.indexes(RecordOutcome.RETRIED))
        _log(result, records)
        return _answer(event, result, records), result
    except Exception:
        logger.exception("the batch failed as a whole and will be delivered again")
        if received and event.get(REPORT_OUTCOMES) is not True:  # a replay, or a call by hand, has no retries to spare
            time.sleep(max(0.0, min(FAILURE_PAUSE, deadline.seconds_left() / 2)))
        raise
    finally:
        emit(metrics, counts)


def deadline_of(context: Any) -> Deadline:
    """The invocation's deadline, with the margins that this function keeps before it."""
    ask = getattr(context, "get_remaining_time_in_millis", None)
    remaining = ask() / 1000 if callable(ask) else _DEFAULT_REMAINING / 1000
    end = time.monotonic() + remaining
    return Deadline(
        seconds_left=lambda: end - time.monotonic(),
        stop_sending=min(STOP_SENDING, remaining * _STOP_SENDING_PART),
        stop_waiting=min(STOP_WAITING, remaining * _STOP_WAITING_PART),
    )


@lru_cache(maxsize=1)
def _worker(settings: Settings) -> Worker:
    """Made at the first invocation and kept; an error is not kept, so the next invocation tries again."""
    definitions = load_definitions(
        settings.aggregations_file, source_of_stream(settings.source_stream_arn), settings.table_prefix
    )
    if settings.ledger_table in {definitions.source.table, *(entry.table for entry in definitions.aggregations)}:
        raise SettingsError(f"LEDGER_TABLE is {settings.ledger_table!r}, which the definitions use for another table")
    # Retries are the committer's: it knows the deadline, and which errors mean what.
    config = _config(total_max_attempts=1)
    client = boto3.client("dynamodb", config=config)
    register(
        boto3.client("dynamodb", config=_config(total_max_attempts=4)), settings.ledger_table, definitions.aggregations
    )
    executor = ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="commit")
    return Worker(
        definitions,
        Committer(client, settings.ledger_table, settings.ledger_retention_days, executor),
        DeadLetterQueue(
            settings.dead_letter_queue_url,
            settings.dead_letter_bucket,
            # What could not be parked comes again; a second try could outlast the invocation.
            sqs=_once(lambda: boto3.client("sqs", config=_config(total_max_attempts=1))),
            s3=_once(lambda: boto3.client("s3", config=_config(total_max_attempts=1))),
        ),
    )


def _config(total_max_attempts: int) -> Config:
    return Config(
        retries={"mode": "standard", "total_max_attempts": total_max_attempts},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=MAX_IN_FLIGHT,
        # Botocore would walk every request of 100 actions, a quarter of its processor time, to find what DynamoDB would
        # refuse as well.
        parameter_validation=False,
    )


def _once(make: Callable[[], T]) -> Callable[[], T]:
    return cache(make)


_WRITES = {Add: Metric.ROW_ADDS, Archive: Metric.ROW_ARCHIVES, Late: Metric.LATE_WRITES}
_THROTTLES = {
    Throttle.KEY: Metric.THROTTLED_BY_KEY,
    Throttle.TABLE: Metric.THROTTLED_BY_TABLE,
    Throttle.ACCOUNT: Metric.THROTTLED_BY_ACCOUNT,
    Throttle.UNKNOWN: Metric.THROTTLED_OTHERWISE,
}


def _counts(result: BatchResult) -> dict[Metric, float]:
    by_outcome = {
        Metric.RECORDS_APPLIED: RecordOutcome.APPLIED,
        Metric.RECORDS_DUPLICATE: RecordOutcome.DUPLICATE,
        Metric.RECORDS_NOT_COUNTED: RecordOutcome.NOT_COUNTED,
        Metric.RECORDS_NOTICED: RecordOutcome.NOTICED,
        Metric.RECORDS_PARKED: RecordOutcome.PARKED,
        Metric.RECORDS_RETRIED: RecordOutcome.RETRIED,
    }
    counts: dict[Metric, float] = {Metric.RECORDS_RECEIVED: len(result.outcomes)}
    counts |= {metric: result.outcomes.count(outcome) for metric, outcome in by_outcome.items()}
    commit = result.commit
    counts |= {metric: commit.writes[kind] for kind, metric in _WRITES.items()}
    counts |= {metric: commit.throttled[throttle] for throttle, metric in _THROTTLES.items()}
    counts |= {Metric.WRITE_CONFLICTS: commit.conflicts, Metric.RECEIPTS_DIFFER: len(commit.differing)}
    if result.commit.oldest_lag is not None:
        counts[Metric.APPLY_LAG] = result.commit.oldest_lag
    return counts


def _counted_up_to(event: dict[str, Any], records: list[Any], retried: list[int]) -> dict[Metric, float]:
    """The creation of the first record that comes again, or else of the last one; a replay tells nothing of a shard."""
    if not records or event.get(REPORT_OUTCOMES) is True:
        return {}
    created_at = created_at_of(records[min(retried, default=-1)])
    return {} if created_at is None else {Metric.COUNTED_UP_TO: created_at}


def _log(result: BatchResult, records: list[Any]) -> None:
    """One line a batch, and one for each record of which there is something to tell; never an item's contents."""
    for index, reasons in sorted(result.reasons.items()):
        logger.warning(
            "record needs attention",
            sequence_number=sequence_number_of(records[index]),
            outcome=result.outcomes[index],
            reasons=reasons,
        )
    logger.info(
        "batch counted",
        outcomes={outcome.value: result.outcomes.count(outcome) for outcome in RecordOutcome},
        writes={metric.value: result.commit.writes[kind] for kind, metric in _WRITES.items()},
        conflicts=result.commit.conflicts,
        throttled={throttle.value: count for throttle, count in result.commit.throttled.items()},
        differing_receipts=len(result.commit.differing),
    )


def _answer(event: dict[str, Any], result: BatchResult, records: list[Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"batchItemFailures": _failures(result, records)}
    if event.get(REPORT_OUTCOMES) is True:
        answer["outcomes"] = [outcome.value for outcome in result.outcomes]
    return answer


def _failures(result: BatchResult, records: list[Any]) -> list[dict[str, str]]:
    failures = []
    for index in result.indexes(RecordOutcome.RETRIED):
        sequence_number = sequence_number_of(records[index])
        if sequence_number is None:
            raise ParkingError(f"a record without a sequence number could not be parked: {result.reasons.get(index)}")
        failures.append({"itemIdentifier": sequence_number})
    return failures

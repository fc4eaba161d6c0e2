"""How Lambda treats one batch of a stream: retries, checkpoints, bisecting, giving up.

The rules are those of "Process DynamoDB records with Lambda", "Configuring partial batch response with DynamoDB and
Lambda" and "Retain discarded records for a DynamoDB event source", AWS Lambda developer guide, and of runs observed on
AWS. Does no I/O: calling the function, the clock and the pause are handed in.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.errors import WorkerError

# The pause before a retry doubles this often.
_PAUSE_DOUBLINGS = 6


@dataclass(frozen=True, slots=True)
class PolledRecord:
    """A stream record on its way to the function.

    Attributes:
        event: the record as Lambda delivers it.
        sequence_number: order within the shard.
        created_at: `ApproximateCreationDateTime`, epoch seconds.
        size_bytes: length of the record's JSON text.
    """

    event: Mapping[str, Any]
    sequence_number: int
    created_at: float
    size_bytes: int

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> "PolledRecord":
        """The record of a Lambda event's entry."""
        change = event["dynamodb"]
        return cls(
            event,
            int(change["SequenceNumber"]),
            float(change["ApproximateCreationDateTime"]),
            len(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()),
        )


Batch = tuple[PolledRecord, ...]


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the function, and what the mapping makes of it.

    Attributes:
        records: what the function was given.
        attempt: 1 for the first call with exactly these records, 2 for the first retry.
        request_id: the `aws_request_id` of its context.
        duration_ms: how long the function ran.
        done: how many records, counted from the first, need not be delivered again.
        error: why the whole batch counts as failed, else `None`.
        function_error: the function raised or timed out, as opposed to returning a response.
    """

    records: Batch
    attempt: int
    request_id: str
    duration_ms: float
    done: int
    error: str | None = None
    function_error: bool = False

    @property
    def succeeded(self) -> bool:
        """Whether every record is done."""
        return self.done == len(self.records)


class DiscardCondition(StrEnum):
    """Why Lambda gives up on records, as the on-failure destination's document says it."""

    RETRY_ATTEMPTS_EXHAUSTED = "RetryAttemptsExhausted"
    RECORD_AGE_EXCEEDED = "RecordAgeExceeded"


@dataclass(frozen=True, slots=True)
class DiscardedBatch:
    """Records that are delivered no more.

    Attributes:
        records: what is given up.
        condition: why.
        invoke_count: how often the function was called with exactly these records.
        last_invocation: the last such call, if there was one.
    """

    records: Batch
    condition: DiscardCondition
    invoke_count: int
    last_invocation: Invocation | None


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch, or what is left of one, with the calls it has had. A split starts a new count."""

    records: Batch
    last_invocation: Invocation | None = None

    @property
    def attempts(self) -> int:
        return self.last_invocation.attempt if self.last_invocation else 0


def deliver(
    batch: Sequence[PolledRecord],
    settings: MappingSettings,
    invoke: Callable[[Batch, int], Invocation],
    *,
    now: Callable[[], float],
    pause: Callable[[float], None],
) -> Iterator[DiscardedBatch]:
    """Calls the function until every record of `batch` is done or discarded, and yields what is discarded.

    Args:
        batch: records of one shard, in order.
        settings: the mapping's.
        invoke: calls the function with these records; the second argument is the attempt, from 1.
        now: epoch seconds.
        pause: waits so many seconds before a retry. It, or `invoke`, may raise to end the delivery early.
    """
    pending = [_Part(tuple(batch))]
    while pending:
        part = pending.pop()
        oldest = now() - settings.oldest_delivered_seconds
        too_old = tuple(record for record in part.records if record.created_at < oldest)
        if too_old:
            yield DiscardedBatch(too_old, DiscardCondition.RECORD_AGE_EXCEEDED, part.attempts, part.last_invocation)
            part = _Part(tuple(record for record in part.records if record.created_at >= oldest), part.last_invocation)
        if not part.records:
            continue

        invocation = invoke(part.records, part.attempts + 1)

        if invocation.succeeded:
            continue
        if invocation.done:
            pending.append(_Part(part.records[invocation.done :]))
        elif settings.bisect_batch_on_function_error and len(part.records) > 1:
            middle = len(part.records) // 2
            pending += [_Part(part.records[middle:]), _Part(part.records[:middle])]
        elif settings.maximum_retry_attempts != -1 and invocation.attempt > settings.maximum_retry_attempts:
            yield DiscardedBatch(
                part.records, DiscardCondition.RETRY_ATTEMPTS_EXHAUSTED, invocation.attempt, invocation
            )
        else:
            pause(settings.retry_pause_seconds * 2 ** min(invocation.attempt - 1, _PAUSE_DOUBLINGS))
            pending.append(_Part(part.records, invocation))


class BatchFailedError(WorkerError):
    """A response to `ReportBatchItemFailures` that makes Lambda take the whole batch as failed."""


def records_done(response: object, records: Batch) -> int:
    """How many records, from the first, a response reports as done: all before the lowest one reported as failed.

    Lambda takes an empty or missing list, `null` and an empty response as complete success, and an empty, missing or
    `null` `itemIdentifier` as complete failure ("Configuring partial batch response with DynamoDB and Lambda"). Any
    other response, or one that names a record that is not in the batch, also fails here.

    Raises:
        BatchFailedError: the whole batch counts as failed; the message says why.
    """
    if response is None:
        return len(records)
    if not isinstance(response, dict):
        raise BatchFailedError(f"the response is not a JSON object: {_shorten(response)}")
    failures = response.get("batchItemFailures")
    if failures is None:
        return len(records)
    if not isinstance(failures, list):
        raise BatchFailedError(f"batchItemFailures is not a list: {_shorten(failures)}")
    positions = {record.sequence_number: position for position, record in enumerate(records)}
    reported = [_reported_sequence_number(failure) for failure in failures]
    for sequence_number in reported:
        if sequence_number not in positions:
            raise BatchFailedError(f"itemIdentifier {sequence_number} is not in the batch")
    if not reported:
        return len(records)
    return positions[min(reported)]


def _reported_sequence_number(failure: object) -> int:
    if not isinstance(failure, dict) or "itemIdentifier" not in failure:
        raise BatchFailedError(f"an entry of batchItemFailures has no itemIdentifier: {_shorten(failure)}")
    identifier = failure["itemIdentifier"]
    if not isinstance(identifier, str) or not identifier:
        raise BatchFailedError("an itemIdentifier is empty or null")
    if not (identifier.isascii() and identifier.isdigit()):
        raise BatchFailedError(f"itemIdentifier {_shorten(identifier)} is not a sequence number")
    return int(identifier)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

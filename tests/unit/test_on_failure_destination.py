"""The document that an S3 on-failure destination receives."""

import json
import re
from typing import Any

import pytest

from aggregation_worker.local.delivery import DiscardCondition, DiscardedBatch, Invocation
from aggregation_worker.local.on_failure_destination import OnFailureDestination
from tests.stream_fakes import CREATED_AT, STREAM_ARN, polled_record

FUNCTION_ARN = "arn:aws:lambda:us-east-1:123456789012:function:totals"
SHARD_ID = "shardId-00000001573689847184-864758bb"
NOW = CREATED_AT + 3661.25  # 2024-07-15T10:41:01.250Z


class Bucket:
    """An S3 client that keeps what it is given."""

    def __init__(self) -> None:
        self.puts: list[dict[str, Any]] = []

    def put_object(self, **request: Any) -> None:
        self.puts.append(request)


def delivered(discarded: DiscardedBatch) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request to S3 and the document in it."""
    bucket: Any = Bucket()
    destination = OnFailureDestination(bucket, "dead-letters", FUNCTION_ARN, STREAM_ARN, "a1b2c3d4-mapping")
    key = destination.deliver(discarded, SHARD_ID, NOW)
    assert bucket.puts[0]["Key"] == key
    return bucket.puts[0], json.loads(bucket.puts[0]["Body"])


def exhausted(*, function_error: bool) -> DiscardedBatch:
    records = (polled_record(9), polled_record(10, created_at=CREATED_AT + 2))
    last = Invocation(records, 3, "request-3", 1.0, 0, error="boom", function_error=function_error)
    return DiscardedBatch(records, DiscardCondition.RETRY_ATTEMPTS_EXHAUSTED, 3, last)


def test_key__is_that_of_lambda() -> None:
    request, _ = delivered(exhausted(function_error=True))

    assert request["Bucket"] == "dead-letters"
    assert request["ContentType"] == "application/octet-stream"
    assert re.fullmatch(
        rf"aws/lambda/a1b2c3d4-mapping/{SHARD_ID}/2024/07/15/2024-07-15T10\.41\.01-[0-9a-f]{{8}}-[0-9a-f-]{{27}}",
        request["Key"],
    )


def test_retries_exhausted__document_holds_the_whole_event() -> None:
    discarded = exhausted(function_error=True)

    _, document = delivered(discarded)

    payload = document.pop("payload")
    assert document == {
        "requestContext": {
            "requestId": "request-3",
            "functionArn": FUNCTION_ARN,
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 3,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2024-07-15T10:41:01.250Z",
        "DDBStreamBatchInfo": {
            "shardId": SHARD_ID,
            "startSequenceNumber": "000000000000000000009",
            "endSequenceNumber": "000000000000000000010",
            "approximateArrivalOfFirstRecord": "2024-07-15T09:40:00Z",
            "approximateArrivalOfLastRecord": "2024-07-15T09:40:02Z",
            "batchSize": 2,
            "streamArn": STREAM_ARN,
        },
    }
    assert isinstance(payload, str)
    assert json.loads(payload) == {"Records": [record.event for record in discarded.records]}


def test_partial_failures_exhausted__no_function_error() -> None:
    _, document = delivered(exhausted(function_error=False))

    assert document["responseContext"]["functionError"] is None


@pytest.mark.parametrize("invoked", [True, False])
def test_record_age_exceeded__document_has_no_response_context(invoked: bool) -> None:
    records = (polled_record(9),)
    last = Invocation(records, 1, "request-1", 1.0, 0, error="boom", function_error=True) if invoked else None

    _, document = delivered(DiscardedBatch(records, DiscardCondition.RECORD_AGE_EXCEEDED, int(invoked), last))

    assert "responseContext" not in document
    assert document["requestContext"]["condition"] == "RecordAgeExceeded"
    assert document["requestContext"]["approximateInvokeCount"] == int(invoked)
    assert document["requestContext"]["requestId"]
    assert json.loads(document["payload"])["Records"][0]["eventID"] == "event-9"

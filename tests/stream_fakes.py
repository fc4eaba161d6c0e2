"""Stream records and a DynamoDB Streams client for tests that need no server."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.local.delivery import Batch, PolledRecord

STREAM_ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/Order_by_item/stream/2024-07-15T00:00:00.000"
CREATED_AT = 1_721_036_400  # 2024-07-15T09:40:00Z
# A mapping that is created without any setting.
AWS_DEFAULTS = MappingSettings(
    batch_size=100,
    maximum_batching_window_seconds=0,
    maximum_retry_attempts=-1,
    maximum_record_age_seconds=-1,
    bisect_batch_on_function_error=False,
    report_batch_item_failures=False,
)


def get_records_record(
    sequence_number: int,
    *,
    item: str = "a",
    event_name: str = "INSERT",
    created_at: float = CREATED_AT,
    padding: int = 0,
) -> dict[str, Any]:
    """A record as boto3's `get_records` returns it, `padding` bytes longer than it need be."""
    return {
        "eventID": f"event-{sequence_number}",
        "eventName": event_name,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": datetime.fromtimestamp(created_at, UTC),
            "Keys": {"orderid": {"S": item}},
            "NewImage": {"orderid": {"S": item}, "note": {"S": "x" * padding}},
            "SequenceNumber": f"{sequence_number:021d}",
            "SizeBytes": 26,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
    }


def polled_record(sequence_number: int, *, created_at: float = CREATED_AT, padding: int = 0) -> PolledRecord:
    """A record as the mapping holds it."""
    event = get_records_record(sequence_number, padding=padding)
    event["dynamodb"]["ApproximateCreationDateTime"] = created_at
    return PolledRecord.of(event | {"eventSourceARN": STREAM_ARN})


def polled_records(*sequence_numbers: int) -> Batch:
    """A batch of such records."""
    return tuple(polled_record(number) for number in sequence_numbers)


def numbers_of(event: Mapping[str, Any]) -> list[int]:
    """The sequence numbers of a Lambda event."""
    return [int(record["dynamodb"]["SequenceNumber"]) for record in event["Records"]]


class FakeShard:
    """A shard's records and whether it is closed."""

    def __init__(self, shard_id: str, parent: str | None = None, *, closed: bool = False) -> None:
        self.shard_id = shard_id
        self.parent = parent
        self.closed = closed
        self.trimmed = 0  # records that have left the stream
        self.records: list[dict[str, Any]] = []

    def put(self, *records: dict[str, Any]) -> "FakeShard":
        """Appends records, as writes to the table do."""
        self.records.extend(records)
        return self

    def description(self) -> dict[str, Any]:
        """The shard as DescribeStream lists it."""
        span = {"StartingSequenceNumber": "0" * 21} | ({"EndingSequenceNumber": "9" * 21} if self.closed else {})
        parent = {"ParentShardId": self.parent} if self.parent else {}
        return {"ShardId": self.shard_id, "SequenceNumberRange": span} | parent


class _Exceptions:
    class ExpiredIteratorException(Exception):  # noqa: N818 - boto3's name
        pass

    class TrimmedDataAccessException(Exception):  # noqa: N818 - boto3's name
        pass


class FakeStreamsClient:
    """The calls of a DynamoDB Streams client over `FakeShard`s; its iterators are `shard_id/position/generation`."""

    exceptions = _Exceptions

    def __init__(
        self, *shards: FakeShard, shards_per_page: int = 100, records_per_page: int = 1000, status: str = "ENABLED"
    ) -> None:
        self.shards = {shard.shard_id: shard for shard in shards}
        self.shards_per_page = shards_per_page
        self.records_per_page = records_per_page
        self.iterator_requests: list[tuple[str, str]] = []
        self.limits: list[int] = []
        self.status = status
        self.describe_calls = 0
        self._generation = 0

    def add(self, shard: FakeShard) -> None:
        """A new shard, as after a split."""
        self.shards[shard.shard_id] = shard

    def expire_iterators(self) -> None:
        """Makes every iterator given out so far an expired one."""
        self._generation += 1

    def describe_stream(self, **request: Any) -> dict[str, Any]:
        self.describe_calls += 1
        ids = list(self.shards)
        start = ids.index(request["ExclusiveStartShardId"]) + 1 if "ExclusiveStartShardId" in request else 0
        page = ids[start : start + self.shards_per_page]
        more = {"LastEvaluatedShardId": page[-1]} if start + len(page) < len(ids) else {}
        shards = [self.shards[one].description() for one in page]
        return {"StreamDescription": {"Shards": shards, "StreamStatus": self.status} | more}

    def get_shard_iterator(self, **request: Any) -> dict[str, Any]:
        shard = self.shards[request["ShardId"]]
        kind = request["ShardIteratorType"]
        self.iterator_requests.append((shard.shard_id, kind))
        if kind == "TRIM_HORIZON":
            position = shard.trimmed
        elif kind == "LATEST":
            position = len(shard.records)
        else:
            numbers = [record["dynamodb"]["SequenceNumber"] for record in shard.records]
            position = numbers.index(request["SequenceNumber"]) + 1
            if position < shard.trimmed:
                raise self.exceptions.TrimmedDataAccessException
        return {"ShardIterator": f"{shard.shard_id}/{position}/{self._generation}"}

    def get_records(self, **request: Any) -> dict[str, Any]:
        shard_id, position_text, generation = request["ShardIterator"].split("/")
        shard, position = self.shards[shard_id], int(position_text)
        self.limits.append(request["Limit"])
        if int(generation) != self._generation:
            raise self.exceptions.ExpiredIteratorException
        if position < shard.trimmed:
            raise self.exceptions.TrimmedDataAccessException
        page = shard.records[position : position + min(request["Limit"], self.records_per_page)]
        end = position + len(page)
        if shard.closed and end == len(shard.records):
            return {"Records": page}
        return {"Records": page, "NextShardIterator": f"{shard_id}/{end}/{self._generation}"}

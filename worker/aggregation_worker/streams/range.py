"""Reads a range of sequence numbers back from a stream, for a dead letter that only points there.

Works as long as the stream keeps the records: 24 hours.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.aws_errors import code_of
from aggregation_worker.errors import WorkerError
from aggregation_worker.streams.records import from_get_records

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

# GetRecords can return empty pages in the middle of a shard ("GetRecords", DynamoDB Streams API reference). An open
# shard never ends, so after this many empty pages in a row the end of the range is taken as not there.
_MAX_PAGES_WITHOUT_RECORDS = 1_000


class StreamRangeError(WorkerError):
    """The range cannot be read whole; nothing of it may be taken as replayed."""


def read_range(
    client: "DynamoDBStreamsClient", stream_arn: str, shard_id: str, first: str, last: str
) -> list[dict[str, Any]]:
    """All records from `first` to `last`, both included, in the shape in which Lambda delivers them.

    Sequence numbers are compared as integers: their length varies inside one stream.

    Raises:
        StreamRangeError: the stream no longer holds the beginning, or ended before the end was reached.
    """
    start, end = int(first), int(last)
    records = []
    try:
        for record in _from(client, stream_arn, shard_id, first):
            number = int(record["dynamodb"]["SequenceNumber"])
            if number > end:
                raise StreamRangeError(f"shard {shard_id} has no record {last}: the range's end was not reached")
            if number >= start:
                records.append(from_get_records(record, stream_arn))
            if number == end:
                return records
    except ClientError as error:
        if code_of(error) in ("TrimmedDataAccessException", "ResourceNotFoundException", "ExpiredIteratorException"):
            raise StreamRangeError(
                f"the stream no longer holds records {first} to {last} (it keeps them for 24 hours): "
                "reconcile the totals with the source"
            ) from error
        raise
    raise StreamRangeError(f"shard {shard_id} ended before record {last}: the range's end was not reached")


def _from(client: "DynamoDBStreamsClient", stream_arn: str, shard_id: str, first: str) -> Iterator[Any]:
    iterator: str | None = client.get_shard_iterator(
        StreamArn=stream_arn, ShardId=shard_id, ShardIteratorType="AT_SEQUENCE_NUMBER", SequenceNumber=first
    ).get("ShardIterator")
    empty = 0
    while iterator is not None and empty < _MAX_PAGES_WITHOUT_RECORDS:
        page = client.get_records(ShardIterator=iterator)
        empty = 0 if page["Records"] else empty + 1
        yield from page["Records"]
        iterator = page.get("NextShardIterator")

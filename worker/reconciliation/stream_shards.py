"""Reads a DynamoDB stream: its shards, parents before children, page by page through `GetRecords`.

Source: "Change data capture for DynamoDB Streams", Amazon DynamoDB developer guide. Knows nothing of batches or
functions.
"""

import logging
import time
from typing import TYPE_CHECKING, Any, Literal

from worker.local.mapping_settings import StartingPosition

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from mypy_boto3_dynamodbstreams.type_defs import GetShardIteratorInputTypeDef

logger = logging.getLogger(__name__)

# A new shard shows when its parent ends, and then it is looked for at once; this is for one that shows otherwise.
_DESCRIBE_EVERY_SECONDS = 5.0
# Most records of one GetRecords page (API reference).
MAX_PAGE_RECORDS = 1000


class Shard:
    """One shard and how far it has been read."""

    def __init__(
        self, client: "DynamoDBStreamsClient", stream_arn: str, shard_id: str, start: StartingPosition
    ) -> None:
        self.shard_id = shard_id
        self.exhausted = False
        self._client = client
        self._stream_arn = stream_arn
        self._start: Literal["TRIM_HORIZON", "LATEST"] = start
        self._last_sequence_number: str | None = None
        self._iterator = self._new_iterator()

    def read(self, limit: int) -> list[dict[str, Any]]:
        """The next records as `GetRecords` returns them, at most `limit`; an empty page is no end.

        Sets `exhausted` once the shard is closed and read to its end. An iterator that has expired (after 15 minutes)
        is replaced by one behind the last record read. When the records there have been trimmed, reading goes on with
        the oldest that is left.
        """
        if self.exhausted:
            return []
        try:
            page = self._client.get_records(ShardIterator=self._iterator, Limit=max(1, min(limit, MAX_PAGE_RECORDS)))
        except self._client.exceptions.ExpiredIteratorException:
            self._iterator = self._new_iterator()
            return []
        except self._client.exceptions.TrimmedDataAccessException:
            self._restart_at_the_horizon()
            self._iterator = self._new_iterator()
            return []
        records: list[dict[str, Any]] = [dict(record) for record in page["Records"]]
        if records:
            self._last_sequence_number = records[-1]["dynamodb"]["SequenceNumber"]
        next_iterator = page.get("NextShardIterator")
        if next_iterator:
            self._iterator = next_iterator
        else:
            self.exhausted = True
        return records

    def _new_iterator(self) -> str:
        request: GetShardIteratorInputTypeDef = {
            "StreamArn": self._stream_arn,
            "ShardId": self.shard_id,
            "ShardIteratorType": self._start,
        }
        if self._last_sequence_number is not None:
            request["ShardIteratorType"] = "AFTER_SEQUENCE_NUMBER"
            request["SequenceNumber"] = self._last_sequence_number
        try:
            return self._client.get_shard_iterator(**request)["ShardIterator"]
        except self._client.exceptions.TrimmedDataAccessException:
            self._restart_at_the_horizon()
            request = {
                "StreamArn": self._stream_arn,
                "ShardId": self.shard_id,
                "ShardIteratorType": "TRIM_HORIZON",
            }
            return self._client.get_shard_iterator(**request)["ShardIterator"]

    def _restart_at_the_horizon(self) -> None:
        logger.warning(
            "shard %s: records that were not read yet have left the stream; reading goes on with the oldest left",
            self.shard_id,
        )
        self._start = "TRIM_HORIZON"
        self._last_sequence_number = None


class StreamShards:
    """The shards of a stream that can be read now.

    A shard becomes readable when its parent is finished, or is no longer listed.
    """

    def __init__(self, client: "DynamoDBStreamsClient", stream_arn: str, starting_position: StartingPosition) -> None:
        self._client = client
        self._stream_arn = stream_arn
        self._starting_position = starting_position
        self._readable: dict[str, Shard] = {}
        self._finished: set[str] = set()
        self._described_at: float | None = None
        self._stale = True

    def readable(self) -> list[Shard]:
        """The shards to read from, after a look at the stream's description where one is due.

        Raises:
            botocore.exceptions.ClientError: there is no such stream.
        """
        now = time.monotonic()
        if (
            self._stale
            or self._described_at is None
            or not self._readable
            or now - self._described_at >= _DESCRIBE_EVERY_SECONDS
        ):
            self._describe(first=self._described_at is None)
            self._described_at = now
            self._stale = False
        return list(self._readable.values())

    def finish(self, shard: Shard) -> None:
        """Takes note that everything in an exhausted shard has been delivered: its children are next."""
        del self._readable[shard.shard_id]
        self._finished.add(shard.shard_id)
        self._stale = True

    def _describe(self, *, first: bool) -> None:
        listed = self._listed_shards()
        if first and self._starting_position == "LATEST":
            # Closed shards hold nothing from now on.
            self._finished = {
                shard["ShardId"]
                for shard in listed.values()
                if "EndingSequenceNumber" in shard.get("SequenceNumberRange", {})
            }
        for shard_id, shard in listed.items():
            parent = shard.get("ParentShardId")
            parent_is_done = parent not in listed or parent in self._finished
            if shard_id in self._readable or shard_id in self._finished or not parent_is_done:
                continue
            # A shard that appears later holds what came after the start, so all of it counts.
            start = self._starting_position if first else "TRIM_HORIZON"
            self._readable[shard_id] = Shard(self._client, self._stream_arn, shard_id, start)

    def _listed_shards(self) -> dict[str, dict[str, Any]]:
        shards: dict[str, dict[str, Any]] = {}
        last_shard_id: str | None = None
        while True:
            page = (
                self._client.describe_stream(StreamArn=self._stream_arn)
                if last_shard_id is None
                else self._client.describe_stream(StreamArn=self._stream_arn, ExclusiveStartShardId=last_shard_id)
            )
            description = page["StreamDescription"]
            shards |= {shard["ShardId"]: dict(shard) for shard in description["Shards"]}
            last_shard_id = description.get("LastEvaluatedShardId")
            if last_shard_id is None:
                return shards

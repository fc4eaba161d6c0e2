"""Reads a DynamoDB stream: its shards, parents before children, page by page through `GetRecords`.

Source: "Change data capture for DynamoDB Streams", Amazon DynamoDB developer guide. Knows nothing of batches,
functions or aggregations.
"""

import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

from aggregation_worker.errors import WorkerError

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from mypy_boto3_dynamodbstreams.type_defs import GetShardIteratorInputTypeDef

logger = logging.getLogger(__name__)

StartingPosition = Literal["TRIM_HORIZON", "LATEST"]

# A new shard shows when its parent ends, and then it is looked for at once; this is for one that shows otherwise.
_DESCRIBE_EVERY_SECONDS = 5.0
# Most records of one GetRecords page (API reference).
MAX_PAGE_RECORDS = 1000


class StreamGapError(WorkerError):
    """The stream cannot be read without a gap, in order; the message says why and what to do."""


class TrimmedError(StreamGapError):
    """Records that were to be read have left the stream (it keeps them for 24 hours)."""


class StreamDisabledError(StreamGapError):
    """The stream is disabled: what is written to the table now is not in it."""


class IncompleteDescriptionError(StreamGapError):
    """The stream's description left out a shard whose child has been read by now."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of `GetRecords`.

    Attributes:
        records: as the API returns them; none does not mean the end.
        asked_at: when the request began, by `time.monotonic`.
        server_time: the service's own clock as it answered, in epoch seconds; `None` if the answer does not say.
    """

    records: list[dict[str, Any]]
    asked_at: float
    server_time: float | None


class Shard:
    """One shard and how far it has been read.

    With `refuse_trimmed` records that cannot be read any more raise `TrimmedError`; otherwise reading continues with
    the oldest that is left. At its first answer a shard `at_horizon` may begin with whatever is the oldest by then.
    """

    def __init__(
        self,
        client: "DynamoDBStreamsClient",
        stream_arn: str,
        shard_id: str,
        start: StartingPosition,
        *,
        refuse_trimmed: bool = False,
        at_horizon: bool = False,
    ) -> None:
        self.shard_id = shard_id
        self.exhausted = False
        self._client = client
        self._stream_arn = stream_arn
        self._start: StartingPosition = start
        self._refuse_trimmed = refuse_trimmed
        self._at_horizon = at_horizon
        self._last_sequence_number: str | None = None
        self._iterator = self._new_iterator()

    def read(self, limit: int) -> list[dict[str, Any]]:
        """The next records as `GetRecords` returns them, at most `limit`; an empty page is not the end.

        Sets `exhausted` once the shard is closed and read to its end. An iterator that has expired (after 15 minutes)
        is replaced by one after the last record read. When the records there have been trimmed, reading continues with
        the oldest that is left.

        Raises:
            TrimmedError: records have been trimmed, and the shard refuses that.
        """
        page = self.read_page(limit)
        return [] if page is None else page.records

    def read_page(self, limit: int = MAX_PAGE_RECORDS) -> Page | None:
        """As `read`; `None` where there was no answer, because the iterator had to be replaced.

        Raises:
            TrimmedError: records have been trimmed, and the shard refuses that.
        """
        if self.exhausted:
            return None
        asked_at = time.monotonic()
        try:
            page = self._client.get_records(ShardIterator=self._iterator, Limit=max(1, min(limit, MAX_PAGE_RECORDS)))
        except self._client.exceptions.ExpiredIteratorException:
            if self._refuse_trimmed and self._last_sequence_number is None and self._start == "LATEST":
                raise TrimmedError(
                    f"shard {self.shard_id} was not read for 15 minutes, and its position is lost: run this again"
                ) from None
            self._iterator = self._new_iterator()
            return None
        except self._client.exceptions.TrimmedDataAccessException:
            self._restart_at_the_horizon()
            self._iterator = self._new_iterator()
            return None
        self._at_horizon = False
        records: list[dict[str, Any]] = [dict(record) for record in page["Records"]]
        if records:
            self._last_sequence_number = records[-1]["dynamodb"]["SequenceNumber"]
        next_iterator = page.get("NextShardIterator")
        if next_iterator:
            self._iterator = next_iterator
        else:
            self.exhausted = True
        return Page(records, asked_at, _server_time(page))

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
        if self._refuse_trimmed and not self._at_horizon:
            raise TrimmedError(f"shard {self.shard_id}: records that were not read yet have left the stream")
        logger.warning(
            "shard %s: records that were not read yet have left the stream; reading continues with the oldest left",
            self.shard_id,
        )
        self._start = "TRIM_HORIZON"
        self._last_sequence_number = None


def _server_time(answer: Mapping[str, Any]) -> float | None:
    """The answer's `Date` header, which has whole seconds."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None


class StreamShards:
    """The shards of a stream that can be read now.

    A shard becomes readable when its parent is finished, or is no longer listed. With `refuse_trimmed` a parent that is
    not listed can be one that left the stream only at the first look; later it must be one that is still to be listed,
    since descriptions are late.
    """

    def __init__(
        self,
        client: "DynamoDBStreamsClient",
        stream_arn: str,
        starting_position: StartingPosition,
        *,
        refuse_trimmed: bool = False,
    ) -> None:
        self._client = client
        self._stream_arn = stream_arn
        self._starting_position = starting_position
        self._refuse_trimmed = refuse_trimmed
        self._readable: dict[str, Shard] = {}
        self._finished: set[str] = set()
        self._unread: set[str] = set()
        self._taken_as_trimmed: set[str] = set()
        self._described_at: float | None = None
        self._successors_known_at: float | None = None
        self._stale = True

    @property
    def successors_known_at(self) -> float | None:
        """When the stream was last described whole, by `time.monotonic`; `None` if it has to be described again.

        A description can be late: while a shard is closed but the one that follows it is not listed, more must come
        (the DynamoDB Streams Kinesis adapter, too, asks again then).
        """
        return None if self._stale else self._successors_known_at

    def readable(self, *, describe: bool = False) -> list[Shard]:
        """The shards to read from, after a look at the stream's description where one is due, or asked for.

        Raises:
            botocore.exceptions.ClientError: there is no such stream.
            TrimmedError: a shard has left the stream before it was read, and that is refused.
            IncompleteDescriptionError: a shard appears only after its child, and that is refused (`refuse_trimmed`).
            StreamDisabledError: the stream is disabled, and that is refused.
        """
        now = time.monotonic()
        if (
            describe
            or self._stale
            or self._described_at is None
            or not self._readable
            or now - self._described_at >= _DESCRIBE_EVERY_SECONDS
        ):
            self._describe(now, first=self._described_at is None)
            self._described_at = now
            self._stale = False
        return list(self._readable.values())

    def finish(self, shard: Shard) -> None:
        """Takes note that everything in an exhausted shard has been delivered: its children are next."""
        del self._readable[shard.shard_id]
        self._finished.add(shard.shard_id)
        self._stale = True

    def _describe(self, now: float, *, first: bool) -> None:
        listed, status = self._listed_shards()
        if self._refuse_trimmed and status in ("DISABLING", "DISABLED"):
            raise StreamDisabledError(
                f"stream {self._stream_arn} is disabled, so it does not hold what is written to the table now"
            )
        closed = {
            shard_id
            for shard_id, shard in listed.items()
            if "EndingSequenceNumber" in shard.get("SequenceNumberRange", {})
        }
        if first and self._starting_position == "LATEST":
            # Closed shards hold nothing from now on.
            self._finished = set(closed)
        if self._refuse_trimmed:
            self._check_description(listed.keys())
        for shard_id, shard in listed.items():
            if shard_id in self._readable or shard_id in self._finished:
                continue
            parent = shard.get("ParentShardId")
            if parent is not None and not self._is_done(parent, parent in listed, first=first):
                continue
            # A shard that appears later holds what came after the start, so all of it counts.
            start = self._starting_position if first else "TRIM_HORIZON"
            self._readable[shard_id] = Shard(
                self._client,
                self._stream_arn,
                shard_id,
                start,
                refuse_trimmed=self._refuse_trimmed,
                at_horizon=first and start == "TRIM_HORIZON",
            )
        self._unread = listed.keys() - self._finished - self._readable.keys()
        parents = {shard.get("ParentShardId") for shard in listed.values()}
        without_child = (closed | (self._finished & listed.keys())) - parents
        without_parent = {listed[shard_id].get("ParentShardId") for shard_id in self._unread} - listed.keys()
        self._successors_known_at = None if without_child or without_parent else now

    def _is_done(self, parent: str, listed: bool, *, first: bool) -> bool:
        if parent in self._finished:
            return True
        if listed or (self._refuse_trimmed and not first):
            return False
        self._taken_as_trimmed.add(parent)
        return True

    def _check_description(self, listed: Collection[str]) -> None:
        if lost := self._unread.difference(listed):
            raise TrimmedError(f"shard {min(lost)} has left the stream before it was read")
        if late := self._taken_as_trimmed.intersection(listed):
            raise IncompleteDescriptionError(
                f"shard {min(late)} was not listed before its child was read: run this again"
            )

    def _listed_shards(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        """All shards by their id, and the stream's status."""
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
                return shards, description.get("StreamStatus")

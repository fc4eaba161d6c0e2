"""Follows a whole stream from a position on, and knows when everything written before a moment has been read.

The join of a snapshot with the stream rests on two things that stand here: nothing between the position and a moment is
missed (`StreamGapError` instead), and the moment has been passed for certain (`has_passed`). Knows nothing of
aggregations.
"""

import time
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aggregation_worker.errors import WorkerError
from aggregation_worker.streams.records import from_get_records, stream_of
from aggregation_worker.streams.shards import Page, Shard, StartingPosition, StreamShards

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient

# "Change data capture for DynamoDB Streams", Amazon DynamoDB developer guide: what is older can go at any moment.
RETENTION = timedelta(hours=24)
MARGIN = timedelta(minutes=30)
# Seconds after its write within which a record appears in the stream.
STREAM_LAG = 10.0


class HistoryLostError(WorkerError):
    """The stream may no longer hold all records from the cut on, so nothing exact can be said about it."""


class _Progress:
    """How far one shard is known to have been read, as a moment by `time.monotonic`."""

    def __init__(self, empty_pages: int) -> None:
        self.passed = float("-inf")
        self.due_at = float("-inf")
        self._empty_since: deque[float] = deque(maxlen=empty_pages)

    def note(self, page: Page, stream_lag: float) -> None:
        """Takes note of a page.

        Several empty pages in a row, or a record created later than a moment, show that the moment has passed; a
        record may appear up to `stream_lag` seconds after it was written.
        """
        if not page.records:
            self._empty_since.append(page.asked_at)
            if len(self._empty_since) == self._empty_since.maxlen:
                self.passed = max(self.passed, self._empty_since[0] - stream_lag)
            return
        self._empty_since.clear()
        created: datetime | None = page.records[-1]["dynamodb"].get("ApproximateCreationDateTime")
        if created is not None:
            now = time.time() if page.server_time is None else page.server_time
            # Never later than the request, however the clocks differ.
            # Both are whole seconds.
            age = max(0.0, now - created.timestamp() + 1)
            self.passed = max(self.passed, page.asked_at - age - stream_lag)


class StreamReader:
    """Reads all shards of a stream, each in order and parents before children, raw records in Lambda's shape.

    Args:
        client: boto3's `dynamodbstreams` client.
        stream_arn: the stream.
        start: `TRIM_HORIZON` (all that the stream holds) or `LATEST` (from `open` on).
        stream_lag: how many seconds after its write a record may at most appear in the stream.
        empty_pages: how many empty pages in a row show that a shard holds no more. One alone proves nothing on AWS.
        poll_interval: how many seconds a shard that gave an empty page is left alone. AWS asks for at most two
            readers of a shard; the worker's own mapping is one of them, and reads four times a second.
    """

    def __init__(
        self,
        client: "DynamoDBStreamsClient",
        stream_arn: str,
        start: StartingPosition,
        *,
        stream_lag: float = STREAM_LAG,
        empty_pages: int = 10,
        poll_interval: float = 0.25,
    ) -> None:
        self.stream_arn = stream_arn
        self.start: StartingPosition = start
        self.opened_at: datetime | None = None
        self._client = client
        self._shards = StreamShards(client, stream_arn, start, refuse_trimmed=True)
        self._progress: dict[str, _Progress] = {}
        self._stream_lag = stream_lag
        self._empty_pages = empty_pages
        self._poll_interval = poll_interval
        self._first_round: list[dict[str, Any]] = []
        self._asked_for = float("-inf")
        self._described_at = float("-inf")

    def from_the_beginning(self) -> "StreamReader":
        """Another reader of the same stream, of all that it holds."""
        return StreamReader(
            self._client,
            self.stream_arn,
            "TRIM_HORIZON",
            stream_lag=self._stream_lag,
            empty_pages=self._empty_pages,
            poll_interval=self._poll_interval,
        )

    def open(self) -> None:
        """Fixes the position: asks each shard for its first page. Does nothing the second time.

        Raises:
            botocore.exceptions.ClientError: there is no such stream, or it may not be read.
        """
        if self.opened_at is not None:
            return
        self.opened_at = datetime.now(UTC)
        for shard in self._shards.readable():
            while (page := shard.read_page(1)) is None and not shard.exhausted:
                pass
            if page is not None:
                self._first_round += self._take(shard, page)

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        """One round: the next page of each shard that is due, at most 1,000 records or 1 MB each.

        No pages does not mean the end: nothing was there now, or no shard was due.

        Raises:
            StreamGapError: records have left the stream before they were read, or it is disabled, or its shards came to
                light in the wrong order.
            botocore.exceptions.ClientError: the stream cannot be read.
        """
        self.open()
        if self._first_round:
            first, self._first_round = self._first_round, []
            yield first
        yield from self._round()

    def has_passed(self, moment: float) -> bool:
        """Whether every record of a write before `moment`, by `time.monotonic`, has been returned.

        It is certain once, later than `moment` by the stream's lag, the stream's description names no shard that was
        not read, and each open shard has answered with several empty pages in a row or with a record created as late.
        """
        self._asked_for = max(self._asked_for, moment)
        if self._first_round or not self._is_described_after(moment):
            return False
        return all(progress.passed >= moment for progress in self._progress.values())

    def check_history(self, since: datetime, *, margin: timedelta = MARGIN) -> None:
        """Refuses if records created from `since` on may have left the stream by now.

        Raises:
            HistoryLostError: they are older than 24 hours less `margin`.
        """
        age = datetime.now(UTC) - since
        if age > RETENTION - margin:
            raise HistoryLostError(
                f"the stream of table {stream_of(self.stream_arn).table} keeps its records for 24 hours, but all "
                f"since {since.isoformat(timespec='seconds')} are needed, {age.total_seconds() / 3600:.1f} hours"
            )

    def _round(self) -> Iterator[list[dict[str, Any]]]:
        shards = self._shards.readable(describe=self._description_is_due())
        for shard in shards:
            self._progress.setdefault(shard.shard_id, _Progress(self._empty_pages))
        for shard in shards:
            if self._progress[shard.shard_id].due_at > time.monotonic():
                continue
            page = shard.read_page()
            if page is not None and (records := self._take(shard, page)):
                yield records

    def _take(self, shard: Shard, page: Page) -> list[dict[str, Any]]:
        progress = self._progress.setdefault(shard.shard_id, _Progress(self._empty_pages))
        progress.note(page, self._stream_lag)
        if not page.records:
            progress.due_at = time.monotonic() + self._poll_interval
        if shard.exhausted:
            # Its children become readable in the next round, when all that it held has been returned.
            self._shards.finish(shard)
            del self._progress[shard.shard_id]
        return [from_get_records(record, self.stream_arn) for record in page.records]

    def _is_described_after(self, moment: float) -> bool:
        known_at = self._shards.successors_known_at
        return known_at is not None and known_at - self._stream_lag >= moment

    def _description_is_due(self) -> bool:
        """Whether a new description could show that the moment that was last asked for has been passed."""
        now = time.monotonic()
        if now - self._stream_lag < self._asked_for or self._is_described_after(self._asked_for):
            return False
        if now - self._described_at < self._poll_interval:
            return False
        self._described_at = now
        return True


def stream_began(stream_arn: str) -> datetime:
    """When the stream was enabled, which is what its label says.

    Raises:
        ValueError: it is not the ARN of a DynamoDB stream, or its label is not a time.
    """
    label = stream_of(stream_arn).label
    return datetime.fromisoformat(label).replace(tzinfo=UTC)

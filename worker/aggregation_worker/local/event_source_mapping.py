"""An event source mapping on one machine: what AWS Lambda does between a table's stream and its function.

It reads the stream through the real DynamoDB Streams API, filters and batches the records, calls a Python handler, and
retries, splits and discards as Lambda does. The rules are in `delivery` and `batching`, which do no I/O; this module
polls and runs them. Differences from AWS:

- Positions are kept in memory: a new mapping begins at its starting position again, so what was delivered before comes
  once more. Delivery is at least once there, too.
- A function that exceeds its timeout runs to its end (see `local_function`).
- AWS reads ahead without a documented limit; here each shard holds one batch ahead for each lane.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.deployment.settings import FUNCTION_MEMORY_MB, FUNCTION_TIMEOUT_SECONDS, MappingSettings
from aggregation_worker.local.batching import Lane, lane_of
from aggregation_worker.local.delivery import Batch, DiscardedBatch, Invocation, PolledRecord, deliver
from aggregation_worker.local.local_function import Handler, LocalFunction
from aggregation_worker.local.on_failure_destination import OnFailureDestination
from aggregation_worker.streams.records import from_get_records
from aggregation_worker.streams.shards import Shard, StreamShards

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from mypy_boto3_s3.client import S3Client

logger = logging.getLogger(__name__)

# Deliveries under way at once, over all shards; more wait for a free thread.
_MAX_THREADS = 64
_QUIET_ROUNDS = 3


class _MappingClosedError(Exception):
    """Ends a delivery between two invocations when the mapping closes."""


class _Lane(Lane):
    """A lane and the delivery that it has under way."""

    delivery: Future[None] | None = None

    @property
    def is_idle(self) -> bool:
        return not len(self) and self.delivery is None


class EventSourceMapping:
    """Reads a stream and calls a handler, as AWS Lambda would.

    Args:
        streams_client: boto3's `dynamodbstreams` client.
        s3_client: boto3's `s3` client.
        stream_arn: the table's `LatestStreamArn`.
        handler: called with the event and a Lambda context object, from another thread; with several shards or a
            parallelization factor above 1 from several at once.
        settings: the mapping's configuration.
        event_names: the filter: records with another `eventName` are not delivered.
        on_failure_bucket: where discarded batches are written.
        function_name: as the context and the ARN give it.
        on_batch: called after each invocation, one at a time.
        on_discarded: called after each discarded batch, with the key of its document in the bucket, or `None` if S3
            refused it.
        poll_interval_seconds: pause after a round that brought no records; AWS polls four times a second.
    """

    def __init__(  # noqa: PLR0913 - AWS's mapping has as many parts
        self,
        streams_client: "DynamoDBStreamsClient",
        s3_client: "S3Client",
        stream_arn: str,
        handler: Handler,
        settings: MappingSettings,
        *,
        event_names: Collection[str],
        on_failure_bucket: str,
        function_name: str,
        on_batch: Callable[[Invocation], None] | None = None,
        on_discarded: Callable[[DiscardedBatch, str | None], None] | None = None,
        poll_interval_seconds: float = 0.1,
    ) -> None:
        self.stream_arn = stream_arn
        self.settings = settings
        self._event_names = frozenset(event_names)
        self._function = LocalFunction(
            handler,
            function_name,
            _function_arn(stream_arn, function_name),
            FUNCTION_TIMEOUT_SECONDS,
            FUNCTION_MEMORY_MB,
            settings.report_batch_item_failures,
        )
        self._destination = OnFailureDestination(s3_client, on_failure_bucket, self._function.arn, stream_arn)
        self._on_batch = on_batch
        self._on_discarded = on_discarded
        self._poll_interval_seconds = poll_interval_seconds
        self._shards = StreamShards(streams_client, stream_arn, settings.starting_position)
        self._lanes: dict[str, list[_Lane]] = {}
        self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="event-source-mapping")
        self._polling = threading.RLock()
        self._telling = threading.Lock()
        self._delivery_ended = threading.Event()
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, stop: threading.Event) -> None:
        """Delivers until `stop` is set, then closes the mapping.

        Raises:
            botocore.exceptions.ClientError: the stream cannot be read.
        """
        try:
            while not stop.is_set():
                self._rest_after(self.poll_once())
        finally:
            self.close()

    def drain(self, timeout_seconds: float, quiet_seconds: float = 0.3) -> None:
        """Delivers until the stream has had nothing new for `quiet_seconds` and nothing waits or is under way.

        Raises:
            TimeoutError: that was not so within `timeout_seconds`.
            botocore.exceptions.ClientError: the stream cannot be read.
        """
        deadline = time.monotonic() + timeout_seconds
        quiet_since: float | None = None
        quiet_rounds = 0
        while True:
            polled = self.poll_once()
            now = time.monotonic()
            if polled or not self._is_idle():
                quiet_since = None
            elif quiet_since is None:
                quiet_since, quiet_rounds = now, 1
            else:
                quiet_rounds += 1
                if now - quiet_since >= quiet_seconds and quiet_rounds >= _QUIET_ROUNDS:
                    return
            if now >= deadline:
                raise TimeoutError(f"the stream was not drained within {timeout_seconds} s: {self._undelivered_text()}")
            self._rest_after(polled)

    def poll_once(self) -> int:
        """One round: a page of each shard, and a delivery started on each idle lane that has a batch.

        Does not wait for the deliveries.

        Returns:
            How many records were read, those filtered out included.

        Raises:
            botocore.exceptions.ClientError: the stream cannot be read.
            Exception: what a callback raised in a delivery since the last round.
        """
        with self._polling:
            polled = 0
            for shard in self._shards.readable():
                lanes = self._lanes.setdefault(
                    shard.shard_id,
                    [_Lane(self.settings) for _ in range(self.settings.parallelization_factor)],
                )
                polled += self._poll(shard, lanes)
                for lane in lanes:
                    self._advance(shard, lane)
                if shard.exhausted and all(lane.is_idle for lane in lanes):
                    self._shards.finish(shard)
                    del self._lanes[shard.shard_id]
            return polled

    def close(self) -> None:
        """Ends the mapping: waits for invocations under way, but makes no retries. It cannot be used again."""
        self._closing.set()
        self._threads.shutdown(wait=True)

    def _poll(self, shard: Shard, lanes: list[_Lane]) -> int:
        room = self.settings.batch_size * len(lanes) - sum(map(len, lanes))
        if room <= 0:
            return 0
        records = shard.read(room)
        now = time.monotonic()
        for record in records:
            event = from_get_records(record, self.stream_arn)
            if event["eventName"] in self._event_names:
                lanes[lane_of(event, len(lanes))].add(PolledRecord.of(event), now)
        return len(records)

    def _advance(self, shard: Shard, lane: _Lane) -> None:
        if lane.delivery is not None:
            if not lane.delivery.done():
                return
            ended, lane.delivery = lane.delivery, None
            ended.result()
        batch = lane.take(time.monotonic())
        if batch is not None:
            lane.delivery = self._threads.submit(self._deliver, shard.shard_id, batch)

    def _deliver(self, shard_id: str, batch: Batch) -> None:
        try:
            for discarded in deliver(batch, self.settings, self._invoke, now=time.time, pause=self._pause):
                self._discard(discarded, shard_id)
        except _MappingClosedError:
            logger.info("the mapping closed before all of %d records were delivered", len(batch))
        finally:
            self._delivery_ended.set()

    def _invoke(self, records: Batch, attempt: int) -> Invocation:
        if self._closing.is_set():
            raise _MappingClosedError
        invocation = self._function.invoke(records, attempt)
        if self._on_batch is not None:
            with self._telling:
                self._on_batch(invocation)
        return invocation

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise _MappingClosedError

    def _discard(self, discarded: DiscardedBatch, shard_id: str) -> None:
        key = None
        try:
            key = self._destination.deliver(discarded, shard_id, time.time())
        except (BotoCoreError, ClientError) as error:
            count, bucket = len(discarded.records), self._destination.bucket
            logger.warning("%d discarded records did not reach %s: %s", count, bucket, error)
        if self._on_discarded is not None:
            with self._telling:
                self._on_discarded(discarded, key)

    def _rest_after(self, polled: int) -> None:
        """Waits for the next round, if the last one brought nothing, or until a delivery ends."""
        if not polled:
            self._delivery_ended.wait(self._poll_interval_seconds)
        self._delivery_ended.clear()

    def _is_idle(self) -> bool:
        with self._polling:
            return all(lane.is_idle for lanes in self._lanes.values() for lane in lanes)

    def _undelivered_text(self) -> str:
        with self._polling:
            lanes = [lane for shard_lanes in self._lanes.values() for lane in shard_lanes]
            waiting = sum(map(len, lanes))
            under_way = sum(lane.delivery is not None for lane in lanes)
        return f"{waiting} records wait, {under_way} batches are being delivered or retried"


def _function_arn(stream_arn: str, function_name: str) -> str:
    """The function's ARN, in the region and account of the stream's."""
    _, partition, _, region, account, _ = stream_arn.split(":", 5)
    return f"arn:{partition}:lambda:{region}:{account}:function:{function_name}"

"""The dead-letter queue as operators see it: messages received, understood, and held while they are worked on."""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aws_errors import code_of
from aggregation_worker.dead_letters import (
    DeadLetter,
    FailedBatch,
    FailedBatchReference,
    Notice,
    NotificationTest,
    ObjectReference,
    ParkedRecord,
    RecordReference,
    UnreadableDeadLetterError,
    letter_of,
    read_dead_letter,
    read_failed_batch,
)
from aggregation_worker.operations.errors import explain_aws_error
from aggregation_worker.operations.resources import Resources
from aggregation_worker.streams.range import StreamRangeError, read_range
from aggregation_worker.streams.records import sequence_number_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

# Clocks that differ by less are taken as equal; the Date header has whole seconds.
_CLOCK_TOLERANCE = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the queue, held invisible to others until it is deleted or released."""

    message_id: str
    receipt_handle: str
    body: str
    sent_at: datetime


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter with its records.

    Attributes:
        kind: `parked record`, `notice`, `failed batch`, `notification test` or `unreadable`.
        reasons: why it is here; for an unreadable one, what is wrong with it.
        records: the raw records; none where it could not be read.
        readable: whether `records` are all that belong to it.
        span: first and last sequence number where the records themselves are not there.
        notice: the notice itself, where it is one.
    """

    message: Message
    kind: str
    reasons: tuple[str, ...]
    records: tuple[Any, ...] = ()
    readable: bool = True
    span: tuple[str, str] | None = None
    notice: Notice | None = None

    @property
    def sequence_numbers(self) -> list[str]:
        """The records' sequence numbers, or the ends of the range that is not readable."""
        if self.records:
            return [sequence_number_of(record) or "?" for record in self.records]
        return list(dict.fromkeys(self.span)) if self.span else []


def trusted_until(record: Any, retention_days: int) -> datetime | None:
    """Until when the ledger can tell for certain whether a record is counted; `None` if the record has no time.

    Its page is kept for so long at least. Sent after that, it is parked if its page has expired: never counted twice.
    """
    try:
        created = datetime.fromtimestamp(float(record["dynamodb"]["ApproximateCreationDateTime"]), UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None
    return created + timedelta(days=retention_days)


def resolve_letter(message: Message, resources: Resources) -> Letter:
    """Reads a message, and what it refers to in the bucket or the stream; whatever is wrong with it is in `reasons`."""
    known: tuple[str, ...] = ()
    span = None
    try:
        found = read_dead_letter(message.body)
        if isinstance(found, RecordReference):
            known, number = found.reasons, found.sequence_number
            span = None if number is None else (number, number)
        letter = _fetched(found, resources)
        if isinstance(letter, NotificationTest):
            return Letter(message, "notification test", ("S3 tested the bucket's notification; it holds nothing",))
        if isinstance(letter, ParkedRecord):
            return Letter(message, "parked record", letter.reasons, (letter.record,))
        if isinstance(letter, Notice):
            return Letter(message, "notice", letter.reasons, (letter.record,), notice=letter)
        return _failed_batch(message, letter, resources)
    except UnreadableDeadLetterError as error:
        why = str(error)
    except ValueError:
        why = "the record in the bucket is not JSON"
    except (BotoCoreError, ClientError) as error:
        why = explain_aws_error(error)
    return Letter(message, "unreadable", (why, *known), readable=False, span=span)


def _fetched(letter: DeadLetter, resources: Resources) -> ParkedRecord | Notice | FailedBatch | NotificationTest:
    """The letter with its content, also where it only refers to the bucket."""
    if isinstance(letter, RecordReference):
        return letter_of(json.loads(_content(resources.s3, letter.content)), letter.reasons, letter.aggregation)
    if isinstance(letter, FailedBatchReference):
        return read_failed_batch(_content(resources.s3, letter.document))
    return letter


def _failed_batch(message: Message, letter: FailedBatch, resources: Resources) -> Letter:
    reasons = (letter.condition,)
    span = (letter.first, letter.last)
    records = letter.records
    if records is None:
        streams = resources.client("dynamodbstreams")
        try:
            records = tuple(read_range(streams, letter.stream_arn, letter.shard_id, letter.first, letter.last))
        except StreamRangeError as error:
            return Letter(message, "failed batch", (*reasons, str(error)), readable=False, span=span)
    if len(records) != letter.size:
        reason = f"it holds {len(records)} records, but its notice says {letter.size}: the payload is truncated"
        return Letter(message, "unreadable", (reason,), readable=False, span=span)
    return Letter(message, "failed batch", reasons, records, span=span)


def _content(s3: "S3Client", reference: ObjectReference) -> str:
    try:
        if reference.version:
            answer = s3.get_object(Bucket=reference.bucket, Key=reference.key, VersionId=reference.version)
        else:
            answer = s3.get_object(Bucket=reference.bucket, Key=reference.key)
        return answer["Body"].read().decode()
    except ClientError as error:
        if code_of(error) in ("NoSuchKey", "404", "NoSuchVersion"):
            raise UnreadableDeadLetterError(f"the object {reference.key} is no longer in the bucket") from error
        raise
    except UnicodeDecodeError as error:
        raise UnreadableDeadLetterError(f"the object {reference.key} is not text") from error


@dataclass(slots=True)
class HeldMessages:
    """Receives messages and keeps them invisible to others until each is deleted or released.

    A thread extends their visibility while the command works; should the command be killed, they reappear by
    themselves after `visibility_timeout`.

    Attributes:
        visibility_timeout: seconds that a message stays invisible without an extension.
    """

    sqs: "SQSClient"
    queue_url: str
    visibility_timeout: int = 120
    _held: dict[str, Message] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "HeldMessages":
        self._thread = threading.Thread(target=self._extend_until_closed, name="visibility", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self.release(*self._held.values())

    def started_at(self) -> datetime:
        """The queue's time of day: this machine's clock unless it is plainly wrong."""
        answer = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        here = datetime.now(UTC)
        header = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
        there = parsedate_to_datetime(header) if header else here
        return here if abs(there - here) < _CLOCK_TOLERANCE else there + timedelta(seconds=1)

    def waiting(self) -> int:
        """About how many messages the queue holds, those that others hold included."""
        attributes = self.sqs.get_queue_attributes(
            QueueUrl=self.queue_url,
            AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
        )["Attributes"]
        return sum(map(int, attributes.values()))

    def receive(self, sent_before: datetime) -> Iterator[list[Message]]:
        """Receives, a page at a time, what was in the queue at a moment, until the queue has no more of it to give."""
        seen: set[str] = set()
        while True:
            messages = self.sqs.receive_message(
                QueueUrl=self.queue_url,
                MaxNumberOfMessages=10,
                VisibilityTimeout=self.visibility_timeout,
                WaitTimeSeconds=1,  # a long poll asks every server of the queue, so an empty answer is the end
                MessageSystemAttributeNames=["SentTimestamp"],
            ).get("Messages", [])
            if not messages:
                return
            page = [_message(message) for message in messages]
            with self._lock:
                self._held |= {message.message_id: message for message in page}
            # A message sent since, or given twice, is kept out of sight until the end: released now, it would be
            # received again and again.
            new = [message for message in page if message.sent_at <= sent_before and message.message_id not in seen]
            seen.update(message.message_id for message in page)
            if new:
                yield new

    def delete(self, *messages: Message) -> None:
        """Removes messages from the queue for good."""
        for message in messages:
            with self._lock:
                current = self._held.pop(message.message_id, message)
            self.sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=current.receipt_handle)

    def release(self, *messages: Message) -> None:
        """Gives messages back: others can receive them at once."""
        for message in messages:
            with self._lock:
                current = self._held.pop(message.message_id, message)
            self._change_visibility([current], 0)

    def _extend_until_closed(self) -> None:
        while not self._closing.wait(self.visibility_timeout / 3):
            with self._lock:
                held = list(self._held.values())
            self._change_visibility(held, self.visibility_timeout)

    def _change_visibility(self, messages: Sequence[Message], seconds: int) -> None:
        """Best effort: a message whose visibility cannot be changed reappears a little earlier or later."""
        for start in range(0, len(messages), 10):
            entries = [
                {"Id": str(index), "ReceiptHandle": message.receipt_handle, "VisibilityTimeout": seconds}
                for index, message in enumerate(messages[start : start + 10])
            ]
            try:
                self.sqs.change_message_visibility_batch(QueueUrl=self.queue_url, Entries=entries)  # type: ignore[arg-type]  # plain dicts for typed ones
            except (BotoCoreError, ClientError):
                continue


def _message(raw: "MessageTypeDef") -> Message:
    milliseconds = int(raw.get("Attributes", {}).get("SentTimestamp", "0"))
    return Message(
        raw["MessageId"], raw["ReceiptHandle"], raw["Body"], datetime.fromtimestamp(milliseconds / 1000, UTC)
    )

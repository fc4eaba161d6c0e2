"""Dead letters: parking a record that can never succeed, telling of an item that cannot be used, and reading any of it.

Three kinds of message wait in the one queue:

* a parked record, written here: the record as it was delivered, and why it was refused;
* a notice, written here: a record that was counted, but one of whose images some aggregation cannot use, so that it is
  worth nothing there; it holds no contribution, and the item's correction is counted by itself;
* a batch that Lambda gave up on: S3's notification of an on-failure document, which holds the whole event.

A record that is too large for a message is in the bucket. A message that holds no records but only points into the
stream (an on-failure destination other than S3 writes those) is recognised too. Parking is the last step of a batch: a
record counts as parked only when the queue has taken it.
"""

import hashlib
import json
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.errors import WorkerError
from aggregation_worker.streams.records import is_sequence_number, sequence_number_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import SendMessageBatchRequestEntryTypeDef

PARKED_KIND, NOTICE_KIND = "parked_record", "notice"
PARKED_PREFIX = "parked-records/"
ON_FAILURE_PREFIX = "aws/lambda/"

# Bytes. SQS takes messages of 1 MiB, but a queue made before August 2025, or set so, takes 256 KiB ("Amazon SQS message
# quotas"); what every queue takes is sent as a message, the rest goes by way of the bucket.
MAX_MESSAGE_BYTES = 262_144
_MAX_BATCH_ENTRIES = 10
_NO_TIME = "no time was left to park it"
# Levels of JSON. An item has at most 32 levels of attributes ("Constraints", Amazon DynamoDB developer guide), two of
# JSON each; what is nested far deeper is no record, and ends whoever works on it with a RecursionError.
_MAX_LEVELS = 100


@dataclass(frozen=True, slots=True)
class ParkedRecord:
    """A record that can never succeed as it is, as delivered, with a reason per aggregation that refused it.

    Attributes:
        record: the raw record; whatever Lambda delivered, so possibly not even an object.
        reasons: sentences that say what is wrong.
    """

    record: Any
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Notice:
    """A record with an image that an aggregation cannot use: it was counted, the image being worth nothing there.

    Attributes:
        record: the raw record.
        reasons: what is wrong, in one sentence.
        aggregation: the name of the one that cannot use the image.
    """

    record: Any
    reasons: tuple[str, ...]
    aggregation: str


def letter_of(record: Any, reasons: tuple[str, ...], aggregation: str | None) -> ParkedRecord | Notice:
    """A notice if it is of an aggregation, else a parked record."""
    return ParkedRecord(record, reasons) if aggregation is None else Notice(record, reasons, aggregation)


@dataclass(frozen=True, slots=True)
class ObjectReference:
    """Where in S3 a dead letter's content is."""

    bucket: str
    key: str
    version: str | None = None


@dataclass(frozen=True, slots=True)
class RecordReference:
    """A parked record or, of an aggregation, a notice whose record is in the bucket."""

    content: ObjectReference
    reasons: tuple[str, ...]
    aggregation: str | None = None
    sequence_number: str | None = None


class UnreadableDeadLetterError(WorkerError):
    """A message in the dead-letter queue not of this worker or Lambda, or damaged; it must be left in the queue.

    Attributes:
        reasons, sequence_number: what is known of it all the same.
    """

    def __init__(self, message: str, reasons: tuple[str, ...] = (), sequence_number: str | None = None) -> None:
        super().__init__(message)
        self.reasons = reasons
        self.sequence_number = sequence_number


@dataclass(frozen=True, slots=True)
class FailedBatchReference:
    """A notification that an on-failure document was written."""

    document: ObjectReference


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """A batch that Lambda gave up on.

    Attributes:
        records: the raw records, or `None` where the notice only points into the stream.
        condition: why Lambda gave up, e.g. `RetryAttemptsExhausted`, `RecordAgeExceeded`.
        first, last: the range of sequence numbers, both included; compare as `int`.
    """

    records: tuple[Any, ...] | None
    condition: str
    stream_arn: str
    shard_id: str
    first: str
    last: str
    size: int


@dataclass(frozen=True, slots=True)
class NotificationTest:
    """What S3 sends to the queue once, when the bucket's notification is set up; it holds nothing, so delete it."""

    bucket: str


DeadLetter = ParkedRecord | Notice | RecordReference | FailedBatchReference | FailedBatch | NotificationTest


def message_body(letter: ParkedRecord | Notice, written_at: datetime, content: ObjectReference | None = None) -> str:
    """The message for a parked record or a notice; with `content`, the record itself is in the bucket."""
    body: dict[str, Any] = {"kind": PARKED_KIND}
    if isinstance(letter, Notice):
        body = {"kind": NOTICE_KIND, "aggregation": letter.aggregation}
    body |= {
        "reasons": letter.reasons,
        "parkedAt": written_at.astimezone(UTC).isoformat(timespec="seconds"),
        "sequenceNumber": sequence_number_of(letter.record),
    }
    if content is None:
        body["record"] = letter.record
    else:
        body["recordObject"] = {"bucket": content.bucket, "key": content.key}
    return json.dumps(body, ensure_ascii=True, separators=(",", ":"))


def read_dead_letter(body: str) -> DeadLetter:
    """Reads a message of the dead-letter queue.

    Raises:
        UnreadableDeadLetterError: it is not JSON, or nothing that this worker or Lambda writes.
    """
    document = _json_object(body, "the message")
    if document.get("kind") in (PARKED_KIND, NOTICE_KIND):
        return _of_record(document)
    if "DDBStreamBatchInfo" in document:
        return read_failed_batch(body)
    if document.get("Event") == "s3:TestEvent" and isinstance(document.get("Bucket"), str):
        return NotificationTest(document["Bucket"])
    if isinstance(document.get("Records"), list):
        return _notification(document["Records"])
    raise UnreadableDeadLetterError("neither a parked record, nor a notice, nor a failed batch")


def _of_record(document: Mapping[str, Any]) -> ParkedRecord | Notice | RecordReference:
    kind = document["kind"].replace("_", " ")
    reasons = document.get("reasons")
    if not isinstance(reasons, list) or not all(isinstance(reason, str) for reason in reasons):
        raise UnreadableDeadLetterError(f"a {kind} without reasons")
    aggregation = document.get("aggregation") if document["kind"] == NOTICE_KIND else None
    if document["kind"] == NOTICE_KIND and not isinstance(aggregation, str):
        raise UnreadableDeadLetterError("a notice without its aggregation")
    number = document.get("sequenceNumber")
    number = number if isinstance(number, str) and is_sequence_number(number) else None
    if "record" in document:
        try:
            record = _not_too_deep(document["record"], "the record")
        except UnreadableDeadLetterError as error:
            raise UnreadableDeadLetterError(str(error), tuple(reasons), number) from error
        return letter_of(record, tuple(reasons), aggregation)
    content = document.get("recordObject")
    if isinstance(content, dict) and isinstance(content.get("bucket"), str) and isinstance(content.get("key"), str):
        return RecordReference(ObjectReference(content["bucket"], content["key"]), tuple(reasons), aggregation, number)
    raise UnreadableDeadLetterError(f"a {kind} without the record", tuple(reasons), number)


def read_record_object(text: str) -> Any:
    """Reads a record that is in the bucket.

    Raises:
        UnreadableDeadLetterError: it is damaged.
    """
    return _not_too_deep(_json(text, "the record in the bucket"), "the record in the bucket")


def _notification(records: Sequence[Any]) -> FailedBatchReference:
    """S3's event message ("Event message structure", Amazon S3 user guide); one object a message, keys URL-encoded."""
    try:
        (record,) = records
        s3 = record["s3"]
        key = urllib.parse.unquote_plus(_text(s3["object"], "key"))
        version = _text(s3["object"], "versionId") if "versionId" in s3["object"] else None
        return FailedBatchReference(ObjectReference(_text(s3["bucket"], "name"), key, version))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableDeadLetterError("not a notification of one S3 object") from error


def read_failed_batch(text: str) -> FailedBatch:
    """Reads an on-failure document; `responseContext` can be missing, as it is for `RecordAgeExceeded`.

    Raises:
        UnreadableDeadLetterError: it is damaged, or its payload is.
    """
    document = _json_object(text, "the on-failure document")
    info = document.get("DDBStreamBatchInfo")
    context = document.get("requestContext")
    if not isinstance(info, dict):
        raise UnreadableDeadLetterError("the on-failure document has no DDBStreamBatchInfo")
    payload = document.get("payload")
    records: tuple[Any, ...] | None = None
    if payload is not None:
        what = "the on-failure document's payload"
        event = _not_too_deep(_json_object(payload, what), what)
        if not isinstance(event.get("Records"), list):
            raise UnreadableDeadLetterError("the on-failure document's payload has no Records")
        records = tuple(event["Records"])
    try:
        return FailedBatch(
            records,
            _text(context, "condition") if isinstance(context, dict) and "condition" in context else "unknown",
            _text(info, "streamArn"),
            _text(info, "shardId"),
            _sequence_number(info, "startSequenceNumber"),
            _sequence_number(info, "endSequenceNumber"),
            int(info.get("batchSize", len(records or ()))),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnreadableDeadLetterError(
            f"the on-failure document's DDBStreamBatchInfo is damaged: {error!r}"
        ) from error


def _text(entries: Mapping[str, Any], name: str) -> str:
    text = entries[name]
    if not isinstance(text, str):
        raise TypeError(f"{name} is not a text")
    return text


def _sequence_number(info: Mapping[str, Any], name: str) -> str:
    """As it is written: the Streams API takes it back only so."""
    text = _text(info, name)
    if not is_sequence_number(text):
        raise ValueError(f"{name} is not a sequence number")
    return text


def _json_object(text: object, what: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise UnreadableDeadLetterError(f"{what} is not a text")
    document = _json(text, what)
    if not isinstance(document, dict):
        raise UnreadableDeadLetterError(f"{what} is not a JSON object")
    return document


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnreadableDeadLetterError(f"{what} is not JSON: {error}") from error


def _not_too_deep(value: Any, what: str) -> Any:
    level = [value]
    for _ in range(_MAX_LEVELS):
        values = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [inner for inners in values for inner in inners]
    if level:
        raise UnreadableDeadLetterError(f"{what} is nested more than {_MAX_LEVELS} levels deep")
    return value


@dataclass(slots=True)
class DeadLetterQueue:
    """The dead-letter queue, and the bucket for what is too large for it.

    Attributes:
        sqs, s3: give the client when it is first needed: most invocations park nothing.
        now: the time of day.
    """

    url: str
    bucket: str
    sqs: "Callable[[], SQSClient]"
    s3: "Callable[[], S3Client]"
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def park(
        self, letters: Sequence[ParkedRecord | Notice], in_time: Callable[[], bool] = lambda: True
    ) -> dict[int, str]:
        """Sends letters to the queue; records too large for a message by way of the bucket.

        Args:
            in_time: asked before each request; once it says no, nothing more is sent.

        Returns:
            The index of every letter that was **not** taken, with the reason: its record must be delivered again. A
            record can be parked twice (an answer lost); replaying both counts it once.
        """
        failed: dict[int, str] = {}
        bodies: list[tuple[int, str]] = []
        for index, letter in enumerate(letters):
            if not in_time():
                failed[index] = _NO_TIME
                continue
            try:
                bodies.append((index, self._body(letter)))
            except (BotoCoreError, ClientError, ValueError, RecursionError) as error:
                failed[index] = f"the record could not be stored in bucket {self.bucket}: {error}"
        for batch in _batches(bodies):
            failed |= self._send(batch) if in_time() else dict.fromkeys((index for index, _ in batch), _NO_TIME)
        return failed

    def _body(self, letter: ParkedRecord | Notice) -> str:
        now = self.now()
        body = message_body(letter, now)
        if len(body) <= MAX_MESSAGE_BYTES:  # the body is ASCII: one byte a character
            return body
        content = json.dumps(letter.record).encode()
        # Named after its content: parked again after a lost answer, it is the same object.
        key = f"{PARKED_PREFIX}{now:%Y/%m/%d}/{hashlib.sha256(content).hexdigest()}.json"
        self.s3().put_object(Bucket=self.bucket, Key=key, Body=content, ContentType="application/json")
        return message_body(letter, now, ObjectReference(self.bucket, key))

    def _send(self, batch: Sequence[tuple[int, str]]) -> dict[int, str]:
        entries: list[SendMessageBatchRequestEntryTypeDef] = [
            {"Id": str(index), "MessageBody": body} for index, body in batch
        ]
        try:
            answer = self.sqs().send_message_batch(QueueUrl=self.url, Entries=entries)
        except (BotoCoreError, ClientError) as error:
            return {index: f"the dead-letter queue could not be written: {error}" for index, _ in batch}
        return {int(entry["Id"]): f"the dead-letter queue refused it: {entry}" for entry in answer.get("Failed", [])}


def _batches(bodies: Iterable[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """At most ten messages, and together at most `MAX_MESSAGE_BYTES`."""
    batches: list[list[tuple[int, str]]] = []
    size = 0
    for index, body in bodies:
        if not batches or len(batches[-1]) == _MAX_BATCH_ENTRIES or size + len(body) > MAX_MESSAGE_BYTES:
            batches.append([])
            size = 0
        batches[-1].append((index, body))
        size += len(body)
    return batches

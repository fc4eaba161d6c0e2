"""Dead letters as operators see them: understood, compared with the stack's own names, and never believed.

Whoever may send to the queue writes what he likes into a message. So of a message nothing decides where is read: its
bucket must be the stack's, and its stream and its records those of the source table.
"""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
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
    read_record_object,
)
from aggregation_worker.errors import WorkerError
from aggregation_worker.operations.errors import explain_aws_error
from aggregation_worker.operations.queue import Message
from aggregation_worker.operations.resources import Resources
from aggregation_worker.streams.range import StreamRangeError, read_range
from aggregation_worker.streams.records import Origin, created_at_of, sequence_number_of

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


# What is different in reasons that are alike.
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\b[0-9a-f]{12,}\b|\d{3,}")
_MOST_GROUPS = 100


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter with its records.

    Attributes:
        kind: `parked record`, `notice`, `failed batch`, `notification test` or `unreadable`.
        reasons: why it is here; for an unreadable one, what is wrong with it, and then what else is known.
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
    created = created_at(record)
    try:
        return None if created is None else created + timedelta(days=retention_days)
    except OverflowError:
        return None


def created_at(record: Any) -> datetime | None:
    """When a raw record was created, where it says so."""
    created = created_at_of(record)
    return None if created is None else datetime.fromtimestamp(created, UTC)


def source_of(resources: Resources) -> Origin:
    """The source table with region and account: as the definitions or the environment name its stream, or as it is.

    Raises:
        WorkerError, ClientError, BotoCoreError: it is not known.
    """
    source = resources.definitions.source.origin
    if source.account is not None:
        return source
    table = resources.dynamodb.describe_table(TableName=source.table)["Table"]
    _, _, _, region, account, _ = table["TableArn"].split(":", 5)
    return Origin(source.table, region, account)


@dataclass(slots=True)
class Group:
    """Letters that are alike.

    Attributes:
        what: texts that say it, of one of them.
        example: what names this one.
        sent_at: when the oldest was sent.
        until: until when all of their records can be replayed for certain.
    """

    what: tuple[str, ...]
    example: str
    count: int = 0
    sent_at: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """Letters by what they have in common, in a memory that does not grow with their number.

    Texts are taken as equal where they differ in numbers, names and digests that they quote.
    """

    found: dict[tuple[str, ...], Group] = field(default_factory=dict)

    def add(
        self, what: tuple[str, ...], example: str, sent_at: datetime | None = None, until: datetime | None = None
    ) -> None:
        """Adds a letter."""
        key = tuple(_VARYING.sub("…", text) for text in what)
        if key not in self.found and len(self.found) >= _MOST_GROUPS:
            key = what = (*what[:1], *("other reasons" for _ in what[1:]))
        group = self.found.setdefault(key, Group(what, example))
        group.count += 1
        if sent_at is not None and (group.sent_at is None or sent_at < group.sent_at):
            group.sent_at = sent_at
        if until is not None and (group.until is None or until < group.until):
            group.until = until

    def by_size(self) -> list[Group]:
        """The largest first."""
        return sorted(self.found.values(), key=lambda group: -group.count)


@dataclass(frozen=True, slots=True)
class LetterReader:
    """Reads messages, and what they refer to in the bucket or the stream. Several threads may use it.

    Attributes:
        source: where records must come from; `None` where that is not known, and then no stream is read.
    """

    resources: Resources
    source: Origin | None

    def __post_init__(self) -> None:
        for service in ("s3", "dynamodbstreams", "dynamodb"):
            self.resources.client(service)  # boto3 makes one client at a time; threads can share them

    def __call__(self, message: Message) -> Letter:
        """Understands a message; whatever is wrong with it is in `reasons`."""
        known: tuple[str, ...] = ()
        span = None
        try:
            found = read_dead_letter(message.body)
            if isinstance(found, RecordReference):
                known, number = found.reasons, found.sequence_number
                span = None if number is None else (number, number)
            letter = self._fetched(found)
            if isinstance(letter, NotificationTest):
                self._check_bucket(letter.bucket)
                return Letter(message, "notification test", ("S3 tested the bucket's notification; it holds nothing",))
            if isinstance(letter, FailedBatch):
                return self._failed_batch(message, letter)
            self._check_record(letter.record)
            notice = letter if isinstance(letter, Notice) else None
            kind = "parked record" if notice is None else "notice"
            return Letter(message, kind, letter.reasons, (letter.record,), notice=notice)
        except UnreadableDeadLetterError as error:
            why, known = str(error), error.reasons or known
            span = (error.sequence_number, error.sequence_number) if error.sequence_number is not None else span
        except WorkerError as error:
            why = str(error)
        except (BotoCoreError, ClientError) as error:
            why = explain_aws_error(error)
        except ValueError as error:  # of botocore, about names that cannot be in a request
            why = f"what it names cannot be asked for: {error}"
        return Letter(message, "unreadable", (why, *known), readable=False, span=span)

    def _fetched(self, letter: DeadLetter) -> ParkedRecord | Notice | FailedBatch | NotificationTest:
        """The letter with its content, also where it only refers to the bucket."""
        if isinstance(letter, RecordReference):
            record = read_record_object(self._content(letter.content))
            return letter_of(record, letter.reasons, letter.aggregation)
        if isinstance(letter, FailedBatchReference):
            return read_failed_batch(self._content(letter.document))
        return letter

    def _failed_batch(self, message: Message, letter: FailedBatch) -> Letter:
        reasons, span = (letter.condition,), (letter.first, letter.last)
        try:
            records = self._records_of(letter)
        except StreamRangeError as error:
            return Letter(message, "failed batch", (*reasons, str(error)), readable=False, span=span)
        except UnreadableDeadLetterError as error:
            return Letter(message, "unreadable", (str(error), *reasons), readable=False, span=span)
        return Letter(message, "failed batch", reasons, records, span=span)

    def _records_of(self, letter: FailedBatch) -> tuple[Any, ...]:
        try:
            why = None if self.source is None else self.source.difference(letter.stream_arn)
        except ValueError as error:
            why = str(error)
        if self.source is None and letter.records is None:
            why = "the source table is not known, so its stream cannot be compared with it"
        if why is not None:
            raise UnreadableDeadLetterError(why)
        records = letter.records
        if records is None:
            streams = self.resources.client("dynamodbstreams")
            records = tuple(read_range(streams, letter.stream_arn, letter.shard_id, letter.first, letter.last))
        if len(records) != letter.size:
            raise UnreadableDeadLetterError(
                f"it holds {len(records)} records, but its notice says {letter.size}: the payload is truncated"
            )
        for record in records:
            self._check_record(record)
        return records

    def _check_record(self, record: Any) -> None:
        """A record that names no stream is malformed: the worker refuses it."""
        stream_arn = record.get("eventSourceARN") if isinstance(record, dict) else None
        if self.source is None or not isinstance(stream_arn, str):
            return
        try:
            why = self.source.difference(stream_arn)
        except ValueError:
            return
        if why is not None:
            raise UnreadableDeadLetterError(f"a record is not the source table's: {why}")

    def _check_bucket(self, bucket: str) -> None:
        if bucket != self.resources.bucket:
            raise UnreadableDeadLetterError(
                f"it names the bucket {bucket!r}, but the stack's is {self.resources.bucket!r}"
            )

    def _content(self, reference: ObjectReference) -> str:
        self._check_bucket(reference.bucket)
        s3: S3Client = self.resources.s3
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

"""Stream records: one validated change of the source table each.

Reads what Lambda delivers; `from_get_records` brings what the `GetRecords` API returns into the same shape, and dead
letters hold records in it. Knows nothing of aggregations. Two kinds of mistake are separate errors: a malformed record
is parked by the caller, while an event that is not from the stream at all, or from a stream without both images, means
that the deployment is wrong.
"""

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from aggregation_worker.errors import WorkerError

Image = Mapping[str, Any]
"""An item in DynamoDB's typed JSON: attribute name to `{type: value}`."""

EVENT_SOURCE = "aws:dynamodb"
_STREAM_ARN = re.compile(r"arn:[^:]+:dynamodb:([^:]*):([^:]*):table/([^/]+)/stream/([!-~]{1,255})")
_LONGEST_SEQUENCE_NUMBER = 64
_TTL_PRINCIPAL = "dynamodb.amazonaws.com"
# In 2106: what a position can hold.
_LATEST_SECOND = 0xFFFF_FFFF


class EventName(StrEnum):
    """What happened to the item."""

    INSERT = "INSERT"
    MODIFY = "MODIFY"
    REMOVE = "REMOVE"


class MalformedRecordError(WorkerError):
    """A record that cannot be read; it can never be applied as it is."""


class UnexpectedEventError(WorkerError):
    """The event does not come from the source table's stream: the function is wired to something else."""


class StreamViewTypeError(WorkerError):
    """The stream does not deliver both images (its view type must be NEW_AND_OLD_IMAGES), so nothing can be exact."""

    @classmethod
    def missing(cls, image: str, event_name: str, sequence_number: str) -> "StreamViewTypeError":
        """The error for a record without an image that it must have."""
        return cls(
            f"{event_name} record {sequence_number} has no {image}: "
            "the source table's stream must have the view type NEW_AND_OLD_IMAGES"
        )


@dataclass(frozen=True, slots=True)
class Stream:
    """A table's stream, as its ARN names it. A stream that is enabled anew has another label.

    Attributes:
        account: 12 digits.
        label: when it was enabled.
    """

    region: str
    account: str
    table: str
    label: str


@dataclass(frozen=True, slots=True)
class Origin:
    """The table of which records may tell. What is `None` is not known, and so not compared."""

    table: str
    region: str | None = None
    account: str | None = None

    @classmethod
    def of(cls, stream_arn: str) -> "Origin":
        """The table whose stream this is, under whatever label.

        Raises:
            ValueError: it is not the ARN of a DynamoDB stream.
        """
        stream = stream_of(stream_arn)
        return cls(stream.table, stream.region, stream.account)

    def difference(self, stream_arn: str) -> str | None:
        """Why what this stream tells must not be counted, as a clause; `None` if it is the table's own.

        Raises:
            ValueError: it is not the ARN of a DynamoDB stream.
        """
        stream = stream_of(stream_arn)
        if (
            stream.table == self.table
            and self.region in (None, stream.region)
            and self.account in (None, stream.account)
        ):
            return None
        return f"it comes from the stream of {Origin.of(stream_arn)}, but the source is {self}"

    def __str__(self) -> str:
        region = f" in {self.region}" if self.region is not None else ""
        account = f" of account {self.account}" if self.account is not None else ""
        return f"table {self.table!r}{region}{account}"


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One INSERT, MODIFY or REMOVE.

    Attributes:
        event_name: what happened.
        event_id: globally unique, the same on every delivery.
        sequence_number: 21 to 40 digits, unique within its shard only; compare as `int`.
        created_at: `ApproximateCreationDateTime`, whole epoch seconds.
        old_image, new_image: in DynamoDB's typed JSON; `None` where the event has none.
        expired: a TTL delete.
    """

    event_name: EventName
    event_id: str
    sequence_number: str
    created_at: int
    old_image: Image | None
    new_image: Image | None
    expired: bool


def records_of(event: Any) -> list[Any]:
    """The raw records of a Lambda event; an empty batch is allowed.

    Raises:
        UnexpectedEventError: it has no list of records, or one of them says that it comes from another service.
    """
    records = event.get("Records") if isinstance(event, dict) else None
    if not isinstance(records, list):
        raise UnexpectedEventError("the event has no list 'Records': it is not from a DynamoDB stream")
    for raw in records:
        if isinstance(raw, dict):
            source = raw.get("eventSource", raw.get("EventSource", EVENT_SOURCE))
            if source != EVENT_SOURCE:
                name = repr(source[:40]) if isinstance(source, str) else "something without a name"
                raise UnexpectedEventError(
                    f"the event comes from {name}, not {EVENT_SOURCE!r}: check the event source mapping"
                )
    return records


def read_record(raw: Any, origin: Origin) -> StreamRecord:
    """Validates one record as Lambda delivers it.

    Raises:
        MalformedRecordError: a part that must be there is missing or has the wrong form; the message names it.
        UnexpectedEventError: it comes from another table's stream.
        StreamViewTypeError: a MODIFY without an old image, or an INSERT or MODIFY without a new one.
    """
    if not isinstance(raw, dict):
        raise MalformedRecordError("the record is not a JSON object")
    change = raw.get("dynamodb")
    if not isinstance(change, dict):
        raise MalformedRecordError("the record has no 'dynamodb' object")
    event_name = _event_name(raw.get("eventName"))
    sequence_number = sequence_number_of(raw)
    if sequence_number is None:
        raise MalformedRecordError("the record has no SequenceNumber of digits")
    event_id = raw.get("eventID")
    if not isinstance(event_id, str) or not event_id:
        raise MalformedRecordError("the record has no eventID")
    if not isinstance(change.get("Keys"), dict) or not change["Keys"]:
        raise MalformedRecordError("the record has no Keys")
    difference = _difference(raw.get("eventSourceARN"), origin)
    if difference is not None:
        raise UnexpectedEventError(f"record {sequence_number} is not of the source table: {difference}")
    old_image = _image(change, "OldImage")
    new_image = _image(change, "NewImage")
    if new_image is None and event_name is not EventName.REMOVE:
        raise _missing(change, "NewImage", event_name, sequence_number)
    if old_image is None and event_name is EventName.MODIFY:
        raise _missing(change, "OldImage", event_name, sequence_number)
    return StreamRecord(
        event_name,
        event_id,
        sequence_number,
        _created_at(change.get("ApproximateCreationDateTime")),
        old_image if event_name is not EventName.INSERT else None,
        new_image if event_name is not EventName.REMOVE else None,
        event_name is EventName.REMOVE and _is_ttl_delete(raw.get("userIdentity")),
    )


def sequence_number_of(raw: Any) -> str | None:
    """A raw record's sequence number, by which its failure is reported to Lambda; `None` if it has no valid one."""
    try:
        sequence_number = raw["dynamodb"]["SequenceNumber"]
    except (KeyError, TypeError, IndexError):
        return None
    return sequence_number if isinstance(sequence_number, str) and is_sequence_number(sequence_number) else None


def created_at_of(raw: Any) -> int | None:
    """A raw record's creation in epoch seconds; `None` if it has no valid one."""
    try:
        return _created_at(raw["dynamodb"]["ApproximateCreationDateTime"])
    except (KeyError, TypeError, IndexError, MalformedRecordError):
        return None


def is_sequence_number(text: str) -> bool:
    """Whether a text has the form of a sequence number: ASCII digits, and not too many."""
    return text.isdecimal() and text.isascii() and len(text) <= _LONGEST_SEQUENCE_NUMBER


_EVENT_NAMES = {str(name): name for name in EventName}


def _event_name(name: object) -> EventName:
    if not isinstance(name, str):
        raise MalformedRecordError("the record has no eventName")
    event_name = _EVENT_NAMES.get(name)
    if event_name is None:
        raise MalformedRecordError(f"unknown eventName {name[:40]!r}")
    return event_name


def _image(change: Mapping[str, Any], name: str) -> Image | None:
    image = change.get(name)
    if not image:  # an image always holds the keys, so an empty one is a missing one
        return None
    if not isinstance(image, dict):
        raise MalformedRecordError(f"{name} is not a JSON object")
    return image


def _missing(change: Mapping[str, Any], name: str, event_name: EventName, sequence_number: str) -> WorkerError:
    """An image that is there but empty is that record's mistake; a stream of another view type leaves it out."""
    if change.get(name) == {}:
        return MalformedRecordError(f"{name} is empty, but an image holds the item's keys at least")
    return StreamViewTypeError.missing(name, event_name, sequence_number)


def _created_at(moment: object) -> int:
    """Epoch seconds from a JSON number, which may be written as 1789651658, 1789651658.0 or 1.789651658E9."""
    what = ""
    if isinstance(moment, int | float) and not isinstance(moment, bool):
        if 0 <= moment <= _LATEST_SECOND:
            return int(moment)
        what = ": it is in milliseconds" if 0 <= moment <= _LATEST_SECOND * 1000 else ""
    elif isinstance(moment, str):
        what = ": it is a text"
    # The shapes of other tools.
    raise MalformedRecordError(
        f"the record has no ApproximateCreationDateTime in epoch seconds, which Lambda delivers as a number{what}"
    )


def _difference(arn: object, origin: Origin) -> str | None:
    if not isinstance(arn, str):
        raise MalformedRecordError("the record has no eventSourceARN")
    try:
        return origin.difference(arn)
    except ValueError as error:
        raise MalformedRecordError(str(error)) from error


@lru_cache(maxsize=64)
def stream_of(arn: str) -> Stream:
    """What a stream's ARN names.

    Raises:
        ValueError: it is not the ARN of a DynamoDB stream.
    """
    match = _STREAM_ARN.fullmatch(arn)
    if match is None:
        raise ValueError(f"{arn[:120]!r} is not the ARN of a DynamoDB stream")
    return Stream(*match.groups())


def _is_ttl_delete(identity: object) -> bool:
    """TTL deletes carry this identity ("DynamoDB Streams and Time to Live", Amazon DynamoDB developer guide)."""
    return (
        isinstance(identity, Mapping)
        and identity.get("type") == "Service"
        and identity.get("principalId") == _TTL_PRINCIPAL
    )


def from_get_records(record: Mapping[str, Any], stream_arn: str) -> dict[str, Any]:
    """A record as the `GetRecords` API returns it, in the shape in which Lambda delivers it.

    `GetRecords` has no `eventSourceARN`, returns the creation time as a `datetime`, binary values as `bytes`, and
    spells the identity `PrincipalId` and `Type`; Lambda delivers epoch seconds, base64 text, `principalId` and `type`.
    """
    change = dict(record["dynamodb"])
    created: Any = change.get("ApproximateCreationDateTime")
    if isinstance(created, datetime):
        change["ApproximateCreationDateTime"] = int(created.timestamp())
    for part in ("Keys", "NewImage", "OldImage"):
        if part in change:
            change[part] = {name: _with_base64(value) for name, value in change[part].items()}
    delivered = {name: value for name, value in record.items() if name not in ("dynamodb", "userIdentity")}
    delivered |= {"dynamodb": change, "eventSourceARN": stream_arn}
    identity = record.get("userIdentity")
    if identity:
        delivered["userIdentity"] = {name[0].lower() + name[1:]: value for name, value in identity.items()}
    return delivered


def _with_base64(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {name: _with_base64(inner) for name, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_with_base64(inner) for inner in value]
    return value

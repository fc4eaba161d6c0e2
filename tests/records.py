"""Stream records of the reference scenario's source table, Order_by_item, as Lambda delivers them.

Every record has a sequence number of its own, 22 digits long and higher than the one before.
"""

import hashlib
from collections.abc import Mapping
from itertools import count
from typing import Any

from aggregation_worker.streams.records import Origin, StreamRecord, read_record

SOURCE_TABLE = "Order_by_item"
STREAM_LABEL = "2024-07-01T00:00:00.000"
STREAM_ARN = f"arn:aws:dynamodb:us-east-1:123456789012:table/{SOURCE_TABLE}/stream/{STREAM_LABEL}"
ORIGIN = Origin.of(STREAM_ARN)
CREATED_AT = 1_721_036_400  # 2024-07-15T09:40:00Z
DAY = "2024-07-15"

_sequence_numbers = count(1_000_000_000_000_000_000_001)


def order(
    orderid: str = "178526", *, item: str = "item123", quantity: int | str = 10, date: str = DAY, **attributes: Any
) -> dict[str, Any]:
    """The image of an order; further attributes in DynamoDB's typed JSON, `None` to leave one out."""
    image: dict[str, Any] = {
        "orderid": {"S": orderid},
        "order_date": {"S": date},
        "item_number": {"S": item},
        "quantity": {"N": str(quantity)},
    }
    return {name: value for name, value in (image | attributes).items() if value is not None}


def insert(new: Mapping[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """An INSERT; for the options, see `stream_record`."""
    return stream_record("INSERT", new=order() if new is None else new, **options)


def modify(old: Mapping[str, Any], new: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """A MODIFY; for the options, see `stream_record`."""
    return stream_record("MODIFY", old=old, new=new, **options)


def remove(old: Mapping[str, Any] | None = None, *, expired: bool = False, **options: Any) -> dict[str, Any]:
    """A REMOVE, by TTL if `expired`; for the other options, see `stream_record`."""
    raw = stream_record("REMOVE", old=order() if old is None else old, **options)
    if expired:
        raw["userIdentity"] = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
    return raw


def stream_record(
    event_name: str,
    *,
    old: Mapping[str, Any] | None = None,
    new: Mapping[str, Any] | None = None,
    sequence_number: int | None = None,
    event_id: str | None = None,
    created_at: float = CREATED_AT,
    stream_arn: str = STREAM_ARN,
) -> dict[str, Any]:
    """A record of any kind, with the images it is given."""
    number = str(next(_sequence_numbers) if sequence_number is None else sequence_number)
    change: dict[str, Any] = {
        "ApproximateCreationDateTime": created_at,
        "Keys": {"orderid": {"S": "178526"}, "order_date": {"S": DAY}},
        "SequenceNumber": number,
        "SizeBytes": 80,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    if old is not None:
        change["OldImage"] = dict(old)
    if new is not None:
        change["NewImage"] = dict(new)
    return {
        "eventID": hashlib.md5(number.encode()).hexdigest() if event_id is None else event_id,
        "eventName": event_name,
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": change,
        "eventSourceARN": stream_arn,
    }


def changed(raw: Mapping[str, Any], path: str, value: Any = ...) -> dict[str, Any]:
    """A copy of a record with another value under a path such as `dynamodb.Keys`, or without it."""
    copy = dict(raw)
    first, _, rest = path.partition(".")
    if rest:
        copy[first] = changed(copy[first], rest, value)
    elif value is ...:
        del copy[first]
    else:
        copy[first] = value
    return copy


def event(*records: Any) -> dict[str, Any]:
    """The event with which Lambda delivers records."""
    return {"Records": list(records)}


def validated(raw: Any) -> StreamRecord:
    """The record as the worker reads it."""
    return read_record(raw, ORIGIN)


def sequence_number(raw: Mapping[str, Any]) -> str:
    """A raw record's sequence number."""
    number: str = raw["dynamodb"]["SequenceNumber"]
    return number

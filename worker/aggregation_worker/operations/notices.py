"""What is to be done about a notice: with the worker as it is now, and the item as it is now."""

from decimal import Decimal
from enum import StrEnum
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.contributions import RemovePolicy, contributions
from aggregation_worker.dead_letters import Notice
from aggregation_worker.errors import WorkerError
from aggregation_worker.operations.errors import explain_aws_error
from aggregation_worker.operations.resources import Resources
from aggregation_worker.reconciliation.scan import as_delivered, read_key
from aggregation_worker.streams.records import (
    Image,
    MalformedRecordError,
    StreamRecord,
    StreamViewTypeError,
    UnexpectedEventError,
    read_record,
)


class NoticeState(StrEnum):
    """What is to be done about a notice."""

    CORRECT = "the item is as it was: correct it, and replay deletes this"
    OVER = "the item was corrected, or is gone: the totals are right, and replay deletes this"
    REPAIR = "the worker can use the item by now: run aggregator reconcile --repair, which deletes this"
    DISCARD = (
        "the worker can use the item by now, but ignores what is removed, so no total can be repaired: discard this"
    )
    UNREADABLE = "it holds no record of the source table"


# Of an image that is none, wherever that shows: the worker's own notices hold what the stream has delivered.
_DAMAGED = (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError)


def described(notice: Notice, resources: Resources) -> str:
    """What is to be done, or why that cannot be told."""
    try:
        return state_of(notice, resources).value
    except WorkerError as error:
        return f"what to do cannot be told: {error}"
    except (BotoCoreError, ClientError) as error:
        return f"what to do cannot be told: the item cannot be read: {explain_aws_error(error)}"


def state_of(notice: Notice, resources: Resources) -> NoticeState:
    """Looks at the item once, if need be.

    Raises:
        DefinitionError: there are no definitions by which to look.
        ClientError: the source table cannot be read.
    """
    definitions = resources.definitions
    mine = [one for one in definitions.aggregations if one.name == notice.aggregation]
    try:
        record = read_record(notice.record, definitions.source.origin)
        if mine and not contributions(mine, record)[1]:
            return NoticeState.DISCARD if mine[0].remove is RemovePolicy.IGNORE else NoticeState.REPAIR
        return NoticeState.CORRECT if mine and _is_there(notice, record, resources) else NoticeState.OVER
    except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError, *_DAMAGED):
        return NoticeState.UNREADABLE


def _is_there(notice: Notice, record: StreamRecord, resources: Resources) -> bool:
    """Whether the item is what the record made it; a removed one is not."""
    if record.new_image is None:
        return False
    table, keys = resources.definitions.source.table, notice.record["dynamodb"]["Keys"]
    item = resources.dynamodb.get_item(TableName=table, Key=read_key(keys), ConsistentRead=True).get("Item")
    return item is not None and _plain(as_delivered(item)) == _plain(record.new_image)


def _plain(image: Image) -> Any:
    """An image by which two are compared: numbers and sets in whatever spelling and order."""
    return {name: _plain_value(value) for name, value in image.items()}


def _plain_value(value: Any) -> Any:
    ((kind, content),) = value.items()
    if kind == "N":
        return kind, Decimal(content)
    if kind == "M":
        return kind, _plain(content)
    if kind == "L":
        return kind, [_plain_value(one) for one in content]
    if kind == "NS":
        return kind, set(map(Decimal, content))
    return kind, set(content) if kind in ("SS", "BS") else content

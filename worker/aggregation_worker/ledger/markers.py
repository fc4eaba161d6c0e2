"""An aggregation's marker in the ledger: from which cut it was or is being filled, and when that was finished.

The starting values themselves have their receipts in the rows (`writes.Start`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.aws_errors import (
    ACTION_CONDITION_FAILED,
    ACTION_CONFLICT,
    ACTION_THROTTLED,
    CONDITION_FAILED,
    cancellation_reasons,
    code_of,
)
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.receipts import AGGREGATE_KEY, BACKFILL_PAGE, PAGE_KEY
from aggregation_worker.streams.reader import stream_began
from aggregation_worker.streams.records import stream_of

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# The marker's attributes.
CUT = "cut"
STARTED_AT = "started_at"
FINISHED_AT = "finished_at"
AGGREGATES = "aggregates"
UNUSABLE = "unusable"

# Markers in one transaction, and how often it is tried again when another run writes the same ones.
_MARKERS_PER_TRANSACTION = 100
_ATTEMPTS = 20
_POLL = 0.2  # seconds

# The cut of an aggregation whose totals were corrected instead of being backfilled.
REPAIR_CUT = "repair"


class MarkerError(WorkerError):
    """Markers cannot be written now; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where an aggregation begins to count.

    Attributes:
        name: names the receipts: `stream LABEL` or `since TIME`.
        began: the moment itself.
    """

    name: str
    began: datetime


@dataclass(frozen=True, slots=True)
class Marker:
    """What the ledger says of an aggregation's backfill; times in epoch seconds, `None` until it is finished.

    `cut` is `repair` where `reconcile --repair` has set the totals right without a backfill.
    """

    cut: str
    started_at: int
    finished_at: int | None
    aggregates: int
    unusable: int


@dataclass(frozen=True, slots=True)
class Filled:
    """An aggregation, by its name, whose starting values are all in.

    Attributes:
        aggregates: how many have a starting value.
        unusable: items, as they were at the cut, that it cannot use.
    """

    aggregation: str
    aggregates: int
    unusable: int


def cut_of(aggregation: Aggregation, stream_arn: str) -> Cut:
    """Where an aggregation begins to count the records of a stream."""
    if aggregation.since is not None:
        return Cut(f"since {moment_text(aggregation.since)}", datetime.fromtimestamp(aggregation.since, UTC))
    return Cut(f"stream {stream_of(stream_arn).label}", stream_began(stream_arn))


def read_marker(client: "DynamoDBClient", ledger_table: str, aggregation: str) -> Marker | None:
    """What the ledger says of an aggregation's backfill; `None` where none has begun to post.

    Raises:
        ClientError: the ledger cannot be read.
    """
    item = client.get_item(TableName=ledger_table, Key=_key(aggregation), ConsistentRead=True).get("Item")
    return None if item is None else _marker(item)


def begin_backfill(
    client: "DynamoDBClient", ledger_table: str, aggregation: str, cut: Cut, now: float, sleep: Callable[[float], None]
) -> Marker:
    """Writes an aggregation's marker unless there is one; returns the one that stands.

    Raises:
        MarkerError: another run writes it all the time.
    """
    values = {CUT: {"S": cut.name}, STARTED_AT: {"N": str(int(now))}}
    refused = _write(client, ledger_table, [_mark(ledger_table, aggregation, values, absent=CUT)], sleep)
    return _marker(values if not refused else refused[0] or {})


def finish_backfills(
    client: "DynamoDBClient",
    ledger_table: str,
    filled: Sequence[Filled],
    now: float,
    sleep: Callable[[float], None],
) -> None:
    """Marks aggregations as finished, all of them at once (up to a hundred), except those that are already.

    So a run that is killed here has the same aggregations to fill the next time, and finds its spool.

    Raises:
        MarkerError: another run writes the markers all the time, or one has gone.
    """
    for start in range(0, len(filled), _MARKERS_PER_TRANSACTION):
        left = filled[start : start + _MARKERS_PER_TRANSACTION]
        while left and (
            refused := _write(client, ledger_table, [_finish(ledger_table, one, now) for one in left], sleep)
        ):
            for one, found in zip(left, refused, strict=True):
                if found is not None and FINISHED_AT not in found:
                    raise MarkerError(
                        f"{one.aggregation}: its marker has disappeared from table {ledger_table}: something other "
                        "than the worker is changing it"
                    )
            left = [one for one, found in zip(left, refused, strict=True) if found is None]


def _finish(ledger_table: str, filled: Filled, now: float) -> "TransactWriteItemTypeDef":
    numbers = {FINISHED_AT: int(now), AGGREGATES: filled.aggregates, UNUSABLE: filled.unusable}
    values = {name: {"N": str(number)} for name, number in numbers.items()}
    return _mark(ledger_table, filled.aggregation, values, absent=FINISHED_AT, present=CUT)


def _mark(
    ledger_table: str, aggregation: str, values: Mapping[str, Any], *, absent: str, present: str | None = None
) -> "TransactWriteItemTypeDef":
    """Sets attributes of a marker under the condition that one is absent and, if given, one is there."""
    condition = f"attribute_not_exists(#{absent})" + (f" AND attribute_exists(#{present})" if present else "")
    return {
        "Update": {
            "TableName": ledger_table,
            "Key": _key(aggregation),
            "UpdateExpression": "SET " + ", ".join(f"#{name} = :{name}" for name in values),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": {
                f"#{name}": name for name in (*values, absent, *((present,) if present else ()))
            },
            "ExpressionAttributeValues": {f":{name}": value for name, value in values.items()},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def _write(
    client: "DynamoDBClient",
    ledger_table: str,
    updates: "Sequence[TransactWriteItemTypeDef]",
    sleep: Callable[[float], None],
) -> list[Mapping[str, Any] | None]:
    """Writes markers together, through conflicts with other runs.

    Returns:
        Nothing or, where conditions do not hold, for each marker what stands there, `None` where its condition holds.
    """
    for _ in range(_ATTEMPTS):
        try:
            client.transact_write_items(TransactItems=updates, ClientRequestToken=str(uuid4()))
        except ClientError as error:
            reasons = cancellation_reasons(error)
            codes = [reason.get("Code") for reason in reasons]
            if ACTION_CONDITION_FAILED in codes:
                return [
                    reason.get("Item", {}) if code == ACTION_CONDITION_FAILED else None
                    for code, reason in zip(codes, reasons, strict=True)
                ]
            if ACTION_CONFLICT not in codes and ACTION_THROTTLED.isdisjoint(codes):
                raise
            sleep(_POLL)
        else:
            return []
    raise MarkerError(f"the markers in table {ledger_table} cannot be written now: run this again later")


def _key(aggregation: str) -> dict[str, Any]:
    # An aggregate's name has a `#`, an aggregation's has none: a marker is not an aggregate's page.
    return {AGGREGATE_KEY: {"S": aggregation}, PAGE_KEY: {"S": BACKFILL_PAGE}}


def _marker(item: Mapping[str, Any]) -> Marker:
    def number(name: str) -> int:
        return int(item[name]["N"]) if name in item else 0

    finished = number(FINISHED_AT) if FINISHED_AT in item else None
    return Marker(item[CUT]["S"], number(STARTED_AT), finished, number(AGGREGATES), number(UNUSABLE))


def close_to_backfill(
    client: "DynamoDBClient", ledger_table: str, aggregation: Aggregation, cut: Cut, marker: Marker | None
) -> bool:
    """Sees to it that no backfill adds to totals that are being corrected; `False` if one is under way.

    A correction brings in what a backfill would have added, so one must not come after the other. Where there is no
    marker, one is left that says so; so is one in the place of a backfill that was begun from another cut than the one
    there is now, which can never be finished.

    Args:
        cut: from which a backfill would begin now.
        marker: what was found in the ledger.
    """
    if marker is not None and marker.finished_at is not None:
        return True
    if marker is not None and marker.cut == cut.name:
        return False
    now = {"N": str(int(time.time()))}
    condition, values = "attribute_not_exists(#cut)", {}
    if marker is not None:
        condition, values = "#cut = :cut AND attribute_not_exists(#finished)", {":cut": {"S": marker.cut}}
    try:
        client.put_item(
            TableName=ledger_table,
            Item={
                **_key(aggregation.name),
                CUT: {"S": REPAIR_CUT},
                STARTED_AT: now,
                FINISHED_AT: now,
                AGGREGATES: {"N": "0"},
                UNUSABLE: {"N": "0"},
            },
            ConditionExpression=condition,
            ExpressionAttributeNames={"#cut": CUT, **({"#finished": FINISHED_AT} if marker else {})},
            **({"ExpressionAttributeValues": values} if values else {}),  # type: ignore[arg-type]  # no empty ones
        )
    except ClientError as error:
        if code_of(error) != CONDITION_FAILED:
            raise
        standing = read_marker(client, ledger_table, aggregation.name)  # another repair, or a backfill
        return standing is not None and standing.finished_at is not None
    return True

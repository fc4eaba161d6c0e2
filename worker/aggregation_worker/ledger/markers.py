"""Backfill markers: from which cut an aggregation was or is being filled, and when that was finished."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation
from aggregation_worker.aggregations.definitions import moment_text
from aggregation_worker.ledger.receipts import AGGREGATE_KEY, BACKFILL_PAGE, PAGE_KEY
from aggregation_worker.streams.reader import stream_began
from aggregation_worker.streams.records import table_and_label

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# The marker's attributes.
CUT = "cut"
STARTED_AT = "started_at"
FINISHED_AT = "finished_at"
AGGREGATES = "aggregates"
UNUSABLE = "unusable"

# The cut of an aggregation whose totals were corrected instead of being backfilled.
REPAIR_CUT = "repair"


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


def cut_of(aggregation: Aggregation, stream_arn: str) -> Cut:
    """Where an aggregation begins to count the records of a stream."""
    if aggregation.since is not None:
        return Cut(f"since {moment_text(aggregation.since)}", datetime.fromtimestamp(aggregation.since, UTC))
    return Cut(f"stream {table_and_label(stream_arn)[1]}", stream_began(stream_arn))


def read_marker(client: "DynamoDBClient", ledger_table: str, aggregation: str) -> Marker | None:
    """What the ledger says of an aggregation's backfill; `None` where none has begun to post.

    Raises:
        ClientError: the ledger cannot be read.
    """
    item = client.get_item(TableName=ledger_table, Key=marker_key(aggregation), ConsistentRead=True).get("Item")
    return None if item is None else _marker(item)


def marker_key(aggregation: str) -> dict[str, Any]:
    """The key of an aggregation's marker, in DynamoDB's typed JSON."""
    # An aggregate's name has a `#`, an aggregation's has none: the marker is no aggregate's page.
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
                AGGREGATE_KEY: {"S": aggregation.name},
                PAGE_KEY: {"S": BACKFILL_PAGE},
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
        if error.response.get("Error", {}).get("Code") != "ConditionalCheckFailedException":
            raise
        standing = read_marker(client, ledger_table, aggregation.name)  # another repair, or a backfill
        return standing is not None and standing.finished_at is not None
    return True

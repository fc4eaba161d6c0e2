"""What is stored of one aggregate, seen together: its total, its row receipts and its pages.

**Why it is consistent.** A row is one item, so its total and its row receipts belong together. Receipts get onto pages
only by a write that also raises the row's watermark (`Archive`) or its count of late writes (`Late`, and the
corrections of a repair). So the row is read, then its pages, then the row again: if watermark, late writes and
generation are the same, the pages belong to the second row that was read, whatever was added to the row in between.
Pages after its watermark are those of an archive that is just being carried out, and are left out. One gap remains: a
transaction is not one moment for reads of several items ("Isolation levels", Amazon DynamoDB developer guide), so that
what is seen can be half a late write. Therefore no single reading decides anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.pages import Receipts, page_of
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    PAGE_KEY,
    REPAIR_PAGE_PREFIX,
    Aggregate,
    backfill_attribute,
    late_attribute,
    partition_of,
    position_in,
    read_backfill,
    read_receipt,
    row_receipts,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Readings of one aggregate before it is given up: a reading takes milliseconds, and archives and late writes of one
# aggregate are seconds apart.
_MOST_READINGS = 30


class ChangesTooFastError(WorkerError):
    """Archives or late writes came between all readings."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One aggregate as it is stored.

    Attributes:
        item: its row, in DynamoDB's typed JSON; empty if there is none.
        receipts: those of stream records, from the position on that was asked for.
        pages: for each receipt that is not in the row, the key of its page.
        starting_value: a backfill's, and where the aggregation begins to count; `None` if there is none.
        corrections: the receipts of repairs, by their page's number and their name.
        is_whole: no receipt of a stream record is missing, since no page has expired and all were asked for.
    """

    item: Mapping[str, Any]
    receipts: Receipts
    pages: Mapping[str, str]
    starting_value: tuple[str, Amounts] | None
    corrections: Mapping[tuple[int, str], Amounts]
    is_whole: bool = False


def read_stored(client: "DynamoDBClient", ledger_table: str, aggregate: Aggregate, first: str = "") -> Stored:
    """Reads an aggregate, strongly consistent; of its receipts those at position `first` and after it.

    Raises:
        ChangesTooFastError: it never stood still.
        ClientError: a table cannot be read.
    """
    row = _read_row(client, aggregate)
    for _ in range(_MOST_READINGS):
        pages = read_pages(client, ledger_table, aggregate, row, first)
        again = _read_row(client, aggregate)
        if _version(aggregate, again) == _version(aggregate, row):
            return stored_of(aggregate, again, pages, first)
        row = again
    name = f"{aggregate.aggregation.name} {', '.join(aggregate.row.group)}"
    raise ChangesTooFastError(f"{name}: its receipts moved {_MOST_READINGS} times while they were read")


def _read_row(client: "DynamoDBClient", aggregate: Aggregate) -> Mapping[str, Any]:
    row = aggregate.row
    return client.get_item(TableName=row.table, Key=row.key(), ConsistentRead=True).get("Item", {})


def _version(aggregate: Aggregate, item: Mapping[str, Any]) -> tuple[str, str, Any]:
    """What changes whenever pages do."""
    name = aggregate.aggregation.name
    receipts = row_receipts(item, name)
    return receipts.generation, receipts.archived, item.get(late_attribute(name))


def read_pages(
    client: "DynamoDBClient", ledger_table: str, aggregate: Aggregate, item: Mapping[str, Any], first: str = ""
) -> list[Mapping[str, Any]]:
    """Pages whose spans end at `first` or after it, and repairs, which sort after all of them."""
    name = aggregate.aggregation.name
    generation = row_receipts(item, name).generation
    if not generation:
        return []
    answers = client.get_paginator("query").paginate(
        TableName=ledger_table,
        KeyConditionExpression="#aggregate = :aggregate AND #page >= :first",
        ExpressionAttributeNames={"#aggregate": AGGREGATE_KEY, "#page": PAGE_KEY},
        ExpressionAttributeValues={
            ":aggregate": {"S": partition_of(name, aggregate.row.group, generation)},
            ":first": {"S": first or "0"},
        },
        ConsistentRead=True,
    )
    return [item for answer in answers for item in answer["Items"]]


def stored_of(
    aggregate: Aggregate, item: Mapping[str, Any], pages: Sequence[Mapping[str, Any]], first: str = ""
) -> Stored:
    """An aggregate whose row and pages were read."""
    name = aggregate.aggregation.name
    seen = row_receipts(item, name)
    receipts = {one: read_receipt(value) for one, value in (seen.values or {}).items() if position_in(one) >= first}
    page_keys: dict[str, str] = {}
    corrections: dict[tuple[int, str], Amounts] = {}
    spans = []
    for found in pages:
        key = found[PAGE_KEY]["S"]
        if key.startswith(REPAIR_PAGE_PREFIX):
            number = int(key.removeprefix(REPAIR_PAGE_PREFIX))
            corrections |= {
                (number, one): read_receipt(value)[0]
                for one, value in found.items()
                if one not in (AGGREGATE_KEY, PAGE_KEY)
            }
        elif key <= seen.archived:
            page = page_of(found)
            spans.append((page.after, page.key))
            on_page = {one: held for one, held in page.receipts().items() if position_in(one) >= first}
            receipts |= on_page
            page_keys |= dict.fromkeys(on_page, key)
    backfill = item.get(backfill_attribute(name))
    starting_value = None if backfill is None else read_backfill(backfill)
    # Each page begins after the one before it, the first after nothing.
    ends = ["", *(key for _, key in spans)]
    is_whole = not first and ends[-1] == seen.archived and [after for after, _ in spans] == ends[:-1]
    return Stored(item, receipts, page_keys, starting_value, corrections, is_whole)

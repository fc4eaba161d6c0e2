"""Corrections as they stand in the ledger: each has a page of its own, which is numbered.

Two receipts can stand on a correction's page: what was added and, if the total held something that no receipt proves
(somebody changed it, or its receipts have expired), how much that was. So the receipts of a total that has been
corrected add up to it, whichever of the two was wrong.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.numbers import Amounts, fits
from aggregation_worker.ledger.reading import Stored
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    PAGE_KEY,
    REPAIR_PAGE_PREFIX,
    Aggregate,
    archived_attribute,
    generation_attribute,
    kept_attribute,
    late_attribute,
    partition_of,
    receipt_value,
    row_receipts,
)
from aggregation_worker.ledger.writes import Update

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# The end of a receipt's name that says what a correction found in a total without a receipt.
FOUND = "found"
_ONE = Decimal(1)


def correction_page(number: int) -> str:
    """The ledger's page of an aggregate's first, second, … correction."""
    return f"{REPAIR_PAGE_PREFIX}{number:06d}"


def is_of_run(receipt: str, run: str) -> bool:
    """Whether a correction's receipt, by its name, was written by this run."""
    return receipt.split("|")[1:2] == [run]


@dataclass(frozen=True, slots=True)
class Correction:
    """One correction of an aggregate.

    Attributes:
        number: which of the aggregate's corrections it is, from 1.
        run: the name of the run that makes it.
        added: what is added to the measures, zeros among them.
    """

    aggregate: Aggregate
    number: int
    run: str
    added: Amounts

    def request(
        self, ledger_table: str, seen: Stored, found: Amounts, at: datetime, new_generation: str
    ) -> "list[TransactWriteItemTypeDef]":
        """The actions of its transaction: a page that must not be there yet, and the row, which must be what was seen.

        Not only its measures, and what is kept of them, must: a transaction's items do not appear at one moment, so an
        archive or a late write may have been seen on its pages and not yet in the row. Its part of the row is still to
        come then, and changes generation, watermark or late writes; the condition on these makes the correction wait
        for it. The correction itself counts as a late write, so that whoever reads the aggregate notices it.

        Args:
            found: what was found in the total without a receipt.
            at: the time of day, which the receipts show.
            new_generation: for a row that has none yet, since its pages' partition is named by it.
        """
        aggregation, row = self.aggregate.aggregation, self.aggregate.row
        receipts = row_receipts(seen.item, aggregation.name)
        generation, versions = receipts.generation, [generation_attribute, archived_attribute, late_attribute]
        update = Update()
        if receipts.values is None:
            generation, versions = new_generation, versions[1:]
            update.record(self.aggregate, (), generation)
        for measure, amount in zip(aggregation.measures, self.added, strict=True):
            update.equals(update.name(measure.name), seen.item.get(measure.name))
            update.add(measure.name, amount)
        kept = [kept_attribute(aggregation.name, measure.name) for measure in aggregation.measures]
        for name in (*(attribute(aggregation.name) for attribute in versions), *kept):
            update.equals(update.name(name), seen.item.get(name))
        update.add(late_attribute(aggregation.name), _ONE)
        stamp = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}|{self.run}"
        on_page: dict[str, Any] = {stamp: receipt_value(self.added)}
        if any(found) and all(map(fits, found)):
            on_page[f"{stamp}|{FOUND}"] = receipt_value(found)
        key = {
            AGGREGATE_KEY: {"S": partition_of(aggregation.name, row.group, generation)},
            PAGE_KEY: {"S": correction_page(self.number)},
        }
        put: TransactWriteItemTypeDef = {
            "Put": {
                "TableName": ledger_table,
                "Item": {**key, **on_page},  # no expires_at: nothing else proves what was added
                "ConditionExpression": "attribute_not_exists(#page)",
                "ExpressionAttributeNames": {"#page": PAGE_KEY},
            }
        }
        update_row: Any = {"TableName": row.table, "Key": row.key(), **update.parts()}
        return [put, {"Update": update_row}]

"""Corrections as they stand in the ledger: each has a page of its own, which is numbered.

Two receipts can stand on a correction's page: what was added and, if the total held something that no receipt proves
(somebody changed it, or its receipts have expired), how much that was. So the receipts of a total that has been
corrected add up to it, whichever of the two was wrong.
"""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.numbers import Amounts, fits
from aggregation_worker.ledger.receipts import AGGREGATE_KEY, PAGE_KEY, REPAIR_PAGE_PREFIX, receipt_value

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# The end of a receipt's name that says what a correction found in a total without a receipt.
FOUND = "found"


def correction_page(number: int) -> str:
    """The ledger's page of an aggregate's first, second, … correction."""
    return f"{REPAIR_PAGE_PREFIX}{number:06d}"


def correction_number(page: str) -> int:
    """The number of a correction's page; 0 for a backfill's."""
    text = page.removeprefix(REPAIR_PAGE_PREFIX)
    return int(text) if text.isdecimal() else 0


def is_of_run(receipt: str, run: str) -> bool:
    """Whether a correction's receipt, by its name, was written by this run."""
    return receipt.split("|")[1:2] == [run]


def correction_put(
    ledger_table: str, aggregate: str, page: str, run: str, at: datetime, added: Amounts, found: Amounts
) -> "TransactWriteItemTypeDef":
    """The part of a transaction that writes a correction's page, under the condition that it is not there.

    Args:
        aggregate: the aggregate's name in the ledger.
        at: the time of day, which the receipts show.
        found: what was found in the total without a receipt.
    """
    name = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}|{run}"
    receipts = {name: receipt_value(added)}
    if any(found) and all(map(fits, found)):
        receipts[f"{name}|{FOUND}"] = receipt_value(found)
    return {
        "Put": {
            "TableName": ledger_table,
            # No expires_at: nothing else proves what was added.
            "Item": {AGGREGATE_KEY: {"S": aggregate}, PAGE_KEY: {"S": page}, **receipts},
            "ConditionExpression": "attribute_not_exists(#page)",
            "ExpressionAttributeNames": {"#page": PAGE_KEY},
        }
    }

"""The transactions that post receipts together with the totals.

Pure functions; `commit` runs what they plan. The rule that makes every total exact stands here:

    One transaction sets a record's receipts on its receipt page **under the condition that none of them is there**, and
    adds the contributions to the aggregate. Either both happen or neither.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.numbers import EXACT, amount_text, fits
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    EXPIRES_AT,
    PAGE_KEY,
    Aggregate,
    Posting,
    Row,
    receipt_value,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# "Service, account, and table quotas", Amazon DynamoDB developer guide: 100 actions a transaction; an expression has at
# most 4 KB and 300 operators, which a condition over 120 receipts keeps below (3.6 KB, 239 operators).
MAX_ACTIONS = 100
MAX_RECEIPTS_PER_ACTION = 120
# A transaction is not made smaller than this, however many conflicts there are: two rows with a page each.
FEWEST_ACTIONS = 4


@dataclass(frozen=True, slots=True, eq=False)
class PageChange:
    """The receipts that one transaction adds to one page: at least one, at most `MAX_RECEIPTS_PER_ACTION`."""

    postings: tuple[Posting, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RowChange:
    """What one transaction does to one row: the pages that get receipts, and one ADD of all they contribute."""

    pages: tuple[PageChange, ...]

    @property
    def row(self) -> Row:
        """The row that all these pages' contributions go to."""
        return self.pages[0].postings[0].aggregate.row

    @property
    def postings(self) -> list[Posting]:
        """The postings of all pages."""
        return [posting for page in self.pages for posting in page.postings]

    def totals(self) -> dict[str, Decimal]:
        """The sum of the contributions, by measure name."""
        sums: dict[str, Decimal] = {}
        add = EXACT.add
        for page in self.pages:
            measures = page.postings[0].aggregate.aggregation.measures
            for position, measure in enumerate(measures):
                total = sums.get(measure.name, _ZERO)
                for posting in page.postings:
                    total = add(total, posting.amounts[position])
                sums[measure.name] = total
        return sums


_ZERO = Decimal(0)

Transaction = tuple[RowChange, ...]
"""The rows that one `TransactWriteItems` changes, each at most once."""


def plan(batch: Iterable[Posting]) -> tuple[list[Transaction], list[Posting]]:
    """Packs postings into transactions.

    Returns:
        The transactions, and the postings that another one of this batch already makes: the same record twice.
    """
    pages_by_row: dict[Row, dict[tuple[Aggregate, str], dict[str, Posting]]] = {}
    repeated = []
    for posting in batch:
        pages = pages_by_row.setdefault(posting.aggregate.row, {})
        page = pages.setdefault((posting.aggregate, posting.page), {})
        if page.setdefault(posting.receipt, posting) is not posting:
            repeated.append(posting)
    changes_by_row = [row_changes([tuple(page.values()) for page in pages.values()]) for pages in pages_by_row.values()]
    # The first change of every row, then the second of those that have one: a row's changes cannot run side by side.
    rounds = zip_longest(*changes_by_row)
    return pack(change for round_ in rounds for change in round_ if change is not None), repeated


def row_changes(pages: Sequence[tuple[Posting, ...]]) -> list[RowChange]:
    """Cuts what a row gets into changes that each fit into one transaction."""
    changes = []
    size = MAX_RECEIPTS_PER_ACTION
    pieces = [[PageChange(page[at : at + size]) for at in range(0, len(page), size)] for page in pages]
    for round_ in zip_longest(*pieces):
        layer = [piece for piece in round_ if piece is not None]
        for at in range(0, len(layer), MAX_ACTIONS - 1):
            changes.extend(_representable(RowChange(tuple(layer[at : at + MAX_ACTIONS - 1]))))
    return changes


def _representable(change: RowChange) -> list[RowChange]:
    """The change itself or, where its sums do not fit a DynamoDB number, one change for each of its postings."""
    if all(map(fits, change.totals().values())):
        return [change]
    return [RowChange((PageChange((posting,)),)) for posting in change.postings]


def halved(actions: int) -> int:
    """How large transactions may be after a conflict: the next one cancels, and DynamoDB charges for, half as much."""
    return max(FEWEST_ACTIONS, actions // 2)


def pack(changes: Iterable[RowChange], most_actions: int | None = None) -> list[Transaction]:
    """Puts changes together, in order, up to `MAX_ACTIONS` and each row once a transaction.

    With `most_actions` up to so many; a change that has more is a transaction of its own.
    The request stays far below DynamoDB's 4 MB: 100 actions of 120 receipts and 6 KB of keys are under 2 MB.
    """
    limit = MAX_ACTIONS if most_actions is None else min(most_actions, MAX_ACTIONS)
    transactions: list[Transaction] = []
    current: list[RowChange] = []
    rows: set[Row] = set()
    actions = 0
    for change in changes:
        size = len(change.pages) + 1
        if current and (actions + size > limit or change.row in rows):
            transactions.append(tuple(current))
            current, rows, actions = [], set(), 0
        current.append(change)
        rows.add(change.row)
        actions += size
    if current:
        transactions.append(tuple(current))
    return transactions


def transact_items(transaction: Transaction, ledger_table: str, expires_at: int) -> "list[TransactWriteItemTypeDef]":
    """The actions of a transaction: for each row its pages, then its ADD. Cancellation reasons come in this order."""
    items: list[TransactWriteItemTypeDef] = []
    for change in transaction:
        items.extend(_post_receipts(page, ledger_table, expires_at) for page in change.pages)
        items.append(_add_totals(change))
    return items


def starting_value_items(transaction: Transaction, ledger_table: str, _: int) -> "list[TransactWriteItemTypeDef]":
    """The actions of a backfill's transaction: for each row a page with the starting value's receipt, then its ADD.

    Unlike a record's receipt it is alone on its page, under the condition that there is no such page at all, and it
    never expires: an aggregate has one starting value, and this is its only proof.
    """
    items: list[TransactWriteItemTypeDef] = []
    for change in transaction:
        items.extend(_post_starting_value(posting, ledger_table) for posting in change.postings)
        items.append(_add_totals(change))
    return items


def _post_starting_value(posting: Posting, ledger_table: str) -> "TransactWriteItemTypeDef":
    return {
        "Update": {
            "TableName": ledger_table,
            "Key": {AGGREGATE_KEY: {"S": posting.aggregate.name}, PAGE_KEY: {"S": posting.page}},
            "UpdateExpression": "SET #receipt = :receipt",
            "ConditionExpression": "attribute_not_exists(#aggregate)",
            "ExpressionAttributeNames": {"#receipt": posting.receipt, "#aggregate": AGGREGATE_KEY},
            "ExpressionAttributeValues": {":receipt": receipt_value(posting.amounts)},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def _post_receipts(page: PageChange, ledger_table: str, expires_at: int) -> "TransactWriteItemTypeDef":
    first = page.postings[0]
    names: dict[str, str] = {}
    values: dict[str, Any] = {
        ":expires_at": {"N": str(expires_at)},
    }
    for number, posting in enumerate(page.postings):
        names[f"#{number}"] = posting.receipt
        values[f":{number}"] = receipt_value(posting.amounts)
    return {
        "Update": {
            "TableName": ledger_table,
            "Key": {AGGREGATE_KEY: {"S": first.aggregate.name}, PAGE_KEY: {"S": first.page}},
            "UpdateExpression": _set_expression(len(page.postings)),
            "ConditionExpression": _condition_expression(len(page.postings)),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def _add_totals(change: RowChange) -> "TransactWriteItemTypeDef":
    row = change.row
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    for number, (name, total) in enumerate(change.totals().items()):
        names[f"#{number}"] = name
        values[f":{number}"] = {"N": amount_text(total)}
    return {
        "Update": {
            "TableName": row.table,
            "Key": row.key(),
            "UpdateExpression": "ADD " + ", ".join(f"#{number} :{number}" for number in range(len(names))),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }
    }


@lru_cache(maxsize=MAX_RECEIPTS_PER_ACTION)
def _set_expression(receipts: int) -> str:
    return f"SET {', '.join(f'#{number} = :{number}' for number in range(receipts))}, {EXPIRES_AT} = :expires_at"


@lru_cache(maxsize=MAX_RECEIPTS_PER_ACTION)
def _condition_expression(receipts: int) -> str:
    return " AND ".join(f"attribute_not_exists(#{number})" for number in range(receipts))

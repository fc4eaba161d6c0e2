"""Receipt pages as they are read: what the ledger holds of one aggregate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    NO_RECEIPTS,
    PAGE_KEY,
    is_stream_page,
    page_name,
    read_receipt,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

ReceiptKey = tuple[str, str]
"""Which of its aggregate's receipts it is: page, and attribute name."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What the ledger holds of an aggregate, from some page on.

    Attributes:
        receipts: those of stream records.
        corrections: those that belong to no record: a backfill's and repairs'.
    """

    receipts: Mapping[ReceiptKey, Amounts]
    corrections: Mapping[ReceiptKey, Amounts]

    def same_as(self, other: "Pages") -> bool:
        """Whether both hold the same receipts."""
        return self._keys() == other._keys()  # noqa: SLF001 - of the same class

    def first_difference(self, other: "Pages") -> str:
        """The first page on which they differ, if they do."""
        return min(self._keys() ^ other._keys())[0]  # noqa: SLF001 - of the same class

    def before(self, page: str) -> "Pages":
        """What stands on the pages before this one."""
        return self._those(lambda key: key[0] < page)

    def after(self, page: str) -> "Pages":
        """What stands on this page and those after it."""
        return self._those(lambda key: key[0] >= page)

    def and_then(self, others: "Pages") -> "Pages":
        """What stands on pages of both, of which none are on the same."""
        return Pages({**self.receipts, **others.receipts}, {**self.corrections, **others.corrections})

    def _keys(self) -> set[ReceiptKey]:
        return self.receipts.keys() | self.corrections.keys()

    def _those(self, wanted: Callable[[ReceiptKey], bool]) -> "Pages":
        return Pages(
            {key: amounts for key, amounts in self.receipts.items() if wanted(key)},
            {key: amounts for key, amounts in self.corrections.items() if wanted(key)},
        )


def first_page(created_at: float) -> str:
    """Sorts before every page of a record created at this second (epoch) or later, and after all others."""
    return page_name(max(int(created_at), 0), "").removesuffix("|")


def read_pages(client: "DynamoDBClient", ledger_table: str, name: str, first: str, end: str | None = None) -> Pages:
    """Reads an aggregate's pages from `first` on and, if given, before `end`; corrections sort after the others."""
    receipts: dict[ReceiptKey, Amounts] = {}
    corrections: dict[ReceiptKey, Amounts] = {}
    answers = client.get_paginator("query").paginate(
        TableName=ledger_table,
        KeyConditionExpression="#aggregate = :aggregate AND "
        + ("#page >= :first" if end is None else "#page BETWEEN :first AND :end"),
        ExpressionAttributeNames={"#aggregate": AGGREGATE_KEY, "#page": PAGE_KEY},
        ExpressionAttributeValues={":aggregate": {"S": name}, ":first": {"S": first}}
        | ({} if end is None else {":end": {"S": end}}),
        ConsistentRead=True,
    )
    for item in (item for answer in answers for item in answer["Items"]):
        page = item[PAGE_KEY]["S"]
        if page == end:
            continue
        found = receipts if is_stream_page(page) else corrections
        for attribute, value in item.items():
            if attribute not in NO_RECEIPTS:
                found[page, attribute] = read_receipt(value)
    return Pages(receipts, corrections)


def receipt_names(client: "DynamoDBClient", ledger_table: str, name: str, page: str) -> frozenset[str]:
    """The names of the receipts on one page of an aggregate."""
    key = {AGGREGATE_KEY: {"S": name}, PAGE_KEY: {"S": page}}
    item = client.get_item(TableName=ledger_table, Key=key, ConsistentRead=True).get("Item", {})
    return frozenset(item) - NO_RECEIPTS

"""Receipt pages as they are read: what the ledger holds of one aggregate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

Place = tuple[str, str]
"""Where a receipt stands among those of its aggregate: page, and attribute name."""


@dataclass(frozen=True, slots=True)
class Pages:
    """What the ledger holds of an aggregate, from some page on.

    Attributes:
        receipts: those of stream records.
        corrections: those that belong to no record: a backfill's and repairs'.
    """

    receipts: Mapping[Place, Amounts]
    corrections: Mapping[Place, Amounts]

    def same_as(self, other: "Pages") -> bool:
        """Whether both hold the same receipts."""
        return self._places() == other._places()  # noqa: SLF001 - of the same class

    def first_difference(self, other: "Pages") -> str:
        """The first page on which they differ, if they do."""
        return min(self._places() ^ other._places())[0]  # noqa: SLF001 - of the same class

    def before(self, page: str) -> "Pages":
        """What stands on the pages before this one."""
        return self._those(lambda place: place[0] < page)

    def behind(self, page: str) -> "Pages":
        """What stands on this page and those behind it."""
        return self._those(lambda place: place[0] >= page)

    def and_then(self, others: "Pages") -> "Pages":
        """What stands on pages of both, of which none are on the same."""
        return Pages({**self.receipts, **others.receipts}, {**self.corrections, **others.corrections})

    def _places(self) -> set[Place]:
        return self.receipts.keys() | self.corrections.keys()

    def _those(self, wanted: Callable[[Place], bool]) -> "Pages":
        return Pages(
            {place: amounts for place, amounts in self.receipts.items() if wanted(place)},
            {place: amounts for place, amounts in self.corrections.items() if wanted(place)},
        )


def first_page(created_at: float) -> str:
    """Sorts before every page of a record created at this second (epoch) or later, and behind all others."""
    return page_name(max(int(created_at), 0), "").removesuffix("|")


def read_pages(client: "DynamoDBClient", ledger_table: str, name: str, first: str, end: str | None = None) -> Pages:
    """Reads an aggregate's pages from `first` on and, if given, before `end`; corrections sort behind the others."""
    receipts: dict[Place, Amounts] = {}
    corrections: dict[Place, Amounts] = {}
    values = {":aggregate": {"S": name}, ":first": {"S": first}} | ({} if end is None else {":end": {"S": end}})
    request: dict[str, Any] = {
        "TableName": ledger_table,
        "KeyConditionExpression": "#aggregate = :aggregate AND "
        + ("#page >= :first" if end is None else "#page BETWEEN :first AND :end"),
        "ExpressionAttributeNames": {"#aggregate": AGGREGATE_KEY, "#page": PAGE_KEY},
        "ExpressionAttributeValues": values,
        "ConsistentRead": True,
    }
    while True:
        answer = client.query(**request)
        for item in answer["Items"]:
            page = item[PAGE_KEY]["S"]
            if page == end:
                continue
            found = receipts if is_stream_page(page) else corrections
            for attribute, value in item.items():
                if attribute not in NO_RECEIPTS:
                    found[page, attribute] = read_receipt(value)
        if "LastEvaluatedKey" not in answer:
            return Pages(receipts, corrections)
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

"""What one write does to a row and its pages: the requests, and their conditions.

Pure; `next_write` decides which is next, and `commit` sends it. The rule that makes every total exact:

    A write adds contributions to a row **and** records their receipts, atomically, under a condition on the very item
    that would hold the receipts of an earlier delivery.

- **Add**, when every position is after the watermark and the receipts fit into the row: one `UpdateItem`, since an item
  is atomic. Condition: the watermark is absent or before the positions, the map of receipts is there, and none of these
  is in it (or: there is no map, and this makes it).
- **Archive**, when every position is after the watermark but the row would outgrow its kilobyte: a transaction that
  puts the older receipts on new pages. Condition: map, watermark and generation are what was seen; no page has these
  keys.
- **Late**, when the positions are at or before the watermark: a transaction that replaces the pages whose spans hold
  them. Condition: each page is what was read, and begins before the positions; the generation is what was seen.

The watermark never falls, so a record that is late stays late: wherever an earlier delivery put its receipt, every
later one's condition looks at the item that holds it. A row that somebody deletes begins anew in another generation,
whose pages are its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from typing import Any

from aggregation_worker.aggregations.numbers import EXACT, Amounts, amount_text, fits
from aggregation_worker.ledger.pages import Page
from aggregation_worker.ledger.receipts import (
    AFTER,
    AGGREGATE_KEY,
    PACKED,
    PAGE_KEY,
    Aggregate,
    Posting,
    Row,
    RowReceipts,
    archived_attribute,
    backfill_attribute,
    backfill_value,
    generation_attribute,
    kept_attribute,
    late_attribute,
    partition_of,
    position_in,
    receipts_attribute,
)

# Pages that one transaction reads and replaces, of the 100 actions that it may have; each can be cut into several.
MOST_LATE_PAGES = 24
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Add:
    """Receipts into the row, and their sum to its measures: one `UpdateItem`.

    Attributes:
        created: the generation of each aggregate whose map of receipts this write makes.
    """

    row: Row
    postings: tuple[Posting, ...]
    created: Mapping[Aggregate, str]

    def request(self) -> dict[str, Any]:
        """As `UpdateItem` takes it."""
        update = Update()
        for aggregate, postings in by_aggregate(self.postings).items():
            update.record(aggregate, postings, self.created.get(aggregate))
        update.add_sums(self.postings)
        return {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}


@dataclass(frozen=True, slots=True)
class Archive:
    """The older receipts of one aggregation to new pages, and new receipts with them: a transaction of pages and row.

    Attributes:
        aggregation: whose receipts; possibly of one that posts nothing, and only makes room.
        seen: what the row held of it.
        generation: of its pages: the row's, or a new one where the row has no map of receipts.
        pages: the new pages.
        rest: its receipts that stay in the row.
        postings: what is added; those of other aggregations go into the row, as with an `Add`.
        created: as for `Add`, of other aggregations.
    """

    row: Row
    aggregation: str
    seen: RowReceipts
    generation: str
    pages: tuple[Page, ...]
    rest: Mapping[str, Any]
    postings: tuple[Posting, ...]
    created: Mapping[Aggregate, str]

    def request(self, ledger_table: str, expires_at: int) -> list[dict[str, Any]]:
        """The actions of its transaction: the pages, then the row."""
        partition = partition_of(self.aggregation, self.row.group, self.generation)
        update = Update()
        map_, generation, watermark = map(
            update.name,
            (
                attribute(self.aggregation)
                for attribute in (receipts_attribute, generation_attribute, archived_attribute)
            ),
        )
        update.set(map_, {"M": dict(self.rest)})
        update.set(watermark, {"S": self.pages[-1].key})
        if self.seen.values is None:
            update.set(generation, {"S": self.generation})
            update.conditions.append(f"attribute_not_exists({map_})")
        else:
            update.equals(map_, {"M": dict(self.seen.values)})
            update.equals(generation, {"S": self.seen.generation})
            update.equals(watermark, {"S": self.seen.archived} if self.seen.archived else None)
        for aggregate, postings in by_aggregate(self.postings).items():
            if aggregate.aggregation.name != self.aggregation:
                update.record(aggregate, postings, self.created.get(aggregate))
        update.add_sums(self.postings)
        return [
            *(_put(page, None, ledger_table, partition, expires_at) for page in self.pages),
            {"Update": {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}},
        ]


@dataclass(frozen=True, slots=True)
class Late:
    """Receipts onto pages that are there already, and their sum to the row's measures.

    Attributes:
        generation: of the row as it was seen.
        read: the pages as they were read.
        pages: what takes their place: each page's part of the span, cut where it would be too large.
    """

    aggregate: Aggregate
    generation: str
    postings: tuple[Posting, ...]
    read: tuple[Page, ...]
    pages: tuple[Page, ...]

    def request(self, ledger_table: str, expires_at: int) -> list[dict[str, Any]]:
        """The actions of its transaction: the pages, then the row."""
        row, name = self.aggregate.row, self.aggregate.aggregation.name
        partition = partition_of(name, row.group, self.generation)
        read = {page.key: page for page in self.read}
        update = Update()
        update.equals(update.name(generation_attribute(name)), {"S": self.generation})
        update.add_sums(self.postings)
        update.add(late_attribute(name), Decimal(1))
        return [
            *(_put(page, read.get(page.key), ledger_table, partition, expires_at) for page in self.pages),
            {"Update": {"TableName": row.table, "Key": row.key(), **update.parts()}},
        ]


@dataclass(frozen=True, slots=True)
class Look:
    """Which pages hold the positions of late records: a strongly consistent `Query`, up to the last of them."""

    aggregate: Aggregate
    generation: str
    postings: tuple[Posting, ...]
    archived: str

    def request(self, ledger_table: str) -> dict[str, Any]:
        """As `Query` takes it: the pages from the first position to the watermark, so none that is no stream's.

        With a limit: a record that is very late may have thousands of pages after its own.
        """
        partition = partition_of(self.aggregate.aggregation.name, self.aggregate.row.group, self.generation)
        first = min(position_in(posting.receipt) for posting in self.postings)
        return {
            "TableName": ledger_table,
            "KeyConditionExpression": "#aggregate = :aggregate AND #page BETWEEN :first AND :archived",
            "ExpressionAttributeNames": {"#aggregate": AGGREGATE_KEY, "#page": PAGE_KEY},
            "ExpressionAttributeValues": {
                ":aggregate": {"S": partition},
                ":first": {"S": first},
                ":archived": {"S": self.archived},
            },
            "ConsistentRead": True,
            "Limit": min(len(self.postings), MOST_LATE_PAGES),
        }

    def is_over(self, found: Sequence[Page]) -> bool:
        """Whether the pages that were found reach the last position."""
        return bool(found) and found[-1].key >= max(position_in(posting.receipt) for posting in self.postings)


@dataclass(frozen=True, slots=True)
class Start:
    """A backfill's starting value, and its receipt beside it: one `UpdateItem`, under the condition that there is none.

    Attributes:
        postings: the only one, whose `receipt` names where the aggregation begins to count.
    """

    row: Row
    postings: tuple[Posting, ...]

    def request(self) -> dict[str, Any]:
        """As `UpdateItem` takes it."""
        (posting,) = self.postings
        update = Update()
        receipt = update.name(backfill_attribute(posting.aggregate.aggregation.name))
        update.set(receipt, backfill_value(posting.receipt, posting.amounts))
        update.equals(receipt, None)
        update.add_sums(self.postings)
        return {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}


Write = Add | Archive | Late | Start


def by_aggregate(postings: Iterable[Posting]) -> dict[Aggregate, list[Posting]]:
    """The postings of each aggregate."""
    found: dict[Aggregate, list[Posting]] = {}
    for posting in postings:
        found.setdefault(posting.aggregate, []).append(posting)
    return found


def sums_fit(postings: Sequence[Posting]) -> bool:
    """Whether DynamoDB can hold what one write would add; each contribution alone it can."""
    return len(postings) == 1 or all(map(fits, _sums(postings).values()))


def _sums(postings: Iterable[Posting]) -> dict[str, Decimal]:
    """What postings add to each attribute of their row: measures, and what is kept of them."""
    sums: dict[str, Decimal] = {}
    for aggregate, mine in by_aggregate(postings).items():
        aggregation = aggregate.aggregation
        for measure, amount in zip(aggregation.measures, _columns(one.amounts for one in mine), strict=True):
            sums[measure.name] = amount
        kept = [one.kept for one in mine if one.kept]
        if kept:
            for measure, amount in zip(aggregation.measures, _columns(kept), strict=True):
                sums[kept_attribute(aggregation.name, measure.name)] = amount
    return sums


def _columns(rows: Iterable[Amounts]) -> Iterable[Decimal]:
    return (reduce(EXACT.add, column, _ZERO) for column in zip(*rows, strict=True))


class Update:
    """An update expression and its condition in the making."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self._sets: list[str] = []
        self._adds: list[str] = []
        self._names: dict[str, str] = {}
        self._values: dict[str, Any] = {}

    def name(self, attribute: str) -> str:
        """A placeholder for an attribute's or an entry's name."""
        placeholder = f"#{len(self._names)}"
        self._names[placeholder] = attribute
        return placeholder

    def value(self, value: Mapping[str, Any]) -> str:
        """A placeholder for a value."""
        placeholder = f":{len(self._values)}"
        self._values[placeholder] = value
        return placeholder

    def record(self, aggregate: Aggregate, postings: Sequence[Posting], created: str | None) -> None:
        """Sets receipts in the aggregate's map, under the condition that they are to be there and are not.

        Args:
            created: the generation of the map, where it is made by this write.
        """
        name = aggregate.aggregation.name
        map_ = self.name(receipts_attribute(name))
        if created is not None:
            self.set(map_, {"M": {posting.receipt: posting.value() for posting in postings}})
            self.set(self.name(generation_attribute(name)), {"S": created})
            self.conditions.append(f"attribute_not_exists({map_})")
            return
        watermark = self.name(archived_attribute(name))
        first = self.value({"S": min(position_in(posting.receipt) for posting in postings)})
        self.conditions.append(f"attribute_exists({map_})")
        self.conditions.append(f"(attribute_not_exists({watermark}) OR {watermark} < {first})")
        for posting in postings:
            path = f"{map_}.{self.name(posting.receipt)}"
            self.set(path, posting.value())
            self.conditions.append(f"attribute_not_exists({path})")

    def equals(self, path: str, value: Mapping[str, Any] | None) -> None:
        """The condition that an attribute is what was seen; `None`: absent."""
        seen = f"attribute_not_exists({path})" if value is None else f"{path} = {self.value(value)}"
        self.conditions.append(seen)

    def set(self, path: str, value: Mapping[str, Any]) -> None:
        """Sets an attribute, or an entry of a map."""
        self._sets.append(f"{path} = {self.value(value)}")

    def add(self, attribute: str, amount: Decimal) -> None:
        """Adds to a number."""
        self._adds.append(f"{self.name(attribute)} {self.value({'N': amount_text(amount)})}")

    def add_sums(self, postings: Sequence[Posting]) -> None:
        """Adds what postings contribute."""
        for attribute, amount in _sums(postings).items():
            self.add(attribute, amount)

    def parts(self) -> dict[str, Any]:
        """The request's expressions; a condition that fails returns the item."""
        clauses = [f"{word} {', '.join(parts)}" for word, parts in (("SET", self._sets), ("ADD", self._adds)) if parts]
        return {
            "UpdateExpression": " ".join(clauses),
            "ConditionExpression": " AND ".join(self.conditions),
            "ExpressionAttributeNames": self._names,
            "ExpressionAttributeValues": self._values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


def _put(page: Page, read: Page | None, ledger_table: str, partition: str, expires_at: int) -> dict[str, Any]:
    """Writes a page: in place of the one that was read, if that is still the same, or where there is none."""
    names, values = {"#page": PAGE_KEY}, dict[str, Any]()
    condition = "attribute_not_exists(#page)"
    if read is not None:
        condition = "#after = :after AND #receipts = :receipts"
        names = {"#after": AFTER, "#receipts": PACKED}
        values = {"ExpressionAttributeValues": {":after": {"S": read.after}, ":receipts": {"B": read.packed}}}
    return {
        "Put": {
            "TableName": ledger_table,
            "Item": page.item(partition, expires_at),
            "ConditionExpression": condition,
            "ExpressionAttributeNames": names,
            **values,
        }
    }

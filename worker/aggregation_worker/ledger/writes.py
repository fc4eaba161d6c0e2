"""The next write of a row: what is known of it, and what is to be posted, decide; nothing else does.

Pure; `commit` sends what is decided here and learns from the answer. The rule that makes every total exact:

    A write adds contributions to a row **and** records their receipts, atomically, under a condition on the very item
    that would hold the receipts of an earlier delivery.

| write | when | condition |
|---|---|---|
| `Add` | every position is after the watermark, and the receipts fit | the watermark is absent or before the positions; the map is there, and none of the receipts is in it (or there is no map, and this makes it) |
| `Archive` | every position is after the watermark, but the row would outgrow its kilobyte | map, watermark and generation are what was seen; there are no pages with these keys |
| `Late` | the positions are at or before the watermark | each page is what was read, and begins before the positions; the generation is what was seen |

An `Add` is one `UpdateItem`, since an item is atomic; the others are transactions of a row and its pages. Whether a record
is after the watermark never turns back, so wherever an earlier delivery put its receipt, every later one's condition
looks at the item that holds it. A row that somebody deletes begins anew in another generation, whose pages are its own.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import reduce
from itertools import chain
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.numbers import EXACT, Amounts, amount_text, fits
from aggregation_worker.ledger.pages import Page, Receipts, cut
from aggregation_worker.ledger.receipts import (
    AFTER,
    AGGREGATE_KEY,
    PACKED,
    PAGE_KEY,
    Aggregate,
    Posting,
    Row,
    RowReceipts,
    aggregations_in,
    archived_attribute,
    generation_attribute,
    item_size,
    kept_attribute,
    late_attribute,
    partition_of,
    position_in,
    read_receipt,
    receipt_value,
    receipts_attribute,
    row_receipts,
    value_size,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.type_defs import QueryInputTypeDef, TransactWriteItemTypeDef, UpdateItemInputTypeDef

# Bytes. A write costs a unit for each begun kilobyte of its item, so a row's receipts fill what its other attributes
# leave of one; where that is less than a few receipts need, of the next one.
ROW_STEP = 1024
LEAST_ROOM = 256
# Of the room, what stays used after archiving. Shards lag behind one another: what is archived too early comes back as
# late, which costs four units; archiving half as much each time costs less than that.
KEPT_PART = 0.5
# Pages that one transaction rewrites, of the 100 actions that it may have; each can be cut into several.
MOST_LATE_PAGES = 24
# Bytes for a measure's number that is not there yet, and for a watermark.
_NUMBER_BYTES = 12
_POSITION_BYTES = 14
_GENERATION_BYTES = 6
_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Add:
    """Receipts into the row, and their sum to its measures.

    Attributes:
        created: the generation of each aggregate whose map of receipts this write makes.
    """

    row: Row
    postings: tuple[Posting, ...]
    created: Mapping[Aggregate, str]

    def request(self) -> "UpdateItemInputTypeDef":
        """As `UpdateItem` takes it."""
        update = _Update()
        for aggregate, postings in _by_aggregate(self.postings).items():
            name = aggregate.aggregation.name
            map_ = update.name(receipts_attribute(name))
            if aggregate in self.created:
                values = {posting.receipt: receipt_value(posting.amounts, posting.kept) for posting in postings}
                update.set(map_, {"M": values})
                update.set(update.name(generation_attribute(name)), {"S": self.created[aggregate]})
                update.conditions.append(f"attribute_not_exists({map_})")
                continue
            update.conditions.append(f"attribute_exists({map_})")
            watermark = update.name(archived_attribute(name))
            first = update.value({"S": min(position_in(posting.receipt) for posting in postings)})
            update.conditions.append(f"(attribute_not_exists({watermark}) OR {watermark} < {first})")
            for posting in postings:
                path = f"{map_}.{update.name(posting.receipt)}"
                update.set(path, receipt_value(posting.amounts, posting.kept))
                update.conditions.append(f"attribute_not_exists({path})")
        update.add_sums(self.postings)
        return {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}

    def known_after(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The row as it is known once this is in; its measures may be older."""
        after = dict(item) or self.row.key()
        for aggregate, postings in _by_aggregate(self.postings).items():
            name = aggregate.aggregation.name
            held = row_receipts(item, name).values or {}
            new = {posting.receipt: receipt_value(posting.amounts, posting.kept) for posting in postings}
            after[receipts_attribute(name)] = {"M": {**held, **new}}
            if aggregate in self.created:
                after[generation_attribute(name)] = {"S": self.created[aggregate]}
        return after


@dataclass(frozen=True, slots=True)
class Archive:
    """The older part of one aggregation's receipts to new pages, with new receipts among them.

    Attributes:
        aggregation: whose receipts; possibly of an aggregation that posts nothing, and only makes room.
        seen: what the row held of it.
        postings: what is added; all of it belongs to this aggregation.
        pages: the new pages.
        rest: the receipts that stay in the row.
    """

    row: Row
    aggregation: str
    seen: RowReceipts
    postings: tuple[Posting, ...]
    pages: tuple[Page, ...]
    rest: Mapping[str, Any]

    @property
    def through(self) -> str:
        """The new watermark."""
        return self.pages[-1].key

    def request(self, ledger_table: str, expires_at: int) -> "list[TransactWriteItemTypeDef]":
        """The actions of its transaction: the pages, then the row."""
        partition = partition_of(self.aggregation, self.row.group, self.seen.generation)
        update = _Update()
        map_ = update.name(receipts_attribute(self.aggregation))
        watermark = update.name(archived_attribute(self.aggregation))
        update.set(map_, {"M": dict(self.rest)})
        update.set(watermark, {"S": self.through})
        update.conditions += [
            f"{map_} = {update.value({'M': dict(self.seen.values or {})})}",
            f"{update.name(generation_attribute(self.aggregation))} = {update.value({'S': self.seen.generation})}",
            f"{watermark} = {update.value({'S': self.seen.archived})}"
            if self.seen.archived
            else f"attribute_not_exists({watermark})",
        ]
        update.add_sums(self.postings)
        return [
            *(_new_page(page, ledger_table, partition, expires_at) for page in self.pages),
            {"Update": {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}},
        ]

    def known_after(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The row as it is known once this is in; its measures may be older."""
        return dict(item) | {
            receipts_attribute(self.aggregation): {"M": dict(self.rest)},
            archived_attribute(self.aggregation): {"S": self.through},
        }


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

    def request(self, ledger_table: str, expires_at: int) -> "list[TransactWriteItemTypeDef]":
        """The actions of its transaction: the pages, then the row."""
        row, name = self.aggregate.row, self.aggregate.aggregation.name
        partition = partition_of(name, row.group, self.generation)
        read = {page.key: page for page in self.read}
        actions = [
            _replaced_page(read[page.key], page, ledger_table, partition, expires_at)
            if page.key in read
            else _new_page(page, ledger_table, partition, expires_at)
            for page in self.pages
        ]
        update = _Update()
        generation = update.name(generation_attribute(name))
        update.conditions.append(f"{generation} = {update.value({'S': self.generation})}")
        update.add_sums(self.postings)
        update.add(late_attribute(name), Decimal(1))
        return [*actions, {"Update": {"TableName": row.table, "Key": row.key(), **update.parts()}}]


@dataclass(frozen=True, slots=True)
class Look:
    """Which pages hold the positions of late records: a strongly consistent `Query`."""

    aggregate: Aggregate
    generation: str
    postings: tuple[Posting, ...]
    archived: str

    def request(self, ledger_table: str) -> "QueryInputTypeDef":
        """As `Query` takes it: the pages from the first position to the watermark, so none that is no stream's."""
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
        }


Write = Add | Archive | Late


@dataclass(frozen=True, slots=True)
class Step:
    """What is next for a row.

    Attributes:
        then: the next write, or what must be read first; `None`: there is none.
        duplicates: postings whose receipts are there; they are settled.
        differing: those of them whose receipts hold another amount: two versions of the worker read an image
            differently.
        unseen: late postings whose page was not among those that were found: it is not visible yet, or has expired.
    """

    then: Write | Look | None
    duplicates: tuple[Posting, ...] = ()
    differing: tuple[Posting, ...] = ()
    unseen: tuple[Posting, ...] = ()


def next_step(
    row: Row,
    item: Mapping[str, Any],
    left: Sequence[Posting],
    pages: Mapping[Aggregate, Sequence[Page]],
    new_generation: Callable[[], str],
) -> Step:
    """Decides the next write of a row.

    Args:
        item: the row as it was last seen, in DynamoDB's typed JSON; empty if it is not there, or not known.
        left: what is to be posted, to this row.
        pages: what the last look at the pages of late records found, by key; absent where there was none.
        new_generation: a few random characters.
    """
    known = {aggregate: row_receipts(item, aggregate.aggregation.name) for aggregate in _by_aggregate(left)}
    duplicates: list[Posting] = []
    differing: list[Posting] = []
    new: list[Posting] = []
    late: dict[Aggregate, list[Posting]] = {}
    for posting in left:
        receipts = known[posting.aggregate]
        if position_in(posting.receipt) <= receipts.archived:
            late.setdefault(posting.aggregate, []).append(posting)
        elif receipts.values is not None and posting.receipt in receipts.values:
            duplicates.append(posting)
            if read_receipt(receipts.values[posting.receipt]) != (posting.amounts, posting.kept):
                differing.append(posting)
        else:
            new.append(posting)
    if new:
        return Step(_new(row, item, new, known, new_generation), tuple(duplicates), tuple(differing))
    for aggregate, postings in late.items():
        if aggregate not in pages:
            look = Look(aggregate, known[aggregate].generation, tuple(postings), known[aggregate].archived)
            return Step(look, tuple(duplicates), tuple(differing))
        step = _late(aggregate, known[aggregate], postings, pages[aggregate])
        return replace(step, duplicates=(*duplicates, *step.duplicates), differing=(*differing, *step.differing))
    return Step(None, tuple(duplicates), tuple(differing))


def _new(
    row: Row,
    item: Mapping[str, Any],
    new: Sequence[Posting],
    known: Mapping[Aggregate, RowReceipts],
    new_generation: Callable[[], str],
) -> Add | Archive:
    """Receipts after the watermark: into the row if they fit, else to pages with the older part of the row's."""
    if not _sums_fit(new):
        new = new[:1]
    room, used = _room(row, item, known)
    sizes = {posting: _receipt_size(posting) for posting in new}
    if used and sum(used.values()) + sum(sizes.values()) > room:
        freed = dict(used)
        for posting in new:
            name = posting.aggregate.aggregation.name
            if name in freed:
                freed[name] += sizes[posting]
        name = max(freed, key=lambda one: freed[one])
        if freed[name]:
            others = sum(used.values()) + sum(sizes.values()) - freed[name]
            mine = [posting for posting in new if posting.aggregate.aggregation.name == name]
            return _archive(row, name, row_receipts(item, name), mine, int(room * KEPT_PART) - others)
    created = {posting.aggregate: new_generation() for posting in new if known[posting.aggregate].values is None}
    return Add(row, tuple(_first_that_fit(new, sizes, room - sum(used.values()))), created)


def _first_that_fit(new: Sequence[Posting], sizes: Mapping[Posting, int], room: int) -> list[Posting]:
    """All of them if they fit, else the oldest ones that do, and one at least."""
    if sum(sizes.values()) <= room:
        return list(new)
    chosen: list[Posting] = []
    for posting in sorted(new, key=lambda one: one.receipt):
        room -= sizes[posting]
        if chosen and room < 0:
            break
        chosen.append(posting)
    return chosen


def _archive(row: Row, name: str, seen: RowReceipts, mine: Sequence[Posting], budget: int) -> Archive:
    """Moves the older receipts to pages; the newest ones that fit into `budget` bytes stay."""
    values = {**(seen.values or {}), **{one.receipt: receipt_value(one.amounts, one.kept) for one in mine}}
    names = sorted(values)
    at = len(names)
    while at and (budget := budget - _entry_size(names[at - 1], values[names[at - 1]])) >= 0:
        at -= 1
    at = max(at, 1)
    while at < len(names) and position_in(names[at]) == position_in(names[at - 1]):
        at += 1  # receipts of one position stay together
    older: Receipts = {one: read_receipt(values[one]) for one in names[:at]}
    pages = cut(older, seen.archived, position_in(names[at - 1]))
    return Archive(row, name, seen, tuple(mine), tuple(pages), {one: values[one] for one in names[at:]})


def _late(aggregate: Aggregate, seen: RowReceipts, postings: Sequence[Posting], pages: Sequence[Page]) -> Step:
    """Receipts at or before the watermark: onto the pages whose spans hold their positions."""
    keys = [page.key for page in pages]
    duplicates: list[Posting] = []
    differing: list[Posting] = []
    unseen: list[Posting] = []
    by_page: dict[int, list[Posting]] = {}
    held: dict[int, Receipts] = {}
    for posting in postings:
        position = position_in(posting.receipt)
        index = bisect_left(keys, position)
        # A transaction's items do not appear at one moment: the right page may not be visible yet, and a later one be.
        if index == len(pages) or pages[index].after >= position:
            unseen.append(posting)
            continue
        if index not in held:
            held[index] = pages[index].receipts()
        found = held[index].get(posting.receipt)
        if found is None:
            by_page.setdefault(index, []).append(posting)
            continue
        duplicates.append(posting)
        if found != (posting.amounts, posting.kept):
            differing.append(posting)
    if not by_page:
        return Step(None, tuple(duplicates), tuple(differing), tuple(unseen))
    chosen = list(chain.from_iterable(list(by_page.values())[:MOST_LATE_PAGES]))
    if not _sums_fit(chosen):
        chosen = chosen[:1]
    fit = set(chosen)
    read, written = [], []
    for index, mine in by_page.items():
        added = {one.receipt: (one.amounts, one.kept) for one in mine if one in fit}
        if added:
            page = pages[index]
            read.append(page)
            written += cut({**held[index], **added}, page.after, page.key)
    late = Late(aggregate, seen.generation, tuple(chosen), tuple(read), tuple(written))
    return Step(late, tuple(duplicates), tuple(differing))


def _room(row: Row, item: Mapping[str, Any], known: Mapping[Aggregate, RowReceipts]) -> tuple[int, dict[str, int]]:
    """Bytes that the row has for receipts, and how many each aggregation's receipts use of them by now.

    The row's real size counts, attributes of a user's own included; what this write makes is reserved.
    """
    used = {name: value_size(item[receipts_attribute(name)]) - value_size({"M": {}}) for name in aggregations_in(item)}
    fixed = item_size(item or row.key()) - sum(used.values())
    for aggregate, receipts in known.items():
        aggregation = aggregate.aggregation
        if receipts.values is None:
            fixed += item_size({receipts_attribute(aggregation.name): {"M": {}}})
            fixed += len(generation_attribute(aggregation.name)) + _GENERATION_BYTES
        if not receipts.archived:
            fixed += len(archived_attribute(aggregation.name)) + _POSITION_BYTES
        fixed += sum(len(one.name) + _NUMBER_BYTES for one in aggregation.measures if one.name not in item)
    return -(-(fixed + LEAST_ROOM) // ROW_STEP) * ROW_STEP - fixed, used


def _receipt_size(posting: Posting) -> int:
    return _entry_size(posting.receipt, receipt_value(posting.amounts, posting.kept))


def _entry_size(name: str, value: Mapping[str, Any]) -> int:
    """Bytes of one receipt in its map."""
    return len(name) + value_size(value) + 1


def _by_aggregate(postings: Iterable[Posting]) -> dict[Aggregate, list[Posting]]:
    found: dict[Aggregate, list[Posting]] = {}
    for posting in postings:
        found.setdefault(posting.aggregate, []).append(posting)
    return found


def _sums_fit(postings: Sequence[Posting]) -> bool:
    """Whether DynamoDB can hold what one write would add; each contribution alone it can."""
    return len(postings) == 1 or all(map(fits, _sums(postings).values()))


def _sums(postings: Iterable[Posting]) -> dict[str, Decimal]:
    """What postings add to each attribute of their row: measures, and what is kept of them."""
    sums: dict[str, Decimal] = {}
    for aggregate, mine in _by_aggregate(postings).items():
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


class _Update:
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

    def parts(self) -> Any:
        """The request's expressions; a condition that fails returns the item."""
        clauses = [f"{word} {', '.join(parts)}" for word, parts in (("SET", self._sets), ("ADD", self._adds)) if parts]
        return {
            "UpdateExpression": " ".join(clauses),
            "ConditionExpression": " AND ".join(self.conditions),
            "ExpressionAttributeNames": self._names,
            "ExpressionAttributeValues": self._values,
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }


def _new_page(page: Page, ledger_table: str, partition: str, expires_at: int) -> "TransactWriteItemTypeDef":
    return {
        "Put": {
            "TableName": ledger_table,
            "Item": page.item(partition, expires_at),
            "ConditionExpression": "attribute_not_exists(#page)",
            "ExpressionAttributeNames": {"#page": PAGE_KEY},
        }
    }


def _replaced_page(
    read: Page, page: Page, ledger_table: str, partition: str, expires_at: int
) -> "TransactWriteItemTypeDef":
    return {
        "Put": {
            "TableName": ledger_table,
            "Item": page.item(partition, expires_at),
            "ConditionExpression": "#after = :after AND #receipts = :receipts",
            "ExpressionAttributeNames": {"#after": AFTER, "#receipts": PACKED},
            "ExpressionAttributeValues": {":after": {"S": read.after}, ":receipts": {"B": read.packed}},
        }
    }

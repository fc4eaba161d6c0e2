"""The next write of a row: what is known of it, and what is to be posted, decide; nothing else does.

Pure; `commit` sends what is decided here and learns from the answer. The rule that makes every total exact:

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

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import reduce
from itertools import chain
from typing import Any

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
    backfill_attribute,
    backfill_value,
    generation_attribute,
    item_size,
    kept_attribute,
    late_attribute,
    partition_of,
    position_in,
    read_backfill,
    read_receipt,
    receipt_value,
    receipts_attribute,
    row_receipts,
    value_size,
)

# Bytes. A write costs a unit for each begun kilobyte of its item, so a row's receipts fill what its other attributes
# leave of one; where that is less than a few receipts need, of the next one.
ROW_STEP = 1024
LEAST_ROOM = 256
# Of the room, what stays used after archiving. Shards lag behind one another: what is archived too early comes back as
# late, which costs four units; archiving half as much each time costs less than that.
KEPT_PART = 0.5
# Pages that one transaction reads and replaces, and that it writes, of the 100 actions that it may have.
MOST_LATE_PAGES = 24
MOST_PAGES = 90
# Bytes for a measure's number that is not there yet, and for a watermark.
_NUMBER_BYTES = 12
_POSITION_BYTES = 14
_GENERATION_BYTES = 6
_ZERO = Decimal(0)
_EMPTY = {"M": dict[str, Any]()}


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
        for aggregate, postings in _by_aggregate(self.postings).items():
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
        for aggregate, postings in _by_aggregate(self.postings).items():
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


def next_start(
    row: Row,
    item: Mapping[str, Any],
    left: Sequence[Posting],
    pages: Mapping[Aggregate, Sequence[Page]],  # noqa: ARG001 - a starting value is never on a page
    new_generation: Callable[[], str],  # noqa: ARG001 - and begins none
) -> Step:
    """Decides the next write of a row that gets starting values; as `next_step`."""
    for posting in left:
        found = item.get(backfill_attribute(posting.aggregate.aggregation.name))
        if found is None:
            return Step(Start(row, (posting,)))
        same = read_backfill(found) == (posting.receipt, posting.amounts)
        return Step(None, (posting,), () if same else (posting,))
    return Step(None)


def _new(
    row: Row,
    item: Mapping[str, Any],
    new: Sequence[Posting],
    known: Mapping[Aggregate, RowReceipts],
    new_generation: Callable[[], str],
) -> Add | Archive:
    """Receipts after the watermark: into the row if they fit, else to pages with the older part of the row's.

    Of aggregations that share the row, the one whose receipts take most of it makes room for all.
    """
    if not _sums_fit(new):
        new = new[:1]
    created = {aggregate: new_generation() for aggregate, receipts in known.items() if receipts.values is None}
    room, used = _room(row, item, known)
    for posting in new:
        name = posting.aggregate.aggregation.name
        used[name] = used.get(name, 0) + _entry_size(posting.receipt, _value(posting))
    if sum(used.values()) <= room:
        return Add(row, tuple(new), created)
    name = max(used, key=lambda one: used[one])
    others = sum(used.values()) - used[name]
    chosen = [one for one in new if others <= room or one.aggregate.aggregation.name == name]
    seen = row_receipts(item, name)
    values = dict(seen.values or {})
    values |= {one.receipt: _value(one) for one in chosen if one.aggregate.aggregation.name == name}
    names = sorted(values)
    at = _boundary(names, values, int(room * KEPT_PART) - others)
    pages = cut({one: read_receipt(values[one]) for one in names[:at]}, seen.archived, position_in(names[at - 1]))
    if len(pages) > MOST_PAGES:
        return _new(row, item, new[: len(new) // 2], known, new_generation)
    own = next((aggregate for aggregate in created if aggregate.aggregation.name == name), None)
    generation = seen.generation if own is None else created[own]
    rest = {one: values[one] for one in names[at:]}
    return Archive(row, name, seen, generation, tuple(pages), rest, tuple(chosen), created)


def _boundary(names: Sequence[str], values: Mapping[str, Any], budget: int) -> int:
    """How many of the sorted receipts are archived: the newest that fit into `budget` bytes stay, but not all."""
    at = len(names)
    while at > 1 and (budget := budget - _entry_size(names[at - 1], values[names[at - 1]])) >= 0:
        at -= 1
    while at < len(names) and position_in(names[at]) == position_in(names[at - 1]):
        at += 1  # receipts of one position stay together
    return at


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
    while True:
        fit = set(chosen)
        read, written = [], []
        for index, mine in by_page.items():
            added = {one.receipt: (one.amounts, one.kept) for one in mine if one in fit}
            if added:
                page = pages[index]
                read.append(page)
                written += cut({**held[index], **added}, page.after, page.key)
        if len(written) <= MOST_PAGES:
            late = Late(aggregate, seen.generation, tuple(chosen), tuple(read), tuple(written))
            return Step(late, tuple(duplicates), tuple(differing))
        chosen = chosen[: len(chosen) // 2]


def _room(row: Row, item: Mapping[str, Any], known: Mapping[Aggregate, RowReceipts]) -> tuple[int, dict[str, int]]:
    """Bytes that the row has for receipts, and how many each aggregation's receipts use of them by now.

    The row's real size counts, attributes of a user's own included; what this write makes is reserved.
    """
    used = {name: value_size(item[receipts_attribute(name)]) - value_size(_EMPTY) for name in aggregations_in(item)}
    fixed = item_size({**(item or row.key()), **{receipts_attribute(name): _EMPTY for name in used}})
    for aggregate, receipts in known.items():
        aggregation = aggregate.aggregation
        if receipts.values is None:
            fixed += item_size({receipts_attribute(aggregation.name): _EMPTY})
            fixed += len(generation_attribute(aggregation.name)) + _GENERATION_BYTES
        if not receipts.archived:
            fixed += len(archived_attribute(aggregation.name)) + _POSITION_BYTES
        fixed += sum(len(one.name) + _NUMBER_BYTES for one in aggregation.measures if one.name not in item)
    return -(-(fixed + LEAST_ROOM) // ROW_STEP) * ROW_STEP - fixed, used


def _value(posting: Posting) -> dict[str, Any]:
    return receipt_value(posting.amounts, posting.kept)


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
            self.set(map_, {"M": {posting.receipt: _value(posting) for posting in postings}})
            self.set(self.name(generation_attribute(name)), {"S": created})
            self.conditions.append(f"attribute_not_exists({map_})")
            return
        watermark = self.name(archived_attribute(name))
        first = self.value({"S": min(position_in(posting.receipt) for posting in postings)})
        self.conditions.append(f"attribute_exists({map_})")
        self.conditions.append(f"(attribute_not_exists({watermark}) OR {watermark} < {first})")
        for posting in postings:
            path = f"{map_}.{self.name(posting.receipt)}"
            self.set(path, _value(posting))
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

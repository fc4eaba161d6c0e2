"""The next write of a row: what is known of it, and what is to be posted, decide; nothing else does.

Pure; `writes` says what each write is, `commit` sends what is decided here and learns from the answer.
"""

from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from aggregation_worker.ledger.pages import Page, Receipts, cut
from aggregation_worker.ledger.receipts import (
    Aggregate,
    Posting,
    Row,
    RowReceipts,
    aggregations_in,
    archived_attribute,
    backfill_attribute,
    generation_attribute,
    item_size,
    kept_attribute,
    position_in,
    read_backfill,
    read_receipt,
    receipts_attribute,
    row_receipts,
    value_size,
)
from aggregation_worker.ledger.writes import (
    MOST_LATE_PAGES,
    Add,
    Archive,
    Late,
    Look,
    Start,
    Write,
    by_aggregate,
    sums_fit,
)

# Bytes. A write costs a unit for each begun kilobyte of its item, so a row's receipts fill what its other attributes
# leave of one; where that is less than a few receipts need, of the next one.
ROW_STEP = 1024
LEAST_ROOM = 256
# Of the room, what stays used after archiving. Shards lag behind one another: what is archived too early comes back as
# late, which costs four units; archiving half as much each time costs less than that.
KEPT_PART = 0.5
# Pages that one transaction writes, of the 100 actions that it may have.
MOST_PAGES = 90
# Bytes for a measure's number that is not there yet, and for a watermark.
_NUMBER_BYTES = 12
_POSITION_BYTES = 14
_GENERATION_BYTES = 6
_EMPTY = {"M": dict[str, Any]()}


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
    known = {aggregate: row_receipts(item, aggregate.aggregation.name) for aggregate in by_aggregate(left)}
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
    if not sums_fit(new):
        new = new[:1]
    created = {aggregate: new_generation() for aggregate, receipts in known.items() if receipts.values is None}
    room, used = _room(row, item, known, {one.aggregate for one in new if one.kept})
    for posting in new:
        name = posting.aggregate.aggregation.name
        used[name] = used.get(name, 0) + _entry_size(posting.receipt, posting.value())
    if sum(used.values()) <= room:
        return Add(row, tuple(new), created)
    name = max(used, key=lambda one: used[one])
    others = sum(used.values()) - used[name]
    chosen = [one for one in new if others <= room or one.aggregate.aggregation.name == name]
    seen = row_receipts(item, name)
    values = dict(seen.values or {})
    values |= {one.receipt: one.value() for one in chosen if one.aggregate.aggregation.name == name}
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
    if not sums_fit(chosen):
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


def _room(
    row: Row, item: Mapping[str, Any], known: Mapping[Aggregate, RowReceipts], keeping: Collection[Aggregate]
) -> tuple[int, dict[str, int]]:
    """Bytes that the row has for receipts, and how many each aggregation's receipts use of them by now.

    The row's real size counts, attributes of a user's own included; what this write makes is reserved.

    Args:
        keeping: those of the aggregates of which something is to be kept.
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
        numbers = [one.name for one in aggregation.measures]
        if aggregate in keeping:
            numbers += [kept_attribute(aggregation.name, name) for name in numbers]
        fixed += sum(len(name) + _NUMBER_BYTES for name in numbers if name not in item)
    return -(-(fixed + LEAST_ROOM) // ROW_STEP) * ROW_STEP - fixed, used


def _entry_size(name: str, value: Mapping[str, Any]) -> int:
    """Bytes of one receipt in its map."""
    return len(name) + value_size(value) + 1

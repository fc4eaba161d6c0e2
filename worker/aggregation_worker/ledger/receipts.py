"""Receipts: the proof that a record's contribution to an aggregate is in, and how a row and the ledger name it.

Pure. The newest receipts of an aggregate are stored in its own row, older ones on pages of the ledger (`pages`). Which
of the two holds a record's receipt depends on its **position** alone, and that on nothing but the record: a retry, a
batch cut differently, a bisected half, an invocation thought dead and a replay weeks later all look in the same place.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any

from aggregation_worker.aggregations.contributions import Aggregation, Contribution, Group, GroupKey, KeyType
from aggregation_worker.aggregations.numbers import EXACT, Amounts, amount_text, canonical_text, parse_number
from aggregation_worker.streams.records import StreamRecord

# The ledger's keys and its pages' attributes.
AGGREGATE_KEY = "aggregate"
PAGE_KEY = "page"
LEDGER_KEYS = ((AGGREGATE_KEY, KeyType.STRING), (PAGE_KEY, KeyType.STRING))
# The catalogue's keys. An aggregation's name has no `#` and is not empty: no page and no marker has such a one.
CATALOGUE_PARTITION = "#catalogue"
CATALOGUE_PAGE = "catalogue"
# Pages that hold no stream record's receipt: the marker of an aggregation's backfill, and repairs.
BACKFILL_PAGE = "backfill"
REPAIR_PAGE_PREFIX = "repair|"
AFTER = "after"
PACKED = "receipts"
EXPIRES_AT = "expires_at"

# A longer group is named by its digest: with its name and escapes it could exceed DynamoDB's 2,048 bytes for a key.
_LONGEST_PLAIN_GROUP = 1024
_SECONDS_PER_DAY = 86_400
# Hexadecimal digits of a position: its second (until 2106), and a digest that spreads the records of one second.
_SECOND_DIGITS = 8
_DIGEST_BYTES = 3


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of a target table; aggregations that share the table can share it. Compared by identity."""

    table: str
    keys: tuple[GroupKey, ...]
    group: Group

    def key(self) -> dict[str, Any]:
        """The row's key in DynamoDB's typed JSON."""
        return {key.name: {key.type.value: text} for key, text in zip(self.keys, self.group, strict=True)}

    def group_of(self, item: Mapping[str, Any]) -> Group:
        """The group of an item of the same table: the inverse of `key`."""
        return group_of(self.keys, item)


def group_of(keys: Sequence[GroupKey], item: Mapping[str, Any]) -> Group:
    """The group of a target table's item, from its key attributes."""
    texts = ((key, item[key.name][key.type.value]) for key in keys)
    return tuple(canonical_text(parse_number(text)) if key.type is KeyType.NUMBER else text for key, text in texts)


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """The totals of one aggregation in one row. Compared by identity."""

    aggregation: Aggregation
    row: Row


@dataclass(frozen=True, slots=True, eq=False)
class Posting:
    """One receipt to be written: what one record contributes to one aggregate. Compared by identity.

    Attributes:
        record: the record's index in its batch.
        created_at: the second of the stream that the record belongs to, in epoch seconds.
        receipt: the receipt's name, which begins with the record's position.
        amounts: the contribution.
        kept: what it adds to the numbers of what removed items keep contributing; empty if it adds nothing to them.
    """

    record: int
    created_at: int
    aggregate: Aggregate
    receipt: str
    amounts: Amounts
    kept: Amounts = ()

    def value(self) -> dict[str, Any]:
        """The receipt's value in a row, in DynamoDB's typed JSON."""
        return receipt_value(self.amounts, self.kept)


def position_of(record: StreamRecord) -> str:
    """A record's place in one total order: its creation second and a digest of its eventID, which sort as text."""
    digest = hashlib.blake2s(record.event_id.encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    return first_position(record.created_at) + digest


def first_position(created_at: float) -> str:
    """Sorts before every position of a record created at this second (epoch) or later, and after all others."""
    return f"{max(int(created_at), 0):0{_SECOND_DIGITS}x}"


def second_of(position: str) -> int:
    """The creation second of a position, in epoch seconds: the inverse of `first_position`."""
    return int(position[:_SECOND_DIGITS], 16)


def receipt_name(record: StreamRecord) -> str:
    """The name of a record's receipt: `<position>.<sequence number>`.

    Sequence numbers are unique within a shard only; the digest in the position tells records of several shards apart.
    """
    return f"{position_of(record)}.{record.sequence_number}"


def position_in(receipt: str) -> str:
    """The position with which a receipt's name begins."""
    return receipt.partition(".")[0]


# --- Attributes of a row ----------------------------------------------------------------------------------------------
# `definitions.RESERVED_PREFIXES` keeps their names from measures and keys.


def receipts_attribute(aggregation: str) -> str:
    """The map of an aggregation's row receipts: those of every record with a position after the watermark."""
    return f"receipts#{aggregation}"


def generation_attribute(aggregation: str) -> str:
    """Tells the row from one of the same key that was deleted before it; part of its pages' partition key."""
    return f"generation#{aggregation}"


def archived_attribute(aggregation: str) -> str:
    """The watermark: receipts at this position or before it are in the ledger; absent if nothing is archived."""
    return f"archived#{aggregation}"


def late_attribute(aggregation: str) -> str:
    """How many late writes and corrections there were, so that an observer notices them."""
    return f"late#{aggregation}"


def kept_attribute(aggregation: str, measure: str) -> str:
    """What removed items keep contributing to a measure."""
    return f"kept#{aggregation}#{measure}"


def backfill_attribute(aggregation: str) -> str:
    """The receipt of a backfill's starting value."""
    return f"backfill#{aggregation}"


@dataclass(frozen=True, slots=True)
class RowReceipts:
    """What a row says of one aggregation's receipts.

    Attributes:
        values: the row receipts by name, in DynamoDB's typed JSON; `None` where the row has no map of them yet.
        generation: see `generation_attribute`; empty where there is no map.
        archived: the watermark; empty where nothing is archived.
    """

    values: Mapping[str, Any] | None
    generation: str
    archived: str


def row_receipts(item: Mapping[str, Any], aggregation: str) -> RowReceipts:
    """Reads an aggregation's part of a row in DynamoDB's typed JSON."""
    found = item.get(receipts_attribute(aggregation))
    return RowReceipts(
        None if found is None else found["M"],
        item.get(generation_attribute(aggregation), _NO_TEXT)["S"],
        item.get(archived_attribute(aggregation), _NO_TEXT)["S"],
    )


_NO_TEXT = {"S": ""}


def aggregations_in(item: Mapping[str, Any]) -> list[str]:
    """The names of the aggregations that have row receipts in a row."""
    prefix = receipts_attribute("")
    return [name.removeprefix(prefix) for name in item if name.startswith(prefix)]


# --- Names and values in the ledger -----------------------------------------------------------------------------------


def partition_of(aggregation: str, group: Group, generation: str) -> str:
    """The ledger's partition key of an aggregate's pages, in one generation of its row."""
    return f"{aggregate_name(aggregation, group)}#{generation}"


@lru_cache(maxsize=4096)
def aggregate_name(aggregation: str, group: Group) -> str:
    """An aggregate's name: two different groups never share one.

    The group is written as JSON, in which no character can be mistaken for a separator; an aggregation's name has no
    `#`. A long group is named by its SHA-256, which cannot be mistaken for JSON since that begins with a bracket.
    """
    text = json.dumps(group, ensure_ascii=False, separators=(",", ":"))
    if len(text) > _LONGEST_PLAIN_GROUP or len(text.encode()) > _LONGEST_PLAIN_GROUP:
        text = "sha256-" + hashlib.sha256(text.encode()).hexdigest()
    return f"{aggregation}#{text}"


def aggregate_of(aggregation: Aggregation, group: Group) -> Aggregate:
    """One aggregate, in a row of its own object."""
    return Aggregate(aggregation, Row(aggregation.table, aggregation.keys, group))


def postings(batch: Iterable[tuple[int, StreamRecord, Sequence[Contribution]]]) -> list[Posting]:
    """The receipts to be written for a batch: record's index, record, and what it contributes."""
    rows: dict[tuple[str, Group], Row] = {}
    aggregates: dict[tuple[Aggregation, Group], Aggregate] = {}
    found = []
    for index, record, contributions in batch:
        if not contributions:
            continue
        receipt = receipt_name(record)
        for contribution in contributions:
            aggregation, group = contribution.aggregation, contribution.group
            aggregate = aggregates.get((aggregation, group))
            if aggregate is None:
                row = rows.setdefault((aggregation.table, group), Row(aggregation.table, aggregation.keys, group))
                aggregate = aggregates[aggregation, group] = Aggregate(aggregation, row)
            amounts, kept = contribution.amounts, contribution.kept
            found.append(Posting(index, record.created_at, aggregate, receipt, amounts, kept))
    return found


def without_repeats(found: Iterable[Posting]) -> tuple[list[Posting], list[Posting]]:
    """The first posting of each receipt, and those that make it again: the same record twice in a batch."""
    first: dict[tuple[Aggregate, str], Posting] = {}
    repeated = [one for one in found if first.setdefault((one.aggregate, one.receipt), one) is not one]
    return list(first.values()), repeated


def expiry(written_at: float, retention_days: int) -> int:
    """When a page may go, in epoch seconds: nothing can bring its records back any more.

    Counted from its last write, never from a record's creation: a record that is replayed late, or whose clock was
    wrong, gets a receipt that lasts as long as any other.
    """
    return int(written_at) + retention_days * _SECONDS_PER_DAY


def receipt_value(amounts: Sequence[Decimal], kept: Sequence[Decimal] = ()) -> dict[str, Any]:
    """A receipt's value in a row: the contribution; with several measures a list, in the order of the measures' names.

    One that changes what is kept holds two lists: the contribution, and what is kept.
    """
    if kept:
        return {"L": [{"L": _numbers(amounts)}, {"L": _numbers(kept)}]}
    texts = _numbers(amounts)
    return texts[0] if len(texts) == 1 else {"L": texts}


def _numbers(amounts: Sequence[Decimal]) -> list[dict[str, Any]]:
    return [{"N": amount_text(amount)} for amount in amounts]


def net(amounts: Amounts, kept: Amounts) -> Amounts:
    """What a contribution changes in what the items that are there are worth: in the total without what is kept."""
    return tuple(map(EXACT.subtract, amounts, kept)) if kept else amounts


def read_receipt(value: Mapping[str, Any]) -> tuple[Amounts, Amounts]:
    """The contribution that a receipt holds, and what it adds to what is kept: the inverse of `receipt_value`."""
    entries = value.get("L", [value])
    if "L" in entries[0]:
        return _amounts(entries[0]["L"]), _amounts(entries[1]["L"])
    return _amounts(entries), ()


def _amounts(entries: Iterable[Mapping[str, Any]]) -> Amounts:
    return tuple(Decimal(entry["N"]) for entry in entries)


def backfill_value(cut: str, amounts: Amounts) -> dict[str, Any]:
    """The value of a backfill's receipt in a row: where the aggregation begins to count, and the starting value."""
    return {"L": [{"S": cut}, {"L": _numbers(amounts)}]}


def read_backfill(value: Mapping[str, Any]) -> tuple[str, Amounts]:
    """The inverse of `backfill_value`."""
    cut, amounts = value["L"]
    return cut["S"], _amounts(amounts["L"])


# --- Sizes ------------------------------------------------------------------------------------------------------------


def item_size(item: Mapping[str, Any]) -> int:
    """Bytes of an item or a map's entries as DynamoDB counts them ("Item sizes and formats", developer guide).

    A number's size is documented as approximate, a byte for two digits and one more; the upper end is taken.
    """
    return sum(_text_size(name) + value_size(value) for name, value in item.items())


def value_size(value: Mapping[str, Any]) -> int:
    """Bytes of one value in DynamoDB's typed JSON, without its name."""
    ((kind, content),) = value.items()
    if kind == "N":
        return len(content) // 2 + 2
    if kind == "S":
        return _text_size(content)
    if kind == "M":
        return 3 + len(content) + item_size(content)
    if kind == "L":
        return 3 + len(content) + sum(map(value_size, content))
    if kind == "NS":
        return sum(len(one) // 2 + 2 for one in content)
    if kind in ("SS", "BS"):
        return sum(map(_text_size, content))
    return len(content) if kind == "B" else 1


def _text_size(content: str | bytes) -> int:
    return len(content) if isinstance(content, bytes) or content.isascii() else len(content.encode())

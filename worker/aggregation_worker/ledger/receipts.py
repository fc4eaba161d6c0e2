"""The ledger's keys, names and values: which item holds a receipt, and how it is written there.

Pure. A receipt page is `(aggregate, page)`. `aggregate` names aggregation and group, `page` the record's creation
second and the stream: nothing but the record decides where its receipt is, so a retry, a batch cut differently, a
bisected half, an invocation thought dead and a replay weeks later all meet the same condition on the same item.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from aggregation_worker.aggregations.contributions import Aggregation, Contribution, Group, GroupKey, KeyType
from aggregation_worker.aggregations.numbers import amount_text
from aggregation_worker.streams.records import StreamRecord

AGGREGATE_KEY = "aggregate"
PAGE_KEY = "page"
LEDGER_KEYS = ((AGGREGATE_KEY, KeyType.STRING), (PAGE_KEY, KeyType.STRING))
EXPIRES_AT = "expires_at"
DEFINITION_PAGE = "definition"
# Pages that hold no stream record's receipt. They never expire, since nothing else proves what they added; and they
# sort behind every page of a stream, which begins with a year.
BACKFILL_PAGE = "backfill"
REPAIR_PAGE_PREFIX = "repair|"
# The attributes of an aggregate's page that are no receipts.
NO_RECEIPTS = frozenset((AGGREGATE_KEY, PAGE_KEY, EXPIRES_AT))

# A longer group is named by its digest: with its name and escapes it could exceed DynamoDB's 2,048 bytes for a key.
_LONGEST_PLAIN_GROUP = 1024
_SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One row of a target table; aggregations that share the table can share it. Compared by identity."""

    table: str
    keys: tuple[GroupKey, ...]
    group: Group

    def key(self) -> dict[str, Any]:
        """The row's key in DynamoDB's typed JSON."""
        return {key.name: {key.type.value: text} for key, text in zip(self.keys, self.group, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate:
    """The totals of one aggregation in one row, and their name in the ledger. Compared by identity."""

    aggregation: Aggregation
    row: Row
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class Posting:
    """One receipt to be written: what one record contributes to one aggregate. Compared by identity.

    Attributes:
        record: the record's index in its batch.
        created_at: the second of the stream that the record belongs to, in epoch seconds.
        receipt: the receipt's attribute name on its page.
    """

    record: int
    created_at: int
    aggregate: Aggregate
    page: str
    receipt: str
    amounts: tuple[Decimal, ...]


@lru_cache(maxsize=4096)
def aggregate_name(aggregation: str, group: Group) -> str:
    """The ledger's partition key for a group: two different groups never share one.

    The group stands as JSON, in which no character can be mistaken for a separator; an aggregation's name has no `#`.
    A long group is named by its SHA-256, which cannot be mistaken for JSON since that begins with a bracket.
    """
    text = json.dumps(group, ensure_ascii=False, separators=(",", ":"))
    if len(text) > _LONGEST_PLAIN_GROUP or len(text.encode()) > _LONGEST_PLAIN_GROUP:
        text = "sha256-" + hashlib.sha256(text.encode()).hexdigest()
    return f"{aggregation}#{text}"


@lru_cache(maxsize=4096)
def page_name(created_at: int, stream_label: str) -> str:
    """The ledger's sort key: the record's second, which sorts as text, and the stream that counts its sequence."""
    return f"{datetime.fromtimestamp(created_at, UTC):%Y-%m-%dT%H:%M:%SZ}|{stream_label}"


def is_stream_page(page: str) -> bool:
    """Whether a page holds receipts of stream records, and neither a backfill's, a repair's nor a definition."""
    return page[:1].isdecimal()


def receipt_name(record: StreamRecord) -> str:
    """The attribute that proves a record's contribution to be in.

    Sequence numbers are unique within a shard only, and a page can hold records of several; the first eight hexadecimal
    digits of the eventID's digest tell them apart. Neither changes when a record is delivered again.
    """
    digest = hashlib.blake2s(record.event_id.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{record.sequence_number}.{digest}"


def aggregate_of(aggregation: Aggregation, group: Group) -> Aggregate:
    """One aggregate: its row, and its name in the ledger."""
    return Aggregate(
        aggregation, Row(aggregation.table, aggregation.keys, group), aggregate_name(aggregation.name, group)
    )


def postings(batch: Iterable[tuple[int, StreamRecord, Sequence[Contribution]]]) -> list[Posting]:
    """The receipts to be written for a batch: record's index, record, and what it contributes."""
    rows: dict[tuple[str, Group], Row] = {}
    aggregates: dict[tuple[Aggregation, Group], Aggregate] = {}
    found = []
    for index, record, contributions in batch:
        if not contributions:
            continue
        page = page_name(record.created_at, record.stream_label)
        receipt = receipt_name(record)
        for contribution in contributions:
            aggregation, group = contribution.aggregation, contribution.group
            aggregate = aggregates.get((aggregation, group))
            if aggregate is None:
                row = rows.setdefault((aggregation.table, group), Row(aggregation.table, aggregation.keys, group))
                aggregate = Aggregate(aggregation, row, aggregate_name(aggregation.name, group))
                aggregates[aggregation, group] = aggregate
            found.append(Posting(index, record.created_at, aggregate, page, receipt, contribution.amounts))
    return found


def expiry(written_at: float, retention_days: int) -> int:
    """When a page may go, in epoch seconds: nothing can bring its records back any more.

    Counted from the writing of its last receipt, never from the record's creation: a record that is replayed late, or
    whose clock was wrong, gets a receipt that lasts as long as any other.
    """
    return int(written_at) + retention_days * _SECONDS_PER_DAY


def receipt_value(amounts: Sequence[Decimal]) -> dict[str, Any]:
    """A receipt's content: the contribution; with several measures a list, in the order of the measures' names."""
    texts = [{"N": amount_text(amount)} for amount in amounts]
    return texts[0] if len(texts) == 1 else {"L": texts}


def read_receipt(value: Mapping[str, Any]) -> tuple[Decimal, ...]:
    """The contribution that a receipt holds, in the order of the measures' names: the inverse of `receipt_value`."""
    entries = value.get("L", [value])
    return tuple(Decimal(entry["N"]) for entry in entries)

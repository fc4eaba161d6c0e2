"""Observations of single aggregates: by how much a total differs from its source, exactly and at any time.

For an aggregate at the moment t of an observation,

    difference(t) = total(t) - contributions of the later records whose receipts are in the ledger at t - baseline,

where a *later record* is one that follows the cut, and the *baseline* is what the items were worth at the cut. A later
record's contribution enters total and ledger in one transaction, so whatever is being written, the difference stays as
it is. It moves only when a record from before the cut arrives (then towards zero), or when something other than the
worker changes a total: it is zero once all records before the cut are applied, or there is drift.

**How a total and its receipts are seen together.** A total changes only with a receipt. The pages are read, then the
total, then the pages again, all strongly consistent; if both readings show the same receipts, the total belongs to
exactly these. One gap is left: a transaction is not one moment for reads of several items ("Isolation levels", Amazon
DynamoDB developer guide), so an observation can meet it between its two writes. Therefore no single one decides: drift
is what observations at different times agree on, and a correction is made under the condition that the total still is
what was seen.

Only reads; `repair` writes. Which receipts belong to later records, the caller learns from the stream.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.contributions import Aggregation, Group, GroupKey, KeyType
from aggregation_worker.aggregations.numbers import EXACT, Amounts, canonical_text, parse_number, sum_of
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.pages import Pages, ReceiptKey, read_pages
from aggregation_worker.ledger.receipts import Aggregate
from aggregation_worker.streams.records import Image

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Readings of one aggregate's pages before an observation is given up. A reading takes milliseconds, and a worker adds
# receipts to an aggregate a few times a second.
_MOST_READINGS = 30
_ZERO = Decimal(0)


class ChangesTooFastError(WorkerError):
    """The receipts changed during every reading: an aggregate that is written many times a second."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The measures of a row as stored.

    Attributes:
        amounts: what is absent counts as zero; `None` where a measure is not a number, on which the worker fails, too.
        absent: the measures that are not there; all of them where there is no row.
    """

    amounts: Amounts | None
    absent: frozenset[str]


@dataclass(frozen=True, slots=True)
class Observation:
    """A total, and exactly the receipts that it includes.

    Attributes:
        seen_at: when the observation was over, in seconds of `time.monotonic`: whatever it shows was written before.
    """

    seen_at: float
    stored: Stored
    pages: Pages


def observe(
    client: "DynamoDBClient",
    ledger_table: str,
    aggregate: Aggregate,
    first: str,
    clock: Callable[[], float] = time.monotonic,
) -> Observation:
    """Sees a total together with its receipts, those on page `first` and after it.

    Where receipts arrive while the pages are read, those that they arrive on are read apart: they are few and quick to
    read, while the many before them are read once more at the end, to see that they have not changed in between.

    Raises:
        ChangesTooFastError: the receipts changed during every reading.
        ClientError: a table cannot be read.
    """
    still, moving_from = Pages({}, {}), first
    before = read_pages(client, ledger_table, aggregate.name, first)
    for _ in range(_MOST_READINGS):
        stored = read_total(client, aggregate)
        again = read_pages(client, ledger_table, aggregate.name, moving_from)
        if again.same_as(before):
            if moving_from == first:
                return Observation(clock(), stored, again)
            if read_pages(client, ledger_table, aggregate.name, first, moving_from).same_as(still):
                return Observation(clock(), stored, still.and_then(again))
            still, moving_from = Pages({}, {}), first
            again = read_pages(client, ledger_table, aggregate.name, first)
        elif moving_from == first:
            moving_from = again.first_difference(before)
            still, again = again.before(moving_from), again.after(moving_from)
        before = again
    raise ChangesTooFastError(f"{aggregate.name}: its receipts changed {_MOST_READINGS} times while it was observed")


def read_total(client: "DynamoDBClient", aggregate: Aggregate) -> Stored:
    """Reads an aggregate's measures, strongly consistent."""
    row = aggregate.row
    item = client.get_item(TableName=row.table, Key=row.key(), ConsistentRead=True).get("Item", {})
    return stored_in(aggregate.aggregation, item)


def stored_in(aggregation: Aggregation, row: Image) -> Stored:
    """An aggregation's measures in a row in DynamoDB's typed JSON."""
    absent = frozenset(measure.name for measure in aggregation.measures if measure.name not in row)
    try:
        amounts = tuple(
            _ZERO if measure.name in absent else parse_number(row[measure.name].get("N"))
            for measure in aggregation.measures
        )
    except ValueError:
        return Stored(None, absent)
    return Stored(amounts, absent)


def rows_of(client: "DynamoDBClient", aggregation: Aggregation) -> Iterator[tuple[Group, Amounts | None]]:
    """Every row of an aggregation's table that is its own, with its measures; `None` where one is not a number.

    A row is its own if it holds one of its measures and the keys begin with its prefixes: other aggregations can share
    the table, and under other prefixes even the measures' names.
    """
    answers = client.get_paginator("scan").paginate(TableName=aggregation.table, ConsistentRead=True)
    for row in (row for answer in answers for row in answer["Items"]):
        group = tuple(_key_text(key, row[key.name]) for key in aggregation.keys)
        stored = stored_in(aggregation, row)
        own = all(text.startswith(key.prefix) for key, text in zip(aggregation.keys, group, strict=True))
        if own and len(stored.absent) < len(aggregation.measures):
            yield group, stored.amounts


def _key_text(key: GroupKey, value: Mapping[str, Any]) -> str:
    text: str = value[key.type.value]
    return canonical_text(parse_number(text)) if key.type is KeyType.NUMBER else text


@dataclass(frozen=True, slots=True)
class ComparedTotal:
    """An observation, and what the source says of it.

    Attributes:
        later: the contributions of all later records that had been written when the observation was over.
        baseline: what the items were worth at the cut.
    """

    observation: Observation
    later: Mapping[ReceiptKey, Amounts]
    baseline: Amounts

    @property
    def total(self) -> Amounts | None:
        """As stored; `None` where a measure is not a number."""
        return self.observation.stored.amounts

    @property
    def expected(self) -> Amounts:
        """What the total should be, with those later records that have been counted."""
        receipts = self.observation.pages.receipts
        return sum_of((self.later[key] for key in receipts if key in self.later), self.baseline)

    @property
    def difference(self) -> Amounts | None:
        """By how much the total differs from its source; `None` where it is not a number."""
        return None if self.total is None else tuple(map(EXACT.subtract, self.total, self.expected))

    @property
    def waiting(self) -> set[ReceiptKey]:
        """The later records that have no receipt yet."""
        return self.later.keys() - self.observation.pages.receipts.keys()

    @property
    def any_counted(self) -> bool:
        """Whether a later record has its receipt."""
        return len(self.waiting) < len(self.later)


class VerdictSoFar(Enum):
    """What the observations of an aggregate have shown together."""

    OPEN = "open"  # observe it again
    EQUAL = "equal"  # no difference, and the worker keeps up
    BEHIND = "behind"  # later records have waited for their receipts all the time
    DIFFERENT = "different"  # the same difference all the time


@dataclass(slots=True)
class Observations:
    """The observations of one aggregate so far.

    Attributes:
        difference: as the last one showed it.
        unchanged_since: when it was first seen like this, in seconds.
        waiting: the later records without a receipt in the last one, and when each was first seen so.
    """

    difference: Amounts | None = None
    unchanged_since: float | None = None
    waiting: dict[ReceiptKey, float] = field(default_factory=dict)
    _begun_at: float = 0.0
    _seen_at: float = 0.0

    def add(self, difference: Amounts | None, waiting: Collection[ReceiptKey], seen_at: float) -> None:
        """Takes note of an observation: what it showed, and which later records had no receipt in it."""
        if self.unchanged_since is None:
            self._begun_at = seen_at
        if self.unchanged_since is None or difference != self.difference:
            self.difference, self.unchanged_since = difference, seen_at
        self.waiting = {key: self.waiting.get(key, seen_at) for key in waiting}
        self._seen_at = seen_at

    def verdict_so_far(self, patience: float) -> VerdictSoFar:
        """What can be said at the time of the last observation; `patience` is in seconds.

        Nothing is decided by one observation alone, except that there is no difference and nothing waits.
        """
        if self.unchanged_since is None:
            return VerdictSoFar.OPEN
        if self.difference is not None and not any(self.difference):
            if all(first > self._begun_at for first in self.waiting.values()):
                return VerdictSoFar.EQUAL
            behind = self._seen_at > self._begun_at and self.stuck(patience)
            return VerdictSoFar.BEHIND if behind else VerdictSoFar.OPEN
        unchanged_for = self._seen_at - self.unchanged_since
        return VerdictSoFar.DIFFERENT if 0 < unchanged_for >= patience else VerdictSoFar.OPEN

    def stuck(self, patience: float) -> list[ReceiptKey]:
        """The later records that have had no receipt for `patience` seconds."""
        return [key for key, first in self.waiting.items() if self._seen_at - first >= patience]

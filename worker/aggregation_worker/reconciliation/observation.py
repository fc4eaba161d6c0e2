"""Observations of single aggregates: by how much a total differs from its source, exactly and at any time.

For an aggregate at the moment t of an observation,

    difference(t) = total(t) - kept(t) - contributions of the later records whose receipts are stored at t - baseline,

where *kept* is what removed items keep contributing to the total, a *later record* is one that follows the cut, and the
*baseline* is what the items were worth at the cut. A later record's contribution, without what it keeps, enters the
difference in the same write as its receipt, so whatever is being written, the difference stays as it is. It moves only
when a record from before the cut arrives (then towards zero), or when something other than the worker changes a total:
it is zero once all records before the cut are applied, or there is drift.

How a total and its receipts are seen together, `ledger.reading` explains, and why one reading alone decides nothing:
drift is what observations at different times agree on, and so is a correction.

A total is compared with its receipts, too (`unexplained`): the source says nothing of what is kept, and nothing of an
aggregation that ignores what is removed.

Only reads; `repair` writes. Which receipts belong to later records, the caller learns from the stream.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.numbers import EXACT, Amounts, parse_number, sum_of
from aggregation_worker.ledger.pages import Receipts
from aggregation_worker.ledger.reading import Stored, read_stored
from aggregation_worker.ledger.receipts import Aggregate, group_of, kept_attribute, net, position_in
from aggregation_worker.streams.records import Image

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

_ZERO = Decimal(0)


@dataclass(frozen=True, slots=True)
class Observation:
    """A total, and the receipts that it includes.

    Attributes:
        first: the position from which on its receipts were read.
        stored: row and receipts.
        total: the row's measures; `None` where one is not a number, on which the worker fails, too.
        kept: what removed items keep contributing to them; `None` as for `total`.
        seen_at: when the observation was over, in seconds of `time.monotonic`: whatever it shows was written before.
    """

    first: str
    stored: Stored
    total: Amounts | None
    kept: Amounts | None
    seen_at: float = 0.0

    def receipts_from(self, first: str) -> Receipts:
        """The receipts at a position and after it."""
        return {name: receipt for name, receipt in self.stored.receipts.items() if position_in(name) >= first}


def observe(
    client: "DynamoDBClient",
    ledger_table: str,
    aggregate: Aggregate,
    first: str = "",
    clock: Callable[[], float] = time.monotonic,
) -> Observation:
    """Sees a total together with its receipts, those at position `first` and after it.

    Raises:
        ChangesTooFastError: the receipts moved to pages during every reading.
        ClientError: a table cannot be read.
    """
    stored = read_stored(client, ledger_table, aggregate, first)
    measures, kept = measures_in(aggregate.aggregation, stored.item), kept_in(aggregate.aggregation, stored.item)
    return Observation(first, stored, measures, kept, clock())


def measures_in(aggregation: Aggregation, row: Image) -> Amounts | None:
    """An aggregation's measures in a row; what is absent counts as zero. `None` where one is not a number."""
    return _numbers(row, [measure.name for measure in aggregation.measures])


def kept_in(aggregation: Aggregation, row: Image) -> Amounts | None:
    """What removed items keep contributing to an aggregation's measures; otherwise as `measures_in`."""
    return _numbers(row, [kept_attribute(aggregation.name, measure.name) for measure in aggregation.measures])


def worth_in(aggregation: Aggregation, row: Image) -> Amounts | None:
    """A total without what is kept of it: what the items that are there are worth; otherwise as `measures_in`."""
    measures, kept = measures_in(aggregation, row), kept_in(aggregation, row)
    return None if measures is None or kept is None else net(measures, kept)


def _numbers(row: Image, names: Sequence[str]) -> Amounts | None:
    try:
        return tuple(parse_number(row[name].get("N")) if name in row else _ZERO for name in names)
    except ValueError:
        return None


def unexplained(aggregation: Aggregation, stored: Stored) -> Amounts | None:
    """What the measures, and what is kept of them, hold without a receipt.

    `None` where that is not known: receipts may have expired, or something is not a number.
    """
    total, kept = measures_in(aggregation, stored.item), kept_in(aggregation, stored.item)
    if not stored.is_whole or total is None or kept is None:
        return None
    zero = (_ZERO,) * len(total)
    receipts = stored.receipts.values()
    starting_value = () if stored.starting_value is None else (stored.starting_value[1],)
    explained = sum_of((*(amounts for amounts, _ in receipts), *stored.corrections.values(), *starting_value), zero)
    explained_kept = sum_of((keeps for _, keeps in receipts if keeps), zero)
    return tuple(map(EXACT.subtract, (*total, *kept), (*explained, *explained_kept)))


def rows_of(client: "DynamoDBClient", aggregation: Aggregation) -> Iterator[tuple[Group, Image]]:
    """Every row of an aggregation's table that is its own.

    A row is its own if it holds one of its measures and the keys begin with its prefixes: other aggregations can share
    the table, and under other prefixes even the measures' names.
    """
    answers = client.get_paginator("scan").paginate(TableName=aggregation.table, ConsistentRead=True)
    for row in (row for answer in answers for row in answer["Items"]):
        group = group_of(aggregation.keys, row)
        own = all(text.startswith(key.prefix) for key, text in zip(aggregation.keys, group, strict=True))
        if own and any(measure.name in row for measure in aggregation.measures):
            yield group, row


@dataclass(frozen=True, slots=True)
class ComparedTotal:
    """An observation, and what the source says of it.

    Attributes:
        later: the receipts of all later records that had been written when the observation was over, as they are to
            be.
        baseline: what the items were worth at the cut.
    """

    observation: Observation
    later: Receipts
    baseline: Amounts

    @property
    def total(self) -> Amounts | None:
        """As stored; `None` where a measure, or what is kept of it, is not a number."""
        return None if self.observation.kept is None else self.observation.total

    @property
    def expected(self) -> Amounts:
        """What the total should be, with those later records that have been counted, and with what is kept."""
        receipts = self.observation.stored.receipts
        kept = self.observation.kept or (_ZERO,) * len(self.baseline)
        return sum_of((kept, *(net(*self.later[name]) for name in receipts if name in self.later)), self.baseline)

    @property
    def differing(self) -> int:
        """How many later records have a receipt with another amount than is computed now."""
        receipts = self.observation.stored.receipts
        return sum(receipts[name] != self.later[name] for name in receipts.keys() & self.later.keys())

    @property
    def difference(self) -> Amounts | None:
        """By how much the total differs from its source; `None` where it is not a number."""
        return None if self.total is None else tuple(map(EXACT.subtract, self.total, self.expected))

    @property
    def waiting(self) -> set[str]:
        """The later records that have no receipt yet."""
        return self.later.keys() - self.observation.stored.receipts.keys()


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
    waiting: dict[str, float] = field(default_factory=dict)
    _begun_at: float = 0.0
    _seen_at: float = 0.0

    def add(self, difference: Amounts | None, waiting: Collection[str], seen_at: float) -> None:
        """Takes note of an observation: what it showed, and which later records had no receipt in it."""
        if self.unchanged_since is None:
            self._begun_at = seen_at
        if self.unchanged_since is None or difference != self.difference:
            self.difference, self.unchanged_since = difference, seen_at
        self.waiting = {key: self.waiting.get(key, seen_at) for key in waiting}
        self._seen_at = seen_at

    @property
    def differs(self) -> bool:
        """Whether the last one showed a difference, or a total that is not a number."""
        return self.unchanged_since is not None and (self.difference is None or any(self.difference))

    def verdict_so_far(self, patience: float) -> VerdictSoFar:
        """What can be said at the time of the last observation; `patience` is in seconds.

        Nothing is decided by one observation alone, except that there is no difference and nothing waits. A difference
        is decided when every record that waited as it was first seen has its receipt; only where one has none, which
        the worker may still bring or never, the patience decides.
        """
        if self.unchanged_since is None:
            return VerdictSoFar.OPEN
        if not self.differs:
            if all(first > self._begun_at for first in self.waiting.values()):
                return VerdictSoFar.EQUAL
            behind = self._seen_at > self._begun_at and self.stuck(patience)
            return VerdictSoFar.BEHIND if behind else VerdictSoFar.OPEN
        unchanged_for = self._seen_at - self.unchanged_since
        keeps_up = all(first > self.unchanged_since for first in self.waiting.values())
        is_decided = unchanged_for > 0 and (keeps_up or unchanged_for >= patience)
        return VerdictSoFar.DIFFERENT if is_decided else VerdictSoFar.OPEN

    def stuck(self, patience: float) -> list[str]:
        """The later records that have had no receipt for `patience` seconds."""
        return [key for key, first in self.waiting.items() if self._seen_at - first >= patience]

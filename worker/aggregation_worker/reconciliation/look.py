"""Looks at single aggregates: by how much a total differs from its source, exactly and at any time.

For an aggregate at the moment t of a look,

    difference(t) = total(t) - contributions of the later records whose receipts stand in the ledger at t - baseline,

where a *later record* is one that follows the cut, and the *baseline* is what the items were worth at the cut. A later
record's contribution enters total and ledger in one transaction, so whatever is being written, the difference stays as
it is. It moves only when a record from before the cut arrives (then towards zero), or when something other than the
worker changes a total: it is zero once all records before the cut are applied, or there is drift.

**How a total and its receipts are seen together.** A total changes only with a receipt. The pages are read, then the
total, then the pages again, all strongly consistent; if both readings show the same receipts, the total belongs to
exactly these. One gap is left: a transaction is not one moment for reads of several items ("Isolation levels", Amazon
DynamoDB developer guide), so a look can meet it between its two writes. Therefore no single look decides: drift is what
looks at different times agree on, and a correction is made under the condition that the total still is what was seen.

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
from aggregation_worker.ledger.pages import Pages, Place, read_pages
from aggregation_worker.ledger.receipts import Aggregate
from aggregation_worker.streams.records import Image

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Readings of one aggregate's pages before a look is given up. A reading takes milliseconds, and a worker adds receipts
# to an aggregate a few times a second.
_MOST_READINGS = 30
_ZERO = Decimal(0)


class RestlessAggregateError(Exception):
    """The receipts changed during every reading: an aggregate that is written many times a second."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The measures of a row as they stand.

    Attributes:
        amounts: what is absent counts as zero; `None` where a measure is no number, on which the worker fails, too.
        absent: the measures that are not there; all of them where there is no row.
    """

    amounts: Amounts | None
    absent: frozenset[str]


@dataclass(frozen=True, slots=True)
class Look:
    """A total, and exactly the receipts that it includes.

    Attributes:
        seen_at: when the look was over, in seconds of `time.monotonic`: whatever it shows was written before.
    """

    seen_at: float
    stored: Stored
    pages: Pages


def look_at(
    client: "DynamoDBClient",
    ledger_table: str,
    aggregate: Aggregate,
    first: str,
    clock: Callable[[], float] = time.monotonic,
) -> Look:
    """Sees a total together with its receipts, those on page `first` and behind it.

    Where receipts arrive while the pages are read, those that they arrive on are read apart: they are few and quick to
    read, while the many before them are read once more at the end, to see that they have not changed meanwhile.

    Raises:
        RestlessAggregateError: the receipts never stood still.
        ClientError: a table cannot be read.
    """
    still, moving_from = Pages({}, {}), first
    before = read_pages(client, ledger_table, aggregate.name, first)
    for _ in range(_MOST_READINGS):
        stored = read_total(client, aggregate)
        after = read_pages(client, ledger_table, aggregate.name, moving_from)
        if after.same_as(before):
            if moving_from == first:
                return Look(clock(), stored, after)
            if read_pages(client, ledger_table, aggregate.name, first, moving_from).same_as(still):
                return Look(clock(), stored, still.and_then(after))
            still, moving_from = Pages({}, {}), first
            after = read_pages(client, ledger_table, aggregate.name, first)
        elif moving_from == first:
            moving_from = after.first_difference(before)
            still, after = after.before(moving_from), after.behind(moving_from)
        before = after
    raise RestlessAggregateError(
        f"{aggregate.name}: its receipts changed {_MOST_READINGS} times while it was looked at"
    )


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
    """Every row of an aggregation's table that is its own, with its measures; `None` where one is no number.

    A row is its own if it holds one of its measures and the keys begin with its prefixes: other aggregations can share
    the table, and under other prefixes even the measures' names.
    """
    request: dict[str, Any] = {"TableName": aggregation.table, "ConsistentRead": True}
    while True:
        answer = client.scan(**request)
        for row in answer["Items"]:
            group = tuple(_key_text(key, row[key.name]) for key in aggregation.keys)
            stored = stored_in(aggregation, row)
            own = all(text.startswith(key.prefix) for key, text in zip(aggregation.keys, group, strict=True))
            if own and len(stored.absent) < len(aggregation.measures):
                yield group, stored.amounts
        if "LastEvaluatedKey" not in answer:
            return
        request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def _key_text(key: GroupKey, value: Mapping[str, Any]) -> str:
    text: str = value[key.type.value]
    return canonical_text(parse_number(text)) if key.type is KeyType.NUMBER else text


def difference(look: Look, later: Mapping[Place, Amounts], baseline: Amounts) -> Amounts | None:
    """By how much the total differs from its source; `None` where the total is no number.

    Args:
        look: the total and its receipts.
        later: the contributions of all later records that had been written when the look was over, at their places.
        baseline: what the items were worth at the cut.
    """
    if look.stored.amounts is None:
        return None
    expected = sum_of((later[place] for place in look.pages.receipts if place in later), baseline)
    return tuple(map(EXACT.subtract, look.stored.amounts, expected))


class Standing(Enum):
    """What the looks at an aggregate have shown together."""

    OPEN = "open"  # look again
    EQUAL = "equal"  # no difference, and the worker keeps up
    BEHIND = "behind"  # later records have waited for their receipts all the time
    DIFFERENT = "different"  # the same difference all the time


@dataclass(slots=True)
class Observations:
    """The looks at one aggregate so far.

    Attributes:
        difference: as the last look showed it.
        unchanged_since: when it was first seen like this, in seconds.
        waiting: the later records without a receipt in the last look, and when each was first seen so.
    """

    difference: Amounts | None = None
    unchanged_since: float | None = None
    waiting: dict[Place, float] = field(default_factory=dict)
    _begun_at: float | None = None

    def add(self, difference: Amounts | None, waiting: Collection[Place], seen_at: float) -> None:
        """Takes note of a look: what it showed, and which later records had no receipt in it."""
        if self._begun_at is None:
            self._begun_at = seen_at
        if self.unchanged_since is None or difference != self.difference:
            self.difference, self.unchanged_since = difference, seen_at
        self.waiting = {place: self.waiting.get(place, seen_at) for place in waiting}

    def standing(self, now: float, patience: float) -> Standing:
        """What can be said at the time `now` of the last look; `patience` is in seconds.

        Nothing is decided by one look alone, except that there is no difference and nothing waits.
        """
        if self.unchanged_since is None or self._begun_at is None:
            return Standing.OPEN
        equal = self.difference is not None and not any(self.difference)
        if equal:
            if all(first > self._begun_at for first in self.waiting.values()):
                return Standing.EQUAL
            return Standing.BEHIND if self.stuck(now, patience) and now > self._begun_at else Standing.OPEN
        unchanged_for = now - self.unchanged_since
        return Standing.DIFFERENT if 0 < unchanged_for >= patience else Standing.OPEN

    def stuck(self, now: float, patience: float) -> list[Place]:
        """The later records that have had no receipt for `patience` seconds."""
        return [place for place, first in self.waiting.items() if now - first >= patience]

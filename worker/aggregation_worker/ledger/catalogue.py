"""The catalogue: one item of the ledger that lists every aggregation that has counted.

With it a worker notices when it starts, before it writes anything, what would otherwise lose or double totals in
silence:

- An aggregation has changed: corrections would hit rows that the first contribution never touched.
- Another one counts into the same measure of the same rows, or has until it was retired: a total would be both.
- The file lacks an aggregation that has counted (a rollback, a wrong file): it would miss records.

Only the deployed worker adds to it (`register`); whoever else works with a definitions file checks that against it. It
protects one ledger: that an aggregation of another ledger counts into the same table, it does not know. It has room for
about a thousand aggregations, the retired ones included.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import IMAGE_READING, Aggregation
from aggregation_worker.aggregations.descriptions import moment_text, shared_measures
from aggregation_worker.aws_errors import CONDITION_FAILED, code_of
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.receipts import AGGREGATE_KEY, CATALOGUE_PAGE, CATALOGUE_PARTITION, PAGE_KEY

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# The item's attributes, and those of each aggregation in it.
_AGGREGATIONS = "aggregations"
_IMAGE_READING = "image_reading"
_DEFINITION = "definition"
_RECORDED_AT = "recorded_at"
_RETIRED_AT = "retired_at"

_KEY: dict[str, Any] = {AGGREGATE_KEY: {"S": CATALOGUE_PARTITION}, PAGE_KEY: {"S": CATALOGUE_PAGE}}
# How often a change is tried while others change the item. Each time somebody succeeded, and most change nothing.
_ATTEMPTS = 20

Item = Mapping[str, Any]


class CatalogueError(WorkerError):
    """The definitions file must not be used with this ledger; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One aggregation that has counted.

    Attributes:
        definition: as `descriptions.describe` writes it; table and measures are in it.
        recorded_at: when the first worker that knew it began, in epoch seconds.
        retired_at: since when it counts no more, in epoch seconds; `None` if it does.
    """

    definition: str
    recorded_at: int
    retired_at: int | None

    @property
    def table(self) -> str:
        """The target table."""
        return str(json.loads(self.definition)["table"])

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures' names."""
        return tuple(json.loads(self.definition)["measures"])


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What the ledger says.

    Attributes:
        entries: by the aggregations' names.
        image_reading: the version (`IMAGE_READING`) of the worker that started last; `None` if none ever has.
    """

    entries: Mapping[str, Entry]
    image_reading: int | None

    def recorded_at(self, aggregation: Aggregation) -> int | None:
        """When the first worker that knew the aggregation began, in epoch seconds; `None` if none has yet."""
        entry = self.entries.get(aggregation.name)
        return None if entry is None else entry.recorded_at

    def check(self, aggregations: Sequence[Aggregation]) -> None:
        """Refuses a definitions file with these aggregations if it would lose or double anything.

        Raises:
            CatalogueError: it would.
        """
        for mistake in self._mistakes(aggregations):
            raise CatalogueError(mistake)

    def check_image_reading(self) -> None:
        """Refuses to correct or fill totals in another version than the deployed one.

        Raises:
            CatalogueError: the deployed worker reads images in another version.
        """
        if self.image_reading not in (None, IMAGE_READING):
            raise CatalogueError(
                f"the deployed worker reads images in version {self.image_reading}, this aggregator in version "
                f"{IMAGE_READING}, and what they make of an item can differ: use the aggregator that belongs to the "
                "deployed version"
            )

    def check_deployed(self, aggregations: Sequence[Aggregation]) -> None:
        """Refuses to count in the place of the deployed worker unless it would count the same.

        Raises:
            CatalogueError: it would not.
        """
        self.check(aggregations)
        for aggregation in aggregations:
            if aggregation.name not in self.entries:
                raise CatalogueError(
                    f"no worker has started with aggregation {aggregation.name!r} yet: deploy it first, or use the "
                    "definitions file that is deployed"
                )
        self.check_image_reading()

    def _mistakes(self, aggregations: Sequence[Aggregation]) -> Iterator[str]:
        for aggregation in aggregations:
            if (entry := self.entries.get(aggregation.name)) is None:
                continue
            if entry.retired_at is not None:
                yield (
                    f"aggregation {aggregation.name!r} was retired at {moment_text(entry.retired_at)}, and a retired "
                    "name never counts again: take it out of the definitions file, or give it a new name and a table "
                    "of its own and backfill it"
                )
            if entry.definition != aggregation.definition:
                yield (
                    f"aggregation {aggregation.name!r} has changed since its totals were begun "
                    f"({_differences(entry.definition, aggregation.definition)}): restore the definition, or give the "
                    "aggregation a new name and a table of its own and backfill it"
                )
        # Those in the catalogue were compared with one another when they were added.
        for aggregation in (one for one in aggregations if one.name not in self.entries):
            for name, entry in self.entries.items():
                if shared := shared_measures(aggregation.definition, entry.definition):
                    yield (
                        f"aggregation {aggregation.name!r} would add to {', '.join(shared)} of table "
                        f"{aggregation.table!r}, where {name!r} has counted already, and the totals would be those of "
                        "both: give it another table, or its measures other names"
                    )
        names = {aggregation.name for aggregation in aggregations}
        missing = [name for name, entry in self.entries.items() if entry.retired_at is None and name not in names]
        if missing:
            yield (
                f"the definitions file lacks {', '.join(map(repr, missing))}, which counted until now and would miss "
                "records: use the file that has it, or, if it is never to count again, run aggregator retire "
                f"{missing[0]}"
            )


def read_catalogue(client: "DynamoDBClient", ledger_table: str) -> Catalogue:
    """The catalogue as it stands.

    Raises:
        ClientError: the ledger cannot be read.
    """
    return _catalogue(_found(client, ledger_table))


def register(client: "DynamoDBClient", ledger_table: str, aggregations: Sequence[Aggregation]) -> None:
    """Checks the deployed worker's definitions file, and adds what is new in it.

    Costs one read when a worker starts, and a write where the file or the version in which images are read is new.

    Raises:
        CatalogueError: the worker must not start; the message says why, and what to do.
        ClientError: the ledger cannot be read or written.
    """
    now = int(time.time())

    def with_aggregations(item: Item) -> Item:
        _catalogue(item).check(aggregations)
        new = {
            aggregation.name: {
                "M": {_DEFINITION: {"S": aggregation.definition}, _RECORDED_AT: {"N": str(now)}},
            }
            for aggregation in aggregations
        }
        # During a rollback the version falls again: it is that of the worker that started last.
        return {**item, _AGGREGATIONS: {"M": {**new, **_entries(item)}}, _IMAGE_READING: {"N": str(IMAGE_READING)}}

    _change(client, ledger_table, with_aggregations)


def retire(client: "DynamoDBClient", ledger_table: str, name: str) -> None:
    """Has an aggregation count no more, for good; nothing happens if it is retired already.

    Raises:
        CatalogueError: there is none of this name.
        ClientError: the ledger cannot be read or written.
    """
    now = int(time.time())

    def without(item: Item) -> Item:
        entries = _entries(item)
        if name not in entries:
            known = ", ".join(sorted(entries)) or "none"
            raise CatalogueError(f"no aggregation named {name!r} has counted; those that have: {known}")
        retired = {"M": {_RETIRED_AT: {"N": str(now)}, **entries[name]["M"]}}
        return {**item, _AGGREGATIONS: {"M": {**entries, name: retired}}}

    _change(client, ledger_table, without)


def _change(client: "DynamoDBClient", ledger_table: str, changed: Callable[[Item], Item]) -> None:
    """Replaces the item by what `changed` makes of it, under the condition that it still is what was read."""
    for _ in range(_ATTEMPTS):
        found = _found(client, ledger_table)
        new = changed(found)
        if new == found:
            return
        names = {"#aggregations": _AGGREGATIONS}
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(#aggregations)"}
        if found:
            names["#reading"] = _IMAGE_READING
            condition = {
                "ConditionExpression": "#aggregations = :aggregations AND #reading = :reading",
                "ExpressionAttributeValues": {
                    ":aggregations": found[_AGGREGATIONS],
                    ":reading": found[_IMAGE_READING],
                },
            }
        try:
            client.put_item(TableName=ledger_table, Item={**new, **_KEY}, ExpressionAttributeNames=names, **condition)
        except ClientError as error:
            if code_of(error) != CONDITION_FAILED:
                raise
        else:
            return
    raise CatalogueError(f"the catalogue in table {ledger_table} is changed all the time by others: try again")


def _found(client: "DynamoDBClient", ledger_table: str) -> Item:
    """The item; empty where there is none."""
    return client.get_item(TableName=ledger_table, Key=_KEY, ConsistentRead=True).get("Item", {})


def _entries(item: Item) -> dict[str, Any]:
    entries: dict[str, Any] = item.get(_AGGREGATIONS, {"M": {}})["M"]
    return entries


def _catalogue(item: Item) -> Catalogue:
    def number(values: Mapping[str, Any], name: str) -> int | None:
        return int(values[name]["N"]) if name in values else None

    entries = {
        name: Entry(entry["M"][_DEFINITION]["S"], int(entry["M"][_RECORDED_AT]["N"]), number(entry["M"], _RETIRED_AT))
        for name, entry in _entries(item).items()
    }
    return Catalogue(entries, number(item, _IMAGE_READING))


def _differences(was: str, now: str) -> str:
    """What differs, such as `keys.1.truncate was "month", is "day"`."""
    old, new = dict(_leaves(json.loads(was))), dict(_leaves(json.loads(now)))
    places = sorted(place for place in old.keys() | new.keys() if old.get(place) != new.get(place))
    return "; ".join(f"{place} was {old.get(place, 'absent')}, is {new.get(place, 'absent')}" for place in places)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """What a definition says, by where it stands in it."""
    if not value or not isinstance(value, dict | list):
        yield place, json.dumps(value)
        return
    for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _leaves(inner, f"{place}.{name}" if place else str(name))

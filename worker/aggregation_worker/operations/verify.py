"""`aggregator verify`: puts a canary order through a running deployment and waits for its total.

The canary has source keys and group values of its own, so no other total changes, and it is removed again: the order,
and the rows of its totals with the receipts in them. Before it is removed it is changed to an order that is worth
nothing, so that nothing is kept of it, and also a worker that comes to it late leaves totals of zero. What there is of
its pages expires; a row with the same key would begin anew, without them.
"""

import argparse
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aggregation_worker.aggregations.attribute_paths import AttributePath, MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, KeyType, RemovePolicy, worth
from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.deployment.example import dated, example_item, set_at
from aggregation_worker.operations.check import read_item
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import add_deployment_options, positive
from aggregation_worker.operations.output import print_json, say
from aggregation_worker.operations.resources import Resources
from aggregation_worker.reconciliation.canary import canary_number, canary_text
from aggregation_worker.reconciliation.observation import worth_in
from aggregation_worker.streams.records import Image

_POLL_SECONDS = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Puts an order with keys of its own into the source table, waits for its totals, says how long that took, and "
        "removes all of it. Exit status 0 only if every total came."
    )
    parser.add_argument(
        "--timeout", type=positive(float), default=60.0, metavar="SECONDS", help="how long to wait (default: 60)"
    )
    parser.add_argument(
        "--item",
        metavar="JSON",
        help="an item that counts, as plain JSON or in DynamoDB's typed JSON, which the canary is made of in place of "
        "one made from the definitions; its keys and groups are replaced by the canary's own",
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs a verification and prints the latency; returns 0."""
    resources = Resources.of(options)
    item = example_item(resources.definitions) if options.item is None else dict(read_item(options.item)[0])
    seconds = Verification(resources, canary_of(resources.definitions, item), options.timeout).run()
    if options.json:
        print_json({"verified": True, "latencySeconds": round(seconds, 3)})
    else:
        say(f"The canary order reached its totals {seconds:.1f} s after it was put, and is removed again.")
    return 0


@dataclass(frozen=True, slots=True)
class Expectation:
    """A total that the canary must produce."""

    aggregation: Aggregation
    group: Group
    amounts: tuple[Decimal, ...]

    def key(self) -> dict[str, Any]:
        """The row's key."""
        return {key.name: {key.type.value: text} for key, text in zip(self.aggregation.keys, self.group, strict=True)}


@dataclass(slots=True)
class Verification:
    """One canary's way through the pipeline.

    Attributes:
        canary: the order, in DynamoDB's typed JSON.
        timeout: seconds to wait for the totals.
    """

    resources: Resources
    canary: Image
    timeout: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def run(self) -> float:
        """Returns the seconds from the put to the last total.

        Raises:
            CommandError: no aggregation counts the canary, its keys are in use, or a total did not come in time.
        """
        _ = self.resources.catalogue  # whose file is another one waits for totals that never come
        expectations = expectations_of(self.resources, self.canary)
        dynamodb = self.resources.dynamodb
        source = self.resources.definitions.source
        started = self.clock()
        try:
            dynamodb.put_item(TableName=source.table, Item=self.canary)
            for expectation in expectations:
                self._await(expectation, expectation.amounts, started)
            return self.clock() - started
        except KeyboardInterrupt:
            sys.stderr.write("aggregator: interrupted; the canary order and its totals are being removed\n")
            raise
        finally:
            self._clean_up(expectations)

    def _await(self, expectation: Expectation, amounts: tuple[Decimal, ...], started: float) -> None:
        while self._stored(expectation) != amounts:
            if self.clock() - started > self.timeout:
                raise CommandError(
                    f"the canary's total did not reach {expectation.aggregation.table} within {self.timeout:.0f} s; "
                    "see aggregator status, and runbooks/iterator-age.md"
                )
            self.sleep(_POLL_SECONDS)

    def _stored(self, expectation: Expectation) -> Amounts | None:
        """What the canary's row shows of it: its total without what is kept."""
        row = self.resources.dynamodb.get_item(
            TableName=expectation.aggregation.table, Key=expectation.key(), ConsistentRead=True
        ).get("Item")
        return None if row is None else worth_in(expectation.aggregation, row)

    def _clean_up(self, expectations: list[Expectation]) -> None:
        """Deletes the order first: what takes it back must be done before its rows go, or it would make them anew."""
        dynamodb = self.resources.dynamodb
        definitions = self.resources.definitions
        keys = keys_of(definitions, self.canary)
        if is_usable(definitions, keys):
            dynamodb.put_item(TableName=definitions.source.table, Item=keys)
        dynamodb.delete_item(TableName=definitions.source.table, Key=keys)
        deleted = self.clock()
        for expectation in expectations:
            remove_reaches = expectation.aggregation.remove is not RemovePolicy.IGNORE
            expects_nothing = remove_reaches or is_taken_back(definitions, expectation.aggregation, keys)
            if expects_nothing and self._stored(expectation) is not None:
                self._await(expectation, (Decimal(0),) * len(expectation.amounts), deleted)
        for expectation in expectations:
            dynamodb.delete_item(TableName=expectation.aggregation.table, Key=expectation.key())


def keys_of(definitions: Definitions, canary: Image) -> Image:
    """The canary's keys alone: an order that is worth nothing, unless an aggregation asks for nothing else."""
    return {name: canary[name] for name, _ in definitions.source.keys}


def is_usable(definitions: Definitions, image: Image) -> bool:
    """Whether no aggregation would send a notice of an image."""
    return all(worth(aggregation, image)[1] is None for aggregation in definitions.aggregations)


def is_taken_back(definitions: Definitions, aggregation: Aggregation, keys: Image) -> bool:
    """Whether an aggregation's total is what it was before, once the canary is changed to its keys and removed."""
    if aggregation.remove in (RemovePolicy.RETRACT, RemovePolicy.RETRACT_UNLESS_EXPIRED):
        return True
    value, _ = worth(aggregation, keys)
    return is_usable(definitions, keys) and (value is None or not any(value[1]))


def canary_of(definitions: Definitions, item: dict[str, Any]) -> dict[str, Any]:
    """An item with keys and groups of its own."""
    mark = uuid.uuid4()
    text, number = canary_text(mark), canary_number(mark)
    # A date before all business: totals by day alone must be the canary's own, too.
    moment = datetime(1000, 1, 1, tzinfo=UTC) + timedelta(minutes=mark.int % (800 * 365 * 1440))
    keys = [key for aggregation in definitions.aggregations for key in aggregation.keys]
    dates = {key.path.steps: key.truncation for key in keys if key.path is not None and key.truncation is not None}
    paths = {(key.path.steps, key.type) for key in keys if key.path is not None} | {
        ((name,), kind) for name, kind in definitions.source.keys
    }
    for steps, kind in paths:
        own = {kind.value: number if kind is KeyType.NUMBER else text}
        set_at(item, AttributePath("", steps), dated(moment, dates[steps]) if steps in dates else own)
    return item


def expectations_of(resources: Resources, canary: Image) -> list[Expectation]:
    """The totals that the canary produces.

    Raises:
        CommandError: none, or a row of theirs is there already, or the canary would stay in the total of all items.
    """
    expectations = []
    for aggregation in resources.definitions.aggregations:
        try:
            value = aggregation.value(canary)
        except MalformedValueError as error:
            raise CommandError(f"no canary can be made for {aggregation.name}: {error}") from error
        begins_later = aggregation.since is not None and aggregation.since > time.time()
        if value is not None and any(value[1]) and not begins_later:
            if all(key.path is None for key in aggregation.keys):
                keys = keys_of(resources.definitions, canary)
                if not is_taken_back(resources.definitions, aggregation, keys):
                    raise CommandError(
                        f"no canary can be put: {aggregation.name} is a total of all items, and would keep the "
                        f"canary's worth (remove = {aggregation.remove.value!r})"
                    )
                continue
            expectation = Expectation(aggregation, *value)
            found = resources.dynamodb.get_item(TableName=aggregation.table, Key=expectation.key(), ConsistentRead=True)
            if "Item" in found:
                raise CommandError(f"{aggregation.table} has a row {', '.join(value[0])} already; run it again")
            expectations.append(expectation)
    if not expectations:
        raise CommandError(
            "no aggregation shows the canary order: each has a where that excludes it, a jmespath over what it lacks, "
            "is a total of all items, or begins later; give an item that counts with --item"
        )
    return expectations

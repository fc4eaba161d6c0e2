"""`aggregator verify`: puts a canary order through a running deployment and waits for its total.

The canary has source keys and group values of its own, so no other total changes, and it is removed again: the order,
and the rows of its totals with the receipts in them. What there is of its pages expires; a row with the same key would
begin anew, without them.
"""

import argparse
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Group, KeyType, RemovePolicy
from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.deployment.example import dated, example_item
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import add_deployment_options, positive
from aggregation_worker.operations.output import print_json, say
from aggregation_worker.operations.resources import Resources
from aggregation_worker.reconciliation.canary import CANARY_NUMBER, CANARY_TEXT
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
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs a verification and prints the latency; returns 0."""
    seconds = Verification(Resources.of(options), options.timeout).run()
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
        timeout: seconds to wait for the totals.
    """

    resources: Resources
    timeout: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def run(self) -> float:
        """Returns the seconds from the put to the last total.

        Raises:
            CommandError: no aggregation counts the canary, its keys are in use, or a total did not come in time.
        """
        _ = self.resources.catalogue  # whose file is another one waits for totals that never come
        canary = canary_item(self.resources)
        expectations = expectations_of(self.resources, canary)
        dynamodb = self.resources.dynamodb
        source = self.resources.definitions.source
        started = self.clock()
        dynamodb.put_item(TableName=source.table, Item=canary)
        try:
            for expectation in expectations:
                self._await(expectation, expectation.amounts, started)
            return self.clock() - started
        finally:
            self._clean_up(canary, expectations)

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

    def _clean_up(self, canary: Image, expectations: list[Expectation]) -> None:
        """Deletes the order first: what retracts it must be done before its rows go, or it would make them anew."""
        dynamodb = self.resources.dynamodb
        source = self.resources.definitions.source
        dynamodb.delete_item(TableName=source.table, Key={name: canary[name] for name, _ in source.keys})
        deleted = self.clock()
        for expectation in expectations:
            if expectation.aggregation.remove is not RemovePolicy.IGNORE and self._stored(expectation) is not None:
                self._await(expectation, (Decimal(0),) * len(expectation.amounts), deleted)
        for expectation in expectations:
            dynamodb.delete_item(TableName=expectation.aggregation.table, Key=expectation.key())


def canary_item(resources: Resources) -> dict[str, Any]:
    """The example item with keys and groups of its own."""
    item = example_item(resources.definitions)
    mark = uuid.uuid4()
    text, number = f"{CANARY_TEXT}{mark.hex[:12]}", str(CANARY_NUMBER - mark.int % 10**12)
    # A date before all business: totals by day alone must be the canary's own, too.
    moment = datetime(1000, 1, 1, tzinfo=UTC) + timedelta(minutes=mark.int % (800 * 365 * 1440))
    keys = [key for aggregation in resources.definitions.aggregations for key in aggregation.keys]
    dates = {key.path.steps: key.truncation for key in keys if key.path is not None and key.truncation is not None}
    paths = {(key.path.steps, key.type) for key in keys if key.path is not None} | {
        ((name,), kind) for name, kind in resources.definitions.source.keys
    }
    for steps, kind in paths:
        container: Any = {"M": item}
        for step in steps:
            (values,) = container.values()
            container = values[step]
        container.clear()
        own = {kind.value: number if kind is KeyType.NUMBER else text}
        container.update(dated(moment, dates[steps]) if steps in dates else own)
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
                if aggregation.remove not in (RemovePolicy.RETRACT, RemovePolicy.RETRACT_UNLESS_EXPIRED):
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
            "is a total of all items, or begins later"
        )
    return expectations

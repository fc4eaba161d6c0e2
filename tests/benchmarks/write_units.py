"""What writes cost by AWS's documented rules: item sizes, write units, and their price.

A `Meter` is told every request and keeps the items in memory, so it knows their sizes before and after. It is a
calculator, not a database: it believes what it is told about which requests failed, and knows only the expressions that
the contenders use. (The consumed capacity that DynamoDB Local returns for transactions does not follow AWS's rule.)

What X groups cost at 1,000 records/s over four shards, in batches of 250, without any server:

    uv run python -m tests.benchmarks.write_units
"""

import argparse
import base64
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from aggregation_worker.aggregations.numbers import EXACT, amount_text
from tests.benchmarks.processor_time import planned, requests
from tests.benchmarks.workloads import RECORDS_PER_SECOND, REFERENCE, Choice, Workload, records

# On-demand write request units, us-east-1, in dollars per million ("Amazon DynamoDB pricing").
DOLLARS_PER_MILLION_UNITS = 0.625

_TRANSACTION = 2  # units for each that the write would cost alone
_CONTAINER_BYTES = 3
_ELEMENT_BYTES = 1
_TERM = re.compile(r"([#\w]+)\s*=?\s*(:\w+)")


def item_bytes(item: Mapping[str, Any]) -> int:
    """An item's size as it counts for capacity, in bytes.

    The rules are those of "DynamoDB item sizes and formats" in the Amazon DynamoDB developer guide.
    """
    return sum(len(name.encode()) + value_bytes(value) for name, value in item.items())


def value_bytes(value: Mapping[str, Any]) -> int:
    """The size of one attribute value in DynamoDB's typed JSON, in bytes.

    Raises:
        ValueError: it has no DynamoDB type.
    """
    ((kind, content),) = value.items()
    match kind:
        case "S":
            return len(content.encode())
        case "N":
            return _number_bytes(content)
        case "B":
            return len(base64.b64decode(content) if isinstance(content, str) else content)
        case "BOOL" | "NULL":
            return 1
        case "L":
            return _CONTAINER_BYTES + sum(_ELEMENT_BYTES + value_bytes(inner) for inner in content)
        case "M":
            return _CONTAINER_BYTES + item_bytes(content) + _ELEMENT_BYTES * len(content)
        case "SS" | "NS" | "BS":
            return sum(value_bytes({kind[0]: inner}) for inner in content)
    raise ValueError(f"unknown attribute type {kind!r}")


def _number_bytes(text: str) -> int:
    """One byte for every two significant digits, one more, and one for a minus sign; outer zeros do not count."""
    number = Decimal(text)
    digits = len("".join(map(str, number.as_tuple().digits)).strip("0"))
    return math.ceil(digits / 2) + 1 + (number < 0)


def write_units(before: int | None, after: int | None) -> int:
    """Units of one write outside a transaction: a unit for each KB of the item, before or after, whichever is larger.

    Args:
        before, after: bytes of the item; `None` where there is none. A write that fails its condition is charged for
            the item that is there, so its `after` is `None`.
    """
    return max(1, math.ceil(max(before or 0, after or 0) / 1024))


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was sent: the operation, its parameters, and whether DynamoDB refused it."""

    operation: str
    parameters: Mapping[str, Any]
    failed: bool = False


@dataclass(slots=True)
class Meter:
    """Counts requests and write units.

    Attributes:
        keys: the names of each table's key attributes.
    """

    keys: Mapping[str, Sequence[str]]
    requests: int = 0
    units: int = 0
    wasted: int = 0  # those of `units` that were charged for requests which failed
    largest_item: int = 0
    _items: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        """Counts one request and, unless it failed, changes the items."""
        self.requests += 1
        before = self.units
        if request.operation == "transact_write_items":
            for action in request.parameters["TransactItems"]:
                ((kind, parameters),) = action.items()
                self.units += _TRANSACTION * self._write(kind, parameters, request.failed)
        else:
            kind = {"put_item": "Put", "update_item": "Update"}[request.operation]
            self.units += self._write(kind, request.parameters, request.failed)
        if request.failed:
            self.wasted += self.units - before

    def _write(self, kind: str, parameters: Mapping[str, Any], failed: bool) -> int:
        table = parameters["TableName"]
        content = parameters["Item"] if kind == "Put" else parameters["Key"]
        place = (table, tuple(str(content[name]) for name in self.keys[table]))
        old = self._items.get(place)
        before = None if old is None else item_bytes(old)
        if failed:
            return write_units(before, None)
        new = dict(content) if kind == "Put" else {**(old or content), **_updated(old or {}, parameters)}
        self._items[place] = new
        after = item_bytes(new)
        self.largest_item = max(self.largest_item, after)
        return write_units(before, after)


def _updated(item: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that an `UpdateExpression` of only SETs of values, or only ADDs of numbers, gives an item."""
    clause, terms = parameters["UpdateExpression"].split(" ", 1)
    names, values = parameters.get("ExpressionAttributeNames", {}), parameters["ExpressionAttributeValues"]
    changed = {}
    for name, value in _TERM.findall(terms):
        attribute, operand = names.get(name, name), values[value]
        if clause == "ADD":
            number = EXACT.add(Decimal(item.get(attribute, {"N": "0"})["N"]), Decimal(operand["N"]))
            operand = {"N": amount_text(number)}
        changed[attribute] = operand
    return changed


@dataclass(frozen=True, slots=True)
class Price:
    """What the worker's writes cost, per stream record.

    Attributes:
        units: write units.
        requests: requests.
        largest_page: bytes.
    """

    units: float
    requests: float
    largest_page: int

    @property
    def dollars_per_million(self) -> float:
        """Dollars for a million records."""
        return self.units * DOLLARS_PER_MILLION_UNITS


TABLE_KEYS = {"ledger": ("aggregate", "page"), "item_count_by_date": ("item_number", "order_date")}


def price(workload: Workload, *, shards: int = 4, seconds: int = 20) -> Price:
    """The worker's price at `RECORDS_PER_SECOND` over `shards`, each delivering batches of the workload's size.

    Every shard's batch is planned and its requests are built by the worker itself; the meter takes them as committed.
    """
    meter = Meter(TABLE_KEYS)
    stream = records(workload)
    total = RECORDS_PER_SECOND * seconds
    if total % (shards * workload.batch):
        raise ValueError(f"{total} records do not make whole batches of {workload.batch} for {shards} shards")
    for _ in range(total // (shards * workload.batch)):
        window = list(itertools.islice(stream, shards * workload.batch))
        for shard in range(shards):
            for request in committed(window[shard::shards]):
                meter.add(request)
    return Price(meter.units / total, meter.requests / total, meter.largest_item)


def committed(batch: Sequence[Any]) -> Iterable[Request]:
    """The requests that the worker sends for a batch that nothing hinders."""
    for transaction in planned(batch):
        yield Request("transact_write_items", {"TransactItems": requests(transaction)})


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.write_units",
        description="The worker's write units per record at 1,000 records/s over four shards.",
    )
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 10, 100, 1_000, 10_000, 100_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[250, 1_000])
    parser.add_argument("--seconds", type=int, default=20, help="how long the stream is (default: %(default)s)")
    options = parser.parse_args(arguments)
    print(f"{'groups':>8} {'choice':8} {'batch':>6} {'units/record':>13} {'$/million':>10} {'largest page':>13}")
    for groups, choice, batch in itertools.product(options.groups, Choice, options.batch):
        workload = replace(REFERENCE, groups=groups, choice=choice, batch=batch)
        try:
            found = price(workload, seconds=options.seconds)
        except ValueError as error:
            parser.error(f"--seconds {options.seconds}: {error}")
        print(
            f"{groups:8,} {choice:8} {batch:6,} {found.units:13.2f} {found.dollars_per_million:10.2f} "
            f"{found.largest_page:11,} B"
        )


if __name__ == "__main__":
    main()

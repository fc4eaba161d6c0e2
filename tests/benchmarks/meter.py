"""What requests cost by AWS's documented rules: item sizes, write units, read units, and their price.

A `Meter` is told every request and keeps the items in memory, so it knows their sizes before and after. It is a
calculator, not a database: it believes what it is told about which requests failed, and knows only the expressions that
the contenders use. (The consumed capacity that DynamoDB Local returns for transactions does not follow AWS's rule.)
"""

import base64
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Index
from aggregation_worker.aggregations.numbers import EXACT, amount_text
from aggregation_worker.deployment.settings import DOLLARS_PER_MILLION_READ_UNITS, DOLLARS_PER_MILLION_WRITE_UNITS
from tests.model.in_memory_dynamodb import Paginator

_TRANSACTION = 2  # units for each that the write would cost alone
_KB = 1024
_READ_BYTES = 4 * _KB  # a read unit's
_EVENTUALLY_CONSISTENT = 0.5
_CONTAINER_BYTES = 3
_ELEMENT_BYTES = 1
_CLAUSE = re.compile(r"\b(SET|ADD)\b(.*?)(?=\b(?:SET|ADD)\b|$)", re.DOTALL)
_PRICED = frozenset(("put_item", "update_item", "transact_write_items", "batch_get_item", "query"))
_TERM = re.compile(r"([#\w.]+)\s*=?\s*(:\w+)")

Place = tuple[str, tuple[str, ...]]
"""A table, and an item's key in it."""


def item_bytes(item: Mapping[str, Any]) -> int:
    """An item's size as it counts for capacity, in bytes.

    The rules are those of "DynamoDB item sizes and formats" in the Amazon DynamoDB developer guide.
    """
    return sum(_text_bytes(name) + value_bytes(value) for name, value in item.items())


def value_bytes(value: Mapping[str, Any]) -> int:
    """The size of one attribute value in DynamoDB's typed JSON, in bytes.

    Raises:
        ValueError: it has no DynamoDB type.
    """
    ((kind, content),) = value.items()
    match kind:
        case "S":
            return _text_bytes(content)
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


def _text_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


@lru_cache(maxsize=4096)
def _number_bytes(text: str) -> int:
    """One byte for every two significant digits, one more, and one for a minus sign; outer zeros do not count."""
    number = Decimal(text)
    digits = len("".join(map(str, number.as_tuple().digits)).strip("0"))
    return math.ceil(digits / 2) + 1 + (number < 0)


def units_of_write(before: int | None, after: int | None) -> int:
    """Units of one write outside a transaction: a unit for each KB of the item, before or after, whichever is larger.

    Args:
        before, after: bytes of the item; `None` where there is none. A write that fails its condition is charged for
            the item that is there, so its `after` is `None`.
    """
    return max(1, math.ceil(max(before or 0, after or 0) / _KB))


def units_of_index_write(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None, keys: Sequence[str]) -> int:
    """Units that a write of a table costs in one of its indexes.

    An entry that stays as it is costs nothing, one that comes, goes or changes a write, and one whose key changes two:
    it is deleted and put anew ("Write capacity units" in "Using global secondary indexes in DynamoDB", Amazon DynamoDB
    developer guide).

    Args:
        before, after: the attributes that the index holds; `None` where it has no entry.
        keys: the names of the index's key attributes.
    """
    if before == after:
        return 0
    sizes = [None if entry is None else item_bytes(entry) for entry in (before, after)]
    if before is not None and after is not None and any(before[key] != after[key] for key in keys):
        return sum(units_of_write(size, None) for size in sizes)
    return units_of_write(*sizes)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it was sent: the operation, its parameters, and what became of it.

    Attributes:
        failed: DynamoDB refused it.
        found: the items that a query found.
    """

    operation: str
    parameters: Mapping[str, Any]
    failed: bool = False
    found: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class Meter:
    """Counts requests and units.

    Attributes:
        keys: the names of each table's key attributes.
        indexes: each table's.
        index_units: write units of the indexes. That a transaction's count twice there, too, is the dearer reading of
            a documentation which does not say.
        units, wasted: write units, and those of them that were charged for requests which failed.
        largest: bytes of the largest item of each table.
    """

    keys: Mapping[str, Sequence[str]]
    indexes: Mapping[str, Sequence[Index]] = field(default_factory=dict)
    requests: int = 0
    units: int = 0
    index_units: int = 0
    wasted: int = 0
    read_units: float = 0
    largest: dict[str, int] = field(default_factory=dict)
    _items: dict[Place, dict[str, Any]] = field(default_factory=dict)

    def add(self, request: Request) -> None:
        """Counts one request and, unless it failed, changes the items."""
        self.requests += 1
        before = self.units
        match request.operation:
            case "transact_write_items":
                for action in request.parameters["TransactItems"]:
                    ((kind, parameters),) = action.items()
                    self._write(kind, parameters, request.failed, _TRANSACTION)
            case "put_item":
                self._write("Put", request.parameters, request.failed)
            case "update_item":
                self._write("Update", request.parameters, request.failed)
            case "batch_get_item":
                self._read_each(request.parameters["RequestItems"])
            case "query":
                self._read_together(request)
            case _:
                raise ValueError(f"{request.operation} has no price here")
        if request.failed:
            self.wasted += self.units - before

    def reset(self) -> None:
        """Begins to count anew; the items stay."""
        self.requests = self.units = self.index_units = self.wasted = 0
        self.read_units = 0.0

    @property
    def dollars(self) -> float:
        """What all requests cost."""
        return (self.units * DOLLARS_PER_MILLION_WRITE_UNITS + self.read_units * DOLLARS_PER_MILLION_READ_UNITS) / 1e6

    def _write(self, kind: str, parameters: Mapping[str, Any], failed: bool, times: int = 1) -> None:
        table = parameters["TableName"]
        place = self.place(table, parameters["Item"] if kind == "Put" else parameters["Key"])
        old = self._items.get(place)
        before = None if old is None else item_bytes(old)
        if failed:
            self.units += times * units_of_write(before, None)
            return
        new = dict(parameters["Item"]) if kind == "Put" else _updated(old or parameters["Key"], parameters)
        self._items[place] = new
        after = item_bytes(new)
        self.largest[table] = max(self.largest.get(table, 0), after)
        self.units += times * units_of_write(before, after)
        for index in self.indexes.get(table, ()):
            entries = self._entry(table, index, old), self._entry(table, index, new)
            self.index_units += times * units_of_index_write(*entries, [name for name, _ in index.keys])

    def _entry(self, table: str, index: Index, item: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What an index holds of an item: nothing of one that lacks a key of it."""
        keys = [name for name, _ in index.keys]
        if item is None or not all(key in item for key in keys):
            return None
        return {name: item[name] for name in (*self.keys[table], *keys, *index.measures) if name in item}

    def _read_each(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Each item of a `BatchGetItem` is rounded up alone; one that is not there costs as much as the smallest."""
        for table, wanted in tables.items():
            for key in wanted["Keys"]:
                size = item_bytes(self._items.get(self.place(table, key), {}))
                self.read_units += _read_units(size, consistent=wanted.get("ConsistentRead", False))

    def _read_together(self, request: Request) -> None:
        """A query's items are added up first."""
        size = sum(map(item_bytes, request.found))
        self.read_units += _read_units(size, consistent=request.parameters.get("ConsistentRead", False))

    def place(self, table: str, content: Mapping[str, Any]) -> Place:
        """Where an item is stored that has these key attributes."""
        return table, tuple(str(content[name]) for name in self.keys[table])


def _read_units(size: int, *, consistent: bool) -> float:
    return max(1, math.ceil(size / _READ_BYTES)) * (1 if consistent else _EVENTUALLY_CONSISTENT)


def _updated(item: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The item that an `UpdateExpression` makes: SETs of attributes and of maps' entries to values, ADDs of numbers."""
    names, values = parameters.get("ExpressionAttributeNames", {}), parameters["ExpressionAttributeValues"]
    new = dict(item)
    copied = set()
    for clause, path, placeholder in _terms(parameters["UpdateExpression"]):
        attribute, *entry = (names.get(part, part) for part in path)
        value = values[placeholder]
        if entry:
            if attribute not in copied:
                new[attribute] = {"M": dict(new[attribute]["M"])}
                copied.add(attribute)
            new[attribute]["M"][entry[0]] = value
        elif clause == "ADD":
            number = EXACT.add(Decimal(new.get(attribute, {"N": "0"})["N"]), Decimal(value["N"]))
            new[attribute] = {"N": amount_text(number)}
        else:
            new[attribute] = value
    return new


@lru_cache(maxsize=4096)
def _terms(expression: str) -> tuple[tuple[str, tuple[str, ...], str], ...]:
    """Of each term: its clause, the path as it is written, and the value's placeholder."""
    return tuple(
        (clause, tuple(path.split(".")), value)
        for clause, terms in _CLAUSE.findall(expression)
        for path, value in _TERM.findall(terms)
    )


class RecordingClient:
    """A client that remembers every request of its callers that has a price, in the order in which they ended.

    Args:
        client: DynamoDB's.
        round_trip: seconds that every answer is held back: a network's round trip, where the server is on this machine.
    """

    def __init__(self, client: Any, round_trip: float = 0.0) -> None:
        self._client = client
        self._round_trip = round_trip
        self.log: list[Request] = []

    def __getattr__(self, name: str) -> Any:
        return partial(self._sent, name) if name in _PRICED else getattr(self._client, name)

    def get_paginator(self, operation: str) -> Any:
        """As the client's; the requests of a query count."""
        if operation == "query":
            return Paginator(partial(self._sent, "query"))
        return self._client.get_paginator(operation)

    def _sent(self, operation: str, **parameters: Any) -> Any:
        try:
            answer = getattr(self._client, operation)(**parameters)
        except ClientError:
            self.log.append(Request(operation, parameters, failed=True))
            raise
        else:
            self.log.append(Request(operation, parameters, found=answer.get("Items", ())))
            return answer
        finally:
            if self._round_trip:
                time.sleep(self._round_trip)

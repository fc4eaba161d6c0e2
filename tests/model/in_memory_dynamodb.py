"""DynamoDB in memory, as far as the worker uses it: updates, puts, transactions of both, conditions, reads, streams.

Fast and single-stepped, so that thousands of histories can be tried in the time in which a server answers a few. It may
stand in for DynamoDB only because `test_in_memory_dynamodb` sends it and DynamoDB Local the same random requests and
finds the same answers. What the worker never sends (other clauses and functions, reserved words) it refuses to guess
at: `NotImplementedError`. Knows nothing of the worker.
"""
# ruff: noqa: N803 - the parameters have boto3's names

import hashlib
import json
import operator
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, Inexact
from enum import Enum
from functools import lru_cache
from typing import Any

from botocore.exceptions import ClientError

from tests.records import stream_record

Item = dict[str, Any]
Key = tuple[Any, ...]
Path = tuple[str, ...]
"""An attribute's name and, of an entry in a map, the names that lead to it."""

# "Service, account, and table quotas", Amazon DynamoDB developer guide.
MAX_ACTIONS = 100
MAX_KEYS_READ = 100
MAX_EXPRESSION_BYTES = 4096
MAX_OPERATORS = 300
MAX_ITEM_BYTES = 409_600
MAX_KEY_BYTES = (2048, 1024)
MAX_DIGITS = 38
LARGEST_MAGNITUDE, SMALLEST_MAGNITUDE = 125, -130

CONDITION_FAILED = "The conditional request failed"
WRONG_TYPE = "An operand in the update expression has an incorrect data type"
NO_SUCH_MAP = "The document path provided in the update expression is invalid for update"
TOO_MANY_DIGITS = "DynamoDB only supports precision up to 38 digits"
OVERFLOW = "Number overflow. Attempting to store a number with magnitude larger than supported range"
UNDERFLOW = "Number underflow. Attempting to store a number with magnitude smaller than supported range"
NO_NUMBER = "A value provided cannot be converted into a number"
KEY_TYPE = "One or more parameter values were invalid: Type mismatch for key"
KEY_LENGTH = "Hash primary key values must be under 2048 bytes, and range primary key values must be under 1024 bytes"
KEY_MISSING = "One of the required keys was not given a value"
ONE_ITEM_TWICE = "Transaction request cannot include multiple operations on one item"
ITEM_TOO_LARGE = "Item size{} has exceeded the maximum allowed size"

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_EXACT = Context(prec=1000, traps=[Inexact])

_PLACEHOLDERS = frozenset(("ExpressionAttributeNames", "ExpressionAttributeValues"))
_CONDITION = _PLACEHOLDERS | {"TableName", "ConditionExpression", "ReturnValuesOnConditionCheckFailure"}
_UPDATE = _CONDITION | {"Key", "UpdateExpression"}
_PUT = _CONDITION | {"Item"}
_QUERY = _PLACEHOLDERS | {"TableName", "KeyConditionExpression", "ConsistentRead", "Limit", "ExclusiveStartKey"}


class Dialect(Enum):
    """Whose answers to give where the two differ.

    An update that does not fit the stored item, or a sum that fits no DynamoDB number, is the action's cancellation
    reason on AWS and a ValidationException of the whole request in DynamoDB Local. Two actions on one item are refused
    before anything else on AWS; DynamoDB Local carries out the first one and then says what is wrong with the second.
    """

    AWS = "AWS"
    LOCAL = "DynamoDB Local"


class _ActionError(Exception):
    """Why one action cannot be carried out: becomes its cancellation reason, or the error of a request of its own."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reason: dict[str, Any] = {"Code": "ValidationError", "Message": message}

    def alone(self, operation: str) -> ClientError:
        """The error where the action is the whole request."""
        return _invalid(str(self), operation)


class _UpdateError(_ActionError):
    """An update that does not fit the stored item."""


class _ConditionError(_ActionError):
    """A condition that does not hold, and the item if it is to be returned."""

    def __init__(self, item: Item | None) -> None:
        super().__init__(CONDITION_FAILED)
        self.item = {"Item": dict(item)} if item else {}
        self.reason |= {"Code": "ConditionalCheckFailed", **self.item}

    def alone(self, operation: str) -> ClientError:
        """The error where the action is the whole request."""
        return client_error("ConditionalCheckFailedException", CONDITION_FAILED, operation, **self.item)


def client_error(code: str, message: str, operation: str, **more: Any) -> ClientError:
    """An error as botocore raises it; `more` are further parts of the response."""
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": 400}, **more}
    return ClientError(response, operation)  # type: ignore[arg-type]  # botocore's type knows fewer parts


def cancelled(reasons: Sequence[Mapping[str, Any]]) -> ClientError:
    """The error of a cancelled transaction."""
    codes = ", ".join(str(reason["Code"]) for reason in reasons)
    message = f"Transaction cancelled, please refer cancellation reasons for specific reasons [{codes}]"
    return client_error(
        "TransactionCanceledException", message, "TransactWriteItems", Message=message, CancellationReasons=[*reasons]
    )


@dataclass(slots=True)
class Shards:
    """Where a source table's changes go: as many shards as there are counters, each with sequence numbers of its own.

    Every shard counts from the same number, so that equal sequence numbers meet, as nothing rules out on AWS.
    """

    stream_arn: str
    now: Callable[[], float]
    counters: list[int]
    records: list[dict[str, Any]] = field(default_factory=list)

    def append(self, key: Item, old: Item | None, new: Item | None, *, expired: bool) -> None:
        """Records one change of an item."""
        shard = hashlib.md5(json.dumps(key, sort_keys=True).encode()).digest()[0] % len(self.counters)
        self.counters[shard] += 1
        number = self.counters[shard]
        record = stream_record(
            "REMOVE" if new is None else "INSERT" if old is None else "MODIFY",
            old=old,
            new=new,
            sequence_number=number,
            event_id=hashlib.md5(f"{shard}/{number}".encode()).hexdigest(),
            created_at=int(self.now()),
            stream_arn=self.stream_arn,
        )
        record["dynamodb"]["Keys"] = key
        if expired:
            record["userIdentity"] = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
        self.records.append(record)


@dataclass(slots=True)
class Table:
    """A table's key schema (name and type, partition key first), items, and stream if it has one."""

    keys: tuple[tuple[str, str], ...]
    shards: Shards | None = None
    items: dict[Key, Item] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Write:
    """An `Update` or a `Put`, checked as far as that needs no stored item.

    Attributes:
        key: the item's key attributes.
        holds: whether the condition holds for the stored item; an empty one if there is none.
        change: makes the new item of the stored one.
        returns_old: whether a condition that fails returns the item.
    """

    table: Table
    key: Item
    holds: Callable[[Item], bool]
    change: Callable[[Item | None], Item]
    returns_old: bool

    def carried_out(self, old: Item | None) -> Item:
        """The new item."""
        if not self.holds(old or {}):
            raise _ConditionError(old if self.returns_old else None)
        return self.change(old)


class InMemoryDynamoDB:
    """The calls of a boto3 DynamoDB client that the worker makes, over tables in memory.

    Stored items are never changed in place: who keeps one keeps it as it was.

    Args:
        dialect: whose answers to give where AWS and its local version differ.

    Attributes:
        writes: how many items were written or deleted so far.
        page_size: items of one answer of Query and Scan.
    """

    def __init__(self, dialect: Dialect = Dialect.AWS) -> None:
        self.dialect = dialect
        self.tables: dict[str, Table] = {}
        self.writes = 0
        self.page_size = 1_000
        self._tokens: set[str] = set()
        self._lock = threading.Lock()

    def create(self, name: str, *keys: tuple[str, str], shards: Shards | None = None) -> Table:
        """Creates a table: attribute name and type of its partition key and, if it has one, its sort key."""
        self.tables[name] = Table(keys, shards)
        return self.tables[name]

    def expire(self, table_name: str, key: Item) -> None:
        """Deletes one item as Time to Live does."""
        table = self.tables[table_name]
        self._replace(table, _checked_key(table, key, "DeleteItem"), key, None, expired=True)

    # --- The client's calls: reads ----------------------------------------------------------------------------------

    def get_item(self, *, TableName: str, Key: Item, ConsistentRead: bool = False) -> dict[str, Any]:
        """Reads one item."""
        with self._lock:
            item = self._stored(TableName, Key, "GetItem")
            return {} if item is None else {"Item": dict(item)}

    def batch_get_item(self, *, RequestItems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Reads items of several tables; those that are not there are left out."""
        responses: dict[str, list[Item]] = {}
        with self._lock:
            if sum(len(wanted["Keys"]) for wanted in RequestItems.values()) > MAX_KEYS_READ:
                raise _invalid("Too many items requested for the BatchGetItem call", "BatchGetItem")
            for name, wanted in RequestItems.items():
                if any(key in wanted["Keys"][:at] for at, key in enumerate(wanted["Keys"])):
                    raise _invalid("Provided list of item keys contains duplicates", "BatchGetItem")
                found = [self._stored(name, key, "BatchGetItem") for key in wanted["Keys"]]
                responses[name] = [dict(item) for item in found if item is not None]
        return {"Responses": responses, "UnprocessedKeys": {}}

    def query(self, **request: Any) -> dict[str, Any]:
        """Reads the items of one partition, in the order of the sort key: those for which the key condition holds."""
        with self._lock:
            _check_known(request, _QUERY)
            table = self._table(request["TableName"], "Query")
            given = _Placeholders(request, "Query")
            holds = given.key_condition(request["KeyConditionExpression"], table)
            # The partition's key is one of the values: most items need no closer look. (A number can be spelt in ways.)
            (name, kind), *_ = table.keys
            values = list(request.get("ExpressionAttributeValues", {}).values())

            def wanted(item: Item) -> bool:
                return (kind == "N" or item[name] in values) and holds(item)

            return self._page(table, wanted, request.get("ExclusiveStartKey"), request.get("Limit", self.page_size))

    def scan(
        self, *, TableName: str, ConsistentRead: bool = False, ExclusiveStartKey: Item | None = None
    ) -> dict[str, Any]:
        """Reads every item; in the order of their keys, for want of DynamoDB's."""
        with self._lock:
            return self._page(self._table(TableName, "Scan"), lambda _: True, ExclusiveStartKey, self.page_size)

    def _page(self, table: Table, wanted: Callable[[Item], bool], start: Item | None, limit: int) -> dict[str, Any]:
        after = None if start is None else _checked_key(table, start, "Query")
        keys = sorted(key for key, item in table.items.items() if (after is None or key > after) and wanted(item))
        items = [dict(table.items[key]) for key in keys[: min(limit, self.page_size)]]
        last = {"LastEvaluatedKey": _key_of(table, items[-1])} if len(items) < len(keys) else {}
        return {"Items": items, **last}

    def get_paginator(self, operation: str) -> "Paginator":
        """Boto3's paginator."""
        return Paginator({"query": self.query, "scan": self.scan}[operation])

    # --- The client's calls: writes ---------------------------------------------------------------------------------

    def update_item(self, **request: Any) -> dict[str, Any]:
        """Changes one item, or makes it, if the condition holds."""
        return self._write_alone(self._update, request, "UpdateItem")

    def put_item(self, **request: Any) -> dict[str, Any]:
        """Replaces one item, if the condition holds."""
        return self._write_alone(self._put, request, "PutItem")

    def delete_item(self, *, TableName: str, Key: Item) -> dict[str, Any]:
        """Deletes one item, if it is there."""
        with self._lock:
            table = self._table(TableName, "DeleteItem")
            _check_key_names(table, Key, "DeleteItem")
            self._replace(table, _checked_key(table, Key, "DeleteItem"), Key, None)
            return {}

    def transact_write_items(
        self, *, TransactItems: Sequence[Mapping[str, Any]], ClientRequestToken: str | None = None
    ) -> dict[str, Any]:
        """Carries out all `Update`s and `Put`s or none. A token may come only once: what it is for is not imitated."""
        with self._lock:
            if ClientRequestToken in self._tokens:
                raise NotImplementedError("a request that is sent again with its token")
            self._tokens.update([ClientRequestToken] if ClientRequestToken else [])
            if not TransactItems:
                raise _invalid(
                    "Value [] at 'transactItems' failed to satisfy constraint: Member must have length greater than or "
                    "equal to 1"
                )
            if len(TransactItems) > MAX_ACTIONS:
                raise _invalid("Member must have length less than or equal to 100")
            writes = [self._action(action) for action in TransactItems]
            if self.dialect is Dialect.AWS:
                _check_items_are_different(writes)
            changes, reasons, update_error = self._evaluated(writes)
            if update_error is not None and self.dialect is Dialect.LOCAL:
                raise _invalid(str(update_error))
            if len(changes) < len(writes):
                raise cancelled(reasons)
            for write, key, item in changes:
                self._replace(write.table, key, write.key, item)
            return {}

    def reasons(self, actions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """For each action the reason why it cannot be carried out now; the code `None` where it can."""
        return self._evaluated([self._action(action) for action in actions])[1]

    # --- How they are carried out -----------------------------------------------------------------------------------

    def _action(self, action: Mapping[str, Any]) -> _Write:
        ((kind, request),) = action.items()
        if kind not in ("Update", "Put"):
            raise NotImplementedError(f"an action other than Update and Put: {kind}")
        return (self._update if kind == "Update" else self._put)(request, "TransactWriteItems")

    def _write_alone(
        self, checked: Callable[[Mapping[str, Any], str], _Write], request: Mapping[str, Any], operation: str
    ) -> dict[str, Any]:
        with self._lock:
            write = checked(request, operation)
            try:
                key = _key(write.table, write.key)
                self._replace(write.table, key, write.key, write.carried_out(write.table.items.get(key)))
            except _ActionError as error:
                raise error.alone(operation) from error
            return {}

    def _evaluated(
        self, writes: Sequence[_Write]
    ) -> tuple[list[tuple[_Write, Key, Item]], list[dict[str, Any]], _UpdateError | None]:
        """The changes that are possible, a reason for every action, and the first update that does not fit.

        Each action finds the items as those before it leave them; that two are about one item is told at the second.
        """
        changes: list[tuple[_Write, Key, Item]] = []
        reasons: list[dict[str, Any]] = []
        update_error = None
        written: dict[tuple[int, Key], Item] = {}
        for write in writes:
            try:
                key = _key(write.table, write.key)
                place = (id(write.table), key)
                item = write.carried_out(written.get(place, write.table.items.get(key)))
            except _ActionError as error:
                reasons.append(error.reason)
                if isinstance(error, _UpdateError):
                    update_error = update_error or error
                continue
            if place in written:
                raise _invalid(str(update_error or ONE_ITEM_TWICE))
            written[place] = item
            changes.append((write, key, item))
            reasons.append({"Code": "None"})
        return changes, reasons, update_error

    def _update(self, request: Mapping[str, Any], operation: str) -> _Write:
        _check_known(request, _UPDATE)
        table = self._table(request["TableName"], operation)
        given = _Placeholders(request, operation)
        sets, adds = given.clauses(request["UpdateExpression"])
        holds = given.condition(request.get("ConditionExpression"))
        given.check_all_used()
        _check_paths_are_apart([path for path, _ in (*sets, *adds)])
        for path, value in adds:
            if "N" not in value:
                raise _invalid(
                    "Invalid UpdateExpression: Incorrect operand type for operator or function; operator: ADD, "
                    f"operand type: {_type_words(value)}, typeSet: ALLOWED_FOR_ADD_OPERAND"
                )
            if len(path) > 1:
                raise NotImplementedError("ADD to an entry of a map")
        key = request["Key"]
        _check_key_names(table, key, operation)
        _check_key_values(table, key)

        def change(old: Item | None) -> Item:
            for path, _ in (*sets, *adds):
                if path[0] in key:
                    raise _ActionError(
                        f"One or more parameter values were invalid: Cannot update attribute {path[0]}. "
                        "This attribute is part of the key"
                    )
            new = dict(key if old is None else old)
            for path, value in sets:
                new = _with(new, path, value)
            for (name,), value in adds:
                new[name] = _sum(new.get(name), value)
            if _size(new) > MAX_ITEM_BYTES:
                raise _ActionError(ITEM_TOO_LARGE.format(" to update"))
            return new

        return _Write(table, key, holds, change, _returns_old(request))

    def _put(self, request: Mapping[str, Any], operation: str) -> _Write:
        _check_known(request, _PUT)
        table = self._table(request["TableName"], operation)
        if "ConditionExpression" not in request and _PLACEHOLDERS.intersection(request):
            raise NotImplementedError("placeholders without an expression")
        given = _Placeholders(request, operation)
        holds = given.condition(request.get("ConditionExpression"))
        given.check_all_used()
        item = dict(request["Item"])
        if any(name not in item for name, _ in table.keys):
            raise _invalid(KEY_MISSING, operation)
        for value in item.values():
            try:
                _check_numbers(value)
            except ValueError as error:
                raise _invalid(str(error), operation) from error
        key = _key_of(table, item)
        _check_key_values(table, key)
        if _size(item) > MAX_ITEM_BYTES:
            raise _invalid(ITEM_TOO_LARGE.format(""), operation)
        return _Write(table, key, holds, lambda old: item, _returns_old(request))

    def _stored(self, table_name: str, key: Item, operation: str) -> Item | None:
        table = self._table(table_name, operation)
        _check_key_names(table, key, operation)
        return table.items.get(_checked_key(table, key, operation))

    def _table(self, name: str, operation: str) -> Table:
        if name not in self.tables:
            raise client_error("ResourceNotFoundException", "Cannot do operations on a non-existent table", operation)
        return self.tables[name]

    def _replace(self, table: Table, key: Key, key_item: Item, new: Item | None, *, expired: bool = False) -> None:
        self.writes += 1
        old = table.items.get(key)
        if new is None:
            table.items.pop(key, None)
        else:
            table.items[key] = new
        if table.shards is not None and old != new:  # a write that changes nothing writes no stream record
            table.shards.append(key_item, old, new, expired=expired)


@dataclass(frozen=True, slots=True)
class Paginator:
    """Goes on reading where the page before ended."""

    call: Callable[..., dict[str, Any]]

    def paginate(self, **request: Any) -> Iterator[dict[str, Any]]:
        """The pages."""
        page = self.call(**request)
        yield page
        while "LastEvaluatedKey" in page:
            page = self.call(**request, ExclusiveStartKey=page["LastEvaluatedKey"])
            yield page


# --- Expressions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Operation:
    """An operator or function of a condition; operands are operations, paths and placeholders of values."""

    name: str
    operands: tuple["_Operation | Path | str", ...]


Clause = tuple[tuple[Path, str], ...]

_WORD = re.compile(r"[#:]?\w+|<>|[<>]=?|[=(),.]", re.ASCII)
_FUNCTIONS = ("attribute_exists", "attribute_not_exists")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_ORDERED = ("N", "S", "B")


class _Parser:
    """Reads an expression word by word."""

    def __init__(self, expression: str, kind: str) -> None:
        if not expression:
            raise _invalid(f"Invalid {kind}Expression: The expression can not be empty;")
        size = len(expression.encode())
        if size > MAX_EXPRESSION_BYTES:
            told = f" expression size: {size}" if kind == "Condition" else ""
            raise _invalid(f"Invalid {kind}Expression: Expression size has exceeded the maximum allowed size;{told}")
        self._kind = kind
        self._words = ["", *reversed(_WORD.findall(expression))]
        if sum(map(len, self._words)) < len("".join(expression.split())):
            raise NotImplementedError(f"characters in {expression!r}")
        self.operators = 0

    def condition(self) -> _Operation:
        """A whole condition."""
        found = self._any()
        self._expect("")
        if self.operators > MAX_OPERATORS:
            raise _invalid(
                f"Invalid {self._kind}Expression: The expression contains too many operators; "
                f"operator count: {MAX_OPERATORS + 1}"
            )
        return found

    def update(self) -> tuple[Clause, Clause]:
        """The pairs of path and value of SET and of ADD."""
        found: dict[str, list[tuple[Path, str]]] = {"SET": [], "ADD": []}
        while keyword := self._take():
            if keyword not in found:
                raise self._unexpected(keyword)
            if found[keyword]:
                raise _invalid(
                    f'Invalid UpdateExpression: The "{keyword}" section can only be used once in an update expression;'
                )
            while not found[keyword] or self._accept(","):
                path = self._path()
                if keyword == "SET":
                    self._expect("=")
                found[keyword].append((path, self._value()))
        return tuple(found["SET"]), tuple(found["ADD"])

    def _any(self) -> _Operation:
        return self._joined("OR", lambda: self._joined("AND", self._one))

    def _joined(self, word: str, part: Callable[[], _Operation]) -> _Operation:
        parts = [part()]
        while self._accept(word):
            self.operators += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else _Operation(word, tuple(parts))

    def _one(self) -> _Operation:
        if self._accept("("):
            if self._words[-1] == "(":
                raise NotImplementedError("parentheses that could be redundant")
            found = self._any()
            self._expect(")")
            return found
        self.operators += 1
        for function in _FUNCTIONS:
            if self._accept(function):
                self._expect("(")
                path = self._path()
                self._expect(")")
                return _Operation(function, (path,))
        path, comparison = self._path(), self._take()
        if comparison == "BETWEEN":
            lower = self._value()
            self._expect("AND")
            return _Operation(comparison, (path, lower, self._value()))
        if comparison not in _COMPARISONS:
            raise self._unexpected(comparison)
        return _Operation(comparison, (path, self._value()))

    def _path(self) -> Path:
        names = [self._name()]
        while self._accept("."):
            names.append(self._name())
        return tuple(names)

    def _name(self) -> str:
        word = self._take()
        if word.startswith("#"):  # without a placeholder it could be a reserved word
            return word
        raise self._unexpected(word)

    def _value(self) -> str:
        word = self._take()
        if word.startswith(":"):
            return word
        raise self._unexpected(word)

    def _take(self) -> str:
        return self._words.pop() if len(self._words) > 1 else ""

    def _accept(self, word: str) -> bool:
        return self._words[-1] == word and bool(self._take())

    def _expect(self, word: str) -> None:
        found = self._take()
        if found != word:
            raise self._unexpected(found)

    def _unexpected(self, word: str) -> Exception:
        """DynamoDB names the place of a syntax error; that is not imitated."""
        if word.isidentifier() or word == "<>":
            return NotImplementedError(f"{word} in an expression")
        return _invalid(f"Invalid {self._kind}Expression: Syntax error")


@lru_cache(maxsize=4096)
def _parsed_update(expression: str) -> tuple[Clause, Clause]:
    return _Parser(expression, "Update").update()


@lru_cache(maxsize=4096)
def _parsed_condition(expression: str, kind: str) -> _Operation:
    return _Parser(expression, kind).condition()


class _Placeholders:
    """The names and values that a request gives for the placeholders in its expressions, and which of them are used."""

    def __init__(self, request: Mapping[str, Any], operation: str) -> None:
        self._operation = operation
        self._names: Mapping[str, str] = request.get("ExpressionAttributeNames", {})
        self._values: Mapping[str, Any] = request.get("ExpressionAttributeValues", {})
        for kind in ("Names", "Values"):
            if request.get(f"ExpressionAttribute{kind}") == {}:
                raise _invalid(f"ExpressionAttribute{kind} must not be empty", operation)
        for placeholder, value in self._values.items():
            try:
                _check_numbers(value)
            except ValueError as error:
                raise _invalid(
                    f"ExpressionAttributeValues contains invalid value: {error} for key {placeholder}", operation
                ) from error
        self._used: set[str] = set()

    def clauses(self, expression: str) -> tuple[list[tuple[Path, Any]], list[tuple[Path, Any]]]:
        """The attributes that an update sets and adds to, with the values."""
        sets, adds = (
            [(self._path(path, "Update"), self._value(value, "Update")) for path, value in clause]
            for clause in _parsed_update(expression)
        )
        return sets, adds

    def condition(self, expression: str | None) -> Callable[[Item], bool]:
        """Tells whether a condition holds for an item; there need not be one."""
        if expression is None:
            return lambda item: True
        return self._test(_parsed_condition(expression, "Condition"), "Condition")

    def key_condition(self, expression: str, table: Table) -> Callable[[Item], bool]:
        """Tells whether a query's condition holds: on the partition key and, if it is there, the sort key."""
        tree = _parsed_condition(expression, "KeyCondition")
        holds = self._test(tree, "KeyCondition")
        self.check_all_used()
        parts: Any = tree.operands if tree.name == "AND" else (tree,)
        names = [self._path(part.operands[0], "KeyCondition") for part in parts]
        if parts[0].name != "=" or names != [(name,) for name, _ in table.keys][: len(parts)]:
            raise _invalid("Query condition missed key schema element", "Query")
        for part, (_, kind) in zip(parts, table.keys, strict=False):
            values = [self._values[placeholder] for placeholder in part.operands[1:]]
            if any(kind not in value for value in values):
                raise _invalid(
                    "One or more parameter values were invalid: Condition parameter type does not match schema type",
                    "Query",
                )
            if sorted(values, key=_comparable) != values:
                lower, upper = (f"AttributeValue: {{{kind}:{value[kind]}}}" for value in values)
                raise _invalid(
                    "Invalid KeyConditionExpression: The BETWEEN operator requires upper bound to be greater than or "
                    f"equal to lower bound; lower bound operand: {lower}, upper bound operand: {upper}",
                    "Query",
                )
        return holds

    def check_all_used(self) -> None:
        """Names and values that no expression uses are refused."""
        for kind, given in (("Names", self._names), ("Values", self._values)):
            unused = sorted(given.keys() - self._used)
            if unused:
                raise _invalid(
                    f"Value provided in ExpressionAttribute{kind} unused in expressions: keys: {{{', '.join(unused)}}}",
                    self._operation,
                )

    def _test(self, tree: Any, kind: str) -> Callable[[Item], bool]:
        if tree.name in ("AND", "OR"):
            tests = [self._test(operand, kind) for operand in tree.operands]
            every = all if tree.name == "AND" else any
            return lambda item: every(test(item) for test in tests)
        path = self._path(tree.operands[0], kind)
        if tree.name in _FUNCTIONS:
            present = tree.name == "attribute_exists"
            return lambda item: (_found(item, path) is not None) is present
        values = [self._value(placeholder, kind) for placeholder in tree.operands[1:]]
        for value in values:
            if tree.name != "=" and not set(_ORDERED).intersection(value):
                raise _invalid(
                    f"Invalid {kind}Expression: Incorrect operand type for operator or function; operator or function: "
                    f"{tree.name}, operand type: {next(iter(value))}",
                    self._operation,
                )
        if tree.name == "BETWEEN":
            lower, upper = values
            return lambda item: _compares(item, path, ">=", lower) and _compares(item, path, "<=", upper)
        (value,) = values
        return lambda item: _compares(item, path, tree.name, value)

    def _path(self, path: Path, kind: str) -> Path:
        for name in path:
            if name.startswith("#") and name not in self._names:
                raise _invalid(
                    f"Invalid {kind}Expression: An expression attribute name used in the document path is not defined; "
                    f"attribute name: {name}"
                )
        self._used.update(path)
        return tuple(self._names.get(name, name) for name in path)

    def _value(self, placeholder: str, kind: str) -> Any:
        if placeholder not in self._values:
            raise _invalid(
                f"Invalid {kind}Expression: An expression attribute value used in expression is not defined; "
                f"attribute value: {placeholder}"
            )
        self._used.add(placeholder)
        return self._values[placeholder]


def _found(item: Item, path: Path) -> Any:
    """What is at a path; `None` if nothing is."""
    found: Any = {"M": item}
    for name in path:
        found = found.get("M", {}).get(name)
        if found is None:
            return None
    return found


def _compares(item: Item, path: Path, comparison: str, value: Any) -> bool:
    """Values of different types are never equal, and none comes before the other."""
    found = _found(item, path)
    if found is None or found.keys() != value.keys():
        return False
    return _COMPARISONS[comparison](_comparable(found), _comparable(value))


def _comparable(value: Mapping[str, Any]) -> Any:
    """What is equal, or comes before another, as the value does: numbers by their value, maps in any order."""
    ((kind, content),) = value.items()
    if kind == "N":
        return _number(content)
    if kind == "M":
        return {name: (*inner, _comparable(inner)) for name, inner in content.items()}
    if kind == "L":
        return [(*inner, _comparable(inner)) for inner in content]
    if kind.endswith("S") and kind != "S":
        raise NotImplementedError("comparing sets")
    return content


# --- What needs no stored item ------------------------------------------------------------------------------------


def _invalid(message: str, operation: str = "TransactWriteItems") -> ClientError:
    return client_error("ValidationException", message, operation)


def _check_known(request: Mapping[str, Any], known: frozenset[str]) -> None:
    if request.keys() - known:
        raise NotImplementedError(f"parameters {request.keys() - known}")


def _returns_old(request: Mapping[str, Any]) -> bool:
    return request.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"


def _check_paths_are_apart(paths: Sequence[Path]) -> None:
    for at, later in enumerate(paths):
        for earlier in paths[:at]:
            if all(map(operator.eq, earlier, later)):
                one, two = (f"[{', '.join(path)}]" for path in (earlier, later))
                raise _invalid(
                    "Invalid UpdateExpression: Two document paths overlap with each other; must remove or rewrite one "
                    f"of these paths; path one: {one}, path two: {two}"
                )


def _check_numbers(value: Mapping[str, Any]) -> None:
    """Checks the numbers in a value, whatever it is made of.

    Raises:
        ValueError: DynamoDB has no such number.
    """
    ((kind, content),) = value.items()
    if kind == "N":
        _number(content)
    elif kind in ("L", "M"):
        for inner in content if kind == "L" else content.values():
            _check_numbers(inner)


def _type_words(value: Mapping[str, Any]) -> str:
    words = {"S": "STRING", "BOOL": "BOOLEAN", "NULL": "NULL", "L": "LIST", "M": "MAP", "B": "BINARY"}
    return words[next(iter(value))]


@lru_cache(maxsize=4096)
def _number(text: str) -> Decimal:
    """The value of a number's text.

    Raises:
        ValueError: DynamoDB has no such number.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(NO_NUMBER)
    return _fitting(Decimal(text))


def _fitting(number: Decimal) -> Decimal:
    if not number:
        return Decimal(0)
    digits = number.as_tuple().digits
    if len(digits) > MAX_DIGITS and len("".join(map(str, digits)).strip("0")) > MAX_DIGITS:
        raise ValueError(TOO_MANY_DIGITS)
    if number.adjusted() > LARGEST_MAGNITUDE:
        raise ValueError(OVERFLOW)
    if number.adjusted() < SMALLEST_MAGNITUDE:
        raise ValueError(UNDERFLOW)
    return number


def _check_key_names(table: Table, key: Item, operation: str) -> None:
    if len(key) != len(table.keys):
        raise _invalid("The number of conditions on the keys is invalid", operation)
    if any(name not in key for name, _ in table.keys):
        raise _invalid(KEY_MISSING, operation)


def _check_key_values(table: Table, key: Item) -> None:
    for name, _ in table.keys:
        ((kind, content),) = key[name].items()
        if kind == "S" and not content:
            raise _invalid(
                "One or more parameter values are not valid. The AttributeValue for a key attribute cannot contain an "
                f"empty string value. Key: {name}"
            )
        if kind == "N":
            try:
                _number(content)
            except ValueError as error:
                raise _invalid(str(error)) from error


def _check_items_are_different(writes: Sequence[_Write]) -> None:
    seen = set()
    for write in writes:
        # With its type: of two keys spelt alike, one can be a number where the table has a string.
        key = tuple((*value, _comparable(value)) for value in write.key.values())
        if (id(write.table), key) in seen:
            raise _invalid(ONE_ITEM_TWICE)
        seen.add((id(write.table), key))


# --- What needs the stored item -----------------------------------------------------------------------------------


def _with(item: Item, path: Path, value: Any) -> Item:
    """The item with a value at a path; the map that it is an entry of must be there."""
    name, *rest = path
    if not rest:
        return item | {name: value}
    inner = item.get(name, {}).get("M")
    if inner is None:
        raise _UpdateError(NO_SUCH_MAP)
    return item | {name: {"M": _with(inner, tuple(rest), value)}}


def _sum(stored: Mapping[str, Any] | None, added: Mapping[str, Any]) -> Any:
    """What ADD makes of a number; one that is not there starts at zero."""
    if stored is None:
        return added
    if "N" not in stored:
        raise _UpdateError(WRONG_TYPE)
    try:
        total = _fitting(_EXACT.add(_number(stored["N"]), _number(added["N"])))
    except ValueError as error:
        raise _UpdateError(str(error)) from error
    return {"N": str(_EXACT.normalize(total)) if total else "0"}


def _key_of(table: Table, item: Item) -> Item:
    return {name: item[name] for name, _ in table.keys}


def _key(table: Table, key: Item) -> Key:
    values = []
    for (name, kind), longest in zip(table.keys, MAX_KEY_BYTES, strict=False):
        ((given, content),) = key[name].items()
        if given != kind:
            raise _ActionError(KEY_TYPE)
        if kind == "S" and len(content.encode()) > longest:
            raise _ActionError(KEY_LENGTH)
        values.append(_comparable(key[name]))
    return tuple(values)


def _checked_key(table: Table, key: Item, operation: str) -> Key:
    try:
        return _key(table, key)
    except _ActionError as error:
        raise error.alone(operation) from error


def _size(item: Item) -> int:
    """Bytes of an item, roughly as "DynamoDB item sizes and formats" counts them."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Mapping[str, Any]) -> int:
    ((kind, content),) = value.items()
    if kind == "S":
        return len(content.encode())
    if kind == "N":
        return len(content) // 2 + 2
    if kind == "B":
        return len(content)
    if kind == "L":
        return 3 + sum(1 + _value_size(inner) for inner in content)
    if kind == "M":
        return 3 + len(content) + _size(content)
    return 1

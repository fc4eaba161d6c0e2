"""DynamoDB in memory, as far as the worker uses it: transactions, conditions, single reads and writes, pages, streams.

Fast and single-stepped, so that thousands of histories can be tried in the time in which a server answers a few. It may
stand in for DynamoDB only because `test_in_memory_dynamodb` sends it and DynamoDB Local the same random requests and
finds the same answers. What the worker never sends (other clauses, nested paths, reserved words) it refuses to guess
at: `NotImplementedError`. Knows nothing of the worker.
"""
# ruff: noqa: N803 - the parameters have boto3's names

import hashlib
import json
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
Condition = tuple[str, bool | Item]
"""An attribute's name, and whether it must exist or what it must equal."""

# "Service, account, and table quotas", Amazon DynamoDB developer guide.
MAX_ACTIONS = 100
MAX_EXPRESSION_BYTES = 4096
MAX_ITEM_BYTES = 409_600
MAX_KEY_BYTES = (2048, 1024)
MAX_TOKEN_LENGTH = 36
MAX_DIGITS = 38
LARGEST_MAGNITUDE, SMALLEST_MAGNITUDE = 125, -130

CONDITION_FAILED = "The conditional request failed"
WRONG_TYPE = "An operand in the update expression has an incorrect data type"
TOO_MANY_DIGITS = "DynamoDB only supports precision up to 38 digits"
OVERFLOW = "Number overflow. Attempting to store a number with magnitude larger than supported range"
UNDERFLOW = "Number underflow. Attempting to store a number with magnitude smaller than supported range"
NO_NUMBER = "A value provided cannot be converted into a number"
KEY_TYPE = "One or more parameter values were invalid: Type mismatch for key"
KEY_LENGTH = "Hash primary key values must be under 2048 bytes, and range primary key values must be under 1024 bytes"
ONE_ITEM_TWICE = "Transaction request cannot include multiple operations on one item"
ITEM_TOO_LARGE = "Item size to update has exceeded the maximum allowed size"

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_EXACT = Context(prec=1000, traps=[Inexact])
_PATH = r"\s*(#?\w+)\s*"
_SET = re.compile(_PATH + r"=\s*(:\w+)\s*")
_ADD = re.compile(_PATH + r"(?<=\s)(:\w+)\s*")
_CLAUSES = re.compile(r"\b(SET|ADD)\s")
_CONDITION = re.compile(rf"\s*(?:attribute_(not_exists|exists)\s*\({_PATH}\)|{_PATH}=\s*(:\w+))\s*")
_RANGE = re.compile(r"(#\w+) = (:\w+) AND (#\w+) (?:>= (:\w+)|BETWEEN (:\w+) AND (:\w+))")
# Attribute names that the worker writes without a placeholder; others could be reserved words.
_UNRESERVED = frozenset(("expires_at", "fingerprint"))


class Dialect(Enum):
    """Whose answers to give where the two differ.

    A stored value of the wrong type, or a sum that fits no DynamoDB number, is the action's cancellation reason on AWS
    and a ValidationException of the whole request in DynamoDB Local. A token that came with a cancelled transaction
    is good for another payload in DynamoDB Local, on AWS it is not. Two actions on one item are refused before anything
    else on AWS; DynamoDB Local carries out the first one and then says what is wrong with the second.
    """

    AWS = "AWS"
    LOCAL = "DynamoDB Local"


class _ActionError(Exception):
    """Why one action cannot be carried out: becomes its cancellation reason."""

    def __init__(self, message: str, *, code: str = "ValidationError", item: Item | None = None) -> None:
        super().__init__(message)
        self.reason: dict[str, Any] = {"Code": code, "Message": message} | ({"Item": dict(item)} if item else {})


class _TypeError(_ActionError):
    """An update that does not fit the stored value."""


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
class _Update:
    """An `Update` action, or a `Put`, checked as far as that needs no stored item."""

    table: Table
    key: Item
    sets: tuple[tuple[str, Any], ...]
    adds: tuple[tuple[str, Any], ...]
    conditions: Sequence[Condition]
    returns_old: bool
    put: Item | None = None


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
        self._tokens: dict[str | None, bytes] = {}
        self._committed: set[str | None] = set()
        self._lock = threading.Lock()

    def create(self, name: str, *keys: tuple[str, str], shards: Shards | None = None) -> Table:
        """Creates a table: attribute name and type of its partition key and, if it has one, its sort key."""
        self.tables[name] = Table(keys, shards)
        return self.tables[name]

    def forget_tokens(self) -> None:
        """What ten minutes do: a repeated request with its token is a new one."""
        self._tokens.clear()
        self._committed.clear()

    def has_committed(self, token: str | None) -> bool:
        """Whether a transaction with this token was carried out and is still remembered."""
        return token in self._committed

    def remember_cancelled(self, token: str | None, actions: Sequence[Mapping[str, Any]]) -> None:
        """Keeps what a cancelled transaction keeps: its token is spoilt for another payload."""
        if token and self.dialect is Dialect.AWS:
            self._tokens[token] = _payload(actions)

    # --- The client's calls ---------------------------------------------------------------------------------------

    def transact_write_items(
        self, *, TransactItems: Sequence[Mapping[str, Any]], ClientRequestToken: str | None = None
    ) -> dict[str, Any]:
        """Carries out all `Update`s and `Put`s, or none."""
        with self._lock:
            return self._transact(TransactItems, ClientRequestToken)

    def get_item(self, *, TableName: str, Key: Item, ConsistentRead: bool = False) -> dict[str, Any]:
        """Reads one item."""
        with self._lock:
            table = self._table(TableName, "GetItem")
            _check_key_names(table, Key, "GetItem")
            key = _checked_key(table, Key, "GetItem")
            item = table.items.get(key)
            return {} if item is None else {"Item": dict(item)}

    def batch_get_item(self, *, RequestItems: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Reads items of several tables; those that are not there are left out."""
        responses: dict[str, list[Item]] = {}
        for name, wanted in RequestItems.items():
            found = [self.get_item(TableName=name, Key=key) for key in wanted["Keys"]]
            responses[name] = [answer["Item"] for answer in found if answer]
        return {"Responses": responses, "UnprocessedKeys": {}}

    def put_item(
        self,
        *,
        TableName: str,
        Item: Item,
        ReturnValuesOnConditionCheckFailure: str = "NONE",
        **condition: Any,
    ) -> dict[str, Any]:
        """Replaces one item, if the condition holds."""
        with self._lock:
            table = self._table(TableName, "PutItem")
            if any(name not in Item for name, _ in table.keys):
                raise _invalid("One of the required keys was not given a value", "PutItem")
            key_item = {name: Item[name] for name, _ in table.keys}
            key = _checked_key(table, key_item, "PutItem")
            old = table.items.get(key)
            if not _hold(_conditions(condition, set()), old):
                returned = {"Item": dict(old)} if old and ReturnValuesOnConditionCheckFailure == "ALL_OLD" else {}
                raise client_error("ConditionalCheckFailedException", CONDITION_FAILED, "PutItem", **returned)
            self._replace(table, key, key_item, dict(Item))
            return {}

    def delete_item(self, *, TableName: str, Key: Item) -> dict[str, Any]:
        """Deletes one item, if it is there."""
        with self._lock:
            table = self._table(TableName, "DeleteItem")
            _check_key_names(table, Key, "DeleteItem")
            self._replace(table, _checked_key(table, Key, "DeleteItem"), Key, None)
            return {}

    def query(
        self,
        *,
        TableName: str,
        KeyConditionExpression: str,
        ExpressionAttributeNames: Mapping[str, str],
        ExpressionAttributeValues: Mapping[str, Any],
        ConsistentRead: bool = False,
        ExclusiveStartKey: Item | None = None,
    ) -> dict[str, Any]:
        """Items of one partition from a sort key on, or between two, in order."""
        match = _RANGE.fullmatch(KeyConditionExpression)
        if match is None:
            raise NotImplementedError(KeyConditionExpression)
        partition, sort, values = match[1], match[3], ExpressionAttributeValues
        table = self._table(TableName, "Query")
        assert [ExpressionAttributeNames[name] for name in (partition, sort)] == [name for name, _ in table.keys]
        first = (values[match[2]]["S"], values[match[4] or match[5]]["S"])
        last = (first[0], values[match[6]]["S"]) if match[6] else (first[0], "\U0010ffff")
        if last < first:
            raise NotImplementedError("a range that ends before it begins")
        return self._portion(table, ExclusiveStartKey, lambda key: first <= key <= last)

    def scan(
        self, *, TableName: str, ConsistentRead: bool = False, ExclusiveStartKey: Item | None = None
    ) -> dict[str, Any]:
        """Every item; in the order of their keys, for want of DynamoDB's."""
        return self._portion(self._table(TableName, "Scan"), ExclusiveStartKey, lambda key: True)

    def _portion(self, table: Table, after: Item | None, wanted: Callable[[Key], bool]) -> dict[str, Any]:
        with self._lock:
            start = None if after is None else _key(table, after)
            keys = sorted(key for key in table.items if wanted(key) and (start is None or key > start))
            items = [dict(table.items[key]) for key in keys[: self.page_size]]
        more = {"LastEvaluatedKey": {name: items[-1][name] for name, _ in table.keys}} if len(keys) > len(items) else {}
        return {"Items": items, **more}

    def get_paginator(self, operation: str) -> "Paginator":
        """Boto3's paginator; of `query` and `scan`."""
        operations: dict[str, Callable[..., dict[str, Any]]] = {"query": self.query, "scan": self.scan}
        return Paginator(operations[operation])

    def expire(self, table_name: str, key: Item) -> None:
        """Deletes one item as Time to Live does."""
        table = self.tables[table_name]
        self._replace(table, _checked_key(table, key, "DeleteItem"), key, None, expired=True)

    # --- Transactions ---------------------------------------------------------------------------------------------

    def _transact(self, actions: Sequence[Mapping[str, Any]], token: str | None) -> dict[str, Any]:
        if not actions:
            raise _invalid(
                "Value [] at 'transactItems' failed to satisfy constraint: Member must have length greater than or "
                "equal to 1"
            )
        if len(actions) > MAX_ACTIONS:
            raise _invalid("Member must have length less than or equal to 100")
        if token and len(token) > MAX_TOKEN_LENGTH:
            raise _invalid(
                f"Value {token} at 'clientRequestToken' failed to satisfy constraint: Member must have length less "
                "than or equal to 36"
            )
        updates = [self._checked(action) for action in actions]
        if self.dialect is Dialect.AWS:
            _check_items_are_different(updates)
        payload = _payload(actions) if token else b""
        if token in self._tokens and self._tokens[token] != payload:
            raise client_error("IdempotentParameterMismatchException", "", "TransactWriteItems")
        if token in self._committed:
            return {}
        self.remember_cancelled(token, actions)
        self._carry_out(updates)
        if token:
            self._tokens[token] = payload
            self._committed.add(token)
        return {}

    def reasons(self, actions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """For each action the reason why it cannot be carried out now; the code `None` where it can."""
        return self._evaluated([self._checked(action) for action in actions])[1]

    def _carry_out(self, updates: Sequence[_Update]) -> None:
        changes, reasons, type_error = self._evaluated(updates)
        if type_error is not None and self.dialect is Dialect.LOCAL:
            raise _invalid(str(type_error))
        if len(changes) < len(updates):
            raise cancelled(reasons)
        for update, key, item in changes:
            self._replace(update.table, key, update.key, item)

    def _evaluated(
        self, updates: Sequence[_Update]
    ) -> tuple[list[tuple[_Update, Key, Item]], list[dict[str, Any]], _TypeError | None]:
        """The changes that are possible, a reason for every action, and the first type error.

        Each action finds the items as those before it leave them; that two are about one item is told at the second.
        """
        changes: list[tuple[_Update, Key, Item]] = []
        reasons: list[dict[str, Any]] = []
        type_error = None
        written: dict[tuple[int, Key], Item] = {}
        for update in updates:
            try:
                key = _key(update.table, update.key)
                place = (id(update.table), key)
                item = _updated(update, written.get(place, update.table.items.get(key)))
            except _ActionError as error:
                reasons.append(error.reason)
                if isinstance(error, _TypeError):
                    type_error = type_error or error
                continue
            if place in written:
                raise _invalid(str(type_error or ONE_ITEM_TWICE))
            written[place] = item
            changes.append((update, key, item))
            reasons.append({"Code": "None"})
        return changes, reasons, type_error

    def _checked(self, action: Mapping[str, Any]) -> _Update:
        if set(action) == {"Put"}:
            return self._checked_put(action["Put"])
        if set(action) != {"Update"}:
            raise NotImplementedError(f"an action other than Update and Put: {set(action)}")
        update = action["Update"]
        table = self._table(update["TableName"], "TransactWriteItems")
        names, values = update.get("ExpressionAttributeNames"), update.get("ExpressionAttributeValues") or {}
        if names is not None and not names:
            raise _invalid("ExpressionAttributeNames must not be empty")
        for placeholder, value in values.items():
            _check_value(placeholder, value)
        used: set[str] = set()
        clauses = _parse_update(update["UpdateExpression"])
        sets, adds = (
            tuple(
                (_name(path, names or {}, used, "Update"), _value(value, values, used, "Update"))
                for path, value in clause
            )
            for clause in clauses
        )
        conditions = _conditions(update, used)
        _check_paths_are_apart([name for name, _ in (*sets, *adds)])
        for _, value in adds:
            if "N" not in value:
                raise _invalid(
                    "Invalid UpdateExpression: Incorrect operand type for operator or function; operator: ADD, "
                    f"operand type: {_type_words(value)}, typeSet: ALLOWED_FOR_ADD_OPERAND"
                )
        _check_key_names(table, update["Key"], "TransactWriteItems")
        _check_key_values(table, update["Key"])
        returns_old = update.get("ReturnValuesOnConditionCheckFailure") == "ALL_OLD"
        return _Update(table, update["Key"], sets, adds, conditions, returns_old)

    def _checked_put(self, put: Mapping[str, Any]) -> _Update:
        table = self._table(put["TableName"], "TransactWriteItems")
        key = {name: put["Item"][name] for name, _ in table.keys}
        return _Update(table, key, (), (), _conditions(put, set()), returns_old=False, put=dict(put["Item"]))

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
    """Asks again for as long as there is more."""

    operation: Callable[..., dict[str, Any]]

    def paginate(self, **request: Any) -> Iterator[dict[str, Any]]:
        """The pages."""
        answer = self.operation(**request)
        yield answer
        while "LastEvaluatedKey" in answer:
            answer = self.operation(**request, ExclusiveStartKey=answer["LastEvaluatedKey"])
            yield answer


# --- What needs no stored item ------------------------------------------------------------------------------------


def _invalid(message: str, operation: str = "TransactWriteItems") -> ClientError:
    return client_error("ValidationException", message, operation)


def _payload(actions: Sequence[Mapping[str, Any]]) -> bytes:
    return hashlib.sha256(json.dumps(actions, sort_keys=True, default=repr).encode()).digest()


def _check_expression(expression: str, kind: str) -> None:
    if not expression:
        raise _invalid(f"Invalid {kind}Expression: The expression can not be empty;")
    size = len(expression.encode())
    if size > MAX_EXPRESSION_BYTES:
        told = f" expression size: {size}" if kind == "Condition" else ""
        raise _invalid(f"Invalid {kind}Expression: Expression size has exceeded the maximum allowed size;{told}")


Clause = tuple[tuple[str, str], ...]


@lru_cache(maxsize=4096)
def _parse_update(expression: str) -> tuple[Clause, Clause]:
    """The pairs of path and value of SET and of ADD."""
    _check_expression(expression, "Update")
    parts = _CLAUSES.split(expression)
    found: dict[str, Clause] = {"SET": (), "ADD": ()}
    if parts[0].strip() or len(parts) == 1:
        raise _syntax_error("Update")
    for keyword, text in zip(parts[1::2], parts[2::2], strict=True):
        if found[keyword]:
            raise _invalid(
                f'Invalid UpdateExpression: The "{keyword}" section can only be used once in an update expression;'
            )
        found[keyword] = tuple(_pairs(text, _SET if keyword == "SET" else _ADD))
    return found["SET"], found["ADD"]


def _pairs(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    for part in text.split(","):
        match = pattern.fullmatch(part)
        if match is None:
            raise _syntax_error("Update")
        yield match[1], match[2]


@lru_cache(maxsize=4096)
def _parse_condition(expression: str) -> tuple[tuple[str, bool | str], ...]:
    """The paths that must exist (`True`) or must not, or the placeholder of what they must equal; all of them."""
    _check_expression(expression, "Condition")
    matches = [_CONDITION.fullmatch(part) for part in re.split(r"\bAND\b", expression)]
    if None in matches:
        raise _syntax_error("Condition")
    return tuple((match[2] or match[3], match[4] or match[1] == "exists") for match in matches if match)


def _conditions(request: Mapping[str, Any], used: set[str]) -> list[Condition]:
    """A request's conditions; all names and values that it gives must be used by now, in `used` or here."""
    names, values = request.get("ExpressionAttributeNames") or {}, request.get("ExpressionAttributeValues") or {}
    expression = request.get("ConditionExpression")
    conditions: list[Condition] = [
        (
            _name(path, names, used, "Condition"),
            wanted if isinstance(wanted, bool) else _value(wanted, values, used, "Condition"),
        )
        for path, wanted in (() if expression is None else _parse_condition(expression))
    ]
    _check_all_used(names, used, "Names")
    _check_all_used(values, used, "Values")
    return conditions


def _syntax_error(kind: str) -> ClientError:
    """DynamoDB names the place; that is not imitated."""
    return _invalid(f"Invalid {kind}Expression: Syntax error")


def _name(path: str, names: Mapping[str, str], used: set[str], kind: str) -> str:
    if not path.startswith("#"):
        if path not in _UNRESERVED:
            raise NotImplementedError(f"{path} without a placeholder: it could be a reserved word")
        return path
    if path not in names:
        raise _invalid(
            f"Invalid {kind}Expression: An expression attribute name used in the document path is not defined; "
            f"attribute name: {path}"
        )
    used.add(path)
    return names[path]


def _value(placeholder: str, values: Mapping[str, Any], used: set[str], kind: str) -> Any:
    if placeholder not in values:
        raise _invalid(
            f"Invalid {kind}Expression: An expression attribute value used in expression is not defined; "
            f"attribute value: {placeholder}"
        )
    used.add(placeholder)
    return values[placeholder]


def _check_all_used(given: Mapping[str, Any], used: set[str], kind: str) -> None:
    unused = sorted(given.keys() - used)
    if unused:
        raise _invalid(
            f"Value provided in ExpressionAttribute{kind} unused in expressions: keys: {{{', '.join(unused)}}}"
        )


def _check_paths_are_apart(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        for name in (name for name in names if names.count(name) > 1):
            raise _invalid(
                "Invalid UpdateExpression: Two document paths overlap with each other; must remove or rewrite one of "
                f"these paths; path one: [{name}], path two: [{name}]"
            )


def _check_value(placeholder: str, value: Mapping[str, Any]) -> None:
    """Checks the numbers in a value, whatever it is made of."""
    ((kind, content),) = value.items()
    if kind == "N":
        try:
            _number(content)
        except ValueError as error:
            raise _invalid(
                f"ExpressionAttributeValues contains invalid value: {error} for key {placeholder}"
            ) from error
    elif kind == "L":
        for inner in content:
            _check_value(placeholder, inner)


def _type_words(value: Mapping[str, Any]) -> str:
    words = {"S": "STRING", "BOOL": "BOOLEAN", "NULL": "NULL", "L": "LIST", "M": "MAP", "B": "BINARY"}
    return words[next(iter(value))]


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
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    if len(digits) > MAX_DIGITS:
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
        raise _invalid("One of the required keys was not given a value", operation)


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


def _check_items_are_different(updates: Sequence[_Update]) -> None:
    seen = set()
    for update in updates:
        # With its type: of two keys spelt alike, one can be a number where the table has a string.
        key = tuple((kind, _comparable(kind, text)) for value in update.key.values() for kind, text in value.items())
        if (id(update.table), key) in seen:
            raise _invalid(ONE_ITEM_TWICE)
        seen.add((id(update.table), key))


def _comparable(kind: str, content: Any) -> Any:
    return _number(content) if kind == "N" else content


# --- What needs the stored item -----------------------------------------------------------------------------------


def _updated(update: _Update, old: Item | None) -> Item:
    """The item as the update leaves it."""
    if not _hold(update.conditions, old):
        returned = old if update.returns_old else None
        raise _ActionError(CONDITION_FAILED, code="ConditionalCheckFailed", item=returned)
    for name, _ in (*update.sets, *update.adds):
        if name in update.key:
            raise _ActionError(
                f"One or more parameter values were invalid: Cannot update attribute {name}. "
                "This attribute is part of the key"
            )
    new = dict(update.put or old or update.key) | dict(update.sets)
    for name, value in update.adds:
        new[name] = _sum(new.get(name), value)
    if _size(new) > MAX_ITEM_BYTES:
        raise _ActionError(ITEM_TOO_LARGE)
    return new


def _hold(conditions: Sequence[Condition], item: Item | None) -> bool:
    return all(_holds(wanted, (item or {}).get(name)) for name, wanted in conditions)


def _holds(wanted: bool | Item, stored: Mapping[str, Any] | None) -> bool:
    if isinstance(wanted, bool):
        return (stored is not None) is wanted
    if stored is None or stored.keys() != wanted.keys():
        return False
    return all(_comparable(kind, content) == _comparable(kind, stored[kind]) for kind, content in wanted.items())


def _sum(stored: Mapping[str, Any] | None, added: Mapping[str, Any]) -> Any:
    """What ADD makes of a number; one that is not there starts at zero."""
    if stored is None:
        return added
    if "N" not in stored:
        raise _TypeError(WRONG_TYPE)
    try:
        total = _fitting(_EXACT.add(_number(stored["N"]), _number(added["N"])))
    except ValueError as error:
        raise _TypeError(str(error)) from error
    return {"N": str(_EXACT.normalize(total)) if total else "0"}


def _key(table: Table, key: Item) -> Key:
    values = []
    for (name, kind), longest in zip(table.keys, MAX_KEY_BYTES, strict=False):
        ((given, content),) = key[name].items()
        if given != kind:
            raise _ActionError(KEY_TYPE)
        if kind == "S" and len(content.encode()) > longest:
            raise _ActionError(KEY_LENGTH)
        values.append(_comparable(kind, content))
    return tuple(values)


def _checked_key(table: Table, key: Item, operation: str) -> Key:
    try:
        return _key(table, key)
    except _ActionError as error:
        raise _invalid(str(error), operation) from error


def _size(item: Item) -> int:
    """Bytes of an item, roughly as "DynamoDB item sizes and formats" counts them."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Mapping[str, Any]) -> int:
    ((kind, content),) = value.items()
    if kind == "S":
        return len(content.encode())
    if kind == "N":
        return len(content) // 2 + 2
    if kind == "L":
        return 3 + sum(1 + _value_size(inner) for inner in content)
    return 1

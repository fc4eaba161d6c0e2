"""The DynamoDB in memory answers like AWS's own implementation: the same random requests are sent to both."""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import KeyType
from aggregation_worker.aggregations.numbers import EXACT
from aggregation_worker.deployment.settings import TableDefinition
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.streams.records import from_get_records
from tests.dynamodb_local import DynamoDBLocal
from tests.model.in_memory_dynamodb import (
    NO_SUCH_MAP,
    OVERFLOW,
    TOO_MANY_DIGITS,
    UNDERFLOW,
    WRONG_TYPE,
    Dialect,
    InMemoryDynamoDB,
    Shards,
)
from tests.records import STREAM_ARN
from tests.sizes import examples

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LEDGER, TARGET, NUMBERED = "conformance-ledger", "conformance-target", "conformance-numbered"
KEYS = {
    LEDGER: (("aggregate", "S"), ("page", "S")),
    TARGET: (("item_number", "S"), ("order_date", "S")),
    NUMBERED: (("customer", "N"),),
}
UPDATE_ERRORS = (WRONG_TYPE, NO_SUCH_MAP, TOO_MANY_DIGITS, OVERFLOW, UNDERFLOW)
CHECKED_BY_BOTH = Config(parameter_validation=False, retries={"total_max_attempts": 1})


@dataclass(frozen=True, slots=True)
class Both:
    """The two implementations, with the same tables."""

    server: "DynamoDBClient"
    memory: InMemoryDynamoDB

    def transact(self, actions: Sequence[Any]) -> tuple[Any, Any]:
        """Both answers to one transaction of `Update`s and, with an `Item`, `Put`s."""
        return self.call(
            "transact_write_items",
            TransactItems=[{"Put" if "Item" in action else "Update": action} for action in actions],
        )

    def write(self, action: Any) -> tuple[Any, Any]:
        """Both answers to an `Update` or a `Put` that is a request of its own."""
        return self.call("put_item" if "Item" in action else "update_item", **action)

    def call(self, operation: str, **request: Any) -> tuple[Any, Any]:
        """Both answers to one request, in a form in which equal ones are equal."""
        copy = deepcopy(request)
        return _answer(getattr(self.server, operation), request), _answer(getattr(self.memory, operation), copy)


def _answer(call: Callable[..., Any], request: Mapping[str, Any]) -> Any:
    try:
        answer = call(**request)
    except ClientError as error:
        response: Mapping[str, Any] = error.response
        message = response["Error"].get("Message") or ""
        if "Syntax error" in message:  # DynamoDB goes on to name the place
            message = message.partition("Syntax error")[0] + "Syntax error"
        if message in UPDATE_ERRORS:  # of several, either may be named
            message = "one of the update errors"
        reasons = [_plain(reason) for reason in response.get("CancellationReasons", ())]
        return response["Error"]["Code"], message, reasons, _plain(response.get("Item"))
    for found in answer.get("Responses", {}).values():  # in any order
        found.sort(key=lambda item: repr(sorted(_plain(item).items(), key=repr)))
    # DynamoDB Local now and then says that a query goes on where nothing is left.
    return "answered", {name: _plain(answer[name]) for name in ("Item", "Items", "Responses") if name in answer}


def _plain(value: Any) -> Any:
    """With numbers by value: 1.50 and 15E-1 are the same, also to the eye, by which items are sorted."""
    if isinstance(value, Mapping):
        if set(value) == {"N"}:
            return EXACT.normalize(Decimal(value["N"])) or Decimal(0)  # -0, too
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value


@pytest.fixture(scope="module")
def both(dynamodb_local: DynamoDBLocal) -> Iterator[Both]:
    server = dynamodb_local.client("dynamodb", CHECKED_BY_BOTH)
    memory = InMemoryDynamoDB(Dialect.LOCAL)
    for name, keys in KEYS.items():
        create_table(server, name, TableDefinition(tuple((key, KeyType(kind)) for key, kind in keys)))
        memory.create(name, *keys)
    yield Both(server, memory)
    for name in KEYS:
        server.delete_table(TableName=name)


# --- Random requests ----------------------------------------------------------------------------------------------

Action = dict[str, Any]
Damage = Callable[[list[Action]], None]

NUMBERS = (
    *("0", "-0", "1", "-1", "10", "2.5", "0.1", "-0.1", "1.50", "+7", "007", "1e3", "-1E3", ".5", "5."),
    *("9" * 38, "-" + "9" * 38, "1e37", "1e38", "1e-10", "9e125", "-9e125", "1e125", "1e-130", "1.5e-130", "-1e-130"),
)
REFUSED_NUMBERS = ("", "x", "NaN", "Infinity", "1_0", " 1", "1 ", "0x1", "1" * 39, "1e126", "1e-131", "1e", "--1")
keys = st.sampled_from(("a", "b"))
numbers = st.sampled_from(NUMBERS) | st.integers(-1000, 1000).map(str) | st.decimals(-99, 99, places=3).map(str)


receipt_values = numbers.map(lambda text: {"N": text}) | st.lists(numbers, min_size=2, max_size=3).map(
    lambda texts: {"L": [{"N": text} for text in texts]}
)
# Few of each, so that what is asked for is there now and then.
positions = st.sampled_from(("1", "2", "3", "4"))
maps = st.dictionaries(st.sampled_from(("1.r", "2.r")), st.sampled_from(({"N": "1"}, {"N": "1.0"})), max_size=1)
binaries = st.sampled_from((b"", b"1", b"2"))


@st.composite
def rows(draw: st.DrawFn) -> Action:
    """What writes receipts to a row: into its map, or with a map in place of the one that was seen."""
    names: dict[str, str] = {"#map": "receipts#a", "#archived": "archived#a"}
    values: dict[str, Any] = {}
    sets, conditions = [], []
    kind = draw(st.sampled_from(("first", "first", "add", "add", "add", "archive", "spoil")))
    if kind == "add":
        values[":first"] = {"S": draw(positions)}
        found = draw(st.lists(positions, min_size=1, max_size=3, unique=True))
        for number in found:
            names[f"#{number}"] = f"{number}.r"
            values[f":{number}"] = draw(receipt_values)
            sets.append(f"#map.#{number} = :{number}")
        conditions = [f"attribute_not_exists(#map.#{number})" for number in found if draw(st.booleans())]
        if draw(st.integers(0, 3)):
            conditions.append("attribute_exists(#map)")
        conditions.append("(attribute_not_exists(#archived) OR #archived < :first)")
    else:
        values[":map"] = {"M": draw(maps)} if kind != "spoil" else {"S": "text"}
        values[":archived"] = {"S": draw(positions)} if draw(st.integers(0, 5)) else {"N": "1"}
        sets = ["#map = :map", "#archived = :archived"]
        if kind == "first":
            conditions = ["attribute_not_exists(#map)"]
            if draw(st.booleans()):
                del names["#archived"], values[":archived"], sets[1]
        if kind == "archive":
            values |= {":seen": {"M": draw(maps)}, ":before": {"S": draw(positions)}}
            conditions = ["#map = :seen", "(#archived = :before OR attribute_not_exists(#archived))"]
    action: Action = {
        "TableName": TARGET,
        "Key": {"item_number": {"S": draw(keys)}, "order_date": {"S": draw(keys)}},
        "UpdateExpression": f"SET {', '.join(sets)}",
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": values,
    }
    for measure in draw(st.lists(st.sampled_from(("quantity", "revenue", "orders")), unique=True)):
        names[f"#{measure}"] = measure
        values[f":{measure}"] = {"N": draw(numbers)}
        action["UpdateExpression"] += (
            f"{',' if ' ADD ' in action['UpdateExpression'] else ' ADD'} #{measure} :{measure}"
        )
    return action | draw(conditional(draw(st.permutations(conditions))))


def conditional(conditions: Sequence[str]) -> st.SearchStrategy[Action]:
    """A condition if there is one, and whether it returns the item."""
    condition = {"ConditionExpression": " AND ".join(conditions)} if conditions else {}
    return st.sampled_from((condition, condition | {"ReturnValuesOnConditionCheckFailure": "ALL_OLD"}))


@st.composite
def pages(draw: st.DrawFn) -> Action:
    """What writes a page of the ledger: where there is none, or in place of the one that was read."""
    action: Action = {
        "TableName": LEDGER,
        "Item": {
            "aggregate": {"S": draw(keys)},
            "page": {"S": draw(positions)},
            "after": {"S": draw(positions)},
            "receipts": {"B": draw(binaries)},
            "expires_at": {"N": draw(numbers)},
        },
    }
    kind = draw(st.sampled_from(("", "new", "replaced", "replaced")))
    if kind == "new":
        action["ExpressionAttributeNames"] = {"#page": "page"}
        return action | draw(conditional(["attribute_not_exists(#page)"]))
    if kind == "replaced":
        action["ExpressionAttributeNames"] = {"#after": "after", "#receipts": "receipts"}
        action["ExpressionAttributeValues"] = {":after": {"S": draw(positions)}, ":receipts": {"B": draw(binaries)}}
        comparison = draw(st.sampled_from(("=", "=", "<", ">=")))
        return action | draw(conditional([f"#after {comparison} :after", f"#receipts {comparison} :receipts"]))
    return action


@st.composite
def totals(draw: st.DrawFn) -> Action:
    """What adds contributions to a row; now and then what makes a total a text."""
    if draw(st.booleans()):
        table, key = TARGET, {"item_number": {"S": draw(keys)}, "order_date": {"S": draw(keys)}}
    else:
        table, key = NUMBERED, {"customer": {"N": draw(st.sampled_from(("0", "1", "2.5", "-3")))}}
    measures = draw(st.lists(st.sampled_from(("quantity", "revenue", "orders")), min_size=1, unique=True))
    placeholders = {f"#{number}": name for number, name in enumerate(measures)}
    if draw(st.integers(0, 9)):
        expression = "ADD " + ", ".join(f"{name} :{name[1:]}" for name in placeholders)
        values = {f":{number}": {"N": draw(numbers)} for number in range(len(measures))}
    else:
        expression = "SET " + ", ".join(f"{name} = :{name[1:]}" for name in placeholders)
        values = {f":{number}": {"S": "text"} for number in range(len(measures))}
    return {
        "TableName": table,
        "Key": key,
        "UpdateExpression": expression,
        "ExpressionAttributeNames": placeholders,
        "ExpressionAttributeValues": values,
    }


def _key(action: Action) -> Any:
    return action.get("Key") or {name: action["Item"][name] for name, _ in KEYS[LEDGER]}


def _identity(action: Action) -> str:
    return json.dumps([action["TableName"], _key(action)], sort_keys=True)


updates = st.lists(rows() | totals(), min_size=1, max_size=6, unique_by=_identity)
transactions = st.lists(rows() | pages() | totals(), min_size=1, max_size=6, unique_by=_identity)


def _first_key(action: Action) -> str:
    return str(next(iter(action["Key"])))


def _missing_table(actions: list[Action]) -> None:
    # Of the first one: DynamoDB Local tells before it what an earlier action's update cannot do.
    actions[0]["TableName"] = "conformance-none"


def _key_lacks_an_attribute(actions: list[Action]) -> None:
    del actions[0]["Key"][_first_key(actions[0])]


def _key_has_another_attribute(actions: list[Action]) -> None:
    actions[0]["Key"]["other"] = {"S": "x"}


def _key_has_another_name(actions: list[Action]) -> None:
    actions[0]["Key"]["other"] = actions[0]["Key"].pop(_first_key(actions[0]))


def _key_of_another_type(actions: list[Action]) -> None:
    key = actions[0]["Key"]
    name = _first_key(actions[0])
    key[name] = {"S": "x"} if "N" in key[name] else {"N": "1"}


def _empty_key(actions: list[Action]) -> None:
    action = actions[0]
    action["TableName"], action["Key"] = TARGET, {"item_number": {"S": ""}, "order_date": {"S": "x"}}


def _key_too_long(actions: list[Action]) -> None:
    action = actions[0]
    action["TableName"], action["Key"] = TARGET, {"item_number": {"S": "x" * 2049}, "order_date": {"S": "x"}}


def _sort_key_too_long(actions: list[Action]) -> None:
    action = actions[0]
    action["TableName"], action["Key"] = TARGET, {"item_number": {"S": "x"}, "order_date": {"S": "é" * 513}}


def _unused_name(actions: list[Action]) -> None:
    actions[0]["ExpressionAttributeNames"]["#unused"] = "x"


def _unused_value(actions: list[Action]) -> None:
    actions[0]["ExpressionAttributeValues"][":unused"] = {"N": "1"}


def _undefined_name(actions: list[Action]) -> None:
    actions[0]["UpdateExpression"] = actions[0]["UpdateExpression"].replace("#", "#no", 1)


def _undefined_value(actions: list[Action]) -> None:
    actions[0]["UpdateExpression"] = actions[0]["UpdateExpression"].replace(":", ":no", 1)


def _no_names(actions: list[Action]) -> None:
    actions[0]["ExpressionAttributeNames"] = {}


def _syntax_error(actions: list[Action]) -> None:
    actions[0]["UpdateExpression"] += ","


def _no_expression(actions: list[Action]) -> None:
    actions[0]["UpdateExpression"] = ""


def _no_condition(actions: list[Action]) -> None:
    actions[0]["ConditionExpression"] = ""


def _overlap(actions: list[Action]) -> None:
    expression = actions[0]["UpdateExpression"]
    actions[0]["UpdateExpression"] = f"{expression}, {re.split(r'(?:SET|ADD|,) ', expression)[-1]}"


def _overlap_of_a_map_and_its_entry(actions: list[Action]) -> None:
    actions[0] |= {
        "UpdateExpression": "SET #1 = :1, #1.#2 = :1",
        "ExpressionAttributeNames": {"#1": "a", "#2": "b"},
        "ExpressionAttributeValues": {":1": {"M": {}}},
    }
    actions[0].pop("ConditionExpression", None)


def _add_a_text(actions: list[Action]) -> None:
    expression = actions[0]["UpdateExpression"]
    actions[0]["UpdateExpression"] += f"{',' if 'ADD' in expression else ' ADD'} #text :text"
    actions[0]["ExpressionAttributeNames"]["#text"] = "text"
    actions[0]["ExpressionAttributeValues"][":text"] = {"S": "1"}


def _same_item_twice(actions: list[Action]) -> None:
    actions.append(dict(actions[0]))


def _too_many_actions(actions: list[Action]) -> None:
    key = {"item_number": {"S": "many"}}
    actions[:] = [dict(actions[0], TableName=TARGET, Key=key | {"order_date": {"S": str(day)}}) for day in range(101)]


def _expression_too_long(actions: list[Action]) -> None:
    names = {f"#{'long' * 10}{number}": f"{number}" for number in range(100)}
    actions[0]["ExpressionAttributeNames"] = names
    actions[0]["ExpressionAttributeValues"] = {":0": {"N": "1"}}
    actions[0]["UpdateExpression"] = "ADD " + ", ".join(f"{name} :0" for name in names)
    actions[0].pop("ConditionExpression", None)


def _condition_too_long(actions: list[Action]) -> None:
    names = {f"#{number}": f"{number}.receipt" for number in range(140)}
    actions[0]["ExpressionAttributeNames"] = names
    actions[0]["ExpressionAttributeValues"] = {":0": {"N": "1"}}
    actions[0]["UpdateExpression"] = "SET #0 = :0"
    actions[0]["ConditionExpression"] = " AND ".join(f"attribute_not_exists({name})" for name in names)


def _too_many_operators(actions: list[Action]) -> None:
    _only_a_set(actions)
    actions[0]["ConditionExpression"] = " AND ".join(["#0 = :0", "attribute_exists(#0)"] * 76)


def _only_a_set(actions: list[Action]) -> None:
    actions[0]["ExpressionAttributeNames"] = {"#0": "a"}
    actions[0]["ExpressionAttributeValues"] = {":0": {"N": "1"}}
    actions[0]["UpdateExpression"] = "SET #0 = :0"


def _order_of_maps(actions: list[Action]) -> None:
    _only_a_set(actions)
    actions[0]["ExpressionAttributeValues"][":1"] = {"M": {}}
    actions[0]["ConditionExpression"] = "#0 < :1"


def _condition_without_an_end(actions: list[Action]) -> None:
    _only_a_set(actions)
    actions[0]["ConditionExpression"] = "attribute_exists(#0) AND"


def _refused_number(text: str) -> Damage:
    def damage(actions: list[Action]) -> None:
        values = actions[0]["ExpressionAttributeValues"]
        name = next(iter(values))
        inside = {"L": {"L": [{"N": "1"}, {"N": text}]}, "M": {"M": {"1.r": {"N": text}}}}
        values[name] = inside.get(next(iter(values[name])), {"N": text})

    damage.__name__ = f"_number_{text[:10]!r}"
    return damage


DAMAGES: tuple[Damage, ...] = (
    *(_missing_table, _key_lacks_an_attribute, _key_has_another_attribute, _key_has_another_name),
    *(_key_of_another_type, _empty_key, _key_too_long, _sort_key_too_long, _unused_name, _unused_value),
    *(_undefined_name, _undefined_value, _no_names, _syntax_error, _no_expression, _no_condition, _overlap),
    *(_overlap_of_a_map_and_its_entry, _add_a_text, _same_item_twice, _too_many_actions, _expression_too_long),
    *(_condition_too_long, _too_many_operators, _order_of_maps, _condition_without_an_end),
    *map(_refused_number, REFUSED_NUMBERS),
)


@given(st.lists(transactions, min_size=1, max_size=8))
@examples(20, long=300)
def test_random_transactions__both_answer_and_write_alike(both: Both, requests: list[list[Action]]) -> None:
    example = uuid.uuid4().hex[:12]
    sent = [[_of_example(action, example) for action in actions] for actions in requests]

    for actions in sent:
        from_server, from_memory = both.transact(actions)
        assert from_memory == from_server, actions

    assert_same_items(both, [action for actions in sent for action in actions])


@given(st.lists(rows() | pages() | totals(), min_size=1, max_size=20))
@examples(20, long=300)
def test_random_writes__both_answer_and_write_alike(both: Both, actions: list[Action]) -> None:
    example = uuid.uuid4().hex[:12]
    sent = [_of_example(action, example) for action in actions]

    for action in sent:
        from_server, from_memory = both.write(action)
        assert from_memory == from_server, action

    assert_same_items(both, sent)


def assert_same_items(both: Both, actions: Sequence[Action]) -> None:
    """Both hold the same items now where these actions wrote."""
    for table in {action["TableName"] for action in actions}:
        written = {_identity(action): _key(action) for action in actions if action["TableName"] == table}
        from_server, from_memory = both.call("batch_get_item", RequestItems={table: {"Keys": list(written.values())}})
        assert from_memory == from_server


def _of_example(action: Action, example: str) -> Action:
    """The action, on items that no other example touches."""
    if action["TableName"] == NUMBERED:
        number = Decimal(action["Key"]["customer"]["N"]) + int(example, 16) * 100
        return action | {"Key": {"customer": {"N": str(number)}}}
    of_example = {name: {"S": f"{example}-{value['S']}"} for name, value in _key(action).items()}
    return action | ({"Item": action["Item"] | of_example} if "Item" in action else {"Key": of_example})


# As much as a number holds: added twice, it is too much.
ADDS_THE_LARGEST: Action = {
    "TableName": NUMBERED,
    "Key": {"customer": {"N": "0"}},
    "UpdateExpression": "ADD #0 :0",
    "ExpressionAttributeNames": {"#0": "quantity"},
    "ExpressionAttributeValues": {":0": {"N": "9e125"}},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@given(updates)
@example([ADDS_THE_LARGEST])
@examples(2, long=30)
def test_damaged_transactions__both_refuse_alike(both: Both, damage: Damage, actions: list[Action]) -> None:
    example = uuid.uuid4().hex[:12]
    actions = [_of_example(action, example) for action in deepcopy(actions)]
    damage(actions)

    from_server, from_memory = both.transact(actions)
    assert from_memory == from_server
    from_server, from_memory = both.write(actions[0])
    assert from_memory == from_server


def test_no_actions__both_refuse_alike(both: Both) -> None:
    from_server, from_memory = both.transact([])

    assert from_memory == from_server


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_item_at_the_size_limit__both_answer_alike(both: Both, size: int) -> None:
    key = {"item_number": {"S": "large"}, "order_date": {"S": "x"}}
    item = {**key, "note": {"S": "x" * (409_600 - 64 + size)}, "packed": {"B": b"123"}}
    both.write({"TableName": TARGET, "Item": item | {"receipts": {"M": {"1": {"S": "12"}}}}})
    action = {
        "TableName": TARGET,
        "Key": key,
        "UpdateExpression": "SET #receipts.#2 = :2",
        "ExpressionAttributeNames": {"#receipts": "receipts", "#2": "2"},
        "ExpressionAttributeValues": {":2": {"L": [{"S": "abc"}]}},
    }

    from_server, from_memory = both.write(action)
    in_transaction = both.transact([action])
    both.call("delete_item", TableName=TARGET, Key=key)

    assert from_memory == from_server
    assert in_transaction[0] == in_transaction[1]
    assert (from_memory[0] == "answered") is (size <= 0)


@pytest.mark.parametrize("size", [0, 1])
def test_put_at_the_size_limit__both_answer_alike(both: Both, size: int) -> None:
    key = {"aggregate": {"S": "large"}, "page": {"S": "x"}}
    item = key | {"receipts": {"B": b"x" * (409_600 - len("aggregatelargepagexreceipts") + size)}}

    from_server, from_memory = both.write({"TableName": LEDGER, "Item": item})
    in_transaction = both.transact([{"TableName": LEDGER, "Item": item}])
    both.call("delete_item", TableName=LEDGER, Key=key)

    assert from_memory == from_server
    assert in_transaction[0] == in_transaction[1]
    assert (from_memory[0] == "answered") is (size <= 0)


catalogues = st.dictionaries(
    st.sampled_from(("a", "b#", "c.d")), st.sampled_from(("{}", '{"remove": "ignore"}')).map(lambda text: {"S": text})
)


@given(st.lists(st.tuples(keys, st.none() | catalogues, st.booleans(), catalogues), min_size=1, max_size=6))
@examples(10, long=100)
def test_conditional_puts__both_answer_alike(
    both: Both, puts: list[tuple[str, dict[str, Any] | None, bool, dict[str, Any]]]
) -> None:
    """Of a map in place of none, or of the one that was read."""
    example = uuid.uuid4().hex
    for name, was, returns_old, now in puts:
        key = {"aggregate": {"S": f"{example}-{name}"}, "page": {"S": "catalogue"}}
        request: dict[str, Any] = {
            "TableName": LEDGER,
            "Item": {**key, "aggregations": {"M": now}, "image_reading": {"N": "1"}},
            "ExpressionAttributeNames": {"#aggregations": "aggregations"},
            "ConditionExpression": "attribute_not_exists(#aggregations)",
        }
        if was is not None:
            request["ExpressionAttributeNames"]["#reading"] = "image_reading"
            request["ConditionExpression"] = "#aggregations = :aggregations AND #reading = :reading"
            request["ExpressionAttributeValues"] = {":aggregations": {"M": was}, ":reading": {"N": "1"}}
        if returns_old:
            request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"

        from_server, from_memory = both.call("put_item", **request)
        assert from_memory == from_server
        from_server, from_memory = both.call("get_item", TableName=LEDGER, Key=key, ConsistentRead=True)
        assert from_memory == from_server


# --- Reads --------------------------------------------------------------------------------------------------------


@given(st.sets(positions), positions, positions, st.sampled_from(("BETWEEN", ">=", "<", "=", "")), st.integers(1, 5))
@examples(15, long=200)
def test_queries__both_answer_alike_page_by_page(
    both: Both, there: set[str], first: str, last: str, comparison: str, limit: int
) -> None:
    example = uuid.uuid4().hex
    for page in there:
        both.write({"TableName": LEDGER, "Item": {"aggregate": {"S": example}, "page": {"S": page}}})
    request: dict[str, Any] = {
        "TableName": LEDGER,
        "KeyConditionExpression": "#aggregate = :aggregate",
        "ExpressionAttributeNames": {"#aggregate": "aggregate"},
        "ExpressionAttributeValues": {":aggregate": {"S": example}},
        "ConsistentRead": True,
        "Limit": limit,
    }
    if comparison:
        request["KeyConditionExpression"] += f" AND #page {comparison} :first"
        request["ExpressionAttributeNames"]["#page"] = "page"
        request["ExpressionAttributeValues"][":first"] = {"S": first}
    if comparison == "BETWEEN":
        request["KeyConditionExpression"] += " AND :last"
        request["ExpressionAttributeValues"][":last"] = {"S": last}

    while True:
        from_server, from_memory = both.call("query", **request)
        assert from_memory == from_server
        last_key = from_memory[0] == "answered" and both.memory.query(**request).get("LastEvaluatedKey")
        if not last_key:
            return
        request["ExclusiveStartKey"] = last_key


def test_query__goes_on_until_all_pages_are_read() -> None:
    memory = InMemoryDynamoDB()
    memory.create(LEDGER, *KEYS[LEDGER])
    memory.page_size = 2
    items = [{"aggregate": {"S": "x"}, "page": {"S": str(number)}} for number in range(5)]
    for item in reversed(items):
        memory.put_item(TableName=LEDGER, Item=item)

    answers = memory.get_paginator("query").paginate(
        TableName=LEDGER,
        KeyConditionExpression="#aggregate = :aggregate",
        ExpressionAttributeNames={"#aggregate": "aggregate"},
        ExpressionAttributeValues={":aggregate": {"S": "x"}},
    )

    assert [answer["Items"] for answer in answers] == [items[:2], items[2:4], items[4:]]


@pytest.mark.parametrize(
    "changes",
    [
        {"KeyConditionExpression": "#page >= :page", "ExpressionAttributeNames": {"#page": "page"}},
        {"ExpressionAttributeNames": {"#aggregate": "aggregate", "#page": "sort"}},
        {"ExpressionAttributeNames": {"#aggregate": "partition", "#page": "page"}},
        {"ExpressionAttributeValues": {":aggregate": {"S": "x"}, ":page": {"N": "1"}}},
        {"ExpressionAttributeValues": {":aggregate": {"S": "x"}, ":page": {"S": "1"}, ":more": {"S": "1"}}},
        {"KeyConditionExpression": ""},
        {"TableName": "conformance-none"},
    ],
    ids=["partition missing", "sort key's name", "partition key's name", "type", "unused value", "empty", "table"],
)
def test_wrong_queries__both_refuse_alike(both: Both, changes: dict[str, Any]) -> None:
    request = {
        "TableName": LEDGER,
        "KeyConditionExpression": "#aggregate = :aggregate AND #page >= :page",
        "ExpressionAttributeNames": {"#aggregate": "aggregate", "#page": "page"},
        "ExpressionAttributeValues": {":aggregate": {"S": "x"}, ":page": {"S": "1"}},
    } | changes
    if "aggregate = " not in request["KeyConditionExpression"]:
        del request["ExpressionAttributeValues"][":aggregate"]

    from_server, from_memory = both.call("query", **request)

    assert from_memory == from_server


@pytest.mark.parametrize(
    "keys_read",
    [
        [{"aggregate": {"S": "x"}}],
        [{"aggregate": {"S": "x"}, "page": {"N": "1"}}],
        [{"aggregate": {"S": "x"}, "page": {"S": "1"}}] * 2,
        [{"aggregate": {"S": "x"}, "page": {"S": str(number)}} for number in range(101)],
        [{"aggregate": {"S": "x"}, "page": {"S": str(number)}} for number in range(100)],
    ],
    ids=["too few", "another type", "twice", "too many", "most"],
)
def test_batches_of_keys__both_answer_alike(both: Both, keys_read: list[dict[str, Any]]) -> None:
    from_server, from_memory = both.call("batch_get_item", RequestItems={LEDGER: {"Keys": keys_read}})

    assert from_memory == from_server


@pytest.mark.parametrize("operation", ["get_item", "delete_item"])
@pytest.mark.parametrize(
    "key",
    [
        {"aggregate": {"S": "x"}},
        {"aggregate": {"S": "x"}, "other": {"S": "x"}},
        {"aggregate": {"S": "x"}, "page": {"S": "x"}, "other": {"S": "x"}},
        {"aggregate": {"N": "1"}, "page": {"S": "x"}},
    ],
    ids=["too few", "another name", "too many", "another type"],
)
def test_wrong_keys__both_refuse_alike(both: Both, operation: str, key: dict[str, Any]) -> None:
    from_server, from_memory = both.call(operation, TableName=LEDGER, Key=key)

    assert from_memory == from_server


PAGE = {"aggregate": {"S": "x"}, "page": {"S": "x"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"Item": {"page": {"S": "x"}}},
        {"Item": {"page": {"S": "x"}}, "TableName": "conformance-none"},
        {"Item": PAGE | {"page": {"N": "1"}}},
        {"Item": PAGE | {"page": {"S": ""}}},
        {"Item": PAGE | {"page": {"S": "x" * 1025}}},
        {"Item": PAGE | {"expires_at": {"N": "1x"}}},
        {"Item": PAGE | {"receipts": {"M": {"1": {"N": "1e126"}}}}},
        {"ConditionExpression": ""},
        {"ConditionExpression": "attribute_not_exists(#page)", "ExpressionAttributeNames": {}},
        {"ConditionExpression": "attribute_not_exists(#page)", "ExpressionAttributeNames": {"#other": "page"}},
        {"ConditionExpression": "#page = :1", "ExpressionAttributeNames": {"#page": "page"}},
    ],
    ids=[
        *("no key", "no table", "key's type", "empty key", "long key", "number", "number in a map"),
        *("no condition", "no names", "undefined name", "undefined value"),
    ],
)
def test_wrong_puts__both_refuse_alike(both: Both, changes: dict[str, Any]) -> None:
    action = {"TableName": LEDGER, "Item": PAGE} | changes

    from_server, from_memory = both.write(action)
    assert from_memory == from_server
    from_server, from_memory = both.transact([action])
    assert from_memory == from_server


def test_stream__both_record_the_same_changes(dynamodb_local: DynamoDBLocal) -> None:
    server = dynamodb_local.client("dynamodb", CHECKED_BY_BOTH)
    table = f"conformance-source-{uuid.uuid4().hex[:12]}"
    stream_arn = create_table(
        server, table, TableDefinition((("orderid", KeyType.STRING),), stream_view_type="NEW_AND_OLD_IMAGES")
    )
    assert stream_arn is not None
    memory = InMemoryDynamoDB()
    shards = Shards(STREAM_ARN, lambda: 1_789_651_658.9, [10**20])
    memory.create(table, ("orderid", "S"), shards=shards)
    writes = [(order, quantity) for quantity in (1, 1, 2, None, None, 3) for order in ("1", "2")]

    for order, quantity in writes:
        for client in (server, memory):
            key = {"orderid": {"S": order}}
            if quantity is None:
                client.delete_item(TableName=table, Key=key)
            else:
                client.put_item(TableName=table, Item=key | {"quantity": {"N": str(quantity)}})

    delivered = _whole_stream(dynamodb_local, stream_arn)
    assert list(map(_change, shards.records)) == list(map(_change, delivered))
    assert len(delivered) == 8  # a write that changes nothing leaves no record
    assert {type(record["dynamodb"]["SequenceNumber"]) for record in shards.records} == {str}
    assert shards.records[0]["dynamodb"]["ApproximateCreationDateTime"] == 1_789_651_658
    server.delete_table(TableName=table)


def _whole_stream(dynamodb_local: DynamoDBLocal, stream_arn: str) -> list[dict[str, Any]]:
    streams = dynamodb_local.client("dynamodbstreams")
    found: list[dict[str, Any]] = []
    for shard in streams.describe_stream(StreamArn=stream_arn)["StreamDescription"]["Shards"]:
        iterator = streams.get_shard_iterator(
            StreamArn=stream_arn, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        page = streams.get_records(ShardIterator=iterator)
        found.extend(from_get_records(record, stream_arn) for record in page["Records"])
    return found


def _change(record: Mapping[str, Any]) -> tuple[Any, ...]:
    change = record["dynamodb"]
    return record["eventName"], change["Keys"], change.get("OldImage"), change.get("NewImage")


# --- What AWS does otherwise than its local version ---------------------------------------------------------------


def test_type_error_on_aws__is_a_reason_and_nothing_changes() -> None:
    memory = InMemoryDynamoDB(Dialect.AWS)
    for name, keys in KEYS.items():
        memory.create(name, *keys)
    memory.put_item(TableName=NUMBERED, Item={"customer": {"N": "1"}, "quantity": {"S": "text"}})
    add = {
        "UpdateExpression": "ADD #0 :0",
        "ExpressionAttributeNames": {"#0": "quantity"},
        "ExpressionAttributeValues": {":0": {"N": "1"}},
        "TableName": NUMBERED,
    }
    actions = [{"Update": add | {"Key": {"customer": {"N": number}}}} for number in ("2", "1")]

    with pytest.raises(ClientError) as raised:
        memory.transact_write_items(TransactItems=actions)

    reasons: Any = raised.value.response
    assert [reason["Code"] for reason in reasons["CancellationReasons"]] == ["None", "ValidationError"]
    assert list(memory.tables[NUMBERED].items) == [(Decimal(1),)]


# --- What the worker does not send --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"UpdateExpression": "SET #0 = if_not_exists(#0, :0)"},
        {"UpdateExpression": "REMOVE #0"},
        {"UpdateExpression": "SET quantity = :0"},
        {"UpdateExpression": "SET #0[0] = :0"},
        {"UpdateExpression": "ADD #0.#0 :0"},
        {"ConditionExpression": "NOT attribute_exists(#0)"},
        {"ConditionExpression": "size(#0) = :0"},
        {"ConditionExpression": "#0 <> :0"},
        {"ConditionExpression": "((#0 = :0))"},
        {"ReturnValues": "ALL_NEW"},
    ],
    ids=str,
)
def test_what_is_never_sent__is_not_guessed_at(changes: dict[str, Any]) -> None:
    memory = InMemoryDynamoDB()
    memory.create(NUMBERED, *KEYS[NUMBERED])

    with pytest.raises(NotImplementedError):
        memory.update_item(**(ADDS_THE_LARGEST | changes))


def test_token_sent_again__is_not_guessed_at() -> None:
    memory = InMemoryDynamoDB()
    memory.create(NUMBERED, *KEYS[NUMBERED])
    memory.transact_write_items(TransactItems=[{"Update": ADDS_THE_LARGEST}], ClientRequestToken="token")

    with pytest.raises(NotImplementedError):
        memory.transact_write_items(TransactItems=[{"Update": ADDS_THE_LARGEST}], ClientRequestToken="token")

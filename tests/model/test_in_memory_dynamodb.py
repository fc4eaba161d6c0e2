"""The DynamoDB in memory answers like AWS's own implementation: the same random requests are sent to both."""

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import KeyType
from aggregation_worker.deployment.settings import TableDefinition
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.streams.records import from_get_records
from tests.dynamodb_local import DynamoDBLocal
from tests.model.in_memory_dynamodb import (
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
UPDATE_ERRORS = (WRONG_TYPE, TOO_MANY_DIGITS, OVERFLOW, UNDERFLOW)
CHECKED_BY_BOTH = Config(parameter_validation=False, retries={"total_max_attempts": 1})


@dataclass(frozen=True, slots=True)
class Both:
    """The two implementations, with the same tables."""

    server: "DynamoDBClient"
    memory: InMemoryDynamoDB

    def transact(self, actions: Sequence[Any], token: str | None) -> tuple[Any, Any]:
        """Both answers to one transaction."""
        request: dict[str, Any] = {"TransactItems": actions} | ({"ClientRequestToken": token} if token else {})
        return self.call("transact_write_items", **request)

    def call(self, operation: str, **request: Any) -> tuple[Any, Any]:
        """Both answers to one request, in a form in which equal ones are equal."""
        copy = json.loads(json.dumps(request))
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
    return "Item", _plain(answer.get("Item"))


def _plain(value: Any) -> Any:
    """With numbers by value: 1.50 and 15E-1 are the same."""
    if isinstance(value, Mapping):
        if set(value) == {"N"}:
            return Decimal(value["N"])
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
names = st.sampled_from(("a", "b", "c"))
numbers = st.sampled_from(NUMBERS) | st.integers(-1000, 1000).map(str) | st.decimals(-99, 99, places=3).map(str)


@st.composite
def receipts(draw: st.DrawFn) -> Action:
    """What posts receipts: a SET under the condition that they are not there; of some, not of all."""
    found = draw(st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True))
    checked = draw(st.lists(st.sampled_from(found), unique=True))
    must_exist = draw(st.sampled_from((False, False, False, True)))
    condition = " AND ".join(f"attribute_{'exists' if must_exist else 'not_exists'}(#{number})" for number in checked)
    action: Action = {
        "TableName": LEDGER,
        "Key": {"aggregate": {"S": draw(names)}, "page": {"S": draw(names)}},
        "UpdateExpression": f"SET {', '.join(f'#{number} = :{number}' for number in found)}, expires_at = :expires_at",
        "ExpressionAttributeNames": {f"#{number}": f"{number}.receipt" for number in found},
        "ExpressionAttributeValues": {":expires_at": {"N": str(draw(st.integers(0, 9)))}}
        | {f":{number}": draw(receipt_values) for number in found},
    }
    if condition:
        action["ConditionExpression"] = condition
    if draw(st.booleans()):
        action["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
    return action


receipt_values = numbers.map(lambda text: {"N": text}) | st.lists(numbers, min_size=2, max_size=3).map(
    lambda texts: {"L": [{"N": text} for text in texts]}
)


@st.composite
def totals(draw: st.DrawFn) -> Action:
    """What adds contributions to a row; now and then what makes a total a text."""
    if draw(st.booleans()):
        table, key = TARGET, {"item_number": {"S": draw(names)}, "order_date": {"S": draw(names)}}
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


def _identity(action: Action) -> str:
    return json.dumps([action["TableName"], action["Key"]], sort_keys=True)


transactions = st.lists(receipts() | totals(), min_size=1, max_size=6, unique_by=_identity)


def _first_key(action: Action) -> str:
    return str(next(iter(action["Key"])))


def _missing_table(actions: list[Action]) -> None:
    actions[-1]["TableName"] = "conformance-none"


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
    actions[0]["UpdateExpression"] = f"{expression}, {expression.split(' ', 1)[1].split(', ')[-1]}"


def _add_a_text(actions: list[Action]) -> None:
    actions[0]["UpdateExpression"] += " ADD #text :text"
    actions[0]["ExpressionAttributeNames"]["#text"] = "text"
    actions[0]["ExpressionAttributeValues"][":text"] = {"S": "1"}
    if actions[0]["UpdateExpression"].startswith("ADD"):
        actions[0]["UpdateExpression"] = actions[0]["UpdateExpression"].replace(" ADD #text", ", #text")


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


def _refused_number(text: str) -> Damage:
    def damage(actions: list[Action]) -> None:
        values = actions[0]["ExpressionAttributeValues"]
        name = next(name for name in values if name != ":expires_at")
        values[name] = {"L": [{"N": "1"}, {"N": text}]} if "L" in values[name] else {"N": text}

    damage.__name__ = f"_number_{text[:10]!r}"
    return damage


DAMAGES: tuple[Damage, ...] = (
    *(_missing_table, _key_lacks_an_attribute, _key_has_another_attribute, _key_has_another_name),
    *(_key_of_another_type, _empty_key, _key_too_long, _sort_key_too_long, _unused_name, _unused_value),
    *(_undefined_name, _undefined_value, _no_names, _syntax_error, _no_expression, _no_condition, _overlap),
    *(_add_a_text, _same_item_twice, _too_many_actions, _expression_too_long, _condition_too_long),
    *map(_refused_number, REFUSED_NUMBERS),
)


@given(
    st.lists(
        st.tuples(
            transactions,
            st.none() | st.sampled_from(("token-1", "token-2")),
            st.integers(0, 2),
        ),
        min_size=1,
        max_size=8,
    )
)
@examples(20, long=300)
def test_random_transactions__both_answer_and_write_alike(
    both: Both, requests: list[tuple[list[Action], str | None, int]]
) -> None:
    example = uuid.uuid4().hex[:12]
    sent: list[tuple[list[Action], str | None]] = []
    for actions, token, repeat in requests:
        own = [_of_example(action, example) for action in actions]
        sent.append((own, token and f"{token}-{example}"))
        if not repeat:  # the same once more, or an earlier one
            sent.append(sent[len(sent) // 2])

    for actions, token in sent:
        from_server, from_memory = both.transact([{"Update": action} for action in actions], token)
        assert from_memory == from_server, (actions, token)

    for action in (action for actions, _ in sent for action in actions):
        from_server, from_memory = both.call("get_item", TableName=action["TableName"], Key=action["Key"])
        assert from_memory == from_server


def _of_example(action: Action, example: str) -> Action:
    """The action, on items that no other example touches."""
    if action["TableName"] == NUMBERED:
        number = Decimal(action["Key"]["customer"]["N"]) + int(example, 16) * 100
        return action | {"Key": {"customer": {"N": str(number)}}}
    return action | {"Key": {name: {"S": f"{example}-{value['S']}"} for name, value in action["Key"].items()}}


# As much as a number holds: added twice, it is too much.
ADDS_THE_LARGEST: Action = {
    "TableName": NUMBERED,
    "Key": {"customer": {"N": "0"}},
    "UpdateExpression": "ADD #0 :0",
    "ExpressionAttributeNames": {"#0": "quantity"},
    "ExpressionAttributeValues": {":0": {"N": "9e125"}},
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@given(transactions)
@example([ADDS_THE_LARGEST])
@examples(2, long=30)
def test_damaged_transactions__both_refuse_alike(both: Both, damage: Damage, actions: list[Action]) -> None:
    example = uuid.uuid4().hex[:12]
    actions = [_of_example(action, example) for action in json.loads(json.dumps(actions))]
    damage(actions)

    from_server, from_memory = both.transact([{"Update": action} for action in actions], None)

    assert from_memory == from_server


@pytest.mark.parametrize("token", ["x" * 36, "x" * 37], ids=["longest", "too long"])
def test_tokens_length__both_answer_alike(both: Both, token: str) -> None:
    action = {"TableName": TARGET, "Key": {"item_number": {"S": "token"}, "order_date": {"S": "x"}}}
    add = {
        "UpdateExpression": "ADD #0 :0",
        "ExpressionAttributeNames": {"#0": "quantity"},
        "ExpressionAttributeValues": {":0": {"N": "1"}},
    }

    from_server, from_memory = both.transact([{"Update": action | add}], token)

    assert from_memory == from_server


def test_no_actions__both_refuse_alike(both: Both) -> None:
    from_server, from_memory = both.transact([], None)

    assert from_memory == from_server


@pytest.mark.parametrize("size", [-1, 0, 1])
def test_item_at_the_size_limit__both_answer_alike(both: Both, size: int) -> None:
    key = {"item_number": {"S": "large"}, "order_date": {"S": "x"}}
    text = "x" * (409_600 - len("item_numberlargeorder_datexnotemore") - 3 + size)
    note = {
        "TableName": TARGET,
        "Key": key,
        "UpdateExpression": "SET #0 = :0",
        "ExpressionAttributeNames": {"#0": "note"},
        "ExpressionAttributeValues": {":0": {"S": text}},
    }
    more = note | {"ExpressionAttributeNames": {"#0": "more"}, "ExpressionAttributeValues": {":0": {"S": "abc"}}}

    both.transact([{"Update": note}], None)
    from_server, from_memory = both.transact([{"Update": more}], None)
    both.call("delete_item", TableName=TARGET, Key=key)

    assert from_memory == from_server
    assert (from_memory[0] == "Item") is (size <= 0)


@given(st.lists(st.tuples(names, st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=6))
@examples(10, long=100)
def test_conditional_puts__both_answer_alike(both: Both, puts: list[tuple[str, bool, bool, bool]]) -> None:
    example = uuid.uuid4().hex
    for name, conditional, returns_old, with_fingerprint in puts:
        key = {"aggregate": {"S": f"{example}-{name}"}, "page": {"S": "definition"}}
        request: dict[str, Any] = {"TableName": LEDGER, "Item": dict(key)}
        if with_fingerprint:
            request["Item"]["fingerprint"] = {"S": name}
        if conditional:
            request["ConditionExpression"] = "attribute_not_exists(fingerprint)"
        if returns_old:
            request["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"

        from_server, from_memory = both.call("put_item", **request)
        assert from_memory == from_server
        from_server, from_memory = both.call("get_item", TableName=LEDGER, Key=key, ConsistentRead=True)
        assert from_memory == from_server


small_numbers = st.sampled_from(("0", "1", "1.0", "1E+0", "2", "-1"))


@st.composite
def corrections(draw: st.DrawFn) -> list[dict[str, Any]]:
    """A page that must not be there yet, and an ADD to measures that must be as they were seen."""
    measures = draw(st.lists(st.sampled_from(("quantity", "orders")), min_size=1, unique=True))
    seen = [draw(st.none() | small_numbers.map(lambda text: {"N": text}) | st.just({"S": "1"})) for _ in measures]
    page = {"aggregate": {"S": draw(names)}, "page": {"S": draw(names)}}
    put = {
        "TableName": LEDGER,
        "Item": page | {"receipt": {"N": draw(small_numbers)}},
        "ConditionExpression": "attribute_not_exists(#page)",
        "ExpressionAttributeNames": {"#page": "page"},
    }
    update = {
        "TableName": TARGET,
        "Key": {"item_number": {"S": draw(names)}, "order_date": {"S": "x"}},
        "UpdateExpression": "ADD " + ", ".join(f"#{number} :{number}" for number in range(len(measures))),
        "ConditionExpression": " AND ".join(
            f"attribute_not_exists(#{number})" if was is None else f"#{number} = :was{number}"
            for number, was in enumerate(seen)
        ),
        "ExpressionAttributeNames": {f"#{number}": name for number, name in enumerate(measures)},
        "ExpressionAttributeValues": {f":{number}": {"N": draw(small_numbers)} for number in range(len(measures))}
        | {f":was{number}": was for number, was in enumerate(seen) if was is not None},
    }
    return [{"Put": put}, {"Update": update}]


@given(st.lists(corrections(), min_size=1, max_size=8))
@examples(15, long=200)
def test_random_corrections__both_answer_alike(both: Both, requests: list[list[dict[str, Any]]]) -> None:
    example = uuid.uuid4().hex[:12]
    for put, update in requests:
        item, key = put["Put"]["Item"], update["Update"]["Key"]
        own = {name: {"S": f"{example}-{item[name]['S']}"} for name in ("aggregate", "page")}
        row = {name: {"S": f"{example}-{value['S']}"} for name, value in key.items()}

        from_server, from_memory = both.transact(
            [{"Put": put["Put"] | {"Item": item | own}}, {"Update": update["Update"] | {"Key": row}}], None
        )

        assert from_memory == from_server
        for table, wanted in ((LEDGER, own), (TARGET, row)):
            from_server, from_memory = both.call("get_item", TableName=table, Key=wanted)
            assert from_memory == from_server


def test_put_that_takes_over_a_marker__both_answer_alike(both: Both) -> None:
    key = {"aggregate": {"S": uuid.uuid4().hex}, "page": {"S": "backfill"}}
    condition = {
        "ConditionExpression": "#cut = :cut AND attribute_not_exists(#finished)",
        "ExpressionAttributeNames": {"#cut": "cut", "#finished": "finished_at"},
    }
    for cut, was in (("old", None), ("other", "another"), ("repair", "old"), ("again", "repair")):
        request: dict[str, Any] = {"TableName": LEDGER, "Item": key | {"cut": {"S": cut}}}
        if cut == "repair":
            request["Item"]["finished_at"] = {"N": "1"}
        if was is not None:
            request |= condition | {"ExpressionAttributeValues": {":cut": {"S": was}}}

        from_server, from_memory = both.call("put_item", **request)

        assert from_memory == from_server
        from_server, from_memory = both.call("get_item", TableName=LEDGER, Key=key)
        assert from_memory == from_server


@pytest.mark.parametrize("range_", [">= :first", "BETWEEN :first AND :end"])
def test_pages_of_one_partition__both_read_alike(both: Both, range_: str) -> None:
    partition = uuid.uuid4().hex
    pages = ("2024-07-15T00:00:00Z|stream", "2024-07-15T00:00:01Z|stream", "2025", "é", "backfill", "repair|000001")
    for client in (both.server, both.memory):
        for page in pages:
            client.put_item(TableName=LEDGER, Item={"aggregate": {"S": partition}, "page": {"S": page}})
        client.put_item(TableName=LEDGER, Item={"aggregate": {"S": f"{partition}-"}, "page": {"S": "2025"}})
    both.memory.page_size = 2
    request: dict[str, Any] = {
        "TableName": LEDGER,
        "KeyConditionExpression": f"#aggregate = :aggregate AND #page {range_}",
        "ExpressionAttributeNames": {"#aggregate": "aggregate", "#page": "page"},
        "ExpressionAttributeValues": {":aggregate": {"S": partition}, ":first": {"S": "2024-07-15T00:00:01Z"}},
    }
    if ":end" in range_:
        request["ExpressionAttributeValues"][":end"] = {"S": "backfill"}

    from_server, from_memory = (
        [item for answer in client.get_paginator("query").paginate(**request) for item in answer["Items"]]
        for client in (both.server, both.memory)
    )

    assert from_memory == from_server
    assert len(from_memory) == (3 if ":end" in range_ else 5)


def test_scan__both_read_the_same_items(both: Both) -> None:
    both.memory.page_size = 2

    from_server, from_memory = (
        [item for answer in client.get_paginator("scan").paginate(TableName=TARGET) for item in answer["Items"]]
        for client in (both.server, both.memory)
    )

    assert sorted(map(_sortable, from_memory)) == sorted(map(_sortable, from_server))


def _sortable(item: Mapping[str, Any]) -> str:
    return repr(sorted(_plain(item).items()))


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


@pytest.mark.parametrize("table", [LEDGER, "conformance-none"])
def test_wrong_puts__both_refuse_alike(both: Both, table: str) -> None:
    from_server, from_memory = both.call("put_item", TableName=table, Item={"page": {"S": "x"}})

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


def test_token_after_ten_minutes__is_a_new_request() -> None:
    memory = InMemoryDynamoDB()
    memory.create(NUMBERED, *KEYS[NUMBERED])
    action = {
        "TableName": NUMBERED,
        "Key": {"customer": {"N": "1"}},
        "UpdateExpression": "ADD #0 :0",
        "ExpressionAttributeNames": {"#0": "quantity"},
        "ExpressionAttributeValues": {":0": {"N": "1"}},
    }

    for _ in range(2):
        memory.transact_write_items(TransactItems=[{"Update": action}], ClientRequestToken="token")
    memory.forget_tokens()
    memory.transact_write_items(TransactItems=[{"Update": action}], ClientRequestToken="token")

    assert memory.tables[NUMBERED].items[Decimal(1),]["quantity"] == {"N": "2"}

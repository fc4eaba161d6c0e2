"""The commands with which anyone sees the worker work: put an order, query its total.

Made from the definitions, so that README, `aggregator local` and the deployed stack's outputs show the same ones.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import product
from typing import Any

from aggregation_worker.aggregations.attribute_paths import AttributePath, MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, GroupKey, KeyType
from aggregation_worker.aggregations.expressions import Where
from aggregation_worker.aggregations.truncation import Epoch, Truncation

# What the reference scenario calls things; attributes of other definitions get a value made from their name.
_EXAMPLES = {"orderid": "178526", "item_number": "item123", "order_date": "2024-07-15", "quantity": "10"}
# Fixed, so that the same definitions always give the same commands.
_EXAMPLE_TIME = datetime(2024, 7, 15, 9, 30, tzinfo=UTC)


def example_item(definitions: Definitions) -> dict[str, Any]:
    """An item, in DynamoDB's typed JSON, that every aggregation counts, as far as one can be made.

    Of expressions it gives those a number that are made of paths and sums, and those a truth that compare paths with
    literals.
    """
    item: dict[str, Any] = {}
    for aggregation in definitions.aggregations:
        for measure in aggregation.measures:
            of_expression = () if measure.measured is None else _numbers_of(measure.measured.tree)
            for path in (*measure.factors, *of_expression):
                set_at(item, path, {"N": _EXAMPLES.get(_name(path), "10")})
        for key in aggregation.keys:
            if key.path is not None:
                set_at(item, key.path, _example_of(key, _name(key.path)))
        if aggregation.where is not None:
            _satisfy(item, aggregation.where)
    for name, kind in definitions.source.keys:
        item.setdefault(name, {kind.value: _example(name, kind)})
    return item


def dated(moment: datetime, truncation: Truncation) -> dict[str, str]:
    """A value in DynamoDB's typed JSON that is `moment`, in whole seconds, for a truncated key."""
    if truncation.epoch is None:
        return {"S": f"{moment:%Y-%m-%dT%H:%M:%SZ}"}
    return {"N": f"{int(moment.timestamp()) * (1 if truncation.epoch is Epoch.SECONDS else 1_000)}"}


def put_item_command(definitions: Definitions, *options: str) -> str:
    """The AWS CLI command that puts the example item; `options` such as `--endpoint-url URL` are appended."""
    item = json.dumps(example_item(definitions), separators=(", ", ": "), sort_keys=True)
    return _command("put-item", "--table-name", definitions.source.table, "--item", item, *options)


def query_command(definitions: Definitions, aggregation: Aggregation, *options: str) -> str:
    """The AWS CLI command that shows the totals of the example item's partition key in one target table."""
    key = aggregation.keys[0]
    value = key.value(example_item(definitions))
    return _command(
        "query",
        "--table-name",
        aggregation.table,
        "--key-condition-expression",
        "#key = :value",
        "--expression-attribute-names",
        json.dumps({"#key": key.name}),
        "--expression-attribute-values",
        json.dumps({":value": {key.type.value: value}}),
        *options,
    )


def _command(operation: str, *arguments: str) -> str:
    return shlex.join(["aws", "dynamodb", operation, *arguments])


def _name(path: AttributePath) -> str:
    return str(path.steps[-1])


def _numbers_of(node: Any) -> list[AttributePath]:
    """Where numbers must be so that an expression gives one: `sum(lines[].quantity)` wants `lines[0].quantity`."""
    return [AttributePath("", steps) for steps in _ways(node) if steps and isinstance(steps[0], str)]


def _ways(node: Any) -> list[tuple[str | int, ...]]:
    kind, children = node["type"], node["children"]
    if kind == "field":
        return [(node["value"],)]
    if kind == "index":
        return [(max(node["value"], 0),)]
    if kind == "identity":
        return [()]
    if kind == "flatten":
        return _ways(children[0])
    if kind == "multi_select_list":
        return [way for child in children for way in _ways(child)]
    if kind in ("projection", "filter_projection"):
        return [(*way, 0, *rest) for way in _ways(children[0]) for rest in _ways(children[1])]
    if kind in ("subexpression", "index_expression"):
        return [tuple(step for part in parts for step in part) for parts in product(*map(_ways, children))]
    if kind == "function_expression" and node["value"] in ("sum", "max", "min", "length"):
        is_list = children[0]["type"] in ("projection", "filter_projection", "multi_select_list")
        return [way if is_list else (*way, 0) for way in _ways(children[0])]
    return []


def _example_of(key: GroupKey, name: str) -> dict[str, str]:
    if key.truncation is not None and (key.truncation.epoch is not None or name not in _EXAMPLES):
        return dated(_EXAMPLE_TIME, key.truncation)
    return {key.type.value: _example(name, key.type)}


def _example(name: str, kind: KeyType) -> str:
    return _EXAMPLES.get(name, "1" if kind is KeyType.NUMBER else f"{name}-1")


def _satisfy(item: dict[str, Any], where: Where) -> None:
    """Gives an item what a `where` asks for, if it asks for anything."""
    with suppress(MalformedValueError):
        if where(item):
            return
    for path, value in _wanted(where.tree):
        set_at(item, path, value)


def _wanted(node: Any) -> Iterator[tuple[AttributePath, dict[str, Any]]]:
    """Where which values make an expression true."""
    kind, children = node["type"], node["children"]
    if kind == "and_expression":
        for child in children:
            yield from _wanted(child)
    elif kind == "or_expression":
        yield from _wanted(children[0])
    elif kind in ("field", "subexpression", "index_expression"):
        yield from ((path, {"BOOL": True}) for path in _numbers_of(node))
    elif kind == "comparator" or (kind == "function_expression" and node["value"] in _OF_TEXTS):
        operator, (left, right) = node["value"], children
        if left["type"] == "literal":
            operator, left, right = _SWAPPED.get(operator, operator), right, left
        if right["type"] == "literal" and (value := _compared(operator, right["value"])) is not None:
            yield from ((path, value) for path in _numbers_of(left))


_OF_TEXTS = ("contains", "starts_with", "ends_with")
_SWAPPED = {"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"}
_STEPS = {"gt": 1, "lt": -1}


def _compared(operator: str, literal: Any) -> dict[str, Any] | None:
    """A value of which the comparison with a literal is true; `None` where it is left to what is absent."""
    if operator == "ne":
        return None if literal is not None else {"BOOL": True}
    if isinstance(literal, bool):
        return {"BOOL": literal}
    if isinstance(literal, str):
        return {"S": literal}
    return None if literal is None else {"N": str(literal + _STEPS.get(operator, 0))}


def set_at(item: dict[str, Any], path: AttributePath, value: dict[str, str]) -> None:
    """Puts a value at a path, making the maps and lists on the way; a map or a list that is there already stays."""
    container: Any = item
    for step, following in zip(path.steps, (*path.steps[1:], None), strict=True):
        if isinstance(step, int):
            container.extend({"NULL": True} for _ in range(step + 1 - len(container)))
        there = container[step] if isinstance(step, int) else container.get(step, {})
        made: dict[str, Any] = value if following is None else {"M": {}} if isinstance(following, str) else {"L": []}
        if there.keys().isdisjoint({"M", "L"} if following is None else made):
            container[step] = made
        if following is not None:
            (container,) = container[step].values()

"""The commands with which anyone sees the worker work: put an order, query its total.

Made from the definitions, so that README, `aggregator local` and the deployed stack's outputs show the same ones.
"""

import json
import shlex
from typing import Any

from aggregation_worker.aggregations.attribute_paths import AttributePath
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, KeyType
from aggregation_worker.aggregations.truncation import Truncation

# What the reference scenario calls things; attributes of other definitions get a value made from their name.
_EXAMPLES = {"orderid": "178526", "item_number": "item123", "order_date": "2024-07-15", "quantity": "10"}
# Fixed, so that the same definitions always give the same commands.
_EXAMPLE_TIME = "2024-07-15T09:30:00Z"


def example_item(definitions: Definitions) -> dict[str, Any]:
    """An item, in DynamoDB's typed JSON, that every aggregation without a `where` counts."""
    item: dict[str, Any] = {}
    for aggregation in definitions.aggregations:
        for measure in aggregation.measures:
            for path in measure.factors:
                _set(item, path, {"N": _EXAMPLES.get(_name(path), "10")})
        for key in aggregation.keys:
            _set(item, key.path, {key.type.value: _example(_name(key.path), key.type, key.truncation)})
    for name, kind in definitions.source.keys:
        item.setdefault(name, {kind.value: _example(name, kind, None)})
    return item


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


def _example(name: str, kind: KeyType, truncation: Truncation | None) -> str:
    if name in _EXAMPLES:
        return _EXAMPLES[name]
    if kind is KeyType.NUMBER:
        return "1"
    return _EXAMPLE_TIME if truncation else f"{name}-1"


def _set(item: dict[str, Any], path: AttributePath, value: dict[str, str]) -> None:
    """Puts a value at a path, making the maps and lists on the way."""
    container: Any = item
    for step, following in zip(path.steps, (*path.steps[1:], None), strict=True):
        inner: dict[str, Any] = {"M": {}} if isinstance(following, str) else {"L": []}
        made = value if following is None else inner
        if isinstance(step, int):
            container.extend({"NULL": True} for _ in range(step + 1 - len(container)))
            if "NULL" in container[step] or following is None:
                container[step] = made
        elif following is None:
            container[step] = made
        else:
            container.setdefault(step, made)
        if following is not None:
            (container,) = container[step].values()

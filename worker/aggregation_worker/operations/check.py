"""`aggregator check`: what a definitions file means in plain words, what in it is unlikely, what an item is worth."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aggregation_worker.aggregations.attribute_paths import VALUE_TYPES, AttributePath, MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, GroupKey, KeyType, Measure, Source
from aggregation_worker.aggregations.definitions import definitions_file, load_definitions
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.aggregations.expressions import Expression, attributes_of, nodes_of
from aggregation_worker.aggregations.numbers import canonical_text
from aggregation_worker.deployment.settings import price_of_keeping
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.visible import visible
from aggregation_worker.streams.records import Image

# What becomes of a removed item, by the policy.
_REMOVED = {
    "ignore": "a removed item stays counted, and nothing remembers that it was removed",
    "keep": "a removed item stays counted, and its worth is remembered as kept",
    "retract": "a removed item is taken back",
    "retract_unless_expired": "a removed item is taken back, but one that has expired stays counted",
}
_MAY_HAVE_A_TIME = re.compile(r"(.*_)?(at|date|time|timestamp)|.*[a-z](At|Date|Time|Timestamp)")
_VALUE_OF_ANOTHER_TYPE = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?|true|false|null")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Reads a definitions file and says what each aggregation means, warns of what is unlikely to be meant, and "
        "shows what an item would be worth in each. Exit status 2 for a mistake in the file or the item."
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the definitions (default: AGGREGATIONS_FILE, or in a clone worker/aggregations.toml)",
    )
    parser.add_argument(
        "--item", metavar="JSON", help="an item, as plain JSON or in DynamoDB's typed JSON; - reads standard input"
    )


def run(options: argparse.Namespace) -> int:
    """Prints what the file means; returns 0."""
    definitions = load_definitions(definitions_file(options.file, os.environ))
    image = None
    if options.item is not None:
        image, notation = read_item(sys.stdin.read() if options.item == "-" else options.item)
        _print(f"The item is read as {notation}.")
    for aggregation in definitions.aggregations:
        _print(sentence(aggregation, definitions.source))
        for warning in warnings(aggregation, definitions.source, datetime.now(UTC)):
            _print(f"  warning: {warning}")
        if image is not None:
            _print(f"  the item: {worth(aggregation, image)}")
    if price := price_of_keeping(definitions):
        _print(f"{price}.")
    return 0


def _print(line: str) -> None:
    sys.stdout.write(f"{visible(line)}\n")


# --- What an aggregation means --------------------------------------------------------------------------------------


def sentence(aggregation: Aggregation, source: Source) -> str:
    """The definition in plain words."""
    where = "" if aggregation.where is None else f" where {aggregation.where.expression}"
    since = "" if aggregation.since is None else f", from {moment_text(aggregation.since)} on"
    keys = " and ".join(map(_key, aggregation.keys))
    measures = ", ".join(map(_measure, aggregation.measures))
    indexes = "".join(
        f", with index {index.name} by {' and '.join(name for name, _ in index.keys)}" for index in aggregation.indexes
    )
    return (
        f"{aggregation.name}: table {aggregation.table} has {measures} by {keys}{indexes}, over the items of "
        f"{source.table}{where}{since}; {_REMOVED[aggregation.remove]}."
    )


def _key(key: GroupKey) -> str:
    if key.path is None:
        return f"{key.name} ({key.prefix!r} for every item)"
    text = key.path.text
    if key.type is KeyType.NUMBER:
        text = f"the number {text}"
    if key.truncation is not None:
        epoch = f" in {key.truncation.epoch} since 1970" if key.truncation.epoch else ""
        zone = f", in time zone {key.truncation.zone.key}" if key.truncation.zone else ""
        text = f"the {key.truncation.unit} of {text}{epoch}{zone}"
    if key.prefix:
        text = f"{key.prefix!r} and {text}"
    return text if text == key.name else f"{key.name} ({text})"


def _measure(measure: Measure) -> str:
    if measure.measured is not None:
        return f"{measure.name} (the sum of each item's {measure.measured.expression})"
    if not measure.factors:
        return f"{measure.name} (the number of items)"
    factors = [path.text for path in measure.factors]
    if measure.constant is not None:
        factors.append(canonical_text(measure.constant))
    return f"{measure.name} (the sum of {' * '.join(factors)})"


# --- What is unlikely -----------------------------------------------------------------------------------------------


def warnings(aggregation: Aggregation, source: Source, now: datetime) -> Iterator[str]:
    """What the file may say, but who wrote it hardly meant."""
    as_they_are = [key.path for key in aggregation.keys if key.path is not None and key.truncation is None]
    if {(name,) for name, _ in source.keys} <= {path.steps for path in as_they_are}:
        yield f"every item of {source.table} has a row of its own: its whole key is among the group's"
    for path in as_they_are:
        if _MAY_HAVE_A_TIME.fullmatch(str(path.steps[-1])):
            yield f"{path.text} is taken as it is; if it has a time of day, that gives a row for each (truncate)"
    for path in _paths(aggregation):
        if any(isinstance(step, str) and step.isdecimal() for step in path.steps[1:]):
            yield f"{path.text} leads to a map's key that is a number; an entry of a list is written list[0]"
    for expression in _expressions(aggregation):
        yield from _unlikely(expression)
    if aggregation.since is not None and aggregation.since > now.timestamp():
        yield f"nothing is counted before {moment_text(aggregation.since)}, which is yet to come"


def _paths(aggregation: Aggregation) -> Iterator[AttributePath]:
    yield from (key.path for key in aggregation.keys if key.path is not None)
    for measure in aggregation.measures:
        yield from measure.factors


def _expressions(aggregation: Aggregation) -> Iterator[Expression]:
    if aggregation.where is not None:
        yield aggregation.where
    yield from (measure.measured for measure in aggregation.measures if measure.measured is not None)


def _unlikely(expression: Expression) -> Iterator[str]:
    if attributes_of(expression.tree) == frozenset():
        yield f"{expression.expression} does not depend on the item"
    for node in nodes_of(expression.tree):
        if node["type"] != "comparator" or any(child["type"] == "function_expression" for child in node["children"]):
            continue
        for child in node["children"]:
            text = child["value"] if child["type"] == "literal" else None
            if isinstance(text, str) and _VALUE_OF_ANOTHER_TYPE.fullmatch(text):
                yield f"'{text}' in {expression.expression} is a text; a number, BOOL or NULL is written `{text}`"


# --- What an item is worth ------------------------------------------------------------------------------------------


class _Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


def read_item(text: str) -> tuple[Image, str]:
    """An item as an image, and in words the notation that it was read in.

    Raises:
        CommandError: it is not a JSON object.
    """
    try:
        plain = json.loads(text, parse_int=_Number, parse_float=_Number, parse_constant=_Number)
        as_read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CommandError(f"--item: not JSON: {error}") from error
    if not isinstance(plain, dict):
        raise CommandError("--item: a JSON object is needed, such as '{\"quantity\": 10}'")
    whole = as_read.get("Item")
    if isinstance(whole, dict) and _is_typed(whole):  # what `aws dynamodb get-item` prints, or a line of an export
        return whole, "DynamoDB's typed JSON, under Item"
    if _is_typed(as_read):
        return as_read, "DynamoDB's typed JSON"
    return {name: _typed(value) for name, value in plain.items()}, "plain JSON"


def _is_typed(item: dict[str, Any]) -> bool:
    return bool(item) and all(
        isinstance(value, dict) and len(value) == 1 and VALUE_TYPES.issuperset(value) for value in item.values()
    )


def _typed(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"M": {name: _typed(inner) for name, inner in value.items()}}
    if isinstance(value, list):
        return {"L": [_typed(inner) for inner in value]}
    if isinstance(value, bool):
        return {"BOOL": value}
    if value is None:
        return {"NULL": True}
    return {"N": str(value)} if isinstance(value, _Number) else {"S": value}


def worth(aggregation: Aggregation, image: Image) -> str:
    """In words, what an image adds to which row, or why nothing."""
    try:
        found = aggregation.value(image)
        if found is None:
            return f"nothing: {_why_nothing(aggregation, image)}"
    except MalformedValueError as error:
        return f"nothing until it is corrected: {error}"
    group, amounts = found
    row = ", ".join(f"{key.name} = {text}" for key, text in zip(aggregation.keys, group, strict=True))
    added = ", ".join(
        f"{measure.name} {canonical_text(amount)}"
        for measure, amount in zip(aggregation.measures, amounts, strict=True)
    )
    return f"{row}: {added}"


def _why_nothing(aggregation: Aggregation, image: Image) -> str:
    if aggregation.where is not None and not aggregation.where(image):
        return "where leaves it out"
    lacking = [path.text for path in _paths(aggregation) if path.find(image) is None]
    lacking += [
        measure.measured.expression
        for measure in aggregation.measures
        if measure.measured is not None and measure.amount(image) is None
    ]
    return f"{', '.join(dict.fromkeys(lacking))} is absent or NULL"

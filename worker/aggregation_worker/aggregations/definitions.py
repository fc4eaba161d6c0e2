"""The definitions file, `aggregations.toml`: reading it, and one clear sentence for every mistake in it.

The worker, the CDK app and the `aggregator` command all read the file through here. worker/README.md, "The definitions
file", explains every key to users.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aggregation_worker.aggregations.attribute_paths import AttributePath, parse_path, parse_product
from aggregation_worker.aggregations.contributions import (
    MAX_PARTITION_KEY_BYTES,
    MAX_SORT_KEY_BYTES,
    Aggregation,
    Definitions,
    GroupKey,
    KeyType,
    Measure,
    RemovePolicy,
    Source,
)
from aggregation_worker.aggregations.descriptions import describe, shared_measures
from aggregation_worker.aggregations.entries import DefinitionError, Entry, shown
from aggregation_worker.aggregations.expressions import Where
from aggregation_worker.aggregations.indexes import read_indexes
from aggregation_worker.aggregations.measured import MeasuredExpression
from aggregation_worker.aggregations.truncation import Epoch, Truncation, Unit, read_date
from aggregation_worker.streams.records import stream_of

__all__ = [
    "DEFINITIONS_FILE",
    "KEYS_OF_AN_AGGREGATION",
    "KEYS_OF_A_KEY",
    "RESERVED_PREFIXES",
    "DefinitionError",
    "definitions_file",
    "load_definitions",
    "parse_definitions",
    "source_of_stream",
    "with_keys_of",
]

# The user's file, beside the package: in a clone, and in a function's bundle. An installed package has none.
DEFINITIONS_FILE = Path(__file__).parents[2] / "aggregations.toml"

_AGGREGATION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_MAX_KEY_NAME_BYTES = 255
_MAX_FACTORS = 8
# How the names of the worker's own attributes in a row begin; `ledger.receipts` makes them.
RESERVED_PREFIXES = ("receipts#", "generation#", "archived#", "late#", "kept#", "backfill#")
# RFC 3339, "Date and Time on the Internet: Timestamps", in whole seconds: the stream's own times have no finer ones.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_VIEW_TYPE = "NEW_AND_OLD_IMAGES"

# Every key of the file, by the table that it stands in; worker/README.md explains each.
KEYS_OF_THE_FILE = ("source", "aggregations")
KEYS_OF_THE_SOURCE = ("table", "partition_key", "sort_key", "stream_arn", "stream_view_type")
KEYS_OF_A_SOURCE_KEY = ("name", "type")
KEYS_OF_AN_AGGREGATION = (
    *("name", "table", "partition_key", "sort_key", "sum", "count", "where", "remove", "since", "indexes"),
)
KEYS_OF_A_SUM = ("jmespath",)
KEYS_OF_A_KEY = ("name", "from", "value", "type", "truncate", "timezone", "epoch", "prefix")


def definitions_file(option: Path | None, environment: Mapping[str, str]) -> Path:
    """The file that a command reads: `option`, else `AGGREGATIONS_FILE`, else the user's file, where there is one.

    Raises:
        DefinitionError: none of them is there.
    """
    if option is not None:
        return option
    if variable := environment.get("AGGREGATIONS_FILE"):
        return Path(variable)
    if not DEFINITIONS_FILE.is_file():
        raise DefinitionError("no definitions file: give --definitions FILE or set AGGREGATIONS_FILE")
    return DEFINITIONS_FILE


def load_definitions(path: Path, source: Source | None = None, table_prefix: str = "") -> Definitions:
    """Reads a definitions file.

    Args:
        source: what a deployment reads; the file then needs no `[source]`, and must agree with one that it has.
        table_prefix: with which a deployment's names of tables begin, before those in the file.

    Raises:
        DefinitionError: it cannot be read, is not TOML, or holds a mistake; or its source is another one.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"the definitions file {path} cannot be read: {error}") from error
    try:
        return parse_definitions(text, source, table_prefix)
    except DefinitionError as error:
        raise DefinitionError(f"{path.name}: {error}") from error


def source_of_stream(stream_arn: str | None) -> Source | None:
    """The source that a deployment reads, by `SOURCE_STREAM_ARN`; `None` where that is not set.

    Raises:
        DefinitionError: it is not a stream's.
    """
    if not stream_arn:
        return None
    try:
        return Source(stream_of(stream_arn).table, (), stream_arn)
    except ValueError as error:
        raise DefinitionError(f"SOURCE_STREAM_ARN: {error}") from error


def with_keys_of(definitions: Definitions, described: Mapping[str, Any]) -> Definitions:
    """With the source's keys as DescribeTable tells them, where the file does not.

    Raises:
        DefinitionError: a key is binary, so its items cannot be told apart here.
    """
    if definitions.source.keys:
        return definitions
    types = {one["AttributeName"]: one["AttributeType"] for one in described["AttributeDefinitions"]}
    names = [one["AttributeName"] for one in sorted(described["KeySchema"], key=lambda key: key["KeyType"])]
    try:
        keys = tuple((name, KeyType(types[name])) for name in names)
    except ValueError as error:
        raise DefinitionError(f"the keys of table {definitions.source.table} must be text or numbers") from error
    return replace(definitions, source=replace(definitions.source, keys=keys))


def parse_definitions(text: str, source: Source | None = None, table_prefix: str = "") -> Definitions:
    """Reads definitions from TOML text, with a byte-order mark or without; see `load_definitions`."""
    try:
        document = tomllib.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:  # a plain ValueError for an integer of over 4,300 digits
        raise DefinitionError(f"not valid TOML: {error}") from error
    top = Entry(document, "the file", KEYS_OF_THE_FILE)
    if source is None or top.has("source"):
        entry = Entry(top.take("source", dict, "a table, [source],"), "source", KEYS_OF_THE_SOURCE)
        in_file = _source(entry)
        source = _agreed(entry, in_file, source, table_prefix) if source else _named(in_file, table_prefix)
    tables = top.take("aggregations", list, "an array of tables, [[aggregations]]")
    if not tables:
        raise DefinitionError("aggregations: at least one [[aggregations]] is needed")
    aggregations = tuple(_aggregation(raw, index, source, table_prefix) for index, raw in enumerate(tables, start=1))
    _check_together(aggregations)
    return Definitions(source, aggregations, table_prefix)


def _source(entry: Entry) -> Source:
    stream_arn = entry.text("stream_arn", None)
    table = entry.text("table", None)
    if stream_arn is not None:
        try:
            of_stream = stream_of(stream_arn).table
        except ValueError as error:
            raise entry.error("stream_arn", str(error)) from error
        if table not in (None, of_stream):
            raise entry.error("table", f"is {table!r}, but stream_arn belongs to table {of_stream!r}")
        table = of_stream
    if table is None:
        raise entry.missing("table", "a table name, or the stream_arn of an existing table,")
    _check_table_name(entry, table)
    keys = [_source_key(entry, "partition_key")]
    if entry.has("sort_key"):
        keys.append(_source_key(entry, "sort_key"))
        _check_two_keys(entry, *(name for name, _ in keys))
    view_type = entry.text("stream_view_type", _VIEW_TYPE)
    if view_type != _VIEW_TYPE:
        raise entry.error(
            "stream_view_type",
            f"must be {_VIEW_TYPE}, not {view_type!r}: a change is new image minus old image",
        )
    return Source(table, tuple(keys), stream_arn)


def _named(source: Source, table_prefix: str) -> Source:
    """With the name that a table which the CDK app creates has in this deployment."""
    return source if source.stream_arn is not None else replace(source, table=table_prefix + source.table)


def _agreed(entry: Entry, in_file: Source, deployed: Source, table_prefix: str) -> Source:
    """The deployment's source, with the keys of the file where the deployment does not know them.

    While a CDK app runs, a table that it makes has no name yet, but a placeholder that is none.
    """
    named = _TABLE_NAME.fullmatch(deployed.table)
    if named and deployed.table not in (in_file.table, _named(in_file, table_prefix).table):
        raise entry.error("table", f"is {in_file.table!r}, but the worker is given table {deployed.table!r}")
    if deployed.keys and deployed.keys != in_file.keys:
        keys = ", ".join(f"{name} ({kind})" for name, kind in deployed.keys)
        raise entry.error("partition_key", f"and sort_key are not those of the table that the worker is given: {keys}")
    return replace(deployed, keys=in_file.keys)


def _source_key(entry: Entry, key: str) -> tuple[str, KeyType]:
    raw = entry.take(key, str | dict, "an attribute name, or { name = …, type = … },")  # type: ignore[arg-type]  # a union stands for a type
    if isinstance(raw, str):
        raw = {"name": raw}
    inner = Entry(raw, f"source: {key}", KEYS_OF_A_SOURCE_KEY)
    name = inner.text("name")
    _check_key_name(inner, name)
    return name, KeyType(inner.choice("type", list(KeyType), KeyType.STRING))


def _aggregation(raw: object, index: int, source: Source, table_prefix: str) -> Aggregation:
    name = raw.get("name") if isinstance(raw, dict) else None
    known_as = f"aggregation {name!r}" if isinstance(name, str) else f"aggregation {index}"
    entry = Entry(raw, known_as, KEYS_OF_AN_AGGREGATION)
    if not _AGGREGATION_NAME.fullmatch(entry.text("name")):
        raise entry.error("name", "may hold only letters, digits, '_', '-' and '.', at most 128 of them")
    table = table_prefix + entry.text("table")
    _check_table_name(entry, table)
    if table == source.table:
        raise entry.error("table", "is the source table itself: every total would be written to the stream again")
    keys = [_group_key(entry.entry("partition_key", KEYS_OF_A_KEY), MAX_PARTITION_KEY_BYTES)]
    if entry.has("sort_key"):
        keys.append(_group_key(entry.entry("sort_key", KEYS_OF_A_KEY), MAX_SORT_KEY_BYTES))
        _check_two_keys(entry, *(key.name for key in keys))
    measures = _measures(entry, {key.name for key in keys})
    remove = RemovePolicy(entry.choice("remove", list(RemovePolicy), RemovePolicy.KEEP))
    where = _where(entry)
    since = _since(entry)
    indexes = read_indexes(entry, tuple(keys), measures)
    aggregation = Aggregation(str(name), table, tuple(keys), measures, remove, where, since=since, indexes=indexes)
    return replace(aggregation, definition=describe(aggregation, source))


def _where(entry: Entry) -> Where | None:
    expression = entry.text("where", None)
    if expression is None:
        return None
    try:
        return Where(expression)
    except ValueError as error:
        raise entry.error("where", str(error)) from error


def _since(entry: Entry) -> int | None:
    """Epoch seconds from a text, or from TOML's own offset date-time."""
    needed = "a time with an offset in whole seconds, such as '2026-11-24T12:00:00Z',"
    value = entry.take("since", str | datetime, needed, None)  # type: ignore[arg-type]  # a union stands for a type
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, datetime) else value
    mistake = entry.error("since", f"{needed} is needed, not {text!r}")
    try:
        moment = read_date(text) if _MOMENT.fullmatch(text) else None
        if isinstance(moment, datetime):
            return int(moment.astimezone(UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise mistake from error
    raise mistake


def _group_key(entry: Entry, max_bytes: int) -> GroupKey:
    name = entry.text("name")
    _check_key_name(entry, name)
    _check_not_reserved(entry, "name", name)
    if entry.has("value"):
        return _constant_key(entry, name, max_bytes)
    if not entry.has("from"):
        raise entry.missing("from", "an attribute path, or in its place a value that all items share,")
    path = _path(entry, "from", entry.text("from"))
    kind = KeyType(entry.choice("type", list(KeyType), KeyType.STRING))
    prefix = entry.take("prefix", str, "a string", "")
    truncation = _truncation(entry)
    if len(prefix.encode()) >= max_bytes:
        raise entry.error("prefix", f"leaves nothing of the {max_bytes} bytes that DynamoDB allows for this key")
    if kind is KeyType.NUMBER and (truncation is not None or prefix):
        raise entry.error("type", "a number key can have neither truncate nor prefix")
    return GroupKey(name, path, kind, truncation, prefix, max_bytes)


def _constant_key(entry: Entry, name: str, max_bytes: int) -> GroupKey:
    value = entry.text("value")
    for key in KEYS_OF_A_KEY:
        if key not in ("name", "value") and entry.has(key):
            raise entry.error("value", f"is the whole key, the same for all items, so there can be no {key} beside it")
    if len(value.encode()) > max_bytes:
        raise entry.error("value", f"is longer than the {max_bytes} bytes that DynamoDB allows for this key")
    return GroupKey(name, None, prefix=value, max_bytes=max_bytes)


def _truncation(entry: Entry) -> Truncation | None:
    unit = entry.choice("truncate", list(Unit), None)
    zone = entry.text("timezone", None)
    epoch = entry.choice("epoch", list(Epoch), None)
    if unit is None:
        for key, value in (("timezone", zone), ("epoch", epoch)):
            if value is not None:
                raise entry.error(key, "needs truncate as well")
        return None
    try:
        return Truncation(Unit(unit), zone and ZoneInfo(zone), epoch and Epoch(epoch))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise entry.error("timezone", f"{zone!r} is not an IANA time zone, such as Europe/Berlin or UTC") from error


def _measures(entry: Entry, key_names: set[str]) -> tuple[Measure, ...]:
    sums = entry.take("sum", dict, "{ total = 'attribute' }", {})
    measures = [_sum(entry, name, summed) for name, summed in sums.items()]
    count = entry.text("count", None)
    if count is not None:
        if count in sums:
            raise entry.error("count", f"{count!r} is already the name of a sum")
        measures.append(Measure(count))
    if not measures:
        raise entry.missing("sum", "at least one sum, or a count,")
    for measure in measures:
        if measure.name in key_names:
            raise entry.error(measure.name, "is the name of a key attribute of the target table")
        if not measure.name or len(measure.name.encode()) > _MAX_KEY_NAME_BYTES:
            raise entry.error("sum", f"{measure.name!r} cannot be an attribute's name (1 to 255 bytes)")
        _check_not_reserved(entry, measure.name, measure.name)
    return tuple(sorted(measures, key=lambda measure: measure.name))


def _sum(entry: Entry, name: str, summed: object) -> Measure:
    key = f"sum.{name}"
    if isinstance(summed, dict):
        expression = entry.inner(key, summed, KEYS_OF_A_SUM).text("jmespath")
        try:
            return Measure(name, measured=MeasuredExpression(expression, name))
        except ValueError as error:
            raise entry.error(key, str(error)) from error
    if not isinstance(summed, str):
        needed = "an attribute path, a product such as 'quantity * price', or { jmespath = … },"
        raise entry.error(key, f"{needed} is needed, not {shown(summed)}")
    try:
        paths, constant = parse_product(summed)
    except ValueError as error:
        raise entry.error(key, str(error)) from error
    if len(paths) > _MAX_FACTORS:
        raise entry.error(key, f"has {len(paths)} factors; at most {_MAX_FACTORS} are allowed")
    return Measure(name, paths, None if constant == 1 else constant)


def _path(entry: Entry, key: str, text: str) -> AttributePath:
    try:
        return parse_path(text)
    except ValueError as error:
        raise entry.error(key, str(error)) from error


def _check_table_name(entry: Entry, table: str) -> None:
    if not _TABLE_NAME.fullmatch(table):
        raise entry.error("table", f"{table!r} is not a DynamoDB table name (3 to 255 letters, digits, '_', '-', '.')")


def _check_key_name(entry: Entry, name: str) -> None:
    if len(name.encode()) > _MAX_KEY_NAME_BYTES:
        raise entry.error("name", "is longer than the 255 bytes that DynamoDB allows for a key attribute's name")


def _check_not_reserved(entry: Entry, key: str, name: str) -> None:
    if name.startswith(RESERVED_PREFIXES):
        begins = repr(name[: name.index("#") + 1])
        raise entry.error(key, f"begins with {begins}, as the worker's own attributes of a row do; choose another name")


def _check_two_keys(entry: Entry, partition_key: str, sort_key: str) -> None:
    if partition_key == sort_key:
        raise entry.error("sort_key", f"has the same name as partition_key, {partition_key!r}")


def _check_together(aggregations: tuple[Aggregation, ...]) -> None:
    """What can only be wrong between aggregations: their names, and how those that share a table fit into its rows."""
    for first, second in combinations(aggregations, 2):
        if first.name == second.name:
            raise DefinitionError(f"aggregation {first.name!r}: name: is given to two aggregations")
        if first.table != second.table:
            continue
        where = f"aggregation {second.name!r}"
        if [(key.name, key.type) for key in first.keys] != [(key.name, key.type) for key in second.keys]:
            raise DefinitionError(
                f"{where}: partition_key: shares table {second.table!r} with {first.name!r} but has other keys"
            )
        if both := shared_measures(first.definition, second.definition):
            raise DefinitionError(
                f"{where}: sum: {', '.join(both)} is written by {first.name!r} to the same rows of table "
                f"{second.table!r}; give it another name, or both partition keys a prefix, or value, with "
                "which the other's does not begin"
            )
        if both := sorted({index.name for index in first.indexes} & {index.name for index in second.indexes}):
            raise DefinitionError(
                f"{where}: indexes: {first.name!r} has an index {', '.join(both)} of table {second.table!r}, too; a "
                "table has the indexes of all its aggregations"
            )

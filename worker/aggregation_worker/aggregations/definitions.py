"""The definitions file, `aggregations.toml`: reading it, and one clear sentence for every mistake in it.

The worker, the CDK app and the `aggregator` command all read the file through here. README.md, "The definitions file",
explains every key to users.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from aggregation_worker.aggregations.attribute_paths import AttributePath, parse_path
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
from aggregation_worker.aggregations.truncation import Truncation, Unit
from aggregation_worker.aggregations.where import Where
from aggregation_worker.errors import WorkerError
from aggregation_worker.streams.records import table_and_label

# The user's file, beside the package: in a clone, and in a function's bundle. An installed package has none.
DEFINITIONS_FILE = Path(__file__).parents[2] / "aggregations.toml"

_AGGREGATION_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_TABLE_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_MAX_KEY_NAME_BYTES = 255
_MAX_FACTORS = 8
# How the names of the worker's own attributes in a row begin; `ledger.receipts` makes them.
RESERVED_PREFIXES = ("receipts#", "generation#", "archived#", "late#", "kept#", "backfill#")
_ASTERISK_OUTSIDE_QUOTES = re.compile(r'\*(?=(?:[^"]*"[^"]*")*[^"]*$)')
# RFC 3339, "Date and Time on the Internet: Timestamps", in whole seconds: the stream's own times have no finer ones.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d([Zz]|[+-]\d\d:\d\d)", re.ASCII)
_VIEW_TYPE = "NEW_AND_OLD_IMAGES"


class DefinitionError(WorkerError):
    """A mistake in the definitions file; the message names the aggregation and the key."""


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


def load_definitions(path: Path) -> Definitions:
    """Reads a definitions file.

    Raises:
        DefinitionError: it cannot be read, is not TOML, or holds a mistake.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionError(f"the definitions file {path} cannot be read: {error}") from error
    try:
        return parse_definitions(text)
    except DefinitionError as error:
        raise DefinitionError(f"{path.name}: {error}") from error


def parse_definitions(text: str) -> Definitions:
    """Reads definitions from TOML text; see `load_definitions`."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a plain ValueError for an integer of over 4,300 digits
        raise DefinitionError(f"not valid TOML: {error}") from error
    top = _Entry(document, "the file")
    source = _source(_Entry(top.take("source", dict, "a table, [source],"), "source"))
    tables = top.take("aggregations", list, "an array of tables, [[aggregations]]")
    top.done()
    if not tables:
        raise DefinitionError("aggregations: at least one [[aggregations]] is needed")
    aggregations = tuple(_aggregation(raw, index, source) for index, raw in enumerate(tables, start=1))
    _check_together(aggregations)
    return Definitions(source, aggregations)


class _Entry:
    """One TOML table being read: takes known keys out of it, and names what is missing, mistyped or unknown."""

    def __init__(self, raw: object, where: str) -> None:
        if not isinstance(raw, dict):
            raise DefinitionError(f"{where}: a table with keys is needed, not {_shown(raw)}")
        self._left = dict(raw)
        self._known: list[str] = []
        self._where = where

    def error(self, key: str, what: str) -> DefinitionError:
        return DefinitionError(f"{self._where}: {key}: {what}")

    def missing(self, key: str, what: str) -> DefinitionError:
        close = difflib.get_close_matches(key, self._left, n=1)
        found = f", but there is {close[0]!r}" if close else ""
        return self.error(key, f"is missing{found}; {what} is needed")

    def take(self, key: str, kind: type, what: str, default: Any = ...) -> Any:
        """The value of `key`, which must be of type `kind` (`what`, in words), or `default` if it is not there."""
        self._known.append(key)
        value = self._left.pop(key, ...)
        if value is ...:
            if default is ...:
                raise self.missing(key, what)
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"{what} is needed, not {_shown(value)}")
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        """The string under `key`, which must not be empty, or `default`."""
        value = self.take(key, str, "a string", default)
        if value == "":
            raise self.error(key, "is empty")
        return value

    def choice(self, key: str, values: Iterable[str], default: str) -> str:
        """The string under `key`, which must be one of `values`, or `default`."""
        value: str = self.text(key, default)
        if value not in values:
            raise self.error(key, f"{value!r} is none of {', '.join(values)}")
        return value

    def entry(self, key: str) -> "_Entry":
        """The table under `key`."""
        return _Entry(self.take(key, dict, "a table, { name = …, from = … },"), f"{self._where}: {key}")

    def has(self, key: str) -> bool:
        """Whether `key` is there and was not taken yet."""
        self._known.append(key)
        return key in self._left

    def done(self) -> None:
        """Refuses keys that were not taken: a mistyped key must not be silently without effect."""
        for key in self._left:
            close = difflib.get_close_matches(key, self._known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(set(self._known)))}"
            raise self.error(key, f"unknown key; {hint}")


def _shown(value: object) -> str:
    """A value in TOML's words: a text in full, of anything else only its kind, however large or deep."""
    if isinstance(value, str):
        return repr(value)
    words = {bool: "a boolean", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return words.get(type(value), "a date or time")


def _source(entry: _Entry) -> Source:
    stream_arn = entry.text("stream_arn", None)
    table = entry.text("table", None)
    if stream_arn is not None:
        try:
            of_stream, _ = table_and_label(stream_arn)
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
    entry.done()
    return Source(table, tuple(keys), stream_arn)


def _source_key(entry: _Entry, key: str) -> tuple[str, KeyType]:
    raw = entry.take(key, str | dict, "an attribute name, or { name = …, type = … },")  # type: ignore[arg-type]  # a union stands for a type
    if isinstance(raw, str):
        raw = {"name": raw}
    inner = _Entry(raw, f"source: {key}")
    name = inner.text("name")
    _check_key_name(inner, name)
    kind = KeyType(inner.choice("type", list(KeyType), KeyType.STRING))
    inner.done()
    return name, kind


def _aggregation(raw: object, index: int, source: Source) -> Aggregation:
    name = raw.get("name") if isinstance(raw, dict) else None
    entry = _Entry(raw, f"aggregation {name!r}" if isinstance(name, str) else f"aggregation {index}")
    if not _AGGREGATION_NAME.fullmatch(entry.text("name")):
        raise entry.error("name", "may hold only letters, digits, '_', '-' and '.', at most 128 of them")
    table = entry.text("table")
    _check_table_name(entry, table)
    if table == source.table:
        raise entry.error("table", "is the source table itself: every total would be written to the stream again")
    keys = [_group_key(entry.entry("partition_key"), MAX_PARTITION_KEY_BYTES)]
    if entry.has("sort_key"):
        keys.append(_group_key(entry.entry("sort_key"), MAX_SORT_KEY_BYTES))
        _check_two_keys(entry, *(key.name for key in keys))
    measures = _measures(entry, {key.name for key in keys})
    remove = RemovePolicy(entry.choice("remove", list(RemovePolicy), RemovePolicy.IGNORE))
    where = _where(entry)
    since = _since(entry)
    entry.done()
    aggregation = Aggregation(str(name), table, tuple(keys), measures, remove, where, since=since)
    return replace(aggregation, definition=describe(aggregation, source))


def _where(entry: _Entry) -> Where | None:
    expression = entry.text("where", None)
    if expression is None:
        return None
    try:
        return Where(expression)
    except ValueError as error:
        raise entry.error("where", str(error)) from error


def _since(entry: _Entry) -> int | None:
    """Epoch seconds from a text, or from TOML's own offset date-time."""
    needed = "a time with an offset in whole seconds, such as '2026-11-24T12:00:00Z',"
    value = entry.take("since", str | datetime, needed, None)  # type: ignore[arg-type]  # a union stands for a type
    if value is None:
        return None
    text = value.isoformat() if isinstance(value, datetime) else value
    mistake = entry.error("since", f"{needed} is needed, not {text!r}")
    if not _MOMENT.fullmatch(text):
        raise mistake
    try:
        return int(datetime.fromisoformat(text.upper()).astimezone(UTC).timestamp())
    except (ValueError, OverflowError) as error:
        raise mistake from error


def moment_text(epoch_seconds: int) -> str:
    """A `since` as its one spelling: `2026-11-24T12:00:00Z`."""
    return f"{datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec='seconds').removesuffix('+00:00')}Z"


def _group_key(entry: _Entry, max_bytes: int) -> GroupKey:
    name = entry.text("name")
    _check_key_name(entry, name)
    _check_not_reserved(entry, "name", name)
    path = _path(entry, "from", entry.text("from"))
    kind = KeyType(entry.choice("type", list(KeyType), KeyType.STRING))
    prefix = entry.take("prefix", str, "a string", "")
    truncation = _truncation(entry)
    if len(prefix.encode()) >= max_bytes:
        raise entry.error("prefix", f"leaves nothing of the {max_bytes} bytes that DynamoDB allows for this key")
    if kind is KeyType.NUMBER and (truncation is not None or prefix):
        raise entry.error("type", "a number key can have neither truncate nor prefix")
    entry.done()
    return GroupKey(name, path, kind, truncation, prefix, max_bytes)


def _truncation(entry: _Entry) -> Truncation | None:
    unit = entry.text("truncate", None)
    zone = entry.text("timezone", None)
    if unit is None:
        if zone is not None:
            raise entry.error("timezone", "needs truncate as well")
        return None
    if unit not in list(Unit):
        raise entry.error("truncate", f"{unit!r} is none of {', '.join(Unit)}")
    if zone is None:
        return Truncation(Unit(unit))
    try:
        return Truncation(Unit(unit), ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise entry.error("timezone", f"{zone!r} is not an IANA time zone, such as Europe/Berlin or UTC") from error


def _measures(entry: _Entry, key_names: set[str]) -> tuple[Measure, ...]:
    sums = entry.take("sum", dict, "{ total = 'attribute' }", {})
    measures = [Measure(name, _factors(entry, name, expression)) for name, expression in sums.items()]
    count = entry.text("count", None)
    if count is not None:
        if count in sums:
            raise entry.error("count", f"{count!r} is already the name of a sum")
        measures.append(Measure(count, ()))
    if not measures:
        raise entry.missing("sum", "at least one sum, or a count,")
    for measure in measures:
        if measure.name in key_names:
            raise entry.error(measure.name, "is the name of a key attribute of the target table")
        if not measure.name or len(measure.name.encode()) > _MAX_KEY_NAME_BYTES:
            raise entry.error("sum", f"{measure.name!r} cannot be an attribute's name (1 to 255 bytes)")
        _check_not_reserved(entry, measure.name, measure.name)
    return tuple(sorted(measures, key=lambda measure: measure.name))


def _factors(entry: _Entry, name: str, expression: object) -> tuple[AttributePath, ...]:
    key = f"sum.{name}"
    if not isinstance(expression, str):
        raise entry.error(
            key, f"an attribute path, or a product such as 'quantity * price', is needed, not {_shown(expression)}"
        )
    factors = tuple(_path(entry, key, factor) for factor in _ASTERISK_OUTSIDE_QUOTES.split(expression))
    if len(factors) > _MAX_FACTORS:
        raise entry.error(key, f"has {len(factors)} factors; at most {_MAX_FACTORS} are allowed")
    return factors


def _path(entry: _Entry, key: str, text: str) -> AttributePath:
    try:
        return parse_path(text)
    except ValueError as error:
        raise entry.error(key, str(error)) from error


def _check_table_name(entry: _Entry, table: str) -> None:
    if not _TABLE_NAME.fullmatch(table):
        raise entry.error("table", f"{table!r} is not a DynamoDB table name (3 to 255 letters, digits, '_', '-', '.')")


def _check_key_name(entry: _Entry, name: str) -> None:
    if len(name.encode()) > _MAX_KEY_NAME_BYTES:
        raise entry.error("name", "is longer than the 255 bytes that DynamoDB allows for a key attribute's name")


def _check_not_reserved(entry: _Entry, key: str, name: str) -> None:
    if name.startswith(RESERVED_PREFIXES):
        begins = repr(name[: name.index("#") + 1])
        raise entry.error(key, f"begins with {begins}, as the worker's own attributes of a row do; choose another name")


def _check_two_keys(entry: _Entry, partition_key: str, sort_key: str) -> None:
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
                f"{second.table!r}; give it another name, or both partition keys a prefix"
            )


def describe(aggregation: Aggregation, source: Source) -> str:
    """All that an aggregation's totals depend on, as canonical JSON, in one order.

    Two files that mean the same give the same text; the catalogue keeps it to notice a changed definition. A key that
    is not set is left out, so that a key which a later version of the file adds changes no text there is. `remove` is
    always written: if its default became another one, totals would be counted in another way.
    """
    return json.dumps(
        _set_keys(
            {
                "source": source.table,
                "table": aggregation.table,
                "keys": [
                    _set_keys(
                        {
                            "name": key.name,
                            "from": key.path.text,
                            "type": None if key.type is KeyType.STRING else key.type,
                            "prefix": key.prefix,
                            "truncate": key.truncation and key.truncation.unit,
                            "timezone": key.truncation and key.truncation.zone and key.truncation.zone.key,
                        }
                    )
                    for key in aggregation.keys
                ],
                # The factors of a sum, in one order; a count has none.
                "measures": {
                    measure.name: sorted(path.text for path in measure.factors) for measure in aggregation.measures
                },
                "where": aggregation.where and aggregation.where.expression,
                "remove": aggregation.remove,
                "since": None if aggregation.since is None else moment_text(aggregation.since),
            }
        ),
        ensure_ascii=False,
        sort_keys=True,
    )


def _set_keys(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Without those that have no value, `None` or an empty text."""
    return {key: value for key, value in keys.items() if value not in (None, "")}


def shared_measures(first: str, second: str) -> list[str]:
    """The measures that two definitions, as `describe` writes them, both add to in the same rows of one table."""
    one, other = json.loads(first), json.loads(second)
    if one["table"] != other["table"] or _rows_apart(one["keys"], other["keys"]):
        return []
    return sorted(one["measures"].keys() & other["measures"].keys())


def _rows_apart(first: Sequence[Mapping[str, str]], second: Sequence[Mapping[str, str]]) -> bool:
    """Whether two aggregations of a table have no row in common, whatever their groups.

    Prefixes can keep them apart; with other keys it is another table, made under the name of one that was deleted.
    """
    if [(key["name"], key.get("type")) for key in first] != [(key["name"], key.get("type")) for key in second]:
        return True
    prefixes = [(one.get("prefix", ""), other.get("prefix", "")) for one, other in zip(first, second, strict=True)]
    return any(not (one.startswith(other) or other.startswith(one)) for one, other in prefixes)

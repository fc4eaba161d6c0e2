"""Global secondary indexes of target tables, `indexes` in the definitions file.

An index changes nothing that counts, so it is no part of what `descriptions.describe` writes: it can come and go.
"""

import re
from collections.abc import Mapping

from aggregation_worker.aggregations.contributions import GroupKey, Index, KeyType, Measure
from aggregation_worker.aggregations.entries import Entry

KEYS_OF_AN_INDEX = ("name", "partition_key", "sort_key")
_INDEX_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")


def read_indexes(entry: Entry, keys: tuple[GroupKey, ...], measures: tuple[Measure, ...]) -> tuple[Index, ...]:
    """The indexes of an aggregation with these keys and measures.

    It can sort by what it writes itself, and holds the table's keys and its own measures. So the measures of others in
    the same rows cost its indexes no write, and change no index that is there, which DynamoDB does not allow.
    """
    types = {key.name: key.type for key in keys} | dict.fromkeys((measure.name for measure in measures), KeyType.NUMBER)
    found = entry.take("indexes", list, "an array of tables, [{ name = …, partition_key = …, sort_key = … }],", [])
    indexes: dict[str, Index] = {}
    for number, raw in enumerate(found, start=1):
        inner = entry.inner(f"index {number}", raw, KEYS_OF_AN_INDEX)
        index = _index(inner, types, measures)
        if index.name in indexes:
            raise inner.error("name", f"{index.name!r} is given to two indexes")
        indexes[index.name] = index
    return tuple(indexes.values())


def _index(entry: Entry, types: Mapping[str, KeyType], measures: tuple[Measure, ...]) -> Index:
    name = entry.text("name")
    if not _INDEX_NAME.fullmatch(name):
        raise entry.error("name", f"{name!r} is not an index's name (3 to 255 letters, digits, '_', '-', '.')")
    keys = [_key(entry, "partition_key", types)]
    if entry.has("sort_key"):
        keys.append(_key(entry, "sort_key", types))
        if keys[0] == keys[1]:
            raise entry.error("sort_key", f"is {keys[1][0]!r}, like the partition_key")
    names = [measure.name for measure in measures]
    return Index(name, tuple(keys), tuple(one for one in names if one not in dict(keys)))


def _key(entry: Entry, key: str, types: Mapping[str, KeyType]) -> tuple[str, KeyType]:
    name = entry.choice(key, types)
    return name, types[name]

"""What an aggregation's totals depend on, as one text, and when two of them add to the same numbers.

The catalogue keeps the texts; a worker whose file gives another one, or that would add to the same numbers, does not
start.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aggregation_worker.aggregations.contributions import Aggregation, KeyType, Measure, Source
from aggregation_worker.aggregations.numbers import canonical_text


def moment_text(epoch_seconds: int) -> str:
    """A `since` as its one spelling: `2026-11-24T12:00:00Z`."""
    return f"{datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec='seconds').removesuffix('+00:00')}Z"


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
                            "from": key.path and key.path.text,
                            "type": None if key.type is KeyType.STRING else key.type,
                            "prefix": key.prefix,
                            "truncate": key.truncation and key.truncation.unit,
                            "timezone": key.truncation and key.truncation.zone and key.truncation.zone.key,
                            "epoch": key.truncation and key.truncation.epoch,
                        }
                    )
                    for key in aggregation.keys
                ],
                "measures": {measure.name: _terms(measure) for measure in aggregation.measures},
                "where": aggregation.where and aggregation.where.expression,
                "remove": aggregation.remove,
                "since": None if aggregation.since is None else moment_text(aggregation.since),
            }
        ),
        ensure_ascii=False,
        sort_keys=True,
    )


def _terms(measure: Measure) -> list[str] | dict[str, str]:
    """The expression, or the factors of a product in one order, its number among them; a count has none."""
    if measure.measured is not None:
        return {"jmespath": measure.measured.expression}
    number = [] if measure.constant is None else [canonical_text(measure.constant)]
    return sorted(path.text for path in measure.factors) + number


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

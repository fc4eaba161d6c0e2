"""How the canary order of `aggregator verify` is recognized: by its keys.

A canary is put and removed within seconds, and its rows are removed with it, so it is not part of any total: a snapshot
leaves it out.
"""

from collections.abc import Iterable
from typing import Any

from aggregation_worker.aggregations.numbers import parse_number
from aggregation_worker.streams.records import Image

# A key of a canary begins with this text or, where it is a number, is no greater than this.
CANARY_TEXT = "aggregator-verify-"
CANARY_NUMBER = -(10**30)


def is_canary(item: Image, key_names: Iterable[str]) -> bool:
    """Whether an item, or its keys alone, in DynamoDB's typed JSON, is a canary."""
    return any(_is_canarys(item[name]) for name in key_names if name in item)


def _is_canarys(value: Any) -> bool:
    text = value.get("S")
    if text is not None:
        return bool(text.startswith(CANARY_TEXT))
    number = value.get("N")
    # No other number of 31 digits or an exponent is worth the parsing.
    return number is not None and number[:1] == "-" and len(number) > 30 and parse_number(number) <= CANARY_NUMBER

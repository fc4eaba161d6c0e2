"""How the canary order of `aggregator verify` is recognized: by its keys, which no order of a user can happen to have.

A canary is put and removed within seconds, and its rows are removed with it, so it is not part of any total: a snapshot
leaves it out.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any
from uuid import UUID

from aggregation_worker.aggregations.numbers import parse_number
from aggregation_worker.streams.records import Image

_TEXT = "aggregator-verify-"
# Of a canary's number: 1, random digits, and check digits.
_RANDOM_DIGITS, _CHECK_DIGITS = 24, 12
_CHECKS: int = 10**_CHECK_DIGITS


def canary_text(mark: UUID) -> str:
    """A key that is a text."""
    return f"{_TEXT}{mark.hex}-{_check(mark.hex):x}"


def canary_number(mark: UUID) -> str:
    """A key that is a number."""
    digits = f"{mark.int % 10**_RANDOM_DIGITS:0{_RANDOM_DIGITS}}"
    return f"-1{digits}{_check(digits):0{_CHECK_DIGITS}}"


def _check(text: str) -> int:
    return int.from_bytes(sha256(f"{_TEXT}{text}".encode()).digest()) % _CHECKS


def is_canary(item: Image, key_names: Iterable[str]) -> bool:
    """Whether an item, or its keys alone, in DynamoDB's typed JSON, is a canary."""
    return any(_is_canarys(item[name]) for name in key_names if name in item)


def _is_canarys(value: Any) -> bool:
    text = value.get("S")
    if text is not None:
        random, _, check = text.removeprefix(_TEXT).partition("-")
        return bool(text.startswith(_TEXT) and check == f"{_check(random):x}")
    number = value.get("N")
    # No shorter number is worth the parsing.
    if number is None or number[:2] != "-1" or len(number) < _RANDOM_DIGITS:
        return False
    text = f"{parse_number(number):f}"
    random, check = text[2:-_CHECK_DIGITS], text[-_CHECK_DIGITS:]
    return len(random) == _RANDOM_DIGITS and check == f"{_check(random):0{_CHECK_DIGITS}}"

"""How much the tests try: little by default, more with `pytest --long`.

    @examples(15, long=60)  # of a property, in place of the profile's number
    @seeds(4, long=16)      # of random histories
    @pytest.mark.long       # on any other test that asks for `size(3, long=10)`
    @pytest.mark.only_long  # on a test that is left out by default

`pytest --long -m long` runs just the tests that try more then: also every property, which needs no marker.
SEED repeats what a test does at random.
"""

import os
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings

_long = False


def choose(long: bool) -> None:
    """Which sizes are asked for; `tests/conftest.py` says so before any test module is imported."""
    global _long  # noqa: PLW0603 - decorators need it, long before there are fixtures
    _long = long


def size(short: int, *, long: int) -> int:
    """One of the two."""
    return long if _long else short


def examples(short: int, *, long: int) -> settings:
    """So many examples of a property."""
    return settings(max_examples=size(short, long=long))


def seeds(short: int, *, long: int) -> Callable[[Any], Any]:
    """So many seeds of random histories: half of them the same every time, half fresh; SEED alone where set.

    A fresh one is `None` and chosen by the test itself (`chosen`): all processes of a test run collect the same tests.
    """
    repeated = os.environ.get("SEED")
    total = size(short, long=long)
    found = [*range(total - total // 2), *([None] * (total // 2))] if repeated is None else [int(repeated)]

    def decorate(test: Any) -> Any:
        return pytest.mark.long(pytest.mark.parametrize("seed", found)(test))

    return decorate


def chosen(seed: int | None) -> int:
    """The seed, or a fresh one; either way it is printed with what repeats it."""
    if seed is None:
        seed = fresh_seed()
    print(f"repeat with SEED={seed}")
    return seed


def fresh_seed() -> int:
    """SEED where set."""
    return int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))

"""Many entries a few at a time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def portions(entries: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` entries, the last one shorter: `itertools.batched`, which Python 3.11 does not have."""
    left = iter(entries)
    while portion := list(islice(left, size)):
        yield portion

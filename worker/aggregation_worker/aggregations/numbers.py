"""Exact arithmetic on DynamoDB numbers.

DynamoDB numbers have up to 38 significant digits and a magnitude between 1E-130 and 9.99…E+125 ("Data types", Amazon
DynamoDB developer guide). They are read, summed and written here as `Decimal` without ever being rounded: what does not
fit is an error. Python's default decimal context rounds at 28 digits, so no bare operator may touch an amount: use
`EXACT`. Knows nothing of streams, aggregations or AWS clients.
"""

import re
from collections.abc import Iterable
from decimal import (
    Clamped,
    Context,
    Decimal,
    DivisionByZero,
    Inexact,
    InvalidOperation,
    Overflow,
    Rounded,
    Subnormal,
    Underflow,
)
from functools import reduce

from aggregation_worker.errors import WorkerError

Amounts = tuple[Decimal, ...]
"""One number for each measure, in the order of the measures' names."""

MAX_DIGITS = 38
MIN_EXPONENT = -130
MAX_EXPONENT = 125

# Wide enough for the exact sum of any batch of DynamoDB numbers, and for the product of eight of them.
EXACT = Context(prec=600, traps=[Clamped, DivisionByZero, Inexact, InvalidOperation, Overflow, Rounded, Underflow])

# Signals whatever DynamoDB could not hold. Trailing zeros may go: they are not significant digits.
_DYNAMODB = Context(
    prec=MAX_DIGITS,
    Emin=MIN_EXPONENT,
    Emax=MAX_EXPONENT,
    traps=[Inexact, InvalidOperation, Overflow, Subnormal],
)

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
# A longer text is not a DynamoDB number and is refused before Decimal spends time on it.
_LONGEST_TEXT = 300
_ZERO = Decimal(0)


class NumberOutOfRangeError(WorkerError, ValueError):
    """A number that DynamoDB cannot hold: over 38 significant digits, or too large or small in magnitude."""


def parse_number(text: object) -> Decimal:
    """The value of a DynamoDB `N` attribute, exactly, with at most 38 significant digits.

    Args:
        text: the value of `"N"`, e.g. `"10"`, `"-1.5"`, `"1E+3"`.

    Raises:
        ValueError: it is not a finite decimal number in ASCII digits: `NaN`, `1_000`, a blank, not a string.
        NumberOutOfRangeError: DynamoDB cannot hold it.
    """
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        raise ValueError("not a number")
    if len(text) <= MAX_DIGITS and text.isdecimal() and text.isascii():  # most amounts: a few digits, which always fit
        return Decimal(text) or _ZERO
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    number = Decimal(text)
    if not fits(number):
        raise NumberOutOfRangeError(f"does not fit a DynamoDB number ({MAX_DIGITS} digits, 1E-130 to 9.99E+125)")
    if not number:
        return _ZERO  # without its exponent, which every sum with 0E-9999 would take over
    return number if len(text) <= MAX_DIGITS else EXACT.normalize(number)


def fits(number: Decimal) -> bool:
    """Whether DynamoDB can hold `number` without rounding it."""
    try:
        _DYNAMODB.plus(number)
    except ArithmeticError:
        return False
    return True


def product(factors: Iterable[Decimal]) -> Decimal:
    """The exact product of numbers that each fit; it need not fit itself."""
    result = reduce(EXACT.multiply, factors)
    return result or _ZERO


def canonical_text(number: Decimal) -> str:
    """One positional spelling for each value: `1.50`, `1.5` and `15E-1` all give `"1.5"`, `-0` gives `"0"`."""
    if not number:
        return "0"
    return format(EXACT.normalize(number), "f")


def amount_text(number: Decimal) -> str:
    """The number as a DynamoDB `N` value, with insignificant zeros left out where they would break the digit limit."""
    if not number:
        return "0"
    text = str(number)
    return text if len(text) <= MAX_DIGITS else str(EXACT.normalize(number))


def sum_of(amounts: Iterable[Amounts], start: Amounts) -> Amounts:
    """The sum, measure by measure."""
    return reduce(lambda one, other: tuple(map(EXACT.add, one, other)), amounts, start)

"""Numbers as DynamoDB holds them: 38 digits, never rounded."""

from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.numbers import (
    EXACT,
    NumberOutOfRangeError,
    amount_text,
    canonical_text,
    fits,
    parse_number,
    product,
)

DIGITS_38 = "12345678901234567890123456789012345678"


@st.composite
def dynamodb_numbers(draw: st.DrawFn) -> Decimal:
    """Any number that DynamoDB can hold, with any number of insignificant zeros."""
    coefficient = draw(st.integers(-(10**38) + 1, 10**38 - 1))
    highest = draw(st.integers(-130, 125))
    return Decimal(coefficient).scaleb(highest - len(str(abs(coefficient))) + 1, EXACT)


@pytest.mark.parametrize(
    "text",
    [
        DIGITS_38,
        f"-{DIGITS_38}",
        f"0.{DIGITS_38}",
        f"{DIGITS_38[:19]}.{DIGITS_38[19:]}",
        f"{DIGITS_38}000",
        f"{DIGITS_38}.000",
        "9." + "9" * 37 + "E125",
        "1E-130",
        "+7",
        ".5",
        "5.",
        "1e3",
        "1" + "0" * 125,
        "0" * 200 + "1",
    ],
)
def test_number_that_dynamodb_can_hold__is_read_exactly(text: str) -> None:
    number = parse_number(text)

    assert Fraction(number) == Fraction(text)
    assert len(number.as_tuple().digits) <= 38


@pytest.mark.parametrize(
    "text",
    [
        DIGITS_38 + "9",
        f"0.{DIGITS_38}9",
        "1." + "0" * 37 + "1",
        "1E126",
        "-1E126",
        "1E-131",
        "9E-131",
        "1" + "0" * 126,
        "1E9999",
        "1E-9999",
    ],
)
def test_number_that_dynamodb_cannot_hold__is_out_of_range(text: str) -> None:
    with pytest.raises(NumberOutOfRangeError, match="38 digits"):
        parse_number(text)


@pytest.mark.parametrize(
    "content",
    [
        *("NaN", "sNaN", "-NaN", "Infinity", "-Infinity", "inf"),
        *("", " ", "1 ", " 1", "1\n", "\t1", "1 000", "1_000", "1,5", "1.2.3", "--1", "+", ".", "e5", "1e", "1e+"),
        *("0x10", "١٢٣", "\uff11\uff12", "²", "1e99999", "1" * 301, "ten", "true"),
        *(None, 10, 1.5, True, Decimal(1), ["1"], {"N": "1"}, b"1"),
    ],
)
def test_content_that_is_not_a_number__is_refused(content: object) -> None:
    with pytest.raises(ValueError, match=r"^not a number$"):
        parse_number(content)


@pytest.mark.parametrize("text", ["0", "-0", "0.000", "0E-9999", "-0E+9999", "0" * 300])
def test_zero__is_read_without_its_exponent(text: str) -> None:
    number = parse_number(text)

    assert str(number) == "0"
    assert EXACT.add(number, Decimal("1E125")) == Decimal("1E125")


@given(st.lists(dynamodb_numbers(), min_size=1, max_size=50))
def test_sum_of_any_numbers__is_exact(numbers: list[Decimal]) -> None:
    total = Decimal(0)

    for number in numbers:
        total = EXACT.add(total, number)

    assert Fraction(total) == sum(map(Fraction, numbers))


@given(st.lists(dynamodb_numbers(), min_size=1, max_size=8))
def test_product_of_any_eight_numbers__is_exact(numbers: list[Decimal]) -> None:
    expected = Fraction(1)
    for number in numbers:
        expected *= Fraction(number)

    result = product(numbers)

    assert Fraction(result) == expected
    if fits(result):
        assert Fraction(EXACT.subtract(Decimal("1E125"), result)) == 10**125 - expected


def test_product_with_zero__is_plain_zero() -> None:
    assert str(product([Decimal("1E-130"), Decimal(0), Decimal("1E-130")])) == "0"


@given(dynamodb_numbers(), st.integers(0, 40))
def test_canonical_text__is_one_spelling_for_each_value(number: Decimal, zeros: int) -> None:
    same_value = Decimal((number.as_tuple().sign, (*number.as_tuple().digits, *[0] * zeros), _exponent(number) - zeros))

    text = canonical_text(number)

    assert text == canonical_text(same_value)
    assert set(text) <= set("-.0123456789")
    assert parse_number(text) == number


@given(dynamodb_numbers(), dynamodb_numbers())
def test_canonical_text__differs_for_different_values(first: Decimal, second: Decimal) -> None:
    assert (canonical_text(first) == canonical_text(second)) == (first == second)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1.50", "1.5"),
        ("15E-1", "1.5"),
        ("1E+3", "1000"),
        ("1000", "1000"),
        ("007", "7"),
        ("-0", "0"),
        ("0.00", "0"),
        ("-2.0", "-2"),
    ],
)
def test_canonical_text__of_common_spellings(text: str, canonical: str) -> None:
    assert canonical_text(Decimal(text)) == canonical


@given(dynamodb_numbers(), dynamodb_numbers())
def test_amount_text_of_any_sum__is_read_back_exactly(first: Decimal, second: Decimal) -> None:
    total = EXACT.add(first, second)
    if not fits(total):
        total = first

    assert parse_number(amount_text(total)) == total


@pytest.mark.parametrize(
    ("number", "text"),
    [("0E-40", "0"), ("-0", "0"), ("1.50", "1.50"), ("1." + "0" * 40, "1"), ("10", "10")],
)
def test_amount_text__has_no_zeros_that_break_the_digit_limit(number: str, text: str) -> None:
    assert amount_text(Decimal(number)) == text


def test_surrounding_decimal_context__rounds_nothing() -> None:
    with localcontext() as context:
        context.prec = 3

        number = parse_number(DIGITS_38)

        assert canonical_text(number) == DIGITS_38
        assert amount_text(number) == DIGITS_38
        assert EXACT.add(number, Decimal(1)) == Decimal(DIGITS_38[:-1] + "9")


def _exponent(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    assert isinstance(exponent, int)
    return exponent

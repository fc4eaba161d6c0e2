"""Paths into images in DynamoDB's typed JSON."""

import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.attribute_paths import (
    AttributePath,
    MalformedValueError,
    parse_path,
    parse_product,
)

IMAGE: dict[str, Any] = {
    "quantity": {"N": "10"},
    "unit.price": {"N": "2.5"},
    'a"b\\c': {"S": "quoted"},
    "nothing": {"NULL": True},
    "customer": {"M": {"address": {"M": {"country": {"S": "DE"}}}, "name": {"NULL": True}}},
    "lines": {"L": [{"M": {"price": {"N": "1"}}}, {"M": {"price": {"N": "2"}}}]},
    "grid": {"L": [{"L": [{"N": "1"}, {"N": "2"}]}]},
    "tags": {"SS": ["a", "b"]},
    "paid": {"BOOL": True},
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("quantity", ("N", "10")),
        ("customer.address.country", ("S", "DE")),
        (" customer . address . country ", ("S", "DE")),
        ("lines[1].price", ("N", "2")),
        ("grid[0][1]", ("N", "2")),
        ('"unit.price"', ("N", "2.5")),
        (r'"a\"b\\c"', ("S", "quoted")),
        ('customer."address".country', ("S", "DE")),
        ("tags", ("SS", ["a", "b"])),
        ("paid", ("BOOL", True)),
    ],
)
def test_path_to_a_value__finds_its_type_and_content(path: str, found: tuple[str, Any]) -> None:
    assert parse_path(path).find(IMAGE) == found


@pytest.mark.parametrize(
    "path",
    [
        "absent",
        "absent.deeper[3]",
        "nothing",
        "nothing.deeper",
        "nothing[0]",
        "customer.phone",
        "customer.name",
        "customer.name.first",
        "lines[2]",
        "lines[2].price",
        "lines[0].tax",
        "unit.price",
    ],
)
def test_path_to_nothing_or_to_null__finds_nothing(path: str) -> None:
    assert parse_path(path).find(IMAGE) is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("quantity.amount", "quantity.amount: the path leads into a value of type N, not a map"),
        ("quantity[0]", "quantity[0]: the path leads into a value of type N, not a list"),
        ("lines.price", "lines.price: the path leads into a value of type L, not a map"),
        ("customer[0]", "customer[0]: the path leads into a value of type M, not a list"),
        ("tags[0]", "tags[0]: the path leads into a value of type SS, not a list"),
        ("customer.address.country.code", "customer.address.country.code: the path leads into a value of type S"),
    ],
)
def test_path_through_a_value_of_another_kind__is_malformed(path: str, reason: str) -> None:
    with pytest.raises(MalformedValueError) as refused:
        parse_path(path).find(IMAGE)

    assert str(refused.value).startswith(reason)


@pytest.mark.parametrize(
    "value",
    [
        *(None, 10, "10", True, [], [{"N": "1"}]),
        *({}, {"N": "1", "S": "1"}, {"X": "1"}, {"n": "1"}, {"": "1"}),
    ],
)
@pytest.mark.parametrize("path", ["a", "a.b", "a[0]", "m.a", "l[0]"])
def test_value_that_is_not_typed_json__is_malformed(path: str, value: object) -> None:
    image = {"a": value, "m": {"M": {"a": value}}, "l": {"L": [value]}}

    with pytest.raises(MalformedValueError, match="not a DynamoDB attribute value"):
        parse_path(path).find(image)


def test_value_as_aws_lambda_go_writes_it__is_named() -> None:
    with pytest.raises(MalformedValueError, match="it has the types BOOL, N, S side by side"):
        parse_path("a").find({"a": {"N": None, "S": "data", "BOOL": None}})


@pytest.mark.parametrize(("path", "value"), [("a.b", {"M": 5}), ("a.b", {"M": None}), ("a[0]", {"L": "text"})])
def test_container_without_content_of_its_type__is_malformed(path: str, value: object) -> None:
    with pytest.raises(MalformedValueError, match="the path leads into"):
        parse_path(path).find({"a": value})


def test_reason__never_holds_the_value() -> None:
    image = {"a": {"S": "secret"}, "b": "secret", "c": {"secret": "secret"}}

    for path in ("a.b", "a[0]", "b", "c"):
        with pytest.raises(MalformedValueError) as refused:
            parse_path(path).find(image)

        assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "a.", ".a", "a..b", "a b", "[0]", "a.[0]", '""', '"a', 'a"b"', '"a"b'),
        *("a[", "a[]", "a[1", "a]", "a[x]", "a[-1]", "a[1.5]", "a[1][", "a[1]b", "a [0]", "a[٣]", "a[1234567890]"),
        *(
            "a*b",
            "a.*",
            "a[*]",
            "price+shipping",
            "price/100",
            "-price",
            "sum(a)",
            "a,b",
            "a=b",
            "a<b",
            "a&b",
            "a|b",
            "!a",
        ),
        *("a%2", "a^2", "{a}", "'a'", "`a`", "5", "100.5", "$.a", "@.a", "$", "a.-b"),
    ],
)
def test_text_that_is_not_a_path__is_refused_with_the_place(text: str) -> None:
    with pytest.raises(ValueError, match="is not an attribute path") as refused:
        parse_path(text)

    assert repr(text) in str(refused.value)


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("quantity", "quantity"),
        (' "quantity" ', "quantity"),
        ('"a" . "b"[00]', "a.b[0]"),
        ('"a.b"', '"a.b"'),
        (r'"a\b"', "ab"),
        (r'"a\"b"', r'"a\"b"'),
        ('"a b"', '"a b"'),
        ('"a+b"', '"a+b"'),
        ('"5".5', '"5".5'),
        ('"$"."$"', '"$".$'),
        ('"order-date"', "order-date"),
        ("aws:rep#x$y@z?", "aws:rep#x$y@z?"),
        ("größe", "größe"),
    ],
)
def test_path__has_one_spelling(text: str, spelling: str) -> None:
    assert parse_path(text).text == spelling


@given(st.lists(st.tuples(st.text(min_size=1), st.lists(st.integers(0, 999_999_999), max_size=3)), min_size=1))
def test_path_of_any_names__is_read_back_from_its_spelling(parts: list[tuple[str, list[int]]]) -> None:
    quoted = (
        '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"' + "".join(f"[{index}]" for index in indexes)
        for name, indexes in parts
    )

    path = parse_path(".".join(quoted))

    assert path.steps == tuple(step for name, indexes in parts for step in (name, *indexes))
    assert parse_path(path.text) == path


@given(st.text())
def test_any_text__is_a_path_or_a_value_error(text: str) -> None:
    try:
        path = parse_path(text)
    except ValueError:
        return

    assert isinstance(path, AttributePath)
    assert parse_path(path.text) == path


# --- Products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "paths", "constant"),
    [
        ("quantity", ["quantity"], "1"),
        ("quantity * price.net", ["quantity", "price.net"], "1"),
        ("price * 1.19", ["price"], "1.19"),
        ("1.19*price", ["price"], "1.19"),
        ("amount * -1", ["amount"], "-1"),
        ("a * 2 * b * 0.5", ["a", "b"], "1"),
        ("price * 1e-2", ["price"], "0.01"),
        ("price * 0.12345678901234567890123456789012345678", ["price"], "0.12345678901234567890123456789012345678"),
        ('"price+shipping" * "a*b"', ['"price+shipping"', '"a*b"'], "1"),
        (r'"a\"*\"b" * 2', [r'"a\"*\"b"'], "2"),
        ('"unit-price" * "1.19"', ["unit-price", '"1.19"'], "1"),
    ],
)
def test_product__is_of_paths_and_numbers(text: str, paths: list[str], constant: str) -> None:
    found, number = parse_product(text)

    assert [path.text for path in found] == paths
    assert number == Decimal(constant)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "a *", "* a", "a ** b", "a * * b", "price+shipping", "price / 100", "price/100", "-amount", "a - b"),
        *("price-discount", "sum(amount)", "lines[*].qty", "lines[].qty", "a b", "quantity x price", "price * 1,19"),
        *("price * 10%", "price * (1 + tax)", "price * 1 000", '"price', "price * 'a'", "$.price", "price * NaN."),
    ],
)
def test_text_that_is_no_product__is_refused_whole(text: str) -> None:
    with pytest.raises(ValueError, match="is not a product of attribute paths and numbers, such as") as refused:
        parse_product(text)

    assert str(refused.value).startswith(repr(text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("5", "'5' has no attribute path"),
        ("1.19 * 2", "'1.19 * 2' has no attribute path"),
        ("price * 0", "'price * 0' is always 0"),
        ("price * 1e-100 * 1e-100", "'price * 1e-100 * 1e-100': the product of its numbers does not fit"),
        ("price * 1e400", "1e400 does not fit a DynamoDB number"),
        (f"price * 1.{'1' * 38}", f"1.{'1' * 38} does not fit a DynamoDB number"),
    ],
)
def test_product_that_cannot_be_meant__is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        parse_product(text)


NAMES = st.text(min_size=1)
NUMBERS = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-999, max_value=999).filter(bool)


@given(st.lists(NAMES | NUMBERS, min_size=1, max_size=5))
def test_product_of_any_quoted_names_and_numbers__is_read(factors: list[str | Decimal]) -> None:
    names = [factor for factor in factors if isinstance(factor, str)]
    quoted = (
        str(factor) if isinstance(factor, Decimal) else '"' + factor.replace("\\", "\\\\").replace('"', '\\"') + '"'
        for factor in factors
    )
    if not names:
        return

    paths, constant = parse_product("*".join(quoted))

    assert [path.steps for path in paths] == [(name,) for name in names]
    assert Fraction(constant) == math.prod(Fraction(factor) for factor in factors if isinstance(factor, Decimal))

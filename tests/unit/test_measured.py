"""Measured expressions: sums over lists, and what they are worth where something is absent or of a wrong type."""

import json
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.measured import MeasuredExpression

SUM = "sum(lines[].quantity)"


def number(expression: str, image: dict[str, Any]) -> Decimal | None:
    return MeasuredExpression(expression, "total").number(image)


def lines(*quantities: dict[str, Any]) -> dict[str, Any]:
    return {"lines": {"L": [{"M": {"quantity": quantity}} for quantity in quantities]}}


@pytest.mark.parametrize(
    ("expression", "image", "expected"),
    [
        (SUM, lines({"N": "2"}, {"N": "3.5"}), "5.5"),
        ("sum(lines[*].quantity)", lines({"N": "2"}), "2"),
        ("lines[].quantity | sum(@)", lines({"N": "2"}), "2"),
        ("sum(lines[?quantity > `2`].quantity)", lines({"N": "2"}, {"N": "3"}), "3"),
        ("length(lines)", lines({"N": "2"}, {"N": "3"}), "2"),
        ("length(lines[?quantity > `2`])", lines({"N": "2"}, {"N": "3"}), "1"),
        ("max(lines[].quantity)", lines({"N": "2"}, {"N": "3"}), "3"),
        ("lines[-1].quantity", lines({"N": "2"}, {"N": "3"}), "3"),
        ("sum([price, shipping])", {"price": {"N": "10"}, "shipping": {"N": "2"}}, "12"),
        ("sum(sizes)", {"sizes": {"NS": ["1", "2.5"]}}, "3.5"),
        ("length(tags)", {"tags": {"SS": ["a", "b"]}}, "2"),
        ("sum(values(stock))", {"stock": {"M": {"a": {"N": "1"}, "b": {"N": "2"}}}}, "3"),
        ("sum(stock.*)", {"stock": {"M": {"a": {"N": "1"}, "b": {"N": "2"}}}}, "3"),
        ("to_number(text)", {"text": {"S": "1.50"}}, "1.5"),
        ("ceil(price)", {"price": {"N": "0.1"}}, "1"),
        ("price", {"price": {"N": "-0.10"}}, "-0.1"),
        # An empty list is something; what a line lacks adds nothing to its sum.
        (SUM, lines(), "0"),
        ("length(lines)", lines(), "0"),
        (SUM, {"lines": {"L": [{"M": {}}, {"M": {"quantity": {"NULL": True}}}, {"M": {"quantity": {"N": "1"}}}]}}, "1"),
        (SUM, {"lines": {"L": [{"NULL": True}]}}, "0"),
        (f"{SUM} || `0`", {}, "0"),
        (f"not_null({SUM}, other)", {"other": {"N": "7"}}, "7"),
    ],
)
def test_expression__gives_a_number(expression: str, image: dict[str, Any], expected: str) -> None:
    assert number(expression, image) == Decimal(expected)


@pytest.mark.parametrize("image", [{}, {"lines": {"NULL": True}}, {"order": {"NULL": True}}])
@pytest.mark.parametrize(
    "expression",
    [
        *(SUM, "length(lines)", "max(lines[].quantity)", "lines[0].quantity", "sum(order.lines[].quantity)"),
        *("sum(lines[*].parts[].n)", "sum(lines.*)", "sum([lines, `1`])", "lines[?a].b | sum(@)", "sum(lines[0:1])"),
    ],
)
def test_attribute_that_is_absent_or_null__gives_nothing(expression: str, image: dict[str, Any]) -> None:
    assert number(expression, image) is None


def test_maximum_of_an_empty_list__gives_nothing() -> None:
    assert number("max(lines[].quantity)", lines()) is None


@pytest.mark.parametrize(
    ("expression", "image", "reason"),
    [
        (SUM, lines({"N": "1"}, {"S": "two"}), "cannot be evaluated on the image (sum() takes no string there)"),
        (SUM, lines({"S": "two"}, {"NULL": True}), "cannot be evaluated on the image (sum() takes no string there)"),
        (SUM, lines({"N": "1"}, {"N": "x"}), "cannot be evaluated on the image (ValueError)"),
        (SUM, {"lines": {"S": "none"}}, "leads into a text where a list belongs"),
        (SUM, {"lines": {"N": "1"}}, "leads into a number where a list belongs"),
        (SUM, {"lines": {"M": {"quantity": {"N": "1"}}}}, "leads into a map where a list belongs"),
        (SUM, {"lines": {"L": [{"S": "two"}]}}, "leads into a text where a map belongs"),
        ("lines[0].quantity", {"lines": {"BOOL": True}}, "leads into true or false where a list belongs"),
        ("sum(lines[*].quantity)", {"lines": {"S": "none"}}, "leads into a text where a list belongs"),
        ("sum(lines[?a].quantity)", {"lines": {"S": "none"}}, "leads into a text where a list belongs"),
        ("sum(lines[0:1])", {"lines": {"S": "none"}}, "leads into a text where a list belongs"),
        ("sum(lines.*)", {"lines": {"L": []}}, "leads into a list where a map belongs"),
        ("price", {"price": {"S": "10"}}, "gives a text where a number belongs"),
        ("price", {"price": {"BOOL": True}}, "gives true or false where a number belongs"),
        ("price", {"price": {"L": []}}, "gives a list where a number belongs"),
        ("price", {"price": {"M": {}}}, "gives a map where a number belongs"),
        (SUM, lines({"N": "1E37"}, {"N": "0.1"}), "gives what does not fit a DynamoDB number (38 digits)"),
    ],
)
def test_value_of_a_wrong_type__is_malformed(expression: str, image: dict[str, Any], reason: str) -> None:
    with pytest.raises(MalformedValueError) as refused:
        number(expression, image)

    assert str(refused.value) == f"total: {expression!r} {reason}"


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("lines[].quantity", "gives a list, not a number, which sum(…) or length(…) would"),
        ("lines[*].quantity", "gives a list, not a number"),
        ("lines[]", "gives a list, not a number"),
        ("lines[0:2]", "gives a list, not a number"),
        ("lines[?a]", "gives a list, not a number"),
        ("stock.*", "gives a list, not a number"),
        ("[a, b]", "gives a list, not a number"),
        ("{a: b}", "gives a map, not a number"),
        ("a == b", "gives true or false, not a number"),
        ("!a", "gives true or false, not a number"),
        ("'1'", "gives a text, not a number"),
        ("`null`", "gives null, not a number"),
        ("keys(a)", "gives what keys() gives, not a number"),
        ("a || 'none'", "gives a text, not a number"),
        ("a && contains(b, 'c')", "gives what contains() gives, not a number"),
        ("avg(lines[].quantity)", "an average cannot be exact"),
        ("ceil(avg(lines[].quantity))", "an average cannot be exact"),
        ("price * quantity", "is not a JMESPath expression"),
        ("price * 1.19", "is not a JMESPath expression"),
        ("price - 1", "is not a JMESPath expression"),
        ("price / 100", "is not a JMESPath expression"),
    ],
)
def test_expression_that_can_never_be_an_exact_number__is_refused(expression: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        MeasuredExpression(expression, "total")

    assert repr(expression) in str(refused.value)


QUANTITIES = st.builds(lambda digits, places: f"{digits}E-{places}", st.integers(-(10**18), 10**18), st.integers(0, 18))


@given(st.lists(QUANTITIES, max_size=8))
def test_sum_over_any_list__is_exact(quantities: list[str]) -> None:
    total = number(SUM, lines(*({"N": quantity} for quantity in quantities)))

    assert total is not None
    assert Fraction(total) == sum(map(Fraction, quantities))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abq"), inner, max_size=2),
    max_leaves=8,
)


@given(JSON)
def test_sum_over_anything__is_the_sum_of_its_numbers_or_refused(value: Any) -> None:
    """An independent reading of `sum(lines[].q)`: what is absent or null adds nothing, all else must be a number."""
    image = {} if value is None else {"lines": _typed(value)}

    try:
        total = number("sum(lines[].q)", image)
    except MalformedValueError:
        total = Decimal("NaN")

    assert str(total) == str(_expected(value))


PIECES = [
    "a",
    "b",
    "&",
    ".",
    "[]",
    "[*]",
    "[?",
    "]",
    "[0]",
    "sum(",
    ")",
    "length(",
    "map(",
    ",",
    "@",
    "`1`",
    "||",
    "|",
    "*",
]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join), JSON)
def test_any_expression__is_refused_or_gives_a_number_or_nothing(expression: str, value: Any) -> None:
    try:
        total = number(expression, {"a": _typed(value), "b": {"L": [{"N": "1"}]}})
    except ValueError:  # MalformedValueError is one, too
        return

    assert total is None or isinstance(total, Decimal)


@pytest.mark.parametrize("expression", ["(&a).b", "(&a)[0]", "sum((&a)[])", "not_null(&a)"])
def test_reference_to_an_expression__is_not_a_number(expression: str) -> None:
    with pytest.raises(MalformedValueError, match="something else"):
        number(expression, {"a": {"N": "1"}})


def _expected(value: Any) -> Any:
    if value is None:
        return None
    if not isinstance(value, list):
        return Decimal("NaN")
    flat = [inner for entry in value for inner in (entry if isinstance(entry, list) else [entry])]
    if any(entry is not None and not isinstance(entry, dict) for entry in flat):
        return Decimal("NaN")
    numbers = [entry["q"] for entry in flat if entry is not None and entry.get("q") is not None]
    if any(isinstance(entry, bool) or not isinstance(entry, int) for entry in numbers):
        return Decimal("NaN")
    return Decimal(sum(numbers))


def _typed(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"M": {name: _typed(inner) for name, inner in value.items()}}
    if isinstance(value, list):
        return {"L": [_typed(inner) for inner in value]}
    if value is None:
        return {"NULL": True}
    if isinstance(value, bool):
        return {"BOOL": value}
    return {"S": value} if isinstance(value, str) else {"N": json.dumps(value)}

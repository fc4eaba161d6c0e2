"""The `where` of an aggregation."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.where import Where

IMAGE: dict[str, Any] = {
    "status": {"S": "paid"},
    "empty": {"S": ""},
    "quantity": {"N": "10"},
    "price": {"N": "0.1"},
    "zero": {"N": "0"},
    "text_number": {"S": "1.50"},
    "big": {"N": "12345678901234567890123456789012345678"},
    "gift": {"BOOL": True},
    "refunded": {"BOOL": False},
    "coupon": {"NULL": True},
    "picture": {"B": "AAEC"},
    "tags": {"SS": ["new", "sale"]},
    "sizes": {"NS": ["1", "2.5"]},
    "pictures": {"BS": ["AAEC"]},
    "customer": {"M": {"country": {"S": "DE"}, "orders": {"N": "3"}}},
    "lines": {"L": [{"M": {"price": {"N": "0.1"}}}, {"M": {"price": {"N": "0.2"}}}]},
    "nobody": {"M": {}},
    "none": {"L": []},
}


@pytest.mark.parametrize(
    "expression",
    [
        "status == 'paid'",
        "status != 'open'",
        "quantity > `9` && quantity <= `10`",
        "quantity == `10.0`",
        "price == `0.1`",
        "price < `0.11` && price > `0.09`",
        "contains(`[0.1, 0.2]`, price)",
        "big == `12345678901234567890123456789012345678`",
        "big != `12345678901234567890123456789012345679`",
        "zero",
        "gift",
        "!refunded",
        "!coupon",
        "coupon == `null`",
        "picture == 'AAEC' && contains(pictures, 'AAEC')",
        "contains(tags, 'sale')",
        "contains(sizes, `2.5`)",
        "customer.country == 'DE' && customer.orders >= `3`",
        "lines[?price > `0.15`]",
        "sum(lines[].price) == `0.3`",
        "abs(price) < `1` && ceil(price) == `1` && floor(price) == `0`",
        "max(lines[].price) == `0.2` && min_by(lines, &price).price == `0.1`",
        "sort_by(lines, &price)[0].price == `0.1`",
        "avg(lines[].price) == `0.15`",
        "sum([big, `0.25`]) == sum([`0.25`, big])",
        "type(price) == 'number' && type(quantity) == 'number' && type(status) == 'string' && type(gift) == 'boolean'",
        "to_number(price) == `0.1` && to_number(text_number) == `1.5` && to_number('0.1') == `0.1`",
        "to_number(status) == `null` && to_number(gift) == `null` && to_number(tags) == `null`",
        "to_string(price) == '0.1' && to_string(quantity) == '10' && to_string(status) == 'paid'",
        "merge(customer, nobody)",
    ],
)
def test_expression_that_is_true_of_an_image__counts_it(expression: str) -> None:
    assert Where(expression)(IMAGE)


@pytest.mark.parametrize(
    "expression",
    [
        "status == 'open'",
        "absent",
        "absent == 'x'",
        "absent > `1`",
        "customer.absent.deeper",
        "empty",
        "nobody",
        "none",
        "refunded",
        "coupon",
        "quantity == '10'",
        "gift == `1`",
        "lines[?price > `1`]",
        "price == `0.1000000001`",
    ],
)
def test_expression_that_is_false_null_or_empty__counts_nothing(expression: str) -> None:
    assert not Where(expression)(IMAGE)


def test_sum_in_an_expression__is_not_rounded() -> None:
    image = {"parts": {"L": [{"N": "1E30"}, {"N": "0.5"}, {"N": "-1E30"}]}}

    assert Where("sum(parts) == `0.5`")(image)


@pytest.mark.parametrize(
    "expression",
    [
        *("[", "a[", "a ==", "== a", "a = 'b'", "a & b", "'open", "`{", "a.", "(a", "{a: }", "a b", "#", "\x00"),
        *("nonsense(a)", "length()", "length(a, b)", "contains(tags)", "not_null()", "a && foo(b)", "a[?foo(@)]"),
        *("price > `NaN`", "price > `1e400`", "price == `[Infinity]`", 'price == `{"a": NaN}`'),
        *("(" * 5_000, "!" * 5_000 + "a", "a[" + "1" * 5_000 + "]"),
    ],
)
def test_expression_that_can_never_work__is_refused_at_once(expression: str) -> None:
    with pytest.raises(ValueError, match="is not a JMESPath expression: "):
        Where(expression)


@pytest.mark.parametrize(
    ("image", "expression"),
    [
        (IMAGE, "length(quantity)"),
        (IMAGE, "status > `1`"),
        (IMAGE, "starts_with(quantity, 'a')"),
        (IMAGE, "sum(tags)"),
        (IMAGE, "lines[::0]"),
        (IMAGE, "to_string(&status)"),
        ({"a": {"N": "NaN"}}, "a"),
        ({"a": {"N": "1" * 39}}, "a"),
        ({"a": {"N": 5}}, "a"),
        ({"a": {"NS": ["1", "x"]}}, "a"),
        ({"a": {"NS": 5}}, "a"),
        ({"a": {"M": 5}}, "a"),
        ({"a": {"M": {"b": 5}}}, "a"),
        ({"a": {"L": 5}}, "a"),
        ({"a": {"L": [5]}}, "a"),
        ({"a": None}, "a"),
        ({"a": "text"}, "a"),
        ({"a": {}}, "a"),
        ({"a": {"S": "b", "N": "1"}}, "a"),
        ({"a": {"X": "b"}}, "a"),
    ],
)
def test_image_that_where_cannot_evaluate__is_malformed(image: dict[str, Any], expression: str) -> None:
    with pytest.raises(MalformedValueError, match=r"^where: .* cannot be evaluated on the image \(\w+\)$"):
        Where(expression)(image)


def test_image_nested_too_deep_for_python__is_malformed() -> None:
    value: dict[str, Any] = {"S": "bottom"}
    for _ in range(100_000):
        value = {"L": [value]}

    with pytest.raises(MalformedValueError, match="RecursionError"):
        Where("a")({"a": value})


def test_reason__never_holds_a_value() -> None:
    with pytest.raises(MalformedValueError) as refused:
        Where("abs(status)")({"status": {"S": "secret"}})

    assert "secret" not in str(refused.value)


def test_same_expression_compiled_twice__means_the_same() -> None:
    first, second = Where("price == `0.1`"), Where("price == `0.1`")

    assert first(IMAGE)
    assert second(IMAGE)


@pytest.mark.filterwarnings("ignore:deprecated string literal syntax:PendingDeprecationWarning")
@given(st.text() | st.text(alphabet="ab.[]*?@&|!=<>'`\"(){},:-01 "))
def test_any_expression__is_refused_or_evaluated_or_malformed(expression: str) -> None:
    try:
        Where(expression)(IMAGE)
    except ValueError:  # MalformedValueError is one, too
        return

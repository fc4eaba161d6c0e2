"""The `where` of an aggregation."""

import json
import re
from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jmespath.functions import Functions

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.expressions import Where

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
        "avg([`1`, quantity]) == `5.5` && avg([big, big]) == big",
        "avg([`9007199254740993`, `9007199254740994`]) == `9007199254740993.5`",
        "to_string(lines) == '[{\"price\":0.1},{\"price\":0.2}]' && to_string([gift, coupon]) == '[true,null]'",
        "to_string([big, `0.12345678901234567`]) == '[12345678901234567890123456789012345678,0.12345678901234567]'",
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


@pytest.mark.parametrize("digits", ["0.12345678901234567890123456789012345678", "9007199254740993.5"])
def test_number_in_an_expression__is_not_rounded(digits: str) -> None:
    other = digits[:-1] + ("6" if digits[-1] != "6" else "7")

    assert Where(f"a == `{digits}`")({"a": {"N": digits}})
    assert not Where(f"a == `{digits}`")({"a": {"N": other}})
    assert Where(f"contains(`[1, {digits}]`, a)")({"a": {"N": digits}})


# --- What is absent or NULL -----------------------------------------------------------------------------------------

ABSENT = [{}, {"absent": {"NULL": True}}]


@pytest.mark.parametrize("image", ABSENT)
@pytest.mark.parametrize(
    "expression",
    [
        "contains(absent, 'x')",
        "contains('x', absent)",
        "starts_with(absent, 'a')",
        "starts_with(absent.deeper, 'a')",
        "ends_with('abc', absent)",
        "length(absent)",
        "length(absent) > `0`",
        "length(absent) == `0`",
        "length(@.absent) > `0`",
        "abs(absent) > `1`",
        "sum(absent[].price)",
        "sum(`[1]`) < sum(absent)",
        "sum([absent, `1`])",
        "max([`1`, absent])",
        "join(', ', [absent])",
        "keys(absent)",
        'merge(absent, `{"a": 1}`)',
        'merge(`{"a": 1}`, absent)',
        "map(&length(@), absent)",
        "sort_by(`[{}]`, &price)",
        'max_by(`[{"price": 1}, {}]`, &price)',
        "floor(ceil(absent))",
        "absent && contains(absent, 'x')",
        "contains(absent, 'x') || starts_with(absent, 'x')",
    ],
)
def test_function_of_what_is_absent__counts_nothing(expression: str, image: dict[str, Any]) -> None:
    assert not Where(expression)(image)


@pytest.mark.parametrize("image", ABSENT)
@pytest.mark.parametrize(
    "expression",
    [
        "!contains(absent, 'x')",
        "!starts_with(absent, 'a')",
        "contains(absent, 'x') || `true`",
        "not_null(absent, 'other') == 'other'",
        "not_null(length(absent), `0`) == `0`",
        "type(absent) == 'null'",
        "to_string(absent) == 'null'",
        "length(absent) == `null`",
        "contains(`[null]`, absent)",
        'length(`[{}, {"tags": [1]}]`[?contains(tags, `1`)]) == `1`',
    ],
)
def test_null__is_not_true_and_can_be_asked_for(expression: str, image: dict[str, Any]) -> None:
    assert Where(expression)(image)


# An argument that a function takes, by the first type that its signature names.
ARGUMENTS = {"array": "`[1]`", "expref": "&@", "number": "`1`", "object": "`{}`", "string": "'a'"}
CALLS_WITH_NULL = [
    f"{name}({', '.join('absent' if place == of_null else argument for place, argument in enumerate(arguments))})"
    for name, function in Functions.FUNCTION_TABLE.items()
    for kinds in [[(parameter["types"] or ["number"])[0] for parameter in function["signature"]]]
    for arguments in [[ARGUMENTS[kind.partition("-")[0]] for kind in kinds]]
    for of_null, parameter in enumerate(function["signature"])
    if parameter["types"] and parameter["types"] != ["expref"]
]


@pytest.mark.parametrize("image", ABSENT)
@pytest.mark.parametrize("call", CALLS_WITH_NULL)
def test_every_function__gives_null_for_null_unless_it_takes_null(call: str, image: dict[str, Any]) -> None:
    assert Where(f"{call} == `null`")(image)


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        *(
            (expression, f"\"{name}\" is an attribute's name; a text is written in single quotes, '{name}'")
            for expression, name in (
                ('status == "paid"', "paid"),
                ('status != "paid"', "paid"),
                ('"paid" == status', "paid"),
                ('status == ("in progress")', "in progress"),
                ('status > "2024-01-01"', "2024-01-01"),
                ("status == 'open' || (status == \"paid\" && !gift)", "paid"),
                ('lines[?kind == "book"]', "book"),
                ('sort_by(lines, &price)[?kind == "book"]', "book"),
                ('contains(tags, "vip")', "vip"),
                ('starts_with(status, "p")', "p"),
                ('not_null(status, "none")', "none"),
                ('join(", ", tags)', ", "),
                ('contains(["paid", "open"], status)', "paid"),
            )
        ),
        *(
            (expression, f"a number is written in backticks, `{number}`")
            for expression, number in (
                ("quantity > 5", "5"),
                ("quantity >= -5", "-5"),
                ("0.5 < price", "0.5"),
                ("price == 1e3", "1e3"),
                ("length(tags) > 2", "2"),
                ("contains(sizes, 2.5)", "2.5"),
                ("lines[?price > 10]", "10"),
            )
        ),
        *(
            (expression, f"`{text}` is not JSON; a text is written in single quotes, '{text}'")
            for expression, text in (
                ("status == `paid`", "paid"),
                ("gift == `True`", "True"),
                ("quantity == `05`", "05"),
                ("price == `1,19`", "1,19"),
                ("contains(tags, `vip`)", "vip"),
            )
        ),
        *(
            (expression, f"{name} is an attribute's name; the value is written in backticks, `{name}`")
            for expression, name in (
                ("gift == true", "true"),
                ("gift != false", "false"),
                ("null == coupon", "null"),
                ("contains([true, false], gift)", "true"),
                ("not_null(gift, false)", "false"),
            )
        ),
    ],
)
def test_name_or_number_that_is_meant_as_a_value__is_refused(expression: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        Where(expression)

    assert str(refused.value).startswith(repr(expression))


@pytest.mark.parametrize(
    ("expression", "image"),
    [
        ("\"order-status\" == 'paid'", {"order-status": {"S": "paid"}}),
        ("'paid' == \"order-status\"", {"order-status": {"S": "paid"}}),
        ('status == @."order-status"', {"order-status": {"S": "paid"}, "status": {"S": "paid"}}),
        ('"order-status"', {"order-status": {"S": "paid"}}),
        ('length("order-lines") == `1`', {"order-lines": {"L": [{"N": "1"}]}}),
        ("contains(\"order-tags\", 'vip')", {"order-tags": {"SS": ["vip"]}}),
        ('customer."first name" == `"Ann"`', {"customer": {"M": {"first name": {"S": "Ann"}}}}),
        ('sort_by(lines, &"unit-price")', {"lines": {"L": [{"M": {"unit-price": {"N": "1"}}}]}}),
        ("flags.true == `true`", {"flags": {"M": {"true": {"BOOL": True}}}}),
        ("lines[0] && lines[-1] && lines[0:2]", {"lines": {"L": [{"N": "1"}]}}),
    ],
)
def test_quoted_name_that_is_meant_as_one__is_read(expression: str, image: dict[str, Any]) -> None:
    assert Where(expression)(image)


@given(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.text(min_size=1), st.booleans())
def test_any_quoted_text_beside_a_path__is_refused(comparison: str, text: str, quoted_first: bool) -> None:
    sides = ["status", json.dumps(text)]

    with pytest.raises(ValueError, match="is written in single quotes"):
        Where(f" {comparison} ".join(reversed(sides) if quoted_first else sides))


def test_single_equals_sign__is_told_to_be_two() -> None:
    with pytest.raises(ValueError, match=r"is not a JMESPath expression: values are compared with ==, at column 8$"):
        Where("status = 'paid'")


def test_mistake__is_told_in_one_line() -> None:
    for expression in ("status = 'paid'", "a AND b", "(a", "a[", "'open", "length("):
        with pytest.raises(ValueError, match="is not a JMESPath expression: ") as refused:
            Where(expression)

        assert "\n" not in str(refused.value)


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
    with pytest.raises(MalformedValueError, match=r"^where: .* cannot be evaluated on the image \([\w() ]+\)$"):
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


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("length(quantity)", "length() takes no number there"),
        ("starts_with(tags, 'a')", "starts_with() takes no array there"),
        ("sum(tags)", "sum() takes no string there"),
        ("abs(gift)", "abs() takes no boolean there"),
        ("status > `1`", "values of different types"),
        ("contains(status, `1`)", "values of different types"),
    ],
)
def test_reason__names_the_function_and_the_type(expression: str, reason: str) -> None:
    with pytest.raises(MalformedValueError, match=re.escape(f"cannot be evaluated on the image ({reason})")):
        Where(expression)(IMAGE)


def test_attributes_that_are_not_asked_for__are_not_read() -> None:
    image = {"status": {"S": "paid"}, "other": {"N": "not a number"}}

    assert Where("status == 'paid' && length(status) > `1`")(image)
    with pytest.raises(MalformedValueError):
        Where("length(@) == `2`")(image)


def test_same_expression__means_the_same_to_others_who_use_jmespath() -> None:
    expression = 'price == `0.1` && tags[?@ == "x"]'

    with pytest.raises(ValueError, match="single quotes"):
        Where(expression)

    assert jmespath.search(expression, {"price": 0.1, "tags": [None]}) == []


@given(st.text() | st.text(alphabet="ab.[]*?@&|!=<>'`\"(){},:-01 "))
def test_any_expression__is_refused_or_evaluated_or_malformed(expression: str) -> None:
    try:
        Where(expression)(IMAGE)
    except ValueError:  # MalformedValueError is one, too
        return

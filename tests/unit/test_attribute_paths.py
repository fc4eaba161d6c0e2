"""Paths into images in DynamoDB's typed JSON."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.attribute_paths import AttributePath, MalformedValueError, parse_path

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
        *("a*b", "a.*", "a[*]"),
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

"""The write-unit calculator against AWS's published rules and examples."""

from dataclasses import replace
from typing import Any

import pytest

from tests.benchmarks.workloads import REFERENCE, TEN_GROUPS, Choice, Kind
from tests.benchmarks.write_units import Meter, Request, item_bytes, price, value_bytes, write_units

KEYS = {"table": ("id",)}


def test_item_size__of_the_developer_guides_example() -> None:
    # "shirt-color" R and "shirt-size" M: 23 bytes ("Item sizes and formats", Amazon DynamoDB developer guide).
    assert item_bytes({"shirt-color": {"S": "R"}, "shirt-size": {"S": "M"}}) == 23


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": ""}, 0),
        ({"S": "Größe"}, 7),
        ({"N": "0"}, 1),
        ({"N": "7"}, 2),
        ({"N": "27"}, 2),
        ({"N": "-27"}, 3),
        ({"N": "461"}, 3),
        ({"N": "1000000"}, 2),  # leading and trailing zeros are trimmed
        ({"N": "0.0012"}, 2),
        ({"N": "1.5E+90"}, 2),
        ({"N": "9" * 38}, 20),
        ({"B": "aGVsbG8="}, 5),  # the raw bytes, not their base64
        ({"BOOL": True}, 1),
        ({"NULL": True}, 1),
        ({"L": []}, 3),
        ({"M": {}}, 3),
        ({"L": [{"N": "1"}, {"S": "ab"}]}, 3 + (1 + 2) + (1 + 2)),
        ({"M": {"name": {"S": "ab"}}}, 3 + 1 + 4 + 2),
        ({"SS": ["a", "bc"]}, 3),
        ({"NS": ["1", "22"]}, 4),
    ],
)
def test_value_size__follows_the_rule_of_its_type(value: dict[str, Any], size: int) -> None:
    assert value_bytes(value) == size


def test_value_of_an_unknown_type__is_refused() -> None:
    with pytest.raises(ValueError, match="'X'"):
        value_bytes({"X": "1"})


@pytest.mark.parametrize(
    ("before", "after", "units"),
    [
        (None, 0, 1),
        (None, 1024, 1),
        (None, 1025, 2),
        # "Conditional writes": an item of 300 KB and an update that makes it 310 KB.
        (300 * 1024, 310 * 1024, 310),
        (300 * 1024, None, 300),
        # An update that shrinks an item costs what the larger one does.
        (310 * 1024, 300 * 1024, 310),
        (None, None, 1),
    ],
)
def test_write_units__count_the_larger_item_in_whole_kilobytes(
    before: int | None, after: int | None, units: int
) -> None:
    assert write_units(before, after) == units


def test_transaction__costs_twice_as_much_for_each_item() -> None:
    meter = Meter(KEYS)
    small: dict[str, Any] = {"Put": {"TableName": "table", "Item": {"id": {"S": "1"}}}}
    large: dict[str, Any] = {"Put": {"TableName": "table", "Item": {"id": {"S": "2"}, "text": {"S": "x" * 2_000}}}}

    meter.add(Request("transact_write_items", {"TransactItems": [small, large]}))

    assert (meter.requests, meter.units, meter.wasted) == (1, 2 * 1 + 2 * 2, 0)


def test_cancelled_transaction__is_charged_and_changes_nothing() -> None:
    meter = Meter(KEYS)
    large: dict[str, Any] = {"Put": {"TableName": "table", "Item": {"id": {"S": "2"}, "text": {"S": "x" * 2_000}}}}
    meter.add(Request("put_item", large["Put"]))

    for _ in range(2):
        meter.add(Request("transact_write_items", {"TransactItems": [large]}, failed=True))

    assert (meter.units, meter.wasted) == (2 + 4 + 4, 8)


def test_updates__grow_the_item_they_are_charged_for() -> None:
    meter = Meter(KEYS)
    update: dict[str, Any] = {
        "TableName": "table",
        "Key": {"id": {"S": "1"}},
        "UpdateExpression": "SET #0 = :0, expires_at = :expires_at",
        "ExpressionAttributeNames": {"#0": "text"},
        "ExpressionAttributeValues": {":0": {"S": "x" * 1_100}, ":expires_at": {"N": "1794835658"}},
    }
    added: dict[str, Any] = {
        "TableName": "table",
        "Key": {"id": {"S": "1"}},
        "UpdateExpression": "ADD quantity :quantity",
        "ExpressionAttributeValues": {":quantity": {"N": "60"}},
    }

    for parameters in (added, update, added):
        meter.add(Request("update_item", parameters))

    assert meter.units == 1 + 2 + 2
    # id + 1, quantity 120, text, expires_at of ten digits
    assert meter.largest_item == 3 + (8 + 2) + (4 + 1_100) + (10 + 6)


def test_price__keeps_the_promised_limits() -> None:
    at_250 = replace(REFERENCE, batch=250)

    assert price(replace(TEN_GROUPS, batch=250), seconds=2).units <= 0.4
    assert price(at_250, seconds=2).units <= 2.15
    assert price(replace(at_250, groups=100_000, choice=Choice.UNIFORM), seconds=1).units <= 4.1


def test_price_of_a_move__is_that_of_its_two_contributions() -> None:
    moves = replace(REFERENCE, groups=100_000, choice=Choice.UNIFORM, batch=250, kind=Kind.MOVE)

    assert price(moves, seconds=1).units <= 2 * 4.1

"""The calculator of units against AWS's published rules and examples."""

from dataclasses import replace
from typing import Any

import pytest

from aggregation_worker.aggregations.contributions import Index, KeyType
from tests.benchmarks import write_units
from tests.benchmarks.meter import Meter, Request, item_bytes, units_of_index_write, units_of_write, value_bytes
from tests.benchmarks.write_units import TRAFFIC, main, price

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
def test_units_of_a_write__count_the_larger_item_in_whole_kilobytes(
    before: int | None, after: int | None, units: int
) -> None:
    assert units_of_write(before, after) == units


def test_transaction__costs_twice_as_much_for_each_item() -> None:
    meter = Meter(KEYS)
    small: dict[str, Any] = {"Put": {"TableName": "table", "Item": {"id": {"S": "1"}}}}
    large: dict[str, Any] = {"Put": {"TableName": "table", "Item": {"id": {"S": "2"}, "text": {"S": "x" * 2_000}}}}

    meter.add(Request("transact_write_items", {"TransactItems": [small, large]}))

    assert (meter.requests, meter.units, meter.wasted) == (1, 2 * 1 + 2 * 2, 0)


def test_cancelled_transaction__is_charged_for_what_is_there_and_changes_nothing() -> None:
    meter = Meter(KEYS)
    large: dict[str, Any] = {"Put": {"TableName": "table", "Item": {"id": {"S": "2"}, "text": {"S": "x" * 2_000}}}}
    meter.add(Request("put_item", large["Put"]))

    for _ in range(2):
        meter.add(Request("transact_write_items", {"TransactItems": [large]}, failed=True))

    assert (meter.units, meter.wasted) == (2 + 4 + 4, 8)


def test_failed_update__is_charged_for_the_item_that_is_there() -> None:
    meter = Meter(KEYS)
    large: dict[str, Any] = {"TableName": "table", "Item": {"id": {"S": "1"}, "text": {"S": "x" * 2_000}}}
    update = {
        "TableName": "table",
        "Key": {"id": {"S": "1"}},
        "UpdateExpression": "SET #0 = :0",
        "ExpressionAttributeNames": {"#0": "text"},
        "ExpressionAttributeValues": {":0": {"S": "x" * 9_000}},
    }

    meter.add(Request("put_item", large))
    meter.add(Request("update_item", update, failed=True))

    assert (meter.units, meter.wasted) == (2 + 2, 2)


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
    assert meter.largest == {"table": 3 + (8 + 2) + (4 + 1_100) + (10 + 6)}


def test_entries_of_a_map__are_set_and_added_to_in_one_update() -> None:
    meter = Meter(KEYS)
    parameters: dict[str, Any] = {"TableName": "table", "Key": {"id": {"S": "1"}}}
    makes: dict[str, Any] = {
        "UpdateExpression": "SET #0 = :0 ADD #1 :1",
        "ExpressionAttributeNames": {"#0": "map", "#1": "n"},
        "ExpressionAttributeValues": {":0": {"M": {"a.1": {"N": "1"}}}, ":1": {"N": "1"}},
    }
    sets: dict[str, Any] = {
        "UpdateExpression": "SET #0.#1 = :0, #0.#2 = :1 ADD #3 :2",
        "ExpressionAttributeNames": {"#0": "map", "#1": "b.1", "#2": "c.1", "#3": "n"},
        "ExpressionAttributeValues": {":0": {"N": "2"}, ":1": {"N": "3"}, ":2": {"N": "5"}},
    }

    for expressions in (makes, sets):
        meter.add(Request("update_item", parameters | expressions))

    # id + 1; the map with three names of three characters, their values of two bytes and a byte each; n
    assert (meter.units, meter.largest) == (2, {"table": 3 + (3 + 3 + 3 * (3 + 2 + 1)) + (1 + 2)})


ENTRY: dict[str, Any] = {"day": {"S": "d"}, "id": {"S": "1"}, "n": {"N": "1"}, "orders": {"N": "1"}}
LARGE = {"text": {"S": "x" * 1_500}}


@pytest.mark.parametrize(
    ("before", "after", "units"),
    [
        (None, None, 0),
        (ENTRY, ENTRY, 0),
        (None, ENTRY, 1),
        (ENTRY, None, 1),
        (ENTRY, ENTRY | {"orders": {"N": "2"}}, 1),
        (ENTRY, ENTRY | {"n": {"N": "2"}}, 2),
        (ENTRY, ENTRY | LARGE, 2),
        (ENTRY, ENTRY | LARGE | {"n": {"N": "2"}}, 3),
    ],
)
def test_index__costs_a_write_for_a_change_and_two_for_a_key(before: Any, after: Any, units: int) -> None:
    assert units_of_index_write(before, after, ["day", "n"]) == units


def test_indexes__are_told_apart_and_hold_no_receipts() -> None:
    by_day = Index("by_day", (("day", KeyType.STRING), ("n", KeyType.NUMBER)), ("orders",))
    meter = Meter(KEYS, {"table": [by_day]})

    def update(attribute: str, value: Any) -> dict[str, Any]:
        return {
            "TableName": "table",
            "Key": {"id": {"S": "1"}},
            "UpdateExpression": "SET #0 = :0",
            "ExpressionAttributeNames": {"#0": attribute},
            "ExpressionAttributeValues": {":0": value},
        }

    units = []
    for attribute, value in (
        ("day", {"S": "d"}),
        ("n", {"N": "1"}),
        ("receipts#a", {"M": {}}),
        ("orders", {"N": "1"}),
        ("n", {"N": "2"}),
    ):
        meter.add(Request("update_item", update(attribute, value)))
        units.append(meter.index_units)
    meter.add(Request("transact_write_items", {"TransactItems": [{"Update": update("n", {"N": "3"})}]}))

    assert units == [0, 1, 1, 2, 4]
    assert (meter.units, meter.index_units) == (5 + 2, 4 + 4)


def test_reads__cost_half_a_unit_each_or_a_unit_for_four_kilobytes_together() -> None:
    meter = Meter(KEYS)
    large: dict[str, Any] = {"id": {"S": "1"}, "text": {"S": "x" * 5_000}}
    meter.add(Request("put_item", {"TableName": "table", "Item": large}))
    keys = [{"id": {"S": number}} for number in "123"]

    meter.add(Request("batch_get_item", {"RequestItems": {"table": {"Keys": keys}}}))
    several = meter.read_units
    meter.add(Request("query", {"TableName": "table", "ConsistentRead": True}, found=[large, large]))

    assert (several, meter.read_units - several) == (1 + 0.5 + 0.5, 3)


def test_price__keeps_its_goals_in_a_short_run() -> None:
    traffic = replace(TRAFFIC[0], seconds=300)

    assert [price(traffic, skew).units <= goal for skew, goal in traffic.goals] == [True] * 3


def test_command__says_which_goals_are_missed(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    distinct = replace(next(one for one in TRAFFIC if not one.groups), seconds=2)
    monkeypatch.setattr(write_units, "TRAFFIC", (distinct, replace(distinct, batch=125, goals=((0, 0.5),))))

    assert main([]) == 1

    printed = capsys.readouterr().out
    assert "1.00 (≤ 1.02)" in printed
    assert "missed: 1,000/s over 4, batches of 125, all distinct, 0 s apart" in printed

"""The tables: keys, stream, expiry, and how they are kept."""

from typing import Any

import pytest

from aggregation_worker.deployment.settings import DeploymentError
from aggregation_worker.local import SAMPLE_FILE
from tests.infrastructure.stacks import Stack, synthesized

LEDGER = "DynamoDBAggregationWorker-ledger"


def keys_of(table: dict[str, Any]) -> list[tuple[str, str, str]]:
    properties = table["Properties"]
    types = {attribute["AttributeName"]: attribute["AttributeType"] for attribute in properties["AttributeDefinitions"]}
    schemas = [properties, *properties.get("GlobalSecondaryIndexes", [])]
    assert types.keys() == {key["AttributeName"] for schema in schemas for key in schema["KeySchema"]}
    return [(key["AttributeName"], key["KeyType"], types[key["AttributeName"]]) for key in properties["KeySchema"]]


def test_shipped_definitions__give_source_target_and_ledger(stack: Stack) -> None:
    tables = stack.tables()

    assert {name: keys_of(table) for name, table in tables.items()} == {
        "Order_by_item": [("orderid", "HASH", "S"), ("order_date", "RANGE", "S")],
        "item_count_by_date": [("item_number", "HASH", "S"), ("order_date", "RANGE", "S")],
        LEDGER: [("aggregate", "HASH", "S"), ("page", "RANGE", "S")],
    }


def test_other_definitions__give_two_targets_and_no_source(other_stack: Stack) -> None:
    tables = other_stack.tables()

    assert {name: keys_of(table) for name, table in tables.items()} == {
        "customer_totals": [("customer", "HASH", "N")],
        "hourly_orders": [("shop", "HASH", "S"), ("hour", "RANGE", "S")],
        LEDGER: [("aggregate", "HASH", "S"), ("page", "RANGE", "S")],
    }


def test_indexes__project_keys_and_measures_only(other_stack: Stack) -> None:
    properties = other_stack.tables()["hourly_orders"]["Properties"]

    assert {"AttributeName": "revenue", "AttributeType": "N"} in properties["AttributeDefinitions"]
    assert properties["GlobalSecondaryIndexes"] == [
        {
            "IndexName": "by_hour",
            "KeySchema": [
                {"AttributeName": "hour", "KeyType": "HASH"},
                {"AttributeName": "revenue", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["orders"]},
        },
        {
            "IndexName": "by_revenue",
            "KeySchema": [
                {"AttributeName": "revenue", "KeyType": "HASH"},
                {"AttributeName": "orders", "KeyType": "RANGE"},
            ],
            "Projection": {"ProjectionType": "KEYS_ONLY"},
        },
    ]


def test_only_the_source__has_a_stream_with_both_images(stack: Stack) -> None:
    streams = {name: table["Properties"].get("StreamSpecification") for name, table in stack.tables().items()}

    assert streams.pop("Order_by_item") == {"StreamViewType": "NEW_AND_OLD_IMAGES"}
    assert set(streams.values()) == {None}


def test_only_the_ledger__expires(stack: Stack) -> None:
    expiry = {name: table["Properties"].get("TimeToLiveSpecification") for name, table in stack.tables().items()}

    assert expiry.pop(LEDGER) == {"AttributeName": "expires_at", "Enabled": True}
    assert set(expiry.values()) == {None}


def test_every_table__is_on_demand_encrypted_restorable_and_kept(stack: Stack, other_stack: Stack) -> None:
    for table in (*stack.tables().values(), *other_stack.tables().values()):
        properties = table["Properties"]
        assert properties["BillingMode"] == "PAY_PER_REQUEST"
        assert properties["SSESpecification"] == {"SSEEnabled": True}
        assert properties["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert properties["DeletionProtectionEnabled"] is True
        assert table["DeletionPolicy"] == table["UpdateReplacePolicy"] == "Retain"


def test_throwaway_tables__go_with_the_stack(throwaway_stack: Stack) -> None:
    for table in throwaway_stack.tables().values():
        assert table["Properties"]["DeletionProtectionEnabled"] is False
        assert table["DeletionPolicy"] == table["UpdateReplacePolicy"] == "Delete"


def test_stack_name__is_in_the_ledgers_name() -> None:
    assert "Second-ledger" in synthesized(stack_name="Second").tables()


@pytest.mark.parametrize("table", ["Order_by_item", "item_count_by_date"])
def test_table_named_like_the_ledger__is_refused(table: str) -> None:
    definitions = SAMPLE_FILE.read_text().replace(f'table = "{table}"', f'table = "{LEDGER}"')

    with pytest.raises(DeploymentError, match="name of this worker's ledger"):
        synthesized(definitions)

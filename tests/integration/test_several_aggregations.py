"""Several aggregations over one source, in tables of their own and sharing one, against DynamoDB Local."""

from collections.abc import Iterator
from decimal import Decimal

import pytest

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.local.recompute import scan
from tests.dynamodb_local import DynamoDBLocal
from tests.integration.world import World, a_world

DEFINITIONS = """
[source]
table = "Order_by_item"
partition_key = "orderid"
sort_key = "order_date"

[[aggregations]]
name = "sold"
table = "TARGET"
partition_key = { name = "item_number", from = "item_number" }
sort_key = { name = "order_date", from = "order_date", truncate = "month" }
sum = { quantity = "quantity", revenue = "quantity * price.net" }
count = "orders"
remove = "retract"

[[aggregations]]
name = "sold_in_de"
table = "TARGET"
partition_key = { name = "item_number", from = "item_number" }
sort_key = { name = "order_date", from = "order_date", truncate = "month" }
sum = { quantity_de = "quantity" }
where = "country == 'DE'"
remove = "retract_unless_expired"

[[aggregations]]
name = "by_customer"
table = "TARGET-by-customer"
partition_key = { name = "customer", from = "customer.id", type = "N" }
count = "orders"
"""


@pytest.fixture
def world(dynamodb_local: DynamoDBLocal) -> Iterator[World]:
    with a_world(dynamodb_local.client("dynamodb"), DEFINITIONS) as world:
        yield world
        world.assert_totals_are_the_sum_of_receipts()


ORDER = {
    "price": {"M": {"net": {"N": "2.50"}}},
    "country": {"S": "DE"},
    "customer": {"M": {"id": {"N": "17"}}},
}


def test_one_record__counts_in_every_aggregation(world: World) -> None:
    batch = [world.record("item123", 4, attributes=ORDER) for _ in range(3)]

    world.deliver(batch)
    world.deliver(batch)

    assert world.totals() == {
        ("sold", ("item123", "2024-07")): (Decimal(3), Decimal(12), Decimal(30)),
        ("sold_in_de", ("item123", "2024-07")): (Decimal(12),),
        ("by_customer", ("17",)): (Decimal(3),),
    }


def test_record_that_one_aggregation_cannot_use__counts_in_the_other(world: World) -> None:
    broken = {**ORDER, "customer": {"M": {"id": {"S": "seventeen"}}}}
    record = world.record("item123", 4, attributes=broken)

    first = world.deliver([record])
    second = world.deliver([record])

    assert first.outcomes == second.outcomes == (RecordOutcome.NOTICED,)
    assert "by_customer" in world.dead_letters.parked[0].reasons[0]
    assert world.totals()["sold", ("item123", "2024-07")] == (Decimal(1), Decimal(4), Decimal(10))


def test_record_refused_by_dynamodb_for_one__counts_in_the_other(world: World) -> None:
    """The two aggregations share the row: only the one whose total has the wrong type is refused."""
    table = world.definitions.aggregations[0].table
    key = {"item_number": {"S": "item123"}, "order_date": {"S": "2024-07"}}
    world.client.put_item(TableName=table, Item={**key, "quantity_de": {"S": "text"}})
    batch = [world.record("item123", 4, attributes=ORDER), world.record("item312", 1, attributes=ORDER)]

    result = world.deliver(batch)

    assert result.outcomes == (RecordOutcome.PARKED, RecordOutcome.APPLIED)
    assert [parked.reasons[0].split(":")[0] for parked in world.dead_letters.parked] == ["sold_in_de"]
    row = world.client.get_item(TableName=table, Key=key)["Item"]
    assert (row["quantity"], row["orders"], row["quantity_de"]) == ({"N": "4"}, {"N": "1"}, {"S": "text"})
    assert world.client.get_item(TableName=f"{table}-by-customer", Key={"customer": {"N": "17"}})["Item"]["orders"] == {
        "N": "2"
    }
    world.client.update_item(TableName=table, Key=key, UpdateExpression="REMOVE quantity_de")


def test_order_leaving_the_filter__is_taken_back(world: World) -> None:
    insert = world.record("item123", 4, attributes=ORDER)
    leaves = world.record("item123", 4, old=("item123", 4), attributes=ORDER)
    leaves["dynamodb"]["NewImage"]["country"] = {"S": "FR"}

    world.deliver([insert, leaves])

    assert world.totals()["sold_in_de", ("item123", "2024-07")] == (Decimal(0),)
    assert world.totals()["sold", ("item123", "2024-07")] == (Decimal(1), Decimal(4), Decimal(10))


@pytest.mark.parametrize("expired", [False, True])
def test_removed_order__is_retracted_or_kept_as_each_policy_says(world: World, expired: bool) -> None:
    insert = world.record("item123", 4, attributes=ORDER)
    removed = world.record(old=("item123", 4), attributes=ORDER, removed=True)
    if expired:
        removed["userIdentity"] = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}

    world.deliver([insert, removed])
    world.deliver([insert, removed])

    assert set(map(any, world.totals().values())) == {False}  # nothing is there any more
    sold, by_customer = (scan(world.client, world.definitions.aggregations[index].table) for index in (0, 2))
    (row,), (customer,) = sold, by_customer
    assert (row["quantity"], row["quantity_de"]) == ({"N": "0"}, {"N": "4" if expired else "0"})
    assert row.get("kept#sold_in_de#quantity_de") == ({"N": "4"} if expired else None)
    assert (customer["orders"], customer["kept#by_customer#orders"]) == ({"N": "1"}, {"N": "1"})

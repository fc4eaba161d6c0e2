"""Totals as they stand in a target table."""

from decimal import Decimal
from typing import Any

from aggregation_worker.local.recompute import stored_totals
from tests.definition_texts import aggregation_text, definitions


class _Client:
    """A DynamoDB client whose every table holds these rows."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self._rows = rows

    def get_paginator(self, operation: str) -> "_Client":
        return self

    def paginate(self, **request: Any) -> Any:
        return [{"Items": list(self._rows)}]


def keyed(prefix: str) -> str:
    return f'{{ name = "pk", from = "item_number", prefix = "{prefix}" }}'


SHARED = definitions(
    aggregation_text(name="by_item", table="totals", partition_key=keyed("item#"), sort_key=None),
    aggregation_text(name="by_customer", table="totals", partition_key=keyed("customer#"), sort_key=None),
    aggregation_text(
        'count = "orders"', name="orders", table="totals", partition_key=keyed("item#"), sort_key=None, sum=None
    ),
)


def test_shared_table__rows_under_another_prefix_left_out() -> None:
    client: Any = _Client(
        {"pk": {"S": "item#a"}, "quantity": {"N": "3"}}, {"pk": {"S": "customer#a"}, "quantity": {"N": "4"}}
    )
    by_item, by_customer, _ = SHARED.aggregations

    assert stored_totals(client, by_item) == {("item#a",): (Decimal(3),)}
    assert stored_totals(client, by_customer) == {("customer#a",): (Decimal(4),)}


def test_shared_rows__those_without_its_measures_are_left_out() -> None:
    client: Any = _Client(
        {"pk": {"S": "item#a"}, "quantity": {"N": "3"}},
        {"pk": {"S": "item#b"}, "quantity": {"N": "4"}, "orders": {"N": "1"}},
    )

    assert stored_totals(client, SHARED.aggregations[2]) == {("item#b",): (Decimal(1),)}

"""Which items are canaries of `aggregator verify`."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from aggregation_worker.deployment.example import example_item
from aggregation_worker.operations.verify import canary_of
from aggregation_worker.reconciliation.canary import canary_number, canary_text, is_canary
from tests.definition_texts import aggregation_text, definitions

KEYS = ("orderid", "line")
MARK = UUID("0123456789abcdef0123456789abcdef")


@pytest.mark.parametrize(
    "item",
    [
        {"orderid": {"S": canary_text(MARK)}, "line": {"N": "1"}},
        {"orderid": {"S": "178526"}, "line": {"N": canary_number(MARK)}},
        {"orderid": {"S": "178526"}, "line": {"N": f"{Decimal(canary_number(MARK)):E}"}},
    ],
    ids=["by a text", "by a number", "by a number that is spelt otherwise"],
)
def test_item_with_a_canarys_key__is_one(item: dict[str, Any]) -> None:
    assert is_canary(item, KEYS)


@pytest.mark.parametrize(
    "item",
    [
        {"orderid": {"S": "178526"}, "line": {"N": "1"}},
        {"orderid": {"S": "verify"}, "line": {"N": "-999999999999999999999999999999"}},
        {"orderid": {"S": ""}, "line": {"N": "1000000000000000000000012345678"}},
        {"orderid": {"B": "YWdncmVnYXRvci12ZXJpZnkt"}, "line": {"N": "-0.0000000000000000000000000000001"}},
        {"orderid": {"S": "1"}, "note": {"S": canary_text(MARK)}},
        {"orderid": {"S": "aggregator-verify-is-my-order-id"}},
        {"orderid": {"S": "aggregator-verify-0123456789ab"}},
        {"orderid": {"S": canary_text(MARK)[:-1]}},
        {"orderid": {"S": "178526"}, "line": {"N": "-1000000000000000000000000000012345678"}},
        {"orderid": {"S": "178526"}, "line": {"N": "-1E+36"}},
    ],
    ids=lambda item: str(item["orderid"]),
)
def test_any_other_item__is_none(item: dict[str, Any]) -> None:
    assert not is_canary(item, KEYS)


@pytest.mark.parametrize("key_type", ["S", "N"])
def test_canary_that_verify_makes__is_one(key_type: str) -> None:
    source = f"""
[source]
table = "Order_by_item"
partition_key = {{ name = "orderid", type = "{key_type}" }}
"""
    defined = definitions(aggregation_text(), source=source)

    item = canary_of(defined, example_item(defined))

    assert is_canary(item, ("orderid",))

"""Which items are canaries of `aggregator verify`."""

from typing import Any

import pytest

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.operations.verify import canary_item
from aggregation_worker.reconciliation.canary import is_canary
from tests.definition_texts import aggregation_text, definitions

KEYS = ("orderid", "line")


@pytest.mark.parametrize(
    "item",
    [
        {"orderid": {"S": "aggregator-verify-0123456789ab"}, "line": {"N": "1"}},
        {"orderid": {"S": "178526"}, "line": {"N": "-1000000000000000000000012345678"}},
    ],
    ids=["by a text", "by a number"],
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
        {"orderid": {"S": "1"}, "note": {"S": "aggregator-verify-0123456789ab"}},
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

    item = canary_item(_Resources(defined))  # type: ignore[arg-type]  # the definitions are all that is asked for

    assert is_canary(item, ("orderid",))


class _Resources:
    def __init__(self, defined: Definitions) -> None:
        self.definitions = defined

"""Definitions files for tests: TOML text made of parts, and what it says as the worker's own types."""

from aggregation_worker.aggregations.contributions import Aggregation, Definitions
from aggregation_worker.aggregations.definitions import parse_definitions

SOURCE = """
[source]
table = "Order_by_item"
partition_key = "orderid"
sort_key = "order_date"
"""
ITEM_NUMBER = '{ name = "item_number", from = "item_number" }'
ORDER_DATE = '{ name = "order_date", from = "order_date", truncate = "day" }'


def aggregation_text(
    more: str = "",
    *,
    name: str = "item_count_by_date",
    table: str = "item_count_by_date",
    partition_key: str = ITEM_NUMBER,
    sort_key: str | None = ORDER_DATE,
    sum: str | None = '{ quantity = "quantity" }',  # noqa: A002 - the key's own name
) -> str:
    """One [[aggregations]]: the reference scenario's, but for what is given, and `more` lines."""
    lines = ["[[aggregations]]", f'name = "{name}"', f'table = "{table}"', f"partition_key = {partition_key}"]
    if sort_key is not None:
        lines.append(f"sort_key = {sort_key}")
    if sum is not None:
        lines.append(f"sum = {sum}")
    return "\n".join([*lines, more, ""])


# Sums of the sums of days.
MONTHS = aggregation_text(
    'count = "days"\nremove = "retract"',
    name="item_count_by_month",
    table="item_count_by_month",
    sort_key='{ name = "month", from = "order_date", truncate = "month" }',
)


def definitions(*aggregations: str, source: str = SOURCE) -> Definitions:
    """What a file of these parts says; without any, the reference scenario."""
    return parse_definitions(source + "".join(aggregations or (aggregation_text(),)))


def aggregation(text: str | None = None) -> Aggregation:
    """One aggregation; without a text, the reference scenario's."""
    return definitions(*([] if text is None else [text])).aggregations[0]

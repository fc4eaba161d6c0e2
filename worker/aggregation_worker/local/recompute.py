"""What the totals should be: the definitions applied to the source table's items as they are now.

The same `Aggregation.value` that the worker applies to stream images is applied to items, so both read a definition
alike. An aggregation with `remove = "ignore"` keeps what removed items once contributed, which no scan can see.
"""

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.numbers import EXACT
from aggregation_worker.streams.records import Image

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


def totals_of(
    aggregations: Iterable[Aggregation], items: Iterable[Image]
) -> dict[tuple[str, Group], tuple[Decimal, ...]]:
    """What items in DynamoDB's typed JSON add up to, by aggregation name and group.

    The amounts are in the order of the measures' names. An item that an aggregation cannot use counts nothing.
    """
    totals: dict[tuple[str, Group], tuple[Decimal, ...]] = {}
    aggregations = tuple(aggregations)
    for item in items:
        for aggregation in aggregations:
            try:
                value = aggregation.value(item)
            except MalformedValueError:
                continue
            if value is not None:
                key = (aggregation.name, value[0])
                before = totals.get(key)
                totals[key] = tuple(map(EXACT.add, before, value[1])) if before else value[1]
    return totals


def scan(client: "DynamoDBClient", table: str) -> Iterator[Image]:
    """All items of a table, read consistently, in DynamoDB's typed JSON."""
    for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        yield from page["Items"]


def stored_totals(client: "DynamoDBClient", aggregation: Aggregation) -> dict[Group, tuple[Decimal, ...]]:
    """An aggregation's totals as stored in its table.

    Rows that hold none of its measures are left out, and those under another prefix: they are of an aggregation that
    shares the table, maybe with measures of the same names.
    """
    found = {}
    for row in scan(client, aggregation.table):
        if not any(measure.name in row for measure in aggregation.measures):
            continue
        group = tuple(row[key.name][key.type.value] for key in aggregation.keys)
        if not all(text.startswith(key.prefix) for key, text in zip(aggregation.keys, group, strict=True)):
            continue
        found[group] = tuple(
            Decimal(row[measure.name]["N"]) if measure.name in row else Decimal(0) for measure in aggregation.measures
        )
    return found

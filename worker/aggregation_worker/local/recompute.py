"""What the totals should be: the definitions applied to the source table's items as they are now.

The same `worth` that the worker applies to stream images is applied to items, so both read a definition
alike. What removed items keep contributing is left out; where they are ignored, no scan can tell it.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Aggregation, Group, worth
from aggregation_worker.aggregations.numbers import EXACT, Amounts
from aggregation_worker.reconciliation.observation import rows_of, worth_in
from aggregation_worker.streams.records import Image

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


def totals_of(aggregations: Iterable[Aggregation], items: Iterable[Image]) -> dict[tuple[str, Group], Amounts]:
    """What items in DynamoDB's typed JSON add up to, by aggregation name and group.

    The amounts are in the order of the measures' names. An item that an aggregation cannot use counts nothing.
    """
    totals: dict[tuple[str, Group], Amounts] = {}
    aggregations = tuple(aggregations)
    for item in items:
        for aggregation in aggregations:
            value, _ = worth(aggregation, item)
            if value is not None:
                key = (aggregation.name, value[0])
                before = totals.get(key)
                totals[key] = tuple(map(EXACT.add, before, value[1])) if before else value[1]
    return totals


def scan(client: "DynamoDBClient", table: str) -> Iterator[Image]:
    """All items of a table, read consistently, in DynamoDB's typed JSON."""
    for page in client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True):
        yield from page["Items"]


def stored_totals(client: "DynamoDBClient", aggregation: Aggregation) -> dict[Group, Amounts]:
    """An aggregation's totals without what is kept of them: what the items that are there are worth, by its table.

    A total that is not a number is none.
    """
    return {
        group: amounts
        for group, row in rows_of(client, aggregation)
        if (amounts := worth_in(aggregation, row)) is not None
    }

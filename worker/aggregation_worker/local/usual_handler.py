"""The usual handler of a stream, as tutorials have it: one `UpdateItem ADD` per record and row of the sample's tables.

What the worker is compared with. It is right while each record is delivered exactly once, and Lambda does not promise
that.
"""

from typing import TYPE_CHECKING, Any

from aggregation_worker.local.local_function import Handler

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


def usual_handler(dynamodb: "DynamoDBClient", table: str) -> Handler:
    """A handler that adds to the rows of `table`; it raises at the first record that it cannot read."""

    def handle(event: dict[str, Any], context: Any) -> None:  # noqa: ARG001 - as Lambda calls it
        for record in event["Records"]:
            for key, amount in changes_of(record):
                dynamodb.update_item(**add_request(table, key, amount))

    return handle


def changes_of(record: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """What a record changes, as a handler for whole quantities finds it: a row's key and the number to add."""
    amounts: dict[tuple[str, str], int] = {}
    for name, sign in (("OldImage", -1), ("NewImage", 1)):
        if image := record["dynamodb"].get(name):
            group = image["item_number"]["S"], image["order_date"]["S"][:10]
            amounts[group] = amounts.get(group, 0) + sign * int(image["quantity"]["N"])
    return [
        ({"item_number": {"S": item}, "order_date": {"S": day}}, amount)
        for (item, day), amount in amounts.items()
        if amount
    ]


def add_request(table: str, key: dict[str, Any], amount: int) -> dict[str, Any]:
    """The parameters of the `UpdateItem` that adds an amount to a row."""
    return {
        "TableName": table,
        "Key": key,
        "UpdateExpression": "ADD quantity :quantity",
        "ExpressionAttributeValues": {":quantity": {"N": str(amount)}},
    }

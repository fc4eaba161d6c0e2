"""A source table of orders that is written to, and its totals: what backfill and reconcile work on."""

import base64
import gzip
import hashlib
import json
import random
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.dynamodb_local import DynamoDBLocal
from tests.integration.busy_table import Orders, Writer, create_without_stream, enable_stream, load
from tests.integration.world import World, a_world

SOLD = """
[[aggregations]]
name = "sold"
table = "TARGET"
partition_key = { name = "item_number", from = "item_number" }
sort_key = { name = "order_date", from = "order_date", truncate = "day" }
sum = { quantity = "quantity" }
count = "orders"
remove = "retract"
"""


@dataclass(slots=True)
class Shop:
    """The tables of one test.

    Attributes:
        text: the definitions.
        existing: how many orders, numbered from 0, the table was loaded with.
    """

    world: World
    streams: Any
    source: str
    stream_arn: str
    text: str
    orders: Orders
    existing: int

    def writer(self, seed: int, **options: Any) -> Writer:
        """Somebody who changes orders."""
        return Writer(self.world.client, self.source, self.orders, self.existing, random.Random(seed), **options)


AShop = TypeVar("AShop", bound=Shop)


@contextmanager
def a_shop(
    server: Any,
    kind: type[AShop],
    *aggregations: str,
    existing: int,
    orders: Orders,
    more: Sequence[dict[str, Any]] = (),
    stream_first: bool = False,
) -> Iterator[AShop]:
    """Creates the tables, in whose definitions TARGET stands for a name, and removes them at the end.

    Args:
        server: what `kind`'s clients come from.
        more: items beside the random orders.
        stream_first: the stream is older than the items, not switched on when they had been there for years.
    """
    client = server.client("dynamodb")
    suffix = uuid.uuid4().hex[:12]
    source = f"orders-{suffix}"
    create_without_stream(client, source)
    stream_arn = enable_stream(client, source) if stream_first else ""
    chance = random.Random(existing)
    load(client, source, [*(orders.order(str(number), chance) for number in range(existing)), *more])
    text = f'[source]\ntable = "{source}"\npartition_key = "orderid"\n' + "".join(aggregations)
    text = text.replace("TARGET", f"totals-{suffix}")
    with a_world(client, text) as world:
        stream_arn = stream_arn or enable_stream(client, source)
        yield kind(world, server.client("dynamodbstreams"), source, stream_arn, text, orders, existing)
    client.delete_table(TableName=source)


def local_environment(dynamodb_local: DynamoDBLocal) -> dict[str, str]:
    """The environment in which commands and functions find DynamoDB Local."""
    return {
        "AWS_ENDPOINT_URL": dynamodb_local.endpoint,
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCOUNT_ID_ENDPOINT_MODE": "disabled",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def export_objects(table_arn: str, items: Sequence[Mapping[str, Any]], export_time: str) -> dict[str, bytes]:
    """The objects of a table export under the prefix `orders`, by key."""
    folder = "orders/AWSDynamoDB/01792345678901-abcdef01"
    objects: dict[str, bytes] = {}
    files = []
    for number in range(3):
        part = items[number::3]
        body = gzip.compress("".join(json.dumps({"Item": item}) + "\n" for item in part).encode())
        key = f"{folder}/data/part{number}.json.gz"
        objects[key] = body
        checksum = base64.b64encode(hashlib.md5(body).digest()).decode()
        files.append({"itemCount": len(part), "md5Checksum": checksum, "dataFileS3Key": key})
    summary = {
        "tableArn": table_arn,
        "outputFormat": "DYNAMODB_JSON",
        "exportType": "FULL_EXPORT",
        "exportTime": export_time,
        "itemCount": len(items),
        "manifestFilesS3Key": f"{folder}/manifest-files.json",
    }
    objects[f"{folder}/manifest-files.json"] = "\n".join(map(json.dumps, files)).encode()
    objects[f"{folder}/manifest-summary.json"] = json.dumps(summary).encode()
    return objects

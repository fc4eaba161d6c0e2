"""DynamoDB Local itself: it stores, streams and stops."""

import os
from typing import TYPE_CHECKING

import pytest

from tests.dynamodb_local import DynamoDBLocal, running_dynamodb_local

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from mypy_boto3_dynamodbstreams.type_defs import RecordTypeDef


def records_of(streams: "DynamoDBStreamsClient", stream: str) -> "list[RecordTypeDef]":
    (shard,) = streams.describe_stream(StreamArn=stream)["StreamDescription"]["Shards"]
    iterator = streams.get_shard_iterator(StreamArn=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON")[
        "ShardIterator"
    ]
    return streams.get_records(ShardIterator=iterator)["Records"]


def test_item__can_be_read_back_and_arrives_in_the_stream(dynamodb_local: DynamoDBLocal) -> None:
    dynamodb = dynamodb_local.client("dynamodb")
    table = dynamodb.create_table(
        TableName="test_dynamodb_local",
        KeySchema=[{"AttributeName": "orderid", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "orderid", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )["TableDescription"]
    order = {"orderid": {"S": "178526"}, "quantity": {"N": "10"}}

    dynamodb.put_item(TableName="test_dynamodb_local", Item=order)

    key = {"orderid": order["orderid"]}
    assert dynamodb.get_item(TableName="test_dynamodb_local", Key=key)["Item"] == order
    (record,) = records_of(dynamodb_local.client("dynamodbstreams"), table["LatestStreamArn"])
    assert record["eventName"] == "INSERT"
    assert record["dynamodb"]["NewImage"] == order


def test_endpoint__is_the_servers(dynamodb_local: DynamoDBLocal, dynamodb_endpoint: str) -> None:
    assert dynamodb_endpoint == dynamodb_local.endpoint
    assert dynamodb_endpoint.startswith("http://127.0.0.1:")


@pytest.mark.usefixtures("dynamodb_local")  # skips where DynamoDB Local cannot run
def test_failure_while_it_runs__stops_the_server() -> None:
    pids = []

    def fail_while_it_runs() -> None:
        with running_dynamodb_local() as server:
            os.kill(server.pid, 0)
            pids.append(server.pid)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_while_it_runs()

    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)

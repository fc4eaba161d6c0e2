"""The event source mapping on a real stream, and ministack as a process: started, used, stopped and orphaned."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.local.event_source_mapping import EventSourceMapping
from aggregation_worker.local.ministack import Ministack, MinistackError, running_ministack
from aggregation_worker.streams.records import EventName
from tests.stream_fakes import AWS_DEFAULTS
from tests.waiting import wait_for


@pytest.fixture
def table(ministack: Ministack) -> str:
    """A table of its own with a stream of both images."""
    name = f"orders-{uuid.uuid4().hex}"
    ministack.client("dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "orderid", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "orderid", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    return name


def stream_arn(ministack: Ministack, table: str) -> str:
    return ministack.client("dynamodb").describe_table(TableName=table)["Table"]["LatestStreamArn"]


def mapping_of(
    ministack: Ministack, table: str, handler: Any, settings: MappingSettings, bucket: str = "none"
) -> EventSourceMapping:
    return EventSourceMapping(
        ministack.client("dynamodbstreams"),
        ministack.client("s3"),
        stream_arn(ministack, table),
        handler,
        settings,
        event_names=tuple(EventName),
        on_failure_bucket=bucket,
        function_name="totals",
        poll_interval_seconds=0.02,
    )


def put_orders(ministack: Ministack, table: str, count: int) -> None:
    client = ministack.client("dynamodb")
    for first in range(0, count, 25):
        client.batch_write_item(
            RequestItems={
                table: [
                    {"PutRequest": {"Item": {"orderid": {"S": str(number)}}}}
                    for number in range(first, min(first + 25, count))
                ]
            }
        )


def order_ids(event: dict[str, Any]) -> list[int]:
    return [int(record["dynamodb"]["Keys"]["orderid"]["S"]) for record in event["Records"]]


def test_insert_modify_and_remove__arrive_in_the_shape_of_lambda(ministack: Ministack, table: str) -> None:
    records: list[dict[str, Any]] = []
    client = ministack.client("dynamodb")
    client.put_item(TableName=table, Item={"orderid": {"S": "1"}, "scan": {"B": b"\x00\xff"}})
    client.put_item(TableName=table, Item={"orderid": {"S": "1"}, "quantity": {"N": "10"}})
    client.delete_item(TableName=table, Key={"orderid": {"S": "1"}})

    with mapping_of(ministack, table, lambda event, context: records.extend(event["Records"]), AWS_DEFAULTS) as mapping:
        mapping.drain(timeout_seconds=60)

    assert [record["eventName"] for record in records] == ["INSERT", "MODIFY", "REMOVE"]
    assert {record["eventSource"] for record in records} == {"aws:dynamodb"}
    assert {record["eventSourceARN"] for record in records} == {stream_arn(ministack, table)}
    assert records[0]["dynamodb"]["NewImage"]["scan"] == {"B": "AP8="}
    assert records[1]["dynamodb"]["OldImage"]["scan"] == {"B": "AP8="}
    assert abs(records[0]["dynamodb"]["ApproximateCreationDateTime"] - time.time()) < 60


def test_stream_of_several_pages__every_record_once_and_in_order(ministack: Ministack, table: str) -> None:
    put_orders(ministack, table, 2500)
    seen: list[int] = []
    sizes: list[int] = []

    def handler(event: dict[str, Any], context: Any) -> None:
        sizes.append(len(event["Records"]))
        seen.extend(order_ids(event))

    with mapping_of(ministack, table, handler, replace(AWS_DEFAULTS, batch_size=10_000)) as mapping:
        mapping.drain(timeout_seconds=60)

    assert seen == list(range(2500))
    assert max(sizes) <= 10_000


def test_latest__delivers_what_is_written_after_the_start(ministack: Ministack, table: str) -> None:
    put_orders(ministack, table, 3)
    seen: list[int] = []

    with mapping_of(
        ministack,
        table,
        lambda event, context: seen.extend(order_ids(event)),
        replace(AWS_DEFAULTS, starting_position="LATEST"),
    ) as mapping:
        mapping.drain(timeout_seconds=60, quiet_seconds=0.05)
        ministack.client("dynamodb").put_item(TableName=table, Item={"orderid": {"S": "7"}})
        mapping.drain(timeout_seconds=60)

    assert seen == [7]


def test_stream_turned_off__what_it_held_is_still_delivered(ministack: Ministack, table: str) -> None:
    put_orders(ministack, table, 3)
    seen: list[int] = []
    mapping = mapping_of(ministack, table, lambda event, context: seen.extend(order_ids(event)), AWS_DEFAULTS)
    ministack.client("dynamodb").update_table(TableName=table, StreamSpecification={"StreamEnabled": False})

    with mapping:
        mapping.drain(timeout_seconds=60)

    assert seen == [0, 1, 2]


def test_record_that_always_fails__announced_in_the_queue(ministack: Ministack, table: str) -> None:
    s3, sqs = ministack.client("s3"), ministack.client("sqs")
    bucket, queue = f"dead-letters-{uuid.uuid4()}", f"dead-letters-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    queue_url = sqs.create_queue(QueueName=queue)["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    s3.put_bucket_notification_configuration(
        Bucket=bucket,
        NotificationConfiguration={
            "QueueConfigurations": [
                {
                    "QueueArn": queue_arn,
                    "Events": ["s3:ObjectCreated:*"],
                    "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "aws/lambda/"}]}},
                }
            ]
        },
    )
    put_orders(ministack, table, 4)
    batches: list[list[int]] = []

    def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
        batches.append(order_ids(event))
        failed = [record for record in event["Records"] if record["dynamodb"]["Keys"]["orderid"]["S"] == "1"]
        return {"batchItemFailures": [{"itemIdentifier": record["dynamodb"]["SequenceNumber"]} for record in failed]}

    settings = replace(
        AWS_DEFAULTS,
        maximum_retry_attempts=1,
        bisect_batch_on_function_error=True,
        report_batch_item_failures=True,
        retry_pause_seconds=0,
    )
    with mapping_of(ministack, table, handler, settings, bucket) as mapping:
        mapping.drain(timeout_seconds=60)

    assert batches == [[0, 1, 2, 3], [1, 2, 3], [1], [1], [2, 3]]
    notices = announced_keys(ministack, queue_url)
    assert len(notices) == 1
    stored = s3.get_object(Bucket=bucket, Key=notices[0])
    assert stored["ContentType"] == "application/octet-stream"
    document = json.loads(stored["Body"].read())
    assert document["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert order_ids(json.loads(document["payload"])) == [1]
    assert [stored["Key"] for stored in s3.list_objects_v2(Bucket=bucket)["Contents"]] == notices


def announced_keys(ministack: Ministack, queue_url: str) -> list[str]:
    """The keys in the bucket's notifications; the test event that a new configuration sends is passed over."""
    messages = ministack.client("sqs").receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1)[
        "Messages"
    ]
    bodies = [json.loads(message["Body"]) for message in messages]
    return [record["s3"]["object"]["key"] for body in bodies for record in body.get("Records", [])]


def port_of(ministack: Ministack) -> int:
    return int(ministack.endpoint.rsplit(":", 1)[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_servers__have_ports_and_state_of_their_own(ministack: Ministack, table: str) -> None:
    with running_ministack() as other:
        assert other.endpoint != ministack.endpoint
        assert other.client("dynamodb").list_tables()["TableNames"] == []
        assert table in ministack.client("dynamodb").list_tables()["TableNames"]

    assert not answers(port_of(other))


def test_port_asked_for_is_in_use__error_names_it(ministack: Ministack) -> None:
    port = port_of(ministack)

    with pytest.raises(MinistackError, match=f"port {port} of 127.0.0.1 is in use"), running_ministack(port=port):
        pass

    assert answers(port)


def test_port_of_another_server_in_use__error_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(MinistackError, match=f"port {port} of 127.0.0.1 is in use"), running_ministack(port=port):
            pass


def test_server__listens_on_loopback_only(ministack: Ministack) -> None:
    # Another address of the loopback network answers where a server listens on every interface.
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", port_of(ministack))) != 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals: run it on Linux or macOS")
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_starting_process_killed__server_leaves_nothing_behind(by: signal.Signals, tmp_path: Path) -> None:
    script = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored, if the tests run in the background
        "from aggregation_worker.local.ministack import running_ministack\n"
        "with running_ministack() as ministack:\n"
        "    print(ministack.endpoint, flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as starter:
        assert starter.stdout is not None
        port = int(starter.stdout.readline().rsplit(":", 1)[1])
        assert answers(port)
        assert os.listdir(tmp_path)

        starter.send_signal(by)
        starter.wait(60)

    wait_for(lambda: not answers(port) and os.listdir(tmp_path) == [])


def test_state__is_gone_with_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a folder that no other test's server uses

    with running_ministack() as running:
        running.client("s3").create_bucket(Bucket="state")
        assert os.listdir(tmp_path)

    assert os.listdir(tmp_path) == []

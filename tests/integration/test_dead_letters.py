"""Dead letters on the local pipeline: found, understood, replayed; nothing lost and nothing counted twice."""

import io
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aggregation_worker import handler
from aggregation_worker.dead_letters import PARKED_PREFIX
from aggregation_worker.deployment.settings import MAPPING
from aggregation_worker.ledger.receipts import (
    archived_attribute,
    first_position,
    generation_attribute,
    receipts_attribute,
)
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.local_function import LambdaContext
from aggregation_worker.local.ministack import Ministack
from aggregation_worker.local.pipeline import DEAD_LETTERS, LEDGER_TABLE, Pipeline, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of
from aggregation_worker.operations.cli import build_parser, main
from aggregation_worker.operations.notices import NoticeState
from aggregation_worker.operations.resources import Resources
from aggregation_worker.streams.records import MalformedRecordError
from tests.aggregator import running_aggregator
from tests.integration.world import side_by_side
from tests.sizes import size

Handler = Callable[[dict[str, Any], Any], Any]

GROUP = ("item1", "2024-07-15")
QUICK = replace(MAPPING, maximum_batching_window_seconds=0, maximum_retry_attempts=1, retry_pause_seconds=0.01)


@contextmanager
def pipeline_with(handler: Handler | None = None, **settings: Any) -> Iterator[Pipeline]:
    with running_pipeline(SAMPLE_FILE, handler=handler, settings=replace(QUICK, **settings)) as pipeline:
        yield pipeline


@pytest.fixture(autouse=True)
def emptied_server(ministack: Ministack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pipelines of one server that is emptied for each: a start takes longer than most tests."""

    @contextmanager
    def emptied(port: int | None = None) -> Iterator[Ministack]:
        reset = urllib.request.Request(f"{ministack.endpoint}/_ministack/reset", method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset) as answer:
            assert json.load(answer) == {"reset": "ok"}
        handler._worker.cache_clear()  # it has written its definitions to a ledger that is gone
        yield ministack

    monkeypatch.setattr("aggregation_worker.local.pipeline.running_ministack", emptied)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """Two replays in threads of one process change one environment, and each restores what the other had set."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def broken_reading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """A bad deployment: the worker takes every record for malformed, until the fix is deployed by calling this."""

    def never_a_record(*_: object) -> Any:
        raise MalformedRecordError("not a record")

    with monkeypatch.context() as patch:
        patch.setattr("aggregation_worker.batch.read_record", never_a_record)
        yield patch.undo


def put_orders(pipeline: Pipeline, count: int, items: int = 7) -> None:
    table = pipeline.definitions.source.table
    for start in range(0, count, 25):
        requests = [
            {
                "PutRequest": {
                    "Item": {
                        "orderid": {"S": str(number)},
                        "order_date": {"S": "2024-07-15"},
                        "item_number": {"S": f"item{number % items}"},
                        "quantity": {"N": str(number + 1)},
                    }
                }
            }
            for number in range(start, min(start + 25, count))
        ]
        pipeline.dynamodb.batch_write_item(RequestItems={table: requests})  # type: ignore[dict-item]  # plain dicts for typed ones


def expected(pipeline: Pipeline) -> dict[Any, Any]:
    source = scan(pipeline.dynamodb, pipeline.definitions.source.table)
    return {group: amounts for (_, group), amounts in totals_of(pipeline.definitions.aggregations, source).items()}


def stored(pipeline: Pipeline) -> dict[Any, Any]:
    (aggregation,) = pipeline.definitions.aggregations
    return stored_totals(pipeline.dynamodb, aggregation)


def waiting(pipeline: Pipeline) -> int:
    attributes = pipeline.sqs.get_queue_attributes(
        QueueUrl=pipeline.queue_url,
        AttributeNames=["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"],
    )["Attributes"]
    return sum(map(int, attributes.values()))


def aggregator_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    status = main([*arguments, "--json"])
    output = capsys.readouterr().out
    return status, json.loads(output[output.index("\n{\n") :] if "\n{\n" in output else output[output.index("[") :])


def replay(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    status = main(["replay", "--in-process", "--json", *options])
    output = capsys.readouterr().out
    return status, json.loads(output[output.rindex("\n{\n") if "\n{\n" in output else 0 :])


def send(pipeline: Pipeline, body: str) -> None:
    pipeline.sqs.send_message(QueueUrl=pipeline.queue_url, MessageBody=body)


class LocalLambda:
    """Stands in for boto3's Lambda client: runs a handler as the deployed function would."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.invocations: list[dict[str, Any]] = []

    def invoke(self, *, FunctionName: str, Payload: bytes) -> dict[str, Any]:  # noqa: N803 - boto3's names
        event = json.loads(Payload)
        self.invocations.append(event)
        context = LambdaContext(FunctionName, "arn", "1024", "request", "stream", time.monotonic() + 60)
        try:
            answer = json.dumps(self.handler(event, context))
        except Exception as error:
            body = json.dumps({"errorType": type(error).__name__, "errorMessage": str(error)})
            return {"FunctionError": "Unhandled", "Payload": io.BytesIO(body.encode())}
        return {"Payload": io.BytesIO(answer.encode())}


def replay_through(handler: Handler, monkeypatch: pytest.MonkeyPatch, *options: str) -> tuple[int, LocalLambda]:
    """`aggregator replay` with a function named `deployed` that is this handler."""
    function = LocalLambda(handler)
    real = Resources.client

    def client(self: Resources, service: str) -> Any:
        return function if service == "lambda" else real(self, service)

    with monkeypatch.context() as patch:
        patch.setattr(Resources, "client", client)
        return main(["replay", "--function", "deployed", "--json", *options]), function


def deployed(event: dict[str, Any], context: Any) -> Any:
    from aggregation_worker.handler import lambda_handler

    return lambda_handler(event, context)


def test_500_parked_records__replay_makes_every_total_right(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 500)
        pipeline.mapping.drain(60)
        assert (waiting(pipeline), stored(pipeline)) == (500, {})
        broken_reading()

        status, function = replay_through(deployed, monkeypatch)
        again = main(["replay", "--in-process"])

        assert (status, again) == (0, 0)
        assert sum(len(event["Records"]) for event in function.invocations) == 500
        assert len(function.invocations) <= 2
        assert waiting(pipeline) == 0
        assert stored(pipeline) == expected(pipeline)


def test_two_replays_at_once__count_once(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 200)
        pipeline.mapping.drain(60)
        broken_reading()

        side_by_side(lambda: main(["replay", "--in-process"]), lambda: main(["replay", "--in-process"]))

        assert waiting(pipeline) == 0
        assert stored(pipeline) == expected(pipeline)


def test_record_parked_twice__counts_once_and_both_letters_go(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 1)
        pipeline.mapping.drain(60)
        (message,) = pipeline.sqs.receive_message(QueueUrl=pipeline.queue_url, VisibilityTimeout=0)["Messages"]
        send(pipeline, message["Body"])
        broken_reading()

        status, summary = replay(capsys)

        assert (status, summary["applied"], summary["duplicates"], summary["lettersDeleted"]) == (0, 1, 1, 2)
        assert stored(pipeline) == expected(pipeline)


def test_notice__waits_until_its_item_is_corrected(capsys: pytest.CaptureFixture[str]) -> None:
    order = {"orderid": {"S": "1"}, "order_date": {"S": "2024-07-15"}, "item_number": {"S": "item1"}}
    with pipeline_with() as pipeline:
        table = pipeline.definitions.source.table

        def put(**quantity: str) -> None:
            pipeline.dynamodb.put_item(TableName=table, Item=order | {"quantity": quantity})
            pipeline.mapping.drain(60)

        put(N="5")
        put(S="five")
        while_bad, (listed,) = stored(pipeline), aggregator_json(capsys, "dead-letters")[1]
        status, summary = replay(capsys)
        put(N="6")
        corrected, (listed_again,) = stored(pipeline), aggregator_json(capsys, "dead-letters")[1]
        last_status, last_summary = replay(capsys)

        assert (while_bad, corrected) == ({GROUP: (Decimal(0),)}, {GROUP: (Decimal(6),)})
        assert (listed["kind"], listed["toDo"]) == ("notice", NoticeState.CORRECT)
        assert (status, [one["why"] for one in summary["lettersLeft"]]) == (1, [NoticeState.CORRECT])
        assert listed_again["toDo"] == NoticeState.OVER
        assert (last_status, last_summary["lettersDeleted"], last_summary["applied"]) == (0, 1, 0)
        assert waiting(pipeline) == 0


def test_failed_batch_of_1000__comes_back_from_its_s3_document(capsys: pytest.CaptureFixture[str]) -> None:
    def fails(_: Any, __: Any) -> Any:
        raise RuntimeError("a bad deployment")

    with pipeline_with(fails, bisect_batch_on_function_error=False) as pipeline:
        deployed({"Records": []}, None)  # before that it was well
        put_orders(pipeline, 1000)
        pipeline.mapping.drain(60)
        _, (letter, *others) = aggregator_json(capsys, "dead-letters")
        letters = [letter, *others]
        assert {letter["kind"] for letter in letters} == {"failed batch"}
        assert sum(len(letter["sequenceNumbers"]) for letter in letters) == 1000
        assert letter["reasons"] == ["RetryAttemptsExhausted"]

        status, summary = replay(capsys)

        assert (status, summary["applied"], summary["lettersDeleted"]) == (0, 1000, len(letters))
        assert waiting(pipeline) == 0
        assert stored(pipeline) == expected(pipeline)


def test_pointer_into_the_stream__is_read_back_from_it(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Any] = []

    def fails(event: Any, _: Any) -> Any:
        seen.extend(event["Records"])
        raise RuntimeError("a bad deployment")

    with pipeline_with(fails, bisect_batch_on_function_error=False, maximum_retry_attempts=0) as pipeline:
        deployed({"Records": []}, None)  # before that it was well
        put_orders(pipeline, 30)
        pipeline.mapping.drain(60)
        pipeline.sqs.purge_queue(QueueUrl=pipeline.queue_url)
        arn = seen[0]["eventSourceARN"]
        shards = pipeline.server.client("dynamodbstreams").describe_stream(StreamArn=arn)["StreamDescription"]["Shards"]
        numbers = sorted((record["dynamodb"]["SequenceNumber"] for record in seen), key=int)
        notice = {
            "requestContext": {"condition": "RecordAgeExceeded"},
            "DDBStreamBatchInfo": {
                "shardId": shards[0]["ShardId"],
                "startSequenceNumber": numbers[0],
                "endSequenceNumber": numbers[-1],
                "batchSize": len(numbers),
                "streamArn": arn,
            },
        }
        send(pipeline, json.dumps(notice))
        beyond = {**notice["DDBStreamBatchInfo"], "endSequenceNumber": str(int(numbers[-1]) + 1)}
        send(pipeline, json.dumps({**notice, "DDBStreamBatchInfo": beyond}))

        status, summary = replay(capsys)

        assert (status, summary["applied"], summary["lettersDeleted"]) == (1, 30, 1)
        assert "end was not reached" in summary["lettersLeft"][0]["why"]
        assert stored(pipeline) == expected(pipeline)


def test_garbage_in_the_queue__stays_and_the_rest_is_replayed(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 3)
        pipeline.mapping.drain(60)
        broken_reading()
        info = {
            "shardId": "s",
            "startSequenceNumber": "1",
            "endSequenceNumber": "2",
            "batchSize": 2,
            "streamArn": "arn:aws:dynamodb:us-east-1:000000000000:table/Order_by_item/stream/x",
        }
        pipeline.server.client("s3").put_object(
            Bucket=DEAD_LETTERS, Key="documents/truncated", Body=b'{"payload": "{\\"Reco'
        )
        pipeline.server.client("s3").put_object(
            Bucket=DEAD_LETTERS,
            Key="documents/one-of-two",
            Body=json.dumps({"DDBStreamBatchInfo": info, "payload": '{"Records": [{}]}'}).encode(),
        )
        garbage = {
            "not json": "is not JSON",
            json.dumps({"order": 1}): "neither a parked record, nor",
            _notification(pipeline, "documents/deleted"): "no longer in the bucket",
            _notification(pipeline, "documents/truncated"): "is not JSON",
            _notification(pipeline, "documents/one-of-two"): "payload is truncated",
            json.dumps({"kind": "parked_record", "reasons": ["x"]}): "without the record",
        }
        for body in garbage:
            send(pipeline, body)
        send(pipeline, json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": DEAD_LETTERS}))

        status, summary = replay(capsys)

        assert status == 1
        assert summary["applied"] == 3
        assert summary["lettersDeleted"] == 4
        whys = [letter["why"] for letter in summary["lettersLeft"]]
        assert all(any(expected in why for why in whys) for expected in garbage.values()), whys
        assert waiting(pipeline) == len(garbage)
        assert stored(pipeline) == expected(pipeline)


def _notification(pipeline: Pipeline, key: str) -> str:
    return json.dumps({"Records": [{"s3": {"bucket": {"name": DEAD_LETTERS}, "object": {"key": key}}}]})


def test_record_too_large_for_a_message__goes_by_the_bucket(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        pipeline.dynamodb.put_item(
            TableName=pipeline.definitions.source.table,
            Item={
                "orderid": {"S": "1"},
                "order_date": {"S": "2024-07-15"},
                "item_number": {"S": "item1"},
                "quantity": {"N": "5"},
                "note": {"S": "x" * 300_000},
            },
        )
        pipeline.mapping.drain(60)
        objects = pipeline.server.client("s3").list_objects_v2(Bucket=DEAD_LETTERS, Prefix=PARKED_PREFIX)["Contents"]
        assert len(objects) == 1
        broken_reading()

        status, summary = replay(capsys)

        assert (status, summary["applied"]) == (0, 1)
        assert stored(pipeline) == expected(pipeline)


def test_record_older_than_the_ledger__is_parked_anew_with_what_to_do(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 2)
        pipeline.mapping.drain(60)
        (message,) = pipeline.sqs.receive_message(QueueUrl=pipeline.queue_url, MaxNumberOfMessages=1)["Messages"]
        letter = json.loads(message["Body"])
        pipeline.sqs.delete_message(QueueUrl=pipeline.queue_url, ReceiptHandle=message["ReceiptHandle"])
        old = datetime.now(UTC) - timedelta(days=60)
        letter["record"]["dynamodb"]["ApproximateCreationDateTime"] = int(old.timestamp())
        send(pipeline, json.dumps(letter))
        broken_reading()
        name, item = "item_count_by_date", letter["record"]["dynamodb"]["NewImage"]["item_number"]
        # The row has archived the record's time, and the page has expired.
        row = {
            "item_number": item,
            "order_date": {"S": "2024-07-15"},
            receipts_attribute(name): {"M": {}},
            generation_attribute(name): {"S": "old"},
            archived_attribute(name): {"S": first_position(time.time())},
        }
        pipeline.dynamodb.put_item(TableName=name, Item=row)

        status, summary = replay(capsys)

        assert (status, summary["applied"], summary["parkedAgain"]) == (1, 1, 1)
        assert waiting(pipeline) == 1
        _, (listed,) = aggregator_json(capsys, "dead-letters")
        assert listed["trustedFor"] == "may be too late"
        assert "has expired; discard it, then run aggregator reconcile --repair" in listed["reasons"][0]
        assert (
            "quantity" not in pipeline.dynamodb.get_item(TableName=name, Key={k: row[k] for k in list(row)[:2]})["Item"]
        )


@pytest.mark.parametrize("options", [["--dry-run"], ["--limit", "2"], ["--reason", "no such reason"]])
def test_selection__takes_no_more_than_it_says(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 5)
        pipeline.mapping.drain(60)
        broken_reading()

        status, summary = replay(capsys, *options)

        taken = 2 if options[0] == "--limit" else 0
        assert (status, summary["applied"], waiting(pipeline)) == (0, taken, 5 - taken)


def test_sequence_number_and_reason__select_one_letter(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 5)
        pipeline.mapping.drain(60)
        broken_reading()
        _, letters = aggregator_json(capsys, "dead-letters")
        number = letters[3]["sequenceNumbers"][0]

        _, summary = replay(capsys, "--sequence-number", number, "--reason", "NOT A RECORD", "--rate", "1000")

        assert (summary["applied"], summary["lettersNotSelected"]) == (1, 4)
        assert waiting(pipeline) == 4


def test_function_that_fails_for_one_letter__replays_the_others(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_for_item3(event: dict[str, Any], context: Any) -> Any:
        if any("item3" in json.dumps(record) for record in event["Records"]):
            raise RuntimeError("item3 is too much for me")
        return deployed(event, context)

    with pipeline_with() as pipeline:
        put_orders(pipeline, 14)
        pipeline.mapping.drain(60)
        broken_reading()

        status, _ = replay_through(fails_for_item3, monkeypatch)

        output = capsys.readouterr().out
        assert status == 1
        assert output.count("RuntimeError: item3 is too much for me") == 2
        assert waiting(pipeline) == 2


def test_function_that_always_fails__stops_the_replay_early(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Any, __: Any) -> Any:
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "Invoke")

    with pipeline_with() as pipeline:
        put_orders(pipeline, 20)
        pipeline.mapping.drain(60)
        broken_reading()

        status, function = replay_through(denied, monkeypatch)

        assert status == 2
        assert "5 invocations in a row failed" in capsys.readouterr().err
        assert len(function.invocations) < 10
        assert waiting(pipeline) == 20


@pytest.mark.parametrize(
    ("code", "refusals", "status"), [("AccessDeniedException", 99, 2), ("ThrottlingException", 1, 0)]
)
def test_function_that_may_not_be_called__is_one_clear_line(
    code: str,
    refusals: int,
    status: int,
    broken_reading: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = refusals

    def refuses(self: LocalLambda, **parameters: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, "Invoke")
        return invoke(self, **parameters)

    invoke = LocalLambda.invoke
    monkeypatch.setattr(LocalLambda, "invoke", refuses)
    with pipeline_with() as pipeline:
        put_orders(pipeline, 8)
        pipeline.mapping.drain(60)
        broken_reading()

        ended, _ = replay_through(deployed, monkeypatch)

        assert ended == status
        assert waiting(pipeline) == (8 if status else 0)
        assert stored(pipeline) == ({} if status else expected(pipeline))
        error = "".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("aggregator: "))
        assert ("your credentials lack a permission" in error) == (status == 2)


def test_wrong_queue_url__is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pipeline_with() as pipeline:
        status = main(["dead-letters", "--queue-url", f"{pipeline.queue_url}-no-such"])

        error = capsys.readouterr().err
        assert status == 2
        assert error.count("\n") == 1
        assert "is the queue URL right" in error


def test_listing__shows_no_item_contents_unless_asked(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 1)
        pipeline.mapping.drain(60)
        capsys.readouterr()

        main(["dead-letters", "--json"])
        without = capsys.readouterr().out
        main(["dead-letters", "--json", "--show-images"])
        with_images = capsys.readouterr().out

        assert "item0" not in without
        assert "item0" in with_images
        assert waiting(pipeline) == 1


def test_ctrl_c__leaves_every_unfinished_letter_in_the_queue(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Any, __: Any) -> Any:
        raise KeyboardInterrupt

    with pipeline_with() as pipeline:
        put_orders(pipeline, 10)
        pipeline.mapping.drain(60)
        broken_reading()

        status, _ = replay_through(interrupted, monkeypatch)
        again, summary = replay(capsys)

        assert (status, again, summary["applied"]) == (130, 0, 10)
        assert stored(pipeline) == expected(pipeline)


@pytest.mark.long
def test_replay_killed_at_ten_moments__loses_and_doubles_nothing(
    broken_reading: Callable[[], None], capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    chance = random.Random(seed)
    command = ("replay", "--in-process", "--visibility-timeout", "1", "--rate", "25")
    letters = size(150, long=400)
    with pipeline_with() as pipeline:
        put_orders(pipeline, letters)
        pipeline.mapping.drain(60)
        broken_reading()

        at_start, later = size(1, long=3), size(3, long=7)
        for number in range(at_start + later):
            before = waiting(pipeline)
            with running_aggregator(*command, output=subprocess.DEVNULL) as process:
                if number < at_start:  # killed while it starts
                    time.sleep(chance.random())
                else:  # killed when it has replayed some letters
                    while waiting(pipeline) == before and process.poll() is None:
                        time.sleep(0.05)
                    time.sleep(chance.random() * 0.1)
                process.kill()
                assert process.wait() == -signal.SIGKILL, "it ended before it could be killed"
        assert 0 < waiting(pipeline) <= letters - later
        deadline = time.monotonic() + 60
        while waiting(pipeline) and time.monotonic() < deadline:
            main(["replay", "--in-process"])

        assert waiting(pipeline) == 0
        assert stored(pipeline) == expected(pipeline)


def test_explain__says_whether_the_receipts_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pipeline_with() as pipeline:
        put_orders(pipeline, 20, items=2)
        pipeline.mapping.drain(60)
        capsys.readouterr()

        good = main(["explain", "item_count_by_date", "item0", "2024-07-15"])
        told = capsys.readouterr().out
        pipeline.dynamodb.update_item(
            TableName="item_count_by_date",
            Key={"item_number": {"S": "item0"}, "order_date": {"S": "2024-07-15"}},
            UpdateExpression="ADD quantity :one",
            ExpressionAttributeValues={":one": {"N": "1"}},
        )
        bad = main(["explain", "item_count_by_date", "item0", "2024-07-15"])

        assert (good, bad) == (0, 1)
        assert "add up to the stored total" in told
        assert len(re.findall(r"\b\d{4}-\d\d-\d\d", told)) > 10
        assert "something other than the worker" in " ".join(capsys.readouterr().out.split())


def test_verify__says_the_latency_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stop = threading.Event()
    with pipeline_with() as pipeline:
        delivering = threading.Thread(target=pipeline.mapping.run, args=(stop,))
        delivering.start()
        try:
            capsys.readouterr()
            status = main(["verify", "--json", "--timeout", "60"])
            output = capsys.readouterr().out
        finally:
            stop.set()
            delivering.join()

        assert status == 0
        assert json.loads(output[output.rindex("{\n") :])["latencySeconds"] < 60
        assert stored(pipeline) == {}
        assert expected(pipeline) == {}
        ledger = list(scan(pipeline.dynamodb, LEDGER_TABLE))
        assert [item["page"] for item in ledger] == [{"S": "catalogue"}]


def test_verify_of_totals_by_day_alone__touches_no_real_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_day = tmp_path / "by_day.toml"
    by_day.write_text(
        SAMPLE_FILE.read_text()
        .replace('partition_key = { name = "item_number", from = "item_number" }\n', "")
        .replace("sort_key = { name", "partition_key = { name")
        + 'remove = "retract"\n'
    )
    stop = threading.Event()
    with running_pipeline(by_day, settings=QUICK) as pipeline:
        put_orders(pipeline, 10)
        delivering = threading.Thread(target=pipeline.mapping.run, args=(stop,))
        delivering.start()
        try:
            status = main(["verify", "--timeout", "60"])
        finally:
            stop.set()
            delivering.join()

        assert status == 0
        assert stored(pipeline) == expected(pipeline) == {("2024-07-15",): (Decimal(55),)}


def test_verify_without_a_worker__fails_in_time_and_cleans_up(capsys: pytest.CaptureFixture[str]) -> None:
    with pipeline_with() as pipeline:
        status = main(["verify", "--timeout", "0.3"])

        assert status == 2
        assert "did not reach item_count_by_date" in capsys.readouterr().err
        assert expected(pipeline) == {}


def test_every_command__has_help_and_takes_the_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("dead-letters", "replay", "explain", "verify", "status"):
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([command, "--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        assert all(option in text for option in ("--stack", "--profile", "--region", "--endpoint-url", "--json"))

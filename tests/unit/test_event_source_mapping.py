"""The event source mapping as a whole: from a stream to a handler."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.local.delivery import DiscardCondition, DiscardedBatch, Invocation
from aggregation_worker.local.event_source_mapping import EventSourceMapping
from aggregation_worker.local.local_function import Handler
from aggregation_worker.streams.records import EventName
from tests.stream_fakes import (
    AWS_DEFAULTS,
    STREAM_ARN,
    FakeShard,
    FakeStreamsClient,
    get_records_record,
    numbers_of,
)
from tests.waiting import wait_for

NOW = time.time()


class Bucket:
    """An S3 client that keeps what it is given, or refuses it."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.objects: dict[str, dict[str, Any]] = {}

    def put_object(self, **request: Any) -> None:
        if self.refuses:
            raise ClientError({"Error": {"Code": "NoSuchBucket", "Message": "gone"}}, "PutObject")
        self.objects[request["Key"]] = json.loads(request["Body"])


def record(number: int, **changes: Any) -> dict[str, Any]:
    return get_records_record(number, **({"created_at": NOW} | changes))


def shard_of(count: int, **changes: Any) -> FakeShard:
    return FakeShard("shard-1").put(*(record(number, **changes) for number in range(1, count + 1)))


def mapping_of(
    streams: FakeStreamsClient, handler: Handler, settings: MappingSettings | None = None, **options: Any
) -> EventSourceMapping:
    typed: Any = streams
    return EventSourceMapping(
        typed,
        options.pop("s3_client", Bucket()),
        STREAM_ARN,
        handler,
        settings or replace(AWS_DEFAULTS, retry_pause_seconds=0),
        event_names=options.pop("event_names", tuple(EventName)),
        on_failure_bucket="dead-letters",
        function_name="totals",
        poll_interval_seconds=0.002,
        **options,
    )


def drain(mapping: EventSourceMapping) -> None:
    with mapping:
        mapping.drain(timeout_seconds=60, quiet_seconds=0.01)


def test_stream__reaches_the_handler_in_batches_in_order() -> None:
    batches: list[list[int]] = []
    streams = FakeStreamsClient(shard_of(5))

    drain(
        mapping_of(
            streams, lambda event, context: batches.append(numbers_of(event)), replace(AWS_DEFAULTS, batch_size=2)
        )
    )

    assert batches == [[1, 2], [3, 4], [5]]


def test_event__has_lambdas_shape() -> None:
    events: list[dict[str, Any]] = []
    record_with_binary = record(1)
    record_with_binary["dynamodb"]["NewImage"] = {
        "b": {"B": b"\x00\xff"},
        "bs": {"BS": [b"a", b"b"]},
        "m": {"M": {"l": {"L": [{"B": b"zz"}, {"N": "1"}, {"NULL": True}]}}},
    }
    record_with_binary["userIdentity"] = {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"}
    streams = FakeStreamsClient(FakeShard("shard-1").put(record_with_binary))

    drain(mapping_of(streams, lambda event, context: events.append(event)))

    (delivered,) = events[0]["Records"]
    assert delivered == {
        "eventID": "event-1",
        "eventName": "INSERT",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "eventSourceARN": STREAM_ARN,
        "userIdentity": {"principalId": "dynamodb.amazonaws.com", "type": "Service"},
        "dynamodb": {
            "ApproximateCreationDateTime": int(NOW),
            "Keys": {"orderid": {"S": "a"}},
            "NewImage": {
                "b": {"B": "AP8="},
                "bs": {"BS": ["YQ==", "Yg=="]},
                "m": {"M": {"l": {"L": [{"B": "eno="}, {"N": "1"}, {"NULL": True}]}}},
            },
            "SequenceNumber": "000000000000000000001",
            "SizeBytes": 26,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
    }


def test_context__function_is_in_the_streams_region_and_account() -> None:
    contexts: list[Any] = []

    drain(mapping_of(FakeStreamsClient(shard_of(1)), lambda event, context: contexts.append(context)))

    assert contexts[0].invoked_function_arn == "arn:aws:lambda:us-east-1:123456789012:function:totals"


def test_empty_pages__do_not_end_the_reading() -> None:
    seen: list[int] = []
    shard = FakeShard("shard-1")

    with mapping_of(FakeStreamsClient(shard), lambda event, context: seen.extend(numbers_of(event))) as mapping:
        assert [mapping.poll_once() for _ in range(5)] == [0] * 5
        shard.put(record(1))
        mapping.drain(timeout_seconds=60, quiet_seconds=0.01)

    assert seen == [1]


def test_parent_shard__delivered_to_its_end_before_its_children() -> None:
    seen: list[int] = []
    failed_once: list[int] = []

    def handler(event: dict[str, Any], context: Any) -> None:
        if not failed_once:
            failed_once.extend(numbers_of(event))
            raise ValueError("first time")
        if 1 in numbers_of(event):
            time.sleep(0.03)  # long enough for a child that does not wait
        seen.extend(numbers_of(event))

    child = FakeShard("child", "parent").put(record(3))
    parent = FakeShard("parent", closed=True).put(record(1), record(2))

    drain(mapping_of(FakeStreamsClient(child, parent), handler))

    assert (failed_once, seen) == ([1, 2], [1, 2, 3])


def test_filter__other_records_are_read_but_not_delivered() -> None:
    seen: list[int] = []
    shard = FakeShard("shard-1").put(record(1), record(2, event_name="REMOVE"), record(3, event_name="MODIFY"))

    with mapping_of(
        FakeStreamsClient(shard),
        lambda event, context: seen.extend(numbers_of(event)),
        event_names=("INSERT", "MODIFY"),
    ) as mapping:
        assert mapping.poll_once() == 3
        mapping.drain(timeout_seconds=60, quiet_seconds=0.01)

    assert seen == [1, 3]


def test_batching_window__gathers_records_of_several_polls() -> None:
    batches: list[list[int]] = []
    shard = shard_of(1)
    settings = replace(AWS_DEFAULTS, batch_size=3, maximum_batching_window_seconds=300)

    with mapping_of(
        FakeStreamsClient(shard), lambda event, context: batches.append(numbers_of(event)), settings
    ) as mapping:
        mapping.poll_once()
        shard.put(record(2))
        mapping.poll_once()
        assert batches == []
        shard.put(record(3))
        mapping.drain(timeout_seconds=60, quiet_seconds=0.01)

    assert batches == [[1, 2, 3]]


def test_reading_ahead__ends_while_a_batch_is_under_way() -> None:
    release = threading.Event()
    delivered: list[int] = []
    shard = shard_of(50)
    settings = replace(AWS_DEFAULTS, batch_size=2)

    def handler(event: dict[str, Any], context: Any) -> None:
        release.wait(60)
        delivered.extend(numbers_of(event))

    with mapping_of(FakeStreamsClient(shard), handler, settings) as mapping:
        polled = sum(mapping.poll_once() for _ in range(20))
        release.set()
        mapping.drain(timeout_seconds=60, quiet_seconds=0.01)

    assert polled == 4
    assert delivered == list(range(1, 51))


def test_parallelization_factor__each_item_keeps_its_order() -> None:
    items = "abcdefgh"
    shard = FakeShard("shard-1").put(*(record(number, item=items[number % 8]) for number in range(1, 81)))
    lock = threading.Lock()
    under_way = most_under_way = 0
    seen: dict[str, list[int]] = {item: [] for item in items}

    def handler(event: dict[str, Any], context: Any) -> None:
        nonlocal under_way, most_under_way
        with lock:
            under_way += 1
            most_under_way = max(most_under_way, under_way)
        time.sleep(0.003)
        with lock:
            under_way -= 1
            for one in event["Records"]:
                item = one["dynamodb"]["Keys"]["orderid"]["S"]
                seen[item].append(int(one["dynamodb"]["SequenceNumber"]))

    drain(mapping_of(FakeStreamsClient(shard), handler, replace(AWS_DEFAULTS, batch_size=5, parallelization_factor=4)))

    assert 1 < most_under_way <= 4
    assert all(numbers == sorted(numbers) and len(numbers) == 10 for numbers in seen.values())


def test_parallelization_factor_1__one_batch_at_a_time() -> None:
    under_way: list[int] = []
    most_under_way: list[int] = []

    def handler(event: dict[str, Any], context: Any) -> None:
        under_way.append(1)
        most_under_way.append(len(under_way))
        time.sleep(0.002)
        under_way.pop()

    drain(mapping_of(FakeStreamsClient(shard_of(10)), handler, replace(AWS_DEFAULTS, batch_size=2)))

    assert most_under_way == [1, 1, 1, 1, 1]


def always_failing(event: dict[str, Any], context: Any) -> None:
    raise ValueError("no such table")


def test_retries_exhausted__written_to_the_bucket_rest_delivered() -> None:
    bucket = Bucket()
    seen: list[int] = []
    invocations: list[Invocation] = []
    discarded: list[tuple[DiscardedBatch, str | None]] = []

    def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
        numbers = numbers_of(event)
        seen.extend(number for number in numbers if number != 2)
        return {"batchItemFailures": [{"itemIdentifier": "2"}]} if 2 in numbers else {}

    mapping = mapping_of(
        FakeStreamsClient(shard_of(4)),
        handler,
        replace(
            AWS_DEFAULTS,
            maximum_retry_attempts=1,
            bisect_batch_on_function_error=True,
            report_batch_item_failures=True,
            retry_pause_seconds=0,
        ),
        s3_client=bucket,
        on_batch=invocations.append,
        on_discarded=lambda *one: discarded.append(one),
    )

    drain(mapping)

    ((key, document),) = bucket.objects.items()
    assert re.match(r"aws/lambda/[0-9a-f-]{36}/shard-1/", key)
    assert numbers_of(json.loads(document["payload"])) == [2]
    assert discarded[0][0].condition is DiscardCondition.RETRY_ATTEMPTS_EXHAUSTED
    assert discarded[0][1] == key
    assert seen[-2:] == [3, 4]
    assert len(discarded) == 1
    assert [(len(one.records), one.done) for one in invocations] == [(4, 1), (3, 0), (1, 0), (1, 0), (2, 2)]


def test_record_too_old__written_to_the_bucket_uncalled() -> None:
    bucket = Bucket()
    invocations: list[Invocation] = []
    mapping = mapping_of(
        FakeStreamsClient(shard_of(1, created_at=NOW - 3600)),
        always_failing,
        replace(AWS_DEFAULTS, maximum_record_age_seconds=60),
        s3_client=bucket,
        on_batch=invocations.append,
    )

    drain(mapping)

    (document,) = bucket.objects.values()
    assert document["requestContext"]["condition"] == "RecordAgeExceeded"
    assert invocations == []


def test_destination_refuses_the_document__records_are_dropped(caplog: pytest.LogCaptureFixture) -> None:
    discarded: list[tuple[int, str | None]] = []
    mapping = mapping_of(
        FakeStreamsClient(shard_of(3)),
        always_failing,
        replace(AWS_DEFAULTS, maximum_retry_attempts=0),
        s3_client=Bucket(refuses=True),
        on_discarded=lambda batch, key: discarded.append((len(batch.records), key)),
    )

    with caplog.at_level(logging.WARNING):
        drain(mapping)

    assert discarded == [(3, None)]
    assert "3 discarded records did not reach dead-letters" in caplog.text


def test_on_batch__called_after_every_invocation() -> None:
    invocations: list[Invocation] = []
    mapping = mapping_of(
        FakeStreamsClient(shard_of(2)),
        always_failing,
        replace(AWS_DEFAULTS, maximum_retry_attempts=1, retry_pause_seconds=0),
        on_batch=invocations.append,
    )

    drain(mapping)

    assert [(one.attempt, len(one.records), one.done, one.error) for one in invocations] == [
        (1, 2, 0, "ValueError: no such table"),
        (2, 2, 0, "ValueError: no such table"),
    ]


def test_on_batch_raises__next_round_raises_it() -> None:
    def on_batch(invocation: Invocation) -> None:
        raise LookupError("display broken")

    with (
        mapping_of(FakeStreamsClient(shard_of(1)), lambda event, context: None, on_batch=on_batch) as mapping,
        pytest.raises(LookupError, match="display broken"),
    ):
        mapping.drain(timeout_seconds=60)


def test_drain__waits_for_deliveries_under_way() -> None:
    ended: list[int] = []

    def handler(event: dict[str, Any], context: Any) -> None:
        time.sleep(0.05)
        ended.extend(numbers_of(event))

    with mapping_of(FakeStreamsClient(shard_of(1)), handler) as mapping:
        mapping.drain(timeout_seconds=60, quiet_seconds=0)
        assert ended == [1]


def test_drain_of_a_batch_that_always_fails__times_out() -> None:
    settings = replace(AWS_DEFAULTS, batch_size=2, retry_pause_seconds=0.01)
    invocations: list[Invocation] = []
    discarded: list[DiscardedBatch] = []

    with (
        mapping_of(
            FakeStreamsClient(shard_of(3)),
            always_failing,
            settings,
            on_batch=invocations.append,
            on_discarded=lambda batch, key: discarded.append(batch),
        ) as mapping,
        pytest.raises(TimeoutError, match=r"not drained within 0\.05 s: 1 records wait, 1 batches are being delivered"),
    ):
        mapping.drain(timeout_seconds=0.05)

    invoked = len(invocations)
    time.sleep(0.03)

    assert len(invocations) == invoked > 0
    assert discarded == []


def run_until(condition: Callable[[], bool], mapping: EventSourceMapping) -> None:
    """Runs the mapping in a thread until `condition` holds."""
    stop = threading.Event()
    thread = threading.Thread(target=mapping.run, args=[stop])
    thread.start()
    try:
        wait_for(condition, pause=0.002)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def test_close_during_an_invocation__halves_are_not_sent() -> None:
    calls: list[int] = []
    called, release = threading.Event(), threading.Event()

    def handler(event: dict[str, Any], context: Any) -> None:
        calls.append(len(event["Records"]))
        called.set()
        release.wait(60)
        raise ValueError

    settings = replace(AWS_DEFAULTS, bisect_batch_on_function_error=True)
    mapping = mapping_of(FakeStreamsClient(shard_of(4)), handler, settings)
    mapping.poll_once()
    assert called.wait(60)
    closing = threading.Thread(target=mapping.close)
    closing.start()
    time.sleep(0.01)
    release.set()
    closing.join(30)

    assert not closing.is_alive()
    assert calls == [4]


def test_run__delivers_what_comes_until_it_is_stopped() -> None:
    seen: list[int] = []
    shard = shard_of(1)

    def handler(event: dict[str, Any], context: Any) -> None:
        seen.extend(numbers_of(event))
        if len(seen) < 5:
            shard.put(record(seen[-1] + 1))

    run_until(lambda: seen == [1, 2, 3, 4, 5], mapping_of(FakeStreamsClient(shard), handler))


def test_run_stopped_during_a_retry_pause__ends_at_once() -> None:
    calls: list[int] = []

    def handler(event: dict[str, Any], context: Any) -> None:
        calls.append(1)
        raise ValueError

    mapping = mapping_of(FakeStreamsClient(shard_of(1)), handler, replace(AWS_DEFAULTS, retry_pause_seconds=60))

    run_until(lambda: len(calls) == 1, mapping)


def test_stream_that_cannot_be_read__run_raises() -> None:
    class Gone(FakeStreamsClient):
        def describe_stream(self, **request: Any) -> dict[str, Any]:
            raise ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "gone"}}, "DescribeStream")

    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        mapping_of(Gone(), always_failing).run(threading.Event())

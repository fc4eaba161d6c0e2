"""Parking a record, and reading any dead letter back."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.dead_letters import (
    MAX_MESSAGE_BYTES,
    DeadLetter,
    DeadLetterQueue,
    FailedBatch,
    FailedBatchReference,
    Notice,
    NotificationTest,
    ObjectReference,
    ParkedRecord,
    RecordReference,
    UnreadableDeadLetterError,
    letter_of,
    message_body,
    read_dead_letter,
    read_failed_batch,
)
from tests.dead_letter_fakes import BUCKET, NOW, QUEUE_URL, ParkingPlace
from tests.json_values import JSON
from tests.records import STREAM_ARN, event, insert, order, sequence_number

DENIED = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "SendMessageBatch")
NO_ANSWER = botocore.exceptions.ReadTimeoutError(endpoint_url=QUEUE_URL)


def parked(size: int = 0, **attributes: Any) -> ParkedRecord:
    """A refused record, with an attribute of `size` characters."""
    return ParkedRecord(
        insert(order(note={"S": "n" * size}, **attributes)), ("item_count_by_date: quantity: not a number",)
    )


def on_failure_document(*records: Any, **changes: Any) -> dict[str, Any]:
    """What Lambda writes to S3 when it gives a batch up; `...` leaves a part out."""
    document = {
        "requestContext": {
            "requestId": "e4b46cbf",
            "functionArn": "arn:aws:lambda:us-east-1:123456789012:function:totals",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 31,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2024-07-15T09:40:00.000Z",
        "DDBStreamBatchInfo": {
            "shardId": "shardId-00000001573689847184-864758bb",
            "startSequenceNumber": "800000000003126276362",
            "endSequenceNumber": "800000000003126276364",
            "approximateArrivalOfFirstRecord": "2024-07-15T09:30:00Z",
            "approximateArrivalOfLastRecord": "2024-07-15T09:30:00Z",
            "batchSize": 3,
            "streamArn": STREAM_ARN,
        },
        "payload": json.dumps(event(*records)),
    } | changes
    return {name: value for name, value in document.items() if value is not ...}


def batch_info(**changes: Any) -> dict[str, Any]:
    info: dict[str, Any] = on_failure_document()["DDBStreamBatchInfo"] | changes
    return {name: value for name, value in info.items() if value is not ...}


def notification(**changes: Any) -> dict[str, Any]:
    """S3's message that an object was written."""
    s3 = {
        "s3SchemaVersion": "1.0",
        "bucket": {"name": BUCKET, "arn": f"arn:aws:s3:::{BUCKET}"},
        "object": {"key": "aws/lambda/f0c2/shardId-1/2024/07/15/2024-07-15T09.40.00-6aa7", "size": 4096},
    }
    return {"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": s3 | changes}]}


# --- Parking --------------------------------------------------------------------------------------------------------


def test_parked_record__is_kept_as_delivered_with_its_reasons() -> None:
    place, record = ParkingPlace(), parked()

    failed = place.queue().park([record])

    assert failed == {}
    assert place.sqs.letters() == [
        {
            "kind": "parked_record",
            "reasons": ["item_count_by_date: quantity: not a number"],
            "parkedAt": "2024-07-15T09:40:00+00:00",
            "sequenceNumber": sequence_number(record.record),
            "record": record.record,
        }
    ]
    assert read_dead_letter(place.sqs.taken[0]) == record


@pytest.mark.parametrize(
    "raw",
    [
        None,
        5,
        "text",
        [1, "two"],
        {"dynamodb": {"Keys": {}}},
        {"eventID": "\ud800", "control": "\x00\x1f\u2028"},
        {"eventName": float("inf")},
    ],
)
def test_record_of_any_shape__is_parked_and_read_back(raw: object) -> None:
    place = ParkingPlace()

    place.queue().park([ParkedRecord(raw, ("why \ud800",))])

    assert place.sqs.taken[0].isascii()
    assert read_dead_letter(place.sqs.taken[0]) == ParkedRecord(raw, ("why \ud800",))
    assert place.sqs.letters()[0]["sequenceNumber"] is None


@pytest.mark.parametrize("text", ["", "large " * 100_000])
def test_notice__is_read_back_with_its_aggregation(text: str) -> None:
    place, raw = ParkingPlace(), insert(order(note={"S": text}))
    notice = Notice(raw, ("item_count_by_date: quantity: not a number",), "item_count_by_date")

    assert place.queue().park([notice]) == {}

    (letter,) = place.sqs.letters()
    assert (letter["kind"], letter["aggregation"]) == ("notice", "item_count_by_date")
    found = read_dead_letter(place.sqs.taken[0])
    if text:
        assert isinstance(found, RecordReference)
        assert letter_of(raw, found.reasons, found.aggregation) == notice
    else:
        assert found == notice


@pytest.mark.parametrize("aggregation", [None, 5, ["item_count_by_date"]])
def test_notice_without_its_aggregation__is_unreadable(aggregation: object) -> None:
    body = json.dumps({"kind": "notice", "aggregation": aggregation, "reasons": ["why"], "record": insert()})

    with pytest.raises(UnreadableDeadLetterError, match="a notice without its aggregation"):
        read_dead_letter(body)


def test_nothing_to_park__sends_nothing_and_makes_no_client() -> None:
    place = ParkingPlace()

    assert place.queue().park([]) == {}
    assert place.clients_made == []


def test_records_that_fit_into_messages__make_no_client_of_s3() -> None:
    place = ParkingPlace()

    place.queue().park([parked()])

    assert place.clients_made == ["sqs"]


@freeze_time("2024-02-29T23:59:59.9+00:00")
def test_time_of_parking__is_now_in_utc() -> None:
    place = ParkingPlace()
    client: Any = place.sqs

    DeadLetterQueue(QUEUE_URL, BUCKET, lambda: client, lambda: client).park([parked()])

    assert place.sqs.letters()[0]["parkedAt"] == "2024-02-29T23:59:59+00:00"


def test_time_of_parking__is_written_in_utc() -> None:
    body = message_body(parked(), NOW.astimezone(timezone(timedelta(hours=5))))

    assert json.loads(body)["parkedAt"] == "2024-07-15T09:40:00+00:00"


def test_25_records__go_in_requests_of_ten() -> None:
    place = ParkingPlace()
    records = [parked() for _ in range(25)]

    assert place.queue().park(records) == {}
    assert [len(bodies) for bodies in place.sqs.requests] == [10, 10, 5]
    assert [read_dead_letter(body) for body in place.sqs.taken] == records


def test_large_records__go_in_requests_that_are_not_too_large() -> None:
    place = ParkingPlace()
    records = [parked(100_000) for _ in range(5)]

    assert place.queue().park(records) == {}
    assert [len(bodies) for bodies in place.sqs.requests] == [2, 2, 1]


@pytest.mark.parametrize(("over", "requests"), [(0, 1), (1, 2)])
def test_two_records_at_the_limit_of_a_request__go_together(over: int, requests: int) -> None:
    place = ParkingPlace()
    size = MAX_MESSAGE_BYTES // 2 - len(message_body(parked(0), NOW))

    place.queue().park([parked(size), parked(size + over)])

    assert len(place.sqs.requests) == requests


def test_record_at_the_limit__is_sent_as_a_message() -> None:
    place = ParkingPlace()
    size = MAX_MESSAGE_BYTES - len(message_body(parked(0), NOW))

    place.queue().park([parked(size), parked(size + 1)])

    assert len(place.sqs.taken[0]) == MAX_MESSAGE_BYTES
    assert len(place.s3.objects) == 1


def test_record_too_large_for_a_message__goes_to_the_bucket() -> None:
    place, record = ParkingPlace(), parked(MAX_MESSAGE_BYTES)

    failed = place.queue().park([record])

    assert failed == {}
    ((key, content),) = place.s3.objects.items()
    assert key.startswith("parked-records/2024/07/15/")
    assert json.loads(content) == record.record
    assert read_dead_letter(place.sqs.taken[0]) == RecordReference(
        ObjectReference(BUCKET, key), record.reasons, sequence_number=sequence_number(record.record)
    )
    assert place.sqs.letters()[0]["sequenceNumber"] == sequence_number(record.record)
    assert len(place.sqs.taken[0]) < 1_000


def test_large_record_parked_twice__is_one_object() -> None:
    place, record = ParkingPlace(), parked(MAX_MESSAGE_BYTES)

    place.queue().park([record, record])

    assert len(place.s3.objects) == 1
    assert len(place.sqs.taken) == 2


@pytest.mark.parametrize("error", [DENIED, NO_ANSWER])
def test_queue_that_takes_nothing__parks_nothing_and_says_why(error: Exception) -> None:
    place = ParkingPlace()
    place.sqs.faults.append(error)

    failed = place.queue().park([parked() for _ in range(12)])

    assert sorted(failed) == list(range(10))
    assert all(reason.startswith("the dead-letter queue could not be written: ") for reason in failed.values())
    assert len(place.sqs.taken) == 2


def test_message_that_the_queue_refuses__is_not_parked() -> None:
    place = ParkingPlace()
    place.sqs.faults.extend([(), (0,)])

    failed = place.queue().park([parked() for _ in range(12)])

    assert list(failed) == [10]
    assert "the dead-letter queue refused it" in failed[10]
    assert "InternalError" in failed[10]
    assert len(place.sqs.taken) == 11


@pytest.mark.parametrize("error", [DENIED, NO_ANSWER])
def test_bucket_that_takes_nothing__parks_the_small_records_only(error: Exception) -> None:
    place = ParkingPlace()
    place.s3.fault = error

    failed = place.queue().park([parked(), parked(MAX_MESSAGE_BYTES), parked()])

    assert list(failed) == [1]
    assert failed[1].startswith(f"the record could not be stored in bucket {BUCKET}: ")
    assert len(place.sqs.taken) == 2


def test_record_too_deep_to_be_written__is_not_parked() -> None:
    place = ParkingPlace()
    deep: list[Any] = []
    for _ in range(200_000):
        deep = [deep]

    failed = place.queue().park([parked(), ParkedRecord(deep, ("too deep",)), parked()])

    assert list(failed) == [1]
    assert len(place.sqs.taken) == 2


def test_time_that_is_up__parks_nothing_more() -> None:
    place = ParkingPlace()

    failed = place.queue().park([parked(), parked()], in_time=lambda: False)

    assert failed == dict.fromkeys((0, 1), "no time was left to park it")
    assert place.sqs.requests == []


@pytest.mark.parametrize(("asked", "sent", "left"), [(12, 0, 12), (13, 1, 2), (14, 2, 0)])
def test_time_that_runs_out__ends_before_the_next_request(asked: int, sent: int, left: int) -> None:
    place = ParkingPlace()
    answers = iter([True] * asked)

    failed = place.queue().park([parked() for _ in range(12)], in_time=lambda: next(answers, False))

    assert len(place.sqs.requests) == sent
    assert list(failed.values()) == ["no time was left to park it"] * left


# --- Reading: parked records ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reasons": ...}, "a parked record without reasons"),
        ({"reasons": None}, "a parked record without reasons"),
        ({"reasons": "why"}, "a parked record without reasons"),
        ({"reasons": ["why", 5]}, "a parked record without reasons"),
        ({"record": ...}, "a parked record without the record"),
        ({"record": ..., "recordObject": None}, "a parked record without the record"),
        ({"record": ..., "recordObject": {"bucket": "b"}}, "a parked record without the record"),
        ({"record": ..., "recordObject": {"bucket": "b", "key": 5}}, "a parked record without the record"),
        ({"record": ..., "recordObject": {"bucket": None, "key": "k"}}, "a parked record without the record"),
        ({"kind": "parked"}, "neither a parked record, nor a notice, nor a failed batch"),
        ({"kind": ["parked_record"]}, "neither a parked record, nor a notice, nor a failed batch"),
    ],
)
def test_damaged_parked_record__is_unreadable(changes: dict[str, Any], reason: str) -> None:
    document = json.loads(message_body(parked(), NOW)) | changes
    body = json.dumps({name: value for name, value in document.items() if value is not ...})

    with pytest.raises(UnreadableDeadLetterError, match=reason):
        read_dead_letter(body)


def test_parked_null__is_a_record() -> None:
    assert read_dead_letter(message_body(ParkedRecord(None, ("why",)), NOW)) == ParkedRecord(None, ("why",))


# --- Reading: S3's test -----------------------------------------------------------------------------------------------

S3_TEST = {
    "Service": "Amazon S3",
    "Event": "s3:TestEvent",
    "Time": "2024-07-15T09:40:00.000Z",
    "Bucket": BUCKET,
    "RequestId": "5582815E1AEA5ADF",
    "HostId": "8cLeGAmw098X5cv4Zkwcmo8vvZa3eH3eKxsPzbB9wrR",
}


def test_message_with_which_s3_tests_the_queue__is_recognized() -> None:
    assert read_dead_letter(json.dumps(S3_TEST)) == NotificationTest(BUCKET)


@pytest.mark.parametrize("changes", [{"Event": "s3:Other"}, {"Event": None}, {"Bucket": None}, {"Bucket": [[]]}])
def test_message_that_only_looks_like_it__is_unreadable(changes: dict[str, Any]) -> None:
    with pytest.raises(UnreadableDeadLetterError, match="neither a parked record, nor a notice"):
        read_dead_letter(json.dumps(S3_TEST | changes))


# --- Reading: batches that Lambda gave up on ------------------------------------------------------------------------


def test_notification_of_an_object__refers_to_it() -> None:
    body = json.dumps(notification())

    assert read_dead_letter(body) == FailedBatchReference(
        ObjectReference(BUCKET, "aws/lambda/f0c2/shardId-1/2024/07/15/2024-07-15T09.40.00-6aa7")
    )


def test_key_in_a_notification__is_url_decoded() -> None:
    body = json.dumps(notification(object={"key": "aws/lambda/a+b%3Dc%C3%A9", "versionId": "v1"}))

    assert read_dead_letter(body) == FailedBatchReference(ObjectReference(BUCKET, "aws/lambda/a b=cé", "v1"))


@pytest.mark.parametrize(
    "document",
    [
        {"Records": []},
        {"Records": notification()["Records"] * 2},
        {"Records": [None]},
        {"Records": ["text"]},
        {"Records": [{}]},
        {"Records": [{"s3": None}]},
        {"Records": [{"s3": {"bucket": {"name": "b"}}}]},
        notification(bucket=None),
        notification(bucket={}),
        notification(bucket={"name": 5}),
        notification(object={}),
        notification(object={"key": None}),
        notification(object={"key": 5}),
        notification(object={"key": "k", "versionId": 5}),
        event(insert()),
    ],
)
def test_notification_not_of_one_object__is_unreadable(document: dict[str, Any]) -> None:
    with pytest.raises(UnreadableDeadLetterError, match="not a notification of one S3 object"):
        read_dead_letter(json.dumps(document))


@pytest.mark.parametrize("read", [read_failed_batch, read_dead_letter])
def test_on_failure_document__holds_the_records(read: Callable[[str], FailedBatch]) -> None:
    records = [insert(), insert(), None]

    batch = read(json.dumps(on_failure_document(*records)))

    assert batch == FailedBatch(
        records=tuple(records),
        condition="RetryAttemptsExhausted",
        stream_arn=STREAM_ARN,
        shard_id="shardId-00000001573689847184-864758bb",
        first="800000000003126276362",
        last="800000000003126276364",
        size=3,
    )


def test_document_of_records_too_old__has_no_response() -> None:
    document = on_failure_document(insert(), responseContext=..., requestContext={"condition": "RecordAgeExceeded"})

    batch = read_failed_batch(json.dumps(document))

    assert batch.condition == "RecordAgeExceeded"
    assert batch.records is not None


@pytest.mark.parametrize("payload", [..., None])
def test_notice_without_records__only_points_into_the_stream(payload: object) -> None:
    batch = read_dead_letter(json.dumps(on_failure_document(payload=payload)))

    assert isinstance(batch, FailedBatch)
    assert batch.records is None
    assert (batch.first, batch.size) == ("800000000003126276362", 3)


@pytest.mark.parametrize("context", [..., None, {}, "text", {"requestId": "e4b46cbf"}])
def test_document_without_a_condition__is_read(context: object) -> None:
    assert read_failed_batch(json.dumps(on_failure_document(requestContext=context))).condition == "unknown"


def test_document_without_a_batch_size__counts_the_records() -> None:
    document = on_failure_document(insert(), insert(), DDBStreamBatchInfo=batch_info(batchSize=...))

    assert read_failed_batch(json.dumps(document)).size == 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"DDBStreamBatchInfo": ...}, "has no DDBStreamBatchInfo"),
        ({"DDBStreamBatchInfo": None}, "has no DDBStreamBatchInfo"),
        ({"DDBStreamBatchInfo": []}, "has no DDBStreamBatchInfo"),
        ({"payload": ""}, "payload is not JSON"),
        ({"payload": "{"}, "payload is not JSON"),
        ({"payload": "[]"}, "payload is not a JSON object"),
        ({"payload": {}}, "payload is not a text"),
        ({"payload": "{}"}, "payload has no Records"),
        ({"payload": '{"Records": null}'}, "payload has no Records"),
        ({"requestContext": {"condition": 5}}, "is damaged"),
        *(
            ({"DDBStreamBatchInfo": batch_info(**{name: value})}, "is damaged")
            for name, values in {
                "streamArn": (..., None, 5),
                "shardId": (..., None, ["s"]),
                "startSequenceNumber": (..., None, "", "x", 1.5, "1" * 5_000, float("inf")),
                "endSequenceNumber": (..., None, "x", True),
                "batchSize": (None, "x", [], float("inf"), float("nan")),
            }.items()
            for value in values
        ),
    ],
)
def test_damaged_document__is_unreadable(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnreadableDeadLetterError, match=reason):
        read_failed_batch(json.dumps(on_failure_document(**changes)))


# --- Reading anything -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", ["", "text", "{", "[]", "null", "5", '"text"', "{}", '{"Service": "Amazon S3"}', "[" * 200_000]
)
def test_message_of_another_sender__is_unreadable(body: str) -> None:
    with pytest.raises(UnreadableDeadLetterError):
        read_dead_letter(body)


@pytest.mark.parametrize("depth", [100, 900, 990, 100_000])
@pytest.mark.parametrize(
    "document",
    [
        '{"kind": "parked_record", "reasons": [DEEP]}',
        '{"Records": [{"s3": {"bucket": {"name": DEEP}, "object": {"key": "k"}}}]}',
        '{"DDBStreamBatchInfo": {"streamArn": DEEP, "shardId": "s"}}',
        '{"DDBStreamBatchInfo": {"streamArn": "a", "shardId": "s", "startSequenceNumber": DEEP}}',
    ],
)
def test_deeply_nested_message__is_unreadable(document: str, depth: int) -> None:
    with pytest.raises(UnreadableDeadLetterError):
        read_dead_letter(document.replace("DEEP", "[" * depth + "]" * depth))


PARTS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.just("parked_record") | JSON,
        "reasons": st.lists(st.text()) | JSON,
        "record": JSON,
        "recordObject": st.fixed_dictionaries({}, optional={"bucket": JSON, "key": JSON}) | JSON,
        "Records": st.lists(st.fixed_dictionaries({"s3": JSON | st.dictionaries(st.just("bucket"), JSON)})) | JSON,
        "DDBStreamBatchInfo": JSON
        | st.fixed_dictionaries(
            {}, optional={name: JSON | st.just("123") for name in [*batch_info(), "startSequenceNumber"]}
        ),
        "requestContext": JSON | st.dictionaries(st.just("condition"), JSON),
        "payload": JSON | JSON.map(json.dumps),
    },
)


@given(st.text(st.characters()) | JSON.map(json.dumps) | PARTS.map(json.dumps))
def test_any_text_as_a_dead_letter__is_read_or_unreadable(body: str) -> None:
    try:
        letter = read_dead_letter(body)
    except UnreadableDeadLetterError:
        return

    assert isinstance(letter, DeadLetter)


@given(JSON, st.lists(st.text(st.characters())), st.datetimes(timezones=st.just(UTC)))
def test_any_record__is_parked_and_read_back(raw: Any, reasons: list[str], now: datetime) -> None:
    body = message_body(ParkedRecord(raw, tuple(reasons)), now)

    letter = read_dead_letter(body)

    assert isinstance(letter, ParkedRecord)
    assert letter.reasons == tuple(reasons)
    assert json.dumps(letter.record) == json.dumps(raw)

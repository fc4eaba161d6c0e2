"""Dead letters as operators see them: nothing that a message says of its place is believed, and none ends a command."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aggregation_worker.dead_letters import Notice, ParkedRecord, message_body
from aggregation_worker.operations.letters import Groups, Letter, LetterReader, source_of, trusted_until
from aggregation_worker.operations.queue import Message
from aggregation_worker.streams.records import Origin
from tests.dead_letter_fakes import BUCKET, NOW
from tests.definition_texts import aggregation_text, definitions
from tests.records import ORIGIN, STREAM_ARN, insert, order

DEFINED = definitions(aggregation_text(""))
FOREIGN = {
    "account": STREAM_ARN.replace("123456789012", "999999999999"),
    "region": STREAM_ARN.replace("us-east-1", "eu-west-1"),
    "table": STREAM_ARN.replace("Order_by_item", "Order_by_item_old"),
}


class Bucket:
    """The objects of some buckets, by bucket and key; notes what is asked for."""

    def __init__(self, objects: Mapping[tuple[str, str], bytes] | None = None) -> None:
        self.objects = objects or {}
        self.asked: list[tuple[str, str]] = []

    def get_object(self, **request: str) -> dict[str, Any]:
        asked = request["Bucket"], request["Key"]
        self.asked.append(asked)
        if asked not in self.objects:
            raise ClientError({"Error": {"Code": "NoSuchKey", "Message": "no"}}, "GetObject")
        return {"Body": BytesIO(self.objects[asked])}


def read(body: str, bucket: Bucket | None = None, source: Origin | None = ORIGIN) -> Letter:
    """A message of the queue, read; the streams of the account refuse to be read."""

    def no_stream(**_: Any) -> Any:
        raise AssertionError("a stream was read")

    client = SimpleNamespace(get_shard_iterator=no_stream)
    resources: Any = SimpleNamespace(bucket=BUCKET, s3=bucket or Bucket(), definitions=DEFINED, client=lambda _: client)
    return LetterReader(resources, source)(Message("id", body, datetime(2024, 7, 15, tzinfo=UTC)))


def parked(record: Any) -> str:
    return message_body(ParkedRecord(record, ("why",)), NOW)


def referring(bucket: str, number: str = "1234567890") -> str:
    content = {"bucket": bucket, "key": "parked-records/x"}
    return json.dumps({"kind": "parked_record", "reasons": ["why"], "sequenceNumber": number, "recordObject": content})


def notification(bucket: str) -> str:
    return json.dumps({"Records": [{"s3": {"bucket": {"name": bucket}, "object": {"key": "aws/lambda/x"}}}]})


def document(stream_arn: str, *records: Any) -> str:
    info = {
        "shardId": "shard",
        "startSequenceNumber": "11",
        "endSequenceNumber": "99",
        "batchSize": len(records) or 1,
        "streamArn": stream_arn,
    }
    payload = {"payload": json.dumps({"Records": records})} if records else {}
    return json.dumps({"requestContext": {"condition": "RecordAgeExceeded"}, "DDBStreamBatchInfo": info, **payload})


# --- Nothing is believed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("kind", ["parked record", "notice", "failed batch"])
def test_record_of_another_source__is_not_replayed(kind: str, foreign: str) -> None:
    record = insert() | {"eventSourceARN": FOREIGN[foreign]}
    body = {
        "parked record": parked(record),
        "notice": message_body(Notice(record, ("why",), "sold"), NOW),
        "failed batch": document(STREAM_ARN, insert(), record),
    }[kind]

    letter = read(body)

    assert (letter.kind, letter.readable, letter.records, letter.notice) == ("unreadable", False, (), None)
    assert "a record is not the source table's" in letter.reasons[0]


@pytest.mark.parametrize("foreign", FOREIGN)
def test_pointer_into_another_stream__is_not_followed(foreign: str) -> None:
    letter = read(document(FOREIGN[foreign]))

    assert (letter.kind, letter.readable) == ("unreadable", False)
    assert "but the source is" in letter.reasons[0]
    assert letter.sequence_numbers == ["11", "99"]


def test_source_that_is_not_known__no_stream_is_read() -> None:
    assert not read(document(STREAM_ARN), source=None).readable
    assert read(document(STREAM_ARN, insert()), source=None).readable


def test_record_of_an_earlier_stream_of_the_table__is_the_sources() -> None:
    record = insert() | {"eventSourceARN": STREAM_ARN.replace("2024-07-01", "2023-01-01")}

    assert read(parked(record)).records == (record,)


@pytest.mark.parametrize("stream", [None, 7, "eventsource_arn"])
def test_record_that_names_no_stream__is_left_to_the_worker(stream: object) -> None:
    """It is malformed: the worker parks it, and counts nothing of it."""
    record = insert() | {"eventSourceARN": stream}

    assert read(parked(record)).records == (record,)


@pytest.mark.parametrize("body", [referring("finance"), notification("finance")])
def test_object_of_another_bucket__is_not_read(body: str) -> None:
    bucket = Bucket({("finance", "parked-records/x"): json.dumps(insert()).encode()})

    letter = read(body, bucket)

    assert (letter.kind, letter.readable, bucket.asked) == ("unreadable", False, [])
    assert f"names the bucket 'finance', but the stack's is {BUCKET!r}" in letter.reasons[0]


def test_test_of_another_bucket__is_not_taken_for_ours() -> None:
    assert read(json.dumps({"Event": "s3:TestEvent", "Bucket": "finance"})).kind == "unreadable"
    assert read(json.dumps({"Event": "s3:TestEvent", "Bucket": BUCKET})).kind == "notification test"


def test_source__is_the_environments_or_the_tables_own() -> None:
    table = {"Table": {"TableArn": "arn:aws:dynamodb:eu-west-1:111122223333:table/Order_by_item"}}
    resources: Any = SimpleNamespace(
        definitions=DEFINED, dynamodb=SimpleNamespace(describe_table=lambda **request: table)
    )

    assert DEFINED.source.stream_arn is None
    assert source_of(resources) == Origin("Order_by_item", "eu-west-1", "111122223333")


# --- None ends a command ----------------------------------------------------------------------------------------------


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@pytest.mark.parametrize("levels", [101, 500, 980, 100_000])
def test_record_nested_deep__is_one_line_with_what_is_known(levels: int) -> None:
    record = f'{{"eventID": "e", "deep": {nested(levels)}}}'
    body = f'{{"kind": "parked_record", "reasons": ["why"], "sequenceNumber": "123", "record": {record}}}'

    letter = read(body)

    assert (letter.kind, letter.readable) == ("unreadable", False)
    if levels < 900:  # else it cannot even be parsed
        assert letter.reasons[1:] == ("why",)
        assert letter.sequence_numbers == ["123"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (nested(100_000).encode(), "is not JSON"),
        (nested(500).encode(), "nested more than 100 levels deep"),
        (b"{", "is not JSON"),
        (b"\xff", "is not text"),
    ],
)
def test_object_that_is_damaged__is_one_line_with_what_is_known(content: bytes, what: str) -> None:
    letter = read(referring(BUCKET), Bucket({(BUCKET, "parked-records/x"): content}))

    assert what in letter.reasons[0]
    assert (letter.reasons[1:], letter.sequence_numbers) == (("why",), ["1234567890"])


def test_object_that_is_gone__is_one_line_with_what_is_known() -> None:
    letter = read(referring(BUCKET))

    assert letter.reasons == ("the object parked-records/x is no longer in the bucket", "why")
    assert letter.sequence_numbers == ["1234567890"]


def test_payload_nested_deep__is_one_line() -> None:
    body = json.loads(document(STREAM_ARN, insert()))
    body["payload"] = f'{{"Records": [{nested(500)}]}}'

    assert "nested more than 100 levels deep" in read(json.dumps(body)).reasons[0]


@pytest.mark.parametrize("moment", [253_402_300_799, 1e300, float("inf"), float("nan"), -1e300, "never", None, True])
def test_creation_time_of_any_kind__gives_a_limit_or_none(moment: object) -> None:
    record = insert()
    record["dynamodb"]["ApproximateCreationDateTime"] = moment

    until = trusted_until(record, 60)

    assert until is None or isinstance(until, datetime)
    assert read(parked(record)).readable


def test_half_of_a_surrogate_pair__is_read() -> None:
    record = insert(order("a\ud83d"))

    assert read(parked(record)).records == (record,)


# --- Groups -----------------------------------------------------------------------------------------------------------


def test_letters_alike__are_one_group_with_its_oldest() -> None:
    groups = Groups()
    for day in (3, 1, 2):
        moment = datetime(2024, 7, day, tzinfo=UTC)
        groups.add(("parked record", f"sold: 'item{day}' of 80000{day} is refused"), str(day), moment, moment)
    groups.add(("notice", "sold: text"), "notice")

    first, second = groups.by_size()

    assert (first.count, first.what, first.example) == (3, ("parked record", "sold: 'item3' of 800003 is refused"), "3")
    assert first.sent_at == first.until == datetime(2024, 7, 1, tzinfo=UTC)
    assert (second.count, second.sent_at) == (1, None)


def test_groups__are_bounded() -> None:
    groups = Groups()
    for number in range(10_000):
        groups.add(("parked record", chr(0x4E00 + number)), str(number))

    assert len(groups.found) <= 101
    assert sum(group.count for group in groups.by_size()) == 10_000

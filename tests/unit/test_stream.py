"""Stream records: what is read, what is malformed, and what does not come from the source's stream at all."""

import base64
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.streams.records import (
    EventName,
    MalformedRecordError,
    Origin,
    Stream,
    StreamRecord,
    StreamViewTypeError,
    UnexpectedEventError,
    from_get_records,
    read_record,
    records_of,
    sequence_number_of,
    stream_of,
)
from tests.json_values import JSON
from tests.records import (
    CREATED_AT,
    SOURCE_TABLE,
    STREAM_ARN,
    STREAM_LABEL,
    changed,
    event,
    insert,
    modify,
    order,
    remove,
    stream_record,
    validated,
)

# --- What is read ---------------------------------------------------------------------------------------------------


def test_insert__is_read_with_its_new_image_only() -> None:
    raw = insert(order(quantity=7), sequence_number=10**21, event_id="c4ca4238", created_at=CREATED_AT)

    assert validated(raw) == StreamRecord(
        event_name=EventName.INSERT,
        event_id="c4ca4238",
        sequence_number="1" + "0" * 21,
        created_at=CREATED_AT,
        old_image=None,
        new_image=order(quantity=7),
        expired=False,
    )


def test_modify__is_read_with_both_images() -> None:
    record = validated(modify(order(quantity=1), order(quantity=2)))

    assert (record.old_image, record.new_image) == (order(quantity=1), order(quantity=2))


def test_remove__is_read_with_its_old_image_only() -> None:
    record = validated(remove(order(quantity=1)))

    assert (record.event_name, record.old_image, record.new_image) == (EventName.REMOVE, order(quantity=1), None)


def test_image_that_an_event_cannot_have__does_not_count() -> None:
    inserted = validated(stream_record("INSERT", old=order(), new=order()))
    removed = validated(stream_record("REMOVE", old=order(), new=order()))

    assert inserted.old_image is None
    assert removed.new_image is None


def test_remove_without_an_old_image__is_read() -> None:
    # An aggregation may ignore it.
    assert validated(stream_record("REMOVE")).old_image is None


@pytest.mark.parametrize(
    ("identity", "expired"),
    [
        ({"type": "Service", "principalId": "dynamodb.amazonaws.com"}, True),
        ({"type": "Service", "principalId": "replication.dynamodb.amazonaws.com"}, False),
        ({"type": "User", "principalId": "dynamodb.amazonaws.com"}, False),
        ({"Type": "Service", "PrincipalId": "dynamodb.amazonaws.com"}, False),
        ({}, False),
        (None, False),
        ("Service", False),
    ],
)
def test_remove_by_ttl__is_told_by_its_identity(identity: object, expired: bool) -> None:
    assert validated({**remove(), "userIdentity": identity}).expired is expired


def test_insert_with_the_identity_of_ttl__is_not_expired() -> None:
    raw = {**insert(), "userIdentity": {"type": "Service", "principalId": "dynamodb.amazonaws.com"}}

    assert validated(raw).expired is False


@pytest.mark.parametrize("printed", ["1789651658", "1789651658.0", "1.789651658E9", "1789651658.999"])
def test_creation_time__is_the_whole_second_however_printed(printed: str) -> None:
    raw = json.loads(json.dumps(insert(created_at=0)).replace('ateTime": 0', f'ateTime": {printed}'))

    record = validated(raw)

    assert record.created_at == 1_789_651_658
    assert isinstance(record.created_at, int)


@pytest.mark.parametrize("digits", [1, 21, 22, 40, 64])
def test_sequence_number__can_have_any_usual_length(digits: int) -> None:
    assert validated(changed(insert(), "dynamodb.SequenceNumber", "7" * digits)).sequence_number == "7" * digits


def test_record_without_an_event_source__is_read() -> None:
    raw = changed(insert(), "eventSource")  # a replayed record may lack it

    assert records_of(event(raw)) == [raw]
    assert validated(raw).event_name is EventName.INSERT


# --- What is malformed ----------------------------------------------------------------------------------------------

NO_MOMENTS: list[Any] = [
    *(..., None, True, False, "1789651658", "2024-07-15", [], {}),
    *(float("nan"), float("inf"), float("-inf"), -1, -0.5, 2**32, 10**400),
]


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("dynamodb", ..., "no 'dynamodb' object"),
        ("dynamodb", None, "no 'dynamodb' object"),
        ("dynamodb", [], "no 'dynamodb' object"),
        ("dynamodb", "text", "no 'dynamodb' object"),
        ("eventName", ..., "no eventName"),
        ("eventName", None, "no eventName"),
        ("eventName", ["INSERT"], "no eventName"),
        ("eventName", "UPSERT", "unknown eventName 'UPSERT'"),
        ("eventName", "insert", "unknown eventName 'insert'"),
        ("eventName", "", "unknown eventName ''"),
        ("eventName", "\ud800", "unknown eventName"),
        ("dynamodb.SequenceNumber", ..., "no SequenceNumber"),
        ("dynamodb.SequenceNumber", None, "no SequenceNumber"),
        ("dynamodb.SequenceNumber", "", "no SequenceNumber"),
        ("dynamodb.SequenceNumber", 123, "no SequenceNumber"),
        ("dynamodb.SequenceNumber", "12a", "no SequenceNumber"),
        ("dynamodb.SequenceNumber", "-12", "no SequenceNumber"),
        ("dynamodb.SequenceNumber", "12\n", "no SequenceNumber"),
        ("dynamodb.SequenceNumber", "١٢", "no SequenceNumber"),
        ("dynamodb.SequenceNumber", "1" * 65, "no SequenceNumber"),
        ("eventID", ..., "no eventID"),
        ("eventID", None, "no eventID"),
        ("eventID", "", "no eventID"),
        ("eventID", 5, "no eventID"),
        ("dynamodb.Keys", ..., "no Keys"),
        ("dynamodb.Keys", None, "no Keys"),
        ("dynamodb.Keys", {}, "no Keys"),
        ("dynamodb.Keys", [1], "no Keys"),
        ("eventSourceARN", ..., "no eventSourceARN"),
        ("eventSourceARN", None, "no eventSourceARN"),
        ("eventSourceARN", {}, "no eventSourceARN"),
        ("eventSourceARN", "", "not the ARN of a DynamoDB stream"),
        ("eventSourceARN", STREAM_ARN.rpartition("/")[0], "not the ARN of a DynamoDB stream"),
        ("eventSourceARN", STREAM_ARN.replace("dynamodb", "kinesis"), "not the ARN of a DynamoDB stream"),
        ("eventSourceARN", STREAM_ARN + "\ud800", "not the ARN of a DynamoDB stream"),
        ("eventSourceARN", STREAM_ARN + "\n", "not the ARN of a DynamoDB stream"),
        ("eventSourceARN", STREAM_ARN + "0" * 1000, "not the ARN of a DynamoDB stream"),
        ("dynamodb.NewImage", "text", "NewImage is not a JSON object"),
        ("dynamodb.NewImage", [1], "NewImage is not a JSON object"),
        ("dynamodb.NewImage", 1, "NewImage is not a JSON object"),
        ("dynamodb.OldImage", [1], "OldImage is not a JSON object"),
        *(("dynamodb.ApproximateCreationDateTime", moment, "no ApproximateCreationDateTime") for moment in NO_MOMENTS),
    ],
)
def test_record_with_a_damaged_part__is_malformed_and_names_it(path: str, value: object, reason: str) -> None:
    raw = changed(modify(order(), order(quantity=11)), path, value)

    with pytest.raises(MalformedRecordError, match=reason) as refused:
        validated(raw)

    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("raw", [None, 5, "text", [], [insert()], True, float("nan")])
def test_record_that_is_not_an_object__is_malformed(raw: object) -> None:
    with pytest.raises(MalformedRecordError, match="not a JSON object"):
        validated(raw)


@pytest.mark.parametrize(
    ("moment", "shape"), [(1_721_037_600_000, "it is in milliseconds"), ("2024-07-15T10:00:00Z", "it is a text")]
)
def test_creation_time_as_other_tools_write_it__is_named(moment: object, shape: str) -> None:
    with pytest.raises(MalformedRecordError, match=f"in epoch seconds, .*: {shape}"):
        validated(changed(insert(), "dynamodb.ApproximateCreationDateTime", moment))


@pytest.mark.parametrize(
    ("raw", "image"),
    [
        (stream_record("INSERT", new={}), "NewImage"),
        (stream_record("MODIFY", old={}, new=order()), "OldImage"),
        (stream_record("MODIFY", old=order(), new={}), "NewImage"),
    ],
)
def test_needed_image_that_is_empty__is_this_records_mistake(raw: dict[str, Any], image: str) -> None:
    with pytest.raises(MalformedRecordError, match=f"{image} is empty"):
        validated(raw)


@pytest.mark.parametrize("moment", [0, 0.0, 2**32 - 1])  # in 2106: what a receipt's position can hold
def test_creation_time_at_the_ends_of_the_calendar__is_read(moment: float) -> None:
    assert validated(insert(created_at=moment)).created_at == moment


# --- What raises ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "missing"),
    [
        (stream_record("INSERT"), "INSERT record .* has no NewImage"),
        (stream_record("MODIFY", old=order()), "MODIFY record .* has no NewImage"),
        (stream_record("MODIFY", new=order()), "MODIFY record .* has no OldImage"),
        (stream_record("MODIFY"), "MODIFY record .* has no NewImage"),
    ],
)
def test_record_without_a_needed_image__raises_what_to_set(raw: dict[str, Any], missing: str) -> None:
    with pytest.raises(StreamViewTypeError, match=missing + ".* NEW_AND_OLD_IMAGES"):
        validated(raw)


@pytest.mark.parametrize(
    ("part", "other", "named"),
    [
        (SOURCE_TABLE, "Customers", "table 'Customers' in us-east-1 of account 123456789012"),
        ("us-east-1", "eu-west-1", "table 'Order_by_item' in eu-west-1 of account 123456789012"),
        ("123456789012", "999999999999", "table 'Order_by_item' in us-east-1 of account 999999999999"),
    ],
)
def test_record_of_another_stream__raises_both_tables(part: str, other: str, named: str) -> None:
    raw = insert(stream_arn=STREAM_ARN.replace(part, other), sequence_number=7)

    with pytest.raises(UnexpectedEventError) as refused:
        read_record(raw, Origin.of(STREAM_ARN))

    assert str(refused.value) == (
        f"record 7 is not of the source table: it comes from the stream of {named}, but the source is table "
        "'Order_by_item' in us-east-1 of account 123456789012"
    )


def test_record_of_a_stream_enabled_anew__is_the_tables_own() -> None:
    raw = insert(stream_arn=STREAM_ARN.replace(STREAM_LABEL, "2025-01-01T00:00:00.000"))

    assert read_record(raw, Origin.of(STREAM_ARN)).event_name is EventName.INSERT


def test_source_of_which_only_the_name_is_known__is_compared_by_it() -> None:
    elsewhere = STREAM_ARN.replace("us-east-1", "eu-west-1").replace("123456789012", "999999999999")
    origin = Origin(SOURCE_TABLE)

    assert origin.difference(elsewhere) is None
    assert origin.difference(elsewhere.replace(SOURCE_TABLE, "Customers")) == (
        "it comes from the stream of table 'Customers' in eu-west-1 of account 999999999999, but the source is table "
        "'Order_by_item'"
    )


@pytest.mark.parametrize(
    "foreign",
    [
        {"Records": [{"eventSource": "aws:sqs", "messageId": "1", "body": "{}"}]},
        {"Records": [{"eventSource": "aws:kinesis", "kinesis": {"data": "e30="}}]},
        {"Records": [{"EventSource": "aws:sns", "Sns": {"Message": "{}"}}]},
        {"Records": [{"eventSource": "aws:s3", "s3": {}}]},
        {"Records": [insert(), {"eventSource": "aws:sqs"}]},
        {"Records": [{"eventSource": None}]},
        {"Records": [{"eventSource": {"deep": []}}]},
        {"source": "aws.events", "detail": {}},
        {"httpMethod": "GET", "path": "/"},
        {"Records": None},
        {"Records": {"0": insert()}},
        {"Records": "text"},
        {"records": []},
        *({}, [], None, "text", 5),
    ],
)
def test_event_from_another_service__raises(foreign: object) -> None:
    with pytest.raises(UnexpectedEventError):
        records_of(foreign)


def test_event_from_another_service__is_named_with_what_to_check() -> None:
    with pytest.raises(UnexpectedEventError) as refused:
        records_of({"Records": [{"eventSource": "aws:sqs"}]})

    assert str(refused.value) == ("the event comes from 'aws:sqs', not 'aws:dynamodb': check the event source mapping")


def test_event_source_in_the_message__is_short_and_only_text() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]

    for source in (value, "secret" * 1000):
        with pytest.raises(UnexpectedEventError) as refused:
            records_of({"Records": [{"eventSource": source}]})

        assert len(str(refused.value)) < 200


def test_empty_batch__has_no_records() -> None:
    assert records_of({"Records": []}) == []


def test_records_of_any_shape__are_left_to_be_read_one_by_one() -> None:
    raw: list[Any] = [None, 5, "text", [], {}, insert()]

    assert records_of({"Records": raw}) == raw


# --- Sequence numbers and ARNs --------------------------------------------------------------------------------------


NO_SEQUENCE_NUMBERS: list[Any] = [None, 5, "", "x", "1" * 65, ["1"], {}]


@pytest.mark.parametrize(
    "raw",
    [
        *(None, 5, "text", [], {}, True),
        *({"dynamodb": None}, {"dynamodb": "text"}, {"dynamodb": []}, {"dynamodb": {}}),
        *({"dynamodb": {"SequenceNumber": number}} for number in NO_SEQUENCE_NUMBERS),
    ],
)
def test_sequence_number__is_none_where_there_is_no_valid_one(raw: object) -> None:
    assert sequence_number_of(raw) is None


def test_sequence_number_of_a_malformed_record__is_known() -> None:
    assert sequence_number_of({"dynamodb": {"SequenceNumber": "123"}}) == "123"


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov"])
def test_stream_arn__tells_each_part(partition: str) -> None:
    arn = STREAM_ARN.replace("arn:aws:", f"arn:{partition}:")

    assert stream_of(arn) == Stream("us-east-1", "123456789012", SOURCE_TABLE, STREAM_LABEL)


def test_stream_arn_of_dynamodb_local__tells_each_part() -> None:
    arn = "arn:aws:dynamodb:ddblocal:000000000000:table/Order_by_item/stream/2024-07-01T00:00:00.000"

    assert stream_of(arn) == Stream("ddblocal", "000000000000", SOURCE_TABLE, STREAM_LABEL)


# --- GetRecords -----------------------------------------------------------------------------------------------------


def get_records_record() -> dict[str, Any]:
    """A record as boto3 returns it from GetRecords: no ARN, a datetime, bytes, and the identity in capitals."""
    image = {
        "orderid": {"S": "178526"},
        "picture": {"B": b"\x00\x01"},
        "pictures": {"BS": [b"\x02", b"\x03"]},
        "nested": {"M": {"list": {"L": [{"B": b"\x04"}, {"N": "1"}, {"NULL": True}, {"BOOL": False}]}}},
        "names": {"SS": ["a", "b"]},
    }
    return {
        "eventID": "c4ca4238",
        "eventName": "REMOVE",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": {
            "ApproximateCreationDateTime": datetime.fromtimestamp(CREATED_AT, timezone(timedelta(hours=2))),
            "Keys": {"orderid": {"S": "178526"}, "picture": {"B": b"\x00\x01"}},
            "OldImage": image,
            "SequenceNumber": "1" * 22,
            "SizeBytes": 26,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
        },
        "userIdentity": {"PrincipalId": "dynamodb.amazonaws.com", "Type": "Service"},
    }


def test_record_from_get_records__becomes_what_lambda_delivers() -> None:
    delivered = from_get_records(get_records_record(), STREAM_ARN)

    assert delivered["eventSourceARN"] == STREAM_ARN
    assert delivered["userIdentity"] == {"principalId": "dynamodb.amazonaws.com", "type": "Service"}
    assert delivered["dynamodb"]["ApproximateCreationDateTime"] == CREATED_AT
    assert delivered["dynamodb"]["Keys"] == {"orderid": {"S": "178526"}, "picture": {"B": "AAE="}}
    assert delivered["dynamodb"]["OldImage"] == {
        "orderid": {"S": "178526"},
        "picture": {"B": "AAE="},
        "pictures": {"BS": ["Ag==", "Aw=="]},
        "nested": {"M": {"list": {"L": [{"B": "BA=="}, {"N": "1"}, {"NULL": True}, {"BOOL": False}]}}},
        "names": {"SS": ["a", "b"]},
    }


def test_record_from_get_records__is_json_and_can_be_read() -> None:
    delivered = json.loads(json.dumps(from_get_records(get_records_record(), STREAM_ARN)))

    record = validated(delivered)

    assert (record.event_name, record.created_at, record.expired) == (EventName.REMOVE, CREATED_AT, True)
    assert record.event_id == "c4ca4238"


@pytest.mark.parametrize("part", ["NewImage", "OldImage"])
def test_image_from_get_records__has_binary_values_as_base64(part: str) -> None:
    original = get_records_record()
    original["dynamodb"] = {part: {"picture": {"B": b"\x00\x01"}}}

    assert from_get_records(original, STREAM_ARN)["dynamodb"] == {part: {"picture": {"B": "AAE="}}}


def test_record_from_get_records__is_left_as_it_was() -> None:
    original = get_records_record()

    from_get_records(original, STREAM_ARN)

    assert original == get_records_record()


def test_record_from_get_records__gets_no_identity_or_images() -> None:
    original = get_records_record()
    del original["userIdentity"]
    del original["dynamodb"]["OldImage"]
    original["dynamodb"]["ApproximateCreationDateTime"] = CREATED_AT + 0.5

    delivered = from_get_records(original, STREAM_ARN)

    assert "userIdentity" not in delivered
    assert delivered["dynamodb"].keys() & {"OldImage", "NewImage"} == set()
    assert validated(delivered).created_at == CREATED_AT


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2100, 1, 1), timezones=st.timezones()))  # noqa: DTZ001 - hypothesis wants naive bounds
def test_creation_time_from_get_records__ignores_the_zone(moment: datetime) -> None:
    original = get_records_record()
    original["dynamodb"]["ApproximateCreationDateTime"] = moment

    record = validated(from_get_records(original, STREAM_ARN))

    assert datetime.fromtimestamp(record.created_at, UTC) == moment.astimezone(UTC).replace(microsecond=0)


@given(st.recursive(st.binary() | st.text() | st.booleans(), lambda inner: st.dictionaries(st.text(), inner)))
def test_any_value_from_get_records__has_no_bytes_left(value: Any) -> None:
    original = get_records_record()
    original["dynamodb"]["OldImage"] = {"attribute": value}

    delivered = from_get_records(original, STREAM_ARN)

    json.dumps(delivered)
    if isinstance(value, bytes):
        assert base64.b64decode(delivered["dynamodb"]["OldImage"]["attribute"]) == value


# --- Anything at all ------------------------------------------------------------------------------------------------


@given(JSON)
def test_any_json_as_an_event__is_read_or_unexpected(document: Any) -> None:
    try:
        records = records_of(document)
    except UnexpectedEventError:
        return

    assert isinstance(records, list)


@given(
    st.sampled_from(
        [
            *("eventName", "eventID", "eventSourceARN", "userIdentity", "dynamodb"),
            *(
                f"dynamodb.{name}"
                for name in ("ApproximateCreationDateTime", "Keys", "NewImage", "OldImage", "SequenceNumber")
            ),
        ]
    ),
    JSON | st.text(st.characters()),
)
def test_any_json_in_a_valid_record__is_read_or_told_apart(path: str, value: Any) -> None:
    raw = changed(modify(order(), order(quantity=11)), path, value)

    try:
        record = validated(raw)
    except (MalformedRecordError, StreamViewTypeError, UnexpectedEventError):
        return

    assert record.sequence_number.isascii()

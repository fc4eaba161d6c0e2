"""Whatever comes in as event, definitions or dead letter: a record that is refused touches no total.

That nothing undocumented is raised is tested beside each reader, in tests/unit; here the same input goes through the
whole worker, over a DynamoDB in memory, and the tables are looked at afterwards.
"""

import json
import urllib.parse
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.aggregations.definitions import DefinitionError, parse_definitions
from aggregation_worker.aggregations.numbers import EXACT
from aggregation_worker.batch import BatchResult, RecordOutcome, process
from aggregation_worker.dead_letters import NOTICE_KIND, ON_FAILURE_PREFIX, PARKED_KIND
from aggregation_worker.ledger.commit import Committer, Deadline
from aggregation_worker.ledger.receipts import aggregate_name, receipt_name
from aggregation_worker.operations.letters import LetterReader
from aggregation_worker.operations.replaying import Replay, SendError
from aggregation_worker.operations.selection import Selection
from aggregation_worker.streams.records import (
    MalformedRecordError,
    StreamViewTypeError,
    UnexpectedEventError,
    read_record,
)
from tests.dead_letter_fakes import BUCKET, ParkingPlace
from tests.definition_texts import SOURCE, aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, FaultyDynamoDB, ImmediateExecutor
from tests.held_letters import HeldInOrder
from tests.json_values import JSON
from tests.model.in_memory_dynamodb import client_error
from tests.records import ORIGIN, STREAM_ARN, changed, insert, modify, order, remove
from tests.sizes import examples

A_MINUTE = Deadline(lambda: 60.0, stop_sending=5.0, stop_waiting=1.0)
# Two aggregations that ask for different attributes, so that one can refuse what the other counts.
TWO = definitions(
    aggregation_text('remove = "retract"'),
    aggregation_text(
        'count = "orders"',
        name="orders_by_customer",
        table="orders_by_customer",
        partition_key='{ name = "customer", from = "customer.name" }',
        sort_key=None,
        sum=None,
    ),
)


class Counted:
    """A worker over tables in memory, and what they hold."""

    def __init__(self, defined: Definitions = TWO) -> None:
        self.definitions = defined
        self.client = FaultyDynamoDB(defined)
        self.place = ParkingPlace()

    def deliver(self, records: Sequence[Any]) -> BatchResult:
        """One invocation."""
        committer = Committer(self.client, LEDGER, 60, ImmediateExecutor(), sleep=lambda _: None)  # type: ignore[arg-type]  # a fake client
        return process(records, self.definitions, committer, self.place.queue(), A_MINUTE)

    def receipts(self, aggregation: str) -> list[tuple[str, str]]:
        """The receipts of one aggregation: the aggregate's name and the receipt's."""
        return [
            (aggregate, name)
            for aggregate, _, name, _ in self.client.receipts()
            if aggregate.startswith(f"{aggregation}#")
        ]

    def assert_totals_are_the_sum_of_receipts(self) -> None:
        """Every total of every table, to the last digit."""
        sums: dict[str, tuple[Decimal, ...]] = {}
        for aggregate, _, _, amounts in self.client.receipts():
            before = sums.get(aggregate, (Decimal(0),) * len(amounts))
            sums[aggregate] = tuple(map(EXACT.add, before, amounts))
        totals = {}
        for aggregation in self.definitions.aggregations:
            for row in self.client.tables[aggregation.table].items.values():
                if any(measure.name in row for measure in aggregation.measures):
                    group = tuple(row[key.name][key.type.value] for key in aggregation.keys)
                    totals[aggregate_name(aggregation.name, group)] = tuple(
                        Decimal(row[measure.name]["N"]) for measure in aggregation.measures
                    )
        assert totals == sums


def receipt_of(raw: Any) -> str | None:
    """The name that a record's receipts have; `None` for one that cannot be read."""
    try:
        return receipt_name(read_record(raw, ORIGIN))
    except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError):
        return None


# --- Events ---------------------------------------------------------------------------------------------------------

PATHS = (
    *("eventID", "eventName", "eventSourceARN", "userIdentity", "dynamodb"),
    *(f"dynamodb.{name}" for name in ("ApproximateCreationDateTime", "Keys", "NewImage", "OldImage", "SequenceNumber")),
    *(f"dynamodb.{image}.{name}" for image in ("NewImage", "OldImage") for name in ("item_number", "quantity")),
    *(f"dynamodb.{image}.{name}" for image in ("NewImage", "OldImage") for name in ("order_date", "customer")),
)
TYPED = st.dictionaries(st.sampled_from(("S", "N", "NULL", "M", "L", "BOOL", "SS")), JSON, min_size=1, max_size=1)
CUSTOMER = {"M": {"name": {"S": "c1"}}}


def _whole_record(kind: int) -> dict[str, Any]:
    before, after = order(quantity=1, customer=CUSTOMER), order(quantity=3, item="item312", customer=CUSTOMER)
    return (insert(after), modify(before, after), remove(before))[kind]


@st.composite
def damaged_records(draw: st.DrawFn) -> Any:
    """A record with something else where it matters, or anything at all."""
    raw: Any = _whole_record(draw(st.integers(0, 2)))
    if not draw(st.integers(0, 4)):
        return draw(JSON)
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=2, unique=True)):
        *way, last = path.split(".")
        holder = raw
        for step in way:
            holder = holder.get(step) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and last in holder:
            raw = changed(raw, path, draw(TYPED | JSON | st.just(...)))
    return raw


@given(st.lists(damaged_records(), min_size=1, max_size=4))
@examples(60, long=1_000)
def test_any_event__what_is_refused_touches_no_total(damaged: list[Any]) -> None:
    counted = Counted()
    healthy = [insert(order(quantity=7, customer=CUSTOMER)), insert(order(quantity=8, customer=CUSTOMER))]
    batch = [healthy[0], *json.loads(json.dumps(damaged)), healthy[1]]

    try:
        result = counted.deliver(batch)
    except (UnexpectedEventError, StreamViewTypeError):
        assert counted.client.writes == 0
        return

    counted.assert_totals_are_the_sum_of_receipts()
    for index, (raw, outcome) in enumerate(zip(batch, result.outcomes, strict=True)):
        receipt = receipt_of(raw)
        by_aggregation = {
            aggregation.name: [name for _, name in counted.receipts(aggregation.name) if name == receipt]
            for aggregation in TWO.aggregations
        }
        if outcome is RecordOutcome.NOT_COUNTED:
            assert not any(by_aggregation.values())
        if outcome is RecordOutcome.PARKED:
            refusing = [reason.partition(":")[0] for reason in result.reasons[index]]
            assert receipt is None or not any(by_aggregation[name] for name in refusing if name in by_aggregation)
    assert result.outcomes[0] is result.outcomes[-1] is RecordOutcome.APPLIED
    whole = {receipt_of(raw) for raw in batch}
    assert {name for _, _, name, _ in counted.client.receipts()} <= whole - {None}


# --- Definitions ----------------------------------------------------------------------------------------------------

SOURCES = st.sampled_from(
    ("item_number", "order_date", "item_number", "order_date", "quantity", "customer.name", "customer", "none", '"', "")
)
GROUP_KEYS = st.builds(
    lambda name, path, more: f'{{ name = "{name}", from = {json.dumps(path)}{more} }}',
    st.sampled_from(("k", "item_number", "order_date")),
    SOURCES,
    st.sampled_from(
        (
            *("", "", "", ', truncate = "day"', ', type = "N"', ', prefix = "p-"', ', truncate = "hour"'),
            *(', truncate = "week", epoch = "seconds"', ', truncate = "year", timezone = "UTC"', ', value = "all"'),
        )
    ),
) | st.just('{ name = "k", value = "all" }')
NUMBERS = st.sampled_from(("quantity", "lines[0]", "quantity", "lines[0]")) | SOURCES
FACTORS = st.lists(NUMBERS | st.sampled_from(("1.19", "-1")), min_size=1, max_size=2).map(" * ".join).map(
    json.dumps
) | st.sampled_from(("lines", "sum(lines)", "length(lines)", "sum(lines[].none)", "none", "customer")).map(
    lambda text: f'{{ jmespath = "{text}" }}'
)
AGGREGATIONS = st.builds(
    lambda more, name, partition_key, sort_key, factors: aggregation_text(
        more,
        name=name,
        table=f"table-{name}",
        partition_key=partition_key,
        sort_key=sort_key,
        sum=f"{{ total = {factors} }}",
    ),
    st.lists(
        st.sampled_from(
            (
                'count = "n"',
                'remove = "retract"',
                'where = "quantity > `5`"',
                'where = "customer.name"',
                'where = "!contains(none, quantity)"',
                "junk = 1",
            )
        ),
        max_size=3,
        unique=True,
    ).map("\n".join),
    st.sampled_from(("one", "two", "three", "four", "one two")),
    GROUP_KEYS,
    st.none() | GROUP_KEYS.map(lambda text: text.replace('name = "', 'name = "s-')),
    FACTORS,
)


@given(st.lists(AGGREGATIONS, min_size=1, max_size=2))
@examples(60, long=1_000)
def test_any_definitions__are_refused_or_count_without_guessing(texts: list[str]) -> None:
    try:
        counted = Counted(parse_definitions(SOURCE + "".join(texts)))
    except DefinitionError:
        return
    attributes: dict[str, Any] = {"customer": CUSTOMER, "lines": {"L": [{"N": "5"}]}}
    before, after = order(quantity=4, **attributes), order(quantity=6, item="item312", **attributes)
    batch = [insert(before), modify(before, after), remove(after), insert(order("2", quantity=9))]

    result = counted.deliver(batch)

    counted.assert_totals_are_the_sum_of_receipts()
    for index in result.indexes(RecordOutcome.PARKED):
        refusing = {reason.partition(":")[0] for reason in result.reasons[index]}
        refused = {name for aggregation in refusing for _, name in counted.receipts(aggregation)}
        assert receipt_of(batch[index]) not in refused
    assert RecordOutcome.RETRIED not in result.outcomes


# --- Dead letters ---------------------------------------------------------------------------------------------------


class Bucket:
    """A bucket."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def get_object(self, *, Bucket: str, Key: str, VersionId: str = "") -> dict[str, Any]:  # noqa: N803 - boto3's names
        """An object's content."""
        assert Bucket == BUCKET
        if Key not in self.objects:
            raise client_error("NoSuchKey", "no such key", "GetObject")
        return {"Body": BytesIO(self.objects[Key])}


HEALTHY = [insert(order(str(number), quantity=10**number), created_at=4_102_444_800) for number in range(4)]
RECORDS = st.sampled_from(HEALTHY) | JSON
CONTENTS = st.binary(max_size=40) | RECORDS.map(lambda record: json.dumps(record).encode())
KEYS_OF_OBJECTS = st.sampled_from(("parked", f"{ON_FAILURE_PREFIX}document", "missing"))


def _document(records: Any, size: Any, payload: Any) -> bytes:
    document = {
        "requestContext": {"condition": "RetryAttemptsExhausted"},
        "DDBStreamBatchInfo": {
            "shardId": "shard",
            "startSequenceNumber": "1",
            "endSequenceNumber": "9",
            "batchSize": len(records) if size is None else size,
            "streamArn": STREAM_ARN,
        },
        "payload": json.dumps({"Records": records}) if payload is None else payload,
    }
    return json.dumps(document).encode()


DOCUMENTS = st.builds(
    _document, st.lists(RECORDS, max_size=3), st.none() | st.none() | JSON, st.none() | st.none() | JSON | st.text()
)
BODIES = (
    st.text()
    | JSON.map(json.dumps)
    | st.builds(lambda record: json.dumps({"kind": PARKED_KIND, "reasons": ["no"], "record": record}), RECORDS)
    | st.builds(
        lambda record, name: json.dumps({"kind": NOTICE_KIND, "reasons": [], "aggregation": name, "record": record}),
        RECORDS,
        JSON,
    )
    | st.builds(
        lambda key, bucket: json.dumps(
            {"kind": PARKED_KIND, "reasons": [], "recordObject": {"bucket": bucket, "key": key}}
        ),
        KEYS_OF_OBJECTS,
        st.just(BUCKET) | JSON,
    )
    | st.builds(
        lambda key: json.dumps(
            {"Records": [{"s3": {"bucket": {"name": BUCKET}, "object": {"key": urllib.parse.quote_plus(key)}}}]}
        ),
        KEYS_OF_OBJECTS,
    )
)


def is_to_be_counted(body: str) -> bool:
    """Not so a notice: it holds no contribution, and is gone when its aggregation, its item or its reason is."""
    with suppress(ValueError, RecursionError):
        letter = json.loads(body)
        return not (isinstance(letter, dict) and letter.get("kind") == NOTICE_KIND)
    return True


@given(st.lists(BODIES, min_size=1, max_size=5), CONTENTS, DOCUMENTS | CONTENTS)
@examples(60, long=1_000)
def test_any_dead_letters__whole_records_count_and_others_stay(
    bodies: list[str], parked: bytes, document: bytes
) -> None:
    counted = Counted()
    messages = {f"message-{number}": body for number, body in enumerate(bodies)}
    bucket: Any = Bucket({"parked": parked, f"{ON_FAILURE_PREFIX}document": document})
    resources: Any = SimpleNamespace(
        ledger_retention_days=60,
        bucket=BUCKET,
        s3=bucket,
        definitions=counted.definitions,
        dynamodb=SimpleNamespace(get_item=lambda **_: {}),
        client=_no_client,
    )

    def send(records: list[Any]) -> list[RecordOutcome]:
        try:
            return list(counted.deliver(records).outcomes)
        except (UnexpectedEventError, StreamViewTypeError) as error:
            raise SendError(str(error), type(error).__name__) from error

    held = HeldInOrder(messages, messages.pop)
    replay = Replay(resources, held, LetterReader(resources, ORIGIN), Selection(), send)
    replay.run()

    counted.assert_totals_are_the_sum_of_receipts()
    names = {receipt_of(raw): raw for raw in HEALTHY}
    counted_now = {name for _, _, name, _ in counted.client.receipts()}
    assert counted_now <= set(names)
    kept = [*messages.values(), *counted.place.sqs.taken]
    for body in bodies:
        if body not in kept and is_to_be_counted(body):
            assert all(receipt_of(raw) in counted_now for raw in HEALTHY if raw["eventID"] in body)
    assert {one.message_id for one in replay.summary.left} == messages.keys()


def _no_client(service: str) -> Any:
    def refuses(**_: Any) -> Any:
        raise ClientError({"Error": {"Code": "ResourceNotFoundException", "Message": "no such stream"}}, service)

    return SimpleNamespace(describe_stream=refuses, get_shard_iterator=refuses, get_records=refuses)


@pytest.mark.parametrize("raw", HEALTHY)
def test_healthy_records_of_these_tests__are_whole(raw: dict[str, Any]) -> None:
    assert receipt_of(raw) is not None

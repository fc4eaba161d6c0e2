"""The Lambda function as Lambda calls it."""

import io
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import botocore.exceptions
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker import handler
from aggregation_worker.aggregations.definitions import DefinitionError
from aggregation_worker.batch import REPORT_OUTCOMES
from aggregation_worker.handler import ParkingError, deadline_of, lambda_handler
from aggregation_worker.ledger import commit
from aggregation_worker.ledger.catalogue import CatalogueError
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT
from aggregation_worker.ledger.failures import CommitError
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.settings import SettingsError
from aggregation_worker.streams.records import StreamViewTypeError, UnexpectedEventError
from tests.dead_letter_fakes import BUCKET, QUEUE_URL, ParkingPlace
from tests.definition_texts import SOURCE, aggregation_text
from tests.faulty_dynamodb import LEDGER, FaultyDynamoDB, ImmediateExecutor, client_error
from tests.json_values import JSON
from tests.postings import REFERENCE
from tests.records import (
    CREATED_AT,
    STREAM_ARN,
    changed,
    event,
    insert,
    modify,
    order,
    remove,
    sequence_number,
    stream_record,
)

DOCUMENTED = (
    SettingsError,
    DefinitionError,
    CatalogueError,
    UnexpectedEventError,
    StreamViewTypeError,
    CommitError,
    ParkingError,
    botocore.exceptions.ClientError,
)
ENVIRONMENT = {
    "LEDGER_TABLE": LEDGER,
    "LEDGER_RETENTION_DAYS": "60",
    "DEAD_LETTER_QUEUE_URL": QUEUE_URL,
    "DEAD_LETTER_BUCKET": BUCKET,
}
WRITES = [
    *("RowAdds", "RowArchives", "LateWrites", "WriteConflicts", "ReceiptsDiffer"),
    *("ThrottledByKey", "ThrottledByTable", "ThrottledByAccount", "ThrottledOtherwise"),
]
OUTCOMES = [
    "RecordsApplied",
    "RecordsDuplicate",
    "RecordsNotCounted",
    "RecordsNoticed",
    "RecordsParked",
    "RecordsRetried",
]
BAD = changed(insert(), "dynamodb.NewImage", {**order(), "quantity": {"S": "ten"}})
UNCHANGED = modify(order(), order(note={"S": "gift"}))


@dataclass
class Context:
    """What the worker uses of Lambda's context."""

    milliseconds: int = 60_000
    aws_request_id: str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


@dataclass
class Function:
    """The deployed function over fakes: its environment, what it logged, and the clients it made."""

    environment: dict[str, str]
    dynamodb: FaultyDynamoDB = field(default_factory=lambda: FaultyDynamoDB(REFERENCE))
    place: ParkingPlace = field(default_factory=ParkingPlace)
    made: list[str] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)
    printed: io.StringIO = field(default_factory=io.StringIO)
    pauses: list[float] = field(default_factory=list)

    def invoke(self, payload: Any, context: Any = None) -> Any:
        with redirect_stdout(self.printed):
            return lambda_handler(payload, Context() if context is None else context)

    def client(self, service: str, **options: Any) -> Any:
        self.made.append(service)
        self.configs.append(options["config"])
        return {"dynamodb": self.dynamodb, "sqs": self.place.sqs, "s3": self.place.s3}[service]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.printed.getvalue().splitlines()]

    def logs(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if "_aws" not in line]

    def metrics(self) -> dict[str, float]:
        """The metrics of the last invocation."""
        return self.all_metrics()[-1]

    def all_metrics(self) -> list[dict[str, float]]:
        """The metrics of each invocation."""
        lines = [line for line in self.lines() if "_aws" in line]
        names = [[metric["Name"] for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]] for line in lines]
        return [{name: line[name][0] for name in found} for line, found in zip(lines, names, strict=True)]


@contextmanager
def deployed(**environment: str) -> Iterator[Function]:
    """A new process of the function."""
    function = Function({"AGGREGATIONS_FILE": str(SAMPLE_FILE), **ENVIRONMENT, **environment})
    handler._worker.cache_clear()
    with (
        mock.patch.dict("os.environ", function.environment, clear=True),
        mock.patch("boto3.client", function.client),
        mock.patch.object(handler.logger.registered_handler, "stream", function.printed),
        mock.patch.object(handler, "ThreadPoolExecutor", return_value=ImmediateExecutor()),
        mock.patch("time.sleep", function.pauses.append),
        mock.patch.multiple(commit, _CONFLICT_PAUSE=(0, 0), _THROTTLED_PAUSE=(0, 0), _LOOK_PAUSE=(0, 0)),
    ):
        yield function
    handler._worker.cache_clear()


@pytest.fixture
def function() -> Iterator[Function]:
    with deployed() as found:
        yield found


# --- The answer -----------------------------------------------------------------------------------------------------


def test_batch_that_is_done__fails_for_no_item(function: Function) -> None:
    assert function.invoke(event(insert(), remove(), BAD)) == {"batchItemFailures": []}


def test_empty_batch__is_done(function: Function) -> None:
    assert function.invoke(event()) == {"batchItemFailures": []}
    assert function.metrics() == dict.fromkeys(["RecordsReceived", *OUTCOMES, *WRITES], 0.0)


def test_records_not_done__are_reported_by_sequence_number(function: Function) -> None:
    function.place.sqs.faults.append(client_error("AccessDenied"))
    worse = changed(insert(), "eventName", "UPSERT")

    answer = function.invoke(event(insert(), BAD, worse))

    assert answer == {
        "batchItemFailures": [{"itemIdentifier": sequence_number(BAD)}, {"itemIdentifier": sequence_number(worse)}]
    }


def test_event_with_other_parts__is_counted(function: Function) -> None:
    assert function.invoke({**event(insert()), "window": {}}) == {"batchItemFailures": []}


def test_outcomes__are_reported_to_who_asks(function: Function) -> None:
    raw = insert()

    answer = function.invoke({**event(raw, raw, remove(), BAD), REPORT_OUTCOMES: True})

    assert answer == {"batchItemFailures": [], "outcomes": ["applied", "duplicate", "applied", "noticed"]}


def test_parked_record_without_a_sequence_number__is_done(function: Function) -> None:
    assert function.invoke(event(None, {}, insert())) == {"batchItemFailures": []}
    assert function.metrics()["RecordsParked"] == 2


def test_unparked_record_without_a_sequence_number__fails_all(function: Function) -> None:
    function.place.sqs.faults.append(client_error("AccessDenied"))

    with pytest.raises(ParkingError, match="without a sequence number could not be parked"):
        function.invoke(event(insert(), changed(insert(), "dynamodb.SequenceNumber")))


@pytest.mark.parametrize(
    "context", [object(), Context(milliseconds=60_000), type("Local", (), {"aws_request_id": 5})()]
)
def test_context_without_the_usual_attributes__does_not_matter(function: Function, context: object) -> None:
    assert function.invoke(event(insert()), context) == {"batchItemFailures": []}


# --- Metrics --------------------------------------------------------------------------------------------------------


def test_every_received_record__is_in_one_outcome_metric(function: Function) -> None:
    known = insert()
    function.invoke(event(known))
    function.place.sqs.faults.append((2,))  # the last of the three that are parked

    function.invoke(event(insert(), insert(), remove(), known, UNCHANGED, UNCHANGED, BAD, None, BAD))

    metrics = function.metrics()
    assert metrics["RecordsReceived"] == 9
    assert {name: metrics[name] for name in OUTCOMES} == {
        "RecordsApplied": 3,
        "RecordsDuplicate": 1,
        "RecordsNotCounted": 2,
        "RecordsNoticed": 1,
        "RecordsParked": 1,
        "RecordsRetried": 1,
    }


def test_writes__are_counted_by_their_kind(function: Function) -> None:
    for raws in (
        [insert(created_at=CREATED_AT + 1_000)],
        [insert(created_at=CREATED_AT + 1_000 + second) for second in range(50)],
        [insert()],
    ):
        function.invoke(event(*raws))

    counted = [[metrics[name] for name in WRITES[:3]] for metrics in function.all_metrics()]
    assert counted == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_throttling__is_counted_by_whose_limit_it_was(function: Function) -> None:
    function.dynamodb.before.append(client_error("TransactionConflictException"))
    for reason in ("TableWriteKeyRangeThroughputExceeded", "TableWriteMaxOnDemandThroughputExceeded"):
        function.dynamodb.before.append(client_error("ThrottlingException", ThrottlingReasons=[{"reason": reason}]))
    account = [{"reason": "TableWriteAccountLimitExceeded"}]
    function.dynamodb.before.append(client_error("ThrottlingException", ThrottlingReasons=account))
    function.dynamodb.before.append(client_error("ThrottlingException"))

    function.invoke(event(insert()))

    metrics = function.metrics()
    assert [metrics[name] for name in WRITES if "Throttled" in name or "Conflict" in name] == [1] * 5
    assert function.logs()[-1]["throttled"] == {"key": 1, "table": 1, "account": 1, "unknown": 1}


def test_receipts_that_hold_another_amount__are_counted(function: Function) -> None:
    known = insert(order(quantity=1))
    function.invoke(event(known))

    function.invoke(event(changed(known, "dynamodb.NewImage", order(quantity=2)), insert()))

    assert function.metrics()["ReceiptsDiffer"] == 1
    assert function.logs()[-1]["differing_receipts"] == 1


def test_lag__is_emitted_only_if_something_was_applied(function: Function) -> None:
    raw = insert()

    function.invoke(event(raw))
    assert function.metrics()["ApplyLag"] > 0

    function.invoke(event(raw))
    assert "ApplyLag" not in function.metrics()


def test_second_up_to_which_a_shard_is_counted__is_that_of_its_last_record(function: Function) -> None:
    function.invoke(event(insert(), insert(created_at=CREATED_AT + 5)))

    assert function.metrics()["CountedUpTo"] == CREATED_AT + 5


def test_second_up_to_which_a_shard_is_counted__is_that_of_the_first_retried(function: Function) -> None:
    function.place.sqs.faults.append(client_error("AccessDenied"))
    broken = changed(insert(created_at=CREATED_AT + 5), "dynamodb.Keys")

    function.invoke(event(insert(), broken, insert(created_at=CREATED_AT + 9)))

    assert function.metrics()["CountedUpTo"] == CREATED_AT + 5


@pytest.mark.parametrize(
    "told_nothing",
    [
        event(),
        event(insert()) | {"reportOutcomes": True},
        event(changed(insert(), "dynamodb.ApproximateCreationDateTime")),
    ],
    ids=["nothing", "replay", "without a time"],
)
def test_what_is_no_part_of_a_shard_in_order__says_no_second(function: Function, told_nothing: dict[str, Any]) -> None:
    function.invoke(told_nothing)

    assert "CountedUpTo" not in function.metrics()


def test_batch_that_fails__is_logged_raised_and_retried(function: Function) -> None:
    function.dynamodb.before.append(client_error("AccessDeniedException"))

    with pytest.raises(CommitError):
        function.invoke(event(insert(), remove(), BAD))

    assert function.metrics() == {"RecordsReceived": 3, "RecordsRetried": 3, "CountedUpTo": CREATED_AT}
    (log,) = function.logs()
    assert log["level"] == "ERROR"
    assert log["message"] == "the batch failed as a whole and will be delivered again"
    assert "AccessDeniedException" in log["exception"]


def test_batch_not_reported_by_item__is_counted_once(function: Function) -> None:
    function.place.sqs.faults.append(client_error("AccessDenied"))

    with pytest.raises(ParkingError):
        function.invoke(event(None, remove()))

    metrics = function.metrics()
    assert metrics["RecordsReceived"] == sum(metrics[name] for name in OUTCOMES) == 2


@pytest.mark.parametrize(("milliseconds", "held"), [(60_000, 30.0), (10_000, 5.0), (0, 0.0)])
def test_batch_that_fails__is_held_so_that_its_retries_last(function: Function, milliseconds: int, held: float) -> None:
    function.dynamodb.before.append(client_error("AccessDeniedException"))

    with mock.patch.dict("os.environ", {"LEDGER_TABLE": ""}), pytest.raises(SettingsError):
        function.invoke(event(insert()), Context(milliseconds))

    assert function.pauses == [pytest.approx(held, abs=0.5)]
    assert function.logs()[0]["level"] == "ERROR"


@pytest.mark.parametrize("payload", [event(), {**event(insert()), REPORT_OUTCOMES: True}, "nonsense"])
def test_call_that_has_no_retries__fails_at_once(function: Function, payload: Any) -> None:
    """An empty batch by hand, a replay, and what no mapping sends."""
    with mock.patch.dict("os.environ", {"LEDGER_TABLE": ""}), pytest.raises((SettingsError, UnexpectedEventError)):
        function.invoke(payload)

    assert function.pauses == []


# --- Logs -----------------------------------------------------------------------------------------------------------


def test_logs__are_one_line_a_batch_and_one_a_record_that_needs_attention(function: Function) -> None:
    function.invoke(event(insert(), BAD, None))

    first, second, last = function.logs()
    assert (first["message"], first["level"]) == ("record needs attention", "WARNING")
    assert first["sequence_number"] == sequence_number(BAD)
    assert first["outcome"] == "noticed"
    assert first["reasons"] == ["item_count_by_date: quantity: summed over a value of type S where N belongs"]
    assert (second.get("sequence_number"), second["reasons"]) == (None, ["the record is not a JSON object"])
    assert last["message"] == "batch counted"
    assert last["outcomes"] == {
        "applied": 1,
        "duplicate": 0,
        "not counted": 0,
        "noticed": 1,
        "parked": 1,
        "retried": 0,
    }
    assert last["writes"] == {"RowAdds": 1, "RowArchives": 0, "LateWrites": 0}
    assert (last["conflicts"], last["throttled"], last["differing_receipts"]) == (0, {}, 0)
    assert {line["request_id"] for line in (first, second, last)} == {Context().aws_request_id}
    assert {line["service"] for line in (first, second, last)} == {"aggregation-worker"}


SECRET = "hunter2"


def secrets() -> list[Any]:
    """Records that fail in every way, with the secret wherever an item's content can stand."""
    text, deep = {"S": SECRET}, {"M": {SECRET: {"S": SECRET}}}
    return [
        insert(order(item=SECRET)),
        insert(order(SECRET, item=SECRET, quantity=SECRET)),
        insert(order(item=SECRET, date=SECRET)),
        insert(order(item=SECRET * 1_000)),
        insert(order(item=SECRET + "\ud800")),
        insert({**order(), "quantity": text}),
        insert({**order(), "quantity": deep}),
        insert({**order(), "quantity": {SECRET: SECRET}}),
        insert({**order(), "item_number": deep}),
        insert({**order(), "status": deep}),
        modify(order(item=SECRET), order(item=SECRET + "2")),
        changed(insert(order(item=SECRET)), "dynamodb.Keys"),
        changed(insert(order(item=SECRET)), "dynamodb.NewImage", [SECRET]),
        changed(insert(order(item=SECRET)), "eventName", {SECRET: SECRET}),
        changed(insert(order(item=SECRET)), "eventID", [SECRET]),
        [SECRET],
        SECRET,
    ]


@pytest.mark.parametrize("failing", [None, "queue", "database", "validation"])
def test_logs__never_hold_what_items_hold(tmp_path: Path, failing: str | None) -> None:
    definitions = tmp_path / "totals.toml"
    definitions.write_text(SOURCE + aggregation_text('where = "abs(status || `1`) == `1`"'))
    with deployed(AGGREGATIONS_FILE=str(definitions)) as function:
        if failing == "queue":
            function.place.sqs.faults.extend([client_error("AccessDenied")] * 2)
        if failing == "database":
            function.dynamodb.before.append(client_error("AccessDeniedException"))
        if failing == "validation":
            function.dynamodb.before.extend([client_error("ValidationException")] * 20)

        with pytest.raises((CommitError, ParkingError)) if failing in ("queue", "database") else nullcontext():
            function.invoke(event(*secrets()))

    assert SECRET not in function.printed.getvalue()
    assert len(function.lines()) >= 2


# --- The environment and the life of the process --------------------------------------------------------------------


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_missing_environment_variable__is_named(name: str) -> None:
    with (
        deployed(**{name: ""}) as function,
        pytest.raises(SettingsError, match=f"missing environment variables: {name}"),
    ):
        function.invoke(event(insert(), insert()))

    assert function.metrics() == {"RecordsReceived": 2, "RecordsRetried": 2, "CountedUpTo": CREATED_AT}
    assert function.made == []


@pytest.mark.parametrize("table", ["Order_by_item", "item_count_by_date"])
def test_ledger_that_is_a_table_of_the_definitions__is_refused(table: str) -> None:
    with deployed(LEDGER_TABLE=table) as function, pytest.raises(SettingsError, match=table):
        function.invoke(event(insert()))


def test_mistake_in_the_definitions__is_raised_at_start(tmp_path: Path) -> None:
    definitions = tmp_path / "totals.toml"
    definitions.write_text(SOURCE + aggregation_text("nonsense = 1"))

    with (
        deployed(AGGREGATIONS_FILE=str(definitions)) as function,
        pytest.raises(DefinitionError, match=r"totals\.toml: aggregation 'item_count_by_date': nonsense"),
    ):
        function.invoke(event(insert()))

    assert function.dynamodb.requests == []


def test_changed_definition__stops_before_anything_is_written(tmp_path: Path, function: Function) -> None:
    function.invoke(event())
    definitions = tmp_path / "totals.toml"
    definitions.write_text(SOURCE + aggregation_text('remove = "retract"'))

    with (
        mock.patch.dict("os.environ", {"AGGREGATIONS_FILE": str(definitions)}),
        pytest.raises(CatalogueError, match="remove was"),
    ):
        function.invoke(event(insert()))

    assert function.dynamodb.requests == []


def test_aggregation_that_the_file_lacks__stops_before_anything_is_written(tmp_path: Path, function: Function) -> None:
    """A rollback: what comes in the meantime waits, and is counted by the worker that has the right file."""
    both = tmp_path / "both.toml"
    both.write_text(SAMPLE_FILE.read_text() + aggregation_text(name="other", table="other"))
    function.dynamodb.create("other", ("item_number", "S"), ("order_date", "S"))
    with mock.patch.dict("os.environ", {"AGGREGATIONS_FILE": str(both)}):
        function.invoke(event())

    with pytest.raises(CatalogueError, match="the definitions file lacks 'other'"):
        function.invoke(event(raw := insert()))

    assert function.dynamodb.requests == []
    with mock.patch.dict("os.environ", {"AGGREGATIONS_FILE": str(both)}):
        assert function.invoke(event(raw)) == {"batchItemFailures": []}
    assert function.dynamodb.total("other", "quantity", "item123", "2024-07-15") == 10


@pytest.mark.parametrize("days", ["1", "3650"])
def test_record_whose_page_has_expired__is_parked_whatever_the_retention(function: Function, days: str) -> None:
    """Not trusted by the retention of today, when its receipt went by that of its time."""
    first, *others = (insert(created_at=CREATED_AT + second) for second in range(51))
    function.invoke(event(first, *others))
    ledger = function.dynamodb.tables[LEDGER]
    pages = [item for item in ledger.items.values() if "after" in item]
    for page in pages:
        function.dynamodb.expire(LEDGER, {name: page[name] for name, _ in ledger.keys})
    total = function.dynamodb.total("item_count_by_date", "quantity", "item123", "2024-07-15")

    with mock.patch.dict("os.environ", {"LEDGER_RETENTION_DAYS": days}):
        answer = function.invoke({**event(first), REPORT_OUTCOMES: True})

    assert pages
    assert answer["outcomes"] == ["parked"]
    assert function.dynamodb.total("item_count_by_date", "quantity", "item123", "2024-07-15") == total == 510


def test_worker__is_made_once_and_kept(function: Function) -> None:
    for _ in range(3):
        function.invoke(event(insert()))

    assert function.made == ["dynamodb", "dynamodb"]


def test_clients__have_short_timeouts_no_retries_and_a_name(function: Function) -> None:
    function.invoke(event(insert(), BAD))

    attempts = [config.retries["total_max_attempts"] for config in function.configs]
    assert sorted(attempts) == [1, 1, 4]
    for config in function.configs:
        assert (config.connect_timeout, config.read_timeout) == (handler.CONNECT_TIMEOUT, handler.READ_TIMEOUT)
        assert config.max_pool_connections == MAX_IN_FLIGHT
        assert config.user_agent == "dynamodb-aggregation-worker"
        assert config.connect_timeout + config.read_timeout < handler.STOP_SENDING


def test_worker__is_made_again_when_its_settings_change(function: Function) -> None:
    function.invoke(event(insert()))
    receipts = len(function.dynamodb.receipts())

    with mock.patch.dict("os.environ", {"LEDGER_RETENTION_DAYS": "70"}):
        function.invoke(event(insert()))

    assert function.made == ["dynamodb"] * 4
    assert len(function.dynamodb.receipts()) == receipts + 1


def test_worker_that_could_not_be_made__is_tried_again(function: Function) -> None:
    def fail(**request: Any) -> Any:
        raise client_error("AccessDeniedException")

    with mock.patch.object(function.dynamodb, "get_item", fail), pytest.raises(botocore.exceptions.ClientError):
        function.invoke(event(insert()))

    assert function.invoke(event(insert())) == {"batchItemFailures": []}


def test_clients_for_parking__are_made_when_needed_and_kept(function: Function) -> None:
    function.invoke(event(insert()))
    assert "sqs" not in function.made

    for _ in range(2):
        function.invoke(event(BAD, insert({**order(), "quantity": {"S": "x" * 300_000}})))

    assert sorted(function.made) == ["dynamodb", "dynamodb", "s3", "sqs"]


# --- The deadline ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("milliseconds", "stop_sending", "stop_waiting"),
    [(900_000, 5.0, 1.0), (60_000, 5.0, 1.0), (20_000, 5.0, 1.0), (8_000, 2.0, 1.0), (3_000, 0.75, 0.375), (0, 0, 0)],
)
def test_deadline__keeps_margins_that_a_short_timeout_allows(
    milliseconds: int, stop_sending: float, stop_waiting: float
) -> None:
    deadline = deadline_of(Context(milliseconds))

    assert (deadline.stop_sending, deadline.stop_waiting) == (stop_sending, stop_waiting)
    assert milliseconds / 1000 - 1 < deadline.seconds_left() <= milliseconds / 1000


def test_deadline__comes_nearer() -> None:
    deadline = deadline_of(Context(10_000))
    later = time.monotonic() + 8

    with mock.patch("time.monotonic", return_value=later):
        assert deadline.sending_time() < 0 < deadline.waiting_time()


@pytest.mark.parametrize("context", [None, object()])
def test_deadline_without_a_context__is_a_minute(context: object) -> None:
    assert 59 < deadline_of(context).seconds_left() <= 60


def test_invocation_without_time__lets_everything_come_again(function: Function) -> None:
    raw = insert()

    answer = function.invoke(event(raw, UNCHANGED, BAD), Context(milliseconds=0))

    assert answer == {
        "batchItemFailures": [{"itemIdentifier": sequence_number(raw)}, {"itemIdentifier": sequence_number(BAD)}]
    }
    assert function.dynamodb.requests == []


# --- What is not from the stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "error", "received"),
    [
        (None, UnexpectedEventError, 0),
        ([], UnexpectedEventError, 0),
        ({}, UnexpectedEventError, 0),
        ({"Records": None}, UnexpectedEventError, 0),
        ({"Records": [{"eventSource": "aws:sqs", "body": "{}"}]}, UnexpectedEventError, 1),
        ({"Records": [{"EventSource": "aws:sns", "Sns": {}}]}, UnexpectedEventError, 1),
        (event(insert(stream_arn=STREAM_ARN.replace("Order_by_item", "Customers"))), UnexpectedEventError, 1),
        (event(insert(), stream_record("MODIFY", new=order())), StreamViewTypeError, 2),
    ],
)
def test_event_that_shows_a_wrong_deployment__raises(
    function: Function, payload: Any, error: type[Exception], received: int
) -> None:
    with pytest.raises(error):
        function.invoke(payload)

    counts = {"RecordsReceived": received, "RecordsRetried": received, "CountedUpTo": CREATED_AT}
    assert function.metrics() | {"CountedUpTo": CREATED_AT} == counts
    assert function.logs()[-1]["level"] == "ERROR"
    assert function.dynamodb.requests == []


ELSEWHERE = {
    "account": STREAM_ARN.replace("123456789012", "999999999999"),
    "region": STREAM_ARN.replace("us-east-1", "eu-west-1"),
}


@pytest.mark.parametrize("stream_arn", ELSEWHERE.values(), ids=ELSEWHERE)
def test_namesake_of_the_source__is_refused(function: Function, stream_arn: str) -> None:
    foreign, own = insert(stream_arn=stream_arn), insert()

    with mock.patch.dict("os.environ", {"SOURCE_STREAM_ARN": STREAM_ARN}):
        with pytest.raises(UnexpectedEventError, match="is not of the source table"):
            function.invoke(event(own, foreign))

        assert function.dynamodb.requests == []
        assert function.invoke(event(own)) == {"batchItemFailures": []}


def test_namesake_of_the_source__is_known_from_the_definitions(function: Function, tmp_path: Path) -> None:
    existing = tmp_path / "existing.toml"
    existing.write_text(SOURCE.replace('table = "Order_by_item"', f'stream_arn = "{STREAM_ARN}"') + aggregation_text())

    with mock.patch.dict("os.environ", {"AGGREGATIONS_FILE": str(existing)}):
        with pytest.raises(UnexpectedEventError):
            function.invoke(event(insert(stream_arn=ELSEWHERE["account"])))

        assert function.invoke(event(insert())) == {"batchItemFailures": []}


def test_namesake_of_a_source_without_stream__is_not_known(function: Function) -> None:
    assert function.invoke(event(insert(stream_arn=ELSEWHERE["account"]))) == {"batchItemFailures": []}


# --- Anything at all ------------------------------------------------------------------------------------------------

PATHS = [
    *("eventID", "eventName", "eventSource", "eventSourceARN", "userIdentity", "dynamodb"),
    *(f"dynamodb.{name}" for name in ("ApproximateCreationDateTime", "Keys", "NewImage", "OldImage", "SequenceNumber")),
    *(f"dynamodb.NewImage.{name}" for name in ("item_number", "order_date", "quantity")),
]


def assert_only_documented_errors(payload: Any) -> None:
    """Invokes the function with what json makes of the payload, as Lambda's runtime would."""
    with deployed() as function:
        try:
            answer = function.invoke(json.loads(json.dumps(payload)))
        except DOCUMENTED:
            assert function.logs()[-1]["level"] == "ERROR"
        else:
            json.dumps(answer)
            metrics = function.metrics()
            assert metrics["RecordsReceived"] == sum(metrics[name] for name in OUTCOMES)


@given(JSON | st.fixed_dictionaries({"Records": JSON | st.lists(JSON, max_size=3)}))
def test_any_json_as_an_event__raises_nothing_undocumented(payload: Any) -> None:
    assert_only_documented_errors(payload)


@given(st.lists(st.tuples(st.sampled_from(PATHS), JSON), min_size=1, max_size=3))
def test_any_json_in_a_valid_event__raises_nothing_undocumented(changes: list[tuple[str, Any]]) -> None:
    raws = [changed(modify(order(quantity=1), order(quantity=3)), path, value) for path, value in changes]

    assert_only_documented_errors(event(insert(), *raws, insert()))


@pytest.mark.parametrize("depth", [50, 500, 900, 960, 980, 990, 2_000])
@pytest.mark.parametrize("path", PATHS)
def test_deep_json_in_a_valid_event__raises_nothing_undocumented(path: str, depth: int) -> None:
    deep = json.loads("[" * min(depth, 900) + "]" * min(depth, 900))
    for _ in range(depth - 900):
        deep = [deep]

    with deployed() as function:
        try:
            function.invoke(event(insert(), changed(modify(order(quantity=1), order(quantity=3)), path, deep)))
        except DOCUMENTED:
            assert function.logs()[-1]["level"] == "ERROR"
        else:
            assert function.metrics()["RecordsReceived"] == 2

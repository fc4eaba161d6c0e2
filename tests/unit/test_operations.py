"""The operators' commands where no queue is needed: names of resources, status, streams read back, explanations."""

import argparse
import io
import json
import re
import time
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError

from aggregation_worker.aggregations.contributions import Definitions, KeyType
from aggregation_worker.aggregations.definitions import load_definitions, parse_definitions
from aggregation_worker.deployment.example import example_item, put_item_command, query_command
from aggregation_worker.deployment.settings import STACK_NAME, Output
from aggregation_worker.ledger.reading import Stored
from aggregation_worker.ledger.receipts import first_position
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.operations.cli import build_parser, main
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.explain import Explanation, Receipt, receipts_of
from aggregation_worker.operations.letters import trusted_until
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import duration
from aggregation_worker.operations.replay import worker_environment
from aggregation_worker.operations.resources import Resources
from aggregation_worker.operations.status import facts_of
from aggregation_worker.operations.verify import Verification, canary_of, expectations_of
from aggregation_worker.streams.range import StreamRangeError, read_range
from aggregation_worker.streams.records import Origin
from tests.definition_texts import SOURCE, aggregation_text, definitions
from tests.records import STREAM_ARN, insert, modify, remove, validated
from tests.totals_in_memory import LEDGER, TotalsInMemory

ALL_ITEMS = '{ name = "scope", value = "all" }'
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_deployment_options(parser)
    return parser.parse_args(arguments)


class FakeClients:
    """Clients that answer with what they are given, by service and operation."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = answers
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.meta = argparse.Namespace(endpoint_url="https://aws")

    def __getattr__(self, operation: str) -> Any:
        def call(**parameters: Any) -> Any:
            self.calls.append((operation, parameters))
            answer = self.answers[operation]
            if isinstance(answer, Exception):
                raise answer
            return answer

        return call

    def get_paginator(self, operation: str) -> Any:
        class Paginator:
            def paginate(_, **parameters: Any) -> Any:  # noqa: N805 - the outer self is meant
                return [getattr(self, operation)(**parameters)]

        return Paginator()


def resources_with(
    environment: Mapping[str, str], answers: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> tuple[Resources, FakeClients]:
    fake = FakeClients(answers)
    monkeypatch.setattr(Resources, "client", lambda self, service: fake)
    return Resources(options(*arguments), environment), fake


def stack_with(**outputs: str) -> dict[str, Any]:
    return {"Stacks": [{"Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in outputs.items()]}]}


def test_option__comes_before_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    resources, fake = resources_with({"LEDGER_TABLE": "b"}, {}, monkeypatch, "--ledger-table", "a", "--stack", "s")

    assert resources.ledger_table == "a"
    assert fake.calls == []


def test_stack_that_is_named__comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"describe_stacks": stack_with(LedgerTableName="from-stack")}
    resources, fake = resources_with({"LEDGER_TABLE": "b"}, answers, monkeypatch, "--stack", "mine")

    assert resources.ledger_table == "from-stack"
    assert fake.calls == [("describe_stacks", {"StackName": "mine"})]


def test_worker_in_somebodys_stack__is_found_by_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CDK writes a construct's id before the name of an output, and a hash after it."""
    of = {
        "LedgerTableName": "ledger",
        "FunctionName": "function",
        "ReconcileFunctionName": "other",
        "EventSourceMappingUuid": "mapping",
    }
    first = {f"Totals{name}0A1B2C3D": f"{value}-1" for name, value in of.items()}
    second = {f"Other{name}99999999": f"{value}-2" for name, value in of.items()}

    one, _ = resources_with({}, {"describe_stacks": stack_with(Url="x", **first)}, monkeypatch)
    assert (one.ledger_table, one.function) == ("ledger-1", "function-1")

    both = {"describe_stacks": stack_with(**first, **second)}
    chosen, _ = resources_with({}, both, monkeypatch, "--worker", "Other")
    assert (chosen.ledger_table, chosen.function) == ("ledger-2", "function-2")
    for arguments, sentence in (
        ((), "has several workers: give --worker Other or Totals"),
        (("--worker", "Total"), "has no worker 'Total', only Other, Totals"),
    ):
        resources, _ = resources_with({}, both, monkeypatch, *arguments)
        with pytest.raises(CommandError) as refused:
            _ = resources.ledger_table
        assert str(refused.value).endswith(sentence)


# --- The deployed definitions ----------------------------------------------------------------------------------------

FUNCTION = {
    "CodeSha256": "a/b=",
    "Environment": {"Variables": {"SOURCE_STREAM_ARN": STREAM_ARN, "TABLE_PREFIX": "dev-"}},
}


LOCATION = "https://code/bundle?X-Amz-Security-Token=secret"


class Bundle(Protocol):
    def __call__(self, data: bytes, *statuses: int | None) -> list[str]: ...


@pytest.fixture
def bundle_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bundle:
    """Puts a bundle where the function's code is; returns the addresses that are fetched.

    `statuses` are those of the answers, the last one of all that follow; `None` is none.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(data: bytes, *statuses: int | None) -> list[str]:
        fetched: list[str] = []

        class Session:
            def __init__(self, certificates: Any, proxies: Any, timeouts: tuple[float, float]) -> None:
                assert timeouts[0] <= 5  # seconds to connect

            def send(self, request: Any) -> Any:
                fetched.append(request.url)
                status = statuses[min(len(fetched), len(statuses)) - 1]
                if status is None:
                    raise ConnectTimeoutError(endpoint_url=request.url)
                return SimpleNamespace(status_code=status, content=data)

        monkeypatch.setattr("aggregation_worker.operations.deployed.URLLib3Session", Session)
        return fetched

    return put


def zipped(name: str, content: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, content)
    return made.getvalue()


def deployed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Resources:
    keys = {
        "AttributeDefinitions": [
            {"AttributeName": "order_date", "AttributeType": "N"},
            {"AttributeName": "orderid", "AttributeType": "S"},
        ],
        "KeySchema": [
            {"AttributeName": "order_date", "KeyType": "RANGE"},
            {"AttributeName": "orderid", "KeyType": "HASH"},
        ],
    }
    answers = {
        "describe_stacks": stack_with(FunctionName="worker-function"),
        "get_function": {"Configuration": FUNCTION, "Code": {"Location": LOCATION}},
        "describe_table": {"Table": keys},
    }
    return resources_with({}, answers, monkeypatch, *arguments)[0]


def test_definitions__are_those_of_the_deployed_function(monkeypatch: pytest.MonkeyPatch, bundle_at: Bundle) -> None:
    fetched = bundle_at(zipped("aggregations.toml", aggregation_text()), 200)

    for _ in range(2):  # fetched once, and kept
        found = deployed(monkeypatch).definitions
        assert (found.source.table, found.source.stream_arn) == ("Order_by_item", STREAM_ARN)
        assert found.source.keys == (("orderid", KeyType.STRING), ("order_date", KeyType.NUMBER))
        assert [one.table for one in found.aggregations] == ["dev-item_count_by_date"]
    assert fetched == [LOCATION]


@pytest.mark.parametrize("statuses", [(None, 200), (503, 200), (None, 500, 200)])
def test_bundle_that_does_not_come_at_once__is_asked_for_again(
    statuses: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch, bundle_at: Bundle
) -> None:
    fetched = bundle_at(zipped("aggregations.toml", aggregation_text()), *statuses)

    assert [one.table for one in deployed(monkeypatch).definitions.aggregations] == ["dev-item_count_by_date"]
    assert len(fetched) == len(statuses)


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", 403, "HTTP status 403"),
        (b"", None, 'Connect timeout on endpoint URL: "https://code/bundle"'),
        (b"not a zip", 200, "File is not a zip file"),
        (zipped("other.py", ""), 200, "\"There is no item named 'aggregations.toml' in the archive\""),
    ],
)
def test_bundle_without_definitions__is_one_sentence(
    data: bytes, status: int | None, reason: str, monkeypatch: pytest.MonkeyPatch, bundle_at: Bundle
) -> None:
    bundle_at(data, status)

    with pytest.raises(CommandError) as refused:
        _ = deployed(monkeypatch).definitions

    assert str(refused.value) == (
        f"the definitions of function worker-function cannot be read from its bundle ({reason}): "
        "give --definitions FILE"
    )


def test_file_that_is_given__takes_the_deployed_ones_place(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = deployed(monkeypatch, "--definitions", str(SAMPLE_FILE))

    assert resources.definitions_file == SAMPLE_FILE


def test_environment__comes_before_the_default_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"describe_stacks": stack_with(FunctionName="worker-function")}
    resources, fake = resources_with({"LEDGER_TABLE": "b"}, answers, monkeypatch)

    assert (resources.ledger_table, resources.function) == ("b", "worker-function")
    assert fake.calls == [("describe_stacks", {"StackName": STACK_NAME})]


@pytest.mark.parametrize(
    ("arguments", "stream_arn"), [((), STREAM_ARN), (("--stack", "another", "--definitions", str(SAMPLE_FILE)), "")]
)
def test_stream_of_the_source__reaches_a_worker_in_process(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], stream_arn: str
) -> None:
    """That of the environment, unless it is another deployment's."""
    environment = {"SOURCE_STREAM_ARN": STREAM_ARN, "AGGREGATIONS_FILE": str(SAMPLE_FILE)}
    resources, _ = resources_with(environment, healthy(), monkeypatch, *arguments)

    assert worker_environment(resources)["SOURCE_STREAM_ARN"] == stream_arn
    assert resources.definitions.source.origin == (Origin.of(STREAM_ARN) if stream_arn else Origin("Order_by_item"))


def test_no_stack__says_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ClientError({"Error": {"Code": "ValidationError", "Message": "Stack x does not exist"}}, "DescribeStacks")
    resources, _ = resources_with({}, {"describe_stacks": error}, monkeypatch)

    with pytest.raises(CommandError, match="give --stack"):
        _ = resources.queue_url


def test_output_that_the_stack_lacks__is_named_with_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    resources, _ = resources_with({}, {"describe_stacks": stack_with()}, monkeypatch)

    with pytest.raises(CommandError, match="DeadLetterQueueUrl: give --stack or --queue-url"):
        _ = resources.queue_url


STREAM = "arn:aws:dynamodb:us-east-1:123456789012:table/Order_by_item/stream/2026-01-01T00:00:00.000"


def queue_with(waiting: int, held: int = 0, delayed: int = 0) -> dict[str, Any]:
    numbers = {"": waiting, "NotVisible": held, "Delayed": delayed}
    return {"Attributes": {f"ApproximateNumberOfMessages{name}": str(number) for name, number in numbers.items()}}


def sent(times: int, **ago: float) -> dict[str, Any]:
    at = (NOW - timedelta(**ago)).timestamp()
    return {"Attributes": {"SentTimestamp": f"{at * 1000:.0f}", "ApproximateReceiveCount": f"{times}"}}


def healthy() -> dict[str, Any]:
    return {
        "describe_stacks": stack_with(
            **{
                output.value: f"the-{output.name.lower()}"
                for output in Output
                if output != Output.LEDGER_RETENTION_DAYS
            }
        ),
        "get_event_source_mapping": {"State": "Enabled", "LastProcessingResult": "OK", "EventSourceArn": STREAM},
        "describe_table": {"Table": {"LatestStreamArn": STREAM, "StreamSpecification": {"StreamEnabled": True}}},
        "get_queue_attributes": queue_with(0),
        "receive_message": {"Messages": [sent(3, hours=2), sent(5, days=13), sent(1, minutes=1)]},
        "list_subscriptions_by_topic": {"Subscriptions": [{"SubscriptionArn": "arn:aws:sns:x:1:topic:2"}]},
        "get_function_configuration": {"Environment": {"Variables": {"POWERTOOLS_SERVICE_NAME": "mine"}}},
        "get_metric_data": {
            "MetricDataResults": [
                {"Id": "age", "Values": [100.0, 400_000.0]},
                {"Id": "records_retried", "Values": [2.0]},
                {"Id": "drift", "Values": [0.0, 7.0]},
                {"Id": "records_applied", "Values": [10.0, 5.0]},
                {"Id": "records_duplicate", "Values": [1.0]},
                {"Id": "records_parked", "Values": []},
            ]
        },
        "describe_alarms": {"MetricAlarms": []},
    }


def test_status_of_a_healthy_worker__has_nothing_to_look_at(monkeypatch: pytest.MonkeyPatch) -> None:
    resources, fake = resources_with({}, healthy(), monkeypatch)

    facts = facts_of(resources, NOW)

    assert {fact.name: (fact.value, fact.text) for fact in facts} == {
        "dead letters waiting": (0, "0"),
        "dead letters that a command holds": (0, "0"),
        "event source mapping": ("Enabled, OK", "Enabled, OK"),
        "iterator age": (0.1, "0 s"),
        "iterator age, last hour's highest": (400.0, "6 min"),
        "counted up to, in all shards": (None, "no batches in the last hour"),
        "RecordsApplied, last hour": (15, "15"),
        "RecordsDuplicate, last hour": (1, "1"),
        "RecordsRetried, last hour": (2, "2"),
        "RecordsNoticed, last hour": (0, "0"),
        "RecordsParked, last hour": (0, "0"),
        "totals that differ, by the last reconcile": (0, "0"),
        "alarms": ("", "none"),
        "subscribers of the alarms' topic": (1, "1"),
    }
    assert all(fact.good for fact in facts)
    queries, drift, freshness = (parameters for name, parameters in fake.calls if name == "get_metric_data")
    dimensions = [query["MetricStat"]["Metric"]["Dimensions"] for query in queries["MetricDataQueries"]]
    assert dimensions == [[{"Name": "FunctionName", "Value": "the-function_name"}]] + 5 * [
        [{"Name": "service", "Value": "mine"}]
    ]
    assert [query["MetricStat"]["Metric"]["Dimensions"] for query in freshness["MetricDataQueries"]] == [
        [{"Name": "service", "Value": "mine"}],
        [{"Name": "FunctionName", "Value": "the-function_name"}],
    ]
    (query,) = drift["MetricDataQueries"]
    assert query["MetricStat"]["Metric"]["Dimensions"] == [{"Name": "service", "Value": "mine"}]
    (alarms,) = (parameters for name, parameters in fake.calls if name == "describe_alarms")
    assert alarms == {"StateValue": "ALARM", "AlarmNamePrefix": "the-name-"}


def test_status__says_up_to_which_second_all_shards_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    minutes = [NOW - timedelta(minutes=ago) for ago in (3, 2)]
    told = [
        {"Id": "counted_up_to", "Timestamps": minutes, "Values": [1_721_036_400.0, 1_721_036_460.0]},
        {"Id": "newest_age", "Timestamps": minutes[1:], "Values": [1_000.0]},
    ]
    resources, _ = resources_with({}, healthy() | {"get_metric_data": {"MetricDataResults": told}}, monkeypatch)

    facts = {fact.name: fact for fact in facts_of(resources, NOW)}

    counted = facts["counted up to, in all shards"]
    assert (counted.value, counted.text, counted.good) == (1_721_036_400, "2024-07-15T09:40:00Z", True)


@pytest.mark.parametrize(
    ("operation", "answer", "fact", "value"),
    [
        (
            "get_event_source_mapping",
            {"State": "Disabled", "EventSourceArn": STREAM},
            "event source mapping",
            "Disabled",
        ),
        (
            "get_event_source_mapping",
            {"State": "Enabled", "LastProcessingResult": "PROBLEM: Function call failed", "EventSourceArn": STREAM},
            "event source mapping",
            "Enabled, PROBLEM: Function call failed",
        ),
        (
            "describe_table",
            {"Table": {"LatestStreamArn": f"{STREAM}9", "StreamSpecification": {"StreamEnabled": True}}},
            "event source mapping",
            "its stream is disabled or not the newest one",
        ),
        (
            "describe_table",
            {"Table": {"LatestStreamArn": STREAM}},
            "event source mapping",
            "its stream is disabled or not the newest one",
        ),
        ("get_queue_attributes", queue_with(0, held=1), "dead letters that a command holds", "1"),
        ("get_queue_attributes", queue_with(0, delayed=2), "dead letters waiting", "2"),
        (
            "get_metric_data",
            {"MetricDataResults": [{"Id": "age", "Values": [400_000.0, 100.0]}]},
            "iterator age",
            "6 min",
        ),
        (
            "get_metric_data",
            {"MetricDataResults": [{"Id": "drift", "Values": [3.0, 0.0]}]},
            "totals that differ, by the last reconcile",
            "3",
        ),
        (
            "list_subscriptions_by_topic",
            {"Subscriptions": [{"SubscriptionArn": "PendingConfirmation"}]},
            "subscribers of the alarms' topic",
            "none: nobody is told",
        ),
        (
            "get_metric_data",
            {"MetricDataResults": [{"Id": "records_parked", "Values": [2.0]}]},
            "RecordsParked, last hour",
            "2",
        ),
        (
            "describe_alarms",
            {"MetricAlarms": [{"AlarmName": f"{STACK_NAME}-errors"}]},
            "alarms",
            f"{STACK_NAME}-errors",
        ),
        (
            "get_queue_attributes",
            ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "GetQueueAttributes"),
            "dead letters",
            "your credentials lack a permission",
        ),
    ],
)
def test_status__shows_what_to_look_at(
    operation: str, answer: Any, fact: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources, _ = resources_with({}, healthy() | {operation: answer}, monkeypatch)

    (bad,) = (found for found in facts_of(resources, NOW) if not found.good)

    assert bad.name == fact
    assert value in bad.text


def test_status_where_letters_wait__tells_the_age_of_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that was received so often that SQS's own metric leaves it out; it stays visible."""
    resources, fake = resources_with({}, healthy() | {"get_queue_attributes": queue_with(3)}, monkeypatch)

    waiting, oldest = (found for found in facts_of(resources, NOW) if not found.good)

    assert (waiting.name, waiting.value) == ("dead letters waiting", 3)
    assert (oldest.value, oldest.text) == (13 * 86_400.0, "13 d")
    (request,) = (parameters for name, parameters in fake.calls if name == "receive_message")
    assert request["VisibilityTimeout"] == 0


def test_status_as_json__has_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    resources_with({}, healthy(), monkeypatch)

    assert main(["status", "--json"]) == 0

    facts = {fact["name"]: fact for fact in json.loads(capsys.readouterr().out)}
    assert facts["RecordsApplied, last hour"]["value"] == 15
    assert facts["iterator age"]["value"] == 0.1
    assert facts["alarms"] == {"name": "alarms", "value": "", "text": "none", "good": True}


@pytest.mark.parametrize("command", [["--ledger-table", "a"], ["--queue-url", "b"], ["--function", "c"]])
def test_name_that_is_given__stands_alone(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = healthy() | {"put_metric_data": {}}
    resources, fake = resources_with({"LEDGER_RETENTION_DAYS": ""}, answers, monkeypatch, *command)

    facts = facts_of(resources, NOW)

    assert resources.ledger_retention_days == 60
    assert "describe_stacks" not in [name for name, _ in fake.calls]
    assert not all(fact.good for fact in facts)
    with pytest.raises(CommandError, match="give --stack or --bucket, too"):
        _ = resources.bucket


class FakeStream:
    """A shard whose pages are given; an empty list is an empty page."""

    def __init__(self, *pages: list[int], open_ended: bool = False) -> None:
        self.pages = pages
        self.open_ended = open_ended

    def get_shard_iterator(self, **_: Any) -> dict[str, str]:
        return {"ShardIterator": "0"}

    def get_records(self, *, ShardIterator: str) -> dict[str, Any]:  # noqa: N803 - boto3's name
        page = int(ShardIterator)
        numbers = self.pages[page] if page < len(self.pages) else []
        records = [{"eventID": str(number), "dynamodb": {"SequenceNumber": str(number)}} for number in numbers]
        more = self.open_ended or page + 1 < len(self.pages)
        return {"Records": records} | ({"NextShardIterator": str(page + 1)} if more else {})


def numbers_of(records: list[dict[str, Any]]) -> list[int]:
    return [int(record["dynamodb"]["SequenceNumber"]) for record in records]


def test_range__is_read_through_empty_pages_by_integers() -> None:
    stream: Any = FakeStream([], [98, 99], [], [], [100], [], [101, 102])

    assert numbers_of(read_range(stream, "arn", "shard", "99", "101")) == [99, 100, 101]


@pytest.mark.parametrize(
    "stream",
    [FakeStream([99, 100]), FakeStream([99], [103]), FakeStream([99], open_ended=True)],
    ids=["shard ended", "number skipped", "shard still open"],
)
def test_range_whose_end_is_not_there__is_refused(stream: Any) -> None:
    with pytest.raises(StreamRangeError, match="end was not reached"):
        read_range(stream, "arn", "shard", "99", "101")


@pytest.mark.parametrize("code", ["TrimmedDataAccessException", "ResourceNotFoundException"])
def test_range_that_the_stream_has_lost__says_to_reconcile(code: str) -> None:
    class Trimmed(FakeStream):
        def get_shard_iterator(self, **_: Any) -> dict[str, str]:
            raise ClientError({"Error": {"Code": code, "Message": "gone"}}, "GetShardIterator")

    stream: Any = Trimmed()

    with pytest.raises(StreamRangeError, match="reconcile"):
        read_range(stream, "arn", "shard", "99", "101")


def test_trust__ends_when_the_ledger_may_forget() -> None:
    record = {"dynamodb": {"ApproximateCreationDateTime": NOW.timestamp()}}

    assert trusted_until(record, 60) == NOW + timedelta(days=60)


@pytest.mark.parametrize("record", [None, {}, {"dynamodb": {}}, {"dynamodb": {"ApproximateCreationDateTime": "x"}}])
def test_trust_in_a_record_without_a_time__is_unknown(record: Any) -> None:
    assert trusted_until(record, 60) is None


def explanation(total: tuple[Decimal, ...] | None, may_have_expired: bool = False) -> Explanation:
    (aggregation,) = load_definitions(SAMPLE_FILE).aggregations
    receipts = {f"{first_position(second)}abcdef.10{second}": ((Decimal(second),), ()) for second in (1, 2, 3)}
    stored = Stored({}, receipts, {}, None, {})
    return Explanation(
        aggregation, ("item1", "2026-01-02"), tuple(receipts_of(stored)), total, (Decimal(0),), may_have_expired
    )


@pytest.mark.parametrize(
    ("total", "may_have_expired", "verdict"),
    [
        ((Decimal(6),), False, "add up"),
        ((Decimal(7),), False, "something other than the worker"),
        ((Decimal(7),), True, "expired receipts"),
        (None, False, "something other than the worker"),
    ],
)
def test_verdict__tells_drift_from_expired_receipts(
    total: tuple[Decimal, ...] | None, may_have_expired: bool, verdict: str
) -> None:
    told = explanation(total, may_have_expired)

    assert told.sum == (Decimal(6),)
    assert verdict in told.verdict()


def test_key_that_is_nowhere__is_told_and_adds_up_to_nothing() -> None:
    (aggregation,) = load_definitions(SAMPLE_FILE).aggregations

    told = Explanation(aggregation, ("item1", "2026-01-02"), (), None, (Decimal(0),), False)

    assert not told.is_there
    assert "neither a row with this key nor a receipt" in told.verdict()


def test_measure_that_is_no_number__is_told() -> None:
    (aggregation,) = load_definitions(SAMPLE_FILE).aggregations

    told = Explanation(aggregation, ("item1", "2026-01-02"), (), (None,), (Decimal(0),), True)

    assert not told.matches
    assert told.is_wrong
    assert told.verdict().startswith("A measure is not a number")


@pytest.mark.parametrize(
    ("row", "status", "says"),
    [
        (None, 1, "neither a row with this key nor a receipt"),
        ({"quantity": {"S": "5"}}, 1, "A measure is not a number"),
        ({"quantity": {"N": "5"}}, 1, "something other than the worker"),
        ({"quantity": {"N": "5"}, "archived#item_count_by_date": {"S": "6694ee5c2f84c6"}}, 0, "some of this total are"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_explain_of_a_row__ends_with_what_is_known_of_it(
    row: Any,
    status: int,
    says: str,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not there; text where a number belongs; changed by hand; its pages have expired."""
    (aggregation,) = load_definitions(SAMPLE_FILE).aggregations
    totals = TotalsInMemory([aggregation])
    if row is not None:
        totals.set(aggregation, ("[/red]\x1b[2J", "2026-01-02"), row)
    monkeypatch.setattr(Resources, "client", lambda self, service: totals.undisturbed)
    command = ["explain", "item_count_by_date", "[/red]\x1b[2J", "2026-01-02", "--ledger-table", LEDGER]

    assert main([*command, "--definitions", str(SAMPLE_FILE), *(["--json"] if as_json else [])]) == status

    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert as_json or (says in " ".join(output.split()) and "[/red]\\x1b[2J" in output)


def test_what_is_kept__must_be_what_the_receipts_keep() -> None:
    (aggregation,) = load_definitions(SAMPLE_FILE).aggregations
    name = f"{first_position(1)}abcdef.101"
    receipts = tuple(receipts_of(Stored({}, {name: ((Decimal(0),), (Decimal(4),))}, {}, None, {})))

    right, wrong = (
        Explanation(aggregation, ("item1", "2026-01-02"), receipts, (Decimal(0),), (Decimal(kept),), False)
        for kept in (4, 5)
    )

    assert (right.matches, wrong.matches) == (True, False)
    assert receipts[0].described() == "101, of a removed item: 4 kept"


def test_receipts__are_shown_in_order_and_with_where_they_stand() -> None:
    old, new = (first_position(datetime(2026, 1, day, 3, 4, 5, tzinfo=UTC).timestamp()) for day in (2, 4))
    of_records = {f"{new}abcdef.13": 3, f"{old}bbbbbb.12": 1, f"{old}aaaaaa.9": 2}
    stored = Stored(
        {},
        {name: ((Decimal(number),), ()) for name, number in of_records.items()},
        {f"{old}aaaaaa.9": f"{old}bbbbbb", f"{old}bbbbbb.12": f"{old}bbbbbb"},
        ("since 2026-01-02T00:00:00Z", (Decimal(40),)),
        {(1, "2026-01-03T00:00:00Z|a1b2"): (Decimal(-5),), (1, "2026-01-03T00:00:00Z|a1b2|found"): (Decimal(4),)},
    )

    receipts = sorted(receipts_of(stored), key=Receipt.order)

    assert [(receipt.time, receipt.described(), receipt.where, int(*receipt.amounts)) for receipt in receipts] == [
        ("2026-01-02T00:00:00Z", "backfill: what the source held when the aggregation began (since)", "row", 40),
        ("2026-01-02T03:04:05Z", "9", f"page {old}bbbbbb", 2),
        ("2026-01-02T03:04:05Z", "12", f"page {old}bbbbbb", 1),
        ("2026-01-03T00:00:00Z", "found in the total without a receipt (repair a1b2)", "page repair|000001", 4),
        ("2026-01-03T00:00:00Z", "repair a1b2", "page repair|000001", -5),
        ("2026-01-04T03:04:05Z", "13", "row", 3),
    ]


def test_backfill_from_the_streams_beginning__says_so() -> None:
    (receipt,) = receipts_of(Stored({}, {}, {}, ("stream 2026-01-02T00:00:00.000", (Decimal(40),)), {}))

    assert (receipt.time, receipt.described()) == (
        "2026-01-02T00:00:00.000",
        "backfill: what the source held when the stream began",
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (61, "1 min"), (7_200, "2 h"), (90_000, "1 d"), (-61, "-1 min")]
)
def test_duration__is_in_its_largest_unit(seconds: int, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", "--limit", "0"],
        ["replay", "--rate", "nan"],
        ["replay", "--rate", "inf"],
        ["replay", "--sequence-number", "x"],
        ["local", "--port", "0"],
        ["explain", "table"],
        ["backfill", "--catch-up-until", "yesterday"],
        ["backfill", "--catch-up-until", "2026-11-24T12:00:00"],
        ["backfill", "--segments", "0"],
        ["backfill", "--rate", "-1"],
        ["no-such-command"],
        [],
    ],
)
def test_wrong_arguments__end_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(arguments)

    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(("keys", "message"), [(["a"], "needs 2 key values"), (["a", "b", "c"], "needs 2 key values")])
def test_explain_with_too_few_or_many_keys__is_one_clear_line(
    keys: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "item_count_by_date", *keys, "--definitions", str(SAMPLE_FILE)]) == 2

    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(("since", "expected"), [("2000-01-01T00:00:00Z", 1), ("9000-01-01T00:00:00Z", 0)])
def test_canary__is_not_expected_before_an_aggregation_begins(
    since: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "aggregations.toml"
    file.write_text(SOURCE + aggregation_text(f'since = "{since}"') + aggregation_text(name="other", table="other"))
    resources, _ = resources_with({}, {"get_item": {}}, monkeypatch, "--definitions", str(file))

    expectations = expectations_of(resources, canary_of(resources.definitions, example_item(resources.definitions)))

    assert len(expectations) == expected + 1


def test_example__is_counted_by_the_reference_definitions() -> None:
    definitions = load_definitions(SAMPLE_FILE)
    (aggregation,) = definitions.aggregations

    assert aggregation.value(example_item(definitions)) == (("item123", "2024-07-15"), (Decimal(10),))
    assert put_item_command(definitions, "--endpoint-url", "http://x").startswith("aws dynamodb put-item --table-name")
    assert "item123" in query_command(definitions, aggregation)


@pytest.mark.parametrize(
    "where",
    [
        "status == 'paid' && customer.country != 'XX'",
        "'paid' == status || price > `10`",
        "quantity > `100` && `5` < weight && quantity != `7`",
        "paid && !cancelled && lines[0].ready",
        "contains(tags, 'gift') && starts_with(shop, 'web')",
        "gift == `true` && weight <= `1.5` && reason != `null`",
    ],
)
def test_example__is_made_so_that_a_where_is_true(where: str) -> None:
    defined = definitions(aggregation_text(f"where = {json.dumps(where)}"))

    assert defined.aggregations[0].value(example_item(defined)) is not None


def test_definitions_of_the_readme__count_example_and_canary() -> None:
    (block,) = re.findall(r"(?ms)^```toml\n(.*?)^```", (Path(__file__).parents[2] / "README.md").read_text())
    shown = parse_definitions(SOURCE + block)
    (aggregation,) = shown.aggregations

    assert aggregation.value(example_item(shown)) is not None
    assert aggregation.value(canary_of(shown, example_item(shown))) is not None


def test_item_that_is_given__is_what_the_canary_is_made_of() -> None:
    defined = definitions(aggregation_text("where = \"length(join('-', tags)) == `3`\""))
    item = {"tags": {"L": [{"S": "a"}, {"S": "b"}]}, "quantity": {"N": "3"}, "orderid": {"S": "mine"}}

    canary = canary_of(defined, item)

    value = defined.aggregations[0].value(canary)
    assert value is not None
    assert value[1] == (Decimal(3),)
    assert value[0][0].startswith("aggregator-verify-")
    assert canary["orderid"]["S"].startswith("aggregator-verify-")


class ShopInMemory:
    """A source and a target table, of which the worker sees each change when `lag` more have been made."""

    def __init__(self, defined: Definitions, lag: int) -> None:
        self.definitions, self.lag = defined, lag
        self.source: dict[str, Any] = {}
        self.totals = TotalsInMemory(defined.aggregations)
        self.todo: list[Any] = []
        self.dynamodb, self.catalogue = self, None

    def put_item(self, *, TableName: str, Item: Any) -> None:  # noqa: N803 - boto3's names
        self._change(TableName, Item["orderid"]["S"], Item)

    def delete_item(self, *, TableName: str, Key: Any) -> None:  # noqa: N803 - boto3's names
        if TableName == self.definitions.source.table:
            self._change(TableName, Key["orderid"]["S"], None)
        else:
            self.totals.tables[TableName].items.pop(tuple(value["S"] for value in Key.values()), None)

    def get_item(self, **request: Any) -> Any:
        return self.totals.undisturbed.get_item(**request)

    def _change(self, table: str, order: str, new: Any) -> None:
        assert table == self.definitions.source.table
        old = self.source.pop(order, None)
        if new is not None:
            self.source[order] = new
        if old is not None or new is not None:
            make = remove if new is None else insert if old is None else modify
            images = [image for image in (old, new) if image is not None]
            self.todo.append(validated(make(*images)))
        self.work(self.lag)

    def work(self, keep: int = 0) -> None:
        while len(self.todo) > keep:
            self.totals.apply(self.definitions.aggregations, self.todo.pop(0))


@pytest.mark.parametrize("policy", ["keep", "ignore", "retract", "retract_unless_expired"])
def test_verify__leaves_no_row(policy: str) -> None:
    shop: Any = ShopInMemory(definitions(aggregation_text(f'remove = "{policy}"')), lag=0)

    Verification(shop, canary_of(shop.definitions, example_item(shop.definitions)), 60).run()

    assert (shop.source, shop.totals.tables["item_count_by_date"].items) == ({}, {})


@pytest.mark.parametrize("error", [CommandError, KeyboardInterrupt])
@pytest.mark.parametrize("policy", ["keep", "ignore", "retract", "retract_unless_expired"])
def test_verify_that_ends_before_the_worker_comes__leaves_no_total(
    policy: str, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    shop: Any = ShopInMemory(definitions(aggregation_text(f'remove = "{policy}"')), lag=9)

    def give_up(seconds: float) -> None:
        raise KeyboardInterrupt

    canary = canary_of(shop.definitions, example_item(shop.definitions))
    timeout, sleep = (60, give_up) if error is KeyboardInterrupt else (0.01, time.sleep)
    with pytest.raises(error):
        Verification(shop, canary, timeout, sleep=sleep).run()
    shop.work()

    assert shop.source == {}
    (row,) = shop.totals.tables["item_count_by_date"].items.values()
    assert row["quantity"] == {"N": "0"}
    assert row.get("kept#item_count_by_date#quantity", {"N": "0"}) == {"N": "0"}
    assert ("being removed" in capsys.readouterr().err) is (error is KeyboardInterrupt)


VOCABULARY = """
[[aggregations]]
name = "all"
table = "all"
partition_key = { name = "scope", value = "all" }
sort_key = { name = "week", from = "created", truncate = "week", epoch = "milliseconds" }
sum = { gross = "price.net * 1.19", parts = { jmespath = "sum(lines[].parts[].number)" } }

[[aggregations]]
name = "lines"
table = "lines"
partition_key = { name = "day", from = "at.day", truncate = "day" }
sum.lines = { jmespath = "length(lines)" }
sum.prices = { jmespath = "sum([price.net, lines[-1].price])" }
sum.largest = { jmespath = "max(sizes)" }
sum.some = { jmespath = "length(lines[?price > `1`].price)" }
"""


def test_example__is_counted_whatever_the_vocabulary() -> None:
    everything = definitions(VOCABULARY)
    item = example_item(everything)

    values = [aggregation.value(item) for aggregation in everything.aggregations]

    assert values == [
        (("all", "2024-W29"), (Decimal("11.90"), Decimal(10))),
        (("2024-07-15",), (Decimal(10), Decimal(1), Decimal(20), Decimal(1))),
    ]
    assert '{":value": {"S": "all"}}' in query_command(everything, everything.aggregations[0])


def test_canary__has_a_row_of_its_own_whatever_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "aggregations.toml"
    file.write_text(SOURCE + VOCABULARY)
    resources, _ = resources_with({}, {"get_item": {}}, monkeypatch, "--definitions", str(file))

    expectations = expectations_of(resources, canary_of(resources.definitions, example_item(resources.definitions)))

    (all_items, lines) = (expectation.group for expectation in expectations)
    assert all_items[0] == "all"
    assert re.fullmatch(r"1[0-7]\d\d-W\d\d", all_items[1])
    assert re.fullmatch(r"1[0-7]\d\d-\d\d-\d\d", lines[0])


@pytest.mark.parametrize("what", ['sum = { quantity = "quantity" }', 'count = "orders"'])
@pytest.mark.parametrize("remove", ["retract", "retract_unless_expired", "keep", "ignore"])
def test_total_of_all_items__is_not_the_canarys(
    remove: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is changed to its keys alone is worth nothing any more, except where items are counted as such."""
    file = tmp_path / "aggregations.toml"
    more = f'remove = "{remove}"\n{what}'
    total = aggregation_text(more, name="total", partition_key=ALL_ITEMS, sort_key=None, sum=None)
    file.write_text(SOURCE + aggregation_text(name="other", table="other") + total)
    resources, _ = resources_with({}, {"get_item": {}}, monkeypatch, "--definitions", str(file))

    if remove in ("keep", "ignore") and what.startswith("count"):
        with pytest.raises(CommandError, match=r"total is a total of all items, and would keep the canary's worth"):
            expectations_of(resources, canary_of(resources.definitions, example_item(resources.definitions)))
    else:
        expectations = expectations_of(resources, canary_of(resources.definitions, example_item(resources.definitions)))
        assert [expectation.aggregation.name for expectation in expectations] == ["other"]

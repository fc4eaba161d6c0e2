"""The scheduled reconcile: there only if asked for, and then a function that may read and do nothing else."""

import functools
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE, load_definitions, parse_definitions
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.example import example_item
from aggregation_worker.deployment.settings import DeploymentError
from aggregation_worker.ledger.catalogue import register
from aggregation_worker.ledger.commit import Committer, Deadline
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.reconciliation.scheduled import ScheduledSettings, read_scheduled_settings, reconcile
from aggregation_worker_cdk.schedule import mistake_in
from tests.dynamodb_local import DynamoDBLocal
from tests.infrastructure.stacks import OTHER_DEFINITIONS, Stack, plain, synthesized
from tests.postings import postings
from tests.prompt_reader import PromptReader
from tests.records import insert, order

# The service authorization reference's access levels of the actions that are allowed.
READS = {
    "dynamodb:DescribeStream",
    "dynamodb:DescribeTable",
    "dynamodb:GetItem",
    "dynamodb:GetRecords",
    "dynamodb:GetShardIterator",
    "dynamodb:Query",
    "dynamodb:Scan",
}
TELLS = {"logs:CreateLogStream", "logs:PutLogEvents", "xray:PutTelemetryRecords", "xray:PutTraceSegments"}


def function_of(stack: Stack, name: str = "ReconcileFunction") -> dict[str, Any]:
    return dict(plain(stack.of_type("Lambda::Function")[name]["Properties"]))


def statements(stack: Stack) -> list[tuple[str, Any, Any]]:
    role = plain(stack.of_type("IAM::Role")["ReconcileRole"]["Properties"])
    (policy,) = role["Policies"]
    found = policy["PolicyDocument"]["Statement"]
    assert all(statement.keys() == {"Sid", "Effect", "Action", "Resource"} for statement in found)
    assert {statement["Effect"] for statement in found} == {"Allow"}
    return [(statement["Sid"], statement["Action"], statement["Resource"]) for statement in found]


def test_without_the_flag__nothing_of_it_is_deployed(stack: Stack) -> None:
    assert not [logical_id for logical_id in stack.template["Resources"] if "Reconcile" in logical_id]
    assert not [name for name in stack.template["Outputs"] if "Reconcile" in name]
    assert not stack.of_type("Events::Rule")


def test_with_the_flag__all_else_stays_as_it_is(stack: Stack, reconcile_stack: Stack) -> None:
    before, after = stack.template["Resources"], reconcile_stack.template["Resources"]

    changed = {name for name, resource in before.items() if after[name] != resource}
    assert {before[name]["Type"] for name in changed} == {"AWS::CloudWatch::Dashboard"}


def test_function__runs_alone_for_as_long_as_lambda_allows(reconcile_stack: Stack) -> None:
    function = function_of(reconcile_stack)

    assert function["Handler"] == "aggregation_worker.reconciliation.scheduled.lambda_handler"
    assert (function["Runtime"], function["Architectures"]) == ("python3.13", ["arm64"])
    assert function["Role"] == "<ReconcileRole.Arn>"
    assert function["Timeout"] == 900
    assert function["MemorySize"] == 1769
    assert function["EphemeralStorage"] == {"Size": deployment.RECONCILE_STORAGE_MB}
    assert function["ReservedConcurrentExecutions"] == 1
    assert function["TracingConfig"] == {"Mode": "Active"}
    assert function["Code"] != function_of(reconcile_stack, "WorkerFunction")["Code"]


def test_failed_run__is_not_repeated_before_its_next_time(reconcile_stack: Stack) -> None:
    assert reconcile_stack.properties("Lambda::EventInvokeConfig") == {
        "FunctionName": "<ReconcileFunction>",
        "Qualifier": "$LATEST",
        "MaximumRetryAttempts": 0,
        "MaximumEventAgeInSeconds": 1800,
    }


def test_environment__holds_every_setting(reconcile_stack: Stack) -> None:
    assert function_of(reconcile_stack)["Environment"]["Variables"] == {
        "LEDGER_TABLE": "<TablesLedger>",
        "LEDGER_RETENTION_DAYS": "60",
        "SOURCE_STREAM_ARN": "<TablesSource.StreamArn>",
        "MAX_SOURCE_BYTES": str(deployment.MAX_SCHEDULED_RECONCILE_BYTES),
        "POWERTOOLS_SERVICE_NAME": "DynamoDBAggregationWorker",
    }


def test_environment_of_other_definitions__names_their_stream(other_reconcile_stack: Stack) -> None:
    variables = function_of(other_reconcile_stack)["Environment"]["Variables"]

    assert variables["SOURCE_STREAM_ARN"].startswith("arn:aws:dynamodb:eu-central-1:123456789012:table/sales/stream/")


def test_rule__calls_the_function_and_nobody_else_may(reconcile_stack: Stack) -> None:
    rule = reconcile_stack.properties("Events::Rule")
    permission = reconcile_stack.properties("Lambda::Permission")

    assert (rule["ScheduleExpression"], rule["State"]) == ("rate(1 day)", "ENABLED")
    assert [target["Arn"] for target in rule["Targets"]] == ["<ReconcileFunction.Arn>"]
    assert permission == {
        "Action": "lambda:InvokeFunction",
        "FunctionName": "<ReconcileFunction.Arn>",
        "Principal": "events.amazonaws.com",
        "SourceArn": "<ReconcileSchedule.Arn>",
    }


def test_role__may_do_exactly_this(reconcile_stack: Stack) -> None:
    assert statements(reconcile_stack) == [
        ("ReadSource", ["dynamodb:DescribeTable", "dynamodb:Scan"], "<TablesSource.Arn>"),
        (
            "ReadStream",
            ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
            "<TablesSource.StreamArn>",
        ),
        ("ReadTotals", ["dynamodb:GetItem", "dynamodb:Scan"], "<TablesTargetitemcountbydate.Arn>"),
        ("ReadLedger", ["dynamodb:GetItem", "dynamodb:Query"], "<TablesLedger.Arn>"),
        ("WriteLog", ["logs:CreateLogStream", "logs:PutLogEvents"], "<ReconcileLog.Arn>"),
        ("Trace", ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], "*"),
    ]


def test_role__writes_nothing_but_log_and_traces(reconcile_stack: Stack, other_reconcile_stack: Stack) -> None:
    for one in (reconcile_stack, other_reconcile_stack):
        assert {action for _, actions, _ in statements(one) for action in actions} == READS | TELLS
        assert one.of_type("IAM::Role").keys() == {"WorkerRole", "ReconcileRole"}
        assert not one.of_type("IAM::Policy")
        role = one.of_type("IAM::Role")["ReconcileRole"]["Properties"]
        assert role.keys() == {"AssumeRolePolicyDocument", "Description", "Policies"}


def test_role_of_other_definitions__reads_their_tables(other_reconcile_stack: Stack) -> None:
    resources = {name: resource for name, _, resource in statements(other_reconcile_stack)}

    assert resources["ReadSource"] == "arn:aws:dynamodb:eu-central-1:123456789012:table/sales"
    assert resources["ReadStream"].startswith(f"{resources['ReadSource']}/stream/")
    assert resources["ReadTotals"] == ["<TablesTargetcustomertotals.Arn>", "<TablesTargethourlyorders.Arn>"]


def test_role__allows_every_request_of_a_run(
    reconcile_stack: Stack, dynamodb_local: DynamoDBLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that meets drift, and so makes all of its requests: each names a table that its role names for it."""
    name = f"role-{uuid.uuid4().hex[:12]}"
    file = tmp_path / "definitions.toml"
    text = SAMPLE_FILE.read_text().replace('"Order_by_item"', f'"{name}"')
    file.write_text(text.replace('table = "item_count_by_date"', f'table = "{name}-target"'))
    definitions = load_definitions(file)
    client, streams = dynamodb_local.client("dynamodb"), dynamodb_local.client("dynamodbstreams")
    stream_arn = create_table(client, name, deployment.source_table(definitions))
    assert stream_arn is not None
    create_table(client, f"{name}-target", deployment.target_tables(definitions)[f"{name}-target"])
    create_table(client, f"{name}-ledger", deployment.LEDGER)
    register(client, f"{name}-ledger", definitions.aggregations)
    client.put_item(TableName=name, Item=example_item(definitions))
    with ThreadPoolExecutor(1) as executor:  # whose total has a receipt, but of another quantity
        committer = Committer(client, f"{name}-ledger", 60, executor)
        miscounted = postings(insert(order(quantity=7)), defined=definitions)
        assert committer.commit(miscounted, Deadline(lambda: 60.0, stop_sending=5.0, stop_waiting=1.0)).applied
    monkeypatch.setattr("aggregation_worker.reconciliation.scheduled.StreamReader", PromptReader)
    requests: set[tuple[str, str]] = set()
    for recorded in (client, streams):
        recorded.meta.events.register("provide-client-params", functools.partial(note_request, requests))

    report = reconcile(
        ScheduledSettings(file, f"{name}-ledger", stream_arn, max_source_bytes=1_000_000),
        client,
        streams,
        seconds_left=lambda: 60.0,
        patience=0.2,
    )

    named = {
        "<TablesSource.Arn>": name,
        "<TablesSource.StreamArn>": stream_arn,
        "<TablesTargetitemcountbydate.Arn>": f"{name}-target",
        "<TablesLedger.Arn>": f"{name}-ledger",
    }
    allowed = {
        (action.removeprefix("dynamodb:"), named[resource])
        for _, actions, resource in statements(reconcile_stack)
        if resource in named
        for action in actions
    }
    assert report.drifted == 1
    assert requests == allowed


def note_request(requests: set[tuple[str, str]], params: dict[str, Any], model: Any, **_: Any) -> None:
    """Notes an operation, and the table or stream that it is about: an iterator is of the one stream there is."""
    about = params.get("TableName") or params.get("StreamArn")
    if about is None:
        (about,) = {arn for operation, arn in requests if operation == "GetShardIterator"}
    requests.add((model.name, about))


def test_log__is_its_own_and_kept_like_the_workers(reconcile_stack: Stack) -> None:
    groups = reconcile_stack.of_type("Logs::LogGroup")

    assert groups["ReconcileLog"] == groups["WorkerLog"]
    assert function_of(reconcile_stack)["LoggingConfig"] == {
        "ApplicationLogLevel": "INFO",
        "LogFormat": "JSON",
        "LogGroup": "<ReconcileLog>",
        "SystemLogLevel": "INFO",
    }


def test_log_of_a_throwaway_stack__goes_with_it() -> None:
    throwaway = synthesized(OTHER_DEFINITIONS, reconcile="rate(1 day)", throwaway=True)

    assert throwaway.of_type("Logs::LogGroup")["ReconcileLog"]["DeletionPolicy"] == "Delete"


def test_outputs__name_what_its_runbook_asks_for(stack: Stack, reconcile_stack: Stack) -> None:
    outputs = reconcile_stack.template["Outputs"]

    assert {name: plain(outputs[name]["Value"]) for name in outputs.keys() - stack.template["Outputs"].keys()} == {
        "ReconcileFunctionName": "<ReconcileFunction>",
        "ReconcileRuleName": "<ReconcileSchedule>",
        "ReconcileLogGroupName": "<ReconcileLog>",
    }


@pytest.mark.parametrize(
    ("policies", "provable"),
    [
        (["ignore"], False),
        (["ignore", "ignore"], False),
        (["ignore", "retract"], True),
        (["keep"], True),
        (["retract_unless_expired"], True),
    ],
)
def test_schedule__needs_an_aggregation_that_can_be_proved(policies: list[str], provable: bool) -> None:
    head, _, aggregation = SAMPLE_FILE.read_text().partition("[[aggregations]]")
    named = aggregation.replace('"item_count_by_date"', '"{name}"').replace("{ ", "{{ ").replace(" }", " }}")
    entries = [named.format(name=f"counts{n}") + f'remove = "{policy}"\n' for n, policy in enumerate(policies)]
    definitions = parse_definitions("[[aggregations]]".join([head, *entries]))

    if provable:
        deployment.check_scheduled_reconcile(definitions)
    else:
        with pytest.raises(DeploymentError, match=r"prove nothing: .*define remove = .keep."):
            deployment.check_scheduled_reconcile(definitions)


def test_limit__leaves_half_the_time_for_more_than_the_source() -> None:
    seconds = deployment.MAX_SCHEDULED_RECONCILE_BYTES / deployment.RECONCILE_BYTES_PER_SECOND

    assert seconds <= deployment.RECONCILE_TIMEOUT_SECONDS / 2


def test_settings__are_taken_by_the_function(reconcile_stack: Stack, other_reconcile_stack: Stack) -> None:
    for one in (reconcile_stack, other_reconcile_stack):
        settings = read_scheduled_settings(function_of(one)["Environment"]["Variables"])

        assert settings.max_source_bytes == deployment.MAX_SCHEDULED_RECONCILE_BYTES
        assert settings.aggregations_file == DEFINITIONS_FILE


@pytest.mark.parametrize(
    "expression",
    [
        "rate(1 day)",
        "rate(1 hour)",
        "rate(60 minutes)",
        "rate(7 days)",
        "cron(0 3 * * ? *)",
        "cron(15 */6 ? * MON-FRI *)",
        "cron(30 1-5/2,12 1,15,L JAN,7 ? 2026-2030)",
        "cron(5 03 ? * 6L *)",
        "cron(5 3 15W * ? *)",
        "cron(5 3 ? * 2#1 2027)",
    ],
)
def test_schedule_that_eventbridge_takes__has_no_mistake(expression: str) -> None:
    assert mistake_in(expression) is None


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("", "like rate(1 day)"),
        ("daily", "like rate(1 day)"),
        ("rate(0 days)", "like rate(1 day)"),
        ("rate(-1 days)", "like rate(1 day)"),
        ("rate(1.5 days)", "like rate(1 day)"),
        ("rate(1 week)", "like rate(1 day)"),
        ("rate(1 day) ", "like rate(1 day)"),
        ("at(2027-01-01T00:00:00)", "like rate(1 day)"),
        ("cron(0 3 * * *)", "like rate(1 day)"),
        ("rate(1 days)", "EventBridge takes 1 day"),
        ("rate(2 day)", "EventBridge takes 2 days"),
        ("rate(59 minutes)", "at most once an hour"),
        ("cron(0/5 3 * * ? *)", "minutes cannot be '0/5'; one number is needed"),
        ("cron(* 3 * * ? *)", "minutes cannot be '*'"),
        ("cron(60 3 * * ? *)", "minutes cannot be '60'"),
        ("cron(0 24 * * ? *)", "hours cannot be '24'"),
        ("cron(0 ? * * ? *)", "hours cannot be '?'"),
        ("cron(0 3,, * * ? *)", "hours cannot be '3,,'"),
        ("cron(0 3 32 * ? *)", "day of month cannot be '32'"),
        ("cron(0 3 * 13 ? *)", "month cannot be '13'"),
        ("cron(0 3 ? * 8 *)", "day of week cannot be '8'"),
        ("cron(0 3 ? * 2#6 *)", "day of week cannot be '2#6'"),
        ("cron(0 3 * * ? 1969)", "year cannot be '1969'"),
        ("cron(0 3 * * * *)", "one of day of month and day of week must be ?"),
        ("cron(0 3 ? * ? *)", "one of day of month and day of week must be ?"),
    ],
)
def test_mistake_in_a_schedule__is_said(expression: str, mistake: str) -> None:
    assert mistake in (mistake_in(expression) or "")

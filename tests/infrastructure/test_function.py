"""The function, its mapping, its log and, word for word, what its role may do."""

import functools
import json
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.handler import FAILURE_PAUSE
from aggregation_worker.ledger.catalogue import register
from aggregation_worker.ledger.commit import Committer, Deadline
from aggregation_worker.ledger.writes import Add, Archive, Late
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.settings import read_settings
from aggregation_worker_cdk.alarms import NEAR_THE_TIMEOUT_MS
from tests.definition_texts import aggregation_text, definitions
from tests.dynamodb_local import DynamoDBLocal
from tests.infrastructure.stacks import Stack, plain, synthesized
from tests.postings import postings
from tests.records import CREATED_AT, insert, order

BUCKET = "<DeadLettersBucket.Arn>"
# By name, not by reference: the bucket waits for the queue's policy, which names the role.
BUCKET_BY_NAME = "arn:<AWS::Partition>:s3:::dynamodbaggregationworker-dlq-<AWS::AccountId>-<AWS::Region>"
ACCOUNT = {"StringEquals": {"s3:ResourceAccount": "<AWS::AccountId>"}}


def statements(stack: Stack) -> list[tuple[str, Any, Any, Any]]:
    """Every statement of the function's role: its name, actions, resources and conditions."""
    role = stack.properties("IAM::Role")
    (policy,) = role["Policies"]
    return [
        (statement["Sid"], statement["Action"], statement["Resource"], statement.get("Condition"))
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
    ]


def test_function__runs_the_handler_on_the_tested_runtime(stack: Stack) -> None:
    function = stack.properties("Lambda::Function")

    assert function["Handler"] == "aggregation_worker.handler.lambda_handler"
    assert function["Runtime"] == "python3.13"
    assert function["Architectures"] == ["arm64"]
    assert function["Role"] == "<WorkerRole.Arn>"
    assert (function["MemorySize"], function["Timeout"]) == (1024, 60)
    assert function["TracingConfig"] == {"Mode": "Active"}
    assert "ReservedConcurrentExecutions" not in function


def test_environment__holds_every_setting_that_the_worker_needs(stack: Stack) -> None:
    environment = stack.properties("Lambda::Function")["Environment"]["Variables"]

    assert environment == {
        "LEDGER_TABLE": "<TablesLedger>",
        "LEDGER_RETENTION_DAYS": "60",
        "DEAD_LETTER_QUEUE_URL": "<DeadLettersQueue>",
        "DEAD_LETTER_BUCKET": "<DeadLettersBucket>",
        "SOURCE_STREAM_ARN": "<TablesSource.StreamArn>",
        "POWERTOOLS_SERVICE_NAME": "DynamoDBAggregationWorker",
    }
    assert read_settings(environment).ledger_retention_days == 60


def test_log__is_json_and_kept_longer_than_pages(stack: Stack) -> None:
    logging = stack.properties("Lambda::Function")["LoggingConfig"]
    (group,) = stack.of_type("Logs::LogGroup").values()

    # A higher level than INFO would drop the metrics, which are log lines without one.
    assert logging == {
        "ApplicationLogLevel": "INFO",
        "LogFormat": "JSON",
        "LogGroup": "<WorkerLog>",
        "SystemLogLevel": "INFO",
    }
    assert group["Properties"] == {"RetentionInDays": 90}
    assert group["DeletionPolicy"] == "Retain"


def test_throwaway_log__goes_with_the_stack(throwaway_stack: Stack) -> None:
    (group,) = throwaway_stack.of_type("Logs::LogGroup").values()

    assert group["DeletionPolicy"] == "Delete"


def test_reserved_concurrency__is_set_where_it_is_asked_for() -> None:
    function = synthesized(reserved_concurrency=7).properties("Lambda::Function")

    assert function["ReservedConcurrentExecutions"] == 7


def test_mapping__has_each_value(stack: Stack) -> None:
    assert stack.properties("Lambda::EventSourceMapping") == {
        "EventSourceArn": "<TablesSource.StreamArn>",
        "FunctionName": "<WorkerFunction>",
        "StartingPosition": "TRIM_HORIZON",
        "BatchSize": 1000,
        "MaximumBatchingWindowInSeconds": 1,
        "ParallelizationFactor": 1,
        "MaximumRetryAttempts": 2880,
        "MaximumRecordAgeInSeconds": 21_600,
        "BisectBatchOnFunctionError": True,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "FilterCriteria": {"Filters": [{"Pattern": json.dumps({"eventName": ["INSERT", "MODIFY", "REMOVE"]})}]},
        "DestinationConfig": {"OnFailure": {"Destination": BUCKET}},
        "MetricsConfig": {"Metrics": ["EventCount"]},
    }


def test_failing_batch__is_held_without_looking_slow() -> None:
    """Neither the function's timeout nor the alarm that batches come near it."""
    assert FAILURE_PAUSE <= deployment.FUNCTION_TIMEOUT_SECONDS / 2
    assert FAILURE_PAUSE * 1_000 < NEAR_THE_TIMEOUT_MS


def test_retries_of_a_failing_batch__last_as_long_as_the_stream() -> None:
    """So that the maximum record age alone decides, also when an operator raises it."""
    seconds = FAILURE_PAUSE * deployment.MAPPING.maximum_retry_attempts

    assert seconds >= deployment.STREAM_RETENTION_DAYS * 86_400


def test_mapping_of_other_definitions__reads_the_existing_stream(stack: Stack, other_stack: Stack) -> None:
    expected = stack.properties("Lambda::EventSourceMapping") | {
        "EventSourceArn": "arn:aws:dynamodb:eu-central-1:123456789012:table/sales/stream/2026-01-01T00:00:00.000",
        "FilterCriteria": {"Filters": [{"Pattern": json.dumps({"eventName": ["INSERT", "MODIFY", "REMOVE"]})}]},
    }

    assert other_stack.properties("Lambda::EventSourceMapping") == expected


@pytest.mark.parametrize(
    ("policies", "names"),
    [
        (["ignore"], ["INSERT", "MODIFY"]),
        (["ignore", "keep"], ["INSERT", "MODIFY", "REMOVE"]),
        (["retract"], ["INSERT", "MODIFY", "REMOVE"]),
    ],
)
def test_removals__are_not_delivered_where_every_aggregation_ignores_them(
    policies: list[str], names: list[str]
) -> None:
    texts = [aggregation_text(f'remove = "{one}"', name=f"a{n}", table=f"table-{n}") for n, one in enumerate(policies)]

    assert [name.value for name in deployment.event_names(definitions(*texts))] == names


def test_mapping__waits_for_the_buckets_policy(stack: Stack) -> None:
    (mapping,) = stack.of_type("Lambda::EventSourceMapping").values()

    (dependency,) = mapping["DependsOn"]
    assert stack.template["Resources"][dependency]["Type"] == "AWS::S3::BucketPolicy"


def test_role__may_do_exactly_this(stack: Stack) -> None:
    assert statements(stack) == [
        (
            "ReadStream",
            ["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
            "<TablesSource.StreamArn>",
            None,
        ),
        ("ListStreams", "dynamodb:ListStreams", "<TablesSource.Arn>/stream/*", None),
        (
            "AddToTotals",
            ["dynamodb:BatchGetItem", "dynamodb:UpdateItem"],
            "<TablesTargetitemcountbydate.Arn>",
            None,
        ),
        (
            "KeepPages",
            ["dynamodb:PutItem", "dynamodb:Query"],
            "<TablesLedger.Arn>",
            {"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["?*#*"]}},
        ),
        (
            "KeepCatalogue",
            ["dynamodb:GetItem", "dynamodb:PutItem"],
            "<TablesLedger.Arn>",
            {"ForAllValues:StringEquals": {"dynamodb:LeadingKeys": ["#catalogue"]}},
        ),
        ("ParkRecords", "sqs:SendMessage", "<DeadLettersQueue.Arn>", None),
        (
            "StoreDeadLetters",
            "s3:PutObject",
            [f"{BUCKET_BY_NAME}/aws/lambda/*", f"{BUCKET_BY_NAME}/parked-records/*"],
            ACCOUNT,
        ),
        ("FindOnFailureDestination", "s3:ListBucket", BUCKET_BY_NAME, ACCOUNT),
        ("WriteLog", ["logs:CreateLogStream", "logs:PutLogEvents"], "<WorkerLog.Arn>", None),
        ("Trace", ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], "*", None),
    ]


def test_role_of_other_definitions__names_their_tables(stack: Stack, other_stack: Stack) -> None:
    table = "arn:aws:dynamodb:eu-central-1:123456789012:table/sales"
    changed = {
        "ReadStream": (f"{table}/stream/2026-01-01T00:00:00.000", None),
        "ListStreams": (f"{table}/stream/*", None),
        "AddToTotals": (["<TablesTargetcustomertotals.Arn>", "<TablesTargethourlyorders.Arn>"], None),
    }

    assert statements(other_stack) == [
        (name, actions, *changed.get(name, (resources, conditions)))
        for name, actions, resources, conditions in statements(stack)
    ]


def test_role__allows_every_request_and_no_other(stack: Stack, dynamodb_local: DynamoDBLocal) -> None:
    """Of a worker that adds, archives and writes late, also in rows that it shares with a retired aggregation."""
    table = f"target-{uuid.uuid4().hex[:12]}"
    text = SAMPLE_FILE.read_text().replace('table = "item_count_by_date"', f'table = "{table}"')
    definitions = parse_definitions(text)
    other = text.replace('name = "item_count_by_date"', 'name = "old"')
    retired = parse_definitions(other.replace('sum = { quantity = "quantity" }', 'count = "orders"'))
    ledger = f"{table}-ledger"
    client = dynamodb_local.client("dynamodb")
    create_table(client, ledger, deployment.LEDGER)
    create_table(client, table, deployment.target_tables(definitions)[table])
    requests: list[tuple[str, str, str]] = []
    writes: Counter[Any] = Counter()

    with ThreadPoolExecutor(1) as executor:
        committer = Committer(client, ledger, 60, executor)
        earlier = [insert(order(f"old{second}"), created_at=CREATED_AT - second) for second in range(1, 16)]
        committer.commit(
            postings(*earlier, defined=retired), Deadline(lambda: 60.0, stop_sending=5.0, stop_waiting=1.0)
        )
        client.meta.events.register("provide-client-params", functools.partial(note_actions, requests))
        register(client, ledger, definitions.aggregations)
        for second in (*range(0, 60, 2), 1):
            made = postings(insert(order(str(second)), created_at=CREATED_AT + second), defined=definitions)
            writes += committer.commit(made, Deadline(lambda: 60.0, stop_sending=5.0, stop_waiting=1.0)).writes

    named = {"<TablesTargetitemcountbydate.Arn>": table, "<TablesLedger.Arn>": ledger}
    allowed = [
        (action.removeprefix("dynamodb:"), named[resource], keys_of(condition))
        for _, actions, resource, condition in statements(stack)
        if str(resource) in named
        for action in actions
    ]
    matches = [
        [one for one in allowed if one[:2] == (action, about) and any(fnmatchcase(key, name) for name in one[2])]
        for action, about, key in requests
    ]
    assert writes.keys() == {Add, Archive, Late}
    assert any(key.startswith("old#") for _, _, key in requests)
    assert all(matches)
    assert {one for found in matches for one in found} == set(allowed)


def keys_of(condition: Any) -> tuple[str, ...]:
    """The partition keys that a statement is about, with wildcards."""
    if condition is None:
        return ("*",)
    ((operator, ((_, names),)),) = ((operator, found.items()) for operator, found in condition.items())
    assert operator in ("ForAllValues:StringEquals", "ForAllValues:StringLike")
    return tuple(names)


def note_actions(requests: list[tuple[str, str, str]], params: dict[str, Any], model: Any, **_: Any) -> None:
    """Notes what IAM is asked for: action, table, and in the ledger the partition key."""
    if model.name == "TransactWriteItems":
        for entry in params["TransactItems"]:
            ((kind, action),) = entry.items()
            requests.append((f"{kind}Item", action["TableName"], partition_key_of(action)))
    elif model.name == "BatchGetItem":
        requests.extend((model.name, table, "") for table in params["RequestItems"])
    else:
        requests.append((model.name, params["TableName"], partition_key_of(params)))


def partition_key_of(params: dict[str, Any]) -> str:
    values = params.get("ExpressionAttributeValues", {})
    found = params.get("Item", params.get("Key", {})).get("aggregate") or values.get(":aggregate", {"S": ""})
    return str(found["S"])


@pytest.mark.parametrize("which", ["stack", "other_stack", "throwaway_stack"])
def test_role__is_the_only_one_and_has_only_its_statements(which: str, request: pytest.FixtureRequest) -> None:
    stack: Stack = request.getfixturevalue(which)

    role = stack.properties("IAM::Role")
    assert role.keys() == {"AssumeRolePolicyDocument", "Description", "Policies"}
    assert role["AssumeRolePolicyDocument"]["Statement"] == [
        {"Action": "sts:AssumeRole", "Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}}
    ]
    assert len(statements(stack)) == len(role["Policies"][0]["PolicyDocument"]["Statement"])
    for kind in ("IAM::Policy", "IAM::ManagedPolicy", "IAM::RolePolicy", "Lambda::Permission"):
        assert not stack.of_type(kind)


def test_only_function__is_the_worker(stack: Stack) -> None:
    """No helper of the CDK brought a custom resource with a function, and a role, of its own."""
    kinds = {resource["Type"] for resource in stack.template["Resources"].values()}

    assert len(stack.of_type("Lambda::Function")) == 1
    assert not {kind for kind in kinds if kind.startswith("Custom::") or "CustomResource" in kind}


def test_references__are_written_out_by_the_tests_own_reader() -> None:
    join = {"Fn::Join": ["", [{"Fn::GetAtt": ["Queue0A1B2C3D", "Arn"]}, "/", {"Ref": "AWS::Region"}]]}

    assert plain([join]) == ["<Queue.Arn>/<AWS::Region>"]

"""The function, its mapping, its log and, word for word, what its role may do."""

import json
from typing import Any

import pytest

from aggregation_worker.settings import read_settings
from tests.infrastructure.stacks import Stack, plain, synthesized

BUCKET = "<DeadLettersBucket.Arn>"
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
        "POWERTOOLS_SERVICE_NAME": "DynamoDBAggregationWorker",
    }
    assert read_settings(environment).ledger_retention_days == 60


def test_log__is_json_and_kept_longer_than_receipts(stack: Stack) -> None:
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
        "MaximumRetryAttempts": 30,
        "MaximumRecordAgeInSeconds": 21_600,
        "BisectBatchOnFunctionError": True,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "FilterCriteria": {"Filters": [{"Pattern": json.dumps({"eventName": ["INSERT", "MODIFY"]})}]},
        "DestinationConfig": {"OnFailure": {"Destination": BUCKET}},
        "MetricsConfig": {"Metrics": ["EventCount"]},
    }


def test_mapping_of_other_definitions__reads_the_existing_stream(stack: Stack, other_stack: Stack) -> None:
    expected = stack.properties("Lambda::EventSourceMapping") | {
        "EventSourceArn": "arn:aws:dynamodb:eu-central-1:123456789012:table/sales/stream/2026-01-01T00:00:00.000",
        "FilterCriteria": {"Filters": [{"Pattern": json.dumps({"eventName": ["INSERT", "MODIFY", "REMOVE"]})}]},
    }

    assert other_stack.properties("Lambda::EventSourceMapping") == expected


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
            "PostReceiptsAndTotals",
            "dynamodb:UpdateItem",
            ["<TablesLedger.Arn>", "<TablesTargetitemcountbydate.Arn>"],
            None,
        ),
        ("ReadReceipts", "dynamodb:BatchGetItem", "<TablesLedger.Arn>", None),
        (
            "GuardDefinitions",
            ["dynamodb:GetItem", "dynamodb:PutItem"],
            "<TablesLedger.Arn>",
            {"ForAllValues:StringEquals": {"dynamodb:LeadingKeys": ["item_count_by_date"]}},
        ),
        ("ParkRecords", "sqs:SendMessage", "<DeadLettersQueue.Arn>", None),
        ("StoreDeadLetters", "s3:PutObject", [f"{BUCKET}/aws/lambda/*", f"{BUCKET}/parked-records/*"], ACCOUNT),
        ("FindOnFailureDestination", "s3:ListBucket", BUCKET, ACCOUNT),
        ("WriteLog", ["logs:CreateLogStream", "logs:PutLogEvents"], "<WorkerLog.Arn>", None),
        ("Trace", ["xray:PutTelemetryRecords", "xray:PutTraceSegments"], "*", None),
    ]


def test_role_of_other_definitions__names_their_tables(stack: Stack, other_stack: Stack) -> None:
    table = "arn:aws:dynamodb:eu-central-1:123456789012:table/sales"
    changed = {
        "ReadStream": (f"{table}/stream/2026-01-01T00:00:00.000", None),
        "ListStreams": (f"{table}/stream/*", None),
        "PostReceiptsAndTotals": (
            ["<TablesLedger.Arn>", "<TablesTargetcustomertotals.Arn>", "<TablesTargethourlyorders.Arn>"],
            None,
        ),
        "GuardDefinitions": (
            "<TablesLedger.Arn>",
            {
                "ForAllValues:StringEquals": {
                    "dynamodb:LeadingKeys": ["revenue_by_customer", "orders_by_customer", "orders_by_hour"]
                }
            },
        ),
    }

    assert statements(other_stack) == [
        (name, actions, *changed.get(name, (resources, conditions)))
        for name, actions, resources, conditions in statements(stack)
    ]


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

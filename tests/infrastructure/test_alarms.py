"""Every alarm: what it watches, when it goes off, whom it tells and where it sends them."""

import re
from dataclasses import replace
from typing import Any

import pytest

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker_cdk.alarms import very_late_ms
from tests.infrastructure.stacks import Stack, plain, synthesized

WORKER = ("DynamoDBAggregationWorker", {"service": "DynamoDBAggregationWorker"})
FUNCTION = ("AWS/Lambda", {"FunctionName": "<WorkerFunction>"})
MAPPING = ("AWS/Lambda", {"EventSourceMappingUUID": "<WorkerMapping>"})
QUEUE = ("AWS/SQS", {"QueueName": "<DeadLettersQueue.QueueName>"})

# name: namespace and dimensions, metric, statistic, period in seconds, threshold, periods, datapoints, missing, page
EXPECTED = {
    "iterator-age": (FUNCTION, "IteratorAge", "Maximum", 60, 300_000, 5, 5, "ignore", "iterator-age"),
    "iterator-age-critical": (
        *(FUNCTION, "IteratorAge", "Maximum", 60, 10_800_000, 3, 3, "ignore"),
        "iterator-age-critical",
    ),
    "errors": (FUNCTION, "Errors", "Sum", 300, 1, 1, 1, "notBreaching", "errors"),
    "throttles": (FUNCTION, "Throttles", "Sum", 300, 1, 3, 3, "notBreaching", "throttles"),
    "duration": (FUNCTION, "Duration", "Maximum", 300, 45_000, 3, 2, "notBreaching", "duration"),
    "records-retried": (WORKER, "RecordsRetried", "Sum", 300, 1, 3, 3, "notBreaching", "records-retried"),
    "records-parked": (WORKER, "RecordsParked", "Sum", 300, 1, 1, 1, "notBreaching", "records-parked"),
    "on-failure-deliveries": (
        *(MAPPING, "OnFailureDestinationDeliveredEventCount", "Sum", 300, 1, 1, 1, "notBreaching"),
        "on-failure-deliveries",
    ),
    "dead-letters-visible": (
        *(QUEUE, "ApproximateNumberOfMessagesVisible", "Maximum", 300, 1, 1, 1, "notBreaching"),
        "dead-letters-visible",
    ),
    "oldest-dead-letter": (
        *(QUEUE, "ApproximateAgeOfOldestMessage", "Maximum", 300, 345_600, 1, 1, "notBreaching"),
        "oldest-dead-letter",
    ),
    "dropped-events": (MAPPING, "DroppedEventCount", "Sum", 300, 1, 1, 1, "notBreaching", "dropped-events"),
    "destination-delivery-failures": (
        *(FUNCTION, "DestinationDeliveryFailures", "Sum", 300, 1, 1, 1, "notBreaching"),
        "destination-delivery-failures",
    ),
    "receipts-differ": (WORKER, "ReceiptsDiffer", "Sum", 300, 1, 1, 1, "notBreaching", "receipts-differ"),
    "write-conflicts": (WORKER, "WriteConflicts", "Sum", 300, 3_000, 3, 3, "notBreaching", "write-conflicts"),
}

RECONCILE = {
    "aggregate-drift": (WORKER, "AggregateDrift", "Maximum", 300, 1, 1, 1, "ignore", "aggregate-drift"),
    "reconcile-failed": (
        *(("AWS/Lambda", {"FunctionName": "<ReconcileFunction>"}), "Errors", "Sum", 300, 1, 1, 1, "ignore"),
        "reconcile-failed",
    ),
}


def throttling(table: str) -> tuple[Any, ...]:
    of_table = ("AWS/DynamoDB", {"TableName": table})
    return (of_table, "WriteThrottleEvents", "Sum", 300, 1, 3, 3, "notBreaching", "write-throttling")


def system_errors(table: str, operation: str = "UpdateItem") -> tuple[Any, ...]:
    of_table = ("AWS/DynamoDB", {"TableName": table, "Operation": operation})
    return (of_table, "SystemErrors", "Sum", 300, 1, 3, 3, "notBreaching", "system-errors")


def alarms(stack: Stack) -> dict[str, tuple[Any, ...]]:
    found = {}
    for alarm in stack.of_type("CloudWatch::Alarm").values():
        properties = plain(alarm["Properties"])
        dimensions = {dimension["Name"]: dimension["Value"] for dimension in properties["Dimensions"]}
        page = re.search(r"Runbook: runbooks/([a-z-]+)\.md$", properties["AlarmDescription"])
        assert page is not None
        assert properties["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
        found[properties["AlarmName"]] = (
            (properties["Namespace"], dimensions),
            properties["MetricName"],
            properties["Statistic"],
            properties["Period"],
            properties["Threshold"],
            properties["EvaluationPeriods"],
            properties["DatapointsToAlarm"],
            properties["TreatMissingData"],
            page[1],
        )
    return found


def test_alarms__are_exactly_these(stack: Stack) -> None:
    expected = EXPECTED | {
        "ledger-write-throttling": throttling("<TablesLedger>"),
        "ledger-system-errors": system_errors("<TablesLedger>", "TransactWriteItems"),
        "write-throttling-item_count_by_date": throttling("<TablesTargetitemcountbydate>"),
        "system-errors-item_count_by_date": system_errors("<TablesTargetitemcountbydate>"),
    }

    assert alarms(stack) == {f"DynamoDBAggregationWorker-{name}": alarm for name, alarm in expected.items()}


def test_alarms_of_other_definitions__watch_every_target(other_stack: Stack) -> None:
    expected = EXPECTED | {
        "ledger-write-throttling": throttling("<TablesLedger>"),
        "ledger-system-errors": system_errors("<TablesLedger>", "TransactWriteItems"),
        "write-throttling-customer_totals": throttling("<TablesTargetcustomertotals>"),
        "system-errors-customer_totals": system_errors("<TablesTargetcustomertotals>"),
        "write-throttling-hourly_orders": throttling("<TablesTargethourlyorders>"),
        "system-errors-hourly_orders": system_errors("<TablesTargethourlyorders>"),
    }

    assert alarms(other_stack) == {f"DynamoDBAggregationWorker-{name}": alarm for name, alarm in expected.items()}


def test_alarms_of_a_scheduled_reconcile__come_with_it(stack: Stack, reconcile_stack: Stack) -> None:
    """They stay as a run has left them until the next one: missing data is nearly all there is."""
    expected = {f"DynamoDBAggregationWorker-{name}": alarm for name, alarm in RECONCILE.items()}

    assert alarms(reconcile_stack) == alarms(stack) | expected


def test_target_table_named_ledger__has_alarms_of_its_own() -> None:
    stack = synthesized(SAMPLE_FILE.read_text().replace('table = "item_count_by_date"', 'table = "ledger"'))

    names = {name.removeprefix("DynamoDBAggregationWorker-") for name in alarms(stack)}
    assert names > {"ledger-write-throttling", "write-throttling-ledger"}


def test_metrics_of_the_worker__carry_the_functions_service() -> None:
    stack = synthesized(stack_name="Second")

    function = stack.properties("Lambda::Function")
    (namespace, dimensions), *_ = alarms(stack)["Second-records-parked"]
    assert namespace == "DynamoDBAggregationWorker"
    assert dimensions == {"service": function["Environment"]["Variables"]["POWERTOOLS_SERVICE_NAME"]}


def test_every_alarm__tells_the_topic_of_its_beginning_and_end(reconcile_stack: Stack) -> None:
    for alarm in reconcile_stack.of_type("CloudWatch::Alarm").values():
        properties = plain(alarm["Properties"])
        assert properties["AlarmActions"] == properties["OKActions"] == ["<AlarmsTopic>"]
        assert "InsufficientDataActions" not in properties


def test_every_description__is_a_sentence_before_the_runbook(reconcile_stack: Stack) -> None:
    for alarm in reconcile_stack.of_type("CloudWatch::Alarm").values():
        meaning, _, _ = alarm["Properties"]["AlarmDescription"].partition(" Runbook: ")
        assert re.fullmatch(r"[A-Z][^.]{20,}\.", meaning), meaning


def test_topic__is_encrypted_with_a_key_that_alarms_may_use(stack: Stack) -> None:
    topic, key = stack.properties("SNS::Topic"), stack.properties("KMS::Key")

    assert topic["KmsMasterKeyId"] == "<AlarmsKey.Arn>"
    assert key["EnableKeyRotation"] is True
    assert key["KeyPolicy"]["Statement"] == [
        {
            "Action": "kms:*",
            "Effect": "Allow",
            "Principal": {"AWS": "arn:<AWS::Partition>:iam::<AWS::AccountId>:root"},
            "Resource": "*",
        },
        {
            "Sid": "AlarmsOfThisAccount",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
            "Condition": {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}},
            "Effect": "Allow",
            "Principal": {"Service": "cloudwatch.amazonaws.com"},
            "Resource": "*",
        },
    ]


def test_topic_policy__lets_the_accounts_alarms_publish_over_tls(stack: Stack) -> None:
    refuse_http, allow_alarms = stack.properties("SNS::TopicPolicy")["PolicyDocument"]["Statement"]

    assert refuse_http["Effect"] == "Deny"
    assert refuse_http["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert allow_alarms == {
        "Sid": "AlarmsOfThisAccount",
        "Action": "sns:Publish",
        "Condition": {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}},
        "Effect": "Allow",
        "Principal": {"Service": "cloudwatch.amazonaws.com"},
        "Resource": "<AlarmsTopic>",
    }


def test_alarm_email__is_subscribed() -> None:
    subscription = synthesized(alarm_email="night@example.com").properties("SNS::Subscription")

    assert subscription == {"Endpoint": "night@example.com", "Protocol": "email", "TopicArn": "<AlarmsTopic>"}


def test_without_an_alarm_email__nobody_is_subscribed(stack: Stack) -> None:
    assert not stack.of_type("SNS::Subscription")


@pytest.mark.parametrize(("record_age_seconds", "hours"), [(6 * 3600, 3), (-1, 12), (604_800, 12)])
def test_critical_age__is_half_of_what_a_record_has(record_age_seconds: int, hours: int) -> None:
    """Half the stream's life or, since Lambda gives records up earlier as it is set, half of their time until then."""
    mapping = replace(deployment.MAPPING, maximum_record_age_seconds=record_age_seconds)

    assert very_late_ms(mapping) == hours * 3_600_000

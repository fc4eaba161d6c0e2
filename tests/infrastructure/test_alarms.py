"""Every alarm: what it watches, when it goes off, whom it tells and where it sends them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import pytest

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker_cdk.alarms import hours_without_a_run, very_late_ms
from aggregation_worker_cdk.schedule import mistake_in
from tests.infrastructure.stacks import Stack, plain, synthesized

WORKER = ("DynamoDBAggregationWorker", {"service": "DynamoDBAggregationWorker"})
FUNCTION = ("AWS/Lambda", {"FunctionName": "<WorkerFunction>"})
MAPPING = ("AWS/Lambda", {"EventSourceMappingUUID": "<WorkerMapping>"})
QUEUE = ("AWS/SQS", {"QueueName": "<DeadLettersQueue.QueueName>"})

SOURCE = ("AWS/DynamoDB", {"TableName": "<TablesSource>"})

# name: namespace and dimensions, metric, statistic, period in seconds, threshold, periods, datapoints, missing, page
EXPECTED: dict[str, tuple[Any, ...]] = {
    "reading-stopped": (
        "FILL(written / (written + FILL(read, 0)), REPEAT)",
        {
            "written": (SOURCE, "ConsumedWriteCapacityUnits", "Sum", 300),
            "read": (MAPPING, "PolledEventCount", "Sum", 300),
        },
        *(1, 3, 3, "ignore", "reading-stopped"),
    ),
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
        "visible + hidden",
        {
            "visible": (QUEUE, "ApproximateNumberOfMessagesVisible", "Maximum", 300),
            "hidden": (QUEUE, "ApproximateNumberOfMessagesNotVisible", "Maximum", 300),
        },
        *(1, 1, 1, "notBreaching", "dead-letters-visible"),
    ),
    "oldest-dead-letter": (
        "visible + hidden",
        {
            "visible": (QUEUE, "ApproximateNumberOfMessagesVisible", "Maximum", 3_600),
            "hidden": (QUEUE, "ApproximateNumberOfMessagesNotVisible", "Maximum", 3_600),
        },
        *(1, 96, 96, "notBreaching", "oldest-dead-letter"),
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
    "reconcile-not-run": (
        *(("AWS/Lambda", {"FunctionName": "<ReconcileFunction>"}), "Invocations", "Sum", 3_600, 1, 26, 26),
        *("breaching", "reconcile-not-run"),
    ),
}


def throttling(table: str) -> tuple[Any, ...]:
    of_table = ("AWS/DynamoDB", {"TableName": table})
    return (of_table, "WriteThrottleEvents", "Sum", 300, 1, 3, 3, "notBreaching", "write-throttling")


def system_errors(table: str, operation: str = "UpdateItem") -> tuple[Any, ...]:
    of_table = ("AWS/DynamoDB", {"TableName": table, "Operation": operation})
    return (of_table, "SystemErrors", "Sum", 300, 1, 3, 3, "notBreaching", "system-errors")


def watched(properties: dict[str, Any]) -> tuple[Any, ...]:
    """What an alarm watches: a metric, or an expression of some."""
    if "Metrics" not in properties:
        return (*metric_of(properties), properties["Statistic"], properties["Period"])
    expression, *metrics = properties["Metrics"]
    assert expression["ReturnData"]
    assert not any(metric["ReturnData"] for metric in metrics)
    stats = {metric["Id"]: metric["MetricStat"] for metric in metrics}
    return (
        expression["Expression"],
        {name: (*metric_of(stat["Metric"]), stat["Stat"], stat["Period"]) for name, stat in stats.items()},
    )


def metric_of(named: dict[str, Any]) -> tuple[Any, str]:
    dimensions = {dimension["Name"]: dimension["Value"] for dimension in named["Dimensions"]}
    return (named["Namespace"], dimensions), named["MetricName"]


def alarms(stack: Stack) -> dict[str, tuple[Any, ...]]:
    found = {}
    for alarm in stack.of_type("CloudWatch::Alarm").values():
        properties = plain(alarm["Properties"])
        page = re.search(r"Runbook: runbooks/([a-z-]+)\.md$", properties["AlarmDescription"])
        assert page is not None
        # Only an alarm of what must happen rings for less.
        rings_for_less = properties["ComparisonOperator"] == "LessThanThreshold"
        assert rings_for_less or properties["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
        assert rings_for_less == (properties["TreatMissingData"] == "breaching")
        found[properties["AlarmName"]] = (
            *watched(properties),
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
    of_mapping = EXPECTED["reading-stopped"][1]
    of_source = (("AWS/DynamoDB", {"TableName": "sales"}), "ConsumedWriteCapacityUnits", "Sum", 300)
    expected = EXPECTED | {
        "reading-stopped": (
            EXPECTED["reading-stopped"][0],
            {**of_mapping, "written": of_source},
            *EXPECTED["reading-stopped"][2:],
        ),
        "ledger-write-throttling": throttling("<TablesLedger>"),
        "ledger-system-errors": system_errors("<TablesLedger>", "TransactWriteItems"),
        "write-throttling-customer_totals": throttling("<TablesTargetcustomertotals>"),
        "system-errors-customer_totals": system_errors("<TablesTargetcustomertotals>"),
        "write-throttling-hourly_orders": throttling("<TablesTargethourlyorders>"),
        "system-errors-hourly_orders": system_errors("<TablesTargethourlyorders>"),
    }

    assert alarms(other_stack) == {f"DynamoDBAggregationWorker-{name}": alarm for name, alarm in expected.items()}


def test_alarms_of_a_scheduled_reconcile__come_with_it(stack: Stack, reconcile_stack: Stack) -> None:
    """Two stay as a run has left them until the next one; the third rings when there is none."""
    expected = {f"DynamoDBAggregationWorker-{name}": alarm for name, alarm in RECONCILE.items()}

    assert alarms(reconcile_stack) == alarms(stack) | expected


@pytest.mark.parametrize(
    ("schedule", "hours"),
    [
        ("rate(1 hour)", 3),
        ("rate(90 minutes)", 4),
        ("rate(6 days)", 146),
        ("rate(7 days)", None),
        ("cron(0 3 * * ? *)", 26),
        ("cron(0 8-18 ? * mon-fri *)", 74),
        ("cron(0 3 ? * 2,5 *)", 98),
        ("cron(0 3 1/2 * ? *)", 50),
        ("cron(0 3 */5 JAN-DEC ? *)", 122),
        ("cron(0 3 ? * SUN *)", None),
        ("cron(0 3 ? JUL * *)", None),
        ("cron(0 3 * JAN-JUN ? *)", None),
        ("cron(0 3 31 FEB ? *)", None),
        ("cron(0 3 * * ? 2026)", None),
        *((f"cron(0 3 {day} * ? *)", None) for day in ("L", "LW", "15W", "1,15")),
        *((f"cron(0 3 ? * {day} *)", None) for day in ("L", "6L", "MON#1", "WED")),
        ("cron(0 3 ? * WED,SAT *)", 98),
    ],
)
def test_scheduled_run__is_missed_after_its_longest_gap(schedule: str, hours: int | None) -> None:
    assert mistake_in(schedule) is None
    assert hours_without_a_run(schedule) == hours


def test_rare_reconcile__has_no_alarm_that_would_ring_in_between(reconcile_stack: Stack) -> None:
    rare = synthesized(reconcile="cron(0 3 ? * SUN *)")

    missing = set(alarms(reconcile_stack)) - set(alarms(rare))
    assert missing == {"DynamoDBAggregationWorker-reconcile-not-run"}


@dataclass(frozen=True)
class Series:
    """A time series of metric math: a missing value is 0 to an operator, and what is divided by 0 is missing."""

    values: tuple[float | None, ...]

    def __add__(self, other: "Series") -> "Series":
        return self._with(other, lambda one, two: one + two)

    def __truediv__(self, other: "Series") -> "Series":
        return self._with(other, lambda one, two: one / two if two else None)

    def _with(self, other: "Series", operator: Callable[[float, float], float | None]) -> "Series":
        pairs = zip(self.values, other.values, strict=True)
        return Series(tuple(None if one is two is None else operator(one or 0, two or 0) for one, two in pairs))

    def filled(self) -> "Series":
        """With each missing value as the one before."""
        return Series(tuple(accumulate(self.values, lambda before, value: before if value is None else value)))


NONE = None


@pytest.mark.parametrize(
    ("written", "read", "rings"),
    [
        pytest.param([5, 5, 5], [4, 6, 5], False, id="all is read"),
        pytest.param([NONE, NONE, NONE], [0, 0, 0], False, id="quiet"),
        pytest.param([NONE, NONE, NONE], [NONE, NONE, NONE], False, id="quiet and not read"),
        pytest.param([5, NONE, NONE], [5, 0, 0], False, id="quiet afterwards"),
        pytest.param([1, NONE, NONE], [NONE, 1, 0], False, id="read in the next period"),
        pytest.param([1, 1, 1], [0, 0, 2], False, id="read late"),
        pytest.param([5, 5, 5], [NONE, NONE, NONE], True, id="disabled"),
        pytest.param([5, 5, 5], [0, 0, 0], True, id="reads nothing"),
        pytest.param([1, NONE, NONE], [0, 0, 0], True, id="one write, never read"),
        pytest.param([1, 0, 0], [NONE, NONE, NONE], True, id="one write, and disabled"),
    ],
)
def test_reading_stopped__rings_for_what_is_written_and_not_read(
    stack: Stack, written: list[float | None], read: list[float | None], rings: bool
) -> None:
    expression, _, threshold, periods, datapoints, _, _ = alarms(stack)["DynamoDBAggregationWorker-reading-stopped"]
    names = {"written": Series(tuple(written)), "read": Series(tuple(read)), "REPEAT": None}

    found = eval(expression, {"FILL": lambda series, _: series.filled()}, names)

    breaching = [value for value in found.values if value is not None and value >= threshold]
    assert periods == datapoints == len(written)
    assert (len(breaching) == datapoints) is rings


@pytest.mark.parametrize("name", ["dead-letters-visible", "oldest-dead-letter"])
def test_letters__are_not_hidden_by_reading_them(stack: Stack, name: str) -> None:
    """A letter is visible or being read: in each period one of the two has its 1 as maximum."""
    expression, *_ = alarms(stack)[f"DynamoDBAggregationWorker-{name}"]
    visible, hidden = Series((1, NONE, 1, 0)), Series((NONE, 1, 1, 0))

    found = eval(expression, {"visible": visible, "hidden": hidden})

    assert [value >= 1 for value in found.values] == [True, True, True, False]


def test_longest_alarm__does_not_look_back_for_longer_than_it_may(reconcile_stack: Stack) -> None:
    """A day, or with periods of an hour or more a week ("PutMetricAlarm", Amazon CloudWatch API reference)."""
    for alarm in reconcile_stack.of_type("CloudWatch::Alarm").values():
        properties = alarm["Properties"]
        period = properties.get("Period") or properties["Metrics"][1]["MetricStat"]["Period"]
        assert period * properties["EvaluationPeriods"] <= (604_800 if period >= 3_600 else 86_400)


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
        assert properties["AlarmActions"] == properties["OKActions"] == ["<AlarmTopic>"]
        assert "InsufficientDataActions" not in properties


def test_every_description__is_a_sentence_before_the_runbook(reconcile_stack: Stack) -> None:
    for alarm in reconcile_stack.of_type("CloudWatch::Alarm").values():
        meaning, _, _ = alarm["Properties"]["AlarmDescription"].partition(" Runbook: ")
        assert re.fullmatch(r"[A-Z][^.]{20,}\.", meaning), meaning


def test_topic__is_encrypted_with_a_key_that_alarms_may_use(stack: Stack) -> None:
    topic, key = stack.properties("SNS::Topic"), stack.properties("KMS::Key")

    assert topic["KmsMasterKeyId"] == "<AlarmKey.Arn>"
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
        "Resource": "<AlarmTopic>",
    }


def test_alarm_email__is_subscribed() -> None:
    subscription = synthesized(alarm_email="night@example.com").properties("SNS::Subscription")

    assert subscription == {"Endpoint": "night@example.com", "Protocol": "email", "TopicArn": "<AlarmTopic>"}


def test_without_an_alarm_email__nobody_is_subscribed(stack: Stack) -> None:
    assert not stack.of_type("SNS::Subscription")


@pytest.mark.parametrize(("record_age_seconds", "hours"), [(6 * 3600, 3), (-1, 12), (604_800, 12)])
def test_critical_age__is_half_of_what_a_record_has(record_age_seconds: int, hours: int) -> None:
    """Half the stream's life or, since Lambda gives records up earlier as it is set, half of their time until then."""
    mapping = replace(deployment.MAPPING, maximum_record_age_seconds=record_age_seconds)

    assert very_late_ms(mapping) == hours * 3_600_000

"""The dashboard: its order, and that it shows what there is."""

import itertools
import json
import re
from typing import Any

import pytest

from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.telemetry import NAMESPACE, Metric
from tests.infrastructure.stacks import Stack, synthesized


def widgets(stack: Stack) -> list[dict[str, Any]]:
    dashboard = stack.properties("CloudWatch::Dashboard")
    assert dashboard["DashboardName"] == "DynamoDBAggregationWorker"
    body: dict[str, Any] = json.loads(dashboard["DashboardBody"])
    return list(body["widgets"])


def test_dashboard__asks_its_questions_from_top_to_bottom(stack: Stack) -> None:
    found = widgets(stack)

    headings = [widget for widget in found if widget["type"] == "text"]
    assert [heading["properties"]["markdown"] for heading in headings] == [
        "## Is it current?",
        "## Is it losing anything?",
        "## Is it exact?",
        "## What does it cost?",
    ]
    assert [widget["y"] for widget in found] == sorted(widget["y"] for widget in found)


@pytest.mark.parametrize("which", ["stack", "reconcile_stack"])
def test_rows__fill_the_screen_without_overlap(which: str, request: pytest.FixtureRequest) -> None:
    found = widgets(request.getfixturevalue(which))

    for _, row in itertools.groupby(found, key=lambda widget: widget["y"]):
        edges = [(widget["x"], widget["x"] + widget["width"]) for widget in row]
        assert edges[0][0] == 0
        assert edges[-1][1] == 24
        assert all(right == left for (_, right), (left, _) in itertools.pairwise(edges))


def test_top__shows_every_alarm(reconcile_stack: Stack) -> None:
    shown = widgets(reconcile_stack)[0]["properties"]["alarms"]

    assert len(shown) == len(reconcile_stack.of_type("CloudWatch::Alarm"))


def test_worker_metrics__are_those_that_it_emits(stack: Stack, reconcile_stack: Stack) -> None:
    received = Metric.RECORDS_RECEIVED  # which is the sum of the stacked outcomes

    assert worker_metrics(reconcile_stack) == set(Metric) - {received}
    assert worker_metrics(stack) == set(Metric) - {received, Metric.AGGREGATE_DRIFT}


def worker_metrics(stack: Stack) -> set[str]:
    body = json.dumps(widgets(stack))
    return set(re.findall(rf'"{NAMESPACE}", "(\w+)", "service", "DynamoDBAggregationWorker"', body))


def test_drift__is_shown_over_weeks_whatever_the_screen_shows(reconcile_stack: Stack) -> None:
    (drift,) = (widget for widget in widgets(reconcile_stack) if "AggregateDrift" in json.dumps(widget))

    assert drift["properties"]["start"] == "-P14D"
    assert drift["properties"]["title"] == "Totals that differ from the source"


def test_cost__counts_the_writes_of_ledger_and_targets(other_stack: Stack) -> None:
    (dollars,) = (widget for widget in widgets(other_stack) if widget["properties"].get("title") == "Writes and Lambda")

    metrics = dollars["properties"]["metrics"]
    expression = metrics[0][0]["expression"]
    tables = [metric[3] for metric in metrics if "ConsumedWriteCapacityUnits" in metric]
    assert tables == ["<TablesLedger>", "<TablesTargetcustomertotals>", "<TablesTargethourlyorders>"]
    assert expression == (
        "(units0 + units1 + units2) * 0.0000006250 + duration / 1000 * 1 * 0.0000133334 + invocations * 0.0000002000"
    )


def test_dead_letters_that_somebody_reads__are_shown_with_the_others(stack: Stack) -> None:
    metrics = metrics_of(stack, "Dead letters waiting")

    assert [metric[1] for metric in metrics] == [
        "ApproximateNumberOfMessagesVisible",
        "ApproximateNumberOfMessagesNotVisible",
    ]
    # It leaves out what was received three times.
    assert "ApproximateAgeOfOldestMessage" not in json.dumps(widgets(stack))


def test_reading__is_shown_beside_writing(stack: Stack) -> None:
    metrics = metrics_of(stack, "Written to the source, and read of it")

    assert [metric[:4] for metric in metrics] == [
        ["AWS/DynamoDB", "ConsumedWriteCapacityUnits", "TableName", "<TablesSource>"],
        ["AWS/Lambda", "PolledEventCount", "EventSourceMappingUUID", "<WorkerMapping>"],
    ]


def test_throttling__is_shown_by_whose_limit(stack: Stack) -> None:
    metrics = metrics_of(stack, "Writes in conflict, and throttled by whose limit")

    assert [metric[1] for metric in metrics] == [
        *("WriteConflicts", "ThrottledByKey", "ThrottledByTable", "ThrottledByAccount", "ThrottledOtherwise"),
    ]


def metrics_of(stack: Stack, title: str) -> list[Any]:
    (widget,) = (widget for widget in widgets(stack) if widget["properties"].get("title") == title)
    return list(widget["properties"]["metrics"])


def test_many_target_tables__leave_alarms_out_of_the_widget() -> None:
    """CloudWatch refuses a dashboard with more than 100 alarms in one widget."""
    head, _, aggregation = SAMPLE_FILE.read_text().partition("[[aggregations]]")
    aggregations = [aggregation.replace('"item_count_by_date"', f'"counts{number}"') for number in range(50)]
    stack = synthesized("[[aggregations]]".join([head, *aggregations]))

    assert len(stack.of_type("CloudWatch::Alarm")) == 117
    assert len(widgets(stack)[0]["properties"]["alarms"]) == 100

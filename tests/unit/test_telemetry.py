"""Metrics and logs as operators and alarms know them."""

import json
from typing import Any

import pytest

from aggregation_worker.telemetry import NAMESPACE, Metric, emit, new_logger, new_metrics

# The names that alarms, the dashboard and the runbooks rely on.
NAMES = [
    *("RecordsReceived", "RecordsApplied", "RecordsDuplicate", "RecordsNotCounted"),
    *("RecordsNoticed", "RecordsParked", "RecordsRetried"),
    *("RowAdds", "RowArchives", "LateWrites", "WriteConflicts"),
    *("ThrottledByKey", "ThrottledByTable", "ThrottledByAccount", "ThrottledOtherwise"),
    *("ReceiptsDiffer", "ApplyLag", "CountedUpTo", "AggregateDrift"),
]


def emitted(capsys: pytest.CaptureFixture[str], values: dict[Metric, float]) -> dict[str, Any]:
    """The one line that is written for these values."""
    emit(new_metrics(), values)
    (line,) = capsys.readouterr().out.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


def test_metrics__have_one_name_each() -> None:
    assert [metric.value for metric in Metric] == NAMES


def test_metrics__are_one_line_in_the_embedded_metric_format(capsys: pytest.CaptureFixture[str]) -> None:
    document = emitted(capsys, {metric: float(number) for number, metric in enumerate(Metric)})

    (directive,) = document["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == NAMESPACE == "DynamoDBAggregationWorker"
    assert directive["Dimensions"] == [["service"]]
    assert document["service"] == "aggregation-worker"
    units = {metric["Name"]: metric["Unit"] for metric in directive["Metrics"]}
    assert units == dict.fromkeys(NAMES, "Count") | {"ApplyLag": "Milliseconds", "CountedUpTo": "Seconds"}
    assert [document[name] for name in NAMES] == [[float(number)] for number in range(len(NAMES))]


def test_zero__is_emitted_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert emitted(capsys, {Metric.RECORDS_PARKED: 0})["RecordsParked"] == [0.0]


def test_metrics_of_two_invocations__are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = new_metrics()

    emit(metrics, {Metric.RECORDS_RECEIVED: 1, Metric.APPLY_LAG: 5})
    emit(metrics, {Metric.RECORDS_RECEIVED: 2})

    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["RecordsReceived"], second["RecordsReceived"]) == ([1.0], [2.0])
    assert "ApplyLag" not in second


def test_disabled_metrics__are_not_kept_for_the_next_invocation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as disabled:
        disabled.setenv("POWERTOOLS_METRICS_DISABLED", "true")
        emit(new_metrics(), {Metric.RECORDS_RECEIVED: 7})

    assert emitted(capsys, {Metric.RECORDS_RECEIVED: 1})["RecordsReceived"] == [1.0]


def test_service_name__distinguishes_the_stacks_of_one_account(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "totals-staging")

    document = emitted(capsys, {Metric.RECORDS_RECEIVED: 1})

    assert document["service"] == "totals-staging"
    assert new_logger().service == "totals-staging"

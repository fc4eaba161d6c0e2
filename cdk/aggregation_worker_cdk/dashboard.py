"""The dashboard: one screen that answers an operator's questions, from top to bottom.

Is it current, is it losing anything, is it exact, what does it cost?
"""

from collections.abc import Sequence

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cw
from constructs import Construct

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.telemetry import Metric
from aggregation_worker_cdk.metrics import StackMetrics

_ROW = 24  # columns
_HEIGHT = 6
# What the widget for alarms takes ("Alarm widget", Amazon CloudWatch user guide); over 40 target tables have more.
_MOST_ALARMS = 100
_HOUR = cdk.Duration.hours(1)

_OUTCOMES = (
    Metric.RECORDS_APPLIED,
    Metric.RECORDS_DUPLICATE,
    Metric.RECORDS_NOT_COUNTED,
    Metric.RECORDS_NOTICED,
    Metric.RECORDS_PARKED,
    Metric.RECORDS_RETRIED,
)
_WRITES = (Metric.ROW_ADDS, Metric.ROW_ARCHIVES, Metric.LATE_WRITES)
_MET_BY_WRITES = (
    Metric.WRITE_CONFLICTS,
    Metric.THROTTLED_BY_KEY,
    Metric.THROTTLED_BY_TABLE,
    Metric.THROTTLED_BY_ACCOUNT,
    Metric.THROTTLED_OTHERWISE,
)


class AggregationDashboard(Construct):
    """The dashboard, named like the worker."""

    def __init__(
        self, scope: Construct, construct_id: str, *, metrics: StackMetrics, memory_mb: int, alarms: Sequence[cw.IAlarm]
    ) -> None:
        super().__init__(scope, construct_id)
        self.dashboard = cw.Dashboard(
            self,
            "Dashboard",
            dashboard_name=metrics.service,
            default_interval=cdk.Duration.hours(12),
            widgets=[
                [cw.AlarmStatusWidget(title="Alarms", alarms=alarms[:_MOST_ALARMS], width=_ROW, height=3)],
                [_question("Is it current?")],
                _is_it_current(metrics),
                [_question("Is it losing anything?")],
                _is_it_losing_anything(metrics),
                [_question("Is it exact?")],
                _is_it_exact(metrics),
                [_question("What does it cost?")],
                _what_does_it_cost(metrics, memory_mb),
            ],
        )


def _question(text: str) -> cw.TextWidget:
    return cw.TextWidget(markdown=f"## {text}", width=_ROW, height=1)


def _graph(
    title: str, width: int, left: Sequence[cw.IMetric], unit: str, *, stacked: bool = False, since: str | None = None
) -> cw.GraphWidget:
    return cw.GraphWidget(
        title=title,
        width=width,
        height=_HEIGHT,
        left=left,
        left_y_axis=cw.YAxisProps(min=0, label=unit, show_units=False),
        stacked=stacked,
        start=since,
    )


def _is_it_current(metrics: StackMetrics) -> list[cw.IWidget]:
    lag = [metrics.worker(Metric.APPLY_LAG, statistic) for statistic in ("p50", "p99", "Maximum")]
    minute = cdk.Duration.minutes(1)
    behind = cw.MathExpression(
        expression="(EPOCH(second) + 60 - second) * 1000",  # at the minute's end
        using_metrics={"second": metrics.worker(Metric.COUNTED_UP_TO, "Minimum", minute)},
        label="since the second up to which all shards are counted",
        period=minute,
    )
    return [
        _graph("From a change to its total", 6, [metric.with_(label=metric.statistic) for metric in lag], "ms"),
        _graph(
            "Age of what is read from the stream",
            6,
            [metrics.lambda_function("IteratorAge", "Maximum", minute), behind],
            "ms",
        ),
        _graph(
            "What holds it up",
            6,
            [
                metrics.lambda_function("Errors"),
                metrics.lambda_function("Throttles"),
                metrics.worker(Metric.RECORDS_RETRIED),
            ],
            "in 5 minutes",
        ),
        _graph(
            "Writes in conflict, and throttled by whose limit",
            6,
            [metrics.worker(metric) for metric in _MET_BY_WRITES],
            "in 5 minutes",
        ),
    ]


def _is_it_losing_anything(metrics: StackMetrics) -> list[cw.IWidget]:
    return [
        # A period that has the one should have the other.
        _graph("Written to the source, and read of it", 6, [metrics.written, metrics.read], "in 5 minutes"),
        _graph(
            "Dead letters waiting",
            6,
            [
                metrics.dead_letter_queue("ApproximateNumberOfMessagesVisible").with_(label="visible"),
                metrics.dead_letter_queue("ApproximateNumberOfMessagesNotVisible").with_(label="being read"),
            ],
            "messages",
            stacked=True,
        ),
        _graph(
            "Records put aside",
            6,
            [
                metrics.worker(Metric.RECORDS_PARKED),
                metrics.worker(Metric.RECORDS_NOTICED),
                metrics.event_source_mapping("OnFailureDestinationDeliveredEventCount"),
            ],
            "in 5 minutes",
        ),
        _graph(
            "Records lost",
            6,
            [
                metrics.event_source_mapping("DroppedEventCount"),
                metrics.lambda_function("DestinationDeliveryFailures"),
            ],
            "in 5 minutes",
        ),
    ]


def _is_it_exact(metrics: StackMetrics) -> list[cw.IWidget]:
    drift: list[cw.IWidget] = []
    if metrics.reconcile is not None:
        # A value for each reconcile: of its own two weeks, whatever the rest of the screen shows.
        found = metrics.worker(Metric.AGGREGATE_DRIFT, "Maximum", _HOUR)
        drift = [_graph("Totals that differ from the source", 6, [found], "at each reconcile", since="-P14D")]
    return [
        *drift,
        _graph(
            "What became of the records received",
            6 if drift else 12,
            [metrics.worker(outcome) for outcome in _OUTCOMES],
            "in 5 minutes",
            stacked=True,
        ),
        _graph("Duplicates, recognized by their receipts", 6, [metrics.worker(Metric.RECORDS_DUPLICATE)], "records"),
        _graph("Receipts that differ from the record", 6, [metrics.worker(Metric.RECEIPTS_DIFFER)], "receipts"),
    ]


def _what_does_it_cost(metrics: StackMetrics, memory_mb: int) -> list[cw.IWidget]:
    units = {
        f"units{number}": metrics.table(table.table_name, "ConsumedWriteCapacityUnits").with_(label=label)
        for number, (label, table) in enumerate([("ledger", metrics.ledger), *metrics.targets.items()])
    }
    all_units = f"({' + '.join(units)})"
    per_record = cw.MathExpression(
        expression=f"{all_units} / applied",
        using_metrics={**units, "applied": metrics.worker(Metric.RECORDS_APPLIED)},
        label="write units per applied record",
    )
    gb_seconds = f"duration / 1000 * {memory_mb / 1024:g}"
    dollars = cw.MathExpression(
        expression=f"{all_units} * {deployment.DOLLARS_PER_MILLION_WRITE_UNITS / 1e6:.10f} "
        f"+ {gb_seconds} * {deployment.DOLLARS_PER_GB_SECOND:.10f} "
        f"+ invocations * {deployment.DOLLARS_PER_MILLION_INVOCATIONS / 1e6:.10f}",
        using_metrics={
            **units,
            "duration": metrics.lambda_function("Duration"),
            "invocations": metrics.lambda_function("Invocations"),
        },
        label="US dollars an hour, at the list prices of us-east-1",
        period=_HOUR,
    )
    return [
        _graph("What the worker writes", 6, [metrics.worker(write) for write in _WRITES], "in 5 minutes", stacked=True),
        _graph("Write units", 6, list(units.values()), "in 5 minutes", stacked=True),
        _graph("Write units per record", 6, [per_record], "units"),
        _graph("Writes and Lambda", 6, [dollars], "US dollars an hour"),
    ]

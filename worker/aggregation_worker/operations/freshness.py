"""Up to which second of the stream all shards are counted: for `aggregator status`, and whoever says "as of".

Every invocation says it of its own shard, by `CountedUpTo`; an invocation that crashes or times out says nothing, but
Lambda has told the age of the newest record that it was given. A shard with records to count has the end of an
invocation or, where that fails, the beginning of one, in any two minutes: an invocation takes one at most. So the
earliest second told in two minutes holds for all shards.

It errs to the early side, by up to these two minutes; to the late side only for a shard whose batches crash, by the
time that such a batch spans, and for one that Lambda does not deliver at all.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from aggregation_worker.telemetry import NAMESPACE, Metric

_PERIOD = timedelta(minutes=1)
_WINDOW = 2 * _PERIOD
# Metrics of a minute are complete a minute after its end, or nearly always.
_COMPLETE_AFTER = 2 * _PERIOD
_LOOK_BACK = timedelta(hours=1)

Points = Iterable[tuple[datetime, float]]
"""Values of a metric, each with the beginning of its minute."""


def counted_up_to(cloudwatch: Any, function: str, service: str, now: datetime) -> int | None:
    """The second, since 1970, before which every record is counted or parked; `None` without batches in the last hour.

    Raises:
        BotoCoreError, ClientError: CloudWatch does not answer.
    """
    answer = cloudwatch.get_metric_data(
        MetricDataQueries=[
            query("counted_up_to", NAMESPACE, Metric.COUNTED_UP_TO.value, {"service": service}, "Minimum", _PERIOD),
            query("newest_age", "AWS/Lambda", "IteratorAge", {"FunctionName": function}, "Maximum", _PERIOD),
        ],
        StartTime=now - _LOOK_BACK,
        EndTime=now,
    )
    found = {
        result["Id"]: list(zip(result.get("Timestamps", ()), result["Values"], strict=False))
        for result in answer["MetricDataResults"]
    }
    return earliest(found.get("counted_up_to", ()), found.get("newest_age", ()), now)


def earliest(counted: Points, ages: Points, now: datetime) -> int | None:
    """The earliest second that was told since the latest two whole minutes of which there is something.

    Args:
        counted: each minute's least `CountedUpTo`, in epoch seconds.
        ages: each minute's highest `IteratorAge`, in milliseconds.
    """
    told = [*counted, *((minute, minute.timestamp() - age / 1000) for minute, age in ages)]
    complete = [minute for minute, _ in told if minute + _COMPLETE_AFTER <= now]
    if not complete:
        return None
    since = max(complete) - _WINDOW
    return int(min(second for minute, second in told if minute > since))


def query(
    name: str, namespace: str, metric: str, dimensions: dict[str, str], statistic: str, period: timedelta
) -> dict[str, Any]:
    """One metric that `GetMetricData` is asked for: a value for each period."""
    return {
        "Id": name,
        "MetricStat": {
            "Metric": {
                "Namespace": namespace,
                "MetricName": metric,
                "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
            },
            "Period": int(period.total_seconds()),
            "Stat": statistic,
        },
    }

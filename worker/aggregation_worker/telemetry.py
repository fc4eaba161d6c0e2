"""What operators see: structured logs and CloudWatch metrics, both through Powertools.

The one list of metric names: the CDK app's alarms and dashboard read it from here. Logs never hold item contents.
"""

import os
from enum import StrEnum

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

NAMESPACE = "DynamoDBAggregationWorker"
SERVICE = "aggregation-worker"


class Metric(StrEnum):
    """Every metric of the worker. Each received record is counted in exactly one of Applied to Retried."""

    RECORDS_RECEIVED = "RecordsReceived"
    RECORDS_APPLIED = "RecordsApplied"  # at least one contribution was added now
    RECORDS_DUPLICATE = "RecordsDuplicate"  # every contribution was in the ledger already
    RECORDS_NOT_COUNTED = "RecordsNotCounted"  # contributes nothing to any aggregation
    RECORDS_NOTICED = "RecordsNoticed"  # counted, but an image cannot be used; a notice is in the dead-letter queue
    RECORDS_PARKED = "RecordsParked"  # malformed, or refused by DynamoDB, and now in the dead-letter queue
    RECORDS_RETRIED = "RecordsRetried"  # reported as batch item failures: will come again
    ROW_ADDS = "RowAdds"  # writes that put receipts into a row: one update
    ROW_ARCHIVES = "RowArchives"  # writes that moved a row's older receipts to the ledger: a transaction
    LATE_WRITES = "LateWrites"  # writes of receipts that belong on pages of the ledger: a transaction
    WRITE_CONFLICTS = "WriteConflicts"  # actions that met another write on their item
    THROTTLED_BY_KEY = "ThrottledByKey"  # requests that were refused because of a hot key
    THROTTLED_BY_TABLE = "ThrottledByTable"  # because of a table's or an index's limit
    THROTTLED_BY_ACCOUNT = "ThrottledByAccount"  # because of the account's limit
    THROTTLED_OTHERWISE = "ThrottledOtherwise"  # without a word why, or by an error of the service
    RECEIPTS_DIFFER = "ReceiptsDiffer"  # receipts that hold another amount than is computed now
    APPLY_LAG = "ApplyLag"  # milliseconds from the creation of a batch's oldest applied record to its commit
    COUNTED_UP_TO = "CountedUpTo"  # the second, since 1970, before which a shard is counted or parked: its Minimum
    AGGREGATE_DRIFT = "AggregateDrift"  # aggregates that a reconcile found to differ from the source, and left so


UNITS = dict.fromkeys(Metric, MetricUnit.Count) | {
    Metric.APPLY_LAG: MetricUnit.Milliseconds,
    Metric.COUNTED_UP_TO: MetricUnit.Seconds,
}


def new_logger() -> Logger:
    """A JSON logger; `POWERTOOLS_SERVICE_NAME` and `POWERTOOLS_LOG_LEVEL` override its service and level."""
    return Logger(service=_service())


def new_metrics() -> Metrics:
    """Metrics in the embedded metric format, written to the log; their one dimension is `service`."""
    return Metrics(namespace=NAMESPACE, service=_service())


def _service() -> str:
    """Tells the stacks of one account apart."""
    return os.environ.get("POWERTOOLS_SERVICE_NAME") or SERVICE


def emit(metrics: Metrics, values: dict[Metric, float]) -> None:
    """Writes one log line with all values of an invocation."""
    for metric, value in values.items():
        metrics.add_metric(name=metric.value, unit=UNITS[metric], value=value)
    metrics.flush_metrics()
    metrics.provider.clear_metrics()  # where POWERTOOLS_METRICS_DISABLED is set, flushing keeps the values

"""The alarms: what an operator must know, and when.

The description of each says what it means and names its page in runbooks/. All go to one topic, also when they return
to OK.
"""

from dataclasses import dataclass
from datetime import timedelta

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cw
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns
from constructs import Construct

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.telemetry import Metric
from aggregation_worker_cdk.metrics import FIVE_MINUTES, ONE_HOUR, ONE_MINUTE, StackMetrics
from aggregation_worker_cdk.schedule import longest_gap

# Milliseconds. Totals are usually two seconds behind their source; five minutes are more than a hiccup.
LATE_MS = 5 * 60_000
# Milliseconds. A batch takes well under a second; the worker works this long only if DynamoDB makes it wait.
NEAR_THE_TIMEOUT_MS = 750 * deployment.FUNCTION_TIMEOUT_SECONDS
# Four days, a long weekend. Ten of the queue's fourteen are left then.
DAYS_WITH_LETTERS = 4
# A mapping reads what was written within a second, so one period that has writes and the next one that reads them are
# nothing to tell; more allow for values that come late.
PERIODS_UNREAD = 3
# Hours, the longest time that an alarm looks back ("PutMetricAlarm", Amazon CloudWatch API reference).
_LONGEST_SILENCE = 7 * 24
# Hours beyond a schedule's longest gap: a run waits for half an hour at most, and the current hour is not over.
_HOURS_OF_GRACE = 2
# Ten a second. Only writes of one row collide: another shard's, while a transaction of milliseconds moves its receipts.
# Each is repeated and costs at most about four units, so ten a second cost 65 dollars a month at list price; fewer are
# not worth anyone's time, and more mean that many shards, or somebody else, write the same rows all the time.
CONFLICTS_IN_FIVE_MINUTES = 3_000

# The folder of this repository; elsewhere, its address.
RUNBOOKS = "runbooks"

# What a period without a value means, which each alarm says of its metric: that nothing happened, that nothing new is
# known, or that what should happen did not.
_NOTHING_HAPPENED = cw.TreatMissingData.NOT_BREACHING
_NOTHING_NEW = cw.TreatMissingData.IGNORE
_IT_DID_NOT_HAPPEN = cw.TreatMissingData.BREACHING
_AT_LEAST = cw.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
_LESS_THAN = cw.ComparisonOperator.LESS_THAN_THRESHOLD


@dataclass(frozen=True, slots=True)
class AlarmSetting:
    """One alarm.

    Attributes:
        name: of the alarm, and of its page unless `page` says otherwise.
        meaning: the first sentence of the description, before the address of the page.
        missing: what a period without a value means.
        threshold: breached by this value and any above it, or with another `comparison`; in the metric's unit.
        periods: how many periods are evaluated.
        datapoints: how many of them must breach; all if not given.
        page: in runbooks/, without `.md`.
    """

    name: str
    meaning: str
    metric: cw.IMetric
    missing: cw.TreatMissingData
    threshold: float = 1
    periods: int = 1
    datapoints: int | None = None
    comparison: cw.ComparisonOperator = _AT_LEAST
    page: str | None = None


class Alarms(Construct):
    """Every alarm."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        metrics: StackMetrics,
        topic: sns.ITopic,
        runbooks: str,
        schedule: str | None,
    ) -> None:
        """Adds them.

        Args:
            topic: where they go.
            runbooks: the address of the folder with the pages.
            schedule: of the scheduled reconcile, where there is one.
        """
        super().__init__(scope, construct_id)
        self._name = metrics.service
        self._to_topic = actions.SnsAction(topic)
        hours = None if schedule is None else hours_without_a_run(schedule)
        if schedule is not None and hours is None:
            cdk.Annotations.of(self).add_warning_v2(
                "aggregation-worker:rareReconcile",
                f"reconcile={schedule} can be over {_LONGEST_SILENCE - _HOURS_OF_GRACE} hours apart, longer than an "
                "alarm looks back: nothing will tell that a run did not happen",
            )
        self.alarms = {setting.name: self._alarm(setting, runbooks) for setting in alarm_settings(metrics, hours)}

    def _alarm(self, setting: AlarmSetting, runbooks: str) -> cw.Alarm:
        alarm = cw.Alarm(
            self,
            setting.name,
            alarm_name=f"{self._name}-{setting.name}",
            alarm_description=f"{setting.meaning} Runbook: {runbooks}/{setting.page or setting.name}.md",
            metric=setting.metric,
            threshold=setting.threshold,
            comparison_operator=setting.comparison,
            evaluation_periods=setting.periods,
            datapoints_to_alarm=setting.datapoints or setting.periods,
            treat_missing_data=setting.missing,
        )
        alarm.add_alarm_action(self._to_topic)
        alarm.add_ok_action(self._to_topic)
        return alarm


def very_late_ms(mapping: deployment.MappingSettings) -> int:
    """Half of the time, in milliseconds, until a record expires in the stream or Lambda gives it up.

    The other half is the time for the repair.
    """
    return 500 * mapping.oldest_delivered_seconds


def hours_without_a_run(schedule: str) -> int | None:
    """After how many hours a scheduled run is missing; `None` where that is longer than an alarm looks back."""
    gap = longest_gap(schedule)
    if gap is None:
        return None
    hours = -(-gap // timedelta(hours=1)) + _HOURS_OF_GRACE
    return hours if hours <= _LONGEST_SILENCE else None


def alarm_settings(metrics: StackMetrics, hours: int | None) -> list[AlarmSetting]:
    """Every alarm, in the order of the dashboard: late, lost, not exact, expensive.

    Args:
        hours: after which a scheduled reconcile is missing, where that can be told.
    """
    return [
        *_late(metrics),
        *_failing(metrics),
        *_waiting(metrics),
        *_lost(metrics),
        *_differing(metrics),
        *_reconciled(metrics, hours),
        *_slowed_down(metrics),
    ]


def _late(metrics: StackMetrics) -> list[AlarmSetting]:
    age = metrics.lambda_function("IteratorAge", "Maximum", ONE_MINUTE)
    very_late = very_late_ms(deployment.MAPPING)
    return [
        # A period without writes and reads repeats the one before; where there is none to repeat, what was unread still
        # is, and what was read needs nothing more.
        AlarmSetting(
            "reading-stopped",
            f"The source has been written to, and for {PERIODS_UNREAD * 5} minutes nobody has read its stream: its "
            "changes are lost to the totals after 24 hours.",
            metrics.unread,
            _NOTHING_NEW,
            periods=PERIODS_UNREAD,
        ),
        # No value means no batch: the records may still wait, in a mapping that holds back or was stopped.
        AlarmSetting(
            "iterator-age",
            "Totals have been more than 5 minutes behind their source for 5 minutes.",
            age,
            _NOTHING_NEW,
            LATE_MS,
            periods=5,
        ),
        # The same.
        AlarmSetting(
            "iterator-age-critical",
            f"Totals are {very_late / 3_600_000:g} hours behind their source; in as many hours Lambda begins to "
            "give records up to the dead-letter queue.",
            age,
            _NOTHING_NEW,
            very_late,
            periods=3,
        ),
    ]


def _failing(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        # One is enough: the worker raises only for errors that a retry cannot solve. While a batch fails, it comes
        # again every half minute, and each time is a value; so none means that no batch came.
        AlarmSetting(
            "errors",
            "The worker failed as a whole: nothing is counted until the deployment is repaired.",
            metrics.lambda_function("Errors"),
            _NOTHING_HAPPENED,
        ),
        # Lambda tries again all the time, so none means that nothing was refused.
        AlarmSetting(
            "throttles",
            "Lambda has refused to run the worker for 15 minutes: too little concurrency is left for it.",
            metrics.lambda_function("Throttles"),
            _NOTHING_HAPPENED,
            periods=3,
        ),
        # Without a batch nothing took long.
        AlarmSetting(
            "duration",
            f"Batches take more than {NEAR_THE_TIMEOUT_MS / 1000:g} of the {deployment.FUNCTION_TIMEOUT_SECONDS} "
            "seconds that an invocation has.",
            metrics.lambda_function("Duration", "Maximum"),
            _NOTHING_HAPPENED,
            NEAR_THE_TIMEOUT_MS,
            periods=3,
            datapoints=2,
        ),
        # A conflict or a throttle is retried within the invocation; what is reported back for a quarter of an hour is
        # an outage. Every batch gives a value, 0 if all is done, and what was reported back comes at once.
        AlarmSetting(
            "records-retried",
            "Records have come back uncounted for 15 minutes: DynamoDB does not take them.",
            metrics.worker(Metric.RECORDS_RETRIED),
            _NOTHING_HAPPENED,
            periods=3,
        ),
    ]


def _waiting(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        # Each is told once, when it is parked; that it still waits is told by the two alarms of the queue.
        AlarmSetting(
            "records-parked",
            "Records were refused and wait in the dead-letter queue; they are missing from totals.",
            metrics.worker(Metric.RECORDS_PARKED),
            _NOTHING_HAPPENED,
        ),
        # The same.
        AlarmSetting(
            "on-failure-deliveries",
            "Lambda gave up whole batches; they wait in the dead-letter queue and are missing from totals.",
            metrics.event_source_mapping("OnFailureDestinationDeliveredEventCount"),
            _NOTHING_HAPPENED,
        ),
        # Also what is being read, so that no listing and no replay hides it. SQS gives values for as long as a message
        # is in the queue; one that is empty and not used for six hours has none ("Available CloudWatch metrics for
        # Amazon SQS", Amazon SQS developer guide).
        AlarmSetting(
            "dead-letters-visible",
            "Dead letters wait in the queue: records that are missing from totals, or items that cannot be used.",
            metrics.waiting(FIVE_MINUTES),
            _NOTHING_HAPPENED,
        ),
        # The same. In no hour of these days the queue was empty.
        AlarmSetting(
            "oldest-dead-letter",
            f"The dead-letter queue has not been empty for {DAYS_WITH_LETTERS} days; SQS deletes each letter at "
            f"{deployment.QUEUE_RETENTION_DAYS}.",
            metrics.waiting(ONE_HOUR),
            _NOTHING_HAPPENED,
            periods=DAYS_WITH_LETTERS * 24,
        ),
    ]


def _lost(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        # Each loss is told once, when it happens.
        AlarmSetting(
            "dropped-events",
            "Lambda dropped records: they were not counted and are kept nowhere but in the source.",
            metrics.event_source_mapping("DroppedEventCount"),
            _NOTHING_HAPPENED,
        ),
        # Each failure is told when it happens.
        AlarmSetting(
            "destination-delivery-failures",
            "Lambda could not write batches that it gave up to the bucket: they are about to be lost.",
            metrics.lambda_function("DestinationDeliveryFailures"),
            _NOTHING_HAPPENED,
        ),
    ]


def _differing(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        # One is enough: the same record must always contribute the same. Only a batch can find one, and each gives a
        # value.
        AlarmSetting(
            "receipts-differ",
            "Records came back whose receipts hold other amounts than the worker computes now: two versions of it "
            "read an image differently.",
            metrics.worker(Metric.RECEIPTS_DIFFER),
            _NOTHING_HAPPENED,
        ),
    ]


def _reconciled(metrics: StackMetrics, hours: int | None) -> list[AlarmSetting]:
    """What the scheduled reconcile has found, and that it was there to find it."""
    if metrics.reconcile is None:
        return []
    settings = [
        # Only a run gives a value; between two of them it is as the last one found it.
        AlarmSetting(
            "aggregate-drift",
            "Totals differ from what the source says, and no record in flight explains it.",
            metrics.worker(Metric.AGGREGATE_DRIFT, "Maximum"),
            _NOTHING_NEW,
        ),
        # The same.
        AlarmSetting(
            "reconcile-failed",
            "The scheduled reconcile did not finish, so it is not known whether the totals are right.",
            metrics.lambda_function("Errors", function=metrics.reconcile),
            _NOTHING_NEW,
        ),
    ]
    if hours is not None:
        # No value means no run: a schedule that is disabled, or may not run the function, is silent.
        settings.append(
            AlarmSetting(
                "reconcile-not-run",
                f"The scheduled reconcile has not run for {hours} hours, so nobody would notice that totals differ.",
                metrics.lambda_function("Invocations", period=ONE_HOUR, function=metrics.reconcile),
                _IT_DID_NOT_HAPPEN,
                periods=hours,
                comparison=_LESS_THAN,
            )
        )
    return settings


def _slowed_down(metrics: StackMetrics) -> list[AlarmSetting]:
    settings = [
        # Only a write can collide.
        AlarmSetting(
            "write-conflicts",
            "Writes of the same rows have collided ten times a second for 15 minutes; totals stay exact, and cost "
            "more.",
            metrics.worker(Metric.WRITE_CONFLICTS),
            _NOTHING_HAPPENED,
            CONFLICTS_IN_FIVE_MINUTES,
            periods=3,
        )
    ]
    # Every transaction has a page of the ledger, so its failures are seen there; a target's other writes are updates.
    ledger = "the ledger", metrics.ledger, "ledger-write-throttling", "ledger-system-errors", "TransactWriteItems"
    targets = [
        (f"target table {name}", table, f"write-throttling-{name}", f"system-errors-{name}", "UpdateItem")
        for name, table in metrics.targets.items()
    ]
    for what, table, throttling, system_errors, operation in (ledger, *targets):
        settings += [
            # A table on demand throttles for moments when traffic doubles, and grows; a quarter of an hour is a limit.
            # DynamoDB gives values only for what it refuses.
            AlarmSetting(
                throttling,
                f"DynamoDB has refused writes to {what} for 15 minutes.",
                metrics.table(table.table_name, "WriteThrottleEvents"),
                _NOTHING_HAPPENED,
                periods=3,
                page="write-throttling",
            ),
            # The same.
            AlarmSetting(
                system_errors,
                f"DynamoDB itself has failed on {what} for 15 minutes.",
                metrics.table(table.table_name, "SystemErrors", operation),
                _NOTHING_HAPPENED,
                periods=3,
                page="system-errors",
            ),
        ]
    return settings

"""The alarms: what an operator must know, and when.

The description of each says what it means and names its page in runbooks/. All go to one topic, also when they return
to OK.
"""

from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cw
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from constructs import Construct

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.telemetry import Metric
from aggregation_worker_cdk.keeping import let_service_encrypt
from aggregation_worker_cdk.metrics import ONE_MINUTE, StackMetrics

# Milliseconds. Totals are usually two seconds behind their source; five minutes are more than a hiccup.
LATE_MS = 5 * 60_000
# Milliseconds. A batch takes well under a second; the worker works this long only if DynamoDB makes it wait.
NEAR_THE_TIMEOUT_MS = 750 * deployment.FUNCTION_TIMEOUT_SECONDS
# Seconds: four days, a long weekend. Ten of the queue's fourteen are left then.
OLD_DEAD_LETTER_SECONDS = 4 * 86_400
# Ten a second. Only writes of one row collide: another shard's, while a transaction of milliseconds moves its receipts.
# Each is repeated and costs at most about four units, so ten a second cost 65 dollars a month at list price; fewer are
# not worth anyone's time, and more mean that many shards, or somebody else, write the same rows all the time.
CONFLICTS_IN_FIVE_MINUTES = 3_000

# The folder of this repository; elsewhere, its address.
RUNBOOKS = "runbooks"

_MISSING_IS_FINE = cw.TreatMissingData.NOT_BREACHING
_AT_LEAST = cw.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD


@dataclass(frozen=True, slots=True)
class AlarmSetting:
    """One alarm.

    Attributes:
        name: of the alarm, and of its page unless `page` says otherwise.
        meaning: the first sentence of the description, before the address of the page.
        threshold: breached by this value and any above it; in the metric's unit.
        periods: how many periods are evaluated.
        datapoints: how many of them must breach; all if not given.
        missing: what a period without a value means, usually that nothing happened.
        page: in runbooks/, without `.md`.
    """

    name: str
    meaning: str
    metric: cw.IMetric
    threshold: float
    periods: int = 1
    datapoints: int | None = None
    missing: cw.TreatMissingData = _MISSING_IS_FINE
    page: str | None = None


class Alarms(Construct):
    """The topic and every alarm."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        metrics: StackMetrics,
        topic: sns.ITopic | None,
        email: str | None,
        key: kms.IKey | None,
        runbooks: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._name = metrics.service
        self.topic = topic or self._topic(key)
        if email is not None:
            sns.Subscription(self, "Email", topic=self.topic, protocol=sns.SubscriptionProtocol.EMAIL, endpoint=email)
        self.alarms = {setting.name: self._alarm(setting, runbooks) for setting in alarm_settings(metrics)}

    def _alarm(self, setting: AlarmSetting, runbooks: str) -> cw.Alarm:
        alarm = cw.Alarm(
            self,
            setting.name,
            alarm_name=f"{self._name}-{setting.name}",
            alarm_description=f"{setting.meaning} Runbook: {runbooks}/{setting.page or setting.name}.md",
            metric=setting.metric,
            threshold=setting.threshold,
            comparison_operator=_AT_LEAST,
            evaluation_periods=setting.periods,
            datapoints_to_alarm=setting.datapoints or setting.periods,
            treat_missing_data=setting.missing,
        )
        to_topic = actions.SnsAction(self.topic)
        alarm.add_alarm_action(to_topic)
        alarm.add_ok_action(to_topic)
        return alarm

    def _topic(self, key: kms.IKey | None) -> sns.Topic:
        """An encrypted topic that the account's alarms may publish to.

        The key is the stack's own: CloudWatch may not use the AWS-managed one, whose policy cannot be changed
        ("Amazon SNS key management", Amazon SNS developer guide). The permission to publish must be spelled out, since
        the policy that refuses unencrypted transport takes the place of the default one.
        """
        stack = cdk.Stack.of(self)
        key = key or kms.Key(
            self,
            "Key",
            description=f"Alarms of {self._name} on their way",
            enable_key_rotation=True,
            # Messages are delivered and not stored, so nothing needs it later.
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        let_service_encrypt(key, "AlarmsOfThisAccount", "cloudwatch.amazonaws.com", stack.account)
        topic = sns.Topic(self, "Topic", display_name=f"{self._name} alarms", master_key=key, enforce_ssl=True)
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AlarmsOfThisAccount",
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": stack.account}},
            )
        )
        return topic


def very_late_ms(mapping: deployment.MappingSettings) -> int:
    """Half of the time, in milliseconds, until a record expires in the stream or Lambda gives it up.

    The other half is the time for the repair.
    """
    return 500 * mapping.oldest_delivered_seconds


def alarm_settings(metrics: StackMetrics) -> list[AlarmSetting]:
    """Every alarm, in the order of the dashboard: late, lost, not exact, expensive."""
    return [
        *_late(metrics),
        *_failing(metrics),
        *_waiting(metrics),
        *_lost(metrics),
        *_differing(metrics),
        *_reconciled(metrics),
        *_slowed_down(metrics),
    ]


def _late(metrics: StackMetrics) -> list[AlarmSetting]:
    age = metrics.lambda_function("IteratorAge", "Maximum", ONE_MINUTE)
    very_late = very_late_ms(deployment.MAPPING)
    return [
        # Without batches there are no values; the alarm then keeps its state.
        AlarmSetting(
            "iterator-age",
            "Totals have been more than 5 minutes behind their source for 5 minutes.",
            age,
            LATE_MS,
            periods=5,
            missing=cw.TreatMissingData.IGNORE,
        ),
        AlarmSetting(
            "iterator-age-critical",
            f"Totals are {very_late / 3_600_000:g} hours behind their source; in as many hours Lambda begins to "
            "give records up to the dead-letter queue.",
            age,
            very_late,
            periods=3,
            missing=cw.TreatMissingData.IGNORE,
        ),
    ]


def _failing(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        # One is enough: the worker raises only for errors that a retry cannot solve.
        AlarmSetting(
            "errors",
            "The worker failed as a whole: nothing is counted until the deployment is repaired.",
            metrics.lambda_function("Errors"),
            threshold=1,
        ),
        AlarmSetting(
            "throttles",
            "Lambda has refused to run the worker for 15 minutes: too little concurrency is left for it.",
            metrics.lambda_function("Throttles"),
            threshold=1,
            periods=3,
        ),
        AlarmSetting(
            "duration",
            f"Batches take more than {NEAR_THE_TIMEOUT_MS / 1000:g} of the {deployment.FUNCTION_TIMEOUT_SECONDS} "
            "seconds that an invocation has.",
            metrics.lambda_function("Duration", "Maximum"),
            NEAR_THE_TIMEOUT_MS,
            periods=3,
            datapoints=2,
        ),
        # A conflict or a throttle is retried within the invocation; what is reported back for a quarter of an hour is
        # an outage.
        AlarmSetting(
            "records-retried",
            "Records have come back uncounted for 15 minutes: DynamoDB does not take them.",
            metrics.worker(Metric.RECORDS_RETRIED),
            threshold=1,
            periods=3,
        ),
    ]


def _waiting(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        AlarmSetting(
            "records-parked",
            "Records were refused and wait in the dead-letter queue; they are missing from totals.",
            metrics.worker(Metric.RECORDS_PARKED),
            threshold=1,
        ),
        AlarmSetting(
            "on-failure-deliveries",
            "Lambda gave up whole batches; they wait in the dead-letter queue and are missing from totals.",
            metrics.event_source_mapping("OnFailureDestinationDeliveredEventCount"),
            threshold=1,
        ),
        # A queue that is empty and not used for six hours reports nothing.
        AlarmSetting(
            "dead-letters-visible",
            "Dead letters wait in the queue: records that are missing from totals, or items that cannot be used.",
            metrics.dead_letter_queue("ApproximateNumberOfMessagesVisible"),
            threshold=1,
        ),
        AlarmSetting(
            "oldest-dead-letter",
            f"A dead letter is {OLD_DEAD_LETTER_SECONDS // 86_400} days old; SQS deletes it at "
            f"{deployment.QUEUE_RETENTION_DAYS}.",
            metrics.dead_letter_queue("ApproximateAgeOfOldestMessage"),
            OLD_DEAD_LETTER_SECONDS,
        ),
    ]


def _lost(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        AlarmSetting(
            "dropped-events",
            "Lambda dropped records: they were not counted and are kept nowhere but in the source.",
            metrics.event_source_mapping("DroppedEventCount"),
            threshold=1,
        ),
        AlarmSetting(
            "destination-delivery-failures",
            "Lambda could not write batches that it gave up to the bucket: they are about to be lost.",
            metrics.lambda_function("DestinationDeliveryFailures"),
            threshold=1,
        ),
    ]


def _differing(metrics: StackMetrics) -> list[AlarmSetting]:
    return [
        # One is enough: the same record must always contribute the same.
        AlarmSetting(
            "receipts-differ",
            "Records came back whose receipts hold other amounts than the worker computes now: two versions of it "
            "read an image differently.",
            metrics.worker(Metric.RECEIPTS_DIFFER),
            threshold=1,
        ),
    ]


def _reconciled(metrics: StackMetrics) -> list[AlarmSetting]:
    """What the scheduled reconcile has found. Between two runs the alarms stay as the last one left them."""
    if metrics.reconcile is None:
        return []
    return [
        AlarmSetting(
            "aggregate-drift",
            "Totals differ from what the source says, and no record in flight explains it.",
            metrics.worker(Metric.AGGREGATE_DRIFT, "Maximum"),
            threshold=1,
            missing=cw.TreatMissingData.IGNORE,
        ),
        AlarmSetting(
            "reconcile-failed",
            "The scheduled reconcile did not finish, so it is not known whether the totals are right.",
            metrics.lambda_function("Errors", function=metrics.reconcile),
            threshold=1,
            missing=cw.TreatMissingData.IGNORE,
        ),
    ]


def _slowed_down(metrics: StackMetrics) -> list[AlarmSetting]:
    settings = [
        AlarmSetting(
            "write-conflicts",
            "Writes of the same rows have collided ten times a second for 15 minutes; totals stay exact, and cost "
            "more.",
            metrics.worker(Metric.WRITE_CONFLICTS),
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
        # A table on demand throttles for moments when traffic doubles, and grows; a quarter of an hour is a limit.
        settings += [
            AlarmSetting(
                throttling,
                f"DynamoDB has refused writes to {what} for 15 minutes.",
                metrics.table(table, "WriteThrottleEvents"),
                threshold=1,
                periods=3,
                page="write-throttling",
            ),
            AlarmSetting(
                system_errors,
                f"DynamoDB itself has failed on {what} for 15 minutes.",
                metrics.table(table, "SystemErrors", operation),
                threshold=1,
                periods=3,
                page="system-errors",
            ),
        ]
    return settings

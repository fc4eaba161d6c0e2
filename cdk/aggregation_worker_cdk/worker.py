"""One worker as a construct, for any CDK app: `AggregationWorker`."""

import re
from dataclasses import replace
from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cw
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from aggregation_worker.aggregations.definitions import load_definitions
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.example import put_item_command, query_command
from aggregation_worker.deployment.settings import DeploymentError, Output
from aggregation_worker_cdk.alarms import RUNBOOKS, Alarms
from aggregation_worker_cdk.bundle import RECONCILE_CONTENTS, FunctionBundling
from aggregation_worker_cdk.dashboard import AggregationDashboard
from aggregation_worker_cdk.dead_letters import DeadLetters
from aggregation_worker_cdk.function import AggregationFunction
from aggregation_worker_cdk.keeping import Keeping
from aggregation_worker_cdk.metrics import StackMetrics
from aggregation_worker_cdk.reconcile import ScheduledReconcile
from aggregation_worker_cdk.schedule import mistake_in
from aggregation_worker_cdk.tables import MadeTable, Tables, source_of
from aggregation_worker_cdk.topic import AlarmTopic

# The bucket's name is the worker's with "-dlq-", the account's 12 digits and the region's at most 14 characters; S3
# allows 63 ("General purpose bucket naming rules", Amazon S3 user guide).
MAX_NAME = 30
_NAME = re.compile(r"[A-Za-z0-9-]+")


class AggregationWorker(Construct):
    """Keeps the totals of a definitions file for a table: function, totals, ledger, dead letters, alarms, dashboard.

        totals = AggregationWorker(self, "Totals", definitions="aggregations.toml", source=orders)
        totals.tables["item_count_by_date"].grant_read_data(api)

    Attributes:
        name: of the worker, in the names of alarms, dashboard, ledger and bucket, and the `service` of its metrics and
            logs: stack and construct id, such as `Shop-Totals`.
        definitions: what is added up.
        tables: the target tables, by the name that the definitions give them.
        ledger: archived receipts, backfills and the catalogue.
        source: the table that is read.
        function, mapping: the worker, and what feeds it from the stream.
        queue, bucket: where dead letters wait, and what is too large for a message.
        topic: where alarms go.
        alarms: by name, such as `iterator-age`; runbooks/ has a page for each.
        dashboard: the dashboard.
        log_group: the function's log.
        reconcile: the scheduled reconcile, where there is one.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        definitions: str | Path,
        source: dynamodb.ITable | None = None,
        table_prefix: str = "",
        removal_policy: cdk.RemovalPolicy = cdk.RemovalPolicy.RETAIN,
        encryption_key: kms.IKey | None = None,
        alarm_topic: sns.ITopic | None = None,
        alarm_email: str | None = None,
        runbooks: str = RUNBOOKS,
        reconcile: str | None = None,
        reserved_concurrency: int | None = None,
        memory_mb: int = deployment.FUNCTION_MEMORY_MB,
        batch_size: int = deployment.MAPPING.batch_size,
        batching_window_seconds: int = deployment.MAPPING.maximum_batching_window_seconds,
        parallelization_factor: int = deployment.MAPPING.parallelization_factor,
        ledger_retention_days: int = deployment.LEDGER_RETENTION_DAYS,
        log_retention: logs.RetentionDays = logs.RetentionDays.THREE_MONTHS,
    ) -> None:
        """Adds a worker.

        Args:
            definitions: the definitions file, a path from where the app runs; it is bundled into the function.
            source: any table with a stream of new and old images, also an imported one, or a table of another
                `AggregationWorker`. Without it, the definitions' `[source]` names one by its `stream_arn`, or describes
                one that is made here.
            table_prefix: before the name of every table that is made here, to have one file's tables twice in an
                account and region.
            removal_policy: of all that holds data. `RETAIN` also gives the tables deletion protection.
            encryption_key: for tables, queue, bucket and topic, in place of keys of AWS. The policy of an imported key
                must allow what cdk/README.md, "A key of one's own", lists.
            alarm_topic: in place of one that is made here; CloudWatch must be allowed to publish to it.
            alarm_email: an address that is subscribed to the topic that is made here.
            runbooks: the address of the folder with the runbooks, for the descriptions of the alarms.
            reconcile: when every total is compared with the source, as an EventBridge schedule such as `rate(1 day)`.
            reserved_concurrency: of the function; one for each shard times `parallelization_factor` is needed.
            memory_mb: of the function; `deployment.settings` has the measurement behind the default.
            batch_size: most records of one invocation, up to 10,000: larger batches cost fewer write units.
            batching_window_seconds: how long a quiet shard waits for more records, up to 300; totals lag by as much.
            parallelization_factor: batches of one shard at once, 1 to 10.
            ledger_retention_days: for how long late records, and dead letters, can be told from duplicates.
            log_retention: of the functions' logs.

        Raises:
            DefinitionError: the definitions hold a mistake, or do not fit the source.
            DeploymentError: the choices do not fit together.
        """
        super().__init__(scope, construct_id)
        self.name = _name_of(self)
        file = Path(definitions)
        self.definitions = load_definitions(file, source_of(source) if source is not None else None, table_prefix)
        if reconcile is not None:
            if mistake := mistake_in(reconcile):
                raise DeploymentError(f"reconcile={reconcile!r}: {mistake}")
            deployment.check_scheduled_reconcile(self.definitions)
        deployment.check_ledger_retention(ledger_retention_days)
        deployment.check_ranges(
            batch_size=batch_size,
            batching_window_seconds=batching_window_seconds,
            parallelization_factor=parallelization_factor,
            memory_mb=memory_mb,
        )
        if alarm_topic is not None and alarm_email is not None:
            raise DeploymentError("alarm_email is subscribed to the topic that is made here: leave alarm_topic out")
        if price := deployment.price_of_keeping(self.definitions):
            cdk.Annotations.of(self).add_info(price)

        keeping = Keeping(removal_policy, encryption_key, log_retention)
        bundling = FunctionBundling(file)
        tables = Tables(self, "Tables", name=self.name, definitions=self.definitions, source=source, keeping=keeping)
        dead_letters = DeadLetters(self, "DeadLetters", name=self.name, keeping=keeping)
        environment = {
            "LEDGER_TABLE": tables.ledger.table_name,
            "LEDGER_RETENTION_DAYS": str(ledger_retention_days),
            "SOURCE_STREAM_ARN": tables.source_stream_arn,
            **({"TABLE_PREFIX": table_prefix} if table_prefix else {}),
        }
        with bundling.errors():
            worker = AggregationFunction(
                self,
                "Worker",
                name=self.name,
                definitions=self.definitions,
                tables=tables,
                dead_letters=dead_letters,
                code=bundling.code(),
                environment=environment,
                mapping=replace(
                    deployment.MAPPING,
                    batch_size=batch_size,
                    maximum_batching_window_seconds=batching_window_seconds,
                    parallelization_factor=parallelization_factor,
                ),
                memory_mb=memory_mb,
                reserved_concurrency=reserved_concurrency,
                keeping=keeping,
            )
            self.reconcile = reconcile and ScheduledReconcile(
                self,
                "Reconcile",
                name=self.name,
                schedule=reconcile,
                tables=tables,
                code=bundling.code(RECONCILE_CONTENTS),
                environment=environment,
                keeping=keeping,
            )
        metrics = StackMetrics(
            service=self.name,
            source_table=tables.source.table_name,
            function=worker.function,
            mapping_id=worker.mapping.ref,
            queue=dead_letters.queue,
            ledger=tables.ledger,
            targets=tables.targets,
            reconcile=self.reconcile.function if self.reconcile else None,
        )
        if alarm_topic is None:
            alarm_topic = AlarmTopic(self, "Alarm", name=self.name, email=alarm_email, key=encryption_key).topic
        alarms = Alarms(self, "Alarms", metrics=metrics, topic=alarm_topic, runbooks=runbooks, schedule=reconcile)
        dashboard = AggregationDashboard(
            self, "Dashboard", metrics=metrics, memory_mb=memory_mb, alarms=[*alarms.alarms.values()]
        )

        self.tables: dict[str, dynamodb.ITable] = {**tables.targets}
        self.ledger: dynamodb.ITable = tables.ledger
        self.source: dynamodb.ITable = tables.source
        self.function: lambda_.IFunction = worker.function
        self.mapping = worker.mapping
        self.log_group: logs.ILogGroup = worker.log_group
        self.queue: sqs.IQueue = dead_letters.queue
        self.bucket: s3.IBucket = dead_letters.bucket
        self.topic = alarm_topic
        self.alarms: dict[str, cw.IAlarm] = {**alarms.alarms}
        self.dashboard: cw.Dashboard = dashboard.dashboard
        self._outputs(ledger_retention_days, reads_totals=isinstance(source, MadeTable))

    def _outputs(self, ledger_retention_days: int, *, reads_totals: bool) -> None:
        """What the `aggregator` command and the first commands of every page in runbooks/ read.

        Args:
            reads_totals: the source is another worker's target, into which nobody puts an item.
        """
        self._output(Output.SOURCE_TABLE, self.source.table_name, "The table whose changes are counted")
        targets = " ".join(dict.fromkeys(aggregation.table for aggregation in self.definitions.aggregations))
        self._output(Output.TARGET_TABLES, targets, "The tables with the totals")
        self._output(Output.LEDGER_TABLE, self.ledger.table_name, "The table with the archived receipts")
        self._output(
            Output.LEDGER_RETENTION_DAYS,
            str(ledger_retention_days),
            "Days for which archived receipts last, and records can be replayed",
        )
        self._output(Output.DEAD_LETTER_QUEUE_URL, self.queue.queue_url, "Where uncounted records wait")
        self._output(Output.DEAD_LETTER_BUCKET, self.bucket.bucket_name, "What messages of the queue refer to")
        self._output(Output.FUNCTION_NAME, self.function.function_name, "The worker")
        self._output(Output.EVENT_SOURCE_MAPPING, self.mapping.ref, "What feeds the worker from the stream")
        self._output("LogGroupName", self.log_group.log_group_name, "The worker's log")
        if self.reconcile:
            name = self.reconcile.function.function_name
            self._output("ReconcileFunctionName", name, "What compares the totals with the source")
            self._output("ReconcileRuleName", self.reconcile.rule.rule_name, "What starts it")
            self._output(
                "ReconcileLogGroupName", self.reconcile.log_group.log_group_name, "Its log, with what it found"
            )
        self._output(Output.ALARM_TOPIC, self.topic.topic_arn, "Where alarms go: subscribe to it")
        self._output(Output.NAME, self.name, "The dashboard in CloudWatch")
        if self.definitions.source.keys and not reads_totals:
            command = put_item_command(self.definitions)
            self._output("PutItemCommand", command, "Puts an item, to see the worker work")
        for number, aggregation in enumerate(self.definitions.aggregations, start=1):
            self._output(
                f"QueryCommand{number if number > 1 else ''}",
                query_command(self.definitions, aggregation),
                f"Shows its total in {aggregation.name}",
            )

    def _output(self, name: str, value: str, description: str) -> None:
        cdk.CfnOutput(self, str(name), value=value, description=description)


def _name_of(worker: Construct) -> str:
    """Stack and ids, such as `Shop-Totals`; one that is too long is cut, and gets a hash that tells it from others."""
    # The id `Default` stands for its scope, as in the CDK's own names.
    ids = [one.node.id for one in worker.node.scopes if one.node.id not in ("", "Default")]
    name = "-".join([cdk.Stack.of(worker).stack_name, *ids[ids.index(cdk.Stack.of(worker).node.id) + 1 :]])
    if len(name) <= MAX_NAME and _NAME.fullmatch(name):
        return name
    return cdk.Names.unique_resource_name(worker, max_length=MAX_NAME, separator="-", allowed_special_characters="-")

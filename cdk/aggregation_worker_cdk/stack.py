"""One worker as a stack: what it consists of, and its outputs."""

import aws_cdk as cdk
from constructs import Construct

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.example import put_item_command, query_command
from aggregation_worker.deployment.settings import Output
from aggregation_worker_cdk.alarms import Alarms
from aggregation_worker_cdk.bundle import FunctionBundling
from aggregation_worker_cdk.dashboard import AggregationDashboard
from aggregation_worker_cdk.dead_letters import DeadLetters
from aggregation_worker_cdk.function import AggregationFunction
from aggregation_worker_cdk.metrics import StackMetrics
from aggregation_worker_cdk.options import Options
from aggregation_worker_cdk.reconcile import ScheduledReconcile
from aggregation_worker_cdk.tables import Tables


class AggregationStack(cdk.Stack):
    """Source table, function, totals, ledger, dead letters, alarms and dashboard; a scheduled reconcile if wanted."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        definitions: Definitions,
        options: Options,
        bundling: FunctionBundling,
    ) -> None:
        """Adds the stack to the app.

        Raises:
            DeploymentError: the ledger would forget a page while its records can still come back, or a scheduled
                reconcile could prove nothing.
        """
        if options.reconcile is not None:
            deployment.check_scheduled_reconcile(definitions)
        deployment.check_ledger_retention(deployment.LEDGER_RETENTION_DAYS, deployment.DEAD_LETTER_OBJECT_DAYS)
        super().__init__(
            scope,
            construct_id,
            description="Exact running totals from the stream of a DynamoDB table",
            termination_protection=not options.throwaway,
        )
        if price := deployment.price_of_keeping(definitions):
            cdk.Annotations.of(self).add_info(price)
        tables = Tables(self, "Tables", definitions=definitions, throwaway=options.throwaway)
        dead_letters = DeadLetters(self, "DeadLetters", throwaway=options.throwaway)
        worker = AggregationFunction(
            self,
            "Worker",
            definitions=definitions,
            tables=tables,
            dead_letters=dead_letters,
            bundling=bundling,
            reserved_concurrency=options.reserved_concurrency,
            throwaway=options.throwaway,
        )
        reconcile = None
        if options.reconcile is not None:
            reconcile = ScheduledReconcile(
                self,
                "Reconcile",
                schedule=options.reconcile,
                tables=tables,
                bundling=bundling,
                throwaway=options.throwaway,
            )
        metrics = StackMetrics(
            service=self.stack_name,
            source_table=tables.source.table_name,
            function=worker.function,
            mapping_id=worker.mapping.ref,
            queue=dead_letters.queue,
            ledger=tables.ledger,
            targets=tables.targets,
            reconcile=reconcile.function if reconcile is not None else None,
        )
        alarms = Alarms(self, "Alarms", metrics=metrics, email=options.alarm_email, schedule=options.reconcile)
        dashboard = AggregationDashboard(self, "Dashboard", metrics=metrics, alarms=alarms.alarms)

        # Those of `Output` are read by the `aggregator` command, the others by people.
        self._output(Output.SOURCE_TABLE, tables.source.table_name, "The table whose changes are counted")
        self._output("TargetTableNames", " ".join(tables.targets), "The tables with the totals")
        self._output(Output.LEDGER_TABLE, tables.ledger.table_name, "The table with the archived receipts")
        self._output(
            Output.LEDGER_RETENTION_DAYS,
            str(deployment.LEDGER_RETENTION_DAYS),
            "Days for which archived receipts last, and records can be replayed",
        )
        self._output(Output.DEAD_LETTER_QUEUE_URL, dead_letters.queue.queue_url, "Where uncounted records wait")
        self._output(Output.DEAD_LETTER_BUCKET, dead_letters.bucket.bucket_name, "What messages of the queue refer to")
        self._output(Output.FUNCTION_NAME, worker.function.function_name, "The worker")
        self._output(Output.EVENT_SOURCE_MAPPING, worker.mapping.ref, "What feeds the worker from the stream")
        self._output("LogGroupName", worker.log_group.log_group_name, "The worker's log")
        if reconcile is not None:
            name = reconcile.function.function_name
            self._output("ReconcileFunctionName", name, "What compares the totals with the source")
            self._output("ReconcileRuleName", reconcile.rule.rule_name, "What starts it")
            self._output("ReconcileLogGroupName", reconcile.log_group.log_group_name, "Its log, with what it found")
        self._output(Output.ALARM_TOPIC, alarms.topic.topic_arn, "Where alarms go: subscribe to it")
        self._output("DashboardName", dashboard.name, "The dashboard in CloudWatch")
        self._output("PutItemCommand", put_item_command(definitions), "Puts an order, to see the worker work")
        for number, aggregation in enumerate(definitions.aggregations, start=1):
            self._output(
                f"QueryCommand{number if number > 1 else ''}",
                query_command(definitions, aggregation),
                f"Shows its total in {aggregation.name}",
            )

    def _output(self, name: str, value: str, description: str) -> None:
        cdk.CfnOutput(self, str(name), value=value, description=description)

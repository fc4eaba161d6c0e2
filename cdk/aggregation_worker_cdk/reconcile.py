"""The scheduled reconcile: a function that compares every total with the source, and only reads.

Its values come from `deployment.settings`, each with its reason. It reports what it finds as a metric and in its log;
an operator corrects it with `aggregator reconcile --repair`.
"""

import aws_cdk as cdk
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from constructs import Construct

from aggregation_worker.deployment import settings as deployment
from aggregation_worker_cdk.bundle import RECONCILE_CONTENTS, FunctionBundling
from aggregation_worker_cdk.python_function import log_and_trace, log_of, python_function
from aggregation_worker_cdk.tables import Tables


class ScheduledReconcile(Construct):
    """The function, its role, its log and its schedule."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        schedule: str,
        tables: Tables,
        bundling: FunctionBundling,
        throwaway: bool,
    ) -> None:
        """Adds them.

        Args:
            schedule: an EventBridge schedule expression, checked already.
        """
        super().__init__(scope, construct_id)
        self.log_group = log_of(self, throwaway=throwaway)
        self.function = python_function(
            self,
            role=self._role(tables),
            log=self.log_group,
            description=f"Compares every total with {tables.source.table_name}; only reads",
            code=bundling.code(RECONCILE_CONTENTS),
            handler="aggregation_worker.reconciliation.scheduled.lambda_handler",
            memory_size=deployment.RECONCILE_MEMORY_MB,
            ephemeral_storage_size=cdk.Size.mebibytes(deployment.RECONCILE_STORAGE_MB),
            timeout=cdk.Duration.seconds(deployment.RECONCILE_TIMEOUT_SECONDS),
            reserved_concurrent_executions=deployment.RECONCILE_CONCURRENCY,
            retry_attempts=deployment.RECONCILE_RETRY_ATTEMPTS,
            max_event_age=cdk.Duration.seconds(deployment.RECONCILE_WAITS_SECONDS),
            environment={
                "LEDGER_TABLE": tables.ledger.table_name,
                "SOURCE_STREAM_ARN": tables.source.stream_arn,
                "MAX_SOURCE_BYTES": str(deployment.MAX_SCHEDULED_RECONCILE_BYTES),
            },
            runtime_reason="The worker's runtime, for the worker's reasons: both are made of the same package.",
        )
        self.rule = events.Rule(
            self,
            "Schedule",
            description=f"When the totals of {tables.source.table_name} are compared with it",
            schedule=events.Schedule.expression(schedule),
            targets=[targets.LambdaFunction(self.function)],
        )

    def _role(self, tables: Tables) -> iam.Role:
        """The execution role: reading, and nothing else."""
        totals = [table.table_arn for table in tables.targets.values()]
        statements = [
            iam.PolicyStatement(
                # Its size, before anything is read; then its items.
                sid="ReadSource",
                actions=["dynamodb:DescribeTable", "dynamodb:Scan"],
                resources=[tables.source.table_arn],
            ),
            iam.PolicyStatement(
                sid="ReadStream",
                actions=["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
                resources=[tables.source.stream_arn],
            ),
            iam.PolicyStatement(
                # All of them, and then again those that differ.
                sid="ReadTotals",
                actions=["dynamodb:GetItem", "dynamodb:Scan"],
                resources=totals,
            ),
            iam.PolicyStatement(
                # Definitions and what was backfilled, and the pages of a total.
                sid="ReadLedger",
                actions=["dynamodb:GetItem", "dynamodb:Query"],
                resources=[tables.ledger.table_arn],
            ),
            *log_and_trace(self.log_group),
        ]
        role = iam.Role(
            self,
            "Role",
            description="What the scheduled reconcile may do, action by action: it only reads",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            inline_policies={"Reconcile": iam.PolicyDocument(statements=statements)},
        )
        cdk.Validations.of(role).acknowledge(
            cdk.Acknowledgment(
                id="AwsSolutions::AwsSolutions-IAM5[Resource::*]", reason="X-Ray's two actions take no resource."
            )
        )
        return role

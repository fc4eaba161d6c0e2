"""The scheduled reconcile: a function that compares every total with the source, and only reads.

Its values come from `worker.deployment`, where each stands with its reason. What it finds it says as a metric and in
its log; corrections are an operator's, with `aggregator reconcile --repair`.
"""

import aws_cdk as cdk
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from infrastructure.bundle import ARCHITECTURE, RECONCILE_CONTENTS, RUNTIME, FunctionBundling
from infrastructure.function import LOG_RETENTION
from infrastructure.tables import Tables
from worker import deployment


class ScheduledReconcile(Construct):
    """The function, its role, its log and its schedule."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        schedule: str,
        nothing_removed: bool,
        tables: Tables,
        bundling: FunctionBundling,
        throwaway: bool,
    ) -> None:
        """Adds them.

        Args:
            schedule: an EventBridge schedule expression, checked already.
            nothing_removed: nobody ever deletes items of the source.
        """
        super().__init__(scope, construct_id)
        self.log_group = logs.LogGroup(
            self,
            "Log",
            retention=LOG_RETENTION,
            removal_policy=cdk.RemovalPolicy.DESTROY if throwaway else cdk.RemovalPolicy.RETAIN,
        )
        role = self._role(tables)
        self.function = lambda_.Function(
            self,
            "Function",
            description=f"Compares every total with {tables.source.table_name}; only reads",
            runtime=RUNTIME,
            architecture=ARCHITECTURE,
            code=bundling.code(RECONCILE_CONTENTS),
            handler="worker.reconciliation.scheduled.lambda_handler",
            # As it is: what the CDK would like to add to it is in it already, narrower.
            role=role.without_policy_updates(),
            memory_size=deployment.RECONCILE_MEMORY_MB,
            ephemeral_storage_size=cdk.Size.mebibytes(deployment.RECONCILE_STORAGE_MB),
            timeout=cdk.Duration.seconds(deployment.RECONCILE_TIMEOUT_SECONDS),
            reserved_concurrent_executions=deployment.RECONCILE_CONCURRENCY,
            retry_attempts=deployment.RECONCILE_RETRY_ATTEMPTS,
            max_event_age=cdk.Duration.seconds(deployment.RECONCILE_WAITS_SECONDS),
            tracing=lambda_.Tracing.ACTIVE,
            log_group=self.log_group,
            logging_format=lambda_.LoggingFormat.JSON,
            # Not higher: the metric is a log line without a level, which Lambda takes for INFO.
            application_log_level_v2=lambda_.ApplicationLogLevel.INFO,
            system_log_level_v2=lambda_.SystemLogLevel.INFO,
            environment={
                "LEDGER_TABLE": tables.ledger.table_name,
                "STREAM_ARN": tables.source.stream_arn,
                "RECONCILE_NOTHING_REMOVED": "true" if nothing_removed else "false",
                "MAX_SOURCE_BYTES": str(deployment.MAX_SCHEDULED_RECONCILE_BYTES),
                "POWERTOOLS_SERVICE_NAME": cdk.Stack.of(self).stack_name,
            },
        )
        # The CDK makes it depend on the role, which it refers to anyway; cfn-lint warns about that.
        resource = self.function.node.default_child
        assert isinstance(resource, lambda_.CfnFunction)  # noqa: S101 - a Function's own resource
        resource.add_deletion_override("DependsOn")
        events.Rule(
            self,
            "Schedule",
            description=f"When the totals of {tables.source.table_name} are compared with it",
            schedule=events.Schedule.expression(schedule),
            targets=[targets.LambdaFunction(self.function)],
        )
        cdk.Validations.of(self.function).acknowledge(
            cdk.Acknowledgment(
                id="AwsSolutions::AwsSolutions-L1",
                reason="The worker's runtime, for the worker's reasons: both are made of the same package.",
            )
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
                # Definitions and what was backfilled, and the receipts of a total.
                sid="ReadLedger",
                actions=["dynamodb:GetItem", "dynamodb:Query"],
                resources=[tables.ledger.table_arn],
            ),
            iam.PolicyStatement(
                sid="WriteLog",
                actions=["logs:CreateLogStream", "logs:PutLogEvents"],
                resources=[self.log_group.log_group_arn],
            ),
            iam.PolicyStatement(
                # Neither action knows resources ("Actions, resources, and condition keys for AWS X-Ray", Service
                # Authorization Reference).
                sid="Trace",
                actions=["xray:PutTelemetryRecords", "xray:PutTraceSegments"],
                resources=["*"],
            ),
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
                id="AwsSolutions::AwsSolutions-IAM5[Resource::*]", reason="X-Ray's two actions know no resources."
            )
        )
        return role

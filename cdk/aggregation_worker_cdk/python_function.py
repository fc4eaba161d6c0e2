"""What the worker's function and the scheduled reconcile's have in common: how they run, log and trace."""

from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from constructs import Construct

from aggregation_worker_cdk.bundle import ARCHITECTURE, RUNTIME
from aggregation_worker_cdk.keeping import Keeping
from aggregation_worker_cdk.own_resource import own_resource


def log_of(scope: Construct, keeping: Keeping) -> logs.LogGroup:
    """A function's log."""
    return logs.LogGroup(scope, "Log", retention=keeping.log_retention, removal_policy=keeping.removal_policy)


def log_and_trace(log: logs.ILogGroup) -> list[iam.PolicyStatement]:
    """What a function's role must allow for its log and its traces.

    X-Ray's two actions take no resource ("Actions, resources, and condition keys for AWS X-Ray", Service Authorization
    Reference).
    """
    return [
        iam.PolicyStatement(
            sid="WriteLog", actions=["logs:CreateLogStream", "logs:PutLogEvents"], resources=[log.log_group_arn]
        ),
        iam.PolicyStatement(
            sid="Trace", actions=["xray:PutTelemetryRecords", "xray:PutTraceSegments"], resources=["*"]
        ),
    ]


def python_function(
    scope: Construct,
    *,
    name: str,
    role: iam.Role,
    log: logs.ILogGroup,
    environment: dict[str, str],
    runtime_reason: str,
    **properties: Any,
) -> lambda_.Function:
    """A function in the runtime that the bundle is made for.

    Args:
        name: the worker's, of its metrics and log entries.
        role: used as it is: what the CDK would add is in it already, narrower.
        environment: its own variables.
        runtime_reason: why the runtime is not the newest.
        properties: of `aws_lambda.Function`.
    """
    function = lambda_.Function(
        scope,
        "Function",
        runtime=RUNTIME,
        architecture=ARCHITECTURE,
        role=role.without_policy_updates(),
        tracing=lambda_.Tracing.ACTIVE,
        log_group=log,
        logging_format=lambda_.LoggingFormat.JSON,
        # Not higher: metrics are log lines without a level, which Lambda takes for INFO ("Log-level filtering", AWS
        # Lambda developer guide).
        application_log_level_v2=lambda_.ApplicationLogLevel.INFO,
        system_log_level_v2=lambda_.SystemLogLevel.INFO,
        environment=environment | {"POWERTOOLS_SERVICE_NAME": name},
        **properties,
    )
    # The CDK makes it depend on the role, which it refers to anyway; cfn-lint warns about that.
    own_resource(function, lambda_.CfnFunction).add_deletion_override("DependsOn")
    cdk.Validations.of(function).acknowledge(
        cdk.Acknowledgment(id="AwsSolutions::AwsSolutions-L1", reason=runtime_reason)
    )
    return function

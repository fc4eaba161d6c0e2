"""The metrics of one deployed worker, for alarms and dashboard.

The worker's own are listed in `telemetry`; the others are AWS's, each with the place that documents it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cw
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_sqs as sqs

from aggregation_worker.telemetry import NAMESPACE, Metric

ONE_MINUTE = cdk.Duration.minutes(1)
FIVE_MINUTES = cdk.Duration.minutes(5)


@dataclass(frozen=True, slots=True)
class StackMetrics:
    """Makes the metrics of what one stack consists of.

    Attributes:
        service: the dimension of the worker's own metrics.
        mapping_id: the event source mapping's UUID.
        targets: the target tables by name.
        reconcile: the function of the scheduled reconcile, where there is one.
    """

    service: str
    function: lambda_.IFunction
    mapping_id: str
    queue: sqs.IQueue
    ledger: dynamodb.ITable
    targets: Mapping[str, dynamodb.ITable]
    reconcile: lambda_.IFunction | None = None

    def worker(self, metric: Metric, statistic: str = "Sum", period: cdk.Duration = FIVE_MINUTES) -> cw.Metric:
        """One of the worker's own."""
        return cw.Metric(
            namespace=NAMESPACE,
            metric_name=metric.value,
            dimensions_map={"service": self.service},
            statistic=statistic,
            period=period,
        )

    def lambda_function(
        self,
        name: str,
        statistic: str = "Sum",
        period: cdk.Duration = FIVE_MINUTES,
        *,
        function: lambda_.IFunction | None = None,
    ) -> cw.Metric:
        """Of the worker, or of another function.

        See "Types of metrics for Lambda functions", AWS Lambda developer guide.
        """
        return cw.Metric(
            namespace="AWS/Lambda",
            metric_name=name,
            dimensions_map={"FunctionName": (function or self.function).function_name},
            statistic=statistic,
            period=period,
        )

    def event_source_mapping(self, name: str, period: cdk.Duration = FIVE_MINUTES) -> cw.Metric:
        """See "Event source mapping metrics", AWS Lambda developer guide; the mapping asks for `EventCount`."""
        return cw.Metric(
            namespace="AWS/Lambda",
            metric_name=name,
            dimensions_map={"EventSourceMappingUUID": self.mapping_id},
            statistic="Sum",
            period=period,
        )

    def dead_letter_queue(self, name: str, period: cdk.Duration = FIVE_MINUTES) -> cw.Metric:
        """See "Available CloudWatch metrics for Amazon SQS", Amazon SQS developer guide."""
        return cw.Metric(
            namespace="AWS/SQS",
            metric_name=name,
            dimensions_map={"QueueName": self.queue.queue_name},
            statistic="Maximum",
            period=period,
        )

    def table(self, table: dynamodb.ITable, name: str, operation: str | None = None) -> cw.Metric:
        """See "DynamoDB metrics and dimensions", Amazon DynamoDB developer guide; some are given by operation only."""
        dimensions = {"TableName": table.table_name} | ({"Operation": operation} if operation else {})
        return cw.Metric(
            namespace="AWS/DynamoDB",
            metric_name=name,
            dimensions_map=dimensions,
            statistic="Sum",
            period=FIVE_MINUTES,
        )

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
ONE_HOUR = cdk.Duration.hours(1)


@dataclass(frozen=True, slots=True)
class StackMetrics:
    """Makes the metrics of what one stack consists of.

    Attributes:
        service: the dimension of the worker's own metrics.
        source_table: the source's name.
        mapping_id: the event source mapping's UUID.
        targets: the target tables by name.
        reconcile: the function of the scheduled reconcile, where there is one.
    """

    service: str
    source_table: str
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

    @property
    def unread(self) -> cw.MathExpression:
        """1 where the source was written and nothing was read of it, less where something was.

        Metric math takes a missing value as 0 and gives none where it would divide by 0 ("Metric math syntax and
        functions", Amazon CloudWatch user guide): a period in which nothing happened is as the one before.
        """
        return cw.MathExpression(
            expression="FILL(written / (written + FILL(read, 0)), REPEAT)",
            using_metrics={"written": self.written, "read": self.read},
            label="written and not read",
            period=FIVE_MINUTES,
        )

    @property
    def written(self) -> cw.Metric:
        """Write units of the source."""
        return self.table(self.source_table, "ConsumedWriteCapacityUnits")

    @property
    def read(self) -> cw.Metric:
        """Records that the mapping has read from the stream, those included that its filter leaves out."""
        return self.event_source_mapping("PolledEventCount")

    def waiting(self, period: cdk.Duration) -> cw.MathExpression:
        """Dead letters, also those that somebody is reading.

        The age of the oldest is no measure: SQS leaves a message out that was received three times.
        """
        return cw.MathExpression(
            expression="visible + hidden",
            using_metrics={
                "visible": self.dead_letter_queue("ApproximateNumberOfMessagesVisible", period),
                "hidden": self.dead_letter_queue("ApproximateNumberOfMessagesNotVisible", period),
            },
            label="dead letters",
            period=period,
        )

    def table(self, name: str, metric: str, operation: str | None = None) -> cw.Metric:
        """See "DynamoDB metrics and dimensions", Amazon DynamoDB developer guide; some are given by operation only."""
        dimensions = {"TableName": name} | ({"Operation": operation} if operation else {})
        return cw.Metric(
            namespace="AWS/DynamoDB",
            metric_name=metric,
            dimensions_map=dimensions,
            statistic="Sum",
            period=FIVE_MINUTES,
        )

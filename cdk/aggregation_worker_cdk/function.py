"""The function, its role, its log and the event source mapping that feeds it.

The mapping's values come from `aggregation_worker.deployment.settings`, each with its reason.
"""

import json
from collections.abc import Mapping

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.dead_letters import ON_FAILURE_PREFIX, PARKED_PREFIX
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.ledger.receipts import CATALOGUE_PARTITION
from aggregation_worker_cdk.dead_letters import DeadLetters
from aggregation_worker_cdk.keeping import Keeping
from aggregation_worker_cdk.python_function import log_and_trace, log_of, python_function
from aggregation_worker_cdk.tables import Tables


class AggregationFunction(Construct):
    """The worker in Lambda."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        name: str,
        definitions: Definitions,
        tables: Tables,
        dead_letters: DeadLetters,
        code: lambda_.Code,
        environment: Mapping[str, str],
        mapping: MappingSettings,
        memory_mb: int,
        reserved_concurrency: int | None,
        keeping: Keeping,
    ) -> None:
        super().__init__(scope, construct_id)
        self.log_group = log_of(self, keeping)
        self.role = self._role(tables, dead_letters, keeping)
        dead_letters.admit_only(self.role)
        self.function = python_function(
            self,
            name=name,
            role=self.role,
            log=self.log_group,
            description=f"Counts every change of {definitions.source.table} exactly once",
            code=code,
            handler="aggregation_worker.handler.lambda_handler",
            memory_size=memory_mb,
            timeout=cdk.Duration.seconds(deployment.FUNCTION_TIMEOUT_SECONDS),
            reserved_concurrent_executions=reserved_concurrency,
            environment={
                **environment,
                "DEAD_LETTER_QUEUE_URL": dead_letters.queue.queue_url,
                "DEAD_LETTER_BUCKET": dead_letters.bucket.bucket_name,
            },
            runtime_reason="Python 3.13 is the version that the tests, the pinned dependencies and the bundled "
            "bytecode are for; a newer one is a change of all three.",
        )
        self.mapping = self._mapping(mapping, definitions, tables, dead_letters)

    def _mapping(
        self, settings: MappingSettings, definitions: Definitions, tables: Tables, dead_letters: DeadLetters
    ) -> lambda_.CfnEventSourceMapping:
        """The mapping as CloudFormation knows it: the CDK's event source would add grants and defaults of its own."""
        pattern = json.dumps({"eventName": deployment.event_names(definitions)})
        mapping = lambda_.CfnEventSourceMapping(
            self,
            "Mapping",
            event_source_arn=tables.source_stream_arn,
            function_name=self.function.function_name,
            starting_position=settings.starting_position,
            batch_size=settings.batch_size,
            maximum_batching_window_in_seconds=settings.maximum_batching_window_seconds,
            parallelization_factor=settings.parallelization_factor,
            maximum_retry_attempts=settings.maximum_retry_attempts,
            maximum_record_age_in_seconds=settings.maximum_record_age_seconds,
            bisect_batch_on_function_error=settings.bisect_batch_on_function_error,
            function_response_types=["ReportBatchItemFailures"] if settings.report_batch_item_failures else None,
            filter_criteria=lambda_.CfnEventSourceMapping.FilterCriteriaProperty(
                filters=[lambda_.CfnEventSourceMapping.FilterProperty(pattern=pattern)]
            ),
            destination_config=lambda_.CfnEventSourceMapping.DestinationConfigProperty(
                # Only S3 gets the records themselves; other destinations get a pointer into the stream, which expires.
                on_failure=lambda_.CfnEventSourceMapping.OnFailureProperty(destination=dead_letters.bucket.bucket_arn)
            ),
            # What Lambda filtered out, discarded and delivered on failure; the alarms need it.
            metrics_config=lambda_.CfnEventSourceMapping.MetricsConfigProperty(metrics=["EventCount"]),
        )
        # No record is written to the bucket before its policy is in force, which enforces TLS.
        mapping.node.add_dependency(dead_letters.bucket.node.find_child("Policy"))
        return mapping

    def _role(self, tables: Tables, dead_letters: DeadLetters, keeping: Keeping) -> iam.Role:
        """The execution role: each action that the worker or Lambda on its behalf performs, on what it performs it.

        `TransactWriteItems` needs the permission for each of its actions ("Using IAM with DynamoDB transactions",
        Amazon DynamoDB developer guide): puts into the ledger and an update of a target. Conditions on what is written
        need none.
        """
        account = cdk.Stack.of(self).account
        bucket_arn = dead_letters.bucket_arn
        statements = [
            iam.PolicyStatement(
                sid="ReadStream",
                actions=["dynamodb:DescribeStream", "dynamodb:GetRecords", "dynamodb:GetShardIterator"],
                resources=[tables.source_stream_arn],
            ),
            iam.PolicyStatement(
                # "IAM policy to allow a Lambda function to access DynamoDB stream records", Amazon DynamoDB developer
                # guide: the action takes no narrower resource.
                sid="ListStreams",
                actions=["dynamodb:ListStreams"],
                resources=[f"{tables.source.table_arn}/stream/*"],
            ),
            iam.PolicyStatement(
                # What a batch's rows hold; then receipts and sums, into the rows alone or together with pages.
                sid="AddToTotals",
                actions=["dynamodb:BatchGetItem", "dynamodb:UpdateItem"],
                resources=[table.table_arn for table in tables.targets.values()],
            ),
            iam.PolicyStatement(
                # Archived receipts, and the pages where late ones belong. A page's partition key begins with its
                # aggregation's name and a `#`, so none of the ledger's other items can be put. The aggregation may be
                # one that is retired by now: a row that it shares makes room of its receipts, too.
                sid="KeepPages",
                actions=["dynamodb:PutItem", "dynamodb:Query"],
                resources=[tables.ledger.table_arn],
                conditions={"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["?*#*"]}},
            ),
            iam.PolicyStatement(
                # The one item that says which aggregations have counted.
                sid="KeepCatalogue",
                actions=["dynamodb:GetItem", "dynamodb:PutItem"],
                resources=[tables.ledger.table_arn],
                conditions={"ForAllValues:StringEquals": {"dynamodb:LeadingKeys": [CATALOGUE_PARTITION]}},
            ),
            iam.PolicyStatement(
                sid="ParkRecords",
                actions=["sqs:SendMessage"],
                resources=[dead_letters.queue.queue_arn],
            ),
            iam.PolicyStatement(
                # The documents that Lambda writes with this role, and the worker's large parked records.
                sid="StoreDeadLetters",
                actions=["s3:PutObject"],
                resources=[f"{bucket_arn}/{ON_FAILURE_PREFIX}*", f"{bucket_arn}/{PARKED_PREFIX}*"],
                conditions={"StringEquals": {"s3:ResourceAccount": account}},
            ),
            iam.PolicyStatement(
                # "Retain discarded records for a DynamoDB event source in Lambda", AWS Lambda developer guide.
                sid="FindOnFailureDestination",
                actions=["s3:ListBucket"],
                resources=[bucket_arn],
                conditions={"StringEquals": {"s3:ResourceAccount": account}},
            ),
            *keeping.use_of_key(),
            *log_and_trace(self.log_group),
        ]
        role = iam.Role(
            self,
            "Role",
            description="What the aggregation worker may do, action by action",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
            inline_policies={"Worker": iam.PolicyDocument(statements=statements)},
        )
        wildcards = {
            f"{tables.source.table_arn}/stream/*": "ListStreams takes nothing narrower than a table's streams.",
            f"{bucket_arn}/{PARKED_PREFIX}*": "Each parked record is an object of its own, named when it is parked.",
            f"{bucket_arn}/{ON_FAILURE_PREFIX}*": "Lambda names each document of a failed batch when it writes it.",
            "*": "X-Ray's two actions take no resource.",
        }
        for resource, reason in wildcards.items():
            finding = f"AwsSolutions::AwsSolutions-IAM5[Resource::{_as_cdk_nag_writes_it(self, resource)}]"
            cdk.Validations.of(role).acknowledge(cdk.Acknowledgment(id=finding, reason=reason))
        return role


def _as_cdk_nag_writes_it(scope: Construct, resource: str) -> str:
    """The name of a resource in a finding: references are written `<LogicalId.Arn>` and `<AWS::Region>`."""
    resolved = cdk.Stack.of(scope).resolve(resource)
    parts = resolved["Fn::Join"][1] if isinstance(resolved, dict) else [resolved]
    return "".join(
        part if isinstance(part, str) else f"<{part.get('Ref') or '.'.join(part['Fn::GetAtt'])}>" for part in parts
    )

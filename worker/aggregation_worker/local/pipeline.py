"""The whole pipeline on one machine: source table, stream, mapping, worker, totals, ledger and dead letters.

Everything is created from the definitions file and from `deployment`, as the CDK app does on AWS, on a ministack
that lives as long as the pipeline. The handler is the deployed one, `handler.lambda_handler`, in this process.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.contributions import Definitions, KeyType
from aggregation_worker.aggregations.definitions import load_definitions
from aggregation_worker.batch import BatchResult
from aggregation_worker.dead_letters import ON_FAILURE_PREFIX
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.deployment.settings import MappingSettings, TableDefinition
from aggregation_worker.local.delivery import DiscardedBatch, Invocation
from aggregation_worker.local.environment import environment_of
from aggregation_worker.local.event_source_mapping import EventSourceMapping
from aggregation_worker.local.local_function import Handler
from aggregation_worker.local.ministack import Ministack, MinistackError, running_ministack

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

LEDGER_TABLE = "aggregation-ledger"
DEAD_LETTERS = "aggregation-dead-letters"
FUNCTION_NAME = "aggregation-worker"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A running pipeline; its clients all speak to the ministack of this machine.

    Attributes:
        environment: with these variables the `aggregator` command works on it.
    """

    server: Ministack
    definitions: Definitions
    mapping: EventSourceMapping
    dynamodb: "DynamoDBClient"
    sqs: "SQSClient"
    queue_url: str
    environment: Mapping[str, str]


@contextmanager
def running_pipeline(
    definitions_file: Path,
    *,
    handler: Handler | None = None,
    settings: MappingSettings = deployment.MAPPING,
    on_batch: Callable[[Invocation], None] | None = None,
    on_discarded: Callable[[DiscardedBatch, str | None], None] | None = None,
    environment: Mapping[str, str] | None = None,
    port: int | None = None,
) -> Iterator[Pipeline]:
    """Starts everything, and stops it at the end, without leaving anything.

    While it runs, this process's environment is the function's: the endpoint of ministack and the worker's settings.
    The mapping delivers only while its `run` or `drain` is called.

    Args:
        definitions_file: as `AGGREGATIONS_FILE`.
        handler: called in place of `lambda_handler`, for instance to wrap it.
        settings: of the mapping, but for its filter, which the definitions decide.
        on_batch, on_discarded: see `EventSourceMapping`.
        environment: more environment variables for the function.
        port: of ministack, on the loopback address; a free one if not given.

    Raises:
        DefinitionError: the definitions file holds a mistake.
        MinistackError: ministack is not installed or did not start.
    """
    definitions = load_definitions(definitions_file)
    with running_ministack(port=port) as server:
        dynamodb, sqs, s3 = server.client("dynamodb"), server.client("sqs"), server.client("s3")
        stream_arn = _create_tables(dynamodb, definitions)
        queue_url = create_dead_letters(sqs, s3)
        function_environment = {
            **server.environment,
            "AGGREGATIONS_FILE": str(definitions_file.absolute()),
            "LEDGER_TABLE": LEDGER_TABLE,
            "LEDGER_RETENTION_DAYS": str(deployment.LEDGER_RETENTION_DAYS),
            "DEAD_LETTER_QUEUE_URL": queue_url,
            "DEAD_LETTER_BUCKET": DEAD_LETTERS,
            "SOURCE_STREAM_ARN": stream_arn,
        }
        with (
            environment_of({**function_environment, "POWERTOOLS_SERVICE_NAME": FUNCTION_NAME, **(environment or {})}),
            EventSourceMapping(
                server.client("dynamodbstreams"),
                s3,
                stream_arn,
                handler or deployed_handler(),
                settings,
                event_names=deployment.event_names(definitions),
                on_failure_bucket=DEAD_LETTERS,
                function_name=FUNCTION_NAME,
                on_batch=on_batch,
                on_discarded=on_discarded,
            ) as mapping,
        ):
            yield Pipeline(server, definitions, mapping, dynamodb, sqs, queue_url, function_environment)


def deployed_handler(tell: Callable[[str, BatchResult], None] | None = None) -> Handler:
    """`handler.lambda_handler`, imported when the function's environment is in place, as in Lambda.

    Args:
        tell: is told the request's id and what became of its batch, unless the function raises.
    """

    def handle(event: dict[str, Any], context: Any) -> Any:
        from aggregation_worker.handler import handled

        answer, result = handled(event, context)
        if tell is not None:
            tell(context.aws_request_id, result)
        return answer

    return handle


def _create_tables(dynamodb: "DynamoDBClient", definitions: Definitions) -> str:
    """Creates source, targets and ledger; returns the source's stream ARN.

    An existing source of the definitions is an AWS table that this machine does not have: it is created here like any.
    """
    for name, table in deployment.target_tables(definitions).items():
        create_table(dynamodb, name, table)
    create_table(dynamodb, LEDGER_TABLE, deployment.LEDGER)
    stream_arn = create_table(dynamodb, definitions.source.table, deployment.source_table(definitions))
    if stream_arn is None:
        raise MinistackError(f"table {definitions.source.table} was created without its stream")
    return stream_arn


def create_table(dynamodb: "DynamoDBClient", name: str, table: TableDefinition) -> str | None:
    """Creates a table on demand; returns its stream's ARN, or `None` if it has no stream."""
    view_type = table.stream_view_type
    indexes: dict[str, Any] = {
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index.name,
                "KeySchema": _key_schema(index.keys),
                "Projection": (
                    {"ProjectionType": "INCLUDE", "NonKeyAttributes": index.measures}
                    if index.measures
                    else {"ProjectionType": "KEYS_ONLY"}
                ),
            }
            for index in table.indexes
        ]
    }
    description = dynamodb.create_table(
        TableName=name,
        KeySchema=_key_schema(table.keys),
        AttributeDefinitions=[
            {"AttributeName": key, "AttributeType": kind.value} for key, kind in table.key_types.items()
        ],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification=(
            {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"} if view_type else {"StreamEnabled": False}
        ),
        **(indexes if table.indexes else {}),
    )["TableDescription"]
    if table.ttl_attribute is not None:
        dynamodb.update_time_to_live(
            TableName=name, TimeToLiveSpecification={"Enabled": True, "AttributeName": table.ttl_attribute}
        )
    return description.get("LatestStreamArn")


def _key_schema(keys: Sequence[tuple[str, KeyType]]) -> list[Any]:
    return [{"AttributeName": name, "KeyType": kind} for (name, _), kind in zip(keys, ("HASH", "RANGE"), strict=False)]


def create_dead_letters(sqs: "SQSClient", s3: "S3Client") -> str:
    """Creates the queue, the bucket and the bucket's notification into the queue; returns the queue's URL."""
    retention = str(deployment.QUEUE_RETENTION_DAYS * 86_400)
    queue_url = sqs.create_queue(QueueName=DEAD_LETTERS, Attributes={"MessageRetentionPeriod": retention})["QueueUrl"]
    queue_arn = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"Service": "s3.amazonaws.com"},
                "Action": "sqs:SendMessage",
                "Resource": queue_arn,
            }
        ],
    }
    sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"Policy": json.dumps(policy)})
    s3.create_bucket(Bucket=DEAD_LETTERS)
    s3.put_bucket_notification_configuration(
        Bucket=DEAD_LETTERS,
        NotificationConfiguration={
            "QueueConfigurations": [
                {
                    "QueueArn": queue_arn,
                    "Events": ["s3:ObjectCreated:*"],
                    "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": ON_FAILURE_PREFIX}]}},
                }
            ]
        },
    )
    # S3 tests a new notification with a message of its own.
    for message in sqs.receive_message(QueueUrl=queue_url, WaitTimeSeconds=1).get("Messages", []):
        sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
    return queue_url

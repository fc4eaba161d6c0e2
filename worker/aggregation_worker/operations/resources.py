"""Where the deployed worker is: clients, and the names of its tables, queue, bucket and function.

Names come, in this order, from the command's options, from the outputs of the stack given with `--stack`, from the
function's own environment variables, and from the outputs of the stack under its default name.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE, load_definitions
from aggregation_worker.deployment.settings import LEDGER_RETENTION_DAYS, STACK_NAME, Output
from aggregation_worker.operations.errors import CommandError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_sqs import SQSClient

# Environment variable of the function, where it has one, by stack output.
_VARIABLES = {
    Output.LEDGER_TABLE: "LEDGER_TABLE",
    Output.LEDGER_RETENTION_DAYS: "LEDGER_RETENTION_DAYS",
    Output.DEAD_LETTER_QUEUE_URL: "DEAD_LETTER_QUEUE_URL",
    Output.DEAD_LETTER_BUCKET: "DEAD_LETTER_BUCKET",
}
_OPTIONS = {
    Output.LEDGER_TABLE: "ledger_table",
    Output.DEAD_LETTER_QUEUE_URL: "queue_url",
    Output.DEAD_LETTER_BUCKET: "bucket",
    Output.FUNCTION_NAME: "function",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every operator's command has."""
    group = parser.add_argument_group("which deployment")
    group.add_argument("--stack", metavar="NAME", help=f"the CloudFormation stack (default: {STACK_NAME})")
    group.add_argument("--profile", help="profile of the AWS configuration")
    group.add_argument("--region", help="AWS region")
    group.add_argument("--endpoint-url", metavar="URL", help="endpoint of all services, such as aggregator local's")
    group.add_argument("--definitions", type=Path, metavar="FILE", help="definitions file (default: the bundled one)")
    group.add_argument("--ledger-table", metavar="NAME", help="in place of the stack's ledger table")
    group.add_argument("--queue-url", metavar="URL", help="in place of the stack's dead-letter queue")
    group.add_argument("--bucket", metavar="NAME", help="in place of the stack's dead-letter bucket")
    group.add_argument("--function", metavar="NAME", help="in place of the stack's function")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, for programs")


@dataclass(frozen=True)
class Resources:
    """One deployment, looked up when it is first asked for.

    Attributes:
        options: the parsed command line.
        environment: where the function's variables and AWS settings are read from.
    """

    options: argparse.Namespace
    environment: Mapping[str, str]

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Resources":
        """The deployment that a command line means."""
        return cls(options, os.environ)

    @cached_property
    def definitions_file(self) -> Path:
        """`--definitions`, `AGGREGATIONS_FILE`, or the bundled file."""
        return self.options.definitions or Path(self.environment.get("AGGREGATIONS_FILE") or DEFINITIONS_FILE)

    @cached_property
    def definitions(self) -> Definitions:
        """The definitions.

        Raises:
            DefinitionError: the file holds a mistake.
        """
        return load_definitions(self.definitions_file)

    @cached_property
    def ledger_table(self) -> str:
        """The ledger's name."""
        return self.name(Output.LEDGER_TABLE)

    @cached_property
    def queue_url(self) -> str:
        """The dead-letter queue's URL."""
        return self.name(Output.DEAD_LETTER_QUEUE_URL)

    @cached_property
    def bucket(self) -> str:
        """The dead-letter bucket's name."""
        return self.name(Output.DEAD_LETTER_BUCKET)

    @cached_property
    def function(self) -> str:
        """The function's name."""
        return self.name(Output.FUNCTION_NAME)

    @cached_property
    def ledger_retention_days(self) -> int:
        """How long receipts are kept."""
        text = self._found(Output.LEDGER_RETENTION_DAYS)
        return int(text) if text and text.isdecimal() else LEDGER_RETENTION_DAYS

    def name(self, output: Output) -> str:
        """One name, from wherever it is given.

        Raises:
            CommandError: from nowhere.
        """
        found = self._found(output)
        if found is None:
            option = _OPTIONS.get(output)
            alternative = f" or --{option.replace('_', '-')}" if option else ""
            raise CommandError(f"the stack has no output {output}: give --stack{alternative}")
        return found

    def _found(self, output: Output) -> str | None:
        option = getattr(self.options, _OPTIONS.get(output, ""), None)
        if option:
            return str(option)
        variable = self.environment.get(_VARIABLES.get(output, ""))
        if variable and not self.options.stack:
            return variable
        return self._outputs.get(output.value)

    @cached_property
    def _outputs(self) -> dict[str, str]:
        stack = self.options.stack or STACK_NAME
        try:
            (description,) = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"]
        except ClientError as error:
            if "does not exist" in str(error):
                raise CommandError(
                    f"there is no stack {stack!r} here: give --stack, --profile or --region, or set the function's "
                    "environment variables as aggregator local prints them"
                ) from error
            raise
        return {output["OutputKey"]: output["OutputValue"] for output in description.get("Outputs", [])}

    @cached_property
    def _session(self) -> boto3.Session:
        return boto3.Session(profile_name=self.options.profile, region_name=self.options.region)

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}

    def client(self, service: str) -> Any:
        """The boto3 client of a service; throttled calls are repeated, patiently."""
        if service not in self._clients:
            make: Callable[..., Any] = self._session.client
            config = Config(
                retries={"mode": "standard", "total_max_attempts": 8},
                connect_timeout=5,
                read_timeout=900 if service == "lambda" else 30,
                max_pool_connections=20,
            )
            self._clients[service] = make(service, endpoint_url=self.options.endpoint_url, config=config)
        return self._clients[service]

    @property
    def dynamodb(self) -> "DynamoDBClient":
        """The DynamoDB client."""
        client: DynamoDBClient = self.client("dynamodb")
        return client

    @property
    def sqs(self) -> "SQSClient":
        """The SQS client."""
        client: SQSClient = self.client("sqs")
        return client

    @property
    def s3(self) -> "S3Client":
        """The S3 client."""
        client: S3Client = self.client("s3")
        return client


def explain_aws_error(error: BotoCoreError | ClientError) -> str:
    """One line that says what AWS refused and, where that is clear, what to do."""
    if not isinstance(error, ClientError):
        return f"AWS cannot be called: {error}"
    code = error.response.get("Error", {}).get("Code", "")
    hints = {
        "AccessDenied": "your credentials lack a permission",
        "AccessDeniedException": "your credentials lack a permission",
        "AWS.SimpleQueueService.NonExistentQueue": "is the queue URL right, and the region?",
        "QueueDoesNotExist": "is the queue URL right, and the region?",
        "ExpiredToken": "sign in again",
        "ExpiredTokenException": "sign in again",
        "ResourceNotFoundException": "is the name right, and the region?",
    }
    hint = hints.get(code)
    return f"{error} ({hint})" if hint else str(error)

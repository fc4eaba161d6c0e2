"""Where the deployed worker is: clients, and the names of its tables, queue, bucket and function.

Names come, in this order, from the command's options, from the outputs of the stack given with `--stack`, from the
function's own environment variables, and from the outputs of the stack under its default name. An option that names a
table, queue, bucket or function stands for another deployment than the stack's, whose other names do not go with it: a
stack is then asked only if it is named.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError  # noqa: A004 - botocore's

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.aggregations.definitions import load_definitions, source_of_stream, with_keys_of
from aggregation_worker.deployment.settings import LEDGER_RETENTION_DAYS, STACK_NAME, Output
from aggregation_worker.ledger.catalogue import Catalogue, read_catalogue
from aggregation_worker.operations.deployed import deployed_definitions
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

    @property
    def definitions_file(self) -> Path:
        """`--definitions`, `AGGREGATIONS_FILE`, or what is in the deployed function's bundle."""
        return self._deployed[0]

    @cached_property
    def _deployed(self) -> tuple[Path, Mapping[str, str]]:
        """The definitions file, and the function's variables that say what it is about."""
        variables: Mapping[str, str] = {} if self.options.stack else self.environment
        file = self.options.definitions or variables.get("AGGREGATIONS_FILE")
        return (Path(file), variables) if file else deployed_definitions(self.client("lambda"), self.function)

    @cached_property
    def definitions(self) -> Definitions:
        """What is deployed, with the source's keys.

        Raises:
            DefinitionError: the file holds a mistake.
        """
        file, variables = self._deployed
        source = source_of_stream(variables.get("SOURCE_STREAM_ARN"))
        definitions = load_definitions(file, source, variables.get("TABLE_PREFIX", ""))
        if definitions.source.keys:
            return definitions
        return with_keys_of(definitions, self.dynamodb.describe_table(TableName=definitions.source.table)["Table"])

    @cached_property
    def catalogue(self) -> Catalogue:
        """The ledger's catalogue, which the definitions do not contradict.

        Raises:
            DefinitionError: the file holds a mistake.
            CatalogueError: the file is not the deployed one.
        """
        definitions = self.definitions
        catalogue = read_catalogue(self.dynamodb, self.ledger_table)
        catalogue.check(definitions.aggregations)
        return catalogue

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
            if self.stands_alone:
                raise CommandError(f"no stack is asked where one of its names is given: give --stack{alternative}, too")
            raise CommandError(f"the stack has no output {output}: give --stack{alternative}")
        return found

    def _found(self, output: Output) -> str | None:
        option = getattr(self.options, _OPTIONS.get(output, ""), None)
        if option:
            return str(option)
        variable = self.environment.get(_VARIABLES.get(output, ""))
        if variable and not self.options.stack:
            return variable
        if self.stands_alone:
            return None
        return self._outputs.get(output.value)

    @property
    def stands_alone(self) -> bool:
        """Whether options name the deployment's parts, and no stack."""
        return not self.options.stack and any(getattr(self.options, option) for option in _OPTIONS.values())

    @cached_property
    def _outputs(self) -> dict[str, str]:
        """Those of one worker in the stack, named as in `Output`."""
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
        outputs = {output["OutputKey"]: output["OutputValue"] for output in description.get("Outputs", [])}
        return _of_one_worker(stack, outputs, self.options.worker)

    @cached_property
    def _session(self) -> boto3.Session:
        session = boto3.Session(profile_name=self.options.profile, region_name=self.options.region)
        name_missing_tables(session)
        return session

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}

    def client(self, service: str) -> Any:
        """The boto3 client of a service; throttled calls are repeated, patiently."""
        if service not in self._clients:
            make: Callable[..., Any] = self._session.client
            config = Config(
                retries={"mode": "standard", "total_max_attempts": 8},
                connect_timeout=3,
                read_timeout=900 if service == "lambda" else 30,
                max_pool_connections=20,
            )
            try:
                client = make(service, endpoint_url=self.options.endpoint_url, config=config)
                _ = urlsplit(client.meta.endpoint_url).port  # botocore looks at it only when it signs a request
            except BotoCoreError:
                raise
            except ValueError as error:  # of botocore and of urllib, about the URL
                raise CommandError(f"{error}: check --endpoint-url and AWS_ENDPOINT_URL") from error
            client.meta.events.register_first("needs-retry", _Reachability().give_up)
            self._clients[service] = client
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


def _of_one_worker(stack: str, outputs: Mapping[str, str], wanted: str | None) -> dict[str, str]:
    """The outputs of one worker, by their own names.

    The CDK puts a construct's ids before the names of its outputs, and eight digits of a hash after them; the stack of
    the CDK app, which is one worker, has them as they are.

    Raises:
        CommandError: the stack has no such worker, or several.
    """
    mark = re.compile(rf"(.*){Output.EVENT_SOURCE_MAPPING}(?:[0-9A-F]{{8}})?")
    workers = sorted(match[1] for match in map(mark.fullmatch, outputs) if match)
    if wanted is None and len(workers) > 1:
        raise CommandError(f"stack {stack!r} has several workers: give --worker {' or '.join(workers)}")
    if wanted is not None and wanted not in workers:
        raise CommandError(f"stack {stack!r} has no worker {wanted!r}, only {', '.join(workers) or 'no worker at all'}")
    prefix = wanted or "".join(workers)
    own = re.compile(rf"{prefix}(.+?)(?:[0-9A-F]{{8}})?")
    return {match[1]: value for key, value in outputs.items() if (match := own.fullmatch(key))}


class _Reachability:
    """Ends the retries of a client that has never been answered because it cannot connect.

    Once it has been, a connection that fails is a passing fault, and repeated as patiently as throttled calls are.
    """

    def __init__(self) -> None:
        self._answered = False

    def give_up(self, *, response: Any, caught_exception: Exception | None, **_: Any) -> None:
        """Raises what the call has met, before botocore's own handler makes a retry of it."""
        self._answered = self._answered or response is not None
        if not self._answered and isinstance(caught_exception, ConnectionError):
            raise caught_exception


def is_on_this_machine(client: Any) -> bool:
    """Whether a client's endpoint is DynamoDB Local or a pipeline on this machine, and not AWS.

    AWS is never behind a loopback address: it refuses requests that are signed for another host.
    """
    host = urlsplit(client.meta.endpoint_url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def name_missing_tables(session: boto3.Session) -> None:
    """Has errors of DynamoDB name the tables that were asked for: its own "Requested resource not found" does not."""

    def keep_request(params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["request"] = params

    def name_tables(parsed: Mapping[str, Any], context: Mapping[str, Any], **_: Any) -> None:
        error = parsed.get("Error", {})
        if error.get("Code") == "ResourceNotFoundException":
            tables = ", ".join(sorted(_tables_of(context.get("request", {}))))
            error["Message"] = f"{error['Message']} ({tables})"

    session.events.register("before-parameter-build.dynamodb", keep_request)
    session.events.register("after-call.dynamodb", name_tables)


def _tables_of(request: Mapping[str, Any]) -> set[str]:
    """The tables that a request to DynamoDB names."""
    actions = [action for item in request.get("TransactItems", ()) for action in item.values()]
    named = {part["TableName"] for part in (request, *actions) if "TableName" in part}
    return named | set(request.get("RequestItems", ()))

"""What ends a command: one line that says what is wrong, and status 2; a mistake of the program keeps its traceback."""

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.exceptions
import botocore.loaders
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import ClientError

from aggregation_worker import handler
from aggregation_worker.errors import WorkerError
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.environment import environment_of
from aggregation_worker.operations.cli import build_parser, main
from aggregation_worker.operations.replay import worker_environment
from aggregation_worker.operations.replaying import SendError, in_process
from aggregation_worker.operations.resources import Resources
from tests.records import insert

EXPLAIN = "explain item_count_by_date item1 2024-07-15"
OF_A_DEPLOYMENT = [
    "dead-letters",
    "replay",
    "replay --in-process",
    EXPLAIN,
    "backfill",
    "reconcile",
    "retire item_count_by_date",
    "verify",
    "status",
]
OF_DEFINITIONS = ["local", "replay", "replay --in-process", EXPLAIN, "backfill", "reconcile", "verify"]
SOURCE = "Order_by_item"
STREAM = f"arn:aws:dynamodb:us-east-1:123456789012:table/{SOURCE}/stream/2026-01-01T00:00:00.000"
LOADER = botocore.loaders.Loader()

Answer = Callable[[AWSPreparedRequest], AWSResponse]


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's AWS settings; the sample's definitions. Botocore's models are read once, which takes it longest."""
    monkeypatch.setattr("botocore.session.create_loader", lambda _: LOADER)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AGGREGATIONS_FILE", str(SAMPLE_FILE))


@pytest.fixture
def signed_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A region and credentials."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function's variables, so that no stack is asked for names."""
    for name, value in {
        "LEDGER_TABLE": "the-ledger",
        "LEDGER_RETENTION_DAYS": "60",
        "DEAD_LETTER_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/dead-letters",
        "DEAD_LETTER_BUCKET": "dead-letters",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def aws(signed_in: None, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], None]:
    """Puts something in the place of AWS, on the far side of botocore."""

    def put(answer: Answer) -> None:
        monkeypatch.setattr("botocore.httpsession.URLLib3Session.send", lambda _, request: answer(request))
        monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)

    return put


def answer(request: AWSPreparedRequest, status: int, text: str) -> AWSResponse:
    class Body:
        def stream(self, **_: Any) -> Iterator[bytes]:
            yield text.encode()

    return AWSResponse(request.url, status, HTTPHeaders(), Body())


def line_of(command: str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()

    status = main([*command.split(), *options])

    captured = capsys.readouterr()
    assert (status, captured.out) == (2, ""), captured
    (line,) = captured.err.splitlines()
    return line


@pytest.mark.parametrize("command", OF_A_DEPLOYMENT)
def test_no_region__is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of(command, capsys) == "aggregator: no AWS region is set: give --region, or set AWS_DEFAULT_REGION"


@pytest.mark.parametrize("command", OF_A_DEPLOYMENT)
def test_no_credentials__is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(command, capsys, "--region", "us-east-1")

    assert line == "aggregator: no AWS credentials were found: sign in, or give --profile"


@pytest.mark.parametrize("command", OF_A_DEPLOYMENT)
def test_unknown_profile__is_named(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = line_of(command, capsys, "--profile", "nobody")

    assert line == "aggregator: AWS cannot be called: The config profile (nobody) could not be found"


@pytest.mark.parametrize("command", OF_A_DEPLOYMENT)
def test_endpoint_that_is_not_a_url__is_one_line(
    command: str, signed_in: None, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(command, capsys, "--endpoint-url", "nonsense")

    assert line == "aggregator: Invalid endpoint: nonsense: check --endpoint-url and AWS_ENDPOINT_URL"


@pytest.mark.parametrize("url", ["", "http://", "http://[", "http://host:port", "http://127.0.0.1:99999"])
def test_endpoint_with_a_wrong_part__is_one_line(url: str, signed_in: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert line_of("verify", capsys, "--endpoint-url", url).endswith(": check --endpoint-url and AWS_ENDPOINT_URL")


@pytest.mark.parametrize("command", OF_A_DEPLOYMENT)
def test_endpoint_that_does_not_answer__is_named(
    command: str, aws: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(request: AWSPreparedRequest) -> AWSResponse:
        raise botocore.exceptions.EndpointConnectionError(endpoint_url=request.url)

    aws(unreachable)

    line = line_of(command, capsys, "--endpoint-url", "http://127.0.0.1:9")

    assert line.startswith(
        'aggregator: AWS cannot be called: Could not connect to the endpoint URL: "http://127.0.0.1:9/'
    )


def table_without_a_stack(request: AWSPreparedRequest) -> AWSResponse:
    """The source table is there and nothing else."""
    if "DescribeTable" in str(request.headers.get("X-Amz-Target")):
        table = {
            "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
            "LatestStreamArn": STREAM,
        }
        return answer(request, 200, json.dumps({"Table": table}))
    error = "<Code>ValidationError</Code><Message>Stack with id mine does not exist</Message>"
    return answer(request, 400, f"<ErrorResponse><Error>{error}</Error></ErrorResponse>")


@pytest.mark.parametrize("command", OF_A_DEPLOYMENT)
def test_missing_stack__is_named(
    command: str, aws: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    aws(table_without_a_stack)

    line = line_of(command, capsys, "--stack", "mine")

    assert line.startswith("aggregator: there is no stack 'mine' here: give --stack, --profile or --region")


def test_endpoint_that_cannot_be_reached__is_tried_once_and_told(
    aws: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection takes three seconds until it is given up; a whole command less than ten."""
    tried: list[str] = []

    def nobody(request: AWSPreparedRequest) -> AWSResponse:
        tried.append(request.url)
        raise botocore.exceptions.ConnectTimeoutError(endpoint_url=request.url)

    aws(nobody)

    for command in OF_A_DEPLOYMENT:
        assert "AWS cannot be called: Connect timeout" in line_of(command, capsys)
        assert len(tried) == 1
        tried.clear()


def test_answer_that_is_not_of_aws__is_one_line(
    aws: Callable[[Answer], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a proxy's, which has no body."""
    aws(lambda request: answer(request, 403, ""))

    assert "what has answered is not AWS" in line_of(EXPLAIN, capsys)


def test_connection_that_fails_once_there_were_answers__is_tried_again(aws: Callable[[Answer], None]) -> None:
    tried: list[str] = []

    def fails(request: AWSPreparedRequest) -> AWSResponse:
        tried.append(request.url)
        if len(tried) == 1:
            return answer(request, 200, "{}")
        raise botocore.exceptions.ConnectTimeoutError(endpoint_url=request.url)

    aws(fails)
    client = Resources.of(build_parser().parse_args(["status"])).dynamodb
    client.list_tables()

    with pytest.raises(botocore.exceptions.ConnectTimeoutError):
        client.list_tables()

    assert len(tried) == 1 + 8


def no_table(request: AWSPreparedRequest) -> AWSResponse:
    """DynamoDB's answer about a table that is not there."""
    code = "com.amazonaws.dynamodb.v20120810#ResourceNotFoundException"
    return answer(request, 400, json.dumps({"__type": code, "message": "Requested resource not found"}))


@pytest.mark.parametrize(
    ("command", "table"),
    [
        (EXPLAIN, "item_count_by_date"),
        ("backfill", SOURCE),
        ("reconcile", SOURCE),
        ("retire x", "the-ledger"),
        ("verify", "the-ledger"),
    ],
)
def test_missing_table__is_named(
    command: str,
    table: str,
    aws: Callable[[Answer], None],
    deployment: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    aws(no_table)

    line = line_of(command, capsys)

    assert f"Requested resource not found ({table})" in line
    assert line.endswith("(is the name right, and the region?)")


def test_missing_table_of_a_worker_in_process__is_named(aws: Callable[[Answer], None], deployment: None) -> None:
    aws(no_table)
    handler._worker.cache_clear()
    resources = Resources.of(build_parser().parse_args(["replay"]))

    with (
        environment_of(worker_environment(resources)),
        pytest.raises(SendError, match=r"Requested resource not found \(the-ledger\)"),
    ):
        in_process()([insert()])


def test_missing_tables_of_one_request__are_all_named(aws: Callable[[Answer], None]) -> None:
    aws(no_table)
    client = Resources.of(build_parser().parse_args(["status"])).dynamodb
    key = {"id": {"S": "1"}}

    with pytest.raises(ClientError, match=r"\(one, two\)"):
        client.batch_get_item(RequestItems={"two": {"Keys": [key]}, "one": {"Keys": [key]}})
    with pytest.raises(ClientError, match=r"\(one, two\)"):
        client.transact_write_items(
            TransactItems=[{"Put": {"TableName": "two", "Item": key}}, {"Delete": {"TableName": "one", "Key": key}}]
        )


@pytest.mark.parametrize("command", OF_DEFINITIONS)
@pytest.mark.parametrize("content", [None, b"\xff", b"[source"], ids=["missing", "not UTF-8", "not TOML"])
def test_definitions_that_cannot_be_read__are_named(
    command: str,
    content: bytes | None,
    signed_in: None,
    deployment: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)

    line = line_of(command, capsys, "--definitions", str(file))

    assert line.startswith("aggregator: ")
    assert "mine.toml" in line


@pytest.fixture(params=["demo", "local", *(command for command in OF_A_DEPLOYMENT if "--" not in command)])
def command_that(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], list[str]]:
    """Each command, made to raise an error; gives its arguments."""
    arguments: list[str] = request.param.split()
    module = importlib.import_module(f"aggregation_worker.operations.{arguments[0].replace('-', '_')}")

    def raises(error: Exception) -> list[str]:
        def run(_: Any) -> int:
            raise error

        monkeypatch.setattr(module, "run", run)
        return arguments

    return raises


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/spool"), "No space left on device: /tmp/spool"),
        (OSError("the disk is gone"), "the disk is gone"),
        (WorkerError("what is wrong: what to do"), "what is wrong: what to do"),
    ],
    ids=["full disk", "full disk under a file", "other", "on purpose"],
)
def test_error_of_every_command__is_one_line(
    error: Exception,
    line: str,
    command_that: Callable[[Exception], list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command_that(error)) == 2
    assert capsys.readouterr().err == f"aggregator: {line}\n"


def test_mistake_of_the_program__keeps_its_traceback(command_that: Callable[[Exception], list[str]]) -> None:
    with pytest.raises(ZeroDivisionError):
        main(command_that(ZeroDivisionError("a mistake")))


def test_full_disk_under_the_output__is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, _: str) -> None:
            """Kept in a buffer, as long as there is room."""

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("aggregation_worker.operations.status.run", lambda _: print("a fact") or 0)
    monkeypatch.setattr(sys, "stdout", Full())

    assert main(["status"]) == 2
    assert capsys.readouterr().err == "aggregator: No space left on device\n"

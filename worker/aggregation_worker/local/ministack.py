"""ministack, an AWS emulator, as a server on a loopback port of this machine: DynamoDB and its streams, SQS, S3.

It needs no account, no Docker and no network. All state is in memory or in a temporary directory, and gone afterwards.
"""

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, overload

import boto3
import botocore.session
from botocore.config import Config

from aggregation_worker.errors import WorkerError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

REQUIREMENT = "ministack==1.5.33"
"""As the extra `local` has it: the package with the extra itself is in no index."""

REGION = "us-east-1"
_LOOPBACK = "127.0.0.1"
# ministack takes a 12-digit access key for the account.
_ACCESS_KEY = "000000000000"
_SECRET_KEY = "local"  # noqa: S105 - never checked
_STOP_SECONDS = 5.0
_PORT_ATTEMPTS = 3
_OUTPUT_TAIL_LINES = 20


class MinistackError(WorkerError):
    """ministack is not installed or did not start; the message says what to do, or how its output ended."""


class _PortTakenError(Exception):
    """Another process took the port between the choice and the start."""


def _session_without_profile() -> boto3.Session:
    no_profile = {
        name: (None, None, default, None)
        for name, default in (("profile", None), ("config_file", os.devnull), ("credentials_file", os.devnull))
    }
    return boto3.Session(
        aws_access_key_id=_ACCESS_KEY,
        aws_secret_access_key=_SECRET_KEY,
        region_name=REGION,
        botocore_session=botocore.session.Session(session_vars=no_profile),
    )


@dataclass(frozen=True, slots=True)
class Ministack:
    """A running ministack.

    Attributes:
        endpoint: the one URL of all services, such as `http://127.0.0.1:49153`.
    """

    endpoint: str
    # Making one takes longer than making a client of it.
    _session: boto3.Session = field(default_factory=_session_without_profile, repr=False, compare=False)
    _session_lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which botocore, the AWS CLI and the worker use this server and nothing else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": _ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCOUNT_ID_ENDPOINT_MODE": "disabled",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @overload
    def client(self, service: Literal["dynamodb"]) -> "DynamoDBClient": ...
    @overload
    def client(self, service: Literal["dynamodbstreams"]) -> "DynamoDBStreamsClient": ...
    @overload
    def client(self, service: Literal["s3"]) -> "S3Client": ...
    @overload
    def client(self, service: Literal["sqs"]) -> "SQSClient": ...
    def client(self, service: str) -> Any:
        """A boto3 client of this server, whatever profile, proxy or endpoint the user has configured for AWS.

        Creating clients from several threads is safe.
        """
        config = Config(
            account_id_endpoint_mode="disabled",
            connect_timeout=5,
            max_pool_connections=64,
            proxies={},
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 4},
            s3={"addressing_style": "path"},
        )
        with self._session_lock:
            return self._session.client(service, endpoint_url=self.endpoint, config=config)  # type: ignore[call-overload]  # any service's name


@contextmanager
def running_ministack(*, port: int | None = None, start_timeout_seconds: float = 30) -> Iterator[Ministack]:
    """Starts ministack on a loopback port and stops it at the end.

    The server also ends when this process ends in any other way, killed included.

    Args:
        port: a free one if not given.
        start_timeout_seconds: how long the server may take until it answers.

    Raises:
        MinistackError: it is not installed, its port is taken, or it did not answer in time.
    """
    if importlib.util.find_spec("ministack") is None:
        raise MinistackError(
            "ministack, which plays AWS on this machine, is not installed: run uv sync in a clone of the repository, "
            f"or pip install {REQUIREMENT} elsewhere"
        )
    with (
        tempfile.TemporaryDirectory(prefix="aggregator-", ignore_cleanup_errors=True) as state_directory,
        tempfile.TemporaryFile() as output,
    ):
        process, endpoint = _start(state_directory, output, port, start_timeout_seconds)
        try:
            yield Ministack(endpoint)
        finally:
            _stop(process)


def _start(
    state_directory: str, output: IO[bytes], wanted_port: int | None, timeout_seconds: float
) -> tuple[subprocess.Popen[bytes], str]:
    for _ in range(_PORT_ATTEMPTS if wanted_port is None else 1):
        port = _free_port() if wanted_port is None else wanted_port
        token = uuid.uuid4().hex
        process = _spawn(state_directory, output, port, token)
        try:
            _await_healthy(process, output, port, token, timeout_seconds)
        except _PortTakenError:
            _stop(process)
        except BaseException:
            _stop(process)
            raise
        else:
            return process, f"http://{_LOOPBACK}:{port}"
    if wanted_port is None:
        raise MinistackError(f"ministack found its port taken {_PORT_ATTEMPTS} times: try again")
    raise MinistackError(f"port {wanted_port} of {_LOOPBACK} is in use: end what listens there, or choose another port")


def _spawn(state_directory: str, output: IO[bytes], port: int, token: str) -> subprocess.Popen[bytes]:
    nowhere = Path(state_directory, "no-docker.sock")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | {
        "BIND_HOST": _LOOPBACK,
        "GATEWAY_PORT": str(port),
        "MINISTACK_ACCOUNT_ID": _ACCESS_KEY,
        "MINISTACK_REGION": REGION,
        # Answered by the health page: tells this server from another on the same port.
        "MINISTACK_EDITION": token,
        "LOG_LEVEL": "WARNING",
        "PERSIST_STATE": "0",
        "S3_PERSIST": "0",
        "STATE_DIR": state_directory,
        "S3_DATA_DIR": str(Path(state_directory, "s3")),
        "TMPDIR": state_directory,
        # Listeners on fixed ports, which take time to start and which a second server could not open.
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        # With a Docker socket ministack removes the containers of other ministacks when it starts and stops.
        "DOCKER_HOST": f"unix://{nowhere}",
    }
    script = Path(__file__).with_name("ministack_process.py")
    # -P keeps this directory, with its own ministack module, off the import path. A session of its own keeps Ctrl-C
    # away from the server while this process still uses it.
    return subprocess.Popen(  # noqa: S603 - this interpreter, without a shell
        [sys.executable, "-P", str(script), state_directory],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _await_healthy(
    process: subprocess.Popen[bytes], output: IO[bytes], port: int, token: str, timeout_seconds: float
) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = _tail(output)
            if "in use" in tail:
                raise _PortTakenError
            raise MinistackError(f"ministack ended with status {process.returncode} at its start:\n{tail}")
        edition = _health(port).get("edition")
        if edition == token:
            return
        if edition is not None:
            raise _PortTakenError
        time.sleep(0.02)
    raise MinistackError(f"ministack did not answer within {timeout_seconds} s:\n{_tail(output)}")


def _health(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=0.5)
    try:
        connection.request("GET", "/_ministack/health")
        health = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        connection.close()
    return health if isinstance(health, dict) else {}


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server: it stops when its standard input closes, and is killed if that takes too long."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(output: IO[bytes]) -> str:
    output.seek(0)
    lines = output.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_OUTPUT_TAIL_LINES:]) or "(no output)"

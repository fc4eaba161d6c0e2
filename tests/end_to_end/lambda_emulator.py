"""Runs the packaged function as Lambda would: AWS's runtime interface emulator and AWS's Python runtime client.

    with running_function(bundle, {"LEDGER_TABLE": "ledger", ...}) as function:
        function.invoke(event)

Both are obtained once, from PyPI, into a cache folder outside the repository: the emulator is a binary in the wheel of
the SAM CLI, the client is awslambdaric. The function runs on a Python of Lambda's version with nothing but its bundle
and the client on its path.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aggregation_worker.deployment import settings as deployment
from aggregation_worker_cdk.bundle import PYTHON_VERSION, python_of_the_runtime
from tests.dynamodb_local import cache_folder

# The wheel whose hash this is holds the emulator for both architectures.
_SAM_CLI = "aws-sam-cli==1.170.0 --hash=sha256:24ebaf5ecba38dc1758089968cb89ab61e124b84e92a344fc7a2771a47f4d0bf"
_EMULATORS = {"x86_64": "aws-lambda-rie-x86_64", "aarch64": "aws-lambda-rie-arm64"}
# awslambdaric and what it needs, made with
#   echo awslambdaric==4.2.2 | uv pip compile - --python-version 3.13 --generate-hashes --no-header --no-annotate
_CLIENT = Path(__file__).with_name("runtime-client.txt")
_SECONDS_TO_START = 120
_SECONDS_TO_INSTALL = 300


class EmulatorUnavailableError(Exception):
    """The machine lacks what the emulator needs; the message says what to install."""


class FunctionError(Exception):
    """The function raised, was ended, or did not start; the message is Lambda's answer or the log."""


@dataclass(slots=True)
class RunningFunction:
    """A function that waits for events; one invocation at a time.

    Attributes:
        pid: the emulator's process id.
        log: the file that emulator and function write to.
        init_ms: how long the runtime took to import the function, in milliseconds; `None` before the first invocation.
    """

    url: str
    pid: int
    log: Path
    init_ms: float | None = None

    def invoke(self, event: Any) -> Any:
        """Sends one event and returns the answer.

        Raises:
            FunctionError: the function raised or was ended at its timeout, to which the emulator answers 200; or its
                runtime ended.
        """
        request = urllib.request.Request(self.url, json.dumps(event).encode())
        try:
            with _no_proxy.open(request, timeout=deployment.FUNCTION_TIMEOUT_SECONDS + 10) as response:
                answer = json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                raise FunctionError(f"HTTP {error.code}:\n{self.log.read_text()}") from error
        if self.init_ms is None:
            self.init_ms = self._init_ms()
        if isinstance(answer, dict) and "errorType" in answer:
            raise FunctionError(json.dumps(answer))
        return answer

    def log_lines(self) -> list[dict[str, Any]]:
        """The JSON lines of the log: what the function logged, metrics included."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _init_ms(self) -> float | None:
        # The Init Duration in its REPORT line is not the init's.
        found = re.search(r"INIT REPORT\(durationMs: ([\d.]+)", self.log.read_text())
        return float(found[1]) if found else None


_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running_function(bundle: Path, environment: Mapping[str, str]) -> Iterator[RunningFunction]:
    """Starts the function in `bundle` with the settings in `environment`, and stops it at the end.

    Raises:
        EmulatorUnavailableError: there is no Python of Lambda's version here, or it is no Linux.
        FunctionError: the emulator did not start.
    """
    python, emulator, client = _obtain()
    with tempfile.TemporaryDirectory(prefix="lambda-emulator-") as folder:
        log = Path(folder) / "log"
        port, runtime_api_port = _free_port(), _free_port()
        command = [
            *(str(emulator), "--log-level", "info"),
            *("--runtime-api-address", f"127.0.0.1:{runtime_api_port}"),
            *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
            *(python, "-m", "awslambdaric", "aggregation_worker.handler.lambda_handler"),
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=bundle,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_lambda_environment(bundle, client) | dict(environment),
                start_new_session=True,
            )
        try:
            _wait_for(port, process, log)
            yield RunningFunction(
                f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations", process.pid, log
            )
        finally:
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _lambda_environment(bundle: Path, client: Path) -> dict[str, str]:
    """What Lambda sets, and no more: nothing of the machine that runs the test."""
    return {
        "PATH": os.defpath,
        "LAMBDA_TASK_ROOT": str(bundle),
        "PYTHONPATH": os.pathsep.join((str(bundle), str(client))),
        # Not set in Lambda, where the bundle cannot be written to.
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_LAMBDA_FUNCTION_NAME": "aggregation-worker",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(deployment.FUNCTION_TIMEOUT_SECONDS),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(deployment.FUNCTION_MEMORY_MB),
        "AWS_LAMBDA_LOG_FORMAT": "JSON",
        "AWS_LAMBDA_LOG_LEVEL": "INFO",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "000000000000",
        "AWS_SECRET_ACCESS_KEY": "local",
        # Else DynamoDB's host name is made of the account id.
        "AWS_ACCOUNT_ID_ENDPOINT_MODE": "disabled",
    }


def _obtain() -> tuple[str, Path, Path]:
    """The interpreter, the emulator and the folder of the runtime client."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _EMULATORS:
        raise EmulatorUnavailableError("the Lambda runtime interface emulator needs Linux on x86_64 or aarch64")
    python = python_of_the_runtime()
    if python is None:
        raise EmulatorUnavailableError(
            f"the packaged function needs Python {PYTHON_VERSION}: install it (for instance with "
            f"`uv python install {PYTHON_VERSION}`) and make sure that it is on PATH"
        )
    caches = cache_folder().parent / "lambda-emulator"
    emulator = caches / _SAM_CLI.split(maxsplit=1)[0] / _EMULATORS[machine]
    if not emulator.exists():
        with _installed(python, _SAM_CLI) as packages:
            binary = packages / "samcli" / "local" / "rapid" / emulator.name
            binary.chmod(0o755)
            _put_in_place(binary, emulator)
    requirements = _CLIENT.read_text()
    version = hashlib.sha256(requirements.encode()).hexdigest()[:12]
    client = caches / f"awslambdaric-{version}-python{PYTHON_VERSION}-{machine}"
    if not client.exists():
        with _installed(python, requirements) as packages:
            _put_in_place(packages, client)
    return python, emulator, client


@contextlib.contextmanager
def _installed(python: str, requirements: str) -> Iterator[Path]:
    """Installs packages by hash into a folder that is there until the end."""
    caches = cache_folder().parent
    caches.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=caches, prefix="install-", ignore_cleanup_errors=True) as scratch:
        listed, target = Path(scratch, "requirements.txt"), Path(scratch, "packages")
        listed.write_text(requirements)
        uv = shutil.which("uv")
        installer = [uv, "pip", "install", "--python", python] if uv else [python, "-m", "pip", "install"]
        options = ["--quiet", "--no-deps", "--require-hashes", "--target", str(target), "--requirement", str(listed)]
        subprocess.run([*installer, *options], check=True, timeout=_SECONDS_TO_INSTALL)
        yield target


def _put_in_place(made: Path, place: Path) -> None:
    """Complete or not at all; another process may have been quicker."""
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        made.rename(place)
    except OSError:
        if not place.exists():
            raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise FunctionError(f"the emulator did not start:\n{log.read_text()}")

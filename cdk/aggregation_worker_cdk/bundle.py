"""What is uploaded as a function: its code, the definitions file and the pinned dependencies, without Docker.

Everything installed is pure Python, so the same bundle runs on Lambda's arm64 and on the machine that tests it. boto3
is in it, pinned like the rest, since the runtime's own is another version tomorrow. Two things make the worker's cold
start quick: bytecode of the runtime's own version (imports take 0.18 s instead of 0.46), and of botocore's service
models only those that it uses (5.7 MB to fetch instead of 21). tests/end_to_end prints both figures.
"""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import jsii
from aws_cdk import aws_lambda as lambda_

import aggregation_worker
from aggregation_worker.errors import WorkerError

RUNTIME = lambda_.Runtime.PYTHON_3_13
ARCHITECTURE = lambda_.Architecture.ARM_64
PYTHON_VERSION = "3.13"

PACKAGE = Path(aggregation_worker.__file__).parent
# Pinned with hashes, in the versions that the tests ran with, without the names of registries; cdk/README.md, "The
# functions' bundles", has the command that makes it again. Only the `aggregator` command needs rich.
REQUIREMENTS = Path(__file__).with_name("requirements.txt")

_SECONDS_TO_INSTALL = 300
_SECONDS_TO_SAY = 30
# Where Lambda unpacks it, for the file names in tracebacks.
_TASK_ROOT = "/var/task"


class BundlingError(WorkerError):
    """The bundle could not be made; the message says what is missing, or what the installer said."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What one function's bundle holds.

    Attributes:
        folders: of the package, beside the modules at its top.
        services: of which it makes clients; the others' models are never read.
    """

    folders: frozenset[str]
    services: frozenset[str]


# Never the operators' command, the pipeline on one machine, or what is about deploying.
_WORKER_FOLDERS = frozenset({"streams", "aggregations", "ledger"})
WORKER_CONTENTS = Contents(_WORKER_FOLDERS, frozenset({"dynamodb", "s3", "sqs"}))
RECONCILE_CONTENTS = Contents(_WORKER_FOLDERS | {"reconciliation"}, frozenset({"dynamodb", "dynamodbstreams"}))


class FunctionBundling:
    """Makes the functions' bundles when the CDK asks for them.

    Attributes:
        error: why a bundle could not be made.
    """

    def __init__(self, definitions_file: Path) -> None:
        self._definitions_file = definitions_file
        self.error: BundlingError | None = None

    def code(self, contents: Contents = WORKER_CONTENTS) -> lambda_.Code:
        """A function's code. Its hash is that of all it is made from, so nothing is installed just to be compared.

        The CDK asks for the bundle when the code is bound to a function, unless it has one of this hash.
        """
        return lambda_.Code.from_asset(
            str(PACKAGE),
            asset_hash_type=cdk.AssetHashType.CUSTOM,
            asset_hash=asset_hash(self._definitions_file, contents),
            bundling=cdk.BundlingOptions(
                # Must be given, and is never used: bundling succeeds here or fails.
                image=RUNTIME.bundling_image,
                local=_LocalBundling(self, contents),
            ),
        )

    def make(self, contents: Contents, target: Path) -> None:
        """Makes one; see `bundle`."""
        try:
            bundle(self._definitions_file, target, contents)
        except BundlingError as error:
            self.error = error
            raise

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Raises what went wrong with a bundle as it was: on its way through JavaScript it loses its type."""
        try:
            yield
        except RuntimeError as error:
            if self.error is None:
                raise
            raise self.error from error


@jsii.implements(cdk.ILocalBundling)
class _LocalBundling:
    """One bundle, as the CDK asks for it."""

    def __init__(self, bundling: FunctionBundling, contents: Contents) -> None:
        self._bundling = bundling
        self._contents = contents

    def try_bundle(self, output_dir: str, *_: Any, **__: Any) -> bool:
        """Called by the CDK, which has no bundle of this hash yet.

        Raises:
            BundlingError: see there.
        """
        self._bundling.make(self._contents, Path(output_dir))
        return True


def bundle(definitions_file: Path, target: Path, contents: Contents = WORKER_CONTENTS) -> None:
    """Fills the folder `target` with what the function needs.

    Raises:
        BundlingError: the dependencies could not be installed, or not be compiled.
    """
    _install(target)
    _prune(target, contents.services)
    for path in files_of(contents):
        copy = target / PACKAGE.name / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    shutil.copyfile(definitions_file, target / "aggregations.toml")
    python = python_of_the_runtime()
    if python is None:
        sys.stderr.write(
            f"note: no Python {PYTHON_VERSION} was found, so the function is bundled without bytecode and starts about "
            "0.3 s later; install one and deploy again\n"
        )
    else:
        _compile(python, target)


def asset_hash(definitions_file: Path, contents: Contents = WORKER_CONTENTS) -> str:
    """SHA-256 of everything that the bundle is made from, this recipe included.

    Whether there is bytecode counts too, so that a bundle made where Python 3.13 is missing is replaced later; its
    content does not, because two machines can compile one source to different bytes.
    """
    digest = hashlib.sha256()
    inputs = [(path.relative_to(PACKAGE).as_posix(), path) for path in files_of(contents)]
    inputs += [("definitions", definitions_file), ("requirements", REQUIREMENTS), ("recipe", Path(__file__))]
    for name, path in inputs:
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    digest.update(",".join(sorted(contents.services)).encode())
    digest.update(b"compiled" if python_of_the_runtime() else b"not compiled")
    return digest.hexdigest()


@functools.cache
def python_of_the_runtime() -> str | None:
    """A Python interpreter of the runtime's version, or `None`: this one, from PATH, from uv or from pyenv."""
    return next(filter(_is_of_the_runtime, _interpreters()), None)


def _interpreters() -> Iterator[str]:
    name = f"python{PYTHON_VERSION}"
    yield sys.executable
    if found := shutil.which(name):
        yield found
    if uv := shutil.which("uv"):
        command = [uv, "python", "find", "--no-project", PYTHON_VERSION]
        yield _said(command, os.environ | {"UV_PYTHON_DOWNLOADS": "never"})
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob(f"versions/{PYTHON_VERSION}.*/bin/{name}"), reverse=True))


def _is_of_the_runtime(python: str) -> bool:
    """Asks it: what is on PATH can be a shim that finds nothing."""
    question = "import sys; print('%d.%d' % sys.version_info[:2])"
    return _said([python, "-c", question], os.environ) == PYTHON_VERSION


def _said(command: list[str], environment: Mapping[str, str]) -> str:
    """What a command prints; nothing if it cannot be run, or does not end."""
    try:
        return _completed(command, environment, _SECONDS_TO_SAY).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def files_of(contents: Contents) -> list[Path]:
    """The files of the package that one function gets."""
    folders = (PACKAGE / folder for folder in contents.folders)
    return sorted([*PACKAGE.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


def _install(target: Path) -> None:
    options = ["--target", str(target), "--requirement", str(REQUIREMENTS), "--require-hashes", "--no-deps", "--quiet"]
    if uv := shutil.which("uv"):
        platform = ["--python-platform", "aarch64-manylinux2014", "--python-version", PYTHON_VERSION]
        _run([uv, "pip", "install", *options, *platform, "--only-binary", ":all:", "--link-mode", "copy"])
    elif importlib.util.find_spec("pip") is not None:
        platform = ["--platform", "manylinux2014_aarch64", "--implementation", "cp", "--python-version", PYTHON_VERSION]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, *platform]
        _run([*command, "--only-binary=:all:", "--no-compile"])
    else:
        raise BundlingError(
            "the function's dependencies cannot be installed: neither uv nor pip was found; "
            "install uv (https://docs.astral.sh/uv/) and try again"
        )


def _prune(target: Path, services: Collection[str]) -> None:
    models = target / "botocore" / "data"
    for path in models.iterdir():
        if path.is_dir() and path.name not in services:
            shutil.rmtree(path)
    shutil.rmtree(target / "bin", ignore_errors=True)
    (target / ".lock").unlink(missing_ok=True)


def _compile(python: str, target: Path) -> None:
    """Compiles for the runtime; unchecked, since deployed files do not change and checking each costs time."""
    command = [python, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    _run([*command, "-s", str(target), "-p", _TASK_ROOT, str(target)])


def _run(command: list[str]) -> None:
    name = " ".join(map(os.path.basename, command[:3]))
    # Errors without colours, which the CDK CLI asks for; the same bytes in every run, as far as Python allows.
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    environment |= {"NO_COLOR": "1", "PYTHONHASHSEED": "0"}
    try:
        done = _completed(command, environment, _SECONDS_TO_INSTALL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BundlingError(f"the function could not be bundled: {name} did not end: {error}") from error
    if done.returncode != 0:
        raise BundlingError(f"the function could not be bundled: {name} said: {(done.stderr or done.stdout).strip()}")


def _completed(command: list[str], environment: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Raises: OSError, subprocess.TimeoutExpired."""
    # The linter would have every program written out; these are uv's and Pythons' on this machine, and there is no
    # shell. To be looked at again if a command is ever made of something that the user's files say.
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=seconds)  # noqa: S603

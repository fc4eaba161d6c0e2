"""The wheel as people get it: what is in it, and that it works in an environment of its own, from any folder."""

import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.end_to_end.conftest import CLEAN, ROOT, installed_programs

PACKAGES = (ROOT / "worker" / "aggregation_worker", ROOT / "cdk" / "aggregation_worker_cdk")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and the extra `local`, and nothing else."""
    return installed_programs(f"{wheel}[local]", folder=tmp_path_factory.mktemp("environment"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with somebody's modules, under names that the worker's modules had or have."""
    for name in ("worker", "aggregations", "operations", "handler"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('this is not your module')\n")
    return tmp_path


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=CLEAN, capture_output=True, text=True, check=False, timeout=120
    )


def test_wheel__holds_both_packages_and_nothing_else(wheel: Path) -> None:
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    sources = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files == sources
    for needed in ("aggregation_worker/local/sample.toml", "aggregation_worker_cdk/requirements.txt"):
        assert needed in files
    assert {"aggregation_worker/py.typed", "aggregation_worker_cdk/py.typed"} <= files


def test_installed_command__tells_its_version(installed: Path, folder: Path) -> None:
    by_name = run(folder, installed / "aggregator", "--version")
    as_module = run(folder, installed / "python", "-m", "aggregation_worker", "--version")

    assert by_name.stdout == as_module.stdout == f"aggregator {VERSION}\n", by_name.stderr + as_module.stderr


def test_installed_command__has_help(installed: Path, folder: Path) -> None:
    done = run(folder, installed / "aggregator", "--help")

    assert done.returncode == 0
    assert "reconcile" in done.stdout


def test_demo__runs_from_a_folder_with_modules_of_any_name(installed: Path, folder: Path) -> None:
    done = run(folder, installed / "aggregator", "demo")

    assert done.returncode == 0, done.stderr
    assert "Every total of the worker matches the source" in done.stdout


def test_local_without_definitions__asks_for_them(installed: Path, folder: Path) -> None:
    done = run(folder, installed / "aggregator", "local")

    assert done.returncode == 2
    assert done.stderr == ("aggregator: no definitions file: give --definitions FILE or set AGGREGATIONS_FILE\n")

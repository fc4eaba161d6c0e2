"""The bundle's recipe: what goes in, what its hash depends on, and what is said when it cannot be made.

That the bundle runs is shown in tests/end_to_end.
"""

import ast
import importlib.util
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker_cdk import bundle
from aggregation_worker_cdk.bundle import (
    RECONCILE_CONTENTS,
    REQUIREMENTS,
    WORKER_CONTENTS,
    BundlingError,
    Contents,
    asset_hash,
    files_of,
    python_of_the_runtime,
)

ROOT = Path(__file__).parents[2]
PACKAGE_ROOT = ROOT / "worker"


@pytest.fixture
def copied_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the worker that a test may change, in place of the real one."""
    copy = tmp_path / "aggregation_worker"
    shutil.copytree(bundle.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(bundle, "PACKAGE", copy)
    return copy


@pytest.fixture
def any_python() -> Iterator[None]:
    """Forgets which interpreter was found, before and after."""
    python_of_the_runtime.cache_clear()
    yield
    python_of_the_runtime.cache_clear()


def test_hash__does_not_depend_on_where_the_sources_are(copied_worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_copy = asset_hash(SAMPLE_FILE)

    monkeypatch.undo()

    assert of_the_copy == asset_hash(SAMPLE_FILE)


def test_hash__changes_with_what_is_bundled(copied_worker: Path, tmp_path: Path) -> None:
    before = asset_hash(SAMPLE_FILE)

    (copied_worker / "ledger" / "receipts.py").write_text("# changed")
    after_code = asset_hash(SAMPLE_FILE)
    other_definitions = tmp_path / "mine.toml"
    other_definitions.write_text("# changed")

    assert len({before, after_code, asset_hash(other_definitions)}) == 3


@pytest.mark.parametrize("contents", [WORKER_CONTENTS, RECONCILE_CONTENTS], ids=["worker", "reconcile"])
@pytest.mark.parametrize("file", ["deployment/settings.py", "operations/new.py", "local/new.py"])
def test_hash__does_not_change_with_what_is_not_bundled(file: str, contents: Contents, copied_worker: Path) -> None:
    before = asset_hash(SAMPLE_FILE, contents)

    (copied_worker / file).write_text("# changed")

    assert asset_hash(SAMPLE_FILE, contents) == before


def test_reconciliation__is_bundled_for_the_reconcile_only(copied_worker: Path) -> None:
    before = asset_hash(SAMPLE_FILE), asset_hash(SAMPLE_FILE, RECONCILE_CONTENTS)

    (copied_worker / "reconciliation" / "new.py").write_text("# changed")

    assert asset_hash(SAMPLE_FILE) == before[0]
    assert asset_hash(SAMPLE_FILE, RECONCILE_CONTENTS) != before[1]


@pytest.mark.parametrize(
    ("handler", "contents"),
    [
        ("aggregation_worker.handler", WORKER_CONTENTS),
        ("aggregation_worker.reconciliation.scheduled", RECONCILE_CONTENTS),
    ],
)
def test_bundle__holds_all_that_the_function_imports(handler: str, contents: Contents) -> None:
    """Also what it imports only when it runs: every `import` statement in what it reaches counts."""
    reached, waiting = set[str](), {handler}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting |= imported_by(module) - reached

    bundled = {module_of(file) for file in files_of(contents) if file.suffix == ".py"}
    assert reached <= bundled, reached - bundled
    assert not [
        module
        for module in reached
        if module.startswith(
            ("aggregation_worker.operations", "aggregation_worker.local", "aggregation_worker.deployment")
        )
    ]


def imported_by(module: str) -> set[str]:
    """The modules of the package that one of them imports, outside `if TYPE_CHECKING`."""
    tree = ast.parse(file_of(module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] == "aggregation_worker" and file_of(name).is_file()}


def file_of(module: str) -> Path:
    path = PACKAGE_ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE_ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_service_models__are_those_of_the_clients(tmp_path: Path) -> None:
    models = tmp_path / "botocore" / "data"
    for service in ("dynamodb", "dynamodbstreams", "s3", "sqs", "ec2"):
        (models / service).mkdir(parents=True)

    bundle._prune(tmp_path, WORKER_CONTENTS.services)
    of_the_worker = {path.name for path in models.iterdir()}
    (models / "dynamodbstreams").mkdir()
    bundle._prune(tmp_path, RECONCILE_CONTENTS.services)

    assert of_the_worker == {"dynamodb", "s3", "sqs"}
    assert {path.name for path in models.iterdir()} == {"dynamodb", "dynamodbstreams"}


def test_hash__tells_bytecode_from_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = set()
    for python in ("/usr/bin/python3.13", None):
        monkeypatch.setattr(bundle, "python_of_the_runtime", lambda python=python: python)
        hashes.add(asset_hash(SAMPLE_FILE))

    assert len(hashes) == 2


def test_requirements__are_pinned_hashed_and_name_no_host() -> None:
    text = REQUIREMENTS.read_text()

    requirements = re.split(r"\n(?=\S)", text.replace("\\\n", "").strip())
    assert all(re.match(r"[a-z0-9-]+==[\w.]+\s+--hash=sha256:[0-9a-f]{64}", line) for line in requirements)
    assert "//" not in text


def test_requirements__fit_the_projects_dependencies() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==([\w.]+)", REQUIREMENTS.read_text(), flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    for requirement in map(Requirement, project["dependencies"]):
        if requirement.name != "rich":
            assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert "rich" not in pins


def test_no_installer__is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(BundlingError, match=r"^the function's dependencies cannot .*neither uv nor pip was found; "):
        bundle.bundle(SAMPLE_FILE, tmp_path)


def test_failing_installer__is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho the registry is down >&2\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(uv))

    with pytest.raises(BundlingError, match=r"could not be bundled: uv pip install said: the registry is down"):
        bundle.bundle(SAMPLE_FILE, tmp_path / "target")


def test_without_uv__pip_installs_for_the_functions_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(bundle, "_run", commands.append)

    bundle._install(tmp_path)

    (command,) = commands
    assert command[:3] == [sys.executable, "-m", "pip"]
    for option in ("--require-hashes", "--no-deps", "--only-binary=:all:", "--no-compile"):
        assert option in command
    assert command[command.index("--platform") + 1] == "manylinux2014_aarch64"
    assert command[command.index("--python-version") + 1] == "3.13"


@pytest.mark.usefixtures("any_python")
def test_python_of_the_runtime__is_one_of_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shim, python = tmp_path / "shim", tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\necho 'pyenv: python3.13: command not found' >&2\nexit 127\n")
    python.write_text("#!/bin/sh\necho 3.13\n")
    for script in (shim, python):
        script.chmod(0o755)
    monkeypatch.setattr(bundle, "_interpreters", lambda: iter(["/nowhere/python", "", str(shim), str(python)]))

    assert python_of_the_runtime() == str(python)


@pytest.mark.usefixtures("any_python")
def test_no_python_of_the_runtime__is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_interpreters", lambda: iter(["/nowhere/python"]))

    assert python_of_the_runtime() is None


def test_uv_that_cannot_be_run__names_no_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / name) if name == "uv" else None)
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))

    assert list(bundle._interpreters()) == [sys.executable, ""]

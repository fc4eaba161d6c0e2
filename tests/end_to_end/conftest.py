"""What the end-to-end tests share: the synthesized assembly, and servers that play AWS."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest

from aggregation_worker.local.ministack import Ministack, running_ministack
from tests.dynamodb_local import DynamoDBLocal, DynamoDBLocalUnavailableError, running_dynamodb_local

ROOT = Path(__file__).parents[2]
CDK = ROOT / "cdk"
# Neither this project's environment nor its settings.
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("AWS_", "PYTHON", "VIRTUAL_ENV", "AGGREGATIONS_FILE"))
}


def missing(reason: object) -> NoReturn:
    """Skips for a reason that a person can do something about, or fails where nothing may be skipped."""
    if os.environ.get("REQUIRE_DYNAMODB_LOCAL") == "1":
        pytest.fail(f"{reason} (REQUIRE_DYNAMODB_LOCAL=1 forbids to skip)", pytrace=False)
    pytest.skip(str(reason))


def cdk_cli() -> str:
    """The CDK CLI with its version, as cdk/README.md tells people to call it."""
    versions: set[str] = set(re.findall(r"aws-cdk@[\w.]+", (CDK / "README.md").read_text()))
    assert len(versions) == 1, versions
    return versions.pop()


def cdk(
    *arguments: str, environment: dict[str, str] | None = None, folder: Path = CDK
) -> subprocess.CompletedProcess[str]:
    """Runs the CDK CLI in cdk/, or in another folder with an app, as a user does."""
    for tool, what in (("npx", "npx (it comes with Node.js)"), ("uv", "uv (https://docs.astral.sh/uv/)")):
        if shutil.which(tool) is None:
            missing(f"the CDK CLI needs {what}: install it and make sure that it is on PATH")
    no_account = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    no_account |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull}
    # Processes and requests of its own, which no test is about.
    no_account |= {"CDK_DISABLE_CLI_TELEMETRY": "true", "CDK_DISABLE_VERSION_CHECK": "true"}
    return subprocess.run(
        ["npx", "--yes", cdk_cli(), *arguments, "--no-notices"],
        cwd=folder,
        env=no_account | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def without_metric_math(assembly: Path, folder: Path) -> Path:
    """A copy of an assembly whose alarms on an expression watch its first metric: ministack knows no metric math."""
    copy = Path(shutil.copytree(assembly, folder))
    (file,) = copy.glob("*.template.json")
    template = json.loads(file.read_text())
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::CloudWatch::Alarm" and "Metrics" in resource["Properties"]:
            _, first, *_ = resource["Properties"].pop("Metrics")
            stat = first["MetricStat"]
            resource["Properties"] |= {**stat["Metric"], "Statistic": stat["Stat"], "Period": stat["Period"]}
    file.write_text(json.dumps(template))
    return copy


def uv(*arguments: str | Path) -> None:
    """Runs uv, which knows nothing of this project's environment."""
    if shutil.which("uv") is None:
        missing("the package is built with uv: install it (https://docs.astral.sh/uv/) and put it on PATH")
    command = ["uv", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, env=CLEAN, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made as for a release: from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", folder, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def installed_programs(*requirements: str | Path, folder: Path) -> Path:
    """The programs of a new environment in which only this is installed."""
    programs = folder / "venv" / "bin"
    uv("venv", "--python", sys.executable, programs.parent)
    uv("pip", "install", "--python", programs / "python", *requirements)
    return programs


@dataclass(frozen=True, slots=True)
class Assembly:
    """What `cdk synth` wrote.

    Attributes:
        folder: the cloud assembly.
        bundle: the worker's code.
        seconds: how long it took.
    """

    folder: Path
    bundle: Path
    seconds: float


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as somebody who clones it has it: without anything that git ignores."""
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if not line.startswith("#")]
    return Path(
        shutil.copytree(
            ROOT, tmp_path_factory.mktemp("clone") / "project", ignore=shutil.ignore_patterns(".git", *ignored)
        )
    )


@pytest.fixture(scope="session")
def assembly(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Assembly:
    """`cdk synth` of the shipped definitions and of all that is optional, without credentials, bundle included."""
    folder = tmp_path_factory.mktemp("cdk.out")
    start = time.monotonic()
    done = cdk("synth", "--quiet", "--output", str(folder), "-c", "reconcile=rate(1 day)", folder=clone / "cdk")
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    return Assembly(folder, bundle_of("aggregation_worker.handler.lambda_handler", folder), seconds)


def bundle_of(handler: str, assembly: Path) -> Path:
    """The code of the function with this handler."""
    (template,), (assets,) = assembly.glob("*.template.json"), assembly.glob("*.assets.json")
    functions = [
        resource["Properties"]
        for resource in json.loads(template.read_text())["Resources"].values()
        if resource["Type"] == "AWS::Lambda::Function"
    ]
    (key,) = [function["Code"]["S3Key"] for function in functions if function["Handler"] == handler]
    files = json.loads(assets.read_text())["files"]
    return assembly / str(files[key.removesuffix(".zip")]["source"]["path"])


@pytest.fixture(scope="module")
def ministack() -> Iterator[Ministack]:
    """ministack with nothing in it."""
    with running_ministack(start_timeout_seconds=180) as server:
        yield server


@pytest.fixture(scope="module")
def dynamodb_of_its_own() -> Iterator[DynamoDBLocal]:
    """A DynamoDB Local that nobody else has: the shipped definitions name the tables."""
    try:
        with running_dynamodb_local() as server:
            yield server
    except DynamoDBLocalUnavailableError as unavailable:
        missing(unavailable)

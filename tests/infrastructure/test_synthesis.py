"""`cdk synth` as the CDK CLI runs it: what it writes, what the linters say, and what it says about mistakes."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest

from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker_cdk.synthesis import main
from tests.infrastructure.stacks import CDK, OTHER_DEFINITIONS

ACKNOWLEDGED = {
    "AwsSolutions-L1",
    "AwsSolutions-S1",
    "AwsSolutions-SQS3",
    "AwsSolutions-IAM5[Resource::*]",
    *(
        "AwsSolutions-IAM5[Resource::arn:<AWS::Partition>:s3:::dynamodbaggregationworker-dlq-<AWS::AccountId>-"
        f"<AWS::Region>/{prefix}/*]"
        for prefix in ("aws/lambda", "parked-records")
    ),
}


NO_BUNDLING: dict[str, Any] = {"aws:cdk:bundling-stacks": []}


@dataclass(frozen=True)
class Synthesis:
    """How a synthesis ended: its exit status, and what it said."""

    returncode: int
    stderr: str


class _OfThisThread(io.StringIO):
    """What jsii passes on of Node's output comes from a thread of its own, late on a busy machine: not that."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.current_thread()

    def write(self, text: str) -> int:
        return super().write(text) if threading.current_thread() is self._thread else len(text)


def synth(output: Path, **context: Any) -> Synthesis:
    """Synthesizes as app.py does, but in this process, which need not load the CDK anew, and without bundling."""
    with contextlib.redirect_stderr(_OfThisThread()) as said:
        status = main(cdk.App(context=NO_BUNDLING | context, outdir=str(output)))
    return Synthesis(status, said.getvalue())


@dataclass(frozen=True)
class Assembly:
    """A folder as `cdk synth` writes it with some of the app's flags."""

    flags: dict[str, str]
    folder: Path


@pytest.fixture(scope="module")
def assemblies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Assembly]:
    """Without flags, and with other definitions and all flags."""
    folder = tmp_path_factory.mktemp("synthesis")
    definitions = folder / "other.toml"
    definitions.write_text(OTHER_DEFINITIONS)
    every_flag = {
        "definitions": str(definitions),
        "throwaway": "true",
        "reservedConcurrency": "5",
        "alarmEmail": "night@example.com",
        "reconcile": "cron(0 3 * * ? *)",
    }
    made = {"shipped": Assembly({}, folder / "shipped"), "other": Assembly(every_flag, folder / "other")}
    for one in made.values():
        done = synth(one.folder, **one.flags)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    return made


@pytest.fixture(params=["shipped", "other"])
def assembly(request: pytest.FixtureRequest, assemblies: dict[str, Assembly]) -> Assembly:
    return assemblies[request.param]


def template_file(folder: Path) -> Path:
    (file,) = folder.glob("*.template.json")
    return file


def template(folder: Path) -> Any:
    return json.loads(template_file(folder).read_text())


def report(folder: Path) -> dict[str, Any]:
    (one,) = json.loads((folder / "validation-report.json").read_text())["pluginReports"]
    assert one["pluginName"] == "AwsSolutions"
    return dict(one)


def told_by(folder: Path) -> str:
    """What the CDK CLI prints about the stack."""
    return "".join(file.read_text() for file in folder.glob("*.metadata.json"))


def test_price_of_keeping__is_told_by_the_cdk(assemblies: dict[str, Assembly]) -> None:
    told = {name: told_by(one.folder) for name, one in assemblies.items()}

    assert "(item_count_by_date): an item that is removed costs a second write unit" in told["shipped"]
    assert "(orders_by_customer, orders_by_hour): an item" in told["other"]


def test_alarms_without_a_subscriber__are_told_by_the_cdk(assemblies: dict[str, Assembly]) -> None:
    told = {name: told_by(one.folder) for name, one in assemblies.items()}

    assert "nobody is subscribed here to the alarms" in told["shipped"]
    assert "nobody is subscribed" not in told["other"]


def test_schedule_that_no_alarm_can_watch__is_told_by_the_cdk(tmp_path: Path, assemblies: dict[str, Assembly]) -> None:
    done = synth(tmp_path, reconcile="cron(0 3 ? * SUN *)")

    assert done.returncode == 0
    assert "reconcile=cron(0 3 ? * SUN *) can be over 166 hours apart" in told_by(tmp_path)
    assert "hours apart" not in told_by(assemblies["other"].folder)


def test_cdk_nag__finds_nothing_that_is_not_acknowledged(assembly: Assembly) -> None:
    found = report(assembly.folder)

    assert found["conclusion"] == "success"
    assert found["violations"] == []


def test_every_acknowledgement__is_needed_and_explained(assembly: Assembly) -> None:
    suppressed = report(assembly.folder)["suppressedViolations"]

    names = {re.sub(r"<(\w+?)[0-9A-F]{8}\.", r"<\1.", violation["ruleName"]) for violation in suppressed}
    assert {name for name in names if "/stream/*" not in name} == ACKNOWLEDGED
    assert len([name for name in names if "/stream/*" in name]) == 1
    assert all(len(violation["reason"].split()) >= 5 for violation in suppressed)


def test_cfn_lint__has_no_error_and_no_warning(assemblies: dict[str, Assembly]) -> None:
    templates = [str(template_file(one.folder)) for one in assemblies.values()]

    cfn_lint = [sys.executable, "-c", "import sys; from cfnlint.runner import main; sys.exit(main())"]
    done = subprocess.run([*cfn_lint, "--template", *templates], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_recommended_feature_flags__would_change_nothing(assembly: Assembly, tmp_path: Path) -> None:
    """So cdk.json sets none of them."""
    artifacts = json.loads((assembly.folder / "manifest.json").read_text())["artifacts"]
    (known,) = (one["properties"]["flags"] for one in artifacts.values() if one["type"] == "cdk:feature-flag-report")
    recommended = {name: flag["recommendedValue"] for name, flag in known.items()}

    done = synth(tmp_path, **assembly.flags, **recommended)

    assert len(recommended) > 50
    assert not any("userValue" in flag for flag in known.values())
    assert done.returncode == 0, done.stderr
    assert template(tmp_path) == template(assembly.folder)


def test_mistake_as_the_cdk_cli_runs_it__is_one_sentence(tmp_path: Path) -> None:
    context = json.dumps(NO_BUNDLING | {"throwaway": "perhaps"})
    environment = os.environ | {"CDK_OUTDIR": str(tmp_path), "CDK_CONTEXT_JSON": context}

    done = subprocess.run(
        [sys.executable, "app.py"], cwd=CDK, env=environment, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (1, "error: -c throwaway=perhaps: true or false is needed\n")


def test_finding_of_cdk_nag__fails_the_synthesis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cdk.Validations, "acknowledge", lambda *_: None)

    done = synth(tmp_path)

    assert done.returncode == 1
    assert report(tmp_path)["conclusion"] == "failure"
    assert "AwsSolutions-SQS3" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (('truncate = "day"', 'truncat = "day"'), "aggregation 'item_count_by_date': sort_key: truncat: unknown key"),
        (
            ('partition_key = "orderid"', 'partition_key = "orderid"\nstream_view_type = "NEW_IMAGE"'),
            "source: stream_view_type: must be NEW_AND_OLD_IMAGES, not 'NEW_IMAGE'",
        ),
    ],
)
def test_mistake_in_the_definitions__is_one_sentence(mistake: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SAMPLE_FILE.read_text().replace(*mistake))

    done = synth(tmp_path, definitions=str(file))

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: mine.toml: {sentence}")
    assert done.stderr.count("\n") == 1


def test_reconcile_that_could_prove_nothing__is_one_sentence(tmp_path: Path) -> None:
    ignoring = tmp_path / "ignoring.toml"
    ignoring.write_text(SAMPLE_FILE.read_text() + 'remove = "ignore"\n')

    done = synth(tmp_path, reconcile="rate(1 day)", definitions=str(ignoring))

    assert done.returncode == 1
    assert done.stderr.startswith("error: a scheduled reconcile would prove nothing: ")
    assert done.stderr.count("\n") == 1


def test_missing_definitions_file__is_one_sentence(tmp_path: Path) -> None:
    done = synth(tmp_path, definitions=str(tmp_path / "nowhere.toml"))

    assert done.returncode == 1
    assert done.stderr.startswith("error: the definitions file")
    assert done.stderr.count("\n") == 1

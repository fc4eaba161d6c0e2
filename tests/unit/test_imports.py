"""What the functions load when they start: nothing that their bundle lacks, and little that a cold start pays for."""

import json
import subprocess
import sys
from pathlib import Path

# Of them 40 are Powertools' and 18 the worker's own. A module costs about a millisecond.
BUDGET = 81


def modules_loaded_by(module: str, *, after: str = "pass") -> set[str]:
    """The names of the modules that importing `module` adds in a new process which has run the statement `after`."""
    program = (
        "import json, sys\n"
        f"{after}\n"
        "before = set(sys.modules)\n"
        f"import {module}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    loaded = set(json.loads(done.stdout))
    assert module in loaded
    return loaded


def within(modules: set[str], *packages: str) -> list[str]:
    return sorted(name for name in modules if f"{name}.".startswith(tuple(f"{package}." for package in packages)))


def test_handler__adds_few_modules_to_boto3_and_a_client() -> None:
    # Counted in modules, since time would depend on the machine.
    added = modules_loaded_by(
        "aggregation_worker.handler", after="import boto3; boto3.client('dynamodb', region_name='us-east-1')"
    )

    assert len(added) <= BUDGET, sorted(added)


def test_handler__loads_nothing_that_it_does_not_use() -> None:
    loaded = modules_loaded_by("aggregation_worker.handler")

    commands = within(
        loaded,
        "aggregation_worker.operations",
        "aggregation_worker.local",
        "aggregation_worker.deployment.settings",
        "rich",
        "ministack",
        "aws_cdk",
    )
    tests = within(loaded, "tests", "hypothesis", "pytest", "moto", "mypy_boto3_dynamodb")
    libraries = within(loaded, "asyncio", "aws_lambda_powertools.utilities.batch", "aws_xray_sdk")
    assert commands + tests + libraries == []


def test_scheduled_reconcile__loads_only_what_its_bundle_has() -> None:
    loaded = modules_loaded_by("aggregation_worker.reconciliation.scheduled")

    assert "aggregation_worker.reconciliation.repair" in loaded
    assert (
        within(
            loaded,
            "argparse",
            "rich",
            "aggregation_worker.operations",
            "aggregation_worker.local",
            "aggregation_worker.deployment.settings",
        )
        == []
    )

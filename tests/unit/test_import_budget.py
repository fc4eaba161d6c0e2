"""What importing the function adds to a cold start, counted in modules: time would depend on the machine."""

import json
import subprocess
import sys
from pathlib import Path

# Of them 40 are Powertools' and 17 the worker's own. A module costs about a millisecond.
BUDGET = 80


def test_import_of_the_handler__stays_within_its_budget_over_boto3_and_a_client() -> None:
    program = (
        "import boto3, json, sys\n"
        "boto3.client('dynamodb', region_name='us-east-1')\n"
        "before = set(sys.modules)\n"
        "import worker.handler\n"
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

    added = json.loads(done.stdout)
    assert "worker.handler" in added
    assert len(added) <= BUDGET, added

"""The pipeline on one machine, as a newcomer meets it: the demo, the README's commands, `aggregator local`."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.pipeline import Pipeline, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of
from tests.aws_cli import commands_of, run_aws
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]


def aggregator(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "import sys; from aggregation_worker.operations.cli import main; sys.exit(main())",
        *arguments,
    ]


def without_aws_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def test_demo__shows_matching_totals_and_the_dead_letter() -> None:
    done = subprocess.run(
        aggregator("demo"), capture_output=True, text=True, timeout=300, env=without_aws_settings(), check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for item in ("item123", "item312"):
        assert re.search(rf"{item}, +│ +quantity │ +40 │ +40 │ ✓", done.stdout), done.stdout
    assert "9 changes were delivered 13 times" in done.stdout
    assert "4 duplicates were skipped" in " ".join(done.stdout.split())
    assert re.search(r"178530 .*quantity", done.stdout)


def test_readme_put_and_query__show_the_total() -> None:
    put, query = (command for command in commands_of(ROOT / "README.md") if command.startswith("aws dynamodb"))

    with running_pipeline(SAMPLE_FILE) as pipeline:
        run_aws(put, pipeline.server.client)
        pipeline.mapping.drain(20)
        answer = run_aws(query, pipeline.server.client)

    assert [row["quantity"] for row in answer["Items"]] == [{"N": "10"}]


def test_readme__names_the_two_commands_of_a_newcomer() -> None:
    commands = commands_of(ROOT / "README.md")

    assert "uv run aggregator demo" in commands
    assert "uv run pytest -n auto" in commands


def test_readme_definitions__can_be_read() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)

    definitions = parse_definitions(block)

    assert [measure.name for measure in definitions.aggregations[0].measures] == ["orders", "quantity", "revenue"]


def test_local__counts_what_is_put_and_ends_with_ctrl_c() -> None:
    process = subprocess.Popen(
        aggregator("local"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=without_aws_settings()
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        while not (lines and lines[-1].startswith("Ctrl-C ends")):
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        put, query = (line for line in lines if " aws dynamodb " in line)
        credentials, command = put.split("aws ", 1)
        boto = _client_of(credentials, command)
        run_aws("aws " + command.split(" --endpoint-url")[0], boto)
        query = "aws " + query.split("aws ", 1)[1].split(" --endpoint-url")[0]
        wait_for(lambda: bool(run_aws(query, boto)["Items"]))
        assert run_aws(query, boto)["Items"][0]["quantity"] == {"N": "10"}
        assert re.search(r"1 records \d+\.\.\d+ done in \d+ ms", process.stdout.readline() + process.stdout.readline())
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest
    assert "Traceback" not in rest


def _client_of(credentials: str, command: str) -> Callable[[str], Any]:
    import boto3

    settings = dict(part.split("=", 1) for part in credentials.split())
    endpoint = re.search(r"--endpoint-url (\S+)", command)
    region = re.search(r"--region (\S+)", command)
    assert endpoint is not None
    assert region is not None

    def client(service: str) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]  # any service
            endpoint_url=endpoint[1],
            region_name=region[1],
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        )

    return client


def test_local_with_a_broken_definitions_file__is_one_clear_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(SAMPLE_FILE.read_text().replace("truncate", "truncat"))

    done = subprocess.run(
        aggregator("local", "--definitions", str(broken)), capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "aggregation 'item_count_by_date'" in done.stderr
    assert "did you mean 'truncate'?" in done.stderr


def test_random_history_through_the_whole_pipeline__totals_equal_the_source(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Puts, corrections, moves and deletes on a retracting aggregation; one invocation in four loses its answer."""
    import random

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    definitions = tmp_path / "retract.toml"
    definitions.write_text(SAMPLE_FILE.read_text() + 'count = "orders"\nremove = "retract"\n')
    from aggregation_worker.local.pipeline import deployed_handler

    handler = deployed_handler()

    def loses_answers(event: dict[str, Any], context: Any) -> Any:
        answer = handler(event, context)
        if chance.random() < 0.25:
            raise TimeoutError("the answer was lost")
        return answer

    with running_pipeline(definitions, handler=loses_answers) as pipeline:
        for step in range(120):
            _change_at_random(pipeline, chance)
            if step % 30 == 0:
                pipeline.mapping.poll_once()
        pipeline.mapping.drain(60)
        (aggregation,) = pipeline.definitions.aggregations
        source = scan(pipeline.dynamodb, pipeline.definitions.source.table)
        expected = totals_of([aggregation], source)
        stored = stored_totals(pipeline.dynamodb, aggregation)

    assert {group: amounts for group, amounts in stored.items() if any(amounts)} == {
        group: amounts for (_, group), amounts in expected.items()
    }


def _change_at_random(pipeline: Pipeline, chance: Any) -> None:
    key = {"orderid": {"S": str(chance.randrange(20))}, "order_date": {"S": f"2024-07-{chance.randrange(1, 4):02}"}}
    table = pipeline.definitions.source.table
    if chance.random() < 0.2:
        pipeline.dynamodb.delete_item(TableName=table, Key=key)
    else:
        item = f"item{chance.randrange(4)}"
        quantity = str(chance.randrange(-5, 50))
        pipeline.dynamodb.put_item(
            TableName=table, Item={**key, "item_number": {"S": item}, "quantity": {"N": quantity}}
        )

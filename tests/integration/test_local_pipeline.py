"""The pipeline on one machine, as a newcomer meets it: the demo, the README's commands, `aggregator local`."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aggregation_worker.deployment.example import example_item
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.pipeline import Pipeline, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of
from aggregation_worker.operations.cli import main
from tests.aggregator import aggregator, running_aggregator, without_settings
from tests.aws_cli import commands_of, run_aws
from tests.records import SOURCE_TABLE, STREAM_ARN
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / ".github" / "images" / "demo.svg"
MISTAKE = SAMPLE_FILE.read_text().replace("truncate", "truncat")


@pytest.fixture
def clone(tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose package is that of a clone with a mistake in the user's definitions file."""
    folder = tmp_path / "clone"
    shutil.copytree(ROOT / "worker", folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "aggregations.toml").write_text(MISTAKE)
    return {**without_settings(), "PYTHONPATH": str(folder)}


def test_demo__is_right_and_as_its_picture_shows(clone: dict[str, str], tmp_path: Path) -> None:
    """The picture's command (.github/CONTRIBUTING.md, "Pictures")."""
    picture = tmp_path / "demo.svg"
    command = aggregator("demo", "--svg", str(picture))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=clone, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for item in ("item123", "item312"):
        assert re.search(rf"{item} +│ 2024-07-15 │ +40 │ +40 ✓ │ +80 ✗ │", done.stdout), done.stdout
    assert "9 records were delivered 13 times; the worker skipped 4 duplicates." in done.stdout
    assert re.search(r"178530 .*quantity", done.stdout)
    seconds = re.search(r"Every total of the worker matches the source \(([\d.]+) s\)", done.stdout)
    assert seconds is not None
    assert float(seconds[1]) < 15
    assert shown_by(PICTURE) == shown_by(picture)
    assert PICTURE.stat().st_size <= 200_000


def shown_by(picture: Path) -> list[str]:
    """The texts of a picture, but for the seconds that the run took."""
    texts = [element.text or "" for element in ElementTree.parse(picture).iter() if element.tag.endswith("}text")]
    return [re.sub(r"\([\d.]+\xa0s\)", "", text) for text in texts]


def test_readme_put_and_query__show_the_total() -> None:
    put, query = (command for command in commands_of(ROOT / "README.md") if command.startswith("aws dynamodb"))

    with running_pipeline(SAMPLE_FILE) as pipeline:
        run_aws(put, pipeline.server.client)
        pipeline.mapping.drain(20)
        answer = run_aws(query, pipeline.server.client)

    assert [row["quantity"] for row in answer["Items"]] == [{"N": "10"}]


def test_totals_of_38_digits__are_exact() -> None:
    with running_pipeline(SAMPLE_FILE) as pipeline:
        (aggregation,) = pipeline.definitions.aggregations
        for number, quantity in enumerate(["1E+36", "1", "0.5", "1E-2"]):
            order = {"orderid": {"S": str(number)}, "order_date": {"S": "2024-07-15"}, "item_number": {"S": "item123"}}
            pipeline.dynamodb.put_item(
                TableName=pipeline.definitions.source.table, Item={**order, "quantity": {"N": quantity}}
            )
            pipeline.mapping.drain(20)
        stored = stored_totals(pipeline.dynamodb, aggregation)
        waiting = pipeline.sqs.get_queue_attributes(
            QueueUrl=pipeline.queue_url, AttributeNames=["ApproximateNumberOfMessages"]
        )["Attributes"]["ApproximateNumberOfMessages"]

    assert stored == {("item123", "2024-07-15"): (Decimal("1" + "0" * 35 + "1.5"),)}
    assert waiting == "1"


def test_status_of_a_local_pipeline__is_green_once_all_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with running_pipeline(SAMPLE_FILE) as pipeline:
        empty = main(["status"])
        pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=example_item(pipeline.definitions))
        waiting = main(["status"])
        pipeline.mapping.drain(20)
        capsys.readouterr()
        counted = main(["status", "--json"])
        facts = json.loads(capsys.readouterr().out)
        pipeline.sqs.send_message(QueueUrl=pipeline.queue_url, MessageBody="{}")
        letter = main(["status"])

    assert (empty, waiting, counted, letter) == (0, 1, 0, 1)
    assert [(fact["name"], fact["value"]) for fact in facts] == [
        ("dead letters waiting", 0),
        ("dead letters that a command holds", 0),
        ("worker", "has counted all there is"),
    ]


def test_reconcile_of_an_idle_local_table__takes_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """With its default settings, and a difference; a paused worker is behind, and nothing else."""
    with running_pipeline(SAMPLE_FILE) as pipeline:
        item = example_item(pipeline.definitions)
        pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=item)
        pipeline.mapping.drain(20)
        right = _reconcile(capsys)
        (aggregation,) = pipeline.definitions.aggregations
        pipeline.dynamodb.update_item(
            TableName=aggregation.table,
            Key={"item_number": item["item_number"], "order_date": item["order_date"]},
            UpdateExpression="ADD quantity :five",
            ExpressionAttributeValues={":five": {"N": "5"}},
        )
        wrong = _reconcile(capsys)
        repaired = _reconcile(capsys, "--repair")
        pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=item | {"orderid": {"S": "2"}})
        behind = _reconcile(capsys, "--patience", "2")

    assert [status for status, _ in (right, wrong, repaired, behind)] == [0, 1, 0, 3]
    assert [one["verdict"] for _, report in (wrong, repaired, behind) for one in report["findings"]] == [
        "drift",
        "repaired",
        "unsettled",
    ]
    # Five on a quiet machine, which one that runs tests is not; with the patience it would be over sixty.
    assert max(report["seconds"] for _, report in (right, wrong, repaired)) < 20


def _reconcile(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    capsys.readouterr()
    status = main(["reconcile", "--json", "--no-metric", *options])
    output = capsys.readouterr().out
    return status, json.loads(output[output.index('{\n  "startedAt"') :])


def test_backfill_of_a_local_pipeline__waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with running_pipeline(SAMPLE_FILE) as pipeline:
        pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=example_item(pipeline.definitions))
        pipeline.mapping.drain(20)
        began = time.monotonic()

        assert main(["backfill"]) == 0

    # Ten minutes where other workers can be at work; here, at most the second in which the worker began.
    assert time.monotonic() - began < 20


def test_readme__names_the_two_commands_of_a_newcomer() -> None:
    commands = commands_of(ROOT / "README.md")

    assert "uv run aggregator demo" in commands
    assert "uv run pytest -n auto" in commands


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_local__counts_what_is_put_until_it_is_ended(by: signal.Signals, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    # Of a table that is in AWS; its records come from the stream of the one here.
    definitions = tmp_path / "existing.toml"
    definitions.write_text(SAMPLE_FILE.read_text().replace(f'table = "{SOURCE_TABLE}"', f'stream_arn = "{STREAM_ARN}"'))
    environment = {**without_settings(), "AGGREGATIONS_FILE": str(definitions), "TMPDIR": str(temporary)}
    with running_aggregator("local", environment=environment, in_background=True) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith("Ctrl-C ends")):
            line = process.stdout.readline()
            assert line, "".join(lines)
            lines.append(line)
        assert f"export SOURCE_STREAM_ARN={STREAM_ARN.partition('123456789012')[0]}000000000000:" in "".join(lines)
        put, query = (line for line in lines if " aws dynamodb " in line)
        credentials, command = put.split("aws ", 1)
        boto = _client_of(credentials, command)
        run_aws("aws " + command.split(" --endpoint-url")[0], boto)
        query = "aws " + query.split("aws ", 1)[1].split(" --endpoint-url")[0]
        wait_for(lambda: bool(run_aws(query, boto)["Items"]))
        assert run_aws(query, boto)["Items"][0]["quantity"] == {"N": "10"}
        told = "".join(process.stdout.readline() for _ in range(3))
        assert re.search(r"\n\d\d:\d\d:\d\d  1 record: 1 counted in \d+ ms\n.*quantity 10 \(\+10\)\n", told), told
        assert os.listdir(temporary)

        process.send_signal(by)
        rest, _ = process.communicate(timeout=120)

    assert process.returncode == 0, rest
    assert rest.endswith("stopped; nothing is kept\n")
    assert os.listdir(temporary) == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(boto("s3").meta.endpoint_url.rsplit(":", 1)[1]))) != 0


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


@pytest.mark.parametrize("file", ["broken.toml", "aggregations.toml"])
def test_local_with_a_mistake_in_the_file__one_line(file: str, clone: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text(MISTAKE)
    options = ["--definitions", str(broken)] if file == broken.name else []

    done = subprocess.run(
        aggregator("local", *options), capture_output=True, text=True, timeout=300, env=clone, check=False
    )

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{file}: aggregation 'item_count_by_date'" in done.stderr
    assert "did you mean 'truncate'?" in done.stderr


def test_local_without_a_definitions_file__asks_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aggregation_worker.aggregations.definitions.DEFINITIONS_FILE", tmp_path / "aggregations.toml")
    monkeypatch.delenv("AGGREGATIONS_FILE", raising=False)

    status = main(["local"])

    assert status == 2
    assert capsys.readouterr() == (
        "",
        "aggregator: no definitions file: give --definitions FILE or set AGGREGATIONS_FILE\n",
    )


def test_random_history__totals_equal_the_source(tmp_path: Path, seed: int) -> None:
    """Puts, corrections, moves and deletes on a retracting aggregation; one invocation in four loses its answer."""
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

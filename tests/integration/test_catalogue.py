"""Deployments on the local pipeline: wrong files, rollbacks, renamed and retired aggregations change no total."""

import json
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker import handler
from aggregation_worker.aggregations.contributions import Group
from aggregation_worker.aggregations.definitions import load_definitions
from aggregation_worker.deployment.settings import MAPPING
from aggregation_worker.ledger.catalogue import CatalogueError
from aggregation_worker.local.delivery import Invocation
from aggregation_worker.local.ministack import Ministack
from aggregation_worker.local.pipeline import Pipeline, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of
from aggregation_worker.operations.cli import main
from tests.definition_texts import SOURCE, aggregation_text
from tests.waiting import wait_for

COUNTS = aggregation_text()
BY_ITEM = aggregation_text(name="by_item", table="by_item", sort_key=None, sum='{ pieces = "quantity" }')
CHANGED = 'where = "quantity > `0`"'
RENAMED = aggregation_text(CHANGED, name="renamed")
MOVED = aggregation_text(CHANGED, name="renamed", table="renamed")

QUICK = replace(MAPPING, maximum_batching_window_seconds=0, retry_pause_seconds=0.01)

Totals = dict[Group, tuple[Decimal, ...]]


@dataclass
class Deployment:
    """A running pipeline, and the file that is deployed on it.

    Attributes:
        refusals: what the worker said each time that it refused a batch.
    """

    folder: Path
    refusals: list[str] = field(default_factory=list)
    pipeline: Pipeline = field(init=False)
    file: Path = field(init=False)

    def written(self, *texts: str) -> Path:
        """A definitions file of these aggregations."""
        file = self.folder / f"{len(list(self.folder.iterdir()))}.toml"
        file.write_text(SOURCE + "".join(texts))
        return file

    def deploy(self, *texts: str) -> None:
        """All workers from now on have this file."""
        self.file = self.written(*texts)
        os.environ["AGGREGATIONS_FILE"] = str(self.file)
        handler._worker.cache_clear()

    def note(self, invocation: Invocation) -> None:
        if invocation.error is not None:
            self.refusals.append(invocation.error)

    def put(self, *quantities: int) -> None:
        """An order of each quantity."""
        for quantity in quantities:
            item = {
                "orderid": {"S": str(quantity)},
                "order_date": {"S": "2024-07-15"},
                "item_number": {"S": "item1"},
                "quantity": {"N": str(quantity)},
            }
            self.pipeline.dynamodb.put_item(TableName="Order_by_item", Item=item)

    def refuses(self) -> str:
        """Why the worker refuses what comes now; it has tried several times."""
        seen = len(self.refusals)
        wait_for(lambda: len(self.refusals) > seen + 3)
        return self.refusals[-1]

    def settles(self) -> None:
        """The deployed file's totals become what its source says."""
        wait_for(lambda: self.stored() == self.expected())

    def stored(self, *names: str) -> list[Totals]:
        """The totals of the deployed file."""
        return [stored_totals(self.pipeline.dynamodb, one) for one in load_definitions(self.file).aggregations]

    def expected(self) -> list[Totals]:
        items = list(scan(self.pipeline.dynamodb, "Order_by_item"))
        return [
            {group: amounts for (_, group), amounts in totals_of([one], items).items()}
            for one in load_definitions(self.file).aggregations
        ]

    def total(self, table: str, measure: str = "quantity") -> int:
        """The one total of a table."""
        (row,) = scan(self.pipeline.dynamodb, table)
        return int(row[measure]["N"])


@contextmanager
def a_deployment(folder: Path) -> Iterator[Deployment]:
    """A pipeline whose mapping runs all the time, with the tables of every aggregation above."""
    deployment = Deployment(folder)
    tables = deployment.written(COUNTS, BY_ITEM, MOVED)
    with running_pipeline(tables, settings=QUICK, on_batch=deployment.note) as pipeline:
        deployment.pipeline = pipeline
        stop = threading.Event()
        delivering = threading.Thread(target=pipeline.mapping.run, args=(stop,))
        deployment.deploy(COUNTS)
        delivering.start()
        try:
            yield deployment
        finally:
            stop.set()
            delivering.join()


@pytest.fixture
def deployment(ministack: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    """On one server that is emptied for each test: a start takes longer than most tests."""

    @contextmanager
    def emptied(port: int | None = None) -> Iterator[Ministack]:
        reset = urllib.request.Request(f"{ministack.endpoint}/_ministack/reset", method="POST")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(reset) as answer:
            assert json.load(answer) == {"reset": "ok"}
        yield ministack

    monkeypatch.setattr("aggregation_worker.local.pipeline.running_ministack", emptied)
    monkeypatch.setattr(handler, "FAILURE_PAUSE", 0.0)
    with a_deployment(tmp_path) as deployment:
        yield deployment
    handler._worker.cache_clear()


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What a command printed to standard error."""
    return " ".join(capsys.readouterr().err.split())


def test_rollback__loses_none_of_the_newer_aggregations_records(deployment: Deployment) -> None:
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(1)
    deployment.settles()

    deployment.deploy(COUNTS)
    deployment.put(10)
    assert "CatalogueError: the definitions file lacks 'by_item'" in deployment.refuses()
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(100)

    deployment.settles()
    assert (deployment.total("item_count_by_date"), deployment.total("by_item", "pieces")) == (111, 111)


def test_rollback_for_good__goes_on_once_the_newer_one_is_retired(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(1)
    deployment.settles()

    deployment.deploy(COUNTS)
    deployment.put(10)
    deployment.refuses()
    assert main(["retire", "by_item", "--yes"]) == 0  # and no deployment

    deployment.settles()
    assert (deployment.total("item_count_by_date"), deployment.total("by_item", "pieces")) == (11, 1)
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(100)
    assert "'by_item' was retired at" in deployment.refuses()


def test_renamed_aggregation__never_adds_to_the_old_ones_totals(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its backfill would have doubled every one of them."""
    deployment.put(5, 6)
    deployment.settles()

    deployment.deploy(RENAMED)
    deployment.put(7)
    assert "'renamed' would add to quantity of table 'item_count_by_date'" in deployment.refuses()
    assert main(["backfill", "renamed"]) == 2
    assert "'renamed' would add to quantity of table 'item_count_by_date'" in said(capsys)
    assert deployment.total("item_count_by_date") == 11

    deployment.deploy(COUNTS, MOVED)
    wait_for(lambda: deployment.total("item_count_by_date") == 18)


def test_replay_in_process__needs_the_deployed_file(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    """With a file that lacks an aggregation the letter would go, and its record never reach that one's totals."""
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(1)
    deployment.settles()
    pipeline = deployment.pipeline
    raw = {
        "eventID": "0" * 32,
        "eventName": "INSERT",
        "eventSource": "aws:dynamodb",
        "eventVersion": "1.1",
        "eventSourceARN": pipeline.mapping.stream_arn,
        "dynamodb": {
            "SequenceNumber": "9" * 21,
            "ApproximateCreationDateTime": 1_789_651_658,
            "StreamViewType": "NEW_AND_OLD_IMAGES",
            "Keys": {"orderid": {"S": "9"}, "order_date": {"S": "2024-07-15"}},
            "NewImage": {
                "orderid": {"S": "9"},
                "order_date": {"S": "2024-07-15"},
                "item_number": {"S": "item1"},
                "quantity": {"N": "9"},
            },
        },
    }
    letter = {
        "requestContext": {"condition": "RetryAttemptsExhausted"},
        "DDBStreamBatchInfo": {
            "shardId": "shard",
            "startSequenceNumber": "9" * 21,
            "endSequenceNumber": "9" * 21,
            "batchSize": 1,
            "streamArn": pipeline.mapping.stream_arn,
        },
        "payload": json.dumps({"Records": [raw]}),
    }
    pipeline.sqs.send_message(QueueUrl=pipeline.queue_url, MessageBody=json.dumps(letter))

    for wrong in (deployment.written(COUNTS), deployment.written(COUNTS, BY_ITEM, MOVED)):
        assert main(["replay", "--in-process", "--definitions", str(wrong)]) == 2
    told = said(capsys)
    assert main(["replay", "--in-process"]) == 0

    assert "the definitions file lacks 'by_item'" in told
    assert "no worker has started with aggregation 'renamed' yet" in told
    assert (deployment.total("item_count_by_date"), deployment.total("by_item", "pieces")) == (10, 10)


@pytest.mark.parametrize(
    "command",
    [
        ["replay", "--function", "any"],
        ["backfill"],
        ["reconcile", "--no-metric"],
        ["reconcile", "--no-metric", "--repair"],
        ["explain", "item_count_by_date", "item1", "2024-07-15"],
        ["verify"],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_command_with_a_wrong_file__is_refused_and_changes_nothing(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(1)
    deployment.settles()
    before = list(scan(deployment.pipeline.dynamodb, "aggregation-ledger"))

    status = main([*command, "--definitions", str(deployment.written(COUNTS))])

    assert status == 2
    assert "the definitions file lacks 'by_item'" in said(capsys)
    assert list(scan(deployment.pipeline.dynamodb, "aggregation-ledger")) == before


@pytest.mark.parametrize(
    "command", [["backfill"], ["reconcile", "--repair", "--no-metric"], ["replay", "--in-process"]]
)
def test_command_of_another_version__is_refused(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    """Its worker has started already, and reads images in this one."""
    deployment.put(1)
    deployment.settles()

    monkeypatch.setattr("aggregation_worker.ledger.catalogue.IMAGE_READING", 1_000)

    assert main(command) == 2
    assert "the deployed worker reads images in version 1, this aggregator in version 1000" in said(capsys)


def test_upgraded_worker__is_the_deployed_version_at_once(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.put(1)
    deployment.settles()
    with monkeypatch.context() as upgraded:
        upgraded.setattr("aggregation_worker.ledger.catalogue.IMAGE_READING", 1_000)
        deployment.deploy(COUNTS)
        deployment.put(2)
        deployment.settles()

    assert main(["backfill"]) == 2

    assert "the deployed worker reads images in version 1000, this aggregator in version 1," in said(capsys)


# --- Retiring ---------------------------------------------------------------------------------------------------------


def retired(pipeline: Pipeline, name: str) -> bool:
    (item,) = scan(pipeline.dynamodb, "aggregation-ledger")
    return "retired_at" in item["aggregations"]["M"][name]["M"]


def test_retire__says_what_it_does_and_asks(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.deploy(COUNTS, BY_ITEM)
    deployment.put(1)
    deployment.settles()
    answers = iter(["", "no", "Y"])
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    capsys.readouterr()

    found = [(main(["retire", "by_item"]), retired(deployment.pipeline, "by_item")) for _ in range(3)]

    assert found == [(1, False), (1, False), (0, True)]
    captured = capsys.readouterr()
    assert "by_item counts into pieces of table by_item. Retired, it counts no more" in captured.err
    assert captured.err.count("nothing was changed") == 2
    assert "by_item is retired. A worker that starts with it in its definitions file refuses" in captured.out


def test_retire_without_anyone_to_ask__changes_nothing(
    deployment: Deployment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.put(1)
    deployment.settles()

    def nobody() -> Any:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)

    assert main(["retire", "item_count_by_date"]) == 2

    assert "nobody is there to confirm it; --yes does" in said(capsys)
    assert not retired(deployment.pipeline, "item_count_by_date")


def test_retiring_twice__is_no_mistake(deployment: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    deployment.put(1)
    deployment.settles()
    capsys.readouterr()

    answers = []
    for _ in range(2):
        assert main(["retire", "item_count_by_date", "--yes", "--json"]) == 0
        output = capsys.readouterr().out
        answers.append(json.loads(output[output.index("{\n") :]))
    assert main(["retire", "item_count_by_date"]) == 0

    assert [answer["wasRetired"] for answer in answers] == [False, True]
    assert answers[0]["retiredAt"] == answers[1]["retiredAt"]
    assert "already; there is nothing to do" in " ".join(capsys.readouterr().out.split())


def test_retiring_an_unknown_name__lists_those_there_are(
    deployment: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["retire", "item_count", "--yes"]) == 2
    assert "no aggregation named 'item_count' has counted; those that have: none" in said(capsys)
    deployment.put(1)
    deployment.settles()

    assert main(["retire", "item_count", "--yes"]) == 2

    assert "no aggregation named 'item_count' has counted; those that have: item_count_by_date" in said(capsys)


def test_refusal__is_an_error_of_the_invocation(deployment: Deployment) -> None:
    deployment.put(1)
    deployment.settles()
    deployment.deploy(BY_ITEM)

    with pytest.raises(CatalogueError, match="lacks 'item_count_by_date'"):
        handler.lambda_handler({"Records": []}, None)

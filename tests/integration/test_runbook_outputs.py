"""What the runbooks show as the output of their main commands is what these print; a page that is carried out.

So do tests/end_to_end/test_deployed_stack.py for the AWS CLI, and the unit tests of some commands. With
`UPDATE_RUNBOOKS=1` they write the pages' `text` blocks anew.
"""

import re
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import pytest

from aggregation_worker import handler
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.pipeline import LEDGER_TABLE, Pipeline, create_table, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals
from aggregation_worker.operations.cli import main
from tests.records import SOURCE_TABLE, order
from tests.runbook_pages import check_output, pages
from tests.unit.test_operations import healthy, resources_with

TARGET = "item_count_by_date"

pytestmark = pytest.mark.usefixtures("narrow")


def test_page_of_all__shows_a_healthy_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    resources_with({}, healthy(), monkeypatch)

    assert main(["status"]) == 0

    check_output("README", "aggregator status", capsys.readouterr().out)


def test_pages__show_what_their_main_commands_print(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One total is changed by hand, and an order comes whose quantity is a text."""

    def output_of(*command: str) -> str:
        capsys.readouterr()
        main(command)
        return re.sub(r'(?m)^\{"_aws".*\n|^\{"level".*\n', "", capsys.readouterr().out)

    with running_pipeline(SAMPLE_FILE, environment={"POWERTOOLS_LOG_LEVEL": "CRITICAL"}) as pipeline:
        put_orders(pipeline, range(3, 4))  # several of one second would come in any order
        pipeline.mapping.drain(60)
        unusable = order("178530") | {"quantity": {"S": "ten"}}
        pipeline.dynamodb.put_item(TableName=SOURCE_TABLE, Item=unusable)
        pipeline.mapping.drain(60)
        told = output_of("dead-letters")
        key = {name: unusable[name] for name, _ in pipeline.definitions.source.keys}
        pipeline.dynamodb.delete_item(TableName=SOURCE_TABLE, Key=key)
        pipeline.mapping.drain(60)
        with delivering(pipeline):
            verified = output_of("verify")
        change_by_hand(pipeline)
        reconciled = output_of("reconcile", "--no-metric")
        explained = output_of("explain", TARGET, "item123", "2024-07-15")
        retired = output_of("retire", TARGET, "--yes")

    check_output("verify-a-deployment", "aggregator verify", verified)
    check_output("reconcile", "aggregator reconcile", reconciled)
    check_output("aggregate-drift", "aggregator explain", explained)
    check_output("notices", "aggregator dead-letters", told)
    check_output("remove-an-aggregation", "aggregator retire", retired)


@pytest.mark.parametrize("lost", [TARGET, pytest.param(LEDGER_TABLE, marks=pytest.mark.only_long)])
@pytest.mark.usefixtures("one_shard")
def test_page_on_a_restored_table__brings_every_total_right(lost: str) -> None:
    """The table is put back to what it was three orders ago, and another comes while nobody counts."""
    with running_pipeline(SAMPLE_FILE) as pipeline:
        put_orders(pipeline, range(1, 4))
        pipeline.mapping.drain(60)
        backup = list(scan(pipeline.dynamodb, lost))
        put_orders(pipeline, range(4, 7))
        pipeline.mapping.drain(60)
        pipeline.dynamodb.delete_table(TableName=lost)
        make_table(pipeline, lost)
        for item in backup:
            pipeline.dynamodb.put_item(TableName=lost, Item=item)
        put_orders(pipeline, range(7, 8))

        statuses = carry_out("deleted-or-restored-table", pipeline, lost)

        (aggregation,) = pipeline.definitions.aggregations
        assert stored_totals(pipeline.dynamodb, aggregation) == {("item123", "2024-07-15"): (Decimal(28),)}
    # A lost target differs before it is repaired; a lost ledger changes no total.
    assert statuses == [0, 1 if lost == TARGET else 0, 0, 0]


def carry_out(page: str, pipeline: Pipeline, lost: str) -> list[int]:
    """Carries out a page's commands, but for those of Lambda and CloudWatch; gives the statuses of `aggregator`'s."""
    statuses = []
    for line in "\n".join(pages()[page].blocks()).splitlines():
        if line.startswith("aws dynamodb delete-table"):
            pipeline.dynamodb.delete_table(TableName=lost)
            make_table(pipeline, lost)  # as the deployment does that follows
        elif line.startswith("aws lambda update-function-configuration"):
            handler._worker.cache_clear()
        elif line.endswith("--enabled --query State --output text") and "--no-enabled" not in line:
            pipeline.mapping.drain(60)
        elif line.startswith("aggregator"):
            words = shlex.split(line.removesuffix(" || true"))
            options = [word for word in words[1:] if word not in ("--stack", "$STACK")]
            statuses.append(
                main([*options, *(["--no-metric", "--patience", "2"] if options[0] == "reconcile" else [])])
            )
    return statuses


def make_table(pipeline: Pipeline, name: str) -> None:
    tables = {**deployment.target_tables(pipeline.definitions), LEDGER_TABLE: deployment.LEDGER}
    create_table(pipeline.dynamodb, name, tables[name])


def put_orders(pipeline: Pipeline, numbers: range) -> None:
    """Each with its number as quantity."""
    for number in numbers:
        order = {"orderid": {"S": f"{number}"}, "order_date": {"S": "2024-07-15"}, "item_number": {"S": "item123"}}
        order |= {"quantity": {"N": f"{number}"}}
        pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=order)


def change_by_hand(pipeline: Pipeline) -> None:
    pipeline.dynamodb.update_item(
        TableName=TARGET,
        Key={"item_number": {"S": "item123"}, "order_date": {"S": "2024-07-15"}},
        UpdateExpression="ADD quantity :five",
        ExpressionAttributeValues={":five": {"N": "5"}},
    )


@contextmanager
def delivering(pipeline: Pipeline) -> Iterator[None]:
    """Inside, the worker works."""
    stop = threading.Event()
    thread = threading.Thread(target=pipeline.mapping.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()

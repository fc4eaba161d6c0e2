"""`aggregator reconcile` around the run: its reports and metric, the dead letters it reads, when it refuses."""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.operations import reconcile as command
from aggregation_worker.operations.cli import main
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.reconcile import (
    Request,
    check_only_stream,
    publish,
    reconcile,
)
from aggregation_worker.operations.source import shown_progress
from aggregation_worker.reconciliation.progress import Stage
from aggregation_worker.reconciliation.reconcile import OutOfTimeError
from aggregation_worker.reconciliation.report import Finding, Report, Verdict
from aggregation_worker.reconciliation.snapshot import SnapshotError
from aggregation_worker.streams.shards import TrimmedError
from aggregation_worker.telemetry import NAMESPACE
from tests.unit.test_operations import resources_with, stack_with

DEFINITIONS = """
[source]
table = "Order_by_item"
partition_key = "orderid"

[[aggregations]]
name = "sold"
table = "totals"
partition_key = { name = "item_number", from = "item_number" }
sort_key = { name = "order_date", from = "order_date" }
sum = { quantity = "quantity" }
count = "orders"

[[aggregations]]
name = "customers"
table = "totals-by-customer"
partition_key = { name = "customer", from = "customer", type = "N" }
sum = { quantity = "quantity" }
"""
SOLD, CUSTOMERS = parse_definitions(DEFINITIONS).aggregations
STREAM_ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/Order_by_item/stream/2026-01-01T00:00:00.000"
STARTED = datetime(2026, 11, 24, 4, 5, 6, tzinfo=UTC)


def amounts(*numbers: int | str) -> tuple[Decimal, ...]:
    return tuple(map(Decimal, numbers))


def finding(
    verdict: Verdict,
    aggregation: Aggregation = SOLD,
    group: Group = ("item123", "2024-07-15"),
    total: tuple[Decimal, ...] | None = amounts(2, "12.50"),
    expected: tuple[Decimal, ...] | None = amounts(2, "10"),
    note: str = "",
) -> Finding:
    return Finding(aggregation, group, verdict, total, expected, note)


def report(
    *findings: Finding,
    compared: tuple[str, ...] = ("sold", "customers"),
    unproved: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    hints: tuple[str, ...] = (),
) -> Report:
    return Report(findings, 1_234, 56_789, 42, compared, unproved, left_out, hints, STARTED, 12.3456)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[int]]]:
    """Runs the command with a report in place of a run; gives its exit status and the metric's values."""

    def run(found: Report | Exception, **options: Any) -> tuple[int, list[int]]:
        published: list[int] = []

        def instead(*_: Any) -> Report:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(command, "_run", instead)
        monkeypatch.setattr(command, "publish", lambda _, value: published.append(value))
        as_json, as_csv = options.pop("as_json", False), options.pop("as_csv", False)
        resources: Any = None
        return reconcile(resources, Request(**options), as_json=as_json, as_csv=as_csv), published

    return run


# --- Exit status and metric -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "status", "published"),
    [
        (report(), 0, [0]),
        (report(finding(Verdict.REPAIRED)), 0, [0]),
        (report(finding(Verdict.DRIFT), finding(Verdict.DRIFT), finding(Verdict.REPAIRED)), 1, [2]),
        (report(finding(Verdict.WAITS)), 1, [1]),
        (report(finding(Verdict.UNEXPLAINED)), 1, [1]),
        (report(finding(Verdict.UNEXPLAINED), compared=("sold",), unproved=("sold",)), 1, [1]),
        (report(finding(Verdict.UNSETTLED)), 3, []),
        (report(finding(Verdict.UNSETTLED), finding(Verdict.DRIFT)), 1, [1]),
        (report(finding(Verdict.UNPROVABLE), unproved=("sold",)), 0, [0]),  # the other aggregation is proved
        (report(finding(Verdict.UNPROVABLE), compared=("sold",), unproved=("sold",)), 0, []),
        (report(unproved=("sold", "customers")), 0, []),
        (report(left_out=("customers",)), 3, []),
        (report(finding(Verdict.DRIFT), left_out=("customers",)), 1, [1]),
        (report(compared=(), left_out=("sold", "customers")), 3, []),
    ],
)
def test_status_and_metric__are_healthy_only_where_it_is_known(
    run: Any, found: Report, status: int, published: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(found) == (status, published)
    assert run(found, metric=False) == (status, [])
    assert run(found, names=("sold",)) == (status, [])  # of one aggregation only: it says nothing of the others


@pytest.mark.parametrize(
    "error", [OutOfTimeError("too late"), SnapshotError("no cut"), TrimmedError("records have left the stream")]
)
def test_error_of_a_run__is_one_line_and_no_metric(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*_: Any) -> Report:
        raise error

    published: list[int] = []
    monkeypatch.setattr(command, "_run", fail)
    monkeypatch.setattr(command, "publish", lambda _, value: published.append(value))

    assert main(["reconcile"]) == 2
    assert capsys.readouterr().err == f"aggregator: {error}\n"
    assert published == []


@pytest.mark.parametrize(
    ("repair", "says"), [(False, "nothing was changed; run"), (True, "what was corrected stays corrected")]
)
def test_interrupted_run__says_what_is_done_and_how_to_go_on(
    repair: bool, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Any, spool: Any) -> Report:
        run.progress(Stage.OBSERVING, 1, 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "chosen_aggregations", lambda *_: [SOLD])
    monkeypatch.setattr(command, "items_of", lambda *_: None)
    monkeypatch.setattr(command, "stream_arn_of", lambda *_: STREAM_ARN)
    monkeypatch.setattr(command, "check_only_stream", lambda *_: None)
    monkeypatch.setattr("aggregation_worker.operations.reconcile.Reconciliation.run", interrupted)
    answers = {"describe_stacks": stack_with(LedgerTableName="ledger")}
    resources_with({}, answers, monkeypatch)

    assert main(["reconcile", "--definitions", str(SAMPLE_FILE), *(["--repair"] if repair else [])]) == 130

    assert f"interrupted while {Stage.OBSERVING}: {says}" in capsys.readouterr().err


def test_wait__is_counted_down(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress("") as tell:
        tell(Stage.ITEMS, 5, 10)
        for done in (0, 1, 14, 16, 40, 59, 61):
            tell(Stage.ON_THEIR_WAY, done, 60)
        tell(Stage.TOTALS, 0, None)

    assert capsys.readouterr().err.splitlines() == [
        "aggregator: reading items",
        "aggregator: waiting for records on their way to the totals, 60 s at most",
        "aggregator: waiting for records on their way to the totals, 44 s at most",
        "aggregator: waiting for records on their way to the totals, 20 s at most",
        "aggregator: waiting for records on their way to the totals, 1 s at most",
        "aggregator: reading the totals",
    ]


def test_json_and_csv_together__are_refused(run: Any) -> None:
    with pytest.raises(CommandError, match="one of them"):
        run(report(), as_json=True, as_csv=True)


# --- Reports ----------------------------------------------------------------------------------------------------------

ALL = (
    finding(Verdict.DRIFT),
    finding(Verdict.REPAIRED, group=("item312", "2024-07-15"), expected=amounts(1, 11), note="added -1, -1.5"),
    finding(
        Verdict.DRIFT, CUSTOMERS, ("17",), None, amounts(3), "a measure is not a number: remove the attribute by hand"
    ),
    finding(Verdict.UNSETTLED, CUSTOMERS, ("18",), None, None, "the difference kept changing"),
    finding(Verdict.UNPROVABLE, group=("kept", "2024-07-15")),
)


def test_text__has_a_line_for_each_measure_that_differs(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(report(*ALL, unproved=("sold",), hints=("sold: cannot use 2 items",)))

    text = capsys.readouterr().out
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")
    ]
    first_lines = [row[1:5] for row in cells if row[0] in ("sold", "customers")]
    assert first_lines == [
        ["quantity", "12.5", "10", "2.5"],
        ["orders", "2", "1", "1"],
        ["quantity", "12.5", "11", "1.5"],
        ["quantity", "not a number", "3", "?"],
        ["quantity", "?", "?", "?"],
    ]
    folded = re.sub(r"\s+", " ", text)
    assert "1,234 totals compared with 56,789 items in 12 s: 2 drift, 1 unsettled, 1 unprovable, 1 repaired." in folded
    assert 'since they ignore what is removed (remove = "ignore"): sold; 1 of their totals differ' in folded
    assert "replay it first" in folded
    assert "sold: cannot use 2 items" in folded


def test_text_of_a_healthy_run__is_one_sentence(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(report())

    assert capsys.readouterr().out == "1,234 totals compared with 56,789 items in 12 s: all are right.\n"


def test_text_of_what_cannot_be_proved__does_not_say_that_it_is_right(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run(report(unproved=("sold",)))

    assert "all that can be proved are right.\nNot proved" in capsys.readouterr().out


def test_text_where_nothing_was_compared__does_not_look_healthy(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(report(compared=(), left_out=("sold",), hints=("sold: not compared",)))

    out = capsys.readouterr().out
    assert "not compared │\n" in out
    assert out.endswith("\nNothing was compared.\nsold: not compared\n")


def test_csv__has_a_line_for_each_measure_unprovable_ones_too(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(report(*ALL, hints=("sold: cannot use 2 items",)), as_csv=True)

    captured = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(captured.out)))
    assert [(row["aggregation"], row["partition_key"], row["sort_key"], row["measure"]) for row in rows] == [
        ("sold", "item123", "2024-07-15", "quantity"),
        ("sold", "item312", "2024-07-15", "orders"),
        ("sold", "item312", "2024-07-15", "quantity"),
        ("customers", "17", "", "quantity"),
        ("customers", "18", "", "quantity"),
        ("sold", "kept", "2024-07-15", "quantity"),
    ]
    assert (rows[0]["total"], rows[0]["expected"], rows[0]["difference"]) == ("12.5", "10", "2.5")
    assert [row["verdict"] for row in rows] == ["drift", "repaired", "repaired", "drift", "unsettled", "unprovable"]
    assert rows[1]["note"] == "added -1, -1.5"
    assert captured.err == "aggregator: sold: cannot use 2 items\n"


def test_json__has_every_fact(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run(report(*ALL, left_out=("later",), hints=("later: not compared",)), as_json=True)

    document = json.loads(capsys.readouterr().out)
    findings = document.pop("findings")
    assert document == {
        "startedAt": "2026-11-24T04:05:06+00:00",
        "seconds": 12.346,
        "aggregates": 1_234,
        "items": 56_789,
        "records": 42,
        "aggregations": ["sold", "customers"],
        "notProved": [],
        "notCompared": ["later"],
        "drifted": 2,
        "counts": {
            "drift": 2,
            "waits in the dead-letter queue": 0,
            "differs from its receipts": 0,
            "unsettled": 1,
            "unprovable": 1,
            "repaired": 1,
        },
        "hints": ["later: not compared"],
    }
    assert findings[0] == {
        "aggregation": "sold",
        "keys": {"item_number": "item123", "order_date": "2024-07-15"},
        "verdict": "drift",
        "total": {"orders": "2", "quantity": "12.5"},
        "expected": {"orders": "2", "quantity": "10"},
        "difference": {"orders": "0", "quantity": "2.5"},
        "note": "",
    }
    assert (findings[2]["total"], findings[2]["difference"]) == (None, None)
    assert len(findings) == len(ALL)


# --- The metric -------------------------------------------------------------------------------------------------------


def test_metric__stands_where_the_functions_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "describe_stacks": stack_with(FunctionName="worker-function"),
        "get_function_configuration": {"Environment": {"Variables": {"POWERTOOLS_SERVICE_NAME": "mine"}}},
        "put_metric_data": {},
    }
    resources, fake = resources_with({}, answers, monkeypatch)

    publish(resources, 3)

    (parameters,) = (parameters for name, parameters in fake.calls if name == "put_metric_data")
    (datum,) = parameters["MetricData"]
    assert parameters["Namespace"] == NAMESPACE
    assert (datum["MetricName"], datum["Value"], datum["Unit"]) == ("AggregateDrift", 3.0, "Count")
    assert datum["Dimensions"] == [{"Name": "service", "Value": "mine"}]


def test_metric_without_a_stack__takes_the_environments_service(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ClientError({"Error": {"Code": "ValidationError", "Message": "Stack x does not exist"}}, "DescribeStacks")
    answers = {"describe_stacks": missing, "put_metric_data": {}}
    resources, fake = resources_with({"POWERTOOLS_SERVICE_NAME": "here"}, answers, monkeypatch)

    publish(resources, 0)

    (parameters,) = (parameters for name, parameters in fake.calls if name == "put_metric_data")
    assert parameters["MetricData"][0]["Dimensions"][0]["Value"] == "here"


def test_metric_that_cannot_be_published__costs_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    denied = ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutMetricData")
    answers = {
        "describe_stacks": stack_with(FunctionName="worker-function"),
        "get_function_configuration": {},
        "put_metric_data": denied,
    }
    resources, _ = resources_with({}, answers, monkeypatch)

    publish(resources, 3)

    assert "AggregateDrift was not published" in capsys.readouterr().err


# --- Streams and arguments --------------------------------------------------------------------------------------------


def test_earlier_stream__forbids_to_correct() -> None:
    class Streams:
        def list_streams(self, **request: Any) -> Any:
            assert request == {"TableName": "orders"}
            return {"Streams": [{"StreamArn": "arn:now"}, {"StreamArn": "arn:before"}]}

    streams: Any = Streams()

    with pytest.raises(CommandError, match="arn:before"):
        check_only_stream(streams, "orders", "arn:now")


def test_only_stream__is_no_obstacle() -> None:
    class Streams:
        def list_streams(self, **_: Any) -> Any:
            return {"Streams": [{"StreamArn": "arn:now"}]}

    streams: Any = Streams()

    check_only_stream(streams, "orders", "arn:now")


def test_arguments__become_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def instead(_: Any, request: Request, **options: bool) -> int:
        found.append((request, options))
        return 1

    monkeypatch.setattr(command, "reconcile", instead)
    line = "sold --repair --patience 5 --segments 2 --rate 100 --export s3://b/p --csv --no-metric"

    status = main(["reconcile", *line.split(), "--stream-lag", "0.5"])

    assert status == 1
    assert found == [
        (
            Request(("sold",), 2, 100.0, "s3://b/p", True, 5.0, False, 0.5),
            {"as_json": False, "as_csv": True},
        )
    ]


def test_default_arguments__repair_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Request] = []

    def instead(_: Any, request: Request, **options: bool) -> int:
        found.append(request)
        return 0

    monkeypatch.setattr(command, "reconcile", instead)

    assert main(["reconcile"]) == 0
    assert found == [Request()]
    assert (found[0].repair, found[0].patience, found[0].metric) == (False, 60, True)

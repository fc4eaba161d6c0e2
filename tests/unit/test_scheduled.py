"""The scheduled function: its settings, its limit, and that it never publishes what it does not know."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE, load_definitions
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.reconciliation import scheduled
from aggregation_worker.reconciliation.reconcile import OutOfTimeError
from aggregation_worker.reconciliation.report import Finding, Report, Verdict
from aggregation_worker.reconciliation.scheduled import (
    ScheduledSettings,
    SourceTooLargeError,
    UndecidedError,
    lambda_handler,
    read_scheduled_settings,
    reconcile,
)
from aggregation_worker.settings import SettingsError

STREAM_ARN = "arn:aws:dynamodb:us-east-1:123456789012:table/Order_by_item/stream/2024-07-01T00:00:00.000"
ENVIRONMENT = {"LEDGER_TABLE": "ledger", "SOURCE_STREAM_ARN": STREAM_ARN}
(AGGREGATION,) = load_definitions(SAMPLE_FILE).aggregations


class Context:
    """Lambda's context."""

    aws_request_id = "request"

    def __init__(self, seconds: float = 900) -> None:
        self.seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self.seconds * 1000)


def report(
    *verdicts: Verdict,
    compared: tuple[str, ...] = ("a", "b"),
    unproved: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
) -> Report:
    findings = tuple(
        Finding(AGGREGATION, ("secret-item", "2024-07-15"), verdict, (Decimal(1),), (Decimal(2),))
        for verdict in verdicts
    )
    return Report(findings, 10, 100, 5, compared, unproved, left_out, ("a: hint",), datetime.now(UTC), 1.0)


@pytest.fixture
def handle(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs the handler with a report in place of a run; gives its answer, or error, and the metric's values."""
    for name, value in {**ENVIRONMENT, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)

    def handle(found: Report | Exception) -> tuple[Any, list[Any]]:
        def instead(*_: Any, **__: Any) -> Report:
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(scheduled, "reconcile", instead)
        try:
            answer: Any = lambda_handler({}, Context())
        except Exception as error:
            answer = error
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return answer, [line["AggregateDrift"] for line in lines if "AggregateDrift" in line]

    return handle


# --- What it publishes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (report(), 0.0),
        (report(Verdict.DRIFT, Verdict.DRIFT), 2.0),
        (report(Verdict.DRIFT, Verdict.UNSETTLED), 1.0),
        (report(Verdict.UNPROVABLE, compared=("item_count_by_date", "other"), unproved=("item_count_by_date",)), 0.0),
        (report(Verdict.DRIFT, left_out=("c",)), 1.0),
    ],
)
def test_what_is_known__is_published(handle: Any, found: Report, value: float) -> None:
    answer, published = handle(found)

    assert published == [[value]]
    assert answer["verdicts"]["drift"] == value
    assert (answer["aggregates"], answer["items"]) == (10, 100)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (report(Verdict.UNSETTLED), "of 1 of 10 totals it could not be decided"),
        (report(left_out=("c",)), "not all aggregations can be compared: a: hint"),
        (report(compared=(), left_out=("c",)), "not all aggregations can be compared"),
        (report(unproved=("a", "b")), "every aggregation ignores what is removed"),
        (OutOfTimeError("the time was up"), "the time was up"),
        (SourceTooLargeError("too large"), "too large"),
    ],
)
def test_what_is_not_known__is_an_error_and_no_value(
    handle: Any, found: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer, published = handle(found)

    assert isinstance(answer, Exception)
    assert message in str(answer)
    assert published == []
    (error,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert error.exc_info is not None
    assert error.exc_info[1] is answer


def test_log__never_holds_the_keys_of_totals(handle: Any, caplog: pytest.LogCaptureFixture) -> None:
    handle(report(Verdict.DRIFT))

    (line,) = (record for record in caplog.records if record.getMessage() == "reconciled")
    assert line.__dict__["verdicts"]["drift"] == 1
    assert "secret-item" not in repr(line.__dict__)


def test_undecided__is_an_error_of_its_own() -> None:
    with pytest.raises(UndecidedError):
        scheduled._check_decided(report(Verdict.UNSETTLED))


# --- Time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("remaining", "left"), [(900, 885), (20, 15)])
def test_run__stops_in_time_to_say_why(monkeypatch: pytest.MonkeyPatch, remaining: int, left: int) -> None:
    for name, value in {**ENVIRONMENT, "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    seen: list[float] = []

    def instead(*_: Any, seconds_left: Callable[[], float], **__: Any) -> Report:
        seen.append(seconds_left())
        return report()

    monkeypatch.setattr(scheduled, "reconcile", instead)

    lambda_handler({}, Context(remaining))

    assert left - 1 < seen[0] <= left


# --- Settings and limit -----------------------------------------------------------------------------------------------


def test_settings__have_defaults_for_what_need_not_be_set() -> None:
    assert read_scheduled_settings(ENVIRONMENT) == ScheduledSettings(DEFINITIONS_FILE, "ledger", STREAM_ARN, 0)


def test_settings__are_read() -> None:
    environment = {
        **ENVIRONMENT,
        "AGGREGATIONS_FILE": "/tmp/definitions.toml",
        "MAX_SOURCE_BYTES": "600000000",
    }

    assert read_scheduled_settings(environment) == ScheduledSettings(
        Path("/tmp/definitions.toml"), "ledger", STREAM_ARN, 600_000_000
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "missing environment variables: LEDGER_TABLE, SOURCE_STREAM_ARN"),
        ({"LEDGER_TABLE": "ledger", "SOURCE_STREAM_ARN": ""}, "STREAM_ARN"),
        (ENVIRONMENT | {"MAX_SOURCE_BYTES": "-1"}, "whole number of bytes"),
        (ENVIRONMENT | {"MAX_SOURCE_BYTES": "٣"}, "whole number of bytes"),
    ],
)
def test_setting_that_cannot_be_used__is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_scheduled_settings(environment)


class Sized:
    """A DynamoDB client that knows the source's size and nothing else."""

    def __init__(self, size: int) -> None:
        self.size = size

    def describe_table(self, *, TableName: str) -> Any:  # noqa: N803 - boto3's name
        return {"Table": {"TableSizeBytes": self.size, "ItemCount": 1}}


def test_table_over_the_limit__is_not_read_at_all() -> None:
    client: Any = Sized(1_000_001)
    settings = ScheduledSettings(SAMPLE_FILE, "ledger", STREAM_ARN, 1_000_000)

    with pytest.raises(SourceTooLargeError, match=r"Order_by_item has 1,000,001 bytes, more than the 1,000,000"):
        reconcile(settings, client, client, seconds_left=lambda: 900)


@pytest.mark.parametrize("limit", [1_000_000, 0])
def test_table_within_the_limit__is_read(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    class ReadingError(Exception):
        pass

    def scan(client: Any, table: str, **_: Any) -> Any:
        raise ReadingError(table)

    monkeypatch.setattr(scheduled, "ScanSource", scan)
    client: Any = Sized(1_000_000)
    settings = ScheduledSettings(SAMPLE_FILE, "ledger", STREAM_ARN, limit)

    with pytest.raises(ReadingError, match="Order_by_item"):
        reconcile(settings, client, client, seconds_left=lambda: 900)

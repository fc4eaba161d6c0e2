"""Settings from the environment."""

from pathlib import Path

import pytest

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE
from aggregation_worker.settings import Settings, SettingsError, read_settings
from tests.records import STREAM_ARN

ENVIRONMENT = {
    "LEDGER_TABLE": "ledger",
    "LEDGER_RETENTION_DAYS": "60",
    "DEAD_LETTER_QUEUE_URL": "https://sqs.us-east-1.amazonaws.com/123456789012/dead-letters",
    "DEAD_LETTER_BUCKET": "dead-letters",
}


def test_all_variables__are_read() -> None:
    more = {"AGGREGATIONS_FILE": "/etc/totals.toml", "SOURCE_STREAM_ARN": STREAM_ARN, "PATH": "/bin"}
    settings = read_settings({**ENVIRONMENT, **more})

    assert settings == Settings(
        aggregations_file=Path("/etc/totals.toml"),
        ledger_table="ledger",
        ledger_retention_days=60,
        dead_letter_queue_url="https://sqs.us-east-1.amazonaws.com/123456789012/dead-letters",
        dead_letter_bucket="dead-letters",
        source_stream_arn=STREAM_ARN,
    )


@pytest.mark.parametrize("environment", [ENVIRONMENT, {**ENVIRONMENT, "SOURCE_STREAM_ARN": ""}])
def test_stream_of_the_source__need_not_be_known(environment: dict[str, str]) -> None:
    assert read_settings(environment).source_stream_arn is None


@pytest.mark.parametrize("environment", [ENVIRONMENT, {**ENVIRONMENT, "AGGREGATIONS_FILE": ""}])
def test_definitions_file__is_the_bundled_one_by_default(environment: dict[str, str]) -> None:
    assert read_settings(environment).aggregations_file == DEFINITIONS_FILE


@pytest.mark.parametrize("name", ENVIRONMENT)
@pytest.mark.parametrize("present", [True, False])
def test_missing_or_empty_variable__is_named(name: str, present: bool) -> None:
    environment = {key: value for key, value in ENVIRONMENT.items() if key != name} | ({name: ""} if present else {})

    with pytest.raises(SettingsError) as refused:
        read_settings(environment)

    assert str(refused.value) == f"missing environment variables: {name}"


def test_several_missing_variables__are_all_named() -> None:
    with pytest.raises(SettingsError, match=", ".join(ENVIRONMENT)):
        read_settings({})


@pytest.mark.parametrize("days", ["1", "60", "0060", "3650"])
def test_whole_number_of_days__is_read(days: str) -> None:
    assert read_settings({**ENVIRONMENT, "LEDGER_RETENTION_DAYS": days}).ledger_retention_days == int(days)


@pytest.mark.parametrize(
    "days", ["0", "3651", "-1", "+1", "1.5", "60 ", "sixty", "1e2", "6_0", "\uff16\uff10", "\u0666", "9" * 5_000]
)
def test_anything_else_as_days__is_refused_by_name(days: str) -> None:
    with pytest.raises(SettingsError, match="LEDGER_RETENTION_DAYS must be a whole number of days from 1 to 3650"):
        read_settings({**ENVIRONMENT, "LEDGER_RETENTION_DAYS": days})

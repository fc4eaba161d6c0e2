"""The limits of an event source mapping's settings."""

import re
from typing import Any

import pytest

from aggregation_worker.deployment.mapping_settings import MappingSettings, MappingSettingsError
from aggregation_worker.local.filter_criteria import FilterPatternError


def test_defaults__are_those_of_aws() -> None:
    settings = MappingSettings()

    assert (settings.batch_size, settings.maximum_batching_window_seconds, settings.parallelization_factor) == (
        100,
        0,
        1,
    )
    assert (settings.maximum_retry_attempts, settings.maximum_record_age_seconds) == (-1, -1)
    assert not settings.bisect_batch_on_function_error
    assert not settings.report_batch_item_failures


@pytest.mark.parametrize(
    "allowed",
    [
        {"batch_size": 1},
        {"batch_size": 10_000},
        {"maximum_batching_window_seconds": 300},
        {"maximum_retry_attempts": 0},
        {"maximum_retry_attempts": 10_000},
        {"maximum_record_age_seconds": 60},
        {"maximum_record_age_seconds": 604_800},
        {"parallelization_factor": 10},
        {"function_timeout_seconds": 900},
        {"starting_position": "LATEST"},
        {"filter_patterns": ('{"eventName": ["INSERT"]}',) * 10},
    ],
)
def test_setting_at_its_limit__accepted(allowed: dict[str, Any]) -> None:
    MappingSettings(**allowed)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; it must be between 1 and 10000"),
        ({"batch_size": 10_001}, "batch_size is 10001; it must be between 1 and 10000"),
        (
            {"maximum_batching_window_seconds": -1},
            "maximum_batching_window_seconds is -1; it must be between 0 and 300",
        ),
        ({"maximum_batching_window_seconds": 301}, "it must be between 0 and 300"),
        ({"maximum_retry_attempts": -2}, "it must be between 0 and 10000, or -1 for no limit"),
        ({"maximum_retry_attempts": 10_001}, "it must be between 0 and 10000"),
        ({"maximum_record_age_seconds": 59}, "it must be between 60 and 604800, or -1 for no limit"),
        ({"maximum_record_age_seconds": 604_801}, "it must be between 60 and 604800"),
        ({"parallelization_factor": 0}, "it must be between 1 and 10"),
        ({"parallelization_factor": 11}, "it must be between 1 and 10"),
        ({"function_timeout_seconds": 0}, "it must be over 0 and at most 900"),
        ({"function_timeout_seconds": 901}, "it must be over 0 and at most 900"),
        ({"function_memory_mb": 127}, "it must be between 128 and 10240"),
        ({"retry_pause_seconds": -1}, "it must be between 0 and 60"),
        ({"starting_position": "AT_TIMESTAMP"}, "starts at TRIM_HORIZON or LATEST"),
        ({"filter_patterns": ('{"eventName": ["INSERT"]}',) * 11}, "there are 11 filter_patterns; at most 10"),
    ],
)
def test_setting_beyond_its_limit__refused_by_name_and_range(refused: dict[str, Any], message: str) -> None:
    with pytest.raises(MappingSettingsError, match=re.escape(message)):
        MappingSettings(**refused)


def test_filter_pattern_that_cannot_work__refused() -> None:
    with pytest.raises(FilterPatternError):
        MappingSettings(filter_patterns=('{"eventName": "INSERT"}',))


@pytest.mark.parametrize(("configured", "seconds"), [(-1, 86_400), (3600, 3600), (604_800, 86_400)])
def test_oldest_delivered__never_beyond_the_streams_retention(configured: int, seconds: int) -> None:
    assert MappingSettings(maximum_record_age_seconds=configured).oldest_delivered_seconds == seconds

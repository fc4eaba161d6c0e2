"""What an event source mapping is configured with, in AWS's own terms and limits.

Sources: "Lambda parameters for Amazon DynamoDB event source mappings", AWS Lambda developer guide, and
`CreateEventSourceMapping`, AWS Lambda API reference. Knows nothing of polling or delivery.
"""

from dataclasses import dataclass
from typing import get_args

from aggregation_worker.local.filter_criteria import FilterPattern
from aggregation_worker.streams.shards import StartingPosition

# A stream keeps its records for 24 hours, so nothing older is ever delivered.
STREAM_RETENTION_SECONDS = 24 * 60 * 60
MAX_FILTERS = 10


class MappingSettingsError(ValueError):
    """A setting that AWS would refuse; the message names it, the value and what is allowed."""


@dataclass(frozen=True, slots=True)
class MappingSettings:
    """An event source mapping, and of its function what the mapping can feel. The defaults are AWS's.

    Attributes:
        batch_size: most records of one invocation, 1 to 10,000. A batch also ends before 6 MB.
        maximum_batching_window_seconds: how long records are gathered before an incomplete batch is sent, 0 to 300.
        maximum_retry_attempts: how often a failed batch is sent again, 0 to 10,000, or -1 for no limit. Splitting a
            batch costs no attempt.
        maximum_record_age_seconds: records older than this are discarded, 60 to 604,800, or -1 for no limit of its own
            (the stream's 24 hours always apply).
        bisect_batch_on_function_error: send a failed batch again as two halves.
        report_batch_item_failures: `FunctionResponseTypes` holds `ReportBatchItemFailures`; without it what the
            function returns is not looked at.
        filter_patterns: the `Pattern` texts of `FilterCriteria`; a record that matches one of them is delivered.
        starting_position: `TRIM_HORIZON` (all that the stream holds) or `LATEST`.
        parallelization_factor: batches of one shard that are under way at once, 1 to 10. Records of one item stay in
            order.
        function_timeout_seconds: over 0 to 900.
        function_memory_mb: 128 to 10,240; only told to the function, never enforced.
        retry_pause_seconds: pause before a batch's first retry; it doubles up to 64 times as long. AWS does not
            document its own.
    """

    batch_size: int = 100
    maximum_batching_window_seconds: float = 0
    maximum_retry_attempts: int = -1
    maximum_record_age_seconds: int = -1
    bisect_batch_on_function_error: bool = False
    report_batch_item_failures: bool = False
    filter_patterns: tuple[str, ...] = ()
    starting_position: StartingPosition = "TRIM_HORIZON"
    parallelization_factor: int = 1
    function_timeout_seconds: float = 3
    function_memory_mb: int = 128
    retry_pause_seconds: float = 0.1

    def __post_init__(self) -> None:
        """Checks every setting.

        Raises:
            MappingSettingsError: AWS would refuse one.
            FilterPatternError: a filter pattern is not valid, or uses an operator that is not supported here.
        """
        _check("batch_size", self.batch_size, 1, 10_000)
        _check("maximum_batching_window_seconds", self.maximum_batching_window_seconds, 0, 300)
        _check("maximum_retry_attempts", self.maximum_retry_attempts, 0, 10_000, unlimited=True)
        _check("maximum_record_age_seconds", self.maximum_record_age_seconds, 60, 604_800, unlimited=True)
        _check("parallelization_factor", self.parallelization_factor, 1, 10)
        _check("function_memory_mb", self.function_memory_mb, 128, 10_240)
        _check("retry_pause_seconds", self.retry_pause_seconds, 0, 60)
        if not 0 < self.function_timeout_seconds <= 900:
            raise MappingSettingsError(
                f"function_timeout_seconds is {self.function_timeout_seconds}; it must be over 0 and at most 900"
            )
        if self.starting_position not in get_args(StartingPosition):
            raise MappingSettingsError(
                f"starting_position is {self.starting_position!r}; a DynamoDB stream starts at TRIM_HORIZON or LATEST"
            )
        if len(self.filter_patterns) > MAX_FILTERS:
            raise MappingSettingsError(
                f"there are {len(self.filter_patterns)} filter_patterns; at most {MAX_FILTERS} are allowed"
            )
        for pattern in self.filter_patterns:
            FilterPattern.parse(pattern)

    @property
    def oldest_delivered_seconds(self) -> int:
        """Age in seconds beyond which a record is discarded: the configured one, and at most the stream's retention."""
        if self.maximum_record_age_seconds == -1:
            return STREAM_RETENTION_SECONDS
        return min(self.maximum_record_age_seconds, STREAM_RETENTION_SECONDS)


def _check(name: str, value: float, lowest: int, highest: int, *, unlimited: bool = False) -> None:
    if lowest <= value <= highest or (unlimited and value == -1):
        return
    or_unlimited = ", or -1 for no limit" if unlimited else ""
    raise MappingSettingsError(f"{name} is {value}; it must be between {lowest} and {highest}{or_unlimited}")

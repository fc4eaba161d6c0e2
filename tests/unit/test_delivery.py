"""How a batch is retried, split and given up."""

from dataclasses import replace

import pytest

from aggregation_worker.deployment.settings import MAPPING, MappingSettings
from aggregation_worker.handler import FAILURE_PAUSE
from aggregation_worker.local.delivery import (
    Batch,
    BatchFailedError,
    DiscardCondition,
    DiscardedBatch,
    Invocation,
    PolledRecord,
    deliver,
    records_done,
)
from tests.stream_fakes import AWS_DEFAULTS, CREATED_AT, polled_record, polled_records


class Function:
    """A function that fails for some records, and what it was called with; time stands still except in pauses."""

    def __init__(self, failing: set[int], *, raises: bool = False) -> None:
        self.failing = failing
        self.raises = raises
        self.calls: list[str] = []
        self.attempts: list[int] = []
        self.pauses: list[float] = []
        self.time = CREATED_AT + 1.0

    def invoke(self, records: Batch, attempt: int) -> Invocation:
        self.calls.append(text_of(records))
        self.attempts.append(attempt)
        failed = [str(record.sequence_number) for record in records if record.sequence_number in self.failing]
        if self.raises and failed:
            return Invocation(records, attempt, "request", 1.0, 0, error="boom", function_error=True)
        response = {"batchItemFailures": [{"itemIdentifier": number} for number in failed]}
        return Invocation(records, attempt, "request", 1.0, records_done(response, records))

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time += seconds

    def deliver(self, batch: tuple[PolledRecord, ...], settings: MappingSettings) -> list[DiscardedBatch]:
        return list(deliver(batch, settings, self.invoke, now=lambda: self.time, pause=self.pause))


def text_of(records: Batch) -> str:
    return "".join(str(record.sequence_number) for record in records)


# Observed on AWS with four records of which the second always fails.
@pytest.mark.parametrize(
    ("raises", "bisect", "retries", "invocations", "discarded"),
    [
        pytest.param(False, False, 1, "1234 234 234", "234", id="partial failures, no bisect"),
        pytest.param(False, True, 1, "1234 234 2 2 34", "2", id="partial failures and bisect"),
        pytest.param(True, False, 2, "1234 1234 1234", "1234", id="exception"),
        pytest.param(True, True, 1, "1234 12 1 2 2 34", "2", id="exception and bisect"),
    ],
)
def test_second_of_four_records_always_fails__as_on_aws(
    raises: bool, bisect: bool, retries: int, invocations: str, discarded: str
) -> None:
    function = Function({2}, raises=raises)
    settings = replace(AWS_DEFAULTS, bisect_batch_on_function_error=bisect, maximum_retry_attempts=retries)

    given_up = function.deliver(polled_records(1, 2, 3, 4), settings)

    assert function.calls == invocations.split()
    assert [text_of(batch.records) for batch in given_up] == [discarded]
    assert given_up[0].condition is DiscardCondition.RETRY_ATTEMPTS_EXHAUSTED


def test_everything_succeeds__one_invocation() -> None:
    function = Function(set())

    discarded = function.deliver(polled_records(1, 2, 3), AWS_DEFAULTS)

    assert (function.calls, discarded) == (["123"], [])


def test_odd_batch_bisected__first_half_is_the_smaller_one() -> None:
    function = Function({1}, raises=True)

    function.deliver(
        polled_records(1, 2, 3), replace(AWS_DEFAULTS, bisect_batch_on_function_error=True, maximum_retry_attempts=0)
    )

    assert function.calls == ["123", "1", "23"]


def test_no_retries_allowed__splits_isolate_the_failing_record() -> None:
    function = Function({3}, raises=True)

    discarded = function.deliver(
        polled_records(1, 2, 3, 4), replace(AWS_DEFAULTS, bisect_batch_on_function_error=True, maximum_retry_attempts=0)
    )

    assert function.calls == ["1234", "12", "34", "3", "4"]
    assert [text_of(batch.records) for batch in discarded] == ["3"]


def test_progress_at_every_checkpoint__retry_quota_begins_anew() -> None:
    function = Function({2, 3, 4})
    healed_at = {3: 2, 5: 3, 7: 4}

    def invoke(records: Batch, attempt: int) -> Invocation:
        function.failing.discard(healed_at.get(len(function.calls) + 1, 0))
        return function.invoke(records, attempt)

    discarded = list(
        deliver(
            polled_records(1, 2, 3, 4),
            replace(AWS_DEFAULTS, maximum_retry_attempts=1),
            invoke,
            now=lambda: function.time,
            pause=function.pause,
        )
    )

    assert discarded == []
    assert function.calls == ["1234", "234", "234", "34", "34", "4", "4"]


def test_unlimited_retries__batch_is_sent_until_it_succeeds() -> None:
    function = Function({1}, raises=True)

    def pause(seconds: float) -> None:
        function.pause(seconds)
        if len(function.calls) == 50:
            function.failing.clear()

    discarded = list(deliver(polled_records(1), AWS_DEFAULTS, function.invoke, now=lambda: function.time, pause=pause))

    assert discarded == []
    assert len(function.calls) == 51


def test_retries__pause_doubles_up_to_a_limit() -> None:
    function = Function({1}, raises=True)

    discarded = function.deliver(
        polled_records(1), replace(AWS_DEFAULTS, maximum_retry_attempts=8, retry_pause_seconds=0.5)
    )

    assert function.attempts == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert function.pauses == [0.5, 1, 2, 4, 8, 16, 32, 32]
    assert discarded[0].invoke_count == 9


def test_splits__need_no_pause() -> None:
    function = Function({1}, raises=True)

    function.deliver(
        polled_records(1, 2), replace(AWS_DEFAULTS, bisect_batch_on_function_error=True, maximum_retry_attempts=0)
    )

    assert function.pauses == []


def test_records_over_the_maximum_age__discarded_rest_delivered() -> None:
    function = Function(set())
    batch = (polled_record(1, created_at=function.time - 61), polled_record(2, created_at=function.time - 60))

    discarded = function.deliver(batch, replace(AWS_DEFAULTS, maximum_record_age_seconds=60))

    assert function.calls == ["2"]
    assert [(text_of(one.records), one.condition, one.invoke_count) for one in discarded] == [
        ("1", DiscardCondition.RECORD_AGE_EXCEEDED, 0)
    ]
    assert discarded[0].last_invocation is None


def test_record_ages_while_it_is_retried__discarded_as_too_old() -> None:
    function = Function({1}, raises=True)

    discarded = function.deliver(
        polled_records(1), replace(AWS_DEFAULTS, maximum_record_age_seconds=60, retry_pause_seconds=15)
    )

    assert function.calls == ["1", "1", "1"]
    assert discarded[0].condition is DiscardCondition.RECORD_AGE_EXCEEDED
    assert discarded[0].invoke_count == 3
    assert discarded[0].last_invocation is not None


def test_first_record_ages_out_between_retries__attempts_kept() -> None:
    function = Function({2}, raises=True)
    batch = (polled_record(1, created_at=function.time - 55), polled_record(2))

    discarded = function.deliver(
        batch, replace(AWS_DEFAULTS, maximum_record_age_seconds=60, maximum_retry_attempts=2, retry_pause_seconds=10)
    )

    assert function.calls == ["12", "2", "2"]
    assert function.attempts == [1, 2, 3]
    assert [text_of(one.records) for one in discarded] == ["1", "2"]


@pytest.mark.parametrize("maximum_age", [-1, 604_800])
def test_maximum_age_over_a_day__records_leave_with_the_stream(maximum_age: int) -> None:
    function = Function(set())
    day = 24 * 60 * 60

    discarded = function.deliver(
        (polled_record(1, created_at=function.time - day - 1), polled_record(2, created_at=function.time - day + 1)),
        replace(AWS_DEFAULTS, maximum_record_age_seconds=maximum_age),
    )

    assert function.calls == ["2"]
    assert text_of(discarded[0].records) == "1"


def test_pause_raises__delivery_ends_without_a_discard() -> None:
    function = Function({1}, raises=True)

    def closed(seconds: float) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        list(deliver(polled_records(1), AWS_DEFAULTS, function.invoke, now=lambda: function.time, pause=closed))

    assert function.calls == ["1"]


def failures(*identifiers: object) -> dict[str, object]:
    return {"batchItemFailures": [{"itemIdentifier": identifier} for identifier in identifiers]}


@pytest.mark.parametrize("response", [None, {}, {"batchItemFailures": []}, {"batchItemFailures": None}, {"other": 1}])
def test_response_without_failures__all_records_are_done(response: object) -> None:
    assert records_done(response, polled_records(1, 2)) == 2


def test_several_failures__lowest_number_is_the_checkpoint() -> None:
    # As text "9" would be the highest, and as many zeros in front as the stream writes change nothing.
    batch = polled_records(8, 9, 10, 11)

    assert records_done(failures("11", "000000000000000000009", "10"), batch) == 1


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (failures(""), "empty or null"),
        (failures(None), "empty or null"),
        (failures("1", ""), "empty or null"),
        (failures(1), "empty or null"),
        (failures("3"), "itemIdentifier 3 is not in the batch"),
        (failures("1", "3"), "itemIdentifier 3 is not in the batch"),
        (failures("event-1"), "'event-1' is not a sequence number"),
        (failures("²"), "is not a sequence number"),
        ({"batchItemFailures": [{"itemidentifier": "1"}]}, "has no itemIdentifier"),
        ({"batchItemFailures": ["1"]}, "has no itemIdentifier"),
        ({"batchItemFailures": {"itemIdentifier": "1"}}, "is not a list"),
        ("done", "is not a JSON object: 'done'"),
        (["x" * 100], "..."),
    ],
)
def test_response_that_names_no_record__whole_batch_failed(response: object, reason: str) -> None:
    with pytest.raises(BatchFailedError, match=reason.replace(".", r"\.")):
        records_done(response, polled_records(1, 2))


# --- A worker that refuses to start -----------------------------------------------------------------------------------


class Refusing(Function):
    """A deployment that is wrong until `mended_at`: each invocation fails, after the pause that the handler makes."""

    def __init__(self, mended_at: float) -> None:
        super().__init__(set(), raises=True)
        self.mended_at = mended_at
        self.done = 0

    def invoke(self, records: Batch, attempt: int) -> Invocation:
        if self.time >= self.mended_at:
            self.done += len(records)
            return Invocation(records, attempt, "request", 1.0, len(records))
        self.time += FAILURE_PAUSE
        return Invocation(records, attempt, "request", 1.0, 0, error="refused", function_error=True)

    def pause(self, seconds: float) -> None:
        """As if Lambda sent everything again at once: AWS does not say that it waits."""


@pytest.mark.parametrize("count", [1, 1_000])
def test_wrong_deployment__loses_nothing_to_the_bucket_for_hours(count: int) -> None:
    batch = polled_records(*range(count))
    almost_too_old = CREATED_AT + MAPPING.maximum_record_age_seconds - 60
    in_time = Refusing(mended_at=almost_too_old)

    assert in_time.deliver(batch, MAPPING) == []
    assert in_time.done == count


def test_deployment_that_is_never_mended__gives_records_up_by_their_age() -> None:
    never = Refusing(mended_at=float("inf"))

    given_up = never.deliver(polled_records(*range(1_000)), MAPPING)

    assert {one.condition for one in given_up} == {DiscardCondition.RECORD_AGE_EXCEEDED}
    assert sum(len(one.records) for one in given_up) == 1_000
    assert len(given_up) <= 11, "as large as the halves that bisecting left"

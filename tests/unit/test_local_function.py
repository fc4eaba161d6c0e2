"""A handler called as Lambda would call it."""

import logging
import time
from typing import Any

import pytest

from aggregation_worker.local.local_function import Handler, LambdaContext, LocalFunction
from tests.stream_fakes import polled_records

ARN = "arn:aws:lambda:us-east-1:123456789012:function:totals"


def function(handler: Handler, *, timeout_seconds: float = 3, report: bool = True) -> LocalFunction:
    return LocalFunction(handler, "totals", ARN, timeout_seconds, 256, report)


def test_context__has_lambdas_attributes() -> None:
    seen: list[LambdaContext] = []

    def handler(event: dict[str, Any], context: LambdaContext) -> None:
        seen.append(context)

    invocation = function(handler).invoke(polled_records(1), 1)

    context = seen[0]
    assert (context.function_name, context.function_version) == ("totals", "$LATEST")
    assert (context.invoked_function_arn, context.memory_limit_in_mb) == (ARN, "256")
    assert context.log_group_name == "/aws/lambda/totals"
    assert context.aws_request_id == invocation.request_id


def test_each_invocation__has_its_own_request_id() -> None:
    local = function(lambda event, context: None)

    assert local.invoke(polled_records(1), 1).request_id != local.invoke(polled_records(1), 2).request_id


def test_remaining_time__counts_down_from_the_timeout() -> None:
    remaining: list[int] = []

    def handler(event: dict[str, Any], context: LambdaContext) -> None:
        remaining.append(context.get_remaining_time_in_millis())
        time.sleep(0.01)
        remaining.append(context.get_remaining_time_in_millis())

    function(handler, timeout_seconds=60).invoke(polled_records(1), 1)

    assert 30_000 < remaining[0] <= 60_000
    assert remaining[1] <= remaining[0] - 10


def test_remaining_time_after_the_timeout__is_zero() -> None:
    context = LambdaContext("totals", ARN, "256", "request", "stream", deadline=time.monotonic() - 1)

    assert context.get_remaining_time_in_millis() == 0


def test_timeout_exceeded__failed_though_the_handler_ended() -> None:
    ended = []

    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        time.sleep(0.03)
        ended.append(True)
        return {"batchItemFailures": []}

    invocation = function(handler, timeout_seconds=0.01).invoke(polled_records(1, 2), 1)

    assert ended
    assert (invocation.done, invocation.function_error) == (0, True)
    assert invocation.error is not None
    assert invocation.error.startswith("Task timed out after 0.01 seconds (it ran on and ended after 0.")
    assert invocation.duration_ms >= 30


def test_event__is_a_copy_in_json_types() -> None:
    batch = polled_records(1)

    def handler(event: dict[str, Any], context: LambdaContext) -> None:
        event["Records"][0]["dynamodb"].clear()

    function(handler).invoke(batch, 1)

    assert batch[0].event["dynamodb"]["Keys"] == {"orderid": {"S": "a"}}


def test_response__passes_through_json() -> None:
    invocation = function(lambda event, context: {"batchItemFailures": (), 1: "one"}).invoke(polled_records(1), 1)

    assert (invocation.succeeded, invocation.error) == (True, None)


@pytest.mark.parametrize("raised", [ValueError("no such table"), SystemExit(1)])
def test_handler_raises__whole_batch_failed_traceback_logged(
    raised: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(event: dict[str, Any], context: LambdaContext) -> None:
        raise raised

    with caplog.at_level(logging.ERROR):
        invocation = function(handler).invoke(polled_records(1, 2), 1)

    assert (invocation.done, invocation.function_error) == (0, True)
    assert invocation.error == f"{type(raised).__name__}: {raised}"
    assert invocation.request_id in caplog.text
    assert "Traceback" in caplog.text


def test_response_that_is_not_json__whole_batch_failed() -> None:
    invocation = function(lambda event, context: {"batchItemFailures": {1, 2}}).invoke(polled_records(1), 1)

    assert invocation.function_error
    assert invocation.error == "TypeError: Object of type set is not JSON serializable"


def test_partial_failure__records_before_it_are_done() -> None:
    invocation = function(lambda event, context: {"batchItemFailures": [{"itemIdentifier": "2"}]}).invoke(
        polled_records(1, 2, 3), 1
    )

    assert (invocation.done, invocation.error, invocation.succeeded) == (1, None, False)


def test_response_that_names_no_record__no_function_error() -> None:
    invocation = function(lambda event, context: {"batchItemFailures": [{"itemIdentifier": ""}]}).invoke(
        polled_records(1), 1
    )

    assert (invocation.done, invocation.function_error) == (0, False)
    assert invocation.error == "an itemIdentifier is empty or null"


def test_without_report_batch_item_failures__response_ignored() -> None:
    invocation = function(lambda event, context: {"batchItemFailures": [{"itemIdentifier": "1"}]}, report=False).invoke(
        polled_records(1), 1
    )

    assert invocation.succeeded

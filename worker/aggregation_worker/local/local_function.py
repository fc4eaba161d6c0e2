"""A handler run as Lambda would run it: JSON in, JSON out, a context that counts down, and a time limit.

One difference: Lambda stops a function at its timeout, while here it runs to its end and the invocation then counts as
failed. What the handler did until then stays done, as after a timeout that came a moment late.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aggregation_worker.local.delivery import Batch, BatchFailedError, Invocation, records_done

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any], Any], Any]


@dataclass(frozen=True, slots=True)
class LambdaContext:
    """The context object of one invocation ("Using the Lambda context object to retrieve Python function information",
    AWS Lambda developer guide).
    """

    function_name: str
    invoked_function_arn: str
    memory_limit_in_mb: str
    aws_request_id: str
    log_stream_name: str
    deadline: float
    function_version: str = "$LATEST"
    client_context: None = None
    identity: None = None

    @property
    def log_group_name(self) -> str:
        """Where Lambda would write the function's log."""
        return f"/aws/lambda/{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function's timeout, at least 0."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


@dataclass(frozen=True, slots=True)
class LocalFunction:
    """A handler with the configuration that a Lambda function has.

    Attributes:
        handler: called with the event and the context.
        name: the function's name.
        arn: the function's ARN.
        timeout_seconds: longest time that an invocation may take.
        memory_mb: what the context says; not enforced.
        report_batch_item_failures: whether the response is read.
        log_stream_name: one for the function's lifetime.
    """

    handler: Handler
    name: str
    arn: str
    timeout_seconds: float
    memory_mb: int
    report_batch_item_failures: bool
    log_stream_name: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y/%m/%d}/[$LATEST]{uuid.uuid4().hex}")

    def invoke(self, records: Batch, attempt: int) -> Invocation:
        """Calls the handler with `records` as one event. What it raises is in the result and in the log."""
        request_id = str(uuid.uuid4())
        event = json.loads(event_text(records))
        started = time.monotonic()
        context = LambdaContext(
            self.name,
            self.arn,
            str(self.memory_mb),
            request_id,
            self.log_stream_name,
            deadline=started + self.timeout_seconds,
        )
        response = error = None
        try:
            response = json.loads(json.dumps(self.handler(event, context)))
        except (Exception, SystemExit) as raised:
            logger.exception("RequestId: %s the function failed", request_id)
            error = f"{type(raised).__name__}: {raised}"
        duration = time.monotonic() - started
        if duration > self.timeout_seconds:
            error = (
                f"Task timed out after {self.timeout_seconds:.2f} seconds (it ran on and ended after {duration:.2f})"
            )
        if error is not None:
            return Invocation(records, attempt, request_id, duration * 1000, 0, error, function_error=True)
        done = len(records)
        if self.report_batch_item_failures:
            try:
                done = records_done(response, records)
            except BatchFailedError as failed:
                done, error = 0, str(failed)
        return Invocation(records, attempt, request_id, duration * 1000, done, error)


def event_text(records: Batch) -> str:
    """The JSON text of the event that holds `records`."""
    return json.dumps({"Records": [record.event for record in records]}, ensure_ascii=False, separators=(",", ":"))

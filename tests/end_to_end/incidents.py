"""What the runbooks' pages are about, brought about in a deployed stack: metrics, lines of a log, what commands do."""

import contextlib
import io
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import jmespath
from botocore.exceptions import ClientError

from aggregation_worker import handler
from aggregation_worker.aggregations.definitions import load_definitions
from aggregation_worker.batch import BatchResult, RecordOutcome, process
from aggregation_worker.ledger.catalogue import Catalogue, Entry
from aggregation_worker.ledger.commit import Outcome
from aggregation_worker.ledger.failures import Throttle
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.reconciliation import scheduled
from aggregation_worker.reconciliation.report import Finding, Report, Verdict
from tests.dead_letter_fakes import ParkingPlace
from tests.records import changed, insert
from tests.runbook_pages import main_block, preamble

DEFINITIONS = load_definitions(SAMPLE_FILE)
(AGGREGATION,) = DEFINITIONS.aggregations


@dataclass(frozen=True, slots=True)
class Incident:
    """What has happened when somebody opens a page.

    Attributes:
        metrics: values of consecutive periods up to now, `None` for one without; by namespace, name and dimensions,
            where the preamble's variables stand in braces.
        period: seconds between two of them, and between lines of the log.
        log: each makes the worker log something.
        before, after: commands around the page's own.
    """

    metrics: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    period: int = 300
    log: tuple[Callable[[], object], ...] = ()
    before: str = ":"
    after: str = ":"

    def happen(self, page: str, client: Any, outputs: Mapping[str, str]) -> None:
        """Puts metrics and log into CloudWatch."""
        last = (time.time() - 1) // self.period * self.period
        variables = {name: outputs[output] for name, output in re.findall(r"(\w+)=\$\(output (\w+)\)", preamble())}
        for text, values in self.metrics.items():
            namespace, name, *dimensions = text.format(**variables).split()
            pairs = [dict(zip(("Name", "Value"), one.split("="), strict=True)) for one in dimensions]
            data = [
                {"MetricName": name, "Dimensions": pairs, "Value": value, "Timestamp": last - self.period * ago}
                for ago, value in enumerate(reversed(values))
                if value is not None
            ]
            client("cloudwatch").put_metric_data(Namespace=namespace, MetricData=data)
        if self.log:
            stream = {"logGroupName": f"/incidents/{page}", "logStreamName": "worker"}
            client("logs").create_log_group(logGroupName=stream["logGroupName"])
            client("logs").create_log_stream(**stream)
            client("logs").put_log_events(**stream, logEvents=self._events(page, last))

    def _events(self, page: str, last: float) -> list[dict[str, Any]]:
        events = []
        for ago, log in enumerate(reversed(self.log)):
            moment = last - self.period * ago
            lines = selected(main_block(page), logged(log, datetime.fromtimestamp(moment, UTC)))
            events += [{"timestamp": int(moment * 1000), "message": line} for line in lines]
        return events[::-1]

    def script(self, page: str) -> str:
        """The page's main command as it is run then; its log group has a name of its own."""
        names = f'LOG=/incidents/{page}; output() {{ echo "$LOG"; }}' if self.log else ":"
        return f"({names}\n{{\n{self.before}\n}} >&3\n{main_block(page)}{{\n{self.after}\n}} >&3) 2>&1 || true"


def logged(log: Callable[[], object], moment: datetime) -> list[Any]:
    """The lines that the worker logs then."""
    with (
        mock.patch.object(handler.logger.registered_handler, "stream", io.StringIO()) as printed,
        contextlib.suppress(Exception),
    ):
        log()
    at = {"timestamp": f"{moment:%Y-%m-%d %H:%M:%S},000+0000"}
    return [json.loads(line) | at for line in printed.getvalue().splitlines()]


def selected(block: str, lines: Iterable[Any]) -> list[str]:
    """What a block's pattern selects, since ministack's logs give every line."""
    (pattern,) = re.findall(r"--filter-pattern '\{ (.*?) \}'", block)
    expression = re.sub(r"\b(\d+)\b", r"`\1`", pattern.replace(" = ", " == ").replace("$.", "").replace('"', "'"))
    return [json.dumps(line) for line in lines if jmespath.search(expression, line)]


def invocation(module: Any, **instead: Any) -> Callable[[], object]:
    """Of the function in a module, with other things in place of some of its own."""

    def invoke() -> None:
        with mock.patch.multiple(module, **instead):
            module.lambda_handler({"Records": []}, None)

    return invoke


def failing(**definitions: str) -> Callable[[], object]:
    """A worker that refuses to start: these have counted, but its file has another aggregation."""
    catalogue = Catalogue({name: Entry(text, 0, None) for name, text in definitions.items()}, None)
    return invocation(handler, read_settings=mock.Mock(), _worker=lambda _: catalogue.check([AGGREGATION]))


def batch(applied: int, retried: int = 0, **figures: Any) -> Callable[[], object]:
    """A batch with so many records, and these figures of its commit."""
    outcomes = (RecordOutcome.APPLIED,) * applied + (RecordOutcome.RETRIED,) * retried
    return lambda: handler._log(BatchResult(outcomes, {}, Outcome(**figures)), [])


def unparked() -> None:
    """A record without keys that the queue does not take."""
    queue = ParkingPlace()
    error: Any = {"Code": "AWS.SimpleQueueService.NonExistentQueue", "Message": "The specified queue does not exist."}
    queue.sqs.faults.append(ClientError({"Error": error}, "SendMessageBatch"))
    records = [changed(insert(), "dynamodb.Keys")]
    idle = mock.Mock(commit=lambda *_: Outcome())
    handler._log(process(records, DEFINITIONS, idle, queue.queue(), handler.deadline_of(None)), records)


def reconciled(verdict: Verdict, count: int) -> Callable[[], object]:
    """A scheduled reconcile that says this of so many of 10 totals."""
    finding = Finding(AGGREGATION, ("item123", "2024-07-15"), verdict, None, None)
    report = Report((finding,) * count, 10, 250, 0, (AGGREGATION.name,), (), (), (), datetime.now(UTC), 2.0)
    never = {"read_scheduled_settings": mock.Mock(), "boto3": mock.Mock()}
    return invocation(scheduled, reconcile=mock.Mock(return_value=report), **never)


# How Lambda itself logs the end of an invocation: "Lambda Telemetry API Event schema reference", AWS Lambda developer
# guide.
TIMEOUT = {
    "time": "2024-07-15T10:20:30.400Z",
    "type": "platform.report",
    "record": {
        "requestId": "6f7f0961-83a2-4eaf-9b6c-5c8b0b0a6a33",
        "metrics": {"durationMs": 60_000.0, "billedDurationMs": 60_000, "memorySizeMB": 1769, "maxMemoryUsedMB": 103},
        "status": "timeout",
    },
}

DAY = 86_400
WORKER = "DynamoDBAggregationWorker"
OTHER = AGGREGATION.definition.replace('"day"', '"month"')

# By page; where each metric stands is in cdk/aggregation_worker_cdk/metrics.py.
INCIDENTS = {
    "aggregate-drift": Incident(
        period=DAY, log=(reconciled(Verdict.DRIFT, 0), reconciled(Verdict.DRIFT, 0), reconciled(Verdict.DRIFT, 2))
    ),
    "change-a-definition": Incident(
        {"AWS/DynamoDB ConsumedReadCapacityUnits TableName=item_count_by_date": (5120, 4870.5, 12, 0, 0, 0)}, DAY
    ),
    "deleted-or-restored-table": Incident(before="TARGETS=orders_by_customer"),
    "destination-delivery-failures": Incident(before="BUCKET=$BUCKET-deleted"),
    "dropped-events": Incident(
        {"AWS/Lambda DroppedEventCount EventSourceMappingUUID={MAPPING}": (412, 1000, 1000)}, 3600
    ),
    "duration": Incident(
        period=60,
        log=(batch(880, 120, throttled={Throttle.KEY: 41}), batch(722, 278, conflicts=3, throttled={Throttle.KEY: 87})),
    ),
    "errors": Incident(period=30, log=(failing(item_count_by_date=OTHER),) * 3),
    "iterator-age": Incident(
        {"AWS/Lambda IteratorAge FunctionName={FUNCTION}": (188_000, 247_000, 307_000, 366_000)}, 60
    ),
    "iterator-age-critical": Incident(
        period=30, log=(failing(item_count_by_date=AGGREGATION.definition, by_day=OTHER),) * 4
    ),
    "on-failure-deliveries": Incident(
        before="""
            BUCKET=incident
            aws s3api create-bucket --bucket "$BUCKET"
            for BYTES in 12907 48213; do
                head -c $BYTES /dev/zero > batch
                aws s3api put-object --bucket "$BUCKET" --key "aws/lambda/$BYTES" --body batch
            done
            """,
    ),
    "pause-and-resume": Incident(
        before='aws lambda update-event-source-mapping --uuid "$MAPPING" --no-enabled',
        after='aws lambda update-event-source-mapping --uuid "$MAPPING" --enabled',
    ),
    "read-the-stream-again": Incident(
        {"AWS/Lambda IteratorAge FunctionName={FUNCTION} Resource={FUNCTION}:7": (80_400_000, 12_100_000, 2040)},
        60,
        before="VERSION=7",
    ),
    "reading-stopped": Incident(
        {
            "AWS/DynamoDB ConsumedWriteCapacityUnits TableName={SOURCE}": (812, 790, 833, 801, 795),
            "AWS/Lambda PolledEventCount EventSourceMappingUUID={MAPPING}": (812, 790, None, None, None),
        }
    ),
    "receipts-differ": Incident(
        period=60, log=(batch(10, differing=[None] * 2), batch(10), batch(10, differing=[None]))
    ),
    "reconcile-failed": Incident(period=DAY, log=(reconciled(Verdict.UNSETTLED, 3),)),
    "reconcile-not-run": Incident(
        before='aws events disable-rule --name "$(output ReconcileRuleName)"',
        after='aws events enable-rule --name "$(output ReconcileRuleName)"',
    ),
    "records-retried": Incident(period=60, log=(unparked,) * 2),
    "system-errors": Incident({f"{WORKER} RecordsApplied service={{NAME}}": (9120, 8875, 410, 0, 0)}),
    "throttles": Incident(
        {"AWS/Lambda ConcurrentExecutions FunctionName={FUNCTION}": (1, 2, 2, 2)},
        before='aws lambda put-function-concurrency --function-name "$FUNCTION" --reserved-concurrent-executions 2',
        after='aws lambda delete-function-concurrency --function-name "$FUNCTION"',
    ),
    "write-conflicts": Incident(
        {
            f"{WORKER} WriteConflicts service={{NAME}}": (3120, 4205, 3980),
            f"{WORKER} RowAdds service={{NAME}}": (5210, 5100, 5342),
            f"{WORKER} RowArchives service={{NAME}}": (61, 58, 66),
            f"{WORKER} LateWrites service={{NAME}}": (1840, 2417, 2290),
        }
    ),
    "write-throttling": Incident({f"{WORKER} ThrottledByKey service={{NAME}}": (0, 214, 977, 1031)}),
}

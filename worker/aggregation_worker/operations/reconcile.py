"""`aggregator reconcile`: are the totals right? Compares them with the source, and with `--repair` corrects them.

What is done, and why it is exact, stands in `reconciliation`; here are the command line's choices, the dead
letters that speak against a correction, the reports and the metric.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.numbers import Amounts, canonical_text
from aggregation_worker.ledger.definition_guard import DefinitionChangedError
from aggregation_worker.operations.errors import CommandError, explain_aws_error
from aggregation_worker.operations.letters import HeldMessages, resolve_letter
from aggregation_worker.operations.options import add_deployment_options, add_source_options, positive
from aggregation_worker.operations.output import console, print_json, print_table
from aggregation_worker.operations.resources import Resources
from aggregation_worker.operations.source import chosen_aggregations, items_of, shown_progress, stream_arn_of
from aggregation_worker.operations.status import service_of
from aggregation_worker.reconciliation.items import ExportError
from aggregation_worker.reconciliation.reconcile import (
    LOOKS_AT_ONCE,
    PATIENCE,
    Finding,
    ReconcileError,
    Reconciliation,
    Report,
    Stage,
    Verdict,
)
from aggregation_worker.reconciliation.repair import UnreadableLetterError
from aggregation_worker.reconciliation.snapshot import SnapshotError
from aggregation_worker.reconciliation.spool import Spool, SpoolError
from aggregation_worker.streams.reader import HistoryLostError, StreamReader
from aggregation_worker.streams.records import StreamViewTypeError, UnexpectedEventError
from aggregation_worker.streams.shards import StartingPosition, StreamGapError
from aggregation_worker.telemetry import NAMESPACE, SERVICE, Metric

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient

_STAGES: dict[str, str] = {
    Stage.ITEMS: "reading items",
    Stage.STREAM: "reading the stream up to now",
    Stage.SUMS: "adding up",
    Stage.TOTALS: "reading the totals",
    Stage.LOOKING: "looking again at totals that differ or are being written",
    Stage.LETTERS: "reading the dead letters",
    Stage.CORRECTING: "correcting",
}
# Seconds that the letters are invisible to others, should this command be killed before it gives them back.
_VISIBILITY_TIMEOUT = 60
# Seconds in which the queue's own count of its messages, which lags, must agree with what was read.
_COUNT_PATIENCE = 90
_POLL_SECONDS = 2.0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Recomputes every total from the source table while it is written to, and lists those that differ: drift is a "
        "difference that no record on its way accounts for. With --repair each is corrected, with a receipt that "
        "explain shows. Exit status 0 only if every total is right by now."
    )
    parser.add_argument("names", metavar="AGGREGATION", nargs="*", help="only these (default: all)")
    parser.add_argument("--repair", action="store_true", help="correct what drifts")
    parser.add_argument(
        "--nothing-removed",
        action="store_true",
        help="no item was ever removed: compare aggregations that keep what removed items contributed, too",
    )
    parser.add_argument(
        "--patience",
        type=positive(float),
        default=PATIENCE,
        metavar="SECONDS",
        help=f"how long a difference must stay the same to be drift (default: {PATIENCE:.0f})",
    )
    add_source_options(parser)
    parser.add_argument("--csv", action="store_true", help="CSV on standard output: a line for each measure")
    parser.add_argument("--no-metric", action="store_true", help="leave out the metric AggregateDrift")
    parser.add_argument(
        "--stream-lag",
        type=positive(float),
        default=10.0,
        metavar="SECONDS",
        help="how long a record may take to appear in the stream (default: 10)",
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs `reconcile` as the command line says."""
    request = Request(
        tuple(options.names),
        repair=options.repair,
        nothing_removed=options.nothing_removed,
        patience=options.patience,
        segments=options.segments,
        rate=options.rate,
        export=options.export,
        metric=not options.no_metric,
        stream_lag=options.stream_lag,
    )
    return reconcile(Resources.of(options), request, as_json=options.json, as_csv=options.csv)


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for.

    Attributes:
        names: aggregations; none means all.
        patience: seconds that a difference must stay the same to be drift.
        segments: parallel readers of the table.
        rate: read units a second at most, or `None`.
        export: `s3://bucket/prefix` of a table export to read in place of the table.
        metric: whether to publish `AggregateDrift`.
        stream_lag: seconds; see `StreamReader`.
    """

    names: tuple[str, ...] = ()
    repair: bool = False
    nothing_removed: bool = False
    patience: float = PATIENCE
    segments: int = 4
    rate: float | None = None
    export: str | None = None
    metric: bool = True
    stream_lag: float = 10.0


def reconcile(resources: Resources, request: Request, *, as_json: bool, as_csv: bool) -> int:
    """Compares, corrects if asked to, and reports; returns 0 if every total is right by now, else 1.

    Raises:
        CommandError: nothing can be said about the totals, or nothing may be corrected.
    """
    if as_json and as_csv:
        raise CommandError("--json and --csv: one of them at a time")
    try:
        report = _run(resources, request)
    except (
        DefinitionChangedError,
        ExportError,
        HistoryLostError,
        ReconcileError,
        SnapshotError,
        SpoolError,
        StreamViewTypeError,
        StreamGapError,
        UnexpectedEventError,
        UnreadableLetterError,
    ) as error:
        raise CommandError(str(error)) from error
    if request.metric and (report.drifted or report.is_decided):
        publish(resources, report.drifted)
    if as_json:
        print_json(_as_json(report))
    elif as_csv:
        _write_csv(report)
    else:
        _print(report)
    return 1 if report.drifted or report.undecided or report.left_out else 0


def _run(resources: Resources, request: Request) -> Report:
    aggregations = chosen_aggregations(resources, request.names)
    items = items_of(resources, segments=request.segments, rate=request.rate, export=request.export)
    stream_arn = stream_arn_of(resources)
    streams = resources.client("dynamodbstreams")
    if request.repair:
        check_only_stream(streams, resources.definitions.source.table, stream_arn)
    start: StartingPosition = "LATEST" if not request.repair and request.export is None else "TRIM_HORIZON"
    reader = StreamReader(streams, stream_arn, start, stream_lag=request.stream_lag)
    with (
        ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="look") as executor,
        shown_progress(_STAGES) as tell,
        Spool(None) as spool,
    ):
        return Reconciliation(
            client=resources.dynamodb,
            definitions=resources.definitions,
            aggregations=aggregations,
            ledger_table=resources.ledger_table,
            items=items,
            reader=reader,
            executor=executor,
            nothing_removed=request.nothing_removed,
            patience=request.patience,
            letters=(lambda: records_of_letters(resources)) if request.repair else None,
            progress=tell,
        ).run(spool)


def check_only_stream(streams: "DynamoDBStreamsClient", table: str, stream_arn: str) -> None:
    """Refuses to correct while records of an earlier stream can still come: nobody could tell which.

    A stream that was switched off can be read for 24 hours more ("Change data capture for DynamoDB Streams", Amazon
    DynamoDB developer guide).

    Raises:
        CommandError: the table has another stream.
    """
    found = streams.list_streams(TableName=table)["Streams"]
    earlier = [stream["StreamArn"] for stream in found if stream["StreamArn"] != stream_arn]
    if earlier:
        raise CommandError(
            f"nothing was corrected: table {table} had another stream until at most a day ago ({earlier[0]}), and "
            "records of it may still reach the totals; run this again when it is gone"
        )


# --- Dead letters -----------------------------------------------------------------------------------------------------


def records_of_letters(
    resources: Resources, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
) -> list[Any]:
    """The records of all dead letters that wait now; takes nothing out of the queue.

    Raises:
        CommandError: one cannot be read, or others hold some: a correction could count their records twice.
    """
    with HeldMessages(resources.sqs, resources.queue_url, _VISIBILITY_TIMEOUT) as held:
        soon = held.started_at() + timedelta(days=1)  # those that come while this reads, too
        letters = [resolve_letter(message, resources) for page in held.receive(soon) for message in page]
        unreadable = [letter for letter in letters if not letter.readable]
        if unreadable:
            reasons = "; ".join(unreadable[0].reasons)
            raise CommandError(
                f"nothing was corrected: {len(unreadable)} of {len(letters)} dead letters cannot be read, so nobody "
                f"knows which totals they change ({reasons}); discard or replay them first"
            )
        deadline = clock() + _COUNT_PATIENCE
        while (waiting := held.waiting()) != len(letters):
            if clock() >= deadline:
                raise CommandError(
                    f"nothing was corrected: the dead-letter queue has {waiting} messages, but {len(letters)} could be "
                    "read; another command may hold the others: run this again when it is done"
                )
            sleep(_POLL_SECONDS)
    return [record for letter in letters for record in letter.records]


# --- The metric -------------------------------------------------------------------------------------------------------


def publish(resources: Resources, drifted: int) -> None:
    """Puts `AggregateDrift` where the scheduled reconcile puts it; a failure is only a line on standard error."""
    try:
        service = service_of(resources)
    except CommandError:  # no stack that would name the function
        service = resources.environment.get("POWERTOOLS_SERVICE_NAME") or SERVICE
    try:
        resources.client("cloudwatch").put_metric_data(
            Namespace=NAMESPACE,
            MetricData=[
                {
                    "MetricName": Metric.AGGREGATE_DRIFT.value,
                    "Dimensions": [{"Name": "service", "Value": service}],
                    "Timestamp": datetime.now(UTC),
                    "Value": float(drifted),
                    "Unit": "Count",
                }
            ],
        )
    except (BotoCoreError, ClientError) as error:
        sys.stderr.write(
            f"aggregator: the metric {Metric.AGGREGATE_DRIFT.value} was not published: {explain_aws_error(error)}; "
            "--no-metric leaves it out\n"
        )


# --- Reports ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """One measure of one finding, in texts."""

    finding: Finding
    measure: str
    total: str
    expected: str
    difference: str


def _lines(finding: Finding) -> Iterator[_Line]:
    """The measures that differ; all of them where that is not known."""
    names = [measure.name for measure in finding.aggregation.measures]
    unknown = (None,) * len(names)
    difference = finding.difference
    rows = zip(names, finding.total or unknown, finding.expected or unknown, difference or unknown, strict=True)
    no_total = "?" if finding.expected is None else "not a number"
    for name, total, expected, differs in rows:
        if difference is None or differs or not any(difference):
            yield _Line(finding, name, _text(total, no_total), _text(expected, "?"), _text(differs, "?"))


def _text(amount: Any, missing: str) -> str:
    return missing if amount is None else canonical_text(amount)


def _print(report: Report) -> None:
    rows = [
        (
            line.finding.aggregation.name,
            "\n".join(line.finding.group),
            line.measure,
            line.total,
            line.expected,
            line.difference,
            line.finding.verdict + (f": {line.finding.note}" if line.finding.note else ""),
        )
        for finding in report.findings
        if finding.verdict is not Verdict.UNPROVABLE
        for line in _lines(finding)
    ]
    if rows:
        columns = ("aggregation", "keys", "measure", "total", "expected", "difference", "verdict")
        print_table("Totals that are not simply right", columns, rows)
    for sentence in _sentences(report):
        console().print(sentence, markup=False)


def _sentences(report: Report) -> Iterator[str]:
    compared = f"{report.aggregates:,} totals compared with {report.items:,} items in {report.seconds:.0f} s"
    found = [f"{report.count(verdict):,} {verdict}" for verdict in Verdict if report.count(verdict)]
    if report.compared:
        yield f"{compared}: {', '.join(found)}." if found else f"{compared}: all are right."
    else:
        yield "Nothing was compared."
    if unprovable := report.count(Verdict.UNPROVABLE):
        yield (
            f"{unprovable:,} totals of aggregations that keep what removed items contributed differ from the items "
            "that are left, which proves nothing; if no item was ever removed, say so with --nothing-removed. "
            "--csv lists them."
        )
    if report.count(Verdict.DRIFT):
        yield "Drift includes what waits in the dead-letter queue: replay it first. --repair corrects the rest."
    yield from report.hints


def _write_csv(report: Report) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        (
            *("aggregation", "partition_key", "sort_key", "measure"),
            *("total", "expected", "difference", "verdict", "note"),
        )
    )
    for finding in report.findings:
        for line in _lines(finding):
            partition_key, *sort_key = finding.group
            writer.writerow(
                (
                    *(finding.aggregation.name, partition_key, sort_key[0] if sort_key else "", line.measure),
                    *(line.total, line.expected, line.difference, finding.verdict.value, finding.note),
                )
            )
    for hint in report.hints:
        sys.stderr.write(f"aggregator: {hint}\n")


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "startedAt": report.started_at.isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "aggregates": report.aggregates,
        "items": report.items,
        "records": report.records,
        "aggregations": list(report.compared),
        "notCompared": list(report.left_out),
        "drifted": report.drifted,
        "counts": {verdict.value: report.count(verdict) for verdict in Verdict},
        "findings": [_finding_as_json(finding) for finding in report.findings],
        "hints": list(report.hints),
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    keys = [key.name for key in finding.aggregation.keys]

    def by_measure(amounts: Amounts | None) -> dict[str, str] | None:
        if amounts is None:
            return None
        names = (measure.name for measure in finding.aggregation.measures)
        return {name: canonical_text(amount) for name, amount in zip(names, amounts, strict=True)}

    return {
        "aggregation": finding.aggregation.name,
        "keys": dict(zip(keys, finding.group, strict=True)),
        "verdict": finding.verdict.value,
        "total": by_measure(finding.total),
        "expected": by_measure(finding.expected),
        "difference": by_measure(finding.difference),
        "note": finding.note,
    }

"""`aggregator reconcile`: are the totals right? Compares them with the source, and with `--repair` corrects them.

`reconciliation` does the work, and explains why it is exact; here are the command line, the dead letters that prevent a
correction, and the metric.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.operations.all_letters import COUNT_LAG, AllLetters
from aggregation_worker.operations.errors import CommandError, explain_aws_error
from aggregation_worker.operations.options import add_deployment_options, positive
from aggregation_worker.operations.output import print_json
from aggregation_worker.operations.reconcile_report import print_report, report_as_json, write_csv
from aggregation_worker.operations.resources import Resources
from aggregation_worker.operations.source import (
    SourceRequest,
    add_source_options,
    chosen_aggregations,
    items_of,
    request_of,
    shown_progress,
    stream_arn_of,
    stream_reader,
)
from aggregation_worker.operations.status import service_of
from aggregation_worker.reconciliation.observer import OBSERVED_AT_ONCE
from aggregation_worker.reconciliation.reconcile import PATIENCE, Reconciliation, Repairs
from aggregation_worker.reconciliation.report import Report
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.streams.reader import STREAM_LAG
from aggregation_worker.telemetry import NAMESPACE, SERVICE, Metric

if TYPE_CHECKING:
    from mypy_boto3_dynamodbstreams.client import DynamoDBStreamsClient

    from aggregation_worker.streams.shards import StartingPosition

_INTERRUPTED = "what was corrected stays corrected, each total wholly or not at all; run the command again for the rest"
_INTERRUPTED_READING = "nothing was changed; run the command again"
# Exit status where no total is wrong, but some could not be proved.
_NOT_PROVED = 3


@dataclass(frozen=True, slots=True)
class Request(SourceRequest):
    """What the command line asks for.

    Attributes:
        patience: seconds for which a record without a receipt is waited for.
        metric: whether to publish `AggregateDrift`, where all aggregations are compared.
        stream_lag: seconds; see `StreamReader`; `None` for what the endpoint needs.
        queue_lag: seconds; see `AllLetters`; `None` for what the endpoint needs.
    """

    repair: bool = False
    patience: float = PATIENCE
    metric: bool = True
    stream_lag: float | None = None
    queue_lag: float | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line; its defaults are those of `Request`."""
    default = Request()
    parser.description = (
        "Recomputes every total from the source table while it is written to, and lists those that differ: drift is a "
        "difference that no record on its way accounts for. With --repair each is corrected, with a receipt that "
        "explain shows. Exit status: 0 only if every total is proved right, but for those of aggregations that ignore "
        "what is removed; 1 if some are wrong; 3 if none is, but some could not be proved; 2 for an error."
    )
    parser.add_argument("names", metavar="AGGREGATION", nargs="*", help="only these (default: all)")
    parser.add_argument("--repair", action="store_true", help="correct what drifts")
    parser.add_argument(
        "--patience",
        type=positive(float),
        default=default.patience,
        metavar="SECONDS",
        help=f"how long to wait for records on their way to the totals (default: {default.patience:.0f})",
    )
    add_source_options(parser)
    parser.add_argument("--csv", action="store_true", help="CSV on standard output: a line for each measure")
    parser.add_argument(
        "--no-metric",
        action="store_false",
        dest="metric",
        help="leave out the metric AggregateDrift, which only a run over all aggregations publishes",
    )
    parser.add_argument(
        "--stream-lag",
        type=positive(float),
        metavar="SECONDS",
        help=f"how long a record may take to appear in the stream (default: {STREAM_LAG:.0f}; 0 on this machine)",
    )
    parser.add_argument(
        "--queue-lag",
        type=positive(float),
        metavar="SECONDS",
        help="how long the dead-letter queue's counts must agree with what was read before anything is corrected "
        f"(default: {COUNT_LAG:.0f}; 0 on this machine)",
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs `reconcile` as the command line says."""
    return reconcile(Resources.of(options), request_of(Request, options), as_json=options.json, as_csv=options.csv)


def reconcile(resources: Resources, request: Request, *, as_json: bool, as_csv: bool) -> int:
    """Compares, corrects if asked to, and reports; returns the exit status, see `add_options`.

    Raises:
        WorkerError: nothing can be said about the totals, or nothing may be corrected.
    """
    if as_json and as_csv:
        raise CommandError("--json and --csv: one of them at a time")
    report = _run(resources, request)
    if request.metric and not request.names and (report.drifted or report.is_decided):
        publish(resources, report.drifted)
    if as_json:
        print_json(report_as_json(report))
    elif as_csv:
        write_csv(report)
    else:
        print_report(report)
    if report.drifted:
        return 1
    return _NOT_PROVED if report.is_open else 0


def _run(resources: Resources, request: Request) -> Report:
    aggregations = chosen_aggregations(resources, request.names)
    items = items_of(resources, request)
    stream_arn = stream_arn_of(resources)
    streams = resources.client("dynamodbstreams")
    if request.repair:
        check_only_stream(streams, resources.definitions.source.table, stream_arn)
    start: StartingPosition = "LATEST" if not request.repair and request.export is None else "TRIM_HORIZON"
    reader = stream_reader(resources, stream_arn, start, request.stream_lag)
    with (
        ThreadPoolExecutor(OBSERVED_AT_ONCE, thread_name_prefix="observation") as executor,
        shown_progress(_INTERRUPTED if request.repair else _INTERRUPTED_READING) as tell,
        Spool(None) as spool,
        ExitStack() as stack,
    ):
        letters = AllLetters(resources, stack, request.queue_lag, progress=tell)
        report = Reconciliation(
            client=resources.dynamodb,
            definitions=resources.definitions,
            aggregations=aggregations,
            ledger_table=resources.ledger_table,
            items=items,
            reader=reader,
            executor=executor,
            patience=request.patience,
            repairs=Repairs(letters.read, resources.ledger_retention_days) if request.repair else None,
            progress=tell,
        ).run(spool)
        letters.delete(report.settled)
        return report


def check_only_stream(streams: "DynamoDBStreamsClient", table: str, stream_arn: str) -> None:
    """Refuses to correct while records of an earlier stream can still come: which, is not known.

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

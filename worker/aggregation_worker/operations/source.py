"""What `backfill` and `reconcile` choose from the definitions and the source table: aggregations, stream, items."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar

from rich.progress import Progress, TaskID

from aggregation_worker.aggregations.contributions import Aggregation
from aggregation_worker.deployment.settings import STREAM_VIEW_TYPE
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import positive
from aggregation_worker.operations.output import progress
from aggregation_worker.operations.resources import Resources, is_on_this_machine
from aggregation_worker.reconciliation.export import ExportSource
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.progress import WAITS, Stage, Tell
from aggregation_worker.reconciliation.scan import SEGMENTS, ScanSource
from aggregation_worker.streams.reader import STREAM_LAG, StreamReader
from aggregation_worker.streams.shards import StartingPosition

_S3 = "s3://"
# Seconds between lines that say how long is still waited.
_WAITING_EVERY = 15


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """What both commands can be asked for.

    Attributes:
        names: aggregations; none means all.
        segments: parallel readers of the table.
        rate: read units a second at most, or `None`.
        export: `s3://bucket/prefix` of a table export to read in place of the table.
    """

    names: tuple[str, ...] = ()
    segments: int = SEGMENTS
    rate: float | None = None
    export: str | None = None


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """How the source table's items are read."""
    default = SourceRequest()
    parser.add_argument(
        "--segments",
        type=positive(int),
        default=default.segments,
        metavar="N",
        help=f"parallel readers of the table (default: {default.segments})",
    )
    parser.add_argument("--rate", type=positive(float), metavar="RCU", help="read units a second, at most")
    parser.add_argument(
        "--export", metavar="s3://BUCKET/PREFIX", help="read a table export (DynamoDB JSON) in place of the table"
    )


R = TypeVar("R", bound=SourceRequest)


def request_of(kind: type[R], options: argparse.Namespace) -> R:
    """What the command line asks for: options bear the names of the request's fields."""
    values = {field.name: getattr(options, field.name) for field in fields(kind)}
    return kind(**values | {"names": tuple(options.names)})


def chosen_aggregations(resources: Resources, names: Sequence[str]) -> list[Aggregation]:
    """The aggregations with these names, or all, in the file's order.

    Raises:
        CommandError: there is none with one of the names.
    """
    all_of_them = resources.definitions.aggregations
    unknown = set(names) - {aggregation.name for aggregation in all_of_them}
    if unknown:
        known = ", ".join(aggregation.name for aggregation in all_of_them)
        raise CommandError(f"no aggregation is named {min(unknown)!r}; the definitions have {known}")
    return [aggregation for aggregation in all_of_them if not names or aggregation.name in names]


def stream_arn_of(resources: Resources) -> str:
    """The stream that the worker reads, which must be the source table's present one, with both images.

    Raises:
        CommandError: it is not.
    """
    source = resources.definitions.source
    table = resources.dynamodb.describe_table(TableName=source.table)["Table"]
    specification = table.get("StreamSpecification", {})
    latest = table.get("LatestStreamArn")
    if latest is None or not specification.get("StreamEnabled"):
        raise CommandError(
            f"table {source.table!r} has no stream: enable one ({STREAM_VIEW_TYPE}) and deploy the worker"
        )
    if specification.get("StreamViewType") != STREAM_VIEW_TYPE:
        raise CommandError(
            f"the stream of table {source.table!r} has the view type {specification.get('StreamViewType')}, but "
            f"{STREAM_VIEW_TYPE} is needed"
        )
    if source.stream_arn not in (None, latest):
        raise CommandError(
            f"the worker reads {source.stream_arn}, but the stream of table {source.table!r} is {latest} by now: "
            "deploy the worker with that one first"
        )
    return latest


def stream_reader(
    resources: Resources, stream_arn: str, start: StartingPosition, stream_lag: float | None = None
) -> StreamReader:
    """A reader of the source's stream; on this machine records are in the stream as soon as they are written.

    An empty page is its end there. Of a table that is written to all the time, two in a row may never come.

    Args:
        stream_lag: seconds; see `StreamReader`.
    """
    client = resources.client("dynamodbstreams")
    if not is_on_this_machine(client):
        return StreamReader(client, stream_arn, start, stream_lag=STREAM_LAG if stream_lag is None else stream_lag)
    return StreamReader(client, stream_arn, start, stream_lag=stream_lag or 0.0, empty_pages=1, poll_interval=0.0)


def items_of(resources: Resources, request: SourceRequest) -> ItemSource:
    """A scan of the source table, or an export of it.

    Raises:
        CommandError: `export` is not of its form.
        ExportError: there is no usable export.
    """
    table, export = resources.definitions.source.table, request.export
    if export is None:
        return ScanSource(resources.dynamodb, table, segments=request.segments, rate=request.rate)
    bucket, _, prefix = export.removeprefix(_S3).partition("/")
    if not export.startswith(_S3) or not bucket or not prefix:
        raise CommandError(f"--export: s3://bucket/prefix is needed, not {export!r}")
    return ExportSource(resources.s3, bucket, prefix, table=table)


@contextmanager
def shown_progress(interrupted: str) -> Iterator[Tell]:
    """Bars on a terminal; elsewhere a line when a stage begins. On standard error.

    Args:
        interrupted: what to say after Ctrl-C: what is done, and how to go on.
    """
    with progress() as bars:
        shown = _Lines() if bars.disable else _Bars(bars)
        try:
            yield shown
        except KeyboardInterrupt:
            bars.stop()
            sys.stderr.write(f"aggregator: interrupted while {shown.stage or 'beginning'}: {interrupted}\n")
            raise


@dataclass(slots=True)
class _Lines:
    """Says which stage a run is in, and how long it still waits."""

    stage: Stage | None = None
    left: int = 0

    def __call__(self, stage: Stage, done: int, of: int | None) -> None:
        left = _seconds_left(stage, done, of)
        if stage is not self.stage or self.left - left >= _WAITING_EVERY:
            self.stage, self.left = stage, left
            sys.stderr.write(f"aggregator: {stage}{f', {left} s at most' if left else ''}\n")
            sys.stderr.flush()


def _seconds_left(stage: Stage, done: int, of: int | None) -> int:
    """For how long a stage that waits still does so; 0 for the others."""
    return max(0, of - done) if of is not None and stage in WAITS else 0


@dataclass(slots=True)
class _Bars:
    """A bar for each stage."""

    bars: Progress
    stage: Stage | None = None
    task: TaskID | None = None

    def __call__(self, stage: Stage, done: int, of: int | None) -> None:
        if self.task is None or stage is not self.stage:
            self.stage, self.task = stage, self.bars.add_task(stage, total=None)
        # DynamoDB counts a table's items every six hours or so: there can be more.
        total = None if of is None else max(of, done)
        left = _seconds_left(stage, done, of)
        description = f"{stage}, {left} s at most" if left else str(stage)
        self.bars.update(self.task, completed=done, total=total, description=description)

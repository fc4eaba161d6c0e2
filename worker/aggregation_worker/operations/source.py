"""What `backfill` and `reconcile` choose from the definitions and the source table: aggregations, stream, items."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from aggregation_worker.aggregations.contributions import Aggregation
from aggregation_worker.deployment.settings import STREAM_VIEW_TYPE
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.resources import Resources
from aggregation_worker.reconciliation.items import ExportSource, ItemSource, ScanSource

_S3 = "s3://"

Tell = Callable[[str, int, int | None], None]
"""Told the stage, and how much of it is done, of about how much or `None`."""


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


def items_of(resources: Resources, *, segments: int, rate: float | None, export: str | None) -> ItemSource:
    """A scan of the source table or, with `export` (`s3://bucket/prefix`), an export of it.

    Raises:
        CommandError: `export` is not of this form.
        ExportError: there is no usable export.
    """
    table = resources.definitions.source.table
    if export is None:
        return ScanSource(resources.dynamodb, table, segments=segments, rate=rate)
    bucket, _, prefix = export.removeprefix(_S3).partition("/")
    if not export.startswith(_S3) or not bucket or not prefix:
        raise CommandError(f"--export: s3://bucket/prefix is needed, not {export!r}")
    return ExportSource(resources.s3, bucket, prefix, table=table)


@contextmanager
def shown_progress(stages: Mapping[str, str]) -> Iterator[Tell]:
    """Bars on a terminal; elsewhere a line when a stage begins. On standard error.

    Args:
        stages: what to call each stage.
    """
    terminal = Console(stderr=True, highlight=False)
    if not terminal.is_terminal:
        yield _Lines(stages)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as bars:
        yield _Bars(stages, bars)


@dataclass(slots=True)
class _Lines:
    """Says which stage a run is in."""

    stages: Mapping[str, str]
    stage: str = ""

    def __call__(self, stage: str, done: int, of: int | None) -> None:  # noqa: ARG002 - a line has no room for them
        if stage != self.stage:
            self.stage = stage
            sys.stderr.write(f"aggregator: {self.stages[stage]}\n")
            sys.stderr.flush()


class _Bars:
    """A bar for each stage."""

    def __init__(self, stages: Mapping[str, str], bars: Progress) -> None:
        self._stages = stages
        self._bars = bars
        self._stage = ""
        self._task = TaskID(0)

    def __call__(self, stage: str, done: int, of: int | None) -> None:
        if stage != self._stage:
            self._stage = stage
            self._task = self._bars.add_task(self._stages[stage])
        # DynamoDB counts a table's items every six hours or so: there can be more.
        total = None if of is None else max(of, done)
        self._bars.update(self._task, completed=done, total=total)

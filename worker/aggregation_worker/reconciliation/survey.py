"""What there is to backfill, and whether it can be: from the ledger alone, before anything is read of the source.

`backfill` says why the checks made here are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Aggregation, Definitions
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.catalogue import Catalogue, read_catalogue
from aggregation_worker.ledger.markers import Cut, Marker, cut_of, read_marker
from aggregation_worker.reconciliation.snapshot import SINCE_MARGIN
from aggregation_worker.streams.reader import stream_began

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WHAT_ELSE = (
    "give the aggregation a new name and a since that lies in the last hours, and a table of its own, retire the old "
    "name (aggregator retire), deploy, and backfill it under the new one (the records from since on are counted by the "
    "worker, everything before it by the backfill)"
)


class BackfillError(WorkerError):
    """It cannot be done, or not now; the message says why and what to do. Nothing was counted twice."""


@dataclass(frozen=True, slots=True)
class Target:
    """An aggregation to be filled.

    Attributes:
        known_since: when the first worker that knows it began, in epoch seconds.
    """

    aggregation: Aggregation
    cut: Cut
    known_since: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to do.

    Attributes:
        targets: the aggregations to be filled.
        finished: those that are filled already, by name.
    """

    targets: tuple[Target, ...]
    finished: Mapping[str, Marker]


def survey(
    client: "DynamoDBClient",
    ledger_table: str,
    definitions: Definitions,
    stream_arn: str,
    aggregations: Sequence[Aggregation],
    now: float,
) -> Survey:
    """What is to be done for these aggregations, from the ledger alone.

    Args:
        now: epoch seconds.

    Raises:
        BackfillError: one of them cannot be filled: no worker knows it, it was begun from another cut, or its cut
            proves nothing.
        CatalogueError: the definitions, or this version, are not the deployed worker's.
        ClientError: the ledger cannot be read.
    """
    catalogue = read_catalogue(client, ledger_table)
    catalogue.check(definitions.aggregations)
    catalogue.check_image_reading()
    targets = []
    finished = {}
    for aggregation in aggregations:
        cut = cut_of(aggregation, stream_arn)
        marker = read_marker(client, ledger_table, aggregation.name)
        if marker is not None and marker.finished_at is not None:
            finished[aggregation.name] = marker
            continue
        if marker is not None:
            check_same_cut(aggregation, cut, marker)
        known_since = catalogue.recorded_at(aggregation)
        if known_since is None:
            raise BackfillError(
                f"{aggregation.name}: no worker has started with this aggregation yet: deploy it first, and invoke the "
                "function once (an empty batch will do, see runbooks/add-an-aggregation.md), so that it is known from "
                "when on the worker counts"
            )
        targets.append(Target(aggregation, cut, known_since))
    for target in targets:
        since = target.aggregation.since
        if since is None:
            _check_no_earlier_stream(catalogue, target)
        else:
            _check_since(target, since, stream_began(stream_arn), now)
    return Survey(tuple(targets), finished)


def _check_no_earlier_stream(catalogue: Catalogue, target: Target) -> None:
    """Refuses a cut at the stream's beginning if workers may have counted records of an earlier one.

    What those changed is in the items, too. Dead letters of that stream can come at any time, to every aggregation that
    the worker knows by then, so the oldest aggregation tells, also one that is retired by now.
    """
    for name, entry in catalogue.entries.items():
        if entry.recorded_at < int(target.cut.began.timestamp()):
            raise BackfillError(
                f"{target.aggregation.name}: the stream began at {target.cut.began.isoformat(timespec='seconds')}, but "
                f"a worker with {name} is older: it has read an earlier stream, whose records have changed the items, "
                f"too. To count nothing twice, {WHAT_ELSE}"
            )


def _check_since(target: Target, since: int, began: datetime, now: float) -> None:
    """Refuses a `since` whose earlier records may not be written yet, or whose later ones another stream has."""
    earliest = since + SINCE_MARGIN
    if now < earliest:
        raise BackfillError(
            f"{target.aggregation.name}: its since, {moment_text(since)}, "
            f"{'lies in the future' if since > now else 'was just now'}: run this again after {moment_text(earliest)}"
        )
    if target.cut.began < began:
        raise BackfillError(
            f"{target.aggregation.name}: its since, {moment_text(since)}, is older than the stream, which began at "
            f"{began.isoformat(timespec='seconds')}: {WHAT_ELSE}"
        )


def check_same_cut(aggregation: Aggregation, cut: Cut, marker: Marker) -> None:
    """Refuses to fill an aggregation that is being filled from another cut.

    Raises:
        BackfillError: it is.
    """
    if marker.cut != cut.name:
        raise BackfillError(
            f"{aggregation.name}: a backfill from another cut ({marker.cut}, not {cut.name}) was begun "
            f"at {moment_text(marker.started_at)} and not finished: some totals have that starting value. Let "
            f"aggregator reconcile --repair set them right, or {WHAT_ELSE}"
        )

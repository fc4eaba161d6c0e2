"""`aggregator backfill`: adds what the source table held before the worker's first record, while everything runs.

What is done, and why it is exact, stands in `reconciliation.backfill`; here are the command line's choices, the
progress on standard error, and the report.
"""

import argparse
import hashlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.aggregations.numbers import Amounts, canonical_text
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT
from aggregation_worker.ledger.markers import Marker
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import print_json, print_table, say
from aggregation_worker.operations.resources import Resources, is_on_this_machine
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
from aggregation_worker.reconciliation.backfill import TAKEOVER, Backfill, Result
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.snapshot import fingerprint
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.reconciliation.survey import Target, survey


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Adds what the source table held when its stream began, or at an aggregation's since, to the totals, exactly "
        "once, while the table is written to and the worker runs. Needs every record since then in the stream (24 "
        "hours). Safe to interrupt, to repeat, and to run twice at once."
    )
    parser.add_argument(
        "names", metavar="AGGREGATION", nargs="*", help="only these (default: all that are not finished)"
    )
    add_source_options(parser)
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help="where a killed run is continued (default: a file in your cache folder)",
    )
    parser.add_argument("--dry-run", action="store_true", help="do all but write, and say what would be added")
    parser.add_argument(
        "--catch-up-until",
        type=_moment,
        metavar="TIME",
        help="post records created until then here too, because workers without the aggregation may have handled them: "
        "needed where such workers went on for longer (default: ten minutes after the first worker with it started)",
    )
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Runs `backfill` as the command line says."""
    return backfill(Resources.of(options), request_of(Request, options), as_json=options.json)


def _moment(text: str) -> int:
    """Epoch seconds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min  # noqa: DTZ901 - refused below, as one without an offset
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time with an offset, such as 2026-11-24T12:00:00Z")
    return int(moment.timestamp())


@dataclass(frozen=True, slots=True)
class Request(SourceRequest):
    """What the command line asks for; no names mean all aggregations that are not finished.

    Attributes:
        state: the spool's file; `None` for one in the user's cache folder, named by table, aggregations and cut.
        catch_up_until: epoch seconds, or `None`; see `Backfill`.
    """

    state: Path | None = None
    dry_run: bool = False
    catch_up_until: int | None = None


def backfill(resources: Resources, request: Request, *, as_json: bool) -> int:
    """Fills aggregations, or says what it would add; returns 0.

    Raises:
        WorkerError: it cannot be done, or not now.
    """
    aggregations = chosen_aggregations(resources, request.names)
    stream_arn = stream_arn_of(resources)
    found = survey(
        resources.dynamodb, resources.ledger_table, resources.definitions, stream_arn, aggregations, time.time()
    )
    if not found.targets:
        _report(found.finished, [], request, as_json=as_json)
        return 0
    items = items_of(resources, request)
    state = request.state or _state_file(stream_arn, resources.ledger_table, found.targets, items)
    reader = stream_reader(resources, stream_arn, "TRIM_HORIZON")
    with (
        ThreadPoolExecutor(MAX_IN_FLIGHT, thread_name_prefix="commit") as executor,
        shown_progress(_interrupted(request, state)) as tell,
        Spool(state) as spool,
    ):
        run = Backfill(
            resources.dynamodb,
            resources.ledger_table,
            resources.ledger_retention_days,
            executor,
            request.catch_up_until,
            # On this machine only one worker runs, which has ended before another one starts.
            takeover=0 if is_on_this_machine(resources.dynamodb) else TAKEOVER,
            progress=tell,
        )
        results = run.run(found.targets, resources.definitions, items, reader, spool, dry_run=request.dry_run)
    if not request.dry_run:
        _remove(state)
    _report(found.finished, results, request, as_json=as_json)
    return 0


def _interrupted(request: Request, state: Path) -> str:
    done = "nothing was written" if request.dry_run else "what was added is in, and is not added again"
    return f"{done}; run the command again, and it continues with what it has read, in {state}"


def _state_file(stream_arn: str, ledger_table: str, targets: Sequence[Target], items: ItemSource) -> Path:
    """A file that a run with the same table, aggregations, cuts and items finds again."""
    parts = [stream_arn, ledger_table, items.description]
    parts += [f"{target.aggregation.name} {fingerprint(target.aggregation)} {target.cut.name}" for target in targets]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (xdg if xdg.is_absolute() else Path.home() / ".cache") / "dynamodb-aggregation-worker"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"{folder} cannot be made: {error}; name a file with --state") from error
    return folder / f"backfill-{digest}.sqlite3"


def _remove(state: Path) -> None:
    """Removes the spool and what sqlite keeps beside it: the ledger's marker says the rest."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(OSError):
            state.with_name(state.name + suffix).unlink()


def _report(finished: Mapping[str, Marker], results: Sequence[Result], request: Request, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "dryRun": request.dry_run,
                "aggregations": [_as_json(result, dry_run=request.dry_run) for result in results],
                "finishedBefore": [
                    {
                        "name": name,
                        "cut": marker.cut,
                        "finishedAt": moment_text(marker.finished_at or 0),
                        "aggregates": marker.aggregates,
                    }
                    for name, marker in finished.items()
                ],
            }
        )
        return
    for name, marker in finished.items():
        say(f"{name}: {_sentence(marker)}")
    if not results:
        return
    if request.dry_run:
        _print_dry_run(results)
        return
    rows = [
        (
            result.target.aggregation.name,
            result.target.cut.name,
            f"{result.aggregates:,}",
            f"{result.added:,}",
            f"{result.caught_up:,}",
            f"{result.unusable:,}",
        )
        for result in results
    ]
    print_table(
        "Backfilled", ("aggregation", "cut", "aggregates", "added now", "records caught up", "unusable items"), rows
    )
    for result in results:
        for sentence in _remarks(result):
            say(sentence)


def _sentence(marker: Marker) -> str:
    at = moment_text(marker.finished_at or 0)
    if marker.cut == "repair":
        return f"its totals were set right by aggregator reconcile --repair at {at}; there is nothing to backfill."
    return f"backfilled, finished at {at} ({marker.aggregates:,} aggregates, {marker.cut}); there is nothing to do."


def _print_dry_run(results: Sequence[Result]) -> None:
    for result in results:
        aggregation = result.target.aggregation
        measures = [measure.name for measure in aggregation.measures]
        rows: list[tuple[str, ...]] = [(", ".join(group), *_texts(amounts)) for group, amounts in result.examples]
        if result.aggregates > len(result.examples):
            rows.append((f"… and {result.aggregates - len(result.examples):,} more", *("" for _ in measures)))
        rows.append(("all together", *_texts(result.totals)))
        say(
            f"{aggregation.name}: {result.aggregates:,} aggregates would get a starting value, {result.target.cut.name}"
        )
        print_table(
            aggregation.name,
            (", ".join(key.name for key in aggregation.keys), *measures),
            rows,
        )
        for sentence in _remarks(result):
            say(sentence)


def _remarks(result: Result) -> Iterator[str]:
    name = result.target.aggregation.name
    if result.unusable:
        yield (
            f"{name}: {result.unusable:,} items had values that it cannot use (text where a number belongs); "
            "they count nothing."
        )
    if result.noticed:
        yield (
            f"{name}: {result.noticed:,} records since the cut have images that it cannot use, which are worth "
            "nothing; of those that a worker with this aggregation has met, a notice is in the dead-letter queue."
        )


def _texts(amounts: Amounts) -> Iterator[str]:
    return map(canonical_text, amounts)


def _as_json(result: Result, *, dry_run: bool) -> dict[str, Any]:
    aggregation = result.target.aggregation
    facts: dict[str, Any] = {
        "name": aggregation.name,
        "cut": result.target.cut.name,
        "aggregates": result.aggregates,
        "unusableItems": result.unusable,
        "noticedRecords": result.noticed,
    }
    if not dry_run:
        return facts | {"added": result.added, "recordsCaughtUp": result.caught_up}
    measures = [measure.name for measure in aggregation.measures]
    return facts | {"totals": dict(zip(measures, _texts(result.totals), strict=True))}

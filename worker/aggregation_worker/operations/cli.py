"""The `aggregator` command: one subcommand for each thing that people do with the worker.

Subcommands import what they need when they run, so that `--help` is quick and an extra that is not installed is missed
only by those who use it.
"""

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.definitions import DefinitionError, definitions_file
from aggregation_worker.operations import resources
from aggregation_worker.operations.errors import CommandError


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar; the runbooks' commands are checked against it."""
    parser = argparse.ArgumentParser(
        prog="aggregator", description="Exact running totals from a DynamoDB stream: try, operate, repair."
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_demo,
        _add_local,
        _add_dead_letters,
        _add_replay,
        _add_explain,
        _add_backfill,
        _add_reconcile,
        _add_verify,
        _add_status,
    ):
        add(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 for an error the user can act on, 130 after Ctrl-C."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except (CommandError, DefinitionError) as error:
        sys.stderr.write(f"aggregator: {error}\n")
        return 2
    except (BotoCoreError, ClientError) as error:
        sys.stderr.write(f"aggregator: {resources.explain_aws_error(error)}\n")
        return 2
    except KeyboardInterrupt:
        return 130


if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - argparse names it only so


def _add_demo(commands: "_Commands") -> None:
    demo = commands.add_parser(
        "demo",
        help="watch orders become exact totals on this machine",
        description="Runs the reference scenario on this machine, without an AWS account, and compares every total "
        "with the source. Exit status 0 only if all of them match.",
    )
    demo.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")
    demo.set_defaults(run=_demo)


def _add_local(commands: "_Commands") -> None:
    local = commands.add_parser(
        "local",
        help="keep the whole pipeline running on this machine",
        description="Keeps source table, stream, worker, totals and dead-letter queue running on this machine until "
        "Ctrl-C, and prints a line for each batch.",
    )
    local.add_argument(
        "--definitions",
        type=Path,
        metavar="FILE",
        help="definitions file (default: AGGREGATIONS_FILE, or a clone's worker/aggregations.toml)",
    )
    local.add_argument("--port", type=_port, help="port of the endpoint on 127.0.0.1 (default: a free one)")
    local.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")
    local.set_defaults(run=_local)


def _add_dead_letters(commands: "_Commands") -> None:
    letters = commands.add_parser(
        "dead-letters",
        help="list what waits in the dead-letter queue, and why",
        description="Lists every dead letter: kind, reason, sequence numbers, item keys, age, and how long its records "
        "can still be replayed safely. Takes nothing out of the queue.",
    )
    letters.add_argument("--show-images", action="store_true", help="print the records too, with the items' contents")
    resources.add_options(letters)
    letters.set_defaults(run=_dead_letters)


def _add_replay(commands: "_Commands") -> None:
    replay = commands.add_parser(
        "replay",
        help="send dead letters through the worker again",
        description="Sends the records of every dead letter that is there now through the deployed function, and "
        "deletes a letter when all of its records are done. Safe to interrupt, to repeat, and to run twice at once. "
        "Exit status 0 only if nothing was left.",
    )
    replay.add_argument("--dry-run", action="store_true", help="only say what would be replayed")
    replay.add_argument("--in-process", action="store_true", help="run the worker here, with your own credentials")
    replay.add_argument("--reason", metavar="TEXT", help="only letters with this text in a reason")
    replay.add_argument(
        "--sequence-number",
        type=_positive(int),
        action="append",
        default=[],
        metavar="N",
        help="only letters that hold this record; can be repeated",
    )
    replay.add_argument("--limit", type=_positive(int), metavar="N", help="at most so many letters")
    replay.add_argument("--rate", type=_positive(float), metavar="N", help="at most so many records a second")
    replay.add_argument(
        "--visibility-timeout",
        type=_positive(int),
        default=120,
        metavar="SECONDS",
        help="how soon letters reappear if this command is killed (default: 120)",
    )
    resources.add_options(replay)
    replay.set_defaults(run=_replay)


def _add_explain(commands: "_Commands") -> None:
    explain = commands.add_parser(
        "explain",
        help="show which records made a total",
        description="Prints the receipts of one row in order (records, a backfill, repairs), their sum, and the stored "
        "total beside it.",
    )
    explain.add_argument("table", metavar="TABLE", help="the target table")
    explain.add_argument("keys", metavar="KEY", nargs="+", help="the row's partition key, and its sort key if any")
    resources.add_options(explain)
    explain.set_defaults(run=_explain)


def _add_backfill(commands: "_Commands") -> None:
    backfill = commands.add_parser(
        "backfill",
        help="add what the source table held before the worker's first record",
        description="Adds what the source table held when its stream began, or at an aggregation's since, to the "
        "totals, exactly once, while the table is written to and the worker runs. Needs every record since then in the "
        "stream (24 hours). Safe to interrupt, to repeat, and to run twice at once.",
    )
    backfill.add_argument(
        "names", metavar="AGGREGATION", nargs="*", help="only these (default: all that are not finished)"
    )
    backfill.add_argument(
        "--segments", type=_positive(int), default=4, metavar="N", help="parallel readers of the table (default: 4)"
    )
    backfill.add_argument("--rate", type=_positive(float), metavar="RCU", help="read units a second, at most")
    backfill.add_argument(
        "--export", metavar="s3://BUCKET/PREFIX", help="read a table export (DynamoDB JSON) in place of the table"
    )
    backfill.add_argument(
        "--state", type=Path, metavar="FILE", help="where a killed run goes on (default: a file in your cache folder)"
    )
    backfill.add_argument("--dry-run", action="store_true", help="do all but write, and say what would be added")
    backfill.add_argument(
        "--catch-up-until",
        type=_moment,
        metavar="TIME",
        help="post records created until then here too, because workers without the aggregation may have handled them: "
        "needed where such workers came back (default: ten minutes after the first worker with it started)",
    )
    resources.add_options(backfill)
    backfill.set_defaults(run=_backfill)


def _add_reconcile(commands: "_Commands") -> None:
    reconcile = commands.add_parser(
        "reconcile",
        help="compare every total with the source, and correct what differs",
        description="Recomputes every total from the source table while it is written to, and lists those that differ: "
        "drift is a difference that no record on its way accounts for. With --repair each is corrected, with a receipt "
        "that explain shows. Exit status 0 only if every total is right by now.",
    )
    reconcile.add_argument("names", metavar="AGGREGATION", nargs="*", help="only these (default: all)")
    reconcile.add_argument("--repair", action="store_true", help="correct what drifts")
    reconcile.add_argument(
        "--nothing-removed",
        action="store_true",
        help="no item was ever removed: compare aggregations that keep what removed items contributed, too",
    )
    reconcile.add_argument(
        "--patience",
        type=_positive(float),
        default=60.0,
        metavar="SECONDS",
        help="how long a difference must stay the same to be drift (default: 60)",
    )
    reconcile.add_argument(
        "--segments", type=_positive(int), default=4, metavar="N", help="parallel readers of the table (default: 4)"
    )
    reconcile.add_argument("--rate", type=_positive(float), metavar="RCU", help="read units a second, at most")
    reconcile.add_argument(
        "--export", metavar="s3://BUCKET/PREFIX", help="read a table export (DynamoDB JSON) in place of the table"
    )
    reconcile.add_argument("--csv", action="store_true", help="CSV on standard output: a line for each measure")
    reconcile.add_argument("--no-metric", action="store_true", help="leave out the metric AggregateDrift")
    reconcile.add_argument(
        "--stream-lag",
        type=_positive(float),
        default=10.0,
        metavar="SECONDS",
        help="how long a record may take to appear in the stream (default: 10)",
    )
    resources.add_options(reconcile)
    reconcile.set_defaults(run=_reconcile)


def _add_verify(commands: "_Commands") -> None:
    verify = commands.add_parser(
        "verify",
        help="put a canary order through and wait for its total",
        description="Puts an order with keys of its own into the source table, waits for its totals, tells how long "
        "that took, and removes all of it. Exit status 0 only if every total came.",
    )
    verify.add_argument(
        "--timeout", type=_positive(float), default=60.0, metavar="SECONDS", help="how long to wait (default: 60)"
    )
    resources.add_options(verify)
    verify.set_defaults(run=_verify)


def _add_status(commands: "_Commands") -> None:
    status = commands.add_parser(
        "status",
        help="is it current, does it lose anything, what waits",
        description="One screen: mapping, iterator age, dead letters, the last hour's records, alarms. Exit status 0 "
        "only if there is nothing to look at.",
    )
    resources.add_options(status)
    status.set_defaults(run=_status)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1 to 65535")
    return int(text)


def _moment(text: str) -> int:
    """Epoch seconds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min  # noqa: DTZ901 - refused below, as one without an offset
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time with an offset, such as 2026-11-24T12:00:00Z")
    return int(moment.timestamp())


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
        return number

    return parse


def _demo(options: argparse.Namespace) -> int:
    _require_local_extra()
    from aggregation_worker.local.demo import run_demo

    with _ministack_errors():
        return run_demo(verbose=options.verbose)


def _local(options: argparse.Namespace) -> int:
    _require_local_extra()
    from aggregation_worker.local.session import run_local

    file = definitions_file(options.definitions, os.environ)
    with _ministack_errors():
        return run_local(file, port=options.port, verbose=options.verbose)


def _dead_letters(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.dead_letters import list_dead_letters

    return list_dead_letters(resources.Resources.of(options), as_json=options.json, show_images=options.show_images)


def _replay(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.replay import replay_dead_letters
    from aggregation_worker.operations.replaying import Selection

    return replay_dead_letters(
        resources.Resources.of(options),
        Selection(options.reason, frozenset(options.sequence_number), options.limit),
        dry_run=options.dry_run,
        run_here=options.in_process,
        rate=options.rate,
        visibility_timeout=options.visibility_timeout,
        as_json=options.json,
    )


def _explain(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.explain import explain

    return explain(resources.Resources.of(options), options.table, options.keys, as_json=options.json)


def _backfill(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.backfill import Request, backfill

    request = Request(
        tuple(options.names),
        options.segments,
        options.rate,
        options.export,
        options.state,
        options.dry_run,
        options.catch_up_until,
    )
    return backfill(resources.Resources.of(options), request, as_json=options.json)


def _reconcile(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.reconcile import Request, reconcile

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
    return reconcile(resources.Resources.of(options), request, as_json=options.json, as_csv=options.csv)


def _verify(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.verify import verify

    return verify(resources.Resources.of(options), options.timeout, as_json=options.json)


def _status(options: argparse.Namespace) -> int:
    from aggregation_worker.operations.status import status

    return status(resources.Resources.of(options), as_json=options.json)


@contextmanager
def _ministack_errors() -> Iterator[None]:
    from aggregation_worker.local.ministack import MinistackError

    try:
        yield
    except MinistackError as error:
        raise CommandError(str(error)) from error


def _require_local_extra() -> None:
    if importlib.util.find_spec("ministack") is None:
        raise CommandError(
            "ministack is not installed: run pip install 'dynamodb-aggregation-worker[local]', or uv sync in a clone"
        )

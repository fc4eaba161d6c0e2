"""The `aggregator` command: one subcommand for each thing that people do with the worker.

Subcommands import what they need when they run, so that `--help` is quick and an extra that is not installed is missed
only by those who use it.
"""

import argparse
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from worker.definitions import BUNDLED_FILE, DefinitionError


class CommandError(Exception):
    """What ends a command with exit status 2 and one line for the user."""


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar; the runbooks' commands are checked against it."""
    parser = argparse.ArgumentParser(
        prog="aggregator", description="Exact running totals from a DynamoDB stream: try, operate, repair."
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="watch orders become exact totals on this machine",
        description="Runs the reference scenario on this machine, without an AWS account, and compares every total "
        "with the source. Exit status 0 only if all of them match.",
    )
    demo.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")
    demo.set_defaults(run=_demo)
    local = commands.add_parser(
        "local",
        help="keep the whole pipeline running on this machine",
        description="Keeps source table, stream, worker, totals and dead-letter queue running on this machine until "
        "Ctrl-C, and prints a line for each batch.",
    )
    local.add_argument(
        "--definitions", type=Path, default=BUNDLED_FILE, metavar="FILE", help="definitions file (default: bundled)"
    )
    local.add_argument("--port", type=_port, help="port of the endpoint on 127.0.0.1 (default: a free one)")
    local.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")
    local.set_defaults(run=_local)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 for an error the user can act on, 130 after Ctrl-C."""
    parsed = build_parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except (CommandError, DefinitionError) as error:
        sys.stderr.write(f"aggregator: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1 to 65535")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    _require_local_extra()
    from worker.local.demo import run_demo

    with _ministack_errors():
        return run_demo(verbose=arguments.verbose)


def _local(arguments: argparse.Namespace) -> int:
    _require_local_extra()
    from worker.local.session import run_local

    with _ministack_errors():
        return run_local(arguments.definitions, port=arguments.port, verbose=arguments.verbose)


@contextmanager
def _ministack_errors() -> Iterator[None]:
    from worker.local.ministack import MinistackError

    try:
        yield
    except MinistackError as error:
        raise CommandError(str(error)) from error


def _require_local_extra() -> None:
    missing = [name for name in ("ministack", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f"{' and '.join(missing)} not installed: run pip install 'dynamodb-aggregation-worker[local]', "
            "or uv sync in a clone"
        )

"""The `aggregator` command: one subcommand for each thing that people do with the worker.

A subcommand is the module of its name in this folder: `add_options` describes its command line, `run` does the work and
returns the exit status. It is loaded only when it is used, so that `--help` is quick and an extra that is not installed
is missed only by those who use it.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from aggregation_worker.operations.visible import PLAIN, visible

_DISTRIBUTION = "dynamodb-aggregation-worker"

_SUBCOMMANDS = {
    "demo": "watch orders become exact totals on this machine",
    "local": "keep the whole pipeline running on this machine",
    "check": "read a definitions file, and say what it means and what an item would be worth",
    "dead-letters": "list what waits in the dead-letter queue, and why",
    "replay": "send dead letters through the worker again",
    "explain": "show which records made a total",
    "backfill": "add what the source table held before the worker's first record",
    "reconcile": "compare every total with the source, and correct what differs",
    "retire": "let an aggregation count no more, for good",
    "verify": "put a canary order through and wait for its total",
    "status": "is it current, does it lose anything, what waits",
}


def build_parser() -> argparse.ArgumentParser:
    """The command line's grammar; the runbooks' commands are checked against it."""
    parser = argparse.ArgumentParser(
        prog="aggregator", description="Exact running totals from a DynamoDB stream: try, operate, repair."
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND", parser_class=_Subcommand
    )
    for name, summary in _SUBCOMMANDS.items():
        commands.add_parser(name, help=summary, module=name.replace("-", "_"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 2 for an error the user can act on, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=PLAIN)
    try:
        try:
            parsed = build_parser().parse_args(arguments)
            status = int(parsed.run(parsed))
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read the output, such as `head`, has enough. What is left must not fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from aggregation_worker.operations.errors import message_of

        message = message_of(error)
        if message is None:
            raise
        sys.stderr.write(f"aggregator: {visible(message)}\n")
        return 2
    return status


class _Subcommand(argparse.ArgumentParser):
    """The parser of one subcommand, which loads the subcommand's module when it is asked to parse."""

    def __init__(self, *, module: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._module: str | None = module

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse.ArgumentParser`."""
        if self._module is not None:
            subcommand = importlib.import_module(f"aggregation_worker.operations.{self._module}")
            subcommand.add_options(self)
            self.set_defaults(run=subcommand.run)
            self._module = None
        return super().parse_known_args(args, namespace)


class _ShowVersion(argparse.Action):
    """Prints the version, which takes a moment to find out."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version(_DISTRIBUTION)
        except PackageNotFoundError:
            found = f"unknown: {_DISTRIBUTION} is not installed here"
        sys.stdout.write(f"aggregator {found}\n")
        parser.exit()

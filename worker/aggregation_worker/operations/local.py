"""`aggregator local`: the whole pipeline on this machine, until Ctrl-C."""

import argparse
import os

from aggregation_worker.aggregations.definitions import definitions_file
from aggregation_worker.local.session import run_local
from aggregation_worker.operations.options import add_definitions_option


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Keeps source table, stream, worker, totals and dead-letter queue running on this machine until Ctrl-C, and "
        "prints a line for each batch."
    )
    add_definitions_option(parser)
    parser.add_argument("--port", type=_port, help="port of the endpoint on 127.0.0.1 (default: a free one)")
    parser.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")


def run(options: argparse.Namespace) -> int:
    """Returns 0 when it was stopped."""
    return run_local(definitions_file(options.definitions, os.environ), port=options.port, verbose=options.verbose)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 65_535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 1 to 65535")
    return int(text)

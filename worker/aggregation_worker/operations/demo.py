"""`aggregator demo`: watch orders become exact totals on this machine."""

import argparse

from aggregation_worker.local.demo import run_demo


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Runs the reference scenario on this machine, without an AWS account, and compares every total with the "
        "source. Exit status 0 only if all of them match."
    )
    parser.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")


def run(options: argparse.Namespace) -> int:
    """Returns 0 only if every total matches the source."""
    return run_demo(verbose=options.verbose)

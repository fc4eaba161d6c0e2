"""Options that several subcommands have, and the kinds of values that they take."""

import argparse
from collections.abc import Callable
from pathlib import Path

from aggregation_worker.deployment.settings import STACK_NAME


def add_deployment_options(parser: argparse.ArgumentParser) -> None:
    """What `Resources` reads: the options of every command for a deployment."""
    group = parser.add_argument_group("which deployment")
    group.add_argument("--stack", metavar="NAME", help=f"the CloudFormation stack (default: {STACK_NAME})")
    group.add_argument("--worker", metavar="ID", help="one of several AggregationWorkers in the stack")
    group.add_argument("--profile", help="profile of the AWS configuration")
    group.add_argument("--region", help="AWS region")
    group.add_argument("--endpoint-url", metavar="URL", help="endpoint of all services, such as aggregator local's")
    group.add_argument(
        "--definitions",
        type=Path,
        metavar="FILE",
        help="definitions file (default: AGGREGATIONS_FILE, else that of the deployed function)",
    )
    group.add_argument("--ledger-table", metavar="NAME", help="in place of the stack's ledger table")
    group.add_argument("--queue-url", metavar="URL", help="in place of the stack's dead-letter queue")
    group.add_argument("--bucket", metavar="NAME", help="in place of the stack's dead-letter bucket")
    group.add_argument("--function", metavar="NAME", help="in place of the stack's function")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, for programs")


def add_definitions_option(parser: "argparse._ActionsContainer") -> None:
    """Which definitions file."""
    parser.add_argument(
        "--definitions",
        type=Path,
        metavar="FILE",
        help="definitions file (default: AGGREGATIONS_FILE, or in a clone worker/aggregations.toml)",
    )


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """A number above 0, of a kind."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = kind(0)
        if not 0 < number < float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
        return number

    return parse

"""`aggregator demo`: watch orders become exact totals on this machine, and wrong ones beside them."""

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from aggregation_worker.aggregations.numbers import Amounts, canonical_text
from aggregation_worker.local.demo import STEPS, Comparison, running_demo
from aggregation_worker.operations.output import console, shown, table_of

_RIGHT, _WRONG = "green", "red"
_WIDTH_OF_A_PICTURE = 80


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Runs the reference scenario on this machine, without an AWS account, with the usual handler of one ADD per "
        "record beside the worker, and compares every total with the source. Exit status 0 only if all of the worker's "
        "match."
    )
    parser.add_argument("--verbose", action="store_true", help="show the function's log and metrics too")
    parser.add_argument("--svg", type=Path, help=argparse.SUPPRESS)  # .github/CONTRIBUTING.md, "Pictures"


def run(options: argparse.Namespace) -> int:
    """Returns 0 only if every total of the worker matches the source."""
    screen = console()
    if options.svg:
        screen.record, screen.width = True, _WIDTH_OF_A_PICTURE
    started = time.monotonic()
    with (
        screen.status("starting DynamoDB, SQS and S3 on this machine", spinner="line") as status,
        running_demo(verbose=options.verbose) as demo,
    ):
        for title, step in STEPS:
            status.update(title)
            demo.take(step)
            screen.print(Text.assemble(shown("✓ ", _RIGHT), title))
        status.update("comparing every total with the source")
        comparison = demo.comparison()
    _print(screen, comparison)
    screen.print(Text.assemble(_verdict(comparison), f" ({time.monotonic() - started:.1f} s)."))
    if options.svg:
        screen.save_svg(str(options.svg), title="aggregator demo", unique_id="demo")
    return 0 if comparison.worker_is_right else 1


def _print(screen: Console, found: Comparison) -> None:
    aggregation = found.aggregation
    names = ("this worker", "the usual handler")
    (measure,) = aggregation.measures
    screen.print()
    screen.print(
        table_of(
            f"{aggregation.name}: {measure.name}",
            (*(key.name for key in aggregation.keys), "from the source", *names),
            [
                (
                    *group,
                    _amount(found.source.get(group)),
                    *(_judged(totals.get(group), found.source.get(group)) for totals in (found.worker, found.usual)),
                )
                for group in found.groups
            ],
            right=3,
        ),
        shown(
            f"{found.records} records were delivered {found.deliveries} times; the worker skipped {found.duplicates} "
            "duplicates.\n"
        ),
    )
    costs = found.worker_cost, found.usual_cost
    screen.print(
        table_of(
            "What that cost",
            ("", *names),
            [
                ("write units", *(f"{cost.writes:g}" for cost in costs)),
                ("read units", *(f"{cost.reads:g}" for cost in costs)),
                ("dollars a million records", *(f"{cost.dollars(found.records):.2f}" for cost in costs)),
            ],
            right=2,
        ),
        shown(
            "Write units as the emulator reports them; dollars on demand, in us-east-1. The worker writes a row once a "
            "batch: a record that is alone in its batch costs it more than the usual handler, several of a row less.\n"
        ),
        table_of("Waiting in the dead-letter queue", ("order", "why"), found.letters),
    )
    for failure in found.usual_failures[:1]:
        screen.print(
            shown(
                f"On that order the usual handler fails ({type(failure).__name__}); with Lambda's defaults nothing "
                "behind it would be counted for a day.\n"
            )
        )


def _amount(amounts: Amounts | None) -> str:
    return "none" if amounts is None else canonical_text(amounts[0])


def _judged(amounts: Amounts | None, source: Amounts | None) -> Text:
    right = amounts == source
    return shown(f"{_amount(amounts)} {'✓' if right else '✗'}", _RIGHT if right else _WRONG)


def _verdict(found: Comparison) -> Text:
    if found.worker_is_right:
        return shown("Every total of the worker matches the source", _RIGHT)
    return shown("A total of the worker does not match the source", _WRONG)

"""`aggregator retire`: has an aggregation count no more, for good. Needs no deployment."""

import argparse
import sys

from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.ledger.catalogue import Entry, read_catalogue, retire
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import print_json, say
from aggregation_worker.operations.resources import Resources


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Notes in the ledger's catalogue that an aggregation counts no more, so that a worker whose definitions file "
        "lacks it may start. Its totals stay as they are. There is no way back: its name never counts again, and a "
        "worker whose file still has it refuses to start."
    )
    parser.add_argument("name", metavar="AGGREGATION", help="its name, as the catalogue has it")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Retires an aggregation; returns 0 if it is retired then, 1 if the answer was no."""
    resources, name = Resources.of(options), options.name
    entry = _entry(resources, name)
    was_retired = entry.retired_at is not None
    if not was_retired:
        if not options.yes and not _confirmed(name, entry):
            sys.stderr.write("aggregator: nothing was changed\n")
            return 1
        retire(resources.dynamodb, resources.ledger_table, name)
        entry = _entry(resources, name)
    at = moment_text(entry.retired_at or 0)
    if options.json:
        print_json({"aggregation": name, "retiredAt": at, "wasRetired": was_retired})
    elif was_retired:
        say(f"{name} was retired at {at} already; there is nothing to do.")
    else:
        say(
            f"{name} is retired. A worker that starts with it in its definitions file refuses: if it is there still, "
            "take it out and deploy now."
        )
    return 0


def _entry(resources: Resources, name: str) -> Entry:
    entries = read_catalogue(resources.dynamodb, resources.ledger_table).entries
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise CommandError(f"no aggregation named {name!r} has counted; those that have: {known}")
    return entries[name]


def _confirmed(name: str, entry: Entry) -> bool:
    """Asks on standard error, so that standard output stays the command's result."""
    sys.stderr.write(
        f"{name} counts into {', '.join(entry.measures)} of table {entry.table}. Retired, it counts no more, its "
        f"totals stay as they are, and its name can never be used again.\nRetire {name}? [y/N] "
    )
    sys.stderr.flush()
    try:
        answer = input()
    except EOFError as error:
        raise CommandError("nothing was changed: nobody is there to confirm it; --yes does") from error
    return answer.strip().lower() in ("y", "yes")

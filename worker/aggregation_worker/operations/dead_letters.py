"""`aggregator dead-letters`: what waits in the queue, without taking anything out of it."""

import argparse
from datetime import UTC, datetime
from typing import Any

from aggregation_worker.operations.letters import HeldMessages, Letter, resolve_letter, trusted_until
from aggregation_worker.operations.notices import described
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import duration, print_json, print_table
from aggregation_worker.operations.resources import Resources

# Seconds that listed messages are invisible to others, should this command be killed before it gives them back.
_VISIBILITY_TIMEOUT = 30
_SHOWN_SEQUENCE_NUMBERS = 3


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Lists every dead letter: kind, reason, sequence numbers, item keys, age, and how long its records can still "
        "be replayed for certain; of a notice, whether its item is still as it was. Takes nothing out of the queue."
    )
    parser.add_argument("--show-images", action="store_true", help="print the records too, with the items' contents")
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Prints every dead letter; returns 0."""
    resources = Resources.of(options)
    with HeldMessages(resources.sqs, resources.queue_url, _VISIBILITY_TIMEOUT) as held:
        started_at = held.started_at()
        letters = [resolve_letter(message, resources) for page in held.receive(started_at) for message in page]
    letters.sort(key=lambda letter: letter.message.sent_at)
    described = [describe(letter, resources, started_at, show_images=options.show_images) for letter in letters]
    if options.json:
        print_json(described)
        return 0
    rows = [
        (
            entry["kind"],
            "\n".join([*entry["reasons"], *([entry["toDo"]] if entry["toDo"] else [])]),
            _shortened(entry["sequenceNumbers"]),
            _shortened([", ".join(f"{name}={value}" for name, value in key.items()) for key in entry["keys"]]),
            entry["age"],
            "" if entry["toDo"] else entry["trustedFor"],
        )
        for entry in described
    ]
    columns = ("kind", "why", "sequence numbers", "item keys", "age", "replay within")
    print_table(f"{len(letters)} dead letter{'' if len(letters) == 1 else 's'}", columns, rows)
    if options.show_images:
        for entry in described:
            print_json(entry["records"])
    return 0


def describe(letter: Letter, resources: Resources, now: datetime, *, show_images: bool) -> dict[str, Any]:
    """A letter's facts; item contents only if asked for."""
    limits = [
        until
        for record in letter.records
        if (until := trusted_until(record, resources.ledger_retention_days)) is not None
    ]
    left = min(limits) - now if limits else None
    facts: dict[str, Any] = {
        "messageId": letter.message.message_id,
        "kind": letter.kind,
        "reasons": list(letter.reasons),
        "sequenceNumbers": letter.sequence_numbers,
        "keys": [_keys(record) for record in letter.records],
        "sentAt": letter.message.sent_at.astimezone(UTC).isoformat(timespec="seconds"),
        "age": duration(now - letter.message.sent_at),
        "toDo": None if letter.notice is None else described(letter.notice, resources),
        "trustedUntil": min(limits).isoformat(timespec="seconds") if limits else None,
        "trustedFor": "unknown" if left is None else duration(left) if left.total_seconds() > 0 else "may be too late",
    }
    if show_images:
        facts["records"] = list(letter.records)
    return facts


def _keys(record: Any) -> dict[str, str]:
    """An item's key values, without their types."""
    try:
        return {name: str(next(iter(value.values()))) for name, value in record["dynamodb"]["Keys"].items()}
    except (KeyError, TypeError, AttributeError, StopIteration):
        return {}


def _shortened(values: list[str]) -> str:
    shown = [value for value in values if value][:_SHOWN_SEQUENCE_NUMBERS]
    more = len(values) - len(shown)
    return "\n".join(shown) + (f"\nand {more} more" if more > 0 and shown else "")

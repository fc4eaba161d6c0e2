"""`aggregator dead-letters`: what waits in the queue; takes nothing out of it, unless it is told to discard."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from textwrap import indent
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.deployment.settings import QUEUE_RETENTION_DAYS
from aggregation_worker.errors import WorkerError
from aggregation_worker.operations.discarding import Discarding
from aggregation_worker.operations.errors import CommandError, message_of
from aggregation_worker.operations.letters import (
    Groups,
    Letter,
    LetterReader,
    created_at,
    source_of,
    trusted_until,
)
from aggregation_worker.operations.notices import described
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import duration, progress, say
from aggregation_worker.operations.queue import HeldMessages, Message
from aggregation_worker.operations.resources import Resources
from aggregation_worker.operations.selection import Selection, add_selection_options
from aggregation_worker.streams.records import Origin

_SHOWN = 3
_TOO_LATE = "may be too late"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Says what waits in the dead-letter queue: by kind and reason how many letters, the oldest one's age, how long "
        "their records can still be replayed for certain, and an example; of notices, whether the items are still as "
        "they were. Takes nothing out of the queue, unless it is told to discard."
    )
    parser.add_argument("--all", action="store_true", help="list every letter")
    parser.add_argument(
        "--show-images", action="store_true", help="list every letter with its records, and so the items' contents"
    )
    parser.add_argument(
        "--discard",
        action="store_true",
        help="delete the letters that the next options name: says what is lost, asks, and keeps a record in a file",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="where --discard keeps what it deletes")
    parser.add_argument("--yes", action="store_true", help="answers what --discard asks")
    add_selection_options(parser)
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Says what waits, or discards it; returns 0, and 1 if not everything was discarded that was to be."""
    resources = Resources.of(options)
    selection = Selection.of(options)
    if options.discard and selection.is_everything:
        raise CommandError("--discard deletes only what is named: give --reason, --sequence-number or --message")
    if (options.yes or options.record) and not options.discard:
        raise CommandError("--yes and --record belong to --discard")
    with HeldMessages(resources.sqs, resources.queue_url) as held:
        now = held.started_at()
        reader = LetterReader(resources, _source(resources))
        listing = Listing(resources, held, reader, selection, now, with_images=options.show_images)
        if options.discard:
            with Discarding(options.record, now) as discarding:
                for letter, facts in listing.letters():
                    discarding.note(letter, facts)
                print_groups(listing.groups, now)
                discarding.say_what_is_lost()
                return discarding.discard(held, answered=options.yes)
        try:
            _print(listing, options)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"aggregator: interrupted: {listing.count} letters were read, and all go back to the queue; run it "
                "again, --limit reads only some\n"
            )
            return 130
    return 0


def _source(resources: Resources) -> Origin | None:
    try:
        return source_of(resources)
    except (WorkerError, BotoCoreError, ClientError) as error:
        sys.stderr.write(f"aggregator: records are not compared with the source table: {message_of(error)}\n")
        return None


@dataclass(slots=True)
class Listing:
    """The letters that are selected, some at a time.

    Attributes:
        now: what was sent later is left out.
        groups: by kind, reasons and what to do.
        oldest_sent, oldest_record: when the oldest letter was sent, and the oldest record was created.
    """

    resources: Resources
    held: HeldMessages
    reader: LetterReader
    selection: Selection
    now: datetime
    with_images: bool = False
    count: int = 0
    received: int = 0
    groups: Groups = field(default_factory=Groups)
    oldest_sent: datetime | None = None
    oldest_record: datetime | None = None

    def letters(self) -> Iterator[tuple[Letter, dict[str, Any]]]:
        """Each letter and its facts; SQS gives them in no order."""
        with progress() as bar, closing(self.held.receive(self.now, self._read)) as pages:
            task = bar.add_task("reading letters", total=None)
            for page in pages:
                self.received += len(page)
                bar.advance(task, len(page))
                for letter, facts in page:
                    if facts is None:
                        continue
                    if self.count == self.selection.limit:
                        return
                    self._add(letter, facts)
                    yield letter, facts

    def _read(self, message: Message) -> tuple[Letter, dict[str, Any] | None]:
        letter = self.reader(message)
        if not self.selection.matches(letter):
            return letter, None
        return letter, describe(letter, self.resources, self.now, with_images=self.with_images)

    def _add(self, letter: Letter, facts: Mapping[str, Any]) -> None:
        self.count += 1
        sent_at = letter.message.sent_at
        created = [moment for record in letter.records if (moment := created_at(record)) is not None]
        self.oldest_sent = min(sent_at, self.oldest_sent or sent_at)
        if created:
            self.oldest_record = min(*created, self.oldest_record or created[0])
        until = None if facts["toDo"] else _until(facts)
        self.groups.add((letter.kind, _why(facts)), _named(facts), sent_at, until)

    def summary(self) -> str:
        """How many there are, and how old the oldest one is, for certain: SQS's own metric leaves some out."""
        text = f"{self.count} dead letter{'' if self.count == 1 else 's'}"
        if self.oldest_sent is not None:
            ends = self.oldest_sent + timedelta(days=QUEUE_RETENTION_DAYS) - self.now
            text += f"; the oldest was sent {duration(self.now - self.oldest_sent)} ago, and SQS deletes it in "
            text += duration(ends)
        if self.oldest_record is not None:
            text += f"; the oldest record is of {self.oldest_record.isoformat(timespec='seconds')}"
        return text + "."

    def held_elsewhere(self) -> int:
        """About how many letters are in the queue that could not be read."""
        return max(0, self.held.waiting() - self.received) if self.count != self.selection.limit else 0


def _print(listing: Listing, options: argparse.Namespace) -> None:
    if options.json:
        separator = "[\n"
        for _, facts in listing.letters():
            sys.stdout.write(separator + indent(json.dumps(facts, ensure_ascii=True, indent=2, default=str), "  "))
            separator = ",\n"
        sys.stdout.write("[]\n" if separator == "[\n" else "\n]\n")
    else:
        for _, facts in listing.letters():
            if options.all or options.show_images:
                _print_letter(facts)
        if not (options.all or options.show_images):
            print_groups(listing.groups, listing.now)
        say(listing.summary())
    if elsewhere := listing.held_elsewhere():
        sys.stderr.write(
            f"aggregator: about {elsewhere} more could not be read: another command holds them, or they came since\n"
        )


def print_groups(groups: Groups, now: datetime) -> None:
    """Some lines for each group."""
    for group in groups.by_size():
        kind, why = group.what
        times = [] if group.sent_at is None else [f"the oldest sent {duration(now - group.sent_at)} ago"]
        times += [] if group.until is None else [_replay(_within(group.until, now))]
        say(", ".join([f"{group.count} x {kind}", *times]))
        say(why, indented=2)
        say(f"for example {group.example}", indented=2)


def _print_letter(facts: Mapping[str, Any]) -> None:
    replay = "" if facts["toDo"] else f", {_replay(facts['trustedFor'])}"
    say(f"{facts['kind']}, sent {facts['age']} ago{replay}, message {facts['messageId']}")
    say(_why(facts), indented=2)
    say(_named(facts), indented=2)
    if "records" in facts:
        say(json.dumps(facts["records"], ensure_ascii=True, indent=2))


def _replay(within: str) -> str:
    return f"{within} to replay" if within == _TOO_LATE else f"replay within {within}"


def _why(facts: Mapping[str, Any]) -> str:
    return "\n".join([*facts["reasons"], *([facts["toDo"]] if facts["toDo"] else [])])


def _named(facts: Mapping[str, Any]) -> str:
    """The records and the items that a letter is about."""
    keys = [", ".join(f"{name}={value}" for name, value in key.items()) for key in facts["keys"]]
    numbers, items = _shortened(facts["sequenceNumbers"], ", "), _shortened(keys, "; ")
    parts = [f"record {numbers}" if numbers else f"message {facts['messageId']}", *([f"item {items}"] if items else [])]
    return ", ".join(parts)


def describe(letter: Letter, resources: Resources, now: datetime, *, with_images: bool) -> dict[str, Any]:
    """A letter's facts; item contents only if asked for."""
    days = resources.ledger_retention_days
    limits = [until for record in letter.records if (until := trusted_until(record, days)) is not None]
    until = min(limits) if limits else None
    facts: dict[str, Any] = {
        "messageId": letter.message.message_id,
        "kind": letter.kind,
        "reasons": list(letter.reasons),
        "sequenceNumbers": letter.sequence_numbers,
        "keys": [_keys(record) for record in letter.records],
        "sentAt": letter.message.sent_at.astimezone(UTC).isoformat(timespec="seconds"),
        "age": duration(now - letter.message.sent_at),
        "toDo": None if letter.notice is None else described(letter.notice, resources),
        "trustedUntil": None if until is None else until.isoformat(timespec="seconds"),
        "trustedFor": _within(until, now),
    }
    if with_images:
        facts["records"] = list(letter.records)
    return facts


def _until(facts: Mapping[str, Any]) -> datetime | None:
    text = facts["trustedUntil"]
    return None if text is None else datetime.fromisoformat(text)


def _within(until: datetime | None, now: datetime) -> str:
    if until is None:
        return "unknown"
    return duration(until - now) if until > now else _TOO_LATE


def _keys(record: Any) -> dict[str, str]:
    """An item's key values, without their types."""
    try:
        return {name: str(next(iter(value.values()))) for name, value in record["dynamodb"]["Keys"].items()}
    except (KeyError, TypeError, AttributeError, StopIteration):
        return {}


def _shortened(values: list[str], separator: str) -> str:
    shown = [value for value in values if value][:_SHOWN]
    more = len(values) - len(shown)
    return separator.join([*shown, f"and {more} more"] if more > 0 and shown else shown)

"""Which dead letters a command is to work on."""

import argparse
from dataclasses import dataclass

from aggregation_worker.operations.letters import Letter
from aggregation_worker.operations.options import positive


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters; a letter must match all that is given.

    Attributes:
        reason: a part of one of its reasons, whatever the case of letters.
        sequence_numbers: it holds a record with one of these.
        message_ids: it is one of these messages.
        limit: at most so many letters.
    """

    reason: str | None = None
    sequence_numbers: frozenset[int] = frozenset()
    message_ids: frozenset[str] = frozenset()
    limit: int | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Selection":
        """What the command line asks for."""
        return cls(options.reason, frozenset(options.sequence_number), frozenset(options.message), options.limit)

    @property
    def is_everything(self) -> bool:
        """Whether nothing is asked for, but perhaps how many."""
        return self.reason is None and not self.sequence_numbers and not self.message_ids

    def matches(self, letter: Letter) -> bool:
        """Whether the letter is one of these, but for the limit."""
        if self.reason is not None and not any(self.reason.lower() in reason.lower() for reason in letter.reasons):
            return False
        if self.message_ids and letter.message.message_id not in self.message_ids:
            return False
        if not self.sequence_numbers:
            return True
        return any(number.isdecimal() and int(number) in self.sequence_numbers for number in letter.sequence_numbers)


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """The command line of `Selection`."""
    parser.add_argument("--reason", metavar="TEXT", help="only letters with this text in a reason")
    parser.add_argument(
        "--sequence-number",
        type=positive(int),
        action="append",
        default=[],
        metavar="N",
        help="only letters that hold this record; can be repeated",
    )
    parser.add_argument(
        "--message", action="append", default=[], metavar="ID", help="only this message of SQS; can be repeated"
    )
    parser.add_argument("--limit", type=positive(int), metavar="N", help="at most so many letters")

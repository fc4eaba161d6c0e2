"""Discards dead letters: notes them in a file, says what is lost with them, asks, and deletes them."""

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.letters import Letter
from aggregation_worker.operations.output import number_of, say
from aggregation_worker.operations.queue import HeldMessages

_LOST = {
    "parked record": (
        "{records} in {letters}: what is not in the totals yet never will be, until aggregator reconcile --repair "
        "corrects these from the source"
    ),
    "failed batch": "{records} in {letters}, good ones among them: replay these rather than discard them",
    "notice": (
        "{letters}: no contribution is lost, but nothing tells any more of items that are worth nothing until "
        "they are corrected"
    ),
    "notification test": "{letters} of the bucket: nothing is lost",
    "unreadable": "{letters} that cannot be read: what is lost is not known",
}


@dataclass(slots=True)
class Discarding:
    """One run, to be used in a `with` block; if nothing is discarded in it, no file is left.

    Attributes:
        path: the file, which must not be there yet; `None` for one that is named after the time.
    """

    path: Path | None
    now: datetime
    _file: IO[str] = field(init=False)
    _ids: list[str] = field(default_factory=list)
    _letters: Counter[str] = field(default_factory=Counter)
    _records: Counter[str] = field(default_factory=Counter)
    _is_kept: bool = False

    def __enter__(self) -> "Discarding":
        self.path = self.path or Path(f"discarded-letters-{self.now.astimezone(UTC):%Y%m%dT%H%M%SZ}.jsonl")
        try:
            # It holds contents of items: for its owner only.
            self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
        except FileExistsError as error:
            raise CommandError(f"{self.path} is there already: name another file with --record") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if not self._is_kept and self.path is not None:
            self.path.unlink()
        if kind is KeyboardInterrupt:
            done = (
                f"some are discarded, and {self.path} holds all that were to be"
                if self._is_kept
                else "none is discarded"
            )
            sys.stderr.write(
                f"aggregator: interrupted: of {number_of(len(self._ids), 'letter')} {done}; run it again\n"
            )

    def note(self, letter: Letter, facts: Mapping[str, Any]) -> None:
        """Adds a letter to those that are to be discarded."""
        line = {**facts, "records": letter.records, "body": letter.message.body}
        self._file.write(json.dumps(line, ensure_ascii=True) + "\n")
        self._ids.append(letter.message.message_id)
        self._letters[letter.kind] += 1
        self._records[letter.kind] += len(letter.records)

    def say_what_is_lost(self) -> None:
        """A sentence for each kind."""
        for kind, count in self._letters.items():
            letters = number_of(count, "letter" if kind == "unreadable" else kind)
            say(f"To be lost: {_LOST[kind].format(letters=letters, records=number_of(self._records[kind], 'record'))}.")

    def discard(self, held: HeldMessages, *, answered: bool) -> int:
        """Asks, unless the answer is given, and deletes; returns 0 if every letter is gone, else 1.

        Raises:
            CommandError: there is nobody to ask.
        """
        if not self._ids:
            say("No letter is named by these options; nothing was discarded.")
            return 1
        if not answered and not _is_yes(f"Discard {number_of(len(self._ids), 'letter')}? Type yes: "):
            say("Nothing was discarded.")
            return 1
        self._file.flush()
        os.fsync(self._file.fileno())
        self._is_kept = True
        failed = held.delete(self._ids)
        say(f"{number_of(len(self._ids) - len(failed), 'letter')} discarded; what they held is in {self.path}.")
        for message_id, why in sorted(failed.items())[:1]:
            say(f"{len(failed)} could not be deleted, and are still in the queue, such as {message_id}: {why}.")
        return 1 if failed else 0


def _is_yes(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandError("--discard asks before it deletes: answer with --yes where nobody can be asked")
    return input(question).strip().lower() == "yes"

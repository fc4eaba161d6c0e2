"""All dead letters that wait, as a repair must know them: one that it misses is counted on top of its correction."""

import json
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from tempfile import TemporaryFile
from typing import IO, Any

from aggregation_worker.dead_letters import Notice
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.letters import Letter, LetterReader, source_of
from aggregation_worker.operations.queue import HeldMessages
from aggregation_worker.operations.resources import Resources, is_on_this_machine
from aggregation_worker.reconciliation.progress import Stage, Tell
from aggregation_worker.reconciliation.waiting_letters import Waiting, WaitingNotice

# Seconds. What others have sent or received is in the queue's counts within a minute ("GetQueueAttributes", Amazon SQS
# API reference).
COUNT_LAG = 60.0
# Seconds in which the counts must agree with what was read.
_COUNT_PATIENCE = 90
_POLL_SECONDS = 2.0


@dataclass(slots=True)
class AllLetters:
    """All dead letters that wait, held while totals are corrected, so that those which are settled can be deleted.

    Their records are in a file, so that memory does not grow with the queue.

    Attributes:
        stack: on its end all that are left are given back.
        count_lag: seconds until the queue's counts show what others have sent or received; `None` for what the
            endpoint needs: on this machine they show it at once.
    """

    resources: Resources
    stack: ExitStack
    count_lag: float | None = None
    progress: Tell = lambda *_: None
    wait_seconds: int = 1
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _held: HeldMessages = field(init=False)
    _file: IO[str] = field(init=False)
    _reader: LetterReader | None = None
    _letters: int = 0
    _unreadable: list[str] = field(default_factory=list)

    def read(self) -> Waiting:
        """Receives all that is there, what was read before included; takes nothing out of the queue.

        A letter that another command holds shows in the queue's counts only, and these lag. So from the second time
        on, when a correction is next, they must agree with what was read for as long as they can lag.

        Raises:
            CommandError: one cannot be read, or others hold some: a correction could count their records twice.
        """
        steady = self.count_lag
        if steady is None:
            steady = 0.0 if is_on_this_machine(self.resources.sqs) else COUNT_LAG
        if self._reader is None:
            self._reader = LetterReader(self.resources, source_of(self.resources))
            self._file = self.stack.enter_context(TemporaryFile("w+", encoding="ascii"))  # noqa: SIM115 - the stack ends it
            self._held = self.stack.enter_context(
                HeldMessages(self.resources.sqs, self.resources.queue_url, wait_seconds=self.wait_seconds)
            )
            steady = 0.0
        agreed_at = disagreed_at = None
        while True:
            self._receive(self._reader)
            waiting, now = self._held.waiting(), self.clock()
            if waiting == self._letters:
                agreed_at, disagreed_at = now if agreed_at is None else agreed_at, None
                if now - agreed_at >= steady:
                    return Waiting(_Again(self._records), _Again(self._notices))
                self.progress(Stage.COUNTS, int(now - agreed_at), int(steady))
            else:
                agreed_at, disagreed_at = None, now if disagreed_at is None else disagreed_at
                if now - disagreed_at >= _COUNT_PATIENCE:
                    raise CommandError(
                        f"nothing was corrected: the dead-letter queue has {waiting} messages, but {self._letters} "
                        "could be read; another command may hold the others: run this again when it is done"
                    )
            self.sleep(_POLL_SECONDS)

    def delete(self, message_ids: Collection[str]) -> None:
        """Deletes notices that were made up for; what cannot be deleted stays in the queue, and does no harm."""
        if message_ids:
            self._held.delete(message_ids)

    def _receive(self, reader: LetterReader) -> None:
        soon = self._held.started_at() + timedelta(days=1)  # those that come while this reads, too
        self._file.seek(0, 2)
        for letter in (letter for page in self._held.receive(soon, reader) for letter in page):
            self._letters += 1
            if letter.readable:
                self._file.write(json.dumps(_as_line(letter)) + "\n")
            else:
                self._unreadable.append("; ".join(letter.reasons))
        if self._unreadable:
            raise CommandError(
                f"nothing was corrected: {len(self._unreadable)} of {self._letters} dead letters cannot be read, so it "
                f"is not known which totals they change ({self._unreadable[0]}); discard or replay them first"
            )

    def _lines(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        for line in self._file:
            yield json.loads(line)

    def _records(self) -> Iterator[Any]:
        for line in self._lines():
            if "aggregation" not in line:
                yield from line["records"]

    def _notices(self) -> Iterator[WaitingNotice]:
        for line in self._lines():
            if "aggregation" in line:
                (record,) = line["records"]
                yield WaitingNotice(line["message"], Notice(record, tuple(line["reasons"]), line["aggregation"]))


@dataclass(frozen=True, slots=True)
class _Again:
    """What is read from the file each time that it is iterated over."""

    begin: Callable[[], Iterator[Any]]

    def __iter__(self) -> Iterator[Any]:
        return self.begin()


def _as_line(letter: Letter) -> dict[str, Any]:
    line: dict[str, Any] = {"message": letter.message.message_id, "records": letter.records}
    if letter.notice is not None:
        line |= {"reasons": letter.reasons, "aggregation": letter.notice.aggregation}
    return line

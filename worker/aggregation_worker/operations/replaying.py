"""Replays dead letters: sends their records through the worker again, and deletes what is done.

A dead letter is deleted only after every record of it was applied, was a duplicate, contributes nothing, or is told of
by a letter of its own, anew. A notice holds no contribution and is not sent: it is deleted when there is nothing to do
about it any more (`notices`). Whatever happens before that (Ctrl-C, a crash, a lost answer, a second replay at the same
time) leaves it in the queue, and the ledger makes replaying it once more harmless.

Nothing here decides whether a record is too old: the worker looks when it counts it, however long the record has waited
for its turn, and parks one that is older than the ledger's memory anew, with that reason.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.batch import REPORT_OUTCOMES, RecordOutcome
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.failures import CommitError
from aggregation_worker.operations.errors import explain_aws_error
from aggregation_worker.operations.letters import Letter
from aggregation_worker.operations.notices import NoticeState, state_of
from aggregation_worker.operations.queue import HeldMessages, Message
from aggregation_worker.operations.resources import Resources, name_missing_tables
from aggregation_worker.operations.selection import Selection
from aggregation_worker.streams.records import StreamViewTypeError, UnexpectedEventError, sequence_number_of

# A Lambda event holds 6 MB ("Lambda quotas"); a batch stays well below, and small enough for the function's timeout.
MAX_EVENT_BYTES = 5_000_000
MAX_EVENT_RECORDS = 500
# When so many invocations in a row fail for a reason that is not in the records, the replay ends.
MAX_FAILURES_IN_A_ROW = 5
# Seconds after each of them.
_PAUSE = 0.5
# What the worker raises for what is in a record, and for what no record can be the reason of. Whatever else fails, an
# event without records tells whether the function is at fault.
_OF_RECORDS = frozenset(one.__name__ for one in (UnexpectedEventError, StreamViewTypeError))
_OF_THE_FUNCTION = frozenset(one.__name__ for one in (CommitError, ClientError))

Send = Callable[[list[Any]], list[RecordOutcome]]
"""Sends records through the worker; gives an outcome for each. Raises `SendError`."""


class SendError(WorkerError):
    """The worker could not be called, or failed as a whole; nothing is known of the records.

    Attributes:
        raised: the type's name of what the worker raised; `None` if it gave no answer of its own.
    """

    def __init__(self, message: str, raised: str | None = None) -> None:
        super().__init__(message)
        self.raised = raised


@dataclass(frozen=True, slots=True)
class Left:
    """A letter that is still in the queue, and why."""

    message_id: str
    kind: str
    sequence_numbers: tuple[str, ...]
    why: str


@dataclass(slots=True)
class Summary:
    """What a replay did: records by outcome, letters by result.

    Attributes:
        records: how many records had each outcome.
        done: letters that are done and gone.
        told_anew: letters that are gone, but in whose place there are others now, about the same records.
        left: letters that are still in the queue, each with the reason.
        skipped: letters that the selection leaves out.
        ended_by: why the function itself ended the replay.
    """

    records: dict[RecordOutcome, int] = field(default_factory=lambda: dict.fromkeys(RecordOutcome, 0))
    done: int = 0
    told_anew: int = 0
    left: list[Left] = field(default_factory=list)
    skipped: int = 0
    interrupted: bool = False
    ended_by: str | None = None

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "applied": self.records[RecordOutcome.APPLIED],
            "duplicates": self.records[RecordOutcome.DUPLICATE],
            "notCounted": self.records[RecordOutcome.NOT_COUNTED],
            "noticed": self.records[RecordOutcome.NOTICED],
            "parkedAgain": self.records[RecordOutcome.PARKED],
            "lettersDeleted": self.done + self.told_anew,
            "lettersToldAnew": self.told_anew,
            "lettersLeft": [{"messageId": one.message_id, "why": one.why} for one in self.left],
            "lettersNotSelected": self.skipped,
            "interrupted": self.interrupted,
            "endedBy": self.ended_by,
        }


@dataclass(slots=True)
class _Job:
    """A letter on its way: how many of its records are on their way, and what keeps it from being deleted."""

    letter: Letter
    open_records: int
    problem: str | None = None
    told_anew: bool = False


_Entry = tuple[_Job, Any]
"""A record, and whose it is."""


class _FunctionError(WorkerError):
    """The function is at fault, and not a record."""


@dataclass(slots=True)
class Replay:
    """One run.

    Attributes:
        send: how records reach the worker; `None` for a dry run.
        rate: records a second at most, or `None`.
        progress: called with the number of letters that are settled, deleted or left.
    """

    resources: Resources
    held: HeldMessages
    read: Callable[[Message], Letter]
    selection: Selection
    send: Send | None
    rate: float | None = None
    progress: Callable[[int], None] = lambda _: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    summary: Summary = field(default_factory=Summary)
    _next_at: float = 0.0

    def run(self) -> Summary:
        """Replays what was in the queue when it began; Ctrl-C ends it early and leaves the rest in the queue."""
        try:
            for jobs in self._portions():  # of a dry run, there are none
                if self.send is not None:
                    self._replay(self.send, jobs)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        except _FunctionError as error:
            self.summary.ended_by = str(error)
        return self.summary

    def _portions(self) -> Iterator[list[_Job]]:
        """The letters to replay, in portions that fill an event or two."""
        portion: list[_Job] = []
        chosen = 0
        with closing(self.held.receive(self.held.started_at(), self._read)) as pages:
            for page in pages:
                for letter, state in page:
                    if not self.selection.matches(letter) or chosen == self.selection.limit:
                        self.summary.skipped += 1
                        continue
                    chosen += 1
                    if (job := self._job(letter, state)) is not None:
                        portion.append(job)
                if sum(max(1, job.open_records) for job in portion) >= MAX_EVENT_RECORDS:
                    yield portion
                    portion = []
                if chosen == self.selection.limit:
                    break
        if portion:
            yield portion

    def _read(self, message: Message) -> tuple[Letter, str | None]:
        """A letter, and of a notice that is selected what is to be done about it."""
        letter = self.read(message)
        if letter.notice is None or not self.selection.matches(letter):
            return letter, None
        try:
            return letter, state_of(letter.notice, self.resources)
        except (BotoCoreError, ClientError) as error:
            return letter, f"the item could not be read: {explain_aws_error(error)}"

    def _job(self, letter: Letter, state: str | None) -> _Job | None:
        """What is to be sent, or only to be deleted; what is neither is left."""
        is_over = letter.kind == "notification test" or state == NoticeState.OVER
        if not letter.readable:
            self._leave(letter, "; ".join(letter.reasons))
        elif letter.notice is not None and not is_over:
            self._leave(letter, str(state))
        elif self.send is None:
            self._leave(letter, f"dry run: it would be {'deleted' if is_over else 'replayed'}")
        else:
            return _Job(letter, 0 if is_over else len(letter.records))
        return None

    def _replay(self, send: Send, jobs: Sequence[_Job]) -> None:
        """Sends the letters' records in as few events as fit, and settles each letter when its last one is done."""
        # A second's records at most, so that a rate is kept evenly.
        most = MAX_EVENT_RECORDS if self.rate is None else max(1, min(MAX_EVENT_RECORDS, int(self.rate)))
        self._settle([job for job in jobs if not job.open_records])
        entries = ((job, record) for job in jobs if job.open_records for record in job.letter.records)
        for event in _events(entries, most):
            self._send(send, event)
            settled = {id(job): job for job, _ in event if not job.open_records}
            self._settle([*settled.values()])

    def _settle(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            if job.problem is not None:
                self._leave(job.letter, job.problem)
        self._delete([job for job in jobs if job.problem is None])

    def _send(self, send: Send, event: Sequence[_Entry]) -> None:
        """Sends one event; if the worker fails because of a record, its halves, to find that one."""
        try:
            outcomes = self._outcomes(send, [record for _, record in event])
        except SendError as error:
            if len(event) > 1:
                middle = len(event) // 2
                self._send(send, event[:middle])
                self._send(send, event[middle:])
                return
            ((job, record),) = event
            job.open_records -= 1
            job.problem = f"record {sequence_number_of(record)}: {error}"
            return
        for (job, record), outcome in zip(event, outcomes, strict=True):
            self.summary.records[outcome] += 1
            job.open_records -= 1
            if outcome is RecordOutcome.RETRIED:
                number = sequence_number_of(record)
                job.problem = f"record {number} was not settled in time, or could not be parked again; replay it again"
            job.told_anew |= outcome in (RecordOutcome.PARKED, RecordOutcome.NOTICED)

    def _outcomes(self, send: Send, records: list[Any]) -> list[RecordOutcome]:
        """What becomes of records, however often the function must be called.

        Raises:
            SendError: the worker fails because of a record.
            _FunctionError: the function is at fault, and not for a moment only.
        """
        failures = 0
        while True:
            self._keep_rate(len(records))
            try:
                return send(records)
            except SendError as error:
                if not _is_functions_own(send, error):
                    raise
                failures += 1
                if failures == MAX_FAILURES_IN_A_ROW:
                    raise _FunctionError(
                        f"{failures} invocations in a row failed, the last with: {error}; the letters stay in the queue"
                    ) from error
                self.sleep(_PAUSE)

    def _keep_rate(self, records: int) -> None:
        """Waits until so many may be sent: each takes its part of a second from when it was sent."""
        if self.rate is None:
            return
        now = self.clock()
        if now < self._next_at:
            self.sleep(self._next_at - now)
        self._next_at = max(now, self._next_at) + records / self.rate

    def _delete(self, jobs: Sequence[_Job]) -> None:
        failed = self.held.delete([job.letter.message.message_id for job in jobs])
        for job in jobs:
            why = failed.get(job.letter.message.message_id)
            if why is not None:
                self._leave(job.letter, f"replayed, but it could not be deleted: {why}")
            elif job.told_anew:
                self.summary.told_anew += 1
            else:
                self.summary.done += 1
        self.progress(len(jobs) - len(failed))

    def _leave(self, letter: Letter, why: str) -> None:
        numbers = tuple(letter.sequence_numbers[:3])
        self.summary.left.append(Left(letter.message.message_id, letter.kind, numbers, why))
        self.progress(1)


def _is_functions_own(send: Send, error: SendError) -> bool:
    """Whether the function is at fault, and not a record."""
    if error.raised is None or error.raised in _OF_THE_FUNCTION:
        return True
    if error.raised in _OF_RECORDS:
        return False
    try:
        send([])
    except SendError:
        return True
    return False


def _events(entries: Iterable[_Entry], most: int) -> Iterator[list[_Entry]]:
    """Cuts records into events that Lambda accepts, of at most so many."""
    event: list[_Entry] = []
    size = 0
    for job, record in entries:
        length = len(json.dumps(record))
        if event and (len(event) == most or size + length > MAX_EVENT_BYTES):
            yield event
            event, size = [], 0
        event.append((job, record))
        size += length
    if event:
        yield event


def through_function(client: Any, function: str) -> Send:
    """Sends through the deployed function, with boto3's Lambda client."""

    def send(records: list[Any]) -> list[RecordOutcome]:
        payload = json.dumps({"Records": records, REPORT_OUTCOMES: True}).encode()
        try:
            answer = client.invoke(FunctionName=function, Payload=payload)
            body = answer["Payload"].read().decode("utf-8", "replace")
        except (BotoCoreError, ClientError) as error:
            raise SendError(f"function {function} cannot be called: {explain_aws_error(error)}") from error
        if "FunctionError" in answer:
            raised, message = _error_of(body)
            raise SendError(f"function {function} failed: {raised}: {message}", raised)
        return read_outcomes(body, records)

    return send


def in_process() -> Send:
    """Runs the worker in this process, with the caller's credentials and the environment's settings."""
    boto3.DEFAULT_SESSION = boto3.Session()  # the handler's; an earlier one would have another environment's settings
    name_missing_tables(boto3.DEFAULT_SESSION)

    def send(records: list[Any]) -> list[RecordOutcome]:
        from aggregation_worker.handler import lambda_handler

        try:
            answer = lambda_handler({"Records": records, REPORT_OUTCOMES: True}, None)
        except Exception as error:
            raised = type(error).__name__
            raise SendError(f"the worker failed: {raised}: {error}", raised) from error
        return read_outcomes(json.dumps(answer), records)

    return send


def read_outcomes(body: str, records: Sequence[Any]) -> list[RecordOutcome]:
    """An outcome for each record from the worker's answer.

    Raises:
        SendError: the answer is not this worker's.
    """
    try:
        answer = json.loads(body)
        outcomes = [RecordOutcome(text) for text in answer["outcomes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise SendError(f"the function's answer is not this worker's: {body[:200]!r}") from error
    if len(outcomes) != len(records):
        raise SendError(f"the function gave {len(outcomes)} outcomes for {len(records)} records")
    return outcomes


def _error_of(body: str) -> tuple[str, str]:
    """Type and message of what a function raised."""
    try:
        error = json.loads(body)
        return str(error.get("errorType", "an error")), str(error["errorMessage"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return "an error", body[:200]

"""Replays dead letters: sends their records through the worker again, and deletes what is done.

A dead letter is deleted only after every record of it was applied, was a duplicate, contributes nothing, or is told of
by a letter of its own, anew. A notice holds no contribution and is not sent: it is deleted when there is nothing to do
about it any more (`notices`). Whatever happens before that (Ctrl-C, a crash, a lost answer, a second replay at the same
time) leaves it in the queue, and the ledger makes replaying it once more harmless. A record that is older than the
ledger's memory is not counted on trust: the worker parks it anew, with that reason.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.batch import REPORT_OUTCOMES, RecordOutcome
from aggregation_worker.dead_letters import Notice
from aggregation_worker.errors import WorkerError
from aggregation_worker.operations.errors import CommandError, explain_aws_error
from aggregation_worker.operations.letters import HeldMessages, Letter, resolve_letter
from aggregation_worker.operations.notices import NoticeState, state_of
from aggregation_worker.operations.resources import Resources, name_missing_tables
from aggregation_worker.streams.records import sequence_number_of

# A Lambda event holds 6 MB ("Lambda quotas"); a batch stays well below, and small enough for the function's timeout.
MAX_EVENT_BYTES = 5_000_000
MAX_EVENT_RECORDS = 500
# When so many invocations in a row fail, the function is at fault and not the letters.
MAX_FAILURES_IN_A_ROW = 5

Send = Callable[[list[Any]], list[RecordOutcome]]
"""Sends records through the worker; gives an outcome for each. Raises `SendError`."""


class SendError(WorkerError):
    """The worker could not be called, or failed as a whole; nothing is known of the records."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters to replay; a letter must match all that is given.

    Attributes:
        reason: a part of one of its reasons, whatever the case of letters.
        sequence_numbers: it holds a record with one of these.
        limit: at most so many letters.
    """

    reason: str | None = None
    sequence_numbers: frozenset[int] = frozenset()
    limit: int | None = None

    def matches(self, letter: Letter) -> bool:
        """Whether the letter is to be replayed."""
        if self.reason is not None and not any(self.reason.lower() in reason.lower() for reason in letter.reasons):
            return False
        if not self.sequence_numbers:
            return True
        found = {int(number) for number in letter.sequence_numbers if number.isdecimal()}
        return bool(found & self.sequence_numbers)


@dataclass(slots=True)
class Summary:
    """What a replay did: records by outcome, letters by result.

    Attributes:
        records: how many records had each outcome.
        deleted: letters that are done and gone, or in whose place another one is.
        left: letters that are still in the queue, each with the reason.
        skipped: letters that the selection leaves out.
    """

    records: dict[RecordOutcome, int] = field(default_factory=lambda: dict.fromkeys(RecordOutcome, 0))
    deleted: int = 0
    left: list[tuple[Letter, str]] = field(default_factory=list)
    skipped: int = 0
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "applied": self.records[RecordOutcome.APPLIED],
            "duplicates": self.records[RecordOutcome.DUPLICATE],
            "notCounted": self.records[RecordOutcome.NOT_COUNTED],
            "noticed": self.records[RecordOutcome.NOTICED],
            "parkedAgain": self.records[RecordOutcome.PARKED],
            "lettersDeleted": self.deleted,
            "lettersLeft": [{"messageId": letter.message.message_id, "why": why} for letter, why in self.left],
            "lettersNotSelected": self.skipped,
            "interrupted": self.interrupted,
        }


@dataclass(slots=True)
class _Job:
    """A letter on its way: which of its records still have no outcome, and what keeps it from being deleted."""

    letter: Letter
    open_records: int
    problem: str | None = None


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
    selection: Selection
    send: Send | None
    rate: float | None = None
    progress: Callable[[int], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    summary: Summary = field(default_factory=Summary)
    _failures_in_a_row: int = 0

    def run(self) -> Summary:
        """Replays what was in the queue when it began; Ctrl-C ends it early and leaves the rest in the queue."""
        try:
            for jobs in self._portions(self.held.started_at()):
                self._replay(jobs)
        except KeyboardInterrupt:
            self.summary.interrupted = True
        return self.summary

    def _portions(self, started_at: datetime) -> Iterator[list[_Job]]:
        """The letters to replay, in portions that fill an event or two."""
        portion: list[_Job] = []
        chosen = 0
        for page in self.held.receive(started_at):
            for message in page:
                letter = resolve_letter(message, self.resources)
                if not self.selection.matches(letter) or chosen == self.selection.limit:
                    self.summary.skipped += 1
                    continue
                chosen += 1
                if letter.kind == "notification test" and self.send is not None:
                    self._delete(letter)
                elif not letter.readable:
                    self._leave(letter, "; ".join(letter.reasons))
                elif letter.notice is not None:
                    self._look_at(letter, letter.notice)
                else:
                    portion.append(_Job(letter, len(letter.records)))
            if sum(job.open_records for job in portion) >= MAX_EVENT_RECORDS:
                yield portion
                portion = []
            if chosen == self.selection.limit:
                break
        if portion:
            yield portion

    def _look_at(self, letter: Letter, notice: Notice) -> None:
        try:
            state = state_of(notice, self.resources)
        except (BotoCoreError, ClientError) as error:
            self._leave(letter, f"the item could not be read: {explain_aws_error(error)}")
            return
        if state is not NoticeState.OVER:
            self._leave(letter, state.value)
        elif self.send is None:
            self._leave(letter, "dry run: it would be deleted")
        else:
            self._delete(letter)

    def _replay(self, jobs: Sequence[_Job]) -> None:
        """Sends the letters' records in as few events as fit, and settles each letter."""
        send = self.send
        if send is None:
            for job in jobs:
                self._leave(job.letter, "dry run: it would be replayed")
            return
        for event in _events((job, record) for job in jobs for record in job.letter.records):
            self._send(send, event)
        for job in jobs:
            if job.problem is None:
                self._delete(job.letter)
            else:
                self._leave(job.letter, job.problem)

    def _send(self, send: Send, event: Sequence[tuple[_Job, Any]]) -> None:
        """Sends one event; if the worker fails as a whole, each letter's part by itself, to find the guilty one."""
        try:
            outcomes = send([record for _, record in event])
        except SendError as error:
            jobs = list({id(job): job for job, _ in event}.values())
            if len(jobs) > 1:
                for job in jobs:
                    self._send(send, [entry for entry in event if entry[0] is job])
                return
            jobs[0].problem = str(error)
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise CommandError(
                    f"{MAX_FAILURES_IN_A_ROW} invocations in a row failed, the last with: {error}; "
                    "the letters stay in the queue"
                ) from error
            return
        self._failures_in_a_row = 0
        if self.rate is not None:
            self.sleep(len(event) / self.rate)
        for (job, record), outcome in zip(event, outcomes, strict=True):
            self.summary.records[outcome] += 1
            if outcome is RecordOutcome.RETRIED:
                job.problem = f"record {sequence_number_of(record)} was not settled in time; replay it again"

    def _delete(self, letter: Letter) -> None:
        try:
            self.held.delete(letter.message)
        except (BotoCoreError, ClientError) as error:
            self._leave(letter, f"replayed, but it could not be deleted: {explain_aws_error(error)}")
            return
        self.summary.deleted += 1
        self.progress(1)

    def _leave(self, letter: Letter, why: str) -> None:
        self.summary.left.append((letter, why))
        self.progress(1)


def _events(entries: Iterable[tuple[_Job, Any]]) -> Iterator[list[tuple[_Job, Any]]]:
    """Cuts records into events that Lambda accepts."""
    event: list[tuple[_Job, Any]] = []
    size = 0
    for job, record in entries:
        length = len(json.dumps(record))
        if event and (len(event) == MAX_EVENT_RECORDS or size + length > MAX_EVENT_BYTES):
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
            raise SendError(f"function {function} failed: {_error_of(body)}")
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
            raise SendError(f"the worker failed: {type(error).__name__}: {error}") from error
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


def _error_of(body: str) -> str:
    try:
        error = json.loads(body)
        return f"{error['errorType']}: {error['errorMessage']}"
    except (ValueError, KeyError, TypeError):
        return body[:200]

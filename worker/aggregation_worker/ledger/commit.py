"""Commits the postings of a batch: a loop for each row around `next_step`, which sends, waits and learns.

A row has one write in flight at a time; rows are independent of one another and side by side. This module never raises
for what another attempt can cure: what is not settled when time is up is reported as unsettled, and its records come
again.
"""

import random
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.ledger.failures import Kind, Throttle, failure_of
from aggregation_worker.ledger.next_write import Step, next_step
from aggregation_worker.ledger.pages import Page, page_of
from aggregation_worker.ledger.receipts import Aggregate, Posting, Row, expiry
from aggregation_worker.ledger.writes import Add, Archive, Late, Look, Start, Write

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Requests in flight at once. One takes botocore 0.4 ms of processor time or more and is about 4 ms on its way, so some
# ten keep a core busy. Of 1, 4, 8, 12, 16, 24 and 32, a batch of 1,000 records for 326 rows took least with 16 (3.0,
# 1.1, 0.68, 0.63, 0.53, 0.56 and 0.67 s with a round trip of 4 ms, on two cores with DynamoDB Local on them).
# Botocore's client is safe to share between threads.
MAX_IN_FLIGHT = 16

# "BatchGetItem", Amazon DynamoDB API reference.
_MAX_KEYS_READ = 100

# Seconds: the first pause of each kind, and the longest. Jittered between half and the whole; doubled every time.
_CONFLICT_PAUSE = (0.010, 0.500)
_THROTTLED_PAUSE = (0.050, 2.000)
_LOOK_PAUSE = (0.050, 1.000)
# Looks at pages that are not there, before they are taken for expired: a second or more together, where the items of a
# transaction appear within milliseconds of one another.
_MOST_LOOKS = 6
# A row that is found changed so often in turn is written by many: then a pause, as after a conflict.
_CHANGES_WITHOUT_PAUSE = 3

EXPIRED = (
    "older than the ledger's memory: the page that would tell whether it was counted has expired; discard it, then run "
    "aggregator reconcile --repair"
)
RESTORED = (
    "the ledger holds a page that the row has not archived: the row was restored from a backup, or changed by hand; "
    "totals are never continued from a backup: give the aggregation a new name and a table of its own, and backfill it"
)

Plan = Callable[
    [Row, Mapping[str, Any], Sequence[Posting], Mapping[Aggregate, Sequence[Page]], Callable[[], str]], Step
]
"""Decides a row's next write, as `next_step` does."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long an invocation may go on.

    Attributes:
        seconds_left: seconds until Lambda ends the invocation.
        stop_sending: with fewer seconds left than this, no request is sent any more.
        stop_waiting: with fewer seconds left than this, no answer is waited for any more.
    """

    seconds_left: Callable[[], float]
    stop_sending: float
    stop_waiting: float

    def sending_time(self) -> float:
        """Seconds in which requests may still be sent; zero or less when it is over."""
        return self.seconds_left() - self.stop_sending

    def waiting_time(self) -> float:
        """Seconds in which answers may still be waited for; zero or less when it is over."""
        return self.seconds_left() - self.stop_waiting


@dataclass(slots=True)
class Outcome:
    """What became of every posting of a batch: each is in exactly one of the first four lists.

    Attributes:
        applied: receipt and contribution were committed now.
        duplicates: the receipt was there already; nothing was added.
        refused: never to be counted as it is, with the reason.
        unsettled: not known to be in; time was up.
        differing: those of the duplicates whose receipts hold another amount than was computed now.
        writes: how many went in, by their kind.
        conflicts: actions that met another write on their item.
        throttled: requests that were throttled, by whose limit it was.
        oldest_lag: milliseconds from the creation of the oldest applied record to its commit; `None` if none was.
    """

    applied: list[Posting] = field(default_factory=list)
    duplicates: list[Posting] = field(default_factory=list)
    refused: list[tuple[Posting, str]] = field(default_factory=list)
    unsettled: list[Posting] = field(default_factory=list)
    differing: list[Posting] = field(default_factory=list)
    writes: Counter[type[Write]] = field(default_factory=Counter)
    conflicts: int = 0
    throttled: Counter[Throttle] = field(default_factory=Counter)
    oldest_lag: int | None = None


@dataclass(slots=True, eq=False)
class _Work:
    """What is left to do for one row.

    Attributes:
        groups: the postings, in groups that are written together: all at first, and apart once DynamoDB refuses them.
        item: the row as it was last seen.
        pages: what the last look at pages found.
        not_before: when it may go on, by the clock.
        pauses, changes, looks: how often it has paused, found the row changed, and looked for pages in vain.
    """

    row: Row
    groups: deque[list[Posting]]
    item: Mapping[str, Any] = field(default_factory=dict)
    pages: dict[Aggregate, Sequence[Page]] = field(default_factory=dict)
    not_before: float = 0.0
    pauses: int = 0
    changes: int = 0
    looks: int = 0

    def settle(self, postings: Iterable[Posting]) -> None:
        settled = set(postings)
        self.groups[0] = [posting for posting in self.groups[0] if posting not in settled]


@dataclass(slots=True)
class Committer:
    """Writes rows and their pages with one client, a bounded number of requests at once.

    Attributes:
        client: its own retries are off, so that every pause and every deadline is kept here.
        plan: what decides the next write; a backfill has one of its own.
        clock, sleep, now: monotonic seconds, a pause in seconds, and the time of day in epoch seconds.
    """

    client: "DynamoDBClient"
    ledger_table: str
    retention_days: int
    executor: Executor
    max_in_flight: int = MAX_IN_FLIGHT
    plan: Plan = next_step
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
    new_generation: Callable[[], str] = lambda: secrets.token_urlsafe(4)

    def commit(self, postings: Iterable[Posting], deadline: Deadline) -> Outcome:
        """Commits all postings, or as many as time allows; no receipt may be among them twice.

        Raises:
            CommitError: nothing can work before an operator acts. Writes in flight end as they may; what they commit,
                the next delivery of the batch finds.
        """
        outcome = Outcome()
        by_row: dict[Row, list[Posting]] = {}
        for posting in postings:
            by_row.setdefault(posting.aggregate.row, []).append(posting)
        ready = deque(_Work(row, deque([mine])) for row, mine in by_row.items())
        self._read_rows(ready, deadline)
        paused: list[_Work] = []
        in_flight: dict[Future[Any], tuple[_Work, Write | Look]] = {}
        try:
            while ready or paused or in_flight:
                if deadline.sending_time() > 0:
                    self._send_what_is_ready(ready, paused, in_flight, deadline, outcome)
                elif not in_flight:
                    break
                for work, step, future in self._answers(paused, in_flight, deadline):
                    self._learn(work, step, future, outcome)
                    paused.append(work)
                if in_flight and deadline.waiting_time() <= 0:
                    break
        finally:
            for future in in_flight:  # none that still waits for a thread may start when the invocation is over
                future.cancel()
        for work in (*ready, *paused, *(work for work, _ in in_flight.values())):
            outcome.unsettled.extend(posting for group in work.groups for posting in group)
        return outcome

    # --- Reading before writing -----------------------------------------------------------------------------------

    def _read_rows(self, works: Iterable[_Work], deadline: Deadline) -> None:
        """Tells what each row holds, for a tenth of a write's price: duplicates are settled, and failed writes spared.

        Eventually consistent, and nothing rests on it: a row that could not be read is taken as not there, and the
        write's condition tells.
        """
        by_table: dict[str, list[_Work]] = {}
        for work in works:
            by_table.setdefault(work.row.table, []).append(work)
        chunks = [
            (table, found[at : at + _MAX_KEYS_READ])
            for table, found in by_table.items()
            for at in range(0, len(found), _MAX_KEYS_READ)
        ]
        if deadline.sending_time() <= 0:
            return
        pending = {self.executor.submit(self._read_chunk, table, chunk) for table, chunk in chunks}
        while pending and (left := deadline.sending_time()) > 0:
            done, pending = wait(pending, timeout=left, return_when=FIRST_COMPLETED)
            for future in done:
                with suppress(BotoCoreError, ClientError):
                    for work, item in future.result():
                        work.item = item
        for future in pending:
            future.cancel()

    def _read_chunk(self, table: str, works: Sequence[_Work]) -> list[tuple[_Work, Mapping[str, Any]]]:
        keys: Any = [work.row.key() for work in works]
        items = self.client.batch_get_item(RequestItems={table: {"Keys": keys}})["Responses"].get(table, [])
        by_group = {work.row.group: work for work in works}
        return [(by_group[works[0].row.group_of(item)], item) for item in items]

    # --- Writing ----------------------------------------------------------------------------------------------------

    def _send_what_is_ready(
        self,
        ready: deque[_Work],
        paused: list[_Work],
        in_flight: dict[Future[Any], tuple[_Work, Write | Look]],
        deadline: Deadline,
        outcome: Outcome,
    ) -> None:
        """Fills the free places with rows, those whose pause is over among them."""
        now = self.clock()
        ready.extend(work for work in paused if work.not_before <= now)
        paused[:] = [work for work in paused if work.not_before > now]
        while ready and len(in_flight) < self.max_in_flight and deadline.sending_time() > 0:
            work = ready.popleft()
            then = self._next(work, outcome)
            if then is not None:
                in_flight[self.executor.submit(self._send, then)] = work, then
            elif work.groups:
                paused.append(work)

    def _next(self, work: _Work, outcome: Outcome) -> Write | Look | None:
        """The row's next request; `None` if it has to pause, or all of it is settled."""
        while work.groups:
            group = work.groups[0]
            step = self.plan(work.row, work.item, group, work.pages, self.new_generation)
            outcome.duplicates.extend(step.duplicates)
            outcome.differing.extend(step.differing)
            work.settle(step.duplicates)
            if step.then is not None:
                return step.then
            if step.unseen and work.looks < _MOST_LOOKS:
                work.looks += 1
                work.pages.clear()
                self._pause(work, _LOOK_PAUSE)
                return None
            outcome.refused.extend((posting, EXPIRED) for posting in step.unseen)
            work.settle(step.unseen)
            work.looks = 0
            if not work.groups[0]:
                work.groups.popleft()
        return None

    def _send(self, then: Write | Look) -> Any:
        if isinstance(then, Add | Start):
            return self.client.update_item(**then.request())
        if isinstance(then, Look):
            found: list[Page] = []
            for answer in self.client.get_paginator("query").paginate(**then.request(self.ledger_table)):
                found += map(page_of, answer["Items"])
                if then.is_over(found):
                    break
            return found
        actions: Any = then.request(self.ledger_table, expiry(self.now(), self.retention_days))
        return self.client.transact_write_items(TransactItems=actions)

    def _answers(
        self,
        paused: Sequence[_Work],
        in_flight: dict[Future[Any], tuple[_Work, Write | Look]],
        deadline: Deadline,
    ) -> list[tuple[_Work, Write | Look, Future[Any]]]:
        """Waits for the next answer, the end of the next pause or the end of time; returns the answers there are."""
        now = self.clock()
        pause = min((max(0.0, work.not_before - now) for work in paused), default=None)
        if not in_flight:
            if pause:
                self.sleep(max(0.0, min(pause, deadline.sending_time())))
            return []
        left = max(0.0, deadline.waiting_time())
        full = len(in_flight) >= self.max_in_flight
        done, _ = wait(
            in_flight, timeout=left if pause is None or full else min(pause, left), return_when=FIRST_COMPLETED
        )
        return [(*in_flight.pop(future), future) for future in done]

    def _learn(self, work: _Work, then: Write | Look, future: Future[Any], outcome: Outcome) -> None:
        error = future.exception()
        if error is None:
            self._succeeded(work, then, future.result(), outcome)
            return
        if not isinstance(error, Exception):
            raise error
        failure = failure_of(error)
        outcome.conflicts += failure.conflicts
        if failure.kind is Kind.ROW_CHANGED:
            work.item = failure.item or {}
            work.pages.clear()
            work.changes += 1
            if work.changes % _CHANGES_WITHOUT_PAUSE == 0:
                self._pause(work, _CONFLICT_PAUSE)
        elif failure.kind is Kind.PAGE_CHANGED and isinstance(then, Archive):
            self._refuse(work, RESTORED, outcome)
        elif failure.kind is Kind.REFUSED:
            self._refuse(work, failure.message, outcome)
        else:
            work.pages.clear()
            if failure.kind is Kind.THROTTLED:
                outcome.throttled[failure.throttle] += 1
            self._pause(work, _THROTTLED_PAUSE if failure.kind in _SLOW else _CONFLICT_PAUSE)

    def _succeeded(self, work: _Work, then: Write | Look, answer: Any, outcome: Outcome) -> None:
        if isinstance(then, Look):
            work.pages[then.aggregate] = answer
            return
        work.pauses = work.changes = work.looks = 0
        outcome.writes[type(then)] += 1
        outcome.applied.extend(then.postings)
        work.settle(then.postings)
        if then.postings:
            lag = round((self.now() - min(posting.created_at for posting in then.postings)) * 1000)
            outcome.oldest_lag = max(lag, outcome.oldest_lag or 0)
        if isinstance(then, Late):
            work.pages.pop(then.aggregate)

    def _refuse(self, work: _Work, reason: str, outcome: Outcome) -> None:
        """What is refused together is sent again per aggregation, then per receipt, to find out whose fault it is."""
        group = work.groups.popleft()
        parts: dict[Aggregate, list[Posting]] = {}
        for posting in group:
            parts.setdefault(posting.aggregate, []).append(posting)
        if len(group) == 1:
            outcome.refused.append((group[0], reason))
        elif len(parts) > 1:
            work.groups.extendleft(parts.values())
        else:
            work.groups.extendleft([posting] for posting in reversed(group))

    def _pause(self, work: _Work, pause: tuple[float, float]) -> None:
        first, longest = pause
        seconds = min(longest, first * 2.0 ** min(work.pauses, 16))
        work.not_before = self.clock() + seconds * (0.5 + self.jitter() / 2)
        work.pauses += 1


_SLOW = (Kind.THROTTLED, Kind.NO_ANSWER)

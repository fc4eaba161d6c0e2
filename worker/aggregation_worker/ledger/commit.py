"""Commits transactions: side by side, through duplicates, conflicts, throttling and lost answers, until the deadline.

`settlement` says what an error means; this module sends, waits and sends again. It does not raise where another attempt
can succeed: what is not settled when time is up is reported as unsettled, and its records are delivered again.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.ledger.receipts import AGGREGATE_KEY, PAGE_KEY, Posting, Row, expiry
from aggregation_worker.ledger.redelivery import FEWEST_TRANSACTIONS, PageKey, without_known
from aggregation_worker.ledger.settlement import Pause, settle
from aggregation_worker.ledger.transactions import MAX_ACTIONS, Transaction, halved, pack, transact_items

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# Requests in flight at once. Botocore's client is safe to share between threads.
MAX_IN_FLIGHT = 8

# By how many actions a transaction may be larger after a batch without conflicts.
_MORE_ACTIONS = 4

# "BatchGetItem", Amazon DynamoDB API reference.
_MAX_KEYS_READ = 100

# Seconds: the first pause of each kind, and the longest. Jittered between half and the whole; doubled every time.
_PAUSES = {Pause.NONE: (0.0, 0.0), Pause.CONFLICT: (0.010, 0.500), Pause.THROTTLED: (0.050, 2.000)}


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
    """What became of every posting of a batch: each stands in exactly one of the lists.

    Attributes:
        applied: receipt and contribution were committed now.
        duplicates: the receipt was there already; nothing was added.
        refused: DynamoDB will never accept it, with the reason.
        unsettled: not known to be in; time was up.
        transactions: transactions committed.
        conflicts: actions that were cancelled by a conflict.
        oldest_lag: milliseconds from the creation of the oldest applied record to its commit; `None` if none was.
    """

    applied: list[Posting] = field(default_factory=list)
    duplicates: list[Posting] = field(default_factory=list)
    refused: list[tuple[Posting, str]] = field(default_factory=list)
    unsettled: list[Posting] = field(default_factory=list)
    transactions: int = 0
    conflicts: int = 0
    oldest_lag: int | None = None


@dataclass(slots=True, eq=False)
class _Attempt:
    """A transaction to be sent: with which token, not before when, and after how many pauses."""

    transaction: Transaction
    token: str = field(default_factory=lambda: str(uuid4()))
    not_before: float = 0.0
    pauses: int = 0

    def rows(self) -> set[Row]:
        return {change.row for change in self.transaction}

    def postings(self) -> list[Posting]:
        return [posting for change in self.transaction for posting in change.postings]


@dataclass(slots=True)
class Committer:
    """Sends transactions with one client, a bounded number of them at once.

    DynamoDB charges a transaction that meets a conflict in one item for all of them, so transactions are as large as it
    takes only while there are no conflicts: after a batch with conflicts they have half as many actions, after one
    without a few more. Smaller ones cost no more units, but more requests.

    Attributes:
        client: its own retries are off, so that every pause and every deadline is kept here.
        actions: a transaction's actions, from it, the ledger's name and when its pages expire.
        look_first_from: a batch of so many transactions is looked for in the ledger before it is sent (`redelivery`).
        clock, sleep, now: monotonic seconds, a pause in seconds, and the time of day in epoch seconds.
    """

    client: "DynamoDBClient"
    ledger_table: str
    retention_days: int
    executor: Executor
    max_in_flight: int = MAX_IN_FLIGHT
    actions: "Callable[[Transaction, str, int], list[TransactWriteItemTypeDef]]" = transact_items
    look_first_from: int = FEWEST_TRANSACTIONS
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time
    jitter: Callable[[], float] = random.random
    _most_actions: int = field(default=MAX_ACTIONS, init=False)

    def commit(self, transactions: Sequence[Transaction], deadline: Deadline) -> Outcome:
        """Commits all transactions, or as many as time allows.

        Raises:
            CommitError: nothing can work before an operator acts. Transactions in flight end as they may; what they
                commit, the next delivery of the batch finds in the ledger.
        """
        outcome = Outcome()
        if len(transactions) >= self.look_first_from:
            transactions, outcome.duplicates = without_known(transactions, lambda keys: self._read(keys, deadline))
        if self._most_actions < MAX_ACTIONS:
            transactions = pack(chain.from_iterable(transactions), self._most_actions)
        # One for the whole call: a request sent again with its token must be the same request.
        expires_at = expiry(self.now(), self.retention_days)
        waiting = deque(_Attempt(transaction) for transaction in transactions)
        in_flight: dict[Future[None], _Attempt] = {}
        try:
            while waiting or in_flight:
                if deadline.sending_time() > 0:
                    self._send_what_is_ready(waiting, in_flight, expires_at, deadline)
                elif not in_flight:
                    break
                for attempt, error in self._answers(waiting, in_flight, deadline):
                    self._settle(attempt, error, waiting, outcome)
                if in_flight and deadline.waiting_time() <= 0:
                    break
        finally:
            for future in in_flight:  # none that still waits for a thread may start when the invocation is over
                future.cancel()
            self._adapt(outcome.conflicts)
        for attempt in (*waiting, *in_flight.values()):
            outcome.unsettled.extend(attempt.postings())
        return outcome

    def _adapt(self, conflicts: int) -> None:
        """How large transactions may be in the next batch."""
        if conflicts:
            self._most_actions = halved(self._most_actions)
        else:
            self._most_actions = min(MAX_ACTIONS, self._most_actions + _MORE_ACTIONS)

    def _read(self, keys: Sequence[PageKey], deadline: Deadline) -> dict[PageKey, Collection[str]]:
        """The attribute names of ledger pages; what cannot be read in time is left out, for the write will tell."""
        if deadline.sending_time() <= 0:
            return {}
        chunks = [keys[at : at + _MAX_KEYS_READ] for at in range(0, len(keys), _MAX_KEYS_READ)]
        pages: dict[PageKey, Collection[str]] = {}
        pending = {self.executor.submit(self._read_chunk, chunk) for chunk in chunks}
        while pending and (left := deadline.sending_time()) > 0:
            done, pending = wait(pending, timeout=left, return_when=FIRST_COMPLETED)
            for future in done:
                with suppress(BotoCoreError, ClientError):
                    pages |= future.result()
        for future in pending:
            future.cancel()
        return pages

    def _read_chunk(self, keys: Sequence[PageKey]) -> dict[PageKey, Collection[str]]:
        wanted = [{AGGREGATE_KEY: {"S": aggregate}, PAGE_KEY: {"S": page}} for aggregate, page in keys]
        answer = self.client.batch_get_item(RequestItems={self.ledger_table: {"Keys": wanted, "ConsistentRead": True}})
        found = answer["Responses"].get(self.ledger_table, [])
        return {(item[AGGREGATE_KEY]["S"], item[PAGE_KEY]["S"]): item.keys() for item in found}

    def _send_what_is_ready(
        self,
        waiting: deque[_Attempt],
        in_flight: dict[Future[None], _Attempt],
        expires_at: int,
        deadline: Deadline,
    ) -> None:
        """Fills the free places with attempts whose pause is over, never two that change the same row."""
        busy = {row for attempt in in_flight.values() for row in attempt.rows()}
        now = self.clock()
        kept: list[_Attempt] = []
        while waiting and len(in_flight) < self.max_in_flight and deadline.sending_time() > 0:
            attempt = waiting.popleft()
            rows = attempt.rows()
            if attempt.not_before <= now and busy.isdisjoint(rows):
                in_flight[self.executor.submit(self._send, attempt, expires_at)] = attempt
            else:
                kept.append(attempt)
            busy |= rows  # one that waits keeps its rows from those behind it, so that none is overtaken for ever
        waiting.extendleft(reversed(kept))

    def _send(self, attempt: _Attempt, expires_at: int) -> None:
        items = self.actions(attempt.transaction, self.ledger_table, expires_at)
        self.client.transact_write_items(TransactItems=items, ClientRequestToken=attempt.token)

    def _answers(
        self, waiting: deque[_Attempt], in_flight: dict[Future[None], _Attempt], deadline: Deadline
    ) -> list[tuple[_Attempt, BaseException | None]]:
        """Waits for the next answer, the end of the next pause or the end of time; returns the answers there are."""
        now = self.clock()
        pause = min((attempt.not_before - now for attempt in waiting if attempt.not_before > now), default=None)
        if not in_flight:
            self.sleep(max(0.0, min(pause or 0.0, deadline.sending_time())))
            return []
        left = max(0.0, deadline.waiting_time())
        full = len(in_flight) >= self.max_in_flight
        timeout = left if pause is None or full else min(pause, left)
        done, _ = wait(in_flight, timeout=timeout, return_when=FIRST_COMPLETED)
        return [(in_flight.pop(future), future.exception()) for future in done]

    def _settle(
        self, attempt: _Attempt, error: BaseException | None, waiting: deque[_Attempt], outcome: Outcome
    ) -> None:
        if error is None:
            committed = attempt.postings()
            lag = round((self.now() - min(posting.created_at for posting in committed)) * 1000)
            outcome.applied.extend(committed)
            outcome.transactions += 1
            outcome.oldest_lag = max(lag, outcome.oldest_lag or 0)
            return
        if not isinstance(error, Exception):
            raise error
        settlement = settle(attempt.transaction, error)
        outcome.duplicates.extend(settlement.duplicates)
        outcome.refused.extend(settlement.refused)
        outcome.conflicts += settlement.conflicts
        for transaction, pause in settlement.repost:
            again = _Attempt(transaction, pauses=attempt.pauses)
            if settlement.same_request:
                again.token = attempt.token
            if pause is not Pause.NONE:
                again.not_before = self.clock() + self._seconds(pause, attempt.pauses)
                again.pauses += 1
            waiting.append(again)

    def _seconds(self, pause: Pause, pauses: int) -> float:
        first, longest = _PAUSES[pause]
        return min(longest, first * 2.0 ** min(pauses, 16)) * (0.5 + self.jitter() / 2)

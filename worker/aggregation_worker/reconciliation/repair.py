"""Corrects one total: adds what it lacks, once, while everything keeps running.

A correction is one transaction: a page of its own in the ledger, under the condition that it is not there, and
an ADD to the row, under the condition that the row still is what was seen just before (`ledger.corrections`). Source
rows need no condition: a difference does not depend on what is being written to the source (`observation`), since a
later record changes total and expectation alike, whether it was applied before the correction or comes after it. The
difference must have been seen from a cut at the stream's very beginning, so that every record that can still come is a
later one.

**Corrections are numbered, not named by time or run.** Two repairs that saw the same corrections write the same page,
and only one of them gets through; with names of their own both could, if a record happened to bring the total back to
what it was. A repair that is killed has made its correction or has not; the next one sees which. An answer that was
lost is found by the repair's own name on the page.
"""

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING
from uuid import uuid4

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.numbers import EXACT, Amounts, canonical_text, fits, sum_of
from aggregation_worker.aws_errors import (
    ACTION_CONDITION_FAILED,
    ACTION_CONFLICT,
    ACTION_REFUSED,
    ACTION_THROTTLED,
    NO_ANSWER,
    cancellation_reasons,
    code_of,
    is_transient,
)
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.corrections import Correction, is_of_run
from aggregation_worker.ledger.reading import ChangesTooFastError
from aggregation_worker.ledger.receipts import Aggregate, row_receipts
from aggregation_worker.reconciliation.observation import Observation, observe

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# Attempts at one correction: each takes about 20 ms, and fails when the total changes in between. With their pauses
# they take about a minute.
MOST_ATTEMPTS = 60
# Seconds: the first pause between attempts, and the longest; jittered between half and the whole.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0

# Another attempt can do better: the observation was overtaken, or DynamoDB is busy.
_AGAIN = ACTION_THROTTLED | {"None", ACTION_CONDITION_FAILED, ACTION_CONFLICT}
_ZERO = Decimal(0)


class CorrectionRefusedError(WorkerError):
    """DynamoDB will not take the correction; the message says why."""


class CorrectionOutcome(Enum):
    """What became of a correction."""

    DONE = "done"
    OVERTAKEN = "overtaken"  # something other than later records has moved the total since: observe it again
    CHANGES_TOO_FAST = "changes too fast"  # the total changed before every attempt


@dataclass(slots=True)
class Repairer:
    """Makes corrections in the name of one run.

    Attributes:
        run: the run's name, which is in every receipt.
        now: the time of day, which the receipts show.
    """

    client: "DynamoDBClient"
    ledger_table: str
    run: str = field(default_factory=lambda: uuid4().hex[:12])
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def correct(
        self,
        aggregate: Aggregate,
        seen: Observation,
        difference: Amounts,
        new_from: str,
        is_later: Callable[[str], bool],
    ) -> CorrectionOutcome:
        """Takes a difference out of a total.

        Before every attempt the aggregate is observed once more: since `seen`, the total must have changed by exactly
        the receipts of later records that are new, so that the difference still is what it was. The first time all is
        read; then only the pages on which new receipts are expected, which is quick, and a receipt on another page
        moves the total without explanation.

        Args:
            seen: the observation that showed the difference.
            difference: what the total has too much.
            new_from: the first position at which new receipts are expected.
            is_later: whether a receipt that is new, by its name, belongs to a later record for certain.

        Raises:
            CorrectionRefusedError: DynamoDB never takes it: the sum does not fit a number, or the total is not one.
            ClientError, BotoCoreError: nothing can be written: no permission, no table.
        """
        added = tuple(map(EXACT.minus, difference))
        if not all(map(fits, added)):
            raise CorrectionRefusedError("the correction does not fit a DynamoDB number (38 digits)")
        correction = Correction(
            aggregate, 1 + max((number for number, _ in seen.stored.corrections), default=0), self.run, added
        )
        known = seen
        without_receipt: Amounts | None = None
        for attempt in range(MOST_ATTEMPTS):
            if attempt:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt - 1, 16))
                self.sleep(pause * (0.5 + self.jitter() / 2))
            first = "" if without_receipt is None else new_from
            try:
                fresh = observe(self.client, self.ledger_table, aggregate, first)
            except ChangesTooFastError:
                continue
            new = fresh.stored.corrections.keys() - seen.stored.corrections.keys()
            if new:
                own = any(is_of_run(name, self.run) for _, name in new)
                return CorrectionOutcome.DONE if own else CorrectionOutcome.OVERTAKEN
            if not _explained(aggregate, known, fresh, is_later):
                return CorrectionOutcome.OVERTAKEN
            if without_receipt is None:
                known, without_receipt = fresh, _without_receipt(fresh)
            actions = correction.request(
                self.ledger_table, fresh.stored, without_receipt, self.now(), secrets.token_urlsafe(4)
            )
            if self._send(actions):
                return CorrectionOutcome.DONE
        return CorrectionOutcome.CHANGES_TOO_FAST

    def _send(self, transaction: "list[TransactWriteItemTypeDef]") -> bool:
        """Sends the transaction; `False` if another attempt is due, after which the ledger tells what became of it."""
        try:
            self.client.transact_write_items(TransactItems=transaction, ClientRequestToken=str(uuid4()))
        except NO_ANSWER:
            return False
        except ClientError as error:
            code, reasons = code_of(error), cancellation_reasons(error)
            codes = {reason.get("Code") or "None" for reason in reasons}
            if is_transient(error) or code == "TransactionConflictException" or (codes and codes <= _AGAIN):
                return False
            if code == "ValidationException" or codes & ACTION_REFUSED:
                messages = [reason["Message"] for reason in reasons if reason.get("Code") in ACTION_REFUSED]
                raise CorrectionRefusedError("; ".join(messages) or error.response["Error"]["Message"]) from error
            raise
        return True


def _without_receipt(whole: Observation) -> Amounts:
    """What a total holds without a receipt; it stays that while all that happens to it is explained."""
    total, stored = whole.total or (), whole.stored
    starting_value = () if stored.starting_value is None else (stored.starting_value[1],)
    receipts = (*(amounts for amounts, _ in stored.receipts.values()), *stored.corrections.values(), *starting_value)
    return tuple(map(EXACT.subtract, total, sum_of(receipts, (_ZERO,) * len(total))))


def _explained(aggregate: Aggregate, was: Observation, now: Observation, is_later: Callable[[str], bool]) -> bool:
    """Whether the receipts of later records account for all that has happened to the total since it was seen."""
    name, first = aggregate.aggregation.name, max(was.first, now.first)
    generation = row_receipts(was.stored.item, name).generation
    if generation not in ("", row_receipts(now.stored.item, name).generation):
        return False  # the row was deleted and has begun anew
    if was.total is None or now.total is None or was.kept is None:
        return False
    before, after = was.receipts_from(first), now.receipts_from(first)
    new = after.keys() - before.keys()
    if not before.keys() <= after.keys() or not all(map(is_later, new)):
        return False
    if sum_of((after[name][0] for name in new), was.total) != now.total:
        return False
    return sum_of((after[name][1] for name in new if after[name][1]), was.kept) == now.kept


def described(correction: Amounts) -> str:
    """A correction in words: `+5`, `-3, +0.5`."""
    return ", ".join(("" if amount < _ZERO else "+") + canonical_text(amount) for amount in correction)

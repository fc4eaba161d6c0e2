"""Corrects one total: adds what it lacks, once, while everything keeps running.

A correction is one transaction: a receipt page of its own in the ledger, under the condition that it is not there, and
an ADD to the row, under the condition that the measures still are what was seen just before. Source rows need no
condition: a difference does not depend on what is being written to the source (`observation`), since a later record
changes total and expectation alike, whether it was applied before the correction or comes after it. The difference must
have been seen from a cut at the stream's very beginning, so that every record that can still come is a later one.

**Corrections are numbered, not named by time or run.** Two repairs that saw the same corrections write the same page,
and only one of them gets through; with names of their own both could, if a record happened to bring the total back to
what it was. A repair that is killed has made its correction or has not; the next one sees which. An answer that was
lost is found by the repair's own name on the page.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING
from uuid import uuid4

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.numbers import EXACT, Amounts, amount_text, canonical_text, fits, sum_of
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
from aggregation_worker.ledger.corrections import correction_number, correction_page, correction_put, is_of_run
from aggregation_worker.ledger.pages import Pages, ReceiptKey, read_pages
from aggregation_worker.ledger.receipts import Aggregate
from aggregation_worker.reconciliation.observation import ChangesTooFastError, Observation, Stored, observe

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
# Sorts before every page of a stream.
_FIRST_OF_ALL = "0"


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
        is_later: Callable[[ReceiptKey], bool],
    ) -> CorrectionOutcome:
        """Takes a difference out of a total.

        Before every attempt the aggregate is observed once more: since `seen`, the total must have changed by exactly
        the receipts of later records that are new, so that the difference still is what it was. Only the pages are read
        on which new receipts are expected, which is quick; one on another page moves the total without explanation.

        Args:
            seen: the observation that showed the difference.
            difference: what the total has too much.
            new_from: the first page on which new receipts are expected.
            is_later: whether a receipt that is new belongs to a later record for certain.

        Raises:
            CorrectionRefusedError: DynamoDB never takes it: the sum does not fit a number, or the total is not one.
            ClientError, BotoCoreError: nothing can be written: no permission, no table.
        """
        correction = tuple(map(EXACT.minus, difference))
        if not all(map(fits, correction)):
            raise CorrectionRefusedError("the correction does not fit a DynamoDB number (38 digits)")
        page = correction_page(1 + max((correction_number(page) for page, _ in seen.pages.corrections), default=0))
        older = self._sum_before(aggregate, new_from, correction)
        known = seen.pages.after(new_from)
        for attempt in range(MOST_ATTEMPTS):
            if attempt:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt - 1, 16))
                self.sleep(pause * (0.5 + self.jitter() / 2))
            try:
                fresh = observe(self.client, self.ledger_table, aggregate, new_from)
            except ChangesTooFastError:
                continue
            new = fresh.pages.corrections.keys() - known.corrections.keys()
            if new:
                own = any(is_of_run(name, self.run) for _, name in new)
                return CorrectionOutcome.DONE if own else CorrectionOutcome.OVERTAKEN
            if fresh.stored.amounts is None or not _explained(seen.stored, known, fresh, is_later):
                return CorrectionOutcome.OVERTAKEN
            found = _without_receipt(fresh.stored.amounts, fresh.pages, older)
            put = correction_put(self.ledger_table, aggregate.name, page, self.run, self.now(), correction, found)
            if self._send([put, _add(aggregate, correction, fresh.stored.amounts, fresh.stored.absent)]):
                return CorrectionOutcome.DONE
        return CorrectionOutcome.CHANGES_TOO_FAST

    def _sum_before(self, aggregate: Aggregate, page: str, correction: Amounts) -> Amounts:
        """The receipts on the pages before this one."""
        pages = read_pages(self.client, self.ledger_table, aggregate.name, _FIRST_OF_ALL, page)
        return sum_of(pages.receipts.values(), (_ZERO,) * len(correction))

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


def _without_receipt(total: Amounts, pages: Pages, older: Amounts) -> Amounts:
    receipts = sum_of((*pages.receipts.values(), *pages.corrections.values()), older)
    return tuple(map(EXACT.subtract, total, receipts))


def _add(
    aggregate: Aggregate, correction: Amounts, stored: Amounts, absent: frozenset[str]
) -> "TransactWriteItemTypeDef":
    """Adds to all measures, also zero to those that are right, under the condition that none has changed."""
    names: dict[str, str] = {}
    values = {}
    conditions = []
    measures = aggregate.aggregation.measures
    for number, (measure, amount, was) in enumerate(zip(measures, correction, stored, strict=True)):
        names[f"#{number}"] = measure.name
        values[f":{number}"] = {"N": amount_text(amount)}
        if measure.name in absent:
            conditions.append(f"attribute_not_exists(#{number})")
        else:
            conditions.append(f"#{number} = :was{number}")
            values[f":was{number}"] = {"N": amount_text(was)}
    return {
        "Update": {
            "TableName": aggregate.row.table,
            "Key": aggregate.row.key(),
            "UpdateExpression": "ADD " + ", ".join(f"#{number} :{number}" for number in range(len(measures))),
            "ConditionExpression": " AND ".join(conditions),
            "ExpressionAttributeNames": names,
            "ExpressionAttributeValues": values,
        }
    }


def _explained(was: Stored, known: Pages, fresh: Observation, is_later: Callable[[ReceiptKey], bool]) -> bool:
    """Whether the receipts of later records account for all that has happened to the total since it was seen."""
    if was.amounts is None or fresh.stored.amounts is None:
        return False
    if not known.receipts.keys() <= fresh.pages.receipts.keys():
        return False
    new = fresh.pages.receipts.keys() - known.receipts.keys()
    if not all(map(is_later, new)):
        return False
    return sum_of((fresh.pages.receipts[key] for key in new), was.amounts) == fresh.stored.amounts


def described(correction: Amounts) -> str:
    """A correction in words: `+5`, `-3, +0.5`."""
    return ", ".join(("" if amount < _ZERO else "+") + canonical_text(amount) for amount in correction)

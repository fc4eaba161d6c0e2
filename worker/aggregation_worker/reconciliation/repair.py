"""Corrects one total: adds what it lacks, once, while everything goes on.

A correction is one transaction: a receipt page of its own in the ledger, under the condition that it is not there, and
an ADD to the row, under the condition that the measures still are what was seen just before. Source rows need no
condition: a difference does not depend on what is being written to the source (`look`), since a later record changes
total and expectation alike, whether it was applied before the correction or comes after it. The difference must have
been seen from a cut at the stream's very beginning, so that every record that can still come is a later one.

**Corrections are numbered, not named by time or run.** Two repairs that saw the same corrections write the same page,
and only one of them gets through; with names of their own both could, if a record happened to bring the total back to
what it was. A repair that is killed has made its correction or has not; the next one sees which. An answer that was
lost is found by the repair's own name on the page.

Two receipts can stand on a correction's page: what was added and, if the total held something that no receipt proves
(somebody changed it, or its receipts have expired), how much that was (`FOUND`). So the receipts of a total that has
been corrected add up to it, whichever of the two was wrong.
"""

import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import botocore.exceptions
from botocore.exceptions import ClientError

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, contributions
from aggregation_worker.aggregations.numbers import EXACT, Amounts, amount_text, canonical_text, fits, sum_of
from aggregation_worker.ledger.pages import Pages, Place, read_pages
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    PAGE_KEY,
    REPAIR_PAGE_PREFIX,
    Aggregate,
    postings,
    receipt_value,
)
from aggregation_worker.reconciliation.look import Look, RestlessAggregateError, Stored, look_at
from aggregation_worker.streams.records import (
    MalformedRecordError,
    StreamRecord,
    StreamViewTypeError,
    UnexpectedEventError,
    read_record,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# Attempts at one correction: each takes about 20 ms, and fails when the total changes in between. With their pauses
# they take about a minute.
MOST_ATTEMPTS = 60
# Seconds: the first pause between attempts, and the longest; jittered between half and the whole.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 1.0

_CANCELLED = "TransactionCanceledException"
# Another attempt can do better: the look was overtaken, or DynamoDB is busy.
_AGAIN = frozenset(
    (
        "None",
        "ConditionalCheckFailed",
        "TransactionConflict",
        "ProvisionedThroughputExceeded",
        "ThrottlingError",
        "RequestLimitExceeded",
        "InternalServerError",
        "TransactionConflictException",
        "TransactionInProgressException",
        "ThrottlingException",
        "Throttling",
        "ProvisionedThroughputExceededException",
        "InternalFailure",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    )
)
_REFUSED = frozenset(("ValidationError", "ItemCollectionSizeLimitExceeded", "ValidationException"))
_NO_ANSWER = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)
_SERVER_ERROR = 500  # HTTP status
_ZERO = Decimal(0)

# The end of a receipt's name that says what a correction found in a total without a receipt.
FOUND = "found"
# Sorts before every page of a stream.
_FIRST_OF_ALL = "0"


class CorrectionRefusedError(Exception):
    """DynamoDB will not take the correction; the message says why."""


class Fate(Enum):
    """What became of a correction."""

    DONE = "done"
    OVERTAKEN = "overtaken"  # something other than later records has moved the total since the look: look again
    RESTLESS = "restless"  # the total changed before every attempt


def correction_page(number: int) -> str:
    """The ledger's page of an aggregate's first, second, … correction."""
    return f"{REPAIR_PAGE_PREFIX}{number:06d}"


@dataclass(frozen=True, slots=True)
class _Correction:
    """What is written: what is added to the total, and what was found in it without a receipt."""

    added: Amounts
    found: Amounts


def _without_receipt(total: Amounts, pages: Pages, older: Amounts) -> Amounts:
    receipts = sum_of((*pages.receipts.values(), *pages.corrections.values()), older)
    return tuple(map(EXACT.subtract, total, receipts))


def _number(page: str) -> int:
    text = page.removeprefix(REPAIR_PAGE_PREFIX)
    return int(text) if text.isdecimal() else 0  # a backfill's page


@dataclass(slots=True)
class Repairer:
    """Makes corrections in the name of one run.

    Attributes:
        run: tells runs apart; stands in every receipt.
        now: the time of day, which the receipts show.
    """

    client: "DynamoDBClient"
    ledger_table: str
    run: str = field(default_factory=lambda: uuid4().hex[:12])
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random

    def correct(
        self, aggregate: Aggregate, seen: Look, difference: Amounts, new_from: str, is_later: Callable[[Place], bool]
    ) -> Fate:
        """Takes a difference out of a total.

        Before every attempt the aggregate is looked at once more: since `seen`, the total must have changed by exactly
        the receipts of later records that are new, so that the difference still is what it was. Only the pages are read
        on which new receipts are expected, which is quick; one on another page moves the total without explanation.

        Args:
            seen: the look that showed the difference.
            difference: what the total has too much.
            new_from: the first page on which new receipts are expected.
            is_later: whether a receipt that is new belongs to a later record for certain.

        Raises:
            CorrectionRefusedError: DynamoDB never takes it: the sum does not fit a number, or a measure is none.
            ClientError, BotoCoreError: nothing can be written: no permission, no table.
        """
        correction = tuple(map(EXACT.minus, difference))
        if not all(map(fits, correction)):
            raise CorrectionRefusedError("the correction does not fit a DynamoDB number (38 digits)")
        page = correction_page(1 + max((_number(page) for page, _ in seen.pages.corrections), default=0))
        older = self._sum_before(aggregate, new_from, correction)
        known = seen.pages.behind(new_from)
        for attempt in range(MOST_ATTEMPTS):
            if attempt:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt - 1, 16))
                self.sleep(pause * (0.5 + self.jitter() / 2))
            try:
                fresh = look_at(self.client, self.ledger_table, aggregate, new_from)
            except RestlessAggregateError:
                continue
            new = fresh.pages.corrections.keys() - known.corrections.keys()
            if new:
                return Fate.DONE if any(self._is_own(name) for _, name in new) else Fate.OVERTAKEN
            if fresh.stored.amounts is None or not _explained(seen.stored, known, fresh, is_later):
                return Fate.OVERTAKEN
            found = _without_receipt(fresh.stored.amounts, fresh.pages, older)
            if self._post(aggregate, page, _Correction(correction, found), fresh.stored):
                return Fate.DONE
        return Fate.RESTLESS

    def _is_own(self, name: str) -> bool:
        return name.split("|")[1:2] == [self.run]

    def _sum_before(self, aggregate: Aggregate, page: str, correction: Amounts) -> Amounts:
        """The receipts on the pages before this one."""
        pages = read_pages(self.client, self.ledger_table, aggregate.name, _FIRST_OF_ALL, page)
        return sum_of(pages.receipts.values(), (_ZERO,) * len(correction))

    def _post(self, aggregate: Aggregate, page: str, correction: "_Correction", stored: Stored) -> bool:
        """Sends the transaction; `False` if another attempt is due, after which the ledger tells what became of it."""
        items = self._transaction(aggregate, page, correction, stored)
        try:
            self.client.transact_write_items(TransactItems=items, ClientRequestToken=str(uuid4()))
        except _NO_ANSWER:
            return False
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            reasons = error.response.get("CancellationReasons", []) if code == _CANCELLED else []
            codes = {reason.get("Code") or "None" for reason in reasons} or {code}
            if codes <= _AGAIN or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= _SERVER_ERROR:
                return False
            if codes & _REFUSED:
                messages = [reason["Message"] for reason in reasons if reason.get("Code") in _REFUSED]
                raise CorrectionRefusedError("; ".join(messages) or error.response["Error"]["Message"]) from error
            raise
        return True

    def _transaction(
        self, aggregate: Aggregate, page: str, correction: "_Correction", stored: Stored
    ) -> "list[TransactWriteItemTypeDef]":
        name = f"{self.now().astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}|{self.run}"
        receipts = {name: receipt_value(correction.added)}
        if any(correction.found) and all(map(fits, correction.found)):
            receipts[f"{name}|{FOUND}"] = receipt_value(correction.found)
        return [
            {
                "Put": {
                    "TableName": self.ledger_table,
                    # No expires_at: nothing else proves what was added.
                    "Item": {AGGREGATE_KEY: {"S": aggregate.name}, PAGE_KEY: {"S": page}, **receipts},
                    "ConditionExpression": "attribute_not_exists(#page)",
                    "ExpressionAttributeNames": {"#page": PAGE_KEY},
                }
            },
            _add(aggregate, correction.added, stored),
        ]


def _add(aggregate: Aggregate, correction: Amounts, stored: Stored) -> "TransactWriteItemTypeDef":
    """Adds to all measures, also zero to those that are right, under the condition that none has changed."""
    if stored.amounts is None:
        raise CorrectionRefusedError("a measure of the row is no number")
    names: dict[str, str] = {}
    values = {}
    conditions = []
    measures = aggregate.aggregation.measures
    for number, (measure, amount, was) in enumerate(zip(measures, correction, stored.amounts, strict=True)):
        names[f"#{number}"] = measure.name
        values[f":{number}"] = {"N": amount_text(amount)}
        if measure.name in stored.absent:
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


def _explained(was: Stored, known: Pages, fresh: Look, is_later: Callable[[Place], bool]) -> bool:
    """Whether the receipts of later records account for all that has happened to the total since it was seen."""
    if was.amounts is None or fresh.stored.amounts is None:
        return False
    if not known.receipts.keys() <= fresh.pages.receipts.keys():
        return False
    new = fresh.pages.receipts.keys() - known.receipts.keys()
    if not all(map(is_later, new)):
        return False
    return sum_of((fresh.pages.receipts[place] for place in new), was.amounts) == fresh.stored.amounts


def described(correction: Amounts) -> str:
    """A correction in words: `+5`, `-3, +0.5`."""
    return ", ".join(("" if amount < _ZERO else "+") + canonical_text(amount) for amount in correction)


# --- What stands against a correction ---------------------------------------------------------------------------------


class UnreadableLetterError(Exception):
    """A dead letter's record cannot be read, so nobody knows which totals it could still change."""


def groups_waiting(
    client: "DynamoDBClient", ledger_table: str, definitions: Definitions, records: Iterable[Any]
) -> set[tuple[str, Group]]:
    """The aggregates, by aggregation's name and group, that dead letters' records can still change.

    A record that an aggregation refuses as it is may be counted by a mended worker: it can change every aggregate that
    one of its images belongs to.

    Args:
        records: raw records as Lambda delivers them.

    Raises:
        UnreadableLetterError: it cannot be told which.
    """
    found: set[tuple[str, Group]] = set()
    pages: dict[tuple[str, str], dict[str, Any]] = {}
    for raw in records:
        try:
            record = read_record(raw, definitions.source.table)
            for aggregation in definitions.aggregations:
                changes, refusals = contributions((aggregation,), record)
                if refusals:
                    found |= {(aggregation.name, group) for group in _groups(aggregation, record)}
                for posting in postings([(0, record, changes)]):
                    place = (posting.aggregate.name, posting.page)
                    if place not in pages:
                        key = {AGGREGATE_KEY: {"S": place[0]}, PAGE_KEY: {"S": place[1]}}
                        answer = client.get_item(TableName=ledger_table, Key=key, ConsistentRead=True)
                        pages[place] = answer.get("Item", {})
                    if posting.receipt not in pages[place]:
                        found.add((aggregation.name, posting.aggregate.row.group))
        except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError) as error:
            raise UnreadableLetterError(f"a dead letter holds a record that cannot be read: {error}") from error
    return found


def _groups(aggregation: Aggregation, record: StreamRecord) -> set[Group]:
    groups = set()
    for image in (record.old_image, record.new_image):
        try:
            value = None if image is None else aggregation.value(image)
        except MalformedValueError:
            continue
        if value is not None:
            groups.add(value[0])
    return groups

"""What a transaction that did not go through means for each of its postings.

Pure: `settle` takes the transaction and the error, and says which postings are settled (already in the ledger, or
refused by DynamoDB for good) and what is to be posted again, together with what, and after what kind of pause. An error
under which nothing can work (no permission, no table) is raised as `CommitError`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aws_errors import (
    ACTION_CONDITION_FAILED,
    ACTION_CONFLICT,
    ACTION_REFUSED,
    ACTION_THROTTLED,
    CANCELLED,
    NO_ANSWER,
    cancellation_reasons,
    code_of,
    is_transient,
)
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.receipts import Aggregate, Posting
from aggregation_worker.ledger.transactions import PageChange, RowChange, Transaction, halved, pack, row_changes


class CommitError(WorkerError):
    """Nothing can be committed until an operator acts: missing permission, missing table, wrong key schema."""


class Pause(Enum):
    """What to wait for before posting again."""

    NONE = "none"
    CONFLICT = "conflict"  # another transaction on the same item: milliseconds
    THROTTLED = "throttled"  # capacity, or the service itself: growing


@dataclass(slots=True)
class Settlement:
    """The outcome of one transaction that was not committed.

    Attributes:
        duplicates: postings whose receipts the ledger holds already.
        refused: postings that DynamoDB will never accept, each with the reason.
        repost: transactions to send again, and after which kind of pause.
        same_request: the transaction's outcome is unknown or it was never tried; send exactly it again, with its token.
        conflicts: the actions that were cancelled by a conflict with another transaction.
    """

    duplicates: list[Posting] = field(default_factory=list)
    refused: list[tuple[Posting, str]] = field(default_factory=list)
    repost: list[tuple[Transaction, Pause]] = field(default_factory=list)
    same_request: bool = False
    conflicts: int = 0


_KNOWN = ACTION_THROTTLED | ACTION_REFUSED | {"None", ACTION_CONDITION_FAILED, ACTION_CONFLICT}
# What DynamoDB, and its local version, say of a key that the table's schema does not have.
_WRONG_SCHEMA = (
    "does not match the schema",
    "Type mismatch for key",
    "number of conditions on the keys is invalid",
    "required keys was not given a value",
)


def settle(transaction: Transaction, error: Exception) -> Settlement:
    """What follows from a transaction that raised `error`.

    Raises:
        CommitError: nothing can work before an operator acts.
        Exception: `error` itself, where it is neither an answer of DynamoDB nor a failure to get one.
    """
    if isinstance(error, ClientError):
        code = code_of(error)
        if code == CANCELLED:
            return _cancelled(transaction, error)
        if code == "TransactionConflictException":
            return Settlement(repost=[(transaction, Pause.CONFLICT)], conflicts=1)
        if code == "ValidationException":
            return _refused_whole(transaction, str(error.response["Error"].get("Message", error)))
        if is_transient(error):
            return Settlement(repost=[(transaction, Pause.THROTTLED)], same_request=True)
        raise CommitError(f"DynamoDB refuses every transaction: {error}") from error
    if isinstance(error, NO_ANSWER):
        # The request may have been carried out and only its answer be lost: the same token makes the repeat harmless
        # for ten minutes, and the receipts make it harmless after that.
        return Settlement(repost=[(transaction, Pause.THROTTLED)], same_request=True)
    if isinstance(error, BotoCoreError):
        raise CommitError(f"DynamoDB cannot be called: {error}") from error
    raise error


def _cancelled(transaction: Transaction, error: ClientError) -> Settlement:
    reasons = cancellation_reasons(error)
    actions = sum(len(change.pages) + 1 for change in transaction)
    if len(reasons) != actions:
        raise CommitError(f"a cancelled transaction of {actions} actions came with {len(reasons)} reasons: {error}")
    settlement = Settlement()
    together: list[RowChange] = []
    position = 0
    for change in transaction:
        size = len(change.pages) + 1
        left, pause = _settle_row(change, reasons[position : position + size], settlement)
        position += size
        if pause is Pause.NONE:
            together.extend(left)
        else:  # apart from the others, so that one hot aggregate does not hold up 49 cold ones
            settlement.repost.extend(((single,), pause) for single in left)
    learnt = settlement.duplicates or settlement.refused or settlement.repost
    # Cancelled without a reason that we know: it must not be sent again in a tight loop.
    pause = Pause.NONE if learnt else Pause.THROTTLED
    most_actions = halved(actions) if settlement.conflicts else None
    settlement.repost.extend((again, pause) for again in pack(together, most_actions))
    return settlement


def _settle_row(
    change: RowChange, reasons: Sequence[Mapping[str, Any]], settlement: Settlement
) -> tuple[list[RowChange], Pause]:
    """Settles what can be settled of one row; returns what is left to post, and after which pause."""
    codes = [_code(reason) for reason in reasons]
    conflicts = codes.count(ACTION_CONFLICT)
    settlement.conflicts += conflicts
    pages: list[tuple[Posting, ...]] = []
    for page, code, reason in zip(change.pages, codes, reasons, strict=False):
        if code == ACTION_CONDITION_FAILED:
            pages.append(_without_duplicates(page, reason, settlement))
        elif code in ACTION_REFUSED:
            settlement.refused.extend((posting, _message(reason)) for posting in page.postings)
        else:
            pages.append(page.postings)
    pages = [page for page in pages if page]
    # The row was refused with what is now dropped added in: without it, it may well be accepted.
    dropped = sum(map(len, pages)) < len(change.postings)
    if codes[-1] in ACTION_REFUSED and not dropped:
        by_aggregate = _by_aggregate(pages)
        if len(by_aggregate) > 1:  # find out whose measure it is
            settlement.repost.extend(((single,), Pause.NONE) for pages in by_aggregate for single in row_changes(pages))
        else:
            settlement.refused.extend((posting, _message(reasons[-1])) for page in pages for posting in page)
        return [], Pause.NONE
    if ACTION_THROTTLED.intersection(codes):
        return row_changes(pages), Pause.THROTTLED
    return row_changes(pages), Pause.CONFLICT if conflicts else Pause.NONE


def _code(reason: Mapping[str, Any]) -> str:
    code = reason.get("Code") or "None"
    if code not in _KNOWN:
        raise CommitError(f"DynamoDB cancelled a transaction: {code}: {_message(reason)}")
    if code in ACTION_REFUSED:
        _raise_if_wrong_schema(_message(reason))
    return str(code)


def _message(reason: Mapping[str, Any]) -> str:
    return str(reason.get("Message") or reason.get("Code"))


def _raise_if_wrong_schema(message: str) -> None:
    """A key schema that differs from the definitions refuses every record alike: that is no record's fault."""
    if any(text in message for text in _WRONG_SCHEMA):
        raise CommitError(f"a target or the ledger table has another key than the definitions say: {message}")


def _without_duplicates(page: PageChange, reason: Mapping[str, Any], settlement: Settlement) -> tuple[Posting, ...]:
    """The page's postings whose receipts it does not hold: DynamoDB returned the page as it was (`ALL_OLD`)."""
    held = reason.get("Item")
    if not held:
        raise CommitError("DynamoDB did not return the page that a condition failed on; is the endpoint DynamoDB?")
    duplicates = [posting for posting in page.postings if posting.receipt in held]
    settlement.duplicates.extend(duplicates)
    return tuple(posting for posting in page.postings if posting.receipt not in held)


def _refused_whole(transaction: Transaction, message: str) -> Settlement:
    """A ValidationException of the whole request does not say whose fault it is: halve until it is clear."""
    _raise_if_wrong_schema(message)
    if len(transaction) > 1:
        middle = len(transaction) // 2
        parts = [transaction[:middle], transaction[middle:]]
    else:
        (change,) = transaction
        pages = [page.postings for page in change.pages]
        by_aggregate = _by_aggregate(pages)
        groups = by_aggregate if len(by_aggregate) > 1 else [[page] for page in pages]
        if len(groups) == 1:
            return Settlement(refused=[(posting, message) for posting in change.postings])
        parts = [(single,) for group in groups for single in row_changes(group)]
    return Settlement(repost=[(part, Pause.NONE) for part in parts])


def _by_aggregate(pages: Sequence[tuple[Posting, ...]]) -> list[list[tuple[Posting, ...]]]:
    """The pages of one row, apart for each aggregation that shares it."""
    groups: dict[Aggregate, list[tuple[Posting, ...]]] = {}
    for page in pages:
        groups.setdefault(page[0].aggregate, []).append(page)
    return list(groups.values())

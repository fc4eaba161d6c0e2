"""What an error of a write means: that the row has changed, that another try can do better, or that it is refused.

Pure. An error under which nothing can work (no permission, no table, a wrong key schema) is raised as `CommitError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aws_errors import (
    ACTION_CONDITION_FAILED,
    ACTION_CONFLICT,
    ACTION_REFUSED,
    ACTION_THROTTLED,
    CANCELLED,
    CONDITION_FAILED,
    NO_ANSWER,
    cancellation_reasons,
    code_of,
    is_transient,
)
from aggregation_worker.errors import WorkerError


class CommitError(WorkerError):
    """Nothing can be committed until an operator acts: missing permission, missing table, wrong key schema."""


class Kind(Enum):
    """What kind of failure it is."""

    ROW_CHANGED = "row changed"  # the row is not what the condition asked for; `Failure.item` is what it is
    PAGE_CHANGED = "page changed"  # a page is not what the condition asked for
    CONFLICT = "conflict"  # another write on the same item: milliseconds
    THROTTLED = "throttled"  # capacity, or the service itself
    NO_ANSWER = "no answer"  # the write may be in or not
    REFUSED = "refused"  # DynamoDB will never take it as it is


class Throttle(Enum):
    """Whose limit was exceeded, where AWS says so."""

    KEY = "key"  # a hot key: more than a partition can take
    TABLE = "table"
    ACCOUNT = "account"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a write did not go in.

    Attributes:
        message: DynamoDB's own words, of a refusal.
        item: the row as it is, where it has changed; empty if it is not there.
        conflicts: how many of its actions met another write.
        throttle: whose limit, where it was throttled.
    """

    kind: Kind
    message: str = ""
    item: Mapping[str, Any] | None = None
    conflicts: int = 0
    throttle: Throttle = Throttle.UNKNOWN


_CONFLICT = frozenset(("TransactionConflictException", "ReplicatedWriteConflictException"))
_REFUSED = frozenset(("ValidationException", "ItemCollectionSizeLimitExceededException"))
_KNOWN = ACTION_THROTTLED | ACTION_REFUSED | {"None", ACTION_CONDITION_FAILED, ACTION_CONFLICT}
# What DynamoDB, and its local version, say of a table whose keys or indexes are not what the definitions ask for: that
# refuses every record alike, and is no record's fault.
_WRONG_SCHEMA = (
    "does not match the schema",
    "Type mismatch for key",
    "Type mismatch for Index Key",
    "required keys was not given a value",
    "number of conditions on the keys is invalid",
    "Query condition missed key schema element",
    "does not match schema type",
)


def failure_of(error: Exception) -> Failure:
    """What an error of `UpdateItem`, `TransactWriteItems` or `Query` means; a transaction's last action is the row's.

    Raises:
        CommitError: nothing can work before an operator acts.
        Exception: `error` itself, where it is neither an answer of DynamoDB nor a failure to get one.
    """
    if isinstance(error, NO_ANSWER):
        return Failure(Kind.NO_ANSWER)
    if isinstance(error, BotoCoreError):
        raise CommitError(f"DynamoDB cannot be called: {error}") from error
    if not isinstance(error, ClientError):
        raise error
    response: Mapping[str, Any] = error.response
    code = code_of(error)
    if code == CANCELLED:
        return _cancelled(error)
    if code == CONDITION_FAILED:
        return Failure(Kind.ROW_CHANGED, item=response.get("Item", {}))
    if code in _CONFLICT:
        return Failure(Kind.CONFLICT, conflicts=1)
    if code in _REFUSED:
        message = str(response["Error"].get("Message", error))
        _raise_if_wrong_schema(message)
        return Failure(Kind.REFUSED, message)
    if is_transient(error):
        return Failure(Kind.THROTTLED, throttle=_throttle(response))
    raise CommitError(f"DynamoDB refuses every write: {error}") from error


def _cancelled(error: ClientError) -> Failure:
    """Of a transaction's pages and, as its last action, its row."""
    reasons = cancellation_reasons(error)
    codes = [str(reason.get("Code") or "None") for reason in reasons]
    told = [(code, str(reason.get("Message") or code)) for code, reason in zip(codes, reasons, strict=True)]
    unknown = [f"{code}: {message}" for code, message in told if code not in _KNOWN]
    if unknown or not codes:
        raise CommitError(f"DynamoDB cancelled a transaction: {'; '.join(unknown) or error}") from error
    refused = [message for code, message in told if code in ACTION_REFUSED]
    for message in refused:
        _raise_if_wrong_schema(message)
    conflicts = codes.count(ACTION_CONFLICT)
    if codes[-1] == ACTION_CONDITION_FAILED:
        return Failure(Kind.ROW_CHANGED, item=reasons[-1].get("Item", {}), conflicts=conflicts)
    if ACTION_THROTTLED.intersection(codes):
        return Failure(Kind.THROTTLED, conflicts=conflicts, throttle=_throttle(error.response))
    # Before a page that has changed: the write in conflict can be the one that has changed it, and still be going on.
    if conflicts:
        return Failure(Kind.CONFLICT, conflicts=conflicts)
    if ACTION_CONDITION_FAILED in codes:
        return Failure(Kind.PAGE_CHANGED)
    if refused:
        return Failure(Kind.REFUSED, refused[0])
    return Failure(Kind.CONFLICT)


def _throttle(response: Mapping[str, Any]) -> Throttle:
    """From the reasons, such as `TableWriteKeyRangeThroughputExceeded` ("ThrottlingReason", DynamoDB API reference)."""
    given = response.get("ThrottlingReasons") or response.get("throttlingReasons") or []
    reasons = " ".join(str(reason.get("reason", "")) for reason in given)
    if "KeyRange" in reasons:
        return Throttle.KEY
    if "Account" in reasons:
        return Throttle.ACCOUNT
    return Throttle.TABLE if reasons else Throttle.UNKNOWN


def _raise_if_wrong_schema(message: str) -> None:
    if any(text in message for text in _WRONG_SCHEMA):
        raise CommitError(f"a target or the ledger table has other keys or indexes than the definitions say: {message}")

"""What AWS's error codes mean to a caller: try again, refused for good, or no answer at all.

Sources: "Error handling with DynamoDB", Amazon DynamoDB developer guide, and "TransactWriteItems", API reference.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import botocore.exceptions
from botocore.exceptions import ClientError

# Codes of whole requests.
CANCELLED = "TransactionCanceledException"
CONDITION_FAILED = "ConditionalCheckFailedException"
THROTTLED = frozenset(
    ("ThrottlingException", "Throttling", "ProvisionedThroughputExceededException", "RequestLimitExceeded")
)
_TRANSIENT = THROTTLED | frozenset(
    (
        "InternalServerError",
        "InternalFailure",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "TransactionInProgressException",
        "LimitExceededException",
        "ReplicatedWriteConflictException",
    )
)
_SERVER_ERROR = 500  # HTTP status

# Codes of single actions in CancellationReasons.
ACTION_CONDITION_FAILED = "ConditionalCheckFailed"
ACTION_CONFLICT = "TransactionConflict"
ACTION_THROTTLED = frozenset(
    ("ProvisionedThroughputExceeded", "ThrottlingError", "RequestLimitExceeded", "InternalServerError")
)
ACTION_REFUSED = frozenset(("ValidationError", "ItemCollectionSizeLimitExceeded"))

# Failures to get an answer: connection refused, reset or timed out. The request may have been carried out.
NO_ANSWER = (botocore.exceptions.ConnectionError, botocore.exceptions.HTTPClientError)


def code_of(error: ClientError) -> str:
    """The error's code; empty if it has none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def is_transient(error: ClientError) -> bool:
    """Whether the same request, sent again, may succeed."""
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return code_of(error) in _TRANSIENT or status >= _SERVER_ERROR


def cancellation_reasons(error: ClientError) -> Sequence[Mapping[str, Any]]:
    """Why each action of a transaction was cancelled, in their order."""
    reasons: Sequence[Mapping[str, Any]] = error.response.get("CancellationReasons", [])
    return reasons

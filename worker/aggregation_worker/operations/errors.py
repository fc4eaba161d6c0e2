"""What ends an `aggregator` command, in words for the person who typed it."""

import botocore.exceptions
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from aggregation_worker.aws_errors import code_of
from aggregation_worker.errors import WorkerError

# What to do, by error code.
_HINTS = {
    "AccessDenied": "your credentials lack a permission",
    "AccessDeniedException": "your credentials lack a permission",
    "AWS.SimpleQueueService.NonExistentQueue": "is the queue URL right, and the region?",
    "QueueDoesNotExist": "is the queue URL right, and the region?",
    "ExpiredToken": "sign in again",
    "ExpiredTokenException": "sign in again",
    "ResourceNotFoundException": "is the name right, and the region?",
}


class CommandError(WorkerError):
    """A command cannot do what it was asked to do."""


def message_of(error: Exception) -> str | None:
    """One line for an error that the person can act on; `None` for one that is a mistake of this program."""
    if isinstance(error, BotoCoreError | ClientError):
        return explain_aws_error(error)
    if isinstance(error, ResponseParserError):
        return "what has answered is not AWS, or a proxy before it: check --endpoint-url and AWS_ENDPOINT_URL"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error) if isinstance(error, WorkerError | OSError) else None


def explain_aws_error(error: BotoCoreError | ClientError) -> str:
    """One line that says what AWS refused and, where that is clear, what to do."""
    if isinstance(error, ClientError):
        hint = _HINTS.get(code_of(error))
        return f"{error} ({hint})" if hint else str(error)
    if isinstance(error, botocore.exceptions.NoRegionError):
        return "no AWS region is set: give --region, or set AWS_DEFAULT_REGION"
    if isinstance(error, botocore.exceptions.NoCredentialsError):
        return "no AWS credentials were found: sign in, or give --profile"
    return f"AWS cannot be called: {error}"

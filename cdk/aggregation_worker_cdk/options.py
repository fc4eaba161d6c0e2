"""What can be chosen for a deployment on the command line, as `-c name=value`.

Every flag is optional and explained in cdk/README.md. Everything else is in `aggregation_worker.deployment`.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE
from aggregation_worker.deployment.settings import STACK_NAME
from aggregation_worker.errors import WorkerError
from aggregation_worker_cdk.schedule import mistake_in

# The bucket's name is the stack's with "-dlq-", the account's 12 digits and the region's at most 14 characters; S3
# allows 63 ("General purpose bucket naming rules", Amazon S3 user guide).
_STACK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,29}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_MAX_RESERVED_CONCURRENCY = 10_000


class OptionError(WorkerError):
    """A flag that cannot be used; the message names it and what it takes."""


@dataclass(frozen=True, slots=True)
class Options:
    """One deployment's choices.

    Attributes:
        stack_name: distinguishes the workers of one account and region; also the `service` of metrics and logs.
        definitions_file: what is added up; bundled into the function.
        throwaway: for trying out: tables, bucket, queue and logs are deleted with the stack.
        reserved_concurrency: of the function; `None` reserves nothing.
        alarm_email: an address subscribed to the alarms' topic.
        reconcile: when the totals are compared with the source, as an EventBridge schedule; `None` is never.
    """

    stack_name: str = STACK_NAME
    definitions_file: Path = DEFINITIONS_FILE
    throwaway: bool = False
    reserved_concurrency: int | None = None
    alarm_email: str | None = None
    reconcile: str | None = None


_FLAGS = (
    "stackName",
    "definitions",
    "throwaway",
    "reservedConcurrency",
    "alarmEmail",
    "reconcile",
)


def read_options(context: Mapping[str, object]) -> Options:
    """Reads the flags from the app's context.

    The context also holds what the CDK and the user's own ~/.cdk.json put there, so an unknown key is refused only
    where it looks like one of ours mistyped: `throwAway=true` must not deploy tables with deletion protection.

    Raises:
        OptionError: a flag has an invalid value, or looks mistyped.
    """
    for key in context:
        close = difflib.get_close_matches(key.lower(), [flag.lower() for flag in _FLAGS], n=1, cutoff=0.8)
        if key not in _FLAGS and close:
            known = next(flag for flag in _FLAGS if flag.lower() == close[0])
            raise OptionError(f"-c {key}: unknown flag; did you mean {known}?")
    default = Options()
    return Options(
        _stack_name(context.get("stackName", default.stack_name)),
        _definitions(context.get("definitions")),
        _truth("throwaway", context.get("throwaway", default.throwaway)),
        _concurrency(context.get("reservedConcurrency", default.reserved_concurrency)),
        _email(context.get("alarmEmail", default.alarm_email)),
        _schedule(context.get("reconcile", default.reconcile)),
    )


def _stack_name(value: object) -> str:
    if isinstance(value, str) and _STACK_NAME.fullmatch(value) and not value.endswith("-"):
        return value
    raise OptionError(
        f"-c stackName={value}: a letter and up to 29 more letters, digits or hyphens, not ending in one, are needed"
    )


def _definitions(value: object) -> Path:
    if value is not None:
        return Path(str(value))
    if not DEFINITIONS_FILE.is_file():
        raise OptionError("-c definitions=FILE: is needed outside a clone of the repository")
    return DEFINITIONS_FILE


def _truth(flag: str, value: object) -> bool:
    if value in (True, "true"):
        return True
    if value in (False, "false"):
        return False
    raise OptionError(f"-c {flag}={value}: true or false is needed")


def _concurrency(value: object) -> int | None:
    if value is None:
        return None
    text = str(value)
    # Lambda gives 0 a meaning of its own: the function never runs.
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= _MAX_RESERVED_CONCURRENCY:
        return int(text)
    raise OptionError(
        f"-c reservedConcurrency={value}: a whole number from 1 to {_MAX_RESERVED_CONCURRENCY} is needed; "
        "leave the flag out to reserve nothing"
    )


def _schedule(value: object) -> str | None:
    if value is None:
        return None
    text = str(value)
    if mistake := mistake_in(text):
        raise OptionError(f"-c reconcile={text}: {mistake}")
    return text


def _email(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, str) and _EMAIL.fullmatch(value):
        return value
    raise OptionError(f"-c alarmEmail={value}: an e-mail address is needed")

"""What can be chosen for a deployment: in the `context` of `cdk.json`, or once with `-c name=value`.

Every option may be left out; cdk/README.md explains each. Everything else is in `aggregation_worker.deployment`.
"""

import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE
from aggregation_worker.deployment.settings import STACK_NAME
from aggregation_worker.errors import WorkerError
from aggregation_worker_cdk.schedule import mistake_in

# The worker is named like the stack; `worker.MAX_NAME` has the reason for 30.
_STACK_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,29}")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+")
_MAX_RESERVED_CONCURRENCY = 10_000


class OptionError(WorkerError):
    """An option that cannot be used; the message names it and what it takes."""


@dataclass(frozen=True, slots=True)
class Options:
    """One deployment's choices.

    Attributes:
        stack_name: distinguishes the workers of one account and region; also the `service` of metrics and logs.
        definitions_file: what is added up; bundled into the function.
        table_prefix: before the name of every table that the stack makes.
        throwaway: for trying out: tables, bucket, queue and logs are deleted with the stack.
        reserved_concurrency: of the function; `None` reserves nothing.
        alarm_email: an address subscribed to the alarms' topic.
        reconcile: when the totals are compared with the source, as an EventBridge schedule; `None` is never.
        allow_source_change: deploys although the stack would read another table, or lose one of its targets.
    """

    stack_name: str = STACK_NAME
    definitions_file: Path = DEFINITIONS_FILE
    table_prefix: str = ""
    throwaway: bool = False
    reserved_concurrency: int | None = None
    alarm_email: str | None = None
    reconcile: str | None = None
    allow_source_change: bool = False


_OPTIONS = (
    "stackName",
    "definitions",
    "tablePrefix",
    "throwaway",
    "reservedConcurrency",
    "alarmEmail",
    "reconcile",
    "allowSourceChange",
)
# The CDK's own keys, such as `aws:cdk:bundling-stacks`, `@aws-cdk/core:target-partitions`, and what it looked up.
_OF_THE_CDK = re.compile(r"[@:/]|^(aws-cdk|cdk)-")


def read_options(context: Mapping[str, object], personal: Collection[str] = ()) -> Options:
    """Reads the options from the app's context.

    An option that is mistyped must not deploy something else: `throwAway=true` tables with deletion protection.

    Args:
        personal: keys that stand in the user's own ~/.cdk.json, for other apps.

    Raises:
        OptionError: an option is unknown, or has an invalid value.
    """
    for key in context:
        if key not in _OPTIONS and key not in personal and not _OF_THE_CDK.search(key):
            lower = {option.lower(): option for option in _OPTIONS}
            close = difflib.get_close_matches(key.lower(), lower, n=1)
            hint = f"did you mean {lower[close[0]]}?" if close else f"known are {', '.join(_OPTIONS)}"
            raise OptionError(f"-c {key}: unknown option; {hint}")
    default = Options()
    return Options(
        _stack_name(context.get("stackName", default.stack_name)),
        _definitions(context.get("definitions")),
        _prefix(context.get("tablePrefix", default.table_prefix)),
        _truth("throwaway", context.get("throwaway", default.throwaway)),
        _concurrency(context.get("reservedConcurrency", default.reserved_concurrency)),
        _email(context.get("alarmEmail", default.alarm_email)),
        _schedule(context.get("reconcile", default.reconcile)),
        _truth("allowSourceChange", context.get("allowSourceChange", default.allow_source_change)),
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
        raise OptionError("definitions: is needed outside a clone of the repository")
    return DEFINITIONS_FILE


def _prefix(value: object) -> str:
    if isinstance(value, str) and _PREFIX.fullmatch(value):
        return value
    raise OptionError(f"-c tablePrefix={value}: up to 64 letters, digits, '_', '-' and '.' are needed")


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
        "leave it out to reserve nothing"
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

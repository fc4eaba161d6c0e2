"""Settings from the environment, each checked at the first invocation with a message that says what to set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE
from aggregation_worker.errors import WorkerError


class SettingsError(WorkerError):
    """A missing or unusable environment variable; the message names it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a deployment sets.

    Attributes:
        aggregations_file: `AGGREGATIONS_FILE`, the definitions file; default: the bundled one.
        ledger_table: `LEDGER_TABLE`, the ledger's table name.
        ledger_retention_days: `LEDGER_RETENTION_DAYS`, how long receipts are kept: longer than a record can come back.
        dead_letter_queue_url: `DEAD_LETTER_QUEUE_URL`.
        dead_letter_bucket: `DEAD_LETTER_BUCKET`.
        source_stream_arn: `SOURCE_STREAM_ARN`, the stream that the mapping reads; default: the definitions' own, or
            none, so that of a record's stream only the table's name can be compared.
        table_prefix: `TABLE_PREFIX`, with which the names of the deployment's tables begin, before those in the file;
            default: nothing.
    """

    aggregations_file: Path
    ledger_table: str
    ledger_retention_days: int
    dead_letter_queue_url: str
    dead_letter_bucket: str
    source_stream_arn: str | None = None
    table_prefix: str = ""


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Reads the settings.

    Raises:
        SettingsError: a variable is missing or cannot be used; every missing one is named.
    """
    needed = ("LEDGER_TABLE", "LEDGER_RETENTION_DAYS", "DEAD_LETTER_QUEUE_URL", "DEAD_LETTER_BUCKET")
    missing = [name for name in needed if not environment.get(name)]
    if missing:
        raise SettingsError(f"missing environment variables: {', '.join(missing)}")
    text = environment["LEDGER_RETENTION_DAYS"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= 3650):
        raise SettingsError(f"LEDGER_RETENTION_DAYS must be a whole number of days from 1 to 3650, not {text!r}")
    return Settings(
        Path(environment.get("AGGREGATIONS_FILE") or DEFINITIONS_FILE),
        environment["LEDGER_TABLE"],
        int(text),
        environment["DEAD_LETTER_QUEUE_URL"],
        environment["DEAD_LETTER_BUCKET"],
        environment.get("SOURCE_STREAM_ARN") or None,
        environment.get("TABLE_PREFIX", ""),
    )

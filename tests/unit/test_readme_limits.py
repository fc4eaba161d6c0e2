"""worker/README.md, "Limits": what is a constant of the code stands there as it is."""

import re
from pathlib import Path

import pytest

from aggregation_worker import dead_letters
from aggregation_worker.aggregations import contributions, definitions, numbers
from aggregation_worker.deployment import settings
from aggregation_worker.ledger import pages

PAGE = (Path(__file__).parents[2] / "worker" / "README.md").read_text()
_, _, BELOW = PAGE.partition("## Limits\n")
ROWS = {row[0]: row[1] for row in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", BELOW.partition("\n## ")[0], re.MULTILINE)}


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("records of a batch", [settings.MAPPING.batch_size, settings._RANGES["batch_size"][-1]]),
        ("receipts on a page", [pages.MAX_PAGE_RECEIPTS, pages.MAX_PAGE_BYTES]),
        ("days that a receipt is remembered on a page", [settings.LEDGER_RETENTION_DAYS]),
        ("a group's keys", [contributions.MAX_PARTITION_KEY_BYTES, contributions.MAX_SORT_KEY_BYTES]),
        ("an index's sort key", [contributions.MAX_SORT_KEY_BYTES]),
        ("names in the definitions file", [definitions._MAX_KEY_NAME_BYTES]),
        ("factors of a product", [definitions._MAX_FACTORS]),
        ("numbers", [numbers.MAX_DIGITS, numbers.MIN_EXPONENT, numbers.MAX_EXPONENT]),
        (
            "a record in the stream",
            [settings.STREAM_RETENTION_DAYS * 24, settings.MAPPING.oldest_delivered_seconds // 3600],
        ),
        (
            "a dead letter",
            [settings.QUEUE_RETENTION_DAYS, dead_letters.MAX_MESSAGE_BYTES // 1024, settings.DEAD_LETTER_OBJECT_DAYS],
        ),
        ("a backfill", [settings.STREAM_RETENTION_DAYS * 24]),
        (
            "source size of a scheduled reconcile",
            [settings.MAX_SCHEDULED_RECONCILE_BYTES // 1_000_000, settings.RECONCILE_TIMEOUT_SECONDS // 60],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limit__is_the_codes(limit: str, says: list[int]) -> None:
    numbers_there = [int(found.replace(",", "")) for found in re.findall(r"(?:(?<=E))?-?\d[\d,]*\d|\d", ROWS[limit])]

    assert set(says) <= set(numbers_there)

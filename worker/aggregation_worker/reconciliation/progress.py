"""How far a backfill or a reconcile is, as both tell it."""

from collections.abc import Callable
from enum import StrEnum


class Stage(StrEnum):
    """What a run is doing, in the words that operators read."""

    ITEMS = "reading items"
    STREAM = "reading the stream up to now"
    SUMS = "adding up"
    WAITING = "waiting for workers that do not know the aggregation yet"
    CATCHING_UP = "posting records that such workers may have left out"
    POSTING = "posting starting values"
    TOTALS = "reading the totals"
    OBSERVING = "looking again at totals that differ or are being written"
    EARLIER = "reading what the stream held before"
    ON_THEIR_WAY = "waiting for records on their way to the totals"
    RECEIPTS = "looking again at totals that differ from their receipts"
    LETTERS = "reading the dead letters"
    COUNTS = "waiting until the queue's counts show what others hold"
    CORRECTING = "correcting"


# What is done is seconds: these stages wait.
WAITS = frozenset((Stage.WAITING, Stage.ON_THEIR_WAY, Stage.COUNTS))

Tell = Callable[[Stage, int, int | None], None]
"""Told the stage, and how much of it is done, of about how much or `None`: items, records, seconds or aggregates."""

"""Up to which second all shards are counted: what is told of it, and that it holds."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from aggregation_worker.operations.freshness import earliest

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BEGINNING = int(NOW.timestamp()) // 60 * 60


def at(second: float) -> datetime:
    return datetime.fromtimestamp(second, UTC)


@pytest.mark.parametrize(
    ("counted", "ages", "second"),
    [
        ({}, {}, None),
        # Of the latest two whole minutes, and what has come since, the least.
        ({2: 500, 3: 440, 4: 380}, {}, 440),
        ({2: 440, 3: 500}, {}, 440),
        ({1: 560, 2: 500}, {}, 500),
        ({1: 20, 2: 500}, {}, 20),
        ({1: 500}, {}, None),
        # After a quiet time, what was told last.
        ({30: 500, 31: 400, 32: 300}, {}, 400),
        # An invocation that crashes tells nothing; Lambda told the age of what it was given.
        ({2: 500}, {2: 60_000}, -180),
        ({}, {2: 1_500}, -122),
        ({2: 500, 5: 20}, {5: 10**9}, 500),
    ],
)
def test_earliest__is_that_of_two_minutes(
    counted: dict[int, float], ages: dict[int, float], second: int | None
) -> None:
    since = NOW.timestamp()
    told = [(NOW - timedelta(minutes=ago), since + value) for ago, value in counted.items()]
    aged = [(NOW - timedelta(minutes=ago), value) for ago, value in ages.items()]

    assert earliest(told, aged, NOW) == (None if second is None else since + second)


# --- That it holds --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Record:
    """Both in seconds; `created_at` is a whole second, as in the stream."""

    created_at: int
    there_at: float
    counted_at: float = float("inf")


def records_of_a_shard(chance: random.Random) -> list[Record]:
    """Forty minutes of bursts, single records and quiet times."""
    found, second = [], BEGINNING + chance.random() * 600
    while second < BEGINNING + 2_400:
        found.append(Record(int(second), second))
        second += chance.choice([0.01, 0.5, 5, 5, 90]) * chance.random()
    return found


def delivered(records: list[Record], chance: random.Random, *, crashes: bool) -> Iterator[tuple[str, float, float]]:
    """What Lambda and the function tell while they deliver a shard: of what, when, and the value.

    For ten minutes nothing succeeds: each invocation reports failures, or crashes and gets the same batch again.
    """
    waiting, now = records, float(BEGINNING)
    batch: list[Record] = []
    trouble = BEGINNING + chance.random() * 2_400
    while waiting:
        now = max(now, waiting[0].there_at + chance.random())
        batch = batch or [record for record in waiting if record.there_at <= now][: chance.choice([5, 100])]
        yield "age", now, (now - batch[-1].created_at) * 1_000
        now += chance.choice([0.1, 1, 59]) * chance.random()
        done = chance.choice([len(batch)] * 6 + [0, chance.randrange(len(batch))])
        if trouble < now < trouble + 600:
            if crashes:
                continue
            done = 0
        for record in batch[:done]:
            record.counted_at = now
        yield "counted", now, batch[min(done, len(batch) - 1)].created_at
        waiting, batch = waiting[done:], []


@pytest.mark.parametrize(("crashes", "late"), [(False, 0), (True, 61)])
def test_every_record_before_that_second__is_counted(seed: int, crashes: bool, late: int) -> None:
    """`late`: seconds, at least what a batch spans here: an invocation takes 59."""
    chance = random.Random(seed)
    shards = [records_of_a_shard(chance) for _ in range(3)]
    told = [one for shard in shards for one in delivered(shard, chance, crashes=crashes)]
    records = [record for shard in shards for record in shard]
    lags = []
    for _ in range(200):
        now = BEGINNING + 300 + chance.random() * 2_400
        counted: dict[float, float] = {}
        ages: dict[float, float] = {}
        for kind, second, value in told:
            minute = second // 60 * 60
            if second > now - 60:
                continue  # CloudWatch does not show it yet
            if kind == "counted":
                counted[minute] = min(value, counted.get(minute, value))
            else:
                ages[minute] = max(value, ages.get(minute, value))

        found = earliest(
            [(at(minute), value) for minute, value in counted.items()],
            [(at(minute), value) for minute, value in ages.items()],
            at(now),
        )

        if found is not None:
            lags.append(now - found)
            assert [record for record in records if record.created_at < found - late and record.counted_at > now] == []
    assert min(lags) < 300

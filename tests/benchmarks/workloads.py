"""Workloads: which stream records arrive, in batches of what size, and which of them have been counted before.

Every record is one that Lambda could deliver from the reference scenario's source table. The same seed makes the same
records, so every contender gets the same batch.
"""

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tests.records import DAY, STREAM_ARN

# Records a second over all shards: how many share a creation second.
RECORDS_PER_SECOND = 1_000
# Lambda delivers no more in one event ("Lambda quotas", AWS Lambda developer guide), in bytes.
EVENT_BYTES = 6_000_000

_FIRST_SECOND = 1_789_651_658
_FIRST_SEQUENCE_NUMBER = 100_000_000_000_000_000_001


class Choice(StrEnum):
    """How the records spread over the groups."""

    ZIPF = "Zipf(1)"
    UNIFORM = "uniform"


class Kind(StrEnum):
    """What happened to the orders."""

    INSERT = "insert"
    MODIFY = "modify"  # nine MODIFY records of ten, in the same group
    MOVE = "move"  # every record moves an order from one group to another: two contributions


class Delivered(StrEnum):
    """Which records of a batch were counted by an earlier delivery."""

    NONE = "fresh"
    TENTH = "10 % duplicates"
    ALL = "duplicates"


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the comparison.

    Attributes:
        batch: records in a batch.
        record_bytes: size of an order's image, at least about 100.
    """

    groups: int = 1_000
    choice: Choice = Choice.ZIPF
    batch: int = 1_000
    kind: Kind = Kind.INSERT
    delivered: Delivered = Delivered.NONE
    record_bytes: int = 200

    @property
    def name(self) -> str:
        """What tells it apart in tables and plots."""
        parts = [f"{self.groups:,} groups {self.choice}", f"batch {self.batch:,}"]
        if self.kind is not Kind.INSERT:
            parts.append(self.kind)
        if self.delivered is not Delivered.NONE:
            parts.append(self.delivered)
        if self.record_bytes != Workload.__dataclass_fields__["record_bytes"].default:
            parts.append(f"{self.record_bytes:,} B")
        return ", ".join(parts)


REFERENCE = Workload()
TEN_GROUPS = replace(REFERENCE, groups=10)
DUPLICATED = replace(REFERENCE, delivered=Delivered.ALL)
BATCHES_OF_10 = replace(REFERENCE, batch=10)
QUICK = (REFERENCE, TEN_GROUPS, BATCHES_OF_10, DUPLICATED)
# The reference workload, and each of its properties varied alone.
ALL = (
    REFERENCE,
    TEN_GROUPS,
    replace(REFERENCE, groups=100_000),
    *(replace(REFERENCE, groups=groups, choice=Choice.UNIFORM) for groups in (10, 1_000, 100_000)),
    BATCHES_OF_10,
    *(replace(REFERENCE, batch=batch) for batch in (100, 10_000)),
    DUPLICATED,
    replace(REFERENCE, delivered=Delivered.TENTH),
    replace(REFERENCE, kind=Kind.MODIFY),
    replace(REFERENCE, kind=Kind.MOVE),
    replace(REFERENCE, record_bytes=2_000),
    replace(REFERENCE, record_bytes=100_000, batch=50),
)


def records(workload: Workload, *, seed: int = 1) -> Iterator[dict[str, Any]]:
    """Endless stream records of a workload, in the order of their sequence numbers, which differ between seeds."""
    chance = random.Random(seed)
    weights = [1 / rank if workload.choice is Choice.ZIPF else 1.0 for rank in range(1, workload.groups + 1)]
    cumulated = list(itertools.accumulate(weights))
    padding = "x" * max(0, workload.record_bytes - 100)
    for position in itertools.count():
        group, other = chance.choices(range(workload.groups), cum_weights=cumulated, k=2)
        if other == group:
            other = (group + 1) % workload.groups
        number = _FIRST_SEQUENCE_NUMBER + seed * 10**15 + position * 1_000 + chance.randrange(1_000)
        keys = {"orderid": {"S": f"{number % 10**12:012}"}, "order_date": {"S": DAY}}
        order = _Order(keys, padding)
        new = order.image(group, chance.randint(1, 99))
        old = None
        if workload.kind is Kind.MOVE:
            old = order.image(other, chance.randint(1, 99))
        elif workload.kind is Kind.MODIFY and chance.random() < 0.9:
            old = order.image(group, chance.randint(100, 199))
        yield _stream_record(number, _FIRST_SECOND + position // RECORDS_PER_SECOND, keys, old, new)


def batches(workload: Workload, *, seed: int = 1) -> Iterator[list[dict[str, Any]]]:
    """Endless batches of a workload."""
    stream = records(workload, seed=seed)
    while True:
        yield list(itertools.islice(stream, workload.batch))


def counted_before(workload: Workload, batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a batch that an earlier delivery has counted already."""
    if workload.delivered is Delivered.ALL:
        return list(batch)
    return list(batch[::10]) if workload.delivered is Delivered.TENTH else []


@dataclass(frozen=True, slots=True)
class _Order:
    keys: dict[str, Any]
    padding: str

    def image(self, group: int, quantity: int) -> dict[str, Any]:
        return {
            **self.keys,
            "item_number": {"S": f"item{group:06}"},
            "quantity": {"N": str(quantity)},
            "note": {"S": self.padding},
        }


def _stream_record(
    number: int, created_at: int, keys: dict[str, Any], old: dict[str, Any] | None, new: dict[str, Any]
) -> dict[str, Any]:
    change: dict[str, Any] = {
        "ApproximateCreationDateTime": created_at,
        "Keys": keys,
        "NewImage": new,
        "SequenceNumber": str(number),
        "SizeBytes": 80,
        "StreamViewType": "NEW_AND_OLD_IMAGES",
    }
    if old is not None:
        change["OldImage"] = old
    return {
        "eventID": hashlib.md5(str(number).encode()).hexdigest(),
        "eventName": "INSERT" if old is None else "MODIFY",
        "eventVersion": "1.1",
        "eventSource": "aws:dynamodb",
        "awsRegion": "us-east-1",
        "dynamodb": change,
        "eventSourceARN": STREAM_ARN,
    }

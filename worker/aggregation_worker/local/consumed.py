"""What requests of a boto3 session cost: their write units as DynamoDB's answers tell them, and their read units.

Of the requests that keep totals: the worker's start, which reads the catalogue and may write it, belongs to no record.
A refused request says nothing of what it consumed.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import boto3

# A read unit's for an item of up to 4 KB that need not be consistent ("Read consistency", Amazon DynamoDB developer
# guide); one that is not there costs as much.
_UNITS_OF_A_READ = 0.5


@dataclass(slots=True)
class Consumed:
    """Collects from several threads, by table.

    Attributes:
        writes: a table and units, for each request.
        reads: the same; ministack tells nothing of a `BatchGetItem`, so its keys are counted, for items of up to 4 KB.
    """

    writes: list[tuple[str, float]] = field(default_factory=list)
    reads: list[tuple[str, float]] = field(default_factory=list)

    def watch(self, session: boto3.Session) -> None:
        """Counts what clients do that `session` makes from now on."""
        for operation in ("UpdateItem", "TransactWriteItems"):
            session.events.register(f"provide-client-params.dynamodb.{operation}", _ask)
            session.events.register(f"after-call.dynamodb.{operation}", self._written)
        session.events.register("provide-client-params.dynamodb.BatchGetItem", self._read)

    def _written(self, parsed: dict[str, Any], **_: Any) -> None:
        consumed = parsed.get("ConsumedCapacity", [])
        for one in consumed if isinstance(consumed, list) else [consumed]:
            self.writes.append((one["TableName"], one["CapacityUnits"]))

    def _read(self, params: dict[str, Any], **_: Any) -> None:
        for table, wanted in params["RequestItems"].items():
            self.reads.append((table, len(wanted["Keys"]) * _UNITS_OF_A_READ))


def units_of(consumed: Collection[tuple[str, float]], tables: Collection[str]) -> float:
    """The units that were consumed of some tables."""
    return sum(units for table, units in consumed if table in tables)


def _ask(params: dict[str, Any], **_: Any) -> None:
    params["ReturnConsumedCapacity"] = "TOTAL"

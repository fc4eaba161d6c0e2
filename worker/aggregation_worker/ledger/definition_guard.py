"""Refuses to work with an aggregation whose definition has changed since its totals were begun.

Changing how an existing aggregation groups or sums would make later corrections hit rows that the first contribution
never touched. So the ledger keeps each aggregation's definition and its fingerprint, written by the first worker that
uses it, beside the receipts; a worker whose definition differs stops before it writes anything.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation
from aggregation_worker.aws_errors import CONDITION_FAILED, code_of
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.receipts import AGGREGATE_KEY, DEFINITION_PAGE, PAGE_KEY

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

RECORDED_AT = "recorded_at"


class DefinitionChangedError(WorkerError):
    """An aggregation's definition differs from the one its totals were made with."""


def fingerprint(aggregation: Aggregation) -> str:
    """SHA-256 of all that the aggregation's totals depend on, in hexadecimal."""
    return hashlib.sha256(aggregation.definition.encode()).hexdigest()


def check_definitions(client: "DynamoDBClient", ledger_table: str, aggregations: Iterable[Aggregation]) -> None:
    """Compares each aggregation with what the ledger holds, and records those that are new to it.

    Costs one read an aggregation when a worker starts, and one write for an aggregation in its life.

    Raises:
        DefinitionChangedError: one of them has changed; the message says what, and what to do.
        ClientError: the ledger cannot be read or written.
    """
    for aggregation in aggregations:
        _check(aggregation, _found(client, ledger_table, aggregation) or _record(client, ledger_table, aggregation))


def recorded_at(client: "DynamoDBClient", ledger_table: str, aggregation: Aggregation) -> int | None:
    """When the first worker that knew the aggregation began, in epoch seconds; `None` if none has yet.

    Raises:
        ClientError: the ledger cannot be read.
    """
    found = _found(client, ledger_table, aggregation)
    return None if found is None else int(found.get(RECORDED_AT, {"N": "0"})["N"])


def _found(client: "DynamoDBClient", ledger_table: str, aggregation: Aggregation) -> dict[str, Any] | None:
    """The definition in the ledger."""
    key = {AGGREGATE_KEY: {"S": aggregation.name}, PAGE_KEY: {"S": DEFINITION_PAGE}}
    return client.get_item(TableName=ledger_table, Key=key, ConsistentRead=True).get("Item")


def _check(aggregation: Aggregation, found: dict[str, Any]) -> None:
    if found.get("fingerprint", {}).get("S") != fingerprint(aggregation):
        was = found.get("definition", {}).get("S", "{}")
        raise DefinitionChangedError(
            f"aggregation {aggregation.name!r} has changed since its totals were begun "
            f"({_differences(was, aggregation.definition)}): restore the definition, or give the aggregation "
            "a new name and backfill it"
        )


def _record(client: "DynamoDBClient", ledger_table: str, aggregation: Aggregation) -> dict[str, Any]:
    """Writes the definition unless another worker was quicker; returns the one in the ledger."""
    item = {
        AGGREGATE_KEY: {"S": aggregation.name},
        PAGE_KEY: {"S": DEFINITION_PAGE},
        "fingerprint": {"S": fingerprint(aggregation)},
        "definition": {"S": aggregation.definition},
        # By which an operator can tell whether receipts can have expired already.
        RECORDED_AT: {"N": str(int(time.time()))},
    }
    try:
        client.put_item(
            TableName=ledger_table,
            Item=item,
            ConditionExpression="attribute_not_exists(fingerprint)",
            ReturnValuesOnConditionCheckFailure="ALL_OLD",
        )
    except ClientError as error:
        if code_of(error) != CONDITION_FAILED:
            raise
        found: dict[str, Any] = error.response["Item"]  # type: ignore[typeddict-item]  # asked for with ALL_OLD
        return found
    return item


def _differences(was: str, now: str) -> str:
    """The keys that differ, by name: `where`, `measures`, ..."""
    old, new = json.loads(was), json.loads(now)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return "; ".join(f"{key} was {json.dumps(old.get(key))}, is {json.dumps(new.get(key))}" for key in keys)

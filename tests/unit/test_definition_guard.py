"""A changed definition is noticed before anything is written."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError
from freezegun import freeze_time

from aggregation_worker.aggregations.contributions import Aggregation
from aggregation_worker.ledger.definition_guard import (
    DefinitionChangedError,
    check_definitions,
    fingerprint,
    recorded_at,
)
from tests.definition_texts import aggregation, aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, FaultyDynamoDB, client_error
from tests.postings import REFERENCE


class Calls:
    """A ledger that counts reads and writes."""

    def __init__(self) -> None:
        self.tables = FaultyDynamoDB(REFERENCE)
        self.reads = 0
        self.writes = 0
        self.before_write: list[Any] = []

    def get_item(self, **request: Any) -> dict[str, Any]:
        self.reads += 1
        assert request["ConsistentRead"] is True
        return self.tables.get_item(**request)

    def put_item(self, **request: Any) -> dict[str, Any]:
        self.writes += 1
        for act in self.before_write:
            act()
        return self.tables.put_item(**request)


def check(calls: Calls, *defined: Aggregation) -> None:
    client: Any = calls
    check_definitions(client, LEDGER, defined)


@freeze_time("2024-07-15T09:40:00.9Z")
def test_new_aggregation__is_recorded_once() -> None:
    calls = Calls()

    check(calls, aggregation())
    check(calls, aggregation())

    (item,) = calls.tables.tables[LEDGER].items.values()
    assert item["aggregate"] == {"S": "item_count_by_date"}
    assert item["page"] == {"S": "definition"}
    assert item["fingerprint"] == {"S": fingerprint(aggregation())}
    assert json.loads(item["definition"]["S"])["table"] == "item_count_by_date"
    assert item["recorded_at"] == {"N": "1721036400"}
    assert "expires_at" not in item
    assert (calls.reads, calls.writes) == (2, 1)


@freeze_time("2024-07-15T09:40:00.9Z")
def test_moment_of_recording__is_known_only_where_recorded() -> None:
    calls = Calls()
    client: Any = calls

    assert recorded_at(client, LEDGER, aggregation()) is None
    assert calls.writes == 0
    check(calls, aggregation())
    assert recorded_at(client, LEDGER, aggregation()) == 1_721_036_400


def test_every_aggregation__is_recorded_by_its_name() -> None:
    calls = Calls()
    both = definitions(aggregation_text(), aggregation_text(name="other", table="other"))

    check(calls, *both.aggregations)

    assert [item["aggregate"]["S"] for item in calls.tables.tables[LEDGER].items.values()] == [
        "item_count_by_date",
        "other",
    ]


@pytest.mark.parametrize(
    ("text", "difference"),
    [
        (aggregation_text('remove = "retract"'), 'remove was "keep", is "retract"'),
        (aggregation_text("where = \"status == 'paid'\""), "where was null, is \"status == 'paid'\""),
        (aggregation_text(sum='{ quantity = "amount" }'), 'measures was {"quantity": ["quantity"]}, is'),
        (aggregation_text(sort_key=None), "keys was "),
        (aggregation_text(table="elsewhere"), 'table was "item_count_by_date", is "elsewhere"'),
    ],
)
def test_changed_definition__is_refused_with_what_to_do(text: str, difference: str) -> None:
    calls = Calls()
    check(calls, aggregation())

    with pytest.raises(DefinitionChangedError) as refused:
        check(calls, aggregation(text))

    message = str(refused.value)
    assert "aggregation 'item_count_by_date' has changed" in message
    assert difference in message
    assert "restore the definition, or give the aggregation a new name and backfill it" in message
    assert calls.writes == 1


def test_changed_definition__names_only_what_differs() -> None:
    calls = Calls()
    check(calls, aggregation())

    with pytest.raises(DefinitionChangedError) as refused:
        check(calls, aggregation(aggregation_text('remove = "retract"')))

    assert "measures" not in str(refused.value)


def test_restored_definition__works_again() -> None:
    calls = Calls()
    check(calls, aggregation())
    with pytest.raises(DefinitionChangedError):
        check(calls, aggregation(aggregation_text('remove = "retract"')))

    check(calls, aggregation(aggregation_text("# a comment")))

    assert calls.writes == 1


def test_changed_definition_under_a_new_name__is_recorded() -> None:
    calls = Calls()
    check(calls, aggregation())

    check(calls, aggregation(aggregation_text('remove = "retract"', name="item_count_2")))

    assert calls.writes == 2


@pytest.mark.parametrize("same", [True, False])
def test_another_worker_that_recorded_first__decides(same: bool) -> None:
    calls, first = Calls(), Calls()
    first.tables = calls.tables
    quicker = aggregation(None if same else aggregation_text('remove = "retract"'))
    calls.before_write.append(lambda: check(first, quicker))

    if same:
        check(calls, aggregation())
    else:
        with pytest.raises(DefinitionChangedError, match='remove was "retract", is "keep"'):
            check(calls, aggregation())

    (item,) = calls.tables.tables[LEDGER].items.values()
    assert item["fingerprint"] == {"S": fingerprint(quicker)}


def test_ledger_item_without_a_fingerprint__does_not_match() -> None:
    calls = Calls()
    calls.tables.put_item(
        TableName=LEDGER, Item={"aggregate": {"S": "item_count_by_date"}, "page": {"S": "definition"}}
    )

    with pytest.raises(DefinitionChangedError, match="table was null"):
        check(calls, aggregation())


def test_ledger_that_cannot_be_written__raises_the_error() -> None:
    calls = Calls()

    def deny() -> None:
        raise client_error("AccessDeniedException")

    calls.before_write.append(deny)

    with pytest.raises(ClientError, match="AccessDeniedException"):
        check(calls, aggregation())


def test_fingerprints__are_equal_only_for_equal_definitions() -> None:
    first, same, other = (aggregation(aggregation_text(more)) for more in ("", 'remove = "keep"', 'remove = "retract"'))

    assert fingerprint(first) == fingerprint(same) != fingerprint(other)

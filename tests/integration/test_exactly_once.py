"""Exactly once in effect, against AWS's own implementation of transactions: whatever is delivered how often."""

import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from aggregation_worker.ledger.transactions import MAX_RECEIPTS_PER_ACTION
from botocore.exceptions import ClientError, ConnectionClosedError

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT
from tests.dynamodb_local import DynamoDBLocal
from tests.integration.world import ClientWith, World, a_world, side_by_side

APPLIED, DUPLICATE, NOT_COUNTED = RecordOutcome.APPLIED, RecordOutcome.DUPLICATE, RecordOutcome.NOT_COUNTED
PARKED, RETRIED = RecordOutcome.PARKED, RecordOutcome.RETRIED


@pytest.fixture
def world(dynamodb_local: DynamoDBLocal) -> Iterator[World]:
    with a_world(dynamodb_local.client("dynamodb")) as world:
        yield world
        world.assert_totals_are_the_sum_of_receipts()


def test_whole_batch_redelivered__counts_once(world: World) -> None:
    batch = [world.record("item123", 10), world.record("item123", 30), world.record("item312", 5)]

    first = world.deliver(batch)
    second = world.deliver(batch)

    assert set(first.outcomes) == {APPLIED}
    assert set(second.outcomes) == {DUPLICATE}
    assert (world.quantity("item123"), world.quantity("item312")) == (40, 5)


def test_suffix_redelivered__counts_only_what_is_new(world: World) -> None:
    batch = [world.record("item123", quantity) for quantity in range(1, 11)]
    new = [world.record("item123", 100), world.record("item312", 7)]

    world.deliver(batch)
    result = world.deliver(batch[6:] + new)

    assert result.outcomes == (DUPLICATE,) * 4 + (APPLIED,) * 2
    assert (world.quantity("item123"), world.quantity("item312")) == (155, 7)


def test_batch_cut_differently__counts_once(world: World) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    shuffle = random.Random(seed)
    items = [f"item{number}" for number in range(5)]
    records = [
        world.record(shuffle.choice(items), 1, created_at=1_789_651_658 + shuffle.randrange(3)) for _ in range(300)
    ]

    for _ in range(4):
        start = 0
        while start < len(records):
            end = start + shuffle.randrange(1, 120)
            world.deliver(records[start:end])
            start = end

    assert sum(world.quantity(item) for item in items) == 300


def test_two_workers_on_overlapping_records__count_once(world: World) -> None:
    records = [world.record(f"item{number % 7}", 1) for number in range(600)]

    for start in range(0, 600, 150):
        side_by_side(
            lambda start=start: world.deliver(records[start : start + 150]),  # type: ignore[misc]  # a default binds the loop's value
            lambda start=start: world.deliver(records[max(0, start - 75) : start + 200]),  # type: ignore[misc]  # a default binds the loop's value
            lambda start=start: world.deliver(list(reversed(records[start : start + 100]))),  # type: ignore[misc]  # a default binds the loop's value
        )

    assert sum(world.quantity(f"item{number}") for number in range(7)) == 600


def test_answer_lost_after_commit__is_repeated_harmlessly(world: World) -> None:
    tokens = []

    def loses_the_first_answer(**request: Any) -> Any:
        answer = world.client.transact_write_items(**request)
        tokens.append(request["ClientRequestToken"])
        if len(tokens) == 1:
            raise ConnectionClosedError(endpoint_url="http://lost")
        return answer

    result = world.deliver([world.record("item123", 10)], client=ClientWith(world.client, loses_the_first_answer))

    assert result.outcomes == (APPLIED,)
    assert len(tokens) == 2
    assert tokens[0] == tokens[1]
    assert world.quantity("item123") == 10


def test_answer_lost_and_no_time_left__counts_once(world: World) -> None:
    calls = 0

    def loses_every_answer(**request: Any) -> Any:
        nonlocal calls
        calls += 1
        world.client.transact_write_items(**request)
        raise ConnectionClosedError(endpoint_url="http://lost")

    batch = [world.record("item123", 10), world.record("item312", 20)]

    first = world.deliver(batch, client=ClientWith(world.client, loses_every_answer), time_is_up=lambda: calls >= 3)
    second = world.deliver(batch)

    assert set(first.outcomes) == {RETRIED}
    assert set(second.outcomes) == {DUPLICATE}
    assert (world.quantity("item123"), world.quantity("item312")) == (10, 20)


def test_crash_before_the_call__counts_on_redelivery(world: World) -> None:
    class CrashError(Exception):
        pass

    def crashes(**_: Any) -> Any:
        raise CrashError

    batch = [world.record("item123", 10)]

    with pytest.raises(CrashError):
        world.deliver(batch, client=ClientWith(world.client, crashes))
    result = world.deliver(batch)

    assert result.outcomes == (APPLIED,)
    assert world.quantity("item123") == 10


def test_500_receipts_of_one_second__are_on_one_page(world: World) -> None:
    batch = [world.record("item123", number) for number in range(1, 501)]

    first = world.deliver(batch)
    second = world.deliver(batch)

    assert set(first.outcomes) == {APPLIED}
    assert set(second.outcomes) == {DUPLICATE}
    assert first.commit.transactions == -(-500 // MAX_RECEIPTS_PER_ACTION)
    assert world.quantity("item123") == sum(range(1, 501))
    assert [len(receipts) for receipts in world.receipts().values()] == [500]


def test_1000_records_over_1000_aggregates__each_counted_once(world: World) -> None:
    batch = [world.record(f"item{number}", number + 1) for number in range(1000)]

    first = world.deliver(batch)
    second = world.deliver(batch[500:] + batch[:500])

    assert set(first.outcomes) == {APPLIED}
    assert first.commit.transactions == 20
    assert set(second.outcomes) == {DUPLICATE}
    assert world.totals() == {
        ("item_count_by_date", (f"item{number}", "2024-07-15")): (Decimal(number + 1),) for number in range(1000)
    }


def test_same_record_twice_in_one_batch__counts_once(world: World) -> None:
    record = world.record("item123", 10)

    result = world.deliver([record, world.record("item123", 1), record])

    assert result.outcomes.count(APPLIED) == 3 - 1
    assert world.quantity("item123") == 11


def test_equal_sequence_numbers_of_two_shards__both_count(world: World) -> None:
    first, second = world.record("item123", 10), world.record("item123", 30)
    second["dynamodb"]["SequenceNumber"] = first["dynamodb"]["SequenceNumber"]

    result = world.deliver([first, second])

    assert result.outcomes == (APPLIED, APPLIED)
    assert world.quantity("item123") == 40


def test_move_between_groups__changes_both_totals(world: World) -> None:
    insert = world.record("item312", 10)
    move = world.record("item123", 15, old=("item312", 10))

    world.deliver([insert, move])
    result = world.deliver([move])

    assert result.outcomes == (DUPLICATE,)
    assert (world.quantity("item123"), world.quantity("item312")) == (15, 0)


def test_half_of_a_move__is_completed_by_redelivery(world: World) -> None:
    move = world.record("item123", 15, old=("item312", 10))
    insert = world.record("item312", 10)
    only_the_old_group = world.record("item999", 10, old=("item312", 10))
    only_the_old_group["eventID"] = move["eventID"]
    only_the_old_group["dynamodb"]["SequenceNumber"] = move["dynamodb"]["SequenceNumber"]
    del only_the_old_group["dynamodb"]["NewImage"]["item_number"]

    world.deliver([insert, only_the_old_group])
    result = world.deliver([move])

    assert result.outcomes == (APPLIED,)
    assert (world.quantity("item123"), world.quantity("item312")) == (15, 0)


@pytest.mark.parametrize(
    "item",
    ["a|b", 'a","b', "#", "żółć 漢字 🎉", "tab\tand\nnewline\x00", "x" * 2048, "é" * 1024, '["a","b"]', " "],
    ids=["bar", "json", "hash", "unicode", "control", "longest", "longest-unicode", "brackets", "blank"],
)
def test_odd_group_keys__each_have_a_total_of_their_own(world: World, item: str) -> None:
    batch = [world.record(item, 10), world.record("item123", 1)]

    world.deliver(batch)
    world.deliver(batch)

    assert world.quantity(item) == 10
    assert world.quantity("item123") == 1


def test_group_key_too_long_for_dynamodb__is_parked(world: World) -> None:
    result = world.deliver([world.record("x" * 2049, 10), world.record("item123", 1)])

    assert result.outcomes == (PARKED, APPLIED)
    assert "2049 bytes" in world.dead_letters.parked[0].reasons[0]
    assert world.quantity("item123") == 1


def test_38_digits__are_summed_exactly(world: World) -> None:
    large, small = "9" * 37 + "0", "9"

    world.deliver([world.record("item123", large), world.record("item123", small)])

    assert world.totals()["item_count_by_date", ("item123", "2024-07-15")] == (Decimal("9" * 38),)


def test_total_that_dynamodb_cannot_hold__parks_the_record(world: World) -> None:
    world.deliver([world.record("item123", "9" * 38)])
    healthy, breaking = world.record("item312", 1), world.record("item123", "0.1")

    result = world.deliver([healthy, breaking])

    assert result.outcomes == (APPLIED, PARKED)
    assert world.totals()["item_count_by_date", ("item123", "2024-07-15")] == (Decimal("9" * 38),)


def test_sum_of_a_batch_that_does_not_fit__counts_what_fits(world: World) -> None:
    batch = [world.record("item123", "1e37"), world.record("item123", "1e-10"), world.record("item123", "5")]

    result = world.deliver(batch)

    assert result.outcomes.count(PARKED) == 1
    assert result.outcomes.count(APPLIED) == 2


def test_total_of_the_wrong_type__parks_only_its_records(world: World) -> None:
    target = world.definitions.aggregations[0].table
    world.client.put_item(
        TableName=target,
        Item={"item_number": {"S": "item666"}, "order_date": {"S": "2024-07-15"}, "quantity": {"S": "text"}},
    )
    batch = [world.record(f"item{number}", 1) for number in range(660, 680)]

    result = world.deliver(batch)

    assert result.outcomes.count(PARKED) == 1
    assert result.outcomes[6] is PARKED
    assert result.outcomes.count(APPLIED) == 19
    world.client.delete_item(TableName=target, Key={"item_number": {"S": "item666"}, "order_date": {"S": "2024-07-15"}})


def test_conflicts_on_every_first_attempt__are_retried(world: World) -> None:
    refused: set[str] = set()

    def conflicts_once(**request: Any) -> Any:
        items = request["TransactItems"]
        hot = [
            index for index, item in enumerate(items) if "item0" in str(item["Update"]["Key"]) and "SET" in str(item)
        ]
        if hot and str(items[hot[0]]["Update"]["ExpressionAttributeNames"]) not in refused:
            refused.add(str(items[hot[0]]["Update"]["ExpressionAttributeNames"]))
            raise ClientError(
                {
                    "Error": {"Code": "TransactionCanceledException", "Message": "cancelled"},
                    "CancellationReasons": [
                        {"Code": "TransactionConflict" if index == hot[0] else "None"} for index in range(len(items))
                    ],
                },
                "TransactWriteItems",
            )
        return world.client.transact_write_items(**request)

    batch = [world.record(f"item{number % 10}", 1) for number in range(200)]

    result = world.deliver(batch, client=ClientWith(world.client, conflicts_once))

    assert set(result.outcomes) == {APPLIED}
    assert result.commit.conflicts == len(refused) == 1
    assert world.quantity("item0") == 20


def test_missing_target_table__raises_and_nothing_is_lost(world: World) -> None:
    target = world.definitions.aggregations[0].table

    def no_table(**request: Any) -> Any:
        for item in request["TransactItems"]:
            if item["Update"]["TableName"] == target:
                item["Update"]["TableName"] = "no-such-table"
        return world.client.transact_write_items(**request)

    batch = [world.record("item123", 10)]

    with pytest.raises(Exception, match="ResourceNotFound"):
        world.deliver(batch, client=ClientWith(world.client, no_table))
    result = world.deliver(batch)

    assert result.outcomes == (APPLIED,)


def test_deadline_within_a_batch__leaves_the_rest_to_redelivery(world: World) -> None:
    calls = 0

    def counted(**request: Any) -> Any:
        nonlocal calls
        calls += 1
        return world.client.transact_write_items(**request)

    batch = [world.record(f"item{number}", 1) for number in range(1000)]

    first = world.deliver(batch, client=ClientWith(world.client, counted), time_is_up=lambda: calls >= 3)
    second = world.deliver(batch)

    assert set(first.outcomes) == {APPLIED, RETRIED}
    assert 3 <= calls <= 2 + MAX_IN_FLIGHT
    assert second.outcomes.count(DUPLICATE) >= first.outcomes.count(APPLIED)
    assert len(world.totals()) == 1000
    assert sum(amounts[0] for amounts in world.totals().values()) == 1000

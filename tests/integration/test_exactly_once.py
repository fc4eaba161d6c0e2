"""Exactly once in effect, over AWS's own conditions and transactions: whatever is delivered how often."""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT
from aggregation_worker.ledger.next_write import ROW_STEP
from aggregation_worker.ledger.pages import MAX_PAGE_BYTES, MAX_PAGE_RECEIPTS
from aggregation_worker.ledger.receipts import item_size
from aggregation_worker.ledger.writes import Add, Archive, Late
from aggregation_worker.local.ministack import Ministack
from aggregation_worker.local.recompute import scan
from tests.dynamodb_local import DynamoDBLocal
from tests.integration.world import Call, ClientWith, World, a_world, side_by_side
from tests.sizes import size

APPLIED, DUPLICATE, NOT_COUNTED = RecordOutcome.APPLIED, RecordOutcome.DUPLICATE, RecordOutcome.NOT_COUNTED
NOTICED, PARKED, RETRIED = RecordOutcome.NOTICED, RecordOutcome.PARKED, RecordOutcome.RETRIED


@pytest.fixture
def world(dynamodb_local: DynamoDBLocal) -> Iterator[World]:
    with a_world(dynamodb_local.client("dynamodb")) as world:
        yield world
        world.assert_totals_are_the_sum_of_receipts()


def test_whole_batch_redelivered__counts_once(world: World) -> None:
    batch = [world.record("item123", 10), world.record("item123", 30), world.record("item312", 5)]

    first = world.deliver(batch)
    second = world.deliver(batch, client=ClientWith(world.client, writes_nothing))

    assert set(first.outcomes) == {APPLIED}
    assert set(second.outcomes) == {DUPLICATE}
    assert (world.quantity("item123"), world.quantity("item312")) == (40, 5)


def writes_nothing(write: Call, request: dict[str, Any]) -> Any:
    raise AssertionError(f"written: {request}")


def test_suffix_redelivered__counts_only_what_is_new(world: World) -> None:
    batch = [world.record("item123", quantity) for quantity in range(1, 11)]
    new = [world.record("item123", 100), world.record("item312", 7)]

    world.deliver(batch)
    result = world.deliver(batch[6:] + new)

    assert result.outcomes == (DUPLICATE,) * 4 + (APPLIED,) * 2
    assert (world.quantity("item123"), world.quantity("item312")) == (155, 7)


def test_batch_cut_differently__counts_once(world: World, seed: int) -> None:
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
    requests = []

    def loses_the_first_answer(write: Call, request: dict[str, Any]) -> Any:
        requests.append(request)
        answer = write(**request)
        if len(requests) == 1:
            raise ConnectionClosedError(endpoint_url="http://lost")
        return answer

    result = world.deliver([world.record("item123", 10)], client=ClientWith(world.client, loses_the_first_answer))

    assert result.outcomes == (DUPLICATE,)
    assert len(requests) == 2
    assert world.quantity("item123") == 10


def test_answer_lost_and_no_time_left__counts_once(world: World) -> None:
    calls = 0

    def loses_every_answer(write: Call, request: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        with suppress(ClientError):
            write(**request)
        raise ConnectionClosedError(endpoint_url="http://lost")

    batch = [world.record("item123", 10), world.record("item312", 20)]

    first = world.deliver(batch, client=ClientWith(world.client, loses_every_answer), time_is_up=lambda: calls >= 5)
    second = world.deliver(batch)

    assert set(first.outcomes) == {RETRIED}
    assert set(second.outcomes) == {DUPLICATE}
    assert (world.quantity("item123"), world.quantity("item312")) == (10, 20)


def test_crash_before_the_call__counts_on_redelivery(world: World) -> None:
    class CrashError(Exception):
        pass

    def crashes(write: Call, request: dict[str, Any]) -> Any:
        raise CrashError

    batch = [world.record("item123", 10)]

    with pytest.raises(CrashError):
        world.deliver(batch, client=ClientWith(world.client, crashes))
    result = world.deliver(batch)

    assert result.outcomes == (APPLIED,)
    assert world.quantity("item123") == 10


def test_500_records_of_one_second__are_on_pages_of_one_row(world: World) -> None:
    batch = [world.record("item123", number) for number in range(1, 501)]

    first = world.deliver(batch)
    second = world.deliver(batch)

    assert set(first.outcomes) == {APPLIED}
    assert set(second.outcomes) == {DUPLICATE}
    assert first.commit.writes == {Archive: 1}
    assert not second.commit.writes
    assert world.quantity("item123") == sum(range(1, 501))
    assert [len(receipts) for receipts in world.receipts().values()] == [500]
    assert_pages_are_small(world)


def test_late_records__come_to_the_pages_of_their_positions(world: World) -> None:
    batch = [world.record("item123", 1, created_at=1_789_651_658 + number) for number in range(60)]

    world.deliver(batch[1::2])
    result = world.deliver(batch[::2])
    again = world.deliver(batch, client=ClientWith(world.client, writes_nothing))

    assert set(result.outcomes) == {APPLIED}
    assert result.commit.writes[Late] == 1
    assert set(again.outcomes) == {DUPLICATE}
    assert world.quantity("item123") == 60


def test_lone_records__are_added_and_now_and_then_archived(world: World) -> None:
    writes: Counter[Any] = Counter()

    for number in range(60):
        writes += world.deliver([world.record("item123", 1, created_at=1_789_651_658 + number)]).commit.writes

    assert writes[Add] >= 50
    assert 1 <= writes[Archive] <= 10
    row = next(iter(scan(world.client, world.definitions.aggregations[0].table)))
    assert item_size(row) <= ROW_STEP
    assert world.quantity("item123") == 60


@pytest.mark.parametrize("batch_size", [10, 100, 1000])
@pytest.mark.long
def test_records_of_one_aggregate_and_second__all_count(world: World, batch_size: int) -> None:
    assert_all_count(world, size(1_000, long=50_000), batch_size)


@pytest.mark.only_long
@pytest.mark.parametrize("batch_size", [100, 1000])
def test_records_of_one_aggregate_and_second__all_count_on_ministack(ministack: Ministack, batch_size: int) -> None:
    with a_world(ministack.client("dynamodb")) as world:
        assert_all_count(world, 5_000, batch_size)


def assert_all_count(world: World, records: int, batch_size: int) -> None:
    """Delivers records of one second in batches, and sees them all counted, on small pages."""
    batch = [world.record("item123", 1) for _ in range(records)]

    outcomes: Counter[RecordOutcome] = Counter()
    for start in range(0, records, batch_size):
        outcomes.update(world.deliver(batch[start : start + batch_size]).outcomes)

    assert outcomes == {APPLIED: records}
    assert world.quantity("item123") == records
    assert [len(receipts) for receipts in world.receipts().values()] == [records]
    assert_pages_are_small(world)
    again = world.deliver(batch[:batch_size], client=ClientWith(world.client, writes_nothing))
    assert set(again.outcomes) == {DUPLICATE}


def assert_pages_are_small(world: World) -> None:
    """No page has outgrown its few kilobytes."""
    for pages in world.pages().values():
        assert max(len(page.packed) for page in pages) <= MAX_PAGE_BYTES
        assert max(len(page.receipts()) for page in pages) <= MAX_PAGE_RECEIPTS


def test_1000_records_over_1000_aggregates__each_counted_once(world: World) -> None:
    batch = [world.record(f"item{number}", number + 1) for number in range(1000)]

    first = world.deliver(batch)
    second = world.deliver(batch[500:] + batch[:500])

    assert set(first.outcomes) == {APPLIED}
    assert first.commit.writes == {Add: 1000}
    assert not second.commit.writes
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


def test_group_key_too_long_for_dynamodb__is_told_of(world: World) -> None:
    result = world.deliver([world.record("x" * 2049, 10), world.record("item123", 1)])

    assert result.outcomes == (NOTICED, APPLIED)
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

    def conflicts_once(write: Call, request: dict[str, Any]) -> Any:
        key = str(request["Key"])
        if key not in refused:
            refused.add(key)
            raise ClientError({"Error": {"Code": "TransactionConflictException", "Message": "conflict"}}, "UpdateItem")
        return write(**request)

    batch = [world.record(f"item{number % 10}", 1) for number in range(100)]

    result = world.deliver(batch, client=ClientWith(world.client, conflicts_once))

    assert set(result.outcomes) == {APPLIED}
    assert result.commit.conflicts == len(refused) == 10
    assert world.quantity("item0") == 10


def test_missing_target_table__raises_and_nothing_is_lost(world: World) -> None:
    def no_table(write: Call, request: dict[str, Any]) -> Any:
        return write(**request | {"TableName": "no-such-table"})

    batch = [world.record("item123", 10)]

    with pytest.raises(Exception, match="ResourceNotFound"):
        world.deliver(batch, client=ClientWith(world.client, no_table))
    result = world.deliver(batch)

    assert result.outcomes == (APPLIED,)


def test_deadline_within_a_batch__leaves_the_rest_to_redelivery(world: World) -> None:
    calls = 0

    def counted(write: Call, request: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        return write(**request)

    batch = [world.record(f"item{number}", 1) for number in range(1000)]

    first = world.deliver(batch, client=ClientWith(world.client, counted), time_is_up=lambda: calls >= 3)
    second = world.deliver(batch)

    assert set(first.outcomes) == {APPLIED, RETRIED}
    assert 3 <= calls <= 2 + MAX_IN_FLIGHT
    assert second.outcomes.count(DUPLICATE) >= first.outcomes.count(APPLIED)
    assert len(world.totals()) == 1000
    assert sum(amounts[0] for amounts in world.totals().values()) == 1000

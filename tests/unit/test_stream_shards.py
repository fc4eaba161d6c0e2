"""How a stream's shards are found and read."""

import logging
import time
from typing import Any

import pytest

from aggregation_worker.streams.shards import (
    IncompleteDescriptionError,
    Shard,
    StartingPosition,
    StreamDisabledError,
    StreamShards,
    TrimmedError,
)
from tests.stream_fakes import STREAM_ARN, FakeShard, FakeStreamsClient, get_records_record


def shards_of(client: FakeStreamsClient, start: StartingPosition = "TRIM_HORIZON") -> StreamShards:
    typed: Any = client
    return StreamShards(typed, STREAM_ARN, start)


def ids(shards: StreamShards) -> list[str]:
    return [shard.shard_id for shard in shards.readable()]


def read_numbers(shard: Shard, limit: int = 1000) -> list[int]:
    return [int(record["dynamodb"]["SequenceNumber"]) for record in shard.read(limit)]


def test_description_of_several_pages__every_shard_is_found() -> None:
    client = FakeStreamsClient(*(FakeShard(f"shard-{number}") for number in range(5)), shards_per_page=2)

    assert ids(shards_of(client)) == [f"shard-{number}" for number in range(5)]


def test_children__readable_only_after_their_parent_is_finished() -> None:
    client = FakeStreamsClient(
        FakeShard("child-1", "parent"), FakeShard("child-2", "parent"), FakeShard("parent", closed=True)
    )
    shards = shards_of(client)
    (parent,) = shards.readable()
    assert parent.shard_id == "parent"

    shards.finish(parent)

    assert ids(shards) == ["child-1", "child-2"]


def test_one_parent_of_two_finished__its_child_is_readable() -> None:
    client = FakeStreamsClient(
        FakeShard("parent-1", closed=True), FakeShard("parent-2"), FakeShard("child", "parent-1")
    )
    shards = shards_of(client)

    shards.finish(shards.readable()[0])

    assert ids(shards) == ["parent-2", "child"]


def test_parent_no_longer_listed__child_is_readable() -> None:
    assert ids(shards_of(FakeStreamsClient(FakeShard("child", "trimmed away")))) == ["child"]


def test_finished_shard__is_not_read_again() -> None:
    client = FakeStreamsClient(FakeShard("only", closed=True))
    shards = shards_of(client)

    shards.finish(shards.readable()[0])

    assert ids(shards) == []


def test_shards_known__description_is_not_asked_for_each_round() -> None:
    client = FakeStreamsClient(FakeShard("only"))
    shards = shards_of(client)

    for _ in range(10):
        shards.readable()

    assert client.describe_calls == 1


def test_stream_without_shards__first_one_is_found_when_it_comes() -> None:
    client = FakeStreamsClient()
    shards = shards_of(client)
    assert ids(shards) == []

    client.add(FakeShard("first"))

    assert ids(shards) == ["first"]


def test_trim_horizon__begins_with_the_oldest_record() -> None:
    client = FakeStreamsClient(FakeShard("only").put(get_records_record(1), get_records_record(2)))

    assert read_numbers(shards_of(client).readable()[0]) == [1, 2]


def test_latest__skips_what_was_there_and_closed_shards() -> None:
    open_shard = FakeShard("open", "closed").put(get_records_record(2))
    client = FakeStreamsClient(FakeShard("closed", closed=True).put(get_records_record(1)), open_shard)
    (shard,) = shards_of(client, "LATEST").readable()

    assert read_numbers(shard) == []
    open_shard.put(get_records_record(3))
    assert read_numbers(shard) == [3]


def test_latest__later_shard_is_read_from_its_beginning() -> None:
    parent = FakeShard("parent")
    client = FakeStreamsClient(parent)
    shards = shards_of(client, "LATEST")
    (shard,) = shards.readable()
    parent.closed = True
    client.add(FakeShard("child", "parent").put(get_records_record(1)))
    assert read_numbers(shard) == []

    shards.finish(shard)

    assert read_numbers(shards.readable()[0]) == [1]


def test_pages__read_one_after_the_other_up_to_the_limit() -> None:
    client = FakeStreamsClient(FakeShard("only").put(*(get_records_record(number) for number in range(1, 6))))
    (shard,) = shards_of(client).readable()

    assert [read_numbers(shard, 2) for _ in range(4)] == [[1, 2], [3, 4], [5], []]
    assert not shard.exhausted


@pytest.mark.parametrize(("asked", "limit"), [(0, 1), (1000, 1000), (10_000, 1000)])
def test_limit__kept_within_that_of_the_api(asked: int, limit: int) -> None:
    client = FakeStreamsClient(FakeShard("only"))
    (shard,) = shards_of(client).readable()

    shard.read(asked)

    assert client.limits == [limit]


def test_closed_shard__exhausted_after_its_last_page() -> None:
    client = FakeStreamsClient(FakeShard("only", closed=True).put(get_records_record(1), get_records_record(2)))
    (shard,) = shards_of(client).readable()

    assert (read_numbers(shard, 1), shard.exhausted) == ([1], False)
    assert (read_numbers(shard, 1), shard.exhausted) == ([2], True)
    assert read_numbers(shard) == []


def test_iterator_expired__reading_continues_after_the_last_record() -> None:
    client = FakeStreamsClient(FakeShard("only").put(get_records_record(1), get_records_record(2)))
    (shard,) = shards_of(client).readable()
    assert read_numbers(shard, 1) == [1]

    client.expire_iterators()

    assert read_numbers(shard) == []
    assert read_numbers(shard) == [2]
    assert client.iterator_requests[-1] == ("only", "AFTER_SEQUENCE_NUMBER")


def test_iterator_expired_before_any_record__start_is_asked_for_again() -> None:
    client = FakeStreamsClient(FakeShard("only").put(get_records_record(1)))
    (shard,) = shards_of(client).readable()

    client.expire_iterators()

    assert (read_numbers(shard), read_numbers(shard)) == ([], [1])


@pytest.mark.parametrize("expired", [True, False])
def test_unread_records_trimmed__reading_continues_with_the_oldest(
    expired: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source = FakeShard("only").put(*(get_records_record(number) for number in range(1, 6)))
    client = FakeStreamsClient(source)
    (shard,) = shards_of(client).readable()
    assert read_numbers(shard, 1) == [1]

    source.trimmed = 3
    if expired:
        client.expire_iterators()

    with caplog.at_level(logging.WARNING):
        assert (read_numbers(shard), read_numbers(shard)) == ([], [4, 5])
    assert "records that were not read yet have left the stream" in caplog.text


def strict_shards_of(client: FakeStreamsClient, start: StartingPosition = "TRIM_HORIZON") -> StreamShards:
    typed: Any = client
    return StreamShards(typed, STREAM_ARN, start, refuse_trimmed=True)


@pytest.mark.parametrize("expired", [True, False])
def test_unread_records_trimmed__refused_where_none_may_be_missed(expired: bool) -> None:
    source = FakeShard("only").put(*(get_records_record(number) for number in range(1, 6)))
    client = FakeStreamsClient(source)
    (shard,) = strict_shards_of(client).readable()
    assert read_numbers(shard, 1) == [1]

    source.trimmed = 3
    if expired:
        client.expire_iterators()

    with pytest.raises(TrimmedError, match="only"):
        read_numbers(shard)


def test_trimmed_before_the_first_answer__horizon_is_the_oldest_left() -> None:
    source = FakeShard("only").put(*(get_records_record(number) for number in range(1, 6)))
    (shard,) = strict_shards_of(FakeStreamsClient(source)).readable()

    source.trimmed = 3

    assert (read_numbers(shard), read_numbers(shard)) == ([], [4, 5])


def test_child_trimmed_before_its_first_answer__refused() -> None:
    child = FakeShard("child", "parent").put(get_records_record(1), get_records_record(2))
    client = FakeStreamsClient(FakeShard("parent", closed=True), child)
    shards = strict_shards_of(client)
    shards.finish(shards.readable()[0])
    (shard,) = shards.readable()

    child.trimmed = 1

    with pytest.raises(TrimmedError):
        read_numbers(shard)


def test_latest_expired_before_any_record__refused() -> None:
    client = FakeStreamsClient(FakeShard("only"))
    (shard,) = strict_shards_of(client, "LATEST").readable()
    assert read_numbers(shard) == []

    client.expire_iterators()

    with pytest.raises(TrimmedError, match="its position is lost"):
        read_numbers(shard)


def test_latest_expired_after_a_record__reading_continues_there() -> None:
    source = FakeShard("only")
    client = FakeStreamsClient(source)
    (shard,) = strict_shards_of(client, "LATEST").readable()
    source.put(get_records_record(1))
    assert read_numbers(shard) == [1]
    source.put(get_records_record(2))

    client.expire_iterators()

    assert (read_numbers(shard), read_numbers(shard)) == ([], [2])


def test_shard_gone_before_it_was_read__refused() -> None:
    client = FakeStreamsClient(FakeShard("parent"), FakeShard("child", "parent", closed=True))
    shards = strict_shards_of(client)
    assert ids(shards) == ["parent"]

    del client.shards["child"]

    with pytest.raises(TrimmedError, match="child"):
        shards.readable(describe=True)


def test_parent_listed_later_than_its_child__child_waits_for_it() -> None:
    client = FakeStreamsClient(FakeShard("root"))
    shards = strict_shards_of(client)
    assert ids(shards) == ["root"]

    client.add(FakeShard("grandchild", "child"))

    assert [shard.shard_id for shard in shards.readable(describe=True)] == ["root"]
    assert shards.successors_known_at is None
    client.add(FakeShard("child", "root"))
    root = shards.readable(describe=True)[0]
    shards.finish(root)
    (child,) = shards.readable()
    shards.finish(child)
    assert ids(shards) == ["grandchild"]


def test_parent_listed_after_its_child_was_read__refused() -> None:
    client = FakeStreamsClient(FakeShard("child", "parent"))
    shards = strict_shards_of(client)
    assert ids(shards) == ["child"]

    client.add(FakeShard("parent", closed=True))

    with pytest.raises(IncompleteDescriptionError, match="parent"):
        shards.readable(describe=True)


def test_successors__known_once_every_closed_shard_has_one() -> None:
    client = FakeStreamsClient(FakeShard("closed", closed=True), status="ENABLED")
    shards = strict_shards_of(client)
    shards.readable()
    assert shards.successors_known_at is None

    client.add(FakeShard("next", "closed"))
    before = time.monotonic()
    shards.readable(describe=True)

    assert shards.successors_known_at is not None
    assert before <= shards.successors_known_at <= time.monotonic()


def test_successors_of_a_finished_shard__unknown_until_described() -> None:
    client = FakeStreamsClient(FakeShard("closed", closed=True), FakeShard("next", "closed"), status="ENABLED")
    shards = strict_shards_of(client)
    (closed,) = shards.readable()
    assert shards.successors_known_at is not None

    shards.finish(closed)

    assert shards.successors_known_at is None
    assert ids(shards) == ["next"]
    assert shards.successors_known_at is not None


@pytest.mark.parametrize("status", ["DISABLING", "DISABLED"])
def test_disabled_stream__refused_where_none_may_be_missed(status: str) -> None:
    client = FakeStreamsClient(FakeShard("only").put(get_records_record(1)))
    strict, lenient = strict_shards_of(client), shards_of(client)
    strict.readable()

    client.status = status

    with pytest.raises(StreamDisabledError, match="is disabled"):
        strict.readable(describe=True)
    assert ids(lenient) == ["only"]

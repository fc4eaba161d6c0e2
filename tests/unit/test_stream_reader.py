"""How a whole stream is followed, and when a moment counts as passed."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from unittest.mock import patch

import pytest
from freezegun import freeze_time

from aggregation_worker.streams import reader as stream_reader
from aggregation_worker.streams import shards as stream_shards
from aggregation_worker.streams.reader import HistoryLostError, StreamReader, stream_began
from aggregation_worker.streams.shards import StartingPosition, StreamDisabledError, TrimmedError
from tests.busy_source import Clock
from tests.stream_fakes import STREAM_ARN, FakeShard, FakeStreamsClient, get_records_record

LAG = 10.0
EMPTY_PAGES = 3
NOW = 1_721_036_400.0


class TellingTheTime(FakeStreamsClient):
    """A client whose answers have the service's own time, `ahead` seconds before this machine's."""

    clock: Clock
    ahead = 0.0

    def get_records(self, **request: Any) -> dict[str, Any]:
        date = format_datetime(datetime.fromtimestamp(self.clock.now + self.ahead, UTC), usegmt=True)
        return super().get_records(**request) | {"ResponseMetadata": {"HTTPHeaders": {"date": date}}}


@contextmanager
def a_clock() -> Iterator[Clock]:
    clock = Clock(NOW)
    with patch.object(stream_reader, "time", clock), patch.object(stream_shards, "time", clock):
        yield clock


def reader_of(client: FakeStreamsClient, start: StartingPosition = "TRIM_HORIZON") -> StreamReader:
    typed: Any = client
    return StreamReader(typed, STREAM_ARN, start, stream_lag=LAG, empty_pages=EMPTY_PAGES, poll_interval=1.0)


def read(reader: StreamReader) -> list[dict[str, Any]]:
    """One round."""
    return [record for page in reader.pages() for record in page]


def read_numbers(reader: StreamReader) -> list[int]:
    return [int(record["dynamodb"]["SequenceNumber"]) for record in read(reader)]


def read_empty_pages(reader: StreamReader, clock: Clock, pages: int) -> None:
    for _ in range(pages):
        assert read(reader) == []
        clock.now += 1


def test_read__gives_records_as_lambda_delivers_them() -> None:
    reader = reader_of(FakeStreamsClient(FakeShard("only").put(get_records_record(1, created_at=NOW))))

    (record,) = read(reader)

    assert record["eventSourceARN"] == STREAM_ARN
    assert record["dynamodb"]["ApproximateCreationDateTime"] == NOW


def test_children__read_after_their_parent() -> None:
    client = FakeStreamsClient(
        FakeShard("child", "parent").put(get_records_record(3), get_records_record(4)),
        FakeShard("parent", closed=True).put(get_records_record(1), get_records_record(2)),
    )
    reader = reader_of(client)

    assert [number for _ in range(4) for number in read_numbers(reader)] == [1, 2, 3, 4]


def test_latest__position_is_fixed_when_it_is_opened() -> None:
    with a_clock() as clock:
        shard = FakeShard("only").put(get_records_record(1))
        reader = reader_of(FakeStreamsClient(shard), "LATEST")

        reader.open()
        shard.put(get_records_record(2))
        clock.now += 1

        assert read_numbers(reader) == [2]


def test_record_met_while_opening__is_in_the_first_round() -> None:
    reader = reader_of(FakeStreamsClient(FakeShard("only").put(*map(get_records_record, range(1, 4)))))
    reader.open()

    assert read_numbers(reader) == [1, 2, 3]


def test_iterator_expires_while_opening__position_is_fixed() -> None:
    class Expiring(FakeStreamsClient):
        def get_records(self, **request: Any) -> dict[str, Any]:
            if not self.limits:
                self.limits.append(0)
                raise self.exceptions.ExpiredIteratorException
            return super().get_records(**request)

    reader = reader_of(Expiring(FakeShard("only").put(get_records_record(1))))

    reader.open()

    assert read_numbers(reader) == [1]


def test_records_trimmed__refused() -> None:
    shard = FakeShard("only").put(*map(get_records_record, range(1, 6)))
    reader = reader_of(FakeStreamsClient(shard, records_per_page=1))
    reader.open()

    shard.trimmed = 3

    with pytest.raises(TrimmedError):
        read(reader)


def test_shard_that_gave_an_empty_page__left_alone_for_a_while() -> None:
    with a_clock() as clock:
        client = FakeStreamsClient(FakeShard("only"))
        reader = reader_of(client)
        reader.open()
        asked = len(client.limits)

        read(reader)
        assert len(client.limits) == asked
        clock.now += 1
        read(reader)

        assert len(client.limits) == asked + 1


def test_quiet_shard__moment_passed_after_several_late_empty_pages() -> None:
    with a_clock() as clock:
        reader = reader_of(FakeStreamsClient(FakeShard("only")))
        reader.open()
        moment = clock.monotonic()

        clock.now += LAG - 0.5
        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, 1)  # too early to prove anything
        read_empty_pages(reader, clock, EMPTY_PAGES - 1)
        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, 1)

        assert reader.has_passed(moment)
        assert not reader.has_passed(clock.monotonic() - LAG)


def test_record_between_empty_pages__they_are_counted_anew() -> None:
    with a_clock() as clock:
        shard = FakeShard("only")
        reader = reader_of(FakeStreamsClient(shard))
        reader.open()
        moment = clock.monotonic()
        clock.now += LAG + 1
        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, EMPTY_PAGES - 1)

        shard.put(get_records_record(1, created_at=NOW - 5))
        assert read_numbers(reader) == [1]

        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, EMPTY_PAGES - 1)
        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, 1)
        assert reader.has_passed(moment)


def test_busy_shard__moment_passed_with_a_record_after_the_lag() -> None:
    with a_clock() as clock:
        shard = FakeShard("only")
        reader = reader_of(FakeStreamsClient(shard))
        reader.open()
        moment = clock.monotonic()
        clock.now += LAG + 3
        assert not reader.has_passed(moment)

        shard.put(get_records_record(1, created_at=NOW + LAG))
        read(reader)
        assert not reader.has_passed(moment)  # whole seconds: it may have been created a second earlier
        shard.put(get_records_record(2, created_at=NOW + LAG + 1))
        read(reader)

        assert reader.has_passed(moment)


def test_wrong_clock_here__creation_times_use_the_services_clock() -> None:
    with a_clock() as clock:
        shard = FakeShard("only")
        client = TellingTheTime(shard)
        client.clock, client.ahead = clock, 300.0
        reader = reader_of(client)
        reader.open()
        moment = clock.monotonic()
        clock.now += LAG + 60
        assert not reader.has_passed(moment)

        shard.put(get_records_record(1, created_at=NOW + 290))  # by the service's clock 10 s before `moment`
        read(reader)

        assert not reader.has_passed(moment)
        shard.put(get_records_record(2, created_at=NOW + 300 + LAG + 2))
        read(reader)
        assert reader.has_passed(moment)


def test_one_of_two_shards_late__moment_not_passed() -> None:
    with a_clock() as clock:
        busy = FakeShard("busy")
        reader = reader_of(FakeStreamsClient(FakeShard("quiet"), busy))
        reader.open()
        moment = clock.monotonic()
        clock.now += LAG + 1
        assert not reader.has_passed(moment)

        for number in range(EMPTY_PAGES + 1):
            busy.put(get_records_record(number + 1, created_at=NOW - 100))
            assert read_numbers(reader) == [number + 1]
            clock.now += 1

        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, EMPTY_PAGES)
        assert reader.has_passed(moment)


def test_shard_closed__moment_passed_when_its_child_is_read() -> None:
    with a_clock() as clock:
        parent = FakeShard("parent")
        client = FakeStreamsClient(parent)
        reader = reader_of(client)
        reader.open()
        moment = clock.monotonic()
        clock.now += LAG + 1
        parent.closed = True

        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, 2 * EMPTY_PAGES)
        assert not reader.has_passed(moment)
        client.add(FakeShard("child", "parent").put(get_records_record(1, created_at=NOW - 1)))

        assert [number for _ in range(2) for number in read_numbers(reader)] == [1]
        assert not reader.has_passed(moment)
        clock.now += 1
        read_empty_pages(reader, clock, EMPTY_PAGES)
        assert reader.has_passed(moment)


def test_description_from_before_the_lag_is_over__does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_shards, "_DESCRIBE_EVERY_SECONDS", 1000.0)
    with a_clock() as clock:
        reader = reader_of(FakeStreamsClient(FakeShard("only")))
        moment = clock.monotonic() - 1
        reader.open()
        clock.now += LAG
        read_empty_pages(reader, clock, EMPTY_PAGES)

        assert not reader.has_passed(moment)
        read_empty_pages(reader, clock, 1)
        assert reader.has_passed(moment)


def test_iterator_that_expired__is_no_empty_page() -> None:
    with a_clock() as clock:
        client = FakeStreamsClient(FakeShard("only").put(get_records_record(1)))
        reader = reader_of(client)
        assert read_numbers(reader) == [1]
        moment = clock.monotonic()
        clock.now += LAG + 1
        assert not reader.has_passed(moment)

        for _ in range(EMPTY_PAGES):
            client.expire_iterators()
            read_empty_pages(reader, clock, 1)

        assert not reader.has_passed(moment)


def test_stream_is_disabled_meanwhile__refused() -> None:
    with a_clock() as clock:
        client = FakeStreamsClient(FakeShard("only"))
        reader = reader_of(client)
        reader.open()
        moment = clock.monotonic()
        clock.now += LAG + 1
        client.status = "DISABLED"

        assert not reader.has_passed(moment)
        with pytest.raises(StreamDisabledError):
            read_empty_pages(reader, clock, EMPTY_PAGES)


def test_record_met_while_opening_not_returned__moment_not_passed() -> None:
    with a_clock() as clock:
        reader = reader_of(FakeStreamsClient(FakeShard("only").put(get_records_record(1, created_at=NOW))))
        reader.open()
        moment = clock.monotonic() - LAG - 5

        assert not reader.has_passed(moment)
        assert read_numbers(reader) == [1]
        assert reader.has_passed(moment)


@freeze_time("2024-07-15T12:00:00Z")
def test_history__complete_until_a_margin_before_its_end() -> None:
    reader = reader_of(FakeStreamsClient())
    now = datetime.now(UTC)

    reader.check_history(now - timedelta(hours=23, minutes=30))

    with pytest.raises(HistoryLostError, match=r"Order_by_item keeps its records for 24 hours.* 23\.5 hours"):
        reader.check_history(now - timedelta(hours=23, minutes=30, seconds=1))


def test_stream_began__is_what_its_label_says() -> None:
    assert stream_began(STREAM_ARN) == datetime(2024, 7, 15, tzinfo=UTC)

"""Replaying: whose failure it is, how fast, and what is said to be done."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.operations.letters import Letter
from aggregation_worker.operations.queue import Message
from aggregation_worker.operations.replaying import MAX_EVENT_RECORDS, Replay, SendError
from aggregation_worker.operations.selection import Selection
from tests.held_letters import HeldInOrder
from tests.records import insert

Fails = Callable[[list[int]], None]


class World:
    """Letters of one record each, by number, and a worker that notes what it is sent, and when."""

    def __init__(self, letters: int, fails: Fails = lambda _: None, **options: Any) -> None:
        self.left = {str(number): "" for number in range(letters)}
        self.records = {str(number): [insert(sequence_number=number + 1)] for number in range(letters)}
        self.sent: list[tuple[float, list[int]]] = []
        self.outcomes: dict[int, RecordOutcome] = {}
        self.fails = fails
        self.time = 0.0
        resources: Any = SimpleNamespace()
        held = HeldInOrder(self.left, self.left.pop)
        self.replay = Replay(
            resources, held, self._read, Selection(), self._send, clock=lambda: self.time, sleep=self._sleep, **options
        )
        self.replay.run()

    @property
    def summary(self) -> Any:
        return self.replay.summary

    def _read(self, message: Message) -> Letter:
        return Letter(message, "parked record", ("why",), tuple(self.records[message.message_id]))

    def _sleep(self, seconds: float) -> None:
        self.time += seconds

    def _send(self, records: Sequence[Any]) -> list[RecordOutcome]:
        numbers = [int(record["dynamodb"]["SequenceNumber"]) - 1 for record in records]
        self.sent.append((self.time, numbers))
        self.fails(numbers)
        return [self.outcomes.get(number, RecordOutcome.APPLIED) for number in numbers]


def raising(*guilty: int, raised: str | None) -> Fails:
    """A worker that fails whenever it is sent one of some records; always, if there are none."""

    def fails(numbers: list[int]) -> None:
        if not guilty or set(guilty) & set(numbers):
            raise SendError("as a whole", raised)

    return fails


@pytest.mark.parametrize("raised", ["UnexpectedEventError", "StreamViewTypeError", "RuntimeError", "Sandbox.Timedout"])
def test_letters_that_fail_the_worker__block_no_other(raised: str) -> None:
    guilty = [*range(12), 700]

    world = World(1_000, raising(*guilty, raised=raised))

    assert sorted(map(int, world.left)) == guilty
    assert world.summary.done == 1_000 - len(guilty)
    assert world.summary.ended_by is None
    assert [one.why for one in world.summary.left] == [f"record {number + 1}: as a whole" for number in guilty]


def test_one_guilty_letter__is_found_by_halving() -> None:
    world = World(500, raising(77, raised="UnexpectedEventError"))

    assert len(world.sent) < 25


@pytest.mark.parametrize("raised", [None, "CommitError", "ClientError", "Runtime.ImportModuleError"])
def test_function_at_fault__ends_the_replay_and_keeps_all(raised: str | None) -> None:
    world = World(1_000, raising(raised=raised))

    assert len(world.left) == 1_000
    assert "5 invocations in a row failed, the last with: as a whole" in world.summary.ended_by
    assert len(world.sent) <= 10


def test_function_that_fails_for_a_moment__costs_no_letter() -> None:
    failures = iter(range(4))

    def fails(_: list[int]) -> None:
        if next(failures, None) is not None:
            raise SendError("throttled")

    world = World(40, fails)

    assert (world.left, world.summary.done, world.summary.ended_by) == ({}, 40, None)


@pytest.mark.parametrize("rate", [0.5, 1.0, 7.0, 100.0, 2_000.0])
def test_rate__is_kept_evenly(rate: float) -> None:
    world = World(60 if rate < 10 else 3_000, rate=rate)

    for moment, _ in world.sent:
        within = sum(len(numbers) for at, numbers in world.sent if moment <= at < moment + 1)
        assert within <= max(1.0, rate)
    assert world.time <= len(world.records) / rate
    assert world.left == {}


def test_letter__is_deleted_as_soon_as_its_records_are_done() -> None:
    """At a rate, too: the rest of its portion can take minutes."""
    left: list[int] = []

    class Watched(World):
        def _send(self, records: Sequence[Any]) -> list[RecordOutcome]:
            left.append(len(self.left))
            return super()._send(records)

    Watched(10, rate=1.0)

    assert left == list(range(10, 0, -1))


def test_without_a_rate__events_are_full() -> None:
    assert [len(numbers) for _, numbers in World(1_000).sent] == [MAX_EVENT_RECORDS] * 2


def test_record_parked_again__is_not_said_to_be_done() -> None:
    outcomes = {1: RecordOutcome.PARKED, 2: RecordOutcome.NOTICED, 3: RecordOutcome.RETRIED}

    class Told(World):
        def _send(self, records: Sequence[Any]) -> list[RecordOutcome]:
            self.outcomes = outcomes
            return super()._send(records)

    world = Told(5)

    assert (world.summary.done, world.summary.told_anew, len(world.summary.left)) == (2, 2, 1)
    assert world.left.keys() == {"3"}


def test_ctrl_c__keeps_what_is_done_and_leaves_the_rest() -> None:
    def fails(numbers: list[int]) -> None:
        if 3 in numbers:
            raise KeyboardInterrupt

    world = World(6, fails, rate=1.0)

    assert world.summary.interrupted
    assert (world.summary.done, sorted(world.left)) == (3, ["3", "4", "5"])


def test_letter_of_several_records__counts_its_good_ones() -> None:
    """A failed batch with one record that the worker cannot survive: the others come in, and the letter stays."""
    sent: list[str] = []

    def send(records: list[Any]) -> list[RecordOutcome]:
        numbers = [record["dynamodb"]["SequenceNumber"] for record in records]
        if "3" in numbers:
            raise SendError("as a whole", "StreamViewTypeError")
        sent.extend(numbers)
        return [RecordOutcome.APPLIED] * len(records)

    def read(message: Message) -> Letter:
        return Letter(message, "failed batch", ("why",), tuple(insert(sequence_number=n) for n in range(1, 6)))

    left = {"batch": ""}
    resources: Any = SimpleNamespace()
    summary = Replay(resources, HeldInOrder(left, left.pop), read, Selection(), send).run()

    assert (sent, left) == (["1", "2", "4", "5"], {"batch": ""})
    assert [one.why for one in summary.left] == ["record 3: as a whole"]

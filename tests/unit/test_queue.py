"""Messages held while a command works: received side by side, kept, given back, and no more memory than handles."""

import time
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.exceptions import ClientError

from aggregation_worker.operations.queue import HeldMessages, Message
from tests.sizes import size
from tests.slow_queue import SlowQueue


def held_from(queue: Any, **options: Any) -> HeldMessages:
    return HeldMessages(queue, "queue", **options)


def names(pages: Iterator[list[Message]]) -> list[str]:
    return [message.message_id for page in pages for message in page]


def now() -> datetime:
    return datetime.now(UTC)


def test_every_message__is_received_once_and_given_back() -> None:
    queue = SlowQueue([str(number) for number in range(1_234)])

    with held_from(queue) as held:
        received = names(held.receive(now(), lambda message: message))
        while_held = queue.visible()

    assert sorted(received) == sorted(queue.bodies)
    assert (while_held, queue.visible()) == (0, 1_234)
    assert queue.requests["change"] == 124


def test_requests__are_sent_side_by_side() -> None:
    """At the latency of SQS from another region, a queue of this size one request after another takes minutes."""
    letters, latency = size(2_000, long=20_000), 0.02
    queue = SlowQueue([""] * letters, latency)

    began = time.monotonic()
    with held_from(queue) as held:
        received = names(held.receive(now(), lambda message: message))
        held.delete(received[: letters // 2])
    seconds = time.monotonic() - began

    one_by_one = sum(queue.requests.values()) * latency
    assert len(received) == queue.given == letters
    assert len(queue.bodies) == letters // 2
    assert seconds < one_by_one / 3


def test_visibility__is_kept_of_all_while_the_command_works() -> None:
    queue = SlowQueue([""] * 300, latency=0.005)

    with held_from(queue, visibility_timeout=1) as held:
        received = names(held.receive(now(), lambda message: message))
        time.sleep(1.5)
        again = names(held.receive(now(), lambda message: message))
        assert queue.visible() == 0

    assert (len(received), again, queue.given) == (300, [], 300)


def test_queue_that_fills_meanwhile__has_an_end() -> None:
    queue = SlowQueue([""] * 95, arrivals=3)

    with held_from(queue) as held:
        received = names(held.receive(now(), lambda message: message))

    assert sorted(received) == sorted(f"message-{number}" for number in range(95))
    assert queue.visible() == len(queue.bodies) > 95


def test_memory__holds_no_bodies() -> None:
    """A thousand messages of 64 KB."""
    queue = SlowQueue(["x" * 65_536] * 1_000)
    tracemalloc.start()

    with held_from(queue) as held:
        count = sum(len(page) for page in held.receive(now(), lambda message: len(message.body)))
        _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 1_000
    assert peak < 8_000_000  # bytes


def test_message_that_cannot_be_deleted__is_told_and_given_back() -> None:
    queue: Any = SlowQueue([""] * 25)
    delete = queue.delete_message_batch

    def some(*, Entries: Any, **request: Any) -> Any:  # noqa: N803 - boto3's names
        if any(entry["ReceiptHandle"].startswith("message-7/") for entry in Entries):
            raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "DeleteMessageBatch")
        refused = [one for one in Entries if one["ReceiptHandle"].startswith("message-15/")]
        delete(Entries=[one for one in Entries if one not in refused])
        return {"Failed": [{"Id": one["Id"], "Code": "InternalError", "Message": "later"} for one in refused]}

    queue.delete_message_batch = some
    with held_from(queue) as held:
        received = names(held.receive(now(), lambda message: message))
        failed = held.delete(sorted(received))

    assert failed["message-15"] == "later"
    assert "your credentials lack a permission" in failed["message-7"]
    assert failed.keys() == queue.bodies.keys()
    assert queue.visible() == len(failed) == 6


def test_error_of_the_queue__ends_the_reading_and_gives_all_back() -> None:
    queue: Any = SlowQueue([""] * 500)
    receive = queue.receive_message
    queue.receive_message = lambda **request: receive(**request) if queue.requests["receive"] < 5 else _refuse()

    with pytest.raises(ClientError), held_from(queue) as held:
        names(held.receive(now(), lambda message: message))

    assert queue.visible() == 500


def _refuse() -> Any:
    raise ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "ReceiveMessage")


def test_reader_that_stops_early__gives_all_back() -> None:
    queue = SlowQueue([""] * 500)

    with held_from(queue) as held:
        pages = held.receive(now(), lambda message: message)
        next(pages)
        pages.close()

    assert queue.visible() == 500

"""All dead letters, as a repair must know them, over a queue in moto."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from moto import mock_aws

from aggregation_worker.dead_letters import Notice, ParkedRecord, message_body
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.operations.all_letters import COUNT_LAG, AllLetters
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.resources import Resources
from aggregation_worker.reconciliation.waiting_letters import WaitingNotice
from tests.records import STREAM_ARN, insert, order
from tests.unit.test_operations import options

STARTED = datetime(2026, 11, 24, 4, 5, 6, tzinfo=UTC)


class Queue:
    """A dead-letter queue, and the command's resources over it."""

    def __init__(self) -> None:
        self.sqs = boto3.client("sqs", region_name="us-east-1")
        self.url = self.sqs.create_queue(QueueName="dead-letters")["QueueUrl"]
        given = options("--region", "us-east-1", "--queue-url", self.url)
        self.resources = Resources(given, {"SOURCE_STREAM_ARN": STREAM_ARN, "AGGREGATIONS_FILE": str(SAMPLE_FILE)})
        self.time = 0.0

    def send(self, *bodies: str) -> None:
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.url, MessageBody=body)

    def visible(self) -> int:
        attributes = self.sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["ApproximateNumberOfMessages"])
        return int(attributes["Attributes"]["ApproximateNumberOfMessages"])

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def letters(self, stack: ExitStack) -> AllLetters:
        return AllLetters(self.resources, stack, wait_seconds=0, clock=lambda: self.time, sleep=self.sleep)

    def read(self, settled: Callable[[WaitingNotice], bool] = lambda _: False) -> tuple[list[Any], list[Notice]]:
        """The records that wait and the notices; deletes those that are settled."""
        with ExitStack() as stack:
            letters = self.letters(stack)
            found = letters.read()
            letters.delete([one.message_id for one in found.notices if settled(one)])
            return list(found.records), [one.notice for one in found.notices]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield Queue()


def parked(record: Any) -> str:
    return message_body(ParkedRecord(record, ("refused",)), STARTED)


def test_letters__are_read_and_stay_in_the_queue(queue: Queue) -> None:
    records = [insert(order(quantity=number)) for number in range(12)]
    queue.send(*map(parked, records), json.dumps({"Event": "s3:TestEvent", "Bucket": "dead-letters"}))
    queue.resources.options.bucket = "dead-letters"

    found, notices = queue.read()

    assert sorted(map(repr, found)) == sorted(map(repr, records))
    assert notices == []
    assert queue.visible() == 13


def test_notices__are_told_from_records_and_deleted_when_settled(queue: Queue) -> None:
    notices = [Notice(insert(order(quantity=number)), ("why",), "sold") for number in range(12)]
    queue.send(*(message_body(notice, STARTED) for notice in notices), parked(insert()))

    records, found = queue.read(lambda one: one.notice.record["dynamodb"]["NewImage"]["quantity"] == {"N": "3"})

    assert len(records) == 1
    assert sorted(map(repr, found)) == sorted(map(repr, notices))
    assert queue.visible() == 12
    assert notices[3] not in queue.read()[1]


def test_letter_that_comes_between_two_readings__is_in_the_second(queue: Queue) -> None:
    queue.send(parked(insert(order(quantity=1))))
    with ExitStack() as stack:
        letters = queue.letters(stack)
        first = len(list(letters.read().records))
        queue.send(parked(insert(order(quantity=2))))
        second = len(list(letters.read().records))

    assert (first, second) == (1, 2)
    assert queue.visible() == 2


def test_letter_that_cannot_be_read__forbids_to_correct(queue: Queue) -> None:
    queue.send(parked(insert()), "rubbish")

    with pytest.raises(CommandError, match=r"nothing was corrected: 1 of 2 dead letters cannot be read.*not JSON"):
        queue.read()
    assert queue.visible() == 2


def test_letter_that_somebody_holds__forbids_to_correct(queue: Queue) -> None:
    queue.send(parked(insert()))
    queue.sqs.receive_message(QueueUrl=queue.url, VisibilityTimeout=600)
    queue.send(parked(insert()))

    with pytest.raises(CommandError, match="has 2 messages, but 1 could be read"):
        queue.read()
    assert queue.time >= 90


def test_letter_that_is_given_back_meanwhile__is_read(queue: Queue) -> None:
    queue.send(parked(insert()))
    (message,) = queue.sqs.receive_message(QueueUrl=queue.url, VisibilityTimeout=600)["Messages"]
    queue.send(parked(insert()))
    sleep = queue.sleep

    def other_one_ends(seconds: float) -> None:
        sleep(seconds)
        if queue.time > 10:
            handle = message["ReceiptHandle"]
            queue.sqs.change_message_visibility(QueueUrl=queue.url, ReceiptHandle=handle, VisibilityTimeout=0)

    queue.sleep = other_one_ends  # type: ignore[method-assign]  # a fake's method

    assert len(queue.read()[0]) == 2
    assert 10 < queue.time < 20


@pytest.mark.parametrize("shown_after", [0.5 * COUNT_LAG, COUNT_LAG - 1])
def test_letter_held_by_a_replay__is_not_missed_while_counts_lag(queue: Queue, shown_after: float) -> None:
    """The counts say 0 at first, though a running replay holds a letter: that is known before anything is corrected."""
    queue.send(parked(insert()))
    queue.sqs.receive_message(QueueUrl=queue.url, VisibilityTimeout=3_600)
    with ExitStack() as stack:
        letters = queue.letters(stack)
        queue.resources._clients["sqs"] = _Lagging(queue, shown_after)
        assert list(letters.read().records) == []  # nothing is corrected yet

        with pytest.raises(CommandError, match="has 1 messages, but 0 could be read"):
            letters.read()


class _Lagging:
    """SQS whose counts do not show for a while what others hold."""

    def __init__(self, queue: Queue, shown_after: float) -> None:
        self.queue = queue
        self.shown_after = shown_after

    def __getattr__(self, name: str) -> Any:
        return getattr(self.queue.sqs, name)

    def get_queue_attributes(self, **request: Any) -> Any:
        answer = self.queue.sqs.get_queue_attributes(**request)
        if self.queue.time < self.shown_after:
            answer["Attributes"] = dict.fromkeys(answer["Attributes"], "0")
        return answer


def test_second_reading__takes_as_long_as_counts_lag(queue: Queue) -> None:
    queue.send(parked(insert()))
    with ExitStack() as stack:
        letters = queue.letters(stack)
        letters.read()
        at_first = queue.time
        letters.read()

    assert (at_first, COUNT_LAG <= queue.time < COUNT_LAG + 5) == (0, True)

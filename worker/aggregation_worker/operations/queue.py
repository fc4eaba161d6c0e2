"""The dead-letter queue as operators use it: messages are received side by side, and held while they are worked on.

A queue can hold 100,000 messages, and a request to SQS moves ten: so requests are sent side by side, and of a held
message only its receipt handle is kept.
"""

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.operations.errors import explain_aws_error

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

# Clocks that differ by less are taken as equal; the Date header has whole seconds.
_CLOCK_TOLERANCE = timedelta(seconds=2)
# SQS takes as many in a request.
_MESSAGES_AT_ONCE = 10
# Together as many as the client has connections (`Resources.client`).
_RECEIVERS, _CHANGERS = 8, 12
# Answers in a row without a message from before the start, after which none is left: a long poll asks every server of
# the queue, and what has been received is out of sight. Without it, a queue that fills meanwhile would have no end.
_MOST_FRUITLESS = 20
# Parts of the visibility timeout: how often is looked for messages that reappear soon, and how soon.
_LOOK_EVERY, _SOON = 0.25, 0.6

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Message:
    """A message of the queue."""

    message_id: str
    body: str
    sent_at: datetime


@dataclass(slots=True)
class _Hold:
    """What keeps a message invisible; `until` by `HeldMessages.clock`."""

    receipt_handle: str
    until: float


@dataclass(slots=True)
class HeldMessages:
    """Receives messages and keeps them invisible to others until each is deleted, or all are given back at the end.

    Their visibility is extended while the command works; should the command be killed, they reappear by themselves
    after `visibility_timeout`.

    Attributes:
        visibility_timeout: seconds that a message stays invisible without an extension.
        wait_seconds: how long SQS waits for a message before it says that there is none; above 0, it asks every server.
    """

    sqs: "SQSClient"
    queue_url: str
    visibility_timeout: int = 120
    wait_seconds: int = 1
    clock: Callable[[], float] = time.monotonic
    _held: dict[str, _Hold] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _closing: threading.Event = field(default_factory=threading.Event)
    _changers: ThreadPoolExecutor = field(init=False)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> "HeldMessages":
        self._changers = ThreadPoolExecutor(_CHANGERS, thread_name_prefix="visibility")
        self._thread = threading.Thread(target=self._extend_until_closed, name="visibility", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._change_visibility({name: hold.receipt_handle for name, hold in self._held.items()}, 0)
        self._changers.shutdown(cancel_futures=True)

    def started_at(self) -> datetime:
        """The queue's time of day: this machine's clock unless it is plainly wrong."""
        answer = self.sqs.get_queue_attributes(QueueUrl=self.queue_url, AttributeNames=["QueueArn"])
        here = datetime.now(UTC)
        header = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
        there = parsedate_to_datetime(header) if header else here
        return here if abs(there - here) < _CLOCK_TOLERANCE else there + timedelta(seconds=1)

    def waiting(self) -> int:
        """About how many messages the queue holds, those that others hold included.

        What is sent or received is in it within a minute ("GetQueueAttributes", Amazon SQS API reference).
        """
        attributes = self.sqs.get_queue_attributes(
            QueueUrl=self.queue_url,
            AttributeNames=[
                "ApproximateNumberOfMessages",
                "ApproximateNumberOfMessagesNotVisible",
                "ApproximateNumberOfMessagesDelayed",
            ],
        )["Attributes"]
        return sum(map(int, attributes.values()))

    def receive(self, sent_before: datetime, read: Callable[[Message], T]) -> Generator[list[T], None, None]:
        """Receives, some at a time, what was in the queue at a moment, until the queue has no more of it to give.

        Args:
            read: makes something of a message, in the thread that has received it.
        """
        fruitless = 0
        with ThreadPoolExecutor(_RECEIVERS, thread_name_prefix="receiver") as executor:
            pending = {executor.submit(self._receive, sent_before, read) for _ in range(_RECEIVERS)}
            try:
                while pending:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    for answer in done:
                        is_empty, new = answer.result()
                        fruitless = 0 if new else fruitless + 1
                        if not is_empty and fruitless < _MOST_FRUITLESS:
                            pending.add(executor.submit(self._receive, sent_before, read))
                        if new:
                            yield new
            finally:
                for answer in pending:
                    answer.cancel()

    def _receive(self, sent_before: datetime, read: Callable[[Message], T]) -> tuple[bool, list[T]]:
        """Whether there was no message, and what was made of those that are new.

        A message sent since, or given twice, is kept out of sight until the end: given back now, it would be received
        again and again.
        """
        until = self.clock() + self.visibility_timeout
        answer = self.sqs.receive_message(
            QueueUrl=self.queue_url,
            MaxNumberOfMessages=_MESSAGES_AT_ONCE,
            VisibilityTimeout=self.visibility_timeout,
            WaitTimeSeconds=self.wait_seconds,
            MessageSystemAttributeNames=["SentTimestamp"],
        ).get("Messages", [])
        new = []
        with self._lock:
            for raw in answer:
                message = _message(raw)
                if message.message_id not in self._held and message.sent_at <= sent_before:
                    new.append(message)
                self._held[message.message_id] = _Hold(raw["ReceiptHandle"], until)
        return not answer, [read(message) for message in new]

    def delete(self, message_ids: Collection[str]) -> dict[str, str]:
        """Removes held messages from the queue for good.

        Returns:
            Why some were not removed, by message id; they stay held.
        """
        with self._lock:
            handles = {name: self._held[name].receipt_handle for name in message_ids}
        failed: dict[str, str] = {}
        for part in self._changers.map(self._delete, _tens(handles)):
            failed |= part
        with self._lock:
            for name in handles.keys() - failed.keys():
                del self._held[name]
        return failed

    def _delete(self, handles: Mapping[str, str]) -> dict[str, str]:
        names = list(handles)
        try:
            answer = self.sqs.delete_message_batch(
                QueueUrl=self.queue_url,
                Entries=[{"Id": str(index), "ReceiptHandle": handles[name]} for index, name in enumerate(names)],
            )
        except (BotoCoreError, ClientError) as error:
            return dict.fromkeys(names, explain_aws_error(error))
        return {names[int(one["Id"])]: one.get("Message", one["Code"]) for one in answer.get("Failed", [])}

    def _extend_until_closed(self) -> None:
        while not self._closing.wait(self.visibility_timeout * _LOOK_EVERY):
            soon = self.clock() + self.visibility_timeout * _SOON
            with self._lock:
                due = {name: hold.receipt_handle for name, hold in self._held.items() if hold.until < soon}
            self._change_visibility(due, self.visibility_timeout)

    def _change_visibility(self, handles: Mapping[str, str], seconds: int) -> None:
        """Best effort: a message whose visibility cannot be changed reappears a little earlier or later."""

        def change(ten: Mapping[str, str]) -> None:
            if seconds and self._closing.is_set():
                return
            until = self.clock() + seconds
            try:
                self.sqs.change_message_visibility_batch(
                    QueueUrl=self.queue_url,
                    Entries=[
                        {"Id": str(index), "ReceiptHandle": handle, "VisibilityTimeout": seconds}
                        for index, handle in enumerate(ten.values())
                    ],
                )
            except (BotoCoreError, ClientError):
                return
            with self._lock:
                for name in ten:
                    if name in self._held:
                        self._held[name].until = until

        for _ in self._changers.map(change, _tens(handles)):
            pass


def _tens(handles: Mapping[str, str]) -> Iterable[dict[str, str]]:
    entries = list(handles.items())
    return (dict(entries[start : start + _MESSAGES_AT_ONCE]) for start in range(0, len(entries), _MESSAGES_AT_ONCE))


def _message(raw: "MessageTypeDef") -> Message:
    milliseconds = int(raw.get("Attributes", {}).get("SentTimestamp", "0"))
    return Message(raw["MessageId"], raw["Body"], datetime.fromtimestamp(milliseconds / 1000, UTC))

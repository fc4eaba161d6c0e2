"""Messages of a dead-letter queue as a replay holds them, without a queue: in one thread, and in a given order."""

from collections.abc import Callable, Collection, Generator, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.operations.queue import HeldMessages, Message

T = TypeVar("T")
STARTED_AT = datetime(2024, 7, 15, 12, tzinfo=UTC)


class HeldInOrder(HeldMessages):
    """As `HeldMessages`.

    Args:
        bodies: by message id.
        remove: called with the id of each message that is deleted; what it raises is why the message stays.
    """

    def __init__(self, bodies: Mapping[str, str], remove: Callable[[str], object]) -> None:
        self.bodies = bodies
        self.remove = remove

    def started_at(self) -> datetime:
        """Long after each message was sent."""
        return STARTED_AT

    def receive(self, sent_before: datetime, read: Callable[[Message], T]) -> Generator[list[T], None, None]:
        """One message after the other."""
        for name, body in list(self.bodies.items()):
            yield [read(Message(name, body, datetime.fromtimestamp(0, UTC)))]

    def delete(self, message_ids: Collection[str]) -> dict[str, str]:
        """One message after the other."""
        failed = {}
        for name in message_ids:
            try:
                self.remove(name)
            except (BotoCoreError, ClientError) as error:
                failed[name] = str(error)
        return failed

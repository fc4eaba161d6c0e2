"""A dead-letter queue in memory with the latency of SQS: visibility, long polls, ten messages a request."""

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from tests.records import insert, order

SENT = "1721036400000"


class SlowQueue:
    """SQS as far as operators use it.

    Args:
        bodies: of the messages that wait.
        latency: seconds of each request.
        arrivals: messages sent after the start that appear with each request.
        waits: seconds of a long poll at most.
    """

    def __init__(self, bodies: Sequence[str], latency: float = 0.0, arrivals: int = 0, waits: float = 0.0) -> None:
        self.bodies = {f"message-{number}": body for number, body in enumerate(bodies)}
        self.latency = latency
        self.arrivals = arrivals
        self.waits = waits
        self.requests = dict.fromkeys(("receive", "change", "delete"), 0)
        self.given = 0
        self._lock = threading.Lock()
        self._visible = deque(self.bodies)
        self._until: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []
        self._handles = itertools.count()
        self._owners: dict[str, str] = {}
        self._later = itertools.count()

    def get_queue_attributes(self, **_: Any) -> dict[str, Any]:
        """The counts, which do not lag."""
        return {"ResponseMetadata": {}, "Attributes": {"ApproximateNumberOfMessages": str(len(self.bodies))}}

    def visible(self) -> int:
        """How many messages others could receive now."""
        with self._lock:
            self._reappear()
            return len(self._visible)

    def receive_message(self, *, VisibilityTimeout: float, WaitTimeSeconds: float, **_: Any) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Ten at most."""
        time.sleep(self.latency)
        with self._lock:
            self.requests["receive"] += 1
            for number in itertools.islice(self._later, self.arrivals):
                self.bodies[f"later-{number}"] = ""
                self._visible.append(f"later-{number}")
            self._reappear()
            names = [self._visible.popleft() for _ in range(min(10, len(self._visible)))]
            messages = []
            for name in names:
                self._hold(name, VisibilityTimeout)
                handle = f"{name}/{next(self._handles)}"
                self._owners[handle] = name
                sent = SENT if name.startswith("message") else str(int(time.time() * 1000) + 10_000)
                messages.append(
                    {
                        "MessageId": name,
                        "ReceiptHandle": handle,
                        "Body": self.bodies[name],
                        "Attributes": {"SentTimestamp": sent},
                    }
                )
            self.given += len(names)
        if not messages:
            time.sleep(min(WaitTimeSeconds, self.waits))
        return {"Messages": messages}

    def change_message_visibility_batch(self, *, Entries: Sequence[Any], **_: Any) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Holds on, or gives back."""
        time.sleep(self.latency)
        assert 1 <= len(Entries) <= 10
        with self._lock:
            self.requests["change"] += 1
            for entry in Entries:
                name = self._owners[entry["ReceiptHandle"]]
                if name in self._until:
                    self._hold(name, entry["VisibilityTimeout"])
        return {}

    def delete_message_batch(self, *, Entries: Sequence[Any], **_: Any) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """For good."""
        time.sleep(self.latency)
        assert 1 <= len(Entries) <= 10
        with self._lock:
            self.requests["delete"] += 1
            for entry in Entries:
                name = self._owners[entry["ReceiptHandle"]]
                self.bodies.pop(name, None)
                self._until.pop(name, None)
        return {}

    def _reappear(self) -> None:
        now = time.monotonic()
        while self._ends and self._ends[0][0] <= now:
            until, name = heapq.heappop(self._ends)
            if self._until.get(name) == until:  # else it was held on to, or deleted
                del self._until[name]
                self._visible.append(name)

    def _hold(self, name: str, seconds: float) -> None:
        self._until[name] = time.monotonic() + seconds
        heapq.heappush(self._ends, (self._until[name], name))

    def send(self, *bodies: str) -> None:
        """More messages."""
        with self._lock:
            for body in bodies:
                name = f"message-{len(self.bodies)}"
                self.bodies[name] = body
                self._visible.append(name)


def parked_bodies(count: int) -> list[str]:
    """Parked records of as many orders."""
    from aggregation_worker.dead_letters import ParkedRecord, message_body
    from tests.dead_letter_fakes import NOW

    return [message_body(ParkedRecord(insert(order(str(number))), ("why",)), NOW) for number in range(count)]

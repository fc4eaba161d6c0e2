"""SQS and S3 as far as parking needs them, in memory, failing as a test says."""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aggregation_worker.dead_letters import DeadLetterQueue

QUEUE_URL = "https://sqs.us-east-1.amazonaws.com/123456789012/dead-letters"
BUCKET = "dead-letters"
NOW = datetime(2024, 7, 15, 9, 40, 0, 999_999, tzinfo=UTC)


@dataclass(slots=True)
class FakeSqs:
    """A queue.

    Attributes:
        requests: the bodies of each request.
        faults: an error for each request to come, or the positions in it of the messages that are refused.
    """

    requests: list[list[str]] = field(default_factory=list)
    faults: deque[Exception | tuple[int, ...]] = field(default_factory=deque)
    taken: list[str] = field(default_factory=list)

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[dict[str, str]]) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Takes the messages that no fault refuses."""
        assert QueueUrl == QUEUE_URL
        assert 1 <= len(Entries) <= 10
        assert len({entry["Id"] for entry in Entries}) == len(Entries)
        assert sum(len(entry["MessageBody"].encode()) for entry in Entries) <= 262_144
        self.requests.append([entry["MessageBody"] for entry in Entries])
        fault = self.faults.popleft() if self.faults else ()
        if isinstance(fault, Exception):
            raise fault
        refused = [entry for position, entry in enumerate(Entries) if position in fault]
        self.taken += [entry["MessageBody"] for entry in Entries if entry not in refused]
        return {"Failed": [{"Id": entry["Id"], "Code": "InternalError"} for entry in refused]} if refused else {}

    def letters(self) -> list[Any]:
        """The messages in the queue."""
        return [json.loads(body) for body in self.taken]


@dataclass(slots=True)
class FakeS3:
    """A bucket; `fault` is raised for every object."""

    objects: dict[str, bytes] = field(default_factory=dict)
    fault: Exception | None = None

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> None:  # noqa: N803 - boto3's names
        """Stores an object."""
        assert (Bucket, ContentType) == (BUCKET, "application/json")
        if self.fault is not None:
            raise self.fault
        self.objects[Key] = Body


@dataclass(slots=True)
class ParkingPlace:
    """A dead-letter queue over fakes."""

    sqs: FakeSqs = field(default_factory=FakeSqs)
    s3: FakeS3 = field(default_factory=FakeS3)
    clients_made: list[str] = field(default_factory=list)

    def queue(self) -> DeadLetterQueue:
        """The worker's own, over them."""
        return DeadLetterQueue(QUEUE_URL, BUCKET, self._sqs, self._s3, now=lambda: NOW)

    def _sqs(self) -> Any:
        self.clients_made.append("sqs")
        return self.sqs

    def _s3(self) -> Any:
        self.clients_made.append("s3")
        return self.s3

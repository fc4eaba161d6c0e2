"""How polled records become batches: lanes that keep each item's order, batch size, batching window, payload limit.

Source: "Polling and batching streams", AWS Lambda developer guide. Does no I/O and reads no clock.
"""

import json
import zlib
from collections import deque
from collections.abc import Mapping
from itertools import islice
from typing import Any

from aggregation_worker.deployment.settings import MappingSettings
from aggregation_worker.local.delivery import Batch, PolledRecord

# Largest payload of a synchronous invocation ("Lambda quotas").
MAX_PAYLOAD_BYTES = 6 * 1024 * 1024
_ENVELOPE_BYTES = len('{"Records":[]}')
_COMMA_BYTES = 1


def lane_of(record: Mapping[str, Any], lanes: int) -> int:
    """Which of `lanes` a Lambda event record belongs to: always the same one for the same item."""
    keys = json.dumps(record["dynamodb"].get("Keys"), sort_keys=True)
    return zlib.crc32(keys.encode()) % lanes


class Lane:
    """Records of one shard that wait for delivery one batch after the other.

    Args:
        settings: the mapping's.
        max_payload_bytes: where a batch ends whatever its number of records.
    """

    def __init__(self, settings: MappingSettings, max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> None:
        self._settings = settings
        self._max_payload_bytes = max_payload_bytes
        self._waiting: deque[PolledRecord] = deque()
        self._waiting_since = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: PolledRecord, now: float) -> None:
        """Puts a record at the end. `now` is in seconds of any clock that does not jump."""
        if not self._waiting:
            self._waiting_since = now
        self._waiting.append(record)

    def take(self, now: float) -> Batch | None:
        """The next batch, if it is full or its window is over, else `None`."""
        count = self._next_batch_count()
        is_full = count == self._settings.batch_size or count < len(self._waiting)
        window_is_over = now - self._waiting_since >= self._settings.maximum_batching_window_seconds
        if not count or not (is_full or window_is_over):
            return None
        batch = tuple(self._waiting.popleft() for _ in range(count))
        self._waiting_since = now
        return batch

    def _next_batch_count(self) -> int:
        """How many waiting records fit into one batch: at least one, if there is any."""
        payload_bytes = _ENVELOPE_BYTES - _COMMA_BYTES
        count = 0
        for record in islice(self._waiting, self._settings.batch_size):
            payload_bytes += record.size_bytes + _COMMA_BYTES
            if count and payload_bytes > self._max_payload_bytes:
                break
            count += 1
        return count

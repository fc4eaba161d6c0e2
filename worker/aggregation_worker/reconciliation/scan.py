"""Items from a parallel scan of the table."""

import base64
import json
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from aggregation_worker.aws_errors import THROTTLED, code_of
from aggregation_worker.reconciliation.items import PAGE_ITEMS, ItemPage, Pages, Pause, read_ahead
from aggregation_worker.streams.records import Image, from_get_records

if TYPE_CHECKING:
    from datetime import datetime

    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import ScanInputTypeDef

# Parts of the table that are read side by side, unless somebody wants another number.
SEGMENTS = 4
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_BINARY_OR_NESTED = frozenset(("B", "BS", "M", "L"))
_UNPARSED = "UnparsedItems"


class _Rate:
    """Keeps several readers together below a rate of read units per second.

    What a page costs is known when it has come, so a page is paid for by the pause before the next one.
    """

    def __init__(self, units_per_second: float | None) -> None:
        self._units_per_second = units_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait(self, pause: Pause) -> None:
        """Waits until what has been spent is paid for."""
        while self._units_per_second is not None:
            with self._lock:
                seconds = self._free_at - time.monotonic()
            if seconds <= 0:
                return
            pause(seconds)

    def spend(self, units: float) -> None:
        """Takes note of what a page has cost."""
        if self._units_per_second is not None:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic() - 1) + units / self._units_per_second


class ScanSource:
    """A parallel scan of a table, strongly consistent.

    It is not a point in time: an item is read as it is when its page is.

    Args:
        client: boto3's `dynamodb` client.
        table: the table's name.
        segments: parts that are read side by side, each by a thread.
        rate: read units a second that it may take; `None` for all it can get.

    Raises:
        botocore.exceptions.ClientError: there is no such table.
    """

    def __init__(
        self,
        client: "DynamoDBClient",
        table: str,
        *,
        segments: int = SEGMENTS,
        rate: float | None = None,
    ) -> None:
        self._client = client
        self._table = table
        self._segments = segments
        self._rate_per_second = rate
        self._rate = _Rate(rate)
        self.description = f"scan of {table}"
        self.estimated_items: int | None = client.describe_table(TableName=table)["Table"].get("ItemCount")
        self.read_at: datetime | None = None
        client.meta.events.register("before-parse.dynamodb.Scan", _keep_unparsed, _UNPARSED)

    def pages(self, resume: Mapping[int, Any]) -> Pages:
        """The pages after `resume`, whose number of segments a resumed scan keeps.

        Raises:
            botocore.exceptions.ClientError: the table cannot be read.
        """
        of = next((position["of"] for position in resume.values()), self._segments)
        positions = {segment: resume.get(segment, {}) for segment in range(of)}
        unread = {number: position.get("after") for number, position in positions.items() if not position.get("done")}
        return read_ahead(
            (partial(self._segment, number, of, after) for number, after in unread.items()), self._segments
        )

    def _segment(self, segment: int, of: int, after: Any, pause: Pause) -> Iterator[ItemPage]:
        request: ScanInputTypeDef = {
            "TableName": self._table,
            "ConsistentRead": True,
            "ReturnConsumedCapacity": "TOTAL",
            "Segment": segment,
            "TotalSegments": of,
            "Limit": PAGE_ITEMS,
        }
        if after is not None:
            request["ExclusiveStartKey"] = read_key(after)
        while True:
            self._rate.wait(pause)
            answer = self._scan(request, pause)
            units = answer.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
            self._rate.spend(units)
            last = answer.get("LastEvaluatedKey")
            items = answer.get(_UNPARSED)
            if items is None:
                items = [as_delivered(item) for item in answer["Items"]]
            yield ItemPage(
                segment, items, {"of": of} | ({"done": True} if last is None else {"after": as_delivered(last)})
            )
            if last is None:
                return
            request["ExclusiveStartKey"] = last
            request["Limit"] = self._next_limit(units, answer["ScannedCount"], of)

    def _next_limit(self, units: float, items: int, segments: int) -> int:
        """As many items as a second's share of the rate pays for: one page must not take all the table can give."""
        if self._rate_per_second is None or not units or not items:
            return PAGE_ITEMS
        return max(1, min(PAGE_ITEMS, int(self._rate_per_second / segments / (units / items))))

    def _scan(self, request: "ScanInputTypeDef", pause: Pause) -> Any:
        _this_thread.keeps_unparsed = True
        seconds = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._client.scan(**request)
            except ClientError as error:
                if code_of(error) not in THROTTLED:
                    raise
            pause(seconds)
            seconds = min(2 * seconds, _LONGEST_PAUSE_SECONDS)


# Set in the threads that scan: other scans with the same client give items as always.
_this_thread = threading.local()


def _keep_unparsed(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Takes the items out of an answer before botocore parses it.

    Its parser spends five times as long on an item as reading the JSON does, and all it changes is to decode binary
    values, which the stream delivers as they are in the JSON.
    """
    if response_dict["status_code"] == HTTPStatus.OK and getattr(_this_thread, "keeps_unparsed", False):
        answer = json.loads(response_dict["body"])
        customized_response_dict[_UNPARSED] = answer.pop("Items")
        response_dict["body"] = json.dumps(answer).encode()


def as_delivered(item: Mapping[str, Any]) -> Image:
    """An item as boto3 returns it in the form in which the stream delivers it: binary values are base64 text."""
    for value in item.values():
        for kind in value:
            if kind in _BINARY_OR_NESTED:
                image: Image = from_get_records({"dynamodb": {"NewImage": item}}, "")["dynamodb"]["NewImage"]
                return image
    return item


def read_key(key: Mapping[str, Any]) -> Any:
    """A key as boto3 wants it, binary values as bytes: the inverse of `as_delivered`."""
    return {name: {"B": base64.b64decode(value["B"])} if "B" in value else dict(value) for name, value in key.items()}

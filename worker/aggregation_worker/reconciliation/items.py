"""Where a snapshot's items come from: a parallel scan of the table, or an export of it in S3.

Both read ahead in threads of their own and hand over pages in one loop. Items are in DynamoDB's typed JSON as the
stream delivers them, binary values as base64 text, so that a value and a key have one form wherever they come from.
"""

import base64
import gzip
import hashlib
import io
import json
import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from botocore.exceptions import ClientError

from aggregation_worker.streams.records import Image, from_get_records

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import ScanInputTypeDef
    from mypy_boto3_s3 import S3Client

# A page of 1 MB can hold many thousands of small items, each far larger in memory than on the wire.
_PAGE_ITEMS = 2_000
_EXPORT_READERS = 4
_SUMMARY = "manifest-summary.json"
_HEARTBEAT_SECONDS = 0.1
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 30.0
_THROTTLED = ("ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded")
_BINARY_OR_NESTED = frozenset(("B", "BS", "M", "L"))
_UNPARSED = "UnparsedItems"


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items of one segment, and where the segment goes on behind them.

    Attributes:
        segment: which part of the table; within one, pages come in order.
        items: in DynamoDB's typed JSON, as the stream delivers images.
        position: JSON; `pages` goes on behind it.
        consumed_units: read units that the page cost.
    """

    segment: int
    items: list[Image]
    position: Any
    consumed_units: float = 0.0


class ItemSource(Protocol):
    """All items of a table, each once.

    Attributes:
        description: which table, and how it is read: a run goes on only with the same.
        estimated_items: how many there are, about; `None` if nobody knows.
        read_at: the moment at which the items were as they are read; `None` if that is while `pages` runs.
    """

    @property
    def description(self) -> str: ...
    @property
    def estimated_items(self) -> int | None: ...
    @property
    def read_at(self) -> datetime | None: ...

    def pages(self, resume: Mapping[int, Any]) -> Iterator[ItemPage | None]:
        """The pages behind the positions in `resume`, by segment; `None` where nothing has come for 0.1 s."""
        ...


class _StoppedError(Exception):
    """Ends a reading thread when the consumer has gone."""


class _ReadAhead:
    """Readers in threads, one consumer: at most one page a reader waits beside the one it holds."""

    def __init__(self, readers: Sequence[Callable[["_ReadAhead"], None]]) -> None:
        self._queue: queue.Queue[ItemPage | BaseException | None] = queue.Queue(maxsize=max(1, len(readers)))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(reader,), name=f"item-reader-{number}", daemon=True)
            for number, reader in enumerate(readers)
        ]

    def put(self, page: ItemPage) -> None:
        """Hands over a page; waits while enough are waiting already."""
        self._put(page)

    def pause(self, seconds: float) -> None:
        """Waits; ends the thread if the consumer has gone."""
        if self._stop.wait(seconds):
            raise _StoppedError

    def pages(self) -> Iterator[ItemPage | None]:
        """What the readers hand over, until all have ended.

        Raises:
            Exception: what a reader raised.
        """
        running = len(self._threads)
        for thread in self._threads:
            thread.start()
        try:
            while running:
                try:
                    found = self._queue.get(timeout=_HEARTBEAT_SECONDS)
                except queue.Empty:
                    yield None
                    continue
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    running -= 1
                else:
                    yield found
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()

    def _run(self, reader: Callable[["_ReadAhead"], None]) -> None:
        with suppress(_StoppedError):
            try:
                reader(self)
            except _StoppedError:
                raise
            except BaseException as error:  # the consumer raises it
                self._put(error)
            else:
                self._put(None)

    def _put(self, found: ItemPage | BaseException | None) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                self._queue.put(found, timeout=_HEARTBEAT_SECONDS)
                return
        raise _StoppedError


class _Rate:
    """Keeps several readers together below a rate of read units per second.

    What a page costs is known when it has come, so a page is paid for by the pause before the next one.
    """

    def __init__(self, units_per_second: float | None) -> None:
        self._units_per_second = units_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait(self, pause: Callable[[float], None]) -> None:
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

    It is no point in time: an item is read as it is when its page is.

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
        segments: int = 4,
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

    def pages(self, resume: Mapping[int, Any]) -> Iterator[ItemPage | None]:
        """The pages behind `resume`, whose number of segments a resumed scan keeps.

        Raises:
            botocore.exceptions.ClientError: the table cannot be read.
        """
        segments = next((position["of"] for position in resume.values()), self._segments)
        todo: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for segment in range(segments):
            position = resume.get(segment, {"of": segments})
            if not position.get("done"):
                todo.put((segment, position))

        def read(ahead: _ReadAhead) -> None:
            _this_thread.keeps_unparsed = True
            with suppress(queue.Empty):
                while True:
                    segment, position = todo.get_nowait()
                    self._read_segment(ahead, segment, segments, position.get("after"))

        return _ReadAhead([read] * min(self._segments, max(1, todo.qsize()))).pages()

    def _read_segment(self, ahead: _ReadAhead, segment: int, segments: int, after: Any) -> None:
        request: ScanInputTypeDef = {
            "TableName": self._table,
            "ConsistentRead": True,
            "ReturnConsumedCapacity": "TOTAL",
            "Segment": segment,
            "TotalSegments": segments,
            "Limit": _PAGE_ITEMS,
        }
        if after is not None:
            request["ExclusiveStartKey"] = _read_key(after)
        while True:
            self._rate.wait(ahead.pause)
            answer = self._scan(ahead, request)
            units = answer.get("ConsumedCapacity", {}).get("CapacityUnits", 0.0)
            self._rate.spend(units)
            last = answer.get("LastEvaluatedKey")
            position = {"of": segments} | ({"done": True} if last is None else {"after": _key_json(last)})
            items = answer.get(_UNPARSED)
            if items is None:
                items = [as_delivered(item) for item in answer["Items"]]
            ahead.put(ItemPage(segment, items, position, units))
            if last is None:
                return
            request["ExclusiveStartKey"] = last
            request["Limit"] = self._next_limit(units, answer["ScannedCount"], segments)

    def _next_limit(self, units: float, items: int, segments: int) -> int:
        """As many items as a second's share of the rate pays for: one page must not take all the table can give."""
        if self._rate_per_second is None or not units or not items:
            return _PAGE_ITEMS
        return max(1, min(_PAGE_ITEMS, int(self._rate_per_second / segments / (units / items))))

    def _scan(self, ahead: _ReadAhead, request: "ScanInputTypeDef") -> Any:
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._client.scan(**request)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in _THROTTLED:
                    raise
            ahead.pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


# Set in the threads that scan: other scans with the same client give items as ever.
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


def _key_json(key: Mapping[str, Any]) -> Any:
    return as_delivered(key)


def _read_key(key: Mapping[str, Any]) -> Any:
    """The inverse of `_key_json`: boto3 wants binary values as bytes."""
    return {name: {"B": base64.b64decode(value["B"])} if "B" in value else dict(value) for name, value in key.items()}


class ExportError(Exception):
    """The export cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class _DataFile:
    key: str
    items: int
    checksum: str


class ExportSource:
    """A full export of a table to S3 in DynamoDB JSON.

    Every file is checked against the manifest: how many items it holds, and its MD5. Source: "DynamoDB table export
    output format", Amazon DynamoDB developer guide.

    Args:
        s3: boto3's `s3` client.
        bucket: the export's bucket.
        prefix: the export's folder (the one that holds manifest-summary.json), or one with a single export below it.
        table: the table that it must be an export of.

    Raises:
        ExportError: there is no export, or not one alone, or one of another table, format or kind, or it is incomplete.
        botocore.exceptions.ClientError: it cannot be read.
    """

    def __init__(self, s3: "S3Client", bucket: str, prefix: str, *, table: str) -> None:
        self._s3 = s3
        self._bucket = bucket
        summary_key = _summary_key(s3, bucket, prefix)
        summary = self._json(summary_key)
        where = f"s3://{bucket}/{summary_key}"
        if summary.get("outputFormat") != "DYNAMODB_JSON":
            raise ExportError(f"{where}: the format is {summary.get('outputFormat')}; DYNAMODB_JSON is needed")
        if summary.get("exportType", "FULL_EXPORT") != "FULL_EXPORT":
            raise ExportError(f"{where}: it is an {summary['exportType']}; a FULL_EXPORT is needed")
        exported = str(summary.get("tableArn", "")).rpartition("table/")[2]
        if exported != table:
            raise ExportError(f"{where}: it is an export of table {exported!r}, not {table!r}")
        self.description = f"export {summary.get('exportArn') or where}"
        self.read_at: datetime | None = _moment(summary["exportTime"])
        self._files = self._manifest(summary_key.removesuffix(_SUMMARY))
        self.estimated_items: int | None = int(summary["itemCount"])
        listed = sum(file.items for file in self._files)
        if listed != self.estimated_items:
            raise ExportError(f"{where}: it has {self.estimated_items} items, but its files {listed}: it is incomplete")

    def pages(self, resume: Mapping[int, Any]) -> Iterator[ItemPage | None]:
        """The items behind `resume`; a segment is a file, its position the number of items read from it.

        Raises:
            ExportError: a file does not hold what the manifest says.
            botocore.exceptions.ClientError: a file cannot be read.
        """
        todo: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        for number in range(len(self._files)):
            position = resume.get(number, {"items": 0})
            if not position.get("done"):
                todo.put((number, position["items"]))

        def read(ahead: _ReadAhead) -> None:
            with suppress(queue.Empty):
                while True:
                    number, done = todo.get_nowait()
                    self._read_file(ahead, number, done)

        return _ReadAhead([read] * min(_EXPORT_READERS, max(1, todo.qsize()))).pages()

    def _read_file(self, ahead: _ReadAhead, number: int, done: int) -> None:
        file = self._files[number]
        body = _Checked(self._s3.get_object(Bucket=self._bucket, Key=file.key)["Body"])
        items: list[Image] = []
        count = 0
        try:
            with gzip.open(body) as lines:
                for line in lines:
                    count += 1
                    if count > done:
                        items.append(json.loads(line)["Item"])
                        if len(items) == _PAGE_ITEMS:
                            ahead.put(ItemPage(number, items, {"items": count}))
                            items = []
        except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, KeyError) as error:
            raise ExportError(f"s3://{self._bucket}/{file.key} is damaged: {error}") from error
        if count != file.items:
            raise ExportError(f"s3://{self._bucket}/{file.key} has {count} items; its manifest says {file.items}")
        if body.checksum() != file.checksum:
            raise ExportError(f"s3://{self._bucket}/{file.key} is damaged: its MD5 is not the manifest's")
        ahead.put(ItemPage(number, items, {"items": count, "done": True}))

    def _manifest(self, folder: str) -> list[_DataFile]:
        """The data files, which stand beside the manifest wherever the export was copied to."""
        manifest = self._s3.get_object(Bucket=self._bucket, Key=f"{folder}manifest-files.json")["Body"].read()
        files = [json.loads(line) for line in manifest.decode().splitlines() if line.strip()]
        return [
            _DataFile(
                f"{folder}data/{file['dataFileS3Key'].rpartition('/')[2]}", int(file["itemCount"]), file["md5Checksum"]
            )
            for file in files
        ]

    def _json(self, key: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read())
        return found


class _Checked(io.RawIOBase):
    """A body of S3 as a file, with the MD5 of what was read of it."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self._body = body
        self._md5 = hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._body.read(len(buffer))
        self._md5.update(data)
        buffer[: len(data)] = data
        return len(data)

    def checksum(self) -> str:
        """In base64, as the manifest has it, of the whole file."""
        while data := self._body.read(1 << 16):
            self._md5.update(data)
        return base64.b64encode(self._md5.digest()).decode()


def _summary_key(s3: "S3Client", bucket: str, prefix: str) -> str:
    folder = prefix.strip("/")
    folder = f"{folder}/" if folder else ""
    found = []
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
        keys = [entry["Key"] for entry in page.get("Contents", [])]
        found += [key for key in keys if key.rpartition("/")[2] == _SUMMARY]
    if folder + _SUMMARY in found:
        return folder + _SUMMARY
    if len(found) == 1:
        return found[0]
    if not found:
        raise ExportError(f"there is no finished export under s3://{bucket}/{folder}: no {_SUMMARY}")
    exports = ", ".join(sorted(key.removesuffix(_SUMMARY) for key in found))
    raise ExportError(f"there are several exports under s3://{bucket}/{folder}, name one of them: {exports}")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)

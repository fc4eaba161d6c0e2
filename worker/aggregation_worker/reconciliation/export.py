"""Items from a full export of a table to S3 in DynamoDB JSON.

Every file is checked against the manifest: how many items it holds, and its MD5. Source: "DynamoDB table export output
format", Amazon DynamoDB developer guide.
"""

import base64
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from aggregation_worker.errors import WorkerError
from aggregation_worker.reconciliation.items import PAGE_ITEMS, ItemPage, Pages, Pause, read_ahead

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from aggregation_worker.streams.records import Image

_READERS = 4
_SUMMARY = "manifest-summary.json"


class ExportError(WorkerError):
    """The export cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class _DataFile:
    key: str
    items: int
    checksum: str


class ExportSource:
    """A full export of a table.

    Args:
        s3: boto3's `s3` client.
        bucket: the export's bucket.
        prefix: the export's folder (the one that holds manifest-summary.json), or one with a single export below it;
            also the address of that file, which `DescribeExport` gives.
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
        self.read_at: datetime | None = datetime.fromisoformat(summary["exportTime"]).astimezone(UTC)
        self._files = self._manifest(summary_key.removesuffix(_SUMMARY))
        self.estimated_items: int | None = int(summary["itemCount"])
        listed = sum(file.items for file in self._files)
        if listed != self.estimated_items:
            raise ExportError(f"{where}: it has {self.estimated_items} items, but its files {listed}: it is incomplete")

    def pages(self, resume: Mapping[int, Any]) -> Pages:
        """The items after `resume`; a segment is a file, its position the number of items read from it.

        Raises:
            ExportError: a file does not hold what the manifest says.
            botocore.exceptions.ClientError: a file cannot be read.
        """
        positions = {number: resume.get(number, {"items": 0}) for number in range(len(self._files))}
        unread = {number: position["items"] for number, position in positions.items() if not position.get("done")}
        return read_ahead((partial(self._read_file, number, done) for number, done in unread.items()), _READERS)

    def _read_file(self, number: int, done: int, _: Pause) -> Iterator[ItemPage]:
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
                        if len(items) == PAGE_ITEMS:
                            yield ItemPage(number, items, {"items": count})
                            items = []
        except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, KeyError) as error:
            raise ExportError(f"s3://{self._bucket}/{file.key} is damaged: {error}") from error
        if count != file.items:
            raise ExportError(f"s3://{self._bucket}/{file.key} has {count} items; its manifest says {file.items}")
        if body.checksum() != file.checksum:
            raise ExportError(f"s3://{self._bucket}/{file.key} is damaged: its MD5 is not the manifest's")
        yield ItemPage(number, items, {"items": count, "done": True})

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
    if folder.rpartition("/")[2] == _SUMMARY:
        folder = folder.removesuffix(_SUMMARY).strip("/")
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

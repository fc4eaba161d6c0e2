"""Items from a scan and from an export: complete, in one form, at the rate asked for, and again from any position."""

import base64
import gzip
import hashlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse, HeadersDict
from botocore.config import Config
from botocore.exceptions import ClientError

from aggregation_worker.reconciliation import export as export_module
from aggregation_worker.reconciliation import scan as scan_module
from aggregation_worker.reconciliation.export import ExportError, ExportSource
from aggregation_worker.reconciliation.items import ItemPage, ItemSource
from aggregation_worker.reconciliation.scan import ScanSource, as_delivered
from aggregation_worker.streams.records import Image

TABLE = "orders"


def order(number: int, **attributes: Any) -> dict[str, Any]:
    return {"id": {"S": f"order-{number:03d}"}, "quantity": {"N": str(number)}, **attributes}


def ids(items: Iterable[Image]) -> list[str]:
    return sorted(item["id"]["S"] for item in items)


def all_pages(source: ItemSource, resume: Mapping[int, Any] | None = None) -> list[ItemPage]:
    return [page for page in source.pages(resume or {}) if page is not None]


def all_items(pages: Iterable[ItemPage]) -> list[Image]:
    return [item for page in pages for item in page.items]


class _NoEvents:
    class events:  # noqa: N801 - boto3's name
        @staticmethod
        def register(*_: Any) -> None:
            pass


class FakeTable:
    """A DynamoDB client with one table, whose segments are its items by their number."""

    meta = _NoEvents

    def __init__(self, items: Iterable[dict[str, Any]], *, units: float = 1.0) -> None:
        self.items = list(items)
        self.units = units
        self.requests: list[dict[str, Any]] = []
        self.before: Callable[[dict[str, Any]], None] = lambda request: None

    def describe_table(self, **request: Any) -> dict[str, Any]:
        return {"Table": {"ItemCount": len(self.items)}}

    def scan(self, **request: Any) -> dict[str, Any]:
        self.requests.append(dict(request))
        self.before(request)
        mine = [
            item for number, item in enumerate(self.items) if number % request["TotalSegments"] == request["Segment"]
        ]
        start = mine.index(request["ExclusiveStartKey"]) + 1 if "ExclusiveStartKey" in request else 0
        page = mine[start : start + request["Limit"]]
        more = {"LastEvaluatedKey": page[-1]} if start + len(page) < len(mine) else {}
        units = self.units * len(page)
        return {"Items": page, "ScannedCount": len(page), "ConsumedCapacity": {"CapacityUnits": units}} | more


def scan_of(table: FakeTable, **options: Any) -> ScanSource:
    client: Any = table
    return ScanSource(client, TABLE, **options)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "PAGE_ITEMS", 3)
    monkeypatch.setattr(export_module, "PAGE_ITEMS", 3)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("segments", [1, 2, 5, 40])
def test_scan__reads_every_item_once_consistently(segments: int) -> None:
    table = FakeTable(map(order, range(20)))

    pages = all_pages(scan_of(table, segments=segments))

    assert ids(all_items(pages)) == ids(table.items)
    assert all(request["ConsistentRead"] and request["TableName"] == TABLE for request in table.requests)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("taken", range(12))
def test_scan_continued__reads_what_comes_after_the_positions(taken: int) -> None:
    table = FakeTable(map(order, range(20)))
    before, resume = [], {}
    for page in all_pages(scan_of(table, segments=2))[:taken]:
        before.append(page)
        resume[page.segment] = json.loads(json.dumps(page.position))

    rest = all_pages(scan_of(table, segments=3), resume)

    if taken:  # it keeps the segments it had
        assert {request["TotalSegments"] for request in table.requests} == {2}
    assert ids(all_items([*before, *rest])) == ids(table.items)


@pytest.mark.usefixtures("small_pages")
def test_scan_finished__continued_reads_nothing() -> None:
    table = FakeTable(map(order, range(20)))
    resume = {page.segment: page.position for page in all_pages(scan_of(table, segments=2))}
    table.requests.clear()

    assert all_pages(scan_of(table), resume) == []
    assert table.requests == []


@pytest.mark.usefixtures("small_pages")
def test_binary_key__position_is_json_and_read_back_as_bytes() -> None:
    table = FakeTable({"id": {"B": bytes([number, 255])}} for number in range(5))
    first = all_pages(scan_of(table, segments=1))[0]

    rest = all_pages(scan_of(table), {0: json.loads(json.dumps(first.position))})

    assert [item["id"]["B"] for item in all_items([first, *rest])] == [
        base64.b64encode(bytes([number, 255])).decode() for number in range(5)
    ]


def test_empty_table__is_read_to_its_end() -> None:
    pages = all_pages(scan_of(FakeTable([]), segments=2))

    assert [
        (page.segment, page.items, page.position["done"]) for page in sorted(pages, key=lambda one: one.segment)
    ] == [
        (0, [], True),
        (1, [], True),
    ]


def test_estimated_items__are_what_dynamodb_says() -> None:
    source = scan_of(FakeTable(map(order, range(7))))

    assert (source.estimated_items, source.read_at) == (7, None)
    assert TABLE in source.description


@pytest.mark.usefixtures("small_pages")
def test_nothing_comes__consumer_gets_a_turn_all_the_same() -> None:
    table = FakeTable([order(1)])
    go_on = threading.Event()
    table.before = lambda request: None if go_on.wait(10) else pytest.fail("nobody let it go on")
    turns = 0

    for page in scan_of(table, segments=1).pages({}):
        if page is None:
            turns += 1
            if turns == 2:
                go_on.set()

    assert turns >= 2


@pytest.mark.usefixtures("small_pages")
def test_consumer_is_slow__at_most_a_page_of_each_reader_waits() -> None:
    table = FakeTable(map(order, range(300)))
    pages = scan_of(table, segments=2).pages({})
    next(pages)
    time.sleep(0.3)

    # One of each reader, beside the one taken.
    assert len(table.requests) <= 3
    assert next(pages) is not None


@pytest.mark.usefixtures("small_pages")
def test_consumer_stops__reading_ends() -> None:
    table = FakeTable(map(order, range(300)))
    pages: Any = scan_of(table, segments=2).pages({})
    next(pages)

    pages.close()

    requests = len(table.requests)
    time.sleep(0.2)
    assert len(table.requests) == requests
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("item-reader")]


@pytest.mark.usefixtures("small_pages")
def test_consumer_stops_during_a_pause__it_is_not_waited_out() -> None:
    table = FakeTable(map(order, range(300)), units=1_000.0)
    pages = scan_of(table, segments=2, rate=1).pages({})
    next(pages)

    start = time.monotonic()
    pages.close()

    assert time.monotonic() - start < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("item-reader")]


def failing(code: str, times: int) -> Callable[[dict[str, Any]], None]:
    left = [times]

    def fail(request: dict[str, Any]) -> None:
        if left[0]:
            left[0] -= 1
            raise ClientError({"Error": {"Code": code}}, "Scan")

    return fail


def test_scan_fails__consumer_gets_the_error() -> None:
    table = FakeTable(map(order, range(20)))
    table.before = failing("AccessDeniedException", 1)

    with pytest.raises(ClientError, match="AccessDenied"):
        all_pages(scan_of(table))


def test_scan_is_throttled__it_is_tried_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_FIRST_PAUSE_SECONDS", 0.01)
    table = FakeTable(map(order, range(20)))
    table.before = failing("ProvisionedThroughputExceededException", 5)

    assert ids(all_items(all_pages(scan_of(table)))) == ids(table.items)
    assert len(table.requests) == 5 + 4


def test_rate__is_kept_by_all_segments_together() -> None:
    table = FakeTable(map(order, range(90)), units=1.0)
    start = time.monotonic()

    pages = all_pages(scan_of(table, segments=3, rate=60))

    # A second's worth may be taken at once.
    assert len(all_items(pages)) == 90
    assert time.monotonic() - start >= (90 - 60) / 60


def test_rate__pages_become_small_enough_for_it() -> None:
    table = FakeTable(map(order, range(5000)), units=0.005)

    pages = all_pages(scan_of(table, segments=2, rate=10))

    assert {request["Limit"] for request in table.requests if "ExclusiveStartKey" in request} == {1000}
    assert len(all_items(pages)) == 5000


def answering(client: Any, answers: Iterable[dict[str, Any]], status: int = 200) -> list[dict[str, Any]]:
    """Lets a real client's scans be answered without a network; the requests go to the list."""
    left, requests = iter(answers), []
    headers: Any = HeadersDict()

    class Raw(io.BytesIO):
        def stream(self, **_: Any) -> Iterable[bytes]:
            return [self.read()]

    def answer(request: Any, **_: Any) -> AWSResponse:
        requests.append(json.loads(request.body))
        return AWSResponse(request.url, status, headers, Raw(json.dumps(next(left)).encode()))

    client.meta.events.register("before-send.dynamodb.Scan", answer)
    client.meta.events.register(
        "before-send.dynamodb.DescribeTable",
        lambda request, **_: AWSResponse(request.url, 200, headers, Raw(b'{"Table": {"ItemCount": 2}}')),
    )
    return requests


@pytest.fixture
def client() -> Any:
    return boto3.client(
        "dynamodb",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1, "mode": "standard"}),
    )


BINARY = order(1, picture={"B": "AP8="}, parts={"M": {"one": {"BS": ["AQ=="]}}}, tags={"SS": ["a", "b"]})


def test_real_client__items_are_as_the_stream_delivers_them(client: Any) -> None:
    requests = answering(
        client,
        [
            {
                "Items": [BINARY],
                "Count": 1,
                "ScannedCount": 1,
                "LastEvaluatedKey": {"id": {"S": "order-001"}},
                "ConsumedCapacity": {"TableName": TABLE, "CapacityUnits": 2.5},
            },
            {"Items": [order(2)], "Count": 1, "ScannedCount": 1},
        ],
    )

    first, second = all_pages(ScanSource(client, TABLE, segments=1))

    assert (first.items, second.items) == ([BINARY], [order(2)])
    assert requests[1]["ExclusiveStartKey"] == {"id": {"S": "order-001"}}


def test_other_scans_with_the_same_client__give_items_as_ever(client: Any) -> None:
    answering(client, [{"Items": [BINARY]}])
    ScanSource(client, TABLE)

    (item,) = client.scan(TableName=TABLE)["Items"]

    assert item["picture"] == {"B": b"\x00\xff"}


def test_refusal_of_a_real_client__consumer_gets_the_error(client: Any) -> None:
    answering(client, [{"__type": "com.amazonaws.dynamodb.v20120810#AccessDeniedException"}], status=400)

    with pytest.raises(ClientError, match="AccessDenied"):
        all_pages(ScanSource(client, TABLE, segments=1))


def test_as_delivered__item_without_binary_values_stays() -> None:
    item = order(1, tags={"SS": ["a"]}, nothing={"NULL": True}, parts={"M": {"one": {"L": [{"N": "1"}]}}})

    assert as_delivered(item) == item


def test_as_delivered__nested_binary_values_become_base64_text() -> None:
    item = order(1, picture={"B": b"\x00\xff"}, parts={"M": {"one": {"BS": [b"\x01"]}}}, tags={"SS": ["a", "b"]})

    assert as_delivered(item) == BINARY


# Exports.


class FakeBucket:
    """An S3 client with one bucket; `write_export` puts a table's export there as DynamoDB does."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []

    def write_export(self, files: Iterable[list[Image]], folder: str = "AWSDynamoDB/01-abc", **summary: Any) -> None:
        manifest, count = "", 0
        for number, items in enumerate(files):
            key = f"{folder}/data/{number}.json.gz"
            lines = "".join(json.dumps({"Item": item}) + "\n" for item in items)
            self.objects[key] = gzip.compress(lines.encode()) if items else b""
            checksum = base64.b64encode(hashlib.md5(self.objects[key]).digest()).decode()
            manifest += json.dumps({"itemCount": len(items), "md5Checksum": checksum, "dataFileS3Key": key}) + "\n"
            count += len(items)
        self.objects[f"{folder}/manifest-files.json"] = manifest.encode()
        described = {
            "exportArn": f"arn:aws:dynamodb:us-east-1:123456789012:table/{TABLE}/export/{folder}",
            "tableArn": f"arn:aws:dynamodb:us-east-1:123456789012:table/{TABLE}",
            "exportTime": "2026-11-24T12:00:00.123Z",
            "manifestFilesS3Key": f"{folder}/manifest-files.json",
            "itemCount": count,
            "outputFormat": "DYNAMODB_JSON",
            "exportType": "FULL_EXPORT",
        }
        self.objects[f"{folder}/manifest-summary.json"] = json.dumps(described | summary).encode()

    def get_object(self, **request: Any) -> dict[str, Any]:
        self.requests.append(request["Key"])
        return {"Body": io.BytesIO(self.objects[request["Key"]])}

    def get_paginator(self, operation: str) -> "FakeBucket":
        return self

    def paginate(self, **request: Any) -> Iterable[dict[str, Any]]:
        keys = [key for key in self.objects if key.startswith(request["Prefix"])]
        return [{"Contents": [{"Key": key}]} for key in keys] or [{}]


@pytest.fixture
def bucket() -> FakeBucket:
    bucket = FakeBucket()
    bucket.write_export([list(map(order, range(7))), [], list(map(order, range(7, 9)))])
    return bucket


def export_in(bucket: FakeBucket, prefix: str = "") -> ExportSource:
    s3: Any = bucket
    return ExportSource(s3, "exports", prefix, table=TABLE)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize(
    "prefix",
    ["", "AWSDynamoDB", "AWSDynamoDB/01-abc", "/AWSDynamoDB/01-abc/", "AWSDynamoDB/01-abc/manifest-summary.json"],
)
def test_export__has_every_item_once(bucket: FakeBucket, prefix: str) -> None:
    source = export_in(bucket, prefix)

    assert ids(all_items(all_pages(source))) == ids(map(order, range(9)))
    assert source.estimated_items == 9
    assert source.read_at is not None
    assert source.read_at.isoformat() == "2026-11-24T12:00:00.123000+00:00"


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("taken", range(6))
def test_export_continued__reads_what_comes_after_the_positions(bucket: FakeBucket, taken: int) -> None:
    before, resume = [], {}
    for page in all_pages(export_in(bucket))[:taken]:
        before.append(page)
        resume[page.segment] = json.loads(json.dumps(page.position))

    rest = all_pages(export_in(bucket), resume)

    assert ids(all_items([*before, *rest])) == ids(map(order, range(9)))


def test_export__binary_values_are_as_the_stream_delivers_them() -> None:
    bucket = FakeBucket()
    bucket.write_export([[BINARY]])

    assert all_items(all_pages(export_in(bucket))) == [BINARY]


def test_export_copied_to_another_folder__is_read_there(bucket: FakeBucket) -> None:
    bucket.objects = {f"copies/{key}": data for key, data in bucket.objects.items()}

    assert len(all_items(all_pages(export_in(bucket, "copies")))) == 9


def test_no_export__refused() -> None:
    with pytest.raises(ExportError, match=r"no finished export under s3://exports/here/"):
        export_in(FakeBucket(), "here")


def test_several_exports__must_be_told_apart(bucket: FakeBucket) -> None:
    bucket.write_export([[order(1)]], folder="AWSDynamoDB/02-def")

    with pytest.raises(ExportError, match="AWSDynamoDB/01-abc/, AWSDynamoDB/02-def/"):
        export_in(bucket)
    assert len(all_items(all_pages(export_in(bucket, "AWSDynamoDB/02-def")))) == 1


@pytest.mark.parametrize(
    ("summary", "reason"),
    [
        ({"outputFormat": "ION"}, "format is ION"),
        ({"exportType": "INCREMENTAL_EXPORT"}, "INCREMENTAL_EXPORT"),
        ({"tableArn": "arn:aws:dynamodb:us-east-1:123456789012:table/orders-2"}, "export of table 'orders-2'"),
        ({"itemCount": 8}, "incomplete"),
    ],
)
def test_export_of_another_kind__refused(summary: dict[str, Any], reason: str) -> None:
    bucket = FakeBucket()
    bucket.write_export([list(map(order, range(9)))], **summary)

    with pytest.raises(ExportError, match=reason):
        export_in(bucket)


def test_file_with_other_items_than_the_manifest_says__refused(bucket: FakeBucket) -> None:
    manifest = bucket.objects["AWSDynamoDB/01-abc/manifest-files.json"].decode().splitlines()
    first, third = json.loads(manifest[0]), json.loads(manifest[2])
    first["itemCount"], third["itemCount"] = 6, 3
    bucket.objects["AWSDynamoDB/01-abc/manifest-files.json"] = "\n".join(map(json.dumps, (first, third))).encode()

    with pytest.raises(ExportError, match=r"has 7 items; its manifest says 6|has 2 items; its manifest says 3"):
        all_pages(export_in(bucket))


def test_file_whose_checksum_is_not_the_manifests__refused(bucket: FakeBucket) -> None:
    items = [order(number) for number in range(7)]
    items[3] = order(33)
    lines = "".join(json.dumps({"Item": item}) + "\n" for item in items)
    bucket.objects["AWSDynamoDB/01-abc/data/0.json.gz"] = gzip.compress(lines.encode())

    with pytest.raises(ExportError, match=r"data/0.json.gz is damaged: its MD5"):
        all_pages(export_in(bucket))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-10], lambda data: b"not gzip" + data, lambda data: data[:30] + b"\0" * 9 + data[39:]]
)
def test_file_that_is_damaged__refused(bucket: FakeBucket, damage: Callable[[bytes], bytes]) -> None:
    key = "AWSDynamoDB/01-abc/data/0.json.gz"
    bucket.objects[key] = damage(bucket.objects[key])

    with pytest.raises(ExportError, match=r"data/0.json.gz is damaged"):
        all_pages(export_in(bucket))

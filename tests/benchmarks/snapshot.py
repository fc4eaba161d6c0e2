"""How fast a snapshot reads a table and sums it up, and how much memory and disk that takes.

    python -m tests.benchmarks.snapshot [--json FILE]

Three figures: items a second on one core with the items in memory (scan → contributions → totals, no server and no
network); the time of a snapshot of a table in DynamoDB Local against that of a bare boto3 scan of it, in turns; and
peak memory and disk with few items and with many, each in a process of its own. Where memory is measured there are as
many aggregates as items: nothing may be kept for each of them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregation_worker.deployment.settings import TableDefinition
from aggregation_worker.local.pipeline import create_table
from aggregation_worker.reconciliation.items import ItemPage, Pages
from aggregation_worker.reconciliation.scan import ScanSource
from aggregation_worker.reconciliation.snapshot import take_snapshot
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.streams.reader import StreamReader
from aggregation_worker.streams.records import Image
from tests.definition_texts import SOURCE, definitions
from tests.dynamodb_local import running_dynamodb_local
from tests.records import STREAM_ARN

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodbstreams import DynamoDBStreamsClient

# The targets that the project has set itself.
ITEMS_PER_SECOND = 20_000
SHARE_OF_BARE_SCAN = 0.7

_ROOT = Path(__file__).parents[2]
_DEFINITIONS = definitions(source=SOURCE.replace("Order_by_item", "snapshot-benchmark"))
_PAGE_ITEMS = 1_000
# The optimising compiler, which a benchmark has the time for.
_JVM_OPTIONS = ("-Xmx1g", "-XX:-UsePerfData")


def order(number: int, groups: int) -> Image:
    """An order of the reference scenario, about 100 bytes."""
    return {
        "orderid": {"S": f"order-{number:09d}"},
        "order_date": {"S": "2026-11-24"},
        "item_number": {"S": f"item-{number % groups:09d}"},
        "quantity": {"N": str(number % 97 + 1)},
        "note": {"S": "as usual"},
    }


class ItemsInMemory:
    """A source of items that are made on the way; `seconds_to_make` them is no part of a snapshot's time."""

    description = "items in memory"
    read_at: datetime | None = None

    def __init__(self, items: int, groups: int) -> None:
        self.estimated_items: int | None = items
        self.seconds_to_make = 0.0
        self._items, self._groups = items, groups

    def pages(self, resume: Mapping[int, Any]) -> Pages:
        """All items, in pages."""
        for first in range(0, self._items, _PAGE_ITEMS):
            start = time.process_time()
            items = [order(number, self._groups) for number in range(first, min(first + _PAGE_ITEMS, self._items))]
            self.seconds_to_make += time.process_time() - start
            yield ItemPage(0, items, {"items": first + len(items)})


class _SilentStream:
    """A stream without records, as quick as can be."""

    stream_arn = STREAM_ARN
    start = "TRIM_HORIZON"
    opened_at: datetime | None = None

    def open(self) -> None:
        self.opened_at = datetime.now(UTC)

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        return iter(())

    def has_passed(self, moment: float) -> bool:
        return True


def from_memory(items: int, groups: int, path: Path | None = None) -> dict[str, float]:
    """Processor time of a snapshot of items in memory, with the sums read once, and this process's peak memory."""
    source = ItemsInMemory(items, groups)
    stream: Any = _SilentStream()
    start = time.process_time()
    with Spool(path) as spool:
        take_snapshot(_DEFINITIONS.aggregations, _DEFINITIONS.source, source, stream, spool)
        aggregates = sum(1 for _ in spool.baselines(_DEFINITIONS.aggregations[0].name))
    seconds = time.process_time() - start - source.seconds_to_make
    return {
        "items": items,
        "aggregates": aggregates,
        "seconds": seconds,
        "items_per_second": items / seconds,
        # Kilobytes on Linux.
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mb": 0.0 if path is None else path.stat().st_size / 1e6,
    }


def in_a_process_of_its_own(items: int, groups: int) -> dict[str, float]:
    """`from_memory`, on one core, with the disk it takes."""
    program = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from tests.benchmarks.snapshot import from_memory, pinned_to_one_core\n"
        "pinned_to_one_core()\n"
        "print(json.dumps(from_memory(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))))"
    )
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, str(items), str(groups), str(Path(folder, "spool"))],
            cwd=_ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=3600,
        )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def pinned_to_one_core() -> None:
    """Keeps this process, all its threads, to one of its cores."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def speed(items: int, groups: int, rounds: int) -> dict[str, Any]:
    """Items a second on one core: the median of rounds in a process each."""
    found = [in_a_process_of_its_own(items, groups)["items_per_second"] for _ in range(rounds)]
    return {"items": items, "groups": groups, "items_per_second": statistics.median(found), "rounds": found}


def memory(sizes: Sequence[int]) -> dict[str, Any]:
    """Peak memory, in MB, of a process that takes a snapshot of so many items, each an aggregate of its own."""
    found = [in_a_process_of_its_own(size, size) for size in sizes]
    return {"sizes": found, "growth": found[-1]["peak_mb"] / found[0]["peak_mb"]}


def against_a_bare_scan(
    client: "DynamoDBClient", streams: "DynamoDBStreamsClient", items: int, rounds: int
) -> dict[str, Any]:
    """Wall-clock time of a bare boto3 scan and of a snapshot of the same table, in turns after a warm-up."""
    table = _DEFINITIONS.source.table
    stream_arn = create_table(client, table, TableDefinition(_DEFINITIONS.source.keys, "NEW_AND_OLD_IMAGES"))
    assert stream_arn is not None
    try:
        _fill(client, table, items)
        bare, whole = [], []
        for round_ in range(rounds + 1):
            bare_seconds = _bare_scan(client, table, items)
            whole_seconds = _snapshot(client, streams, table, stream_arn, items)
            if round_:
                bare.append(bare_seconds)
                whole.append(whole_seconds)
    finally:
        client.delete_table(TableName=table)
    return {
        "items": items,
        "bare_seconds": statistics.median(bare),
        "snapshot_seconds": statistics.median(whole),
        "share_of_bare_scan": statistics.median(one / other for one, other in zip(bare, whole, strict=True)),
        "rounds": [{"bare": one, "snapshot": other} for one, other in zip(bare, whole, strict=True)],
    }


def _bare_scan(client: "DynamoDBClient", table: str, items: int) -> float:
    start = time.perf_counter()
    pages = client.get_paginator("scan").paginate(TableName=table, ConsistentRead=True)
    found = sum(len(page["Items"]) for page in pages)
    seconds = time.perf_counter() - start
    assert found == items, f"{found} items scanned, {items} written"
    return seconds


def _snapshot(
    client: "DynamoDBClient", streams: "DynamoDBStreamsClient", table: str, stream_arn: str, items: int
) -> float:
    # DynamoDB Local's stream has every record at once, so nothing is waited for.
    reader = StreamReader(streams, stream_arn, "LATEST", stream_lag=0, empty_pages=1, poll_interval=0.1)
    start = time.perf_counter()
    with Spool(None) as spool:
        take_snapshot(_DEFINITIONS.aggregations, _DEFINITIONS.source, ScanSource(client, table), reader, spool)
        seconds = time.perf_counter() - start
        _check(spool, items)
    return seconds


def _check(spool: Spool, items: int) -> None:
    name = _DEFINITIONS.aggregations[0].name
    total = sum(int(amounts[0]) for _, amounts in spool.baselines(name))
    assert total == sum(number % 97 + 1 for number in range(items)), "the totals are wrong"


def _fill(client: "DynamoDBClient", table: str, items: int) -> None:
    for first in range(0, items, 25):
        requests: Any = [
            {"PutRequest": {"Item": order(number, 1_000)}} for number in range(first, min(first + 25, items))
        ]
        while requests:
            requests = client.batch_write_item(RequestItems={table: requests})["UnprocessedItems"].get(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.snapshot", description=__doc__)
    parser.add_argument("--items", type=int, default=200_000, help="to be summed from memory (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=1_000, help="of these items (default: %(default)s)")
    parser.add_argument("--scanned", type=int, default=50_000, help="items in DynamoDB Local (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 2_000_000], help="where memory is measured")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"speed": speed(options.items, options.groups, options.rounds)}
    print(
        f"{options.items:,} items from memory on one core: {figures['speed']['items_per_second']:,.0f} items/s "
        f"(target {ITEMS_PER_SECOND:,})"
    )
    with running_dynamodb_local(jvm_options=_JVM_OPTIONS) as server:
        found = against_a_bare_scan(
            server.client("dynamodb"), server.client("dynamodbstreams"), options.scanned, options.rounds
        )
    figures["bare_scan"] = found
    print(
        f"{options.scanned:,} items in DynamoDB Local: bare scan {found['bare_seconds']:.2f} s, snapshot "
        f"{found['snapshot_seconds']:.2f} s, {found['share_of_bare_scan']:.0%} of its speed "
        f"(target {SHARE_OF_BARE_SCAN:.0%})"
    )
    figures["memory"] = memory(options.sizes)
    for one in figures["memory"]["sizes"]:
        print(
            f"{one['items']:,} items, each an aggregate: peak memory {one['peak_mb']:.0f} MB, spool "
            f"{one['disk_mb']:.0f} MB, {one['items_per_second']:,.0f} items/s"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

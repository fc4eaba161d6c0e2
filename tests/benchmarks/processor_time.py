"""What the worker's own code costs: processor time per record without I/O, peak memory, and the import.

uv run python -m tests.benchmarks.processor_time --start --profile
"""

import argparse
import contextlib
import cProfile
import gc
import itertools
import json
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
from botocore.awsrequest import AWSResponse, HeadersDict

from aggregation_worker import handler
from aggregation_worker.aggregations.contributions import Group, contributions
from aggregation_worker.ledger.next_write import next_step
from aggregation_worker.ledger.receipts import Posting, Row, postings, without_repeats
from aggregation_worker.ledger.writes import Add, Look, Start, Write
from aggregation_worker.streams.records import read_record
from tests.benchmarks.workloads import EVENT_BYTES, REFERENCE, batches, records
from tests.benchmarks.write_units import LEDGER, World
from tests.definition_texts import definitions

_DEFINITIONS = definitions()
_ROOT = Path(__file__).parents[2]
# Lambda's own runtime imports neither; both are in every Python function that writes to DynamoDB.
_BOTO3_AND_CLIENT = "import boto3; boto3.client('dynamodb', region_name='us-east-1')"
_PEAK_MEMORY = """
import json, resource, sys
import aggregation_worker.handler
from tests.benchmarks import processor_time
event = json.load(open(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
planned = processor_time.planned(event["Records"], {})
for write in planned:
    json.dumps(processor_time.requests([write]), default=repr)
print(json.dumps({"records": len(event["Records"]), "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
                  "event_kb": before}))
"""


def posted(batch: Sequence[Any]) -> list[Posting]:
    """The postings of raw records: parsed, and their contributions."""
    readable = []
    for index, raw in enumerate(batch):
        record = read_record(raw, _DEFINITIONS.source.origin)
        changes, _ = contributions(_DEFINITIONS.aggregations, record)
        readable.append((index, record, changes))
    return without_repeats(postings(readable))[0]


def planned(batch: Sequence[Any], rows: Mapping[Group, Mapping[str, Any]]) -> list[Write | Look]:
    """Everything that the worker does with a batch before it sends: each row's first request.

    Args:
        rows: what reading the rows has found.
    """
    by_row: dict[Row, list[Posting]] = {}
    for posting in posted(batch):
        by_row.setdefault(posting.aggregate.row, []).append(posting)
    steps = (next_step(row, rows.get(row.group, {}), left, {}, _new_generation) for row, left in by_row.items())
    return [step.then for step in steps if step.then is not None]


def _new_generation() -> str:
    return "123456"


def requests(writes: Iterable[Write | Look]) -> list[Any]:
    """What is sent for them."""
    return [
        write.request()
        if isinstance(write, Add | Start)
        else write.request(LEDGER)
        if isinstance(write, Look)
        else write.request(LEDGER, 1_794_835_658)
        for write in writes
    ]


def steady_rows(stream: Iterator[list[Any]], count: int) -> dict[Group, Mapping[str, Any]]:
    """The target's rows after so many batches."""
    world = World()
    for batch in itertools.islice(stream, count):
        world.deliver(posted(batch))
    return dict(world.rows)


def microseconds_per_record(size: int, rounds: int = 15, batches_before: int = 10) -> dict[str, float]:
    """Median processor time of one record in batches of `size`: to plan it, and to build its share of the requests.

    Args:
        batches_before: of the reference workload, which have brought the rows to a state as in service.
    """
    stream = batches(REFERENCE)
    rows = steady_rows(stream, batches_before)
    batch = list(itertools.islice(itertools.chain.from_iterable(stream), size))
    plans, requested = [], []
    for _ in range(rounds):
        gc.collect()
        start = time.process_time()
        writes = planned(batch, rows)
        middle = time.process_time()
        requests(writes)
        plans.append(middle - start)
        requested.append(time.process_time() - middle)
    return {
        "plan": statistics.median(plans) / size * 1e6,
        "requests": statistics.median(requested) / size * 1e6,
        "requests_per_record": len(writes) / size,
        "botocore_per_request": botocore_microseconds(writes),
    }


def botocore_microseconds(writes: Sequence[Write | Look]) -> float:
    """Mean processor time that botocore takes for an `UpdateItem` of these, when the answer is there at once."""
    client = boto3.client(
        "dynamodb",
        region_name="us-east-1",
        aws_access_key_id="000000000000",
        aws_secret_access_key="local",
        config=handler._config(total_max_attempts=1),
    )
    raw = SimpleNamespace(stream=lambda: iter([b"{}"]))
    headers: Any = HeadersDict()

    def answer(**_: Any) -> Any:
        return AWSResponse("", 200, headers, raw)

    client.meta.events.register("before-send.dynamodb", answer)
    adds = requests(write for write in writes if isinstance(write, Add))
    client.update_item(**adds[0])
    start = time.process_time()
    for request in adds:
        client.update_item(**request)
    return (time.process_time() - start) / len(adds) * 1e6


def peak_memory(folder: Path) -> dict[str, float]:
    """Peak resident memory, in MB, of a process that plans 10,000 records of a full 6 MB event; `event_mb` of it once
    the event was read."""
    # What a record measures in the event, less what a 200-byte one has beside the image.
    sample = len(json.dumps(next(batches(REFERENCE))[0]))
    workload_bytes = REFERENCE.record_bytes + EVENT_BYTES // 10_000 - sample
    event = {"Records": _sized_records(10_000, workload_bytes)}
    path = folder / "event.json"
    path.write_text(json.dumps(event))
    figures = json.loads(_python(_PEAK_MEMORY, str(path)))
    return {
        "records": figures["records"],
        "event_bytes": path.stat().st_size,
        "event_mb": figures["event_kb"] / 1024,
        "peak_mb": figures["peak_kb"] / 1024,
    }


def _sized_records(count: int, record_bytes: int) -> list[dict[str, Any]]:
    return list(itertools.islice(records(replace(REFERENCE, record_bytes=record_bytes)), count))


def import_milliseconds(rounds: int = 7) -> dict[str, float]:
    """Median processor time to import boto3 and make a client, and what importing `handler` adds to it."""
    timed = "import time; start = time.process_time(); {}; print((time.process_time() - start) * 1000)"
    alone, added = [], []
    for _ in range(rounds):
        alone.append(float(_python(timed.format(_BOTO3_AND_CLIENT))))
        added.append(float(_python(_BOTO3_AND_CLIENT + "\n" + timed.format("import aggregation_worker.handler"))))
    return {"boto3_and_client": statistics.median(alone), "worker_adds": statistics.median(added)}


def package(rounds: int = 5) -> dict[str, float]:
    """Size of the function's bundle, in MB, and the median time its runtime takes to import it, in milliseconds.

    Needs the CDK app's extra (`deploy`) and, for the init, Python 3.13 and Linux.
    """
    sys.path.insert(0, str(_ROOT / "cdk"))
    from aggregation_worker.local import SAMPLE_FILE
    from aggregation_worker_cdk.bundle import bundle
    from tests.end_to_end.lambda_emulator import running_function

    with tempfile.TemporaryDirectory() as folder:
        target, archive = Path(folder, "bundle"), Path(folder, "bundle.zip")
        target.mkdir()
        bundle(SAMPLE_FILE, target)
        files = [path for path in target.rglob("*") if path.is_file()]
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            for path in files:
                zipped.write(path, path.relative_to(target))
        inits = []
        for _ in range(rounds):
            with running_function(target, {"AGGREGATIONS_FILE": ""}) as function:
                with contextlib.suppress(Exception):  # without tables it answers with an error, but it has started
                    function.invoke({"Records": []})
                inits.append(function.init_ms or function._init_ms() or 0.0)
        return {
            "bundle_mb": sum(path.stat().st_size for path in files) / 1e6,
            "zip_mb": archive.stat().st_size / 1e6,
            "init_ms": statistics.median(inits),
        }


def _python(program: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=_ROOT, check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.processor_time", description=__doc__)
    parser.add_argument("--profile", action="store_true", help="where the time goes, by cProfile")
    parser.add_argument("--records", type=int, nargs="+", default=[100, 1_000, 10_000], help="sizes of batches")
    parser.add_argument("--rounds", type=int, default=15, help="of which the median is taken (default: %(default)s)")
    parser.add_argument("--start", action="store_true", help="peak memory and import time, in processes of their own")
    parser.add_argument("--package", action="store_true", help="size and cold init of the packaged function")
    options = parser.parse_args(arguments)
    for size in options.records:
        figures = microseconds_per_record(size, options.rounds)
        print(
            f"{size:6,} records: plan {figures['plan']:5.1f} µs, requests {figures['requests']:5.1f} µs a record; "
            f"botocore {figures['botocore_per_request']:4.0f} µs a request, of which there are "
            f"{figures['requests_per_record']:.2f} a record"
        )
    if options.start:
        with tempfile.TemporaryDirectory() as folder:
            memory = peak_memory(Path(folder))
        imports = import_milliseconds()
        print(
            f"peak memory {memory['peak_mb']:.0f} MB for {memory['records']:,} records in {memory['event_bytes']:,} B "
            f"({memory['event_mb']:.0f} MB with the event alone)\n"
            f"boto3 and a client {imports['boto3_and_client']:.0f} ms, the handler {imports['worker_adds']:.0f} ms "
            "more"
        )
    if options.package:
        found = package()
        print(
            f"bundle {found['bundle_mb']:.1f} MB, zipped {found['zip_mb']:.1f} MB, "
            f"cold init {found['init_ms']:.0f} ms (median of 5)"
        )
    if options.profile:
        stream = batches(REFERENCE)
        rows = steady_rows(stream, 10)
        batch = next(stream)
        with cProfile.Profile() as profile:
            for _ in range(10):
                requests(planned(batch, rows))
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()

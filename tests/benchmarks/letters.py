"""How long a long dead-letter queue takes to list, to read for a repair and to replay, at the latency of SQS.

The queue is in memory and waits before it answers; the function takes its time for each event. Prints the seconds for
10,000 letters and the memory for each letter, beside the queue's own.
"""

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.operations.all_letters import AllLetters
from aggregation_worker.operations.dead_letters import Listing
from aggregation_worker.operations.letters import LetterReader
from aggregation_worker.operations.queue import HeldMessages
from aggregation_worker.operations.replaying import Replay
from aggregation_worker.operations.selection import Selection
from tests.dead_letter_fakes import BUCKET
from tests.definition_texts import definitions
from tests.records import ORIGIN, STREAM_ARN
from tests.slow_queue import SlowQueue, parked_bodies

# Seconds. What SQS takes to answer within a region is less.
LATENCY = 0.02
# Of an event of 500 records, in the deployed function.
INVOCATION = 1.0

# Letters whose memory is traced, which takes its time.
_TRACED = 5_000

Work = Callable[[Any, SlowQueue], int]


def _list(resources: Any, queue: Any) -> int:
    with HeldMessages(queue, "queue") as held:
        listing = Listing(resources, held, LetterReader(resources, ORIGIN), Selection(), held.started_at())
        return sum(1 for _ in listing.letters())


def _read_for_a_repair(resources: Any, _: Any) -> int:
    with ExitStack() as stack:
        return sum(1 for _ in AllLetters(resources, stack, count_lag=0).read().records)


def _replay(resources: Any, queue: Any) -> int:
    def send(records: list[Any]) -> list[RecordOutcome]:
        time.sleep(INVOCATION * len(records) / 500)
        return [RecordOutcome.APPLIED] * len(records)

    with HeldMessages(queue, "queue") as held:
        return Replay(resources, held, LetterReader(resources, ORIGIN), Selection(), send).run().done


WORK: dict[str, Work] = {"list": _list, "read for a repair": _read_for_a_repair, "replay": _replay}


def measured(letters: int, latency: float) -> dict[str, dict[str, float]]:
    """Seconds for 10,000 letters, and bytes for one, of each kind of work."""
    traced = min(letters, _TRACED)
    return {
        name: {
            "seconds_per_10000": _run(work, letters, latency)[0] * 10_000 / letters,
            "bytes_per_letter": _run(work, traced, 0.0, trace=True)[1] / traced,
        }
        for name, work in WORK.items()
    }


def _run(work: Work, letters: int, latency: float, *, trace: bool = False) -> tuple[float, int]:
    queue = SlowQueue(parked_bodies(letters), latency, waits=latency * 50)
    source = f'[source]\nstream_arn = "{STREAM_ARN}"\npartition_key = "orderid"\nsort_key = "order_date"\n'
    resources = SimpleNamespace(
        sqs=queue,
        queue_url="queue",
        bucket=BUCKET,
        definitions=definitions(source=source),
        ledger_retention_days=60,
        client=lambda _: None,
    )
    if trace:
        tracemalloc.start()
    began = time.monotonic()
    count = work(resources, queue)
    seconds = time.monotonic() - began
    peak = tracemalloc.get_traced_memory()[1] if trace else 0
    tracemalloc.stop()
    if count != letters:
        raise AssertionError(f"{count} of {letters} letters")
    return seconds, peak


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.letters", description=__doc__)
    parser.add_argument("--letters", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--latency", type=float, default=LATENCY, help="seconds (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args(arguments)
    figures = measured(options.letters, options.latency)
    for name, of in figures.items():
        print(
            f"{name}: {of['seconds_per_10000']:.1f} s for 10,000 letters of {options.letters:,}, "
            f"{of['bytes_per_letter']:,.0f} bytes a letter"
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

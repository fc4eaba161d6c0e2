"""What totals cost in dollars a month, for three loads and four ways of keeping them.

    uv run python -m tests.benchmarks.dollars_a_month

DynamoDB on demand, Lambda and storage in us-east-1. The worker's requests are those that `write_units` counts, with the
shards in step; the others' are known. Storage is that of the ledger's pages, or of markers. Lambda's time is
calculated, the same way for all: processor time of a record and of a request, as measured by `processor_time`, on the
memory that is deployed, and a round trip for each request that waits for the one before it. The exit status is 0 only
if README.md says the same.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT
from tests.benchmarks.meter import item_bytes
from tests.benchmarks.workloads import Choice
from tests.benchmarks.write_units import OTHERS, Traffic, price

README = Path(__file__).parents[2] / "README.md"
SECONDS_A_MONTH = 30 * 86_400
THIS_WORKER = "this worker"
# Every record of the three others is handled one by one; the requests that each of them makes for one.
REQUESTS = {"naive": 1, "Powertools": 3, "marker per record": 1}

# Dollars: a gigabyte of a table for a month ("Amazon DynamoDB pricing"), for which each item counts 100 bytes more than
# its size.
_GIGABYTE_MONTH = 0.25
_ITEM_BYTES = 100
# Seconds of a whole core: a record's plan, a request in botocore, an invocation's frame. Of a core, so much is there.
_RECORD, _REQUEST, _FRAME = 35e-6, 0.42e-3, 1e-3
_CORE = deployment.FUNCTION_MEMORY_MB / 1_769
# Seconds from Lambda to DynamoDB and back.
_ROUND_TRIP = 4e-3
# A marker, which is kept for the day in which the stream can deliver its record again.
_MARKER = item_bytes({"id": {"S": "0" * 32}, "expires_at": {"N": "1794835658"}}) + _ITEM_BYTES


@dataclass(frozen=True, slots=True)
class Load:
    """A use of the worker.

    Attributes:
        name: as README.md has it.
        traffic: its records, or an equal share of them; each adds to one total.
        shares: how many of these it is. Groups are not shared, so that each share costs the same.
    """

    name: str
    traffic: Traffic
    shares: int = 1

    @property
    def records(self) -> int:
        """In a second."""
        return self.traffic.rate * self.shares

    @property
    def batch(self) -> int:
        """Records of an invocation."""
        return self.traffic.batch * self.shares


LOADS = (
    Load("online shop: 5 orders/s, 1,000 items", Traffic(5, 4, 1, 1_000, Choice.ZIPF, 600, ())),
    Load("IoT fleet: 1,000 readings/s, 100,000 devices", Traffic(100, 4, 25, 10_000, Choice.UNIFORM, 600, ()), 10),
    Load("game: 10,000 events/s, 100 leaderboards", Traffic(10_000, 10, 1_000, 100, Choice.UNIFORM, 6, ())),
)


def lambda_seconds(batch: int, requests: float, in_flight: int) -> float:
    """How long an invocation takes for a batch.

    Args:
        batch: how many records it has.
        requests: of one record.
        in_flight: how many requests are sent side by side.
    """
    total = requests * batch
    busy = (_FRAME + batch * _RECORD + total * _REQUEST) / _CORE
    return busy + math.ceil(total / in_flight) * _ROUND_TRIP


def _dollars(load: Load, of_a_record: float, requests: float, in_flight: int, stored: float) -> float:
    """A month's.

    Args:
        of_a_record: dollars that its requests to DynamoDB cost.
        requests: of one record.
        in_flight: how many requests are sent side by side.
        stored: bytes that are kept beside the totals, which all have alike.
    """
    seconds = lambda_seconds(load.batch, requests, in_flight)
    invocation = (
        seconds * deployment.FUNCTION_MEMORY_MB / 1_024 * deployment.DOLLARS_PER_GB_SECOND
        + deployment.DOLLARS_PER_MILLION_INVOCATIONS / 1e6
    )
    of_requests = load.records * SECONDS_A_MONTH * (of_a_record + invocation / load.batch)
    return of_requests + stored / 1e9 * _GIGABYTE_MONTH


def dollars(load: Load) -> dict[str, float]:
    """A month's, by way of keeping totals."""
    mine = price(load.traffic, 0)
    pages = load.records * 86_400 * deployment.LEDGER_RETENTION_DAYS * mine.ledger_bytes
    found = {THIS_WORKER: _dollars(load, mine.dollars, mine.requests, MAX_IN_FLIGHT, pages)}
    for name, units in OTHERS.items():
        markers = 0 if name == "naive" else load.records * 86_400 * _MARKER
        found[name] = _dollars(
            load, units * deployment.DOLLARS_PER_MILLION_WRITE_UNITS / 1e6, REQUESTS[name], 1, markers
        )
    return found


def row(load: Load) -> str:
    """A load's line of README.md's table."""
    mine, *others = dollars(load).values()
    return f"| {load.name} | **{mine:,.0f}** | {' | '.join(f'{one:,.0f}' for one in others)} |"


HEAD = f"| load | **{THIS_WORKER}** | {' | '.join(OTHERS)} |\n|---|--:|{'--:|' * len(OTHERS)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if README.md has other figures."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.dollars_a_month",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    with ProcessPoolExecutor() as processes:
        lines = [HEAD, *processes.map(row, LOADS)]
    print("\n".join(lines))
    readme = README.read_text()
    if missing := [line for line in lines if line not in readme]:
        print("README.md lacks:", *missing, sep="\n", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())

"""Four ways of keeping totals side by side: speed, requests and write units, on the same server with the same records.

    uv run python -m tests.benchmarks.compare --quick --round-trip 4 --output FOLDER

prints a table and writes `comparison.json` and `comparison.png` into the folder. The contenders take turns, round by
round, so that what disturbs the machine disturbs all of them; figures are medians over the rounds, and the ratios are
medians of each round's own ratios. `--round-trip` holds every answer back for so many milliseconds, as the network
between Lambda and DynamoDB does: a server on the same machine hides what a request costs.
"""

import argparse
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregation_worker.local.ministack import running_ministack
from tests.benchmarks import processor_time, workloads
from tests.benchmarks.contenders import NAMES, Setup, set_up
from tests.benchmarks.meter import Meter
from tests.benchmarks.workloads import Delivered, Workload, batches, counted_before
from tests.dynamodb_local import running_dynamodb_local

# A contender that handles records one by one is as quick in a long batch as in a short one, so it is timed on the first
# records only. A round has so many small batches that they come to as many.
LONGEST_ONE_BY_ONE = 300
WORKER = "this worker"
# The optimising compiler alone, which a benchmark has the time for, and a collector without threads of its own, which
# would take a processor from the client.
_JVM_OPTIONS = ("-Xmx1g", "-Xmn400m", "-XX:+UseSerialGC", "-XX:-TieredCompilation", "-XX:-UsePerfData")


@dataclass(slots=True)
class Figures:
    """What one contender did in one workload.

    Attributes:
        seconds, records: of each timed round.
        requests, units, wasted_units, read_units, dollars: of all timed rounds; `units` are write units, the wasted
            ones of which were charged for requests that failed.
    """

    seconds: list[float] = field(default_factory=list)
    records: list[int] = field(default_factory=list)
    requests: int = 0
    units: int = 0
    wasted_units: int = 0
    read_units: float = 0.0
    dollars: float = 0.0

    def rates(self) -> list[float]:
        """Records per second of each round."""
        return [records / seconds for records, seconds in zip(self.records, self.seconds, strict=True)]

    def summary(self) -> dict[str, float]:
        """Figures per record, medians where they vary."""
        records = sum(self.records)
        return {
            "records_per_second": statistics.median(self.rates()),
            "requests_per_record": self.requests / records,
            "write_units_per_record": self.units / records,
            "wasted_units_per_record": self.wasted_units / records,
            "read_units_per_record": self.read_units / records,
            "dollars_per_million_records": self.dollars / records * 1e6,
        }


def warm_up(endpoint: str, seconds: float) -> None:
    """Lets each contender run for so long: a JVM answers its first transactions several times as slowly."""
    for name in NAMES:
        with set_up(name, endpoint) as setup:
            end = time.monotonic() + seconds
            for batch in batches(workloads.REFERENCE):
                if time.monotonic() >= end:
                    break
                setup.contender.deliver(batch if name == WORKER else batch[:50])


def compare(workload: Workload, endpoint: str, rounds: int, round_trip: float = 0.0) -> dict[str, Figures]:
    """Runs every contender in turn, once to warm up and then `rounds` times; `round_trip` in seconds."""
    figures = {name: Figures() for name in NAMES}
    with ExitStack() as stack:
        setups = {name: stack.enter_context(set_up(name, endpoint, round_trip=round_trip)) for name in NAMES}
        expected: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
        meters = {name: Meter(setup.keys) for name, setup in setups.items()}
        stream = batches(workload)
        for round_ in range(rounds + 1):
            delivered = list(itertools.islice(stream, max(1, LONGEST_ONE_BY_ONE // workload.batch)))
            for name, setup in setups.items():
                parts = delivered if name == WORKER else [batch[:LONGEST_ONE_BY_ONE] for batch in delivered]
                _one_round(setup, parts, workload, meters[name], figures[name] if round_ else Figures())
                for part in parts:
                    expected[name].update(_quantities(part))
        for name, setup in setups.items():
            # Only the naive handler counts a duplicate.
            if name != "naive" or workload.delivered is Delivered.NONE:
                _check(name, setup, expected[name])
    return figures


def _one_round(
    setup: Setup, parts: Sequence[list[dict[str, Any]]], workload: Workload, meter: Meter, figures: Figures
) -> None:
    for part in parts:
        if before := counted_before(workload, part):
            setup.contender.deliver(before)
    _count(setup, meter)
    meter.reset()
    start = time.perf_counter()
    for part in parts:
        setup.contender.deliver(part)
    figures.seconds.append(time.perf_counter() - start)
    figures.records.append(sum(map(len, parts)))
    _count(setup, meter)
    figures.requests += meter.requests
    figures.units += meter.units
    figures.wasted_units += meter.wasted
    figures.read_units += meter.read_units
    figures.dollars += meter.dollars


def _count(setup: Setup, meter: Meter) -> None:
    for request in setup.client.log:
        meter.add(request)
    setup.client.log.clear()


def _quantities(batch: Sequence[dict[str, Any]]) -> Counter[str]:
    quantities: Counter[str] = Counter()
    for raw in batch:
        for name, sign in (("OldImage", -1), ("NewImage", 1)):
            if image := raw["dynamodb"].get(name):
                quantities[image["item_number"]["S"]] += sign * int(image["quantity"]["N"])
    return quantities


def _check(name: str, setup: Setup, expected: Counter[str]) -> None:
    """A contender that counted wrong has won nothing."""
    found = {item: quantity for item, quantity in setup.totals().items() if quantity}
    wanted = {item: quantity for item, quantity in expected.items() if quantity}
    if found != wanted:
        raise AssertionError(f"{name}: the totals are not those of the records")


def ratio(figures: dict[str, Figures], other: str) -> float:
    """How many times as many records per second the worker handles as another contender: the median of the rounds."""
    pairs = zip(figures[WORKER].rates(), figures[other].rates(), strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def table(results: dict[Workload, dict[str, Figures]]) -> str:
    """All figures as a Markdown table."""
    lines = [
        "| workload | contender | records/s | requests/record | write units/record | read units/record | $/million "
        "| worker is |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for workload, figures in results.items():
        for position, (name, found) in enumerate(figures.items()):
            of = found.summary()
            times = "" if name == WORKER else f"{ratio(figures, name):.1f} x"
            lines.append(
                f"| {'' if position else workload.name} | {name} | {of['records_per_second']:,.0f} "
                f"| {of['requests_per_record']:.3f} | {of['write_units_per_record']:.2f} "
                f"| {of['read_units_per_record']:.2f} "
                f"| {of['dollars_per_million_records']:.2f} | {times} |"
            )
    return "\n".join(lines)


def write(results: dict[Workload, dict[str, Figures]], folder: Path) -> None:
    """Writes `comparison.json` and `comparison.png`."""
    document = {
        workload.name: {name: found.summary() | {"seconds": found.seconds} for name, found in figures.items()}
        for workload, figures in results.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(document, indent=2))
    plot(results, folder / "comparison.png")


def plot(results: dict[Workload, dict[str, Figures]], path: Path) -> None:
    """Records per second and write units per record, as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 1.5 + 0.7 * len(results)), layout="constrained")
    speed, units = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(NAMES)
    for axes, key, label in (
        (speed, "records_per_second", "records per second (log)"),
        (units, "write_units_per_record", "write units per record"),
    ):
        for position, name in enumerate(NAMES):
            values = [figures[name].summary()[key] for figures in results.values()]
            places = [row + (position - (len(NAMES) - 1) / 2) * height for row in range(len(results))]
            axes.barh(places, values, height=height, label=name)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.3)
    speed.set_xscale("log")
    speed.set_xlim(left=10)
    speed.set_yticks(range(len(results)), [workload.name for workload in results])
    speed.invert_yaxis()
    figure.legend(*units.get_legend_handles_labels(), loc="outside upper center", ncols=len(NAMES))
    figure.savefig(path, dpi=110)


@contextmanager
def server(name: str) -> Iterator[str]:
    """Starts a server and gives its endpoint."""
    if name == "ministack":
        with running_ministack() as ministack:
            yield ministack.endpoint
    else:
        with running_dynamodb_local(jvm_options=_JVM_OPTIONS) as local:
            yield local.endpoint


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where JSON and PNG are written")
    parser.add_argument("--quick", action="store_true", help="four workloads and three rounds")
    parser.add_argument("--only", metavar="TEXT", help="only workloads whose name contains this")
    parser.add_argument("--rounds", type=int, metavar="N", help="timed rounds of each workload (default: 5)")
    parser.add_argument(
        "--round-trip", type=float, default=0, metavar="MS", help="added to every request (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", type=float, default=15, metavar="S", help="seconds for each contender (default: %(default)s)"
    )
    parser.add_argument(
        "--server", choices=("dynamodb-local", "ministack"), default="dynamodb-local", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    chosen = [
        workload
        for workload in (workloads.QUICK if options.quick else workloads.ALL)
        if options.only is None or options.only in workload.name
    ]
    results = {}
    with server(options.server) as endpoint:
        warm_up(endpoint, options.warm_up)
        for workload in chosen:
            results[workload] = compare(
                workload, endpoint, options.rounds or (3 if options.quick else 5), options.round_trip / 1000
            )
            print(table({workload: results[workload]}), flush=True)
    print("\n" + table(results))
    write(results, options.output)
    if not options.quick:
        print()
        processor_time.main(["--start", "--package"])


if __name__ == "__main__":
    main()

"""What DynamoDB Local itself takes for the worker's transactions: the floor under every comparison that runs on it.

    uv run python -m tests.benchmarks.server_time

It carries out one write after another, whatever is sent side by side, so that no client is faster than the number of
its actions allows. DynamoDB itself has no such limit. The last line says what that makes of the comparison: how many
times as fast as the naive handler a worker would be whose own work took no time at all.
"""

import argparse
import itertools
import statistics
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from aggregation_worker.ledger.transactions import transact_items

from aggregation_worker import handler
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.commit import MAX_IN_FLIGHT
from aggregation_worker.local.pipeline import create_table
from tests.benchmarks import workloads
from tests.benchmarks.compare import LONGEST_ONE_BY_ONE, server
from tests.benchmarks.contenders import client_of, set_up
from tests.benchmarks.processor_time import planned, requests
from tests.postings import REFERENCE, transaction
from tests.records import insert, order

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LEDGER = "ledger"
TABLES = {**deployment.target_tables(REFERENCE), LEDGER: deployment.LEDGER}
# Rows of a transaction, and receipts on the page of each.
SHAPES = ((1, 1), (10, 1), (50, 1), (50, 3), (10, 100))


class ServerTime:
    """Sends transactions of new rows and pages, built beforehand, as fast as the server takes them."""

    def __init__(self, client: "DynamoDBClient") -> None:
        self._client = client
        self._rows = itertools.count()
        for table, definition in TABLES.items():
            create_table(client, table, definition)

    def milliseconds(self, rows: int, receipts: int, *, count: int, side_by_side: int) -> float:
        """Median time from the end of one transaction to the end of the next."""
        requests = [self._request(rows, receipts) for _ in range(count)]
        with ThreadPoolExecutor(side_by_side) as executor:
            ends = sorted(executor.map(self._send, requests))
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends)) * 1e3

    def seconds(self, transactions: Sequence[Any]) -> float:
        """Time for these transactions, sent side by side."""
        with ThreadPoolExecutor(MAX_IN_FLIGHT) as executor:
            start = time.perf_counter()
            list(executor.map(self._send, transactions))
            return time.perf_counter() - start

    def _request(self, rows: int, receipts: int) -> Any:
        items = [f"item{next(self._rows)}" for _ in range(rows)]
        records = [insert(order(item=item)) for item in items for _ in range(receipts)]
        return transact_items(transaction(*records), LEDGER, 1_794_835_658)

    def _send(self, items: Any) -> float:
        self._client.transact_write_items(TransactItems=items, ClientRequestToken=str(uuid.uuid4()))
        return time.perf_counter()


def bound(server_time: ServerTime, endpoint: str, rounds: int) -> float:
    """How many times as fast as the naive handler the worker's transactions alone are, planned and built beforehand.

    The median over rounds in which both take turns, in the reference workload.
    """
    times = []
    with set_up("naive", endpoint) as setup:
        for round_, batch in zip(range(rounds + 1), workloads.batches(workloads.REFERENCE), strict=False):
            part = batch[:LONGEST_ONE_BY_ONE]
            start = time.perf_counter()
            setup.contender.deliver(part)
            naive = (time.perf_counter() - start) / len(part) * len(batch)
            if round_:  # the first one warms up
                times.append(naive / server_time.seconds([requests(transaction) for transaction in planned(batch)]))
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.server_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=100, help="transactions of each shape (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=300, help="transactions before (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="of the last line (default: %(default)s)")
    options = parser.parse_args(arguments)
    with server("dynamodb-local") as endpoint:
        measured = ServerTime(client_of(endpoint, handler._config(total_max_attempts=1)))
        for shape in SHAPES:
            measured.milliseconds(*shape, count=max(2, options.warm_up // len(SHAPES)), side_by_side=MAX_IN_FLIGHT)
        print("| actions | receipts | one after another | eight side by side |\n|--:|--:|--:|--:|")
        for rows, receipts in SHAPES:
            alone, together = (
                measured.milliseconds(rows, receipts, count=options.count, side_by_side=threads)
                for threads in (1, MAX_IN_FLIGHT)
            )
            print(f"| {2 * rows} | {rows * receipts:,} | {alone:.1f} ms | {together:.1f} ms |", flush=True)
        times = bound(measured, endpoint, options.rounds)
        print(
            f"\n{workloads.REFERENCE.name}: a worker whose own work took no time would be {times:.1f} times as fast as "
            "the naive handler."
        )


if __name__ == "__main__":
    main()

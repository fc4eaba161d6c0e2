"""What DynamoDB Local itself takes for the worker's transactions: the floor under every comparison that runs on it.

    uv run python -m tests.benchmarks.server_time

It carries out one write after another, whatever is sent side by side, so that no client is faster than the number of
its actions allows. DynamoDB itself has no such limit.
"""

import argparse
import itertools
import statistics
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.benchmarks.compare import server
from tests.benchmarks.contenders import client_of
from tests.postings import REFERENCE, transaction
from tests.records import insert, order
from worker import deployment, handler
from worker.commit import MAX_IN_FLIGHT
from worker.ledger import transact_items
from worker.local.pipeline import create_table

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

LEDGER = "ledger"
# Rows of a transaction, and receipts on the page of each.
SHAPES = ((1, 1), (10, 1), (50, 1), (50, 3), (10, 100))


class ServerTime:
    """Sends transactions of new rows and pages, built beforehand, as fast as the server takes them."""

    def __init__(self, client: "DynamoDBClient") -> None:
        self._client = client
        self._rows = itertools.count()
        for table, definition in {**deployment.target_tables(REFERENCE), LEDGER: deployment.LEDGER}.items():
            create_table(client, table, definition)

    def milliseconds(self, rows: int, receipts: int, *, count: int, side_by_side: int) -> float:
        """Median time from the end of one transaction to the end of the next."""
        requests = [self._request(rows, receipts) for _ in range(count)]
        with ThreadPoolExecutor(side_by_side) as executor:
            ends = sorted(executor.map(self._send, requests))
        return statistics.median(later - earlier for earlier, later in itertools.pairwise(ends)) * 1e3

    def _request(self, rows: int, receipts: int) -> Any:
        items = [f"item{next(self._rows)}" for _ in range(rows)]
        records = [insert(order(item=item)) for item in items for _ in range(receipts)]
        return transact_items(transaction(*records), LEDGER, 1_794_835_658)

    def _send(self, items: Any) -> float:
        self._client.transact_write_items(TransactItems=items, ClientRequestToken=str(uuid.uuid4()))
        return time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.server_time",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--count", type=int, default=100, help="transactions of each shape (default: %(default)s)")
    parser.add_argument("--warm-up", type=int, default=300, help="transactions before (default: %(default)s)")
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


if __name__ == "__main__":
    main()

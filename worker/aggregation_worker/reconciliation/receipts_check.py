"""Compares totals with their own receipts, wherever all of these are still there.

The source proves a total but for what is kept of it, and proves nothing of an aggregation that ignores what is removed;
its receipts do. As long as a row has archived nothing, row and receipts are one item of the scan that reads the totals.
"""

from collections.abc import Callable, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.numbers import EXACT, Amounts, canonical_text
from aggregation_worker.ledger.reading import ChangesTooFastError, read_pages, read_stored, stored_of
from aggregation_worker.ledger.receipts import Aggregate, aggregate_of
from aggregation_worker.reconciliation.observation import measures_in, unexplained
from aggregation_worker.reconciliation.report import Finding, Verdict
from aggregation_worker.streams.records import Image

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Readings of a total until two in a row agree: one alone may have met a transaction between its two writes.
_MOST_READINGS = 5


@dataclass(slots=True)
class ReceiptsCheck:
    """The check of one run.

    Attributes:
        check_time: raises when the run's time is up.
    """

    client: "DynamoDBClient"
    ledger_table: str
    executor: Executor
    check_time: Callable[[], None]
    _suspects: dict[tuple[str, Group], tuple[Aggregate, Amounts]] = field(default_factory=dict)

    def look(self, aggregation: Aggregation, rows: Sequence[tuple[Group, Image]], *, at_pages: bool) -> None:
        """Takes note of those rows that differ from their receipts.

        Args:
            at_pages: also at rows with archived receipts, each of which costs a Query.
        """
        to_read = []
        for group, row in rows:
            aggregate = aggregate_of(aggregation, group)
            stored = stored_of(aggregate, row, ())
            # What a row alone does not explain, a repair may: its receipts are in the ledger.
            if (at_pages and not stored.is_whole) or any(unexplained(aggregation, stored) or ()):
                to_read.append((aggregate, row))
        for (aggregate, _), found in zip(to_read, self.executor.map(self._with_pages, to_read), strict=True):
            if any(found):
                self._suspects[aggregate.aggregation.name, aggregate.row.group] = aggregate, found

    def _with_pages(self, aggregate_and_row: tuple[Aggregate, Image]) -> Amounts:
        self.check_time()
        aggregate, row = aggregate_and_row
        pages = read_pages(self.client, self.ledger_table, aggregate, row)
        return unexplained(aggregate.aggregation, stored_of(aggregate, row, pages)) or ()

    def findings(self, but: Set[tuple[str, Group]]) -> list[Finding]:
        """The totals that differ from their receipts and still do, without those of which more is known already."""
        left = [suspect for name_and_group, suspect in self._suspects.items() if name_and_group not in but]
        return [finding for finding in self.executor.map(self._again, left) if finding is not None]

    def _again(self, suspect: tuple[Aggregate, Amounts]) -> Finding | None:
        aggregate, before = suspect
        aggregation, group = aggregate.aggregation, aggregate.row.group
        for _ in range(_MOST_READINGS):
            self.check_time()
            try:
                stored = read_stored(self.client, self.ledger_table, aggregate)
            except ChangesTooFastError:
                continue
            found = unexplained(aggregation, stored) or ()
            if not any(found):
                return None
            if found == before:
                return _finding(aggregate, measures_in(aggregation, stored.item) or (), found)
            before = found
        note = "it could not be compared with its receipts: it changes all the time"
        return Finding(aggregation, group, Verdict.UNSETTLED, None, None, note)


def _finding(aggregate: Aggregate, total: Amounts, found: Amounts) -> Finding:
    kept = found[len(total) :]
    notes = [f"what is kept of it by {', '.join(map(canonical_text, kept))}"] if any(kept) else []
    return Finding(
        aggregate.aggregation,
        aggregate.row.group,
        Verdict.UNEXPLAINED,
        total,
        tuple(map(EXACT.subtract, total, found)),
        ", ".join([*notes, "see aggregator explain"]),
    )

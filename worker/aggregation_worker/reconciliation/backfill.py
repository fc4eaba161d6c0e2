"""Backfill: adds what the source held before the records that the worker counts, exactly once, while everything runs.

An aggregation counts stream records from its **cut** on: the beginning of the stream or, where it has one, its `since`.
What the source held at the cut is its **starting values**, one for each aggregate. `snapshot` finds them; here they are
posted, and it is proved before that they are what is missing:

- The stream still holds every record from the cut on, when the last one has been read (`take_snapshot`).
- No worker has counted a record from before the cut. With `since` a worker leaves such records out whenever they come.
  Without, every aggregation of the file must be younger than the stream: else records of an earlier stream could be in
  the totals, or still get there as dead letters.
- Every record from the cut on is counted by a worker or here. Workers that did not know the aggregation yet may have
  handled records until shortly after the first one that does began (`TAKEOVER`); those records are posted here, through
  the worker's own postings and receipts, which makes it harmless where a worker has counted them. Later ones cannot
  start: the catalogue refuses a file that lacks the aggregation.

A starting value goes in as a record's contribution does: one write sets its receipt in the row, which must not be there
yet, and adds it. So a run can be killed anywhere, repeated, and made twice at once, and a ledger that is lost doubles
nothing. The aggregation's **marker** in the ledger says from which cut it was or is being filled, and when that was
finished.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Definitions, Group
from aggregation_worker.aggregations.numbers import Amounts, canonical_text, sum_of
from aggregation_worker.ledger.commit import Committer, Outcome, Plan
from aggregation_worker.ledger.markers import Filled, begin_backfill, finish_backfills
from aggregation_worker.ledger.next_write import next_start, next_step
from aggregation_worker.ledger.reading import read_stored
from aggregation_worker.ledger.receipts import Aggregate, Posting, aggregate_of, second_of
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.portions import portions
from aggregation_worker.reconciliation.posting import PATIENCE, post
from aggregation_worker.reconciliation.progress import Stage, Tell
from aggregation_worker.reconciliation.snapshot import Snapshot, take_snapshot
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.reconciliation.survey import WHAT_ELSE, BackfillError, Target, check_same_cut
from aggregation_worker.streams.reader import HistoryLostError, StreamReader
from aggregation_worker.streams.shards import IncompleteDescriptionError, TrimmedError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Seconds. How long after the first worker that knows an aggregation others may still be at work, which passed their
# check before: deployments, event source mappings and invocations under way take a few minutes at most.
TAKEOVER = 600
# Postings at a time.
_CHUNK = 1_000
_POLL = 0.2  # seconds
_EXAMPLES = 10
# The spool's note of the moment, in epoch seconds, before which all records are in it.
_READ_UNTIL = "read until"


@dataclass(slots=True)
class Result:
    """What was done for one aggregation.

    Attributes:
        aggregates: how many have a starting value; a value of zero is none.
        added: how many of them were added in this run; the others were in already.
        unusable: items, as they were at the cut, that the aggregation cannot use.
        noticed: records from the cut on with images that it cannot use; a worker that knows it sends notices of them.
        caught_up: contributions of records from the cut on that no worker had counted.
        totals: the sum of the starting values, by measure; only of a dry run.
        examples: some of the starting values; only of a dry run.
    """

    target: Target
    aggregates: int = 0
    added: int = 0
    unusable: int = 0
    noticed: int = 0
    caught_up: int = 0
    totals: Amounts = ()
    examples: list[tuple[Group, Amounts]] = field(default_factory=list)


@dataclass(slots=True)
class Backfill:
    """One run.

    Attributes:
        client: reads and writes the ledger; throttled calls are repeated by itself.
        executor: for the writes in flight.
        catch_up_until: epoch seconds; records created until then are posted here, too. By default `takeover` after the
            first worker that knows the aggregation; later where workers without it were at work again.
        takeover: seconds; 0 where no other worker can have been at work.
        patience: seconds without any progress after which posting is given up.
        progress: told how far it is.
        sleep, now: a pause in seconds, and the time of day in epoch seconds.
    """

    client: "DynamoDBClient"
    ledger_table: str
    retention_days: int
    executor: Executor
    catch_up_until: int | None = None
    takeover: int = TAKEOVER
    patience: float = PATIENCE
    progress: Tell = lambda *_: None
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.time

    def run(
        self,
        targets: Sequence[Target],
        definitions: Definitions,
        items: ItemSource,
        reader: StreamReader,
        spool: Spool,
        *,
        dry_run: bool = False,
    ) -> list[Result]:
        """Fills the aggregations; a dry run does all but write.

        Raises:
            BackfillError: it cannot be done, or not now.
            WorkerError: the items, the stream, the spool or the ledger cannot be used.
            ClientError: nothing can be read or written before an operator acts.
        """
        complete = spool.is_complete
        started_at = self.now()
        try:
            snapshot = take_snapshot(
                [target.aggregation for target in targets],
                definitions.source,
                items,
                reader,
                spool,
                whole_history=True,
                progress=self.progress,
            )
            results = [Result(target, spool.number_of_baselines(target.aggregation.name)) for target in targets]
            if not dry_run:
                # A snapshot that stood here already says nothing of the records that came after it.
                self._read_the_takeover(targets, snapshot, reader, spool, 0.0 if complete else started_at)
        except (HistoryLostError, TrimmedError) as error:
            raise BackfillError(f"{error}: {WHAT_ELSE}") from error
        except IncompleteDescriptionError as error:
            raise BackfillError(f"{error}, and it continues where it is") from error
        for result in results:
            result.unusable = spool.unusable(result.target.aggregation.name)
            result.noticed = snapshot.noticed(result.target.aggregation)
            if dry_run:
                _add_up(result, spool)
            else:
                self._catch_up(result, spool)
        if not dry_run:
            filled = [
                Filled(result.target.aggregation.name, result.aggregates, result.unusable)
                for result in results
                if self._post(result, spool)
            ]
            finish_backfills(self.client, self.ledger_table, filled, self.now(), self.sleep)
        return results

    # --- Records that workers without the aggregation may have handled -----------------------------------------------

    def _until(self, target: Target) -> int:
        """The last second, in epoch seconds, whose records workers without the aggregation may have handled."""
        return target.known_since + self.takeover if self.catch_up_until is None else self.catch_up_until

    def _read_the_takeover(
        self, targets: Sequence[Target], snapshot: Snapshot, reader: StreamReader, spool: Spool, read_until: float
    ) -> None:
        """Reads on until every record is spooled that is to be posted here; waits for those that are not written yet.

        Args:
            read_until: epoch seconds; every record created before has been read in this run.
        """
        until = max(map(self._until, targets))
        read_until = max(read_until, float(spool.note(_READ_UNTIL) or 0))
        if read_until <= until + 1:
            started_at = self.now()
            while (left := until + 1 - self.now()) > 0:
                self.progress(Stage.WAITING, round(self.now() - started_at), round(until + 1 - started_at))
                if not snapshot.pump():
                    self.sleep(min(_POLL, left))
            snapshot.pump_until(time.monotonic())
            reader.check_history(min(target.cut.began for target in targets))
            read_until = until + 2
        spool.set_note(_READ_UNTIL, str(read_until))

    def _catch_up(self, result: Result, spool: Spool) -> None:
        """Posts the records of the takeover; those that a worker has counted have their receipts already."""
        aggregation, until = result.target.aggregation, self._until(result.target)
        done = 0
        handled = (later for later in spool.later_receipts(aggregation.name) if second_of(later.receipt) <= until)
        for chunk in portions(handled, _CHUNK):
            aggregates: dict[Group, Aggregate] = {}
            postings = [
                Posting(
                    number,
                    second_of(later.receipt),
                    aggregates.setdefault(later.group, aggregate_of(aggregation, later.group)),
                    later.receipt,
                    later.amounts,
                    later.kept,
                )
                for number, later in enumerate(chunk)
            ]
            result.caught_up += len(self._settle(postings, next_step).applied)
            done += len(chunk)
            self.progress(Stage.CATCHING_UP, done, None)

    # --- Starting values ----------------------------------------------------------------------------------------------

    def _post(self, result: Result, spool: Spool) -> bool:
        """Posts the starting values of one aggregation; `False` if another run has finished it."""
        target = result.target
        name = target.aggregation.name
        marker = begin_backfill(self.client, self.ledger_table, name, target.cut, self.now(), self.sleep)
        if marker.finished_at is not None:
            return False
        check_same_cut(target.aggregation, target.cut, marker)
        done = 0
        for chunk in portions(spool.baselines(name), _CHUNK):
            result.added += self._post_values(target, chunk)
            done += len(chunk)
            self.progress(Stage.POSTING, done, result.aggregates)
        return True

    def _post_values(self, target: Target, values: Sequence[tuple[Group, Amounts]]) -> int:
        """Posts some starting values; returns how many were not in yet.

        Raises:
            BackfillError: an aggregate has another starting value.
        """
        now = int(self.now())
        postings = [
            Posting(number, now, aggregate_of(target.aggregation, group), target.cut.name, amounts)
            for number, (group, amounts) in enumerate(values)
        ]
        outcome = self._settle(postings, next_start)
        if outcome.differing:
            posting = outcome.differing[0]
            stored = read_stored(self.client, self.ledger_table, posting.aggregate)
            there = "it has just gone"
            if stored.starting_value is not None:
                there = f"{stored.starting_value[0]}: {_shown(stored.starting_value[1])}"
            raise BackfillError(
                f"{_name(posting)} has another starting value already ({there}) than the one found now "
                f"({posting.receipt}: {_shown(posting.amounts)}): nothing was added to it. Let aggregator "
                "reconcile --repair set it right"
            )
        return len(outcome.applied)

    def _settle(self, postings: Sequence[Posting], plan: Plan) -> Outcome:
        """Commits all postings, whatever conflicts and throttles.

        Raises:
            BackfillError: some cannot go in for good.
            PostingError: nothing has gone through for `patience` seconds.
            CommitError: nothing can be written before an operator acts.
        """
        committer = Committer(self.client, self.ledger_table, self.retention_days, self.executor, plan=plan)
        outcome = post(committer, postings, self.patience)
        if outcome.refused:
            posting, reason = outcome.refused[0]
            raise BackfillError(
                f"{len(outcome.refused)} contributions are refused, the first to {_name(posting)} in table "
                f"{posting.aggregate.row.table} ({_shown(posting.amounts)}): {reason}; put it right and run this again"
            )
        return outcome


def _add_up(result: Result, spool: Spool) -> None:
    """What a dry run says of the starting values."""
    aggregation = result.target.aggregation
    totals: Amounts = (Decimal(0),) * len(aggregation.measures)
    for group, amounts in spool.baselines(aggregation.name):
        totals = sum_of([amounts], totals)
        if len(result.examples) < _EXAMPLES:
            result.examples.append((group, amounts))
    result.totals = totals


def _name(posting: Posting) -> str:
    return f"{posting.aggregate.aggregation.name} {', '.join(posting.aggregate.row.group)}"


def _shown(amounts: Amounts) -> str:
    return ", ".join(map(canonical_text, amounts))

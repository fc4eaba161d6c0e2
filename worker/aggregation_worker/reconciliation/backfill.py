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
  the worker's own postings and receipts, which makes it harmless where a worker has counted them.

A starting value goes in as a record's contribution does: one transaction puts its receipt, an item of the ledger that
must not be there yet, and adds it to the row. So a run can be killed anywhere, repeated, and made twice at once. The
aggregation's **marker** in the ledger says from which cut it was or is being filled, and when that was finished.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from botocore.exceptions import ClientError

from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group
from aggregation_worker.aggregations.definitions import moment_text
from aggregation_worker.aggregations.numbers import EXACT, Amounts, canonical_text
from aggregation_worker.ledger.commit import Committer, Deadline, Outcome
from aggregation_worker.ledger.definition_guard import DefinitionChangedError, check_definitions, recorded_at
from aggregation_worker.ledger.markers import (
    AGGREGATES,
    CUT,
    FINISHED_AT,
    STARTED_AT,
    UNUSABLE,
    Cut,
    Marker,
    cut_of,
    marker_key,
    read_marker,
)
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    BACKFILL_PAGE,
    NO_RECEIPTS,
    PAGE_KEY,
    Aggregate,
    Posting,
    aggregate_of,
    read_receipt,
)
from aggregation_worker.ledger.transactions import Transaction, plan, starting_value_items, transact_items
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.snapshot import Progress, Snapshot, take_snapshot
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.streams.reader import HistoryLostError, StreamReader, stream_began
from aggregation_worker.streams.shards import TrimmedError

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import TransactWriteItemTypeDef

# Seconds. How long after the first worker that knows an aggregation others may still be at work: deployments, event
# source mappings and invocations under way take a few minutes at most.
TAKEOVER = 600
# Seconds that a `since` must lie in the past before the first item is read, so that every write before it is done and
# stands in the items, whatever the clocks say.
SINCE_MARGIN = 120

# Postings at a time: 20 transactions of 50 aggregates.
_CHUNK = 1_000
# Most keys of a BatchGetItem (API reference).
_KEYS_PER_READ = 100
_ROUND = 60.0  # seconds: one round of commits
# Markers in one transaction, and how often it is tried again when another run writes the same ones.
_MARKERS_PER_TRANSACTION = 100
_ATTEMPTS = 20
_POLL = 0.2  # seconds
_EXAMPLES = 10
# The spool's note of the moment, in epoch seconds, before which all records are in it.
_READ_UNTIL = "read until"

WHAT_ELSE = (
    "give the aggregation a new name and a since that lies in the last hours, deploy, and backfill it under that name "
    "(the records from since on are counted by the worker, everything before it by the backfill)"
)

T = TypeVar("T")


class BackfillError(Exception):
    """It cannot be done, or not now; the message says why and what to do. Nothing was counted twice."""


@dataclass(frozen=True, slots=True)
class Target:
    """An aggregation to be filled.

    Attributes:
        known_since: when the first worker that knows it began, in epoch seconds.
    """

    aggregation: Aggregation
    cut: Cut
    known_since: int


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to do.

    Attributes:
        targets: the aggregations to be filled.
        finished: those that are filled already, by name.
    """

    targets: tuple[Target, ...]
    finished: Mapping[str, Marker]


@dataclass(slots=True)
class Result:
    """What was done for one aggregation.

    Attributes:
        aggregates: how many have a starting value; a value of zero is none.
        added: how many of them were added in this run; the others were in already.
        unusable: items, as they were at the cut, that the aggregation cannot use.
        refused: records from the cut on that it cannot use; a worker that knows it parks them.
        caught_up: contributions of records from the cut on that no worker had counted.
        totals: the sum of the starting values, by measure; only of a dry run.
        examples: some of the starting values; only of a dry run.
    """

    target: Target
    aggregates: int = 0
    added: int = 0
    unusable: int = 0
    refused: int = 0
    caught_up: int = 0
    totals: Amounts = ()
    examples: list[tuple[Group, Amounts]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Step:
    """How far a run is.

    Attributes:
        stage: `items`, `stream` and `sums` of the snapshot, `waiting`, `catching up`, `posting`.
        done, of: items, records, seconds, receipts or aggregates; `of` is an estimate, or `None`.
    """

    stage: str
    done: int
    of: int | None


def survey(
    client: "DynamoDBClient",
    ledger_table: str,
    definitions: Definitions,
    stream_arn: str,
    aggregations: Sequence[Aggregation],
    now: float,
) -> Survey:
    """What is to be done for these aggregations, from the ledger alone.

    Args:
        now: epoch seconds.

    Raises:
        BackfillError: one of them cannot be filled: no worker knows it, its definition has changed, it was begun from
            another cut, or its cut proves nothing.
        ClientError: the ledger cannot be read.
    """
    targets = []
    finished = {}
    for aggregation in aggregations:
        cut = cut_of(aggregation, stream_arn)
        marker = read_marker(client, ledger_table, aggregation.name)
        if marker is not None and marker.finished_at is not None:
            finished[aggregation.name] = marker
            continue
        if marker is not None:
            _check_same_cut(aggregation, cut, marker)
        known_since = _known_since(client, ledger_table, aggregation)
        if known_since is None:
            raise BackfillError(
                f"{aggregation.name}: no worker has started with this aggregation yet: deploy it first, and invoke the "
                "function once (an empty batch will do, see runbooks/add-an-aggregation.md), so that it is known from "
                "when on the worker counts"
            )
        targets.append(Target(aggregation, cut, known_since))
    for target in targets:
        since = target.aggregation.since
        if since is None:
            _check_no_earlier_stream(client, ledger_table, definitions, target)
        else:
            _check_since(target, since, stream_began(stream_arn), now)
    return Survey(tuple(targets), finished)


def _known_since(client: "DynamoDBClient", ledger_table: str, aggregation: Aggregation) -> int | None:
    """When the first worker that knows the aggregation as it is began."""
    known_since = recorded_at(client, ledger_table, aggregation)
    if known_since is not None:
        try:
            check_definitions(client, ledger_table, [aggregation])
        except DefinitionChangedError as error:
            raise BackfillError(str(error)) from error
    return known_since


def _check_same_cut(aggregation: Aggregation, cut: Cut, marker: Marker) -> None:
    if marker.cut != cut.name:
        raise BackfillError(
            f"{aggregation.name}: a backfill from another cut ({marker.cut}, not {cut.name}) was begun "
            f"at {moment_text(marker.started_at)} and not finished: some totals have that starting value. Let "
            f"aggregator reconcile --repair set them right, or {WHAT_ELSE}"
        )


def _check_no_earlier_stream(
    client: "DynamoDBClient", ledger_table: str, definitions: Definitions, target: Target
) -> None:
    """Refuses a cut at the stream's beginning if workers may have counted records of an earlier one.

    What those changed is in the items, too. Dead letters of that stream can come at any time, to every aggregation that
    the worker knows by then, so the oldest aggregation tells.
    """
    for aggregation in definitions.aggregations:
        known_since = recorded_at(client, ledger_table, aggregation)
        if known_since is not None and known_since < int(target.cut.began.timestamp()):
            raise BackfillError(
                f"{target.aggregation.name}: the stream began at {target.cut.began.isoformat(timespec='seconds')}, but "
                f"a worker with {aggregation.name} is older: it has read an earlier stream, whose records have changed "
                f"the items, too. To count nothing twice, {WHAT_ELSE}"
            )


def _check_since(target: Target, since: int, began: datetime, now: float) -> None:
    """Refuses a `since` whose earlier records may not be written yet, or whose later ones another stream has."""
    earliest = since + SINCE_MARGIN
    if now < earliest:
        raise BackfillError(
            f"{target.aggregation.name}: its since, {moment_text(since)}, "
            f"{'lies in the future' if since > now else 'was just now'}: run this again after {moment_text(earliest)}"
        )
    if target.cut.began < began:
        raise BackfillError(
            f"{target.aggregation.name}: its since, {moment_text(since)}, is older than the stream, which began at "
            f"{began.isoformat(timespec='seconds')}: {WHAT_ELSE}"
        )


@dataclass(slots=True)
class Backfill:
    """One run.

    Attributes:
        client: reads and writes the ledger; throttled calls are repeated by itself.
        executor: for the transactions in flight.
        catch_up_until: epoch seconds; records created until then are posted here, too. By default `TAKEOVER` after the
            first worker that knows the aggregation; later where workers without it were at work again.
        patience: seconds without any progress after which posting is given up.
        progress: told how far it is.
        sleep, now: a pause in seconds, and the time of day in epoch seconds.
    """

    client: "DynamoDBClient"
    ledger_table: str
    retention_days: int
    executor: Executor
    catch_up_until: int | None = None
    patience: float = 300.0
    progress: Callable[[Step], None] = lambda _: None
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
            SnapshotError, SpoolError, ExportError: the items or the spool cannot be used.
            CommitError, ClientError: nothing can be written before an operator acts.
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
                progress=self._snapshot_progress,
                since_margin=SINCE_MARGIN,
            )
            results = [Result(target, snapshot.number_of_baselines(target.aggregation)) for target in targets]
            if not dry_run:
                # A snapshot that stood here already says nothing of the records that came after it.
                self._read_the_takeover(targets, snapshot, reader, spool, 0.0 if complete else started_at)
        except (HistoryLostError, TrimmedError) as error:
            raise BackfillError(f"{error}: {WHAT_ELSE}") from error
        for result in results:
            result.unusable = snapshot.unusable(result.target.aggregation)
            result.refused = snapshot.refused(result.target.aggregation)
            if dry_run:
                _add_up(result, snapshot)
            else:
                self._catch_up(result, snapshot)
        if not dry_run:
            self._finish([result for result in results if self._post(result, snapshot)])
        return results

    def _snapshot_progress(self, progress: Progress) -> None:
        done = progress.records if progress.stage == "stream" else progress.items
        self.progress(Step(progress.stage, done, progress.estimated_items if progress.stage == "items" else None))

    # --- Records that workers without the aggregation may have handled -----------------------------------------------

    def _until(self, target: Target) -> int:
        """The last second, in epoch seconds, whose records workers without the aggregation may have handled."""
        return target.known_since + TAKEOVER if self.catch_up_until is None else self.catch_up_until

    def _read_the_takeover(
        self, targets: Sequence[Target], snapshot: Snapshot, reader: StreamReader, spool: Spool, read_until: float
    ) -> None:
        """Goes on reading until every record is spooled that is to be posted here; waits where it is not written yet.

        Args:
            read_until: epoch seconds; every record created before has been read in this run.
        """
        until = max(map(self._until, targets))
        read_until = max(read_until, float(spool.note(_READ_UNTIL) or 0))
        if read_until <= until + 1:
            started_at = self.now()
            while (left := until + 1 - self.now()) > 0:
                self.progress(Step("waiting", round(self.now() - started_at), round(until + 1 - started_at)))
                if not snapshot.pump():
                    self.sleep(min(_POLL, left))
            snapshot.pump_until(time.monotonic())
            reader.check_history(min(target.cut.began for target in targets))
            read_until = until + 2
        spool.set_note(_READ_UNTIL, str(read_until))

    def _catch_up(self, result: Result, snapshot: Snapshot) -> None:
        """Posts the records of the takeover; of those that a worker has counted the receipts are there."""
        aggregation, until = result.target.aggregation, self._until(result.target)
        done = 0
        for chunk in _chunks(snapshot.later_receipts(aggregation, before=until + 1), _CHUNK):
            places: dict[Group, Aggregate] = {}
            postings = [
                Posting(
                    number,
                    later.created_at,
                    places.setdefault(later.group, aggregate_of(aggregation, later.group)),
                    later.page,
                    later.receipt,
                    later.amounts,
                )
                for number, later in enumerate(chunk)
            ]
            result.caught_up += len(self._settle(postings, transact_items).applied)
            done += len(chunk)
            self.progress(Step("catching up", done, None))

    # --- Starting values ----------------------------------------------------------------------------------------------

    def _post(self, result: Result, snapshot: Snapshot) -> bool:
        """Posts the starting values of one aggregation; `False` if another run has finished it.

        What an earlier run has posted only the ledger says: it is asked before anything is sent.
        """
        target = result.target
        if not self._begin(target):
            return False
        done = 0
        for chunk in _chunks(snapshot.baselines(target.aggregation), _CHUNK):
            result.added += self._post_values(target, chunk)
            done += len(chunk)
            self.progress(Step("posting", done, result.aggregates))
        return True

    def _post_values(self, target: Target, values: Sequence[tuple[Group, Amounts]]) -> int:
        """Posts some starting values; returns how many were not in yet."""
        now = int(self.now())
        postings = [
            Posting(number, now, aggregate_of(target.aggregation, group), BACKFILL_PAGE, target.cut.name, amounts)
            for number, (group, amounts) in enumerate(values)
        ]
        missing = self._missing(postings)
        outcome = self._settle(missing, starting_value_items)
        # Another run was quicker, or an answer was lost: either way it must be this very value.
        lost = self._missing(outcome.duplicates)
        if lost:
            raise BackfillError(
                f"{lost[0].aggregate.name}: the receipt of its starting value has just disappeared from the ledger: "
                "something other than the worker is changing it"
            )
        return len(outcome.applied)

    def _missing(self, postings: Sequence[Posting]) -> list[Posting]:
        """Those whose receipt is not in the ledger.

        Raises:
            BackfillError: an aggregate has another starting value.
        """
        parts = list(_chunks(postings, _KEYS_PER_READ))
        standing: dict[str, Mapping[str, Any]] = {}
        for found in self.executor.map(self._standing, parts):
            standing |= found
        missing = []
        for posting in postings:
            item = standing.get(posting.aggregate.name)
            if item is None:
                missing.append(posting)
                continue
            receipts = {name: read_receipt(value) for name, value in item.items() if name not in NO_RECEIPTS}
            if receipts != {posting.receipt: posting.amounts}:
                there = "; ".join(f"{name}: {_shown(amounts)}" for name, amounts in receipts.items())
                raise BackfillError(
                    f"{posting.aggregate.name}: has another starting value already ({there}) than the one found now "
                    f"({posting.receipt}: {_shown(posting.amounts)}): nothing was added to it. Let aggregator "
                    "reconcile --repair set it right"
                )
        return missing

    def _standing(self, postings: Sequence[Posting]) -> dict[str, Mapping[str, Any]]:
        """The starting values' items in the ledger, by the aggregate's name."""
        keys: Sequence[Mapping[str, Any]] = [
            {AGGREGATE_KEY: {"S": posting.aggregate.name}, PAGE_KEY: {"S": BACKFILL_PAGE}} for posting in postings
        ]
        found: dict[str, Mapping[str, Any]] = {}
        given_up_at = time.monotonic() + self.patience
        while keys:
            request: Any = {self.ledger_table: {"Keys": keys, "ConsistentRead": True}}
            answer = self.client.batch_get_item(RequestItems=request)
            found |= {item[AGGREGATE_KEY]["S"]: item for item in answer["Responses"].get(self.ledger_table, [])}
            left = answer.get("UnprocessedKeys", {}).get(self.ledger_table)
            keys = [] if left is None else left["Keys"]
            if keys:
                if time.monotonic() > given_up_at:
                    raise BackfillError(f"table {self.ledger_table} is throttled all the time: run this again later")
                self.sleep(_POLL)
        return found

    def _settle(
        self,
        postings: Sequence[Posting],
        actions: "Callable[[Transaction, str, int], list[TransactWriteItemTypeDef]]",
    ) -> Outcome:
        """Commits all postings, whatever conflicts and throttles.

        Raises:
            BackfillError: DynamoDB refuses some for good, or nothing has gone through for `patience` seconds.
            CommitError: nothing can be written before an operator acts.
        """
        committer = Committer(self.client, self.ledger_table, self.retention_days, self.executor, actions=actions)
        whole = Outcome()
        given_up_at = time.monotonic() + self.patience
        pending, _ = plan(postings)
        while pending:
            outcome = committer.commit(pending, _deadline(min(_ROUND, self.patience)))
            whole.applied += outcome.applied
            whole.duplicates += outcome.duplicates
            whole.refused += outcome.refused
            if outcome.applied or outcome.duplicates or outcome.refused:
                given_up_at = time.monotonic() + self.patience
            elif outcome.unsettled and time.monotonic() >= given_up_at:
                raise BackfillError(
                    f"nothing could be written for {self.patience:.0f} s (conflicts, throttling or no answer); what is "
                    "in stays in: run this again later"
                )
            pending, _ = plan(outcome.unsettled)
        if whole.refused:
            posting, reason = whole.refused[0]
            raise BackfillError(
                f"DynamoDB refuses {len(whole.refused)} contributions, the first to {posting.aggregate.name} in table "
                f"{posting.aggregate.row.table} ({_shown(posting.amounts)}): {reason}; put it right and run this again"
            )
        return whole

    # --- Markers --------------------------------------------------------------------------------------------------

    def _begin(self, target: Target) -> bool:
        """Writes the marker unless it is there; `False` if it says that all is done.

        Raises:
            BackfillError: it says that the aggregation is being filled from another cut.
        """
        values = {CUT: {"S": target.cut.name}, STARTED_AT: {"N": str(int(self.now()))}}
        if self._marked([self._mark(target, values, absent=(CUT,))]):
            return True
        marker = self._read_marker(target)
        if marker.finished_at is None:
            _check_same_cut(target.aggregation, target.cut, marker)
        return marker.finished_at is None

    def _finish(self, results: Sequence[Result]) -> None:
        """Marks aggregations as finished, all of them at once (up to a hundred).

        So a run that is killed here has the same aggregations before it the next time, and finds its spool.
        """
        for chunk in _chunks(results, _MARKERS_PER_TRANSACTION):
            left = chunk
            while left and not self._marked([self._finished(result) for result in left]):
                # Another run was quicker with some of them.
                left = [result for result in left if self._read_marker(result.target).finished_at is None]

    def _finished(self, result: Result) -> "TransactWriteItemTypeDef":
        numbers = {FINISHED_AT: int(self.now()), AGGREGATES: result.aggregates, UNUSABLE: result.unusable}
        values = {name: {"N": str(number)} for name, number in numbers.items()}
        return self._mark(result.target, values, absent=(FINISHED_AT,), present=(CUT,))

    def _mark(
        self, target: Target, values: Mapping[str, Any], *, absent: Sequence[str], present: Sequence[str] = ()
    ) -> "TransactWriteItemTypeDef":
        """Sets attributes of the marker under the condition that others are absent, or there."""
        names = {f"#{name}": name for name in (*values, *absent, *present)}
        conditions = [f"attribute_not_exists(#{name})" for name in absent]
        conditions += [f"attribute_exists(#{name})" for name in present]
        return {
            "Update": {
                "TableName": self.ledger_table,
                "Key": marker_key(target.aggregation.name),
                "UpdateExpression": "SET " + ", ".join(f"#{name} = :{name}" for name in values),
                "ConditionExpression": " AND ".join(conditions),
                "ExpressionAttributeNames": names,
                "ExpressionAttributeValues": {f":{name}": value for name, value in values.items()},
            }
        }

    def _marked(self, items: "Sequence[TransactWriteItemTypeDef]") -> bool:
        """Writes markers together, through conflicts with other runs; `False` if a condition does not hold."""
        for _ in range(_ATTEMPTS):
            try:
                self.client.transact_write_items(TransactItems=items, ClientRequestToken=str(uuid4()))
            except ClientError as error:
                codes = {reason.get("Code") for reason in error.response.get("CancellationReasons", [])}
                if "ConditionalCheckFailed" in codes:
                    return False
                if not codes & {"TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"}:
                    raise
                self.sleep(_POLL)
            else:
                return True
        raise BackfillError(f"the markers in table {self.ledger_table} cannot be written now: run this again later")

    def _read_marker(self, target: Target) -> Marker:
        marker = read_marker(self.client, self.ledger_table, target.aggregation.name)
        if marker is None:
            raise BackfillError(
                f"{target.aggregation.name}: its marker has disappeared from the ledger: something other than the "
                "worker is changing it"
            )
        return marker


def _add_up(result: Result, snapshot: Snapshot) -> None:
    """What a dry run tells of the starting values."""
    measures = result.target.aggregation.measures
    totals: Amounts = tuple(Decimal(0) for _ in measures)
    for group, amounts in snapshot.baselines(result.target.aggregation):
        totals = tuple(map(EXACT.add, totals, amounts))
        if len(result.examples) < _EXAMPLES:
            result.examples.append((group, amounts))
    result.totals = totals


def _shown(amounts: Amounts) -> str:
    return ", ".join(map(canonical_text, amounts))


def _deadline(seconds: float) -> Deadline:
    end = time.monotonic() + seconds
    return Deadline(lambda: end - time.monotonic(), stop_sending=0.0, stop_waiting=0.0)


def _chunks(entries: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(entries)
    while chunk := list(islice(left, size)):
        yield chunk

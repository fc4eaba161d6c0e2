"""Compares every total with its source while both go on, and corrects what differs if asked to.

One run: the source is read and joined with the stream (`snapshot`), the target tables are read, and every aggregate
that differs or that later records touch is observed until it is clear which it is (`observer`): equal, drift, or not to
be told. `corrections` corrects. The operators' command and the scheduled function only make the parts and show the
report.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, RemovePolicy
from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.catalogue import Catalogue, CatalogueError, read_catalogue
from aggregation_worker.ledger.commit import Committer
from aggregation_worker.ledger.markers import Marker, close_to_backfill, cut_of, read_marker
from aggregation_worker.ledger.receipts import first_position
from aggregation_worker.reconciliation.corrections import HAS_RECEIPTS, Corrections, give_receipts
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.observation import rows_of, worth_in
from aggregation_worker.reconciliation.observer import NOT_A_NUMBER, ObservedAggregate, Observer, settle
from aggregation_worker.reconciliation.portions import portions
from aggregation_worker.reconciliation.progress import Stage, Tell
from aggregation_worker.reconciliation.receipts_check import ReceiptsCheck
from aggregation_worker.reconciliation.repair import Repairer
from aggregation_worker.reconciliation.report import Finding, Report, Verdict
from aggregation_worker.reconciliation.snapshot import Snapshot, take_snapshot
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.reconciliation.waiting_letters import Notices, Waiting, groups_waiting, read_notices
from aggregation_worker.streams.reader import StreamReader

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Seconds for which a record without a receipt is waited for before the worker is said to be behind: batching windows,
# throttling and a few retries included.
PATIENCE = 60.0
# How long after an aggregation began its totals are compared with receipts on pages, too: afterwards most rows have
# lost pages, which expire, and to read the others tells little.
_PAGES_LAST = timedelta(days=60)
# A worker's clock, the stream's and this one's differ by less; DynamoDB Local cuts a record's second to the minute.
_CLOCKS = timedelta(minutes=15)
_NOT_PROVABLE = "removed items may account for it"
_ROWS_AT_ONCE = 1_000
_ZERO = Decimal(0)


class ReconcileError(WorkerError):
    """Nothing can be said about the totals; the message says why and what to do."""


class OutOfTimeError(ReconcileError):
    """The time was up before every total was decided."""


@dataclass(frozen=True, slots=True)
class _Subject:
    """An aggregation, and what the ledger says of it before the run.

    Attributes:
        known_since: since when a worker has counted for it, in epoch seconds.
    """

    aggregation: Aggregation
    known_since: int | None
    marker: Marker | None

    @property
    def is_counted(self) -> bool:
        return self.known_since is not None

    @property
    def may_have_all_pages(self) -> bool:
        return self.known_since is not None and time.time() - self.known_since < _PAGES_LAST.total_seconds()

    @property
    def is_backfilled(self) -> bool:
        return self.marker is not None and self.marker.finished_at is not None

    @property
    def can_be_compared(self) -> bool:
        return self.aggregation.since is None or self.is_backfilled

    def hints(self) -> Iterator[str]:
        """What there is to say before anything is compared."""
        name = self.aggregation.name
        if not self.is_counted:
            yield f"{name}: no worker has counted for it yet; deploy the definitions, then backfill it"
        if self.marker is not None and not self.is_backfilled:
            yield f"{name}: its backfill is not finished; run aggregator backfill {name} again"
        if not self.can_be_compared:
            yield (
                f"{name}: not compared: it counts only since a moment, and what was there before is not backfilled yet"
            )


@dataclass(frozen=True, slots=True)
class Repairs:
    """What a run needs to repair.

    Attributes:
        letters: reads what waits in the dead-letter queue, all of it, or raises; called twice, and must be certain of
            it the second time, before anything is corrected.
        retention_days: of the ledger's pages.
    """

    letters: Callable[[], Waiting]
    retention_days: int


@dataclass(frozen=True, slots=True)
class _Letters:
    """The notices of a run that repairs.

    What else waits is read when it is known what drifts: a record that comes into the queue until then is known then.
    """

    read: Callable[[], Waiting]
    notices: Notices
    committer: Committer


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """One run.

    Attributes:
        aggregations: those to compare; all of them belong to `definitions`.
        items: the source's items. From an export the stream must be read from its beginning.
        reader: of the source's stream; from its beginning also to repair, so that what can still come is known.
        executor: runs observations and corrections side by side.
        patience: seconds for which a record without a receipt is waited for.
        repairs: with it the run repairs, and the source must have had no other stream for a day.
        seconds_left: until the run must have ended.
    """

    client: "DynamoDBClient"
    definitions: Definitions
    aggregations: Sequence[Aggregation]
    ledger_table: str
    items: ItemSource
    reader: StreamReader
    executor: Executor
    patience: float = PATIENCE
    repairs: Repairs | None = None
    seconds_left: Callable[[], float] = lambda: float("inf")
    progress: Tell = lambda *_: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def run(self, spool: Spool) -> Report:
        """Compares, and repairs if it is to.

        Args:
            spool: a new one.

        Raises:
            OutOfTimeError: the time was up.
            WorkerError, ClientError: nothing can be said, or not everything was corrected that could be; what was
                corrected stays so.
        """
        with Spool(None) as before:
            return self._run(spool, before)

    def _run(self, spool: Spool, before: Spool) -> Report:
        started_at, began = datetime.now(UTC), self.clock()
        if self.reader.start != "TRIM_HORIZON" and (self.repairs is not None or self.items.read_at is not None):
            raise ReconcileError("to repair, or with an export, the stream must be read from its beginning")
        catalogue = read_catalogue(self.client, self.ledger_table)
        catalogue.check(self.definitions.aggregations)
        subjects = {aggregation.name: self._subject(aggregation, catalogue) for aggregation in self.aggregations}
        hints = [hint for subject in subjects.values() for hint in subject.hints()]
        try:
            catalogue.check_image_reading()
        except CatalogueError as error:
            if self.repairs is not None:
                raise
            hints.append(str(error))
        left_out = tuple(name for name, subject in subjects.items() if not subject.can_be_compared)
        compared = [subject.aggregation for subject in subjects.values() if subject.can_be_compared]
        if not compared:
            return Report((), 0, 0, 0, (), (), left_out, tuple(hints), started_at, self.clock() - began)
        names = tuple(aggregation.name for aggregation in compared)
        letters = None if self.repairs is None else self._read_letters(self.repairs, names)
        snapshot = take_snapshot(
            compared,
            self.definitions.source,
            self.items,
            self.reader,
            spool,
            progress=self._tell_in_time,
        )
        observer = Observer(
            client=self.client,
            ledger_table=self.ledger_table,
            snapshot=snapshot,
            executor=self.executor,
            noticed=frozenset() if letters is None else letters.notices.receipts,
            before=before,
            recent=first_position((started_at - _CLOCKS).timestamp()),
            check_time=self._check_time,
            clock=self.clock,
            sleep=self.sleep,
        )
        check = ReceiptsCheck(self.client, self.ledger_table, self.executor, self._check_time)
        not_numbers = self._read_totals(compared, subjects, check, snapshot)
        observer.read_stream_up_to_now()
        aggregates, to_observe, findings = self._compare(compared, observer, not_numbers)
        findings += settle(observer, to_observe, patience=self.patience, progress=self.progress)
        unproved = tuple(one.name for one in compared if one.remove is RemovePolicy.IGNORE)
        settled: tuple[str, ...] = ()
        if letters is not None:
            findings = self._repair(findings, letters, subjects, observer)
        findings = self._with_receipts(check, findings, observer)
        if letters is not None:
            open_ = {one.name_and_group for one in findings if one.verdict is not Verdict.REPAIRED}
            not_counted = letters.notices.not_counted
            settled = tuple(letters.notices.made_up_for(set(names) - set(unproved) - not_counted.keys(), open_))
            hints += [f"{name}: what removed items keep: {why}" for name, why in not_counted.items()]
        findings.sort(key=lambda finding: finding.name_and_group)
        hints += self._hints(subjects, observer, findings)
        return Report(
            tuple(findings),
            aggregates,
            spool.items_read(),
            snapshot.records_read,
            names,
            unproved,
            left_out,
            tuple(hints),
            started_at,
            self.clock() - began,
            settled,
        )

    def _check_time(self) -> None:
        if self.seconds_left() <= 0:
            raise OutOfTimeError("the time was up before every total was decided")

    def _tell_in_time(self, stage: Stage, done: int, of: int | None) -> None:
        self._check_time()
        self.progress(stage, done, of)

    def _subject(self, aggregation: Aggregation, catalogue: Catalogue) -> _Subject:
        marker = read_marker(self.client, self.ledger_table, aggregation.name)
        return _Subject(aggregation, catalogue.recorded_at(aggregation), marker)

    def _read_letters(self, repairs: Repairs, names: Sequence[str]) -> _Letters:
        """Reads all dead letters, and counts what of notices no total can tell."""
        self.progress(Stage.LETTERS, 0, None)
        committer = Committer(self.client, self.ledger_table, repairs.retention_days, self.executor)
        notices = read_notices(self.definitions, repairs.letters().notices, names, committer)
        return _Letters(repairs.letters, notices, committer)

    def _read_totals(
        self,
        aggregations: Sequence[Aggregation],
        subjects: Mapping[str, _Subject],
        check: ReceiptsCheck,
        snapshot: Snapshot,
    ) -> list[tuple[Aggregation, Group]]:
        """Spools the target tables, and looks at their receipts; returns the aggregates whose totals are no numbers."""
        not_numbers: list[tuple[Aggregation, Group]] = []

        def numbers(aggregation: Aggregation) -> Iterator[tuple[Group, Amounts]]:
            at_pages = subjects[aggregation.name].may_have_all_pages
            for number, rows in enumerate(portions(rows_of(self.client, aggregation), _ROWS_AT_ONCE)):
                self._tell_in_time(Stage.TOTALS, number * _ROWS_AT_ONCE, None)
                snapshot.pump()  # a position in the stream is lost if it is not used for 15 minutes
                check.look(aggregation, rows, at_pages=at_pages)
                for group, row in rows:
                    if (amounts := worth_in(aggregation, row)) is None:
                        not_numbers.append((aggregation, group))
                    else:
                        yield group, amounts

        for aggregation in aggregations:
            snapshot.spool.store_totals(aggregation.name, numbers(aggregation))
        return not_numbers

    def _compare(
        self, aggregations: Sequence[Aggregation], observer: Observer, not_numbers: Sequence[tuple[Aggregation, Group]]
    ) -> tuple[int, list[ObservedAggregate], list[Finding]]:
        """How many aggregates there are, those to observe, and what is plain already.

        An aggregate that no later record touches is right if its total is its baseline. That of any other includes
        later records or not yet, which only an observation of its receipts can tell.
        """
        aggregates = 0
        to_observe: dict[tuple[str, Group], Aggregation] = {}
        findings: list[Finding] = []
        for aggregation in aggregations:
            ignores = aggregation.remove is RemovePolicy.IGNORE
            no_numbers = {group for one, group in not_numbers if one is aggregation}
            for found in observer.snapshot.spool.compare(aggregation.name):
                aggregates += 1
                total = found.total or (_ZERO,) * len(aggregation.measures)
                differs = total != found.expected
                if differs and ignores and found.group not in no_numbers:
                    findings.append(
                        Finding(aggregation, found.group, Verdict.UNPROVABLE, total, found.expected, _NOT_PROVABLE)
                    )
                elif not ignores and (differs or found.touched):
                    to_observe[aggregation.name, found.group] = aggregation
        for aggregation, group in not_numbers:
            if aggregation.remove is RemovePolicy.IGNORE:
                findings.append(Finding(aggregation, group, Verdict.DRIFT, None, None, NOT_A_NUMBER))
                continue
            aggregates += (aggregation.name, group) not in to_observe
            to_observe[aggregation.name, group] = aggregation
        begun = [observer.begin(aggregation, group) for (_, group), aggregation in to_observe.items()]
        return aggregates, begun, findings

    def _repair(
        self,
        findings: list[Finding],
        letters: _Letters,
        subjects: Mapping[str, _Subject],
        observer: Observer,
    ) -> list[Finding]:
        """Corrects what drifts, except where a record that can still come has a say in it."""
        may_wait = (Verdict.DRIFT, Verdict.UNSETTLED)
        differing = {(one.aggregation.name, one.group) for one in findings if one.verdict in may_wait}
        if not differing:
            return findings
        self.progress(Stage.LETTERS, 0, None)
        records = letters.read().records
        waiting = groups_waiting(self.client, self.ledger_table, self.definitions, records, differing)
        obstacles: dict[str, str | None] = {}
        drifts, others = [], []
        for finding in findings:
            name = finding.aggregation.name
            if finding.verdict in may_wait and (name, finding.group) in waiting:
                note = "replay or discard the dead letter first"
                others.append(replace(finding, verdict=Verdict.WAITS, note=note))
            elif finding.verdict is Verdict.DRIFT and finding.total is not None:
                if name not in obstacles:
                    obstacles[name] = self._obstacle(subjects[name])
                if obstacles[name] is None:
                    drifts.append(finding)
                else:
                    others.append(replace(finding, note=f"not corrected: {obstacles[name]}"))
            else:
                others.append(finding)
        repairer = Repairer(self.client, self.ledger_table)
        corrections = Corrections(observer, repairer, letters.committer, self.progress)
        return others + corrections.correct(drifts)

    def _with_receipts(self, check: ReceiptsCheck, findings: Sequence[Finding], observer: Observer) -> list[Finding]:
        """Adds the totals that the source does not call wrong, but their receipts; a repair gives these a receipt."""
        self.progress(Stage.RECEIPTS, 0, None)
        known = {one.name_and_group for one in findings if one.verdict is not Verdict.UNPROVABLE}
        found = check.findings(known)
        if self.repairs is not None and found:
            proved = [one for one in found if one.aggregation.remove is not RemovePolicy.IGNORE]
            give_receipts(proved, Repairer(self.client, self.ledger_table), observer)
            left = {one.name_and_group for one in check.findings(known)}
            found = [
                one if one.name_and_group in left else replace(one, verdict=Verdict.REPAIRED, note=HAS_RECEIPTS)
                for one in found
            ]
        more = {one.name_and_group for one in found}
        return [*(one for one in findings if one.name_and_group not in more), *found]

    def _obstacle(self, subject: _Subject) -> str | None:
        """Why an aggregation must not be corrected now; if there is no reason, no backfill can begin from here on."""
        if not subject.is_counted:
            return "no worker has counted for the aggregation yet"
        aggregation = subject.aggregation
        cut = cut_of(aggregation, self.reader.stream_arn)
        if close_to_backfill(self.client, self.ledger_table, aggregation, cut, subject.marker):
            return None
        return f"finish its backfill first (aggregator backfill {aggregation.name})"

    def _hints(
        self, subjects: Mapping[str, _Subject], observer: Observer, findings: Sequence[Finding]
    ) -> Iterator[str]:
        """What there is to say about whole aggregations."""
        drifting = {finding.aggregation.name for finding in findings if finding.verdict is Verdict.DRIFT}
        for name, subject in subjects.items():
            if not subject.can_be_compared:
                continue
            if unusable := observer.snapshot.spool.unusable(name):
                yield f"{name}: cannot use {unusable} items, which are worth nothing; correct them"
            if noticed := observer.snapshot.noticed(subject.aggregation):
                yield f"{name}: cannot use an image of {noticed} of the stream's records; a notice tells of each"
            if differing := sum(count for (one, _), count in observer.differing.items() if one == name):
                yield (
                    f"{name}: {differing} receipts hold another amount than is computed now: another version of the "
                    "worker read an image differently; each total is compared with what is computed now"
                )
            if name in drifting and subject.marker is None and subject.is_counted:
                yield (
                    f"{name}: was never backfilled; if the table is older than its stream, run "
                    f"aggregator backfill {name}"
                )

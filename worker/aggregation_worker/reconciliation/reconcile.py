"""Compares every total with its source while both go on, and corrects what differs if asked to.

One run: the source is read and joined with the stream (`snapshot`), the target tables are read, and every aggregate
that differs or that later records touch is looked at until it is clear which it is (`look`): equal, drift, or not to be
told. `repair` corrects. The rules for the verdicts stand here; the operators' command and the scheduled function only
make the parts and show the report.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, RemovePolicy
from aggregation_worker.aggregations.numbers import EXACT, Amounts, sum_of
from aggregation_worker.ledger.definition_guard import check_definitions, recorded_at
from aggregation_worker.ledger.markers import Marker, close_to_backfill, cut_of, read_marker
from aggregation_worker.ledger.pages import Place, first_page
from aggregation_worker.ledger.receipts import Aggregate, aggregate_of
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.look import (
    Look,
    Observations,
    RestlessAggregateError,
    Standing,
    difference,
    look_at,
    rows_of,
)
from aggregation_worker.reconciliation.repair import CorrectionRefusedError, Fate, Repairer, described, groups_waiting
from aggregation_worker.reconciliation.snapshot import Progress, Snapshot, take_snapshot
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.streams.reader import StreamReader
from aggregation_worker.streams.records import StreamRecord, table_and_label

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Seconds that a difference must stay the same before it is drift: long enough for records in flight to arrive, batching
# windows, throttling and a few retries included.
PATIENCE = 60.0
# A difference that still moves after so many times the patience, from the end of the first look at all, is left open.
_LONGEST_PATIENCES = 5
# A worker's clock, the stream's and this one's differ by less; DynamoDB Local cuts a record's second to the minute.
_CLOCKS = timedelta(minutes=15)
# The times of a stream's records are in disorder by less. So many seconds' receipts are read before every attempt to
# correct a total, which must not take long where it is written many times a second.
_DISORDER = timedelta(seconds=10)
# Aggregates looked at together: their receipts are held in memory until the stream has passed the looks.
_CHUNK = 5_000
# Differences that prove nothing are looked at again only if they are few.
_MOST_UNPROVABLE_LOOKS = 1_000
_MOST_REPAIR_ROUNDS = 8
# Looks and corrections side by side, each a few requests of milliseconds.
LOOKS_AT_ONCE = 16
_POLL_SECONDS = 0.02
_RESTLESS = "not corrected: it changes all the time; run this again"
_ZERO = Decimal(0)


class ReconcileError(Exception):
    """Nothing can be said about the totals; the message says why and what to do."""


class OutOfTimeError(ReconcileError):
    """The time was up before every total was decided."""


class Stage(StrEnum):
    """What a run is doing."""

    ITEMS = "items"
    STREAM = "stream"
    SUMS = "sums"
    TOTALS = "totals"
    LOOKING = "looking"
    LETTERS = "letters"
    CORRECTING = "correcting"


class Verdict(StrEnum):
    """What is said of an aggregate that is not simply equal."""

    DRIFT = "drift"
    WAITS = "waits in the dead-letter queue"  # a record of it does; replay or discard it first
    UNSETTLED = "unsettled"  # the worker is behind, or the difference never stood still
    UNPROVABLE = "unprovable"  # removed items may account for it, which the source cannot tell
    REPAIRED = "repaired"


@dataclass(slots=True)
class Finding:
    """An aggregate that was not simply equal.

    Attributes:
        total: as stored; `None` if a measure is no number.
        expected: what the total should be.
        note: what was done, or is to be done.
    """

    aggregation: Aggregation
    group: Group
    verdict: Verdict
    total: Amounts | None
    expected: Amounts | None
    note: str = ""

    @property
    def difference(self) -> Amounts | None:
        """By how much the total is too high."""
        if self.total is None or self.expected is None:
            return None
        return tuple(map(EXACT.subtract, self.total, self.expected))


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found.

    Attributes:
        findings: all aggregates that were not simply equal, by aggregation and group.
        aggregates: how many were compared.
        items, records: how many were read from the source and from its stream.
        compared: the names of the aggregations that were compared.
        left_out: the names of those of which nothing can be said.
        hints: sentences about whole aggregations.
    """

    findings: tuple[Finding, ...]
    aggregates: int
    items: int
    records: int
    compared: tuple[str, ...]
    left_out: tuple[str, ...]
    hints: tuple[str, ...]
    started_at: datetime
    seconds: float

    def count(self, *verdicts: Verdict) -> int:
        """How many findings have one of these verdicts."""
        return sum(finding.verdict in verdicts for finding in self.findings)

    @property
    def drifted(self) -> int:
        """Aggregates whose totals are wrong and stay so: the metric's value."""
        return self.count(Verdict.DRIFT, Verdict.WAITS)

    @property
    def undecided(self) -> int:
        """Aggregates of which it is not known whether they are right."""
        return self.count(Verdict.UNSETTLED)

    @property
    def is_decided(self) -> bool:
        """Whether `drifted` is the whole truth: nothing is left open, and not all that differs is unprovable."""
        unprovable = {finding.aggregation.name for finding in self.findings if finding.verdict is Verdict.UNPROVABLE}
        return not self.undecided and not self.left_out and not unprovable >= set(self.compared)


@dataclass(slots=True, eq=False)
class _Suspect:
    """An aggregate under observation.

    Attributes:
        first: the first page that is read: no later record has a receipt before it.
        look, later, baseline: of the last look, as long as they are needed; `None` if it saw nothing.
        counted: a later record's receipt has been seen.
        corrected: what this run has added to the total.
        overtaken: the last attempt to correct met a change that it could not explain.
    """

    aggregate: Aggregate
    first: str
    observations: Observations = field(default_factory=Observations)
    look: Look | None = None
    later: dict[Place, Amounts] = field(default_factory=dict)
    baseline: Amounts = ()
    seen_at: float = 0.0
    counted: bool = False
    corrected: Amounts | None = None
    overtaken: bool = False

    @property
    def aggregation(self) -> Aggregation:
        return self.aggregate.aggregation

    @property
    def group(self) -> Group:
        return self.aggregate.row.group

    def forget(self) -> None:
        """Lets go of what takes memory."""
        self.look, self.later = None, {}


@dataclass(slots=True, kw_only=True)
class Reconciliation:
    """One run.

    Attributes:
        aggregations: those to compare; all of them belong to `definitions`.
        items: the source's items. From an export the stream must be read from its beginning.
        reader: of the source's stream; from its beginning also to repair, so that what can still come is known.
        executor: runs looks and corrections side by side.
        nothing_removed: the caller vouches that no item was ever removed, so that aggregations which keep what removed
            items contributed can be proven, too.
        patience: seconds that a difference must stay the same to be drift.
        letters: reads the records that wait in the dead-letter queue, all of them, or raises; with it the run repairs.
        seconds_left: until the run must have ended.
        progress: told the stage, and how much of it is done, of about how much or `None`.
    """

    client: "DynamoDBClient"
    definitions: Definitions
    aggregations: Sequence[Aggregation]
    ledger_table: str
    items: ItemSource
    reader: StreamReader
    executor: Executor
    nothing_removed: bool = False
    patience: float = PATIENCE
    letters: Callable[[], Sequence[Any]] | None = None
    seconds_left: Callable[[], float] = lambda: float("inf")
    progress: Callable[[str, int, int | None], None] = lambda _, __, ___: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _snapshot: Snapshot = field(init=False)
    _markers: dict[str, Marker | None] = field(init=False, default_factory=dict)
    _hints: list[str] = field(init=False, default_factory=list)
    _new: set[str] = field(init=False, default_factory=set)
    _uncounted: dict[tuple[str, Group], Amounts] = field(init=False, default_factory=dict)
    _closed: dict[str, bool] = field(init=False, default_factory=dict)
    _recent: str = field(init=False, default="")

    def run(self, spool: Spool) -> Report:
        """Compares, and repairs if there are `letters`.

        Raises:
            ReconcileError, SnapshotError, StreamGapError, DefinitionChangedError, UnreadableLetterError, ClientError:
                nothing can be said, or not everything was corrected that could be; what was corrected stays so.
        """
        started_at, began = datetime.now(UTC), self.clock()
        self._recent = first_page((started_at - _CLOCKS).timestamp())
        self._check_start()
        compared = [aggregation for aggregation in self.aggregations if self._can_be_compared(aggregation)]
        left_out = tuple(aggregation.name for aggregation in self.aggregations if aggregation not in compared)
        if not compared:
            return Report((), 0, 0, 0, (), left_out, tuple(self._hints), started_at, self.clock() - began)
        reader: Any = _Timed(self.reader, self._check_time)
        self._snapshot = take_snapshot(
            compared,
            self.definitions.source,
            self.items,
            reader,
            spool,
            progress=self._tell_of_items,
            on_refused=self._note_refused,
        )
        unreadable = self._read_totals(compared)
        aggregates, suspects, findings = self._first_look(compared, unreadable)
        findings += self._settle(suspects)
        if self.letters is not None:
            self._repair(findings, self.letters)
        findings.sort(key=lambda finding: (finding.aggregation.name, finding.group))
        self._hint(compared, findings)
        return Report(
            tuple(findings),
            aggregates,
            self._snapshot.items_read,
            self._snapshot.records_read,
            tuple(aggregation.name for aggregation in compared),
            left_out,
            tuple(self._hints),
            started_at,
            self.clock() - began,
        )

    def _tell_of_items(self, found: Progress) -> None:
        if found.stage == "items":
            self.progress(found.stage, found.items, found.estimated_items)
        else:
            self.progress(found.stage, found.records, None)

    # --- Before the run -------------------------------------------------------------------------------------------

    def _check_start(self) -> None:
        if self.reader.start != "TRIM_HORIZON" and (self.letters is not None or self.items.read_at is not None):
            raise ReconcileError("to repair, or with an export, the stream must be read from its beginning")

    def _can_be_compared(self, aggregation: Aggregation) -> bool:
        name = aggregation.name
        if recorded_at(self.client, self.ledger_table, aggregation) is not None:
            check_definitions(self.client, self.ledger_table, [aggregation])
        else:
            self._new.add(name)
            self._hints.append(f"{name}: no worker has counted for it yet; deploy the definitions, then backfill it")
        marker = self._markers[name] = read_marker(self.client, self.ledger_table, name)
        finished = marker is not None and marker.finished_at is not None
        if marker is not None and not finished:
            self._hints.append(f"{name}: its backfill is not finished; run aggregator backfill {name} again")
        if aggregation.since is not None and not finished:
            self._hints.append(
                f"{name}: not compared: it counts only since a moment, and what was there before is not backfilled yet"
            )
            return False
        return True

    def _check_time(self) -> None:
        if self.seconds_left() <= 0:
            raise OutOfTimeError("the time was up before every total was decided")

    # --- The first look -------------------------------------------------------------------------------------------

    def _read_totals(self, aggregations: Sequence[Aggregation]) -> list[tuple[Aggregation, Group]]:
        """Spools the target tables; returns the aggregates whose totals are no numbers."""
        unreadable: list[tuple[Aggregation, Group]] = []

        def readable(aggregation: Aggregation) -> Iterator[tuple[Group, Amounts]]:
            for number, (group, amounts) in enumerate(rows_of(self.client, aggregation)):
                if number % 1_000 == 0:
                    self.progress(Stage.TOTALS, number, None)
                    self._snapshot.pump()  # a position in the stream is lost if it is not used for 15 minutes
                if amounts is None:
                    unreadable.append((aggregation, group))
                else:
                    yield group, amounts

        for aggregation in aggregations:
            self._snapshot.store_totals(aggregation, readable(aggregation))
        self._pass()
        return unreadable

    def _first_look(
        self, aggregations: Sequence[Aggregation], unreadable: Sequence[tuple[Aggregation, Group]]
    ) -> tuple[int, list[_Suspect], list[Finding]]:
        """How many aggregates there are, those to look at again, and what is plain already.

        An aggregate that no later record touches is right if its total is its baseline. That of any other includes
        later records or not yet, which only a look at its receipts can tell.
        """
        aggregates = 0
        suspects: dict[tuple[str, Group], _Suspect] = {}
        findings = []
        for aggregation in aggregations:
            unprovable = []
            for found in self._snapshot.compare(aggregation):
                aggregates += 1
                total = found.total or (_ZERO,) * len(aggregation.measures)
                differs = total != found.expected
                if differs and not self._provable(aggregation):
                    note = "removed items may account for it"
                    unprovable.append(
                        Finding(aggregation, found.group, Verdict.UNPROVABLE, total, found.expected, note)
                    )
                elif differs or found.touched:
                    suspects[aggregation.name, found.group] = self._suspect(aggregation, found.group)
            if len(unprovable) > _MOST_UNPROVABLE_LOOKS:
                findings += unprovable
            else:
                for finding in unprovable:
                    suspects[aggregation.name, finding.group] = self._suspect(aggregation, finding.group)
        by_name = {aggregation.name: aggregation for aggregation in aggregations}
        for name, group in self._uncounted:
            suspects[name, group] = self._suspect(by_name[name], group)
        for aggregation, group in unreadable:
            aggregates += (aggregation.name, group) not in suspects
            suspects[aggregation.name, group] = self._suspect(aggregation, group)
        return aggregates, list(suspects.values()), findings

    def _suspect(self, aggregation: Aggregation, group: Group) -> _Suspect:
        return _Suspect(aggregate_of(aggregation, group), self._recent)

    def _provable(self, aggregation: Aggregation) -> bool:
        return self.nothing_removed or aggregation.remove is RemovePolicy.RETRACT

    def _baseline(self, aggregation: Aggregation, group: Group) -> Amounts:
        baseline = self._snapshot.baseline(aggregation, group)
        uncounted = self._uncounted.get((aggregation.name, group))
        return baseline if uncounted is None else sum_of([uncounted], baseline)

    def _note_refused(self, aggregation: Aggregation, record: StreamRecord) -> None:
        """Keeps a change that is in the source, but is no contribution: the aggregation cannot use one of the images.

        Such a record never gets a receipt, so what it changes is expected without one; an image that cannot be used
        counts nothing. This is how an order that was malformed for a while comes right again.
        """
        for image, sign in ((record.old_image, EXACT.minus), (record.new_image, EXACT.plus)):
            try:
                value = None if image is None else aggregation.value(image)
            except MalformedValueError:
                continue
            if value is not None:
                place = (aggregation.name, value[0])
                before = self._uncounted.get(place, (_ZERO,) * len(value[1]))
                self._uncounted[place] = sum_of([tuple(map(sign, value[1]))], before)

    def _pass(self) -> None:
        """Reads the stream until everything written before now is known."""
        moment = self.clock()
        while not self._snapshot.has_passed(moment):
            self._check_time()
            if not self._snapshot.pump():
                self.sleep(_POLL_SECONDS)

    # --- Looking again --------------------------------------------------------------------------------------------

    def _observe(self, suspects: Sequence[_Suspect]) -> None:
        """Looks at each, and classifies what it showed when the stream has passed the looks."""
        for suspect in suspects:
            pages = (page for page, _ in self._snapshot.later(suspect.aggregation, suspect.group))
            suspect.first = min((suspect.first, *pages))
        looks = list(self.executor.map(self._look, suspects))
        self._pass()
        for suspect, look in zip(suspects, looks, strict=True):
            suspect.look = None
            if look is None:
                continue
            later = self._snapshot.later(suspect.aggregation, suspect.group)
            if any(page < suspect.first for page, _ in later):
                continue  # a clock was wrong: receipts can stand before the first page that was read
            suspect.look, suspect.later, suspect.seen_at = look, later, look.seen_at
            suspect.baseline = self._baseline(suspect.aggregation, suspect.group)
            waiting = later.keys() - look.pages.receipts.keys()
            suspect.counted = suspect.counted or len(waiting) < len(later)
            suspect.observations.add(difference(look, later, suspect.baseline), waiting, look.seen_at)

    def _look(self, suspect: _Suspect) -> Look | None:
        """Runs in a thread of the executor; `None` if the aggregate did not hold still."""
        self._check_time()
        try:
            return look_at(self.client, self.ledger_table, suspect.aggregate, suspect.first, self.clock)
        except RestlessAggregateError:
            return None

    def _settle(self, suspects: list[_Suspect]) -> list[Finding]:
        """Looks until every suspect is equal, different for as long as the patience lasts, or restless to the end."""
        findings: list[Finding] = []
        different: list[tuple[_Suspect, Finding]] = []
        any_counted = any_stuck = False
        end: float | None = None
        of = len(suspects)
        while suspects:
            self.progress(Stage.LOOKING, of - len(suspects), of)
            open_ = []
            last = end is not None and self.clock() > end
            for chunk in _chunks(suspects):
                self._observe(chunk)
                for suspect in chunk:
                    any_counted = any_counted or suspect.counted
                    standing = suspect.observations.standing(suspect.seen_at, self.patience)
                    stuck = suspect.observations.stuck(suspect.seen_at, self.patience)
                    if standing is Standing.DIFFERENT:
                        any_stuck = any_stuck or bool(stuck)
                        different.append((suspect, self._different(suspect, stuck)))
                    elif standing is Standing.BEHIND:
                        any_stuck = True
                        findings.append(self._behind(suspect, stuck))
                    elif last and standing is Standing.OPEN:
                        findings.append(self._restless(suspect))
                    elif standing is Standing.OPEN:
                        open_.append(suspect)
                    suspect.forget()
            suspects = open_
            # One look at all of them can outlast the patience; the last of them is to have as much of it as the first.
            end = end or self.clock() + _LONGEST_PATIENCES * self.patience
            if suspects:
                self._pump_for(min(self.patience / 5, 10.0))
        # Of a worker that has counted nothing since the cut nobody knows what it still has to count from before.
        stands_still = self.reader.start == "LATEST" and any_stuck and not any_counted
        for _, finding in different:
            if stands_still and finding.verdict is Verdict.DRIFT:
                finding.verdict, finding.note = Verdict.UNSETTLED, "the worker has counted nothing since the run began"
        return findings + [finding for _, finding in different]

    def _different(self, suspect: _Suspect, stuck: Sequence[Place]) -> Finding:
        finding = self._finding(suspect, Verdict.DRIFT)
        if not self._provable(suspect.aggregation):
            finding.verdict, finding.note = Verdict.UNPROVABLE, "removed items may account for it"
        elif finding.total is None:
            finding.note = "a measure is no number: remove the attribute by hand"
        elif stuck and self.reader.start == "LATEST":
            # What still waits from before the cut comes before what waits from behind it.
            finding.verdict, finding.note = Verdict.UNSETTLED, _behind_note(len(stuck))
        return finding

    def _behind(self, suspect: _Suspect, stuck: Sequence[Place]) -> Finding:
        finding = self._finding(suspect, Verdict.UNSETTLED, _behind_note(len(stuck)))
        if finding.expected is not None:
            finding.expected = sum_of((suspect.later[place] for place in stuck), finding.expected)
        return finding

    def _restless(self, suspect: _Suspect) -> Finding:
        return self._finding(suspect, Verdict.UNSETTLED, "the difference never stood still; the worker may be behind")

    def _finding(self, suspect: _Suspect, verdict: Verdict, note: str = "") -> Finding:
        look = suspect.look
        total = None if look is None else look.stored.amounts
        expected = None
        if look is not None:
            counted = (suspect.later[place] for place in look.pages.receipts if place in suspect.later)
            expected = sum_of(counted, suspect.baseline)
        return Finding(suspect.aggregation, suspect.group, verdict, total, expected, note)

    def _pump_for(self, seconds: float) -> None:
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            self._check_time()
            if not self._snapshot.pump():
                self.sleep(min(left, _POLL_SECONDS))

    # --- Repairing ------------------------------------------------------------------------------------------------

    def _repair(self, findings: Sequence[Finding], letters: Callable[[], Sequence[Any]]) -> None:
        """Corrects what drifts, except where a record that can still come has a say in it."""
        if not any(finding.verdict in (Verdict.DRIFT, Verdict.UNSETTLED) for finding in findings):
            return
        self.progress(Stage.LETTERS, 0, None)
        waiting = groups_waiting(self.client, self.ledger_table, self.definitions, letters())
        drifting: dict[_Suspect, Finding] = {}
        for finding in findings:
            name = finding.aggregation.name
            if finding.verdict in (Verdict.DRIFT, Verdict.UNSETTLED) and (name, finding.group) in waiting:
                finding.verdict, finding.note = Verdict.WAITS, "replay or discard the dead letter first"
            elif finding.verdict is Verdict.DRIFT and finding.total is not None:
                obstacle = self._obstacle(finding.aggregation)
                if obstacle is None:
                    drifting[self._suspect(finding.aggregation, finding.group)] = finding
                else:
                    finding.note = f"not corrected: {obstacle}"
        repairer = Repairer(self.client, self.ledger_table)
        of = len(drifting)
        for _ in range(_MOST_REPAIR_ROUNDS):
            self.progress(Stage.CORRECTING, of - len(drifting), of)
            for chunk in _chunks(list(drifting)):
                self._correct(repairer, chunk, drifting)

    def _correct(self, repairer: Repairer, suspects: Sequence[_Suspect], drifting: dict[_Suspect, Finding]) -> None:
        """One round: what is right by now leaves `drifting`, and so does what cannot be corrected.

        The rest is corrected and stays for the next round, which sees whether it is right then.
        """
        self._observe(suspects)
        differing = []
        for suspect in suspects:
            left = suspect.observations.difference
            if suspect.look is None or left is None:
                drifting[suspect].note = _RESTLESS
                continue
            if any(left):
                differing.append(suspect)
                continue
            finding = drifting.pop(suspect)
            finding.verdict = Verdict.REPAIRED
            added = suspect.corrected
            finding.note = f"added {described(added)}" if added else "right by now; another run may have corrected it"
        attempts = self.executor.map(lambda suspect: self._try_to_correct(repairer, suspect), differing)
        for suspect, (note, again) in zip(differing, attempts, strict=True):
            drifting[suspect].note = note
            if not again:
                del drifting[suspect]
        for suspect in suspects:
            suspect.forget()

    def _try_to_correct(self, repairer: Repairer, suspect: _Suspect) -> tuple[str, bool]:
        """Runs in a thread of the executor.

        Returns:
            What there is to say if the total still differs afterwards, and whether another round can do better.
        """
        look, left = suspect.look, suspect.observations.difference
        if look is None or left is None:
            raise AssertionError("was just looked at")
        later, recent = suspect.later, self._recent
        new_from = recent if suspect.overtaken else self._first_new_page(suspect, look)
        label = f"|{table_and_label(self.reader.stream_arn)[1]}"

        def is_later(place: Place) -> bool:
            # What was created a few minutes ago is in the stream, if it is this stream's at all.
            return place in later or (place[0] >= recent and place[0].endswith(label))

        try:
            fate = repairer.correct(suspect.aggregate, look, left, new_from, is_later)
        except CorrectionRefusedError as error:
            return f"cannot be corrected: {error}", False
        if fate is Fate.DONE:
            correction = tuple(map(EXACT.minus, left))
            suspect.corrected = sum_of([correction], suspect.corrected or (_ZERO,) * len(correction))
            return f"added {described(suspect.corrected)}, but it differs again: something else changes it", True
        suspect.overtaken = fate is Fate.OVERTAKEN
        return _RESTLESS, suspect.overtaken

    def _first_new_page(self, suspect: _Suspect, look: Look) -> str:
        """The first page on which receipts are expected that were not there at the last look.

        They are those of later records that wait for the worker, and of records that are written from now on, which are
        created after the newest that is known, as far as clocks agree. What arrives elsewhere moves the total without
        explanation, so that nothing is corrected in this round.
        """
        if not suspect.later:
            return self._recent
        newest = datetime.fromisoformat(max(suspect.later)[0].partition("|")[0])
        waiting = (page for page, _ in suspect.later.keys() - look.pages.receipts.keys())
        return max(self._recent, min((first_page((newest - _DISORDER).timestamp()), *waiting)))

    def _obstacle(self, aggregation: Aggregation) -> str | None:
        """Why an aggregation must not be corrected now; if there is no reason, no backfill can begin from here on."""
        name = aggregation.name
        if name in self._new:
            return "no worker has counted for the aggregation yet"
        if name not in self._closed:
            cut, marker = cut_of(aggregation, self.reader.stream_arn), self._markers[name]
            self._closed[name] = close_to_backfill(self.client, self.ledger_table, aggregation, cut, marker)
        return None if self._closed[name] else f"finish its backfill first (aggregator backfill {name})"

    # --- What there is to say about whole aggregations ------------------------------------------------------------

    def _hint(self, aggregations: Sequence[Aggregation], findings: Sequence[Finding]) -> None:
        drifting = {finding.aggregation.name for finding in findings if finding.verdict is Verdict.DRIFT}
        for aggregation in aggregations:
            name = aggregation.name
            if unusable := self._snapshot.unusable(aggregation):
                self._hints.append(f"{name}: cannot use {unusable} items, which count nothing; correct them")
            if refused := self._snapshot.refused(aggregation):
                self._hints.append(f"{name}: cannot use {refused} of the stream's records, which the worker parks")
            if name in drifting and self._markers[name] is None and name not in self._new:
                self._hints.append(
                    f"{name}: was never backfilled; if the table is older than its stream, run "
                    f"aggregator backfill {name}"
                )


def _behind_note(records: int) -> str:
    return f"{records} {'record waits' if records == 1 else 'records wait'} for the worker"


def _chunks(suspects: Sequence[_Suspect]) -> Iterator[Sequence[_Suspect]]:
    return (suspects[start : start + _CHUNK] for start in range(0, len(suspects), _CHUNK))


class _Timed:
    """A stream reader that stops when the time is up; whatever waits for something reads the stream meanwhile."""

    def __init__(self, reader: StreamReader, check: Callable[[], None]) -> None:
        self._reader = reader
        self._check = check

    def read(self) -> list[dict[str, Any]]:
        self._check()
        return self._reader.read()

    def pages(self) -> Iterator[list[dict[str, Any]]]:
        self._check()
        return self._reader.pages()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

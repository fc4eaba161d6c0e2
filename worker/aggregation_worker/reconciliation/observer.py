"""Observes aggregates again and again, side by side, until it is clear which they are: equal, drift or undecided.

`observation` says what one observation shows and what several say together; here they are made, while the stream is
read on. A run that began in the middle of the stream reads its beginning, too, when a total differs: only then is it
known what the worker still has to count from before.
"""

import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import chain
from typing import TYPE_CHECKING

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.aggregations.numbers import EXACT, Amounts, sum_of
from aggregation_worker.ledger.pages import Receipts
from aggregation_worker.ledger.reading import ChangesTooFastError
from aggregation_worker.ledger.receipts import Aggregate, aggregate_of, net, position_in, second_of
from aggregation_worker.reconciliation.observation import (
    ComparedTotal,
    Observation,
    Observations,
    VerdictSoFar,
    observe,
)
from aggregation_worker.reconciliation.portions import portions
from aggregation_worker.reconciliation.progress import Stage, Tell
from aggregation_worker.reconciliation.report import Finding, Verdict
from aggregation_worker.reconciliation.snapshot import Snapshot, read_back
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.streams.reader import RETENTION

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Observations and corrections side by side, each a few requests of milliseconds.
OBSERVED_AT_ONCE = 16
# Aggregates observed together: their receipts are held in memory until the stream has passed the observations.
_CHUNK = 5_000
# Seconds between observations at first, and at most while something waits.
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 10.0
# A difference that still changes after so many times the patience, from the end of the first round, is left open.
_LONGEST_PATIENCES = 5
_POLL_SECONDS = 0.02
# Seconds by which the worker's shards are apart at most, as far as is known without looking.
_SHARDS_APART = 900
_ZERO = Decimal(0)

NOT_A_NUMBER = "a measure, or what is kept of it, is not a number: remove the attribute by hand"
_KEPT_CHANGING = "the difference kept changing; the worker may be behind"


@dataclass(slots=True, eq=False)
class ObservedAggregate:
    """An aggregate under observation.

    Attributes:
        first: the position from which on receipts are read: no later record has one before it.
    """

    aggregate: Aggregate
    first: str
    observations: Observations = field(default_factory=Observations)

    @property
    def aggregation(self) -> Aggregation:
        return self.aggregate.aggregation

    @property
    def group(self) -> Group:
        return self.aggregate.row.group


@dataclass(slots=True, kw_only=True)
class Observer:
    """Makes the observations of one run, and reads the stream at the same time.

    Attributes:
        recent: sorts before the positions of all records created shortly before the run, or later.
        before: a new spool, for what the stream held before the run.
        noticed: the receipts that the worker has been past for certain, since it has sent notices of their records: by
            aggregation's name, receipt's name.
        check_time: raises when the run's time is up.
        passed: epoch seconds; the worker has been past the records that were created until then.
        differing: how many receipts hold another amount than is computed now, by aggregation's name and group.
    """

    client: "DynamoDBClient"
    ledger_table: str
    snapshot: Snapshot
    executor: Executor
    recent: str
    before: Spool
    check_time: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    noticed: Set[tuple[str, str]] = frozenset()
    passed: float = 0.0
    differing: dict[tuple[str, Group], int] = field(default_factory=dict)

    def begin(self, aggregation: Aggregation, group: Group) -> ObservedAggregate:
        """An aggregate that was not observed yet."""
        return ObservedAggregate(aggregate_of(aggregation, group), self.recent)

    def observe(
        self, aggregates: Sequence[ObservedAggregate]
    ) -> Iterator[list[tuple[ObservedAggregate, ComparedTotal | None]]]:
        """Observes each once, as many together as memory can hold.

        Yields:
            Each with what it showed, compared when the stream has passed the observation; `None` if it changed too
            fast.
        """
        for chunk in portions(aggregates, _CHUNK):
            for one in chunk:
                one.first = min((one.first, *map(position_in, self._later(one)[0])))
            observations = list(self.executor.map(self._observe_one, chunk))
            self.read_stream_up_to_now()
            yield [
                (one, None if observation is None else self._compare(one, observation))
                for one, observation in zip(chunk, observations, strict=True)
            ]

    def read_back(self, aggregates: Sequence[ObservedAggregate]) -> bool:
        """Reads what the stream held before the run, for these aggregates, and tells so; does nothing the second time.

        Their observations begin anew, with another cut.
        """
        if self.snapshot.reader.start != "LATEST" or self.before.is_complete:
            return False
        only = {(one.aggregation.name, one.group) for one in aggregates}
        read_back(self.snapshot, self.before, only, self.check_time)
        for one in aggregates:
            one.observations = Observations()
        return True

    def _later(self, one: ObservedAggregate) -> tuple[Receipts, Receipts]:
        """The receipts of all records that follow the cut, as they are to be; and those that were read back."""
        name, group = one.aggregation.name, one.group
        later = self.snapshot.spool.later(name, group)
        if not self.before.is_complete:
            return later, {}
        before = {key: one for key, one in self.before.later(name, group).items() if key not in later}
        return {**later, **before}, before

    def read_stream_up_to_now(self) -> None:
        """Reads the stream until everything written before now is known."""
        self.snapshot.pump_until(self.clock(), self.check_time)

    def read_stream_for(self, seconds: float) -> None:
        """Waits; a position in the stream is lost if it is not used for 15 minutes."""
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            self.check_time()
            if not self.snapshot.pump():
                self.sleep(min(left, _POLL_SECONDS))

    def _observe_one(self, one: ObservedAggregate) -> Observation | None:
        """Runs in a thread of the executor."""
        self.check_time()
        try:
            return observe(self.client, self.ledger_table, one.aggregate, one.first, self.clock)
        except ChangesTooFastError:
            return None

    def _compare(self, one: ObservedAggregate, observation: Observation) -> ComparedTotal | None:
        later, before = self._later(one)
        if any(position_in(name) < one.first for name in later):
            return None  # receipts can stand before the first position that was read
        at_the_cut = self.snapshot.spool.baseline(one.aggregation.name, one.group)
        baseline = sum_of(
            (tuple(map(EXACT.minus, net(*receipt))) for receipt in before.values()),
            at_the_cut or (_ZERO,) * len(one.aggregation.measures),
        )
        compared = ComparedTotal(observation, later, baseline)
        self.differing[one.aggregation.name, one.group] = compared.differing
        self._note_passed(later.keys() & observation.stored.receipts.keys(), one.observations.waiting.keys())
        one.observations.add(compared.difference, compared.waiting, observation.seen_at)
        return compared

    def _note_passed(self, counted: Set[str], waited: Set[str]) -> None:
        """Takes note of how far the worker is, by the later records that it has counted.

        Args:
            waited: those that waited for it when this run looked before: it counts now what was created then.
        """
        if counted:
            self.passed = max(self.passed, second_of(max(counted)) - _SHARDS_APART)
        if counted & waited:
            self.passed = max(self.passed, second_of(max(counted & waited)))


def settle(
    observer: Observer, aggregates: Sequence[ObservedAggregate], *, patience: float, progress: Tell
) -> list[Finding]:
    """Observes until each is equal, different for certain, or still changing at the end.

    Args:
        patience: seconds for which a record without a receipt is waited for.

    Returns:
        A finding for each that is not equal.
    """
    findings: list[Finding] = []
    end: float | None = None
    begun, pause = observer.clock(), _FIRST_PAUSE
    left = list(aggregates)
    while left:
        progress(Stage.OBSERVING, len(aggregates) - len(left), len(aggregates))
        last = end is not None and observer.clock() > end
        open_ = []
        for one, compared in chain.from_iterable(observer.observe(left)):
            verdict = one.observations.verdict_so_far(patience)
            if compared is None or verdict is VerdictSoFar.OPEN:
                if last:
                    findings.append(_finding(one, compared, Verdict.UNSETTLED, _KEPT_CHANGING))
                else:
                    open_.append(one)
            elif verdict is not VerdictSoFar.EQUAL:
                waiting = {name: compared.later[name] for name in one.observations.stuck(patience)}
                if verdict is VerdictSoFar.DIFFERENT:
                    findings.append(_different(one, compared, waiting))
                else:
                    finding = _finding(one, compared, Verdict.UNSETTLED, _behind(waiting))
                    findings.append(replace(finding, expected=_with(waiting, compared.expected), lost=waiting))
        left = open_
        # One round can outlast the patience; those observed last in it are to have as much of it as the first.
        end = end or observer.clock() + _LONGEST_PATIENCES * patience
        if any(one.observations.differs for one in left):
            progress(Stage.EARLIER, 0, None)
            if observer.read_back(left):  # which can outlast all patience
                end = None
        if left:
            progress(Stage.ON_THEIR_WAY, round(observer.clock() - begun), round(patience))
            observer.read_stream_for(min(patience / 5, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)
    return [_with_what_is_lost(one, observer) for one in findings]


def _finding(one: ObservedAggregate, compared: ComparedTotal | None, verdict: Verdict, note: str = "") -> Finding:
    total, expected = (None, None) if compared is None else (compared.total, compared.expected)
    return Finding(one.aggregation, one.group, verdict, total, expected, note)


def _different(one: ObservedAggregate, compared: ComparedTotal, waiting: Receipts) -> Finding:
    """What is said of a difference that stays, while some later records wait."""
    finding = _finding(one, compared, Verdict.DRIFT)
    if finding.total is None:
        return replace(finding, note=NOT_A_NUMBER)
    return replace(finding, lost=waiting)


def _with_what_is_lost(finding: Finding, observer: Observer) -> Finding:
    """Tells the records that the worker will never count from those that it has still to come to.

    One that has no receipt, though the worker has been past it, was counted into a row that was deleted since, or its
    dead letter was discarded, or another version of the worker could not use its image. Should the worker come to it
    after all, it finds the receipt that a repair gives it. Of one that the worker may still come to, nothing can be
    said until the stream has forgotten it.
    """
    lost = {
        name: receipt
        for name, receipt in finding.lost.items()
        if second_of(name) <= observer.passed or (finding.aggregation.name, name) in observer.noticed
    }
    if not lost:
        if finding.lost and finding.verdict is Verdict.UNSETTLED:
            until = moment_text(second_of(max(finding.lost)) + round(RETENTION.total_seconds()))
            finding = replace(finding, note=f"{finding.note}, or it is past; unsettled until {until}")
        return replace(finding, lost={})
    expected = finding.expected
    if finding.verdict is Verdict.DRIFT and expected is not None:
        expected = _with(lost, expected)
    note = f"{len(lost)} {'record has' if len(lost) == 1 else 'records have'} no receipt, and the worker is past"
    return replace(finding, verdict=Verdict.DRIFT, expected=expected, note=note, lost=lost)


def _with(receipts: Receipts, expected: Amounts) -> Amounts:
    """What a total should be once these receipts are in, too; what they keep raises total and kept alike."""
    return sum_of((amounts for amounts, _ in receipts.values()), expected)


def _behind(waiting: Receipts) -> str:
    return f"{len(waiting)} {'record waits' if len(waiting) == 1 else 'records wait'} for the worker"

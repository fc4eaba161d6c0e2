"""Corrects what drifts, round by round: each total is observed, corrected, and observed again to see that it is right.

What the worker will never bring is counted first, by the worker's own writes, so that it is not counted twice whatever
comes; what differs then is corrected. Which totals may be corrected, `reconcile` decides; how one correction is
written, `repair` knows.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal

from aggregation_worker.aggregations.numbers import EXACT, Amounts, sum_of
from aggregation_worker.ledger.commit import Committer
from aggregation_worker.ledger.reading import ChangesTooFastError
from aggregation_worker.ledger.receipts import Posting, aggregate_of, first_position, position_in, second_of
from aggregation_worker.reconciliation.observation import ComparedTotal, observe
from aggregation_worker.reconciliation.observer import ObservedAggregate, Observer
from aggregation_worker.reconciliation.posting import post
from aggregation_worker.reconciliation.progress import Stage, Tell
from aggregation_worker.reconciliation.repair import CorrectionOutcome, CorrectionRefusedError, Repairer, described
from aggregation_worker.reconciliation.report import Finding, Verdict

# The times of a stream's records are in disorder by less. So many seconds' receipts are read before every attempt to
# correct a total, which must not take long where it is written many times a second.
_DISORDER = 10
_MOST_ROUNDS = 8
_CHANGES_TOO_FAST = "not corrected: it changes all the time; run this again"
HAS_RECEIPTS = "what it held without a receipt has one now"
_ZERO = Decimal(0)


@dataclass(slots=True)
class _Drift:
    """A finding while it is corrected.

    Attributes:
        is_open: another round can do better.
        corrected: what this run has added to the total.
        overtaken: the last attempt to correct met a change that it could not explain.
    """

    finding: Finding
    is_open: bool = True
    corrected: Amounts | None = None
    overtaken: bool = False

    def note(self, note: str, verdict: Verdict = Verdict.DRIFT, *, is_open: bool) -> None:
        """What there is to say if nothing better can be said later."""
        self.finding, self.is_open = replace(self.finding, verdict=verdict, note=note), is_open


def give_receipts(findings: Sequence[Finding], repairer: Repairer, observer: Observer) -> None:
    """Gives totals, which the source proves, a receipt for what they hold without one: a correction of nothing."""

    def give(finding: Finding) -> None:
        aggregate = aggregate_of(finding.aggregation, finding.group)
        nothing = (_ZERO,) * len(finding.aggregation.measures)
        with suppress(ChangesTooFastError, CorrectionRefusedError):  # whoever looks again sees it
            seen = observe(repairer.client, repairer.ledger_table, aggregate)
            repairer.correct(aggregate, seen, nothing, "", lambda _: True)

    for _ in observer.executor.map(give, findings):
        pass  # raises what a thread has raised


@dataclass(frozen=True, slots=True)
class Corrections:
    """Makes the corrections of one run.

    Attributes:
        observer: reads the source's stream from its beginning, and the source has no other one.
        committer: counts what the worker will never bring.
    """

    observer: Observer
    repairer: Repairer
    committer: Committer
    progress: Tell

    def correct(self, findings: Sequence[Finding]) -> list[Finding]:
        """Corrects drift; returns the findings as they are afterwards."""
        drifts = {self.observer.begin(finding.aggregation, finding.group): _Drift(finding) for finding in findings}
        self._count_what_is_lost(drifts)
        for _ in range(_MOST_ROUNDS):
            left = [one for one, drift in drifts.items() if drift.is_open]
            self.progress(Stage.CORRECTING, len(drifts) - len(left), len(drifts))
            for observed in self.observer.observe(left):
                self._round(observed, drifts)
        return [drift.finding for drift in drifts.values()]

    def _count_what_is_lost(self, drifts: Mapping[ObservedAggregate, _Drift]) -> None:
        by_aggregate = {one.aggregate: drift for one, drift in drifts.items()}
        postings = [
            Posting(0, second_of(name), aggregate, name, amounts, kept)
            for aggregate, drift in by_aggregate.items()
            for name, (amounts, kept) in drift.finding.lost.items()
        ]
        for posting, reason in post(self.committer, postings).refused:
            by_aggregate[posting.aggregate].note(f"cannot be corrected: {reason}", is_open=False)

    def _round(
        self,
        observed: Sequence[tuple[ObservedAggregate, ComparedTotal | None]],
        drifts: Mapping[ObservedAggregate, _Drift],
    ) -> None:
        """Ends what is right by now; corrects the rest, of which the next round sees whether it is right then."""
        wrong = []
        for one, compared in observed:
            drift = drifts[one]
            difference = None if compared is None else compared.difference
            if compared is None or difference is None:
                drift.note(_CHANGES_TOO_FAST, is_open=True)
            elif any(difference):
                wrong.append((one, compared, difference, drift))
            else:
                done = [f"counted {len(drift.finding.lost)} records"] if drift.finding.lost else []
                done += [] if drift.corrected is None else [f"added {described(drift.corrected)}"]
                note = ", ".join(done) or "right by now; another run may have corrected it"
                drift.note(note, Verdict.REPAIRED, is_open=False)
        for _ in self.observer.executor.map(lambda arguments: self._correct(*arguments), wrong):
            pass  # raises what a thread has raised

    def _correct(self, one: ObservedAggregate, compared: ComparedTotal, difference: Amounts, drift: _Drift) -> None:
        """One attempt; runs in a thread of the executor."""
        recent = self.observer.recent
        new_from = recent if drift.overtaken else self._first_new_position(compared)

        def is_later(receipt: str) -> bool:
            # What was created a few minutes ago is in the stream.
            return receipt in compared.later or position_in(receipt) >= recent

        try:
            outcome = self.repairer.correct(one.aggregate, compared.observation, difference, new_from, is_later)
        except CorrectionRefusedError as error:
            drift.note(f"cannot be corrected: {error}", is_open=False)
            return
        if outcome is CorrectionOutcome.DONE:
            correction = tuple(map(EXACT.minus, difference))
            drift.corrected = sum_of([correction], drift.corrected or (_ZERO,) * len(correction))
            note = f"added {described(drift.corrected)}, but it differs again: something else changes it"
            drift.note(note, is_open=True)
        else:
            drift.overtaken = outcome is CorrectionOutcome.OVERTAKEN
            drift.note(_CHANGES_TOO_FAST, is_open=drift.overtaken)

    def _first_new_position(self, compared: ComparedTotal) -> str:
        """From where on receipts are expected that were not there when the total was observed.

        They are those of later records that wait for the worker, and of records that are written from now on, which are
        created after the newest that is known, as far as clocks agree. What arrives elsewhere moves the total without
        explanation, so that nothing is corrected in this round.
        """
        if not compared.later:
            return self.observer.recent
        newest = first_position(second_of(max(compared.later)) - _DISORDER)
        return max(self.observer.recent, min((newest, *map(position_in, compared.waiting))))

"""What a reconcile found."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.numbers import EXACT, Amounts
from aggregation_worker.ledger.pages import Receipts


class Verdict(StrEnum):
    """What is said of an aggregate that is not simply equal."""

    DRIFT = "drift"
    WAITS = "waits in the dead-letter queue"  # a record of it does; replay or discard it first
    UNEXPLAINED = "differs from its receipts"  # all of which are there; the source cannot say that it is wrong
    UNSETTLED = "unsettled"  # the worker is behind, or the difference kept changing
    UNPROVABLE = "unprovable"  # removed items, which the aggregation ignores, may account for it
    REPAIRED = "repaired"


@dataclass(frozen=True, slots=True)
class Finding:
    """An aggregate that was not simply equal.

    Attributes:
        total: as stored; `None` if a measure is not a number, or if it changed too fast to be seen.
        expected: what the total should be.
        note: what was done, or is to be done.
        lost: receipts of contributions that the worker will never bring; `expected` includes them.
    """

    aggregation: Aggregation
    group: Group
    verdict: Verdict
    total: Amounts | None
    expected: Amounts | None
    note: str = ""
    lost: Receipts = field(default_factory=dict)

    @property
    def name_and_group(self) -> tuple[str, Group]:
        """The aggregate's name."""
        return self.aggregation.name, self.group

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
        unproved: of these, the names of those that ignore what is removed, so that being equal proves nothing.
        left_out: the names of those of which nothing can be said.
        hints: sentences about whole aggregations.
        settled: the messages of the notices that the run has made up for.
    """

    findings: tuple[Finding, ...]
    aggregates: int
    items: int
    records: int
    compared: tuple[str, ...]
    unproved: tuple[str, ...]
    left_out: tuple[str, ...]
    hints: tuple[str, ...]
    started_at: datetime
    seconds: float
    settled: tuple[str, ...] = ()

    def count(self, *verdicts: Verdict) -> int:
        """How many findings have one of these verdicts."""
        return sum(finding.verdict in verdicts for finding in self.findings)

    @property
    def drifted(self) -> int:
        """Aggregates whose totals are wrong and stay so: the metric's value."""
        return self.count(Verdict.DRIFT, Verdict.WAITS, Verdict.UNEXPLAINED)

    @property
    def undecided(self) -> int:
        """Aggregates of which it is not known whether they are right."""
        return self.count(Verdict.UNSETTLED)

    @property
    def is_open(self) -> bool:
        """Whether there are totals of which nothing is proved, though their aggregations can be."""
        return bool(self.undecided or self.left_out)

    @property
    def is_decided(self) -> bool:
        """Whether `drifted` is the whole truth: something could be proved, and nothing of it is left open."""
        return not self.is_open and set(self.unproved) < set(self.compared)

"""One batch of stream records from beginning to end: read, contributions, postings, commit, park.

Knows nothing of Lambda: `handler` gives it raw records and a deadline, and turns the outcomes into Lambda's answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aggregation_worker.aggregations.contributions import Definitions, contributions
from aggregation_worker.dead_letters import DeadLetterQueue, ParkedRecord
from aggregation_worker.ledger.commit import Committer, Deadline, Outcome
from aggregation_worker.ledger.receipts import Aggregate, Posting, postings
from aggregation_worker.ledger.transactions import plan
from aggregation_worker.streams.records import MalformedRecordError, read_record

# Key of an event by which a replay asks what became of each record; Lambda's own events do not have it.
REPORT_OUTCOMES = "reportOutcomes"


class RecordOutcome(StrEnum):
    """What became of one record; each has exactly one outcome."""

    APPLIED = "applied"  # at least one of its contributions was added now, the rest was there
    DUPLICATE = "duplicate"  # all its contributions were in the ledger already
    NOT_COUNTED = "not counted"  # it contributes nothing to any aggregation
    PARKED = "parked"  # refused by an aggregation, and now in the dead-letter queue
    RETRIED = "retried"  # not done: it must be delivered again


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        outcomes: one for each raw record, in their order.
        reasons: why a record was refused, or why it could not be parked, by its index.
        commit: the transactions' figures.
    """

    outcomes: tuple[RecordOutcome, ...]
    reasons: dict[int, tuple[str, ...]]
    commit: Outcome

    def indexes(self, outcome: RecordOutcome) -> list[int]:
        """The indexes of the records with this outcome."""
        return [index for index, found in enumerate(self.outcomes) if found is outcome]


@dataclass(slots=True)
class _Refusals:
    """The reasons why records cannot be applied, by their index."""

    by_record: dict[int, list[str]] = field(default_factory=dict)

    def add(self, index: int, reason: str) -> None:
        reasons = self.by_record.setdefault(index, [])
        if reason not in reasons:
            reasons.append(reason)


def process(
    raw_records: Sequence[Any],
    definitions: Definitions,
    committer: Committer,
    dead_letters: DeadLetterQueue,
    deadline: Deadline,
) -> BatchResult:
    """Brings every record of a batch into the totals, or parks it, or says that it must be delivered again.

    A record counts as done only when all its contributions are in the ledger, or it is parked. One that some
    aggregation refuses is parked after the contributions to the others are in; replaying it adds only what is missing.

    Raises:
        UnexpectedEventError, StreamViewTypeError: this worker cannot count these records: the deployment is wrong.
        CommitError: nothing can be committed before an operator acts.
    """
    refusals = _Refusals()
    readable = []
    for index, raw in enumerate(raw_records):
        try:
            record = read_record(raw, definitions.source.table)
        except MalformedRecordError as error:
            refusals.add(index, str(error))
            continue
        changes, refused = contributions(definitions.aggregations, record)
        for refusal in refused:
            refusals.add(index, f"{refusal.aggregation}: {refusal.reason}")
        readable.append((index, record, changes))

    transactions, repeated = plan(postings(readable))
    commit = committer.commit(transactions, deadline)
    _settle_repeated(repeated, commit)
    for posting, reason in commit.refused:
        refusals.add(posting.record, f"{posting.aggregate.aggregation.name}: {reason}")

    outcomes = [RecordOutcome.NOT_COUNTED] * len(raw_records)
    # In rising order of precedence: a record is what its least settled contribution makes it.
    for posting in commit.duplicates:
        outcomes[posting.record] = RecordOutcome.DUPLICATE
    for posting in commit.applied:
        outcomes[posting.record] = RecordOutcome.APPLIED
    for posting in commit.unsettled:
        outcomes[posting.record] = RecordOutcome.RETRIED
    _park(raw_records, outcomes, refusals, dead_letters, deadline)
    return BatchResult(
        tuple(outcomes), {index: tuple(reasons) for index, reasons in refusals.by_record.items()}, commit
    )


def _settle_repeated(repeated: Sequence[Posting], commit: Outcome) -> None:
    """A record that is in a batch twice is posted once; the other time it is only as done as the one posted."""
    unsettled = {_receipt_key(posting) for posting in commit.unsettled}
    refused = {_receipt_key(posting): reason for posting, reason in commit.refused}
    for posting in repeated:
        key = _receipt_key(posting)
        if key in unsettled:
            commit.unsettled.append(posting)
        elif key in refused:
            commit.refused.append((posting, refused[key]))
        else:
            commit.duplicates.append(posting)


def _receipt_key(posting: Posting) -> tuple[Aggregate, str, str]:
    """Which receipt of the ledger a posting is."""
    return posting.aggregate, posting.page, posting.receipt


def _park(
    raw_records: Sequence[Any],
    outcomes: list[RecordOutcome],
    refusals: _Refusals,
    dead_letters: DeadLetterQueue,
    deadline: Deadline,
) -> None:
    """Parks what was refused and is otherwise settled; what comes again anyway is parked then."""
    indexes = [index for index in sorted(refusals.by_record) if outcomes[index] is not RecordOutcome.RETRIED]
    parked = [ParkedRecord(raw_records[index], tuple(refusals.by_record[index])) for index in indexes]
    failed = dead_letters.park(parked, in_time=lambda: deadline.sending_time() > 0)
    for position, index in enumerate(indexes):
        if position in failed:
            refusals.add(index, failed[position])
            outcomes[index] = RecordOutcome.RETRIED
        else:
            outcomes[index] = RecordOutcome.PARKED

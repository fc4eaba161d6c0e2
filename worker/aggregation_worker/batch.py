"""One batch of stream records from beginning to end: read, contributions, postings, commit, letters.

Knows nothing of Lambda: `handler` gives it raw records and a deadline, and turns the outcomes into Lambda's answer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from aggregation_worker.aggregations.contributions import Definitions, Unusable, contributions
from aggregation_worker.dead_letters import DeadLetterQueue, Notice, ParkedRecord
from aggregation_worker.ledger.commit import Committer, Deadline, Outcome
from aggregation_worker.ledger.receipts import Posting, postings, without_repeats
from aggregation_worker.streams.records import MalformedRecordError, read_record

# Key of an event by which a replay asks what became of each record; Lambda's own events do not have it.
REPORT_OUTCOMES = "reportOutcomes"


class RecordOutcome(StrEnum):
    """What became of one record; each has exactly one outcome."""

    APPLIED = "applied"  # at least one of its contributions was added now, the rest was there
    DUPLICATE = "duplicate"  # all its contributions were in the ledger already
    NOT_COUNTED = "not counted"  # it contributes nothing to any aggregation
    NOTICED = "noticed"  # counted, with an image that is worth nothing since it cannot be used; a notice tells of it
    PARKED = "parked"  # malformed, or refused by DynamoDB, and now in the dead-letter queue
    RETRIED = "retried"  # not done: it must be delivered again


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch.

    Attributes:
        outcomes: one for each raw record, in their order.
        reasons: why a record was parked or noticed, or why it could not be, by its index.
        commit: the writes' figures.
    """

    outcomes: tuple[RecordOutcome, ...]
    reasons: dict[int, tuple[str, ...]]
    commit: Outcome

    def indexes(self, outcome: RecordOutcome) -> list[int]:
        """The indexes of the records with this outcome."""
        return [index for index, found in enumerate(self.outcomes) if found is outcome]


@dataclass(slots=True)
class _Letters:
    """What must be told of records, by their index.

    Attributes:
        refused: why a record cannot be counted.
        unusable: the aggregations that cannot use an image of it.
    """

    refused: dict[int, list[str]] = field(default_factory=dict)
    unusable: dict[int, list[Unusable]] = field(default_factory=dict)

    def refuse(self, index: int, reason: str) -> None:
        reasons = self.refused.setdefault(index, [])
        if reason not in reasons:
            reasons.append(reason)

    def of(self, index: int, record: Any) -> Iterator[tuple[ParkedRecord | Notice, RecordOutcome]]:
        """The letters about a record, and the outcome that each gives it, the least settled last."""
        for one in self.unusable.get(index, ()):
            yield Notice(record, (f"{one.aggregation}: {one.reason}",), one.aggregation), RecordOutcome.NOTICED
        if index in self.refused:
            yield ParkedRecord(record, tuple(self.refused[index])), RecordOutcome.PARKED


def process(
    raw_records: Sequence[Any],
    definitions: Definitions,
    committer: Committer,
    dead_letters: DeadLetterQueue,
    deadline: Deadline,
) -> BatchResult:
    """Brings every record of a batch into the totals, or parks it, or says that it must be delivered again.

    A record counts as done only when all its contributions are in the ledger, or it is parked; and, where an image of
    it cannot be used, when the notice of that is in the queue. One of whose contributions DynamoDB refuses some is
    parked after the others are in; replaying it adds only what is missing.

    Raises:
        UnexpectedEventError, StreamViewTypeError: this worker cannot count these records: the deployment is wrong.
        CommitError: nothing can be committed before an operator acts.
    """
    letters = _Letters()
    origin = definitions.source.origin
    readable = []
    for index, raw in enumerate(raw_records):
        try:
            record = read_record(raw, origin)
        except MalformedRecordError as error:
            letters.refuse(index, str(error))
            continue
        changes, unusable = contributions(definitions.aggregations, record)
        if unusable:
            letters.unusable[index] = unusable
        readable.append((index, record, changes))

    distinct, repeated = without_repeats(postings(readable))
    commit = committer.commit(distinct, deadline)
    _settle_repeated(repeated, commit)
    for posting, reason in commit.refused:
        letters.refuse(posting.record, f"{posting.aggregate.aggregation.name}: {reason}")

    outcomes = [RecordOutcome.NOT_COUNTED] * len(raw_records)
    # In rising order of precedence: a record is what its least settled contribution makes it.
    for posting in commit.duplicates:
        outcomes[posting.record] = RecordOutcome.DUPLICATE
    for posting in commit.applied:
        outcomes[posting.record] = RecordOutcome.APPLIED
    for posting in commit.unsettled:
        outcomes[posting.record] = RecordOutcome.RETRIED
    reasons = _send(raw_records, outcomes, letters, dead_letters, deadline)
    return BatchResult(tuple(outcomes), reasons, commit)


def _settle_repeated(repeated: Sequence[Posting], commit: Outcome) -> None:
    """A record that is in a batch twice is posted once; the other time it is only as done as the one posted."""
    unsettled = {(posting.aggregate, posting.receipt) for posting in commit.unsettled}
    refused = {(posting.aggregate, posting.receipt): reason for posting, reason in commit.refused}
    for posting in repeated:
        receipt = posting.aggregate, posting.receipt
        if receipt in unsettled:
            commit.unsettled.append(posting)
        elif receipt in refused:
            commit.refused.append((posting, refused[receipt]))
        else:
            commit.duplicates.append(posting)


def _send(
    raw_records: Sequence[Any],
    outcomes: list[RecordOutcome],
    letters: _Letters,
    dead_letters: DeadLetterQueue,
    deadline: Deadline,
) -> dict[int, tuple[str, ...]]:
    """Sends the letters about records that are otherwise settled; about what comes again anyway, it tells then.

    Returns:
        What the letters say or, where one was not taken, why not, by the record's index.
    """
    indexes = sorted(letters.refused.keys() | letters.unusable.keys())
    told = {index: list(letters.of(index, raw_records[index])) for index in indexes}
    due = [
        (index, letter, outcome)
        for index in indexes
        if outcomes[index] is not RecordOutcome.RETRIED
        for letter, outcome in told[index]
    ]
    failed = dead_letters.park([letter for _, letter, _ in due], in_time=lambda: deadline.sending_time() > 0)
    reasons = {index: [reason for letter, _ in told[index] for reason in letter.reasons] for index in indexes}
    for position, (index, _, outcome) in enumerate(due):
        if position in failed:
            reasons[index].append(failed[position])
            outcomes[index] = RecordOutcome.RETRIED
        elif outcomes[index] is not RecordOutcome.RETRIED:
            outcomes[index] = outcome
    return {index: tuple(found) for index, found in reasons.items()}

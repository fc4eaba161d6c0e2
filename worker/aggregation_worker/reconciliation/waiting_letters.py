"""What the dead letters that wait have to do with the totals.

A record that was parked, or a batch that Lambda gave up on, can still change totals: those must not be corrected yet. A
notice's record was counted, so it changes nothing any more. But if the worker can use its image by now, it was the
worker that was wrong and not the value: the totals show what the image was not worth then, and a repair makes up for it
(`Notices`).
"""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.contributions import (
    Aggregation,
    Contribution,
    Definitions,
    Group,
    Unusable,
    contributions,
    worth,
)
from aggregation_worker.dead_letters import Notice
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.commit import Committer
from aggregation_worker.ledger.reading import read_stored
from aggregation_worker.ledger.receipts import Posting, position_in, postings, receipt_name
from aggregation_worker.reconciliation.portions import portions
from aggregation_worker.reconciliation.posting import post
from aggregation_worker.streams.records import (
    MalformedRecordError,
    StreamRecord,
    StreamViewTypeError,
    UnexpectedEventError,
    read_record,
    sequence_number_of,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


# Records that are worked on at a time.
_AT_ONCE = 500


class UnreadableLetterError(WorkerError):
    """A dead letter's record cannot be read, so it is not known which totals it could still change."""


@dataclass(frozen=True, slots=True)
class WaitingNotice:
    """A notice, and the message that holds it."""

    message_id: str
    notice: Notice


@dataclass(frozen=True, slots=True)
class Waiting:
    """All dead letters that wait, each part to be iterated over more than once.

    Attributes:
        records: raw records, as Lambda delivers them, that were not counted, or not wholly.
    """

    records: Iterable[Any]
    notices: Iterable[WaitingNotice]


def groups_waiting(
    client: "DynamoDBClient",
    ledger_table: str,
    definitions: Definitions,
    records: Iterable[Any],
    among: Container[tuple[str, Group]],
) -> set[tuple[str, Group]]:
    """Which of some aggregates, by aggregation's name and group, records of dead letters can still change.

    Memory grows with what is found, not with the records.

    Raises:
        UnreadableLetterError: a record cannot be read.
        ChangesTooFastError: an aggregate could not be seen as it is.
    """
    found: set[tuple[str, Group]] = set()
    for portion in portions(records, _AT_ONCE):
        by_aggregate: dict[tuple[str, Group], list[Posting]] = {}
        for raw in portion:
            record = _read(raw, definitions)
            changes, _ = _contributions(definitions.aggregations, record)
            for posting in postings([(0, record, changes)]):
                aggregate = posting.aggregate
                key = aggregate.aggregation.name, aggregate.row.group
                if key in among and key not in found:
                    by_aggregate.setdefault(key, []).append(posting)
        for key, mine in by_aggregate.items():
            first = min(position_in(posting.receipt) for posting in mine)
            stored = read_stored(client, ledger_table, mine[0].aggregate, first)
            if any(posting.receipt not in stored.receipts for posting in mine):
                found.add(key)
    return found


@dataclass(frozen=True, slots=True)
class _Usable:
    """A notice whose image the aggregation can use by now.

    Attributes:
        receipt: the name of the record's receipt.
        groups: those that its images belong to.
    """

    message_id: str
    aggregation: str
    receipt: str
    groups: Set[Group]


@dataclass(frozen=True, slots=True)
class Notices:
    """The notices that a repair makes up for.

    Where the item is still there, or its total takes back what is removed, the totals tell by themselves how far they
    are off. What a removed item keeps contributing they do not: it is counted, unless there is a receipt of it.

    Attributes:
        not_counted: why some of that cannot be counted, by the aggregation's name.
    """

    usable: Sequence[_Usable]
    not_counted: Mapping[str, str]

    @property
    def receipts(self) -> set[tuple[str, str]]:
        """The receipts of records that the worker has been past, by aggregation's name and receipt's name."""
        return {(one.aggregation, one.receipt) for one in self.usable}

    def made_up_for(self, proved: Collection[str], open_: Collection[tuple[str, Group]]) -> Iterator[str]:
        """The messages of the notices that are settled.

        Args:
            proved: the names of the aggregations whose totals are right, but for some.
            open_: those aggregates, by aggregation's name and group.
        """
        for one in self.usable:
            if one.aggregation in proved and not any((one.aggregation, group) in open_ for group in one.groups):
                yield one.message_id


def read_notices(
    definitions: Definitions, notices: Iterable[WaitingNotice], names: Collection[str], committer: Committer
) -> Notices:
    """Those of the notices whose images can be used by now; counts what their removed items keep contributing.

    Args:
        names: the aggregations that are looked at; notices of others are left out.

    Raises:
        UnreadableLetterError: a record cannot be read.
        CommitError, PostingError: nothing can be written, or not now.
    """
    by_name = {one.name: one for one in definitions.aggregations if one.name in names}
    usable: list[_Usable] = []
    not_counted: dict[str, str] = {}
    for portion in portions((one for one in notices if one.notice.aggregation in by_name), _AT_ONCE):
        kept: list[tuple[int, StreamRecord, list[Contribution]]] = []
        for waiting in portion:
            aggregation = by_name[waiting.notice.aggregation]
            record = _read(waiting.notice.record, definitions)
            changes, unusable = _contributions([aggregation], record)
            if not unusable:
                groups = _groups(aggregation, record)
                usable.append(_Usable(waiting.message_id, aggregation.name, receipt_name(record), groups))
                kept.append((len(kept), record, [change for change in changes if change.kept]))
        refused = post(committer, postings(kept)).refused
        not_counted |= {posting.aggregate.aggregation.name: reason for posting, reason in refused}
    return Notices(usable, not_counted)


def _read(raw: Any, definitions: Definitions) -> StreamRecord:
    try:
        return read_record(raw, definitions.source.origin)
    except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError) as error:
        raise _unreadable(sequence_number_of(raw), error) from error


def _contributions(
    aggregations: Iterable[Aggregation], record: StreamRecord
) -> tuple[list[Contribution], list[Unusable]]:
    try:
        return contributions(aggregations, record)
    except StreamViewTypeError as error:
        raise _unreadable(record.sequence_number, error) from error


def _unreadable(number: str | None, error: WorkerError) -> UnreadableLetterError:
    return UnreadableLetterError(
        f"nothing was corrected: a dead letter holds a record that cannot be read, {number or 'without a number'}: "
        f"{error}; replay or discard it first"
    )


def _groups(aggregation: Aggregation, record: StreamRecord) -> set[Group]:
    values = (worth(aggregation, image)[0] for image in (record.old_image, record.new_image))
    return {value[0] for value in values if value is not None}

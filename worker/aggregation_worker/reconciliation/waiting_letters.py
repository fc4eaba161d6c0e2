"""What the dead letters that wait have to do with the totals.

A record that was parked, or a batch that Lambda gave up on, can still change totals: those must not be corrected yet. A
notice's record was counted, so it changes nothing any more. But if the worker can use its image by now, it was the
worker that was wrong and not the value: the totals show what the image was not worth then, and a repair makes up for it
(`Notices`).
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
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
from aggregation_worker.reconciliation.posting import post
from aggregation_worker.streams.records import (
    MalformedRecordError,
    StreamRecord,
    StreamViewTypeError,
    UnexpectedEventError,
    read_record,
)

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient


class UnreadableLetterError(WorkerError):
    """A dead letter's record cannot be read, so it is not known which totals it could still change."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """All dead letters that wait: raw records that were not counted, or not wholly, and notices."""

    records: Sequence[Any]
    notices: Sequence[Notice]


def groups_waiting(
    client: "DynamoDBClient", ledger_table: str, definitions: Definitions, records: Iterable[Any]
) -> set[tuple[str, Group]]:
    """The aggregates, by aggregation's name and group, that records of dead letters can still change.

    Args:
        records: raw records as Lambda delivers them.

    Raises:
        UnreadableLetterError: a record cannot be read.
        ChangesTooFastError: an aggregate could not be seen as it is.
    """
    by_aggregate: dict[tuple[str, Group], list[Posting]] = {}
    for raw in records:
        record = _read(raw, definitions)
        changes, _ = _contributions(definitions.aggregations, record)
        for posting in postings([(0, record, changes)]):
            aggregate = posting.aggregate
            by_aggregate.setdefault((aggregate.aggregation.name, aggregate.row.group), []).append(posting)
    found = set()
    for name_and_group, mine in by_aggregate.items():
        first = min(position_in(posting.receipt) for posting in mine)
        stored = read_stored(client, ledger_table, mine[0].aggregate, first)
        if any(posting.receipt not in stored.receipts for posting in mine):
            found.add(name_and_group)
    return found


@dataclass(frozen=True, slots=True)
class _Usable:
    """A notice whose image the aggregation can use by now.

    Attributes:
        changes: what the record contributes to it, as the worker is now.
        groups: those that its images belong to.
    """

    notice: Notice
    record: StreamRecord
    changes: Sequence[Contribution]
    groups: Set[Group]


@dataclass(frozen=True, slots=True)
class Notices:
    """The notices that a repair makes up for.

    Where the item is still there, or its total takes back what is removed, the totals tell by themselves how far they
    are off. What a removed item keeps contributing they do not: it is counted, unless there is a receipt of it.
    """

    usable: Sequence[_Usable]

    @property
    def receipts(self) -> set[tuple[str, str]]:
        """The receipts of records that the worker has been past, by aggregation's name and receipt's name."""
        return {(one.notice.aggregation, receipt_name(one.record)) for one in self.usable}

    def count_what_is_kept(self, committer: Committer) -> Mapping[str, str]:
        """Counts what removed items keep contributing.

        Returns:
            Why some of it cannot be counted, by the aggregation's name.

        Raises:
            CommitError, PostingError: nothing can be written, or not now.
        """
        kept = [
            (index, one.record, [change for change in one.changes if change.kept])
            for index, one in enumerate(self.usable)
        ]
        refused = post(committer, postings(kept)).refused
        return {posting.aggregate.aggregation.name: reason for posting, reason in refused}

    def made_up_for(self, proved: Collection[str], open_: Collection[tuple[str, Group]]) -> Iterator[Notice]:
        """The notices that are settled.

        Args:
            proved: the names of the aggregations whose totals are right, but for some.
            open_: those aggregates, by aggregation's name and group.
        """
        for one in self.usable:
            name = one.notice.aggregation
            if name in proved and not any((name, group) in open_ for group in one.groups):
                yield one.notice


def usable_notices(definitions: Definitions, notices: Iterable[Notice], names: Collection[str]) -> Notices:
    """Those of the notices whose images can be used by now.

    Args:
        names: the aggregations that are looked at; notices of others are left out.

    Raises:
        UnreadableLetterError: a record cannot be read.
    """
    by_name = {one.name: one for one in definitions.aggregations if one.name in names}
    found = []
    for notice in notices:
        if (aggregation := by_name.get(notice.aggregation)) is not None:
            record = _read(notice.record, definitions)
            changes, unusable = _contributions([aggregation], record)
            if not unusable:
                found.append(_Usable(notice, record, changes, _groups(aggregation, record)))
    return Notices(found)


def _read(raw: Any, definitions: Definitions) -> StreamRecord:
    try:
        return read_record(raw, definitions.source.origin)
    except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError) as error:
        raise UnreadableLetterError(f"a dead letter holds a record that cannot be read: {error}") from error


def _contributions(
    aggregations: Iterable[Aggregation], record: StreamRecord
) -> tuple[list[Contribution], list[Unusable]]:
    try:
        return contributions(aggregations, record)
    except StreamViewTypeError as error:
        raise UnreadableLetterError(f"a dead letter holds a record that cannot be read: {error}") from error


def _groups(aggregation: Aggregation, record: StreamRecord) -> set[Group]:
    values = (worth(aggregation, image)[0] for image in (record.old_image, record.new_image))
    return {value[0] for value in values if value is not None}

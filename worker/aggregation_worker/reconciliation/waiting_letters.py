"""Which totals the dead letters that wait can still change: those must not be corrected yet."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, contributions
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.reading import read_stored
from aggregation_worker.ledger.receipts import Posting, position_in, postings
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


def groups_waiting(
    client: "DynamoDBClient", ledger_table: str, definitions: Definitions, records: Iterable[Any]
) -> set[tuple[str, Group]]:
    """The aggregates, by aggregation's name and group, that dead letters' records can still change.

    A record that an aggregation refuses as it is may be counted by a mended worker: it can change every aggregate that
    one of its images belongs to.

    Args:
        records: raw records as Lambda delivers them.

    Raises:
        UnreadableLetterError: a record cannot be read.
        ChangesTooFastError: an aggregate could not be seen as it is.
    """
    found: set[tuple[str, Group]] = set()
    by_aggregate: dict[tuple[str, Group], list[Posting]] = {}
    for raw in records:
        try:
            record = read_record(raw, definitions.source.table)
            for aggregation in definitions.aggregations:
                changes, refusals = contributions((aggregation,), record)
                if refusals:
                    found |= {(aggregation.name, group) for group in _groups(aggregation, record)}
                for posting in postings([(0, record, changes)]):
                    by_aggregate.setdefault((aggregation.name, posting.aggregate.row.group), []).append(posting)
        except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError) as error:
            raise UnreadableLetterError(f"a dead letter holds a record that cannot be read: {error}") from error
    for name_and_group, mine in by_aggregate.items():
        first = min(position_in(posting.receipt) for posting in mine)
        stored = read_stored(client, ledger_table, mine[0].aggregate, first)
        if any(posting.receipt not in stored.receipts for posting in mine):
            found.add(name_and_group)
    return found


def _groups(aggregation: Aggregation, record: StreamRecord) -> set[Group]:
    groups = set()
    for image in (record.old_image, record.new_image):
        try:
            value = None if image is None else aggregation.value(image)
        except MalformedValueError:
            continue
        if value is not None:
            groups.add(value[0])
    return groups

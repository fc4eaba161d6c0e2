"""Which totals the dead letters that wait can still change: those must not be corrected yet."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, contributions
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.pages import receipt_names
from aggregation_worker.ledger.receipts import postings
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
    """
    found: set[tuple[str, Group]] = set()
    pages: dict[tuple[str, str], frozenset[str]] = {}
    for raw in records:
        try:
            record = read_record(raw, definitions.source.table)
            for aggregation in definitions.aggregations:
                changes, refusals = contributions((aggregation,), record)
                if refusals:
                    found |= {(aggregation.name, group) for group in _groups(aggregation, record)}
                for posting in postings([(0, record, changes)]):
                    page = (posting.aggregate.name, posting.page)
                    if page not in pages:
                        pages[page] = receipt_names(client, ledger_table, *page)
                    if posting.receipt not in pages[page]:
                        found.add((aggregation.name, posting.aggregate.row.group))
        except (MalformedRecordError, UnexpectedEventError, StreamViewTypeError) as error:
            raise UnreadableLetterError(f"a dead letter holds a record that cannot be read: {error}") from error
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

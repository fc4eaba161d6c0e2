"""The join: a table's items and the stream's records give every aggregate's baseline, exactly, while writes go on.

A scan is not a point in time, and an export is one only to a minute. But a position in the stream, the *cut*, is one
for every key, since a key's records are in order. What a key's item was at the cut is

- for a key with *later records* (those after the cut): the first one's old image, nothing if it is an INSERT;
- for any other key: the item as it was read, since nothing has changed it between the cut and the reading.

That holds for every item read after the cut, however late and in however many runs, provided the stream is read from
the cut to a point after which no write before the last reading can appear (`StreamReader.has_passed`). The *baseline*
of an aggregate is the sum of `Aggregation.value` over all items as they were at the cut. So at any time

    total = baseline + contributions of later records that the worker has applied

and the receipts tell which these are. An item that an aggregation cannot use counts nothing, as for the
worker.

An aggregation with `since` counts a record by its creation second, which is not quite the stream's order. Its cut is
the first counted record of each key; what records contribute that follow it and are not counted belongs to the
baseline.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b, sha256
from typing import Any

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import (
    IMAGE_READING,
    Aggregation,
    Group,
    Source,
    contributions,
    worth,
)
from aggregation_worker.aggregations.numbers import canonical_text, parse_number
from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.receipts import net, receipt_name
from aggregation_worker.reconciliation.canary import is_canary
from aggregation_worker.reconciliation.items import ItemPage, ItemSource
from aggregation_worker.reconciliation.progress import Stage, Tell
from aggregation_worker.reconciliation.spool import ItemRow, LaterReceipt, Spool, amounts_text, group_text
from aggregation_worker.streams.reader import MARGIN, RETENTION, StreamReader, stream_began
from aggregation_worker.streams.records import EventName, Image, StreamRecord, StreamViewTypeError, read_record

# Seconds that a `since` must lie in the past before the first item is read, so that every write before it is done and
# stands in the items, whatever the clocks say.
SINCE_MARGIN = 120
_DIGEST_BYTES = 16
# "Point-in-time recovery", Amazon DynamoDB developer guide: an export is of a moment to within a minute.
_EXPORT_FUZZ = timedelta(minutes=1)
_POLL_SECONDS = 0.05
_BEGUN = "begun"


class SnapshotError(WorkerError):
    """A snapshot of these items cannot be joined with this stream; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """Aggregations that share a cut, and its number in the spool; `since` is the cut's, in epoch seconds."""

    number: int
    since: int | None
    aggregations: tuple[Aggregation, ...]

    @property
    def counting_all(self) -> list[Aggregation]:
        """The aggregations as if they counted every record."""
        return [replace(aggregation, since=None) for aggregation in self.aggregations]


class Snapshot:
    """The join: what it has found is in its spool, to which each `pump` adds the later records that it reads.

    Args:
        only: the aggregates, by aggregation's name and group, of which later records are spooled; `None` for all.
    """

    def __init__(
        self,
        aggregations: Sequence[Aggregation],
        source: Source,
        reader: StreamReader,
        spool: Spool,
        only: Set[tuple[str, Group]] | None = None,
    ) -> None:
        self.spool = spool
        self.reader = reader
        self.records_read = 0
        self.source = source
        self.aggregations = aggregations
        self._noticed = Counter[str]()
        self._only = only
        self._key_names = tuple(name for name, _ in source.keys)
        self._cuts = _cuts(aggregations)
        self._baselines_stand = spool.is_complete

    def pump(self) -> int:
        """Reads one round of the stream and spools what it holds; returns the number of records.

        None does not mean the end: pause a little and pump again.

        Raises:
            StreamGapError: the stream cannot be read without a gap.
            StreamViewTypeError: the stream does not deliver both images.
            botocore.exceptions.ClientError: the stream cannot be read.
        """
        count = 0
        for page in self.reader.pages():
            with self.spool.together():
                for raw in page:
                    self._take(raw)
            count += len(page)
        self.records_read += count
        return count

    def has_passed(self, moment: float) -> bool:
        """Whether every record of a write before `moment`, by `time.monotonic`, has been read."""
        return self.reader.has_passed(moment)

    def pump_until(self, moment: float, between: Callable[[], object] = lambda: None) -> None:
        """Pumps until `has_passed(moment)`, and calls `between` after each round."""
        while not self.has_passed(moment):
            if not self.pump():
                time.sleep(_POLL_SECONDS)
            between()

    def noticed(self, aggregation: Aggregation) -> int:
        """How many later records, of those read so far, have an image that the aggregation cannot use."""
        return self._noticed[aggregation.name]

    def add_items(self, page: ItemPage) -> None:
        """Spools what a page of items contributes, with the position after it."""
        self.spool.add_items(page.segment, page.position, len(page.items), self._rows(page.items))

    def complete(self, between: Callable[[], object]) -> None:
        """Sums up the baselines. Every item must have been read, and the stream up to after the last of them.

        The stream is read meanwhile: a position that is not used for 15 minutes is lost. `between` is called, too.
        """
        self._baselines_stand = True

        def read_on() -> None:
            self.pump()
            between()

        self.spool.complete(read_on)

    def _rows(self, items: Iterable[Image]) -> Iterator[ItemRow]:
        numbered = list(enumerate(self.aggregations))
        texts: dict[Group, str] = {}
        for item in items:
            if is_canary(item, self._key_names):
                continue
            digest: bytes | None = None
            for number, aggregation in numbered:
                try:
                    value = aggregation.value(item)
                except MalformedValueError:
                    digest = digest or self._digest(item)
                    yield digest, number, None, None
                    continue
                if value is None or not any(value[1]):
                    continue
                group, amounts = value
                text = texts.get(group)
                if text is None:
                    text = texts[group] = group_text(group)
                digest = digest or self._digest(item)
                yield digest, number, text, amounts_text(amounts)

    def _take(self, raw: dict[str, Any]) -> None:
        record = read_record(raw, self.source.origin)
        if record.event_name is EventName.REMOVE and record.old_image is None:
            raise StreamViewTypeError.missing("OldImage", record.event_name, record.sequence_number)
        keys = raw["dynamodb"]["Keys"]
        if len(keys) != len(self._key_names):
            raise SnapshotError(
                f"the keys of table {self.source.table} are {', '.join(keys)}, but its definition says "
                f"{', '.join(self._key_names)}: correct [source]"
            )
        if is_canary(keys, self._key_names):
            return
        digest = self._digest(keys)
        for cut in self._cuts:
            if cut.since is None or record.created_at >= cut.since:
                if not self._baselines_stand and self.spool.see(digest, cut.number):
                    self._add_as_it_was(cut, record.old_image)
                self._add_later(cut, record)
            elif not self._baselines_stand and self.spool.has_seen(digest, cut.number):
                self._add_uncounted(cut, record)

    def _add_as_it_was(self, cut: _Cut, image: Image | None) -> None:
        """The item at the cut: the old image of the key's first later record."""
        if image is None:
            return
        for aggregation in cut.aggregations:
            value, problem = worth(aggregation, image)
            if problem is not None:
                self.spool.add_at_cut(aggregation.name, None, None)
            elif value is not None:
                self.spool.add_at_cut(aggregation.name, *value)

    def _add_later(self, cut: _Cut, record: StreamRecord) -> None:
        changes, unusable = contributions(cut.aggregations, record)
        for change in changes:
            if self._only is not None and (change.aggregation.name, change.group) not in self._only:
                continue
            receipt = LaterReceipt(change.group, receipt_name(record), change.amounts, change.kept)
            self.spool.add_later(change.aggregation.name, receipt)
        self._noticed.update(one.aggregation for one in unusable)

    def _add_uncounted(self, cut: _Cut, record: StreamRecord) -> None:
        """What the worker does not count, of a record that follows one that it counts."""
        for change in contributions(cut.counting_all, record)[0]:
            self.spool.add_at_cut(change.aggregation.name, change.group, net(change.amounts, change.kept))

    def _digest(self, image: Image) -> bytes:
        """A key, however many bytes it has, in 16; two different keys do not share one."""
        text = ""
        for name in self._key_names:
            value = image.get(name)
            if value is None:
                raise SnapshotError(
                    f"an item of table {self.source.table} has no attribute {name}, which [source] says is its key"
                )
            for kind, content in value.items():
                exact = canonical_text(parse_number(content)) if kind == "N" else content
                text += f"{kind}{len(exact)}:{exact}"
        return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def read_back(snapshot: Snapshot, spool: Spool, only: Set[tuple[str, Group]], between: Callable[[], object]) -> None:
    """Reads what the stream holds from its beginning up to now, in the spool as later records of some aggregates.

    Meanwhile the snapshot's own stream is read on. Afterwards the records of before its cut are known, too, and the cut
    of these aggregates can be taken to be the stream's beginning: their baselines are less by what those contribute.

    Args:
        spool: a new one.
        only: the aggregates, by aggregation's name and group.

    Raises:
        as `Snapshot.pump`.
    """

    def read_on() -> None:
        snapshot.pump()
        between()

    aggregations, source = snapshot.aggregations, snapshot.source
    cuts = {aggregation.name: 0 for aggregation in aggregations}
    reader = snapshot.reader.from_the_beginning()
    spool.begin(_run(aggregations, source, reader), cuts)
    spool.complete(read_on)
    Snapshot(aggregations, source, reader, spool, only).pump_until(time.monotonic(), read_on)


def take_snapshot(
    aggregations: Sequence[Aggregation],
    source: Source,
    items: ItemSource,
    reader: StreamReader,
    spool: Spool,
    *,
    whole_history: bool = False,
    progress: Tell = lambda *_: None,
) -> Snapshot:
    """Reads all items and the stream after them, and sums up the baselines.

    Pages of items and rounds of the stream alternate in this thread. A run that was killed continues with its spool:
    items that were read are not read again, the stream is read from the cut again. A complete spool is returned at
    once, however old: its baselines stand, but who pumps further must check the stream's history. A reader that starts
    at `LATEST` has its cut in memory only, so its spool is of no use to another run.

    Args:
        aggregations: for which baselines are wanted.
        source: the table that items and stream belong to.
        items: a scan or an export.
        reader: follows the table's stream from the cut on: its beginning (`TRIM_HORIZON`) or now (`LATEST`).
        spool: where all is kept; closed by the caller, after the snapshot's last use.
        whole_history: refuse unless the stream holds, to the end of the reading, every record since it began, or
            created since an aggregation's `since`.
        progress: told after every page and round, and while the baselines are summed up.

    Raises:
        SnapshotError: items and stream cannot be joined: a `since` or an export at the wrong time, a spool too old.
        HistoryLostError: the stream may not hold its whole history (any more).
        StreamGapError: the stream cannot be read without a gap: records have left it before they were read, or it is
            disabled.
        WorkerError: items, stream or spool cannot be used, as their modules say.
        botocore.exceptions.ClientError: items or stream cannot be read.
    """
    reader.open()
    opened_at = reader.opened_at or datetime.now(UTC)
    cuts = _cuts(aggregations)
    cut_by_name = {aggregation.name: cut.number for cut in cuts for aggregation in cut.aggregations}
    run = {"items": items.description, **_run(aggregations, source, reader)}
    spool.begin(run, {aggregation.name: cut_by_name[aggregation.name] for aggregation in aggregations})
    snapshot = Snapshot(aggregations, source, reader, spool)
    if spool.is_complete:
        return snapshot
    _check_times(cuts, items, reader, opened_at)
    _check_age(spool, opened_at)
    began = stream_began(reader.stream_arn)
    beginnings = [began if cut.since is None else datetime.fromtimestamp(cut.since, UTC) for cut in cuts]

    def check_history() -> None:
        if whole_history:
            for beginning in beginnings:
                reader.check_history(beginning)

    def tell_of_stream(stage: Stage) -> None:
        progress(stage, snapshot.records_read, None)

    check_history()
    spool.forget_stream()
    with closing(items.pages(spool.positions())) as pages:  # its threads end with it
        for page in pages:
            if page is not None:
                snapshot.add_items(page)
            snapshot.pump()
            progress(Stage.ITEMS, spool.items_read(), items.estimated_items)
    snapshot.pump_until(time.monotonic(), lambda: tell_of_stream(Stage.STREAM))
    check_history()
    tell_of_stream(Stage.SUMS)
    snapshot.complete(lambda: tell_of_stream(Stage.SUMS))
    return snapshot


def _run(aggregations: Sequence[Aggregation], source: Source, reader: StreamReader) -> dict[str, str]:
    """What a spool's content depends on."""
    start = "its beginning" if reader.start == "TRIM_HORIZON" else f"{reader.opened_at}"
    return {
        "table": source.table,
        "stream": f"{reader.stream_arn} from {start}",
        "aggregations": ", ".join(f"{one.name} ({fingerprint(one)[:16]})" for one in aggregations),
    }


def fingerprint(aggregation: Aggregation) -> str:
    """SHA-256 of all that decides what the aggregation makes of an item, in hexadecimal."""
    return sha256(f"{IMAGE_READING} {aggregation.definition}".encode()).hexdigest()


def _check_times(cuts: Sequence[_Cut], items: ItemSource, reader: StreamReader, opened_at: datetime) -> None:
    """Every item must be read after the cut, and every record before a `since` must be written by then."""
    read_at = opened_at if items.read_at is None else items.read_at - _EXPORT_FUZZ
    for cut in cuts:
        if cut.since is not None and read_at.timestamp() - cut.since < SINCE_MARGIN:
            since = datetime.fromtimestamp(cut.since, UTC).isoformat()
            raise SnapshotError(
                f"aggregation {cut.aggregations[0].name!r}: since {since} must lie {SINCE_MARGIN} s before the "
                f"items are read ({read_at.isoformat(timespec='seconds')}): "
                + ("wait, and run this again" if items.read_at is None else "take a later export")
            )
    if items.read_at is None:
        return
    position = opened_at
    if reader.start == "TRIM_HORIZON":
        position = max(stream_began(reader.stream_arn), opened_at - RETENTION)
    if read_at < position:
        raise SnapshotError(
            f"the export is of {items.read_at.isoformat(timespec='seconds')}, but the stream holds all changes only "
            f"from {position.isoformat(timespec='seconds')} on: take a new export"
        )


def _check_age(spool: Spool, opened_at: datetime) -> None:
    """The first items read must be younger than the oldest record that the stream holds for certain."""
    begun = spool.note(_BEGUN)
    if begun is None:
        spool.set_note(_BEGUN, datetime.now(UTC).isoformat())
    elif opened_at - datetime.fromisoformat(begun) > RETENTION - MARGIN:
        raise SnapshotError(f"the spool was begun at {begun}, and the stream holds 24 hours: begin with a new one")


def _cuts(aggregations: Sequence[Aggregation]) -> list[_Cut]:
    by_since: dict[int | None, list[Aggregation]] = {}
    for aggregation in aggregations:
        by_since.setdefault(aggregation.since, []).append(aggregation)
    return [_Cut(number, since, tuple(those)) for number, (since, those) in enumerate(by_since.items())]

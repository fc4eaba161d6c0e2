"""The join: a table's items and the stream's records give every aggregate's baseline, exactly, while writes go on.

A scan is no point in time, and an export is one only to a minute. But a position in the stream, the *cut*, is one for
every key, since a key's records are in order. What a key's item was at the cut is

- for a key with *later records* (those behind the cut): the first one's old image, nothing if it is an INSERT;
- for any other key: the item as it was read, since nothing has changed it between the cut and the reading.

That holds for every item read after the cut, however late and in however many runs, provided the stream is read from
the cut to a point behind which no write before the last reading can appear (`StreamReader.has_passed`). The *baseline*
of an aggregate is the sum of `Aggregation.value` over all items as they were at the cut. So at any time

    total = baseline + contributions of later records that the worker has applied

and the receipts in the ledger tell which these are. An item that an aggregation cannot use counts nothing, as for the
worker.

An aggregation with `since` counts a record by its creation second, which is not quite the stream's order. Its cut is
the first counted record of each key; what records contribute that follow it and are not counted belongs to the
baseline.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from typing import Any, Literal

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.contributions import Aggregation, Group, Source, contributions
from aggregation_worker.aggregations.numbers import Amounts, canonical_text, parse_number
from aggregation_worker.ledger.definition_guard import fingerprint
from aggregation_worker.ledger.receipts import page_name, receipt_name
from aggregation_worker.reconciliation.canary import is_canary
from aggregation_worker.reconciliation.items import ItemPage, ItemSource
from aggregation_worker.reconciliation.spool import Comparison, ItemRow, LaterReceipt, Spool, amounts_text, group_text
from aggregation_worker.streams.reader import MARGIN, RETENTION, StreamReader, stream_began
from aggregation_worker.streams.records import EventName, Image, StreamRecord, StreamViewTypeError, read_record

_DIGEST_BYTES = 16
# "Point-in-time recovery", Amazon DynamoDB developer guide: an export is of a moment to within a minute.
_EXPORT_FUZZ = timedelta(minutes=1)
_POLL_SECONDS = 0.05
_BEGUN = "begun"
_ZERO = Decimal(0)


class SnapshotError(Exception):
    """A snapshot of these items cannot be joined with this stream; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a snapshot has come: reading items, then the rest of the stream, then summing up."""

    stage: Literal["items", "stream", "sums"]
    items: int
    estimated_items: int | None
    records: int
    consumed_units: float


@dataclass(frozen=True, slots=True)
class _Cut:
    """Aggregations that share a cut, by their numbers in the spool; `since` is the cut's, in epoch seconds."""

    number: int
    since: int | None
    aggregations: tuple[tuple[int, Aggregation], ...]

    @property
    def counting_all(self) -> list[Aggregation]:
        """The aggregations as if they counted every record."""
        return [replace(aggregation, since=None) for _, aggregation in self.aggregations]


class Snapshot:
    """What the join has found, and goes on finding of later records with each `pump`."""

    def __init__(
        self,
        aggregations: Sequence[Aggregation],
        source: Source,
        reader: StreamReader,
        spool: Spool,
        on_refused: Callable[[Aggregation, StreamRecord], None] | None = None,
    ) -> None:
        self.spool = spool
        self.reader = reader
        self._on_refused = on_refused
        self.records_read = 0
        self._source = source
        self._numbers = {aggregation.name: number for number, aggregation in enumerate(aggregations)}
        self._aggregations = tuple(aggregations)
        self._refused = [0] * len(aggregations)
        self._key_names = tuple(name for name, _ in source.keys)
        self._cuts = _cuts(aggregations)
        self._baselines_stand = spool.is_complete

    def pump(self) -> int:
        """Reads one round of the stream and spools what it holds; returns the number of records.

        None is no end: pause a little and pump again.

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

    def pump_until(self, moment: float, *, timeout: float | None = None) -> None:
        """Pumps until `has_passed(moment)`.

        Raises:
            TimeoutError: that was not so within `timeout` seconds.
            StreamGapError, StreamViewTypeError, botocore.exceptions.ClientError: as `pump`.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.has_passed(moment):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"the stream was not read to the end within {timeout} s")
            if not self.pump() and not self.has_passed(moment):
                time.sleep(_POLL_SECONDS)

    def baseline(self, aggregation: Aggregation, group: Group) -> Amounts:
        """The sum over all items of a group as they were at the cut."""
        found = self.spool.baseline(self._numbers[aggregation.name], group)
        return _zero(aggregation) if found is None else found

    def baselines(self, aggregation: Aggregation, after: Group | None = None) -> Iterator[tuple[Group, Amounts]]:
        """All baselines that are not zero, or those behind the group `after`, always in the same order."""
        return self.spool.baselines(self._numbers[aggregation.name], after)

    def number_of_baselines(self, aggregation: Aggregation) -> int:
        """How many baselines are not zero."""
        return self.spool.number_of_baselines(self._numbers[aggregation.name])

    def unusable(self, aggregation: Aggregation) -> int:
        """How many items, as they were at the cut, the aggregation cannot use."""
        return self.spool.unusable(self._numbers[aggregation.name])

    def refused(self, aggregation: Aggregation) -> int:
        """How many later records, of those read so far, the aggregation cannot use: the worker parks them."""
        return self._refused[self._numbers[aggregation.name]]

    def later(self, aggregation: Aggregation, group: Group) -> dict[tuple[str, str], Amounts]:
        """What later records contribute to an aggregate, of those read so far, by page and receipt in the ledger."""
        return self.spool.later(self._numbers[aggregation.name], group)

    def is_later(self, aggregation: Aggregation, group: Group, page: str, receipt: str) -> bool:
        """Whether a receipt of an aggregate is that of a later record, of those read so far."""
        return self.spool.is_later(self._numbers[aggregation.name], group, page, receipt)

    def later_receipts(self, aggregation: Aggregation, *, before: int | None = None) -> Iterator[LaterReceipt]:
        """What later records contribute, aggregate by aggregate; those created before `before`, in epoch seconds."""
        for receipt in self.spool.later_receipts(self._numbers[aggregation.name]):
            if before is None or receipt.created_at < before:
                yield receipt

    def later_totals(self, aggregation: Aggregation) -> Iterator[tuple[Group, Amounts]]:
        """What later records contribute to each aggregate in all, of those read so far."""
        return self.spool.later_totals(self._numbers[aggregation.name])

    def store_totals(self, aggregation: Aggregation, rows: Iterable[tuple[Group, Amounts]]) -> None:
        """Keeps an aggregation's totals as they stand in its table, for `compare`."""
        self.spool.store_totals(self._numbers[aggregation.name], rows)

    def compare(self, aggregation: Aggregation) -> Iterator[Comparison]:
        """Every aggregate that has a baseline, a later record or a stored total: what is expected, what stands there.

        Expected is the total once every later record read so far is applied, so a difference may be in flight.
        """
        return self.spool.compare(self._numbers[aggregation.name], _zero(aggregation))

    @property
    def items_read(self) -> int:
        """How many items have been read, in all runs that this spool has seen."""
        return self.spool.items_read()

    def add_items(self, page: ItemPage) -> None:
        """Spools what a page of items contributes, with the position behind it."""
        self.spool.add_items(page.segment, page.position, len(page.items), self._rows(page.items))

    def complete(self, between: Callable[[], object] = lambda: None) -> None:
        """Sums up the baselines. Every item must have been read, and the stream behind the last of them.

        The stream is read meanwhile: a position that is not used for 15 minutes is lost.
        """
        self._baselines_stand = True
        self.spool.complete(between=lambda: (self.pump(), between()))

    def _rows(self, items: Iterable[Image]) -> Iterator[ItemRow]:
        numbered = [pair for cut in self._cuts for pair in cut.aggregations]
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
        record = read_record(raw, self._source.table)
        if record.event_name is EventName.REMOVE and record.old_image is None:
            raise StreamViewTypeError.missing("OldImage", record.event_name, record.sequence_number)
        keys = raw["dynamodb"]["Keys"]
        if len(keys) != len(self._key_names):
            raise SnapshotError(
                f"the keys of table {self._source.table} are {', '.join(keys)}, but its definition says "
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
        for number, aggregation in cut.aggregations:
            try:
                value = aggregation.value(image)
            except MalformedValueError:
                self.spool.add_at_cut(number, None, None)
                continue
            if value is not None:
                self.spool.add_at_cut(number, *value)

    def _add_later(self, cut: _Cut, record: StreamRecord) -> None:
        changes, refusals = contributions((aggregation for _, aggregation in cut.aggregations), record)
        for change in changes:
            self.spool.add_later(
                self._numbers[change.aggregation.name],
                LaterReceipt(
                    change.group,
                    page_name(record.created_at, record.stream_label),
                    receipt_name(record),
                    record.created_at,
                    change.amounts,
                ),
            )
        for refusal in refusals:
            number = self._numbers[refusal.aggregation]
            self._refused[number] += 1
            if self._on_refused is not None:
                self._on_refused(self._aggregations[number], record)

    def _add_uncounted(self, cut: _Cut, record: StreamRecord) -> None:
        """What the worker does not count, of a record that follows one that it counts."""
        for change in contributions(cut.counting_all, record)[0]:
            self.spool.add_at_cut(self._numbers[change.aggregation.name], change.group, change.amounts)

    def _digest(self, image: Image) -> bytes:
        """A key, however many bytes it has, in 16; two different keys do not share one."""
        text = ""
        for name in self._key_names:
            value = image.get(name)
            if value is None:
                raise SnapshotError(
                    f"an item of table {self._source.table} has no attribute {name}, which [source] says is its key"
                )
            for kind, content in value.items():
                exact = canonical_text(parse_number(content)) if kind == "N" else content
                text += f"{kind}{len(exact)}:{exact}"
        return blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def take_snapshot(  # noqa: PLR0913 - parts and switches of one run, most of them by keyword
    aggregations: Sequence[Aggregation],
    source: Source,
    items: ItemSource,
    reader: StreamReader,
    spool: Spool,
    *,
    whole_history: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_refused: Callable[[Aggregation, StreamRecord], None] | None = None,
    since_margin: float = 120.0,
) -> Snapshot:
    """Reads all items and the stream behind them, and sums up the baselines.

    Pages of items and rounds of the stream alternate in this thread. A run that was killed goes on with its spool:
    items that were read are not read again, the stream is read from the cut again. A complete spool is returned at
    once, however old: its baselines stand, but who goes on to pump must check the stream's history. A reader that
    starts at `LATEST` has its cut in memory only, so its spool is of no use to another run.

    Args:
        aggregations: for which baselines are wanted.
        source: the table that items and stream belong to.
        items: a scan or an export.
        reader: follows the table's stream from the cut on: its beginning (`TRIM_HORIZON`) or now (`LATEST`).
        spool: where all is kept; closed by the caller, after the snapshot's last use.
        whole_history: refuse unless the stream holds, to the end of the reading, every record since it began, or
            created since an aggregation's `since`.
        progress: told after every page and round.
        on_refused: told of every later record that an aggregation cannot use, also by later pumping.
        since_margin: how many seconds a `since` must lie in the past, so that every record before it is written.

    Raises:
        SnapshotError: items and stream cannot be joined: a `since` or an export at the wrong time, a spool too old.
        HistoryLostError: the stream may not hold its whole history (any more).
        StreamGapError: the stream cannot be read without a gap: records have left it before they were read, or it is
            disabled.
        SpoolMismatchError: the spool is another run's.
        StreamViewTypeError: the stream does not deliver both images.
        ExportError, botocore.exceptions.ClientError: items or stream cannot be read.
    """
    reader.open()
    opened_at = reader.opened_at or datetime.now(UTC)
    spool.begin(_run(aggregations, source, items, reader), [cut.number for cut in _cut_of_each(aggregations)])
    snapshot = Snapshot(aggregations, source, reader, spool, on_refused)
    cuts = _cuts(aggregations)
    if spool.is_complete:
        return snapshot
    _check_times(cuts, items, reader, opened_at, since_margin)
    _check_age(spool, opened_at)
    began = stream_began(reader.stream_arn)
    beginnings = [began if cut.since is None else datetime.fromtimestamp(cut.since, UTC) for cut in cuts]

    def check_history() -> None:
        if whole_history:
            for beginning in beginnings:
                reader.check_history(beginning)

    def tell(stage: Literal["items", "stream", "sums"]) -> None:
        if progress is not None:
            progress(Progress(stage, count, items.estimated_items, snapshot.records_read, units))

    check_history()
    spool.forget_stream()
    count, units = spool.items_read(), 0.0
    pages = items.pages(spool.positions())
    try:
        for page in pages:
            if page is not None:
                snapshot.add_items(page)
                count += len(page.items)
                units += page.consumed_units
            snapshot.pump()
            tell("items")
    finally:
        if isinstance(pages, Generator):
            pages.close()  # its threads end now, not when the error's traceback goes
    moment = time.monotonic()
    while not snapshot.has_passed(moment):
        if not snapshot.pump():
            time.sleep(_POLL_SECONDS)
        tell("stream")
    check_history()
    tell("sums")
    snapshot.complete(between=lambda: tell("sums"))
    return snapshot


def _run(
    aggregations: Sequence[Aggregation], source: Source, items: ItemSource, reader: StreamReader
) -> dict[str, str]:
    """What a spool's content depends on."""
    start = "its beginning" if reader.start == "TRIM_HORIZON" else f"{reader.opened_at}"
    return {
        "table": source.table,
        "items": items.description,
        "stream": f"{reader.stream_arn} from {start}",
        "aggregations": ", ".join(f"{one.name} ({fingerprint(one)[:16]})" for one in aggregations),
    }


def _check_times(
    cuts: Sequence[_Cut], items: ItemSource, reader: StreamReader, opened_at: datetime, since_margin: float
) -> None:
    """Every item must be read after the cut, and every record before a `since` must be written by then."""
    read_at = opened_at if items.read_at is None else items.read_at - _EXPORT_FUZZ
    for cut in cuts:
        if cut.since is not None and read_at.timestamp() - cut.since < since_margin:
            since = datetime.fromtimestamp(cut.since, UTC).isoformat()
            raise SnapshotError(
                f"aggregation {cut.aggregations[0][1].name!r}: since {since} must lie {since_margin:.0f} s before the "
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


def _cut_of_each(aggregations: Sequence[Aggregation]) -> list[_Cut]:
    cuts = {aggregation.name: cut for cut in _cuts(aggregations) for _, aggregation in cut.aggregations}
    return [cuts[aggregation.name] for aggregation in aggregations]


def _cuts(aggregations: Sequence[Aggregation]) -> list[_Cut]:
    by_since: dict[int | None, list[tuple[int, Aggregation]]] = {}
    for number, aggregation in enumerate(aggregations):
        by_since.setdefault(aggregation.since, []).append((number, aggregation))
    return [_Cut(number, since, tuple(pairs)) for number, (since, pairs) in enumerate(by_since.items())]


def _zero(aggregation: Aggregation) -> Amounts:
    return (_ZERO,) * len(aggregation.measures)

"""`aggregator explain`: what made a total, from its receipts, wherever they stand: records, a backfill, repairs."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any

from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, KeyType
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.aggregations.numbers import Amounts, canonical_text, parse_number, sum_of
from aggregation_worker.ledger.corrections import FOUND, correction_page
from aggregation_worker.ledger.reading import Stored, read_stored
from aggregation_worker.ledger.receipts import aggregate_of, kept_attribute, second_of
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import print_json, print_table, say
from aggregation_worker.operations.resources import Resources


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Prints the receipts of one row in order (a backfill, records, repairs) and where each stands (in the row, or "
        "on which page of the ledger), their sum, and the stored total beside it."
    )
    parser.add_argument("table", metavar="TABLE", help="the target table")
    parser.add_argument("keys", metavar="KEY", nargs="+", help="the row's partition key, and its sort key if any")
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the receipts of one row's aggregates; returns 0 if there are any and they add up, else 1."""
    explanations = list(explanations_of(Resources.of(options), options.table, options.keys))
    if options.json:
        print_json([_as_json(explanation) for explanation in explanations])
    else:
        for explanation in explanations:
            _print(explanation)
    if not any(explanation.is_there for explanation in explanations):
        return 1
    return 1 if any(explanation.is_wrong for explanation in explanations) else 0


_ROW = "row"
_Stored = tuple[Decimal | None, ...]


class ReceiptKind(StrEnum):
    """What a receipt proves."""

    BACKFILL = "backfill"  # what the source held when the stream began, or at the aggregation's `since`
    RECORD = "record"  # one stream record
    FOUND = "found"  # what a repair found in the total without a receipt, before it corrected it
    REPAIR = "repair"  # a correction by `aggregator reconcile --repair`


@dataclass(frozen=True, slots=True)
class Receipt:
    """One receipt of an aggregate.

    Attributes:
        time: the record's creation; the moment that a backfill added up; when a repair was made.
        name: the record's sequence number; what a backfill's moment is, `stream` (its beginning) or `since`; the
            run of a repair.
        amounts: the contribution, in the order of the measures' names.
        kept: what it adds to what is kept of the total; empty if nothing.
        where: `row`, or `page` and the key of the ledger's page.
        position: the record's position; empty otherwise.
    """

    kind: ReceiptKind
    time: str
    name: str
    amounts: Amounts
    where: str
    position: str = ""
    kept: Amounts = ()

    def described(self) -> str:
        """What the table shows beside the time."""
        if self.kept:
            return f"{self.name}, of a removed item: {', '.join(map(canonical_text, self.kept))} kept"
        if self.kind is ReceiptKind.BACKFILL:
            moment = "the stream began" if self.name == "stream" else "the aggregation began (since)"
            return f"backfill: what the source held when {moment}"
        if self.kind is ReceiptKind.FOUND:
            return f"found in the total without a receipt (repair {self.name})"
        return self.name if self.kind is ReceiptKind.RECORD else f"repair {self.name}"

    def order(self) -> tuple[bool, str, ReceiptKind, str]:
        """The starting value first, then as time went; records by their positions."""
        return self.kind is not ReceiptKind.BACKFILL, self.time, self.kind, self.position


@dataclass(frozen=True, slots=True)
class Explanation:
    """An aggregate's receipts beside its total.

    Attributes:
        total: as stored, `None` for a measure that is not a number; `None` if there is no row.
        kept: how much of it removed items contributed, as stored.
        may_have_expired: pages of it are gone, as they are after the ledger's retention.
    """

    aggregation: Aggregation
    group: Group
    receipts: tuple[Receipt, ...]
    total: _Stored | None
    kept: _Stored
    may_have_expired: bool

    @property
    def is_there(self) -> bool:
        """Whether there is a row, or a receipt of one."""
        return self.total is not None or bool(self.receipts)

    @property
    def zero(self) -> Amounts:
        return (Decimal(0),) * len(self.aggregation.measures)

    @property
    def sum(self) -> Amounts:
        """The sum of the receipts."""
        return sum_of((receipt.amounts for receipt in self.receipts), self.zero)

    @property
    def sum_kept(self) -> Amounts:
        """The sum of what the receipts keep."""
        return sum_of((receipt.kept for receipt in self.receipts if receipt.kept), self.zero)

    @property
    def matches(self) -> bool:
        """Whether receipts and total, and what is kept of it, are equal; no row is as good as zero."""
        return (self.sum, self.sum_kept) == (self.total or self.zero, self.kept)

    @property
    def has_numbers(self) -> bool:
        """Whether the measures, and what is kept of them, are numbers."""
        return None not in (*(self.total or ()), *self.kept)

    @property
    def is_wrong(self) -> bool:
        """Whether something other than the worker must have been there."""
        return not self.has_numbers or not (self.matches or self.may_have_expired)

    def verdict(self) -> str:
        """One sentence on receipts and total."""
        if not self.is_there:
            return "There is neither a row with this key nor a receipt of one: are the table and the key right?"
        if not self.has_numbers:
            return (
                "A measure is not a number: something other than the worker has written it. Remove the attribute, "
                "replay what is parked because of it, and let aggregator reconcile --repair set the total right."
            )
        if self.matches:
            return "The receipts add up to the stored total."
        if self.may_have_expired:
            return (
                "The receipts do not add up to the stored total. The ledger forgets receipts when they are too old to "
                "be needed, and some of this total are gone: the rest may well be what expired receipts proved. Only "
                "the source can decide: reconcile."
            )
        return (
            "The receipts do not add up to the stored total, and none can have expired yet: something other than the "
            "worker has changed the total or the ledger."
        )


def explanations_of(resources: Resources, table: str, keys: Sequence[str]) -> Iterator[Explanation]:
    """An explanation for each aggregation that writes the row.

    Raises:
        CommandError: no aggregation writes the table, or the keys do not fit it.
        CatalogueError: the definitions are not the deployed worker's.
    """
    for aggregation in _aggregations_of(resources.definitions, table):
        group = _group(aggregation, keys)
        stored = read_stored(resources.dynamodb, resources.ledger_table, aggregate_of(aggregation, group))
        _ = resources.catalogue  # checks the definitions
        names = [measure.name for measure in aggregation.measures]
        total = tuple(_amount(stored.item, name) for name in names)
        kept = tuple(_amount(stored.item, kept_attribute(aggregation.name, name)) for name in names)
        yield Explanation(
            aggregation,
            group,
            tuple(sorted(receipts_of(stored), key=Receipt.order)),
            total if stored.item else None,
            kept,
            may_have_expired=not stored.is_whole,
        )


def receipts_of(stored: Stored) -> Iterator[Receipt]:
    """The receipts of an aggregate, wherever they stand."""
    if stored.starting_value is not None:
        cut, amounts = stored.starting_value
        moment, _, time = cut.partition(" ")
        yield Receipt(ReceiptKind.BACKFILL, time, moment, amounts, _ROW)
    for name, (amounts, kept) in stored.receipts.items():
        position, _, number = name.partition(".")
        time = moment_text(second_of(position))
        page = stored.pages.get(name)
        where = _ROW if page is None else f"page {page}"
        yield Receipt(ReceiptKind.RECORD, time, number, amounts, where, position, kept)
    for (correction, name), amounts in stored.corrections.items():
        time, run, *what = name.split("|")
        kind = ReceiptKind.FOUND if what == [FOUND] else ReceiptKind.REPAIR
        yield Receipt(kind, time, run, amounts, f"page {correction_page(correction)}")


def _aggregations_of(definitions: Definitions, table: str) -> list[Aggregation]:
    found = [aggregation for aggregation in definitions.aggregations if aggregation.table == table]
    if not found:
        tables = sorted({aggregation.table for aggregation in definitions.aggregations})
        raise CommandError(f"no aggregation writes table {table!r}; the definitions have {', '.join(tables)}")
    return found


def _group(aggregation: Aggregation, keys: Sequence[str]) -> Group:
    if len(keys) != len(aggregation.keys):
        names = " ".join(key.name for key in aggregation.keys)
        raise CommandError(f"table {aggregation.table!r} needs {len(aggregation.keys)} key values: {names}")
    group = []
    for key, text in zip(aggregation.keys, keys, strict=True):
        try:
            group.append(canonical_text(parse_number(text)) if key.type is KeyType.NUMBER else text)
        except ValueError as error:
            raise CommandError(f"{key.name}: {text!r} is not a number") from error
    return tuple(group)


def _amount(row: Mapping[str, Any], measure: str) -> Decimal | None:
    if measure not in row:
        return Decimal(0)
    return Decimal(row[measure]["N"]) if "N" in row[measure] else None


def _text(amount: Decimal | None) -> str:
    return "not a number" if amount is None else canonical_text(amount)


def _as_json(explanation: Explanation) -> dict[str, Any]:
    measures = [measure.name for measure in explanation.aggregation.measures]

    def by_measure(amounts: _Stored) -> dict[str, str | None]:
        return {
            name: None if amount is None else canonical_text(amount)
            for name, amount in zip(measures, amounts, strict=True)
        }

    return {
        "aggregation": explanation.aggregation.name,
        "group": list(explanation.group),
        "receipts": [
            _receipt_as_json(receipt)
            | {"contribution": by_measure(receipt.amounts)}
            | ({"kept": by_measure(receipt.kept)} if receipt.kept else {})
            for receipt in explanation.receipts
        ],
        "sum": by_measure(explanation.sum),
        "total": None if explanation.total is None else by_measure(explanation.total),
        "kept": by_measure(explanation.kept),
        "matches": explanation.matches,
        "mayHaveExpired": explanation.may_have_expired,
    }


def _receipt_as_json(receipt: Receipt) -> dict[str, str]:
    facts = {"kind": receipt.kind.value, "time": receipt.time, "where": receipt.where}
    if receipt.kind is ReceiptKind.RECORD:
        return facts | {"sequenceNumber": receipt.name, "position": receipt.position}
    return facts | {"begins" if receipt.kind is ReceiptKind.BACKFILL else "run": receipt.name}


def _print(explanation: Explanation) -> None:
    measures = [measure.name for measure in explanation.aggregation.measures]
    rows: list[tuple[str, ...]] = [
        (receipt.time, receipt.described(), receipt.where, *map(canonical_text, receipt.amounts))
        for receipt in explanation.receipts
    ]
    rows.append(("", "sum of the receipts", "", *map(canonical_text, explanation.sum)))
    total = explanation.total
    stored = ["no row"] * len(measures) if total is None else map(_text, total)
    rows.append(("", "stored total", "", *stored))
    if any(explanation.kept) or any(explanation.sum_kept):
        rows.append(("", "kept of it, by the receipts", "", *map(canonical_text, explanation.sum_kept)))
        rows.append(("", "kept of it, as stored", "", *map(_text, explanation.kept)))
    title = f"{explanation.aggregation.name}: {', '.join(explanation.group)}"
    print_table(title, ("time", "receipt of", "stands in", *measures), rows)
    say(explanation.verdict())

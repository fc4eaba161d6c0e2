"""`aggregator explain`: what made a total, from the ledger's receipts: records, a backfill, repairs."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import reduce
from typing import Any

from aggregation_worker.aggregations.contributions import Aggregation, Definitions, Group, KeyType
from aggregation_worker.aggregations.numbers import EXACT, canonical_text, parse_number
from aggregation_worker.ledger.corrections import FOUND
from aggregation_worker.ledger.definition_guard import recorded_at
from aggregation_worker.ledger.pages import Pages, first_page, read_pages
from aggregation_worker.ledger.receipts import BACKFILL_PAGE, REPAIR_PAGE_PREFIX, aggregate_of
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.options import add_deployment_options
from aggregation_worker.operations.output import console, print_json, print_table
from aggregation_worker.operations.resources import Resources


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command line."""
    parser.description = (
        "Prints the receipts of one row in order (records, a backfill, repairs), their sum, and the stored total "
        "beside it."
    )
    parser.add_argument("table", metavar="TABLE", help="the target table")
    parser.add_argument("keys", metavar="KEY", nargs="+", help="the row's partition key, and its sort key if any")
    add_deployment_options(parser)


def run(options: argparse.Namespace) -> int:
    """Prints the receipts of one row's aggregates; returns 0 if they add up, else 1."""
    explanations = list(explanations_of(Resources.of(options), options.table, options.keys, datetime.now(UTC)))
    if options.json:
        print_json([_as_json(explanation) for explanation in explanations])
    else:
        for explanation in explanations:
            _print(explanation)
    return 0 if all(explanation.matches or explanation.may_have_expired for explanation in explanations) else 1


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
        time: the record's creation, as its page says; the moment that a backfill added up; when a repair was made.
        stream: the stream's label, of a record.
        name: the record's sequence number; what a backfill's moment is, `stream` (its beginning) or `since`; the
            run of a repair.
        amounts: the contribution, in the order of the measures' names.
    """

    kind: ReceiptKind
    time: str
    stream: str
    name: str
    amounts: tuple[Decimal, ...]

    def described(self) -> str:
        """What the table shows beside the time."""
        if self.kind is ReceiptKind.BACKFILL:
            moment = "the stream began" if self.name == "stream" else "the aggregation began (since)"
            return f"backfill: what the source held when {moment}"
        if self.kind is ReceiptKind.FOUND:
            return f"found in the total without a receipt (repair {self.name})"
        return self.name if self.kind is ReceiptKind.RECORD else f"repair {self.name}"

    def order(self) -> tuple[bool, str, ReceiptKind, int]:
        """The starting value first, then as time went; a shard's records as they were written."""
        is_record = self.kind is ReceiptKind.RECORD
        return (
            self.kind is not ReceiptKind.BACKFILL,
            self.time,
            self.kind,
            int(self.name) if is_record else 0,
        )


@dataclass(frozen=True, slots=True)
class Explanation:
    """An aggregate's receipts beside its total.

    Attributes:
        total: as stored; `None` if there is no row.
        may_have_expired: receipts older than the ledger's retention may have been deleted.
    """

    aggregation: Aggregation
    group: Group
    receipts: tuple[Receipt, ...]
    total: tuple[Decimal, ...] | None
    may_have_expired: bool

    @property
    def sum(self) -> tuple[Decimal, ...]:
        """The sum of the receipts."""
        zero = (Decimal(0),) * len(self.aggregation.measures)
        amounts = [receipt.amounts for receipt in self.receipts]
        return tuple(reduce(EXACT.add, column) for column in zip(zero, *amounts, strict=True))

    @property
    def matches(self) -> bool:
        """Whether receipts and total are equal; no row is as good as zero."""
        return self.sum == (self.total or (Decimal(0),) * len(self.aggregation.measures))

    def verdict(self) -> str:
        """One sentence on receipts and total."""
        if self.matches:
            return "The receipts add up to the stored total."
        if self.may_have_expired:
            return (
                "The receipts do not add up to the stored total. The ledger forgets receipts when they are too old to "
                "be needed, and this aggregation is older than that: the rest may well be what expired receipts "
                "proved. Only the source can decide: reconcile."
            )
        return (
            "The receipts do not add up to the stored total, and none can have expired yet: something other than the "
            "worker has changed the total or the ledger."
        )


def explanations_of(resources: Resources, table: str, keys: Sequence[str], now: datetime) -> Iterator[Explanation]:
    """An explanation for each aggregation that writes the row.

    Raises:
        CommandError: no aggregation writes the table, or the keys do not fit it.
    """
    for aggregation in _aggregations_of(resources.definitions, table):
        group = _group(aggregation, keys)
        aggregate = aggregate_of(aggregation, group)
        pages = read_pages(resources.dynamodb, resources.ledger_table, aggregate.name, first_page(0))
        row = resources.dynamodb.get_item(TableName=table, Key=aggregate.row.key(), ConsistentRead=True).get("Item")
        yield Explanation(
            aggregation,
            group,
            tuple(sorted(receipts_of(pages), key=Receipt.order)),
            None if row is None else tuple(_amount(row, measure.name) for measure in aggregation.measures),
            _may_have_expired(resources, aggregation, now),
        )


def receipts_of(pages: Pages) -> Iterator[Receipt]:
    """The receipts on an aggregate's pages."""
    for (page, name), amounts in (*pages.receipts.items(), *pages.corrections.items()):
        yield _receipt(page, name, amounts)


def _receipt(page: str, name: str, amounts: tuple[Decimal, ...]) -> Receipt:
    """A receipt from the names of its page and its attribute."""
    if page == BACKFILL_PAGE:
        moment, _, time = name.partition(" ")
        return Receipt(ReceiptKind.BACKFILL, time, "", moment, amounts)
    if page.startswith(REPAIR_PAGE_PREFIX):
        time, _, rest = name.partition("|")
        run, _, what = rest.partition("|")
        return Receipt(ReceiptKind.FOUND if what == FOUND else ReceiptKind.REPAIR, time, "", run, amounts)
    time, _, stream = page.partition("|")
    return Receipt(ReceiptKind.RECORD, time, stream, name.partition(".")[0], amounts)


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


def _amount(row: Mapping[str, Any], measure: str) -> Decimal:
    return Decimal(row[measure]["N"]) if measure in row else Decimal(0)


def _may_have_expired(resources: Resources, aggregation: Aggregation, now: datetime) -> bool:
    """Whether the aggregation is older than the ledger's retention."""
    recorded = recorded_at(resources.dynamodb, resources.ledger_table, aggregation)
    if recorded is None:
        return True
    return now - datetime.fromtimestamp(recorded, UTC) > timedelta(days=resources.ledger_retention_days)


def _as_json(explanation: Explanation) -> dict[str, Any]:
    measures = [measure.name for measure in explanation.aggregation.measures]

    def by_measure(amounts: Sequence[Decimal]) -> dict[str, str]:
        return {name: canonical_text(amount) for name, amount in zip(measures, amounts, strict=True)}

    return {
        "aggregation": explanation.aggregation.name,
        "group": list(explanation.group),
        "receipts": [
            _receipt_as_json(receipt) | {"contribution": by_measure(receipt.amounts)}
            for receipt in explanation.receipts
        ],
        "sum": by_measure(explanation.sum),
        "total": None if explanation.total is None else by_measure(explanation.total),
        "matches": explanation.matches,
        "mayHaveExpired": explanation.may_have_expired,
    }


def _receipt_as_json(receipt: Receipt) -> dict[str, str]:
    facts = {"kind": receipt.kind.value, "time": receipt.time}
    if receipt.kind is ReceiptKind.RECORD:
        return facts | {"sequenceNumber": receipt.name, "stream": receipt.stream}
    return facts | {"begins" if receipt.kind is ReceiptKind.BACKFILL else "run": receipt.name}


def _print(explanation: Explanation) -> None:
    measures = [measure.name for measure in explanation.aggregation.measures]
    rows: list[tuple[str, ...]] = [
        (receipt.time, receipt.described(), *map(canonical_text, receipt.amounts)) for receipt in explanation.receipts
    ]
    rows.append(("", "sum of the receipts", *map(canonical_text, explanation.sum)))
    total = explanation.total
    rows.append(("", "stored total", *(["no row"] * len(measures) if total is None else map(canonical_text, total))))
    title = f"{explanation.aggregation.name}: {', '.join(explanation.group)}"
    print_table(title, ("time", "receipt of", *measures), rows)
    console().print(explanation.verdict())

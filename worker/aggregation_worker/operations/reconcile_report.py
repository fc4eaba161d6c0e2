"""How `aggregator reconcile` shows what it found: a table and sentences, CSV, or JSON."""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from aggregation_worker.aggregations.numbers import Amounts, canonical_text
from aggregation_worker.operations.output import number_of, print_table, say
from aggregation_worker.operations.visible import visible
from aggregation_worker.reconciliation.report import Finding, Report, Verdict


@dataclass(frozen=True, slots=True)
class _Line:
    """One measure of one finding, in texts."""

    finding: Finding
    measure: str
    total: str
    expected: str
    difference: str


def _lines(finding: Finding) -> Iterator[_Line]:
    """The measures that differ; all of them where that is not known."""
    names = [measure.name for measure in finding.aggregation.measures]
    unknown = (None,) * len(names)
    difference = finding.difference
    rows = zip(names, finding.total or unknown, finding.expected or unknown, difference or unknown, strict=True)
    no_total = "?" if finding.expected is None else "not a number"
    for name, total, expected, differs in rows:
        if difference is None or differs or not any(difference):
            yield _Line(finding, name, _text(total, no_total), _text(expected, "?"), _text(differs, "?"))


def _text(amount: Any, missing: str) -> str:
    return missing if amount is None else canonical_text(amount)


def print_report(report: Report) -> None:
    """A table of what is not simply right, and sentences about the rest."""
    rows = [
        (
            "\n  ".join((line.finding.aggregation.name, *line.finding.group)),
            line.measure,
            line.total,
            line.expected,
            line.difference,
            line.finding.verdict + (f": {line.finding.note}" if line.finding.note else ""),
        )
        for finding in report.findings
        if finding.verdict is not Verdict.UNPROVABLE
        for line in _lines(finding)
    ]
    rows += [(name, "all", "?", "?", "?", "not compared") for name in report.left_out]
    if rows:
        columns = ("aggregation and keys", "measure", "total", "expected", "difference", "verdict")
        print_table("Totals that are not simply right", columns, rows)
    for sentence in _sentences(report):
        say(sentence)


def _sentences(report: Report) -> Iterator[str]:
    totals, items = number_of(report.aggregates, "total"), number_of(report.items, "item")
    compared = f"{totals} compared with {items} in {report.seconds:.0f} s"
    found = [f"{report.count(verdict):,} {verdict}" for verdict in Verdict if report.count(verdict)]
    if report.compared:
        right = "all are right"
        if report.unproved or report.left_out:
            right = "all that can be proved are right"
        yield f"{compared}: {', '.join(found) or right}."
    else:
        yield "Nothing was compared."
    if report.unproved:
        yield (
            'Not proved by the source, since they ignore what is removed (remove = "ignore"): '
            f"{', '.join(report.unproved)}; {report.count(Verdict.UNPROVABLE):,} of their totals differ from the items "
            "that are left. --csv lists them."
        )
    if report.count(Verdict.DRIFT):
        yield "Drift includes what waits in the dead-letter queue: replay it first. --repair corrects the rest."
    yield from report.hints


def write_csv(report: Report) -> None:
    """All findings on standard output, a line for each measure; the hints on standard error."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        (
            *("aggregation", "partition_key", "sort_key", "measure"),
            *("total", "expected", "difference", "verdict", "note"),
        )
    )
    for finding in report.findings:
        for line in _lines(finding):
            partition_key, *sort_key = map(_cell, finding.group)
            writer.writerow(
                (
                    *(finding.aggregation.name, partition_key, sort_key[0] if sort_key else "", _cell(line.measure)),
                    *(line.total, line.expected, line.difference, finding.verdict.value, _cell(finding.note)),
                )
            )
    for hint in report.hints:
        sys.stderr.write(f"aggregator: {visible(hint)}\n")


def _cell(text: str) -> str:
    """A text as terminals and spreadsheets show it: what these would take for a formula has an apostrophe before it."""
    return ("'" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else "") + visible(text)


def report_as_json(report: Report) -> dict[str, Any]:
    """Every fact, for programs."""
    return {
        "startedAt": report.started_at.isoformat(timespec="seconds"),
        "seconds": round(report.seconds, 3),
        "aggregates": report.aggregates,
        "items": report.items,
        "records": report.records,
        "aggregations": list(report.compared),
        "notProved": list(report.unproved),
        "notCompared": list(report.left_out),
        "drifted": report.drifted,
        "counts": {verdict.value: report.count(verdict) for verdict in Verdict},
        "findings": [_finding_as_json(finding) for finding in report.findings],
        "hints": list(report.hints),
    }


def _finding_as_json(finding: Finding) -> dict[str, Any]:
    keys = [key.name for key in finding.aggregation.keys]

    def by_measure(amounts: Amounts | None) -> dict[str, str] | None:
        if amounts is None:
            return None
        names = (measure.name for measure in finding.aggregation.measures)
        return {name: canonical_text(amount) for name, amount in zip(names, amounts, strict=True)}

    return {
        "aggregation": finding.aggregation.name,
        "keys": dict(zip(keys, finding.group, strict=True)),
        "verdict": finding.verdict.value,
        "total": by_measure(finding.total),
        "expected": by_measure(finding.expected),
        "difference": by_measure(finding.difference),
        "note": finding.note,
    }

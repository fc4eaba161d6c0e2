"""What commands print: tables for people, JSON for programs, on the same facts."""

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aggregation_worker.operations.visible import PLAIN, visible

_WIDTH_OF_A_PIPE = 120


def console() -> Console:
    """Standard output, without colours and 120 columns wide where it is not a terminal; long values are folded."""
    terminal = Console(highlight=False, markup=False, emoji=False)
    if not terminal.is_terminal:
        terminal.width = _WIDTH_OF_A_PIPE
    return terminal


def shown(value: object, style: str = "") -> Text:
    """A value as plain text, whatever is in it, with no character that standard output cannot write."""
    encoding = sys.stdout.encoding or "utf-8"
    return Text(visible(value).encode(encoding, PLAIN).decode(encoding), style)


def say(sentence: str, indented: int = 0, style: str = "") -> None:
    """A sentence on standard output, so many columns in."""
    text = shown(sentence, style)
    console().print(Padding(text, (0, 0, 0, indented), expand=False) if indented else text)


def print_json(document: Any) -> None:
    """One JSON document on standard output, in ASCII: so it survives every terminal and encoding."""
    sys.stdout.write(json.dumps(document, ensure_ascii=True, indent=2, default=str) + "\n")


def print_json_line(document: Any) -> None:
    """One JSON document as a line of standard output, which is there at once."""
    sys.stdout.write(json.dumps(document, ensure_ascii=True, default=str) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; all of it is plain text, whatever is in it."""
    console().print(table_of(title, columns, rows))


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: int = 0) -> Table:
    """A table, of which so many columns from the right hold numbers; a cell that is a `Text` keeps its style."""
    table = Table(title=shown(title), title_justify="left")
    for place, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if place >= len(columns) - right else "left"
        table.add_column(shown(column), overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else shown(cell) for cell in row))
    return table


class _Done(ProgressColumn):
    """How much is done of how much; where that is not known, how fast."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        if task.total is not None:
            return Text(f"{task.completed:,.0f}/{task.total:,.0f}")
        return Text(f"{task.completed:,.0f}, {task.speed or 0:,.0f}/s")


def progress() -> Progress:
    """Bars on standard error, while it is a terminal; what is printed meanwhile stays on standard output."""
    terminal = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), _Done(), TimeRemainingColumn())
    return Progress(*columns, console=terminal, transient=True, redirect_stdout=False, disable=not terminal.is_terminal)


def number_of(count: int, noun: str) -> str:
    """`1 letter`, `2 letters`, `2 batches`."""
    return f"{count:,} {noun}{'' if count == 1 else 'es' if noun.endswith('ch') else 's'}"


def duration(time: timedelta) -> str:
    """`3 days`, `5 h`, `12 min` or `40 s`: the largest unit that fits, rounded down."""
    seconds = int(time.total_seconds())
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{sign}{seconds // size} {unit}"
    return f"{sign}{seconds} s"

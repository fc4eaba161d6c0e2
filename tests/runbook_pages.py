"""Reads the runbooks: pages, their sections and their commands."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

RUNBOOKS = Path(__file__).parents[1] / "runbooks"
INDEX = RUNBOOKS / "README.md"

ALARM_SECTIONS = ["What it means", "How bad is it", "Look", "Do", "Over when"]
TASK_SECTIONS = ["When", "Do", "Over when"]


@dataclass(frozen=True, slots=True)
class Page:
    """One page; `sections` by heading."""

    name: str
    title: str
    sections: dict[str, str]

    def blocks(self, *headings: str) -> list[str]:
        """The shell blocks of some sections, or of all."""
        return [
            block
            for heading, text in self.sections.items()
            if heading in (headings or self.sections)
            for block in blocks_of(text)
        ]


def pages() -> dict[str, Page]:
    """Every page but the index, by name."""
    return {file.stem: read_page(file) for file in sorted(RUNBOOKS.glob("*.md")) if file != INDEX}


def read_page(file: Path) -> Page:
    """Reads one page; code blocks hold no headings."""
    head, *sections = re.split(r"^## ", file.read_text(), flags=re.MULTILINE)
    split = [section.partition("\n") for section in sections]
    return Page(file.stem, head.partition("\n")[0].removeprefix("# "), {title: text for title, _, text in split})


def blocks_of(text: str) -> list[str]:
    """The `sh` blocks of a text."""
    return re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def main_block(name: str) -> str:
    """A page's first shell block whose output the page shows: its main command."""
    found = re.search(
        r"^```sh\n((?:(?!```).*\n)*)```\n\n```text\n", (RUNBOOKS / f"{name}.md").read_text(), re.MULTILINE
    )
    assert found is not None, f"{name} shows no output"
    return found[1]


def preamble() -> str:
    """What the index has people paste first."""
    return blocks_of(INDEX.read_text())[0]


def index_rows(heading: str) -> list[str]:
    """The pages that a table of the index names, in its order."""
    return re.findall(r"^\| \[([\w-]+)\]\(\1\.md\) \|", read_page(INDEX).sections[heading], flags=re.MULTILINE)


# What is another each time: in the pages it has these values.
CHANGING: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"(?<=:\d\d)\.\d{3}\b", ".000"),
    (r"(?<=:\d\d)\.\d{6}\b", ""),  # S3 itself has whole seconds
    (r"\b2\d{7}T\d{6}Z\b", "20261124T120000Z"),
    (r"\b\d+ s ago\b", "3 s ago"),
    (r"\b\d{20,}\b", lambda number: "1" * len(number[0])),
    (r"\bin \d+ s\b", "in 3 s"),
    (r"\b\d+\.\d s after\b", "0.8 s after"),
)
TIME = r"\b2\d{3}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
LATEST = datetime(2026, 11, 24, 12, tzinfo=UTC)


def with_times_of_the_pages(printed: str) -> str:
    """The latest time becomes that of the pages, and the others are as many minutes before it as they were."""
    latest = max((datetime.fromisoformat(time) for time in re.findall(TIME, printed)), default=None)

    def moved(time: re.Match[str]) -> str:
        assert latest is not None
        minutes = round((latest - datetime.fromisoformat(time[0])) / timedelta(minutes=1))
        return (LATEST - timedelta(minutes=minutes)).strftime(f"%Y-%m-%d{time[0][10]}%H:%M:%S")

    return re.sub(TIME, moved, printed)


def check_output(page: str, command: str, printed: str) -> None:
    """Fails unless the page's `text` block after this command, the last of its block, holds what the command prints.

    With `UPDATE_RUNBOOKS` in the environment the page is written anew.
    """
    printed = with_times_of_the_pages(printed)
    for pattern, value in CHANGING:
        printed = re.sub(pattern, value, printed)
    printed = "".join(f"{line.expandtabs().rstrip()}\n" for line in printed.strip("\n").splitlines())
    file = RUNBOOKS / f"{page}.md"
    text = file.read_text()
    block = rf"(```sh\n(?:(?!```).*\n)*{re.escape(command)}.*\n```\n\n```text\n)((?:(?!```).*\n)*)(```\n)"
    (found,) = re.finditer(block, text)
    if os.environ.get("UPDATE_RUNBOOKS"):
        file.write_text(text[: found.start(2)] + printed + text[found.end(2) :])
    else:
        assert found[2] == printed

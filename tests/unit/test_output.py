"""What commands print survives a terminal of ASCII, a pipe that is closed, and NO_COLOR."""

import ast
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.operations.cli import build_parser, main
from aggregation_worker.operations.output import console, print_table, progress, say, shown
from tests.aggregator import aggregator

OPERATIONS = Path(__file__).parents[2] / "worker" / "aggregation_worker" / "operations"
COMMANDS = sorted(build_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]  # argparse does not tell


@contextmanager
def encoded(encoding: str, monkeypatch: pytest.MonkeyPatch, name: str = "stdout") -> Iterator[io.BytesIO]:
    """A standard stream with an encoding that refuses what it lacks."""
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding, errors="strict", write_through=True)
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        yield written
        stream.flush()
    stream.detach()


def test_table_in_ascii__stays_in_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    with encoded("ascii", monkeypatch) as written:
        print_table("Größe ✓", ["naïve", "…"], [["✗", "🍎 and more"], ["long " * 40, 1]])
        say("→ ✓")

    *table, last = written.getvalue().decode("ascii").splitlines()
    assert table[0].rstrip() == r"Gr\xf6\xdfe ok"
    assert len({len(line) for line in table}) == 1
    assert r"| wrong" in table[4]
    assert r"\U0001f34e and more" in table[4]
    assert last == r"\u2192 ok"


def test_progress_in_ascii__has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")

    with encoded("ascii", monkeypatch, "stderr") as written, progress() as bars:
        bars.update(bars.add_task("reading", total=2), completed=1)
        bars.update(bars.add_task("waiting", total=None), completed=1)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.getvalue().decode("ascii"))
    assert re.search(r"reading -[- ]+1/2", text)
    assert "waiting" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command__can_be_written_in_ascii(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with encoded("ascii", monkeypatch) as written, pytest.raises(SystemExit) as ended:
        main([command, "--help"])

    assert ended.value.code == 0
    assert b"usage: aggregator" in written.getvalue()


def test_text_of_a_command_that_ascii_lacks__is_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where a command writes it itself."""
    file = tmp_path / "aggregations.toml"
    file.write_text(SAMPLE_FILE.read_text().replace('from = "item_number"', 'from = "artikel_größe"'))

    with encoded("ascii", monkeypatch) as written:
        status = main(["check", str(file)])

    assert status == 0
    assert rb"item_number (artikel_gr\xf6\xdfe)" in written.getvalue()


def test_only_output__makes_consoles() -> None:
    """So that every command prints alike."""
    calls = {
        path.name
        for path in OPERATIONS.parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Console"
    }

    assert calls == {"output.py"}


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color__takes_the_colours_away(
    no_color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")

    console().print(shown("wrong", "red"))

    assert bool(re.search(r"\x1b\[[\d;]*3\d", capsys.readouterr().out)) == coloured


@pytest.mark.parametrize("command", [["check", str(SAMPLE_FILE)], ["--version"]])
def test_reader_that_has_gone__ends_the_command_quietly(command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(aggregator(*command), stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    finally:
        os.close(write)

    assert (done.returncode, done.stderr) == (1, b"")

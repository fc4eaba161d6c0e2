"""What stands in items is shown as it is, and harms no terminal, spreadsheet or program."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.operations.output import print_json, print_table, progress, say
from aggregation_worker.operations.reconcile_report import _cell
from aggregation_worker.operations.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("item[1]", "item[1]"),
        ("[/red]:bomb:", "[/red]:bomb:"),
        ("naïve 🍎\nline", "naïve 🍎\nline"),
        ("\x1b]0;pwned\x07\x1b[2J", "\\x1b]0;pwned\\x07\\x1b[2J"),
        ("\x9b2J\x7f", "\\x9b2J\\x7f"),
        ("a\u202eb\ud83d", "a\\u202eb\\ud83d"),
        ("tab\tand\rreturn", "tab\\tand\\rreturn"),
    ],
)
def test_text__is_shown_as_it_is_but_for_what_a_terminal_obeys(
    text: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert visible(text) == shown

    say(text)
    print_table(text, [text], [[text]])

    output = capsys.readouterr().out
    assert output.startswith(shown + "\n")
    assert output.count(shown.splitlines()[0]) == 4


@given(st.text(st.characters() | st.sampled_from("\x00\x1b\x9b\ud800[/]"), max_size=50))
def test_any_text__can_be_written_and_has_no_control_character(text: str) -> None:
    shown = visible(text)

    shown.encode()
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in shown if letter != "\n")


def test_json__is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    document: Any = {"key": "\x9b2J\ud83d ü"}

    print_json(document)

    output = capsys.readouterr().out
    assert output.isascii()
    assert "\x1b" not in output
    assert json.loads(output) == document


@pytest.mark.parametrize("text", ['=HYPERLINK("http://evil")', "+cmd", "-1", "@sum", "\tx", "=\x1b[2J"])
def test_cell_that_a_spreadsheet_would_run__has_an_apostrophe(text: str) -> None:
    assert _cell(text) == f"'{visible(text)}"
    assert _cell("item-1") == "item-1"
    assert _cell("\x1b[2J") == "\\x1b[2J"


@pytest.mark.parametrize(("total", "shown"), [(None, r"1,500, [\d,]+/s"), (2_000, "1,500/2,000")])
def test_progress__shows_a_rate_where_the_total_is_not_known(
    total: int | None, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as bars:
        bars.live.transient = False
        bars.update(bars.add_task("[reading]", total=total), completed=1_500)

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert re.search(rf"\[reading\].* {shown}", text)


def test_progress__leaves_standard_output_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress() as bars:
        bars.add_task("reading", total=None)
        print_json(["a letter"])

    assert json.loads(capsys.readouterr().out) == ["a letter"]

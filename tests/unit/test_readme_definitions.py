"""worker/README.md, "The definitions file": every example of its tables is run, and no key is left out."""

import re
import shlex
from pathlib import Path

import pytest

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.definitions import KEYS_OF_A_KEY, KEYS_OF_AN_AGGREGATION, parse_definitions
from aggregation_worker.aggregations.expressions import Where
from aggregation_worker.aggregations.numbers import canonical_text
from aggregation_worker.aggregations.truncation import Epoch, Unit
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.operations.check import read_item
from aggregation_worker.operations.cli import main
from aggregation_worker.streams.records import Image
from tests.definition_texts import aggregation, aggregation_text

ROOT = Path(__file__).parents[2]
README = (ROOT / "worker" / "README.md").read_text()


def rows_below(header: str) -> list[list[str]]:
    """The cells of each row of a table, known by its first line; an empty first cell is that of the row above."""
    _, _, below = README.partition(header + "\n")
    rows: list[list[str]] = []
    for line in below.splitlines()[1:]:
        if not line.startswith("|"):
            break
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        rows.append([cells[0] or rows[-1][0], *cells[1:]])
    return rows


def code(cell: str) -> str:
    """What stands between a cell's backticks."""
    found = re.fullmatch(r"(`+) ?(.*?) ?\1", cell)
    assert found is not None, cell
    return found[2]


def item(cell: str) -> Image:
    """The image of an item in plain JSON."""
    image, notation = read_item(code(cell))
    assert notation == "plain JSON"
    return image


KEYS = rows_below("| key | meaning |")
VOCABULARY = rows_below("| key | meaning | example | item | group or worth |")
JMESPATH = rows_below("| what | `where` | counts | does not |")


@pytest.mark.parametrize(("key", "meaning", "example", "of", "gives"), VOCABULARY, ids=lambda cell: cell[:40])
def test_example__gives_what_its_row_says(key: str, meaning: str, example: str, of: str, gives: str) -> None:
    written = code(example)
    if of_a_key := code(key) in KEYS_OF_A_KEY:
        text = aggregation_text('count = "n"', partition_key=f'{{ name = "k", {written} }}', sort_key=None, sum=None)
    else:
        sums = f"{{ {written} }}" if code(key) == "sum" else None
        more = written if code(key) == "count" else 'count = "n"' if code(key) != "sum" else ""
        more += f"\n{written}" if code(key) == "where" else ""
        text = aggregation_text(more, partition_key='{ name = "k", value = "all" }', sort_key=None, sum=sums)
    defined = aggregation(text)

    if gives == "unusable":
        with pytest.raises(MalformedValueError):
            defined.value(item(of))
        return
    found = defined.value(item(of))

    if gives == "nothing":
        assert found is None
    else:
        assert found is not None
        assert (found[0][0] if of_a_key else canonical_text(found[1][0])) == code(gives)


def test_files_of_the_pages__can_be_read() -> None:
    (short,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
    long, *_ = re.findall(r"^```toml\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    source, _, _ = long.partition("[[")

    found = [parse_definitions(text).aggregations[0] for text in (source + short, long)]

    assert [[measure.name for measure in one.measures] for one in found] == [
        ["quantity", "revenue"],
        ["orders", "quantity", "revenue"],
    ]


def test_tables__name_every_key_unit_and_epoch() -> None:
    first_cells = " ".join(row[0] for row in (*KEYS, *VOCABULARY))
    examples = " ".join(row[2] for row in VOCABULARY)

    assert {*KEYS_OF_AN_AGGREGATION, *KEYS_OF_A_KEY} <= set(re.findall(r"`(?:source\.)?(\w+)`", first_cells))
    assert set(re.findall(r'truncate = "(\w+)"', examples)) == {*Unit}
    assert set(re.findall(r'epoch = "(\w+)"', examples)) == {*Epoch}


@pytest.mark.parametrize(("what", "where", "counts", "does_not"), JMESPATH, ids=lambda cell: cell[:40])
def test_where__counts_one_item_and_not_the_other(what: str, where: str, counts: str, does_not: str) -> None:
    expression = Where(code(where))

    assert expression(item(counts))
    assert not expression(item(does_not))


def test_check__says_what_the_pages_item_is_worth(capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = re.findall(r"^uv run aggregator (check .*)$", README, re.MULTILINE)
    users = "worker/aggregations.toml"

    status = main([str(SAMPLE_FILE) if word == users else word for word in shlex.split(command)])

    assert status == 0
    assert "item_number = item123, order_date = 2024-07-15: quantity 10\n" in capsys.readouterr().out

"""`aggregator check`: what a file means in plain words, what in it is unlikely, what an item is worth."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import RemovePolicy
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.operations import check
from aggregation_worker.operations.cli import main
from aggregation_worker.operations.errors import CommandError
from tests.definition_texts import SOURCE, aggregation_text, definitions

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def sentence(text: str) -> str:
    defined = definitions(text)
    return check.sentence(defined.aggregations[0], defined.source)


def warnings(text: str) -> list[str]:
    defined = definitions(text)
    return [*check.warnings(defined.aggregations[0], defined.source, NOW)]


def worth(text: str, item: dict[str, Any]) -> str:
    image, _ = check.read_item(json.dumps(item))
    return check.worth(definitions(text).aggregations[0], image)


# --- Sentences ------------------------------------------------------------------------------------------------------


def test_sentence__says_all_that_the_definition_says() -> None:
    text = aggregation_text(
        'count = "orders"\nwhere = "status == \'paid\'"\nremove = "retract"\nsince = "2026-11-24T12:00:00Z"',
        name="sold",
        table="sold_by_item",
        partition_key='{ name = "item", from = "item_number", prefix = "item#" }',
        sort_key='{ name = "week", from = "at", truncate = "week", epoch = "seconds", timezone = "Europe/Berlin" }',
        sum='{ quantity = "quantity", gross = "price.net * 1.190", parts = { jmespath = "length(parts)" } }',
    )

    assert sentence(text) == (
        "sold: table sold_by_item has gross (the sum of price.net * 1.19), orders (the number of items), parts (the "
        "sum of each item's length(parts)), quantity (the sum of quantity) by item ('item#' and item_number) and week "
        "(the week of at in seconds since 1970, in time zone Europe/Berlin), over the items of Order_by_item where "
        "status == 'paid', from 2026-11-24T12:00:00Z on; a removed item is taken back."
    )


def test_sentence__names_the_indexes() -> None:
    text = aggregation_text('indexes = [{ name = "by_day", partition_key = "order_date", sort_key = "quantity" }]')

    assert (
        " by item_number and order_date (the day of order_date), with index by_day by order_date and quantity, over"
        in sentence(text)
    )


def test_sentence__of_a_number_and_of_a_constant() -> None:
    shop = aggregation_text('remove = "ignore"', partition_key='{ name = "shop", from = "shop", type = "N" }')
    total = aggregation_text('remove = "ignore"', partition_key='{ name = "scope", value = "all" }', sort_key=None)

    assert " by shop (the number shop) and order_date (the day of order_date), over" in sentence(shop)
    assert " by scope ('all' for every item), over the items of Order_by_item; " in sentence(total)


@pytest.mark.parametrize("policy", RemovePolicy)
def test_sentence__says_what_becomes_of_a_removed_item(policy: RemovePolicy) -> None:
    ends = {sentence(aggregation_text(f'remove = "{other}"')).partition("; ")[2] for other in RemovePolicy}

    assert "; a removed item " in sentence(aggregation_text(f'remove = "{policy}"'))
    assert len(ends) == len(RemovePolicy)


# --- Warnings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        (
            aggregation_text(
                partition_key='{ name = "k", from = "orderid" }', sort_key='{ name = "s", from = "order_date" }'
            ),
            "every item of Order_by_item has a row of its own: its whole key is among the group's",
        ),
        (
            aggregation_text(partition_key='{ name = "k", from = "customer.createdAt" }'),
            "customer.createdAt is taken as it is; if it has a time of day, that gives a row for each (truncate)",
        ),
        (
            aggregation_text(sum='{ total = "lines.0.price" }'),
            "lines.0.price leads to a map's key that is a number; an entry of a list is written list[0]",
        ),
        (
            aggregation_text("where = \"quantity > '5'\""),
            "'5' in quantity > '5' is a text; a number, BOOL or NULL is written `5`",
        ),
        (
            aggregation_text("where = \"lines[?paid == 'true']\""),
            "'true' in lines[?paid == 'true'] is a text; a number, BOOL or NULL is written `true`",
        ),
        (aggregation_text('where = "`true`"'), "`true` does not depend on the item"),
        (aggregation_text('sum.five = { jmespath = "`5`" }', sum=None), "`5` does not depend on the item"),
        (
            aggregation_text('since = "2026-11-24T12:00:00Z"'),
            "nothing is counted before 2026-11-24T12:00:00Z, which is yet to come",
        ),
    ],
)
def test_what_is_unlikely__is_warned_of(text: str, warning: str) -> None:
    assert warning in warnings(text)


@pytest.mark.parametrize(
    "text",
    [
        aggregation_text('remove = "retract"'),
        aggregation_text('remove = "retract"\nsince = "2025-11-24T12:00:00Z"'),
        aggregation_text('remove = "retract"', partition_key='{ name = "k", from = "orderid" }'),
        aggregation_text('remove = "retract"', partition_key='{ name = "k", from = "candidate" }'),
        aggregation_text(
            "remove = \"retract\"\nwhere = \"status == 'paid' && to_string(a) == '5' && type(b) == 'null' && c > `5`\""
        ),
        aggregation_text('remove = "retract"', sum='{ total = "lines[0].price" }'),
    ],
)
def test_what_is_usual__is_not_warned_of(text: str) -> None:
    assert warnings(text) == []


@pytest.mark.parametrize(("policy", "told"), [("keep", True), ("retract", False), ("ignore", False)])
def test_price_of_keeping__is_told(policy: str, told: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "definitions.toml"
    file.write_text(f'{SAMPLE_FILE.read_text()}remove = "{policy}"\n')

    assert main(["check", str(file)]) == 0

    price = "(item_count_by_date): an item that is removed costs a second write unit"
    assert (price in capsys.readouterr().out) is told


# --- Items ----------------------------------------------------------------------------------------------------------

ORDER = {"item_number": "item123", "order_date": "2024-07-15", "quantity": 10}


@pytest.mark.parametrize(
    ("text", "item", "expected"),
    [
        (aggregation_text(), ORDER, "item_number = item123, order_date = 2024-07-15: quantity 10"),
        (
            aggregation_text('count = "orders"', sum='{ gross = "quantity * 1.19" }'),
            ORDER,
            "item_number = item123, order_date = 2024-07-15: gross 11.9, orders 1",
        ),
        (aggregation_text("where = \"status == 'paid'\""), ORDER, "nothing: where leaves it out"),
        (
            aggregation_text(),
            {"order_date": "2024-07-15", "quantity": None},
            "nothing: item_number, quantity is absent",
        ),
        (
            aggregation_text(sum='{ items = { jmespath = "sum(lines[].quantity)" } }'),
            ORDER,
            "nothing: sum(lines[].quantity) is absent or NULL",
        ),
        (
            aggregation_text(),
            ORDER | {"quantity": "ten"},
            "nothing until it is corrected: quantity: summed over a value of type S where N belongs",
        ),
        (
            aggregation_text('where = "abs(item_number) > `1`"'),
            ORDER,
            "nothing until it is corrected: where: 'abs(item_number) > `1`' cannot be evaluated on the image",
        ),
    ],
)
def test_worth_of_an_item__is_told_with_the_reason(text: str, item: dict[str, Any], expected: str) -> None:
    assert worth(text, item).startswith(expected)


@pytest.mark.parametrize(
    ("text", "notation"),
    [
        ('{"a": {"N": "1"}, "b": {"S": "x"}}', "DynamoDB's typed JSON"),
        ('{"Item": {"a": {"N": "1"}, "b": {"S": "x"}}, "ConsumedCapacity": {}}', "DynamoDB's typed JSON, under Item"),
        ('{"a": 1, "b": "x"}', "plain JSON"),
    ],
)
def test_item__is_read_in_either_notation(text: str, notation: str) -> None:
    assert check.read_item(text) == ({"a": {"N": "1"}, "b": {"S": "x"}}, notation)


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("{}", {}),
        ('{"a": {"S": "x"}, "b": 1}', {"a": {"M": {"S": {"S": "x"}}}, "b": {"N": "1"}}),
        (
            '{"a": [true, null, {}, 0.10, -1E+3]}',
            {"a": {"L": [{"BOOL": True}, {"NULL": True}, {"M": {}}, *({"N": "0.10"}, {"N": "-1E+3"})]}},
        ),
        ('{"Item": {"a": 1}}', {"Item": {"M": {"a": {"N": "1"}}}}),
        (f'{{"a": 0.{"1" * 38}}}', {"a": {"N": f"0.{'1' * 38}"}}),
    ],
)
def test_plain_json__is_read_exactly(text: str, image: dict[str, Any]) -> None:
    assert check.read_item(text) == (image, "plain JSON")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "not JSON: "),
        ("{a: 1}", "not JSON: "),
        ("5", "a JSON object is needed"),
        ("[{}]", "a JSON object is needed"),
    ],
)
def test_item_that_is_none__is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(CommandError, match=f"^--item: {sentence}"):
        check.read_item(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(["S", "N", "Item"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["item_number", "order_date", "quantity", "Item"]), JSON))
def test_any_item__is_worth_something_or_told_why_not(item: dict[str, Any]) -> None:
    text = aggregation_text('sum.parts = { jmespath = "sum(quantity[].parts)" }', sum=None)

    for one in (aggregation_text(), text):
        assert worth(one, item)


# --- The command ----------------------------------------------------------------------------------------------------


def test_check__prints_every_aggregation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "two.toml"
    second = aggregation_text("where = \"'x'\"", name="second", table="second")
    file.write_text(SOURCE + aggregation_text('remove = "retract"') + second)

    status = main(["check", str(file)])

    first, other, warning = capsys.readouterr().out.splitlines()[:3]
    assert status == 0
    assert first.startswith("item_count_by_date: table item_count_by_date has quantity (the sum of quantity) by")
    assert other.startswith("second: table second has")
    assert warning == "  warning: 'x' does not depend on the item"


def test_check_with_an_item__says_how_it_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(ORDER)))

    status = main(["check", str(SAMPLE_FILE), "--item", "-"])

    lines = capsys.readouterr().out.splitlines()
    assert status == 0
    assert lines[0] == "The item is read as plain JSON."
    assert lines[2] == "  the item: item_number = item123, order_date = 2024-07-15: quantity 10"


def test_check__reads_the_file_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AGGREGATIONS_FILE", str(SAMPLE_FILE))

    assert main(["check"]) == 0

    assert capsys.readouterr().out.startswith("item_count_by_date: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "absent.toml"], "aggregator: the definitions file absent.toml cannot be read: "),
        (["check", str(SAMPLE_FILE), "--item", "{"], "aggregator: --item: not JSON: "),
    ],
)
def test_check_of_a_mistake__ends_with_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert error.startswith(message)

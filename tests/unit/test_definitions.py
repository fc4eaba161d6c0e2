"""The definitions file: what it says, one clear sentence for every mistake, and the canonical description."""

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

import aggregation_worker
from aggregation_worker.aggregations.attribute_paths import parse_path
from aggregation_worker.aggregations.contributions import Index, KeyType, RemovePolicy
from aggregation_worker.aggregations.definitions import (
    DEFINITIONS_FILE,
    DefinitionError,
    definitions_file,
    load_definitions,
    parse_definitions,
    source_of_stream,
)
from aggregation_worker.aggregations.truncation import Epoch, Truncation, Unit
from aggregation_worker.deployment.settings import target_tables
from aggregation_worker.local import SAMPLE_FILE
from tests.definition_texts import ITEM_NUMBER, ORDER_DATE, SOURCE, aggregation, aggregation_text, definitions
from tests.records import STREAM_ARN

NAMED = "aggregation 'item_count_by_date': "


def mistake(text: str) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(DefinitionError) as refused:
        parse_definitions(text)
    return str(refused.value)


# --- What a file says -----------------------------------------------------------------------------------------------


def test_sample__is_the_reference_scenario() -> None:
    sample = load_definitions(SAMPLE_FILE)

    (item_count,) = sample.aggregations
    assert sample.source.table == "Order_by_item"
    assert sample.source.keys == (("orderid", KeyType.STRING), ("order_date", KeyType.STRING))
    assert sample.source.stream_arn is None
    assert (item_count.name, item_count.table) == ("item_count_by_date", "item_count_by_date")
    assert [(key.name, key.path and key.path.text, key.type) for key in item_count.keys] == [
        ("item_number", "item_number", KeyType.STRING),
        ("order_date", "order_date", KeyType.STRING),
    ]
    assert [key.truncation for key in item_count.keys] == [None, Truncation(Unit.DAY)]
    assert [(measure.name, [path.text for path in measure.factors]) for measure in item_count.measures] == [
        ("quantity", ["quantity"])
    ]
    assert (item_count.remove, item_count.where) == (RemovePolicy.KEEP, None)


def test_every_key__is_read() -> None:
    full = aggregation(
        aggregation_text(
            'count = "orders"\nremove = "retract_unless_expired"\nwhere = "status == \'paid\'"',
            name="daily.Revenue-2",
            partition_key='{ name = "pk", from = "shop.id", type = "N" }',
            sort_key='{ name = "sk", from = "at", truncate = "hour", timezone = "Europe/Berlin", prefix = "h#" }',
            sum="""{ revenue = "quantity * lines[0].price", "unit.tax" = '"unit.tax"' }""",
        )
    )

    partition_key, sort_key = full.keys
    assert full.name == "daily.Revenue-2"
    assert (partition_key.name, partition_key.path) == ("pk", parse_path("shop.id"))
    assert (partition_key.type, partition_key.max_bytes) == (KeyType.NUMBER, 2048)
    assert (sort_key.prefix, sort_key.max_bytes) == ("h#", 1024)
    assert sort_key.truncation == Truncation(Unit.HOUR, ZoneInfo("Europe/Berlin"))
    assert [(measure.name, [path.steps for path in measure.factors]) for measure in full.measures] == [
        ("orders", []),
        ("revenue", [("quantity",), ("lines", 0, "price")]),
        ("unit.tax", [("unit.tax",)]),
    ]
    assert full.remove is RemovePolicy.RETRACT_UNLESS_EXPIRED
    assert full.where is not None
    assert full.where.expression == "status == 'paid'"


@pytest.mark.parametrize(
    "source",
    [
        f'[source]\nstream_arn = "{STREAM_ARN}"\npartition_key = "orderid"\n',
        f'[source]\nstream_arn = "{STREAM_ARN}"\ntable = "Order_by_item"\npartition_key = "orderid"\n',
    ],
)
def test_existing_source__is_known_by_the_arn_of_its_stream(source: str) -> None:
    found = definitions(source=source).source

    assert (found.table, found.stream_arn) == ("Order_by_item", STREAM_ARN)
    assert found.keys == (("orderid", KeyType.STRING),)


def test_source_keys__can_be_numbers() -> None:
    source = SOURCE.replace('"orderid"', '{ name = "orderid", type = "N" }')

    assert definitions(source=source).source.keys[0] == ("orderid", KeyType.NUMBER)


def test_stream_view_type__can_be_written_out() -> None:
    assert definitions(source=SOURCE + 'stream_view_type = "NEW_AND_OLD_IMAGES"\n').source.table == "Order_by_item"


@pytest.mark.parametrize("expression", ["a*b", " a  *  b ", '"a"*"b"'])
def test_product__may_be_spelled_in_several_ways(expression: str) -> None:
    (measure,) = aggregation(aggregation_text(sum=f"{{ revenue = '{expression}' }}")).measures

    assert [path.steps for path in measure.factors] == [("a",), ("b",)]


def test_asterisk_in_a_quoted_name__is_not_a_product() -> None:
    (measure,) = aggregation(aggregation_text(sum="""{ revenue = '"a*b" * c' }""")).measures

    assert [path.steps for path in measure.factors] == [("a*b",), ("c",)]


def test_eight_factors__are_allowed() -> None:
    factors = " * ".join("abcdefgh")

    (measure,) = aggregation(aggregation_text(sum=f'{{ product = "{factors}" }}')).measures

    assert len(measure.factors) == 8


def test_numbers_of_a_product__are_one_exact_number() -> None:
    (measure,) = aggregation(aggregation_text(sum='{ gross = "1.19 * price * 100 * quantity * 0.01" }')).measures

    assert [path.text for path in measure.factors] == ["price", "quantity"]
    assert measure.constant == Decimal("1.19")


def test_expression_of_a_sum__is_read() -> None:
    (measure,) = aggregation(aggregation_text(sum='{ items = { jmespath = "sum(lines[].quantity)" } }')).measures

    assert measure.measured is not None
    assert (measure.measured.expression, measure.factors) == ("sum(lines[].quantity)", ())


def test_dates_that_are_numbers__are_read() -> None:
    key = '{ name = "week", from = "at", truncate = "week", epoch = "milliseconds", timezone = "UTC" }'

    assert aggregation(aggregation_text(sort_key=key)).keys[1].truncation == Truncation(
        Unit.WEEK, ZoneInfo("UTC"), Epoch.MILLISECONDS
    )


def test_value__is_the_whole_key() -> None:
    key = aggregation(aggregation_text(partition_key='{ name = "scope", value = "all" }')).keys[0]

    assert (key.name, key.path, key.type, key.prefix) == ("scope", None, KeyType.STRING, "all")


@pytest.mark.parametrize("name", ["k" * 255, "ü" * 127 + "k"])
def test_names_of_255_bytes__are_allowed(name: str) -> None:
    keyed = aggregation(aggregation_text(sort_key=f'{{ name = "{name}", from = "k" }}'))
    summed = aggregation(aggregation_text(sum=f'{{ "{name}" = "q" }}'))

    assert keyed.keys[1].name == name
    assert summed.measures[0].name == name


def test_since__is_read_in_epoch_seconds() -> None:
    assert aggregation().since is None
    assert aggregation(aggregation_text('since = "1970-01-02T00:00:01Z"')).since == 86_401
    assert aggregation(aggregation_text('since = "1970-01-02T00:00:01+00:30"')).since == 86_401 - 1_800
    assert aggregation(aggregation_text('since = "1970-01-01t24:00:00z"')).since == 86_400


# --- Mistakes in the file as a whole --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "the file: source: is missing; a table, [source], is needed"),
        (aggregation_text(), "the file: source: is missing; a table, [source], is needed"),
        ("source = 5", "the file: source: a table, [source], is needed, not an integer"),
        ("[[source]]", "the file: source: a table, [source], is needed, not an array"),
        ("[sources]", "the file: sources: unknown key; did you mean 'source'?"),
        (SOURCE, "the file: aggregations: is missing; an array of tables, [[aggregations]] is needed"),
        (
            SOURCE + "[[aggregation]]",
            "the file: aggregation: unknown key; did you mean 'aggregations'?",
        ),
        (SOURCE + "[aggregations]", "the file: aggregations: an array of tables, [[aggregations]] is needed, not a ta"),
        ("aggregations = []" + SOURCE, "aggregations: at least one [[aggregations]] is needed"),
        ("aggregations = [5]" + SOURCE, "aggregation 1: a table with keys is needed, not an integer"),
        ('title = "totals"' + SOURCE + aggregation_text(), "the file: title: unknown key; known are aggregations, so"),
        ("not toml", "not valid TOML: "),
        (SOURCE + SOURCE, "not valid TOML: "),
        ('[source]\ntable = "a"\ntable = "b"', "not valid TOML: "),
        ("\ufeff\ufeff" + SOURCE, "not valid TOML: "),
        ("[source]\ntable = 'a\x00b'", "not valid TOML: "),
        ("a = " + "9" * 5_000, "not valid TOML: "),
        ("a = " + "[" * 50_000, "not valid TOML: "),
        ("aggregations" + ".a" * 5_000 + " = 1" + SOURCE, "the file: aggregations: an array of tables"),
        ("source = 0x" + "f" * 5_000, "the file: source: a table, [source], is needed, not an integer"),
    ],
)
def test_mistake_in_the_file__is_one_sentence(text: str, sentence: str) -> None:
    message = mistake(text)

    assert message.startswith(sentence)
    assert len(message) < 300


def test_file_that_is_not_there__is_named(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match=r"the definitions file .*absent\.toml cannot be read"):
        load_definitions(tmp_path / "absent.toml")


def test_folder_in_place_of_the_file__is_named(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read"):
        load_definitions(tmp_path)


def test_byte_order_mark__is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "of-windows.toml"
    file.write_bytes(b"\xef\xbb\xbf" + (SOURCE + aggregation_text()).replace("\n", "\r\n").encode())

    assert load_definitions(file).aggregations[0].definition == aggregation().definition


def test_file_that_is_not_utf_8__is_named(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes('[source]\ntable = "Aufträge"'.encode("latin-1"))

    with pytest.raises(DefinitionError, match=r"latin\.toml cannot be read: .*utf-8"):
        load_definitions(file)


def test_mistake_in_a_file__names_the_file_too(tmp_path: Path) -> None:
    file = tmp_path / "totals.toml"
    file.write_text(SOURCE + aggregation_text("nonsense = 1"))

    with pytest.raises(DefinitionError, match=r"^totals\.toml: aggregation 'item_count_by_date': nonsense: unknown"):
        load_definitions(file)


# --- The stream that is really read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["", f'stream_arn = "{STREAM_ARN}"\n'])
def test_stream_that_is_read__takes_the_place_of_the_files(tmp_path: Path, line: str) -> None:
    file = tmp_path / "totals.toml"
    file.write_text(SOURCE + line + aggregation_text())
    read = STREAM_ARN.replace("us-east-1", "eu-west-1")

    assert load_definitions(file, source_of_stream(read)).source == replace(
        load_definitions(file).source, stream_arn=read
    )
    assert source_of_stream("") is source_of_stream(None) is None


@pytest.mark.parametrize(
    ("stream_arn", "sentence"),
    [
        ("Order_by_item", "SOURCE_STREAM_ARN: 'Order_by_item' is not the ARN of a DynamoDB stream"),
        (
            STREAM_ARN.replace("Order_by_item", "Customers"),
            "totals.toml: source: table: is 'Order_by_item', but the worker is given table 'Customers'",
        ),
    ],
)
def test_stream_that_is_not_the_sources__is_refused(tmp_path: Path, stream_arn: str, sentence: str) -> None:
    file = tmp_path / "totals.toml"
    file.write_text(SOURCE + aggregation_text())

    with pytest.raises(DefinitionError) as refused:
        load_definitions(file, source_of_stream(stream_arn))

    assert str(refused.value) == sentence


# --- Mistakes in [source] -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            ['partition_key = "a"'],
            "source: table: is missing; a table name, or the stream_arn of an existing table, is",
        ),
        (['tabel = "abc"', 'partition_key = "a"'], "source: tabel: unknown key; did you mean 'table'?"),
        (['table = "abc"'], "source: partition_key: is missing; an attribute name, or { name"),
        (['table = ""', 'partition_key = "a"'], "source: table: is empty"),
        (["table = 5", 'partition_key = "a"'], "source: table: a string is needed, not an integer"),
        (["table = true", 'partition_key = "a"'], "source: table: a string is needed, not a boolean"),
        (["table = 1.5", 'partition_key = "a"'], "source: table: a string is needed, not a float"),
        (["table = 2024-07-15", 'partition_key = "a"'], "source: table: a string is needed, not a date"),
        (['table = "ab"', 'partition_key = "a"'], "source: table: 'ab' is not a DynamoDB table name"),
        (['table = "a b c"', 'partition_key = "a"'], "source: table: 'a b c' is not a DynamoDB table name"),
        (['table = "arn:aws:dynamodb"', 'partition_key = "a"'], "source: table: 'arn:aws:dynamodb' is not a DynamoDB"),
        (['table = "abc"', "partition_key = 5"], "source: partition_key: an attribute name, or { name"),
        (['table = "abc"', "partition_key = true"], "source: partition_key: an attribute name, or { name"),
        (['table = "abc"', 'partition_key = ""'], "source: partition_key: name: is empty"),
        (['table = "abc"', "partition_key = {}"], "source: partition_key: name: is missing; a string is needed"),
        (
            ['table = "abc"', 'partition_key = { nme = "a" }'],
            "source: partition_key: nme: unknown key; did you mean 'name'?",
        ),
        (
            ['table = "abc"', 'partition_key = { name = "a", type = "B" }'],
            "source: partition_key: type: 'B' is none of S, N",
        ),
        (
            ['table = "abc"', 'partition_key = { name = "a", from = "b" }'],
            "source: partition_key: from: unknown key; known are name, type",
        ),
        (['table = "abc"', f'partition_key = "{"k" * 256}"'], "source: partition_key: name: is longer than the 255"),
        (['table = "abc"', 'partition_key = "a"', "sort_key = 5"], "source: sort_key: an attribute name, or { name"),
        (['table = "abc"', 'partition_key = "a"', 'sort_key = "a"'], "source: sort_key: has the same name as partiti"),
        (
            ['table = "abc"', 'partition_key = "a"', 'sortkey = "b"'],
            "source: sortkey: unknown key; did you mean 'sort_key'?",
        ),
        (
            ['table = "abc"', 'partition_key = "a"', 'stream_view_type = "NEW_IMAGE"'],
            "source: stream_view_type: must be NEW_AND_OLD_IMAGES, not 'NEW_IMAGE'",
        ),
        (
            ['table = "abc"', 'partition_key = "a"', 'stream_view_type = "new_and_old_images"'],
            "source: stream_view_type: must be NEW_AND_OLD_IMAGES",
        ),
        (['stream_arn = ""', 'partition_key = "a"'], "source: stream_arn: is empty"),
        (["stream_arn = 5", 'partition_key = "a"'], "source: stream_arn: a string is needed, not an integer"),
        (
            ['stream_arn = "arn:aws:dynamodb:us-east-1:123456789012:table/abc"', 'partition_key = "a"'],
            "source: stream_arn: 'arn:aws:dynamodb:us-east-1:123456789012:table/abc' is not the ARN of a DynamoDB stre",
        ),
        (
            [f'stream_arn = "{STREAM_ARN}"', 'table = "Order-by-item"', 'partition_key = "a"'],
            "source: table: is 'Order-by-item', but stream_arn belongs to table 'Order_by_item'",
        ),
    ],
)
def test_mistake_in_the_source__names_the_key(lines: list[str], sentence: str) -> None:
    assert mistake("\n".join(["[source]", *lines, aggregation_text()])).startswith(sentence)


# --- Mistakes in one aggregation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        # Its name, before which it is known by its place.
        ("[[aggregations]]\n", "aggregation 1: name: is missing; a string is needed"),
        ('[[aggregations]]\nnmae = "a"', "aggregation 1: nmae: unknown key; did you mean 'name'?"),
        ("[[aggregations]]\nname = 5", "aggregation 1: name: a string is needed, not an integer"),
        ("[[aggregations]]\nname = true", "aggregation 1: name: a string is needed, not a boolean"),
        (aggregation_text() + "[[aggregations]]\n", "aggregation 2: name: is missing"),
        ('[[aggregations]]\nname = ""', "aggregation '': name: is empty"),
        *(
            (aggregation_text(name=name), f"aggregation {name!r}: name: may hold only letters")
            for name in ("a#b", "a b", "a/b", "ü", "n" * 129)
        ),
        # The target table.
        ('[[aggregations]]\nname = "a"', "aggregation 'a': table: is missing; a string is needed"),
        (aggregation_text(table=""), NAMED + "table: is empty"),
        (aggregation_text(table="a!"), NAMED + "table: 'a!' is not a DynamoDB table name"),
        (aggregation_text(table="t" * 256), NAMED + "table: 'ttt"),
        (aggregation_text(table="Order_by_item"), NAMED + "table: is the source table itself"),
        # Where it begins.
        *(
            (
                aggregation_text(f"since = {moment}"),
                NAMED + "since: a time with an offset in whole seconds, such as '2026-11-24T12:00:00Z', is needed, not",
            )
            for moment in (
                '"yesterday"',
                '"2026-11-24"',
                '"2026-11-24T12:00Z"',
                '"2026-11-24T12:00:00"',
                '"2026-11-24T12:00:00.5Z"',
                '"2026-11-24T12:00:00 Z"',
                '"20261124T120000Z"',
                '"2026-02-30T12:00:00Z"',
                '"0001-01-01T00:00:00+10:00"',
                '""',
                "5",
                "true",
                "2026-11-24",
                "2026-11-24T12:00:00",
                "2026-11-24T12:00:00.5Z",
            )
        ),
        # Its keys.
        ('[[aggregations]]\nname = "a"\ntable = "abc"', "aggregation 'a': partition_key: is missing; a table, { name"),
        (aggregation_text(partition_key='"item_number"'), NAMED + "partition_key: a table, { name = …, from = … }, is"),
        (
            aggregation_text(partition_key="true"),
            NAMED + "partition_key: a table, { name = …, from = … }, is needed, n",
        ),
        (aggregation_text(partition_key="{}"), NAMED + "partition_key: name: is missing; a string is needed"),
        (
            aggregation_text(partition_key='{ name = "a" }'),
            NAMED + "partition_key: from: is missing; an attribute path, or in its place a value that all items share,",
        ),
        (
            aggregation_text(partition_key='{ name = "a", form = "b" }'),
            NAMED + "partition_key: form: unknown key; did you mean 'from'?",
        ),
        *(
            (
                aggregation_text(partition_key=f'{{ name = "a", value = "all", {other} }}'),
                NAMED
                + f"partition_key: value: is the whole key, the same for all items, so there can be no {key} beside",
            )
            for key, other in (
                ("from", 'from = "b"'),
                ("type", 'type = "S"'),
                ("truncate", 'truncate = "day"'),
                ("timezone", 'timezone = "UTC"'),
                ("epoch", 'epoch = "seconds"'),
                ("prefix", 'prefix = "p"'),
            )
        ),
        (aggregation_text(partition_key='{ name = "a", value = "" }'), NAMED + "partition_key: value: is empty"),
        (
            aggregation_text(partition_key='{ name = "a", value = 5 }'),
            NAMED + "partition_key: value: a string is needed, not an integer",
        ),
        (
            aggregation_text(partition_key=f'{{ name = "a", value = "{"v" * 2049}" }}'),
            NAMED + "partition_key: value: is longer than the 2048 bytes",
        ),
        (
            aggregation_text(sort_key=f'{{ name = "a", value = "{"ü" * 513}" }}'),
            NAMED + "sort_key: value: is longer than the 1024 bytes",
        ),
        *(
            (
                aggregation_text(partition_key=f'{{ name = "a", from = "{path}" }}'),
                NAMED + f"partition_key: from: '{path}' is not an attribute path",
            )
            for path in ("price+shipping", "substr(date)", "$.date", "5", "-date")
        ),
        (aggregation_text(partition_key='{ name = "", from = "b" }'), NAMED + "partition_key: name: is empty"),
        (aggregation_text(partition_key='{ name = "a", from = "" }'), NAMED + "partition_key: from: is empty"),
        (aggregation_text(partition_key='{ name = "a", from = 5 }'), NAMED + "partition_key: from: a string is neede"),
        (
            aggregation_text(partition_key='{ name = "a", from = "b..c" }'),
            NAMED + "partition_key: from: 'b..c' is not an attribute path",
        ),
        (
            aggregation_text(partition_key='{ name = "a", from = "b[٣]" }'),
            NAMED + "partition_key: from: 'b[٣]' is not an attribute path",
        ),
        (
            aggregation_text(partition_key=f'{{ name = "{"k" * 256}", from = "b" }}'),
            NAMED + "partition_key: name: is longer than the 255 bytes",
        ),
        (
            aggregation_text(partition_key=f'{{ name = "{"ü" * 128}", from = "b" }}'),
            NAMED + "partition_key: name: is longer than the 255 bytes",
        ),
        (
            aggregation_text(partition_key='{ name = "a", from = "b", type = "B" }'),
            NAMED + "partition_key: type: 'B' is none of S, N",
        ),
        (
            aggregation_text(partition_key='{ name = "a", from = "b", type = "N", truncate = "day" }'),
            NAMED + "partition_key: type: a number key can have neither truncate nor prefix",
        ),
        (
            aggregation_text(partition_key='{ name = "a", from = "b", type = "N", prefix = "p" }'),
            NAMED + "partition_key: type: a number key can have neither truncate nor prefix",
        ),
        (
            aggregation_text(partition_key='{ name = "a", from = "b", prefix = 5 }'),
            NAMED + "partition_key: prefix: a string is needed, not an integer",
        ),
        (
            aggregation_text(partition_key=f'{{ name = "a", from = "b", prefix = "{"p" * 2048}" }}'),
            NAMED + "partition_key: prefix: leaves nothing of the 2048 bytes",
        ),
        (
            aggregation_text(partition_key='{ name = "a", from = "b", truncat = "day" }'),
            NAMED + "partition_key: truncat: unknown key; did you mean 'truncate'?",
        ),
        (aggregation_text(sort_key='"order_date"'), NAMED + "sort_key: a table, { name = …, from = … }, is needed"),
        (aggregation_text(sort_key='{ name = "a" }'), NAMED + "sort_key: from: is missing"),
        (aggregation_text(sort_key=ITEM_NUMBER), NAMED + "sort_key: has the same name as partition_key, 'item_number'"),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", truncate = "second" }'),
            NAMED + "sort_key: truncate: 'second' is none of year, quarter, month, week, day, hour, minute",
        ),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", truncate = "" }'),
            NAMED + "sort_key: truncate: is empty",
        ),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", truncate = true }'),
            NAMED + "sort_key: truncate: a string is needed, not a boolean",
        ),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", timezone = "UTC" }'),
            NAMED + "sort_key: timezone: needs truncate as well",
        ),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", epoch = "seconds" }'),
            NAMED + "sort_key: epoch: needs truncate as well",
        ),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", type = "N", epoch = "seconds" }'),
            NAMED + "sort_key: epoch: needs truncate as well",
        ),
        (
            aggregation_text(sort_key='{ name = "a", from = "b", truncate = "day", epoch = "ms" }'),
            NAMED + "sort_key: epoch: 'ms' is none of seconds, milliseconds",
        ),
        *(
            (
                aggregation_text(
                    sort_key=f'{{ name = "a", from = "b", truncate = "day", timezone = {json.dumps(zone)} }}'
                ),
                NAMED + f"sort_key: timezone: {zone!r} is not an IANA time zone",
            )
            for zone in ("Berlin", "CEST+2", "../../etc/passwd", "/etc/localtime", "Europe", "zone.tab", "ü", "\0", " ")
        ),
        # What it sums.
        (aggregation_text(sum=None), NAMED + "sum: is missing; at least one sum, or a count, is needed"),
        (
            aggregation_text('sums = { quantity = "quantity" }', sum=None),
            NAMED + "sums: unknown key; did you mean 'sum'?",
        ),
        *(
            (
                aggregation_text(f'{key} = {{ smallest = "quantity" }}', sum=None),
                NAMED
                + f"{key}: unknown key; known are count, indexes, name, partition_key, remove, since, sort_key, sum, t",
            )
            for key in ("min", "max", "average")
        ),
        (aggregation_text(sum="{}"), NAMED + "sum: is missing; at least one sum, or a count, is needed"),
        (aggregation_text(sum='"quantity"'), NAMED + "sum: { total = 'attribute' } is needed, not 'quantity'"),
        (aggregation_text(sum='["quantity"]'), NAMED + "sum: { total = 'attribute' } is needed, not an array"),
        *(
            (
                aggregation_text(sum=f"{{ quantity = {value} }}"),
                NAMED
                + "sum.quantity: an attribute path, a product such as 'quantity * price', or { jmespath = … }, is",
            )
            for value in ("5", "true", "1.5", "[]")
        ),
        *(
            (
                aggregation_text(sum=f'{{ quantity = "{text}" }}'),
                NAMED + f"sum.quantity: '{text}' is not a product of attribute paths and numbers",
            )
            for text in ("", "a * ", "a + b", "a b", "price/100", "-amount", "sum(x)", "lines[*].qty", "a-b")
        ),
        (aggregation_text(sum='{ quantity = "5" }'), NAMED + "sum.quantity: '5' has no attribute path"),
        (aggregation_text(sum='{ quantity = "a * 0" }'), NAMED + "sum.quantity: 'a * 0' is always 0"),
        (aggregation_text(sum="{ quantity = {} }"), NAMED + "sum.quantity: jmespath: is missing; a string is needed"),
        (aggregation_text(sum='{ quantity = { jmespath = "" } }'), NAMED + "sum.quantity: jmespath: is empty"),
        (
            aggregation_text(sum='{ quantity = { jmepath = "a" } }'),
            NAMED + "sum.quantity: jmepath: unknown key; did you mean 'jmespath'?",
        ),
        (
            aggregation_text(sum='{ quantity = { jmespath = "lines[].qty" } }'),
            NAMED + "sum.quantity: 'lines[].qty' gives a list, not a number, which sum(…) or length(…) would",
        ),
        (
            aggregation_text(sum='{ quantity = { jmespath = "sum(lines[" } }'),
            NAMED + "sum.quantity: 'sum(lines[' is not a JMESPath expression: ",
        ),
        (
            aggregation_text(sum=f'{{ quantity = "{"a*" * 8}a" }}'),
            NAMED + "sum.quantity: has 9 factors; at most 8 are allowed",
        ),
        (aggregation_text(sum='{ "" = "quantity" }'), NAMED + "sum: '' cannot be an attribute's name"),
        (aggregation_text(sum=f'{{ {"m" * 256} = "quantity" }}'), NAMED + "sum: 'mmm"),
        (aggregation_text(sum='{ item_number = "quantity" }'), NAMED + "item_number: is the name of a key attribute"),
        (aggregation_text(sum='{ order_date = "quantity" }'), NAMED + "order_date: is the name of a key attribute"),
        (aggregation_text('count = "item_number"'), NAMED + "item_number: is the name of a key attribute"),
        (
            aggregation_text(sum='{ "kept#total" = "quantity" }'),
            NAMED + "kept#total: begins with 'kept#', as the worker's own attributes of a row do; choose another name",
        ),
        (aggregation_text('count = "receipts#"'), NAMED + "receipts#: begins with 'receipts#'"),
        (
            aggregation_text(partition_key='{ name = "late#x", from = "item_number" }'),
            NAMED + "partition_key: name: begins with 'late#'",
        ),
        (
            aggregation_text(sort_key='{ name = "archived#x", from = "item_number" }'),
            NAMED + "sort_key: name: begins with 'archived#'",
        ),
        (aggregation_text('count = "quantity"'), NAMED + "count: 'quantity' is already the name of a sum"),
        (aggregation_text('count = ""'), NAMED + "count: is empty"),
        (aggregation_text("count = true"), NAMED + "count: a string is needed, not a boolean"),
        (aggregation_text("count = 1"), NAMED + "count: a string is needed, not an integer"),
        # Which records count.
        (aggregation_text('remove = "delete"'), NAMED + "remove: 'delete' is none of keep, retract, retract_unless_"),
        (aggregation_text("remove = false"), NAMED + "remove: a string is needed, not a boolean"),
        (aggregation_text('where = ""'), NAMED + "where: is empty"),
        (aggregation_text("where = true"), NAMED + "where: a string is needed, not a boolean"),
        (aggregation_text("where = \"status = 'paid'\""), NAMED + "where: \"status = 'paid'\" is not a JMESPath expre"),
        (
            aggregation_text("where = 'status == \"paid\"'"),
            NAMED + 'where: \'status == "paid"\': "paid" is an attribute\'s name; a text is',
        ),
        (
            aggregation_text('where = "quantity > 5"'),
            NAMED + "where: 'quantity > 5' is not a JMESPath expression: a nu",
        ),
        (aggregation_text('where = "nonsense(status)"'), NAMED + "where: 'nonsense(status)' is not a JMESPath expres"),
        (aggregation_text('where = "length(a, b)"'), NAMED + "where: 'length(a, b)' is not a JMESPath expression: le"),
        (aggregation_text("where = '" + "(" * 5_000 + "'"), NAMED + "where: '((("),
        # Keys that are none.
        (aggregation_text('wehre = "a"'), NAMED + "wehre: unknown key; did you mean 'where'?"),
        (aggregation_text('counts = "a"'), NAMED + "counts: unknown key; did you mean 'count'?"),
        (
            aggregation_text("xyz = 1"),
            NAMED + "xyz: unknown key; known are count, indexes, name, partition_key, remove, s",
        ),
    ],
)
def test_mistake_in_an_aggregation__names_it_and_the_key(text: str, sentence: str) -> None:
    assert mistake(SOURCE + text).startswith(sentence)


# --- Indexes --------------------------------------------------------------------------------------------------------


def test_indexes__have_keys_with_their_types_and_own_measures() -> None:
    text = aggregation_text(
        'count = "orders"\nindexes = [\n'
        '  { name = "by_day", partition_key = "order_date", sort_key = "quantity" },\n'
        '  { name = "by-shop.2", partition_key = "shop" },\n]',
        partition_key='{ name = "shop", from = "shop", type = "N" }',
    )

    assert aggregation(text).indexes == (
        Index("by_day", (("order_date", KeyType.STRING), ("quantity", KeyType.NUMBER)), ("orders",)),
        Index("by-shop.2", (("shop", KeyType.NUMBER),), ("orders", "quantity")),
    )


@pytest.mark.parametrize(
    ("indexes", "sentence"),
    [
        ("{ }", "indexes: an array of tables, [{ name = …, partition_key = …, sort_key = … }], is needed, not a table"),
        ('["by_day"]', "index 1: a table with keys is needed, not 'by_day'"),
        ('[{ partition_key = "order_date" }]', "index 1: name: is missing; a string is needed"),
        ('[{ name = "by day", partition_key = "order_date" }]', "index 1: name: 'by day' is not an index's name"),
        ('[{ name = "by_day" }]', "index 1: partition_key: is missing; a string is needed"),
        (
            '[{ name = "by_day", partition_key = "day" }]',
            "index 1: partition_key: 'day' is none of item_number, order_date, quantity",
        ),
        (
            '[{ name = "by_day", partition_key = "order_date", sort_key = "receipts#item_count_by_date" }]',
            "index 1: sort_key: 'receipts#item_count_by_date' is none of item_number, order_date, quantity",
        ),
        (
            '[{ name = "by_day", partition_key = { name = "order_date" } }]',
            "index 1: partition_key: a string is needed, not a table",
        ),
        (
            '[{ name = "by_day", partition_key = "order_date", sort_key = "order_date" }]',
            "index 1: sort_key: is 'order_date', like the partition_key",
        ),
        (
            '[{ name = "by_day", partition_key = "order_date", projection = "ALL" }]',
            "index 1: projection: unknown key; known are name, partition_key, sort_key",
        ),
        (
            '[{ name = "one", partition_key = "quantity" }, { name = "one", partition_key = "order_date" }]',
            "index 2: name: 'one' is given to two indexes",
        ),
    ],
)
def test_mistake_in_an_index__names_it_and_the_key(indexes: str, sentence: str) -> None:
    assert mistake(SOURCE + aggregation_text(f"indexes = {indexes}")).startswith(NAMED + sentence)


# Two aggregations that share a table.
INDEXED = 'indexes = [{ name = "by_day", partition_key = "order_date", sort_key = "quantity" }]'
SECOND = aggregation_text(
    'count = "orders"\nindexes = [{ name = "NAME", partition_key = "order_date", sort_key = "orders" }]',
    name="second",
    sum=None,
)


def test_shared_table__has_the_indexes_of_all_its_aggregations() -> None:
    table = target_tables(definitions(aggregation_text(INDEXED), SECOND.replace("NAME", "by_orders")))

    assert [(index.name, index.measures) for index in table["item_count_by_date"].indexes] == [
        ("by_day", ()),
        ("by_orders", ()),
    ]


def test_index_of_two_aggregations_of_a_table__is_refused() -> None:
    assert mistake(SOURCE + aggregation_text(INDEXED) + SECOND.replace("NAME", "by_day")) == (
        "aggregation 'second': indexes: 'item_count_by_date' has an index by_day of table 'item_count_by_date', too; "
        "a table has the indexes of all its aggregations"
    )


def test_measure_of_another_aggregation__is_no_key_of_an_index() -> None:
    second = SECOND.replace("NAME", "by_orders").replace('"orders" }', '"quantity" }')

    assert "sort_key: 'quantity' is none of item_number, order_date, orders" in mistake(
        SOURCE + aggregation_text() + second
    )


# --- Mistakes between aggregations ----------------------------------------------------------------------------------

OTHER = "aggregation 'other': "


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (aggregation_text(table="another"), NAMED + "name: is given to two aggregations"),
        (
            aggregation_text(name="other", sort_key=None),
            OTHER + "partition_key: shares table 'item_count_by_date' with 'item_count_by_date' but has other keys",
        ),
        (
            aggregation_text(name="other", partition_key='{ name = "pk", from = "item_number" }'),
            OTHER + "partition_key: shares table",
        ),
        (
            aggregation_text(name="other", partition_key='{ name = "item_number", from = "shop", type = "N" }'),
            OTHER + "partition_key: shares table",
        ),
        (aggregation_text(name="other"), OTHER + "sum: quantity is written by 'item_count_by_date' to the same rows"),
        (
            aggregation_text('count = "quantity"', name="other", sum=None),
            OTHER + "sum: quantity is written by 'item_count_by_date' to the same rows",
        ),
        (
            aggregation_text(name="other", partition_key='{ name = "item_number", from = "shop", prefix = "shop#" }'),
            OTHER + "sum: quantity is written by 'item_count_by_date' to the same rows",
        ),
    ],
)
def test_aggregations_that_do_not_fit_together__are_named(second: str, sentence: str) -> None:
    assert mistake(SOURCE + aggregation_text() + second).startswith(sentence)


@pytest.mark.parametrize(
    ("first_prefix", "second_prefix", "apart"),
    [("item#", "shop#", True), ("a", "b", True), ("item#", "item#2#", False), ("", "shop#", False), ("a", "a", False)],
)
@pytest.mark.parametrize("key", ["partition_key", "sort_key"])
def test_same_measure_in_one_table__needs_distinct_prefixes(
    key: str, first_prefix: str, second_prefix: str, apart: bool
) -> None:
    keys = [f'{{ name = "k", from = "k", prefix = "{prefix}" }}' for prefix in (first_prefix, second_prefix)]
    first, second = (
        aggregation_text(name=name, partition_key=text)
        if key == "partition_key"
        else aggregation_text(name=name, sort_key=text)
        for name, text in zip(("first", "second"), keys, strict=True)
    )

    if apart:
        assert len(definitions(first, second).aggregations) == 2
    else:
        assert "give it another name, or both partition keys a prefix" in mistake(SOURCE + first + second)


@pytest.mark.parametrize(
    ("first", "second", "apart"),
    [
        ('value = "all"', 'value = "none"', True),
        ('value = "all"', 'value = "all"', False),
        ('value = "all"', 'from = "item"', False),
        ('value = "all"', 'from = "item", prefix = "item#"', True),
        ('value = "item#all"', 'from = "item", prefix = "item#"', False),
    ],
)
def test_same_measure_in_one_table__needs_distinct_values(first: str, second: str, apart: bool) -> None:
    parts = [
        aggregation_text(name=f"a{number}", partition_key=f'{{ name = "k", {key} }}')
        for number, key in enumerate((first, second))
    ]

    if apart:
        assert len(definitions(*parts).aggregations) == 2
    else:
        assert "give it another name, or both partition keys a prefix, or value," in mistake(SOURCE + "".join(parts))


def test_third_aggregation__is_compared_with_every_other() -> None:
    first, between = aggregation_text(), aggregation_text(name="between", table="between")
    parts = (first, between, aggregation_text(name="third"))

    assert "'third': sum: quantity is written by 'item_count_by_date'" in mistake(SOURCE + "".join(parts))


def test_different_measures__may_share_a_table_and_its_rows() -> None:
    second = aggregation_text('count = "orders"', name="order_count", sum=None)

    assert len(definitions(aggregation_text(), second).aggregations) == 2


# --- The canonical description --------------------------------------------------------------------------------------

PLAIN = aggregation().definition


def test_description__never_changes() -> None:
    """With another text for the same file no worker that has it would start any more."""
    key = '{ name = "pk", from = "shop.id", prefix = "ü#" }'

    found = aggregation(aggregation_text('count = "orders"', partition_key=key)).definition

    assert found == (
        '{"keys": [{"from": "shop.id", "name": "pk", "prefix": "ü#"}, '
        '{"from": "order_date", "name": "order_date", "truncate": "day"}], '
        '"measures": {"orders": [], "quantity": ["quantity"]}, "remove": "keep", "source": "Order_by_item", '
        '"table": "item_count_by_date"}'
    )


def test_description__says_all_that_is_set() -> None:
    found = aggregation(
        aggregation_text(
            "where = \"status == 'paid'\"\nsince = 2024-07-15T02:00:00+02:00",
            partition_key='{ name = "n", from = "number", type = "N" }',
            sort_key='{ name = "d", from = "order_date", truncate = "day", timezone = "Europe/Berlin" }',
            sum='{ worth = "quantity * price" }',
        )
    ).definition

    assert found == (
        '{"keys": [{"from": "number", "name": "n", "type": "N"}, '
        '{"from": "order_date", "name": "d", "timezone": "Europe/Berlin", "truncate": "day"}], '
        '"measures": {"worth": ["price", "quantity"]}, "remove": "keep", "since": "2024-07-15T00:00:00Z", '
        '"source": "Order_by_item", "table": "item_count_by_date", "where": "status == \'paid\'"}'
    )


@pytest.mark.parametrize(
    "same",
    [
        'remove = "keep"',
        'indexes = [{ name = "by_day", partition_key = "order_date", sort_key = "quantity" }]',
        "# a comment",
    ],
)
def test_defaults_written_out__mean_the_same(same: str) -> None:
    assert aggregation(aggregation_text(same)).definition == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        aggregation_text(partition_key='{ from = "item_number", name = "item_number" }'),
        aggregation_text(partition_key='{ name = "item_number", from = "item_number", type = "S", prefix = "" }'),
        aggregation_text(partition_key="""{ name = "item_number", from = ' "item_number" ' }"""),
        aggregation_text(
            name="item_count_by_date", sort_key='{ truncate = "day", from = "order_date", name = "order_date" }'
        ),
        aggregation_text(sum="{ quantity = ' quantity ' }"),
        aggregation_text(sum="""{ "quantity" = '"quantity"' }"""),
        aggregation_text(sum='{ quantity = "2 * quantity * 0.50" }'),
    ],
)
def test_other_spelling__means_the_same(text: str) -> None:
    assert aggregation(text).definition == PLAIN


def test_order_of_factors_and_measures__means_the_same() -> None:
    first = aggregation(aggregation_text('count = "n"', sum='{ r = "a * b", s = "c" }'))
    second = aggregation(aggregation_text('count = "n"', sum='{ s = "c", r = "b*a" }'))
    third = aggregation(aggregation_text('count = "n"', sum='{ s = "c * 3", r = "b*2.0*a" }'))
    fourth = aggregation(aggregation_text('count = "n"', sum='{ s = "3 * c", r = "a*b*2" }'))

    assert first.definition == second.definition
    assert third.definition == fourth.definition != first.definition


def test_existing_source_of_the_same_name__means_the_same() -> None:
    source = f'[source]\nstream_arn = "{STREAM_ARN}"\npartition_key = "orderid"\n'

    assert definitions(source=source).aggregations[0].definition == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        aggregation_text(table="elsewhere"),
        aggregation_text(partition_key='{ name = "item", from = "item_number" }'),
        aggregation_text(partition_key='{ name = "item_number", from = "item" }'),
        aggregation_text(partition_key='{ name = "item_number", from = "item_number", type = "N" }'),
        aggregation_text(partition_key='{ name = "item_number", from = "item_number", prefix = "i#" }'),
        aggregation_text(partition_key='{ name = "item_number", from = "item_number", truncate = "day" }'),
        aggregation_text(partition_key="""{ name = "item_number", from = '"item_number[0]"' }"""),
        aggregation_text(partition_key='{ name = "item_number", from = "item_number[0]" }'),
        aggregation_text(sort_key=None),
        aggregation_text(sort_key='{ name = "order_date", from = "order_date" }'),
        aggregation_text(sort_key='{ name = "order_date", from = "order_date", truncate = "month" }'),
        aggregation_text(sort_key=ORDER_DATE.replace(" }", ', timezone = "UTC" }')),
        aggregation_text(sort_key=ORDER_DATE.replace(" }", ', timezone = "Europe/Berlin" }')),
        aggregation_text(sum='{ quantity = "amount" }'),
        aggregation_text(sum='{ quantity = "quantity * quantity" }'),
        aggregation_text(sum='{ quantity = "quantity * price" }'),
        aggregation_text(sum="""{ quantity = '"quantity * price"' }"""),
        aggregation_text(sum='{ quantity = "count" }'),
        aggregation_text(sum='{ quantity = "quantity * 2" }'),
        aggregation_text(sum='{ quantity = { jmespath = "quantity" } }'),
        aggregation_text(partition_key='{ name = "item_number", value = "item_number" }'),
        aggregation_text(sort_key=ORDER_DATE.replace("day", "week")),
        aggregation_text(sort_key=ORDER_DATE.replace(" }", ', epoch = "seconds" }')),
        aggregation_text(sort_key=ORDER_DATE.replace(" }", ', epoch = "milliseconds" }')),
        aggregation_text('count = "quantity"', sum=None),
        aggregation_text('count = "orders"'),
        aggregation_text(sum='{ orders = "quantity" }'),
        aggregation_text('remove = "retract"'),
        aggregation_text('remove = "retract_unless_expired"'),
        aggregation_text("where = \"status == 'paid'\""),
        aggregation_text('since = "2026-11-24T12:00:00Z"'),
    ],
)
def test_change_that_totals_depend_on__changes_the_description(text: str) -> None:
    assert aggregation(text).definition != PLAIN


def test_description_with_since__never_changes() -> None:
    found = aggregation(aggregation_text('since = "2026-11-24T12:00:00Z"')).definition

    assert json.loads(found) == json.loads(PLAIN) | {"since": "2026-11-24T12:00:00Z"}
    assert '"remove": "keep", "since": "2026-11-24T12:00:00Z", "source": "Order_by_item"' in found


def test_since_in_another_offset__means_the_same() -> None:
    spellings = [
        '"2026-11-24T12:00:00Z"',
        '"2026-11-24t14:00:00+02:00"',
        "2026-11-24T12:00:00Z",
        "2026-11-24 07:00:00-05:00",
    ]

    found = {aggregation(aggregation_text(f"since = {spelling}")).definition for spelling in spellings}

    assert len(found) == 1


def test_another_source__changes_the_description() -> None:
    assert definitions(source=SOURCE.replace("Order_by_item", "Orders")).aggregations[0].definition != PLAIN


def test_different_definitions__have_different_descriptions() -> None:
    variants = [
        aggregation(aggregation_text(sum='{ n = "count" }')),
        aggregation(aggregation_text('count = "n"', sum=None)),
        aggregation(aggregation_text(sum='{ n = "a * b" }')),
        aggregation(aggregation_text(sum="""{ n = '"a * b"' }""")),
        aggregation(aggregation_text(sum="""{ n = '"a" * "b"' }""", sort_key=None)),
        aggregation(aggregation_text(sum='{ n = "a * 2" }')),
        aggregation(aggregation_text(sum="""{ n = 'a * "2"' }""")),
        aggregation(aggregation_text(sum='{ n = "a * 2 * 1.5" }')),
        aggregation(aggregation_text(sum='{ n = { jmespath = "a" } }')),
        aggregation(aggregation_text(sum='{ n = { jmespath = "b" } }')),
        aggregation(aggregation_text(partition_key='{ name = "item_number", value = "a" }')),
        aggregation(aggregation_text(partition_key='{ name = "item_number", value = "b" }')),
    ]

    assert len({variant.definition for variant in variants}) == len(variants)


# --- Anything at all ------------------------------------------------------------------------------------------------

TOML_LINES = st.sampled_from(
    [
        *("[source]", "[[aggregations]]", "[aggregations]", 'table = "abc"', 'name = "n"', "partition_key = 'k'", "[["),
        *(f"partition_key = {ITEM_NUMBER}", f"sort_key = {ORDER_DATE}", 'sum = { q = "a * b" }', "sum.q = 'a'"),
        *('where = "a"', 'count = "c"', "count = true", "source.table = 1", "x = [1, {}]", "a.b.c = nan", "= 1"),
    ]
)


@given(st.text() | st.lists(TOML_LINES | st.text(max_size=5)).map("\n".join))
def test_any_text__is_definitions_or_a_definition_error(text: str) -> None:
    try:
        found = parse_definitions(text)
    except DefinitionError:
        return

    assert found.aggregations


VALUES = st.recursive(
    st.text() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["day", "a * b", "S", "UTC"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "from", "x"]), inner),
    max_leaves=4,
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "name",
                "table",
                "partition_key",
                "sort_key",
                "sum",
                "count",
                "where",
                "remove",
                "since",
                "indexes",
                "other",
            ]
        ),
        VALUES,
    )
)
def test_any_values__are_definitions_or_a_definition_error(values: dict[str, object]) -> None:
    lines = {"name": "n", "table": "abc", "partition_key": {"name": "k", "from": "k"}, "count": "c"} | values
    text = SOURCE + "[[aggregations]]\n" + "\n".join(f"{key} = {_toml(value)}" for key, value in lines.items())

    try:
        found = parse_definitions(text)
    except DefinitionError as error:
        message = str(error)
    else:
        message = found.aggregations[0].name

    assert message
    assert "not valid TOML" not in message


def test_users_file__lies_beside_the_package() -> None:
    assert DEFINITIONS_FILE.name == "aggregations.toml"
    assert DEFINITIONS_FILE.parent == Path(aggregation_worker.__file__).parents[1]


@pytest.mark.parametrize(
    ("option", "environment", "expected"),
    [
        (Path("option.toml"), {"AGGREGATIONS_FILE": "variable.toml"}, Path("option.toml")),
        (None, {"AGGREGATIONS_FILE": "variable.toml"}, Path("variable.toml")),
        (None, {"AGGREGATIONS_FILE": ""}, DEFINITIONS_FILE),
        (None, {}, DEFINITIONS_FILE),
    ],
)
def test_definitions_file__option_before_variable_before_the_users(
    option: Path | None, environment: dict[str, str], expected: Path
) -> None:
    assert definitions_file(option, environment) == expected

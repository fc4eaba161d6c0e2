"""Receipts, positions, and how rows and the ledger name them: what may not collide, and what must never change."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.definitions import RESERVED_PREFIXES
from aggregation_worker.ledger.receipts import (
    REPAIR_PAGE_PREFIX,
    RowReceipts,
    aggregate_name,
    aggregations_in,
    archived_attribute,
    backfill_attribute,
    backfill_value,
    expiry,
    first_position,
    generation_attribute,
    item_size,
    kept_attribute,
    late_attribute,
    partition_of,
    position_in,
    position_of,
    read_backfill,
    read_receipt,
    receipt_name,
    receipt_value,
    receipts_attribute,
    row_receipts,
    second_of,
    without_repeats,
)
from tests.definition_texts import aggregation_text, definitions
from tests.postings import postings
from tests.records import CREATED_AT, DAY, insert, modify, order, remove, validated
from tests.sizes import examples

NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,128}", fullmatch=True)
# Anything that could be mistaken for a separator, an escape or a digest, and long values around the plain limit.
TRICKY = st.text(alphabet='#|"\\[],:\0\n\u2028é☃🎁as') | st.sampled_from(["sha256-" + "0" * 64, '["a"]', 'a","b'])
VALUES = st.text() | TRICKY | st.builds(lambda text, length: (text * length)[:length], TRICKY, st.integers(1, 1100))
GROUPS = st.lists(VALUES, min_size=1, max_size=2).map(tuple)


LATEST = 0xFFFF_FFFF  # in 2106

# --- Names in the ledger --------------------------------------------------------------------------------------------


@examples(100, long=1000)
@given(NAMES, GROUPS, NAMES, GROUPS)
def test_different_groups__never_share_a_ledger_key(
    first_name: str, first: tuple[str, ...], second_name: str, second: tuple[str, ...]
) -> None:
    same = (first_name, first) == (second_name, second)

    assert (aggregate_name(first_name, first) == aggregate_name(second_name, second)) == same


@given(NAMES, st.lists(GROUPS, min_size=2, max_size=20, unique=True))
def test_groups_of_one_aggregation__never_share_a_ledger_key(name: str, groups: list[tuple[str, ...]]) -> None:
    assert len({aggregate_name(name, group) for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("a#b", "c"), ("a", "b#c")),
        (("a", "b"), ('a","b',)),
        (("a", "b"), ('["a","b"]',)),
        (("a",), ("a", "")),
        (("a\x00",), ("a\\u0000",)),
        (("a" * 1021,), ("sha256-" + "a" * 1014,)),
        (("é",), ("e\u0301",)),
        (("x" * 1500, "y"), ("x" * 1500 + "y", "")),
    ],
)
def test_groups_that_look_alike__have_keys_of_their_own(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    assert aggregate_name("orders", first) != aggregate_name("orders", second)


def test_plain_group__is_readable_in_the_ledger() -> None:
    assert aggregate_name("item_count_by_date", ("item123", "2024-07-15")) == (
        'item_count_by_date#["item123","2024-07-15"]'
    )


# Names that stand in rows and ledgers: another version of the worker that named them otherwise would count twice.
@pytest.mark.parametrize(
    ("group", "name"),
    [
        (("ü☃", 'a"b\n'), 'n#["ü☃","a\\"b\\n"]'),
        (("i" * 1020,), f'n#["{"i" * 1020}"]'),
        (("é" * 510,), f'n#["{"é" * 510}"]'),
        (("i" * 1021,), "n#sha256-4b9b8404c908753e87db60deed5d07cc93970e87b5a6ae106d32d9d41248b0e7"),
        (("i" * 2000, DAY), "n#sha256-c335529392cc88665cae2bdff7cf0621d660b0821f7a9ee59a1ebeebb04bb6e4"),
    ],
)
def test_ledger_key_of_a_group__never_changes(group: tuple[str, ...], name: str) -> None:
    assert aggregate_name("n", group) == name
    assert partition_of("n", group, "Ab_-9z") == f"{name}#Ab_-9z"


@pytest.mark.parametrize(
    ("event_id", "name"),
    [("c4ca4238", "6694ee70ad2cc0.1000000000000000000000"), ("\ud800", "6694ee7036a814.1000000000000000000000")],
)
def test_name_of_a_receipt__never_changes(event_id: str, name: str) -> None:
    assert receipt_name(validated(insert(sequence_number=10**21, event_id=event_id))) == name


@given(
    NAMES,
    st.text(alphabet='a"\0\n☃🎁', min_size=1, max_size=2048).filter(lambda text: len(text.encode()) <= 2048),
    st.text(alphabet='a"\0\n☃🎁', min_size=1, max_size=1024).filter(lambda text: len(text.encode()) <= 1024),
)
def test_ledger_key__is_never_longer_than_dynamodb_allows(name: str, partition_key: str, sort_key: str) -> None:
    assert len(partition_of(name, (partition_key, sort_key), "Ab_-9z").encode()) <= 2048


@pytest.mark.parametrize("character", ["a", '"', "\0", "☃", "🎁"])
@pytest.mark.parametrize("size", [1019, 1020, 1021, 2048])
def test_ledger_key_around_the_plain_limit__fits(character: str, size: int) -> None:
    group = (character * (size // len(character.encode())), "2024-07-15")

    assert len(aggregate_name("n" * 128, group).encode()) <= 128 + 1 + 1024


# --- Positions ------------------------------------------------------------------------------------------------------


def test_position__is_the_second_and_a_digest_of_the_event() -> None:
    record = validated(insert(created_at=CREATED_AT))

    assert re.fullmatch(r"[0-9a-f]{14}", position_of(record))
    assert second_of(position_of(record)) == CREATED_AT
    assert position_in(receipt_name(record)) == position_of(record)


@given(st.integers(0, LATEST), st.integers(0, LATEST), st.text(), st.text())
def test_positions__sort_as_their_seconds(first: int, second: int, one: str, other: str) -> None:
    positions = [
        position_of(validated(insert(created_at=created_at, event_id=event_id or "-")))
        for created_at, event_id in ((first, one), (second, other))
    ]

    if first != second:
        assert (positions[0] < positions[1]) == (first < second)
    assert (first_position(first) < positions[1]) == (first <= second)


def test_positions__sort_before_repairs() -> None:
    assert first_position(LATEST) + "ffffff" < REPAIR_PAGE_PREFIX


def test_first_position_of_a_time_before_1970__is_the_first() -> None:
    assert first_position(-5.5) == first_position(0.9) == "00000000"


@given(st.text(st.characters(), min_size=1), st.text(st.characters(), min_size=1))
def test_equal_sequence_numbers_of_two_shards__have_two_receipts(first: str, second: str) -> None:
    names = {receipt_name(validated(insert(sequence_number=10**21, event_id=one))) for one in (first, second)}

    assert len(names) == len({first, second})


@given(st.data())
def test_where_a_receipt_stands__depends_on_nothing_but_the_record(data: st.DataObject) -> None:
    raws = [
        insert(order(item=f"item{number % 3}"), created_at=CREATED_AT + number % 2, sequence_number=10**21 + number)
        for number in range(8)
    ]
    raws += [modify(order(item="item0"), order(item="item1")), modify(order(quantity=1), order(quantity=5))]
    cut = data.draw(st.lists(st.sampled_from(raws), min_size=1, unique_by=id))

    def places(batch: Sequence[Any]) -> set[tuple[str, tuple[str, ...], str, tuple[Decimal, ...]]]:
        return {
            (one.aggregate.aggregation.name, one.aggregate.row.group, one.receipt, one.amounts)
            for one in postings(*batch)
        }

    assert places(cut) == {place for raw in cut for place in places([raw])}
    assert places(cut) <= places(raws)


# --- Values ---------------------------------------------------------------------------------------------------------


def test_expiry__is_counted_from_the_writing_in_whole_seconds() -> None:
    assert expiry(1_000_000.9, retention_days=60) == 1_000_000 + 60 * 86_400


@pytest.mark.parametrize(
    ("amounts", "kept", "value"),
    [
        ((Decimal("-1.50"),), (), {"N": "-1.50"}),
        ((Decimal(1), Decimal("0E-7")), (), {"L": [{"N": "1"}, {"N": "0"}]}),
        ((Decimal("1E+30"),), (), {"N": "1E+30"}),
        ((Decimal(0),), (Decimal(5),), {"L": [{"L": [{"N": "0"}]}, {"L": [{"N": "5"}]}]}),
        (
            (Decimal(1), Decimal(2)),
            (Decimal(3), Decimal(4)),
            {"L": [{"L": [{"N": "1"}, {"N": "2"}]}, {"L": [{"N": "3"}, {"N": "4"}]}]},
        ),
    ],
)
def test_receipt__holds_the_contribution_and_what_is_kept(
    amounts: tuple[Decimal, ...], kept: tuple[Decimal, ...], value: dict[str, Any]
) -> None:
    assert receipt_value(amounts, kept) == value
    assert read_receipt(value) == (amounts, kept)


def test_starting_value__is_read_as_it_was_written() -> None:
    value = backfill_value("stream 2024-07-01T00:00:00.000", (Decimal(1), Decimal("2.5")))

    assert value == {"L": [{"S": "stream 2024-07-01T00:00:00.000"}, {"L": [{"N": "1"}, {"N": "2.5"}]}]}
    assert read_backfill(value) == ("stream 2024-07-01T00:00:00.000", (Decimal(1), Decimal("2.5")))


def test_row__says_of_each_aggregation_what_it_holds() -> None:
    item = {
        "item_number": {"S": "item123"},
        "receipts#a": {"M": {"1.2": {"N": "3"}}},
        "generation#a": {"S": "Ab_-9z"},
        "archived#a": {"S": "0"},
        "receipts#b": {"M": {}},
        "generation#b": {"S": "x"},
    }

    assert aggregations_in(item) == ["a", "b"]
    assert row_receipts(item, "a") == RowReceipts({"1.2": {"N": "3"}}, "Ab_-9z", "0")
    assert row_receipts(item, "b") == RowReceipts({}, "x", "")
    assert row_receipts(item, "c") == RowReceipts(None, "", "")


def test_attributes_of_a_row__have_names_no_measure_may_have() -> None:
    names = [
        *(receipts_attribute("a"), generation_attribute("a"), archived_attribute("a"), late_attribute("a")),
        *(kept_attribute("a", "quantity"), backfill_attribute("a")),
    ]

    assert tuple(name[: name.index("#") + 1] for name in names) == RESERVED_PREFIXES


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ({"S": "é1"}, 3),
        ({"N": "-12345"}, 5),
        ({"B": b"123"}, 3),
        ({"BOOL": True}, 1),
        ({"NULL": True}, 1),
        ({"M": {}}, 3),
        ({"M": {"ab": {"S": "c"}}}, 3 + 1 + 2 + 1),
        ({"L": [{"S": "c"}, {"NULL": True}]}, 3 + 2 + 1 + 1),
        ({"SS": ["a", "bc"]}, 3),
        ({"BS": [b"a", b"bc"]}, 3),
        ({"NS": ["1", "22"]}, 2 + 3),
    ],
    ids=str,
)
def test_item__is_as_large_as_dynamodb_counts_it(value: dict[str, Any], size: int) -> None:
    assert item_size({"ü": value}) == 2 + size


# --- Postings -------------------------------------------------------------------------------------------------------


def test_posting__knows_its_record_and_its_row() -> None:
    _, posting = postings(insert(order(item="item312")), insert(created_at=CREATED_AT + 1))

    assert (posting.record, posting.created_at) == (1, CREATED_AT + 1)
    assert posting.aggregate.row.key() == {"item_number": {"S": "item123"}, "order_date": {"S": DAY}}
    assert posting.aggregate.row.group_of(posting.aggregate.row.key()) == posting.aggregate.row.group


def test_number_keys__are_read_as_they_were_written() -> None:
    keyed = definitions(aggregation_text(partition_key='{ name = "shop", from = "shop", type = "N" }', sort_key=None))

    (posting,) = postings(insert(order(shop={"N": "1.0E1"})), defined=keyed)

    assert posting.aggregate.row.key() == {"shop": {"N": "10"}}
    assert posting.aggregate.row.group_of({"shop": {"N": "10.0"}}) == posting.aggregate.row.group


def test_record_that_moves__has_a_receipt_in_each_group() -> None:
    left, entered = postings(modify(order(quantity=10), order(item="item312", quantity=10)))

    assert left.receipt == entered.receipt
    assert left.aggregate is not entered.aggregate
    assert (left.amounts, entered.amounts) == ((Decimal(-10),), (Decimal(10),))


def test_record_that_contributes_nothing__has_no_receipt() -> None:
    assert postings(modify(order(), order())) == []


def test_removed_item__has_a_receipt_of_what_it_keeps() -> None:
    (posting,) = postings(remove(order(quantity=10)))

    assert (posting.amounts, posting.kept) == ((Decimal(0),), (Decimal(10),))
    assert read_receipt(posting.value()) == (posting.amounts, posting.kept)


def test_aggregations_of_one_table__share_its_rows() -> None:
    shared = definitions(aggregation_text(), aggregation_text('count = "orders"', name="order_count", sum=None))

    first, second = postings(insert(), defined=shared)

    assert first.aggregate.row is second.aggregate.row
    assert first.aggregate is not second.aggregate


def test_aggregations_of_two_tables__have_rows_of_their_own() -> None:
    two = definitions(aggregation_text(), aggregation_text(name="other", table="other"))

    first, second = postings(insert(), defined=two)

    assert first.aggregate.row is not second.aggregate.row


def test_same_record_twice_in_a_batch__is_posted_once() -> None:
    raw = insert()

    distinct, repeated = without_repeats(postings(raw, insert(), raw))

    assert [posting.record for posting in distinct] == [0, 1]
    assert [posting.record for posting in repeated] == [2]

"""Receipts, pages, and the transactions that post them: what may never collide, and what must always fit."""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.numbers import fits
from aggregation_worker.ledger.receipts import (
    BACKFILL_PAGE,
    DEFINITION_PAGE,
    REPAIR_PAGE_PREFIX,
    Aggregate,
    Posting,
    Row,
    aggregate_name,
    expiry,
    is_stream_page,
    page_name,
    read_receipt,
    receipt_name,
    receipt_value,
)
from aggregation_worker.ledger.transactions import (
    FEWEST_ACTIONS,
    MAX_ACTIONS,
    MAX_RECEIPTS_PER_ACTION,
    RowChange,
    Transaction,
    pack,
    plan,
    row_changes,
    starting_value_items,
    transact_items,
)
from tests.definition_texts import aggregation_text, definitions
from tests.postings import postings, transaction, transactions
from tests.records import CREATED_AT, DAY, STREAM_ARN, STREAM_LABEL, insert, modify, order, remove, validated
from tests.sizes import examples

NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,128}", fullmatch=True)
# Anything that could be mistaken for a separator, an escape or a digest, and long values around the plain limit.
TRICKY = st.text(alphabet='#|"\\[],:\0\n\u2028é☃🎁as') | st.sampled_from(["sha256-" + "0" * 64, '["a"]', 'a","b'])
VALUES = st.text() | TRICKY | st.builds(lambda text, length: (text * length)[:length], TRICKY, st.integers(1, 1100))
GROUPS = st.lists(VALUES, min_size=1, max_size=2).map(tuple)


# --- Names in the ledger --------------------------------------------------------------------------------------------


@examples(100, long=1_000)
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


# Names that existing ledgers hold: a version of the worker that named receipts otherwise would count twice.
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


@pytest.mark.parametrize(
    ("event_id", "name"),
    [("c4ca4238", "1000000000000000000000.de590381"), ("\ud800", "1000000000000000000000.ca77373e")],
)
def test_name_of_a_receipt__never_changes(event_id: str, name: str) -> None:
    assert receipt_name(validated(insert(sequence_number=10**21, event_id=event_id))) == name


@given(
    NAMES,
    st.text(alphabet='a"\0\n☃🎁', min_size=1, max_size=2048).filter(lambda text: len(text.encode()) <= 2048),
    st.text(alphabet='a"\0\n☃🎁', min_size=1, max_size=1024).filter(lambda text: len(text.encode()) <= 1024),
)
def test_ledger_key__is_never_longer_than_dynamodb_allows(name: str, partition_key: str, sort_key: str) -> None:
    assert len(aggregate_name(name, (partition_key, sort_key)).encode()) <= 2048


@pytest.mark.parametrize("character", ["a", '"', "\0", "☃", "🎁"])
@pytest.mark.parametrize("size", [1019, 1020, 1021, 2048])
def test_ledger_key_around_the_plain_limit__fits(character: str, size: int) -> None:
    group = (character * (size // len(character.encode())), "2024-07-15")

    assert len(aggregate_name("n" * 128, group).encode()) <= 128 + 1 + 1024


def test_receipt__is_named_by_sequence_number_and_event() -> None:
    record = validated(insert(sequence_number=10**21, event_id="c4ca4238"))

    assert re.fullmatch(r"1000000000000000000000\.[0-9a-f]{8}", receipt_name(record))
    assert receipt_name(record) == receipt_name(validated(insert(sequence_number=10**21, event_id="c4ca4238")))


@given(st.text(st.characters(), min_size=1), st.text(st.characters(), min_size=1))
def test_equal_sequence_numbers_of_two_shards__have_two_receipts(first: str, second: str) -> None:
    names = {receipt_name(validated(insert(sequence_number=10**21, event_id=one))) for one in (first, second)}

    assert len(names) == len({first, second})


def test_page__is_named_by_second_and_stream() -> None:
    assert page_name(CREATED_AT, STREAM_LABEL) == "2024-07-15T09:40:00Z|2024-07-01T00:00:00.000"


@given(st.integers(0, 253_402_300_799), st.integers(0, 253_402_300_799))
def test_pages__sort_as_their_seconds(first: int, second: int) -> None:
    assert (page_name(first, "s") < page_name(second, "s")) == (first < second)


def test_streams_of_one_table__have_pages_of_their_own() -> None:
    later = STREAM_ARN.replace("2024-07-01", "2024-08-01")

    first, second = postings(insert(sequence_number=1), insert(sequence_number=1, stream_arn=later))

    assert first.page != second.page


@given(st.data())
def test_receipt_key__depends_on_nothing_but_the_record(data: st.DataObject) -> None:
    raws = [
        insert(order(item=f"item{number % 3}"), created_at=CREATED_AT + number % 2, sequence_number=10**21 + number)
        for number in range(8)
    ]
    raws += [modify(order(item="item0"), order(item="item1")), modify(order(quantity=1), order(quantity=5))]
    cut = data.draw(st.lists(st.sampled_from(raws), min_size=1, unique_by=id))

    def places(batch: Sequence[Any]) -> set[tuple[str, str, str, tuple[Decimal, ...]]]:
        return {(one.aggregate.name, one.page, one.receipt, one.amounts) for one in postings(*batch)}

    assert places(cut) == {place for raw in cut for place in places([raw])}
    assert places(cut) <= places(raws)


def test_expiry__is_counted_from_the_writing_in_whole_seconds() -> None:
    assert expiry(1_000_000.9, retention_days=60) == 1_000_000 + 60 * 86_400


@pytest.mark.parametrize(
    ("amounts", "value"),
    [
        ((Decimal("-1.50"),), {"N": "-1.50"}),
        ((Decimal(1), Decimal("0E-7")), {"L": [{"N": "1"}, {"N": "0"}]}),
        ((Decimal("1E+30"),), {"N": "1E+30"}),
    ],
)
def test_receipt__holds_the_contribution(amounts: tuple[Decimal, ...], value: dict[str, Any]) -> None:
    assert receipt_value(amounts) == value
    assert read_receipt(value) == amounts


# --- Postings -------------------------------------------------------------------------------------------------------


def test_record_that_moves__has_a_receipt_in_each_group() -> None:
    left, entered = postings(modify(order(quantity=10), order(item="item312", quantity=10)))

    assert (left.receipt, left.page) == (entered.receipt, entered.page)
    assert left.aggregate.name != entered.aggregate.name
    assert (left.amounts, entered.amounts) == ((Decimal(-10),), (Decimal(10),))


def test_record_that_contributes_nothing__has_no_receipt() -> None:
    assert postings(remove(), modify(order(), order())) == []


def test_aggregations_of_one_table__share_rows_but_not_pages() -> None:
    shared = definitions(aggregation_text(), aggregation_text('count = "orders"', name="order_count", sum=None))

    first, second = postings(insert(), defined=shared)

    assert first.aggregate.row is second.aggregate.row
    assert first.aggregate.name != second.aggregate.name


def test_aggregations_of_two_tables__have_rows_of_their_own() -> None:
    two = definitions(aggregation_text(), aggregation_text(name="other", table="other"))

    first, second = postings(insert(), defined=two)

    assert first.aggregate.row is not second.aggregate.row


@given(st.integers(0, 253_402_300_799), st.text())
def test_pages_of_a_stream__sort_before_all_others(second: int, label: str) -> None:
    page = page_name(second, label)

    assert is_stream_page(page)
    for other in (BACKFILL_PAGE, DEFINITION_PAGE, REPAIR_PAGE_PREFIX + "000001"):
        assert not is_stream_page(other)
        assert page < other


# --- Transactions ---------------------------------------------------------------------------------------------------


def test_transaction_of_one_record__is_a_receipt_and_an_add() -> None:
    raw = insert(order(quantity="2.50"), sequence_number=10**21, event_id="c4ca4238")

    page, total = transact_items(transaction(raw), "ledger", 2_000_000_000)

    receipt = receipt_name(validated(raw))
    assert page == {
        "Update": {
            "TableName": "ledger",
            "Key": {
                "aggregate": {"S": 'item_count_by_date#["item123","2024-07-15"]'},
                "page": {"S": "2024-07-15T09:40:00Z|2024-07-01T00:00:00.000"},
            },
            "UpdateExpression": "SET #0 = :0, expires_at = :expires_at",
            "ConditionExpression": "attribute_not_exists(#0)",
            "ExpressionAttributeNames": {"#0": receipt},
            "ExpressionAttributeValues": {":0": {"N": "2.50"}, ":expires_at": {"N": "2000000000"}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }
    assert total == {
        "Update": {
            "TableName": "item_count_by_date",
            "Key": {"item_number": {"S": "item123"}, "order_date": {"S": DAY}},
            "UpdateExpression": "ADD #0 :0",
            "ExpressionAttributeNames": {"#0": "quantity"},
            "ExpressionAttributeValues": {":0": {"N": "2.50"}},
        }
    }


def test_starting_value__is_a_page_of_its_own_that_never_expires() -> None:
    (planned,) = plan([replace(transaction(insert())[0].postings[0], page=BACKFILL_PAGE, receipt="since yesterday")])[0]

    page, total = starting_value_items(planned, "ledger", 2_000_000_000)

    assert page == {
        "Update": {
            "TableName": "ledger",
            "Key": {
                "aggregate": {"S": 'item_count_by_date#["item123","2024-07-15"]'},
                "page": {"S": "backfill"},
            },
            "UpdateExpression": "SET #receipt = :receipt",
            "ConditionExpression": "attribute_not_exists(#aggregate)",
            "ExpressionAttributeNames": {"#receipt": "since yesterday", "#aggregate": "aggregate"},
            "ExpressionAttributeValues": {":receipt": {"N": "10"}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }
    assert total == transact_items(transaction(insert()), "ledger", 0)[-1]


def test_records_of_one_second__share_one_page_and_one_add() -> None:
    (change,) = transaction(*(insert(order(quantity=number)) for number in range(1, 101)))

    page, total = transact_items((change,), "ledger", 0)
    assert len(page["Update"]["ExpressionAttributeNames"]) == 100
    assert total["Update"]["ExpressionAttributeValues"] == {":0": {"N": "5050"}}


def test_records_of_two_seconds__have_two_pages_and_one_add() -> None:
    (change,) = transaction(insert(created_at=CREATED_AT), insert(created_at=CREATED_AT + 1))

    assert len(change.pages) == 2
    assert change.totals() == {"quantity": Decimal(20)}


def test_contributions_that_cancel_out__are_still_posted() -> None:
    (change,) = transaction(insert(order(quantity=5)), insert(order(quantity=-5)))

    assert len(change.postings) == 2
    assert change.totals() == {"quantity": Decimal(0)}


def test_number_keys__are_written_as_numbers() -> None:
    keyed = definitions(aggregation_text(partition_key='{ name = "shop", from = "shop", type = "N" }', sort_key=None))

    items = transact_items(transaction(insert(order(shop={"N": "1.0E1"})), defined=keyed), "ledger", 0)

    assert items[1]["Update"]["Key"] == {"shop": {"N": "10"}}


def test_500_receipts_of_one_second__go_into_transactions_of_120() -> None:
    planned = transactions(*(insert() for _ in range(500)))

    assert [len(change.postings) for (change,) in planned] == [120, 120, 120, 120, 20]


def test_1000_aggregates__go_50_into_a_transaction() -> None:
    planned = transactions(*(insert(order(item=f"item{number}")) for number in range(1000)))

    assert [len(one) for one in planned] == [50] * 20


def test_250_pages_of_one_aggregate__go_99_into_a_transaction() -> None:
    planned = transactions(*(insert(created_at=CREATED_AT + second) for second in range(250)))

    assert [len(change.pages) for (change,) in planned] == [99, 99, 52]


def test_second_changes_of_rows__come_after_all_first_changes() -> None:
    raws = [insert(order(item=item)) for item in ("a", "b") for _ in range(MAX_RECEIPTS_PER_ACTION + 1)]

    planned = transactions(*raws)

    assert [[len(change.postings) for change in one] for one in planned] == [[120, 120], [1, 1]]


def test_same_record_twice_in_a_batch__is_posted_once() -> None:
    raw = insert()

    planned, repeated = plan(postings(raw, insert(), raw))

    assert [posting.record for one in planned for change in one for posting in change.postings] == [0, 1]
    assert [posting.record for posting in repeated] == [2]


def test_sum_over_38_digits__is_added_record_by_record() -> None:
    raws = [insert(order(quantity=quantity)) for quantity in ("1E125", "1E-130", "1")]

    planned = transactions(*raws)

    assert [change.totals() for one in planned for change in one] == [
        {"quantity": Decimal("1E125")},
        {"quantity": Decimal("1E-130")},
        {"quantity": Decimal(1)},
    ]


def test_sum_of_38_digits__is_exact() -> None:
    raws = [insert(order(quantity=quantity)) for quantity in ("9" * 37, "0." + "9" * 37, "-" + "9" * 37, "1E-37")]

    planned = transactions(*raws)

    assert sum(Fraction(change.totals()["quantity"]) for one in planned for change in one) == 1


def test_empty_batch__has_no_transactions() -> None:
    assert plan([]) == ([], [])
    assert pack([]) == []
    assert row_changes([]) == []


# --- Packing anything -----------------------------------------------------------------------------------------------

SHARED = definitions(
    aggregation_text('count = "orders"'),
    aggregation_text(name="revenue", sum='{ revenue = "quantity" }'),
    aggregation_text(name="by_item", table="by_item", sort_key=None),
).aggregations
AMOUNTS = st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal) | st.sampled_from(
    [Decimal("1E125"), Decimal("-1E125"), Decimal("1E-130"), Decimal(0), Decimal("1." + "0" * 36 + "1")]
)


@st.composite
def batches(draw: st.DrawFn) -> list[Posting]:
    """Postings of few or many rows and seconds, by three aggregations, two of which share their rows."""
    runs = draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 3), st.sampled_from([1, 2, 119, 121, 250])),
            min_size=1,
            max_size=8,
        )
    )
    spread = draw(st.sampled_from([0, 0, 60, 130]))
    runs += [(number % 3, number if number % 2 else 0, number, 1) for number in range(spread)]
    amounts = draw(st.lists(AMOUNTS, min_size=1, max_size=6))
    rows: dict[tuple[str, int], Row] = {}
    aggregates: dict[tuple[int, int], Aggregate] = {}
    found: list[Posting] = []
    for which, group_number, second, count in runs:
        used, group = SHARED[which], (f"item{group_number}", DAY)[: len(SHARED[which].keys)]
        row = rows.setdefault((used.table, group_number), Row(used.table, used.keys, group))
        aggregate = aggregates.setdefault((which, group_number), Aggregate(used, row, aggregate_name(used.name, group)))
        for _ in range(count):
            number = len(found)
            values = tuple(amounts[(number + measure) % len(amounts)] for measure in range(len(used.measures)))
            created_at = CREATED_AT + second
            found.append(Posting(number, created_at, aggregate, page_name(created_at, "s"), f"{number}.0", values))
    random.Random(draw(st.integers(0, 9))).shuffle(found)
    return found


def assert_packed(planned: list[Transaction], batch: list[Posting]) -> None:
    """Every posting once, no limit exceeded, and every ADD the sum of its receipts."""
    posted = [posting for one in planned for change in one for posting in change.postings]
    assert Counter(map(id, posted)) == Counter(map(id, batch))
    for one in planned:
        items = transact_items(one, "ledger", 2_000_000_000)
        keys = [(item["Update"]["TableName"], repr(item["Update"]["Key"])) for item in items]
        assert len(keys) <= 100
        assert len(set(keys)) == len(keys)
        for item in items:
            assert_expressions_within_limits(item["Update"])
        for change in one:
            assert all(1 <= len(page.postings) <= MAX_RECEIPTS_PER_ACTION for page in change.pages)
            assert len({(page.postings[0].aggregate, page.postings[0].page) for page in change.pages}) == len(
                change.pages
            )
            assert {posting.aggregate.row for posting in change.postings} == {change.row}
            assert {name: Fraction(total) for name, total in change.totals().items()} == sums(change.postings)
            assert all(map(fits, change.totals().values())) or len(change.postings) == 1


def assert_expressions_within_limits(update: Mapping[str, Any]) -> None:
    """At most 4 KB and 300 operators and functions each, and every name and value that comes along is used."""
    texts = [update["UpdateExpression"], update.get("ConditionExpression", "")]
    for text in texts:
        assert len(text.encode()) <= 4096
        assert len(re.findall(r"\bAND\b|attribute_not_exists|=|\bADD\b|,", text)) <= 300
    words = set(re.findall(r"[#:]\w+", " ".join(texts)))
    assert words == {*update["ExpressionAttributeNames"], *update["ExpressionAttributeValues"]}


def sums(batch: Sequence[Posting]) -> dict[str, Fraction]:
    """The sum of contributions by measure, by another road than the worker's."""
    found: dict[str, Fraction] = {}
    for posting in batch:
        for measure, amount in zip(posting.aggregate.aggregation.measures, posting.amounts, strict=True):
            found[measure.name] = found.get(measure.name, Fraction(0)) + Fraction(amount)
    return found


@examples(20, long=200)
@given(batches())
def test_any_batch__is_packed_once_within_the_limits(batch: list[Posting]) -> None:
    planned, repeated = plan(batch)

    assert repeated == []
    assert_packed(planned, batch)
    adds: dict[str, Fraction] = {}
    for change in (change for one in planned for change in one):
        for name, total in change.totals().items():
            adds[name] = adds.get(name, Fraction(0)) + Fraction(total)
    assert adds == sums(batch)


@examples(10, long=100)
@given(batches())
def test_row_in_several_changes__is_in_each_transaction_once(batch: list[Posting]) -> None:
    planned, _ = plan(batch)

    for one in planned:
        rows = [change.row for change in one]
        assert len(set(rows)) == len(rows)


@examples(10, long=100)
@given(batches(), st.data())
def test_changes_packed_again__keep_within_the_limits(batch: list[Posting], data: st.DataObject) -> None:
    changes: list[RowChange] = [change for one in plan(batch)[0] for change in one]
    some = data.draw(st.permutations(changes))[: data.draw(st.integers(1, len(changes)))]

    most_actions = data.draw(st.none() | st.integers(FEWEST_ACTIONS, MAX_ACTIONS))

    repacked = pack(some, most_actions)

    assert_packed(repacked, [posting for change in some for posting in change.postings])
    for one in repacked:
        assert len(one) == 1 or sum(len(change.pages) + 1 for change in one) <= (most_actions or MAX_ACTIONS)


def test_posting__knows_its_record_and_its_row() -> None:
    _, posting = postings(insert(order(item="item312")), insert(created_at=CREATED_AT + 1))

    assert (posting.record, posting.created_at) == (1, CREATED_AT + 1)
    assert posting.aggregate.row.key() == {"item_number": {"S": "item123"}, "order_date": {"S": DAY}}

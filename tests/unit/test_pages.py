"""Pages: packed receipts, cut so that each stays small and together they cover what the page before them covered."""

import random
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.ledger import pages
from aggregation_worker.ledger.pages import MAX_PAGE_BYTES, MAX_PAGE_RECEIPTS, cut, packed, page_of, unpacked
from aggregation_worker.ledger.receipts import position_in

AMOUNTS = st.sampled_from([Decimal(0), Decimal(-1), Decimal("2.50"), Decimal("1E+30"), Decimal("-" + "9" * 38)])
CONTRIBUTIONS = st.integers(1, 3).flatmap(
    lambda measures: st.tuples(*[AMOUNTS] * measures).flatmap(
        lambda amounts: st.tuples(st.just(amounts), st.just(()) | st.tuples(*[AMOUNTS] * measures))
    )
)
POSITIONS = st.integers(0, 40).map(lambda number: f"{number:014x}")
NAMES = st.tuples(POSITIONS, st.integers(10**20, 10**20 + 9)).map(lambda parts: f"{parts[0]}.{parts[1]}")
RECEIPTS = st.dictionaries(NAMES, CONTRIBUTIONS)
LAST = f"{41:014x}"

Receipts = Mapping[str, tuple[Amounts, Amounts]]


def receipts_of(count: int, *, per_position: int = 1, measures: int = 1) -> Receipts:
    """So many receipts; what differs between their sequence numbers is random."""
    chosen = random.Random(count)
    return {
        f"6694ee70{number // per_position:06x}.{10**23 + chosen.randrange(10**12)}": (
            tuple(Decimal(chosen.randrange(99 if measures == 1 else 10**37)) for _ in range(measures)),
            (),
        )
        for number in range(count)
    }


@given(RECEIPTS)
def test_receipts__come_out_of_a_page_as_they_went_in(receipts: Receipts) -> None:
    assert unpacked(packed(receipts)) == receipts
    assert list(unpacked(packed(receipts))) == sorted(receipts)


def test_same_receipts__are_packed_alike_in_any_order() -> None:
    receipts = receipts_of(20)

    assert packed(dict(reversed(list(receipts.items())))) == packed(receipts)


def test_page__is_read_as_it_was_written() -> None:
    (page,) = cut(receipts_of(3), "", "6694ee70ffffff")

    item = page.item("orders#[]#Ab_-9z", 1_800_000_000)

    assert page_of(item) == page
    assert item == {
        "aggregate": {"S": "orders#[]#Ab_-9z"},
        "page": {"S": "6694ee70ffffff"},
        "after": {"S": ""},
        "receipts": {"B": packed(receipts_of(3))},
        "expires_at": {"N": "1800000000"},
    }


def test_page_as_boto3_reads_it__is_made_of_bytes() -> None:
    class Binary:
        def __bytes__(self) -> bytes:
            return packed({})

    item: Any = {"page": {"S": "b"}, "after": {"S": "a"}, "receipts": {"B": Binary()}}

    assert page_of(item).receipts() == {}


def test_full_page__costs_few_kilobytes() -> None:
    (page,) = cut(receipts_of(MAX_PAGE_RECEIPTS), "", "6694ee70ffffff")

    assert len(page.packed) / MAX_PAGE_RECEIPTS < 20
    assert len(page.packed) <= MAX_PAGE_BYTES


@pytest.mark.parametrize(("count", "parts"), [(0, 1), (250, 1), (251, 2), (501, 3), (2_000, 8)])
def test_receipts__are_spread_evenly_over_few_pages(count: int, parts: int) -> None:
    made = cut(receipts_of(count), "", "6694ee70ffffff")

    sizes = [len(page.receipts()) for page in made]
    assert len(made) == parts
    assert max(sizes) - min(sizes) <= 1


def test_large_contributions__make_pages_of_fewer_receipts() -> None:
    made = cut(receipts_of(100, measures=5), "", "6694ee70ffffff")

    assert len(made) > 1
    assert all(len(page.packed) <= MAX_PAGE_BYTES * 1.1 for page in made)


@given(RECEIPTS, st.integers(1, 5), st.integers(60, 400))
def test_pages__cover_the_whole_span_and_keep_positions_together(receipts: Receipts, most: int, size: int) -> None:
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(pages, "MAX_PAGE_RECEIPTS", most)
        limits.setattr(pages, "MAX_PAGE_BYTES", size)
        made = cut(receipts, "", LAST)

    assert made[0].after == ""
    assert made[-1].key == LAST
    assert [page.key for page in made[:-1]] == [page.after for page in made[1:]]
    found: dict[str, tuple[Amounts, Amounts]] = {}
    for page in made:
        assert page.after < page.key
        assert all(page.after < position_in(name) <= page.key for name in page.receipts())
        found |= page.receipts()
    assert found == receipts


def test_receipts_of_one_position__stay_on_one_page() -> None:
    receipts = receipts_of(300, per_position=300)

    (page,) = cut(receipts, "", LAST)

    assert page.receipts() == receipts


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 6))
def test_no_page__is_empty_where_receipts_are_cut(count: int, per_position: int, most: int) -> None:
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(pages, "MAX_PAGE_RECEIPTS", most)
        made = cut(receipts_of(count, per_position=per_position), "", "6694ee70ffffff")

    assert all(page.receipts() for page in made)

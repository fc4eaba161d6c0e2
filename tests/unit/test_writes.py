"""The next write of a row: the table of the protocol, line by line, as one pure function decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from aggregation_worker.ledger import next_write
from aggregation_worker.ledger import pages as ledger_pages
from aggregation_worker.ledger.next_write import Step, next_start, next_step
from aggregation_worker.ledger.pages import Page, cut, packed
from aggregation_worker.ledger.receipts import (
    Aggregate,
    Posting,
    backfill_value,
    item_size,
    position_in,
    receipt_value,
)
from aggregation_worker.ledger.writes import MOST_LATE_PAGES, Add, Archive, Late, Look, Start
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import FaultyDynamoDB
from tests.postings import REFERENCE, postings
from tests.records import CREATED_AT, DAY, insert, order

ROW_KEY = {"item_number": {"S": "item123"}, "order_date": {"S": DAY}}
PARTITION = 'item_count_by_date#["item123","2024-07-15"]#seen'
SHARED = definitions(
    aggregation_text(), aggregation_text('count = "orders"', name="orders", sum='{ revenue = "quantity" }')
)


def records(count: int, *, first: int = 0, **attributes: Any) -> list[Posting]:
    """Postings of one row, each of a second of its own."""
    return postings(*(insert(order(**attributes), created_at=CREATED_AT + first + number) for number in range(count)))


def of_one_row(found: Sequence[Posting], *more: Posting) -> list[Posting]:
    """The same postings, all to the row and the aggregates of the first ones."""
    aggregates = {one.aggregate.aggregation.name: one.aggregate for one in reversed(found)}
    return [replace(one, aggregate=aggregates[one.aggregate.aggregation.name]) for one in (*found, *more)]


def row_with(*held: Posting, archived: str = "", **more: Any) -> dict[str, Any]:
    """A row whose map holds the receipts of these postings, and what else is given."""
    item: dict[str, Any] = {**ROW_KEY, "receipts#item_count_by_date": {"M": {}}, **more}
    item["generation#item_count_by_date"] = {"S": "seen"}
    for one in held:
        name = one.aggregate.aggregation.name
        item.setdefault(f"receipts#{name}", {"M": {}})["M"][one.receipt] = receipt_value(one.amounts, one.kept)
        item[f"generation#{name}"] = {"S": "seen"}
    if archived:
        item["archived#item_count_by_date"] = {"S": archived}
    return item


def step(item: Mapping[str, Any], left: Sequence[Posting], pages: Mapping[Aggregate, Sequence[Page]] = {}) -> Step:
    return next_step(left[0].aggregate.row, item, left, pages, lambda: "new")


def page_with(*held: Posting, after: str = "", key: str = "") -> Page:
    """The page that holds these postings' receipts."""
    (page,) = cut({one.receipt: (one.amounts, one.kept) for one in held}, after, key or position_in(held[-1].receipt))
    return page


def then(found: Step, kind: type[Any]) -> Any:
    """The step's write, which is of this kind."""
    assert isinstance(found.then, kind)
    return found.then


# --- Add ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [{}, {**ROW_KEY, "backfill#item_count_by_date": {"N": "5"}}], ids=["no row", "a row"])
def test_first_receipt__makes_map_and_generation(item: dict[str, Any]) -> None:
    (posting,) = records(1)

    add = then(step(item, [posting]), Add)

    assert add.request() == {
        "TableName": "item_count_by_date",
        "Key": ROW_KEY,
        "UpdateExpression": "SET #0 = :0, #1 = :1 ADD #2 :2",
        "ConditionExpression": "attribute_not_exists(#0)",
        "ExpressionAttributeNames": {
            "#0": "receipts#item_count_by_date",
            "#1": "generation#item_count_by_date",
            "#2": "quantity",
        },
        "ExpressionAttributeValues": {
            ":0": {"M": {posting.receipt: {"N": "10"}}},
            ":1": {"S": "new"},
            ":2": {"N": "10"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_receipts_after_the_watermark__are_added_if_absent() -> None:
    earlier, first, second = records(3)

    add = then(step(row_with(archived=position_in(earlier.receipt)), [second, first]), Add)

    assert add.request() == {
        "TableName": "item_count_by_date",
        "Key": ROW_KEY,
        "UpdateExpression": "SET #0.#2 = :1, #0.#3 = :2 ADD #4 :3",
        "ConditionExpression": (
            "attribute_exists(#0) AND (attribute_not_exists(#1) OR #1 < :0)"
            " AND attribute_not_exists(#0.#2) AND attribute_not_exists(#0.#3)"
        ),
        "ExpressionAttributeNames": {
            "#0": "receipts#item_count_by_date",
            "#1": "archived#item_count_by_date",
            "#2": second.receipt,
            "#3": first.receipt,
            "#4": "quantity",
        },
        "ExpressionAttributeValues": {
            ":0": {"S": position_in(first.receipt)},
            ":1": {"N": "10"},
            ":2": {"N": "10"},
            ":3": {"N": "20"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_several_measures__have_one_receipt_and_a_sum_each() -> None:
    two = definitions(aggregation_text('count = "orders"'))
    raws = [insert(order(quantity=quantity), created_at=CREATED_AT) for quantity in (1, 20)]

    request = then(step({}, postings(*raws, defined=two)), Add).request()

    values = request["ExpressionAttributeValues"]
    assert [value["L"] for value in values[":0"]["M"].values()] == [[{"N": "1"}, {"N": "1"}], [{"N": "1"}, {"N": "20"}]]
    assert request["UpdateExpression"].endswith(" ADD #2 :2, #3 :3")
    assert [request["ExpressionAttributeNames"][name] for name in ("#2", "#3")] == ["orders", "quantity"]
    assert (values[":2"], values[":3"]) == ({"N": "2"}, {"N": "21"})


def test_kept__has_a_list_in_the_receipt_and_a_sum_of_its_own() -> None:
    plain, keeps = records(2)
    keeps = replace(keeps, amounts=(Decimal(0),), kept=(Decimal(7),))

    request = then(step({}, of_one_row([plain, keeps])), Add).request()

    assert {"L": [{"L": [{"N": "0"}]}, {"L": [{"N": "7"}]}]} in request["ExpressionAttributeValues"][":0"]["M"].values()
    added = {
        request["ExpressionAttributeNames"][name]: request["ExpressionAttributeValues"][value]
        for name, value in (("#2", ":2"), ("#3", ":3"))
    }
    assert added == {"quantity": {"N": "10"}, "kept#item_count_by_date#quantity": {"N": "7"}}


def test_contributions_that_cancel_out__are_still_recorded() -> None:
    found = [*records(1, quantity=5), *records(1, quantity=-5)]

    add = then(step(row_with(), of_one_row(found)), Add)

    assert len(add.postings) == 2
    assert add.request()["ExpressionAttributeValues"][":3"] == {"N": "0"}


@pytest.mark.parametrize("item", [{}, row_with()], ids=["no row", "a row"])
def test_sum_that_fits_no_number__is_added_record_by_record(item: dict[str, Any]) -> None:
    left = postings(*(insert(order(quantity=quantity)) for quantity in ("1E125", "1E-130", "2E-130")))
    sums = []
    while left:
        add = then(step(item, left), Add)
        sums.append([one.amounts[0] for one in add.postings])
        left = [one for one in left if one not in add.postings]

    assert sums == [[Decimal("1E125")], [Decimal("1E-130"), Decimal("2E-130")]]


def test_sum_of_38_digits__is_exact() -> None:
    quantities = ("9" * 37, "0." + "9" * 37, "-" + "9" * 37, "1E-37")

    add = then(step({}, postings(*(insert(order(quantity=quantity)) for quantity in quantities))), Add)

    assert len(add.postings) == 4
    assert Decimal(add.request()["ExpressionAttributeValues"][":2"]["N"]) == 1


# --- Archive --------------------------------------------------------------------------------------------------------


def fill(item: Any, found: Sequence[Posting]) -> tuple[list[Posting], Archive]:
    """Adds postings one by one until the row is full; those in the row, and the archive that comes then."""
    held: list[Posting] = []
    for posting in found:
        next_ = step(row_with(*held, **item), [posting]).then
        if isinstance(next_, Archive):
            return held, next_
        held.append(posting)
    raise AssertionError("the row is never full")


def test_full_row__moves_its_older_receipts_to_a_page() -> None:
    found = records(4)
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(next_write, "ROW_STEP", 1)
        limits.setattr(next_write, "LEAST_ROOM", 130)  # of three receipts
        archive = then(step(row_with(*found[:3]), [found[3]]), Archive)

    moved = {one.receipt: (one.amounts, ()) for one in found[:3]}
    through = position_in(found[2].receipt)
    put, update = archive.request("ledger", 2_000_000_000)
    assert put == {
        "Put": {
            "TableName": "ledger",
            "Item": {
                "aggregate": {"S": PARTITION},
                "page": {"S": through},
                "after": {"S": ""},
                "receipts": {"B": packed(moved)},
                "expires_at": {"N": "2000000000"},
            },
            "ConditionExpression": "attribute_not_exists(#page)",
            "ExpressionAttributeNames": {"#page": "page"},
        }
    }
    assert update == {
        "Update": {
            "TableName": "item_count_by_date",
            "Key": ROW_KEY,
            "UpdateExpression": "SET #0 = :0, #2 = :1 ADD #3 :4",
            "ConditionExpression": "#0 = :2 AND #1 = :3 AND attribute_not_exists(#2)",
            "ExpressionAttributeNames": {
                "#0": "receipts#item_count_by_date",
                "#1": "generation#item_count_by_date",
                "#2": "archived#item_count_by_date",
                "#3": "quantity",
            },
            "ExpressionAttributeValues": {
                ":0": {"M": {found[3].receipt: {"N": "10"}}},
                ":1": {"S": through},
                ":2": {"M": {one.receipt: {"N": "10"} for one in found[:3]}},
                ":3": {"S": "seen"},
                ":4": {"N": "10"},
            },
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def test_second_archive__asks_that_the_watermark_stands() -> None:
    before = records(1)[0].receipt
    found = records(60, first=1)

    _, archive = fill({"archived": position_in(before)}, found)

    request = archive.request("ledger", 0)[-1]["Update"]
    assert request["ConditionExpression"] == "#0 = :2 AND #1 = :3 AND #2 = :4"
    assert request["ExpressionAttributeValues"][":4"] == {"S": position_in(before)}
    assert archive.pages[0].after == position_in(before)


def test_new_row_that_is_too_small__begins_with_an_archive() -> None:
    found = records(60)

    archive = then(step({}, found), Archive)

    *_, update = archive.request("ledger", 0)
    assert update["Update"]["ConditionExpression"] == "attribute_not_exists(#0)"
    assert update["Update"]["UpdateExpression"] == "SET #0 = :0, #2 = :1, #1 = :2 ADD #3 :3"
    assert update["Update"]["ExpressionAttributeValues"][":2"] == {"S": "new"}
    assert update["Update"]["ExpressionAttributeValues"][":3"] == {"N": "600"}
    assert archive.request("ledger", 0)[0]["Put"]["Item"]["aggregate"]["S"].endswith("#new")
    assert archive.postings == tuple(found)


def test_about_half_of_the_room__stays_used() -> None:
    held, archive = fill({}, records(60))

    assert 18 <= len(held) <= 22
    assert len(held) // 2 - 1 <= len(archive.rest) <= len(held) // 2 + 1
    assert list(archive.rest) == sorted(archive.rest)
    assert min(archive.rest) > max(archive.pages[-1].receipts())


def test_row_in_use__never_outgrows_its_kilobyte() -> None:
    client = FaultyDynamoDB(REFERENCE)
    for posting in records(200):
        found = step(client.row("item_count_by_date", "item123", DAY), [posting]).then
        if isinstance(found, Add):
            client.update_item(**found.request())
        else:
            assert isinstance(found, Archive)
            client.transact_write_items(TransactItems=found.request("ledger", 0))
        assert item_size(client.row("item_count_by_date", "item123", DAY)) <= 1024

    assert client.total("item_count_by_date", "quantity", "item123", DAY) == 2_000
    assert len(client.receipts()) == 200


@pytest.mark.parametrize(
    ("note", "least", "most"), [(0, 18, 22), (500, 6, 10), (700, 26, 34), (2_000, 20, 28)], ids=str
)
def test_users_attributes__leave_the_rest_of_a_kilobyte(note: int, least: int, most: int) -> None:
    item: dict[str, Any] = {"note": {"S": "x" * note}} if note else {}

    held, _ = fill(item, records(60))

    assert least <= len(held) <= most
    assert item_size(row_with(*held, **item)) <= -(-(note + 400) // 1024) * 1024


def test_positions_that_coincide__stay_together() -> None:
    one_position = [insert(created_at=CREATED_AT + 5, event_id="same") for _ in range(60)]
    found = postings(insert(), *one_position, insert(created_at=CREATED_AT + 9))

    archive = then(step({}, found), Archive)

    assert [len(page.receipts()) for page in archive.pages] == [61]
    assert list(archive.rest) == [found[-1].receipt]
    assert archive.pages[-1].key == position_in(found[1].receipt)


def test_batch_of_one_position__goes_to_one_page() -> None:
    found = postings(*(insert(event_id="same") for _ in range(60)))

    archive = then(step({}, found), Archive)

    assert archive.rest == {}
    assert [len(page.receipts()) for page in archive.pages] == [60]


def test_large_batch__goes_to_pages_that_are_cut() -> None:
    found = records(1_000)

    archive = then(step({}, found), Archive)

    *puts, update = archive.request("ledger", 0)
    assert len(puts) == len(archive.pages) == 4
    assert all(len(page.receipts()) <= ledger_pages.MAX_PAGE_RECEIPTS for page in archive.pages)
    assert [page.key for page in archive.pages[:-1]] == [page.after for page in archive.pages[1:]]
    assert update["Update"]["ExpressionAttributeValues"][":1"] == {"S": archive.pages[-1].key}
    assert len(archive.rest) + sum(len(page.receipts()) for page in archive.pages) == 1_000


def test_new_receipts_older_than_the_rows__are_archived_first() -> None:
    older, *found = records(61)
    held, _ = fill({}, found)

    archive = then(step(row_with(*held), [older]), Archive)

    assert older.receipt in archive.pages[0].receipts()
    assert archive.postings == (older,)


def test_sum_that_fits_no_number__is_archived_alone() -> None:
    held, _ = fill({}, records(60))
    large = [*records(1, first=99, quantity="1E125"), *records(1, first=99, quantity="1E-130")]

    archive = then(step(row_with(*held), of_one_row(held, *large)[-2:]), Archive)

    assert [one.amounts for one in archive.postings] == [(Decimal("1E125"),)]


# --- Late -----------------------------------------------------------------------------------------------------------


def test_late_records__have_their_pages_looked_up_first() -> None:
    first, second, *_, last = records(9)

    look = then(step(row_with(archived=position_in(last.receipt)), [second, first]), Look)

    assert look.request("ledger") == {
        "TableName": "ledger",
        "KeyConditionExpression": "#aggregate = :aggregate AND #page BETWEEN :first AND :archived",
        "ExpressionAttributeNames": {"#aggregate": "aggregate", "#page": "page"},
        "ExpressionAttributeValues": {
            ":aggregate": {"S": PARTITION},
            ":first": {"S": position_in(first.receipt)},
            ":archived": {"S": position_in(last.receipt)},
        },
        "ConsistentRead": True,
        "Limit": 2,
    }


def test_late_record__replaces_the_page_of_its_span() -> None:
    before, late, on_page, last = records(4)
    page = page_with(on_page, after=position_in(before.receipt), key=position_in(last.receipt))

    found = step(row_with(archived=page.key), [late], {late.aggregate: [page]})

    put, update = then(found, Late).request("ledger", 2_000_000_000)
    assert put == {
        "Put": {
            "TableName": "ledger",
            "Item": {
                "aggregate": {"S": PARTITION},
                "page": {"S": page.key},
                "after": {"S": page.after},
                "receipts": {"B": packed({one.receipt: (one.amounts, ()) for one in (late, on_page)})},
                "expires_at": {"N": "2000000000"},
            },
            "ConditionExpression": "#after = :after AND #receipts = :receipts",
            "ExpressionAttributeNames": {"#after": "after", "#receipts": "receipts"},
            "ExpressionAttributeValues": {":after": {"S": page.after}, ":receipts": {"B": page.packed}},
        }
    }
    assert update == {
        "Update": {
            "TableName": "item_count_by_date",
            "Key": ROW_KEY,
            "UpdateExpression": "ADD #1 :1, #2 :2",
            "ConditionExpression": "#0 = :0",
            "ExpressionAttributeNames": {
                "#0": "generation#item_count_by_date",
                "#1": "quantity",
                "#2": "late#item_count_by_date",
            },
            "ExpressionAttributeValues": {":0": {"S": "seen"}, ":1": {"N": "10"}, ":2": {"N": "1"}},
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    }


def test_late_record_at_a_pages_last_position__belongs_to_it() -> None:
    first, second, third = records(3)
    pages = [page_with(first), page_with(third, after=position_in(first.receipt))]
    at_the_end = replace(second, receipt=f"{pages[0].key}.1")

    late = then(step(row_with(archived=pages[1].key), [at_the_end], {first.aggregate: pages}), Late)

    assert late.read == (pages[0],)


def test_page_too_large__is_cut_and_the_last_part_keeps_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_pages, "MAX_PAGE_RECEIPTS", 2)
    first, late, last = records(3)
    page = page_with(first, last)

    found = step(row_with(archived=page.key), [late], {late.aggregate: [page]})

    new, replaced, _ = then(found, Late).request("ledger", 0)
    assert new["Put"]["ConditionExpression"] == "attribute_not_exists(#page)"
    assert replaced["Put"]["ConditionExpression"] == "#after = :after AND #receipts = :receipts"
    assert replaced["Put"]["Item"]["page"] == {"S": page.key}
    assert replaced["Put"]["Item"]["after"] == new["Put"]["Item"]["page"] == {"S": position_in(first.receipt)}


def pages_of(found: Sequence[Posting]) -> list[Page]:
    """Pages that follow one another, each with one of these postings, and the one before it in its span."""
    keys = ["", *(position_in(one.receipt) for one in found[1::2])]
    return [page_with(one, after=after, key=key) for one, after, key in zip(found[1::2], keys, keys[1:], strict=False)]


def test_late_records_of_several_pages__are_one_write() -> None:
    found = records(8)
    pages = pages_of(found)
    late = [found[6], found[0], found[2]]

    write = then(step(row_with(archived=pages[-1].key), late, {late[0].aggregate: pages}), Late)

    assert sorted(page.key for page in write.read) == [page.key for page in (pages[0], pages[1], pages[3])]
    assert sorted(one.receipt for one in write.postings) == sorted(one.receipt for one in late)
    *puts, update = write.request("ledger", 0)
    assert len(puts) == 3
    assert update["Update"]["ExpressionAttributeValues"][":1"] == {"N": "30"}
    assert all(len(page.receipts()) == 2 for page in write.pages)


def test_late_records_of_many_pages__are_several_writes() -> None:
    found = records(2 * MOST_LATE_PAGES + 2)
    pages = pages_of(found)
    late = found[::2]

    write = then(step(row_with(archived=pages[-1].key), late, {late[0].aggregate: pages}), Late)

    assert len(write.read) == MOST_LATE_PAGES
    assert write.postings == tuple(late[:-1])


def test_late_sum_that_fits_no_number__is_added_record_by_record() -> None:
    raws = [insert(order(quantity=quantity), created_at=CREATED_AT) for quantity in ("1E125", "1E-130")]
    *late, last = postings(*raws, insert(created_at=CREATED_AT + 1))
    page = page_with(last)

    write = then(step(row_with(archived=page.key), late, {last.aggregate: [page]}), Late)

    assert write.postings == (late[0],)
    assert set(write.pages[0].receipts()) == {late[0].receipt, last.receipt}


def test_page_that_is_not_visible__leaves_its_records_unseen() -> None:
    first, second, third = records(3)
    later_page = page_with(third, after=position_in(second.receipt))
    item = row_with(archived=later_page.key)

    for pages in ([later_page], []):
        found = step(item, [first, second], {first.aggregate: pages})
        assert (found.then, found.unseen) == (None, (first, second))


def test_records_of_visible_pages__are_written_before_the_others() -> None:
    found = records(4)
    pages = pages_of(found)[1:]

    write = then(step(row_with(archived=pages[-1].key), [found[0], found[2]], {found[0].aggregate: pages}), Late)

    assert write.postings == (found[2],)


def test_records_after_the_watermark__come_before_late_ones() -> None:
    late, last, new = records(3)
    item = row_with(archived=position_in(last.receipt))

    assert then(step(item, [late, new]), Add).postings == (new,)
    assert then(step(item, [late]), Look).postings == (late,)


# --- Duplicates -----------------------------------------------------------------------------------------------------


def test_receipts_that_the_row_holds__are_duplicates() -> None:
    first, second, third = records(3)

    found = step(row_with(first, third), [first, second, third])

    assert found.duplicates == (first, third)
    assert found.differing == ()
    assert then(found, Add).postings == (second,)


def test_receipts_that_a_page_holds__are_duplicates() -> None:
    first, second, third = records(3)
    page = page_with(first, third)

    found = step(row_with(archived=page.key), [first, second, third], {first.aggregate: [page]})

    assert found.duplicates == (first, third)
    assert then(found, Late).postings == (second,)


def test_nothing_but_duplicates__needs_no_write() -> None:
    in_row, on_page = records(1, first=9)[0], records(1)[0]
    in_row, on_page = of_one_row([in_row, on_page])
    page = page_with(on_page)

    found = step(row_with(in_row, archived=page.key), [in_row, on_page], {in_row.aggregate: [page]})

    assert found == Step(None, duplicates=(in_row, on_page))


@pytest.mark.parametrize("other", [{"amounts": (Decimal(11),)}, {"kept": (Decimal(1),)}], ids=["amounts", "kept"])
def test_receipts_of_another_amount__are_duplicates_that_differ(other: dict[str, Any]) -> None:
    same, differs, last = records(3)
    left = [same, replace(differs, **other)]
    page = page_with(same, differs, last)

    for found in (
        step(row_with(same, differs), left),
        step(row_with(archived=page.key), left, {same.aggregate: [page]}),
    ):
        assert found == Step(None, duplicates=tuple(left), differing=(left[1],))


def test_amount_spelt_otherwise__does_not_differ() -> None:
    (posting,) = records(1, quantity="1E+3")
    item = row_with(posting)
    item["receipts#item_count_by_date"]["M"][posting.receipt] = {"N": "1000"}  # as DynamoDB returns it

    assert step(item, [posting]).differing == ()


# --- Rows that aggregations share -----------------------------------------------------------------------------------


def shared(count: int, *, first: int = 0) -> list[Posting]:
    """Postings of two aggregations to one row."""
    raws = (insert(created_at=CREATED_AT + first + number) for number in range(count))
    return postings(*raws, defined=SHARED)


def named(found: Sequence[Posting], name: str) -> list[Posting]:
    return [one for one in found if one.aggregate.aggregation.name == name]


def test_aggregations_of_one_row__are_added_in_one_write() -> None:
    found = shared(2)

    request = then(step({}, found), Add).request()

    names = request["ExpressionAttributeNames"]
    assert request["ConditionExpression"] == "attribute_not_exists(#0) AND attribute_not_exists(#2)"
    assert (names["#0"], names["#2"]) == ("receipts#item_count_by_date", "receipts#orders")
    assert request["UpdateExpression"].endswith("ADD #4 :4, #5 :5, #6 :6")
    assert [names[f"#{number}"] for number in (4, 5, 6)] == ["quantity", "orders", "revenue"]


def test_aggregation_new_in_a_row__makes_its_map_beside_others() -> None:
    held, *_ = shared(1)
    found = of_one_row([held, *shared(1, first=1)])[1:]

    request = then(step(row_with(held), found), Add).request()

    assert "attribute_exists(#0) AND" in request["ConditionExpression"]
    assert request["ConditionExpression"].endswith(" AND attribute_not_exists(#3)")
    assert request["ExpressionAttributeNames"]["#3"] == "receipts#orders"


def test_archive__takes_the_receipts_that_use_most_of_the_row() -> None:
    found = shared(40)
    held = [*named(found, "item_count_by_date")[:2], *named(found, "orders")[:15]]
    left = named(found, "item_count_by_date")[20:23]

    archive = then(step(row_with(*held), left), Archive)

    assert (archive.aggregation, archive.postings) == ("orders", tuple(left))
    request = archive.request("ledger", 0)[-1]["Update"]
    assert request["ConditionExpression"].startswith("#0 = :2 AND #1 = :3 AND attribute_not_exists(#2)")
    assert "attribute_exists(#3) AND" in request["ConditionExpression"]
    assert request["UpdateExpression"].endswith(" ADD #8 :8")


def test_archive_of_what_posts_nothing__only_makes_room() -> None:
    found = shared(60)
    held, left = named(found, "orders")[:18], named(found, "item_count_by_date")[40:57]

    archive = then(step(row_with(*held), left), Archive)

    assert (archive.aggregation, archive.rest) == ("orders", {})
    assert archive.postings == tuple(left)


def test_archive_beside_too_much__carries_its_own_only() -> None:
    found = shared(60)

    archive = then(step({}, found), Archive)

    assert archive.aggregation == "orders"  # two numbers a receipt
    assert archive.postings == tuple(named(found, "orders"))
    assert archive.rest == {}


def test_late_of_one_and_new_of_another__are_separate_writes() -> None:
    found = shared(2)
    late, new = named(found, "item_count_by_date")[0], named(found, "orders")[1]
    item = row_with(archived=position_in(found[-1].receipt))

    assert then(step(item, [late, new]), Add).postings == (new,)
    assert then(step({**row_with(new), **item}, [late]), Look).postings == (late,)


# --- Starting values of a backfill ----------------------------------------------------------------------------------


def start(item: Mapping[str, Any], *left: Posting) -> Step:
    return next_start(left[0].aggregate.row, item, left, {}, lambda: "new")


def starting_value(of: Posting) -> Posting:
    return replace(of, receipt="since 2024-07-01T00:00:00Z")


def test_starting_value__is_added_with_its_receipt_where_there_is_none() -> None:
    value = starting_value(records(1)[0])

    assert then(start({}, value), Start).request() == {
        "TableName": "item_count_by_date",
        "Key": ROW_KEY,
        "UpdateExpression": "SET #0 = :0 ADD #1 :1",
        "ConditionExpression": "attribute_not_exists(#0)",
        "ExpressionAttributeNames": {"#0": "backfill#item_count_by_date", "#1": "quantity"},
        "ExpressionAttributeValues": {
            ":0": {"L": [{"S": "since 2024-07-01T00:00:00Z"}, {"L": [{"N": "10"}]}]},
            ":1": {"N": "10"},
        },
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def test_starting_values_of_a_shared_row__are_written_one_by_one() -> None:
    first, second = map(starting_value, shared(1))

    assert then(start({}, first, second), Start).postings == (first,)
    held = {"backfill#item_count_by_date": backfill_value(first.receipt, first.amounts)}
    assert start(held, first, second) == Step(None, duplicates=(first,))
    assert then(start(held, second), Start).postings == (second,)


@pytest.mark.parametrize("other", [{"amounts": (Decimal(11),)}, {"receipt": "stream X"}], ids=["amounts", "cut"])
def test_starting_value_that_is_there_otherwise__differs(other: dict[str, Any]) -> None:
    value = starting_value(records(1)[0])
    held = {"backfill#item_count_by_date": backfill_value(value.receipt, value.amounts)}
    differs = replace(value, **other)

    assert start(held, differs) == Step(None, duplicates=(differs,), differing=(differs,))

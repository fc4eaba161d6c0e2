"""What each record contributes to which totals: the table "Which records count how" of the design, row by row."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregation_worker.aggregations.contributions import Aggregation, contributions
from aggregation_worker.streams.records import StreamViewTypeError
from tests.definition_texts import aggregation, aggregation_text, definitions
from tests.records import CREATED_AT, DAY, insert, modify, order, remove, stream_record, validated

Found = list[tuple[tuple[str, ...], tuple[int, ...]]]

# Several measures at once, in the order of their names: orders (a count), quantity, revenue (a product).
REVENUE = '{ quantity = "quantity", revenue = "quantity * price" }'


def found(defined: Aggregation, raw: Any) -> Found:
    """The contributions of a record whose images can be used and that keeps nothing: group and amounts."""
    changes, unusable = contributions([defined], validated(raw))
    assert unusable == []
    assert not any(change.kept for change in changes)
    return [(change.group, tuple(map(int, change.amounts))) for change in changes]


def kept(defined: Aggregation, raw: Any) -> Found:
    """What a record keeps: group and amounts; it contributes nothing else."""
    changes, unusable = contributions([defined], validated(raw))
    assert unusable == []
    assert not any(any(change.amounts) for change in changes)
    return [(change.group, tuple(map(int, change.kept))) for change in changes]


def problem(defined: Aggregation, raw: Any) -> str:
    """Why the aggregation cannot use an image, of which somebody must be told."""
    _, unusable = contributions([defined], validated(raw))
    ((name, reason),) = [(one.aggregation, one.reason) for one in unusable]
    assert name == defined.name
    return reason


def with_policy(remove_policy: str, where: str | None = None) -> Aggregation:
    more = f'remove = "{remove_policy}"' + (f'\nwhere = "{where}"' if where else "")
    return aggregation(aggregation_text(more))


# --- INSERT and MODIFY ----------------------------------------------------------------------------------------------


def test_insert__adds_the_new_image() -> None:
    assert found(aggregation(), insert(order(quantity=10))) == [(("item123", DAY), (10,))]


def test_modify_in_the_same_group__contributes_the_difference() -> None:
    raw = modify(order(quantity=10), order(quantity=4))

    assert found(aggregation(), raw) == [(("item123", DAY), (-6,))]


@pytest.mark.parametrize(
    ("new", "group"),
    [
        (order(item="item312", quantity=10), ("item312", DAY)),
        (order(date="2024-07-16", quantity=10), ("item123", "2024-07-16")),
    ],
)
def test_modify_to_another_group__has_an_entry_in_each(new: dict[str, Any], group: tuple[str, str]) -> None:
    raw = modify(order(quantity=7), new)

    assert found(aggregation(), raw) == [(("item123", DAY), (-7,)), (group, (10,))]


def test_modify_within_the_truncated_group__is_not_a_move() -> None:
    raw = modify(order(date="2024-07-15T09:00", quantity=1), order(date="2024-07-15T10:00", quantity=3))

    assert found(aggregation(), raw) == [(("item123", DAY), (2,))]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (order(), order(note={"S": "gift"})),
        (order(quantity="10"), order(quantity="10.0")),
        (order(quantity="10"), order(quantity="1E1")),
        (order(date="2024-07-15T09:00"), order(date="2024-07-15T10:00")),
        (order(quantity=0), order(quantity=0, item="item312")),
    ],
)
def test_modify_of_nothing_that_counts__contributes_nothing(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert found(aggregation(), modify(old, new)) == []


def test_insert_of_zero__contributes_nothing() -> None:
    assert found(aggregation(), insert(order(quantity="0.00"))) == []


def test_insert_of_zero_that_is_counted__contributes_the_count() -> None:
    counted = aggregation(aggregation_text('count = "orders"'))

    assert found(counted, insert(order(quantity=0))) == [(("item123", DAY), (1, 0))]


def test_modify_of_a_counted_order__keeps_the_count() -> None:
    counted = aggregation(aggregation_text('count = "orders"'))

    assert found(counted, modify(order(quantity=1), order(quantity=3))) == [(("item123", DAY), (0, 2))]


def test_modify_without_an_old_image__raises() -> None:
    with pytest.raises(StreamViewTypeError, match="NEW_AND_OLD_IMAGES"):
        validated(stream_record("MODIFY", new=order()))


# --- since ---


SINCE = aggregation(aggregation_text('remove = "retract"\nsince = "2024-07-15T09:40:00Z"'))  # = CREATED_AT


@pytest.mark.parametrize(("seconds_later", "counted"), [(-1, False), (0, True), (1, True)])
@pytest.mark.parametrize("make", [lambda at: insert(created_at=at), lambda at: remove(created_at=at)])
def test_since__leaves_out_what_was_created_before(make: Any, seconds_later: int, counted: bool) -> None:
    raw = make(CREATED_AT + seconds_later)

    assert bool(found(SINCE, raw)) is counted
    assert found(with_policy("retract"), raw)


def test_record_from_before_since__is_not_told_of_either() -> None:
    broken = order(item_number={"N": "5"})

    assert found(SINCE, insert(broken, created_at=CREATED_AT - 1)) == []
    assert problem(SINCE, insert(broken, created_at=CREATED_AT))


# --- REMOVE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize(
    ("policy", "if_deleted", "if_expired"),
    [
        ("keep", "keeps", "keeps"),
        ("retract", "retracts", "retracts"),
        ("retract_unless_expired", "retracts", "keeps"),
        ("ignore", "nothing", "nothing"),
    ],
)
def test_remove__does_as_its_policy_says(policy: str, if_deleted: str, if_expired: str, expired: bool) -> None:
    raw = remove(order(quantity=10), expired=expired)

    changes, unusable = contributions([with_policy(policy)], validated(raw))

    does = if_expired if expired else if_deleted
    expected = {"keeps": [((0,), (10,))], "retracts": [((-10,), ())], "nothing": []}[does]
    assert unusable == []
    assert [(change.amounts, change.kept) for change in changes] == expected
    assert {change.group for change in changes} <= {("item123", DAY)}


def test_remove_policy__is_to_keep_by_default() -> None:
    assert kept(aggregation(), remove(order(quantity=10))) == [(("item123", DAY), (10,))]


def test_removed_item_that_was_worth_nothing__keeps_nothing() -> None:
    assert kept(aggregation(), remove(order(quantity=0))) == []
    assert kept(with_policy("keep", where="status == 'paid'"), remove(order())) == []


def test_removed_item__keeps_every_measure() -> None:
    defined = aggregation(aggregation_text('count = "orders"', sum=REVENUE))

    assert kept(defined, remove(order(quantity=3, price={"N": "7"}))) == [(("item123", DAY), (1, 3, 21))]


@pytest.mark.parametrize("policy", ["keep", "retract", "retract_unless_expired"])
def test_remove_without_an_old_image__raises(policy: str) -> None:
    with pytest.raises(StreamViewTypeError, match=r"REMOVE record .* has no OldImage"):
        contributions([with_policy(policy)], validated(stream_record("REMOVE")))


def test_ignored_remove_without_an_old_image__is_accepted() -> None:
    assert found(with_policy("ignore"), stream_record("REMOVE")) == []


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize(
    ("policy", "if_deleted", "if_expired"),
    [
        ("keep", True, True),
        ("retract", False, False),
        ("retract_unless_expired", False, True),
        ("ignore", False, False),
    ],
)
def test_removed_item_that_cannot_be_used__is_told_of_only_if_its_worth_would_be_kept(
    policy: str, if_deleted: bool, if_expired: bool, expired: bool
) -> None:
    changes, unusable = contributions([with_policy(policy)], validated(remove(order(quantity="x"), expired=expired)))

    assert changes == []
    told = ["quantity: not a number"] if (if_expired if expired else if_deleted) else []
    assert [one.reason for one in unusable] == told


# --- where and missing attributes -----------------------------------------------------------------------------------

PAID, OPEN = {"S": "paid"}, {"S": "open"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (insert(order(status=PAID)), [(("item123", DAY), (10,))]),
        (insert(order(status=OPEN)), []),
        (insert(order()), []),
        (modify(order(status=OPEN), order(status=PAID)), [(("item123", DAY), (10,))]),
        (modify(order(status=PAID), order(status=OPEN)), [(("item123", DAY), (-10,))]),
        (modify(order(status=PAID), order(status=PAID, quantity=13)), [(("item123", DAY), (3,))]),
        (modify(order(status=OPEN), order(status=OPEN, quantity=13)), []),
        (modify(order(status=PAID), order(status=OPEN, item="item312")), [(("item123", DAY), (-10,))]),
        (modify(order(status=OPEN), order(status=PAID, item="item312")), [(("item312", DAY), (10,))]),
        (remove(order(status=PAID)), [(("item123", DAY), (-10,))]),
        (remove(order(status=OPEN)), []),
    ],
    ids=lambda value: value["eventName"] if isinstance(value, dict) else None,
)
def test_record_that_enters_or_leaves_where__adds_or_retracts(raw: dict[str, Any], expected: Found) -> None:
    assert found(with_policy("retract", where="status == 'paid'"), raw) == expected


@pytest.mark.parametrize("missing", ["item_number", "order_date", "quantity"])
@pytest.mark.parametrize("absent", [None, {"NULL": True}])
def test_image_that_lacks_an_attribute__contributes_nothing(missing: str, absent: object) -> None:
    lacking = {name: value for name, value in (order() | {missing: absent}).items() if value is not None}

    assert found(aggregation(), insert(lacking)) == []
    assert found(aggregation(), modify(lacking, order())) == [(("item123", DAY), (10,))]
    assert found(aggregation(), modify(order(), lacking)) == [(("item123", DAY), (-10,))]


def test_image_without_one_of_two_measures__adds_to_neither() -> None:
    defined = aggregation(aggregation_text('count = "orders"', sum=REVENUE))

    assert found(defined, insert(order())) == []


def test_where__excludes_images_that_could_not_be_used() -> None:
    defined = with_policy("ignore", where="status == 'paid'")

    assert found(defined, insert(order(status=OPEN, item_number={"N": "5"}))) == []


def test_record_that_enters_a_filter_by_an_attribute_it_lacked() -> None:
    vips = with_policy("retract", where="contains(tags, 'vip')")
    plain, vip = order(), order(tags={"SS": ["vip"]})

    assert found(vips, insert(plain)) == []
    assert found(vips, modify(plain, vip)) == [(("item123", DAY), (10,))]
    assert found(vips, remove(vip)) == [(("item123", DAY), (-10,))]


def test_where_that_cannot_be_evaluated__refuses_the_record() -> None:
    defined = with_policy("ignore", where="abs(status) > `1`")

    assert "cannot be evaluated" in problem(defined, insert(order(status=PAID)))


# --- Measures -------------------------------------------------------------------------------------------------------


def test_measures__are_in_the_order_of_their_names() -> None:
    defined = aggregation(aggregation_text('count = "orders"', sum=REVENUE))

    amounts = found(defined, insert(order(quantity=3, price={"N": "2"})))

    assert [measure.name for measure in defined.measures] == ["orders", "quantity", "revenue"]
    assert amounts == [(("item123", DAY), (1, 3, 6))]


def test_product_over_nested_paths__is_exact() -> None:
    defined = aggregation(aggregation_text(sum="""{ revenue = "quantity * lines[0].price * \\"unit.tax\\"" }"""))
    price = {"L": [{"M": {"price": {"N": "0.1"}}}]}

    changes, _ = contributions(
        [defined], validated(insert({**order(quantity=3, lines=price), "unit.tax": {"N": "1.19"}}))
    )

    assert changes[0].amounts == (Decimal("0.357"),)


def test_product_with_a_number__is_exact() -> None:
    defined = aggregation(aggregation_text(sum='{ gross = "price * 1.19", reversed = "price * -1" }'))

    changes, _ = contributions(
        [defined], validated(insert(order(price={"N": "12345678901234567890123456789012345.1"})))
    )

    assert changes[0].amounts == (
        Decimal("14691357892469135789246913578924690.669"),
        Decimal("-12345678901234567890123456789012345.1"),
    )


def test_product_with_a_number__needs_the_attribute() -> None:
    assert found(aggregation(aggregation_text(sum='{ gross = "price * 1.19" }')), insert()) == []


def test_sum_over_a_list__changes_with_its_lines() -> None:
    defined = aggregation(aggregation_text('count = "n"', sum='{ items = { jmespath = "sum(lines[].quantity)" } }'))
    one, two = (
        order(lines={"L": [{"M": {"quantity": {"N": quantity}}} for quantity in quantities]})
        for quantities in (["2"], ["2", "3"])
    )

    assert found(defined, insert(order())) == []
    assert found(defined, insert(two)) == [(("item123", DAY), (5, 1))]
    assert found(defined, modify(one, two)) == [(("item123", DAY), (3, 0))]
    assert problem(defined, insert(order(lines={"L": [{"M": {"quantity": {"S": "2"}}}]}))) == (
        "items: 'sum(lines[].quantity)' cannot be evaluated on the image (sum() takes no string there)"
    )


def test_sums_with_38_digits__are_not_rounded() -> None:
    digits = "12345678901234567890123456789012345678"

    changes, _ = contributions([aggregation()], validated(modify(order(quantity=1), order(quantity=digits))))

    assert changes[0].amounts == (Decimal(digits[:-1] + "7"),)


@given(st.integers(0, 10**38 - 1), st.integers(0, 10**38 - 1), st.integers(-80, 0))
def test_difference_of_any_numbers__is_exact(old: int, new: int, exponent: int) -> None:
    raw = modify(order(quantity=f"{old}E{exponent}"), order(quantity=f"{new}E{exponent}"))

    changes, refusals = contributions([aggregation()], validated(raw))

    assert refusals == []
    expected = (Fraction(new) - Fraction(old)) * Fraction(10) ** exponent
    assert sum(Fraction(change.amounts[0]) for change in changes) == expected


# --- Groups ---------------------------------------------------------------------------------------------------------


def test_aggregation_without_a_sort_key__groups_by_one_attribute() -> None:
    assert found(aggregation(aggregation_text(sort_key=None)), insert()) == [(("item123",), (10,))]


def test_prefixes__come_before_the_values() -> None:
    key = '{ name = "pk", from = "item_number", prefix = "item#" }'
    date = '{ name = "sk", from = "order_date", truncate = "month", prefix = "month#" }'

    defined = aggregation(aggregation_text(partition_key=key, sort_key=date))

    assert found(defined, insert()) == [(("item#item123", "month#2024-07"), (10,))]


def test_time_zone__decides_the_day() -> None:
    date = '{ name = "order_date", from = "order_date", truncate = "day", timezone = "Europe/Berlin" }'

    defined = aggregation(aggregation_text(sort_key=date))

    assert found(defined, insert(order(date="2024-07-15T23:30:00Z"))) == [(("item123", "2024-07-16"), (10,))]


def test_number_key__has_one_spelling_for_each_value() -> None:
    key = '{ name = "shop", from = "shop", type = "N" }'
    defined = aggregation(aggregation_text(partition_key=key, sort_key=None))

    raw = modify(order(quantity=1, shop={"N": "10"}), order(quantity=3, shop={"N": "1.0E1"}))

    assert found(defined, raw) == [(("10",), (2,))]


def test_total_of_all_items__has_one_row() -> None:
    total = aggregation(aggregation_text(partition_key='{ name = "scope", value = "all" }', sort_key=None))

    assert found(total, modify(order(quantity=1), order(quantity=3, item="item312"))) == [(("all",), (2,))]


@pytest.mark.parametrize(("paid", "group"), [(True, "true"), (False, "false")])
def test_boolean__is_a_group_in_words(paid: bool, group: str) -> None:
    key = '{ name = "paid", from = "paid" }'
    prefixed = '{ name = "paid", from = "paid", prefix = "paid#" }'

    assert found(aggregation(aggregation_text(sort_key=key)), insert(order(paid={"BOOL": paid}))) == [
        (("item123", group), (10,))
    ]
    assert found(aggregation(aggregation_text(sort_key=prefixed)), insert(order(paid={"BOOL": paid}))) == [
        (("item123", f"paid#{group}"), (10,))
    ]


@pytest.mark.parametrize("value", [{"N": "1721037600"}, {"S": "1721037600"}, {"N": "1721037600.5"}])
def test_date_that_is_a_number__is_truncated(value: dict[str, Any]) -> None:
    key = '{ name = "day", from = "created", truncate = "day", epoch = "seconds" }'

    assert found(aggregation(aggregation_text(sort_key=key)), insert(order(created=value))) == [
        (("item123", "2024-07-15"), (10,))
    ]


@pytest.mark.parametrize("item", ["#", "a|b", "\x00\x1f\n", "☃", "🎁", 'a"b', "[]", " ", "item#2024-07-15"])
def test_group_of_any_characters__is_kept_as_it_is(item: str) -> None:
    assert found(aggregation(), insert(order(item=item))) == [((item, DAY), (10,))]


# --- Malformed values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"quantity": {"S": "ten"}}, "quantity: summed over a value of type S where N belongs"),
        ({"quantity": {"S": "10"}}, "quantity: summed over a value of type S where N belongs"),
        ({"quantity": {"B": "AAEC"}}, "quantity: summed over a value of type B where N belongs"),
        ({"quantity": {"NS": ["1"]}}, "quantity: summed over a value of type NS where N belongs"),
        ({"quantity": {"N": "NaN"}}, "quantity: not a number"),
        ({"quantity": {"N": 10}}, "quantity: not a number"),
        ({"quantity": {"N": "1" * 39}}, "quantity: does not fit a DynamoDB number"),
        ({"quantity": "10"}, "quantity: not a DynamoDB attribute value"),
        ({"quantity": 10}, "quantity: not a DynamoDB attribute value"),
        ({"order_date": {"S": ""}}, "order_date: not an ISO 8601 date"),
        ({"order_date": {"S": "15.07.2024"}}, "order_date: not an ISO 8601 date"),
        ({"order_date": {"N": "20240715"}}, "order_date: grouped by a value of type N where S belongs; with epoch a"),
        ({"order_date": {"BOOL": True}}, "order_date: grouped by a value of type BOOL where S belongs"),
        ({"order_date": {"S": "2024-02-30"}}, "order_date: no such date or time of day"),
        ({"order_date": {"S": 20240715}}, "order_date: not a string"),
        ({"item_number": {"S": ""}}, "item_number: an empty string cannot be a key"),
        ({"item_number": {"N": "5"}}, "item_number: grouped by a value of type N where S belongs"),
        ({"item_number": {"B": "AAEC"}}, "item_number: grouped by a value of type B where S belongs"),
        ({"item_number": {"BOOL": "true"}}, "item_number: grouped by a value of type BOOL where S belongs"),
        ({"item_number": {"S": "i" * 2049}}, "item_number: 2049 bytes are too long for key attribute item_number"),
        ({"item_number": {"S": "ü" * 1025}}, "item_number: 2050 bytes are too long"),
        ({"item_number": {"S": "\ud800"}}, "item_number: not a Unicode text"),
    ],
)
def test_malformed_value__is_told_of_with_its_path_and_reason(attributes: dict[str, Any], reason: str) -> None:
    good, bad = order(), {**order(), **attributes}

    for raw in (insert(bad), modify(good, bad), modify(bad, bad)):
        assert problem(aggregation(), raw).startswith(reason)
    assert found(aggregation(), modify(bad, good)) == [(("item123", DAY), (10,))]


@pytest.mark.parametrize(
    ("partition_key", "attributes", "reason"),
    [
        ('{ name = "k", from = "customer.id" }', {"customer": {"S": "x"}}, "the path leads into a value of type S"),
        ('{ name = "k", from = "lines[0]" }', {"lines": {"M": {}}}, "the path leads into a value of type M"),
        ('{ name = "k", from = "shop", type = "N" }', {"shop": {"S": "5"}}, "type S where N belongs"),
        ('{ name = "k", from = "shop", type = "N" }', {"shop": {"N": "x"}}, "shop: not a number"),
        ('{ name = "k", from = "item_number", prefix = "p#" }', {"item_number": {"S": ""}}, "an empty string"),
        (
            '{ name = "k", from = "item_number", prefix = "p#" }',
            {"item_number": {"S": "i" * 2047}},
            "2049 bytes are too long",
        ),
    ],
)
def test_malformed_group__is_told_of(partition_key: str, attributes: dict[str, Any], reason: str) -> None:
    defined = aggregation(aggregation_text(partition_key=partition_key))

    assert reason in problem(defined, insert({**order(), **attributes}))


@pytest.mark.parametrize("length", [1024, 1025])
def test_sort_key__may_have_1024_bytes(length: int) -> None:
    defined = aggregation(aggregation_text(sort_key='{ name = "note", from = "note" }'))
    raw = insert(order(note={"S": "n" * length}))

    if length == 1024:
        assert found(defined, raw) == [(("item123", "n" * 1024), (10,))]
    else:
        assert "1025 bytes are too long for key attribute note (at most 1024)" in problem(defined, raw)


def test_partition_key__may_have_2048_bytes() -> None:
    assert found(aggregation(), insert(order(item="i" * 2048))) == [(("i" * 2048, DAY), (10,))]


@pytest.mark.parametrize(
    "raw",
    [
        insert(order(quantity="1E100", price={"N": "1E100"})),
        insert(order(quantity="1" * 38, price={"N": "1" * 38})),
        insert(order(quantity="1E-100", price={"N": "1E-100"})),
    ],
)
def test_product_that_no_dynamodb_number_holds__cannot_be_used(raw: dict[str, Any]) -> None:
    defined = aggregation(aggregation_text(sum='{ revenue = "quantity * price" }'))

    assert problem(defined, raw) == "revenue: the product does not fit a DynamoDB number (38 digits)"


def test_difference_that_no_dynamodb_number_holds__is_exact_nevertheless() -> None:
    """Both images can be used; it is DynamoDB that refuses what the record contributes."""
    raw = modify(order(quantity="1E-130"), order(quantity="1E125"))

    ((change,), unusable) = contributions([aggregation()], validated(raw))

    assert unusable == []
    assert Fraction(change.amounts[0]) == Fraction("1E125") - Fraction("1E-130")


def test_move_with_a_difference_over_38_digits__has_two_contributions_that_fit() -> None:
    raw = modify(order(quantity="1E-130"), order(quantity="1E125", item="item312"))

    changes, unusable = contributions([aggregation()], validated(raw))

    assert unusable == []
    assert [change.amounts for change in changes] == [(Decimal("-1E-130"),), (Decimal("1E125"),)]


@pytest.mark.parametrize("zeros", ["0E-9999", "0.000", "1." + "0" * 290])
def test_numbers_with_many_zeros__do_not_break_a_product(zeros: str) -> None:
    factors = " * ".join(["price"] * 7)
    defined = aggregation(aggregation_text(sum=f'{{ power = "quantity * {factors}" }}'))

    raw = modify(order(quantity="1E125", price={"N": zeros}), order(quantity="1E125", price={"N": "1"}))

    assert found(defined, raw) == ([] if zeros.startswith("1") else [(("item123", DAY), (10**125,))])


def test_reason__never_holds_the_value() -> None:
    for name, value in {"item_number": "secret" * 1_000, "order_date": "secret", "quantity": "secret"}.items():
        assert "secret" not in problem(aggregation(), insert({**order(), name: {"S": value}}))


# --- Several aggregations -------------------------------------------------------------------------------------------


def test_image_that_one_aggregation_cannot_use__counts_in_the_others() -> None:
    defined = definitions(
        aggregation_text(),
        aggregation_text(name="revenue", table="revenue", sum='{ revenue = "price" }'),
        aggregation_text('count = "orders"', name="orders", table="orders", sum=None, sort_key=None),
    )

    changes, unusable = contributions(defined.aggregations, validated(insert(order(price={"S": "free"}))))

    assert [(change.aggregation.name, change.group) for change in changes] == [
        ("item_count_by_date", ("item123", DAY)),
        ("orders", ("item123",)),
    ]
    assert [(one.aggregation, one.reason) for one in unusable] == [
        ("revenue", "price: summed over a value of type S where N belongs")
    ]


def test_move_in_several_aggregations__has_two_entries_in_each() -> None:
    defined = definitions(aggregation_text(), aggregation_text(name="by_item", table="by_item", sort_key=None))

    changes, _ = contributions(defined.aggregations, validated(modify(order(), order(item="item312"))))

    assert [(change.aggregation.name, change.group[0], int(change.amounts[0])) for change in changes] == [
        ("item_count_by_date", "item123", -10),
        ("item_count_by_date", "item312", 10),
        ("by_item", "item123", -10),
        ("by_item", "item312", 10),
    ]


def test_record_with_one_bad_image__counts_the_other_one() -> None:
    good, bad = order(item="item123"), order(item="item312", quantity="x")
    out, back = contributions([aggregation()], validated(modify(good, bad))), modify(bad, good)

    assert [(change.group, int(change.amounts[0])) for change in out[0]] == [(("item123", DAY), -10)]
    assert [one.reason for one in out[1]] == ["quantity: not a number"]
    assert found(aggregation(), back) == [(("item123", DAY), (10,))]


IMAGES = st.builds(
    order,
    item=st.sampled_from(["a", "b"]),
    quantity=st.integers(-5, 5) | st.just("five"),
    status=st.sampled_from([None, PAID, OPEN]),
)


@pytest.mark.parametrize("policy", ["keep", "retract", "retract_unless_expired"])
@given(images=st.lists(IMAGES, min_size=1, max_size=6), ends=st.booleans(), expired=st.booleans())
def test_history_of_one_item__total_without_what_is_kept_is_its_worth(
    policy: str, images: list[dict[str, Any]], ends: bool, expired: bool
) -> None:
    """At any time, whatever cannot be used on the way, being worth nothing."""
    defined = with_policy(policy, where="status == 'paid'")
    history = [insert(images[0]), *map(modify, images, images[1:])]
    history += [remove(images[-1], expired=expired)] if ends else []
    there: list[dict[str, Any] | None] = [*images, *([None] if ends else [])]
    totals: dict[tuple[str, ...], Decimal] = {}
    for raw, image in zip(history, there, strict=True):
        for change in contributions([defined], validated(raw))[0]:
            of_items = change.amounts[0] - sum(change.kept)
            totals[change.group] = totals.get(change.group, Decimal(0)) + of_items

        usable = image is not None and image["quantity"] != {"N": "five"} and image.get("status") == PAID
        worth = int(image["quantity"]["N"]) if usable and image is not None else 0
        expected = {(image["item_number"]["S"], DAY): worth} if image is not None and worth else {}
        assert {group: total for group, total in totals.items() if total} == expected

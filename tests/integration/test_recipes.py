"""worker/README.md, "Recipes": its definitions on the pipeline on one machine, read with its own functions.

Every figure is compared with a fold of the source's items in plain Python, after a random history of which invocations
lose their answers, so that batches are delivered again and bisected, and all of which comes once more at the end.
"""

import random
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.deployment.settings import MAPPING
from aggregation_worker.local.delivery import Invocation
from aggregation_worker.local.pipeline import deployed_handler, running_pipeline
from tests import sizes

_, _, SECTION = (Path(__file__).parents[2] / "worker/README.md").read_text().partition("## Recipes\n")
SECTION, _, _ = SECTION.partition("\n## ")
SOURCE, *RECIPES = re.findall(r"^```toml\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
(READING,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)

ITEMS = [f"item{number:02}" for number in range(13)]
DAYS = ["2024-06-30", "2024-07-01", "2024-07-02"]
STATES = ["open", "paid", "shipped"]
QUANTITIES = [1, 2, Decimal("2.5"), 7, 40]
UNUSABLE = "many"

Order = dict[str, Any]


def history(chance: random.Random) -> Iterator[Order]:
    """Orders to put, and keys of orders to delete, which have no quantity.

    Some orders are corrected, some move, some cannot be used for a while, and the last ones for ever.
    """
    keys = [
        {"orderid": f"{number:03}", "order_date": DAYS[number % 3]} for number in range(42)
    ]  # each item on each day

    def order(key: Order, quantity: Any, item: str | None = None) -> Order:
        item = item or chance.choice(ITEMS)
        return {**key, "item_number": item, "status": chance.choice(STATES), "quantity": quantity}

    for number, key in enumerate(keys):
        yield order(key, chance.choice(QUANTITIES), ITEMS[number % len(ITEMS)])
    # The smallest and the largest size of an item come and go: deleted, corrected, unusable, moved.
    for size in (-5, 1_000):
        for key in keys[:4]:
            yield order(key, size, ITEMS[0])
        yield keys[0]
        yield order(keys[1], 3, ITEMS[0])
        yield order(keys[2], UNUSABLE, ITEMS[0])
        yield order(keys[3], size, ITEMS[1])
        yield order(keys[3], 2, ITEMS[1])
    for _ in range(40):
        key = chance.choice(keys[3:])
        yield key if chance.random() < 0.3 else order(key, chance.choice([*QUANTITIES, UNUSABLE]))


@dataclass(frozen=True, slots=True)
class Shop:
    """What the tests compare.

    Attributes:
        orders: the source's items, but for those that cannot be used.
        read: the functions of the page.
        invocations: what the mapping made of each call of the function.
    """

    orders: list[Order]
    read: SimpleNamespace
    dynamodb: Any
    invocations: list[Invocation]

    def rows(self, table: str, *names: str) -> dict[Any, Order]:
        """A target table's rows by the values of these key attributes."""
        found = self.dynamodb.Table(table).scan(ConsistentRead=True)["Items"]
        return {tuple(row[name] for name in names): row for row in found}

    def quantities(self, group: Callable[[Order], Any]) -> dict[Any, list[Decimal]]:
        """The quantities of the orders of each group, in rising order."""
        found = defaultdict(list)
        for order in self.orders:
            found[group(order)].append(order["quantity"])
        return {key: sorted(values) for key, values in found.items()}

    def by_item(self) -> dict[str, list[Decimal]]:
        """The quantities of each item; none for one that has no order."""
        return {item: [] for item in ITEMS} | self.quantities(lambda order: order["item_number"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    seed = sizes.chosen(None)
    chance = random.Random(seed)
    file = tmp_path_factory.mktemp("recipes") / "aggregations.toml"
    file.write_text(SOURCE + "".join(RECIPES))
    handler = deployed_handler()
    records: list[Any] = []
    invocations: list[Invocation] = []

    def loses_answers(event: dict[str, Any], context: Any) -> Any:
        records.extend(event["Records"])
        answer = handler(event, context)
        if len(records) == len(event["Records"]) or (len(event["Records"]) > 3 and chance.random() < 0.4):
            raise TimeoutError("the answer was lost")
        return answer

    settings = replace(MAPPING, batch_size=40, maximum_batching_window_seconds=0)
    with running_pipeline(file, handler=loses_answers, settings=settings, on_batch=invocations.append) as pipeline:
        dynamodb = boto3.resource("dynamodb")
        source = dynamodb.Table(pipeline.definitions.source.table)
        for order in history(chance):
            if "quantity" in order:
                source.put_item(Item=order)
            else:
                source.delete_item(Key=order)
        pipeline.mapping.drain(120)
        again = list({record["eventID"]: record for record in records}.values())
        chance.shuffle(again)
        for first in range(0, len(again), 50):
            handler({"Records": again[first : first + 50]}, None)
        orders = [order for order in source.scan(ConsistentRead=True)["Items"] if order["quantity"] != UNUSABLE]
        functions: dict[str, Any] = {}
        exec(compile(READING, "worker/README.md", "exec"), functions)
        yield Shop(orders, SimpleNamespace(**functions), dynamodb, invocations)


def test_history__is_bisected_and_delivered_again(shop: Shop) -> None:
    first, second, *_ = shop.invocations
    numbers = [record.sequence_number for invocation in shop.invocations for record in invocation.records]

    assert first.function_error
    assert second.records == first.records[: len(first.records) // 2]
    assert len(numbers) > len(set(numbers))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: re.findall(r'name = "(\w+)"', recipe)[0])
def test_each_recipe__is_a_definitions_file_with_the_source(recipe: str) -> None:
    assert parse_definitions(SOURCE + recipe).source.table == "Order_by_item"


def test_averages__are_those_of_the_items_that_are_there(shop: Shop) -> None:
    assert {item: shop.read.average_quantity(item) for item in ITEMS} == {
        item: sum(quantities) / Decimal(len(quantities)) if quantities else None
        for item, quantities in shop.by_item().items()
    }


def test_all_time_months_and_days__are_sums_of_the_items(shop: Shop) -> None:
    expected: dict[Any, Decimal] = defaultdict(Decimal)
    for order in shop.orders:
        day = order["order_date"]
        for period in ("all", f"month#{day[:7]}", f"day#{day}"):
            expected[order["item_number"], period] += order["quantity"]

    rows = shop.rows("sold_by_item_and_period", "item_number", "period")

    assert {group: row["quantity"] for group, row in rows.items()} == dict.fromkeys(rows, 0) | expected


def test_range_of_days__is_read_in_one_query(shop: Shop) -> None:
    expected = shop.quantities(lambda order: (order["item_number"], order["order_date"]))

    for item in ITEMS:
        rows = list(shop.read.sold_by_day(item, "2024-07-01", "2024-07-31"))
        found = {row["period"]: row["quantity"] for row in rows}
        assert all(row.keys() == {"period", "quantity"} for row in rows)
        assert found == dict.fromkeys(found, 0) | {
            f"day#{day}": sum(quantities)
            for (one, day), quantities in expected.items()
            if one == item and day >= "2024-07-01"
        }


def test_states__count_each_order_where_it_is_now(shop: Shop) -> None:
    rows = shop.rows("orders_by_state", "state")
    quantities = shop.quantities(lambda order: order["status"])

    assert {state: (row["orders"], row["quantity"]) for (state,), row in rows.items()} == {
        state: (len(quantities.get(state, [])), sum(quantities.get(state, []))) for state in STATES
    }


def test_histogram__gives_smallest_largest_median_and_distinct(shop: Shop) -> None:
    for item, quantities in shop.by_item().items():
        assert list(shop.read.sizes(item)) == [(size, quantities.count(size)) for size in sorted(set(quantities))]
        assert shop.read.distinct_sizes(item) == len(set(quantities))
        if quantities:
            assert next(shop.read.sizes(item))[0] == min(quantities)
            assert next(shop.read.sizes(item, smallest_first=False))[0] == max(quantities)
            assert shop.read.median_size(item) == statistics.median(quantities)


def test_sizes_that_are_gone__have_a_row_of_0(shop: Shop) -> None:
    rows = shop.rows("orders_by_item_and_size", "item_number", "size")

    assert {rows[ITEMS[0], size]["orders"] for size in (-5, 1_000)} == {0}
    assert all("receipts#orders_by_size" in row for row in rows.values())


@pytest.mark.parametrize("day", DAYS)
def test_ten_best_sellers_of_a_day__are_one_query(shop: Shop, day: str) -> None:
    sold = {
        item: sum(quantities)
        for (item, one), quantities in shop.quantities(
            lambda order: (order["item_number"], order["order_date"])
        ).items()
        if one == day
    }

    best = shop.read.best_sellers(day)

    assert [row["quantity"] for row in best] == sorted(sold.values(), reverse=True)[:10]
    assert all(row.keys() == {"item_number", "order_date", "quantity"} for row in best)
    assert all(sold[row["item_number"]] == row["quantity"] for row in best)

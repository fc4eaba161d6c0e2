"""A worker over another worker's totals: orders to days to months, each stage with its own ledger and redelivery."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aggregation_worker.aggregations.definitions import load_definitions, source_of_stream
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.environment import environment_of
from aggregation_worker.local.event_source_mapping import EventSourceMapping
from aggregation_worker.local.local_function import Handler
from aggregation_worker.local.pipeline import DEAD_LETTERS, create_table, deployed_handler, running_pipeline
from tests.definition_texts import MONTHS
from tests.records import order

ITEMS = ["item1", "item2", "item3"]
DAYS = ["2024-06-29", "2024-06-30", "2024-07-01", "2024-07-02"]
MAPPING = replace(deployment.MAPPING, batch_size=25, maximum_batching_window_seconds=0, retry_pause_seconds=0.001)


def losing_answers(chance: random.Random, seen: list[Any]) -> Handler:
    """A worker that loses its first answer and a third of the others, so that batches come again, and are bisected."""
    handler = deployed_handler()

    def handle(event: dict[str, Any], context: Any) -> Any:
        first = not seen
        seen.extend(event["Records"])
        answer = handler(event, context)
        if first or (len(event["Records"]) > 2 and chance.random() < 0.35):
            raise TimeoutError("the answer was lost")
        return answer

    return handle


def delivered_again(handler: Handler, records: list[Any], chance: random.Random) -> None:
    """Everything once more, in another order and cut differently."""
    chance.shuffle(records)
    for first in range(0, len(records), 40):
        assert handler({"Records": records[first : first + 40]}, None) == {"batchItemFailures": []}


def test_sums_of_sums__are_exact_at_both_stages(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    months_file = tmp_path / "months.toml"
    months_file.write_text(MONTHS)
    file = tmp_path / "days.toml"
    file.write_text(SAMPLE_FILE.read_text() + 'remove = "retract"\n')
    orders: dict[str, dict[str, Any]] = {}
    of_orders: list[Any] = []
    with running_pipeline(file, handler=losing_answers(chance, of_orders), settings=MAPPING) as pipeline:
        dynamodb = pipeline.dynamodb
        # As the construct does with a target that another worker reads.
        days = dynamodb.update_table(
            TableName="item_count_by_date",
            StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
        )["TableDescription"]["LatestStreamArn"]
        definitions = load_definitions(months_file, source_of_stream(days))
        for name, table in deployment.target_tables(definitions).items():
            create_table(dynamodb, name, table)
        create_table(dynamodb, "ledger-of-months", deployment.LEDGER)
        of_months = {
            "AGGREGATIONS_FILE": str(months_file),
            "LEDGER_TABLE": "ledger-of-months",
            "SOURCE_STREAM_ARN": days,
        }

        def write(number: int) -> None:
            """Puts, changes, moves or deletes one order. Its date is part of its key."""
            key = f"{number:03}"
            day = DAYS[number % len(DAYS)]
            if key in orders and chance.random() < 0.3:
                gone = orders.pop(key)
                dynamodb.delete_item(
                    TableName="Order_by_item", Key={name: gone[name] for name in ("orderid", "order_date")}
                )
            else:
                orders[key] = order(key, item=chance.choice(ITEMS), quantity=chance.randint(-5, 50), date=day)
                dynamodb.put_item(TableName="Order_by_item", Item=orders[key])

        of_days: list[Any] = []
        handle = losing_answers(chance, of_days)
        with EventSourceMapping(
            pipeline.server.client("dynamodbstreams"),
            pipeline.server.client("s3"),
            days,
            handle,
            MAPPING,
            event_names=deployment.event_names(definitions),
            on_failure_bucket=DEAD_LETTERS,
            function_name="months",
        ) as second:
            for _ in range(3):
                for _ in range(40):
                    write(chance.randrange(30))
                pipeline.mapping.drain(60)
                with environment_of(of_months):
                    second.drain(60)
        delivered_again(deployed_handler(), of_orders, chance)
        with environment_of(of_months):
            delivered_again(deployed_handler(), of_days, chance)

        by_day, by_month = sums(orders, lambda date: date), sums(orders, lambda date: date[:7])
        found_days = totals(dynamodb, "item_count_by_date", "order_date")
        found_months = totals(dynamodb, "item_count_by_month", "month")
    assert found_days == dict.fromkeys(found_days, 0) | by_day
    assert found_months == dict.fromkeys(found_months, 0) | by_month
    assert len(of_orders) > 120  # more than was written: much of it came again
    assert len(of_days) > len(found_days)


def sums(orders: dict[str, dict[str, Any]], period: Callable[[str], str]) -> dict[tuple[str, str], int]:
    """The orders' quantities by item and period."""
    found = Counter[tuple[str, str]]()
    for one in orders.values():
        found[one["item_number"]["S"], period(one["order_date"]["S"])] += int(one["quantity"]["N"])
    return dict(found)


def totals(dynamodb: Any, table: str, period: str) -> dict[tuple[str, str], int]:
    rows = dynamodb.scan(TableName=table, ConsistentRead=True)["Items"]
    return {(row["item_number"]["S"], row[period]["S"]): int(row["quantity"]["N"]) for row in rows}

"""`aggregator demo`: the reference scenario on one machine, with everything that makes totals wrong elsewhere.

Four orders, a correction and its reversal, a move to another item and back, an answer of the function that Lambda never
gets (so that it delivers a whole batch again), and an order that cannot be counted. At the end every total is compared
with the source.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.dead_letters import Notice, ParkedRecord, read_dead_letter
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.delivery import Invocation
from aggregation_worker.local.local_function import Handler
from aggregation_worker.local.pipeline import Pipeline, deployed_handler, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of

_DAY = "2024-07-15"
# Order, item, quantity.
_ORDERS = (("178526", "item123", 10), ("178527", "item123", 30), ("172528", "item312", 10), ("178529", "item312", 30))
_DRAIN_SECONDS = 30

QUIET_FUNCTION = {"POWERTOOLS_LOG_LEVEL": "CRITICAL", "POWERTOOLS_METRICS_DISABLED": "true"}
"""Environment of a function whose log and metrics are not shown."""


class AnswerLostError(Exception):
    """Stands for an invocation that did all its work but whose answer never reached Lambda."""


@dataclass(slots=True)
class LosesFirstAnswer:
    """A handler that works but loses the answer to its first invocation, so that the batch is delivered again."""

    handler: Handler
    lost: bool = False

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        """Calls the handler; see the class."""
        answer = self.handler(event, context)
        if not self.lost:
            self.lost = True
            raise AnswerLostError("the function had committed the batch; its answer was lost")
        return answer


@dataclass(slots=True)
class _Deliveries:
    """What the mapping delivered."""

    invocations: list[Invocation] = field(default_factory=list)

    def records(self) -> int:
        return sum(len(invocation.records) for invocation in self.invocations)

    def distinct(self) -> int:
        return len({record.event["eventID"] for invocation in self.invocations for record in invocation.records})


def run_demo(*, verbose: bool) -> int:
    """Runs the scenario and prints what came of it; returns 0 only if every total matches the source."""
    console = Console(highlight=False)
    started = time.monotonic()
    deliveries = _Deliveries()
    with (
        quiet_mapping(),
        console.status("starting DynamoDB, SQS and S3 on this machine") as status,
        running_pipeline(
            SAMPLE_FILE,
            handler=LosesFirstAnswer(deployed_handler()),
            on_batch=deliveries.invocations.append,
            environment={} if verbose else QUIET_FUNCTION,
        ) as pipeline,
    ):
        for title, step in _STEPS:
            status.update(title)
            step(pipeline)
            pipeline.mapping.drain(_DRAIN_SECONDS)
            console.print(f"[green]✓[/] {title}")
        status.update("comparing every total with the source")
        matches = _print_totals(console, pipeline)
        _print_deliveries(console, deliveries)
        _print_dead_letters(console, pipeline)
    console.print(
        f"{'[green]Every total matches the source' if matches else '[red]A total does not match the source'}[/] "
        f"({time.monotonic() - started:.1f} s)."
    )
    return 0 if matches else 1


@contextmanager
def quiet_mapping() -> Iterator[None]:
    """Keeps the mapping's own log out of the terminal: what it says is shown in the tables."""
    logger = logging.getLogger("aggregation_worker.local")
    before = logger.propagate, logger.level
    logger.propagate, logger.level = False, logging.CRITICAL
    try:
        yield
    finally:
        logger.propagate, logger.level = before


def order(order_id: str, item: str, quantity: dict[str, str]) -> dict[str, Any]:
    """An order of the reference scenario, in DynamoDB's typed JSON."""
    return {
        "orderid": {"S": order_id},
        "order_date": {"S": _DAY},
        "item_number": {"S": item},
        "quantity": quantity,
    }


def _put(pipeline: Pipeline, order_id: str, item: str, quantity: dict[str, str]) -> None:
    pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=order(order_id, item, quantity))


def _put_orders(pipeline: Pipeline) -> None:
    for order_id, item, quantity in _ORDERS:
        _put(pipeline, order_id, item, {"N": str(quantity)})


def _correct_and_move(pipeline: Pipeline) -> None:
    _put(pipeline, "178526", "item123", {"N": "15"})
    _put(pipeline, "178526", "item123", {"N": "10"})
    _put(pipeline, "172528", "item123", {"N": "10"})
    _put(pipeline, "172528", "item312", {"N": "10"})


def _put_malformed(pipeline: Pipeline) -> None:
    _put(pipeline, "178530", "item123", {"S": "ten"})


_STEPS = (
    ("four orders, and the answer to their batch is lost: Lambda delivers all of them again", _put_orders),
    ("an order corrected and corrected back, another moved to the other item and back", _correct_and_move),
    ("an order whose quantity is the text 'ten'", _put_malformed),
)


def _print_totals(console: Console, pipeline: Pipeline) -> bool:
    definitions = pipeline.definitions
    expected = totals_of(definitions.aggregations, scan(pipeline.dynamodb, definitions.source.table))
    table = Table(title="Totals", title_justify="left")
    table.add_column("aggregate")
    for column in ("measure", "total", "from the source", ""):
        table.add_column(column, justify="right" if column else "left")
    matches = True
    for aggregation in definitions.aggregations:
        stored = stored_totals(pipeline.dynamodb, aggregation)
        groups = {group for name, group in expected if name == aggregation.name}
        for group in sorted(stored.keys() | groups):
            for position, measure in enumerate(aggregation.measures):
                total = stored[group][position] if group in stored else None
                source = expected.get((aggregation.name, group), (0,) * len(aggregation.measures))[position]
                same = total == source
                matches &= same
                table.add_row(
                    Text(_aggregate_text(aggregation, group)),
                    Text(measure.name),
                    str(total),
                    str(source),
                    "[green]✓[/]" if same else "[red]✗[/]",
                )
    console.print(table)
    return matches and bool(expected)


def _aggregate_text(aggregation: Aggregation, group: Group) -> str:
    return f"{aggregation.name}: {', '.join(group)}"


def _print_deliveries(console: Console, deliveries: _Deliveries) -> None:
    delivered, distinct = deliveries.records(), deliveries.distinct()
    failed = sum(not invocation.succeeded for invocation in deliveries.invocations)
    console.print(
        f"{distinct} changes were delivered {delivered} times in {len(deliveries.invocations)} invocations, "
        f"{failed} of which failed; [bold]{delivered - distinct} duplicates[/] were skipped."
    )


def _print_dead_letters(console: Console, pipeline: Pipeline) -> None:
    table = Table(title="Waiting in the dead-letter queue", title_justify="left")
    for column in ("order", "sequence number", "why"):
        table.add_column(column, overflow="fold")
    messages = pipeline.sqs.receive_message(QueueUrl=pipeline.queue_url, MaxNumberOfMessages=10, VisibilityTimeout=0)
    for message in messages.get("Messages", []):
        letter = read_dead_letter(message["Body"])
        if isinstance(letter, Notice | ParkedRecord):
            change = letter.record["dynamodb"]
            table.add_row(
                Text(change["Keys"]["orderid"]["S"]), Text(change["SequenceNumber"]), Text("; ".join(letter.reasons))
            )
        else:
            table.add_row("", "", Text(str(letter)))
    console.print(table)

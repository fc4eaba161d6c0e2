"""The reference scenario on one machine, with everything that makes totals wrong elsewhere, twice.

Four orders, an answer of the function that Lambda never gets (so that it delivers a whole batch again, in halves), a
correction and its reversal, a move to another item and back, and an order that cannot be counted. The worker and the
usual handler get the very same deliveries and count into tables of their own; at the end both are compared with the
source.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import boto3

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.batch import BatchResult, RecordOutcome
from aggregation_worker.dead_letters import Notice, ParkedRecord, read_dead_letter
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.consumed import Consumed, units_of
from aggregation_worker.local.delivery import Invocation
from aggregation_worker.local.local_function import Handler
from aggregation_worker.local.pipeline import LEDGER_TABLE, Pipeline, create_table, deployed_handler, running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals, totals_of
from aggregation_worker.local.usual_handler import usual_handler

_DAY = "2024-07-15"
# Order, item, quantity.
_ORDERS = (("178526", "item123", 10), ("178527", "item123", 30), ("172528", "item312", 10), ("178529", "item312", 30))
_DRAIN_SECONDS = 30

QUIET_FUNCTION = {"POWERTOOLS_LOG_LEVEL": "CRITICAL", "POWERTOOLS_METRICS_DISABLED": "true"}
"""Environment of a function whose log and metrics are not shown."""


class AnswerLostError(Exception):
    """Stands for an invocation that did all its work but whose answer never reached Lambda."""


@dataclass(slots=True)
class BothHandlers:
    """Two handlers of the same deliveries. The first answer is lost, when both have done their work.

    Attributes:
        worker: decides the answer.
        usual: what it raises is kept in `failures`; to be set before the first delivery, as its table has to be made.
        lost: that an answer was lost.
    """

    worker: Handler
    usual: Handler = field(init=False)
    failures: list[Exception] = field(default_factory=list)
    lost: bool = False

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        """Calls the handlers; see the class."""
        try:
            self.usual(event, context)
        except Exception as error:
            self.failures.append(error)
        answer = self.worker(event, context)
        if not self.lost:
            self.lost = True
            raise AnswerLostError("the function had committed the batch; its answer was lost")
        return answer


@dataclass(frozen=True, slots=True)
class Cost:
    """Units that a handler's requests consumed; see `consumed`."""

    writes: float
    reads: float

    def dollars(self, records: int) -> float:
        """What a million records would cost at this rate, on demand."""
        dollars = self.writes * deployment.DOLLARS_PER_MILLION_WRITE_UNITS
        dollars += self.reads * deployment.DOLLARS_PER_MILLION_READ_UNITS
        return dollars / records


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of the scenario.

    Attributes:
        source, worker, usual: the amounts of each group, by the source and in the two tables.
        records, deliveries: how many distinct records were delivered how often.
        duplicates: deliveries of which the worker said that their records were counted already.
        worker_cost, usual_cost: of the same deliveries.
        usual_failures: what the usual handler raised.
        letters: the key of the item and the reasons of each dead letter that waits.
    """

    aggregation: Aggregation
    source: Mapping[Group, Amounts]
    worker: Mapping[Group, Amounts]
    usual: Mapping[Group, Amounts]
    records: int
    deliveries: int
    duplicates: int
    worker_cost: Cost
    usual_cost: Cost
    usual_failures: list[Exception]
    letters: list[tuple[str, str]]

    @property
    def groups(self) -> list[Group]:
        """Every group that the source or a table has."""
        return sorted(self.source.keys() | self.worker.keys() | self.usual.keys())

    @property
    def worker_is_right(self) -> bool:
        """Whether every total of the worker is the source's."""
        return bool(self.source) and self.worker == self.source


@dataclass(slots=True)
class Demo:
    """The scenario on a running pipeline."""

    pipeline: Pipeline
    handlers: BothHandlers
    usual_table: str
    consumed: Consumed
    invocations: list[Invocation]
    outcomes: Counter[RecordOutcome]

    def take(self, step: Callable[[Pipeline], None]) -> None:
        """Takes one of `STEPS`, and waits until all that comes of it is delivered."""
        step(self.pipeline)
        self.pipeline.mapping.drain(_DRAIN_SECONDS)

    def comparison(self) -> Comparison:
        """What came of the steps so far."""
        dynamodb, definitions = self.pipeline.dynamodb, self.pipeline.definitions
        (aggregation,) = definitions.aggregations
        expected = totals_of(definitions.aggregations, scan(dynamodb, definitions.source.table))
        delivered = [record.event["eventID"] for invocation in self.invocations for record in invocation.records]
        messages = self.pipeline.sqs.receive_message(
            QueueUrl=self.pipeline.queue_url, MaxNumberOfMessages=10, VisibilityTimeout=0
        )
        return Comparison(
            aggregation,
            source={group: amounts for (_, group), amounts in expected.items()},
            worker=stored_totals(dynamodb, aggregation),
            usual=stored_totals(dynamodb, replace(aggregation, table=self.usual_table)),
            records=len(set(delivered)),
            deliveries=len(delivered),
            duplicates=self.outcomes[RecordOutcome.DUPLICATE],
            worker_cost=self._cost(aggregation.table, LEDGER_TABLE),
            usual_cost=self._cost(self.usual_table),
            usual_failures=self.handlers.failures,
            letters=[_letter(message["Body"]) for message in messages.get("Messages", [])],
        )

    def _cost(self, *tables: str) -> Cost:
        return Cost(units_of(self.consumed.writes, tables), units_of(self.consumed.reads, tables))


@contextmanager
def running_demo(*, verbose: bool) -> Iterator[Demo]:
    """Starts a pipeline with both handlers; with `verbose`, the worker's log and metrics are shown."""
    consumed, invocations, outcomes = Consumed(), list[Invocation](), Counter[RecordOutcome]()

    def tell(_: str, result: BatchResult) -> None:
        outcomes.update(result.outcomes)

    handlers = BothHandlers(deployed_handler(tell))
    with (
        quiet_mapping(),
        running_pipeline(
            SAMPLE_FILE,
            handler=handlers,
            # What a step puts is there when the mapping polls: no window would bring more.
            settings=replace(deployment.MAPPING, maximum_batching_window_seconds=0),
            on_batch=invocations.append,
            environment={} if verbose else QUIET_FUNCTION,
        ) as pipeline,
    ):
        # Both handlers make their clients as a function does, of the default session.
        boto3.DEFAULT_SESSION = boto3.Session()
        consumed.watch(boto3.DEFAULT_SESSION)
        ((table, definition),) = deployment.target_tables(pipeline.definitions).items()
        usual_table = f"{table}_of_the_usual_handler"
        create_table(pipeline.dynamodb, usual_table, definition)
        handlers.usual = usual_handler(boto3.client("dynamodb"), usual_table)
        yield Demo(pipeline, handlers, usual_table, consumed, invocations, outcomes)


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


def _letter(body: str) -> tuple[str, str]:
    letter = read_dead_letter(body)
    if isinstance(letter, Notice | ParkedRecord):
        return letter.record["dynamodb"]["Keys"]["orderid"]["S"], "; ".join(letter.reasons)
    return "", str(letter)


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


STEPS = (
    ("four orders; the answer to their batch is lost, so they are delivered again", _put_orders),
    ("an order corrected and corrected back, another moved to item123 and back", _correct_and_move),
    ("an order whose quantity is the text 'ten'", _put_malformed),
)
"""What is done to the source table, and how."""

"""The worker in a hostile world: a source, invocations that are interleaved call by call, and everything that can fail.

`World` runs the worker's real code (`batch.process` with its committer and dead-letter queue) over DynamoDB, a
queue and a bucket in memory. What happens next is always the caller's decision: which call is carried out, and what
becomes of it (`FATES`). `drain` then lets everything come to an end, as AWS would, and `check_totals` says whether the
promise was kept. At every moment the world itself watches that no total differs from the sum of its receipts and that
nothing is reported as done that is not.

A row that somebody deletes begins anew, in another generation: from then on its total is that of the records that have
been counted since, and the receipts that went with it count no more.
"""

import json
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache, partial
from io import BytesIO
from itertools import count
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
)

from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.batch import BatchResult, RecordOutcome, process
from aggregation_worker.dead_letters import (
    ON_FAILURE_PREFIX,
    DeadLetterQueue,
    FailedBatchReference,
    Notice,
    ParkedRecord,
    RecordReference,
    read_dead_letter,
    read_failed_batch,
)
from aggregation_worker.ledger.commit import Committer, Deadline
from aggregation_worker.ledger.next_write import LEAST_ROOM, ROW_STEP
from aggregation_worker.ledger.pages import MAX_PAGE_RECEIPTS, page_of
from aggregation_worker.ledger.receipts import (
    RowReceipts,
    first_position,
    late_attribute,
    partition_of,
    position_in,
    read_receipt,
    receipt_name,
    row_receipts,
)
from aggregation_worker.operations.letters import LetterReader
from aggregation_worker.operations.replaying import Replay, SendError
from aggregation_worker.operations.selection import Selection
from aggregation_worker.streams.records import read_record
from tests.held_letters import HeldInOrder
from tests.model.in_memory_dynamodb import (
    Dialect,
    InMemoryDynamoDB,
    Item,
    Paginator,
    Shards,
    Table,
    cancelled,
    client_error,
)
from tests.model.orders import (
    DEFINITIONS,
    EXACT,
    RULES,
    SOURCE_TABLE,
    TABLES,
    Amounts,
    Change,
    Expected,
    Order,
    Rule,
    Total,
    add_up,
    expected,
    fits,
    whole,
)
from tests.model.scheduler import AnswerWait, Call, Executor, KilledError, Process, Scheduler, Task, wait
from tests.records import ORIGIN, STREAM_ARN

LEDGER = "ledger"
LEDGER_KEYS = (("aggregate", "S"), ("page", "S"))
BUCKET = "dead-letters"
# 2100-01-01: no receipt is too old to be trusted, whatever this machine's clock says.
EPOCH = 4_102_444_800
RETENTION_DAYS = 60
# Seconds before an invocation's end, as the handler keeps them.
STOP_SENDING, STOP_WAITING = 5.0, 1.0

Raw = dict[str, Any]
_PARSED = parse_definitions(DEFINITIONS)


class BrokenPromiseError(AssertionError):
    """What must never happen, happened."""


def promise(kept: bool, what: str) -> None:
    """Raises if it is not kept."""
    if not kept:
        raise BrokenPromiseError(what)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much goes into a row, a page and a message: with small ones, few records need many calls.

    Attributes:
        receipts_in_a_row: about so many; `None`: as many as there is room for.
        one_position_a_second: records of one second have the same position; for one shard only.
    """

    receipts_in_a_row: int | None = None
    receipts_on_a_page: int = MAX_PAGE_RECEIPTS
    message_bytes: int = 262_144
    one_position_a_second: bool = False

    def patches(self) -> dict[str, Any]:
        """What is to be patched, and what by."""
        small = self.receipts_in_a_row
        found: dict[str, Any] = {
            "aggregation_worker.ledger.next_write.ROW_STEP": ROW_STEP if small is None else 1,
            "aggregation_worker.ledger.next_write.LEAST_ROOM": LEAST_ROOM if small is None else _RECEIPT_BYTES * small,
            "aggregation_worker.ledger.pages.MAX_PAGE_RECEIPTS": self.receipts_on_a_page,
            "aggregation_worker.dead_letters.MAX_MESSAGE_BYTES": self.message_bytes,
        }
        if self.one_position_a_second:
            found["aggregation_worker.ledger.receipts.position_of"] = lambda record: first_position(record.created_at)
        return found


# Of most of them; those of two measures or many digits take more.
_RECEIPT_BYTES = 43


@dataclass(slots=True, eq=False)
class Run:
    """An invocation with a batch of the stream, or a replay of dead letters, and how far it has come.

    Attributes:
        records: the batch; of a replay, none.
        seconds: how long an invocation may take.
        time: seconds since it began, by its own clock.
        result: what the invocation came to; `None` while it runs, if it raised or was killed, and of a replay.
        error: what ended it.
    """

    process: Process
    seconds: float
    records: Sequence[Raw] = ()
    time: float = 0.0
    result: BatchResult | None = None
    error: Exception | None = None
    has_ended: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it has ended in any way."""
        return self.has_ended or not self.process.alive

    def sleep(self, seconds: float) -> None:
        """A pause, by its clock."""
        self.time += seconds

    def deadline(self) -> Deadline:
        """The deadline of an invocation that begins now."""
        end = self.time + self.seconds
        return Deadline(lambda: end - self.time, STOP_SENDING, STOP_WAITING)


@lru_cache(maxsize=4096)
def _partition(total: Total, generation: str) -> str:
    return partition_of(*total, generation)


@dataclass(frozen=True, slots=True)
class _Held:
    """The receipts in one item: a page, or a row's of one aggregation; and the item itself."""

    item: Item
    receipts: Mapping[str, Amounts]
    sum: tuple[Decimal, ...]
    key: str = ""
    after: str = ""

    @classmethod
    def of_page(cls, item: Item) -> "_Held":
        """Reads a page."""
        page = page_of(item)
        receipts = {name: whole(*receipt) for name, receipt in page.receipts().items()}
        return cls(item, receipts, _sum(receipts.values()), page.key, page.after)

    @classmethod
    def in_row(cls, item: Item, name: str) -> "_Held":
        """Reads what a row holds of an aggregation."""
        values = row_receipts(item, name).values or {}
        receipts = {receipt: whole(*read_receipt(value)) for receipt, value in values.items()}
        return cls(item, receipts, _sum(receipts.values()))


def _sum(all_amounts: Iterable[Amounts]) -> Amounts:
    return next(iter(add_up((("", ()), amounts) for amounts in all_amounts).values()), ())


class Client:
    """A client of one process, each of whose calls is a stop of the scheduler."""

    def __init__(self, process: Process, calls: Mapping[str, Callable[..., Any]]) -> None:
        self._process = process
        self._calls = calls

    def get_paginator(self, operation: str) -> Paginator:
        """Boto3's paginator."""
        return Paginator(getattr(self, operation))

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        service = self._calls[operation]
        return lambda **request: self._process.call(operation, partial(service, **request), request)


class World:
    """Source, tables, queue, bucket and the invocations under way.

    Args:
        dialect: DynamoDB's.
        limits: how much goes into a transaction, an action and a message; see `Limits`.
        shards: of the source's stream; their sequence numbers overlap.

    Attributes:
        time: seconds since the world began, by the source's clock.
        expected: what must become of each record, by event id.
        unacknowledged: the records that Lambda still has to deliver, by event id.
        runs: the invocations and replays that are not over.
        network: requests on their way that nobody waits for any more.
        messages, bucket: what is in the dead-letter queue and its bucket, by message id and key.
        poisoned: the totals that were turned into texts, by table, key and measure, each with what stood there.
        expired: pages that have expired, by partition, the oldest first.
        gone: the receipts that went with a deleted row, by its totals.
        counts: how often what happened: fates, outcomes, ends of runs.
    """

    def __init__(self, dialect: Dialect = Dialect.AWS, limits: Limits | None = None, *, shards: int = 2) -> None:
        self.scheduler = Scheduler()
        self.time = 0
        self.database = InMemoryDynamoDB(dialect)
        for name, keys in TABLES.items():
            self.database.create(name, *keys)
        self.database.create(LEDGER, *LEDGER_KEYS)
        self.stream = Shards(STREAM_ARN, lambda: EPOCH + self.time, [10**20] * shards)
        self.database.create(SOURCE_TABLE, ("orderid", "S"), shards=self.stream)
        self.orders: dict[str, Order] = {}
        self.expected: dict[str, Expected] = {}
        self.unacknowledged: dict[str, Raw] = {}
        self.runs: list[Run] = []
        self.network: list[Callable[[], Any]] = []
        self.messages: dict[str, str] = {}
        self.bucket: dict[str, bytes] = {}
        self.poisoned: dict[tuple[str, tuple[Any, ...], str], Any] = {}
        self.counts: dict[str, int] = {}
        self.expired: dict[str, list[_Held]] = {}
        self.gone: dict[Total, dict[str, Amounts]] = {}
        self._generations = count()
        self._message_ids = (f"message-{number}" for number in count())
        self._held: dict[tuple[Any, ...], _Held] = {}
        self._pages_of: tuple[int, dict[str, list[_Held]]] = (-1, {})
        self._nobodys: set[str] = set()
        self._earlier: list[dict[str, Table]] = []
        self._unseen: dict[str, dict[tuple[Any, ...], Item | None]] = {}
        self._writes_checked = 0
        self._ever_parked: set[str] = set()
        self._ever_told: set[tuple[str, str]] = set()
        self._patches = ExitStack()
        self.limits = limits = limits or Limits()
        self._patches.enter_context(patch("aggregation_worker.ledger.commit.wait", wait))
        for name, value in limits.patches().items():
            self._patches.enter_context(patch(name, value))

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every thread."""
        for run in self.runs:
            run.process.kill()
        self._patches.close()

    @property
    def history(self) -> list[Raw]:
        """Every record of the stream, in the order of the changes."""
        return self.stream.records

    # --- The source -----------------------------------------------------------------------------------------------

    def put(self, orderid: str, order: Order) -> None:
        """Writes an order, new or in place of the one that was there."""
        self.database.put_item(TableName=SOURCE_TABLE, Item=order.item_of(orderid))
        self._changed(Change(self.orders.get(orderid), order))
        self.orders[orderid] = order

    def delete(self, orderid: str, *, expired: bool = False) -> None:
        """Deletes an order, or lets Time to Live do it."""
        key = {"orderid": {"S": orderid}}
        old = self.orders.pop(orderid, None)
        if expired:
            self.database.expire(SOURCE_TABLE, key)
        else:
            self.database.delete_item(TableName=SOURCE_TABLE, Key=key)
        self._changed(Change(old, None, expired))

    def _changed(self, change: Change) -> None:
        if change.old == change.new:  # a write that changes nothing leaves no record
            return
        record = self.history[-1]
        self.expected[record["eventID"]] = expected(change)
        self.unacknowledged[record["eventID"]] = record

    # --- Invocations and replays ----------------------------------------------------------------------------------

    def deliver(self, records: Sequence[Raw], *, seconds: float = 60.0) -> Run:
        """Begins an invocation with these records; it stops before its first call."""
        run = Run(Process(self.scheduler), seconds, tuple(records))

        def invoke() -> None:
            run.result = self._process(run, run.records)

        return self._begin(run, invoke)

    def replay(self, letters: Sequence[str], *, seconds: float = 60.0) -> Run:
        """Begins a replay of these messages, as the operator's command does it; others may replay them, too."""
        run = Run(Process(self.scheduler), seconds)
        chosen = [(letter, self.messages[letter]) for letter in dict.fromkeys(letters)]
        deleting = Client(run.process, {"delete_message": self.delete_message})
        held = HeldInOrder(dict(chosen), lambda letter: deleting.delete_message(letter=letter))
        resources: Any = SimpleNamespace(
            definitions=_PARSED,
            bucket=BUCKET,
            s3=self,
            dynamodb=Client(run.process, {"get_item": self.database.get_item}),
            client=lambda _: None,
        )
        read = LetterReader(resources, ORIGIN)

        def send(records: list[Any]) -> list[RecordOutcome]:
            try:
                result = self._process(run, records)
            except Exception as error:
                raise SendError(str(error), type(error).__name__) from error
            return self._checked(records, result)

        return self._begin(run, lambda: Replay(resources, held, read, Selection(), send, sleep=run.sleep).run())

    def _begin(self, run: Run, body: Callable[[], Any]) -> Run:
        def to_the_end() -> None:
            try:
                body()
            except Exception as error:  # as Lambda, or a terminal, does with it
                run.error = error
            run.has_ended = True

        self.runs.append(run)
        run.process.start(to_the_end)
        self._settle()
        return run

    def _process(self, run: Run, records: Sequence[Raw]) -> BatchResult:
        """The worker's own code, with clients whose calls are stops."""
        committer = Committer(
            Client(  # type: ignore[arg-type]  # it has the methods that are called
                run.process,
                {
                    "update_item": self._update_item,
                    "transact_write_items": self._transact_write_items,
                    "batch_get_item": self.database.batch_get_item,
                    "query": self.database.query,
                },
            ),
            LEDGER,
            RETENTION_DAYS,
            Executor(run.process),
            clock=lambda: run.time,
            sleep=run.sleep,
            now=lambda: EPOCH + run.time,
            jitter=lambda: 0.5,
            new_generation=lambda: f"g{next(self._generations)}",
        )
        queue = DeadLetterQueue(
            "queue",
            BUCKET,
            sqs=lambda: Client(run.process, {"send_message_batch": self.send_message_batch}),  # type: ignore[arg-type,return-value]  # it has the methods that are called
            s3=lambda: Client(run.process, {"put_object": self.put_object}),  # type: ignore[arg-type,return-value]  # it has the methods that are called
            now=lambda: datetime.fromtimestamp(EPOCH + run.time, UTC),
        )
        return process(records, _PARSED, committer, queue, run.deadline())

    def calls(self) -> list[Task]:
        """Every call that can be carried out next, over all invocations."""
        return self.scheduler.waiting_calls()

    def step(self, task: Task, fate: str = "carried_out", choice: int = 0) -> None:
        """Decides what becomes of one call (`FATES`); `choice` decides what the fate leaves open."""

        def decide(call: Call) -> Any:
            try:
                return FATES[fate](self, call, choice)
            except KilledError:
                task.process.alive = False
                raise

        self._count(fate)
        task.resume(decide)
        if not task.process.alive:
            task.process.kill()
        self._settle()

    def let_time_pass(self, task: Task) -> None:
        """An invocation that waits for answers waits for as long as it will: its pause, or its time, is over."""
        assert isinstance(task.point, AnswerWait)
        run = next(run for run in self.runs if run.process is task.process)
        run.time += task.point.timeout
        task.resume()
        self._settle()

    def kill(self, run: Run, *, on_their_way: Callable[[int], bool] = lambda _: False) -> None:
        """Ends a process at once. Of its requests, some are on their way and arrive later (`arrive`)."""
        calls = [task.point for task in run.process.tasks() if isinstance(task.point, Call)]
        self.network.extend(call.perform for index, call in enumerate(calls) if on_their_way(index))
        run.process.kill()
        self._settle()

    def arrive(self, index: int) -> None:
        """A request that nobody waits for any more reaches its service."""
        with suppress(ClientError):
            self.network.pop(index)()
        self.check_receipts()

    def finish(self, run: Run) -> None:
        """Carries out all calls of a process until it is over."""
        while not run.is_over:
            tasks = run.process.tasks()
            call = next((task for task in tasks if isinstance(task.point, Call)), None)
            if call is None:
                self.let_time_pass(tasks[0])
            else:
                self.step(call)

    def _settle(self) -> None:
        """After every step: what the world watches, and what is made of invocations that are over."""
        self.check_receipts()
        for run in [run for run in self.runs if run.is_over]:
            self.runs.remove(run)
            # Requests that it no longer waits for may still arrive.
            self.network.extend(task.point.perform for task in run.process.tasks() if isinstance(task.point, Call))
            run.process.kill()
            if isinstance(run.error, AssertionError):
                raise run.error
            self._count("ended" if run.has_ended and run.error is None else "failed" if run.error else "killed")
            if run.result is not None:
                self._acknowledge(run.records, self._checked(run.records, run.result))

    def _checked(self, records: Sequence[Raw], result: BatchResult) -> list[RecordOutcome]:
        """The outcomes, once it is sure that what is reported as done is done."""
        for index, (record, outcome) in enumerate(zip(records, result.outcomes, strict=True)):
            self._count(outcome)
            if outcome is not RecordOutcome.RETRIED:
                self._check_done(record, outcome, result.reasons.get(index, ()))
        return list(result.outcomes)

    def _acknowledge(self, records: Sequence[Raw], outcomes: Sequence[RecordOutcome]) -> None:
        """As Lambda does it: everything from the first record on that is not done comes again."""
        retried = [index for index, outcome in enumerate(outcomes) if outcome is RecordOutcome.RETRIED]
        for record in records[: retried[0] if retried else None]:
            self.unacknowledged.pop(record["eventID"], None)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    # --- The queue and the bucket ---------------------------------------------------------------------------------

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[Mapping[str, str]]) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """Messages come into the queue."""
        for entry in Entries:
            self.messages[next(self._message_ids)] = entry["MessageBody"]
            self._ever_parked.update(record["eventID"] for record in self._records_of(entry["MessageBody"]))
            self._ever_told |= self._told_in(entry["MessageBody"])
        return {"Successful": [{"Id": entry["Id"]} for entry in Entries], "Failed": []}

    def put_object(self, *, Bucket: str, Key: str, Body: bytes, ContentType: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """An object goes into the bucket."""
        self.bucket[Key] = Body
        return {}

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """An object is read."""
        return {"Body": BytesIO(self.bucket[Key])}

    def give_up(self, records: Sequence[Raw]) -> None:
        """Lambda gives up on a batch: its document is written and the queue told; the records come no more."""
        key = f"{ON_FAILURE_PREFIX}mapping/shard/2026/09/17/{len(self.bucket)}"
        numbers = [record["dynamodb"]["SequenceNumber"] for record in records]
        document = {
            "requestContext": {"condition": "RetryAttemptsExhausted", "approximateInvokeCount": 31},
            "DDBStreamBatchInfo": {
                "shardId": "shard",
                "startSequenceNumber": numbers[0],
                "endSequenceNumber": numbers[-1],
                "batchSize": len(records),
                "streamArn": STREAM_ARN,
            },
            "payload": json.dumps({"Records": [*records]}),
        }
        self.bucket[key] = json.dumps(document).encode()
        notice = {"s3": {"bucket": {"name": BUCKET}, "object": {"key": urllib.parse.quote_plus(key)}}}
        self.messages[next(self._message_ids)] = json.dumps({"Records": [notice]})
        for record in records:
            self.unacknowledged.pop(record["eventID"], None)

    def delete_message(self, *, letter: str) -> dict[str, Any]:
        """A message leaves the queue."""
        self.messages.pop(letter, None)
        return {}

    def _told_in(self, body: str) -> set[tuple[str, str]]:
        """The record that a notice tells of, by its event id, and the aggregation."""
        match read_dead_letter(body):
            case Notice(record, _, aggregation):
                return {(record["eventID"], aggregation)}
            case RecordReference(content, _, str(aggregation)):
                return {(json.loads(self.bucket[content.key])["eventID"], aggregation)}
        return set()

    def _records_of(self, body: str) -> list[Raw]:
        match read_dead_letter(body):
            case ParkedRecord(record):
                return [record]
            case Notice() | RecordReference(aggregation=str()):
                return []
            case RecordReference(content):
                return [json.loads(self.bucket[content.key])]
            case FailedBatchReference(document):
                return list(read_failed_batch(self.bucket[document.key].decode()).records or ())
            case other:
                raise AssertionError(f"not written by this world: {other}")

    # --- The tables -----------------------------------------------------------------------------------------------

    def _update_item(self, **request: Any) -> dict[str, Any]:
        answer = self.database.update_item(**request)
        self._count("add")
        return answer

    def _transact_write_items(self, **request: Any) -> dict[str, Any]:
        """Carries it out, and remembers how its pages were: a query may see some of them so for a moment yet."""
        *puts, update = request["TransactItems"]
        keys = [tuple(put["Put"]["Item"][name]["S"] for name, _ in LEDGER_KEYS) for put in puts]
        before = {key: self.database.tables[LEDGER].items.get(key) for key in keys}
        answer = self.database.transact_write_items(**request)
        self._unseen[keys[0][0]] = before
        names = update["Update"]["ExpressionAttributeNames"].values()
        self._count("late" if any(name.startswith(late_attribute("")) for name in names) else "archive")
        return answer

    def read_earlier(self, choice: int, request: Mapping[str, Any]) -> Any:
        """BatchGetItem as it may answer: each row as it is, or as it was a few writes ago."""
        past = InMemoryDynamoDB(self.database.dialect)
        past.tables = dict(self.database.tables)
        for name, wanted in request["RequestItems"].items():
            table = self.database.tables[name]
            past.create(name, *table.keys).items = dict(table.items)
            for index, key in enumerate(wanted["Keys"]):
                at = (choice >> 2 * (index % 8)) % 4
                if at < len(self._earlier):
                    group = tuple(key[attribute]["S"] for attribute, _ in table.keys)
                    found = self._earlier[at][name].items.get(group)
                    past.tables[name].items.pop(group, None)
                    past.tables[name].items |= {} if found is None else {group: found}
        return past.batch_get_item(**request)

    def read_half(self, choice: int, request: Mapping[str, Any]) -> Any:
        """A query that meets a transaction half done: some of its pages are as they were before."""
        partition = request["ExpressionAttributeValues"][":aggregate"]["S"]
        past = InMemoryDynamoDB(self.database.dialect)
        items = past.create(LEDGER, *LEDGER_KEYS).items = dict(self.database.tables[LEDGER].items)
        for index, (key, before) in enumerate(self._unseen.get(partition, {}).items()):
            if key in items and (choice >> index % 16) & 1:
                del items[key]
                items |= {} if before is None else {key: before}
        return past.query(**request)

    def expire_page(self, choice: int) -> None:
        """Time to Live deletes an aggregate's oldest page."""
        pages = self._pages()
        if not pages:
            return
        partition, found = sorted(pages.items())[choice % len(pages)]
        self.expired.setdefault(partition, []).append(found[0])
        self._unseen.pop(partition, None)
        key = {name: {"S": text} for (name, _), text in zip(LEDGER_KEYS, (partition, found[0].key), strict=True)}
        self.database.delete_item(TableName=LEDGER, Key=key)
        self._count("page expired")
        self.check_receipts()

    def delete_row(self, choice: int) -> None:
        """Somebody deletes a row: its totals begin anew."""
        rows = [(name, key) for name in TABLES for key in sorted(self.database.tables[name].items)]
        if not rows:
            return
        table, key = rows[choice % len(rows)]
        for rule in RULES:
            if rule.table == table and key[0].startswith(rule.prefix):
                total = (rule.name, key)
                self.gone.setdefault(total, {}).update(self._receipts_of(total))
                self._nobodys.add(_partition(total, self._seen(total).generation))
        self.poisoned = {place: amount for place, amount in self.poisoned.items() if place[:2] != (table, key)}
        names = (name for name, _ in TABLES[table])
        self.database.delete_item(
            TableName=table, Key={name: {"S": text} for name, text in zip(names, key, strict=True)}
        )
        self._count("row deleted")
        self.check_receipts()

    # --- Rows that cannot be added to -----------------------------------------------------------------------------

    def poison(self, rule_index: int, row_index: int) -> None:
        """Turns one total into a text, by hand: nothing can be added to it any more."""
        rule = RULES[rule_index % len(RULES)]
        measure = rule.numbers[0]
        rows = [(key, row) for key, row in self.database.tables[rule.table].items.items() if measure in row]
        if rows:
            key, row = rows[row_index % len(rows)]
            self.poisoned.setdefault((rule.table, key, measure), row[measure])
            self.database.tables[rule.table].items[key] = row | {measure: {"S": "text"}}

    def heal(self) -> None:
        """Puts every such total right again."""
        for (table, key, measure), amount in self.poisoned.items():
            items = self.database.tables[table].items
            items[key] = items[key] | {measure: amount}
        self.poisoned.clear()

    # --- The end --------------------------------------------------------------------------------------------------

    def drain(self, batch_size: int = 7) -> None:
        """Lets everything come to its end without further faults: invocations, the stream, and the dead letters.

        Only what was not reported as done is delivered again: what was reported wrongly stays missing.
        """
        self.heal()
        for run in [*self.runs]:
            self.finish(run)
        for _ in range(2):  # a batch whose first record failed comes again whole
            waiting = [*self.unacknowledged.values()]
            for start in range(0, len(waiting), batch_size):
                self.finish(self.deliver(waiting[start : start + batch_size]))
        promise(not self.unacknowledged, f"records are never done: {sorted(self.unacknowledged)}")
        fruitless = 0
        while fruitless < 2:  # a total that changed may now hold what it could not hold before
            before = self._receipts_in_all()
            for letter in [*self.messages]:
                self.finish(self.replay([letter]))
            while self.network:  # even after a replay
                self.arrive(0)
            fruitless = fruitless + 1 if self._receipts_in_all() == before else 0

    def _receipts_in_all(self) -> int:
        return sum(len(self._receipts_of(total)) for total in self._all_totals())

    def check_totals(self) -> None:
        """After `drain`: every total is the fold of the history, and only what cannot be counted or corrected waits.

        What cannot be counted is what would give a total more digits than a DynamoDB number has, and what comes when
        the page that could tell of it has expired; each such record waits. Of the last, some wait that are counted.
        Notices wait of the items that still are what cannot be used, at least of what made them so.

        Raises:
            BrokenPromiseError: that is not so.
        """
        totals = self.totals()
        zeros = (Decimal(0),) * 4
        waiting = {record["eventID"] for body in self.messages.values() for record in self._records_of(body)}
        cannot_be_counted, may_wait = set(), set()
        counted: list[tuple[Total, Amounts]] = []
        for record in self.history:
            event_id, receipt = record["eventID"], self._receipt_of(record)
            missing = self._missing(record)
            for total, amounts in self.expected[event_id].contributions.items():
                expired = self._has_expired(total, receipt)
                too_long = not all(map(fits, (*amounts, *map(EXACT.add, totals.get(total, zeros), amounts))))
                if total not in missing and receipt in self._receipts_of(total):
                    counted.append((total, amounts))
                elif total not in missing:  # its receipt went with a row that was deleted; it need not come again
                    may_wait |= {event_id} if too_long else set()
                elif expired or too_long:
                    cannot_be_counted.add(event_id)
                else:
                    raise BrokenPromiseError(f"record {event_id} is not counted in {total}")
                if expired:
                    may_wait.add(event_id)
        should_be = {total: amounts for total, amounts in add_up(counted).items() if total in totals or any(amounts)}
        promise(totals == should_be, f"totals {_differences(totals, should_be)} differ from the fold of the history")
        more, fewer = waiting - cannot_be_counted - may_wait, cannot_be_counted - waiting
        promise(not more, f"records wait that are counted completely: {sorted(more)}")
        promise(not fewer, f"records that cannot be counted are nowhere: {sorted(fewer)}")
        items = self.database.tables[SOURCE_TABLE].items
        told = {one for body in self.messages.values() for one in self._told_in(body)}
        may_be_told = {
            (record["eventID"], name)
            for record in self.history
            for name in self.expected[record["eventID"]].told_by
            if record["dynamodb"].get("NewImage") == items.get((record["dynamodb"]["Keys"]["orderid"]["S"],), ...)
        }
        # An item can become again what it was: what was told then may have been over in between.
        last = set({record["dynamodb"]["Keys"]["orderid"]["S"]: record["eventID"] for record in self.history}.values())
        to_be_told = {(event_id, name) for event_id, name in may_be_told if event_id in last}
        # A record that is parked is replayed each time, and tells of its image anew.
        needless = {(event_id, name) for event_id, name in told - may_be_told if event_id not in waiting}
        promise(
            told >= to_be_told and not needless,
            f"notices wait of {sorted(told)}, but should of {sorted(to_be_told)}",
        )

    # --- What is watched at every moment --------------------------------------------------------------------------

    def totals(self) -> dict[Total, Amounts]:
        """Every total as it stands in its table, or stood before it was poisoned."""
        found: dict[Total, Amounts] = {}
        for rule in RULES:
            for key, row in self.database.tables[rule.table].items.items():
                if key[0].startswith(rule.prefix) and any(measure in row for measure in rule.numbers):
                    values = [
                        self.poisoned.get((rule.table, key, measure)) or row.get(measure) or {"N": "0"}
                        for measure in rule.numbers
                    ]
                    found[rule.name, key] = tuple(Decimal(value["N"]) for value in values)
        return found

    def _all_totals(self) -> Iterator[Total]:
        """The totals whose rows are there, with receipts or not."""
        for rule in RULES:
            for key in self.database.tables[rule.table].items:
                if key[0].startswith(rule.prefix):
                    yield rule.name, key

    def _row(self, total: Total) -> Item:
        return self.database.tables[_RULES[total[0]].table].items.get(total[1], {})

    def _seen(self, total: Total) -> RowReceipts:
        return row_receipts(self._row(total), total[0])

    def _in_row(self, total: Total) -> _Held:
        """What the row holds; read again only where the row has changed."""
        row, held = self._row(total), self._held.get(total)
        if held is None or held.item is not row:
            held = self._held[total] = _Held.in_row(row, total[0])
        return held

    def _pages(self) -> dict[str, list[_Held]]:
        """The pages by their partition, the oldest first; those that have not changed are not read again."""
        if self._pages_of[0] == self.database.writes:
            return self._pages_of[1]
        found: dict[str, list[_Held]] = {}
        for key, item in sorted(self.database.tables[LEDGER].items.items()):
            page = self._held.get(key)
            if page is None or page.item is not item:
                page = self._held[key] = _Held.of_page(item)
            found.setdefault(key[0], []).append(page)
        self._pages_of = self.database.writes, found
        return found

    def _parts(self, total: Total, pages: Mapping[str, Sequence[_Held]]) -> list[_Held]:
        """Where the receipts of a total are: pages that have expired, those that have not, and the row."""
        partition = _partition(total, self._seen(total).generation)
        return [*self.expired.get(partition, ()), *pages.get(partition, ()), self._in_row(total)]

    def _receipts_of(self, total: Total) -> dict[str, Amounts]:
        """The receipts of a total, in its row's generation."""
        return {name: amounts for part in self._parts(total, self._pages()) for name, amounts in part.receipts.items()}

    def _has_expired(self, total: Total, receipt: str) -> bool:
        """Whether the page that would hold a receipt has expired."""
        expired = self.expired.get(_partition(total, self._seen(total).generation), ())
        return any(position_in(receipt) <= page.key for page in expired)

    def check_receipts(self) -> None:
        """Every total is the sum of its receipts, at every moment, and every receipt is where it belongs.

        Raises:
            BrokenPromiseError: that is not so.
        """
        if self.database.writes == self._writes_checked:
            return
        self._writes_checked = self.database.writes
        targets = {name: self.database.tables[name] for name in TABLES}
        self._earlier = [{name: replace(t, items=dict(t.items)) for name, t in targets.items()}, *self._earlier[:3]]
        totals, pages = self.totals(), self._pages()
        partitions = set(self._nobodys)
        for total in self._all_totals():
            *archived, in_row = parts = self._parts(total, pages)
            seen = self._seen(total)
            partitions.add(_partition(total, seen.generation))
            found = totals.get(total, ())
            should_be = _sum(part.sum for part in parts if part.sum)
            promise(
                found == should_be or not (any(found) or any(should_be)),
                f"total {total}, {found}, differs from the sum of its receipts, {should_be}",
            )
            self._check_places(total, archived, in_row, seen.archived)
        promise(partitions >= pages.keys(), f"pages are nobody's: {sorted(pages.keys() - partitions)}")

    def _check_places(self, total: Total, archived: Sequence[_Held], in_row: _Held, watermark: str) -> None:
        """Pages follow one another up to the watermark, and each receipt is where its position belongs."""
        after = ""
        for page in archived:
            promise(page.after == after < page.key, f"pages of {total} do not follow one another: {page}")
            inside = all(page.after < position_in(name) <= page.key for name in page.receipts)
            promise(inside, f"a receipt of {total} is on the wrong page: {page}")
            after = page.key
        promise(after == watermark, f"the watermark of {total} is {watermark}, its pages end at {after}")
        promise(all(position_in(name) > watermark for name in in_row.receipts), f"{total} keeps old receipts: {in_row}")

    def _check_done(self, record: Raw, outcome: RecordOutcome, reasons: Sequence[str]) -> None:
        """What is reported as done is done."""
        event_id = record["eventID"]
        expected = self.expected[event_id]
        missing = {name for name, _ in self._missing(record)}
        told = {name for one, name in self._ever_told if one == event_id}
        promise(expected.told_by <= told, f"{expected.told_by} cannot use record {event_id}, but only {told} told so")
        promise(
            outcome is not RecordOutcome.NOTICED or bool(expected.told_by),
            f"nobody had to be told of record {event_id}",
        )
        if outcome is RecordOutcome.PARKED:
            promise(event_id in self._ever_parked, f"record {event_id} was reported as parked, but is nowhere")
            missing = {name for name in missing if not any(reason.startswith(f"{name}: ") for reason in reasons)}
        elif outcome is not RecordOutcome.NOTICED:
            promise(not expected.told_by, f"record {event_id} is {outcome}, but {expected.told_by} cannot use it")
            counted = outcome is not RecordOutcome.NOT_COUNTED
            promise(counted is bool(expected.contributions), f"record {event_id} is {outcome}: {expected}")
        promise(not missing, f"record {event_id} was reported as {outcome}, but is not counted in {missing}")

    def _receipt_of(self, record: Raw) -> str:
        return receipt_name(read_record(record, _PARSED.source.origin))

    def _missing(self, record: Raw) -> set[Total]:
        """The totals in which a record should be counted, and of which it has no such receipt, nor ever had."""
        receipt = self._receipt_of(record)
        return {
            total
            for total, amounts in self.expected[record["eventID"]].contributions.items()
            if amounts not in (self._receipts_of(total).get(receipt), self.gone.get(total, {}).get(receipt))
        }


_RULES: Mapping[str, Rule] = MappingProxyType({rule.name: rule for rule in RULES})


def _differences(found: Mapping[Any, Any], should_be: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        name: (found.get(name), should_be.get(name))
        for name in sorted(found.keys() | should_be.keys())
        if found.get(name) != should_be.get(name)
    }


# --- What can become of a call ------------------------------------------------------------------------------------
# `choice` decides what is left open: which actions, which error.

_ENDPOINT = {"endpoint_url": "http://aws.test"}


def carried_out(world: World, call: Call, choice: int) -> Any:
    """As if nothing were amiss."""
    return call.perform()


def request_lost(world: World, call: Call, choice: int) -> Any:
    """It never arrives."""
    errors: Sequence[Exception] = (
        EndpointConnectionError(**_ENDPOINT),
        ConnectTimeoutError(**_ENDPOINT),
        ConnectionClosedError(**_ENDPOINT),
    )
    raise errors[choice % len(errors)]


def answer_lost(world: World, call: Call, choice: int) -> Any:
    """It is carried out, but nobody hears of it."""
    _unheard(call)
    errors: Sequence[Exception] = (ConnectionClosedError(**_ENDPOINT), ReadTimeoutError(**_ENDPOINT))
    raise errors[choice % len(errors)]


def delayed(world: World, call: Call, choice: int) -> Any:
    """It is given up, but arrives later."""
    world.network.append(call.perform)
    raise ReadTimeoutError(**_ENDPOINT)


def server_error(world: World, call: Call, choice: int) -> Any:
    """The service fails, having carried it out or not."""
    codes = ("InternalServerError", "InternalFailure", "ServiceUnavailable")
    if choice % 2:
        _unheard(call)
    error = client_error(codes[choice % len(codes)], "try again", call.operation)
    error.response["ResponseMetadata"]["HTTPStatusCode"] = 500
    raise error


def throttled(world: World, call: Call, choice: int) -> Any:
    """There is no capacity for the request."""
    codes = ("ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded")
    raise client_error(codes[choice % len(codes)], "slow down", call.operation)


def stale(world: World, call: Call, choice: int) -> Any:
    """A read meets an earlier state: rows of some writes ago, or pages from before a transaction that is going on."""
    if call.operation == "batch_get_item":
        return world.read_earlier(choice, call.request)
    return world.read_half(choice, call.request) if call.operation == "query" else call.perform()


def throttled_actions(world: World, call: Call, choice: int) -> Any:
    """There is no capacity for some of a transaction's actions."""
    return _cancel(world, call, choice, ("ProvisionedThroughputExceeded", "ThrottlingError"))


def conflicting(world: World, call: Call, choice: int) -> Any:
    """Another write is at work on some of its items."""
    if call.operation == "update_item":
        raise client_error("TransactionConflictException", "injected", call.operation)
    return _cancel(world, call, choice, ("TransactionConflict",))


def in_progress(world: World, call: Call, choice: int) -> Any:
    """The same request, sent before, is still being carried out."""
    raise client_error("TransactionInProgressException", "in progress", call.operation)


def refused(world: World, call: Call, choice: int) -> Any:
    """DynamoDB says that some of the actions can never be."""
    return _cancel(world, call, choice, ("ValidationError",))


def refused_whole(world: World, call: Call, choice: int) -> Any:
    """The service says that the request can never be."""
    raise client_error("ValidationException", "injected", call.operation)


def denied(world: World, call: Call, choice: int) -> Any:
    """Somebody took a permission away."""
    raise client_error("AccessDeniedException", "not allowed", call.operation)


def killed_before(world: World, call: Call, choice: int) -> Any:
    """The worker dies before the call."""
    raise KilledError


def killed_after(world: World, call: Call, choice: int) -> Any:
    """The worker dies when the call was carried out."""
    _unheard(call)
    raise KilledError


def partly_taken(world: World, call: Call, choice: int) -> Any:
    """The queue takes some of the messages and refuses the others."""
    if call.operation != "send_message_batch":
        return call.perform()
    entries = call.request["Entries"]
    failed = [entry for index, entry in enumerate(entries) if choice >> index & 1]
    answer = world.send_message_batch(QueueUrl="", Entries=[entry for entry in entries if entry not in failed])
    return answer | {"Failed": [{"Id": entry["Id"], "Code": "InternalError"} for entry in failed]}


def _unheard(call: Call) -> None:
    with suppress(ClientError):
        call.perform()


def _cancel(world: World, call: Call, choice: int, codes: Sequence[str]) -> Any:
    """Cancels a transaction: some actions for one of `codes`, the others for the reasons that they have, or none."""
    if call.operation == "update_item" and codes == ("ValidationError",):
        raise client_error("ValidationException", "injected", call.operation)
    if call.operation != "transact_write_items":
        return call.perform()
    actions: Sequence[Any] = call.request["TransactItems"]
    chosen = [index for index in range(len(actions)) if choice >> (index % 16) & 1] or [choice % len(actions)]
    reasons = world.database.reasons(actions) if choice % 3 else [{"Code": "None"} for _ in actions]
    for index in chosen:
        code = codes[(choice + index) % len(codes)]
        reasons[index] = {"Code": code, "Message": f"injected {code}"}
    raise cancelled(reasons)


FATES: Mapping[str, Callable[[World, Call, int], Any]] = MappingProxyType(
    {
        fate.__name__: fate
        for fate in (
            *(carried_out, request_lost, answer_lost, delayed, server_error, throttled, throttled_actions),
            *(
                stale,
                conflicting,
                in_progress,
                refused,
                refused_whole,
                denied,
                killed_before,
                killed_after,
                partly_taken,
            ),
        )
    }
)

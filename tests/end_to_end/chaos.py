"""A chaos run: the deployed handler in processes that are killed, behind a network that loses things.

    uv run python -m tests.end_to_end.chaos --records 200000 --seed 1

Stream records of a random source are delivered to several worker processes as Lambda delivers them: in order for each
shard, retried, bisected, given up. DynamoDB Local holds the tables, ministack the queue and the bucket; between the
workers and them stands a proxy that loses requests and answers, injects errors and kills workers (`faulty_proxy`). Some
batches are delivered to two workers at once or once more later; dead letters are replayed meanwhile. Some workers
archive far more often than they would, and some shards are behind the others, so that their records come late. When all
is done every total is compared with the fold of the source's history and with the sum of its receipts: the drift must
be zero.

The seed decides the history, how it is cut into batches, and what happens to which request of which worker; how the
processes are interleaved, and so what is retried when, is up to the machine. Exits with 1 if a total is wrong.
"""

import argparse
import contextlib
import hashlib
import logging
import multiprocessing
import os
import queue
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.batch import REPORT_OUTCOMES, RecordOutcome
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.ledger.pages import Page, page_of
from aggregation_worker.ledger.receipts import (
    AFTER,
    AGGREGATE_KEY,
    late_attribute,
    partition_of,
    read_receipt,
    row_receipts,
)
from aggregation_worker.local.delivery import Batch, Invocation, PolledRecord, deliver
from aggregation_worker.local.local_function import LocalFunction
from aggregation_worker.local.ministack import Ministack, running_ministack
from aggregation_worker.local.on_failure_destination import OnFailureDestination
from aggregation_worker.local.pipeline import DEAD_LETTERS, LEDGER_TABLE, create_dead_letters, create_table
from aggregation_worker.local.recompute import scan
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.operations.letters import LetterReader
from aggregation_worker.operations.queue import HeldMessages
from aggregation_worker.operations.replaying import Replay, SendError
from aggregation_worker.operations.selection import Selection
from tests.dynamodb_local import DynamoDBLocal, running_dynamodb_local
from tests.end_to_end.chaos_worker import serve
from tests.end_to_end.faulty_proxy import Fault, FaultyProxy
from tests.model.orders import DEFINITIONS, RULES, TABLES, Amounts, Change, Order, Total, add_up, expected, whole
from tests.records import ORIGIN, STREAM_ARN, stream_record

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# 2100-01-01: no receipt is too old to be trusted, whatever this machine's clock says.
EPOCH = 4_102_444_800
RECORDS_A_SECOND = 200
# Seconds by which the records of a shard are older than those of the others that are delivered with them.
LAGS = (0, 1, 3, 10)
# Bytes for receipts in a row as every other worker sees it, and receipts on its pages: a few, where there is room for
# twenty and for 250.
SMALL_ROOM, SMALL_PAGE = 300, 20

# How the mapping is set, for every other shard: as it is deployed but for fewer retries, and so that whole batches are
# given up at once.
SETTINGS = (
    replace(deployment.MAPPING, maximum_retry_attempts=2, retry_pause_seconds=0.01),
    replace(
        deployment.MAPPING,
        maximum_retry_attempts=0,
        bisect_batch_on_function_error=False,
        retry_pause_seconds=0.01,
    ),
)
BATCH_SIZES = (1, 3, 10, 30, 100, 300)
# Seconds that an invocation may take; some have hardly any time.
TIMEOUTS = (20.0,) * 15 + (0.4,)
# Of all invocations, to how many the same or older records are delivered once more, at the same time.
ECHOES = 0.15


class WorkerDiedError(Exception):
    """The worker process was killed before it answered."""


class WorkerFailedError(Exception):
    """The handler raised."""


@dataclass(slots=True)
class Source:
    """A random history of orders, made as it is needed, and what it must come to.

    Attributes:
        records: how many changes there are in all.
        totals: the fold of all changes so far.
        told: what must be told of: event id and aggregation, and the order that it cannot use.
    """

    records: int
    seed: int
    shards: int
    totals: dict[Total, Amounts] = field(default_factory=dict)
    told: dict[tuple[str, str], tuple[str, Order | None]] = field(default_factory=dict)
    made: int = 0
    _orders: dict[str, Order] = field(default_factory=dict)
    _waiting: list[deque[dict[str, Any]]] = field(default_factory=list)
    _numbers: list[Iterator[int]] = field(default_factory=list)
    _chance: random.Random = field(default_factory=random.Random)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._chance = random.Random(f"{self.seed}/source")
        self._waiting = [deque() for _ in range(self.shards)]
        # Every shard counts from the same number: nothing rules out on AWS that they meet.
        self._numbers = [count(10**20) for _ in range(self.shards)]

    def take(self, shard: int, size: int) -> list[dict[str, Any]]:
        """The next records of a shard; none when the history is at its end."""
        with self._lock:
            waiting = self._waiting[shard]
            while len(waiting) < size and self.made < self.records:
                self._write()
            return [waiting.popleft() for _ in range(min(size, len(waiting)))]

    def taken(self) -> int:
        """How many records have been taken: a quick shard's end comes long before a slow one's."""
        with self._lock:
            return self.made - sum(map(len, self._waiting))

    def _write(self) -> None:
        """One change; a write that changes nothing leaves no record."""
        chance = self._chance
        orderid = str(chance.randrange(5_000))
        old = self._orders.get(orderid)
        if old is not None and chance.random() < 0.15:
            change = Change(old, None, expired=chance.random() < 0.5)
            del self._orders[orderid]
        else:
            new = _random_order(chance)
            if new == old:
                return
            change = Change(old, new)
            self._orders[orderid] = new
        shard = int(orderid) % self.shards
        record = self._record(orderid, change, shard)
        self._waiting[shard].append(record)
        self.made += 1
        result = expected(change)
        self.totals = add_up([*self.totals.items(), *result.contributions.items()])
        self.told |= {(record["eventID"], name): (orderid, change.new) for name in result.told_by}

    def get_item(self, *, TableName: str, Key: dict[str, Any], ConsistentRead: bool) -> dict[str, Any]:  # noqa: N803 - boto3's names
        """An order as it is now, as DynamoDB has it."""
        orderid = Key["orderid"]["S"]
        order = self._orders.get(orderid)
        return {} if order is None else {"Item": order.item_of(orderid)}

    def to_be_told(self) -> set[tuple[str, str]]:
        """What must still be told of at the end: the orders that are what cannot be used."""
        return {told for told, (orderid, order) in self.told.items() if order and order == self._orders.get(orderid)}

    def _record(self, orderid: str, change: Change, shard: int) -> dict[str, Any]:
        number = next(self._numbers[shard])
        record = stream_record(
            "REMOVE" if change.new is None else "INSERT" if change.old is None else "MODIFY",
            old=None if change.old is None else change.old.item_of(orderid),
            new=None if change.new is None else change.new.item_of(orderid),
            sequence_number=number,
            event_id=hashlib.md5(f"{self.seed}/{shard}/{number}".encode()).hexdigest(),
            created_at=EPOCH + self.made // RECORDS_A_SECOND - LAGS[shard % len(LAGS)],
        )
        record["dynamodb"]["Keys"] = {"orderid": {"S": orderid}}
        if change.expired:
            record["userIdentity"] = {"type": "Service", "principalId": "dynamodb.amazonaws.com"}
        return record


def _random_order(chance: random.Random) -> Order:
    malformed = chance.random() < 0.001
    return Order(
        item=f"item{chance.randrange(12)}",
        day=chance.choice(("2024-07-15", "2024-07-16")),
        customer=chance.choice(("c1", "c2", "c3", None)),
        paid=chance.random() < 0.6,
        quantity=None if malformed else chance.choice(("0", "0.5", "-2", str(chance.randrange(1, 100)))),
        price=chance.choice(("1", "0.3", "19.99")),
        # Too large for a message: such a record is parked by way of the bucket.
        note="x" * 300_000 if malformed and chance.random() < 0.1 else "",
    )


class Worker:
    """One worker process, and its successors: whenever it is killed, another one takes its place.

    They are forked from a process that has imported what takes long.
    """

    def __init__(self, number: int, environment: Mapping[str, str], log: Path) -> None:
        self.number = number
        self._environment = environment
        self._log = log
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["boto3", "aws_lambda_powertools.metrics", "aggregation_worker.batch"])
        self._start()

    def ask(self, event: Any, milliseconds: float) -> Any:
        """One invocation.

        Raises:
            WorkerDiedError: the process was killed before it answered; a new one is there already.
            WorkerFailedError: the handler raised.
        """
        try:
            self._invocations.send((event, milliseconds))
            answer, failure = self._invocations.recv()
        except (OSError, EOFError):
            self.close()
            self._start()
            raise WorkerDiedError(f"worker {self.number} was killed") from None
        if failure is not None:
            raise WorkerFailedError(failure)
        return answer

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._invocations.close()

    def _start(self) -> None:
        self._invocations, theirs = self._processes.Pipe()
        with theirs:
            arguments = (theirs, self._environment, self._log)
            self._process = self._processes.Process(target=serve, args=arguments, daemon=True)
            self._process.start()


class Fleet:
    """The worker processes. Each takes one invocation at a time, as Lambda's do."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.kills = 0
        self.outcomes: Counter[str] = Counter()
        self.invocations: Counter[str] = Counter()
        self._idle: queue.Queue[Worker] = queue.Queue()
        self._counting = threading.Lock()

    def add(self, worker: Worker) -> None:
        """One more worker."""
        self.workers.append(worker)
        self._idle.put(worker)

    def kill(self, number: int) -> None:
        """Kills a worker."""
        self.kills += 1
        self.workers[number].kill()

    def invoke(self, records: Sequence[Any], milliseconds: float) -> Any:
        """One invocation, on whatever worker is free.

        Raises:
            WorkerDiedError, WorkerFailedError: it came to nothing that anybody knows of.
        """
        worker = self._idle.get()
        try:
            event = {"Records": [*records], REPORT_OUTCOMES: True}
            answer = worker.ask(event, milliseconds)
        except (WorkerDiedError, WorkerFailedError) as error:
            with self._counting:
                self.invocations[type(error).__name__] += 1
            raise
        else:
            with self._counting:
                self.invocations["answered"] += 1
                self.outcomes.update(answer["outcomes"])
            return answer
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all workers."""
        for worker in self.workers:
            worker.close()


@dataclass(frozen=True, slots=True)
class Report:
    """What a run did and what came of it.

    Attributes:
        writes: adds, archives and late writes that went in.
        pages: of the ledger, at the end.
        drift: the difference of every total from the fold of the history: zeros.
        waiting: dead letters in the queue at the end; a record can have several.
        unusable: notices that must wait: of orders that still are what some aggregation cannot use.
        wrong: sentences about what is not as it must be; none.
    """

    seed: int
    seconds: float
    records: int
    requests: int
    kills: int
    faults: Mapping[Fault, int]
    writes: Mapping[str, int]
    pages: int
    invocations: Mapping[str, int]
    outcomes: Mapping[str, int]
    echoes: int
    given_up: int
    replayed: int
    drift: Mapping[Total, Amounts]
    totals: Mapping[Total, Amounts]
    waiting: int
    unusable: int
    wrong: tuple[str, ...]

    def lines(self) -> Iterator[str]:
        """The report, for people."""
        yield f"seed {self.seed}, {self.seconds:.0f} s"
        yield f"{self.records:,} stream records, {self.requests:,} requests to AWS"
        yield (
            ", ".join(f"{number:,} {kind}" for kind, number in sorted(self.writes.items())) + f"; {self.pages:,} pages"
        )
        yield f"{sum(self.invocations.values()):,} invocations: " + ", ".join(
            f"{number:,} {what}" for what, number in sorted(self.invocations.items())
        )
        yield f"{self.echoes:,} batches delivered once more at the same time"
        yield f"{self.kills:,} workers killed with SIGKILL"
        yield "faults injected: " + ", ".join(f"{self.faults.get(fault, 0):,} {fault}" for fault in Fault)
        yield "records by outcome: " + ", ".join(
            f"{self.outcomes.get(outcome, 0):,} {outcome}" for outcome in RecordOutcome
        )
        yield f"{self.outcomes.get(RecordOutcome.DUPLICATE, 0):,} duplicates skipped"
        yield (
            f"{self.given_up:,} batches given up; {self.replayed:,} dead letters replayed; "
            f"{self.waiting:,} wait, of {self.unusable:,} orders that an aggregation cannot use"
        )
        yield "drift of every aggregate:"
        for (name, group), drift in sorted(self.drift.items()):
            amounts = ", ".join(map(str, self.totals[name, group]))
            yield f"  {name} {' '.join(group)}: {amounts}; drift {', '.join(map(str, drift))}"
        yield from self.wrong
        yield "EXACT" if not self.wrong else "WRONG"


@dataclass(slots=True)
class Chaos:
    """One run."""

    source: Source
    dynamodb: "DynamoDBClient"
    ministack: Ministack
    fleet: Fleet
    proxy: FaultyProxy
    queue_url: str
    echo_threads: ThreadPoolExecutor
    batch_sizes: Sequence[int]
    echoes: list["Future[None]"] = field(default_factory=list)
    given_up: int = 0
    replayed: int = 0

    def run(self, progress: bool) -> Report:
        """Delivers the whole history, lets everything come to its end, and compares."""
        started = time.monotonic()
        ended = threading.Event()
        with ThreadPoolExecutor(self.source.shards + 2) as threads:
            shards = [threads.submit(self._deliver_shard, shard) for shard in range(self.source.shards)]
            replayer = threads.submit(self._replay_until, ended)
            watcher = threads.submit(self._tell_progress, ended) if progress else None
            try:
                for shard in shards:
                    shard.result()
            finally:
                ended.set()
            replayer.result()
            if watcher is not None:
                watcher.result()
        for echo in self.echoes:
            echo.result()
        self.proxy.calm = True
        self.proxy.settled()
        self._replay()
        self._replay()  # what the first has told anew, of items that have been corrected since
        return self._report(time.monotonic() - started)

    # --- Delivering -----------------------------------------------------------------------------------------------

    def _deliver_shard(self, shard: int) -> None:
        """What an event source mapping does with one shard."""
        cuts = random.Random(f"{self.source.seed}/cuts/{shard}")
        chance = random.Random(f"{self.source.seed}/shard/{shard}")
        settings = SETTINGS[shard % len(SETTINGS)]
        seen: deque[dict[str, Any]] = deque(maxlen=2_000)
        destination = OnFailureDestination(
            self.ministack.client("s3"), DEAD_LETTERS, "arn:aws:lambda:us-east-1:1:function:chaos", STREAM_ARN, "chaos"
        )
        while batch := self.source.take(shard, cuts.choice(self.batch_sizes)):
            seen.extend(batch)
            polled = tuple(map(PolledRecord.of, batch))

            def invoke(records: Batch, attempt: int) -> Invocation:
                if chance.random() < ECHOES:
                    self._echo(chance, [*seen], [record.event for record in records])
                timeout = chance.choice(TIMEOUTS)
                function = LocalFunction(
                    lambda event, context: self.fleet.invoke(event["Records"], context.get_remaining_time_in_millis()),
                    *("chaos", "arn", timeout, 1024),
                    report_batch_item_failures=True,
                )
                return function.invoke(records, attempt)

            for discarded in deliver(polled, settings, invoke, now=lambda: float(EPOCH), pause=time.sleep):
                destination.deliver(discarded, f"shard-{shard}", time.time())
                self.given_up += 1

    def _echo(self, chance: random.Random, seen: Sequence[Any], batch: Sequence[Any]) -> None:
        """Delivers once more, to another worker and at the same time: this batch, its end, or something older."""
        kind = chance.randrange(3)
        if kind == 2:
            first = chance.randrange(len(seen))
            batch = seen[first : first + 200]
        elif kind == 1:
            batch = batch[chance.randrange(len(batch)) :]

        def echo() -> None:
            with contextlib.suppress(WorkerDiedError, WorkerFailedError):  # nobody waits for its answer
                self.fleet.invoke(batch, 20_000)

        self.echoes.append(self.echo_threads.submit(echo))

    # --- Replaying ------------------------------------------------------------------------------------------------

    def _replay_until(self, ended: threading.Event) -> None:
        while not ended.wait(max(2.0, self.source.records / 20_000)):
            with contextlib.suppress(CommandError, BotoCoreError, ClientError):
                self._replay()

    def _replay(self) -> None:
        """Replays all dead letters, as `aggregator replay` does, through the workers."""

        def send(records: list[Any]) -> list[RecordOutcome]:
            try:
                answer = self.fleet.invoke(records, 20_000)
            except (WorkerDiedError, WorkerFailedError) as error:
                raise SendError(str(error)) from error
            return [RecordOutcome(outcome) for outcome in answer["outcomes"]]

        with HeldMessages(self.ministack.client("sqs"), self.queue_url) as held:
            resources = self._resources()
            replay = Replay(resources, held, LetterReader(resources, ORIGIN), Selection(), send)
            try:
                replay.run()
            finally:
                self.replayed += replay.summary.done + replay.summary.told_anew

    def _resources(self) -> Any:
        return SimpleNamespace(
            ledger_retention_days=deployment.LEDGER_RETENTION_DAYS,
            definitions=parse_definitions(DEFINITIONS),
            dynamodb=self.source,
            bucket=DEAD_LETTERS,
            s3=self.ministack.client("s3"),
            client=self.ministack.client,
        )

    # --- Comparing ------------------------------------------------------------------------------------------------

    def _report(self, seconds: float) -> Report:
        totals = self._totals()
        should_be = self.source.totals
        drift = {}
        for total in totals.keys() | should_be.keys():
            zeros = (Decimal(0),) * len(totals.get(total) or should_be[total])
            pairs = zip(totals.get(total, zeros), should_be.get(total, zeros), strict=True)
            drift[total] = tuple(is_ - be for is_, be in pairs)
            totals.setdefault(total, zeros)
        wrong = [f"{name} {group} is off by {parts}" for (name, group), parts in drift.items() if any(parts)]
        sums = self._sums_of_receipts()
        for total in sums.keys() | totals.keys():
            zeros = (Decimal(0),) * len(totals.get(total) or sums[total])
            if totals.get(total, zeros) != sums.get(total, zeros):
                wrong.append(f"{total} is {totals.get(total)}, but its receipts sum up to {sums.get(total)}")
        waiting = self._waiting()
        to_be_told = self.source.to_be_told()
        if needless := set(waiting) - to_be_told:
            wrong.append(f"dead letters wait that nothing is to be done about: {sorted(needless)}")
        if missing := to_be_told - set(waiting):
            wrong.append(f"nobody is told of what cannot be used: {sorted(missing)}")
        return Report(
            seed=self.source.seed,
            seconds=seconds,
            records=self.source.made,
            requests=self.proxy.requests,
            kills=self.fleet.kills,
            faults=self.proxy.injected,
            writes=self.proxy.taken,
            pages=sum(map(len, self._pages().values())),
            invocations=self.fleet.invocations,
            outcomes=self.fleet.outcomes,
            echoes=len(self.echoes),
            given_up=self.given_up,
            replayed=self.replayed,
            drift=drift,
            totals=totals,
            waiting=len(waiting),
            unusable=len(to_be_told),
            wrong=tuple(wrong),
        )

    def _totals(self) -> dict[Total, Amounts]:
        found: dict[Total, Amounts] = {}
        for rule in RULES:
            for row in scan(self.dynamodb, rule.table):
                group = tuple(row[key]["S"] for key, _ in TABLES[rule.table])
                if group[0].startswith(rule.prefix) and any(number in row for number in rule.numbers):
                    found[rule.name, group] = tuple(
                        Decimal(row.get(number, {"N": "0"})["N"]) for number in rule.numbers
                    )
        return found

    def _sums_of_receipts(self) -> dict[Total, Amounts]:
        """What the receipts of every row and its pages come to."""
        pages = self._pages()
        found: list[tuple[Total, Amounts]] = []
        for rule in RULES:
            for row in scan(self.dynamodb, rule.table):
                group = tuple(row[key]["S"] for key, _ in TABLES[rule.table])
                if not group[0].startswith(rule.prefix):
                    continue
                seen = row_receipts(row, rule.name)
                receipts = {name: read_receipt(value) for name, value in (seen.values or {}).items()}
                for page in pages.pop(partition_of(rule.name, group, seen.generation), ()):
                    receipts |= page.receipts()
                found += [((rule.name, group), whole(*receipt)) for receipt in receipts.values()]
        assert not pages, f"pages are nobody's: {sorted(pages)}"
        return add_up(found)

    def _pages(self) -> dict[str, list[Page]]:
        """The pages of the ledger, by their partition."""
        found: dict[str, list[Page]] = {}
        for item in scan(self.dynamodb, LEDGER_TABLE):
            if AFTER in item:
                found.setdefault(item[AGGREGATE_KEY]["S"], []).append(page_of(item))
        return found

    def _waiting(self) -> list[tuple[str, str]]:
        """The letters that still wait: event id and, of a notice, the aggregation."""
        found: list[tuple[str, str]] = []
        held = HeldMessages(self.ministack.client("sqs"), self.queue_url)
        for page in held.receive(held.started_at(), LetterReader(self._resources(), ORIGIN)):
            for letter in page:
                name = "" if letter.notice is None else letter.notice.aggregation
                found.extend((record["eventID"], name) for record in letter.records)
        return found

    def _tell_progress(self, ended: threading.Event) -> None:
        while not ended.wait(10):
            print(
                f"  {self.source.taken():,} of {self.source.records:,} records, {self.fleet.kills} kills, "
                f"{sum(self.proxy.injected.values()):,} faults",
                flush=True,
            )


def run(
    records: int,
    seed: int,
    *,
    workers: int = 3,
    shards: int = 4,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    fault_factor: float = 1.0,
    progress: bool = False,
) -> Report:
    """One chaos run with servers of its own.

    Args:
        records: changes of the source.
        seed: decides the history, the batches and the faults.
        workers: worker processes.
        shards: of the stream.
        batch_sizes: each batch has one of these.
        fault_factor: how much more often than `faulty_proxy.RATES` says a request meets a fault.
        progress: print a line now and then.

    Raises:
        DynamoDBLocalUnavailableError: the machine lacks what DynamoDB Local needs.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        dynamodb_local = stack.enter_context(running_dynamodb_local())
        ministack = stack.enter_context(running_ministack())
        # Retries and failed invocations are what this is about: no line for each.
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        dynamodb = dynamodb_local.client("dynamodb")
        for name, table in {
            **deployment.target_tables(parse_definitions(DEFINITIONS)),
            LEDGER_TABLE: deployment.LEDGER,
        }.items():
            create_table(dynamodb, name, table)
        queue_url = create_dead_letters(ministack.client("sqs"), ministack.client("s3"))
        (folder / "aggregations.toml").write_text(DEFINITIONS)
        fleet = Fleet()
        stack.callback(fleet.close)
        proxy = stack.enter_context(FaultyProxy(seed, fleet.kill, fault_factor, kind_of=_kind_of_write).running())
        for number in range(workers):
            environment = _environment(folder, dynamodb_local, ministack, proxy, number, queue_url)
            fleet.add(Worker(number, environment, folder / f"worker-{number}.log"))
        echo_threads = stack.enter_context(ThreadPoolExecutor(2))
        source = Source(records, seed, shards)
        return Chaos(source, dynamodb, ministack, fleet, proxy, queue_url, echo_threads, batch_sizes).run(progress)


def _kind_of_write(operation: str, body: bytes) -> str:
    """For the report."""
    if operation == "TransactWriteItems":
        return "late writes" if f'"{late_attribute("")}' in body.decode() else "archives"
    return "adds" if operation == "UpdateItem" else ""


def _environment(
    folder: Path,
    dynamodb_local: DynamoDBLocal,
    ministack: Ministack,
    proxy: FaultyProxy,
    number: int,
    queue_url: str,
) -> dict[str, str]:
    """A worker's environment: its servers are the proxy's, but for S3."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "POWERTOOLS_")) and not name.lower().endswith("_proxy")
    }
    queue_endpoint = proxy.url(number, ministack.endpoint)
    return own | {
        **ministack.environment,
        "AWS_ENDPOINT_URL_DYNAMODB": proxy.url(number, dynamodb_local.endpoint),
        "AWS_ENDPOINT_URL_SQS": queue_endpoint,
        "AGGREGATIONS_FILE": str(folder / "aggregations.toml"),
        "LEDGER_TABLE": LEDGER_TABLE,
        "LEDGER_RETENTION_DAYS": str(deployment.LEDGER_RETENTION_DAYS),
        "DEAD_LETTER_QUEUE_URL": queue_url,
        "DEAD_LETTER_BUCKET": DEAD_LETTERS,
        "POWERTOOLS_LOG_LEVEL": "CRITICAL",
        "POWERTOOLS_METRICS_DISABLED": "true",
        **({} if number % 2 == 0 else {"CHAOS_ROOM": str(SMALL_ROOM), "CHAOS_PAGE": str(SMALL_PAGE)}),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.end_to_end.chaos", description="Kills workers and loses answers; are the totals exact?"
    )
    parser.add_argument("--records", type=int, default=200_000, help="stream records (default: 200,000)")
    parser.add_argument("--seed", type=int, help="repeats a run's history and faults (default: a fresh one)")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (default: 3)")
    parser.add_argument("--shards", type=int, default=4, help="shards of the stream (default: 4)")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    report = run(options.records, seed, workers=options.workers, shards=options.shards, progress=True)
    print(*report.lines(), sep="\n")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

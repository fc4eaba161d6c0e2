"""Reconcile and repair of tables that are written to all the time, against DynamoDB Local."""

import functools
import io
import itertools
import json
import random
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError

from aggregation_worker.aggregations.contributions import Aggregation, Group
from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.dead_letters import Notice
from aggregation_worker.ledger.catalogue import CatalogueError, register
from aggregation_worker.ledger.markers import CUT, FINISHED_AT, STARTED_AT, read_marker
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.pipeline import running_pipeline
from aggregation_worker.local.recompute import scan, stored_totals
from aggregation_worker.operations.cli import main
from aggregation_worker.operations.explain import ReceiptKind, explanations_of
from aggregation_worker.operations.notices import NoticeState
from aggregation_worker.operations.resources import Resources
from aggregation_worker.reconciliation import scheduled
from aggregation_worker.reconciliation.export import ExportSource
from aggregation_worker.reconciliation.items import ItemSource
from aggregation_worker.reconciliation.reconcile import Reconciliation, Repairs
from aggregation_worker.reconciliation.report import Report, Verdict
from aggregation_worker.reconciliation.scan import ScanSource
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.reconciliation.waiting_letters import Waiting
from aggregation_worker.streams.reader import StreamReader
from aggregation_worker.streams.records import from_get_records
from tests.dynamodb_local import DynamoDBLocal
from tests.integration import shop as shops
from tests.integration.busy_table import Follower, Orders, Writer, busy, drift, enable_stream, load
from tests.integration.shop import SOLD, export_objects, local_environment
from tests.integration.world import Call, ClientWith, side_by_side
from tests.prompt_reader import PromptReader
from tests.sizes import size

EVER_SOLD = """
[[aggregations]]
name = "ever_sold"
table = "TARGET-ever"
partition_key = { name = "item_number", from = "item_number" }
sum = { quantity = "quantity" }
"""
NOTHING_WAITS = functools.partial(Waiting, (), ())
ITEMS, DAYS = size(20, long=50), 3
ORDERS = ITEMS * DAYS * 3 // 2
# Seconds that a difference must stay the same: hardly any where nothing is in flight; where somebody writes, more than
# the worker needs, which shares the processors with all else.
QUIET, BUSY = 0.1, 2.0
DRIFTS = size(20, long=100)
# Of these, rows that are deleted.
DELETED = DRIFTS * 3 // 10


@dataclass(slots=True)
class Shop(shops.Shop):
    """A source table that is written to, its totals, and a worker that keeps them."""

    follower: Follower = field(init=False)

    def __post_init__(self) -> None:
        self.follower = Follower(self.world, self.streams, self.stream_arn, self.world.definitions, pause=0.1)

    @property
    def sold(self) -> Aggregation:
        return self.world.definitions.aggregations[0]

    def busy_writer(self, seed: int) -> Writer:
        """Somebody who changes orders, and leaves some time to the processors, which the reconciliation shares."""
        return self.writer(seed, pause=0.03)

    def reader(self, start: Any) -> StreamReader:
        return StreamReader(self.streams, self.stream_arn, start, stream_lag=0.0, empty_pages=1, poll_interval=0.0)

    def reconcile(
        self,
        *,
        letters: Callable[[], Waiting] | None = None,
        client: Any = None,
        items: ItemSource | None = None,
        patience: float = QUIET,
        **options: Any,
    ) -> Report:
        """One run; it repairs if there are `letters`."""
        with ThreadPoolExecutor(8) as executor, Spool(None) as spool:
            return Reconciliation(
                client=client or self.world.client,
                ledger_table=self.world.ledger_table,
                items=items or ScanSource(self.world.client, self.source, segments=2),
                executor=executor,
                patience=patience,
                repairs=None if letters is None else Repairs(letters, 60),
                **{
                    "definitions": self.world.definitions,
                    "aggregations": self.world.definitions.aggregations,
                    "reader": self.reader("LATEST" if letters is None and items is None else "TRIM_HORIZON"),
                    **options,
                },
            ).run(spool)

    def repair(self, **options: Any) -> Report:
        """One run that repairs; nothing waits in the dead-letter queue."""
        return self.reconcile(letters=NOTHING_WAITS, **options)

    def add_unnoticed(self, group: Group, quantity: int, orders: int = 0) -> None:
        self.world.client.update_item(
            TableName=self.sold.table,
            Key=key_of(group),
            UpdateExpression="ADD quantity :quantity, orders :orders",
            ExpressionAttributeValues={":quantity": {"N": str(quantity)}, ":orders": {"N": str(orders)}},
        )

    def delete_row(self, group: Group) -> bool:
        """Whether the row was there and not zero; otherwise it stays as it is."""
        try:
            self.world.client.delete_item(
                TableName=self.sold.table,
                Key=key_of(group),
                ConditionExpression="attribute_exists(quantity) AND (quantity <> :zero OR orders <> :zero)",
                ExpressionAttributeValues={":zero": {"N": "0"}},
            )
        except self.world.client.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def next_record(self) -> dict[str, Any]:
        """The stream's next record, which the worker does not get."""
        (record,) = [record for shard in self.follower._shards.readable() for record in shard.read(1000)]
        return from_get_records(record, self.stream_arn)

    def explained(self, group: Group) -> Any:
        """What `aggregator explain` says."""
        resources: Any = Resources(Namespace(), {})
        resources.__dict__.update(
            definitions=self.world.definitions,
            ledger_table=self.world.ledger_table,
            _clients={"dynamodb": self.world.client},
        )
        (explanation,) = explanations_of(resources, self.sold.table, group)
        return explanation

    def assert_exact(self, *more: Aggregation) -> None:
        """Every total is the fold of the source, but for what it keeps; nobody may be writing."""
        self.follower.drain()
        assert drift(self.world, self.source, [self.sold, *more]) == {}
        assert self.world.dead_letters.parked == []


def key_of(group: Group) -> dict[str, Any]:
    return {"item_number": {"S": group[0]}, "order_date": {"S": group[1]}}


def groups(report: Report, *verdicts: Verdict) -> set[Group]:
    """The groups of `sold` that have one of these verdicts."""
    return {
        finding.group
        for finding in report.findings
        if finding.verdict in verdicts and finding.aggregation.name == "sold"
    }


@pytest.fixture
def shop(dynamodb_local: DynamoDBLocal) -> Iterator[Shop]:
    """Some orders for most totals, all counted."""
    with a_shop(dynamodb_local) as shop:
        yield shop


@contextmanager
def a_shop(server: DynamoDBLocal, sold: str = SOLD) -> Iterator[Shop]:
    orders = Orders(items=ITEMS, days=DAYS)
    with shops.a_shop(server, Shop, sold, EVER_SOLD, existing=ORDERS, orders=orders, stream_first=True) as shop:
        register(shop.world.client, shop.world.ledger_table, shop.world.definitions.aggregations)
        shop.follower.drain()
        yield shop


def plant(shop: Shop, seed: int) -> set[Group]:
    """So many drifts, of three kinds; those of deleted rows are certain with `one_shard` only."""
    chance = random.Random(seed)
    groups = [(f"item{item}", f"2024-07-{day + 1:02}") for item in range(ITEMS) for day in range(DAYS)]
    chance.shuffle(groups)
    candidates = iter(groups)
    planted: set[Group] = set()
    for group in itertools.islice(candidates, DRIFTS // 2):
        quantity, orders = chance.choice([(1, 0), (-7, 0), (0, 1), (3, -2), (10**20, 0)])
        shop.add_unnoticed(group, quantity, orders)
        planted.add(group)
    while len(planted) < DRIFTS // 2 + DELETED:
        group = next(candidates)
        if shop.delete_row(group):
            planted.add(group)
    for number in range(DRIFTS // 5):
        group = (f"nobody-ordered-{number}", "2024-07-01")
        shop.add_unnoticed(group, 1 + number, 1)
        planted.add(group)
    return planted


def test_healthy_busy_table__has_no_drift(shop: Shop, seed: int) -> None:
    with busy(shop.busy_writer(seed), shop.busy_writer(seed + 1), shop.follower):
        time.sleep(0.5)

        live = shop.reconcile(patience=BUSY)
        whole = shop.repair(patience=BUSY)

    assert (live.drifted, live.undecided, whole.drifted, whole.undecided) == (0, 0, 0, 0)
    assert {finding.verdict for finding in (*live.findings, *whole.findings)} <= {Verdict.UNPROVABLE}
    assert live.aggregates > ITEMS * DAYS // 2
    assert live.records > 5
    assert not [page for page in scan(shop.world.client, shop.world.ledger_table) if "repair" in page["page"]["S"]]
    shop.assert_exact()


@pytest.mark.long
@pytest.mark.usefixtures("one_shard")
def test_planted_drifts__are_found_and_repaired(shop: Shop, seed: int) -> None:
    with busy(shop.busy_writer(seed), shop.busy_writer(seed + 1), shop.follower):
        planted = plant(shop, seed)

        found = shop.reconcile(patience=BUSY)
        repaired = shop.repair(patience=BUSY)
        afterwards = shop.reconcile(patience=BUSY)

    assert len(planted) == DRIFTS
    assert groups(found, Verdict.DRIFT) == planted
    assert (found.drifted, found.undecided) == (DRIFTS, 0)
    assert groups(repaired, Verdict.REPAIRED) == planted
    assert (repaired.drifted, repaired.undecided) == (0, 0)
    assert (afterwards.drifted, afterwards.undecided) == (0, 0)
    shop.assert_exact()
    for group in planted:
        explanation = shop.explained(group)
        assert explanation.matches
        kinds = {receipt.kind for receipt in explanation.receipts}
        # Of a row that was deleted, its records are counted again.
        assert ReceiptKind.REPAIR in kinds or kinds == {ReceiptKind.RECORD}


def test_difference_is_what_was_planted__measure_by_measure(shop: Shop) -> None:
    group = ("item1", "2024-07-01")
    shop.add_unnoticed(group, 5, -1)

    (finding,) = (one for one in shop.reconcile().findings if one.verdict is Verdict.DRIFT)

    assert (finding.aggregation.name, finding.group) == ("sold", group)
    assert finding.difference == (Decimal(-1), Decimal(5))  # orders, quantity


def test_tampered_total_of_an_aggregation_that_keeps__is_drift(shop: Shop) -> None:
    """Also after removals, which the source cannot tell any more."""
    ever = shop.world.definitions.aggregations[1]
    for number in range(0, shop.existing, 2):
        shop.world.client.delete_item(TableName=shop.source, Key={"orderid": {"S": str(number)}})
    shop.follower.drain()
    right = shop.reconcile()
    shop.world.client.update_item(
        TableName=ever.table,
        Key={"item_number": {"S": "item1"}},
        UpdateExpression="SET quantity = :much",
        ExpressionAttributeValues={":much": {"N": "999"}},
    )

    wrong, repaired, after = shop.reconcile(), shop.repair(), shop.reconcile()

    assert (right.findings, right.unproved) == ((), ())
    assert [(one.aggregation, one.group, one.verdict) for one in wrong.findings] == [(ever, ("item1",), Verdict.DRIFT)]
    assert [one.verdict for one in repaired.findings] == [Verdict.REPAIRED]
    assert after.findings == ()
    shop.assert_exact(ever)


def test_removals_meanwhile__are_no_drift(shop: Shop, seed: int) -> None:
    """Before the run nothing was removed; what is removed during it, the stream tells."""
    chance = random.Random(seed)
    numbers = list(range(shop.existing))
    chance.shuffle(numbers)

    def remove() -> None:
        if numbers:
            shop.world.client.delete_item(TableName=shop.source, Key={"orderid": {"S": str(numbers.pop())}})
        time.sleep(0.005)

    class Removing(ScanSource):
        def pages(self, resume: Any) -> Any:
            for page in super().pages(resume):
                for _ in range(30):
                    remove()
                yield page

    with busy(shop.follower):
        items = Removing(shop.world.client, shop.source, segments=2)
        report = shop.reconcile(items=items, reader=shop.reader("LATEST"), patience=BUSY)

    assert len(numbers) < shop.existing - 30
    assert report.findings == ()


# --- The worker stands still ------------------------------------------------------------------------------------------


def test_worker_that_moves_on_within_the_patience__is_no_drift(shop: Shop, seed: int) -> None:
    writer = shop.busy_writer(seed)
    for _ in range(40):
        writer()  # nobody has counted these: they are in flight when the run begins
    wakes_at = time.monotonic() + 1.5

    def sleepy_follower() -> None:
        if time.monotonic() < wakes_at:
            time.sleep(0.05)
        else:
            shop.follower()

    with busy(writer, sleepy_follower):
        report = shop.reconcile(patience=4.0)

    assert (report.drifted, report.undecided) == (0, 0)
    shop.assert_exact()


def test_worker_that_stands_still__is_not_taken_for_healthy(shop: Shop, seed: int) -> None:
    writer = shop.busy_writer(seed)
    for _ in range(30):
        writer()
    before = shop.reconcile(patience=0.4)

    with busy(writer):
        during = shop.reconcile(patience=0.8)
        whole = shop.repair(patience=0.8)

    # Also with nothing after the cut: what the stream held before is read then.
    assert (before.drifted, before.is_decided) == (0, False)
    assert before.undecided
    assert (during.drifted, during.undecided > 0) == (0, True)
    assert (whole.drifted, whole.undecided > 0) == (0, True)
    shop.assert_exact()


# --- Dead letters -----------------------------------------------------------------------------------------------------


def test_record_in_a_dead_letter_only__waits_for_its_replay(
    shop: Shop,
) -> None:
    """The letter's record has left the stream, as after a day: a new stream begins without it."""
    client = shop.world.client
    order = {"orderid": {"S": "parked"}, "item_number": {"S": "item1"}, "order_date": {"S": "2024-07-01"}}
    client.put_item(TableName=shop.source, Item=order | {"quantity": {"N": "12"}})
    letter = shop.next_record()
    client.update_table(TableName=shop.source, StreamSpecification={"StreamEnabled": False})
    shop.stream_arn = enable_stream(client, shop.source)
    shop.add_unnoticed(("item1", "2024-07-01"), 1_000)
    shop.add_unnoticed(("item2", "2024-07-01"), 1_000)

    waiting = shop.reconcile(letters=lambda: Waiting([letter], []))
    shop.world.deliver([letter])
    again = shop.reconcile(letters=lambda: Waiting([letter], []))  # not deleted yet; its receipts stand
    last = shop.reconcile()

    assert groups(waiting, Verdict.WAITS) == {("item1", "2024-07-01")}
    assert groups(waiting, Verdict.REPAIRED) == {("item2", "2024-07-01")}
    assert waiting.drifted == 2  # in each of the two aggregations
    assert groups(again, Verdict.REPAIRED) == {("item1", "2024-07-01")}
    assert last.drifted == 0
    shop.assert_exact()


def test_record_in_stream_and_dead_letter__is_not_repaired(shop: Shop) -> None:
    client = shop.world.client
    order = {"orderid": {"S": "parked"}, "item_number": {"S": "item1"}, "order_date": {"S": "2024-07-01"}}
    client.put_item(TableName=shop.source, Item=order | {"quantity": {"N": "12"}})
    letter = shop.next_record()

    waiting = shop.reconcile(letters=lambda: Waiting([letter], []))
    shop.world.deliver([letter])
    replayed = shop.reconcile(letters=lambda: Waiting([letter], []))

    (finding,) = (one for one in waiting.findings if one.aggregation.name == "sold")
    assert (finding.verdict, finding.difference) == (Verdict.WAITS, (Decimal(-1), Decimal(-12)))
    assert replayed.drifted == 0
    shop.assert_exact()


def test_corrected_order__has_brought_the_total_right_by_itself(shop: Shop) -> None:
    client = shop.world.client
    order = {"orderid": {"S": "0"}, "item_number": {"S": "item1"}, "order_date": {"S": "2024-07-01"}}
    client.put_item(TableName=shop.source, Item=order | {"quantity": {"S": "twelve"}})
    shop.follower.drain()
    while_bad = shop.repair()
    client.put_item(TableName=shop.source, Item=order | {"quantity": {"N": "12"}})
    shop.follower.drain()
    corrected = shop.repair()

    assert (while_bad.findings, corrected.findings) == ((), ())
    assert [type(one) for one in shop.world.dead_letters.parked] == [Notice, Notice]
    shop.world.dead_letters.parked.clear()
    shop.assert_exact()


# --- Repairs that meet trouble ----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.usefixtures("one_shard")
def test_two_repairs_at_once__correct_once(shop: Shop, seed: int) -> None:
    planted = plant(shop, seed)
    barrier, calls = threading.Barrier(2), itertools.count()

    def together() -> Waiting:
        if next(calls) < 2:  # the first one of each
            barrier.wait()
        return NOTHING_WAITS()

    def repair() -> Report:
        return shop.reconcile(letters=together, patience=BUSY)

    with busy(shop.busy_writer(seed), shop.follower):
        reports = side_by_side(repair, repair)

    assert [report.drifted for report in reports] == [0, 0]
    corrections = [page for page in scan(shop.world.client, shop.world.ledger_table) if "repair|" in page["page"]["S"]]
    assert len(corrections) == len(planted) - DELETED
    shop.assert_exact()


@pytest.mark.long
@pytest.mark.usefixtures("one_shard")
def test_repair_whose_answers_are_lost__corrects_once(shop: Shop, seed: int) -> None:
    planted = plant(shop, seed)
    calls = itertools.count()

    def loses_answers(call: Call, request: dict[str, Any]) -> Any:
        answer = call(**request)
        if next(calls) % 2 == 0:
            raise ConnectionClosedError(endpoint_url="http://lost")
        return answer

    with busy(shop.busy_writer(seed), shop.follower):
        report = shop.repair(client=ClientWith(shop.world.client, loses_answers), patience=BUSY)

    assert groups(report, Verdict.REPAIRED) == planted
    shop.assert_exact()


@pytest.mark.long
@pytest.mark.usefixtures("one_shard")
@pytest.mark.parametrize("before", [True, False], ids=["before the write", "after the write"])
def test_killed_repair__the_next_one_corrects_the_rest_once(shop: Shop, seed: int, before: bool) -> None:
    class Killed(BaseException):
        pass

    planted = plant(shop, seed)
    calls = itertools.count()

    def dies(call: Call, request: dict[str, Any]) -> Any:
        number = next(calls)
        if number > 5 or (before and number == 5):
            raise Killed
        answer = call(**request)
        if number == 5:
            raise Killed
        return answer

    with busy(shop.busy_writer(seed), shop.follower):
        with pytest.raises(Killed):
            shop.repair(client=ClientWith(shop.world.client, dies), patience=BUSY)
        report = shop.repair(patience=BUSY)

    assert 0 < len(groups(report, Verdict.REPAIRED)) < len(planted)
    assert report.drifted == 0
    corrections = [page for page in scan(shop.world.client, shop.world.ledger_table) if "repair|" in page["page"]["S"]]
    assert len(corrections) == len(planted) - DELETED
    shop.assert_exact()


def test_hot_aggregate__is_repaired_between_its_writes(shop: Shop, dynamodb_local: DynamoDBLocal, seed: int) -> None:
    """Every write and every batch is about one total, which moves after every few requests of the repair.

    An attempt takes four requests. They are what the worker waits for, not time: on a slow machine the repair would
    need more of it than there is between two batches.
    """
    client = dynamodb_local.client("dynamodb")
    requests: list[str] = []
    client.meta.events.register("before-call", lambda model, **_: requests.append(model.name))
    chance = random.Random(seed)
    numbers = itertools.count()
    due_after = [0]  # so many requests: each batch

    def follow() -> None:
        if len(requests) < due_after[-1]:
            time.sleep(0.001)
        elif shop.follower():
            due_after.append(len(requests) + chance.randrange(1, 9))

    def write() -> None:
        time.sleep(0.01)
        order = {"orderid": {"S": f"hot-{next(numbers)}"}, "item_number": {"S": "item1"}}
        shop.world.client.put_item(
            TableName=shop.source, Item=order | {"order_date": {"S": "2024-07-01"}, "quantity": {"N": "1"}}
        )

    shop.add_unnoticed(("item1", "2024-07-01"), 1_000)

    with busy(write, write, follow):
        report = shop.repair(client=client, patience=BUSY)

    assert groups(report, Verdict.REPAIRED) == {("item1", "2024-07-01")}
    assert len(due_after) > 5, "the total hardly moved"
    shop.assert_exact()


def test_unfinished_backfill__is_not_repaired_over(shop: Shop) -> None:
    shop.add_unnoticed(("item1", "2024-07-01"), 5)
    label = shop.stream_arn.rsplit("/", 1)[1]
    marker = {"aggregate": {"S": "sold"}, "page": {"S": "backfill"}, STARTED_AT: {"N": "1"}}
    shop.world.client.put_item(TableName=shop.world.ledger_table, Item=marker | {CUT: {"S": f"stream {label}"}})

    refused = shop.repair()
    shop.world.client.put_item(TableName=shop.world.ledger_table, Item=marker | {CUT: {"S": "stream of old"}})
    repaired = shop.repair()

    (finding,) = (one for one in refused.findings if one.verdict is Verdict.DRIFT)
    assert "finish its backfill first" in finding.note
    assert any("not finished" in hint for hint in refused.hints)
    assert groups(repaired, Verdict.REPAIRED) == {("item1", "2024-07-01")}
    taken_over = read_marker(shop.world.client, shop.world.ledger_table, "sold")
    assert taken_over is not None
    assert (taken_over.cut, taken_over.finished_at is not None) == ("repair", True)


def test_repair__closes_an_aggregation_to_a_backfill(shop: Shop) -> None:
    shop.add_unnoticed(("item1", "2024-07-01"), 5)

    shop.repair()

    marker = shop.world.client.get_item(
        TableName=shop.world.ledger_table, Key={"aggregate": {"S": "sold"}, "page": {"S": "backfill"}}
    )["Item"]
    assert (marker[CUT], FINISHED_AT in marker) == ({"S": "repair"}, True)


# --- Aggregations of which nothing can be said ------------------------------------------------------------------------


def test_aggregation_with_since__is_compared_once_backfilled(
    dynamodb_local: DynamoDBLocal,
) -> None:
    since = 'remove = "retract"\nsince = "2020-01-01T00:00:00Z"'
    with a_shop(dynamodb_local, SOLD.replace('remove = "retract"', since)) as shop:
        shop.add_unnoticed(("item1", "2024-07-01"), 5)

        before = shop.reconcile()
        marker = {"aggregate": {"S": "sold"}, "page": {"S": "backfill"}, CUT: {"S": "since 2020-01-01T00:00:00Z"}}
        shop.world.client.put_item(
            TableName=shop.world.ledger_table, Item=marker | {STARTED_AT: {"N": "1"}, FINISHED_AT: {"N": "2"}}
        )
        after = shop.repair()

        assert (before.left_out, before.compared, before.is_decided) == (("sold",), ("ever_sold",), False)
        assert groups(before, *Verdict) == set()
        assert groups(after, Verdict.REPAIRED) == {("item1", "2024-07-01")}
        shop.assert_exact()


def test_aggregation_that_no_worker_knows_yet__is_not_repaired(shop: Shop) -> None:
    shop.add_unnoticed(("item1", "2024-07-01"), 5)
    shop.world.client.delete_item(
        TableName=shop.world.ledger_table, Key={"aggregate": {"S": "#catalogue"}, "page": {"S": "catalogue"}}
    )

    report = shop.repair()

    (finding,) = (one for one in report.findings if one.verdict is Verdict.DRIFT)
    assert "no worker has counted" in finding.note
    assert any("deploy the definitions" in hint for hint in report.hints)


def test_definition_that_has_changed__is_refused(shop: Shop) -> None:
    changed = parse_definitions(shop.text.replace('count = "orders"\n', ""))

    with pytest.raises(CatalogueError, match="sold"):
        shop.reconcile(definitions=changed, aggregations=changed.aggregations)


# --- The command and the function -------------------------------------------------------------------------------------


@pytest.fixture
def surroundings(shop: Shop, dynamodb_local: DynamoDBLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment in which command and function find this shop; gives the definitions file."""
    file = tmp_path / "aggregations.toml"
    file.write_text(shop.text)
    environment = {
        **local_environment(dynamodb_local),
        "LEDGER_TABLE": shop.world.ledger_table,
        "LEDGER_RETENTION_DAYS": "60",
        "AGGREGATIONS_FILE": str(file),
        "SOURCE_STREAM_ARN": shop.stream_arn,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("aggregation_worker.reconciliation.scheduled.StreamReader", PromptReader)
    return file


def test_command__finds_repairs_and_then_finds_nothing(
    shop: Shop, surroundings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aggregation_worker.operations.reconcile.AllLetters.read", lambda _: NOTHING_WAITS())
    shop.add_unnoticed(("item1", "2024-07-01"), 5)
    run = ["reconcile", "--patience", str(BUSY), "--no-metric"]

    with busy(shop.busy_writer(1), shop.follower):
        statuses = [main([*run, "--json"]), main([*run, "--repair", "--csv"]), main([*run, "sold"])]

    output = capsys.readouterr()
    document, _, rest = output.out.partition("\n}\n")
    (finding,) = (one for one in json.loads(document + "}")["findings"] if one["verdict"] == "drift")
    assert statuses == [1, 0, 0]
    assert (finding["keys"], finding["difference"]) == (
        {"item_number": "item1", "order_date": "2024-07-01"},
        {"orders": "0", "quantity": "5"},
    )
    assert any(line.startswith("sold,item1,2024-07-01,quantity,") and "repaired" in line for line in rest.splitlines())
    assert "all are right." in rest
    assert "aggregator: reading items\n" in output.err
    assert main(["explain", shop.sold.table, "item1", "2024-07-01"]) == 0
    assert "found in the total without a receipt" in " ".join(capsys.readouterr().out.split())
    shop.assert_exact()


def test_function__publishes_the_drift_and_then_none(
    shop: Shop, surroundings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scheduled, "reconcile", functools.partial(scheduled.reconcile, patience=BUSY))
    context: Any = None
    shop.add_unnoticed(("item1", "2024-07-01"), 5)

    with busy(shop.busy_writer(1), shop.follower):
        first = scheduled.lambda_handler({}, context)
        shop.add_unnoticed(("item1", "2024-07-01"), -5)
        second = scheduled.lambda_handler({}, context)

    assert (first["verdicts"]["drift"], second["verdicts"]["drift"]) == (1, 0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "AggregateDrift" in line]
    assert [line["AggregateDrift"] for line in lines] == [[1.0], [0.0]]


def test_local_pipeline__worker_that_was_wrong_is_made_up_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through SQS and CloudWatch, too: the bad deployment cannot use what it reads, and sends notices."""
    run = ["reconcile", "--repair", "--patience", str(QUIET), "--json"]

    def report(status: int) -> Any:
        capsys.readouterr()
        assert main(run) == status
        output = capsys.readouterr()
        assert "was not published" not in output.err
        return json.loads(output.out[output.out.index('{\n  "startedAt"') :])

    def never_a_number(_: object) -> Decimal:
        raise ValueError("not a number")

    with running_pipeline(SAMPLE_FILE) as pipeline:
        (aggregation,) = pipeline.definitions.aggregations
        order = {"order_date": {"S": "2024-07-15"}, "quantity": {"N": "3"}}
        items = [order | {"orderid": {"S": str(n)}, "item_number": {"S": f"item{n % 3}"}} for n in range(9)]
        load(pipeline.dynamodb, pipeline.definitions.source.table, items[:8])
        pipeline.mapping.drain(60)
        with monkeypatch.context() as bad_deployment:
            bad_deployment.setattr("aggregation_worker.aggregations.contributions.parse_number", never_a_number)
            pipeline.dynamodb.put_item(TableName=pipeline.definitions.source.table, Item=items[8])
            pipeline.mapping.drain(60)
        for name in ("item0", "item2"):
            pipeline.dynamodb.update_item(
                TableName=aggregation.table,
                Key={"item_number": {"S": name}, "order_date": {"S": "2024-07-15"}},
                UpdateExpression="ADD quantity :much",
                ExpressionAttributeValues={":much": {"N": "100"}},
            )

        capsys.readouterr()
        replayed = main(["replay", "--in-process", "--json"])
        left = json.loads(capsys.readouterr().out)["lettersLeft"]
        repaired, after = report(0), report(0)

        assert replayed == 1
        assert [one["why"] for one in left] == [NoticeState.REPAIR]
        found = {one["keys"]["item_number"]: one["verdict"] for one in repaired["findings"]}
        assert found == {"item0": "repaired", "item2": "repaired"}
        assert after["findings"] == []
        totals = stored_totals(pipeline.dynamodb, aggregation)
        assert totals == {(f"item{n}", "2024-07-15"): (Decimal(9),) for n in range(3)}
        capsys.readouterr()
        assert main(["replay", "--in-process", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["lettersDeleted"] == 0


# --- Exports ----------------------------------------------------------------------------------------------------------


class ExportBucket:
    """S3 with one export of a table, made of the table as it is."""

    def __init__(self, shop: Shop) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        table = shop.world.client.describe_table(TableName=shop.source)["Table"]
        self.objects = export_objects(table["TableArn"], list(scan(shop.world.client, shop.source)), now)

    def get_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803 - boto3's names
        return {"Body": io.BytesIO(self.objects[Key])}

    def get_paginator(self, operation: str) -> Any:
        bucket = self

        class Paginator:
            def paginate(self, *, Bucket: str, Prefix: str) -> Iterator[dict[str, Any]]:  # noqa: N803 - boto3's names
                yield {"Contents": [{"Key": key} for key in bucket.objects if key.startswith(Prefix)]}

        assert operation == "list_objects_v2"
        return Paginator()


@pytest.mark.long
@pytest.mark.usefixtures("one_shard")
def test_export_in_s3__gives_the_same_report_as_a_scan(shop: Shop, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The test's stream is seconds old; the margin is for an export's minute of fuzziness.
    monkeypatch.setattr("aggregation_worker.reconciliation.snapshot._EXPORT_FUZZ", datetime.resolution)
    with busy(shop.busy_writer(seed), shop.busy_writer(seed + 1), shop.follower):
        planted = plant(shop, seed)
        bucket: Any = ExportBucket(shop)
        time.sleep(0.3)

        exported = shop.reconcile(items=ExportSource(bucket, "bucket", "orders", table=shop.source), patience=BUSY)
        scanned = shop.reconcile(patience=BUSY)

    assert groups(exported, Verdict.DRIFT) == groups(scanned, Verdict.DRIFT) == planted

    def differences(report: Report) -> dict[Group, Any]:
        return {one.group: one.difference for one in report.findings if one.verdict is Verdict.DRIFT}

    assert differences(exported) == differences(scanned)
    assert exported.items > ORDERS // 2

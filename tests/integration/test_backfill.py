"""Backfill of tables that are written to all the time: totals end without drift, whatever happens to the tool."""

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.aggregations.definitions import parse_definitions
from aggregation_worker.aggregations.descriptions import moment_text
from aggregation_worker.ledger.catalogue import CatalogueError, register
from aggregation_worker.ledger.markers import read_marker
from aggregation_worker.ledger.receipts import BACKFILL_PAGE, backfill_attribute, backfill_value, second_of
from aggregation_worker.local.ministack import Ministack
from aggregation_worker.local.recompute import scan, totals_of
from aggregation_worker.operations.cli import main
from aggregation_worker.reconciliation import snapshot, survey
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.streams import reader as stream_reader
from aggregation_worker.streams.shards import Shard, StreamShards
from tests.dynamodb_local import DynamoDBLocal
from tests.integration import shop as shops
from tests.integration.busy_table import Follower, Orders, busy, drift, enable_stream
from tests.integration.shop import SOLD, export_objects, local_environment
from tests.sizes import size
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
BY_CUSTOMER = """
[[aggregations]]
name = "by_customer"
table = "TARGET-by-customer"
partition_key = { name = "customer", from = "customer", type = "N" }
sum = { quantity = "quantity" }
remove = "retract"
"""
# Shares its rows with `sold`.
LATER = """
[[aggregations]]
name = "later"
table = "TARGET"
partition_key = { name = "item_number", from = "item_number" }
sort_key = { name = "order_date", from = "order_date", truncate = "day" }
sum = { large_quantity = "quantity" }
where = "quantity > `50`"
remove = "retract"
"""


@dataclass(slots=True)
class Shop(shops.Shop):
    """A source table, its totals, and the command over them.

    Attributes:
        folder: of spools and definitions files.
        environment: in which the command finds the tables.
        takeover: seconds from now until which the backfill takes workers for ones that do not know everything yet.
    """

    folder: Path = field(init=False)
    environment: dict[str, str] = field(init=False)
    takeover: int = 0
    followers: list[Follower] = field(default_factory=list)

    def follower(self, *names: str) -> Follower:
        """A worker that starts now and knows the aggregations with these names, or all."""
        follower = Follower(self.world, self.streams, self.stream_arn, self.world.definitions)
        follower.deploy(self.knowing(*names))
        self.followers.append(follower)
        return follower

    def knowing(self, *names: str) -> Definitions:
        """The definitions with these aggregations only, or all."""
        aggregations = tuple(one for one in self.world.definitions.aggregations if not names or one.name in names)
        return replace(self.world.definitions, aggregations=aggregations)

    def define(self, old: str, new: str) -> None:
        """Changes the definitions' text; a worker counts by them when they are deployed."""
        assert self.text.count(old) == 1
        self.text = self.text.replace(old, new)
        self.world.definitions = parse_definitions(self.text)

    def definitions_file(self, text: str | None = None) -> Path:
        """A definitions file with this text, or with all aggregations."""
        file = self.folder / f"{uuid.uuid4().hex}.toml"
        file.write_text(self.text if text is None else text)
        return file

    def arguments(self, *arguments: str, state: str = "spool", text: str | None = None) -> list[str]:
        """The command line of a backfill."""
        return [
            "backfill",
            *("--state", str(self.folder / state)),
            *("--definitions", str(self.definitions_file(text))),
            *("--catch-up-until", moment_text(int(time.time()) + self.takeover)),
            *arguments,
        ]

    def backfill(self, *arguments: str, state: str = "spool", text: str | None = None) -> int:
        """Runs the command in this process."""
        return main(self.arguments(*arguments, state=state, text=text))

    def start(self, *arguments: str, state: str) -> "subprocess.Popen[str]":
        """Runs the command in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "aggregation_worker", *self.arguments(*arguments, state=state)],
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def assert_exact(self) -> None:
        """When nobody writes any more: no total has drifted, and receipts prove every one."""
        for follower in self.followers:
            follower.drain()
        assert drift(self.world, self.source, self.world.definitions.aggregations) == {}
        self.world.assert_totals_are_the_sum_of_receipts()
        assert self.world.dead_letters.parked == []


@contextmanager
def a_shop(
    server: Any,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *aggregations: str,
    environment: Mapping[str, str],
    orders: Orders = Orders(),  # noqa: B008 - frozen
    **options: Any,
) -> Iterator[Shop]:
    """A table that has held orders for years, whose stream is switched on just now, and the environment for it."""
    with shops.a_shop(server, Shop, *aggregations, orders=orders, **options) as shop:
        shop.folder = folder
        shop.environment = {
            **environment,
            "LEDGER_TABLE": shop.world.ledger_table,
            "LEDGER_RETENTION_DAYS": "60",
            "XDG_CACHE_HOME": str(folder),
        }
        for name, value in shop.environment.items():
            monkeypatch.setenv(name, value)
        yield shop


@pytest.fixture
def shop(dynamodb_local: DynamoDBLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """Twenty old orders, of which one has text where a number belongs."""
    broken = {"orderid": {"S": "broken"}, "item_number": {"S": "item1"}, "order_date": {"S": "2024-07-01"}}
    with a_shop(
        dynamodb_local,
        tmp_path,
        monkeypatch,
        SOLD,
        BY_CUSTOMER,
        existing=20,
        environment=local_environment(dynamodb_local),
        more=({**broken, "customer": {"N": "1"}, "quantity": {"S": "ten"}},),
    ) as shop:
        shop.takeover = -2  # all is over before a test begins
        yield shop


# --- While everything runs ------------------------------------------------------------------------------------------

WAITING = "waiting for workers"
# Where each of ten runs is killed: the stage, and how many seconds at most after its beginning; and whether the spool
# is lost with the machine that held it.
KILLS = (
    ("", 1.0, True),  # else it can have read all items already
    ("reading items", 0.2, False),
    ("reading items", 1.0, False),
    ("reading items", 1.5, True),
    ("reading the stream", 0.1, False),
    ("adding up", 0.3, False),
    (WAITING, 0.3, False),
    ("posting records", 0.3, False),
    ("posting starting values", 0.2, False),
    ("posting starting values", 0.4, False),
)


@pytest.mark.long
def test_adopting_a_busy_table__ends_without_drift(
    dynamodb_local: DynamoDBLocal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seed: int,
) -> None:
    environment = local_environment(dynamodb_local)
    with a_shop(
        dynamodb_local,
        tmp_path,
        monkeypatch,
        *(SOLD, BY_CUSTOMER, LATER),
        existing=size(4_000, long=50_000),
        environment=environment,
        orders=Orders(customers=size(2_000, long=5_000)),
    ) as shop:
        worker = shop.follower("sold", "by_customer")
        writers = [shop.writer(seed + number, pause=size(32, long=4) / 1_000) for number in range(3)]
        with busy(worker, *writers):
            killed_ten_times(shop, random.Random(seed))

            both = [shop.start("sold", "--json", state=state) for state in ("one", "other")]
            told = [one.communicate(timeout=300) for one in both]
            assert [one.returncode for one in both] == [0, 0], told
            added = [json.loads(output)["aggregations"] for output, _ in told]
            assert sum(one["added"] for part in added for one in part) == 40 * 5

            first_that_know = worker.records
            worker.deploy(shop.knowing())
            capsys.readouterr()
            assert shop.backfill("--json", state="later") == 0
            (later,) = json.loads(capsys.readouterr().out)["aggregations"]
            assert (later["name"], later["aggregates"]) == ("later", 40 * 5)
            assert first_that_know > 0
            assert later["recordsCaughtUp"] > 0

            assert shop.backfill("--json", state="again") == 0
            again = json.loads(capsys.readouterr().out)
            assert (again["aggregations"], len(again["finishedBefore"])) == ([], 3)
        assert all(writer.writes > 100 for writer in writers)
        shop.assert_exact()
        assert not list(tmp_path.glob("spool*")), "the spool has done its work"


def killed_ten_times(shop: Shop, chance: random.Random) -> None:
    """Kills `backfill by_customer` at ten moments, each time continuing; then lets it finish."""
    for stage, longest, lost in KILLS[:: size(3, long=1)]:
        more = ("--catch-up-until", moment_text(int(time.time()) + 3_600)) if stage == WAITING else ()
        process = shop.start("by_customer", "--rate", "1000", *more, state="spool")
        reached = threading.Event()
        lines: list[str] = []
        reading = threading.Thread(target=_watch, args=(process, stage, reached, lines))
        reading.start()
        if stage:
            reached.wait(300)
        time.sleep(longest * chance.random())
        process.kill()
        reading.join()
        process.communicate()
        assert process.returncode == -9, f"it ended before it could be killed while {stage}: {lines}"
        if lost:
            for file in shop.folder.glob("spool*"):
                file.unlink()
    last = shop.start("by_customer", "--json", state="spool")
    output, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    (result,) = json.loads(output)["aggregations"]
    assert result["added"] < result["aggregates"], "earlier runs had posted some"


def _watch(process: "subprocess.Popen[str]", stage: str, reached: threading.Event, lines: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if stage and stage in line:
            reached.set()
    reached.set()


def test_since__is_exact_with_records_on_both_sides_of_it(
    ministack: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On ministack, whose stream has seconds, where DynamoDB Local's has minutes."""
    monkeypatch.setattr(snapshot, "SINCE_MARGIN", 2)
    monkeypatch.setattr(survey, "SINCE_MARGIN", 2)
    environment = ministack.environment
    with a_shop(ministack, tmp_path, monkeypatch, BY_CUSTOMER, SOLD, existing=300, environment=environment) as shop:
        worker = shop.follower("by_customer")
        writers = [shop.writer(seed) for seed in range(3)]
        with busy(worker, *writers):
            wait_for(lambda: all(writer.writes > 50 for writer in writers))
            since = int(time.time()) + 2
            shop.define('name = "sold"', f'name = "sold"\nsince = "{moment_text(since)}"')
            time.sleep(max(0.0, since + 1.5 - time.time()))
            worker.deploy(shop.knowing())
            time.sleep(2)
            written = [writer.writes for writer in writers]
            wait_for(lambda: all(writer.writes > before + 50 for writer, before in zip(writers, written, strict=True)))
            assert shop.backfill("--json") == 0
            results = {one["name"]: one for one in json.loads(capsys.readouterr().out)["aggregations"]}
        shop.assert_exact()

        assert results["sold"]["cut"] == f"since {moment_text(since)}"
        assert results["sold"]["recordsCaughtUp"] > 0
        seconds = [
            int(record["dynamodb"]["ApproximateCreationDateTime"].timestamp())
            for shard in StreamShards(shop.streams, shop.stream_arn, "TRIM_HORIZON").readable()
            for record in iter_records(shard)
        ]
        before, after = sum(second < since for second in seconds), sum(second >= since for second in seconds)
        print(f"{before} records before since, {after} after")
        assert min(before, after) > 100
        counted = [
            second_of(name)
            for (aggregation, _), receipts in shop.world.receipts().items()
            for name in receipts
            if aggregation == "sold" and not name.startswith("since")
        ]
        assert min(counted) >= since


def test_export_in_place_of_the_table__is_exact_too(
    ministack: Ministack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = ministack.environment
    with a_shop(ministack, tmp_path, monkeypatch, SOLD, existing=300, environment=environment) as shop:
        with busy(shop.follower(), *(shop.writer(seed) for seed in range(2))):
            time.sleep(0.5)
            put_export(ministack, shop)
            time.sleep(0.5)
            assert shop.backfill("--export", "s3://exports/orders") == 0
        shop.assert_exact()


def put_export(ministack: Ministack, shop: Shop) -> None:
    """An export of the table while it is written to: each item as it was at some moment of the export."""
    s3 = ministack.client("s3")
    s3.create_bucket(Bucket="exports")
    table_arn = f"arn:aws:dynamodb:us-east-1:000000000000:table/{shop.source}"
    # To within a minute on AWS, so it must be a minute after the stream's beginning.
    exported_at = moment_text(int(time.time()) + 61)
    for key, body in export_objects(table_arn, list(scan(shop.world.client, shop.source)), exported_at).items():
        s3.put_object(Bucket="exports", Key=key, Body=body)


def iter_records(shard: Shard) -> Iterator[dict[str, Any]]:
    """What a shard that nobody writes to any more holds."""
    while records := shard.read(1_000):
        yield from records


# --- What it says, and what it refuses ------------------------------------------------------------------------------


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, or the sentences of a report, without the breaks of a narrow page."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def everything_in(shop: Shop) -> list[Any]:
    """Ledger and totals."""
    tables = [shop.world.ledger_table, *{one.table for one in shop.world.definitions.aggregations}]
    return [sorted(map(str, scan(shop.world.client, table))) for table in tables]


def test_dry_run__writes_nothing_and_says_what_would_be_added(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    before = everything_in(shop)

    assert shop.backfill("--dry-run") == 0
    text = told(capsys)
    assert shop.backfill("--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)

    assert everything_in(shop) == before
    assert "would get a starting value" in text
    expected = totals_of(shop.world.definitions.aggregations, scan(shop.world.client, shop.source))
    quantity = sum((amounts[1] for (name, _), amounts in expected.items() if name == "sold"), Decimal(0))
    sold, by_customer = document["aggregations"]
    assert (document["dryRun"], sold["totals"]) == (True, {"orders": "20", "quantity": str(quantity)})
    assert by_customer["totals"] == {"quantity": str(quantity)}

    assert shop.backfill() == 0
    shop.assert_exact()


def test_unusable_items__count_nothing_and_are_told(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()

    assert shop.backfill() == 0

    assert "sold: 1 items had values that it cannot use" in told(capsys)
    marker = read_marker(shop.world.client, shop.world.ledger_table, "sold")
    assert marker is not None
    assert (marker.unusable, marker.finished_at is not None) == (1, True)


def test_second_run__says_when_the_first_was_finished(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    assert shop.backfill() == 0
    before = everything_in(shop)
    told(capsys)

    assert shop.backfill("sold") == 0

    assert "sold: backfilled, finished at 20" in (text := told(capsys))
    assert "there is nothing to do" in text
    assert everything_in(shop) == before


def test_receipts_of_a_backfill__explain_the_totals(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    assert shop.backfill() == 0
    order = next(item for item in scan(shop.world.client, shop.source) if item["orderid"]["S"] == "7")
    told(capsys)

    keys = [order["item_number"]["S"], order["order_date"]["S"]]
    table = shop.world.definitions.aggregations[0].table
    assert main(["explain", table, *keys, "--definitions", str(shop.definitions_file())]) == 0

    assert "backfill: what the source held when the stream began" in (text := told(capsys))
    assert "add up to the stored total" in text


def test_starting_values__stand_in_the_rows_and_nothing_of_them_expires(shop: Shop) -> None:
    shop.follower()
    assert shop.backfill() == 0

    receipts = [name for receipts in shop.world.receipts().values() for name in receipts]
    markers = list(scan(shop.world.client, shop.world.ledger_table))

    assert len(receipts) > 20
    assert set(receipts) == {f"stream {shop.stream_arn.rsplit('/', 1)[1]}"}
    assert not any("expires_at" in marker for marker in markers)


def test_ledger_that_is_lost__doubles_nothing(shop: Shop) -> None:
    """Neither starting values nor what the worker has counted: their receipts stand in the rows."""
    shop.follower()
    assert shop.backfill() == 0
    before = shop.world.totals()
    for item in scan(shop.world.client, shop.world.ledger_table):
        key = {name: item[name] for name in ("aggregate", "page")}
        shop.world.client.delete_item(TableName=shop.world.ledger_table, Key=key)
    register(shop.world.client, shop.world.ledger_table, shop.world.definitions.aggregations)

    assert shop.backfill("--catch-up-until", moment_text(int(time.time()))) == 0

    assert shop.world.totals() == before
    shop.assert_exact()


def test_worker_that_outlives_a_deployment__is_caught_up_with(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """It passed its check before the aggregation was there, and counts on without it. None can start so any more."""
    old = shop.follower("by_customer")
    register(shop.world.client, shop.world.ledger_table, shop.knowing().aggregations)
    writer = shop.writer(1)
    for _ in range(30):
        writer()
    old.drain()
    with pytest.raises(CatalogueError, match="lacks 'sold'"):
        shop.follower("by_customer")
    old.deploy(shop.knowing())  # Lambda has replaced it
    for _ in range(30):
        writer()
    shop.takeover = 2

    assert shop.backfill("--json") == 0

    results = {one["name"]: one for one in json.loads(capsys.readouterr().out)["aggregations"]}
    assert results["sold"]["recordsCaughtUp"] > 0
    shop.assert_exact()


def test_aggregation_that_no_worker_knows__is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower("by_customer")

    assert shop.backfill() == 2

    assert "sold: no worker has started with this aggregation yet: deploy it first" in told(capsys)
    assert len(everything_in(shop)[0]) == 1, "nothing but the definition of the other"


def test_changed_definition__is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()

    assert shop.backfill(text=shop.text.replace('count = "orders"', 'count = "n"')) == 2

    assert "'sold' has changed since its totals were begun" in told(capsys)


def test_backfill_begun_from_another_cut__is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    shop.world.client.put_item(
        TableName=shop.world.ledger_table,
        Item={
            "aggregate": {"S": "sold"},
            "page": {"S": BACKFILL_PAGE},
            "cut": {"S": "stream 2024-07-01T00:00:00.000"},
            "started_at": {"N": "1719792000"},
        },
    )

    assert shop.backfill() == 2

    assert "another cut (stream 2024-07-01T00:00:00.000, not stream 20" in told(capsys)


def test_aggregate_with_another_starting_value__is_not_touched(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    order = next(item for item in scan(shop.world.client, shop.source) if item["orderid"]["S"] == "7")
    table = shop.world.definitions.aggregations[1].table
    other_value = {backfill_attribute("by_customer"): backfill_value("stream of old", (Decimal(1),))}
    shop.world.client.put_item(TableName=table, Item={"customer": order["customer"]} | other_value)

    assert shop.backfill("by_customer") == 2

    customer = order["customer"]["N"]
    assert f"by_customer {customer} has another starting value already (stream of old: 1)" in told(capsys)
    row = shop.world.client.get_item(TableName=table, Key={"customer": order["customer"]})["Item"]
    assert "quantity" not in row


def test_totals_made_right_by_a_repair__are_not_filled_again(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    shop.world.client.put_item(
        TableName=shop.world.ledger_table,
        Item={
            "aggregate": {"S": "sold"},
            "page": {"S": BACKFILL_PAGE},
            "cut": {"S": "repair"},
            "started_at": {"N": "1719792000"},
            "finished_at": {"N": "1719792000"},
        },
    )

    assert shop.backfill("sold") == 0

    assert "set right by aggregator reconcile --repair at 2024-07-01T00:00:00Z" in told(capsys)
    assert shop.world.totals() == {}


def test_stream_that_is_too_old__is_refused_with_what_to_do(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.follower()
    before = everything_in(shop)
    monkeypatch.setattr(stream_reader, "RETENTION", timedelta(minutes=30) - timedelta(seconds=1))

    assert shop.backfill() == 2

    assert "keeps its records for 24 hours" in (text := told(capsys))
    assert "give the aggregation a new name and a since" in text
    assert everything_in(shop) == before


def test_stream_younger_than_the_worker__is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    """What the worker counted of the earlier stream is in the items, too."""
    shop.follower()
    time.sleep(1.1)
    shop.world.client.update_table(TableName=shop.source, StreamSpecification={"StreamEnabled": False})
    enable_stream(shop.world.client, shop.source)

    assert shop.backfill() == 2

    assert "it has read an earlier stream" in told(capsys)


def test_table_without_a_stream__is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()
    shop.world.client.update_table(TableName=shop.source, StreamSpecification={"StreamEnabled": False})

    assert shop.backfill() == 2

    assert "has no stream" in told(capsys)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [
        (3_600, "lies in the future: run this again after 20"),
        (-60, "was just now: run this again after 20"),
        (-3_600, "is older than the stream"),
    ],
)
def test_since_at_a_wrong_time__is_refused(
    dynamodb_local: DynamoDBLocal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: int,
    message: str,
) -> None:
    since = moment_text(int(time.time()) + seconds)
    environment = local_environment(dynamodb_local)
    text = SOLD + f'since = "{since}"\n'
    with a_shop(dynamodb_local, tmp_path, monkeypatch, text, existing=3, environment=environment) as shop:
        shop.follower()

        assert shop.backfill() == 2

        assert message in told(capsys)


def test_spool_that_another_run_works_with__is_refused(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.follower()

    with Spool(shop.folder / "spool"):
        assert shop.backfill() == 2

    assert "spool" in told(capsys)
    assert shop.backfill() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("salt",), "no aggregation is named 'salt'"), (("--export", "here"), "--export: s3://bucket/prefix is needed")],
)
def test_mistake_on_the_command_line__is_one_clear_line(
    shop: Shop, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    shop.follower()

    assert shop.backfill(*arguments) == 2

    assert message in told(capsys)


def test_spool_without_a_name__is_in_the_cache_until_all_is_done(shop: Shop) -> None:
    shop.follower()
    arguments = shop.arguments("--dry-run")
    at = arguments.index("--state")
    nameless = [*arguments[:at], *arguments[at + 2 :]]
    folder = shop.folder / "dynamodb-aggregation-worker"

    assert main(nameless) == 0
    kept = list(folder.glob("backfill-*"))
    assert main([one for one in nameless if one != "--dry-run"]) == 0

    assert kept
    assert list(folder.iterdir()) == []
    shop.assert_exact()

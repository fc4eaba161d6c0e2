"""Posting starting values: each goes in once, whatever is lost, repeated, refused or killed in between."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import botocore.exceptions
import pytest

from aggregation_worker.ledger.markers import MarkerError, cut_of, read_marker
from aggregation_worker.ledger.receipts import backfill_attribute, backfill_value, read_backfill, second_of
from aggregation_worker.operations import backfill as command
from aggregation_worker.operations.cli import main
from aggregation_worker.reconciliation import backfill as core
from aggregation_worker.reconciliation.backfill import Backfill, Result
from aggregation_worker.reconciliation.items import ItemPage, Pages
from aggregation_worker.reconciliation.posting import PostingError
from aggregation_worker.reconciliation.progress import Stage
from aggregation_worker.reconciliation.spool import Spool
from aggregation_worker.reconciliation.survey import BackfillError, Survey, Target
from aggregation_worker.streams.reader import HistoryLostError
from aggregation_worker.streams.shards import IncompleteDescriptionError, TrimmedError
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, Clock, FaultyDynamoDB, cancelled, client_error
from tests.records import CREATED_AT, STREAM_ARN, STREAM_LABEL, insert, modify, order
from tests.runbook_pages import check_output

DEFINITIONS = definitions(
    aggregation_text('count = "orders"'),
    aggregation_text(
        name="by_day", table="by_day", partition_key='{ name = "day", from = "order_date" }', sort_key=None
    ),
)
TABLE = "item_count_by_date"
# Nine orders of five items on two days, and one of them changed since the stream began.
ITEMS = [
    {
        **order(str(number), item=f"item{number % 5}", quantity=10 + number),
        "order_date": {"S": f"2024-07-1{number % 2}"},
    }
    for number in range(9)
]
CHANGED = {**ITEMS[3], "quantity": {"N": "100"}}
NEW = order("new", item="item7", quantity=5, date="2024-07-11")
RECORDS = [modify(ITEMS[3], CHANGED, created_at=CREATED_AT), insert(NEW, created_at=CREATED_AT + 1)]
for _record, _item in zip(RECORDS, (CHANGED, NEW), strict=True):
    _record["dynamodb"]["Keys"] = {name: _item[name] for name in ("orderid", "order_date")}
LONG_AGO = CREATED_AT - 10_000


class Killed(BaseException):
    """SIGKILL, as far as a process can play it to itself."""


@pytest.mark.parametrize(("dry_run", "says"), [(True, "nothing was written"), (False, "is not added again")])
def test_interrupted_command__says_how_to_go_on(
    dry_run: bool, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: Backfill, *_: Any, **__: Any) -> list[Result]:
        run.progress(Stage.WAITING, 1, 500)
        raise KeyboardInterrupt

    found = Survey((Target(DEFINITIONS.aggregations[0], cut_of(DEFINITIONS.aggregations[0], STREAM_ARN), 1),), {})
    monkeypatch.setattr(command, "survey", lambda *_: found)
    monkeypatch.setattr(command, "chosen_aggregations", lambda *_: [])
    monkeypatch.setattr(command, "items_of", lambda *_: None)
    monkeypatch.setattr(command, "stream_arn_of", lambda *_: STREAM_ARN)
    monkeypatch.setattr("aggregation_worker.operations.backfill.Backfill.run", interrupted)
    monkeypatch.setattr("aggregation_worker.operations.resources.Resources.definitions", DEFINITIONS)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    state = tmp_path / "spool"

    assert main(["backfill", "--ledger-table", "x", "--state", str(state), *(["--dry-run"] if dry_run else [])]) == 130

    waiting, told = capsys.readouterr().err.splitlines()
    assert waiting.endswith(f"{Stage.WAITING}, 499 s at most")
    assert says in told
    assert f"run the command again, and it continues with what it has read, in {state}" in told


class Ledger(FaultyDynamoDB):
    """Tables and ledger."""

    def __init__(self) -> None:
        super().__init__(DEFINITIONS)

    def totals(self) -> dict[str, Any]:
        """All rows, by table."""
        return {name: sorted(map(str, table.items.values())) for name, table in self.tables.items() if name != LEDGER}


class Reader:
    """A stream whose records are all there."""

    stream_arn = STREAM_ARN
    start = "TRIM_HORIZON"

    def __init__(self, records: Sequence[Any] = RECORDS) -> None:
        self.opened_at = datetime.now(UTC)
        self.left = list(records)
        self.history_is_lost_after = 10**9
        self.error: Exception | None = None

    def open(self) -> None:
        pass

    def pages(self) -> Iterator[list[Any]]:
        if self.error is not None:
            raise self.error
        found, self.left = self.left, []
        if found:
            yield found

    def has_passed(self, moment: float) -> bool:
        return not self.left

    def check_history(self, since: datetime) -> None:
        self.history_is_lost_after -= 1
        if self.history_is_lost_after < 0:
            raise HistoryLostError(f"nothing is left of {since:%Y-%m-%d}")


class Items:
    """The table as a scan finds it now."""

    description = "a scan"
    estimated_items = 10
    read_at = None

    def pages(self, resume: Mapping[int, Any]) -> Pages:
        if 0 not in resume:
            now = [CHANGED if item is ITEMS[3] else item for item in ITEMS]
            yield ItemPage(0, [*now, NEW], "end")


class Shop:
    """A backfill of both aggregations, again and again over the same tables."""

    def __init__(self) -> None:
        self.database = Ledger()
        self.clock = Clock(CREATED_AT + 5_000.0)
        self.stages: set[Stage] = set()
        self.known_since = LONG_AGO
        self.patience = 30.0

    def run(self, spool: Path | None = None, reader: Reader | None = None, **options: Any) -> list[Result]:
        """One run; without a spool's file it begins anew."""
        targets = [
            Target(aggregation, cut_of(aggregation, STREAM_ARN), self.known_since)
            for aggregation in DEFINITIONS.aggregations
        ]
        with ThreadPoolExecutor(4) as executor, Spool(spool) as open_spool:
            client: Any = self.database
            source: Any = Items()
            stream: Any = reader or Reader()
            backfill = Backfill(
                client,
                LEDGER,
                60,
                executor,
                patience=self.patience,
                progress=lambda stage, done, of: self.stages.add(stage),
                sleep=self.clock.sleep,
                now=self.clock,
            )
            return backfill.run(targets, DEFINITIONS, source, stream, open_spool, **options)

    def markers(self) -> list[Any]:
        client: Any = self.database
        return [read_marker(client, LEDGER, aggregation.name) for aggregation in DEFINITIONS.aggregations]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setattr(core, "_CHUNK", 2)  # so that there are several transactions
    return Shop()


@pytest.fixture
def expected() -> dict[str, Any]:
    """The totals of an undisturbed run."""
    undisturbed = Shop()
    undisturbed.run()
    return undisturbed.database.totals()


def quantity(shop: Shop, item: str, day: str) -> Decimal:
    return shop.database.total(TABLE, "quantity", item, day)


def unfinish(shop: Shop, aggregation: str) -> None:
    """The ledger as a run leaves it that is killed just before it is done with an aggregation."""
    (marker,) = (item for item in shop.database.tables[LEDGER].items.values() if item["aggregate"]["S"] == aggregation)
    del marker["finished_at"]


def test_starting_values__are_the_items_as_they_were_at_the_cut(shop: Shop) -> None:
    first, second = shop.run()

    # item3 of 2024-07-11: orders 3 (13 at the cut, 100 now) and none else; item8 % 5 is item3, of the other day.
    assert quantity(shop, "item3", "2024-07-11") == 13
    assert quantity(shop, "item3", "2024-07-10") == 18
    assert quantity(shop, "item7", "2024-07-11") == 0
    assert shop.database.total("by_day", "quantity", "2024-07-11") == 11 + 13 + 15 + 17
    assert (first.aggregates, first.added, second.aggregates, second.added) == (9, 9, 2, 2)


def test_starting_values_receipt__is_named_by_the_cut_and_stands_in_the_row(shop: Shop) -> None:
    shop.run()

    rows = shop.database.tables["by_day"].items.values()
    assert sorted(read_backfill(row[backfill_attribute("by_day")]) for row in rows) == [
        (f"stream {STREAM_LABEL}", (Decimal(11 + 13 + 15 + 17),)),
        (f"stream {STREAM_LABEL}", (Decimal(10 + 12 + 14 + 16 + 18),)),
    ]
    assert {item["aggregate"]["S"] for item in shop.database.tables[LEDGER].items.values()} == {TABLE, "by_day"}


def test_starting_value__costs_one_write_of_one_row(shop: Shop) -> None:
    shop.run()

    assert shop.database.sent().count("update_item") == 9 + 2
    assert shop.database.sent().count("transact_write_items") == 3  # the markers


def test_markers__say_when_and_how_many(shop: Shop) -> None:
    shop.run()

    first, second = shop.markers()
    assert first.cut == second.cut == f"stream {STREAM_LABEL}"
    assert (first.aggregates, second.aggregates, first.unusable) == (9, 2, 0)
    assert first.started_at <= first.finished_at == int(shop.clock.time)


def test_second_run__adds_nothing(shop: Shop, expected: dict[str, Any]) -> None:
    shop.run()

    results = shop.run()

    assert [result.added for result in results] == [0, 0]
    assert shop.database.totals() == expected


def test_ledger_that_is_lost__doubles_nothing(shop: Shop) -> None:
    """Neither starting values nor the records of the takeover: their receipts stand in the rows."""
    shop.known_since = CREATED_AT
    shop.run()
    before = shop.database.totals()
    shop.database.tables[LEDGER].items.clear()

    results = shop.run()

    assert [(result.added, result.caught_up) for result in results] == [(0, 0), (0, 0)]
    assert shop.database.totals() == before
    assert all(marker.finished_at for marker in shop.markers())


# --- Whatever happens while posting ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_spool", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_any_write__the_next_run_completes_it(
    expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str, keep_spool: bool
) -> None:
    monkeypatch.setattr(core, "_CHUNK", 2)

    for number in itertools.count():
        shop = Shop()
        spool = tmp_path / f"spool-{number}" if keep_spool else None
        getattr(shop.database, when).extend([None] * number + [_kill])
        try:
            shop.run(spool)
        except Killed:
            shop.database.before.clear()
            shop.database.after.clear()
            # What was not answered yet when it was killed may be carried out or not; both were there by now.
            shop.run(spool)
            ended = False
        else:
            ended = True

        assert shop.database.totals() == expected, f"killed {when} write {number}"
        assert all(marker.finished_at for marker in shop.markers())
        if ended:
            break

    # Nine aggregates and two, and three times a marker.
    assert number == 9 + 2 + 3


def _kill(request: Any) -> None:
    raise Killed


LOST = botocore.exceptions.ReadTimeoutError(endpoint_url="https://dynamodb")


def test_lost_answers__add_nothing_twice(shop: Shop, expected: dict[str, Any]) -> None:
    # The first write is the marker's; botocore repeats that one with its token by itself.
    shop.database.after.extend([None, LOST, LOST, None, LOST])

    results = shop.run()

    assert shop.database.totals() == expected
    assert results[0].added < results[0].aggregates == 9


def test_conflicts_and_throttles__are_waited_out(shop: Shop, expected: dict[str, Any]) -> None:
    shop.database.before.extend(
        [
            None,
            client_error("TransactionConflictException"),
            client_error("ThrottlingException"),
            client_error("ProvisionedThroughputExceededException"),
        ]
    )
    shop.database.reads.append(client_error("ThrottlingException"))

    shop.run()

    assert shop.database.totals() == expected


def test_marker_in_conflict_with_another_run__is_written_again(shop: Shop, expected: dict[str, Any]) -> None:
    shop.database.before.append(cancelled(["TransactionConflict"]))

    shop.run()

    assert shop.database.totals() == expected
    assert all(marker.finished_at for marker in shop.markers())


def test_other_run_posting_the_same_values__counts_nothing_twice(shop: Shop, expected: dict[str, Any]) -> None:
    other = Shop()
    other.database = shop.database
    others: list[Result] = []

    def race(request: Any) -> None:
        if request.operation == "update_item":
            shop.database.on_request = lambda request: None
            others.extend(other.run())

    shop.database.on_request = race

    results = shop.run()

    assert [mine.added + theirs.added for mine, theirs in zip(results, others, strict=True)] == [9, 2]
    assert others[0].added > 5
    assert shop.database.totals() == expected


def test_aggregation_finished_by_another_run__keeps_its_marker(shop: Shop, expected: dict[str, Any]) -> None:
    shop.run()
    finished, by_day = shop.markers()
    unfinish(shop, "by_day")
    shop.clock.time += 60

    shop.run()

    assert shop.markers()[0] == finished
    assert shop.markers()[1].finished_at == by_day.finished_at + 60
    assert shop.database.totals() == expected


def test_row_that_dynamodb_refuses__stops_the_run_until_it_is_mended(shop: Shop, expected: dict[str, Any]) -> None:
    row = {"item_number": {"S": "item0"}, "order_date": {"S": "2024-07-10"}}
    shop.database.put_item(TableName=TABLE, Item={**row, "quantity": {"S": "many"}})

    with pytest.raises(BackfillError, match=r"1 contributions are refused.*item0.*incorrect data type") as refused:
        shop.run()
    assert "run this again" in str(refused.value)
    assert shop.markers()[0].finished_at is None

    shop.database.delete_item(TableName=TABLE, Key=row)
    shop.run()
    assert shop.database.totals() == expected


def test_nothing_goes_through__ends_the_run_to_be_repeated(shop: Shop, expected: dict[str, Any]) -> None:
    shop.database.before.extend([None, *([client_error("ThrottlingException")] * 1_000)])

    shop.patience, patience = 0.3, shop.patience
    with pytest.raises(PostingError, match="nothing could be written for 0 s"):
        shop.run()

    shop.patience = patience
    shop.database.before.clear()
    shop.run()
    assert shop.database.totals() == expected


OTHER_VALUE = {backfill_attribute(TABLE): backfill_value("stream of old", (Decimal(1), Decimal(2)))}


def test_another_starting_value__is_never_added_to(shop: Shop) -> None:
    shop.run()
    unfinish(shop, TABLE)
    rows = shop.database.tables[TABLE].items
    key = next(iter(rows))
    rows[key] = {**rows[key], **OTHER_VALUE}
    before = shop.database.totals()

    with pytest.raises(BackfillError, match=r"has another starting value already \(stream of old: 1, 2\)"):
        shop.run()

    assert shop.database.totals() == before


def test_another_starting_value_just_before_the_write__is_kept(shop: Shop) -> None:
    def come_between(request: Any) -> None:
        if request.operation == "update_item":
            key = request.parameters["Key"]
            shop.database.put_item(TableName=TABLE, Item={**key, **OTHER_VALUE})

    shop.database.on_request = come_between

    with pytest.raises(BackfillError, match=r"has another starting value already \(stream of old: 1, 2\)"):
        shop.run()

    assert not any("quantity" in row for row in shop.database.tables[TABLE].items.values())


def test_dry_run__adds_up_and_writes_nothing(shop: Shop) -> None:
    first, second = shop.run(dry_run=True)

    assert first.totals == (Decimal(9), Decimal(sum(range(10, 19))))
    assert second.totals == (Decimal(sum(range(10, 19))),)
    assert shop.database.requests == []
    assert shop.database.totals() == {TABLE: [], "by_day": []}


@pytest.mark.parametrize(
    ("page", "first", "command_line"),
    [
        ("adopt-a-table", 0, "aggregator backfill --dry-run"),
        ("add-an-aggregation", 1, "aggregator backfill by_day --dry-run"),
    ],
)
def test_pages__show_what_a_dry_run_prints(
    shop: Shop, narrow: None, page: str, first: int, command_line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command._report({}, shop.run(dry_run=True)[first:], command.Request(dry_run=True), as_json=False)

    check_output(page, command_line, capsys.readouterr().out)


def test_killed_after_reading_everything__posts_without_the_stream(
    shop: Shop, expected: dict[str, Any], tmp_path: Path
) -> None:
    shop.database.before.extend([None, None, _kill])
    with pytest.raises(Killed):
        shop.run(tmp_path / "spool")
    shop.database.before.clear()
    reader = Reader()
    reader.error = TrimmedError("gone by now")
    reader.history_is_lost_after = 0

    shop.run(tmp_path / "spool", reader)

    assert shop.database.totals() == expected


# --- Records that workers without the aggregation may have handled ----------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "posted"),
    [(-1, []), (0, [CREATED_AT]), (1, [CREATED_AT, CREATED_AT + 1]), (5, [CREATED_AT, CREATED_AT + 1])],
)
def test_records_created_during_the_takeover__are_posted_here(shop: Shop, seconds: int, posted: list[int]) -> None:
    shop.known_since = CREATED_AT + seconds - core.TAKEOVER

    first, _ = shop.run()

    assert sorted({second_of(name) for _, _, name, _ in shop.database.receipts()}) == posted
    assert first.caught_up == len(posted)
    assert quantity(shop, "item3", "2024-07-11") == (100 if CREATED_AT in posted else 13)


def test_record_that_a_worker_has_counted__is_not_posted_again(shop: Shop) -> None:
    shop.known_since = CREATED_AT
    shop.run()
    before = shop.database.totals()

    results = shop.run()

    assert [result.caught_up for result in results] == [0, 0]
    assert shop.database.totals() == before


def test_snapshot_of_a_dry_run__says_nothing_of_later_records(shop: Shop, tmp_path: Path) -> None:
    shop.run(tmp_path / "spool", Reader(()), dry_run=True)
    shop.known_since = CREATED_AT

    results = shop.run(tmp_path / "spool", Reader())

    assert [result.caught_up for result in results] == [2, 2]


def test_takeover_that_is_not_over__is_waited_for_and_read(shop: Shop) -> None:
    shop.clock.time = CREATED_AT - 100.0
    shop.known_since = CREATED_AT - core.TAKEOVER
    reader = Reader(())

    class LateReader(Reader):
        def pages(self) -> Iterator[list[Any]]:
            if shop.clock.time > CREATED_AT:  # it is written while the tool waits
                yield from super().pages()

        def has_passed(self, moment: float) -> bool:
            return shop.clock.time <= CREATED_AT or super().has_passed(moment)

    reader = LateReader()

    shop.run(reader=reader)

    assert shop.clock.time >= CREATED_AT + 1
    assert Stage.WAITING in shop.stages
    assert quantity(shop, "item3", "2024-07-11") == 100 - 13 + 100  # the fake table held the change from the beginning


@pytest.mark.parametrize("checks", [0, 1, 2])
def test_lost_history__is_refused_with_what_to_do(shop: Shop, checks: int) -> None:
    """At the beginning, at the end of the reading, and when the takeover has been waited for."""
    shop.clock.time = CREATED_AT - 100.0
    shop.known_since = CREATED_AT - core.TAKEOVER
    reader = Reader()
    reader.history_is_lost_after = checks

    with pytest.raises(
        BackfillError, match=r"nothing is left of 2024-07-01: give the aggregation a new name and a since"
    ):
        shop.run(reader=reader)

    assert shop.database.totals() == {TABLE: [], "by_day": []}


def test_trimmed_records__are_refused_with_what_to_do(shop: Shop) -> None:
    reader = Reader()
    reader.error = TrimmedError("records have left the stream")

    with pytest.raises(
        BackfillError, match="records have left the stream: give the aggregation a new name and a since"
    ):
        shop.run(reader=reader)

    assert shop.database.requests == []


def test_shards_listed_in_the_wrong_order__is_refused_with_what_to_do(shop: Shop) -> None:
    reader = Reader()
    reader.error = IncompleteDescriptionError("a shard was listed late: run this again")

    with pytest.raises(BackfillError, match=r"^a shard was listed late: run this again, and it continues where it is$"):
        shop.run(reader=reader)

    assert shop.database.requests == []


# --- Markers --------------------------------------------------------------------------------------------------------


def test_marker_of_another_cut_that_comes_meanwhile__is_refused(shop: Shop) -> None:
    def come_between(request: Any) -> None:
        shop.database.on_request = lambda request: None
        marker = {"cut": {"S": "stream of old"}, "started_at": {"N": "1"}}
        shop.database.put_item(TableName=LEDGER, Item=request.actions()[0]["Key"] | marker)

    shop.database.on_request = come_between

    with pytest.raises(BackfillError, match=r"another cut \(stream of old, not stream"):
        shop.run()

    assert shop.database.totals() == {TABLE: [], "by_day": []}


def test_marker_that_disappears__is_refused(shop: Shop) -> None:
    def take_away(request: Any) -> None:
        if "finished_at" in str(request.parameters):
            shop.database.delete_item(TableName=LEDGER, Key=request.actions()[1]["Key"])

    shop.database.on_request = take_away

    with pytest.raises(MarkerError, match="by_day: its marker has disappeared"):
        shop.run()


def test_markers_in_conflict_all_the_time__end_the_run(shop: Shop) -> None:
    shop.database.before.extend([cancelled(["TransactionConflict"])] * 20)

    with pytest.raises(MarkerError, match="markers in table ledger cannot be written now: run this again later"):
        shop.run()

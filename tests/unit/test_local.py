"""What `aggregator local` tells of each batch, to people and to programs, over the worker and a table in memory."""

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from aggregation_worker.batch import BatchResult
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.delivery import DiscardCondition, DiscardedBatch, Invocation, PolledRecord
from aggregation_worker.operations.cli import main
from tests.records import insert, modify, order, sequence_number
from tests.unit.test_batch import Worker

COUNT_OF_TOTALS, COUNT_OF_ITEMS = 10, 3
MALFORMED = {"quantity": {"S": "ten"}}
ENVIRONMENT = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "LEDGER_TABLE": "ledger"}


class Local:
    """The command, with invocations in place of a pipeline's."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.tell: Callable[[str, BatchResult], None] = lambda request, result: None
        self.on_batch: Callable[[Invocation], None] = lambda invocation: None
        self.on_discarded: Callable[[DiscardedBatch, str | None], None] = lambda batch, key: None
        self.meanwhile: Callable[[], None] = lambda: None

    def deliver(self, *raws: Any, attempt: int = 1, error: str | None = None) -> None:
        """One invocation; with an error, one of which nothing else is known."""
        if error is None:
            self.tell("request", self.worker.deliver(*raws))
        records = tuple(map(PolledRecord.of, raws))
        self.on_batch(Invocation(records, attempt, "request", 12.3, 0 if error else len(raws), error))

    @contextmanager
    def running_pipeline(self, file: Any, *, on_batch: Any, on_discarded: Any, **_: Any) -> Iterator[Any]:
        self.on_batch, self.on_discarded = on_batch, on_discarded
        yield SimpleNamespace(
            server=SimpleNamespace(
                endpoint="http://127.0.0.1:1",
                environment={"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "0", "AWS_SECRET_ACCESS_KEY": "local"},
            ),
            environment=ENVIRONMENT,
            definitions=self.worker.definitions,
            dynamodb=self.worker.client,
            mapping=SimpleNamespace(run=self.run),
        )

    def deployed_handler(self, tell: Callable[[str, BatchResult], None]) -> None:
        self.tell = tell

    def run(self, stop: threading.Event) -> None:
        self.meanwhile()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()


@pytest.fixture
def local(narrow: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Local]:
    made = Local()
    monkeypatch.setattr("aggregation_worker.operations.local.running_pipeline", made.running_pipeline)
    monkeypatch.setattr("aggregation_worker.operations.local.deployed_handler", made.deployed_handler)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


def run(local: Local, meanwhile: Callable[[], None], *options: str) -> None:
    local.meanwhile = meanwhile
    assert main(["local", "--definitions", str(SAMPLE_FILE), *options]) == 0


def lines_of_batches(output: str) -> list[str]:
    """What people read between the introduction and the end, with a clock that does not go."""
    lines = output[output.index("Ctrl-C ends it all.") :].splitlines()[2:-1]
    return [re.sub(r"^\d\d:\d\d:\d\d", "12:34:56", line.rstrip()) for line in lines]


def test_batch__for_people(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    first = insert(order("1", quantity=30))

    def meanwhile() -> None:
        local.deliver(first, insert(order("2", quantity=5)), insert(order("3", item="item312")))
        local.deliver(first, attempt=2)
        local.deliver(modify(order("1", quantity=30), order("1", quantity=10)), insert(order("4") | MALFORMED))
        local.deliver(modify(order("2"), order("2")))

    run(local, meanwhile)

    output = capsys.readouterr().out
    assert lines_of_batches(output) == [
        "12:34:56  3 records: 3 counted in 12 ms",
        "          item_count_by_date: item123, 2024-07-15: quantity 35 (+35)",
        "          item_count_by_date: item312, 2024-07-15: quantity 10 (+10)",
        "12:34:56  1 record: 1 counted already in 12 ms, attempt 2",
        "12:34:56  2 records: 1 counted, 1 noticed in 12 ms",
        "          noticed: item_count_by_date: quantity: summed over a value of type S",
        "          where N belongs",
        "          of orderid 178526, order_date 2024-07-15",
        "          item_count_by_date: item123, 2024-07-15: quantity 15 (-20)",
        "12:34:56  1 record: 1 contributing nothing in 12 ms",
    ]
    assert output.endswith("stopped; nothing is kept\n")


def test_batch_of_many__is_told_in_short(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    counted = [insert(order(f"1{number:02}", item=f"item{number:02}")) for number in range(COUNT_OF_TOTALS + 2)]
    malformed = [insert(order(f"2{number:02}") | MALFORMED) for number in range(COUNT_OF_ITEMS + 497)]

    run(local, lambda: local.deliver(*counted, *malformed))

    lines = lines_of_batches(capsys.readouterr().out)
    assert lines[0] == "12:34:56  512 records: 12 counted, 500 noticed in 12 ms"
    assert "; and 497 more" in " ".join(lines)
    assert lines[-2:] == [
        "          item_count_by_date: item09, 2024-07-15: quantity 10 (+10)",
        "          and 2 more totals changed",
    ]
    assert len(lines) == 1 + 2 + 2 + COUNT_OF_TOTALS + 1


def test_record_that_dynamodb_refuses__is_parked_with_its_reason(
    local: Local, capsys: pytest.CaptureFixture[str]
) -> None:
    def meanwhile() -> None:
        local.deliver(insert(order(quantity="9" * 38)))
        local.deliver(insert(order(quantity="0.1")))

    run(local, meanwhile)

    lines = lines_of_batches(capsys.readouterr().out)
    parked = lines.index("12:34:56  1 record: 1 parked in 12 ms")
    assert lines[parked + 1].startswith("          parked: item_count_by_date: ")
    assert lines[-1] == "          of orderid 178526, order_date 2024-07-15"


def test_failed_batch_and_records_given_up__say_why(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    record = insert()

    def meanwhile() -> None:
        local.deliver(record, error="TimeoutError: [red] \x1b")
        given_up = DiscardedBatch((PolledRecord.of(record),), DiscardCondition.RETRY_ATTEMPTS_EXHAUSTED, 9, None)
        local.on_discarded(given_up, "aws/lambda/x")
        local.on_discarded(given_up, None)

    run(local, meanwhile)

    assert lines_of_batches(capsys.readouterr().out) == [
        "12:34:56  1 record: failed in 12 ms",
        r"          TimeoutError: [red] \x1b",
        "12:34:56  1 record: given up (RetryAttemptsExhausted), kept in the bucket as",
        "aws/lambda/x",
        "12:34:56  1 record: given up (RetryAttemptsExhausted), dropped",
    ]


def test_quiet__tells_only_what_needs_somebody(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    def meanwhile() -> None:
        local.deliver(insert())
        local.deliver(insert(order() | MALFORMED))
        local.deliver(insert(), error="it failed")

    run(local, meanwhile, "--quiet")

    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"export {name}={value}" for name, value in ENVIRONMENT.items()]
    assert [line[10:] for line in lines if re.match(r"\d\d:", line)] == [
        "1 record: 1 noticed in 12 ms",
        "1 record: failed in 12 ms",
    ]


def test_json__is_a_line_for_each_thing_that_happens(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = insert(order("1", quantity=30)), insert(order("2", item="naïve") | MALFORMED)

    def meanwhile() -> None:
        local.deliver(good, bad)
        local.deliver(good, error="it failed")

    run(local, meanwhile, "--json")

    output = capsys.readouterr().out
    started, batch, failed, stopped = map(json.loads, output.splitlines())
    assert output.isascii()
    assert (started["event"], started["environment"]) == ("started", ENVIRONMENT)
    assert batch | {"time": ""} == {
        "event": "batch",
        "time": "",
        "records": 2,
        "firstSequenceNumber": sequence_number(good),
        "lastSequenceNumber": sequence_number(bad),
        "attempt": 1,
        "milliseconds": 12,
        "outcomes": {"applied": 1, "noticed": 1},
        "error": None,
        "attention": [
            {
                "outcome": "noticed",
                "key": {"orderid": "178526", "order_date": "2024-07-15"},
                "sequenceNumber": sequence_number(bad),
                "reasons": ["item_count_by_date: quantity: summed over a value of type S where N belongs"],
            }
        ],
        "changed": 1,
        "totals": [
            {
                "aggregation": "item_count_by_date",
                "group": ["item123", "2024-07-15"],
                "measures": {"quantity": {"total": "30", "change": "30"}},
            }
        ],
    }
    assert (failed["error"], failed["outcomes"], failed["totals"]) == ("it failed", {}, [])
    assert stopped["event"] == "stopped"


def test_json__holds_every_total_that_changed(local: Local, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        local,
        lambda: local.deliver(*(insert(order(item=f"item{number}")) for number in range(25))),
        "--json",
        "--quiet",
    )
    run(local, lambda: local.deliver(*(insert(order(item=f"item{number}")) for number in range(25))), "--json")

    batches = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (batch,) = [line for line in batches if line["event"] == "batch"]
    assert (batch["changed"], len(batch["totals"])) == (25, 25)

"""What `aggregator demo` says of totals and costs; the run itself is an integration test's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from aggregation_worker.aggregations.contributions import Group
from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.local.consumed import Consumed, units_of
from aggregation_worker.local.demo import AnswerLostError, BothHandlers, Comparison, Cost
from aggregation_worker.local.usual_handler import changes_of, usual_handler
from aggregation_worker.operations.cli import main
from tests.postings import REFERENCE
from tests.records import event, insert, modify, order, remove

GROUP: Group = ("item123", "2024-07-15")
FORTY: dict[Group, Amounts] = {GROUP: (Decimal(40),)}
EIGHTY: dict[Group, Amounts] = {GROUP: (Decimal(80),)}
COMPARISON = Comparison(
    REFERENCE.aggregations[0],
    source=FORTY,
    worker=FORTY,
    usual=EIGHTY,
    records=10,
    deliveries=13,
    duplicates=3,
    worker_cost=Cost(writes=4, reads=2),
    usual_cost=Cost(writes=13, reads=0),
    usual_failures=[KeyError("N")],
    letters=[("178530", "item_count_by_date: a [reason]")],
)

pytestmark = pytest.mark.usefixtures("narrow")


def shown(comparison: Comparison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The exit status and the output of the command, had it found this."""

    @contextmanager
    def running_demo(*, verbose: bool) -> Iterator[Any]:
        yield SimpleNamespace(take=lambda step: None, comparison=lambda: comparison)

    monkeypatch.setattr("aggregation_worker.operations.demo.running_demo", running_demo)
    return main(["demo"]), capsys.readouterr().out


def test_right_totals_beside_wrong_ones__exit_status_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, output = shown(COMPARISON, monkeypatch, capsys)

    assert status == 0
    assert "│ item123     │ 2024-07-15 │              40 │        40 ✓ │              80 ✗ │" in output
    assert "10 records were delivered 13 times; the worker skipped 3 duplicates." in output
    assert "│ dollars a million records │        0.28 │              0.81 │" in output
    assert "a [reason]" in output
    assert "the usual handler fails (KeyError)" in output
    assert "Every total of the worker matches the source" in output
    assert max(map(len, output.splitlines())) == 80


@pytest.mark.parametrize(
    ("source", "worker", "row"),
    [
        (FORTY, EIGHTY, "40 │        80 ✗ │"),
        (FORTY, {}, "40 │      none ✗ │"),
        ({}, FORTY, "none │        40 ✗ │"),
        ({}, {}, ""),
    ],
)
def test_wrong_total_of_the_worker__exit_status_1(
    source: Mapping[Group, Amounts],
    worker: Mapping[Group, Amounts],
    row: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, output = shown(replace(COMPARISON, source=source, worker=worker), monkeypatch, capsys)

    assert status == 1
    assert row in output
    assert "A total of the worker does not match the source" in output


# --- The two handlers -----------------------------------------------------------------------------------------------


def test_first_answer__is_lost_when_both_have_worked() -> None:
    calls: list[tuple[str, Any]] = []
    both = BothHandlers(lambda event, context: calls.append(("worker", event)) or {"batchItemFailures": []})  # type: ignore[func-returns-value]  # it is short
    both.usual = lambda event, context: calls.append(("usual", event))

    with pytest.raises(AnswerLostError):
        both({"Records": [1]}, None)
    answer = both({"Records": [2]}, None)

    assert answer == {"batchItemFailures": []}
    assert calls == [(name, {"Records": [batch]}) for batch in (1, 2) for name in ("usual", "worker")]


def test_failure_of_the_usual_handler__does_not_reach_the_worker() -> None:
    both = BothHandlers(lambda event, context: "answer", lost=True)
    both.usual = usual_handler(None, "table")  # type: ignore[arg-type]  # it is not reached

    assert both(event(insert(order() | {"quantity": {"S": "ten"}})), None) == "answer"
    assert [type(error) for error in both.failures] == [KeyError]


@pytest.mark.parametrize(
    ("record", "amounts"),
    [
        (insert(order(quantity=10)), {"item123": 10}),
        (modify(order(quantity=10), order(quantity=15)), {"item123": 5}),
        (modify(order(quantity=10), order(quantity=10)), {}),
        (modify(order(quantity=10), order(quantity=10, item="item312")), {"item123": -10, "item312": 10}),
        (remove(order(quantity=10)), {"item123": -10}),
    ],
)
def test_usual_handler__adds_what_each_record_changes(record: Any, amounts: dict[str, int]) -> None:
    sent: list[dict[str, Any]] = []
    client: Any = SimpleNamespace(update_item=lambda **parameters: sent.append(parameters))

    usual_handler(client, "table")(event(record, record), None)

    assert {key["item_number"]["S"]: amount for key, amount in changes_of(record)} == amounts
    added = [int(one["ExpressionAttributeValues"][":quantity"]["N"]) for one in sent]
    assert added == [*amounts.values()] * 2


# --- What it cost ---------------------------------------------------------------------------------------------------


def test_consumed__is_what_the_answers_say_by_table() -> None:
    session = boto3.Session("key", "secret", region_name="us-east-1")
    consumed = Consumed()
    consumed.watch(session)
    client = session.client("dynamodb")
    answers = iter(
        [
            '{"ConsumedCapacity": {"TableName": "totals", "CapacityUnits": 2}}',
            '{"ConsumedCapacity": [{"TableName": "totals", "CapacityUnits": 2}, '
            '{"TableName": "ledger", "CapacityUnits": 4}]}',
            '{"__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException"}',
            '{"Responses": {}}',
            "{}",
        ]
    )
    asked = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        asked.append(b'"ReturnConsumedCapacity": "TOTAL"' in request.body)
        body = next(answers)
        content = SimpleNamespace(stream=lambda: [body.encode()])
        return AWSResponse(request.url, 400 if "__type" in body else 200, HTTPHeaders(), content)

    client.meta.events.register("before-send", answer)  # type: ignore[arg-type]  # its answer stands for DynamoDB's
    key = {"TableName": "totals", "Key": {"id": {"S": "1"}}}
    client.update_item(**key)  # type: ignore[arg-type]  # a literal
    client.transact_write_items(TransactItems=[{"Delete": key}])  # type: ignore[typeddict-item]  # a literal
    with pytest.raises(client.exceptions.ConditionalCheckFailedException):
        client.update_item(**key)  # type: ignore[arg-type]  # a literal
    client.batch_get_item(RequestItems={"totals": {"Keys": [{"id": {"S": "1"}}, {"id": {"S": "2"}}]}})
    client.put_item(TableName="ledger", Item={"id": {"S": "1"}})

    assert asked == [True, True, True, False, False]
    assert units_of(consumed.writes, ["totals"]) == 4
    assert units_of(consumed.writes, ["totals", "ledger"]) == 8
    assert units_of(consumed.reads, ["totals"]) == 1
    assert units_of(consumed.reads, ["ledger"]) == 0


def test_dollars__are_of_a_million_records() -> None:
    assert Cost(writes=2_000, reads=0).dollars(1_000) == pytest.approx(1.25)
    assert Cost(writes=0, reads=2_000).dollars(1_000) == pytest.approx(0.25)

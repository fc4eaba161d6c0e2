"""The function as it is uploaded, under Lambda's own runtime client, against AWS's own DynamoDB implementation."""

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import load_definitions
from aggregation_worker.dead_letters import Notice, RecordReference, read_dead_letter
from aggregation_worker.deployment import settings as deployment
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.ministack import Ministack
from aggregation_worker.local.pipeline import create_table
from tests.dynamodb_local import DynamoDBLocal
from tests.end_to_end.conftest import Assembly, missing
from tests.end_to_end.lambda_emulator import (
    EmulatorUnavailableError,
    FunctionError,
    RunningFunction,
    running_function,
)
from tests.records import insert, modify, order

pytestmark = pytest.mark.end_to_end

LEDGER = "packaged-ledger"
BUCKET = "packaged-dead-letters"


@dataclass(frozen=True, slots=True)
class Services:
    """What the function is connected to."""

    dynamodb: DynamoDBLocal
    ministack: Ministack
    queue_url: str

    def environment(self, **others: str) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.ministack.endpoint,
            "AWS_ENDPOINT_URL_DYNAMODB": self.dynamodb.endpoint,
            "LEDGER_TABLE": LEDGER,
            "LEDGER_RETENTION_DAYS": str(deployment.LEDGER_RETENTION_DAYS),
            "DEAD_LETTER_QUEUE_URL": self.queue_url,
            "DEAD_LETTER_BUCKET": BUCKET,
            "POWERTOOLS_SERVICE_NAME": "packaged",
        } | others

    def row(self, item: str) -> dict[str, Any]:
        key = {"item_number": {"S": item}, "order_date": {"S": "2024-07-15"}}
        return self.dynamodb.client("dynamodb").get_item(TableName="item_count_by_date", Key=key).get("Item", {})

    def total(self, item: str) -> str | None:
        row = self.row(item)
        return row["quantity"]["N"] if row else None

    def receipts(self, item: str) -> int:
        """How many receipts an aggregate's row holds."""
        return len(self.row(item)["receipts#item_count_by_date"]["M"])

    def dead_letters(self) -> list[Any]:
        sqs = self.ministack.client("sqs")
        messages = sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10).get("Messages", [])
        for message in messages:
            sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
        return [read_dead_letter(message["Body"]) for message in messages]


@pytest.fixture(scope="module")
def services(dynamodb_of_its_own: DynamoDBLocal, ministack: Ministack) -> Services:
    dynamodb = dynamodb_of_its_own.client("dynamodb")
    create_table(dynamodb, LEDGER, deployment.LEDGER)
    for name, table in deployment.target_tables(load_definitions(SAMPLE_FILE)).items():
        create_table(dynamodb, name, table)
    ministack.client("s3").create_bucket(Bucket=BUCKET)
    queue_url = ministack.client("sqs").create_queue(QueueName="packaged-dead-letters")["QueueUrl"]
    return Services(dynamodb_of_its_own, ministack, queue_url)


@contextmanager
def packaged(assembly: Assembly, environment: dict[str, str]) -> Iterator[RunningFunction]:
    """The function as it is uploaded; where it cannot be run, the test is skipped, or fails."""
    try:
        with running_function(assembly.bundle, environment) as running:
            yield running
    except EmulatorUnavailableError as unavailable:
        missing(unavailable)


@pytest.fixture(scope="module")
def function(assembly: Assembly, services: Services) -> Iterator[RunningFunction]:
    with packaged(assembly, services.environment()) as running:
        yield running


def zipped_bytes(folder: Path) -> int:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(folder))
    return memory.tell()


def test_batch__is_counted_with_a_receipt_for_each_record(function: RunningFunction, services: Services) -> None:
    event = {
        "Records": [
            insert(order("178526", item="item123", quantity=10)),
            insert(order("178527", item="item123", quantity=30)),
            insert(order("172528", item="item312", quantity=10)),
            insert(order("178529", item="item312", quantity=30)),
        ]
    }

    first, second = function.invoke(event), function.invoke(event)

    assert first == second == {"batchItemFailures": []}
    assert (services.total("item123"), services.total("item312")) == ("40", "40")
    assert (services.receipts("item123"), services.receipts("item312")) == (2, 2)
    metrics = [line for line in function.log_lines() if "RecordsReceived" in line]
    assert [(line["RecordsApplied"], line["RecordsDuplicate"]) for line in metrics[-2:]] == [
        ([4.0], [0.0]),
        ([0.0], [4.0]),
    ]
    assert {line["service"] for line in metrics} == {"packaged"}


def test_order_that_moves__leaves_one_total_for_the_other(function: RunningFunction, services: Services) -> None:
    before, after = order("9001", item="moved-from", quantity=7), order("9001", item="moved-to", quantity=8)

    answer = function.invoke({"Records": [insert(before), modify(before, after)]})

    assert answer == {"batchItemFailures": []}
    assert (services.total("moved-from"), services.total("moved-to")) == ("0", "8")


def test_unusable_order__is_told_of_and_the_others_are_counted(function: RunningFunction, services: Services) -> None:
    unusable = insert(order("9002", item="parked") | {"quantity": {"S": "many"}})

    answer = function.invoke({"Records": [unusable, insert(order("9003", item="parked", quantity=5))]})

    assert answer == {"batchItemFailures": []}
    assert services.total("parked") == "5"
    (letter,) = services.dead_letters()
    assert isinstance(letter, Notice)
    assert letter.record == unusable


def test_large_unusable_record__goes_by_way_of_the_bucket(function: RunningFunction, services: Services) -> None:
    unusable = insert(order("9004", item="large") | {"quantity": {"S": "many"}, "note": {"S": "x" * 300_000}})

    answer = function.invoke({"Records": [unusable]})

    assert answer == {"batchItemFailures": []}
    (letter,) = services.dead_letters()
    assert isinstance(letter, RecordReference)
    stored = services.ministack.client("s3").get_object(Bucket=BUCKET, Key=letter.content.key)["Body"].read()
    assert json.loads(stored) == unusable


def test_record_that_cannot_be_parked__is_the_only_one_reported(assembly: Assembly, services: Services) -> None:
    unusable = insert(order("9005", item="partial") | {"quantity": {"S": "many"}})
    event = {"Records": [insert(order("9006", item="partial", quantity=3)), unusable]}
    nowhere = services.environment(DEAD_LETTER_QUEUE_URL=services.queue_url + "-missing")

    with packaged(assembly, nowhere) as function:
        answer = function.invoke(event)

    assert answer == {"batchItemFailures": [{"itemIdentifier": unusable["dynamodb"]["SequenceNumber"]}]}
    assert services.total("partial") == "3"


def test_missing_setting__is_an_error_that_names_it(assembly: Assembly, services: Services) -> None:
    with (
        packaged(assembly, services.environment(LEDGER_TABLE="")) as function,
        pytest.raises(FunctionError, match="missing environment variables: LEDGER_TABLE"),
    ):
        function.invoke({"Records": []})


def test_bundle__is_small_pure_python_with_bytecode(
    assembly: Assembly, function: RunningFunction, capsys: pytest.CaptureFixture[str]
) -> None:
    function.invoke({"Records": []})

    files = {path.relative_to(assembly.bundle).as_posix() for path in assembly.bundle.rglob("*") if path.is_file()}
    sources = {name for name in files if name.endswith(".py")}
    assert not {name for name in files if name.endswith((".so", ".dylib", ".exe"))}
    assert not {
        name for name in files if name.startswith(("aggregation_worker/operations", "aggregation_worker/local", "rich"))
    }
    assert "aggregations.toml" in files
    compiled = {name.replace("__pycache__/", "").replace(".cpython-313.pyc", ".py") for name in files if "pyc" in name}
    assert compiled == sources
    size = zipped_bytes(assembly.bundle)
    with capsys.disabled():
        print(f"\ncdk synth {assembly.seconds:.1f} s, bundle {size / 1e6:.1f} MB zipped, init {function.init_ms} ms")
    assert size < 10_000_000
    assert function.init_ms is not None
    # 250 to 400 ms are usual; without bytecode it is over 900.
    assert function.init_ms < 3_000

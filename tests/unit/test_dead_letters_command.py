"""`aggregator dead-letters`: what it says of many letters, and what it discards."""

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aggregation_worker.batch import RecordOutcome
from aggregation_worker.dead_letters import Notice, ParkedRecord, message_body
from aggregation_worker.ledger.commit import EXPIRED
from aggregation_worker.operations import dead_letters as command
from aggregation_worker.operations.cli import main
from aggregation_worker.operations.notices import NoticeState
from aggregation_worker.operations.queue import HeldMessages, Message
from aggregation_worker.operations.replay import print_summary
from aggregation_worker.operations.replaying import Left, Summary
from aggregation_worker.operations.resources import Resources
from tests.dead_letter_fakes import BUCKET, NOW
from tests.definition_texts import definitions
from tests.records import CREATED_AT, STREAM_ARN, insert, order
from tests.runbook_pages import check_output
from tests.slow_queue import SENT, SlowQueue

DEFINED = definitions(source=f'[source]\nstream_arn = "{STREAM_ARN}"\npartition_key = "orderid"\n')
pytestmark = pytest.mark.usefixtures("narrow")

TODAY = datetime.fromtimestamp(int(SENT) / 1000, UTC) + timedelta(days=3)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SlowQueue:
    """A queue three days after its letters were sent; the command runs in a folder of its own."""
    found = SlowQueue([])
    resources = SimpleNamespace(
        sqs=found,
        queue_url="queue",
        bucket=BUCKET,
        definitions=DEFINED,
        ledger_retention_days=60,
        dynamodb=SimpleNamespace(get_item=lambda **_: {}),
        client=lambda _: None,
    )
    monkeypatch.setattr(Resources, "of", lambda _: resources)
    monkeypatch.setattr(HeldMessages, "started_at", lambda _: TODAY)
    monkeypatch.chdir(tmp_path)
    return found


def parked(number: int, why: str = "sold: refused", **options: Any) -> str:
    return message_body(ParkedRecord(insert(order(str(number)), sequence_number=number, **options), (why,)), NOW)


def notice(number: int) -> str:
    record = insert(order(str(number), quantity=None), sequence_number=number)  # type: ignore[arg-type]  # left out
    record["dynamodb"]["NewImage"]["quantity"] = {"S": "ten"}
    return message_body(
        Notice(
            record,
            ("item_count_by_date: quantity: summed over a value of type S where N belongs",),
            "item_count_by_date",
        ),
        NOW,
    )


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


# --- Listing ----------------------------------------------------------------------------------------------------------


def test_500_letters__are_a_few_lines_at_80_columns(queue: SlowQueue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.send(*(parked(number, f"sold: 'item{number}' is refused") for number in range(1_000, 1_480)))
    queue.send(*(notice(number) for number in range(2_000, 2_019)), "rubbish")

    status = main(["dead-letters"])

    lines = output(capsys).splitlines()
    text = " ".join(" ".join(lines).split())
    assert status == 0
    assert len(lines) < 20
    assert all(len(line) <= 80 for line in lines)
    assert "480 x parked record, the oldest sent 3 d ago, replay within 57 d sold: 'item" in text
    assert "19 x notice, the oldest sent 3 d ago item_count_by_date: quantity: summed over a value of type S" in text
    assert f"where N belongs {NoticeState.OVER} for example record" in text
    assert "1 x unreadable, the oldest sent 3 d ago the message is not JSON" in text
    assert "500 dead letters; the oldest was sent 3 d ago, and SQS deletes it in 11 d" in text
    assert "the oldest record is of 2024-07-15T09:40:00+00:00" in text
    assert len(queue.bodies) == queue.visible() == 500


def test_all__lists_every_letter(queue: SlowQueue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.send(*(parked(number) for number in range(1_000, 1_030)))

    main(["dead-letters", "--all"])

    text = output(capsys)
    assert all(f"record {number}, item orderid=178526, order_date=2024-07-15" in text for number in range(1_000, 1_030))
    assert text.count("replay within 57 d") == 30


def test_json__lists_every_letter(queue: SlowQueue, capsys: pytest.CaptureFixture[str]) -> None:
    main(["dead-letters", "--json"])
    empty = json.loads(output(capsys))
    queue.send(*(parked(number) for number in range(1_000, 1_030)), notice(7))

    main(["dead-letters", "--json"])

    letters = json.loads(output(capsys))
    assert empty == []
    assert sorted(letter["sequenceNumbers"][0] for letter in letters) == sorted(map(str, [*range(1_000, 1_030), 7]))
    assert [letter["toDo"] for letter in letters if letter["kind"] == "notice"] == [NoticeState.OVER]


def test_limit__reads_so_many(queue: SlowQueue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.send(*(parked(number) for number in range(1_000, 3_000)))

    main(["dead-letters", "--json", "--limit", "15"])

    assert len(json.loads(output(capsys))) == 15
    assert queue.given < 500
    assert queue.visible() == 2_000


def test_oldest_letter__is_known_however_often_it_was_listed(
    queue: SlowQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQS's own metric leaves out what was received three times."""
    queue.send(parked(1_000))

    for _ in range(5):
        main(["dead-letters"])

    assert output(capsys).count("the oldest was sent 3 d ago") == 5


def test_letters_that_another_command_holds__are_told(queue: SlowQueue, capsys: pytest.CaptureFixture[str]) -> None:
    queue.send(*(parked(number) for number in range(1_000, 1_010)))
    queue.receive_message(VisibilityTimeout=600, WaitTimeSeconds=0)

    status = main(["dead-letters"])

    printed = capsys.readouterr()
    assert status == 0
    assert "0 dead letters." in printed.out
    assert "about 10 more could not be read" in printed.err


def test_ctrl_c__says_how_to_go_on(
    queue: SlowQueue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.send(*(parked(number) for number in range(1_000, 1_100)))

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_print_letter", interrupted)
    status = main(["dead-letters", "--all"])

    assert status == 130
    assert "interrupted: 1 letters were read, and all go back to the queue; run it again" in capsys.readouterr().err
    assert queue.visible() == 100


# --- Discarding -------------------------------------------------------------------------------------------------------


def kept(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.glob("*.jsonl")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_discard__says_what_is_lost_and_keeps_a_record(
    queue: SlowQueue, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gone = [parked(number, "older than the ledger's memory") for number in range(1_000, 1_025)]
    queue.send(*gone, *(parked(number) for number in range(2_000, 2_010)), notice(7))

    status = main(["dead-letters", "--discard", "--reason", "older than", "--yes"])

    text = " ".join(output(capsys).split())
    assert status == 0
    assert "To be lost: 25 records in 25 parked records: what is not in the totals yet never will be" in text
    assert "25 letters discarded" in text
    assert sorted(one["body"] for one in kept(tmp_path)) == sorted(gone)
    assert all(one["records"][0]["dynamodb"]["NewImage"] for one in kept(tmp_path))
    assert len(queue.bodies) == queue.visible() == 11


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--sequence-number", "1001"], {"message-0", "message-2"}),
        (["--message", "message-2"], {"message-0", "message-1"}),
    ],
)
def test_discard__takes_only_what_is_named(queue: SlowQueue, options: list[str], left: set[str]) -> None:
    queue.send(parked(1_000), parked(1_001), "rubbish")

    assert main(["dead-letters", "--discard", "--yes", *options]) == 0
    assert queue.bodies.keys() == left


@pytest.mark.parametrize(("answer", "is_terminal", "status"), [("no", True, 1), ("", True, 1), ("yes", False, 2)])
def test_discard_that_is_not_confirmed__keeps_all(
    queue: SlowQueue,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    is_terminal: bool,
    status: int,
) -> None:
    queue.send(parked(1_000))
    answered(monkeypatch, lambda: answer, is_terminal=is_terminal)

    assert main(["dead-letters", "--discard", "--reason", "refused"]) == status
    assert (queue.visible(), [*tmp_path.iterdir()]) == (1, [])


def test_discard_confirmed_at_a_terminal__deletes(queue: SlowQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    queue.send(parked(1_000))
    answered(monkeypatch, lambda: "yes", is_terminal=True)

    assert main(["dead-letters", "--discard", "--reason", "refused"]) == 0
    assert queue.bodies == {}


def answered(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], str], *, is_terminal: bool) -> None:
    def asked(question: str) -> str:
        said = answer()
        print(question + said)
        return said

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: is_terminal))


def test_ctrl_c_at_the_question__keeps_all(
    queue: SlowQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.send(parked(1_000))

    def interrupted() -> str:
        raise KeyboardInterrupt

    answered(monkeypatch, interrupted, is_terminal=True)

    assert main(["dead-letters", "--discard", "--reason", "refused"]) == 130
    assert (queue.visible(), [*tmp_path.iterdir()]) == (1, [])
    assert "interrupted: of 1 letter none is discarded; run it again" in capsys.readouterr().err


def test_ctrl_c_while_deleting__keeps_the_record(
    queue: SlowQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.send(parked(1_000), parked(1_001))

    def interrupted(*_: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(HeldMessages, "delete", interrupted)

    assert main(["dead-letters", "--discard", "--reason", "refused", "--yes"]) == 130
    assert len(kept(tmp_path)) == 2
    assert "some are discarded, and discarded-letters-" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--discard"], "give --reason, --sequence-number or --message"),
        (["--discard", "--limit", "5"], "give --reason, --sequence-number or --message"),
        (["--yes"], "belong to --discard"),
        (["--discard", "--reason", "x", "--record", "there"], "there is there already"),
    ],
)
def test_discard_that_could_lose_more_than_meant__is_refused(
    queue: SlowQueue, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], why: str
) -> None:
    (tmp_path / "there").write_text("precious")
    queue.send(parked(1_000))

    assert main(["dead-letters", *options]) == 2
    assert why in capsys.readouterr().err
    assert (queue.visible(), (tmp_path / "there").read_text()) == (1, "precious")


def test_discard_of_a_failed_batch__warns_of_its_good_records(
    queue: SlowQueue, capsys: pytest.CaptureFixture[str]
) -> None:
    info = {
        "shardId": "shard",
        "startSequenceNumber": "1",
        "endSequenceNumber": "9",
        "batchSize": 2,
        "streamArn": STREAM_ARN,
    }
    payload = json.dumps({"Records": [insert(), insert()]})
    queue.send(json.dumps({"requestContext": {"condition": "x"}, "DDBStreamBatchInfo": info, "payload": payload}))

    main(["dead-letters", "--discard", "--reason", "x", "--yes"])

    assert "2 records in 1 failed batch, good ones among them: replay these" in " ".join(output(capsys).split())


# --- The runbooks -----------------------------------------------------------------------------------------------------


FIRST = 800000000003126276362
REFUSED = "item_count_by_date: An operand in the update expression has an incorrect data type"


@pytest.mark.parametrize(
    ("page", "records", "notices", "days"),
    [
        ("dead-letters-visible", 3, 1, 1),
        ("oldest-dead-letter", 2, 0, 4),
        ("records-parked", 480, 0, 1),
        ("replay-dead-letters", 480, 20, 3),
    ],
)
def test_page__shows_what_waits(
    queue: SlowQueue,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    page: str,
    records: int,
    notices: int,
    days: int,
) -> None:
    monkeypatch.setattr(HeldMessages, "receive", one_by_one)
    monkeypatch.setattr(HeldMessages, "started_at", lambda _: TODAY + timedelta(days=days - 3))
    queue.send(*(parked(FIRST + number, REFUSED) for number in range(records)))
    queue.send(*(notice(FIRST + records + number) for number in range(notices)))

    main(["dead-letters"])

    check_output(page, "aggregator dead-letters", output(capsys))


def test_page_on_replaying__shows_its_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(done=500)
    summary.records |= {RecordOutcome.APPLIED: 477, RecordOutcome.DUPLICATE: 3}

    print_summary(summary, as_json=False)

    check_output("replay-dead-letters", "aggregator replay", output(capsys))


def test_replay_that_was_interrupted__says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    left = Left("id", "parked record", ("1",), "record 1: as a whole")
    print_summary(Summary(done=3, told_anew=2, left=[left], interrupted=True), as_json=False)

    text = " ".join(output(capsys).split())
    assert "3 letters done, 2 told of anew, 1 left." in text
    assert "Interrupted: every other letter is still in the queue. Run the same command again to go on." in text


def test_page_on_discarding__shows_what_is_printed(
    queue: SlowQueue, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeldMessages, "receive", one_by_one)
    then, why = CREATED_AT - 70 * 86_400, f"item_count_by_date: {EXPIRED}"
    queue.send(*(parked(FIRST + number, why, created_at=then) for number in range(2)))
    answered(monkeypatch, lambda: "yes", is_terminal=True)

    main(["dead-letters", "--discard", "--reason", "older than the ledger's memory"])

    check_output("discard-a-dead-letter", "aggregator dead-letters --discard", output(capsys))


def one_by_one(held: HeldMessages, sent_before: datetime, read: Callable[[Message], Any]) -> Any:
    """As `receive`, in the queue's order."""
    while page := held._receive(sent_before, read)[1]:
        yield page

"""`cdk bootstrap` and `cdk deploy` into ministack, and then what README and runbooks tell people to type."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.dead_letters import FailedBatchReference, Notice, ParkedRecord, message_body, read_dead_letter
from aggregation_worker.ledger.failures import Throttle
from aggregation_worker.local.ministack import Ministack
from tests.aws_cli import commands_of
from tests.end_to_end.conftest import ROOT, Assembly, cdk, missing, without_metric_math
from tests.end_to_end.incidents import INCIDENTS, TIMEOUT, batch, logged, selected, unparked
from tests.end_to_end.shell_commands import shell_command
from tests.records import insert, order
from tests.runbook_pages import check_output, main_block, pages, preamble
from tests.waiting import wait_for

pytestmark = pytest.mark.end_to_end

# In an environment of its own: it pins another botocore than ministack.
AWS_CLI = "awscli==1.46.3"
# The CLI's own `main` would load every service's model anew.
MAIN_OF_AWS = "from awscli.clidriver import create_clidriver; main = create_clidriver().main"
MAIN_OF_OURS = "from aggregation_worker.operations.cli import main"


@dataclass(frozen=True)
class DeployedStack:
    """The stack as `cdk deploy` left it in ministack.

    Attributes:
        commands: shell functions `aws` and `aggregator`, which speak to ministack.
    """

    ministack: Ministack
    commands: str
    seconds: float

    def shell(self, script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs commands as somebody types them."""
        return subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", self.commands + script],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def aws(self, command: str, folder: Path) -> Any:
        """Runs one command and returns its answer."""
        done = self.shell(command, folder)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout or "null")

    @functools.cached_property
    def outputs(self) -> dict[str, str]:
        """The stack's outputs, as the runbooks' first commands read them."""
        done = self.shell(f'{preamble()}\nprintf "%s" "$OUTPUTS"', ROOT)
        assert done.returncode == 0, done.stderr
        return dict(line.split("\t", 1) for line in done.stdout.splitlines())

    def messages(self) -> list[str]:
        """The bodies of what waits in the dead-letter queue, which is empty then."""
        sqs = self.ministack.client("sqs")
        url = self.outputs["DeadLetterQueueUrl"]
        found = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        for message in found:
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in found]


@pytest.fixture(scope="module")
def commands(ministack: Ministack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    for tool, address in (("uv", "https://docs.astral.sh/uv/"), ("jq", "https://jqlang.org/")):
        if not shutil.which(tool):
            missing(f"the runbooks' commands need {tool} ({address}): install it")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    configuration = tmp_path_factory.mktemp("aws") / "config"
    configuration.write_text("[default]\ncli_timestamp_format = iso8601\n")  # as in version 2 of the CLI
    environment |= ministack.environment | {"AWS_CONFIG_FILE": str(configuration)}
    uv = ("uv", "tool", "run", "--quiet", "--from", AWS_CLI, "python")
    # An option, since version 1 of the CLI has an endpoint of its own for SQS.
    endpoint = f"--endpoint-url {ministack.endpoint}"
    with (
        shell_command("aws", MAIN_OF_AWS, uv, environment, endpoint) as aws,
        shell_command("aggregator", MAIN_OF_OURS, [sys.executable], environment) as ours,
    ):
        yield aws + ours


@pytest.fixture(scope="module")
def deployed(
    assembly: Assembly, ministack: Ministack, commands: str, tmp_path_factory: pytest.TempPathFactory
) -> DeployedStack:
    app = without_metric_math(assembly.folder, tmp_path_factory.mktemp("ministack") / "cdk.out")
    start = time.monotonic()
    for command in (["bootstrap"], ["deploy", "--require-approval", "never"]):
        done = cdk(*command, "--app", str(app), environment=ministack.environment)
        assert done.returncode == 0, done.stdout + done.stderr
    stack = DeployedStack(ministack, commands, time.monotonic() - start)
    # S3 tests a new notification with a message of its own.
    assert all("s3:TestEvent" in body for body in stack.messages())
    return stack


def test_readme_commands__show_the_totals(
    deployed: DeployedStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put, query = (command for command in commands_of(ROOT / "README.md") if command.startswith("aws dynamodb"))
    assert (put, query) == (deployed.outputs["PutItemCommand"], deployed.outputs["QueryCommand"])
    *put_with, item = shlex.split(put)
    assert put_with[-1] == "--item"
    assert json.loads(item) == order("178526", item="item123", quantity=10)

    # The README's order as it stands, and the three others of its scenario.
    for command in (
        put,
        shlex.join([*put_with, json.dumps(order("178527", item="item123", quantity=30))]),
        shlex.join([*put_with, json.dumps(order("172528", item="item312", quantity=10))]),
        shlex.join([*put_with, json.dumps(order("178529", item="item312", quantity=30))]),
    ):
        deployed.aws(command, tmp_path)

    for item_number in ("item123", "item312"):
        of_item = query.replace("item123", item_number)
        wait_for(functools.partial(shows_40, deployed, of_item, tmp_path))
    with capsys.disabled():
        print(f"\ncdk bootstrap and deploy {deployed.seconds:.1f} s")


def shows_40(deployed: DeployedStack, query: str, folder: Path) -> bool:
    return [row["quantity"] for row in deployed.aws(query, folder)["Items"]] == [{"N": "40"}]


def test_unusable_order__waits_in_the_queue(deployed: DeployedStack) -> None:
    unusable = order("178530", item="item123") | {"quantity": {"S": "many"}}

    deployed.ministack.client("dynamodb").put_item(TableName="Order_by_item", Item=unusable)

    (body,) = wait_for(deployed.messages)
    letter = read_dead_letter(body)
    assert isinstance(letter, Notice)
    assert letter.record["dynamodb"]["NewImage"] == unusable


def test_document_of_a_failed_batch__is_announced_in_the_queue(deployed: DeployedStack) -> None:
    key = "aws/lambda/mapping/shard/2024/07/15/document"

    s3 = deployed.ministack.client("s3")
    bucket = deployed.outputs["DeadLetterBucketName"]
    s3.put_object(Bucket=bucket, Key="parked-records/unannounced", Body=b"{}")
    s3.put_object(Bucket=bucket, Key=key, Body=b"{}")

    (body,) = wait_for(deployed.messages)
    letter = read_dead_letter(body)
    assert isinstance(letter, FailedBatchReference)
    assert (letter.document.bucket, letter.document.key) == (bucket, key)


def test_pages__show_what_their_main_commands_print(deployed: DeployedStack, tmp_path: Path) -> None:
    """Those whose main command is the AWS CLI's."""
    assert set(INCIDENTS) == {
        name for name in pages() if not main_block(name).splitlines()[-1].startswith("aggregator")
    }
    script = [f"{preamble()}\nexec 3> /dev/null"]
    for page, incident in INCIDENTS.items():
        incident.happen(page, deployed.ministack.client, deployed.outputs)
        script += [f"printf '\\036{page}\\037'", incident.script(page)]

    done = deployed.shell("\n".join(script), tmp_path)

    assert done.returncode == 0, done.stderr
    for page, printed in (part.split("\037") for part in done.stdout.split("\036")[1:]):
        check_output(page, main_block(page).splitlines()[-1], printed)


def test_what_else_the_runbooks_look_at__is_there(deployed: DeployedStack, tmp_path: Path) -> None:
    """Every other command under "Look", each distinct one once."""
    blocks = {block for page in pages().values() for block in page.blocks("Look")} - set(map(main_block, INCIDENTS))

    throttled = batch(880, 120, throttled={Throttle.KEY: 41})
    log = [*logged(throttled, datetime.now(UTC)), *logged(unparked, datetime.now(UTC)), TIMEOUT]
    script = [preamble()]
    for number, block in enumerate(sorted(blocks)):
        lines = tmp_path / f"log-{number}"
        jq = ":"
        if "filter-log-events" in block:
            lines.write_text("\n".join(selected(block, log)))
            assert lines.read_text(), block
            # In place of what ministack's log has. Whatever a line lacks is null.
            jq = f'jq() {{ cat > /dev/null; command jq "$@" < {lines} | (! grep -C9 null); }}'
        script.append(f"({jq}\n{block}) || echo FAILED: {shlex.quote(block)}")
    done = deployed.shell("\n".join(script), tmp_path)

    assert "FAILED" not in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["verify-a-deployment", "pause-and-resume"])
def test_task__can_be_done_as_written(deployed: DeployedStack, tmp_path: Path, name: str) -> None:
    done = deployed.shell("\n".join([preamble(), *pages()[name].blocks()]), tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr


def test_stream_read_again__parks_again_what_is_unusable(deployed: DeployedStack, tmp_path: Path) -> None:
    dynamodb = deployed.ministack.client("dynamodb")
    unusable = order("178532", item="item123") | {"quantity": {"S": "many"}}
    dynamodb.put_item(TableName="Order_by_item", Item=unusable)
    wait_for(deployed.messages)
    # With those of other tests.
    parked = sum("S" in item["quantity"] for item in dynamodb.scan(TableName="Order_by_item")["Items"])
    *blocks, last = pages()["read-the-stream-again"].blocks()
    waiting = 'aws sqs get-queue-attributes --queue-url "$QUEUE" --attribute-names ApproximateNumberOfMessages'
    until = f"until {waiting} | grep -q '\"{parked}\"'; do sleep 0.2; done"

    done = deployed.shell("\n".join([preamble(), *blocks, until, last]), tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(deployed.messages()) == parked


def test_replay_page__counts_what_the_worker_can_use_by_then(deployed: DeployedStack, tmp_path: Path) -> None:
    """The page's commands on a parked record, which a repaired worker (here: this one) has no objection to."""
    # An item of its own: the tests share the stack, in any order.
    source = deployed.ministack.client("dynamodb").describe_table(TableName="Order_by_item")["Table"]
    stream_arn = source["LatestStreamArn"]
    record = insert(order("178531", item="replayed", quantity=6), created_at=time.time(), stream_arn=stream_arn)
    body = message_body(ParkedRecord(record, ("the bad worker refused it",)), datetime.now(UTC))
    deployed.ministack.client("sqs").send_message(QueueUrl=deployed.outputs["DeadLetterQueueUrl"], MessageBody=body)

    blocks = [block.replace("item123", "replayed") for block in pages()["replay-dead-letters"].blocks()]
    done = deployed.shell("\n".join([preamble(), *blocks]), tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "the bad worker refused it" in " ".join(done.stdout.split())
    assert re.search(r"applied +│ 1 ", done.stdout), done.stdout
    assert "1 letters done, 0 left." in done.stdout
    assert "add up to the stored total" in done.stdout
    assert deployed.messages() == []
    key = {"item_number": {"S": "replayed"}, "order_date": {"S": "2024-07-15"}}
    row = deployed.ministack.client("dynamodb").get_item(TableName="item_count_by_date", Key=key)["Item"]
    assert row["quantity"] == {"N": "6"}

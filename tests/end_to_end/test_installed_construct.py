"""The first app of cdk/README.md as somebody writes it: in a folder and an environment of their own, with the wheel."""

import json
import re
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker.local.ministack import Ministack
from tests.end_to_end.conftest import CDK, CLEAN, cdk, installed_programs, without_metric_math
from tests.records import order
from tests.waiting import wait_for

pytestmark = pytest.mark.end_to_end


@dataclass(frozen=True)
class Shop:
    """Somebody's deployed stack.

    Attributes:
        programs: of the environment with the wheel.
        environment: the credentials and the endpoint of ministack.
    """

    programs: Path
    folder: Path
    environment: Mapping[str, str]

    def aggregator(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.programs / "aggregator"), *arguments, "--stack", "Shop"]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=120
        )


@pytest.fixture(scope="module")
def shop(wheel: Path, ministack: Ministack, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    programs = installed_programs("--no-deps", wheel, folder=folder)
    # What the wheel needs, as it is installed here already: aws-cdk-lib alone would take half a minute to install and
    # compile. The clone's own packages are not among it: a folder that a .pth file names brings no others.
    (site_packages,) = (programs.parent / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (app, *_) = re.findall(r"```python\n(.*?)```", (CDK / "README.md").read_text(), flags=re.DOTALL)
    (folder / "app.py").write_text(app)
    source, aggregations = SAMPLE_FILE.read_text().split("[[aggregations]]")
    assert "[source]" in source
    (folder / "aggregations.toml").write_text(f"[[aggregations]]{aggregations}")
    environment = ministack.environment | {"XDG_CACHE_HOME": str(folder / "cache")}

    def run(*command: str, app: str | Path) -> None:
        done = cdk(*command, "--app", str(app), environment=environment, folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr

    run("synth", "--quiet", app=f"{programs / 'python'} app.py")
    deployable = without_metric_math(folder / "cdk.out", folder / "ministack")
    run("bootstrap", app=deployable)
    run("deploy", "--require-approval", "never", app=deployable)
    return Shop(programs, folder, CLEAN | environment)


@pytest.fixture(scope="module")
def counted(shop: Shop, ministack: Ministack) -> None:
    """An order that the deployed function has counted."""
    dynamodb = ministack.client("dynamodb")
    (source,) = [name for name in dynamodb.list_tables()["TableNames"] if "Orders" in name]
    dynamodb.put_item(TableName=source, Item=order("178526", item="item123", quantity=10))
    wait_for(lambda: dynamodb.scan(TableName="item_count_by_date")["Items"])


def test_template__has_the_apps_table_and_the_workers_parts(shop: Shop) -> None:
    template = json.loads((shop.folder / "cdk.out" / "Shop.template.json").read_text())

    kinds = [resource["Type"] for resource in template["Resources"].values()]
    assert kinds.count("AWS::DynamoDB::Table") == 3  # the app's own, a target and the ledger
    for kind in ("Lambda::Function", "Lambda::EventSourceMapping", "SQS::Queue", "S3::Bucket", "CloudWatch::Dashboard"):
        assert f"AWS::{kind}" in kinds


@pytest.mark.usefixtures("counted")
def test_put_item__is_counted(ministack: Ministack) -> None:
    rows = ministack.client("dynamodb").scan(TableName="item_count_by_date")["Items"]

    assert [row["quantity"] for row in rows] == [{"N": "10"}]


@pytest.mark.usefixtures("counted")
def test_commands__know_the_deployed_definitions(shop: Shop) -> None:
    for command in (("verify",), ("explain", "item_count_by_date", "item123", "2024-07-15")):
        done = shop.aggregator(*command)
        assert done.returncode == 0, done.stdout + done.stderr

    # Fetched once, and kept under the bundle's hash.
    (kept,) = (shop.folder / "cache" / "dynamodb-aggregation-worker" / "definitions").iterdir()
    assert kept.read_text() == (shop.folder / "aggregations.toml").read_text()

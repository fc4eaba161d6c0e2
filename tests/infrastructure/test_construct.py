"""`AggregationWorker` in somebody else's CDK app: with their tables, several at once, with every property."""

import functools
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk.assertions import Template
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aggregation_worker.aggregations.definitions import DefinitionError
from aggregation_worker.deployment.settings import DeploymentError
from aggregation_worker_cdk import AggregationWorker, bundle
from aggregation_worker_cdk.bundle import BundlingError
from tests.definition_texts import MONTHS, aggregation_text
from tests.infrastructure.stacks import CDK, Stack, plain

SOURCE = """
[source]
table = "orders"
partition_key = "orderid"
"""
IMAGES = dynamodb.StreamViewType.NEW_AND_OLD_IMAGES
STRING = dynamodb.AttributeType.STRING
STREAM_ARN = "arn:aws:dynamodb:eu-west-1:123456789012:table/orders/stream/2026-01-01T00:00:00.000"


@pytest.fixture
def scope() -> cdk.Stack:
    """Somebody's stack, in which nothing is bundled."""
    return cdk.Stack(cdk.App(context={"aws:cdk:bundling-stacks": []}), "Shop")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Definitions without a source."""
    path = tmp_path / "aggregations.toml"
    path.write_text(aggregation_text())
    return path


def orders(scope: cdk.Stack, view: dynamodb.StreamViewType | None = IMAGES, **properties: Any) -> dynamodb.Table:
    """A table of the same app, whose name CloudFormation chooses."""
    return dynamodb.Table(
        scope, "Orders", partition_key=dynamodb.Attribute(name="orderid", type=STRING), stream=view, **properties
    )


def synthesized(scope: cdk.Stack) -> Stack:
    return Stack(dict(Template.from_stack(scope).to_json()))


def variables(stack: Stack, function: str) -> dict[str, str]:
    found: dict[str, str] = plain(stack.of_type("Lambda::Function")[function]["Properties"]["Environment"]["Variables"])
    return found


def outputs(stack: Stack) -> dict[str, Any]:
    return {plain({"Ref": name})[1:-1]: plain(output["Value"]) for name, output in stack.template["Outputs"].items()}


# --- The source ------------------------------------------------------------------------------------------------------


def test_table_of_the_same_stack__is_read_by_its_stream(scope: cdk.Stack, file: Path) -> None:
    totals = AggregationWorker(scope, "Totals", definitions=str(file), source=orders(scope))
    stack = synthesized(scope)

    assert [key for key, _ in totals.definitions.source.keys] == ["orderid"]
    assert variables(stack, "TotalsWorkerFunction")["SOURCE_STREAM_ARN"] == "<Orders.StreamArn>"
    assert stack.properties("Lambda::EventSourceMapping")["EventSourceArn"] == "<Orders.StreamArn>"
    assert outputs(stack)["TotalsSourceTableName"] == "<Orders>"
    assert "--table-name '<Orders>'" in outputs(stack)["TotalsPutItemCommand"]


def test_imported_table__is_read_by_its_stream(scope: cdk.Stack, file: Path) -> None:
    imported = dynamodb.Table.from_table_attributes(scope, "Orders", table_name="orders", table_stream_arn=STREAM_ARN)

    totals = AggregationWorker(scope, "Totals", definitions=file, source=imported)

    assert totals.definitions.source.keys == ()
    assert variables(synthesized(scope), "TotalsWorkerFunction")["SOURCE_STREAM_ARN"] == STREAM_ARN


def test_table_of_the_second_kind__is_read_by_its_stream(scope: cdk.Stack, file: Path) -> None:
    table = dynamodb.TableV2(
        scope, "Orders", partition_key=dynamodb.Attribute(name="orderid", type=STRING), dynamo_stream=IMAGES
    )

    AggregationWorker(scope, "Totals", definitions=file, source=table)

    assert variables(synthesized(scope), "TotalsWorkerFunction")["SOURCE_STREAM_ARN"] == "<Orders.StreamArn>"


def test_no_table__is_made_as_the_definitions_say(scope: cdk.Stack, file: Path) -> None:
    file.write_text(SOURCE + aggregation_text())

    AggregationWorker(scope, "Totals", definitions=file)

    assert set(synthesized(scope).tables()) == {"orders", "item_count_by_date", "Shop-Totals-ledger"}


def test_no_table_and_no_source_in_the_definitions__is_one_sentence(scope: cdk.Stack, file: Path) -> None:
    with pytest.raises(DefinitionError, match=r"^aggregations\.toml: the file: source: is missing; a table"):
        AggregationWorker(scope, "Totals", definitions=file)


@pytest.mark.parametrize("view", [None, dynamodb.StreamViewType.NEW_IMAGE])
def test_table_without_both_images__is_refused(
    scope: cdk.Stack, file: Path, view: dynamodb.StreamViewType | None
) -> None:
    with pytest.raises(DeploymentError, match=r"^the source Shop/Orders needs a stream of old and new images: make"):
        AggregationWorker(scope, "Totals", definitions=file, source=orders(scope, view))


def test_keys_that_are_not_the_tables__are_refused(scope: cdk.Stack, file: Path) -> None:
    file.write_text(SOURCE.replace("orderid", "id") + aggregation_text())

    with pytest.raises(DefinitionError, match=r"not those of the table that the worker is given: orderid \(S\)$"):
        AggregationWorker(scope, "Totals", definitions=file, source=orders(scope))


def test_table_of_another_name_than_in_the_file__is_refused(scope: cdk.Stack, file: Path) -> None:
    file.write_text(SOURCE + aggregation_text())
    sales = STREAM_ARN.replace("/orders/", "/sales/")
    imported = dynamodb.Table.from_table_attributes(scope, "Sales", table_name="sales", table_stream_arn=sales)

    with pytest.raises(DefinitionError, match="source: table: is 'orders', but the worker is given table 'sales'"):
        AggregationWorker(scope, "Totals", definitions=file, source=imported)


# --- Several workers -------------------------------------------------------------------------------------------------


def test_worker_over_another_ones_totals__reads_their_stream(scope: cdk.Stack, file: Path, tmp_path: Path) -> None:
    months = tmp_path / "months.toml"
    months.write_text(MONTHS)

    days = AggregationWorker(scope, "Days", definitions=file, source=orders(scope))
    AggregationWorker(scope, "Months", definitions=months, source=days.tables["item_count_by_date"])

    stack = synthesized(scope)
    assert stack.tables()["item_count_by_date"]["Properties"]["StreamSpecification"] == {"StreamViewType": IMAGES.value}
    read = variables(stack, "MonthsWorkerFunction")["SOURCE_STREAM_ARN"]
    assert read == "<DaysTablesTargetitemcountbydate.StreamArn>"
    assert "StreamSpecification" not in stack.tables()["item_count_by_month"]["Properties"]
    # Nobody is told to put an item into totals.
    assert [name for name in outputs(stack) if name.endswith("PutItemCommand")] == ["DaysPutItemCommand"]


def test_two_workers_of_a_stack__share_no_name(scope: cdk.Stack, file: Path) -> None:
    source = orders(scope)
    for number in (1, 2):
        AggregationWorker(scope, f"Totals{number}", definitions=file, source=source, table_prefix=f"{number}-")
    stack = synthesized(scope)

    named = {
        "CloudWatch::Alarm": "AlarmName",
        "CloudWatch::Dashboard": "DashboardName",
        "DynamoDB::Table": "TableName",
        "S3::Bucket": "BucketName",
    }
    for kind, key in named.items():
        names = [plain(one["Properties"].get(key, "")) for one in stack.of_type(kind).values()]
        assert len(names) == len(set(names)) > 1, kind
    assert {"1-item_count_by_date", "2-item_count_by_date"} <= stack.tables().keys()
    services = {variables(stack, f"Totals{number}WorkerFunction")["POWERTOOLS_SERVICE_NAME"] for number in (1, 2)}
    assert services == {"Shop-Totals1", "Shop-Totals2"}


def test_long_names__leave_room_for_account_and_region(file: Path) -> None:
    app = cdk.App(context={"aws:cdk:bundling-stacks": []})
    workers = []
    for stack in ("TheShopOfTheCompanyInProduction", "TheShopOfTheCompanyInProductionToo"):
        scope = cdk.Stack(app, stack)
        workers.append(AggregationWorker(scope, "TotalsOfAllItems", definitions=file, source=orders(scope)))

    first, second = workers
    assert len(first.name) <= 30
    assert first.name != second.name


# --- Properties ------------------------------------------------------------------------------------------------------


def test_table_prefix__stands_before_every_table_that_is_made(scope: cdk.Stack, file: Path) -> None:
    file.write_text(SOURCE + aggregation_text())

    totals = AggregationWorker(scope, "Totals", definitions=file, table_prefix="dev-")
    stack = synthesized(scope)

    assert set(stack.tables()) == {"dev-orders", "dev-item_count_by_date", "Shop-Totals-ledger"}
    assert variables(stack, "TotalsWorkerFunction")["TABLE_PREFIX"] == "dev-"
    assert list(totals.tables) == ["item_count_by_date"]


def test_removal_policy__is_that_of_all_data(scope: cdk.Stack, file: Path) -> None:
    AggregationWorker(scope, "Totals", definitions=file, source=orders(scope), removal_policy=cdk.RemovalPolicy.DESTROY)
    stack = synthesized(scope)

    kept = [
        name
        for kind in ("DynamoDB::Table", "SQS::Queue", "S3::Bucket", "Logs::LogGroup")
        for name, resource in stack.of_type(kind).items()
        if resource["DeletionPolicy"] != "Delete"
    ]
    assert kept == ["Orders"]
    assert not any(table["Properties"].get("DeletionProtectionEnabled") for table in stack.tables().values())


def test_encryption_key__is_used_for_all_data(scope: cdk.Stack, file: Path) -> None:
    key = kms.Key(scope, "Key")
    totals = AggregationWorker(scope, "Totals", definitions=file, source=orders(scope), encryption_key=key)
    stack = synthesized(scope)

    arn = "<Key.Arn>"
    tables = [plain(table["Properties"]["SSESpecification"]["KMSMasterKeyId"]) for table in stack.tables().values()]
    assert tables == [arn, arn]
    assert stack.properties("SQS::Queue")["KmsMasterKeyId"] == arn
    (rule,) = stack.properties("S3::Bucket")["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"]["KMSMasterKeyID"] == arn
    assert stack.properties("SNS::Topic")["KmsMasterKeyId"] == arn
    assert totals.topic.topic_arn
    statements = {one.get("Sid"): one for one in stack.properties("KMS::Key")["KeyPolicy"]["Statement"]}
    for sid, service in (("NotificationsOfTheBucket", "s3"), ("AlarmsOfThisAccount", "cloudwatch")):
        assert statements[sid] == {
            "Sid": sid,
            "Effect": "Allow",
            "Principal": {"Service": f"{service}.amazonaws.com"},
            "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
            "Resource": "*",
            "Condition": {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}},
        }
    (policy,) = stack.properties("IAM::Role")["Policies"]
    (use,) = [one for one in policy["PolicyDocument"]["Statement"] if one["Sid"] == "UseKey"]
    assert use["Resource"] == arn


def test_other_properties__reach_function_mapping_and_alarms(scope: cdk.Stack, file: Path) -> None:
    topic = sns.Topic(scope, "Night")
    totals = AggregationWorker(
        scope,
        "Totals",
        definitions=file,
        source=orders(scope),
        alarm_topic=topic,
        runbooks="https://wiki.example.com/runbooks",
        reserved_concurrency=7,
        memory_mb=2048,
        batch_size=100,
        batching_window_seconds=5,
        parallelization_factor=2,
        ledger_retention_days=90,
        log_retention=cdk.aws_logs.RetentionDays.ONE_WEEK,
    )
    stack = synthesized(scope)

    function, mapping = stack.properties("Lambda::Function"), stack.properties("Lambda::EventSourceMapping")
    assert (function["ReservedConcurrentExecutions"], function["MemorySize"]) == (7, 2048)
    assert function["Environment"]["Variables"]["LEDGER_RETENTION_DAYS"] == "90"
    chosen = ("BatchSize", "MaximumBatchingWindowInSeconds", "ParallelizationFactor")
    assert [mapping[name] for name in chosen] == [100, 5, 2]
    assert stack.properties("Logs::LogGroup")["RetentionInDays"] == 7
    alarm = plain(stack.of_type("CloudWatch::Alarm")["TotalsAlarmsiteratorage"]["Properties"])
    assert alarm["AlarmActions"] == ["<Night>"]
    assert alarm["AlarmDescription"].endswith("Runbook: https://wiki.example.com/runbooks/iterator-age.md")
    assert totals.topic is topic
    assert totals.alarms["iterator-age"]


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"reconcile": "rate(1 minute)"}, "reconcile='rate(1 minute)': at most once an hour"),
        ({"ledger_retention_days": 30}, "the ledger keeps receipts for 30 days, but a dead letter can come back for"),
        ({"batch_size": 10_001}, "batch_size=10001: 1 to 10000 is what Lambda takes"),
        ({"batching_window_seconds": -1}, "batching_window_seconds=-1: 0 to 300 is what Lambda takes"),
        ({"parallelization_factor": 11}, "parallelization_factor=11: 1 to 10 is what Lambda takes"),
        ({"memory_mb": 127}, "memory_mb=127: 128 to 10240 is what Lambda takes"),
    ],
)
def test_property_that_cannot_be__is_one_sentence(
    scope: cdk.Stack, file: Path, properties: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(DeploymentError) as refused:
        AggregationWorker(scope, "Totals", definitions=file, source=orders(scope), **properties)

    assert str(refused.value).startswith(sentence)


def test_address_beside_a_topic_of_ones_own__is_refused(scope: cdk.Stack, file: Path) -> None:
    topic = sns.Topic(scope, "Night")

    with pytest.raises(DeploymentError, match="leave alarm_topic out"):
        AggregationWorker(
            scope, "Totals", definitions=file, source=orders(scope), alarm_topic=topic, alarm_email="a@example.com"
        )


def test_bundle_that_cannot_be_made__says_why(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise BundlingError("the registry is down")

    monkeypatch.setattr(bundle, "bundle", fail)
    scope = cdk.Stack(cdk.App(outdir=str(tmp_path / "out")), "Shop")

    with pytest.raises(BundlingError, match=r"^the registry is down$"):
        AggregationWorker(scope, "Totals", definitions=file, source=orders(scope))


# --- README.md and cdk/README.md -------------------------------------------------------------------------------------


def test_lines_of_the_readme__add_a_worker(scope: cdk.Stack, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (CDK.parent / "README.md").read_text(), flags=re.DOTALL)
    monkeypatch.chdir(file.parent)
    file.rename("aggregations.toml")
    api = cdk.aws_iam.Role(scope, "Api", assumed_by=cdk.aws_iam.ServicePrincipal("lambda.amazonaws.com"))

    exec(lines, {"self": scope, "orders": orders(scope), "api": api})

    (policy,) = Template.from_stack(scope).find_resources("AWS::IAM::Policy").values()
    assert "dynamodb:Query" in str(policy["Properties"]["PolicyDocument"])


@pytest.mark.parametrize("number", range(3))
def test_app_of_the_readme__is_synthesized(number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    apps = re.findall(r"```python\n(.*?)```", (CDK / "README.md").read_text(), flags=re.DOTALL)
    assert len(apps) == 3
    texts = {"aggregations": aggregation_text(), "days": SOURCE + aggregation_text(), "months": MONTHS}
    for name, text in texts.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    app = functools.partial(cdk.App, context={"aws:cdk:bundling-stacks": []}, outdir=str(tmp_path / "out"))
    monkeypatch.setattr(cdk, "App", app)

    exec(apps[number], {})

    (template,) = (tmp_path / "out").glob("*.template.json")
    kinds = [resource["Type"] for resource in json.loads(template.read_text())["Resources"].values()]
    assert kinds.count("AWS::Lambda::EventSourceMapping") == (2 if number == 2 else 1)


def test_all_that_the_app_imports__has_one_version() -> None:
    """So that a deployment resolves tomorrow what it resolves today."""
    project = tomllib.loads((CDK.parent / "pyproject.toml").read_text())
    exact = [Requirement(line) for line in project["tool"]["uv"]["constraint-dependencies"]]
    of_app = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["cdk"]]
    named = [Requirement(line) for line in of_app]
    pinned = {
        canonicalize_name(one.name) for one in (*exact, *named) if [each.operator for each in one.specifier] == ["=="]
    }

    needed, found = [one.name for one in named], set[str]()
    while needed:
        name = canonicalize_name(needed.pop())
        if name not in found:
            found.add(name)
            requirements = map(Requirement, metadata.requires(name) or [])
            needed += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert found <= pinned
    assert {canonicalize_name(one.name) for one in exact} <= found

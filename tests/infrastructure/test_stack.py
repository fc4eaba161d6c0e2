"""The stack as a whole: its outputs and its flags, one by one."""

import json
from pathlib import Path
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import DEFINITIONS_FILE
from aggregation_worker.deployment.settings import Output
from aggregation_worker_cdk.options import OptionError, Options, read_options
from tests.infrastructure.stacks import CDK, Stack, plain


def outputs(stack: Stack) -> dict[str, str]:
    return {name: plain(output["Value"]) for name, output in stack.template["Outputs"].items()}


def test_outputs__name_everything_that_an_operator_needs(stack: Stack) -> None:
    assert outputs(stack) == {
        "SourceTableName": "<TablesSource>",
        "TargetTableNames": "item_count_by_date",
        "LedgerTableName": "<TablesLedger>",
        "LedgerRetentionDays": "60",
        "DeadLetterQueueUrl": "<DeadLettersQueue>",
        "DeadLetterBucketName": "<DeadLettersBucket>",
        "FunctionName": "<WorkerFunction>",
        "EventSourceMappingUuid": "<WorkerMapping>",
        "LogGroupName": "<WorkerLog>",
        "AlarmTopicArn": "<AlarmTopic>",
        "DashboardName": "DynamoDBAggregationWorker",
        "PutItemCommand": "aws dynamodb put-item --table-name Order_by_item --item "
        '\'{"item_number": {"S": "item123"}, "order_date": {"S": "2024-07-15"}, "orderid": {"S": "178526"}, '
        '"quantity": {"N": "10"}}\'',
        "QueryCommand": "aws dynamodb query --table-name item_count_by_date "
        "--key-condition-expression '#key = :value' "
        '--expression-attribute-names \'{"#key": "item_number"}\' '
        '--expression-attribute-values \'{":value": {"S": "item123"}}\'',
    }


def test_outputs_that_the_aggregator_command_reads__are_there(stack: Stack, other_stack: Stack) -> None:
    for one in (stack, other_stack):
        assert set(Output) <= outputs(one).keys()


def test_outputs_of_other_definitions__have_a_query_for_each(other_stack: Stack) -> None:
    found = outputs(other_stack)

    assert found["SourceTableName"] == "sales"
    assert found["TargetTableNames"] == "customer_totals hourly_orders"
    assert [name for name in found if name.startswith("Query")] == ["QueryCommand", "QueryCommand2", "QueryCommand3"]


def test_every_output__says_what_it_is(stack: Stack) -> None:
    assert all(output["Description"] for output in stack.template["Outputs"].values())


def test_no_flags__are_the_defaults() -> None:
    assert read_options({}) == Options(
        "DynamoDBAggregationWorker", DEFINITIONS_FILE, "", False, None, None, None, False
    )


def test_flags__are_read_as_the_cdk_cli_passes_them() -> None:
    context = {
        "stackName": "Second",
        "definitions": "mine.toml",
        "tablePrefix": "dev-",
        "throwaway": "true",
        "reservedConcurrency": "20",
        "alarmEmail": "night@example.com",
        "reconcile": "rate(1 day)",
        "allowSourceChange": "true",
    }

    assert read_options(context) == Options(
        "Second", Path("mine.toml"), "dev-", True, 20, "night@example.com", "rate(1 day)", True
    )


def test_flags_in_cdk_json__may_have_json_types() -> None:
    options = read_options({"throwaway": True, "reservedConcurrency": 20})

    assert (options.throwaway, options.reserved_concurrency) == (True, 20)


def test_cdk_json_of_the_clone__holds_options_only() -> None:
    assert read_options(json.loads((CDK / "cdk.json").read_text())["context"]) == Options()


def test_what_the_cdk_puts_into_the_context__is_no_mistyped_flag() -> None:
    context = {"@aws-cdk/core:checkSecretUsage": True, "aws:cdk:bundling-stacks": ["*"], "aws-cdk:x": 1}

    assert read_options(context) == Options()


def test_keys_of_the_users_own_cdk_json__are_other_apps() -> None:
    assert read_options({"colour": "blue"}, personal=["colour"]) == Options()


def test_definitions_outside_a_clone__must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregation_worker_cdk.options.DEFINITIONS_FILE", tmp_path / "aggregations.toml")

    with pytest.raises(OptionError, match="definitions: is needed"):
        read_options({})
    assert read_options({"definitions": "own.toml"}).definitions_file == Path("own.toml")


@pytest.mark.parametrize(
    ("context", "message"),
    [
        ({"throwaway": "yes"}, "-c throwaway=yes: true or false is needed"),
        ({"throwaway": ""}, "-c throwaway=: true or false is needed"),
        ({"throwAway": "true"}, "-c throwAway: unknown option; did you mean throwaway?"),
        ({"reservedConcurency": "1"}, "-c reservedConcurency: unknown option; did you mean reservedConcurrency?"),
        ({"email": "night@example.com"}, "-c email: unknown option; did you mean alarmEmail?"),
        ({"region": "eu-central-1"}, "-c region: unknown option; known are stackName, definitions, tablePrefix,"),
        ({"tablePrefix": "dev/"}, "-c tablePrefix=dev/: up to 64 letters"),
        ({"reservedConcurrency": "0"}, "from 1 to 10000"),
        ({"reservedConcurrency": "two"}, "from 1 to 10000"),
        ({"reservedConcurrency": True}, "from 1 to 10000"),
        ({"stackName": "a_b"}, "-c stackName=a_b: a letter"),
        ({"stackName": "ends-"}, "not ending in one"),
        ({"stackName": "x" * 31}, "up to 29 more"),
        ({"alarmEmail": "nobody"}, "-c alarmEmail=nobody: an e-mail address is needed"),
        ({"reconcile": "true"}, "-c reconcile=true: a schedule like rate(1 day) or cron(0 3 * * ? *) is needed"),
        ({"reconcile": "rate(5 minutes)"}, "-c reconcile=rate(5 minutes): at most once an hour"),
    ],
)
def test_unusable_flag__is_refused_with_what_it_takes(context: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as refused:
        read_options(context)

    assert message in str(refused.value)
    assert "\n" not in str(refused.value)

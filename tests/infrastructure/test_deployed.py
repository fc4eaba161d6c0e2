"""A deployment that would take apart what is deployed: refused before it begins."""

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from aggregation_worker.aggregations.definitions import load_definitions
from aggregation_worker.deployment.settings import DeploymentError
from aggregation_worker.local import SAMPLE_FILE
from aggregation_worker_cdk.deployed import refuse_to_take_apart

ACCOUNT = {"CDK_DEFAULT_ACCOUNT": "123456789012", "CDK_DEFAULT_REGION": "eu-central-1"}
SAME = {"SourceTableName": "Order_by_item", "TargetTableNames": "item_count_by_date"}


class Aws:
    """STS and CloudFormation of one account."""

    def __init__(self, outputs: dict[str, str] | None, error: str = "") -> None:
        self.outputs = outputs
        self.error = error
        self.account = ACCOUNT["CDK_DEFAULT_ACCOUNT"]

    def client(self, service: str, **_: Any) -> "Aws":
        assert service in ("sts", "cloudformation")
        return self

    def get_caller_identity(self) -> dict[str, str]:
        return {"Account": self.account}

    def describe_stacks(self, **_: Any) -> dict[str, Any]:
        if self.outputs is None:
            raise ClientError({"Error": {"Code": "ValidationError", "Message": self.error}}, "DescribeStacks")
        outputs = [{"OutputKey": key, "OutputValue": value} for key, value in self.outputs.items()]
        return {"Stacks": [{"Outputs": outputs}]}


def refusal(monkeypatch: pytest.MonkeyPatch, aws: Aws, environment: dict[str, str] | None = None) -> str | None:
    monkeypatch.setattr(boto3, "Session", lambda **_: aws)
    return refuse_to_take_apart(
        "Totals", load_definitions(SAMPLE_FILE), ACCOUNT if environment is None else environment
    )


@pytest.mark.parametrize(
    ("aws", "environment"),
    [
        (Aws(SAME), None),
        (Aws({}), None),
        (Aws(None, "Stack with id Totals does not exist"), None),
        # Without credentials nothing can be deployed either.
        (Aws(SAME | {"SourceTableName": "sales"}), {}),
    ],
)
def test_deployment_that_takes_nothing_away__is_made(
    monkeypatch: pytest.MonkeyPatch, aws: Aws, environment: dict[str, str] | None
) -> None:
    assert refusal(monkeypatch, aws, environment) is None


@pytest.mark.parametrize(
    ("outputs", "change"),
    [
        ({"SourceTableName": "sales"}, "read Order_by_item instead of sales"),
        ({"TargetTableNames": "by_day item_count_by_date by_week"}, "no longer have by_day and no longer have by_week"),
        (
            {"SourceTableName": "sales", "TargetTableNames": "by_day"},
            "read Order_by_item instead of sales and no longer have by_day",
        ),
    ],
)
def test_deployment_that_takes_something_away__is_refused(
    monkeypatch: pytest.MonkeyPatch, outputs: dict[str, str], change: str
) -> None:
    with pytest.raises(DeploymentError) as refused:
        refusal(monkeypatch, Aws(SAME | outputs))

    assert str(refused.value) == (
        f"stack Totals would {change}: another worker needs another stackName; if this is meant, deploy with "
        "-c allowSourceChange=true"
    )


def test_stack_that_cannot_be_seen__is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    denied = Aws(None, "not authorized to perform: cloudformation:DescribeStacks")
    elsewhere = Aws(SAME)
    elsewhere.account = "999999999999"

    assert "not authorized to perform: cloudformation:DescribeStacks" in str(refusal(monkeypatch, denied))
    assert str(refusal(monkeypatch, elsewhere)) == (
        "what stack Totals holds could not be seen, so a changed source or a lost target is not noticed: the "
        "environment's credentials are of account 999999999999, not of 123456789012"
    )


def test_profile_that_is_not_known__is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")

    told = refuse_to_take_apart("Totals", load_definitions(SAMPLE_FILE), ACCOUNT)

    assert str(told).endswith("(nobody) could not be found")

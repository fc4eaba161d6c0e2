"""What is deployed already: a deployment that would take it apart is refused before it begins."""

from collections.abc import Mapping

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from aggregation_worker.aggregations.contributions import Definitions
from aggregation_worker.deployment.settings import DeploymentError, Output

_PATIENCE = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})


def refuse_to_take_apart(stack: str, definitions: Definitions, environment: Mapping[str, str]) -> str | None:
    """Compares the definitions with the deployed stack, if there is one.

    The CDK CLI gives the app no credentials, only the account that its own belong to. So the stack is seen with those
    of the environment, and not if they belong to another account, as with `--profile`, or may not describe stacks.

    Args:
        environment: `CDK_DEFAULT_ACCOUNT` and `CDK_DEFAULT_REGION`, as the CLI sets them where it has credentials.

    Returns:
        Why nothing could be compared, as a sentence, although there is an account to deploy to.

    Raises:
        DeploymentError: the worker would read another table, or no longer have one of its targets.
    """
    account = environment.get("CDK_DEFAULT_ACCOUNT")
    if not account:
        return None
    try:
        session = boto3.Session(region_name=environment.get("CDK_DEFAULT_REGION"))
        own = session.client("sts", config=_PATIENCE).get_caller_identity()["Account"]
        if own != account:
            return _unseen(stack, f"the environment's credentials are of account {own}, not of {account}")
        (deployed,) = session.client("cloudformation", config=_PATIENCE).describe_stacks(StackName=stack)["Stacks"]
    except (BotoCoreError, ClientError) as error:
        return None if "does not exist" in str(error) else _unseen(stack, str(error))
    outputs = {output["OutputKey"]: output["OutputValue"] for output in deployed.get("Outputs", [])}
    source = outputs.get(Output.SOURCE_TABLE, definitions.source.table)
    lost = set(outputs.get(Output.TARGET_TABLES, "").split()) - {one.table for one in definitions.aggregations}
    changes = [f"read {definitions.source.table} instead of {source}"] if source != definitions.source.table else []
    changes += [f"no longer have {table}" for table in sorted(lost)]
    if changes:
        raise DeploymentError(
            f"stack {stack} would {' and '.join(changes)}: another worker needs another stackName; if this is meant, "
            "deploy with -c allowSourceChange=true"
        )
    return None


def _unseen(stack: str, reason: str) -> str:
    return f"what stack {stack} holds could not be seen, so a changed source or a lost target is not noticed: {reason}"

"""How what a worker holds is kept: its tables, queue, bucket and logs."""

from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs


@dataclass(frozen=True, slots=True)
class Keeping:
    """The choices of one worker.

    Attributes:
        removal_policy: what becomes of data when the worker is taken out of its stack, or the stack deleted.
        key: what data is encrypted with, in place of keys of AWS.
        log_retention: longer than a page is kept by default, so that the log reaches as far back as the ledger.
    """

    removal_policy: cdk.RemovalPolicy = cdk.RemovalPolicy.RETAIN
    key: kms.IKey | None = None
    log_retention: logs.RetentionDays = logs.RetentionDays.THREE_MONTHS

    @property
    def protected(self) -> bool:
        """Whether tables refuse to be deleted."""
        return self.removal_policy is not cdk.RemovalPolicy.DESTROY

    def use_of_key(self) -> list[iam.PolicyStatement]:
        """What a role needs to read and write what is under the key; nothing where the keys are AWS's.

        What `grant_read_write_data` of a table under a key allows, and sending and storing need no more ("Key
        management", Amazon SQS developer guide; "Reducing the cost of SSE-KMS", Amazon S3 user guide).
        """
        if self.key is None:
            return []
        actions = ("Decrypt", "DescribeKey", "Encrypt", "GenerateDataKey", "ReEncryptFrom", "ReEncryptTo")
        return [
            iam.PolicyStatement(
                sid="UseKey", actions=[f"kms:{action}" for action in actions], resources=[self.key.key_arn]
            )
        ]


def let_service_encrypt(key: kms.IKey, sid: str, service: str, account: str) -> None:
    """Has a service of AWS send encrypted messages on behalf of an account. The policy of an imported key stays."""
    key.add_to_resource_policy(
        iam.PolicyStatement(
            sid=sid,
            principals=[iam.ServicePrincipal(service)],
            actions=["kms:Decrypt", "kms:GenerateDataKey*"],
            resources=["*"],
            conditions={"StringEquals": {"aws:SourceAccount": account}},
        )
    )

"""The topic that every alarm tells, and who hears of it."""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from constructs import Construct

from aggregation_worker_cdk.keeping import let_service_encrypt


class AlarmTopic(Construct):
    """An encrypted topic that the account's alarms may publish to, with an address that is subscribed to it."""

    def __init__(
        self, scope: Construct, construct_id: str, *, name: str, email: str | None, key: kms.IKey | None
    ) -> None:
        """Adds it.

        The key is the worker's own, or a given one: CloudWatch may not use the AWS-managed one, whose policy cannot be
        changed ("Amazon SNS key management", Amazon SNS developer guide). The permission to publish must be spelled
        out, since the policy that refuses unencrypted transport takes the place of the default one.

        Args:
            name: the worker's.
            email: an address to subscribe.
            key: in place of one that is made here.
        """
        super().__init__(scope, construct_id)
        account = cdk.Stack.of(self).account
        key = key or kms.Key(
            self,
            "Key",
            description=f"Alarms of {name} on their way",
            enable_key_rotation=True,
            # Messages are delivered and not stored, so nothing needs it later.
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        let_service_encrypt(key, "AlarmsOfThisAccount", "cloudwatch.amazonaws.com", account)
        self.topic = sns.Topic(self, "Topic", display_name=f"{name} alarms", master_key=key, enforce_ssl=True)
        self.topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AlarmsOfThisAccount",
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[self.topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": account}},
            )
        )
        if email is not None:
            sns.Subscription(self, "Email", topic=self.topic, protocol=sns.SubscriptionProtocol.EMAIL, endpoint=email)
        else:
            cdk.Annotations.of(self).add_warning_v2(
                "aggregation-worker:noSubscriber",
                "nobody is subscribed here to the alarms, so they ring unheard unless somebody has subscribed by hand: "
                "set alarmEmail (alarm_email), or see step 3 of runbooks/verify-a-deployment.md",
            )

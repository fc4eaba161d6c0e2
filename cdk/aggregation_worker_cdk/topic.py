"""The topic that every alarm tells, and who hears of it."""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from constructs import Construct


def topic_of(alarms: Construct, email: str | None) -> sns.Topic:
    """An encrypted topic that the account's alarms may publish to, with an address that is subscribed to it.

    The key is the stack's own: CloudWatch may not use the AWS-managed one, whose policy cannot be changed ("Amazon SNS
    key management", Amazon SNS developer guide). The permission to publish must be spelled out, since the policy that
    refuses unencrypted transport takes the place of the default one.
    """
    stack = cdk.Stack.of(alarms)
    of_this_account = {"StringEquals": {"aws:SourceAccount": stack.account}}
    key = kms.Key(
        alarms,
        "Key",
        description=f"Alarms of {stack.stack_name} on their way",
        enable_key_rotation=True,
        # Messages are delivered and not stored, so nothing needs it later.
        removal_policy=cdk.RemovalPolicy.DESTROY,
    )
    key.add_to_resource_policy(
        iam.PolicyStatement(
            sid="AlarmsOfThisAccount",
            principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
            actions=["kms:Decrypt", "kms:GenerateDataKey*"],
            resources=["*"],
            conditions=of_this_account,
        )
    )
    topic = sns.Topic(alarms, "Topic", display_name=f"{stack.stack_name} alarms", master_key=key, enforce_ssl=True)
    topic.add_to_resource_policy(
        iam.PolicyStatement(
            sid="AlarmsOfThisAccount",
            principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
            actions=["sns:Publish"],
            resources=[topic.topic_arn],
            conditions=of_this_account,
        )
    )
    if email is not None:
        sns.Subscription(alarms, "Email", topic=topic, protocol=sns.SubscriptionProtocol.EMAIL, endpoint=email)
    else:
        cdk.Annotations.of(topic).add_warning_v2(
            "aggregation-worker:noSubscriber",
            "this stack subscribes nobody to its alarms, so they ring unheard unless somebody has subscribed by hand: "
            "deploy with -c alarmEmail=ADDRESS, or see step 3 of runbooks/verify-a-deployment.md",
        )
    return topic

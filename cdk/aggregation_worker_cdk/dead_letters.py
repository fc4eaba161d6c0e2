"""Where records wait that could not be counted: the dead-letter queue and its bucket.

Operators watch the one queue. The bucket holds what does not fit into a message: documents of failed batches, which
Lambda writes, and large parked records, which the worker writes; it tells the queue about the former.
"""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from aggregation_worker.dead_letters import ON_FAILURE_PREFIX
from aggregation_worker.deployment import settings as deployment
from aggregation_worker_cdk.keeping import Keeping, let_service_encrypt
from aggregation_worker_cdk.own_resource import own_resource

# Seconds. A message that was read is hidden this long: twice as long as the function may take for it.
VISIBILITY_TIMEOUT_SECONDS = 2 * deployment.FUNCTION_TIMEOUT_SECONDS


class DeadLetters(Construct):
    """The queue, the bucket, and the bucket's notifications into the queue."""

    def __init__(self, scope: Construct, construct_id: str, *, name: str, keeping: Keeping) -> None:
        super().__init__(scope, construct_id)
        stack = cdk.Stack.of(self)
        # S3 checks, while it makes the bucket, that it may send to the queue; so the queue's policy must name the
        # bucket, and the function's role, which names it too, before there is one. Its name cannot be left to
        # CloudFormation.
        bucket_name = f"{name.lower()}-dlq-{stack.account}-{stack.region}"
        self.bucket_arn = f"arn:{stack.partition}:s3:::{bucket_name}"
        self.queue = sqs.Queue(
            self,
            "Queue",
            retention_period=cdk.Duration.days(deployment.QUEUE_RETENTION_DAYS),
            visibility_timeout=cdk.Duration.seconds(VISIBILITY_TIMEOUT_SECONDS),
            # Not the AWS-managed KMS key: S3 cannot send to a queue under it ("Granting permissions to publish event
            # notification messages to a destination", Amazon S3 user guide).
            encryption=sqs.QueueEncryption.SQS_MANAGED if keeping.key is None else sqs.QueueEncryption.KMS,
            encryption_master_key=keeping.key,
            enforce_ssl=True,
            # Whoever may change another queue of the account could name this one as its dead-letter queue, and SQS
            # would move messages here without asking the policy.
            redrive_allow_policy=sqs.RedriveAllowPolicy(redrive_permission=sqs.RedrivePermission.DENY_ALL),
            # These records have not been counted yet.
            removal_policy=keeping.removal_policy,
        )
        if keeping.key is not None:
            let_service_encrypt(keeping.key, "NotificationsOfTheBucket", "s3.amazonaws.com", stack.account)
        self.queue.add_to_resource_policy(
            iam.PolicyStatement(
                sid="NotificationsOfTheBucket",
                principals=[iam.ServicePrincipal("s3.amazonaws.com")],
                actions=["sqs:SendMessage"],
                resources=[self.queue.queue_arn],
                conditions={
                    "ArnEquals": {"aws:SourceArn": self.bucket_arn},
                    # Bucket ARNs name no account: a bucket deleted here and made elsewhere has the same one.
                    "StringEquals": {"aws:SourceAccount": stack.account},
                },
            )
        )
        self.bucket = s3.Bucket(
            self,
            "Bucket",
            bucket_name=bucket_name,
            encryption=s3.BucketEncryption.S3_MANAGED if keeping.key is None else s3.BucketEncryption.KMS,
            encryption_key=keeping.key,
            bucket_key_enabled=None if keeping.key is None else True,
            enforce_ssl=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            lifecycle_rules=[
                s3.LifecycleRule(
                    id="EndOfDeadLetters",
                    expiration=cdk.Duration.days(deployment.DEAD_LETTER_OBJECT_DAYS),
                    abort_incomplete_multipart_upload_after=cdk.Duration.days(1),
                )
            ],
            removal_policy=keeping.removal_policy,
        )
        self._notify_queue()
        cdk.Validations.of(self.queue).acknowledge(
            cdk.Acknowledgment(
                id="AwsSolutions::AwsSolutions-SQS3",
                reason="This is the dead-letter queue; operators read it, and what they cannot replay must stay in it.",
            )
        )
        cdk.Validations.of(self.bucket).acknowledge(
            cdk.Acknowledgment(
                id="AwsSolutions::AwsSolutions-S1",
                reason="Two writers, both the function's role, and operators: CloudTrail's data events record who "
                "read what, and an access log would need a second bucket that is kept and watched like this one.",
            )
        )

    def admit_only(self, role: iam.IRole) -> None:
        """Refuses letters of all but the function's role and the bucket, whatever a policy of theirs allows them.

        A letter is counted as it is, so whoever writes one writes totals. A condition with `Not` also holds where its
        key is missing, and both of the queue's must hold ("Conditions with multiple context keys or values", IAM user
        guide): a session of the role has its `aws:PrincipalArn`, S3 on behalf of the bucket its `aws:SourceArn`, and
        all others have neither. The statement that lets S3 in asks for the bucket's account, too.
        """
        of_the_role = {"aws:PrincipalArn": role.role_arn}
        self.queue.add_to_resource_policy(
            iam.PolicyStatement(
                sid="NobodyElseWritesLetters",
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["sqs:SendMessage"],
                resources=[self.queue.queue_arn],
                conditions={"ArnNotEquals": {**of_the_role, "aws:SourceArn": self.bucket_arn}},
            )
        )
        # Lambda writes the documents of failed batches with the same role.
        self.bucket.add_to_resource_policy(
            iam.PolicyStatement(
                sid="NobodyElseWritesObjects",
                effect=iam.Effect.DENY,
                principals=[iam.AnyPrincipal()],
                actions=["s3:PutObject"],
                resources=[self.bucket.arn_for_objects("*")],
                conditions={"ArnNotEquals": of_the_role},
            )
        )

    def _notify_queue(self) -> None:
        """Has the bucket send a message for each document of a failed batch.

        Written into the bucket's own resource: the CDK's helper would add a function of its own with a role that may
        change the notifications of every bucket in the account.
        """
        bucket = own_resource(self.bucket, s3.CfnBucket)
        policy = own_resource(self.queue.node.find_child("Policy"), sqs.CfnQueuePolicy)
        bucket.notification_configuration = s3.CfnBucket.NotificationConfigurationProperty(
            queue_configurations=[
                s3.CfnBucket.QueueConfigurationProperty(
                    event="s3:ObjectCreated:*",
                    queue=self.queue.queue_arn,
                    filter=s3.CfnBucket.NotificationFilterProperty(
                        s3_key=s3.CfnBucket.S3KeyFilterProperty(
                            rules=[s3.CfnBucket.FilterRuleProperty(name="prefix", value=ON_FAILURE_PREFIX)]
                        )
                    ),
                )
            ]
        )
        bucket.add_resource_dependency(policy)

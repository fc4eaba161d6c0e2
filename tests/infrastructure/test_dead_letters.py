"""The dead-letter queue, its bucket, and the notification between them."""

import pytest

from tests.infrastructure.stacks import Stack, plain

BUCKET_NAME = "dynamodbaggregationworker-dlq-<AWS::AccountId>-<AWS::Region>"


def test_queue__keeps_messages_for_14_days_and_is_no_queues_target(stack: Stack) -> None:
    assert stack.properties("SQS::Queue") == {
        "MessageRetentionPeriod": 14 * 86_400,
        "RedriveAllowPolicy": {"redrivePermission": "denyAll"},
        "SqsManagedSseEnabled": True,
        "VisibilityTimeout": 120,
    }


def test_queue_policy__lets_in_bucket_and_function_over_tls(stack: Stack) -> None:
    policy = stack.properties("SQS::QueuePolicy")

    assert policy["Queues"] == ["<DeadLettersQueue>"]
    assert policy["PolicyDocument"]["Statement"] == [
        {
            "Action": "sqs:*",
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Resource": "<DeadLettersQueue.Arn>",
        },
        {
            "Sid": "NotificationsOfTheBucket",
            "Action": "sqs:SendMessage",
            "Condition": {
                "ArnEquals": {"aws:SourceArn": f"arn:<AWS::Partition>:s3:::{BUCKET_NAME}"},
                "StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"},
            },
            "Effect": "Allow",
            "Principal": {"Service": "s3.amazonaws.com"},
            "Resource": "<DeadLettersQueue.Arn>",
        },
        {
            "Sid": "NobodyElseWritesLetters",
            "Action": "sqs:SendMessage",
            "Condition": {
                "ArnNotEquals": {
                    "aws:PrincipalArn": "<WorkerRole.Arn>",
                    "aws:SourceArn": f"arn:<AWS::Partition>:s3:::{BUCKET_NAME}",
                }
            },
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Resource": "<DeadLettersQueue.Arn>",
        },
    ]


OF_THE_BUCKET = {
    "aws:SourceArn": f"arn:<AWS::Partition>:s3:::{BUCKET_NAME}",
    "aws:SourceAccount": "<AWS::AccountId>",
}


@pytest.mark.parametrize(
    ("who", "context", "allowed"),
    [
        # A session of the role has the role's ARN here; its own policy allows it.
        ("function", {"aws:PrincipalArn": "<WorkerRole.Arn>"}, True),
        ("s3", OF_THE_BUCKET, True),
        ("administrator", {"aws:PrincipalArn": "arn:aws:iam::123456789012:role/Administrator"}, False),
        ("root of the account", {"aws:PrincipalArn": "arn:aws:iam::123456789012:root"}, False),
        ("reconcile", {"aws:PrincipalArn": "<ReconcileRole.Arn>"}, False),
        ("anybody", {}, False),
        ("s3", OF_THE_BUCKET | {"aws:SourceArn": "arn:aws:s3:::another"}, False),
        ("s3", OF_THE_BUCKET | {"aws:SourceAccount": "999999999999"}, False),
        ("sns", OF_THE_BUCKET | {"aws:SourceArn": "arn:aws:sns:us-east-1:123456789012:topic"}, False),
    ],
)
def test_letters__are_written_by_function_and_bucket_only(
    stack: Stack, who: str, context: dict[str, str], allowed: bool
) -> None:
    """All but services have a policy that allows them everything."""
    statements = stack.properties("SQS::QueuePolicy")["PolicyDocument"]["Statement"]
    holding = [
        one
        for one in statements
        if one["Action"] in ("sqs:*", "sqs:SendMessage")
        and one["Principal"] in ({"AWS": "*"}, {"Service": f"{who}.amazonaws.com"})
        and holds(one["Condition"], context | {"aws:SecureTransport": "true"})
    ]

    effects = {one["Effect"] for one in holding} | ({"Allow"} if who not in ("s3", "sns") else set())
    assert (effects == {"Allow"}) is allowed


def holds(conditions: dict[str, dict[str, str]], context: dict[str, str]) -> bool:
    """Whether all conditions of a statement hold; one with `Not` also does where the request has no such key."""
    matches = {"Bool": True, "ArnEquals": True, "StringEquals": True, "ArnNotEquals": False}
    return all(
        (context.get(key) == value) is matches[operator]
        for operator, keys in conditions.items()
        for key, value in keys.items()
    )


def test_bucket__is_private_encrypted_and_forgets_after_30_days(stack: Stack) -> None:
    bucket = stack.properties("S3::Bucket")

    assert bucket["BucketName"] == BUCKET_NAME
    assert bucket["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }
    assert bucket["OwnershipControls"] == {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
    assert bucket["BucketEncryption"] == {
        "ServerSideEncryptionConfiguration": [{"ServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]
    }
    assert bucket["LifecycleConfiguration"] == {
        "Rules": [
            {
                "Id": "EndOfDeadLetters",
                "Status": "Enabled",
                "ExpirationInDays": 30,
                "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1},
            }
        ]
    }


def test_bucket_policy__refuses_plain_http_and_all_writers_but_one(stack: Stack) -> None:
    assert stack.properties("S3::BucketPolicy")["PolicyDocument"]["Statement"] == [
        {
            "Action": "s3:*",
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Resource": ["<DeadLettersBucket.Arn>", "<DeadLettersBucket.Arn>/*"],
        },
        {
            "Sid": "NobodyElseWritesObjects",
            "Action": "s3:PutObject",
            "Condition": {"ArnNotEquals": {"aws:PrincipalArn": "<WorkerRole.Arn>"}},
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Resource": "<DeadLettersBucket.Arn>/*",
        },
    ]


def test_documents_of_failed_batches__are_announced_in_the_queue(stack: Stack) -> None:
    assert stack.properties("S3::Bucket")["NotificationConfiguration"] == {
        "QueueConfigurations": [
            {
                "Event": "s3:ObjectCreated:*",
                "Filter": {"S3Key": {"Rules": [{"Name": "prefix", "Value": "aws/lambda/"}]}},
                "Queue": "<DeadLettersQueue.Arn>",
            }
        ]
    }


def test_bucket__is_made_after_the_policy_that_lets_it_send(stack: Stack) -> None:
    (bucket,) = stack.of_type("S3::Bucket").values()

    (dependency,) = bucket["DependsOn"]
    assert stack.template["Resources"][dependency]["Type"] == "AWS::SQS::QueuePolicy"
    # By name, not by reference: a reference would make a circle; also in the role, which the policy names.
    policy = stack.template["Resources"][dependency]["Properties"]
    role = stack.of_type("IAM::Role")["WorkerRole"]["Properties"]
    assert "DeadLettersBucket" not in str(plain(policy)) + str(plain(role))


def test_queue_and_bucket__outlive_the_stack(stack: Stack, throwaway_stack: Stack) -> None:
    for kind in ("SQS::Queue", "S3::Bucket"):
        (kept,) = stack.of_type(kind).values()
        (thrown_away,) = throwaway_stack.of_type(kind).values()
        assert kept["DeletionPolicy"] == kept["UpdateReplacePolicy"] == "Retain"
        assert thrown_away["DeletionPolicy"] == thrown_away["UpdateReplacePolicy"] == "Delete"


def test_bucket_name_of_the_longest_stack_name__fits_s3() -> None:
    longest = "s" * 30 + "-dlq-" + "1" * 12 + "-" + "ap-southeast-1"

    assert len(longest) <= 63

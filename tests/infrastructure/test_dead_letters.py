"""The dead-letter queue, its bucket, and the notification between them."""

from tests.infrastructure.stacks import Stack, plain

BUCKET_NAME = "dynamodbaggregationworker-dlq-<AWS::AccountId>-<AWS::Region>"


def test_queue__keeps_messages_for_14_days_encrypted(stack: Stack) -> None:
    assert stack.properties("SQS::Queue") == {
        "MessageRetentionPeriod": 14 * 86_400,
        "SqsManagedSseEnabled": True,
        "VisibilityTimeout": 120,
    }


def test_queue_policy__lets_in_only_the_bucket_and_no_plain_http(stack: Stack) -> None:
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
    ]


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


def test_bucket_policy__refuses_plain_http_and_allows_nothing(stack: Stack) -> None:
    assert stack.properties("S3::BucketPolicy")["PolicyDocument"]["Statement"] == [
        {
            "Action": "s3:*",
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
            "Effect": "Deny",
            "Principal": {"AWS": "*"},
            "Resource": ["<DeadLettersBucket.Arn>", "<DeadLettersBucket.Arn>/*"],
        }
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
    # By name, not by reference: a reference would make a circle.
    policy = stack.template["Resources"][dependency]["Properties"]
    assert "DeadLettersBucket" not in str(plain(policy))


def test_queue_and_bucket__outlive_the_stack(stack: Stack, throwaway_stack: Stack) -> None:
    for kind in ("SQS::Queue", "S3::Bucket"):
        (kept,) = stack.of_type(kind).values()
        (thrown_away,) = throwaway_stack.of_type(kind).values()
        assert kept["DeletionPolicy"] == kept["UpdateReplacePolicy"] == "Retain"
        assert thrown_away["DeletionPolicy"] == thrown_away["UpdateReplacePolicy"] == "Delete"


def test_bucket_name_of_the_longest_stack_name__fits_s3() -> None:
    longest = "s" * 30 + "-dlq-" + "1" * 12 + "-" + "ap-southeast-1"

    assert len(longest) <= 63

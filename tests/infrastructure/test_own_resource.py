import re

import aws_cdk as cdk
import pytest
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sqs as sqs
from aws_cdk.assertions import Template

from aggregation_worker_cdk.own_resource import own_resource


def test_own_resource__is_the_one_of_the_template() -> None:
    stack = cdk.Stack()
    bucket = s3.Bucket(stack, "Bucket")

    own_resource(bucket, s3.CfnBucket).bucket_name = "renamed"

    Template.from_stack(stack).has_resource_properties("AWS::S3::Bucket", {"BucketName": "renamed"})


def test_construct_that_makes_another_resource_or_none__is_an_error() -> None:
    stack = cdk.Stack()
    imported = s3.Bucket.from_bucket_name(stack, "Imported", "theirs")
    queue = sqs.Queue(stack, "Queue")

    for construct in (imported, queue):
        with pytest.raises(TypeError, match=re.escape(f"{construct.node.path} makes no CfnBucket")):
            own_resource(construct, s3.CfnBucket)

"""A construct's own resource, for what its properties do not offer ("Escape hatches", AWS CDK developer guide)."""

from typing import TypeVar

from constructs import IConstruct

Resource = TypeVar("Resource")


def own_resource(construct: IConstruct, kind: type[Resource]) -> Resource:
    """The resource that a construct of the CDK makes.

    Args:
        kind: its class, such as `aws_s3.CfnBucket`.

    Raises:
        TypeError: it makes another one, or none: it was imported.
    """
    resource = construct.node.default_child
    if not isinstance(resource, kind):
        raise TypeError(f"{construct.node.path} makes no {kind.__name__}")
    return resource

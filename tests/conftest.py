"""Fixtures for every layer of tests."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import freezegun
import pytest
from hypothesis import settings

from tests.dynamodb_local import DynamoDBLocal, DynamoDBLocalUnavailableError, running_dynamodb_local

# A failing example prints how to reproduce it; a noisy machine's pauses are no failures.
settings.register_profile("project", print_blob=True, deadline=None)
settings.load_profile("project")
# Freezing the time looks at every attribute of every module that is loaded; the CDK's are made only then, all of them.
freezegun.configure(extend_ignore_list=["aws_cdk", "cdk_nag", "constructs", "jsii"])


_LONGEST = ("end_to_end", "integration", "infrastructure")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that in the end no processor waits for another; otherwise the order stays."""

    def rank(item: pytest.Item) -> int:
        layer = item.path.parent.name
        return _LONGEST.index(layer) if layer in _LONGEST else len(_LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def dynamodb_local() -> Iterator[DynamoDBLocal]:
    """DynamoDB Local, one server per test session (with pytest-xdist, per worker process).

    All tests of the session share its tables: give them names of their own. Without Java or npm the test is
    skipped, unless REQUIRE_DYNAMODB_LOCAL=1: then it fails.
    """
    with ExitStack() as stack:
        try:
            server = stack.enter_context(running_dynamodb_local())
        except DynamoDBLocalUnavailableError as unavailable:
            if os.environ.get("REQUIRE_DYNAMODB_LOCAL") == "1":
                pytest.fail(f"{unavailable} (REQUIRE_DYNAMODB_LOCAL=1 forbids to skip)", pytrace=False)
            pytest.skip(str(unavailable))
        yield server


@pytest.fixture(scope="session")
def dynamodb_endpoint(dynamodb_local: DynamoDBLocal) -> str:
    """The URL of DynamoDB Local, as AWS_ENDPOINT_URL_DYNAMODB takes it."""
    return dynamodb_local.endpoint

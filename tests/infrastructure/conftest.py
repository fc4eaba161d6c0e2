"""The stacks that the tests look at."""

import pytest

from tests.infrastructure.stacks import OTHER_DEFINITIONS, Stack, synthesized


@pytest.fixture(scope="session")
def stack() -> Stack:
    """The stack of the shipped definitions, as `cdk deploy` without flags makes it."""
    return synthesized()


@pytest.fixture(scope="session")
def other_stack() -> Stack:
    """The stack of other definitions: an existing source, retraction, a shared target, number keys."""
    return synthesized(OTHER_DEFINITIONS)


@pytest.fixture(scope="session")
def throwaway_stack() -> Stack:
    """The stack with `-c throwaway=true`."""
    return synthesized(throwaway=True)


@pytest.fixture(scope="session")
def reconcile_stack() -> Stack:
    """The shipped definitions with a scheduled reconcile."""
    return synthesized(reconcile="rate(1 day)")


@pytest.fixture(scope="session")
def other_reconcile_stack() -> Stack:
    """The other definitions, of which one retracts what is deleted, with a scheduled reconcile."""
    return synthesized(OTHER_DEFINITIONS, reconcile="cron(0 3 * * ? *)")

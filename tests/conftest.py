"""Fixtures for every layer of tests."""

import functools
import os
import re
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import Any

import botocore.session
import freezegun
import pytest
from hypothesis import Phase, settings
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]  # until pytest-xdist has a py.typed; mypy says when

from aggregation_worker.local.ministack import Ministack, running_ministack
from tests import sizes
from tests.dynamodb_local import DynamoDBLocal, DynamoDBLocalUnavailableError, running_dynamodb_local

# Freezing the time looks at every attribute of every module that is loaded; the CDK's are made only then, all of them.
freezegun.configure(extend_ignore_list=["aws_cdk", "cdk_nag", "constructs", "jsii"])


class _SearchPaths(list[str]):
    """Each once; boto3's sessions all append the same."""

    def append(self, path: str) -> None:
        if path not in self:
            super().append(path)


@functools.cache
def _loader(data_path: str | None, create: Any = botocore.session.create_loader) -> Any:
    loader = create(data_path)
    loader._search_paths = _SearchPaths(loader.search_paths)
    return loader


# Else every session reads the services' models anew, which takes longer than most tests that make one.
botocore.session.create_loader = _loader


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="more examples, histories, interleavings and kills")


def pytest_configure(config: pytest.Config) -> None:
    sizes.choose(long=config.getoption("long"))
    # A failing example prints how to reproduce it; a noisy machine's pauses are no failures.
    examples = sizes.examples(30, long=200)
    settings.register_profile("project", examples, print_blob=True, deadline=None)
    # For what only asks whether there is one.
    settings.register_profile("unshrunk", settings.get_profile("project"), phases=(Phase.explicit, Phase.generate))
    settings.load_profile("project")


# What takes longest comes first, and what mostly waits before what computes: that fills the processors at the end.
_FIRST = (
    "tests/end_to_end/test_deployed_stack.py",
    "tests/end_to_end/test_packaged_function.py",
    "tests/infrastructure/",
    "tests/integration/test_backfill.py::test_adopting_a_busy_table",
    "tests/end_to_end/",
    "tests/integration/test_reconcile.py",
    "tests/integration/",
    "tests/model/",
    "tests/unit/test_reconcile_histories.py",
    "tests/unit/test_snapshot.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item: pytest.Item) -> None:
    """Before -m selects."""
    if getattr(getattr(item, "obj", None), "is_hypothesis_test", False) or item.get_closest_marker("only_long"):
        item.add_marker("long")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sorts by `_FIRST`; otherwise the order stays."""
    if not config.getoption("long"):
        left_out = [item for item in items if item.get_closest_marker("only_long")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

    def rank(item: pytest.Item) -> int:
        return next((place for place, path in enumerate(_FIRST) if item.nodeid.startswith(path)), len(_FIRST))

    items.sort(key=rank)


# Files of one process each, since they share what takes long to make: the CDK's kernel, a synthesized assembly.
_TOGETHER = {
    "infrastructure": re.compile(r"tests/infrastructure/"),
    "the stack": re.compile(r"tests/end_to_end/test_(deployed_stack|packaged_function)\.py"),
}
# Files whose tests share nothing but servers, of which each process has its own.
_APART = re.compile(r"tests/integration/test_(backfill|dead_letters|reconcile)\.py")


class Distribution(LoadFileScheduling):  # type: ignore[misc]  # pytest-xdist has no types here
    """How pytest-xdist distributes: a file's tests stay in one process, but for `_TOGETHER` and `_APART`."""

    def _split_scope(self, nodeid: str) -> str:
        for name, files in _TOGETHER.items():
            if files.match(nodeid):
                return name
        return nodeid if _APART.match(nodeid) else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Distribution:
    """In place of what --dist names."""
    return Distribution(config, log)


@pytest.hookimpl(optionalhook=True, wrapper=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """What `-n auto` means: more processes than processors, since many tests wait (on two, 37 s less)."""
    processors = yield
    return processors + 2


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Decides what one test does at random; a failure says how to repeat it, whatever the test reads with `capsys`."""
    number = sizes.fresh_seed()
    request.node.add_report_section("setup", "seed", f"repeat with SEED={number}")
    return number


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands print is as in a terminal of 80 columns."""
    monkeypatch.setattr("aggregation_worker.operations.output._WIDTH_OF_A_PIPE", 80)


@pytest.fixture
def one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is past whatever was written before what it has counted, as in a stream of one shard.

    Otherwise a deleted row's records are known to be lost only if another one was seen to wait, and then to be counted.
    """
    monkeypatch.setattr("aggregation_worker.reconciliation.observer._SHARDS_APART", 0)


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


@pytest.fixture(scope="session")
def ministack() -> Iterator[Ministack]:
    """ministack, one server per test session, as with DynamoDB Local; tests of dead letters empty it."""
    with running_ministack(start_timeout_seconds=180) as server:
        yield server

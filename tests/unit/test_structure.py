"""Which folder may import which, and which one alone knows the ledger's keys: read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from aggregation_worker.ledger import receipts

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "worker" / "aggregation_worker"
CDK = ROOT / "cdk"

# What the worker function loads: the modules at the top, but for the command's entry, and these folders.
OF_THE_FUNCTION = [
    *sorted(path for path in WORKER.glob("*.py") if path.name != "__main__.py"),
    *sorted(path for folder in ("streams", "aggregations", "ledger") for path in (WORKER / folder).rglob("*.py")),
]
KEY_NAMES = {"AGGREGATE_KEY", "PAGE_KEY"}
KEYS = {getattr(receipts, name) for name in KEY_NAMES}


def imported(file: Path) -> set[str]:
    """All modules and names that a file imports, also those that it imports late or for the type checker only."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively, which this test does not follow"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def imports_of(files: list[Path], *packages: str) -> list[str]:
    """Which files import from one of some packages, and what."""
    return [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in sorted(imported(file))
        if f"{name}.".startswith(tuple(f"{package}." for package in packages))
    ]


def test_what_the_function_loads__imports_no_other_folder() -> None:
    others = ("deployment", "reconciliation", "operations", "local")
    assert {path.name for path in WORKER.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        *others,
        *("streams", "aggregations", "ledger"),
    }

    assert imports_of(OF_THE_FUNCTION, *(f"aggregation_worker.{folder}" for folder in others)) == []


# As worker/README.md has it: each imports only those before it, and the modules of errors.
FOLDERS = ("streams", "aggregations", "ledger", "deployment", "reconciliation", "local", "operations")


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder__imports_only_those_before_it(folder: str) -> None:
    files = sorted((WORKER / folder).rglob("*.py"))
    later = FOLDERS[FOLDERS.index(folder) + 1 :]
    if folder in ("streams", "aggregations", "ledger"):
        later += ("handler", "batch", "dead_letters", "settings", "telemetry")

    assert imports_of(files, *(f"aggregation_worker.{one}" for one in later)) == []


def test_worker__does_not_import_the_cdk() -> None:
    files = sorted(WORKER.rglob("*.py"))

    assert imports_of(files, "aggregation_worker_cdk", "aws_cdk", "constructs") == []


def test_every_error__is_a_worker_error() -> None:
    """Those with an underscore never leave their module; `AnswerLostError` plays somebody else's failure."""
    classes = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in (*WORKER.rglob("*.py"), *(CDK / "aggregation_worker_cdk").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    }
    known = {"WorkerError"}
    while more := {name for name, bases in classes.items() if bases & known} - known:
        known |= more

    assert sorted(name for name in classes.keys() - known if not name.startswith("_")) == ["AnswerLostError"]


def test_only_the_ledger__names_its_keys() -> None:
    files = [path for path in sorted(WORKER.rglob("*.py")) if WORKER / "ledger" not in path.parents]
    files += sorted(path for path in CDK.rglob("*.py") if "cdk.out" not in path.parts)

    assert [
        f"{path.relative_to(ROOT)}:{line}" for path in files for line in sorted(keys_in(ast.parse(path.read_text())))
    ] == []


def keys_in(tree: ast.AST) -> Iterator[int]:
    """The lines that name a key attribute: by its constant, or by its text as a key or value of a dictionary."""
    for node in ast.walk(tree):
        texts: list[ast.expr | None] = []
        if isinstance(node, ast.Name | ast.Attribute):
            if (node.id if isinstance(node, ast.Name) else node.attr) in KEY_NAMES:
                yield node.lineno
        elif isinstance(node, ast.Dict):
            texts = [*node.keys, *node.values]
        elif isinstance(node, ast.Subscript):
            texts = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            texts = [*node.args]
        yield from (text.lineno for text in texts if isinstance(text, ast.Constant) and text.value in KEYS)


@pytest.mark.parametrize(
    "code",
    [
        "item[PAGE_KEY]",
        "receipts.AGGREGATE_KEY",
        "item['page']",
        "item.get('aggregate')",
        "{'aggregate': {'S': name}}",
        "{'#page': 'page'}",
    ],
)
def test_naming_a_key__is_found_out(code: str) -> None:
    assert list(keys_in(ast.parse(code))) == [1]


@pytest.mark.parametrize("code", ["table.add_column('aggregate')", "page = pages['first']", "aggregate.name"])
def test_other_uses_of_the_words__are_not_found(code: str) -> None:
    assert list(keys_in(ast.parse(code))) == []

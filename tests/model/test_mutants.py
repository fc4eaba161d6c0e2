"""The mutation check in short: every mutant can still be made, and the model tests notice two of them.

All of them: `uv run python -m tests.model.mutants`.
"""

import shutil
from pathlib import Path

import pytest

from tests.model.mutants import MUTANTS, ROOT, Mutant, judge

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant__can_still_be_made(mutant: Mutant, tmp_path: Path) -> None:
    for replacement in mutant.replacements:
        copy = tmp_path / replacement.file
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / replacement.file, copy)

    for replacement in mutant.replacements:
        replacement.apply(tmp_path)
        compile((tmp_path / replacement.file).read_text(), replacement.file, "exec")


@pytest.mark.parametrize(
    "name", ["add without the condition on each receipt", "delete a dead letter before its replay"]
)
def test_mutant__is_noticed_by_the_model_tests(name: str) -> None:
    verdict = judge(BY_NAME[name])

    assert verdict.noticed_by is not None

"""Breaks the worker on purpose, one way at a time, and sees the model tests fail.

    uv run python -m tests.model.mutants

Each mutant is an exact replacement in a copy of the tree; a text that is no longer there is an error, so that no mutant
goes on living in a place that has moved. Exits with 1 if the model tests pass on any of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the model tests need, and no more.
COPIED = ("worker", "tests", "pyproject.toml")
MODEL_TESTS = (
    "tests/model/test_found_histories.py",
    "tests/model/test_every_interleaving.py",
    "tests/model/test_every_state.py",
    "tests/model/test_random_histories.py",
)
# A test that fails for one of these has noticed the mutant; anything else is a fault of the mutant itself.
NOTICED = ("BrokenPromiseError", "AssertionError")
WRITES, NEXT_WRITE, COMMIT, PAGES, RECEIPTS, CATALOGUE = (
    f"worker/aggregation_worker/ledger/{name}.py"
    for name in ("writes", "next_write", "commit", "pages", "receipts", "catalogue")
)
_TIMEOUT = 600  # seconds


class MutantError(Exception):
    """A mutant that cannot be made, or does not run: it proves nothing."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """In `file`, `old`, which must stand there exactly once, becomes `new`."""

    file: str
    old: str
    new: str

    def apply(self, tree: Path) -> None:
        """Changes the file.

        Raises:
            MutantError: the text is not there exactly once.
        """
        path = tree / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise MutantError(f"{self.file} holds {text.count(self.old)} times, not once:\n{self.old}")
        path.write_text(text.replace(self.old, self.new))


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way in which the worker could be wrong."""

    name: str
    replacements: tuple[Replacement, ...]


def _mutant(name: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, (Replacement(file, old, new),))


MUTANTS = (
    _mutant(
        "add without the condition on the watermark",
        WRITES,
        "        watermark = self.name(archived_attribute(name))\n"
        '        first = self.value({"S": min(position_in(posting.receipt) for posting in postings)})\n'
        '        self.conditions.append(f"attribute_exists({map_})")\n'
        '        self.conditions.append(f"(attribute_not_exists({watermark}) OR {watermark} < {first})")\n',
        '        self.conditions.append(f"attribute_exists({map_})")\n',
    ),
    _mutant(
        "add without the condition on each receipt",
        WRITES,
        '            self.conditions.append(f"attribute_not_exists({path})")\n',
        "",
    ),
    _mutant(
        "add without the condition that there is a map",
        WRITES,
        '        self.conditions.append(f"attribute_exists({map_})")\n        self.conditions',
        "        self.conditions",
    ),
    _mutant(
        "add without the condition that there is no map",
        WRITES,
        '            self.conditions.append(f"attribute_not_exists({map_})")\n            return\n',
        "            self.conditions.append(f\"attribute_not_exists({self.name('nothing')})\")\n            return\n",
    ),
    _mutant(
        "archive without the condition that there is no map",
        WRITES,
        '            update.conditions.append(f"attribute_not_exists({map_})")\n',
        "            update.conditions.append(f\"attribute_not_exists({update.name('nothing')})\")\n",
    ),
    _mutant(
        "archive without the condition on the map",
        WRITES,
        '            update.equals(map_, {"M": dict(self.seen.values)})\n',
        "",
    ),
    _mutant(
        "archive without the condition on the generation",
        WRITES,
        '            update.equals(generation, {"S": self.seen.generation})\n',
        '            update.conditions.append(f"attribute_exists({generation})")\n',
    ),
    _mutant(
        "archive without the condition on the watermark",
        WRITES,
        '            update.equals(watermark, {"S": self.seen.archived} if self.seen.archived else None)\n',
        "",
    ),
    _mutant(
        "write late on a page that begins after the position",
        NEXT_WRITE,
        "        if index == len(pages) or pages[index].after >= position:\n",
        "        if index == len(pages):\n",
    ),
    Mutant(
        "write late without the condition on the page's receipts",
        (
            Replacement(WRITES, ' AND #receipts = :receipts"', '"'),
            Replacement(WRITES, '{"#after": AFTER, "#receipts": PACKED}', '{"#after": AFTER}'),
            Replacement(WRITES, ', ":receipts": {"B": read.packed}}}', "}}"),
        ),
    ),
    Mutant(
        "write late without the condition on the page's beginning",
        (
            Replacement(WRITES, '"#after = :after AND ', '"'),
            Replacement(WRITES, '{"#after": AFTER, "#receipts": PACKED}', '{"#receipts": PACKED}'),
            Replacement(WRITES, '":after": {"S": read.after}, ', ""),
        ),
    ),
    _mutant(
        "write late without the condition on the generation",
        WRITES,
        '        update.equals(update.name(generation_attribute(name)), {"S": self.generation})\n',
        '        update.conditions.append(f"attribute_exists({update.name(generation_attribute(name))})")\n',
    ),
    _mutant(
        "move the watermark past what is archived",
        WRITES,
        '        update.set(watermark, {"S": self.pages[-1].key})\n',
        '        update.set(watermark, {"S": max([self.pages[-1].key, *map(position_in, self.rest)])})\n',
    ),
    _mutant(
        "keep the map when archiving",
        WRITES,
        '        update.set(map_, {"M": dict(self.rest)})\n',
        '        update.set(map_, {"M": {**(self.seen.values or {}), **self.rest}})\n',
    ),
    _mutant(
        "cut pages so that their spans overlap",
        PAGES,
        "        after = last\n    return pages\n",
        "    return pages\n",
    ),
    _mutant(
        "archive up to between receipts of one position",
        NEXT_WRITE,
        "    while at < len(names) and position_in(names[at]) == position_in(names[at - 1]):\n"
        "        at += 1  # receipts of one position stay together\n",
        "",
    ),
    _mutant(
        "cut a page between receipts of one position",
        PAGES,
        "        while 0 < end < len(names) and position_in(names[end]) == position_in(names[end - 1]):\n"
        "            end += 1\n",
        "",
    ),
    _mutant(
        "add once more what is on a page",
        NEXT_WRITE,
        "        if found is None:\n            by_page",
        "        if True:\n            by_page",
    ),
    _mutant(
        "count as done what has expired",
        COMMIT,
        "            outcome.refused.extend((posting, EXPIRED) for posting in step.unseen)\n",
        "            outcome.duplicates.extend(step.unseen)\n",
    ),
    _mutant(
        "take what is not visible yet for expired",
        COMMIT,
        "            if step.unseen and work.looks < _MOST_LOOKS:\n",
        "            if step.unseen and work.looks < 0:\n",
    ),
    _mutant(
        "write pages and row in two transactions",
        COMMIT,
        "        return self.client.transact_write_items(TransactItems=actions)\n",
        "        self.client.transact_write_items(TransactItems=actions[:-1])\n"
        "        return self.client.transact_write_items(TransactItems=actions[-1:])\n",
    ),
    _mutant(
        "add only the first contribution",
        WRITES,
        "        update.add_sums(self.postings)\n"
        '        return {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}\n'
        "\n"
        "\n"
        "@dataclass(frozen=True, slots=True)\n"
        "class Archive",
        "        update.add_sums(self.postings[:1])\n"
        '        return {"TableName": self.row.table, "Key": self.row.key(), **update.parts()}\n'
        "\n"
        "\n"
        "@dataclass(frozen=True, slots=True)\n"
        "class Archive",
    ),
    _mutant(
        "take a row that has changed for one that holds the receipts",
        COMMIT,
        "            work.item = failure.item or {}\n",
        "            outcome.duplicates.extend(then.postings)\n            work.settle(then.postings)\n",
    ),
    _mutant(
        "take a lost answer for a success",
        COMMIT,
        "        else:\n            work.pages.clear()\n            if failure.kind is Kind.THROTTLED",
        "        else:\n"
        "            if failure.kind is Kind.NO_ANSWER:\n"
        "                outcome.applied.extend(then.postings)\n"
        "                work.settle(then.postings)\n"
        "            work.pages.clear()\n"
        "            if failure.kind is Kind.THROTTLED",
    ),
    _mutant(
        "forget what is on its way when time is up",
        COMMIT,
        "        for work in (*ready, *paused, *(work for work, _ in in_flight.values())):\n",
        "        for work in (*ready, *paused):\n",
    ),
    _mutant(
        "name a receipt without the digest",
        RECEIPTS,
        '    return f"{position_of(record)}.{record.sequence_number}"\n',
        '    return f"{first_position(record.created_at)}.{record.sequence_number}"\n',
    ),
    _mutant(
        "use the new image alone on MODIFY",
        "worker/aggregation_worker/aggregations/contributions.py",
        "    old, _ = worth(aggregation, record.old_image)\n    new, problem",
        "    old: Worth = None\n    new, problem",
    ),
    _mutant(
        "begin a catalogue in the place of another",
        CATALOGUE,
        '"attribute_not_exists(#aggregations)"',
        '"attribute_not_exists(#aggregations) OR attribute_exists(#aggregations)"',
    ),
    _mutant(
        "overwrite a catalogue that has changed",
        CATALOGUE,
        '"#aggregations = :aggregations AND #reading = :reading"',
        '"#aggregations = :aggregations OR #reading = :reading"',
    ),
    _mutant(
        "start without the catalogue's consent",
        CATALOGUE,
        "        _catalogue(item).check(aggregations)\n",
        "",
    ),
    _mutant(
        "delete a dead letter before its replay",
        "worker/aggregation_worker/operations/replaying.py",
        "            self._send(send, event)\n",
        "            self._delete([job for job, _ in event[:1]])\n            self._send(send, event)\n",
    ),
    _mutant(
        "delete a dead letter whose record was not settled",
        "worker/aggregation_worker/operations/replaying.py",
        "            if outcome is RecordOutcome.RETRIED:\n",
        "            if False:\n",
    ),
    _mutant(
        "count as parked what the queue refused",
        "worker/aggregation_worker/dead_letters.py",
        '        return {int(entry["Id"]): f"the dead-letter queue refused it: {entry}" '
        'for entry in answer.get("Failed", [])}\n',
        "        return {}\n",
    ),
    _mutant(
        "count as parked what never reached the queue",
        "worker/aggregation_worker/dead_letters.py",
        '            return {index: f"the dead-letter queue could not be written: {error}" for index, _ in batch}\n',
        "            return {}\n",
    ),
    _mutant(
        "forget what was not settled in time",
        "worker/aggregation_worker/batch.py",
        "    for posting in commit.unsettled:\n        outcomes[posting.record] = RecordOutcome.RETRIED\n",
        "",
    ),
    _mutant(
        "take a record that stands in a batch twice for done",
        "worker/aggregation_worker/batch.py",
        "    _settle_repeated(repeated, commit)\n",
        "    commit.duplicates.extend(repeated)\n",
    ),
    _mutant(
        "leave a moved record in its old group",
        "worker/aggregation_worker/aggregations/contributions.py",
        "    changes = [] if old is None else _unless_zero(aggregation, old[0], tuple(map(EXACT.minus, old[1])))\n",
        "    changes = []\n",
    ),
    _mutant(
        "retract what Time to Live deletes",
        "worker/aggregation_worker/aggregations/contributions.py",
        "    keeps = policy is RemovePolicy.KEEP or "
        "(policy is RemovePolicy.RETRACT_UNLESS_EXPIRED and record.expired)\n",
        "    keeps = policy is RemovePolicy.KEEP\n",
    ),
    _mutant(
        "keep nothing of what is removed",
        "worker/aggregation_worker/ledger/receipts.py",
        "            found.append(Posting(index, record.created_at, aggregate, receipt, amounts, kept))\n",
        "            found.append(Posting(index, record.created_at, aggregate, receipt, amounts))\n",
    ),
    _mutant(
        "take back what is kept",
        "worker/aggregation_worker/aggregations/contributions.py",
        "    return [Contribution(aggregation, old[0], nothing, old[1])] if any(old[1]) else [], None\n",
        "    return _unless_zero(aggregation, old[0], tuple(map(EXACT.minus, old[1]))), None\n",
    ),
    _mutant(
        "refuse a record whole because of one image",
        "worker/aggregation_worker/aggregations/contributions.py",
        "        found += changes\n",
        "        found += [] if problem else changes\n",
    ),
    _mutant(
        "tell nobody of what cannot be used",
        "worker/aggregation_worker/batch.py",
        "        if unusable:\n            letters.unusable[index] = unusable\n",
        "",
    ),
    _mutant(
        "delete the notice of an item that is as it was",
        "worker/aggregation_worker/operations/replaying.py",
        '        is_over = letter.kind == "notification test" or state == NoticeState.OVER\n',
        '        is_over = letter.kind in ("notification test", "notice")\n',
    ),
    _mutant(
        "park nothing of what DynamoDB refuses",
        "worker/aggregation_worker/batch.py",
        "    for posting, reason in commit.refused:\n"
        '        letters.refuse(posting.record, f"{posting.aggregate.aggregation.name}: {reason}")\n',
        "",
    ),
    _mutant(
        "delete a dead letter although the worker failed",
        "worker/aggregation_worker/operations/replaying.py",
        "                failures += 1\n",
        "                return [RecordOutcome.DUPLICATE] * len(records)\n",
    ),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a mutant; `noticed_by` is the first test that failed, or `None`: it survived."""

    mutant: Mutant
    noticed_by: str | None
    seconds: float


def judge(mutant: Mutant) -> Verdict:
    """Applies a mutant to a copy of the tree and runs the model tests there.

    Raises:
        MutantError: it cannot be made, or the tests failed for another reason than a broken promise.
    """
    started = time.monotonic()
    with _copy_of_the_tree() as tree:
        for replacement in mutant.replacements:
            replacement.apply(tree)
        tests = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-p", "no:cacheprovider"),
                # Found is found: the smallest history is not looked for.
                *("-p", "no:randomly", "--hypothesis-profile=unshrunk", *MODEL_TESTS),
            ],
            cwd=tree,
            env={name: value for name, value in os.environ.items() if not name.startswith(("SEED", "PYTEST_"))}
            | {"PYTHONPATH": str(tree / "worker"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    seconds = time.monotonic() - started
    if tests.returncode == 0:
        return Verdict(mutant, None, seconds)
    if tests.returncode != 1 or not any(error in tests.stdout for error in NOTICED):
        raise MutantError(f"{mutant.name}: the model tests do not run:\n{tests.stdout[-4000:]}{tests.stderr[-2000:]}")
    failed = [line for line in tests.stdout.splitlines() if line.startswith("FAILED ")]
    return Verdict(mutant, failed[0].partition("::")[2].partition(" - ")[0] if failed else "?", seconds)


@contextmanager
def _copy_of_the_tree() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                # With bytecode, of which Python takes what belongs to the source; but not what is just being written.
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.pyc.*"))
            else:
                shutil.copy(ROOT / name, tree / name)
        yield tree


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: judges all mutants, or those whose names hold one of the given texts."""
    parser = argparse.ArgumentParser(prog="python -m tests.model.mutants", description="Do the model tests notice?")
    parser.add_argument("names", nargs="*", help="parts of names; without any, all mutants")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="mutants judged at once")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.names or any(part in m.name for part in options.names)]
    survivors = 0
    started = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as executor:
        for verdict in executor.map(judge, chosen):
            survivors += verdict.noticed_by is None
            fate = f"noticed by {verdict.noticed_by}" if verdict.noticed_by else "SURVIVED"
            print(f"{verdict.seconds:6.1f} s  {verdict.mutant.name}: {fate}", flush=True)
    print(f"{len(chosen)} mutants, {survivors} survived, in {time.monotonic() - started:.0f} s")
    return 1 if survivors or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every state that small histories of one row can come to: enumerated, not sampled.

Workers with overlapping batches read the row and write to it in any order, each request carried out at any later time.
It is the worker's real code (`Committer` decides, sends and learns) over DynamoDB in memory, but one request at a time
and without threads, so that a state can be written down and need not be looked at twice. The answer to each write can
be lost, and a page be invisible to a query that finds others; pages expire, the oldest first, and somebody deletes the
row. A worker that is killed is one that does nothing more, and one that was wrongly thought dead is another worker with
the same batch.

In every state the total is the sum of the receipts in the row and on the pages of its generation, expired ones among
them; no record has two; pages follow one another up to the watermark. What a worker takes for counted is counted, and
what it takes for expired has expired.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from botocore.exceptions import ReadTimeoutError

from aggregation_worker.ledger import commit
from aggregation_worker.ledger.commit import EXPIRED, Committer, Outcome
from aggregation_worker.ledger.pages import Page, page_of
from aggregation_worker.ledger.receipts import (
    AGGREGATE_KEY,
    LEDGER_KEYS,
    Aggregate,
    Posting,
    Row,
    partition_of,
    position_in,
    row_receipts,
)
from aggregation_worker.ledger.writes import Look, Write
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import LEDGER, ImmediateExecutor
from tests.model.hostile_world import promise
from tests.model.in_memory_dynamodb import InMemoryDynamoDB, Item

# Records are letters; p and q share the position of c. A capital is the same record's posting to the second
# aggregation, which shares the row.
POSITIONS = {letter: f"{number:08x}000000" for letter, number in zip("abcdepq", (1, 2, 3, 4, 5, 3, 3), strict=True)}
AGGREGATIONS = definitions(aggregation_text(), aggregation_text('count = "n"', name="orders", sum=None)).aggregations
ROW = Row(AGGREGATIONS[0].table, AGGREGATIONS[0].keys, ("item123", "2024-07-15"))
AGGREGATES = tuple(Aggregate(aggregation, ROW) for aggregation in AGGREGATIONS)
POSTINGS = {
    letter: Posting(0, 0, AGGREGATES[letter.isupper()], f"{position}.{letter}", (Decimal(1),))
    for lower, position in POSITIONS.items()
    for letter in (lower, lower.upper())
}
RECEIPT_BYTES = 20
# 1970: nobody asks for the time.
NOW = 0.0


@dataclass(frozen=True, slots=True)
class History:
    """A small history.

    Attributes:
        batches: one for each worker.
        room: how many receipts the row holds.
        page: how many a page holds.
        expiry: pages expire.
        deletion: somebody deletes the row, once.
        at_least: states that there must be, so that nothing hides that it has become trivial.
        only_long: it takes so long that it is left out by default.
    """

    batches: tuple[str, ...]
    room: int
    at_least: int
    page: int = 1
    expiry: bool = False
    deletion: bool = False
    only_long: bool = False

    def __str__(self) -> str:
        what = [f"{', '.join(self.batches)}; {self.room} in the row, {self.page} on a page"]
        return "; ".join(what + ["pages expire"] * self.expiry + ["row deleted once"] * self.deletion)


class Found(NamedTuple):
    """A page as it is stored."""

    partition: str
    key: str
    after: str
    packed: bytes

    @property
    def receipts(self) -> list[str]:
        """The names of its receipts."""
        return sorted(Page(self.key, self.after, self.packed).receipts())


class Stored(NamedTuple):
    """What is stored: the row as JSON (empty: none), pages, those that have expired, and what went with the row."""

    row: str = ""
    pages: frozenset[Found] = frozenset()
    expired: frozenset[Found] = frozenset()
    lost: frozenset[str] = frozenset()
    deleted: bool = False


class Worker(NamedTuple):
    """What one worker knows: what it has left, the row as it last saw it (`None`: not yet read), pages it has read.

    `made` tells the generations apart that it has thought of.
    """

    number: int
    left: str
    row: str | None = None
    pages: tuple[tuple[int, tuple[Page, ...]], ...] = ()
    made: int = 0


class Client(InMemoryDynamoDB):
    """The tables of one row.

    Attributes:
        loses_answers: every write is carried out, or refused, and nobody hears of it.
        hidden: the key of a page that no query sees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.create(ROW.table, *((key.name, key.type.value) for key in ROW.keys))
        self.create(LEDGER, *((name, kind.value) for name, kind in LEDGER_KEYS))
        self.loses_answers = False
        self.hidden = ""

    def load(self, stored: Stored) -> None:
        """Puts into the tables what is stored."""
        row: Item = json.loads(stored.row or "{}")
        self.tables[ROW.table].items = {ROW.group: row} if row else {}
        self.tables[LEDGER].items = {
            (found.partition, found.key): Page(found.key, found.after, found.packed).item(found.partition, 0)
            for found in stored.pages
        }

    def stored(self, before: Stored) -> Stored:
        """What is in the tables now."""
        row = self.tables[ROW.table].items.get(ROW.group)
        pages = {(item[AGGREGATE_KEY]["S"], page_of(item)) for item in self.tables[LEDGER].items.values()}
        return before._replace(
            row="" if row is None else json.dumps(row, sort_keys=True),
            pages=frozenset(Found(partition, page.key, page.after, page.packed) for partition, page in pages),
        )

    def update_item(self, **request: Any) -> dict[str, Any]:
        """A write of the row alone."""
        return self._answer(super().update_item, request)

    def transact_write_items(self, **request: Any) -> dict[str, Any]:
        """A write of the row and pages."""
        return self._answer(super().transact_write_items, request)

    def query(self, **request: Any) -> dict[str, Any]:
        """Pages, but for the hidden one."""
        stored = self.tables[LEDGER].items
        self.tables[LEDGER].items = {key: item for key, item in stored.items() if key[1] != self.hidden}
        try:
            return super().query(**request)
        finally:
            self.tables[LEDGER].items = stored

    def _answer(self, write: Any, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = write(**request)
        finally:
            if self.loses_answers:
                raise ReadTimeoutError(endpoint_url="")
        return answer


class Explorer:
    """Finds every state of a history; what follows from what is remembered, since most states share it."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._client = Client()
        self._steps: dict[tuple[Stored, Worker], list[tuple[Stored, Worker]]] = {}
        self._checked: set[Stored] = set()
        self.writes: Counter[str] = Counter()

    def states(self) -> int:
        """Goes through all states; tells how many there are."""
        start = (Stored(), *(Worker(number, batch) for number, batch in enumerate(self._history.batches)))
        seen: set[tuple[Any, ...]] = {start}
        waiting: deque[tuple[Any, ...]] = deque(seen)
        while waiting:
            stored, *workers = waiting.popleft()
            following: list[tuple[Any, ...]] = [(after, *workers) for after in self._done_by_others(stored)]
            for index, worker in enumerate(workers):
                if worker.left:
                    if (stored, worker) not in self._steps:
                        self._steps[stored, worker] = [*self._steps_of(stored, worker)]
                    for after, changed in self._steps[stored, worker]:
                        following.append((after, *workers[:index], changed, *workers[index + 1 :]))
            for state in following:
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
        return len(seen)

    def _done_by_others(self, stored: Stored) -> Iterator[Stored]:
        if self._history.deletion and stored.row and not stored.deleted:
            receipts = [receipt for names in _receipts(stored).values() for receipt in names]
            yield Stored("", stored.pages, stored.expired, frozenset(receipts), deleted=True)
        if self._history.expiry:
            for partition in {found.partition for found in stored.pages}:
                oldest = min((one for one in stored.pages if one.partition == partition), key=lambda one: one.key)
                yield stored._replace(pages=stored.pages - {oldest}, expired=stored.expired | {oldest})

    def _steps_of(self, stored: Stored, worker: Worker) -> Iterator[tuple[Stored, Worker]]:
        """What can come of the worker's next request."""
        if worker.row is None:
            yield stored, worker._replace(row=stored.row)
            return
        then, after, changed = self._step(stored, worker)
        yield after, changed
        if isinstance(then, Look):
            for page in dict(changed.pages)[AGGREGATES.index(then.aggregate)]:
                yield self._step(stored, worker, hidden=page.key)[1:]
            yield self._after_long_looking(stored, changed)
        elif after != stored:  # what did not go in, and is not heard of, is as if it had never been sent
            yield self._step(stored, worker, loses_answer=True)[1:]

    def _step(
        self, stored: Stored, worker: Worker, *, loses_answer: bool = False, hidden: str = ""
    ) -> tuple[Write | Look | None, Stored, Worker]:
        """One request, with what its answer teaches."""
        self._client.load(stored)
        self._client.loses_answers, self._client.hidden = loses_answer, hidden
        committer, work, outcome, made = self._at_work(worker)
        then = committer._next(work, outcome)
        if then is not None:
            future = committer.executor.submit(committer._send, then)
            committer._learn(work, then, future, outcome)
        after = self._client.stored(stored)
        self.writes.update(kind.__name__ for kind in outcome.writes)
        promise(not outcome.refused and len(work.groups) <= 1, f"refused: {then}")  # what is refused is taken apart
        promise(not outcome.differing, f"they differ: {outcome.differing}")
        self._check(after)
        self._check_settled(after, outcome)
        return then, after, _known(worker.number, work, made)

    def _after_long_looking(self, stored: Stored, worker: Worker) -> tuple[Stored, Worker]:
        """A worker that has found all pages there are, often enough: what is on none of them it takes for expired."""
        committer, work, outcome, made = self._at_work(worker)
        work.looks = commit._MOST_LOOKS
        committer._next(work, outcome)
        self._check_settled(stored, outcome)
        for posting, reason in outcome.refused:
            position = position_in(posting.receipt)
            has_expired = any(found.after < position <= found.key for found in stored.expired)
            promise(has_expired and reason == EXPIRED, f"{posting.receipt} has not expired: {reason}")
        return stored, _known(worker.number, work, made)

    def _at_work(self, worker: Worker) -> tuple[Committer, commit._Work, Outcome, list[str]]:
        made = [""] * worker.made

        def new_generation() -> str:
            made.append("")
            return f"{worker.number}-{len(made)}"

        committer = Committer(
            self._client,  # type: ignore[arg-type]  # a stand-in
            *(LEDGER, 0, ImmediateExecutor()),
            clock=lambda: NOW,
            now=lambda: NOW,
            jitter=lambda: 0.0,
            new_generation=new_generation,
        )
        group = [POSTINGS[letter] for letter in worker.left]
        pages: dict[Aggregate, Sequence[Page]] = {AGGREGATES[number]: found for number, found in worker.pages}
        return committer, commit._Work(ROW, deque([group]), json.loads(worker.row or "{}"), pages), Outcome(), made

    # --- What must be so ------------------------------------------------------------------------------------------

    def _check(self, stored: Stored) -> None:
        """Totals, receipts and spans."""
        if stored in self._checked:
            return
        self._checked.add(stored)
        item = json.loads(stored.row or "{}")
        for aggregate, receipts in _receipts(stored).items():
            aggregation = aggregate.aggregation
            promise(len(receipts) == len(set(receipts)), f"twice: {receipts}")
            total = item.get(aggregation.measures[0].name, {"N": "0"})["N"]
            promise(total == str(len(receipts)), f"total {total}, receipts {receipts}")
            seen = row_receipts(item, aggregation.name)
            promise(all(position_in(one) > seen.archived for one in seen.values or {}), f"not archived: {seen}")
            after = ""
            for found in sorted(_of_generation(stored, aggregate), key=lambda found: found.key):
                promise(after == found.after < found.key, f"{found} does not follow {after}")
                after = found.key
                positions = [position_in(receipt) for receipt in found.receipts]
                promise(all(found.after < one <= found.key for one in positions), f"wrong receipts on {found}")
                small = len(positions) <= self._history.page or positions[0] == positions[-1]
                promise(small, f"too many receipts on {found}")
            promise(after == seen.archived, f"pages up to {after}, watermark {seen.archived}")

    def _check_settled(self, stored: Stored, outcome: Outcome) -> None:
        """What is reported as counted is; or it went with the row."""
        counted = _receipts(stored)
        for posting in (*outcome.applied, *outcome.duplicates):
            known = posting.receipt in counted[posting.aggregate] or posting.receipt in stored.lost
            promise(known, f"{posting.receipt} is not counted")


def _known(number: int, work: commit._Work, made: Sequence[str]) -> Worker:
    left = sorted(posting.receipt[-1] for group in work.groups for posting in group)
    if not left:
        return Worker(number, "")
    pages = tuple(sorted((AGGREGATES.index(aggregate), tuple(found)) for aggregate, found in work.pages.items()))
    return Worker(number, "".join(left), json.dumps(work.item, sort_keys=True) if work.item else "", pages, len(made))


def _of_generation(stored: Stored, aggregate: Aggregate) -> list[Found]:
    """The pages of the row as it is, expired ones among them."""
    seen = row_receipts(json.loads(stored.row or "{}"), aggregate.aggregation.name)
    partition = partition_of(aggregate.aggregation.name, ROW.group, seen.generation)
    return [found for found in stored.pages | stored.expired if found.partition == partition]


def _receipts(stored: Stored) -> dict[Aggregate, list[str]]:
    """The names of all receipts of the row as it is."""
    receipts = {}
    for aggregate in AGGREGATES:
        seen = row_receipts(json.loads(stored.row or "{}"), aggregate.aggregation.name)
        on_pages = [receipt for found in _of_generation(stored, aggregate) for receipt in found.receipts]
        receipts[aggregate] = [*(seen.values or {}), *on_pages]
    return receipts


HISTORIES = (
    History(("a", "ab"), room=1, deletion=True, at_least=1_000),
    History(("ab", "bc"), room=1, at_least=700),
    History(("ab", "bc"), room=1, expiry=True, at_least=3_000),
    History(("ab", "bc"), room=1, deletion=True, at_least=5_700),
    History(("ab", "bc"), room=2, page=2, expiry=True, at_least=200),
    History(("ab", "bc"), room=3, deletion=True, at_least=620),
    History(("ad", "bd", "ab"), room=1, at_least=80_000),
    History(("ad", "bd", "ab"), room=2, page=2, expiry=True, at_least=7_600),
    History(("ad", "bd", "ab"), room=3, page=2, deletion=True, at_least=31_000),
    History(("abd", "ade"), room=1, at_least=2_500),
    History(("abd", "ade"), room=1, expiry=True, at_least=29_000),
    History(("abd", "ade"), room=1, deletion=True, at_least=19_000),
    History(("abd", "ade"), room=3, page=2, deletion=True, at_least=1_800),
    History(("a", "ab", "c"), room=1, at_least=13_000),
    History(("a", "ab", "c"), room=2, expiry=True, at_least=9_800),
    History(("c", "ab", "d"), room=2, at_least=8_700),
    History(("de", "a", "b"), room=1, at_least=28_000),
    History(("de", "a", "b"), room=1, page=4, at_least=11_000),
    History(("abcd", "ace"), room=2, page=2, expiry=True, at_least=5_900),
    # Two aggregations in the row.
    History(("aA", "abB"), room=1, at_least=1_100),
    History(("aAb", "aB"), room=2, expiry=True, at_least=1_800),
    History(("aAb", "aB"), room=2, deletion=True, at_least=3_800),
    History(("aC", "cA"), room=1, at_least=910),
    # Records of one position.
    History(("cp", "q", "d"), room=1, at_least=9_200),
    History(("cp", "apq"), room=2, at_least=430),
    History(("apc", "bq"), room=1, expiry=True, at_least=18_000),
    History(("cp", "bq"), room=1, deletion=True, at_least=2_600),
    # Up to half a minute each.
    History(("ab", "bc"), room=1, expiry=True, deletion=True, at_least=40_000, only_long=True),
    History(("abd", "ade"), room=2, expiry=True, deletion=True, at_least=80_000, only_long=True),
    History(("a", "ab", "c"), room=3, page=2, deletion=True, at_least=45_000, only_long=True),
    History(("a", "ab", "c"), room=1, expiry=True, at_least=77_000, only_long=True),
    History(("de", "ab", "bc"), room=2, at_least=44_000, only_long=True),
    History(("de", "a", "b"), room=1, deletion=True, at_least=650_000, only_long=True),
    History(("aC", "cA"), room=1, expiry=True, deletion=True, at_least=320_000, only_long=True),
)


@pytest.mark.parametrize(
    "history",
    [pytest.param(one, id=str(one), marks=[pytest.mark.only_long] * one.only_long) for one in HISTORIES],
)
def test_every_state__is_exact(history: History, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()

    with (
        patch("aggregation_worker.ledger.next_write.ROW_STEP", 1),
        patch("aggregation_worker.ledger.next_write.LEAST_ROOM", history.room * RECEIPT_BYTES),
        patch("aggregation_worker.ledger.pages.MAX_PAGE_RECEIPTS", history.page),
    ):
        explorer = Explorer(history)
        states = explorer.states()

    with capsys.disabled():
        took = f"{time.process_time() - started:.1f} s, {len(explorer._steps)} steps"
        print(f"\n{history}: {states} states in {took}; {dict(explorer.writes)}", end=" ")
    assert states >= history.at_least

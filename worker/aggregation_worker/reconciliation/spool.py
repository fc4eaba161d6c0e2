"""The spool: all that a snapshot has read so far, on disk, so that memory stays bounded and a killed run can go on.

One sqlite3 file (standard library). Items are only ever appended; the sums over them are made at the end, by sorting on
disk. What is written in one transaction belongs together: a page's contributions and the position after it, a round of
the stream's records. Knows nothing of AWS.

A spool belongs to the thread that opened it: one consumer writes and reads it, so nothing here is locked.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Self

from aggregation_worker.aggregations.contributions import Group
from aggregation_worker.aggregations.numbers import Amounts, sum_of
from aggregation_worker.ledger.pages import Receipts
from aggregation_worker.ledger.receipts import net
from aggregation_worker.reconciliation.portions import portions
from aggregation_worker.reconciliation.spool_file import SpoolError, open_file, spool_error

ItemRow = tuple[bytes, int, str | None, str | None]
"""What an item contributes: the digest of its key, the aggregation's number, group and amounts as texts.

Group and amounts are `None` where the aggregation cannot use the item.
"""

_ROWS_AT_ONCE = 1_000
_FORMAT = "3"

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS position (segment INTEGER PRIMARY KEY, position TEXT NOT NULL, items INTEGER NOT NULL);
-- What each item that was read contributes; grp is NULL where the aggregation cannot use the item.
CREATE TABLE IF NOT EXISTS item (digest BLOB NOT NULL, aggregation INTEGER NOT NULL, grp TEXT, amounts TEXT);
-- Keys that have later records: what was read of them in the table does not count ...
CREATE TABLE IF NOT EXISTS seen (digest BLOB NOT NULL, cut INTEGER NOT NULL, PRIMARY KEY (digest, cut)) WITHOUT ROWID;
-- ... but what they were at the cut, and what records add that follow the cut but are not counted.
CREATE TABLE IF NOT EXISTS at_cut (aggregation INTEGER NOT NULL, grp TEXT, amounts TEXT);
CREATE TABLE IF NOT EXISTS later (
    aggregation INTEGER NOT NULL, grp TEXT NOT NULL, receipt TEXT NOT NULL, amounts TEXT NOT NULL, kept TEXT NOT NULL,
    PRIMARY KEY (aggregation, grp, receipt)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS baseline (
    aggregation INTEGER NOT NULL, grp TEXT NOT NULL, amounts TEXT NOT NULL, PRIMARY KEY (aggregation, grp)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (
    aggregation INTEGER NOT NULL, grp TEXT NOT NULL, amounts TEXT NOT NULL, PRIMARY KEY (aggregation, grp)
) WITHOUT ROWID;
"""

_ROWS_AT_CUT = """
SELECT aggregation, grp, amounts FROM (
    SELECT aggregation, grp, amounts FROM item
    WHERE NOT EXISTS (SELECT 1 FROM seen WHERE seen.digest = item.digest AND seen.cut = cut_of(item.aggregation))
    UNION ALL SELECT aggregation, grp, amounts FROM at_cut
) ORDER BY aggregation, grp
"""


class SpoolMismatchError(SpoolError):
    """The spool holds another run: another table, stream, cut or definition."""


@dataclass(frozen=True, slots=True)
class LaterReceipt:
    """What one later record contributes to one aggregate, and keeps of it, and the name of its receipt."""

    group: Group
    receipt: str
    amounts: Amounts
    kept: Amounts = ()


@dataclass(frozen=True, slots=True)
class Comparison:
    """One aggregate: what is expected of it (baseline and all later records read so far), and what stands in its row.

    `total` is `None` where no row was stored; `touched` says whether later records contribute to it.
    """

    group: Group
    expected: Amounts
    total: Amounts | None
    touched: bool


def group_text(group: Group) -> str:
    """A group as the spool names it, and by which it sorts."""
    return json.dumps(group, ensure_ascii=False, separators=(",", ":"))


def read_group(text: str) -> Group:
    """The inverse of `group_text`."""
    return tuple(json.loads(text))


def amounts_text(amounts: Amounts) -> str:
    """Amounts as the spool keeps them."""
    return " ".join(map(str, amounts))


def read_amounts(text: str) -> Amounts:
    """The inverse of `amounts_text`."""
    return tuple(map(Decimal, text.split()))


class Spool:
    """What a run has read so far, by the names of its aggregations, as given to `begin`.

    To be used in a `with` block, which turns whatever sqlite3 raises inside into a `SpoolError`.

    Args:
        path: the file, which outlives the process; `None` for a temporary one, in sqlite3's folder for these
            (`SQLITE_TMPDIR`), that goes with it.

    Raises:
        SpoolError: the file cannot be opened, or is not a spool.
        SpoolInUseError: another process has it open.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}
        self._cuts: tuple[int, ...] = ()
        self._db = open_file(path, _TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close()
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.ProgrammingError):  # a mistake made here
            raise spool_error(self._path, error) from error

    def close(self) -> None:
        """Closes the file, which stays (unless it is a temporary one)."""
        self._db.close()

    def begin(self, run: Mapping[str, str], cuts: Mapping[str, int]) -> None:
        """Says what run this is: a new spool keeps it, that of another run is refused.

        Args:
            run: whatever decides what the spool's content means: table, stream, cut, definitions.
            cuts: for each aggregation, by its name, which cut is its own; aggregations can share one. The items' rows
                have the aggregations' numbers in this order.

        Raises:
            SpoolMismatchError: the spool is another run's; the message says what differs.
        """
        self._numbers = {name: number for number, name in enumerate(cuts)}
        self._cuts = tuple(cuts.values())
        self._db.create_function("cut_of", 1, lambda aggregation: self._cuts[aggregation], deterministic=True)
        wanted = {"format": _FORMAT, **run}
        kept: dict[str, str] = json.loads(self.note("run") or "null") or wanted
        differing = sorted(name for name in wanted.keys() | kept.keys() if wanted.get(name) != kept.get(name))
        if differing:
            differences = "; ".join(f"{name} was {kept.get(name)}, is {wanted.get(name)}" for name in differing)
            raise SpoolMismatchError(f"{self._path} is the spool of another run ({differences}): name another file")
        self.set_note("run", json.dumps(wanted))

    @property
    def is_complete(self) -> bool:
        """Whether the snapshot was taken: then the baselines stand and nothing more is read of the items."""
        return self.note("complete") is not None

    def note(self, name: str) -> str | None:
        """What was noted under a name."""
        found = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def set_note(self, name: str, value: str) -> None:
        """Notes something, at once."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written inside is written as a whole or not at all."""
        try:
            self._db.execute("BEGIN")
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # sqlite3 itself has rolled back some
                self._db.execute("ROLLBACK")
            raise

    # Items.

    def positions(self) -> dict[int, Any]:
        """How far each segment has been read."""
        return {
            segment: json.loads(position)
            for segment, position in self._db.execute("SELECT segment, position FROM position")
        }

    def items_read(self) -> int:
        """How many items have been read."""
        return int(self._db.execute("SELECT COALESCE(SUM(items), 0) FROM position").fetchone()[0])

    def add_items(self, segment: int, position: Any, items: int, rows: Iterable[ItemRow]) -> None:
        """Adds what a page of `items` items contributes, and the position after it."""
        with self.together():
            self._db.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", rows)
            self._db.execute(
                "INSERT INTO position VALUES (?, ?, ?) ON CONFLICT (segment) "
                "DO UPDATE SET position = excluded.position, items = items + excluded.items",
                (segment, json.dumps(position), items),
            )

    # The stream.

    def forget_stream(self) -> None:
        """Forgets what was read of the stream, because it is read from the cut again; items stay."""
        with self.together():
            for table in ("seen", "at_cut", "later"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - a name from the line above

    def see(self, digest: bytes, cut: int) -> bool:
        """Notes that a key has a later record; says whether it is the first."""
        return self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (digest, cut)).rowcount == 1

    def has_seen(self, digest: bytes, cut: int) -> bool:
        """Whether a key has a later record."""
        found = self._db.execute("SELECT 1 FROM seen WHERE digest = ? AND cut = ?", (digest, cut)).fetchone()
        return found is not None

    def add_at_cut(self, aggregation: str, group: Group | None, amounts: Amounts | None) -> None:
        """Adds to the baseline what an item was at the cut; `None` if the aggregation cannot use it."""
        self._db.execute(
            "INSERT INTO at_cut VALUES (?, ?, ?)",
            (
                self._numbers[aggregation],
                None if group is None else group_text(group),
                None if amounts is None else amounts_text(amounts),
            ),
        )

    def add_later(self, aggregation: str, receipt: LaterReceipt) -> None:
        """Adds what a later record contributes; a receipt that is known is not added again."""
        self._db.execute(
            "INSERT OR IGNORE INTO later VALUES (?, ?, ?, ?, ?)",
            (
                self._numbers[aggregation],
                group_text(receipt.group),
                receipt.receipt,
                amounts_text(receipt.amounts),
                amounts_text(receipt.kept),
            ),
        )

    # What comes of it.

    def complete(self, between: Callable[[], object]) -> None:
        """Makes the baselines: what every item was at the cut, summed by aggregate. Zeros are left out.

        Sorted on disk, so memory does not grow with items or aggregates. `between` is called now and then, and may add
        later records' receipts.
        """
        unusable: dict[int, int] = {}
        self._db.execute("DELETE FROM baseline")
        for portion in portions(self._sums_at_cut(unusable), _ROWS_AT_ONCE):
            with self.together():
                self._db.executemany("INSERT INTO baseline VALUES (?, ?, ?)", portion)
            between()
        with self.together():
            for number, count in unusable.items():
                self.set_note(f"unusable {number}", str(count))
            self.set_note("complete", "")
        with self.together():
            # Their work is done, and they are the largest part of the file.
            for table in ("item", "seen", "at_cut"):
                self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - a name from the line above

    def _sums_at_cut(self, unusable: dict[int, int]) -> Iterator[tuple[int, str, str]]:
        rows = self._db.execute(_ROWS_AT_CUT)
        for (number, group), contributions in groupby(rows, itemgetter(0, 1)):
            if group is None:
                unusable[number] = sum(1 for _ in contributions)
                continue
            total = _sum(read_amounts(text) for _, _, text in contributions)
            if any(total):
                yield number, group, amounts_text(total)

    def unusable(self, aggregation: str) -> int:
        """How many items, as they were at the cut, an aggregation cannot use."""
        return int(self.note(f"unusable {self._numbers[aggregation]}") or 0)

    def baseline(self, aggregation: str, group: Group) -> Amounts | None:
        """What one aggregate's items were worth at the cut; `None` if that is zero."""
        found = self._db.execute(
            "SELECT amounts FROM baseline WHERE aggregation = ? AND grp = ?",
            (self._numbers[aggregation], group_text(group)),
        ).fetchone()
        return None if found is None else read_amounts(found[0])

    def baselines(self, aggregation: str) -> Iterator[tuple[Group, Amounts]]:
        """All baselines of an aggregation that are not zero, in the spool's order."""
        for text, amounts in self._in_order("baseline", aggregation):
            yield read_group(text), read_amounts(amounts)

    def number_of_baselines(self, aggregation: str) -> int:
        """How many aggregates have a baseline that is not zero."""
        query = "SELECT COUNT(*) FROM baseline WHERE aggregation = ?"
        return int(self._db.execute(query, (self._numbers[aggregation],)).fetchone()[0])

    def later(self, aggregation: str, group: Group) -> Receipts:
        """The receipts of later records of one aggregate, as they are to be."""
        found = self._db.execute(
            "SELECT receipt, amounts, kept FROM later WHERE aggregation = ? AND grp = ?",
            (self._numbers[aggregation], group_text(group)),
        )
        return {receipt: (read_amounts(amounts), read_amounts(kept)) for receipt, amounts, kept in found.fetchall()}

    def later_receipts(self, aggregation: str) -> Iterator[LaterReceipt]:
        """All receipts of later records, aggregate by aggregate."""
        for text, receipt, amounts, kept in self._later_rows(aggregation):
            yield LaterReceipt(read_group(text), receipt, read_amounts(amounts), read_amounts(kept))

    def store_totals(self, aggregation: str, rows: Iterable[tuple[Group, Amounts]]) -> None:
        """Keeps totals as they stand in a target table, in place of those kept before, for `compare`.

        In portions, so that the spool can be written to while `rows` are read.
        """
        number = self._numbers[aggregation]
        self._db.execute("DELETE FROM total WHERE aggregation = ?", (number,))
        for portion in portions(rows, _ROWS_AT_ONCE):
            with self.together():
                self._db.executemany(
                    "INSERT INTO total VALUES (?, ?, ?)",
                    ((number, group_text(group), amounts_text(amounts)) for group, amounts in portion),
                )

    def compare(self, aggregation: str) -> Iterator[Comparison]:
        """Every aggregate that has a baseline, a later record or a total, in the spool's order.

        Expected is the total once every later record read so far is applied, so a difference may be in flight.
        """
        baselines = ((text, 0, read_amounts(amounts)) for text, amounts in self._in_order("baseline", aggregation))
        later = (
            (text, 1, _sum(net(read_amounts(amounts), read_amounts(kept)) for _, _, amounts, kept in rows))
            for text, rows in groupby(self._later_rows(aggregation), itemgetter(0))
        )
        totals = ((text, 2, read_amounts(amounts)) for text, amounts in self._in_order("total", aggregation))
        for text, parts in groupby(merge(baselines, later, totals, key=itemgetter(0, 1)), itemgetter(0)):
            found = {kind: amounts for _, kind, amounts in parts}
            total = found.pop(2, None)
            expected = _sum(found.values()) if found else tuple(Decimal(0) for _ in total or ())
            yield Comparison(read_group(text), expected, total, 1 in found)

    def _later_rows(self, aggregation: str) -> Iterator[tuple[str, str, str, str]]:
        """In portions, so that the spool can be written to meanwhile."""
        last = ("", "")
        while True:
            rows = self._db.execute(
                "SELECT grp, receipt, amounts, kept FROM later "
                "WHERE aggregation = ? AND (grp, receipt) > (?, ?) ORDER BY grp, receipt LIMIT ?",
                (self._numbers[aggregation], *last, _ROWS_AT_ONCE),
            ).fetchall()
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            last = rows[-1][:2]

    def _in_order(self, table: str, aggregation: str) -> Iterator[tuple[str, str]]:
        """In portions, so that the spool can be written to meanwhile."""
        last = ""
        while True:
            rows = self._db.execute(
                f"SELECT grp, amounts FROM {table} WHERE aggregation = ? AND grp > ? ORDER BY grp LIMIT ?",  # noqa: S608 - a table of this module
                (self._numbers[aggregation], last, _ROWS_AT_ONCE),
            ).fetchall()
            yield from rows
            if len(rows) < _ROWS_AT_ONCE:
                return
            last = rows[-1][0]


def _sum(amounts: Iterable[Amounts]) -> Amounts:
    """The sum of at least one."""
    left = iter(amounts)
    return sum_of(left, next(left))

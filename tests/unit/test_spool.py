"""What a spool keeps, sums up and refuses."""

import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from aggregation_worker.aggregations.numbers import Amounts
from aggregation_worker.reconciliation import spool as spool_module
from aggregation_worker.reconciliation.spool import (
    Comparison,
    LaterReceipt,
    Spool,
    SpoolMismatchError,
    read_amounts,
    read_group,
)
from aggregation_worker.reconciliation.spool_file import SpoolError, SpoolInUseError

RUN = {"table": "orders", "stream": "one"}


@pytest.fixture
def spool() -> Iterator[Spool]:
    with Spool(None) as temporary:
        temporary.begin(RUN, {"one": 0, "two": 1})
        yield temporary


def key(number: int) -> bytes:
    return number.to_bytes(16)


def nothing() -> None:
    """Between the portions."""


def amounts(*numbers: int | str) -> Amounts:
    return tuple(map(Decimal, numbers))


def later(number: int, group: str = "a", amount: int = 1) -> LaterReceipt:
    return LaterReceipt((group,), f"receipt-{number}", amounts(amount))


@pytest.mark.parametrize(
    "values",
    [amounts("0"), amounts("-1.50", "1E+30"), amounts("12345678901234567890123456789012345678"), amounts("1E-130")],
)
def test_amounts__are_read_as_they_were_written(values: Amounts) -> None:
    assert [str(one) for one in read_amounts(spool_module.amounts_text(values))] == [str(one) for one in values]


@pytest.mark.parametrize("group", [("a",), ("a b", '"[,]'), ("ä\0", "")])
def test_group__is_read_as_it_was_written(group: tuple[str, ...]) -> None:
    assert read_group(spool_module.group_text(group)) == group


def test_items__summed_by_aggregation_and_group(spool: Spool) -> None:
    spool.add_items(
        0,
        {},
        3,
        [(key(1), 0, '["a"]', "1.5"), (key(1), 1, '["a"]', "7"), (key(2), 0, '["b"]', "2"), (key(3), 0, '["a"]', "3")],
    )

    spool.complete(nothing)

    assert list(spool.baselines("one")) == [(("a",), amounts("4.5")), (("b",), amounts(2))]
    assert list(spool.baselines("two")) == [(("a",), amounts(7))]
    assert (spool.number_of_baselines("one"), spool.number_of_baselines("two")) == (2, 1)
    assert (spool.baseline("one", ("b",)), spool.baseline("two", ("b",))) == (amounts(2), None)


def test_sum_of_more_digits_than_pythons_default__is_exact(spool: Spool) -> None:
    large = "12345678901234567890123456789012345678"
    spool.add_items(0, {}, 2, [(key(1), 0, '["a"]', large), (key(2), 0, '["a"]', "0.5")])

    spool.complete(nothing)

    assert spool.baseline("one", ("a",)) == amounts(large + ".5")


def test_sum_of_zero__is_left_out(spool: Spool) -> None:
    spool.add_items(0, {}, 2, [(key(1), 0, '["a"]', "1 0"), (key(2), 0, '["a"]', "-1 0")])

    spool.complete(nothing)

    assert (list(spool.baselines("one")), spool.number_of_baselines("one")) == ([], 0)


def test_key_with_later_records__counts_as_it_was_at_the_cut(spool: Spool) -> None:
    assert spool.see(key(1), 1)
    spool.add_at_cut("two", ("b",), amounts(5))
    spool.add_items(0, {}, 1, [(key(1), 0, '["a"]', "1"), (key(1), 1, '["a"]', "1")])

    spool.complete(nothing)

    assert list(spool.baselines("one")) == [(("a",), amounts(1))]
    assert list(spool.baselines("two")) == [(("b",), amounts(5))]


def test_see__tells_a_keys_first_later_record_at_each_cut(spool: Spool) -> None:
    assert not spool.has_seen(key(1), 0)

    assert [spool.see(key(1), 0), spool.see(key(1), 0), spool.see(key(1), 1)] == [True, False, True]
    assert spool.has_seen(key(1), 0)


def test_items_that_cannot_be_used__are_those_at_the_cut(spool: Spool) -> None:
    spool.see(key(1), 0)
    spool.add_items(0, {}, 3, [(key(number), 0, None, None) for number in (1, 2, 3)])
    spool.add_at_cut("one", None, None)

    spool.complete(nothing)

    assert (spool.unusable("one"), spool.unusable("two")) == (3, 0)
    assert list(spool.baselines("one")) == []


def test_page__is_there_with_its_position_or_not_at_all(spool: Spool) -> None:
    def rows() -> Iterator[tuple[bytes, int, str, str]]:
        yield key(1), 0, '["a"]', "1"
        raise ValueError("an item that nobody can read")

    with pytest.raises(ValueError, match="nobody"):
        spool.add_items(3, {"after": 1}, 1, rows())

    assert (spool.positions(), spool.items_read()) == ({}, 0)
    spool.complete(nothing)
    assert list(spool.baselines("one")) == []


def test_positions__are_the_last_of_each_segment(spool: Spool) -> None:
    spool.add_items(0, {"after": 1}, 10, [])
    spool.add_items(1, {"after": 2}, 10, [])
    spool.add_items(0, {"done": True}, 5, [])

    assert (spool.positions(), spool.items_read()) == ({0: {"done": True}, 1: {"after": 2}}, 25)


def test_stream_forgotten__items_and_positions_stay(spool: Spool) -> None:
    spool.add_items(0, {"after": 1}, 1, [(key(1), 0, '["a"]', "1")])
    spool.see(key(1), 0)
    spool.add_at_cut("one", ("b",), amounts(2))
    spool.add_later("one", later(1))

    spool.forget_stream()

    assert list(spool.later_receipts("one")) == []
    assert spool.positions() == {0: {"after": 1}}
    spool.complete(nothing)
    assert list(spool.baselines("one")) == [(("a",), amounts(1))]


def test_later_records__added_once_and_found_by_aggregate(spool: Spool) -> None:
    for receipt in (later(12), later(1), later(2, "b", 5), later(12)):
        spool.add_later("one", receipt)

    assert spool.later("one", ("a",)) == {"receipt-1": (amounts(1), ()), "receipt-12": (amounts(1), ())}
    assert list(spool.later_receipts("one")) == [later(1), later(12), later(2, "b", 5)]
    assert list(spool.compare("one")) == [
        Comparison(("a",), amounts(2), None, touched=True),
        Comparison(("b",), amounts(5), None, touched=True),
    ]
    assert spool.later("two", ("a",)) == {}


def test_later_record_that_keeps__takes_that_out_of_what_is_expected(spool: Spool) -> None:
    removal = LaterReceipt(("a",), "receipt-2", amounts(0), amounts(4))
    for receipt in (later(1, "a", 5), removal):
        spool.add_later("one", receipt)

    assert spool.later("one", ("a",))["receipt-2"] == (amounts(0), amounts(4))
    assert list(spool.later_receipts("one"))[1] == removal
    assert [one.expected for one in spool.compare("one")] == [amounts(1)]


def test_comparison__has_every_aggregate_known_in_any_way(spool: Spool) -> None:
    spool.add_items(0, {}, 2, [(key(1), 0, '["a"]', "1"), (key(2), 0, '["c"]', "3")])
    spool.add_later("one", later(1, "b", 2))
    spool.add_later("one", later(2, "c", 4))
    spool.complete(nothing)
    spool.store_totals("one", [(("e",), amounts(9))])

    spool.store_totals("one", [(("d",), amounts(8)), (("c",), amounts(6))])

    assert list(spool.compare("one")) == [
        Comparison(("a",), amounts(1), None, touched=False),
        Comparison(("b",), amounts(2), None, touched=True),
        Comparison(("c",), amounts(7), amounts(6), touched=True),
        Comparison(("d",), amounts(0), amounts(8), touched=False),
    ]
    assert list(spool.compare("two")) == []


def test_many_aggregates__read_while_the_spool_is_written_to(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_ROWS_AT_ONCE", 3)
    groups = [f"{number:03d}" for number in range(20)]
    spool.add_items(0, {}, 20, [(key(number), 0, f'["{group}"]', "1") for number, group in enumerate(groups)])
    calls: list[int] = []

    def between() -> None:
        calls.append(len(calls))
        with spool.together():
            spool.add_later("one", later(len(calls), groups[-len(calls)]))

    spool.complete(between)

    assert len(calls) == 7
    found = []
    for group, _ in spool.baselines("one"):
        found.append(group[0])
        with spool.together():
            spool.add_later("one", later(100 + len(found), group[0]))
    assert found == groups
    assert [one.group[0] for one in spool.later_receipts("one")] == sorted([*groups, *groups[-7:]])
    spool.store_totals("one", (((group,), amounts(1)) for group in groups))
    assert [one.group[0] for one in spool.compare("one")] == groups


def test_summing_up_interrupted__begins_again(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_ROWS_AT_ONCE", 1)
    spool.add_items(0, {}, 2, [(key(1), 0, '["a"]', "1"), (key(2), 0, '["b"]', "2")])

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spool.complete(interrupt)
    assert not spool.is_complete

    spool.complete(nothing)

    assert spool.is_complete
    assert list(spool.baselines("one")) == [(("a",), amounts(1)), (("b",), amounts(2))]


def test_file__keeps_everything_for_the_next_run(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})
        spool.add_items(0, {"after": 1}, 1, [(key(1), 0, '["a"]', "1")])
        spool.add_later("one", later(1))
        spool.set_note("posted", "a")
        spool.set_note("posted", "b")

    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})

        assert (spool.positions(), spool.note("posted"), spool.note("nothing")) == ({0: {"after": 1}}, "b", None)
        assert list(spool.later_receipts("one")) == [later(1)]
        spool.complete(nothing)
        assert list(spool.baselines("one")) == [(("a",), amounts(1))]


def test_spool_of_another_run__refused_and_says_what_differs(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})

    with Spool(tmp_path / "spool") as spool, pytest.raises(SpoolMismatchError) as refused:
        spool.begin({"table": "orders", "stream": "two"}, {"one": 0})

    assert "stream was one, is two" in str(refused.value)
    assert "table" not in str(refused.value)
    assert str(tmp_path / "spool") in str(refused.value)


def test_spool_that_another_run_works_with__refused(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})

        with pytest.raises(SpoolInUseError, match="in use by another run"):
            Spool(tmp_path / "spool")


def _a_letter(file: Path) -> None:
    file.write_text("a letter to my grandmother, longer than a header of sqlite3 would be" * 20)


def _a_database(file: Path, table: str = "book") -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute(f"CREATE TABLE {table} (title TEXT)")


@pytest.mark.parametrize(
    "write", [_a_letter, _a_database, lambda file: _a_database(file, "item"), lambda file: file.write_text("short")]
)
def test_file_of_something_else__refused_and_left_as_it_is(tmp_path: Path, write: Callable[[Path], object]) -> None:
    file = tmp_path / "precious"
    write(file)
    file.chmod(0o644)
    before = file.read_bytes()

    with pytest.raises(SpoolError, match=r"precious is not a spool of this version, .*: name another file"):
        Spool(file)

    assert [found.read_bytes() for found in tmp_path.iterdir()] == [before]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("before", [None, 0o644])
def test_spool__is_readable_by_its_owner_only(tmp_path: Path, before: int | None) -> None:
    file = tmp_path / "spool"
    if before is not None:
        Spool(file).close()
        file.chmod(before)

    with Spool(file) as spool:
        spool.begin(RUN, {"one": 0})
        modes = {stat.S_IMODE(found.stat().st_mode) for found in tmp_path.iterdir()}

    assert modes == {0o600}


def test_spool_killed_before_it_was_begun__is_taken_up(tmp_path: Path) -> None:
    (tmp_path / "spool").touch()

    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})


@pytest.mark.parametrize("name", ["nowhere/spool", "folder"])
def test_file_that_cannot_be_opened__is_named_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(SpoolError, match=rf"{name} cannot be used: unable to open database file: .*or name another"):
        Spool(tmp_path / name)


def test_file_that_may_not_be_written_to__is_named_with_what_to_do(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(SpoolError, match=r"spool cannot be used: .*readonly.*: check that"),
        Spool(tmp_path / "spool") as spool,
    ):
        spool._db.execute("PRAGMA query_only = 1")  # as with a file of somebody else's
        spool.begin(RUN, {"one": 0})


def test_spool_that_is_damaged_meanwhile__refused(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})
        spool.add_items(0, {}, 1_000, [(key(number), 0, '["a"]', "1") for number in range(1_000)])
    content = bytearray((tmp_path / "spool").read_bytes())
    content[4096:] = b"?" * len(content[4096:])
    (tmp_path / "spool").write_bytes(content)

    with (  # noqa: PT012
        pytest.raises(SpoolError, match=r"spool is not a spool, or is damaged: .*malformed"),
        Spool(tmp_path / "spool") as spool,
    ):
        spool.begin(RUN, {"one": 0})
        spool.complete(nothing)


def test_disk_full__said_so_and_what_was_written_before_stays(tmp_path: Path) -> None:
    with (  # noqa: PT012
        pytest.raises(SpoolError, match=r"spool cannot be written: database or disk is full: make room and run this"),
        Spool(tmp_path / "spool") as spool,
    ):
        spool.begin(RUN, {"one": 0})
        spool.add_items(0, {"after": 1}, 1, [(key(1), 0, '["a"]', "1")])
        spool._db.execute("PRAGMA max_page_count = 1")
        spool.add_items(0, {"after": 2}, 1, [(key(1), 0, f'["{"b" * 1000}"]', "1") for _ in range(1000)])

    with Spool(tmp_path / "spool") as spool:
        spool.begin(RUN, {"one": 0})
        assert spool.positions() == {0: {"after": 1}}


def test_disk_full_under_a_temporary_spool__says_which_folder_to_set() -> None:
    with (  # noqa: PT012
        pytest.raises(SpoolError, match=r"the temporary spool cannot be written: .*set SQLITE_TMPDIR to another"),
        Spool(None) as spool,
    ):
        spool.begin(RUN, {"one": 0})
        spool._db.execute("PRAGMA max_page_count = 1")
        for number in range(10_000):
            spool.see(key(number), 0)


def test_closed__cannot_be_used() -> None:
    with Spool(None) as spool:
        pass

    with pytest.raises(sqlite3.ProgrammingError):
        spool.positions()

"""The spool's file: made for its owner only, told from other programs' files, opened by one process at a time."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from aggregation_worker.errors import WorkerError

# sqlite3's own memory: its page cache, and as much again for a sort before it goes to disk.
_CACHE_KIB = 8 * 1024
# By which a spool is known ("Database File Format", sqlite.org): the header's application id, and where it stands.
_APPLICATION_ID = int.from_bytes(b"aggr", "big")
_APPLICATION_ID_AT = 68


class SpoolError(WorkerError):
    """The spool cannot be used; the message says why and what to do."""


class SpoolInUseError(SpoolError):
    """Another process works with this spool."""


def open_file(path: Path | None, tables: str) -> sqlite3.Connection:
    """Opens the file, or makes it, with these tables.

    Args:
        path: `None` for a temporary one.
        tables: SQL that makes them where they are not there yet.

    Raises:
        SpoolError: the file cannot be opened, or is not a spool.
        SpoolInUseError: another process has it open.
    """
    if path is not None:
        _check_or_make(path)
    try:
        # An empty name is sqlite3's own word for a temporary database on disk.
        file = sqlite3.connect("" if path is None else path, timeout=0, isolation_level=None)
    except sqlite3.Error as error:
        raise spool_error(path, error) from error
    try:
        file.execute("PRAGMA locking_mode = EXCLUSIVE")
        # Before the next line, so that it stands in the file itself at once.
        file.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        file.execute("PRAGMA journal_mode = WAL")
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute("PRAGMA temp_store = FILE")
        file.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        file.executescript(tables)
    except sqlite3.Error as error:
        file.close()
        raise spool_error(path, error) from error
    return file


def _check_or_make(path: Path) -> None:
    """For its owner only: it holds what items contribute, and to which groups.

    What goes wrong here besides, sqlite3 tells when it opens the file.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        return
    with suppress(OSError):
        with path.open("rb") as file:
            header = file.read(_APPLICATION_ID_AT + 4)
        if header and header[_APPLICATION_ID_AT:] != _APPLICATION_ID.to_bytes(4, "big"):
            raise SpoolError(f"{path} is not a spool of this version, but another program's file: name another file")
        path.chmod(0o600)


def spool_error(path: Path | None, error: sqlite3.Error) -> SpoolError:
    """What sqlite3 says of a spool's file, with what to do."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # the rest says where in sqlite3
    file, another = f"the spool {path}", "name another file"
    if path is None:
        file, another = "the temporary spool", "set SQLITE_TMPDIR to another folder"
    if code == sqlite3.SQLITE_BUSY:
        return SpoolInUseError(f"{file} is in use by another run: wait until that is done, or {another}")
    if code == sqlite3.SQLITE_FULL:
        return SpoolError(f"{file} cannot be written: {error}: make room and run this again, or {another}")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR):
        return SpoolError(f"{file} is not a spool, or is damaged: {error}: {another}")
    return SpoolError(
        f"{file} cannot be used: {error}: check that its folder exists and can be written to, or {another}"
    )

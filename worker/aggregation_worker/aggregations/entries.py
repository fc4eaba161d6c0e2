"""Reading a TOML table key by key, and one clear sentence for each mistake: which table, which key, what is wrong."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from aggregation_worker.errors import WorkerError


class DefinitionError(WorkerError):
    """A mistake in the definitions file; the message names the aggregation and the key."""


class Entry:
    """One TOML table being read. A key that it cannot have is the first mistake: others may follow from it."""

    def __init__(self, raw: object, where: str, known: Sequence[str]) -> None:
        """Takes the table `raw`, which messages call `where` and which may have the keys `known`.

        Raises:
            DefinitionError: it is not a table, or has another key, which would silently be without effect.
        """
        if not isinstance(raw, dict):
            raise DefinitionError(f"{where}: a table with keys is needed, not {shown(raw)}")
        self._raw = raw
        self._where = where
        for key in raw:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"
                raise self.error(key, f"unknown key; {hint}")

    def error(self, key: str, what: str) -> DefinitionError:
        """The error for what is wrong with a key."""
        return DefinitionError(f"{self._where}: {key}: {what}")

    def missing(self, key: str, what: str) -> DefinitionError:
        """The error for a key that is not there, with what is needed in words."""
        return self.error(key, f"is missing; {what} is needed")

    def take(self, key: str, kind: type, what: str, default: Any = ...) -> Any:
        """The value of `key`, which must be of type `kind` (`what`, in words), or `default` if it is not there."""
        value = self._raw.get(key, ...)
        if value is ...:
            if default is ...:
                raise self.missing(key, what)
            return default
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, f"{what} is needed, not {shown(value)}")
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        """The string under `key`, which must not be empty, or `default`."""
        value = self.take(key, str, "a string", default)
        if value == "":
            raise self.error(key, "is empty")
        return value

    def choice(self, key: str, values: Iterable[str], default: Any = ...) -> Any:
        """The string under `key`, which must be one of `values`, or `default`."""
        value = self.text(key, default)
        if value is not default and value not in values:
            raise self.error(key, f"{value!r} is none of {', '.join(values)}")
        return value

    def entry(self, key: str, known: Sequence[str]) -> "Entry":
        """The table under `key`, which may have the keys `known`."""
        return self.inner(key, self.take(key, dict, "a table, { name = …, from = … },"), known)

    def inner(self, key: str, raw: object, known: Sequence[str]) -> "Entry":
        """The table `raw`, which stands under `key` and may have the keys `known`."""
        return Entry(raw, f"{self._where}: {key}", known)

    def has(self, key: str) -> bool:
        """Whether `key` is there."""
        return key in self._raw


def shown(value: object) -> str:
    """A value in TOML's words: a text in full, of anything else only its kind, however large or deep."""
    if isinstance(value, str):
        return repr(value)
    words = {bool: "a boolean", int: "an integer", float: "a float", list: "an array", dict: "a table"}
    return words.get(type(value), "a date or time")

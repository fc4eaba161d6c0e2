"""Paths to attributes inside DynamoDB images: `quantity`, `customer.address.country`, `lines[0].price`.

A name with dots, brackets, blanks or asterisks in it is written in double quotes: `"unit.price"`. Images are in
DynamoDB's typed JSON (`{"quantity": {"N": "10"}}`), as the stream delivers them. Only what a definition asks for is
read, so a record of 100 KB costs no more than a small one.
"""

import re
from dataclasses import dataclass
from typing import Any

from aggregation_worker.errors import WorkerError
from aggregation_worker.streams.records import Image

_STEP = re.compile(r'\s*(?:"((?:[^"\\]|\\.)+)"|([^\s."\[\]*]+))((?:\[[0-9]{1,9}\])*)\s*')
_BARE_NAME = re.compile(r'[^\s."\[\]*]+')
_ABSENT = object()
_TYPES = frozenset(("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"))


class MalformedValueError(WorkerError, ValueError):
    """An image holds a value that the definition cannot use.

    The message names the attribute and what is wrong; it never holds the value, since it goes to logs and listings.
    """


@dataclass(frozen=True, slots=True)
class AttributePath:
    """Where in an image a value is: attribute names (`str`) and list indexes (`int`), outermost first.

    `text` is one spelling for each path, however the definition spells it.
    """

    text: str
    steps: tuple[str | int, ...]

    def find(self, image: Image) -> tuple[str, Any] | None:
        """The value's DynamoDB type and content, e.g. `("N", "10")`; `None` where the image lacks it or it is NULL.

        Raises:
            MalformedValueError: the path leads through a scalar, or the attribute is not in DynamoDB's typed JSON.
        """
        value: Any = image.get(self.steps[0], _ABSENT)  # type: ignore[arg-type]  # the first step is always a name
        for step in self.steps[1:]:
            value = self._inside(value, step)
        if value is _ABSENT:
            return None
        kind, content = self._typed(value)
        return None if kind == "NULL" else (kind, content)

    def _inside(self, value: Any, step: str | int) -> Any:
        """The value one step further in; absent where the value is absent or NULL."""
        if value is _ABSENT:
            return _ABSENT
        kind, content = self._typed(value)
        if kind == "NULL":
            return _ABSENT
        if isinstance(step, str) and kind == "M" and isinstance(content, dict):
            return content.get(step, _ABSENT)
        if isinstance(step, int) and kind == "L" and isinstance(content, list):
            return content[step] if step < len(content) else _ABSENT
        wanted = "map" if isinstance(step, str) else "list"
        raise MalformedValueError(f"{self.text}: the path leads into a value of type {kind}, not a {wanted}")

    def _typed(self, value: Any) -> tuple[str, Any]:
        if isinstance(value, dict) and len(value) == 1:
            for kind, content in value.items():
                if kind in _TYPES:
                    return kind, content
        raise MalformedValueError(f"{self.text}: not a DynamoDB attribute value, such as {{'N': '10'}}")


def parse_path(text: str) -> AttributePath:
    """Reads a path as written in a definition.

    Raises:
        ValueError: it is empty or not a path; the message shows where reading stopped.
    """
    steps: list[str | int] = []
    position = 0
    while True:
        match = _STEP.match(text, position)
        if match is None:
            raise ValueError(f"{text!r} is not an attribute path (stopped at {text[position:]!r})")
        quoted, bare, indexes = match.groups()
        steps.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare)
        steps.extend(int(index) for index in re.findall(r"[0-9]+", indexes))
        position = match.end()
        if position == len(text):
            return AttributePath(_spelling(steps), tuple(steps))
        if text[position] != ".":
            raise ValueError(f"{text!r} is not an attribute path (stopped at {text[position:]!r})")
        position += 1


def _spelling(steps: list[str | int]) -> str:
    """The path as `parse_path` reads it, with quotes only where a name needs them."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        quoted = step if _BARE_NAME.fullmatch(step) else '"' + re.sub(r'(["\\])', r"\\\1", step) + '"'
        text += f".{quoted}" if text else quoted
    return text

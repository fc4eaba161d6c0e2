"""Paths to attributes inside DynamoDB images: `quantity`, `customer.address.country`, `lines[0].price`; and products.

A name that could be read as something else, with dots, brackets or operators in it, or a number, is written in double
quotes: `"unit.price"`. Images are in DynamoDB's typed JSON (`{"quantity": {"N": "10"}}`), as the stream delivers them.
Only what a definition asks for is read, so a record of 100 KB costs no more than a small one.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aggregation_worker.aggregations.numbers import NumberOutOfRangeError, fits, parse_number, product
from aggregation_worker.errors import WorkerError
from aggregation_worker.streams.records import Image

# `price+shipping`, `sum(price)` and `-price` are no names, but meant as something that a path cannot say.
_BARE_NAME = re.compile(r"""(?!-)[^\s."'`\[\](){}<>,*+/%^=!&|]+""")
_STEP = re.compile(rf'\s*(?:"((?:[^"\\]|\\.)+)"|({_BARE_NAME.pattern}))((?:\[[0-9]{{1,9}}\])*)\s*')
# Where other notations begin: a number, JSONPath, JMESPath.
_NO_FIRST_NAME = re.compile(r"[0-9]+|[$@]")
_QUOTED_NAME = re.compile(r'"(?:[^"\\]|\\.)*"')
_ABSENT = object()
VALUE_TYPES = frozenset(("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"))


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
                if kind in VALUE_TYPES:
                    return kind, content
        several = ""
        if isinstance(value, dict) and len(value) > 1 and value.keys() <= VALUE_TYPES:
            # Of types that are not the value's, aws-lambda-go writes a null.
            several = f": it has the types {', '.join(sorted(value))} side by side, where Lambda delivers one"
        raise MalformedValueError(f"{self.text}: not a DynamoDB attribute value, such as {{'N': '10'}}{several}")


def parse_path(text: str) -> AttributePath:
    """Reads a path as written in a definition.

    Raises:
        ValueError: it is empty or not a path; the message shows where reading stopped.
    """
    steps: list[str | int] = []
    position = 0
    while True:
        match = _STEP.match(text, position)
        if match is None or (not steps and _NO_FIRST_NAME.fullmatch(match[2] or "")):
            raise _no_path(text, position)
        quoted, bare, indexes = match.groups()
        steps.append(re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else bare)
        steps.extend(int(index) for index in re.findall(r"[0-9]+", indexes))
        position = match.end()
        if position == len(text):
            return AttributePath(_spelling(steps), tuple(steps))
        if text[position] != ".":
            raise _no_path(text, position)
        position += 1


def _no_path(text: str, position: int) -> ValueError:
    return ValueError(
        f"{text!r} is not an attribute path (stopped at {text[position:]!r}); a name with such characters is written "
        "in double quotes"
    )


def parse_product(text: str) -> tuple[tuple[AttributePath, ...], Decimal]:
    """Reads a product as written in a definition: its paths, and the product of its numbers, which is 1 without any.

    A hyphen belongs to a name only in double quotes: `price-discount` could be meant as a difference.

    Raises:
        ValueError: a factor is neither a path nor a number, there is no path, or the numbers make no DynamoDB number
            but 0.
    """
    paths, numbers = [], [Decimal(1)]
    start = 0
    for part in _QUOTED_NAME.sub(lambda name: "_" * len(name[0]), text).split("*"):
        factor = text[start : start + len(part)].strip()
        start += len(part) + 1
        try:
            numbers.append(parse_number(factor))
            continue
        except NumberOutOfRangeError as error:
            raise ValueError(f"{factor} {error}") from error
        except ValueError:
            path = None if "-" in part else _path_or_none(factor)
        if path is None:
            raise ValueError(
                f"{text!r} is not a product of attribute paths and numbers, such as 'quantity * price * 1.19'; a name "
                "with other characters than letters, digits and '_' is written in double quotes, and what is not a "
                "product as { jmespath = … }"
            )
        paths.append(path)
    constant = product(numbers)
    if not paths:
        raise ValueError(f"{text!r} has no attribute path; images are counted with count")
    if not constant:
        raise ValueError(f"{text!r} is always 0")
    if not fits(constant):
        raise ValueError(f"{text!r}: the product of its numbers does not fit a DynamoDB number (38 digits)")
    return tuple(paths), constant


def _path_or_none(text: str) -> AttributePath | None:
    try:
        return parse_path(text)
    except ValueError:
        return None


def _spelling(steps: list[str | int]) -> str:
    """The path as `parse_path` reads it, with quotes only where a name needs them."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        bare = _BARE_NAME.fullmatch(step) and (text or not _NO_FIRST_NAME.fullmatch(step))
        name = step if bare else '"' + re.sub(r'(["\\])', r"\\\1", step) + '"'
        text += f".{name}" if text else name
    return text

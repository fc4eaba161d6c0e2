"""The `where` of an aggregation: a JMESPath expression that decides whether an image counts."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import jmespath
import jmespath.exceptions

from worker.attribute_paths import Image, MalformedValueError
from worker.numbers import parse_number


class Where:
    """A compiled `where`.

    The expression sees the image as plain values: strings, booleans, null, maps, lists (sets too), binary values as
    base64 text, and numbers exactly, whole ones as `int` and others as `Decimal`. An image counts if the result is true
    in JMESPath's sense: neither false, null nor empty.
    """

    def __init__(self, expression: str) -> None:
        """Compiles `expression`.

        Raises:
            ValueError: it is not JMESPath; the message shows where.
        """
        self.expression = expression
        try:
            self._compiled = jmespath.compile(expression)
        except jmespath.exceptions.JMESPathError as error:
            raise ValueError(f"{expression!r} is not a JMESPath expression: {error}") from error
        _make_literals_exact(self._compiled.parsed)

    def __call__(self, image: Image) -> bool:
        """Whether an image counts.

        Raises:
            MalformedValueError: the expression cannot be evaluated on the image's values.
        """
        try:
            result = self._compiled.search({name: _plain(value) for name, value in image.items()})
        except (
            jmespath.exceptions.JMESPathError,
            TypeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise MalformedValueError(
                f"where: {self.expression!r} cannot be evaluated on the image ({type(error).__name__})"
            ) from error
        return not (result is None or result is False or result == "" or result in ([], {}))


def _make_literals_exact(node: Any) -> None:
    """JMESPath reads `0.1` as a float; the definition means the number as written."""
    if node["type"] == "literal":
        node["value"] = _exact_literal(node["value"])
    for child in node["children"]:
        if isinstance(child, dict):
            _make_literals_exact(child)


def _exact_literal(value: Any) -> Any:
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, list):
        return [_exact_literal(inner) for inner in value]
    if isinstance(value, dict):
        return {name: _exact_literal(inner) for name, inner in value.items()}
    return value


def _plain(value: Any) -> Any:
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError("the image is not in DynamoDB's typed JSON")
    ((kind, content),) = value.items()
    if kind in ("S", "BOOL", "B", "SS", "BS"):
        return content
    if kind == "N":
        return _number(content)
    if kind == "NULL":
        return None
    if kind == "M":
        return {name: _plain(inner) for name, inner in content.items()}
    if kind == "L":
        return [_plain(inner) for inner in content]
    if kind == "NS":
        return [_number(inner) for inner in content]
    raise ValueError(f"unknown attribute type {kind!r}")


def _number(text: object) -> int | Decimal:
    number = parse_number(text)
    return int(number) if number == number.to_integral_value() else number

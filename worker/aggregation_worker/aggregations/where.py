"""The `where` of an aggregation: a JMESPath expression that decides whether an image counts."""

import json
from collections.abc import Mapping
from decimal import Context, Decimal, localcontext
from typing import Any

import jmespath
import jmespath.exceptions
from jmespath.functions import REVERSE_TYPES_MAP, TYPES_MAP, Functions, signature
from jmespath.visitor import Options

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.numbers import EXACT, canonical_text, parse_number
from aggregation_worker.streams.records import Image

# JMESPath knows the types of its functions' arguments by Python's names for them; a Decimal is a number too.
TYPES_MAP["Decimal"] = "number"
REVERSE_TYPES_MAP["number"] = tuple({*REVERSE_TYPES_MAP["number"], "Decimal"})


class _Functions(Functions):
    """JMESPath's functions for exact numbers: its own would round them, or not take them for numbers."""

    @signature({"types": []})
    def _func_to_number(self, value: Any) -> int | Decimal | None:
        if isinstance(value, str):
            try:
                return _number(value)
            except ValueError:
                return None
        return value if isinstance(value, int | Decimal) and not isinstance(value, bool) else None

    @signature({"types": []})
    def _func_to_string(self, value: Any) -> str:
        if isinstance(value, Decimal):
            return canonical_text(value)
        return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=float)

    @signature({"types": []})
    def _func_type(self, value: Any) -> str:
        return TYPES_MAP[type(value).__name__]


_OPTIONS = Options(custom_functions=_Functions())
# Sums inside an expression are exact, too; an average is rounded, but only after as many digits.
_WIDE = Context(prec=EXACT.prec)


class Where:
    """A compiled `where`.

    The expression sees the image as plain values: strings, booleans, null, maps, lists (sets too), binary values as
    base64 text, and numbers exactly, whole ones as `int` and others as `Decimal`. An image counts if the result is true
    in JMESPath's sense: neither false, null nor empty.
    """

    def __init__(self, expression: str) -> None:
        """Compiles `expression`.

        Raises:
            ValueError: it is not JMESPath, or calls a function that JMESPath does not have or with too few or too many
                arguments; the message shows where.
        """
        self.expression = expression
        try:
            self._compiled = jmespath.compile(expression)
            _check(self._compiled.parsed)
        except (jmespath.exceptions.JMESPathError, ValueError, RecursionError) as error:
            raise ValueError(f"{expression!r} is not a JMESPath expression: {error}") from error

    def __call__(self, image: Image) -> bool:
        """Whether an image counts.

        Raises:
            MalformedValueError: the expression cannot be evaluated on the image's values.
        """
        try:
            plain = {name: _plain(value) for name, value in image.items()}
            with localcontext(_WIDE):
                result = self._compiled.search(plain, _OPTIONS)
        except (
            jmespath.exceptions.JMESPathError,
            AttributeError,
            TypeError,
            ValueError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise MalformedValueError(
                f"where: {self.expression!r} cannot be evaluated on the image ({type(error).__name__})"
            ) from error
        return not (result is None or result is False or result == "" or result in ([], {}))


def _check(node: Any) -> None:
    """Makes literals exact, and refuses calls that could only fail later, on every image.

    JMESPath reads `0.1` as a float; the definition means the number as written.
    """
    if node["type"] == "literal":
        node["value"] = _exact_literal(node["value"])
    if node["type"] == "function_expression":
        _check_call(node["value"], len(node["children"]))
    for child in node["children"]:
        if isinstance(child, dict):
            _check(child)


def _check_call(function: str, arguments: int) -> None:
    if function not in _Functions.FUNCTION_TABLE:
        raise ValueError(f"JMESPath has no function {function}()")
    parameters = _Functions.FUNCTION_TABLE[function]["signature"]
    more_allowed = parameters[-1].get("variadic", False)
    if arguments < len(parameters) or (arguments > len(parameters) and not more_allowed):
        raise ValueError(f"{function}() takes {len(parameters)} arguments, not {arguments}")


def _exact_literal(value: Any) -> Any:
    if isinstance(value, float):
        return parse_number(repr(value))
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

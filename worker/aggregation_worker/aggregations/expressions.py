"""JMESPath over images, with exact numbers: `where`, and what measured expressions have in common with it.

An expression sees the image as plain values: strings, booleans, null, maps, lists (sets too), binary values as base64
text, and numbers exactly, whole ones as `int` and others as `Decimal`. An attribute that is absent or NULL is null, and
so is a function of null, or of a list that holds null, unless it takes null (`not_null`, `type`, `to_string`, …).

JMESPath reads some mistakes as something else: `"paid"` is the name of an attribute, and so is `true`. They are refused
where they can hardly be meant.
"""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from decimal import Context, Decimal, localcontext
from typing import Any

import jmespath.ast
from jmespath.exceptions import IncompleteExpressionError, JMESPathError, JMESPathTypeError, LexerError, ParseError
from jmespath.functions import REVERSE_TYPES_MAP, TYPES_MAP, Functions, signature
from jmespath.parser import Parser
from jmespath.visitor import Options, TreeInterpreter

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.numbers import EXACT, canonical_text, parse_number
from aggregation_worker.streams.records import Image

# JMESPath knows the types of its functions' arguments by Python's names for them; a Decimal is a number too.
TYPES_MAP["Decimal"] = "number"
REVERSE_TYPES_MAP["number"] = tuple({*REVERSE_TYPES_MAP["number"], "Decimal"})

# Sums inside an expression are exact, too; an average is rounded, but only after as many digits.
_WIDE = Context(prec=EXACT.prec)
_LITERAL = re.compile(r"`((?:[^`\\]|\\.)*)`", re.DOTALL)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_VALUES = ("true", "false", "null")


class _Functions(Functions):
    """JMESPath's functions for exact numbers: its own would round them, or not take them for numbers."""

    def call_function(self, function_name: str, resolved_args: Any) -> Any:
        try:
            return super().call_function(function_name, resolved_args)
        except JMESPathTypeError as error:
            if TYPES_MAP.get(error.actual_type, error.actual_type) == "null":
                return None
            raise

    @signature({"types": ["array-number"]})
    def _func_avg(self, numbers: Any) -> Decimal | None:
        return Decimal(sum(numbers)) / len(numbers) if numbers else None

    @signature({"types": ["array", "string"]}, {"types": []})
    def _func_contains(self, subject: Any, search: Any) -> bool | None:
        return None if search is None and isinstance(subject, str) else search in subject

    @signature({"types": ["object"], "variadic": True})
    def _func_merge(self, *maps: Any) -> dict[str, Any] | None:
        return None if None in maps else {name: value for one in maps for name, value in one.items()}

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
        return value if isinstance(value, str) else _json(value)

    @signature({"types": []})
    def _func_type(self, value: Any) -> str:
        return TYPES_MAP[type(value).__name__]


class Expression:
    """A compiled expression; a subclass says what its result means.

    Attributes:
        expression: as the definition has it.
        tree: JMESPath's syntax tree of it.
    """

    interpreter: type[TreeInterpreter] = TreeInterpreter

    def __init__(self, expression: str, key: str) -> None:
        """Compiles `expression`, which errors of evaluation say to be the definition's `key`.

        Raises:
            ValueError: it is not JMESPath, calls a function that JMESPath does not have or with too few or too many
                arguments, or can only be a mistake; the message shows where.
        """
        self.expression = expression
        self._key = key
        try:
            self.tree: Any = _Parser(expression).tree()
            nodes = [*nodes_of(self.tree)]
            for node in nodes:
                _check_call(node)
        except (JMESPathError, ValueError, RecursionError) as error:
            raise ValueError(f"{expression!r} is not a JMESPath expression: {_mistake(error)}") from error
        for node in nodes:
            if slip := _slip(node):
                raise ValueError(f"{expression!r}: {slip}")
        self._attributes = attributes_of(self.tree)

    def evaluate(self, image: Image) -> Any:
        """The result as a plain value.

        Raises:
            MalformedValueError: the expression cannot be evaluated on the image's values.
        """
        names = image if self._attributes is None else self._attributes & image.keys()
        try:
            plain = {name: _plain(image[name]) for name in names}
            with localcontext(_WIDE):
                return self.interpreter(Options(custom_functions=_FUNCTIONS)).visit(self.tree, plain)
        except MalformedValueError as error:
            raise self.malformed(str(error)) from error
        except (JMESPathError, AttributeError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise self.malformed(f"cannot be evaluated on the image ({_reason(error)})") from error

    def malformed(self, what: str) -> MalformedValueError:
        """The error for an image on which the expression is not what it should be."""
        return MalformedValueError(f"{self._key}: {self.expression!r} {what}")


_FUNCTIONS = _Functions()


class Where(Expression):
    """A compiled `where`.

    An image counts if the result is true in JMESPath's sense: neither false, null nor empty. So one that lacks an
    attribute, or has something else in its place, is mostly outside; only a function that cannot take what is there, or
    a comparison of a text with a number by order, cannot be evaluated.
    """

    def __init__(self, expression: str) -> None:
        """Compiles `expression`.

        Raises:
            ValueError: see `Expression`.
        """
        super().__init__(expression, "where")

    def __call__(self, image: Image) -> bool:
        """Whether an image counts.

        Raises:
            MalformedValueError: the expression cannot be evaluated on the image's values.
        """
        result = self.evaluate(image)
        return not (result is None or result is False or result == "" or result in ([], {}))


class _Parser(Parser):
    """JMESPath's parser, but numbers stay as they are written, and a name in double quotes is remembered as such."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text
        # The class's own is shared with everyone who uses JMESPath, botocore too, and knows an expression by its text.
        self._CACHE: dict[str, Any] = {}

    def tree(self) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PendingDeprecationWarning)  # of `paid`, which is refused below
            return self.parse(self._text).parsed

    def _token_nud_literal(self, token: Any) -> Any:
        written = _LITERAL.match(self._text, token["start"])
        return jmespath.ast.literal(_exact(written[1].replace("\\`", "`")) if written else token["value"])

    def _token_nud_number(self, token: Any) -> Any:
        written = _NUMBER.match(self._text, token["start"])
        raise ValueError(f"a number is written in backticks, `{written[0] if written else token['value']}`")

    def _token_nud_quoted_identifier(self, token: Any) -> Any:
        return {**super()._token_nud_quoted_identifier(token), "quoted": True}  # type: ignore[misc]  # not in the stubs


def _exact(written: str) -> Any:
    """A literal with its numbers as they are written; JMESPath itself reads `0.1` as a float, and `True` as a text."""
    try:
        return json.loads(written, parse_float=_number, parse_constant=parse_number)
    except json.JSONDecodeError as error:
        raise ValueError(f"`{written}` is not JSON; a text is written in single quotes, '{written.strip()}'") from error


def _check_call(node: Any) -> None:
    """Refuses a call that could only fail, on every image."""
    if node["type"] != "function_expression":
        return
    function, arguments = node["value"], len(node["children"])
    if function not in _Functions.FUNCTION_TABLE:
        raise ValueError(f"JMESPath has no function {function}()")
    parameters = _Functions.FUNCTION_TABLE[function]["signature"]
    more_allowed = parameters[-1].get("variadic", False)
    if arguments < len(parameters) or (arguments > len(parameters) and not more_allowed):
        raise ValueError(f"{function}() takes {len(parameters)} arguments, not {arguments}")


def _slip(node: Any) -> str | None:
    """What is wrong with a name that is compared, passed to a function or listed where a value is meant.

    Beside a value `"order-status"` is the attribute that it is compared with, and the only argument of a function can
    hardly be a text.
    """
    operands = node["children"]
    if node["type"] not in ("comparator", "function_expression", "multi_select_list"):
        return None
    beside_a_value = node["type"] != "multi_select_list" and any(operand["type"] == "literal" for operand in operands)
    alone = node["type"] == "function_expression" and len(operands) == 1
    for operand in operands:
        if operand["type"] != "field":
            continue
        name = operand["value"]
        if "quoted" not in operand:
            if name in _VALUES and not alone:
                return f"{name} is an attribute's name; the value is written in backticks, `{name}`"
        elif not beside_a_value and not alone:
            return (
                f"\"{name}\" is an attribute's name; a text is written in single quotes, '{name}' "
                f'(and that attribute, here, as @."{name}")'
            )
    return None


def nodes_of(node: Any) -> Iterator[Any]:
    """A node of a syntax tree and all that are below it."""
    yield node
    for child in node["children"]:
        if isinstance(child, dict):
            yield from nodes_of(child)


def attributes_of(tree: Any) -> frozenset[str] | None:
    """The attributes that an expression may read, and perhaps some more; `None` if it may read any."""
    nodes = [*nodes_of(tree)]
    if any(node["type"] in ("current", "value_projection") for node in nodes):
        return None
    return frozenset(node["value"] for node in nodes if node["type"] == "field")


def _mistake(error: Exception) -> str:
    """In one line: JMESPath's own messages draw an arrow below the expression."""
    if isinstance(error, IncompleteExpressionError):
        return "it is incomplete"
    if isinstance(error, LexerError) and error.lexer_value == "=":
        return f"values are compared with ==, at column {error.lexer_position + 1}"
    if isinstance(error, LexerError):
        return f"{error.message} at column {error.lexer_position + 1}"
    if isinstance(error, ParseError):
        return f"{error.msg} at column {error.lex_position + 1}"
    return str(error)


def _json(value: Any) -> str:
    """JSON with exact numbers and without blanks."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{_json(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return canonical_text(value) if isinstance(value, Decimal) else json.dumps(value)


def _reason(error: Exception) -> str:
    """What went wrong, without the value, which is in most messages."""
    if isinstance(error, JMESPathTypeError):
        kind = TYPES_MAP.get(error.actual_type, error.actual_type)
        return f"{error.function_name}() takes no {kind} there"
    return "values of different types" if isinstance(error, TypeError) else type(error).__name__


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

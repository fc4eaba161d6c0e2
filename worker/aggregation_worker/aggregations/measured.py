"""Measured expressions: a JMESPath expression whose result is summed, such as `sum(lines[].quantity)`."""

from decimal import Decimal
from typing import Any

from jmespath.visitor import TreeInterpreter

from aggregation_worker.aggregations.attribute_paths import MalformedValueError
from aggregation_worker.aggregations.expressions import Expression, nodes_of
from aggregation_worker.aggregations.numbers import MAX_DIGITS, fits
from aggregation_worker.streams.records import Image

_NUMBER_FUNCTIONS = frozenset(
    ("abs", "ceil", "floor", "length", "max", "max_by", "min", "min_by", "not_null", "sum", "to_number")
)
# What else a syntax tree gives, by the type of its node.
_NOT_NUMBERS = {
    "comparator": "true or false",
    "filter_projection": "a list",
    "flatten": "a list",
    "multi_select_dict": "a map",
    "multi_select_list": "a list",
    "not_expression": "true or false",
    "projection": "a list",
    "value_projection": "a list",
}
_KINDS = {bool: "true or false", dict: "a map", list: "a list", str: "a text", int: "a number", Decimal: "a number"}
_OTHER = "something else"
_ZERO = Decimal(0)


class _Strict(TreeInterpreter):
    """Takes nothing else for a map or a list, where JMESPath says null: an item must not be counted as if it lacked it.

    What is null stays null, as in a path.
    """

    def visit_field(self, node: Any, value: Any) -> Any:
        return super().visit_field(node, _only(value, dict))

    def visit_index(self, node: Any, value: Any) -> Any:
        return super().visit_index(node, _only(value, list))

    def visit_slice(self, node: Any, value: Any) -> Any:
        return super().visit_slice(node, _only(value, list))

    def visit_flatten(self, node: Any, value: Any) -> Any:
        return super().visit_flatten(self._checked(node, value, list), value)

    def visit_projection(self, node: Any, value: Any) -> Any:
        return super().visit_projection(self._checked(node, value, list), value)

    def visit_filter_projection(self, node: Any, value: Any) -> Any:
        return super().visit_filter_projection(self._checked(node, value, list), value)

    def visit_value_projection(self, node: Any, value: Any) -> Any:
        return super().visit_value_projection(self._checked(node, value, dict), value)

    def _checked(self, node: Any, value: Any, kind: type) -> Any:
        """The node with what it projects evaluated already, and checked."""
        base, *others = node["children"]
        result = {"type": "literal", "value": _only(self.visit(base, value), kind), "children": []}
        return {**node, "children": [result, *others]}


def _only(value: Any, kind: type) -> Any:
    if value is None or isinstance(value, kind):
        return value
    raise MalformedValueError(f"leads into {_KINDS.get(type(value), _OTHER)} where {_KINDS[kind]} belongs")


class MeasuredExpression(Expression):
    """A compiled expression that gives a number."""

    interpreter = _Strict

    def __init__(self, expression: str, measure: str) -> None:
        """Compiles `expression` for a measure of that name.

        Raises:
            ValueError: see `Expression`; or its result can never be a number, or not exactly.
        """
        super().__init__(expression, measure)
        if any(node["type"] == "function_expression" and node["value"] == "avg" for node in nodes_of(self.tree)):
            raise ValueError(
                f"{expression!r}: an average cannot be exact; sum and count are, and give it to the reader"
            )
        if gives := _no_number(self.tree):
            raise ValueError(f"{expression!r} gives {gives}, not a number, which sum(…) or length(…) would")

    def number(self, image: Image) -> Decimal | None:
        """What an image gives, exactly; `None` for null: an attribute is absent or NULL.

        Raises:
            MalformedValueError: the expression cannot be evaluated, or its result is not a number of DynamoDB's.
        """
        result = self.evaluate(image)
        if result is None:
            return None
        if isinstance(result, bool) or not isinstance(result, int | Decimal):
            raise self.malformed(f"gives {_KINDS.get(type(result), _OTHER)} where a number belongs")
        number = Decimal(result) or _ZERO  # without its exponent
        if not fits(number):
            raise self.malformed(f"gives what does not fit a DynamoDB number ({MAX_DIGITS} digits)")
        return number


def _no_number(node: Any) -> str | None:
    """What a node gives, in words, if it can never be a number."""
    kind, children = node["type"], node["children"]
    if kind == "literal":
        return None if type(node["value"]) in (int, Decimal) else _KINDS.get(type(node["value"]), "null")
    if kind == "function_expression":
        return None if node["value"] in _NUMBER_FUNCTIONS else f"what {node['value']}() gives"
    if kind == "or_expression":
        return _no_number(children[0]) or _no_number(children[1])
    if kind in ("and_expression", "pipe", "subexpression"):
        return _no_number(children[-1])
    return _NOT_NUMBERS.get(kind)

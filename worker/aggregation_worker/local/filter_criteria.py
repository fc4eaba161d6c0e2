"""Which stream records a mapping delivers: `FilterCriteria`, as far as string filters go.

Sources: "Control which events Lambda sends to your function" and "Using event filtering with a DynamoDB event source",
AWS Lambda developer guide. Numeric operators are refused: in a stream record the value of an `N` attribute is a string,
which no numeric operator matches, so such a filter would drop every record on AWS too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

MAX_PATTERN_CHARACTERS = 4096

_ABSENT = object()
_TEXT_OPERATORS = ("prefix", "suffix", "equals-ignore-case")
_SUPPORTED = "an exact value, prefix, suffix, equals-ignore-case, anything-but and exists"


class FilterPatternError(ValueError):
    """A pattern that AWS would refuse, or one with an operator that is not supported here."""


@dataclass(frozen=True, slots=True)
class FilterPattern:
    """One `Pattern` of `FilterCriteria`: every key in it must match.

    Example:
        >>> FilterPattern.parse('{"eventName": ["INSERT", {"prefix": "MOD"}]}').matches({"eventName": "MODIFY"})
        True
    """

    pattern: Mapping[str, Any]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads and checks a pattern's JSON text.

        Raises:
            FilterPatternError: no JSON object, a value that does not stand in a list, or an unsupported operator.
        """
        if len(text) > MAX_PATTERN_CHARACTERS:
            raise FilterPatternError(f"the filter pattern is longer than {MAX_PATTERN_CHARACTERS} characters")
        try:
            pattern = json.loads(text)
        except json.JSONDecodeError as error:
            raise FilterPatternError(f"the filter pattern is not valid JSON ({error}): {text}") from error
        if not isinstance(pattern, dict) or not pattern:
            raise FilterPatternError(f"the filter pattern must be a JSON object with at least one key: {text}")
        _check_keys(pattern, "")
        return cls(pattern)

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether `record`, in the shape in which Lambda delivers it, is let through."""
        return _matches_keys(self.pattern, record)


def is_delivered(record: Mapping[str, Any], patterns: Sequence[FilterPattern]) -> bool:
    """Whether one of `patterns` matches, or there is none."""
    return not patterns or any(pattern.matches(record) for pattern in patterns)


def _check_keys(pattern: Mapping[str, Any], parent: str) -> None:
    for name, expected in pattern.items():
        path = f"{parent}.{name}" if parent else name
        if name.startswith("$"):
            raise FilterPatternError(f"{path}: {name} is not supported here; write one pattern for each alternative")
        if isinstance(expected, dict) and expected:
            _check_keys(expected, path)
        elif isinstance(expected, list) and expected:
            for rule in expected:
                _check_rule(rule, path)
        else:
            raise FilterPatternError(f"{path}: what to match must stand in a list, such as [{json.dumps(expected)}]")


def _check_rule(rule: object, path: str) -> None:
    if not isinstance(rule, dict):
        _check_value(rule, path)
        return
    if len(rule) != 1:
        raise FilterPatternError(f"{path}: one operator at a time is allowed, not {json.dumps(rule)}")
    operator, operand = next(iter(rule.items()))
    if operator in _TEXT_OPERATORS:
        if not isinstance(operand, str):
            raise FilterPatternError(f"{path}: {operator} takes a string, not {json.dumps(operand)}")
    elif operator == "exists":
        if not isinstance(operand, bool):
            raise FilterPatternError(f"{path}: exists takes true or false, not {json.dumps(operand)}")
    elif operator == "anything-but":
        _check_anything_but(operand, path)
    elif operator == "numeric":
        raise FilterPatternError(
            f"{path}: numeric operators match nothing in a DynamoDB stream record, where the value of an N attribute "
            'is a string: match it as text, such as {"N": ["10"]}'
        )
    else:
        raise FilterPatternError(f"{path}: the operator {operator!r} is not supported here; there are {_SUPPORTED}")


def _check_anything_but(operand: object, path: str) -> None:
    if isinstance(operand, dict):
        if len(operand) != 1 or next(iter(operand)) not in _TEXT_OPERATORS:
            raise FilterPatternError(f"{path}: anything-but takes values, or one of {', '.join(_TEXT_OPERATORS)}")
        _check_rule(operand, path)
        return
    for value in operand if isinstance(operand, list) else [operand]:
        _check_value(value, path)


def _check_value(value: object, path: str) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise FilterPatternError(
            f"{path}: the number {value} matches no N attribute, whose value is a string: "
            f"write {json.dumps(str(value))}"
        )
    if not isinstance(value, str | bool | None):
        raise FilterPatternError(f"{path}: a value to match must be a string, true, false or null")


def _matches_keys(pattern: Mapping[str, Any], actual: object) -> bool:
    for name, expected in pattern.items():
        value = actual.get(name, _ABSENT) if isinstance(actual, Mapping) else _ABSENT
        if isinstance(expected, list):
            if not any(_matches_rule(rule, value) for rule in expected):
                return False
        elif not _matches_keys(expected, value):
            return False
    return True


def _matches_rule(rule: object, actual: object) -> bool:
    """Whether one rule matches a value; a list matches by any of its elements.

    Only leaves exist to a filter: `exists` sees neither an object nor what is below it ("Using the Exists operator").
    """
    is_leaf = actual is not _ABSENT and not isinstance(actual, Mapping)
    if isinstance(rule, dict) and "exists" in rule:
        return is_leaf is rule["exists"]
    if not is_leaf:
        return False
    values = actual if isinstance(actual, list) else [actual]
    return any(_matches_value(rule, value) for value in values)


def _matches_value(rule: object, value: object) -> bool:
    if not isinstance(rule, dict):
        return type(rule) is type(value) and rule == value
    operator, operand = next(iter(rule.items()))
    if operator == "anything-but":
        excluded = operand if isinstance(operand, list) else [operand]
        return not any(_matches_value(one, value) for one in excluded)
    return isinstance(value, str) and _matches_text(operator, operand, value)


def _matches_text(operator: str, operand: str, text: str) -> bool:
    if operator == "prefix":
        return text.startswith(operand)
    if operator == "suffix":
        return text.endswith(operand)
    return text.casefold() == operand.casefold()

"""Which records a filter lets through."""

import json
from typing import Any

import pytest

from aggregation_worker.local.filter_criteria import FilterPattern, FilterPatternError, is_delivered

RECORD: dict[str, Any] = {
    "eventName": "MODIFY",
    "userIdentity": None,
    "dynamodb": {
        "SizeBytes": 1,
        "Keys": {"orderid": {"S": "178526"}},
        "NewImage": {"quantity": {"N": "10"}, "paid": {"BOOL": True}, "tags": {"SS": ["new", "gift"]}},
    },
}


def matches(pattern: dict[str, Any]) -> bool:
    return FilterPattern.parse(json.dumps(pattern)).matches(RECORD)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"eventName": ["MODIFY"]}, True),
        ({"eventName": ["INSERT", "MODIFY"]}, True),
        ({"eventName": ["INSERT"]}, False),
        ({"eventName": ["modify"]}, False),
        ({"eventName": ["MODIFY"], "dynamodb": {"Keys": {"orderid": {"S": ["178526"]}}}}, True),
        ({"eventName": ["MODIFY"], "dynamodb": {"Keys": {"orderid": {"S": ["1"]}}}}, False),
        ({"dynamodb": {"NewImage": {"quantity": {"N": ["10"]}}}}, True),
        ({"dynamodb": {"NewImage": {"paid": {"BOOL": [True]}}}}, True),
        ({"dynamodb": {"NewImage": {"paid": {"BOOL": ["true"]}}}}, False),
        ({"dynamodb": {"NewImage": {"tags": {"SS": ["gift"]}}}}, True),
        ({"dynamodb": {"OldImage": {"quantity": {"N": ["10"]}}}}, False),
        ({"dynamodb": {"SizeBytes": [True]}}, False),
        ({"userIdentity": [None]}, True),
        ({"eventName": {"deeper": ["MODIFY"]}}, False),
        ({"eventName": [{"prefix": "MOD"}]}, True),
        ({"eventName": [{"prefix": "mod"}]}, False),
        ({"eventName": [{"suffix": "IFY"}]}, True),
        ({"eventName": [{"equals-ignore-case": "modify"}]}, True),
        ({"eventName": [{"anything-but": "REMOVE"}]}, True),
        ({"eventName": [{"anything-but": ["REMOVE", "MODIFY"]}]}, False),
        ({"eventName": [{"anything-but": {"prefix": "MOD"}}]}, False),
        ({"eventName": [{"anything-but": {"prefix": "REM"}}]}, True),
        ({"missing": [{"anything-but": ["x"]}]}, False),
        ({"dynamodb": {"NewImage": {"quantity": {"N": [{"exists": True}]}}}}, True),
        ({"dynamodb": {"NewImage": {"price": {"N": [{"exists": True}]}}}}, False),
        ({"dynamodb": {"NewImage": {"price": {"N": [{"exists": False}]}}}}, True),
        ({"dynamodb": {"OldImage": {"price": {"N": [{"exists": False}]}}}}, True),
        ({"dynamodb": {"NewImage": {"quantity": [{"exists": True}]}}}, False),
        ({"dynamodb": {"NewImage": {"quantity": [{"prefix": "1"}]}}}, False),
    ],
)
def test_pattern__matches_as_lambda_matches(pattern: dict[str, Any], expected: bool) -> None:
    assert matches(pattern) is expected


def test_several_patterns__one_that_matches_is_enough() -> None:
    insert = FilterPattern.parse('{"eventName": ["INSERT"]}')
    modify = FilterPattern.parse('{"eventName": ["MODIFY"]}')

    assert is_delivered(RECORD, [insert, modify])
    assert not is_delivered(RECORD, [insert])


def test_no_pattern__everything_is_delivered() -> None:
    assert is_delivered(RECORD, [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "at least one key"),
        ('{"eventName": "INSERT"}', r'eventName: what to match must stand in a list, such as \["INSERT"\]'),
        ('{"eventName": []}', "must stand in a list"),
        ('{"dynamodb": {}}', "dynamodb: what to match must stand in a list"),
        ('{"dynamodb": {"NewImage": {"q": {"N": [{"numeric": [">", 1]}]}}}}', r"dynamodb\.NewImage\.q\.N: numeric"),
        ('{"dynamodb": {"NewImage": {"q": {"N": [10]}}}}', 'the number 10 .* write "10"'),
        ('{"eventName": [{"anything-but": [1]}]}', "the number 1"),
        ('{"eventName": [{"anything-but": {"numeric": [1]}}]}', "anything-but takes values, or one of"),
        ('{"eventName": [{"anything-but": {"prefix": 1}}]}', "prefix takes a string"),
        ('{"eventName": [{"prefix": ["I"]}]}', "prefix takes a string"),
        ('{"eventName": [{"exists": "yes"}]}', "exists takes true or false"),
        ('{"eventName": [{"wildcard": "I*"}]}', "'wildcard' is not supported here; there are an exact value, prefix"),
        ('{"eventName": [{"prefix": "I", "suffix": "T"}]}', "one operator at a time"),
        ('{"eventName": [{}]}', "one operator at a time"),
        ('{"eventName": [["INSERT"]]}', "must be a string, true, false or null"),
        ('{"$or": [{"eventName": ["INSERT"]}]}', r"\$or is not supported here"),
        ('{"a": ["' + "x" * 4096 + '"]}', "longer than 4096"),
    ],
)
def test_pattern_that_cannot_work__refused_with_its_path_and_reason(text: str, reason: str) -> None:
    with pytest.raises(FilterPatternError, match=reason):
        FilterPattern.parse(text)

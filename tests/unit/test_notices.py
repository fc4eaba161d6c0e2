"""What is to be done about a notice, by the worker as it is now and the item as it is now."""

from types import SimpleNamespace
from typing import Any

import pytest

from aggregation_worker.aggregations.definitions import DefinitionError
from aggregation_worker.dead_letters import Notice
from aggregation_worker.operations.notices import NoticeState, described, state_of
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import client_error
from tests.records import changed, insert, modify, order, remove

BAD: dict[str, Any] = {**order(note={"M": {"weights": {"L": [{"NS": ["1.50", "2"]}]}}}), "quantity": {"S": "ten"}}
NAME = "item_count_by_date"


def resources(item: dict[str, Any] | None, *texts: str) -> Any:
    """A source table with one item, or none."""

    def get_item(**request: Any) -> Any:
        assert request["ConsistentRead"]
        assert request["Key"] == {name: order()[name] for name in ("orderid", "order_date")}
        return {} if item is None else {"Item": item}

    return SimpleNamespace(definitions=definitions(*texts), dynamodb=SimpleNamespace(get_item=get_item))


def notice(raw: Any, aggregation: str = NAME) -> Notice:
    return Notice(raw, (f"{aggregation}: quantity: not a number",), aggregation)


SAME = {**BAD, "note": {"M": {"weights": {"L": [{"NS": ["2", "1.5"]}]}}}}  # in another order and spelling


@pytest.mark.parametrize(
    ("raw", "item", "state"),
    [
        (insert(BAD), BAD, NoticeState.CORRECT),
        (insert(BAD), SAME, NoticeState.CORRECT),
        (modify(order(), BAD), BAD, NoticeState.CORRECT),
        (insert(BAD), order(), NoticeState.OVER),
        (insert(BAD), BAD | {"quantity": {"S": "eleven"}}, NoticeState.OVER),  # of which there is another notice
        (insert(BAD), None, NoticeState.OVER),
        (remove(BAD), None, NoticeState.OVER),
        (remove(BAD), BAD, NoticeState.OVER),  # put again, of which there is another notice
        (insert(order()), order(), NoticeState.REPAIR),
        (insert(order()), None, NoticeState.REPAIR),
        (remove(order()), None, NoticeState.REPAIR),
        (changed(insert(BAD), "dynamodb.Keys"), None, NoticeState.UNREADABLE),
        (changed(modify(order(), BAD), "dynamodb.OldImage"), BAD, NoticeState.UNREADABLE),
        (changed(remove(BAD), "dynamodb.OldImage"), None, NoticeState.UNREADABLE),
        (insert({**BAD, "note": {"N": "ten"}}), BAD, NoticeState.UNREADABLE),
        (insert({**BAD, "note": {"M": 5}}), BAD, NoticeState.UNREADABLE),
        (insert({**BAD, "note": ["S"]}), BAD, NoticeState.UNREADABLE),
    ],
)
def test_state__is_by_worker_and_item_as_they_are_now(raw: Any, item: Any, state: NoticeState) -> None:
    assert state_of(notice(raw), resources(item)) is state


def test_notice_of_an_aggregation_that_is_no_more__is_over() -> None:
    assert state_of(notice(insert(BAD), "retired"), resources(BAD)) is NoticeState.OVER


def test_notice_of_another_aggregation__is_not_asked_about_this_one() -> None:
    by_order = aggregation_text('count = "orders"', name="orders", table="orders", sum=None)

    assert state_of(notice(insert(BAD), "orders"), resources(BAD, aggregation_text(), by_order)) is NoticeState.REPAIR


def test_notice_of_an_aggregation_that_ignores_what_is_removed__is_to_be_discarded() -> None:
    found = resources(order(), aggregation_text('remove = "ignore"'))

    assert state_of(notice(insert(order())), found) is NoticeState.DISCARD


def test_item_that_cannot_be_read__is_told_and_nothing_more() -> None:
    def denied(**_: Any) -> Any:
        raise client_error("AccessDeniedException")

    class NoDefinitions:
        @property
        def definitions(self) -> Any:
            raise DefinitionError("no definitions file")

    unreadable: Any = SimpleNamespace(definitions=definitions(), dynamodb=SimpleNamespace(get_item=denied))
    without: Any = NoDefinitions()

    assert "the item cannot be read: " in described(notice(insert(BAD)), unreadable)
    assert described(notice(insert(BAD)), without) == "what to do cannot be told: no definitions file"

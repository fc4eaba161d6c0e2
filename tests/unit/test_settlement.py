"""What a transaction that did not go through means: the cancellation table of the design, row by row."""

from collections.abc import Mapping
from typing import Any

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from aggregation_worker.ledger.receipts import Posting, receipt_value
from aggregation_worker.ledger.settlement import CommitError, Pause, Settlement, settle
from aggregation_worker.ledger.transactions import Transaction
from tests.definition_texts import aggregation_text, definitions
from tests.faulty_dynamodb import cancelled, client_error
from tests.postings import transaction
from tests.records import CREATED_AT, insert, order

NONE: Mapping[str, Any] = {"Code": "None"}
CONFLICT = {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}
WRONG_TYPE = {"Code": "ValidationError", "Message": "An operand in the update expression has an incorrect data type"}
TOO_LARGE = {"Code": "ValidationError", "Message": "Item size to update has exceeded the maximum allowed size"}
THROTTLED = {"Code": "ThrottlingError", "Message": "Throughput exceeds the current capacity"}
WRONG_SCHEMA = {"Code": "ValidationError", "Message": "The provided key element does not match the schema"}


def exists(*held: Posting) -> dict[str, Any]:
    """The reason of a page that holds the receipts of these postings, and another's."""
    page = {"aggregate": {"S": "a"}, "page": {"S": "p"}, "1.other": {"N": "1"}, "expires_at": {"N": "1"}}
    page |= {posting.receipt: receipt_value(posting.amounts) for posting in held}
    return {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed", "Item": page}


def rows(count: int, records: int = 1) -> Transaction:
    """A transaction of as many rows, each with one page of as many records."""
    return transaction(*(insert(order(item=f"item{number:03}")) for number in range(count) for _ in range(records)))


def posted(settlement: Settlement) -> list[tuple[list[int], Pause]]:
    """What is sent again: the records in each transaction, and after which pause."""
    return [
        (sorted(posting.record for change in again for posting in change.postings), pause)
        for again, pause in settlement.repost
    ]


def refused(settlement: Settlement) -> list[tuple[int, str]]:
    return sorted((posting.record, reason) for posting, reason in settlement.refused)


def duplicates(settlement: Settlement) -> list[int]:
    return sorted(posting.record for posting in settlement.duplicates)


def accounted_for(settlement: Settlement) -> list[int]:
    """Every record in a settlement, whatever becomes of it."""
    again = [
        posting.record for transaction_, _ in settlement.repost for one in transaction_ for posting in one.postings
    ]
    return sorted([*again, *duplicates(settlement), *(record for record, _ in refused(settlement))])


# --- ConditionalCheckFailed: duplicates -----------------------------------------------------------------------------


def test_page_with_some_receipts__posts_the_rest() -> None:
    (change,) = rows(1, records=4)

    settlement = settle((change,), cancelled([exists(change.postings[0], change.postings[2]), NONE]))

    assert duplicates(settlement) == [0, 2]
    assert posted(settlement) == [([1, 3], Pause.NONE)]
    assert settlement.same_request is False


def test_page_with_all_receipts__leaves_nothing_to_post() -> None:
    (change,) = rows(1, records=3)

    settlement = settle((change,), cancelled([exists(*change.postings), NONE]))

    assert duplicates(settlement) == [0, 1, 2]
    assert posted(settlement) == []


def test_duplicates_in_one_row__post_all_that_is_left() -> None:
    planned = rows(3, records=2)

    settlement = settle(planned, cancelled([NONE, NONE, exists(planned[1].postings[0]), NONE, NONE, NONE]))

    assert duplicates(settlement) == [2]
    assert posted(settlement) == [([0, 1, 3, 4, 5], Pause.NONE)]


def test_one_of_two_pages_of_a_row__keeps_the_other() -> None:
    planned = transaction(insert(created_at=CREATED_AT), insert(created_at=CREATED_AT + 1))
    first, _ = planned[0].postings

    settlement = settle(planned, cancelled([exists(first), NONE, NONE]))

    assert duplicates(settlement) == [0]
    assert posted(settlement) == [([1], Pause.NONE)]


def test_page_with_no_receipt__is_posted_again_after_a_pause() -> None:
    planned = rows(1)

    settlement = settle(planned, cancelled([exists(), NONE]))

    assert posted(settlement) == [([0], Pause.THROTTLED)]


@pytest.mark.parametrize("item", [{}, None])
def test_failed_condition_without_the_page__raises(item: object) -> None:
    reason = {"Code": "ConditionalCheckFailed", "Item": item}

    with pytest.raises(CommitError, match="did not return the page"):
        settle(rows(1), cancelled([reason, NONE]))


# --- TransactionConflict --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_page", [True, False])
def test_row_in_conflict__is_posted_apart_from_the_cold_ones(on_page: bool) -> None:
    reasons = [CONFLICT, NONE] if on_page else [NONE, CONFLICT]

    settlement = settle(rows(4), cancelled([NONE, NONE, *reasons, NONE, NONE, NONE, NONE]))

    assert posted(settlement) == [([1], Pause.CONFLICT), ([0, 2], Pause.NONE), ([3], Pause.NONE)]
    assert settlement.conflicts == 1
    assert settlement.same_request is False


def test_hot_row_among_49_cold_ones__delays_none_of_them() -> None:
    """The cold ones go in halves: the next conflict cancels, and costs, half as much."""
    settlement = settle(rows(50), cancelled([NONE, CONFLICT, *[NONE] * 98]))

    assert posted(settlement) == [
        ([0], Pause.CONFLICT),
        (list(range(1, 26)), Pause.NONE),
        (list(range(26, 50)), Pause.NONE),
    ]


def test_duplicate_among_49_new_ones__leaves_them_together() -> None:
    planned = rows(50)

    settlement = settle(planned, cancelled([exists(*planned[0].postings), *[NONE] * 99]))

    assert posted(settlement) == [(list(range(1, 50)), Pause.NONE)]


def test_several_rows_in_conflict__are_each_posted_alone() -> None:
    settlement = settle(rows(3), cancelled([CONFLICT, CONFLICT, NONE, CONFLICT, NONE, NONE]))

    assert posted(settlement) == [([0], Pause.CONFLICT), ([1], Pause.CONFLICT), ([2], Pause.NONE)]
    assert settlement.conflicts == 3


def test_conflict_of_the_whole_request__repeats_it_after_a_pause() -> None:
    settlement = settle(rows(2), client_error("TransactionConflictException"))

    assert posted(settlement) == [([0, 1], Pause.CONFLICT)]
    assert settlement.conflicts == 1
    assert settlement.same_request is False


# --- Throttling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["ProvisionedThroughputExceeded", "ThrottlingError", "RequestLimitExceeded"])
def test_throttled_row__is_posted_apart_after_a_growing_pause(code: str) -> None:
    settlement = settle(rows(3), cancelled([NONE, NONE, NONE, code, NONE, NONE]))

    assert posted(settlement) == [([1], Pause.THROTTLED), ([0, 2], Pause.NONE)]
    assert settlement.same_request is False


def test_row_throttled_and_in_conflict__waits_the_longer_pause() -> None:
    settlement = settle(rows(1), cancelled([CONFLICT, THROTTLED]))

    assert posted(settlement) == [([0], Pause.THROTTLED)]
    assert settlement.conflicts == 1


@pytest.mark.parametrize(
    "code",
    [
        *(
            "ThrottlingException",
            "ProvisionedThroughputExceededException",
            "RequestLimitExceeded",
            "InternalServerError",
        ),
        *("TransactionInProgressException", "ServiceUnavailable"),
    ],
)
def test_throttled_request__is_repeated_after_a_growing_pause(code: str) -> None:
    planned = rows(2)

    settlement = settle(planned, client_error(code))

    assert settlement.repost == [(planned, Pause.THROTTLED)]
    assert settlement.same_request is True


# --- ValidationError ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [WRONG_TYPE, {"Code": "ItemCollectionSizeLimitExceeded", "Message": "10 GB"}])
def test_refused_row__parks_its_records_only(reason: dict[str, str]) -> None:
    settlement = settle(rows(3, records=2), cancelled([NONE, NONE, NONE, reason, NONE, NONE]))

    assert refused(settlement) == [(2, reason["Message"]), (3, reason["Message"])]
    assert posted(settlement) == [([0, 1, 4, 5], Pause.NONE)]


def test_refused_row_of_two_pages__parks_the_records_of_both() -> None:
    planned = transaction(insert(created_at=CREATED_AT), insert(created_at=CREATED_AT + 1))

    settlement = settle(planned, cancelled([NONE, NONE, WRONG_TYPE]))

    assert refused(settlement) == [(0, WRONG_TYPE["Message"]), (1, WRONG_TYPE["Message"])]


def test_refused_page__leaves_the_rows_other_pages() -> None:
    planned = transaction(insert(created_at=CREATED_AT), insert(created_at=CREATED_AT + 1))

    settlement = settle(planned, cancelled([TOO_LARGE, NONE, NONE]))

    assert refused(settlement) == [(0, TOO_LARGE["Message"])]
    assert posted(settlement) == [([1], Pause.NONE)]


def test_refused_shared_row__is_posted_by_aggregation() -> None:
    shared = definitions(aggregation_text(), aggregation_text('count = "orders"', name="orders", sum=None))
    planned = transaction(insert(), insert(order(item="item312")), defined=shared)

    settlement = settle(planned, cancelled([NONE, NONE, WRONG_TYPE, NONE, NONE, NONE]))

    assert refused(settlement) == []
    assert posted(settlement) == [([0], Pause.NONE), ([0], Pause.NONE), ([1, 1], Pause.NONE)]
    names = [
        [posting.aggregate.aggregation.name for one in again for posting in one.postings]
        for again, _ in settlement.repost[:2]
    ]
    assert names == [["item_count_by_date"], ["orders"]]


def test_row_refused_with_duplicates__is_tried_without_them() -> None:
    (change,) = rows(1, records=2)

    settlement = settle((change,), cancelled([exists(change.postings[0]), WRONG_TYPE]))

    assert duplicates(settlement) == [0]
    assert refused(settlement) == []
    assert posted(settlement) == [([1], Pause.NONE)]


def test_row_refused_though_all_are_duplicates__parks_nothing() -> None:
    (change,) = rows(1, records=2)

    settlement = settle((change,), cancelled([exists(*change.postings), WRONG_TYPE]))

    assert duplicates(settlement) == [0, 1]
    assert (refused(settlement), posted(settlement)) == ([], [])


def test_refused_without_a_message__is_parked_with_the_code() -> None:
    settlement = settle(rows(1), cancelled([NONE, "ValidationError"]))

    assert refused(settlement) == [(0, "ValidationError")]


# --- Several reasons in one transaction -----------------------------------------------------------------------------


def test_every_reason_at_once__settles_each_row_by_its_own() -> None:
    planned = rows(6, records=2)
    reasons = [
        *(exists(planned[0].postings[1]), NONE),
        *(NONE, CONFLICT),
        *(THROTTLED, NONE),
        *(NONE, WRONG_TYPE),
        *(TOO_LARGE, NONE),
        *(NONE, NONE),
    ]

    settlement = settle(planned, cancelled(reasons))

    assert duplicates(settlement) == [1]
    assert refused(settlement) == [
        *((record, WRONG_TYPE["Message"]) for record in (6, 7)),
        *((record, TOO_LARGE["Message"]) for record in (8, 9)),
    ]
    assert posted(settlement) == [([2, 3], Pause.CONFLICT), ([4, 5], Pause.THROTTLED), ([0, 10, 11], Pause.NONE)]
    assert accounted_for(settlement) == list(range(12))


def test_duplicate_and_conflict_in_one_row__settles_both() -> None:
    planned = transaction(insert(created_at=CREATED_AT), insert(created_at=CREATED_AT + 1))

    settlement = settle(planned, cancelled([exists(planned[0].postings[0]), CONFLICT, NONE]))

    assert duplicates(settlement) == [0]
    assert posted(settlement) == [([1], Pause.CONFLICT)]


def test_cancellation_without_a_reason__is_posted_after_a_pause() -> None:
    settlement = settle(rows(2), cancelled([NONE] * 4))

    assert posted(settlement) == [([0, 1], Pause.THROTTLED)]


@pytest.mark.parametrize("reason", [{}, {"Code": None}, {"Code": ""}])
def test_reason_without_a_code__is_none(reason: dict[str, Any]) -> None:
    settlement = settle(rows(2), cancelled([reason, reason, NONE, CONFLICT]))

    assert posted(settlement) == [([1], Pause.CONFLICT), ([0], Pause.NONE)]


# --- What raises ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["AccessDenied", "ResourceNotFound", "DuplicateItem", "SomethingNew"])
def test_unknown_reason__raises_it(code: str) -> None:
    with pytest.raises(CommitError, match=code):
        settle(rows(2), cancelled([NONE, NONE, NONE, {"Code": code, "Message": "why"}]))


@pytest.mark.parametrize("reasons", [[], [NONE], [NONE] * 3], ids=["none of two", "one of two", "three of two"])
def test_reasons_that_do_not_match_the_actions__raise(reasons: list[Mapping[str, Any]]) -> None:
    with pytest.raises(CommitError, match=f"2 actions came with {len(reasons)} reasons"):
        settle(rows(1), cancelled(reasons))


@pytest.mark.parametrize(
    "code",
    [
        *("AccessDeniedException", "ResourceNotFoundException", "UnrecognizedClientException", "ExpiredTokenException"),
        *("IdempotentParameterMismatchException", "SerializationException", "SomethingNew"),
    ],
)
def test_request_that_can_never_work__raises_its_code(code: str) -> None:
    with pytest.raises(CommitError, match=code):
        settle(rows(1), client_error(code))


@pytest.mark.parametrize(
    "message", [WRONG_SCHEMA["Message"], "Type mismatch for key item_number expected: N actual: S"]
)
@pytest.mark.parametrize("whole", [True, False])
def test_wrong_key_schema__raises(whole: bool, message: str) -> None:
    error = (
        client_error("ValidationException", message)
        if whole
        else cancelled([NONE, {"Code": "ValidationError", "Message": message}])
    )

    with pytest.raises(CommitError, match="another key than the definitions say"):
        settle(rows(1), error)


def test_cancellation_without_any_reasons__raises() -> None:
    with pytest.raises(CommitError, match="2 actions came with 0 reasons"):
        settle(rows(1), client_error("TransactionCanceledException"))


def test_error_without_a_status__raises_its_code() -> None:
    error = ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, "TransactWriteItems")

    with pytest.raises(CommitError, match="AccessDeniedException"):
        settle(rows(1), error)


def test_refused_request_without_message__is_parked_by_code() -> None:
    error = ClientError({"Error": {"Code": "ValidationException"}}, "TransactWriteItems")

    ((_, reason),) = settle(rows(1), error).refused

    assert "ValidationException" in reason


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.NoRegionError(),
        botocore.exceptions.ParamValidationError(report="bad"),
    ],
)
def test_client_that_cannot_send__raises(error: Exception) -> None:
    with pytest.raises(CommitError, match="cannot be called"):
        settle(rows(1), error)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), ResponseParserError("not JSON")])
def test_error_that_is_not_an_answer__is_raised_itself(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        settle(rows(1), error)

    assert raised.value is error


# --- Lost answers ---------------------------------------------------------------------------------------------------

ENDPOINT = "http://127.0.0.1"


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.EndpointConnectionError(endpoint_url=ENDPOINT),
        botocore.exceptions.ConnectTimeoutError(endpoint_url=ENDPOINT),
        botocore.exceptions.ReadTimeoutError(endpoint_url=ENDPOINT),
        botocore.exceptions.ConnectionClosedError(endpoint_url=ENDPOINT),
        botocore.exceptions.HTTPClientError(error="reset"),
        client_error("InternalServerError", status=500),
        client_error("SomethingNew", status=500),
        client_error("", status=503),
        ClientError({"ResponseMetadata": {"HTTPStatusCode": 502}}, "TransactWriteItems"),  # type: ignore[typeddict-item]  # part of an answer
    ],
)
def test_lost_answer__sends_the_same_request_again(error: Exception) -> None:
    planned = rows(2)

    settlement = settle(planned, error)

    assert settlement.repost == [(planned, Pause.THROTTLED)]
    assert settlement.same_request is True
    assert settlement.conflicts == 0


# --- A ValidationException of the whole request ---------------------------------------------------------------------

REFUSED = client_error("ValidationException", "Item size has exceeded the maximum allowed size")


def test_refused_request_of_several_rows__is_halved() -> None:
    settlement = settle(rows(5), REFUSED)

    assert posted(settlement) == [([0, 1], Pause.NONE), ([2, 3, 4], Pause.NONE)]
    assert settlement.same_request is False


def test_refused_request_of_one_row__is_posted_page_by_page() -> None:
    planned = transaction(*(insert(created_at=CREATED_AT + second) for second in range(3)))

    settlement = settle(planned, REFUSED)

    assert posted(settlement) == [([0], Pause.NONE), ([1], Pause.NONE), ([2], Pause.NONE)]


def test_refused_request_of_shared_row__is_posted_by_aggregation() -> None:
    shared = definitions(aggregation_text(), aggregation_text('count = "orders"', name="orders", sum=None))
    planned = transaction(insert(), insert(created_at=CREATED_AT + 1), defined=shared)

    settlement = settle(planned, REFUSED)

    assert posted(settlement) == [([0, 1], Pause.NONE), ([0, 1], Pause.NONE)]


def test_refused_request_of_one_page__parks_its_records() -> None:
    settlement = settle(rows(1, records=3), REFUSED)

    assert refused(settlement) == [(record, REFUSED.response["Error"]["Message"]) for record in range(3)]
    assert posted(settlement) == []


@pytest.mark.parametrize("guilty", range(7))
def test_halving__comes_down_to_the_guilty_row(guilty: int) -> None:
    waiting = [rows(7)]
    sent = 0
    accepted: list[int] = []
    parked: list[int] = []

    while waiting:
        current = waiting.pop()
        sent += 1
        records = [posting.record for change in current for posting in change.postings]
        if guilty not in records:
            accepted += records
            continue
        settlement = settle(current, REFUSED)
        parked += [record for record, _ in refused(settlement)]
        waiting += [again for again, _ in settlement.repost]

    assert parked == [guilty]
    assert sorted([*accepted, *parked]) == list(range(7))
    assert sent <= 7

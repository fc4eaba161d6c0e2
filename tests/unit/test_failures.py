"""What an error of a write means, in every form in which AWS and the client tell it."""

from typing import Any

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from aggregation_worker.ledger.failures import CommitError, Failure, Kind, Throttle, failure_of
from tests.faulty_dynamodb import cancelled, client_error

NONE = {"Code": "None"}
CONFLICT = {"Code": "TransactionConflict", "Message": "Transaction is ongoing for the item"}
FAILED = {"Code": "ConditionalCheckFailed", "Message": "The conditional request failed"}
WRONG_TYPE = {"Code": "ValidationError", "Message": "An operand in the update expression has an incorrect data type"}
THROTTLED = {"Code": "ThrottlingError", "Message": "Throughput exceeds the current capacity"}
ROW = {"item_number": {"S": "item123"}}
ENDPOINT = "http://127.0.0.1"


# --- Conditions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [ROW, {}])
def test_failed_condition_of_an_update__tells_the_row_as_it_is(item: dict[str, Any]) -> None:
    returned: Any = {"Item": item} if item else {}

    failure = failure_of(client_error("ConditionalCheckFailedException", **returned))

    assert failure == Failure(Kind.ROW_CHANGED, item=item)


@pytest.mark.parametrize("page", [NONE, FAILED, WRONG_TYPE, CONFLICT], ids=lambda page: page["Code"])
def test_failed_condition_of_a_row__comes_before_those_of_pages(page: dict[str, Any]) -> None:
    failure = failure_of(cancelled([page, {**FAILED, "Item": ROW}]))

    assert (failure.kind, failure.item) == (Kind.ROW_CHANGED, ROW)


def test_failed_condition_of_a_missing_row__tells_an_empty_one() -> None:
    assert failure_of(cancelled([NONE, FAILED])).item == {}


@pytest.mark.parametrize("row", [NONE, WRONG_TYPE], ids=lambda row: row["Code"])
def test_failed_condition_of_a_page__tells_that_it_has_changed(row: dict[str, Any]) -> None:
    assert failure_of(cancelled([NONE, {**FAILED, "Item": {}}, row])) == Failure(Kind.PAGE_CHANGED)


@pytest.mark.parametrize(
    ("reasons", "kind"),
    [
        ([FAILED, CONFLICT], Kind.CONFLICT),
        ([FAILED, CONFLICT, NONE], Kind.CONFLICT),
        ([FAILED, THROTTLED], Kind.THROTTLED),
    ],
)
def test_page_in_conflict__is_not_yet_told_as_changed(reasons: list[Any], kind: Kind) -> None:
    assert failure_of(cancelled(reasons)).kind is kind


# --- Conflicts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["TransactionConflictException", "ReplicatedWriteConflictException"])
def test_conflict_of_a_request__is_one(code: str) -> None:
    assert failure_of(client_error(code)) == Failure(Kind.CONFLICT, conflicts=1, message="")


def test_conflicts_of_a_transaction__are_counted_action_by_action() -> None:
    assert failure_of(cancelled([CONFLICT, NONE, CONFLICT])) == Failure(Kind.CONFLICT, conflicts=2)


@pytest.mark.parametrize("reason", ["None", {}, {"Code": None}, {"Code": ""}], ids=str)
def test_cancelled_for_no_reason__is_tried_again_like_a_conflict(reason: Any) -> None:
    assert failure_of(cancelled([reason, reason])) == Failure(Kind.CONFLICT)


# --- Throttling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        *("ThrottlingException", "ProvisionedThroughputExceededException", "RequestLimitExceeded", "Throttling"),
        *("InternalServerError", "ServiceUnavailable", "LimitExceededException"),
    ],
)
def test_throttled_request__is_told(code: str) -> None:
    assert failure_of(client_error(code)) == Failure(Kind.THROTTLED)


@pytest.mark.parametrize("code", ["ProvisionedThroughputExceeded", "ThrottlingError", "RequestLimitExceeded"])
def test_throttled_action__is_told_with_the_conflicts_beside_it(code: str) -> None:
    assert failure_of(cancelled([CONFLICT, code])) == Failure(Kind.THROTTLED, conflicts=1)


@pytest.mark.parametrize(
    ("reason", "throttle"),
    [
        ("TableWriteKeyRangeThroughputExceeded", Throttle.KEY),
        ("IndexWriteKeyRangeThroughputExceeded", Throttle.KEY),
        ("TableWriteProvisionedThroughputExceeded", Throttle.TABLE),
        ("TableWriteMaxOnDemandThroughputExceeded", Throttle.TABLE),
        ("IndexWriteProvisionedThroughputExceeded", Throttle.TABLE),
        ("TableWriteAccountLimitExceeded", Throttle.ACCOUNT),
    ],
)
@pytest.mark.parametrize("name", ["ThrottlingReasons", "throttlingReasons"])
def test_throttling_reasons__tell_whose_limit_it_was(name: str, reason: str, throttle: Throttle) -> None:
    reasons: Any = {name: [{"reason": reason, "resource": "arn:aws:dynamodb:us-east-1:123456789012:table/totals"}]}
    of_a_transaction = cancelled([NONE, THROTTLED])
    of_a_transaction.response |= reasons

    assert failure_of(client_error("ThrottlingException", **reasons)).throttle is throttle
    assert failure_of(client_error("ProvisionedThroughputExceededException", **reasons)).throttle is throttle
    assert failure_of(of_a_transaction).throttle is throttle


@pytest.mark.parametrize(
    "error",
    [
        client_error("SomethingNew", status=500),
        client_error("", status=503),
        ClientError({"ResponseMetadata": {"HTTPStatusCode": 502}}, "UpdateItem"),  # type: ignore[typeddict-item]  # part of an answer
    ],
    ids=["new code", "no code", "no error"],
)
def test_error_of_the_service__is_tried_again_like_throttling(error: Exception) -> None:
    assert failure_of(error) == Failure(Kind.THROTTLED)


# --- No answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.EndpointConnectionError(endpoint_url=ENDPOINT),
        botocore.exceptions.ConnectTimeoutError(endpoint_url=ENDPOINT),
        botocore.exceptions.ReadTimeoutError(endpoint_url=ENDPOINT),
        botocore.exceptions.ConnectionClosedError(endpoint_url=ENDPOINT),
        botocore.exceptions.HTTPClientError(error="reset"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_request_without_an_answer__may_be_in_or_not(error: Exception) -> None:
    assert failure_of(error) == Failure(Kind.NO_ANSWER)


# --- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [WRONG_TYPE, {"Code": "ItemCollectionSizeLimitExceeded", "Message": "10 GB"}])
def test_refused_action__is_told_in_dynamodbs_words(reason: dict[str, str]) -> None:
    assert failure_of(cancelled([NONE, reason])) == Failure(Kind.REFUSED, reason["Message"])


@pytest.mark.parametrize("code", ["ValidationException", "ItemCollectionSizeLimitExceededException"])
def test_refused_request__is_told_in_dynamodbs_words(code: str) -> None:
    assert failure_of(client_error(code, "Number overflow")) == Failure(Kind.REFUSED, "Number overflow")


def test_refusal_without_words__is_told_with_its_code() -> None:
    whole = ClientError({"Error": {"Code": "ValidationException"}}, "UpdateItem")

    assert failure_of(cancelled([NONE, "ValidationError"])).message == "ValidationError"
    assert "ValidationException" in failure_of(whole).message


# --- What raises ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        "The provided key element does not match the schema",
        "Type mismatch for key item_number expected: N actual: S",
        "One or more parameter values were invalid: Type mismatch for Index Key quantity Expected: S Actual: N "
        "IndexName: by-quantity",
        "One of the required keys was not given a value",
        "The number of conditions on the keys is invalid",
        "Query condition missed key schema element: page",
        "One or more parameter values were invalid: Condition parameter type does not match schema type",
    ],
)
def test_wrong_schema__raises_since_it_refuses_every_record_alike(message: str) -> None:
    for error in (
        client_error("ValidationException", message),
        cancelled([NONE, {"Code": "ValidationError", "Message": message}]),
        cancelled([{"Code": "ValidationError", "Message": message}, {**FAILED, "Item": ROW}]),
    ):
        with pytest.raises(CommitError, match="other keys or indexes than the definitions say"):
            failure_of(error)


@pytest.mark.parametrize(
    "code",
    [
        *("AccessDeniedException", "ResourceNotFoundException", "UnrecognizedClientException", "ExpiredTokenException"),
        *("IdempotentParameterMismatchException", "SerializationException", "SomethingNew"),
    ],
)
def test_request_that_can_never_work__raises_its_code(code: str) -> None:
    with pytest.raises(CommitError, match=code):
        failure_of(client_error(code))


@pytest.mark.parametrize("code", ["AccessDenied", "ResourceNotFound", "DuplicateItem", "SomethingNew"])
def test_unknown_reason__raises_it(code: str) -> None:
    with pytest.raises(CommitError, match=f"{code}: why"):
        failure_of(cancelled([NONE, {"Code": code, "Message": "why"}]))


def test_cancellation_without_any_reasons__raises() -> None:
    with pytest.raises(CommitError, match="TransactionCanceledException"):
        failure_of(client_error("TransactionCanceledException"))


@pytest.mark.parametrize(
    "error",
    [
        botocore.exceptions.NoCredentialsError(),
        botocore.exceptions.NoRegionError(),
        botocore.exceptions.ParamValidationError(report="bad"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_client_that_cannot_send__raises(error: Exception) -> None:
    with pytest.raises(CommitError, match="cannot be called"):
        failure_of(error)


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), ResponseParserError("not JSON")])
def test_error_that_is_not_an_answer__is_raised_itself(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        failure_of(error)

    assert raised.value is error

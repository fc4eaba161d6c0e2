"""Looking for a batch in the ledger before it is sent: an economy that may be wrong, but never makes totals wrong."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from botocore.exceptions import ReadTimeoutError

from aggregation_worker.ledger.commit import Committer, Deadline, Outcome
from aggregation_worker.ledger.receipts import Posting
from aggregation_worker.ledger.redelivery import FEWEST_TRANSACTIONS, SAMPLE, PageKey, without_known
from aggregation_worker.ledger.transactions import Transaction
from tests.faulty_dynamodb import LEDGER, Clock, FaultyDynamoDB, ImmediateExecutor, client_error
from tests.postings import REFERENCE, transactions
from tests.records import CREATED_AT, DAY, insert, order

# A row and its page are two actions, so this many rows fill the fewest transactions that are looked for.
ROWS = 50 * (FEWEST_TRANSACTIONS - 1) + 1


class Ledger:
    """Pages in memory that remembers which of them were asked for."""

    def __init__(self, held: Sequence[Transaction] = ()) -> None:
        self.pages: dict[PageKey, set[str]] = {}
        self.asked: list[list[PageKey]] = []
        for posting in postings_of(held):
            self.pages.setdefault((posting.aggregate.name, posting.page), set()).add(posting.receipt)

    def read(self, keys: Sequence[PageKey]) -> dict[PageKey, set[str]]:
        self.asked.append(list(keys))
        return {key: self.pages[key] for key in keys if key in self.pages}


def postings_of(planned: Sequence[Transaction]) -> list[Posting]:
    return [posting for transaction in planned for change in transaction for posting in change.postings]


def orders(count: int, *, quantity: int = 1) -> list[Any]:
    return [insert(order(item=f"item{number:03}", quantity=quantity)) for number in range(count)]


def records(postings: Sequence[Posting]) -> list[int]:
    return sorted(posting.record for posting in postings)


# --- What is read, and what follows from it -------------------------------------------------------------------------


def test_batch_that_is_new__costs_one_look_at_a_few_pages() -> None:
    planned = transactions(*orders(ROWS))
    ledger = Ledger()

    left, known = without_known(planned, ledger.read)

    assert left == planned
    assert known == []
    assert len(ledger.asked) == 1
    assert 1 < len(ledger.asked[0]) <= SAMPLE


def test_batch_that_is_in__leaves_nothing_to_send() -> None:
    raws = orders(ROWS)

    left, known = without_known(transactions(*raws), Ledger(transactions(*raws)).read)

    assert left == []
    assert records(known) == list(range(ROWS))


@pytest.mark.parametrize("in_already", [range(10, ROWS), range(50), range(ROWS - 30, ROWS)], ids=str)
def test_batch_that_is_partly_in__leaves_the_rest_to_send(in_already: range) -> None:
    raws = orders(ROWS)

    left, known = without_known(
        transactions(*raws), Ledger(transactions(*raws[in_already.start : in_already.stop])).read
    )

    assert records(known) == list(in_already)
    assert records(postings_of(left)) == sorted(set(range(ROWS)) - set(in_already))


def test_other_receipts_on_a_page__are_not_a_redelivery() -> None:
    raws = orders(ROWS)
    ledger = Ledger(transactions(*orders(ROWS)))  # records of the same groups and second, but not these

    left, known = without_known(transactions(*raws), ledger.read)

    assert records(postings_of(left)) == list(range(ROWS))
    assert known == []
    assert len(ledger.asked) == 1


def test_one_receipt_that_no_look_met__is_left_to_the_condition() -> None:
    raws = orders(ROWS)
    planned = transactions(*raws)
    ledger = Ledger(planned)
    without_known(planned, ledger.read)
    looked_at = set(ledger.asked[0])
    hidden = next(p for p in postings_of(planned) if (p.aggregate.name, p.page) not in looked_at)

    left, known = without_known(planned, Ledger(transactions(raws[hidden.record])).read)

    assert records(postings_of(left)) == list(range(ROWS))
    assert known == []


def test_no_transactions__read_nothing_that_is_not_there() -> None:
    assert without_known([], Ledger().read) == ([], [])


# --- With a committer -----------------------------------------------------------------------------------------------


class Delivered:
    """A committer over an in-memory DynamoDB whose reads a test can break."""

    def __init__(self) -> None:
        self.client = FaultyDynamoDB(REFERENCE)
        self.clock = Clock()
        self.reads: list[int] = []
        self.on_read: Callable[[], Any] = lambda: None
        read = self.client.batch_get_item

        def batch_get_item(*, RequestItems: Any) -> Any:  # noqa: N803 - boto3's name
            self.reads.append(len(RequestItems[LEDGER]["Keys"]))
            return self.on_read() or read(RequestItems=RequestItems)

        self.client.batch_get_item = batch_get_item  # type: ignore[method-assign]  # a fake's method

    def deliver(self, raws: Sequence[Any], *, seconds: float = 60.0) -> Outcome:
        client: Any = self.client
        committer = Committer(
            client, LEDGER, 60, ImmediateExecutor(), clock=self.clock, sleep=self.clock.sleep, now=lambda: CREATED_AT
        )
        end = self.clock.time + seconds
        self.client.requests.clear()
        self.reads.clear()
        return committer.commit(transactions(*raws), Deadline(lambda: end - self.clock.time, 5.0, 1.0))

    def quantities(self, count: int) -> set[int]:
        target = REFERENCE.aggregations[0].table
        return {int(self.client.total(target, "quantity", f"item{number:03}", DAY)) for number in range(count)}


def raise_(error: Exception) -> Any:
    raise error


def test_redelivered_batch__is_not_written_again() -> None:
    delivered, raws = Delivered(), orders(ROWS, quantity=7)
    delivered.deliver(raws)

    outcome = delivered.deliver(raws)

    assert records(outcome.duplicates) == list(range(ROWS))
    assert delivered.client.requests == []
    assert delivered.quantities(ROWS) == {7}


def test_batch_with_one_transaction_committed__sends_the_others() -> None:
    delivered, raws = Delivered(), orders(ROWS, quantity=7)
    delivered.deliver(raws[:50])

    outcome = delivered.deliver(raws)

    assert records(outcome.duplicates) == list(range(50))
    assert records(outcome.applied) == list(range(50, ROWS))
    assert outcome.transactions == len(delivered.client.requests)
    assert delivered.quantities(ROWS) == {7}


def test_more_pages_than_one_request_can_read__are_all_read() -> None:
    delivered, raws = Delivered(), orders(250)
    delivered.deliver(raws)

    delivered.deliver(raws)

    assert delivered.reads[1:] == [100, 100, 50]
    assert delivered.client.requests == []


@pytest.mark.parametrize(
    "error",
    [
        client_error("ProvisionedThroughputExceededException"),
        client_error("AccessDeniedException"),
        ReadTimeoutError(endpoint_url="http://127.0.0.1"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_look_that_fails__leaves_it_to_the_conditions(error: Exception) -> None:
    delivered, raws = Delivered(), orders(ROWS, quantity=7)
    delivered.deliver(raws)
    delivered.on_read = lambda: raise_(error)

    outcome = delivered.deliver(raws)

    assert records(outcome.duplicates) == list(range(ROWS))
    assert delivered.client.requests != []
    assert delivered.quantities(ROWS) == {7}


def test_look_that_finds_nothing__leaves_it_to_the_conditions() -> None:
    delivered, raws = Delivered(), orders(ROWS, quantity=7)
    delivered.deliver(raws)
    delivered.on_read = lambda: {"Responses": {LEDGER: []}, "UnprocessedKeys": {}}

    outcome = delivered.deliver(raws)

    assert records(outcome.duplicates) == list(range(ROWS))
    assert delivered.quantities(ROWS) == {7}


def test_receipts_written_after_the_look__fail_the_conditions() -> None:
    delivered, raws = Delivered(), orders(ROWS, quantity=7)
    others = Delivered()
    others.client = delivered.client

    def another_worker_is_quicker() -> Any:
        delivered.on_read = lambda: None
        answer: Any = {"Responses": {LEDGER: []}, "UnprocessedKeys": {}}
        others.deliver(raws)
        return answer

    delivered.on_read = another_worker_is_quicker

    outcome = delivered.deliver(raws)

    assert records(outcome.duplicates) == list(range(ROWS))
    assert delivered.quantities(ROWS) == {7}


def test_small_batch__is_sent_without_a_look() -> None:
    delivered = Delivered()

    delivered.deliver(orders(50))

    assert delivered.reads == []


def test_time_that_is_up__is_not_spent_on_a_look() -> None:
    delivered = Delivered()

    outcome = delivered.deliver(orders(ROWS), seconds=5.0)

    assert delivered.reads == []
    assert records(outcome.unsettled) == list(range(ROWS))

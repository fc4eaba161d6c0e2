"""Histories that once broke the promise, each as it was found."""

import pytest

from aggregation_worker.batch import RecordOutcome
from tests.model.hostile_world import World
from tests.model.in_memory_dynamodb import Dialect
from tests.model.orders import Order
from tests.model.scheduler import Call


@pytest.mark.parametrize(
    ("fate", "outcome"), [("throttled", RecordOutcome.RETRIED), ("refused_whole", RecordOutcome.PARKED)]
)
def test_unsettled_record_twice_in_a_batch__neither_is_done(fate: str, outcome: RecordOutcome) -> None:
    """It was posted once, and the second was reported as a duplicate whatever became of the first."""
    with World() as world:
        world.put("1", Order())
        run = world.deliver([world.history[0], world.history[0]])

        while not run.is_over:
            call = world.calls()[0]
            assert isinstance(call.point, Call)
            world.step(call, fate if call.point.operation == "update_item" else "carried_out")

        assert run.result is not None
        assert run.result.outcomes == (outcome, outcome)
        world.drain()
        world.check_totals()


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("read", ["carried_out", "request_lost"])
def test_counted_record_at_a_full_total__is_not_counted_twice(dialect: Dialect, read: str) -> None:
    """A sum that does not fit must not hide that the receipt is there: the record would be parked though it is counted.

    DynamoDB Local tells of the sum alone where a transaction meets both.
    """
    with World(dialect) as world:
        world.put("1", Order())
        world.put("2", Order(quantity="9" * 38))
        world.drain()
        before = world.totals()

        run = world.deliver(world.history[:1])
        for call in world.calls():
            world.step(call, read)
        world.finish(run)

        assert run.result is not None
        assert run.result.outcomes == (RecordOutcome.DUPLICATE,)
        assert world.totals() == before


def test_item_that_cannot_be_used_again__is_told_of_again() -> None:
    """What was told of the first time was over in between, though the item is what it was then."""
    with World() as world:
        for quantity in (None, "1", None):
            world.put("1", Order(quantity=quantity))
            world.drain()
            world.check_totals()
        told_of = {event_id for body in world.messages.values() for event_id, _ in world._told_in(body)}
        assert told_of == {world.history[-1]["eventID"]}

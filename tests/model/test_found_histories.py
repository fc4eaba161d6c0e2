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
            world.step(call, fate if call.point.operation == "transact_write_items" else "carried_out")

        assert run.result is not None
        assert run.result.outcomes == (outcome, outcome)
        world.drain()
        world.check_totals()


@pytest.mark.parametrize(
    ("dialect", "outcome"), [(Dialect.AWS, RecordOutcome.DUPLICATE), (Dialect.LOCAL, RecordOutcome.PARKED)]
)
def test_counted_record_at_a_full_total__is_not_counted_twice(dialect: Dialect, outcome: RecordOutcome) -> None:
    """AWS tells of the receipt and of the sum that does not fit; DynamoDB Local of the sum alone.

    So there the record is parked although it is counted: needlessly, but no total is touched.
    """
    with World(dialect) as world:
        world.put("1", Order())
        world.put("2", Order(quantity="9" * 38))
        world.drain()
        before = world.totals()

        run = world.deliver(world.history[:1])
        world.finish(run)

        assert run.result is not None
        assert run.result.outcomes == (outcome,)
        assert world.totals() == before

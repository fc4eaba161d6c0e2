"""Histories that once broke the promise, each as it was found."""

import pytest

from tests.model.hostile_world import World
from tests.model.orders import Order
from tests.model.scheduler import Call
from worker.batch import RecordOutcome


@pytest.mark.parametrize(
    ("fate", "outcome"), [("throttled", RecordOutcome.RETRIED), ("refused_whole", RecordOutcome.PARKED)]
)
def test_record_twice_in_a_batch_and_not_settled__neither_is_reported_as_done(
    fate: str, outcome: RecordOutcome
) -> None:
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

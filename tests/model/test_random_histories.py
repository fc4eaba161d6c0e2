"""Random histories, delivered by an adversary: every total stays exact, and nothing done is missing.

Hypothesis looks for a short history that breaks the promise and shrinks it; the long histories mix hundreds of records
and several invocations at once. A failure prints what repeats it.
"""

import random
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.model.hostile_world import FATES, Limits, World
from tests.model.in_memory_dynamodb import Dialect
from tests.model.orders import Order
from tests.sizes import chosen, examples, seeds

# Few enough that changes meet in the same totals, in the same rows and on the same pages.
ORDER_IDS = ("1", "2", "3", "4")
QUANTITIES = ("1", "2", "10", "0", "-3", "0.1", "2.50", "12345678901234567890.5", None)
# With these, sums get more digits than a DynamoDB number has. On AWS only: DynamoDB Local tells of that before it tells
# that a condition failed, so that a counted record, delivered again to a total that can hold no more, is parked.
HUGE_QUANTITIES = ("9" * 38, "1e37", "-1e37", "1e-10")
NOTE = "x" * 2500
LIMITS = (
    Limits(message_bytes=3000),
    Limits(1, 1, 3000),
    Limits(2, 1, 3000),
    Limits(3, 2, 3000),
    Limits(2, 2, 3000, one_position_a_second=True),
)
FAULTS = tuple(fate for fate in FATES if fate != "carried_out")
# After these an invocation is over: in a long history they must not end all before it has come to anything.
FATAL = ("denied", "killed_before", "killed_after")
MIXED_FAULTS = tuple(fate for fate in FAULTS if fate not in FATAL) * 5 + FATAL

orders = st.builds(
    Order,
    item=st.sampled_from(("item123", "item312")),
    day=st.sampled_from(("2024-07-15", "2024-08-01")),
    customer=st.sampled_from(("c1", "c2", None)),
    paid=st.booleans(),
    quantity=st.sampled_from(QUANTITIES * 3 + HUGE_QUANTITIES),
    price=st.sampled_from(("1", "0.3", "19.99")),
    note=st.sampled_from(("", "", "", NOTE)),
)
places = st.integers(0, 50)
choices = st.integers(0, 2**16)
# An invocation that has all the time in the world, some, and hardly any.
durations = st.sampled_from((60.0, 60.0, 9.0, 5.2))


class HostileWorld(RuleBasedStateMachine):
    """The rules are what the source, AWS and the adversary can do."""

    world: World

    @initialize(dialect=st.sampled_from(Dialect), limits=st.sampled_from(LIMITS))
    def begin(self, dialect: Dialect, limits: Limits) -> None:
        self.world = World(dialect, limits, shards=1 if limits.one_position_a_second else 2)

    # --- The source -----------------------------------------------------------------------------------------------

    @rule(orderid=st.sampled_from(ORDER_IDS), order=orders, later=st.integers(0, 2))
    def put(self, orderid: str, order: Order, later: int) -> None:
        self.world.time += later
        self._put(orderid, order)

    def _put(self, orderid: str, order: Order) -> None:
        if order.quantity in HUGE_QUANTITIES and self.world.database.dialect is Dialect.LOCAL:
            order = replace(order, quantity="1")
        self.world.put(orderid, order)

    @rule(batch=st.lists(st.tuples(st.sampled_from(ORDER_IDS), orders), min_size=2, max_size=6))
    def put_several(self, batch: list[tuple[str, Order]]) -> None:
        for orderid, order in batch:
            self._put(orderid, order)

    @rule(orderid=st.sampled_from(ORDER_IDS), expired=st.booleans())
    def delete(self, orderid: str, expired: bool) -> None:
        self.world.delete(orderid, expired=expired)

    # --- Deliveries -----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.unacknowledged)
    @rule(first=places, length=st.integers(1, 8), seconds=durations)
    def deliver_what_waits(self, first: int, length: int, seconds: float) -> None:
        """A batch as AWS would cut it, or its bisected half, or what is left of it."""
        waiting = [*self.world.unacknowledged.values()]
        first %= len(waiting)
        self.world.deliver(waiting[first : first + length], seconds=seconds)

    @precondition(lambda self: self.world.history)
    @rule(first=places, length=st.integers(1, 8), seconds=durations)
    def deliver_again(self, first: int, length: int, seconds: float) -> None:
        """Any part of the stream, done or not."""
        first %= len(self.world.history)
        self.world.deliver(self.world.history[first : first + length], seconds=seconds)

    @precondition(lambda self: self.world.history)
    @rule(batch=st.lists(places, min_size=1, max_size=8))
    def deliver_anything(self, batch: list[int]) -> None:
        """Records in any order, some of them twice: nothing that AWS does, but nothing that must harm."""
        history = self.world.history
        self.world.deliver([history[place % len(history)] for place in batch])

    @precondition(lambda self: self.world.unacknowledged)
    @rule(first=places, length=st.integers(1, 8))
    def give_up(self, first: int, length: int) -> None:
        waiting = [*self.world.unacknowledged.values()]
        first %= len(waiting)
        self.world.give_up(waiting[first : first + length])

    @precondition(lambda self: self.world.messages)
    @rule(batch=st.lists(places, min_size=1, max_size=3), seconds=durations)
    def replay(self, batch: list[int], seconds: float) -> None:
        """Dead letters, perhaps some that are being replayed already."""
        letters = [*self.world.messages]
        self.world.replay([letters[place % len(letters)] for place in batch], seconds=seconds)

    # --- Steps ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.calls())
    @rule(places=st.lists(places, min_size=1, max_size=6))
    def carry_out(self, places: list[int]) -> None:
        for place in places:
            if calls := self.world.calls():
                self.world.step(calls[place % len(calls)])

    @precondition(lambda self: self.world.calls())
    @rule(place=places, fate=st.sampled_from(FAULTS), choice=choices)
    def fail(self, place: int, fate: str, choice: int) -> None:
        calls = self.world.calls()
        self.world.step(calls[place % len(calls)], fate, choice)

    @precondition(lambda self: self.world.scheduler.waiting_for_answers())
    @rule(place=places)
    def let_time_pass(self, place: int) -> None:
        waiting = self.world.scheduler.waiting_for_answers()
        self.world.let_time_pass(waiting[place % len(waiting)])

    @precondition(lambda self: self.world.runs)
    @rule(place=places)
    def finish(self, place: int) -> None:
        runs = self.world.runs
        self.world.finish(runs[place % len(runs)])

    @precondition(lambda self: self.world.runs)
    @rule(place=places, on_their_way=choices)
    def kill(self, place: int, on_their_way: int) -> None:
        runs = self.world.runs
        self.world.kill(runs[place % len(runs)], on_their_way=lambda index: bool(on_their_way >> index % 16 & 1))

    @precondition(lambda self: self.world.network)
    @rule(place=places)
    def arrive(self, place: int) -> None:
        self.world.arrive(place % len(self.world.network))

    @rule(choice=choices)
    def expire_page(self, choice: int) -> None:
        self.world.expire_page(choice)

    @precondition(lambda self: self.world.counts.get("row deleted", 0) < 3)
    @rule(choice=choices)
    def delete_row(self, choice: int) -> None:
        self.world.delete_row(choice)

    @rule(aggregation=places, row=places)
    def poison(self, aggregation: int, row: int) -> None:
        self.world.poison(aggregation, row)

    @precondition(lambda self: self.world.poisoned)
    @rule()
    def heal(self) -> None:
        self.world.heal()

    @rule()
    def drain(self) -> None:
        self.world.drain()
        self.world.check_totals()

    def teardown(self) -> None:
        world = getattr(self, "world", None)
        if world is not None:
            with world:
                world.drain()
                world.check_totals()


TestHostileWorld = HostileWorld.TestCase
TestHostileWorld.settings = settings(examples(20, long=400), stateful_step_count=40)


def a_random_history(seed: int, records: int) -> World:
    """A long history with up to four invocations at once; a third of all calls fails."""
    chance = random.Random(seed)
    limits = chance.choice(LIMITS)
    shards = 1 if limits.one_position_a_second else chance.randint(1, 3)
    world = World(chance.choice(tuple(Dialect)), limits, shards=shards)
    with world:
        while len(world.history) < records or world.unacknowledged:
            _random_event(world, chance, records)
        world.drain(batch_size=50)
        world.check_totals()
    return world


def _random_event(world: World, chance: random.Random, records: int) -> None:
    if len(world.history) < records:
        for _ in range(chance.randint(0, 3)):
            _random_write(world, chance)
    world.time += chance.random() < 0.3
    if len(world.runs) < 4:
        _random_delivery(world, chance)
    for _ in range(chance.randint(1, 12)):
        calls = world.calls()
        if calls:
            fate = chance.choice(MIXED_FAULTS) if chance.random() < 1 / 3 else "carried_out"
            world.step(chance.choice(calls), fate, chance.randrange(2**16))
    if world.network and chance.random() < 0.3:
        world.arrive(chance.randrange(len(world.network)))
    if chance.random() < 0.02:
        world.expire_page(chance.randrange(50))
    if chance.random() < 0.01:
        world.delete_row(chance.randrange(50))
    if chance.random() < 0.02:
        world.poison(chance.randrange(50), chance.randrange(50))
    if chance.random() < 0.1:
        world.heal()
    waiting = world.scheduler.waiting_for_answers()
    if waiting and chance.random() < 0.1:
        world.let_time_pass(chance.choice(waiting))
    if world.runs and chance.random() < 0.03:
        world.kill(chance.choice(world.runs), on_their_way=lambda _: chance.random() < 0.5)


def _random_write(world: World, chance: random.Random) -> None:
    orderid = str(chance.randrange(40))
    if chance.random() < 0.15:
        world.delete(orderid, expired=chance.random() < 0.5)
        return
    quantity = chance.choice(QUANTITIES) if chance.random() < 0.5 else str(chance.randrange(100))
    if chance.random() < 0.02 and world.database.dialect is Dialect.AWS:
        quantity = chance.choice(HUGE_QUANTITIES)
    world.put(
        orderid,
        Order(
            item=f"item{chance.randrange(3)}",
            day=chance.choice(("2024-07-15", "2024-07-16", "2024-08-01")),
            customer=chance.choice(("c1", "c2", None)),
            paid=chance.random() < 0.6,
            quantity=quantity,
            price=chance.choice(("1", "0.3", "19.99")),
            note=NOTE if chance.random() < 0.05 else "",
        ),
    )


def _random_delivery(world: World, chance: random.Random) -> None:
    seconds = chance.choice((60.0, 60.0, 9.0, 5.2))
    waiting = [*world.unacknowledged.values()]
    length = chance.choice((1, 3, 10, 30))
    kind = chance.random()
    if kind < 0.2 and world.messages:
        letters = [*world.messages]
        world.replay([chance.choice(letters) for _ in range(chance.randint(1, 3))], seconds=seconds)
    elif kind < 0.3 and world.history:
        first = chance.randrange(len(world.history))
        world.deliver(world.history[first : first + length], seconds=seconds)
    elif kind < 0.33 and waiting:
        world.give_up(waiting[:length])
    elif waiting:
        first = chance.randrange(len(waiting)) if chance.random() < 0.3 else 0
        world.deliver(waiting[first : first + length], seconds=seconds)


@seeds(2, long=40)
def test_long_random_history__totals_are_the_fold_of_the_source(seed: int | None) -> None:
    world = a_random_history(chosen(seed), 120)

    assert len(world.history) >= 120

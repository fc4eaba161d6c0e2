"""Every interleaving of the API calls of two or three workers on small histories: enumerated, not sampled.

Each run begins the same scenario anew and takes another path through its decisions: whose call is carried out next,
and, as often as the scenario allows, what goes wrong with it. Between its calls a worker shares nothing with another,
so these are all the histories that there are.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any

import pytest

from aggregation_worker.aggregations.descriptions import shared_measures
from aggregation_worker.ledger.catalogue import CatalogueError, read_catalogue, register, retire
from tests.definition_texts import aggregation_text, definitions
from tests.model.hostile_world import FATES, LEDGER, LEDGER_KEYS, STOP_SENDING, Client, Limits, World
from tests.model.in_memory_dynamodb import InMemoryDynamoDB
from tests.model.orders import Order
from tests.model.scheduler import Call, Process, Scheduler, Task
from tests.sizes import size

# The order enters one total only: it is unpaid, nobody's, and nothing of it was sold.
COUNTED_ONCE = Order(paid=False, customer=None, quantity="0")
# It enters two, in two tables.
COUNTED_TWICE = Order(paid=False, customer=None, quantity="2")
AUGUST = "2024-08-01"

EVERY_FAULT = (
    *("request_lost", "answer_lost", "delayed", "server_error", "throttled", "throttled_actions", "conflicting"),
    *("stale", "in_progress", "refused", "refused_whole", "denied", "killed_before", "killed_after", "partly_taken"),
)
THE_WORST = ("answer_lost", "delayed", "conflicting", "killed_after")
# Seconds: after a single pause it is too late to send anything.
HARDLY_ANY_TIME = STOP_SENDING + 0.01
TINY = Limits(receipts_in_a_row=1, receipts_on_a_page=1)
SMALL = Limits(receipts_in_a_row=2, receipts_on_a_page=1)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A small history and how it is delivered.

    Attributes:
        orders: written one after another, each as a change of the order id beside it.
        batches: one for each worker: indexes of the records it is given.
        given_up: records that Lambda gave up on before; they wait in a dead letter.
        replays: how many replays of that dead letter there are at the same time.
        seconds: how long an invocation may take.
        seconds_apart: how much later each record is written than the one before.
        shards: of the stream; with two, the first record of each has the same sequence number.
        faults: how many calls may go wrong in one run, each in one of the ways of `kinds`.
        more: with --long, how many more may, each in one of the ways of `THE_WORST`.
        only_long: it takes so long that it is left out by default.
        at_least: runs that there must be, so that nothing hides that a scenario has become trivial.
    """

    name: str
    orders: tuple[tuple[str, Order], ...]
    faults: int
    at_least: int
    batches: tuple[tuple[int, ...], ...] = ()
    kinds: tuple[str, ...] = EVERY_FAULT
    given_up: tuple[int, ...] = ()
    replays: int = 0
    seconds: float = 60.0
    seconds_apart: int = 1
    shards: int = 1
    limits: Limits = field(default_factory=Limits)
    more: int = 1
    only_long: bool = False

    def parameter(self) -> Any:
        """For pytest."""
        marks = [pytest.mark.only_long] * self.only_long or [pytest.mark.long] * (self.more > 0)
        return pytest.param(self, id=self.name, marks=marks)


SCENARIOS = (
    Scenario(
        "a dead letter replayed with hardly any time",
        orders=(("1", COUNTED_ONCE),),
        given_up=(0,),
        replays=1,
        seconds=HARDLY_ANY_TIME,
        faults=2,
        at_least=500,
    ),
    Scenario(
        "a batch and its cut-off end, with hardly any time",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE)),
        batches=((0, 1), (1,)),
        seconds=HARDLY_ANY_TIME,
        faults=1,
        at_least=500,
    ),
    Scenario(
        "a dead letter replayed twice at once",
        orders=(("1", COUNTED_ONCE),),
        given_up=(0,),
        replays=2,
        faults=1,
        at_least=2_000,
        more=0,
    ),
    Scenario(
        "a dead letter replayed while its record is delivered",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE)),
        batches=((0, 1),),
        given_up=(0,),
        replays=1,
        faults=1,
        at_least=1_400,
        more=0,
    ),
    Scenario(
        "two records of two shards with the same sequence number",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE)),
        batches=((0,), (1,)),
        shards=2,
        seconds_apart=0,
        faults=1,
        at_least=600,
    ),
    Scenario(
        "one record delivered to two workers",
        orders=(("1", COUNTED_ONCE),),
        batches=((0,), (0,)),
        faults=1,
        at_least=300,
    ),
    Scenario(
        "one record delivered to three workers",
        orders=(("1", COUNTED_ONCE),),
        batches=((0,), (0,), (0,)),
        faults=0,
        at_least=60,
    ),
    Scenario(
        "a batch and its cut-off end",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE)),
        batches=((0, 1), (1,)),
        faults=2,
        kinds=THE_WORST,
        at_least=1_500,
        more=0,
        only_long=True,
    ),
    Scenario(
        "overlapping batches, one receipt to a row and to a page",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE), ("3", COUNTED_ONCE)),
        batches=((0, 1), (1, 2)),
        faults=1,
        limits=TINY,
        at_least=1_300,
        more=0,
    ),
    Scenario(
        "a late record and one that is archived with it",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE), ("3", COUNTED_ONCE)),
        batches=((1, 2), (0, 1)),
        faults=1,
        kinds=(*THE_WORST, "stale"),
        limits=SMALL,
        at_least=500,
    ),
    Scenario(
        "a page that expires and a row that is deleted while records come late",
        orders=(("1", COUNTED_ONCE), ("2", COUNTED_ONCE), ("3", COUNTED_ONCE)),
        batches=((1, 2), (0,)),
        faults=1,
        kinds=("page expires", "row is deleted", "answer_lost"),
        limits=TINY,
        at_least=200,
    ),
    Scenario(
        "an order that moves from July to August",
        orders=(("1", COUNTED_ONCE), ("1", Order(paid=False, customer=None, quantity="0", day=AUGUST))),
        batches=((0, 1), (1,)),
        faults=1,
        kinds=("answer_lost", "conflicting"),
        limits=TINY,
        at_least=1_700,
        more=0,
        only_long=True,
    ),
    Scenario(
        "two totals of two records",
        orders=(("1", COUNTED_TWICE), ("2", COUNTED_TWICE)),
        batches=((0, 1), (1,)),
        faults=1,
        kinds=THE_WORST,
        at_least=1_600,
        more=0,
        only_long=True,
    ),
    Scenario(
        "two totals of one record",
        orders=(("1", COUNTED_TWICE),),
        batches=((0,), (0,)),
        faults=0,
        limits=TINY,
        at_least=100,
    ),
    Scenario(
        "a record that is refused before one that is not",
        orders=(("1", Order(paid=False, customer=None, quantity=None)), ("2", COUNTED_ONCE)),
        batches=((0, 1), (0,)),
        faults=1,
        at_least=250,
    ),
)


class Decisions:
    """A path through a tree of decisions; `next_path` leads through all of them, depth first."""

    def __init__(self) -> None:
        self._taken: list[tuple[int, int]] = []
        self._position = 0

    def choose(self, count: int) -> int:
        """A number below `count`: what this path decides here."""
        if self._position == len(self._taken):
            self._taken.append((0, count))
        choice, of = self._taken[self._position]
        assert of == count, "the scenario is not the same every time"
        self._position += 1
        return choice

    def next_path(self) -> bool:
        """Goes over to the next path; says whether there is one."""
        self._position = 0
        while self._taken:
            choice, count = self._taken.pop()
            if choice + 1 < count:
                self._taken.append((choice + 1, count))
                return True
        return False

    def __str__(self) -> str:
        return "-".join(str(choice) for choice, _ in self._taken)


def play(scenario: Scenario, choose: Callable[[int], int]) -> None:
    """One run of a scenario."""
    with World(limits=scenario.limits, shards=scenario.shards) as world:
        for orderid, order in scenario.orders:
            world.put(orderid, order)
            world.time += scenario.seconds_apart
        if scenario.given_up:
            world.give_up([world.history[index] for index in scenario.given_up])
        for _ in range(scenario.replays):
            world.replay([*world.messages], seconds=scenario.seconds)
        for batch in scenario.batches:
            world.deliver([world.history[index] for index in batch], seconds=scenario.seconds)
        kinds = [*[scenario.kinds] * scenario.faults, *[THE_WORST] * size(0, long=scenario.more), ()]
        faults = 0
        while options := [*_options(world, kinds[faults])]:
            faulty, act = options[choose(len(options))]
            faults += faulty
            act()
        while world.network and choose(2):  # the others arrive when everything else is over
            world.arrive(0)

        world.drain()
        world.check_totals()


def _options(world: World, faults: Sequence[str]) -> Iterator[tuple[bool, Callable[[], Any]]]:
    """What can happen next, and whether it is a fault: a call, time that runs out, a request that arrives late.

    Faults of no call: a page expires, or the row is deleted.
    """
    if world.calls():
        for kind, act in (("page expires", world.expire_page), ("row is deleted", world.delete_row)):
            if kind in faults:
                yield True, lambda act=act: act(0)  # type: ignore[misc]  # a default binds the loop's value
    for task in world.calls():
        yield False, lambda task=task: world.step(task)  # type: ignore[misc]  # a default binds the loop's value
        for fault in [fault for fault in faults if fault in FATES]:
            for choice in _choices(fault, task):
                yield True, lambda task=task, fault=fault, choice=choice: world.step(task, fault, choice)  # type: ignore[misc]  # a default binds the loop's value
    if faults:
        for task in world.scheduler.waiting_for_answers():
            yield True, lambda task=task: world.let_time_pass(task)  # type: ignore[misc]  # a default binds the loop's value
    if world.calls():
        for index in range(len(world.network)):
            yield False, lambda index=index: world.arrive(index)  # type: ignore[misc]  # a default binds the loop's value


def _choices(fault: str, task: Task) -> Sequence[int]:
    """What a fault leaves open, as far as it makes a difference: which action, whether the server has done it."""
    assert isinstance(task.point, Call)
    request = task.point.request
    if fault in ("conflicting", "refused", "throttled_actions"):
        actions = len(request.get("TransactItems", ()))
        return [1 << index for index in range(actions)] or [0] * (
            task.point.operation == "update_item" and fault != "throttled_actions"
        )
    if fault == "stale":
        return {"batch_get_item": (1, 2), "query": (1, 2, 3)}.get(task.point.operation, ())
    if fault == "partly_taken":
        return [1 << index for index in range(len(request.get("Entries", ())))]
    return (0, 1) if fault == "server_error" else (0,)


@pytest.mark.parametrize("scenario", [scenario.parameter() for scenario in SCENARIOS])
def test_every_interleaving__every_total_is_exact(scenario: Scenario, capsys: pytest.CaptureFixture[str]) -> None:
    decisions = Decisions()
    runs = 0
    started = time.monotonic()

    while True:
        try:
            play(scenario, decisions.choose)
        except BaseException:
            print(f"path {decisions}")
            raise
        runs += 1
        if not decisions.next_path():
            break

    with capsys.disabled():
        print(f"\n{scenario.name}: {runs} interleavings in {time.monotonic() - started:.1f} s", end=" ")
    assert runs >= scenario.at_least


# --- Workers that start, and aggregations that are retired ------------------------------------------------------------

COUNTS = aggregation_text()
CHANGED = aggregation_text('remove = "retract"')
RENAMED = aggregation_text(name="renamed")
OTHER, THIRD = (aggregation_text(name=name, table=name) for name in ("other", "third"))
WORKS, REFUSES = "works", "refuses"


@dataclass(frozen=True, slots=True)
class Starts:
    """Workers that start at once.

    Attributes:
        before: the file of the worker that was deployed before; empty: none was.
        files: what each worker's file holds.
        retires: whether `other` is retired at the same time.
        outcomes: what may become of them, all of which some order must bring about.
    """

    name: str
    before: tuple[str, ...]
    files: tuple[tuple[str, ...], ...]
    outcomes: frozenset[tuple[str, ...]]
    retires: bool = False


ONE_OF_TWO = frozenset(((WORKS, REFUSES), (REFUSES, WORKS)))
ANY_OF_TWO = ONE_OF_TWO | {(WORKS, WORKS), (REFUSES, REFUSES)}
STARTS = (
    Starts("two definitions of one name", (), ((COUNTS,), (CHANGED,)), ONE_OF_TWO),
    Starts("two names of one measure", (), ((COUNTS,), (RENAMED,)), ONE_OF_TWO),
    Starts("the same file three times", (), ((COUNTS,),) * 3, frozenset(((WORKS,) * 3,))),
    Starts(
        "a deployment that adds an aggregation",
        (COUNTS,),
        ((COUNTS,), (COUNTS, OTHER)),
        frozenset(((WORKS, WORKS), (REFUSES, WORKS))),
    ),
    Starts("two deployments at once", (COUNTS,), ((COUNTS, OTHER), (COUNTS, THIRD)), ONE_OF_TWO),
    Starts(
        "a rollback while its aggregation is retired",
        (COUNTS, OTHER),
        ((COUNTS,), (COUNTS, OTHER)),
        ANY_OF_TWO,
        retires=True,
    ),
    Starts(
        "a deployment while another aggregation is retired",
        (COUNTS, OTHER),
        ((COUNTS, THIRD), (COUNTS, OTHER, THIRD)),
        ANY_OF_TWO,
        retires=True,
    ),
)


@pytest.mark.parametrize("starts", STARTS, ids=lambda starts: starts.name)
def test_workers_that_start_at_once__lose_and_double_nothing(starts: Starts) -> None:
    decisions = Decisions()
    found = set()

    while True:
        found.add(_started_at_once(starts, decisions.choose))
        if not decisions.next_path():
            break

    assert found == starts.outcomes, "others work, or others refuse"


def _started_at_once(starts: Starts, choose: Callable[[int], int]) -> tuple[str, ...]:
    """What became of each worker, in one order of all their calls."""
    database = InMemoryDynamoDB()
    database.create(LEDGER, *LEDGER_KEYS)
    direct: Any = database
    if starts.before:
        register(direct, LEDGER, definitions(*starts.before).aggregations)
    scheduler = Scheduler()
    outcomes = dict.fromkeys(range(len(starts.files)), "")

    def begin(act: Callable[[Any], None]) -> None:
        process = Process(scheduler)
        client = Client(process, {"get_item": database.get_item, "put_item": database.put_item})
        process.start(lambda: act(client))

    def start(client: Any, number: int) -> None:
        try:
            register(client, LEDGER, definitions(*starts.files[number]).aggregations)
        except CatalogueError:
            outcomes[number] = REFUSES
        else:
            outcomes[number] = WORKS

    for number in outcomes:
        begin(partial(start, number=number))
    if starts.retires:
        begin(lambda client: retire(client, LEDGER, "other"))
    while calls := scheduler.waiting_calls():
        calls[choose(len(calls))].resume(lambda call: call.perform())

    catalogue = read_catalogue(direct, LEDGER)
    counting = [starts.before, *(starts.files[number] for number, found in outcomes.items() if found == WORKS)]
    by_name = {one.name: one.definition for file in counting if file for one in definitions(*file).aggregations}
    found = {name: entry.definition for name, entry in catalogue.entries.items()}
    assert found == by_name, "the catalogue is not what the workers that started count"
    for (_, one), (_, other) in combinations(catalogue.entries.items(), 2):
        assert not shared_measures(one.definition, other.definition), "two count into one total"
    retired = {name for name, entry in catalogue.entries.items() if entry.retired_at is not None}
    assert retired == ({"other"} if starts.retires else set()), "somebody has brought it back"
    return tuple(outcomes.values())

"""Runs concurrent code one step at a time: each of its threads stops before every API call.

    scheduler = Scheduler()
    process = Process(scheduler)
    process.start(lambda: process.call("PutItem", perform, request))
    (task,) = scheduler.waiting_calls()
    task.resume(lambda call: call.perform())

The code under test runs unchanged; a `Call` is where one of its threads stops, and what it is resumed with decides what
becomes of the call: carried out, lost, refused, carried out later. `Executor` and `wait` stand in for the thread pool
and for `concurrent.futures.wait`. The threads are greenlets: to switch to one costs next to nothing, and none runs
unless it is told to. Knows nothing of the worker or of AWS.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from greenlet import getcurrent, greenlet


class KilledError(BaseException):
    """Unwinds a thread of a killed process; like the real end, nothing can catch it and go on."""


@dataclass(slots=True, eq=False)
class Call:
    """An API call that is about to be made.

    Attributes:
        operation: its name.
        perform: carries it out and gives the service's answer, or raises the service's error.
        request: its parameters.
    """

    operation: str
    perform: Callable[[], Any]
    request: Mapping[str, Any] = field(default_factory=dict)


Fate = Callable[[Call], Any]
"""What becomes of a call: gives what the caller gets, or raises what the caller sees."""


@dataclass(slots=True, eq=False)
class AnswerWait:
    """A thread that waits until one of these futures is done, for `timeout` seconds at most."""

    futures: frozenset["Future[Any]"]
    timeout: float

    @property
    def is_over(self) -> bool:
        """Whether one of them is done."""
        return any(future.done() for future in self.futures)


class Task(greenlet):
    """One thread of a process, and where it has stopped."""

    def __init__(self, process: "Process", body: Callable[[], Any]) -> None:
        super().__init__()
        self.process = process
        self.point: Call | AnswerWait | None = None
        self._body = body
        self._fate: Fate | None = None

    @staticmethod
    def current() -> "Task | None":
        """The thread that asks; `None` if it is none of any process."""
        current = getcurrent()
        return current if isinstance(current, Task) else None

    def resume(self, fate: Fate | None = None) -> None:
        """Lets the thread run to its next stop; and then whatever it has started or woken."""
        self._fate = fate
        self.process.scheduler.switch_to(self)

    def stop_at(self, point: Call | AnswerWait) -> Any:
        """Called in the thread itself: stops, and when it is resumed does what was decided about the call."""
        self.process.check_alive()
        self.point = point
        assert self.parent is not None
        self.parent.switch()
        self.point = None
        self.process.check_alive()
        if isinstance(point, Call):
            assert self._fate is not None
            return self._fate(point)
        return None

    def run(self) -> None:
        """The whole life of the thread."""
        with suppress(KilledError):
            self._body()


class Scheduler:
    """Says which thread runs next; all of them stand still while it is asked."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._started: list[Task] = []

    def start(self, process: "Process", body: Callable[[], Any]) -> Task:
        """A new thread of a process. It first runs when the thread that starts it has stopped."""
        task = Task(process, body)
        self.tasks.append(task)
        self._started.append(task)
        return task

    def switch_to(self, task: Task) -> None:
        """Lets a task run to its next stop, and all that follows from it without a decision."""
        self._run(task)
        self.settle()

    def settle(self) -> None:
        """Runs what was started, and what waits for an answer that is there."""
        while True:
            if self._started:
                self._run(self._started.pop(0))
                continue
            woken = next((t for t in self.tasks if isinstance(t.point, AnswerWait) and t.point.is_over), None)
            if woken is None:
                return
            self._run(woken)

    def waiting_calls(self) -> list[Task]:
        """The tasks that stand before an API call, in the order in which they were started."""
        return [task for task in self.tasks if isinstance(task.point, Call)]

    def waiting_for_answers(self) -> list[Task]:
        """The tasks that stand still until an answer comes or their time is up."""
        return [task for task in self.tasks if isinstance(task.point, AnswerWait)]

    def _run(self, task: Task) -> None:
        task.parent = getcurrent()
        try:
            task.switch()
        finally:
            if task.dead:
                self.tasks.remove(task)


class Process:
    """Threads that live and die together."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.alive = True

    def start(self, body: Callable[[], Any]) -> Task:
        """Starts a thread and lets it run to its first stop."""
        task = self.scheduler.start(self, body)
        if Task.current() is None:
            self.scheduler.settle()
        return task

    def call(self, operation: str, perform: Callable[[], Any], request: Mapping[str, Any]) -> Any:
        """Called in a thread of the process: an API call, and thus a stop."""
        task = Task.current()
        assert task is not None
        return task.stop_at(Call(operation, perform, request))

    def tasks(self) -> list[Task]:
        """Its threads that have not ended."""
        return [task for task in self.scheduler.tasks if task.process is self]

    def kill(self) -> None:
        """Ends every thread where it stands; no call that waits is made."""
        self.alive = False
        while tasks := self.tasks():
            tasks[0].resume()

    def check_alive(self) -> None:
        """Called in a thread of the process.

        Raises:
            KilledError: the process was killed.
        """
        if not self.alive:
            raise KilledError


class Executor(futures.Executor):
    """A thread pool without an upper limit, each of whose calls is a thread of the process."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Starts a thread for the call."""
        future: Future[Any] = Future()

        def run() -> None:
            future.set_running_or_notify_cancel()
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._process.start(run)
        return future


def wait(
    fs: "Iterable[Future[Any]]", timeout: float | None = None, return_when: str = futures.FIRST_COMPLETED
) -> "tuple[set[Future[Any]], set[Future[Any]]]":
    """`concurrent.futures.wait`, as a stop; who resumes it before a future is done makes it time out."""
    task = Task.current()
    assert task is not None
    assert return_when == futures.FIRST_COMPLETED
    waited_for = frozenset(fs)
    if not any(future.done() for future in waited_for):
        task.stop_at(AnswerWait(waited_for, float("inf") if timeout is None else timeout))
    done = {future for future in waited_for if future.done()}
    return done, set(waited_for - done)

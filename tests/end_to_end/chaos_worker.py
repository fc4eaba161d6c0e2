"""One worker process of a chaos run: the deployed handler, asked through a pipe.

Each question is an invocation, its event and the milliseconds that it may take; the answer is the handler's and what it
raised, one of them `None`. It may be killed at any moment. Where CHAOS_ROOM and CHAOS_PAGE are set, rows have room for
so many bytes of receipts, and pages for so many receipts.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Context:
    """Lambda's context, as far as the handler reads it."""

    aws_request_id: str
    deadline: float

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation's end."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


def serve(invocations: Connection, environment: Mapping[str, str], log: Path) -> None:
    """Answers invocations until nobody asks any more, with this environment and no other."""
    os.environ.clear()
    os.environ.update(environment)
    with log.open("a") as output:
        for standard in (1, 2):
            os.dup2(output.fileno(), standard)
    from aggregation_worker.handler import lambda_handler
    from aggregation_worker.ledger import next_write, pages

    if room := os.environ.get("CHAOS_ROOM"):
        next_write.ROW_STEP, next_write.LEAST_ROOM = 1, int(room)
        pages.MAX_PAGE_RECEIPTS = int(os.environ["CHAOS_PAGE"])
    number = 0
    while True:
        try:
            event, milliseconds = invocations.recv()
        except EOFError:
            return
        number += 1
        context = Context(f"{os.getpid()}-{number}", time.monotonic() + milliseconds / 1000)
        answer: object = None
        failure: str | None = None
        try:
            answer = lambda_handler(event, context)
        except Exception as error:  # as Lambda reports it
            failure = f"{type(error).__name__}: {error}"
        invocations.send((answer, failure))

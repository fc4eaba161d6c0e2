"""One worker process of a chaos run: the deployed handler, asked line by line.

Each line of standard input is an invocation, `{"event": …, "milliseconds": …}`; each line of the answer is
`{"answer": …}` or, where the handler raised, `{"error": …}`. It may be killed at any moment. Where CHAOS_ROOM and
CHAOS_PAGE are set, rows have room for so many bytes of receipts, and pages for so many receipts.
"""

import json
import os
import sys
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Context:
    """Lambda's context, as far as the handler reads it."""

    aws_request_id: str
    deadline: float

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the invocation's end."""
        return max(0, int((self.deadline - time.monotonic()) * 1000))


def main() -> None:
    """Answers invocations until standard input ends."""
    # The handler's log goes where the handler writes; the answers have a way of their own.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        from aggregation_worker.handler import lambda_handler
        from aggregation_worker.ledger import next_write, pages

        if room := os.environ.get("CHAOS_ROOM"):
            next_write.ROW_STEP, next_write.LEAST_ROOM = 1, int(room)
            pages.MAX_PAGE_RECEIPTS = int(os.environ["CHAOS_PAGE"])
        for number, line in enumerate(sys.stdin):
            invocation = json.loads(line)
            context = Context(f"{os.getpid()}-{number}", time.monotonic() + invocation["milliseconds"] / 1000)
            answer: dict[str, object]
            try:
                answer = {"answer": lambda_handler(invocation["event"], context)}
            except Exception as error:  # as Lambda reports it
                answer = {"error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()

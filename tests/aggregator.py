"""The `aggregator` command as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def aggregator(*arguments: str, in_background: bool = False) -> list[str]:
    """The command line of a process as a terminal starts it, or as a shell does in the background: SIGINT ignored.

    A process inherits that SIGINT is ignored, so without this the way in which the tests were started would decide.
    """
    sigint = "SIG_IGN" if in_background else "default_int_handler"
    program = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.{sigint}); "
        "from aggregation_worker.operations.cli import main; sys.exit(main())"
    )
    return [sys.executable, "-c", program, *arguments]


@contextmanager
def running_aggregator(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    in_background: bool = False,
    output: int = subprocess.PIPE,
) -> "Iterator[subprocess.Popen[str]]":
    """Starts it, with all that it prints in `output`, and kills it at the end if it still runs."""
    with subprocess.Popen(
        aggregator(*arguments, in_background=in_background),
        env=environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def without_settings() -> dict[str, str]:
    """This process's environment without what the user has set for AWS and for the worker."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "AGGREGATIONS_FILE"))}

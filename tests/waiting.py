"""Waiting for what another thread or process brings about."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], seconds: float = 120, pause: float = 0.02) -> Found:
    """What `condition` returns as soon as that is true; the limit is for what never comes, not for a slow machine."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(pause)
    return found

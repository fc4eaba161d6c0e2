"""What the sources of a snapshot's items have in common: a `scan` of the table, and an `export` of it in S3.

Both read ahead in threads of their own and hand over pages in one loop. Items are in DynamoDB's typed JSON as the
stream delivers them, binary values as base64 text, so that a value and a key have one form wherever they come from.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, Protocol

from aggregation_worker.streams.records import Image

# A page of 1 MB can hold many thousands of small items, each far larger in memory than on the wire.
PAGE_ITEMS = 2_000
_HEARTBEAT_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ItemPage:
    """Some items of one segment, and where the segment continues after them.

    Attributes:
        segment: which part of the table; within one, pages come in order.
        items: in DynamoDB's typed JSON, as the stream delivers images.
        position: JSON; `pages` continues after it.
    """

    segment: int
    items: list[Image]
    position: Any


Pages = Generator[ItemPage | None, None, None]
"""Pages as they come; `None` where nothing has come for 0.1 s. To be closed, which ends the reading."""


class ItemSource(Protocol):
    """All items of a table, each once.

    Attributes:
        description: which table, and how it is read: a run continues only with the same.
        estimated_items: how many there are, about; `None` if that is not known.
        read_at: the moment at which the items were as they are read; `None` if that is while `pages` runs.
    """

    @property
    def description(self) -> str: ...
    @property
    def estimated_items(self) -> int | None: ...
    @property
    def read_at(self) -> datetime | None: ...

    def pages(self, resume: Mapping[int, Any]) -> Pages:
        """The pages after the positions in `resume`, by segment."""
        ...


Pause = Callable[[float], None]
"""Waits so many seconds, or raises `CancelledError` if the consumer has gone."""


def read_ahead(segments: Iterable[Callable[[Pause], Iterator[ItemPage]]], readers: int) -> Pages:
    """The pages of all segments, of which so many are read at a time, each in a thread and one page ahead.

    Raises:
        Exception: what reading a segment raised.
    """
    gone = threading.Event()

    def pause(seconds: float) -> None:
        if gone.wait(seconds):
            raise CancelledError

    left = (segment(pause) for segment in segments)
    with ThreadPoolExecutor(readers, thread_name_prefix="item-reader") as executor:
        running: dict[Future[ItemPage | None], Iterator[ItemPage]] = {}

        def read(segment: Iterator[ItemPage]) -> None:
            running[executor.submit(next, segment, None)] = segment

        try:
            for segment in islice(left, readers):
                read(segment)
            while running:
                done, _ = wait(running, _HEARTBEAT_SECONDS, FIRST_COMPLETED)
                if not done:
                    yield None
                for future in done:
                    segment, page = running.pop(future), future.result()
                    if page is not None:
                        read(segment)
                        yield page
                    else:
                        for another in islice(left, 1):
                            read(another)
        finally:
            gone.set()

"""What `aggregator backfill` says where the stream cannot be read without a gap."""

from typing import Any

import pytest

from aggregation_worker.operations import backfill
from aggregation_worker.operations.errors import CommandError
from aggregation_worker.streams.shards import IncompleteDescriptionError, StreamDisabledError, StreamGapError

NOBODY: Any = None


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StreamDisabledError("the stream is disabled"), "the stream is disabled"),
        (IncompleteDescriptionError("begin again"), "begin again; run this again, and it goes on where it is"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stream_with_a_gap__is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, error: StreamGapError, said: str
) -> None:
    def fail(*_: Any, **__: Any) -> int:
        raise error

    monkeypatch.setattr(backfill, "_backfill", fail)

    with pytest.raises(CommandError, match=f"^{said}$"):
        backfill.backfill(NOBODY, backfill.Request(()), as_json=False)

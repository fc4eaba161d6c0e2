"""The chaos run in its short setting; `tests.end_to_end.chaos` says how to run the long one."""

import pytest

from aggregation_worker.batch import RecordOutcome
from tests.dynamodb_local import DynamoDBLocalUnavailableError
from tests.end_to_end.chaos import run
from tests.end_to_end.conftest import missing
from tests.sizes import size

pytestmark = pytest.mark.end_to_end


@pytest.mark.long
def test_workers_are_killed_and_answers_lost__no_total_drifts(seed: int) -> None:
    records = size(700, long=10_000)

    try:
        report = run(records, seed, batch_sizes=(1, 10, 40, 120), fault_factor=2)
    except DynamoDBLocalUnavailableError as unavailable:
        missing(unavailable)

    print(*report.lines(), sep="\n")
    assert report.records == records
    assert not any(any(drift) for drift in report.drift.values())
    assert report.wrong == ()
    assert report.kills > 0
    assert min(report.writes[kind] for kind in ("adds", "archives", "late writes")) > 20
    assert sum(report.faults.values()) > report.kills
    assert report.outcomes[RecordOutcome.DUPLICATE] > 0

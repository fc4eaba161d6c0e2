"""Posts through the worker's own writes what must go in, however long conflicts and throttling last."""

import time
from collections.abc import Sequence

from aggregation_worker.errors import WorkerError
from aggregation_worker.ledger.commit import Committer, Deadline, Outcome
from aggregation_worker.ledger.receipts import Posting

# Seconds without any progress after which posting is given up, and the length of one round of commits.
PATIENCE = 300.0
_ROUND = 60.0


class PostingError(WorkerError):
    """Nothing could be written for too long."""


def post(committer: Committer, postings: Sequence[Posting], patience: float = PATIENCE) -> Outcome:
    """Commits all postings: each is applied, a duplicate, or refused for good.

    Raises:
        PostingError: nothing has gone through for `patience` seconds.
        CommitError: nothing can be written before an operator acts.
    """
    whole = Outcome()
    given_up_at = time.monotonic() + patience
    pending: Sequence[Posting] = postings
    while pending:
        outcome = committer.commit(pending, _deadline(min(_ROUND, patience)))
        whole.applied += outcome.applied
        whole.duplicates += outcome.duplicates
        whole.differing += outcome.differing
        whole.refused += outcome.refused
        if len(outcome.unsettled) < len(pending):
            given_up_at = time.monotonic() + patience
        elif time.monotonic() >= given_up_at:
            raise PostingError(
                f"nothing could be written for {patience:.0f} s (conflicts, throttling or no answer); what is in stays "
                "in: run this again later"
            )
        pending = outcome.unsettled
    return whole


def _deadline(seconds: float) -> Deadline:
    end = time.monotonic() + seconds
    return Deadline(lambda: end - time.monotonic(), stop_sending=0.0, stop_waiting=0.0)

"""Postings as the worker makes them of stream records."""

from typing import Any

from aggregation_worker.aggregations.contributions import Definitions, contributions
from aggregation_worker.ledger import receipts
from aggregation_worker.ledger.receipts import Posting
from tests.definition_texts import definitions
from tests.records import validated

REFERENCE = definitions()


def postings(*raws: Any, defined: Definitions = REFERENCE) -> list[Posting]:
    """The postings of a batch of raw records, none of which is refused."""
    batch = []
    for index, raw in enumerate(raws):
        record = validated(raw)
        changes, refusals = contributions(defined.aggregations, record)
        assert refusals == []
        batch.append((index, record, changes))
    return receipts.postings(batch)

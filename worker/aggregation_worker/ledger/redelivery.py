"""What of a batch the ledger holds already, read before anything is written where the batch looks delivered before.

DynamoDB charges a cancelled transaction like a committed one and takes longer over it, so that a big batch that comes
again would cost as much as it did the first time. A few of its pages are read first; only if one of them holds a
receipt of this batch are all of them read, and what is in already is not posted again.

An economy and nothing more: what was read may be old by the time of the write, or missing, and the transactions'
conditions decide in any case. Pure; `commit` reads the pages.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

from aggregation_worker.ledger.receipts import Posting
from aggregation_worker.ledger.transactions import Transaction, plan

PageKey = tuple[str, str]
"""An item of the ledger: aggregate and page."""

ReadPages = Callable[[Sequence[PageKey]], Mapping[PageKey, Collection[str]]]
"""Reads pages: the attribute names of those that are there. One that is left out counts as not there."""

# With fewer transactions there is too little to save for one more request before them.
FEWEST_TRANSACTIONS = 3
# A batch that ended early left some transactions behind and not others: enough pages to meet one of those. The price of
# reading them is that of one or two writes.
SAMPLE = 8


def without_known(transactions: Sequence[Transaction], read: ReadPages) -> tuple[list[Transaction], list[Posting]]:
    """The transactions that are left to be sent, and the postings whose receipts are in the ledger."""
    pages: dict[PageKey, list[Posting]] = {}
    for transaction in transactions:
        for change in transaction:
            for page in change.pages:
                first = page.postings[0]
                pages.setdefault((first.aggregate.name, first.page), []).extend(page.postings)
    keys = list(pages)
    sample = keys[:: -(-len(keys) // SAMPLE)] if keys else []
    if not _known(pages, read(sample)):
        return list(transactions), []
    known = _known(pages, read(keys))
    left = [posting for postings in pages.values() for posting in postings if posting not in known]
    return plan(left)[0], list(known)


def _known(pages: Mapping[PageKey, Sequence[Posting]], held: Mapping[PageKey, Collection[str]]) -> dict[Posting, None]:
    """The postings whose receipts are on the pages that were read, in order."""
    return {posting: None for key, names in held.items() for posting in pages[key] if posting.receipt in names}

"""Pages of the ledger: the archived receipts of one aggregate, packed, each page those in one span of positions.

Pure. A page covers the positions after `after` up to its key. The pages of one aggregate follow one another without a
gap up to the watermark in its row; a span is only ever cut, never joined or moved, so that a record that is late stays
late and its receipt stays with those of its span. A page is only ever written whole, so its receipts are compressed
text: about 14 bytes a receipt, where a row needs 43.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from aggregation_worker.aggregations.numbers import Amounts, amount_text
from aggregation_worker.ledger.receipts import AFTER, AGGREGATE_KEY, EXPIRES_AT, PACKED, PAGE_KEY, position_in

# Receipts on one page, and bytes of them: a late record rewrites its page, so a page must stay cheap.
MAX_PAGE_RECEIPTS = 250
MAX_PAGE_BYTES = 4 * 1024 - 256

Receipts = Mapping[str, tuple[Amounts, Amounts]]
"""Receipts by name: the contribution, and what it adds to what is kept."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        key: the last position that it covers.
        after: the position that it begins after; empty for the first page.
        packed: its receipts as they are stored.
    """

    key: str
    after: str
    packed: bytes

    def receipts(self) -> Receipts:
        """What it holds."""
        return unpacked(self.packed)

    def item(self, partition: str, expires_at: int) -> dict[str, Any]:
        """The ledger's item, in DynamoDB's typed JSON."""
        return {
            AGGREGATE_KEY: {"S": partition},
            PAGE_KEY: {"S": self.key},
            AFTER: {"S": self.after},
            PACKED: {"B": self.packed},
            EXPIRES_AT: {"N": str(expires_at)},
        }


def page_of(item: Mapping[str, Any]) -> Page:
    """A page as it was read."""
    return Page(item[PAGE_KEY]["S"], item[AFTER]["S"], bytes(item[PACKED]["B"]))


def packed(receipts: Receipts) -> bytes:
    """Receipts as a page stores them: a line each, sorted, compressed."""
    lines = (
        f"{name} {_texts(amounts)}{f' {_texts(kept)}' if kept else ''}"
        for name, (amounts, kept) in sorted(receipts.items())
    )
    return zlib.compress("\n".join(lines).encode(), 9)


def unpacked(content: bytes) -> dict[str, tuple[Amounts, Amounts]]:
    """The inverse of `packed`."""
    found = {}
    for line in zlib.decompress(content).decode().splitlines():
        name, amounts, *kept = line.split(" ")
        found[name] = (_numbers(amounts), _numbers(kept[0]) if kept else ())
    return found


def _texts(amounts: Iterable[Decimal]) -> str:
    return ",".join(map(amount_text, amounts))


def _numbers(text: str) -> Amounts:
    return tuple(map(Decimal, text.split(",")))


def cut(receipts: Receipts, after: str, key: str) -> list[Page]:
    """The pages that together cover the positions after `after` up to `key`, and hold these receipts.

    One page as long as it is small; otherwise as many as are needed, equally full. Receipts of one position stay
    together, and the last page keeps the key.
    """
    names = sorted(receipts)
    whole = packed(receipts)
    parts = max(-(-len(names) // MAX_PAGE_RECEIPTS), -(-len(whole) // MAX_PAGE_BYTES))
    if parts <= 1:
        return [Page(key, after, whole)]
    pages = []
    for ends, part in _parts(names, parts):
        last = key if ends is None else ends
        pages.append(Page(last, after, packed({name: receipts[name] for name in part})))
        after = last
    return pages


def _parts(names: Sequence[str], parts: int) -> Iterable[tuple[str | None, Sequence[str]]]:
    """Sorted names in about so many parts, each with the last position of the part; `None` for the last part."""
    start = 0
    for part in range(1, parts + 1):
        end = len(names) if part == parts else len(names) * part // parts
        while 0 < end < len(names) and position_in(names[end]) == position_in(names[end - 1]):
            end += 1
        if end > start:
            yield (None if end == len(names) else position_in(names[end - 1])), names[start:end]
        start = max(start, end)

"""Texts that come from items, tables and answers, as a terminal may show them."""

import codecs
import re

# What a terminal would obey in place of showing it, or could not write: control characters, those that turn the
# direction of text, and halves of a surrogate pair. Line breaks stay.
_HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    """A text as it is, but with the escapes of Python for what would harm a terminal."""
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], str(text))


PLAIN = "aggregator.plain"
"""The error handler of an encoding that lacks a character: a word for each sign of this program's own, else escapes."""

_SIGNS = {"✓": "ok", "✗": "wrong", "…": "..."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_SIGNS.get(one) or ascii(one)[1:-1] for one in missing), error.end


codecs.register_error(PLAIN, _plain)

"""Texts that come from items, tables and answers, as a terminal may show them."""

import re

# What a terminal would obey in place of showing it, or could not write: control characters, those that turn the
# direction of text, and halves of a surrogate pair. Line breaks stay.
_HARMFUL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: object) -> str:
    """A text as it is, but with the escapes of Python for what would harm a terminal."""
    return _HARMFUL.sub(lambda found: ascii(found[0])[1:-1], str(text))

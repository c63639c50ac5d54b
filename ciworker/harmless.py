"""Makes text that others named safe to print."""

import re

# Control characters, and what turns the direction of the text that follows or ends a line of it.
_OBEYED = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def harmless(text: str) -> str:
    """One line of it, in which a terminal obeys nothing: what it would is U+FFFD."""
    return _OBEYED.sub("\ufffd", text)

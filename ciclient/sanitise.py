"""Makes text that a job controls safe to print: of all that a terminal obeys, only SGR passes.

Nothing is dropped but colour that isn't wanted. The rest of what would move the cursor, set a
title, write a clipboard, hide or reorder text becomes visible: controls in caret notation as
`cat -v` and `less` show them, the others by their code point. A lone CR is one of them (`^M`):
what a progress bar painted over stays readable, and nothing can be overprinted.
"""

import re
from collections.abc import Iterable

RESET = "\x1b[0m"

_RESETS = frozenset({"\x1b[m", RESET})

_SPECIAL = re.compile(
    r"(?P<sgr>\x1b\[[0-9;:]{0,64}m)"
    # C0 without TAB, DEL and C1; marks, separators and overrides of text direction; surrogates,
    # which JSON may smuggle and no encoder takes
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(text: str, *, colour: bool = False) -> str:
    """One line of foreign text, without its line end; colour left open is closed."""
    if _SPECIAL.search(text) is None:
        return text
    last_sgr = ""

    def replace(match: re.Match[str]) -> str:
        nonlocal last_sgr
        if match["sgr"] is None:
            return _visible(match[0])
        last_sgr = match[0] if colour else ""
        return last_sgr

    cleaned = _SPECIAL.sub(replace, text)
    return cleaned if not last_sgr or last_sgr in _RESETS else cleaned + RESET


def clean_line(text: str, *, colour: bool) -> str:
    """Like `clean`, for a whole line of a log: the CR of a CRLF is part of its end."""
    return clean(text.removesuffix("\r"), colour=colour)


def clean_block(lines: Iterable[str], *, colour: bool) -> str:
    """Lines of a log as one block of text, each ended by a newline."""
    return "".join([clean_line(line, colour=colour) + "\n" for line in lines])


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return "^" + chr(code ^ 0x40)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that isn't UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"<U+{code:04X}>"

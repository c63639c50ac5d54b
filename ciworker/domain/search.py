"""Finding text in a log's lines: literally, or by RE2's regular expressions.

RE2 takes time linear in the text, but what a byte takes depends on the expression: up to 9 ns for
each instruction of its program (44,000 at most) once its states have no room any more. So what is
searched in one step is bounded by the two together: a step takes 0.2 s at most. A line that is
longer than such a step is searched in windows that overlap by half; in it, a match longer than
that half is not found.

Lines are searched as people read them: without escape sequences, and with U+FFFD for what is no
UTF-8. A piece of a line longer than that is a line here too.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import re2  # type: ignore[import-untyped] # google-re2 has no stubs

from ciworker.domain.log import PackedChunk
from ciworker.errors import Invalid

BLOCK = 64 * 2**10  # bytes of lines that are searched together
WORK = 20_000_000  # bytes, times instructions of the program, in one step
EXPRESSION_MEMORY = 2**20  # bytes of RE2's program and its states, which bound its speed
EXCERPT = 1000  # bytes that are shown of a line

_ESCAPES = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\))")  # CSI, OSC
# Of an expression: what has letters that are no text; and, past quoted and escaped text, what
# means the bounds of the whole text or matches a newline nevertheless.
_NO_TEXT = re.compile(
    r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|[pP]?.)|\(\?(?:P?<\w+>|[a-zA-Z-]+)", re.DOTALL
)
_OTHER_BOUNDS = re.compile(r"\\Q.*?(?:\\E|$)|\\([AzC])|\\.|(\(\?[imsU]*-[isU]*m)", re.DOTALL)

Find = Callable[[bytes, int, int], int]
"""The offset of the next match between two offsets, or -1; it sees what stands around them."""


@dataclass(frozen=True, slots=True)
class Matcher:
    """Finds lines that have what is looked for.

    window: bytes that are searched in one step; None: any number. folds: capitals and small
    letters are alike to it, so it has to be given folded text.
    """

    find: Find
    window: int | None = None
    folds: bool = False

    @property
    def block(self) -> int:
        """How many bytes of lines it is best given at once."""
        return min(BLOCK, self.window or BLOCK)

    def lines(self, block: bytes, pause: Callable[[], None]) -> Iterator[tuple[int, int]]:
        """The lines that have it, each once: its index in the block, and about where it has it.

        Args:
            block: lines, without the last one's newline; one alone may be larger than `block`.
            pause: called between two steps; what it raises ends the search.
        """
        data = _folded(block) if self.folds else block
        line = start = 0
        while (at := self._next(data, start, pause)) >= 0:
            line += data.count(b"\n", start, at)
            yield line, at - data.rfind(b"\n", 0, at) - 1
            line += 1
            start = data.find(b"\n", at) + 1
            if not start:
                return

    def _next(self, data: bytes, start: int, pause: Callable[[], None]) -> int:
        window = self.window or len(data)
        while (at := self.find(data, start, start + window)) < 0 and start + window < len(data):
            pause()
            start += window // 2
        return at


def literal(text: str) -> Matcher:
    """Looks for this text; for capitals and small letters alike, if it has no capital itself."""
    folds = not _has_capital(text)
    needle = _folded(text.encode()) if folds else text.encode()
    return Matcher(lambda data, start, end: data.find(needle, start, end), folds=folds)


def expression(text: str) -> Matcher:
    """Looks for what an RE2 expression matches within a line; case as with `literal`.

    Raises:
        Invalid: it is none, or too large, or it means the bounds of the text, not of a line.
    """
    if any(match[1] or match[2] for match in _OTHER_BOUNDS.finditer(text)):
        raise Invalid(r"q is searched line by line: use ^ and $, not \A, \z, \C or (?-m)")
    options = re2.Options()
    options.max_mem = EXPRESSION_MEMORY
    options.never_nl = True
    options.never_capture = True
    options.log_errors = False
    options.case_sensitive = _has_capital(_NO_TEXT.sub("", text))
    try:
        pattern = re2.compile("(?m)" + text, options)
    except re2.error as error:
        reason = error.args[0].decode(errors="replace").replace("(?m)", "", 1)
        raise Invalid(f"q is no regular expression of RE2: {reason}") from error
    finally:
        re2.purge()  # it would keep 128 expressions with their memory

    def find(data: bytes, start: int, end: int) -> int:
        match = pattern.search(data, start, end)
        return match.start() if match else -1

    return Matcher(find, WORK // max(pattern.programsize, pattern.reverseprogramsize))


def blocks(chunk: PackedChunk, after: int, size: int = BLOCK) -> Iterator[tuple[int, bytes]]:
    """The chunk's lines after number `after` as they are searched, in blocks of up to `size`
    bytes, a longer line in one of its own: the number of the first, and the text.
    """
    text, number, start = _readable(chunk), chunk.first, 0
    if number <= after:
        text, number = text.split(b"\n", after + 1 - number)[-1], after + 1
    while start < len(text):
        end = text.rfind(b"\n", start, start + size)
        if end < 0:
            end = text.find(b"\n", start + size)
        yield number, text[start:end]
        number += text.count(b"\n", start, end) + 1
        start = end + 1


def excerpt(line: bytes, at: int) -> str:
    """A line that was found; of a long one what is around the match, which is about there."""
    if len(line) <= EXCERPT:
        return line.decode()
    start = max(0, min(at - EXCERPT // 4, len(line) - EXCERPT))
    end = start + EXCERPT
    cut = line[start:end].decode(errors="ignore")
    return "…" * (start > 0) + cut + "…" * (end < len(line))


def _readable(chunk: PackedChunk) -> bytes:
    data = chunk.data
    if not chunk.whole:
        data = b"".join(line.text + b"\n" for line in chunk.unpacked().lines())
    if not data.isascii():
        data = data.decode(errors="replace").encode()
    return _ESCAPES.sub(b"", data) if b"\x1b" in data else data


def _has_capital(text: str) -> bool:
    return any(char.isupper() for char in text)


def _folded(data: bytes) -> bytes:
    return data.lower() if data.isascii() else data.decode().casefold().encode()

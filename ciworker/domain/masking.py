"""Masks secrets in what jobs print: their values, and the forms that tools give them.

A line is masked as a whole, whatever reads, frames and pieces it came in: each run of bytes that
belong to a form of a secret becomes `***`. Where a line is cut into pieces, a piece waits until
what follows can no longer tell more of it, and is masked with sight of what stood before it; so
each keeps its place in the engine's log, and is the same after a restart of the worker.

No form has a newline: a value of several lines is looked for line by line. A form of more than
`2 * PART` bytes is looked for in parts: where it is printed in part, or wrapped, a few characters
are left at each break. A shorter one is found whole or not at all.
"""

import json
import re
from base64 import b64encode
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple
from urllib.parse import quote

import hyperscan

from ciworker.domain.log import Cut, Position, readable_tail
from ciworker.domain.secrets import LEAST, Secret

MASKED = b"***"
PART = 32  # bytes of a long form that are looked for together
STEP = 8  # bytes from part to part of what is read by people, and so wrapped
_ROW = 60  # characters of base64; in PEM, the narrowest that is usual, a row has 64
_WINDOW = 8  # characters of longer texts that are looked for together
_HEAD = 4  # bytes
_REPLACED = "\ufffd"
_ESCAPE = re.compile(r"\\(?:u[0-9a-f]{4}|.)")  # of JSON

# What encoders leave as it is beside letters, digits and `_.-`: Python's, Java's, JavaScript's.
_UNQUOTED = ("", "/", "~", "/~", "*", "~!*'()", ";,/?:@&=+$!~*'()#")

Span = tuple[int, int]


class Read(NamedTuple):
    """A cut of a stream, when it was read, and the stream's position behind it.

    raw: how many bytes it had before it was masked.
    """

    cut: Cut
    at: int
    position: Position
    raw: int


def forms(value: str) -> frozenset[bytes]:
    """What is looked for, of one value; each has at least `LEAST` bytes, and at most `2 * PART`."""
    whole = value.strip()
    lines = [line.strip() for line in value.split("\n")]
    long_enough = [line for line in lines if len(line) >= LEAST]
    read, encoded = set[bytes](), set[bytes]()
    for line in long_enough:
        for text in {line, *_json(line)}:
            read |= {text.encode(), *_with_a_split_character(text)}
    for text in {*long_enough, whole}:
        encoded |= _base64(text.encode()) | _quoted(text)
    parts = {*_parts(read, STEP), *_parts(encoded, PART)}
    return frozenset(part for part in parts if len(part) >= LEAST)


def _parts(found: Iterable[bytes], step: int) -> Iterator[bytes]:
    for form in found:
        if len(form) <= 2 * PART:
            yield form
            continue
        yield from (form[start : start + PART] for start in range(0, len(form) - PART, step))
        yield form[-PART:]


def _json(line: str) -> Iterator[str]:
    """As encoders write it: with what is not ASCII escaped, or as it is; Go's and Rails' hide `<>&`
    from HTML, PHP's escapes slashes; and some write hexadecimal digits in capitals.
    """
    for text in (json.dumps(line)[1:-1], json.dumps(line, ensure_ascii=False)[1:-1]):
        html = "".join(f"\\u{ord(c):04x}" if c in "<>&" else c for c in text)
        for form in (text, html, text.replace("/", "\\/")):
            yield form
            yield _ESCAPE.sub(lambda match: match[0][:2] + match[0][2:].upper(), form)


def _with_a_split_character(line: str) -> Iterator[bytes]:
    """As the engine's log has it, where a frame ends within one: U+FFFD for each of its bytes.

    With so much of what stands around it as may be looked for together with it.
    """
    for index, character in enumerate(line):
        if (size := len(character.encode())) > 1:
            before, after = line[max(0, index - 2 * PART) : index], line[index + 1 :][: 2 * PART]
            yield f"{before}{_REPLACED * size}{after}".encode()


def _base64(data: bytes) -> set[bytes]:
    """The characters that do not depend on what stands before the value, or behind it.

    Also those that have bits of its last byte, should nothing or a newline come after it.
    """
    found: set[bytes] = set()
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(data)) // 6
        for after in (b"", b"\n"):
            text = b64encode(bytes(before) + data + after).rstrip(b"=")
            found |= _in_rows(text, first, end) | _in_rows(text, first, len(text))
    return found | {text.translate(bytes.maketrans(b"+/", b"-_")) for text in found}


def _in_rows(text: bytes, first: int, end: int) -> set[bytes]:
    """What is looked for of it, from first to end: of more than a row, what a row may begin with.

    Rows have a multiple of four characters, wherever in the encoded text the value stands.
    """
    if end - first <= _ROW:
        return {text[first:end]}
    starts = {first, *range(first + -first % 4, end - _WINDOW, 4), end - _WINDOW}
    return {text[start : start + _WINDOW] for start in starts}


def _quoted(text: str) -> set[bytes]:
    upper = {quote(text, safe=safe) for safe in _UNQUOTED}
    upper.add("".join(f"%{byte:02X}" for byte in text.encode()))
    upper |= {form.replace("~", "%7E") for form in upper}
    upper |= {form.replace("%20", "+") for form in upper}
    return {form.encode() for form in upper} | {_in_small_letters(form) for form in upper}


def _in_small_letters(form: str) -> bytes:
    first, *others = form.split("%")
    return "%".join([first, *(f"{code[:2].lower()}{code[2:]}" for code in others)]).encode()


class Mask:
    """Finds all forms of some secrets. For one thread at a time."""

    def __init__(self, values: Iterable[Secret]) -> None:
        """Prepare to look for these values; at least one."""
        found = frozenset[bytes]().union(*(forms(value.reveal()) for value in values))
        self._forms = sorted(found)
        self._lengths = [len(form) for form in self._forms]
        self.longest = max(self._lengths)
        self._database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
        self._database.compile(
            expressions=self._forms, ids=range(len(self._forms)), flags=0, literal=True
        )

    def spans(self, data: bytes) -> Sequence[Span]:
        """Where bytes belong to a secret: runs in order, that do not touch."""
        ends: list[Span] = []

        def found(form: int, _start: int, end: int, _flags: int, _context: object) -> None:
            ends.append((end - self._lengths[form], end))

        self._database.scan(data, match_event_handler=found)
        return _merged(sorted(ends)) if ends else ()

    def masked(self, data: bytes) -> bytes:
        """Whole lines, or what is no part of a stream."""
        spans = self.spans(data)
        return _rendered(data, spans, 0, len(data)) if spans else data

    def open_at(self, data: bytes) -> int:
        """From where on the data may be the beginning of a form; its length if it is not."""
        for start in range(max(0, len(data) - self.longest + 1), len(data)):
            if data[start : start + _HEAD] in self._heads and self._begins(data[start:]):
                return start
        return len(data)

    @cached_property
    def _heads(self) -> frozenset[bytes]:
        return frozenset(form[:size] for form in self._forms for size in range(1, _HEAD + 1))

    def _begins(self, text: bytes) -> bool:
        place = bisect_left(self._forms, text)
        return place < len(self._forms) and self._forms[place].startswith(text)


class StreamMask:
    """Masks one stream of one container, cut by cut."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._before = b""  # what stands before what is held, in its line; as much as may matter
        self._held: list[Read] = []
        self._began = False

    @property
    def holds(self) -> bool:
        """Whether a piece of the line that has not ended waits for what follows."""
        return bool(self._held)

    @property
    def blind(self) -> bool:
        """Nothing was fed yet: what stands before that is to be told by `pass_over`."""
        return not self._began

    def pass_over(self, data: bytes) -> None:
        """A frame of the engine's log that was read, and stored, in an earlier life."""
        ended = data.endswith(b"\n")
        self._before = b"" if ended else (self._before + data)[-self._mask.longest :]

    def feed(self, read: Read) -> Iterator[Read]:
        """The next cut; gives those of which all is known, masked."""
        self._began = True
        if read.cut.ended and not self._held and not self._before:
            yield _with(read, self._mask.masked(read.cut.data))
            return
        self._held.append(read)
        yield from self._release(0 if read.cut.ended else self._mask.longest)
        if read.cut.ended:
            self._before = b""

    def finish(self) -> Iterator[Read]:
        """Nothing follows."""
        yield from self._release(0)

    def tail(self, unfinished: bytes, size: int) -> str:
        """The end of the line that has not ended, as far as it is sure to be no secret's part."""
        data = self._text() + unfinished
        spans, start = self._mask.spans(data), len(self._before)
        shown = _rendered(data, spans, start, max(start, self._mask.open_at(data)))
        return readable_tail(shown, size)

    def _release(self, awaited: int) -> Iterator[Read]:
        """Give what is held, as long as so many bytes of the line follow it."""
        data = self._text()
        spans, start = self._mask.spans(data), len(self._before)
        while self._held:
            end = start + len(self._held[0].cut.data)
            if len(data) - end < awaited:
                break
            yield _with(self._held.pop(0), _rendered(data, spans, start, end))
            start = end
        self._before = data[max(0, start - self._mask.longest) : start]

    def _text(self) -> bytes:
        return self._before + b"".join(read.cut.data for read in self._held)


def _with(read: Read, data: bytes) -> Read:
    return read._replace(cut=read.cut._replace(data=data))


def _merged(spans: Sequence[Span]) -> Sequence[Span]:
    merged = [spans[0]]
    for start, end in spans:
        last = merged[-1]
        if start <= last[1]:
            merged[-1] = (last[0], max(last[1], end))
        else:
            merged.append((start, end))
    return merged


def _rendered(data: bytes, spans: Sequence[Span], start: int, end: int) -> bytes:
    """The part from start to end; a run that began before it is left out, without a sign."""
    shown, at = [], start
    for first, last in spans:
        if first >= end:
            break
        if first >= start:
            shown += [data[at:first], MASKED]
        at = max(at, min(last, end))
    shown.append(data[at:end])
    return b"".join(shown)

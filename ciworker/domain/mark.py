"""Marks: lines by which a container speaks to the worker, in the engine's own log.

A mark is an escape sequence that carries a token only the worker and the container know; any other
line that looks like one is text of the job. It ends in a newline because json-file writes nothing
before one comes.

The start mark is the first line a container writes: the proof that a job began. A limits mark tells
at the end which limits the job ran into. A job can read its own token, and so forge a limits mark:
then its message is wrong about that, and nothing else.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ciworker.domain.limit import Limit
from ciworker.domain.log import Cut

MARK_END = b"\x1b\\"
_ESCAPE = b"\x1b"
_LIMITS = frozenset(Limit)


class Marks(NamedTuple):
    """What a container is given to print.

    start: the start mark's line, without its newline. limits: the beginning of a limits mark; a `;`
    with a name for each limit follows, then MARK_END.
    """

    start: bytes
    limits: bytes


def marks_of(token: str, job_id: str, attempt: int) -> Marks:
    """Those of one attempt of a job."""
    mark = f"\x1b]ciworker;{token};{job_id};{attempt}".encode()
    return Marks(mark + MARK_END, mark + b";limits")


def start_mark(token: str, job_id: str, attempt: int) -> bytes:
    """The mark's line, without its newline."""
    return marks_of(token, job_id, attempt).start


class LimitsMarks:
    """Finds the limits marks of one container, and leaves them out.

    It prints each twice: the first stands behind a last line without a newline, if there is one,
    and may there be cut by the end of a frame or piece; the second is always a line of its own.
    """

    def __init__(self, token: str, job_id: str, attempt: int) -> None:
        self._beginning = marks_of(token, job_id, attempt).limits
        names = rb"((?:;[a-z-]{1,20}){1,8})"
        self._line = re.compile(re.escape(self._beginning) + names + re.escape(MARK_END) + b"\n")

    def begin_in(self, data: bytes) -> bool:
        """Whether one begins there. Most output has no escape at all, which is found out sooner."""
        return _ESCAPE in data and self._beginning in data

    def told(self, data: bytes) -> frozenset[Limit]:
        """The limits that the marks in this data tell of; names that are none are passed over."""
        names = {name for found in self._line.findall(data) for name in found[1:].split(b";")}
        return frozenset(Limit(text) for name in names if (text := name.decode()) in _LIMITS)

    def without(self, lines: bytes) -> Iterator[tuple[Cut, int]]:
        """What is left of whole lines, and how many of these lines end with each part of it.

        What stood before a mark in its line is a last line without a newline.
        """
        start = behind = 0
        for found in self._line.finditer(lines):
            whole = lines.rfind(b"\n", start, found.start()) + 1 or start
            if count := lines.count(b"\n", start, whole):
                yield Cut(lines[start:whole], count, True), behind + count
            behind += count + 1
            if rest := lines[whole : found.start()]:
                yield Cut(rest, 1, False), behind
            start = found.end()
        if count := lines.count(b"\n", start):
            yield Cut(lines[start:], count, True), behind + count

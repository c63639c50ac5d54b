"""A job's log as values: lines, chunks of lines, cursors into the engine's own log.

Lines stay bytes and batches stay batches. A chunk holds the lines of one commit: their bytes one
after the other, and runs that say which of them came from which stream and when. A line longer
than PIECE bytes is kept in pieces, each numbered as a line of its own.
"""

import codecs
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import NamedTuple

FRAME = 16 * 1024  # json-file cuts a line into frames of this size: engine-facts, rule 11
PIECE = 4 * FRAME
LINES_PER_CUT = 2048  # what is worked on in one step stays small, also of empty lines


class Stream(IntEnum):
    """Who wrote a line; the first two are numbered as the engine numbers them."""

    STDOUT = 1
    STDERR = 2
    WORKER = 3  # said by the worker itself, about the job

    @property
    def label(self) -> str:
        return self.name.lower()


class Run(NamedTuple):
    """Consecutive lines of one stream that were read at one time.

    at: milliseconds since the epoch. size: bytes, newlines included. ended: False for a piece
    without a newline at its end, which stands in a run of its own.
    """

    stream: Stream
    at: int
    lines: int
    size: int
    ended: bool


_RUN = struct.Struct("<BqII?")


def pack_runs(runs: Sequence[Run]) -> bytes:
    return b"".join(_RUN.pack(*run) for run in runs)


def unpack_runs(data: bytes) -> tuple[Run, ...]:
    return tuple(
        Run(Stream(stream), at, lines, size, ended)
        for stream, at, lines, size, ended in _RUN.iter_unpack(data)
    )


class Line(NamedTuple):
    """One numbered line; text without its newline."""

    number: int
    stream: Stream
    at: int
    text: bytes
    ended: bool


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Chunk:
    """Lines `first` to `last` of a job's log, in the order in which they were read."""

    first: int
    data: bytes
    runs: tuple[Run, ...]
    count: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", sum(run.lines for run in self.runs))

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    def lines(self) -> Iterator[Line]:
        number, start = self.first, 0
        for run in self.runs:
            block = self.data[start : start + run.size]
            start += run.size
            texts = block[:-1].split(b"\n") if run.ended else [block]
            for text in texts:
                yield Line(number, run.stream, run.at, text, run.ended)
                number += 1

    def after(self, number: int) -> "Chunk":
        """The part of this chunk that comes after line `number`."""
        if number < self.first:
            return self
        kept = [line for line in self.lines() if line.number > number]
        return chunk_of(kept, number + 1)

    def upto(self, number: int) -> "Chunk":
        """The part of this chunk up to line `number`, which it holds or which comes after it."""
        if number >= self.last:
            return self
        return chunk_of([line for line in self.lines() if line.number <= number], self.first)


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk as it is stored: what takes longest to read, its runs, is not read yet."""

    first: int
    count: int
    data: bytes
    runs: bytes

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def whole(self) -> bool:
        """Each of its lines has a newline at its end."""
        return 0 not in self.runs[_RUN.size - 1 :: _RUN.size]

    def unpacked(self) -> Chunk:
        return Chunk(self.first, self.data, unpack_runs(self.runs))


def chunk_of(lines: Sequence[Line], first: int) -> Chunk:
    """A chunk of these lines; numbers are given anew from `first`."""
    runs = [Run(line.stream, line.at, 1, len(line.text) + line.ended, line.ended) for line in lines]
    data = b"".join(line.text + b"\n" if line.ended else line.text for line in lines)
    return Chunk(first, data, merge_runs(runs))


def merge_runs(runs: Sequence[Run]) -> tuple[Run, ...]:
    """The same lines in as few runs as possible."""
    merged: list[Run] = []
    for run in runs:
        last = merged[-1] if merged else None
        if last and run.ended and last[:2] == run[:2] and last.ended:
            merged[-1] = last._replace(lines=last.lines + run.lines, size=last.size + run.size)
        else:
            merged.append(run)
    return tuple(merged)


@dataclass(frozen=True, slots=True)
class Position:
    """How much of one stream of the engine's log is behind us.

    lines: complete lines. frames: whole 16 KiB frames of the line after them. Bytes cannot be
    counted: json-file replaces those that are not UTF-8 (engine-facts, rule 10).
    """

    lines: int = 0
    frames: int = 0


@dataclass(frozen=True, slots=True)
class Cursor:
    """Positions in both streams, for one attempt of a job."""

    stdout: Position = Position()
    stderr: Position = Position()

    def of(self, stream: Stream) -> Position:
        return self.stdout if stream is Stream.STDOUT else self.stderr

    def moved(self, stream: Stream, position: Position) -> "Cursor":
        if stream is Stream.STDOUT:
            return replace(self, stdout=position)
        return replace(self, stderr=position)

    @property
    def moved_at_all(self) -> bool:
        return self != Cursor()


@dataclass(frozen=True, slots=True)
class LogFrame:
    """One entry of the engine's json-file log: a line, or 16 KiB of one.

    at: milliseconds since the epoch, by the engine's clock.
    """

    stream: Stream
    at: int
    data: bytes


class Unfinished(NamedTuple):
    """What a stream has printed since its last newline: its end, readable, not yet a line.

    at: milliseconds since the epoch, when the last of it was read.
    """

    stream: Stream
    at: int
    text: str


class Cut(NamedTuple):
    """What a splitter found: bytes of whole lines, or one piece without a newline."""

    data: bytes
    lines: int
    ended: bool


_Utf8 = codecs.getincrementaldecoder("utf-8")
_CONTINUATIONS = bytes(range(0x80, 0xC0))  # the bytes of a UTF-8 character after its first


def readable_tail(data: bytes, size: int) -> str:
    """The last `size` bytes of an unfinished line, without characters that are cut at its ends."""
    end = data[-size:]
    return _Utf8("replace").decode(end.lstrip(_CONTINUATIONS) if size < len(data) else end)


class LineSplitter:
    """Cuts one stream into lines and pieces and knows its position in the engine's log.

    Fed either with bytes as they were written (`feed`) or with frames of the engine's log
    (`feed_frame`); `reset` forgets an unfinished line when the source changes, so that it is read
    again from `position`.
    """

    def __init__(self, position: Position = Position()) -> None:
        self.position = position
        self._partial = bytearray()
        self._frames = 0  # frames in _partial, while fed with frames

    @property
    def unfinished(self) -> int:
        """Bytes held of the line that has no newline yet."""
        return len(self._partial)

    @property
    def partial(self) -> bytes:
        """That line, as far as it is not yet cut off as a piece."""
        return bytes(self._partial)

    def tail(self, size: int) -> str:
        """The last `size` bytes of that line, readable."""
        return readable_tail(self.partial, size)

    def reset(self) -> None:
        self._partial.clear()
        self._frames = 0

    def feed(self, data: bytes) -> Iterator[Cut]:
        """Bytes as the job wrote them."""
        while data:
            if not self._partial and (whole := data.rfind(b"\n", 0, _window(data)) + 1):
                yield self._whole(data[:whole])
                data = data[whole:]
            else:
                room = PIECE - len(self._partial)
                end = data.find(b"\n", 0, room) + 1
                self._partial += data[: end or room]
                data = data[end or room :]
                if end or len(self._partial) == PIECE:
                    yield self._take(ended=bool(end), frames=4)

    def feed_frame(self, data: bytes) -> Iterator[Cut]:
        """One entry of the engine's log."""
        self._partial += data
        self._frames += 1
        if data.endswith(b"\n"):
            yield self._take(ended=True, frames=0)
        elif self._frames == 4:
            yield self._take(ended=False, frames=4)

    def finish(self) -> Iterator[Cut]:
        """The stream is at its end: what is left is a last line without a newline."""
        if self._partial:
            frames = self._frames or -(-len(self._partial) // FRAME)
            yield self._take(ended=False, frames=frames)

    def _whole(self, data: bytes) -> Cut:
        lines = data.count(b"\n")
        self.position = Position(self.position.lines + lines)
        return Cut(data, lines, True)

    def _take(self, *, ended: bool, frames: int) -> Cut:
        data = bytes(self._partial)
        self.reset()
        before = self.position
        self.position = (
            Position(before.lines + 1) if ended else Position(before.lines, before.frames + frames)
        )
        return Cut(data, 1, ended)


def _window(data: bytes) -> int:
    """How far to look for whole lines: a piece, or as many bytes as lines are allowed."""
    return LINES_PER_CUT if data.count(b"\n", 0, PIECE) > LINES_PER_CUT else PIECE


class Skipper:
    """Leaves out the part of an engine's log that is behind a cursor."""

    def __init__(self, cursor: Cursor) -> None:
        self._left = {
            Stream.STDOUT: [cursor.stdout.lines, cursor.stdout.frames],
            Stream.STDERR: [cursor.stderr.lines, cursor.stderr.frames],
        }

    def wants(self, frame: LogFrame) -> bool:
        left = self._left[frame.stream]
        if left[0]:
            left[0] -= frame.data.endswith(b"\n")
            return False
        if left[1]:
            left[1] -= 1
            return False
        return True

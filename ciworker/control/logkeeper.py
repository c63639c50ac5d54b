"""Makes stored lines of what is read of one container: **stored first, then shown**.

What was read waits here until the log writer takes it. Marks, and what stands before the first of
them, are kept out, and so is most of what a job prints past its limit. Secrets are masked here,
before anything else sees a line; the cursor stays that of the engine's log.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ciworker.control.credentials import NOTHING, Grant
from ciworker.control.unfinished import UnfinishedLines
from ciworker.domain.job import Job, Mark, Status
from ciworker.domain.limit import Limit
from ciworker.domain.log import (
    LINES_PER_CUT,
    Chunk,
    Cursor,
    Cut,
    LineSplitter,
    LogFrame,
    Position,
    Run,
    Stream,
    merge_runs,
)
from ciworker.domain.mark import LimitsMarks, start_mark
from ciworker.domain.masking import Read, StreamMask
from ciworker.feed.feed import Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter
from ciworker.units import format_size, plural

BUFFER = 8 * 2**20
CHUNK_BYTES = 128 * 2**10
PREAMBLE_BYTES = 4 * 2**10
_REPLACED = "\ufffd".encode()


@dataclass(frozen=True, slots=True)
class LogLimits:
    """Bytes of a job's output that are kept, and past which it is stopped.

    After the limit the last `tail` bytes are kept as well. `engine_bytes` bounds the engine's own
    file, in which a line costs up to 71 times its bytes: past it, rotation would destroy the mark
    and the cursor.
    """

    kept: int
    engine_bytes: int

    @property
    def tail(self) -> int:
        return min(64 * 2**10, self.kept // 4)


class _Item(NamedTuple):
    run: Run
    data: bytes
    position: Position | None  # of the run's stream, behind it; None for the worker's own lines
    read_at: float = 0.0  # monotonic, whatever time the run tells; set when it is to be stored


class _Tail:
    """The last bytes past the limit. left_out: lines before them, and their bytes."""

    def __init__(self, size: int) -> None:
        self.items: deque[_Item] = deque()
        self.left_out = (0, 0)
        self._most, self._bytes = size, 0

    def add(self, item: _Item) -> None:
        self.items.append(item)
        self._bytes += len(item.data)
        while self._bytes > self._most and len(self.items) > 1:
            dropped = self.items.popleft()
            lines, size = self.left_out
            self._bytes -= len(dropped.data)
            self.left_out = (lines + dropped.run.lines, size + len(dropped.data))


class LogKeeper:
    """One container's lines on their way into the log; a `Source` of the log writer.

    mark: whether the start mark was read. marked_at: when, monotonic. preamble: what stood before
    it. over_limit: the job has printed more than is kept. incomplete: lines may be missing. ended:
    everything that there is was read. complete: and it is stored. masks: there are secrets to mask.
    limits: that the container said its job ran into.
    """

    def __init__(
        self,
        job: Job,
        *,
        writer: LogWriter,
        topic: Topic,
        end: LogEnd,
        limits: LogLimits,
        on_progress: Callable[[], None],
        grant: Grant = NOTHING,
    ) -> None:
        """Take up where the stored log ends.

        Args:
            job: whose attempt the container is.
            writer: stores the lines.
            topic: shows them, once stored.
            end: of the stored log.
            limits: of the log.
            on_progress: called when `mark`, `complete` or `over_limit` changed.
            grant: the secrets that the container was given.
        """
        self.mark = Mark.SEEN if job.status is Status.RUNNING else Mark.UNKNOWN
        self.marked_at: float | None = None
        self.preamble = b""
        self.over_limit = False
        self.incomplete = job.log_incomplete
        self.ended = False
        self.complete = False
        self.limits: frozenset[Limit] = frozenset()

        self._job_id, self._attempt = job.id, job.attempt
        self._writer, self._topic = writer, topic
        self._limits, self._on_progress = limits, on_progress
        self._mark_line = start_mark(job.mark_token, job.id, job.attempt)
        self._limits_marks = LimitsMarks(job.mark_token, job.id, job.attempt)

        cursor = end.cursor if end.attempt == job.attempt else Cursor()
        if cursor.moved_at_all:
            self.mark = Mark.SEEN  # nothing is stored of a container before its mark
        self._expects_mark = cursor.stdout == Position()
        self._splitters = {
            Stream.STDOUT: LineSplitter(cursor.stdout),
            Stream.STDERR: LineSplitter(cursor.stderr),
        }
        self._stored_cursor = cursor
        self._next_line = end.last + 1
        self._grant, self.masks = grant, grant.mask is not None
        self._plain = not (self.masks or grant.withheld)
        self._withholds = False
        self._left_out = grant.left_out if end.attempt != job.attempt else ()
        self._masks = {
            stream: StreamMask(grant.mask) for stream in self._splitters if grant.mask is not None
        }
        self._passed_bytes = 0
        self._total_bytes = end.total_bytes
        self._engine_lines = cursor.stdout.lines + cursor.stderr.lines
        self._kept_bytes = end.total_bytes - end.before_attempt
        topic.show_unfinished({}, end.last)
        self._unfinished = UnfinishedLines(topic, self._splitters, self)

        self._pending: deque[_Item] = deque()
        self._tail = _Tail(limits.tail)
        self._backlog = 0  # bytes not stored yet
        self._taken = 0  # those of them that the writer holds
        self._read_at: deque[float] = deque()  # of the writer's batches, the first line, monotonic
        self._returned = asyncio.Event()
        self._returned.set()
        self._drained = asyncio.Event()
        self._drained.set()
        self._completed = asyncio.Event()
        self._last_output = time.monotonic()

    # what the pump calls

    @property
    def cursor(self) -> Cursor:
        """How much of the engine's log has been read."""
        return Cursor(
            self._splitters[Stream.STDOUT].position, self._splitters[Stream.STDERR].position
        )

    @property
    def overflows(self) -> bool:
        """More is read than may wait to be stored."""
        return self._backlog > BUFFER

    @property
    def last_output(self) -> float:
        """Monotonic; now, while nothing is read because the store is behind."""
        return self._last_output if self._drained.is_set() else time.monotonic()

    async def room(self, within: float | None = None) -> bool:
        """Wait until there is room for more; False if there is none within so many seconds."""
        try:
            async with asyncio.timeout(within):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    def feed(self, stream: Stream, data: bytes) -> None:
        """Bytes as the job wrote them."""
        at, splitter = _now(), self._splitters[stream]
        self._take(stream, splitter.feed(data), at)
        if splitter.unfinished or (self.masks and self._masks[stream].holds):
            self._unfinished.read(stream, at)

    def feed_frame(self, frame: LogFrame) -> None:
        """One entry of the engine's log."""
        splitter = self._splitters[frame.stream]
        self._take(frame.stream, splitter.feed_frame(frame.data), frame.at)

    def pass_over(self, frame: LogFrame) -> None:
        """An entry of the engine's log that is stored already, on the way to where it goes on.

        What it tells is a limits mark behind which the job's leftovers printed more; and to the
        mask, what stands before the next one in its line, and how much the job had printed: less
        may be stored. U+FFFD stands for one byte each.
        """
        if self._limits_marks.begin_in(frame.data):
            self.limits |= self._limits_marks.told(frame.data)
        if self.masks and self._masks[frame.stream].blind:
            self._masks[frame.stream].pass_over(frame.data)
            self._passed_bytes += len(frame.data) - 2 * frame.data.count(_REPLACED)
            self._kept_bytes = max(self._kept_bytes, self._passed_bytes)

    def start_over(self) -> None:
        """Unfinished lines are read again, from another source."""
        self._passed_bytes = 0
        for splitter in self._splitters.values():
            splitter.reset()
        self._unfinished.hide()

    def finish(self, *, unreadable: bool = False) -> None:
        """Everything there is was read: what is unfinished is a last line without a newline."""
        if unreadable and self.mark is Mark.UNKNOWN:
            self.mark = Mark.UNREADABLE
        self._unfinished.stop()
        for stream, splitter in self._splitters.items():
            self._take(stream, splitter.finish(), _now())
            for read in self._masks[stream].finish() if self.masks else ():
                self._keep(stream, read)
        lines, size = self._tail.left_out
        if lines:
            self._say(
                f"ciworker: {plural(lines, 'line')} ({format_size(size)}) left out here: the job "
                "printed more than log_limit allows"
            )
        for item in self._tail.items:
            self._push(item)
        self._tail.items.clear()
        if self.mark is not Mark.SEEN:
            self._drop_unmarked()
        self.ended = True
        self._writer.hurry()
        self._settle()

    async def completed(self, timeout: float) -> bool:
        """Wait until everything is stored and shown."""
        try:
            async with asyncio.timeout(timeout):
                await self._completed.wait()
        except TimeoutError:
            return False
        return True

    async def abandoned(self) -> None:
        """Let go of what the writer has not taken; return when it has stored what it took."""
        self._unfinished.hide()
        self._pending.clear()
        self._tail.items.clear()
        self._backlog = self._taken
        await self._returned.wait()

    # what the unfinished lines ask

    @property
    def backlog(self) -> int:
        """Bytes of lines that were read and are not stored yet."""
        return self._backlog

    def shows(self, stream: Stream) -> bool:
        """Whether what this stream prints now is the job's, and will be its next line."""
        seen = self.mark is Mark.SEEN and not self._awaits_mark(stream)
        if not seen or self.over_limit or self._grant.withheld:
            return False
        return not self._limits_marks.begin_in(self._splitters[stream].partial)

    def tail(self, stream: Stream, size: int) -> str:
        """The last `size` bytes of what this stream has printed since its last newline, masked."""
        splitter = self._splitters[stream]
        if not self.masks:
            return splitter.tail(size)
        return self._masks[stream].tail(splitter.partial, size)

    # what the log writer calls

    def take(self) -> Batch | None:
        if not self._pending or self.mark is not Mark.SEEN:
            return None
        items, size, lines = [], 0, 0
        while self._pending and size < CHUNK_BYTES and lines < LINES_PER_CUT:
            item = self._pending.popleft()
            items.append(item)
            size += len(item.data)
            lines += item.run.lines
        for item in items:
            if item.position is not None:
                self._stored_cursor = self._stored_cursor.moved(item.run.stream, item.position)
        chunk = Chunk(
            self._next_line,
            b"".join(item.data for item in items),
            merge_runs([item.run for item in items]),
        )
        self._next_line = chunk.last + 1
        self._read_at.append(items[0].read_at)
        self._total_bytes += size
        self._taken += size
        self._returned.clear()
        return Batch(self._job_id, self._attempt, chunk, self._total_bytes, self._stored_cursor)

    def stored(self, batch: Batch) -> None:
        self._taken -= len(batch.chunk.data)
        if not self._taken:
            self._returned.set()
        self._backlog -= len(batch.chunk.data)
        self._topic.append(batch.chunk, self._read_at.popleft())
        if self._backlog < BUFFER // 2 and not self._drained.is_set():
            self._last_output = time.monotonic()
            self._drained.set()
        self._unfinished.stored(len(batch.chunk.data))
        self._settle()

    # lines

    def _take(self, stream: Stream, cuts: Iterable[Cut], at: int) -> None:
        splitter = self._splitters[stream]
        for cut in cuts:
            self._engine_lines += cut.lines
            self._last_output = time.monotonic()
            text = self._after_mark(cut) if self._awaits_mark(stream) else cut
            if not text.data:
                continue
            read = Read(text, at, splitter.position, len(text.data))
            if text.ended and self._limits_marks.begin_in(text.data):
                self._keep_unmarked(stream, read)
            else:
                self._keep_any(stream, read)

    def _keep_unmarked(self, stream: Stream, read: Read) -> None:
        """Leave out limits marks; they count as printed, or a flood of them would be unbounded."""
        lines = read.cut.data
        self.limits |= self._limits_marks.told(lines)
        first = read.position.lines - read.cut.lines
        for cut, upto in self._limits_marks.without(lines):
            position = Position(first + upto)
            self._keep_any(stream, Read(cut, read.at, position, len(cut.data)))
            read = read._replace(raw=read.raw - len(cut.data))
        self._count(read.raw)

    def _keep_any(self, stream: Stream, read: Read) -> None:
        if self._plain:
            self._keep(stream, read)
        else:
            self._keep_masked(stream, read)

    def _keep_masked(self, stream: Stream, read: Read) -> None:
        if self.masks:
            for masked in self._masks[stream].feed(read):
                self._keep(stream, masked)
            return
        if not self._withholds:
            self._withholds = self.incomplete = True
            self._say(f"ciworker: {self._grant.withheld}")
        self._count(read.raw)

    def _awaits_mark(self, stream: Stream) -> bool:
        return self._expects_mark and stream is Stream.STDOUT

    def _after_mark(self, cut: Cut) -> Cut:
        """Leave out the mark and what stands before it; `preamble` keeps the latter."""
        before, found, after = cut.data.partition(self._mark_line + b"\n")
        if not found or (before and not before.endswith(b"\n")):
            self._add_preamble(cut.data)
            return Cut(b"", 0, True)
        self._add_preamble(before)
        self._expects_mark = False
        for told in self._left_out:
            self._say(f"ciworker: {told}: it is left out of the job's environment")
        if self.mark is not Mark.SEEN:
            self.mark, self.marked_at = Mark.SEEN, time.monotonic()
            self._writer.ready(self)
            self._on_progress()
        return Cut(after, after.count(b"\n"), True)

    def _add_preamble(self, data: bytes) -> None:
        shown = data if self._grant.mask is None else self._grant.mask.masked(data)
        self.preamble = (self.preamble + shown)[:PREAMBLE_BYTES]

    def _keep(self, stream: Stream, read: Read) -> None:
        data, lines, ended = read.cut
        item = _Item(Run(stream, read.at, lines, len(data), ended), data, read.position)
        if not data:
            self._count(read.raw)  # all of a piece belongs to a secret that began before it
        elif self.over_limit:
            self._tail.add(item)
        else:
            self._push(item)
            self._count(read.raw)

    def _count(self, size: int) -> None:
        """So many more bytes were printed: whatever is stored of them, the engine has them."""
        self._kept_bytes += size
        engine_bytes = max(6 * self._kept_bytes, self._kept_bytes + 80 * self._engine_lines)
        over = self._kept_bytes > self._limits.kept or engine_bytes > self._limits.engine_bytes
        if over and not self.over_limit:
            self.over_limit = True
            self._unfinished.hide()  # what follows is no next line any more
            self._on_progress()

    def _push(self, item: _Item) -> None:
        self._pending.append(item._replace(read_at=time.monotonic()))
        self._backlog += len(item.data)
        if self._backlog > BUFFER:
            self._drained.clear()
        if self._backlog > CHUNK_BYTES:
            self._writer.hurry()
        if self.mark is Mark.SEEN:
            self._writer.ready(self)
        elif self._backlog > BUFFER // 2:  # noise of an unpacking that fails: the newest is kept
            self._backlog -= len(self._pending.popleft().data)

    def _drop_unmarked(self) -> None:
        """The job never began: what the shim said belongs to the message, not to the log."""
        self._add_preamble(b"".join(item.data for item in self._pending))
        self._pending.clear()
        self._backlog = 0
        if self.mark is Mark.UNKNOWN:
            self.mark = Mark.ABSENT

    def _say(self, text: str) -> None:
        data = text.encode() + b"\n"
        self._push(_Item(Run(Stream.WORKER, _now(), 1, len(data), True), data, None))

    def _settle(self) -> None:
        if self.ended and not self._backlog and not self.complete:
            self.complete = True
            self._completed.set()
            self._on_progress()


def _now() -> int:
    return time.time_ns() // 1_000_000

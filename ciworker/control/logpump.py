"""Brings one container's output into the log: **stored first, then shown**.

Live it reads the attached stream, which is cheap and complete. A reader of attach that stalls
blocks the container's control, so between it and the store stands a bounded buffer; when that is
full the connection is dropped and the pump goes on from the engine's own log, as it does for an
adopted container or after a broken connection. A log is complete only when the attached stream
ended by itself after the container went down, or when the engine's log was read to its end without
`follow` after that (engine-facts, rules 7-12).
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from ciworker.domain.container import Container
from ciworker.domain.job import Job, Mark, Status
from ciworker.domain.log import (
    LINES_PER_CUT,
    Chunk,
    Cursor,
    Cut,
    LineSplitter,
    Position,
    Run,
    Skipper,
    Stream,
    merge_runs,
)
from ciworker.domain.mark import start_mark
from ciworker.engine.port import Attachment, Engine
from ciworker.errors import ContainerMissing, EngineRefused, EngineUnavailable
from ciworker.feed.feed import Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter
from ciworker.telemetry import logger
from ciworker.units import format_size

BUFFER = 8 * 2**20
CHUNK_BYTES = 128 * 2**10
PREAMBLE_BYTES = 4 * 2**10
END_OF_STREAM_WAIT = 1.0  # the end of an attached stream may never come: engine-facts, rule 8
RETRY_DELAY = 0.5


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


class LogPump:
    """One container's way into the log; a `Source` of the log writer."""

    def __init__(
        self,
        job: Job,
        container: str,
        *,
        engine: Engine,
        writer: LogWriter,
        topic: Topic,
        end: LogEnd,
        limits: LogLimits,
        on_progress: Callable[[], None],
    ) -> None:
        """Take up where the stored log ends.

        Args:
            job: whose attempt the container is.
            container: the engine's id of it.
            engine: where the container is.
            writer: stores the lines.
            topic: shows them, once stored.
            end: of the stored log.
            limits: of the log.
            on_progress: called when `mark`, `complete` or `over_limit` changed, and when only
                a look at the container tells how to go on.
        """
        self.mark = Mark.SEEN if job.status is Status.RUNNING else Mark.UNKNOWN
        self.marked_at: float | None = None
        self.complete = False
        self.incomplete = job.log_incomplete
        self.over_limit = False
        self.attached = False
        self.preamble = b""

        self._job_id, self._attempt, self._container = job.id, job.attempt, container
        self._engine, self._writer, self._topic = engine, writer, topic
        self._limits, self._on_progress = limits, on_progress
        self._mark_line = start_mark(job.mark_token, job.id, job.attempt)

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
        self._total_bytes = end.total_bytes
        self._engine_lines = cursor.stdout.lines + cursor.stderr.lines

        self._pending: deque[_Item] = deque()
        self._tail: deque[_Item] = deque()
        self._tail_bytes = 0
        self._left_out = [0, 0]  # lines, bytes
        self._backlog = 0  # bytes not stored yet
        self._taken = 0  # those of them that the writer holds
        self._returned = asyncio.Event()
        self._returned.set()
        self._kept_bytes = end.total_bytes - end.before_attempt
        self._drained = asyncio.Event()
        self._drained.set()
        self._ended = False
        self._completed = asyncio.Event()

        self._is_down = False
        self._finished = 0.0  # when the container went down, by the engine's clock
        self._told = asyncio.Event()
        self._last_output = time.monotonic()
        self._source_ended: float | None = None
        self._patience = asyncio.timeout(None)

    @property
    def last_output(self) -> float:
        """Monotonic; now, while nothing is read because the store is behind."""
        return self._last_output if self._drained.is_set() else time.monotonic()

    async def run(self, attachment: Attachment | None) -> None:
        """Read until the log is complete.

        Args:
            attachment: opened before the container was started; None to read the engine's log.
        """
        if attachment is not None and await self._read_attached(attachment):
            ended = time.time()
            await self._wait_to_be_told()
            if self._is_down and self._finished <= ended:
                self._finish()
                return
            # else a connection that was cut, or an engine that stopped, ended it: a clean end too
        while not self._ended:
            await self._read_engine_log()

    def container_up(self) -> None:
        """The controller looked: the container is up. An ended source is then followed again."""
        ended = self._source_ended
        if ended is not None and time.monotonic() - ended >= END_OF_STREAM_WAIT:
            self._told.set()

    def container_down(self, container: Container | None) -> None:
        """The controller looked: the container is down, or gone."""
        if self._is_down:
            return
        self._is_down = True
        if container is not None and container.finished_at is not None:
            self._finished = container.finished_at.timestamp()
        else:
            self._finished = time.time() - END_OF_STREAM_WAIT
        self._told.set()
        if self._patience.when() is None and self._source_ended is None:
            self._set_patience(END_OF_STREAM_WAIT)

    async def completed(self, timeout: float) -> bool:
        """Wait until everything is stored and shown."""
        try:
            async with asyncio.timeout(timeout):
                await self._completed.wait()
        except TimeoutError:
            return False
        return True

    def give_up(self) -> None:
        """The rest of the log cannot be had: what was read is all there is."""
        if not self._ended:
            self.incomplete = True
            self._finish()

    async def abandoned(self) -> None:
        """Let go of what the writer has not taken; return when it has stored what it took."""
        self._pending.clear()
        self._tail.clear()
        self._backlog = self._taken
        await self._returned.wait()

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
        self._total_bytes += size
        self._taken += size
        self._returned.clear()
        return Batch(self._job_id, self._attempt, chunk, self._total_bytes, self._stored_cursor)

    def stored(self, batch: Batch) -> None:
        self._taken -= len(batch.chunk.data)
        if not self._taken:
            self._returned.set()
        self._backlog -= len(batch.chunk.data)
        self._topic.append(batch.chunk)
        if self._backlog < BUFFER // 2 and not self._drained.is_set():
            self._last_output = time.monotonic()
            self._drained.set()
        self._settle()

    # sources

    async def _read_attached(self, attachment: Attachment) -> bool:
        """True when the stream ended by itself."""
        self.attached = True
        try:
            async with self._patiently():
                while (message := await attachment.read()) is not None:
                    stream, data = message
                    self._take(stream, self._splitters[stream].feed(data), _now())
                    if self._backlog > BUFFER:
                        logger().warning("attach dropped: the store is slower than the job")
                        return False
                self._source_ended = time.monotonic()
                return True
        except (EngineUnavailable, TimeoutError) as error:
            logger().info("attached stream lost", error=str(error))
            return False
        finally:
            self.attached = False
            await attachment.close()

    async def _read_engine_log(self) -> None:
        await self._drained.wait()
        for splitter in self._splitters.values():
            splitter.reset()
        follow = not self._is_down
        try:
            async with self._patiently():
                await self._read_frames(follow=follow)
        except (ContainerMissing, EngineRefused):
            self._lose()
        except TimeoutError:
            return  # it is down, and the followed stream did not end: read it without `follow`
        except EngineUnavailable as error:
            logger().info("engine's log lost", error=str(error))
            await asyncio.sleep(RETRY_DELAY)
        else:
            if follow:
                self._source_ended = time.monotonic()
                await self._wait_to_be_told()
            else:
                self._finish()

    async def _read_frames(self, *, follow: bool) -> None:
        skipper = Skipper(
            Cursor(self._splitters[Stream.STDOUT].position, self._splitters[Stream.STDERR].position)
        )
        async for frames in self._engine.log(self._container, follow=follow):
            for frame in frames:
                if skipper.wants(frame):
                    splitter = self._splitters[frame.stream]
                    self._take(frame.stream, splitter.feed_frame(frame.data), frame.at)
            await self._drained.wait()

    async def _wait_to_be_told(self) -> None:
        """The source is at its end: only a look at the container says what that means.

        The event that tells of its exit is about to come; a look is asked for if it does not.
        """
        if not self._is_down:
            self._told.clear()
            again = asyncio.get_running_loop().call_later(END_OF_STREAM_WAIT, self._on_progress)
            try:
                await self._told.wait()
            finally:
                again.cancel()
        self._source_ended = None

    def _patiently(self) -> asyncio.Timeout:
        """Bounds a read in time from when the container is known to be down."""
        self._patience = asyncio.timeout(None)
        return self._patience

    def _set_patience(self, seconds: float) -> None:
        try:
            self._patience.reschedule(asyncio.get_running_loop().time() + seconds)
        except RuntimeError:
            return  # no read is under way

    # lines

    def _take(self, stream: Stream, cuts: Iterable[Cut], at: int) -> None:
        splitter = self._splitters[stream]
        for cut in cuts:
            self._engine_lines += cut.lines
            self._last_output = time.monotonic()
            text = self._after_mark(cut) if self._awaits_mark(stream) else cut
            if text.data:
                run = Run(stream, at, text.lines, len(text.data), text.ended)
                self._keep(_Item(run, text.data, splitter.position))

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
        if self.mark is not Mark.SEEN:
            self.mark, self.marked_at = Mark.SEEN, time.monotonic()
            self._writer.ready(self)
            self._on_progress()
        return Cut(after, after.count(b"\n"), True)

    def _add_preamble(self, data: bytes) -> None:
        self.preamble = (self.preamble + data)[:PREAMBLE_BYTES]

    def _keep(self, item: _Item) -> None:
        if self.over_limit:
            self._keep_in_tail(item)
            return
        self._push(item)
        self._kept_bytes += len(item.data)
        engine_bytes = max(6 * self._kept_bytes, self._kept_bytes + 80 * self._engine_lines)
        if self._kept_bytes > self._limits.kept or engine_bytes > self._limits.engine_bytes:
            self.over_limit = True
            self._on_progress()

    def _push(self, item: _Item) -> None:
        self._pending.append(item)
        self._backlog += len(item.data)
        if self._backlog > BUFFER:
            self._drained.clear()
        if self.mark is Mark.SEEN:
            self._writer.ready(self)
        elif self._backlog > BUFFER // 2:  # noise of an unpacking that fails: the newest is kept
            self._backlog -= len(self._pending.popleft().data)

    def _keep_in_tail(self, item: _Item) -> None:
        self._tail.append(item)
        self._tail_bytes += len(item.data)
        while self._tail_bytes > self._limits.tail and len(self._tail) > 1:
            dropped = self._tail.popleft()
            self._tail_bytes -= len(dropped.data)
            self._left_out[0] += dropped.run.lines
            self._left_out[1] += len(dropped.data)

    # the end

    def _finish(self) -> None:
        """Everything there is was read: what is unfinished is a last line without a newline."""
        for stream, splitter in self._splitters.items():
            self._take(stream, splitter.finish(), _now())
        if self._left_out[0]:
            self._say(
                f"ciworker: {self._left_out[0]} lines ({format_size(self._left_out[1])}) are left "
                "out here: the job printed more than log_limit allows"
            )
        for item in self._tail:
            self._push(item)
        self._tail.clear()
        if self.mark is not Mark.SEEN:
            self._drop_unmarked()
        self._ended = True
        self._settle()

    def _drop_unmarked(self) -> None:
        """The job never began: what the shim said belongs to the message, not to the log."""
        self._add_preamble(b"".join(item.data for item in self._pending))
        self._pending.clear()
        self._backlog = 0
        if self.mark is Mark.UNKNOWN:
            self.mark = Mark.ABSENT

    def _lose(self) -> None:
        self.incomplete = True
        if self.mark is Mark.UNKNOWN:
            self.mark = Mark.UNREADABLE
        self._finish()

    def _say(self, text: str) -> None:
        data = text.encode() + b"\n"
        self._push(_Item(Run(Stream.WORKER, _now(), 1, len(data), True), data, None))

    def _settle(self) -> None:
        if self._ended and not self._backlog and not self.complete:
            self.complete = True
            self._completed.set()
            self._on_progress()


def _now() -> int:
    return time.time_ns() // 1_000_000

"""Shows the lines of a setup in the logs of the jobs that wait for it.

**The log is the queue** here too: the setup's own log is stored once, and each job that waits
copies from it at its own pace, from line 1. Its chunks carry the setup's number as a negative
attempt and say how far they go in the setup's log, so that after a restart of the worker it goes
on at the exact line. What the setup has printed without a newline is shown in them as well.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from ciworker.domain.job import Job
from ciworker.domain.log import Chunk, Cursor, Position, Run, Stream, Unfinished
from ciworker.feed.feed import Feed, Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter
from ciworker.units import plural

MOST_BYTES = 2**20  # copied into each job's log before the rest waits for the setup's end
LAST_LINES = 200  # of a longer one, which are copied then
LOOK_AROUND = 30.0  # seconds after which it looks whether the setup is over, though nobody said so


class _Stage(IntEnum):
    """How much of its own a copier has written; kept in the cursor's place of the other stream."""

    NOTHING = 0
    OPENED = 1
    CLOSED = 2


class _Item(NamedTuple):
    chunk: Chunk
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class Wait:
    """A job and the setup that it waits for.

    number: of the setup, counted per environment from 1. headline: opens the group of its lines.
    """

    job: str
    setup: str
    number: int
    headline: str


class SetupLog:
    """One job's copy of one setup's log; a `Source` of the log writer."""

    def __init__(
        self,
        wait: Wait,
        *,
        feed: Feed,
        writer: LogWriter,
        end: LogEnd,
        current: Callable[[str], Awaitable[Job | None]],
        on_complete: Callable[[], None],
    ) -> None:
        """Take up where the stored log ends.

        Args:
            wait: which lines go where.
            feed: has them, and shows them.
            writer: stores them.
            end: of the job's stored log.
            current: a job as it was last committed.
            on_complete: called once everything is stored.
        """
        self.setup = wait.setup
        self.complete = False
        self._wait, self._feed, self._writer = wait, feed, writer
        self._current, self._on_complete = current, on_complete
        self._attempt = -wait.number
        resumed = end.attempt == self._attempt
        self._copied = end.cursor.stdout.lines if resumed else 0
        self._stage = _Stage(end.cursor.stderr.lines) if resumed else _Stage.NOTHING
        self._next_line, self._total_bytes = end.last + 1, end.total_bytes
        self._began_at = 0 if resumed else end.total_bytes  # of this setup's lines, about
        self._topic = feed.topic(wait.job)
        self._pending: deque[_Item] = deque()
        self._stored = asyncio.Event()
        self._in_flight = False

    async def run(self) -> None:
        """Copy until the setup is over."""
        if self._stage == _Stage.NOTHING:
            self._say(f"::group::{self._wait.headline}", _Stage.OPENED)
            await self._all_stored()
        setup = self._feed.topic(self._wait.setup)
        while self._stage != _Stage.CLOSED:
            await self._step(setup)
            await self._all_stored()
        self.complete = True
        self._on_complete()

    async def abandoned(self) -> None:
        """Let go of what the writer has not taken; return when it has stored what it took."""
        self._pending.clear()
        await self._all_stored()
        self._show_unfinished({})

    # what the log writer calls

    def take(self) -> Batch | None:
        if not self._pending:
            return None
        chunk, cursor = self._pending.popleft()
        own = Chunk(self._next_line, chunk.data, chunk.runs)
        self._next_line = own.last + 1
        self._total_bytes += len(own.data)
        self._in_flight = True
        return Batch(self._wait.job, self._attempt, own, self._total_bytes, cursor)

    def stored(self, batch: Batch) -> None:
        self._in_flight = False
        self._topic.append(batch.chunk)
        self._stored.set()

    # inside

    async def _step(self, setup: Topic) -> None:
        """Copy some lines, or say that these were all, or wait for more."""
        seen, ended = setup.changed.version, await self._ended_with()
        if self._is_full:
            self._leave_out(ended)
        waits = self._is_full and ended is None
        chunks = [] if waits else await self._feed.read(self._wait.setup, self._copied)
        for chunk in chunks:
            self._copied = chunk.last
            self._push(chunk)
        if chunks:
            return
        if ended is not None:
            self._show_unfinished({})
            self._say("::endgroup::", _Stage.CLOSED)
            return
        self._show_unfinished({} if waits else setup.unfinished(self._copied))
        await setup.changed.wait(seen, LOOK_AROUND)

    @property
    def _is_full(self) -> bool:
        return self._total_bytes - self._began_at > MOST_BYTES

    async def _ended_with(self) -> int | None:
        """The number of the setup's last line; None while it may print more."""
        setup = await self._current(self._wait.setup)
        if setup is None:
            return self._copied
        return setup.log_lines if setup.status.terminal else None

    def _leave_out(self, ended: int | None) -> None:
        """Many jobs may wait for one setup: of a long log each gets the head and the tail."""
        left_out = 0 if ended is None else ended - LAST_LINES - self._copied
        if left_out > 0:
            self._copied += left_out
            lines = plural(left_out, "line")
            told = f"{lines} left out here: `ciclient logs {self._wait.setup}` has all"
            self._say(f"ciworker: {told}", self._stage)

    def _show_unfinished(self, texts: Mapping[Stream, Unfinished] | None) -> None:
        """Show it behind what is copied, all of which is stored; None: there are lines before."""
        if texts is not None:
            self._topic.show_unfinished(dict(texts), self._next_line - 1)

    async def _all_stored(self) -> None:
        while self._pending or self._in_flight:
            self._stored.clear()
            await self._stored.wait()

    def _say(self, text: str, stage: _Stage) -> None:
        data = text.encode() + b"\n"
        self._stage = stage
        self._push(Chunk(0, data, (Run(Stream.WORKER, _now(), 1, len(data), True),)))

    def _push(self, chunk: Chunk) -> None:
        cursor = Cursor(Position(lines=self._copied), Position(lines=self._stage))
        self._pending.append(_Item(chunk, cursor))
        self._writer.ready(self)


def _now() -> int:
    return time.time_ns() // 1_000_000

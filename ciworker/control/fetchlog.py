"""Shows what git says while a job's tree is fetched, as the first lines of the job's log.

Its chunks carry an attempt of their own, which is negative as that of a setup's lines is and no
setup has. How much of the group was written is kept in the cursor: a restart of the worker closes
the group that was left open, and the fetch begins anew in another one.
"""

import asyncio
import time
from enum import IntEnum

from ciworker.domain.log import Cursor, Line, Position, Stream, Unfinished, chunk_of
from ciworker.feed.feed import Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter

ATTEMPT = -(2**31)
CUT_OFF = "ciworker: the fetch was cut off and begins anew"


class _Stage(IntEnum):
    """Whether the group is open; kept in the cursor."""

    CLOSED = 0
    OPEN = 1


class FetchLog:
    """The lines of one fetch; a `Source` of the log writer, and a `Listener` of git."""

    def __init__(self, job_id: str, topic: Topic, writer: LogWriter, end: LogEnd) -> None:
        """Take up where the job's stored log ends."""
        self._job_id, self._topic, self._writer = job_id, topic, writer
        resumed = end.attempt == ATTEMPT
        self._stage = _Stage(end.cursor.stderr.lines) if resumed else _Stage.CLOSED
        self._next_line, self._total_bytes = end.last + 1, end.total_bytes
        self._pending: list[Line] = []
        self._stored = asyncio.Event()
        self._in_flight = False

    def open(self, headline: str) -> None:
        """Begin the group."""
        if self._stage is _Stage.OPEN:
            self.say(CUT_OFF)
            self.close()
        self._stage = _Stage.OPEN
        self.say(f"::group::{headline}")

    def say(self, text: str) -> None:
        """A line of the worker's own."""
        self._push(Stream.WORKER, text.encode(errors="replace"))

    def close(self) -> None:
        """End the group."""
        self._stage = _Stage.CLOSED
        self.say("::endgroup::")

    async def all_stored(self) -> None:
        """Wait until nothing of it is on its way to the store, and show no progress behind it."""
        while self._pending or self._in_flight:
            self._stored.clear()
            await self._stored.wait()
        self.progress(b"")

    async def abandoned(self) -> None:
        """Let go of what the writer has not taken; return when it has stored what it took."""
        self._pending.clear()
        await self.all_stored()

    # what git calls

    def line(self, text: bytes) -> None:
        self._push(Stream.STDERR, text)

    def progress(self, text: bytes) -> None:
        if self._pending or self._in_flight:
            return  # it stands behind lines that nobody sees yet
        shown = Unfinished(Stream.STDERR, _now(), text.decode(errors="replace"))
        texts = {Stream.STDERR: shown} if text else {}
        self._topic.show_unfinished(texts, self._next_line - 1)

    # what the log writer calls

    def take(self) -> Batch | None:
        if not self._pending:
            return None
        chunk = chunk_of(self._pending, self._next_line)
        self._pending = []
        self._next_line = chunk.last + 1
        self._total_bytes += len(chunk.data)
        self._in_flight = True
        cursor = Cursor(Position(), Position(lines=self._stage))
        return Batch(self._job_id, ATTEMPT, chunk, self._total_bytes, cursor)

    def stored(self, batch: Batch) -> None:
        self._in_flight = False
        self._topic.append(batch.chunk)
        self._stored.set()

    # inside

    def _push(self, stream: Stream, text: bytes) -> None:
        self._pending.append(Line(0, stream, _now(), text, True))
        self._writer.ready(self)


def _now() -> int:
    return time.time_ns() // 1_000_000

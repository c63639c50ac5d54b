"""The log's stored side: chunks go in by one writer for the whole worker, come out by range.

**The log is the queue, and the group commit is the batching.** One insert is in flight; whatever
arrives meanwhile, of all jobs, goes into the next. A line is told to its source as stored, and may
be shown, only once its insert has returned. What comes after a rest is stored at once; after that
the next insert waits for as long as the last one and its showing took, some times over, so that
lines that come one by one, with many who watch them, take a bounded share of the time.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import ScalarSelect, literal_column
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from ciworker.domain.log import Chunk, Cursor, PackedChunk, Position, pack_runs
from ciworker.errors import StoreRefused, TryAgain, Unknown
from ciworker.store.packing import unpacked
from ciworker.store.schema import LogChunkRow
from ciworker.store.session import Database
from ciworker.telemetry import logger

_COLUMNS = (
    "job_id, first, count, attempt, total_bytes, "
    "out_lines, out_frames, err_lines, err_frames, runs, data"
)
_PLACES = "(" + ",".join("?" * 11) + ")"
_CHUNK_OF = (
    "SELECT first, count, total_bytes FROM log_chunk "
    "WHERE job_id = ? AND first <= ? ORDER BY first DESC LIMIT 1"
)
_CHUNKS_FROM = (
    "SELECT first, count, data, runs, packed FROM log_chunk "
    "WHERE job_id = ? AND first BETWEEN ? AND ? AND total_bytes <= ? ORDER BY first LIMIT ?"
)
PAUSE = 8  # times what storing and showing took
MOST_PAUSE = 0.010  # seconds: the age that a line gets from that
RETRY_FIRST = 0.05
RETRY_MOST = 2.0
ROWS_PER_INSERT = 500
TURNS_PER_INSERT = 4
CHUNKS_PER_READ = 256
BYTES_PER_READ = 2**20  # of chunks read at once; the first one may be larger
BYTES_PER_STREAM_READ = 2 * BYTES_PER_READ
LAST_LINE = 2**62  # no log has so many


@dataclass(frozen=True, slots=True)
class Batch:
    """A chunk with what is true once it is stored.

    total_bytes: of the job's log, this chunk included. cursor: the attempt's place in the
    engine's log behind it.
    """

    job_id: str
    attempt: int
    chunk: Chunk
    total_bytes: int
    cursor: Cursor


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where a job's stored log ends. cursor: of `attempt`; another attempt starts at zero.

    before_attempt: how many of its `total_bytes` stand before the job's own output. They are lines
    copied from a setup, or of a fetch, in chunks of a negative attempt; none, or all, may be. An
    attempt that is followed by another one never began and has no output: so what comes after the
    newest such chunk is the output of one attempt, which `log_limit` bounds.
    """

    last: int = 0
    total_bytes: int = 0
    attempt: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    before_attempt: int = 0


class Source(Protocol):
    """Whoever has lines to store."""

    def take(self) -> Batch | None:
        """The next batch, or None when nothing waits."""

    def stored(self, batch: Batch) -> None:
        """The batch is in the database."""


class LogWriter:
    """The one task that stores lines, for all jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ready: dict[Source, None] = {}
        self._refused: WeakSet[Source] = WeakSet()
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def ready(self, source: Source) -> None:
        """Say that `source` has lines; returns at once."""
        if source in self._refused:
            return
        self._ready[source] = None
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._ready:
                began = time.monotonic()
                await self._store(self._take())
                await self._pause(time.monotonic() - began)
            self._idle.set()

    def hurry(self) -> None:
        """Store at once what is ready: there is a batch of it, or somebody waits for its end."""
        self._hurry.set()

    async def _pause(self, taken: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(PAUSE * taken, MOST_PAUSE)):
                await self._hurry.wait()
        self._hurry.clear()

    async def drained(self, timeout: float) -> None:
        """Wait until nothing is ready to be stored, at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()

    def _take(self) -> list[tuple[Source, Batch]]:
        """A few batches of each source that is ready, in turns; one that has more waits behind."""
        taken: list[tuple[Source, Batch]] = []
        for _ in range(TURNS_PER_INSERT):
            for source in list(self._ready)[: ROWS_PER_INSERT - len(taken)]:
                del self._ready[source]
                batch = source.take()
                if batch is not None:
                    self._ready[source] = None
                    taken.append((source, batch))
        return taken

    async def _store(self, taken: Sequence[tuple[Source, Batch]]) -> None:
        """Store them together; if the store refuses that, each on its own, so that one cannot
        keep the others from it.
        """
        if not taken:
            return
        try:
            await self._insert([batch for _, batch in taken])
        except StoreRefused as error:
            if len(taken) == 1:
                self._give_up(*taken[0], error)
            else:
                for source, batch in taken:
                    if source not in self._refused:  # nor what comes after the refused one
                        await self._store([(source, batch)])
        else:
            for source, batch in taken:
                source.stored(batch)

    def _give_up(self, source: Source, batch: Batch, error: StoreRefused) -> None:
        """Of a source whose lines clash with stored ones nothing more can be stored in order."""
        logger().error(
            "log lines refused", job=batch.job_id, first=batch.chunk.first, error=str(error)
        )
        self._refused.add(source)
        self._ready.pop(source, None)

    async def _insert(self, batches: Sequence[Batch]) -> None:
        """Tried until it succeeds: the sources' buffers are bounded, so waiting loses nothing."""
        values = [value for batch in batches for value in _values(batch)]
        places = ",".join([_PLACES] * len(batches))
        delay = RETRY_FIRST
        while True:
            try:
                await self._database.insert(
                    f"INSERT INTO log_chunk ({_COLUMNS}) VALUES {places}",  # noqa: S608 # constants
                    values,
                )
            except TryAgain as error:
                logger().warning("log lines wait for the store", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MOST)
            else:
                return


class LogReader:
    """Stored lines by number, whether the log is packed or not."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading: Counter[str] = Counter()

    @property
    def read_now(self) -> frozenset[str]:
        """Jobs whose log is being read."""
        return frozenset(self._reading)

    async def end(self, job_id: str) -> LogEnd:
        """Where the stored log ends; LogEnd() when there is none."""
        row = LogChunkRow
        query = (
            select(  # type: ignore[call-overload] # sqlmodel types at most four columns
                row.first, row.count, row.total_bytes, row.attempt,
                row.out_lines, row.out_frames, row.err_lines, row.err_frames,
                _copied_bytes(job_id),
            )
            .where(col(row.job_id) == job_id)
            .order_by(col(row.first).desc())
        )  # fmt: skip
        found = await self._database.first(query)
        if found is None:
            return LogEnd()
        first, count, total, attempt, *places, copied = found
        cursor = Cursor(Position(*places[:2]), Position(*places[2:]))
        return LogEnd(first + count - 1, total, attempt, cursor, copied or 0)

    async def chunks(
        self,
        job_id: str,
        after: int,
        limit: int,
        size: int = BYTES_PER_READ,
        upto: int = LAST_LINE,
    ) -> list[Chunk]:
        """Up to `limit` stored chunks, of `size` bytes together, that hold lines after number
        `after` and up to number `upto`; the first one cut, and there however large. [] only at
        the end of the log.
        """

        def work(session: Session) -> list[Chunk]:
            rows = _rows(session, job_id, after=after, upto=upto, limit=limit, size=size)
            return [chunk.unpacked().after(after) for chunk in _plain(rows)]

        return await self._database.read(work)

    async def packed(
        self, job_id: str, after: int, limit: int, size: int = BYTES_PER_READ
    ) -> list[PackedChunk]:
        """The same chunks without being cut: for whoever takes no time of the loop to read them."""

        def work(session: Session) -> list[PackedChunk]:
            return _plain(
                _rows(session, job_id, after=after, upto=LAST_LINE, limit=limit, size=size)
            )

        return await self._database.read(work)

    async def stream(self, job_id: str, after: int, upto: int) -> AsyncGenerator[Chunk]:
        """Stored chunks of the lines after number `after`, up to number `upto`, which is stored.

        Raises:
            Unknown: the job was removed meanwhile.
        """
        with self.reading(job_id):
            coming = self._ahead(job_id, after, upto)
            try:
                while found := await coming:
                    after = found[-1].last
                    coming = self._ahead(job_id, after, upto)
                    for chunk in found:
                        yield chunk.upto(upto)
            finally:
                coming.cancel()
                await asyncio.wait([coming])
        if after < upto:
            raise Unknown(f"job {job_id} was removed while its log was read")

    def _ahead(self, job_id: str, after: int, upto: int) -> asyncio.Task[list[Chunk]]:
        """What a stream needs next is read and unpacked while what it has is being sent."""
        return asyncio.ensure_future(self._next(job_id, after, upto))

    async def _next(self, job_id: str, after: int, upto: int) -> list[Chunk]:
        if after >= upto:
            return []
        return await self.chunks(job_id, after, CHUNKS_PER_READ, BYTES_PER_STREAM_READ, upto)

    @contextlib.contextmanager
    def reading(self, job_id: str) -> Iterator[None]:
        """Within the block nothing is removed of the job, if it is found within the block too."""
        self._reading[job_id] += 1
        try:
            yield
        finally:
            self._reading[job_id] -= 1
            if not self._reading[job_id]:
                del self._reading[job_id]


def _rows(
    session: Session, job_id: str, *, after: int, upto: int, limit: int, size: int
) -> Sequence[Any]:
    """First line, count, data, runs and whether they are packed, of chunks as they are stored.

    All of one state of the database: packing may replace chunks at any time.
    """
    after, asked = max(0, after), session.connection().exec_driver_sql
    start = asked(_CHUNK_OF, (job_id, after + 1)).first()
    if start is None or start.first + start.count <= after + 1:
        return []
    values = (job_id, start.first, max(upto, start.first), start.total_bytes + size, limit)
    return asked(_CHUNKS_FROM, values).all()


def _plain(rows: Sequence[Any]) -> list[PackedChunk]:
    found = []
    for first, count, data, runs, packed in rows:
        plain = unpacked(data, runs) if packed else (data, runs)
        found.append(PackedChunk(first, count, *plain))
    return found


_COPIED = aliased(LogChunkRow)  # made once: it takes almost as long as the query


def _copied_bytes(job_id: str) -> ScalarSelect[int]:
    """Bytes of the log up to the newest line that was copied from a setup; NULL without any."""
    row = _COPIED
    return (
        select(row.total_bytes)
        .where(col(row.job_id) == job_id, col(row.attempt) < literal_column("0"))
        .order_by(col(row.first).desc())
        .limit(1)
        .scalar_subquery()
    )


def _values(batch: Batch) -> tuple[Any, ...]:
    chunk, cursor = batch.chunk, batch.cursor
    return (
        batch.job_id, chunk.first, chunk.count, batch.attempt, batch.total_bytes,
        cursor.stdout.lines, cursor.stdout.frames, cursor.stderr.lines, cursor.stderr.frames,
        pack_runs(chunk.runs), chunk.data,
    )  # fmt: skip

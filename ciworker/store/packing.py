"""Logs of jobs that have ended: nothing is appended to them any more, so they are packed.

Chunks of single commits are merged into larger ones and compressed with zstd, group by group,
each in a transaction of its own: a crash at any point leaves either form of a group, whole. What
is known of a log's end (numbers, bytes, cursor, attempt) is the last chunk's, before and after.
"""

import asyncio
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from sqlmodel import Session
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError

from ciworker.domain.log import merge_runs, pack_runs, unpack_runs
from ciworker.errors import StoreRefused
from ciworker.store.session import Database

GROUP_BYTES = 256 * 2**10  # merged at most, and so unpacked to read any line of them
GROUP_LINES = 4096
SMALLEST = 512  # bytes of a chunk that are worth a frame
CHUNKS_PER_LOOK = 512
_LEVEL = 1  # packs as well as 3 does, and is unpacked faster

_LOOK = (
    "SELECT first, count, attempt, packed, length(data) FROM log_chunk "
    "WHERE job_id = ? AND first > ? ORDER BY first LIMIT ?"
)
_READ = "SELECT data, runs FROM log_chunk WHERE job_id = ? AND first BETWEEN ? AND ? ORDER BY first"
_DROP = "DELETE FROM log_chunk WHERE job_id = ? AND first >= ? AND first < ?"
_PUT = (
    "UPDATE log_chunk SET first = ?, count = ?, data = ?, runs = ?, packed = ? "
    "WHERE job_id = ? AND first = ?"
)
_WAITING = (
    "SELECT id FROM job WHERE finished_at IS NOT NULL AND log_packed = 0 AND removed = 0 "
    "ORDER BY finished_at, id LIMIT ?"
)
_DONE = "UPDATE job SET log_packed = 1 WHERE id IN (SELECT value FROM json_each(?))"


class _Stored(NamedTuple):
    """A chunk as it is stored, without its blobs."""

    first: int
    lines: int
    attempt: int
    packed: bool
    size: int


class _Group(NamedTuple):
    """Chunks that follow on each other. first, last: numbers of the first lines of two of them."""

    first: int
    last: int
    chunks: int
    lines: int
    size: int

    def with_(self, chunk: _Stored) -> "_Group":
        return _Group(
            self.first,
            chunk.first,
            self.chunks + 1,
            self.lines + chunk.lines,
            self.size + chunk.size,
        )


class _Packed(NamedTuple):
    data: bytes
    runs: bytes
    packed: bool


class Packer:
    """Packs logs, one at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def waiting(self, limit: int) -> list[str]:
        """Jobs that have ended and whose log is not packed; those that ended first come first."""
        return [str(job_id) for (job_id,) in await self._select(_WAITING, (limit,))]

    async def pack(self, job_id: str) -> None:
        """Pack the log of a job that has ended; again, where that was begun before.

        It takes half of a processor at most, so that others need not wait.

        Raises:
            StoreRefused: the log is damaged.
        """
        after, more = 0, True
        while more:
            began = time.monotonic()
            rows = await self._select(_LOOK, (job_id, after, CHUNKS_PER_LOOK))
            more = len(rows) == CHUNKS_PER_LOOK
            chunks = [_Stored(*row) for row in rows]
            for group in _groups(chunks):
                await self._pack(job_id, group)
                await asyncio.sleep(time.monotonic() - began)
                began = time.monotonic()
            after = chunks[-1].first if chunks else after
            await asyncio.sleep(time.monotonic() - began)

    async def done(self, job_ids: Sequence[str]) -> None:
        """Remember that the logs of these jobs are packed."""
        known = (orjson.dumps(list(job_ids)).decode(),)

        def work(session: Session) -> None:
            session.connection().exec_driver_sql(_DONE, known)

        await self._database.write(work, durable=False)

    async def _pack(self, job_id: str, group: _Group) -> None:
        rows = await self._select(_READ, (job_id, group.first, group.last))
        packed = await asyncio.to_thread(_merged, rows)
        if group.chunks == 1 and not packed.packed:
            return
        put = (group.first, group.lines, *packed, job_id, group.last)

        def work(session: Session) -> None:
            connection = session.connection()
            connection.exec_driver_sql(_DROP, (job_id, group.first, group.last))
            connection.exec_driver_sql(_PUT, put)

        await self._database.write(work, durable=False)

    async def _select(self, statement: str, values: tuple[Any, ...]) -> Sequence[Any]:
        return await self._database.read(
            lambda session: session.connection().exec_driver_sql(statement, values).all()
        )


def unpacked(data: bytes, runs: bytes) -> tuple[bytes, bytes]:
    """What was packed.

    Raises:
        StoreRefused: it is damaged.
    """
    zstd = ZstdDecompressor()
    try:
        return zstd.decompress(data), zstd.decompress(runs)
    except ZstdError as error:
        raise StoreRefused(f"the stored log is damaged: {error}: restore a backup") from error


def _groups(chunks: Iterable[_Stored]) -> list[_Group]:
    """What to merge: of one attempt, of bounded size; what is packed or small stays as it is."""
    groups: list[_Group] = []
    open_to: int | None = None  # the attempt whose chunks may go into the last group
    for chunk in chunks:
        if chunk.packed:
            open_to = None
            continue
        grown = groups[-1].with_(chunk) if groups and open_to == chunk.attempt else None
        if grown and grown.size <= GROUP_BYTES and grown.lines <= GROUP_LINES:
            groups[-1] = grown
        else:
            groups.append(_Group(chunk.first, chunk.first, 1, chunk.lines, chunk.size))
        open_to = chunk.attempt
    return [group for group in groups if group.chunks > 1 or group.size >= SMALLEST]


def _merged(rows: Sequence[Any]) -> _Packed:
    data = b"".join(row.data for row in rows)
    try:
        described = [run for row in rows for run in unpack_runs(row.runs)]
    except (struct.error, ValueError) as error:
        raise StoreRefused(f"the stored log is damaged: {error}: restore a backup") from error
    runs = pack_runs(merge_runs(described))
    zstd = ZstdCompressor(level=_LEVEL, write_checksum=True)
    small = zstd.compress(data), zstd.compress(runs)
    if sum(map(len, small)) < len(data) + len(runs):
        return _Packed(*small, True)
    return _Packed(data, runs, False)

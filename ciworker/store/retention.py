"""What may go: jobs that ended long ago, with history and log; keys, sessions and deeds of old.

Everything in steps so small that the writer is free again at once. So a job is hidden first, from
all that look for jobs (`Jobs.hide`), and then taken away, now or later: `hidden` tells what is left
to be. What SQLite frees is used again; the file itself does not shrink. Shrinking it would need
`auto_vacuum`, which an existing file gets only by a VACUUM that locks it for as long as copying it
takes, and which moves pages at every commit from then on.
"""

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from sqlmodel import Session

from ciworker.store.audit import MOST_KEPT
from ciworker.store.jobs import IDEMPOTENCY_WINDOW
from ciworker.store.schema import microseconds
from ciworker.store.session import WAL_LIMIT, Database

CHUNKS_PER_STEP = 32
ROWS_PER_STEP = 500

_NO_KEY = 2**62  # microseconds: no key is as young

# The newest change's job stays: numbers of changes, which clients resume from, would be used again.
# So do setups whose environment an unfinished job needs: their lines are still to be copied.
_OLDEST = """
    SELECT id FROM job
    WHERE finished_at IS NOT NULL AND finished_at <= ? AND removed = 0
    AND NOT EXISTS (
        SELECT 1 FROM submission WHERE submission.job_id = job.id AND submission.at > ?
    )
    AND id NOT IN (SELECT value FROM json_each(?))
    AND id IS NOT (SELECT job_id FROM job_event ORDER BY job_event.id DESC LIMIT 1)
    AND NOT (kind = 'setup' AND EXISTS (
        SELECT 1 FROM job AS waiting
        WHERE waiting.kind = 'job' AND waiting.environment = job.environment
        AND waiting.status IN ('queued', 'starting', 'running')
        AND waiting.environment IS NOT NULL
    ))
    AND NOT (kind = 'setup' AND EXISTS (
        SELECT 1 FROM environment
        WHERE environment."key" = job.environment AND environment.status = 'building'
    ))
    ORDER BY finished_at, id LIMIT ?
"""
_HIDDEN = "SELECT id FROM job WHERE removed = 1 ORDER BY status, id"
_ENDED = """
    SELECT id FROM job
    WHERE id IN (SELECT value FROM json_each(?)) AND finished_at IS NOT NULL AND removed = 0
"""
_STAYING = """
    SELECT coalesce(sum(length(data) + length(runs)), 0) FROM log_chunk WHERE job_id IN (
        SELECT id FROM job WHERE status IN ('queued', 'starting', 'running')
        UNION ALL SELECT id FROM job WHERE finished_at > ?
    )
"""
_USED = """
    SELECT (page_count - freelist_count) * page_size
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""
_FILE = "SELECT file FROM pragma_database_list WHERE name = 'main'"
_CHUNKS = """
    DELETE FROM log_chunk WHERE rowid IN (
        SELECT rowid FROM log_chunk
        WHERE job_id IN (SELECT value FROM json_each(?)) LIMIT ?
    )
"""
_JOBS = "DELETE FROM job WHERE id IN (SELECT value FROM json_each(?))"
_KEYS = """
    DELETE FROM submission WHERE rowid IN (SELECT rowid FROM submission WHERE at <= ? LIMIT ?)
"""
_SESSIONS = """
    DELETE FROM session WHERE rowid IN (SELECT rowid FROM session WHERE expires_at <= ? LIMIT ?)
"""

_DEEDS = """
    DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE at <= ? LIMIT ?)
"""
_TOO_MANY_DEEDS = """
    DELETE FROM audit WHERE id IN (
        SELECT id FROM audit WHERE id <= (SELECT max(id) FROM audit) - ? LIMIT ?
    )
"""


class Retention:
    """Removes from one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def oldest(
        self,
        before: datetime,
        limit: int,
        but: Collection[str] = (),
        *,
        unclaimed_at: datetime | None = None,
    ) -> list[str]:
        """Jobs that ended at `before` or earlier and may go, but these; the oldest ends first.

        unclaimed_at: only those that no Idempotency-Key gives at this instant.
        """
        claimed = microseconds(unclaimed_at - IDEMPOTENCY_WINDOW) if unclaimed_at else _NO_KEY
        return await self._ids(_OLDEST, (microseconds(before), claimed, _json(but), limit))

    async def hidden(self) -> list[str]:
        """Jobs whose removal was begun; what is left of them has to go."""
        return await self._ids(_HIDDEN, ())

    async def ended(self, job_ids: Collection[str]) -> frozenset[str]:
        """Those of these jobs that have ended."""
        return frozenset(await self._ids(_ENDED, (_json(job_ids),)))

    async def remove(self, job_ids: Collection[str]) -> None:
        """Take away these jobs, which are hidden, and all that belongs to them in the database."""
        known = _json(job_ids)
        while await self._delete(_CHUNKS, (known, CHUNKS_PER_STEP)) == CHUNKS_PER_STEP:
            pass
        await self._delete(_JOBS, (known,))  # history and keys go with them

    async def remove_outdated(self, now: datetime) -> None:
        """Idempotency keys that give no job any more, and sessions that open nothing."""
        keys = (microseconds(now - IDEMPOTENCY_WINDOW), ROWS_PER_STEP)
        while await self._delete(_KEYS, keys) == ROWS_PER_STEP:
            pass
        sessions = (microseconds(now), ROWS_PER_STEP)
        while await self._delete(_SESSIONS, sessions) == ROWS_PER_STEP:
            pass

    async def remove_deeds(self, before: datetime) -> None:
        """What the audit history tells of that time and earlier, and the oldest of too many."""
        old = (microseconds(before), ROWS_PER_STEP)
        while await self._delete(_DEEDS, old) == ROWS_PER_STEP:
            pass
        while await self._delete(_TOO_MANY_DEEDS, (MOST_KEPT, ROWS_PER_STEP)) == ROWS_PER_STEP:
            pass

    async def used_bytes(self) -> int:
        """Of the file: what it holds, without the pages that are free to be used again."""
        ((used,),) = await self._select(_USED, ())
        return int(used)

    async def wal_bytes(self) -> int:
        """Beside the file, as far as they stay: beside a backup, say, the WAL is larger."""
        ((file,),) = await self._select(_FILE, ())
        return min(await asyncio.to_thread(_size_of, Path(f"{file}-wal")), WAL_LIMIT)

    async def staying_bytes(self, before: datetime) -> int:
        """Of the logs of jobs that ended after `before` or have not ended."""
        ((size,),) = await self._select(_STAYING, (microseconds(before),))
        return int(size)

    async def _ids(self, statement: str, values: tuple[Any, ...]) -> list[str]:
        return [str(job_id) for (job_id,) in await self._select(statement, values)]

    async def _select(self, statement: str, values: tuple[Any, ...]) -> Sequence[Any]:
        return await self._database.read(
            lambda session: session.connection().exec_driver_sql(statement, values).all()
        )

    async def _delete(self, statement: str, values: tuple[Any, ...]) -> int:
        def work(session: Session) -> int:
            connection = session.connection()
            return connection.exec_driver_sql(statement, values).rowcount

        return await self._database.write(work, durable=False)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _json(job_ids: Collection[str]) -> str:
    return orjson.dumps(list(job_ids)).decode()

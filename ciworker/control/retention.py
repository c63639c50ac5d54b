"""Keeps the worker's own disk from filling: packs the logs of jobs that ended, removes old ones.

All of it is done beside the work, in one task and in small steps. A job whose log somebody reads
or follows is not removed before the next time; packing it disturbs nobody.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

from ciworker.control.parts import Parts
from ciworker.errors import CiworkerError, StoreRefused
from ciworker.settings import bytes_of
from ciworker.store.packing import Packer
from ciworker.store.retention import Retention
from ciworker.telemetry import logger
from ciworker.units import format_size

INTERVAL = 600.0  # seconds between two looks at ages and sizes
PAUSE = 5.0  # seconds after a change of a job until logs are packed: most changes are no ends
JOBS_PER_STEP = 20  # of those that are too old; what is only too much goes one by one
LOGS_PER_TURN = 100
SPARED = timedelta(minutes=1)  # a job that ended just now is not removed for want of room

_T = TypeVar("_T")


class _Removed(NamedTuple):
    """How many jobs, and bytes of their stored workspaces."""

    jobs: int
    freed: int


class _Workspace(NamedTuple):
    """One file in the spool. jobs: its names, several where a job was retried."""

    size: int
    jobs: frozenset[str]


class Retainer:
    """The one task that packs and removes."""

    def __init__(self, parts: Parts, store: Retention, packer: Packer) -> None:
        self._settings, self._clock, self._feed = parts.settings, parts.clock, parts.feed
        self._jobs, self._logs = parts.jobs, parts.logs
        self._store, self._packer = store, packer
        self._fits = True

    async def run(self) -> None:
        """For ever; asks nobody anything while no job changes, but every INTERVAL."""
        changed, due = self._feed.jobs_changed, self._clock.monotonic()
        while True:
            seen = changed.version
            if self._clock.monotonic() >= due:
                await _guarded("removing what is old", self.remove)
                due = self._clock.monotonic() + INTERVAL
            if await _guarded("packing logs", self.pack):
                continue  # removing may be due meanwhile
            if await changed.wait(seen, max(0.0, due - self._clock.monotonic())):
                await asyncio.sleep(PAUSE)

    async def pack(self) -> bool:
        """Pack the logs of some jobs that have ended. Whether there are more."""
        waiting = await self._packer.waiting(LOGS_PER_TURN)
        for job_id in waiting:
            try:
                await self._packer.pack(job_id)
            except StoreRefused as error:  # it stays as it is, and keeps no other waiting
                logger().error("a log cannot be packed", job=job_id, error=str(error))
        await self._packer.done(waiting)
        return len(waiting) == LOGS_PER_TURN

    async def remove(self) -> None:
        """Remove what is older than `keep_jobs`, then what is more than `store_size`; before that
        what a crash, an error or a reader left of earlier removals.
        """
        await self._take_away(await self._store.hidden())
        now = self._clock.now()
        await self._store.remove_outdated(now)
        await self._store.remove_deeds(now - timedelta(seconds=self._settings.keep_audit))
        aged = await self._remove_aged()
        crowded = await self._remove_crowded()
        if aged or crowded:
            logger().info("old jobs removed", by_age=aged, by_size=crowded)

    async def _remove_aged(self) -> int:
        removed, keep = 0, timedelta(seconds=self._settings.keep_jobs)
        while True:
            old = await self._store.oldest(self._clock.now() - keep, JOBS_PER_STEP, self._read())
            if not old:
                return removed
            removed += (await self._remove(old)).jobs

    async def _remove_crowded(self) -> int:
        """Remove the oldest, one by one, until the rest fits; none where that cannot be reached.

        The disk's other users are not counted, nor are workspaces of jobs that have not ended.
        """
        removed, budget = 0, await asyncio.to_thread(self._budget)
        before = self._clock.now() - SPARED
        budget -= await self._store.wal_bytes()  # which removing makes no smaller
        reachable = await self._store.staying_bytes(before) <= budget
        spool = await self._spool_of_ended()
        while (too_much := await self._store.used_bytes() + spool - budget) > 0:
            first = await self._first_to_go(before) if reachable else ()
            if not first:
                break
            step = await self._remove(first)
            removed, spool = removed + step.jobs, spool - step.freed
        self._tell_whether_it_fits(too_much)
        return removed

    async def _first_to_go(self, before: datetime) -> Sequence[str]:
        """The oldest job whose Idempotency-Key gives it to nobody any more; else the oldest."""
        read, now = self._read(), self._clock.now()
        unclaimed = await self._store.oldest(before, 1, read, unclaimed_at=now)
        return unclaimed or await self._store.oldest(before, 1, read)

    def _tell_whether_it_fits(self, too_much: int) -> None:
        """Once, until it fits again."""
        if self._fits and too_much > 0:
            logger().warning(
                "the store takes more than store_size, and removing ended jobs cannot mend that",
                too_much=format_size(too_much),
            )
        self._fits = too_much <= 0

    async def _remove(self, job_ids: Collection[str]) -> _Removed:
        """Remove those that nobody reads."""
        going = sorted(set(job_ids) - self._read())
        await self._jobs.hide(going)
        return _Removed(len(going), await self._take_away(going))

    async def _take_away(self, hidden: Collection[str]) -> int:
        """What is left of hidden jobs; the bytes of their workspaces.

        Whoever found one of them before it was hidden reads on: it goes the next time.
        """
        going = sorted(set(hidden) - self._read())
        freed = await asyncio.to_thread(_unlinked, [self._settings.spool_file(j) for j in going])
        await self._store.remove(going)
        return freed

    def _read(self) -> frozenset[str]:
        """Jobs that somebody reads or follows."""
        return self._logs.read_now | self._feed.watched

    async def _spool_of_ended(self) -> int:
        """Bytes of the workspaces that only jobs need which have ended."""
        stored = await asyncio.to_thread(_workspaces, self._settings.spool)
        ended = await self._store.ended(frozenset().union(*(file.jobs for file in stored)))
        return sum(file.size for file in stored if file.jobs <= ended)

    def _budget(self) -> int:
        disk = shutil.disk_usage(self._settings.data_dir).total
        return bytes_of(self._settings.store_size, disk)


async def _guarded(what: str, work: Callable[[], Awaitable[_T]]) -> _T | None:
    """What cannot be done now is done the next time."""
    try:
        return await work()
    except (CiworkerError, OSError) as error:
        logger().warning(f"{what} failed", error=str(error))
        return None


def _workspaces(folder: Path) -> Sequence[_Workspace]:
    """The files of a spool; those of several names, as a retried job's has, are there once."""
    files: dict[int, _Workspace] = {}
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found, job = path.stat(), path.name.partition(".")[0]
            known = files.get(found.st_ino, _Workspace(found.st_size, frozenset()))
            files[found.st_ino] = _Workspace(found.st_size, known.jobs | {job})
    return list(files.values())


def _unlinked(paths: Iterable[Path]) -> int:
    """Remove these files, as far as they are there; the bytes that are free now."""
    freed = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            path.unlink()
            freed += found.st_size if found.st_nlink == 1 else 0
    return freed

"""What is begun is done to its end, however often it fails; no more goes than has to."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from ciworker.control import retention as module
from ciworker.control.retention import Retainer
from ciworker.domain.job import Reason, Status
from ciworker.domain.log import Chunk, Run, Stream
from ciworker.errors import StoreUnavailable
from ciworker.feed.feed import Feed
from ciworker.store import retention as store_module
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.logs import LogReader
from ciworker.store.packing import Packer
from ciworker.store.retention import Retention
from ciworker.store.session import Database
from tests.store.lab import batch, nobody, rows
from tests.store.test_logs import insert
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab

HOUR = timedelta(hours=1)
CHUNKS = 40  # more than go in one step
TOO_MUCH = "the store takes more than store_size, and removing ended jobs cannot mend that"


@pytest.fixture(autouse=True)
def no_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes are exact: that of the WAL differs from run to run."""
    monkeypatch.setattr(store_module, "WAL_LIMIT", 0)


@dataclass
class Life:
    """What a retainer needs of a worker, of which nothing runs."""

    lab: Lab
    database: Database
    jobs: Jobs
    logs: LogReader
    feed: Feed

    @property
    def parts(self) -> Any:
        """As far as it asks for them."""
        return SimpleNamespace(
            settings=self.lab.settings,
            clock=self.lab.clock,
            jobs=self.jobs,
            logs=self.logs,
            feed=self.feed,
        )


@asynccontextmanager
async def opened(lab: Lab) -> AsyncIterator[Life]:
    database = await Database.open(lab.settings.database)
    try:
        feed = Feed(logs := LogReader(database))
        jobs = Jobs(database, on_change=feed.job_changed, outbox=nobody())
        yield Life(lab, database, jobs, logs, feed)
    finally:
        await database.close()


def retainer(life: Life) -> Retainer:
    return Retainer(life.parts, Retention(life.database), Packer(life.database))


async def logged(life: Life, job_id: str, chunks: int = CHUNKS, size: int = 1000) -> None:
    """A log of so many lines, which are chunks of their own."""
    for n in range(1, chunks + 1):
        text = os.urandom(size).replace(b"\n", b"") + b"\n"
        part = Chunk(n, text, (Run(Stream.STDOUT, 1000, 1, len(text), True),))
        await insert(life.database, batch(job_id, part, n))


async def ended(life: Life, ago: timedelta, *, key: str | None = None, **log: int) -> str:
    """A job with a log and a workspace that ended so long ago."""
    job = await life.jobs.add(life.lab.new_job("true"), "me", key)
    await logged(life, job.id, **log)
    at, queued = life.lab.clock.now() - ago, Expect(Status.QUEUED, 0)
    await life.jobs.move(job.id, queued, Status.FAILED, at, reason=Reason.IMAGE_MISSING)
    return job.id


async def waiting(life: Life) -> str:
    """A queued job, whose change is the newest."""
    return (await life.jobs.add(life.lab.new_job("true"), "me", None)).id


async def left(life: Life, *job_ids: str) -> list[str]:
    """Those of these jobs that are found."""
    return [job_id for job_id in job_ids if await life.jobs.get(job_id)]


async def full(lab: Lab) -> int:
    """Bytes of its store and of its ended jobs' workspaces."""
    async with opened(lab) as life:
        spool = await retainer(life)._spool_of_ended()
        return await Retention(life.database).used_bytes() + spool


@pytest.mark.parametrize("writes", range(2, 7))
async def test_a_removal_that_breaks_off_leaves_jobs_whole_or_gone_and_is_ended_later(
    new_lab: NewLab, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The first two writes are of keys and sessions. Nothing is too old at the later look."""
    async with opened(new_lab(keep_jobs=3600.0)) as life:
        jobs = [await ended(life, HOUR * 2) for _ in range(3)]
        await waiting(life)
        done, real = 0, life.database.write

        async def write(*args: Any, **more: Any) -> Any:
            nonlocal done
            if done == writes:
                raise StoreUnavailable("it is gone")
            done += 1
            return await real(*args, **more)

        with monkeypatch.context() as broken:
            broken.setattr(life.database, "write", write)
            with pytest.raises(StoreUnavailable):
                await retainer(life).remove()

    lab = new_lab()
    async with opened(lab) as life:
        for job_id in await left(life, *jobs):
            assert (await life.logs.end(job_id)).last == CHUNKS
        kept = await left(life, *jobs)
        await retainer(life).remove()
        assert await left(life, *jobs) == kept
        found = rows(lab.settings.database, "SELECT DISTINCT job_id FROM log_chunk ORDER BY 1")
        assert [job_id for (job_id,) in found] == sorted(kept)
        assert [lab.settings.spool_file(job_id).exists() for job_id in jobs] == [
            job_id in kept for job_id in jobs
        ]


async def test_one_byte_too_much_costs_one_job(new_lab: NewLab) -> None:
    lab = new_lab()
    async with opened(lab) as life:
        jobs = [await ended(life, HOUR * (9 - n)) for n in range(5)]
        await waiting(life)

    async with opened(new_lab(store_size=await full(lab) - 1)) as life:
        await retainer(life).remove()

        assert await left(life, *jobs) == jobs[1:]


async def test_jobs_whose_key_may_be_asked_for_go_last(new_lab: NewLab) -> None:
    lab = new_lab()
    async with opened(lab) as life:
        asked, other = await ended(life, HOUR * 9, key="key"), await ended(life, HOUR * 8)
        await waiting(life)
    size = await full(lab)

    async with opened(new_lab(store_size=size - 1)) as life:
        await retainer(life).remove()
        assert await left(life, asked, other) == [asked]
    async with opened(new_lab(store_size=await full(lab) - 1)) as life:
        await retainer(life).remove()
        assert await left(life, asked) == []


async def test_workspaces_of_jobs_that_wait_cost_no_history(new_lab: NewLab) -> None:
    lab = new_lab()
    async with opened(lab) as life:
        job, queued = await ended(life, HOUR * 9), await waiting(life)
    size = await full(lab)
    with lab.settings.spool_file(queued).open("ab") as file:
        file.truncate(10 * size)

    async with opened(new_lab(store_size=size)) as life:
        await retainer(life).remove()

        assert await left(life, job) == [job]


async def test_a_workspace_that_a_retry_waits_with_costs_no_history(new_lab: NewLab) -> None:
    lab = new_lab()
    async with opened(lab) as life:
        job, queued = await ended(life, HOUR * 9), await waiting(life)
        spool = lab.settings.spool_file
        size = await full(lab)
        with spool(job).open("ab") as file:
            file.truncate(10 * size)
        spool(queued).unlink()
        spool(queued).hardlink_to(spool(job))

    async with opened(new_lab(store_size=size)) as life:
        await retainer(life).remove()

        assert await left(life, job) == [job]


async def test_where_removing_cannot_help_nothing_goes_and_that_is_told_once(
    new_lab: NewLab,
) -> None:
    async with opened(new_lab(store_size=2**20)) as life:
        job, queued = await ended(life, HOUR * 9), await waiting(life)
        await logged(life, queued, chunks=3, size=2**19)
        removing = retainer(life)
        with capture_logs() as said:
            await removing.remove()
            await removing.remove()

        assert await left(life, job) == [job]
        assert [line["event"] for line in said] == [TOO_MUCH]


async def test_who_found_a_job_before_it_was_hidden_reads_it_to_its_end(
    new_lab: NewLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = new_lab(keep_jobs=3600.0)
    async with opened(lab) as life:
        job = await ended(life, HOUR * 2)
        await waiting(life)
        removing, hide = retainer(life), life.jobs.hide
        with monkeypatch.context() as patched:
            reading = life.logs.reading(job)

            async def found_just_before(job_ids: Any) -> None:
                reading.__enter__()
                assert await left(life, job) == [job]
                await hide(job_ids)

            patched.setattr(life.jobs, "hide", found_just_before)
            await removing.remove()

        assert await left(life, job) == []
        stream = life.logs.stream(job, 0, CHUNKS)
        assert len([chunk async for chunk in stream]) == CHUNKS
        reading.__exit__(None, None, None)
        await removing.remove()
        assert rows(lab.settings.database, "SELECT * FROM log_chunk") == []


class Slow(Packer):
    """Takes so long for each log that removing is due again. calls: with those of `Looked`."""

    calls: list[str]
    life: Life

    async def pack(self, job_id: str) -> None:
        self.calls.append("pack")
        self.life.lab.clock.advance(module.INTERVAL)
        await super().pack(job_id)


class Looked(Retention):
    calls: list[str]

    async def hidden(self) -> list[str]:
        self.calls.append("look")
        return await super().hidden()


async def test_packing_does_not_keep_removing_from_its_turn(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOGS_PER_TURN", 1)
    calls: list[str] = []
    async with opened(lab) as life:
        for _ in range(3):
            await ended(life, HOUR)
        store, packer = Looked(life.database), Slow(life.database)
        store.calls = packer.calls = calls
        packer.life = life
        task = asyncio.create_task(Retainer(life.parts, store, packer).run())
        async with asyncio.timeout(PATIENCE):
            while await Packer(life.database).waiting(1):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    assert calls[:6] == ["look", "pack"] * 3


async def test_unlinking_keeps_nobody_waiting(
    new_lab: NewLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop turns while a file is being unlinked."""
    async with opened(new_lab(keep_jobs=3600.0)) as life:
        job = await ended(life, HOUR * 2)
        await waiting(life)
        loop, real = asyncio.get_running_loop(), Path.unlink

        def unlink(path: Path, **more: Any) -> None:
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(PATIENCE)
            real(path, **more)

        monkeypatch.setattr(Path, "unlink", unlink)
        await retainer(life).remove()

        assert not life.lab.settings.spool_file(job).exists()

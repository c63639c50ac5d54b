"""Row 16: backups while jobs flood and others are submitted."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest

from ciworker.domain.log import Stream, unpack_runs
from ciworker.store.packing import unpacked
from tests.chaos.account import Account, counted, counting
from tests.chaos.conftest import Row
from tests.conftest import WorkerFactory
from tests.driver import Worker, command

LINES = 10_000
BACKUPS = 3


class Load:
    """Floods and submits until told to stop. acknowledged: ids, each since its 201."""

    def __init__(self, worker: Worker) -> None:
        self.acknowledged: list[str] = []
        self._worker = worker
        self._over = asyncio.Event()

    async def run(self) -> None:
        while not self._over.is_set():
            self.acknowledged.append(await self._worker.submit(counting(LINES)))
            await self._worker.wait(self.acknowledged[-1], "running", "completed")

    def stop(self) -> None:
        self._over.set()


def logs(copy: Path) -> Mapping[str, Mapping[str, list[str]]]:
    """Every job's lines by stream, read past all that reads them in the worker."""
    found: dict[str, dict[str, list[str]]] = {}
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for (job,) in connection.execute("SELECT id FROM job"):
            found[job] = {"stdout": [], "stderr": []}
        chunks = connection.execute(
            "SELECT job_id, first, count, data, runs, packed FROM log_chunk ORDER BY job_id, first"
        )
        following: dict[str, int] = {}
        for job, first, count, data, runs, packed in chunks:
            assert following.get(job, 1) == first
            following[job] = first + count
            text, described = unpacked(data, runs) if packed else (data, runs)
            for run in unpack_runs(described):
                block, text = text[: run.size], text[run.size :]
                found[job][Stream(run.stream).label] += block.decode().splitlines()
    return found


@pytest.mark.rows(16)
async def test_every_backup_under_load_is_whole_and_holds_what_was_acknowledged(
    new_worker: WorkerFactory, tmp_path: Path, row: Row
) -> None:
    account, known = Account(), counted(LINES)
    worker = new_worker(max_jobs="2")
    await worker.start()
    load = Load(worker)
    loading = asyncio.create_task(load.run())
    restored, before = new_worker(), list[str]()
    for number in range(BACKUPS):
        await until_more(load, number)
        before, copy = list(load.acknowledged), tmp_path / f"{number}.db"
        await worker.wait_for_text(before[-1], b"out 1\n")
        code, _, said = await command("ciworker", "backup", str(copy), env=worker.environment)
        assert code == 0, said
        held = await asyncio.to_thread(logs, copy)
        assert set(before) <= set(held)
        assert all(held[job]["stdout"] for job in before)
        for lines in held.values():
            for stream, expected in known.items():
                account.lines += len(lines[stream])
                assert lines[stream] == expected[: len(lines[stream])]
    load.stop()
    await loading
    for job in load.acknowledged:
        await account.take(worker, job, known)
    await account.leftovers(worker)

    await open_as_a_store(restored, tmp_path / f"{BACKUPS - 1}.db", before)
    row(16, faults=BACKUPS, **account.counts())


async def until_more(load: Load, number: int) -> None:
    async with asyncio.timeout(60):
        while len(load.acknowledged) <= number:
            await asyncio.sleep(0.01)


async def open_as_a_store(worker: Worker, copy: Path, jobs: list[str]) -> None:
    """Another worker takes it up: it has no workspaces and no containers."""
    worker.data_dir.mkdir()
    copy.rename(worker.data_dir / "ciworker.db")
    await worker.start()
    for job in jobs:
        ended = await worker.wait(job)
        assert ended["reason"] in ("passed", "container_lost", "workspace_invalid"), ended

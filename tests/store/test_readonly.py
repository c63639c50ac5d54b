"""A look at a stopped worker's store changes nothing, and keeps no worker from starting."""

import contextlib
import random
import sqlite3
from pathlib import Path

import pytest

from ciworker.domain.job import Status
from ciworker.errors import StoreRefused, StoreUnavailable
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.lock import LOCK_FILE, StoreLock, is_held
from ciworker.store.migrations import STEPS
from ciworker.store.readonly import active_jobs, damage_of
from ciworker.store.session import Database
from tests.store.lab import NOW, job_id, new_job
from tests.store.test_lock import holding


async def test_it_finds_what_runs_while_a_worker_has_the_lock(
    database: Database, jobs: Jobs, path: Path
) -> None:
    for number in range(3):
        await jobs.add(new_job(number), "me", None)
    await jobs.move(job_id(1), Expect(Status.QUEUED, 0), Status.STARTING, NOW, attempt=1)
    with StoreLock(path.parent, "a worker"):
        assert active_jobs(path) == [job_id(1)]
        assert damage_of(path) == ""


async def test_a_damaged_page_is_found(path: Path) -> None:
    database = await Database.open(path)
    for number in range(2000):
        await database.insert("INSERT INTO meta VALUES (?, 'x')", [f"{number:050}"])
    await database.close()
    assert damage_of(path) == ""
    data = bytearray(path.read_bytes())
    data[-4096 * 3 : -4096] = random.Random(1).randbytes(2 * 4096)
    path.write_bytes(data)

    with pytest.raises(StoreRefused, match="damaged"):
        damage_of(path)


def test_an_earlier_version_is_read_and_stays_what_it_is(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        for statement in STEPS[0]:
            made.execute(statement)
        made.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    assert (active_jobs(path), damage_of(path)) == ([], "")
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, len(STEPS) + 1])
def test_a_file_that_is_no_store_of_ours_is_refused(path: Path, version: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE tea (leaf)")
        made.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreRefused, match="tea" if version == 0 else f"version {version}"):
        damage_of(path)


def test_what_is_not_there_is_not_made(path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        active_jobs(path)
    assert not path.exists()


def test_whether_the_lock_is_held_is_seen_without_taking_it(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    assert not (tmp_path / LOCK_FILE).exists()
    with holding(tmp_path) as other:
        written = (tmp_path / LOCK_FILE).read_bytes()
        assert is_held(tmp_path)
        assert (tmp_path / LOCK_FILE).read_bytes() == written
        other.kill()
    assert not is_held(tmp_path)
    with StoreLock(tmp_path, "the next worker"):
        assert is_held(tmp_path)

"""A backup is the store at one moment, whole, or there is none."""

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from ciworker.errors import StoreRefused, StoreUnavailable
from ciworker.store import backup as module
from ciworker.store.backup import Backup, back_up
from ciworker.store.jobs import Jobs
from ciworker.store.logs import LogReader
from ciworker.store.session import BUSY_TIMEOUT, Database
from tests.store.lab import NOW, batch, chunk, job_id, new_job, nobody, rows, seed
from tests.store.test_logs import insert, stored


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups" / "monday.db"


async def test_it_holds_everything_and_opens_as_a_store(
    database: Database, jobs: Jobs, path: Path, target: Path
) -> None:
    for number in range(3):
        await jobs.add(new_job(number), "me", str(number))
    await insert(database, batch(job_id(1), chunk(1, "a", "b", "c")))

    held = await asyncio.to_thread(back_up, path, target)

    assert held == Backup(jobs=3, lines=3, size=target.stat().st_size)
    assert [file.name for file in target.parent.iterdir()] == [target.name]
    assert target.stat().st_mode & 0o777 == 0o600
    copy = await Database.open(target)
    try:
        assert rows(target, "PRAGMA quick_check") == [("ok",)]
        restored = Jobs(copy, on_change=lambda _: None, outbox=nobody())
        assert await restored.page(limit=9) == await jobs.page(limit=9)
        assert await restored.submitted("me", "2", NOW) == new_job(2)
        assert await stored(LogReader(copy), job_id(1)) == [(1, b"a"), (2, b"b"), (3, b"c")]
    finally:
        await copy.close()


async def test_writers_do_not_wait_and_what_they_commit_meanwhile_is_not_in_it(
    database: Database, jobs: Jobs, path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of the copy finds another commit beside it, and none makes it begin again."""
    monkeypatch.setattr(module, "PAGES_PER_STEP", 1)
    await seed(database, 3000)
    steps, loop, adds = 0, asyncio.get_running_loop(), []
    real = sqlite3.connect

    class Slow(sqlite3.Connection):
        def backup(  # type: ignore[override] # of its options only this one is used
            self, copy: sqlite3.Connection, *, pages: int
        ) -> None:
            def step(*_: int) -> None:
                nonlocal steps
                steps += 1
                if steps % 50 == 0:
                    job = new_job(10_000 + steps)
                    began = time.monotonic()
                    asyncio.run_coroutine_threadsafe(jobs.add(job, "me", None), loop).result(9)
                    adds.append(time.monotonic() - began)

            super().backup(copy, pages=pages, progress=step)

    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **more: real(*args, **{"factory": Slow} | more)
    )
    held = await asyncio.to_thread(back_up, path, target)

    assert len(adds) > 3
    assert max(adds) < BUSY_TIMEOUT
    assert held.jobs == 3000
    assert len(await jobs.page(limit=500, before="9")) == 500
    assert rows(path, "SELECT count(*) FROM job") == [(3000 + len(adds),)]
    assert rows(target, "SELECT count(*) FROM job") == [(3000,)]


async def test_it_overwrites_nothing(database: Database, path: Path, target: Path) -> None:
    target.write_text("precious")

    with pytest.raises(StoreRefused, match=r"monday\.db exists, and is not overwritten"):
        back_up(path, target)

    assert target.read_text() == "precious"
    assert [file.name for file in target.parent.iterdir()] == [target.name]


async def test_not_even_what_came_meanwhile(
    database: Database, path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._examined

    def examined(copy: Path) -> Backup:
        target.write_text("precious")
        return real(copy)

    monkeypatch.setattr(module, "_examined", examined)
    with pytest.raises(StoreRefused, match="is not overwritten"):
        back_up(path, target)

    assert target.read_text() == "precious"
    assert [file.name for file in target.parent.iterdir()] == [target.name]


async def test_not_even_what_came_in_the_last_moment(
    database: Database, path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_refuse_existing", lambda _: None)
    target.write_text("precious")

    with pytest.raises(StoreRefused, match="is not overwritten"):
        back_up(path, target)

    assert target.read_text() == "precious"


async def test_where_there_are_no_links_it_gets_its_name_too(
    database: Database, path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)

    assert back_up(path, target).size == target.stat().st_size
    assert [file.name for file in target.parent.iterdir()] == [target.name]
    with pytest.raises(StoreRefused, match="is not overwritten"):
        back_up(path, target)


async def test_a_damaged_store_gives_no_backup(path: Path, target: Path) -> None:
    database = await Database.open(path)
    await seed(database, 2000)
    await database.close()
    with path.open("r+b") as file:
        file.seek(20 * 4096)
        file.write(os.urandom(8 * 4096))

    with pytest.raises(StoreRefused, match="damaged"):
        back_up(path, target)

    assert list(target.parent.iterdir()) == []


async def test_what_is_no_database_is_told_of(path: Path, target: Path) -> None:
    path.write_text("dear diary, today I became a database\n" * 100)

    with pytest.raises(StoreRefused, match="damaged or none"):
        back_up(path, target)

    assert list(target.parent.iterdir()) == []


async def test_a_store_that_was_killed_is_copied_with_what_it_had_committed(
    path: Path, target: Path
) -> None:
    killed = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute(\"INSERT INTO meta VALUES ('a', 'b')\")\n"
        "os.kill(os.getpid(), 9)\n"
    )
    await (await Database.open(path)).close()
    subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    assert path.with_name(path.name + "-wal").stat().st_size > 0

    back_up(path, target)

    assert rows(target, "SELECT * FROM meta") == [("a", "b")]


async def test_a_folder_that_is_not_there_is_told_of(
    database: Database, path: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        back_up(path, tmp_path / "nowhere" / "x.db")


async def test_a_store_that_stays_locked_is_told_of(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.05)
    await (await Database.open(path)).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreUnavailable, match="broke off: database is locked"):
            back_up(path, target)

    assert list(target.parent.iterdir()) == []

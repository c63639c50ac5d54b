"""One writer connection that survives whatever becomes of its callers."""

import asyncio
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from sqlmodel import Session, col, select

from ciworker.errors import Invalid, StoreRefused, StoreUnavailable
from ciworker.store import session as module
from ciworker.store.meta import instance_id
from ciworker.store.schema import MetaRow
from ciworker.store.session import Database
from tests.store.lab import answer, connections, other_process, rows

FULL, NORMAL = 2, 1


async def synchronous(database: Database) -> int:
    """Of the connection that writes, outside of any transaction."""
    ((level,),) = await answer(database, "PRAGMA synchronous")
    return int(level)


def connection_of(database: Database) -> object:
    return database._writer._raw


class Gate:
    """Holds a transaction up in the driver's thread."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def hold(self) -> None:
        self._reached.set()
        assert self._open.wait(10)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, 10)

    def open(self) -> None:
        self._open.set()


async def put(database: Database, key: str, times: int = 1) -> None:
    def work(session: Session) -> None:
        for number in range(times):
            session.add(MetaRow(key=f"{key}-{number}", value="x"))
            session.flush()

    await database.write(work)


async def keys(database: Database) -> list[str]:
    return list(await database.rows(select(MetaRow.key).order_by(col(MetaRow.key))))


async def test_what_is_written_is_synced_and_what_is_inserted_is_not(database: Database) -> None:
    def level(session: Session) -> int:
        return int(session.connection().exec_driver_sql("PRAGMA synchronous").scalar_one())

    assert await database.write(level) == FULL
    assert await synchronous(database) == NORMAL


async def test_a_write_that_raises_keeps_nothing_and_sets_the_level_back(
    database: Database,
) -> None:
    def work(session: Session) -> None:
        session.add(MetaRow(key="lost", value="x"))
        session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(work)

    assert await synchronous(database) == NORMAL
    assert await keys(database) == []
    await put(database, "next")
    assert await keys(database) == ["next-0"]


async def test_a_commit_that_is_refused_leaves_the_connection_usable(database: Database) -> None:
    await put(database, "same")

    for _ in range(3):
        with pytest.raises(StoreRefused, match="UNIQUE"):
            await put(database, "same")

    assert await synchronous(database) == NORMAL
    await put(database, "other")
    assert await keys(database) == ["other-0", "same-0"]


async def test_a_write_that_is_cancelled_anywhere_is_whole_or_absent(
    database: Database, path: Path
) -> None:
    """200 times; between them the same connection goes on, and no other was ever opened."""
    chosen = random.Random(4)
    held, heard = connection_of(database), 0
    took = []
    for number in range(5):
        began = time.perf_counter()
        await put(database, f"warm{number}", times=4)
        took.append(time.perf_counter() - began)
    most = min(took)

    for number in range(200):
        writing = asyncio.create_task(put(database, f"cut{number:03}", times=4))
        await asyncio.sleep(chosen.uniform(0, most))
        writing.cancel()
        (result,) = await asyncio.gather(writing, return_exceptions=True)
        heard += isinstance(result, asyncio.CancelledError)
        assert result is None or isinstance(result, asyncio.CancelledError)
        assert await synchronous(database) == NORMAL
        await put(database, f"use{number:03}")

    assert connection_of(database) is held
    assert heard > 50
    found = await keys(database)
    assert sum(key.startswith("use") for key in found) == 200
    cuts = [key[:6] for key in found if key.startswith("cut")]
    assert {cuts.count(key) for key in cuts} == {4}
    assert len(connections()) <= 1 + module.READERS
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


async def test_a_write_cancelled_twice_is_still_awaited(database: Database) -> None:
    gate = Gate()

    def work(session: Session) -> None:
        session.add(MetaRow(key="kept", value="x"))
        gate.hold()

    writing = asyncio.create_task(database.write(work))
    await gate.reached()
    for _ in range(3):
        writing.cancel()
        await asyncio.sleep(0)
    assert not writing.done()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await writing

    assert await keys(database) == ["kept"]


async def test_a_commit_is_told_of_though_its_caller_is_gone(database: Database) -> None:
    told: list[int] = []
    gate = Gate()

    def work(_session: Session) -> int:
        gate.hold()
        return 7

    writing = asyncio.create_task(database.write(work, told.append))
    await gate.reached()
    writing.cancel()
    gate.open()
    await asyncio.wait([writing])

    assert told == [7]


async def test_who_waits_for_the_writer_may_be_cancelled_at_once(database: Database) -> None:
    gate = Gate()

    def work(_session: Session) -> None:
        gate.hold()

    first = asyncio.create_task(database.write(work))
    await gate.reached()
    second = asyncio.create_task(put(database, "second"))
    third = asyncio.create_task(put(database, "third"))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    assert not first.done()
    gate.open()
    await first
    await third

    assert await keys(database) == ["third-0"]


async def test_reads_that_are_cancelled_anywhere_cost_no_connection(database: Database) -> None:
    chosen = random.Random(4)
    for _ in range(200):
        reading = [asyncio.create_task(keys(database)) for _ in range(3)]
        await asyncio.sleep(chosen.uniform(0, 0.003))
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)

    answers = await asyncio.gather(*(keys(database) for _ in range(module.READERS * 5)))
    assert answers == [[]] * len(answers)
    assert len(connections()) <= 1 + module.READERS


async def test_an_insert_that_is_cancelled_is_whole_and_the_next_one_goes_on(
    database: Database,
) -> None:
    for number in range(50):
        statement, key = "INSERT INTO meta VALUES (?, 'x')", f"{number:02}"
        inserting = asyncio.create_task(database.insert(statement, [key]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        inserting.cancel()
        await asyncio.wait([inserting])
        await put(database, f"use{number:02}")

    assert len([key for key in await keys(database) if key.startswith("use")]) == 50


async def test_readers_see_what_was_committed_and_not_what_is_being_written(
    database: Database,
) -> None:
    def work(session: Session) -> list[str]:
        session.add(MetaRow(key="k", value="x"))
        session.flush()
        return asyncio.run_coroutine_threadsafe(keys(database), loop).result(10)

    loop = asyncio.get_running_loop()
    assert await database.write(work) == []
    assert await keys(database) == ["k"]


async def test_a_reader_cannot_write(database: Database) -> None:
    def work(session: Session) -> None:
        session.add(MetaRow(key="k", value="x"))
        session.flush()

    with pytest.raises(StoreUnavailable, match="readonly"):
        await database.read(work)


@pytest.mark.parametrize("value", ["\udcff", 2**70])
async def test_a_value_that_sqlite_cannot_hold_is_invalid_and_not_a_failure(
    database: Database, value: object
) -> None:
    with pytest.raises(Invalid):
        await database.rows(select(MetaRow.key).where(col(MetaRow.key) == value))
    with pytest.raises(Invalid):
        await database.insert("INSERT INTO meta VALUES (?, 'x')", [value])

    await put(database, "next")


async def test_another_process_that_holds_the_lock_is_waited_for_not_for_ever(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 1.0)
    database = await Database.open(path)
    with other_process(path) as other:
        await other.does("PRAGMA busy_timeout = 0")
        await other.does("BEGIN IMMEDIATE")
        began, turns = time.monotonic(), 0
        writing = asyncio.create_task(put(database, "late"))
        while not writing.done():
            assert await keys(database) == []  # the loop is free, and readers go on
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(StoreUnavailable, match="locked"):
            await writing
        took = time.monotonic() - began
        await other.does("COMMIT")

    assert module.BUSY_TIMEOUT * 0.9 < took < module.BUSY_TIMEOUT + 1
    assert turns > 10
    assert await synchronous(database) == NORMAL
    await put(database, "now")
    assert await keys(database) == ["now-0"]
    await database.close()


async def test_a_crowd_of_writers_waits_a_bounded_time_for_its_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN_TIMEOUT", 0.05)
    gate = Gate()

    def work(_session: Session) -> None:
        gate.hold()

    first = asyncio.create_task(database.write(work))
    await gate.reached()
    crowd = await asyncio.gather(
        *(put(database, str(number)) for number in range(20)), return_exceptions=True
    )
    gate.open()
    await first

    assert {type(result) for result in crowd} == {StoreUnavailable}
    await put(database, "next")
    assert await keys(database) == ["next-0"]


async def test_a_database_that_is_locked_while_it_is_opened_is_unavailable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 0.2)
    with other_process(path) as other:
        await other.does("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"):
            await Database.open(path)
        assert time.monotonic() - began < 5

    await (await Database.open(path)).close()


async def test_two_processes_lose_no_update(database: Database, path: Path) -> None:
    """Read, then write: with the driver's own transactions most of these would be lost."""
    await database.insert("INSERT INTO meta VALUES ('n', '0')", [])

    def add(session: Session) -> None:
        row = session.get_one(MetaRow, "n")
        row.value = str(int(row.value) + 1)
        session.add(row)

    with other_process(path) as other:

        async def theirs() -> None:
            for _ in range(100):
                await other.does("BEGIN IMMEDIATE")
                await other.does("UPDATE meta SET value = value + 1 WHERE key = 'n'")
                await other.does("COMMIT")

        async def ours() -> None:
            for _ in range(100):
                await database.write(add)

        await asyncio.gather(theirs(), ours(), ours())

    assert rows(path, "SELECT value FROM meta WHERE key = 'n'") == [("300",)]


async def test_a_committed_write_survives_a_kill_of_the_process(path: Path) -> None:
    script = """
        import asyncio, os, sys
        from pathlib import Path
        from ciworker.store.meta import instance_id
        from ciworker.store.session import Database

        async def main():
            database = await Database.open(Path(sys.argv[1]))
            await instance_id(database, "kept")
            def work(session):
                session.connection().exec_driver_sql("DELETE FROM meta")
                os.kill(os.getpid(), 9)
            await database.write(work)

        asyncio.run(main())
    """
    ended = await asyncio.to_thread(_run, script, str(path))
    assert ended.returncode == -9, ended.stderr

    database = await Database.open(path)
    try:
        assert await instance_id(database, None) == "kept"
    finally:
        await database.close()


async def test_a_closed_database_leaves_no_thread_and_no_wal(path: Path) -> None:
    """In a process of its own, that has to end by itself."""
    script = """
        import asyncio, random, sys, threading
        from pathlib import Path
        from sqlalchemy import text
        from ciworker.store.meta import instance_id
        from ciworker.store.session import Database

        async def main():
            database = await Database.open(Path(sys.argv[1]))
            await instance_id(database, None)
            check = text("PRAGMA quick_check")
            reads = [asyncio.create_task(database.table(check)) for _ in range(20)]
            await asyncio.sleep(0.01)
            for read in reads[::2]:
                read.cancel()
            await asyncio.wait(reads)
            assert Path(sys.argv[1] + "-wal").stat().st_size
            await database.close()
            for thread in threading.enumerate():
                if thread is not threading.main_thread():
                    thread.join(5)
            print(threading.active_count(), [p.name for p in Path(sys.argv[1]).parent.iterdir()])

        asyncio.run(main())
    """
    ended = await asyncio.to_thread(_run, script, str(path))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"1 ['{path.name}']\n"


async def test_a_process_that_fails_does_not_wait_for_the_driver_s_thread(path: Path) -> None:
    script = """
        import asyncio, sys
        from pathlib import Path
        from ciworker.store.session import Database

        async def main():
            database = await Database.open(Path(sys.argv[1]))
            raise SystemExit(7)

        asyncio.run(main())
    """
    ended = await asyncio.to_thread(_run, script, str(path))

    assert ended.returncode == 7, ended.stderr


async def test_a_folder_that_may_not_be_written_is_said_to_be_unusable(tmp_path: Path) -> None:
    script = """
        import asyncio, os, sys
        from pathlib import Path
        from ciworker.errors import StoreUnavailable
        from ciworker.store.session import Database
        import aiosqlite, sqlalchemy.dialects.sqlite

        async def main():
            try:
                await Database.open(Path("ciworker.db"))
            except StoreUnavailable as error:
                print(error)

        os.chdir(sys.argv[1])
        os.chmod(".", 0o555)
        if os.geteuid() == 0:
            os.setuid(65534)
        asyncio.run(main())
    """
    ended = await asyncio.to_thread(_run, script, str(tmp_path))

    assert (ended.returncode, ended.stderr) == (0, "")
    assert "cannot be used right now: unable to open" in ended.stdout
    assert list(tmp_path.iterdir()) == []


async def test_an_instance_is_named_once_and_by_the_operators_choice(database: Database) -> None:
    first = await instance_id(database, None)

    assert len(first) == 16
    assert await instance_id(database, None) == first
    assert await instance_id(database, "mine") == "mine"
    assert await instance_id(database, None) == "mine"


def _run(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

"""A store that cannot be used is told of in words, and left as it is."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.chaos.disks import read_only
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, tree
from tests.store.lab import Other


async def refused(worker: Worker) -> str:
    """What a start says that has to fail."""
    code, _, said = await command("ciworker", "serve", env=worker.environment)
    assert code == 2
    text = said.decode()
    assert "Traceback" not in text
    return text


@pytest.fixture
async def stopped(worker: Worker) -> Worker:
    """A worker that ran and has a store."""
    await worker.stop()
    return worker


async def test_a_database_from_the_future_is_refused_and_left_alone(stopped: Worker) -> None:
    path = stopped.data_dir / "ciworker.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")
    before = path.read_bytes()

    said = await refused(stopped)

    assert "the database is of version 999, this ciworker knows up to" in said
    assert "use the release that wrote it, or a later one" in said
    assert path.read_bytes() == before


@pytest.mark.parametrize("harm", ["newer", "damaged"])
async def test_the_history_of_a_store_that_cannot_be_used_says_why(
    stopped: Worker, harm: str
) -> None:
    path = stopped.data_dir / "ciworker.db"
    if harm == "newer":
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 999")
    else:
        path.write_bytes(b"tea" * 4096)
    code, out, err = await command("ciworker", "audit", env=stopped.environment)
    assert (code, out) == (2, b"")
    said = {"newer": "is of version 999", "damaged": "is damaged or none"}[harm]
    assert said in err.decode()


@contextlib.contextmanager
def other(worker: Worker) -> Iterator[Other]:
    made = Other(worker.data_dir / "ciworker.db")
    try:
        yield made
    finally:
        made.kill()


async def has_open(worker: Worker, name: str) -> None:
    """Until the process of a worker that starts has this file open."""
    assert worker.process
    folder = Path(f"/proc/{worker.process.pid}/fd")
    async with asyncio.timeout(DEADLINE):
        while not any(path.resolve().name == name for path in folder.iterdir()):
            await asyncio.sleep(0.01)


async def test_a_locked_database_is_waited_for(stopped: Worker) -> None:
    with other(stopped) as holder:
        await holder.does("BEGIN IMMEDIATE")
        await stopped.spawn()
        await has_open(stopped, "ciworker.db-shm")
        with pytest.raises(TimeoutError):  # it gives up after 5 s, and is not ready before
            async with asyncio.timeout(1):
                await stopped.ready()
        await holder.does("COMMIT")
        await stopped.ready()


async def test_of_a_database_that_stays_locked_it_is_told_by_whom(stopped: Worker) -> None:
    with other(stopped) as holder:
        await holder.does("BEGIN IMMEDIATE")
        said = await refused(stopped)

    assert "ciworker.db cannot be opened: the database cannot be used right now:" in said
    assert f"(process {holder.pid}) holds it: stop that, then start again" in said


@pytest.mark.parametrize("change", [-1, 1])
async def test_of_a_log_that_has_not_the_bytes_it_is_said_to_nobody_takes_a_part_for_the_whole(
    worker: Worker, change: int
) -> None:
    job_id = (await worker.run("seq 9"))["id"]
    assert len(await worker.text(job_id)) == 18
    await worker.stop()
    with contextlib.closing(sqlite3.connect(worker.data_dir / "ciworker.db")) as connection:
        connection.execute("UPDATE log_chunk SET total_bytes = total_bytes + ?", (change,))
        connection.commit()
    await worker.start()

    with pytest.raises(aiohttp.ClientError):
        await worker.text(job_id)

    assert f"has not the {18 + change} bytes" in worker.log.read_text()
    assert (await worker.text(job_id, "?from=2")).startswith(b"2\n")


async def test_a_missing_data_folder_is_made(new_worker: WorkerFactory) -> None:
    worker = new_worker()
    worker.data_dir = worker.data_dir / "not" / "yet"
    worker.set(data_dir=str(worker.data_dir))

    await worker.start()

    assert (worker.data_dir / "ciworker.db").exists()


async def test_a_file_in_the_data_folders_place_is_told_of(new_worker: WorkerFactory) -> None:
    worker = new_worker()
    worker.data_dir.write_text("no folder")

    said = await refused(worker)

    assert f"ciworker: {worker.data_dir} cannot be written (" in said
    assert "choose another data_dir" in said


async def test_a_read_only_data_folder_is_told_of(stopped: Worker) -> None:
    with read_only(stopped.data_dir):
        said = await refused(stopped)

    assert f"{stopped.data_dir} cannot be written (" in said
    assert "make it writable for user " in said


async def test_a_data_folder_that_goes_while_the_worker_runs_refuses_submits_in_words(
    worker: Worker, tmp_path: Path
) -> None:
    job = await worker.run("true")
    spool = worker.data_dir / "spool"
    spool.rename(tmp_path / "elsewhere")

    status, problem = await worker.post(tree({"x": "x"}))
    assert status == 503
    assert "disk cannot be written: No such file or directory" in problem["detail"]
    assert await worker.job(job["id"]) == job

    (tmp_path / "elsewhere").rename(spool)
    assert (await worker.run("true"))["success"]


@pytest.mark.parametrize("damage", ["gone", "cut", "noise", "other length"])
async def test_a_workspace_that_is_damaged_at_the_start_ends_its_job_and_no_other(
    new_worker: WorkerFactory, damage: str
) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    running = await worker.submit("sleep 1")
    await worker.wait(running, "running")
    bad, good = await worker.submit("echo never"), await worker.submit("echo fine")
    await worker.kill()
    spool = worker.data_dir / "spool" / f"{bad}.tar.zst"
    match damage:
        case "gone":
            spool.unlink()
        case "cut":
            spool.write_bytes(spool.read_bytes()[:-9])
        case "noise":
            spool.write_bytes(b"tea" * 99)
        case _:
            spool.write_bytes((worker.data_dir / "spool" / f"{good}.tar.zst").read_bytes() * 2)
    await worker.start()

    ended = await worker.wait(bad)
    assert (ended["status"], ended["reason"]) == ("failed", "workspace_invalid")
    assert ended["message"].endswith(": submit it again")
    assert (await worker.wait(good))["success"]
    assert (await worker.wait(running))["success"]
    await worker.nothing_left()

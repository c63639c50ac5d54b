"""`ciworker backup FILE`, and what a restored store makes of its jobs."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import WorkerFactory
from tests.driver import Worker, command, docker
from tests.e2e.follower import WAIT


async def backed_up(worker: Worker, target: Path) -> str:
    """Back up; what the command said."""
    code, out, err = await command("ciworker", "backup", str(target), env=worker.environment)
    assert code == 0, err
    return out.decode()


def restore(worker: Worker, target: Path) -> None:
    """As `ciworker backup --help` says; the workspaces are lost."""
    shutil.copy(target, worker.data_dir / "ciworker.db")
    for name in ("ciworker.db-wal", "ciworker.db-shm"):
        (worker.data_dir / name).unlink(missing_ok=True)
    for path in (worker.data_dir / "spool").iterdir():
        path.unlink()


async def test_what_is_restored_is_all_there_and_queued_jobs_end_in_words(
    new_worker: WorkerFactory, tmp_path: Path
) -> None:
    worker, target = new_worker(max_jobs="1"), tmp_path / "backup.db"
    await worker.start()
    over = await worker.run("seq 1 1000")
    running = await worker.submit(f"echo so far; {WAIT}")
    await worker.wait_for_text(running, b"so far\n")
    queued = await worker.submit("echo never")
    token = worker.token

    said = await backed_up(worker, target)
    assert said.startswith(f"{target}: 3 jobs, 1,001 lines, ")
    assert said.endswith("bytes), checked\n")
    after = await worker.submit("true")
    await docker("rm", "-f", await worker.container(running))
    await worker.kill()
    restore(worker, target)
    await worker.start()

    assert (worker.token, (await worker.call("GET", f"/jobs/{after}"))[0]) == (token, 404)
    assert await worker.job(over["id"]) == over
    assert await worker.text(over["id"]) == b"".join(b"%d\n" % n for n in range(1, 1001))
    assert (await worker.wait(running))["status"] == "failed"
    assert await worker.text(running) == b"so far\n"
    ended = await worker.wait(queued)
    assert ended["reason"] == "workspace_invalid"
    assert "can't be read: " in ended["message"]
    assert ended["message"].endswith(": submit it again")
    assert (await worker.run("true"))["success"]
    await worker.nothing_left()


async def test_a_stopped_workers_store_is_backed_up_too(
    new_worker: WorkerFactory, tmp_path: Path
) -> None:
    worker = new_worker()
    await worker.start()
    await worker.run("true")
    await worker.stop()

    assert "1 job, 0 lines" in await backed_up(worker, tmp_path / "backup.db")
    await worker.start()


@pytest.mark.parametrize("there", ["file", "folder"])
async def test_what_is_there_is_not_overwritten(worker: Worker, tmp_path: Path, there: str) -> None:
    target = tmp_path / "backup.db"
    if there == "file":
        target.write_text("precious")
    else:
        target.mkdir()

    code, _, said = await command("ciworker", "backup", str(target), env=worker.environment)

    assert code == 2
    assert (
        said.decode() == f"ciworker: {target} exists, and is not overwritten: choose another name\n"
    )


async def test_without_a_store_there_is_nothing_to_back_up(
    new_worker: WorkerFactory, tmp_path: Path
) -> None:
    worker = new_worker()

    code, _, said = await command("ciworker", "backup", str(tmp_path / "x"), env=worker.environment)

    assert code == 2
    assert b"nothing to back up" in said


async def test_its_help_says_how_to_restore(new_worker: WorkerFactory) -> None:
    code, said, _ = await command("ciworker", "backup", "--help", env=new_worker().environment)

    assert code == 0
    for word in (b"To restore", b"ciworker.db-wal", b"workspace_invalid"):
        assert word in said

"""Before a disk is full new jobs are refused, and running ones go on."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.disks import fill, memory_disk, worker_on
from tests.driver import Worker, command, tree
from tests.e2e.follower import WAIT, let_go
from tests.e2e.visitor import log_in
from tests.store.lab import other_process

MIB = 2**20


@pytest.fixture
async def full_soon(disk: Path, image: str) -> AsyncIterator[Worker]:
    """It takes no job while less than 30 MiB are free."""
    async with worker_on(disk, image, min_free="30m") as made:
        yield made


async def refusal(worker: Worker) -> tuple[dict[str, Any], str]:
    """The problem document of a submit that has to be refused, and its Retry-After."""

    form = aiohttp.FormData()
    form.add_field("spec", '{"run": "true"}', content_type="application/json")
    form.add_field("archive", tree({"x": "x"}), filename="a")
    async with worker.session.post("/api/v1/jobs", data=form, headers=worker.headers) as answer:
        assert answer.status == 503
        return json.loads(await answer.read()), answer.headers["Retry-After"]


async def test_below_min_free_no_job_is_taken_and_running_ones_go_on(
    disk: Path, full_soon: Worker
) -> None:
    over = (await full_soon.run("true"))["id"]
    job = await full_soon.submit(f"{WAIT}; echo bye")
    await full_soon.wait(job, "running")
    ballast = fill(disk, leave=20 * MIB)

    problem, retry_after = await refusal(full_soon)
    assert retry_after == "60"
    assert problem["detail"].startswith("the disk of the worker's data folder has ")
    assert "free, and no job is taken below min_free (30.0 MiB): free some" in problem["detail"]
    (disk / "tree").mkdir()
    (disk / "tree" / "x").write_text("x")
    code, _, said = await command(
        "ciclient", "submit", str(disk / "tree"), "--", "true", env=full_soon.client_environment
    )
    assert code == 5
    assert b"no job is taken below min_free" in said
    assert (await full_soon.call("POST", f"/jobs/{over}/retry"))[0] == 503
    assert len(list((full_soon.data_dir / "spool").iterdir())) == 2

    await let_go(full_soon, job)
    assert (await full_soon.wait(job))["reason"] == "passed"
    assert await full_soon.text(job) == b"bye\n"
    ballast.unlink()
    assert (await full_soon.run("true"))["success"]


async def test_a_full_disk_keeps_no_worker_from_starting(disk: Path, full_soon: Worker) -> None:
    """Not even with sessions that have expired and are to be removed. After a kill: SQLite needs
    some blocks of its own where nobody left it any.
    """
    await log_in(full_soon)
    await full_soon.kill()
    with other_process(full_soon.data_dir / "ciworker.db") as killed:
        expired = await killed.does("UPDATE session SET expires_at = 1 RETURNING 'expired'")
        assert expired == "[('expired',)]"
    ballast = fill(disk)

    await full_soon.start()

    status, problem = await full_soon.post(b"")
    assert (status, "min_free" in problem["detail"]) == (503, True)
    ballast.unlink()
    assert (await full_soon.run("true"))["success"]


async def test_a_worker_that_was_stopped_and_finds_no_room_to_begin_says_what_to_do(
    disk: Path, full_soon: Worker
) -> None:
    await full_soon.stop()
    ballast = fill(disk)
    code, _, said = await command("ciworker", "serve", env=full_soon.environment)
    assert code == 2
    assert f"the disk at {full_soon.data_dir} is full: free some of it".encode() in said

    ballast.unlink()
    await full_soon.start()
    assert (await full_soon.run("true"))["success"]


async def test_the_engines_disk_is_guarded_too(tmp_path: Path, image: str) -> None:
    """The data folder's disk says that it has more room than any real one."""
    with memory_disk(tmp_path, "800t") as mount:
        settings = {"default_image": image, "min_free": str(400 * 2**40)}
        worker = Worker(mount / "worker", settings)
        try:
            await worker.start()
            problem, _ = await refusal(worker)
        finally:
            await worker.destroy()

    assert problem["detail"].startswith("the disk of the Docker engine has ")
    assert "ciworker env prune" in problem["detail"]


async def test_a_workspace_that_does_not_fit_is_refused_and_leaves_nothing(
    disk: Path, image: str
) -> None:
    async with worker_on(disk, image, min_free="1m") as worker:
        ballast = fill(disk, leave=4 * MIB)
        status, problem = await worker.post(tree({"large": os.urandom(8 * MIB)}))
        assert status == 503
        assert "disk cannot be written: No space left on device" in problem["detail"]
        assert list((worker.data_dir / "spool").iterdir()) == []
        ballast.unlink()
        assert (await worker.run("true"))["success"]

"""Row 13: the worker's or the engine's disk is full to its last block while a job runs."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.account import Account
from tests.chaos.conftest import Row
from tests.chaos.daemon import Elsewhere, private_daemon
from tests.chaos.disks import fill, free, small_disk, worker_on
from tests.driver import DEADLINE, Worker, docker, tree
from tests.e2e.follower import WAIT, following, let_go, stored

MIB = 2**20
WORDS = "x" * 400
GATED = (
    "for i in $(seq 1 100); do echo before $i; done; "
    f"{WAIT}; i=0; while [ $i -lt 40000 ]; do i=$((i+1)); echo line $i {WORDS}; done; echo done"
)
PRINTED = {
    "stdout": [
        *(f"before {n}" for n in range(1, 101)),
        *(f"line {n} {WORDS}" for n in range(1, 40_001)),
        "done",
    ],
    "stderr": [],
}


@pytest.fixture
async def worker(disk: Path, image: str) -> AsyncIterator[Worker]:
    async with worker_on(disk, image, min_free="10m") as made:
        yield made


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not reached():
            await asyncio.sleep(0.02)


async def full(worker: Worker, disk: Path, job_id: str) -> Path:
    """Until lines of the job cannot be stored; the file that fills the disk."""
    ballast = fill(disk)
    await let_go(worker, job_id)
    await until(lambda: "log lines wait for the store" in worker.log.read_text())
    assert free(disk) < MIB
    return ballast


@pytest.mark.rows(13)
async def test_no_line_and_no_verdict_is_lost(disk: Path, worker: Worker, row: Row) -> None:
    account = Account()
    job = await worker.submit(GATED)
    await worker.wait_for_text(job, b"before 100\n")
    async with following(worker, job) as follower:
        ballast = await full(worker, disk, job)
        status, problem = await worker.post(b"")
        assert (status, "min_free" in problem["detail"]) == (503, True)
        assert (await worker.job(job))["status"] == "running"
        assert len(follower.records) < len(PRINTED["stdout"])
        await docker("wait", await worker.container(job))  # its end cannot be stored either
        ballast.unlink()

    await account.take(worker, job, PRINTED)
    shown = [record["text"] for record in follower.records]
    assert shown == PRINTED["stdout"]
    assert account.reasons == {"passed": 1}
    assert (await worker.run("true"))["success"]
    await account.leftovers(worker)
    row(13, faults=1, **account.counts())


@pytest.mark.rows(13)
async def test_a_worker_killed_on_a_full_disk_starts_there_and_goes_on_once_there_is_room(
    disk: Path, worker: Worker, row: Row
) -> None:
    account = Account()
    job = await worker.submit(GATED)
    await worker.wait_for_text(job, b"before 100\n")
    ballast = await full(worker, disk, job)
    before = await stored(worker, job)

    await worker.kill()
    fill(disk)
    await worker.start()
    assert (await stored(worker, job))[: len(before)] == before
    ballast.unlink()

    await account.take(worker, job, PRINTED)
    assert (await stored(worker, job))[: len(before)] == before
    assert account.reasons == {"passed": 1}
    await account.leftovers(worker)
    row(13, faults=2, **account.counts())


@pytest.fixture
async def elsewhere(tmp_path: Path, image: str) -> AsyncIterator[tuple[Elsewhere, Path]]:
    """A worker on a Docker daemon whose data lie on a small disk, and that disk."""
    with small_disk(tmp_path, 1024 * MIB) as disk:
        async with private_daemon(image, disk / "docker") as daemon:
            settings = {"default_image": image, "min_free": "20m"}
            made = Elsewhere(tmp_path / "worker", settings, daemon)
            try:
                await made.start()
                yield made, disk
            finally:
                await made.destroy()


@pytest.mark.chaos
@pytest.mark.rows(13)
async def test_on_a_full_disk_of_the_engine_no_job_is_taken_and_what_runs_ends(
    elsewhere: tuple[Elsewhere, Path], row: Row
) -> None:
    account, (worker, disk) = Account(), elsewhere
    job = await worker.submit(GATED)
    await worker.wait_for_text(job, b"before 100\n")
    ballast = fill(disk)

    status, problem = await worker.post(tree({"x": "x"}), {"run": "true"})
    assert (status, "the disk of the Docker engine has" in problem["detail"]) == (503, True)
    await worker.daemon.docker("exec", await worker.container(job), "touch", "/workspace/go")
    await account.take(worker, job, PRINTED)
    assert account.reasons == {"passed": 1}
    assert free(disk) < MIB
    status, _ = await worker.post(tree({"x": "x"}), {"run": "true"})
    assert status == 503

    ballast.unlink()
    assert (await worker.run("true"))["success"]
    await account.leftovers(worker)
    row(13, faults=1, **account.counts())

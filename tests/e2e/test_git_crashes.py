"""What becomes of a fetch when its worker dies or stops, and what a worker may do unasked."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker
from tests.gitjobs import READS, children_of_git, post
from tests.gitservers import Authority, Https, https
from tests.repositories import Made, made


@dataclass
class Tea:
    """A worker that is not started yet, and what it may fetch."""

    worker: Worker
    https: Https
    repo: Made


@pytest.fixture
async def tea(tmp_path: Path, new_worker: WorkerFactory) -> AsyncIterator[Tea]:
    root = tmp_path / "served"
    root.mkdir()
    repo = made(root)
    repo.commit({"leaf.txt": "oolong\n"})
    authority = Authority.made(tmp_path / "authority")
    async with https(root, authority, "none") as served:
        worker = new_worker(
            git_hosts=json.dumps({served.place: {"ca_file": str(authority.file)}}),
            git_allowed_addresses=json.dumps(["127.0.0.0/8", "::1"]),
        )
        yield Tea(worker, served, repo)


async def test_a_worker_that_is_killed_in_mid_fetch_is_followed_by_one_that_fetches_again(
    tea: Tea,
) -> None:
    commit = tea.repo.commit({"leaf.txt": "oolong\n"})
    tea.https.rest()
    worker = tea.worker
    await worker.start()
    _, job = await post(worker, {"git": {"url": tea.https.url("once/tea.git")}, "run": READS})
    await tea.https.is_stalled()
    await worker.kill()
    async with asyncio.timeout(DEADLINE):
        while children_of_git(worker):
            await asyncio.sleep(0.02)
    assert list((worker.data_dir / "fetches").iterdir()), "it was in the middle"
    tea.https.go_on()
    await worker.start()
    ended = await worker.wait(job["id"])
    assert (ended["reason"], ended["spec"]["git"]["commit"]) == ("passed", commit)
    log = (await worker.text(job["id"])).decode()
    assert log.count("::group::Fetch HEAD of ") == 2
    assert "ciworker: the fetch was cut off and begins anew\n::endgroup::\n" in log
    assert list((worker.data_dir / "fetches").iterdir()) == []


async def test_a_worker_that_is_stopped_in_mid_fetch_goes_at_once(tea: Tea) -> None:
    tea.https.rest()
    worker = tea.worker
    await worker.start()
    _, job = await post(worker, {"git": {"url": tea.https.url("once/tea.git")}, "run": READS})
    await tea.https.is_stalled()
    assert await worker.stop() < 3
    assert children_of_git(worker) == []
    assert list((worker.data_dir / "fetches").iterdir()) == []
    assert "Traceback" not in worker.log.read_text()
    tea.https.go_on()
    await worker.start()
    assert (await worker.wait(job["id"]))["reason"] == "passed"


async def test_a_worker_fetches_from_public_addresses_alone(
    tea: Tea, new_worker: WorkerFactory
) -> None:
    worker = new_worker()
    await worker.start()
    asked = len(tea.https.asked)
    for url in (tea.https.url("tea.git"), "https://169.254.169.254/latest/meta-data"):
        _, job = await post(worker, {"git": {"url": url}})
        job = await worker.wait(job["id"])
        assert job["reason"] == "source_failed"
        assert "is no public address: an operator may allow it" in job["message"]
    _, job = await post(worker, {"git": {"url": tea.repo.url}})
    assert "git_folders" in (await worker.wait(job["id"]))["message"]
    assert len(tea.https.asked) == asked

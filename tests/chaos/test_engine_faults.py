"""Rows 11, 12: containers that others end, and an engine whose calls fail in every way."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import aiohttp
import pytest

from tests.chaos.account import Account, counted, counting
from tests.chaos.conftest import Row
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, docker, tree
from tests.e2e.conftest import Tuned
from tests.e2e.follower import WAIT, let_go
from tests.e2e.proxy import ENGINE, Fault, Proxy, proxy

LINES = 20
BY_OTHERS = (("kill",), ("kill", "-s", "TERM"), ("rm", "-f"))
IN_A_ROW = 2
IMPATIENCE = {
    "ciworker.engine.docker.CALL_TIMEOUT": 5.0,
    "ciworker.engine.docker.PING_TIMEOUT": 0.5,
    "ciworker.engine.docker.COMMIT_TIMEOUT": 2.0,
    "ciworker.control.controller.RETRY_MOST": 1.0,
}
EVENTS, ATTACH = "GET /events", "POST /containers/{id}/attach"
START, INSPECT = "POST /containers/{id}/start", "GET /containers/{id}/json"
ROUTES = (
    EVENTS, ATTACH, START, INSPECT, "GET /info", "GET /containers/json",
    "GET /containers/{id}/logs", "POST /containers/create",
    "POST /containers/{id}/kill", "DELETE /containers/{id}", "GET /images/{id}/json",
    "GET /images/json", "POST /commit", "DELETE /images/{id}", "GET /_ping", "GET /version",
    "GET /networks/ciworker",
)  # fmt: skip
MAKE_NETWORK = "POST /networks/create"  # once on a machine
BRIDGE = "GET /networks/bridge"
RING = 256  # events that the engine keeps
NewTuned = Callable[..., Tuned]


@pytest.mark.rows(11)
@pytest.mark.parametrize(
    "rounds", [1, pytest.param(10, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])]
)
async def test_a_container_that_someone_else_ends_is_no_failure_of_its_tests(
    new_worker: WorkerFactory, row: Row, rounds: int
) -> None:
    worker = new_worker(max_jobs="3", max_memory="64g", job_memory="256m")
    await worker.start()
    account = Account()
    for _ in range(rounds):
        jobs = [await worker.submit(f"{counting(LINES)}; sleep 60") for _ in BY_OTHERS]
        for job_id, words in zip(jobs, BY_OTHERS, strict=True):
            await worker.wait_for_text(job_id, b"err %d\n" % LINES)
            await worker.wait(job_id, "running")
            await docker(*words, await worker.container(job_id))
        for job_id, words in zip(jobs, BY_OTHERS, strict=True):
            await account.take(worker, job_id, counted(LINES), incomplete=words == ("rm", "-f"))
            job = await worker.job(job_id)
            assert (job["status"], job["reason"]) == ("failed", "killed_outside"), job
            assert "someone other than ciworker" in job["message"]
    await account.leftovers(worker)
    row(11, faults=len(BY_OTHERS) * rounds, **account.counts())


@pytest.fixture
async def impatient(tmp_path: Path, image: str) -> AsyncIterator[NewTuned]:
    """Makes workers that wait for calls no longer than needed; nothing of them is left."""
    made: list[Tuned] = []

    def make(**settings: str) -> Tuned:
        worker = Tuned(tmp_path / "worker", {"default_image": image, **settings})
        worker.constants = IMPATIENCE
        made.append(worker)
        return worker

    yield make
    for worker in made:
        await worker.destroy()


async def scenario(worker: Worker, between: Proxy, account: Account) -> None:
    """What takes every route: a cancel, a setup, a recovery, a removed environment, a resync."""
    cancelled = await accepted(worker, {"run": "sleep 60"})
    job_id = await accepted(
        worker, {"run": f"{counting(LINES)}; {WAIT}; exit 3", "setup": [f"echo {cancelled}"]}
    )
    await worker.wait(cancelled, "running")
    assert (await worker.call("POST", f"/jobs/{cancelled}/cancel"))[0] == 202
    await worker.wait_for_text(job_id, b"err %d\n" % LINES)
    between.cut(ATTACH)
    between.cut(EVENTS)
    await let_go(worker, job_id)
    await account.take(worker, job_id, counted(LINES), setup=True)
    assert (await worker.job(job_id))["exit_code"] == 3
    await account.take(worker, cancelled, {})
    assert (await worker.job(cancelled))["status"] == "cancelled"
    await worker.nothing_left()
    status, _ = await worker.call("POST", "/environments/prune")
    assert status in {200, 202}, status
    await resynced(worker, between)
    after = await accepted(worker, {"run": f"{counting(LINES)}; exit 4"})
    await account.take(worker, after, counted(LINES))
    assert (await worker.job(after))["exit_code"] == 4


async def accepted(worker: Worker, spec: Mapping[str, object]) -> str:
    """Submit as soon as the worker sees its engine."""
    async with asyncio.timeout(DEADLINE):
        while True:
            status, job = await worker.post(tree({"x": "x"}), spec)
            if status == 201:
                return str(job["id"])
            assert status == 503, job
            await asyncio.sleep(0.1)


async def resynced(worker: Worker, between: Proxy) -> None:
    """Resync until one succeeds, and the fault was met: a call that was carried out only once."""
    async with asyncio.timeout(DEADLINE):
        while (await worker.call("POST", "/resync"))[0] != 200 or not _met(between):
            await asyncio.sleep(0.1)
        between.faults.clear()
        while await worker.images():
            await asyncio.sleep(0.1)


def _met(between: Proxy) -> bool:
    return between.injected > 0 or not between.faults


async def hurt(impatient: NewTuned, route: str, fault: Fault) -> tuple[int, Account]:
    """The scenario, the first calls of this route faulty."""
    account = Account()
    async with proxy() as between:
        between.faults[route] = [fault] * IN_A_ROW
        worker = impatient(docker_host=between.url, start_attempts="5", max_jobs="3")
        await worker.start()
        await scenario(worker, between, account)
        await account.leftovers(worker)
        assert between.injected > 0
        assert (await worker.session.get("/readyz")).status == 200
    return between.injected, account


@pytest.mark.rows(12)
async def test_a_call_that_fails_does_not_end_a_job(impatient: NewTuned, row: Row) -> None:
    faults, account = await hurt(impatient, START, Fault.LOSE)
    row(12, faults=faults, **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(12)
@pytest.mark.parametrize("fault", Fault)
@pytest.mark.parametrize("route", ROUTES)
async def test_any_call_that_fails_in_any_way_does_not_end_a_job(
    impatient: NewTuned, row: Row, route: str, fault: Fault
) -> None:
    faults, account = await hurt(impatient, route, fault)
    row(12, faults=faults, **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(12)
async def test_the_walk_takes_every_route_that_the_worker_uses(impatient: NewTuned) -> None:
    async with proxy() as between:
        worker = impatient(docker_host=between.url, max_jobs="3")
        await worker.start()
        await scenario(worker, between, Account())
    assert set(between.counts) - {BRIDGE, MAKE_NETWORK} == set(ROUTES)


async def crowd_out(image: str) -> None:
    """Events of others push all of ours out of what the engine keeps."""
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(ENGINE)) as engine:
        for _ in range(RING // 2 + 1):
            tag = {"repo": "ciworker-chaos", "tag": "other"}
            async with engine.post(f"http://engine/images/{image}/tag", params=tag) as answer:
                assert answer.status == 201, await answer.text()
            async with engine.delete("http://engine/images/ciworker-chaos:other") as answer:
                assert answer.status == 200, await answer.text()


@pytest.mark.chaos
@pytest.mark.rows(12)
@pytest.mark.parametrize("fault", Fault)
async def test_a_worker_that_cannot_ask_whether_the_engine_restarted_asks_again(
    impatient: NewTuned, row: Row, image: str, fault: Fault
) -> None:
    account = Account()
    async with proxy() as between:
        between.faults[BRIDGE] = [fault] * IN_A_ROW
        worker = impatient(docker_host=between.url)
        await worker.start()
        job_id = await worker.submit(f"{counting(LINES)}; {WAIT}; exit 3")
        await worker.wait(job_id, "running")
        between.refused.add(EVENTS)
        between.cut(EVENTS)
        await crowd_out(image)
        between.refused.clear()
        async with asyncio.timeout(DEADLINE):
            while between.counts[BRIDGE] <= IN_A_ROW:
                await asyncio.sleep(0.05)
        await let_go(worker, job_id)
        await account.take(worker, job_id, counted(LINES))
        job = await worker.job(job_id)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 3), job
        assert not any("restarted" in (step["message"] or "") for step in job["history"])
        await account.leftovers(worker)
    row(12, faults=between.injected, **account.counts())

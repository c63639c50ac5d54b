"""Rows 7, 8: an event stream that loses, doubles, delays, disorders, or says nothing at all."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ciworker.control.resync import UNDER_WAY
from tests.chaos.account import Account, all_jobs, counted, counting
from tests.chaos.conftest import Row
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, TERMINAL, Worker, docker
from tests.e2e.follower import WAIT, let_go
from tests.e2e.proxy import EventFaults, Proxy, proxy

EVENTS = "GET /events"
ATTACH = "POST /containers/{id}/attach"
LINES = 5
STATES = 5  # kinds of jobs, by number
SHARES = {"dropped": 0.3, "doubled": 0.1, "late": 0.1, "reordered": 0.1}
REPAIRS = "ciworker_resync_repairs_total "


def spec(number: int) -> tuple[str, str]:
    """A command and how it ends."""
    ends = ("exit 0", "exit 1", "exit 5", "kill -9 $$", "sleep 0.3; exit 3")
    reasons = ("passed", "tests_failed", "no_tests", "tests_failed", "tests_failed")
    return f"{counting(LINES)}; {ends[number % STATES]}", reasons[number % STATES]


@asynccontextmanager
async def seldom_resynced(
    new_worker: WorkerFactory, faults: EventFaults, jobs: int, **settings: str
) -> AsyncIterator[tuple[Worker, Proxy]]:
    """A worker that resyncs when it is told to, and has room for so many jobs."""
    async with proxy() as between:
        between.lines[EVENTS] = faults
        worker = new_worker(
            docker_host=between.url, resync_interval="1h",
            max_jobs=str(jobs), max_memory="64g", job_memory="256m", **settings,
        )  # fmt: skip
        await worker.start()
        yield worker, between


async def containers_down(worker: Worker, job_ids: Sequence[str]) -> None:
    """Wait until each of these jobs has begun, and none has a container that is up."""
    for job_id in job_ids:
        await worker.wait(job_id, "running", *TERMINAL)
    ours = f"label=ciworker.instance={worker.instance}"
    async with asyncio.timeout(DEADLINE):
        while await docker("ps", "-q", "--filter", ours):
            await asyncio.sleep(0.05)


async def resynced(worker: Worker) -> Mapping[str, Any]:
    """What one resync found."""
    status, report = await worker.call("POST", "/resync")
    assert status == 200, report
    found: Mapping[str, Any] = report
    return found


async def repairs_of(worker: Worker) -> int:
    """How many the worker counted since it started, the resyncs at reconnects included."""
    async with worker.session.get("/metrics", headers=worker.headers) as answer:
        text = await answer.text()
    (line,) = [line for line in text.splitlines() if line.startswith(REPAIRS)]
    return int(float(line.removeprefix(REPAIRS)))


async def told(faults: EventFaults, lines: int) -> None:
    """Wait until so many have come through the stream that was opened last."""
    async with asyncio.timeout(DEADLINE):
        while faults.told[faults.opened] < lines:
            await asyncio.sleep(0.02)


@pytest.mark.rows(7)
@pytest.mark.parametrize(
    ("batches", "jobs"),
    [(1, 6), pytest.param(50, 20, marks=[pytest.mark.chaos, pytest.mark.timeout(3600)])],
)
async def test_one_resync_finds_all_that_the_event_stream_lost_and_jobs_end_as_without_faults(
    new_worker: WorkerFactory, tmp_path: Path, row: Row, batches: int, jobs: int
) -> None:
    faults, account, cuts = EventFaults(SHARES, seed=8480), Account(), 0
    gate = tmp_path / "gate"
    gate.mkdir(mode=0o755)
    mounted = seldom_resynced(new_worker, faults, jobs, job_mounts=json.dumps([f"{gate}:/gate:ro"]))
    async with mounted as (worker, between):
        for batch in range(batches):
            between.held_ends = {ATTACH} if batch % 2 == 0 else set()
            wait = f"while [ ! -e /gate/{batch} ]; do sleep 0.05; done"
            ids = [await worker.submit(f"{wait}; {spec(n)[0]}") for n in range(jobs)]
            for job_id in ids:
                await worker.wait(job_id, "running")
            (gate / str(batch)).touch()
            if batch % 4 == 0:
                await told(faults, 1)  # then the worker asks for that event, when it is back
                cuts += between.cut(EVENTS)
            await containers_down(worker, ids)
            await asyncio.sleep(UNDER_WAY)  # what is found before that is no repair
            await worker.ready()  # the stream that was cut is open again
            for _ in range(2):  # one that ran already may be joined, and have looked too early
                await resynced(worker)
            ended = {job["id"]: job["reason"] for job in await all_jobs(worker)}
            assert [ended[job_id] for job_id in ids] == [spec(n)[1] for n in range(jobs)]
            for job_id in ids:
                await account.take(worker, job_id, counted(LINES))
            await worker.nothing_left()
        await account.leftovers(worker)
        assert faults.opened > cuts > 0, "each time another one was opened"
        assert batches == 1 or set(faults.injected) == set(SHARES)
        assert batches == 1 or await repairs_of(worker) > 0
    wanted = Counter(spec(number)[1] for number in range(jobs))
    assert account.reasons == {reason: count * batches for reason, count in wanted.items()}
    row(7, faults=faults.injected.total() + cuts, **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(7)
@pytest.mark.parametrize("jobs", [4, 40])
async def test_repairs_counts_each_end_that_only_the_resync_found(
    new_worker: WorkerFactory, row: Row, jobs: int
) -> None:
    faults, account = EventFaults({}), Account()
    async with seldom_resynced(new_worker, faults, jobs) as (worker, between):
        between.held_ends.add(ATTACH)
        ids = [await worker.submit(f"{counting(LINES)}; {WAIT}; exit 1") for _ in range(jobs)]
        for job_id in ids:
            await worker.wait(job_id, "running")
        untold = {job_id: await worker.container(job_id) for job_id in ids[::2]}
        faults.drop(lambda event: event["Actor"]["Attributes"]["name"] in untold.values())
        for job_id in ids:
            await let_go(worker, job_id)
        await containers_down(worker, ids)
        for job_id in ids[1::2]:
            await account.take(worker, job_id, counted(LINES))
        await asyncio.sleep(UNDER_WAY + 0.2)  # the events might still be under way before that
        assert [(await worker.job(job_id))["status"] for job_id in untold] == ["running"] * len(
            untold
        )
        report = await resynced(worker)
        assert report["repairs"] == len(untold) == await repairs_of(worker)
        assert set(report["finished"]) == set(untold.values())
        for job_id in untold:
            await account.take(worker, job_id, counted(LINES))
        assert account.reasons == {"tests_failed": jobs}
        await account.leftovers(worker)
    row(7, faults=faults.injected["dropped"], **account.counts())


async def tells_again(worker: Worker, faults: EventFaults, account: Account) -> None:
    """Events of another job come through a stream that was opened after the silent one."""
    silent = faults.opened
    async with asyncio.timeout(DEADLINE):
        while faults.opened == silent:
            await asyncio.sleep(0.02)
    await account.take(worker, await worker.submit(counting(LINES)), counted(LINES))
    await told(faults, 3)  # start, die, destroy


@pytest.mark.chaos
@pytest.mark.rows(8)
@pytest.mark.parametrize("ends", ["held", "seen"])
async def test_a_silence_that_falls_over_a_running_job_is_found_by_the_resync(
    new_worker: WorkerFactory, row: Row, ends: str
) -> None:
    faults, account = EventFaults({}), Account()
    async with seldom_resynced(new_worker, faults, 2) as (worker, between):
        if ends == "held":
            between.held_ends.add(ATTACH)
        job_id = await worker.submit(f"{counting(LINES)}; {WAIT}; exit 1")
        await worker.wait(job_id, "running")
        container = await worker.container(job_id)
        await told(faults, 1)
        faults.silence()
        await let_go(worker, job_id)
        await containers_down(worker, [job_id])
        if ends == "seen":  # its attached stream tells of the end, and of its removal nothing does
            await account.take(worker, job_id, counted(LINES))
            await worker.nothing_left()
        await asyncio.sleep(UNDER_WAY + 0.2)  # the events might still be under way before that
        again = asyncio.create_task(tells_again(worker, faults, account))
        await asyncio.sleep(0)
        report = await resynced(worker)
        found = [container] if ends == "held" else []
        assert (report["repairs"], report["finished"]) == (len(found), found), report
        between.held_ends.clear()
        await again
        if ends == "held":
            await account.take(worker, job_id, counted(LINES))
        assert account.reasons == {"tests_failed": 1, "passed": 1}
        await account.leftovers(worker)
    row(8, faults=faults.injected["silenced"], **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(8)
async def test_a_stream_that_goes_silent_is_found_by_the_resync_and_opened_again(
    new_worker: WorkerFactory, row: Row
) -> None:
    faults, account = EventFaults({}), Account()
    async with proxy() as between:
        between.lines[EVENTS] = faults
        worker = new_worker(docker_host=between.url, resync_interval="3s")
        await worker.start()
        await account.take(worker, await worker.submit(counting(LINES)), counted(LINES))
        await worker.nothing_left()
        faults.silence()
        again = asyncio.create_task(tells_again(worker, faults, account))
        await account.take(worker, await worker.submit(counting(LINES)), counted(LINES))
        assert faults.injected["silenced"] > 0
        await again
        await account.leftovers(worker)
    row(8, faults=faults.injected["silenced"], **account.counts())

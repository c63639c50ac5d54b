"""The safety net: what events did not tell is found, once; what they told is no repair."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ciworker.control.resync import UNDER_WAY
from tests.conftest import WorkerFactory
from tests.driver import TERMINAL, Worker, command, docker
from tests.e2e.follower import WAIT, let_go, told_end_once
from tests.e2e.proxy import Proxy, proxy

LIST = "GET /containers/json"
EVENTS = "GET /events"
ATTACH = "POST /containers/{id}/attach"


@asynccontextmanager
async def proxied(
    new_worker: WorkerFactory, **settings: str
) -> AsyncIterator[tuple[Worker, Proxy]]:
    """A worker behind a proxy; its periodic resync is far away."""
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, **{"resync_interval": "10m", **settings})
        await worker.start()
        await resync(worker)  # the one after connecting is over
        yield worker, between


async def resync(worker: Worker) -> dict[str, Any]:
    status, report = await worker.call("POST", "/resync")
    assert status == 200, report
    found: dict[str, Any] = report
    return found


def open_files(worker: Worker) -> int:
    assert worker.process is not None
    return len(list(Path(f"/proc/{worker.process.pid}/fd").iterdir()))


async def end_unheard(worker: Worker, between: Proxy) -> str:
    """A job whose container is down for longer than an event may take; the worker knows nothing."""
    between.held_ends.add(ATTACH)
    job_id = await worker.submit(f"echo out; {WAIT}; exit 3")
    await worker.wait(job_id, "running")
    between.refused.add(EVENTS)
    assert between.cut(EVENTS) == 1
    container = await worker.container(job_id)
    await let_go(worker, job_id)
    assert await docker("wait", container) == b"3\n"
    await asyncio.sleep(2.2)
    assert (await worker.job(job_id))["status"] == "running"
    return job_id


async def test_a_container_whose_end_no_event_told_is_found_and_counted_as_a_repair(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        job_id = await end_unheard(worker, between)
        report = await resync(worker)
        assert report["finished"] == [f"ci-{job_id.lower()}-1"]
        assert report["repairs"] == 1
        job = await worker.job(job_id)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 3)
        told_end_once(job)
        assert await worker.text(job_id) == b"out\n"
        assert (await resync(worker))["repairs"] == 0
        await worker.nothing_left()


async def test_the_periodic_resync_finds_it_without_being_asked(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker, resync_interval="5s") as (worker, between):
        job_id = await end_unheard(worker, between)
        job = await worker.wait(job_id, within=8)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 3)
        await worker.nothing_left()
        told = [json.loads(line) for line in worker.log.read_text().splitlines()]
        assert [line["repairs"] for line in told if line["event"] == "resync"] == [1]


async def test_without_the_event_stream_jobs_still_end_by_the_end_of_their_output(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        job_id = await worker.submit(f"{WAIT}; exit 3")
        await worker.wait(job_id, "running")
        between.refused.add(EVENTS)
        between.cut(EVENTS)
        await let_go(worker, job_id)
        assert (await worker.wait(job_id, within=2))["exit_code"] == 3
        between.refused.clear()
        await worker.ready()
        assert (await worker.run("exit 4"))["exit_code"] == 4


async def test_a_cut_event_stream_is_opened_again_and_told_what_was_missed(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        job_id = await worker.submit("sleep 60")
        await worker.wait(job_id, "running")
        between.refused.add(EVENTS)
        between.cut(EVENTS)
        await docker("kill", "--signal", "KILL", await worker.container(job_id))
        await asyncio.sleep(0.5)
        between.refused.clear()
        job = await worker.wait(job_id)
        told_end_once(job)
        assert job["exit_code"] in (137, None)
        await worker.ready()
        assert between.counts[EVENTS] >= 3
        assert (await resync(worker))["repairs"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.chaos)])
async def test_with_the_event_stream_intact_nothing_is_ever_repaired(
    new_worker: WorkerFactory, count: int
) -> None:
    worker = new_worker(max_jobs="8", resync_interval="1s", job_memory="64m")
    await worker.start()
    descriptors, began = open_files(worker), time.monotonic()
    jobs, reports = set[str](), []
    for number in range(count):
        jobs.add(await worker.submit("true"))
        if number % 5 == 0:
            reports.append(await resync(worker))
    while True:
        reports.append(await resync(worker))
        _, page = await worker.call("GET", "/jobs?limit=500")
        if all(job["status"] in TERMINAL for job in page["items"]):
            break
    assert {job["id"] for job in page["items"]} == jobs
    assert {job["reason"] for job in page["items"]} == {"passed"}
    assert sum(report["repairs"] for report in reports) == 0
    assert len(reports) > count / 10
    periodic = [json.loads(line) for line in worker.log.read_text().splitlines()]
    assert not [line for line in periodic if line.get("repairs")]
    print(f"{len(jobs)} jobs, {len(reports)} resyncs in {time.monotonic() - began:.1f} s")
    await worker.nothing_left()
    assert open_files(worker) < descriptors + 50  # connections that are kept, not one a job


async def test_the_command_prints_a_line_for_each_bucket_that_is_not_empty(worker: Worker) -> None:
    job_id = await worker.submit("sleep 60")
    await worker.wait(job_id, "running")
    label, began = f"ciworker.instance={worker.instance}", time.monotonic()
    await docker(
        "create", "--label", label, "--label", "ciworker.job=01JUNKNOWN0000000000000000",
        "--name", f"orphan-{worker.instance}", worker.settings["default_image"], "true",
    )  # fmt: skip
    code, out, err = await command("ciworker", "resync", env=worker.environment)
    assert (code, err) == (0, b"")
    # No event tells of a container's creation, so one that is older than that is a repair.
    repairs = int(out.endswith(b"1\n") and time.monotonic() - began > UNDER_WAY)
    assert out.decode().splitlines() == [
        f"[resync] removed: orphan-{worker.instance}",
        f"[resync] unchanged: 1, repairs: {repairs}",
    ]
    code, out, _ = await command("ciworker", "resync", env=worker.environment)
    assert (code, out) == (0, b"[resync] unchanged: 1, repairs: 0\n")


async def test_the_command_says_when_worker_or_engine_cannot_be_reached(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        await between.close()
        code, out, err = await command("ciworker", "resync", env=worker.environment)
        assert (code, out) == (3, b"")
        assert b"Docker engine" in err
        await worker.stop()
        code, out, err = await command("ciworker", "resync", env=worker.environment)
        assert (code, out) == (3, b"")
        assert b"no worker answers" in err
        assert b"Traceback" not in err


async def test_orphans_of_ours_go_and_strangers_stay(worker: Worker) -> None:
    ours = f"ciworker.instance={worker.instance}"
    job = "ciworker.job=01JUNKNOWN0000000000000000"
    image = worker.settings["default_image"]
    made = {
        "created": await docker("create", "--label", ours, "--label", job, image, "true"),
        "running": await docker("run", "-d", "--label", ours, image, "sleep", "600"),
        "theirs": await docker(
            "run", "-d", "--label", f"ciworker.instance=not-{worker.instance}", "--label", job,
            image, "sleep", "600",
        ),
        "nobodys": await docker("run", "-d", image, "sleep", "600"),
    }  # fmt: skip
    ids = {name: output.decode().strip() for name, output in made.items()}
    try:
        report = await resync(worker)
        left = (await docker("ps", "-aq", "--no-trunc")).decode().split()
        assert ids["created"] not in left
        assert ids["running"] not in left
        assert {ids["theirs"], ids["nobodys"]} <= set(left)
        assert 1 <= len(report["removed"]) <= 2  # the start of the other one was an event
    finally:
        await docker("rm", "-f", ids["theirs"], ids["nobodys"], check=False)


async def test_who_asks_for_a_resync_while_one_runs_joins_it(new_worker: WorkerFactory) -> None:
    async with proxied(new_worker) as (worker, between):
        listing, go_on = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            listing.set()
            await go_on.wait()

        between.before[LIST] = hold
        before = between.counts[LIST]
        first = asyncio.create_task(resync(worker))
        await listing.wait()
        others = [asyncio.create_task(resync(worker)) for _ in range(5)]
        await asyncio.sleep(0.3)
        assert between.counts[LIST] == before + 1
        go_on.set()
        reports = await asyncio.gather(first, *others)
        assert all(report == reports[0] for report in reports)
        assert between.counts[LIST] == before + 1
        await resync(worker)
        assert between.counts[LIST] == before + 2


async def test_a_worker_that_starts_before_its_engine_says_so_and_recovers(
    new_worker: WorkerFactory,
) -> None:
    async with proxy() as between:
        await between.close()
        worker = new_worker(docker_host=between.url)
        await worker.spawn()
        await _answers(worker, "/healthz", 200)
        for _ in range(3):
            await _answers(worker, "/readyz", 503)
            status, problem = await worker.post(b"", {"run": "true"})
            assert status == 503
            assert "Docker engine" in problem["detail"]
        assert list((worker.data_dir / "spool").iterdir()) == []
        await between.open()
        await worker.ready()
        assert (await worker.run("exit 0"))["reason"] == "passed"


async def test_jobs_outlive_an_engine_that_cannot_be_reached_for_a_while(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        job_id = await worker.submit(f"echo before; {WAIT}; echo after; exit 6")
        await worker.wait_for_text(job_id, b"before\n")
        await worker.wait(job_id, "running")
        await between.close()
        await _answers(worker, "/readyz", 503)
        await let_go(worker, job_id)
        await asyncio.sleep(1)
        assert (await worker.job(job_id))["status"] == "running"
        await between.open()
        job = await worker.wait(job_id, within=15)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 6)
        assert await worker.text(job_id) == b"before\nafter\n"
        told_end_once(job)


@pytest.mark.slow
async def test_between_resyncs_an_idle_worker_asks_the_engine_nothing(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        assert (await worker.run("true"))["reason"] == "passed"
        await worker.nothing_left()
        await asyncio.sleep(1)
        before = between.counts.copy()
        await asyncio.sleep(5)
        assert between.counts == before
        assert before[EVENTS] == 1


async def _answers(worker: Worker, path: str, wanted: int) -> None:
    async with asyncio.timeout(15):
        while True:
            try:
                async with worker.session.get(path) as answer:
                    if answer.status == wanted:
                        return
            except OSError:
                pass
            await asyncio.sleep(0.05)

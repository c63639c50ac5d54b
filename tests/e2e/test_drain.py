"""`ciworker drain`: nothing new is started, what runs ends, then the worker does."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, tree
from tests.e2e.follower import WAIT, following, let_go, stored, told_end_once


@asynccontextmanager
async def draining(worker: Worker, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command at work, once it waits for a job; at the block's end it has ended."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "ciworker", "drain", *words,
        env=worker.environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        first = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
        assert first.startswith(b"waits for "), first
        yield process
        await asyncio.wait_for(process.wait(), DEADLINE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(process: asyncio.subprocess.Process) -> tuple[str, str]:
    out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
    return out.decode(), err.decode()


async def ended(worker: Worker) -> int | None:
    """The worker's exit code, once it is gone by itself."""
    assert worker.process is not None
    code = await asyncio.wait_for(worker.process.wait(), DEADLINE)
    worker.process = None
    return code


async def busy(worker: Worker) -> str:
    """A job that runs until it is let go, and ends with exit code 3."""
    job_id = await worker.submit(f"echo begun; {WAIT}; echo last; exit 3")
    await worker.wait_for_text(job_id, b"begun\n")
    await worker.wait(job_id, "running")
    return job_id


async def readiness(worker: Worker) -> tuple[int, str]:
    async with worker.session.get("/readyz") as answer:
        return answer.status, await answer.text()


async def test_a_drain_ends_what_runs_and_leaves_what_waits_to_the_next_worker(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    over = await worker.run("true")
    running, waiting = await busy(worker), await worker.submit("echo later")
    async with following(worker, running) as follower:
        async with draining(worker) as drain:
            status, problem = await worker.post(tree({"x": "x"}))
            assert (status, "draining" in problem["detail"]) == (503, True)
            status, problem = await worker.call("POST", f"/jobs/{over['id']}/retry")
            assert (status, "draining" in problem["detail"]) == (503, True)
            async with worker.session.post("/api/v1/jobs", headers=worker.headers) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
            ready, why = await readiness(worker)
            assert (ready, "draining" in why) == (503, True)
            await let_go(worker, running)
            out, err = await said(drain)
        assert (drain.returncode, err) == (0, "")
        assert out.splitlines()[-1] == "drained: the worker has ended"
        assert await ended(worker) == 0
        assert await worker.containers() == []
        await worker.start()
    assert follower.end is not None
    assert (follower.end["reason"], follower.end["exit_code"]) == ("tests_failed", 3)
    assert [r["text"] for r in follower.records] == ["begun", "last"]
    assert follower.records == await stored(worker, running)
    told_end_once(await worker.job(running))
    assert (await worker.wait(waiting))["reason"] == "passed"
    assert (await worker.run("true"))["reason"] == "passed"
    await worker.nothing_left()


async def test_a_worker_that_runs_nothing_drains_at_once(worker: Worker) -> None:
    code, out, _ = await command("ciworker", "drain", env=worker.environment)
    assert (code, out.splitlines()[-1]) == (0, b"drained: the worker has ended")
    assert await ended(worker) == 0
    code, _, err = await command("ciworker", "drain", env=worker.environment)
    assert (code, b"no worker answers" in err) == (3, True)


async def test_a_second_drain_joins_the_first(worker: Worker) -> None:
    job_id = await busy(worker)
    async with draining(worker) as first, draining(worker) as second:
        await let_go(worker, job_id)
    assert (first.returncode, second.returncode) == (0, 0)
    assert await ended(worker) == 0


@pytest.mark.parametrize("way", ["timeout", "interrupt"])
async def test_a_drain_that_is_left_goes_on_until_it_is_undone(
    new_worker: WorkerFactory, way: str
) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    running, waiting = await busy(worker), await worker.submit("echo later")
    async with draining(worker, *(["--timeout", "1"] if way == "timeout" else [])) as drain:
        if way == "interrupt":
            drain.send_signal(signal.SIGINT)
    _, err = await said(drain)
    assert drain.returncode == {"timeout": 124, "interrupt": 130}[way]
    assert "the worker goes on draining" in err
    assert "ciworker drain --undo" in err
    assert (await readiness(worker))[0] == 503
    code, out, _ = await command("ciworker", "drain", "--undo", env=worker.environment)
    assert (code, out) == (0, b"the worker takes jobs again\n")
    assert (await readiness(worker))[0] == 200
    status, job = await worker.post(tree({"x": "x"}), {"run": "true"})
    assert status == 201
    await let_go(worker, running)
    for job_id in (running, waiting, job["id"]):
        assert (await worker.wait(job_id))["status"] == "completed"


async def test_a_worker_that_freezes_does_not_keep_a_drain_past_its_time(worker: Worker) -> None:
    job_id = await busy(worker)
    assert worker.process is not None
    async with asyncio.timeout(20):  # a call may else take 90 s
        async with draining(worker, "--timeout", "2") as drain:
            worker.process.send_signal(signal.SIGSTOP)
        assert drain.returncode == 124
        code, _, err = await command(
            "ciworker", "drain", "--timeout", "0", env=worker.environment
        )  # fmt: skip
    assert (code, b"does not answer within 1 s" in err) == (3, True)
    worker.process.send_signal(signal.SIGCONT)
    await let_go(worker, job_id)
    assert await ended(worker) == 0


async def test_a_drain_that_somebody_undid_says_so(worker: Worker) -> None:
    job_id = await busy(worker)
    async with draining(worker) as drain:
        assert (await worker.call("DELETE", "/drain"))[0] == 200
    _, err = await said(drain)
    assert (drain.returncode, "the worker takes jobs again" in err) == (1, True)
    await let_go(worker, job_id)
    assert (await worker.wait(job_id))["exit_code"] == 3


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
async def test_a_drain_whose_worker_ends_before_its_jobs_do_says_so(
    worker: Worker, signum: signal.Signals
) -> None:
    job_id = await busy(worker)
    async with draining(worker) as drain:
        await worker.stop(signum)
    _, err = await said(drain)
    assert drain.returncode == 1
    assert f"the worker ended before its jobs did ({job_id})" in err
    await worker.start()
    assert (await readiness(worker))[0] == 200
    await let_go(worker, job_id)
    assert (await worker.wait(job_id))["exit_code"] == 3


async def test_a_queued_job_can_be_cancelled_while_the_worker_drains(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    running, waiting = await busy(worker), await worker.submit("true")
    assert (await worker.call("POST", "/drain"))[0] == 200
    for job_id in (waiting, running):
        assert (await worker.call("POST", f"/jobs/{job_id}/cancel"))[0] == 202
    assert await ended(worker) == 0
    await worker.start()
    for job_id in (waiting, running):
        assert (await worker.job(job_id))["status"] == "cancelled"


async def test_only_an_admin_has_the_worker_drain(worker: Worker) -> None:
    _, made = await worker.call("POST", "/tokens", json={"name": "ann", "role": "submit"})
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert (await worker.call("POST", "/drain", headers=headers))[0] == 403
    assert (await worker.call("DELETE", "/drain", headers=headers))[0] == 403
    status, report = await worker.call("GET", "/drain", headers=headers)
    assert (status, report["draining"], report["waits_for"]) == (200, False, [])


async def test_a_duration_that_is_none_is_refused(worker: Worker) -> None:
    code, _, err = await command("ciworker", "drain", "--timeout", "soon", env=worker.environment)
    assert (code, b"'soon' is no duration" in err) == (2, True)
    assert (await readiness(worker))[0] == 200


@pytest.mark.parametrize("drained", [True, False])
async def test_a_drain_that_finds_another_worker_says_whether_the_first_drained(
    worker: Worker, drained: bool
) -> None:
    job_id = await busy(worker)
    async with draining(worker) as drain:
        drain.send_signal(signal.SIGSTOP)  # so that it does not see the worker away
        if drained:
            await let_go(worker, job_id)
            assert await ended(worker) == 0
        else:
            await worker.kill()
        await worker.start()
        drain.send_signal(signal.SIGCONT)
    out, err = await said(drain)
    if drained:
        assert (drain.returncode, out.splitlines()[-1], err) == (
            0, "drained: the worker has ended, and another one runs", "",
        )  # fmt: skip
        return
    assert drain.returncode == 1
    assert f"another worker runs already, and goes on with {job_id}" in err
    await let_go(worker, job_id)
    assert (await worker.wait(job_id))["exit_code"] == 3

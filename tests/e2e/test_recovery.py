"""Containers outlive the worker: it is stopped and killed at all moments, and goes on exactly."""

import asyncio
import itertools
import json
import os
import random
import signal
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, TERMINAL, Worker, docker, touch, tree
from tests.e2e.follower import (
    WAIT,
    check_numbers,
    engine_log,
    following,
    let_go,
    stored,
    told_end_once,
)
from tests.e2e.proxy import Gate, proxy

LINES = 800
PRINT = f"""\
import sys, time
for n in range({LINES}):
    stream = sys.stderr if n % 3 == 0 else sys.stdout
    print("line", n, file=stream, flush=True)
    time.sleep(0.004)
print("no newline at the end", end="", flush=True)
"""
BIG = 30 * 2**20


class Counters:
    """Marks that jobs leave outside of their containers: a FIFO, seen through a read-only mount."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        fifo = folder / "fifo"
        os.mkfifo(fifo)
        fifo.chmod(0o666)
        assert stat.S_ISFIFO(fifo.stat().st_mode)
        self._fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        self._seen: Counter[str] = Counter()
        self.mount = json.dumps([f"{folder}:/counter:ro"])

    def close(self) -> None:
        os.close(self._fd)

    @property
    def seen(self) -> Counter[str]:
        """How often each text was written by `echo TEXT > /counter/fifo`."""
        try:
            while data := os.read(self._fd, 2**16):
                self._seen.update(data.decode().split())
        except BlockingIOError:
            pass
        return self._seen


@pytest.fixture
def counters() -> Iterator[Counters]:
    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        made = Counters(Path(folder))
        yield made
        made.close()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_followers_see_every_line_once_over_restarts_of_the_worker(
    worker: Worker, signum: signal.Signals
) -> None:
    job_id = await worker.submit(f"python3 print.py; {WAIT}; exit 3", {"print.py": PRINT})
    async with following(worker, job_id) as first, following(worker, job_id) as second:
        for lines in (LINES // 5, LINES // 2):
            await first.has(lines)
            took = await worker.stop(signum)
            assert took < 3
            await worker.start()
        await first.has(LINES)
        truth = await engine_log(await worker.container(job_id))
        await let_go(worker, job_id)
    job = await worker.wait(job_id)
    assert (job["status"], job["reason"], job["exit_code"]) == ("completed", "tests_failed", 3)
    told_end_once(job)
    assert not job["log_incomplete"]
    check_numbers(first.records)
    assert len(first.records) == LINES + 1
    assert first.connections >= 3
    assert first.records == second.records == await stored(worker, job_id)
    for stream, expected in truth.items():
        assert (await worker.text(job_id, f"?stream={stream}")).startswith(expected)
        texts = [r["text"] for r in first.records if r["stream"] == stream]
        assert "\n".join(texts).startswith(expected.decode().rstrip("\n"))
    assert sum(text.count(b"\n") for text in truth.values()) == LINES
    await worker.nothing_left()


@pytest.mark.slow
async def test_jobs_end_once_and_never_run_twice_however_often_the_worker_is_killed(
    new_worker: WorkerFactory, counters: Counters
) -> None:
    worker = new_worker(
        max_jobs="3", start_attempts="20", job_mounts=counters.mount, transfer_timeout="10s"
    )
    await worker.start()
    jobs = {
        await worker.submit(f"echo mark{n} > /counter/fifo; sleep 0.{n % 4}; exit {n % 2}"): n
        for n in range(15)
    }
    moments, kills = random.Random(8480), 0
    while kills < 60:
        await asyncio.sleep(moments.uniform(0.0, 0.8))
        assert await worker.stop(signal.SIGKILL if kills % 4 else signal.SIGTERM) < 3
        kills += 1
        await worker.start()
        _, page = await worker.call("GET", "/jobs")
        if all(job["status"] in TERMINAL for job in page["items"]):
            break
    ended = {job_id: await worker.wait(job_id) for job_id in jobs}
    for job_id, n in jobs.items():
        job = ended[job_id]
        told_end_once(job)
        assert job["exit_code"] == n % 2, job
        assert job["reason"] == ("tests_failed" if n % 2 else "passed")
    assert counters.seen == {f"mark{n}": 1 for n in range(15)}
    assert kills >= 5
    await worker.nothing_left()


def hold(gates: dict[str, Gate], route: str, *, let_pass: int = 0) -> asyncio.Event:
    """Hold what the gate is for, after so many that pass: the event says that it is held."""
    held, never, passed = asyncio.Event(), asyncio.Event(), itertools.count()

    async def gate() -> None:
        if next(passed) >= let_pass:
            held.set()
            await never.wait()

    gates[route] = gate
    return held


@pytest.mark.parametrize(
    ("route", "when", "let_pass"),
    [
        ("POST /containers/create", "after", 0),
        ("POST /containers/{id}/start", "before", 0),
        ("POST /containers/{id}/start", "after", 0),
        ("POST /containers/{id}/attach", "after", 1),  # all is sent; the start mark is held
        ("DELETE /containers/{id}", "before", 0),
    ],
)
async def test_a_worker_killed_around_a_call_of_the_engine_runs_the_job_once(
    new_worker: WorkerFactory, counters: Counters, route: str, when: str, let_pass: int
) -> None:
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, job_mounts=counters.mount)
        await worker.start()
        held = hold(getattr(between, when), route, let_pass=let_pass)
        job_id = await worker.submit("echo mark > /counter/fifo; echo out; exit 4")
        await asyncio.wait_for(held.wait(), 30)
        await worker.kill()
        between.before.clear()
        between.after.clear()
        await worker.start()
        job = await worker.wait(job_id, within=20)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 4)
        told_end_once(job)
        assert await worker.text(job_id) == b"out\n"
        assert counters.seen == {"mark": 1}
        await worker.nothing_left()


@pytest.mark.parametrize(
    "route", ["POST /containers/create", "POST /containers/{id}/start", "DELETE /containers/{id}"]
)
async def test_a_call_whose_answer_is_lost_is_made_again_without_running_the_job_twice(
    new_worker: WorkerFactory, counters: Counters, route: str
) -> None:
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, job_mounts=counters.mount)
        await worker.start()

        async def lose() -> None:
            between.after.clear()
            raise ConnectionResetError

        between.after[route] = lose
        job_id = await worker.submit("echo mark > /counter/fifo; echo out; exit 4")
        job = await worker.wait(job_id, within=10)
        async with asyncio.timeout(DEADLINE):  # a removal may come after the end
            while route in between.after:
                await asyncio.sleep(0.02)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 4)
        told_end_once(job)
        assert await worker.text(job_id) == b"out\n"
        assert counters.seen == {"mark": 1}
        await worker.nothing_left()


async def test_a_worker_killed_in_the_transfer_of_a_big_archive_sends_it_again(
    new_worker: WorkerFactory, counters: Counters
) -> None:
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, job_mounts=counters.mount)
        await worker.start()
        status, job = await worker.post(
            tree({"big": os.urandom(BIG)}),
            {"run": "echo mark > /counter/fifo; wc -c < big", "timeout": "1m"},
        )
        assert status == 201, job
        async with asyncio.timeout(30):
            while between.sent("POST /containers/{id}/attach") < BIG // 6:
                await asyncio.sleep(0)
        assert between.sent("POST /containers/{id}/attach") < BIG
        await worker.kill()
        await worker.start()
        job = await worker.wait(job["id"])
        assert (job["reason"], job["attempt"]) == ("passed", 2), job
        told_end_once(job)
        assert await worker.text(job["id"]) == b"%d\n" % BIG
        assert counters.seen == {"mark": 1}
        await worker.nothing_left()


async def test_a_job_that_ended_while_the_worker_was_down_gets_its_verdict_and_whole_log(
    worker: Worker,
) -> None:
    job_id = await worker.submit(
        f"{WAIT}; i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo $i; done; echo bad >&2; exit 9"
    )
    await worker.wait(job_id, "running")
    container = await worker.container(job_id)
    await worker.kill()
    await touch(container)
    assert await docker("wait", container) == b"9\n"
    truth = await engine_log(container)
    await worker.start()
    job = await worker.wait(job_id)
    assert (job["status"], job["reason"], job["exit_code"]) == ("completed", "tests_failed", 9)
    told_end_once(job)
    for stream, expected in truth.items():
        assert await worker.text(job_id, f"?stream={stream}") == expected
    assert truth["stdout"] == b"".join(b"%d\n" % n for n in range(1, 5001))
    check_numbers(await stored(worker, job_id))
    await worker.nothing_left()


async def test_a_container_removed_while_the_worker_was_down_is_told_as_lost(
    worker: Worker,
) -> None:
    job_id = await worker.submit("echo begun; sleep 60")
    await worker.wait_for_text(job_id, b"begun\n")
    await worker.wait(job_id, "running")
    container = await worker.container(job_id)
    await worker.kill()
    await docker("rm", "-f", container)
    await asyncio.sleep(2.2)  # past what the first connection asks the engine to tell again
    await worker.start()
    job = await worker.wait(job_id)
    assert (job["status"], job["reason"], job["success"]) == ("failed", "container_lost", None)
    assert job["log_incomplete"]
    told_end_once(job)
    assert await worker.text(job_id) == b"begun\n"


@pytest.mark.parametrize("pause", [0.0, 0.05])
async def test_a_cancel_asked_for_just_before_the_kill_holds(worker: Worker, pause: float) -> None:
    job_id = await worker.submit("echo begun; sleep 60")
    await worker.wait_for_text(job_id, b"begun\n")
    waiting = [await worker.submit("sleep 60") for _ in range(3)]
    for asked in (job_id, *waiting):
        status, _ = await worker.call("POST", f"/jobs/{asked}/cancel")
        assert status == 202
    await asyncio.sleep(pause)
    await worker.kill()
    await worker.start()
    for asked in (job_id, *waiting):
        job = await worker.wait(asked, within=20)
        assert (job["status"], job["reason"]) == ("cancelled", "cancelled")
        assert "first admin" in job["message"]
        told_end_once(job)
    await worker.nothing_left()


async def test_a_deadline_that_passed_while_the_worker_was_down_holds(worker: Worker) -> None:
    job_id = await worker.submit("echo begun; sleep 60", timeout="2s")
    await worker.wait(job_id, "running")
    await worker.kill()
    await asyncio.sleep(2)
    await worker.start()
    job = await worker.wait(job_id, within=5)
    assert job["reason"] == "timed_out"
    told_end_once(job)
    await worker.nothing_left()

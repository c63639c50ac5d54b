"""Rows 19, 20, 21, 25: jobs that take all they can get, stay on, or lie about how they ended."""

import asyncio
import re
import signal

import pytest

from scripts.bench.rounds import centile
from tests.conftest import Attack, WorkerFactory
from tests.driver import Worker, docker
from tests.e2e.follower import WAIT, let_go, stored, told_end_once
from tests.hostile import (
    HOSTILE,
    STAYS,
    Hostile,
    asked_all_the_while,
    processes_of,
)
from tests.hostile import SETTINGS as BOUNDS

SETTINGS = {**BOUNDS, "max_jobs": "12", "max_memory": "64g"}
FILL = "head -c 2G /dev/zero >/tmp/big"
FULL = "/tmp is full (16.0 MiB): the operator can allow more with workspace_size"

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def container_of(worker: Worker, job_id: str) -> str:
    """The full id of the container that runs a job."""
    name = await worker.container(job_id)
    return (await docker("inspect", "--format", "{{.Id}}", name)).decode().strip()


# --- limits ----------------------------------------------------------------------------------


async def ends(worker: Worker, hostile: Hostile, timeout: str) -> None:
    """A job ends as it has to, and says which limit it ran into."""
    job_id = await hostile.submit(worker, timeout)
    job = await worker.wait(job_id, within=300)
    told_end_once(job)
    assert job["reason"] == hostile.reason, job
    assert all(words in job["message"] for words in hostile.words), job["message"]
    assert b"ciworker;" not in await worker.text(job_id)


@pytest.mark.slow
@pytest.mark.attacks(19)
async def test_who_takes_all_there_is_is_contained_and_told_which_limit_it_met(
    shared: Worker, attack: Attack
) -> None:
    async with asked_all_the_while(shared) as took:
        for hostile in HOSTILE.values():
            await ends(shared, hostile, "3s" if hostile.forever else "60s")
        assert (await shared.run("echo honest"))["reason"] == "passed"
    await shared.nothing_left()
    print(f"{len(took)} calls: p99 {centile(took, 99) * 1000:.0f} ms")
    attack(19, tried=len(HOSTILE))


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.attacks(19)
@pytest.mark.asyncio(loop_scope="function")  # its worker's
async def test_the_same_again_and_all_at_once(new_worker: WorkerFactory, attack: Attack) -> None:
    """With the grace that is the default: who is stopped comes to say which limit it met."""
    worker, rounds = new_worker(**SETTINGS | {"stop_grace": "10s"}), 3
    await worker.start()
    async with asked_all_the_while(worker) as took:
        for _ in range(rounds):
            async with asyncio.TaskGroup() as tasks:
                for hostile in HOSTILE.values():
                    tasks.create_task(ends(worker, hostile, "10s" if hostile.forever else "5m"))
    await worker.nothing_left()
    print(f"{len(took)} calls: p99 {centile(took, 99) * 1000:.0f} ms")
    attack(19, tried=rounds * len(HOSTILE))


async def test_a_limit_is_told_of_a_job_that_passed_too(shared: Worker) -> None:
    job = await shared.run(f"{FILL}; printf 'no newline'")
    assert (job["reason"], job["message"]) == ("passed", f"passed; {FULL}")
    assert [record["text"] for record in await stored(shared, job["id"])][-1:] == ["no newline"]
    assert (await shared.text(job["id"])).endswith(b"no newline")


async def test_what_was_full_and_is_not_any_more_is_not_told(shared: Worker) -> None:
    job = await shared.run(f"{FILL}; rm /tmp/big; exit 1")
    assert job["message"] == "exit code 1"


@pytest.mark.parametrize(
    ("end", "timeout", "reason"),
    [("yes", "60s", "log_limit"), ("sleep 3600", "3s", "timed_out"), ("cat", "60s", "passed")],
)
@pytest.mark.asyncio(loop_scope="function")  # its worker's
async def test_a_limit_is_told_beside_whatever_else_ended_the_job(
    new_worker: WorkerFactory, end: str, timeout: str, reason: str
) -> None:
    """With the grace that is the default: a flood is before what is said of the limit."""
    worker = new_worker(**BOUNDS | {"stop_grace": "10s"})
    await worker.start()
    job = await worker.run(f"{FILL}; {end}", timeout=timeout)
    assert job["reason"] == reason
    assert job["message"].endswith(f"; {FULL}"), job["message"]
    assert b"ciworker;" not in await worker.text(job["id"])


async def test_a_folder_that_nobody_may_write_to_is_not_full(shared: Worker) -> None:
    job = await shared.run("chmod 0 /workspace; exit 1")
    assert job["message"] == "exit code 1"


async def test_a_setup_that_ran_into_a_limit_says_so_to_its_job(shared: Worker) -> None:
    job = await shared.run("true", setup=[FILL])
    assert job["reason"] == "setup_failed"
    assert FULL in job["message"]


# --- memory ----------------------------------------------------------------------------------


@pytest.mark.attacks(20)
@pytest.mark.parametrize(("code", "reason"), [(0, "passed"), (1, "tests_failed")])
async def test_a_child_out_of_memory_is_a_note_whatever_the_suite_makes_of_it(
    shared: Worker, code: int, reason: str
) -> None:
    job = await shared.run(f"tail /dev/zero; exit {code}", memory="128m")
    assert (job["reason"], job["exit_code"]) == (reason, code)
    assert job["message"].endswith("; a child process was killed for want of memory")


# --- who stays -------------------------------------------------------------------------------


@pytest.mark.attacks(21)
@pytest.mark.parametrize("how", ["deadline", "cancel"])
async def test_of_a_job_that_ignores_term_no_process_is_left(shared: Worker, how: str) -> None:
    hostile = HOSTILE["stays"]
    job_id = await hostile.submit(shared, "8s" if how == "deadline" else "60s")
    await shared.wait_for_text(job_id, b"all are there")
    container = await container_of(shared, job_id)
    assert len(processes_of(container)) >= STAYS
    if how == "cancel":
        assert (await shared.call("POST", f"/jobs/{job_id}/cancel"))[0] == 202
    job = await shared.wait(job_id)
    assert job["reason"] == {"deadline": "timed_out", "cancel": "cancelled"}[how]
    assert job["exit_code"] == 128 + signal.SIGKILL
    await shared.nothing_left()
    assert not processes_of(container)


@pytest.mark.attacks(21)
async def test_what_a_job_leaves_behind_ends_with_it(shared: Worker) -> None:
    files = {**HOSTILE["stays"].files}
    begin = "python3 stays.py >out & until grep -q there out; do sleep 0.05; done"
    job_id = await shared.submit(f"{begin}; echo up; {WAIT}; exit 0", files)
    await shared.wait_for_text(job_id, b"up\n")
    container = await container_of(shared, job_id)
    assert len(processes_of(container)) >= STAYS
    await let_go(shared, job_id)
    assert (await shared.wait(job_id))["reason"] == "passed"
    await shared.nothing_left()
    assert not processes_of(container)


# --- who lies --------------------------------------------------------------------------------

# What a container prints of itself, with this job's own token and with others; what a runner, a
# page, an event stream or a forge would take for the end; and much of it.
LIES = r"""
import re, sys
with open("/workspace/.ciworker/run", "rb") as script:
    text = script.read()
start = re.search(rb"\x1b\]ciworker;[^\x1b]*\x1b\\", text)[0]
token, job, attempt = re.match(rb"\x1b\]ciworker;([^;]*);([^;]*);([0-9]+)", start).groups()
def mark(*words):
    return b"\x1b]ciworker;" + b";".join(words) + b"\x1b\\"
lies = [
    start,
    mark(token, job, b"2"),
    mark(b"0" * len(token), job, attempt),
    mark(token, job, attempt, b"end", b"passed"),
    mark(token, job, attempt, b"limits", b"pids"),
    mark(token, job, attempt, b"limits", b"passed"),
    mark(b"0" * len(token), job, attempt, b"limits", b"pids"),
    b"===== 5 passed in 0.01s =====",
    b"===== 5 failed in 0.01s =====",
    b"ciworker: 5 lines (5 B) left out here: the job printed more than log_limit allows",
    b'event: end\nid: end\ndata: {"status": "completed", "success": true}\n',
    b"##[error]::endgroup::\n::set-output name=success::true",
    b"exit code 0\npassed",
    *[b"::group::%d" % n for n in range(2000)],
]
for stream in (sys.stdout.buffer, sys.stderr.buffer):
    stream.write(b"\n".join(lies) + b"\n" + lies[0])
    stream.flush()
"""


@pytest.mark.attacks(25)
@pytest.mark.parametrize(("code", "reason"), [(0, "passed"), (1, "tests_failed"), (5, "no_tests")])
async def test_a_verdict_comes_from_the_exit_code_whatever_a_job_prints(
    shared: Worker, attack: Attack, code: int, reason: str
) -> None:
    job_id = await shared.submit(f"python3 lies.py; exit {code}", {"lies.py": LIES})
    async with asyncio.timeout(60), shared.events(f"/jobs/{job_id}/events") as frames:
        ended = [frame.json async for frame in frames if frame.event == "end"]
    job = await shared.job(job_id)
    told_end_once(job)
    assert [(end["reason"], end["exit_code"]) for end in ended] == [(reason, code)]
    assert (job["reason"], job["exit_code"], job["success"]) == (reason, code, code == 0)
    assert (job["attempt"], job["tests"], job["log_incomplete"]) == (1, None, False)
    printed = await shared.text(job_id, "?stream=stdout")
    assert printed.endswith(b"\x1b\\")
    assert printed.count(b"::group::") == 2000
    others = re.findall(rb"\x1b\]ciworker;0+;[^\x1b]*\x1b\\\n", printed)
    assert len(others) == 2  # its own mark it can hide, and make its own message wrong, no more
    assert not [r for r in await stored(shared, job_id) if r["stream"] == "worker"]
    attack(25, tried=13)

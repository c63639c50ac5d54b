"""Rows 14, 15, 17: a store that is locked, whose disk may lose what is not synced, that is old."""

import asyncio
import contextlib
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ciworker.domain.job import Status
from ciworker.domain.log import pack_runs
from ciworker.domain.mark import start_mark
from ciworker.settings import Settings
from ciworker.source.spool import SpoolWriter, tar_member
from ciworker.store.migrations import STEPS
from ciworker.store.schema import microseconds
from ciworker.store.tokens import digest
from tests.chaos.account import Account, counted, counting
from tests.chaos.conftest import Row
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, docker
from tests.e2e.follower import WAIT, let_go, stored
from tests.e2e.test_events import FLOOD, LINE, SPELL
from tests.store.lab import chunk, job_id, other_process
from tests.store.test_migrations import SPEC_1, of_version, put_job_1

ANSWER = 15.0  # seconds; a call of the API waits no longer for the store, and says 503 then
ALIVE = 2.0  # seconds for what needs no write, with all cores busy


async def until_logged(worker: Worker, text: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while text not in worker.log.read_text():
            await asyncio.sleep(0.05)


async def answers_at_once(worker: Worker) -> None:
    """The event loop is free, and the engine has control of the containers."""
    asked = time.monotonic()
    async with worker.session.get("/healthz") as answer:
        assert answer.status == 200
    assert time.monotonic() - asked < ALIVE


async def asked_to_cancel(worker: Worker, job: str) -> int:
    """The status of the answer, which comes in bounded time. 503: not now, and it says why."""
    asked = time.monotonic()
    status, answer = await worker.call("POST", f"/jobs/{job}/cancel")
    assert time.monotonic() - asked < ANSWER
    assert status == 202 or (status, "the database" in answer["detail"]) == (503, True), answer
    return int(status)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.rows(14)
@pytest.mark.parametrize("seconds", [2, 30])
async def test_a_write_lock_that_another_process_holds_blocks_nobody_and_loses_nothing(
    new_worker: WorkerFactory, tmp_path: Path, row: Row, seconds: int
) -> None:
    gate, account = tmp_path / "gate", Account()
    gate.mkdir(mode=0o755)
    worker = new_worker(
        max_jobs="4", stop_grace="1s", job_memory="256m",
        job_mounts=json.dumps([f"{gate}:/gate:ro"]),
    )  # fmt: skip
    await worker.start()
    asleep = await worker.submit(f"{counting(5)}; sleep 600")
    await worker.wait_for_text(asleep, b"err 5\n")
    flood = f"while [ ! -e /gate/go ]; do sleep 0.05; done; {SPELL} {FLOOD}"
    flooding = [await worker.submit(f"{flood}; exit 3") for _ in range(2)]
    drowned = await worker.submit(f"{flood}; {WAIT}")
    for job in (*flooding, drowned):
        await worker.wait(job, "running")
    with other_process(worker.data_dir / "ciworker.db") as other:
        await other.does("BEGIN IMMEDIATE")
        began = time.monotonic()
        (gate / "go").touch()
        await until_logged(worker, "attach dropped")
        cancels = [asyncio.create_task(cancelled(worker, job)) for job in (asleep, drowned)]
        assert [await docker("inspect", name) for name in await worker.containers()]
        while time.monotonic() - began < seconds:
            await answers_at_once(worker)
            assert (await worker.call("GET", "/jobs"))[0] == 200
            await asyncio.sleep(0.1)
        assert not any(cancel.done() for cancel in cancels), "nothing can be stored"
        await other.does("COMMIT")
    refusals = await asyncio.gather(*cancels)
    assert all(refusals) if seconds > ANSWER else not any(refusals)
    await account.take(worker, asleep, counted(5))
    known = [LINE.format(n) for n in range(1, FLOOD + 1)]
    printed = sum(record["stream"] == "stdout" for record in await ended_log(worker, drowned))
    await account.take(worker, drowned, {"stdout": known[:printed], "stderr": []})
    for job in flooding:
        await account.take(worker, job, {"stdout": known, "stderr": []})
    assert account.reasons == {"cancelled": 2, "tests_failed": 2}
    await account.leftovers(worker)
    row(14, faults=1, **account.counts())


async def cancelled(worker: Worker, job: str) -> int:
    """Ask until that is taken: how often it was refused before."""
    refusals = 0
    while await asked_to_cancel(worker, job) == 503:
        refusals += 1
    return refusals


async def ended_log(worker: Worker, job: str) -> list[dict[str, Any]]:
    await worker.wait(job)
    return await stored(worker, job)


@contextlib.asynccontextmanager
async def traced(worker: Worker, trace: Path) -> AsyncIterator[None]:
    """Within the block strace notes each sync and each answer of the worker, in their order."""
    assert worker.process is not None
    process = await asyncio.create_subprocess_exec(
        "strace", "-f", "-y", "-s", "64", "-e", "trace=fsync,fdatasync,write,writev,sendto,sendmsg",
        "-o", str(trace), "-p", str(worker.process.pid),
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    said = await asyncio.wait_for(process.stderr.readline(), DEADLINE)
    assert b"attached" in said, said
    try:
        yield
    finally:
        process.terminate()
        await process.communicate()


SYNCED = re.compile(r"(?:fdatasync|fsync)\(\d+<(?P<path>[^>]+)>")
BEGUN = re.compile(r"^(?P<thread>\d+) +(?P<call>.*) <unfinished \.\.\.>$")
RESUMED = re.compile(r"^(?P<thread>\d+) +<\.\.\. \w+ resumed>.* = 0$")
CREATED = "HTTP/1.1 201"


def order_of(trace: str) -> list[str]:
    """Paths as their syncs came to their end, and `201` as each was sent."""
    order: list[str] = []
    begun: dict[str, str] = {}
    for line in trace.splitlines():
        if CREATED in line:
            order.append("201")
        elif unfinished := BEGUN.match(line):
            begun[unfinished["thread"]] = unfinished["call"]
        elif resumed := RESUMED.match(line):
            order += _path(begun.pop(resumed["thread"], ""))
        elif line.endswith(" = 0"):
            order += _path(line)
    return order


def _path(call: str) -> list[str]:
    found = SYNCED.search(call)
    return [found["path"]] if found else []


@pytest.mark.rows(15)
@pytest.mark.parametrize("jobs", [3, pytest.param(50, marks=pytest.mark.chaos)])
async def test_a_job_is_on_the_disk_before_its_submit_is_acknowledged(
    worker: Worker, tmp_path: Path, row: Row, jobs: int
) -> None:
    trace, account = tmp_path / "trace", Account()
    async with traced(worker, trace):
        ids = [await worker.submit(counting(5)) for _ in range(jobs)]
    order = order_of(trace.read_text())
    assert order.count("201") == jobs, order
    spool, wal = str(worker.data_dir / "spool"), str(worker.data_dir / "ciworker.db-wal")
    for job in ids:
        answer = order.index("201")
        before, order = order[:answer], order[answer + 1 :]
        file = next(n for n, path in enumerate(before) if path.startswith(f"{spool}/{job}"))
        folder = before.index(spool, file)
        assert wal in before[folder:], (job, before)
    for job in ids:
        await account.take(worker, job, counted(5))
    await account.leftovers(worker)
    row(15, faults=jobs, **account.counts())


def test_the_order_is_read_from_calls_that_others_interrupt() -> None:
    trace = """\
7  fdatasync(12</d/a.db-wal> <unfinished ...>
8  sendto(9<TCP:[1->2]>, "HTTP/1.1 200 OK"..., 15, 0, NULL, 0) = 15
7  <... fdatasync resumed>)          = 0
8  fsync(3</d/spool>)                 = 0
8  fsync(3</d/broken>)                = -1 EIO (Input/output error)
8  sendto(9<TCP:[1->2]>, "HTTP/1.1 201 Created"..., 20, 0, NULL, 0) = 20
"""
    assert order_of(trace) == ["/d/a.db-wal", "/d/spool", "201"]


ENDED, RUNS, WAITS = range(3)  # numbers of the jobs in an old store
TOKEN = ("0123456789ab", "an-old-secret")  # id and secret
FAR = microseconds(datetime(2100, 1, 1, tzinfo=UTC))


def filled(worker: Worker, version: int, lines: int) -> None:
    """A store as that version left it: an ended job with these lines, one that runs with two of
    its lines, one that waits with its workspace; and a token.
    """
    path = worker.data_dir / "ciworker.db"
    (worker.data_dir / "spool").mkdir(parents=True)
    with of_version(path, version) as connection:
        for number, status in enumerate((Status.COMPLETED, Status.RUNNING, Status.QUEUED)):
            put_job_1(connection, number, status)
        for number, printed in ((ENDED, lines), (RUNS, 2)):
            part = chunk(1, *(f"out {n}" for n in range(1, printed + 1)))
            read = printed + 1  # the start mark is no line of the job's
            connection.execute(
                "INSERT INTO log_chunk (job_id, first, count, attempt, total_bytes, out_lines, "
                "out_frames, err_lines, err_frames, runs, data) "
                "VALUES (?, 1, ?, 1, ?, ?, 0, 0, 0, ?, ?)",
                (job_id(number), printed, len(part.data), read, pack_runs(part.runs), part.data),
            )
        connection.execute(
            "UPDATE job SET stop_cause = NULL, stop_at = NULL, kills = '[]', oom = 0, "
            "sent_at = created_at, started_at = created_at, deadline_at = ? WHERE status = ?",
            (FAR, Status.RUNNING.value),
        )
        connection.execute(
            "UPDATE job SET stop_cause = NULL, stop_at = NULL, kills = '[]', oom = 0, "
            "attempt = 0, tar_length = ?, spec = ? WHERE status = ?",
            (spooled(worker, job_id(WAITS)), old_spec(worker), Status.QUEUED.value),
        )
        connection.execute(
            "INSERT INTO token (id, name, role, digest, created_at) "
            "VALUES (?, 'old', 'read', ?, 0)",
            (TOKEN[0], digest(TOKEN[1])),
        )


def old_spec(worker: Worker) -> str:
    image = worker.settings["default_image"]
    return json.dumps({**SPEC_1, "image": image, "run": f"{counting(5)}; exit 3", "env": {}})


def spooled(worker: Worker, job: str) -> int:
    """Store a workspace; the length of its tar."""
    spool = SpoolWriter(Settings(data_dir=worker.data_dir).spool_file(job))
    spool.write(tar_member("src/x", b"x", 0o644, 0.0))
    spool.commit()
    return spool.length


async def container_of_old(worker: Worker) -> None:
    """What an earlier worker left running: it has printed two lines, and prints on."""
    name, mark = job_id(RUNS), start_mark("token", job_id(RUNS), 1).decode()
    labels = {"instance": worker.instance, "kind": "job", "job": name, "attempt": "1"}
    printing = f"printf '%s\\n' '{mark}'; seq -f 'out %.0f' 5; {WAIT}; exit 3"
    await docker(
        "run", "-d", "--name", f"ci-{name.lower()}-1", "--network", "none",
        "--tmpfs", "/workspace",
        *(f"--label=ciworker.{key}={text}" for key, text in labels.items()),
        worker.settings["default_image"], "sh", "-c", printing,
    )  # fmt: skip


@pytest.mark.rows(17)
@pytest.mark.parametrize(
    "version",
    [1, *(pytest.param(version, marks=pytest.mark.chaos) for version in range(2, len(STEPS)))],
)
async def test_a_worker_goes_on_with_the_store_of_an_earlier_version(
    new_worker: WorkerFactory, row: Row, version: int
) -> None:
    worker, account, lines = new_worker(), Account(), 300
    path = worker.data_dir / "ciworker.db"
    filled(worker, version, lines)
    await container_of_old(worker)
    await worker.start()
    bearer = {"Authorization": f"Bearer ciw_{TOKEN[0]}_{TOKEN[1]}"}
    async with worker.session.get("/api/v1/jobs", headers=bearer) as answer:
        assert answer.status == 200
    old = await worker.job(job_id(ENDED))
    assert (old["status"], old["reason"], old["project"]) == ("completed", "passed", "tea")
    known = {"stdout": [f"out {n}" for n in range(1, lines + 1)], "stderr": []}
    await account.take(worker, job_id(ENDED), known)
    await account.take(worker, job_id(WAITS), counted(5))
    await worker.wait_for_text(job_id(RUNS), b"out 5\n")
    assert (await worker.job(job_id(RUNS)))["status"] == "running"
    await let_go(worker, job_id(RUNS))
    adopted = {"stdout": [f"out {n}" for n in range(1, 6)], "stderr": []}
    await account.take(worker, job_id(RUNS), adopted)
    assert account.reasons == {"passed": 1, "tests_failed": 2}
    await account.take(worker, await worker.submit(counting(5)), counted(5))
    await account.leftovers(worker)
    before = await stored(worker, job_id(ENDED))
    await worker.stop()
    await worker.start()
    assert await stored(worker, job_id(ENDED)) == before
    assert (await worker.job(job_id(ENDED))) == old
    await worker.stop()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchall() == [(len(STEPS),)]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    row(17, faults=1, **account.counts())

"""Old jobs go, whole; their logs are packed meanwhile; nobody who reads one notices."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.driver import DEADLINE, Worker, command
from tests.e2e.conftest import Tuned, spooled
from tests.e2e.follower import WAIT, let_go

RETENTION = "ciworker.control.retention"
QUICK = {f"{RETENTION}.INTERVAL": 0.1, f"{RETENTION}.PAUSE": 0.02}
Make = Callable[..., Tuned]


@pytest.fixture
async def make(tmp_path: Path, image: str) -> AsyncIterator[Make]:
    """Makes workers that look at ages and sizes all the time; they are not started."""
    made: list[Tuned] = []

    def new(constants: dict[str, float] | None = None, **settings: str) -> Tuned:
        folder = tmp_path / f"worker-{len(made)}"
        worker = Tuned(folder, {"default_image": image, **settings})
        worker.constants = QUICK | (constants or {})
        made.append(worker)
        return worker

    yield new
    for worker in made:
        await worker.destroy()


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not reached():
            await asyncio.sleep(0.02)


async def gone(worker: Worker, job_id: str) -> None:
    """Until the job is not there any more."""
    async with asyncio.timeout(DEADLINE):
        while (await worker.call("GET", f"/jobs/{job_id}"))[0] != 404:
            await asyncio.sleep(0.02)


def asked(worker: Worker, statement: str) -> list[Any]:
    """What the worker's database says."""
    uri = f"{(worker.data_dir / 'ciworker.db').as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        return connection.execute(statement).fetchall()


def change(worker: Worker, statement: str) -> None:
    """Change the database of a worker that is stopped: only one may write to it."""
    assert worker.process is None
    with closing(sqlite3.connect(worker.data_dir / "ciworker.db")) as connection, connection:
        connection.execute(statement)


async def age(worker: Worker, *job_ids: str) -> None:
    """Start the worker again; by then these jobs ended two hours ago."""
    names = ", ".join(f"'{job_id}'" for job_id in job_ids)
    await worker.stop()
    change(worker, f"UPDATE job SET finished_at = finished_at - 7200000000 WHERE id IN ({names})")
    await worker.start()


async def printed(worker: Worker, job_id: str, lines: int) -> None:
    """Until so many lines of the job are stored."""
    async with asyncio.timeout(DEADLINE):
        while (await worker.job(job_id))["log_lines"] < lines:
            await asyncio.sleep(0.02)


async def a_younger_one_goes(worker: Worker) -> None:
    """Whatever nobody reads goes after a second, but for the job that changed last."""
    younger = (await worker.run("true"))["id"]
    await worker.run("true")
    await gone(worker, younger)


def workspaces(worker: Worker) -> set[str]:
    return {path.name.partition(".")[0] for path in spooled(worker)}


async def test_a_job_older_than_keep_jobs_goes_with_its_workspace(make: Make) -> None:
    worker = make(keep_jobs="1h")
    await worker.start()
    old = (await worker.run("echo hello"))["id"]
    young = (await worker.run("true"))["id"]
    assert workspaces(worker) == {old, young}

    await age(worker, old)
    await gone(worker, old)
    await until(lambda: workspaces(worker) == {young})
    code, _, said = await command("ciclient", "retry", old, env=worker.client_environment)
    assert code == 2
    assert b"there is no job" in said
    _, page = await worker.call("GET", "/jobs")
    assert [job["id"] for job in page["items"]] == [young]
    assert asked(worker, "SELECT DISTINCT job_id FROM job_event") == [(young,)]
    assert asked(worker, "SELECT count(*) FROM log_chunk") == [(0,)]
    assert await worker.containers() == []
    assert "Traceback" not in worker.log.read_text()


async def test_with_too_much_in_the_store_the_oldest_go(make: Make) -> None:
    worker = make({"ciworker.store.retention.WAL_LIMIT": 0}, store_size="3m", keep_jobs="9h")
    await worker.start()
    noise = "head -c 1000000 /dev/urandom | base64"
    jobs = [(await worker.run(noise))["id"] for _ in range(4)]
    packed = "SELECT min(log_packed) FROM job"
    await until(lambda: asked(worker, packed) == [(1,)])
    assert workspaces(worker) == set(jobs)  # a job is spared for a minute

    await age(worker, *jobs)
    await gone(worker, jobs[0])
    await gone(worker, jobs[1])
    await until(lambda: "old jobs removed" in worker.log.read_text())
    assert workspaces(worker) == set(jobs[2:])
    for job in jobs[2:]:
        assert (await worker.job(job))["log_lines"] > 17_000
    assert '"event": "old jobs removed"' in worker.log.read_text()


async def test_what_cannot_be_made_to_fit_is_told_of(make: Make) -> None:
    worker = make(store_size="1k")
    await worker.start()
    await worker.run("true")

    await until(lambda: "removing ended jobs cannot mend that" in worker.log.read_text())
    assert (await worker.run("true"))["success"]


async def test_a_log_that_is_being_read_stays_until_it_was_read(make: Make) -> None:
    worker = make(keep_jobs="1s")
    await worker.start()
    lines = 600_000
    text = "some words that fill a line of this log, number"
    job = await worker.submit(f"seq 1 {lines} | sed 's/^/{text} /'; {WAIT}", memory="512m")
    await printed(worker, job, lines)
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port, limit=2**16)
    writer.write(
        f"GET /api/v1/jobs/{job}/log HTTP/1.0\r\nHost: 127.0.0.1:{worker.port}\r\n"
        f"Authorization: Bearer {worker.token}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"200 OK" in head, head

    await let_go(worker, job)
    await worker.wait(job)
    await a_younger_one_goes(worker)
    assert asked(worker, f"SELECT count(*) FROM job WHERE id = '{job}'") == [(1,)]
    async with asyncio.timeout(DEADLINE):
        body = await reader.read()
        while more := await reader.read(2**20):
            body += more
    writer.close()

    assert body == b"".join(b"%b %d\n" % (text.encode(), n) for n in range(1, lines + 1))
    await gone(worker, job)


async def test_a_job_that_is_followed_stays_until_its_end_was_told(make: Make) -> None:
    worker = make(keep_jobs="1s")
    await worker.start()
    flood = f"seq 1 60000 | sed 's/$/ {'x' * 600}/'"  # more than any buffer on the way holds
    job = await worker.submit(f"{flood}; {WAIT}")
    await printed(worker, job, 60_000)
    got, ends = 0, 0
    async with worker.events(f"/jobs/{job}/events") as events:
        async for frame in events:
            if frame.event == "log" and not got:  # the rest waits for us meanwhile
                await let_go(worker, job)
                await worker.wait(job)
                await a_younger_one_goes(worker)
            got += len(frame.records) if frame.event == "log" else 0
            ends += frame.event == "end"

    assert (got, ends) == (60_000, 1)
    await gone(worker, job)


async def test_packed_logs_answer_every_question_as_before(make: Make) -> None:
    plain = make({f"{RETENTION}.PAUSE": 3600})
    await plain.start()
    job = await plain.submit(
        "for i in $(seq 1 3000); do echo out $i; echo err $i >&2; done; printf 'no newline'"
    )
    await plain.wait(job)
    questions = [
        "", "?tail=3", "?from=2999", "?from=2990&limit=20", "?stream=stderr", "?timestamps=1",
        "?from=4000&limit=1&timestamps=1", "?tail=1&stream=stdout", "/search?q=err+29",
    ]  # fmt: skip
    before = [await plain.call("GET", f"/jobs/{job}/log{question}") for question in questions]
    shown = await plain.job(job)
    assert asked(plain, "SELECT count(*) FROM log_chunk WHERE packed") == [(0,)]

    await plain.stop()
    await plain.start()  # at the start it packs what is not packed yet
    await until(lambda: asked(plain, "SELECT log_packed FROM job") == [(1,)])

    assert asked(plain, "SELECT min(packed) FROM log_chunk") == [(1,)]
    assert [await plain.call("GET", f"/jobs/{job}/log{q}") for q in questions] == before
    assert await plain.job(job) == shown
    numbers: list[int] = []
    async with plain.events(f"/jobs/{job}/events", last_id="1234") as events:
        async for frame in events:
            if frame.event == "log":
                numbers += [record["n"] for record in frame.records]
    assert numbers == list(range(1235, 6002))


async def test_a_damaged_log_keeps_no_other_from_being_packed(make: Make) -> None:
    worker = make({f"{RETENTION}.PAUSE": 3600})
    await worker.start()
    damaged, whole = await worker.run("seq 1 3000"), await worker.run("seq 1 3000")
    await worker.stop()
    change(worker, f"UPDATE log_chunk SET runs = x'01' WHERE job_id = '{damaged['id']}'")
    await worker.start()

    await until(lambda: asked(worker, "SELECT min(log_packed) FROM job") == [(1,)])
    packed = f"SELECT DISTINCT packed FROM log_chunk WHERE job_id = '{whole['id']}'"
    assert asked(worker, packed) == [(1,)]
    assert "a log cannot be packed" in worker.log.read_text()
    assert await worker.text(whole["id"]) == b"".join(b"%d\n" % n for n in range(1, 3001))


async def test_logs_are_packed_while_the_worker_runs(make: Make) -> None:
    worker = make()
    await worker.start()
    job = await worker.run("seq 1 5000")

    await until(lambda: asked(worker, "SELECT log_packed FROM job") == [(1,)])
    assert asked(worker, "SELECT DISTINCT packed FROM log_chunk") == [(1,)]
    assert await worker.text(job["id"]) == b"".join(b"%d\n" % n for n in range(1, 5001))


async def test_a_retry_without_the_workspace_is_refused_in_words(make: Make) -> None:
    worker = make()
    await worker.start()
    job = await worker.run("true")
    (worker.data_dir / "spool" / f"{job['id']}.tar.zst").unlink()

    code, _, said = await command("ciclient", "retry", job["id"], env=worker.client_environment)

    assert code == 5
    assert b"is no longer stored: submit it again" in said


async def test_a_start_removes_what_a_setup_left_and_keeps_what_a_retry_needs(make: Make) -> None:
    worker = make()
    await worker.start()
    setup, job = await worker.run("true"), await worker.run("true")
    await worker.stop()
    change(worker, f"UPDATE job SET kind = 'setup' WHERE id = '{setup['id']}'")

    await worker.start()

    assert workspaces(worker) == {job["id"]}

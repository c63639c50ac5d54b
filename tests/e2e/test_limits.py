"""What is bounded: a job's output, time, memory and attempts; and what the worker's disk takes."""

import asyncio
import contextlib
import itertools
import os
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, docker, tree
from tests.e2e.follower import WAIT, check_numbers, let_go, stored, told_end_once
from tests.e2e.proxy import proxy

MIB = 2**20
START = "POST /containers/{id}/start"


def instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def resident(worker: Worker) -> int:
    """Bytes of memory that the worker's process holds."""
    assert worker.process is not None
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


@asynccontextmanager
async def watched(worker: Worker) -> AsyncIterator[list[int]]:
    """Samples of the worker's resident memory, the first one from before."""
    samples = [resident(worker)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(0.05)
            samples.append(resident(worker))

    task = asyncio.create_task(watch())
    yield samples
    task.cancel()


# output


@pytest.mark.slow
@pytest.mark.parametrize("flood", ["seq 1000000000", "yes ''"])
async def test_a_flood_is_stopped_at_the_log_limit_and_told(
    new_worker: WorkerFactory, flood: str
) -> None:
    worker = new_worker(log_limit="4m", stop_grace="2s")
    await worker.start()
    async with watched(worker) as samples:
        job = await worker.run(flood, timeout="30s")
    assert (job["status"], job["reason"], job["success"]) == ("completed", "log_limit", False)
    assert max(samples) - samples[0] < 60 * MIB
    records = await stored(worker, job["id"])
    check_numbers(records)
    gap = [at for at, record in enumerate(records) if record["stream"] == "worker"]
    assert len(gap) == 1
    told = re.match(r"ciworker: ([\d,]+) lines? \(.+\) left out here", records[gap[0]]["text"])
    assert told is not None
    text = await worker.text(job["id"])
    assert len(text) < 5 * MIB
    head, tail = records[: gap[0]], [r for r in records[gap[0] + 1 :] if r["stream"] == "stdout"]
    assert head
    assert tail
    if flood.startswith("seq"):
        numbers = [int(record["text"]) for record in head]
        assert numbers == list(range(1, len(head) + 1))
        last = [int(r["text"]) for r in tail if r.get("end") is not False]
        assert last == list(range(last[0], last[0] + len(last)))
        assert (
            0 <= len(head) + int(told[1].replace(",", "")) + 1 - last[0] <= 1
        )  # the shell's word on TERM
    await worker.nothing_left()


async def test_a_job_that_prints_nothing_for_too_long_is_stopped(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(no_output_timeout="1s")
    await worker.start()
    lively = await worker.submit("for i in 1 2 3 4 5; do echo $i; sleep 0.5; done")
    silent = await worker.run("echo begun; sleep 60")
    assert (silent["reason"], silent["success"]) == ("no_output", False)
    assert "no_output_timeout" in silent["message"]
    assert 1 <= instant(silent["finished_at"]) - instant(silent["started_at"]) < 3
    assert (await worker.wait(lively))["reason"] == "passed"


@contextlib.contextmanager
def write_lock(worker: Worker) -> Iterator[None]:
    """Another process's transaction on the worker's database."""
    connection = sqlite3.connect(worker.data_dir / "ciworker.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.slow
async def test_a_store_that_stalls_under_a_flood_blocks_nobody_and_loses_nothing(
    new_worker: WorkerFactory,
) -> None:
    worker, lines = new_worker(max_jobs="2"), 1_500_000
    await worker.start()
    asleep = await worker.submit("echo begun; sleep 600")
    await worker.wait(asleep, "running")
    flooding = await worker.submit(f"seq 1000; {WAIT}; seq 1001 {lines}; exit 3")
    await worker.wait_for_text(flooding, b"1000\n")
    container = await worker.container(flooding)
    with write_lock(worker):
        await let_go(worker, flooding)
        began = time.monotonic()
        status, _ = await worker.call("POST", f"/jobs/{asleep}/cancel")
        assert status in (202, 503)
        assert time.monotonic() - began < 12  # it may wait behind a write of the log
        async with asyncio.timeout(20):
            while "attach dropped" not in worker.log.read_text():
                await asyncio.sleep(0.05)
        for words in (("inspect", container), ("kill", "--signal", "CONT", container)):
            asked = time.monotonic()
            await docker(*words, check=words[0] == "inspect")  # it may have ended already
            assert time.monotonic() - asked < 2
        asked = time.monotonic()
        async with worker.session.get("/healthz") as answer:
            assert answer.status == 200
        assert time.monotonic() - asked < 0.5
        await asyncio.sleep(max(0.0, began + 8 - time.monotonic()))
    released = time.monotonic()
    while status != 202:
        status, _ = await worker.call("POST", f"/jobs/{asleep}/cancel")
    assert (await worker.wait(asleep))["reason"] == "cancelled"
    assert time.monotonic() - released < 8
    job = await worker.wait(flooding)
    assert (job["reason"], job["exit_code"]) == ("tests_failed", 3)
    assert not job["log_incomplete"]
    assert job["log_lines"] == lines
    assert await worker.text(flooding) == b"".join(b"%d\n" % n for n in range(1, lines + 1))
    await worker.nothing_left()


# Prints until the engine takes no more for so many seconds, says how much, and ends.
BLOCKED = """python3 -c '
import itertools, os, select, sys
os.set_blocking(1, False)
numbers = itertools.count()
sent, rest = 0, b""
while select.select([], [1], [], {patience})[1]:
    rest = rest or b"".join(b"%0255d\\n" % n for n in itertools.islice(numbers, 32))
    written = os.write(1, rest)
    sent, rest = sent + written, rest[written:]
print(sent, file=sys.stderr)
'"""


async def printed_and_kept(worker: Worker, job_id: str) -> tuple[int, int]:
    """Bytes that a `BLOCKED` job printed, and those of them that are in its log, from its start."""
    records = await stored(worker, job_id)
    said = [int(record["text"]) for record in records if record["stream"] == "stderr"]
    kept = "".join(record["text"] + "\n" for record in records if record["stream"] == "stdout")
    whole = "".join(f"{n:0255d}\n" for n in range(len(records)))
    kept = kept[: said[0]]  # what was cut off in mid line has no newline of its own
    assert whole.startswith(kept.removesuffix("\n"))
    return said[0], len(kept)


@pytest.mark.slow
async def test_of_a_job_that_ends_while_the_store_stalls_nothing_is_cut_off(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    await worker.start()
    job_id = await worker.submit(f"{WAIT}; {BLOCKED.format(patience=0.6)}")
    await worker.wait(job_id, "running")
    with write_lock(worker):
        await let_go(worker, job_id)
        async with asyncio.timeout(20):
            while "attach dropped" not in worker.log.read_text():
                await asyncio.sleep(0.05)
    job = await worker.wait(job_id)
    printed, kept = await printed_and_kept(worker, job_id)
    assert (kept, job["reason"], job["log_incomplete"]) == (printed, "passed", False)


@pytest.mark.slow
async def test_what_the_engine_cut_off_while_the_worker_stood_still_is_told(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    await worker.start()
    assert worker.process is not None
    job_id = await worker.submit(f"{WAIT}; {BLOCKED.format(patience=1)}")
    await worker.wait(job_id, "running")
    container = await worker.container(job_id)
    found = await docker("inspect", "--format", "{{.State.Pid}}", container)
    process = Path("/proc", found.decode().strip())
    worker.process.send_signal(signal.SIGSTOP)
    try:
        await docker("exec", container, "touch", "/workspace/go")
        async with asyncio.timeout(30):
            while process.exists():
                await asyncio.sleep(0.05)
        await asyncio.sleep(3)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    job = await worker.wait(job_id)
    printed, kept = await printed_and_kept(worker, job_id)
    assert kept < printed
    assert job["log_incomplete"]


# what a job runs into

FILL = "head -c 2G /dev/zero >/tmp/big"
FULL = "/tmp is full (16.0 MiB): the operator can allow more with workspace_size"


@pytest.mark.parametrize("ends_meanwhile", [False, True], ids=["adopted", "recovered"])
async def test_a_worker_that_was_killed_meanwhile_tells_the_limit_all_the_same(
    new_worker: WorkerFactory, ends_meanwhile: bool
) -> None:
    worker = new_worker(workspace_size="16m")
    await worker.start()
    job_id = await worker.submit(f"echo begun; {FILL}; {WAIT}; printf end; exit 3")
    await worker.wait_for_text(job_id, b"begun\n")
    container = await worker.container(job_id)
    await worker.kill()
    if ends_meanwhile:
        await docker("exec", container, "touch", "/workspace/go")
        await docker("wait", container)
    await worker.start()
    if not ends_meanwhile:
        await let_go(worker, job_id)
    job = await worker.wait(job_id)
    assert (job["reason"], job["message"]) == ("tests_failed", f"exit code 3; {FULL}")
    assert (await worker.text(job_id)).endswith(b"end")
    assert b"ciworker;" not in await worker.text(job_id)
    await worker.nothing_left()


# starting


@asynccontextmanager
async def image_of(name: str, dockerfile: str) -> AsyncIterator[str]:
    """An image for the length of the block."""
    process = await asyncio.create_subprocess_exec(
        "docker", "build", "-q", "-t", name, "-", stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    await process.communicate(dockerfile.encode())
    assert process.returncode == 0
    try:
        yield name
    finally:
        await docker("rmi", "-f", name, check=False)


async def test_a_workspace_that_does_not_fit_fails_after_its_attempts_in_tars_own_words(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(workspace_size="8m", start_attempts="3")
    await worker.start()
    status, job = await worker.post(tree({"big": bytes(12 * MIB)}), {"run": "true"})
    assert status == 201
    job = await worker.wait(job["id"])
    assert (job["status"], job["reason"], job["attempt"]) == ("failed", "transfer_failed", 3)
    assert "No space left" in job["message"]
    assert await worker.text(job["id"]) == b""
    told_end_once(job)
    steps = [(s["to"], instant(s["at"])) for s in job["history"] if s["from"] != s["to"]]
    requeued = [at for to, at in steps if to == "queued"]
    started = [at for to, at in steps if to == "starting"]
    pauses = [later - at for at, later in zip(requeued, started, strict=True)][1:]
    assert 0.4 <= pauses[0] < 0.8 <= pauses[1] < 1.6
    await worker.nothing_left()


async def test_an_image_without_tar_or_without_a_shell_says_what_is_missing(
    new_worker: WorkerFactory, image: str
) -> None:
    no_tar = f"FROM {image}\nUSER root\nRUN rm -f /bin/tar /usr/bin/tar\n"
    async with (
        image_of("ciworker-test-no-tar:1", no_tar) as tarless,
        image_of("ciworker-test-no-shell:1", "FROM scratch\nLABEL a=b\n") as shellless,
    ):
        worker = new_worker(allowed_images='["ciworker-test-*"]', start_attempts="2")
        await worker.start()
        for image_name, words in ((tarless, "tar: not found"), (shellless, "exec sh failed")):
            job = await worker.run("true", image=image_name)
            assert (job["status"], job["reason"]) == ("failed", "transfer_failed")
            assert words in job["message"]
            told_end_once(job)
        await worker.nothing_left()


@pytest.mark.parametrize(
    ("pull", "words"), [("missing", "could not be pulled: "), ("never", "`pull` is set to never")]
)
async def test_an_image_that_cannot_be_had_fails_with_the_engines_reason(
    new_worker: WorkerFactory, pull: str, words: str
) -> None:
    worker = new_worker(allowed_images='["127.0.0.1:1/*"]', pull=pull)
    await worker.start()
    jobs = [await worker.submit("true", image="127.0.0.1:1/none:1") for _ in range(3)]
    for job_id in jobs:
        job = await worker.wait(job_id)
        assert (job["status"], job["reason"]) == ("failed", "image_missing")
        assert words in job["message"]
        assert pull == "never" or "connection refused" in job["message"]
        told_end_once(job)
    assert (await worker.run("true"))["reason"] == "passed"


async def test_a_start_that_the_engine_fails_is_tried_again_but_not_for_ever(
    new_worker: WorkerFactory,
) -> None:
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, start_attempts="3")
        await worker.start()
        between.failing.add(START)
        job = await worker.run("true")
        assert (job["status"], job["reason"]) == ("failed", "start_refused")
        assert "proxy says no" in job["message"]
        assert between.counts[START] == 3
        told_end_once(job)
        job_id = await worker.submit("exit 3")
        async with asyncio.timeout(10):
            while between.counts[START] < 4:
                await asyncio.sleep(0.01)
        between.failing.clear()
        assert (await worker.wait(job_id))["exit_code"] == 3
        await worker.nothing_left()


async def test_a_stored_workspace_that_is_damaged_fails_its_job_and_no_other(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    first = await worker.submit("sleep 2")
    noise = {"noise": os.urandom(MIB)}
    gone, cut, flipped, whole = [await worker.submit("true", noise) for _ in range(4)]
    spool = {job: worker.data_dir / "spool" / f"{job}.tar.zst" for job in (gone, cut, flipped)}
    spool[gone].unlink()
    os.truncate(spool[cut], 1000)
    data = bytearray(spool[flipped].read_bytes())
    data[len(data) // 2] ^= 0xFF
    spool[flipped].write_bytes(data)
    assert (await worker.job(first))["status"] in ("starting", "running")
    for job_id in (gone, cut, flipped):
        job = await worker.wait(job_id)
        assert (job["status"], job["reason"]) == ("failed", "workspace_invalid"), job
        assert "submit it again" in job["message"]
        told_end_once(job)
    assert (await worker.wait(whole))["reason"] == "passed"
    await worker.nothing_left()


# room


def at_once(jobs: list[dict[str, Any]]) -> int:
    """The most jobs that held a slot at one time."""
    steps = []
    for job in jobs:
        starting = next(s["at"] for s in job["history"] if s["to"] == "starting")
        steps += [(starting, 1), (job["finished_at"], -1)]
    return max(itertools.accumulate(step for _, step in sorted(steps)))


async def test_thirty_jobs_at_once_run_two_at_a_time_oldest_first(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(max_jobs="2")
    await worker.start()
    ids = [await worker.submit("true") for _ in range(30)]
    jobs = [await worker.wait(job_id) for job_id in ids]
    assert {job["reason"] for job in jobs} == {"passed"}
    assert at_once(jobs) == 2
    admitted = [next(s["at"] for s in j["history"] if s["to"] == "starting") for j in jobs]
    assert admitted == sorted(admitted)
    await worker.nothing_left()


async def test_jobs_wait_until_their_memory_is_free(new_worker: WorkerFactory) -> None:
    worker = new_worker(max_jobs="4", max_memory="300m", job_memory="64m", max_job_memory="1g")
    await worker.start()
    status, problem = await worker.post(tree({"x": "x"}), {"run": "true", "memory": "500m"})
    assert (status, "memory" in problem["detail"]) == (422, True)
    large = [await worker.submit("sleep 0.5", memory="200m") for _ in range(3)]
    small = [await worker.submit("sleep 0.5", memory="100m") for _ in range(2)]
    jobs = [await worker.wait(job_id) for job_id in large]
    assert at_once(jobs) == 1
    assert {(await worker.wait(job_id))["reason"] for job_id in (*large, *small)} == {"passed"}


# the worker's own


@asynccontextmanager
async def small_disk(folder: Path, size: int) -> AsyncIterator[Path]:
    """A mounted file system of its own."""
    file, mount = folder / "disk", folder / "mount"
    file.write_bytes(bytes(size))
    mount.mkdir()
    await _system("mkfs.ext4", "-q", "-F", "-m", "0", str(file))
    await _system("mount", "-o", "loop", str(file), str(mount))
    try:
        yield mount
    finally:
        await _system("umount", "-l", str(mount))


async def _system(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words)
    assert await process.wait() == 0, words


def fill(folder: Path) -> Path:
    """Take all the space there is."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


async def test_a_full_disk_refuses_submits_loses_no_verdict_and_recovers(
    new_worker: WorkerFactory, tmp_path: Path
) -> None:
    worker = new_worker(min_free="0")
    async with small_disk(tmp_path, 16 * MIB) as mount:
        worker.set(data_dir=str(mount / "data"))
        worker.data_dir = mount / "data"
        await worker.start()
        status, problem = await worker.post(tree({"big": os.urandom(30 * MIB)}), {"run": "true"})
        assert status == 503
        assert "disk" in problem["detail"]
        assert list((worker.data_dir / "spool").iterdir()) == []
        job_id = await worker.submit("echo begun; sleep 2; seq 20000; exit 3")
        await worker.wait_for_text(job_id, b"begun\n")
        filler = fill(mount)
        status, problem = await worker.post(tree({"noise": os.urandom(MIB)}), {"run": "true"})
        assert status == 503
        assert problem["detail"].count("disk") == 1, problem
        assert (await worker.call("GET", "/jobs"))[1]["items"][0]["id"] == job_id
        assert [file.name for file in (worker.data_dir / "spool").iterdir()] == [
            f"{job_id}.tar.zst"
        ]
        await asyncio.sleep(3)
        filler.unlink()
        job = await worker.wait(job_id)
        assert (job["reason"], job["exit_code"]) == ("tests_failed", 3)
        assert job["log_lines"] == 20_001
        assert (await worker.run("exit 4"))["exit_code"] == 4
        await worker.stop()


async def test_a_second_worker_on_the_same_data_is_told_who_holds_it(
    worker: Worker,
) -> None:
    assert worker.process is not None
    environment = worker.environment | {"CIWORKER_PORT": "0"}
    code, _, err = await command("ciworker", "serve", env=environment)
    assert code == 2
    said = err.decode()
    assert f"in use by the worker on {worker.url} (process {worker.process.pid})" in said
    assert "Traceback" not in said
    assert (await worker.run("true"))["reason"] == "passed"


async def test_of_a_worker_whose_port_was_whichever_is_free_that_port_is_told(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(port="0")
    await worker.spawn()
    async with asyncio.timeout(DEADLINE):
        listening = re.compile(r'"url": "([^"]+)".* "listening"')
        while (told := listening.search(worker.log.read_text())) is None:
            await asyncio.sleep(0.02)
    url = told[1]
    assert not url.endswith(":0")
    code, _, err = await command("ciworker", "serve", env=worker.environment)
    assert (code, f"in use by the worker on {url} (process" in err.decode()) == (2, True), err


async def test_a_second_worker_on_the_same_port_says_so(worker: Worker, tmp_path: Path) -> None:
    environment = worker.environment | {"CIWORKER_DATA_DIR": str(tmp_path / "other")}
    code, _, err = await command("ciworker", "serve", env=environment)
    assert code == 2
    assert err.decode().endswith(
        f"ciworker: cannot listen on 127.0.0.1:{worker.port}: another program has this port: "
        "stop it, or set `port`\n"
    )
    code, _, err = await command(
        "ciworker", "serve", env=environment | {"CIWORKER_HOST": "192.0.2.1"}
    )
    assert code == 2
    assert err.decode().endswith(": Cannot assign requested address: set `host` or `port`\n")
    assert b"Errno" not in err
    assert "Traceback" not in err.decode()

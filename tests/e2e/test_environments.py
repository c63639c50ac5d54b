"""Environments of real workers on real Docker: built once, kept, shown, failed, removed.

The setups need no network. How often one was run is counted from outside, by what it writes to a
FIFO that the operator mounts; what is left of it, by what the engine lists.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, TERMINAL, Worker, command, docker
from tests.e2e.follower import WAIT, check_numbers, stored, told_end_once
from tests.e2e.proxy import Proxy, proxy
from tests.e2e.test_recovery import Counters, hold

SMALL = {"job_memory": "128m", "setup_memory": "256m", "setup_timeout": "60s"}
FIRST = "it is the first one of this project"
TOLD = "echo {} > /counter/fifo"
LINES = 60
NUMBERED = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.01; done"
NUMBERS = [f"line {n}" for n in range(1, LINES + 1)]
NO_SPACE = "write /var/lib/docker/overlay2/layer: no space left on device"

NewWorker = Callable[..., Awaitable[Worker]]


@pytest.fixture
def counters() -> Iterator[Counters]:
    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        made = Counters(Path(folder))
        yield made
        made.close()


@pytest.fixture
def small(new_worker: WorkerFactory, counters: Counters) -> NewWorker:
    """Makes workers that answer; setups write to `counters`."""

    async def make(**settings: str) -> Worker:
        worker = new_worker(**{**SMALL, "job_mounts": counters.mount, **settings})
        await worker.start()
        return worker

    return make


@contextlib.asynccontextmanager
async def proxied(small: NewWorker, **settings: str) -> AsyncIterator[tuple[Worker, Proxy]]:
    async with proxy() as between:
        yield await small(docker_host=between.url, **settings), between


async def submit(worker: Worker, *setup: str, run: str = "echo tested", **spec: Any) -> str:
    return await worker.submit(run, setup=list(setup), **spec)


async def environments(worker: Worker) -> list[dict[str, Any]]:
    status, found = await worker.call("GET", "/environments")
    assert status == 200, found
    items: list[dict[str, Any]] = found["items"]
    return items


async def only(worker: Worker) -> dict[str, Any]:
    """The one environment that the worker knows."""
    (found,) = await environments(worker)
    return found


async def setup_container(worker: Worker) -> str:
    """The name of the one setup's container, once it is up."""
    async with asyncio.timeout(DEADLINE):
        while True:
            listed = await docker(
                "ps", "--filter", f"label=ciworker.instance={worker.instance}",
                "--filter", "label=ciworker.kind=setup", "--format", "{{.Names}}",
            )  # fmt: skip
            if names := listed.decode().split():
                assert len(names) == 1
                return names[0]


async def end_setup(container: str) -> None:
    """End a setup that ends in WAIT."""
    await docker("exec", container, "touch", "/workspace/go")


async def texts(worker: Worker, job_id: str) -> list[str]:
    """The job's log, each line with the worker's own marked."""
    records = await stored(worker, job_id)
    check_numbers(records)
    return [("> " if r["stream"] == "worker" else "") + r["text"] for r in records]


def group(key: str, setup: Sequence[str], said: Sequence[str], why: str = FIRST) -> list[str]:
    """What a job that waited for its setup shows of it; only the last command says anything."""
    headline = f"> ::group::Set up the environment {key[:12]} ({why})"
    return [headline, *(f"$ {step}" for step in setup), *said, "> ::endgroup::"]


async def at_rest(worker: Worker, images: int) -> None:
    """No container, so many images, and nothing that a resync would do about them."""
    await worker.nothing_left()
    async with asyncio.timeout(DEADLINE):
        while len(await worker.images()) != images:
            await asyncio.sleep(0.05)
    status, report = await worker.call("POST", "/resync")
    assert status == 200
    changes = {name: done for name, done in report.items() if done and name != "seconds"}
    assert changes == {}, changes
    assert len(await worker.images()) == images


# -- one build per key -----------------------------------------------------------------------------


async def test_ten_jobs_at_once_share_one_build_and_each_shows_all_of_its_lines(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small(max_jobs="4")
    setup = (TOLD.format("build"), NUMBERED)
    jobs = await asyncio.gather(*(submit(worker, *setup) for _ in range(10)))
    ended = await asyncio.gather(*map(worker.wait, jobs))
    assert [job["reason"] for job in ended] == ["passed"] * 10
    assert counters.seen == {"build": 1}
    environment = await only(worker)
    assert (environment["status"], environment["builds"]) == ("ready", 1)
    assert (environment["hits"], environment["misses"]) == (0, 10)
    for job in jobs:
        assert await texts(worker, job) == [*group(environment["key"], setup, NUMBERS), "tested"]
    await at_rest(worker, images=1)


async def test_two_new_keys_at_once_are_built_once_each(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small(max_jobs="4")
    setups = [TOLD.format("one"), TOLD.format("two")]
    jobs = [await submit(worker, setup) for setup in setups * 3]
    assert {(await worker.wait(job))["reason"] for job in jobs} == {"passed"}
    assert counters.seen == {"one": 1, "two": 1}
    assert [e["builds"] for e in await environments(worker)] == [1, 1]
    await at_rest(worker, images=2)


async def test_the_next_job_starts_in_what_is_there_and_shows_no_setup(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small()
    setup = (TOLD.format("build"), "echo tea > /opt/tea")
    await worker.wait(await submit(worker, *setup))
    again = await submit(worker, *setup, run="cat /opt/tea")
    assert (await worker.wait(again))["reason"] == "passed"
    assert await texts(worker, again) == ["tea"]
    assert counters.seen == {"build": 1}
    environment = await only(worker)
    assert (environment["hits"], environment["misses"]) == (1, 1)


async def test_a_job_that_waits_holds_no_slot(small: NewWorker) -> None:
    worker = await small(max_jobs="1")
    waiting = await submit(worker, WAIT)
    container = await setup_container(worker)
    assert (await worker.run("echo overtaken"))["reason"] == "passed"
    assert (await worker.job(waiting))["status"] == "queued"
    await end_setup(container)
    assert (await worker.wait(waiting))["reason"] == "passed"


# -- a worker that is killed -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def killed_and_started(worker: Worker, between: Proxy) -> AsyncIterator[None]:
    """Within the block the worker is down, and what was held for it is never carried out."""
    await worker.kill()
    between.before.clear()
    between.after.clear()
    yield
    await worker.start()


async def check_one_build(worker: Worker, counters: Counters, job_id: str, *setup: str) -> None:
    """However it came about: one build, one image, all lines once, in order, in one group."""
    job = await worker.wait(job_id, within=30)
    assert job["reason"] == "passed", job
    told_end_once(job)
    assert counters.seen == {"build": 1}
    environment = await only(worker)
    assert (environment["status"], environment["builds"]) == ("ready", 1)
    assert await texts(worker, job_id) == [*group(environment["key"], setup, NUMBERS), "tested"]
    await at_rest(worker, images=1)


@pytest.mark.parametrize(
    ("route", "when"),
    [
        pytest.param("POST /containers/create", "before", id="before it is created"),
        pytest.param("POST /containers/create", "after", id="created"),
        pytest.param("POST /containers/{id}/start", "before", id="before it is started"),
        pytest.param("POST /containers/{id}/start", "after", id="started"),
        pytest.param("POST /commit", "before", id="before the commit"),
        pytest.param("POST /commit", "after", id="committed, not told"),
        pytest.param("DELETE /containers/{id}", "before", id="before its container goes"),
    ],
)
async def test_a_worker_killed_around_a_call_of_a_build_goes_on_with_it(
    small: NewWorker, counters: Counters, route: str, when: str
) -> None:
    setup = (TOLD.format("build"), NUMBERED)
    async with proxied(small) as (worker, between):
        held = hold(getattr(between, when), route)
        job = await submit(worker, *setup)
        await asyncio.wait_for(held.wait(), 30)
        async with killed_and_started(worker, between):
            pass
        await check_one_build(worker, counters, job, *setup)


async def test_a_worker_killed_between_the_image_and_its_row_takes_the_image(
    small: NewWorker, counters: Counters
) -> None:
    setup = (TOLD.format("build"), NUMBERED)
    async with proxied(small) as (worker, between):
        told = asyncio.Event()

        async def hold_looks() -> None:
            hold(between.before, "GET /images/json")
            told.set()

        between.after["POST /commit"] = hold_looks
        job = await submit(worker, *setup)
        await asyncio.wait_for(told.wait(), 30)
        async with killed_and_started(worker, between):
            assert len(await worker.images()) == 1
        assert between.counts["POST /commit"] == 1
        await check_one_build(worker, counters, job, *setup)
        assert between.counts["POST /commit"] == 1


@pytest.mark.parametrize("lines", [1, LINES // 2])
async def test_a_worker_killed_while_a_setup_prints_shows_each_line_once(
    small: NewWorker, counters: Counters, lines: int
) -> None:
    setup = (TOLD.format("build"), NUMBERED)
    worker = await small()
    job = await submit(worker, *setup)
    await worker.wait_for_text(job, b"line %d\n" % lines)
    await worker.kill()
    await worker.start()
    await check_one_build(worker, counters, job, *setup)


async def test_a_setup_that_ends_while_the_worker_is_down_is_kept(
    small: NewWorker, counters: Counters
) -> None:
    setup = (TOLD.format("build"), f"{WAIT}; {NUMBERED}")
    worker = await small()
    job = await submit(worker, *setup)
    container = await setup_container(worker)
    await worker.wait_for_text(job, WAIT.encode())
    await worker.kill()
    await end_setup(container)
    assert await docker("wait", container) == b"0\n"
    await worker.start()
    await check_one_build(worker, counters, job, *setup)


async def test_a_worker_killed_in_a_long_commit_leaves_one_image(small: NewWorker) -> None:
    """The engine goes on with a commit whose client is gone."""
    async with proxied(small, setup_memory="1g") as (worker, between):
        asked = asyncio.Event()

        async def ask() -> None:
            asked.set()

        between.before["POST /commit"] = ask
        job = await submit(worker, "head -c 300000000 /dev/urandom > /opt/large")
        await asyncio.wait_for(asked.wait(), 30)
        await asyncio.sleep(0.2)
        assert await worker.images() == []
        async with killed_and_started(worker, between):
            pass
        assert (await worker.wait(job))["reason"] == "passed"
        await at_rest(worker, images=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_however_often_the_worker_is_killed_each_key_is_built_once(
    small: NewWorker, counters: Counters, seed: int
) -> None:
    worker = await small(max_jobs="3", start_attempts="20", transfer_timeout="10s")
    setups = [(TOLD.format(f"build{n}"), NUMBERED) for n in range(4)]
    jobs = {await submit(worker, *setups[n % 4], project=f"p{n % 4}"): n % 4 for n in range(8)}
    moments, kills = random.Random(seed), 0
    while kills < 40:
        await asyncio.sleep(moments.uniform(0.0, 0.6))
        await worker.kill()
        kills += 1
        await worker.start()
        _, page = await worker.call("GET", "/jobs")
        if all(job["status"] in TERMINAL for job in page["items"]):
            break
    assert kills >= 3
    for job_id, n in jobs.items():
        job = await worker.wait(job_id)
        assert job["reason"] == "passed", job
        told_end_once(job)
        (key,) = [e["key"] for e in await environments(worker) if e["project"] == f"p{n}"]
        assert await texts(worker, job_id) == [*group(key, setups[n], NUMBERS), "tested"]
    assert counters.seen == {f"build{n}": 1 for n in range(4)}
    await at_rest(worker, images=4)


async def test_jobs_that_wait_over_a_restart_get_each_line_once(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small(max_jobs="4")
    setup = (TOLD.format("build"), NUMBERED)
    jobs = [await submit(worker, *setup) for _ in range(10)]
    await asyncio.gather(*(worker.wait_for_text(job, b"line 9\n") for job in jobs))
    await worker.kill()
    await worker.start()
    for job in jobs:
        await worker.wait(job)
    key = (await only(worker))["key"]
    for job in jobs:
        assert await texts(worker, job) == [*group(key, setup, NUMBERS), "tested"]
    assert counters.seen == {"build": 1}


# -- cancelled -------------------------------------------------------------------------------------


async def cancel(worker: Worker, job_id: str) -> None:
    status, problem = await worker.call("POST", f"/jobs/{job_id}/cancel")
    assert status == 202, problem


async def test_a_cancelled_job_leaves_the_others_their_build(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small()
    setup = (TOLD.format("build"), f"{WAIT}; {NUMBERED}")
    gone, *others = [await submit(worker, *setup) for _ in range(3)]
    container = await setup_container(worker)
    await worker.wait_for_text(gone, WAIT.encode())
    await cancel(worker, gone)
    job = await worker.wait(gone)
    assert (job["reason"], job["started_at"]) == ("cancelled", None)
    assert "before it began" in job["message"]
    await end_setup(container)
    assert {(await worker.wait(other))["reason"] for other in others} == {"passed"}
    assert counters.seen == {"build": 1}
    told = await texts(worker, gone)
    assert told == group((await only(worker))["key"], setup, [])[: len(told)]


async def test_when_all_who_wait_are_cancelled_so_is_the_build(small: NewWorker) -> None:
    worker = await small(stop_grace="1s")
    jobs = [await submit(worker, "sleep 600") for _ in range(10)]
    await setup_container(worker)
    for job in jobs:
        await cancel(worker, job)
    for job in jobs:
        assert (await worker.wait(job))["reason"] == "cancelled"
    await at_rest(worker, images=0)
    environment = await only(worker)
    assert environment["status"] == "absent"
    assert environment["message"] == "no job waited for it any more"


async def test_the_cancel_of_all_over_a_restart_cancels_the_build(small: NewWorker) -> None:
    worker = await small(stop_grace="1s")
    jobs = [await submit(worker, "sleep 600") for _ in range(3)]
    await setup_container(worker)
    for job in jobs:
        await cancel(worker, job)
    await worker.kill()
    await worker.start()
    for job in jobs:
        assert (await worker.wait(job))["reason"] == "cancelled"
    await at_rest(worker, images=0)


# -- what a setup sees, may do and leaves ----------------------------------------------------------


async def test_a_setup_sees_its_inputs_alone_and_its_job_can_only_read_what_it_left(
    small: NewWorker,
) -> None:
    worker = await small()
    look = (
        "find / -xdev -name private.txt; ls -A; cat private.txt 2>/dev/null || echo unread; "
        "cat /workspace/src/deps.txt > /opt/deps; chmod 666 /opt/deps"
    )
    write = "id -u; cat /opt/deps private.txt; (echo more >> /opt/deps) 2>/dev/null || echo refused"
    job = await worker.submit(
        write,
        {"deps.txt": "tea\n", "private.txt": "private\n"},
        **{"setup": [look], "setup-inputs": ["deps.txt"]},
    )
    assert (await worker.wait(job))["reason"] == "passed"
    key = (await only(worker))["key"]
    setup = group(key, [look], ["deps.txt", "unread"])
    assert await texts(worker, job) == [*setup, "1000", "tea", "private", "refused"]


PROBE = """
import ctypes, os, socket, subprocess
def tried(what, *words):
    done = subprocess.run(words, capture_output=True)
    print(what, "done" if done.returncode == 0 else "refused", flush=True)
def opened(what, kind, protocol):
    try:
        socket.socket(socket.AF_INET, kind, protocol).close()
        print(what, "done", flush=True)
    except PermissionError:
        print(what, "refused", flush=True)
print("uid", os.getuid(), flush=True)
tried("write", "touch", "/usr/lib/made")
tried("chown", "chown", "1000:1000", "/usr/lib/made")
tried("mount", "mount", "-t", "tmpfs", "none", "/mnt")
tried("bind", "mount", "--bind", "/etc", "/mnt")
tried("device", "mknod", "/opt/device", "b", "8", "0")
tried("clock", "date", "-s", "2001-01-01")
tried("namespace", "unshare", "--mount", "true")
opened("datagrams", socket.SOCK_DGRAM, 0)
opened("raw", socket.SOCK_RAW, socket.IPPROTO_ICMP)
try:
    with open("/proc/kcore", "rb") as memory:
        print("kcore", len(memory.read(4096)), flush=True)
except OSError:
    print("kcore", 0, flush=True)
"""


async def test_a_setup_is_root_over_its_own_files_and_nothing_else(small: NewWorker) -> None:
    worker = await small()
    job = await worker.submit(
        "true",
        {"probe.py": PROBE},
        **{"setup": ["python3 probe.py"], "setup-inputs": ["probe.py"]},
    )
    assert (await worker.wait(job))["reason"] == "passed"
    found = [
        "uid 0", "write done", "chown done", "mount refused", "bind refused", "device refused",
        "clock refused", "namespace refused", "datagrams done", "raw refused", "kcore 0",
    ]  # fmt: skip
    assert await texts(worker, job) == group(
        (await only(worker))["key"], ["python3 probe.py"], found
    )


async def everything_of(image: str, folder: Path) -> bytes:
    """All that an image is: its history, its configuration, and each of its own files."""
    saved = folder / "image.tar"
    await docker("save", "--output", str(saved), image)
    told = await docker("history", "--no-trunc", image) + await docker("inspect", image)
    base = json.loads(await docker("inspect", "--format", "{{json .RootFS.Layers}}", image))
    assert len(base) >= 2
    with tarfile.open(saved) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and m.size < 2**26]
        parts = [tar.extractfile(member) for member in members]
        return told + b"".join(_plain(part.read()) for part in parts if part is not None)


def _plain(data: bytes) -> bytes:
    """Newer engines save layers compressed."""
    return zlib.decompress(data, wbits=31) if data[:2] == b"\x1f\x8b" else data


async def test_no_secret_of_a_job_or_of_the_operator_is_in_an_image(
    new_worker: WorkerFactory, tmp_path: Path
) -> None:
    secrets = {name: f"{name}-{os.urandom(12).hex()}" for name in ("job", "operator", "mounted")}
    mounted, shared = tmp_path / "saved", tmp_path / "mounted"
    mounted.mkdir()
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "file").write_text(secrets["mounted"])
    worker = new_worker(
        **SMALL,
        job_env=json.dumps({"INDEX_PASSWORD": secrets["operator"]}),
        job_mounts=json.dumps([f"{shared}:/etc/mounted:ro"]),
    )
    await worker.start()
    setup = (
        'echo "${TOKEN-none}" > /opt/token',
        'printf %s "$INDEX_PASSWORD" | wc -c; wc -c < /etc/mounted/file; echo kept-in-it > /opt/kept',
    )
    show = (
        'cat /opt/token; echo "$TOKEN"; cat /etc/mounted/file; find / -xdev -name file 2>/dev/null'
    )
    job = await submit(worker, *setup, run=show, env={"TOKEN": secrets["job"]})
    assert (await worker.wait(job))["reason"] == "passed"
    sizes = [str(len(secrets["operator"])), str(len(secrets["mounted"]))]
    said = (await texts(worker, job))[3:]
    assert said[:2] == sizes
    assert said[3:] == ["none", secrets["job"], secrets["mounted"]]
    (image,) = await worker.images()
    held = await everything_of(image, mounted)
    assert b"kept-in-it" in held
    for name, secret in secrets.items():
        assert secret.encode() not in held, name
    assert (worker.data_dir / "spool").exists()


# -- bad input -------------------------------------------------------------------------------------


async def fail_together(worker: Worker, *setup: str, jobs: int = 3) -> dict[str, Any]:
    """Jobs that wait for one failing setup: all are told the same; one of them."""
    submitted = [await submit(worker, *setup) for _ in range(jobs)]
    ended = [await worker.wait(job) for job in submitted]
    for job in ended:
        assert (job["status"], job["reason"], job["success"]) == ("failed", "setup_failed", None)
        told_end_once(job)
        assert (job["attempt"], job["started_at"], job["log_incomplete"]) == (0, None, False)
    assert len({(job["message"], job["exit_code"]) for job in ended}) == 1
    logs = [await texts(worker, job) for job in submitted]
    assert all(log == logs[0] for log in logs)
    assert logs[0][-1] == "> ::endgroup::"
    await at_rest(worker, images=0)
    assert (await only(worker))["status"] == "failed"
    return ended[0]


async def test_a_setup_that_fails_is_told_with_its_exit_code_last_lines_and_command(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small()
    failing = f"{TOLD.format('build')}; {WAIT}; echo no matching kettle >&2; exit 7"
    jobs = [await submit(worker, "echo first", failing, "echo never") for _ in range(3)]
    await end_setup(await setup_container(worker))
    for job_id in jobs:
        job = await worker.wait(job_id)
        assert (job["reason"], job["exit_code"]) == ("setup_failed", 7)
        assert job["message"].startswith("its setup failed: exit code 7: ")
        assert "no matching kettle" in job["message"]
        assert f"exit code 7 of: {failing}" in job["message"]
        assert "$ echo never" not in await texts(worker, job_id)
    assert counters.seen == {"build": 1}
    await at_rest(worker, images=0)


async def test_a_submit_after_a_failure_builds_again(small: NewWorker, counters: Counters) -> None:
    worker = await small()
    failing = (TOLD.format("build"), "exit 7")
    await fail_together(worker, *failing, jobs=1)
    again = await fail_together(worker, *failing, jobs=1)
    assert counters.seen == {"build": 2}
    headline = (await texts(worker, again["id"]))[0]
    assert headline.endswith("(the one of before failed, was removed or is to be built anew)")


async def test_a_setup_that_hangs_is_stopped_and_told_so(small: NewWorker) -> None:
    worker = await small(setup_timeout="2s", stop_grace="1s")
    job = await fail_together(worker, "echo boiling; sleep 600")
    assert job["message"].startswith(
        "its setup failed: still running after setup_timeout, 2 s: stopped: "
    )
    assert "boiling" in job["message"]


async def test_an_index_that_cannot_be_reached_is_told_in_its_words_within_bounds(
    small: NewWorker,
) -> None:
    unreachable = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    worker = await small(job_env=json.dumps(unreachable))
    job_id = await worker.submit("true", {"requirements.txt": "six==1.17.0\n"})
    job = await worker.wait(job_id, within=45)
    assert (job["reason"], job["exit_code"]) == ("setup_failed", 1)
    assert "No matching distribution found" in job["message"]
    assert "Connection refused" in "\n".join(await texts(worker, job_id))


async def test_a_listed_input_that_is_missing_is_refused_and_leaves_nothing(
    small: NewWorker,
) -> None:
    worker = await small()
    status, problem = await worker.call("GET", "/environments")
    status, problem = await worker.post(b"", {"setup": ["true"], "setup-inputs": ["gone.txt"]})
    assert status == 422, problem
    assert await environments(worker) == []


@contextlib.asynccontextmanager
async def tag_of_ours(image: str) -> AsyncIterator[str]:
    """A name that tests may move from image to image."""
    name = f"ciworker-test-{os.urandom(6).hex()}:1"
    await docker("tag", image, name)
    made = {name}
    try:
        yield name
    finally:
        await docker("rmi", "-f", *made, check=False)


async def move_tag(name: str, image: str) -> str:
    """Give the name to another image; its id."""
    container = (await docker("create", image, "true")).decode().strip()
    try:
        label = f"LABEL moved={os.urandom(6).hex()}"
        return (await docker("commit", "--change", label, container, name)).decode().strip()
    finally:
        await docker("rm", container)


async def test_a_base_image_that_changed_under_its_tag_makes_a_new_environment(
    small: NewWorker, counters: Counters, image: str
) -> None:
    async with tag_of_ours(image) as name:
        worker = await small(allowed_images=json.dumps([name]))
        setup = (TOLD.format("build"), "echo tea")
        await worker.wait(await submit(worker, *setup, image=name))
        before = await only(worker)
        other = await move_tag(name, image)
        job = await submit(worker, *setup, image=name)
        assert (await worker.wait(job))["reason"] == "passed"
        after, old = await environments(worker)
        assert old["key"] == before["key"] != after["key"]
        assert after["image_id"] == other
        why = f"{name} is another image than before: {other}"
        assert await texts(worker, job) == [*group(after["key"], setup, ["tea"], why), "tested"]
        assert counters.seen == {"build": 2}
        await worker.destroy()


@pytest.mark.parametrize("times", [1, 2])
async def test_an_image_that_finds_no_room_is_tried_again_then_told_in_words(
    small: NewWorker, counters: Counters, times: int
) -> None:
    async with proxied(small, start_attempts="2") as (worker, between):
        between.refusals["POST /commit"] = [NO_SPACE] * times
        jobs = [await submit(worker, TOLD.format("build")) for _ in range(2)]
        ended = [await worker.wait(job) for job in jobs]
        assert between.counts["POST /commit"] == 2
        assert counters.seen == {"build": 1}
        if times == 1:
            assert [job["reason"] for job in ended] == ["passed"] * 2
        else:
            assert [job["reason"] for job in ended] == ["setup_failed"] * 2
            assert {job["message"] for job in ended} == {
                f"its setup failed: the environment could not be stored: {NO_SPACE}: make room on "
                "Docker's disk, or lower environments_size"
            }
        await at_rest(worker, images=2 - times)


# -- the commands ----------------------------------------------------------------------------------


def project(folder: Path, *setup: str) -> Path:
    """A folder to submit."""
    folder.mkdir()
    file = f'run = "echo tested"\nproject = "tea"\nsetup = {json.dumps(setup)}\n'
    (folder / ".ciworker.toml").write_text(file)
    return folder


async def client(worker: Worker, folder: Path, *words: str) -> str:
    """`ciclient submit`: what it printed of the job."""
    code, out, err = await command(
        "ciclient", "submit", str(folder), *words, env=worker.client_environment
    )
    assert code == 0, err
    return out.decode()


async def operator(worker: Worker, *words: str) -> tuple[int, str, str]:
    code, out, err = await command("ciworker", *words, env=worker.environment)
    return code, out.decode(), err.decode()


async def test_the_client_has_an_environment_rebuilt_or_made_for_its_job_alone(
    small: NewWorker, counters: Counters, tmp_path: Path
) -> None:
    worker = await small()
    folder = project(tmp_path / "tea", TOLD.format("build"))
    first = await client(worker, folder)
    assert "Set up the environment" in first
    assert "Set up the environment" not in await client(worker, folder)
    assert counters.seen == {"build": 1}
    before = await only(worker)
    (old,) = await worker.images()

    rebuilt = await client(worker, folder, "--rebuild")
    assert "the one of before failed, was removed or is to be built anew" in rebuilt
    assert counters.seen == {"build": 2}
    await at_rest(worker, images=1)
    assert await worker.images() != [old]
    assert (await only(worker))["key"] == before["key"]

    alone = await client(worker, folder, "--no-cache")
    assert "this job asked for one of its own" in alone
    assert counters.seen == {"build": 3}
    await at_rest(worker, images=1)
    assert (await only(worker))["key"] == before["key"]
    await client(worker, folder)
    assert counters.seen == {"build": 3}


async def test_the_operator_lists_and_removes_environments(
    small: NewWorker, tmp_path: Path
) -> None:
    worker = await small()
    await client(worker, project(tmp_path / "one", "head -c 3000000 /dev/zero > /opt/one"))
    await client(worker, project(tmp_path / "two", "echo two > /opt/two"))
    await client(worker, tmp_path / "two")
    two, one = await environments(worker)

    code, out, err = await operator(worker, "env", "list")
    assert code == 0
    assert err.startswith("2 environments, 2.")
    assert "hits: 1, misses: 2, set up in " in err
    first, second = out.splitlines()
    assert re.match(rf"{two['key'][:12]}  ready  .* 1 hits  last used 20.* tea  echo two", first)
    assert re.match(rf"{one['key'][:12]}  ready  +2\.9 MiB  .* 0 hits .* tea  head -c", second)
    code, out, _ = await operator(worker, "env", "list", "--json")
    listed = json.loads(out)
    assert [item["key"] for item in listed["items"]] == [two["key"], one["key"]]
    assert listed["hits"] == 1

    for unknown in ("abcdef123456", one["key"][:5]):
        code, out, err = await operator(worker, "env", "remove", unknown)
        assert (code, out) == (2, "")
        assert err.startswith(f"ciworker: no environment's key begins with {unknown!r}: give at")

    code, out, err = await operator(worker, "env", "remove", one["key"][:8])
    assert (code, out, err) == (0, f"removed {one['key'][:12]}\n", "")
    await at_rest(worker, images=1)
    code, out, err = await operator(worker, "env", "prune")
    assert (code, out) == (0, f"removed {two['key'][:12]}\n")
    assert err == "1 environments removed\n"
    await at_rest(worker, images=0)
    assert [e["message"] for e in await environments(worker)] == ["removed by first admin"] * 2


async def test_an_environment_in_use_is_neither_removed_nor_pruned(small: NewWorker) -> None:
    worker = await small()
    job = await submit(worker, "echo tea", run="sleep 600")
    await worker.wait(job, "running")
    key = (await only(worker))["key"]
    code, out, err = await operator(worker, "env", "list")
    assert f"{key[:12]}  in use" in out
    code, out, err = await operator(worker, "env", "remove", key[:12])
    assert (code, out) == (2, "")
    assert err == (
        f"ciworker: environment {key[:12]} is in use: remove it once its jobs have ended\n"
    )
    code, out, err = await operator(worker, "env", "prune")
    assert (code, out, err) == (0, "", "0 environments removed\n")
    assert len(await worker.images()) == 1
    await cancel(worker, job)
    await worker.wait(job)
    assert (await operator(worker, "env", "remove", key))[0] == 0
    await at_rest(worker, images=0)


# -- an image that somebody else removed -----------------------------------------------------------


async def test_an_image_removed_by_hand_is_built_again_for_the_next_job(
    small: NewWorker, counters: Counters
) -> None:
    worker = await small()
    setup = (TOLD.format("build"), "echo tea")
    await worker.wait(await submit(worker, *setup))
    await worker.nothing_left()
    key = (await only(worker))["key"]
    await docker("rmi", f"ciworker-env:{key}")
    job = await submit(worker, *setup)
    assert (await worker.wait(job))["reason"] == "passed"
    assert counters.seen == {"build": 2}
    why = "the one of before failed, was removed or is to be built anew"
    assert await texts(worker, job) == [*group(key, setup, ["tea"], why), "tested"]
    await at_rest(worker, images=1)


async def test_a_resync_finds_an_image_removed_by_hand_and_counts_a_repair(
    small: NewWorker,
) -> None:
    worker = await small(resync_interval="10m")
    await worker.wait(await submit(worker, "echo tea"))
    await worker.nothing_left()
    key = (await only(worker))["key"]
    await docker("rmi", f"ciworker-env:{key}")
    await asyncio.sleep(2.2)  # an image has no event: a repair is what is older than one may take
    assert await operator(worker, "resync") == (
        0,
        f"[resync] removed: ciworker-env:{key[:12]}\n[resync] unchanged: 0, repairs: 1\n",
        "",
    )
    environment = await only(worker)
    assert environment["status"] == "absent"
    assert environment["message"] == "its image was removed, by someone other than ciworker"
    await at_rest(worker, images=0)

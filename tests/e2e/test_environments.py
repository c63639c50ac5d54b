"""Environments of a real worker on real Docker: built once, kept, shown, failed, removed.

The setups need no network. How often one was run is counted from outside, by what it writes to a
FIFO that the operator mounts; what is left of it, by what the engine lists.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.driver import DEADLINE, TERMINAL, Worker, command, docker, touch, tree
from tests.e2e.conftest import running, spooled
from tests.e2e.follower import WAIT, check_numbers, let_go, stored, told_end_once
from tests.e2e.proxy import Proxy, proxy
from tests.e2e.test_recovery import Counters, hold

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMIT = "POST /commit"
LINES = 80
PRINT = f"i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; sleep 0.01; done"
PRINTED = [f"line {n}" for n in range(1, LINES + 1)]
KILLS = 10
FIRST = "it is the first one of this project"
AGAIN = "the one of before failed, was removed or is to be built anew"
NO_SPACE = "write /var/lib/docker/overlay2/layer: no space left on device"
OPERATORS = f"operators-{os.urandom(12).hex()}"
MOUNTED = f"mounted-{os.urandom(12).hex()}"
MOVED = f"ciworker-test-{os.urandom(6).hex()}:1"  # a name that goes from image to image
LARGE = 2**26  # bytes of a base's layer, and of none that a setup here makes
SETTINGS = {
    "max_jobs": "2",
    "max_setups": "4",
    "job_memory": "128m",
    "setup_memory": "256m",
    "stop_grace": "1s",
    "start_attempts": "3",
    "transfer_timeout": "10s",
    "resync_interval": "10m",
    "allowed_images": json.dumps([MOVED]),
    "job_env": json.dumps(
        {"INDEX_PASSWORD": OPERATORS, "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    ),
}


@dataclass
class Lab:
    """One test's view of the worker.

    folder: what containers see as /counter. word: the test's own, so that its keys are new.
    """

    worker: Worker
    between: Proxy
    counters: Counters
    folder: Path
    word: str = field(default_factory=lambda: f"w{os.urandom(6).hex()}")

    def another(self) -> "Lab":
        """The same worker, and another word."""
        return Lab(self.worker, self.between, self.counters, self.folder)

    @property
    def tell(self) -> str:
        """A command that is counted."""
        return f"echo {self.word} > /counter/fifo"

    @property
    def builds(self) -> int:
        return self.counters.seen[self.word]

    async def submit(self, *setup: str, run: str = "echo tested", **more: Any) -> str:
        spec = {"project": self.word, "setup": list(setup), **more}
        return await self.worker.submit(run, **spec)

    async def passed(self, *setup: str, **more: Any) -> str:
        """Submit a job and see it pass."""
        job_id = await self.submit(*setup, **more)
        job = await self.worker.wait(job_id)
        assert job["reason"] == "passed", job
        return job_id

    async def cancel(self, job_id: str) -> None:
        status, problem = await self.worker.call("POST", f"/jobs/{job_id}/cancel")
        assert status == 202, problem

    async def kill(self) -> None:
        """Kill the worker; what was held on its way to the engine is never carried out."""
        await self.worker.kill()
        self.between.before.clear()
        self.between.after.clear()

    async def environments(self) -> list[dict[str, Any]]:
        """Those of this test, newest first."""
        status, found = await self.worker.call("GET", "/environments")
        assert status == 200, found
        return [item for item in found["items"] if item["project"] == self.word]

    async def environment(self) -> dict[str, Any]:
        (found,) = await self.environments()
        return found

    async def setup(self) -> str:
        """The name of the one setup's container, once that is up."""
        async with asyncio.timeout(DEADLINE):
            while not (names := await self._setups()):
                await asyncio.sleep(0.02)
        assert len(names) == 1, names
        return names[0]

    async def _setups(self) -> list[str]:
        listed = await docker(
            "ps", "--filter", f"label=ciworker.instance={self.worker.instance}",
            "--filter", "label=ciworker.kind=setup", "--format", "{{.Names}}",
        )  # fmt: skip
        return listed.decode().split()

    async def has_images(self, count: int) -> list[str]:
        """Wait until the engine has so many images of ours."""
        async with asyncio.timeout(DEADLINE):
            while len(found := await self.worker.images()) != count:
                await asyncio.sleep(0.05)
        return found

    async def log(self, job_id: str) -> list[str]:
        """The job's lines; before the worker's own stands `> `."""
        records = await stored(self.worker, job_id)
        check_numbers(records)
        return [("> " if r["stream"] == "worker" else "") + r["text"] for r in records]

    async def rests(self, images: int) -> None:
        """No container, so many images, and nothing that a resync would do about anything."""
        await self.worker.nothing_left()
        await self.has_images(images)
        status, report = await self.worker.call("POST", "/resync")
        assert status == 200, report
        assert {name for name, found in report.items() if found} <= {"seconds"}, report
        await self.has_images(images)

    async def clear(self) -> None:
        """Whatever a test left, the next one begins with nothing."""
        self.between.before.clear()
        self.between.after.clear()
        self.between.refusals.clear()
        if self.worker.process is None:
            await self.worker.start()
        _, page = await self.worker.call("GET", "/jobs?limit=500")
        for job in page["items"]:
            if job["status"] not in TERMINAL:
                await self.cancel(job["id"])
        await self.worker.nothing_left()
        await self.worker.call("POST", "/environments/prune")
        await self.has_images(0)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def workshop(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Lab]:
    """The worker of all tests here, behind a proxy; starts cost more than most of them do."""
    with tempfile.TemporaryDirectory(prefix="ciw-") as name:
        folder = Path(name)
        (folder / "secret").write_text(MOUNTED)
        counters = Counters(folder)
        async with proxy() as between:
            settings = {
                "default_image": image,
                "docker_host": between.url,
                "job_mounts": counters.mount,
                **SETTINGS,
            }
            worker = Worker(tmp_path_factory.mktemp("environments") / "worker", settings)
            async with running(worker):
                yield Lab(worker, between, counters, folder)
                assert "Traceback" not in worker.log.read_text()
        counters.close()


@pytest_asyncio.fixture(loop_scope="module")
async def lab(workshop: Lab) -> AsyncIterator[Lab]:
    made = workshop.another()
    yield made
    await made.clear()


def group(key: str, setup: Sequence[str], said: Sequence[str], why: str = FIRST) -> list[str]:
    """What a job shows of the setup that it waited for; `said`: by the last command."""
    headline = f"> ::group::Set up the environment {key[:12]} ({why})"
    return [headline, *(f"$ {step}" for step in setup), *said, "> ::endgroup::"]


def seconds(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


async def end_setup(container: str) -> None:
    """End the WAIT of a setup."""
    await touch(container)


# -- one build per key


async def test_ten_jobs_at_once_share_one_build_and_each_shows_all_of_its_lines(lab: Lab) -> None:
    setup = (lab.tell, PRINT)
    jobs = await asyncio.gather(*(lab.submit(*setup) for _ in range(10)))
    ended = await asyncio.gather(*map(lab.worker.wait, jobs))
    assert [job["reason"] for job in ended] == ["passed"] * 10
    assert lab.builds == 1
    environment = await lab.environment()
    assert (environment["status"], environment["builds"]) == ("ready", 1)
    assert (environment["hits"], environment["misses"]) == (0, 10)
    for job in jobs:
        assert await lab.log(job) == [*group(environment["key"], setup, PRINTED), "tested"]
    await lab.rests(images=1)


async def test_two_new_keys_at_once_are_built_once_each(lab: Lab) -> None:
    setups = [(lab.tell, "echo one"), (lab.tell, "echo two")]
    jobs = [await lab.submit(*setup) for setup in setups * 3]
    assert {(await lab.worker.wait(job))["reason"] for job in jobs} == {"passed"}
    assert lab.builds == 2
    assert [found["builds"] for found in await lab.environments()] == [1, 1]
    await lab.rests(images=2)


async def test_the_next_job_starts_in_what_is_there_and_shows_no_setup(lab: Lab) -> None:
    setup = (lab.tell, "echo tea > /opt/tea")
    await lab.passed(*setup)
    again = await lab.passed(*setup, run="cat /opt/tea")
    assert await lab.log(again) == ["tea"]
    assert lab.builds == 1
    environment = await lab.environment()
    assert (environment["hits"], environment["misses"]) == (1, 1)


async def test_jobs_that_wait_hold_no_slot(lab: Lab) -> None:
    waiting = [await lab.submit(lab.tell, WAIT) for _ in range(3)]
    container = await lab.setup()
    assert (await lab.worker.run("echo overtaken"))["reason"] == "passed"
    assert {(await lab.worker.job(job))["status"] for job in waiting} == {"queued"}
    await end_setup(container)
    assert {(await lab.worker.wait(job))["reason"] for job in waiting} == {"passed"}


async def test_the_time_that_a_job_waits_for_its_setup_is_a_phase_of_its_own(lab: Lab) -> None:
    job_id = await lab.submit(lab.tell, WAIT)
    container = await lab.setup()
    waiting = await lab.worker.job(job_id)
    assert waiting["place"] is None
    (queued, setup) = waiting["phases"]
    assert (queued["name"], queued["since"]) == ("queued", None)
    assert (setup["name"], setup["seconds"]) == ("setup", 0.0)
    began, told = setup["since"], waiting["history"][-1]["message"]
    assert re.fullmatch(r"waits for its environment \w{12}: setup \w{26}", told)
    assert waiting["waits_for"] == told.split()[-1]
    assert began == (await lab.worker.job(told.split()[-1]))["created_at"]
    await end_setup(container)
    await lab.worker.wait(job_id)
    over = await lab.worker.job(job_id)
    assert over["waits_for"] is None
    assert [(phase["name"], phase["since"]) for phase in over["phases"]] == [
        ("queued", None), ("setup", None), ("run", None)
    ]  # fmt: skip
    setup_job = await lab.worker.job(told.split()[-1])
    assert over["phases"][1]["seconds"] > seconds(setup_job["created_at"], setup_job["finished_at"])
    whole = sum(phase["seconds"] for phase in over["phases"])
    assert whole == pytest.approx(seconds(over["created_at"], over["finished_at"]), abs=0.01)


# -- a worker that is killed


async def check_one_build(lab: Lab, job_id: str, *setup: str) -> None:
    """However it came about: one build, one image, each line once, in order, in one group."""
    job = await lab.worker.wait(job_id)
    assert job["reason"] == "passed", job
    told_end_once(job)
    assert lab.builds == 1
    environment = await lab.environment()
    assert (environment["status"], environment["builds"]) == ("ready", 1)
    assert await lab.log(job_id) == [*group(environment["key"], setup, PRINTED), "tested"]
    await lab.rests(images=1)


CALLS = [
    pytest.param("POST /containers/create", "before", id="nothing"),
    pytest.param("POST /containers/create", "after", id="created"),
    pytest.param("POST /containers/{id}/start", "before", id="to be started"),
    pytest.param("POST /containers/{id}/start", "after", id="started"),
    pytest.param(COMMIT, "before", id="to be committed"),
    pytest.param(COMMIT, "after", id="committed"),
    pytest.param("DELETE /containers/{id}", "before", id="ready"),
]


async def check_killed_at(lab: Lab, route: str, when: str, pause: float = 0.0) -> None:
    setup = (lab.tell, PRINT)
    held = hold(getattr(lab.between, when), route)
    job = await lab.submit(*setup)
    await asyncio.wait_for(held.wait(), DEADLINE)
    await asyncio.sleep(pause)
    await lab.kill()
    await lab.worker.start()
    await check_one_build(lab, job, *setup)


@pytest.mark.parametrize(("route", "when"), CALLS)
async def test_a_worker_killed_around_a_call_of_a_build_goes_on_with_it(
    lab: Lab, route: str, when: str
) -> None:
    await check_killed_at(lab, route, when)


@pytest.mark.chaos
@pytest.mark.parametrize(("route", "when"), CALLS)
async def test_it_does_so_whatever_else_was_done_meanwhile(lab: Lab, route: str, when: str) -> None:
    for pause in (0.01, 0.05, 0.2, 0.8):
        await check_killed_at(lab.another(), route, when, pause)
        await lab.clear()


async def test_a_worker_killed_between_an_image_and_its_row_takes_that_image(lab: Lab) -> None:
    setup, told = (lab.tell, PRINT), asyncio.Event()

    async def hold_looks() -> None:
        hold(lab.between.before, "GET /images/json")
        told.set()

    commits = lab.between.counts[COMMIT]
    lab.between.after[COMMIT] = hold_looks
    job = await lab.submit(*setup)
    await asyncio.wait_for(told.wait(), DEADLINE)
    await lab.kill()
    await lab.has_images(1)
    await lab.worker.start()
    await check_one_build(lab, job, *setup)
    assert lab.between.counts[COMMIT] == commits + 1


@pytest.mark.parametrize("dead_ones_first", [True, False])
async def test_a_commit_that_outlives_its_worker_leaves_one_image(
    lab: Lab, dead_ones_first: bool
) -> None:
    """The engine goes on with a commit whose client is gone, before or after the next one's."""
    turns, asked = [asyncio.Event(), asyncio.Event()], [asyncio.Event(), asyncio.Event()]
    numbers = iter(range(2))

    async def wait_for_turn() -> None:
        number = next(numbers)
        asked[number].set()
        await turns[number].wait()

    setup = (lab.tell, PRINT)
    lab.between.before[COMMIT] = wait_for_turn
    job = await lab.submit(*setup)
    await asyncio.wait_for(asked[0].wait(), DEADLINE)
    await lab.worker.kill()
    await lab.worker.start()
    await asyncio.wait_for(asked[1].wait(), DEADLINE)
    kept = hold(lab.between.before, "DELETE /containers/{id}")
    hold(lab.between.before, "DELETE /images/{id}")
    first, second = turns if dead_ones_first else reversed(turns)
    first.set()
    await lab.has_images(1)
    second.set()
    if not dead_ones_first:
        await asyncio.wait_for(kept.wait(), DEADLINE)
        await lab.has_images(2)
    await lab.kill()
    await lab.worker.start()
    await check_one_build(lab, job, *setup)
    assert await lab.log(await lab.passed(*setup)) == ["tested"]


@pytest.mark.parametrize("line", [1, LINES // 2])
async def test_a_worker_killed_while_a_setup_prints_shows_each_line_once(
    lab: Lab, line: int
) -> None:
    setup = (lab.tell, PRINT)
    job = await lab.submit(*setup)
    await lab.worker.wait_for_text(job, b"line %d\n" % line)
    await lab.kill()
    await lab.worker.start()
    await check_one_build(lab, job, *setup)


async def test_a_setup_that_ends_while_the_worker_is_down_is_kept(lab: Lab) -> None:
    setup = (lab.tell, f"{WAIT}; {PRINT}")
    job = await lab.submit(*setup)
    container = await lab.setup()
    await lab.worker.wait_for_text(job, WAIT.encode())
    await lab.kill()
    await end_setup(container)
    assert await docker("wait", container) == b"0\n"
    await lab.worker.start()
    await check_one_build(lab, job, *setup)


async def test_jobs_that_wait_over_a_restart_get_each_line_once(lab: Lab) -> None:
    setup = (lab.tell, PRINT)
    jobs = [await lab.submit(*setup) for _ in range(10)]
    await asyncio.gather(*(lab.worker.wait_for_text(job, b"line 9\n") for job in jobs))
    await lab.kill()
    await lab.worker.start()
    for job in jobs:
        await lab.worker.wait(job)
    key = (await lab.environment())["key"]
    for job in jobs:
        assert await lab.log(job) == [*group(key, setup, PRINTED), "tested"]
    assert lab.builds == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.chaos) for seed in (1, 2, 3))]
)
async def test_however_often_the_worker_is_killed_each_key_is_built_once(
    lab: Lab, seed: int
) -> None:
    lab.worker.set(start_attempts="50")
    labs = [lab.another() for _ in range(4)]
    jobs = {await one.submit(one.tell, PRINT, PRINT): one for one in [*labs, *labs]}
    moments = random.Random(seed)
    for _ in range(KILLS):
        await asyncio.sleep(moments.uniform(0.0, 2.0))  # of which a part is its start
        await lab.kill()
        await lab.worker.spawn()
    await lab.worker.ready()
    for job_id, one in jobs.items():
        job = await lab.worker.wait(job_id)
        assert job["reason"] == "passed", job
        told_end_once(job)
        environment = await one.environment()
        said = [*PRINTED, f"$ {PRINT}", *PRINTED]
        setup = group(environment["key"], (one.tell, PRINT), said)
        assert await lab.log(job_id) == [*setup, "tested"]
        assert (one.builds, environment["builds"]) == (1, 1)
    await lab.rests(images=4)
    lab.worker.set(start_attempts=SETTINGS["start_attempts"])


# -- built anew


async def test_a_rebuild_does_not_take_up_with_a_build_that_began_before_it(lab: Lab) -> None:
    setup = (lab.tell, WAIT)
    early = await lab.submit(*setup)
    first = await lab.setup()
    late = await lab.submit(*setup, cache="rebuild")
    await end_setup(first)
    assert (await lab.worker.wait(early))["reason"] == "passed"
    await lab.worker.wait_for_text(late, b"::group::")
    await end_setup(await lab.setup())
    assert (await lab.worker.wait(late))["reason"] == "passed"
    assert lab.builds == 2
    key = (await lab.environment())["key"]
    assert await lab.log(early) == [*group(key, setup, []), "tested"]
    assert await lab.log(late) == [*group(key, setup, [], AGAIN), "tested"]
    await lab.rests(images=1)


async def test_a_rebuild_that_fails_leaves_what_was_there(lab: Lab) -> None:
    needed = lab.folder / lab.word
    needed.touch()
    setup = (lab.tell, f"test -e /counter/{lab.word}")
    await lab.passed(*setup)
    before = await lab.worker.images()
    needed.unlink()
    job = await lab.worker.wait(await lab.submit(*setup, cache="rebuild"))
    assert (job["reason"], job["exit_code"]) == ("setup_failed", 1)
    assert await lab.log(await lab.passed(*setup)) == ["tested"]
    assert (lab.builds, (await lab.environment())["status"]) == (2, "ready")
    await lab.rests(images=1)
    assert await lab.worker.images() == before


async def test_an_image_that_a_rebuild_replaced_goes_once_no_job_runs_in_it(lab: Lab) -> None:
    runs = await lab.submit(lab.tell, run=WAIT)
    await lab.worker.wait(runs, "running")
    (old,) = await lab.worker.images()
    await lab.passed(lab.tell, cache="rebuild")
    assert old in await lab.has_images(2)
    await let_go(lab.worker, runs)
    assert (await lab.worker.wait(runs))["reason"] == "passed"
    await lab.worker.nothing_left()
    assert (await lab.worker.call("POST", "/resync"))[0] == 200
    assert old not in await lab.has_images(1)
    await lab.rests(images=1)


# -- cancelled


async def test_a_cancelled_job_leaves_the_others_their_build(lab: Lab) -> None:
    setup = (lab.tell, f"{WAIT}; {PRINT}")
    gone, *others = [await lab.submit(*setup) for _ in range(3)]
    container = await lab.setup()
    await lab.worker.wait_for_text(gone, WAIT.encode())
    await lab.cancel(gone)
    job = await lab.worker.wait(gone)
    assert (job["reason"], job["started_at"]) == ("cancelled", None)
    assert job["message"] == "cancelled by first admin before it began"
    await end_setup(container)
    assert {(await lab.worker.wait(other))["reason"] for other in others} == {"passed"}
    assert lab.builds == 1
    told = await lab.log(gone)
    assert told == group((await lab.environment())["key"], setup, [])[: len(told)]


@pytest.mark.parametrize("restarted", [False, True])
async def test_when_all_who_wait_are_cancelled_so_is_the_build(lab: Lab, restarted: bool) -> None:
    jobs = [await lab.submit(lab.tell, "sleep 600") for _ in range(10)]
    await lab.setup()
    await asyncio.gather(*map(lab.cancel, jobs))
    if restarted:
        await lab.kill()
        await lab.worker.start()
    for job in jobs:
        assert (await lab.worker.wait(job))["reason"] == "cancelled"
    await lab.rests(images=0)
    environment = await lab.environment()
    assert environment["status"] == "absent"
    assert environment["message"] == "no job waited for it any more"


# -- what a setup sees, may do, and leaves


async def test_a_setup_sees_its_inputs_alone_and_its_job_only_reads_what_it_left(lab: Lab) -> None:
    look = (
        "find / -xdev -name private.txt; ls -A; cat private.txt 2>/dev/null || echo unread; "
        "cat /workspace/src/deps.txt > /opt/deps; chmod 666 /opt/deps"
    )
    write = "id -u; cat /opt/deps private.txt; (echo more >> /opt/deps) 2>/dev/null || echo refused"
    files = {"deps.txt": "tea\n", "private.txt": "private\n"}
    job = await lab.passed(look, run=write, files=files, **{"setup-inputs": ["deps.txt"]})
    shown = group((await lab.environment())["key"], [look], ["deps.txt", "unread"])
    assert await lab.log(job) == [*shown, "1000", "tea", "private", "refused"]


PROBE = """
import os, socket, subprocess

def tell(what, worked):
    print(what, "done" if worked else "refused", flush=True)

def tried(*words):
    tell(words[0], subprocess.run(words, capture_output=True).returncode == 0)

def opened(what, kind, protocol):
    try:
        socket.socket(socket.AF_INET, kind, protocol).close()
        tell(what, True)
    except PermissionError:
        tell(what, False)

def memory():
    try:
        with open("/proc/kcore", "rb") as file:
            return file.read(4096)
    except OSError:  # refused, or this kernel has none
        return b""

tell("root", os.getuid() == 0)
tried("touch", "/usr/lib/made")
tried("chown", "1000:1000", "/usr/lib/made")
tried("mount", "-t", "tmpfs", "none", "/mnt")
tried("mount", "--bind", "/etc", "/mnt")
tried("mknod", "/opt/device", "b", "8", "0")
tried("unshare", "--mount", "true")
opened("datagrams", socket.SOCK_DGRAM, 0)
opened("raw", socket.SOCK_RAW, socket.IPPROTO_ICMP)
tell("kcore", memory())
"""


async def test_a_setup_is_root_over_its_own_files_and_nothing_else(lab: Lab) -> None:
    setup, inputs = "python3 probe.py", {"setup-inputs": ["probe.py"]}
    job = await lab.passed(setup, run="true", files={"probe.py": PROBE}, **inputs)
    found = [
        "root done", "touch done", "chown done", "mount refused", "mount refused", "mknod refused",
        "unshare refused", "datagrams done", "raw refused", "kcore refused",
    ]  # fmt: skip
    assert await lab.log(job) == group((await lab.environment())["key"], [setup], found)


async def everything_of(image: str) -> bytes:
    """All that an image adds to its base: history, configuration, the contents of its files."""
    told = await docker("history", "--no-trunc", image) + await docker("inspect", image)
    return told + await asyncio.to_thread(_saved, image)


def _saved(image: str) -> bytes:
    found = b""
    with (
        subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            if member.size < LARGE and (file := tar.extractfile(member)):
                data = file.read()
                found += zlib.decompress(data, 31) if data[:2] == b"\x1f\x8b" else data
    return found


async def test_no_secret_of_a_job_or_of_the_operator_is_in_an_image(lab: Lab) -> None:
    secret = f"jobs-{os.urandom(12).hex()}"
    setup = (
        'echo "${TOKEN-none}" > /opt/token; echo kept > /opt/kept-$(cat /opt/token)',
        'printf %s "$INDEX_PASSWORD" | wc -c; wc -c < /counter/secret',
    )
    show = 'cat /opt/token; echo "$TOKEN"; cat /counter/secret'
    job = await lab.passed(*setup, run=show, env={"TOKEN": secret})
    sizes = [str(len(OPERATORS)), str(len(MOUNTED))]
    shown = group((await lab.environment())["key"], setup, sizes)
    assert await lab.log(job) == [*shown, "none", secret, MOUNTED]
    (image,) = await lab.worker.images()
    held = await everything_of(image)
    assert b"opt/kept-none" in held
    assert b"/opt/token" not in held  # nor what ran
    assert [s for s in (secret, OPERATORS, MOUNTED) if s.encode() in held] == []


# -- bad input


async def fail_together(lab: Lab, *jobs: str) -> dict[str, Any]:
    """Jobs that waited for one failing setup: all are told the same; one of them."""
    ended = [await lab.worker.wait(job) for job in jobs]
    for job in ended:
        assert (job["status"], job["reason"], job["success"]) == ("failed", "setup_failed", None)
        assert (job["attempt"], job["started_at"], job["log_incomplete"]) == (0, None, False)
        told_end_once(job)
    assert len({(job["message"], job["exit_code"]) for job in ended}) == 1
    logs = [await lab.log(job) for job in jobs]
    assert all(log == logs[0] for log in logs)
    assert logs[0][-1] == "> ::endgroup::"
    await lab.rests(images=0)
    assert (await lab.environment())["status"] == "failed"
    return ended[0]


async def test_a_setup_that_fails_is_told_with_its_exit_code_last_lines_and_command(
    lab: Lab,
) -> None:
    failing = f"{lab.tell}; {WAIT}; echo no matching kettle >&2; exit 7"
    jobs = [await lab.submit("echo first", failing, "echo never") for _ in range(3)]
    await end_setup(await lab.setup())
    job = await fail_together(lab, *jobs)
    assert job["exit_code"] == 7
    assert job["message"].startswith("its setup failed: exit code 7: ")
    assert "no matching kettle" in job["message"]
    assert job["message"].endswith(f"the setup ends here: exit code 7 of: {failing}")
    assert "$ echo never" not in await lab.log(job["id"])
    assert lab.builds == 1


async def test_a_submit_after_a_failure_builds_again(lab: Lab) -> None:
    failing = (lab.tell, "exit 7")
    await fail_together(lab, await lab.submit(*failing))
    assert lab.builds == 1
    again = await lab.submit(*failing)
    await fail_together(lab, again)
    assert lab.builds == 2
    assert (await lab.log(again))[0].endswith(f"({AGAIN})")


async def test_a_setup_that_hangs_is_stopped_and_told_so(image: str, tmp_path: Path) -> None:
    settings = {**SETTINGS, "default_image": image, "setup_timeout": "2s"}
    async with running(Worker(tmp_path / "worker", settings)) as worker:
        jobs = [await worker.submit("true", setup=["echo boiling; sleep 600"]) for _ in range(2)]
        for job in [await worker.wait(job) for job in jobs]:
            assert job["reason"] == "setup_failed"
            assert job["message"].startswith(
                "its setup failed: still running after setup_timeout, 2s: stopped: "
            )
            assert job["message"].endswith("boiling")
        await worker.nothing_left()
        assert await worker.images() == []


async def test_an_index_that_cannot_be_reached_is_told_in_its_words(lab: Lab) -> None:
    files = {"requirements.txt": f"{lab.word}==1.0\n"}
    job_id = await lab.worker.submit("true", files, project=lab.word)
    job = await fail_together(lab, job_id)
    assert job["exit_code"] == 1
    assert "No matching distribution found" in job["message"]
    assert "Connection refused" in "\n".join(await lab.log(job_id))


async def test_a_listed_input_that_is_missing_is_refused_and_leaves_nothing(lab: Lab) -> None:
    before = spooled(lab.worker)
    spec = {"project": lab.word, "setup": [lab.tell], "setup-inputs": ["gone.txt"]}
    status, problem = await lab.worker.post(tree({"x": "x"}), spec)
    assert status == 422
    assert "setup-inputs names 'gone.txt', which is not in the tree" in problem["detail"]
    assert (await lab.environments(), spooled(lab.worker), lab.builds) == ([], before, 0)


@contextlib.asynccontextmanager
async def moved_tag(image: str) -> AsyncIterator[None]:
    """MOVED is the image in the block; afterwards it is gone, with what it named later."""
    await docker("tag", image, MOVED)
    try:
        yield
    finally:
        await docker("rmi", "-f", MOVED)


async def move_tag(image: str) -> str:
    """Give MOVED to another image; its id."""
    container = (await docker("create", image, "true")).decode().strip()
    try:
        return (await docker("commit", container, MOVED)).decode().strip()
    finally:
        await docker("rm", container)


async def test_a_base_image_that_changed_under_its_tag_makes_a_new_environment(
    lab: Lab, image: str
) -> None:
    setup = (lab.tell, "echo tea")
    async with moved_tag(image):
        await lab.passed(*setup, image=MOVED)
        before = await lab.environment()
        other = await move_tag(image)
        job = await lab.passed(*setup, image=MOVED)
        after, old = await lab.environments()
        assert (old["key"], after["image_id"]) == (before["key"], other)
        why = f"{MOVED} is another image than before: {other}"
        assert await lab.log(job) == [*group(after["key"], setup, ["tea"], why), "tested"]
        assert lab.builds == 2
        await lab.rests(images=2)
        await lab.clear()  # first what stands on it


async def test_an_image_that_finds_no_room_once_is_stored_at_the_next_try(lab: Lab) -> None:
    lab.between.refusals[COMMIT] = [NO_SPACE]
    await lab.passed(lab.tell)
    assert (lab.between.refusals[COMMIT], lab.builds) == ([], 1)
    await lab.rests(images=1)


async def test_an_image_that_finds_no_room_fails_its_jobs_with_what_mends_it(lab: Lab) -> None:
    lab.between.refusals[COMMIT] = [NO_SPACE] * 10
    job = await fail_together(lab, await lab.submit(lab.tell), await lab.submit(lab.tell))
    assert job["message"] == (
        f"its setup failed: the environment could not be stored: {NO_SPACE}: make room on "
        "Docker's disk, or lower environments_size"
    )
    assert (len(lab.between.refusals.pop(COMMIT)), lab.builds) == (7, 1)
    await lab.passed(lab.tell)
    assert lab.builds == 2


# -- the commands


async def client(worker: Worker, folder: Path, *words: str) -> str:
    """`ciclient submit`: what it printed of the job, which passed."""
    code, out, err = await command(
        "ciclient", "submit", str(folder), *words, env=worker.client_environment
    )
    assert code == 0, err
    return out.decode()


async def operator(worker: Worker, *words: str) -> tuple[int, str, str]:
    """`ciworker …`: exit code, stdout, stderr."""
    code, out, err = await command("ciworker", *words, env=worker.environment)
    return code, out.decode(), err.decode()


async def test_the_client_has_an_environment_rebuilt_or_made_for_its_job_alone(
    lab: Lab, tmp_path: Path
) -> None:
    file = f'run = "echo tested"\nproject = "{lab.word}"\nsetup = ["{lab.tell}"]\n'
    (tmp_path / ".ciworker.toml").write_text(file)
    await lab.passed(lab.tell)
    key, (old,) = (await lab.environment())["key"], await lab.worker.images()

    assert AGAIN in await client(lab.worker, tmp_path, "--rebuild")
    await lab.rests(images=1)
    assert await lab.worker.images() != [old]
    assert ((await lab.environment())["key"], lab.builds) == (key, 2)

    alone = await client(lab.worker, tmp_path, "--no-cache")
    assert "this job asked for one of its own" in alone
    async with asyncio.timeout(15):  # at once, not at a later try
        await lab.rests(images=1)
    assert ((await lab.environment())["key"], lab.builds) == (key, 3)

    assert "Set up" not in await client(lab.worker, tmp_path)
    assert lab.builds == 3


async def test_the_operator_lists_removes_and_prunes_environments(lab: Lab) -> None:
    await lab.passed("head -c 3000000 /dev/zero > /opt/one")
    job = await lab.submit("echo two > /opt/two", run=WAIT)
    await lab.worker.wait(job, "running")
    two, one = await lab.environments()

    code, out, err = await operator(lab.worker, "env", "list")
    used, unused = [line for line in out.splitlines() if lab.word in line]
    assert re.fullmatch(
        rf"{one['key'][:12]}  ready +2\.9 MiB  hits: +0  last used 2.*  {lab.word}  head -c .*",
        unused,
    )
    assert re.fullmatch(rf"{two['key'][:12]}  in use  .*  {lab.word}  echo two > /opt/two", used)
    assert (code, len(err.splitlines())) == (0, 1)
    assert re.search(
        r"\d+ environments?, 2\.9 MiB; hits: \d+, misses: \d+, set up in [\d.]+ s", err
    )
    code, out, err = await operator(lab.worker, "env", "list", "--json")
    assert (code, err) == (0, "")
    assert [item for item in json.loads(out)["items"] if item["project"] == lab.word] == [two, one]

    assert await operator(lab.worker, "env", "remove", "abcdef123456") == (
        2,
        "",
        "ciworker: no environment's key begins with 'abcdef123456': give at least 6 characters of "
        "one that `ciworker env list` shows\n",
    )
    refusal = f"environment {two['key'][:12]} is in use: remove it once its jobs have ended"
    removed = await operator(lab.worker, "env", "remove", two["key"][:12])
    assert removed == (2, "", f"ciworker: {refusal}\n")
    removed = await operator(lab.worker, "env", "remove", one["key"][:8])
    assert removed == (0, f"removed {one['key'][:12]}\n", "")
    await lab.has_images(1)
    assert await operator(lab.worker, "env", "prune") == (0, "", "0 environments removed\n")
    await lab.has_images(1)
    await lab.cancel(job)
    await lab.worker.nothing_left()
    pruned = await operator(lab.worker, "env", "prune")
    assert pruned == (0, f"removed {two['key'][:12]}\n", "1 environment removed\n")
    await lab.rests(images=0)
    assert {found["message"] for found in await lab.environments()} == {"removed by first admin"}


# -- an image that somebody else removed


async def test_an_image_removed_by_hand_is_built_again_for_the_next_job(lab: Lab) -> None:
    setup = (lab.tell, "echo tea")
    await lab.passed(*setup)
    await lab.worker.nothing_left()
    key = (await lab.environment())["key"]
    await docker("rmi", f"ciworker-env:{key}")
    job = await lab.passed(*setup)
    assert lab.builds == 2
    assert await lab.log(job) == [*group(key, setup, ["tea"], AGAIN), "tested"]
    await lab.rests(images=1)


async def test_a_job_in_the_queue_whose_image_is_removed_waits_for_another(lab: Lab) -> None:
    setup = (lab.tell, "echo tea")
    await lab.passed(*setup)
    busy = [await lab.worker.submit(WAIT) for _ in range(int(SETTINGS["max_jobs"]))]
    for job in busy:
        await lab.worker.wait(job, "running")
    queued = await lab.submit(*setup)
    async with asyncio.timeout(DEADLINE):
        while (await lab.environment())["hits"] == 0:
            await asyncio.sleep(0.02)
    key = (await lab.environment())["key"]
    await docker("rmi", f"ciworker-env:{key}")
    for job in busy:
        await let_go(lab.worker, job)
    assert (await lab.worker.wait(queued))["reason"] == "passed"
    assert await lab.log(queued) == [*group(key, setup, ["tea"], AGAIN), "tested"]
    assert lab.builds == 2
    await lab.rests(images=1)


async def test_a_resync_finds_an_image_removed_by_hand_and_counts_a_repair(lab: Lab) -> None:
    await lab.passed(lab.tell)
    await lab.worker.nothing_left()
    key = (await lab.environment())["key"]
    await docker("rmi", f"ciworker-env:{key}")
    await asyncio.sleep(2.2)  # a repair is what is older than an event may take
    assert await operator(lab.worker, "resync") == (
        0,
        f"[resync] removed: ciworker-env:{key[:12]}\n[resync] unchanged: 0, repairs: 1\n",
        "",
    )
    environment = await lab.environment()
    assert environment["status"] == "absent"
    assert environment["message"] == "its image was removed, by someone other than ciworker"
    await lab.rests(images=0)

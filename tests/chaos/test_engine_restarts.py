"""Rows 9, 10: a Docker daemon of our own is stopped, killed, restarted and frozen."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.chaos.account import Account, counted, counting
from tests.chaos.conftest import Row
from tests.chaos.daemon import Daemon, Elsewhere, private_daemon
from tests.chaos.test_engine_faults import accepted
from tests.driver import DEADLINE
from tests.e2e.follower import stored
from tests.e2e.test_pool import parked, until_states
from tests.e2e.test_recovery import Counters

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

LINES = 100
NewElsewhere = Callable[..., Elsewhere]
HELD = "while [ ! -e /workspace/go ]; do sleep 0.1; done"
DEAF = f"trap '' TERM; {counting(LINES)}; {HELD}"
POLITE = f"trap 'exit 1' TERM; {counting(LINES)}; {HELD}"
PLAIN = f"{counting(LINES)}; {HELD}"
CALL = 3.0  # seconds that a call to the engine may take, where the engine is frozen


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def daemon(image: str) -> AsyncIterator[Daemon]:
    async with private_daemon(image) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def new_elsewhere(daemon: Daemon, tmp_path: Path, image: str) -> AsyncIterator[NewElsewhere]:
    """Makes workers on the private daemon; afterwards nothing of them is left."""
    made: list[Elsewhere] = []

    def make(**settings: str) -> Elsewhere:
        folder = tmp_path / f"worker-{len(made)}"
        made.append(Elsewhere(folder, {"default_image": image, **settings}, daemon))
        return made[-1]

    yield make
    for worker in made:
        await worker.destroy()


Shown = Mapping[str, list[dict[str, Any]]]


async def begun(worker: Elsewhere, *runs: str) -> Shown:
    """Jobs that have printed all their lines and wait, with the lines that anyone may have seen."""
    jobs = [await worker.submit(run) for run in runs]
    for job_id in jobs:
        await worker.wait_for_text(job_id, b"err %d\n" % LINES)
        await worker.wait_for_text(job_id, b"out %d\n" % LINES)
        await worker.wait(job_id, "running")
    return {job_id: await stored(worker, job_id) for job_id in jobs}


async def all_cost(worker: Elsewhere, shown: Shown, account: Account) -> None:
    """The engine's restart ended these jobs, and says so; what was shown of them stays."""
    for job_id, lines in shown.items():
        await account.take(worker, job_id, counted(LINES), incomplete=True)
        job = await worker.job(job_id)
        assert (job["status"], job["reason"]) == ("failed", "engine_restarted"), job
        assert job["log_incomplete"]
        assert (await stored(worker, job_id))[: len(lines)] == lines


@pytest.mark.rows(9)
@pytest.mark.parametrize(
    ("signum", "runs"),
    [
        pytest.param(signal.SIGKILL, [PLAIN, POLITE], id="killed"),
        pytest.param(signal.SIGTERM, [PLAIN, POLITE], id="stopped", marks=pytest.mark.chaos),
        pytest.param(signal.SIGKILL, [PLAIN, POLITE, DEAF] * 2, id="killed, deaf jobs",
                     marks=pytest.mark.chaos),
        pytest.param(signal.SIGTERM, [PLAIN, POLITE, DEAF] * 2, id="stopped, deaf jobs",
                     marks=pytest.mark.chaos),
    ],
)  # fmt: skip
async def test_jobs_that_a_restart_of_the_engine_cost_say_so(
    daemon: Daemon, new_elsewhere: NewElsewhere, row: Row, signum: int, runs: list[str]
) -> None:
    worker = new_elsewhere(max_jobs=str(len(runs)), max_memory="64g", job_memory="256m")
    await worker.start()
    account = Account()
    await account.take(worker, await worker.submit(counting(LINES)), counted(LINES))
    jobs = await begun(worker, *runs)
    waiting = await worker.submit(f"{counting(LINES)}; exit 3")
    await daemon.stop(signum)
    assert (await worker.session.get("/healthz")).status == 200
    await daemon.start()
    await all_cost(worker, jobs, account)
    await account.take(worker, waiting, counted(LINES))
    assert (await worker.job(waiting))["exit_code"] == 3
    await account.leftovers(worker)
    row(9, faults=1, **account.counts())


@pytest.mark.rows(9)
@pytest.mark.parametrize(
    "signum", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.chaos)]
)
async def test_a_pool_that_a_restart_of_the_engine_ended_is_filled_again(
    daemon: Daemon, new_elsewhere: NewElsewhere, row: Row, signum: int
) -> None:
    """What was taken from it is lost as any job is; the next job takes a member again."""
    worker = new_elsewhere(max_jobs="2", job_memory="256m", pool='[{"name": "tea", "size": 2}]')
    await worker.start()
    await parked(worker, 2)
    account, jobs = Account(), await begun(worker, PLAIN)
    await until_states(worker, "parked", "taken")
    await daemon.stop(signum)
    await daemon.start()
    await all_cost(worker, jobs, account)
    await parked(worker, 2)
    members = await daemon.docker("ps", "--no-trunc", "--quiet")
    last = await worker.submit(counting(LINES))
    await account.take(worker, last, counted(LINES))
    assert (await worker.job(last))["container_id"] in members.decode().split()
    assert (await worker.call("POST", "/pool/down"))[0] == 200
    await account.leftovers(worker)
    row(9, faults=1, **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(9)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
@pytest.mark.parametrize("runs", [[PLAIN, DEAF], [POLITE]], ids=["killed jobs", "polite jobs"])
async def test_jobs_that_a_reboot_of_the_host_cost_say_so(
    daemon: Daemon, new_elsewhere: NewElsewhere, row: Row, signum: int, runs: list[str]
) -> None:
    worker = new_elsewhere(max_jobs="4", max_memory="64g", job_memory="256m")
    await worker.start()
    account = Account()
    jobs = await begun(worker, *runs)
    await worker.stop(signum)
    await daemon.stop(signum)
    await daemon.start()
    await worker.start()
    await all_cost(worker, jobs, account)
    after = await worker.submit(f"{counting(LINES)}; exit 3")
    await account.take(worker, after, counted(LINES))
    assert account.reasons == {"engine_restarted": len(jobs), "tests_failed": 1}
    await account.leftovers(worker)
    row(9, faults=2, **account.counts())


def gated(folder: Path, counters: Counters) -> str:
    """Mounts: the counters, and a folder of files that jobs wait for."""
    folder.mkdir()
    folder.chmod(0o755)
    return json.dumps([f"{folder}:/gate:ro", *json.loads(counters.mount)])


@pytest_asyncio.fixture(loop_scope="module")
async def restoring(daemon: Daemon) -> AsyncIterator[Daemon]:
    """The daemon, told to keep containers alive while it is away."""
    await daemon.stop(signal.SIGTERM)
    await daemon.start(live_restore=True)
    yield daemon
    await daemon.stop(signal.SIGTERM)
    await daemon.start()


async def marked(counters: Counters, text: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while not counters.seen[text]:
            await asyncio.sleep(0.05)


@pytest.mark.chaos
@pytest.mark.rows(9)
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
async def test_with_live_restore_jobs_go_on_over_a_restart_of_the_engine(
    restoring: Daemon,
    new_elsewhere: NewElsewhere,
    counters: Counters,
    tmp_path: Path,
    row: Row,
    signum: int,
) -> None:
    worker = new_elsewhere(
        max_jobs="4", max_memory="64g", job_memory="256m",
        job_mounts=gated(tmp_path / "gate", counters),
    )  # fmt: skip
    await worker.start()
    # `docker exec` fails in a container that was restored (20.10.24)
    run = f"{counting(LINES)}; while [ ! -e /gate/%s ]; do sleep 0.1; done; "
    run += "echo %s > /counter/fifo; exit 3"
    moments = ("meanwhile", "afterwards")
    jobs = await begun(worker, *(run % (moment, moment) for moment in moments))
    await restoring.stop(signum)
    (tmp_path / "gate" / "meanwhile").touch()
    await marked(counters, "meanwhile")
    await restoring.start(live_restore=True)
    (tmp_path / "gate" / "afterwards").touch()
    account = Account()
    for job_id, lines in jobs.items():
        await account.take(worker, job_id, counted(LINES), incomplete=True)
        job = await worker.job(job_id)
        assert (job["status"], job["exit_code"]) == ("completed", 3), job
        assert job["log_incomplete"], job
        assert (await stored(worker, job_id))[: len(lines)] == lines
    assert counters.seen == dict.fromkeys(moments, 1)
    await account.leftovers(worker)
    row(9, faults=1, **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(9)
async def test_an_engine_that_restarts_again_and_again_leaves_no_job_behind_and_runs_none_twice(
    daemon: Daemon, new_elsewhere: NewElsewhere, counters: Counters, row: Row
) -> None:
    worker = new_elsewhere(
        max_jobs="3", max_memory="64g", job_memory="256m", job_mounts=counters.mount
    )
    await worker.start()
    run = f"echo mark%d > /counter/fifo; {counting(LINES)}; sleep 0.5; exit 3"
    jobs: list[str] = []
    for number in range(10):
        jobs += [await accepted(worker, {"run": run % (len(jobs) + n)}) for n in range(3)]
        await worker.wait(jobs[-3], "starting", "running", "completed", "failed")
        await daemon.stop(signal.SIGTERM if number % 2 else signal.SIGKILL)
        await daemon.start()
    account = Account()
    for number, job_id in enumerate(jobs):
        await account.take(worker, job_id, counted(LINES), incomplete=True)
        job, runs = await worker.job(job_id), counters.seen[f"mark{number}"]
        assert job["reason"] in {"engine_restarted", "tests_failed"}, job
        assert job["exit_code"] == (3 if job["reason"] == "tests_failed" else None), job
        account.lost += job["reason"] == "tests_failed" and runs == 0
        account.repeated += max(0, runs - 1)
    await account.leftovers(worker)
    row(9, faults=10, **account.counts())


async def refused(worker: Elsewhere) -> None:
    """Submit until the worker refuses it: an event of just now proves for a second that all is
    well."""
    async with asyncio.timeout(10):
        while (answer := await worker.post(b"", {"run": "true"}))[0] != 503:
            await asyncio.sleep(0.1)
    assert "engine" in answer[1]["detail"]


async def all_but_jobs_answers(worker: Elsewhere, job_id: str) -> None:
    """What needs no engine is answered in time, to whoever may ask."""
    async with asyncio.timeout(DEADLINE / 2):
        for path in ("/healthz", "/api/v1/jobs", f"/api/v1/jobs/{job_id}/log", "/login"):
            async with worker.session.get(path, headers=worker.headers) as answer:
                assert answer.status == 200, path
        async with worker.session.get("/readyz") as answer:
            assert answer.status == 503


@pytest.mark.chaos
@pytest.mark.rows(10)
async def test_while_the_engine_is_frozen_everything_but_the_jobs_goes_on(
    daemon: Daemon, new_elsewhere: NewElsewhere, row: Row
) -> None:
    worker = new_elsewhere(max_jobs="2")
    worker.constants = {"ciworker.engine.docker.CALL_TIMEOUT": CALL}
    await worker.start()
    (job_id,) = await begun(worker, f"{PLAIN}; exit 3")
    daemon.signal(signal.SIGSTOP)
    try:
        await refused(worker)
        await all_but_jobs_answers(worker, job_id)
        assert (await worker.call("POST", f"/jobs/{job_id}/cancel"))[0] == 202
        began = time.monotonic()
        async with asyncio.timeout(DEADLINE):
            status, problem = await worker.call("POST", "/resync")
        assert (status, "engine" in problem["detail"]) == (503, True), problem
        assert time.monotonic() - began > CALL, "a call was given up, not the connection"
        await all_but_jobs_answers(worker, job_id)
    finally:
        daemon.signal(signal.SIGCONT)
    account = Account()
    await account.take(worker, job_id, counted(LINES))
    job = await worker.job(job_id)
    assert (job["status"], job["reason"]) == ("cancelled", "cancelled"), job
    after = await accepted(worker, {"run": f"{counting(LINES)}; exit 3"})
    await account.take(worker, after, counted(LINES))
    await account.leftovers(worker)
    row(10, faults=1, **account.counts())

"""Row 1 with a pool: the worker is killed at every step by which a job takes a parked container."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.chaos.failpoints import OF_A_TAKING, Doomed
from tests.driver import DEADLINE, docker
from tests.e2e.test_pool import member_ids, parked
from tests.e2e.test_recovery import Counters

NewDoomed = Callable[[], Doomed]
SENDS = 3  # writes of a small tree: its length, the tar, the last members


@pytest.fixture
async def new_doomed(tmp_path: Path, image: str, counters: Counters) -> AsyncIterator[NewDoomed]:
    """Makes workers with fail points and a pool; afterwards nothing of them is left."""
    made: list[Doomed] = []

    def make() -> Doomed:
        settings = {
            "default_image": image, "max_jobs": "2", "job_memory": "256m", "pull": "never",
            "pool": json.dumps([{"name": "tea", "size": 2}]), "job_mounts": counters.mount,
        }  # fmt: skip
        made.append(Doomed(tmp_path / f"worker-{len(made)}", settings))
        return made[-1]

    yield make
    for worker in made:
        await worker.destroy()


async def killed_while_taking(
    worker: Doomed, counters: Counters, point: str, hit: int, held: str = ""
) -> int:
    """Have a job take a member of a worker that dies at the point; its attempts once it passed.

    It ran once, and no container of it is left; the members are as many as before.
    """
    worker.point, worker.hit, worker.held = point, hit, held
    await worker.start()
    await parked(worker, 2)
    text = f"{point}-{hit}-{held}".replace(":", "-").replace(">", "")
    cpus = 0.5 if point.startswith("update") else 1
    job_id = await worker.submit(f"echo {text} > /counter/fifo; echo once", cpus=cpus)
    assert await worker.dies(DEADLINE), f"{point} was never reached"
    worker.point = worker.held = ""
    await worker.start()
    job = await worker.wait(job_id)
    assert (job["reason"], job["exit_code"]) == ("passed", 0), job
    assert await worker.text(job_id) == b"once\n"
    assert counters.seen[text] == 1
    await parked(worker, 2)
    async with asyncio.timeout(DEADLINE):
        while len(await worker.containers()) > 2:
            await asyncio.sleep(0.02)
    attempts: int = job["attempt"]
    return attempts


async def test_committed_and_not_renamed_is_found_by_its_id_and_costs_nothing(
    new_doomed: NewDoomed, counters: Counters
) -> None:
    worker = new_doomed()
    attempts = await killed_while_taking(worker, counters, "queued->starting:after", 1, "rename")
    assert attempts == 1
    log = worker.log.read_text()
    assert "Traceback" not in log


async def test_renamed_and_not_committed_is_removed_and_costs_nothing(
    new_doomed: NewDoomed, counters: Counters
) -> None:
    attempts = await killed_while_taking(
        new_doomed(), counters, "rename:after", 1, "queued->starting"
    )
    assert attempts <= 2


@pytest.mark.parametrize(
    ("point", "hit", "attempts"),
    [
        pytest.param("send:before", 1, (2,), id="nothing sent"),
        pytest.param("send:after", 1, (2,), id="the length sent"),
        pytest.param("send:before", SENDS, (2,), id="the tree sent"),
        pytest.param("send:after", SENDS, (1, 2), id="all sent, no mark seen"),
        pytest.param("starting->running:before", 1, (1,), id="the mark seen"),
    ],
)
async def test_committed_and_renamed_it_is_tried_again_only_if_it_did_not_begin(
    new_doomed: NewDoomed, counters: Counters, point: str, hit: int, attempts: tuple[int, ...]
) -> None:
    assert await killed_while_taking(new_doomed(), counters, point, hit) in attempts


async def test_a_member_that_is_lost_as_it_is_taken_costs_a_retry(
    new_doomed: NewDoomed, counters: Counters
) -> None:
    """Its death is not known yet: the worker stands still when somebody removes it."""
    worker = new_doomed()
    await worker.start()
    await parked(worker, 2)
    before = await member_ids(worker)
    assert worker.process is not None
    worker.process.send_signal(signal.SIGSTOP)
    submitting = asyncio.create_task(worker.submit("echo mark > /counter/fifo"))
    await docker("rm", "-f", *before.values())
    worker.process.send_signal(signal.SIGCONT)
    job = await worker.wait(await submitting)
    assert job["reason"] == "passed"
    assert job["attempt"] <= 2
    assert counters.seen["mark"] == 1
    await parked(worker, 2)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.rows(1)
async def test_killed_at_every_step_of_a_taking_nothing_runs_twice(
    new_doomed: NewDoomed, counters: Counters
) -> None:
    for when in ("before", "after"):
        for name in OF_A_TAKING:
            for hit in (1, 2) if name == "send" else (1,):
                await killed_while_taking(new_doomed(), counters, f"{name}:{when}", hit)

"""Rows 1, 2, 3: the worker kills itself at every transition, and goes on as if it had not."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import pytest

from tests.chaos.account import Account, Lines, all_jobs, counted, counting
from tests.chaos.conftest import Row
from tests.chaos.failpoints import OF_A_CANCEL, OF_A_REMOVAL, OF_A_SETUP, OF_ANY_JOB, Doomed
from tests.driver import DEADLINE, TERMINAL, Worker, docker, tree
from tests.e2e.follower import WAIT, engine_log, following, let_go, stored
from tests.e2e.test_recovery import Counters
from tests.store.lab import rows

LINES = 60
AT_THE_START = (
    "start:after",
    "starting->running:before",
    "sent:before",
    "sent:after",
    "send:before",
)
NewDoomed = Callable[..., Doomed]


@pytest.fixture
async def new_doomed(tmp_path: Path, image: str) -> AsyncIterator[NewDoomed]:
    """Makes workers with fail points; afterwards nothing of them is left."""
    made: list[Doomed] = []

    def make(**settings: str) -> Doomed:
        folder = tmp_path / f"worker-{len(made)}"
        made.append(Doomed(folder, {"default_image": image, **settings}))
        return made[-1]

    yield make
    for worker in made:
        await worker.destroy()


@dataclass(frozen=True)
class Errand:
    """What is asked of a worker that is to die at a point.

    run: behind the numbered lines. spec: more of the job. cancel: the state in which it is
    cancelled. killed: whether somebody kills its container. reason, code: how it ends; None: with
    any code. known: its lines. runs: how often it may; one that is cancelled early need not.
    """

    run: str
    reason: str
    code: int | None = None
    spec: Mapping[str, object] = field(default_factory=dict)
    cancel: str = ""
    killed: bool = False
    known: Lines = field(default_factory=lambda: counted(LINES))
    runs: Sequence[int] = (1,)


def errand(name: str, number: int) -> Errand:
    """What takes a worker to the point of this name. number: makes it unlike all others."""
    plain = Errand(
        f"sleep 0.1; exit {number % 3}", ("passed", "tests_failed")[number % 3 > 0], number % 3
    )
    cancelled = Errand("sleep 60", "cancelled", cancel="running")
    early = replace(cancelled, known={}, runs=(0, 1))
    failed = Errand("exit 0", "", known={}, runs=(0,))
    return {
        **dict.fromkeys(OF_A_CANCEL, cancelled),
        **dict.fromkeys(OF_A_SETUP, replace(plain, spec={"setup": [f"echo {number}"]})),
        "queued->cancelled": replace(
            early, cancel="queued", spec={"setup": [f"sleep 60; echo {number}"]}
        ),
        "starting->cancelled": replace(early, cancel="starting"),
        "queued->failed": replace(
            failed, reason="setup_failed", code=7, spec={"setup": [f"echo {number}; exit 7"]}
        ),
        "starting->failed": replace(
            failed, reason="image_missing", spec={"image": f"python:none-such-{number}"}
        ),
        "running->failed": Errand("sleep 60", "killed_outside", killed=True),
    }.get(name, plain)


class Loops:
    """Kills and submits in turn: each start has the next point, and what was begun to end.

    asked: errands, by number; ids: of their jobs. kills: how often the worker died. points: those
    it died at.
    """

    def __init__(self, worker: Doomed, counters: Counters) -> None:
        self._worker, self._counters = worker, counters
        self.asked: list[Errand] = []
        self.ids: dict[int, str] = {}
        self.kills = 0
        self.points: set[str] = set()

    async def run(self, points: Sequence[tuple[str, int]]) -> None:
        """Until each point was reached, and all jobs are submitted to a worker without any."""
        async with asyncio.TaskGroup() as asking:
            for point, hit in points:
                self._disarm()
                await self._begin(point, hit)
                for _ in range(hit):
                    self.asked.append(errand(point.partition(":")[0], len(self.asked)))
                    asking.create_task(self._ask(len(self.asked) - 1))
                if self._worker.point:
                    assert await self._worker.dies(DEADLINE), f"{point} was never reached"
                    self._died(point)
                else:
                    await self._worker.kill()
                    self.kills += 1
            self._disarm()
            await self._worker.start()

    async def _begin(self, point: str, hit: int) -> None:
        """Start with this point. If it dies of it at once, start once more without."""
        if point.startswith("starting->cancelled"):
            await self._come_to_rest()  # else what is held would take all slots
            self._worker.held = "send"
        self._worker.point, self._worker.hit = point, hit
        await self._worker.spawn()
        try:
            await self._worker.ready()
        except AssertionError:  # it is gone
            assert await self._worker.dies(DEADLINE)
            self._died(point)
            self._disarm()
            await self._worker.start()

    async def _come_to_rest(self) -> None:
        """Until all that was asked for has ended, by a worker without a point."""
        self._disarm()
        await self._worker.start()
        async with asyncio.timeout(DEADLINE):
            while len(self.ids) < len(self.asked):
                await asyncio.sleep(0.02)
        for job_id in self.ids.values():
            await self._worker.wait(job_id)
        await self._worker.kill()
        self.kills += 1

    def _disarm(self) -> None:
        self._worker.point = self._worker.held = ""

    def _died(self, point: str) -> None:
        self.kills += 1
        self.points.add(point)

    async def _ask(self, number: int) -> None:
        """Submit, however often and long the worker is away: the key makes it one job."""
        wanted = self.asked[number]
        self.ids[number] = await self._until(lambda: self._submitted(number, wanted))
        if wanted.cancel:
            await self._until(lambda: self._cancelled(self.ids[number], wanted))
        if wanted.killed:
            await self._until(lambda: self._printed(self.ids[number]))
            await docker("kill", await self._worker.container(self.ids[number]))

    async def _until(self, ask: Callable[[], Awaitable[str]]) -> str:
        while True:
            with suppress(aiohttp.ClientError, OSError):
                if answer := await ask():
                    return answer
            await asyncio.sleep(0.02)

    async def _submitted(self, number: int, wanted: Errand) -> str:
        run = f"echo mark{number} > /counter/fifo; {counting(LINES)}; {wanted.run}"
        form = aiohttp.FormData()
        spec = json.dumps({"run": run, **wanted.spec})
        form.add_field("spec", spec, content_type="application/json")
        form.add_field("archive", tree({"x": "x"}), filename="a")
        status, job = await self._worker.call(
            "POST", "/jobs", data=form, headers={"Idempotency-Key": f"job {number}"}
        )
        assert status in {200, 201, 503}, job
        return "" if status == 503 else str(job["id"])

    async def _cancelled(self, job_id: str, wanted: Errand) -> str:
        """Ask once it has come so far, until the answer is seen."""
        job = await self._worker.job(job_id)
        if job["status"] in TERMINAL:
            return str(job["status"])
        if job["status"] not in {wanted.cancel, "running"}:
            return ""
        if wanted.known and job["log_lines"] < 2 * LINES:
            return ""
        status, _ = await self._worker.call("POST", f"/jobs/{job_id}/cancel")
        return "asked" if status == 202 else ""

    async def _printed(self, job_id: str) -> str:
        job = await self._worker.job(job_id)
        return "all" if job["status"] == "running" and job["log_lines"] == 2 * LINES else ""

    async def account(self) -> Account:
        """Once all have ended: as they should, and each run once."""
        account = Account()
        for number, job_id in sorted(self.ids.items()):
            wanted = self.asked[number]
            await account.take(self._worker, job_id, wanted.known, setup="setup" in wanted.spec)
            job = await self._worker.job(job_id)
            assert job["reason"] == wanted.reason, job
            assert wanted.code in {None, job["exit_code"]}, job
        seen = self._counters.seen
        for number, wanted in enumerate(self.asked):
            account.lost += seen[f"mark{number}"] < min(wanted.runs)
            account.repeated += max(0, seen[f"mark{number}"] - max(wanted.runs))
        account.repeated += len(await all_jobs(self._worker)) - len(self.ids)
        await pruned(self._worker)
        await account.leftovers(self._worker)
        return account


async def pruned(worker: Worker) -> None:
    """Environments are no leftovers until they are told to go."""
    assert (await worker.call("POST", "/environments/prune"))[0] in {200, 202}
    async with asyncio.timeout(DEADLINE):
        while await worker.images():
            await asyncio.sleep(0.05)


async def crash(
    new_doomed: NewDoomed, counters: Counters, points: Sequence[tuple[str, int]]
) -> tuple[Loops, Account]:
    worker = new_doomed(
        max_jobs="4", max_setups="4", max_memory="64g", job_memory="256m", setup_memory="256m",
        start_attempts="20", pull="never", job_mounts=counters.mount,
    )  # fmt: skip
    loops = Loops(worker, counters)
    await loops.run(points)
    assert loops.points == {point for point, _ in points}
    return loops, await loops.account()


def every_transition(hit: int) -> Iterator[tuple[str, int]]:
    """Each point once. A cut transfer comes before what that makes of the job, which is one."""
    others = ("queued->cancelled", "starting->cancelled",
              "queued->failed", "starting->failed", "running->failed")  # fmt: skip
    for when in ("before", "after"):
        for name in (*OF_ANY_JOB, *OF_A_CANCEL, *OF_A_SETUP, *others):
            yield f"{name}:{when}", hit
        yield "send:before", 1
        yield f"starting->queued:{when}", 1


@pytest.mark.rows(1)
async def test_a_worker_that_dies_at_a_transition_leaves_no_trace_of_it(
    new_doomed: NewDoomed, counters: Counters, row: Row
) -> None:
    points = [("lines:after", 2), ("running->completed:before", 1)]
    loops, account = await crash(new_doomed, counters, points)
    row(1, faults=loops.kills, **account.counts())


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.rows(1)
async def test_a_worker_that_dies_at_every_transition_leaves_no_trace_of_it(
    new_doomed: NewDoomed, counters: Counters, row: Row
) -> None:
    points = [point for hit in (1, 2, 3, 1) for point in every_transition(hit)]
    loops, account = await crash(new_doomed, counters, points)
    assert loops.kills >= 200
    row(1, faults=loops.kills, **account.counts())


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.rows(1)
async def test_a_worker_that_dies_while_it_removes_old_jobs_leaves_each_whole_or_none_of_it(
    new_doomed: NewDoomed, row: Row
) -> None:
    worker, account, kills = new_doomed(), Account(), 0
    await worker.start()
    for name, hit in itertools.product(OF_A_REMOVAL, (1, 2, 3)):
        for when in ("before", "after"):
            for _ in range(3):
                await worker.wait(await worker.submit(counting(LINES)))
            await worker.stop()
            worker.point, worker.hit = f"{name}:{when}", 1 if name == "hide" else hit
            worker.set(keep_jobs="1s")
            await worker.spawn()
            assert await worker.dies(DEADLINE), f"{worker.point} was never reached"
            kills += 1
            worker.point = ""
            worker.set(keep_jobs="30d")
            await worker.start()
            for job in await all_jobs(worker):
                await account.take(worker, job["id"], counted(LINES))
    await account.leftovers(worker)
    await worker.stop()
    database = worker.data_dir / "ciworker.db"
    strays = "SELECT count(*) FROM log_chunk WHERE job_id NOT IN (SELECT id FROM job)"
    assert rows(database, strays) == [(0,)]
    row(1, faults=kills, **account.counts())


@pytest.mark.rows(2)
@pytest.mark.parametrize(
    "points",
    [
        AT_THE_START[:2],
        pytest.param(AT_THE_START * 8, marks=[pytest.mark.chaos, pytest.mark.timeout(600)]),
    ],
    ids=len,
)
async def test_a_worker_that_dies_between_the_start_and_its_commit_never_runs_a_job_twice(
    new_doomed: NewDoomed, counters: Counters, row: Row, points: Sequence[str]
) -> None:
    done, account = await crash(new_doomed, counters, [(point, 1) for point in points])
    row(2, faults=done.kills, **account.counts())


PRINT = """\
import itertools, os, sys, time
for n in itertools.count(1):
    print("out", n, flush=True)
    print("err", n, file=sys.stderr, flush=True)
    time.sleep(0.003)
    if os.path.exists("/workspace/enough"):
        break
"""


@pytest.mark.rows(3)
@pytest.mark.parametrize(
    "kills", [1, pytest.param(60, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])]
)
async def test_a_worker_that_dies_in_mid_log_stores_what_the_engine_has(
    new_doomed: NewDoomed, row: Row, kills: int
) -> None:
    worker = new_doomed()
    await worker.start()
    job_id = await worker.submit(f"python3 print.py; {WAIT}", {"print.py": PRINT})
    await worker.wait(job_id, "running")
    container = await worker.container(job_id)
    async with following(worker, job_id) as follower:
        for number in range(kills):
            await follower.has(len(follower.records) + 50)
            await worker.kill()
            worker.point = f"lines:{('before', 'after')[number % 2]}"
            worker.hit = number % 3 + 1
            await worker.spawn()
            assert await worker.dies(DEADLINE), "no line was stored"
            worker.point = ""
            await worker.start()
        await docker("exec", container, "touch", "/workspace/enough")
        known = await printed(container)
        await let_go(worker, job_id)
    account = Account()
    await account.take(worker, job_id, known)
    assert follower.records == await stored(worker, job_id), "a number changed"
    await account.leftovers(worker)
    row(3, faults=2 * kills, **account.counts())


async def printed(container: str) -> Lines:
    """The engine's own lines, once the job prints no more."""
    before: Lines = {}
    async with asyncio.timeout(DEADLINE):
        while True:
            own = await engine_log(container)
            lines = {stream: text.decode().splitlines() for stream, text in own.items()}
            if lines == before and len(lines["stdout"]) == len(lines["stderr"]):
                assert lines == counted(len(lines["stdout"]))
                return lines
            before = lines

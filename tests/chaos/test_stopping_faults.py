"""Rows 4, 5, 6: the worker is told to stop, made to stand still, and given other clocks."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.chaos.account import Account, counted, counting
from tests.chaos.conftest import Row
from tests.chaos.test_crashes import PRINT, printed
from tests.chaos.test_store_faults import until_logged
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, docker
from tests.e2e.conftest import Tuned
from tests.e2e.conftest import running as started
from tests.e2e.follower import WAIT, Follower, following, let_go, stored

STOP = 3.0  # seconds within which the worker goes on TERM
HOUR = 3600
LIBRARY = "faketime/libfaketimeMT.so.1"
WITHOUT_END = f"python3 print.py; {WAIT}"


def print_every(seconds: float) -> dict[str, str | bytes]:
    return {"print.py": PRINT.replace("0.003", str(seconds))}


async def terminated(worker: Worker) -> int | None:
    """TERM; the exit code. Fails if that takes longer than it may."""
    process = worker.process
    assert process is not None
    assert await worker.stop(signal.SIGTERM) < STOP
    return process.returncode


async def running(container: str) -> bool:
    told = await docker(
        "inspect", "--format", "{{.State.Running}} {{.Id}} {{.State.Pid}}", container
    )
    state, container_id, pid = told.decode().split()
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert container_id in groups, "it is in the engine's control group, not in the worker's"
    return state == "true"


@contextlib.asynccontextmanager
async def many_following(worker: Worker, job_id: str, number: int) -> AsyncIterator[list[Follower]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(following(worker, job_id)) for _ in range(number)]


async def all_have_more(followers: list[Follower]) -> None:
    wanted = [len(follower.records) + 20 for follower in followers]
    for follower, lines in zip(followers, wanted, strict=True):
        await follower.has(lines)


@pytest.mark.rows(4)
@pytest.mark.parametrize(
    "streams", [10, pytest.param(200, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])]
)
async def test_a_worker_that_is_told_to_stop_does_so_at_once_and_nobody_misses_a_line(
    new_worker: WorkerFactory, row: Row, streams: int
) -> None:
    worker, account = new_worker(), Account()
    await worker.start()
    assert await terminated(worker) == 0, "idle"
    await worker.start()
    job_id = await worker.submit(WITHOUT_END, print_every(streams / 1000))
    await worker.wait(job_id, "running")
    container = await worker.container(job_id)
    async with many_following(worker, job_id, streams) as followers:
        for _ in range(2):
            await all_have_more(followers)
            assert await terminated(worker) == 0, "busy"
            assert await running(container)
            await worker.start()
        await all_have_more(followers)
        await docker("exec", container, "touch", "/workspace/enough")
        known = await printed(container)
        await let_go(worker, job_id)
    await account.take(worker, job_id, known)
    truth = await stored(worker, job_id)
    assert all(follower.records == truth for follower in followers)
    assert all(follower.connections >= 3 for follower in followers)
    assert account.reasons == {"passed": 1}
    await account.leftovers(worker)
    row(4, faults=3, **account.counts())


@pytest.fixture
async def lingering(tmp_path: Path, image: str) -> AsyncIterator[Worker]:
    """A worker that waits for its handlers as long as they take."""
    made = Tuned(tmp_path / "worker", {"default_image": image})
    made.constants = {"ciworker.app.SHUTDOWN_TIMEOUT": 600.0}
    async with started(made):
        yield made


@contextlib.asynccontextmanager
async def unfinished_submit(worker: Worker) -> AsyncIterator[None]:
    """Within the block a handler waits for the rest of its request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    fields = worker.headers | {
        "Host": f"127.0.0.1:{worker.port}", "Content-Length": "1000", "Expect": "100-continue",
        "Content-Type": "multipart/form-data; boundary=x",
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"POST /api/v1/jobs HTTP/1.1\r\n{head}\r\n".encode())
    try:
        assert b"100 Continue" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), DEADLINE)
        yield
    finally:
        writer.close()


@pytest.mark.rows(4)
async def test_a_worker_that_is_told_to_stop_twice_waits_for_nobody(
    lingering: Worker, row: Row
) -> None:
    worker, account = lingering, Account()
    job_id = await worker.submit(WITHOUT_END, print_every(0.02))
    await worker.wait(job_id, "running")
    container = await worker.container(job_id)
    async with following(worker, job_id) as follower, unfinished_submit(worker):
        await follower.has(20)
        process = worker.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        await until_logged(worker, "stopping: containers go on")
        assert await worker.stop(signal.SIGTERM) < STOP
        assert process.returncode == 1, "it did not wait for the request"
        assert await running(container)
        await worker.start()
        await follower.has(len(follower.records) + 20)
        await docker("exec", container, "touch", "/workspace/enough")
        known = await printed(container)
        await let_go(worker, job_id)
    await account.take(worker, job_id, known)
    assert follower.records == await stored(worker, job_id)
    await account.leftovers(worker)
    row(4, faults=2, **account.counts())


@contextlib.asynccontextmanager
async def frozen(worker: Worker, seconds: float) -> AsyncIterator[None]:
    """Within the block the worker stands still, and for so long at least."""
    assert worker.process is not None
    began = time.monotonic()
    worker.process.send_signal(signal.SIGSTOP)
    try:
        yield
        await asyncio.sleep(began + seconds - time.monotonic())
    finally:
        worker.process.send_signal(signal.SIGCONT)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.rows(5)
@pytest.mark.parametrize("seconds", [4, 60])
async def test_a_worker_that_stood_still_keeps_its_deadlines_and_loses_nothing(
    new_worker: WorkerFactory, row: Row, seconds: int
) -> None:
    worker, account = new_worker(max_jobs="4", stop_grace="1s"), Account()
    await worker.start()
    goes_on = await worker.submit(WITHOUT_END, print_every(0.02))
    ends = await worker.submit(f"{counting(50)}; {WAIT}; exit 3", timeout=f"{seconds + 600}s")
    for job_id in (goes_on, ends):
        await worker.wait(job_id, "running")
    container, ending = await worker.container(goes_on), await worker.container(ends)
    async with following(worker, goes_on) as follower:
        await follower.has(20)
        late = await worker.submit(f"{counting(50)}; sleep 600", timeout=f"{seconds}s")
        deadline = datetime.fromisoformat((await worker.wait(late, "running"))["deadline_at"])
        async with frozen(worker, seconds + 0.5):
            assert datetime.now(UTC) < deadline, "it is past while the worker stands still"
            await docker("exec", ending, "touch", "/workspace/go")
            assert await docker("wait", ending) == b"3\n"
        assert datetime.now(UTC) > deadline
        overdue = await worker.wait(late, within=20)
        assert overdue["reason"] == "timed_out"
        await follower.has(len(follower.records) + 20)
        await docker("exec", container, "touch", "/workspace/enough")
        known = await printed(container)
        await let_go(worker, goes_on)
    await account.take(worker, goes_on, known)
    await account.take(worker, ends, counted(50))
    await account.take(worker, late, counted(50))
    assert follower.records == await stored(worker, goes_on)
    assert account.reasons == {"passed": 1, "tests_failed": 1, "timed_out": 1}
    assert (await worker.run("true"))["reason"] == "passed"
    await account.leftovers(worker)
    row(5, faults=1, **account.counts())


class Shifted(Worker):
    """A worker whose clock can be set, while it runs; the monotonic one is the machine's."""

    def set_clock(self, seconds: int) -> None:
        """So far from the machine's, within a second."""
        staged = self.log.with_name("clock.new")
        staged.write_text(f"{seconds:+d}\n")
        staged.rename(self._clock)

    async def goes_by(self, seconds: int) -> None:
        """Wait until it is."""
        async with asyncio.timeout(DEADLINE):
            while abs(await self._ahead() - seconds) > 60:
                await asyncio.sleep(0.05)

    async def _ahead(self) -> float:
        async with self.session.get("/healthz") as answer:
            told = parsedate_to_datetime(answer.headers["Date"])
        return (told - datetime.now(UTC)).total_seconds()

    @property
    def _clock(self) -> Path:
        return self.log.with_name("clock")

    @property
    def environment(self) -> dict[str, str]:
        (library,) = Path("/usr/lib").glob(f"*/{LIBRARY}")
        return super().environment | {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # made for older C libraries; locks spin with it
        }


@pytest.fixture
async def shifted(tmp_path: Path, image: str) -> AsyncIterator[Shifted]:
    made = Shifted(
        tmp_path / "worker", {"default_image": image, "max_jobs": "4", "stop_grace": "1s"}
    )
    made.set_clock(0)
    await made.start()
    yield made
    await made.destroy()


async def begun(worker: Worker, run: str, timeout: str) -> str:
    job_id = await worker.submit(f"{counting(5)}; {run}", timeout=timeout)
    await worker.wait(job_id, "running", "completed")
    return job_id


@pytest.mark.chaos
@pytest.mark.rows(6)
@pytest.mark.parametrize("shift", [HOUR, -HOUR], ids=["forth", "back"])
async def test_deadlines_hold_whatever_the_clock_says_while_the_worker_runs(
    shifted: Shifted, row: Row, shift: int
) -> None:
    account = Account()
    first = await begun(shifted, WAIT, "10m")
    limited = await begun(shifted, "sleep 600", "3s")
    shifted.set_clock(shift)
    await shifted.goes_by(shift)
    later = await begun(shifted, WAIT, "10m")
    assert (await shifted.wait(limited, within=30))["reason"] == "timed_out"
    _, page = await shifted.call("GET", "/jobs")
    assert [job["id"] for job in page["items"]] == [later, limited, first]
    for job_id in (first, later):
        assert (await shifted.job(job_id))["status"] == "running"
        await let_go(shifted, job_id)
    for job_id in (first, limited, later):
        await account.take(shifted, job_id, counted(5))
    assert account.reasons == {"passed": 2, "timed_out": 1}
    await account.leftovers(shifted)
    row(6, faults=1, **account.counts())


@pytest.mark.chaos
@pytest.mark.rows(6)
@pytest.mark.parametrize("shift", [-HOUR, HOUR], ids=["back", "forth"])
async def test_over_a_restart_a_deadline_is_bounded_by_the_whole_timeout(
    shifted: Shifted, row: Row, shift: int
) -> None:
    account = Account()
    limited = await begun(shifted, "sleep 600", "3s")
    goes_on = await begun(shifted, WAIT, "2h")
    await shifted.kill()
    shifted.set_clock(shift)
    await shifted.start()
    await shifted.goes_by(shift)
    ended = await shifted.wait(limited, within=30)  # not in an hour
    assert ended["reason"] == "timed_out"
    assert (await shifted.job(goes_on))["status"] == "running"
    await let_go(shifted, goes_on)
    for job_id in (limited, goes_on):
        await account.take(shifted, job_id, counted(5))
    _, page = await shifted.call("GET", "/jobs")
    assert [job["id"] for job in page["items"]] == [goes_on, limited]
    newest = await shifted.run("true")
    _, page = await shifted.call("GET", "/jobs")
    assert page["items"][0]["id"] == newest["id"], "ids only grow"
    await account.leftovers(shifted)
    row(6, faults=2, **account.counts())

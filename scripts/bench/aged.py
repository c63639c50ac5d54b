"""S12, S13: what 100,000 finished and 10,000 queued jobs cost a worker, against one without any.

Both workers run at once on the same machine and take turns, so that what else it does hits both
alike. Each has a job that holds memory, for which the 10,000 wait; those that are measured ask for
less and come first. Times of states are the store's own, in microseconds; those of the engine are
its `die` events'. Beside that: reading a finished log of 1,000,000 lines, packed, against `cat`.
"""

import asyncio
import contextlib
import json
import random
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from ulid import ULID

from ciworker.domain.job import Spec
from ciworker.domain.log import Run, Stream, pack_runs
from ciworker.store.schema import microseconds
from ciworker.store.session import Database
from scripts.bench.rounds import Check, Ground, shown
from scripts.bench.worker import cpu
from tests.driver import Worker

GIB = 2**30
SPEC = Spec("old", "pytest", 900.0, 2 * GIB, 1.0, False, "tea", {})
LINES = 1_000_000
LINES_PER_CHUNK = 1400
PAGE = 200
IN_A_ROW = 200
LIST_LIMIT = 0.010  # seconds, the median
SLOWER = 1.2
OF_CAT = 0.4  # of its speed
COMPARED = ("list", "submit", "created -> starting", "die event -> end", "resync")
COUNTED = {"engine calls": "engine_call_seconds", "commits": "store_commit_seconds"}


@dataclass
class Side:
    """One worker. times: seconds, by what was measured. work: counts of a round, by what."""

    worker: Worker
    times: dict[str, list[float]] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.times.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.times[name])

    def cpu(self) -> float:
        """Seconds of CPU that the worker has used."""
        return cpu(self.worker)

    async def counts(self) -> dict[str, float]:
        """What it says that it did since its start."""
        worker = self.worker
        async with worker.session.get("/metrics", headers=worker.headers) as answer:
            text = await answer.text()
        samples = [
            (sample.name, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        return {
            what: sum(value for name, value in samples if name == f"ciworker_{metric}_count")
            for what, metric in COUNTED.items()
        }

    def ask(self, statement: str) -> list[tuple[int, ...]]:
        path = f"file:{self.worker.data_dir / 'ciworker.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True)) as connection:
            return connection.execute(statement).fetchall()


class Dies:
    """When the engine says that containers ended, by name; seconds since the epoch."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec(
            "docker", "events", "--filter", "event=die", "--format", "{{json .}}",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        reading = asyncio.create_task(self._read(process))
        try:
            yield
        finally:
            process.terminate()
            await process.wait()
            await reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            event = json.loads(line)
            self.at[event["Actor"]["Attributes"]["name"]] = event["timeNano"] / 1e9

    async def of(self, job: str) -> float:
        name = f"ci-{job.lower()}-1"
        async with asyncio.timeout(30):
            while name not in self.at:
                await asyncio.sleep(0.005)
        return self.at[name]


# an old store


async def make_old(worker: Worker, finished: int, queued: int) -> str:
    """Fill the store of a worker that has not run yet; the id of the job with the long log."""
    worker.data_dir.mkdir(parents=True, exist_ok=True)
    path = worker.data_dir / "ciworker.db"
    await (await Database.open(path)).close()
    now = datetime.now(UTC) - timedelta(days=7)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            insert(connection, "job", (job_row(n, now, finished) for n in range(finished + queued)))
            insert(connection, "job_event", events(finished, queued, now))
            insert(connection, "log_chunk", (chunk_row(n) for n in range(finished)))
            long_log(connection, job_id(finished - 1))
            connection.execute(
                "UPDATE job SET log_packed = 0 WHERE id = ?", (job_id(finished - 1),)
            )
    return job_id(finished - 1)


def insert(connection: sqlite3.Connection, table: str, rows: Iterator[dict[str, object]]) -> None:
    first = next(rows)
    names = ", ".join(first)
    places = ", ".join(f":{name}" for name in first)
    statement = f"INSERT INTO {table} ({names}) VALUES ({places})"
    connection.execute(statement, first)
    connection.executemany(statement, rows)


def job_id(number: int) -> str:
    return str(ULID.from_int((1 << 110) + number))


def job_row(number: int, now: datetime, finished: int) -> dict[str, object]:
    at = microseconds(now) + number * 1000
    over = number < finished
    return {
        "id": job_id(number), "status": "completed" if over else "queued",
        "reason": "passed" if over else None, "message": "passed" if over else None,
        "exit_code": 0 if over else None, "project": f"project-{number % 20}",
        "spec": json.dumps(asdict(SPEC)), "source": '{"kind": "upload", "files": 7, "bytes": 99}',
        "priority": 0, "memory": SPEC.memory, "attempt": int(over), "created_at": at,
        "started_at": at if over else None, "finished_at": at + 9 if over else None,
        "kills": "[]", "oom": 0, "log_complete": int(over), "log_incomplete": 0,
        "mark_token": "t", "tar_length": 0, "log_packed": int(over),
    }  # fmt: skip


def events(finished: int, queued: int, now: datetime) -> Iterator[dict[str, object]]:
    steps = (None, "queued", "starting", "running", "completed")
    for number in range(finished + queued):
        last = len(steps) if number < finished else 2
        for before, after in pairwise(steps[:last]):
            at = microseconds(now) + number * 1000
            yield {"job_id": job_id(number), "at": at, "from_status": before, "to_status": after}


def chunk_row(number: int) -> dict[str, object]:
    return stored_chunk(job_id(number), 1, b"14 passed in 0.31s\n" * 12, 12, 0)


def stored_chunk(job: str, first: int, data: bytes, lines: int, before: int) -> dict[str, object]:
    runs = pack_runs([Run(Stream.STDOUT, 1_700_000_000_000 + first, lines, len(data), True)])
    return {
        "job_id": job, "first": first, "count": lines, "attempt": 1,
        "total_bytes": before + len(data), "out_lines": first + lines - 1, "out_frames": 0,
        "err_lines": 0, "err_frames": 0, "runs": runs, "data": data,
    }  # fmt: skip


def long_log(connection: sqlite3.Connection, job: str) -> None:
    """Lines of 89 bytes, as a suite prints them, in place of the short log."""
    connection.execute("DELETE FROM log_chunk WHERE job_id = ?", (job,))
    chosen = random.Random(5)

    def chunks() -> Iterator[dict[str, object]]:
        total = 0
        for first in range(1, LINES + 1, LINES_PER_CHUNK):
            count = min(LINES_PER_CHUNK, LINES + 1 - first)
            data = b"".join(line(n, chosen.random()) for n in range(first, first + count))
            yield stored_chunk(job, first, data, count, total)
            total += len(data)

    insert(connection, "log_chunk", chunks())


def line(number: int, seconds: float) -> bytes:
    text = f"tests/test_module_{number % 97}.py::test_case_{number} PASSED in {seconds:.6f} s"
    return text.encode().ljust(88, b".") + b"\n"


# measuring


async def measure_jobs(sides: dict[str, Side], rounds: int) -> None:
    dies = Dies()
    before = {name: side.cpu() for name, side in sides.items()}
    done = {name: await side.counts() for name, side in sides.items()}
    async with dies.listening():
        for number in range(rounds + 2):  # the first two warm up
            for side in sides.values():
                await one_round(side, dies, counts=number >= 2)
    for name, side in sides.items():
        side.add("a round, CPU", (side.cpu() - before[name]) / (rounds + 2))
        for what, count in (await side.counts()).items():
            side.work[what] = (count - done[name][what]) / (rounds + 2)


async def one_round(side: Side, dies: Dies, *, counts: bool) -> None:
    worker, times = side.worker, dict[str, float]()
    began = time.perf_counter()
    status, page = await worker.call("GET", "/jobs?limit=50")
    times["list"] = time.perf_counter() - began
    assert status == 200, page
    began = time.perf_counter()
    job = await worker.submit("true", memory="256m", priority=9)
    times["submit"] = time.perf_counter() - began
    async with worker.events(f"/jobs/{job}/events") as frames:
        assert [frame async for frame in frames][-1].event == "end"
    ((created, starting, finished),) = side.ask(
        f"SELECT created_at, starting_at, finished_at FROM job WHERE id = '{job}'"
    )
    times["created -> starting"] = (starting - created) / 1e6
    times["die event -> end"] = finished / 1e6 - await dies.of(job)
    await gone(worker, job)
    began = time.perf_counter()
    status, report = await worker.call("POST", "/resync")
    times["resync"] = time.perf_counter() - began
    assert status == 200, report
    for name, seconds in times.items():
        if counts:
            side.add(name, seconds)


async def measure_cpu(side: Side) -> None:
    """What a list and a resync cost the server itself, whatever else the machine does."""
    for name, method, path in (("list", "GET", "/jobs?limit=50"), ("resync", "POST", "/resync")):
        cpu = side.cpu()
        for _ in range(IN_A_ROW):
            await side.worker.call(method, path)
        side.add(f"{name}, CPU", (side.cpu() - cpu) / IN_A_ROW)


async def gone(worker: Worker, job: str) -> None:
    async with asyncio.timeout(30):
        while any(job.lower() in name for name in await worker.containers()):
            await asyncio.sleep(0.01)


async def measure_log(side: Side, job: str, rounds: int) -> None:
    async with asyncio.timeout(120):
        while side.ask("SELECT count(*) FROM job WHERE finished_at > 0 AND log_packed = 0")[0][0]:
            await asyncio.sleep(0.2)
    ((plain,),) = side.ask(f"SELECT max(total_bytes) FROM log_chunk WHERE job_id = '{job}'")
    with tempfile.NamedTemporaryFile() as same:
        Path(same.name).write_bytes(await side.worker.text(job))
        for _ in range(rounds):
            side.add("cat", await asyncio.to_thread(through_a_socket, cat(same.name), plain))
            seconds = await asyncio.to_thread(through_a_socket, download(side.worker, job), plain)
            side.add("download", seconds)
    for _ in range(200):
        first = random.randint(1, LINES - PAGE)
        began = time.perf_counter()
        text = await side.worker.text(job, f"?from={first}&limit={PAGE}")
        side.add("page", time.perf_counter() - began)
        assert text.count(b"\n") == PAGE


def cat(file: str) -> Callable[[], socket.socket]:
    """Connects to a `cat` of the file."""

    def connect() -> socket.socket:
        server = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            accepted, _ = server.accept()
            with server, accepted:
                subprocess.run(["cat", file], stdout=accepted.fileno(), check=True)

        threading.Thread(target=serve, daemon=True).start()
        return socket.create_connection(server.getsockname())

    return connect


def download(worker: Worker, job: str) -> Callable[[], socket.socket]:
    """Connects to the worker and asks it for the log."""

    def connect() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", worker.port))
        connection.sendall(
            f"GET /api/v1/jobs/{job}/log HTTP/1.0\r\nHost: 127.0.0.1:{worker.port}\r\n"
            f"Authorization: Bearer {worker.token}\r\n\r\n".encode()
        )
        return connection

    return connect


def through_a_socket(connect: Callable[[], socket.socket], least: int) -> float:
    """Seconds until the other side has sent everything."""
    began, got, buffer = time.perf_counter(), 0, bytearray(2**20)
    with connect() as connection:
        while size := connection.recv_into(buffer):
            got += size
    assert got >= least, (got, least)
    return time.perf_counter() - began


# the whole


async def block(worker: Worker) -> None:
    """Hold so much memory that jobs of SPEC wait."""
    job = await worker.submit("sleep 3600", memory="1g", priority=9, timeout="2h")
    await worker.wait(job, "running")


@dataclass(frozen=True)
class Sizes:
    """Jobs in the aged store, and how often each side takes its turn."""

    finished: int
    queued: int
    rounds: int


async def compare(sizes: Sizes, image: str, folder: Path) -> dict[str, Side]:
    """What was measured of a worker with an `empty` store, and of one with an `aged` one."""
    settings = {
        "default_image": image, "max_jobs": "3", "max_memory": "2g",
        "job_memory": "256m", "max_job_memory": "2g", "resync_interval": "1h",
    }  # fmt: skip
    sides = {name: Side(Worker(folder / name, settings)) for name in ("empty", "aged")}
    try:
        await make_old(sides["aged"].worker, sizes.finished, sizes.queued)
        for side in sides.values():
            await start(side.worker)
        await measure_jobs(sides, sizes.rounds)
        for side in sides.values():
            await measure_cpu(side)
    finally:
        for side in sides.values():
            await side.worker.destroy()
    return sides


async def start(worker: Worker) -> None:
    await worker.start()
    await block(worker)


async def checks(ground: Ground) -> Sequence[Check]:
    """S12."""
    sizes = Sizes(finished=100_000, queued=10_000, rounds=ground.rounds)
    sides = await compare(sizes, ground.image, ground.folder)
    empty, aged = sides["empty"], sides["aged"]
    found = [
        Check("S12", f"{name}, beside an empty store", _ratios(aged, empty, name), SLOWER,
              note=_medians(aged, empty, name))
        for name in COMPARED
    ]  # fmt: skip
    return [*found, Check("S12", "a list of jobs", aged.times["list"], LIST_LIMIT, "ms")]


def _ratios(aged: Side, empty: Side, name: str) -> list[float]:
    return [a / b for a, b in zip(aged.times[name], empty.times[name], strict=True)]


def _medians(aged: Side, empty: Side, name: str) -> str:
    return f"aged {shown(aged.median(name), 'ms')}; empty {shown(empty.median(name), 'ms')}"


async def download_checks(ground: Ground) -> Sequence[Check]:
    """S13."""
    worker = Worker(ground.folder / "long", {"default_image": ground.image})
    side = Side(worker)
    try:
        long = await make_old(worker, finished=1, queued=0)
        await worker.start()
        await measure_log(side, long, ground.rounds)
    finally:
        await worker.destroy()
    speeds = [cat / got for cat, got in zip(side.times["cat"], side.times["download"], strict=True)]
    note = "; ".join(f"{name} {shown(side.median(name), 'ms')}" for name in ("download", "cat"))
    return [
        Check("S13", f"a log of {LINES:,} lines, beside cat", speeds, OF_CAT, least=True,
              note=note),
        Check("S13", f"a page of {PAGE} lines of it", side.times["page"], LIST_LIMIT, "ms"),
    ]  # fmt: skip

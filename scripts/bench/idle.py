"""A worker between two resyncs, with watchers but without jobs, asks nobody anything.

Counted from outside: at a proxy before the engine's socket, and by strace of the worker's process.
After the idle seconds one job runs under the same counters, which proves that they count.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp

from scripts.bench import interrupt
from scripts.bench.process import cpu_nanoseconds
from tests.driver import Worker

SETTLE = 5.0  # seconds after the job: its container is removed, keys are worked off
ATTACH_TIMEOUT = 10.0
EXAMPLES = 10  # calls that are shown in full
REQUEST = re.compile(rb"^(?:GET|POST|PUT|DELETE|HEAD) [^ ]+ HTTP/1\.1\r$", re.MULTILINE)
TALK = ("connect", "read", "recv", "write", "send")  # not the closing of a connection kept idle
SYSCALL = re.compile(r"^\d+ +(?P<at>\d+\.\d+) (?P<name>\w+)\((?P<rest>.*)")


@dataclass
class Traffic:
    """What passed on one connection to the engine since the last reset."""

    requests: int = 0
    to_engine: int = 0  # bytes
    from_engine: int = 0


@dataclass
class Proxy:
    """Stands before the engine's socket and counts."""

    path: Path
    engine: str
    connections: list[Traffic] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self._connected, str(self.path))
        try:
            yield
        finally:
            server.close()

    def reset(self) -> None:
        """Count from nothing; connections that are open stay in the list."""
        for number, _ in enumerate(self.connections):
            traffic = self.connections[number]
            traffic.requests = traffic.to_engine = traffic.from_engine = 0

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        traffic = Traffic()
        self.connections.append(traffic)
        engine_reader, engine_writer = await asyncio.open_unix_connection(self.engine)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(
                self._pass(reader, engine_writer, traffic, to_engine=True),
                self._pass(engine_reader, writer, traffic, to_engine=False),
            )

    async def _pass(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        traffic: Traffic,
        *,
        to_engine: bool,
    ) -> None:
        while data := await source.read(2**16):
            if to_engine:
                traffic.to_engine += len(data)
                traffic.requests += len(REQUEST.findall(data))
            else:
                traffic.from_engine += len(data)
            target.write(data)
            await target.drain()
        target.close()


class Trace:
    """All system calls of a process, written down by strace with the wall clock."""

    def __init__(self, file: Path, process: asyncio.subprocess.Process) -> None:
        self._file = file
        self._process = process

    @classmethod
    async def attach(cls, pid: int, file: Path) -> "Trace":
        words = ["-f", "-yy", "-ttt", "-s", "0", "-o", str(file), "-p", str(pid)]
        process = await asyncio.create_subprocess_exec(
            "strace", *words, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT):
                told = await process.stderr.readline()
        except TimeoutError:
            told = b""
        if b"attached" not in told:
            sys.exit(f"idle: strace cannot look at process {pid}: {told.decode().strip()}")
        return cls(file, process)

    async def detach(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        await self._process.communicate()

    def between(self, began: float, ended: float) -> list[str]:
        """`name(arguments)` of each call that began in between."""
        calls = (SYSCALL.match(line) for line in self._file.read_text().splitlines())
        return [
            f"{call['name']}({call['rest']}"
            for call in calls
            if call and began <= float(call["at"]) < ended
        ]


@dataclass(frozen=True)
class Counts:
    """What a stretch of time saw. store, engine: system calls on their files and sockets."""

    seconds: float
    requests: int
    bytes_to_engine: int
    bytes_from_engine: int
    connections: Sequence[Traffic]
    store: int
    fsyncs: int
    engine: int
    others: int
    examples: Sequence[str]
    cpu_seconds: float

    @property
    def silent(self) -> bool:
        asked = (self.requests, self.bytes_to_engine, self.bytes_from_engine)
        return not any((*asked, self.store, self.fsyncs, self.engine))


@dataclass(frozen=True)
class Counters:
    """Everything that counts, over one worker."""

    pid: int
    database: Path
    proxy: Proxy
    trace: Trace

    @contextlib.asynccontextmanager
    async def counting(self, into: list[Counts]) -> AsyncIterator[None]:
        """Append what happens within the block to `into`."""
        self.proxy.reset()
        began, cpu = time.time(), cpu_nanoseconds(self.pid)
        yield
        ended, used = time.time(), (cpu_nanoseconds(self.pid) - cpu) / 1e9
        passed = [Traffic(**asdict(traffic)) for traffic in self.proxy.connections]
        await asyncio.sleep(0.1)  # strace's own writing
        into.append(self._counts(self.trace.between(began, ended), passed, ended - began, used))

    def _counts(
        self, calls: Iterable[str], passed: Sequence[Traffic], seconds: float, cpu: float
    ) -> Counts:
        about = [(self._about(call), call) for call in calls]
        of = Counter(kind for kind, _ in about)
        return Counts(
            seconds=seconds,
            requests=sum(traffic.requests for traffic in passed),
            bytes_to_engine=sum(traffic.to_engine for traffic in passed),
            bytes_from_engine=sum(traffic.from_engine for traffic in passed),
            connections=passed,
            store=of["store"],
            fsyncs=of["fsync"],
            engine=of["engine"],
            others=of["other"],
            examples=[call for kind, call in about if kind != "other"][:EXAMPLES],
            cpu_seconds=cpu,
        )

    def _about(self, call: str) -> str:
        if call.startswith(("fsync(", "fdatasync(", "sync_file_range(")):
            return "fsync"
        if str(self.database) in call:
            return "store"
        # A connected client's socket shows no path; the worker has no others to talk on.
        unix = "UNIX-STREAM" in call or "AF_UNIX" in call
        return "engine" if unix and call.startswith(TALK) else "other"


@contextlib.asynccontextmanager
async def watchers(worker: Worker) -> AsyncIterator[list[bytes]]:
    """A client of `/events`, and one whose connection is open and does nothing; what came."""
    came: list[bytes] = []

    async def read(content: aiohttp.StreamReader) -> None:
        async for data in content.iter_any():
            came.append(data)  # noqa: PERF401 # it never ends

    async with (
        aiohttp.ClientSession(worker.url, headers=worker.headers) as session,
        aiohttp.ClientSession(worker.url) as quiet,
        session.get(
            "/api/v1/events", timeout=aiohttp.ClientTimeout(total=None, sock_read=None)
        ) as answer,
        quiet.get("/healthz") as healthy,
        asyncio.TaskGroup() as tasks,
    ):
        await healthy.read()
        reader = tasks.create_task(read(answer.content))
        yield came
        reader.cancel()


async def measure(seconds: float, image: str) -> tuple[Counts, Counts, int]:
    """What the idle seconds saw, what one job saw, and how many comments a client got."""
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        sys.exit(f"idle: the engine at {host} has no socket on this machine to stand before")
    with tempfile.TemporaryDirectory(prefix="ciworker-idle-") as name:
        folder = Path(name)
        proxy = Proxy(folder / "engine.sock", host.removeprefix("unix://"))
        settings = {
            "default_image": image,
            "docker_host": f"unix://{proxy.path}",
            "resync_interval": "10m",
        }
        worker = Worker(folder / "worker", settings)
        async with proxy.serving():
            try:
                return await _measure(worker, proxy, seconds)
            finally:
                await worker.destroy()


async def _measure(worker: Worker, proxy: Proxy, seconds: float) -> tuple[Counts, Counts, int]:
    await worker.start()
    await worker.run("echo one job before")
    await worker.nothing_left()
    assert worker.process is not None
    pid = worker.process.pid
    trace = await Trace.attach(pid, worker.log.with_name("strace"))
    counters = Counters(pid, worker.data_dir / "ciworker.db", proxy, trace)
    found: list[Counts] = []
    try:
        async with watchers(worker) as came:
            await asyncio.sleep(SETTLE)
            came.clear()
            async with counters.counting(found):
                await asyncio.sleep(seconds)
            comments = b"".join(came).count(b":\n\n")
            async with counters.counting(found):
                await worker.run("echo one job after")
                await worker.nothing_left()
    finally:
        await trace.detach()
    return found[0], found[1], comments


def report(idle: Counts, busy: Counts, comments: int) -> str:
    names = {
        "requests": "requests to the engine",
        "bytes_to_engine": "bytes to the engine",
        "bytes_from_engine": "bytes from the engine",
        "engine": "system calls on its sockets",
        "store": "system calls on the database",
        "fsyncs": "fsyncs",
        "others": "other system calls",
    }
    lines = [f"{'':<32}{f'{idle.seconds:.0f} s idle':>12}{'one job':>12}"]
    lines += [
        f"{label:<32}{getattr(idle, name):>12}{getattr(busy, name):>12}"
        for name, label in names.items()
    ]
    lines.append(
        f"{'CPU, ms (traced)':<32}{idle.cpu_seconds * 1000:>12.1f}{busy.cpu_seconds * 1000:>12.1f}"
    )
    for number, traffic in enumerate(idle.connections):
        if any(asdict(traffic).values()):
            lines.append(f"connection {number}: {traffic}")
    share = 100 * idle.cpu_seconds / idle.seconds
    lines += idle.examples
    lines += ["", f"CPU while idle: {share:.3f} % of a core, {comments} comments to the SSE client"]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to look (60)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("idle: strace is missing: install it, then try again")
    image = os.environ["CI_TEST_IMAGE"]
    idle, busy, comments = interrupt.run(measure(options.seconds, image))
    counted = bool(busy.requests and busy.engine and busy.store and busy.fsyncs)
    if options.json:
        document = {"idle": asdict(idle), "one_job": asdict(busy), "comments": comments}
        print(json.dumps({**document, "silent": idle.silent, "counted": counted}, indent=2))
    else:
        print(report(idle, busy, comments))
        print("PASS  nothing was asked" if idle.silent else "MISS  something was asked")
        if not counted:
            print("MISS  the counters did not see the job either")
    sys.exit(0 if idle.silent and counted else 1)


if __name__ == "__main__":
    main()

"""Rows 18, 27, 28, 29: clients that lose replies, come by the thousand, stall, die, and storm."""

import asyncio
import contextlib
import hashlib
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tests.chaos.account import Account, all_jobs, counted, counting
from tests.chaos.conftest import Row
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker
from tests.e2e.conftest import Tuned, running
from tests.e2e.follower import WAIT, let_go, stored
from tests.e2e.raw import ask
from tests.e2e.test_events import FLOOD, LINE, SPELL
from tests.e2e.test_limits import MIB, resident, watched

# a reply that is lost


class LosingReplies:
    """A proxy before the worker that passes `POST /jobs` on, and closes instead of answering.

    lost: how many of them; as many as `faults`.
    """

    def __init__(self, worker: Worker, faults: int) -> None:
        self._worker, self._faults = worker, faults
        self.lost = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # the client looks whether TLS is spoken here
            writer.close()
            return
        upstream = await asyncio.open_connection("127.0.0.1", self._worker.port)
        requests = asyncio.create_task(passed_on(head, reader, upstream[1], self._worker.port))
        answer = await upstream[0].read(2**16)
        if head.startswith(b"POST /api/v1/jobs ") and self.lost < self._faults:
            assert answer.startswith((b"HTTP/1.1 201", b"HTTP/1.1 200")), answer
            self.lost += 1
        else:
            while answer:
                writer.write(answer)
                answer = await upstream[0].read(2**16)
        requests.cancel()
        for each in (writer, upstream[1]):
            each.close()


async def passed_on(
    head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
) -> None:
    """One request a connection, so that its answer has an end."""
    lines = [
        line for line in head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        if not line.lower().startswith((b"host:", b"connection:"))
    ]  # fmt: skip
    more = [b"Host: 127.0.0.1:%d" % port, b"Connection: close"]
    writer.write(b"\r\n".join([lines[0], *more, *lines[1:]]) + b"\r\n\r\n")
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def losing_replies(worker: Worker, faults: int) -> AsyncIterator[LosingReplies]:
    made = LosingReplies(worker, faults)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    async with server:
        made.port = server.sockets[0].getsockname()[1]
        yield made


@pytest.mark.rows(18)
@pytest.mark.parametrize("submits", [1, pytest.param(20, marks=pytest.mark.chaos)])
async def test_a_submit_whose_reply_is_lost_is_one_job(
    worker: Worker, tmp_path: Path, row: Row, submits: int
) -> None:
    account, faults = Account(), 0
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "x").write_text("x")
    for number in range(1, submits + 1):
        async with losing_replies(worker, faults=1) as between:
            env = worker.client_environment
            env |= {"CICLIENT_SERVER": f"http://127.0.0.1:{between.port}"}
            submit = await asyncio.create_subprocess_exec(
                Path(sys.executable).parent / "ciclient", "submit", "--detach", "tree", "--",
                "sh", "-c", counting(5), cwd=tmp_path,
                env=env | {"CICLIENT_TOKEN": worker.token}, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            out, _ = await asyncio.wait_for(submit.communicate(), DEADLINE)
            assert (submit.returncode, between.lost) == (0, 1)
        faults += between.lost
        jobs = await all_jobs(worker)
        assert (len(jobs), jobs[0]["id"]) == (number, out.decode().strip())
    for job in await all_jobs(worker):
        await account.take(worker, job["id"], counted(5))
    await account.leftovers(worker)
    row(18, faults=faults, **account.counts())


# watchers


@dataclass
class Seen:
    """What a subscriber has, over all its connections. digest: of its lines as they came.

    last: the id to come back with. ended: it saw the job's end.
    """

    lines: int = 0
    last: str = ""
    ended: bool = False
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def take(self, frame: bytes) -> None:
        """One event, without the empty line behind it."""
        if not frame.startswith(b"event: log\n"):
            self.ended = self.ended or frame.startswith(b"event: end\n")
            return
        *data, number = frame.split(b"\n")[1:]
        for line in data:
            self.digest.update(line.removeprefix(b"data: ") + b"\n")
        self.lines += len(data)
        self.last = number.removeprefix(b"id: ").decode()


@dataclass
class Watcher:
    """A raw subscriber's connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    seen: Seen

    async def frames(self, most: int | None = None) -> None:
        """Take all until the stream closes, or so many."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while most is None or (most := most - 1) >= 0:
                self.seen.take((await self.reader.readuntil(b"\n\n"))[:-2])

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """Close it as a machine does that lost its power."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.close()


async def watching(
    worker: Worker, job_id: str, seen: Seen | None = None, buffer: int | None = None
) -> Watcher:
    """Connected, after what was seen, with the head of the answer read.

    buffer: bytes that its socket takes.
    """
    seen, sock = seen or Seen(), socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", worker.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**20)
    fields = worker.headers | {"Host": f"127.0.0.1:{worker.port}"}
    fields |= {"Last-Event-ID": seen.last} if seen.last else {}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    path = f"/api/v1/jobs/{job_id}/events"
    writer.write(f"GET {path} HTTP/1.0\r\n{head}\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    assert b" 200 " in answer.partition(b"\r\n")[0], answer
    return Watcher(reader, writer, seen)


async def digest_of(worker: Worker, job_id: str, after: int = 0) -> str:
    """Of the stored lines, as a watcher of them all has it."""
    headers = worker.headers | {"Accept": "application/x-ndjson"}
    path = f"/api/v1/jobs/{job_id}/log?from={after + 1}"
    async with worker.session.get(path, headers=headers) as answer:
        return hashlib.sha256(await answer.read()).hexdigest()


@pytest.mark.rows(27)
@pytest.mark.parametrize(
    ("clients", "lines"),
    [(50, 2000), pytest.param(1000, 5000, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])],
)
async def test_every_one_of_many_watchers_of_a_flood_has_it_whole(
    worker: Worker, row: Row, clients: int, lines: int
) -> None:
    account = Account()
    job_id = await worker.submit(f"{WAIT}; seq {lines}")
    await worker.wait(job_id, "running")
    watchers = [await watching(worker, job_id) for _ in range(clients)]
    try:
        async with watched(worker) as samples, asyncio.timeout(300):
            reading = [asyncio.create_task(watcher.frames()) for watcher in watchers]
            await let_go(worker, job_id)
            await asyncio.gather(*reading)
    finally:
        for watcher in watchers:
            watcher.close()
    assert max(samples) - samples[0] < 40 * MIB + clients * 2**17
    known = {"stdout": [str(n) for n in range(1, lines + 1)], "stderr": []}
    await account.take(worker, job_id, known)
    wanted = await digest_of(worker, job_id)
    for watcher in watchers:
        assert (watcher.seen.lines, watcher.seen.ended) == (lines, True)
        assert watcher.seen.digest.hexdigest() == wanted
    account.lines += clients * lines
    await account.leftovers(worker)
    row(27, faults=clients, **account.counts())


@contextlib.contextmanager
def unreachable(port: int) -> Iterator[None]:
    """What is sent to this port of this machine is dropped: its program is as good as dead."""
    rule = ["INPUT", "-i", "lo", "-p", "tcp", "--dport", str(port), "-j", "DROP"]
    subprocess.run(["iptables", "-w", "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-w", "-D", *rule], check=True)


def connected(worker: Worker, port: int) -> bool:
    """Whether the worker holds a connection to this port of a client's."""
    assert worker.process is not None
    table = Path(f"/proc/{worker.process.pid}/net/tcp").read_text()
    rows = [line.split() for line in table.splitlines()[1:]]
    ours, theirs = f":{worker.port:04X}", f":{port:04X}"
    return any(r[1].endswith(ours) and r[2].endswith(theirs) and r[3] == "01" for r in rows)


async def let_go_of(worker: Worker, port: int) -> None:
    async with asyncio.timeout(120):
        while connected(worker, port):
            await asyncio.sleep(0.05)


def port_of(watcher: Watcher) -> int:
    name: tuple[str, int] = watcher.writer.get_extra_info("sockname")
    return name[1]


@pytest.fixture(params=["hasty", "as it is"])
async def patient(
    request: pytest.FixtureRequest, tmp_path: Path, image: str
) -> AsyncIterator[Worker]:
    """A worker that waits for its readers as long as it does, or less."""
    made = Tuned(tmp_path / "worker", {"default_image": image})
    if request.param == "hasty":
        made.constants = {
            "ciworker.web.sse.COMMENT_INTERVAL": 0.2,
            "ciworker.web.streaming.WRITE_TIMEOUT": 1.0,
            "ciworker.web.listening.DEAD_PEER": 1.0,
        }
    async with running(made):
        yield made


@pytest.mark.chaos
@pytest.mark.rows(28)
@pytest.mark.timeout(400)
async def test_a_dead_peer_is_let_go_and_a_slow_reader_slows_nobody_and_resumes_exactly(
    patient: Worker, row: Row
) -> None:
    worker, account = patient, Account()
    flooding = await worker.submit(f"seq 9; {WAIT}; {SPELL} {FLOOD}; seq 9")
    quiet = await worker.submit(f"{counting(5)}; {WAIT}")
    for job_id in (flooding, quiet):
        await worker.wait(job_id, "running")
    await worker.wait_for_text(flooding, b"9\n")
    await worker.wait_for_text(quiet, b"err 5\n")
    slow = await watching(worker, flooding, buffer=1024)
    deaf, dead = await watching(worker, flooding), await watching(worker, flooding)
    silent = await watching(worker, quiet)
    for watcher in (deaf, dead, slow):
        while watcher.seen.lines < 9:
            await watcher.frames(1)
    crawling = asyncio.create_task(crawl(slow))
    with unreachable(port_of(dead)), unreachable(port_of(silent)):
        await let_go(worker, flooding)
        quick = await watching(worker, flooding)
        await quick.frames()
        assert (quick.seen.lines, quick.seen.ended) == (FLOOD + 18, True)
        for watcher in (dead, deaf, silent):
            await let_go_of(worker, port_of(watcher))
    crawling.cancel()
    await let_go(worker, quiet)
    await account.take(worker, quiet, counted(5))
    nine = [str(n) for n in range(1, 10)]
    known = [*nine, *(LINE.format(n) for n in range(1, FLOOD + 1)), *nine]
    await account.take(worker, flooding, {"stdout": known, "stderr": []})
    wanted = await digest_of(worker, flooding)
    for watcher in (slow, deaf, dead):
        again = await watching(worker, flooding, watcher.seen)
        await again.frames()
        again.close()
    for watcher in (quick, slow, deaf, dead):
        assert (watcher.seen.lines, watcher.seen.ended) == (FLOOD + 18, True)
        assert watcher.seen.digest.hexdigest() == wanted
        account.lines += watcher.seen.lines
    for watcher in (quick, slow, deaf, dead, silent):
        watcher.close()
    await account.leftovers(worker)
    row(28, faults=4, **account.counts())


async def crawl(watcher: Watcher) -> None:
    """Take one frame at a time, and rest."""
    while not watcher.reader.at_eof():
        await watcher.frames(1)
        await asyncio.sleep(0.1)


@pytest.mark.chaos
@pytest.mark.rows(28)
async def test_a_reader_that_is_frozen_in_its_process_slows_nobody_and_resumes(
    worker: Worker, row: Row
) -> None:
    account = Account()
    job_id = await worker.submit(f"seq 9; {WAIT}; {SPELL} {FLOOD}")
    await worker.wait_for_text(job_id, b"9\n")
    client = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "ciclient", "follow", job_id, limit=2**26,
        env=worker.client_environment, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert client.stdout is not None
    shown = await asyncio.wait_for(client.stdout.readuntil(b"\n9\n"), DEADLINE)
    client.send_signal(signal.SIGSTOP)
    quick = await watching(worker, job_id)
    await let_go(worker, job_id)
    await asyncio.wait_for(quick.frames(), DEADLINE)
    quick.close()
    assert (quick.seen.lines, quick.seen.ended) == (FLOOD + 9, True)
    client.send_signal(signal.SIGCONT)
    out, _ = await asyncio.wait_for(client.communicate(), DEADLINE)
    assert client.returncode == 0
    known = [*(str(n) for n in range(1, 10)), *(LINE.format(n) for n in range(1, FLOOD + 1))]
    lines = (shown + out).decode().splitlines()
    assert [line for line in lines if line.startswith("line ") or line.isdigit()] == known
    await account.take(worker, job_id, {"stdout": known, "stderr": []})
    account.lines += len(known)
    await account.leftovers(worker)
    row(28, faults=1, **account.counts())


# resuming


GARBAGE = ("-1", "x", "1.0", "0x1", "1 2", "END", "٣", "1" * 400, "\\0", "1;2", "+1")


@pytest.mark.rows(29)
async def test_a_last_event_id_is_an_exact_place_or_no_request(worker: Worker, row: Row) -> None:
    account, faults, lines = Account(), 0, 40
    job_id = (await worker.run(f"seq {lines}"))["id"]
    records = await stored(worker, job_id)
    for last in range(lines + 1):
        resumed = await watching(worker, job_id, Seen(last=str(last)))
        await resumed.frames()
        resumed.close()
        assert (resumed.seen.lines, resumed.seen.ended) == (lines - last, True)
        assert resumed.seen.digest.hexdigest() == await digest_of(worker, job_id, last)
        faults += 1
    for text in (str(lines + 1), str(10**14), *GARBAGE):
        headers = worker.headers | {"Last-Event-ID": text.encode()}
        answer = await ask(worker, "GET", f"/api/v1/jobs/{job_id}/events", headers)
        assert (answer.status, "Last-Event-ID" in answer.problem) == (400, True), text
        faults += 1
    assert await stored(worker, job_id) == records
    await account.take(
        worker, job_id, {"stdout": [str(n) for n in range(1, lines + 1)], "stderr": []}
    )
    await account.leftovers(worker)
    row(29, faults=faults, **account.counts())


class Stormer:
    """Comes back at once however often it breaks off: politely, or by a reset."""

    def __init__(self, worker: Worker, job_id: str, seed: int) -> None:
        self._worker, self._job_id, self._random = worker, job_id, Random(seed)
        self.seen = Seen()
        self.connections = 0

    async def run(self) -> None:
        while not self.seen.ended:
            watcher = await watching(self._worker, self._job_id, self.seen)
            self.connections += 1
            await watcher.frames(self._random.randint(1, 4))
            self._random.choice((watcher.close, watcher.reset))()


def descriptors(worker: Worker) -> int:
    """Open ones but those of the database, whose readers are opened as they are needed."""
    assert worker.process is not None
    found = Path(f"/proc/{worker.process.pid}/fd").iterdir()
    return sum("ciworker.db" not in str(path.readlink()) for path in found)


@pytest.mark.rows(29)
@pytest.mark.parametrize(
    ("clients", "lines"),
    [(5, 50), pytest.param(100, 600, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])],
)
async def test_a_storm_of_reconnects_loses_nothing_and_leaves_nothing(
    new_worker: WorkerFactory, row: Row, clients: int, lines: int
) -> None:
    worker, account = new_worker(), Account()
    await worker.start()
    await worker.run("true")
    before, memory = descriptors(worker), resident(worker)
    printing = f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo out $i; sleep 0.02; done"
    job_id = await worker.submit(printing)
    storm = [Stormer(worker, job_id, seed) for seed in range(clients)]
    await asyncio.gather(*(stormer.run() for stormer in storm))
    known: Sequence[str] = [f"out {n}" for n in range(1, lines + 1)]
    await account.take(worker, job_id, {"stdout": list(known), "stderr": []})
    wanted = await digest_of(worker, job_id)
    for stormer in storm:
        assert (stormer.seen.lines, stormer.seen.digest.hexdigest()) == (lines, wanted)
        account.lines += lines
    connections = sum(stormer.connections for stormer in storm)
    assert connections > clients * 5
    await worker.nothing_left()
    async with asyncio.timeout(DEADLINE):
        while descriptors(worker) > before + 3:
            await asyncio.sleep(0.05)
    assert resident(worker) - memory < 40 * MIB
    await account.leftovers(worker)
    row(29, faults=connections, **account.counts())

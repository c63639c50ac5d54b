"""Many readers of one stream, in processes of their own, so that they are not what is measured.

A process holds its share of the sockets in one epoll and asks of what it receives only how many
lines it holds: each record of a line has LINE once, and nothing else does. Where a line's text also
tells when it was written, behind STAMP, the oldest line of what one call received tells the age of
all in it:
ages are rather told too high than too low.
"""

import asyncio
import json
import resource
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from scripts.bench.rounds import Broken

LINE = b'{"n":'
KEPT = len(LINE) - 1  # bytes at the end of what was received, where one may have been cut
STAMP = b"~"
STAMP_SIZE = len("1700000000.000000")
BUFFER = 2**18
PATIENCE = 180.0
PROCESSES = 2


@dataclass(frozen=True)
class Wanted:
    """lines: what each reader waits for. timed: STAMP is followed by the time of writing.

    source: the address to connect from; a port of an address can be used again only a minute later.
    """

    port: int
    path: str
    token: str
    readers: int
    lines: int
    timed: bool = False
    source: str = "127.0.0.1"


class Readers:
    """Readers that are connected and wait for lines."""

    def __init__(self, processes: Sequence[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    @classmethod
    async def connected(cls, wanted: Wanted) -> Self:
        """Once each of them has its answer's head."""
        shares = [
            wanted.readers // PROCESSES + (n < wanted.readers % PROCESSES) for n in range(PROCESSES)
        ]
        found = cls([await _spawned(wanted, share) for share in shares if share])
        try:
            for process in found._processes:
                await found._told(process)
        except BaseException:
            await found.close()
            raise
        return found

    async def done(self) -> list[float]:
        """Once each has all its lines: the ages of lines, where they are timed.

        Raises:
            Broken: a stream ended, or said nothing for too long, before that.
        """
        ages: list[float] = []
        for process in self._processes:
            ages += json.loads(await self._told(process))
        return ages

    async def close(self) -> None:
        for process in self._processes:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _told(self, process: asyncio.subprocess.Process) -> bytes:
        assert process.stdout is not None
        told = await process.stdout.readline()
        if not told.endswith(b"\n"):
            raise Broken("readers did not get what they wait for: see what they wrote above")
        return told


async def _spawned(wanted: Wanted, readers: int) -> asyncio.subprocess.Process:
    words = json.dumps({**asdict(wanted), "readers": readers})
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.bench.readers", words,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=2**27,
    )  # fmt: skip


# in the process of their own


def main() -> None:
    wanted = Wanted(**json.loads(sys.argv[1]))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    poll = select.epoll()
    sockets = dict[int, socket.socket]()
    for _ in range(wanted.readers):
        connection = _connect(wanted)
        sockets[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
    print("connected", flush=True)
    print(json.dumps(_read(wanted, poll, sockets)), flush=True)


def _connect(wanted: Wanted) -> socket.socket:
    connection = socket.create_connection(
        ("127.0.0.1", wanted.port), timeout=PATIENCE, source_address=(wanted.source, 0)
    )
    connection.sendall(
        f"GET {wanted.path} HTTP/1.1\r\nHost: 127.0.0.1:{wanted.port}\r\n"
        f"Accept: text/event-stream\r\nAuthorization: Bearer {wanted.token}\r\n\r\n".encode()
    )
    head = connection.recv(13)
    if not head.startswith(b"HTTP/1.1 200"):
        sys.exit(f"readers: the server answered {head + connection.recv(500)!r}")
    return connection


def _read(wanted: Wanted, poll: select.epoll, sockets: dict[int, socket.socket]) -> Sequence[float]:
    """Until each socket has all its lines: their ages."""
    left = dict.fromkeys(sockets, wanted.lines)
    ends = dict.fromkeys(sockets, b"")
    buffer, ages = bytearray(BUFFER), list[float]()
    view = memoryview(buffer)
    while left:
        ready = poll.poll(PATIENCE)
        if not ready:
            sys.exit(f"readers: {len(left)} readers heard nothing for {PATIENCE:.0f} s")
        for fd, _ in ready:
            kept = len(ends[fd])
            view[:kept] = ends[fd]
            size = kept + sockets[fd].recv_into(view[kept:])
            at, lines = time.time(), buffer.count(LINE, 0, size)
            if lines and wanted.timed:
                ages += _ages(buffer, size, lines, at)
            left[fd] -= lines
            ends[fd] = bytes(view[max(0, size - KEPT) : size])
            if left[fd] <= 0 or size == kept:
                _finished(left.pop(fd))
                poll.unregister(fd)
    return ages


def _ages(buffer: bytearray, size: int, lines: int, at: float) -> list[float]:
    """Of so many lines, by the first of them; none where its time was cut."""
    start = buffer.find(STAMP, buffer.find(LINE, 0, size), size) + 1
    if not start or start + STAMP_SIZE > size:
        return []
    return [at - float(buffer[start : start + STAMP_SIZE])] * lines


def _finished(left: int) -> None:
    if left:
        sys.exit(f"readers: a stream ended with {left} lines missing (below 0: too many)")


if __name__ == "__main__":
    main()

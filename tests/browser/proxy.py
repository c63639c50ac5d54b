"""A proxy between browser and worker: connections are cut, or answered with a refusal."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PIECE = 2**16
PATIENCE = 30.0
REFUSAL = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

_FOLLOW = re.compile(r"follow=(\w+)\.")


@dataclass(eq=False)
class Connection:
    """One of the browser's. target: the path that it asked for last."""

    writer: asyncio.StreamWriter
    target: str = ""


@dataclass
class Proxy:
    """refusing: answer everything with `refusal`. asked: targets of all requests so far."""

    port: int
    upstream: int
    refusing: bool = False
    refusal: bytes = REFUSAL
    asked: list[str] = field(default_factory=list)
    connections: set[Connection] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def streams(self) -> int:
        """How many event streams are open."""
        return len(self._followed())

    async def has_streams(self, count: int) -> None:
        """Wait until so many are."""
        async with asyncio.timeout(PATIENCE):
            while self.streams() != count:
                await asyncio.sleep(0.02)

    async def follows(self, *jobs: str) -> None:
        """Wait until the one event stream that is open follows these jobs."""
        async with asyncio.timeout(PATIENCE):
            while [set(found) for found in self._followed()] != [set(jobs)]:
                await asyncio.sleep(0.02)

    def _followed(self) -> list[list[str]]:
        """The jobs of each event stream that is open."""
        targets = [connection.target for connection in self.connections]
        return [_FOLLOW.findall(target) for target in targets if "/events" in target]

    def cut(self) -> int:
        """Break every connection off: how many there were."""
        found = list(self.connections)
        for connection in found:
            connection.writer.transport.abort()
        return len(found)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(writer)
        self.connections.add(connection)
        try:
            with contextlib.suppress(OSError, EOFError):
                await self._pass_on(connection, reader)
        finally:
            self.connections.discard(connection)
            writer.close()

    async def _pass_on(self, connection: Connection, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self._note(connection, head)
        if self.refusing:
            connection.writer.write(self.refusal)
            await connection.writer.drain()
            return
        from_worker, to_worker = await asyncio.open_connection("127.0.0.1", self.upstream)
        to_worker.write(head)
        answers = asyncio.create_task(self._answers(from_worker, connection.writer))
        try:
            while data := await reader.read(PIECE):
                self._note(connection, data)
                to_worker.write(data)
                await to_worker.drain()
        finally:
            answers.cancel()
            to_worker.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                writer.write(data)
                await writer.drain()
        writer.close()

    def _note(self, connection: Connection, data: bytes) -> None:
        """Requests come one at a time, and each begins a piece."""
        words = data.split(b"\r\n", 1)[0].split(b" ")
        if len(words) == 3 and words[2].startswith(b"HTTP/"):
            connection.target = words[1].decode()
            self.asked.append(connection.target)


@asynccontextmanager
async def proxy(port: int, upstream: int) -> AsyncIterator[Proxy]:
    """A proxy that is open on `port`."""
    made = Proxy(port, upstream)
    server = await asyncio.start_server(made.serve, "127.0.0.1", port)
    try:
        yield made
    finally:
        server.close()
        made.cut()

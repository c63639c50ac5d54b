"""A proxy before the engine's socket: counts requests, cuts the event stream, holds calls up.

It parses what the client sends, so that it knows each request of a kept connection; answers, and
everything after an upgrade, go through as raw bytes.
"""

import asyncio
import contextlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

ENGINE = "/var/run/docker.sock"
PIECE = 2**16
FAILURE = "proxy says no"

Gate = Callable[[], Awaitable[None]]

_VERSION = re.compile(r"^/v[\d.]+")
_ID = re.compile(r"^/containers/(?!json|create)[^/]+")


@dataclass(eq=False)
class Connection:
    """One client. route: of the request it made last; `sent`: bytes after an upgrade."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    route: str = ""
    sent: int = 0

    def close(self) -> None:
        self.writer.close()
        self.upstream[1].close()


@dataclass
class Proxy:
    """Routes look like `POST /containers/{id}/start`.

    counts: requests by route. refused: routes whose requests are answered by a closed connection.
    failing: routes that are answered with a 500 of the proxy's own. refusals: likewise, with each
    of these messages once.
    before, after: awaited before a request of that route is passed on, or a piece of its answer;
    an OSError from one closes the connection.
    held_ends: routes whose connection stays open to the client after the engine closed it.
    """

    path: Path
    counts: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    refusals: dict[str, list[str]] = field(default_factory=dict)
    before: dict[str, Gate] = field(default_factory=dict)
    after: dict[str, Gate] = field(default_factory=dict)
    held_ends: set[str] = field(default_factory=set)
    connections: set[Connection] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    async def open(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path, limit=2**20)

    async def close(self) -> None:
        """The engine is out of reach from now on."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.path.unlink(missing_ok=True)
        for connection in list(self.connections):
            connection.close()

    def cut(self, route: str) -> int:
        """Close the connections that asked for this last: how many there were."""
        found = [c for c in self.connections if c.route == route]
        for connection in found:
            connection.close()
        return len(found)

    def sent(self, route: str) -> int:
        """Bytes that clients sent on connections that were upgraded by this route."""
        return sum(c.sent for c in self.connections if c.route == route)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_unix_connection(ENGINE, limit=2**20)
        connection = Connection(reader, writer, upstream)
        self.connections.add(connection)
        answers = asyncio.create_task(self._answers(connection))
        try:
            await self._requests(connection)
        except (OSError, EOFError):
            pass  # a client that is gone, or was sent away
        finally:
            answers.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await answers
            connection.close()
            self.connections.discard(connection)

    async def _requests(self, connection: Connection) -> None:
        while True:
            head = await connection.reader.readuntil(b"\r\n\r\n")
            method, target = head.split(b"\r\n", 1)[0].decode().split(" ")[:2]
            path = _VERSION.sub("", target.partition("?")[0])
            connection.route = f"{method} {_ID.sub('/containers/{id}', path)}"
            self.counts[connection.route] += 1
            if connection.route in self.refused:
                return
            if message := self._refusal(connection.route):
                connection.writer.write(_failure(message))
                await connection.writer.drain()
                return
            if gate := self.before.get(connection.route):
                await gate()
            await self._pass_on(connection, head)

    def _refusal(self, route: str) -> str | None:
        if route in self.failing:
            return FAILURE
        messages = self.refusals.get(route)
        return messages.pop(0) if messages else None

    async def _pass_on(self, connection: Connection, head: bytes) -> None:
        upstream = connection.upstream[1]
        upstream.write(head)
        headers = head.lower()
        if b"\r\nupgrade:" in headers:
            await self._raw(connection)
            raise EOFError
        length = re.search(rb"\r\ncontent-length: *(\d+)", headers)
        if length:
            upstream.write(await connection.reader.readexactly(int(length[1])))
        assert b"\r\ntransfer-encoding:" not in headers, head
        await upstream.drain()

    async def _raw(self, connection: Connection) -> None:
        upstream = connection.upstream[1]
        while data := await connection.reader.read(PIECE):
            connection.sent += len(data)
            upstream.write(data)
            await upstream.drain()

    async def _answers(self, connection: Connection) -> None:
        upstream = connection.upstream[0]
        with contextlib.suppress(OSError):
            while data := await upstream.read(PIECE):
                if gate := self.after.get(connection.route):
                    await gate()
                connection.writer.write(data)
                await connection.writer.drain()
        if connection.route not in self.held_ends:
            connection.close()


def _failure(message: str) -> bytes:
    body = json.dumps({"message": message}).encode()
    head = (
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy that is open; its socket's path is short enough for the kernel."""
    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        made = Proxy(Path(folder) / "engine.sock")
        await made.open()
        try:
            yield made
        finally:
            made.after.clear()
            await made.close()
            await asyncio.sleep(0)

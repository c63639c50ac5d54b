"""A proxy before the engine's socket: counts requests, holds calls up, puts faults in answers.

It parses what the client sends, so that it knows each request of a kept connection; answers, and
everything after an upgrade, go through as raw bytes, but for streams of lines that are rewritten.
"""

import asyncio
import contextlib
import json
import re
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from random import Random
from typing import Any

ENGINE = "/var/run/docker.sock"
PIECE = 2**16
FAILURE = "proxy says no"

Gate = Callable[[], Awaitable[None]]
Send = Callable[[bytes], Awaitable[None]]
Rewriter = Callable[[Send], Send]

_VERSION = re.compile(r"^/v[\d.]+")
_ID = re.compile(r"^/(containers|images)/(?!json|create|get)(.+?)(?=/[a-z]+$|$)")
_CUT_JSON = b'{"Id": "5e7'


class Fault(StrEnum):
    """What is done to one request. FAIL: a 500. LOSE: carried out, its answer is not given.

    CUT: carried out; the answer is a 200 with JSON that breaks off. BREAK: likewise, the
    connection closed in the middle of the answer. HANG: never answered.
    """

    REFUSE = "refuse"
    FAIL = "fail"
    LOSE = "lose"
    CUT = "cut"
    BREAK = "break"
    HANG = "hang"


_IN_THE_ANSWER = (Fault.LOSE, Fault.CUT, Fault.BREAK)


@dataclass(eq=False)
class Connection:
    """One client. route: of the request it made last; `sent`: bytes after an upgrade.

    fault: of the next answer. endless: whether the answer to that request is to have no end.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    route: str = ""
    sent: int = 0
    fault: Fault | None = None
    endless: bool = False

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
    faults: by route, of its next requests, one each. injected: how many of them were.
    lines: by route, what makes of a stream's way to hand a line over one that puts faults in. Only
    for streams that have no end (`until`) in their query.
    """

    path: Path
    engine: str = ENGINE
    counts: Counter[str] = field(default_factory=Counter)
    refused: set[str] = field(default_factory=set)
    failing: set[str] = field(default_factory=set)
    refusals: dict[str, list[str]] = field(default_factory=dict)
    before: dict[str, Gate] = field(default_factory=dict)
    after: dict[str, Gate] = field(default_factory=dict)
    held_ends: set[str] = field(default_factory=set)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    injected: int = 0
    lines: dict[str, Rewriter] = field(default_factory=dict)
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
        try:
            upstream = await asyncio.open_unix_connection(self.engine, limit=2**20)
        except OSError:  # the engine is down
            writer.close()
            return
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
            path, _, query = target.partition("?")
            connection.endless = "until=" not in query
            resource = _ID.sub(r"/\1/{id}", _VERSION.sub("", path))
            connection.route = f"{method} {resource}"
            self.counts[connection.route] += 1
            if connection.route in self.refused:
                return
            if message := self._refusal(connection.route):
                connection.writer.write(_failure(message))
                await connection.writer.drain()
                return
            fault = self._next_fault(connection.route)
            if fault is Fault.REFUSE:
                return
            if fault is Fault.HANG:
                await connection.reader.read()  # until the client gives up
                return
            if fault is Fault.FAIL:
                connection.writer.write(_failure(FAILURE))
                await connection.writer.drain()
                return
            connection.fault = fault
            if gate := self.before.get(connection.route):
                await gate()
            await self._pass_on(connection, head)

    def _next_fault(self, route: str) -> Fault | None:
        waiting = self.faults.get(route)
        if not waiting:
            return None
        self.injected += 1
        return waiting.pop(0)

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
                if connection.fault in _IN_THE_ANSWER:
                    connection.writer.write(_spoilt(connection.fault, data))
                    break
                rewriter = self.lines.get(connection.route)
                if rewriter is not None and connection.endless:
                    await _rewrite(connection, data, rewriter)
                    break
                connection.writer.write(data)
                await connection.writer.drain()
        if connection.route not in self.held_ends:
            connection.close()


def _spoilt(fault: Fault | None, answer: bytes) -> bytes:
    if fault is Fault.CUT:
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(_CUT_JSON)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + _CUT_JSON
    return answer[: len(answer) // 2] if fault is Fault.BREAK else b""


async def _rewrite(connection: Connection, begun: bytes, rewriter: Rewriter) -> None:
    """Pass a chunked answer on, each line of it through `rewriter`."""
    reader, writer = asyncio.StreamReader(), connection.writer
    reader.feed_data(begun)
    filling = asyncio.create_task(_fill(reader, connection.upstream[0]))

    async def send(line: bytes) -> None:
        writer.write(b"%x\r\n%b\r\n" % (len(line), line))
        await writer.drain()

    rewrite, rest = rewriter(send), b""
    try:
        writer.write(await reader.readuntil(b"\r\n\r\n"))
        while size := int(await reader.readline() or b"0", 16):
            *lines, rest = (rest + (await reader.readexactly(size + 2))[:-2]).split(b"\n")
            for line in lines:
                await rewrite(line + b"\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
    except EOFError:
        pass  # the engine broke it off
    finally:
        filling.cancel()


async def _fill(reader: asyncio.StreamReader, upstream: asyncio.StreamReader) -> None:
    while data := await upstream.read(PIECE):
        reader.feed_data(data)
    reader.feed_eof()


class EventFaults:
    """Rewrites event streams: lines are dropped, doubled, late or out of order.

    shares: of the lines that are hurt, by kind. injected: how many were; `silenced` ones came while
    the stream was silent. opened: streams so far. told: lines that came through, by the number of
    the stream.
    """

    KINDS = ("dropped", "doubled", "late", "reordered")

    def __init__(self, shares: Mapping[str, float], seed: int = 0, late: float = 1.0) -> None:
        self._shares = [shares.get(kind, 0.0) for kind in self.KINDS]
        self._random, self._late = Random(seed), late
        self._under_way: set[asyncio.Task[None]] = set()
        self._silent = 0
        self._drops: Callable[[Mapping[str, Any]], bool] = lambda _: False
        self.injected: Counter[str] = Counter()
        self.opened = 0
        self.told: Counter[int] = Counter()

    def silence(self) -> None:
        """Nothing comes through those that are open, and they stay open."""
        self._silent = self.opened

    def drop(self, which: Callable[[Mapping[str, Any]], bool]) -> None:
        """Of events like these none comes through any more."""
        self._drops = which

    def __call__(self, send: Send) -> Send:
        """Of one stream: what hands a line over by `send`, or does not."""
        self.opened += 1
        number, held = self.opened, list[bytes]()

        async def rewrite(line: bytes) -> None:
            kind = self._kind(line, number)
            if kind is None:
                self.told[number] += 1
            else:
                self.injected[kind] += 1
            if kind in {"dropped", "silenced"}:
                return
            if kind == "late":
                self._send_late(line, send)
                return
            if kind == "reordered":  # behind the next one that is not
                held.append(line)
                return
            for text in [line] * (2 if kind == "doubled" else 1) + held:
                await send(text)
            held.clear()

        return rewrite

    def _kind(self, line: bytes, number: int) -> str | None:
        if number <= self._silent:
            return "silenced"
        if self._drops(json.loads(line)):
            return "dropped"
        kinds = [*self.KINDS, None]
        weights = [*self._shares, 1.0 - sum(self._shares)]
        return self._random.choices(kinds, weights)[0]

    def _send_late(self, line: bytes, send: Send) -> None:
        task = asyncio.create_task(_later(line, send, self._random.uniform(0, self._late)))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)


async def _later(line: bytes, send: Send, seconds: float) -> None:
    await asyncio.sleep(seconds)
    with contextlib.suppress(OSError):
        await send(line)


def _failure(message: str) -> bytes:
    body = json.dumps({"message": message}).encode()
    head = (
        "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def proxy(engine: str = ENGINE) -> AsyncIterator[Proxy]:
    """A proxy that is open; its socket's path is short enough for the kernel."""
    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        made = Proxy(Path(folder) / "engine.sock", engine)
        await made.open()
        try:
            yield made
        finally:
            made.after.clear()
            await made.close()
            await asyncio.sleep(0)

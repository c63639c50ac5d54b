"""Bare readers of the engine's and the worker's HTTP, for measuring: blocking sockets, no library.

Each call is one system call away from the socket, so that what a time stamp says is when the bytes
came and not when an event loop got to them.
"""

import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

PATIENCE = 60.0


class Unix(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class EngineRefused(Exception):
    """The engine's answer was an error."""


class Engine:
    """The engine's API: short calls over one kept connection, streams over one each."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._calls = Unix(path)

    def call(self, method: str, target: str, body: Mapping[str, object] | None = None) -> Any:
        data = json.dumps(body) if body is not None else None
        self._calls.request(method, target, data, {"Content-Type": "application/json"})
        answer = self._calls.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise EngineRefused(f"{method} {target}: {answer.status} {content!r}")
        return json.loads(content) if content else None

    def attach(self, container: str) -> "Attached":
        return Attached(self._path, container)

    def close(self) -> None:
        self._calls.close()


class Attached:
    """The standard streams of one container."""

    def __init__(self, path: str, container: str) -> None:
        self._connection = Unix(path)
        query = urlencode({"stream": 1, "stdin": 1, "stdout": 1, "stderr": 1})
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        self._connection.request("POST", f"/containers/{container}/attach?{query}", None, headers)
        self._connection_answer = self._connection.getresponse()
        self._stream = self._connection_answer.fp

    def write(self, data: bytes) -> None:
        self._connection.sock.sendall(data)

    def read(self) -> bytes:
        """One frame's payload; b"" at the end."""
        head = self._stream.read(8)
        return self._stream.read(int.from_bytes(head[4:], "big")) if head else b""

    def close(self) -> None:
        self._connection_answer.close()
        self._connection.close()


class Seen(NamedTuple):
    """An event of the engine. at: when its line was read, by the wall clock."""

    at: float
    action: str
    name: str


class Watch:
    """The engine's events, read on a thread that does nothing else."""

    def __init__(self, path: str) -> None:
        self._connection = Unix(path)
        self._connection.timeout = None
        filters = {"type": ["container"], "event": ["die", "destroy"]}
        self._connection.request("GET", "/events?" + urlencode({"filters": json.dumps(filters)}))
        self._answer = self._connection.getresponse()
        self._seen: queue.Queue[Seen] = queue.Queue()
        threading.Thread(target=self._read, name="events", daemon=True).start()

    def when(self, action: str, name: str) -> float:
        """When this happened to that container; events of others are dropped on the way."""
        deadline = time.monotonic() + PATIENCE
        while True:
            event = self._seen.get(timeout=max(0.0, deadline - time.monotonic()))
            if (event.action, event.name) == (action, name):
                return event.at

    def _read(self) -> None:
        for line in self._answer:
            at = time.time()
            event = json.loads(line)
            name = event["Actor"]["Attributes"].get("name", "")
            self._seen.put(Seen(at, event["Action"], name))


class Frame(NamedTuple):
    """A server-sent event. at: when its last line was read, by the wall clock."""

    at: float
    event: str
    data: bytes


class WorkerApi:
    """The worker's API: short calls over one kept connection, streams over one each."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}"}
        self._calls = self._connect()

    def submit(self, spec: Mapping[str, object], archive: bytes) -> str:
        """The new job's id."""
        boundary = "bench-part"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="spec"\r\n'
            f"Content-Type: application/json\r\n\r\n{json.dumps(spec)}\r\n".encode(),
            f'--{boundary}\r\nContent-Disposition: form-data; name="archive"; filename="a"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n".encode(),
            archive,
            f"\r\n--{boundary}--\r\n".encode(),
        ]
        kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        self._calls.request("POST", "/api/v1/jobs", b"".join(parts), {**self._headers, **kind})
        answer = self._calls.getresponse()
        content = answer.read()
        if answer.status != 201:
            raise EngineRefused(f"submit: {answer.status} {content!r}")
        return str(json.loads(content)["id"])

    def events(self, path: str) -> Iterator[Frame]:
        """A stream's events as they come, until it ends; all that are told once this returns."""
        connection = self._connect()
        connection.request("GET", f"/api/v1{path}", None, self._headers)
        return _to_the_end(connection, connection.getresponse())

    def close(self) -> None:
        self._calls.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)


def _to_the_end(
    connection: http.client.HTTPConnection, answer: http.client.HTTPResponse
) -> Iterator[Frame]:
    with contextlib.closing(connection):
        yield from _frames(answer.readline)


def _frames(readline: Callable[[], bytes]) -> Iterator[Frame]:
    event, data = b"", b""
    while line := readline():
        at = time.time()
        name, _, value = line.rstrip(b"\n").partition(b": ")
        if name == b"event":
            event = value
        elif name == b"data":
            data += value + b"\n"
        elif line == b"\n":
            if data:
                yield Frame(at, event.decode(), data)
            event, data = b"", b""

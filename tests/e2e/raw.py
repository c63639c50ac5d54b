"""HTTP as bytes, for what no decent client sends; and multipart bodies, right and wrong."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.driver import DEADLINE, Worker

BOUNDARY = "BoUnDaRy"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> str:
        """The detail of the problem document that this has to be."""
        return problem_detail(self.status, self.headers["content-type"], self.body)


def problem_detail(status: int, content_type: str, body: bytes) -> str:
    """The detail of a problem document; fails if it is not exactly one."""
    assert content_type.startswith("application/problem+json"), (status, content_type, body)
    document = json.loads(body)
    assert set(document) == {"type", "title", "status", "detail"}
    assert document["status"] == status
    assert document["title"]
    detail: str = document["detail"]
    assert len(detail) > 5
    for inside in ("Traceback", "site-packages", ".py", "sqlite3.", "object at 0x"):
        assert inside not in detail
    return detail


async def ask(
    worker: Worker,
    method: str,
    target: str,
    headers: Mapping[str, str | bytes] | None = None,
    body: bytes = b"",
    version: str = "1.1",
) -> Answer:
    """One request on a connection of its own, byte for byte; the answer until its end."""
    lines = {"Host": f"127.0.0.1:{worker.port}", "Content-Length": str(len(body))}
    lines |= {"Connection": "close"}
    head = f"{method} {target} HTTP/{version}\r\n".encode()
    for name, value in (lines | dict(headers or {})).items():
        text = value if isinstance(value, bytes) else value.encode()
        head += name.encode() + b": " + text + b"\r\n"
    return await exchange(worker, head + b"\r\n" + body)


async def exchange(worker: Worker, request: bytes) -> Answer:
    """Send bytes, read until the worker closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    try:
        async with asyncio.timeout(DEADLINE):
            writer.write(request)
            return parsed(await reader.read())
    finally:
        writer.close()


def parsed(answer: bytes) -> Answer:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), {k.lower(): v for k, v in fields.items()}, body)


def part(name: str, data: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    more = "".join(f"{field}: {value}\r\n" for field, value in (headers or {}).items())
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n{more}\r\n'
    return head.encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()


def form(archive: bytes, spec: Any = None) -> bytes:
    """The body of a decent submit; a spec of bytes is sent as it is."""
    text = spec if isinstance(spec, bytes) else json.dumps(spec or {}).encode()
    return part("spec", text) + part("archive", archive) + END

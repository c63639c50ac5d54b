"""A worker that speaks the contract over real sockets and can be told to misbehave."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "a-token-of-the-tests"
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PATIENCE = 10.0  # a test that waits longer than this has failed
BATCH = 500  # lines in one event

Problem = tuple[int, str, dict[str, str]]


def ulid(number: int, prefix: str = "01K5TEST") -> str:
    digits = ""
    while len(digits) < 26 - len(prefix):
        number, rest = divmod(number, 32)
        digits = ALPHABET[rest] + digits
    return prefix + digits


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]


@dataclass
class Submission:
    spec: dict[str, Any]
    archive: bytes
    types: tuple[str, str]


@dataclass
class FakeWorker:
    """Change its fields under `changed`, or before a client comes."""

    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    from_worker: set[tuple[str, int]] = field(default_factory=set)  # job and line number
    cut_off: set[tuple[str, int]] = field(default_factory=set)  # lines without a newline
    unfinished: dict[str, dict[str, str]] = field(default_factory=dict)  # by job and stream
    requests: list[Request] = field(default_factory=list)
    submissions: dict[str, Submission] = field(default_factory=dict)
    by_key: dict[str, str] = field(default_factory=dict)
    uploads: int = 0
    bodies: list[bytes] = field(default_factory=list)  # of what is posted besides
    link: object = None  # the answer to who asks for one, instead of a good one
    changed: threading.Condition = field(default_factory=threading.Condition)
    closing: bool = False
    generation: int = 0
    streams: int = 0  # that have begun: what is printed from then on is new to them

    # how it misbehaves
    lost_replies: int = 0  # so many submits are taken, then their connection is cut
    refusals: dict[str, list[Problem]] = field(default_factory=dict)  # by path
    cuts: list[int] = field(default_factory=list)  # a stream ends after so many lines, in turn
    overlap: int = 0  # a resumed stream repeats so many lines
    skips: list[int] = field(default_factory=list)  # a line a stream leaves out, in turn
    never_stored: set[int] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)  # paths to which it gives no answer
    gone_quiet: int = 0  # so many streams stay open and say nothing
    raw_stream: bytes | None = None  # what a stream sends instead of everything else
    page_limit: int = 500
    clock_ahead: float = 0.0
    on_submit: Callable[[dict[str, Any]], None] | None = None

    def add_job(self, number: int = 1, *, lines: list[str] | None = None, **fields: Any) -> str:
        job_id = fields.pop("id", None) or ulid(number)
        with self.changed:
            self.lines[job_id] = list(lines or [])
            self.jobs[job_id] = {
                "id": job_id,
                "status": "queued",
                "success": None,
                "reason": None,
                "message": None,
                "exit_code": None,
                "project": "tea",
                "image": "python:3.12-slim",
                "priority": 0,
                "created_at": "2025-06-01T10:00:00.000Z",
                "started_at": None,
                "finished_at": None,
                "log_lines": len(self.lines[job_id]),
            } | fields
        return job_id

    def add_ended(
        self,
        number: int = 1,
        *,
        lines: list[str] | None = None,
        ending: str = "passed",
        project: str = "tea",
    ) -> str:
        return self.add_job(number, lines=lines, project=project, **ENDINGS[ending])

    def print(self, job_id: str, *lines: str) -> None:
        """Lines on stdout; what was unfinished of it is in them."""
        with self.changed:
            self.lines[job_id] += lines
            self.unfinished.get(job_id, {}).pop("stdout", None)
            self.jobs[job_id]["log_lines"] = len(self.lines[job_id])
            self.changed.notify_all()

    def print_without_newline(self, job_id: str, text: str, stream: str = "stdout") -> None:
        """All that the stream has printed since its last newline; it may be nothing."""
        with self.changed:
            self.unfinished.setdefault(job_id, {})[stream] = text
            self.changed.notify_all()

    def update(self, job_id: str, **fields: Any) -> None:
        with self.changed:
            self.jobs[job_id] |= fields
            self.changed.notify_all()

    def end(self, job_id: str, ending: str = "passed") -> None:
        self.update(job_id, **ENDINGS[ending])

    def wait_until(self, ready: Callable[[], object]) -> None:
        with self.changed:
            assert self.changed.wait_for(ready, PATIENCE), "it did not come to that"

    def cut_streams(self) -> None:
        """Ends the connection of every stream that is open now."""
        with self.changed:
            self.generation += 1
            self.changed.notify_all()

    def asked(self, method: str, ending: str) -> list[Request]:
        return [r for r in self.requests if r.method == method and r.path.endswith(ending)]

    def record(self, job_id: str, number: int) -> str:
        line = self.lines[job_id][number - 1]
        stream = "worker" if (job_id, number) in self.from_worker else "stdout"
        told = {"n": number, "at": "2025-06-01T10:00:01.000Z", "stream": stream, "text": line}
        if (job_id, number) in self.cut_off:
            told["end"] = False
        return json.dumps(told, ensure_ascii=False)


def ended(status: str, **fields: Any) -> dict[str, Any]:
    times = {
        "started_at": "2025-06-01T10:00:01.000Z",
        "finished_at": "2025-06-01T10:00:13.500Z",
    }
    return {"status": status} | times | fields


ENDINGS: dict[str, dict[str, Any]] = {
    "passed": ended("completed", success=True, reason="passed", exit_code=0),
    "tests_failed": ended(
        "completed",
        success=False,
        reason="tests_failed",
        exit_code=1,
        message="2 of 7 tests failed",
    ),
    "image_missing": ended(
        "failed", reason="image_missing", message="there is no image nosuch:1; name another"
    ),
    "cancelled": ended("cancelled", reason="cancelled", message="cancelled by admin"),
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    worker: FakeWorker

    def log_message(self, *_: object) -> None:
        pass

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate((timestamp or time.time()) + self.worker.clock_ahead, usegmt=True)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Callable[[list[str]], None]) -> None:
        parts = urlsplit(self.path)
        request = Request(
            self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers.items())
        )
        self.query, self.route = request.query, parts.path
        with self.worker.changed:
            self.worker.requests.append(request)
            self.worker.changed.notify_all()
            refusals = self.worker.refusals.get(parts.path, [])
            refusal = refusals.pop(0) if refusals else None
        if parts.path in self.worker.silent:
            self.worker.wait_until(lambda: self.worker.closing)
            self._cut()
        elif refusal is not None:
            self._drain()
            self._refuse(*refusal)
        elif parts.path in {"/healthz", "/readyz"}:
            self._json(200, {"status": "ok"})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._drain()
            self._problem(401, "this needs a token that the worker knows", {})
        else:
            act([part for part in parts.path.split("/") if part][2:])

    def _get(self, path: list[str]) -> None:
        match path:
            case ["jobs"]:
                self._list()
            case ["jobs", job_id] if job_id in self.worker.jobs:
                self._json(200, self.worker.jobs[job_id])
            case ["jobs", job_id, "log"] if job_id in self.worker.jobs:
                self._log(job_id)
            case ["jobs", job_id, "events"] if job_id in self.worker.jobs:
                self._events(job_id)
            case _:
                self._problem(404, "there is no such thing here", {})

    def _post(self, path: list[str]) -> None:
        if path == ["jobs"]:
            self._submit()
            return
        self.worker.bodies.append(self._drain())
        match path:
            case ["jobs", job_id, "cancel"] if job_id in self.worker.jobs:
                self._cancel(job_id)
            case ["jobs", job_id, "retry"] if job_id in self.worker.jobs:
                again = self.worker.add_job(900 + len(self.worker.jobs), retry_of=job_id)
                self._json(202, self.worker.jobs[again])
            case ["resync"]:
                self._json(200, RESYNC)
            case ["login-codes"]:
                link = {"url": self.worker.link or f"{self.worker.url}/login?code=once"}
                self._json(201, link)
            case _:
                self._problem(404, "there is no such thing here", {})

    def _list(self) -> None:
        items = sorted(self.worker.jobs.values(), key=lambda job: job["id"], reverse=True)
        for name in ("status", "project"):
            if name in self.query:
                items = [job for job in items if job[name] == self.query[name]]
        limit = min(int(self.query.get("limit", "50")), self.worker.page_limit)
        first = int(self.query.get("cursor", "0"))
        rest = items[first : first + limit]
        following = str(first + limit) if first + limit < len(items) else None
        self._json(200, {"items": rest, "next": following})

    def _cancel(self, job_id: str) -> None:
        if self.worker.jobs[job_id]["status"] in {"completed", "failed", "cancelled"}:
            self._problem(409, "the job has ended already", {})
            return
        self.worker.update(job_id, **ENDINGS["cancelled"])
        self._json(202, self.worker.jobs[job_id])

    def _submit(self) -> None:
        submission = self._multipart()
        key = self.headers["Idempotency-Key"]
        with self.worker.changed:
            self.worker.uploads += 1
            known = key in self.worker.by_key
        if not known:
            job_id = self.worker.add_job(100 + len(self.worker.jobs))
            self.worker.by_key[key] = job_id
            self.worker.submissions[job_id] = submission
        job_id = self.worker.by_key[key]
        if self.worker.lost_replies > 0:
            self.worker.lost_replies -= 1
            self._cut()
            return
        self._json(200 if known else 201, self.worker.jobs[job_id])
        if self.worker.on_submit is not None:
            self.worker.on_submit(self.worker.jobs[job_id])

    def _multipart(self) -> Submission:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        message = message_from_bytes(head + self._drain())
        parts = message.get_payload()
        assert isinstance(parts, list)
        spec_part, archive_part = (part for part in parts if isinstance(part, Message))
        pair = (spec_part, archive_part)
        names = [part.get_param("name", header="content-disposition") for part in pair]
        assert names == ["spec", "archive"]
        spec, archive = (part.get_payload(decode=True) for part in pair)
        assert isinstance(spec, bytes)
        assert isinstance(archive, bytes)
        types = (spec_part.get_content_type(), archive_part.get_content_type())
        return Submission(json.loads(spec), archive, types)

    def _log(self, job_id: str) -> None:
        lines = self.worker.lines[job_id]
        if "tail" in self.query:
            lines = lines[-int(self.query["tail"]) :]
        if "timestamps" in self.query:
            lines = [f"2025-06-01T10:00:01.000Z {line}" for line in lines]
        if self.query.get("stream") == "stderr":
            lines = []
        body = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        self._start(200, "text/plain; charset=utf-8")
        if body:
            self._chunk(body)
        self._chunk(b"")

    def _events(self, job_id: str) -> None:
        worker = self.worker
        resumed = self.headers.get("Last-Event-ID")
        if resumed == "end":
            self.send_response(204)
            self.end_headers()
            return
        last = self._first_cursor(job_id, resumed)
        if last is None:
            self._problem(400, "Last-Event-ID is past the last line", {})
            return
        self._start(200, "text/event-stream")
        self._chunk(b": hello\nretry: 10\n\n")
        if worker.raw_stream is not None:
            self._chunk(worker.raw_stream)
        if worker.gone_quiet > 0:
            worker.gone_quiet -= 1
            worker.wait_until(lambda: worker.closing or len(worker.asked("GET", "/events")) > 1)
        elif worker.raw_stream is None:
            self._stream(job_id, last)
        self._cut()

    def _first_cursor(self, job_id: str, resumed: str | None) -> int | None:
        count = len(self.worker.lines[job_id])
        if resumed is not None:
            if not resumed.isdecimal() or int(resumed) > count:
                return None
            return max(0, int(resumed) - self.worker.overlap)
        if "now" in self.query:
            return count
        if "tail" in self.query:
            return max(0, count - int(self.query["tail"]))
        return int(self.query.get("from", "1")) - 1

    def _stream(self, job_id: str, last: int) -> None:
        worker = self.worker
        cut = worker.cuts.pop(0) if worker.cuts else None
        skip = worker.skips.pop(0) if worker.skips else None
        sent = 0
        self._event("status", [json.dumps(worker.jobs[job_id])])
        state = _state(worker.jobs[job_id])
        generation = worker.generation
        told: dict[str, str] = {}
        with worker.changed:
            worker.streams += 1
            worker.changed.notify_all()
        while not worker.closing and worker.generation == generation:
            with worker.changed:
                job = dict(worker.jobs[job_id])
                count = len(worker.lines[job_id])
                unfinished = dict(worker.unfinished.get(job_id, {}))
            if _state(job) != state:
                state = _state(job)
                self._event("status", [json.dumps(job)])
            until = count if cut is None else min(count, last + cut - sent)
            numbers = [n for n in range(last + 1, until + 1) if n != skip]
            numbers = [n for n in numbers if n not in worker.never_stored]
            for first in range(0, len(numbers), BATCH):
                batch = numbers[first : first + BATCH]
                records = [worker.record(job_id, number) for number in batch]
                self._event("log", records, str(batch[-1]))
            sent += until - last
            last = until
            if cut is not None and sent >= cut:
                return
            if last == count and job["status"] in {"completed", "failed", "cancelled"}:
                self._event("end", [json.dumps(job)], "end")
                self._chunk(b"")
                return
            for stream, text in unfinished.items():
                if told.get(stream) != text:
                    self._event("partial", [json.dumps({"stream": stream, "text": text})])
            told = unfinished
            with worker.changed:
                news = partial(self._news, job_id, job, count, unfinished, generation)
                worker.changed.wait_for(news, PATIENCE)

    def _news(
        self,
        job_id: str,
        job: dict[str, Any],
        count: int,
        unfinished: dict[str, str],
        generation: int,
    ) -> bool:
        worker = self.worker
        return (
            len(worker.lines[job_id]) != count
            or worker.unfinished.get(job_id, {}) != unfinished
            or worker.jobs[job_id] != job
            or worker.generation != generation
            or worker.closing
        )

    def _event(self, name: str, data: list[str], event_id: str | None = None) -> None:
        lines = [f"event: {name}", *(f"data: {item}" for item in data)]
        if event_id is not None:
            lines.append(f"id: {event_id}")
        self._chunk(("\n".join(lines) + "\n\n").encode())

    def _start(self, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _json(self, status: int, document: object) -> None:
        self._send(status, "application/json", json.dumps(document).encode(), {})

    def _refuse(self, status: int, detail: str, headers: dict[str, str]) -> None:
        if status == 204:
            self.send_response(204)
            self.end_headers()
        else:
            self._problem(status, detail, headers)

    def _problem(self, status: int, detail: str, headers: dict[str, str]) -> None:
        problem = {"type": "about:blank", "title": "no", "status": status, "detail": detail}
        self._send(status, "application/problem+json", json.dumps(problem).encode(), headers)

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _drain(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


RESYNC = {
    "created": [],
    "started": ["ci-a-1", "ci-b-1"],
    "removed": ["ci-c-1"],
    "unchanged": ["ci-d-1", "ci-e-1", "ci-f-1"],
    "repairs": 1,
    "seconds": 0.2,
}


def _state(job: dict[str, Any]) -> tuple[object, object]:
    """What a stream tells when it changes."""
    return job["status"], job.get("waits_for")


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is part of many tests."""


@contextmanager
def serving() -> Iterator[FakeWorker]:
    worker = FakeWorker()
    handler = type("BoundHandler", (Handler,), {"worker": worker})
    with Server(("127.0.0.1", 0), handler) as server:
        worker.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield worker
        finally:
            with worker.changed:
                worker.closing = True
                worker.changed.notify_all()
            server.shutdown()
            thread.join(PATIENCE)

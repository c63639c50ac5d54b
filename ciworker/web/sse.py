"""Server-sent events: a job's lines and states, and the states of all jobs.

A stream holds a cursor and nothing else. It writes what the feed has after it, waits for the
feed's signal, and ends when the job has. A reader that takes nothing for WRITE_TIMEOUT seconds is
let go: it comes back with its Last-Event-ID.
"""

import asyncio
import random
from functools import lru_cache

from aiohttp import web

from ciworker.domain.job import Job
from ciworker.domain.log import Chunk
from ciworker.errors import Unknown
from ciworker.web.answers import found, number
from ciworker.web.context import CONTEXT, Context
from ciworker.web.models import JobModel, job_detail, job_model
from ciworker.web.problems import Refused
from ciworker.web.records import records

COMMENT_INTERVAL = 15.0
WRITE_TIMEOUT = 30.0
END = "end"

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


async def job_events(request: web.Request) -> web.StreamResponse:
    """A job's lines and states, live, until it ends."""
    context, job = request.app[CONTEXT], await found(request)
    if request.headers.get("Last-Event-ID") == END:
        return web.Response(status=204)
    after = await _start(request, context, job)
    response = await _open(request)
    await _follow(response, context, job.id, after)
    return response


async def all_events(request: web.Request) -> web.StreamResponse:
    """State changes of all jobs, live, until the worker goes down."""
    context = request.app[CONTEXT]
    newest = await context.jobs.last_change()
    after = _last_event_id(request, newest)
    after = newest if after is None else after
    response = await _open(request)
    signal = context.feed.jobs_changed
    while not context.closing.version:
        seen = signal.version
        changes = await context.jobs.changes(after, limit=100)
        for change in changes:
            job = await context.jobs.get(change.job_id)
            if job is not None:
                await _write(response, _event("status", job_model(job), str(change.id)))
            after = change.id
        if not changes and not await signal.wait(seen, COMMENT_INTERVAL):
            await _write(response, b":\n\n")
    return response


async def _follow(response: web.StreamResponse, context: Context, job_id: str, after: int) -> None:
    topic = context.feed.topic(job_id)
    job, states = None, -1
    while not context.closing.version:
        seen = topic.changed.version
        if job is None or states != topic.states:
            states = topic.states
            job = await _job(context, job_id)
            if not job.status.terminal:
                await _write(response, _event("status", job_model(job)))
        after, wrote = await _lines(response, context, job_id, after)
        if wrote:
            continue
        if job.status.terminal:
            detail = job_detail(job, await context.jobs.history(job_id))
            await _write(response, _event(END, detail, END))
            return
        if not await topic.changed.wait(seen, COMMENT_INTERVAL):
            await _write(response, b":\n\n")


async def _lines(
    response: web.StreamResponse, context: Context, job_id: str, after: int
) -> tuple[int, bool]:
    """Write what there is after line `after`: the last line's number, and whether any came."""
    chunks = await context.feed.read(job_id, after)
    if not chunks:
        return after, False
    await _write(response, b"".join(_frame(job_id, chunk) for chunk in chunks))
    return chunks[-1].last, True


def _frame(job_id: str, chunk: Chunk) -> bytes:
    return _encoded(job_id, chunk.first, chunk.last, chunk)


@lru_cache(maxsize=64)
def _encoded(job_id: str, first: int, last: int, chunk: Chunk) -> bytes:
    lines = b"".join(b"data: " + record + b"\n" for record in records(chunk))
    return b"event: log\n" + lines + b"id: %d\n\n" % last


def _event(name: str, body: JobModel, event_id: str | None = None) -> bytes:
    numbered = f"id: {event_id}\n" if event_id else ""
    return f"event: {name}\n{numbered}data: {body.model_dump_json()}\n\n".encode()


async def _job(context: Context, job_id: str) -> Job:
    job = await context.jobs.get(job_id)
    if job is None:
        raise Unknown(f"there is no job {job_id!r} any more")
    return job


async def _start(request: web.Request, context: Context, job: Job) -> int:
    """The number of the last line that the client has or does not want."""
    last = (await context.logs.end(job.id)).last
    resumed = _last_event_id(request, last)
    if resumed is not None:
        return resumed
    if number(request, "now"):
        return last
    tail = number(request, "tail")
    if tail is not None:
        return max(0, last - tail)
    return max(0, (number(request, "from", 1) or 1) - 1)


def _last_event_id(request: web.Request, last: int) -> int | None:
    text = request.headers.get("Last-Event-ID")
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refused(400, f"Last-Event-ID has to be a number, not {text[:50]!r}")
    if int(text) > last:
        raise Refused(400, f"Last-Event-ID {text} is past the last one, {last}")
    return int(text)


async def _open(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    await _write(response, b"retry: %d\n\n" % random.randint(1000, 3000))  # noqa: S311 # jitter
    return response


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_TIMEOUT):
        await response.write(data)

"""Server-sent events: a job's lines and states, and the states of all jobs.

A stream holds a cursor and nothing else. It writes what the feed has after it, waits for the
feed's signal, and ends when the job has.
"""

import random
from collections.abc import AsyncGenerator
from functools import lru_cache

from aiohttp import web

from ciworker.domain.job import Job
from ciworker.domain.log import Chunk
from ciworker.errors import Unknown
from ciworker.web.answers import before_first, found, number
from ciworker.web.context import CONTEXT, Context
from ciworker.web.models import JobModel, job_model
from ciworker.web.problems import Refused
from ciworker.web.records import records
from ciworker.web.streaming import streamed

COMMENT_INTERVAL = 15.0
END = "end"

_COMMENT = b":\n\n"
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
    return await streamed(request, _HEADERS, _follow(context, job.id, after))


async def all_events(request: web.Request) -> web.StreamResponse:
    """State changes of all jobs, live, until the worker goes down."""
    context = request.app[CONTEXT]
    newest = await context.jobs.last_change()
    after = _last_event_id(request, newest)
    return await streamed(request, _HEADERS, _changes(context, newest if after is None else after))


async def _changes(context: Context, after: int) -> AsyncGenerator[bytes]:
    yield _retry()
    signal = context.feed.jobs_changed
    while not context.closing.version:
        seen = signal.version
        changes = await context.jobs.changes(after, limit=100)
        for change in changes:
            after = change.id
            if job := await context.jobs.current(change.job_id):
                yield _event("status", job_model(job), str(after))
        while not changes and not await signal.wait(seen, COMMENT_INTERVAL):
            yield _COMMENT  # nothing changed, so nothing is asked


async def _follow(context: Context, job_id: str, after: int) -> AsyncGenerator[bytes]:
    yield _retry()
    topic = context.feed.topic(job_id)
    job, states = None, -1
    while not context.closing.version:
        seen = topic.changed.version
        if job is None or states != topic.states:
            states = topic.states
            job = await _job(context, job_id)
            if not job.status.terminal:
                yield _event("status", job_model(job))
        if chunks := await context.feed.read(job_id, after):
            after = chunks[-1].last
            for chunk in chunks:
                yield _frame(chunk)
            continue
        if job.status.terminal:
            yield _event(END, job_model(job), END)
            return
        while not await topic.changed.wait(seen, COMMENT_INTERVAL):
            yield _COMMENT  # nothing changed, so nothing is asked


@lru_cache(maxsize=16)
def _frame(chunk: Chunk) -> bytes:
    """Encoded once for all who watch; they hold the same chunk, so finding it costs its hash."""
    lines = b"".join(b"data: " + record + b"\n" for record in records(chunk))
    return b"event: log\n" + lines + b"id: %d\n\n" % chunk.last


def _event(name: str, body: JobModel, event_id: str | None = None) -> bytes:
    numbered = f"id: {event_id}\n" if event_id else ""
    return f"event: {name}\n{numbered}data: {body.model_dump_json()}\n\n".encode()


def _retry() -> bytes:
    return b"retry: %d\n\n" % random.randint(1000, 3000)  # noqa: S311 # jitter


async def _job(context: Context, job_id: str) -> Job:
    job = await context.jobs.current(job_id)
    if job is None:
        raise Unknown(f"there is no job {job_id!r} any more")
    return job


async def _start(request: web.Request, context: Context, job: Job) -> int:
    """The number of the last line that the client has or does not want."""
    last = (await context.logs.end(job.id)).last
    resumed = _last_event_id(request, last)
    if resumed is not None:
        return resumed
    return last if number(request, "now") else before_first(request, last)


def _last_event_id(request: web.Request, last: int) -> int | None:
    text = request.headers.get("Last-Event-ID")
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refused(400, f"Last-Event-ID has to be a number, not {text[:50]!r}")
    if int(text) > last:
        raise Refused(400, f"Last-Event-ID {text} is past the last one, {last}")
    return int(text)

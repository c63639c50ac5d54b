"""The stored log of a job, so far, as text or as records."""

from collections.abc import Callable

from aiohttp import web

from ciworker.domain.log import Chunk, Stream
from ciworker.web import records
from ciworker.web.answers import choice, found, number
from ciworker.web.context import CONTEXT

NDJSON = "application/x-ndjson"


async def job_log(request: web.Request) -> web.StreamResponse:
    """Stream the stored lines, and return."""
    context, job = request.app[CONTEXT], await found(request)
    stream = choice(request, "stream", ("stdout", "stderr"))
    only = Stream[stream.upper()] if stream else None
    last = (await context.logs.end(job.id)).last
    after = _after(request, last)
    lines_wanted = NDJSON in request.headers.get("Accept", "")
    encode = _encoder(request, lines_wanted=lines_wanted)
    response = web.StreamResponse(
        headers={
            "Content-Type": NDJSON if lines_wanted else "text/plain; charset=utf-8",
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
        }
    )
    await response.prepare(request)
    async for chunk in context.logs.stream(job.id, after, last):
        if data := encode(chunk, only):
            await response.write(data)
    await response.write_eof()
    return response


def _after(request: web.Request, last: int) -> int:
    """The number of the line before the first that is wanted."""
    tail = number(request, "tail")
    if tail is not None:
        return max(0, last - tail)
    return max(0, (number(request, "from", 1) or 1) - 1)


def _encoder(
    request: web.Request, *, lines_wanted: bool
) -> Callable[[Chunk, Stream | None], bytes]:
    if lines_wanted:
        return records.ndjson
    timestamps = choice(request, "timestamps", ("0", "1", "false", "true"))
    return records.TimedText().text if timestamps in ("1", "true") else records.text

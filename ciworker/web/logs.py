"""The stored log of a job, so far, as text or as records."""

import contextlib
from collections.abc import AsyncGenerator, Callable

from aiohttp import web

from ciworker.domain.job import Job
from ciworker.domain.log import Chunk, Stream
from ciworker.errors import StoreRefused
from ciworker.web import records
from ciworker.web.answers import before_first, choice, flag, found, limited, named
from ciworker.web.context import CONTEXT
from ciworker.web.streaming import streamed

NDJSON = "application/x-ndjson"
TEXT = "text/plain; charset=utf-8"
MOST_LINES = 10**9  # more than any log has

Encoder = Callable[[Chunk, Stream | None], bytes]


async def job_log(request: web.Request) -> web.StreamResponse:
    """Stream the stored lines, and return."""
    with request.app[CONTEXT].logs.reading(named(request)):
        return await _sent(request, await found(request))


async def _sent(request: web.Request, job: Job) -> web.StreamResponse:
    context = request.app[CONTEXT]
    stream = choice(request, "stream", ("stdout", "stderr"))
    only = Stream[stream.upper()] if stream else None
    content_type, encode = _encoding(request)
    end = await context.logs.end(job.id)
    after = before_first(request, end.last)
    upto = min(end.last, after + limited(request, MOST_LINES, MOST_LINES))

    async def pieces() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(context.logs.stream(job.id, after, upto)) as chunks:
            async for chunk in chunks:
                if data := encode(chunk, only):
                    yield data

    is_whole = encode is records.text and only is None and (after, upto) == (0, end.last)
    headers = {
        "Content-Type": content_type,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }
    if not is_whole:
        return await streamed(request, headers, pieces())
    headers["Content-Length"] = str(end.total_bytes)  # and so no chunk is copied to be framed
    return await streamed(request, headers, _exactly(end.total_bytes, pieces()))


async def _exactly(size: int, pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """These pieces, which have so many bytes together.

    Raises:
        StoreRefused: they have not: the log is damaged.
    """
    left = size
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            left -= len(piece)
            if left < 0:
                break
            yield piece
    if left:
        raise StoreRefused(
            f"the stored log has not the {size} bytes it is said to: restore a backup"
        )


def _encoding(request: web.Request) -> tuple[str, Encoder]:
    timestamps = flag(request, "timestamps")
    if NDJSON in request.headers.get("Accept", ""):
        return NDJSON, records.ndjson
    return TEXT, records.TimedText().text if timestamps else records.text

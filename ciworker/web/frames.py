"""Server-sent events as bytes. What many watch is encoded once for all of them."""

import random
from functools import lru_cache

from ciworker.domain.log import Chunk, Stream, Unfinished
from ciworker.web.records import data_lines, partial_record

COMMENT = b":\n\n"


@lru_cache(maxsize=32)
def log(name: str, chunk: Chunk, *, numbered: bool) -> bytes:
    """Lines. All who watch hold the same chunk, so finding its frame costs the chunk's hash."""
    number = b"id: %d\n" % chunk.last if numbered else b""
    return b"event: %b\n%b%b\n" % (name.encode(), data_lines(chunk), number)


@lru_cache(maxsize=32)
def partial(name: str, stream: Stream, text: Unfinished | None) -> bytes:
    """What a stream has printed since its last newline; None: nothing, and there was something."""
    return f"event: {name}\ndata: ".encode() + partial_record(stream, text) + b"\n\n"


def event(name: str, body: bytes, event_id: str | None = None) -> bytes:
    """A job, as JSON on one line."""
    numbered = f"id: {event_id}\n" if event_id else ""
    return f"event: {name}\n{numbered}data: ".encode() + body + b"\n\n"


def retry() -> bytes:
    """When to come back; not all at once."""
    return b"retry: %d\n\n" % random.randint(1000, 3000)  # noqa: S311 # jitter

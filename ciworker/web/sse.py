"""Server-sent events: a job's lines and states; the states of all jobs, with the lines of some.

A stream is made of parts, each with a cursor and nothing else. In turns they say what there is
after their cursors; when none has anything to say, the stream waits for their signals. It ends
before its time when the worker goes down, and when what let its reader in no longer would.
"""

import contextlib
import re
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import chain
from typing import Protocol

from aiohttp import HttpVersion11, web

from ciworker.domain.job import Job
from ciworker.domain.log import Chunk, Stream, Unfinished
from ciworker.errors import Invalid, Unknown
from ciworker.feed.feed import Signal
from ciworker.store.logs import BYTES_PER_READ
from ciworker.web import frames
from ciworker.web.access import UNTIL, is_still_in
from ciworker.web.answers import before_first, flag, found
from ciworker.web.audience import Seat, audience_of
from ciworker.web.context import CONTEXT, Context
from ciworker.web.detail import ended
from ciworker.web.models import job_model
from ciworker.web.problems import Refused
from ciworker.web.streaming import streamed

COMMENT_INTERVAL = 15.0
END = "end"
MOST_FOLLOWED = 32
BYTES_PER_TURN = 128 * 2**10  # of one of several jobs, so that each soon has its turn
CHANGES_PER_TURN = 100

Rest = Callable[[int], Awaitable[bool]]

_FOLLOW = re.compile(r"([0-9A-Z]{26})\.(\d{1,15})", re.ASCII | re.IGNORECASE)
_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
}


async def job_events(request: web.Request) -> web.StreamResponse:
    """A job's lines and states, live, until it ends."""
    context, own = request.app[CONTEXT], await _own(request)
    if own is None:
        return web.Response(status=204)
    parts = (own,)
    with context.watchers.watching("job", parts):
        rest = own.seated(request) if request.version >= HttpVersion11 else None
        return await streamed(request, _HEADERS, stream(Gate(request), parts, rest))


async def all_events(request: web.Request) -> web.StreamResponse:
    """State changes of all jobs, and the lines of those that are followed, live."""
    context = request.app[CONTEXT]
    newest = await context.jobs.last_change()
    after = _last_event_id(request, newest)
    changes = Changes(context, newest if after is None else after)
    watched = await _followed(request, context)
    with context.watchers.watching("all", watched):
        return await streamed(request, _HEADERS, stream(Gate(request), [changes, *watched]))


class Gate:
    """Whether a stream may go on.

    What closes it wakes all that wait on the feed, except the time of a session or token, for
    which a comment's is soon enough. Only when some access ends is the store asked whether it was
    this one.
    """

    __slots__ = ("_context", "_ended", "_request")

    def __init__(self, request: web.Request) -> None:
        self._request, self._context = request, request.app[CONTEXT]
        self._ended = -1  # not asked yet: it may have ended since the request was let in

    async def open(self) -> bool:
        if self._context.closing.version:
            return False
        ended = self._context.access_ended.version
        if ended != self._ended:
            self._ended = ended
            return await is_still_in(self._request)
        until = self._request.get(UNTIL)
        return until is None or until > self._context.now()


class Part(Protocol):
    """One source of a stream's events.

    changed: fires when it may have some. more: it may have some now, though nothing changed since
    its last turn. done: it never will have any again.
    """

    changed: Signal
    more: bool
    done: bool

    async def turn(self) -> Iterable[bytes]:
        """Some of the frames that there are to send now, to be taken at once; or none."""

    def handed_over(self) -> None:
        """What the last turn said is in the reader's socket."""


class Changes:
    """State changes of all jobs."""

    def __init__(self, context: Context, after: int) -> None:
        self.changed = context.feed.jobs_changed
        self.more = self.done = False
        self._context, self._after = context, after

    async def turn(self) -> Iterable[bytes]:
        said = []
        changes = await self._context.jobs.changes(self._after, limit=CHANGES_PER_TURN)
        self.more = bool(changes)
        for change in changes:
            self._after = change.id
            job = _with_lines(self._context, change.job)
            said.append(frames.event("status", _json(job), str(change.id)))
        return said

    def handed_over(self) -> None:
        """States are not timed."""


class FollowedJob:
    """The lines of one of several jobs, until its end. Its states are told with all others'."""

    __slots__ = (
        "_after", "_context", "_end", "_handed", "_job_id", "_partial", "_read_at", "_states",
        "_topic", "_up_to_date", "changed", "done", "more",
    )  # fmt: skip
    _size = BYTES_PER_TURN

    def __init__(self, context: Context, job_id: str, after: int) -> None:
        self._topic = context.feed.topic(job_id)
        self.changed = self._topic.changed
        self.more = self.done = False
        self._context, self._job_id, self._after = context, job_id, after
        self._states = -1
        self._end = b""
        self._partial: Mapping[Stream, Unfinished] = {}
        self._up_to_date = False  # it was at the end of the log: what comes from now on is live
        self._read_at: float | None = None  # the first of the live lines of the last turn
        self._handed = after  # the last line that is in the reader's socket

    async def turn(self) -> Iterable[bytes]:
        states = await self._look() if self._states != self._topic.states else ()
        chunks = await self._context.feed.read(self._job_id, self._after, self._size)
        if chunks:
            self._read_at = self._topic.read_at(self._after + 1) if self._up_to_date else None
            self._after = chunks[-1].last
            self._forget_partial(chunks)
        self.more = bool(chunks) and (bool(self._end) or self._after != self._topic.last)
        self.done = bool(self._end) and not chunks
        self._up_to_date = self._up_to_date or not self.more
        return chain(states, map(self._lines, chunks), self._unfinished(), self._ending())

    def handed_over(self) -> None:
        self._handed = self._after
        if self._read_at is not None:
            self._context.metrics.watchers.handed_over(self._read_at)
            self._read_at = None

    @property
    def behind(self) -> int:
        """How many of the lines that were shown are not in its socket."""
        return max(0, self._topic.last - self._handed)

    def _forget_partial(self, chunks: Iterable[Chunk]) -> None:
        """What was unfinished of these streams is in their lines."""
        if self._partial:
            ended = {run.stream for chunk in chunks for run in chunk.runs}
            self._partial = {s: text for s, text in self._partial.items() if s not in ended}

    def _ending(self) -> Sequence[bytes]:
        """Once the job has ended and all its lines are told."""
        return (self._end,) if self.done else ()

    async def _look(self) -> Sequence[bytes]:
        """Look at the job's state; what is to say of it at once."""
        self._states = self._topic.states
        job = await _current(self._context, self._job_id)
        if job is None:
            raise Unknown(f"there is no job {self._job_id!r} any more")
        if job.status.terminal:
            self._end = self._told_end(await ended(self._context, job))
            return ()
        return self._told_state(job)

    def _unfinished(self) -> Sequence[bytes]:
        """What changed of it since it was last told."""
        shown, told = self._topic.unfinished(self._after), self._partial
        if shown is None or shown == told:
            return ()
        self._partial = shown
        name = self._name("partial")
        return [
            frames.partial(name, stream, shown.get(stream))
            for stream in sorted({*told, *shown})
            if shown.get(stream) != told.get(stream)
        ]

    # where a job's own stream says it otherwise

    def _name(self, event: str) -> str:
        return f"{event}.{self._job_id}"

    def _told_state(self, _job: Job) -> Sequence[bytes]:
        return ()

    def _told_end(self, job: bytes) -> bytes:
        return frames.event(self._name(END), job)

    def _lines(self, chunk: Chunk) -> bytes:
        return frames.log(self._name("log"), chunk, numbered=False)


class OwnJob(FollowedJob):
    """A job's lines and states, in a stream of its own, which can be resumed by line numbers."""

    __slots__ = ()
    _size = BYTES_PER_READ

    def seated(self, request: web.Request) -> Rest:
        """Waits in the job's audience wherever the reader has all lines that there are.

        What an audience is told is written beside the response, chunked as HTTP/1.1 has it.
        """
        audience = audience_of(self._topic, self._context.metrics.watchers, COMMENT_INTERVAL)
        seat = Seat(request, self, may_expire=request.get(UNTIL) is not None)

        async def rest(seen: int) -> bool:
            if self.changed.version != seen or self._topic.last != self._after:
                return await self.changed.wait(seen, COMMENT_INTERVAL)
            await audience.sit(seat)
            return True

        return rest

    @property
    def next_line(self) -> int:
        return self._after + 1

    def given(self, chunk: Chunk) -> None:
        """By the audience."""
        self._after = self._handed = chunk.last
        self._forget_partial((chunk,))

    def _name(self, event: str) -> str:
        return event

    def _told_state(self, job: Job) -> Sequence[bytes]:
        return (frames.event("status", _json(job)),)

    def _told_end(self, job: bytes) -> bytes:
        return frames.event(END, job, END)

    def _lines(self, chunk: Chunk) -> bytes:
        return frames.log("log", chunk, numbered=True)


async def stream(
    gate: Gate, parts: Sequence[Part], rest: Rest | None = None
) -> AsyncGenerator[bytes]:
    """All that the parts say, until all are done or the gate closes.

    rest: waits for a change since a version of their signal; False when a comment is due.
    """
    yield frames.retry()
    heard = dict.fromkeys(parts, -1)  # the version of its signal at a part's last turn
    with _any_of([part.changed for part in parts]) as changed:
        while heard:
            seen = changed.version
            if not await gate.open():
                return
            for part, version in list(heard.items()):
                if not part.more and part.changed.version == version:
                    continue
                heard[part] = part.changed.version
                for frame in await part.turn():
                    yield frame
                    if not await gate.open():
                        return
                frame = b""  # an idle stream holds no chunk
                part.handed_over()
                if part.done:
                    del heard[part]
            idle = bool(heard) and not any(part.more for part in heard)
            if idle and not await (rest(seen) if rest else changed.wait(seen, COMMENT_INTERVAL)):
                yield frames.COMMENT  # nothing changed, so nothing is asked


def _any_of(signals: Sequence[Signal]) -> AbstractContextManager[Signal]:
    """A signal that fires, within the block, whenever one of these does.

    For one alone it is that one, without a generator: most streams have one, and are idle.
    """
    return contextlib.nullcontext(signals[0]) if len(signals) == 1 else _relayed(signals)


@contextlib.contextmanager
def _relayed(signals: Sequence[Signal]) -> Iterator[Signal]:
    changed = Signal()
    with contextlib.ExitStack() as relays:
        for signal in signals:
            relays.enter_context(signal.relayed(changed))
        yield changed


def _json(job: Job) -> bytes:
    return job_model(job).model_dump_json().encode()


async def _current(context: Context, job_id: str) -> Job | None:
    """The job as it was last committed, with the lines that were since."""
    job = await context.jobs.current(job_id)
    return _with_lines(context, job) if job is not None else None


def _with_lines(context: Context, job: Job) -> Job:
    lines = context.feed.last_line(job.id)
    return replace(job, log_lines=lines) if lines > job.log_lines else job


async def _followed(request: web.Request, context: Context) -> Sequence[FollowedJob]:
    texts = request.query.getall("follow", [])
    if len(texts) > MOST_FOLLOWED:
        raise Invalid(f"{len(texts)} jobs cannot be followed at once: at most {MOST_FOLLOWED}")
    places = dict(_place(text) for text in texts)
    if len(places) < len(texts):
        raise Invalid("follow names a job twice")
    return [await _follow(context, job_id, after) for job_id, after in places.items()]


def _place(text: str) -> tuple[str, int]:
    match = _FOLLOW.fullmatch(text)
    if match is None:
        raise Invalid(f"follow has to be a job's id, a dot and a line's number, not {text[:50]!r}")
    return match[1].upper(), int(match[2])


async def _follow(context: Context, job_id: str, after: int) -> FollowedJob:
    if await context.jobs.current(job_id) is None:
        raise Unknown(f"there is no job {job_id!r}: see `ciclient list`")
    last = (await context.logs.end(job_id)).last
    if after > last:
        raise Refused(400, f"line {after} of job {job_id} is past its last one, {last}")
    return FollowedJob(context, job_id, after)


async def _own(request: web.Request) -> OwnJob | None:
    """None for whoever has all that there will ever be."""
    context, job = request.app[CONTEXT], await found(request)
    if request.headers.get("Last-Event-ID") == END:
        return None
    return OwnJob(context, job.id, await _start(request, context, job))


async def _start(request: web.Request, context: Context, job: Job) -> int:
    """The number of the last line that the client has or does not want."""
    last = (await context.logs.end(job.id)).last
    resumed = _last_event_id(request, last)
    if resumed is not None:
        return resumed
    return last if flag(request, "now") else before_first(request, last)


def _last_event_id(request: web.Request, last: int) -> int | None:
    text = request.headers.get("Last-Event-ID")
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refused(400, f"Last-Event-ID has to be a number, not {text[:50]!r}")
    if int(text) > last:
        raise Refused(400, f"Last-Event-ID {text} is past the last one, {last}")
    return int(text)

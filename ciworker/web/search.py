"""Search in a job's stored log: in threads of its own, bounded in time, constant in memory.

An answer takes TIME_LIMIT from its turn on, and a step of `domain.search` more.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from aiohttp import web

from ciworker.domain.job import Job
from ciworker.domain.log import PackedChunk
from ciworker.domain.search import Matcher, blocks, excerpt, expression, literal
from ciworker.errors import Invalid, TryAgain, Unknown
from ciworker.web.answers import flag, found, json_answer, limited, named, number, parameter
from ciworker.web.context import CONTEXT
from ciworker.web.models import LogHit, LogSearch
from ciworker.web.problems import Refused

TIME_LIMIT = 2.0
AT_ONCE = 2
MOST_WAITING = 16
HITS = 100
MOST_HITS = 1000
MOST_CHARACTERS = 1000
CHUNKS_PER_TURN = 2000  # the store bounds their bytes

T = TypeVar("T")


class Turns:
    """Lets AT_ONCE searches hold parts of a log and a thread, and MOST_WAITING wait for that."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the block.

        Raises:
            Refused: too many wait.
        """
        if self._waiting == MOST_WAITING:
            raise Refused(
                429,
                f"{MOST_WAITING} searches wait already: ask again in a few seconds",
                {"Retry-After": str(round(TIME_LIMIT))},
            )
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()


_THREADS = ThreadPoolExecutor(AT_ONCE, "search")
_TURNS = Turns()


class Search:
    """One call's way through the log, in a thread.

    hits: the first of them. total: how many lines were found. rest: the number of the first line
    that is found and not among the hits; unless `counts`, nothing is looked at after it. stopped:
    that of the first line not looked at, once the time is over.
    """

    def __init__(
        self, matcher: Matcher, limit: int, *, counts: bool, check: Callable[[], None]
    ) -> None:
        self.hits: list[LogHit] = []
        self.total = 0
        self.rest: int | None = None
        self.stopped: int | None = None
        self._matcher, self._limit, self._counts, self._check = matcher, limit, counts, check
        self._until = time.monotonic() + TIME_LIMIT
        self._looked_at_some = False

    @property
    def over(self) -> bool:
        """Nothing more is looked at, though there may be more."""
        return self.stopped is not None or (self.rest is not None and not self._counts)

    def look(self, chunks: Sequence[PackedChunk], after: int) -> None:
        """Look through their lines after number `after`; through one at least, however late.

        Raises:
            Invalid: the time is not enough for one line. TryAgain: the answer is not wanted now.
        """
        for chunk in chunks:
            for first, block in blocks(chunk, after, self._matcher.block):
                try:
                    self._look(first, block)
                except _LateError:
                    self._give_up(first, block)
                if self.over:
                    return
                self._looked_at_some = True
                if self._late:
                    self.stopped = first + block.count(b"\n") + 1
                    return

    @property
    def _late(self) -> bool:
        self._check()
        return time.monotonic() >= self._until

    def _look(self, first: int, block: bytes) -> None:
        lines: list[bytes] = []
        for line, at in self._matcher.lines(block, self._pause):
            self.total += 1
            if len(self.hits) < self._limit:
                lines = lines or block.split(b"\n")
                self.hits.append(LogHit(n=first + line, text=excerpt(lines[line], at)))
            elif self.rest is None:
                self.rest = first + line
            if self.over:
                return
            if self._late:
                self.stopped = first + line + 1
                return

    def _pause(self) -> None:
        if self._late:
            raise _LateError

    def _give_up(self, number: int, line: bytes) -> None:
        """In the middle of a line: it is the next call's first, which has all its time for it."""
        if not self._looked_at_some:
            raise Invalid(
                f"q takes too long in line {number}, which has {len(line)} bytes: make it simpler, "
                f"or go on with from={number + 1}"
            )
        self.stopped = number


class _LateError(Exception):
    """The time is over in the middle of a line."""


async def search_log(request: web.Request) -> web.Response:
    """Lines that have a text, or match an expression."""
    with request.app[CONTEXT].logs.reading(named(request)):
        return await _searched(request, await found(request))


async def _searched(request: web.Request, job: Job) -> web.Response:
    make = _sought(request)
    limit = limited(request, HITS, MOST_HITS)
    after = max(0, number(request, "from", 1) - 1)
    counts = flag(request, "total", default=not after)
    check = partial(_check_wanted, request)
    async with _TURNS.one():
        check()
        search = Search(await _in_thread(make), limit, counts=counts, check=check)
        await _look_through(request, job.id, search, after)
    return json_answer(
        LogSearch(
            hits=search.hits,
            total=None if search.over else search.total,
            next=search.rest or search.stopped,
        )
    )


async def _look_through(request: web.Request, job_id: str, search: Search, after: int) -> None:
    logs = request.app[CONTEXT].logs
    last = (await logs.end(job_id)).last
    while after < last and not search.over:
        chunks = await logs.packed(job_id, after, CHUNKS_PER_TURN)
        if not chunks:
            raise Unknown(f"job {job_id} was removed while its log was searched")
        await _in_thread(partial(search.look, chunks, after))
        after = chunks[-1].last
    if search.stopped is not None and search.stopped > last:
        search.stopped = None


def _check_wanted(request: web.Request) -> None:
    """Also called in a thread: it only looks.

    Raises:
        TryAgain: the worker goes down, or whoever asked has closed the connection, as a page does
            when its reader types on.
    """
    if request.app[CONTEXT].closing.version or request.transport is None:
        raise TryAgain("the worker is being stopped: ask again once it is back")


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, work)


def _sought(request: web.Request) -> Callable[[], Matcher]:
    """Makes what is looked for, which may take some time."""
    q = parameter(request, "q")
    if not q or len(q) > MOST_CHARACTERS or "\n" in q:
        raise Invalid(
            f"q has to be what to look for: one line of 1 to {MOST_CHARACTERS} characters"
        )
    return partial(expression if flag(request, "regex") else literal, q)

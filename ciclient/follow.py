"""One job's events over any number of connections: each line once, in order, to the end.

The cursor is the number of the last line handed on. A lost connection resumes behind it; a line
that comes again is dropped; a number that is skipped is asked for again on a new connection.
A stream that ends without the job's `end` was lost, never finished: only `Ended` ends `events`.
"""

import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ciclient.errors import TryAgain, Unreachable
from ciclient.sse import Parser, ServerEvent
from ciclient.wire import Job, Record, Unfinished, loads, parse_records, parse_unfinished

if TYPE_CHECKING:
    from ciclient.api import Api, Params

LONGEST_PAUSE = 15.0


@dataclass(frozen=True, slots=True)
class Lines:
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Partial:
    """What stands below the lines for now; lines of its stream, a lost connection and the end
    take it away without a word."""

    unfinished: Unfinished


@dataclass(frozen=True, slots=True)
class Missing:
    """Lines the server still doesn't have after it was asked twice (its log limit)."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Changed:
    job: Job


@dataclass(frozen=True, slots=True)
class Ended:
    job: Job


@dataclass(frozen=True, slots=True)
class Reconnecting:
    reason: str
    pause: float  # seconds


@dataclass(frozen=True, slots=True)
class Reconnected:
    pass


Event = Lines | Partial | Missing | Changed | Ended | Reconnecting | Reconnected


class _Gap(Exception):
    """Lines are missing in front of the one that just came."""


class JobStream:
    """`start` is the query of the first connection: `from`, `tail` or `now`.

    `established` says that the server has answered just before, so that even the first
    connection is tried again; else its failure is raised.
    """

    def __init__(
        self,
        api: "Api",
        job: Job,
        start: "Params",
        *,
        established: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._job = job
        self._start = start
        self._established = established
        self._sleep = sleep
        self._jitter = jitter
        self._failures = 0
        self._retry = 1.0
        first = start.get("from")
        self._last = first - 1 if isinstance(first, int) else None
        self._gap_before: int | None = None
        self._lines_before = job.log_lines

    def events(self) -> Generator[Event, None, None]:
        while True:
            try:
                yield from self._connection()
            except _Gap:
                continue
            except TryAgain as lost:
                if not self._established:
                    raise
                pause = self._next_pause(lost)
                yield Reconnecting(str(lost), pause)
                self._sleep(pause)
                continue
            return

    def _connection(self) -> Iterator[Event]:
        params, last_id = self._position()
        with self._api.events(self._job.id, params, last_id) as blocks:
            self._established = True
            if blocks is None:
                yield self._ended_already()
                return
            if self._failures:
                yield Reconnected()
            parser = Parser()
            for block in blocks:
                events = parser.feed(block)
                if parser.retry_ms is not None:
                    self._retry = parser.retry_ms / 1000
                for event in events:
                    self._failures = 0
                    yield from self._handle(event)
                    if event.name == "end":
                        return
        raise Unreachable("lost", "the server closed the stream")

    def _handle(self, event: ServerEvent) -> Iterator[Event]:
        if event.name == "log":
            yield from self._lines(event)
        elif event.name == "partial":
            yield Partial(parse_unfinished(loads(b"\n".join(event.data))))
        elif event.name == "status":
            self._job = _job_of(event)
            yield Changed(self._job)
        elif event.name == "end":
            self._job = _job_of(event)
            yield Ended(self._job)

    def _lines(self, event: ServerEvent) -> Iterator[Event]:
        for run in _runs(parse_records(event.data)):
            seen = self._last
            fresh = run if seen is None else [record for record in run if record.n > seen]
            if not fresh:
                continue
            yield from self._gap_check(fresh[0].n)
            self._last = fresh[-1].n
            yield Lines(tuple(fresh))

    def _gap_check(self, number: int) -> Iterator[Event]:
        """Asks once more for lines that were skipped; the second time they are really missing."""
        if self._last is None or number == self._last + 1:
            return
        if self._gap_before != number:
            self._gap_before = number
            raise _Gap
        yield Missing(self._last + 1, number - 1)

    def _position(self) -> "tuple[Params, int | None]":
        """Query and Last-Event-ID of the next connection."""
        if self._last:
            return {}, self._last
        if self._failures and "now" in self._start and self._lines_before is not None:
            # new lines only, as of the moment when it was asked, not of the reconnect
            return {"from": self._lines_before + 1}, None
        return self._start, None

    def _ended_already(self) -> Ended:
        job = self._api.job(self._job.id)
        if not job.ended:
            raise Unreachable("lost", "the server closed the stream")
        return Ended(job)

    def _next_pause(self, lost: TryAgain) -> float:
        """Doubles with each failure, from what the server's `retry:` says, give or take half."""
        pause = min(self._retry * 2.0**self._failures, LONGEST_PAUSE)
        self._failures = min(self._failures + 1, 16)
        return max(pause * (0.5 + self._jitter()), lost.retry_after or 0.0)


def _job_of(event: ServerEvent) -> Job:
    return Job.parse(loads(b"\n".join(event.data)))


def _runs(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cuts records where a number is not the one before plus one; as a rule there is one run."""
    run: list[Record] = []
    for record in records:
        if run and record.n != run[-1].n + 1:
            yield run
            run = []
        run.append(record)
    if run:
        yield run

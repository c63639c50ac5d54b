"""Those who have every line of a job and wait for the next: each new chunk is encoded once for all.

It is written to all of them in one go, as one buffer each, without waking anybody's task. One whose
socket does not take it all leaves, is drained by its own task, reads on from the feed where it is,
and comes back when it is at the end again: so what is held for a reader is bounded by a chunk
beyond the transport's own limit.
"""

import asyncio
from typing import Protocol

from aiohttp import web

from ciworker.domain.log import Chunk
from ciworker.feed.feed import Topic
from ciworker.metrics import WatcherMetrics
from ciworker.web import frames
from ciworker.web.streaming import drained

LOOKS = 50  # for whom a comment is due, in a comment's interval: never is it due for all at once


class Place(Protocol):
    """Where a reader is in the log."""

    @property
    def next_line(self) -> int:
        """The number of the line that it waits for."""

    def given(self, chunk: Chunk) -> None:
        """It has these lines, which begin with that one."""


class Seat:
    """One reader's connection. may_expire: now and then its task has to look."""

    __slots__ = ("_protocol", "_request", "_woken", "due", "may_expire", "place")

    def __init__(self, request: web.Request, place: Place, *, may_expire: bool) -> None:
        self.place = place
        self.may_expire = may_expire
        self.due = 0.0  # when a comment is, by the loop's clock
        self._request = request
        self._protocol = request.protocol
        self._woken: asyncio.Future[None] | None = None

    async def woken(self) -> None:
        """Until `wake`, and then until its socket takes more."""
        self._woken = asyncio.get_running_loop().create_future()
        try:
            await self._woken
        finally:
            self._woken = None
        if self._protocol.writing_paused:
            await drained(self._request)

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def give(self, chunk: Chunk, piece: bytes) -> bool:
        """False when it can't follow: its task has to go on."""
        if chunk.first != self.place.next_line or not self.write(piece):
            return False
        self.place.given(chunk)
        return not self._protocol.writing_paused

    def write(self, piece: bytes) -> bool:
        """False when the reader is gone."""
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            return False
        transport.write(piece)
        return True


class Audience:
    """The seats of one job."""

    def __init__(self, metrics: WatcherMetrics, interval: float) -> None:
        """Without anybody yet.

        Args:
            metrics: where is counted how old lines are.
            interval: seconds between two comments.
        """
        self._metrics, self._interval = metrics, interval
        self._seats: dict[Seat, None] = {}  # in the order in which comments are due
        self._timer: asyncio.TimerHandle | None = None

    async def sit(self, seat: Seat) -> None:
        """Be given what is new, and comments, until the seat's task has something to do."""
        loop = asyncio.get_running_loop()
        seat.due = loop.time() + self._interval
        self._seats[seat] = None
        if self._timer is None:
            self._set_timer(loop)
        try:
            await seat.woken()
        finally:
            self._seats.pop(seat, None)

    def lines(self, chunk: Chunk, read_at: float) -> None:
        """To everybody here."""
        if not self._seats:
            return
        piece = as_piece(frames.log("log", chunk, numbered=True))
        self._dismiss([seat for seat in self._seats if not seat.give(chunk, piece)])
        self._metrics.handed_over(read_at)

    def news(self) -> None:
        """Everybody's task looks what it is."""
        self._dismiss(list(self._seats))

    def _dismiss(self, seats: list[Seat]) -> None:
        for seat in seats:
            del self._seats[seat]
            seat.wake()

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(self._interval / LOOKS, self._comment, loop)

    def _comment(self, loop: asyncio.AbstractEventLoop) -> None:
        """To those for whom it is due; the time of some access may be over."""
        self._timer, now, due = None, loop.time(), list[Seat]()
        for seat in self._seats:
            if seat.due > now:
                break
            due.append(seat)
        piece = as_piece(frames.COMMENT)
        for seat in due:
            del self._seats[seat]
            if seat.write(piece) and not seat.may_expire:
                seat.due = now + self._interval
                self._seats[seat] = None
            else:
                seat.wake()
        if self._seats:
            self._set_timer(loop)


def audience_of(topic: Topic, metrics: WatcherMetrics, interval: float) -> Audience:
    """The topic's; made if it has none yet."""
    if not isinstance(topic.listener, Audience):
        topic.listener = Audience(metrics, interval)
    return topic.listener


def as_piece(frame: bytes) -> bytes:
    """As HTTP's chunked encoding has it."""
    return b"%x\r\n%b\r\n" % (len(frame), frame)

"""The engine's event stream, kept open for ever.

Events are hints: one only says which container to look at. On every (re)connect the stream is
opened with `since` just before the last event seen and drained from then on, and only then is
everything listed, so that nothing can fall between the two.

A reader that stalls slows the whole daemon (engine-facts, rule 2): the callbacks are plain
functions that only note and enqueue.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine

from ciworker.engine.port import Engine, Event, event_time
from ciworker.errors import CiworkerError, EngineUnavailable
from ciworker.metrics import EngineMetrics, Metrics
from ciworker.telemetry import logger

SIGN_OF_LIFE = 1.0  # seconds for which an event proves that the engine is there
MOMENT = 1.0  # seconds that the engine may be out of sight until nothing more is accepted
BACKOFF_FIRST = 0.1
BACKOFF_MOST = 5.0
OVERLAP = 2.0  # seconds replayed at the first connect; taking an event twice does no harm


class EventWatch:
    """Connects, drains, reconnects; knows whether the engine was restarted in between."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_event: Callable[[Event], None],
        on_connected: Callable[[], Awaitable[None]],
        on_restarted: Callable[[], Awaitable[None]],
        on_sight: Callable[[bool], None],
        on_witness: Callable[[Event | None], None],
        witness: Event | None = None,
        metrics: EngineMetrics | None = None,
    ) -> None:
        """Take the callbacks.

        Args:
            engine: whose events.
            on_event: called for each event; returns at once.
            on_connected: lists everything and adds every key.
            on_restarted: the engine no longer knows an event that it told of.
            on_sight: whether the stream is open, and a restart before that was told.
            on_witness: called with the newest event that proves a restart once the engine does
                not know it any more; None while there is none. Returns at once.
            witness: such an event of an earlier life of the worker.
            metrics: where it is counted that the stream is opened again.
        """
        self._engine = engine
        self._on_event = on_event
        self._on_connected = on_connected
        self._on_restarted = on_restarted
        self._on_sight = on_sight
        self._on_witness = on_witness
        self._metrics = metrics or Metrics().engine
        self._opened_before = False
        self._stream: asyncio.Timeout | None = None
        self._heard_at = -SIGN_OF_LIFE  # monotonic seconds, as is the next
        self._lost_at = -MOMENT
        self._last: Event | None = None
        self._witness = witness
        self._asked = False  # for the witness, on this connection: until then none takes its place
        self._backoff = BACKOFF_FIRST
        self._hurried, self._news = asyncio.Event(), asyncio.Event()
        self._tries, self._in_sight = 0, False
        self._failed = 0  # number of the last try to open the stream that failed, or broke
        self.connected = asyncio.Event()

    async def check(self) -> None:
        """Whether the engine can be used now; while it tells of events that costs nothing.

        Raises:
            EngineUnavailable: it cannot be reached, or is frozen.
        """
        await self._connected_or_soon()
        if time.monotonic() - self._heard_at < SIGN_OF_LIFE:
            return
        try:
            await self._engine.ping()
        except EngineUnavailable:
            self.reconnect()
            raise

    async def _connected_or_soon(self) -> None:
        """A stream that has just broken is mostly open again in a moment."""
        left = self._lost_at + MOMENT - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                await self.connected.wait()
        except TimeoutError:
            raise EngineUnavailable(
                "the Docker engine does not answer: start it, then see `ciworker doctor`"
            ) from None

    def reconnect(self) -> None:
        """The open stream does not tell what happens: give it up for another one."""
        if self._stream is not None:
            with contextlib.suppress(RuntimeError):  # it is being given up already
                self._stream.reschedule(asyncio.get_running_loop().time())

    async def hurry(self) -> None:
        """Try now to open the stream, if it is not; return once that was told or has failed.

        Of a stream that cannot be opened in a moment it is not waited for.
        """
        tries = self._tries
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MOMENT):
                while not self._in_sight and self._failed <= tries:
                    self._hurried.set()
                    await self._news.wait()

    async def run(self) -> None:
        """For ever: a broken stream is never the failure of a job."""
        while True:
            self._tries += 1
            error = await self._connection()
            logger().warning("engine events lost", error=str(error), retry_in=self._backoff)
            if self.connected.is_set():
                self._lost_at = time.monotonic()
            self.connected.clear()
            self._failed = self._tries
            self._tell_sight(False)
            await self._pause()
            self._backoff = min(self._backoff * 2, BACKOFF_MOST)

    async def _pause(self) -> None:
        self._hurried.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._backoff):
                await self._hurried.wait()

    def _tell_sight(self, seen: bool) -> None:
        self._in_sight = seen
        self._on_sight(seen)
        self._news.set()
        self._news = asyncio.Event()

    async def _connection(self) -> CiworkerError | None:
        """What broke it, or kept it from being opened."""
        try:
            since = await self._since()
        except CiworkerError as error:
            return error
        opened, self._asked = asyncio.Event(), False
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(_failure(self._drain(since, opened)))
            greeting = tasks.create_task(_failure(self._greet(self._last, opened)))
            await asyncio.wait({draining, greeting}, return_when=asyncio.FIRST_COMPLETED)
            if not draining.done() and greeting.result() is None:
                await asyncio.wait({draining})
            broken = draining if draining.done() else greeting
            draining.cancel()
            greeting.cancel()
        return broken.result()

    async def _greet(self, before: Event | None, opened: asyncio.Event) -> None:
        """Tell that the stream is open. before: the last event of earlier connections."""
        await opened.wait()
        self._metrics.reconnects.inc(self._opened_before)
        self._opened_before = True
        await self._ask_for_witness(before)
        self._tell_sight(True)
        await self._on_connected()
        self._backoff = BACKOFF_FIRST
        self.connected.set()

    async def _ask_for_witness(self, before: Event | None) -> None:
        """Tell of a restart of the engine, once."""
        if self._witness is not None and await self._engine.restarted_since(self._witness):
            await self._on_restarted()
            self._witness = None
            if self._last is before:
                self._last = None
        self._asked = True
        self._bear_witness(self._last or self._witness)

    def _bear_witness(self, event: Event | None) -> None:
        self._witness = event
        self._on_witness(event)

    async def _drain(self, since: str, opened: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(None) as self._stream:
                await self._tell_all(since, opened)
        except TimeoutError:
            raise EngineUnavailable(
                "the event stream is open, but did not tell what happened"
            ) from None
        finally:
            self._stream = None

    async def _tell_all(self, since: str, opened: asyncio.Event) -> None:
        async for event in self._engine.events(since):
            if event is None:
                opened.set()
                continue
            self._last, self._heard_at = event, time.monotonic()
            if self._asked:
                self._bear_witness(event)
            self._on_event(event)

    async def _since(self) -> str:
        info = await self._engine.info()  # at each connection: it looks at the engine's clock too
        if self._last is not None:
            return event_time(self._last)
        return f"{info.now - OVERLAP:.9f}"


async def _failure(work: Coroutine[object, object, None]) -> CiworkerError | None:
    """What `work` raised.

    A cancellation that collides with an error of a group's task is lost (Python before 3.13).
    """
    try:
        await work
    except CiworkerError as error:
        return error
    return None

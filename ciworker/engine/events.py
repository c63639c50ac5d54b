"""The engine's event stream, kept open for ever.

Events are hints: one only says which container to look at. On every (re)connect the stream is
opened with `since` just before the last event seen and drained from then on, and only then is
everything listed, so that nothing can fall between the two.

A reader that stalls slows the whole daemon (engine-facts, rule 2): the callbacks are plain
functions that only note and enqueue.
"""

import asyncio
from collections.abc import Awaitable, Callable

from ciworker.engine.port import Engine, Event, event_time
from ciworker.errors import CiworkerError
from ciworker.telemetry import logger

BACKOFF_FIRST = 0.1
BACKOFF_MOST = 5.0
OVERLAP = 2.0  # seconds replayed at the first connect; taking an event twice does no harm


class EventWatch:
    """Connects, drains, reconnects; knows whether the engine was restarted in between."""

    def __init__(
        self,
        engine: Engine,
        on_event: Callable[[Event], None],
        on_connected: Callable[[], Awaitable[None]],
        on_restarted: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the callbacks.

        Args:
            engine: whose events.
            on_event: called for each event; returns at once.
            on_connected: lists everything and adds every key.
            on_restarted: the engine no longer knows the last event we saw.
        """
        self._engine = engine
        self._on_event = on_event
        self._on_connected = on_connected
        self._on_restarted = on_restarted
        self._last: Event | None = None
        self._witness: Event | None = None  # of before the connection; kept until it was asked for
        self._backoff = BACKOFF_FIRST
        self.connected = asyncio.Event()

    async def run(self) -> None:
        """For ever: a broken stream is never the failure of a job."""
        while True:
            try:
                await self._connection()
            except* CiworkerError as errors:
                logger().warning(
                    "engine events lost", error=str(errors.exceptions[0]), retry_in=self._backoff
                )
            self.connected.clear()
            await asyncio.sleep(self._backoff)
            self._backoff = min(self._backoff * 2, BACKOFF_MOST)

    async def _connection(self) -> None:
        since = await self._since()
        self._witness = self._witness or self._last
        opened = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._drain(since, opened))
            await opened.wait()
            if self._witness is not None and not await self._engine.remembers(self._witness):
                await self._on_restarted()
            self._witness = None
            await self._on_connected()
            self._backoff = BACKOFF_FIRST
            self.connected.set()

    async def _drain(self, since: str, opened: asyncio.Event) -> None:
        async for event in self._engine.events(since):
            if event is None:
                opened.set()
                continue
            self._last = event
            self._on_event(event)

    async def _since(self) -> str:
        if self._last is not None:
            return event_time(self._last)
        return f"{(await self._engine.info()).now - OVERLAP:.9f}"

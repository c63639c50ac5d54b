"""A queue of keys, after client-go's: each key waits at most once and is worked on at most once.

A key that is added while it is worked on is worked on again afterwards, so nothing that happens
meanwhile is missed and no two workers ever hold one job.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

K = TypeVar("K")
R = TypeVar("R")


class WorkQueue(Generic[K, R]):
    """Keys to work off, each with the result its worker gives."""

    def __init__(self) -> None:
        self._waiting: deque[K] = deque()
        self._dirty: set[K] = set()
        self._active: set[K] = set()
        self._joined: dict[K, list[asyncio.Future[R]]] = {}
        self._answered: dict[K, list[asyncio.Future[R]]] = {}
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._something = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, key: K) -> None:
        """Ask for one look at `key`; returns at once."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._active:
            self._push(key)

    def add_after(self, key: K, delay: float) -> None:
        """Ask for a look in `delay` seconds, or sooner if that was asked for already."""
        loop = asyncio.get_running_loop()
        due, timer = loop.time() + max(0.0, delay), self._timers.get(key)
        if timer is not None:
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._ring, key)

    def forget_timer(self, key: K) -> None:
        """The look asked for by `add_after` is not needed any more."""
        if timer := self._timers.pop(key, None):
            timer.cancel()

    def join(self, key: K) -> asyncio.Future[R]:
        """As `add`; the future gets the result of a look that begins after this call."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._joined.setdefault(key, []).append(future)
        self.add(key)
        return future

    async def get(self) -> K:
        """The next key; the caller says `done` of it, whatever happens."""
        while not self._waiting:
            self._something.clear()
            await self._something.wait()
        key = self._waiting.popleft()
        self._dirty.discard(key)
        self._active.add(key)
        self._answered[key] = self._joined.pop(key, [])
        return key

    def done(self, key: K, result: R) -> None:
        """The look at `key` is over."""
        self._active.discard(key)
        for future in self._answered.pop(key, []):
            if not future.done():
                future.set_result(result)
        if key in self._dirty:
            self._push(key)

    def close(self) -> None:
        """Cancel what is still asked for."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for futures in (*self._joined.values(), *self._answered.values()):
            for future in futures:
                future.cancel()

    def _push(self, key: K) -> None:
        self._waiting.append(key)
        self._something.set()

    def _ring(self, key: K) -> None:
        del self._timers[key]
        self.add(key)

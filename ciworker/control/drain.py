"""Draining: nothing is started any more, and when all that runs has ended, the worker stops."""

import asyncio
import contextlib
from collections.abc import Callable

from ciworker.control.controller import Controller
from ciworker.control.keys import DISPATCH, job_key, pool_key
from ciworker.control.parts import Parts
from ciworker.control.pool import PoolController
from ciworker.errors import CiworkerError, Conflict
from ciworker.telemetry import logger

LOOK = 5.0  # seconds between looks at the store, though no job's state changed
TIDY = 10.0  # seconds for the containers of the last jobs to be removed; the next worker can too


class Drain:
    """Whether the worker drains; it is asked to, and to leave it, any number of times."""

    def __init__(
        self,
        parts: Parts,
        controller: Controller,
        pool: PoolController,
        stop: Callable[[], None],
    ) -> None:
        """Take the parts.

        Args:
            parts: of the worker.
            controller: it starts no job while the worker drains.
            pool: it has no members meanwhile.
            stop: ends the worker; called once.
        """
        self._controller, self._pool, self._stop = controller, pool, stop
        self._queue, self._jobs, self._engine = parts.queue, parts.jobs, parts.engine
        self._changed = parts.feed.jobs_changed
        self._wanted = asyncio.Event()
        self._undone = 0  # times
        self._over = False

    @property
    def wanted(self) -> bool:
        return self._wanted.is_set()

    @property
    def over(self) -> bool:
        """All that ran has ended, and the worker stops: this cannot be undone."""
        return self._over

    def begin(self) -> None:
        """Start nothing more; a second call changes nothing."""
        self._controller.accepting = False
        self._pool.set_draining(True)
        self._wanted.set()

    def undo(self) -> None:
        """Take and start jobs again.

        Raises:
            Conflict: all had ended, and the worker stops.
        """
        if self._over:
            raise Conflict("the worker has drained and stops now: start it again")
        self._wanted.clear()
        self._undone += 1
        self._controller.accepting = True
        self._pool.set_draining(False)
        self._queue.add(DISPATCH)

    async def run(self) -> None:
        """Wait until that is wanted and nothing runs; then stop the worker."""
        while not self._over:
            await self._wanted.wait()
            try:
                await self._look()
            except CiworkerError as error:  # the store's, for a while
                logger().warning("draining: a look is tried again", error=str(error))
                await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        seen, undone = self._changed.version, self._undone
        await self._queue.join(DISPATCH)  # one that was under way may have admitted a job
        if await self._jobs.active():
            await self._changed.wait(seen, LOOK)
            return
        with contextlib.suppress(CiworkerError, TimeoutError):
            await self._tidy()
        if self.wanted and undone == self._undone:  # else a job may have been admitted meanwhile
            self._over = True
            logger().info("drained: stopping")
            self._stop()

    async def _tidy(self) -> None:
        """The last jobs have their verdicts; see that their containers are gone too."""
        async with asyncio.timeout(TIDY):
            containers = await self._engine.list()
            keys = {job_key(c.job) if c.job else pool_key(c.name) for c in containers}
            await asyncio.gather(*map(self._queue.join, keys))

"""Keeps the engine's last event over a restart of the worker.

When a machine boots, worker and engine both come up anew: only an event that the engine does not
remember proves then that it was restarted, and that what it left of a job is not the job's own end.
"""

import asyncio
import json
from dataclasses import asdict
from typing import Self

from ciworker.engine.port import Event
from ciworker.errors import CiworkerError
from ciworker.store.meta import LastEvent
from ciworker.telemetry import logger

INTERVAL = 1.0  # seconds between two writes; an older event of the same engine proves the same
RETRY = 5.0


class Witness:
    """The last event, in the store soon after it came.

    event: at first that of an earlier life of the worker; None: there was none.
    """

    def __init__(self, stored: LastEvent, event: Event | None) -> None:
        self._stored = stored
        self.event = event
        self._changed = asyncio.Event()

    @classmethod
    async def recalled(cls, stored: LastEvent) -> Self:
        """As the store has it."""
        text = await stored.get()
        return cls(stored, Event(**json.loads(text)) if text else None)

    def keep(self, event: Event | None) -> None:
        """Have it stored, instead of the one before; returns at once."""
        if event != self.event:
            self.event = event
            self._changed.set()

    async def run(self) -> None:
        """For ever; writes nothing while no event comes."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._stored.put(_text(self.event))
                await asyncio.sleep(INTERVAL)
            except CiworkerError as error:  # the store's, for a while
                logger().warning("the last event is stored later", error=str(error))
                self._changed.set()
                await asyncio.sleep(RETRY)


def _text(event: Event | None) -> str | None:
    return json.dumps(asdict(event)) if event else None

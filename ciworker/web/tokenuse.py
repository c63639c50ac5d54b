"""When each token was last used: noted in memory by each request, stored beside them."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Protocol

from ciworker.errors import CiworkerError
from ciworker.telemetry import logger

INTERVAL = 60.0  # seconds between two writes


class Storing(Protocol):
    """Stores when tokens were last used, by id."""

    async def __call__(self, uses: Mapping[str, datetime], /) -> None: ...


class TokenUses:
    """The last use of each token since it was last stored; only ids of good tokens come here."""

    def __init__(self, store: Storing, interval: float = INTERVAL) -> None:
        self._store, self._interval = store, interval
        self._uses: dict[str, datetime] = {}
        self._noted = asyncio.Event()

    def note(self, token_id: str, at: datetime) -> None:
        """It was used."""
        self._uses[token_id] = at
        self._noted.set()

    def last(self, token_id: str) -> datetime | None:
        """What is not stored yet."""
        return self._uses.get(token_id)

    async def run(self) -> None:
        """Store, at most once an interval, for ever; asks nobody while no token is used."""
        while True:
            await self._noted.wait()
            await self.flush()
            await asyncio.sleep(self._interval)

    async def flush(self) -> None:
        """Store what was noted; what cannot be stored now is stored the next time."""
        self._noted.clear()
        noted = dict(self._uses)
        if not noted:
            return
        try:
            await self._store(noted)
        except CiworkerError as error:
            self._noted.set()
            logger().warning("the last use of tokens cannot be stored", error=str(error))
            return
        self._uses = {each: at for each, at in self._uses.items() if noted.get(each) != at}

"""The last that is told of jobs: they change no more, and many may ask at once."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

KEPT = 8  # jobs; as many as end at one time


class Ends:
    """The jobs that were asked for last, as they are sent."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._turn = asyncio.Lock()

    async def get(self, job_id: str, tell: Callable[[], Awaitable[bytes]]) -> bytes:
        """What is kept of this job, else what `tell` gives, which is asked once for all."""
        async with self._turn:
            if job_id not in self._kept:
                self._kept[job_id] = await tell()
            self._kept.move_to_end(job_id)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[job_id]

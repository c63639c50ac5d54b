"""Which environments the pool's places hold: those that were used last, as the store knows them.

A place keeps its key while that is among the most recent, over a restart of the worker too: what it
holds then is told by the image of its container. Looked at is the whole of an entry at once; places
whose key changes by that are looked at in turn.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ciworker.control.keys import pool_key
from ciworker.control.members import Member
from ciworker.control.parts import Parts
from ciworker.domain.job import Job, Kind
from ciworker.domain.pool import assign


class RecentEnvironments:
    """Gives the places of entries without an image the keys that they want."""

    def __init__(self, parts: Parts, members: Iterable[Member]) -> None:
        self._engine, self._queue = parts.engine, parts.queue
        self._environments = parts.environments
        self._entries: dict[str, list[Member]] = {}
        for member in members:
            if member.entry.image is None:
                self._entries.setdefault(member.entry.name, []).append(member)
        self._assigning = asyncio.Lock()  # so that an older answer never overwrites a newer one
        self._recalled: set[str] = set()  # entries
        self._used: dict[str, str] = {}  # keys, by jobs that started in them and have not ended

    @property
    def places(self) -> Iterator[Member]:
        """All that hold environments."""
        return (member for members in self._entries.values() for member in members)

    def held(self) -> Mapping[tuple[str, str], int]:
        """How many places hold each environment, or are to, by entry and key."""
        return Counter(
            (place.entry.name, place.environment)
            for place in self.places
            if place.environment is not None
        )

    def started(self, job: Job) -> None:
        """A job starts, in its environment if it has one."""
        if self._entries and job.kind is Kind.JOB and job.environment is not None:
            self._used[job.id] = job.environment

    def ended(self, job_id: str) -> None:
        """Its environment is parked from now on, if no place has it: the engine has time again."""
        key = self._used.pop(job_id, None)
        for members in self._entries.values():
            if key is not None and all(member.environment != key for member in members):
                self._queue.add(pool_key(members[0].name))

    async def image(self, member: Member) -> str | None:
        """The image's id that the place wants, None where there is no environment for it.

        Raises:
            EngineUnavailable, StoreUnavailable: it cannot be told now.
        """
        async with self._assigning:
            places = self._entries[member.entry.name]
            images = await self._environments.recently_used(len(places))
            if member.entry.name not in self._recalled:
                await self._recall(places, images)
                self._recalled.add(member.entry.name)
            wanted = assign([place.environment for place in places], list(images))
            for place, key in zip(places, wanted, strict=True):
                if place.environment != key and place is not member:
                    self._queue.add(pool_key(place.name))
                place.environment = key
            return images[member.environment] if member.environment else None

    async def _recall(self, places: Sequence[Member], images: Mapping[str, str]) -> None:
        """What these places held when the worker ended."""
        keys = {image: key for key, image in images.items()}
        held = {found.name: found.image for found in await self._engine.list() if found.parked}
        for place in places:
            place.environment = keys.get(held.get(place.name, ""))

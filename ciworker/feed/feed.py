"""**The log is the queue.** A subscriber holds no queue, only the number of the last line it has.

It reads what comes after from the job's ring of recent chunks or, if it fell behind that, from
the store. So none can lose, repeat or reorder a line, a slow one slows nobody, and what a
subscriber costs while it waits is one entry in an event's list of waiters.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

from ciworker.domain.log import Chunk, Line, Stream, Unfinished
from ciworker.store.logs import BYTES_PER_READ

RING_BYTES = 2**20
CHUNK_COST = 200  # bytes that a chunk takes beside its data, and that each of its runs takes
RUN_COST = 150
CHUNKS_PER_READ = 256


class StoredLines(Protocol):
    """The store's reading side, as far as the feed needs it."""

    async def chunks(self, job_id: str, after: int, limit: int, size: int) -> list[Chunk]: ...


class Signal:
    """Says that something changed; waiting never misses what came since `version` was read."""

    def __init__(self) -> None:
        self.version = 0
        self._event = asyncio.Event()
        self._relays: list[Signal] = []

    def fire(self) -> None:
        self.version += 1
        self._event.set()
        self._event = asyncio.Event()
        for relay in self._relays:
            relay.fire()

    @contextlib.contextmanager
    def relayed(self, to: "Signal") -> Iterator[None]:
        """Within the block `to` fires whenever this one does: to wait for any of several."""
        self._relays.append(to)
        try:
            yield
        finally:
            self._relays.remove(to)

    async def wait(self, seen: int, timeout: float) -> bool:
        """Until the version is not `seen` any more. False after `timeout` seconds without."""
        if self.version != seen:
            return True
        try:
            async with asyncio.timeout(timeout):
                await self._event.wait()
        except TimeoutError:
            return self.version != seen
        return True


class Listener(Protocol):
    """Is told of changes at once, and not by being woken. It must not take long."""

    def lines(self, chunk: Chunk, read_at: float) -> None:
        """A chunk is shown; `read_at` is when the worker had its first line, monotonic."""

    def news(self) -> None:
        """Something else changed."""


class Topic:
    """One job's recent chunks, and the signal that its log or its state changed.

    states: how often its state changed since somebody holds the topic. last: the number of the
    last line that is stored, as far as who holds the topic was told; 0 for not at all. listener:
    hears of each change before the signal fires.
    """

    def __init__(self) -> None:
        self.changed = Signal()
        self.listener: Listener | None = None
        self.states = 0
        self.last = 0
        self._unfinished: dict[Stream, Unfinished] = {}
        self._ring: deque[Chunk] = deque()
        self._read_at: deque[float] = deque()  # of the ring's chunks
        self._size = 0

    def append(self, chunk: Chunk, read_at: float | None = None) -> None:
        """Show a chunk that is stored; what was unfinished of its streams is in it.

        Args:
            chunk: follows the last one, or begins the log that is shown anew.
            read_at: when the worker had its first line, monotonic; None for now.
        """
        if self._ring and self._ring[-1].last + 1 != chunk.first:
            self._ring.clear()  # what is between them is in the store alone
            self._read_at.clear()
            self._size = 0
        read_at = time.monotonic() if read_at is None else read_at
        self._ring.append(chunk)
        self._read_at.append(read_at)
        self._size += _cost(chunk)
        while self._size > RING_BYTES and len(self._ring) > 1:
            self._size -= _cost(self._ring.popleft())
            self._read_at.popleft()
        self.last = chunk.last
        if self._unfinished:
            ended = {run.stream for run in chunk.runs}
            self._unfinished = {s: text for s, text in self._unfinished.items() if s not in ended}
        if self.listener is not None:
            self.listener.lines(chunk, read_at)
        self.changed.fire()

    def wake(self) -> None:
        """Let everyone look around, as something else than its lines changed."""
        if self.listener is not None:
            self.listener.news()
        self.changed.fire()

    def show_unfinished(self, texts: dict[Stream, Unfinished], last: int) -> None:
        """Show what has no newline yet, and is no line yet, behind line `last`."""
        self.last = last
        if texts != self._unfinished:
            self._unfinished = texts
            self.wake()

    def unfinished(self, after: int) -> Mapping[Stream, Unfinished] | None:
        """What stands behind line `after`; None for whoever is not where the log ends."""
        return self._unfinished if after == self.last else None

    def read_at(self, number: int) -> float | None:
        """When the worker had the chunk of line `number`; None for what the ring does not hold."""
        for chunk, at in zip(reversed(self._ring), reversed(self._read_at), strict=True):
            if chunk.first <= number:
                return at if number <= chunk.last else None
        return None

    def after(self, number: int) -> list[Chunk] | None:
        """Chunks with the lines after `number`; None when the ring does not reach back to it."""
        if not self._ring or self._ring[0].first > number + 1:
            return None
        found: deque[Chunk] = deque()
        for chunk in reversed(self._ring):
            if chunk.last <= number:
                break
            found.appendleft(chunk)
        if found and found[0].first <= number:
            found[0] = found[0].after(number)
        return list(found)


class Feed:
    """The topics of all jobs, and the signal that any job's state changed."""

    def __init__(self, stored: StoredLines) -> None:
        self.jobs_changed = Signal()
        self._stored = stored
        self._topics: WeakValueDictionary[str, Topic] = WeakValueDictionary()

    def topic(self, job_id: str) -> Topic:
        """The job's topic; it lives as long as somebody holds it."""
        found = self._topics.get(job_id)
        if found is None:
            found = self._topics[job_id] = Topic()
        return found

    def job_changed(self, job_id: str) -> None:
        """A change of this job is committed."""
        self.jobs_changed.fire()
        if topic := self._topics.get(job_id):
            topic.states += 1
            topic.wake()

    def wake_all(self) -> None:
        """Let everyone who waits look around."""
        self.jobs_changed.fire()
        for topic in list(self._topics.values()):
            topic.wake()

    @property
    def watched(self) -> frozenset[str]:
        """Jobs whose topic somebody holds."""
        return frozenset(self._topics.keys())

    def last_line(self, job_id: str) -> int:
        """The number of the last line that was shown; 0 where nobody holds the topic."""
        topic = self._topics.get(job_id)
        return topic.last if topic else 0

    async def read(self, job_id: str, after: int, size: int = BYTES_PER_READ) -> list[Chunk]:
        """Some of the lines after number `after`, in order and without a gap; [] at the end.

        They are bounded by about `size` bytes; the first chunk is there however large.
        """
        recent = self.topic(job_id).after(after)
        if recent is not None:
            return _first(recent, size)
        return await self._stored.chunks(job_id, after, CHUNKS_PER_READ, size)

    async def tail(self, job_id: str, last: int, lines: int, size: int) -> Sequence[Line]:
        """The lines up to number `last`, the last one: at most so many, of about `size` bytes."""
        found: deque[Line] = deque(maxlen=lines)
        after = max(0, last - lines)
        while after < last and (chunks := await self.read(job_id, after)):
            for chunk in chunks:
                found.extend(chunk.lines())
            after = chunks[-1].last
        taken = sum(len(line.text) for line in found)
        while taken > size and len(found) > 1:
            taken -= len(found.popleft().text)
        return found


def _first(chunks: list[Chunk], size: int) -> list[Chunk]:
    """The first of them, of `size` bytes together; one at least."""
    for count, chunk in enumerate(chunks):
        size -= len(chunk.data)
        if size < 0:
            return chunks[: count or 1]
    return chunks


def _cost(chunk: Chunk) -> int:
    """Bytes of memory; of a quiet job's log most are not its text."""
    return CHUNK_COST + RUN_COST * len(chunk.runs) + len(chunk.data)

"""Readers at the end of a log are written to at once; whoever cannot follow goes on by itself."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ciworker.domain.log import Chunk, Run, Stream
from ciworker.feed.feed import Topic
from ciworker.metrics import Metrics
from ciworker.web import audience as module
from ciworker.web import frames, streaming
from ciworker.web.audience import Audience, Seat, as_piece, audience_of

INTERVAL = 0.05


@dataclass
class Reader:
    """A connection, and its reader's place. room: whether its socket takes more."""

    next_line: int = 1
    written: list[bytes] = field(default_factory=list)
    gone: bool = False
    writing_paused: bool = False
    room: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def transport(self) -> "Reader | None":
        return None if self.gone else self

    def is_closing(self) -> bool:
        return False

    def write(self, piece: bytes) -> None:
        self.written.append(piece)

    def abort(self) -> None:
        self.gone = True

    async def drain(self) -> None:
        await self.room.wait()

    def given(self, chunk: Chunk) -> None:
        self.next_line = chunk.last + 1

    def seat(self, *, may_expire: bool = False) -> Seat:
        request = SimpleNamespace(protocol=self, writer=self, transport=self)
        return Seat(cast("Any", request), self, may_expire=may_expire)


def chunk(first: int, text: bytes = b"a\nb\n") -> Chunk:
    return Chunk(first, text, (Run(Stream.STDOUT, 7, text.count(b"\n"), len(text), True),))


def piece_of(lines: Chunk) -> bytes:
    return as_piece(frames.log("log", lines, numbered=True))


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def audience(topic: Topic) -> Audience:
    return audience_of(topic, Metrics().watchers, INTERVAL)


async def sitting(audience: Audience, seat: Seat) -> asyncio.Task[None]:
    """Once it sits."""
    task = asyncio.ensure_future(audience.sit(seat))
    while seat not in audience._seats:
        await asyncio.sleep(0)
    return task


async def test_all_get_each_chunk_as_one_buffer_that_is_encoded_once_and_nobody_is_woken(
    topic: Topic, audience: Audience
) -> None:
    readers = [Reader() for _ in range(3)]
    tasks = [await sitting(audience, reader.seat()) for reader in readers]
    chunks = [chunk(1), chunk(3, b"c\n")]
    for lines in chunks:
        topic.append(lines)
    for reader in readers:
        assert reader.written == [piece_of(lines) for lines in chunks]
        assert reader.next_line == 4
    assert all(reader.written[0] is readers[0].written[0] for reader in readers)
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)
    topic.wake()
    await asyncio.gather(*tasks)


async def test_a_piece_is_a_chunk_of_http() -> None:
    assert as_piece(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"


async def test_a_chunk_that_does_not_follow_is_not_given_but_wakes(
    topic: Topic, audience: Audience
) -> None:
    reader, behind = Reader(next_line=3), Reader(next_line=1)
    tasks = [await sitting(audience, one.seat()) for one in (reader, behind)]
    topic.append(chunk(3))
    await tasks[1]
    assert (len(reader.written), behind.written) == (1, [])
    assert not tasks[0].done()
    topic.wake()
    await tasks[0]


async def test_a_reader_whose_socket_is_full_leaves_and_goes_on_once_it_is_drained(
    topic: Topic, audience: Audience
) -> None:
    slow = Reader(writing_paused=True)
    task = await sitting(audience, slow.seat())
    topic.append(chunk(1))
    topic.append(chunk(3))
    assert slow.written == [piece_of(chunk(1))]  # no more than one beyond what its socket took
    await asyncio.sleep(0)
    assert not task.done()
    slow.room.set()
    await task
    assert slow.next_line == 3


async def test_a_reader_that_takes_nothing_for_too_long_is_let_go(
    topic: Topic, audience: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "WRITE_TIMEOUT", 0.01)
    slow = Reader(writing_paused=True)
    task = await sitting(audience, slow.seat())
    topic.append(chunk(1))
    with pytest.raises(ConnectionError):
        await task
    assert slow.gone


async def test_whoever_is_gone_is_woken_to_find_that(topic: Topic, audience: Audience) -> None:
    reader = Reader(gone=True)
    task = await sitting(audience, reader.seat())
    topic.append(chunk(1))
    await task


async def test_comments_come_when_they_are_due_and_sessions_are_looked_at(
    audience: Audience,
) -> None:
    reader, visitor = Reader(), Reader()
    task = await sitting(audience, reader.seat())
    async with asyncio.timeout(5):
        await (await sitting(audience, visitor.seat(may_expire=True)))
        while len(reader.written) < 2:
            await asyncio.sleep(INTERVAL / 10)
    assert set(reader.written + visitor.written) == {as_piece(frames.COMMENT)}
    assert not task.done()
    audience.news()
    await task


async def test_without_readers_no_timer_is_left(audience: Audience) -> None:
    task = await sitting(audience, Reader().seat())
    audience.news()
    await task
    async with asyncio.timeout(5):
        while audience._timer is not None:
            await asyncio.sleep(INTERVAL / module.LOOKS)


async def test_who_is_cancelled_has_left(topic: Topic, audience: Audience) -> None:
    reader = Reader()
    task = await sitting(audience, reader.seat())
    task.cancel()
    await asyncio.wait([task])
    topic.append(chunk(1))
    assert reader.written == []


def test_a_topic_has_one_audience(topic: Topic, audience: Audience) -> None:
    assert audience_of(topic, Metrics().watchers, INTERVAL) is audience

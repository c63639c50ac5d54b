"""What git says while a tree is fetched: stored in order, shown as it comes, closed in the end."""

import asyncio
from typing import cast

import pytest

from ciworker.control.fetchlog import ATTEMPT, CUT_OFF, FetchLog
from ciworker.domain.log import Chunk, Cursor, Position, Stream
from ciworker.feed.feed import Feed, Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter


class NothingStored:
    async def chunks(self, job_id: str, after: int, limit: int, size: int) -> list[Chunk]:
        return []


class Writer:
    """Stores what it is told of when the test says so."""

    def __init__(self) -> None:
        self.stored: list[Batch] = []
        self._ready: list[FetchLog] = []

    def ready(self, source: FetchLog) -> None:
        self._ready.append(source)

    def store(self) -> None:
        while self._ready:
            source = self._ready.pop()
            while batch := source.take():
                self.stored.append(batch)
                source.stored(batch)

    @property
    def text(self) -> str:
        return b"".join(batch.chunk.data for batch in self.stored).decode()


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def topic() -> Topic:
    return Feed(NothingStored()).topic("01J")


def log_after(end: LogEnd, writer: Writer, topic: Topic) -> FetchLog:
    return FetchLog("01J", topic, cast(LogWriter, writer), end)


def shown(topic: Topic) -> list[tuple[Stream, str]]:
    texts = topic.unfinished(topic.last)
    assert texts is not None
    return [(stream, text.text) for stream, text in texts.items()]


def test_lines_are_numbered_on_and_their_group_is_closed(writer: Writer, topic: Topic) -> None:
    log = log_after(LogEnd(last=2, total_bytes=10, attempt=1), writer, topic)
    log.open("Fetch main of x")
    log.line(b"Receiving objects")
    writer.store()
    log.say("ciworker: why not")
    log.close()
    writer.store()
    first, second = writer.stored
    assert (first.chunk.first, first.chunk.last, second.chunk.first) == (3, 4, 5)
    assert {batch.attempt for batch in writer.stored} == {ATTEMPT}
    assert second.total_bytes == 10 + len(writer.text)
    streams = [line.stream for batch in writer.stored for line in batch.chunk.lines()]
    assert streams == [Stream.WORKER, Stream.STDERR, Stream.WORKER, Stream.WORKER]
    assert writer.text == (
        "::group::Fetch main of x\nReceiving objects\nciworker: why not\n::endgroup::\n"
    )


@pytest.mark.parametrize("closed", [True, False])
def test_a_group_that_was_left_open_is_closed_first(
    writer: Writer, topic: Topic, closed: bool
) -> None:
    log_before = log_after(LogEnd(), writer, topic)
    log_before.open("first")
    if closed:
        log_before.close()
    writer.store()
    last = writer.stored.pop()
    end = LogEnd(last.chunk.last, last.total_bytes, last.attempt, last.cursor)
    log_after(end, writer, topic).open("again")
    writer.store()
    before = "" if closed else f"{CUT_OFF}\n::endgroup::\n"
    assert writer.text == f"{before}::group::again\n"


def test_a_setups_lines_are_none_of_a_fetch(writer: Writer, topic: Topic) -> None:
    cursor = Cursor(Position(), Position(lines=1))
    log_after(LogEnd(last=1, attempt=-1, cursor=cursor), writer, topic).open("first")
    writer.store()
    assert writer.text == "::group::first\n"


def test_progress_is_shown_behind_what_is_stored(writer: Writer, topic: Topic) -> None:
    log = log_after(LogEnd(), writer, topic)
    log.open("Fetch")
    log.progress(b"Receiving objects:   1%")
    writer.store()
    assert shown(topic) == []
    log.progress(b"Receiving objects:  45%")
    assert shown(topic) == [(Stream.STDERR, "Receiving objects:  45%")]
    log.line(b"Receiving objects: 100%, done.")
    writer.store()
    assert shown(topic) == []


async def test_what_is_abandoned_is_stored_or_gone(writer: Writer, topic: Topic) -> None:
    log = log_after(LogEnd(), writer, topic)
    log.open("Fetch")
    writer.store()
    log.progress(b"Receiving objects:  45%")
    log.line(b"never taken")
    async with asyncio.timeout(10):
        await log.abandoned()
    writer.store()
    assert writer.text == "::group::Fetch\n"
    assert shown(topic) == []


async def test_behind_the_end_of_a_fetch_that_was_cut_off_no_progress_is_shown(
    writer: Writer, topic: Topic
) -> None:
    log = log_after(LogEnd(), writer, topic)
    log.open("Fetch")
    writer.store()
    log.progress(b"Receiving objects:  45%")
    log.say("ciworker: the fetch took more than 1 s")
    log.close()
    writer.store()
    async with asyncio.timeout(10):
        await log.all_stored()
    assert writer.text.endswith("::endgroup::\n")
    assert shown(topic) == []


async def test_who_waits_for_all_lines_waits_for_the_store(writer: Writer, topic: Topic) -> None:
    log = log_after(LogEnd(), writer, topic)
    log.open("Fetch")
    waiting = asyncio.ensure_future(log.all_stored())
    await asyncio.sleep(0)
    assert not waiting.done()
    writer.store()
    async with asyncio.timeout(10):
        await waiting

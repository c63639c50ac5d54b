"""What a setup has printed without a newline is seen in the logs of the jobs that wait for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import pytest

from ciworker.control import setuplog
from ciworker.control.setuplog import SetupLog, Wait
from ciworker.domain.job import Job, Spec, Status
from ciworker.domain.log import Chunk, Line, Stream, Unfinished, chunk_of
from ciworker.feed.feed import Feed
from ciworker.store.logs import LogEnd, LogWriter, Source

OUT, ERR = Stream.STDOUT, Stream.STDERR
SETUP = Job(
    id="01S", status=Status.RUNNING, spec=Spec("fake", "true", 900.0, 2**28, 1.0, False, "tea"),
    created_at=datetime.now(UTC), mark_token="token", tar_length=0, attempt=1,
)  # fmt: skip


class NothingStored:
    async def chunks(self, job_id: str, after: int, limit: int, size: int) -> list[Chunk]:
        return []


class Writer:
    """Stores soon whatever it is told of, unless `held`."""

    def __init__(self) -> None:
        self.held = False
        self._waiting: list[Source] = []

    def ready(self, source: Source) -> None:
        self._waiting.append(source)
        asyncio.get_running_loop().call_soon(self.store)

    def store(self) -> None:
        while self._waiting and not self.held:
            batch = self._waiting[-1].take()
            if batch is None:
                self._waiting.pop()
            else:
                self._waiting[-1].stored(batch)


class Bench:
    """A setup that prints what the test says, and a job that waits for it."""

    def __init__(self) -> None:
        feed = Feed(NothingStored())
        self.writer = Writer()
        self.setup, self.job = feed.topic(SETUP.id), feed.topic("01J")
        self.log = SetupLog(
            Wait("01J", SETUP.id, 1, "Set up"),
            feed=feed,
            writer=cast(LogWriter, self.writer),
            end=LogEnd(),
            current=self._current,
            on_complete=lambda: None,
        )
        self._state = SETUP
        self.copying = asyncio.create_task(self.log.run())

    def print(self, stream: Stream, *texts: str) -> None:
        """Whole lines, stored in the setup's log."""
        made = [Line(0, stream, 7, text.encode(), True) for text in texts]
        self.setup.append(chunk_of(made, self.setup.last + 1))

    def print_unfinished(self, **texts: str) -> None:
        shown = {Stream[name]: Unfinished(Stream[name], 7, text) for name, text in texts.items()}
        self.setup.show_unfinished(shown, self.setup.last)

    def end(self) -> None:
        self._state = replace(SETUP, status=Status.COMPLETED, log_lines=self.setup.last)
        self.setup.changed.fire()

    async def shows(self, lines: int, **texts: str) -> None:
        """Wait until the job's log has so many lines and exactly these behind them."""
        async with asyncio.timeout(5):
            while (self.job.last, self.shown) != (lines, texts):
                await self.job.changed.wait(self.job.changed.version, 5)

    @property
    def shown(self) -> dict[str, str]:
        texts = self.job.unfinished(self.job.last)
        assert texts is not None
        return {stream.name: text.text for stream, text in texts.items()}

    async def _current(self, _job_id: str) -> Job | None:
        return self._state


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    yield made
    made.copying.cancel()
    with suppress(asyncio.CancelledError):
        await made.copying


async def test_it_is_shown_behind_the_copied_lines_and_goes_with_its_line(bench: Bench) -> None:
    bench.print(OUT, "Collecting")
    bench.print_unfinished(STDOUT="  10 %", STDERR="warn")
    await bench.shows(2, STDOUT="  10 %", STDERR="warn")
    bench.print_unfinished(STDOUT="  10 % 20 %", STDERR="warn")
    await bench.shows(2, STDOUT="  10 % 20 %", STDERR="warn")

    bench.print(OUT, "  10 % 20 % done")

    await bench.shows(3, STDERR="warn")
    [*_, last] = bench.job.after(0) or []
    assert last.data == b"  10 % 20 % done\n"


async def test_it_waits_until_the_lines_before_it_are_stored(bench: Bench) -> None:
    await bench.shows(1)
    bench.writer.held = True
    bench.print(OUT, "Collecting")
    bench.print_unfinished(STDOUT="  10 %")
    seen = bench.job.changed.version
    while not bench.writer._waiting:
        await asyncio.sleep(0)
    assert (bench.job.changed.version, bench.shown) == (seen, {})

    bench.writer.held = False
    bench.writer.store()

    await bench.shows(2, STDOUT="  10 %")


async def test_it_is_gone_when_the_setup_is_over(bench: Bench) -> None:
    """Past its log limit a setup has ended without the line."""
    bench.print_unfinished(STDOUT="  10 %")
    await bench.shows(1, STDOUT="  10 %")
    bench.end()
    await bench.copying
    assert bench.shown == {}
    [_, last] = bench.job.after(0) or []
    assert last.data == b"::endgroup::\n"


async def test_it_is_gone_when_the_job_waits_no_more(bench: Bench) -> None:
    bench.print_unfinished(STDOUT="  10 %")
    await bench.shows(1, STDOUT="  10 %")
    bench.copying.cancel()
    await asyncio.wait([bench.copying])

    await bench.log.abandoned()

    assert bench.shown == {}


async def test_it_is_gone_when_the_rest_is_not_copied_yet(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.print_unfinished(STDERR="warn")
    await bench.shows(1, STDERR="warn")
    monkeypatch.setattr(setuplog, "MOST_BYTES", 20)
    bench.print(OUT, "more than that many bytes")
    bench.print_unfinished(STDERR="warn")
    await bench.shows(2)

"""What a job has printed without a newline: shown soon, behind what came before, never stored."""

import asyncio
import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import pytest

from ciworker.control import unfinished
from ciworker.control.logkeeper import LogKeeper, LogLimits
from ciworker.domain.job import Job, Spec, Status
from ciworker.domain.log import LogFrame, Stream
from ciworker.domain.mark import start_mark
from ciworker.feed.feed import Topic
from ciworker.store.logs import Batch, LogEnd, LogWriter
from ciworker.store.session import Database

OUT, ERR = Stream.STDOUT, Stream.STDERR
INTERVAL = 0.03
SPEC = Spec("fake", "true", 900.0, 2**28, 1.0, False, "tea")
JOB = Job(
    id="01J", status=Status.STARTING, spec=SPEC, created_at=datetime.now(UTC),
    mark_token="token", tar_length=0, attempt=1,
)  # fmt: skip
MARK = start_mark(JOB.mark_token, JOB.id, JOB.attempt) + b"\n"


class Bench:
    """A keeper between a source and a writer that both do only what the test says."""

    def __init__(self, kept: int = 2**20, job: Job = JOB) -> None:
        self.topic = Topic()
        self.keeper = LogKeeper(
            job,
            writer=LogWriter(cast(Database, None)),  # it does not run, so it stores nothing
            topic=self.topic,
            end=LogEnd(),
            limits=LogLimits(kept, 2**30),
            on_progress=lambda: None,
        )

    def begin(self) -> None:
        self.keeper.feed(OUT, MARK)

    def take(self) -> Batch:
        batch = self.keeper.take()
        assert batch is not None
        return batch

    def store(self) -> None:
        """Store all that waits."""
        while batch := self.keeper.take():
            self.keeper.stored(batch)

    @property
    def shown(self) -> dict[str, str]:
        texts = self.topic.unfinished(self.topic.last)
        assert texts is not None
        return {stream.label: text.text for stream, text in texts.items()}

    async def shows(self, **texts: str) -> None:
        """Wait until exactly these are shown."""
        async with asyncio.timeout(5):
            while self.shown != texts:
                seen = self.topic.changed.version
                await self.topic.changed.wait(seen, 5)

    async def settled(self) -> None:
        """Wait until no timer is left that could show something."""
        async with asyncio.timeout(5):
            while self.keeper._unfinished._timer is not None:
                await asyncio.sleep(INTERVAL / 10)


@pytest.fixture(autouse=True)
def short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "INTERVAL", INTERVAL)


@pytest.fixture
async def bench() -> Bench:
    made = Bench()
    made.begin()
    return made


async def test_it_is_shown_and_goes_with_its_line(bench: Bench) -> None:
    bench.keeper.feed(OUT, b"dots ..")
    await bench.shows(stdout="dots ..")
    bench.keeper.feed(OUT, b".")
    await bench.shows(stdout="dots ...")
    assert bench.topic.after(0) is None

    bench.keeper.feed(OUT, b".\n")
    batch = bench.take()
    assert bench.shown == {"stdout": "dots ..."}  # until the line can be shown in its place
    bench.keeper.stored(batch)

    assert bench.shown == {}
    assert [chunk.data for chunk in bench.topic.after(0) or []] == [b"dots ....\n"]


async def test_it_waits_for_the_lines_before_it(bench: Bench) -> None:
    bench.keeper.feed(OUT, b"one\ntwo\nthr")
    batch = bench.take()
    await bench.settled()
    assert (bench.topic.last, bench.shown) == (0, {})

    bench.keeper.stored(batch)

    assert (bench.topic.last, bench.shown) == (2, {"stdout": "thr"})


async def test_it_does_not_wait_for_what_is_read_after_it(bench: Bench) -> None:
    """The other stream never rests: there is always something that is not stored yet."""
    bench.keeper.feed(ERR, b"before\n")
    bench.keeper.feed(OUT, b"..")
    batch = bench.take()
    bench.keeper.feed(ERR, b"while it waits to be shown\n")
    await bench.settled()
    bench.keeper.feed(OUT, b".")
    bench.keeper.feed(ERR, b"after\n")
    assert bench.shown == {}

    bench.keeper.stored(batch)
    assert bench.shown == {}  # a line that was read before it is not stored
    batch = bench.take()
    bench.keeper.feed(ERR, b"more\n")
    bench.keeper.stored(batch)
    assert bench.shown == {"stdout": ".."}

    batch = bench.take()
    await bench.settled()
    bench.keeper.feed(ERR, b"and more\n")
    bench.keeper.stored(batch)
    assert bench.shown == {"stdout": "..."}
    assert bench.topic.after(0) is not None


async def test_what_ended_while_it_waited_to_be_shown_is_not_shown(bench: Bench) -> None:
    bench.keeper.feed(ERR, b"one\n")
    bench.keeper.feed(OUT, b"two")
    await bench.settled()
    bench.keeper.feed(OUT, b"!\nthree")

    batch = bench.take()
    assert batch.chunk.data == b"one\ntwo!\n"
    bench.keeper.stored(batch)

    assert bench.shown == {}
    await bench.shows(stdout="three")


async def test_what_is_shown_stays_until_its_line_is(bench: Bench) -> None:
    bench.keeper.feed(OUT, b"dots ..")
    await bench.shows(stdout="dots ..")
    bench.keeper.feed(ERR, b"one\ntw")
    batch = bench.take()
    await bench.settled()
    bench.keeper.feed(OUT, b".\n")

    bench.keeper.stored(batch)
    assert bench.shown == {"stdout": "dots ..", "stderr": "tw"}

    bench.store()
    assert bench.shown == {"stderr": "tw"}


async def test_each_stream_has_its_own(bench: Bench) -> None:
    bench.keeper.feed(OUT, b"out")
    bench.keeper.feed(ERR, b"err")
    await bench.shows(stdout="out", stderr="err")

    bench.keeper.feed(ERR, b"!\n")
    bench.store()

    assert (bench.topic.last, bench.shown) == (1, {"stdout": "out"})


async def test_lines_of_the_engine_s_log_are_read_now_whatever_their_stamps_say() -> None:
    bench, began = Bench(), time.monotonic()
    bench.begin()
    for number in range(3):
        bench.keeper.feed_frame(LogFrame(OUT, 7, b"line %d\n" % number))
    bench.store()
    read_at = bench.topic.read_at(3)
    assert read_at is not None
    assert began <= read_at <= time.monotonic()


async def test_nothing_of_a_mark_or_before_it_is_ever_shown() -> None:
    bench = Bench()
    bench.keeper.feed(ERR, b"tar: ")
    for byte in b"noise\n" + MARK:
        bench.keeper.feed(OUT, bytes([byte]))
        await bench.settled()
        assert bench.topic.changed.version == 0

    bench.keeper.feed(OUT, b"go")

    await bench.shows(stdout="go", stderr="tar: ")


async def test_it_is_told_no_more_often_than_each_interval(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    began, text = loop.time(), b""
    while loop.time() < began + 8 * INTERVAL:
        bench.keeper.feed(OUT, b".")
        text += b"."
        await asyncio.sleep(0)
    await bench.shows(stdout=text.decode()[-unfinished.BYTES :])

    assert len(text) > 100
    most = (loop.time() - began) / INTERVAL + 1
    assert 2 <= bench.topic.changed.version <= most


async def test_a_line_that_ends_soon_is_told_once(bench: Bench) -> None:
    """Python without a buffer writes a line's text and its newline one after the other."""
    bench.keeper.feed(OUT, b"line")
    bench.keeper.feed(OUT, b"\n")
    bench.store()
    await bench.settled()
    assert bench.topic.changed.version == 1


async def test_whole_lines_set_no_timer_and_tell_once(bench: Bench) -> None:
    for n in range(100):
        bench.keeper.feed(OUT, b"line %d\n" % n)
        assert bench.keeper._unfinished._timer is None
    bench.store()
    assert bench.topic.changed.version == 1


async def test_of_a_long_one_the_end_is_shown(bench: Bench) -> None:
    bench.keeper.feed(OUT, "é".encode() * 5000 + b"x")
    await bench.shows(stdout="é" * 2047 + "x")


def broken(keeper: LogKeeper) -> None:
    keeper.start_over()
    keeper.feed_frame(LogFrame(OUT, 0, b"from the engine's log, unfinished as well"))


def flooded(keeper: LogKeeper) -> None:
    keeper.feed(OUT, b"x" * 2000 + b"\n")
    keeper.feed(ERR, b"more")


@pytest.mark.parametrize("change", [broken, flooded], ids=["lost connection", "past the limit"])
async def test_it_goes_when_it_will_not_be_the_next_line(
    change: Callable[[LogKeeper], None],
) -> None:
    bench = Bench(kept=1000)
    bench.begin()
    bench.keeper.feed(ERR, b"err")
    await bench.shows(stderr="err")

    change(bench.keeper)
    await bench.settled()

    assert bench.shown == {}
    bench.store()
    await bench.settled()
    assert bench.shown == {}


async def test_a_keeper_that_is_abandoned_shows_nothing_more(bench: Bench) -> None:
    bench.keeper.feed(OUT, b"dots")
    await bench.shows(stdout="dots")
    bench.keeper.feed(OUT, b"..")

    await bench.keeper.abandoned()

    assert bench.shown == {}
    assert bench.keeper._unfinished._timer is None


async def test_at_the_end_it_is_a_last_line_without_newline(bench: Bench) -> None:
    bench.keeper.feed(OUT, b"dots")
    await bench.shows(stdout="dots")
    bench.keeper.feed(OUT, b"..")

    bench.keeper.finish()
    assert bench.keeper._unfinished._timer is None
    bench.store()

    assert bench.keeper.complete
    assert bench.shown == {}
    [chunk] = bench.topic.after(0) or []
    assert [(line.text, line.ended) for line in chunk.lines()] == [(b"dots..", False)]


async def test_who_lets_go_of_a_log_lets_go_of_its_lines_at_once() -> None:
    bench = Bench(job=replace(JOB, status=Status.RUNNING))
    bench.keeper.feed(OUT, b"unfinished")
    keeper = weakref.ref(bench.keeper)
    gc.disable()
    try:
        del bench
        assert keeper() is None
    finally:
        gc.enable()

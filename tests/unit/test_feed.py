"""The log is the queue: whoever watches holds a number, and misses nothing."""

import asyncio
import gc
import random
from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciworker.domain.log import Chunk, Line, Run, Stream, Unfinished, chunk_of
from ciworker.feed import feed as module
from ciworker.feed.feed import RING_BYTES, Feed, Signal, Topic


class Stored:
    """The store's reading side, in memory; `cut` as the store cuts."""

    def __init__(self) -> None:
        self.kept: list[Chunk] = []
        self.asked: list[int] = []
        self.sizes: set[int] = set()

    async def chunks(self, job_id: str, after: int, limit: int, size: int) -> list[Chunk]:
        self.sizes.add(size)
        self.asked.append(after)
        await asyncio.sleep(0)
        start = bisect_left(self.kept, after + 1, key=lambda chunk: chunk.last)
        found = [chunk.after(after) for chunk in self.kept[start : start + limit]]
        await asyncio.sleep(0)
        return found


def lines_of(first: int, count: int, size: int = 3) -> Chunk:
    text = b"x" * size
    return chunk_of(
        [Line(n, Stream.STDOUT, 7, b"%d " % n + text, True) for n in range(first, first + count)],
        first,
    )


def numbers(chunks: list[Chunk]) -> list[int]:
    return [line.number for chunk in chunks for line in chunk.lines()]


# -- the ring


def test_an_empty_ring_says_that_it_does_not_know() -> None:
    assert Topic().after(0) is None


def test_the_ring_has_what_comes_after_any_number_it_reaches_back_to() -> None:
    topic = Topic()
    for first in range(5, 30, 5):
        topic.append(lines_of(first, 5))

    for after in range(40):
        found = topic.after(after)
        if after < 4:
            assert found is None
        else:
            assert found is not None
            assert numbers(found) == list(range(after + 1, 30))


def test_the_ring_is_bounded_by_what_its_lines_take() -> None:
    topic = Topic()
    size = RING_BYTES // 10
    for number in range(1, 101):
        topic.append(lines_of(number, 1, size))

    kept = numbers(topic.after(100 - 5) or [])
    assert kept == [96, 97, 98, 99, 100]
    assert topic.after(100 - 11) is None


def test_the_ring_knows_when_its_lines_were_read() -> None:
    topic = Topic()
    topic.append(lines_of(1, 3), 100.0)
    assert (topic.read_at(0), topic.read_at(3), topic.read_at(4)) == (None, 100.0, None)
    topic.append(lines_of(4, 2, 2 * RING_BYTES), 200.0)
    assert (topic.read_at(3), topic.read_at(5)) == (None, 200.0)
    topic.append(lines_of(9, 1), 300.0)
    assert (topic.read_at(5), topic.read_at(9)) == (None, 300.0)


def test_empty_lines_one_by_one_are_bounded_too() -> None:
    """A chunk costs more than its text: a ring of a million of them would take hundreds of MB."""
    topic = Topic()
    most = 2 * RING_BYTES // module.CHUNK_COST
    for number in range(1, most):
        topic.append(Chunk(number, b"\n", (Run(Stream.STDOUT, 7, 1, 1, True),)))

    held = RING_BYTES // (module.CHUNK_COST + module.RUN_COST + 1)
    assert topic.after(most - held - 2) is None
    assert len(topic.after(most - held) or []) == held - 1


def test_a_chunk_larger_than_the_ring_is_held_alone() -> None:
    topic = Topic()
    topic.append(lines_of(1, 3))
    topic.append(lines_of(4, 1, 2 * RING_BYTES))
    assert topic.after(2) is None
    assert numbers(topic.after(3) or []) == [4]

    topic.append(lines_of(5, 1))

    assert topic.after(3) is None
    assert numbers(topic.after(4) or []) == [5]


@pytest.mark.parametrize("first", [1, 4, 9])
def test_a_ring_never_has_a_gap_or_a_repeat(first: int) -> None:
    """What a second reader of one container would append: then the store is asked instead."""
    topic = Topic()
    topic.append(lines_of(1, 3))
    topic.append(lines_of(4, 3))

    topic.append(lines_of(first, 2))

    assert numbers(topic.after(first - 1) or []) == [first, first + 1]
    assert topic.after(first - 2) is None


# -- reading


async def test_a_reader_that_fell_behind_reads_the_store_and_then_the_ring() -> None:
    stored = Stored()
    feed = Feed(stored)
    topic = feed.topic("job")
    for number in range(1, 41):
        chunk = lines_of(number, 1, RING_BYTES // 10)
        stored.kept.append(chunk)
        topic.append(chunk)

    seen: list[int] = []
    while found := await feed.read("job", seen[-1] if seen else 0):
        seen += numbers(found)

    assert seen == list(range(1, 41))
    assert stored.asked == [0]  # the rest, and the end, came from the ring


async def test_a_reader_may_ask_for_less_at_a_time_and_gets_all_the_same() -> None:
    stored = Stored()
    feed = Feed(stored)
    topic = feed.topic("job")
    for first in range(1, 31, 3):
        topic.append(lines_of(first, 3, 10))

    seen: list[int] = []
    while found := await feed.read("job", seen[-1] if seen else 0, 80):
        assert len(found) == 1 or sum(len(chunk.data) for chunk in found) <= 80
        seen += numbers(found)

    assert seen == list(range(1, 31))
    assert stored.asked == []
    assert await feed.read("other", 0, 80) == []
    assert stored.sizes == {80}


async def test_of_a_job_without_ring_the_store_is_read() -> None:
    stored = Stored()
    stored.kept = [lines_of(1, 4), lines_of(5, 4)]
    feed = Feed(stored)

    assert numbers(await feed.read("job", 2)) == [3, 4, 5, 6, 7, 8]
    assert await feed.read("job", 8) == []


@pytest.mark.parametrize("stored", [0, 5, 12], ids=["in the ring", "in both", "in the store"])
async def test_the_tail_of_a_log_is_bounded_by_lines_and_by_bytes(stored: int) -> None:
    behind = Stored()
    behind.kept = [lines_of(first, 1) for first in range(1, stored + 1)]
    feed = Feed(behind)
    topic = feed.topic("job")
    for first in range(stored + 1, 13):
        topic.append(lines_of(first, 1))

    async def tail(lines: int, size: int) -> list[int]:
        return [line.number for line in await feed.tail("job", 12, lines, size)]

    assert await tail(100, 1000) == list(range(1, 13))
    assert await tail(3, 1000) == [10, 11, 12]
    assert await tail(100, 13) == [11, 12]
    assert await tail(100, 1) == [12]
    assert [line.number for line in await feed.tail("none", 0, 100, 1000)] == []


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=30),
    ring=st.integers(1, 3000),
    watchers=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2**30)), max_size=8),
    dropped=st.sets(st.integers(0, 30)),
)
async def test_no_watcher_ever_misses_repeats_or_reorders_a_line(
    sizes: list[int], ring: int, watchers: list[tuple[int, int]], dropped: set[int]
) -> None:
    """Any number of them, from anywhere, at any pace; the topic is let go of in between."""
    stored = Stored()
    feed = Feed(stored)
    total = sum(sizes)
    done = asyncio.Event()

    async def pump() -> None:
        first = 1
        topic: Topic | None = None
        for turn, size in enumerate(sizes):
            chunk = lines_of(first, size)
            first += size
            stored.kept.append(chunk)  # stored first, then shown
            await asyncio.sleep(0)
            if turn in dropped:
                topic = None
            topic = topic or feed.topic("job")
            topic.append(chunk)
            await asyncio.sleep(0)
        done.set()
        feed.job_changed("job")

    async def watch(after: int, seed: int) -> list[int]:
        chosen, seen = random.Random(seed), after
        got: list[int] = []
        topic = feed.topic("job")
        while True:
            version = topic.changed.version
            finished = done.is_set()
            found = await feed.read("job", seen)
            if found:
                got += numbers(found)
                seen = got[-1]
            elif finished:
                return got
            else:
                assert await topic.changed.wait(version, 5)
            for _ in range(chosen.choice((0, 0, 1, 5, 20))):
                await asyncio.sleep(0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "RING_BYTES", ring)
        results = await asyncio.gather(pump(), *(watch(*wanted) for wanted in watchers))

    for (after, _), got in zip(watchers, results[1:], strict=True):
        assert got == list(range(after + 1, total + 1))


# -- signals


async def test_what_fired_since_the_version_was_read_is_not_waited_for() -> None:
    signal = Signal()
    seen = signal.version
    signal.fire()

    assert await signal.wait(seen, timeout=0)
    assert not await signal.wait(signal.version, timeout=0.001)


async def test_a_signal_that_fires_while_one_waits_wakes_at_once() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait(signal.version, timeout=60))
    await asyncio.sleep(0)
    signal.fire()

    assert await asyncio.wait_for(waiting, 1)


@pytest.mark.parametrize("turns", range(6))
async def test_no_order_of_firing_and_waiting_loses_a_change(turns: int) -> None:
    """However the reader's and the writer's steps fall: none is slept through."""
    signal, produced, consumed = Signal(), 0, 0

    async def produce() -> None:
        nonlocal produced
        for number in range(50):
            for _ in range((turns * number) % 7):
                await asyncio.sleep(0)
            produced += 1
            signal.fire()

    async def consume() -> None:
        nonlocal consumed
        while consumed < 50:
            seen = signal.version
            for _ in range((turns + consumed) % 4):
                await asyncio.sleep(0)
            if consumed == produced:
                assert await signal.wait(seen, timeout=5)
            consumed = produced

    async with asyncio.timeout(5):
        await asyncio.gather(produce(), consume(), consume())


async def test_a_change_at_the_very_timeout_is_told() -> None:
    signal = Signal()
    loop = asyncio.get_running_loop()
    waiting = asyncio.create_task(signal.wait(signal.version, timeout=0.01))
    await asyncio.sleep(0)
    loop.call_at(loop.time() + 0.01, signal.fire)

    before = signal.version
    assert await waiting == (signal.version != before)


async def test_whoever_waits_for_several_signals_is_woken_by_each() -> None:
    several, either = [Signal() for _ in range(3)], Signal()
    with several[0].relayed(either), several[1].relayed(either), several[2].relayed(either):
        for signal in several:
            seen = either.version
            waiting = asyncio.create_task(either.wait(seen, timeout=60))
            await asyncio.sleep(0)
            signal.fire()
            assert await asyncio.wait_for(waiting, 1)
            assert either.version == seen + 1

    seen = either.version
    for signal in several:
        signal.fire()
    assert either.version == seen


async def test_a_cancelled_waiter_is_cancelled() -> None:
    signal = Signal()
    waiting = asyncio.create_task(signal.wait(signal.version, timeout=60))
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_10_000_waiters_are_each_woken_once() -> None:
    feed = Feed(Stored())
    topic, woken = feed.topic("job"), 0

    async def wait() -> None:
        nonlocal woken
        assert await topic.changed.wait(topic.changed.version, timeout=60)
        woken += 1
        await topic.changed.wait(topic.changed.version, timeout=60)
        woken += 1

    waiters = [asyncio.create_task(wait()) for _ in range(10_000)]
    await asyncio.sleep(0.01)
    topic.append(lines_of(1, 1))
    for _ in range(10):
        await asyncio.sleep(0)
    assert woken == 10_000

    feed.wake_all()
    await asyncio.gather(*waiters)
    assert woken == 20_000


# -- what has no newline yet


def unfinished(stream: Stream, text: str) -> dict[Stream, Unfinished]:
    return {stream: Unfinished(stream, 7, text)}


def test_what_is_unfinished_is_seen_from_the_end_of_the_log_alone() -> None:
    topic, shown = Topic(), unfinished(Stream.STDOUT, "dots ..")
    topic.append(lines_of(1, 5))
    topic.show_unfinished(shown, 5)

    assert topic.unfinished(5) == shown
    assert topic.unfinished(4) is None  # whoever is behind
    assert topic.unfinished(6) is None  # whoever read the store before the line was shown


def test_what_is_unfinished_goes_when_a_line_of_its_stream_comes() -> None:
    topic = Topic()
    out, err = unfinished(Stream.STDOUT, "out"), unfinished(Stream.STDERR, "err")
    topic.show_unfinished(out | err, 0)

    topic.append(lines_of(1, 1))

    assert topic.unfinished(1) == err
    assert topic.unfinished(0) is None


def test_only_what_changed_is_told() -> None:
    topic, shown = Topic(), unfinished(Stream.STDOUT, "dots ..")
    versions = []
    for texts in (shown, dict(shown), {}, {}):
        topic.show_unfinished(texts, 0)
        versions.append(topic.changed.version)
    assert versions == [1, 1, 2, 2]


# -- topics


def test_a_topic_knows_the_last_line_that_is_stored() -> None:
    feed = Feed(Stored())
    assert feed.last_line("job") == 0
    assert len(feed._topics) == 0

    topic = feed.topic("job")
    topic.show_unfinished({}, 40)
    assert feed.last_line("job") == 40
    topic.append(lines_of(41, 5))
    assert feed.last_line("job") == 45


async def test_a_topic_lives_as_long_as_somebody_holds_it() -> None:
    feed = Feed(Stored())
    topic = feed.topic("job")
    topic.append(lines_of(1, 2))

    assert feed.topic("job") is topic
    assert feed.topic("other") is not topic
    del topic
    gc.collect()
    assert len(feed._topics) == 0
    assert feed.topic("job").after(1) is None


async def test_a_job_nobody_watches_costs_nothing() -> None:
    feed = Feed(Stored())
    for number in range(1000):
        feed.job_changed(str(number))
        assert await feed.read(str(number), 0) == []

    gc.collect()
    assert len(feed._topics) == 0
    assert feed.jobs_changed.version == 1000


@pytest.mark.parametrize(
    ("change", "states"),
    [
        (lambda feed: feed.job_changed("job"), 1),
        (lambda feed: feed.wake_all(), 0),
        (lambda feed: feed.topic("job").append(lines_of(1, 1)), 0),
    ],
    ids=["state", "wake all", "line"],
)
async def test_whoever_holds_the_topic_is_woken(
    change: Callable[[Feed], None], states: int
) -> None:
    feed = Feed(Stored())
    topic, other = feed.topic("job"), feed.topic("other")
    seen = topic.changed.version

    change(feed)

    assert await topic.changed.wait(seen, timeout=0)
    assert topic.states == states
    assert other.states == 0


def test_a_version_only_grows() -> None:
    signal = Signal()
    versions = [signal.version]
    for _ in range(5):
        signal.fire()
        versions.append(signal.version)

    assert all(before < after for before, after in pairwise(versions))

"""Lines go in by one writer for all jobs, and come out by number."""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import repeat
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciworker.domain.log import Cursor, Line, Position, Stream, chunk_of
from ciworker.errors import StoreRefused, StoreUnavailable
from ciworker.store import logs as module
from ciworker.store.jobs import Jobs
from ciworker.store.logs import Batch, LogEnd, LogReader, LogWriter
from ciworker.store.session import Database
from tests.store.lab import answer, batch, chunk, job_id, new_job, other_process, seed


class Lines:
    """A source: batches of one job, in order; keeps what it was told is stored."""

    def __init__(self, job: str, batches: Sequence[Batch] = ()) -> None:
        self.job = job
        self.waiting = deque(batches)
        self.told: list[Batch] = []

    def take(self) -> Batch | None:
        return self.waiting.popleft() if self.waiting else None

    def stored(self, batch: Batch) -> None:
        self.told.append(batch)


class Watched:
    """A database whose inserts are counted, may be held back, and may be made to fail."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.sizes: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.faults: Iterator[Exception | None] = iter(())

    async def insert(self, statement: str, values: Sequence[Any]) -> None:
        self.sizes.append(len(values) // 11)
        self.entered.set()
        await self.gate.wait()
        if fault := next(self.faults, None):
            raise fault
        await self._database.insert(statement, values)


@pytest.fixture
async def job(jobs: Jobs) -> str:
    return (await jobs.add(new_job(0), "me", None)).id


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


@pytest.fixture
async def writer(watched: Watched) -> AsyncIterator[LogWriter]:
    made = LogWriter(watched)  # type: ignore[arg-type] # it asks for `insert` alone
    running = asyncio.create_task(made.run())
    yield made
    assert not running.done()
    running.cancel()
    await asyncio.wait([running])


@pytest.fixture
def reader(database: Database) -> LogReader:
    return LogReader(database)


def numbered(job: str, count: int, first: int = 1) -> list[Batch]:
    """Batches of one line each."""
    return [batch(job, chunk(n, f"{job} {n}")) for n in range(first, first + count)]


async def stored(reader: LogReader, job: str) -> list[tuple[int, bytes]]:
    last = (await reader.end(job)).last
    found = [part async for part in reader.stream(job, 0, last)]
    return [(line.number, line.text) for part in found for line in part.lines()]


def expected(job: str, count: int) -> list[tuple[int, bytes]]:
    return [(n, f"{job} {n}".encode()) for n in range(1, count + 1)]


# -- the writer


async def test_after_an_insert_the_next_waits_unless_somebody_is_in_a_hurry(
    writer: LogWriter,
    watched: Watched,
    job: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PAUSE", 10**9)
    monkeypatch.setattr(module, "MOST_PAUSE", 60.0)
    source = Lines(job, numbered(job, 1))
    writer.ready(source)
    await told(source, 1)  # after a rest: at once
    source.waiting.extend(numbered(job, 1, 2))
    writer.ready(source)
    for _ in range(20):
        await asyncio.sleep(0)
    assert watched.sizes == [1]
    writer.hurry()
    await told(source, 2)


async def test_a_pause_ends_by_itself(
    writer: LogWriter, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 10**9)
    source = Lines(job, numbered(job, 1))
    writer.ready(source)
    await told(source, 1)
    source.waiting.extend(numbered(job, 1, 2))
    writer.ready(source)
    await told(source, 2)


async def told(source: Lines, count: int) -> None:
    async with asyncio.timeout(10):
        while len(source.told) < count:
            await asyncio.sleep(0)


async def test_what_arrives_while_one_insert_is_in_flight_goes_into_the_next(
    writer: LogWriter, watched: Watched, database: Database
) -> None:
    sources = [Lines(job_id(n), numbered(job_id(n), 1)) for n in range(30)]
    await seed(database, 30)
    watched.gate.clear()

    writer.ready(sources[0])
    await watched.entered.wait()
    for source in sources[1:]:
        writer.ready(source)
        writer.ready(source)
    await asyncio.sleep(0)
    assert watched.sizes == [1]
    watched.gate.set()
    await writer.drained(5)

    assert watched.sizes == [1, 29]
    assert all(len(source.told) == 1 for source in sources)


async def test_a_line_is_told_of_only_once_it_is_stored(
    writer: LogWriter, reader: LogReader, job: str
) -> None:
    class Asking(Lines):
        def stored(self, batch: Batch) -> None:
            super().stored(batch)
            looks.append(asyncio.create_task(self.look(batch)))

        async def look(self, batch: Batch) -> None:
            assert (await reader.end(job)).last >= batch.chunk.last

    looks: list[asyncio.Task[None]] = []
    source = Asking(job, numbered(job, 20))

    writer.ready(source)
    assert source.told == []
    await writer.drained(5)
    await asyncio.gather(*looks)

    assert len(looks) == 20


async def test_no_line_is_told_of_while_its_insert_is_in_flight(
    writer: LogWriter, watched: Watched, job: str
) -> None:
    source = Lines(job, numbered(job, 1))
    watched.gate.clear()

    writer.ready(source)
    await watched.entered.wait()
    assert source.told == []
    await writer.drained(0.01)  # bounded
    assert source.told == []
    watched.gate.set()
    await writer.drained(5)

    assert len(source.told) == 1


async def test_10_000_batches_of_several_jobs_are_stored_once_and_in_order(
    writer: LogWriter, reader: LogReader, database: Database
) -> None:
    await seed(database, 10)
    sources = [Lines(job_id(n), numbered(job_id(n), 1000)) for n in range(10)]

    for source in sources:
        writer.ready(source)
    await writer.drained(60)

    for source in sources:
        assert await stored(reader, source.job) == expected(source.job, 1000)
        assert [batch.chunk.first for batch in source.told] == list(range(1, 1001))


async def test_every_source_has_its_turn_however_much_the_others_have(
    writer: LogWriter, watched: Watched, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More sources than rows in an insert, and all of them always ready."""
    monkeypatch.setattr(module, "ROWS_PER_INSERT", 4)
    await seed(database, 10)
    ahead: list[int] = []

    class Comparing(Lines):
        def stored(self, batch: Batch) -> None:
            super().stored(batch)
            counts = [len(source.told) for source in sources]
            ahead.append(max(counts) - min(counts))

    sources = [Comparing(job_id(n), numbered(job_id(n), 50)) for n in range(10)]
    for source in sources:
        writer.ready(source)
    await writer.drained(30)

    assert max(ahead) <= 1
    assert set(watched.sizes) == {4}


async def test_sources_that_turn_out_empty_do_not_hide_those_behind_them(
    writer: LogWriter, reader: LogReader, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS_PER_INSERT", 4)
    empty = [Lines("nobody") for _ in range(9)]
    for source in [*empty, Lines(job, numbered(job, 3))]:
        writer.ready(source)

    await writer.drained(5)

    assert await stored(reader, job) == expected(job, 3)


async def test_a_source_may_have_more_when_it_is_told_of_the_last(
    writer: LogWriter, reader: LogReader, job: str
) -> None:
    class Growing(Lines):
        def stored(self, batch: Batch) -> None:
            super().stored(batch)
            if batch.chunk.last < 50:
                self.waiting += numbered(job, 1, batch.chunk.last + 1)
                writer.ready(self)

    writer.ready(Growing(job, numbered(job, 1)))
    await writer.drained(5)

    assert await stored(reader, job) == expected(job, 50)


async def test_while_the_store_is_unavailable_nothing_is_lost_or_doubled(
    writer: LogWriter,
    watched: Watched,
    reader: LogReader,
    job: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETRY_FIRST", 0.0001)
    monkeypatch.setattr(module, "RETRY_MOST", 0.001)
    chosen = random.Random(3)
    watched.faults = iter(
        StoreUnavailable("locked") if chosen.random() < 0.6 else None for _ in range(1000)
    )
    source = Lines(job, numbered(job, 200))

    writer.ready(source)
    await writer.drained(20)

    assert await stored(reader, job) == expected(job, 200)
    assert len(source.told) == 200
    assert len(watched.sizes) > 200 // module.TURNS_PER_INSERT * 2


async def test_lines_wait_for_another_processs_lock(
    writer: LogWriter,
    reader: LogReader,
    job: str,
    database: Database,
    path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await answer(database, "PRAGMA busy_timeout = 20")
    with other_process(path) as other:
        await other.does("BEGIN IMMEDIATE")
        source = Lines(job, numbered(job, 10))
        writer.ready(source)
        await writer.drained(0.3)
        assert source.told == []
        await other.does("COMMIT")
        await writer.drained(10)

    assert await stored(reader, job) == expected(job, 10)


async def test_lines_that_the_store_refuses_stop_nobody_else(
    writer: LogWriter, watched: Watched, reader: LogReader, jobs: Jobs, job: str
) -> None:
    """Two sources of one job would be a mistake of ours: it must not end the worker."""
    other = (await jobs.add(new_job(1), "me", None)).id
    good, rival = Lines(job, numbered(job, 5)), Lines(job, numbered(job, 5))
    bystander, orphan = Lines(other, numbered(other, 5)), Lines("nobody", numbered("nobody", 5))
    watched.gate.clear()

    writer.ready(Lines("none yet"))
    for source in (good, rival, orphan, bystander):
        writer.ready(source)
    watched.gate.set()
    await writer.drained(5)

    assert await stored(reader, job) == expected(job, 5)
    assert await stored(reader, other) == expected(other, 5)
    assert (len(good.told), len(rival.told), len(orphan.told), len(bystander.told)) == (5, 0, 0, 5)
    writer.ready(rival)
    writer.ready(bystander)
    await writer.drained(5)


async def test_of_a_source_nothing_is_stored_behind_the_lines_that_were_refused(
    writer: LogWriter, reader: LogReader, job: str
) -> None:
    source = Lines(job, [*numbered(job, 1), *numbered(job, 1), *numbered(job, 1, 2)])
    writer.ready(source)
    await writer.drained(5)
    assert (len(source.told), await stored(reader, job)) == (1, expected(job, 1))


async def test_a_refusal_of_the_whole_store_is_no_reason_to_end(
    writer: LogWriter, watched: Watched, job: str
) -> None:
    watched.faults = repeat(StoreRefused("the database is damaged"))
    source = Lines(job, numbered(job, 3))

    writer.ready(source)
    await writer.drained(5)

    assert source.told == []


async def test_an_insert_costs_one_transaction_however_many_jobs_it_is_of(
    writer: LogWriter, watched: Watched, database: Database
) -> None:
    await seed(database, 600)
    for n in range(600):
        writer.ready(Lines(job_id(n), numbered(job_id(n), 1)))

    await writer.drained(20)

    assert watched.sizes == [500, 100]


# -- the reader


async def test_a_log_without_lines_ends_at_zero(reader: LogReader, job: str) -> None:
    assert await reader.end(job) == LogEnd()
    assert await reader.end("nobody") == LogEnd()
    assert await reader.chunks(job, 0, 10) == []
    assert await stored(reader, job) == []


async def test_the_end_has_the_last_batchs_cursor(
    writer: LogWriter, reader: LogReader, job: str
) -> None:
    cursor = Cursor(Position(7, 2), Position(1, 3))
    batches = [
        Batch(job, 1, chunk(1, "a", "b"), 4, Cursor(Position(2))),
        Batch(job, 2, chunk(3, "c"), 2**40, cursor),
    ]
    writer.ready(Lines(job, batches))
    await writer.drained(5)

    assert await reader.end(job) == LogEnd(3, 2**40, 2, cursor)


@pytest.mark.parametrize(
    ("attempts", "before"),
    [
        ([1, 1], 0),
        ([-1], 10),
        ([-1, -1, -1], 30),
        ([-1, -2], 20),
        ([-1, -1, 1], 20),
        ([-3, 1, 1, 1], 10),
        ([-1, -2, 1, 1], 20),
        ([-1, 1, -2, 2, 2], 30),
    ],
)
async def test_the_end_tells_how_much_stands_before_the_jobs_own_output(
    database: Database, reader: LogReader, job: str, attempts: list[int], before: int
) -> None:
    """Lines of setups have a negative attempt; here each chunk has ten bytes."""
    for n, attempt in enumerate(attempts, start=1):
        await insert(database, batch(job, chunk(n, "x" * 9), 10 * n, attempt))

    end = await reader.end(job)

    assert end.before_attempt == before
    assert (end.last, end.total_bytes) == (len(attempts), 10 * len(attempts))
    assert (end.attempt, end.cursor.stdout.lines) == (attempts[-1], len(attempts))


LINES = st.lists(
    st.tuples(
        st.sampled_from(Stream),
        st.integers(0, 2**41),
        st.binary(max_size=6).map(lambda text: text.replace(b"\n", b"")),
        st.booleans(),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(LINES, min_size=1, max_size=12), st.integers(1, 5))
async def test_from_every_position_exactly_the_lines_after_it_come(
    database: Database, jobs: Jobs, groups: list[Any], limit: int
) -> None:
    reader, number = LogReader(database), len(await jobs.page(limit=500))
    job = (await jobs.add(new_job(number), "me", None)).id
    lines: list[Line] = []
    for group in groups:
        first = len(lines) + 1
        new = [
            Line(first + i, stream, at, text, ended or not text)
            for i, (stream, at, text, ended) in enumerate(group)
        ]
        lines += new
        await insert(database, batch(job, chunk_of(new, first)))

    for after in range(len(lines) + 2):
        found = await reader.chunks(job, after, limit)
        got = [line for part in found for line in part.lines()]
        assert got == lines[after : after + len(got)]
        assert len(found) <= limit
        assert bool(got) == (after < len(lines))
        everything = [part async for part in reader.stream(job, after, len(lines))]
        assert [line for part in everything for line in part.lines()] == lines[after:]
    assert (await reader.end(job)).last == len(lines)


async def test_a_stream_goes_no_further_than_it_was_asked_to(
    database: Database, reader: LogReader, job: str
) -> None:
    for n in range(4):
        await insert(database, batch(job, chunk(n * 3 + 1, "a", "b", "c")))

    for after in range(12):
        for upto in range(12):
            found = [part async for part in reader.stream(job, after, upto)]
            last = found[-1].last if found else after
            assert all(part.first <= upto for part in found)
            assert last >= upto or upto <= after
            assert last - upto < 3 or not found


async def test_lines_before_the_first_are_all_lines(
    database: Database, reader: LogReader, job: str
) -> None:
    await insert(database, batch(job, chunk(1, "a", "b")))

    assert await reader.chunks(job, -5, 10) == [chunk(1, "a", "b")]


async def test_packed_chunks_are_the_stored_ones_uncut(
    database: Database, reader: LogReader, job: str
) -> None:
    stored_ones = [chunk(1, "a", "b"), chunk_of([Line(0, Stream.STDERR, 7, b"c", False)], 3)]
    for one in stored_ones:
        await insert(database, batch(job, one, one.last))

    for after, expected in ((0, stored_ones), (1, stored_ones), (2, stored_ones[1:]), (3, [])):
        packed = await reader.packed(job, after, 9)
        assert [one.unpacked() for one in packed] == expected
        assert [(one.last, one.whole) for one in packed] == [
            (one.last, one.runs[0].ended) for one in expected
        ]


async def test_one_read_takes_a_bounded_number_of_bytes(
    database: Database, reader: LogReader, job: str
) -> None:
    """A thousand watchers that fell behind hold one read's worth each."""
    line, total = "x" * (module.BYTES_PER_READ // 4), 0
    for n in range(1, 13):
        total += len(line) + 1
        await insert(database, batch(job, chunk(n, line), total))

    found = await reader.chunks(job, 0, 100)
    assert len(found) == 4
    assert sum(len(part.data) for part in found) <= 1.3 * module.BYTES_PER_READ
    assert [number for number, _ in await stored(reader, job)] == list(range(1, 13))


async def test_a_chunk_that_is_larger_than_a_read_comes_whole(
    database: Database, reader: LogReader, job: str
) -> None:
    big = chunk(1, "x" * (2 * module.BYTES_PER_READ), "y")
    await insert(database, batch(job, big, len(big.data)))
    await insert(database, batch(job, chunk(3, "z"), len(big.data) + 2))

    assert await reader.chunks(job, 0, 4) == [big, chunk(3, "z")]
    assert (await reader.chunks(job, 1, 4))[0] == chunk(2, "y")


async def test_jobs_do_not_see_each_others_lines(database: Database, reader: LogReader) -> None:
    await seed(database, 3)
    for n in range(3):
        await insert(database, batch(job_id(n), chunk(1, f"of {n}")))

    assert [(await reader.chunks(job_id(n), 0, 9))[0].data for n in range(3)] == [
        b"of 0\n",
        b"of 1\n",
        b"of 2\n",
    ]


async def insert(database: Database, one: Batch) -> None:
    """Past the writer."""
    source = Lines(one.job_id, [one])
    writer = LogWriter(database)
    writer.ready(source)
    running = asyncio.create_task(writer.run())
    await writer.drained(5)
    running.cancel()
    await asyncio.wait([running])
    assert source.told == [one]

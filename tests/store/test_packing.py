"""A packed log is the same log: every line, number, stream, time and byte, from everywhere."""

import asyncio
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciworker.domain.job import Reason, Status
from ciworker.domain.log import Chunk, Cursor, Line, Position, Run, Stream, chunk_of
from ciworker.errors import StoreRefused, StoreUnavailable, Unknown
from ciworker.store import packing
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.logs import Batch, LogReader
from ciworker.store.packing import Packer
from ciworker.store.session import Database
from tests.store.lab import NOW, SECOND, batch, chunk, job_id, new_job, rows
from tests.store.test_logs import LINES, insert


@pytest.fixture
def packer(database: Database) -> Packer:
    return Packer(database)


@pytest.fixture
def reader(database: Database) -> LogReader:
    return LogReader(database)


@pytest.fixture
async def job(jobs: Jobs) -> str:
    return (await jobs.add(new_job(0), "me", None)).id


async def ended(jobs: Jobs, number: int, seconds: int = 0) -> str:
    """A job that ended so many seconds after NOW."""
    job = await jobs.add(new_job(number), "me", None)
    await jobs.move(
        job.id,
        Expect(Status.QUEUED, 0),
        Status.FAILED,
        NOW + seconds * SECOND,
        reason=Reason.IMAGE_MISSING,
    )
    return job.id


async def all_lines(
    reader: LogReader, job: str, after: int = 0, upto: int | None = None
) -> list[Line]:
    last = (await reader.end(job)).last
    stream = reader.stream(job, after, last if upto is None else min(upto, last))
    return [line async for part in stream for line in part.lines()]


def forms(path: Path, job: str) -> list[int]:
    """Of each chunk, whether it is packed."""
    return [
        packed
        for (packed,) in rows(
            path, f"SELECT packed FROM log_chunk WHERE job_id = '{job}' ORDER BY first"
        )
    ]


def words(count: int, seed: int = 0) -> list[str]:
    chosen = random.Random(seed)
    return [f"line {n} {chosen.random()} tests/test_{n % 7}.py PASSED" for n in range(count)]


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    groups=st.lists(st.tuples(LINES, st.sampled_from([-2, -1, 1, 2])), min_size=1, max_size=12),
    size=st.integers(1, 60),
    lines=st.integers(1, 9),
    smallest=st.sampled_from([0, 30]),
)
async def test_packed_it_is_the_same_log_from_every_position(
    database: Database, jobs: Jobs, groups: list[Any], size: int, lines: int, smallest: int
) -> None:
    reader, number = LogReader(database), len(await jobs.page(limit=500))
    job = (await jobs.add(new_job(number), "me", None)).id
    first, total = 1, 0
    for number, (group, attempt) in enumerate(groups):
        new = [
            Line(first + i, stream, at, text, ended or not text)
            for i, (stream, at, text, ended) in enumerate(group)
        ]
        part = chunk_of(new, first)
        first, total = part.last + 1, total + len(part.data)
        await insert(database, Batch(job, attempt, part, total, Cursor(Position(number, 1))))
    before, end = await all_lines(reader, job), await reader.end(job)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "GROUP_BYTES", size)
        patch.setattr(packing, "GROUP_LINES", lines)
        patch.setattr(packing, "SMALLEST", smallest)
        await Packer(database).pack(job)

    assert await reader.end(job) == end
    for after in range(len(before) + 1):
        assert await all_lines(reader, job, after) == before[after:]
        upto = after + after % 5
        assert await all_lines(reader, job, after, upto) == before[after:upto]
    await Packer(database).pack(job)
    assert await all_lines(reader, job) == before


async def test_chunks_are_merged_and_become_smaller(
    database: Database, packer: Packer, reader: LogReader, job: str, path: Path
) -> None:
    texts, total = words(20_000), 0
    for n in range(0, len(texts), 10):
        part = chunk(n + 1, *texts[n : n + 10], at=1000 + n)
        total += len(part.data)
        await insert(database, batch(job, part, total))
    stored = "SELECT sum(length(data) + length(runs)), count(*) FROM log_chunk"
    ((size, count),) = rows(path, stored)
    before, middle = await all_lines(reader, job), await all_lines(reader, job, 10_000, 10_003)

    await packer.pack(job)

    ((packed_size, packed_count),) = rows(path, stored)
    assert (count, packed_count) == (2000, len(forms(path, job)))
    assert packed_count < 10
    assert packed_size < size / 3
    assert await all_lines(reader, job) == before
    assert await all_lines(reader, job, 10_000, 10_003) == middle
    assert [line.number for line in middle] == [10_001, 10_002, 10_003]


async def test_what_does_not_get_smaller_is_stored_as_it_is(
    database: Database, packer: Packer, reader: LogReader, job: str, path: Path
) -> None:
    for n in range(3):
        noise = os.urandom(10_000).replace(b"\n", b"") + b"\n"
        run = Run(Stream.STDERR, 5, 1, len(noise), True)
        await insert(database, batch(job, Chunk(n + 1, noise, (run,)), (n + 1) * 10_001))
    before = await all_lines(reader, job)

    await packer.pack(job)

    assert forms(path, job) == [0]
    assert await all_lines(reader, job) == before


async def test_a_short_log_stays_as_it_is(
    database: Database, packer: Packer, job: str, path: Path
) -> None:
    await insert(database, batch(job, chunk(1, "a", "b", "c")))
    before = rows(path, "SELECT * FROM log_chunk")

    await packer.pack(job)

    assert rows(path, "SELECT * FROM log_chunk") == before


async def test_those_that_ended_first_come_first_and_each_once(jobs: Jobs, packer: Packer) -> None:
    last, first = await ended(jobs, 0, 9), await ended(jobs, 1, 1)
    await jobs.add(new_job(2), "me", None)

    assert await packer.waiting(9) == [first, last]
    assert await packer.waiting(1) == [first]
    await packer.done([first])
    assert await packer.waiting(9) == [last]


async def test_a_reader_in_the_middle_sees_the_same_lines(
    database: Database, packer: Packer, reader: LogReader, job: str
) -> None:
    total = 0
    for n in range(1, 401):
        part = chunk(n, f"{n} " + "x" * 3000)
        total += len(part.data)
        await insert(database, batch(job, part, total))
    got: list[int] = []

    async for part in reader.stream(job, 0, 400):
        got += [line.number for line in part.lines()]
        if len(got) == 150:
            await packer.pack(job)

    assert got == list(range(1, 401))


async def test_a_log_that_is_packed_while_all_read_it_has_no_gap(
    database: Database, packer: Packer, reader: LogReader, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read takes its two looks at one state of the database."""
    monkeypatch.setattr(packing, "GROUP_BYTES", 2000)
    monkeypatch.setattr(packing, "SMALLEST", 0)
    texts, total = words(2000), 0
    for n in range(0, 2000, 5):
        part = chunk(n + 1, *texts[n : n + 5])
        total += len(part.data)
        await insert(database, batch(job, part, total))
    packed = asyncio.create_task(packer.pack(job))
    readers = 0
    while not packed.done():
        for after in range(0, 2000, 97):
            found = await reader.chunks(job, after, 3)
            assert found[0].first == after + 1
            assert [a.last + 1 for a in found[:-1]] == [b.first for b in found[1:]]
            readers += 1
    await packed

    assert readers > 20
    assert [line.text.decode() for line in await all_lines(reader, job)] == texts


_KILLED = """
import asyncio, os, sys
from pathlib import Path
from ciworker.store import packing
from ciworker.store.session import Database

packing.GROUP_BYTES = 4000
left = int(sys.argv[3])


async def main():
    global left
    database = await Database.open(Path(sys.argv[1]))

    def count():
        global left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), 9)

    await database._writer._driver.set_progress_handler(count, 5)
    await packing.Packer(database).pack(sys.argv[2])
    print("through", flush=True)
    os._exit(0)


asyncio.run(main())
"""


async def test_killed_at_any_point_it_leaves_the_same_log(
    database: Database, reader: LogReader, job: str, path: Path
) -> None:
    texts, total = words(400), 0
    for n in range(0, 400, 5):
        part = chunk(n + 1, *texts[n : n + 5])
        total += len(part.data)
        await insert(database, batch(job, part, total))
    end, killed, left = await reader.end(job), 0, 10
    while True:
        ran = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _KILLED, str(path), job, str(left)],
            capture_output=True,
            check=False,
        )
        assert [line.text.decode() for line in await all_lines(reader, job)] == texts
        assert await reader.end(job) == end
        if ran.returncode == 0:
            break
        assert ran.returncode == -9, ran.stderr
        killed, left = killed + 1, left * 2

    assert killed >= 3
    assert set(forms(path, job)) == {1}
    assert rows(path, "PRAGMA quick_check") == [("ok",)]


async def test_a_group_is_replaced_whole_or_not_at_all(
    database: Database,
    packer: Packer,
    reader: LogReader,
    job: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = words(100)
    for n in range(0, 100, 50):
        await insert(database, batch(job, chunk(n + 1, *texts[n : n + 50]), n + 50))
    monkeypatch.setattr(packing, "_PUT", f"{packing._PUT} AND nonsense")

    with pytest.raises(StoreUnavailable, match="nonsense"):
        await packer.pack(job)

    assert [line.text.decode() for line in await all_lines(reader, job)] == texts


_MEASURED = """
import asyncio, os, sys
from pathlib import Path
from ciworker.store.packing import Packer
from ciworker.store.session import Database


def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


async def main():
    database = await Database.open(Path(sys.argv[1]))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on, see proc(5)
    before = kib("VmRSS")
    await Packer(database).pack(sys.argv[2])
    print(kib("VmHWM") - before, flush=True)
    await database.close()


asyncio.run(main())
"""


async def test_memory_is_bounded_however_long_the_log_is(
    database: Database, job: str, path: Path
) -> None:
    text, total = "x" * 1000, 0
    for n in range(0, 64_000, 64):
        part = chunk(n + 1, *[text] * 64)
        total += len(part.data)
        await insert(database, batch(job, part, total))
    assert total > 60 * 2**20

    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _MEASURED, str(path), job],
        capture_output=True,
        check=True,
    )

    assert set(forms(path, job)) == {1}
    assert int(ran.stdout) < 24 * 2**10  # KiB


async def test_a_damaged_frame_is_told_of(
    database: Database, packer: Packer, reader: LogReader, job: str
) -> None:
    await insert(database, batch(job, chunk(1, *words(100)), 9))
    await packer.pack(job)
    await database.insert("UPDATE log_chunk SET data = substr(data, 1, 40)", [])

    with pytest.raises(StoreRefused, match=r"damaged: .* restore a backup"):
        await reader.chunks(job, 0, 1)


async def test_a_stream_whose_job_is_removed_does_not_end_as_if_that_were_all(
    database: Database, reader: LogReader, job: str
) -> None:
    for n in range(1, 600):
        await insert(database, batch(job, chunk(n, "x"), n))
    stream = reader.stream(job, 0, 599)
    assert (await anext(stream)).first == 1
    assert reader.read_now == {job}
    await database.insert("DELETE FROM log_chunk WHERE first > 256", [])
    await database.insert("DELETE FROM log_chunk", [])

    with pytest.raises(Unknown, match="removed while its log was read"):
        async for _ in stream:
            pass
    assert reader.read_now == frozenset()


async def test_a_stream_whose_job_is_removed_before_its_first_line_is_no_empty_log(
    database: Database, reader: LogReader, job: str
) -> None:
    await insert(database, batch(job, chunk(1, "x")))
    stream = reader.stream(job, 0, 1)
    await database.insert("DELETE FROM log_chunk", [])

    with pytest.raises(Unknown, match="removed while its log was read"):
        await anext(stream)


async def test_jobs_of_others_are_left_alone(
    database: Database, packer: Packer, reader: LogReader, jobs: Jobs, path: Path
) -> None:
    for number in range(2):
        job = (await jobs.add(new_job(number), "me", None)).id
        for n in range(4):
            part = chunk(n * 50 + 1, *words(50, n))
            await insert(database, batch(job, part, (n + 1) * len(part.data)))

    await packer.pack(job_id(0))

    assert forms(path, job_id(0)) == [1]
    assert forms(path, job_id(1)) == [0] * 4
    assert await all_lines(reader, job_id(0)) == await all_lines(reader, job_id(1))

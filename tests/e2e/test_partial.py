"""What a job has printed without a newline is seen soon, and is replaced by its line."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from tests.conftest import WorkerFactory
from tests.driver import Frame, Worker
from tests.e2e.follower import WAIT, let_go, stored
from tests.e2e.proxy import proxy

SOON = 0.2  # seconds
DOTS = """\
import sys, time
sys.stdout.write("first\\n")
for _ in range(30):
    sys.stdout.write(".")
    time.sleep(0.02)
sys.stdout.write(" passed\\n")
"""
CLOCK = """\
import sys, threading, time

def noise():
    while True:
        print("line", file=sys.stderr, flush=True)
        time.sleep(0.002)

if "noisy" in sys.argv:
    threading.Thread(target=noise, daemon=True).start()
for _ in range(20):
    print(f"{time.time():.3f}", end=" ", flush=True)
    time.sleep(0.2)
"""
UNFINISHED = f"echo whole; printf waiting; printf problem >&2; {WAIT}; echo ' done'"

Paths = Callable[[str], str]


def own(job_id: str) -> str:
    return f"/jobs/{job_id}/events"


def shared_by_several(job_id: str) -> str:
    return f"/events?follow={job_id}.0"


@asynccontextmanager
async def events_of(worker: Worker, path: str) -> AsyncIterator[AsyncIterator[Frame]]:
    """A job's frames without their suffix, as both kinds of streams have them."""

    async def plain(frames: AsyncIterator[Frame]) -> AsyncIterator[Frame]:
        async for frame in frames:
            yield Frame(frame.event.partition(".")[0], frame.id, frame.data)

    async with asyncio.timeout(30), worker.events(path) as frames:
        yield plain(frames)


async def until(frames: AsyncIterator[Frame], done: Callable[[Frame], bool]) -> list[Frame]:
    """All frames up to the first for which it is so."""
    found = []
    async for frame in frames:
        found.append(frame)
        if done(frame):
            return found
    raise AssertionError(found)


def partials(found: Sequence[Frame]) -> list[dict[str, str]]:
    frames = [frame for frame in found if frame.event == "partial"]
    assert all(frame.id is None and len(frame.data) == 1 for frame in frames)
    return [frame.json for frame in frames]


def now_unfinished(found: Sequence[Frame]) -> dict[str, str]:
    """What a reader shows below the lines after these frames."""
    shown: dict[str, str] = {}
    for frame in found:
        if frame.event == "partial":
            shown[frame.json["stream"]] = frame.json["text"]
        if frame.event == "log":
            for record in frame.records:
                shown.pop(record["stream"], None)
    return {stream: text for stream, text in shown.items() if text}


def is_end(frame: Frame) -> bool:
    return frame.event == "end"


@pytest.mark.parametrize("path", [own, shared_by_several])
async def test_dots_are_seen_as_they_are_printed_and_become_one_line(
    worker: Worker, path: Paths
) -> None:
    job_id = await worker.submit("python3 dots.py", {"dots.py": DOTS})
    async with events_of(worker, path(job_id)) as frames:
        found = await until(frames, is_end)

    lines = [frame for frame in found if frame.event == "log"]
    told = partials(found[found.index(lines[0]) : found.index(lines[-1])])
    assert partials(found) == told
    assert len(told) >= 3
    lengths = [len(record["text"]) for record in told]
    assert [record["text"] for record in told] == ["." * length for length in lengths]
    assert lengths == sorted(set(lengths))
    assert all(set(record) == {"at", "stream", "text"} for record in told)
    assert {record["stream"] for record in told} == {"stdout"}
    records = [record for frame in lines for record in frame.records]
    assert [(r["n"], r["text"]) for r in records] == [(1, "first"), (2, "." * 30 + " passed")]
    assert records == await stored(worker, job_id)


@pytest.mark.parametrize("beside", ["", "noisy"])
async def test_what_is_printed_is_seen_within_a_fifth_of_a_second(
    worker: Worker, beside: str
) -> None:
    """Also while the other stream prints 500 lines a second."""
    job_id = await worker.submit(f"python3 clock.py {beside}", {"clock.py": CLOCK})
    async with events_of(worker, own(job_id)) as frames:
        ages = [
            time.time() - float(frame.json["text"].split()[-1])
            async for frame in frames
            if frame.event == "partial" and frame.json["stream"] == "stdout"
        ]
    assert len(ages) >= 16
    assert statistics.quantiles(ages, n=10)[-1] < SOON


@pytest.mark.parametrize("path", [own, shared_by_several])
async def test_whoever_comes_late_sees_it_behind_the_lines(worker: Worker, path: Paths) -> None:
    job_id = await worker.submit(UNFINISHED)
    both = {"stdout": "waiting", "stderr": "problem"}
    async with events_of(worker, path(job_id)) as early, events_of(worker, path(job_id)) as late:
        found: list[Frame] = []
        while now_unfinished(found) != both:
            found.append(await anext(early))

        first = await until(late, lambda frame: frame.event == "partial")
        first.append(await anext(late))
        assert [frame.event for frame in first if frame.event != "status"] == [
            "log", "partial", "partial",
        ]  # fmt: skip
        assert now_unfinished(first) == both

        await let_go(worker, job_id)
        for before, frames in ((found, early), (first, late)):
            seen = before + await until(frames, is_end)
            assert now_unfinished(seen) == {}
            assert all(record["text"] for record in partials(seen))
    records = await stored(worker, job_id)
    texts = {record["text"]: record.get("end", True) for record in records}
    assert texts == {"whole": True, "waiting done": True, "problem": False}


async def test_after_the_worker_s_death_the_line_comes_whole_and_nothing_else(
    worker: Worker,
) -> None:
    job_id = await worker.submit(UNFINISHED)
    async with events_of(worker, own(job_id)) as frames:
        await until(frames, lambda frame: frame.event == "partial")
    await worker.kill()
    await worker.start()
    async with events_of(worker, own(job_id)) as frames:
        found = await until(frames, lambda frame: frame.event == "log")
        await let_go(worker, job_id)
        found += await until(frames, is_end)
    assert partials(found) == []
    texts = [record["text"] for frame in found if frame.event == "log" for record in frame.records]
    assert sorted(texts) == ["problem", "waiting done", "whole"]


@pytest.mark.parametrize("path", [own, shared_by_several])
async def test_it_is_taken_back_when_the_connection_to_the_container_breaks(
    new_worker: WorkerFactory, path: Paths
) -> None:
    async with proxy() as between:
        worker = new_worker(docker_host=between.url)
        await worker.start()
        job_id = await worker.submit(f"echo whole; printf waiting; {WAIT}; echo ' done'")
        async with events_of(worker, path(job_id)) as frames:
            found = await until(frames, lambda frame: frame.event == "partial")
            assert now_unfinished(found) == {"stdout": "waiting"}

            assert between.cut("POST /containers/{id}/attach") == 1

            found += await until(frames, lambda frame: frame.event == "partial")
            assert partials(found)[1:] == [{"stream": "stdout", "text": ""}]
            await let_go(worker, job_id)
            rest = await until(frames, is_end)
        assert partials(rest) == []
        assert await worker.text(job_id) == b"whole\nwaiting done\n"

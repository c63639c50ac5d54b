"""What the benches rest on: turns, verdicts, and readers that count right however lines are cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from scripts.bench import readers
from scripts.bench.hostile import GRACE, HONEST, Found, Left, chosen, judge
from scripts.bench.readers import Readers, Wanted
from scripts.bench.rounds import Broken, Check, centile, on_a_thread, taking_turns
from tests.hostile import HOSTILE, Hostile

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


async def test_contenders_take_turns_and_the_warm_up_does_not_count() -> None:
    order: list[str] = []

    def contender(name: str) -> Mapping[str, float]:
        order.append(name)
        return {"time": float(len(order))}

    names = {name: on_a_thread(contender, name) for name in ("one", "two")}
    found = await taking_turns(names, 2, warm_up=1)
    assert order == ["two", "one", "one", "two", "two", "one"]
    assert found.of == {("one", "time"): [3, 6], ("two", "time"): [4, 5]}
    assert found.ratios("time", "one", "two") == [3 / 4, 6 / 5]


@pytest.mark.parametrize(
    ("values", "least", "percent", "met"),
    [
        ([1, 2, 9], False, 50, True),
        ([1, 3, 9], False, 50, False),
        ([1, 2, 9], True, 50, True),
        ([1, 1, 9], True, 50, False),
        ([1.0] * 98 + [9, 9], False, 99, False),
        ([1.0] * 99 + [9], False, 50, True),
    ],
)
def test_a_check_is_judged_by_its_centile(
    values: list[float], least: bool, percent: int, met: bool
) -> None:
    check = Check("S0", "it", values, 2, least=least, centile=percent)
    assert check.met is met
    assert check.line().startswith("PASS" if met else "MISS")
    assert check.reached == centile(values, percent)


@contextlib.asynccontextmanager
async def serving(pieces: list[bytes]) -> AsyncIterator[int]:
    """The port of a server that gives each who connects these pieces, one by one, and closes."""
    served = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # so that pieces are sent apart
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.wait([task for task in served if task])


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
async def test_readers_count_every_line_once_wherever_it_is_cut(size: int) -> None:
    lines = b"".join(b'data: {"n":%d,"text":"x"}\n' % n for n in range(3))
    async with serving([HEAD, *cut(lines, size)]) as port:
        found = await Readers.connected(Wanted(port, "/", "", readers=3, lines=3))
        try:
            assert await found.done() == []
        finally:
            await found.close()


@pytest.mark.parametrize("lines", [1, 3])
async def test_readers_that_get_too_few_or_too_many_lines_are_no_measurement(lines: int) -> None:
    async with serving([HEAD, readers.LINE * lines]) as port:
        found = await Readers.connected(Wanted(port, "/", "", readers=1, lines=2))
        try:
            with pytest.raises(Broken):
                await found.done()
        finally:
            await found.close()


def ended(hostile: Hostile, reason: str, late: float = 0.0) -> tuple[Hostile, dict[str, Any]]:
    deadline = datetime.now(UTC)
    finished = deadline + timedelta(seconds=GRACE + late)
    job = {
        "reason": reason, "message": reason, "started_at": deadline.isoformat(),
        "deadline_at": deadline.isoformat(), "finished_at": finished.isoformat(),
    }  # fmt: skip
    return hostile, job


KEPT = Found(
    honest=[{"reason": "passed"}] * HONEST,
    hostile=[ended(hostile, hostile.reason) for hostile in chosen()],
    at_once=35,
    took=[0.01] * 100,
    left=Left(0, 0, 0),
    rss=(1, 1),
)


@pytest.mark.parametrize(
    ("found", "missed"),
    [
        (KEPT, 0),
        (replace(KEPT, honest=KEPT.honest[1:]), 1),
        (replace(KEPT, took=[0.01] * 98 + [0.3] * 2), 1),
        (replace(KEPT, hostile=[*KEPT.hostile, ended(HOSTILE["memory"], "passed")]), 1),
        (replace(KEPT, hostile=[*KEPT.hostile, ended(HOSTILE["busy"], "timed_out", 99)]), 1),
        (replace(KEPT, left=Left(0, 1, 0)), 1),
    ],
)
def test_hostile_jobs_are_judged_by_each_promise(
    found: Found, missed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(found) is (missed == 0)
    assert len(chosen()) == 30
    assert capsys.readouterr().out.count("MISS") == missed

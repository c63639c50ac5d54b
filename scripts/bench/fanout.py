"""S6, S7, S9: one job's lines to many readers, beside nginx with nchan.

What counts is the server's CPU: the readers have processes of their own and share the machine.
nchan gets fewer messages than the worker lines, as it takes longer for each; rates are compared.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from scripts.bench import nchan
from scripts.bench.process import cpu_seconds, memory
from scripts.bench.readers import Readers, Wanted
from scripts.bench.rounds import Check, Ground, Samples, centile, taking_turns
from scripts.bench.worker import cpu, let_go, passed, pid, running, started
from tests.driver import Worker

MANY, LINES = 500, 20_000
ONE_BY_ONE = 1_000  # messages for nchan
BLOCK, BLOCKS = 50, 200
DELIVERIES, BESIDE_ONE, BESIDE_BLOCKS = 14e6, 60.0, 4.8

PACED, SECONDS, A_SECOND = 200, 10, 1_000
SHARE, AGE = 0.2, 0.020

IDLE, EACH, ALL_SERVED = 10_000, 14 * 1024, 0.250

OURS, NCHAN, NCHAN_BLOCKS = "worker", "nchan", "nchan, 50 lines a message"

TEXT = "tests/test_orders.py::test_total[{n:05}] PASSED in 0.01 s"
# What nchan is given, as it is what a reader of the worker gets.
RECORD = '{{"n":{n},"at":"2026-01-01T00:00:00.000Z","stream":"stdout","text":"{text}"}}'
FLOOD = f"""
import sys
sys.stdout.write("".join(f"{TEXT}\\n" for n in range({LINES})))
"""
STAMPED = 'f"~{time.time():.6f} tests/test_orders.py::test_total[{n:05}] PASSED"'
BY_THE_CLOCK = f"""
import time
began = time.time()
for n in range({SECONDS * A_SECOND}):
    time.sleep(max(0.0, began + n / {A_SECOND} - time.time()))
    print({STAMPED}, flush=True)
"""
ONE_LINE = f"import time; n = 1; print({STAMPED}, flush=True)"


@dataclass(frozen=True)
class Fanout:
    """Both servers."""

    ours: Worker
    nchan: nchan.Nchan

    def of_job(self, job: str, readers: int, lines: int, **more: object) -> Wanted:
        path = f"/api/v1/jobs/{job}/events"
        return Wanted(self.ours.port, path, self.ours.token, readers, lines, **more)  # type: ignore[arg-type] # the fields by name

    def of_nchan(self, readers: int, lines: int, **more: object) -> Wanted:
        return Wanted(self.nchan.port, nchan.SUBSCRIBE, "", readers, lines, **more)  # type: ignore[arg-type] # the fields by name

    # S6

    async def flood(self) -> Mapping[str, float]:
        """Deliveries per second of the server's CPU, the reading of the job's output included."""
        job, container = await started(self.ours, FLOOD)
        readers = await Readers.connected(self.of_job(job, MANY, LINES))
        try:
            before = cpu(self.ours)
            await let_go(container)
            await readers.done()
            used = cpu(self.ours) - before
        finally:
            await readers.close()
        await passed(self.ours, job, LINES)
        return {"deliveries": MANY * LINES / used}

    async def flood_one_by_one(self) -> Mapping[str, float]:
        messages = [_record(n, TEXT.format(n=n)) for n in range(ONE_BY_ONE)]
        return await self._flood_nchan(messages, 1)

    async def flood_in_blocks(self) -> Mapping[str, float]:
        block = b"\n".join(_record(n, TEXT.format(n=n)) for n in range(BLOCK))
        return await self._flood_nchan([block] * BLOCKS, BLOCK)

    async def _flood_nchan(self, messages: Sequence[bytes], lines: int) -> Mapping[str, float]:
        total = lines * len(messages)
        readers = await Readers.connected(self.of_nchan(MANY, total))
        try:
            before = cpu_seconds(self.nchan.pid)
            for message in messages:
                await self.nchan.publish(message)
            await readers.done()
            used = cpu_seconds(self.nchan.pid) - before
        finally:
            await readers.close()
        return {"deliveries": MANY * total / used}

    # S7

    async def paced(self) -> Mapping[str, float]:
        lines = SECONDS * A_SECOND
        job, container = await started(self.ours, BY_THE_CLOCK)
        readers = await Readers.connected(self.of_job(job, PACED, lines, timed=True))
        try:
            before = cpu(self.ours)
            await let_go(container)
            ages = await readers.done()
            used = cpu(self.ours) - before
        finally:
            await readers.close()
        await passed(self.ours, job, lines)
        return {"share": used / SECONDS, "age": centile(ages, 99)}

    async def paced_nchan(self) -> Mapping[str, float]:
        readers = await Readers.connected(self.of_nchan(PACED, SECONDS * A_SECOND, timed=True))
        try:
            before = cpu_seconds(self.nchan.pid)
            async with asyncio.TaskGroup() as tasks:
                began = time.time()
                for n in range(SECONDS * A_SECOND):
                    await asyncio.sleep(max(0.0, began + n / A_SECOND - time.time()))
                    tasks.create_task(self.nchan.publish(_stamped(n)))
            ages = await readers.done()
            used = cpu_seconds(self.nchan.pid) - before
        finally:
            await readers.close()
        return {"share": used / SECONDS, "age": centile(ages, 99)}


def _stamped(n: int) -> bytes:
    return _record(n, f"~{time.time():.6f} tests/test_orders.py::test_total[{n:05}] PASSED")


def _record(n: int, text: str) -> bytes:
    return RECORD.format(n=n, text=text).encode()


async def flooded(ground: Ground) -> Sequence[Check]:
    """S6."""
    async with running(ground, "flood") as ours, nchan.serving(ground.folder / "nchan") as other:
        both = Fanout(ours, other)
        contenders = {
            OURS: both.flood,
            NCHAN: both.flood_one_by_one,
            NCHAN_BLOCKS: both.flood_in_blocks,
        }
        found = await taking_turns(contenders, ground.few)
    figures = "deliveries per second of the server's CPU"
    return [
        Check("S6", figures, found.of[OURS, "deliveries"], DELIVERIES, "M/s", least=True),
        _beside(found, NCHAN, BESIDE_ONE),
        _beside(found, NCHAN_BLOCKS, BESIDE_BLOCKS),
    ]


def _beside(found: Samples, base: str, target: float) -> Check:
    note = found.beside("deliveries", OURS, base, "M/s")
    ratios = found.ratios("deliveries", OURS, base)
    return Check("S6", f"the same beside {base}", ratios, target, least=True, note=note)


async def paced(ground: Ground) -> Sequence[Check]:
    """S7."""
    async with running(ground, "paced") as ours, nchan.serving(ground.folder / "nchan") as other:
        both = Fanout(ours, other)
        found = await taking_turns({OURS: both.paced, NCHAN: both.paced_nchan}, ground.few, 0)
    cpu_note, age_note = (
        found.beside(what, OURS, NCHAN, unit) for what, unit in (("share", "%"), ("age", "ms"))
    )
    return [
        Check("S7", "server's CPU, of a core", found.of[OURS, "share"], SHARE, "%", note=cpu_note),
        Check("S7", "p99 age of a line", found.of[OURS, "age"], AGE, "ms", note=age_note),
    ]


# S9


async def idle(ground: Ground) -> Sequence[Check]:
    """S9: each round has fresh servers, as memory that was freed is not given back."""

    sources = (f"127.0.1.{n}" for n in count(1))

    async def ours() -> Mapping[str, float]:
        name = next(sources)
        async with running(ground, name) as worker:
            job, container = await started(worker, ONE_LINE)
            path = f"/api/v1/jobs/{job}/events"
            wanted = Wanted(worker.port, path, worker.token, IDLE, 1, timed=True, source=name)
            return await _idle(wanted, pid(worker), lambda: let_go(container))

    async def theirs() -> Mapping[str, float]:
        name = next(sources)
        async with nchan.serving(ground.folder / name) as other:
            wanted = Wanted(other.port, nchan.SUBSCRIBE, "", IDLE, 1, timed=True, source=name)
            return await _idle(wanted, other.pid, lambda: other.publish(_stamped(1)))

    found = await taking_turns({OURS: ours, NCHAN: theirs}, ground.few, 0)
    each, last = (
        found.beside(what, OURS, NCHAN, unit) for what, unit in (("each", "KiB"), ("age", "ms"))
    )
    return [
        Check("S9", "memory of an idle reader", found.of[OURS, "each"], EACH, "KiB", note=each),
        Check("S9", "p99 age of a line", found.of[OURS, "age"], ALL_SERVED, "ms", note=last),
    ]


async def _idle(wanted: Wanted, pid: int, go: Callable[[], Awaitable[None]]) -> dict[str, float]:
    before, _ = memory(pid)
    readers = await Readers.connected(wanted)
    try:
        after, _ = memory(pid)
        await go()
        ages = await readers.done()
    finally:
        await readers.close()
    return {"each": (after - before) / wanted.readers, "age": centile(ages, 99)}

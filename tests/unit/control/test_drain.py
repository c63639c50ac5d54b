"""Draining, when what it asks fails, and when it is undone at every moment."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from ciworker.control import drain as draining
from ciworker.control.drain import Drain
from ciworker.domain.job import Job, Reason, Status
from ciworker.errors import Conflict, EngineUnavailable, StoreUnavailable
from ciworker.web.context import CONTEXT
from ciworker.web.drain import drain as drain_route
from tests.unit.control.lab import PATIENCE, Life


class Drained(Drain):
    """stopped: how often the worker was told to stop."""

    def __init__(self, life: Life) -> None:
        self.stopped = 0
        self.told = asyncio.Event()
        super().__init__(life.parts, life.controller, life.pool, stop=self._count)

    def _count(self) -> None:
        self.stopped += 1
        self.told.set()


@pytest.fixture
async def drain(life: Life) -> AsyncIterator[Drained]:
    made = Drained(life)
    task = asyncio.create_task(made.run())
    yield made
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def stops(drain: Drained) -> None:
    async with asyncio.timeout(PATIENCE):
        await drain.told.wait()
    assert drain.stopped == 1


async def test_what_runs_ends_first_and_what_waits_is_left(life: Life, drain: Drained) -> None:
    running, waiting = await life.submit("echo a; sleep 0.1"), await life.submit()
    await life.running(running)
    drain.begin()
    drain.begin()
    await stops(drain)
    ended = await life.jobs.get(running)
    assert ended is not None
    assert ended.reason is Reason.PASSED
    assert not life.up()
    left = await life.jobs.get(waiting)
    assert left is not None
    assert (left.status, left.attempt) == (Status.QUEUED, 0)
    assert drain.over
    with pytest.raises(Conflict, match="start it again"):
        drain.undo()
    life.controller.accepting = True  # as the next worker does
    life.controller.notify(waiting)
    await life.ended(waiting)


async def test_a_drain_that_is_undone_starts_what_waits(life: Life, drain: Drained) -> None:
    running = await life.submit("echo a; sleep 60")
    await life.printed(running, b"a\n")
    waiting = await life.submit()
    drain.begin()
    assert drain.wanted
    drain.undo()
    assert not drain.wanted
    await life.cancel(running)
    assert (await life.ended(waiting)).reason is Reason.PASSED
    assert drain.stopped == 0


async def begun_to_tidy(life: Life, drain: Drained) -> asyncio.Event:
    """Drain until the last containers are asked for; that is answered once the event is set."""
    await life.comes_to_rest()
    gate, before = life.engine.hold("list"), life.calls("list")
    drain.begin()
    async with asyncio.timeout(PATIENCE):
        while life.calls("list") == before:
            await asyncio.sleep(0)
    return gate


async def test_a_drain_that_is_undone_while_it_tidies_up_does_not_stop(
    life: Life, drain: Drained
) -> None:
    gate = await begun_to_tidy(life, drain)
    drain.undo()
    gate.set()
    assert (await life.ended(await life.submit())).reason is Reason.PASSED
    assert drain.stopped == 0


async def test_a_drain_that_begins_again_while_it_tidies_up_waits_for_what_was_admitted(
    life: Life, drain: Drained
) -> None:
    gate = await begun_to_tidy(life, drain)
    drain.undo()
    job = await life.submit("echo a; sleep 0.2")
    await life.running(job)
    drain.begin()
    gate.set()
    await stops(drain)
    ended = await life.jobs.get(job)
    assert ended is not None
    assert ended.reason is Reason.PASSED


async def test_an_engine_that_is_away_does_not_keep_a_worker_that_runs_nothing(
    life: Life, drain: Drained
) -> None:
    life.engine.fail("list", EngineUnavailable("away"))
    drain.begin()
    await stops(drain)


async def test_a_store_that_fails_for_a_while_is_asked_again(
    life: Life, drain: Drained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "LOOK", 0.01)
    active, failures = life.jobs.active, iter([True, True])

    async def failing() -> Mapping[str, int]:
        if next(failures, False):
            raise StoreUnavailable("locked")
        return await active()

    monkeypatch.setattr(life.jobs, "active", failing)
    drain.begin()
    await stops(drain)
    assert next(failures, None) is None


async def test_a_drain_that_cannot_say_what_it_waits_for_does_not_begin(
    life: Life, drain: Drained, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> Mapping[str, int]:
        raise StoreUnavailable("locked")

    monkeypatch.setattr(life.jobs, "active", away)
    app = web.Application()
    app[CONTEXT] = cast("Any", SimpleNamespace(drain=drain, jobs=life.jobs))
    with pytest.raises(StoreUnavailable):
        await drain_route(make_mocked_request("POST", "/", app=app))
    assert not drain.wanted
    assert life.controller.accepting


async def test_a_job_that_is_being_admitted_is_waited_for(
    life: Life, drain: Drained, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, reached, gate = life.jobs.move, asyncio.Event(), asyncio.Event()

    async def held(*args: Any, **more: Any) -> Job | None:
        reached.set()
        await gate.wait()
        return await move(*args, **more)

    monkeypatch.setattr(life.jobs, "move", held)
    job = await life.submit()
    await asyncio.wait_for(reached.wait(), PATIENCE)
    drain.begin()
    for _ in range(20):
        assert await life.jobs.active() == {}  # as the drain would find
    gate.set()
    await stops(drain)
    ended = await life.jobs.get(job)
    assert ended is not None
    assert ended.reason is Reason.PASSED

"""Ends that are easily told wrongly: of pulls that break off, of clocks that differ."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ciworker.domain.arrivals import Arrivals
from ciworker.domain.container import GONE
from ciworker.domain.job import Reason, Status
from ciworker.errors import EngineRefused, EngineUnavailable
from tests.engine.fake import FakeEngine
from tests.unit.control.lab import PATIENCE, Lab, Life


async def test_a_pull_that_breaks_off_is_tried_again(new_lab: Callable[..., Lab]) -> None:
    async with new_lab().life() as life:
        life.engine.registry = {"remote"}
        life.engine.fail("pull", EngineUnavailable("no answer"), times=1)
        assert (await life.ended(await life.submit(image="remote"))).reason is Reason.PASSED


async def test_a_cancel_is_the_reason_though_our_clock_is_ahead_of_the_engines(life: Life) -> None:
    life.engine.now = lambda: datetime.now(UTC)
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    life.lab.clock.wall += timedelta(hours=1)
    await life.cancel(job)
    assert (await life.ended(job)).reason is Reason.CANCELLED


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
async def test_a_log_is_read_once_though_the_engines_clock_differs(
    life: Life, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    set_clock(life.engine, ahead)
    exits: list[float] = []
    held_up = Arrivals.held_up

    def looked_at(arrivals: Arrivals, exited: float) -> bool:
        exits.append(exited)
        return held_up(arrivals, exited)

    monkeypatch.setattr(Arrivals, "held_up", looked_at)
    began = time.time()
    ended = await life.ended(await life.submit("echo one"))

    assert (ended.reason, ended.log_incomplete) == (Reason.PASSED, False)
    assert life.calls("log") == 0
    (exited,) = exits
    assert began - 1 < exited < time.time() + 1


async def test_of_a_job_whose_connection_is_cut_before_its_end_nothing_is_lost(
    new_lab: Callable[..., Lab], tmp_path: Path
) -> None:
    """The cut looks like an end of the stream, and as if it came an hour after the job's own."""
    flag = tmp_path / "flags" / "go"
    flag.parent.mkdir()
    async with new_lab(job_mounts=(f"{flag.parent}:/flags:ro",)).life() as life:
        set_clock(life.engine, -3600.0)
        job = await life.submit("echo one; until [ -e /flags/go ]; do sleep 0.02; done; echo two")
        await life.printed(job, b"one\n")
        (box,) = life.engine._boxes.values()
        looks = life.engine.hold("inspect")  # else one may see that it is still up
        box.attachments[0].end()
        async with asyncio.timeout(PATIENCE):
            while box.attachments:
                await asyncio.sleep(0.01)
            flag.touch()
            while box.state.up:
                await asyncio.sleep(0.01)
        looks.set()

        ended = await life.ended(job)
        assert await life.text(job) == b"one\ntwo\n"
        assert (ended.reason, ended.log_incomplete) == (Reason.PASSED, False)


def set_clock(engine: FakeEngine, ahead: float) -> None:
    """The engine's is another machine's, and that is known."""
    engine.now = lambda: datetime.now(UTC) + timedelta(seconds=ahead)
    engine.ahead = ahead


async def test_a_job_cancelled_while_its_image_is_pulled_leaves_nothing_behind(
    new_lab: Callable[..., Lab],
) -> None:
    async with new_lab(max_jobs=2).life() as life:
        life.engine.registry = {"slow"}
        gate = life.engine.hold("pull")
        job = await life.submit(image="slow")
        await life.until(job, lambda found: found.status is Status.STARTING)
        await life.cancel(job)
        await life.ended(job)
        gate.set()


async def test_of_a_job_that_never_began_no_lines_are_missing(life: Life) -> None:
    life.engine.fail("start", EngineRefused("no"))
    ended = await life.ended(await life.submit())
    assert ended.reason is Reason.START_REFUSED
    assert not ended.log_incomplete


async def test_a_pull_that_fails_unforeseen_holds_up_no_later_job(
    new_lab: Callable[..., Lab],
) -> None:
    async with new_lab().life() as life:
        life.engine.registry = {"remote"}
        life.engine.fail("pull", ValueError("a line too long"), times=1)
        first = await life.ended(await life.submit(image="remote"))
        assert first.reason is Reason.IMAGE_MISSING
        assert (await life.ended(await life.submit(image="remote"))).reason is Reason.PASSED


async def test_a_job_that_can_never_start_is_refused_and_the_next_one_runs(
    new_lab: Callable[..., Lab],
) -> None:
    async with new_lab(max_memory=4 * 2**30).life() as life:
        large = await life.submit(memory=8 * 2**30)
        small = await life.submit()
        refused = await life.ended(large)
        assert (refused.status, refused.reason) == (Status.FAILED, Reason.START_REFUSED)
        assert "max_memory" in (refused.message or "")
        assert (await life.ended(small)).reason is Reason.PASSED


async def test_what_is_known_of_a_container_that_went_away_stays_with_its_job(life: Life) -> None:
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    running = (await life.running(job)).container
    assert running is not None
    assert (running.status, running.stopped_at, running.exit_code) == ("running", None, None)
    gate = life.engine.hold("inspect")  # else it may be seen after its end, before it is removed
    await life.engine.remove(running.id)
    gate.set()
    ended = await life.ended(job)
    assert ended.container == replace(running, status=GONE)


async def test_a_job_that_was_cancelled_while_it_started_says_what_became_of_its_container(
    life: Life,
) -> None:
    gate = life.engine.hold("start")
    job = await life.submit("sleep 60")
    while not life.calls("start"):
        await asyncio.sleep(0.005)
    await life.cancel(job)
    gate.set()
    ended = await life.ended(job)
    assert ended.container is not None
    assert ended.container.status in {"removing", "exited"}

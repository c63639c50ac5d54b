"""Deadlines: monotonic within a life of the process, bounded both ways after a restart."""

import asyncio
from datetime import timedelta

import pytest

from ciworker.control.keys import job_key
from ciworker.domain.job import Reason, Status
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import Life

HOUR = 3600.0


async def looked_at(life: Life, job: str) -> None:
    """One whole look, begun now."""
    async with asyncio.timeout(10):
        await life.queue.join(job_key(job))


async def test_a_job_is_stopped_at_its_timeout_and_not_before(life: Life) -> None:
    job = await life.submit("echo one; sleep 60", timeout=100.0)
    await life.printed(job, b"one\n")

    life.lab.clock.advance(95)
    await looked_at(life, job)
    assert (await life.running(job)).stop is None

    life.lab.clock.advance(6)
    life.controller.notify(job)
    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.COMPLETED, Reason.TIMED_OUT)
    assert "timeout of 100s" in (ended.message or "")


@pytest.mark.parametrize("step", [-HOUR, HOUR])
async def test_a_step_of_the_wall_clock_does_not_touch_a_running_jobs_deadline(
    life: Life, step: float
) -> None:
    job = await life.submit("echo one; sleep 60", timeout=100.0)
    await life.printed(job, b"one\n")
    await looked_at(life, job)

    life.lab.clock.wall += timedelta(seconds=step)
    life.lab.clock.advance(90)
    await looked_at(life, job)
    assert (await life.running(job)).stop is None

    life.lab.clock.advance(11)
    life.controller.notify(job)
    assert (await life.ended(job)).reason is Reason.TIMED_OUT


@pytest.mark.parametrize(("step", "left"), [(0.0, 60.0), (-HOUR, 100.0), (HOUR, 0.0)])
async def test_after_a_restart_the_time_left_is_bounded_by_nothing_and_the_whole(
    new_lab: NewLab, step: float, left: float
) -> None:
    lab = new_lab()
    async with lab.life(clean=False) as life:
        job = await life.submit("echo one; sleep 60", timeout=100.0)
        await life.printed(job, b"one\n")
        lab.clock.advance(40)

    lab.clock.wall += timedelta(seconds=step)
    async with lab.life() as life:
        await life.resync.run()
        await looked_at(life, job)
        if left:
            assert (await life.running(job)).stop is None
            lab.clock.advance(left - 5)
            await looked_at(life, job)
            assert (await life.running(job)).stop is None
            lab.clock.advance(6)
            life.controller.notify(job)
        ended = await life.ended(job)
        assert ended.reason is Reason.TIMED_OUT
        assert await life.text(job) in (b"one\n", b"one\nTerminated\n")


async def test_a_job_that_ignores_term_is_killed_after_the_grace(life: Life) -> None:
    job = await life.submit("trap '' TERM; echo one; while :; do sleep 0.02; done")
    await life.printed(job, b"one\n")
    await life.cancel(job)
    await life.until(job, lambda found: found.stop is not None)
    await looked_at(life, job)
    assert life.up()

    life.lab.clock.advance(life.lab.settings.stop_grace)
    life.controller.notify(job)

    ended = await life.ended(job)
    assert (ended.status, ended.reason, ended.exit_code) == (
        Status.CANCELLED,
        Reason.CANCELLED,
        137,
    )


async def test_a_silent_job_is_stopped_after_its_time(new_lab: NewLab) -> None:
    async with new_lab(no_output_timeout=0.1).life() as life:
        job = await life.submit("echo one; sleep 60")

        ended = await life.ended(job)

        assert ended.reason is Reason.NO_OUTPUT
        assert (await life.text(job)).startswith(b"one\n")


async def test_a_job_outlives_its_worker_and_no_line_is_lost_or_doubled(new_lab: NewLab) -> None:
    lab = new_lab()
    lines = "".join(f"{n}\n" for n in range(1, 61)).encode()
    async with lab.life(clean=False) as life:
        job = await life.submit("for n in $(seq 60); do echo $n; sleep 0.01; done; exit 2")
        await life.printed(job, b"10\n")
    for _ in range(2):
        async with lab.life(clean=False) as life:
            await asyncio.sleep(0.05)

    async with lab.life() as life:
        ended = await life.ended(job)
        assert (ended.reason, ended.exit_code, ended.attempt) == (Reason.TESTS_FAILED, 2, 1)
        assert await life.text(job) == lines
        assert not ended.log_incomplete

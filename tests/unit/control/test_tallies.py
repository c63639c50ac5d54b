"""What the control room counts and times: once each, of what is committed."""

import asyncio
import signal
from dataclasses import replace
from typing import Any

import pytest

from ciworker.control.launcher import container_spec
from ciworker.control.tallies import MOST_EXITS, Tallies
from ciworker.domain.job import Kind, Reason, status_of
from ciworker.errors import EngineUnavailable
from ciworker.metrics import Metrics
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab, Life, SteppedClock

WAIT = "ciworker_queue_wait_seconds"
TO_STATE = "ciworker_event_to_state_seconds"
SETUP: dict[str, Any] = {"setup": ("echo setting up",), "setup_inputs": {"tea.txt": "1"}}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None, (name, labels)
    return found


def ended(metrics: Metrics, kind: str = "job") -> dict[str, float]:
    """How many jobs of a kind ended, by reason, where any did."""
    counts = {
        reason: metrics.registry.get_sample_value(
            "ciworker_jobs_ended_total",
            {"kind": kind, "status": status_of(reason), "reason": reason},
        )
        for reason in Reason
    }
    return {reason: count for reason, count in counts.items() if count}


async def test_each_end_counts_once_under_its_reason(new_lab: NewLab) -> None:
    async with new_lab(max_jobs=3).life() as life:
        for run in ("exit 0", "exit 0", "exit 1", "exit 5"):
            await life.ended(await life.submit(run))
        cancelled = await life.submit("sleep 60")
        await life.running(cancelled)
        await life.cancel(cancelled)
        await life.ended(cancelled)
        await life.resync.run()
        assert ended(life.metrics) == {
            Reason.PASSED: 2, Reason.TESTS_FAILED: 1, Reason.NO_TESTS: 1, Reason.CANCELLED: 1,
        }  # fmt: skip
        assert ended(life.metrics, "setup") == {}


async def test_a_job_that_fits_nowhere_and_one_whose_workspace_is_gone_count_too(
    new_lab: NewLab,
) -> None:
    lab = new_lab(max_memory=2**30, job_memory=2**28, max_job_memory=2**29)
    async with lab.life() as life:
        await life.ended(await life.submit(memory=2**40))
        job = lab.new_job("echo", **SETUP)
        lab.settings.spool_file(job.id).unlink()
        await life.jobs.add(job, "me", None)
        life.controller.notify(job.id)
        await life.ended(job.id)
        assert ended(life.metrics) == {Reason.START_REFUSED: 1, Reason.WORKSPACE_INVALID: 1}


async def test_the_wait_for_a_slot_is_timed_from_the_submit(lab: Lab) -> None:
    async with lab.life() as life:
        first = await life.submit("sleep 60")
        await life.running(first)
        second = await life.submit()
        lab.clock.advance(100)
        await life.cancel(first)
        await life.ended(second)
        assert value(life.metrics, f"{WAIT}_count", kind="job") == 2
        assert 100 <= value(life.metrics, f"{WAIT}_sum", kind="job") < 160
        assert value(life.metrics, f"{WAIT}_count", kind="setup") == 0


async def test_the_wait_for_an_environment_is_no_wait_for_a_slot(lab: Lab) -> None:
    held = lab.engine.hold("commit")
    async with lab.life() as life:
        job = await life.submit(**SETUP)
        await life.printed(job, b"setting up")
        lab.clock.advance(100)
        held.set()
        await life.ended(job)
        assert value(life.metrics, f"{WAIT}_count", kind="job") == 1
        assert value(life.metrics, f"{WAIT}_sum", kind="job") < 60
        assert value(life.metrics, f"{WAIT}_count", kind="setup") == 1


async def test_setups_are_timed_and_hits_and_misses_counted(lab: Lab) -> None:
    async with lab.life() as life:
        for _ in range(3):
            await life.ended(await life.submit(**SETUP))
        failing: dict[str, Any] = {"setup": ("exit 7",), "setup_inputs": {}}
        assert (await life.ended(await life.submit(**failing))).reason is Reason.SETUP_FAILED
        uses = "ciworker_environment_uses_total"
        assert value(life.metrics, uses, result="miss") == 1
        assert value(life.metrics, uses, result="hit") == 2
        assert value(life.metrics, "ciworker_setup_seconds_count", result="ready") == 1
        assert value(life.metrics, "ciworker_setup_seconds_count", result="failed") == 1
        assert ended(life.metrics, "setup") == {Reason.PASSED: 1, Reason.TESTS_FAILED: 1}
        assert ended(life.metrics) == {Reason.PASSED: 3, Reason.SETUP_FAILED: 1}


async def test_from_an_event_to_the_state_that_follows_is_timed(lab: Lab) -> None:
    async with lab.life() as life:
        exits = life.parts.tallies._exits
        job = await life.submit("echo up; sleep 60")
        await life.printed(job, b"up\n")
        looking = lab.engine.hold("inspect")
        (container,) = await lab.engine.list()
        await lab.engine.signal(container.id, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            while not len(exits):
                await asyncio.sleep(0.005)
        lab.clock.advance(100)
        looking.set()
        await life.ended(job)
        assert value(life.metrics, f"{TO_STATE}_count") == 1
        assert 100 <= value(life.metrics, f"{TO_STATE}_sum") < 160


async def test_of_jobs_that_have_ended_no_event_is_remembered(life: Life) -> None:
    for run in ("exit 0", "exit 1"):
        await life.ended(await life.submit(run))
    await life.comes_to_rest()
    assert len(life.parts.tallies._exits) == 0


async def test_a_missed_event_is_a_repair(lab: Lab) -> None:
    async with lab.life() as life:
        lab.engine.drop_events = lambda _event: True
        job = await life.submit("echo up; sleep 60")
        await life.printed(job, b"up\n")
        await life.resync.run()
        before = value(life.metrics, "ciworker_resync_seconds_count")
        assert value(life.metrics, "ciworker_engine_events_missed_total") == 0
        (container,) = await lab.engine.list()
        await lab.engine.remove(container.id)
        await life.resync.run()
        await life.ended(job)
        assert value(life.metrics, "ciworker_engine_events_missed_total") == 1
        assert value(life.metrics, "ciworker_resync_repairs_total") == 1
        assert value(life.metrics, "ciworker_resync_seconds_count") == before + 1
        assert value(life.metrics, "ciworker_resync_failures_total") == 0
        assert value(life.metrics, f"{TO_STATE}_count") == 0


async def test_a_stray_is_an_orphan_and_no_missed_event(lab: Lab) -> None:
    async with lab.life() as life:
        job = lab.new_job("sleep 60", attempt=1)
        spec = container_spec(job, lab.settings, "fake", lab.engine.images_by_name["fake"], None)
        await lab.engine.create(spec)
        lab.clock.advance(10)
        await life.resync.run()
        assert await lab.engine.list() == []
        assert value(life.metrics, "ciworker_orphans_removed_total") == 1
        assert value(life.metrics, "ciworker_resync_repairs_total") == 1
        assert value(life.metrics, "ciworker_engine_events_missed_total") == 0


async def test_a_resync_that_fails_and_a_stream_that_is_opened_again_are_counted(
    life: Life,
) -> None:
    await life.comes_to_rest()
    life.engine.fail("list", EngineUnavailable("no"))
    with pytest.raises(EngineUnavailable):
        await life.resync.run()
    assert value(life.metrics, "ciworker_resync_failures_total") == 1
    assert value(life.metrics, "ciworker_engine_reconnects_total") == 0
    life.engine.cut_events()
    async with asyncio.timeout(PATIENCE):
        while not value(life.metrics, "ciworker_engine_reconnects_total"):
            await asyncio.sleep(0.01)
    assert value(life.metrics, "ciworker_engine_reconnects_total") == 1


def test_of_events_that_change_nothing_only_so_many_are_remembered() -> None:
    metrics = Metrics()
    tallies = Tallies(metrics.control, SteppedClock())
    for n in range(MOST_EXITS + 10):
        tallies.exit_heard(f"job {n}")
    assert len(tallies._exits) == MOST_EXITS
    tallies.requeued("job 0")
    assert value(metrics, f"{TO_STATE}_count") == 0
    tallies.requeued("job 10")
    tallies.requeued("job 10")
    assert value(metrics, f"{TO_STATE}_count") == 1
    tallies.settled("job 11")
    tallies.requeued("job 11")
    assert value(metrics, f"{TO_STATE}_count") == 1


def test_what_ended_an_attempt_is_not_what_ends_the_next_one(lab: Lab) -> None:
    metrics = Metrics()
    tallies, job = Tallies(metrics.control, lab.clock), lab.new_job("true")
    tallies.admitted(job, lab.clock.now())
    tallies.exit_heard(job.id)  # `die`
    tallies.requeued(job.id)
    tallies.exit_heard(job.id)  # `destroy`
    again = replace(job, attempt=1)
    tallies.admitted(again, lab.clock.now())
    lab.clock.advance(1000)
    tallies.exit_heard(job.id)
    tallies.ended(again, Reason.PASSED)
    assert value(metrics, f"{TO_STATE}_count") == 2
    assert value(metrics, f"{TO_STATE}_sum") < 60


def test_a_wait_whose_beginning_nobody_remembers_is_not_timed(lab: Lab) -> None:
    metrics = Metrics()
    before, after = Tallies(metrics.control, lab.clock), Tallies(metrics.control, lab.clock)
    job = lab.new_job("true", environment="tea")
    before.released(job.id)
    lab.clock.advance(1000)
    after.admitted(job, lab.clock.now())
    assert value(metrics, f"{WAIT}_count", kind="job") == 0
    setup = lab.new_job("true", environment="tea", kind=Kind.SETUP)
    after.admitted(setup, lab.clock.now())
    after.admitted(lab.new_job("true"), lab.clock.now())
    assert value(metrics, f"{WAIT}_count", kind="setup") == 1
    assert value(metrics, f"{WAIT}_count", kind="job") == 1

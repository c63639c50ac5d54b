"""Events are hints: dropped, doubled or late ones change nothing that a resync does not mend."""

import asyncio
import random
import signal
from dataclasses import replace

import pytest

from ciworker.control.keys import job_key, stray_key
from ciworker.control.launcher import container_spec
from ciworker.control.resync import UNDER_WAY
from ciworker.domain.decide import Bucket
from ciworker.domain.job import Reason, Status
from ciworker.engine.port import Event
from ciworker.errors import EngineUnavailable
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab, Life
from tests.unit.control.test_tallies import value

PLANS = [("exit 0", Reason.PASSED), ("exit 1", Reason.TESTS_FAILED), ("exit 5", Reason.NO_TESTS)]


async def all_end(life: Life, jobs: list[str]) -> list[Reason | None]:
    """Resyncs until each has ended."""
    async with asyncio.timeout(20):
        while True:
            await life.resync.run()
            found = [await life.jobs.get(job) for job in jobs]
            if all(job is not None and job.status.terminal for job in found):
                return [job.reason for job in found if job]


@pytest.mark.parametrize("share", [0.3, 1.0])
async def test_jobs_end_the_same_though_events_are_dropped(new_lab: NewLab, share: float) -> None:
    chosen = random.Random(5)
    async with new_lab(max_jobs=3).life() as life:
        life.engine.drop_events = lambda _event: chosen.random() < share

        jobs = [await life.submit(f"echo {n}; {PLANS[n % 3][0]}") for n in range(6)]
        reasons = await all_end(life, jobs)

        assert reasons == [PLANS[n % 3][1] for n in range(6)]
        for n, job in enumerate(jobs):
            assert await life.text(job) == f"{n}\n".encode()
            await life.ended(job)
        life.engine.drop_events = lambda _event: False
        await life.resync.run()


async def test_jobs_end_the_same_though_events_come_late_twice_and_in_any_order(
    new_lab: NewLab,
) -> None:
    chosen = random.Random(5)
    seen: list[Event] = []
    async with new_lab(max_jobs=3).life() as life:
        real = life.controller.on_event

        def scatter(event: Event) -> None:
            seen.append(event)
            for one in chosen.choices(seen, k=3):
                real(one)
            real(event)

        life.events._on_event = scatter
        jobs = [await life.submit(f"echo {n}; {PLANS[n % 3][0]}") for n in range(6)]

        for n, job in enumerate(jobs):
            assert (await life.ended(job)).reason is PLANS[n % 3][1]
            assert await life.text(job) == f"{n}\n".encode()
        await life.resync.run()


async def test_a_resync_that_finds_all_well_says_so(life: Life) -> None:
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    (name,) = life.up()

    report = await life.resync.run()

    assert report.buckets[Bucket.UNCHANGED] == [name]
    assert {bucket for bucket, names in report.buckets.items() if names} == {Bucket.UNCHANGED}
    assert report.repairs == 0
    await life.cancel(job)
    await life.ended(job)


async def test_whoever_asks_while_a_resync_runs_joins_it(life: Life) -> None:
    await life.comes_to_rest()
    before = life.calls("list")
    gate = life.engine.hold("list")
    asked = [asyncio.create_task(life.resync.run()) for _ in range(10)]
    async with asyncio.timeout(5):
        while life.calls("list") == before:
            await asyncio.sleep(0)
    asked.append(asyncio.create_task(life.resync.run()))
    asked[3].cancel()
    gate.set()

    reports = await asyncio.gather(*asked[:3], *asked[4:])

    assert all(report is reports[0] for report in reports)
    assert life.calls("list") == before + 1
    life.engine._gates.clear()
    assert await life.resync.run() is not reports[0]


async def test_a_resync_that_fails_fails_for_all_who_joined_and_the_next_one_is_new(
    life: Life,
) -> None:
    await life.comes_to_rest()
    life.engine.fail("list", EngineUnavailable("no answer"))

    results = await asyncio.gather(*(life.resync.run() for _ in range(3)), return_exceptions=True)

    assert [type(result) for result in results] == [EngineUnavailable] * 3
    assert (await life.resync.run()).repairs == 0


async def test_a_container_of_no_job_is_removed(life: Life) -> None:
    await life.comes_to_rest()
    stranger = life.lab.new_job("true")
    spec = container_spec(
        stranger, life.lab.settings, "fake", life.engine.images_by_name["fake"], None
    )
    await life.engine.create(spec)

    report = await life.resync.run()

    assert report.buckets[Bucket.REMOVED] == [spec.name]
    assert await life.engine.list() == []


async def test_a_container_of_an_earlier_attempt_is_removed_and_its_job_goes_on(
    life: Life,
) -> None:
    job = await life.submit("echo one; sleep 60")
    running = await life.running(job)
    old = container_spec(
        replace(running, attempt=0),
        life.lab.settings,
        "fake",
        life.engine.images_by_name["fake"],
        None,
    )
    await life.engine.create(old)

    report = await life.resync.run()

    assert report.buckets[Bucket.REMOVED] == [old.name]
    assert life.up() == [running.container_name]
    await life.cancel(job)
    assert (await life.ended(job)).status is Status.CANCELLED


async def test_a_broken_event_stream_is_opened_again_and_followed_by_a_look_at_all(
    life: Life,
) -> None:
    job = await life.submit("echo one; sleep 0.2; exit 1")
    await life.printed(job, b"one\n")
    life.engine.events_paused = True
    before = life.calls("list")

    life.engine.cut_events()
    life.engine.events_paused = False

    assert (await life.ended(job)).reason is Reason.TESTS_FAILED
    assert life.calls("list") > before


async def test_a_stream_that_told_nothing_of_the_last_job_is_opened_again(life: Life) -> None:
    await life.comes_to_rest()
    life.engine.drop_events = lambda _event: True
    await life.ended(await life.submit())
    async with asyncio.timeout(PATIENCE):
        while await life.engine.list():
            await asyncio.sleep(0.005)
    before = life.calls("events")
    assert (await life.resync.run()).repairs == 0
    assert life.calls("events") == before, "its events may still be under way"

    life.lab.clock.advance(UNDER_WAY + 1)
    await life.resync.run()

    async with asyncio.timeout(PATIENCE):
        while life.calls("events") == before:
            await asyncio.sleep(0.005)


async def test_a_stream_that_fell_silent_under_a_running_job_is_opened_again(life: Life) -> None:
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    life.engine.drop_events = lambda _event: True
    await life.cancel(job)
    await life.ended(job)
    await gone(life)
    before = life.calls("events")
    life.lab.clock.advance(UNDER_WAY + 1)
    assert (await life.resync.run()).repairs == 0

    async with asyncio.timeout(PATIENCE):
        while life.calls("events") == before:
            await asyncio.sleep(0.005)


async def gone(life: Life) -> None:
    async with asyncio.timeout(PATIENCE):
        while await life.engine.list():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("engine_restarts", [False, True])
async def test_what_happened_before_the_worker_or_the_engine_started_is_no_missed_event(
    lab: Lab, engine_restarts: bool
) -> None:
    async with lab.life(clean=False) as life:
        job = await life.submit("echo one; sleep 60")
        await life.printed(job, b"one\n")
        (container,) = life.up()
        if engine_restarts:
            await life.engine.crash()
    lab.engine.boot()
    await lab.engine.signal(container, signal.SIGTERM)
    await lab.engine.signal(container, signal.SIGKILL)
    lab.engine._replay.clear()
    lab.clock.advance(UNDER_WAY + 1)

    async with lab.life() as life:
        await life.ended(job)
        await life.resync.run()
        assert value(life.metrics, "ciworker_resync_repairs_total") == 1
        assert value(life.metrics, "ciworker_engine_events_missed_total") == 0
        assert value(life.metrics, "ciworker_engine_reconnects_total") == 0


async def test_a_late_event_of_an_earlier_attempt_is_not_the_end_of_this_one(life: Life) -> None:
    job = await life.submit("sleep 60")
    await life.running(job)
    life.controller.on_event(Event("destroy", "earlier", job, attempt=0, at=1))
    assert len(life.parts.tallies._exits) == 0
    await life.cancel(job)
    await life.ended(job)


async def test_an_orphan_that_two_looks_find_counts_once(life: Life) -> None:
    await life.comes_to_rest()
    stranger = life.lab.new_job("true")
    spec = container_spec(
        stranger, life.lab.settings, "fake", life.engine.images_by_name["fake"], None
    )
    container = await life.engine.create(spec)
    gate, before = life.engine.hold("remove"), life.calls("remove")
    looks = [life.queue.join(stray_key(container)), life.queue.join(job_key(stranger.id))]
    async with asyncio.timeout(PATIENCE):
        while life.calls("remove") < before + 2:
            await asyncio.sleep(0.005)
    gate.set()
    await asyncio.gather(*looks)

    assert value(life.metrics, "ciworker_orphans_removed_total") == 1


async def test_jobs_that_show_a_build_under_way_are_looked_at_by_the_first_resync_alone(
    new_lab: NewLab,
) -> None:
    lab, setup = new_lab(), ("sleep 60",)
    async with lab.life(clean=False) as life:
        jobs = [await life.submit(setup=setup, setup_inputs={}) for _ in range(5)]
        for job in jobs:
            await life.until(job, lambda found: found.build is not None)
    async with lab.life() as life:
        async with asyncio.timeout(PATIENCE):
            while life.resync._looked_at is None:
                await asyncio.sleep(0.005)
        assert set(jobs) <= set(await life.jobs.waiting())
        looked_at = {key.id for key in await life.resync._keys()}
        assert not looked_at & set(jobs)
        for job in jobs:
            await life.cancel(job)
        for job in jobs:
            assert (await life.ended(job)).status is Status.CANCELLED

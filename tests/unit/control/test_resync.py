"""Events are hints: dropped, doubled or late ones change nothing that a resync does not mend."""

import asyncio
import random
from dataclasses import replace

import pytest

from ciworker.control.launcher import container_spec
from ciworker.domain.decide import Bucket
from ciworker.domain.job import Reason, Status
from ciworker.engine.port import Event
from ciworker.errors import EngineUnavailable
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import Life

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
    spec = container_spec(stranger, life.lab.settings, "fake", life.engine.images_by_name["fake"])
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
        replace(running, attempt=0), life.lab.settings, "fake", life.engine.images_by_name["fake"]
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

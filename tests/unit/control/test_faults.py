"""Whatever call fails, in whatever way, once or for long: each job ends once and for its reason.

Every test's lab holds, at the end, that no life, task, timer, topic or container is left.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from ciworker.domain.arrivals import Arrivals
from ciworker.domain.job import Job, Reason, Status
from ciworker.engine import events
from ciworker.errors import (
    CiworkerError,
    ContainerMissing,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ImageMissing,
    StoreUnavailable,
)
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.meta import LastEvent
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab, Life

ERRORS = (EngineUnavailable, EngineFailed, EngineRefused, ContainerMissing)
ONCE, FOR_LONG = 1, 1_000
OUTAGE = 0.15  # seconds until the engine is itself again
PASSED, REFUSED = Reason.PASSED, Reason.START_REFUSED


@contextlib.asynccontextmanager
async def outage(
    life: Life, call: str, error: type[CiworkerError], times: int, *, after: bool
) -> AsyncIterator[None]:
    """The calls of this name fail; those that are left over succeed in the end."""
    for _ in range(times):
        life.engine.fail(call, error("no"), after=after)
    yield
    if times == FOR_LONG:
        await asyncio.sleep(OUTAGE)
        life.engine._faults[call].clear()


@pytest.mark.parametrize("times", [ONCE, FOR_LONG], ids=["once", "for long"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("image", False),
        ("create", False),
        ("create", True),  # carried out, and the answer is lost
        ("attach", False),
        ("attach", True),
        ("inspect", False),
        ("remove", False),
        ("remove", True),
        ("list", False),
    ],
)
async def test_a_job_ends_once_and_the_next_one_runs(
    life: Life, call: str, error: type[CiworkerError], times: int, after: bool
) -> None:
    await life.comes_to_rest()
    starts = call in ("image", "create", "attach")
    spent = error is EngineFailed and times == FOR_LONG and not (call == "create" and after)
    async with outage(life, call, error, times, after=after):
        job = await life.submit("echo hello; exit 3")
        following = await life.submit()
        if call == "list":
            with pytest.raises(error):
                await life.resync.run()
        if starts and spent:
            await life.ended(job)  # however long its attempts take

    ended = await life.ended(job)
    missing = error is ContainerMissing and call == "attach"  # looked for again, and found
    refused = issubclass(error, EngineRefused) and not missing
    if starts and (refused or spent):
        assert (ended.status, ended.reason) == (Status.FAILED, REFUSED)
        assert await life.text(job) == b""
        assert "could not start" in (ended.message or "")
    else:
        assert (ended.status, ended.reason, ended.exit_code) == (
            Status.COMPLETED,
            Reason.TESTS_FAILED,
            3,
        )
        assert await life.text(job) == b"hello\n"
        assert not ended.log_incomplete
    assert (await life.ended(following)).reason in (PASSED, ended.reason)


@pytest.mark.parametrize("times", [ONCE, FOR_LONG], ids=["once", "for long"])
@pytest.mark.parametrize("error", ERRORS)
async def test_a_start_that_fails_is_tried_again_or_refused(
    life: Life, error: type[CiworkerError], times: int
) -> None:
    spent = error is EngineFailed and times == FOR_LONG
    async with outage(life, "start", error, times, after=False):
        job = await life.submit()
        if spent:
            await life.ended(job)  # however long its attempts take

    ended = await life.ended(job)
    assert ended.reason is (REFUSED if error is EngineRefused or spent else PASSED)
    if error is EngineFailed:
        told = [entry.message for entry in await life.jobs.history(job)]
        assert "start 1 of 3 of attempt 1 failed and is tried again: no" in told
    assert (await life.ended(await life.submit())).reason is PASSED


@pytest.mark.parametrize("call", ["start", "write"])
@pytest.mark.parametrize("error", [EngineUnavailable, EngineFailed])
async def test_a_container_that_never_got_its_archive_is_given_up_in_time(
    life: Life, call: str, error: type[CiworkerError]
) -> None:
    """The answer to a start, or a write, is lost: the job waits on its stdin, not for ever."""
    life.engine.fail(call, error("lost"), after=True)
    job = await life.submit()
    async with asyncio.timeout(5):
        while not life.up():
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.1)

    async with asyncio.timeout(5):
        while (found := await life.jobs.get(job)) and found.attempt == 1:
            life.lab.clock.advance(life.lab.settings.transfer_timeout)
            life.controller.notify(job)
            await asyncio.sleep(0.05)
    ended = await life.ended(job)

    assert ended.reason is PASSED
    assert await life.text(job) == b"hello\n"


@pytest.mark.parametrize(
    ("times", "after"),
    [(ONCE, False), (ONCE, True), (FOR_LONG, False)],
    ids=["once", "answer lost", "for long"],
)
@pytest.mark.parametrize("error", ERRORS)
async def test_a_cancel_gets_through(
    life: Life, error: type[CiworkerError], times: int, after: bool
) -> None:
    job = await life.submit("echo hello; sleep 60")
    await life.printed(job, b"hello\n")

    async with outage(life, "signal", error, times, after=after):
        await life.cancel(job)

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.CANCELLED, Reason.CANCELLED)
    assert ended.message == "cancelled by me"
    assert (await life.ended(await life.submit())).reason is PASSED


@pytest.mark.parametrize("times", [ONCE, FOR_LONG], ids=["once", "for long"])
@pytest.mark.parametrize("error", ERRORS)
async def test_a_job_whose_connection_and_log_fail_still_gets_its_verdict(
    life: Life, error: type[CiworkerError], times: int
) -> None:
    job = await life.submit("echo one; sleep 0.2; echo two; exit 4")
    await life.printed(job, b"one\n")

    async with outage(life, "log", error, times, after=False):
        (box,) = life.engine._boxes.values()
        await box.attachments[0].cut()

    ended = await life.ended(job)
    assert (ended.reason, ended.exit_code) == (Reason.TESTS_FAILED, 4)
    lost = issubclass(error, EngineRefused)
    assert ended.log_incomplete == lost
    assert await life.text(job) == (b"one\n" if lost else b"one\ntwo\n")


@pytest.mark.parametrize("call", ["create", "start", "inspect"])
async def test_many_jobs_get_through_an_engine_that_often_fails(new_lab: NewLab, call: str) -> None:
    async with new_lab(max_jobs=4, start_attempts=50).life() as life:
        for _ in range(6):
            life.engine.fail(call, EngineFailed("no"))
        jobs = [await life.submit(f"echo {n}; exit {n % 2}") for n in range(6)]

        for n, job in enumerate(jobs):
            ended = await life.ended(job)
            assert ended.exit_code == n % 2
            assert await life.text(job) == f"{n}\n".encode()


async def test_an_engine_that_is_away_costs_no_job(life: Life) -> None:
    job = await life.submit("echo one; sleep 0.3; echo two")
    await life.printed(job, b"one\n")

    await life.engine.crash(live_restore=True)
    waiting = await life.submit()
    await asyncio.sleep(0.1)
    found = await life.jobs.get(waiting)
    assert found
    assert found.status is Status.QUEUED
    life.engine.boot()

    assert (await life.ended(job)).reason is PASSED
    assert await life.text(job) == b"one\ntwo\n"
    assert (await life.ended(waiting)).reason is PASSED


async def test_a_container_that_the_restarted_engine_took_along_is_told_as_such(
    life: Life,
) -> None:
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")

    gate = life.engine.hold("inspect")
    await life.engine.restart()
    await life.until(job, lambda found: found.engine_restarted_at is not None)
    gate.set()

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.ENGINE_RESTARTED)
    assert ended.log_incomplete
    assert "the Docker engine restarted" in [e.message for e in await life.jobs.history(job)]
    assert (await life.ended(await life.submit())).reason is PASSED


async def test_an_end_that_is_seen_before_the_restart_is_told_waits_for_that(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The container ran on while the engine was away, ended by itself, and is seen at once."""
    monkeypatch.setattr(events, "BACKOFF_FIRST", 10 * PATIENCE)
    async with lab.life() as life:
        job = await life.submit("echo one; sleep 0.5; exit 3")
        await life.printed(job, b"one\n")
        await life.engine.crash(live_restore=True)
        async with asyncio.timeout(PATIENCE):
            while life.controller._engine_in_sight:
                await asyncio.sleep(0.01)
        life.engine.boot()

        ended = await life.ended(job)
        assert (ended.reason, ended.exit_code) == (Reason.TESTS_FAILED, 3)
        assert ended.engine_restarted_at is not None
        assert ended.log_incomplete


async def test_a_start_that_fails_before_the_restart_is_told_waits_for_that(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an engine leaves that was killed in mid start can't be started by the next one."""
    monkeypatch.setattr(events, "BACKOFF_FIRST", 10 * PATIENCE)
    async with lab.life() as life:
        await life.ended(await life.submit("echo one"))  # by its events the restart is known
        gate, before = life.engine.hold("start"), life.calls("start")
        job = await life.submit("echo two")
        async with asyncio.timeout(PATIENCE):
            while life.calls("start") == before:
                await asyncio.sleep(0.01)
        await life.engine.crash()
        async with asyncio.timeout(PATIENCE):
            while life.controller._engine_in_sight:
                await asyncio.sleep(0.01)
        async with outage(life, "start", EngineFailed, FOR_LONG, after=False):
            life.engine.boot()
            gate.set()
            ended = await life.ended(job)

        assert (ended.status, ended.reason) == (Status.FAILED, Reason.ENGINE_RESTARTED)
        assert (await life.ended(await life.submit())).reason is PASSED


async def test_where_the_stream_of_events_stays_shut_jobs_end_all_the_same(life: Life) -> None:
    job = await life.submit("echo one; sleep 0.3; exit 3")
    await life.printed(job, b"one\n")
    life.engine.fail("events", EngineUnavailable("no"), times=1000)
    life.engine.cut_events()

    ended = await life.ended(job)
    assert (ended.reason, ended.exit_code) == (Reason.TESTS_FAILED, 3)
    assert not ended.log_incomplete


async def test_a_kill_by_an_engine_that_is_stopping_is_not_taken_for_somebody_elses(
    life: Life,
) -> None:
    """It still answers on open connections, and tells of its kills; it takes no new ones."""
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    (name,) = life.up()
    life.engine.fail("ping", EngineUnavailable("no"), times=1000)

    await life.engine.signal(name, signal.SIGKILL)
    await life.until(job, lambda found: bool(found.kills))
    async with asyncio.timeout(PATIENCE):
        while life.calls("ping") < 2:
            await asyncio.sleep(0.01)
    await life.engine.crash()
    life.engine._faults["ping"].clear()
    life.engine.boot()

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.ENGINE_RESTARTED)


async def test_until_a_restart_of_the_engine_is_told_nothing_is_concluded_from_what_is_left(
    life: Life,
) -> None:
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    gate = life.engine.hold("events")
    await life.engine.restart()
    looks = life.calls("inspect")
    life.controller.notify(job)
    async with asyncio.timeout(PATIENCE):
        while life.calls("inspect") < looks + 3:
            await asyncio.sleep(0.01)
    found = await life.jobs.get(job)
    assert found
    assert found.status is Status.RUNNING
    gate.set()

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.ENGINE_RESTARTED)


async def test_an_engine_that_was_out_of_sight_while_it_was_asked_may_have_restarted(
    life: Life,
) -> None:
    """It answers the ping once it is back, but did not tell of its restart yet."""
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    (name,) = life.up()
    reading, told = life.engine.hold("ping"), life.engine.hold("events")
    await life.engine.signal(name, signal.SIGKILL)
    await asked(life, 1)
    answer = life.engine.hold("ping")
    reading.set()
    await asked(life, 2)  # for the verdict
    await life.engine.restart()
    async with asyncio.timeout(PATIENCE):
        while life.controller._engine_in_sight:
            await asyncio.sleep(0.01)
    answer.set()
    looks = life.calls("inspect")
    async with asyncio.timeout(PATIENCE):
        while life.calls("inspect") < looks + 3 and not await has_ended(life, job):
            await asyncio.sleep(0.01)
    told.set()

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.ENGINE_RESTARTED)


async def asked(life: Life, times: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while life.calls("ping") < times:
            await asyncio.sleep(0.01)


async def has_ended(life: Life, job: str) -> bool:
    found = await life.jobs.get(job)
    return found is not None and found.status.terminal


@pytest.mark.parametrize("stops_in_order", [False, True])
async def test_a_machine_that_boots_fails_no_tests(lab: Lab, stops_in_order: bool) -> None:
    """Worker and engine are gone at once, and both come back."""
    async with lab.life(clean=False) as life:
        job = await life.submit("trap 'sleep 0.2; exit 1' TERM; echo one; sleep 60 & wait")
        await life.printed(job, b"one\n")
        (name,) = life.up()
        stored = LastEvent(life.database)
        async with asyncio.timeout(PATIENCE):
            while await stored.get() is None:
                await asyncio.sleep(0.01)
    if stops_in_order:
        await lab.engine.signal(name, signal.SIGTERM)
        await is_down(lab, name)
    await lab.engine.restart()

    async with lab.life() as life:
        ended = await life.ended(job)
        assert (ended.status, ended.reason) == (Status.FAILED, Reason.ENGINE_RESTARTED)
        assert ended.log_incomplete


async def is_down(lab: Lab, container: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (found := await lab.engine.inspect(container)) and not found.state.down:
            await asyncio.sleep(0.01)
    assert found is not None
    assert found.exit_code == 1


async def test_what_ended_while_the_worker_was_away_keeps_its_end_where_no_engine_restarted(
    lab: Lab,
) -> None:
    async with lab.life(clean=False) as life:
        job = await life.submit("trap 'sleep 0.2; exit 1' TERM; echo one; sleep 60 & wait")
        await life.printed(job, b"one\n")
        (name,) = life.up()
    await lab.engine.signal(name, signal.SIGTERM)
    await is_down(lab, name)

    async with lab.life() as life:
        ended = await life.ended(job)
        assert (ended.reason, ended.exit_code) == (Reason.TESTS_FAILED, 1)


async def test_that_lines_may_be_missing_outlives_the_worker_that_saw_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before it can record the verdict; the engine's log looks whole to the next one."""
    with monkeypatch.context() as patch:
        async with lab.life(clean=False) as life:
            patch.setattr(Arrivals, "held_up", lambda *_: True)
            patch.setattr(life.jobs, "move", all_but_ends(life.jobs))
            job = await life.submit()
            async with asyncio.timeout(PATIENCE):
                while not (found := await life.jobs.get(job)) or not found.log_incomplete:
                    await asyncio.sleep(0.01)
            assert found.status is Status.RUNNING

    async with lab.life() as life:
        ended = await life.ended(job)
        assert (ended.reason, ended.log_incomplete) == (PASSED, True)


def all_but_ends(jobs: Jobs) -> Callable[..., Awaitable[Job | None]]:
    """Moves of jobs, by a store that takes no end."""
    move = jobs.move

    async def moved(job_id: str, expect: Expect, status: Status, *of: Any, **to: Any) -> Job | None:
        if status.terminal:
            raise StoreUnavailable("the disk is full")
        return await move(job_id, expect, status, *of, **to)

    return moved


async def test_a_restart_before_a_container_was_started_costs_its_job_nothing(life: Life) -> None:
    gate = life.engine.hold("create")
    job = await life.submit("echo one")
    async with asyncio.timeout(PATIENCE):
        while not life.calls("create"):
            await asyncio.sleep(0.01)
    await life.controller.on_engine_restarted()
    gate.set()

    ended = await life.ended(job)
    assert ended.engine_restarted_at is not None
    assert (ended.reason, ended.log_incomplete) == (PASSED, False)


async def test_a_container_that_somebody_removed_is_no_test_failure(life: Life) -> None:
    job = await life.submit("echo one; sleep 60")
    await life.printed(job, b"one\n")
    (name,) = life.up()

    await life.engine.remove(name)

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.KILLED_OUTSIDE)
    assert (await life.ended(await life.submit())).reason is PASSED


async def test_a_missing_image_is_the_jobs_own_failure(life: Life) -> None:
    life.engine.fail("create", ImageMissing("No such image"))

    ended = await life.ended(await life.submit())

    assert (ended.status, ended.reason) == (Status.FAILED, Reason.IMAGE_MISSING)


# -- attempts


async def test_a_transfer_that_is_lost_is_tried_again_and_then_given_up(life: Life) -> None:
    """Every connection breaks before the archive is sent."""
    for _ in range(3):
        life.engine.fail("read", EngineUnavailable("cut"))
    gate = life.engine.hold("write")
    job = await life.submit()
    async with asyncio.timeout(10):
        while life.calls("start") < 3:
            await asyncio.sleep(0.005)
    gate.set()

    ended = await life.ended(job)
    assert (ended.status, ended.reason) == (Status.FAILED, Reason.TRANSFER_FAILED)
    assert ended.attempt == 3
    assert "in 3 attempts" in (ended.message or "")
    steps = [(entry.before, entry.after) for entry in await life.jobs.history(job)]
    assert steps.count((Status.STARTING, Status.QUEUED)) == 2
    names = [about for call, about in life.engine.calls if call == "create"]
    assert names == [f"ci-{job.lower()}-{attempt}" for attempt in (1, 2, 3)]
    life.engine._gates.clear()
    assert (await life.ended(await life.submit())).reason is PASSED


async def test_a_job_in_its_backoff_lets_the_next_one_go_first(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciworker.control.steps.REQUEUE_FIRST", 0.2)
    life.engine.fail("read", EngineUnavailable("cut"))
    gate = life.engine.hold("write")
    first = await life.submit()
    requeued = await life.until(first, lambda job: job.not_before is not None)
    life.engine._gates.clear()
    gate.set()
    second = await life.submit()

    ended, other = await life.ended(first), await life.ended(second)

    assert requeued.status is Status.QUEUED
    assert (ended.attempt, ended.reason, other.reason) == (2, PASSED, PASSED)
    assert ended.started_at
    assert other.started_at
    assert requeued.not_before
    assert other.started_at < requeued.not_before <= ended.started_at
    assert ended.not_before is None

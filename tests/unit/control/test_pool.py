"""The pool, around the fake engine: members are kept, given to jobs, and lost at every moment."""

import asyncio
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ciworker.control import pool
from ciworker.control.drain import Drain
from ciworker.control.keys import job_key
from ciworker.control.life import Life, Patience, arm
from ciworker.control.members import MemberState, MemberStatus
from ciworker.domain.container import (
    KIND_POOL,
    LABEL_INSTANCE,
    LABEL_KIND,
    LABEL_POOL,
    Container,
    State,
)
from ciworker.domain.decide import Bucket
from ciworker.domain.job import Job, Reason, Spec, Status
from ciworker.domain.pool import member_name
from ciworker.engine import network
from ciworker.engine.port import Event
from ciworker.errors import (
    CiworkerError,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    StoreUnavailable,
)
from tests.engine.fake import Box
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab
from tests.unit.control.lab import Life as Worker
from tests.unit.control.test_tallies import value

MEMORY = 2**28
ENTRY: dict[str, Any] = {"name": "tea", "image": "fake", "memory": MEMORY, "cpus": 1.0, "size": 1}
ONE, TWO = member_name("tea", 1, "fake"), member_name("tea", 2, "fake")


@pytest.fixture(autouse=True)
def short_backoffs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(pool, "RETRY_MOST", 0.1)


@pytest.fixture
def pool_lab(new_lab: NewLab) -> Callable[..., Lab]:
    """A lab with one entry in its pool."""

    def make(settings: dict[str, Any] | None = None, **entry: Any) -> Lab:
        return new_lab(pool=[ENTRY | entry], **(settings or {}))

    return make


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not reached():
            await asyncio.sleep(0.005)


async def until_state(life: Worker, state: MemberState, count: int = 1) -> None:
    await until(lambda: life.pool.counts()["tea", state] == count)


async def parked(life: Worker, count: int = 1) -> None:
    """All are, and the resync that saw to it at the start is over."""
    await until_state(life, MemberState.PARKED, count)
    await until(lambda: life.resync._running is None)


async def until_failures(life: Worker, count: int) -> None:
    await until(lambda: life.pool._members[ONE].failures == count)


async def told(life: Worker, name: str = ONE) -> MemberStatus:
    status = await life.pool.status()
    return next(member for member in status.members if member.name == name)


def box(life: Worker, name: str = ONE) -> Box:
    found = life.engine._find(name)
    assert found is not None
    return found


async def resynced(life: Worker) -> dict[Bucket, list[str]]:
    """The buckets that are not empty."""
    report = await life.resync.run()
    return {bucket: list(names) for bucket, names in report.buckets.items() if names}


# -- members -----------------------------------------------------------------------------------


async def test_the_first_resync_creates_members_and_the_next_finds_them_unchanged(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab(size=2).life() as life:
        await parked(life, 2)
        assert await resynced(life) == {Bucket.UNCHANGED: [ONE, TWO]}
        spec = box(life).spec
        assert spec.labels[LABEL_KIND] == KIND_POOL
        assert spec.labels[LABEL_POOL] == "tea"
        assert (spec.image, spec.network, spec.memory) == ("sha256:fake", False, MEMORY)


async def test_without_a_pool_the_engine_is_asked_nothing_more(new_lab: NewLab) -> None:
    async with new_lab().life() as life:
        await life.comes_to_rest()
        before = len(life.engine.calls)
        await life.ended(await life.submit())
        await life.comes_to_rest()
        assert [name for name, _ in life.engine.calls[before:]].count("image") == 1
        assert "rename" not in {name for name, _ in life.engine.calls}
        assert value(life.metrics, "ciworker_pool_cold_starts_total") == 0


async def test_members_that_ended_with_the_worker_are_started_again_and_not_rebuilt(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab(size=2)
    async with lab.life() as life:
        await parked(life, 2)
        ids = {box(life, name).id for name in (ONE, TWO)}
    async with lab.life() as life:
        await parked(life, 2)
        assert {box(life, name).id for name in (ONE, TWO)} == ids
        assert life.calls("create") == 2
        assert (await life.resync.run()).repairs == 0


async def test_a_member_that_someone_stops_is_started_again_at_once(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        container = box(life).id
        await life.engine.signal(ONE, signal.SIGKILL)
        await until(lambda: life.calls("start") == 2)
        await parked(life)
        assert box(life).id == container
        assert life.calls("create") == 1


async def test_one_of_which_an_event_says_that_it_died_is_not_taken(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        assert life.pool.could_fit(network=False)
        life.controller.on_event(Event("die", box(life).id, "", 0, 1, member=ONE))
        assert not life.pool.could_fit(network=False)
        await until(lambda: life.calls("start") == 2)
        await parked(life)


async def test_one_whose_end_no_event_told_is_found_by_the_resync_and_is_a_repair(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        life.engine.drop_events = lambda _event: True
        await life.engine.signal(ONE, signal.SIGKILL)
        life.lab.clock.advance(3)
        report = await life.resync.run()
        assert report.buckets[Bucket.STARTED] == [ONE]
        assert report.repairs == 1
        life.engine.drop_events = lambda _event: False


async def test_one_that_someone_removes_is_created_again(pool_lab: Callable[..., Lab]) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        container = box(life).id
        await life.engine.remove(ONE)
        await until(lambda: life.calls("create") == 2)
        await parked(life)
        assert box(life).id != container


async def test_one_of_which_something_else_is_wanted_is_recreated(new_lab: NewLab) -> None:
    lab = new_lab(pool=[ENTRY])
    async with lab.life() as life:
        await parked(life)
        container = box(life).id
    lab = new_lab(pool=[ENTRY], job_pids=99)
    lab.clock.advance(0)
    async with lab.life() as life:
        await parked(life)
        assert box(life).id != container
        assert box(life).spec.pids == 99


@pytest.mark.parametrize("networked", [True, False])
async def test_one_that_is_on_another_network_than_ours_is_recreated(
    pool_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch, networked: bool
) -> None:
    lab = pool_lab(network=networked)
    with monkeypatch.context() as patched:
        patched.setattr(network, "NAME", "bridge")  # as earlier versions had it
        async with lab.life() as life:
            await parked(life)
            container = box(life).id
    async with lab.life() as life:
        await parked(life)
        assert (box(life).id != container) == networked


async def test_one_whose_network_went_away_meanwhile_is_created_again(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab(network=True)
    async with lab.life() as life:
        await parked(life)
        container = box(life).id
    life.engine.networks.clear()
    async with lab.life() as life:
        await parked(life)
        assert box(life).id != container
        assert life.calls("create") == 2


async def test_a_new_image_under_the_same_name_is_taken_up_by_the_resync(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        old = life.engine.images_by_name["fake"]
        life.engine.images_by_name["fake"] = replace(old, id="sha256:new")
        assert await resynced(life) == {Bucket.RECREATED: [ONE]}
        assert box(life).image.id == "sha256:new"


async def test_members_beyond_today_s_settings_are_removed(new_lab: NewLab) -> None:
    lab = new_lab(pool=[ENTRY | {"size": 2}])
    async with lab.life() as life:
        await parked(life, 2)
    lab = new_lab(pool=[ENTRY])
    async with lab.life() as life:
        await parked(life)
        await until(lambda: life.engine._find(TWO) is None)
        assert await resynced(life) == {Bucket.UNCHANGED: [ONE]}


async def test_one_that_someone_adds_by_hand_is_removed_and_a_stranger_s_stays(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        spec = replace(box(life).spec, name="by-hand")
        theirs = replace(spec, name="theirs", labels={**spec.labels, LABEL_INSTANCE: "other"})
        await life.engine.create(theirs)
        await life.engine.create(spec)
        assert await resynced(life) == {Bucket.REMOVED: ["by-hand"], Bucket.UNCHANGED: [ONE]}
        assert life.engine._find("theirs") is not None


async def test_a_name_that_a_stranger_has_is_an_error_with_a_name_and_not_silence(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab()
    async with lab.life() as life:
        await parked(life)
        spec = box(life).spec
        await life.pool.turn(down=True)
        await life.engine.create(
            replace(spec, labels={**spec.labels, LABEL_INSTANCE: "other"}, name=ONE)
        )
        report = await life.pool.turn(down=False)
        assert report[Bucket.FAILED] == [ONE]
        member = await told(life)
        assert member.state is MemberState.BACKING_OFF or member.failures
        assert member.error is not None
        assert member.error.startswith("NameTaken: ")
        await life.engine.remove(ONE)
        await parked(life)


@pytest.mark.parametrize("call", ["create", "attach", "start"])
@pytest.mark.parametrize("error", [EngineRefused, EngineFailed])
async def test_a_start_that_fails_is_tried_again_with_a_growing_backoff_that_can_be_seen(
    pool_lab: Callable[..., Lab], call: str, error: type[CiworkerError]
) -> None:
    lab = pool_lab()
    lab.engine.fail(call, error("no"), times=4)
    async with lab.life() as life:
        await until_state(life, MemberState.BACKING_OFF)
        member = await told(life)
        assert member.error == f"{error.__name__}: no"
        assert member.retry_at is not None
        await parked(life)
        assert life.pool._members[ONE].failures == 4
        assert (await told(life)).error is None


async def test_an_engine_that_is_away_is_asked_again_and_that_is_no_failure_of_a_member(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab()
    lab.engine.fail("start", EngineUnavailable("away"), times=2)
    async with lab.life() as life:
        await parked(life)
        assert life.pool._members[ONE].failures == 0
        assert life.pool._members[ONE].promised


async def test_a_member_that_dies_again_and_again_backs_off(pool_lab: Callable[..., Lab]) -> None:
    async with pool_lab().life() as life:
        for died in range(1, 5):
            await parked(life)
            await life.engine.signal(ONE, signal.SIGKILL)
            await until_failures(life, died)
        member = life.pool._members[ONE]
        assert member.error == "MemberLost: it ended with exit code 137"
        assert member.retry_at > life.lab.clock.monotonic() - 0.1
        await parked(life)
        life.lab.clock.advance(pool.STEADY + 1)
        await life.engine.signal(ONE, signal.SIGKILL)
        await until(lambda: member.failures == 1)
        await parked(life)


async def test_without_its_image_the_pool_is_empty_and_jobs_of_others_run(
    new_lab: NewLab,
) -> None:
    lab = new_lab(pool=[ENTRY | {"image": "later"}])
    lab.engine.registry.add("later")
    async with lab.life() as life:
        await until_state(life, MemberState.NO_IMAGE)
        job = await life.ended(await life.submit())
        assert job.reason is Reason.PASSED
        assert value(life.metrics, "ciworker_pool_cold_starts_total") == 1
        await life.engine.pull("later")
        assert await resynced(life) == {Bucket.CREATED: [member_name("tea", 1, "fake")]}


async def test_members_of_an_image_that_went_away_are_removed(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        del life.engine.images_by_name["fake"]
        assert await resynced(life) == {Bucket.REMOVED: [ONE]}
        assert life.pool.promised == 0


async def test_the_engine_s_restart_has_every_member_started_again(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        await life.engine.restart()
        await until(lambda: life.calls("start") == 2)
        await parked(life)
        assert (await life.ended(await life.submit())).reason is Reason.PASSED


# -- up and down -------------------------------------------------------------------------------


async def test_down_removes_all_and_holds_over_a_restart_until_up(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab(size=2)
    async with lab.life() as life:
        await parked(life, 2)
        await life.engine.create(replace(box(life).spec, name="by-hand"))
        assert (await life.pool.turn(down=True))[Bucket.REMOVED] == ["by-hand", ONE, TWO]
        assert await life.engine.list() == []
        assert await resynced(life) == {}
    async with lab.life() as life:
        assert await resynced(life) == {}
        status = await life.pool.status()
        assert status.down
        assert {member.state for member in status.members} == {MemberState.DOWN}
        assert (await life.ended(await life.submit())).reason is Reason.PASSED
        assert value(life.metrics, "ciworker_pool_cold_starts_total") == 0
        assert (await life.pool.turn(down=False))[Bucket.CREATED] == [ONE, TWO]
        await parked(life, 2)
    async with lab.life() as life:
        await parked(life, 2)


async def test_what_the_store_does_not_take_is_not_done(
    pool_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_lab().life() as life:
        await parked(life)

        async def no(*, down: bool) -> None:
            raise StoreUnavailable("full")

        monkeypatch.setattr(life.pool._intent, "put", no)  # the fault
        with pytest.raises(StoreUnavailable):
            await life.pool.turn(down=True)
        assert await resynced(life) == {Bucket.UNCHANGED: [ONE]}


async def test_a_drain_removes_members_and_leaving_it_brings_them_back(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        drain = Drain(life.parts, life.controller, life.pool, stop=lambda: None)
        drain.begin()
        await until(lambda: life.engine._find(ONE) is None)
        assert await resynced(life) == {}
        drain.undo()
        await parked(life)


# -- taking ------------------------------------------------------------------------------------


async def test_a_job_takes_a_parked_member_and_its_place_is_filled_when_it_has_ended(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        container, before = box(life).id, len(life.engine.calls)
        job_id = await life.submit("echo hello; cat > /dev/null; sleep 0.2; exit 3")
        running = await life.running(job_id)
        assert running.container_id == container
        assert box(life, running.container_name).id == container
        assert (await told(life)).state is MemberState.TAKEN
        assert (await told(life)).job == job_id
        job = await life.ended(job_id)
        assert (job.reason, job.exit_code) == (Reason.TESTS_FAILED, 3)
        assert await life.text(job_id) == b"hello\n"
        await parked(life)
        assert box(life).id != container
        await until(lambda: life.engine._boxes.get(container) is None)
        calls = [name for name, _ in life.engine.calls[before:]]
        assert calls.index("rename") < calls.index("write") < calls.index("create")
        assert value(life.metrics, "ciworker_pool_taken_total", entry="tea") == 1


async def test_what_a_job_costs_the_engine_before_its_first_byte_is_an_image_and_a_name(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        await life.resync.run()
        before = len(life.engine.calls)
        await life.ended(await life.submit())
        calls = [name for name, _ in life.engine.calls[before:]]
        assert calls[: calls.index("write")] in (
            ["image", "rename", "read"],
            ["image", "rename"],
        )


@pytest.mark.parametrize(
    "differs", [{"memory": MEMORY * 2}, {"memory": MEMORY // 2}, {"cpus": 0.5}]
)
async def test_limits_that_differ_are_updated_in_place_before_the_first_byte(
    pool_lab: Callable[..., Lab], differs: dict[str, Any]
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        container = box(life).id
        job_id = await life.submit("sleep 0.1", **differs)
        job = await life.running(job_id)
        taken = box(life, job.container_name)
        assert taken.id == container
        assert (taken.spec.memory, taken.spec.cpus) == (job.spec.memory, job.spec.cpus)
        calls = [name for name, _ in life.engine.calls]
        assert calls.index("update") < calls.index("rename")
        assert (await life.ended(job_id)).reason is Reason.PASSED


@pytest.mark.parametrize("error", [EngineRefused, EngineFailed, EngineUnavailable])
async def test_a_refused_update_takes_none_and_the_job_starts_cold(
    pool_lab: Callable[..., Lab], error: type[CiworkerError]
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        container = box(life).id
        life.engine.fail("update", error("no"))
        job = await life.ended(await life.submit("exit 0", cpus=0.5))
        assert (job.reason, job.attempt) == (Reason.PASSED, 1)
        assert job.container_id != container
        await parked(life)
        assert box(life).id != container


async def test_a_member_whose_limits_were_changed_and_that_no_job_took_is_recreated(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        await life.engine.update(ONE, MEMORY * 2, 1.0)
        assert await resynced(life) == {Bucket.RECREATED: [ONE]}
        assert box(life).spec.memory == MEMORY


@pytest.mark.parametrize("differs", [{"image": "other"}, {"network": True}])
async def test_another_image_or_network_starts_cold(
    pool_lab: Callable[..., Lab], differs: dict[str, Any]
) -> None:
    lab = pool_lab()
    lab.engine.images_by_name["other"] = replace(
        lab.engine.images_by_name["fake"], id="sha256:other"
    )
    async with lab.life() as life:
        await parked(life)
        job = await life.ended(await life.submit("exit 0", **differs))
        assert job.reason is Reason.PASSED
        assert "rename" not in {name for name, _ in life.engine.calls}
        assert (await told(life)).state is MemberState.PARKED


async def test_more_jobs_than_members_start_cold_and_all_run_once(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab({"max_jobs": 4}, size=2).life() as life:
        await parked(life, 2)
        jobs = [await life.submit(f"echo {n}") for n in range(12)]
        for n, job_id in enumerate(jobs):
            job = await life.ended(job_id)
            assert (job.reason, job.attempt) == (Reason.PASSED, 1)
            assert await life.text(job_id) == f"{n}\n".encode()
        await parked(life, 2)
        taken = value(life.metrics, "ciworker_pool_taken_total", entry="tea")
        assert taken >= 2
        assert taken + value(life.metrics, "ciworker_pool_cold_starts_total") == 12


async def test_a_job_that_is_cancelled_while_it_takes_one_does_not_run(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        gate = life.engine.hold("rename")
        job_id = await life.submit("echo ran")
        await life.until(job_id, lambda job: job.status is Status.STARTING)
        await life.cancel(job_id)
        await life.queue.join(job_key(job_id))  # looked at: and let be
        gate.set()
        job = await life.ended(job_id)
        assert job.status is Status.CANCELLED
        await parked(life)


# -- memory ------------------------------------------------------------------------------------


async def test_a_member_s_memory_is_promised_and_given_back_to_the_job_that_takes_it(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab(
        {"max_memory": MEMORY, "max_job_memory": MEMORY, "job_memory": MEMORY}
    ).life() as life:
        await parked(life)
        assert life.pool.promised == MEMORY
        container = box(life).id
        job_id = await life.submit("sleep 0.1")
        running = await life.running(job_id)
        assert running.container_id == container
        assert life.pool.promised == 0
        assert (await life.ended(job_id)).reason is Reason.PASSED
        await parked(life)


async def test_a_job_that_no_member_fits_goes_before_them_where_memory_is_short(
    pool_lab: Callable[..., Lab],
) -> None:
    settings = {
        "max_memory": 3 * MEMORY, "max_job_memory": 2 * MEMORY, "job_memory": MEMORY,
        "max_jobs": 2,
    }  # fmt: skip
    async with pool_lab(settings, size=3).life() as life:
        await parked(life, 3)
        job_id = await life.submit("sleep 0.3", memory=2 * MEMORY, network=True)
        await life.running(job_id)
        assert life.pool.promised <= MEMORY
        await until_state(life, MemberState.NO_MEMORY, 2)
        assert (await life.ended(job_id)).reason is Reason.PASSED
        await parked(life, 3)


# -- crashes while a job takes one -------------------------------------------------------------


def rows(job: Job) -> tuple[Reason | None, int]:
    return job.reason, job.attempt


async def test_committed_and_not_renamed_is_found_by_the_id_and_started_anew(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab()
    async with lab.life(clean=False) as life:
        await parked(life)
        container = box(life).id
        lab.engine.hold("rename")
        job_id = await life.submit("echo once")
        starting = await life.until(job_id, lambda job: job.status is Status.STARTING)
        assert (starting.container_id, starting.sent_at is not None) == (container, True)
    lab.engine._gates.clear()
    async with lab.life() as life:
        job = await life.ended(job_id)
        assert rows(job) == (Reason.PASSED, 1)
        assert job.container_id != container
        assert await life.text(job_id) == b"once\n"
        await parked(life)
        assert box(life).id == container  # it is the pool's again


async def test_renamed_and_not_committed_is_removed_and_the_job_starts_anew(
    pool_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = pool_lab()
    async with lab.life(clean=False) as life:
        await parked(life)
        container, renamed = box(life).id, asyncio.Event()

        async def never(*_: Any, **__: Any) -> None:
            renamed.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(life.jobs, "move", never)  # the crash comes before it
        job_id = await life.submit("echo once")
        await renamed.wait()
        await until(lambda: life.engine._find(ONE) is None)
    async with lab.life() as life:
        job = await life.ended(job_id)
        assert job.reason is Reason.PASSED
        assert job.container_id != container
        assert await life.text(job_id) == b"once\n"
        await parked(life)


async def test_committed_and_renamed_and_nothing_sent_is_tried_again(
    pool_lab: Callable[..., Lab],
) -> None:
    lab = pool_lab()
    async with lab.life(clean=False) as life:
        await parked(life)
        container = box(life).id
        lab.engine.hold("write")
        job_id = await life.submit("echo once")
        await until(lambda: life.calls("write") > 0)
    lab.engine._gates.clear()
    async with lab.life() as life:
        job = await life.ended(job_id)
        assert rows(job) == (Reason.PASSED, 2)
        assert job.container_id != container
        assert await life.text(job_id) == b"once\n"
        await parked(life)


async def test_what_never_came_whole_is_tried_again(pool_lab: Callable[..., Lab]) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        container, writes = box(life).id, life.calls("write")
        life.engine.fail("write", EngineUnavailable("cut"), after=True)  # the length
        job_id = await life.submit("echo once")
        job = await life.ended(job_id)
        assert rows(job) == (Reason.PASSED, 2)
        assert job.container_id != container
        assert life.calls("write") > writes + 1
        assert await life.text(job_id) == b"once\n"
        await parked(life)


@pytest.mark.parametrize(
    ("call", "error", "after"),
    [
        ("rename", EngineRefused, False),
        ("rename", EngineUnavailable, False),
        ("rename", EngineUnavailable, True),  # carried out, and the answer is lost
    ],
)
async def test_a_new_name_that_fails_costs_the_job_no_more_than_a_retry(
    pool_lab: Callable[..., Lab], call: str, error: type[CiworkerError], after: bool
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        life.engine.fail(call, error("no"), after=after)
        job_id = await life.submit("echo once")
        job = await life.ended(job_id)
        assert rows(job) == (Reason.PASSED, 2 if after else 1)
        assert await life.text(job_id) == b"once\n"
        await parked(life)


async def test_one_that_was_removed_as_a_job_took_it_costs_no_retry(
    pool_lab: Callable[..., Lab],
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        gate = life.engine.hold("rename")
        job_id = await life.submit("echo once")
        await life.until(job_id, lambda job: job.status is Status.STARTING)
        await life.engine.remove(ONE)
        gate.set()
        assert rows(await life.ended(job_id)) == (Reason.PASSED, 1)
        assert await life.text(job_id) == b"once\n"
        await parked(life)


async def test_one_that_died_as_a_job_took_it_costs_a_retry(pool_lab: Callable[..., Lab]) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        life.engine.drop_events = lambda _event: True
        gate = life.engine.hold("rename")
        job_id = await life.submit("echo once")
        await life.until(job_id, lambda job: job.status is Status.STARTING)
        await life.engine.signal(ONE, signal.SIGKILL)
        life.engine.drop_events = lambda _event: False
        gate.set()
        assert rows(await life.ended(job_id)) == (Reason.PASSED, 2)
        assert await life.text(job_id) == b"once\n"
        await parked(life)


async def test_a_commit_that_fails_sends_nothing_and_the_job_runs_once(
    pool_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pool_lab().life() as life:
        await parked(life)
        real, failed = life.jobs.move, 0

        async def move(*words: Any, **more: Any) -> Any:
            nonlocal failed
            if more.get("container_id") and not failed:
                failed += 1
                raise StoreUnavailable("full")
            return await real(*words, **more)

        monkeypatch.setattr(life.jobs, "move", move)  # the fault
        job_id = await life.submit("echo once")
        job = await life.ended(job_id)
        assert failed == 1
        assert job.reason is Reason.PASSED
        assert await life.text(job_id) == b"once\n"
        await parked(life)


def test_the_time_to_send_counts_from_the_taking_and_not_from_the_start() -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    spec = Spec("tea", "true", 900.0, MEMORY, 1.0, False, "tea")
    job = Job("J", Status.STARTING, spec, now, "token", sent_at=now)
    container = Container(
        id="c", name="n", state=State.RUNNING, job="J", attempt=1, kind=KIND_POOL,
        started_at=now - timedelta(hours=1),
    )  # fmt: skip
    life, patience = Life(1), Patience(60.0, 10.0, 3, None)
    arm(job, life, container, patience, now=now + timedelta(seconds=10), monotonic=100.0)
    assert life.transfer_deadline == 150.0

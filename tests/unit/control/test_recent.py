"""The environments that were used last, parked: around the fake engine."""

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from ciworker.control import pool
from ciworker.control.keys import pool_key
from ciworker.control.members import MemberState
from ciworker.domain.container import Container
from ciworker.domain.decide import Bucket
from ciworker.domain.environment import EnvironmentStatus
from ciworker.domain.job import Cache, Job, Reason, Status
from ciworker.domain.pool import member_name
from ciworker.errors import EngineUnavailable, StoreUnavailable
from tests.engine.fake import LAYER_BYTES
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import Lab, Life
from tests.unit.control.test_pool import (
    MEMORY,
    box,
    resynced,
    told,
    until,
    until_failures,
    until_state,
)
from tests.unit.control.test_tallies import value

ENTRY: dict[str, Any] = {"name": "tea", "environments": True, "memory": MEMORY, "cpus": 1.0}
ONE, TWO = (member_name("tea", number, "fake") for number in (1, 2))


@pytest.fixture(autouse=True)
def short_backoffs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "RETRY_FIRST", 0.02)
    monkeypatch.setattr(pool, "RETRY_MOST", 0.1)


@pytest.fixture
def recent_lab(new_lab: NewLab) -> Callable[..., Lab]:
    """A lab with so many places for environments."""

    def make(size: int = 1, **settings: Any) -> Lab:
        return new_lab(pool=[ENTRY | {"size": size}], **settings)

    return make


async def used(life: Life, leaf: str, run: str = "echo tested", **fields: Any) -> Job:
    """A job that ran in the environment of this leaf, which was set up for it if need be."""
    setup = {"setup": ("echo setting up",), "setup_inputs": {"tea.txt": leaf}}
    job = await life.ended(await life.submit(run, **setup, **fields))
    assert job.reason is Reason.PASSED, job.message
    return job


async def green_and_black(life: Life) -> tuple[Job, Job]:
    """Two jobs, whose environments stand in the two places."""
    green = await used(life, "green")
    await holding(life, green, green)
    black = await used(life, "black")
    await holding(life, green, black)
    return green, black


async def holding(life: Life, *leaves: Job | None) -> None:
    """Wait until the places have the environments of these jobs parked, and nothing is under way.

    None: of a place that has none.
    """
    wanted = [leaf.environment if leaf else None for leaf in leaves]
    async with asyncio.timeout(20):
        while [await parked_key(life, n) for n in range(1, len(leaves) + 1)] != wanted:
            await asyncio.sleep(0.005)
    await life.comes_to_rest()


async def parked_key(life: Life, number: int) -> str | None:
    """Of the environment from which the container that is parked there was made."""
    member = life.pool._members[member_name("tea", number, "fake")]
    layers = {e.layer: e.key for e in await life.parts.environments.all()}
    return layers.get(member.parked.image) if member.parked else None


async def layer(life: Life, job: Job) -> str:
    assert job.environment is not None
    environment = await life.parts.environments.get(job.environment)
    assert environment is not None
    assert environment.layer is not None
    return environment.layer


async def remove(life: Life, job: Job) -> None:
    assert job.environment is not None
    await life.environments.remove(job.environment, "removed by me")


# -- what is parked ----------------------------------------------------------------------------


async def test_before_any_job_used_one_there_is_none_and_no_memory_is_promised(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab(2).life() as life:
        await until_state(life, MemberState.NO_ENVIRONMENT, 2)
        await life.ended(await life.submit())
        await life.comes_to_rest()
        assert (await told(life)).state is MemberState.NO_ENVIRONMENT
        assert (life.pool.promised, life.pool.wanted, life.pool.environments) == (0, {"tea": 0}, {})
        assert await resynced(life) == {}


async def test_the_environment_of_a_job_that_ended_is_parked_and_the_next_job_takes_it(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        first = await used(life, "green")
        await holding(life, first)
        member = await told(life)
        assert (member.state, member.environment) == (MemberState.PARKED, first.environment)
        assert life.pool.environments == {("tea", first.environment): 1}
        assert life.pool.wanted == {"tea": 1}
        container = box(life).id
        assert box(life).image.id == await layer(life, first)
        second = await used(life, "green", "echo warm")
        assert (second.container_id, second.attempt) == (container, 1)
        assert await life.text(second.id) == b"warm\n"
        await holding(life, first)
        assert box(life).id != container
        assert value(life.metrics, "ciworker_pool_taken_total", entry="tea") == 1
        assert await resynced(life) == {Bucket.UNCHANGED: [ONE]}


async def test_as_many_as_there_are_places_are_parked_and_only_what_makes_way_is_made_anew(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab(2).life() as life:
        _green, black = await green_and_black(life)
        one, two = box(life, ONE).id, box(life, TWO).id
        white = await used(life, "white")
        await holding(life, white, black)
        assert box(life, TWO).id == two
        assert box(life, ONE).id != one
        one = box(life, ONE).id
        await used(life, "black")
        await holding(life, white, black)
        assert box(life, ONE).id == one


async def test_one_that_belongs_to_a_job_alone_is_not_parked(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        await used(life, "green", cache=Cache.OFF)
        await life.comes_to_rest()
        assert await resynced(life) == {}
        assert (await told(life)).state is MemberState.NO_ENVIRONMENT


async def test_jobs_of_one_environment_that_come_at_once_find_as_many_as_there_are_places(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab(2, max_jobs=2).life() as life:
        green = await used(life, "green")
        await holding(life, green, green)
        there = {box(life, ONE).id, box(life, TWO).id}
        jobs = await asyncio.gather(used(life, "green"), used(life, "green"))
        assert {job.container_id for job in jobs} == there
        await holding(life, green, green)


# -- over a restart ----------------------------------------------------------------------------


async def test_the_next_worker_starts_the_same_ones_again_and_rebuilds_none(
    recent_lab: Callable[..., Lab],
) -> None:
    """Though black was used last: each place keeps what it has."""
    lab = recent_lab(2)
    async with lab.life() as life:
        green, black = await green_and_black(life)
        ids, creates = (box(life, ONE).id, box(life, TWO).id), life.calls("create")
    async with lab.life() as life:
        await holding(life, green, black)
        assert (box(life, ONE).id, box(life, TWO).id) == ids
        assert life.calls("create") == creates
        assert (await resynced(life)) == {Bucket.UNCHANGED: [ONE, TWO]}


async def test_the_next_worker_makes_anew_only_what_is_not_wanted_any_more(
    recent_lab: Callable[..., Lab],
) -> None:
    lab = recent_lab(2)
    async with lab.life() as life:
        green, black = await green_and_black(life)
        kept = box(life, TWO).id
    async with lab.life() as life:
        await remove(life, green)
        await holding(life, black, black)
        assert box(life, TWO).id == kept


async def test_an_engine_that_cannot_say_what_there_is_is_asked_again(
    recent_lab: Callable[..., Lab],
) -> None:
    lab = recent_lab()
    async with lab.life() as life:
        green = await used(life, "green")
        await holding(life, green)
        container = box(life).id
    async with lab.life(clean=False) as life:
        await life.resync.run()
        life.pool._recent._recalled.clear()
        lab.engine.fail("list", EngineUnavailable("away"), times=2)
        assert await resynced_at_last(life) == {Bucket.UNCHANGED: [ONE]}
        await holding(life, green)
        assert box(life).id == container


async def resynced_at_last(life: Life) -> dict[Bucket, list[str]]:
    """The resync asks the engine for a list as well."""
    async with asyncio.timeout(20):
        while True:
            try:
                if found := await resynced(life):
                    return found
            except EngineUnavailable:
                continue


async def test_a_store_that_cannot_be_read_is_asked_again_and_what_is_parked_stays(
    recent_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        container, real, refused = box(life).id, life.parts.environments.recently_used, 0

        async def away(limit: int) -> Any:
            nonlocal refused
            if refused == 2:
                return await real(limit)
            refused += 1
            raise StoreUnavailable("away")

        monkeypatch.setattr(life.parts.environments, "recently_used", away)  # the fault
        await life.resync.run()
        await until(lambda: refused == 2)
        await holding(life, green)
        assert box(life).id == container


# -- removed and rebuilt -----------------------------------------------------------------------


async def test_one_that_is_removed_goes_at_once_with_its_parked_container(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        await remove(life, green)
        assert await life.engine.images({}) == []
        await until_state(life, MemberState.NO_ENVIRONMENT)
        await life.comes_to_rest()
        assert await life.engine.list() == []
        assert life.pool.promised == 0
        assert life.pool._members[ONE].failures == 0
        again = await used(life, "green")
        await holding(life, again)


async def test_a_stopped_container_does_not_keep_it_either(
    recent_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        monkeypatch.setattr(pool, "RETRY_FIRST", 60.0)
        monkeypatch.setattr(pool, "RETRY_MOST", 60.0)
        for state in (MemberState.PARKED, MemberState.BACKING_OFF):  # once may happen
            failures = life.pool._members[ONE].failures
            await life.engine.signal(ONE, signal.SIGKILL)
            await until_failures(life, failures + 1)
            await until_state(life, state)
        assert not box(life).state.up
        await remove(life, green)
        assert await life.engine.images({}) == []
        assert await life.engine.list() == []
        life.queue.forget_timer(pool_key(ONE))


async def test_one_that_is_being_parked_is_removed_all_the_same(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        await life.pool.turn(down=True)
        creates, gate = life.calls("create"), life.engine.hold("create")
        turning = asyncio.create_task(life.pool.turn(down=False))
        await until(lambda: life.calls("create") > creates)
        removing = asyncio.create_task(remove(life, green))
        await until(lambda: life.pool._members[ONE].looking._waiters is not None)
        gate.set()
        await asyncio.gather(turning, removing)
        assert await life.engine.images({}) == []
        await until_state(life, MemberState.NO_ENVIRONMENT)
        assert life.pool._members[ONE].failures == 0


async def test_one_that_a_job_takes_as_it_is_to_go_is_the_job_s(
    recent_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        container, real = box(life).id, life.engine.inspect
        taking: list[asyncio.Task[Job]] = []

        async def inspect(container: str) -> Container | None:
            found = await real(container)
            if not taking:
                taking.append(asyncio.create_task(used(life, "green", "echo mine")))
                await until_state(life, MemberState.TAKEN)
            return found

        monkeypatch.setattr(life.engine, "inspect", inspect)  # it is taken meanwhile
        renaming = life.engine.hold("rename")
        await life.pool.leave(await layer(life, green))
        renaming.set()
        job = await taking[0]
        assert (job.container_id, job.attempt) == (container, 1)
        assert await life.text(job.id) == b"mine\n"
        await holding(life, green)


async def test_one_that_a_job_took_in_an_earlier_life_of_the_worker_is_the_job_s_too(
    recent_lab: Callable[..., Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not renamed before the worker ended, so only the store knows."""
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        container, real = box(life).id, life.jobs.holder

        async def holder(container: str) -> str | None:
            return "01JOB" if container else None

        monkeypatch.setattr(life.jobs, "holder", holder)  # as it would be then
        await life.pool._let_go(life.pool._members[ONE])
        await life.pool.leave(await layer(life, green))
        assert box(life).id == container
        monkeypatch.setattr(life.jobs, "holder", real)  # it has ended
        await holding(life, green)


async def test_an_engine_that_is_away_as_one_is_removed_is_asked_again(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        life.engine.fail("remove", EngineUnavailable("away"))
        await remove(life, green)
        async with asyncio.timeout(20):
            while await life.engine.images({}):
                await asyncio.sleep(0.005)
        await until_state(life, MemberState.NO_ENVIRONMENT)
        await life.comes_to_rest()
        assert await life.engine.list() == []


async def test_what_environments_may_take_together_holds_for_parked_ones_too(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab(2, environments_size=LAYER_BYTES).life() as life:
        green = await used(life, "green")
        await holding(life, green, green)
        black = await used(life, "black")
        await holding(life, black, black)
        images = await life.engine.images({})
        assert [image.id for image in images] == [await layer(life, black)]


async def test_a_rebuilt_one_is_parked_instead_of_the_one_of_before(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        old = await layer(life, green)
        anew = await used(life, "green", cache=Cache.REBUILD)
        assert anew.environment == green.environment
        await until(lambda: life.engine._image(old) is None)
        await holding(life, anew)
        assert box(life).image.id == await layer(life, anew) != old
        container = box(life).id
        assert (await used(life, "green")).container_id == container


async def test_of_one_whose_image_someone_removed_none_is_parked_and_the_next_job_sets_it_up(
    recent_lab: Callable[..., Lab],
) -> None:
    async with recent_lab().life() as life:
        green = await used(life, "green")
        await holding(life, green)
        assert green.environment is not None
        environment = await life.parts.environments.get(green.environment)
        assert environment is not None
        life.engine._committed.pop(await layer(life, green))
        life.engine.images_by_name.pop(environment.tag)
        await life.resync.run()
        await resynced(life)
        assert (await told(life)).state is MemberState.NO_ENVIRONMENT
        found = await life.parts.environments.get(green.environment)
        assert found is not None
        assert found.status is EnvironmentStatus.ABSENT
        await holding(life, await used(life, "green"))


# -- memory ------------------------------------------------------------------------------------


async def test_a_job_goes_before_a_parked_environment_where_memory_is_short(
    recent_lab: Callable[..., Lab],
) -> None:
    memory = {"max_memory": 2 * MEMORY, "max_job_memory": 2 * MEMORY, "job_memory": MEMORY,
              "setup_memory": MEMORY}  # fmt: skip
    async with recent_lab(**memory).life() as life:
        green = await used(life, "green")
        await holding(life, green)
        job_id = await life.submit("sleep 0.2", memory=2 * MEMORY)
        await life.until(job_id, lambda job: job.status is Status.RUNNING)
        await until_state(life, MemberState.NO_MEMORY)
        assert life.pool.promised == 0
        assert (await life.ended(job_id)).reason is Reason.PASSED
        await holding(life, green)

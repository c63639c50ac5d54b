"""Environments in a real file: what the controller writes, and what jobs count beside it."""

import asyncio
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciworker.domain.environment import Environment, EnvironmentStatus
from ciworker.errors import Invalid
from ciworker.store.environments import Environments
from ciworker.store.session import Database
from tests.store.lab import NOW, SECOND, job_id, new_environment, rows

TEXT = st.text(max_size=30)
INSTANTS = st.datetimes(timezones=st.just(UTC))
COUNTS = st.integers(0, 2**31)
ENVIRONMENTS = st.builds(
    Environment,
    key=st.sampled_from(["a", "b", "c"]),
    status=st.sampled_from(EnvironmentStatus),
    project=TEXT,
    image=TEXT,
    image_id=TEXT,
    commands=st.lists(TEXT, max_size=3).map(tuple),
    inputs=st.dictionaries(TEXT, TEXT, max_size=3),
    operator=TEXT,
    created_at=INSTANTS,
    single=st.booleans(),
    build=st.none() | TEXT,
    good=st.none() | TEXT,
    builds=COUNTS,
    attempts=COUNTS,
    layer=st.none() | TEXT,
    bytes=st.integers(0, 2**50),
    build_seconds=st.floats(0, 1e9),
    ready_at=st.none() | INSTANTS,
    last_used_at=st.none() | INSTANTS,
    hits=st.just(0),
    misses=st.just(0),
    exit_code=st.none() | st.integers(-1, 255),
    message=st.none() | TEXT,
    removal=st.none() | TEXT,
)


@pytest.fixture
def environments(database: Database) -> Environments:
    return Environments(database)


async def stored(database: Database, key: str) -> Environment | None:
    """What the database has, past all that is kept."""
    return await Environments(database).get(key)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(ENVIRONMENTS)
async def test_every_field_comes_back_as_it_was_stored(
    environments: Environments, database: Database, environment: Environment
) -> None:
    await environments.forget(environment.key)
    await environments.add(environment)

    assert await environments.get(environment.key) == environment
    assert await stored(database, environment.key) == environment
    assert environment in await environments.all()
    assert environment in await environments.of_project(environment.project)


async def test_hits_and_misses_of_a_new_one_are_stored(environments: Environments) -> None:
    environment = new_environment(hits=3, misses=4)

    await environments.add(environment)

    assert await environments.get(environment.key) == environment


async def test_one_that_is_not_there_is_none(environments: Environments) -> None:
    assert await environments.get("nothing") is None
    assert await environments.all() == []
    assert await environments.of_project("tea") == []


async def test_a_new_one_is_added_once_whoever_comes_later(environments: Environments) -> None:
    """Two jobs find that it is not there; when the second one stores it, it is being built."""
    added = new_environment()
    await environments.add(added)
    building = await environments.change(
        added, status=EnvironmentStatus.BUILDING, build=job_id(1), builds=1
    )

    await environments.add(new_environment(created_at=NOW + SECOND))

    assert building == replace(added, status=EnvironmentStatus.BUILDING, build=job_id(1), builds=1)
    assert await environments.get(added.key) == building


async def test_a_change_touches_only_what_it_names(environments: Environments) -> None:
    added = new_environment()
    await environments.add(added)
    await environments.change(added, removal="to make room")

    changed = await environments.change(added, message="tea")

    assert changed == replace(added, removal="to make room", message="tea")


@pytest.mark.parametrize(
    "other",
    [{"status": EnvironmentStatus.READY}, {"build": "another"}, {"key": "nothing"}],
    ids=["status", "build", "key"],
)
async def test_a_change_of_what_is_no_longer_so_changes_nothing(
    environments: Environments, other: dict[str, object]
) -> None:
    added = new_environment()
    await environments.add(added)
    believed = replace(added, **other)  # type: ignore[arg-type] # by name

    assert await environments.change(believed, message="tea") is None
    assert await environments.get(added.key) == added


async def test_lists_come_newest_first(environments: Environments) -> None:
    for key, age, build, project in (
        ("a", 1, 12, "tea"),
        ("b", 3, None, "tea"),
        ("c", 0, 11, "milk"),
        ("d", 2, 13, "tea"),
    ):
        await environments.add(
            new_environment(
                key,
                created_at=NOW - age * SECOND,
                build=None if build is None else job_id(build),
                project=project,
            )
        )

    assert [found.key for found in await environments.all()] == ["c", "a", "d", "b"]
    assert [found.key for found in await environments.of_project("tea")] == ["d", "a", "b"]
    assert [found.key for found in await environments.of_project("milk")] == ["c"]
    assert await environments.of_project("%") == []


async def test_each_use_is_counted_as_what_it_was(
    environments: Environments, database: Database
) -> None:
    environment = new_environment(removal="to make room")
    await environments.add(environment)
    await environments.get(environment.key)

    await environments.used(environment.key, NOW + SECOND, hit=False)
    await environments.used(environment.key, NOW + 2 * SECOND, hit=True)
    await environments.used(environment.key, NOW + 3 * SECOND, hit=True)
    await environments.used("nothing", NOW, hit=True)

    expected = replace(environment, hits=2, misses=1, last_used_at=NOW + 3 * SECOND, removal=None)
    assert await environments.get(environment.key) == expected
    assert await stored(database, environment.key) == expected
    assert len(await environments.all()) == 1


async def test_those_that_jobs_can_start_from_come_by_when_they_were_used(
    environments: Environments,
) -> None:
    for key, age, fields in (
        ("a", 3, {}),
        ("b", 1, {}),
        ("c", 2, {}),
        ("rebuilt", 4, {"status": EnvironmentStatus.BUILDING}),
        ("gone", 0, {"layer": None, "status": EnvironmentStatus.ABSENT}),
        ("single", 0, {"single": True}),
        ("to go", 0, {"removal": "to make room"}),
    ):
        ready: dict[str, object] = {"status": EnvironmentStatus.READY, "layer": f"sha256:{key}"}
        used = NOW - age * SECOND
        await environments.add(new_environment(key, **{**ready, "last_used_at": used, **fields}))

    assert list((await environments.recently_used(9)).items()) == [
        ("b", "sha256:b"), ("c", "sha256:c"), ("a", "sha256:a"), ("rebuilt", "sha256:rebuilt"),
    ]  # fmt: skip
    assert list(await environments.recently_used(2)) == ["b", "c"]
    await environments.used("to go", NOW, hit=True)
    assert list(await environments.recently_used(1)) == ["to go"]


async def test_uses_and_changes_at_once_lose_no_count(environments: Environments) -> None:
    environment = new_environment()
    await environments.add(environment)

    await asyncio.gather(
        *(environments.used(environment.key, NOW, hit=n % 4 != 0) for n in range(40)),
        *(environments.change(environment, builds=n) for n in range(20)),
    )

    found = await environments.get(environment.key)
    assert found
    assert (found.hits, found.misses) == (30, 10)


async def test_what_is_got_is_never_older_than_what_was_written(
    environments: Environments, database: Database
) -> None:
    """Readers all the while; after each write the next look has it."""
    environment, over = new_environment(), asyncio.Event()
    await environments.add(environment)

    async def look() -> None:
        while not over.is_set():
            await environments.get(environment.key)
            await asyncio.sleep(0)

    watchers = [asyncio.create_task(look()) for _ in range(4)]
    for n in range(1, 50):
        environment = replace(environment, builds=n)
        await environments.change(environment, builds=n)
        assert await environments.get(environment.key) == environment
    over.set()
    await asyncio.gather(*watchers)

    assert await stored(database, environment.key) == environment


async def test_an_environment_is_read_once_as_long_as_nobody_writes_it(
    environments: Environments, database: Database
) -> None:
    environment = new_environment()
    await environments.add(environment)
    await environments.get(environment.key)

    await database.insert("UPDATE environment SET builds = 7", [])

    assert await environments.get(environment.key) == environment
    assert await stored(database, environment.key) == replace(environment, builds=7)


async def test_after_a_write_that_failed_the_database_is_asked(
    environments: Environments, database: Database
) -> None:
    environment = new_environment()
    await environments.add(environment)
    await environments.get(environment.key)
    await database.insert("UPDATE environment SET builds = 7", [])

    with pytest.raises(Invalid):
        await environments.change(environment, message="\udcff")

    assert await environments.get(environment.key) == replace(environment, builds=7)


async def test_one_that_is_forgotten_is_gone_for_good(
    environments: Environments, path: Path
) -> None:
    await environments.add(new_environment("a"))
    await environments.add(new_environment("b"))
    assert await environments.get("a")

    await environments.forget("a")
    await environments.forget("nothing")

    assert await environments.get("a") is None
    assert rows(path, "SELECT key FROM environment") == [("b",)]


async def test_what_is_stored_is_there_when_the_file_is_opened_again(
    environments: Environments, database: Database, path: Path
) -> None:
    environment = new_environment(status=EnvironmentStatus.READY, ready_at=NOW, bytes=2**40)
    await environments.add(environment)
    await environments.used(environment.key, NOW + SECOND, hit=True)
    await database.close()

    opened = await Database.open(path)
    try:
        found = await stored(opened, environment.key)
    finally:
        await opened.close()

    assert found == replace(environment, hits=1, last_used_at=NOW + SECOND)

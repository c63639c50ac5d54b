"""What the worker's own log says while it works at something, it says about that."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict

from ciworker.control.launcher import container_spec
from ciworker.errors import EngineFailed, EngineUnavailable
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab, Life

SETUP: dict[str, Any] = {"setup": ("echo setting up",), "setup_inputs": {"tea.txt": "1"}}


@pytest.fixture
def lines() -> Iterator[list[EventDict]]:
    """All that is logged, as it would be written."""
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as found:
        yield found


async def said(lines: list[EventDict], wanted: Callable[[EventDict], bool]) -> EventDict:
    """The first line that is as wanted, once it is there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for line in lines:
                if wanted(line):
                    return line
            await asyncio.sleep(0.005)


async def event(lines: list[EventDict], text: str) -> EventDict:
    return await said(lines, lambda line: line["event"] == text)


async def test_a_look_that_is_tried_again_names_its_job(life: Life, lines: list[EventDict]) -> None:
    life.engine.fail("create", EngineUnavailable("no answer"))
    job = await life.submit()
    await life.ended(job)
    line = await event(lines, "a look is tried again")
    assert (line["job"], line["error"]) == (job, "no answer")
    assert (await event(lines, "job ended"))["job"] == job


async def test_an_error_that_nobody_foresaw_names_its_job(
    life: Life, lines: list[EventDict]
) -> None:
    life.engine.fail("create", ZeroDivisionError("surprise"))
    job = await life.submit()
    await life.ended(job)
    assert (await event(lines, "a look failed"))["job"] == job


async def test_the_sender_and_the_pump_name_their_job(lab: Lab, lines: list[EventDict]) -> None:
    async with lab.life() as life:
        life.engine.fail("write", EngineUnavailable("broken"))
        first = await life.submit("echo one")
        await life.ended(first)
        assert (await event(lines, "sending broke off"))["job"] == first
        life.engine.fail("read", EngineUnavailable("broken"))
        second = await life.submit("echo two")
        await life.ended(second)
        await said(
            lines, lambda line: line["event"] == "attached stream lost" and line["job"] == second
        )


async def test_what_a_task_of_a_job_fails_of_names_the_job(
    life: Life, lines: list[EventDict]
) -> None:
    life.engine.fail("read", ZeroDivisionError("surprise"))
    job = await life.submit()
    await life.ended(job)
    assert (await event(lines, "a task failed"))["job"] == job


async def test_a_pull_that_jobs_share_is_said_of_none_of_them(
    new_lab: NewLab, lines: list[EventDict]
) -> None:
    async with new_lab(pull="always").life() as life:
        life.engine.registry = {"remote"}
        await life.ended(await life.submit(image="remote"))
    line = await event(lines, "pulling an image")
    assert (line["image"], "job" in line) == ("remote", False)


async def test_two_jobs_at_once_are_told_apart(lab: Lab, lines: list[EventDict]) -> None:
    async with lab.life() as life:
        jobs = [await life.submit() for _ in range(4)]
        for job in jobs:
            await life.ended(job)
    assert sorted(line["job"] for line in lines if line["event"] == "job ended") == sorted(jobs)
    assert all("key" not in line for line in lines)


async def test_what_is_said_of_an_environment_names_it(lab: Lab, lines: list[EventDict]) -> None:
    async with lab.life() as life:
        lab.engine.fail("commit", EngineFailed("no space left on device"))
        await life.ended(await life.submit(**SETUP))
        (environment,) = await life.parts.environments.all()
    line = await event(lines, "an environment could not be stored")
    assert line["environment"] == environment.key
    assert "job" not in line
    ready = await event(lines, "environment ready")
    assert environment.key.startswith(ready["environment"])


async def test_what_is_said_of_a_stray_names_its_container(
    lab: Lab, lines: list[EventDict]
) -> None:
    async with lab.life() as life:
        await life.comes_to_rest()
        spec = container_spec(
            lab.new_job("true", attempt=1), lab.settings, "fake",
            lab.engine.images_by_name["fake"], None,
        )  # fmt: skip
        made = await lab.engine.create(spec)
        lab.engine.fail("remove", EngineUnavailable("no answer"))
        await life.resync.run()
        await event(lines, "orphan removed")
    line = await event(lines, "a look is tried again")
    assert line["container"] == made

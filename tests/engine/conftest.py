"""Both engines for one suite; nothing may be left of either."""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ciworker.engine import docker, network
from ciworker.engine.docker import DockerEngine
from ciworker.engine.sandbox import write_hosts
from tests.driver import docker as docker_command
from tests.engine.fake import FakeEngine, FakeNetworks
from tests.engine.lab import Lab, children


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def image() -> str:
    name = os.environ.get("CI_TEST_IMAGE")
    if not name:
        pytest.fail(
            "these tests need a Docker engine and CI_TEST_IMAGE, an image that it has: "
            "run scripts/test, which sees to both"
        )
    return name


class DockerNetworks:
    """Of a name and an interface that no other test has."""

    def __init__(self, patched: pytest.MonkeyPatch, instance: str) -> None:
        patched.setattr(network, "NAME", instance)
        patched.setattr(network, "BRIDGE", f"ciw{instance[-10:]}")

    async def exists(self) -> bool:
        named = await docker_command("network", "ls", "-q", "-f", f"name=^{network.NAME}$")
        return named != b""

    async def remove(self) -> None:
        await docker_command("network", "rm", network.NAME)

    async def make_another(self) -> None:
        await docker_command("network", "create", network.NAME)


@pytest.fixture
async def fake_lab() -> AsyncIterator[Lab]:
    instance, before = _instance(), children()
    engine = FakeEngine(instance, images=["fake"])

    def limit_calls(seconds: float) -> None:
        engine.call_timeout = seconds

    try:
        yield Lab(engine, "fake", instance, "fake", limit_calls, FakeNetworks(engine))
    finally:
        await engine.aclose()
    assert children() <= before, "a process is left, or a zombie"


@pytest.fixture
async def docker_lab(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Lab]:
    instance = _instance()
    networks = DockerNetworks(monkeypatch, instance)

    def limit_calls(seconds: float) -> None:
        monkeypatch.setattr(docker, "CALL_TIMEOUT", seconds)

    async with DockerEngine(None, instance, hosts=write_hosts(tmp_path)) as engine:
        lab = Lab(engine, "docker", instance, image, limit_calls, networks)
        try:
            yield lab
        finally:
            limit_calls(30)
            await _remove_all(instance)
            await _remove_all(lab.stranger)
            if await networks.exists():
                await networks.remove()


@pytest.fixture(params=["fake", "docker"])
def lab(request: pytest.FixtureRequest) -> Lab:
    """The engine under contract, with an instance label that no other test has."""
    chosen: Lab = request.getfixturevalue(f"{request.param}_lab")
    return chosen


async def _remove_all(instance: str) -> None:
    async with DockerEngine(None, instance) as engine:
        for container in await engine.list():
            await engine.remove(container.id)
        assert await engine.list() == []
        for image in await engine.images({}):
            await engine.remove_image(image.id)
        assert await engine.images({}) == []


def _instance() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"

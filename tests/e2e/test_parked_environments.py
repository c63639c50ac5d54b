"""Parked environments on a real engine: told of, taken, kept over a kill, and gone when removed."""

import asyncio
import json
from typing import Any

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, docker
from tests.e2e.test_metrics import scrape
from tests.e2e.test_pool import inspected, member_ids, parked, status, until_states

SETTINGS = {
    "pool": json.dumps([{"name": "recent", "environments": True, "size": 2}]),
    "job_memory": "128m",
    "setup_memory": "256m",
    "job_cpus": "1",
    "resync_interval": "10m",
}


@pytest.fixture
async def worker(new_worker: WorkerFactory) -> Worker:
    made = new_worker(**SETTINGS)
    await made.start()
    return made


async def ran_in(worker: Worker, leaf: str) -> dict[str, Any]:
    """A job that passed in the environment of this leaf."""
    job = await worker.run("cat /opt/leaf", setup=[f"echo {leaf} > /opt/leaf"])
    assert job["reason"] == "passed", job
    assert (await worker.text(job["id"])).decode().splitlines()[-1] == leaf
    return job


async def held(worker: Worker) -> list[str]:
    """The environments of the places, in their order, once both are parked."""
    await parked(worker, 2)
    members = (await status(worker))["members"]
    images = {e["key"]: f"ciworker-env:{e['key']}" for e in await environments(worker)}
    keys: list[str] = [member["environment"] for member in members]
    for member, key in zip(members, keys, strict=True):
        assert (await inspected(member["container_id"]))["Config"]["Labels"][
            "ciworker.environment"
        ] == key
        assert await docker("image", "inspect", images[key], "--format", "{{.Id}}")
    return keys


async def until_held(worker: Worker, *keys: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while set(await held(worker)) != set(keys):
            await asyncio.sleep(0.02)


async def environments(worker: Worker) -> list[dict[str, Any]]:
    code, found = await worker.call("GET", "/environments")
    assert code == 200, found
    items: list[dict[str, Any]] = found["items"]
    return items


async def test_what_was_used_last_is_parked_taken_and_told_of(worker: Worker) -> None:
    await until_states(worker, "no_environment", "no_environment")
    _, out, _ = await command("ciworker", "pool", "status", env=worker.environment)
    assert "recent: 0 of 2 parked; the environments used last, 128.0 MiB" in out.decode()
    assert "no_environment: no job has used an environment yet" in out.decode()
    await ran_in(worker, "green")
    (green,) = [environment["key"] for environment in await environments(worker)]
    await until_held(worker, green)
    warm = set((await member_ids(worker)).values())
    second = await worker.run("cat /opt/leaf", setup=["echo green > /opt/leaf"])
    assert second["container_id"] in warm
    assert await worker.text(second["id"]) == b"green\n"
    await ran_in(worker, "black")
    (black,) = {environment["key"] for environment in await environments(worker)} - {green}
    await until_held(worker, green, black)
    _, out, _ = await command("ciworker", "pool", "status", env=worker.environment)
    assert f"parked, environment {green[:12]}\n" in out.decode()
    figures = await scrape(worker)
    for key in (green, black):
        name = "ciworker_pool_environments"
        assert figures.value(name, entry="recent", environment=key[:12]) == 1
    assert figures.value("ciworker_pool_taken_total", entry="recent") == 1
    _, out, _ = await command("ciworker", "doctor", "--json", env=worker.environment)
    assert [found["ok"] for found in json.loads(out) if found["check"] == "pool"] == [True]


async def test_after_a_kill_the_same_containers_come_back_started(worker: Worker) -> None:
    """Black was used last, and green's place comes first: neither is made anew."""
    await ran_in(worker, "green")
    await parked(worker, 2)
    await ran_in(worker, "black")
    async with asyncio.timeout(DEADLINE):
        while len(set(keys := await held(worker))) < 2:
            await asyncio.sleep(0.02)
    before = await member_ids(worker)
    await worker.kill()
    async with asyncio.timeout(DEADLINE):
        while await member_ids(worker):  # their stdin has ended
            await asyncio.sleep(0.02)
    await worker.start()
    assert await held(worker) == keys
    assert await member_ids(worker) == before


async def test_one_that_the_operator_removes_goes_at_once_and_its_places_hold_others(
    worker: Worker,
) -> None:
    await ran_in(worker, "green")
    (green,) = [environment["key"] for environment in await environments(worker)]
    await until_held(worker, green)
    await ran_in(worker, "black")
    (black,) = {environment["key"] for environment in await environments(worker)} - {green}
    await until_held(worker, green, black)
    code, out, err = await command("ciworker", "env", "remove", green[:12], env=worker.environment)
    assert code == 0, err
    await until_held(worker, black)
    assert len(await worker.images()) == 1
    code, out, err = await command("ciworker", "env", "prune", env=worker.environment)
    assert (code, out.decode()) == (0, f"removed {black[:12]}\n"), err
    await until_states(worker, "no_environment", "no_environment")
    assert await worker.images() == []
    assert await worker.containers() == []
    await ran_in(worker, "green")
    await until_held(worker, green)

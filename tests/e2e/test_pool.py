"""The pool on a real engine: by hand stopped, removed, changed and added members; jobs that take
one; the operator's commands.
"""

import asyncio
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, docker
from tests.e2e.follower import WAIT, let_go
from tests.e2e.test_metrics import scrape

TREE = Path(__file__).parents[2]
LIMITS = {"job_memory": "256m", "job_cpus": "1", "resync_interval": "10m"}
SAME = ("CapAdd", "CapDrop", "SecurityOpt", "ReadonlyRootfs", "Privileged", "PidsLimit", "Tmpfs",
        "NetworkMode", "Init", "ShmSize", "LogConfig", "Binds", "Mounts", "RestartPolicy",
        "Memory", "MemorySwap", "NanoCpus", "AutoRemove")  # fmt: skip


def pool(**entry: Any) -> str:
    return json.dumps([{"name": "tea", "size": 2, **entry}])


@pytest.fixture
async def brewing(new_worker: WorkerFactory) -> Worker:
    """A worker with two members, both parked."""
    worker = new_worker(pool=pool(), **LIMITS)
    await worker.start()
    await parked(worker, 2)
    return worker


async def status(worker: Worker) -> dict[str, Any]:
    code, report = await worker.call("GET", "/pool")
    assert code == 200, report
    found: dict[str, Any] = report
    return found


async def states(worker: Worker) -> list[str]:
    return [member["state"] for member in (await status(worker))["members"]]


async def until_states(worker: Worker, *wanted: str) -> None:
    async with asyncio.timeout(DEADLINE):
        while sorted(await states(worker)) != sorted(wanted):
            await asyncio.sleep(0.02)


async def parked(worker: Worker, count: int) -> None:
    """Wait until so many are, and none is in any other state."""
    await until_states(worker, *["parked"] * count)


async def member_ids(worker: Worker) -> dict[str, str]:
    """Container ids by name, as docker tells them, of those that run."""
    listed = await docker(
        "ps", "--no-trunc", "--filter", f"label=ciworker.instance={worker.instance}",
        "--filter", "label=ciworker.kind=pool", "--format", "{{.Names}} {{.ID}}",
    )  # fmt: skip
    return dict(line.split() for line in listed.decode().splitlines())


async def inspected(container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await docker("inspect", container))[0]
    return found


async def told(worker: Worker) -> dict[str, Any]:
    """What the log of a worker that listens says of the resync at its last start."""
    async with asyncio.timeout(DEADLINE):
        while True:
            lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
            starts = [line for line in lines if line["event"] == "listening"]
            resyncs = [line for line in lines if line["event"] == "resync"]
            if len(resyncs) >= len(starts):
                found: dict[str, Any] = resyncs[-1]
                return found
            await asyncio.sleep(0.02)


async def resynced(worker: Worker) -> dict[str, list[str]]:
    """The buckets that are not empty."""
    code, report = await worker.call("POST", "/resync")
    assert code == 200, report
    return {name: value for name, value in report.items() if isinstance(value, list) and value}


# -- the five cases ----------------------------------------------------------------------------


async def test_a_stopped_member_is_started_again_and_a_matching_one_left_alone(
    brewing: Worker,
) -> None:
    before = await member_ids(brewing)
    one, two = sorted(before)
    born = (await inspected(two))["State"]["StartedAt"]
    await docker("stop", "--time", "0", one)
    async with asyncio.timeout(DEADLINE):
        while (await member_ids(brewing)) != before:
            await asyncio.sleep(0.02)
    await parked(brewing, 2)
    assert (await inspected(two))["State"]["StartedAt"] == born
    assert await resynced(brewing) == {"unchanged": [one, two]}
    assert (await brewing.run("exit 0"))["reason"] == "passed"


async def test_a_removed_member_is_created_again(brewing: Worker) -> None:
    before = await member_ids(brewing)
    one, two = sorted(before)
    await docker("rm", "-f", one)
    async with asyncio.timeout(DEADLINE):
        while len(after := await member_ids(brewing)) < 2 or after[one] == before[one]:
            await asyncio.sleep(0.02)
    await parked(brewing, 2)
    assert after[two] == before[two]


async def test_a_member_with_another_hash_is_recreated(brewing: Worker, image: str) -> None:
    """Labels can't be changed: one with the same name and another hash takes its place."""
    before = await member_ids(brewing)
    one, two = sorted(before)
    await brewing.stop()
    await docker("rm", "-f", one)
    await docker(
        "create", "-i", "--name", one, "--label", f"ciworker.instance={brewing.instance}",
        "--label", "ciworker.kind=pool", "--label", "ciworker.spec=another", image, "cat",
    )  # fmt: skip
    await brewing.start()
    await parked(brewing, 2)
    after = await member_ids(brewing)
    assert after[one] != before[one]
    assert after[two] == before[two]
    assert (await inspected(one))["Config"]["Labels"]["ciworker.spec"] != "another"
    last = await told(brewing)
    assert (last["recreated"], last["started"]) == ([one], [two])


async def test_settings_that_change_recreate_all_and_fewer_places_remove_the_last(
    brewing: Worker,
) -> None:
    before = await member_ids(brewing)
    one, _ = sorted(before)
    await brewing.stop()
    brewing.set(pool=pool(size=1, memory="300m"))
    await brewing.start()
    await parked(brewing, 1)
    async with asyncio.timeout(DEADLINE):
        while len(await brewing.containers()) > 1:
            await asyncio.sleep(0.02)
    after = await member_ids(brewing)
    assert list(after) == [one]
    assert after[one] != before[one]


async def test_one_that_is_added_by_hand_is_removed(brewing: Worker, image: str) -> None:
    await docker(
        "create", "--name", f"by-hand-{brewing.instance}",
        "--label", f"ciworker.instance={brewing.instance}",
        "--label", "ciworker.kind=pool", image, "true",
    )  # fmt: skip
    code, out, _ = await command("ciworker", "resync", env=brewing.environment)
    assert code == 0
    assert out.decode().splitlines() == [
        f"[resync] removed: by-hand-{brewing.instance}",
        "[resync] unchanged: 2, repairs: 0",
    ]
    await docker(
        "run", "-d", "--label", f"ciworker.instance={brewing.instance}",
        "--label", "ciworker.kind=pool", image, "sleep", "600",
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE):
        while len(await brewing.containers()) > 2:  # the event of its start tells of it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
async def test_after_the_worker_s_end_the_same_containers_come_back_started(
    brewing: Worker, signum: signal.Signals
) -> None:
    before = await member_ids(brewing)
    await brewing.stop(signum)
    async with asyncio.timeout(DEADLINE):
        while await member_ids(brewing):  # their stdin has ended
            await asyncio.sleep(0.02)
    assert sorted(await brewing.containers()) == sorted(before)
    await brewing.start()
    await parked(brewing, 2)
    assert await member_ids(brewing) == before
    assert (await told(brewing))["started"] == sorted(before)
    assert (await brewing.run("echo warm"))["container_id"] in before.values()


# -- jobs --------------------------------------------------------------------------------------


async def test_a_job_takes_a_member_which_is_as_its_own_container_would_be(
    brewing: Worker, image: str
) -> None:
    before = await member_ids(brewing)
    warm = await brewing.submit(f"echo warm; {WAIT}; exit 4", network=False)
    job = await brewing.wait(warm, "running")
    assert job["container_id"] in before.values()
    taken = await inspected(await brewing.container(warm))
    _, report = await brewing.call("GET", "/pool")
    assert [m["job"] for m in report["members"] if m["state"] == "taken"] == [warm]
    await let_go(brewing, warm)
    ended = await brewing.wait(warm)
    assert (ended["reason"], ended["exit_code"], ended["attempt"]) == ("tests_failed", 4, 1)
    assert await brewing.text(warm) == b"warm\n"
    await parked(brewing, 2)
    assert job["container_id"] not in (await member_ids(brewing)).values()

    await brewing.call("POST", "/pool/down")
    cold = await brewing.submit(f"echo cold; {WAIT}", network=False)
    await brewing.wait(cold, "running")
    own = await inspected(await brewing.container(cold))
    assert {key: taken["HostConfig"][key] for key in SAME} == {
        key: own["HostConfig"][key] for key in SAME
    }
    for key in ("User", "Cmd", "Entrypoint", "Env", "Healthcheck", "WorkingDir", "StopSignal",
                "NetworkDisabled"):  # fmt: skip
        assert taken["Config"][key] == own["Config"][key]
    await let_go(brewing, cold)
    await brewing.wait(cold)


async def test_other_limits_are_given_in_place_and_another_network_starts_cold(
    brewing: Worker,
) -> None:
    before = await member_ids(brewing)
    job_id = await brewing.submit(WAIT, memory="128m", cpus=0.5)
    job = await brewing.wait(job_id, "running")
    assert job["container_id"] in before.values()
    limits = (await inspected(job["container_id"]))["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"]) == (128 * 2**20, 128 * 2**20)
    assert limits["NanoCpus"] == 500_000_000
    await let_go(brewing, job_id)
    await brewing.wait(job_id)
    await parked(brewing, 2)
    cold = await brewing.run("exit 0", network=True)
    assert (cold["reason"], cold["attempt"]) == ("passed", 1)
    figures = await scrape(brewing)
    assert figures.value("ciworker_pool_taken_total", entry="tea") == 1
    assert figures.value("ciworker_pool_cold_starts_total") == 1
    assert figures.value("ciworker_pool_refill_seconds_count") == 3
    assert figures.value("ciworker_pool_members", entry="tea", state="parked") == 2
    assert figures.value("ciworker_pool_members", entry="tea", state="wanted") == 2


async def test_many_jobs_share_a_small_pool_and_each_runs_once(new_worker: WorkerFactory) -> None:
    worker = new_worker(pool=pool(size=2), max_jobs="4", **LIMITS)
    await worker.start()
    await parked(worker, 2)
    jobs = [await worker.submit(f"echo {n}") for n in range(16)]
    for n, job_id in enumerate(jobs):
        job = await worker.wait(job_id)
        assert (job["reason"], job["attempt"]) == ("passed", 1)
        assert await worker.text(job_id) == f"{n}\n".encode()
    await parked(worker, 2)
    assert len(await worker.containers()) == 2
    assert "Traceback" not in worker.log.read_text()


# -- what is wrong -----------------------------------------------------------------------------


async def test_without_its_image_the_worker_runs_cold_and_says_so_everywhere(
    new_worker: WorkerFactory, image: str
) -> None:
    name = f"python:none-{Path(image).name.replace(':', '-')}"
    worker = new_worker(pool=pool(image=name, size=1), **LIMITS)
    await worker.start()
    assert (await worker.run("exit 0"))["reason"] == "passed"
    await until_states(worker, "no_image")
    code, out, _ = await command("ciworker", "pool", "status", env=worker.environment)
    assert code == 0
    assert f"tea: 0 of 1 parked; {name}" in out.decode()
    assert "no_image: the engine has no such image: docker pull it" in out.decode()
    figures = await scrape(worker)
    assert figures.value("ciworker_pool_members", entry="tea", state="no_image") == 1
    _, out, _ = await command("ciworker", "doctor", "--json", env=worker.environment)
    (finding,) = [found for found in json.loads(out) if found["check"] == "pool"]
    assert not finding["ok"]
    assert finding["mend"] == f"docker pull {name}"
    await docker("tag", image, name)
    try:
        code, out, _ = await command("ciworker", "resync", env=worker.environment)
        assert "[resync] created: ci-pool-tea-1-" in out.decode()
        await parked(worker, 1)
        _, out, _ = await command("ciworker", "doctor", "--json", env=worker.environment)
        assert [found["ok"] for found in json.loads(out) if found["check"] == "pool"] == [True]
    finally:
        await docker("rmi", name)


async def test_a_pool_larger_than_memory_is_refused_at_the_start_with_the_sum(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(pool=pool(size=5, memory="1g"), max_memory="4g", max_job_memory="2g")
    await worker.spawn()
    assert worker.process is not None
    assert await worker.process.wait() == 2
    said = worker.log.read_text()
    assert "its members would take 5.0 GiB together" in said
    assert "max_memory (4.0 GiB): lower a size or a memory" in said
    assert "Traceback" not in said


async def test_a_member_that_cannot_start_backs_off_and_is_an_error_with_a_name(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(pool=pool(size=1), job_mounts='["/etc:/proc:ro"]', **LIMITS)
    await worker.start()
    await until_states(worker, "backing_off")
    (member,) = (await status(worker))["members"]
    assert member["error"].startswith("Engine")
    assert "/proc" in member["error"]
    assert member["retry_at"] is not None
    async with asyncio.timeout(DEADLINE):
        while (await status(worker))["members"][0]["failures"] < 3:
            await asyncio.sleep(0.05)
    code, out, _ = await command("ciworker", "pool", "up", env=worker.environment)
    assert code == 1
    assert f"[pool] failed: {member['name']}" in out.decode()
    told = [json.loads(line) for line in worker.log.read_text().splitlines()]
    waits = [line["retry_in"] for line in told if line["event"] == "a member of the pool failed"]
    assert waits[:3] == [0.5, 1.0, 2.0]


# -- the operator ------------------------------------------------------------------------------


async def test_down_removes_all_that_the_engine_lists_and_holds_until_up(
    brewing: Worker, image: str
) -> None:
    one, two = sorted(await member_ids(brewing))
    hand = f"by-hand-{brewing.instance}"
    await docker(
        "create", "--name", hand, "--label", f"ciworker.instance={brewing.instance}",
        "--label", "ciworker.kind=pool", image, "true",
    )  # fmt: skip
    assert "unwanted" in await states(brewing)
    code, out, err = await command("ciworker", "pool", "down", env=brewing.environment)
    assert (code, err) == (0, b"")
    assert out.decode().splitlines() == [
        f"[pool] removed: {hand}, {one}, {two}",
        "[pool] unchanged: 0",
    ]
    assert await brewing.containers() == []
    await resynced(brewing)
    await brewing.kill()
    await brewing.start()
    await resynced(brewing)
    assert await brewing.containers() == []
    assert await states(brewing) == ["down", "down"]
    code, out, _ = await command("ciworker", "pool", "status", env=brewing.environment)
    assert out.decode().splitlines()[0] == "the pool is wanted down"
    assert (await brewing.run("exit 0"))["reason"] == "passed"
    code, out, _ = await command("ciworker", "pool", "up", env=brewing.environment)
    assert (code, out.decode().splitlines()) == (
        0,
        [f"[pool] created: {one}, {two}", "[pool] unchanged: 0"],
    )
    code, out, _ = await command("ciworker", "pool", "status", "--json", env=brewing.environment)
    report = json.loads(out)
    assert (code, report["wanted"]) == (0, "up")
    assert {member["state"] for member in report["members"]} == {"parked"}
    assert report == await status(brewing)


async def test_just_has_both_as_recipes(brewing: Worker) -> None:
    just = shutil.which("just", path=str(TREE / ".venv/bin"))
    assert just is not None
    for recipe, said in (("pool-down", "[pool] removed: "), ("pool-up", "[pool] created: ")):
        process = await asyncio.create_subprocess_exec(
            just, recipe, cwd=TREE, env=brewing.environment, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        assert out.decode().startswith(said)


async def test_the_commands_say_when_no_worker_answers(new_worker: WorkerFactory) -> None:
    worker = new_worker()
    await worker.start()
    await worker.stop()
    for verb in ("up", "down", "status"):
        code, out, err = await command("ciworker", "pool", verb, env=worker.environment)
        assert (code, out) == (3, b"")
        assert b"no worker answers" in err


async def test_a_drain_removes_the_members(brewing: Worker) -> None:
    code, out, _ = await command("ciworker", "drain", env=brewing.environment)
    assert code == 0, out
    assert await brewing.containers() == []

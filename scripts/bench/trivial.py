"""S4, S11: a hundred jobs that do nothing, beside xargs and `docker run`; a worker at rest."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence

from ciworker.engine.port import ContainerSpec
from ciworker.engine.sandbox import container_config
from scripts.bench.process import cpu_nanoseconds, memory
from scripts.bench.rounds import Check, Ground, on_a_thread, taking_turns
from scripts.bench.wire import WorkerApi
from scripts.bench.worker import cold_note, cpu, parked, pid, pool, running
from tests.driver import tree

JOBS, AT_ONCE = 100, 4
BESIDE, CPU_A_JOB = 1.0, 0.008
OURS, XARGS = "worker", f"xargs -P{AT_ONCE} docker run --rm"

RESTING, WINDOWS = 6.0, 5  # seconds of each
SHARE, RSS = 0.003, 110e6


def spec(name: str, image: str, labels: Mapping[str, str], command: Sequence[str]) -> ContainerSpec:
    """What the worker asks of the engine for a job, by default."""
    return ContainerSpec(
        name=name,
        image=image,
        command=command,
        labels=labels,
        memory=2 * 2**30,
        cpus=min(2.0, float(len(os.sched_getaffinity(0)))),
        pids=512,
        network=False,
        workspace_size=2**30,
        log_max_size=2**30,
    )


def flags(image: str) -> list[str]:
    """The same for the command line."""
    config = container_config(spec("", image, {}, ()))
    host = config["HostConfig"]
    assert isinstance(host, dict)
    words = ["--init", "--read-only", "--network", host["NetworkMode"], "--user", config["User"]]
    words += ["--memory", host["Memory"], "--memory-swap", host["MemorySwap"]]
    words += ["--pids-limit", host["PidsLimit"], "--shm-size", host["ShmSize"]]
    words += ["--cpus", host["NanoCpus"] / 1e9]
    words += [word for name in host["CapDrop"] for word in ("--cap-drop", name)]
    words += [word for text in host["SecurityOpt"] for word in ("--security-opt", text)]
    words += [word for item in host["Tmpfs"].items() for word in ("--tmpfs", ":".join(item))]
    return [str(word) for word in words]


def under_xargs(image: str) -> Mapping[str, float]:
    began = time.perf_counter()
    words = ["xargs", f"-P{AT_ONCE}", "-I{}", "docker", "run", "--rm", *flags(image), image, "true"]
    subprocess.run(words, input="\n".join(map(str, range(JOBS))), text=True, check=True)
    return {"time": time.perf_counter() - began}


def submitted(port: int, token: str) -> float:
    """Seconds from the submit of the first job to the verdict of the last, at one reader."""
    api, archive = WorkerApi(port, token), tree({"x": "x"})
    events = WorkerApi(port, token).events("/events")
    began = time.perf_counter()
    left = {api.submit({"run": "true"}, archive) for _ in range(JOBS)}
    for frame in events:
        if frame.event == "status" and (job := json.loads(frame.data))["status"] == "completed":
            left.discard(job["id"])
            if not left:
                break
    return time.perf_counter() - began


async def checks(ground: Ground) -> Sequence[Check]:
    """S4."""

    async def ours() -> Mapping[str, float]:
        await worker.nothing_left() if not members else await parked(worker, AT_ONCE)
        before = cpu(worker)
        taken = await on_a_thread(submitted, worker.port, worker.token)()
        return {"time": taken, "CPU": (cpu(worker) - before) / JOBS}

    members = pool(ground, AT_ONCE)
    settings = {"max_jobs": str(AT_ONCE), "max_memory": "64g", "max_job_memory": "2g", **members}
    async with running(ground, "trivial", **settings) as worker:
        contenders = {OURS: ours, XARGS: on_a_thread(under_xargs, ground.image)}
        found = await taking_turns(contenders, ground.few, 0)
    note = "; ".join(filter(None, (found.beside("time", OURS, XARGS, "s"), cold_note())))
    return [
        Check("S4", f"{JOBS} trivial jobs", found.ratios("time", OURS, XARGS), BESIDE, note=note),
        Check("S4", "worker's CPU a job", found.of[OURS, "CPU"], CPU_A_JOB, "ms"),
    ]


async def at_rest(ground: Ground) -> Sequence[Check]:
    """S11."""
    async with running(ground, "resting", max_memory="64g", **pool(ground, AT_ONCE)) as worker:
        await parked(worker, AT_ONCE)
        await worker.run("true")
        await parked(worker, AT_ONCE)
        await asyncio.sleep(RESTING)  # what follows a job is over
        shares, sizes = [], []
        for _ in range(WINDOWS):
            began, before = time.perf_counter(), cpu_nanoseconds(pid(worker))
            await asyncio.sleep(RESTING)
            used = (cpu_nanoseconds(pid(worker)) - before) / 1e9
            shares.append(used / (time.perf_counter() - began))
            sizes.append(float(memory(pid(worker))[0]))
    note = cold_note()
    return [
        Check("S11", "CPU of an idle worker, of a core", shares, SHARE, "%", note=note),
        Check("S11", "its RSS", sizes, RSS, "MB", note=note),
    ]

"""S8: how old a line of a quiet job is when a reader has it, beside `docker run`."""

import asyncio
import subprocess
import time
from collections.abc import Sequence

from scripts.bench.rounds import Check, Ground, Samples, on_a_thread
from scripts.bench.wire import WorkerApi
from scripts.bench.worker import let_go, running, started

LINES = 200
MEDIAN, P99 = 0.0015, 0.005
OURS, DOCKER = "worker", "docker run"
PROGRAM = f"""
import time
for n in range({LINES}):
    time.sleep(0.2)
    print(f"~{{time.time():.6f}}", flush=True)
"""


def docker_run(image: str) -> list[float]:
    """Ages in the order of the lines."""
    words = ["docker", "run", "--rm", "--network", "none", image, "python3", "-c", PROGRAM]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return [time.time() - float(line[1:]) for line in process.stdout]


def read(port: int, token: str, job: str) -> list[float]:
    """Likewise, over the events; as many lines as came at once are as old as they are."""
    ages = []
    for frame in WorkerApi(port, token).events(f"/jobs/{job}/events"):
        if frame.event == "log":
            stamps = [line.partition(b"~")[2] for line in frame.data.splitlines()]
            ages += [frame.at - float(stamp[:17]) for stamp in stamps]
    return ages


async def checks(ground: Ground) -> Sequence[Check]:
    """Both jobs run at the same time: each line of theirs is a round."""
    found = Samples()
    async with running(ground, "age") as worker:
        job, container = await started(worker, PROGRAM)
        reading = asyncio.ensure_future(on_a_thread(read, worker.port, worker.token, job)())
        await let_go(container)
        theirs = await on_a_thread(docker_run, ground.image)()
        for name, ages in ((OURS, await reading), (DOCKER, theirs)):
            for age in ages:
                found.add(name, {"age": age})
    ages, note = found.of[OURS, "age"], found.beside("age", OURS, DOCKER)
    return [
        Check("S8", "age of a line", ages, MEDIAN, "ms", note=note),
        Check("S8", "the same", ages, P99, "ms", centile=99),
    ]

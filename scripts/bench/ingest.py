"""S5: one job of a million lines, until its reader has the last one and the verdict."""

import subprocess
import time
from collections.abc import Mapping, Sequence

from scripts.bench.process import forget_peak, memory
from scripts.bench.readers import Readers, Wanted
from scripts.bench.rounds import Check, Ground, on_a_thread, taking_turns
from scripts.bench.worker import cpu, passed, pid, running
from tests.driver import Worker

LINES = 1_000_000
BESIDE, CPU, GROWTH = 1.15, 1.2, 40e6
OURS, DOCKER = "worker", "docker run > /dev/null"

# In blocks, so that what prints them is not what is measured; 89 bytes with the newline.
PROGRAM = f"""
import sys
for first in range(0, {LINES}, 1000):
    sys.stdout.write("".join(f"~{{n:087}}\\n" for n in range(first, first + 1000)))
"""


def docker_run(image: str) -> Mapping[str, float]:
    began = time.perf_counter()
    words = ["docker", "run", "--rm", "--network", "none", image, "python3", "-c", PROGRAM]
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    return {"time": time.perf_counter() - began}


async def through(worker: Worker) -> Mapping[str, float]:
    forget_peak(pid(worker))
    before, resting = cpu(worker), memory(pid(worker))[0]
    began = time.perf_counter()
    job = await worker.submit("exec python3 program.py", {"program.py": PROGRAM})
    wanted = Wanted(worker.port, f"/api/v1/jobs/{job}/events", worker.token, 1, LINES)
    readers = await Readers.connected(wanted)
    try:
        await readers.done()
        await passed(worker, job, LINES)
    finally:
        await readers.close()
    taken = time.perf_counter() - began
    return {
        "time": taken,
        "CPU": cpu(worker) - before,
        "growth": memory(pid(worker))[1] - resting,
    }


async def checks(ground: Ground) -> Sequence[Check]:
    async def ours() -> Mapping[str, float]:
        return await through(worker)

    async with running(ground, "ingest", log_limit="1g") as worker:
        contenders = {OURS: ours, DOCKER: on_a_thread(docker_run, ground.image)}
        found = await taking_turns(contenders, ground.few)
    note = found.beside("time", OURS, DOCKER, "s")
    return [
        Check("S5", "a million lines, stored and shown", found.ratios("time", OURS, DOCKER),
              BESIDE, note=note),
        Check("S5", "worker's CPU for them", found.of[OURS, "CPU"], CPU, "s"),
        Check("S5", "RSS at its peak, over that before", found.of[OURS, "growth"], GROWTH, "MB"),
    ]  # fmt: skip

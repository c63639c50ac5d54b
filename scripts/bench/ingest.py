"""S5: one job of a million lines, until its reader has the last one and the verdict.

Also with secrets to mask, as many as a job may well have, in lines that hold none.
"""

import json
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence

from ciworker.domain.masking import Mask
from ciworker.domain.secrets import Secret
from scripts.bench.process import forget_peak, memory
from scripts.bench.readers import Readers, Wanted
from scripts.bench.rounds import Check, Ground, on_a_thread, taking_turns
from scripts.bench.worker import cpu, passed, pid, running
from tests.driver import Worker

LINES = 1_000_000
BESIDE, CPU, GROWTH = 1.15, 1.2, 40e6
OURS, DOCKER, MASKING = "worker", "docker run > /dev/null", "worker, 20 secrets"
BESIDE_MASKING = 1.3
MASKED = 200e6  # bytes a second, of the masking alone
SECRETS = {f"SECRET_{n}": secrets.token_urlsafe(30) for n in range(20)}

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


def masking_alone() -> list[float]:
    """Bytes a second in which all forms of the secrets are looked for, a few times."""
    mask = Mask([Secret(value) for value in SECRETS.values()])
    lines, figures = b"".join(b"~%087d\n" % n for n in range(735)), []  # a read's worth of them
    for _ in range(5):
        began, rounds = time.perf_counter(), 2_000
        for _ in range(rounds):
            mask.masked(lines)
        figures.append(rounds * len(lines) / (time.perf_counter() - began))
    return figures


async def through(worker: Worker, **spec: object) -> Mapping[str, float]:
    forget_peak(pid(worker))
    before, resting = cpu(worker), memory(pid(worker))[0]
    began = time.perf_counter()
    job = await worker.submit("exec python3 program.py", {"program.py": PROGRAM}, **spec)
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

    async def masking() -> Mapping[str, float]:
        return await through(worker, secrets=list(SECRETS))

    file = ground.folder / "secrets.toml"
    file.touch(0o600)
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in SECRETS.items()))
    settings = {"secrets_file": str(file), "secret_names": json.dumps(list(SECRETS))}
    async with running(ground, "ingest", log_limit="1g", **settings) as worker:
        bare = on_a_thread(docker_run, ground.image)
        contenders = {OURS: ours, DOCKER: bare, MASKING: masking}
        found = await taking_turns(contenders, ground.few)
    note = found.beside("time", OURS, DOCKER, "s")
    return [
        Check("S5", "a million lines, stored and shown", found.ratios("time", OURS, DOCKER),
              BESIDE, note=note),
        Check("S5", "the same, with 20 secrets to mask", found.ratios("time", MASKING, DOCKER),
              BESIDE_MASKING, note=found.beside("time", MASKING, DOCKER, "s")),
        Check("S5", "looking for 20 secrets, alone, in bytes", masking_alone(), MASKED, "M/s",
              least=True),
        Check("S5", "worker's CPU for them", found.of[OURS, "CPU"], CPU, "s"),
        Check("S5", "RSS at its peak, over that before", found.of[OURS, "growth"], GROWTH, "MB"),
    ]  # fmt: skip

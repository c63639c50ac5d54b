"""S10: pytest of three trivial tests, from the submit to the verdict, beside pytest on the host.

All run the same files of pytest, the bench's own: containers have them as a read-only mount. So
does a job in a parked environment, which is of a setup that leaves nothing. What the parking saves
is told by a job that does nothing, there and on a worker without a pool.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from scripts.bench.rounds import Broken, Check, Contender, Ground, on_a_thread, taking_turns
from scripts.bench.wire import WorkerApi
from scripts.bench.worker import POOL, cold_note, parked, pool, running
from tests.driver import Worker, tree

BESIDE, BESIDE_COLD = 1.5, 0.7
OURS, BARE = "worker", "bare pytest"
PARKED = "parked environment"
NOTHING, NOTHING_COLD = "one that does nothing there", "in an environment started cold"
RECENT = {POOL: json.dumps([{"name": "bench", "environments": True, "size": 1}])}
PACKAGES = Path(pytest.__file__).parents[1]
MOUNTED = "/packages"
RUN = "python3 -m pytest -q"
FILES = {
    "test_three.py": "".join(f"def test_{n}():\n    assert {n} + 1 == {n + 1}\n" for n in range(3))
}


def variables(packages: str) -> dict[str, str]:
    """No plugins: those that a host happens to have would be what is measured."""
    return {"PYTHONPATH": packages, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}


def bare(folder: Path) -> Mapping[str, float]:
    """By the host's own interpreter of the same name."""
    began = time.perf_counter()
    words = [sys.executable, *RUN.split()[1:]]
    subprocess.run(
        words, cwd=folder, env={**os.environ, **variables(str(PACKAGES))}, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return {"time": time.perf_counter() - began}


def submitted(port: int, token: str, run: str, setup: Sequence[str]) -> Mapping[str, float]:
    api, archive = WorkerApi(port, token), tree(FILES)
    began = time.perf_counter()
    job = api.submit({"run": run, "setup": setup}, archive)
    [*_, end] = api.events(f"/jobs/{job}/events")
    taken = time.perf_counter() - began
    if (verdict := json.loads(end.data))["success"] is not True:
        raise Broken(f"the tests did not pass: {verdict['message']}")
    return {"time": taken}


def of(worker: Worker, members: int, run: str = RUN, setup: Sequence[str] = ()) -> Contender:
    """A job at that worker; its turn is over once nothing follows it, so that it hinders nobody."""

    async def turn() -> Mapping[str, float]:
        found = await on_a_thread(submitted, worker.port, worker.token, run, setup)()
        await (parked(worker, members) if members else worker.nothing_left())
        return found

    return turn


async def checks(ground: Ground) -> Sequence[Check]:
    packages = {
        "job_env": json.dumps(variables(MOUNTED)),
        "job_mounts": json.dumps([f"{PACKAGES}:{MOUNTED}:ro"]),
    }
    folder = ground.folder / "bare"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    async with (
        running(ground, "pytests", **packages, **pool(ground, 1)) as plain,
        running(ground, "recent", **packages, **RECENT) as recent,
        running(ground, "cold", **packages) as cold,
    ):
        await parked(plain, 1)
        contenders = {
            OURS: of(plain, 1),
            BARE: on_a_thread(bare, folder),
            PARKED: of(recent, 1, setup=["true"]),
            NOTHING: of(recent, 1, "true", setup=["true"]),
            NOTHING_COLD: of(cold, 0, "true", setup=["true"]),
        }
        found = await taking_turns(contenders, ground.rounds)
    note = "; ".join(filter(None, (found.beside("time", OURS, BARE), cold_note())))
    return [
        Check("S10", "three tests, submit to verdict",
              found.ratios("time", OURS, BARE), BESIDE, note=note),
        Check("S10", "the same in a parked environment",
              found.ratios("time", PARKED, BARE), BESIDE,
              note=found.beside("time", PARKED, BARE)),
        Check("S10", "one that does nothing there, beside a cold start",
              found.ratios("time", NOTHING, NOTHING_COLD), BESIDE_COLD,
              note=found.beside("time", NOTHING, NOTHING_COLD)),
    ]  # fmt: skip

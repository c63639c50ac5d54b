"""S10: pytest of three trivial tests, from the submit to the verdict, beside pytest on the host.

Both run the same files of pytest, the bench's own: containers have them as a read-only mount.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from scripts.bench.rounds import Broken, Check, Ground, on_a_thread, taking_turns
from scripts.bench.wire import WorkerApi
from scripts.bench.worker import cold_note, parked, pool, running
from tests.driver import tree

BESIDE = 1.5
OURS, BARE = "worker", "bare pytest"
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


def submitted(port: int, token: str) -> Mapping[str, float]:
    api, archive = WorkerApi(port, token), tree(FILES)
    began = time.perf_counter()
    job = api.submit({"run": RUN}, archive)
    [*_, end] = api.events(f"/jobs/{job}/events")
    taken = time.perf_counter() - began
    if (verdict := json.loads(end.data))["success"] is not True:
        raise Broken(f"the tests did not pass: {verdict['message']}")
    return {"time": taken}


async def checks(ground: Ground) -> Sequence[Check]:
    async def ours() -> Mapping[str, float]:
        await parked(worker, 1)
        return await on_a_thread(submitted, worker.port, worker.token)()

    settings = {
        "job_env": json.dumps(variables(MOUNTED)),
        "job_mounts": json.dumps([f"{PACKAGES}:{MOUNTED}:ro"]),
        **pool(ground, 1),
    }
    folder = ground.folder / "bare"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    async with running(ground, "pytests", **settings) as worker:
        contenders = {OURS: ours, BARE: on_a_thread(bare, folder)}
        found = await taking_turns(contenders, ground.rounds)
    note = "; ".join(filter(None, (found.beside("time", OURS, BARE), cold_note())))
    ratios = found.ratios("time", OURS, BARE)
    return [Check("S10", "three tests, submit to verdict", ratios, BESIDE, note=note)]

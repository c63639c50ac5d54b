"""Workers that are measured, from outside."""

import contextlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from ciworker.settings import Settings
from scripts.bench.process import cpu_seconds
from scripts.bench.rounds import Broken, Ground
from tests.driver import Worker, docker, touch

GO = "until [ -e /workspace/go ]; do sleep 0.02; done; "
POOL = "pool"


@contextlib.contextmanager
def ground(image: str) -> Iterator[Ground]:
    """Where a bench works, with a folder that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="ciworker-bench-") as folder:
        yield Ground(image, Path(folder))


@contextlib.asynccontextmanager
async def running(ground: Ground, name: str, **settings: str) -> AsyncIterator[Worker]:
    """A worker of its own, within the block."""
    worker = Worker(ground.folder / name, {"default_image": ground.image, **settings})
    try:
        await worker.start()
        yield worker
    finally:
        await worker.destroy()


def has_pool() -> bool:
    """Whether the worker knows that setting."""
    return POOL in Settings.model_fields


def pool(ground: Ground, size: int) -> dict[str, str]:
    """Settings with which so many containers are parked; none where there is no pool yet."""
    member = {"name": "bench", "image": ground.image, "size": size}
    return {POOL: json.dumps([member])} if has_pool() else {}


def cold_note() -> str:
    return "" if has_pool() else "cold: there is no pool yet"


async def parked(worker: Worker, members: int) -> None:
    """Wait until so many containers of the worker run, where there is a pool."""
    while has_pool():
        listed = await docker(
            "ps", "--quiet", "--filter", f"label=ciworker.instance={worker.instance}",
            "--filter", "label=ciworker.kind=pool",
        )  # fmt: skip
        if len(listed.split()) >= members:
            return


def pid(worker: Worker) -> int:
    assert worker.process is not None
    return worker.process.pid


def cpu(worker: Worker) -> float:
    """Seconds that its process has used."""
    return cpu_seconds(pid(worker))


async def started(worker: Worker, program: str, **spec: object) -> tuple[str, str]:
    """A job that runs a Python program once it is let go: its id, and its container's name."""
    job = await worker.submit(f"{GO}python3 program.py", {"program.py": program}, **spec)
    await worker.wait(job, "running")
    return job, await worker.container(job)


async def let_go(container: str) -> None:
    await touch(container)


async def passed(worker: Worker, job: str, lines: int) -> None:
    """Wait for its end.

    Raises:
        Broken: it did not pass, or its log has not so many lines.
    """
    found = await worker.wait(job, within=180)
    if not found["success"] or found["log_lines"] != lines:
        raise Broken(f"job {job}: {found['message']}, {found['log_lines']} lines, not {lines}")


def docker_socket() -> str:
    """Of the engine that the environment names.

    Raises:
        Broken: it is not on this machine.
    """
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        raise Broken(f"the engine at {host} is not on this machine: its clock would differ")
    return host.removeprefix("unix://")

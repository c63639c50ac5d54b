"""Jobs that take whatever they can get, for tests and benches: only their containers bound them."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.driver import Worker


@dataclass(frozen=True)
class Hostile:
    """A job, and how it has to end.

    words: what its message says. forever: it ends only when it is stopped, within its timeout.
    """

    run: str
    reason: str
    words: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    memory: str = "256m"
    forever: bool = False

    async def submit(self, worker: Worker, timeout: str) -> str:
        return await worker.submit(
            self.run, self.files or None, memory=self.memory, timeout=timeout
        )


# At its limit it goes on to try, whoever of it is told to end.
_BOMB = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
# A link counts as a file, and costs less memory.
_FILES = """
import itertools, os, sys
os.chdir(sys.argv[1])
open("f", "w").close()
for n in itertools.count():
    os.link("f", str(n))
"""
# Children, grandchildren, and daemons that nobody is the parent of, of sessions of their own, with
# closed streams; all ignore TERM.
_STAYS = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for daemon in (False, True):
    if os.fork() == 0:
        if daemon:
            os.setsid()
        if os.fork() == 0:
            if daemon:
                os.closerange(0, 3)
            time.sleep(3600)
        if daemon:
            os._exit(0)
        time.sleep(3600)
print("all are there", flush=True)
time.sleep(3600)
"""
STAYS = 6  # processes of it, with the shell that runs the job, that wait

HOSTILE: Mapping[str, Hostile] = {
    "fork bomb": Hostile(
        "exec python3 bomb.py", "timed_out", ("timeout", "its limit of 64 processes", "job_pids"),
        {"bomb.py": _BOMB}, forever=True,
    ),
    "processes": Hostile(
        "for n in $(seq 2000); do sleep 3600 & done", "tests_failed",
        ("exit code 2", "its limit of 64 processes", "job_pids"),
    ),
    "memory": Hostile(
        "exec python3 -c 'b\"x\" * 2**31'", "out_of_memory", ("its limit of 256 MiB", "--memory")
    ),
    "full workspace": Hostile(
        "head -c 2G /dev/zero >big", "tests_failed",
        ("exit code 1", "/workspace is full (16.0 MiB)", "workspace_size"),
    ),
    "full tmp": Hostile(
        "head -c 2G /dev/zero >/tmp/big", "tests_failed",
        ("exit code 1", "/tmp is full (16.0 MiB)", "workspace_size"),
    ),
    "files": Hostile(
        "python3 files.py .", "tests_failed",
        ("exit code 1", "/workspace holds as many files as it may (200,000)"), {"files.py": _FILES},
    ),
    "tmp files": Hostile(
        "python3 files.py /tmp", "tests_failed",
        ("exit code 1", "/tmp holds as many files as it may (200,000)"), {"files.py": _FILES},
    ),
    "flood": Hostile("yes", "log_limit", ("log_limit",)),
    "busy": Hostile(
        "for n in 1 2 3 4; do while :; do :; done & done; wait", "timed_out", ("timeout",),
        forever=True,
    ),
    "stays": Hostile(
        "exec python3 stays.py", "timed_out", ("timeout",), {"stays.py": _STAYS}, forever=True
    ),
}  # fmt: skip
SETTINGS = {
    "job_pids": "64",
    "workspace_size": "16m",
    "stop_grace": "1s",
    "log_limit": "4m",
}


@asynccontextmanager
async def asked_all_the_while(worker: Worker) -> AsyncIterator[list[float]]:
    """Calls of the API, one after the other: the seconds that each took; all were answered."""
    took: list[float] = []

    async def ask() -> None:
        while True:
            for path in ("/jobs?limit=20", "/jobs?status=running"):
                began = time.perf_counter()
                status, answer = await worker.call("GET", path)
                took.append(time.perf_counter() - began)
                assert status == 200, answer
            await asyncio.sleep(0.01)

    task = asyncio.create_task(ask())
    try:
        yield took
        assert not task.done(), task.exception()
        assert took
    finally:
        task.cancel()
        await asyncio.wait([task])


def processes_of(container: str) -> Sequence[int]:
    """The host's own processes that are in the control group of a container, by its full id."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                groups = (process / "cgroup").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if container in groups:
                found.append(int(process.name))
    return found

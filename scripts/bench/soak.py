"""Short jobs in a row: what the worker holds stays flat within 5 % once it has settled.

Sampled from outside whenever no job is under way: /proc, Docker, the data folder. Only the tasks
are counted by the process itself, when it is told to.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import NamedTuple

from tests.driver import Worker

SETTLED = 500  # jobs after which it has to be flat
BASELINE = 3  # samples from then on that the later ones are compared with
ALLOWED = 0.05
SLACK = 2  # of small counts, of which one more is more than 5 %
AT_ONCE = 4
EVERY = 100  # jobs between two samples


@dataclass(frozen=True)
class Sample:
    """rss: KiB. files: in the data folder, beside the workspaces of jobs that are stored."""

    jobs: int
    rss: int
    fds: int
    threads: int
    tasks: int
    containers: int
    files: int


class Counted(Worker):
    """A worker that writes the number of its tasks to a file when it gets SIGUSR1."""

    async def spawn(self) -> None:
        code = f"""
import asyncio, signal
from pathlib import Path
import ciworker.app
from ciworker.__main__ import main
real = ciworker.app.Worker._handle_signals
def handle(worker):
    real(worker)
    def count():
        Path({str(self._counts)!r}).write_text(str(len(asyncio.all_tasks())))
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, count)
ciworker.app.Worker._handle_signals = handle
main()
"""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, "serve",
                env=self.environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def _counts(self) -> Path:
        return self.data_dir.parent / "tasks"

    async def sample(self, jobs: int) -> Sample:
        """Once nothing is under way."""
        await self.nothing_left()
        assert self.process is not None
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(
            line.split(":", 1) for line in (proc / "status").read_text().splitlines() if ":" in line
        )
        files = [path for path in self.data_dir.rglob("*") if path.is_file()]
        return Sample(
            jobs,
            int(status["VmRSS"].split()[0]),
            len(list((proc / "fd").iterdir())),
            int(status["Threads"]),
            await self._tasks(),
            len(await self.containers()),
            len(files) - jobs,
        )

    async def _tasks(self) -> int:
        self._counts.unlink(missing_ok=True)
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not self._counts.exists() or not self._counts.read_text():
                await asyncio.sleep(0.01)
        return int(self._counts.read_text())


async def measure(worker: Counted, jobs: int, every: int = EVERY) -> list[Sample]:
    """Run so many jobs, or a few more, AT_ONCE together; samples, every so many jobs."""
    samples, done = [], 0
    while done < jobs:
        of_each = -(-min(every, jobs - done) // AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(in_a_row(worker, of_each))
        done += AT_ONCE * of_each
        samples.append(await worker.sample(done))
        print_row(samples[-1])
    return samples


async def soaked(jobs: int) -> list[Sample]:
    """What a worker of its own held."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        worker = Counted(Path(folder) / "worker", settings(os.environ["CI_TEST_IMAGE"]))
        try:
            await worker.start()
            return await measure(worker, jobs)
        finally:
            await worker.destroy()


def settings(image: str) -> dict[str, str]:
    return {"default_image": image, "max_jobs": str(AT_ONCE)}


async def in_a_row(worker: Worker, jobs: int) -> None:
    for number in range(jobs):
        job = await worker.submit(f"echo {number}; exit {number % 2}")
        async with worker.events(f"/jobs/{job}/events") as events:
            ends = [frame async for frame in events if frame.event == "end"]
        assert ends[0].json["exit_code"] == number % 2, ends


def print_row(sample: Sample) -> None:
    print("  ".join(f"{value:>10}" for value in astuple(sample)), flush=True)


def judge(samples: Sequence[Sample]) -> bool:
    """Whether it was flat, and had the time to settle."""
    settled = [sample for sample in samples if sample.jobs >= SETTLED]
    if len(settled) <= BASELINE:
        print(f"too few jobs to judge: {SETTLED + BASELINE * EVERY} are needed")
        return False
    grown = growth(settled)
    for name, (usual, most, allowed) in grown.items():
        good = most <= allowed
        print(f"{'PASS' if good else 'MISS'}  {name}: {usual:.0f}, later at most {most}, "
              f"allowed {allowed:.0f}")  # fmt: skip
    return all(found.most <= found.allowed for found in grown.values())


class Grown(NamedTuple):
    """usual: the median of the first BASELINE samples. most: of the later ones."""

    usual: float
    most: int
    allowed: float


def growth(samples: Sequence[Sample]) -> Mapping[str, Grown]:
    """By what was sampled."""
    found = {}
    for field in fields(Sample)[1:]:
        values = [getattr(sample, field.name) for sample in samples]
        usual, most = statistics.median(values[:BASELINE]), max(values[BASELINE:])
        slack = 0 if field.name == "rss" else SLACK
        found[field.name] = Grown(usual, most, max(usual * (1 + ALLOWED), usual + slack))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    chosen = parser.parse_args()
    began = time.monotonic()
    print("  ".join(f"{field.name:>10}" for field in fields(Sample)))
    samples = asyncio.run(soaked(chosen.jobs))
    print(f"{chosen.jobs} jobs in {time.monotonic() - began:.0f} s")
    sys.exit(0 if judge(samples) else 1)


if __name__ == "__main__":
    main()

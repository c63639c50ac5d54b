"""Thirty hostile jobs at once, beside five honest ones, on one worker and engine.

The honest ones pass, the API answers, each hostile one ends as its limits have it, and nothing is
left of any. The calls are made by this process, one after the other, and share the machine's cores
with everything that is measured.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from scripts.bench import interrupt
from scripts.bench.process import memory
from scripts.bench.rounds import Ground, centile
from scripts.bench.worker import ground, pid, running
from tests.driver import docker
from tests.hostile import HOSTILE, SETTINGS, Hostile, asked_all_the_while, processes_of

# Five of each.
KINDS = (
    ("fork bomb", "processes"),
    ("memory",),
    ("full workspace", "full tmp", "files", "tmp files"),
    ("flood",),
    ("busy",),
    ("stays",),
)
OF_EACH = 5
HONEST = 5
TIMEOUT, GRACE = 30.0, 1.0
WITHIN = 600.0  # seconds for all of it, and for those that end by themselves
P99 = 0.2  # seconds
LATE = 10.0  # seconds past deadline and grace: a busy engine has its part in a stop
HONEST_RUN = """
for n in range(100):
    print(n, sum(range(100_000)), flush=True)
"""


@dataclass(frozen=True)
class Left:
    """What is there of the jobs when all have ended."""

    containers: int
    processes: int
    networks: int


@dataclass(frozen=True)
class Found:
    """What was seen. hostile: the jobs in their end, with what they were; took: of each call."""

    honest: Sequence[dict[str, Any]]
    hostile: Sequence[tuple[Hostile, dict[str, Any]]]
    at_once: int
    took: Sequence[float]
    left: Left
    rss: tuple[int, int]


def chosen() -> Sequence[Hostile]:
    """Thirty of them, of all kinds."""
    return [HOSTILE[names[n % len(names)]] for names in KINDS for n in range(OF_EACH)]


async def measured(place: Ground) -> Found:
    before = await networks()
    settings = {**SETTINGS, "job_pids": "512", "log_limit": "16m", "max_jobs": "35"}
    async with running(place, "hostile", **settings) as worker:
        async with asked_all_the_while(worker) as took:
            everyone = chosen()
            bad = [await hostile.submit(worker, timeout_of(hostile)) for hostile in everyone]
            good = [
                await worker.submit("python3 run.py", {"run.py": HONEST_RUN}, memory="256m")
                for _ in range(HONEST)
            ]
            jobs = [await worker.wait(job, within=WITHIN) for job in (*good, *bad)]
            await worker.nothing_left()
        honest, hostile = jobs[:HONEST], jobs[HONEST:]
        left = Left(
            len(await worker.containers()),
            sum(len(processes_of(job["container_id"])) for job in jobs),
            len(await networks() - before),
        )
        return Found(
            honest,
            list(zip(everyone, hostile, strict=True)),
            most_at_once(jobs),
            took,
            left,
            memory(pid(worker)),
        )


def timeout_of(hostile: Hostile) -> str:
    return f"{TIMEOUT if hostile.forever else WITHIN:g}s"


async def networks() -> set[str]:
    return set((await docker("network", "ls", "--quiet")).decode().split())


def most_at_once(jobs: Sequence[dict[str, Any]]) -> int:
    """How many of them ran together at some time."""
    starts = [(at(job["started_at"]), 1) for job in jobs]
    ends = [(at(job["finished_at"]), -1) for job in jobs]
    now = most = 0
    for _, step in sorted(starts + ends):
        now += step
        most = max(most, now)
    return most


def at(instant: str) -> float:
    return datetime.fromisoformat(instant).timestamp()


def latest(found: Found) -> tuple[float, str]:
    """Seconds by which the last of those that were stopped ended past its deadline and grace.

    And which it was.
    """
    return max(
        (at(job["finished_at"]) - at(job["deadline_at"]) - GRACE, name)
        for name, kind in HOSTILE.items()
        for hostile, job in found.hostile
        if hostile is kind and job["reason"] == "timed_out"
    )


def judge(found: Found) -> bool:
    """Print a line for each promise: whether all were kept."""
    passed = sum(job["reason"] == "passed" for job in found.honest)
    reasons = Counter(job["reason"] for _, job in found.hostile)
    unlike = [job["message"] for hostile, job in found.hostile if job["reason"] != hostile.reason]
    (late, which), p99 = latest(found), centile(found.took, 99)
    p50, most = centile(found.took, 50), max(found.took)
    left, (rss, peak) = found.left, found.rss
    lines = [
        (passed == HONEST, f"honest jobs passed: {passed} of {HONEST}"),
        (p99 < P99, f"{len(found.took)} calls of the API, in ms: p50 {p50 * 1000:.1f}, "
                    f"p99 {p99 * 1000:.1f} (below {P99 * 1000:.0f}), max {most * 1000:.1f}"),
        (not unlike, "hostile jobs ended: " + ", ".join(f"{n} {why}" for why, n in
                                                         sorted(reasons.items()))),
        (late < LATE, f"the latest {late:.1f} s past its deadline and grace ({which})"),
        (left == Left(0, 0, 0), f"left in Docker: {left.containers} containers, {left.processes} "
                                f"processes, {left.networks} networks"),
    ]  # fmt: skip
    print("\n".join(f"{'PASS' if good else 'MISS'}  {text}" for good, text in lines))
    for message in unlike:
        print(f"      not as it had to: {message}")
    print(f"      at most {found.at_once} jobs at once; the worker holds {rss / 1e6:.0f} MB, "
          f"at its peak {peak / 1e6:.0f} MB")  # fmt: skip
    return all(good for good, _ in lines)


async def everything() -> bool:
    with ground(os.environ["CI_TEST_IMAGE"]) as place:
        return judge(await measured(place))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    sys.exit(0 if interrupt.run(everything()) else 1)


if __name__ == "__main__":
    main()

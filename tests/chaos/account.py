"""What is lost, repeated, stuck or left behind, counted after the faults."""

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.driver import DEADLINE, TERMINAL, Worker
from tests.e2e.follower import check_numbers, stored, told_end_once

Lines = Mapping[str, list[str]]
OF_THE_SHELL = ("Terminated", "Killed")  # what it says of a command that a signal ended


def counting(lines: int) -> str:
    """A shell loop that prints so many numbered lines on each stream."""
    return f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo out $i; echo err $i >&2; done"


def counted(lines: int) -> Lines:
    """What `counting` prints, by stream."""
    numbers = range(1, lines + 1)
    return {"stdout": [f"out {n}" for n in numbers], "stderr": [f"err {n}" for n in numbers]}


@dataclass
class Account:
    """Counts of one test; see the fixture `row`."""

    jobs: int = 0
    lines: int = 0
    lost: int = 0
    repeated: int = 0
    stuck: int = 0
    orphaned: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    async def take(
        self,
        worker: Worker,
        job_id: str,
        known: Lines,
        *,
        within: float = DEADLINE,
        setup: bool = False,
        incomplete: bool = False,
    ) -> None:
        """Wait for the job's end and compare its stored lines with what it is known to print.

        setup: lines of its setup come first. incomplete: some may be missing at the end, as the log
        itself says then; any other log that says so fails.
        """
        self.jobs += 1
        try:
            job = await worker.wait(job_id, within=within)
        except TimeoutError:
            self.stuck += 1
            return
        told_end_once(job)
        self.reasons[job["reason"]] += 1
        assert incomplete or not job["log_incomplete"], job
        await self._compare(worker, job_id, known, whole=not job["log_incomplete"], setup=setup)

    async def _compare(
        self, worker: Worker, job_id: str, known: Lines, *, whole: bool, setup: bool
    ) -> None:
        """The stored lines, by stream; `whole`: none may be missing at the end."""
        records = await stored(worker, job_id)
        check_numbers(records)
        for stream, expected in known.items():
            own = [r["text"] for r in records if r["stream"] == stream]
            if setup and expected[0] in own:
                own = own[own.index(expected[0]) :]
            found = [text for text in own if text not in OF_THE_SHELL]
            wanted = expected if whole else expected[: len(found)]
            self.lines += len(found)
            self.lost += (Counter(wanted) - Counter(found)).total()
            self.repeated += (Counter(found) - Counter(wanted)).total()
            assert found == wanted, f"{job_id}: {stream} is in another order"

    async def leftovers(self, worker: Worker) -> None:
        """Containers, images and spool files that no job has; jobs that are not terminal."""
        jobs = await all_jobs(worker)
        self.stuck += sum(job["status"] not in TERMINAL for job in jobs)
        try:
            await worker.nothing_left()
        except TimeoutError:
            self.orphaned += len(await worker.containers())
        self.orphaned += len(await worker.images())
        ids = {job["id"] for job in jobs}
        spool = await asyncio.to_thread(lambda: list((worker.data_dir / "spool").iterdir()))
        self.orphaned += sum(path.name.partition(".")[0] not in ids for path in spool)

    def counts(self) -> dict[str, int]:
        """For `row`."""
        return {
            "jobs": self.jobs, "lines": self.lines, "lost": self.lost, "repeated": self.repeated,
            "stuck": self.stuck, "orphaned": self.orphaned,
        }  # fmt: skip


async def all_jobs(worker: Worker) -> list[dict[str, str]]:
    """Every job, page by page."""
    jobs: list[dict[str, str]] = []
    cursor = ""
    while True:
        status, page = await worker.call("GET", f"/jobs?limit=500{cursor}")
        assert status == 200, page
        jobs += page["items"]
        if page["next"] is None:
            return jobs
        cursor = f"&cursor={page['next']}"

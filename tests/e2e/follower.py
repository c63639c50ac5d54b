"""A reader of a job's event stream that comes back with its Last-Event-ID, as browsers do."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.driver import DEADLINE, Worker, touch

MARK = b"\x1b]ciworker;"
WAIT = "while [ ! -e /workspace/go ]; do sleep 0.05; done"  # the end of a job that `let_go` ends


class Follower:
    """records: the lines as they came. end: the final job. connections: how often it connected."""

    def __init__(self, worker: Worker, job_id: str, query: str = "") -> None:
        self._worker, self._path = worker, f"/jobs/{job_id}/events{query}"
        self.records: list[dict[str, Any]] = []
        self.end: dict[str, Any] | None = None
        self.connections = 0
        self._last: str | None = None

    async def run(self) -> None:
        """Until the job ends; a worker that is away is asked again."""
        while self.end is None:
            try:
                await self._read()
            except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError):
                await asyncio.sleep(0.05)

    async def has(self, lines: int) -> None:
        """Wait until it has so many lines."""
        async with asyncio.timeout(DEADLINE):
            while len(self.records) < lines:
                await asyncio.sleep(0.01)

    async def _read(self) -> None:
        async with self._worker.events(self._path, self._last) as frames:
            self.connections += 1
            async for frame in frames:
                if frame.event == "log":
                    self.records += frame.records
                    self._last = frame.id
                elif frame.event == "end":
                    self.end = frame.json


@asynccontextmanager
async def following(worker: Worker, job_id: str, query: str = "") -> AsyncIterator[Follower]:
    """A follower at work; at the block's end it has seen the job's end."""
    follower = Follower(worker, job_id, query)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
        async with asyncio.timeout(DEADLINE):
            await task
    finally:
        task.cancel()


async def engine_log(container: str) -> dict[str, bytes]:
    """The engine's own log, by stream, without the start mark."""
    out = await _logs(container, stdout=True)
    mark, _, rest = out.partition(b"\n")
    assert mark.startswith(MARK), mark
    return {"stdout": rest, "stderr": await _logs(container, stdout=False)}


async def _logs(container: str, *, stdout: bool) -> bytes:
    process = await asyncio.create_subprocess_exec(
        "docker", "logs", container,
        stdout=asyncio.subprocess.PIPE if stdout else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL if stdout else asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0
    return out if stdout else err


async def let_go(worker: Worker, job_id: str) -> None:
    """End a job that ends in WAIT."""
    await touch(await worker.container(job_id))


async def stored(worker: Worker, job_id: str) -> list[dict[str, Any]]:
    """The stored lines as records."""
    headers = worker.headers | {"Accept": "application/x-ndjson"}
    async with worker.session.get(f"/api/v1/jobs/{job_id}/log", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) for line in (await answer.read()).splitlines()]


def check_numbers(records: list[dict[str, Any]]) -> None:
    """Every line once, in order, from 1."""
    assert [record["n"] for record in records] == list(range(1, len(records) + 1))


def told_end_once(job: dict[str, Any]) -> None:
    """One terminal state, reached once, and the last of the history."""
    ends = [s for s in job["history"] if s["to"] in ("completed", "cancelled", "failed")]
    assert [step["to"] for step in ends] == [job["status"]], job["history"]
    assert job["history"][-1] == ends[0]

"""What the store's tests make: jobs, chunks, and other processes at the same file."""

import asyncio
import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ulid import ULID

from ciworker.domain.environment import Environment, EnvironmentStatus
from ciworker.domain.job import Job, Kind, Spec, Status
from ciworker.domain.log import Chunk, Cursor, Position, Run, Stream
from ciworker.store.logs import Batch
from ciworker.store.session import Database
from ciworker.store.webhooks import Outbox

OF_A_CONNECTION = "_connection_worker_thread"  # in the name of each of aiosqlite's threads
NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def new_job(number: int = 0, *, memory: int = 2**30, project: str = "tea", **fields: Any) -> Job:
    """A queued job; those with a higher number are younger."""
    spec = Spec("python:3.12-slim", "pytest", 900.0, memory, 2.0, False, project, {"TZ": "UTC"})
    wanted: dict[str, Any] = {
        "id": job_id(number),
        "status": Status.QUEUED,
        "spec": spec,
        "created_at": NOW,
        "mark_token": "token",
        "source": {},
    }
    return Job(**(wanted | fields))


def new_setup(number: int, environment: str = "e" * 64, **fields: Any) -> Job:
    """A queued setup job of the worker's own."""
    return new_job(number, kind=Kind.SETUP, environment=environment, **fields)


def new_environment(key: str = "e" * 64, **fields: Any) -> Environment:
    """One that is absent, as it is when a job first needs it."""
    wanted: dict[str, Any] = {
        "key": key,
        "status": EnvironmentStatus.ABSENT,
        "project": "tea",
        "image": "python:3.12-slim",
        "image_id": "sha256:" + "a" * 64,
        "commands": ("pip install -r requirements.txt",),
        "inputs": {"requirements.txt": "b" * 64},
        "operator": "c" * 64,
        "created_at": NOW,
    }
    return Environment(**(wanted | fields))


def job_id(number: int) -> str:
    return str(ULID.from_int((1 << 90) + number))


def chunk(first: int, *texts: str, at: int = 1000) -> Chunk:
    data = "".join(f"{text}\n" for text in texts).encode()
    return Chunk(first, data, (Run(Stream.STDOUT, at, len(texts), len(data), True),))


def batch(job: str, stored: Chunk, total_bytes: int = 0, attempt: int = 1) -> Batch:
    cursor = Cursor(Position(stored.last, 0), Position(0, 7))
    return Batch(job, attempt, stored, total_bytes or stored.last, cursor)


def nobody() -> Outbox:
    """Tells nobody of a job."""
    return Outbox(lambda _job, _at: (), lambda: None)


async def seed(database: Database, count: int) -> None:
    """The jobs numbered 0 to `count` - 1, at once; every tenth is queued, the others have ended."""
    jobs = [
        {
            "id": job_id(number),
            "status": "completed" if number % 10 else "queued",
            "spec": asdict(new_job().spec),
            "project": f"p{number % 7}",
        }
        for number in range(count)
    ]
    await database.insert(
        "INSERT INTO job (id, status, project, spec, source, priority, memory, attempt, "
        "created_at, kills, oom, log_complete, log_incomplete, mark_token, tar_length) "
        "SELECT value ->> 'id', value ->> 'status', value ->> 'project', value -> 'spec', "
        "'{}', 0, 1, 0, 0, '[]', 0, 0, 0, '', 0 FROM json_each(?)",
        [json.dumps(jobs)],
    )


class Other:
    """Another process that has the database open; it does what it is told, one line at a time."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _OTHER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    async def does(self, statement: str) -> str:
        """Execute it there; what it gives, as text."""
        return await asyncio.to_thread(self._do, statement)

    def _do(self, statement: str) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(statement + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


_OTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
for line in sys.stdin:
    print(connection.execute(line).fetchall(), flush=True)
"""


@contextlib.contextmanager
def other_process(path: Path) -> Iterator[Other]:
    other = Other(path)
    try:
        yield other
    finally:
        other.kill()


async def answer(
    database: Database, statement: str, values: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """What the connection that writes answers, outside of any transaction."""
    rows = await database._writer._driver.execute_fetchall(statement, values)
    return [tuple(row) for row in rows]


def rows(path: Path, statement: str) -> list[Any]:
    """What the file holds, read past all of our code."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(statement).fetchall()


def connections() -> list[threading.Thread]:
    """The threads of the connections that are open."""
    return [thread for thread in threading.enumerate() if OF_A_CONNECTION in thread.name]

"""The schema after all steps is the one that the code describes; files that are not ours."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlmodel import SQLModel

from ciworker.domain.job import Job, Kind, Reason, Spec, Status, Stop
from ciworker.domain.log import Chunk, Cursor, Line, Position, pack_runs
from ciworker.errors import StoreRefused
from ciworker.store import schema
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.logs import LogEnd, LogReader
from ciworker.store.meta import instance_id
from ciworker.store.migrations import STEPS
from ciworker.store.packing import Packer
from ciworker.store.schema import microseconds
from ciworker.store.session import Database
from tests.store.lab import NOW, chunk, job_id, nobody, rows


def described(path: Path) -> dict[str, Any]:
    """All that a file's schema consists of, by table; names of automatic indexes left out."""
    return {
        table: {
            "columns": {row[1:] for row in rows(path, f"PRAGMA table_xinfo({table})")},
            "foreign keys": {row[2:] for row in rows(path, f"PRAGMA foreign_key_list({table})")},
            "indexes": {
                (
                    name if origin == "c" else origin,
                    unique,
                    partial,
                    tuple(row[2:] for row in rows(path, f"PRAGMA index_xinfo({name})") if row[5]),
                    condition(path, name),
                )
                for _, name, unique, origin, partial in rows(path, f"PRAGMA index_list({table})")
            },
        }
        for (table,) in rows(path, "SELECT name FROM sqlite_schema WHERE type = 'table'")
    }


def condition(path: Path, index: str) -> str:
    """The WHERE of a partial index."""
    ((text,),) = rows(path, f"SELECT sql FROM sqlite_schema WHERE name = '{index}'")
    return " ".join((text or "").partition("WHERE")[2].split())


async def test_all_steps_together_make_the_schema_that_the_code_describes(
    path: Path, tmp_path: Path
) -> None:
    await (await Database.open(path)).close()
    engine = create_engine(f"sqlite:///{tmp_path / 'wanted.db'}")
    SQLModel.metadata.create_all(engine)
    engine.dispose()

    wanted = described(tmp_path / "wanted.db")
    assert described(path) == wanted
    assert wanted.keys() == {
        "job", "job_event", "log_chunk", "submission", "token", "session", "meta", "environment",
        "webhook_delivery", "audit",
    }  # fmt: skip
    assert len(wanted["job"]["columns"]) == len(schema.JobRow.model_fields)
    conditions = {index[-1] for index in wanted["job"]["indexes"]}
    assert "status = 'queued' AND waits = 0" in conditions


@pytest.mark.parametrize(
    "drift",
    [
        "ALTER TABLE job ADD COLUMN more INTEGER",
        "DROP INDEX job_queue",
        "CREATE INDEX one_more ON job (project)",
        "ALTER TABLE job_event RENAME COLUMN at TO since",
    ],
)
async def test_the_comparison_sees_a_difference(path: Path, tmp_path: Path, drift: str) -> None:
    """The test above has to be able to fail."""
    await (await Database.open(path)).close()
    before = described(path)

    rows(path, drift)

    assert described(path) != before


async def test_a_file_is_migrated_once_and_says_how_far_it_is(path: Path) -> None:
    await (await Database.open(path)).close()
    await (await Database.open(path)).close()

    assert rows(path, "PRAGMA user_version") == [(len(STEPS),)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


async def test_a_database_from_the_future_is_refused_with_a_sentence(path: Path) -> None:
    await (await Database.open(path)).close()
    rows(path, f"PRAGMA user_version = {len(STEPS) + 4}")
    before = path.read_bytes()

    with pytest.raises(StoreRefused, match=rf"version {len(STEPS) + 4}.*up to {len(STEPS)}: use"):
        await Database.open(path)

    assert path.read_bytes() == before


async def test_a_step_that_fails_leaves_nothing_of_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ("CREATE TABLE half (id INTEGER)", "CREATE NONSENSE")
    monkeypatch.setattr("ciworker.store.migrations.STEPS", (*STEPS, broken))

    with pytest.raises(Exception, match="NONSENSE"):
        await Database.open(path)

    assert rows(path, "SELECT count(*) FROM sqlite_schema") == [(0,)]
    assert rows(path, "PRAGMA user_version") == [(0,)]


async def test_a_later_step_keeps_what_an_earlier_release_stored(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await Database.open(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO meta VALUES ('instance', 'mine')")
    step = ("ALTER TABLE meta ADD COLUMN note VARCHAR", "UPDATE meta SET note = 'moved'")
    monkeypatch.setattr("ciworker.store.migrations.STEPS", (*STEPS, step))

    await (await Database.open(path)).close()

    assert rows(path, "SELECT * FROM meta") == [("instance", "mine", "moved")]
    assert rows(path, "PRAGMA user_version") == [(len(STEPS) + 1,)]


@contextlib.contextmanager
def of_version(path: Path, version: int) -> Iterator[sqlite3.Connection]:
    """A file as that release made it, to be filled with what it wrote."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for step in STEPS[:version]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {version}")
        with connection:
            yield connection


SPEC_1: dict[str, Any] = {
    "image": "python:3.12-slim",
    "run": "pytest -q",
    "timeout": 900.0,
    "memory": 2**30,
    "cpus": 2.0,
    "network": False,
    "project": "tea",
    "env": {"TZ": "UTC"},
}
CHUNK_1 = (
    "job_id, first, count, attempt, total_bytes, out_lines, out_frames, err_lines, err_frames, "
    "runs, data"
)
COLUMNS_1 = (
    "id, status, reason, project, spec, source, priority, memory, attempt, created_at, "
    "stop_cause, stop_at, kills, oom, log_complete, log_incomplete, mark_token, tar_length"
)


def put_job_1(connection: sqlite3.Connection, number: int, status: Status) -> None:
    at = microseconds(NOW)
    values = (
        job_id(number), status.value, "passed" if status is Status.COMPLETED else None, "tea",
        json.dumps(SPEC_1), '{"kind": "tar"}', 5, 2**30, 1, at, "timed_out", at, "[9]", 1, 0, 0,
        "token", 7,
    )  # fmt: skip
    connection.execute(
        f"INSERT INTO job ({COLUMNS_1}) VALUES ({','.join('?' * len(values))})", values
    )
    connection.execute(
        "INSERT INTO job_event (job_id, at, to_status) VALUES (?, ?, ?)",
        (job_id(number), at, status.value),
    )


def job_1(number: int, status: Status) -> Job:
    """What `put_job_1` put there, as it is to be read."""
    return Job(
        id=job_id(number),
        status=status,
        spec=Spec("python:3.12-slim", "pytest -q", 900.0, 2**30, 2.0, False, "tea", {"TZ": "UTC"}),
        created_at=NOW,
        mark_token="token",
        tar_length=7,
        reason=Reason.PASSED if status is Status.COMPLETED else None,
        source={"kind": "tar"},
        priority=5,
        attempt=1,
        stop=Stop(Reason.TIMED_OUT, NOW),
        kills=(9,),
        oom=True,
    )


async def test_what_the_first_release_stored_is_all_there_and_goes_on(path: Path) -> None:
    lines = chunk(1, "a", "b")
    with of_version(path, 1) as connection:
        for number, status in enumerate(Status):
            put_job_1(connection, number, status)
        connection.execute(
            f"INSERT INTO log_chunk ({CHUNK_1}) VALUES (?, 1, 2, 1, 4, 2, 0, 0, 0, ?, ?)",
            (job_id(3), pack_runs(lines.runs), lines.data),
        )
        connection.execute(
            "INSERT INTO submission VALUES ('me', 'key', ?, ?)", (job_id(1), microseconds(NOW))
        )
        connection.execute("INSERT INTO meta VALUES ('instance', 'mine')")

    database = await Database.open(path)
    try:
        await all_of_version_1_is_there(database, lines)
        await a_job_of_version_1_goes_on(Jobs(database, on_change=lambda _: None, outbox=nobody()))
        assert rows(path, "PRAGMA quick_check") == [("ok",)]
    finally:
        await database.close()
    assert rows(path, "PRAGMA user_version") == [(len(STEPS),)]
    assert rows(path, "PRAGMA foreign_key_check") == []


@pytest.mark.rows(17)
@pytest.mark.parametrize("version", range(1, len(STEPS)))
async def test_logs_of_every_earlier_version_are_there_and_can_be_packed(
    path: Path, version: int
) -> None:
    first, second = (chunk(n, *(f"{n} {word}" * 20 for word in "abc")) for n in (1, 4))
    with of_version(path, version) as connection:
        for number, status in ((0, Status.COMPLETED), (1, Status.RUNNING)):
            put_job_1(connection, number, status)
            for part in (first, second):
                total = len(first.data) + (part is second) * len(second.data)
                connection.execute(
                    f"INSERT INTO log_chunk ({CHUNK_1}) VALUES (?, ?, 3, 1, ?, ?, 0, 0, 0, ?, ?)",
                    (job_id(number), part.first, total, part.last, pack_runs(part.runs), part.data),
                )
        connection.execute(
            "UPDATE job SET finished_at = ? WHERE id = ?", (microseconds(NOW), job_id(0))
        )

    database = await Database.open(path)
    try:
        reader, packer = LogReader(database), Packer(database)
        end = await reader.end(job_id(0))
        assert await packer.waiting(9) == [job_id(0)]
        await packer.pack(job_id(0))
        await packer.done([job_id(0)])
        assert await packer.waiting(9) == []
        assert end == await reader.end(job_id(0)) == await reader.end(job_id(1))
        assert await all_lines(reader, 0) == await all_lines(reader, 1)
        assert rows(path, "PRAGMA quick_check") == [("ok",)]
    finally:
        await database.close()
    packed = "SELECT job_id, packed FROM log_chunk ORDER BY job_id, first"
    assert rows(path, packed) == [(job_id(0), 1), (job_id(1), 0), (job_id(1), 0)]


async def all_lines(reader: LogReader, number: int) -> list[Line]:
    found = [part async for part in reader.stream(job_id(number), 0, 6)]
    assert sum(part.count for part in found) == 6
    return [line for part in found for line in part.lines()]


async def all_of_version_1_is_there(database: Database, lines: Chunk) -> None:
    jobs, logs = Jobs(database, on_change=lambda _: None, outbox=nobody()), LogReader(database)
    for number, status in enumerate(Status):
        found = await jobs.get(job_id(number))
        assert found == replace(job_1(number, status), log_lines=2 if number == 3 else 0)
    assert len(await jobs.page(limit=9, project="tea")) == len(Status)
    assert [entry.after for entry in await jobs.changes(0, limit=9)] == list(Status)
    assert await jobs.submitted("me", "key", NOW) == job_1(1, Status.STARTING)
    assert await logs.chunks(job_id(3), 0, 9) == [lines]
    assert await logs.end(job_id(3)) == LogEnd(2, 4, 1, Cursor(Position(2)))
    assert await instance_id(database, None) == "mine"
    assert await jobs.active() == {job_id(1): 2**30, job_id(2): 2**30}
    assert await jobs.waiting() == []
    assert await jobs.environments_in_use() == frozenset()


async def a_job_of_version_1_goes_on(jobs: Jobs) -> None:
    head = await jobs.queue_head(NOW, Kind.JOB)
    assert head == job_1(0, Status.QUEUED)
    for before, after in pairwise((Status.QUEUED, Status.STARTING, Status.RUNNING)):
        moved = await jobs.move(head.id, Expect(before, 1), after, NOW)
        assert moved == job_1(0, after)


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("dear diary, today I became a database\n" * 100)
    before = path.read_bytes()

    with pytest.raises(StoreRefused, match="not a database"):
        await Database.open(path)

    assert path.read_bytes() == before


async def test_somebody_elses_database_is_refused(path: Path) -> None:
    rows(path, "CREATE TABLE recipes (tea TEXT)")

    with pytest.raises(StoreRefused, match="'recipes', which no ciworker made: choose another"):
        await Database.open(path)

    assert rows(path, "SELECT name FROM sqlite_schema") == [("recipes",)]


async def test_a_cut_file_is_refused(path: Path) -> None:
    await (await Database.open(path)).close()
    path.write_bytes(path.read_bytes()[:4096])

    with pytest.raises(StoreRefused, match="malformed"):
        await Database.open(path)


@pytest.mark.parametrize("name", ["a?b.db", "50%20off.db", "x#y.db", "é 日.db", "file:a.db"])
async def test_a_path_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    await (await Database.open(tmp_path / name)).close()

    assert [file.name for file in tmp_path.iterdir()] == [name]

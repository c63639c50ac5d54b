"""The schema after all steps is the one that the code describes; files that are not ours."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlmodel import SQLModel

from ciworker.errors import StoreRefused
from ciworker.store import schema
from ciworker.store.migrations import STEPS
from ciworker.store.session import Database
from tests.store.lab import rows


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
    assert wanted.keys() == {"job", "job_event", "log_chunk", "submission", "token", "meta"}
    assert len(wanted["job"]["columns"]) == len(schema.JobRow.model_fields)
    assert "status = 'queued'" in {index[-1] for index in wanted["job"]["indexes"]}


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

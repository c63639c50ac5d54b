"""A real database file, and its jobs; no task and no thread may be left."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ciworker.store.jobs import Jobs
from ciworker.store.session import Database
from tests.store.lab import connections, nobody


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for thread in connections():
        thread.join(timeout=5)  # it answers a little before it ends
        assert not thread.is_alive()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ciworker.db"


@pytest.fixture
async def database(path: Path, nothing_is_left: None) -> AsyncIterator[Database]:
    opened = await Database.open(path)
    yield opened
    await opened.close()


@pytest.fixture
def changed() -> list[str]:
    """Ids of the jobs whose change was told of, in order."""
    return []


@pytest.fixture
def jobs(database: Database, changed: list[str]) -> Jobs:
    return Jobs(database, on_change=changed.append, outbox=nobody())

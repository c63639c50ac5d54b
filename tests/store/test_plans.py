"""With however many jobs and lines, no question reads them all."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event

from ciworker.domain.job import Kind, Status
from ciworker.domain.webhook import DeliveryKind, DeliveryState
from ciworker.store.audit import Audit
from ciworker.store.environments import Environments
from ciworker.store.jobs import Jobs
from ciworker.store.logs import LogReader
from ciworker.store.session import Database
from ciworker.store.webhooks import Backlog, Deliveries
from tests.store.lab import NOW, answer, job_id, seed

CHUNKS = (
    "INSERT INTO log_chunk "
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2) "
    "SELECT ?1, i, 1, 1, i, 0, 0, 0, 0, x'', x'', 0 FROM n"
)
BACKLOG = Backlog(DeliveryKind.WEBHOOK, "tea", 1, 0, NOW, NOW)


def told(jobs: Jobs) -> Deliveries:
    """What others are told of these jobs."""
    return Deliveries(jobs._database, lambda: None)


QUESTIONS: dict[str, Callable[[Jobs, LogReader], Awaitable[object]]] = {
    "the head of the queue": lambda jobs, _: jobs.queue_head(NOW, Kind.JOB),
    "the head of the setups": lambda jobs, _: jobs.queue_head(NOW, Kind.SETUP),
    "the first backoff": lambda jobs, _: jobs.next_backoff(),
    "the active jobs": lambda jobs, _: jobs.active(),
    "what the active jobs hold": lambda jobs, _: jobs.held(),
    "who holds a container": lambda jobs, _: jobs.holder("c" * 64),
    "the waiting jobs": lambda jobs, _: jobs.waiting(),
    "the waiting jobs that show no build": lambda jobs, _: jobs.waiting(for_builds=False),
    "the jobs that wait for an environment": lambda jobs, _: jobs.waiting_for("e"),
    "the environments in use": lambda jobs, _: jobs.environments_in_use(),
    "the cancelled queued jobs": lambda jobs, _: jobs.cancelled_while_queued(),
    "one job": lambda jobs, _: jobs.get("x"),
    "attempts": lambda jobs, _: jobs.attempts(["x", "y"]),
    "the newest id": lambda jobs, _: jobs.newest_id(),
    "a page": lambda jobs, _: jobs.page(limit=50),
    "the next page": lambda jobs, _: jobs.page(limit=50, before="x"),
    "a page of a status": lambda jobs, _: jobs.page(limit=50, status=Status.FAILED),
    "the next page of a status": lambda jobs, _: jobs.page(
        limit=50, before="x", status=Status.QUEUED
    ),
    "a page of a project": lambda jobs, _: jobs.page(limit=50, project="p"),
    "the next page of a project": lambda jobs, _: jobs.page(limit=50, before="x", project="p"),
    "a page of both": lambda jobs, _: jobs.page(
        limit=50, before="x", status=Status.QUEUED, project="p"
    ),
    "the history": lambda jobs, _: jobs.history("x"),
    "changes": lambda jobs, _: jobs.changes(7, limit=100),
    "the last change": lambda jobs, _: jobs.last_change(),
    "what is due to be told": lambda jobs, _: told(jobs).due(BACKLOG, NOW, 50),
    "what waits to be told": lambda jobs, _: told(jobs).page(50, DeliveryState.PENDING),
    "a page of deeds": lambda jobs, _: Audit(jobs._database).page(
        limit=5, since=NOW, before=(NOW, 9)
    ),
    "a key's job": lambda jobs, _: jobs.submitted("token", "key", NOW),
    "the end of a log": lambda _, logs: logs.end("x"),
    "chunks": lambda _, logs: logs.chunks(job_id(0), 3, limit=4),
}


@pytest.fixture
async def asked(database: Database) -> AsyncIterator[list[tuple[str, Any]]]:
    """Every statement that readers execute, with its values."""
    statements: list[tuple[str, Any]] = []
    engine = database._readers._engine

    def keep(_conn: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        statements.append((statement, values))

    event.listen(engine, "before_cursor_execute", keep)
    yield statements
    event.remove(engine, "before_cursor_execute", keep)


async def plans(database: Database, statements: list[tuple[str, Any]]) -> list[str]:
    found: list[str] = []
    for statement, values in statements:
        found += [
            row[3] for row in await answer(database, f"EXPLAIN QUERY PLAN {statement}", values)
        ]
    return found


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
@pytest.mark.parametrize("question", QUESTIONS)
async def test_every_question_is_answered_by_an_index(
    jobs: Jobs,
    database: Database,
    asked: list[tuple[str, Any]],
    question: str,
    filled: bool,
) -> None:
    await seed(database, 2000 if filled else 1)
    await database.insert(CHUNKS, [job_id(0), 500 if filled else 10])

    await QUESTIONS[question](jobs, LogReader(database))
    statements = [(text, values) for text, values in asked if text.lstrip().startswith("SELECT")]
    assert statements

    for step in await plans(database, statements):
        if step.startswith("SCAN"):  # in the index's order, and only as far as `limit` goes
            assert step.startswith("SCAN job USING INDEX sqlite_autoindex_job_1") or (
                "VIRTUAL TABLE" in step  # the ids that were given
            ), step
        assert "TEMP B-TREE" not in step, step


async def test_the_head_of_the_queue_is_read_in_order(
    jobs: Jobs, database: Database, asked: list[tuple[str, Any]]
) -> None:
    await jobs.queue_head(NOW, Kind.JOB)

    found = await plans(database, asked[-1:])
    assert found[0] == "SEARCH job USING INDEX job_queue (kind=?)"


ASKED_OFTEN: dict[str, Callable[[Jobs, LogReader], Awaitable[object]]] = {
    "the head of the queue": lambda jobs, _: jobs.queue_head(NOW, Kind.JOB),
    "the head of the setups": lambda jobs, _: jobs.queue_head(NOW, Kind.SETUP),
    "the jobs that wait for an environment": lambda jobs, _: jobs.waiting_for("some"),
    "the end of a log": lambda _, logs: logs.end(job_id(0)),
    "the first backoff": lambda jobs, _: jobs.next_backoff(),
    "the cancelled queued jobs": lambda jobs, _: jobs.cancelled_while_queued(),
}


@pytest.mark.parametrize("question", ASKED_OFTEN)
async def test_what_is_asked_often_costs_the_same_of_10_000_queued_jobs(
    jobs: Jobs, database: Database, asked: list[tuple[str, Any]], question: str
) -> None:
    """Half of them wait for an environment that nobody asks about."""
    steps = []
    for count in (10, 10_000):
        await fill(database, count)
        await ASKED_OFTEN[question](jobs, LogReader(database))
        steps.append(await cost(database, *asked[-1]))

    assert 0 < steps[0] == steps[1]


async def fill(database: Database, count: int) -> None:
    """So many queued jobs, the older half of which wait; and a log of so many chunks."""
    await database.insert("DELETE FROM log_chunk", [])
    await database.insert("DELETE FROM job", [])
    await seed(database, count)
    await database.insert(
        "UPDATE job SET status = 'queued', environment = 'other', waits = id < ?",
        [job_id(count // 2)],
    )
    await database.insert(CHUNKS, [job_id(0), count])
    await database.insert("UPDATE log_chunk SET attempt = -1 WHERE first <= ?", [count // 2])


async def cost(database: Database, statement: str, values: Any) -> int:
    """How many instructions of SQLite's machine the answer takes."""
    driver, ticks = database._writer._driver, list[None]()
    await driver.set_progress_handler(lambda: ticks.append(None), 1)
    await answer(database, statement, values)
    await driver.set_progress_handler(lambda: None, 0)
    return len(ticks)


async def test_environments_of_a_project_are_read_in_order(
    database: Database, asked: list[tuple[str, Any]]
) -> None:
    await Environments(database).of_project("tea")

    assert await plans(database, asked[-1:]) == [
        "SEARCH environment USING INDEX environment_project (project=?)"
    ]

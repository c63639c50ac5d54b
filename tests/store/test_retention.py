"""What is old goes, whole; what somebody still needs stays."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from ciworker.domain.environment import EnvironmentStatus
from ciworker.domain.job import Job, Reason, Status
from ciworker.store import retention as module
from ciworker.store.counts import Counter
from ciworker.store.environments import Environments
from ciworker.store.jobs import IDEMPOTENCY_WINDOW, Expect, Jobs
from ciworker.store.logs import LogReader
from ciworker.store.packing import Packer
from ciworker.store.retention import Retention
from ciworker.store.session import WAL_LIMIT, Database
from ciworker.store.sessions import LIFETIME, Sessions
from ciworker.store.tokens import Role, Tokens
from tests.store.lab import (
    NOW,
    SECOND,
    answer,
    batch,
    chunk,
    job_id,
    new_environment,
    new_job,
    new_setup,
    other_process,
    rows,
)
from tests.store.test_logs import insert


@pytest.fixture
def retention(database: Database) -> Retention:
    return Retention(database)


async def ended(jobs: Jobs, job: Job, seconds: int) -> str:
    """Store a job that ended so many seconds after NOW."""
    await jobs.add(job, "me", job.id)
    moved = await jobs.move(
        job.id,
        Expect(Status.QUEUED, 0),
        Status.FAILED,
        NOW + seconds * SECOND,
        reason=Reason.IMAGE_MISSING,
    )
    assert moved
    return job.id


async def newest(jobs: Jobs) -> None:
    """A job that is not over, so that every other one may go."""
    await jobs.add(new_job(999), "me", None)


async def test_the_oldest_ends_come_first_and_no_later_ones(
    jobs: Jobs, retention: Retention
) -> None:
    for number, seconds in enumerate((30, 10, 20, 40)):
        await ended(jobs, new_job(number), seconds)
    await newest(jobs)

    oldest = await retention.oldest(NOW + 30 * SECOND, 9)
    assert oldest == [job_id(1), job_id(2), job_id(0)]
    assert await retention.oldest(NOW + 30 * SECOND, 2) == oldest[:2]
    assert await retention.oldest(NOW + 30 * SECOND, 9, but=[job_id(2)]) == [job_id(1), job_id(0)]
    assert await retention.oldest(NOW + 9 * SECOND, 9) == []


async def test_jobs_that_are_not_over_never_go(jobs: Jobs, retention: Retention) -> None:
    await jobs.add(new_job(0), "me", None)
    for number, status in ((1, Status.STARTING), (2, Status.RUNNING)):
        await jobs.add(new_job(number), "me", None)
        await jobs.move(job_id(number), Expect(Status.QUEUED, 0), Status.STARTING, NOW)
        if status is Status.RUNNING:
            await jobs.move(job_id(number), Expect(Status.STARTING, 0), Status.RUNNING, NOW)

    assert await retention.oldest(NOW + 10**6 * SECOND, 9) == []


async def test_a_job_goes_with_its_history_its_log_and_its_key_and_nothing_else(
    database: Database, jobs: Jobs, retention: Retention, path: Path
) -> None:
    for number in range(3):
        await ended(jobs, new_job(number), number)
        for n in range(1, 100):
            await insert(database, batch(job_id(number), chunk(n, "x"), n))
    await newest(jobs)

    await retention.remove([job_id(0), job_id(2)])

    for table, column in (
        ("job", "id"), ("job_event", "job_id"), ("log_chunk", "job_id"), ("submission", "job_id"),
    ):  # fmt: skip
        found = rows(path, f"SELECT DISTINCT {column} FROM {table} ORDER BY 1")
        assert [name for (name,) in found if name != job_id(999)] == [job_id(1)], table
    assert (await LogReader(database).end(job_id(1))).last == 99
    assert rows(path, "PRAGMA foreign_key_check") == []
    assert rows(path, "PRAGMA quick_check") == [("ok",)]


async def test_no_step_takes_more_than_a_few_chunks(
    database: Database, jobs: Jobs, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ended(jobs, new_job(0), 0)
    await newest(jobs)
    for n in range(1, 101):
        await insert(database, batch(job_id(0), chunk(n, "x"), n))
    steps: list[int] = []
    real = database.write

    async def write(work: Any, *args: Any, **more: Any) -> Any:
        steps.append(await real(work, *args, **more))
        return steps[-1]

    monkeypatch.setattr(database, "write", write)
    await retention.remove([job_id(0)])

    assert steps == [32, 32, 32, 4, 1]


async def test_the_job_of_the_newest_change_stays_so_that_no_number_is_used_again(
    jobs: Jobs, retention: Retention
) -> None:
    for number in range(3):
        await ended(jobs, new_job(number), number)
    last = await jobs.last_change()

    assert await retention.oldest(NOW + 99 * SECOND, 9) == [job_id(0), job_id(1)]
    await retention.remove([job_id(0), job_id(1)])

    assert await jobs.last_change() == last
    await newest(jobs)
    assert await jobs.last_change() == last + 1
    assert await retention.oldest(NOW + 99 * SECOND, 9) == [job_id(2)]


async def test_a_setup_stays_while_somebody_needs_it(
    database: Database, jobs: Jobs, retention: Retention
) -> None:
    key = "e" * 64
    await ended(jobs, new_setup(0, key), 0)
    await jobs.add(new_job(1, environment=key, waits=True), "me", None)
    await newest(jobs)
    late = NOW + 99 * SECOND

    assert await retention.oldest(late, 9) == []
    await jobs.move(
        job_id(1), Expect(Status.QUEUED, 0), Status.CANCELLED, NOW + 50 * SECOND,
        reason=Reason.CANCELLED,
    )  # fmt: skip
    await jobs.note(job_id(999), NOW, "the newest change")
    assert await retention.oldest(late, 9) == [job_id(0), job_id(1)]

    environments = Environments(database)
    await environments.add(new_environment(key, status=EnvironmentStatus.BUILDING))
    assert await retention.oldest(late, 9) == [job_id(1)]


async def test_keys_and_sessions_of_old_go_and_younger_ones_stay(
    database: Database, jobs: Jobs, retention: Retention, path: Path
) -> None:
    await jobs.add(new_job(0), "me", "old")
    await jobs.add(new_job(1, created_at=NOW + SECOND), "me", "young")
    token, _ = await Tokens(database).create("mine", Role.ADMIN, NOW)
    sessions = Sessions(database)
    old = await sessions.begin(token.id, NOW)
    young = await sessions.begin(token.id, NOW + SECOND)
    assert old
    assert young

    await retention.remove_outdated(NOW + IDEMPOTENCY_WINDOW)
    assert rows(path, 'SELECT "key" FROM submission') == [("young",)]
    assert len(rows(path, "SELECT id FROM session")) == 2

    await retention.remove_outdated(NOW + LIFETIME)
    assert rows(path, 'SELECT "key" FROM submission') == []
    assert rows(path, "SELECT id FROM session") == [(young.partition("_")[0],)]
    assert await jobs.get(job_id(0)) is not None


async def test_many_old_keys_go_in_several_steps(
    database: Database, retention: Retention, jobs: Jobs, path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "ROWS_PER_STEP", 3)
    await jobs.add(new_job(0), "me", None)
    for number in range(10):
        await database.insert(
            "INSERT INTO submission VALUES ('me', ?, ?, 0)", [str(number), job_id(0)]
        )

    await retention.remove_outdated(NOW)

    assert rows(path, "SELECT * FROM submission") == []


async def test_what_is_removed_is_room_again_though_the_file_stays_as_large(
    database: Database, jobs: Jobs, retention: Retention, path: Path
) -> None:
    await ended(jobs, new_job(0), 0)
    await newest(jobs)
    empty = await retention.used_bytes()
    for n in range(1, 21):
        await insert(database, batch(job_id(0), chunk(n, "x" * 50_000), n))
    full = await retention.used_bytes()
    assert full > empty + 10**6

    await retention.remove([job_id(0)])

    assert await retention.used_bytes() < empty + 20_000
    await jobs.add(new_job(1), "me", None)
    for n in range(1, 21):
        await insert(database, batch(job_id(1), chunk(n, "x" * 50_000), n))
    ((pages, size),) = rows(path, "SELECT * FROM pragma_page_count, pragma_page_size")
    assert pages * size <= full + 20_000


async def test_hidden_jobs_are_found_by_nobody_but_those_who_take_them_away(
    database: Database, jobs: Jobs, retention: Retention
) -> None:
    hidden, there = await ended(jobs, new_job(0), 0), await ended(jobs, new_job(1), 1)
    await newest(jobs)
    last = await jobs.last_change()

    await jobs.hide([hidden])

    assert (await jobs.get(hidden), await jobs.current(hidden)) == (None, None)
    assert [job.id for job in await jobs.page(limit=9)] == [job_id(999), there]
    assert await jobs.page(limit=9, status=Status.FAILED) == [await jobs.get(there)]
    assert {change.job.id for change in await jobs.changes(0, 99)} == {there, job_id(999)}
    assert await jobs.submitted("me", hidden, NOW) is None
    assert await jobs.needing_workspace([hidden, there]) == {there}
    assert (await jobs.attempts([hidden, there])).keys() == {there}
    assert (await Counter(database).counts()).by_status == {"failed": 1, "queued": 1}
    assert await Packer(database).waiting(9) == [there]
    assert await retention.oldest(NOW + 99 * SECOND, 9) == [there]
    assert await retention.ended([hidden, there]) == {there}
    assert (await jobs.last_change(), await jobs.newest_id()) == (last, job_id(999))
    await jobs.note_quietly(hidden, oom=True)
    assert await jobs.current(hidden) is None
    assert await retention.hidden() == [hidden]
    again = await jobs.add(new_job(2), "me", hidden)
    assert again.id == job_id(2)

    await retention.remove([hidden])
    assert await retention.hidden() == []
    assert await jobs.submitted("me", hidden, NOW) == again


async def test_jobs_whose_key_gives_them_still_may_be_left_out(
    jobs: Jobs, retention: Retention
) -> None:
    old, young = await ended(jobs, new_job(0), 0), new_job(1, created_at=NOW + SECOND)
    await ended(jobs, young, 1)
    await newest(jobs)
    late, window = NOW + 99 * SECOND, IDEMPOTENCY_WINDOW

    assert await retention.oldest(late, 9, unclaimed_at=NOW + window) == [old]
    assert await retention.oldest(late, 9, unclaimed_at=NOW + window - SECOND) == []
    assert await retention.oldest(late, 9, unclaimed_at=NOW + window + SECOND) == [old, young.id]
    assert await retention.oldest(late, 9) == [old, young.id]


async def test_logs_that_stay_are_those_of_jobs_that_have_not_ended_or_just_now(
    database: Database, jobs: Jobs, retention: Retention
) -> None:
    for number in range(2):
        await ended(jobs, new_job(number), number)
        await insert(database, batch(job_id(number), chunk(1, "x" * 10_000)))
    await newest(jobs)
    await insert(database, batch(job_id(999), chunk(1, "x" * 10_000)))

    for seconds, logs in ((-1, 3), (0, 2), (1, 1)):
        assert (await retention.staying_bytes(NOW + seconds * SECOND)) // 10_000 == logs


async def test_the_wal_counts_as_far_as_it_stays(
    database: Database, jobs: Jobs, retention: Retention, path: Path
) -> None:
    """Beside a reader it grows; once that is gone it is cut to its limit."""
    wal = path.with_name(f"{path.name}-wal")
    await jobs.add(new_job(0), "me", None)
    with other_process(path) as reader:
        await reader.does("BEGIN")
        await reader.does("SELECT count(*) FROM job")
        for n in range(1, 13):
            await insert(database, batch(job_id(0), chunk(n, "x" * 2**20), n))
        assert wal.stat().st_size > 12 * 2**20
        assert await retention.wal_bytes() == WAL_LIMIT
    for number in range(1, 4):
        await jobs.add(new_job(number), "me", None)

    assert wal.stat().st_size <= WAL_LIMIT
    assert await retention.wal_bytes() == wal.stat().st_size


async def test_workspaces_are_needed_by_jobs_and_by_setups_that_are_not_over(jobs: Jobs) -> None:
    await ended(jobs, new_job(0), 0)
    await ended(jobs, new_setup(1), 0)
    await jobs.add(new_job(2), "me", None)
    await jobs.add(new_setup(3), "", None)

    asked = [job_id(number) for number in range(5)]
    assert await jobs.needing_workspace(asked) == {job_id(0), job_id(2), job_id(3)}
    assert await jobs.needing_workspace([]) == frozenset()


async def test_the_oldest_are_found_by_an_index(database: Database, retention: Retention) -> None:
    asked: list[tuple[str, Any]] = []
    engine = database._readers._engine

    @event.listens_for(engine, "before_cursor_execute")
    def keep(_conn: object, _cursor: object, statement: str, values: Any, *_: object) -> None:
        asked.append((statement, values))

    await retention.oldest(NOW, 9)
    event.remove(engine, "before_cursor_execute", keep)
    statement, values = asked[-1]
    told = await answer(database, f"EXPLAIN QUERY PLAN {statement}", values)
    plan = [row[3] for row in told]

    assert plan[0].startswith("SEARCH job USING INDEX job_finished (finished_at>? AND finished_at<")
    assert not [step for step in plan if "TEMP B-TREE" in step]

"""What the metrics say of the store: right, and from indices alone."""

import pytest
from sqlalchemy import TextClause

from ciworker.domain.job import Kind, Reason, Status
from ciworker.errors import StoreUnavailable
from ciworker.metrics import Metrics
from ciworker.store import counts
from ciworker.store.counts import Counter
from ciworker.store.environments import Environments
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.packing import Packer
from ciworker.store.session import Database
from tests.store.lab import NOW, answer, job_id, new_environment, new_job, new_setup, seed


@pytest.fixture
def counter(database: Database) -> Counter:
    return Counter(database)


async def test_of_an_empty_store_all_counts_are_0(counter: Counter) -> None:
    found = await counter.counts()
    assert (found.by_status, found.for_a_slot) == ({}, {})
    assert (found.for_environments, found.environments) == (0, 0)


async def test_jobs_count_by_status_and_queued_ones_by_what_they_wait_for(
    counter: Counter, jobs: Jobs
) -> None:
    for number in range(3):
        await jobs.add(new_job(number), "me", None)
    await jobs.add(new_job(3, waits=True, environment="e" * 64), "me", None)
    await jobs.add(new_setup(4), "", None)
    await jobs.move(job_id(0), Expect(Status.QUEUED, 0), Status.STARTING, NOW, attempt=1)
    cancelled = Reason.CANCELLED
    await jobs.move(job_id(1), Expect(Status.QUEUED, 0), Status.CANCELLED, NOW, reason=cancelled)
    found = await counter.counts()
    assert found.by_status == {"starting": 1, "cancelled": 1, "queued": 3}
    assert found.for_a_slot == {Kind.JOB: 1, Kind.SETUP: 1}
    assert found.for_environments == 1


async def test_the_bytes_of_environments_are_those_of_all(
    counter: Counter, database: Database
) -> None:
    environments = Environments(database)
    for key, size in (("a" * 64, 100), ("b" * 64, 23)):
        environment = new_environment(key)
        await environments.add(environment)
        await environments.change(environment, bytes=size)
    assert (await counter.counts()).environments == 123


@pytest.mark.parametrize(
    ("query", "plan"),
    [
        (counts._BY_STATUS, "SCAN job USING COVERING INDEX job_status"),
        (counts._HIDDEN, "SCAN job USING INDEX job_removed"),
        (counts._FOR_A_SLOT, "SCAN job USING INDEX job_queue"),
        (counts._FOR_ENVIRONMENTS, "SCAN job USING INDEX job_waiting"),
    ],
)
async def test_finished_jobs_are_counted_without_reading_them_and_others_without_those(
    database: Database, query: TextClause, plan: str
) -> None:
    await seed(database, 100)
    told = await answer(database, f"EXPLAIN QUERY PLAN {query.text}")
    assert [row[3] for row in told] == [plan]


async def test_a_store_that_cannot_be_read_says_so(counter: Counter, database: Database) -> None:
    await database.insert("DROP TABLE environment", [])
    with pytest.raises(StoreUnavailable):
        await counter.counts()


async def test_commits_are_timed_by_their_kind(jobs: Jobs, database: Database) -> None:
    metrics = Metrics()
    database._metrics = metrics.store
    await jobs.add(new_job(), "me", None)
    await database.insert("DELETE FROM token", [])
    await database.insert("DELETE FROM token", [])
    await Packer(database).done([])

    def count(kind: str) -> float | None:
        name = "ciworker_store_commit_seconds_count"
        return metrics.registry.get_sample_value(name, {"kind": kind})

    assert (count("state"), count("log"), count("upkeep")) == (1, 2, 1)

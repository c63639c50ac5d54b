"""Jobs, their transitions and their history, in a real file."""

import asyncio
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from ciworker.domain.container import ContainerState
from ciworker.domain.job import (
    TERMINAL,
    TRANSITIONS,
    Backend,
    Cache,
    Job,
    Kind,
    Reason,
    Spec,
    Status,
    Stop,
    status_of,
)
from ciworker.errors import Conflict, Invalid, StoreRefused
from ciworker.store.jobs import IDEMPOTENCY_WINDOW, Expect, Jobs, Place
from ciworker.store.session import Database
from tests.store.lab import NOW, SECOND, chunk, job_id, new_job, new_setup, nobody, rows

PATHS: dict[Status, tuple[Status, ...]] = {
    Status.QUEUED: (),
    Status.STARTING: (Status.STARTING,),
    Status.RUNNING: (Status.STARTING, Status.RUNNING),
    Status.COMPLETED: (Status.STARTING, Status.RUNNING, Status.COMPLETED),
    Status.CANCELLED: (Status.CANCELLED,),
    Status.FAILED: (Status.STARTING, Status.FAILED),
}


async def brought(jobs: Jobs, to: Status, number: int = 0, **changes: Any) -> Job:
    """A job of this status."""
    job = await jobs.add(new_job(number), "token", None)
    for step in PATHS[to]:
        reason = _reason(step) if step.terminal else None
        moved = await jobs.move(job.id, Expect(job.status, 0), step, NOW, reason=reason, **changes)
        assert moved
        job = moved
    return job


def _reason(status: Status) -> Reason:
    return next(reason for reason in Reason if status_of(reason) is status)


# -- transitions


@pytest.mark.parametrize("before", Status)
@pytest.mark.parametrize("after", Status)
async def test_a_transition_is_made_only_where_the_table_has_it(
    jobs: Jobs, changed: list[str], before: Status, after: Status
) -> None:
    job = await brought(jobs, before)
    history, told = await jobs.history(job.id), len(changed)

    if after in TRANSITIONS[before]:
        moved = await jobs.move(job.id, Expect(before, 0), after, NOW + SECOND, message="m")
        assert moved
        assert moved == await jobs.get(job.id)
        assert moved.status is after
        assert len(changed) == told + 1
        entry = (await jobs.history(job.id))[-1]
        assert (entry.before, entry.after, entry.at) == (before, after, NOW + SECOND)
        assert moved.finished_at == (NOW + SECOND if after.terminal else None)
    else:
        with pytest.raises(Conflict, match=f"a {before} job does not become {after}"):
            await jobs.move(job.id, Expect(before, 0), after, NOW)
        assert await jobs.get(job.id) == job
        assert await jobs.history(job.id) == history
        assert len(changed) == told


@pytest.mark.parametrize("ended", sorted(TERMINAL))
async def test_an_ended_job_is_never_left_whatever_a_caller_believes(
    jobs: Jobs, changed: list[str], ended: Status
) -> None:
    job = await brought(jobs, ended)
    history = await jobs.history(job.id)
    changed.clear()

    for believed, to in permutations(Status, 2):
        if to in TRANSITIONS[believed]:
            assert await jobs.move(job.id, Expect(believed, 0), to, NOW) is None
    assert await jobs.note(job.id, NOW, "too late", cancel_by="me") is None

    assert await jobs.get(job.id) == job
    assert await jobs.history(job.id) == history
    assert changed == []


async def test_a_mover_that_believes_in_another_attempt_loses(jobs: Jobs) -> None:
    job = await brought(jobs, Status.STARTING, attempt=0)

    assert await jobs.move(job.id, Expect(Status.STARTING, 1), Status.RUNNING, NOW) is None
    assert await jobs.move(job.id, Expect(Status.STARTING, 0), Status.RUNNING, NOW)


async def test_of_many_movers_at_once_one_wins(jobs: Jobs, changed: list[str]) -> None:
    for number in range(10):
        job = await brought(jobs, Status.RUNNING, number)
        changed.clear()
        ends = [Status.COMPLETED, Status.FAILED, Status.CANCELLED] * 4

        moved = await asyncio.gather(
            *(jobs.move(job.id, Expect(Status.RUNNING, 0), end, NOW) for end in ends)
        )

        (won,) = [found for found in moved if found]
        assert await jobs.get(job.id) == won
        assert [entry.after for entry in await jobs.history(job.id)].count(won.status) == 1
        assert len(await jobs.history(job.id)) == 4
        assert changed == [job.id]


async def test_a_cancel_and_an_end_at_once_leave_one_story(jobs: Jobs) -> None:
    for number in range(20):
        job = await brought(jobs, Status.RUNNING, number)
        noted, ended = await asyncio.gather(
            jobs.note(job.id, NOW, "cancel asked", cancel_by="me"),
            jobs.move(
                job.id, Expect(Status.RUNNING, 0), Status.COMPLETED, NOW, reason=Reason.PASSED
            ),
        )
        assert ended
        found = await jobs.get(job.id)
        assert found
        assert found.cancel_asked == (noted is not None)


async def test_a_transition_and_its_history_are_one_transaction(
    jobs: Jobs, database: Database, changed: list[str]
) -> None:
    job = await brought(jobs, Status.STARTING)
    history = await jobs.history(job.id)
    changed.clear()

    @event.listens_for(database._writer._held, "before_cursor_execute")
    def strike(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO job_event"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await jobs.move(job.id, Expect(Status.STARTING, 0), Status.RUNNING, NOW)
    with pytest.raises(ZeroDivisionError):
        await jobs.note(job.id, NOW, "seen", cancel_by="me")
    with pytest.raises(ZeroDivisionError):
        await jobs.add(new_job(7), "token", "key")
    event.remove(database._writer._held, "before_cursor_execute", strike)

    assert await jobs.get(job.id) == job
    assert await jobs.history(job.id) == history
    assert await jobs.get(job_id(7)) is None
    assert await jobs.submitted("token", "key", NOW) is None
    assert changed == []
    assert await jobs.move(job.id, Expect(Status.STARTING, 0), Status.RUNNING, NOW)


async def test_the_end_is_told_with_reason_message_and_time(jobs: Jobs) -> None:
    job = await brought(jobs, Status.RUNNING)

    ended = await jobs.move(
        job.id,
        Expect(Status.RUNNING, 0),
        Status.COMPLETED,
        NOW + SECOND,
        reason=Reason.TESTS_FAILED,
        message="exit code 1",
        exit_code=1,
    )

    assert ended
    assert (ended.reason, ended.message, ended.exit_code) == (
        Reason.TESTS_FAILED,
        "exit code 1",
        1,
    )
    assert ended.finished_at == NOW + SECOND
    entry = (await jobs.history(job.id))[-1]
    assert (entry.reason, entry.message) == ("tests_failed", "exit code 1")


async def test_what_is_kept_of_a_container_is_read_as_it_was_written(jobs: Jobs) -> None:
    kept = ContainerState("c" * 64, "ci-x-1", "exited", NOW, NOW + SECOND, 137, "no such file")
    job = await brought(jobs, Status.RUNNING)
    assert job.container is None
    assert await jobs.note(job.id, NOW, "seen", container=kept) == replace(job, container=kept)
    bare = replace(kept, started_at=None, stopped_at=None, exit_code=None, error=None)
    await jobs.note(job.id, NOW, "seen", container=bare)
    found = await jobs.get(job.id)
    assert found == replace(job, container=bare)


async def test_a_step_back_to_the_queue_is_explained_in_the_history_alone(jobs: Jobs) -> None:
    job = await brought(jobs, Status.STARTING)

    again = await jobs.move(
        job.id, Expect(Status.STARTING, 0), Status.QUEUED, NOW, message="never began"
    )

    assert again
    assert (again.status, again.message, again.reason) == (Status.QUEUED, None, None)
    assert (await jobs.history(job.id))[-1].message == "never began"


# -- notes


async def test_a_note_is_a_line_of_history_with_its_facts(jobs: Jobs, changed: list[str]) -> None:
    job = await brought(jobs, Status.RUNNING)
    changed.clear()

    noted = await jobs.note(job.id, NOW + SECOND, "a signal", kills=[9, 15], oom=True)

    assert noted == replace(job, kills=(9, 15), oom=True)
    entry = (await jobs.history(job.id))[-1]
    assert (entry.before, entry.after, entry.message) == (
        Status.RUNNING,
        Status.RUNNING,
        "a signal",
    )
    assert changed == [job.id]


async def test_a_note_may_be_of_words_alone(jobs: Jobs, changed: list[str]) -> None:
    job = await brought(jobs, Status.STARTING)
    changed.clear()

    assert await jobs.note(job.id, NOW, "the start failed and is tried again") == job

    assert (await jobs.history(job.id))[-1].message == "the start failed and is tried again"
    assert changed == [job.id]


async def test_a_quiet_note_is_no_history(jobs: Jobs, changed: list[str]) -> None:
    job = await brought(jobs, Status.STARTING)
    history = await jobs.history(job.id)
    changed.clear()

    await jobs.note_quietly(job.id, sent_at=NOW, container_id="c0ffee")

    assert await jobs.get(job.id) == replace(job, sent_at=NOW, container_id="c0ffee")
    assert await jobs.history(job.id) == history
    assert changed == []


async def test_a_job_that_is_not_there_is_not_changed(jobs: Jobs, changed: list[str]) -> None:
    assert await jobs.get("nobody") is None
    assert await jobs.note("nobody", NOW, "m") is None
    assert await jobs.move("nobody", Expect(Status.QUEUED, 0), Status.STARTING, NOW) is None
    assert await jobs.history("nobody") == []
    assert changed == []


# -- submitting


async def test_the_same_key_gives_the_same_job_however_many_ask_at_once(
    jobs: Jobs, changed: list[str]
) -> None:
    added = await asyncio.gather(
        *(jobs.add(new_job(number), "token", "key") for number in range(20))
    )

    assert len({job.id for job in added}) == 1
    assert changed == [added[0].id]
    assert len(await jobs.page(limit=100)) == 1
    assert len(await jobs.history(added[0].id)) == 1
    assert await jobs.submitted("token", "key", NOW) == added[0]


async def test_a_key_is_its_submitters_own(jobs: Jobs) -> None:
    mine = await jobs.add(new_job(1), "me", "key")
    yours = await jobs.add(new_job(2), "you", "key")

    assert mine.id != yours.id
    assert await jobs.submitted("me", "key", NOW) == mine
    assert await jobs.submitted("you", "key", NOW) == yours
    assert await jobs.submitted("nobody", "key", NOW) is None


async def test_without_a_key_every_job_is_new(jobs: Jobs) -> None:
    await jobs.add(new_job(1), "me", None)
    await jobs.add(new_job(2), "me", None)

    assert len(await jobs.page(limit=9)) == 2


async def test_a_key_may_be_used_again_after_a_day(jobs: Jobs) -> None:
    await jobs.add(new_job(1), "me", "key")
    almost, after = NOW + IDEMPOTENCY_WINDOW - SECOND, NOW + IDEMPOTENCY_WINDOW
    assert (await jobs.add(new_job(2, created_at=almost), "me", "key")).id == job_id(1)

    new = await jobs.add(new_job(3, created_at=after), "me", "key")

    assert new.id == job_id(3)
    assert await jobs.submitted("me", "key", after) == new


async def test_an_id_that_is_in_use_is_refused(jobs: Jobs, changed: list[str]) -> None:
    await jobs.add(new_job(1), "me", None)

    with pytest.raises(StoreRefused, match="UNIQUE"):
        await jobs.add(new_job(1), "me", "key")

    assert await jobs.submitted("me", "key", NOW) is None
    assert changed == [job_id(1)]


# -- the jobs written last


async def test_the_current_job_is_the_one_in_the_database_after_every_step(jobs: Jobs) -> None:
    job = await jobs.add(new_job(0), "me", "key")
    assert await jobs.current(job.id) == await jobs.get(job.id)
    await jobs.move(job.id, Expect(Status.QUEUED, 0), Status.STARTING, NOW, attempt=1)
    assert await jobs.current(job.id) == await jobs.get(job.id)
    await jobs.note_quietly(job.id, sent_at=NOW)
    assert await jobs.current(job.id) == await jobs.get(job.id)
    await jobs.note(job.id, NOW, "seen", cancel_by="me", kills=[9])
    assert await jobs.current(job.id) == await jobs.get(job.id)
    await jobs.move(
        job.id, Expect(Status.STARTING, 1), Status.CANCELLED, NOW, reason=Reason.CANCELLED
    )
    assert await jobs.current(job.id) == await jobs.get(job.id)
    await jobs.add(new_job(1), "me", "key")
    assert await jobs.current(job.id) == await jobs.get(job.id)
    assert await jobs.current("nobody") is None


async def test_a_belief_that_proved_wrong_is_not_kept(jobs: Jobs, database: Database) -> None:
    job = await brought(jobs, Status.STARTING)
    await database.insert("UPDATE job SET status = 'running' WHERE id = ?", [job.id])
    assert await jobs.current(job.id) == job

    assert await jobs.move(job.id, Expect(job.status, 0), Status.RUNNING, NOW) is None

    assert await jobs.current(job.id) == await jobs.get(job.id) != job


async def test_after_a_write_that_failed_the_database_is_asked(
    jobs: Jobs, database: Database
) -> None:
    job = await brought(jobs, Status.STARTING)
    await database.insert("UPDATE job SET oom = 1 WHERE id = ?", [job.id])

    with pytest.raises(Invalid):
        await jobs.note(job.id, NOW, "\udcff")

    assert await jobs.current(job.id) == await jobs.get(job.id) != job


async def test_what_is_kept_is_bounded(
    database: Database, changed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciworker.store.jobs.KEPT", 3)
    jobs = Jobs(database, on_change=changed.append, outbox=nobody())
    for number in range(5):
        await jobs.add(new_job(number), "me", None)
    assert len(jobs._kept) == 3

    for number in range(5):
        assert await jobs.current(job_id(number)) == await jobs.get(job_id(number))
    assert len(jobs._kept) == 3


# -- lists


async def test_pages_go_through_all_jobs_once_newest_first(jobs: Jobs) -> None:
    made = [(await brought(jobs, list(Status)[n % 6], n)).id for n in range(23)]

    seen: list[str] = []
    before = None
    while page := await jobs.page(limit=5, before=before):
        seen += [job.id for job in page]
        before = page[-1].id

    assert seen == made[::-1]


async def test_a_page_takes_a_status_a_project_or_both(jobs: Jobs) -> None:
    for number in range(12):
        project = ("tea", "milk")[number % 2]
        job = await jobs.add(new_job(number, project=project), "me", None)
        if number % 3 == 0:
            await jobs.move(job.id, Expect(Status.QUEUED, 0), Status.CANCELLED, NOW)

    async def numbers(**filters: Any) -> list[int]:
        page = await jobs.page(limit=99, **filters)
        return [next(n for n in range(12) if job_id(n) == job.id) for job in page]

    assert await numbers(project="milk") == [11, 9, 7, 5, 3, 1]
    assert await numbers(status=Status.CANCELLED) == [9, 6, 3, 0]
    assert await numbers(status=Status.CANCELLED, project="milk") == [9, 3]
    assert await numbers(status=Status.CANCELLED, project="milk", before=job_id(9)) == [3]
    assert await numbers(status=Status.RUNNING) == []
    assert await numbers(project="%") == []
    assert await jobs.page(limit=0) == []


async def test_a_page_tells_how_long_each_log_is(jobs: Jobs, database: Database) -> None:
    for number in range(3):
        await jobs.add(new_job(number), "me", None)
    for stored in (chunk(1, "a", "b"), chunk(3, "c")):
        await database.insert(
            "INSERT INTO log_chunk VALUES (?,?,?,1,0,0,0,0,0,x'',x'',0)",
            [job_id(1), stored.first, stored.count],
        )

    assert [job.log_lines for job in await jobs.page(limit=9)] == [0, 3, 0]
    found = await jobs.get(job_id(1))
    assert found
    assert found.log_lines == 3


async def test_changes_of_all_jobs_come_once_and_in_order(jobs: Jobs) -> None:
    assert await jobs.last_change() == 0
    await asyncio.gather(*(brought(jobs, Status.FAILED, number) for number in range(5)))

    seen = []
    after = 0
    while found := await jobs.changes(after, limit=4):
        assert all(change.id > after for change in found)
        seen += found
        after = found[-1].id

    assert len(seen) == 15
    assert after == await jobs.last_change()
    for number in range(5):
        own = [change for change in seen if change.job.id == job_id(number)]
        assert [change.id for change in own] == [e.id for e in await jobs.history(job_id(number))]
        job = await jobs.get(job_id(number))
        assert all(change.job == job for change in own)


async def test_a_change_that_no_belief_knows_yet_is_told_as_the_database_has_it(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await brought(jobs, Status.RUNNING, 0)
    last = await jobs.last_change()
    monkeypatch.setattr(jobs, "_keep", lambda _: None)  # it is committed, and comes to that later
    at = Expect(Status.RUNNING, 0)
    assert await jobs.move(job.id, at, Status.COMPLETED, NOW, reason=Reason.PASSED)

    believed = await jobs.current(job.id)
    assert believed is not None
    assert believed.status is Status.RUNNING
    assert [change.job.status for change in await jobs.changes(last, 9)] == [Status.COMPLETED]


async def test_setups_are_told_of_to_nobody_who_did_not_ask_for_them_by_name(jobs: Jobs) -> None:
    await brought(jobs, Status.RUNNING, 0)
    setup = await jobs.add(new_setup(1), "", None)
    await jobs.move(setup.id, Expect(Status.QUEUED, 0), Status.STARTING, NOW)
    await brought(jobs, Status.STARTING, 2)
    await jobs.note(setup.id, NOW, "seen")

    assert [job.id for job in await jobs.page(limit=9)] == [job_id(2), job_id(0)]
    assert [job.id for job in await jobs.page(limit=1, before=job_id(2))] == [job_id(0)]
    starting = await jobs.page(limit=9, status=Status.STARTING, project="tea")
    assert [job.id for job in starting] == [job_id(2)]
    told = [change.job.id for change in await jobs.changes(0, limit=99)]
    assert told == [job_id(0)] * 3 + [job_id(2)] * 2
    assert await jobs.current(setup.id) == await jobs.get(setup.id)
    assert [entry.message for entry in await jobs.history(setup.id)] == [None, None, "seen"]
    assert await jobs.newest_id() == job_id(2)


async def test_whoever_goes_on_from_the_last_change_hears_all_that_come_after(jobs: Jobs) -> None:
    """Though the last one be a setup's, which is told to nobody."""
    job = await brought(jobs, Status.RUNNING, 0)
    setup = await jobs.add(new_setup(1), "", None)
    last = await jobs.last_change()
    assert last == (await jobs.history(setup.id))[-1].id
    assert await jobs.changes(last, limit=9) == []

    await jobs.note(setup.id, NOW, "seen")
    assert await jobs.changes(last, limit=9) == []
    await jobs.note(job.id, NOW, "seen")
    (change,) = await jobs.changes(last, limit=9)
    assert (change.job.id, change.id) == (job.id, await jobs.last_change())


async def test_many_changes_of_setups_do_not_hide_those_behind_them(jobs: Jobs) -> None:
    setup = await jobs.add(new_setup(0), "", None)
    for _ in range(20):
        await jobs.note(setup.id, NOW, "seen")
    await jobs.add(new_job(1), "me", None)

    assert [change.job.id for change in await jobs.changes(0, limit=1)] == [job_id(1)]


async def test_the_newest_id_is_known(jobs: Jobs) -> None:
    assert await jobs.newest_id() is None
    for number in (3, 9, 5):
        await jobs.add(new_job(number), "me", None)

    assert await jobs.newest_id() == job_id(9)


# -- what the dispatcher asks


async def test_the_head_of_the_queue_is_the_oldest_of_the_highest_priority(jobs: Jobs) -> None:
    for number, priority in enumerate((0, 5, -3, 5, 0)):
        await jobs.add(new_job(number, priority=priority), "me", None)

    order = []
    while head := await jobs.queue_head(NOW, Kind.JOB):
        order.append(head.id)
        await jobs.move(head.id, Expect(Status.QUEUED, 0), Status.STARTING, NOW)

    assert order == [job_id(number) for number in (1, 3, 0, 4, 2)]


async def test_the_place_of_a_job_is_told_in_the_order_of_the_queue(jobs: Jobs) -> None:
    for number, priority in enumerate((0, 5, -3, 5, 0)):
        await jobs.add(new_job(number, priority=priority), "me", None)
    await jobs.add(new_setup(5, priority=9), "", None)
    waits = await jobs.add(new_job(6, waits=True), "me", None)

    assert [await jobs.place(new_job(n, priority=p)) for n, p in enumerate((0, 5, -3, 5, 0))] == [
        Place(number, 5) for number in (3, 1, 5, 2, 4)
    ]
    assert await jobs.place(waits) is None


async def test_a_job_that_has_left_the_queue_has_no_place(jobs: Jobs) -> None:
    before = await jobs.add(new_job(), "me", None)
    assert await jobs.place(before) == Place(1, 1)
    await jobs.move(before.id, Expect(Status.QUEUED, 0), Status.STARTING, NOW)

    assert await jobs.place(before) is None


async def test_a_job_in_its_backoff_is_passed_over_until_then(jobs: Jobs) -> None:
    await jobs.add(new_job(0, priority=9), "me", None)
    await jobs.add(new_job(1), "me", None)
    await jobs.note_quietly(job_id(0), not_before=NOW + SECOND)

    for now, expected in ((NOW, 1), (NOW + SECOND - timedelta.resolution, 1), (NOW + SECOND, 0)):
        head = await jobs.queue_head(now, Kind.JOB)
        assert head
        assert head.id == job_id(expected)
    assert await jobs.next_backoff() == NOW + SECOND


async def test_each_kind_has_a_queue_of_its_own(jobs: Jobs) -> None:
    await jobs.add(new_job(0), "me", None)
    await jobs.add(new_setup(1, priority=9), "", None)

    heads = [await jobs.queue_head(NOW, kind) for kind in (Kind.JOB, Kind.SETUP)]

    assert [head and head.id for head in heads] == [job_id(0), job_id(1)]


async def test_a_job_that_waits_for_its_environment_is_no_head_until_it_is_released(
    jobs: Jobs,
) -> None:
    await jobs.add(new_job(0, priority=9, waits=True), "me", None)
    await jobs.add(new_job(1), "me", None)
    head = await jobs.queue_head(NOW, Kind.JOB)
    assert head
    assert head.id == job_id(1)

    released = await jobs.note(job_id(0), NOW, "its environment is ready", waits=False)

    assert await jobs.queue_head(NOW, Kind.JOB) == released


async def test_a_job_may_have_to_wait_again_for_its_environment(jobs: Jobs) -> None:
    job = await brought(jobs, Status.STARTING, environment="e" * 64)

    again = await jobs.move(
        job.id, Expect(Status.STARTING, 0), Status.QUEUED, NOW, waits=True, build=job_id(7)
    )

    assert again == replace(job, status=Status.QUEUED, waits=True, build=job_id(7))
    assert again == await jobs.get(job.id)
    assert await jobs.waiting() == [job.id]
    assert await jobs.queue_head(NOW, Kind.JOB) is None


async def test_only_a_job_that_the_queue_could_admit_has_a_backoff_to_wait_out(jobs: Jobs) -> None:
    await jobs.add(new_job(0, not_before=NOW, waits=True), "me", None)
    assert await jobs.next_backoff() is None

    await jobs.add(new_setup(1, not_before=NOW + SECOND), "", None)

    assert await jobs.next_backoff() == NOW + SECOND
    assert await jobs.queue_head(NOW, Kind.SETUP) is None


async def test_jobs_that_wait_are_known_oldest_first(jobs: Jobs) -> None:
    for number in (3, 1, 4, 2, 0):
        await jobs.add(new_job(number, waits=number != 2, priority=number), "me", None)
    await jobs.note(job_id(1), NOW, "cancel", cancel_by="me")
    await jobs.move(job_id(4), Expect(Status.QUEUED, 0), Status.FAILED, NOW)

    assert await jobs.waiting() == [job_id(0), job_id(1), job_id(3)]


async def test_jobs_that_wait_for_one_environment_are_known_oldest_first(jobs: Jobs) -> None:
    mine, other = "e" * 64, "f" * 64
    for number in (3, 2, 1, 0):
        await jobs.add(new_job(number, waits=True, environment=mine), "me", None)
    await jobs.add(new_job(4, waits=True, environment=other), "me", None)
    await jobs.add(new_job(5, waits=True), "me", None)
    await jobs.add(new_job(6, waits=False, environment=mine), "me", None)
    await jobs.add(new_setup(7, mine), "", None)
    await jobs.note(job_id(1), NOW, "cancel", cancel_by="me")
    await jobs.move(job_id(2), Expect(Status.QUEUED, 0), Status.FAILED, NOW)

    waiting = await jobs.waiting_for(mine)

    assert waiting == [await jobs.get(job_id(0)), await jobs.get(job_id(3))]
    assert [job.id for job in await jobs.waiting_for(other)] == [job_id(4)]
    assert await jobs.waiting_for("%") == []


async def test_an_environment_is_in_use_until_the_last_job_that_needs_it_has_ended(
    jobs: Jobs,
) -> None:
    for number, status in enumerate(Status):
        await brought(jobs, status, number)
        await jobs.note_quietly(job_id(number), environment=status.value)
    await jobs.add(new_job(10, waits=True, environment="waits"), "me", None)
    await jobs.add(new_job(11, environment="queued"), "me", None)
    await jobs.add(new_setup(12, "built"), "", None)
    await jobs.add(new_job(13), "me", None)

    assert await jobs.environments_in_use() == {"queued", "starting", "running", "waits"}

    await jobs.move(job_id(11), Expect(Status.QUEUED, 0), Status.CANCELLED, NOW)
    assert "queued" in await jobs.environments_in_use()
    await jobs.move(job_id(0), Expect(Status.QUEUED, 0), Status.CANCELLED, NOW)
    assert "queued" not in await jobs.environments_in_use()


async def test_there_is_no_head_and_no_backoff_where_nothing_waits(jobs: Jobs) -> None:
    await brought(jobs, Status.RUNNING, not_before=NOW)

    assert await jobs.queue_head(NOW, Kind.JOB) is None
    assert await jobs.next_backoff() is None


async def test_active_jobs_are_those_that_hold_a_slot(jobs: Jobs) -> None:
    for number, status in enumerate(Status):
        await brought(jobs, status, number)

    assert await jobs.active() == {
        job_id(number): 2**30
        for number, status in enumerate(Status)
        if status in (Status.STARTING, Status.RUNNING)
    }


async def test_setups_hold_slots_of_their_own(jobs: Jobs) -> None:
    await brought(jobs, Status.RUNNING, 0)
    await jobs.add(new_setup(1, memory=7), "", None)
    await jobs.move(job_id(1), Expect(Status.QUEUED, 0), Status.STARTING, NOW)

    assert sorted(await jobs.held()) == [(Kind.JOB, 2**30), (Kind.SETUP, 7)]
    assert await jobs.active() == {job_id(0): 2**30, job_id(1): 7}


async def test_queued_jobs_whose_cancel_was_asked_for_are_known(jobs: Jobs) -> None:
    for number, status in enumerate(Status):
        await brought(jobs, status, number)
        await jobs.note(job_id(number), NOW, "cancel", cancel_by="me")

    assert await jobs.cancelled_while_queued() == [job_id(0)]


@pytest.mark.parametrize("count", [0, 1, 999, 1001, 40_000])
async def test_attempts_may_be_asked_of_any_number_of_jobs(jobs: Jobs, count: int) -> None:
    """SQLite bounds the parameters of a statement: 32,766 here, 999 in older ones."""
    for number in range(3):
        await brought(jobs, Status.STARTING, number, attempt=0)

    asked = {job_id(number): None for number in range(1, count + 1)}
    found = await jobs.attempts(asked)

    assert found == {job_id(number): 0 for number in range(1, min(3, count + 1))}


# -- every field


def instants() -> st.SearchStrategy[datetime]:
    return st.datetimes(timezones=st.just(UTC))


TEXT = st.text(max_size=30)
TEXTS = st.lists(TEXT, max_size=3).map(tuple)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SPECS = st.builds(
    Spec,
    image=TEXT,
    run=TEXT,
    timeout=st.floats(0.001, 1e6),
    memory=st.integers(1, 2**50),
    cpus=st.floats(0.01, 512),
    network=st.booleans(),
    project=TEXT,
    env=st.dictionaries(TEXT, TEXT, max_size=3),
    setup=TEXTS,
    setup_inputs=st.dictionaries(TEXT, TEXT, max_size=3),
    backend=st.none() | st.builds(Backend, TEXT, TEXTS, st.none() | TEXT),
    cache=st.sampled_from(Cache),
    secrets=TEXTS,
    setup_secrets=TEXTS,
)
SUBMITTED = st.fixed_dictionaries(
    {
        "spec": SPECS,
        "created_at": instants(),
        "mark_token": TEXT,
        "tar_length": st.integers(0, 2**50),
        "source": st.dictionaries(TEXT, JSON, max_size=3),
        "priority": st.integers(-(2**31), 2**31),
        "retry_of": st.none() | TEXT,
        "not_before": st.none() | instants(),
        "kind": st.sampled_from(Kind),
        "environment": st.none() | TEXT,
        "waits": st.booleans(),
    }
)
FOUND_LATER = st.fixed_dictionaries(
    {
        "exit_code": st.none() | st.integers(-1, 255),
        "attempt": st.integers(0, 9),
        "container_id": st.none() | TEXT,
        "container": st.none()
        | st.builds(
            ContainerState,
            id=TEXT,
            name=TEXT,
            status=TEXT,
            started_at=st.none() | instants(),
            stopped_at=st.none() | instants(),
            exit_code=st.none() | st.integers(-1, 255),
            error=st.none() | TEXT,
        ),
        "started_at": st.none() | instants(),
        "deadline_at": st.none() | instants(),
        "not_before": st.none() | instants(),
        "starting_at": st.none() | instants(),
        "sent_at": st.none() | instants(),
        "cancel_by": st.none() | TEXT,
        "stop": st.none() | st.builds(Stop, st.sampled_from(Reason), instants(), st.none() | TEXT),
        "kills": st.lists(st.integers(1, 64), max_size=4).map(tuple),
        "oom": st.booleans(),
        "engine_restarted_at": st.none() | instants(),
        "log_complete": st.booleans(),
        "log_incomplete": st.booleans(),
        "keep_until": st.none() | instants(),
        "environment": st.none() | TEXT,
        "waits": st.booleans(),
        "build": st.none() | TEXT,
        "granted": st.dictionaries(TEXT, TEXT, max_size=3),
    }
)
ENDED = st.fixed_dictionaries(
    {"reason": st.sampled_from(Reason), "message": TEXT, "finished_at": instants()}
)


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(submitted=SUBMITTED, later=FOUND_LATER, end=ENDED)
async def test_every_field_comes_back_as_it_was_stored(
    jobs: Jobs, submitted: dict[str, Any], later: dict[str, Any], end: dict[str, Any]
) -> None:
    job = Job(id=f"{int(await jobs.newest_id() or 0) + 1:08}", status=Status.QUEUED, **submitted)
    known = {"id", "status", "log_lines"} | submitted.keys() | later.keys() | end.keys()
    assert known == {field.name for field in fields(Job)}

    assert await jobs.add(job, "me", None) == job
    assert await jobs.get(job.id) == job

    stop = later["stop"]
    changes = {name: value for name, value in later.items() if name != "stop"} | {
        "kills": list(later["kills"]),
        "stop_cause": stop and stop.cause,
        "stop_at": stop and stop.at,
        "stop_by": stop and stop.by,
    }
    noted = await jobs.note(job.id, NOW, "later", **changes)
    assert noted == replace(job, **later)
    assert await jobs.get(job.id) == noted

    expect, to = Expect(Status.QUEUED, noted.attempt), Status.CANCELLED
    at = end["finished_at"]
    ended = await jobs.move(job.id, expect, to, at, reason=end["reason"], message=end["message"])
    assert ended == replace(noted, status=to, **end)
    assert await jobs.get(job.id) == ended
    assert (ended in await jobs.page(limit=1000)) == (job.kind is Kind.JOB)


async def test_a_spec_of_the_first_release_has_no_setup(jobs: Jobs, database: Database) -> None:
    job = await jobs.add(new_job(0), "me", None)
    for key in ("setup", "setup_inputs", "backend", "cache", "secrets", "setup_secrets"):
        await database.insert("UPDATE job SET spec = json_remove(spec, ?)", [f"$.{key}"])

    assert await jobs.get(job.id) == job


async def test_instants_keep_their_microseconds_and_compare_in_any_zone(
    jobs: Jobs, path: Path
) -> None:
    await jobs.add(new_job(0), "me", None)

    ((stored,),) = rows(path, "SELECT created_at FROM job")
    assert stored == int(NOW.timestamp()) * 10**6 + 678901
    assert (await jobs.page(limit=1))[0].created_at == NOW

"""The outbox: what is told stands beside what it tells of, in one transaction."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ciworker.domain.job import Job, Reason, Status
from ciworker.domain.webhook import (
    EVENTS,
    Delivery,
    DeliveryKind,
    DeliveryState,
    Message,
    Subscriber,
    messages,
)
from ciworker.errors import Conflict, StoreRefused, Unknown
from ciworker.store import webhooks
from ciworker.store.audit import Action, Audit, Deed
from ciworker.store.jobs import Expect, Jobs
from ciworker.store.session import Database
from ciworker.store.webhooks import Deliveries, Outbox
from tests.store.lab import NOW, SECOND, new_job, new_setup, rows

PENDING, DELIVERED, GIVEN_UP = DeliveryState


class Wakes:
    """How often the deliverer was woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def woken() -> Wakes:
    return Wakes()


def tell(job: Job, at: datetime) -> Sequence[Message]:
    return messages(job, at, [Subscriber("a", EVENTS), Subscriber("b", ["job.completed"])], None)


@pytest.fixture
def told(database: Database, woken: Wakes) -> Jobs:
    """Jobs that two endpoints are told of."""
    return Jobs(database, on_change=lambda _: None, outbox=Outbox(tell, woken))


@pytest.fixture
def deliveries(database: Database, woken: Wakes) -> Deliveries:
    return Deliveries(database, woken)


def message(endpoint: str = "a", body: bytes = b"{}") -> Message:
    return Message(DeliveryKind.WEBHOOK, endpoint, "webhook.test", None, body)


async def due(deliveries: Deliveries, now: datetime) -> list[Delivery]:
    found = [await deliveries.due(b, now, 100) for b in await deliveries.backlogs()]
    return [delivery for several in found for delivery in several]


async def test_each_step_of_a_job_is_told_to_who_wants_it(
    told: Jobs, deliveries: Deliveries, woken: Wakes
) -> None:
    job = await told.add(new_job(), "me", None)
    for before, after in (("queued", "starting"), ("starting", "running")):
        await told.move(job.id, Expect(Status(before), 0), Status(after), NOW)
    await told.move(job.id, Expect(Status.RUNNING, 0), Status.COMPLETED, NOW, reason=Reason.PASSED)
    found = [(d.message.endpoint, d.message.type) for d in await due(deliveries, NOW)]
    steps = ["queued", "starting", "running", "completed"]
    assert sorted(found) == sorted([("a", f"job.{s}") for s in steps] + [("b", "job.completed")])
    assert woken.count == 4


async def test_what_tells_nobody_anything_wakes_nobody(
    told: Jobs, deliveries: Deliveries, woken: Wakes
) -> None:
    await told.add(new_setup(0), "", None)
    job = await told.add(new_job(1), "me", "key")
    await told.add(new_job(2), "me", "key")
    await told.note(job.id, NOW, "a note")
    assert await told.move(job.id, Expect(Status.RUNNING, 0), Status.COMPLETED, NOW) is None
    assert [d.message.job for d in await due(deliveries, NOW)] == [job.id]
    assert woken.count == 1


async def test_a_change_that_is_not_committed_is_told_nobody(
    database: Database, deliveries: Deliveries, woken: Wakes, path: Path
) -> None:
    def broken(job: Job, at: datetime) -> Sequence[Message]:
        if job.status is Status.QUEUED:
            return tell(job, at)
        refused: Any = None  # by SQLite
        return [*tell(job, at), message(body=refused)]

    jobs = Jobs(database, on_change=lambda _: None, outbox=Outbox(broken, woken))
    job = await jobs.add(new_job(), "me", None)
    with pytest.raises(StoreRefused):
        await jobs.move(job.id, Expect(Status.QUEUED, 0), Status.STARTING, NOW)
    assert rows(path, "SELECT type FROM webhook_delivery") == [("job.queued",)]
    assert rows(path, "SELECT status FROM job") == [("queued",)]
    assert len(await due(deliveries, NOW)) == 1


async def test_a_message_is_read_as_it_was_written(deliveries: Deliveries) -> None:
    made = await deliveries.add(message(body=b'{"\xc3\xa9": 1}'), NOW)
    assert await deliveries.get(made.id) == made
    tried = replace(
        made, tries=2, state=GIVEN_UP, next_try_at=None, tried_at=NOW, answer=500, error="no"
    )
    await deliveries.record(tried)
    assert await deliveries.get(made.id) == tried
    with pytest.raises(Unknown, match="webhook list"):
        await deliveries.get("msg_x")


async def test_what_is_due_is_tried_the_longest_due_first(deliveries: Deliveries) -> None:
    late = await deliveries.add(message(), NOW + SECOND)
    early = await deliveries.add(message(), NOW)
    other = await deliveries.add(message("b"), NOW)
    assert await due(deliveries, NOW - SECOND) == []
    assert await due(deliveries, NOW) == [early, other]
    assert await due(deliveries, NOW + SECOND) == [early, late, other]
    backlogs = {backlog.endpoint: backlog for backlog in await deliveries.backlogs()}
    assert (backlogs["a"].pending, backlogs["a"].failing, backlogs["a"].oldest) == (2, 0, NOW)
    await deliveries.record(replace(early, tries=1, next_try_at=NOW + 5 * SECOND))
    (backlog, _) = await deliveries.backlogs()
    assert (backlog.failing, backlog.due) == (1, NOW + SECOND)


async def test_after_a_clock_is_set_back_nothing_waits_until_it_is_where_it_was(
    deliveries: Deliveries,
) -> None:
    made = await deliveries.add(message(), NOW + timedelta(hours=9))
    assert await due(deliveries, NOW) == [made]


async def test_what_is_over_can_be_sent_again_and_is_then_as_new_and_who_did_so_is_told_once(
    database: Database, deliveries: Deliveries, woken: Wakes
) -> None:
    made = await deliveries.add(message(), NOW)
    with pytest.raises(Conflict, match="by itself"):
        await deliveries.again(made.id, NOW)
    await deliveries.record(replace(made, state=GIVEN_UP, tries=40, next_try_at=None, error="no"))
    assert await due(deliveries, NOW) == []
    woken.count = 0
    later = NOW + timedelta(days=5)
    deed = Deed(later, Action.REDELIVER, by="tea", address="local", subject=made.id)
    again = await deliveries.again(made.id, later, deed=deed)
    assert (again.id, again.state, again.tries, again.since) == (made.id, PENDING, 0, later)
    assert await due(deliveries, later) == [again]
    assert woken.count == 1
    with pytest.raises(Unknown):
        await deliveries.again("msg_x", NOW, deed=deed)
    with pytest.raises(Conflict):
        await deliveries.again(made.id, NOW, deed=deed)
    assert [told.deed for told in await Audit(database).page(limit=9)] == [deed]


async def test_a_try_that_ends_after_its_message_was_settled_changes_nothing(
    deliveries: Deliveries,
) -> None:
    made = await deliveries.add(message(), NOW)
    done = replace(made, state=DELIVERED, next_try_at=None, tries=1)
    await deliveries.record(done)
    await deliveries.record(replace(made, error="late"))
    assert await deliveries.get(made.id) == done


async def test_pages_are_newest_first_and_by_state(deliveries: Deliveries) -> None:
    made = [await deliveries.add(message(), NOW) for _ in range(3)]
    await deliveries.record(replace(made[1], state=DELIVERED, next_try_at=None))
    ids = [delivery.id for delivery in sorted(made, key=lambda d: d.id, reverse=True)]
    assert [delivery.id for delivery in await deliveries.page(9)] == ids
    assert [delivery.id for delivery in await deliveries.page(2)] == ids[:2]
    assert [delivery.id for delivery in await deliveries.page(9, DELIVERED)] == [made[1].id]


async def test_those_that_failed_are_found_behind_any_number_of_others(
    deliveries: Deliveries,
) -> None:
    first = await deliveries.add(message(), NOW)
    failed = replace(first, tries=1, error="no")
    await deliveries.record(failed)
    for _ in range(3):
        await deliveries.add(message(), NOW)
    assert await deliveries.page(1, failed=True) == [failed]
    assert await deliveries.page(1, PENDING, failed=True) == [failed]
    assert await deliveries.page(1, GIVEN_UP, failed=True) == []


async def test_old_ones_are_forgotten_and_too_many_given_up_where_that_is_seen(
    deliveries: Deliveries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "MOST_PENDING", 2)
    monkeypatch.setattr(webhooks, "MOST_KEPT", 3)
    old = await deliveries.add(message("old"), NOW - timedelta(days=8))
    await deliveries.record(replace(old, state=DELIVERED, next_try_at=None))
    waiting = await deliveries.add(message("old"), NOW - timedelta(days=8))
    crowd = sorted([await deliveries.add(message("b"), NOW) for _ in range(3)], key=lambda d: d.id)
    done = [await deliveries.add(message("c"), NOW) for _ in range(4)]
    for delivery in done:
        await deliveries.record(replace(delivery, state=DELIVERED, next_try_at=None))
    assert await deliveries.tidy(NOW) == 1
    left = {delivery.id: delivery.state for delivery in await deliveries.page(100)}
    assert old.id not in left
    assert left[waiting.id] is PENDING
    assert [left[delivery.id] for delivery in crowd] == [GIVEN_UP, PENDING, PENDING]
    kept = [delivery.id for delivery in sorted(done, key=lambda d: d.id)[1:]]
    assert [
        delivery.id for delivery in sorted(done, key=lambda d: d.id) if delivery.id in left
    ] == kept
    assert "more than 2 wait" in ((await deliveries.get(crowd[0].id)).error or "")

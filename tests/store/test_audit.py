"""The audit history: written with what it tells of or not at all, read by pages, bounded."""

from datetime import timedelta

import pytest

from ciworker.domain.job import Reason, Status
from ciworker.errors import Unknown
from ciworker.store.audit import Action, Audit, Deed, Recorded
from ciworker.store.jobs import Jobs
from ciworker.store.retention import Retention
from ciworker.store.session import Database
from ciworker.store.sessions import Sessions
from ciworker.store.tokens import Role, Tokens
from tests.store.lab import NOW, SECOND, job_id, new_job

ANY = Deed(NOW, Action.SUBMIT, "tea", "192.0.2.1", "t1")


@pytest.fixture
def audit(database: Database) -> Audit:
    return Audit(database)


async def told(audit: Audit) -> list[tuple[Action, str]]:
    return [(each.deed.action, each.deed.subject) for each in await audit.page(limit=100)]


async def test_a_deed_is_told_as_it_was_recorded(audit: Audit) -> None:
    deeds = [
        Deed(NOW, Action.DRAIN, "tea", "192.0.2.1", "t1"),
        Deed(NOW + SECOND, Action.REVOKE_TOKEN, "user 0", "local", None, "t1", "why"),
    ]
    for deed in deeds:
        await audit.record(deed)

    assert [each.deed for each in await audit.page(limit=100)] == deeds[::-1]


async def test_pages_meet_every_deed_once_newest_first(audit: Audit) -> None:
    """Several of one instant, and clocks that were set back."""
    instants = [NOW + n % 4 * SECOND for n in range(21)]
    for n, at in enumerate(instants):
        await audit.record(Deed(at, Action.DRAIN, f"{n}", "local"))

    met: list[Recorded] = []
    before = None
    while page := await audit.page(limit=4, before=before):
        met += page
        before = page[-1].deed.at, page[-1].id
    assert met == list(await audit.page(limit=100))
    assert {each.deed.by for each in met} == {f"{n}" for n in range(21)}
    assert [each.deed.at for each in met] == sorted(instants, reverse=True)


async def test_since_leaves_out_what_is_older(audit: Audit) -> None:
    for n in range(5):
        await audit.record(Deed(NOW + n * SECOND, Action.DRAIN, f"{n}", "local"))

    found = await audit.page(limit=100, since=NOW + 3 * SECOND)
    assert [each.deed.by for each in found] == ["4", "3"]


# with what it tells of


async def test_a_new_job_and_its_deed_are_one_and_the_same_job_has_no_second(
    audit: Audit, jobs: Jobs
) -> None:
    await jobs.add(new_job(1), "t1", "key", deed=ANY)
    await jobs.add(new_job(2), "t1", "key", deed=ANY)
    assert await told(audit) == [(Action.SUBMIT, "")]

    with pytest.raises(Exception, match="UNIQUE"):
        await jobs.add(new_job(1), "t1", None, deed=ANY)
    assert len(await told(audit)) == 1


async def test_a_cancel_that_changes_nothing_is_not_told(audit: Audit, jobs: Jobs) -> None:
    await jobs.add(new_job(1), "t1", None)
    assert await jobs.note(job_id(1), NOW, "asked for", deed=ANY, cancel_by="tea")
    assert await jobs.note(job_id(7), NOW, "asked for", deed=ANY, cancel_by="tea") is None
    assert len(await told(audit)) == 1


async def test_a_token_and_its_deed_are_one(audit: Audit, database: Database) -> None:
    tokens = Tokens(database)
    token, _ = await tokens.create("tea", Role.READ, NOW, deed=ANY)
    assert await told(audit) == [(ANY.action, token.id)]

    def fail(_text: str) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        await tokens.create("tea", Role.READ, NOW, deed=ANY, publish=fail)
    for token_id in (token.id, token.id, "nobody"):
        try:
            await tokens.revoke(token_id, NOW, deed=Deed(NOW, Action.REVOKE_TOKEN, "x", "local"))
        except Unknown:
            assert len(await told(audit)) == 2
    assert [action for action, _ in await told(audit)] == [Action.REVOKE_TOKEN, ANY.action]


async def test_a_session_and_its_deeds_are_one(audit: Audit, database: Database) -> None:
    token, _ = await Tokens(database).create("tea", Role.READ, NOW)
    sessions = Sessions(database)
    text = await sessions.begin(token.id, NOW, deed=ANY)
    assert text is not None
    assert await sessions.begin("nobody", NOW, deed=ANY) is None
    await sessions.end(text + "x", NOW, lambda _: ANY)
    session_id = text.partition("_")[0]
    assert await told(audit) == [(ANY.action, session_id)]

    await sessions.end(
        text, NOW, lambda over: Deed(NOW, Action.LOG_OUT, "x", "local", None, over.id)
    )
    await sessions.end(text, NOW, lambda _: ANY)
    assert await told(audit) == [(Action.LOG_OUT, session_id), (ANY.action, session_id)]


# retention


async def test_what_is_old_is_removed(audit: Audit, database: Database) -> None:
    for n in range(1200):
        await audit.record(Deed(NOW + n * SECOND, Action.DRAIN, f"{n}", "local"))

    await Retention(database).remove_deeds(NOW + 1100 * SECOND)

    found = [int(each.deed.by) for each in await audit.page(limit=1000)]
    assert found == list(range(1199, 1100, -1))


async def test_of_too_many_the_oldest_go(
    audit: Audit, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciworker.store.retention.MOST_KEPT", 10)
    for n in range(25):
        await audit.record(Deed(NOW + n * SECOND, Action.DRAIN, f"{n}", "local"))

    await Retention(database).remove_deeds(NOW - timedelta(days=1))

    found = [int(each.deed.by) for each in await audit.page(limit=1000)]
    assert found == list(range(24, 14, -1))


async def test_jobs_that_are_removed_leave_their_deeds(
    audit: Audit, jobs: Jobs, database: Database
) -> None:
    await jobs.add(
        new_job(1, status=Status.FAILED, reason=Reason.CONTAINER_LOST), "t1", None, deed=ANY
    )
    await jobs.hide([job_id(1)])
    await Retention(database).remove([job_id(1)])
    assert len(await told(audit)) == 1

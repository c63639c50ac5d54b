"""Environments in a worker without its web: built once, kept, failed, removed, over crashes."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ciworker.control import life as lives
from ciworker.control import needs, setuplog
from ciworker.control.keys import job_key
from ciworker.control.setuplog import SetupLog
from ciworker.domain.container import LABEL_BUILD, LABEL_ENVIRONMENT
from ciworker.domain.decide import Bucket
from ciworker.domain.environment import Environment, EnvironmentStatus
from ciworker.domain.job import Cache, Job, Kind, Reason, Status
from ciworker.domain.log import Stream
from ciworker.errors import EngineFailed, EngineUnavailable, StoreUnavailable
from ciworker.feed.feed import Feed
from ciworker.store.session import Database
from tests.unit.control.conftest import NewLab
from tests.unit.control.lab import PATIENCE, Lab, Life

READY, FAILED, ABSENT = EnvironmentStatus.READY, EnvironmentStatus.FAILED, EnvironmentStatus.ABSENT
SETUP = ("echo setting up",)
INPUTS = {"tea.txt": "1"}


async def submit(life: Life, run: str = "echo tested", **fields: object) -> str:
    return await life.submit(run, **{"setup": SETUP, "setup_inputs": INPUTS, **fields})


async def only(life: Life) -> Environment:
    """The one environment there is, as it is now."""
    (found,) = await life.parts.environments.all()
    return found


async def setups(life: Life) -> list[Job]:
    """The setup jobs of all environments' newest builds."""
    found = [await life.jobs.get(e.build) for e in await life.parts.environments.all() if e.build]
    return [job for job in found if job is not None]


def builds(life: Life) -> int:
    """How many containers of setups there were."""
    return life.calls("commit")


async def lines(life: Life, job_id: str) -> list[tuple[str, str]]:
    """Stream and text of each line of a job's log."""
    last = (await life.logs.end(job_id)).last
    found = [
        (line.stream.label, line.text.decode())
        async for chunk in life.logs.stream(job_id, 0, last)
        for line in chunk.lines()
    ]
    assert len(found) == last
    return found


async def images(life: Life) -> int:
    return len(await life.engine.images({}))


async def test_a_job_runs_in_the_environment_that_its_setup_left(lab: Lab) -> None:
    async with lab.life() as life:
        job = await life.ended(await submit(life))
        assert job.reason is Reason.PASSED
        environment = await only(life)
        assert (environment.status, environment.hits, environment.misses) == (READY, 0, 1)
        assert job.environment == environment.key
        (image,) = await life.engine.images({LABEL_ENVIRONMENT: environment.key})
        assert image.id == environment.layer
        assert image.names == (environment.tag,)
        assert image.labels[LABEL_BUILD] == environment.build


async def test_the_setups_lines_stand_in_a_group_before_the_jobs_own(lab: Lab) -> None:
    async with lab.life() as life:
        found = await lines(life, (await life.ended(await submit(life))).id)
    streams, texts = zip(*found, strict=True)
    assert texts[0].startswith("::group::Set up the environment ")
    assert texts[0].endswith("(it is the first one of this project)")
    assert texts[-2:] == ("::endgroup::", "tested")
    assert "setting up" in texts
    assert {streams[0], streams[-2]} == {Stream.WORKER.label}
    assert texts.count("setting up") == 1


async def test_the_next_job_starts_at_once_in_what_is_there(lab: Lab) -> None:
    async with lab.life() as life:
        await life.ended(await submit(life))
        again = await life.ended(await submit(life))
        assert again.reason is Reason.PASSED
        assert await lines(life, again.id) == [("stdout", "tested")]
        environment = await only(life)
        assert (environment.hits, environment.misses, builds(life)) == (1, 1, 1)


async def test_ten_jobs_with_one_new_key_make_one_build(new_lab: NewLab) -> None:
    lab = new_lab(max_jobs=3)
    async with lab.life() as life:
        held = life.engine.hold("create")
        submitted = [await submit(life) for _ in range(10)]
        for each in submitted:
            await life.printed(each, b"::group::")
        held.set()
        jobs = [await life.ended(each) for each in submitted]
        assert {job.reason for job in jobs} == {Reason.PASSED}
        assert builds(life) == 1
        for job in jobs:
            texts = [text for _, text in await lines(life, job.id)]
            assert texts.count("setting up") == 1
            assert texts[-1] == "tested"


async def test_two_keys_at_once_make_two_builds(lab: Lab) -> None:
    async with lab.life() as life:
        one, two = await submit(life), await submit(life, setup_inputs={"tea.txt": "2"})
        assert {(await life.ended(job)).reason for job in (one, two)} == {Reason.PASSED}
        assert builds(life) == 2


async def test_a_job_that_waits_holds_no_slot(lab: Lab) -> None:
    """There is one slot, and the setup ends only once a job behind it has ended."""
    held = lab.engine.hold("commit")
    async with lab.life() as life:
        waiting = await submit(life)
        await life.ended(await life.submit("echo overtaken"))
        job = await life.jobs.get(waiting)
        assert job is not None
        assert job.status is Status.QUEUED
        held.set()
        assert (await life.ended(waiting)).reason is Reason.PASSED


async def test_a_setup_that_fails_fails_its_jobs_with_its_exit_code_and_last_lines(
    lab: Lab,
) -> None:
    async with lab.life() as life:
        held = life.engine.hold("create")
        jobs = [await submit(life, setup=("echo no such package >&2; exit 7",)) for _ in range(3)]
        for each in jobs:
            await life.printed(each, b"::group::")
        held.set()
        for job in [await life.ended(each) for each in jobs]:
            assert (job.status, job.reason, job.exit_code) == (
                Status.FAILED, Reason.SETUP_FAILED, 7,
            )  # fmt: skip
            assert job.message is not None
            assert job.message.startswith("its setup failed: exit code 7: ")
            assert "no such package" in job.message
            assert ("stderr", "no such package") in await lines(life, job.id)
            assert job.attempt == 0
        environment = await only(life)
        assert (environment.status, environment.exit_code, environment.builds) == (FAILED, 7, 1)
        assert await images(life) == 0


async def test_a_job_submitted_after_a_failure_has_it_built_again(lab: Lab) -> None:
    async with lab.life() as life:
        failing = ("exit 1",)
        await life.ended(await submit(life, setup=failing))
        assert (await life.ended(await submit(life, setup=failing))).reason is Reason.SETUP_FAILED
        assert (await only(life)).builds == 2


async def test_a_setup_that_hangs_is_stopped_and_said_to_have(new_lab: NewLab) -> None:
    lab = new_lab(setup_timeout=0.5, stop_grace=0.2)
    async with lab.life() as life:
        job = await life.ended(await submit(life, setup=("echo hangs; sleep 600",)))
        assert job.reason is Reason.SETUP_FAILED
        assert job.message is not None
        assert "still running after setup_timeout" in job.message


async def test_a_setup_whose_container_is_lost_is_tried_again(lab: Lab) -> None:
    async with lab.life() as life:
        waiting = await submit(life, setup=("echo began; [ -e /tmp/never ] || sleep 0.3",))
        setup = await life.running((await building(life)).id)
        await life.engine.remove(setup.container_name)
        assert (await life.ended(waiting)).reason is Reason.PASSED
        environment = await only(life)
        assert (environment.builds, environment.status) == (2, READY)
        told = [entry.message or "" for entry in await life.jobs.history(waiting)]
        lost = f", try 2: {setup.id} came to no end: the container was killed"
        assert [lost in message for message in told].count(True) == 1


async def building(life: Life) -> Job:
    """The setup job, once there is one."""
    async with asyncio.timeout(20):
        while not (found := await setups(life)):
            await asyncio.sleep(0.005)
    return found[0]


async def test_a_setup_that_nobody_waits_for_any_more_is_cancelled(lab: Lab) -> None:
    async with lab.life() as life:
        waiting = await submit(life, setup=("echo began; sleep 600",))
        setup = await building(life)
        await life.running(setup.id)
        await life.cancel(waiting)
        assert (await life.ended(waiting)).reason is Reason.CANCELLED
        assert (await life.ended(setup.id)).reason is Reason.CANCELLED
        await life.comes_to_rest()
        assert (await only(life)).status is ABSENT
        assert await images(life) == 0


async def test_a_rebuild_makes_a_new_one_and_the_old_image_goes(lab: Lab) -> None:
    async with lab.life() as life:
        await life.ended(await submit(life))
        before = await only(life)
        assert (await life.ended(await submit(life, cache=Cache.REBUILD))).reason is Reason.PASSED
        await life.comes_to_rest()
        after = await only(life)
        assert (after.key, after.builds) == (before.key, 2)
        assert after.layer != before.layer
        assert [image.id for image in await life.engine.images({})] == [after.layer]


async def test_an_environment_of_its_own_goes_with_its_job(lab: Lab) -> None:
    async with lab.life() as life:
        kept = await life.ended(await submit(life))
        single = await life.ended(await submit(life, cache=Cache.OFF))
        assert single.reason is Reason.PASSED
        assert single.environment != kept.environment
        assert "this job asked for one of its own" in (await lines(life, single.id))[0][1]
        await life.comes_to_rest()
        assert [environment.key for environment in await life.parts.environments.all()] == [
            kept.environment
        ]
        assert await images(life) == 1


async def test_an_image_that_somebody_removed_is_built_again_for_the_next_job(lab: Lab) -> None:
    async with lab.life() as life:
        await life.ended(await submit(life))
        layer = (await only(life)).layer
        assert layer is not None
        await life.engine.remove_image(layer)
        job = await life.ended(await submit(life))
        assert job.reason is Reason.PASSED
        assert builds(life) == 2
        assert await images(life) == 1


async def test_a_resync_finds_that_an_image_is_gone_and_counts_a_repair(lab: Lab) -> None:
    async with lab.life() as life:
        await life.ended(await submit(life))
        environment = await only(life)
        assert environment.layer is not None
        await life.engine.remove_image(environment.layer)
        lab.clock.advance(10)
        report = await life.resync.run()
        assert list(report.buckets[Bucket.REMOVED]) == [f"ciworker-env:{environment.key[:12]}"]
        assert report.repairs == 1
        assert (await only(life)).status is ABSENT


async def test_an_image_that_cannot_be_stored_fails_the_jobs_in_words(lab: Lab) -> None:
    lab.engine.fail("commit", EngineFailed("write /layer: no space left on device"), times=9)
    async with lab.life() as life:
        job = await life.ended(await submit(life))
        assert job.reason is Reason.SETUP_FAILED
        assert job.message is not None
        assert "could not be stored: write /layer: no space left on device" in job.message
        assert "make room on Docker's disk" in job.message
        assert builds(life) == 3


async def test_a_full_disk_makes_room_first(lab: Lab) -> None:
    async with lab.life() as life:
        old = await life.ended(await submit(life, setup_inputs={"tea.txt": "old"}))
        life.engine.fail("commit", EngineFailed("no space left on device"))
        assert (await life.ended(await submit(life))).reason is Reason.PASSED
        await life.comes_to_rest()
        rows = {row.key: row for row in await life.parts.environments.all()}
        assert old.environment is not None
        gone = rows[old.environment]
        assert (gone.status, gone.message) == (ABSENT, "the engine had no room for another")


async def test_a_commit_whose_answer_is_lost_leaves_one_image(lab: Lab) -> None:
    lab.engine.fail("commit", EngineUnavailable("gone"), after=True)
    async with lab.life() as life:
        assert (await life.ended(await submit(life))).reason is Reason.PASSED
        await life.comes_to_rest()
        assert await images(life) == 1


async def test_the_least_recently_used_go_when_there_are_too_many(new_lab: NewLab) -> None:
    lab = new_lab(environments_size=1)
    async with lab.life() as life:
        first = await life.ended(await submit(life, setup_inputs={"tea.txt": "1"}))
        second = await life.ended(await submit(life, setup_inputs={"tea.txt": "2"}))
        assert {first.reason, second.reason} == {Reason.PASSED}
        await life.resync.run()
        await life.comes_to_rest()
        assert await images(life) == 0
        messages = [row.message for row in await life.parts.environments.all()]
        assert messages == ["to keep all within 1 B"] * 2


async def test_one_in_use_stays_until_its_job_has_ended(lab: Lab) -> None:
    async with lab.life() as life:
        job = await submit(life, "echo on; sleep 600")
        running = await life.running(job)
        assert running.environment is not None
        await life.environments.remove(running.environment, "removed by me")
        assert await images(life) == 1
        await life.cancel(job)
        await life.ended(job)
        await life.environments.remove(running.environment, "removed by me")
        await life.comes_to_rest()
        assert await images(life) == 0
        assert (await only(life)).message == "removed by me"


async def test_a_base_image_that_changed_under_its_tag_makes_a_new_environment(lab: Lab) -> None:
    async with lab.life() as life:
        first = await life.ended(await submit(life))
        life.engine.images_by_name["fake"] = replace(
            life.engine.images_by_name["fake"], id="sha256:other"
        )
        second = await life.ended(await submit(life))
        assert first.environment != second.environment
        headline = (await lines(life, second.id))[0][1]
        assert "fake is another image than before: sha256:other" in headline


async def test_setups_are_no_jobs_that_a_list_shows(lab: Lab) -> None:
    async with lab.life() as life:
        job = await life.ended(await submit(life))
        assert [listed.id for listed in await life.jobs.page(limit=10)] == [job.id]
        (setup,) = await setups(life)
        assert setup.kind is Kind.SETUP
        changes = await life.jobs.changes(0, 100)
        assert {change.job.id for change in changes} == {job.id}


@pytest.mark.parametrize("call", ["create", "start", "commit", "images"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_life_that_ends_at_a_call_is_gone_on_with(lab: Lab, call: str, after: bool) -> None:
    """The worker is gone before the call reaches the engine, or before its answer comes back."""
    lab.engine.fail(call, EngineUnavailable("gone"), after=after, times=1)
    async with lab.life(clean=False) as life:
        held = life.engine.hold("create" if call == "images" else call)
        job = await submit(life)
        async with asyncio.timeout(20):
            while not life.calls(call):
                await asyncio.sleep(0.005)
        held.set()
    async with lab.life() as life:
        assert (await life.ended(job)).reason is Reason.PASSED
        await life.comes_to_rest()
        assert await images(life) == 1
        texts = [text for _, text in await lines(life, job)]
        assert texts.count("setting up") == 1
        assert texts.count("::endgroup::") == 1


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    """A folder that containers of `flagged` see as /flags."""
    folder = tmp_path / "flags"
    folder.mkdir()
    return folder


@pytest.fixture
def flagged(new_lab: NewLab, flags: Path) -> Lab:
    return new_lab(job_mounts=(f"{flags}:/flags:ro",), start_attempts=1)


async def test_a_rebuild_that_fails_fails_only_who_asked_and_leaves_what_was_there(
    flagged: Lab, flags: Path
) -> None:
    lab, broken = flagged, flags / "broken"
    setup = ("if [ -e /flags/broken ]; then exit 9; fi",)
    async with lab.life() as life:
        await life.ended(await submit(life, setup=setup))
        before = await only(life)
        broken.touch()
        wish = await life.ended(await submit(life, setup=setup, cache=Cache.REBUILD))
        assert (wish.reason, wish.exit_code) == (Reason.SETUP_FAILED, 9)
        assert (await life.ended(await submit(life, setup=setup))).reason is Reason.PASSED
        await life.resync.run()
        await life.comes_to_rest()
        after = await only(life)
        assert (after.status, after.layer, after.good) == (READY, before.layer, before.build)
        assert [image.id for image in await life.engine.images({})] == [before.layer]


async def test_others_do_not_wait_for_a_rebuild_and_one_that_is_cancelled_changes_nothing(
    flagged: Lab, flags: Path
) -> None:
    lab, slow = flagged, flags / "slow"
    setup = ("if [ -e /flags/slow ]; then sleep 600; fi",)
    async with lab.life() as life:
        await life.ended(await submit(life, setup=setup))
        before = await only(life)
        slow.touch()
        wish = await submit(life, setup=setup, cache=Cache.REBUILD)
        await life.printed(wish, b"::group::")
        assert (await life.ended(await submit(life, setup=setup))).reason is Reason.PASSED
        await life.cancel(wish)
        assert (await life.ended(wish)).reason is Reason.CANCELLED
        await life.comes_to_rest()
        after = await only(life)
        assert (after.status, after.layer, after.build) == (READY, before.layer, before.build)


async def test_cancelled_setups_use_up_no_attempts(flagged: Lab, flags: Path) -> None:
    lab, slow = flagged, flags / "slow"
    slow.touch()
    setup = ("echo began; if [ -e /flags/slow ]; then sleep 600; fi",)
    async with lab.life() as life:
        for _ in range(2):
            waiting = await submit(life, setup=setup)
            await life.printed(waiting, b"began")
            await life.cancel(waiting)
            await life.ended(waiting)
        slow.unlink()
        assert (await life.ended(await submit(life, setup=setup))).reason is Reason.PASSED


async def test_of_a_job_whose_own_environment_failed_nothing_is_kept(lab: Lab) -> None:
    async with lab.life() as life:
        job = await life.ended(await submit(life, setup=("exit 1",), cache=Cache.OFF))
        assert job.reason is Reason.SETUP_FAILED
        await life.comes_to_rest()
        assert await life.parts.environments.all() == []


async def test_a_failed_environment_that_is_removed_is_forgotten(lab: Lab) -> None:
    async with lab.life() as life:
        await life.ended(await submit(life, setup=("exit 1",)))
        await life.environments.remove((await only(life)).key, "removed by me")
        assert await life.parts.environments.all() == []


async def test_no_spool_file_of_a_setup_stays(lab: Lab) -> None:
    async with lab.life() as life:
        waiting = await submit(life, setup=("echo began; sleep 0.3",))
        setup = await life.running((await building(life)).id)
        await life.engine.remove(setup.container_name)
        await life.ended(waiting)
        await life.comes_to_rest()
        assert [path.name for path in lab.settings.spool.iterdir()] == [f"{waiting}.tar.zst"]


async def test_of_a_long_setup_log_each_job_gets_the_head_and_the_tail(lab: Lab) -> None:
    count = 30_000
    async with lab.life() as life:
        job = await life.ended(
            await submit(life, setup=(f"seq -f 'line %.0f {'x' * 80}' {count}",))
        )
        (setup,) = await setups(life)
        texts = [text for _, text in await lines(life, job.id)]
    (told,) = (text for text in texts if "left out here" in text)
    printed = [int(text.split()[1]) for text in texts if text.startswith("line ")]
    left_out = int(told.split()[1].replace(",", ""))
    assert told.endswith(f"`ciclient logs {setup.id}` has all")
    assert len(printed) + left_out == count
    assert printed == [n for n in range(1, count + 1) if n in set(printed)]
    assert printed[0] == 1
    assert printed[-199:] == list(range(count - 198, count + 1))


async def test_a_store_that_is_away_for_long_while_lines_are_copied_leaves_no_job_stuck(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of the copier that failed are stored before another one counts on from them."""
    monkeypatch.setattr(needs, "RETRY", 0.0)
    monkeypatch.setattr(lives, "STORE_WAIT", 0.01)
    monkeypatch.setattr(setuplog, "MOST_BYTES", 0)
    monkeypatch.setattr(setuplog, "LAST_LINES", 1)
    away = Away(monkeypatch)
    async with lab.life() as life:
        job_id = await submit(life, setup=("seq 100",))
        async with asyncio.timeout(PATIENCE):
            while away.copiers < 2 and not life.controller._failures.get(job_key(job_id)):
                await asyncio.sleep(0.005)
        away.over = True
        assert (await life.ended(job_id)).reason is Reason.PASSED
        texts = [text for _, text in await lines(life, job_id)]
    assert texts[-2:] == ["::endgroup::", "tested"]
    assert len([text for text in texts if "left out here" in text]) == 1


class Away:
    """From when a copier says what it leaves out, the store gives and takes no lines, until it is
    `over`.

    copiers: that failed since, once lines were refused.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over, self.copiers = False, 0
        self._began, self._refused = False, False
        self._read, self._insert = Feed.read, Database.insert
        self._leave_out = SetupLog._leave_out
        away = self

        def leave_out(self: SetupLog, ended: int | None) -> None:
            away._leave_out(self, ended)
            away._began = away._began or bool(self._pending)

        async def read(self: Feed, *arguments: Any) -> Any:
            if away._began and not away.over:
                away.copiers += away._refused
                raise StoreUnavailable("the database is locked")
            return await away._read(self, *arguments)

        async def insert(self: Database, *arguments: Any) -> None:
            if away._began and not away.over:
                away._refused = True
                raise StoreUnavailable("the database is locked")
            await away._insert(self, *arguments)

        monkeypatch.setattr(SetupLog, "_leave_out", leave_out)
        monkeypatch.setattr(Feed, "read", read)
        monkeypatch.setattr(Database, "insert", insert)

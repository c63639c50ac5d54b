"""The trees of jobs that name a repository: fetched once, whole, and by whoever lives."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ciworker.control import life as lives
from ciworker.control import sources
from ciworker.control.keys import job_key
from ciworker.domain.job import Git, Job, Reason, Status
from ciworker.errors import StoreUnavailable
from ciworker.source import git as module
from ciworker.source.intake import Intake
from ciworker.store.jobs import Jobs
from ciworker.store.session import Database
from tests.engine.fake import FakeEngine
from tests.repositories import Made, git, made
from tests.unit.control.lab import PATIENCE, Lab, Life

MARK = "::group::Fetch main of "


@pytest.fixture
def repo(tmp_path: Path) -> Made:
    repo = made(tmp_path)
    repo.commit({"leaf.txt": "oolong\n"})
    return repo


@pytest.fixture
def lab(tmp_path: Path, engine: FakeEngine) -> Iterator[Lab]:
    lab = Lab(tmp_path / "data", engine, **settings(tmp_path))
    yield lab
    assert not [*lab.settings.fetches.glob("*")]


def settings(folder: Path) -> dict[str, Any]:
    return {"git_folders": (folder,), "default_image": "fake"}


class Gate:
    """Holds every fetch where git is about to be asked, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = asyncio.Event(), asyncio.Event()
        self.asked: list[str] = []
        real = module.Repository.fetch

        async def fetch(repository: module.Repository, ref: str) -> module.Pinned:
            self.asked.append(ref)
            self.reached.set()
            await self.open.wait()
            return await real(repository, ref)

        monkeypatch.setattr(module.Repository, "fetch", fetch)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def git_job(lab: Lab, repo: Made, run: str = "cat leaf.txt", **other: Any) -> Job:
    job = lab.new_job("true")
    lab.settings.spool_file(job.id).unlink()
    source = Git(**{"url": repo.url, "ref": "main", "overrides": {"run": run}, **other})
    return replace(
        job, spec=replace(job.spec, git=source), tar_length=0, waits=True, source={"kind": "git"}
    )


async def submitted(life: Life, job: Job) -> str:
    await life.jobs.add(job, "me", None)
    life.controller.notify(job.id)
    return job.id


async def waited(event: asyncio.Event) -> None:
    async with asyncio.timeout(PATIENCE):
        await event.wait()


async def text(life: Life, job_id: str) -> str:
    return (await life.text(job_id)).decode()


async def test_it_is_fetched_pinned_and_run(lab: Lab, repo: Made) -> None:
    async with lab.life() as life:
        job_id = await submitted(life, git_job(lab, repo))
        job = await life.ended(job_id)
        assert (job.reason, job.spec.run) == (Reason.PASSED, "cat leaf.txt")
        assert job.spec.git is not None
        assert job.spec.git.commit == git(repo.bare, "rev-parse", "main")
        said = [entry.message for entry in await life.jobs.history(job_id)]
        assert f"main is commit {job.spec.git.commit[:12]}" in said
        assert "fetched: 1 file, 7 B" in said
        log = await text(life, job_id)
        assert log.startswith(f"{MARK}{repo.url}\n")
        assert log.endswith("::endgroup::\noolong\n")


async def test_a_worker_that_dies_in_mid_fetch_leaves_it_to_the_next_one(
    lab: Lab, repo: Made, gate: Gate
) -> None:
    """What lies there of the first try does not take part in the second."""
    async with lab.life(clean=False) as life:
        job_id = await submitted(life, git_job(lab, repo))
        await waited(gate.reached)
    lab.settings.spool_file(job_id).write_bytes(b"half of a tree")
    gate.open.set()
    async with lab.life() as life:
        job = await life.ended(job_id)
        assert job.reason is Reason.PASSED
        log = await text(life, job_id)
    first, again, *rest = log.split(MARK)[1:]
    assert first.endswith("ciworker: the fetch was cut off and begins anew\n::endgroup::\n")
    assert again.endswith("::endgroup::\noolong\n")
    assert not rest


async def test_a_fetch_that_begins_anew_fetches_the_commit_that_was_pinned(
    lab: Lab, repo: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, real = asyncio.Event(), module.Repository.write_tree

    async def write_tree(self: module.Repository, *arguments: Any) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(module.Repository, "write_tree", write_tree)
    async with lab.life(clean=False) as life:
        job_id = await submitted(life, git_job(lab, repo))
        await waited(reached)
    monkeypatch.setattr(module.Repository, "write_tree", real)
    repo.commit({"leaf.txt": "another\n"})
    async with lab.life() as life:
        job = await life.ended(job_id)
        assert job.reason is Reason.PASSED
        assert (await text(life, job_id)).endswith("oolong\n")
        first = git(repo.bare, "rev-parse", "main~1")
        assert job.source["vcs"] == {"commit": first, "branch": "main", "dirty": False}


async def test_a_cancel_in_mid_fetch_leaves_nothing(lab: Lab, repo: Made, gate: Gate) -> None:
    async with lab.life() as life:
        job_id = await submitted(life, git_job(lab, repo))
        await waited(gate.reached)
        await life.cancel(job_id)
        job = await life.ended(job_id)
        assert (job.status, job.reason) == (Status.CANCELLED, Reason.CANCELLED)
        assert not lab.settings.spool_file(job_id).exists()


async def test_a_cancel_that_the_next_worker_finds_removes_what_was_half_fetched(
    lab: Lab, repo: Made, gate: Gate
) -> None:
    async with lab.life(clean=False) as life:
        job_id = await submitted(life, git_job(lab, repo))
        await waited(gate.reached)
        await life.jobs.note(job_id, lab.clock.now(), "cancel", cancel_by="me")
    lab.settings.spool_file(job_id).write_bytes(b"half of a tree")
    async with lab.life() as life:
        assert (await life.ended(job_id)).reason is Reason.CANCELLED
        assert not lab.settings.spool_file(job_id).exists()


async def test_more_than_a_few_wait_for_their_turn(
    lab: Lab, repo: Made, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_FETCHES", 1)
    async with lab.life() as life:
        first = await submitted(life, git_job(lab, repo))
        await waited(gate.reached)
        second = await submitted(life, git_job(lab, repo))
        third = await submitted(life, git_job(lab, repo))
        await life.cancel(third)
        assert (await life.ended(third)).reason is Reason.CANCELLED
        assert gate.asked == ["main"]
        gate.open.set()
        assert {(await life.ended(job)).reason for job in (first, second)} == {Reason.PASSED}


async def test_whose_turn_it_is_follows_from_priority_then_age_and_who_waits_costs_no_task(
    lab: Lab, repo: Made, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MOST_FETCHES", 1)
    for branch in ("first", "old", "young", "urgent"):
        repo.commit({"leaf.txt": branch}, branch=branch)
    wanted = (("first", 0), ("old", 0), ("young", 0), ("urgent", 5))
    async with lab.life() as life:
        jobs = [replace(git_job(lab, repo, ref=ref), priority=rank) for ref, rank in wanted]
        for job in jobs:
            await submitted(life, job)
            await waited(gate.reached)
        async with asyncio.timeout(PATIENCE):
            while len(life.controller._steps._sources._turns._waiting) < 3:
                await asyncio.sleep(0.005)
        fetching = [task for task in asyncio.all_tasks() if task.get_name().startswith("fetch ")]
        assert len(fetching) == 1
        assert gate.asked == ["first"]
        gate.open.set()
        assert {(await life.ended(job.id)).reason for job in jobs} == {Reason.PASSED}
        assert gate.asked == ["first", "urgent", "old", "young"]


async def test_below_min_free_nothing_is_fetched_until_there_is_room(
    tmp_path: Path, engine: FakeEngine, repo: Made, gate: Gate
) -> None:
    gate.open.set()
    full = Lab(tmp_path / "data", engine, **settings(tmp_path), min_free="100%")
    async with full.life(clean=False) as life:
        job_id = await submitted(life, git_job(full, repo))
        async with asyncio.timeout(PATIENCE):
            while not life.controller._failures.get(job_key(job_id)):
                await asyncio.sleep(0.005)
        assert gate.asked == []
        assert await text(life, job_id) == ""
    async with Lab(tmp_path / "data", engine, **settings(tmp_path)).life() as life:
        assert (await life.ended(job_id)).reason is Reason.PASSED
    assert gate.asked == ["main"]


async def test_a_fetch_that_takes_too_long_is_ended(
    tmp_path: Path, engine: FakeEngine, repo: Made, gate: Gate
) -> None:
    lab = Lab(tmp_path / "data", engine, **settings(tmp_path), git_timeout=0.01)
    async with lab.life() as life:
        job = await life.ended(await submitted(life, git_job(lab, repo)))
        assert job.reason is Reason.SOURCE_FAILED
        assert "more than 0.01s (git_timeout)" in (job.message or "")
        assert (await text(life, job.id)).endswith(f"ciworker: {job.message}\n::endgroup::\n")
        assert not lab.settings.spool_file(job.id).exists()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"ref": "none"}, "the repository has no branch, tag or commit none"),
        ({"subdirectory": "none"}, "the commit has no folder none"),
        ({"overrides": {"memory": "1000000g"}}, "max_job_memory"),
    ],
)
async def test_what_fails_says_why_and_leaves_nothing(
    lab: Lab, repo: Made, other: dict[str, Any], said: str
) -> None:
    async with lab.life() as life:
        job = await life.ended(await submitted(life, git_job(lab, repo, **other)))
        assert job.reason is Reason.SOURCE_FAILED
        assert said in (job.message or "")
        assert not lab.settings.spool_file(job.id).exists()


async def test_a_full_disk_fails_it_in_words(
    lab: Lab, repo: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Intake, "feed", full)
    async with lab.life() as life:
        job = await life.ended(await submitted(life, git_job(lab, repo)))
        assert job.reason is Reason.SOURCE_FAILED
        assert "make room, then retry" in (job.message or "")


async def test_a_fetch_that_could_not_be_recorded_is_done_again(
    lab: Lab, repo: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[None] = []
    real = sources.Sources._record

    async def record(self: sources.Sources, fetched: Any) -> None:
        tried.append(None)
        if len(tried) == 1:
            raise StoreUnavailable("the database is locked")
        await real(self, fetched)

    monkeypatch.setattr(sources.Sources, "_record", record)
    monkeypatch.setattr(sources, "RETRY", 0.0)
    async with lab.life() as life:
        job = await life.ended(await submitted(life, git_job(lab, repo)))
        assert job.reason is Reason.PASSED
        assert len(tried) == 2


class Away:
    """The store takes neither lines nor what was fetched, until `over` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = asyncio.Event()
        self.refused: list[str] = []
        for owner, name in ((Database, "insert"), (Jobs, "note_source")):
            monkeypatch.setattr(owner, name, self._away(name, getattr(owner, name)))

    def _away(self, name: str, real: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def call(*arguments: Any, **named: Any) -> Any:
            if not self.over.is_set():
                self.refused.append(name)
                raise StoreUnavailable("the database is locked")
            return await real(*arguments, **named)

        return call


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_store_that_is_away_for_long_in_mid_fetch_leaves_the_job_to_go_on_or_be_cancelled(
    lab: Lab, repo: Made, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """The lines of the fetch that failed are stored before another one counts on from them."""
    monkeypatch.setattr(sources, "RETRY", 0.0)
    monkeypatch.setattr(lives, "STORE_WAIT", 0.01)
    away = Away(monkeypatch)
    async with lab.life() as life:
        job_id = await submitted(life, git_job(lab, repo))
        async with asyncio.timeout(PATIENCE):
            while away.refused.count("note_source") < 2 and not life.controller._failures.get(
                job_key(job_id)
            ):
                await asyncio.sleep(0.005)
        assert "insert" in away.refused
        if cancelled:
            await life.cancel(job_id)
        away.over.set()
        job = await life.ended(job_id)
        assert job.reason is (Reason.CANCELLED if cancelled else Reason.PASSED)
        log = await text(life, job_id)
        assert log.startswith(f"{MARK}{repo.url}\n")
        assert cancelled or log.endswith("::endgroup::\noolong\n")


async def test_a_cancel_is_not_recorded_before_the_lines_are_stored(
    lab: Lab, repo: Made, gate: Gate
) -> None:
    """No line is ever stored behind the end."""
    async with lab.life() as life:
        job_id = await submitted(life, git_job(lab, repo))
        await waited(gate.reached)
        await life.cancel(job_id)
        job = await life.ended(job_id)
        assert job.log_lines == (await life.logs.end(job_id)).last == 1


async def test_git_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """Whatever git waits for itself: here for an input that never ends."""
    os.mkfifo(tmp_path / "fifo")
    held = os.open(tmp_path / "fifo", os.O_RDWR)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WAITS, cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE):
            pid = int(await process.stdout.readline())
            while "git" not in group(pid):
                await asyncio.sleep(0.01)
            process.kill()
            await process.wait()
            while group(pid):
                await asyncio.sleep(0.01)
    finally:
        os.close(held)


WAITS = """
import subprocess
from ciworker.domain.git import parse_remote
from ciworker.source.access import Access
from ciworker.source.gitcommand import git_command

words = git_command(Access(parse_remote("file:///x")), ("hash-object", "fifo"), 2**20)
process = subprocess.Popen(words, start_new_session=True)
print(process.pid, flush=True)
process.wait()
"""


def group(pid: int) -> list[str]:
    """Names of the live processes in this process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = path.read_text().rpartition(")")
        except (FileNotFoundError, ProcessLookupError):
            continue
        state, _, its_group = after.split()[:3]
        if its_group == str(pid) and state != "Z":
            found.append(before.partition("(")[2])
    return found

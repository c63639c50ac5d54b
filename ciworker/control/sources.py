"""Fetches the trees of jobs that name a repository: from then on such a job is as any other.

The row of an accepted job says what is to be fetched; a fetch ends in one commit of its spool
file's length and its resolved spec, so that whatever cuts it off, it begins anew. What a ref names
is pinned as soon as it is known: a fetch that begins anew fetches the same commit.

A job that waits for one of few fetches has nothing but its place in the line: it is looked at when
it joins that, and again when it is one of the next. In between others join, so that after a restart
too the highest priority goes first.
"""

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ciworker.control.fetchlog import FetchLog
from ciworker.control.keys import DISPATCH, job_key
from ciworker.control.life import Life, let_go
from ciworker.control.look import Look
from ciworker.control.parts import Parts
from ciworker.control.turns import Turns
from ciworker.domain.git import parse_remote
from ciworker.domain.job import Git, Job, Spec
from ciworker.domain.jobfile import resolve
from ciworker.domain.secrets import check_secrets
from ciworker.errors import Invalid, SourceFailed, TryAgain
from ciworker.settings import bytes_of
from ciworker.source.access import access_to
from ciworker.source.archive import ArchiveRefused, SpoolCorrupt, Workspace
from ciworker.source.bounds import bounds_of, tree_limits
from ciworker.source.git import Pinned, repository
from ciworker.source.inputs import with_setup
from ciworker.source.intake import Intake
from ciworker.source.secrets import rules_of
from ciworker.store.logs import LogEnd
from ciworker.telemetry import logger
from ciworker.units import format_duration, format_size, plural

MOST_FETCHES = 4  # at once
RETRY = 1.0
SHOWN = 12  # characters of a commit that people see


class NoRoom(TryAgain):
    """Nothing is fetched while the disk is that full."""


@dataclass(frozen=True, slots=True)
class _Fetched:
    """The job with its commit pinned, its tree in the spool file, and its resolved spec."""

    job: Job
    workspace: Workspace
    spec: Spec


class Sources:
    """Sees to the trees of queued jobs."""

    def __init__(self, parts: Parts) -> None:
        self._settings, self._clock, self._secret = parts.settings, parts.clock, parts.secret
        self._jobs, self._logs, self._writer = parts.jobs, parts.logs, parts.writer
        self._feed, self._queue, self._supervisor = parts.feed, parts.queue, parts.supervisor
        self._tallies = parts.tallies
        self._turns = Turns(MOST_FETCHES)

    async def fetch(self, look: Look) -> bool:
        """See that the tree is being fetched, or that the job waits for its turn.

        Raises:
            StoreUnavailable: lines of a fetch that failed still wait for the store.
            NoRoom: it is its turn, and there is none.
        """
        job, life = look.job, look.life
        if life.fetch_task is not None and not life.fetch_task.done():
            return False
        await self._let_go(life)  # lines are counted on from what is stored
        if self._turns.wait(job):
            self._wake_next()
        elif job.id in self._turns.next():
            await self._check_room()
            self._begin(job, life, await self._logs.end(job.id))
        return False

    async def let_go(self, look: Look) -> None:
        """End a fetch; git is gone then, and what was taken to be stored is stored.

        Raises:
            StoreUnavailable: lines still wait for the store.
        """
        if self._turns.leave(look.job):
            self._wake_next()
        await self._let_go(look.life)

    async def _let_go(self, life: Life) -> None:
        await let_go(life.fetch_log, life.fetch_task)
        life.fetch_log = life.fetch_task = None

    async def _check_room(self) -> None:
        """Many may wait that were taken while there was room."""
        disk = await asyncio.to_thread(shutil.disk_usage, self._settings.data_dir)
        floor = bytes_of(self._settings.min_free, disk.total)
        if disk.free < floor:
            raise NoRoom(
                f"the disk of the worker's data folder has {format_size(disk.free)} free, and "
                f"nothing is fetched below min_free ({format_size(floor)}): free some of it"
            )

    def _begin(self, job: Job, life: Life, end: LogEnd) -> None:
        if not self._turns.take(job):
            return  # one with a higher priority came meanwhile
        log = FetchLog(job.id, self._feed.topic(job.id), self._writer, end)
        task = self._supervisor.spawn(
            self._run(job, life, log),
            name=f"fetch {job.id}",
            on_error=lambda: self._queue.add_after(job_key(job.id), RETRY),
        )
        task.add_done_callback(lambda _: self._give_back(job))
        life.fetch_log, life.fetch_task = log, task

    def _give_back(self, job: Job) -> None:
        self._turns.give_back(job)
        self._wake_next()

    def _wake_next(self) -> None:
        for job_id in self._turns.next():
            self._queue.add(job_key(job_id))

    async def _run(self, job: Job, life: Life, log: FetchLog) -> None:
        """Fetch, show what git says, record what came of it; all lines are stored before that."""
        git = job.spec.git
        assert git is not None
        log.open(f"Fetch {git.ref} of {git.url}")
        found = await self._fetched_or_why_not(job, log)
        log.close()
        await log.all_stored()
        if isinstance(found, _Fetched):
            await self._record(found)
        else:
            life.source_error = found
        life.fetch_log = life.fetch_task = None
        self._queue.add(job_key(job.id))

    async def _fetched_or_why_not(self, job: Job, log: FetchLog) -> "_Fetched | str":
        try:
            return await self._fetched(job, log)
        except (SourceFailed, Invalid, ArchiveRefused, SpoolCorrupt) as failed:
            log.say(f"ciworker: {failed}")
            return str(failed)

    async def _fetched(self, job: Job, log: FetchLog) -> "_Fetched":
        git, settings = job.spec.git, self._settings
        assert git is not None
        spool, name = settings.spool_file(job.id), parse_remote(git.url).name
        spool.unlink(missing_ok=True)  # of a fetch that was cut off
        intake = Intake(spool, tree_limits(settings), self._clock.now().timestamp())
        try:
            job = await self._taken_in(job, git, intake, log)
            workspace = await intake.finish()
            wanted = resolve(workspace.contents, git.overrides, bounds_of(settings), name)
            check_secrets(
                wanted.spec, rules_of(settings), source="git", role=git.role, allowed=git.allowed
            )
            spec = await asyncio.to_thread(with_setup, wanted, workspace, spool)
        except OSError as error:
            intake.abort()
            raise SourceFailed(
                f"the data folder takes no tree ({error.strerror}): make room, then retry"
            ) from error
        except BaseException:
            intake.abort()
            raise
        return _Fetched(job, workspace, replace(spec, git=job.spec.git))

    async def _taken_in(self, job: Job, git: Git, intake: Intake, log: FetchLog) -> Job:
        """Hand the tree on as git writes it; the job with its commit."""
        settings = self._settings
        try:
            async with asyncio.timeout(settings.git_timeout):
                access = await access_to(parse_remote(git.url), settings, self._secret)
                folder = settings.fetches / job.id
                async with repository(access, folder, settings.max_git, log) as fetched:
                    pinned = await fetched.fetch(git.commit or git.ref)
                    job = await self._pin(job, git, pinned)
                    await fetched.write_tree(pinned.commit, git.subdirectory, intake.feed)
        except TimeoutError:
            raise SourceFailed(
                f"the fetch took more than {format_duration(settings.git_timeout)} (git_timeout): "
                "retry, or have the operator raise it"
            ) from None
        return job

    async def _pin(self, job: Job, git: Git, pinned: Pinned) -> Job:
        """From now on it is this commit, whatever the ref names."""
        if git.commit is not None:
            return job
        spec = replace(job.spec, git=replace(git, commit=pinned.commit))
        noted = await self._jobs.note_source(
            job.id,
            self._clock.now(),
            f"{git.ref} is commit {pinned.commit[:SHOWN]}",
            spec,
            source={**job.source, "vcs": _vcs(pinned)},
        )
        return noted or replace(job, spec=spec)

    async def _record(self, fetched: "_Fetched") -> None:
        """The tree is there: the job goes on as one that was uploaded."""
        job, workspace, spec = fetched.job, fetched.workspace, fetched.spec
        said = f"fetched: {plural(workspace.files, 'file')}, {format_size(workspace.unpacked)}"
        waits = bool(spec.setup)
        recorded = await self._jobs.note_source(
            job.id,
            self._clock.now(),
            said,
            spec,
            source={**job.source, "files": workspace.files, "bytes": workspace.unpacked},
            tar_length=workspace.tar_length,
            waits=waits,
        )
        if recorded is None:
            self._settings.spool_file(job.id).unlink(missing_ok=True)
            return
        logger().info("source fetched", files=workspace.files, bytes=workspace.unpacked)
        if not waits:
            self._tallies.released(job.id)
            self._queue.add(DISPATCH)


def _vcs(pinned: Pinned) -> Mapping[str, object]:
    """As a client's git would tell it of an upload."""
    known = {"commit": pinned.commit, "branch": pinned.branch, "describe": pinned.tag}
    return {name: text for name, text in known.items() if text} | {"dirty": False}

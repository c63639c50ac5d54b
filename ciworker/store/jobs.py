"""Jobs and their history.

Every change of a status is one transaction that checks what the caller believed (`expect`), writes
the row, and writes its line of history; callers that lost a race get None and look again.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson
from sqlalchemy import func, literal_column, or_, update
from sqlalchemy import select as sql_select
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from ciworker.domain.job import TRANSITIONS, Job, Reason, Spec, Status, Stop
from ciworker.errors import Conflict
from ciworker.store.schema import JobEventRow, JobRow, LogChunkRow, SubmissionRow
from ciworker.store.session import Database

IDEMPOTENCY_WINDOW = timedelta(hours=24)
ACTIVE = (Status.STARTING, Status.RUNNING)

# A partial index is used only where the query spells its condition out, as no parameter.
_QUEUED = col(JobRow.status) == literal_column("'queued'")

_Changed = TypeVar("_Changed", Job, Job | None)


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """A transition, or a note (then `before` equals `after`)."""

    id: int
    job_id: str
    at: datetime
    before: Status | None
    after: Status
    reason: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Expect:
    """What the caller believes of a job that it wants to change."""

    status: Status
    attempt: int


class Jobs:
    """The jobs of one database. `on_change` is called after each commit, with the job's id."""

    def __init__(self, database: Database, on_change: Callable[[str], None]) -> None:
        self._database = database
        self._on_change = on_change

    async def add(self, job: Job, submitter: str, key: str | None) -> Job:
        """Store a new job, or find the one that the same submitter made with the same key.

        Args:
            job: queued, with an id that is not in use.
            submitter: the id of the token that submits.
            key: its Idempotency-Key, if it sent one.
        """

        async def work(session: AsyncSession) -> Job:
            if key and (earlier := await _submitted(session, submitter, key, job.created_at)):
                return await _read(session, earlier)
            session.add(_row(job))
            await session.flush()
            if key:
                await session.merge(
                    SubmissionRow(token_id=submitter, key=key, job_id=job.id, at=job.created_at)
                )
            session.add(_event(job.id, job.created_at, (None, Status.QUEUED)))
            return job

        return await self._write(work)

    async def submitted(self, submitter: str, key: str, now: datetime) -> Job | None:
        """The job made with this Idempotency-Key within the last 24 hours."""

        async def work(session: AsyncSession) -> Job | None:
            found = await _submitted(session, submitter, key, now)
            return await _read(session, found) if found else None

        return await self._database.read(work)

    async def get(self, job_id: str) -> Job | None:
        return await self._database.read(lambda session: _find(session, job_id))

    async def page(
        self,
        *,
        limit: int,
        before: str | None = None,
        status: Status | None = None,
        project: str | None = None,
    ) -> list[Job]:
        """Newest first; `before` is the id of the last one of the page before."""
        query = select(JobRow, _LOG_LINES).order_by(col(JobRow.id).desc()).limit(limit)
        if before is not None:
            query = query.where(col(JobRow.id) < before)
        if status is not None:
            query = query.where(col(JobRow.status) == status.value)
        if project is not None:
            query = query.where(col(JobRow.project) == project)
        return [_job(row, lines) for row, lines in await self._database.rows(query)]

    async def history(self, job_id: str) -> list[HistoryEntry]:
        """Oldest first."""
        query = (
            select(JobEventRow)
            .where(col(JobEventRow.job_id) == job_id)
            .order_by(col(JobEventRow.id))
        )
        return [_entry(row) for row in await self._database.rows(query)]

    async def changes(self, after: int, limit: int) -> list[HistoryEntry]:
        """Changes of all jobs after the one numbered `after`, oldest first."""
        query = (
            select(JobEventRow)
            .where(col(JobEventRow.id) > after)
            .order_by(col(JobEventRow.id))
            .limit(limit)
        )
        return [_entry(row) for row in await self._database.rows(query)]

    async def last_change(self) -> int:
        """The number of the newest change; 0 when there is none."""
        return await self._database.first(select(func.max(JobEventRow.id))) or 0

    async def queue_head(self, now: datetime) -> Job | None:
        """Highest priority, then oldest, of those whose backoff is over."""
        query = (
            select(JobRow, _LOG_LINES)
            .where(
                _QUEUED,
                or_(col(JobRow.not_before).is_(None), col(JobRow.not_before) <= now),
            )
            .order_by(col(JobRow.priority).desc(), col(JobRow.id))
        )
        found = await self._database.first(query)
        return _job(*found) if found else None

    async def next_backoff(self) -> datetime | None:
        """When the first of the queued jobs that wait out a backoff may be tried again."""
        query = select(func.min(JobRow.not_before)).where(
            _QUEUED, col(JobRow.not_before).is_not(None)
        )
        return await self._database.first(query)

    async def active(self) -> Mapping[str, int]:
        """Ids of the jobs that hold a slot, with the memory each may use."""
        query = select(JobRow.id, JobRow.memory).where(
            col(JobRow.status).in_([status.value for status in ACTIVE])
        )
        return dict(await self._database.rows(query))

    async def cancelled_while_queued(self) -> list[str]:
        """Queued jobs whose cancel was asked for and is not yet recorded."""
        query = select(JobRow.id).where(_QUEUED, col(JobRow.cancel_by).is_not(None))
        return list(await self._database.rows(query))

    async def attempts(self, job_ids: Collection[str]) -> Mapping[str, int]:
        """The attempt of each of these jobs that exists."""
        # One parameter, however many ids there are: SQLite bounds the number of parameters.
        wanted = func.json_each(orjson.dumps(list(job_ids)).decode()).table_valued("value")
        query = select(JobRow.id, JobRow.attempt).where(
            col(JobRow.id).in_(sql_select(wanted.c.value))
        )
        return dict(await self._database.rows(query))

    async def check(self) -> None:
        """Raises StoreUnavailable while the database does not answer."""
        await self.last_change()

    async def newest_id(self) -> str | None:
        return await self._database.first(select(func.max(JobRow.id)))

    async def move(
        self,
        job_id: str,
        expect: Expect,
        to: Status,
        at: datetime,
        *,
        reason: Reason | None = None,
        message: str | None = None,
        **changes: Any,
    ) -> Job | None:
        """One transition. None when the job is no longer as expected.

        Raises:
            Conflict: there is no such transition.
        """
        if to not in TRANSITIONS[expect.status]:
            raise Conflict(f"a {expect.status} job does not become {to}")
        values = {"status": to.value, **changes}
        if to.terminal:
            values |= {"reason": reason, "message": message, "finished_at": at}
        statement = (
            update(JobRow)
            .where(
                col(JobRow.id) == job_id,
                col(JobRow.status) == expect.status.value,
                col(JobRow.attempt) == expect.attempt,
            )
            .values(**values)
        )

        async def work(session: AsyncSession) -> Job | None:
            if not (await session.exec(statement)).rowcount:
                return None
            session.add(_event(job_id, at, (expect.status, to), reason, message))
            await session.flush()
            return await _read(session, job_id)

        return await self._write(work)

    async def note(
        self,
        job_id: str,
        at: datetime,
        message: str,
        *,
        reason: Reason | None = None,
        **changes: Any,
    ) -> Job | None:
        """Write facts beside the status, and a line of history. None: ended, or never was."""

        async def work(session: AsyncSession) -> Job | None:
            job = await _find(session, job_id)
            if job is None or job.status.terminal:
                return None
            session.add(_event(job_id, at, (job.status, job.status), reason, message))
            if not changes:
                return job
            await session.exec(update(JobRow).where(col(JobRow.id) == job_id).values(**changes))
            return await _read(session, job_id)

        return await self._write(work)

    async def note_quietly(self, job_id: str, **changes: Any) -> None:
        """Write facts that are no part of the history."""
        statement = update(JobRow).where(col(JobRow.id) == job_id).values(**changes)

        async def work(session: AsyncSession) -> None:
            await session.exec(statement)

        await self._database.write(work)

    async def _write(self, work: Callable[[AsyncSession], Awaitable[_Changed]]) -> _Changed:
        """Commit, and tell of the change even where the caller was cancelled meanwhile."""

        def committed(job: Job | None) -> None:
            if job is not None:
                self._on_change(job.id)

        return await self._database.write(work, committed)


_LOG_LINES = (
    select(col(LogChunkRow.first) + col(LogChunkRow.count) - 1)
    .where(col(LogChunkRow.job_id) == col(JobRow.id))
    .order_by(col(LogChunkRow.first).desc())
    .limit(1)
    .scalar_subquery()
)


async def _submitted(session: AsyncSession, submitter: str, key: str, now: datetime) -> str | None:
    query = select(SubmissionRow.job_id).where(
        col(SubmissionRow.token_id) == submitter,
        col(SubmissionRow.key) == key,
        col(SubmissionRow.at) > now - IDEMPOTENCY_WINDOW,
    )
    return (await session.exec(query)).first()


async def _find(session: AsyncSession, job_id: str) -> Job | None:
    query = select(JobRow, _LOG_LINES).where(col(JobRow.id) == job_id)
    found = (await session.exec(query)).first()
    return _job(*found) if found else None


async def _read(session: AsyncSession, job_id: str) -> Job:
    job = await _find(session, job_id)
    assert job is not None
    return job


def _event(
    job_id: str,
    at: datetime,
    step: tuple[Status | None, Status],
    reason: Reason | None = None,
    message: str | None = None,
) -> JobEventRow:
    before, after = step
    return JobEventRow(
        job_id=job_id, at=at, from_status=before, to_status=after, reason=reason, message=message
    )


def _entry(row: JobEventRow) -> HistoryEntry:
    assert row.id is not None
    before = Status(row.from_status) if row.from_status else None
    return HistoryEntry(
        row.id, row.job_id, row.at, before, Status(row.to_status), row.reason, row.message
    )


def _row(job: Job) -> JobRow:
    return JobRow(
        id=job.id,
        status=job.status,
        project=job.spec.project,
        spec=asdict(job.spec),
        source=dict(job.source),
        priority=job.priority,
        memory=job.spec.memory,
        retry_of=job.retry_of,
        created_at=job.created_at,
        kills=[],
        mark_token=job.mark_token,
        tar_length=job.tar_length,
    )


def _job(row: JobRow, log_lines: int | None) -> Job:
    return Job(
        id=row.id,
        status=Status(row.status),
        spec=Spec(**row.spec),
        created_at=row.created_at,
        mark_token=row.mark_token,
        tar_length=row.tar_length,
        reason=Reason(row.reason) if row.reason else None,
        message=row.message,
        exit_code=row.exit_code,
        source=row.source,
        priority=row.priority,
        attempt=row.attempt,
        retry_of=row.retry_of,
        container_id=row.container_id,
        started_at=row.started_at,
        finished_at=row.finished_at,
        deadline_at=row.deadline_at,
        not_before=row.not_before,
        starting_at=row.starting_at,
        sent_at=row.sent_at,
        cancel_by=row.cancel_by,
        stop=_stop(row),
        kills=tuple(row.kills),
        oom=row.oom,
        engine_restarted_at=row.engine_restarted_at,
        log_complete=row.log_complete,
        log_incomplete=row.log_incomplete,
        log_lines=log_lines or 0,
        keep_until=row.keep_until,
    )


def _stop(row: JobRow) -> Stop | None:
    if row.stop_cause is None or row.stop_at is None:
        return None
    return Stop(Reason(row.stop_cause), row.stop_at, row.stop_by)

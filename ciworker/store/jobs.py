"""Jobs and their history.

Every change of a status is one transaction that checks what the caller believed (`expect`), writes
the row, and writes its line of history; callers that lost a race get None and look again.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import orjson
from sqlalchemy import Row, and_, exists, func, insert, literal_column, or_, update
from sqlalchemy import select as sql_select
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import Session, col, select

from ciworker.domain.environment import EnvironmentStatus
from ciworker.domain.job import (
    TRANSITIONS,
    Backend,
    Cache,
    Git,
    Job,
    Kind,
    Reason,
    Spec,
    Status,
    Stop,
)
from ciworker.errors import Conflict
from ciworker.store import audit
from ciworker.store.audit import Deed
from ciworker.store.kept import Kept
from ciworker.store.schema import (
    EnvironmentRow,
    JobEventRow,
    JobRow,
    LogChunkRow,
    SubmissionRow,
    table,
)
from ciworker.store.session import Database
from ciworker.store.webhooks import Outbox

IDEMPOTENCY_WINDOW = timedelta(hours=24)
ACTIVE = (Status.STARTING, Status.RUNNING)
KEPT = 256  # jobs kept as they were last written; more than run at once

# A partial index is used only where the query spells its condition out, as no parameter.
_QUEUED = col(JobRow.status) == literal_column("'queued'")
_RELEASED = col(JobRow.waits) == literal_column("0")
_THERE = col(JobRow.removed) == literal_column("0")
_WAITS = col(JobRow.waits) == literal_column("1")
_NOT_ENDED = col(JobRow.status).in_(
    [literal_column(f"'{status}'") for status in (Status.QUEUED, *ACTIVE)]
)

_ACTIVE = col(JobRow.status).in_([status.value for status in ACTIVE])
_SUBMITTED = col(JobRow.kind) == Kind.JOB.value

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
class Change:
    """A line of history by its number, and the job as it is since then or since a later one.

    Read together: what is kept in memory may still be older than the line (`current`).
    """

    id: int
    job: Job


@dataclass(frozen=True, slots=True)
class Place:
    """In the queue. number: 1 for the job that starts next; queued: how many there are."""

    number: int
    queued: int


@dataclass(frozen=True, slots=True)
class Expect:
    """What the caller believes of a job that it wants to change."""

    status: Status
    attempt: int


class Jobs:
    """The jobs of one database. `on_change` is called after each commit, with the job's id; into
    the same transaction `outbox` writes what others are to be told.

    The jobs written last are kept as they were committed, and `current` need not ask the database
    for them. Setups are jobs too, but the worker's own: lists for people leave them out.
    """

    def __init__(
        self,
        database: Database,
        on_change: Callable[[str], None],
        outbox: Outbox,
    ) -> None:
        self._database = database
        self._on_change = on_change
        self._outbox = outbox
        self._kept = Kept[Job](KEPT)

    async def add(
        self,
        job: Job,
        submitter: str,
        key: str | None,
        more_keys: Sequence[str] = (),
        *,
        deed: Deed | None = None,
    ) -> Job:
        """Store a new job, or find the one that the same submitter made with one of these keys.

        Args:
            job: queued, with an id that is not in use.
            submitter: the id of the token that submits.
            key: its Idempotency-Key, if it sent one.
            more_keys: likewise.
            deed: told by the audit history if the job is new.
        """

        keys = [*([key] if key else []), *more_keys]

        def work(session: Session) -> Job:
            for one in keys:
                earlier = _submitted(session, submitter, one, job.created_at)
                if earlier is not None:
                    return earlier
            session.add(_row(job))
            session.flush()
            for one in keys:
                session.merge(
                    SubmissionRow(token_id=submitter, key=one, job_id=job.id, at=job.created_at)
                )
            event = _event(job.id, job.created_at, (None, Status.QUEUED))
            connection = session.connection()
            connection.execute(insert(_EVENTS), event)
            self._outbox.put(connection, job, job.created_at)
            audit.write(session, deed)
            return job

        def committed(stored: Job | None) -> None:
            self._keep(stored)
            self._outbox.committed()
            if stored is job:
                self._on_change(job.id)

        return await self._commit(work, committed)

    async def submitted(self, submitter: str, key: str, now: datetime) -> Job | None:
        """The job made with this Idempotency-Key within the last 24 hours."""
        return await self._database.read(lambda session: _submitted(session, submitter, key, now))

    async def current(self, job_id: str) -> Job | None:
        """The job as it was last committed; `log_lines` may be behind while it runs."""
        return await self._kept.get(job_id, self.get)

    async def get(self, job_id: str) -> Job | None:
        """The job as the database has it."""
        return await self._database.read(lambda session: _find(session, job_id))

    async def page(
        self,
        *,
        limit: int,
        before: str | None = None,
        status: Status | None = None,
        project: str | None = None,
    ) -> list[Job]:
        """Submitted ones, newest first; `before` is the id of the last one of the page before."""
        query = sql_select(*_COLUMNS).where(_SUBMITTED, _THERE)
        query = query.order_by(col(JobRow.id).desc()).limit(limit)
        if before is not None:
            query = query.where(col(JobRow.id) < before)
        if status is not None:
            query = query.where(col(JobRow.status) == status.value)
        if project is not None:
            query = query.where(col(JobRow.project) == project)
        return [_job(row) for row in await self._database.table(query)]

    async def history(self, job_id: str) -> list[HistoryEntry]:
        """Oldest first."""
        query = (
            select(JobEventRow)
            .where(col(JobEventRow.job_id) == job_id)
            .order_by(col(JobEventRow.id))
        )
        return [_entry(row) for row in await self._database.rows(query)]

    async def changes(self, after: int, limit: int) -> list[Change]:
        """Changes of all submitted jobs after the one numbered `after`, oldest first."""
        number = col(JobEventRow.id)
        query = (
            sql_select(number.label("number"), *_COLUMNS)
            .join(_JOBS, _JOBS.c.id == col(JobEventRow.job_id))
            .where(number > after, _SUBMITTED, _THERE)
            .order_by(number)
            .limit(limit)
        )
        return [Change(row.number, _job(row)) for row in await self._database.table(query)]

    async def last_change(self) -> int:
        """The number of the newest change, a setup's too; 0 when there is none."""
        return await self._database.first(select(func.max(JobEventRow.id))) or 0

    async def queue_head(self, now: datetime, kind: Kind) -> Job | None:
        """Highest priority, then oldest, of those that wait for no environment and whose backoff
        is over.
        """
        query = (
            sql_select(*_COLUMNS)
            .where(
                _QUEUED,
                _RELEASED,
                col(JobRow.kind) == kind.value,
                or_(col(JobRow.not_before).is_(None), col(JobRow.not_before) <= now),
            )
            .order_by(col(JobRow.priority).desc(), col(JobRow.id))
            .limit(1)
        )
        found = await self._database.table(query)
        return _job(found[0]) if found else None

    async def place(self, job: Job) -> Place | None:
        """Behind higher priorities and, among equals, older jobs. None: it is not in the queue, or
        waits for its environment.
        """
        in_order = or_(
            col(JobRow.priority) > job.priority,
            and_(col(JobRow.priority) == job.priority, col(JobRow.id) <= job.id),
        )
        query = sql_select(
            func.max(col(JobRow.id) == job.id).label("there"),
            func.count().filter(in_order).label("number"),
            func.count().label("queued"),
        ).where(_QUEUED, _RELEASED, col(JobRow.kind) == job.kind.value)
        (found,) = await self._database.table(query)
        return Place(found.number, found.queued) if found.there else None

    async def next_backoff(self) -> datetime | None:
        """When the first of the queued jobs that wait out a backoff alone may be tried again."""
        query = select(func.min(JobRow.not_before)).where(
            _QUEUED, _RELEASED, col(JobRow.not_before).is_not(None)
        )
        return await self._database.first(query)

    async def active(self) -> Mapping[str, int]:
        """Ids of the jobs that hold a slot, with the memory each may use."""
        return dict(await self._database.rows(select(JobRow.id, JobRow.memory).where(_ACTIVE)))

    async def held(self) -> Sequence[tuple[Kind, int]]:
        """Of each job that holds a slot: its kind, and the memory that it may use."""
        rows = await self._database.rows(select(JobRow.kind, JobRow.memory).where(_ACTIVE))
        return [(Kind(kind), memory) for kind, memory in rows]

    async def holder(self, container: str) -> str | None:
        """The job that starts or runs in this container, as far as that is committed."""
        query = select(JobRow.id).where(_ACTIVE, col(JobRow.container_id) == container)
        return await self._database.first(query)

    async def waiting(self, *, for_builds: bool = True) -> list[str]:
        """Queued jobs whose environment is not ready, or not known yet; oldest first.

        for_builds: also those that show the lines of a build under way.
        """
        query = select(JobRow.id).where(_QUEUED, _WAITS).order_by(col(JobRow.id))
        if not for_builds:
            query = query.where(~_SHOWS_BUILD)
        return list(await self._database.rows(query))

    async def waiting_for(self, key: str) -> list[Job]:
        """Queued jobs that wait for this environment and are not to be cancelled; oldest first."""
        query = (
            sql_select(*_COLUMNS)
            .where(_QUEUED, _WAITS, col(JobRow.environment) == key, col(JobRow.cancel_by).is_(None))
            .order_by(col(JobRow.id))
        )
        return [_job(row) for row in await self._database.table(query)]

    async def environments_in_use(self) -> frozenset[str]:
        """Keys of the environments of submitted jobs that have not ended."""
        query = (
            sql_select(col(JobRow.environment))
            .distinct()
            .where(_NOT_ENDED, _SUBMITTED, col(JobRow.environment).is_not(None))
        )
        return frozenset(key for (key,) in await self._database.table(query))

    async def cancelled_while_queued(self) -> list[str]:
        """Queued jobs whose cancel was asked for and is not yet recorded."""
        query = select(JobRow.id).where(_QUEUED, col(JobRow.cancel_by).is_not(None))
        return list(await self._database.rows(query))

    async def needing_workspace(self, job_ids: Collection[str]) -> frozenset[str]:
        """Those of these jobs that exist and whose workspace may be asked for: a setup's only until
        it has ended, for it is never retried.
        """
        wanted = func.json_each(orjson.dumps(list(job_ids)).decode()).table_valued("value")
        query = select(JobRow.id).where(
            col(JobRow.id).in_(sql_select(wanted.c.value)), _THERE, or_(_SUBMITTED, _NOT_ENDED)
        )
        return frozenset(await self._database.rows(query))

    async def attempts(self, job_ids: Collection[str]) -> Mapping[str, int]:
        """The attempt of each of these jobs that exists."""
        # One parameter, however many ids there are: SQLite bounds the number of parameters.
        wanted = func.json_each(orjson.dumps(list(job_ids)).decode()).table_valued("value")
        query = select(JobRow.id, JobRow.attempt).where(
            col(JobRow.id).in_(sql_select(wanted.c.value)), _THERE
        )
        return dict(await self._database.rows(query))

    async def hide(self, job_ids: Collection[str]) -> None:
        """From now on nobody finds these jobs, which have ended: the first step of a removal.

        A crash leaves them hidden, whole or in part; `Retention.hidden` names them.
        """
        wanted = func.json_each(orjson.dumps(list(job_ids)).decode()).table_valued("value")
        statement = update(_JOBS).where(col(JobRow.id).in_(sql_select(wanted.c.value)))

        def work(session: Session) -> None:
            session.connection().execute(statement.values(removed=True))

        def committed(_: None) -> None:
            for job_id in job_ids:
                self._kept.drop(job_id)

        await self._database.write(work, committed, durable=False)

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
        statement = _changed(job_id, values).where(
            col(JobRow.status) == expect.status.value, col(JobRow.attempt) == expect.attempt
        )

        def work(session: Session) -> Job | None:
            connection = session.connection()
            row = connection.execute(statement).first()
            if row is None:
                return None
            event = _event(job_id, at, (expect.status, to), reason, message)
            connection.execute(insert(_EVENTS), event)
            moved = _job(row)
            self._outbox.put(connection, moved, at)
            return moved

        moved = await self._write(work)
        if moved is None:
            self._kept.drop(job_id)  # where the belief came from is asked no more
        return moved

    async def note(
        self,
        job_id: str,
        at: datetime,
        message: str,
        *,
        reason: Reason | None = None,
        deed: Deed | None = None,
        **changes: Any,
    ) -> Job | None:
        """Write facts beside the status, and a line of history. None: ended, or never was.

        deed: told by the audit history as well.
        """

        def work(session: Session) -> Job | None:
            job = _find(session, job_id)
            if job is None or job.status.terminal:
                return None
            connection = session.connection()
            event = _event(job_id, at, (job.status, job.status), reason, message)
            connection.execute(insert(_EVENTS), event)
            audit.write(session, deed)
            if not changes:
                return job
            return _job(connection.execute(_changed(job_id, changes)).one())

        return await self._write(work)

    async def note_source(
        self, job_id: str, at: datetime, message: str, spec: Spec, **changes: Any
    ) -> Job | None:
        """Write what became known of a job's tree, and a line of history. None: ended, or never
        was.
        """
        values: dict[str, Any] = {
            "spec": asdict(spec),
            "project": spec.project,
            "memory": spec.memory,
        }
        return await self.note(job_id, at, message, **values, **changes)

    async def note_quietly(self, job_id: str, **changes: Any) -> None:
        """Write facts that are no part of the history."""

        def work(session: Session) -> Job | None:
            connection = session.connection()
            row = connection.execute(_changed(job_id, changes)).first()
            return _job(row) if row else None

        await self._commit(work, self._keep)

    async def _write(self, work: Callable[[Session], _Changed]) -> _Changed:
        """Commit, and tell of the change even where the caller was cancelled meanwhile."""

        def committed(job: Job | None) -> None:
            self._keep(job)
            self._outbox.committed()
            if job is not None:
                self._on_change(job.id)

        return await self._commit(work, committed)

    async def _commit(
        self,
        work: Callable[[Session], _Changed],
        committed: Callable[[Job | None], None],
    ) -> _Changed:
        try:
            return await self._database.write(work, committed)
        except BaseException:
            self._kept.clear()
            raise

    def _keep(self, job: Job | None) -> None:
        if job is not None:
            self._kept.put(job.id, job)


_SHOWS_BUILD = exists().where(
    col(EnvironmentRow.key) == col(JobRow.environment),
    col(EnvironmentRow.build) == col(JobRow.build),
    col(EnvironmentRow.status) == EnvironmentStatus.BUILDING.value,
)
_LOG_LINES = (
    select(col(LogChunkRow.first) + col(LogChunkRow.count) - 1)
    .where(col(LogChunkRow.job_id) == col(JobRow.id))
    .order_by(col(LogChunkRow.first).desc())
    .limit(1)
    .scalar_subquery()
    .label("log_lines")
)
_JOBS = table(JobRow)
_EVENTS = table(JobEventRow)
_COLUMNS = (*_JOBS.columns, _LOG_LINES)


def _submitted(session: Session, submitter: str, key: str, now: datetime) -> Job | None:
    query = (
        select(SubmissionRow.job_id)
        .join(JobRow)
        .where(
            col(SubmissionRow.token_id) == submitter,
            col(SubmissionRow.key) == key,
            col(SubmissionRow.at) > now - IDEMPOTENCY_WINDOW,
            _THERE,
        )
    )
    found = session.connection().execute(query).scalar()
    return _find(session, found) if found else None


def _changed(job_id: str, values: Mapping[str, Any]) -> ReturningUpdate[Any]:
    """An update of one job that gives what it became, as `_job` takes it."""
    statement = update(_JOBS).where(col(JobRow.id) == job_id, _THERE).values(**values)
    return statement.returning(*_COLUMNS)


def _find(session: Session, job_id: str) -> Job | None:
    query = sql_select(*_COLUMNS).where(col(JobRow.id) == job_id, _THERE)
    row = session.connection().execute(query).first()
    return _job(row) if row else None


def _event(
    job_id: str,
    at: datetime,
    step: tuple[Status | None, Status],
    reason: Reason | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    before, after = step
    return {
        "job_id": job_id,
        "at": at,
        "from_status": before,
        "to_status": after,
        "reason": reason,
        "message": message,
    }


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
        not_before=job.not_before,
        kills=[],
        granted={},
        mark_token=job.mark_token,
        tar_length=job.tar_length,
        kind=job.kind,
        environment=job.environment,
        waits=job.waits,
    )


def _job(row: Row[Any]) -> Job:
    return Job(
        id=row.id,
        status=Status(row.status),
        spec=_spec(row.spec),
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
        container=row.container,
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
        log_lines=row.log_lines or 0,
        keep_until=row.keep_until,
        kind=Kind(row.kind),
        environment=row.environment,
        waits=row.waits,
        build=row.build,
        granted=row.granted,
    )


def _spec(values: Mapping[str, Any]) -> Spec:
    """What `asdict` made of a spec; those of before had no setup, backend and cache, no git, no
    secrets.
    """
    typed = {
        "setup": tuple(values.get("setup", ())),
        "backend": _backend(values.get("backend")),
        "cache": Cache(values.get("cache", Cache.USE)),
        "git": _git(values.get("git")),
        "secrets": tuple(values.get("secrets", ())),
        "setup_secrets": tuple(values.get("setup_secrets", ())),
    }
    return Spec(**{**values, **typed})


def _git(values: Mapping[str, Any] | None) -> Git | None:
    return Git(**{**values, "allowed": tuple(values.get("allowed", ()))}) if values else None


def _backend(values: Mapping[str, Any] | None) -> Backend | None:
    return Backend(**{**values, "path": tuple(values["path"])}) if values else None


def _stop(row: Row[Any]) -> Stop | None:
    if row.stop_cause is None or row.stop_at is None:
        return None
    return Stop(Reason(row.stop_cause), row.stop_at, row.stop_by)

"""The tables, as SQLModel classes. Instants are microseconds since the epoch, in UTC."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Table,
    text,
)
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from ciworker.domain.container import ContainerState

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """An aware instant as the tables hold it."""
    return (instant - _EPOCH) // _MICROSECOND


def instant(microseconds: int) -> datetime:
    """What a table holds, as an aware instant."""
    return _EPOCH + microseconds * _MICROSECOND


def table(row: type[SQLModel]) -> Table:
    """Its table, for statements without entities."""
    return SQLModel.metadata.tables[str(row.__tablename__)]


class Instant(TypeDecorator[datetime]):
    """An aware datetime, kept as an integer: exact, comparable, four times smaller than text."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: object) -> int | None:
        return None if value is None else microseconds(value)

    def process_result_value(self, value: Any | None, dialect: object) -> datetime | None:
        return None if value is None else instant(value)


class KeptContainer(TypeDecorator[ContainerState]):
    """What is kept of a container, as JSON; its instants in microseconds."""

    impl = JSON
    cache_ok = True

    def process_bind_param(
        self, value: ContainerState | None, dialect: object
    ) -> dict[str, Any] | None:
        if value is None:
            return None
        instants = {name: getattr(value, name) for name in _INSTANTS}
        return asdict(value) | {
            name: None if at is None else microseconds(at) for name, at in instants.items()
        }

    def process_result_value(
        self, value: dict[str, Any] | None, dialect: object
    ) -> ContainerState | None:
        if value is None:
            return None
        instants = {name: value[name] for name in _INSTANTS}
        return ContainerState(
            **value | {name: None if at is None else instant(at) for name, at in instants.items()}
        )


_INSTANTS = ("started_at", "stopped_at")  # of what is kept of a container


class JobRow(SQLModel, table=True):
    """removed: nobody finds it any more; what is left of it goes (`store/retention.py`)."""

    __tablename__ = "job"
    __table_args__ = (
        Index(
            "job_queue",
            "kind",
            text("priority DESC"),
            "id",
            sqlite_where=text("status = 'queued' AND waits = 0"),
        ),
        Index(
            "job_waiting",
            "environment",
            "id",
            sqlite_where=text("status = 'queued' AND waits = 1"),
        ),
        Index(
            "job_environment",
            "kind",
            "environment",
            sqlite_where=text(
                "status IN ('queued', 'starting', 'running') AND environment IS NOT NULL"
            ),
        ),
        Index(
            "job_backoff",
            "status",
            "not_before",
            sqlite_where=text("status = 'queued' AND waits = 0 AND not_before IS NOT NULL"),
        ),
        Index(
            "job_cancelled",
            "status",
            "id",
            sqlite_where=text("status = 'queued' AND cancel_by IS NOT NULL"),
        ),
        Index(
            "job_finished",
            "finished_at",
            "id",
            sqlite_where=text("finished_at IS NOT NULL"),
        ),
        Index(
            "job_unpacked",
            "finished_at",
            "id",
            sqlite_where=text("finished_at IS NOT NULL AND log_packed = 0"),
        ),
        Index("job_removed", "status", "id", sqlite_where=text("removed = 1")),
        Index("job_status", "status", "id"),
        Index("job_project", "project", "id"),
    )

    id: str = Field(primary_key=True)
    status: str
    reason: str | None = None
    message: str | None = None
    exit_code: int | None = None
    project: str
    spec: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    source: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    priority: int
    memory: int
    attempt: int = 0
    retry_of: str | None = None
    container_id: str | None = None
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    started_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    finished_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    deadline_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    not_before: datetime | None = Field(default=None, sa_column=Column(Instant))
    starting_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    sent_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    cancel_by: str | None = None
    stop_cause: str | None = None
    stop_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    stop_by: str | None = None
    kills: list[int] = Field(sa_column=Column(JSON, nullable=False))
    oom: bool = False
    engine_restarted_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    log_complete: bool = False
    log_incomplete: bool = False
    keep_until: datetime | None = Field(default=None, sa_column=Column(Instant))
    mark_token: str
    tar_length: int = Field(sa_column=Column(BigInteger, nullable=False))
    kind: str = Field(sa_column=Column(String, nullable=False, server_default="job"))
    environment: str | None = None
    waits: bool = Field(sa_column=Column(Boolean, nullable=False, server_default=text("0")))
    build: str | None = None
    granted: dict[str, str] = Field(
        sa_column=Column(JSON, nullable=False, server_default=text("'{}'"))
    )
    log_packed: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("0"))
    )
    removed: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("0"))
    )
    container: ContainerState | None = Field(
        default=None, sa_column=Column(KeptContainer(none_as_null=True))
    )


class JobEventRow(SQLModel, table=True):
    """A transition, or a note of something seen on the way (then from_status = to_status)."""

    __tablename__ = "job_event"
    __table_args__ = (Index("job_event_job", "job_id", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(sa_column=Column(ForeignKey("job.id", ondelete="CASCADE"), nullable=False))
    at: datetime = Field(sa_column=Column(Instant, nullable=False))
    from_status: str | None = None
    to_status: str
    reason: str | None = None
    message: str | None = None


class LogChunkRow(SQLModel, table=True):
    """Lines of one commit, with the engine's cursor and the sum of bytes after them.

    The small columns come first, so that reading them does not read the blobs' pages. Lines that
    were copied from a setup, or are of a fetch, have a negative `attempt`. packed: `runs` and
    `data` are zstd frames, and may be of several commits (`store/packing.py`).
    """

    __tablename__ = "log_chunk"
    __table_args__ = (
        Index("log_chunk_setup", "job_id", "first", sqlite_where=text("attempt < 0")),
    )

    job_id: str = Field(
        sa_column=Column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    )
    first: int = Field(primary_key=True)
    count: int
    attempt: int
    total_bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    out_lines: int
    out_frames: int
    err_lines: int
    err_frames: int
    runs: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    data: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    packed: bool = Field(
        default=False, sa_column=Column(Boolean, nullable=False, server_default=text("0"))
    )


class EnvironmentRow(SQLModel, table=True):
    __tablename__ = "environment"
    __table_args__ = (Index("environment_project", "project", "build"),)

    key: str = Field(primary_key=True)
    status: str
    project: str
    image: str
    image_id: str
    commands: list[str] = Field(sa_column=Column(JSON, nullable=False))
    inputs: dict[str, str] = Field(sa_column=Column(JSON, nullable=False))
    operator: str
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    single: bool
    build: str | None
    good: str | None
    builds: int
    attempts: int
    layer: str | None
    bytes: int = Field(sa_column=Column(BigInteger, nullable=False))
    build_seconds: float
    ready_at: datetime | None = Field(sa_column=Column(Instant))
    last_used_at: datetime | None = Field(sa_column=Column(Instant))
    hits: int
    misses: int
    exit_code: int | None
    message: str | None
    removal: str | None


class SubmissionRow(SQLModel, table=True):
    """An Idempotency-Key that was used, and the job it made."""

    __tablename__ = "submission"
    __table_args__ = (Index("submission_job", "job_id"), Index("submission_at", "at"))

    token_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    job_id: str = Field(sa_column=Column(ForeignKey("job.id", ondelete="CASCADE"), nullable=False))
    at: datetime = Field(sa_column=Column(Instant, nullable=False))


class TokenRow(SQLModel, table=True):
    __tablename__ = "token"

    id: str = Field(primary_key=True)
    name: str
    role: str
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    revoked_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    expires_at: datetime | None = Field(default=None, sa_column=Column(Instant))
    last_used_at: datetime | None = Field(default=None, sa_column=Column(Instant))


class AuditRow(SQLModel, table=True):
    """What somebody did; see `store/audit.py`."""

    __tablename__ = "audit"
    __table_args__ = (Index("audit_at", "at", "id"),)

    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=Column(Instant, nullable=False))
    token_id: str | None = None
    by: str
    address: str
    action: str
    subject: str
    detail: str


class SessionRow(SQLModel, table=True):
    """parent: the session through which it was made, and with which it ends."""

    __tablename__ = "session"
    __table_args__ = (
        Index("session_token", "token_id", "created_at"),
        Index("session_parent", "parent"),
    )

    id: str = Field(primary_key=True)
    token_id: str = Field(
        sa_column=Column(ForeignKey("token.id", ondelete="CASCADE"), nullable=False)
    )
    parent: str | None = Field(
        default=None, sa_column=Column(ForeignKey("session.id", ondelete="CASCADE"))
    )
    digest: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    expires_at: datetime = Field(sa_column=Column(Instant, nullable=False))


class WebhookDeliveryRow(SQLModel, table=True):
    """A message to others, and how it fares. It stays when its job is removed."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        Index(
            "webhook_delivery_pending",
            "kind",
            "endpoint",
            "next_try_at",
            sqlite_where=text("state = 'pending'"),
        ),
        Index("webhook_delivery_state", "state", "id"),
    )

    id: str = Field(primary_key=True)
    kind: str
    endpoint: str
    type: str
    job: str | None
    body: bytes = Field(sa_column=Column(LargeBinary, nullable=False))
    created_at: datetime = Field(sa_column=Column(Instant, nullable=False))
    since: datetime = Field(sa_column=Column(Instant, nullable=False))
    state: str
    tries: int
    next_try_at: datetime | None = Field(sa_column=Column(Instant))
    tried_at: datetime | None = Field(sa_column=Column(Instant))
    answer: int | None
    error: str | None


class MetaRow(SQLModel, table=True):
    __tablename__ = "meta"

    key: str = Field(primary_key=True)
    value: str

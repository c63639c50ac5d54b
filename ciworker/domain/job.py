"""A job: what was asked for, how far it is, and which steps it may take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class Status(StrEnum):
    """Where a job is; the last three are terminal."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"

    @property
    def terminal(self) -> bool:
        return self in TERMINAL

    @property
    def active(self) -> bool:
        """True while the job holds a slot."""
        return self in (Status.STARTING, Status.RUNNING)


TERMINAL = frozenset({Status.COMPLETED, Status.CANCELLED, Status.FAILED})

TRANSITIONS: Mapping[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.STARTING, Status.CANCELLED, Status.FAILED}),
    Status.STARTING: frozenset({Status.QUEUED, Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    Status.RUNNING: TERMINAL,
    Status.COMPLETED: frozenset(),
    Status.CANCELLED: frozenset(),
    Status.FAILED: frozenset(),
}


class Reason(StrEnum):
    """Why a job ended, as a code that clients may rely on."""

    PASSED = "passed"
    TESTS_FAILED = "tests_failed"
    NO_TESTS = "no_tests"
    TIMED_OUT = "timed_out"
    NO_OUTPUT = "no_output"
    OUT_OF_MEMORY = "out_of_memory"
    LOG_LIMIT = "log_limit"
    CANCELLED = "cancelled"
    IMAGE_MISSING = "image_missing"
    START_REFUSED = "start_refused"
    TRANSFER_FAILED = "transfer_failed"
    CONTAINER_LOST = "container_lost"
    KILLED_OUTSIDE = "killed_outside"
    ENGINE_RESTARTED = "engine_restarted"
    WORKSPACE_INVALID = "workspace_invalid"


_COMPLETED = frozenset(
    {
        Reason.PASSED,
        Reason.TESTS_FAILED,
        Reason.NO_TESTS,
        Reason.TIMED_OUT,
        Reason.NO_OUTPUT,
        Reason.OUT_OF_MEMORY,
        Reason.LOG_LIMIT,
    }
)


def status_of(reason: Reason) -> Status:
    """The terminal status that goes with a reason."""
    if reason is Reason.CANCELLED:
        return Status.CANCELLED
    return Status.COMPLETED if reason in _COMPLETED else Status.FAILED


def success_of(reason: Reason) -> bool | None:
    """True: passed. False: ran and did not pass. None: there is no verdict on the tests."""
    if reason is Reason.PASSED:
        return True
    return False if reason in _COMPLETED else None


class Mark(StrEnum):
    """What is known about the start mark of a container that is down."""

    UNKNOWN = "unknown"  # nobody has looked yet
    SEEN = "seen"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Spec:
    """What a job runs and what it may use; resolved, nothing left to default.

    timeout in seconds, memory in bytes, cpus in cores.
    """

    image: str
    run: str
    timeout: float
    memory: int
    cpus: float
    network: bool
    project: str
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop that we decided on: noted before any signal is sent."""

    cause: Reason
    at: datetime
    by: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the store holds it. Instants are aware and in UTC.

    `kills` are the signals that a `kill` event told of and that were not ours; `oom` and
    `engine_restarted_at` are likewise notes of events, since no inspect tells them later.
    """

    id: str
    status: Status
    spec: Spec
    created_at: datetime
    mark_token: str
    tar_length: int = 0
    reason: Reason | None = None
    message: str | None = None
    exit_code: int | None = None
    source: Mapping[str, object] = field(default_factory=dict)
    priority: int = 0
    attempt: int = 0
    retry_of: str | None = None
    container_id: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    deadline_at: datetime | None = None
    not_before: datetime | None = None
    starting_at: datetime | None = None
    sent_at: datetime | None = None
    cancel_by: str | None = None
    stop: Stop | None = None
    kills: tuple[int, ...] = ()
    oom: bool = False
    engine_restarted_at: datetime | None = None
    log_complete: bool = False
    log_incomplete: bool = False
    log_lines: int = 0
    keep_until: datetime | None = None

    @property
    def container_name(self) -> str:
        """The name of this attempt's container: the engine refuses a second one."""
        return f"ci-{self.id.lower()}-{self.attempt}"

    @property
    def success(self) -> bool | None:
        """True: passed. False: ran and did not pass. None: no verdict, or none yet."""
        return success_of(self.reason) if self.reason else None

    @property
    def cancel_asked(self) -> bool:
        return self.cancel_by is not None

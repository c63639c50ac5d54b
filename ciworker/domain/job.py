"""A job: what was asked for, how far it is, and which steps it may take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from ciworker.domain.container import ContainerState


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
    SETUP_FAILED = "setup_failed"
    SOURCE_FAILED = "source_failed"
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


class Kind(StrEnum):
    """What a job is for."""

    JOB = "job"  # somebody submitted it
    SETUP = "setup"  # the worker's own: builds the environment of others


class Cache(StrEnum):
    """What a job does with the environments that are there."""

    USE = "use"
    REBUILD = "rebuild"  # one that was begun before the job was submitted does not count
    OFF = "off"  # one of its own, removed with it


class Need(StrEnum):
    """How a queued job stands to what it needs before it can start: its tree, its environment."""

    NOTHING = "nothing"  # it needs none, or was released to start in one that is ready
    SOURCE = "source"  # its tree is not fetched
    NO_SOURCE = "no source"  # nor can be
    UNKNOWN = "unknown"  # which one is not known yet
    WAITS = "waits"  # it is not ready, or not all lines of its setup are in the job's log
    READY = "ready"
    FAILED = "failed"


class Mark(StrEnum):
    """What is known about the start mark of a container that is down."""

    UNKNOWN = "unknown"  # nobody has looked yet
    SEEN = "seen"
    ABSENT = "absent"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Backend:
    """What makes a project importable at run time: its build backend (PEP 517, PEP 660).

    name: `build-backend`, as it is imported; path: `backend-path`, within the tree. project: the
    distribution's name, where it is known: build backends take a version for it by that name.
    """

    name: str
    path: Sequence[str] = ()
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Git:
    """The repository that the worker fetches a job's tree from.

    ref: a branch, tag or commit. subdirectory: the folder of it that is the tree. commit: what the
    ref named when it was fetched. overrides: what the submitter says instead of the job file,
    which is not there to be read before. role: of the submitter's token, or that of a hook, whose
    rule names the `allowed` secrets: so it is known then which the job file may name.
    """

    url: str
    ref: str
    subdirectory: str | None = None
    commit: str | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)
    role: str = ""
    allowed: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Spec:
    """What a job runs and what it may use; resolved, nothing left to default.

    timeout in seconds, memory in bytes, cpus in cores. setup: commands whose result is the
    environment that the job runs in; none: the image alone. setup_inputs: SHA-256 (hex) of the
    files that they may read, by name in the tree, with `x ` before it where one is executable.
    backend: installs the project before the run. git: where the tree comes from; until that is
    fetched, the rest is what it would be without a job file. secrets: names of those that the job
    wants in its environment; setup_secrets: likewise its setup.
    """

    image: str
    run: str
    timeout: float
    memory: int
    cpus: float
    network: bool
    project: str
    env: Mapping[str, str] = field(default_factory=dict)
    setup: Sequence[str] = ()
    setup_inputs: Mapping[str, str] = field(default_factory=dict)
    backend: Backend | None = None
    cache: Cache = Cache.USE
    git: Git | None = None
    secrets: Sequence[str] = ()
    setup_secrets: Sequence[str] = ()


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
    `environment` is the key of the environment it runs in (a setup's: that it builds), once that is
    known; `waits` is true while a queued job cannot be admitted because that is not ready, or its
    tree not fetched; `build` is the setup job whose lines it shows meanwhile, and whose end decides
    about it. `granted` holds fingerprints of the secrets that were sent to the container of this
    attempt, by name.
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
    container: ContainerState | None = None
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
    kind: Kind = Kind.JOB
    environment: str | None = None
    waits: bool = False
    build: str | None = None
    granted: Mapping[str, str] = field(default_factory=dict)

    @property
    def container_name(self) -> str:
        """The name of this attempt's container: the engine refuses a second one."""
        return f"ci-{self.id.lower()}-{self.attempt}"

    @property
    def unfetched(self) -> bool:
        """Whether its tree is still to be fetched."""
        return self.spec.git is not None and not self.tar_length

    @property
    def success(self) -> bool | None:
        """True: passed. False: ran and did not pass. None: no verdict, or none yet."""
        return success_of(self.reason) if self.reason else None

    @property
    def engine_restarted(self) -> bool:
        """Whether the engine restarted since this attempt's container was started."""
        if self.engine_restarted_at is None or self.sent_at is None:
            return False
        return self.sent_at <= self.engine_restarted_at

    @property
    def cancel_asked(self) -> bool:
        return self.cancel_by is not None

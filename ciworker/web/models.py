"""What goes over the wire. `/openapi.json` is generated from these."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema, field_validator

from ciworker.domain.container import ContainerState
from ciworker.domain.environment import EnvironmentStatus
from ciworker.domain.git import DEFAULT_REF
from ciworker.domain.job import Backend, Cache, Git, Job, Status
from ciworker.domain.log import Line
from ciworker.domain.phases import Phase, PhaseName, Setup, phases
from ciworker.domain.verdict import exit_words
from ciworker.domain.webhook import DeliveryKind, DeliveryState
from ciworker.store.audit import Action
from ciworker.store.jobs import HistoryEntry, Place
from ciworker.units import CENTURY
from ciworker.web.sessions import is_local_path


def rfc3339(at: datetime) -> str:
    """UTC with milliseconds: `2026-01-31T12:00:00.000Z`."""
    text = at.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


Instant = Annotated[
    datetime,
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackendModel(Model):
    """The build backend that installs the project before the run; as in pyproject.toml."""

    name: str
    path: list[str]
    project: str | None


class GitModel(Model):
    """The repository that the worker fetches. commit: what the ref named, once it is known."""

    url: str
    ref: str
    subdirectory: str | None
    commit: str | None


class SpecModel(Model):
    """A resolved spec. timeout in seconds, memory in bytes. git: null for an upload; until its tree
    is fetched the rest is what it would be without a job file.

    setup: commands. setup_inputs: what they may read, by name in the tree: a file's SHA-256 in hex,
    or `-> ` and a symlink's target. secrets, setup_secrets: names; their values are never shown.
    """

    image: str
    run: str
    timeout: float
    memory: int
    cpus: float
    network: bool
    project: str
    env: dict[str, str]
    setup: list[str]
    setup_inputs: dict[str, str]
    backend: BackendModel | None
    cache: Cache
    git: GitModel | None
    secrets: list[str]
    setup_secrets: list[str]


class Vcs(Model):
    """What the submitter's git says of the tree."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    commit: Annotated[str, Field(max_length=200)] | None = None
    branch: Annotated[str, Field(max_length=1000)] | None = None
    describe: Annotated[str, Field(max_length=1000)] | None = None
    dirty: bool | None = None


class GitRequest(BaseModel):
    """A repository to fetch. ref: a branch, tag or commit, or the beginning of a commit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: Annotated[str, Field(description="`https://`, `ssh://` or `USER@HOST:PATH`")]
    ref: str = DEFAULT_REF
    subdirectory: str | None = Field(None, description="The folder of it that is the tree.")


class SpecRequest(BaseModel):
    """The `spec` part of a submit: the job file's keys, and what belongs to this submit alone.

    Durations are `90`, `"90s"`, `"10m"`, `"2h"`; sizes `"512m"`, `"2g"`. Strict: "yes" is no
    boolean here, as it is none in the job file.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    image: str | None = None
    run: str | None = None
    timeout: float | str | None = None
    memory: int | str | None = None
    cpus: float | str | None = None
    network: bool | None = None
    project: str | None = None
    env: dict[str, str] | None = None
    setup: list[str] | None = Field(
        None, description="Commands that make the environment; none: no environment."
    )
    setup_inputs: list[str] | None = Field(
        None, alias="setup-inputs", description="The files that they may read, and globs."
    )
    secrets: list[str] | None = Field(
        None, description="Names of secrets for the job's environment, beside the job file's."
    )
    setup_secrets: list[str] | None = Field(
        None,
        alias="setup-secrets",
        description="Likewise for the commands that make the environment.",
    )
    cache: Literal["use", "rebuild", "off"] | None = Field(
        None,
        description="`rebuild`: make the environment anew. `off`: make one for this job alone.",
    )
    command: list[str] | None = Field(None, description="Replaces `run`.")
    priority: int = Field(0, ge=-1000, le=1000, description="Higher starts first.")
    vcs: Vcs | None = None
    git: GitRequest | None = Field(None, description="Fetched instead of an archive.")


class SubmitForm(BaseModel):
    """The parts of a submit, in this order."""

    spec: SpecRequest
    archive: Annotated[
        bytes | None,
        Field(description="tar, tar.gz, tar.zst or zip; none where the spec has `git`"),
    ] = None


class ContainerModel(Model):
    """A job's container, as it was when the job began to run, or last before it ended: it is
    removed then.

    `status`: the engine's word; `gone`: it no longer was there. `error`: what the engine said of a
    start that failed.
    """

    id: str
    name: str
    status: str
    started_at: Instant | None
    stopped_at: Instant | None
    exit_code: int | None
    error: str | None


class JobModel(Model):
    """A job as everyone sees it.

    `exit_words`: the exit code in words, with the signal that it stands for.
    `waits_for`: the setup job that makes the environment of a queued job, and whose lines it shows.
    """

    id: str
    status: Status
    success: bool | None
    reason: str | None
    message: str | None
    exit_code: int | None
    exit_words: str | None
    project: str
    image: str
    source: dict[str, Any]
    spec: SpecModel
    priority: int
    attempt: int
    retry_of: str | None
    container_id: str | None
    container: ContainerModel | None
    created_at: Instant
    started_at: Instant | None
    finished_at: Instant | None
    deadline_at: Instant | None
    log_lines: int
    log_incomplete: bool
    waits_for: str | None
    tests: None = None


class HistoryModel(Model):
    """One step of a job; a note when `from` equals `to`."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    at: Instant
    before: Annotated[Status | None, Field(alias="from")]
    after: Annotated[Status, Field(alias="to")]
    reason: str | None
    message: str | None


class PhaseModel(Model):
    """`seconds` of it are over; it goes on from `since`, null once it is over itself."""

    name: PhaseName
    seconds: float
    since: Instant | None


class PlaceModel(Model):
    """`number` is 1 for the job that starts next; `queued` counts all that wait."""

    number: int
    queued: int


class LineRecord(Model):
    """One line of a log."""

    n: int
    at: Instant
    stream: Literal["stdout", "stderr", "worker"]
    text: str
    end: bool = True


class JobDetail(JobModel):
    """A job with its history, oldest first, and what its time went into.

    `place`: null when it is not in the queue, or while its environment is being set up.
    `last_lines`: of the log of one that did not pass, or has no verdict: at most 100, and of long
    ones fewer.
    """

    history: list[HistoryModel]
    phases: list[PhaseModel]
    place: PlaceModel | None
    last_lines: list[LineRecord]


class JobPage(Model):
    """Newest first; `next` is the `cursor` of the following page."""

    items: list[JobModel]
    next: str | None


class LogHit(Model):
    """A line that was found; of a long one what is around the first match in it."""

    n: int
    text: str


class LogSearch(Model):
    """Lines that were found, in their order.

    `total`: how many there are from `from` on; null where the time was not enough to tell, and on a
    full page that is not the first, unless `total` asks for it.
    `next`: the `from` with which to go on; null when nothing is left.
    """

    hits: list[LogHit]
    total: int | None
    next: int | None


class ResyncReport(Model):
    """Names by bucket; `repairs` counts what no event had told of."""

    unchanged: list[str]
    created: list[str]
    recreated: list[str]
    started: list[str]
    adopted: list[str]
    requeued: list[str]
    stopped: list[str]
    removed: list[str]
    cancelled: list[str]
    finished: list[str]
    failed: list[str]
    repairs: int
    seconds: float


class PoolEntryModel(Model):
    """What the settings say of some members. memory: bytes of each, cpus: its cores.

    image: null where they hold the environments that were used last.
    """

    name: str
    image: str | None
    network: bool
    memory: int
    cpus: float
    size: int


class PoolMember(Model):
    """One place of the pool, or a member that nobody wants any more.

    environment: key of the one that it holds, or is to hold; null where its entry names an image.
    job: that took it; then its place is filled again once that has ended. error: of the last start
    that failed, its kind first; failures: how many in a row; retry_at: of the next try.
    """

    name: str
    entry: str
    state: Literal[
        "parked",
        "taken",
        "starting",
        "backing_off",
        "no_memory",
        "no_image",
        "no_environment",
        "down",
        "unwanted",
    ]
    container_id: str | None
    environment: str | None
    job: str | None
    error: str | None
    failures: int
    retry_at: Instant | None


class PoolReport(Model):
    """What is wanted of the pool, and what there is. wanted: what was last asked for."""

    wanted: Literal["up", "down"]
    entries: list[PoolEntryModel]
    members: list[PoolMember]


class PoolChange(Model):
    """Names of members by what was done. failed: they are tried again, as the status says."""

    unchanged: list[str]
    created: list[str]
    recreated: list[str]
    started: list[str]
    removed: list[str]
    failed: list[str]


class AwaitedJob(Model):
    """A job that runs; a worker that drains waits for it."""

    id: str
    project: str
    status: Status
    deadline_at: Instant | None


class DrainReport(Model):
    """Whether the worker drains. started_at: of its process, so that another one is told apart."""

    started_at: Instant
    draining: bool
    waits_for: list[AwaitedJob]


class EnvironmentModel(Model):
    """An environment: what a setup left behind. inputs: names; build: its newest setup job."""

    key: str
    status: EnvironmentStatus
    project: str
    image: str
    image_id: str
    commands: list[str]
    inputs: list[str]
    in_use: bool
    build: str | None
    builds: int
    build_seconds: float
    bytes: int
    hits: int
    misses: int
    created_at: Instant
    ready_at: Instant | None
    last_used_at: Instant | None
    exit_code: int | None
    message: str | None


class EnvironmentList(Model):
    """Newest first, the removed ones too; the sums over all."""

    items: list[EnvironmentModel]
    hits: int
    misses: int
    build_seconds: float
    bytes: int


class EnvironmentNames(Model):
    """Keys of environments."""

    items: list[str]


class HookAnswer(Model):
    """What a forge's delivery made: ids of jobs, of which each is made once.

    message: why there is none.
    """

    jobs: list[str]
    message: str | None


class WebhookModel(Model):
    """A webhook of the settings, without its secret and its address.

    failing: how many of those that are pending were tried in vain.
    """

    name: str
    host: str
    events: list[str]
    pending: int
    failing: int
    oldest_pending_at: Instant | None


class WebhookList(Model):
    items: list[WebhookModel]


class WebhookTest(Model):
    """Which webhook is to be tried; null: all."""

    name: Annotated[str, Field(max_length=200)] | None = None


class DeliveryModel(Model):
    """A message to others. answer: the HTTP status of the last try; error: why it failed."""

    id: str
    kind: DeliveryKind
    endpoint: str
    type: str
    job: str | None
    state: DeliveryState
    tries: int
    created_at: Instant
    tried_at: Instant | None
    next_try_at: Instant | None
    answer: int | None
    error: str | None


class DeliveryList(Model):
    """Newest first."""

    items: list[DeliveryModel]


class TokenModel(Model):
    """A token, without its text."""

    id: str
    name: str
    role: Literal["read", "submit", "admin"]
    created_at: Instant
    revoked_at: Instant | None
    expires_at: Instant | None
    last_used_at: Instant | None


class TokenList(Model):
    """Oldest first, the revoked ones too."""

    items: list[TokenModel]


class TokenRequest(Model):
    """A token to be made. expires_in: seconds; null: it stays good until it is revoked."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    role: Literal["read", "submit", "admin"]
    expires_in: Annotated[float, Field(gt=0, le=CENTURY, strict=True)] | None = None


class NewToken(TokenModel):
    """A token with its text, which is shown this once."""

    token: str


class AuditEntry(Model):
    """What somebody did. by: the name of the token that was used, token_id: its id.

    address: where it came from; `local`: a command on the worker's machine; `unix`: the worker's
    own socket. subject: the id of what it was done to.
    """

    at: Instant
    action: Action
    by: str
    address: str
    token_id: str | None
    subject: str
    detail: str


class AuditPage(Model):
    """Newest first."""

    items: list[AuditEntry]
    next: str | None


class LoginCodeRequest(Model):
    """A one-time link to be made. next: the path it leads to, on this site."""

    next: Annotated[str, Field(max_length=500)] = "/"

    @field_validator("next")
    @classmethod
    def _stays_here(cls, value: str) -> str:
        if not is_local_path(value):
            raise ValueError(f"{value!r} is no path on this site, such as /jobs/ID")
        return value


class LoginCode(Model):
    """A one-time link; it logs in with the token that made it."""

    url: str
    expires_at: Instant


class Health(Model):
    status: Literal["ok"] = "ok"


class Problem(Model):
    """RFC 9457; `detail` says what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def job_model(job: Job) -> JobModel:
    return JobModel(**_fields(job))


def job_detail(
    job: Job,
    history: list[HistoryEntry],
    setup: Job | None,
    place: Place | None,
    last_lines: Sequence[Line],
) -> JobDetail:
    """setup: the one that the job waits for, or did."""
    changes = [(entry.after, entry.at) for entry in history if entry.before != entry.after]
    waited = Setup(setup.created_at, setup.finished_at) if setup else None
    return JobDetail(
        **_fields(job),
        history=[_history_model(entry) for entry in history],
        phases=[_phase_model(phase) for phase in phases(changes, waited)],
        place=PlaceModel(number=place.number, queued=place.queued) if place else None,
        last_lines=[_line_record(line) for line in last_lines],
    )


def _line_record(line: Line) -> LineRecord:
    return LineRecord.model_validate(
        {
            "n": line.number,
            "at": datetime.fromtimestamp(line.at / 1000, UTC),
            "stream": line.stream.label,
            "text": line.text.decode(errors="replace"),
            "end": line.ended,
        }
    )


def _phase_model(phase: Phase) -> PhaseModel:
    return PhaseModel(name=phase.name, seconds=phase.spent.total_seconds(), since=phase.since)


def _fields(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "status": job.status,
        "success": job.success,
        "reason": job.reason,
        "message": job.message,
        "exit_code": job.exit_code,
        "exit_words": None if job.exit_code is None else exit_words(job.exit_code),
        "project": job.spec.project,
        "image": job.spec.image,
        "source": dict(job.source),
        "spec": SpecModel(
            image=job.spec.image,
            run=job.spec.run,
            timeout=job.spec.timeout,
            memory=job.spec.memory,
            cpus=job.spec.cpus,
            network=job.spec.network,
            project=job.spec.project,
            env=dict(job.spec.env),
            setup=list(job.spec.setup),
            setup_inputs=dict(job.spec.setup_inputs),
            backend=_backend_model(job.spec.backend),
            cache=job.spec.cache,
            git=_git_model(job.spec.git),
            secrets=list(job.spec.secrets),
            setup_secrets=list(job.spec.setup_secrets),
        ),
        "priority": job.priority,
        "attempt": job.attempt,
        "retry_of": job.retry_of,
        "container_id": job.container_id,
        "container": _container_model(job.container),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "deadline_at": job.deadline_at,
        "log_lines": job.log_lines,
        "log_incomplete": job.log_incomplete,
        "waits_for": job.build if job.waits else None,
    }


def _container_model(container: ContainerState | None) -> ContainerModel | None:
    """Without `asdict`, which copies the instants too: most of what a list of jobs took."""
    if container is None:
        return None
    return ContainerModel.model_validate(container, from_attributes=True)


def _backend_model(backend: Backend | None) -> BackendModel | None:
    if backend is None:
        return None
    return BackendModel(name=backend.name, path=list(backend.path), project=backend.project)


def _git_model(git: Git | None) -> GitModel | None:
    if git is None:
        return None
    return GitModel(url=git.url, ref=git.ref, subdirectory=git.subdirectory, commit=git.commit)


def _history_model(entry: HistoryEntry) -> HistoryModel:
    return HistoryModel.model_validate(
        {
            "at": entry.at,
            "from": entry.before,
            "to": entry.after,
            "reason": entry.reason,
            "message": entry.message,
        }
    )

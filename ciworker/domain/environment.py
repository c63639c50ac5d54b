"""Environments: what setups leave behind, kept by content as images that jobs start from.

An environment is built by a setup job, which is a job like any other: launched, adopted, logged and
judged by the same path. What is decided here is only when one is needed, what its end means, and
when the image goes. `decide_environment` is total and pure, as `decide` is; each guard clause
carries its row's number in the README's table.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ciworker.domain.decide import Bucket
from ciworker.domain.job import Cache, Job, Need, Reason, Status

REPOSITORY = "ciworker-env"
KEPT_ROWS = timedelta(days=30)  # of environments that are gone
SHOWN = 12  # characters of a key that people see


class EnvironmentStatus(StrEnum):
    """Where an environment is."""

    ABSENT = "absent"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment as the store holds it. Instants are aware and in UTC.

    image, image_id: what it is built from; inputs: as in a job's spec. operator: SHA-256 of the
    operator's variables. build: id of the newest setup job; good: of the newest one that left an
    image, as long as that is there. builds: how many there were, failed ones too; attempts: how
    many in a row for the same wish. layer: the engine's id of the image. bytes: of its layer;
    build_seconds: of all builds. single: it belongs to one job alone.
    removal: why it is to be removed, as soon as nobody uses it.
    """

    key: str
    status: EnvironmentStatus
    project: str
    image: str
    image_id: str
    commands: Sequence[str]
    inputs: Mapping[str, str]
    operator: str
    created_at: datetime
    single: bool = False
    build: str | None = None
    good: str | None = None
    builds: int = 0
    attempts: int = 0
    layer: str | None = None
    bytes: int = 0
    build_seconds: float = 0.0
    ready_at: datetime | None = None
    last_used_at: datetime | None = None
    hits: int = 0
    misses: int = 0
    exit_code: int | None = None
    message: str | None = None
    removal: str | None = None

    @property
    def tag(self) -> str:
        """The image's name in the engine."""
        return environment_tag(self.key)


def environment_tag(key: str) -> str:
    """The name of an environment's image: `repository:tag`."""
    return f"{REPOSITORY}:{key}"


def content_key(
    image_id: str,
    commands: Sequence[str],
    inputs: Mapping[str, str],
    operator: str,
    single: str | None = None,
    *,
    version: str = "",
    secrets: Sequence[str] = (),
) -> str:
    """What an environment's content follows from, as SHA-256 in hex.

    Args:
        image_id: the engine's id of the image that it is built from.
        commands: of the setup, in order.
        inputs: SHA-256 of the files it may read, by name.
        operator: `digest_of` the operator's variables.
        single: id of the job that it belongs to alone, if it does.
        version: of how setups are run, so that a change of that builds anew.
        secrets: names of those that the setup is given; what it leaves must not depend on values.
    """
    content = [version, image_id, list(commands), dict(inputs), operator, single]
    return digest_of([*content, list(secrets)] if secrets else content)


def digest_of(value: object) -> str:
    """SHA-256 (hex) of a value that JSON can hold; the order of a mapping's keys does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def need_of(job: Job, environment: Environment | None, *, told: bool) -> Need:
    """Say how a job stands to its environment.

    Args:
        job: queued, or what became of it.
        environment: the one of `job.environment`, if it is known.
        told: the job's log has all lines of `job.build`, or there is none.
    """
    if not job.waits:
        return Need.NOTHING
    if environment is None:
        return Need.UNKNOWN
    if not told:
        return Need.WAITS
    if job.build is not None and job.build == environment.build:
        return _fate(environment)
    return Need.READY if _serves(environment, job) else Need.WAITS


def _fate(environment: Environment) -> Need:
    """Of who watched the newest setup."""
    if environment.status is EnvironmentStatus.BUILDING:
        return Need.WAITS
    if environment.good is not None and environment.good == environment.build:
        return Need.READY
    return Need.WAITS if environment.status is EnvironmentStatus.ABSENT else Need.FAILED


def _serves(environment: Environment, job: Job) -> bool:
    """Whether what is there already will do; also while it is rebuilt for others."""
    return environment.good is not None and not rebuilds(job)


def watches(job: Job, environment: Environment) -> bool:
    """Whether a job that waits is to show, and to share the fate of, the build under way.

    Ids of jobs only grow: a build with a smaller one was begun before the job was submitted.
    """
    if environment.status is not EnvironmentStatus.BUILDING or environment.build is None:
        return False
    if rebuilds(job):
        return environment.build > job.id
    return environment.good is None


def wants_build(job: Job, environment: Environment) -> bool:
    """Whether a job that waits needs another build than those that ended."""
    if environment.good is not None and not rebuilds(job):
        return False
    return environment.status is EnvironmentStatus.ABSENT or job.build != environment.build


def rebuilds(job: Job) -> bool:
    """Whether only an environment that is begun after the job was submitted will do."""
    return job.spec.cache is Cache.REBUILD


class Step(StrEnum):
    """What the controller can do about an environment."""

    NOTHING = "nothing"
    BUILD = "build"  # commit `building` with the id of a new setup job, then queue that job
    CANCEL_BUILD = "cancel build"
    COMMIT = "commit"  # make the image from the setup's container
    RECORD_READY = "record ready"
    RECORD_FAILED = "record failed"
    RECORD_ABSENT = "record absent"  # of a rebuild: that the one of before is what there is
    FORGET = "forget"  # its row
    REMOVE = "remove"  # the image


class Build(StrEnum):
    """What became of an environment's newest setup job."""

    NONE = "none"  # there is none, or its row was never written
    ACTIVE = "active"
    PASSED = "passed"
    FAILED = "failed"  # for a reason of its own: it would fail again
    BROKEN = "broken"  # it lost its container or its engine: it may be tried again
    CANCELLED = "cancelled"


# Running a setup again does no harm: what kept it from its end need not last.
_BROKEN = frozenset(
    {
        Reason.CONTAINER_LOST,
        Reason.KILLED_OUTSIDE,
        Reason.ENGINE_RESTARTED,
        Reason.TRANSFER_FAILED,
        Reason.WORKSPACE_INVALID,
    }
)


def build_of(job: Job | None) -> Build:
    """Judge a setup job."""
    if job is None:
        return Build.NONE
    if job.reason is None:
        return Build.ACTIVE
    if job.reason is Reason.PASSED:
        return Build.PASSED
    if job.status is Status.CANCELLED:
        return Build.CANCELLED
    return Build.BROKEN if job.reason in _BROKEN else Build.FAILED


@dataclass(frozen=True, slots=True)
class EnvironmentFacts:
    """What the table asks about an environment.

    wanted: a queued job waits for it, and needs another build than those that ended. awaited: one
    waits for the build under way. used: a job that has not ended needs it. image: the engine has
    the one that it should have; stale: it has others of its key. container: the setup's container
    is there, and down. attempts_left: another build is allowed. committing: an image is being
    made right now; commit_failed: it could not be, for good. removal: it is to go once nobody
    uses it.
    """

    status: EnvironmentStatus
    wanted: bool = False
    awaited: bool = False
    used: bool = False
    build: Build = Build.NONE
    image: bool = False
    stale: bool = False
    container: bool = False
    attempts_left: bool = True
    committing: bool = False
    commit_failed: bool = False
    removal: bool = False


@dataclass(frozen=True, slots=True)
class EnvironmentAction:
    step: Step
    bucket: Bucket = Bucket.UNCHANGED


_NOTHING = EnvironmentAction(Step.NOTHING)
_BUILD = EnvironmentAction(Step.BUILD, Bucket.CREATED)
_FAIL = EnvironmentAction(Step.RECORD_FAILED, Bucket.FAILED)
_REMOVE = EnvironmentAction(Step.REMOVE, Bucket.REMOVED)


def decide_environment(facts: EnvironmentFacts) -> EnvironmentAction:
    """Say what to do next about an environment."""
    if facts.committing:
        return _NOTHING  # E1
    if facts.status is EnvironmentStatus.BUILDING:
        return _building(facts)
    if facts.stale:
        return _REMOVE  # E2
    if facts.status is EnvironmentStatus.READY:
        return _ready(facts)
    return _gone(facts)


def _gone(facts: EnvironmentFacts) -> EnvironmentAction:
    if facts.image:
        return _REMOVE  # E3: its row is written before it is, so that nobody counts on it
    if facts.wanted:
        return _BUILD  # E4
    forget = EnvironmentAction(Step.FORGET)
    return forget if facts.removal and not facts.used else _NOTHING  # E4


def _ready(facts: EnvironmentFacts) -> EnvironmentAction:
    if facts.wanted:
        return _BUILD  # E5: to be rebuilt, or its image is gone
    if not facts.image and not facts.used:
        return EnvironmentAction(Step.RECORD_ABSENT, Bucket.REMOVED)  # E6
    if facts.removal and not facts.used:
        return _REMOVE  # E7
    return _NOTHING  # E8


def _building(facts: EnvironmentFacts) -> EnvironmentAction:
    if facts.image:
        return EnvironmentAction(Step.RECORD_READY, Bucket.FINISHED)  # E9
    if facts.build is Build.ACTIVE:
        cancel = EnvironmentAction(Step.CANCEL_BUILD, Bucket.CANCELLED)
        return _NOTHING if facts.awaited else cancel  # E10, E11
    if facts.commit_failed or facts.build is Build.FAILED:
        return _FAIL  # E12
    if facts.build is Build.PASSED and facts.container:
        return EnvironmentAction(Step.COMMIT, Bucket.ADOPTED)  # E13
    if not facts.awaited:
        return EnvironmentAction(Step.RECORD_ABSENT, Bucket.REMOVED)  # E14
    return _BUILD if facts.attempts_left else _FAIL  # E15


def why_built(wanted: Environment, before: Sequence[Environment]) -> str:
    """Why there was nothing to use, for the log; `before`: the project's others, newest first."""
    if wanted.single:
        return "this job asked for one of its own"
    if wanted.builds > 1:
        return "the one of before failed, was removed or is to be built anew"
    return _difference(wanted, before[0]) if before else "it is the first one of this project"


def _difference(wanted: Environment, last: Environment) -> str:
    if last.image != wanted.image:
        return f"the image is {wanted.image}, before it was {last.image}"
    if last.image_id != wanted.image_id:
        return f"{wanted.image} is another image than before: {wanted.image_id}"
    if list(last.commands) != list(wanted.commands):
        return "its commands changed"
    if changed := _changed(last.inputs, wanted.inputs):
        return f"changed: {', '.join(changed)}"
    return "the operator's variables, or the secrets that it names, changed"


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = sorted({*before, *after})
    return [name for name in names if before.get(name) != after.get(name)]


def is_outdated(environment: Environment, now: datetime) -> bool:
    """Whether the row of one that is gone need not be kept any longer."""
    gone = environment.status in (EnvironmentStatus.ABSENT, EnvironmentStatus.FAILED)
    return gone and now - _last_used(environment) > KEPT_ROWS


def to_evict(
    environments: Sequence[Environment], in_use: frozenset[str], budget: int
) -> Sequence[str]:
    """Keys of the environments to remove, least recently used first, so that the rest fits.

    Args:
        environments: all of them.
        in_use: keys of those that jobs need.
        budget: bytes that they may take together.
    """
    kept = [e for e in environments if e.layer is not None]
    excess = sum(e.bytes for e in kept) - budget
    evicted = []
    for environment in sorted(kept, key=_last_used):
        if excess <= 0:
            break
        if environment.key not in in_use:
            evicted.append(environment.key)
            excess -= environment.bytes
    return evicted


def _last_used(environment: Environment) -> datetime:
    return environment.last_used_at or environment.created_at

"""A container: a frozen snapshot of what the engine said when it was asked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

LABEL_INSTANCE = "ciworker.instance"
LABEL_KIND = "ciworker.kind"
LABEL_JOB = "ciworker.job"
LABEL_ATTEMPT = "ciworker.attempt"
LABEL_POOL = "ciworker.pool"  # of a pool's member: the entry that wants it
LABEL_SPEC = "ciworker.spec"  # likewise: a hash of everything that was wanted of it
LABEL_ENVIRONMENT = "ciworker.environment"  # of an image: the key of what it holds
LABEL_BUILD = "ciworker.build"  # of an image: the setup job that made it
KIND_POOL = "pool"  # the kind of a container that was parked, and stays it when a job takes it

_NAME_OF_A_JOB = re.compile(r"ci-([0-9a-z]{26})-([0-9]+)", re.ASCII)


class State(StrEnum):
    """The engine's own words for a container's state."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    REMOVING = "removing"
    EXITED = "exited"
    DEAD = "dead"

    @property
    def up(self) -> bool:
        return self in (State.RUNNING, State.PAUSED, State.RESTARTING)

    @property
    def down(self) -> bool:
        return self in (State.EXITED, State.DEAD)


@dataclass(frozen=True, slots=True)
class Container:
    """One container with our label.

    `job` and `attempt` are `owner_of` it; `changed_at` is when it entered its state, by the
    engine's clock. image: the engine's id of what it was made from. instance, kind, spec: its
    labels. memory in bytes and cpus in cores are its limits, where the container itself was looked
    at.
    """

    id: str
    name: str
    state: State
    job: str
    attempt: int
    exit_code: int | None = None
    oom_killed: bool = False
    changed_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str = ""
    image: str = ""
    instance: str = ""
    kind: str = ""
    spec: str = ""
    memory: int | None = None
    cpus: float | None = None

    @property
    def parked(self) -> bool:
        """A member of the pool that no job has taken."""
        return self.kind == KIND_POOL and not self.job


@dataclass(frozen=True, slots=True)
class ContainerState:
    """What is kept of a job's container, which is removed once the job has ended.

    status: the engine's word for its state when it was last looked at; GONE: it no longer was
    there then. Instants are the engine's. error: what the engine said of a start that failed.
    """

    id: str
    name: str
    status: str
    started_at: datetime | None = None
    stopped_at: datetime | None = None
    exit_code: int | None = None
    error: str | None = None


GONE = "gone"


def kept_of(container: Container | None, before: ContainerState | None) -> ContainerState | None:
    """What to keep of a container that was just looked at; `before`: what is kept of it so far."""
    if container is None:
        return replace(before, status=GONE) if before else None
    return ContainerState(
        id=container.id,
        name=container.name,
        status=container.state.value,
        started_at=container.started_at,
        stopped_at=container.finished_at,
        exit_code=container.exit_code if container.state.down else None,
        error=container.error or None,
    )


def owner_of(labels: Mapping[str, str], name: str) -> tuple[str, int]:
    """The job and the attempt that a container belongs to; `("", 0)` for none.

    Labels say so; but those of a pool's member are fixed before a job takes it, and then its name
    does.
    """
    if labels.get(LABEL_KIND) != KIND_POOL:
        return labels.get(LABEL_JOB, ""), number(labels.get(LABEL_ATTEMPT))
    taken = _NAME_OF_A_JOB.fullmatch(name)
    return (taken[1].upper(), int(taken[2])) if taken else ("", 0)


def number(text: str | None) -> int:
    """A label that we wrote; anything else counts as attempt 0, which no job has."""
    return int(text) if text and text.isdigit() else 0

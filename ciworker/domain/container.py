"""A container: a frozen snapshot of what the engine said when it was asked."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

LABEL_INSTANCE = "ciworker.instance"
LABEL_KIND = "ciworker.kind"
LABEL_JOB = "ciworker.job"
LABEL_ATTEMPT = "ciworker.attempt"
LABEL_ENVIRONMENT = "ciworker.environment"  # of an image: the key of what it holds
LABEL_BUILD = "ciworker.build"  # of an image: the setup job that made it


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

    `job` and `attempt` come from its labels; `changed_at` is when it entered its state, by
    the engine's clock.
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

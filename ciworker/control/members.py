"""What is known and told of the runner pool's members."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from ciworker.engine.port import Attachment
from ciworker.settings import Parking


class MemberState(StrEnum):
    """What is told of a member."""

    PARKED = "parked"
    TAKEN = "taken"  # by a job; its place is filled again when that has ended
    STARTING = "starting"
    BACKING_OFF = "backing_off"  # it failed, and is tried again later
    NO_MEMORY = "no_memory"  # waits for jobs to give some back
    NO_IMAGE = "no_image"
    NO_ENVIRONMENT = "no_environment"  # none was used yet that it could hold
    DOWN = "down"  # as the operator wants it, or because the worker drains
    UNWANTED = "unwanted"  # about to be removed


FINE = (MemberState.PARKED, MemberState.TAKEN, MemberState.NO_ENVIRONMENT, MemberState.DOWN)


@dataclass(slots=True)
class Parked:
    """A member that a job may take. memory in bytes, cpus in cores; since: monotonic.

    died: an event told so.
    """

    container: str
    image: str
    network: bool
    memory: int
    cpus: float
    attachment: Attachment
    since: float
    died: bool = False


@dataclass(slots=True)
class Member:
    """One place of the pool; all but the first two is what only this process knows of it.

    environment: key of the one that it holds, or is to hold, where its entry wants environments;
    vacant: there is none for it. promised: its memory is. waits: for memory. taken_by: the job that
    took its container and has not ended; takes: how many did. free_at: when its place became free,
    monotonic. failures: starts that failed, and deaths soon after one; error: the last one's;
    retry_at: when the next start may be tried, monotonic. looking: held by who looks at it, or
    has it leave.
    """

    name: str
    entry: Parking
    parked: Parked | None = None
    environment: str | None = None
    vacant: bool = False
    promised: bool = False
    waits: bool = False
    no_image: bool = False
    taken_by: str | None = None
    takes: int = 0
    free_at: float | None = None
    failures: int = 0
    error: str | None = None
    retry_at: float = 0.0
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """What is told of one member. environment: key of the one that it holds, or is to hold; job:
    that took it; retry_at: when it is tried again.
    """

    name: str
    entry: str
    state: MemberState
    container: str | None = None
    environment: str | None = None
    job: str | None = None
    error: str | None = None
    failures: int = 0
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """down: the operator wants no members."""

    down: bool
    entries: Sequence[Parking]
    members: Sequence[MemberStatus]

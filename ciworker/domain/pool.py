"""The runner pool's decision: what to do about one member.

As `decide` does for jobs: total, pure, guard clauses in the order of the table in the README, each
with its row's number. A member that a job took is the job's, and none of the pool's.
"""

from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from ciworker.domain.container import Container, State
from ciworker.domain.decide import Bucket

PREFIX = "ci-pool-"
_CPUS = 1e-6  # cores; the engine rounds them


class Move(StrEnum):
    """What the pool's controller can do."""

    NOTHING = "nothing"
    CREATE = "create"  # then as START
    RECREATE = "recreate"  # remove, then as CREATE
    START = "start"  # attach, start, hold stdin open
    RESTART = "restart"  # kill: its stdin can't be had any more; then as START
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of a member. spec: a hash of everything; memory in bytes, cpus in cores."""

    spec: str
    memory: int
    cpus: float


@dataclass(frozen=True, slots=True)
class MemberAction:
    move: Move
    bucket: Bucket = Bucket.UNCHANGED


_NOTHING = MemberAction(Move.NOTHING)


def decide_member(
    wanted: Wanted | None, container: Container | None, *, held: bool
) -> MemberAction:
    """Say what to do next.

    Args:
        wanted: None where there should be no such member.
        container: what the engine has under its name.
        held: we are attached to it, and its stdin is open.
    """
    if container is None:
        return _NOTHING if wanted is None else MemberAction(Move.CREATE, Bucket.CREATED)  # P1, P2
    if container.state is State.REMOVING or not container.parked:
        return _NOTHING  # P3: its destroy event brings the key back; P4
    if wanted is None:
        return MemberAction(Move.REMOVE, Bucket.REMOVED)  # P5
    if not _matches(wanted, container):
        return MemberAction(Move.RECREATE, Bucket.RECREATED)  # P6
    return _kept(container, held=held)


def _kept(container: Container, *, held: bool) -> MemberAction:
    if not container.state.up:
        return MemberAction(Move.START, Bucket.STARTED)  # P7
    if not held or container.state is not State.RUNNING:
        return MemberAction(Move.RESTART, Bucket.STARTED)  # P8
    return _NOTHING  # P9


def _matches(wanted: Wanted, container: Container) -> bool:
    """Its limits are asked for too: they can be changed while it runs, and its labels can't."""
    cpus = container.cpus
    same_cpus = cpus is not None and abs(cpus - wanted.cpus) < _CPUS
    return container.spec == wanted.spec and container.memory == wanted.memory and same_cpus


def member_name(entry: str, number: int, instance: str) -> str:
    """One engine has one set of names for all workers: hence the mark of the instance."""
    return f"{PREFIX}{entry}-{number}-{sha256(instance.encode()).hexdigest()[:6]}"

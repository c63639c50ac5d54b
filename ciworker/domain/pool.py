"""The runner pool's decision: what to do about one member.

As `decide` does for jobs: total, pure, guard clauses in the order of the table in the README, each
with its row's number. A member that a job took is the job's, and none of the pool's.
"""

from collections import Counter
from collections.abc import Sequence
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


def assign(held: Sequence[str | None], recent: Sequence[str]) -> Sequence[str | None]:
    """Say which environment each place is to hold.

    A place keeps its key as long as that is among the keys used last, as many as there are places;
    it makes way only for one of those that no place has, and only while another has its own too.
    With more places than keys some have the same one: jobs that come at once, or before a place is
    filled again, find theirs as well.

    Args:
        held: the keys that the places have now.
        recent: keys by when they were used, last ones first.
    """
    wanted = recent[: len(held)]
    places = [key if key in wanted else None for key in held]
    for key in wanted:
        if key not in places:
            places[_to_give(places)] = key
    while wanted and None in places:
        places[places.index(None)] = min(wanted, key=places.count)
    return places


def _to_give(places: Sequence[str | None]) -> int:
    """The first place without a key; else the last one of the key that has the most."""
    if None in places:
        return places.index(None)
    (most, _), *_ = Counter(places).most_common(1)
    return len(places) - 1 - places[::-1].index(most)


def member_name(entry: str, number: int, instance: str) -> str:
    """One engine has one set of names for all workers: hence the mark of the instance."""
    return f"{PREFIX}{entry}-{number}-{sha256(instance.encode()).hexdigest()[:6]}"

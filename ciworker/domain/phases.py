"""What a job's time goes into: waiting in the queue, being set up, running."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from ciworker.domain.job import Status


class PhaseName(StrEnum):
    QUEUED = "queued"
    SETUP = "setup"
    RUN = "run"


_OF_STATUS = {
    Status.QUEUED: PhaseName.QUEUED,
    Status.STARTING: PhaseName.SETUP,
    Status.RUNNING: PhaseName.RUN,
}


@dataclass(frozen=True, slots=True)
class Setup:
    """The setup of the environment that a job waits for, or did. ended: None until it has."""

    began: datetime
    ended: datetime | None


@dataclass(slots=True)
class Phase:
    """spent: what is over of it. since: from when on it goes on, None once it is over."""

    name: PhaseName
    spent: timedelta = timedelta()
    since: datetime | None = None


def phases(changes: Iterable[tuple[Status, datetime]], setup: Setup | None) -> list[Phase]:
    """A job's phases in the order in which they first came; one that came again adds up.

    Args:
        changes: of its status, to which and when, oldest first. Repeated ones change nothing.
        setup: what it waited for while it was queued.
    """
    found: dict[PhaseName, Phase] = {}
    current: Phase | None = None
    for name, at in _steps(list(changes), setup):
        if current is not None and current.since is not None:
            current.spent += max(at - current.since, timedelta())
            current.since = None
        current = found.setdefault(name, Phase(name)) if name is not None else None
        if current is not None:
            current.since = at
    return list(found.values())


def _steps(
    changes: list[tuple[Status, datetime]], setup: Setup | None
) -> Iterable[tuple[PhaseName | None, datetime]]:
    """When which phase begins, in order; None: the job's end."""
    for place, (status, at) in enumerate(changes):
        name = _OF_STATUS.get(status)
        yield name, at
        if name is not PhaseName.QUEUED or setup is None:
            continue
        until = changes[place + 1][1] if place + 1 < len(changes) else None
        if until is not None and until <= setup.began:
            continue
        if setup.ended is not None and setup.ended <= at:
            continue
        yield PhaseName.SETUP, max(at, setup.began)
        if setup.ended is not None and (until is None or setup.ended < until):
            yield PhaseName.QUEUED, setup.ended

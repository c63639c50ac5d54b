"""What only this process knows of a job: its tasks, its timers, events not yet noted.

All of it can be lost: after a restart it is made anew from the store and the engine.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime

from ciworker.control.credentials import Grant
from ciworker.control.fetchlog import FetchLog
from ciworker.control.logpump import LogPump
from ciworker.control.setuplog import SetupLog
from ciworker.domain.container import Container
from ciworker.domain.decide import Facts
from ciworker.domain.job import Job, Mark, Need, Reason, Status
from ciworker.errors import StoreUnavailable

STORE_WAIT = 5.0  # seconds for which a look waits for lines to be stored


@dataclass(slots=True)
class Life:
    """One attempt of one job. Times are monotonic seconds.

    grant: the secrets that its container was given. untouched: this process admitted the attempt
    and has not yet tried to create its container. unseen: the engine restarted before this process
    saw it. terminated: TERM was sent in this life of the process. ours: we sent KILL. kills, oom:
    told by events, to be noted before the next decision. heard: actions of this attempt's container
    that events told of. taking: a parked container is being taken, and looks wait; missed: one did.
    unsent: whatever is committed, nothing was sent to the container that was taken.
    """

    attempt: int
    grant: Grant | None = None
    pump: LogPump | None = None
    pump_task: asyncio.Task[None] | None = None
    sender: asyncio.Task[None] | None = None
    fetch_log: FetchLog | None = None
    fetch_task: asyncio.Task[None] | None = None
    source_error: str | None = None
    setup_log: SetupLog | None = None
    setup_task: asyncio.Task[None] | None = None
    workspace_error: str | None = None
    start_failures: int = 0
    transfer_deadline: float | None = None
    deadline: float | None = None
    kill_at: float | None = None
    untouched: bool = False
    taking: bool = False
    missed: bool = False
    unsent: bool = False
    unseen: bool = False
    terminated: bool = False
    ours: bool = False
    kills: list[int] = field(default_factory=list)
    oom: bool = False
    heard: set[str] = field(default_factory=set)

    @property
    def connected(self) -> bool:
        """Our attached stream is alive."""
        return self.pump is not None and self.pump.attached


async def let_go(log: FetchLog | SetupLog | None, task: asyncio.Task[None] | None) -> None:
    """End what writes lines before a job's own; what was taken to be stored is stored.

    Raises:
        StoreUnavailable: lines still wait for the store.
    """
    if log is None or task is None:
        return
    task.cancel()
    await asyncio.wait([task])
    try:
        async with asyncio.timeout(STORE_WAIT):
            await log.abandoned()
    except TimeoutError:
        raise StoreUnavailable("lines of the job wait for the store") from None


@dataclass(frozen=True, slots=True)
class Patience:
    """The settings that bound a job's steps, in seconds and attempts."""

    transfer_timeout: float
    stop_grace: float
    start_attempts: int
    no_output_timeout: float | None


def arm(
    job: Job,
    life: Life,
    container: Container | None,
    patience: Patience,
    *,
    now: datetime,
    monotonic: float,
) -> None:
    """Set the deadlines that follow from what is stored, once each.

    Within a life of the process they are monotonic. After a restart what is left is what the
    wall clock says, bounded by nothing and the whole: so no step of the clock can hurt more.
    A container that was parked was started long before it was sent to.
    """
    started = container.started_at if container is not None and container.state.up else None
    if job.status is Status.STARTING and life.transfer_deadline is None and started is not None:
        started = max(started, job.sent_at or started)
        left = patience.transfer_timeout - (now - started).total_seconds()
        life.transfer_deadline = monotonic + _bounded(left, patience.transfer_timeout)
    if job.status is Status.RUNNING and life.deadline is None and job.deadline_at is not None:
        left = (job.deadline_at - now).total_seconds()
        life.deadline = monotonic + _bounded(left, job.spec.timeout)
    if job.status is Status.RUNNING and job.stop is not None and life.kill_at is None:
        left = patience.stop_grace - (now - job.stop.at).total_seconds()
        life.kill_at = monotonic + _bounded(left, patience.stop_grace)


def _bounded(left: float, whole: float) -> float:
    return max(0.0, min(left, whole))


def facts_of(
    job: Job, life: Life, patience: Patience, monotonic: float, need: Need = Need.NOTHING
) -> Facts:
    """What the decision table asks about this job, now."""
    overdue = life.transfer_deadline is not None and monotonic >= life.transfer_deadline
    return Facts(
        status=job.status,
        need=need,
        cancel_asked=job.cancel_asked,
        sent=job.sent_at is not None,
        connected=life.connected,
        mark=life.pump.mark if life.pump else Mark.UNKNOWN,
        transfer_due=overdue,
        attempts_left=job.attempt < patience.start_attempts,
        stop_due=stop_due(job, life, patience, monotonic),
        log_complete=job.log_complete or (life.pump is not None and life.pump.complete),
        keep_until=job.keep_until,
        killed=bool(job.kills),
        engine_restarted=job.engine_restarted,
    )


def stop_due(job: Job, life: Life, patience: Patience, monotonic: float) -> Reason | None:
    """Why a running job has to stop; the first cause stays the cause."""
    if job.stop is not None:
        return job.stop.cause
    if job.cancel_asked:
        return Reason.CANCELLED
    if life.pump is not None and life.pump.over_limit:
        return Reason.LOG_LIMIT
    if life.deadline is not None and monotonic >= life.deadline:
        return Reason.TIMED_OUT
    silent = _silence_ends(life, patience)
    return Reason.NO_OUTPUT if silent is not None and monotonic >= silent else None


def next_look(job: Job, life: Life, patience: Patience) -> float | None:
    """When the job has to be looked at though nothing happens; None for never."""
    if job.status is Status.STARTING:
        return life.transfer_deadline
    if job.status is not Status.RUNNING:
        return None
    if life.kill_at is not None:
        return life.kill_at
    due = (life.deadline, _silence_ends(life, patience))
    return min((at for at in due if at is not None), default=None)


def _silence_ends(life: Life, patience: Patience) -> float | None:
    if patience.no_output_timeout is None or life.pump is None:
        return None
    return life.pump.last_output + patience.no_output_timeout

"""The heart: what to do about the difference between what is wanted and what is.

`decide` is total and pure. Its guard clauses stand in the order of the decision table in the
README, first match wins; each carries its row's number. The controller performs what comes out
and asks again, until nothing is left to do: there is no second path that mends anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from ciworker.domain.container import Container, State
from ciworker.domain.job import Mark, Need, Reason, Status


class Verb(StrEnum):
    """What the controller can do."""

    NOTHING = "nothing"
    FETCH = "fetch"  # see that its tree is fetched
    RESOLVE = "resolve"  # find out which environment the job needs
    WATCH_SETUP = "watch setup"  # see that the lines of its setup are copied
    RELEASE = "release"  # its environment is ready: the queue may admit it
    LAUNCH = "launch"  # commit `starting` with the attempt, create, then as START
    START = "start"  # attach, start, send the archive
    WATCH = "watch"  # read the engine's log until the start mark is found
    LOOK_FOR_MARK = "look for mark"  # the container is down: read its log once
    ENTER_RUNNING = "enter running"
    REQUEUE = "requeue"
    READ_OUTPUT = "read output"  # see that a reader is at work
    STOP = "stop"  # note cause and time, TERM to every process, grace, KILL
    KILL = "kill"  # at once: there is nothing that could clean up
    REMOVE = "remove"
    CANCEL = "cancel"  # remove the container if there is one, record `cancelled`
    FAIL = "fail"
    RECORD_VERDICT = "record verdict"


class Bucket(StrEnum):
    """What a resync reports about a job, an environment or a member of the pool."""

    UNCHANGED = "unchanged"
    CREATED = "created"
    RECREATED = "recreated"  # of the pool's members alone
    STARTED = "started"
    ADOPTED = "adopted"
    REQUEUED = "requeued"
    STOPPED = "stopped"
    REMOVED = "removed"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Action:
    verb: Verb
    bucket: Bucket = Bucket.UNCHANGED
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the table asks about a job.

    sent: the commit before the archive's last member was made. connected: our sender or its
    attached stream is alive. transfer_due: `transfer_timeout` is past. stop_due: why the job has
    to stop, if it has to. attempts_left: another start is allowed. killed, engine_restarted:
    an event told of it. keep_until: the container is kept until then. need: of its tree, or of
    an environment.
    """

    status: Status
    need: Need = Need.NOTHING
    cancel_asked: bool = False
    sent: bool = False
    connected: bool = False
    mark: Mark = Mark.UNKNOWN
    transfer_due: bool = False
    attempts_left: bool = True
    stop_due: Reason | None = None
    log_complete: bool = False
    keep_until: datetime | None = None
    killed: bool = False
    engine_restarted: bool = False


_NOTHING = Action(Verb.NOTHING)


def decide(job: Facts | None, container: Container | None, now: datetime, admitted: bool) -> Action:
    """Say what to do next.

    Args:
        job: what is wanted; None for a container of ours that belongs to no job.
        container: what is; None when the engine has none.
        now: aware, UTC.
        admitted: a slot and memory are reserved for this queued job.
    """
    if container is not None and container.state is State.REMOVING:
        return _NOTHING  # 1
    if job is None:
        return _NOTHING if container is None else Action(Verb.REMOVE, Bucket.REMOVED)  # 5, 2
    if job.status.terminal:
        return _terminal(job, container, now)
    if job.status is Status.QUEUED:
        return _queued(job, container, admitted)
    if job.status is Status.STARTING:
        return _starting(job, container)
    return _running(job, container)


def _terminal(job: Facts, container: Container | None, now: datetime) -> Action:
    if container is None:
        return _NOTHING  # 5
    if container.state.up:
        return Action(Verb.KILL, Bucket.STOPPED)  # 3
    kept = job.keep_until is not None and now < job.keep_until
    if kept or not job.log_complete:
        return _NOTHING  # 4
    return Action(Verb.REMOVE, Bucket.REMOVED)  # 4


def _queued(job: Facts, container: Container | None, admitted: bool) -> Action:
    if container is not None:
        return Action(Verb.REMOVE, Bucket.REMOVED)  # 6
    if job.cancel_asked:
        return Action(Verb.CANCEL, Bucket.CANCELLED, Reason.CANCELLED)  # 7
    if job.need is not Need.NOTHING:
        return _NEEDY[job.need]  # 7a to 7f
    if not admitted:
        return _NOTHING  # 8
    return Action(Verb.LAUNCH, Bucket.CREATED)  # 9


_NEEDY: Mapping[Need, Action] = {
    Need.UNKNOWN: Action(Verb.RESOLVE),  # 7a
    Need.WAITS: Action(Verb.WATCH_SETUP),  # 7b
    Need.READY: Action(Verb.RELEASE),  # 7c
    Need.FAILED: Action(Verb.FAIL, Bucket.FAILED, Reason.SETUP_FAILED),  # 7d
    Need.SOURCE: Action(Verb.FETCH),  # 7e
    Need.NO_SOURCE: Action(Verb.FAIL, Bucket.FAILED, Reason.SOURCE_FAILED),  # 7f
}


def _starting(job: Facts, container: Container | None) -> Action:
    if job.cancel_asked:
        return Action(Verb.CANCEL, Bucket.CANCELLED, Reason.CANCELLED)  # 10
    if container is None:
        return _gone(job) if job.sent else Action(Verb.LAUNCH, Bucket.CREATED)  # 12, 11
    if container.state is State.CREATED:
        return Action(Verb.START, Bucket.STARTED)  # 13
    if job.mark is Mark.SEEN:
        return Action(Verb.ENTER_RUNNING, Bucket.ADOPTED)  # 15, 16
    return _starting_up(job) if container.state.up else _starting_down(job)


def _starting_up(job: Facts) -> Action:
    if job.transfer_due:
        return Action(Verb.KILL, Bucket.STOPPED)  # 14, 15
    return _NOTHING if job.connected else Action(Verb.WATCH)  # 14, 15


def _starting_down(job: Facts) -> Action:
    if job.mark is Mark.UNKNOWN:
        return Action(Verb.LOOK_FOR_MARK)  # 16
    # Of an engine that went down, output may be missing: then no mark proves nothing.
    unreadable = job.mark is Mark.UNREADABLE or job.engine_restarted
    if unreadable and job.sent:
        # An engine that restarts tells of its own kills as of anybody's.
        return _lost(Reason.ENGINE_RESTARTED) if job.engine_restarted else _gone(job)  # 16, as 12
    if job.attempts_left:
        return Action(Verb.REQUEUE, Bucket.REQUEUED)  # 16; nothing sent: as 11, by a new attempt
    return Action(Verb.FAIL, Bucket.FAILED, Reason.TRANSFER_FAILED)  # 16


def _running(job: Facts, container: Container | None) -> Action:
    if container is None or container.state is State.CREATED:
        return _gone(job)  # 17
    if container.state.up:
        if job.stop_due is not None:
            return Action(Verb.STOP, Bucket.STOPPED, job.stop_due)  # 18
        return Action(Verb.READ_OUTPUT)  # 19
    if not job.log_complete:
        return Action(Verb.READ_OUTPUT)  # 20
    return Action(Verb.RECORD_VERDICT, Bucket.FINISHED)  # 21


def _gone(job: Facts) -> Action:
    if job.killed:
        return _lost(Reason.KILLED_OUTSIDE)
    return _lost(Reason.ENGINE_RESTARTED if job.engine_restarted else Reason.CONTAINER_LOST)


def _lost(why: Reason) -> Action:
    return Action(Verb.FAIL, Bucket.FAILED, why)


def admit(memory: int | None, free_slots: int, free_memory: int) -> bool:
    """Whether the head of the queue may start.

    Only the head is asked: a large job is never overtaken for ever by small ones.

    Args:
        memory: bytes the head's container may use; None when nothing waits.
        free_slots: how many more jobs may run.
        free_memory: bytes not yet promised to a running job.
    """
    return memory is not None and free_slots > 0 and memory <= free_memory

"""From a container that is down, and what was noted on the way, to a reason and a sentence."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from ciworker.domain.container import Container
from ciworker.domain.job import Job, Kind, Reason
from ciworker.units import format_duration


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a job ended. exit_code is None when there was none of the job's own."""

    reason: Reason
    message: str
    exit_code: int | None = None


def verdict(
    job: Job, container: Container, *, unseen: bool = False, limits: Sequence[str] = ()
) -> Verdict:
    """Judge a container that is down and whose log is complete.

    unseen: the worker was away when the engine restarted. limits: what the container said that the
    job ran into; it is told and judges nothing.

    Our own stop is the reason only if it was decided before the exit; a kill that an event told
    of only if the exit code agrees with its signal, and if it was not the engine's own.
    """
    code = container.exit_code if container.exit_code is not None else -1
    if job.stop is not None and _stopped_first(job, container):
        return _noted(Verdict(job.stop.cause, _stop_sentence(job), code), limits)
    if code == 137 and (container.oom_killed or job.oom) and 9 not in job.kills:
        return _noted(Verdict(Reason.OUT_OF_MEMORY, _memory_sentence(job), code), limits)
    if could_be_engines(job, container, unseen=unseen) and _down_before_restart(job, container):
        return Verdict(Reason.ENGINE_RESTARTED, ENGINE_RESTARTED, None)
    if code > 128 and code - 128 in job.kills:
        return Verdict(Reason.KILLED_OUTSIDE, killed_sentence(code - 128), code)
    return _noted(_own_exit(job, container, code), limits)


def _noted(found: Verdict, limits: Sequence[str]) -> Verdict:
    return replace(found, message="; ".join((found.message, *limits)))


# An engine that stops, and one that boots after a crash, sends TERM and later KILL, with `kill`
# events like anybody's (Docker 20.10.24; 143 for who obeys). 255: it lost sight of the container.
_ENGINES_CODES = (137, 143, 255)


def could_be_engines(job: Job, container: Container, *, unseen: bool = False) -> bool:
    """Whether the end of a container looks like that of those which the engine itself ends.

    One that handles TERM may exit with any code: then a `kill` was told of, but to nobody if the
    worker was away too.
    """
    if container.exit_code in _ENGINES_CODES or job.kills:
        return True
    return unseen and container.exit_code != 0


MOMENT = timedelta(seconds=2)

ENGINE_RESTARTED = (
    "the Docker engine restarted and took the container with it; the log may be incomplete: "
    "submit again or use `ciclient retry`"
)
CONTAINER_LOST = (
    "the container disappeared while the job ran, and no event said why: "
    "look at the engine's log, then use `ciclient retry`"
)


def exit_words(code: int) -> str:
    """An exit code, and the signal that it stands for."""
    if code > 128:
        return f"exit code {code}: killed by {_signal_name(code - 128)}"
    return f"exit code {code}"


def killed_sentence(signum: int | None) -> str:
    """Say that somebody else ended the container."""
    how = f"with {_signal_name(signum)} " if signum else ""
    return f"the container was killed {how}or removed by someone other than ciworker"


def _stopped_first(job: Job, container: Container) -> bool:
    """A stop is decided on a container that is up: between that look and its note lies a moment.

    A stop noted longer than that after the exit was noted by a clock that differs from the
    engine's.
    """
    assert job.stop is not None
    if container.finished_at is None:
        return True
    return not timedelta(0) < job.stop.at - container.finished_at <= MOMENT


def _down_before_restart(job: Job, container: Container) -> bool:
    """A restart is noted once the engine is back: what ended later was not ended by it."""
    if job.engine_restarted_at is None:
        return False
    return container.finished_at is None or container.finished_at <= job.engine_restarted_at


def _stop_sentence(job: Job) -> str:
    assert job.stop is not None
    match job.stop.cause:
        case Reason.CANCELLED:
            return f"cancelled by {job.stop.by or 'the operator'}"
        case Reason.TIMED_OUT if job.kind is Kind.SETUP:
            return (
                f"still running after setup_timeout, {format_duration(job.spec.timeout)}: stopped"
            )
        case Reason.TIMED_OUT:
            return (
                f"still running after its timeout of {format_duration(job.spec.timeout)}: stopped"
            )
        case Reason.NO_OUTPUT:
            return "printed nothing for longer than no_output_timeout allows: stopped"
        case Reason.LOG_LIMIT:
            return "printed more than log_limit allows: stopped; head and tail of the log are kept"
        case cause:
            return f"stopped: {cause}"


def _memory_sentence(job: Job) -> str:
    more = "ask for more with `memory` in the job file or `--memory`"
    if job.kind is Kind.SETUP:
        more = "the operator can allow more with setup_memory"
    limit = job.spec.memory // 2**20
    return f"out of memory: killed by signal 9 at its limit of {limit} MiB; {more}"


def _own_exit(job: Job, container: Container, code: int) -> Verdict:
    if code == 0:
        note = (
            "; a child process was killed for want of memory" if _child_oom(job, container) else ""
        )
        return Verdict(Reason.PASSED, f"passed{note}", code)
    if code == 5 and job.kind is Kind.JOB:
        return Verdict(Reason.NO_TESTS, "exit code 5: the test runner found no tests to run", code)
    return Verdict(Reason.TESTS_FAILED, _exit_sentence(job, container, code), code)


def _exit_sentence(job: Job, container: Container, code: int) -> str:
    note = "; a child process was killed for want of memory" if _child_oom(job, container) else ""
    if job.kind is Kind.SETUP and code <= 128:
        return f"exit code {code}{note}"  # its last line names the command
    if code == 127:
        return f"exit code 127: the shell did not find a command of `{_short(job.spec.run)}`{note}"
    if code == 126:
        return f"exit code 126: a command of `{_short(job.spec.run)}` is not executable{note}"
    return f"{exit_words(code)}{note}"


def _child_oom(job: Job, container: Container) -> bool:
    return container.oom_killed or job.oom


def _short(command: str) -> str:
    return command if len(command) <= 80 else command[:79] + "…"


def _signal_name(signum: int | None) -> str:
    if signum is None:
        return "a signal"
    try:
        return f"signal {signum} ({signal.Signals(signum).name})"
    except ValueError:
        return f"signal {signum}"

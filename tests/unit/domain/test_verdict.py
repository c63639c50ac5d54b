"""From an exit code and what was noted on the way to a reason and a sentence."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from ciworker.domain.container import Container, State
from ciworker.domain.job import Job, Reason, Spec, Status, Stop
from ciworker.domain.verdict import (
    CONTAINER_LOST,
    ENGINE_RESTARTED,
    Verdict,
    killed_sentence,
    verdict,
)

EXIT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)

SPEC = Spec(
    image="python:3.12-slim",
    run="python -m pytest -q",
    timeout=90.0,
    memory=512 * 2**20,
    cpus=2,
    network=False,
    project="demo",
)
JOB = Job(id="01J", status=Status.RUNNING, spec=SPEC, created_at=EXIT, mark_token="t")


def exited(code: int | None, *, oom: bool = False, at: datetime | None = EXIT) -> Container:
    return Container(
        id="c",
        name="ci-01j-1",
        state=State.EXITED,
        job="01J",
        attempt=1,
        exit_code=code,
        oom_killed=oom,
        finished_at=at,
    )


def stopped(cause: Reason, at: datetime, by: str | None = None) -> Job:
    return replace(JOB, stop=Stop(cause, at, by))


@pytest.mark.parametrize(
    ("code", "reason", "message"),
    [
        (0, Reason.PASSED, "passed"),
        (1, Reason.TESTS_FAILED, "exit code 1"),
        (2, Reason.TESTS_FAILED, "exit code 2"),
        (5, Reason.NO_TESTS, "exit code 5: the test runner found no tests to run"),
        (125, Reason.TESTS_FAILED, "exit code 125"),
        (
            126,
            Reason.TESTS_FAILED,
            "exit code 126: a command of `python -m pytest -q` is not executable",
        ),
        (
            127,
            Reason.TESTS_FAILED,
            "exit code 127: the shell did not find a command of `python -m pytest -q`",
        ),
        (128, Reason.TESTS_FAILED, "exit code 128"),
        (129, Reason.TESTS_FAILED, "exit code 129: killed by signal 1 (SIGHUP)"),
        (134, Reason.TESTS_FAILED, "exit code 134: killed by signal 6 (SIGABRT)"),
        (137, Reason.TESTS_FAILED, "exit code 137: killed by signal 9 (SIGKILL)"),
        (139, Reason.TESTS_FAILED, "exit code 139: killed by signal 11 (SIGSEGV)"),
        (143, Reason.TESTS_FAILED, "exit code 143: killed by signal 15 (SIGTERM)"),
        (255, Reason.TESTS_FAILED, "exit code 255: killed by signal 127"),
    ],
)
def test_an_undisturbed_job_is_judged_by_its_own_exit_code(
    code: int, reason: Reason, message: str
) -> None:
    assert verdict(JOB, exited(code)) == Verdict(reason, message, code)


def test_a_long_command_is_shortened_in_the_sentence() -> None:
    fits = replace(JOB, spec=replace(SPEC, run="x" * 80))
    long = replace(JOB, spec=replace(SPEC, run="x" * 81))
    assert f"`{'x' * 80}`" in verdict(fits, exited(127)).message
    assert f"`{'x' * 79}…`" in verdict(long, exited(127)).message


@pytest.mark.parametrize("code", [0, 1, 137, 143])
@pytest.mark.parametrize(
    ("cause", "by", "words"),
    [
        (Reason.CANCELLED, "ann", "cancelled by ann"),
        (Reason.CANCELLED, None, "cancelled by the operator"),
        (Reason.TIMED_OUT, None, "timeout of 90s"),
        (Reason.NO_OUTPUT, None, "no_output_timeout"),
        (Reason.LOG_LIMIT, None, "log_limit"),
        (Reason.TRANSFER_FAILED, None, "stopped: transfer_failed"),
    ],
)
@pytest.mark.parametrize("before", [timedelta(0), MOMENT, timedelta(hours=1)])
def test_our_stop_is_the_reason_when_it_was_noted_before_the_exit(
    code: int, cause: Reason, by: str | None, words: str, before: timedelta
) -> None:
    result = verdict(stopped(cause, EXIT - before, by), exited(code))
    assert (result.reason, result.exit_code) == (cause, code)
    assert words in result.message


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, Reason.PASSED), (1, Reason.TESTS_FAILED), (5, Reason.NO_TESTS)],
)
@pytest.mark.parametrize("after", [MOMENT, timedelta(seconds=1.5)])
def test_our_stop_is_no_reason_when_the_job_had_ended_by_itself(
    code: int, reason: Reason, after: timedelta
) -> None:
    late = stopped(Reason.TIMED_OUT, EXIT + after)
    assert verdict(late, exited(code)) == verdict(JOB, exited(code))
    assert verdict(late, exited(code)).reason is reason


def test_our_stop_counts_when_our_clock_is_ahead_of_the_engines() -> None:
    job = stopped(Reason.CANCELLED, EXIT + timedelta(hours=1), "ann")
    assert verdict(job, exited(143)).reason is Reason.CANCELLED


def test_our_stop_counts_when_the_engine_does_not_say_when_the_job_ended() -> None:
    job = stopped(Reason.CANCELLED, EXIT, "ann")
    assert verdict(job, exited(137, at=None)).reason is Reason.CANCELLED


def test_our_stop_goes_before_everything_else_that_was_noted() -> None:
    job = replace(
        stopped(Reason.TIMED_OUT, EXIT), kills=(9, 15), oom=True, engine_restarted_at=EXIT
    )
    assert verdict(job, exited(137, oom=True)).reason is Reason.TIMED_OUT


def test_137_without_a_kill_is_the_jobs_own_end_and_with_one_somebody_elses() -> None:
    own = verdict(JOB, exited(137))
    other = verdict(replace(JOB, kills=(9,)), exited(137))
    assert own.reason is Reason.TESTS_FAILED
    assert own.message == "exit code 137: killed by signal 9 (SIGKILL)"
    assert other.reason is Reason.KILLED_OUTSIDE
    assert other.message == killed_sentence(9)
    assert other.exit_code == 137


@pytest.mark.parametrize(
    ("kills", "code", "reason"),
    [
        ((15,), 143, Reason.KILLED_OUTSIDE),  # docker stop, and the job obeyed
        ((1,), 129, Reason.KILLED_OUTSIDE),
        ((15, 9), 137, Reason.KILLED_OUTSIDE),  # docker stop, and it did not
        ((15, 9), 143, Reason.KILLED_OUTSIDE),
        ((10,), 137, Reason.TESTS_FAILED),  # somebody sent USR1; what ended the job was another
        ((15,), 0, Reason.PASSED),  # the job shrugged the signal off
        ((2,), 2, Reason.TESTS_FAILED),
        ((9,), 9, Reason.TESTS_FAILED),  # an exit code of its own, not 128 + 9
        ((0,), 128, Reason.TESTS_FAILED),
    ],
)
def test_a_kill_counts_only_when_the_exit_code_agrees_with_its_signal(
    kills: tuple[int, ...], code: int, reason: Reason
) -> None:
    assert verdict(replace(JOB, kills=kills), exited(code)).reason is reason


@pytest.mark.parametrize(("by_event", "by_inspect"), [(True, False), (False, True), (True, True)])
def test_it_is_out_of_memory_when_the_main_process_died_of_it(
    by_event: bool, by_inspect: bool
) -> None:
    result = verdict(replace(JOB, oom=by_event), exited(137, oom=by_inspect))
    assert (result.reason, result.exit_code) == (Reason.OUT_OF_MEMORY, 137)
    assert "512 MiB" in result.message
    assert "--memory" in result.message


def test_a_kill_from_outside_is_not_blamed_on_an_earlier_lack_of_memory() -> None:
    result = verdict(replace(JOB, oom=True, kills=(9,)), exited(137, oom=True))
    assert result.reason is Reason.KILLED_OUTSIDE


def test_another_signal_from_outside_does_not_hide_the_lack_of_memory() -> None:
    result = verdict(replace(JOB, oom=True, kills=(10,)), exited(137, oom=True))
    assert result.reason is Reason.OUT_OF_MEMORY


@pytest.mark.parametrize(("by_event", "by_inspect"), [(True, False), (False, True)])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, Reason.PASSED),
        (1, Reason.TESTS_FAILED),
        (127, Reason.TESTS_FAILED),
        (139, Reason.TESTS_FAILED),
    ],
)
def test_a_childs_lack_of_memory_is_a_note_and_not_the_reason(
    by_event: bool, by_inspect: bool, code: int, reason: Reason
) -> None:
    result = verdict(replace(JOB, oom=by_event), exited(code, oom=by_inspect))
    plain = verdict(JOB, exited(code))
    assert (result.reason, result.exit_code) == (reason, code)
    assert result.message == plain.message + "; a child process was killed for want of memory"


@pytest.mark.parametrize("code", [137, 143, 255])
@pytest.mark.parametrize("later", [timedelta(0), timedelta(seconds=20)])
def test_an_engine_that_restarted_took_the_container_with_it(code: int, later: timedelta) -> None:
    job = replace(JOB, engine_restarted_at=EXIT + later)
    taken = Verdict(Reason.ENGINE_RESTARTED, ENGINE_RESTARTED, None)
    assert verdict(job, exited(code)) == verdict(job, exited(code, at=None)) == taken


@pytest.mark.parametrize(("kills", "code"), [((15,), 143), ((15, 9), 137), ((15,), 1)])
def test_the_signals_of_an_engine_that_stops_or_boots_are_not_somebody_elses(
    kills: tuple[int, ...], code: int
) -> None:
    job = replace(JOB, kills=kills, engine_restarted_at=EXIT + MOMENT)
    assert verdict(job, exited(code)).reason is Reason.ENGINE_RESTARTED


@pytest.mark.parametrize(
    ("code", "reason"),
    [(0, Reason.PASSED), (1, Reason.TESTS_FAILED), (5, Reason.NO_TESTS)],
)
def test_a_job_that_survived_an_engines_restart_is_judged_by_its_exit_code(
    code: int, reason: Reason
) -> None:
    job = replace(JOB, engine_restarted_at=EXIT)
    assert verdict(job, exited(code)) == verdict(JOB, exited(code))
    assert verdict(job, exited(code)).reason is reason


@pytest.mark.parametrize("code", [137, 143, 255])
def test_what_ended_after_the_engine_was_back_was_not_ended_by_its_restart(code: int) -> None:
    survivor = replace(JOB, engine_restarted_at=EXIT - MOMENT)
    assert verdict(survivor, exited(code)) == verdict(JOB, exited(code))
    killed = replace(survivor, kills=(code - 128,))
    assert verdict(killed, exited(code)).reason is Reason.KILLED_OUTSIDE


LIMITS = ("the job reached its limit of 512 processes: so", "/tmp is full: so")


@pytest.mark.parametrize("code", [0, 1, 5, 127, 137, 139])
@pytest.mark.parametrize("stop", [None, Reason.TIMED_OUT, Reason.NO_OUTPUT, Reason.CANCELLED])
@pytest.mark.parametrize("oom", [False, True])
def test_limits_that_a_job_ran_into_are_told_and_judge_nothing(
    code: int, stop: Reason | None, oom: bool
) -> None:
    job = stopped(stop, EXIT) if stop else JOB
    told, plain = (
        verdict(job, exited(code, oom=oom), limits=LIMITS),
        verdict(job, exited(code, oom=oom)),
    )
    assert (told.reason, told.exit_code) == (plain.reason, plain.exit_code)
    assert told.message == "; ".join((plain.message, *LIMITS))


def test_limits_are_not_told_of_a_job_that_others_ended() -> None:
    for job in (replace(JOB, kills=(9,)), replace(JOB, engine_restarted_at=EXIT)):
        assert verdict(job, exited(137), limits=LIMITS) == verdict(job, exited(137))


def test_a_container_without_an_exit_code_has_not_passed() -> None:
    result = verdict(JOB, exited(None))
    assert (result.reason, result.exit_code) == (Reason.TESTS_FAILED, -1)


@pytest.mark.parametrize(
    ("signum", "words"),
    [
        (9, "was killed with signal 9 (SIGKILL) or removed"),
        (200, "was killed with signal 200 or removed"),
        (None, "was killed or removed"),
    ],
)
def test_the_sentence_about_a_kill_names_the_signal_if_it_is_known(
    signum: int | None, words: str
) -> None:
    assert words in killed_sentence(signum)


@pytest.mark.parametrize("sentence", [ENGINE_RESTARTED, CONTAINER_LOST])
def test_a_sentence_about_a_loss_says_what_to_do_next(sentence: str) -> None:
    assert "`ciclient retry`" in sentence

"""States, reasons and names, against the design's tables."""

from dataclasses import replace
from datetime import UTC, datetime
from itertools import product

import pytest

from ciworker.domain.container import State
from ciworker.domain.job import (
    TERMINAL,
    TRANSITIONS,
    Job,
    Reason,
    Spec,
    Status,
    status_of,
    success_of,
)
from ciworker.domain.mark import start_mark

# The reason table of the design, row by row: reason, status, success.
REASONS: tuple[tuple[str, str, bool | None], ...] = (
    ("passed", "completed", True),
    ("tests_failed", "completed", False),
    ("no_tests", "completed", False),
    ("timed_out", "completed", False),
    ("no_output", "completed", False),
    ("out_of_memory", "completed", False),
    ("log_limit", "completed", False),
    ("cancelled", "cancelled", None),
    ("image_missing", "failed", None),
    ("start_refused", "failed", None),
    ("transfer_failed", "failed", None),
    ("container_lost", "failed", None),
    ("killed_outside", "failed", None),
    ("engine_restarted", "failed", None),
    ("setup_failed", "failed", None),
    ("source_failed", "failed", None),
    ("workspace_invalid", "failed", None),
)

# queued -> starting -> running -> a terminal one; back to queued for another attempt; and a job
# may end before it began.
ALLOWED = {
    ("queued", "starting"),
    ("queued", "cancelled"),
    ("queued", "failed"),
    ("starting", "queued"),
    ("starting", "running"),
    ("starting", "cancelled"),
    ("starting", "failed"),
    ("running", "completed"),
    ("running", "cancelled"),
    ("running", "failed"),
}


def test_a_job_may_take_the_steps_of_the_design_and_no_others() -> None:
    allowed = {(a.value, b.value) for a, b in product(Status, Status) if b in TRANSITIONS[a]}
    assert allowed == ALLOWED


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_a_terminal_state_is_never_left(status: Status) -> None:
    assert status.terminal
    assert TRANSITIONS[status] == frozenset()


def test_three_states_are_terminal_and_two_hold_a_slot() -> None:
    assert {s.value for s in Status if s.terminal} == {"completed", "cancelled", "failed"}
    assert {s.value for s in Status if s.active} == {"starting", "running"}


@pytest.mark.parametrize(("reason", "status", "success"), REASONS)
def test_a_reason_goes_with_its_status_and_success(
    reason: str, status: str, success: bool | None
) -> None:
    assert status_of(Reason(reason)).value == status
    assert success_of(Reason(reason)) is success


def test_the_reasons_are_those_of_the_table() -> None:
    assert {reason.value for reason in Reason} == {row[0] for row in REASONS}


@pytest.mark.parametrize("reason", Reason)
def test_a_running_job_can_end_with_any_reason(reason: Reason) -> None:
    assert status_of(reason) in TRANSITIONS[Status.RUNNING]


def job(job_id: str, attempt: int, cancel_by: str | None = None) -> Job:
    spec = Spec("i", "r", timeout=1, memory=1, cpus=1, network=False, project="p")
    now = datetime(2026, 1, 1, tzinfo=UTC)
    return Job(job_id, Status.QUEUED, spec, now, "t", attempt=attempt, cancel_by=cancel_by)


def test_a_containers_name_tells_the_job_in_lower_case_and_the_attempt() -> None:
    assert job("01JABC", 2).container_name == "ci-01jabc-2"


def test_each_attempt_has_a_name_of_its_own() -> None:
    assert len({job("01J", attempt).container_name for attempt in range(20)}) == 20


@pytest.mark.parametrize(
    ("reason", "success"),
    [(None, None), (Reason.PASSED, True), (Reason.NO_TESTS, False), (Reason.CANCELLED, None)],
)
def test_a_job_has_success_once_it_has_a_reason(
    reason: Reason | None, success: bool | None
) -> None:
    assert replace(job("01J", 1), reason=reason).success is success


def test_a_cancel_is_asked_as_soon_as_somebody_asked() -> None:
    assert not job("01J", 1).cancel_asked
    assert job("01J", 1, cancel_by="ann").cancel_asked


@pytest.mark.parametrize(
    ("state", "up", "down"),
    [
        ("created", False, False),
        ("running", True, False),
        ("paused", True, False),
        ("restarting", True, False),
        ("removing", False, False),
        ("exited", False, True),
        ("dead", False, True),
    ],
)
def test_a_container_is_up_or_down_or_neither(state: str, up: bool, down: bool) -> None:
    assert (State(state).up, State(state).down) == (up, down)


def test_every_state_of_the_engine_is_known() -> None:
    words = {"created", "running", "paused", "restarting", "removing", "exited", "dead"}
    assert {state.value for state in State} == words


def test_the_mark_is_one_escape_sequence_on_one_line() -> None:
    assert start_mark("tok", "01J", 3) == b"\x1b]ciworker;tok;01J;3\x1b\\"


def test_marks_differ_in_token_job_and_attempt() -> None:
    marks = {start_mark(t, j, a) for t, j, a in product(("t", "u"), ("A", "B"), (1, 2))}
    assert len(marks) == 8
    assert not any(b"\n" in mark for mark in marks)

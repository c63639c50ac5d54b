"""Where a job's time went adds up, whatever happened to it."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.job import Status
from ciworker.domain.phases import Phase, PhaseName, Setup, phases

START = datetime(2026, 1, 1, tzinfo=UTC)
QUEUED, STARTING, RUNNING, COMPLETED = (
    Status.QUEUED,
    Status.STARTING,
    Status.RUNNING,
    Status.COMPLETED,
)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def setup(began: float, ended: float | None) -> Setup:
    return Setup(at(began), None if ended is None else at(ended))


def told(found: list[Phase]) -> str:
    return " ".join(
        f"{phase.name}:{phase.spent.total_seconds():g}"
        + (f"+{(phase.since - START).total_seconds():g}" if phase.since else "")
        for phase in found
    )


@pytest.mark.parametrize(
    ("changes", "setup", "expected"),
    [
        ([], None, ""),
        ([(QUEUED, 0)], None, "queued:0+0"),
        ([(QUEUED, 0), (STARTING, 2)], None, "queued:2 setup:0+2"),
        (
            [(QUEUED, 0), (STARTING, 2), (RUNNING, 3), (COMPLETED, 9)],
            None,
            "queued:2 setup:1 run:6",
        ),
        ([(QUEUED, 0), (STARTING, 1), (QUEUED, 3), (STARTING, 4)], None, "queued:2 setup:2+4"),
        ([(QUEUED, 0), (COMPLETED, 4)], None, "queued:4"),
        ([(QUEUED, 0)], setup(1, None), "queued:1 setup:0+1"),
        ([(QUEUED, 5)], setup(1, None), "queued:0 setup:0+5"),
        ([(QUEUED, 0)], setup(1, 4), "queued:1+4 setup:3"),
        ([(QUEUED, 0), (STARTING, 6), (RUNNING, 7)], setup(1, 4), "queued:3 setup:4 run:0+7"),
        ([(QUEUED, 5), (STARTING, 6)], setup(1, 4), "queued:1 setup:0+6"),
        ([(QUEUED, 0), (COMPLETED, 3)], setup(1, None), "queued:1 setup:2"),
        ([(QUEUED, 0), (COMPLETED, 3)], setup(4, None), "queued:3"),
        ([(QUEUED, 0), (STARTING, 2), (QUEUED, 3)], setup(4, 6), "queued:3+6 setup:3"),
    ],
)
def test_the_phases_of(
    changes: list[tuple[Status, float]], setup: Setup | None, expected: str
) -> None:
    assert told(phases([(status, at(when)) for status, when in changes], setup)) == expected


_SECONDS = st.integers(0, 50)


@given(
    st.lists(st.tuples(st.sampled_from([QUEUED, STARTING, RUNNING]), _SECONDS), min_size=1),
    st.none() | st.tuples(_SECONDS, st.none() | _SECONDS),
    _SECONDS,
)
def test_all_time_between_the_first_and_the_last_change_is_in_one_phase(
    drawn: list[tuple[Status, int]], around: tuple[int, int | None] | None, last: int
) -> None:
    times = sorted(seconds for _, seconds in drawn)
    changes = [(status, at(when)) for (status, _), when in zip(drawn, times, strict=True)]
    end = times[-1] + last
    lasting = None
    if around is not None:
        began, took = around
        lasting = setup(began, None if took is None else began + took)
    found = phases([*changes, (COMPLETED, at(end))], lasting)
    assert sum((phase.spent for phase in found), timedelta()) == timedelta(seconds=end - times[0])
    assert all(phase.since is None for phase in found)
    assert len({phase.name for phase in found}) == len(found)
    assert PhaseName.RUN in {phase.name for phase in found} or RUNNING not in dict(changes)

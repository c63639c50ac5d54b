"""What came by an attached stream, and whether its engine was kept waiting."""

from collections.abc import Sequence

import pytest

from ciworker.domain.arrivals import CUT_OFF, Arrivals

Reads = Sequence[tuple[float, int]]

LET_GO = 12.0  # when the engine does
MB = 1_000_000
QUICKLY: Reads = [(10.91 + n / 100, 50_000) for n in range(100)]  # told in spans, the last at 11.9


@pytest.mark.parametrize(
    ("reads", "dropped", "held_up"),
    [
        pytest.param([], None, False, id="nothing was printed"),
        pytest.param([(9.0, 2 * MB)], None, False, id="all came in time"),
        pytest.param([(9.0, 10), (12.5, MB)], None, True, id="a megabyte came late"),
        pytest.param([(9.0, 2 * MB), (12.5, MB - 1)], None, False, id="the engine's buffers"),
        pytest.param(
            [(9.0, 10), *[(12.1 + n, MB // 4) for n in range(4)]], None, True, id="slowly"
        ),
        pytest.param([(9.0, 10)], 12.1, True, id="given up late"),
        pytest.param([(9.0, 10)], 11.9, False, id="given up in time"),
        pytest.param([*QUICKLY, (12.3, 10)], None, False, id="quickly, all in time"),
        pytest.param([*QUICKLY, (12.3, MB)], None, True, id="quickly, a megabyte late"),
    ],
)
def test_an_engine_was_held_up_by_what_came_after_it_had_let_go(
    reads: Reads, dropped: float | None, held_up: bool
) -> None:
    arrivals = Arrivals()
    for at, size in reads:
        arrivals.add(size, at)
    if dropped is not None:
        arrivals.drop(dropped)

    assert arrivals.held_up(LET_GO - CUT_OFF) is held_up


def test_what_came_long_before_is_not_what_came_late() -> None:
    """However many reads there were: of early ones only the sum is kept."""
    arrivals = Arrivals()
    for n in range(10_000):
        arrivals.add(MB, n / 100)

    assert not arrivals.held_up(100.0 - CUT_OFF)
    assert arrivals.held_up(90.0)

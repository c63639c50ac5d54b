"""What an answer with another clock's time says about that clock."""

import pytest

from ciworker.domain.skew import clock_ahead


@pytest.mark.parametrize(
    ("theirs", "asked", "answered", "believed", "ahead"),
    [
        pytest.param(100.25, 100.0, 100.5, 0.0, 0.0, id="of one machine"),
        pytest.param(102.25, 100.0, 100.5, 0.0, 1.75, id="ahead, by no more than is sure"),
        pytest.param(98.25, 100.0, 100.5, 0.0, -1.75, id="behind, likewise"),
        pytest.param(102.0, 100.0, 103.0, 1.75, 1.75, id="a slow answer tells nothing new"),
        pytest.param(100.25, 100.0, 100.5, 1.75, 0.25, id="a clock that was set"),
        pytest.param(99.75, 100.0, 100.0, -2.0, -0.25, id="another one"),
    ],
)
def test_a_clock_is_ahead_as_was_believed_as_far_as_the_answer_allows(
    theirs: float, asked: float, answered: float, believed: float, ahead: float
) -> None:
    assert clock_ahead(theirs, asked, answered, believed) == ahead

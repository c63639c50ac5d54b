"""What the fault suite shares: each row of the fault matrix says what was injected and held.

`row` records it and fails the test if anything was lost, repeated, stuck or left behind. The quick
tests run with all others; `scripts/chaos` runs those marked `chaos` too (`tests/rows.py`).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.e2e.test_recovery import Counters
from tests.rows import CHAOS, recorded


class Row(Protocol):
    """Report one row of the fault matrix; fails unless nothing was lost and nothing is left."""

    def __call__(
        self,
        number: int,
        *,
        faults: int,
        jobs: int,
        lines: int,
        lost: int,
        repeated: int,
        stuck: int,
        orphaned: int,
    ) -> None: ...


@pytest.fixture
def counters() -> Iterator[Counters]:
    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        made = Counters(Path(folder))
        yield made
        made.close()


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Row:
    """Record what a test counted for a row of the matrix."""

    def record(number: int, **counts: int) -> None:
        recorded(request, CHAOS, number, counts)

    return record

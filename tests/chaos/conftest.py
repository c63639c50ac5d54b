"""What the fault suite shares: each row of the fault matrix says what was injected and held.

`row` records it and fails the test if anything was lost, repeated, stuck or left behind. The quick
tests run with all others; `scripts/chaos` runs those marked `chaos` too, and ends with one line a
row (as does every run in one process that comes to this folder).
"""

import tempfile
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import pytest

from tests.e2e.test_recovery import Counters

TITLES = {
    1: "kill -9 at every transition",
    2: "kill -9 between engine start and commit",
    3: "kill -9 in mid log",
    4: "TERM idle, busy, with open streams, twice",
    5: "worker stopped and continued",
    6: "clock set forth and back",
    7: "events cut, delayed, duplicated, reordered, dropped",
    8: "event stream silent but open",
    9: "engine stopped, killed, restarted",
    10: "engine frozen",
    11: "container killed or removed by someone else",
    12: "500s, cut JSON, closed sockets on any call",
    13: "disks full",
    14: "write lock held",
    15: "power cut",
    16: "backup under load",
    17: "databases of earlier versions",
    18: "submit retried after a lost reply",
    22: "log flood",
    23: "lines without end, bytes of every kind",
    24: "cancel races the end",
    26: "parallel jobs with canaries",
    27: "many clients on a flood",
    28: "slow reader, dead peer",
    29: "resuming from anywhere, reconnect storms",
    44: "a large store",
    45: "many short jobs",
}


@dataclass(frozen=True)
class Report:
    """What one test of a row counted; the last four must be 0.

    test: its id. faults: injected. lines: compared with those that are known or the engine's own.
    stuck: jobs that are not terminal. orphaned: containers, images or spool files that are left.
    """

    number: int
    test: str
    faults: int
    jobs: int
    lines: int
    lost: int
    repeated: int
    stuck: int
    orphaned: int

    @property
    def wrong(self) -> int:
        return self.lost + self.repeated + self.stuck + self.orphaned


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


REPORTS = pytest.StashKey[list[Report]]()
REPORTING = pytest.StashKey[dict[int, set[str]]]()
COUNTS = tuple(field.name for field in fields(Report))[2:]
FORMAT = "{:>4} {:<52} {:>7}" + " {:>8}" * len(COUNTS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--row", action="append", type=int, default=[], help="only tests of this row of the matrix"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # without the option where this folder was not named on the command line
    wanted = set(config.getoption("--row", default=[]))
    if not wanted:
        return
    out = [item for item in items if not wanted & _rows_of(item)]
    items[:] = [item for item in items if wanted & _rows_of(item)]
    config.hook.pytest_deselected(items=out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which tests are to report which row."""
    selected = session.config.stash.setdefault(REPORTING, {})
    for item in session.items:
        if "row" in getattr(item, "fixturenames", ()):
            for number in _rows_of(item):
                selected.setdefault(number, set()).add(item.nodeid)


def _rows_of(item: pytest.Item) -> set[int]:
    return {number for mark in item.iter_markers("rows") for number in mark.args}


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
        report = Report(number, request.node.nodeid, **counts)
        request.config.stash.setdefault(REPORTS, []).append(report)
        assert number in _rows_of(request.node), f"mark the test with rows({number})"
        assert report.wrong == 0, report

    return record


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    selected = config.stash.get(REPORTING, {})
    if not selected or config.option.collectonly:
        return
    reports = config.stash.get(REPORTS, [])
    terminalreporter.section("faults")
    terminalreporter.line(FORMAT.format("row", "", "tests", *COUNTS))
    for number, tests in sorted(selected.items()):
        own = [report for report in reports if report.number == number]
        terminalreporter.line(_line(number, own, tests))


def _line(number: int, reports: Sequence[Report], tests: Set[str]) -> str:
    """tests: those that should have reported; what failed before it did so is not in the sums."""
    told = len({report.test for report in reports})
    if not told:
        return FORMAT.format(number, TITLES[number], f"0/{len(tests)}", "no report", *[""] * 6)
    return FORMAT.format(number, TITLES[number], f"{told}/{len(tests)}", *_sums(reports))


def _sums(reports: Sequence[Report]) -> list[int]:
    return [sum(getattr(report, name) for report in reports) for name in COUNTS]

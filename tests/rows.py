"""The matrix of faults and attacks: tests say which rows of it they are for, and what they counted.

`scripts/chaos` and `scripts/attack` end with one line a row, also for one that no test is for, as
does every run for the rows that it has tests of. A test that counts takes the fixture `row` or
`attack`; one that is marked with `attacks` and takes none is one input that was tried, and got
through if the test failed.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

import pytest


@dataclass(frozen=True)
class Suite:
    """Some rows of the matrix.

    mark: names them at a test. fixture: counts. counts: its columns; wrong: those that must be 0.
    """

    section: str
    mark: str
    fixture: str
    counts: Sequence[str]
    wrong: Sequence[str]
    titles: Mapping[int, str]

    def rows_of(self, item: pytest.Item) -> set[int]:
        return {number for mark in item.iter_markers(self.mark) for number in mark.args}


# faults: injected. lines: compared with those that are known or the engine's own. stuck: jobs that
# are not terminal. orphaned: containers, images or spool files that are left.
CHAOS = Suite(
    section="faults",
    mark="rows",
    fixture="row",
    counts=("faults", "jobs", "lines", "lost", "repeated", "stuck", "orphaned"),
    wrong=("lost", "repeated", "stuck", "orphaned"),
    titles={
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
    },
)
# tried: inputs. through: those that did what they must not.
ATTACK = Suite(
    section="attacks",
    mark="attacks",
    fixture="attack",
    counts=("tried", "through"),
    wrong=("through",),
    titles={
        19: "fork bomb, memory, full tmpfs, busy CPUs",
        20: "a child out of memory",
        21: "jobs that ignore TERM",
        25: "forged marks of progress",
        31: "slow headers, bodies, handshakes; idle sockets",
        32: "archives that leave their tree",
        33: "bombs",
        34: "uploads that are cut, empty, of a wrong type",
        35: "git URLs",
        37: "no, wrong, revoked, expired, lower-role token",
        38: "foreign Host, cross-site form, text/plain JSON",
        39: "scripts in what the page shows",
        40: "escape sequences in what the terminal shows",
        41: "secrets in logs, errors, history",
        42: "a job that looks around",
        43: "token comparison",
    },
)
SUITES = (CHAOS, ATTACK)


@dataclass(frozen=True)
class Report:
    """What one test of a row counted. test: its id."""

    suite: Suite
    number: int
    test: str
    counts: Mapping[str, int]


REPORTING = pytest.StashKey[dict[int, set[str]]]()


def recorded(
    request: pytest.FixtureRequest, suite: Suite, number: int, counts: Mapping[str, int]
) -> None:
    """Note what a test counted; it fails if any of that is wrong."""
    assert set(counts) == set(suite.counts)
    _note(request.node, suite, number, counts)
    assert number in suite.rows_of(request.node), f"mark the test with {suite.mark}({number})"
    assert not any(counts[name] for name in suite.wrong), counts


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--row", action="append", type=int, default=[], help="only tests of this row of the matrix"
    )


@pytest.hookimpl(tryfirst=True)  # before any test is left out
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _check_marks(items)
    wanted = set(config.getoption("--row"))
    if not wanted:
        return
    out = [item for item in items if not wanted & _rows_of(item)]
    items[:] = [item for item in items if wanted & _rows_of(item)]
    config.hook.pytest_deselected(items=out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which tests are to report which row."""
    selected = session.config.stash.setdefault(REPORTING, {})
    for item in session.items:
        for suite in SUITES:
            if _counts(item, suite) or suite is ATTACK:
                for number in suite.rows_of(item):
                    selected.setdefault(number, set()).add(item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that does not count for itself is one input."""
    report = yield
    if report.when == "call" and not _counts(item, ATTACK):
        through = 0 if report.passed else 1
        for number in ATTACK.rows_of(item):
            _note(item, ATTACK, number, {"tried": 1, "through": through})
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that sums up, where this one is one of several that run the tests."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        selected = session.config.stash.get(REPORTING, {})
        output[__name__] = {number: list(tests) for number, tests in selected.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what such a process told; one that died told nothing, and all collect the same tests."""
    told = getattr(node, "workeroutput", {}).get(__name__, {})
    selected = node.config.stash.setdefault(REPORTING, {})
    for number, tests in told.items():
        selected.setdefault(number, set()).update(tests)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    selected = config.stash.get(REPORTING, {})
    if config.option.collectonly:
        return
    reports = list(_noted(terminalreporter))
    for suite in SUITES:
        numbers = _reported(suite, config)
        if not numbers:
            continue
        layout = "{:>4} {:<52} {:>9}" + " {:>8}" * len(suite.counts)
        terminalreporter.section(suite.section)
        terminalreporter.line(layout.format("row", "", "tests", *suite.counts))
        for number in numbers:
            own = [report for report in reports if report.number == number]
            cells = _cells(suite, own, selected.get(number, frozenset()))
            terminalreporter.line(layout.format(number, suite.titles[number], *cells))


def _note(item: pytest.Item, suite: Suite, number: int, counts: Mapping[str, int]) -> None:
    """With the test's own report, which comes from whichever process runs it."""
    item.user_properties.append((__name__, (suite.section, number, dict(counts))))


def _noted(terminalreporter: pytest.TerminalReporter) -> Iterator[Report]:
    suites = {suite.section: suite for suite in SUITES}
    for told in chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(told, pytest.TestReport) and told.when == "teardown":
            for name, value in told.user_properties:
                if name == __name__:
                    section, number, counts = cast("tuple[str, int, dict[str, int]]", value)
                    yield Report(suites[section], number, told.nodeid, counts)


def _check_marks(items: Sequence[pytest.Item]) -> None:
    """UsageError: a test names a row by the mark of another suite, or one that there is not."""
    wrong = {
        f"{item.nodeid}: {suite.mark}({number})"
        for item in items
        for suite in SUITES
        for number in suite.rows_of(item) - suite.titles.keys()
    }
    if wrong:
        told = "\n  ".join(sorted(wrong))
        raise pytest.UsageError(f"marked with rows that are not of that mark's suite:\n  {told}")


def _reported(suite: Suite, config: pytest.Config) -> Sequence[int]:
    """Rows that have a line: those with tests; all where the whole suite was asked for."""
    is_asked_for = suite.mark in (config.option.markexpr or "") and not config.getoption("--row")
    found = suite.titles.keys() & config.stash.get(REPORTING, {}).keys()
    return sorted(suite.titles if is_asked_for else found)


def _cells(suite: Suite, reports: Sequence[Report], tests: Set[str]) -> Sequence[object]:
    """tests: those that should have reported; what failed before it did so is not in the sums."""
    told = len({report.test for report in reports})
    if not tests:
        return ("none", "", *[""] * (len(suite.counts) - 1))
    if not told:
        return (f"0/{len(tests)}", "no report", *[""] * (len(suite.counts) - 1))
    sums = [sum(report.counts[name] for report in reports) for name in suite.counts]
    return (f"{told}/{len(tests)}", *sums)


def _counts(item: pytest.Item, suite: Suite) -> bool:
    """Whether it takes the fixture that counts."""
    return suite.fixture in getattr(item, "fixturenames", ())


def _rows_of(item: pytest.Item) -> set[int]:
    return {number for suite in SUITES for number in suite.rows_of(item)}

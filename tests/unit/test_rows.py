"""The report of faults and attacks: what is marked wrongly, and what nobody tests, is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rows import ATTACK, CHAOS, SUITES

ROOT = Path(__file__).parents[2]


def ran(folder: Path, marks: str, *words: str) -> subprocess.CompletedProcess[str]:
    """pytest over one test that is marked so."""
    test = folder / "test_tea.py"
    test.write_text(f"import pytest\n\n\n@pytest.mark.{marks}\ndef test_tea() -> None: ...\n")
    own = ["-p", "tests.rows", "-p", "no:cacheprovider", "-c", os.devnull, f"--rootdir={folder}"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *own, *words, test],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("marks", ["rows(35)", "attacks(22)", "attacks(37, 99)"])
@pytest.mark.parametrize("words", [(), ("-m", "not rows and not attacks")])
def test_a_row_of_another_suite_ends_the_run_before_it_begins(
    tmp_path: Path, marks: str, words: tuple[str, ...]
) -> None:
    done = ran(tmp_path, marks, *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    wrong = marks.replace("37, ", "")
    assert f"test_tea.py::test_tea: {wrong}" in done.stderr


def test_where_all_rows_are_asked_for_those_without_a_test_are_told(tmp_path: Path) -> None:
    lines = ran(tmp_path, "attacks(35)", "-m", "attacks").stdout.splitlines()
    (of_it,) = [line for line in lines if ATTACK.titles[35] in line]
    assert of_it.split()[-3:] == ["1/1", "1", "0"]
    for number in ATTACK.titles.keys() - {35}:
        (line,) = [line for line in lines if ATTACK.titles[number] in line]
        assert line.split()[-1] == "none"
    assert not any(CHAOS.titles[1] in line for line in lines)


@pytest.mark.parametrize("words", [(), ("-m", "attacks", "--row", "35")])
def test_elsewhere_only_rows_that_have_tests_are_told(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    told = ran(tmp_path, "attacks(35)", *words).stdout
    titles = [title for suite in SUITES for title in suite.titles.values() if title in told]
    assert titles == [ATTACK.titles[35]]

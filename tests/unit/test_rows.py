"""Faults and attacks: how they are run, and that their report tells what is marked wrongly and
what nobody tests."""

import os
import re
import shutil
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


def test_what_several_processes_counted_is_summed_up(tmp_path: Path) -> None:
    for name in ("milk", "sugar"):
        test = "import pytest\n\n\n@pytest.mark.attacks(37)\ndef test_it() -> None:\n    assert"
        (tmp_path / f"test_{name}.py").write_text(f"{test} {name == 'milk'}\n")
    words = ("-p", "xdist", "-n", "2", "--dist", "loadfile", "-m", "attacks", tmp_path)
    lines = ran(tmp_path, "attacks(35, 37)", *map(str, words)).stdout.splitlines()
    for number, cells in ((35, ["1/1", "1", "0"]), (37, ["3/3", "3", "1"])):
        (line,) = [line for line in lines if ATTACK.titles[number] in line]
        assert line.split()[-3:] == cells


# the scripts


def stub(file: Path, line: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{line}\n")
    file.chmod(0o755)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The scripts that run them, beside others that only say that they were called."""
    scripts = tmp_path / "scripts"
    for name in ("setup", "engine", "chromium", "apt-install"):
        stub(scripts / name, f'echo "{name} $*"')
    stub(scripts / "base-image", "echo made; echo tea:1")
    for name in ("programs", "rows", "chaos", "attack"):
        shutil.copy2(ROOT / "scripts" / name, scripts / name)
    told = 'echo "$CI_TEST_IMAGE"; for word in "$@"; do echo "<$word>"; done'
    stub(tmp_path / ".venv/bin/python", told)
    return scripts


def said(*words: str | Path, path: str = os.defpath) -> list[str]:
    env = {"PATH": path}
    return subprocess.run(
        words, env=env, cwd="/", capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.parametrize(
    ("script", "marks"),
    [("chaos", "(chaos or rows) and not fuzz"), ("attack", "attacks or fuzz")],
)
def test_a_suite_is_run_by_its_marks_rows_and_arguments(
    copied: Path, script: str, marks: str
) -> None:
    stub(copied / "programs", "echo programs")
    *brought, image = said(copied / script, "35", "41", "-k", "7 or 8")[:4]
    words = said(copied / script, "35", "41", "-k", "7 or 8")[4:]
    assert (brought, image) == (["setup ", "engine ", "programs"], "tea:1")
    assert words[:2] == ["<-m>", "<pytest>"]
    assert [f"<{marks}>"] == [words[n + 1] for n, word in enumerate(words[2:], 2) if word == "<-m>"]
    assert words[-6:] == ["<--row>", "<35>", "<--row>", "<41>", "<-k>", "<7 or 8>"]


def test_programs_that_are_there_are_not_installed_and_the_others_at_once(copied: Path) -> None:
    there = copied / "there"
    wanted = re.findall(r"^needs (\S+) \S+$", (copied / "programs").read_text(), re.MULTILINE)
    assert len(wanted) > 5
    for name in {*wanted} - {"tmux", "faketime"}:
        stub(there / name, "exit 1")
    bash = shutil.which("bash")
    assert bash is not None
    installing = said(bash, copied / "programs", path=str(there))
    assert installing == ["apt-install faketime tmux"]
    for name in ("tmux", "faketime"):
        stub(there / name, "exit 1")
    assert said(bash, copied / "programs", path=str(there)) == []

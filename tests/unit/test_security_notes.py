"""SECURITY.md names tests for what it promises: each of them exists, and no promise has none."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTES = (ROOT / "SECURITY.md").read_text()
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
NAMED = sorted(set(TEST.findall(NOTES)))
WITHOUT_TESTS = ("What is not promised", "What the operator must do")
SECTIONS = {
    title: text for title, _, text in (part.partition("\n") for part in NOTES.split("\n## ")[1:])
}


def test_there_are_promises() -> None:
    assert len(NAMED) > 50
    assert set(WITHOUT_TESTS) < set(SECTIONS)


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_each_test_that_is_named_exists(file: str) -> None:
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    found = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert {name for where, name in NAMED if where == file} - found == set()


@pytest.mark.parametrize("section", sorted(set(SECTIONS) - set(WITHOUT_TESTS)))
def test_each_promise_names_the_test_that_holds_it(section: str) -> None:
    promises = [line for line in SECTIONS[section].splitlines() if line.startswith("- ")]
    assert promises
    assert [promise for promise in promises if not TEST.search(promise)] == []

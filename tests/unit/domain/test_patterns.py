"""Names and globs: what each stands for, and that no pair of them takes long."""

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.patterns import parse_pattern

COMPONENTS = st.text("ab.", min_size=1, max_size=3)
GLOBS = st.one_of(
    st.just("**"),
    st.text("ab.*?", min_size=1, max_size=3).filter(
        lambda text: "**" not in text and text not in {".", ".."}
    ),
)


def matches(pattern: str, name: str) -> bool:
    return parse_pattern(pattern).matches(tuple(name.split("/")))


@pytest.mark.parametrize(
    ("pattern", "name", "stands"),
    [
        ("a.txt", "a.txt", True),
        ("a.txt", "b/a.txt", False),
        ("a.txt", "a.txt2", False),
        ("a", "a/b/c.txt", True),
        ("a/b/", "a/b/c.txt", True),
        ("a/b", "a/bc.txt", False),
        ("a//./b", "a/b", True),
        (".", "any/thing", True),
        ("./", "thing", True),
        ("*.txt", "a.txt", True),
        ("*.txt", ".txt", True),
        ("*.txt", "a/b.txt", False),
        ("*", "a/b", False),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("a?c", "ac", False),
        ("[ab].txt", "b.txt", True),
        ("[!ab].txt", "b.txt", False),
        ("[a", "[a", True),
        ("a[/]b", "a/b", False),
        ("A*", "a", False),
        ("**", "a/b/c", True),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("**/c", "a/c/d", False),
        ("a/**", "a/b/c", True),
        ("a/**", "b/a/c", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("a/**/b/*.txt", "a/b/c/b/d.txt", True),
        ("a/**/b/*.txt", "a/b/c/d.txt", False),
        ("**/a/**/b/**", "x/a/y/b/z", True),
        ("**/a/**/b/**", "x/b/y/a/z", False),
        ("déps/*.txt", "déps/ü.txt", True),
    ],
)
def test_an_entry_stands_for_these_files(pattern: str, name: str, stands: bool) -> None:
    assert matches(pattern, name) is stands


def plainly(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """What a glob means, as a definition: every way to share out the components is tried."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(plainly(pattern[1:], name[taken:]) for taken in range(len(name) + 1))
    return bool(name) and fnmatchcase(name[0], pattern[0]) and plainly(pattern[1:], name[1:])


@given(st.lists(GLOBS, min_size=1, max_size=6), st.lists(COMPONENTS, min_size=1, max_size=6))
def test_a_glob_is_matched_as_it_is_defined(parts: list[str], name: list[str]) -> None:
    pattern = parse_pattern("/".join(["**", *parts]))
    assert pattern.matches(tuple(name)) == plainly(["**", *parts], name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        ("/".join(["**/a"] * 100 + ["*"]), "/".join(["a"] * 99 + ["b"] * 1900)),
        ("*a" * 120 + "b", "a" * 255),
    ],
    ids=["folders", "characters"],
)
def test_no_glob_takes_long_whatever_it_is_held_against(pattern: str, name: str) -> None:
    began = time.process_time()
    assert not matches(pattern, name)
    assert time.process_time() - began < 1

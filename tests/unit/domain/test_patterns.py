"""Names and globs: what each stands for, and that none of them takes long."""

import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain import patterns
from ciworker.domain.jobfile import MAX_PATTERNS
from ciworker.domain.patterns import MAX_ANY_FOLDERS, Search, parse_pattern
from ciworker.errors import Invalid

COMPONENTS = st.text("ab.[]!", min_size=1, max_size=3)
GLOBS = st.one_of(
    st.just("**"),
    st.text("ab.*?[]!", min_size=1, max_size=4).filter(
        lambda text: "**" not in text and text not in {".", ".."}
    ),
)


def matches(pattern: str, name: str) -> bool:
    return Search([parse_pattern(pattern)]).wants(name)


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


@given(
    st.lists(GLOBS, min_size=1, max_size=6).filter(lambda g: g.count("**") < MAX_ANY_FOLDERS),
    st.lists(COMPONENTS, min_size=1, max_size=6),
)
def test_a_glob_is_matched_as_it_is_defined(parts: list[str], name: list[str]) -> None:
    assert matches("/".join(["**", *parts]), "/".join(name)) == plainly(["**", *parts], name)


def test_entries_that_stand_for_no_file_are_told_from_those_that_do() -> None:
    entries = [parse_pattern(entry) for entry in ("a", "a/*", "b", "*.c", "**/d")]
    search = Search(entries)
    assert [search.wants(name) for name in ("a/x", "e", "x/d")] == [True, False, True]
    assert search.used == {entries[0], entries[1], entries[4]}


@pytest.mark.parametrize(
    "entry", ["a/" * 32 + "b", "*/" * 32 + "b", "**/a/" * 4 + "**", "**/" * 4 + "**/*.txt"]
)
def test_an_entry_of_more_parts_than_anyone_needs_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"at most 32 components, 4 of them '\*\*'; name a folder"):
        parse_pattern(entry)


@pytest.mark.parametrize("entry", ["a/" * 31 + "b", "*/" * 31 + "b", "**/a/" * 4 + "b"])
def test_an_entry_may_have_many_parts(entry: str) -> None:
    assert matches(entry, entry.replace("*", "a"))


DEEP = "a/" * 2042 + "f"  # as long as a name can be
WIDE = "a" * 255


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("**/" + "a/" * 29 + "x/*", DEEP),
        ("**/a/" * 4 + "a/" * 22 + "x/*", DEEP),
        ("**/x/f", DEEP),
        ("**", DEEP),
        ("*" + "[ab]" * 120 + "c*", WIDE),
        ("**/*" + "?" * 127 + "b*/a*", f"{WIDE}/" * 15 + "a"),
        ("*" + "a" * 60 + "b*", WIDE),
    ],
    ids=["folders", "any folders", "one folder", "all", "sets", "characters", "text"],
)
def test_globs_that_would_take_long_are_refused_before_they_do(
    monkeypatch: pytest.MonkeyPatch, entry: str, name: str
) -> None:
    monkeypatch.setattr(patterns, "MAX_WORK", patterns.MAX_WORK // 20)
    search = Search([parse_pattern(entry)] * MAX_PATTERNS)
    began = time.process_time()
    with pytest.raises(Invalid, match=r"take too long .* name fewer, or the files and folders"):
        list(map(search.wants, repeat(name, 100_000)))
    assert time.process_time() - began < 1


def test_what_people_write_is_held_against_a_large_tree() -> None:
    entries = [f"packages/p{n}/**/requirements*.txt" for n in range(MAX_PATTERNS)]
    search = Search([parse_pattern(entry) for entry in entries])
    names = [f"packages/p{n % 100}/src/module_{n}.py" for n in range(1000)]
    for _ in range(10):
        assert not any(map(search.wants, names))
    assert search.wants("packages/p7/deps/requirements-test.txt")

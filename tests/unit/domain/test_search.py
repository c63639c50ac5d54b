"""Finding lines: what a search in blocks says is what looking at each line would say."""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ciworker.domain.log import Chunk, Line, PackedChunk, Stream, chunk_of, pack_runs
from ciworker.domain.search import (
    BLOCK,
    EXCERPT,
    Matcher,
    blocks,
    excerpt,
    expression,
    literal,
)
from ciworker.errors import Invalid


def chunk(*texts: bytes, first: int = 1) -> Chunk:
    return chunk_of([Line(0, Stream.STDOUT, 7, text, True) for text in texts], first)


def packed(searched: Chunk) -> PackedChunk:
    return PackedChunk(searched.first, searched.count, searched.data, pack_runs(searched.runs))


def found(matcher: Matcher, searched: Chunk, after: int = 0) -> list[int]:
    """Numbers of the lines that match."""
    return [
        first + line
        for first, block in blocks(packed(searched), after, matcher.block)
        for line, _ in matcher.lines(block, lambda: None)
    ]


def lines(searched: Chunk, after: int = 0) -> Iterator[tuple[int, str]]:
    """The lines as they are searched, with their numbers."""
    for first, block in blocks(packed(searched), after):
        for number, line in enumerate(block.split(b"\n"), first):
            yield number, line.decode()


def around(line: bytes, matcher: Matcher) -> str:
    """What is shown of a line in which it is found."""
    [(_, at)] = matcher.lines(line, lambda: None)
    return excerpt(line, at)


TEXT = chunk(b"one", b"Two", b"", b"three two one", b"\xc3\x84RGER \xce\xa3", b"qw\xffo", b"a\0b\r")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("one", [1, 4]), ("two", [2, 4]), ("Two", [2]), ("TWO", []), ("ärger", [5]),
        ("Ärger", []), ("ÄRGER", [5]), ("\u03c3", [5]), ("\u03c2", [5]), ("w\ufffdo", [6]),
        ("a\0B", []), ("a\0b", [7]), ("b\r", [7]), (".", []), ("e t", [4]), (" ", [4, 5]),
    ],
)  # fmt: skip
def test_a_text_is_found_in_capitals_too_unless_it_has_one(text: str, numbers: list[int]) -> None:
    assert found(literal(text), TEXT) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("^t", [2, 4]), ("^T", [2]), ("(?i)^T", [2, 4]), ("(?-i)^t", [4]), ("e$", [1, 4]),
        ("^$", [3]), ("", [1, 2, 3, 4, 5, 6, 7]), ("x*", [1, 2, 3, 4, 5, 6, 7]), ("t.*n", [4]),
        (r"\Sne", [1, 4]), (r"[^x]t", [4]), (r"\st", [4]), (r"e\s", [4]), (r"e[^a]t", [4]),
        (r"(?s)e.t", [4]), (r"(?s)one.+", []), (r"e\nT", []), (r"\pLrger", [5]), (r"\x{c4}", [5]),
        (r"\p{Lu}rger", [5]), (r"\Qe t\E", [4]), (r"(?P<Name>two)", [2, 4]), (r"qw\x{FFFD}o", [6]),
        (r"\bone\b", [1, 4]), (r"one|two", [1, 2, 4]),
    ],
)  # fmt: skip
def test_an_expression_is_looked_for_within_each_line(text: str, numbers: list[int]) -> None:
    assert found(expression(text), TEXT) == numbers


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a(b", "missing ): a(b"), ("a**", "bad repetition operator: **"), ("(?=a)", "(?="),
        (r"(a)\1", r"invalid escape sequence: \1"), ("[z-a]", "z-a"), (r"\pL{999}", "too large"),
        ("a{1001}", "repetition"), (r"\Aone", "use ^ and $"), (r"one\z", "use ^ and $"),
        (r"\C", "use ^ and $"), ("(?i-ms)^one", "use ^ and $"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(Invalid, match=re.escape(reason)):
        expression(text)


@pytest.mark.parametrize("text", [r"C:\\Apps", r"\Q\A\E", r"\\z", "(?-i:x)"])
def test_what_only_looks_like_a_bound_is_none(text: str) -> None:
    assert found(expression(text), chunk(rb"C:\Apps \A \z x", b"y")) == [1]


@pytest.mark.parametrize(
    ("printed", "read"),
    [
        (b"\x1b[31mFAIL\x1b[0mED", "FAILED"), (b"\x1b[01;31m\x1b[Kerror\x1b[m\x1b[K:", "error:"),
        (b"\x1b]8;;https://x\x1b\\link\x1b]8;;\x07s", "links"), (b"\x1b[38:2::1:2:3mx", "x"),
        (b"\x1b]0;no end", "\x1b]0;no end"), (b"\x1b[31", "\x1b[31"), (b"[31m", "[31m"),
        (b"a\x1bb", "a\x1bb"), (b"\xe2\x82", "\ufffd"),
    ],
)  # fmt: skip
def test_lines_are_searched_without_escape_sequences(printed: bytes, read: str) -> None:
    assert list(lines(chunk(b"0", printed, b"2"))) == [(1, "0"), (2, read), (3, "2")]


def test_an_escape_sequence_ends_with_its_line() -> None:
    searched = chunk(b"a\x1b[3", b"1mb", b"c\x1b]0;", b"title\x07d")
    assert [text for _, text in lines(searched)] == ["a\x1b[3", "1mb", "c\x1b]0;", "title\x07d"]


pieces = st.lists(st.sampled_from([b"a", b"b", b"A", b" ", "é".encode(), b"\xff"]), max_size=6)
printed = st.lists(
    st.builds(
        Line,
        number=st.just(0),
        stream=st.sampled_from(Stream),
        at=st.just(7),
        text=pieces.map(b"".join),
        ended=st.sampled_from([True, True, True, False]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=300)
@given(printed, st.integers(1, 99), st.sampled_from(["a", "ab", "é", "A", "a|b$", "^$", "^ ", ""]))
@example([Line(0, Stream.STDOUT, 7, b"", True)] * 2, 1, "^$")
def test_blocks_find_what_looking_at_each_line_finds(
    texts: Sequence[Line], first: int, sought: str
) -> None:
    searched = chunk_of(texts, first)
    pattern = re.compile(sought, 0 if "A" in sought else re.IGNORECASE)
    expected = [
        line.number
        for line in searched.lines()
        if pattern.search(line.text.decode(errors="replace"))
    ]
    assert found(expression(sought), searched) == expected
    if sought.isalpha():
        assert found(literal(sought), searched) == expected
    in_windows = replace(expression(sought), window=4)  # the longest match has two bytes
    assert found(in_windows, searched) == expected


@given(printed, st.integers(1, 99), st.integers(0, 140))
def test_lines_up_to_a_number_are_left_out(texts: Sequence[Line], first: int, after: int) -> None:
    searched = chunk_of(texts, first)
    every = [(line.number, line.text.decode(errors="replace")) for line in searched.lines()]
    assert list(lines(searched, after)) == [one for one in every if one[0] > after]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 200, BLOCK // 2 - 1, BLOCK - 1, BLOCK]), min_size=1, max_size=9)
)
def test_blocks_are_whole_lines_and_bounded(sizes: list[int]) -> None:
    searched = chunk(*(b"x" * size for size in sizes), first=5)
    found_blocks = list(blocks(packed(searched), 0))
    assert b"\n".join(block for _, block in found_blocks) + b"\n" == searched.data
    assert [len(text) for _, text in lines(searched)] == sizes
    assert [number for number, _ in lines(searched)] == list(range(5, 5 + len(sizes)))
    assert all(len(block) <= BLOCK for _, block in found_blocks)


@pytest.mark.parametrize("at", [0, 10, 5000, 60_000, 69_990])
@pytest.mark.parametrize("fill", ["x", "é"])
def test_of_a_long_line_what_is_around_the_match_is_shown(at: int, fill: str) -> None:
    line = (fill * 70_000).encode()
    line = line[:at] + b"needle" + line[at:]

    shown = around(line, literal("needle"))

    assert "needle" in shown
    assert len(shown.encode()) <= EXCERPT + 2 * len("…".encode())
    assert shown.startswith("…") == (at > EXCERPT)
    assert shown.endswith("…") == (fill == "é" or at < 69_000)
    assert shown.strip("…").replace("needle", "").strip(fill) == ""


def test_what_is_shown_is_found_once() -> None:
    """A block is searched once: finding the match again would take its time again."""
    offsets = list(literal("b").lines(b"ab\n" + b"x" * 5000 + b"b", lambda: None))
    assert offsets == [(0, 1), (1, 5000)]


# bounded work

WORST = [
    "|".join(f"x{{{n}}}z" for n in range(985, 1000)),
    "|".join(f"[xy]{{{n}}}z" for n in range(700, 740)),
]


@pytest.mark.parametrize("text", WORST)
def test_no_step_in_a_long_line_takes_long_whatever_the_expression(text: str) -> None:
    """Both have more states than there is room for, so that RE2 works on all their instructions."""
    steps: list[float] = []
    began = time.thread_time()

    class EnoughError(Exception):
        pass

    def pause() -> None:
        nonlocal began
        now = time.thread_time()
        steps.append(now - began)
        began = now
        if len(steps) == 5:
            raise EnoughError

    with pytest.raises(EnoughError):
        list(expression(text).lines(b"x" * BLOCK, pause))
    assert max(steps) > 0.02  # else it is not what takes RE2 long
    assert max(steps) < 0.5


@pytest.mark.parametrize(
    "text", [r"\pL{30}", r"\bword \d+ of", r"(?i)(warning|error).*timed? ?out"]
)
def test_useful_expressions_find_in_long_lines_what_they_find_in_short_ones(text: str) -> None:
    line = "Ab " * 21_000 + "x" * 30 + " word 12 of words; an Error: it timed out"
    matcher = expression(text)
    assert found(matcher, chunk(line.encode())) == [1]
    assert found(matcher, chunk(("Ab " * 21_000).encode(), b"no such")) == []


def test_in_a_line_longer_than_a_step_a_match_of_half_a_step_is_found() -> None:
    matcher = expression(r"\pL{30}|<\d*>")
    assert matcher.window is not None
    assert matcher.window < 1000
    half = matcher.window // 2
    for before in range(0, 2 * half, 7):
        assert found(matcher, chunk(b"." * before + b"<" + b"1" * (half - 2) + b">" + b"." * 5000))

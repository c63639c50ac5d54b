"""What a job ran into, in words; and how its container tells it."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.limit import Bounds, Limit, limit_sentences
from ciworker.domain.mark import MARK_END, LimitsMarks, marks_of, start_mark

BOUNDS = Bounds(pids=512, folder_bytes=2 * 2**30, folder_files=200_000)
MARKS = LimitsMarks("token", "01J", 1)


def mark(*names: str, token: str = "token", attempt: int = 1) -> bytes:
    beginning = marks_of(token, "01J", attempt).limits
    return beginning + "".join(f";{name}" for name in names).encode() + MARK_END + b"\n"


FULL = mark("pids", "tmp-files")


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (Limit.PIDS, ("limit of 512 processes", "job_pids")),
        (Limit.WORKSPACE_BYTES, ("/workspace is full (2.0 GiB)", "workspace_size")),
        (Limit.TMP_BYTES, ("/tmp is full (2.0 GiB)", "workspace_size")),
        (Limit.WORKSPACE_FILES, ("/workspace holds as many files as it may (200,000)", "remove")),
        (Limit.TMP_FILES, ("/tmp holds as many files as it may (200,000)", "remove")),
    ],
)
def test_a_limit_is_told_with_its_figure_and_what_to_do(limit: Limit, words: Sequence[str]) -> None:
    (sentence,) = limit_sentences({limit}, BOUNDS)
    assert all(word in sentence for word in words)


def test_limits_are_told_in_one_order() -> None:
    told = limit_sentences(list(reversed(Limit)), BOUNDS)
    assert [sentence.split()[1] for sentence in told] == ["job", "is", "holds", "is", "holds"]
    assert not limit_sentences((), BOUNDS)


def test_a_mark_tells_the_limits_that_it_names() -> None:
    assert MARKS.told(b"a\nb" + FULL + mark("workspace-bytes")) == {
        Limit.PIDS,
        Limit.TMP_FILES,
        Limit.WORKSPACE_BYTES,
    }


@pytest.mark.attacks(25)
@pytest.mark.parametrize(
    "line",
    [
        mark("pids", token="other"),
        mark("pids", attempt=2),
        mark(),
        mark("p" * 21),
        mark(*["pids"] * 9),
        mark("pids").rstrip(b"\n") + b" \n",
        mark("pids\x1b[2J"),
        start_mark("token", "01J", 1) + b"\n",
    ],
)
def test_what_only_looks_like_a_mark_is_text(line: bytes) -> None:
    assert not MARKS.told(line)
    assert b"".join(cut.data for cut, _ in MARKS.without(line)) == line


@pytest.mark.attacks(25)
def test_a_name_that_is_no_limit_tells_nothing() -> None:
    assert MARKS.told(mark("passed", "tmp-bytes", "ciworker")) == {Limit.TMP_BYTES}


texts = st.lists(st.sampled_from([b"", b"\n", b"one\n", b"two\n\n", b"no newline"]), max_size=6)


@given(st.lists(texts, min_size=1, max_size=5), texts)
def test_without_its_marks_a_text_is_what_it_was(
    before: Sequence[Sequence[bytes]], after: Sequence[bytes]
) -> None:
    marked = b"".join(b"".join(text) + FULL for text in before) + b"".join(after) + b"\n"
    left = list(MARKS.without(marked))
    assert b"".join(cut.data for cut, _ in left) == marked.replace(FULL, b"")
    lines = marked.splitlines(keepends=True)
    for (cut, upto), so_far in zip(left, sums([cut.data for cut, _ in left]), strict=True):
        assert b"".join(lines[:upto]).replace(FULL, b"") == so_far
        assert cut.ended == cut.data.endswith(b"\n")
        assert cut.lines == (cut.data.count(b"\n") if cut.ended else 1)


def sums(parts: Sequence[bytes]) -> Sequence[bytes]:
    return [b"".join(parts[: upto + 1]) for upto in range(len(parts))]

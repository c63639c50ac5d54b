"""The lines by which a container tells its limits are kept out of the log, and never missed."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciworker.domain.limit import Limit
from ciworker.domain.log import FRAME, PIECE, LogFrame, Skipper, Stream
from ciworker.domain.mark import MARK_END, marks_of
from tests.unit.control.test_logpump_unfinished import JOB, MARK, Bench
from tests.unit.control.test_masked_logs import (
    MASK,
    NO_SHRINKING,
    SECRET,
    end_behind,
    engine_log,
    keeper_of,
    lines_of,
    taken,
)

OUT = Stream.STDOUT
LINE = marks_of(JOB.mark_token, JOB.id, JOB.attempt).limits + b";pids;tmp-bytes" + MARK_END + b"\n"
TWICE = 2 * LINE
MET = {Limit.PIDS, Limit.TMP_BYTES}


def kept(bench: Bench) -> bytes:
    """The whole log, once all was read."""
    bench.keeper.finish()
    bench.store()
    return b"".join(chunk.data for chunk in bench.topic.after(0) or ())


@pytest.mark.parametrize("text", [b"", b"\n", b"one\n", b"one\ntwo", b"two\n\n", b"." * PIECE])
@pytest.mark.parametrize("size", [1, 7, 2**16])
async def test_a_limits_mark_is_told_and_not_shown(text: bytes, size: int) -> None:
    bench, output = Bench(), MARK + text + TWICE
    for at in range(0, len(output), size):
        bench.keeper.feed(OUT, output[at : at + size])
    assert kept(bench) == text
    assert bench.keeper.limits == MET
    assert bench.keeper.complete


async def test_a_last_line_without_newline_stays_one() -> None:
    bench = Bench()
    bench.keeper.feed(OUT, MARK + b"one\ntwo" + TWICE)
    kept(bench)
    lines = [line for chunk in bench.topic.after(0) or () for line in chunk.lines()]
    assert [(line.text, line.ended) for line in lines] == [(b"one", True), (b"two", False)]


async def test_what_comes_behind_a_mark_is_kept() -> None:
    bench = Bench()
    bench.keeper.feed(OUT, MARK + b"one" + TWICE + b"a leftover\n" + LINE + b"another")
    assert kept(bench) == b"onea leftover\nanother"


async def test_without_a_mark_nothing_is_told() -> None:
    bench = Bench()
    bench.keeper.feed(OUT, MARK + b"all is well\n")
    assert (kept(bench), bench.keeper.limits) == (b"all is well\n", frozenset())


async def test_half_a_mark_is_not_shown_as_an_unfinished_line() -> None:
    bench = Bench()
    bench.keeper.feed(OUT, MARK + b"two")
    await bench.shows(stdout="two")
    bench.keeper.feed(OUT, TWICE[:40])
    await bench.settled()
    assert bench.shown == {"stdout": "two"}
    bench.keeper.feed(OUT, TWICE[40:])
    assert kept(bench) == b"two"


@pytest.mark.attacks(25)
async def test_a_flood_of_forged_marks_is_bounded_as_any_other() -> None:
    bench = Bench(kept=1000)
    bench.keeper.feed(OUT, MARK + b"begun\n" + LINE * (1000 // len(LINE)))
    assert not bench.keeper.over_limit
    bench.keeper.feed(OUT, LINE)
    assert bench.keeper.over_limit


async def test_a_mark_past_the_log_limit_is_told() -> None:
    bench = Bench(kept=100)
    bench.keeper.feed(OUT, MARK + b"one line of many\n" * 100 + TWICE)
    log = kept(bench)
    assert bench.keeper.limits == MET
    assert b"ciworker;" not in log
    assert log.endswith(b"one line of many\n")


async def test_a_mark_behind_a_secret_leaves_it_masked() -> None:
    keeper = keeper_of(end_behind(()))
    keeper.feed(OUT, MARK + b"it is " + SECRET.encode() + TWICE)
    keeper.finish()
    assert [(line.text, line.ended) for line in lines_of(taken(keeper))] == [(b"it is ***", False)]
    assert keeper.limits == MET


async def test_a_mark_in_a_log_that_is_withheld_is_told() -> None:
    keeper = keeper_of(end_behind(()), mask=None, withheld="the secrets are gone")
    keeper.feed(OUT, MARK + b"shown to nobody\n" + TWICE)
    keeper.finish()
    assert keeper.limits == MET


# --- in every life ---------------------------------------------------------------------------

lengths = st.one_of(
    st.integers(0, 40),
    st.sampled_from([FRAME, 2 * FRAME, PIECE, PIECE + FRAME, 2 * PIECE]).flatmap(
        lambda edge: st.integers(edge - len(LINE) - 1, edge + 1)
    ),
)


@settings(max_examples=150, deadline=None, phases=NO_SHRINKING)
@given(
    st.lists(lengths, max_size=3),
    lengths,
    st.lists(lengths, max_size=2),
    st.lists(st.integers(1, 90_000), min_size=1, max_size=6),
    st.integers(0, 9),
    st.booleans(),
)
def test_killed_anywhere_the_limits_are_told_and_each_line_is_kept_once(
    lines: Sequence[int],
    last: int,
    leftovers: Sequence[int],
    sizes: Sequence[int],
    killed: int,
    masks: bool,
) -> None:
    text = b"".join(b"." * size + b"\n" for size in lines) + b"-" * last
    output = MARK + text + TWICE + b"".join(b"+" * size + b"\n" for size in leftovers)
    asyncio.run(_killed_anywhere(output, last, sizes, killed, masks=masks))


async def _killed_anywhere(
    output: bytes, last: int, sizes: Sequence[int], killed: int, *, masks: bool
) -> None:
    """Read live, in reads of these sizes; after `killed` reads, from the engine's log."""
    mask = MASK if masks else None
    keeper, stored = keeper_of(end_behind(()), mask=mask), []
    at = 0
    for number in range(killed):
        size = sizes[number % len(sizes)]
        keeper.feed(OUT, output[at : at + size])
        at += size
        stored += taken(keeper)[: None if number % 2 else 1]
        if len(stored) and stored[-1].cursor != keeper._stored_cursor:
            break  # it was killed between two commits
    later = keeper_of(end_behind(stored), mask=mask)
    skipper = Skipper(later.cursor)
    for frame in engine_log(output):
        fed = skipper.wants(frame)
        (later.feed_frame if fed else later.pass_over)(frame)
    later.finish()
    stored += taken(later)
    assert later.limits == MET
    log = b"".join(batch.chunk.data for batch in stored)
    wanted = output.removeprefix(MARK).replace(LINE, b"")
    if last % PIECE <= PIECE - len(LINE):
        assert log == wanted
    else:  # a piece ends within the first of the two marks: what it holds of that mark is text
        assert log == wanted.replace(b"-" * last, b"-" * last + LINE) or log == wanted


@pytest.mark.parametrize("masks", [False, True])
async def test_a_mark_behind_the_cursor_is_told(masks: bool) -> None:
    """Something that outlived the job printed on, and that was stored."""
    output = MARK + b"one\n" + TWICE + b"a leftover\n"
    keeper = keeper_of(end_behind(()), mask=MASK if masks else None)
    keeper.feed(OUT, output)
    stored = taken(keeper)
    later = keeper_of(end_behind(stored), mask=MASK if masks else None)
    skipper = Skipper(later.cursor)
    for line in output.splitlines(keepends=True):
        frame = LogFrame(OUT, 0, line)
        assert not skipper.wants(frame)
        later.pass_over(frame)
    assert later.limits == MET

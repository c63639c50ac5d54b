"""Lines, chunks and cursors, against a model of the engine's json-file framing."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ciworker.domain.log import (
    FRAME,
    PIECE,
    Chunk,
    Cursor,
    Cut,
    Line,
    LineSplitter,
    LogFrame,
    Position,
    Run,
    Skipper,
    Stream,
    chunk_of,
    merge_runs,
    pack_runs,
    unpack_runs,
)

AT_THE_START = Position()

# --- a model of the engine -------------------------------------------------------------------


def engine_frames(written: bytes) -> list[bytes]:
    """What json-file keeps: a line in frames of 16,384 bytes, the last one with the newline."""
    frames = []
    start = 0
    while start < len(written):
        newline = written.find(b"\n", start)
        line_end = len(written) if newline < 0 else newline + 1
        end = min(start + 16384, line_end)
        frames.append(written[start:end])
        start = end
    return frames


def as_kept(frame: bytes) -> bytes:
    """A frame as it comes back: each byte that is not UTF-8 as U+FFFD."""
    return frame.decode(errors="replace").encode()


def test_the_model_frames_as_was_measured() -> None:
    a, k = b"a" * 16384, b"a" * 16383
    assert engine_frames(b"") == []
    assert engine_frames(b"x\n\ny") == [b"x\n", b"\n", b"y"]
    assert engine_frames(k + b"\n") == [k + b"\n"]
    assert engine_frames(a + b"\n") == [a, b"\n"]
    assert engine_frames(a + a + b"b\nc") == [a, a, b"b\n", b"c"]


# --- what is written -------------------------------------------------------------------------

# Lengths around the places where frames and pieces are cut; sums of them lie there too.
EDGES = [n + d for n in (FRAME, 2 * FRAME, PIECE, 2 * PIECE) for d in (-2, -1, 0, 1)]
lengths = st.one_of(st.integers(0, 12), st.integers(0, 12), st.sampled_from(EDGES))


@st.composite
def outputs(draw: st.DrawFn, alphabet: bytes = b"ab \r\x1b") -> bytes:
    """Bytes of a stream: short and very long lines, often without a newline at the end."""
    parts = draw(st.lists(st.tuples(st.sampled_from(list(alphabet)), lengths), max_size=8))
    lines = [bytes([char]) * length for char, length in parts]
    return b"\n".join(lines) + draw(st.sampled_from([b"", b"\n"]))


@st.composite
def chopped(draw: st.DrawFn, written: bytes) -> list[bytes]:
    """The same bytes as they may arrive, in chunks of any size."""
    near = [i for i, byte in enumerate(written) if byte == 10][:20]
    places = st.integers(0, len(written))
    if near:
        places = st.one_of(places, st.sampled_from(near), st.sampled_from([n + 1 for n in near]))
    ends = sorted({*draw(st.lists(places, max_size=10)), len(written)})
    starts = [0, *ends[:-1]]
    return [written[a:b] for a, b in zip(starts, ends, strict=True)]


class Piece(NamedTuple):
    data: bytes
    ended: bool


def pieces(cuts: Iterable[Cut]) -> list[Piece]:
    """Cuts line by line: how many whole lines stand in one cut depends on how they arrived."""
    return [Piece(line, cut.ended) for cut in cuts for line in by_line(cut.data)]


def by_line(data: bytes) -> list[bytes]:
    head, *rest = data.split(b"\n")
    lines = [head]
    for line in rest:
        lines[-1] += b"\n"
        lines.append(line)
    return lines if lines[-1] else lines[:-1]


class Step(NamedTuple):
    """A cut, how many bytes are out with it, and where the splitter then stands."""

    cut: Cut
    behind: int
    position: Position


def steps(splitter: LineSplitter, fed: Iterable[Iterator[Cut]]) -> list[Step]:
    found: list[Step] = []
    behind = 0
    for cuts in fed:
        for cut in cuts:
            behind += len(cut.data)
            found.append(Step(cut, behind, splitter.position))
    return found


def live(chunks: Sequence[bytes]) -> list[Step]:
    splitter = LineSplitter()
    return steps(splitter, (*map(splitter.feed, chunks), splitter.finish()))


def recovered(frames: Sequence[bytes], position: Position = AT_THE_START) -> list[Step]:
    splitter = LineSplitter(position)
    return steps(splitter, (*map(splitter.feed_frame, frames), splitter.finish()))


def cuts_of(found: Iterable[Step]) -> list[Cut]:
    return [step.cut for step in found]


# --- the splitter ----------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_live_bytes_and_the_engines_log_give_the_same_lines_and_positions(
    data: st.DataObject,
) -> None:
    written = data.draw(outputs())
    alive = live(data.draw(chopped(written)))
    kept = recovered(engine_frames(written))
    assert pieces(cuts_of(alive)) == pieces(cuts_of(kept))
    where = {step.behind: step.position for step in kept}
    assert all(step.position == where[step.behind] for step in alive)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_cuts_hold_every_byte_once_and_count_their_lines(data: st.DataObject) -> None:
    written = data.draw(outputs())
    for found in (live(data.draw(chopped(written))), recovered(engine_frames(written))):
        assert b"".join(step.cut.data for step in found) == written
        for cut, _, _ in found:
            assert cut.ended == cut.data.endswith(b"\n")
            assert cut.lines == (cut.data.count(b"\n") if cut.ended else 1)
            assert cut.ended or b"\n" not in cut.data
            assert 0 < max(map(len, by_line(cut.data))) <= PIECE


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_an_unended_piece_is_full_or_the_last_one(data: st.DataObject) -> None:
    found = live(data.draw(chopped(data.draw(outputs()))))
    unended = [n for n, step in enumerate(found) if not step.cut.ended]
    assert all(len(found[n].cut.data) == PIECE or n == len(found) - 1 for n in unended)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_position_is_the_complete_lines_and_the_frames_after_them(data: st.DataObject) -> None:
    written = data.draw(outputs())
    for step in live(data.draw(chopped(written))):
        behind = written[: step.behind]
        line = behind[behind.rfind(b"\n") + 1 :]
        assert step.position == Position(behind.count(b"\n"), len(engine_frames(line)))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_positions_agree_when_the_engine_kept_other_bytes_than_were_written(
    data: st.DataObject,
) -> None:
    written = data.draw(outputs(alphabet=b"a\x80\xc3\xff"))
    kept = [as_kept(frame) for frame in engine_frames(written)]
    alive = live(data.draw(chopped(written)))
    again = recovered(kept)
    assert b"".join(step.cut.data for step in again) == b"".join(kept)
    assert [piece.ended for piece in pieces(cuts_of(alive))] == [s.cut.ended for s in again]
    assert {step.position for step in alive} <= {step.position for step in again}
    assert [step.position for step in alive[-1:]] == [step.position for step in again[-1:]]


def test_a_last_frame_that_grew_in_the_engines_log_is_still_one_frame() -> None:
    """16,384 bytes that are not UTF-8 come back as 49,152."""
    splitter = LineSplitter()
    fed = [*splitter.feed_frame(as_kept(b"\xff" * FRAME)), *splitter.finish()]
    assert [len(cut.data) for cut in fed] == [3 * FRAME]
    assert splitter.position == Position(0, 1)


class Interrupted(NamedTuple):
    """Both streams of a job, and how far each had come when the worker went away."""

    written: dict[Stream, bytes]
    behind: dict[Stream, int]
    cursor: Cursor
    log: list[LogFrame]


@st.composite
def interrupted(draw: st.DrawFn) -> Interrupted:
    written, behind, cursor = {}, {}, Cursor()
    waiting: list[list[LogFrame]] = []
    for stream in (Stream.STDOUT, Stream.STDERR):
        written[stream] = draw(outputs())
        at = draw(st.sampled_from([(0, Position()), *reached(draw(chopped(written[stream])))]))
        behind[stream] = at[0]
        cursor = cursor.moved(stream, at[1])
        waiting.append([LogFrame(stream, 0, f) for f in engine_frames(written[stream])])
    return Interrupted(written, behind, cursor, draw(interleaved(*waiting)))


def reached(chunks: Sequence[bytes]) -> list[tuple[int, Position]]:
    return [(step.behind, step.position) for step in live(chunks)]


@st.composite
def interleaved(draw: st.DrawFn, a: list[LogFrame], b: list[LogFrame]) -> list[LogFrame]:
    turns = draw(st.permutations([0] * len(a) + [1] * len(b)))
    sources = (iter(a), iter(b))
    return [next(sources[turn]) for turn in turns]


@settings(deadline=None, max_examples=60)
@given(interrupted())
def test_the_engines_log_goes_on_exactly_behind_the_cursor(job: Interrupted) -> None:
    skipper = Skipper(job.cursor)
    wanted = [frame for frame in job.log if skipper.wants(frame)]
    for stream, written in job.written.items():
        frames = [frame.data for frame in wanted if frame.stream is stream]
        rest = recovered(frames, job.cursor.of(stream))
        assert b"".join(step.cut.data for step in rest) == written[job.behind[stream] :]
        everything = recovered(engine_frames(written))
        ahead = [step for step in everything if step.behind > job.behind[stream]]
        assert cuts_of(rest) == cuts_of(ahead)
        assert [step.position for step in rest] == [step.position for step in ahead]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_line_cut_off_by_a_lost_connection_is_read_again_from_the_log(
    data: st.DataObject,
) -> None:
    written = data.draw(outputs())
    arrived = data.draw(chopped(written[: data.draw(st.integers(0, len(written)))]))
    splitter = LineSplitter()
    before = steps(splitter, map(splitter.feed, arrived))
    splitter.reset()
    assert splitter.unfinished == 0
    skipper = Skipper(Cursor(stdout=splitter.position))
    frames = [LogFrame(Stream.STDOUT, 0, frame) for frame in engine_frames(written)]
    left = [frame.data for frame in frames if skipper.wants(frame)]
    after = steps(splitter, (*map(splitter.feed_frame, left), splitter.finish()))
    assert b"".join(step.cut.data for step in (*before, *after)) == written


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_has_no_newline_yet_is_counted_as_unfinished(data: st.DataObject) -> None:
    written = data.draw(outputs())
    splitter = LineSplitter()
    for chunk in data.draw(chopped(written)):
        out = sum(len(cut.data) for cut in splitter.feed(chunk))
        written = written[out:]
    assert splitter.unfinished == len(written) < PIECE


@given(st.text(st.sampled_from("aé→😀\x1b"), max_size=40), st.integers(1, 60))
def test_the_tail_of_an_unfinished_line_is_its_last_whole_characters(text: str, size: int) -> None:
    splitter = LineSplitter()
    assert list(splitter.feed(text.encode())) == []

    tail = splitter.tail(size)

    assert text.endswith(tail)
    cut_off = len(text.encode()) - len(tail.encode())
    assert max(0, len(text.encode()) - size) <= cut_off <= max(0, len(text.encode()) - size + 3)


def test_a_tail_leaves_out_the_character_of_which_the_rest_is_to_come() -> None:
    splitter = LineSplitter()
    list(splitter.feed("one\n50 €".encode()[:-1]))
    assert splitter.tail(100) == "50 "
    list(splitter.feed("€".encode()[-1:]))
    assert splitter.tail(100) == "50 €"
    list(splitter.feed(b"\xff!"))
    assert splitter.tail(100) == "50 €\ufffd!"


def test_whole_lines_that_arrive_together_stay_together() -> None:
    assert list(LineSplitter().feed(b"a\nb\n\nrest")) == [Cut(b"a\nb\n\n", 3, True)]


def test_a_stream_that_says_nothing_gives_nothing() -> None:
    splitter = LineSplitter()
    assert [*splitter.feed(b""), *splitter.finish()] == []
    assert splitter.position == Position()


def test_a_cursor_knows_each_stream_for_itself() -> None:
    cursor = Cursor().moved(Stream.STDOUT, Position(3, 1)).moved(Stream.STDERR, Position(5))
    assert cursor.of(Stream.STDOUT) == cursor.stdout == Position(3, 1)
    assert cursor.of(Stream.STDERR) == cursor.stderr == Position(5, 0)
    assert cursor.moved_at_all
    assert not Cursor().moved_at_all


# --- chunks ----------------------------------------------------------------------------------

texts = st.binary(max_size=6).map(lambda data: data.replace(b"\n", b""))
lines_of_a_job = st.lists(
    st.builds(
        Line,
        number=st.just(0),
        stream=st.sampled_from(Stream),
        at=st.integers(0, 2),
        text=texts,
        ended=st.sampled_from([True, True, False]),
    ),
    max_size=12,
)
firsts = st.integers(1, 1000)


def numbered(lines: Sequence[Line], first: int) -> list[Line]:
    return [line._replace(number=first + n) for n, line in enumerate(lines)]


@given(lines_of_a_job, firsts)
def test_a_chunk_gives_back_the_lines_it_was_made_of(lines: list[Line], first: int) -> None:
    chunk = chunk_of(lines, first)
    assert list(chunk.lines()) == numbered(lines, first)
    assert (chunk.count, chunk.first, chunk.last) == (len(lines), first, first + len(lines) - 1)
    assert sum(run.size for run in chunk.runs) == len(chunk.data)


@given(lines_of_a_job, firsts)
def test_a_chunk_after_a_line_is_all_that_comes_behind_it(lines: list[Line], first: int) -> None:
    chunk = chunk_of(lines, first)
    for number in range(first - 2, first + len(lines) + 2):
        rest = chunk.after(number)
        assert list(rest.lines()) == [each for each in chunk.lines() if each.number > number]
        assert rest.first == max(first, number + 1)
        assert rest.count == len(list(rest.lines()))


@given(lines_of_a_job, firsts)
def test_a_chunk_up_to_a_line_is_all_that_comes_before_and_that_line(
    lines: list[Line], first: int
) -> None:
    chunk = chunk_of(lines, first)
    for number in range(first - 2, first + len(lines) + 2):
        head = chunk.upto(number)
        assert list(head.lines()) == [each for each in chunk.lines() if each.number <= number]
        assert head.first == first


@given(lines_of_a_job, firsts)
def test_cutting_a_chunk_in_two_and_joining_the_lines_loses_nothing(
    lines: list[Line], first: int
) -> None:
    assume(lines)
    chunk = chunk_of(lines, first)
    middle = first + len(lines) // 2
    head = chunk.upto(middle).lines()
    assert chunk_of([*head, *chunk.after(middle).lines()], first) == chunk


@given(lines_of_a_job)
def test_merged_runs_are_as_few_as_possible_and_say_the_same(lines: list[Line]) -> None:
    single = [
        Run(line.stream, line.at, 1, len(line.text) + line.ended, line.ended) for line in lines
    ]
    data = b"".join(line.text + b"\n" * line.ended for line in lines)
    merged = merge_runs(single)
    assert list(Chunk(1, data, merged).lines()) == numbered(lines, 1)
    assert merge_runs(merged) == merged
    for before, run in pairwise(merged):
        assert before[:2] != run[:2] or not (before.ended and run.ended)
    assert all(run.lines == 1 for run in merged if not run.ended)


@given(
    st.lists(
        st.builds(
            Run,
            stream=st.sampled_from(Stream),
            at=st.integers(0, 2**62),
            lines=st.integers(0, 2**32 - 1),
            size=st.integers(0, 2**32 - 1),
            ended=st.booleans(),
        )
    )
)
def test_runs_come_back_from_their_packed_form(runs: list[Run]) -> None:
    packed = pack_runs(runs)
    assert unpack_runs(packed) == tuple(runs)
    assert len(packed) == 18 * len(runs)
    assert all(type(run.stream) is Stream for run in unpack_runs(packed))


def test_packed_runs_keep_their_layout_because_they_are_stored() -> None:
    packed = pack_runs([Run(Stream.STDERR, 0x0102, 3, 4, True)])
    assert packed.hex(" ", 1) == "02 02 01 00 00 00 00 00 00 03 00 00 00 04 00 00 00 01"


@pytest.mark.parametrize(
    ("stream", "number", "label"),
    [(Stream.STDOUT, 1, "stdout"), (Stream.STDERR, 2, "stderr"), (Stream.WORKER, 3, "worker")],
)
def test_streams_are_numbered_as_the_engine_does(stream: Stream, number: int, label: str) -> None:
    assert (int(stream), stream.label) == (number, label)

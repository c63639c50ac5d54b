"""Records of whole runs, encoded at once, are what each line's own record is."""

from hypothesis import example, given
from hypothesis import strategies as st

from ciworker.domain.log import Line, Stream, chunk_of
from ciworker.web.records import data_lines, record

TEXTS = st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"")) | st.sampled_from(
    [b"", b",", b'","', b'"', b"\\", b'\\"', b'",', b',"', b"\\n", b"\xff", b"\xe2\x82", b"\x00\r"]
)
STREAMS = st.sampled_from([Stream.STDOUT, Stream.STDERR, Stream.WORKER])
LINES = st.lists(st.tuples(STREAMS, st.integers(0, 2), TEXTS, st.booleans()), min_size=1)


@given(LINES, st.integers(1, 10**9))
@example([(Stream.STDOUT, 0, b'","', True), (Stream.STDOUT, 0, b",", True)], 1)
@example([(Stream.STDOUT, 0, b"\xe2\x82", True), (Stream.STDOUT, 0, b"\xac", True)], 1)
@example([(Stream.STDOUT, 0, b"", True)] * 3, 1)
@example([(Stream.STDOUT, 0, b'",', True), (Stream.STDOUT, 0, b"", True)], 1)
def test_each_line_has_its_own_record(
    lines: list[tuple[Stream, int, bytes, bool]], first: int
) -> None:
    chunk = chunk_of(
        [
            Line(first + n, stream, at, text or b"x" * (not ended), ended)
            for n, (stream, at, text, ended) in enumerate(lines)
        ],
        first,
    )
    one_by_one = b"".join(b"data: %b\n" % record(line) for line in chunk.lines())
    assert data_lines(chunk) == one_by_one

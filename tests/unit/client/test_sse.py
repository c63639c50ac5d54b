from hypothesis import given
from hypothesis import strategies as st

from ciclient.sse import Parser, ServerEvent

END = st.sampled_from(["\n", "\r", "\r\n"])
# what may stand in a field: anything but the three line ends
VALUE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


def parse(*chunks: bytes) -> list[ServerEvent]:
    parser = Parser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_an_event_has_a_name_data_lines_and_the_last_id() -> None:
    events = parse(b"event: log\ndata: one\ndata: two\nid: 17\n\ndata: three\n\n")
    assert events == [
        ServerEvent("log", (b"one", b"two"), "17"),
        ServerEvent("message", (b"three",), "17"),
    ]


def test_comments_empty_events_and_unknown_fields_are_passed_over() -> None:
    assert parse(b": hello\n\nevent: nothing\n\nfoo: bar\ndata\n\n") == [
        ServerEvent("message", (b"",), "")
    ]


def test_an_event_that_is_cut_off_is_not_handed_out() -> None:
    assert parse(b"data: whole\n\ndata: half\n") == [ServerEvent("message", (b"whole",), "")]


def test_lines_do_not_end_at_unicode_separators() -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    assert parse(f"data: {text}\n\n".encode()) == [ServerEvent("message", (text.encode(),), "")]


def test_a_byte_order_mark_is_dropped_at_the_start_only() -> None:
    events = parse(b"\xef\xbb", b"\xbfdata: \xef\xbb\xbfx\n\n")
    assert events == [ServerEvent("message", (b"\xef\xbb\xbfx",), "")]


def test_retry_is_taken_from_digits_only() -> None:
    parser = Parser()
    parser.feed(b"retry: 1500\n\nretry: soon\n\n")
    assert parser.retry_ms == 1500


def test_an_id_with_a_nul_is_ignored() -> None:
    assert parse(b"id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n")[1].last_id == "1"


@given(
    st.lists(st.tuples(VALUE, st.lists(VALUE, min_size=1, max_size=4), END), max_size=6),
    st.data(),
)
def test_events_do_not_depend_on_line_ends_or_on_where_chunks_are_cut(
    events: list[tuple[str, list[str], str]], data: st.DataObject
) -> None:
    stream = ""
    for name, values, end in events:
        stream += f"event: {name}{end}"
        stream += "".join(f"data: {value}{end}" for value in values) + end
    encoded = stream.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(encoded)), max_size=8)))
    chunks = [encoded[a:b] for a, b in zip([0, *cuts], [*cuts, len(encoded)], strict=True)]

    assert [(event.name, list(event.data)) for event in parse(*chunks)] == [
        (name or "message", [value.encode() for value in values]) for name, values, _ in events
    ]

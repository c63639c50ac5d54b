"""What git says: the same lines however it is read, none with the password, nor a part of it."""

from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from ciworker.source.gitlines import MAX_LINE, GitLines

TOKEN = "Q7/9Z+W8~K2X5V"  # of characters that nothing else here has
BASIC = b64encode(f"u:{TOKEN}".encode())
PIECES = (b"\n", b"\r", b" ", b"remote: ", b"xyz ", b"x" * (MAX_LINE - 5), TOKEN.encode())


def heard(
    data: bytes, cuts: list[int], token: str | None = TOKEN
) -> tuple[list[bytes], set[bytes]]:
    """The lines, and what was shown of lines that had not ended."""
    lines, unfinished, said = list[bytes](), set[bytes](), GitLines(token)
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        lines += said.feed(data[start:end])
        unfinished.add(said.unfinished)
    return [*lines, *said.finish()], unfinished


def test_lines_are_what_a_terminal_shows_in_the_end() -> None:
    data = b"one\n\nCounting: 1%\rCounting: 100%, done.\r\n  two \nlast"
    assert heard(data, [])[0] == [b"one", b"Counting: 100%, done.", b"two", b"last"]
    assert heard(data, [], None)[0] == heard(data, [])[0]


def test_progress_is_shown_while_its_line_has_not_ended() -> None:
    said = GitLines(None)
    assert not list(said.feed(b"Receiving: 1%\rReceiving: 2%\r"))
    assert said.unfinished == b"Receiving: 2%"


def test_a_token_in_any_form_is_masked_in_lines_and_in_progress() -> None:
    data = f"a {TOKEN} b\nq=Q7%2F9Z%2BW8~K2X5V&\n".encode() + BASIC + b"\nc " + TOKEN.encode()
    lines, unfinished = heard(data, list(range(1, len(data))))
    assert lines[:2] == [b"a *** b", b"q=***&"]
    assert lines[2].rstrip(b"=").endswith(b"***")
    assert lines[3] == b"c ***"
    assert b"c" in unfinished
    assert not [shown for shown in unfinished if b"Q" in shown]


def test_of_a_line_that_is_too_long_the_end_is_told() -> None:
    data = b"x" * 5 * MAX_LINE + b"end\nnext"
    for cuts in ([], list(range(1, len(data), 100))):
        lines = heard(data, cuts)[0]
        assert [line[-4:] for line in lines] == [b"xend", b"next"]
        assert len(lines[0]) <= MAX_LINE


@given(st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join), st.data())
def test_however_it_is_read_nothing_of_the_token_is_told(data: bytes, drawn: st.DataObject) -> None:
    cuts = sorted(drawn.draw(st.sets(st.integers(0, len(data)), max_size=12)))
    lines, unfinished = heard(data, cuts)
    for told in (*lines, *unfinished):
        assert len(told) <= MAX_LINE
        assert not set(told) & set(TOKEN.encode())
    if max(map(len, data.split(b"\n"))) <= MAX_LINE:
        assert lines == heard(data, [])[0]

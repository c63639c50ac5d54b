import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciclient.sanitise import RESET, clean, clean_block

SGR = re.compile(r"\x1b\[[0-9;:]*m")
OBEYED = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = st.text(
    st.sampled_from(list("\x1b[]()0123;:mMHJKAP\\\x07\x08\r\n\x00\x7f\x90\x9b\x9dab\u202e\u2066é"))
)


@pytest.mark.attacks(40)
@given(HOSTILE | st.text(), st.booleans())
def test_whatever_the_text_only_sgr_is_left_for_a_terminal_to_obey(text: str, colour: bool) -> None:
    cleaned = clean(text, colour=colour)
    rest = SGR.sub("", cleaned)
    assert not OBEYED.search(rest)
    assert colour or rest == cleaned
    cleaned.encode()


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_is_not_touched(text: str) -> None:
    assert clean(text) == text == clean(text, colour=True)


@pytest.mark.attacks(40)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;ZXZpbA==\x07", "^[]52;c;ZXZpbA==^G"),
        ("\x1b]0;title\x1b\\", "^[]0;title^[\\"),
        ("\x1b]8;;http://x\x1b\\link", "^[]8;;http://x^[\\link"),
        ("\x1bPq\x1b\\", "^[Pq^[\\"),
        ("\x1b[2J\x1b[H", "^[[2J^[[H"),
        ("\x1b[>4;2m", "^[[>4;2m"),
        ("\x9b2J", "<U+009B>2J"),
        (" 10%\r 20%", " 10%^M 20%"),
        ("a\bb\x07\x7f", "a^Hb^G^?"),
        ("user\u202enimda", "user<U+202E>nimda"),
        ("\ud800", "<U+D800>"),
        ("caf\udce9", "caf\\xe9"),
        ("a\tb", "a\tb"),
        ("test_foo[param] [/tmp [bold]x", "test_foo[param] [/tmp [bold]x"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert clean(text, colour=True) == shown


def test_colour_passes_where_it_is_wanted_and_is_closed_at_the_end() -> None:
    assert clean("\x1b[31mred", colour=True) == f"\x1b[31mred{RESET}"
    assert clean("\x1b[38:2::1:2:3mred\x1b[0m", colour=True) == "\x1b[38:2::1:2:3mred\x1b[0m"
    assert clean("\x1b[31mred\x1b[m") == "red"


def test_removing_colour_makes_no_new_sequence() -> None:
    assert clean("\x1b\x1b[0m[2J") == "^[[2J"


def test_the_cr_of_a_crlf_is_part_of_the_line_end() -> None:
    assert clean_block(["a\r", "b\r\r"], colour=False) == "a\nb^M\n"

"""Masking: every form of a secret, wherever a stream is cut; the sum is the mask of the whole."""

import base64
import json
import random
import string
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciworker.domain.log import Cut, LineSplitter, Position
from ciworker.domain.masking import MASKED, PART, Mask, Read, StreamMask
from ciworker.domain.secrets import Secret

TOKEN = "gh?p/Kä+9 ~zQ&x!w'(T)*"
KEY = "-----BEGIN KEY-----\n" + base64.encodebytes(bytes(range(256)) * 3).decode() + "-----END-----"


def mask(*values: str) -> Mask:
    return Mask([Secret(value) for value in values])


def javascript(text: str) -> str:
    return quote(text, safe="~!*'()")


def small(text: str) -> str:
    return "".join(
        c.lower() if text[max(0, i - 2) : i].find("%") >= 0 else c for i, c in enumerate(text)
    )


QUOTERS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "quoted": quote,
    "quoted, slashes too": lambda text: quote(text, safe=""),
    "in a form": quote_plus,
    "by Java": lambda text: quote_plus(text, safe="*").replace("~", "%7E"),
    "by JavaScript": javascript,
    "in small letters": lambda text: small(quote(text, safe="")),
    "each byte": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "in JSON": lambda text: json.dumps(text)[1:-1],
}


@pytest.mark.parametrize("form", QUOTERS)
def test_a_value_is_masked_in_this_form(form: str) -> None:
    text = f"a={QUOTERS[form](TOKEN)};b".encode()

    assert mask(TOKEN).masked(text) == b"a=***;b"


QUOTABLE = 'gh?p/Kä+9<"~&>\\u00e4Q'
AS_JSON = {
    "Python's": r"gh?p/K\u00e4+9<\"~&>\\u00e4Q",
    "JavaScript's": r"gh?p/Kä+9<\"~&>\\u00e4Q",
    "Go's": r"gh?p/Kä+9\u003c\"~\u0026\u003e\\u00e4Q",
    "Rails', ASCII alone": r"gh?p/K\u00e4+9\u003c\"~\u0026\u003e\\u00e4Q",
    "PHP's": r"gh?p\/K\u00e4+9<\"~&>\\u00e4Q",
    "PHP's, Unicode unescaped": r"gh?p\/Kä+9<\"~&>\\u00e4Q",
    "Jackson's, ASCII alone": r"gh?p/K\u00E4+9<\"~&>\\u00e4Q",
    "capitals, safe in HTML": r"gh?p/Kä+9\u003C\"~\u0026\u003E\\u00e4Q",
}


@pytest.mark.parametrize("encoder", AS_JSON)
def test_a_value_is_masked_in_the_json_of(encoder: str) -> None:
    shown = mask(QUOTABLE).masked(f'{{"a":"{AS_JSON[encoder]}"}}'.encode())

    assert shown == b'{"a":"***"}'


@pytest.mark.parametrize("before", ["", "u", "us", "use", "user:"])
@pytest.mark.parametrize("after", ["", "\n", ":x", "\n\n", "@host"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_no_character_that_depends_on_the_value_alone_is_left_of_its_base64(
    before: str, after: str, encode: Callable[[bytes], bytes]
) -> None:
    text = encode(f"{before}{TOKEN}{after}".encode())
    bits = 8 * len(before.encode()), 8 * len(f"{before}{TOKEN}".encode())
    first, end = -(-bits[0] // 6), bits[1] // 6

    shown = mask(TOKEN).masked(text)

    head, found, tail = shown.partition(MASKED)
    assert found
    assert head == text[:first]
    assert text[end:].endswith(tail)
    assert after not in ("", "\n") or not tail.strip(b"=")


@pytest.mark.parametrize("before", [b"", b"u", b"us", b"user:", b"x" * 40])
@pytest.mark.parametrize("columns", [64, 76])
def test_of_base64_that_a_program_wraps_next_to_nothing_is_left(
    before: bytes, columns: int
) -> None:
    text = base64.b64encode(before + KEY.encode() + b"@")
    rows = [text[start : start + columns] for start in range(0, len(text), columns)]
    own = len(before) * 8 // 6 + 1

    first, *others, last = mask(KEY).masked(b"\n".join(rows)).split(b"\n")

    assert set(others) == {MASKED}
    assert len(first.replace(MASKED, b"")) < own + 8
    assert len(last.replace(MASKED, b"")) < 8 + 4


def test_a_value_of_several_lines_is_masked_line_by_line() -> None:
    text = f"before\n{KEY}\nafter\n  {KEY.splitlines()[3]}  \n".encode()

    shown = mask(KEY).masked(text)

    count = KEY.count("\n") + 1
    assert shown == b"before\n" + b"***\n" * count + b"after\n  ***  \n"


def test_a_short_line_of_a_longer_value_is_left() -> None:
    assert mask("{\nlong-enough\n}").masked(b"{ long-enough }") == b"{ *** }"


def test_overlapping_and_touching_secrets_become_one() -> None:
    masks = mask("abcdefgh", "efghijkl", "mnopqr")

    assert masks.masked(b"-abcdefghijklmnopqr-") == b"-***-"


def test_a_long_value_is_one_mask_and_a_part_of_it_is_masked_too() -> None:
    value = "".join(chr(ord("a") + n * n % 26) + str(n) for n in range(2000))
    masks = mask(value)

    assert masks.masked(f"<{value}>".encode()) == b"<***>"
    assert MASKED in masks.masked(value[1000 : 1000 + 2 * PART].encode())


@pytest.mark.parametrize("size", [65, 66, 150, 400, 2001])
@pytest.mark.parametrize("before", [0, 55, 117])
def test_of_a_long_value_that_a_program_wraps_next_to_nothing_is_left(
    size: int, before: int
) -> None:
    """At `COLUMNS`, as rich, click and textwrap do; a row of few characters may stay."""
    value = base64.b85encode(bytes(n * n % 251 for n in range(size)))[:size].decode()
    rows = textwrap.wrap("." * before + value, 120, drop_whitespace=False)
    assert "".join(rows) == "." * before + value

    shown = mask(value).masked("\n".join(rows).encode()).decode()

    for row, left in zip(rows, shown.split("\n"), strict=True):
        own = len(row.lstrip("."))
        assert own < 40 or len(left.lstrip(".").replace("***", "")) < 16


@pytest.mark.parametrize("place", [0, 1, 30, 48, 49, 400, 799])
@pytest.mark.parametrize("size", [50, 800])
def test_a_character_that_a_frame_of_the_engine_split_far_into_a_value_hides_nothing(
    size: int, place: int
) -> None:
    text = "".join(random.Random(size).choices(string.ascii_letters, k=size))
    place = min(place, size - 1)
    value = f"{text[:place]}ä{text[place + 1 :]}"

    in_engine = value.replace("ä", "\ufffd\ufffd").encode()
    assert mask(value).masked(b"<" + in_engine + b">") == b"<***>"


def test_a_character_that_a_frame_of_the_engine_split_hides_nothing() -> None:
    in_engine = TOKEN.replace("ä", "\ufffd\ufffd").encode()

    assert mask(TOKEN).masked(b"<" + in_engine + b">") == b"<***>"


def test_nothing_is_masked_where_there_is_no_secret() -> None:
    assert mask(TOKEN).masked(b"") == b""
    assert mask(TOKEN).masked(b"all is well\n" * 100) == b"all is well\n" * 100


# streams

SECRETS = ("aabaab", "abaabaaab", "bbbbbbbb" * 40, "äbäbäb", "a\u20acb aa")
ALL = mask(*SECRETS)
letters = st.text(alphabet="ab\u00e4\u20ac \n", max_size=60)
pieces = st.lists(st.one_of(letters, st.sampled_from(SECRETS)), max_size=12).map("".join)


def reads(data: bytes, ends: Sequence[int]) -> Iterator[Read]:
    """Cut as a splitter cuts: whole lines together, or a piece of one."""
    for number, (start, end) in enumerate(zip([0, *ends], [*ends, len(data)], strict=True)):
        part = data[start:end]
        whole, newline, rest = part.rpartition(b"\n")
        if newline:
            yield read_of(whole + newline, number, ended=True)
        if rest:
            yield read_of(rest, number, ended=False)


def read_of(data: bytes, number: int, *, ended: bool) -> Read:
    return Read(Cut(data, data.count(b"\n") or 1, ended), number, Position(number), len(data))


@settings(deadline=None)
@given(pieces, st.lists(st.integers(0, 700), max_size=10), st.sets(st.sampled_from(SECRETS)))
def test_cut_anywhere_a_stream_is_masked_as_the_whole_of_it(
    text: str, cuts: Sequence[int], values: set[str]
) -> None:
    data, masks = text.encode(), mask("aabaab", *values)
    ends = sorted({cut for cut in cuts if 0 < cut < len(data)})
    stream, before = StreamMask(masks), list(reads(data, ends))

    after = [given for read in before for given in stream.feed(read)] + list(stream.finish())

    assert b"".join(read.cut.data for read in after) == masks.masked(data)
    assert [read._replace(cut=old.cut) for read, old in zip(after, before, strict=True)] == before
    assert all(read.cut.lines == old.cut.lines for read, old in zip(after, before, strict=True))


@settings(deadline=None)
@given(pieces, st.lists(st.integers(0, 700), max_size=10), st.data())
def test_resumed_anywhere_each_cut_is_masked_as_if_it_had_never_stopped(
    text: str, cuts: Sequence[int], draw: st.DataObject
) -> None:
    data, masks = text.encode(), ALL
    before = list(reads(data, sorted({cut for cut in cuts if 0 < cut < len(data)})))
    stream = StreamMask(masks)
    after = [given for read in before for given in stream.feed(read)] + list(stream.finish())
    stored = draw.draw(st.integers(0, len(before)))

    resumed = StreamMask(masks)
    for read in before[:stored]:
        resumed.pass_over(read.cut.data)
    again = [given for read in before[stored:] for given in resumed.feed(read)]

    assert again + list(resumed.finish()) == after[stored:]


@settings(max_examples=40, deadline=None)
@given(pieces)
def test_what_is_shown_of_an_unfinished_line_never_shows_more_than_the_line(text: str) -> None:
    """Byte by byte: each text that was shown is the beginning of what the line becomes."""
    line = text.replace("\n", "").encode()
    masks = ALL
    final = masks.masked(line).decode(errors="replace")

    for end in range(len(line)):
        shown = StreamMask(masks).tail(line[:end], len(line) + 3)

        assert final.startswith(shown.rstrip("\ufffd"))


def test_a_piece_waits_for_what_follows_and_its_end_is_shown_meanwhile() -> None:
    stream, splitter = StreamMask(mask("s3cret-value")), LineSplitter()
    line = b"x" * (64 * 1024 - 4) + b"s3cret-value tail\n"
    first, second = (Read(cut, 0, splitter.position, len(cut.data)) for cut in splitter.feed(line))

    assert list(stream.feed(first)) == []
    assert stream.holds
    assert stream.tail(b"", 100) == "x" * 100
    assert stream.tail(b"et-val", 100) == "x" * 100
    assert stream.tail(b"et-value ta", 100) == "x" * 94 + "*** ta"
    whole, rest = stream.feed(second)
    assert whole.cut.data == b"x" * (64 * 1024 - 4) + b"***"
    assert rest.cut.data == b" tail\n"


def test_a_flood_of_matches_takes_time_in_proportion() -> None:
    """Also of forms within each other; compared with itself, so that no machine is too slow."""
    program = (
        "import time\n"
        "from ciworker.domain.masking import Mask\n"
        "from ciworker.domain.secrets import Secret\n"
        "mask = Mask([Secret('a' * n) for n in range(6, 26)])\n"
        "def least(size):\n"
        "    data, best = b'a' * size, 9e9\n"
        "    for _ in range(3):\n"
        "        began = time.process_time()\n"
        "        assert mask.masked(data) == b'***'\n"
        "        best = min(best, time.process_time() - began)\n"
        "    return best\n"
        "print(least(16000) / least(2000))\n"
    )

    ratio = float(subprocess.check_output([sys.executable, "-c", program]))

    assert ratio < 24

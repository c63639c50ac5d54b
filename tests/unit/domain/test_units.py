"""Durations and sizes as people write them."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.units import format_duration, format_size, parse_duration, parse_size, plural


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        (90, 90.0),
        (0, 0.0),
        (1.5, 1.5),
        ("90", 90.0),
        ("90s", 90.0),
        ("10m", 600.0),
        ("2h", 7200.0),
        ("0.5h", 1800.0),
        ("1.5m", 90.0),
        (" 10M ", 600.0),
    ],
)
def test_a_duration_is_read_in_seconds(written: object, seconds: float) -> None:
    assert parse_duration(written) == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("1024b", 1024),
        ("8k", 8 * 2**10),
        ("512m", 512 * 2**20),
        ("2g", 2 * 2**30),
        ("1.5g", 3 * 2**29),
        (" 2G ", 2 * 2**30),
        (2.0, 2),
    ],
)
def test_a_size_is_read_in_bytes_with_binary_units(written: object, size: int) -> None:
    assert parse_size(written) == size
    assert isinstance(parse_size(written), int)


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0, "0s"),
        (0.5, "0.5s"),
        (90, "90s"),
        (900.0, "15m"),
        (7200, "2h"),
        (7201, "7201s"),
        (131_400_000, "36500h"),
    ],
)
def test_a_duration_is_told_as_it_is_written(seconds: float, written: str) -> None:
    assert format_duration(seconds) == written
    assert parse_duration(written) == seconds


NEITHER = [
    "", " ", "-1", "+1", "1 m", "1e3", "1,5m", ".5m", "5.", "m", "ten", "1mm", "1_000", "0x10",
    "nan", "inf", "1m\n2", "٣m", "1m30s", -1, -0.5, math.nan, math.inf, 1e300, True, False, None,
    [], [1], {}, b"1m", Path("10"), 10**400, "9" * 400, "1" + "0" * 15,
]  # fmt: skip


@pytest.mark.parametrize("written", [*NEITHER, "1g", "1d", "1ms"])
def test_what_is_no_duration_is_refused_with_the_forms_that_are(written: object) -> None:
    with pytest.raises(ValueError, match=r"is no duration: write 90 \(seconds\), 90s, 10m or 2h$"):
        parse_duration(written)


@pytest.mark.parametrize("written", [*NEITHER, "1s", "1h", "1t", "1gb", "1gib"])
def test_what_is_no_size_is_refused_with_the_forms_that_are(written: object) -> None:
    with pytest.raises(ValueError, match=r"is no size: write 1048576 \(bytes\), 512m or 2g$"):
        parse_size(written)


@given(st.one_of(st.text("0123456789.-+e bkmgsh"), st.text(), st.integers(), st.floats()))
def test_whatever_is_written_gives_a_finite_number_or_a_value_error(written: object) -> None:
    for parse in (parse_duration, parse_size):
        try:
            number = parse(written)
        except ValueError:
            continue
        assert 0 <= number < math.inf


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (16 * 2**20, "16.0 MiB"),
        (2**30, "1.0 GiB"),
        (5 * 2**40, "5120.0 GiB"),
    ],
)
def test_a_size_is_shown_in_the_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("count", "told"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (2000, "2,000 files")]
)
def test_of_one_the_word_has_no_s(count: int, told: str) -> None:
    assert plural(count, "file") == told

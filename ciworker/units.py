"""Durations, sizes and signing keys as people write them."""

import base64
import binascii
import re
from dataclasses import dataclass

KEY_PREFIX = "whsec_"
"""What the text of a signing key begins with."""

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BYTES = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}
CENTURY = 36_500 * 86400.0  # seconds; of some thousand years no instant could be reckoned
_DURATION = re.compile(r"(\d{1,15}(?:\.\d+)?)([smh]?)", re.ASCII)
_RATE = re.compile(r"(\d{1,9})/([smh])", re.ASCII)
_SIZE = re.compile(r"(\d{1,15}(?:\.\d+)?)([bkmg]?)", re.ASCII)


def parse_duration(value: object) -> float:
    """Seconds of `90`, `"90s"`, `"10m"` or `"2h"`.

    Raises:
        ValueError: with a sentence that shows the accepted forms.
    """
    number, unit = _parse(value, _DURATION)
    if number is None:
        raise ValueError(f"{value!r} is no duration: write 90 (seconds), 90s, 10m or 2h")
    return number * _SECONDS[unit]


def parse_age(value: object) -> float:
    """Seconds of a duration that may also be in days, such as `30d`.

    Raises:
        ValueError: with a sentence that shows the accepted forms.
    """
    try:
        if isinstance(value, str) and value.lower().endswith("d"):
            return parse_duration(f"{value[:-1]}h") * 24
        return parse_duration(value)
    except ValueError:
        raise ValueError(f"{value!r} is no duration: write 12h or 30d") from None


@dataclass(frozen=True, slots=True)
class Rate:
    """So many in a second, a minute or an hour (`seconds`), all at once or spread."""

    count: int
    seconds: int

    def __str__(self) -> str:
        units = {1: "second", 60: "minute", 3600: "hour"}
        return f"{self.count} per {units[self.seconds]}"


def parse_rate(value: object) -> Rate:
    """`600/m`: so many per `s`, `m` or `h`.

    Raises:
        ValueError: with a sentence that shows the accepted forms.
    """
    match = _RATE.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None or not int(match[1]):
        raise ValueError(f"{value!r} is no rate: write 10/s, 600/m or 1000/h, or off")
    return Rate(int(match[1]), _SECONDS[match[2]])


def parse_size(value: object) -> int:
    """Bytes of `1024`, `"512m"` or `"2g"` (binary units).

    Raises:
        ValueError: with a sentence that shows the accepted forms.
    """
    number, unit = _parse(value, _SIZE)
    if number is None:
        raise ValueError(f"{value!r} is no size: write 1048576 (bytes), 512m or 2g")
    return int(number * _BYTES[unit])


def _parse(value: object, pattern: re.Pattern[str]) -> tuple[float | None, str]:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, ""
    match = pattern.fullmatch(str(value).strip().lower())
    return (float(match[1]), match[2]) if match else (None, "")


def format_size(size: float) -> str:
    """A size for people: `512 B`, `1.5 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def format_duration(seconds: float) -> str:
    """A duration as it is written: `90s`, `15m`, `2h`, in the largest unit without a rest."""
    for unit in ("h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:.15g}s"


def plural(count: int, word: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def key_of(secret: str) -> bytes:
    """The key that the text of a secret stands for.

    Raises:
        ValueError: it is none.
    """
    try:
        key = base64.b64decode(secret.removeprefix(KEY_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(KEY_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(
            f"has to be {KEY_PREFIX} and the base64 of 24 to 64 random bytes: "
            f"echo {KEY_PREFIX}$(head -c 32 /dev/urandom | base64)"
        )
    return key

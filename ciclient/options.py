"""What the command line's values mean, where the client itself has to know; pure.

Durations and sizes of a job are not read here: they are sent as given and the worker reads them.
"""

import math
import re
from pathlib import Path

from ciclient.errors import Usage


def split_command(argv: list[str]) -> tuple[list[str], list[str] | None]:
    """Takes what follows `--` off a submit: typer would read its first word as PATH."""
    if "--" not in argv:
        return argv, None
    index = argv.index("--")
    if "submit" not in argv[:index]:
        return argv, None
    return argv[:index], argv[index + 1 :]


def command(words: object) -> list[str] | None:
    if words is None:
        return None
    if not words or not isinstance(words, list):
        raise Usage("a command is missing after --")
    return words


def environment(pairs: list[str]) -> dict[str, str] | None:
    values: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise Usage(f"--env takes NAME=VALUE, not {pair!r}")
        values[name] = value
    return values or None


def cpus(count: float | None) -> float | None:
    if count is None:
        return None
    if not math.isfinite(count) or count <= 0:
        raise Usage("--cpus takes a number above 0")
    return int(count) if count.is_integer() else count


def cache(*, rebuild: bool, no_cache: bool) -> str | None:
    if rebuild and no_cache:
        raise Usage("--rebuild and --no-cache exclude each other")
    return "rebuild" if rebuild else "off" if no_cache else None


def git(
    url: str | None, ref: str | None, path: Path | None, *, dry_run: bool
) -> dict[str, str] | None:
    """What the worker is to fetch, if it is to; `path` is None where none is given."""
    if url is None:
        if ref is not None:
            raise Usage("--ref says what to fetch of --git URL, which is missing")
        return None
    if path is not None:
        raise Usage(f"--git has the worker fetch the source: leave {path} out")
    if dry_run:
        raise Usage("--dry-run lists what would be packed: with --git nothing is")
    return {"url": url} | ({} if ref is None else {"ref": ref})


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m`, `2h`."""
    match = re.fullmatch(r"(\d{1,9})([smh]?)", text)
    if match is None:
        raise Usage(f"{text!r} is no duration; one looks like 90, 90s, 10m or 2h")
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
    if seconds == 0:
        raise Usage("a time limit is longer than 0")
    return float(seconds)

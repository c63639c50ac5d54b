"""Environments of the worker that runs: list, remove, prune."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ciworker.cli.api import call
from ciworker.domain.environment import SHOWN
from ciworker.errors import Unknown
from ciworker.harmless import harmless
from ciworker.settings import Settings
from ciworker.units import format_size, plural

LEAST_PREFIX = 6


def listed(settings: Settings) -> dict[str, Any]:
    """All of them, and what the cache was worth, as the API says it."""
    return call(settings, "GET", "/environments")


def told(report: Mapping[str, Any]) -> Iterator[str]:
    """Each of them, in a line for a person."""
    return map(_line, report["items"])


def summary(report: Mapping[str, Any]) -> str:
    """What the cache was worth."""
    return (
        f"{plural(len(report['items']), 'environment')}, {format_size(report['bytes'])}; "
        f"hits: {report['hits']}, misses: {report['misses']}, "
        f"set up in {report['build_seconds']:.1f} s"
    )


def remove(settings: Settings, prefix: str) -> str:
    """Remove the one whose key begins so; its key.

    Raises:
        Unknown: none does, or several do.
    """
    wanted = prefix.lower().removeprefix("ciworker-env:")
    keys = [item["key"] for item in call(settings, "GET", "/environments")["items"]]
    matching = [key for key in keys if key.startswith(wanted)]
    if len(wanted) < LEAST_PREFIX or len(matching) != 1:
        many = "several environments begin" if len(matching) > 1 else "no environment's key begins"
        raise Unknown(
            f"{many} with {prefix!r}: give at least {LEAST_PREFIX} characters of one that "
            "`ciworker env list` shows"
        )
    call(settings, "DELETE", f"/environments/{matching[0]}")
    return str(matching[0])


def prune(settings: Settings) -> list[str]:
    """Remove all that no job needs; their keys."""
    removed: list[str] = call(settings, "POST", "/environments/prune")["items"]
    return removed


def _line(item: Mapping[str, Any]) -> str:
    used = item["last_used_at"] and datetime.fromisoformat(item["last_used_at"])
    when = f"{used:%Y-%m-%d %H:%M}" if used else "never"
    state = "in use" if item["in_use"] and item["status"] == "ready" else item["status"]
    about = item["message"] or "; ".join(item["commands"])
    return harmless(
        f"{item['key'][:SHOWN]}  {state:<8}  {format_size(item['bytes']):>9}  "
        f"hits: {item['hits']:>4}  last used {when}  {item['project']}  {_short(about)}"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else line[:59] + "…"

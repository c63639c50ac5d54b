"""A backup of the store, of the worker that runs or of one that is stopped."""

from pathlib import Path

from ciworker.errors import Invalid
from ciworker.settings import Settings
from ciworker.store.backup import back_up
from ciworker.units import format_size, plural


def backup(settings: Settings, target: Path) -> str:
    """Make it; what it holds, in words.

    Raises:
        Invalid: there is no store.
    """
    if not settings.database.exists():
        raise Invalid(f"there is no {settings.database}: nothing to back up")
    held = back_up(settings.database, target)
    return (
        f"{target}: {plural(held.jobs, 'job')}, {plural(held.lines, 'line')}, "
        f"{format_size(held.size)} ({held.size} bytes), checked"
    )

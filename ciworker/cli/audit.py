"""Who did what, of the worker that runs or of a stopped one's store."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from ciworker.cli.api import call
from ciworker.cli.tokens import of_store, shown_at
from ciworker.errors import StoreRefused
from ciworker.harmless import harmless
from ciworker.settings import Settings
from ciworker.store.audit import MOST_KEPT, Audit, Recorded
from ciworker.store.lock import is_held
from ciworker.units import parse_age

PER_PAGE = 500  # as many as the API gives at once


def history(settings: Settings, since: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
    """The newest first.

    Args:
        settings: the worker's.
        since: how long ago at most, such as `7d`, or an instant; None: however long.
        limit: at most so many.

    Raises:
        ValueError: one of them is none.
        StoreRefused: the store cannot be used, and no worker holds it.
    """
    if not 1 <= limit <= MOST_KEPT:
        raise ValueError(f"--limit has to be 1 to {MOST_KEPT}")
    oldest = None if since is None else _instant(since)
    try:
        return _stored(settings, oldest, limit)
    except StoreRefused:
        if not is_held(settings.data_dir):
            raise
        return _served(settings, oldest, limit)


def told(item: Mapping[str, Any]) -> str:
    """An entry in a line."""
    who = f"{item['by']} ({item['token_id'] or 'no token'}) from {item['address']}"
    what = " ".join(text for text in (item["action"], item["subject"], item["detail"]) if text)
    return harmless(f"{item['at']}  {who}: {what}")


def _instant(text: str) -> datetime:
    try:
        with suppress(ValueError):
            return datetime.fromisoformat(text).astimezone(UTC)
        return datetime.now(UTC) - timedelta(seconds=parse_age(text))
    except (OverflowError, ValueError):
        raise ValueError(
            f"--since {text!r} is none: write 12h, 30d or an instant, such as 2026-01-31T12:00:00Z"
        ) from None


def _served(settings: Settings, since: datetime | None, limit: int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    wanted = {} if since is None else {"since": since.isoformat()}
    while True:
        asked = wanted | {"limit": str(min(PER_PAGE, limit - len(found)))}
        page = call(settings, "GET", f"/audit?{urlencode(asked)}")
        found += page["items"]
        if page["next"] is None or len(found) == limit:
            return found
        wanted["cursor"] = page["next"]


def _stored(settings: Settings, since: datetime | None, limit: int) -> list[Mapping[str, Any]]:
    """StoreRefused: a worker holds it, or it cannot be used."""
    if not settings.database.exists():
        return []
    found = of_store(
        settings, "ciworker audit", lambda database: Audit(database).page(limit=limit, since=since)
    )
    return [_shown(each) for each in found]


def _shown(each: Recorded) -> dict[str, Any]:
    return asdict(each.deed) | {"at": shown_at(each.deed.at)}

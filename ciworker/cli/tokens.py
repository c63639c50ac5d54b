"""Tokens, of the worker that runs or of a stopped one's store."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol, TypeVar

from ciworker.cli.api import call
from ciworker.errors import StoreRefused
from ciworker.harmless import harmless
from ciworker.settings import Settings
from ciworker.store.audit import Action, Deed
from ciworker.store.lock import StoreLock
from ciworker.store.session import Database
from ciworker.store.tokens import Role, Token, Tokens, id_of
from ciworker.units import CENTURY, parse_age

RoleName = Literal["read", "submit", "admin"]
T = TypeVar("T")


class TokenBook(Protocol):
    def create(self, name: str, role: RoleName, expires_in: float | None) -> str:
        """The new token's text; it is good for so many seconds, or until it is revoked."""

    def list(self) -> list[dict[str, Any]]: ...

    def revoke(self, token_id: str) -> None: ...


def token_book(settings: Settings) -> TokenBook:
    """The running worker's, if one holds the store; else the store's own."""
    if not settings.database.exists():
        return StoredTokens(settings)
    try:
        with StoreLock(settings.data_dir, "ciworker token"):
            return StoredTokens(settings)
    except StoreRefused:
        return ServedTokens(settings)


def locked_out(settings: Settings, token_id: str) -> str | None:
    """What to say to who revoked this token, if it is the one of the commands on this machine."""
    path = settings.admin_token
    try:
        own = id_of(path.read_text().strip())
    except (OSError, UnicodeDecodeError):
        return None
    if own != token_id:
        return None
    return (
        f"warning: it is the token in {path}, with which ciworker and ciclient ask the worker on "
        "this machine: restart the worker, which writes a new one there"
    )


def lifetime(text: str) -> float:
    """Seconds of `12h` or `30d`.

    Raises:
        ValueError: it is no duration, none at all, or longer than a century.
    """
    seconds = parse_age(text)
    if not 0 < seconds <= CENTURY:
        raise ValueError(f"a token cannot live for {text}: write 12h or 30d")
    return seconds


def login_link(settings: Settings) -> str:
    """A one-time link of the worker that runs; there is none without one, which keeps the codes.

    Raises:
        Unreachable: there is no worker.
    """
    return str(call(settings, "POST", "/login-codes", {})["url"])


class ServedTokens:
    """Through the API of the worker that runs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def create(self, name: str, role: RoleName, expires_in: float | None) -> str:
        wanted = {"name": name, "role": role, "expires_in": expires_in}
        made = call(self._settings, "POST", "/tokens", wanted)
        return str(made["token"])

    def list(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = call(self._settings, "GET", "/tokens")["items"]
        return items

    def revoke(self, token_id: str) -> None:
        call(self._settings, "DELETE", f"/tokens/{token_id}")


class StoredTokens:
    """In the store of a worker that is stopped, under its lock."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def create(self, name: str, role: RoleName, expires_in: float | None) -> str:
        now = datetime.now(UTC)
        expires_at = None if expires_in is None else now + timedelta(seconds=expires_in)
        deed = _by_hand(now, Action.CREATE_TOKEN, detail=f"{name} ({role})")
        _, text = self._with(
            lambda tokens: tokens.create(
                name, Role[role.upper()], now, expires_at=expires_at, deed=deed
            )
        )
        return text

    def list(self) -> list[dict[str, Any]]:
        return [_shown(token) for token in self._with(lambda tokens: tokens.list())]

    def revoke(self, token_id: str) -> None:
        now = datetime.now(UTC)
        deed = _by_hand(now, Action.REVOKE_TOKEN, token_id)
        self._with(lambda tokens: tokens.revoke(token_id, now, deed=deed))

    def _with(self, work: Callable[[Tokens], Awaitable[T]]) -> T:
        self._settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        return of_store(self._settings, "ciworker token", lambda database: work(Tokens(database)))


def of_store(settings: Settings, who: str, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do this with the store of a worker that is stopped, under its lock.

    Raises:
        StoreRefused: a worker holds it.
    """

    async def opened() -> T:
        database = await Database.open(settings.database)
        try:
            return await work(database)
        finally:
            await database.close()

    with StoreLock(settings.data_dir, who):
        return asyncio.run(opened())


def _by_hand(at: datetime, action: Action, subject: str = "", detail: str = "") -> Deed:
    """Whoever may write the data folder does it."""
    by = f"user {os.getuid()}"
    return Deed(at, action, by=by, address="local", subject=subject, detail=detail)


def _shown(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created_at": shown_at(token.created_at),
        "revoked_at": shown_at(token.revoked_at),
        "expires_at": shown_at(token.expires_at),
        "last_used_at": shown_at(token.last_used_at),
    }


def shown_at(at: datetime | None) -> str | None:
    """As the API has it."""
    return None if at is None else at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def told(item: Mapping[str, Any], now: datetime) -> str:
    """A token of the list, in a line."""
    state = "valid"
    if item["revoked_at"]:
        state = f"revoked {item['revoked_at']}"
    elif item["expires_at"]:
        over = datetime.fromisoformat(item["expires_at"]) <= now
        state = f"{'expired' if over else 'until'} {item['expires_at']}"
    used = f"last used {item['last_used_at']}" if item["last_used_at"] else "never used"
    return f"{item['id']}  {item['role']:<6}  {harmless(item['name'])}  ({state}, {used})"

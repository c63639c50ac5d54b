"""Tokens, of the worker that runs or of a stopped one's store."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Literal, Protocol, TypeVar

from ciworker.cli.api import call
from ciworker.errors import StoreRefused
from ciworker.settings import Settings
from ciworker.store.lock import StoreLock
from ciworker.store.session import Database
from ciworker.store.tokens import Role, Token, Tokens

RoleName = Literal["read", "submit", "admin"]
T = TypeVar("T")


class TokenBook(Protocol):
    def create(self, name: str, role: RoleName) -> str:
        """The new token's text."""

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

    def create(self, name: str, role: RoleName) -> str:
        made = call(self._settings, "POST", "/tokens", {"name": name, "role": role})
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

    def create(self, name: str, role: RoleName) -> str:
        _, text = self._with(
            lambda tokens: tokens.create(name, Role[role.upper()], datetime.now(UTC))
        )
        return text

    def list(self) -> list[dict[str, Any]]:
        return [_shown(token) for token in self._with(lambda tokens: tokens.list())]

    def revoke(self, token_id: str) -> None:
        self._with(lambda tokens: tokens.revoke(token_id, datetime.now(UTC)))

    def _with(self, work: Callable[[Tokens], Awaitable[T]]) -> T:
        async def opened() -> T:
            database = await Database.open(self._settings.database)
            try:
                return await work(Tokens(database))
            finally:
                await database.close()

        self._settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with StoreLock(self._settings.data_dir, "ciworker token"):
            return asyncio.run(opened())


def _shown(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created_at": token.created_at.isoformat(timespec="milliseconds"),
        "revoked_at": token.revoked_at and token.revoked_at.isoformat(timespec="milliseconds"),
    }

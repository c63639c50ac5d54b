"""Access tokens: random, kept as SHA-256, compared in constant time."""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from ciworker.errors import Unknown
from ciworker.store.schema import TokenRow
from ciworker.store.session import Database

SECRET_BYTES = 32
_PREFIX = "ciw"


class Role(IntEnum):
    """What a token may do; each includes those below it."""

    READ = 1
    SUBMIT = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it may be shown: without its secret."""

    id: str
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None = None


class Tokens:
    """The tokens of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        role: Role,
        at: datetime,
        *,
        publish: Callable[[str], None] = lambda _text: None,
    ) -> tuple[Token, str]:
        """A new token and its text, which cannot be had again.

        Args:
            name: whose it is.
            role: what it may do.
            at: now.
            publish: gets the text before the token counts; if it raises, there is no token.
        """
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        text = f"{_PREFIX}_{token_id}_{secret}"
        row = TokenRow(
            id=token_id, name=name, role=role.label, digest=digest(secret), created_at=at
        )

        async def work(session: AsyncSession) -> None:
            session.add(row)
            await session.flush()
            publish(text)

        await self._database.write(work)
        return Token(token_id, name, role, at), text

    async def check(self, text: str) -> Token | None:
        """The token of this text, if it is one and is not revoked."""
        if not text.isascii():
            return None
        prefix, _, rest = text.partition("_")
        token_id, _, secret = rest.partition("_")
        if prefix != _PREFIX or not secret:
            return None
        row = await self._database.first(select(TokenRow).where(col(TokenRow.id) == token_id))
        if row is None or row.revoked_at is not None:
            return None
        return token_of(row) if hmac.compare_digest(row.digest, digest(secret)) else None

    async def list(self) -> list[Token]:
        """Oldest first, the revoked ones too."""
        query = select(TokenRow).order_by(col(TokenRow.created_at))
        return [token_of(row) for row in await self._database.rows(query)]

    async def revoke(self, token_id: str, at: datetime) -> None:
        """From now on the token opens nothing.

        Raises:
            Unknown: there is no such token that is not revoked.
        """
        statement = (
            update(TokenRow)
            .where(col(TokenRow.id) == token_id, col(TokenRow.revoked_at).is_(None))
            .values(revoked_at=at)
        )

        async def work(session: AsyncSession) -> int:
            return (await session.exec(statement)).rowcount

        if not await self._database.write(work):
            raise Unknown(f"there is no token {token_id!r}: see `ciworker token list`")


def digest(secret: str) -> bytes:
    """What is kept of a secret: 32 bytes. It is random, so no salt is needed."""
    return hashlib.sha256(secret.encode()).digest()


def token_of(row: TokenRow) -> Token:
    """The row as it may be shown."""
    return Token(row.id, row.name, Role[row.role.upper()], row.created_at, row.revoked_at)

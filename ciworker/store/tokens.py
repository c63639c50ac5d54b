"""Access tokens: random, kept as SHA-256, compared in constant time."""

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

from sqlalchemy import update
from sqlmodel import Session, col, select

from ciworker.errors import Expired, Unknown
from ciworker.store import audit
from ciworker.store.audit import Deed
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
    """A token as it may be shown: without its secret.

    last_used_at: as it was last stored, at most a minute late.
    """

    id: str
    name: str
    role: Role
    created_at: datetime
    revoked_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None

    def is_over(self, at: datetime) -> bool:
        """Whether it opens nothing any more, for either reason."""
        expired = self.expires_at is not None and self.expires_at <= at
        return expired or self.revoked_at is not None


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
        expires_at: datetime | None = None,
        deed: Deed | None = None,
        publish: Callable[[str], None] = lambda _text: None,
    ) -> tuple[Token, str]:
        """A new token and its text, which cannot be had again.

        Args:
            name: whose it is.
            role: what it may do.
            at: now.
            expires_at: from when on it opens nothing; None: it stays good until it is revoked.
            deed: told by the audit history, with the token's id.
            publish: gets the text before the token counts; if it raises, there is no token.
        """
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)
        text = f"{_PREFIX}_{token_id}_{secret}"
        row = TokenRow(
            id=token_id,
            name=name,
            role=role.label,
            digest=digest(secret),
            created_at=at,
            expires_at=expires_at,
        )

        def work(session: Session) -> None:
            session.add(row)
            session.flush()
            if deed is not None:
                audit.write(session, replace(deed, subject=token_id))
            publish(text)

        await self._database.write(work)
        return Token(token_id, name, role, at, expires_at=expires_at), text

    async def check(self, text: str, at: datetime) -> Token | None:
        """The token of this text, if it is one and is not revoked.

        Raises:
            Expired: it was one until some time ago.
        """
        if not text.isascii():
            return None
        token_id, secret = _parts(text)
        if not secret:
            return None
        row = await self._database.first(select(TokenRow).where(col(TokenRow.id) == token_id))
        if row is None or row.revoked_at is not None:
            return None
        if not hmac.compare_digest(row.digest, digest(secret)):
            return None
        if row.expires_at is not None and row.expires_at <= at:
            raise Expired(f"the token expired at {row.expires_at:%Y-%m-%d %H:%M} UTC")
        return token_of(row)

    async def list(self) -> list[Token]:
        """Oldest first, the revoked ones too."""
        query = select(TokenRow).order_by(col(TokenRow.created_at))
        return [token_of(row) for row in await self._database.rows(query)]

    async def revoke(self, token_id: str, at: datetime, *, deed: Deed | None = None) -> None:
        """From now on the token opens nothing; deed: told by the audit history.

        Raises:
            Unknown: there is no such token that is not revoked.
        """
        statement = (
            update(TokenRow)
            .where(col(TokenRow.id) == token_id, col(TokenRow.revoked_at).is_(None))
            .values(revoked_at=at)
        )

        def work(session: Session) -> int:
            revoked = session.exec(statement).rowcount
            audit.write(session, deed if revoked else None)
            return revoked

        if not await self._database.write(work):
            raise Unknown(f"there is no token {token_id!r}: see `ciworker token list`")

    async def used(self, uses: Mapping[str, datetime]) -> None:
        """Store when tokens were last used, by id."""

        def work(session: Session) -> None:
            for token_id, at in uses.items():
                by_id = update(TokenRow).where(col(TokenRow.id) == token_id)
                session.exec(by_id.values(last_used_at=at))

        await self._database.write(work, durable=False)


def id_of(text: str) -> str:
    """The id in a token's text; empty where it is no token's."""
    return _parts(text)[0]


def _parts(text: str) -> tuple[str, str]:
    """Id and secret; both empty where the text is no token's."""
    prefix, _, rest = text.partition("_")
    token_id, _, secret = rest.partition("_")
    return (token_id, secret) if prefix == _PREFIX else ("", "")


def digest(secret: str) -> bytes:
    """What is kept of a secret: 32 bytes. It is random, so no salt is needed."""
    return hashlib.sha256(secret.encode()).digest()


def token_of(row: TokenRow) -> Token:
    """The row as it may be shown."""
    return Token(
        id=row.id,
        name=row.name,
        role=Role[row.role.upper()],
        created_at=row.created_at,
        revoked_at=row.revoked_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
    )

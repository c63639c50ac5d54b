"""Sessions of people in a browser: random, kept as SHA-256, each bound to a token.

A session may do what its token may, and is dead once that is revoked. One that was made through
another session lives no longer than that one, and none longer than its token.
"""

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlalchemy import Delete, delete
from sqlmodel import Session as DatabaseSession
from sqlmodel import col, select

from ciworker.store import audit
from ciworker.store.audit import Deed
from ciworker.store.schema import SessionRow, TokenRow
from ciworker.store.session import Database
from ciworker.store.tokens import SECRET_BYTES, Token, digest, token_of

LIFETIME = timedelta(days=30)
MOST_SESSIONS = 50  # of one token at a time; a new one replaces the oldest


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is good, without its secret."""

    id: str
    token: Token
    expires_at: datetime


class Sessions:
    """The sessions of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(
        self,
        token_id: str,
        at: datetime,
        parent: str | None = None,
        *,
        deed: Deed | None = None,
    ) -> str | None:
        """The text of a new session, which cannot be had again.

        Args:
            token_id: whose it is.
            at: now.
            parent: the id of the session through which it is made: it ends when that does.
            deed: told by the audit history, with the session's id.

        Returns:
            None if the token or the parent is over.
        """
        own_id, secret = secrets.token_hex(6), secrets.token_urlsafe(SECRET_BYTES)

        def work(session: DatabaseSession) -> bool:
            session.exec(_expired(at))
            row = session.get(TokenRow, token_id)
            if row is None or (token := token_of(row)).is_over(at):
                return False
            expires_at = _end_of(session, token, parent, at)
            if expires_at is None:
                return False
            session.exec(_surplus(token_id, parent))
            session.add(
                SessionRow(
                    id=own_id,
                    token_id=token_id,
                    parent=parent,
                    digest=digest(secret),
                    created_at=at,
                    expires_at=expires_at,
                )
            )
            if deed is not None:
                audit.write(session, replace(deed, subject=own_id))
            return True

        return f"{own_id}_{secret}" if await self._database.write(work) else None

    async def check(self, text: str, at: datetime) -> Session | None:
        """The session of this text, if it lives and its token is valid."""
        session_id, _, secret = text.partition("_")
        if not text.isascii() or not secret:
            return None
        query = (
            select(SessionRow, TokenRow)
            .join(TokenRow, col(TokenRow.id) == col(SessionRow.token_id))
            .where(col(SessionRow.id) == session_id)
        )
        found = await self._database.first(query)
        if found is None or not hmac.compare_digest(found[0].digest, digest(secret)):
            return None
        session, token = found[0], token_of(found[1])
        if session.expires_at <= at or token.is_over(at):
            return None
        return Session(session.id, token, session.expires_at)

    async def end(
        self, text: str, at: datetime, deed: Callable[[Session], Deed] | None = None
    ) -> None:
        """From now on the session opens nothing, nor does any that was made through it.

        A text that opens nothing now ends nothing. deed: told by the audit history.
        """
        ending = await self.check(text, at)
        if ending is None:
            return
        statement = delete(SessionRow).where(col(SessionRow.id) == ending.id)
        told = deed(ending) if deed else None

        def work(session: DatabaseSession) -> None:
            session.exec(statement)
            audit.write(session, told)

        await self._database.write(work)


def _end_of(
    session: DatabaseSession, token: Token, parent: str | None, at: datetime
) -> datetime | None:
    """When a session that begins now expires; None if its parent is over."""
    latest = min(at + LIFETIME, token.expires_at or at + LIFETIME)
    if parent is None:
        return latest
    row = session.get(SessionRow, parent)
    return min(latest, row.expires_at) if row else None


def _expired(at: datetime) -> Delete:
    return delete(SessionRow).where(col(SessionRow.expires_at) <= at)


def _surplus(token_id: str, parent: str | None) -> Delete:
    """Ends the token's oldest sessions, to have room for one more; not the parent of that one."""
    newest = select(SessionRow.id).where(col(SessionRow.token_id) == token_id)
    newest = newest.order_by(
        (col(SessionRow.id) == parent).desc(), col(SessionRow.created_at).desc()
    )
    return delete(SessionRow).where(col(SessionRow.id).in_(newest.offset(MOST_SESSIONS - 1)))

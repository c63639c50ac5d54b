"""Who did what, and from where: written with what it tells of, where that is a transaction.

It holds names, ids and addresses, no secret and nothing that a job printed. A thing that is not in
the database is written down before it is done: what cannot be written down is not done.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import insert, literal, tuple_
from sqlmodel import Session, col, select

from ciworker.store.schema import AuditRow, table
from ciworker.store.session import Database

MOST_KEPT = 1_000_000  # deeds: of those that are too many the oldest go, however young

_AUDIT = table(AuditRow)


class Action(StrEnum):
    """What can be done."""

    SUBMIT = "submit"
    RETRY = "retry"
    CANCEL = "cancel"
    RESYNC = "resync"
    DRAIN = "drain"
    UNDO_DRAIN = "undo drain"
    POOL_UP = "pool up"
    POOL_DOWN = "pool down"
    REMOVE_ENVIRONMENT = "remove environment"
    PRUNE_ENVIRONMENTS = "prune environments"
    CREATE_TOKEN = "create token"  # noqa: S105 # names a deed, is no token
    REVOKE_TOKEN = "revoke token"  # noqa: S105 # names a deed, is no token
    TEST_WEBHOOKS = "test webhooks"
    REDELIVER = "redeliver"
    LOG_IN = "log in"
    LOG_OUT = "log out"


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that somebody did.

    token_id: of the token that was used, None on the worker's own machine. by: that token's name.
    address: where it came from; `local`, `unix`. subject: the id of what it was done to.
    """

    at: datetime
    action: Action
    by: str
    address: str
    token_id: str | None = None
    subject: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A deed, and its number."""

    id: int
    deed: Deed


def write(session: Session, deed: Deed | None) -> None:
    """Write it within a transaction, if there is one."""
    if deed is not None:
        session.connection().execute(insert(_AUDIT), asdict(deed))


class Audit:
    """The deeds that one database tells of."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, deed: Deed) -> None:
        """Write it in a transaction of its own."""
        await self._database.write(lambda session: write(session, deed))

    async def page(
        self,
        *,
        limit: int,
        since: datetime | None = None,
        before: tuple[datetime, int] | None = None,
    ) -> Sequence[Recorded]:
        """Newest first.

        Args:
            limit: at most so many.
            since: none that are older.
            before: only those after this one (its instant and number) in that order.
        """
        query = select(AuditRow).order_by(col(AuditRow.at).desc(), col(AuditRow.id).desc())
        if since is not None:
            query = query.where(col(AuditRow.at) >= since)
        if before is not None:
            place = tuple_(col(AuditRow.at), col(AuditRow.id))
            at, number = before
            query = query.where(place < tuple_(literal(at, _AUDIT.c.at.type), number))
        return [_recorded(row) for row in await self._database.rows(query.limit(limit))]


def _recorded(row: AuditRow) -> Recorded:
    assert row.id is not None
    deed = Deed(
        at=row.at,
        action=Action(row.action),
        by=row.by,
        address=row.address,
        token_id=row.token_id,
        subject=row.subject,
        detail=row.detail,
    )
    return Recorded(row.id, deed)

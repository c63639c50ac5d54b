"""Facts about the store itself."""

import secrets

from sqlalchemy import delete
from sqlmodel import Session, col, select

from ciworker.store.schema import MetaRow
from ciworker.store.session import Database

_INSTANCE = "instance"
_LAST_EVENT = "last_event"
_POOL = "pool"
_DOWN = "down"


async def instance_id(database: Database, wanted: str | None) -> str:
    """The random name that makes containers ours: made once, kept with the store.

    Args:
        database: whose instance.
        wanted: the operator's own choice, which is then kept.
    """

    def work(session: Session) -> str:
        row = session.get(MetaRow, _INSTANCE)
        value = wanted or (row.value if row else secrets.token_hex(8))
        if row is None or row.value != value:
            session.merge(MetaRow(key=_INSTANCE, value=value))
        return value

    return await database.write(work)


class LastEvent:
    """The engine's last event, as text; none where the engine is not known to remember any."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self) -> str | None:
        """What was put last."""
        return await self._database.first(
            select(MetaRow.value).where(col(MetaRow.key) == _LAST_EVENT)
        )

    async def put(self, event: str | None) -> None:
        """Without an fsync of its own: what the event led to brings that about."""

        def work(session: Session) -> None:
            if event is None:
                connection = session.connection()
                connection.execute(delete(MetaRow).where(col(MetaRow.key) == _LAST_EVENT))
            else:
                session.merge(MetaRow(key=_LAST_EVENT, value=event))

        await self._database.write(work, durable=False)


class PoolIntent:
    """Whether the operator wants the pool down; up, where nothing was said."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def is_down(self) -> bool:
        query = select(MetaRow.value).where(col(MetaRow.key) == _POOL)
        return await self._database.first(query) == _DOWN

    async def put(self, *, down: bool) -> None:
        """Raises StoreUnavailable: nothing was changed."""

        def work(session: Session) -> None:
            session.merge(MetaRow(key=_POOL, value=_DOWN if down else "up"))

        await self._database.write(work)

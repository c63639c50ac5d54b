"""Facts about the store itself."""

import secrets

from sqlmodel.ext.asyncio.session import AsyncSession

from ciworker.store.schema import MetaRow
from ciworker.store.session import Database

_INSTANCE = "instance"


async def instance_id(database: Database, wanted: str | None) -> str:
    """The random name that makes containers ours: made once, kept with the store.

    Args:
        database: whose instance.
        wanted: the operator's own choice, which is then kept.
    """

    async def work(session: AsyncSession) -> str:
        row = await session.get(MetaRow, _INSTANCE)
        value = wanted or (row.value if row else secrets.token_hex(8))
        if row is None or row.value != value:
            await session.merge(MetaRow(key=_INSTANCE, value=value))
        return value

    return await database.write(work)

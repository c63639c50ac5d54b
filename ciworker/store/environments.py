"""Environments: what is known of each, however often it was built, used and removed.

The controller writes an environment's row, one worker at a time; how often it was used is counted
beside that, by the jobs that start in it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, Row, delete, update
from sqlalchemy import select as sql_select
from sqlalchemy.dialects.sqlite import insert
from sqlmodel import Session, col

from ciworker.domain.environment import Environment, EnvironmentStatus
from ciworker.store.kept import Kept
from ciworker.store.schema import EnvironmentRow, microseconds, table
from ciworker.store.session import Database

KEPT = 256  # environments kept as they were last written

_ENVIRONMENTS = table(EnvironmentRow)


class Environments:
    """The environments of one database; those looked at last are kept, as jobs are."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept = Kept[Environment](KEPT)

    async def get(self, key: str) -> Environment | None:
        """The environment as it was last committed."""
        return await self._kept.get(key, self._read)

    async def all(self) -> list[Environment]:
        """Newest created first."""
        query = sql_select(_ENVIRONMENTS).order_by(col(EnvironmentRow.created_at).desc())
        return [_environment(row) for row in await self._database.table(query)]

    async def of_project(self, project: str) -> list[Environment]:
        """Those made for a project, newest build first; those that were never built come last."""
        query = (
            sql_select(_ENVIRONMENTS)
            .where(col(EnvironmentRow.project) == project)
            .order_by(col(EnvironmentRow.build).desc())  # ids only grow
        )
        return [_environment(row) for row in await self._database.table(query)]

    async def recently_used(self, limit: int) -> Mapping[str, str]:
        """Images that jobs can start from, by key, those used last first; at most so many.

        Left out are those that belong to one job alone, and those that are to be removed.
        """
        query = (
            sql_select(_ENVIRONMENTS)
            .where(
                col(EnvironmentRow.layer).is_not(None),
                col(EnvironmentRow.single).is_(False),
                col(EnvironmentRow.removal).is_(None),
            )
            .order_by(col(EnvironmentRow.last_used_at).desc(), col(EnvironmentRow.key))
            .limit(limit)
        )
        return {row.key: row.layer for row in await self._database.table(query)}

    async def add(self, environment: Environment) -> None:
        """Store a new one, unless its key is known: jobs come to need it at the same time."""
        statement = insert(_ENVIRONMENTS).values(**asdict(environment))
        await self._write(environment.key, statement.on_conflict_do_nothing())

    async def change(self, believed: Environment, **changes: Any) -> Environment | None:
        """Write these columns. None: its status or build is not as believed, look again."""
        statement = (
            update(_ENVIRONMENTS)
            .where(
                col(EnvironmentRow.key) == believed.key,
                col(EnvironmentRow.status) == believed.status.value,
                col(EnvironmentRow.build).is_not_distinct_from(believed.build),
            )
            .values(**changes)
            .returning(*_ENVIRONMENTS.columns)
        )

        def work(session: Session) -> Environment | None:
            row = session.connection().execute(statement).first()
            return _environment(row) if row else None

        try:
            return await self._database.write(work)
        finally:
            self._kept.drop(believed.key)

    async def used(self, key: str, at: datetime, *, hit: bool) -> None:
        """Count that a job starts in it, which also keeps it from being removed.

        hit: it was there already; else the job waited for it. The count costs no fsync: of the
        last ones some may be lost with the machine.
        """
        try:
            await self._database.insert(
                "UPDATE environment SET hits = hits + ?, misses = misses + ?, last_used_at = ?, "
                "removal = NULL WHERE key = ?",
                [hit, not hit, microseconds(at), key],
            )
        finally:
            self._kept.drop(key)

    async def forget(self, key: str) -> None:
        """Delete the row, if there is one."""
        statement = delete(_ENVIRONMENTS).where(col(EnvironmentRow.key) == key)
        await self._write(key, statement)

    async def _write(self, key: str, statement: Executable) -> None:
        def work(session: Session) -> None:
            session.connection().execute(statement)

        try:
            await self._database.write(work)
        finally:
            self._kept.drop(key)

    async def _read(self, key: str) -> Environment | None:
        query = sql_select(_ENVIRONMENTS).where(col(EnvironmentRow.key) == key)
        found = await self._database.table(query)
        return _environment(found[0]) if found else None


def _environment(row: Row[Any]) -> Environment:
    typed = {"status": EnvironmentStatus(row.status), "commands": tuple(row.commands)}
    return Environment(**{**row._mapping, **typed})

"""One writer connection, a few readers, and what SQLite needs to be asked for.

Before 3.51.3 a WAL reset can corrupt a file when two connections write or checkpoint at once, so
one connection writes and only it checkpoints. Transactions begin IMMEDIATE: with the driver's own
default, read-then-write loses updates (engine-facts, rules 26-28). What is acknowledged is
committed with `synchronous=FULL`; log lines are not: they cost no fsync of their own.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
from sqlmodel.ext.asyncio.session import AsyncSession

from ciworker.errors import StoreRefused, StoreUnavailable
from ciworker.store.migrations import migrate

BUSY_TIMEOUT = 5.0
READERS = 4


class Database:
    """An open database file."""

    def __init__(self, writer: AsyncEngine, readers: AsyncEngine, held: AsyncConnection) -> None:
        self._writer = writer
        self._readers = readers
        self._held = held
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open or make the file and migrate it.

        Raises:
            StoreRefused: it comes from a later release or is no database.
            StoreUnavailable: it is locked, unreadable, or its disk is full.
        """
        writer = _engine(path, size=1, begin="BEGIN IMMEDIATE")
        readers = _engine(path, size=READERS, begin="BEGIN")
        try:
            with translated():
                held = await writer.connect()
                async with held.begin():
                    await migrate(held)
        except BaseException:
            await writer.dispose()
            await readers.dispose()
            raise
        return cls(writer, readers, held)

    async def close(self) -> None:
        """Fold the WAL into the file and end the driver's threads."""
        async with self._lock:
            await self._held.close()
        await self._readers.dispose()
        await self._writer.dispose()

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one state of the database and changes nothing."""
        with translated():
            async with AsyncSession(self._readers, expire_on_commit=False) as session:
                yield session

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncSession]:
        """The write transaction; durable on disk when the block ends without an error."""
        async with self._lock:
            with translated():
                await self._pragma("synchronous = FULL")
                try:
                    async with (
                        AsyncSession(self._held, expire_on_commit=False) as session,
                        session.begin(),
                    ):
                        yield session
                finally:
                    await self._pragma("synchronous = NORMAL")

    async def insert(self, statement: str, values: Sequence[Any]) -> None:
        """One statement, one transaction, one hop to the driver's thread, no fsync."""
        async with self._lock:
            with translated():
                raw = await self._held.get_raw_connection()
                assert raw.driver_connection is not None
                cursor = await raw.driver_connection.execute(statement, values)
                await cursor.close()

    async def check_integrity(self) -> str:
        """What SQLite finds wrong with the file; empty when it is whole."""
        async with self.reading() as session:
            found = (await session.execute(text("PRAGMA quick_check"))).scalars().all()
        return "" if found == ["ok"] else "; ".join(found)

    async def _pragma(self, pragma: str) -> None:
        raw = await self._held.get_raw_connection()
        assert raw.driver_connection is not None
        cursor = await raw.driver_connection.execute(f"PRAGMA {pragma}")
        await cursor.close()


def _engine(path: Path, *, size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT, "isolation_level": None},
    )
    writes = begin != "BEGIN"

    def on_connect(connection: Any, _record: object) -> None:  # the driver's, adapted
        cursor = connection.cursor()
        for pragma in _pragmas(writes=writes):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Any) -> None:  # SQLAlchemy's own, sync
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine


def _pragmas(*, writes: bool) -> Iterator[str]:
    yield "foreign_keys = ON"
    if writes:
        yield "journal_mode = WAL"
        yield "synchronous = NORMAL"
    else:
        yield "query_only = ON"


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """The driver's exceptions as this project's."""
    try:
        yield
    except DBAPIError as error:
        raise _translate(error.orig or error) from error
    except sqlite3.Error as error:
        raise _translate(error) from error


def _translate(error: BaseException) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        return StoreUnavailable(f"the database cannot be used right now: {error}")
    if isinstance(error, sqlite3.IntegrityError):
        return StoreRefused(f"the database refuses: {error}")
    return StoreRefused(f"the database is damaged or none: {error}")

"""One writer connection, a few readers, and what SQLite needs to be asked for.

Before 3.51.3 a WAL reset can corrupt a file when two connections write or checkpoint at once, so
one connection writes and only it checkpoints. Transactions begin IMMEDIATE: with the driver's own
default, read-then-write loses updates (engine-facts, rules 26-28). What is acknowledged is
committed with `synchronous=FULL`; log lines are not: they cost no fsync of their own.

A transaction is a function that a thread runs from its begin to its end: one hop there and back.
Through an async session each statement takes one, which costs more than SQLite does. It is never
cut off: a caller that is cancelled waits for it, which is short.
"""

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar, TypeVarTuple, overload

import aiosqlite
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Executable,
    QueuePool,
    Row,
    StaticPool,
    create_engine,
    event,
)
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session
from sqlmodel.sql.expression import Select, SelectOfScalar

from ciworker.errors import Invalid, StoreRefused, StoreUnavailable
from ciworker.metrics import Metrics, StoreMetrics
from ciworker.store.lock import writers_of
from ciworker.store.migrations import migrate

BUSY_TIMEOUT = 5.0  # seconds for another process's lock
TURN_TIMEOUT = 10.0  # seconds until a connection of our own is free
READERS = 4
ROOM = 2**20  # bytes, more than SQLite needs to begin
CACHE = 512  # KiB a connection; behind it stands the system's own, which all share
WAL_LIMIT = 8 * 2**20  # bytes that the WAL keeps once it is folded into the file

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Database:
    """An open database file."""

    def __init__(self, writer: "Writer", readers: "Readers", metrics: StoreMetrics) -> None:
        self._writer = writer
        self._readers = readers
        self._metrics = metrics
        self._writes = asyncio.Lock()
        self._reads = asyncio.Semaphore(READERS)

    @classmethod
    async def open(cls, path: Path, metrics: StoreMetrics | None = None) -> Self:
        """Open or make the file and migrate it.

        Args:
            path: of the file.
            metrics: where commits are timed.

        Raises:
            StoreRefused: it comes from a later release or is no database.
            StoreUnavailable: it is locked, unreadable, or its disk is full.
        """
        try:
            writer = await Writer.open(path)
        except StoreUnavailable as error:
            raise _explained(error, path) from error
        return cls(writer, Readers(path), metrics or Metrics().store)

    async def close(self) -> None:
        """Fold the WAL into the file and end the driver's threads."""
        await _to_its_end(self._close())

    async def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` on one state of the database, in a thread; it can change nothing."""
        async with _turn(self._reads):
            return await _to_its_end(self._readers.run(work))

    @overload
    async def rows(self, query: SelectOfScalar[T]) -> Sequence[T]: ...
    @overload
    async def rows(self, query: "Select[*Ts]") -> Sequence[tuple[*Ts]]: ...
    async def rows(self, query: Any) -> Sequence[Any]:
        """All that one query finds."""

        def work(session: Session) -> Sequence[Any]:
            found: Sequence[Any] = session.exec(query).all()
            return found

        return await self.read(work)

    async def table(self, query: Executable) -> Sequence[Row[Any]]:
        """All rows of a query over columns: without entities, at a third of their cost."""

        return await self.read(lambda session: session.connection().execute(query).all())

    @overload
    async def first(self, query: SelectOfScalar[T]) -> T | None: ...
    @overload
    async def first(self, query: "Select[*Ts]") -> tuple[*Ts] | None: ...
    async def first(self, query: Any) -> Any:
        """The first row that one query finds, if any."""
        found = await self.rows(query.limit(1))
        return found[0] if found else None

    async def write(
        self,
        work: Callable[[Session], T],
        committed: Callable[[T], None] | None = None,
        *,
        durable: bool = True,
    ) -> T:
        """Run `work` in the write transaction; durable on disk when this returns.

        A caller that is cancelled hears of it once the transaction is over, either way.

        Args:
            work: what to do, in the driver's thread; if it raises, nothing of it is kept.
            committed: called with its result after the commit, whatever becomes of the caller; in
                the caller's thread.
            durable: else no fsync of its own; for upkeep, which would be done again.
        """
        measured = self._metrics.state if durable else self._metrics.upkeep
        async with _turn(self._writes):
            with measured.time():
                return await _to_its_end(self._commit(work, committed, durable=durable))

    async def insert(self, statement: str, values: Sequence[Any]) -> None:
        """One statement, one transaction, no fsync."""
        async with _turn(self._writes):
            with self._metrics.log.time():
                await _to_its_end(self._writer.execute(statement, values))

    async def _commit(
        self, work: Callable[[Session], T], committed: Callable[[T], None] | None, *, durable: bool
    ) -> T:
        result = await self._writer.run(work, durable=durable)
        if committed is not None:
            committed(result)
        return result

    async def _close(self) -> None:
        async with self._writes:
            self._readers.close()
            await self._writer.close()  # the last one: it folds the WAL


class _Driver(aiosqlite.Connection):
    """With the way into its thread that its own calls take, each for one statement."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=1)
        self._thread.daemon = True  # a process that fails would wait for it

    async def call(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        in_thread: Callable[..., Awaitable[T]] = self._execute
        return await in_thread(work, *arguments)


class Writer:
    """The connection that writes. Whoever uses it waits for its turn first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._driver = _Driver(self._connect)
        self._raw: sqlite3.Connection
        self._held: Connection

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Raises as `Database.open` does."""
        writer = cls(path)
        await writer._driver
        try:
            await writer._driver.call(writer._begin)
        except BaseException:
            await writer.close()
            raise
        return writer

    async def close(self) -> None:
        await self._driver.close()

    async def run(self, work: Callable[[Session], T], *, durable: bool) -> T:
        """Run `work` in a transaction."""
        return await self._driver.call(self._durably if durable else self._transaction, work)

    async def execute(self, statement: str, values: Sequence[Any]) -> None:
        """One statement outside of any transaction."""
        with translated():
            await self._driver.execute_fetchall(statement, values)  # no hop for a cursor

    # in the driver's thread

    def _connect(self) -> sqlite3.Connection:
        with translated():
            self._raw = sqlite3.connect(self._path, **_connect_args())
        return self._raw

    def _begin(self) -> None:
        engine = create_engine("sqlite://", creator=lambda: self._raw, poolclass=StaticPool)
        _prepare(engine, "BEGIN IMMEDIATE")
        with translated(), contextlib.ExitStack() as undo:
            # For good: anew each time it would cost as much as a query.
            self._held = undo.enter_context(engine.connect())
            with self._held.begin():
                migrate(self._held)
            undo.pop_all()

    def _transaction(self, work: Callable[[Session], T]) -> T:
        with (
            translated(),
            Session(self._held, expire_on_commit=False) as session,
            session.begin(),
        ):
            return work(session)

    def _durably(self, work: Callable[[Session], T]) -> T:
        self._pragma("synchronous = FULL")
        try:
            return self._transaction(work)
        finally:
            self._pragma("synchronous = NORMAL")

    def _pragma(self, text: str) -> None:
        with translated():
            self._raw.execute(f"PRAGMA {text}")


class Readers:
    """The connections that read, each in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            poolclass=QueuePool,
            pool_size=READERS,
            max_overflow=0,
            connect_args={**_connect_args(), "check_same_thread": False},
        )
        _prepare(self._engine, "BEGIN")
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="reader")

    async def run(self, work: Callable[[Session], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def close(self) -> None:
        """Blocks until the last one is over; its caller was cancelled, if there is one."""
        self._threads.shutdown()
        self._engine.dispose()

    def _run(self, work: Callable[[Session], T]) -> T:
        with translated(), Session(self._engine, expire_on_commit=False) as session:
            return work(session)


def _explained(error: StoreUnavailable, path: Path) -> StoreUnavailable:
    """Nobody but a worker writes to its store: say who or what keeps it from that."""
    others, told = writers_of(path), f"{path} cannot be opened: {error}"
    if others:
        told += f"; {others} holds it: stop that, then start again"
    elif shutil.disk_usage(path.parent).free < ROOM:
        told += f"; the disk at {path.parent} is full: free some of it, then start again"
    return StoreUnavailable(told)


@contextlib.asynccontextmanager
async def _turn(at: asyncio.Lock | asyncio.Semaphore) -> AsyncIterator[None]:
    """Wait for a connection to be free, not for ever; until then a cancellation is heard."""
    try:
        async with asyncio.timeout(TURN_TIMEOUT):
            await at.acquire()
    except TimeoutError:
        raise StoreUnavailable(
            f"the database cannot be used right now: busy for {TURN_TIMEOUT:g} s"
        ) from None
    try:
        yield
    finally:
        at.release()


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; a cancellation is raised when it is over, not before."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # the cancellation is what the caller hears
        raise


def _connect_args() -> dict[str, Any]:
    return {"timeout": BUSY_TIMEOUT, "isolation_level": None}


def _prepare(engine: Engine, begin: str) -> None:
    """Each of its connections, and each of its transactions."""
    writes = begin != "BEGIN"

    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in _pragmas(writes=writes):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)


def _pragmas(*, writes: bool) -> Iterator[str]:
    yield "foreign_keys = ON"
    yield f"cache_size = -{CACHE}"
    if writes:
        yield "journal_mode = WAL"
        yield "synchronous = NORMAL"
        yield f"journal_size_limit = {WAL_LIMIT}"
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
    except (UnicodeEncodeError, OverflowError) as error:
        raise Invalid(f"the database cannot hold or look for such a value: {error}") from error


def _translate(error: BaseException) -> Exception:
    if isinstance(error, sqlite3.OperationalError):
        return StoreUnavailable(f"the database cannot be used right now: {error}")
    if isinstance(error, sqlite3.IntegrityError):
        return StoreRefused(f"the database refuses: {error}")
    return StoreRefused(f"the database is damaged or none: {error}")

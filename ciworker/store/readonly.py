"""A look at the store of a worker that is stopped: without its lock, without a migration.

It is opened read-only, so that whatever looks, a worker that starts meanwhile is not kept from it.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from ciworker.store.jobs import ACTIVE
from ciworker.store.migrations import FIRST_NAME, VERSION, check_origin
from ciworker.store.session import BUSY_TIMEOUT, translated


def active_jobs(database: Path) -> list[str]:
    """Ids of the jobs that start or run, as the store has it.

    Raises:
        StoreRefused: the file is damaged, no database, or no store that we know.
        StoreUnavailable: it cannot be read.
    """
    places = ", ".join("?" * len(ACTIVE))
    query = f"SELECT id FROM job WHERE status IN ({places}) ORDER BY id"  # noqa: S608 # constants
    with _opened(database) as connection:
        return [job_id for (job_id,) in connection.execute(query, [str(s) for s in ACTIVE])]


def damage_of(database: Path) -> str:
    """What SQLite finds wrong with the file; empty when it is whole.

    Raises:
        StoreRefused: it is too damaged to be looked at, no database, or no store that we know.
        StoreUnavailable: it cannot be read.
    """
    with _opened(database) as connection:
        found = [text for (text,) in connection.execute("PRAGMA quick_check")]
    return "" if found == ["ok"] else "; ".join(found)


@contextlib.contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with (
        translated(),
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as connection,
    ):
        (version,) = connection.execute(VERSION).fetchone()
        check_origin(version, *(connection.execute(FIRST_NAME).fetchone() or (None,)))
        yield connection

"""A copy of the database as it is at one moment, made while the worker goes on writing.

SQLite's backup, within one read transaction: what is committed meanwhile is not in the copy, and
keeps nobody waiting. Until the copy is there the WAL grows by what is committed.
"""

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ciworker.errors import StoreRefused, StoreUnavailable
from ciworker.files import sync_folder
from ciworker.store.session import BUSY_TIMEOUT

PAGES_PER_STEP = 256


@dataclass(frozen=True, slots=True)
class Backup:
    """What a copy holds. size: bytes of the file."""

    jobs: int
    lines: int
    size: int


def back_up(database: Path, target: Path) -> Backup:
    """Copy `database` to `target`, whole or not at all.

    Raises:
        StoreRefused: there is something at `target`, or the copy is damaged.
        StoreUnavailable: the database cannot be read.
        OSError: `target` cannot be written.
    """
    _refuse_existing(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with _translated(temporary.parent):
            _copy(database, temporary)
            held = _examined(temporary)
        os.fsync(descriptor)
        _publish(temporary, target)
    finally:
        os.close(descriptor)
        for leftover in ("", "-wal", "-shm", "-journal"):
            temporary.with_name(temporary.name + leftover).unlink(missing_ok=True)
    sync_folder(target.parent)
    return held


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise _there(target)


def _there(target: Path) -> StoreRefused:
    return StoreRefused(f"{target} exists, and is not overwritten: choose another name")


def _publish(temporary: Path, target: Path) -> None:
    """Give it its name; a link, unlike a rename, replaces nothing that came there meanwhile."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError as error:
        raise _there(target) from error
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        _refuse_existing(target)  # FAT and some network file systems have no links
        temporary.rename(target)


def _copy(database: Path, target: Path) -> None:
    """The source is opened read-only: it never checkpoints beside the worker."""
    uri = f"{database.absolute().as_uri()}?mode=ro"
    with (
        contextlib.closing(
            sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)
        ) as source,
        contextlib.closing(sqlite3.connect(target, isolation_level=None)) as copy,
    ):
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # from here on one state
        source.backup(copy, pages=PAGES_PER_STEP)
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()  # one file, without a WAL beside it


def _examined(copy: Path) -> Backup:
    """Raises StoreRefused if it is not whole."""
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        found = [text for (text,) in connection.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            raise StoreRefused(f"the copy is damaged, as the database is: {'; '.join(found)}")
        ((jobs,),) = connection.execute("SELECT count(*) FROM job")
        ((lines,),) = connection.execute("SELECT coalesce(sum(count), 0) FROM log_chunk")
    return Backup(jobs, lines, copy.stat().st_size)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(
            f"the backup broke off: {error}: is there room in {folder}, and may the database be "
            "read?"
        ) from error
    except sqlite3.DatabaseError as error:
        raise StoreRefused(f"the database is damaged or none: {error}") from error

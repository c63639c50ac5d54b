"""One active worker per store: a lock on a file that says who holds it."""

import contextlib
import errno
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Self

from ciworker.errors import StoreRefused

LOCK_FILE = "worker.lock"
TRIES = 3
BETWEEN = 0.02  # seconds between two tries; `is_held` keeps the lock for far less


class StoreLock:
    """Held as long as this object's file is open; a killed process lets go of it."""

    def __init__(self, data_dir: Path, holder: str) -> None:
        """Take it.

        Args:
            data_dir: the folder that the lock guards; exists.
            holder: what this process is, for the sentence that others get.

        Raises:
            StoreRefused: somebody else holds it; the sentence says who.
        """
        self._path = data_dir / LOCK_FILE
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _locked(self._fd):
            os.close(self._fd)
            raise StoreRefused(
                f"{data_dir} is in use by {holder_of(data_dir)}: stop that one first, "
                "or choose another data_dir"
            )
        try:
            self.describe(holder)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def describe(self, holder: str) -> None:
        """Say in the file who holds it; it is held on a full disk too, by nobody known."""
        os.ftruncate(self._fd, 0)
        try:
            os.pwrite(self._fd, json.dumps({"holder": holder, "pid": os.getpid()}).encode(), 0)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise


def _locked(descriptor: int) -> bool:
    """Take the lock; False while somebody holds it."""
    for tries_left in reversed(range(TRIES)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(BETWEEN if tries_left else 0)
        else:
            return True
    return False


def is_held(data_dir: Path) -> bool:
    """Whether somebody holds the lock; a look that takes it from nobody and writes nothing."""
    try:
        descriptor = os.open(data_dir / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def holder_of(data_dir: Path) -> str:
    """Who holds the lock, in words."""
    try:
        held = json.loads((data_dir / LOCK_FILE).read_text())
        return f"{held['holder']} (process {held['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def writers_of(database: Path) -> str:
    """Who holds SQLite's locks for writing to this file, in words; "" where that is not known.

    From /proc/locks (see proc(5)): the write lock of a database with a WAL is one of its -shm file.
    A file system whose devices have another number there, as btrfs has, is not known.
    """
    files = set()
    for path in (database, database.with_name(f"{database.name}-shm")):
        with contextlib.suppress(OSError):
            files.add(_in_locks(path.stat()))
    try:
        locks = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return ""
    held = [fields for line in locks if len(fields := line.split()) == 8 and fields[3] == "WRITE"]
    pids = {int(fields[4]) for fields in held if fields[5] in files}
    return ", ".join(_named(pid) for pid in sorted(pids - {os.getpid()}) if pid > 0)


def _in_locks(found: os.stat_result) -> str:
    """A file as /proc/locks names it."""
    return f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"


def _named(pid: int) -> str:
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (process {pid})"
    except OSError:
        return f"process {pid}"

"""One active worker per store: a lock on a file that says who holds it."""

import fcntl
import json
import os
from pathlib import Path
from typing import Self

from ciworker.errors import StoreRefused

LOCK_FILE = "worker.lock"


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
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise StoreRefused(
                f"{data_dir} is in use by {holder_of(data_dir)}: stop that one first, "
                "or choose another data_dir"
            ) from None
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, json.dumps({"holder": holder, "pid": os.getpid()}).encode(), 0)
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def holder_of(data_dir: Path) -> str:
    """Who holds the lock, in words."""
    try:
        held = json.loads((data_dir / LOCK_FILE).read_text())
        return f"{held['holder']} (process {held['pid']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

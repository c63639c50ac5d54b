"""What a file system promises, and what has to be done for it."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlast a power cut, as fsync has a file's bytes.

    Raises:
        OSError: it cannot be opened, or its disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

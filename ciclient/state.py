"""Remembers the newest job submitted from a folder to a server, so that JOB may be left out.

One small file per server and folder: submits at the same time, from different folders, can't
overwrite each other's.
"""

import hashlib
import json
from pathlib import Path

from ciclient.config import write_whole


def state_folder() -> Path:
    from platformdirs import user_state_path

    return user_state_path("ciclient")


def remember(server: str, folder: Path, job_id: str) -> None:
    """Raises OSError if the state folder can't be written."""
    path = _path(server, folder)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {"server": server, "folder": str(folder), "job": job_id}
    write_whole(path, json.dumps(document, indent=2) + "\n")


def newest(server: str, folder: Path) -> str | None:
    try:
        document = json.loads(_path(server, folder).read_text(encoding="utf-8"))
        job_id = document["job"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return job_id if isinstance(job_id, str) else None


def _path(server: str, folder: Path) -> Path:
    key = "\0".join((server, str(folder))).encode("utf-8", "surrogateescape")
    return state_folder() / "newest" / f"{hashlib.sha256(key).hexdigest()[:32]}.json"

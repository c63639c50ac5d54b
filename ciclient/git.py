"""Asks the user's git about a folder. Every answer may be missing: no git, no repository, too slow.

Inside a hook git sets variables that name *its* repository and index; they are taken away, so
that a folder means the same there as on the command line. Nothing is ever written (no index
refresh, no fsmonitor program).
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

LIST_TIMEOUT = 120.0
INFO_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    ok: bool
    out: bytes
    problem: str  # git's first line on stderr, or why it could not be asked


@dataclass(frozen=True, slots=True)
class Vcs:
    commit: str | None
    branch: str | None
    describe: str | None
    changes: int  # files that differ from the commit, untracked ones included

    def as_spec(self) -> dict[str, object]:
        known = {"commit": self.commit, "branch": self.branch, "describe": self.describe}
        present: dict[str, object] = {key: value for key, value in known.items() if value}
        return present | {"dirty": self.changes > 0}


def ask(folder: Path, *arguments: str, timeout: float = INFO_TIMEOUT) -> Answer:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environ |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(False, b"", f"git {arguments[0]} took more than {timeout:g} s")
    except OSError as error:
        return Answer(False, b"", f"git can't be run: {error.strerror}")
    message = done.stderr.decode("utf-8", "replace").strip()
    return Answer(done.returncode == 0, done.stdout, message.partition("\n")[0])


def listed(folder: Path) -> Answer:
    """NUL-separated: tracked files and untracked ones that no rule ignores, below the folder."""
    return ask(folder, "ls-files", "-co", "--exclude-standard", "-z", timeout=LIST_TIMEOUT)


def ignores(folder: Path) -> bool:
    """Whether the repository around the folder ignores all of it."""
    return ask(folder, "check-ignore", "-q", ".").ok


def describe(folder: Path) -> Vcs | None:
    """None where git has nothing to say."""
    status = ask(
        folder, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", "."
    )
    if not status.ok:
        return None
    return Vcs(
        commit=_word(folder, "rev-parse", "--verify", "-q", "HEAD"),
        branch=_word(folder, "symbolic-ref", "--short", "-q", "HEAD"),
        describe=_word(folder, "describe", "--tags", "--always", "--dirty"),
        changes=status.out.count(b"\0"),
    )


def _word(folder: Path, *arguments: str) -> str | None:
    answer = ask(folder, *arguments)
    return answer.out.decode("utf-8", "replace").strip() or None if answer.ok else None

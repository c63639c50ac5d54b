"""Repositories that tests make, and what git says of them."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.published import commit_all

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "T",
    "GIT_AUTHOR_EMAIL": "t@localhost",
    "GIT_COMMITTER_NAME": "T",
    "GIT_COMMITTER_EMAIL": "t@localhost",
}


def git(folder: Path, *words: str, **more: str) -> str:
    """What git prints; it has to succeed."""
    done = subprocess.run(
        ["git", *words], cwd=folder, env=ENVIRONMENT | more, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout.strip()


@dataclass(frozen=True)
class Made:
    """A repository with a work tree, and its bare clone, which is what is fetched."""

    tree: Path
    bare: Path

    @property
    def url(self) -> str:
        return f"file://{self.bare}"

    def commit(self, files: Mapping[str, str | bytes], branch: str = "main", tag: str = "") -> str:
        """Commit these files on top of a branch, or as the first of a new one; the commit."""
        if git(self.tree, "branch", "--list", branch):
            git(self.tree, "checkout", "--quiet", branch)
        elif git(self.tree, "branch", "--show-current") != branch:
            git(self.tree, "checkout", "--quiet", "--orphan", branch)
            git(self.tree, "rm", "-r", "--quiet", "--force", "--ignore-unmatch", ".")
        for name, content in files.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        git(self.tree, "add", "--all", "--force")
        git(self.tree, "commit", "--quiet", "--allow-empty", "--message", "more")
        if tag:
            git(self.tree, "tag", "--annotate", "--message", tag, tag)
        git(self.tree, "push", "--quiet", "--force", "--all", str(self.bare))
        git(self.tree, "push", "--quiet", "--force", "--tags", str(self.bare))
        return git(self.tree, "rev-parse", "HEAD")


def made(folder: Path, name: str = "tea") -> Made:
    """An empty repository."""
    tree, bare = folder / name, folder / f"{name}.git"
    for path, kind in ((tree, ()), (bare, ("--bare",))):
        git(folder, "init", "--quiet", "--initial-branch=main", *kind, str(path))
    return Made(tree, bare)


def served(tree: Path, folder: Path, name: str, tag: str = "1.0") -> Path:
    """A bare clone of a folder's files, all of them in one commit with a tag."""
    commit_all(tree, tag)
    bare = folder / f"{name}.git"
    git(folder, "clone", "--quiet", "--bare", str(tree), str(bare))
    return bare

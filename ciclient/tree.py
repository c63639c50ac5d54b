"""What of a folder is packed: what git lists, and outside git all but what is ignored.

`.ciignore` files hold in both. Entries are looked at once, without following a link; what can't
be packed (a FIFO, a link that leaves the tree) is left out with a warning that names it.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ciclient import git
from ciclient.errors import Usage

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

USUAL_CACHES = frozenset(
    {
        ".git", ".hg", ".svn", ".tox", ".nox", ".eggs", ".DS_Store", "node_modules",
        "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """`name` is relative, with slashes; bytes that aren't UTF-8 are surrogates (os.fsdecode)."""

    name: str
    kind: Literal["file", "link", "folder"]
    size: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    root: Path
    entries: tuple[Entry, ...]  # sorted by name
    warnings: tuple[str, ...]

    @property
    def files(self) -> int:
        return sum(entry.kind != "folder" for entry in self.entries)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)


def look_at(root: Path) -> Tree:
    """Raises Usage for a folder without files or one that can't be read."""
    warnings: list[str] = []
    try:
        listed = _from_git(root, warnings)
        names = _walk(root) if listed is None else listed
        entries = sorted(_entries(root, names, warnings), key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        raise unreadable(root, error) from error
    tree = Tree(root, tuple(entries), tuple(warnings))
    if not tree.files:
        raise Usage(f"there is nothing to pack in {root}: it is empty, or all of it is ignored")
    return tree


def unreadable(root: Path, error: OSError) -> Usage:
    name = error.filename or root
    return Usage(f"can't read {name}: {error.strerror}; a line in .ciignore leaves it out")


class Ignored:
    """Rules of ignore files in a folder and below, as git reads them: the deeper file wins, and
    nothing comes back from inside an ignored folder."""

    def __init__(self, root: Path, file_names: tuple[str, ...]) -> None:
        self._root = root
        self._file_names = file_names
        self._rules: dict[str, GitIgnoreSpec | None] = {}
        self._folders: dict[str, bool] = {"": False}

    def file(self, name: str) -> bool:
        return self.folder(_parent(name)) or self._matches(name, "")

    def folder(self, name: str) -> bool:
        if name not in self._folders:
            self._folders[name] = self.folder(_parent(name)) or self._matches(name, "/")
        return self._folders[name]

    def _matches(self, name: str, ending: str) -> bool:
        base = _parent(name)
        while True:
            rules = self._rules_of(base)
            if rules is not None:
                below = name[len(base) + 1 :] if base else name
                included = rules.check_file(below + ending).include
                if included is not None:
                    return included
            if not base:
                return False
            base = _parent(base)

    def _rules_of(self, folder: str) -> "GitIgnoreSpec | None":
        if folder not in self._rules:
            self._rules[folder] = self._read(folder)
        return self._rules[folder]

    def _read(self, folder: str) -> "GitIgnoreSpec | None":
        lines: list[str] = []
        for file_name in self._file_names:
            path = self._root / folder / file_name
            if path.is_file():
                text = path.read_text(encoding="utf-8", errors="surrogateescape")
                lines += text.split("\n")
        if not lines:
            return None
        from pathspec import GitIgnoreSpec

        return GitIgnoreSpec.from_lines(lines)


def _from_git(root: Path, warnings: list[str]) -> list[str] | None:
    """None where git does not decide: no repository, or one that ignores this very folder."""
    if not _in_repository(root):
        return None
    answer = git.listed(root)
    if not answer.ok:
        warnings.append(f"packing all that .gitignore allows, because git failed: {answer.problem}")
        return None
    if not answer.out and git.ignores(root):
        return None
    ignored = Ignored(root, (".ciignore",))
    names = _expanded(root, "", answer.out, warnings)
    return [name for name in names if not ignored.file(name)]


def _in_repository(folder: Path) -> bool:
    return any((parent / ".git").exists() for parent in (folder, *folder.parents))


def _expanded(root: Path, prefix: str, listing: bytes, warnings: list[str]) -> set[str]:
    """The names of a listing; submodules and nested repositories by their own listing.

    A set, because git lists a file in a merge conflict once per side.
    """
    names: set[str] = set()
    for raw in listing.split(b"\0"):
        name = prefix + os.fsdecode(raw).rstrip("/")
        path = root / name
        if not raw or path.is_symlink() or not path.is_dir():
            names.update([name] if raw else [])
        elif not (path / ".git").exists():
            warnings.append(f"left out, a submodule that is not checked out: {name}")
        else:
            names |= _expanded(root, f"{name}/", _nested(path), warnings)
    return names


def _nested(path: Path) -> bytes:
    answer = git.listed(path)
    if not answer.ok:
        raise Usage(f"can't list the repository in {path}: {answer.problem}")
    return answer.out


def _walk(root: Path) -> Iterator[str]:
    ignored = Ignored(root, (".gitignore", ".ciignore"))
    for folder, folders, files in os.walk(root, onerror=_raise):
        prefix = os.path.relpath(folder, root) + "/" if Path(folder) != root else ""
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        folders[:] = [
            name
            for name in folders
            if name not in links
            and not _usual_cache(Path(folder) / name)
            and not ignored.folder(prefix + name)
        ]
        kept = [
            name
            for name in (*files, *links)
            if not _usual_cache(Path(folder) / name) and not ignored.file(prefix + name)
        ]
        yield from (prefix + name for name in kept)
        if prefix and not kept and not folders:
            yield prefix.rstrip("/")


def _raise(error: OSError) -> None:
    raise error


def _usual_cache(path: Path) -> bool:
    return (
        path.name in USUAL_CACHES
        or path.suffix == ".pyc"
        or (path.name in {"venv", ".venv"} and (path / "pyvenv.cfg").is_file())
    )


def _entries(root: Path, names: Iterable[str], warnings: list[str]) -> Iterator[Entry]:
    really_below = _real_folders(root)
    for name in names:
        if not really_below(_parent(name)):
            continue  # tracked below a folder that is a link now: on disk it is gone
        try:
            status = (root / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # tracked, and deleted on disk
        entry = _entry(root, name, status)
        if isinstance(entry, Entry):
            yield entry
        else:
            warnings.append(f"left out, {entry}: {name}")


def _real_folders(root: Path) -> Callable[[str], bool]:
    known = {"": True}

    def really_below(folder: str) -> bool:
        if folder not in known:
            known[folder] = really_below(_parent(folder)) and not (root / folder).is_symlink()
        return known[folder]

    return really_below


def _entry(root: Path, name: str, status: os.stat_result) -> Entry | str:
    """An entry, or why there is none."""
    if stat.S_ISREG(status.st_mode):
        return Entry(name, "file", size=status.st_size)
    if stat.S_ISDIR(status.st_mode):
        return Entry(name, "folder")
    if not stat.S_ISLNK(status.st_mode):
        return "neither file nor link"
    target = str((root / name).readlink())
    if not _stays_inside(name, target):
        return f"a link that leaves the tree (to {target})"
    return Entry(name, "link", target=target)


def _stays_inside(name: str, target: str) -> bool:
    if target.startswith("/"):
        return False
    landing = os.path.normpath(f"{_parent(name) or '.'}/{target}")
    return landing != ".." and not landing.startswith("../")


def _parent(name: str) -> str:
    return name.rpartition("/")[0]

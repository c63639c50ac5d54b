"""Makes the archive that is sent: a zstd tar of a folder, or a ready file as it is.

The archive is a stream to a spool (memory while small, else a temporary file that has no name),
so its length is known before it is sent and nothing is left behind on any path.
"""

import errno
import os
import stat
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, cast

import zstandard

from ciclient.errors import Usage
from ciclient.report import plural, size
from ciclient.tree import Entry, Tree, look_at, unreadable

IN_MEMORY = 16 * 1024 * 1024
LARGE = 50 * 1024 * 1024
ATTEMPTS = 2
_LEVEL = 3
_TAR_BLOCK = 512
_KINDS = "tar, tar.gz, tar.zst or zip"


class Count(NamedTuple):
    files: int
    size: int  # in bytes


Told = Callable[[Count, Count], None]  # what is packed, and the whole of it


@dataclass(frozen=True, slots=True)
class Archive:
    file: IO[bytes]
    size: int


class _Changed(Exception):
    """A file became shorter or vanished between the look at the tree and its packing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Meter:
    """Counts the files of a tree and their bytes, and tells each time."""

    def __init__(self, tree: Tree, tell: Told) -> None:
        self._done, self._whole = Count(0, 0), Count(tree.files, tree.size)
        self._tell = tell

    def read(self, size: int) -> None:
        self._add(Count(0, size))

    def file_done(self) -> None:
        self._add(Count(1, 0))

    def _add(self, more: Count) -> None:
        self._done = Count(self._done.files + more.files, self._done.size + more.size)
        self._tell(self._done, self._whole)


def _unheard(_done: Count, _whole: Count) -> None:
    pass


@contextmanager
def packed(tree: Tree, tell: Told = _unheard) -> Iterator[Archive]:
    """Raises Usage for a file that can't be read, or that changes each time it is read.

    `tell` hears how much is packed, at least once for each file. A tree that changed meanwhile is
    packed anew: then it begins anew, with the tree as it is now.
    """
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as spool:
        file = cast(IO[bytes], spool)
        _pack_steadily(tree, file, tell)
        length = file.tell()
        file.seek(0)
        yield Archive(file, length)


@contextmanager
def ready_file(path: Path) -> Iterator[Archive]:
    """Raises Usage for what is no archive the worker takes."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise Usage(f"can't read {path}: {error.strerror}") from error
    with file:
        check_archive(path, file)
        file.seek(0)
        yield Archive(file, os.fstat(file.fileno()).st_size)


def check_archive(path: Path, file: IO[bytes]) -> None:
    head = file.read(_TAR_BLOCK)
    if not head:
        raise Usage(f"{path} is empty: it holds no bytes at all")
    if head.startswith((b"BZh", b"\xfd7zXZ\0")):
        raise Usage(f"{path} is compressed in a way the worker does not take: send {_KINDS}")
    if not _is_archive(head):
        raise Usage(f"{path} is no archive: send a folder, or a {_KINDS} file")


def write_tar(tree: Tree, out: IO[bytes], tell: Told = _unheard) -> None:
    """Sorted, owned by nobody, with the executable bit as the only mode that is kept."""
    meter = _Meter(tree, tell)
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    with (
        compressor.stream_writer(out, closefd=False) as stream,
        tarfile.open(
            fileobj=cast(IO[bytes], stream),
            mode="w|",
            bufsize=1 << 20,
            format=tarfile.GNU_FORMAT,  # long names as the bytes they are
            encoding="utf-8",
            errors="surrogateescape",
        ) as archive,
    ):
        for entry in tree.entries:
            _add(archive, tree.root, entry, meter)
            if entry.kind != "folder":
                meter.file_done()


def summary(tree: Tree, changes: int | None) -> str:
    text = f"{plural(tree.files, 'file')}, {size(tree.size)}"
    return f"{text}, with uncommitted changes in {changes:,}" if changes else text


def largest(tree: Tree) -> str | None:
    """A warning that names the five largest files of a tree above 50 MB."""
    if tree.size <= LARGE:
        return None
    top = sorted(tree.entries, key=lambda entry: entry.size, reverse=True)[:5]
    lines = [f"  {size(entry.size):>10}  {entry.name}" for entry in top]
    head = f"that is more than {size(LARGE)}; .ciignore can leave out what no test needs:"
    return "\n".join([head, *lines])


def default_project(root: Path) -> str | None:
    """The folder's name where neither job file nor project names one; else None, and the worker,
    which reads those files, decides. Files that can't be read are the worker's to complain of."""
    pyproject = _toml(root / "pyproject.toml")
    job_file = root / ".ciworker.toml"
    own = _toml(job_file) if job_file.exists() else _table(_table(pyproject, "tool"), "ciworker")
    if "project" in own or "name" in _table(pyproject, "project"):
        return None
    return root.name or None


def _pack_steadily(tree: Tree, file: IO[bytes], tell: Told) -> None:
    """Packs once more, from a new look, when the tree changed underneath."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            write_tar(tree, file, tell)
        except _Changed as change:
            if attempt == ATTEMPTS:
                raise Usage(
                    f"{change.name} changed each time it was packed: submit again when nothing "
                    "writes to it, or name it in .ciignore"
                ) from change
            file.seek(0)
            file.truncate()
            tree = look_at(tree.root)
        else:
            return


def _add(archive: tarfile.TarFile, root: Path, entry: Entry, meter: _Meter) -> None:
    member = tarfile.TarInfo(entry.name)
    if entry.kind == "file":
        _add_file(archive, root, member, meter)
        return
    member.mode = 0o755
    member.mtime = 0
    if entry.kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
    else:
        member.type = tarfile.DIRTYPE
    archive.addfile(member)


def _add_file(archive: tarfile.TarFile, root: Path, member: tarfile.TarInfo, meter: _Meter) -> None:
    # neither through a link nor waiting for a FIFO, whatever took the file's place by now
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(root / member.name, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
            raise _Changed(member.name) from error
        raise unreadable(root, error) from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _Changed(member.name)
        member.size = status.st_size
        member.mtime = int(status.st_mtime)
        member.mode = 0o755 if status.st_mode & 0o111 else 0o644
        archive.addfile(member, cast(IO[bytes], _Whole(file, member.name, meter)))


class _Whole:
    """A file that says when it ends before the size it had when it was opened."""

    def __init__(self, file: IO[bytes], name: str, meter: _Meter) -> None:
        self._file = file
        self._name = name
        self._meter = meter

    def read(self, amount: int) -> bytes:
        block = self._file.read(amount)
        if len(block) < amount:
            raise _Changed(self._name)
        self._meter.read(len(block))
        return block


def _is_archive(head: bytes) -> bool:
    if head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _toml(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _table(parent: dict[str, object], key: str) -> dict[str, object]:
    value = parent.get(key)
    return cast(dict[str, object], value) if isinstance(value, dict) else {}

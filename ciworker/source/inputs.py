"""What a setup may read: which files of a stored tree, their digests, and a tree of them alone.

A submit's inputs are mostly at the root of its tree, where they were digested while it arrived.
Others take a pass over the spool file: it is read as a stream, and held is what was asked for.
"""

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import dirname, join, normpath

from ciworker.domain.job import Spec
from ciworker.domain.jobfile import Wanted, check_commands
from ciworker.domain.patterns import Pattern, Search
from ciworker.domain.recipe import Recipe, default_recipe, included
from ciworker.errors import Invalid
from ciworker.source.archive import ArchiveRefused, Limits, SpoolCorrupt, Workspace, shown
from ciworker.source.members import PREFIX, Kind, Member
from ciworker.source.rewrite import (
    JOBFILES,
    MAX_KEPT,
    MAX_KEPT_FILES,
    Watched,
    as_text,
    reads_by_default,
)
from ciworker.source.spool import (
    END_OF_ARCHIVE,
    SpoolWriter,
    clean_tar,
    padding,
    tar_header,
)
from ciworker.source.tarstream import Members, TarParser
from ciworker.units import format_size

MAX_INPUTS = 1000
MAX_NAMES = 256 * 1024
MAX_PASSES = 8

# Constant, so that equal inputs are equal trees; zip files, wheels too, hold nothing before 1980.
_MTIME = 946_684_800
_STORED = Limits(max_packed=0, max_unpacked=0, max_members=2**40)  # was bounded when it came in
_SAY = "say setup and setup-inputs in the job file, the latter with no more files than it needs"
_TOO_MANY = f"the setup would read over {MAX_INPUTS:,} files: {_SAY}"
_TOO_LONG = f"what the setup would read has names of over {format_size(MAX_NAMES)} in all: {_SAY}"
_TOO_DEEP = (
    f"what the setup reads leads on by includes or links more than {MAX_PASSES} times: {_SAY}"
)


@dataclass(frozen=True, slots=True)
class File:
    """A file or link of a stored tree. target: a link's; of a hard link its name in the tree.

    executable: for a setup.
    """

    kind: Kind
    digest: str = ""
    data: bytes | None = None
    target: str = ""
    executable: bool = False


def with_setup(wanted: Wanted, workspace: Workspace, spool: Path) -> Spec:
    """The spec with its setup, the inputs' digests among it. Reads the spool file: for a thread.

    Where nobody says anything of a setup it is what the files at the tree's root ask for.

    Raises:
        Invalid: an input is not in the tree, a link leads to what is no input, or it is too much.
        SpoolCorrupt: the spool file can't be read.
    """
    if wanted.setup is not None and not wanted.setup:
        return wanted.spec
    if wanted.inputs is None:
        files = _Files(spool, workspace, keep=MAX_KEPT_FILES)
        inputs = _by_default(files, workspace)
    else:
        files = _Files(spool, workspace)
        inputs = _named(wanted.inputs, files, workspace)
    setup, backend = wanted.setup, None
    if setup is None:
        recipe = _recipe(inputs, files, workspace)
        setup, backend = recipe.commands, recipe.backend
    if not setup:
        return wanted.spec
    _check_names(inputs)
    _check_links(inputs)
    digests = {name: files.digest(name) for name in sorted(inputs)}
    return replace(wanted.spec, setup=tuple(setup), setup_inputs=digests, backend=backend)


def write_inputs(spool: Path, names: Collection[str], target: Path) -> int:
    """Make a spool file that holds only these files of another; their folders are implied.

    Both are read and written as a stream: for a thread.

    Args:
        spool: that of the tree.
        names: of files and links in it.
        target: the spool file to be; its folder exists, it does not yet.

    Returns:
        The length of its tar in bytes, without end-of-archive blocks.

    Raises:
        SpoolCorrupt: the tree can't be read, or lacks one of the files.
        OSError: the disk does not take it; nothing is left.
    """
    writer = SpoolWriter(target)
    try:
        _scan(spool, _Copier(writer, _spellings(spool, names)))
        writer.commit()
    except BaseException:
        writer.discard()
        raise
    return writer.length


class _Files:
    """The files of a tree as far as they were looked at; a pass over the spool file looks at more.

    Links are followed: what one leads to is looked at with it. keep: how many files' contents may
    be held beside those that the workspace holds.
    """

    def __init__(self, spool: Path, workspace: Workspace | None = None, keep: int = 0) -> None:
        self._spool = spool
        self._keep = keep
        self._passes = 0
        self._roots: Set[str] | None = None
        self._files: dict[str, File | None] = {}
        if workspace is not None:
            self._roots = workspace.names
            for name, digest in workspace.digests.items():
                self._files[name] = File(Kind.FILE, digest, workspace.contents.get(name))

    def find(self, wants: Callable[[str], bool]) -> Mapping[str, File]:
        """All files and links whose names are wanted. It takes a pass."""
        self._passes += 1
        if self._passes > MAX_PASSES:
            raise Invalid(_TOO_DEEP)
        reader = _Reader(wants, self._keep)
        _scan(self._spool, reader)
        self._keep -= sum(file.data is not None for file in reader.found.values())
        self._files |= reader.found
        links = {name: file for name, file in reader.found.items() if file.kind is not Kind.FILE}
        self.look({_led_to(name, link) for name, link in links.items()})
        return reader.found

    def look(self, names: Collection[str]) -> None:
        """Take note of what has these names, or that nothing has."""
        fresh = {name for name in names if name not in self._files}
        self._files |= dict.fromkeys(fresh)
        if any(map(self._may_be_there, fresh)):
            self.find(fresh.__contains__)

    def get(self, name: str) -> File | None:
        """The file or link of this name, if there is one. It was looked at."""
        return self._files[name]

    def base(self, name: str) -> str:
        """The name of the file that a hard link leads to in the end, or the name itself."""
        while (file := self._files[name]) is not None and file.kind is Kind.HARDLINK:
            name = file.target
        return name

    def contents(self, name: str) -> bytes | None:
        """What is held of a file, or of what a link leads to."""
        for _ in range(MAX_PASSES):
            file = self._files.get(name)
            if file is None or file.kind is Kind.FILE:
                return None if file is None else file.data
            name = _led_to(name, file)
        return None

    def digest(self, name: str) -> str:
        """SHA-256 (hex) of a file, `x ` before it if it is executable; of a symlink its target.

        None of these can look like another.
        """
        file = self._files[self.base(name)]
        assert file is not None
        if file.kind is Kind.SYMLINK:
            return f"-> {file.target}"
        return f"x {file.digest}" if file.executable else file.digest

    def _may_be_there(self, name: str) -> bool:
        return self._roots is None or name.partition("/")[0] in self._roots


class _Reader:
    """Digests the files whose names are wanted, and holds the contents of the first of them."""

    def __init__(self, wants: Callable[[str], bool], keep: int) -> None:
        self.found: dict[str, File] = {}
        self._wants = wants
        self._keep = keep
        self._watched: Watched | None = None

    def begin(self, member: Member) -> None:
        if member.kind is Kind.FOLDER:
            return
        raw_name = member.name.removeprefix(PREFIX)
        name = raw_name.decode("utf-8", "replace")
        if not self._wants(name):
            return
        raw_target = member.target.removeprefix(PREFIX if member.kind is Kind.HARDLINK else b"")
        target = as_text(raw_target)
        if as_text(raw_name) is None or target is None:
            raise Invalid(
                f"the setup would read {shown(raw_name)}, of which a name is not UTF-8: rename it"
            )
        if len(self.found) == MAX_INPUTS:
            raise Invalid(_TOO_MANY)
        self.found[name] = File(member.kind, target=target, executable=_is_executable(member))
        if member.kind is Kind.FILE:
            keep = member.size <= MAX_KEPT and self._keep > 0
            self._keep -= keep
            self._watched = Watched(name, keep=keep)

    def content(self, piece: bytes) -> None:
        if self._watched is not None:
            self._watched.add(piece)

    def end(self) -> None:
        if self._watched is None:
            return
        name, kept = self._watched.name, self._watched.data
        data = None if kept is None else bytes(kept)
        self.found[name] = replace(self.found[name], digest=self._watched.digest, data=data)
        self._watched = None


class _Copier:
    """Writes the files that have spellings, under these: one, and the others as hard links."""

    def __init__(self, writer: SpoolWriter, spellings: Mapping[bytes, list[bytes]]) -> None:
        self._writer = writer
        self._spellings = spellings
        self._current: Member | None = None

    def begin(self, member: Member) -> None:
        if member.name not in self._spellings:
            return
        if member.kind is Kind.FILE and not _is_executable(member):
            member = replace(member, mode=0o644)
        self._current = member
        first = self._spellings[member.name][0]
        self._header(first, member.kind, mode=member.mode, size=member.size, target=member.target)

    def content(self, piece: bytes) -> None:
        if self._current is not None:
            self._writer.write(piece)

    def end(self) -> None:
        if self._current is None:
            return
        self._writer.write(padding(self._current.size))
        first, *others = self._spellings[self._current.name]
        for other in others:
            self._header(other, Kind.HARDLINK, mode=self._current.mode, target=first)
        self._current = None

    def _header(
        self, name: bytes, kind: Kind, *, mode: int, size: int = 0, target: bytes = b""
    ) -> None:
        self._writer.write(
            tar_header(name, kind, mode=mode, size=size, mtime=_MTIME, target=target)
        )


def _scan(spool: Path, members: Members) -> None:
    """Hand on all members of a stored tree; their names begin with `PREFIX`."""
    parser = TarParser(members, _STORED)
    try:
        for piece in clean_tar(spool):
            parser.feed(piece)
        parser.feed(END_OF_ARCHIVE)
        parser.finish()
    except ArchiveRefused as error:
        raise SpoolCorrupt(
            f"the stored workspace {spool.name} can't be read: it holds no whole tar"
        ) from error


def _is_executable(member: Member) -> bool:
    """Whether a setup finds it executable; never what is digested while the tree arrives.

    Of that a mode is not noted, and nobody runs it.
    """
    name = member.name.removeprefix(PREFIX).decode("utf-8", "replace")
    digested = "/" not in name and (name in JOBFILES or reads_by_default(name))
    return member.kind is Kind.FILE and bool(member.mode & 0o111) and not digested


def _spellings(spool: Path, names: Collection[str]) -> Mapping[bytes, list[bytes]]:
    """By what is to be copied, as it is called in the spool file: the names that it gets."""
    files = _Files(spool)
    files.look(names)
    spellings: dict[bytes, list[bytes]] = {}
    for name in sorted(names):
        base = files.base(name)
        if files.get(base) is None:
            raise SpoolCorrupt(f"the stored workspace {spool.name} lacks {name!r}")
        spellings.setdefault(PREFIX + base.encode(), []).append(PREFIX + name.encode())
    return spellings


def _by_default(files: _Files, workspace: Workspace) -> Mapping[str, File]:
    """The default inputs, what they include, and what those of them that are symlinks lead to."""
    inputs: dict[str, File] = {}
    names = set(filter(reads_by_default, workspace.names))
    while names:
        files.look(names)
        fresh = {name: file for name in names if (file := files.get(name)) is not None}
        inputs |= fresh
        if len(inputs) > MAX_INPUTS:
            raise Invalid(_TOO_MANY)
        read = _contents(fresh, files).items()
        names = {further for name, data in read for further in included(name, data)}
        names |= {_led_to(name, f) for name, f in fresh.items() if f.kind is Kind.SYMLINK}
        names -= inputs.keys()
    return inputs


def _named(patterns: Sequence[Pattern], files: _Files, workspace: Workspace) -> Mapping[str, File]:
    """What `setup-inputs` names."""
    names = {"/".join(pattern.parts) for pattern in patterns}
    if names <= workspace.digests.keys() and not any(pattern.is_glob for pattern in patterns):
        return {name: file for name in names if (file := files.get(name)) is not None}
    search = Search(patterns)
    inputs = files.find(search.wants)
    for pattern in patterns:
        if pattern not in search.used:
            raise Invalid(_unmatched(pattern))
    return inputs


def _unmatched(pattern: Pattern) -> str:
    if pattern.is_glob:
        return (
            f"setup-inputs holds {pattern.text!r}, which no file of the tree matches: correct it, "
            "or see that the files are packed (those that git ignores are not)"
        )
    return (
        f"setup-inputs names {pattern.text!r}, which is not in the tree: correct it, or see that "
        "it is packed (what git ignores is not)"
    )


def _recipe(inputs: Collection[str], files: _Files, workspace: Workspace) -> Recipe:
    """The default recipe for a tree of these inputs."""
    recipe = default_recipe(_contents(inputs, files), workspace.names)
    try:
        check_commands(recipe.commands)
    except ValueError as error:
        raise Invalid(f"the setup that follows from the tree's files {error}: {_SAY}") from error
    return recipe


def _check_names(inputs: Mapping[str, File]) -> None:
    """Raise `Invalid` if the names, symlinks' targets among them, are too long for a spec."""
    names = [*inputs, *(file.target for file in inputs.values() if file.kind is Kind.SYMLINK)]
    if sum(len(name.encode()) for name in names) > MAX_NAMES:
        raise Invalid(_TOO_LONG)


def _check_links(inputs: Mapping[str, File]) -> None:
    """Raise `Invalid` if a symlink would lead to nothing in a tree of these inputs alone."""
    for name, file in inputs.items():
        if file.kind is not Kind.SYMLINK:
            continue
        target = _led_to(name, file)
        below = "" if target == "." else f"{target}/"
        if target not in inputs and not any(other.startswith(below) for other in inputs):
            raise Invalid(
                f"the setup reads {shown(name.encode())}, a symlink to {shown(target.encode())}, "
                "which it does not read: say setup, and in setup-inputs both or neither"
            )


def _led_to(name: str, link: File) -> str:
    """The name in the tree that a link leads to; `.` is the tree's root."""
    if link.kind is Kind.HARDLINK:
        return link.target
    return normpath(join(dirname(name), link.target))


def _contents(names: Collection[str], files: _Files) -> Mapping[str, bytes]:
    return {name: data for name in names if (data := files.contents(name)) is not None}

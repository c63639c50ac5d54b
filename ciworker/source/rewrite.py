"""The clean tar takes shape here: every member is checked, counted and given a header of ours."""

from fnmatch import fnmatchcase
from hashlib import sha256

from ciworker.domain.jobfile import JOB_FILE, PYPROJECT
from ciworker.domain.recipe import DEFAULT_INPUTS
from ciworker.source.archive import (
    ArchiveRefused,
    Limits,
    Refusal,
    Workspace,
    refuse_member,
)
from ciworker.source.members import (
    PREFIX,
    Kind,
    Member,
    Parts,
    Tree,
    check_mode,
    check_symlink,
    parts_of,
)
from ciworker.source.spool import SpoolWriter, padding, tar_header

JOBFILES = frozenset({JOB_FILE, PYPROJECT})
MAX_KEPT = 1024 * 1024
MAX_KEPT_FILES = 64


class Rewriter:
    """Takes members one after the other: `begin`, then as much `content` as it said, then `end`.

    Every method raises `ArchiveRefused`. Nothing is held but the tree's digests, the names at its
    root, and the files there that the worker reads.
    """

    def __init__(self, spool: SpoolWriter, limits: Limits, now: float) -> None:
        self._spool = spool
        self._limits = limits
        self._now = int(now)
        self._tree = Tree(limits.max_members)
        self._members = 0
        self._files = 0
        self._size = 0
        self._names: set[bytes] = set()
        self._digests: dict[str, str] = {}
        self._contents: dict[str, bytes] = {}
        self._watched: Watched | None = None
        self.unpacked = 0

    def begin(self, member: Member) -> None:
        """Check the member and write its header; the root itself is passed over."""
        parts = parts_of(member.name, self._limits)
        self._check_content(member)
        if not parts:
            _check_root(member)
            return
        check_mode(member)
        target = self._target(member, parts)
        self._tree.add(member, parts)
        self._names.add(parts[0])
        if len(parts) == 1:
            self._watch(member, parts[0])
        self._members += 1
        self._files += member.kind is Kind.FILE
        self._size = member.size
        self._spool.write(
            tar_header(
                PREFIX + b"/".join(parts) + (b"/" if member.kind is Kind.FOLDER else b""),
                member.kind,
                mode=_mode(member),
                size=member.size,
                mtime=min(max(member.mtime, 0), self._now),
                target=target,
            )
        )

    def content(self, piece: bytes) -> None:
        """The next bytes of the regular file that was begun."""
        self._spool.write(piece)
        self.unpacked += len(piece)
        if self._watched is not None:
            self._watched.add(piece)

    def end(self) -> None:
        """The member is complete."""
        if self._size:
            self._spool.write(padding(self._size))
        self._size = 0
        if self._watched is not None:
            self._note(self._watched)
            self._watched = None

    def finish(self) -> Workspace:
        """Make the spool file durable; the archive has been read to its end."""
        if not self._files:
            raise ArchiveRefused("the archive holds no files: pack the root of your tree")
        self._spool.commit()
        return Workspace(
            tar_length=self._spool.length,
            members=self._members,
            files=self._files,
            unpacked=self.unpacked,
            names=frozenset(name for name in map(as_text, self._names) if name is not None),
            digests=self._digests,
            contents=self._contents,
        )

    def _check_content(self, member: Member) -> None:
        if member.kind is not Kind.FILE and member.size:
            raise refuse_member(
                member.name, f"is a {member.kind.value} that carries data: pack it with GNU tar"
            )
        if self.unpacked + member.size > self._limits.max_unpacked:
            raise refuse_member(
                member.name,
                f"takes the files to over {self._limits.max_unpacked:,} bytes: leave out what "
                "the tests don't need",
                Refusal.TOO_LARGE,
            )

    def _target(self, member: Member, parts: Parts) -> bytes:
        if member.kind is Kind.SYMLINK:
            check_symlink(member, parts, self._limits)
            return member.target
        if member.kind is not Kind.HARDLINK:
            return b""
        target = parts_of(member.target, self._limits)
        if not self._tree.has_file(target):
            raise refuse_member(
                member.name, "is a hard link to no earlier file of the archive: pack a copy of it"
            )
        return PREFIX + b"/".join(target)

    def _watch(self, member: Member, raw_name: bytes) -> None:
        name = as_text(raw_name)
        if name is None or not (name in JOBFILES or reads_by_default(name)):
            return
        if name in JOBFILES:
            _check_jobfile(member)
        if member.kind is Kind.FILE:
            kept = name in JOBFILES or len(self._contents) < MAX_KEPT_FILES
            self._watched = Watched(name, keep=kept and member.size <= MAX_KEPT)

    def _note(self, file: "Watched") -> None:
        self._digests[file.name] = file.digest
        if file.data is not None:
            self._contents[file.name] = bytes(file.data)


class Watched:
    """A regular file that is digested, and if `keep` says so held, while it goes by."""

    def __init__(self, name: str, *, keep: bool) -> None:
        self.name = name
        self.data = bytearray() if keep else None
        self._sha256 = sha256()

    def add(self, piece: bytes) -> None:
        self._sha256.update(piece)
        if self.data is not None:
            self.data += piece

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()


def reads_by_default(name: str) -> bool:
    """Whether setups read the file of this name, at the tree's root, if nobody says otherwise."""
    return any(fnmatchcase(name, pattern) for pattern in DEFAULT_INPUTS)


def as_text(name: bytes) -> str | None:
    """The name, if it is UTF-8."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _check_root(member: Member) -> None:
    if member.kind is not Kind.FOLDER:
        raise refuse_member(member.name, "names the root but is no folder: pack the tree again")


def _check_jobfile(member: Member) -> None:
    if member.kind in (Kind.SYMLINK, Kind.HARDLINK):
        raise refuse_member(
            member.name, "is a link: the worker reads this file, so pack its contents"
        )
    if member.size > MAX_KEPT:
        raise refuse_member(
            member.name, f"is over {MAX_KEPT:,} bytes: shorten it", Refusal.TOO_LARGE
        )


def _mode(member: Member) -> int:
    if member.kind is Kind.SYMLINK:
        return 0o777
    return 0o755 if member.kind is Kind.FOLDER or member.mode & 0o111 else 0o644

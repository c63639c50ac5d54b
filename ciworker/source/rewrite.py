"""The clean tar takes shape here: every member is checked, counted and given a header of ours."""

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

JOBFILES = frozenset({b".ciworker.toml", b"pyproject.toml"})
_MAX_JOBFILE = 1024 * 1024


class Rewriter:
    """Takes members one after the other: `begin`, then as much `content` as it said, then `end`.

    Every method raises `ArchiveRefused`. Nothing is held but the tree's digests and the job files.
    """

    def __init__(self, spool: SpoolWriter, limits: Limits, now: float) -> None:
        self._spool = spool
        self._limits = limits
        self._now = int(now)
        self._tree = Tree(limits.max_members)
        self._members = 0
        self._files = 0
        self._size = 0
        self._jobfile: bytearray | None = None
        self._jobfiles: dict[str, bytearray] = {}
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
        self._open_jobfile(member, parts)
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
        if self._jobfile is not None:
            self._jobfile += piece

    def end(self) -> None:
        """The member is complete."""
        if self._size:
            self._spool.write(padding(self._size))
        self._size = 0
        self._jobfile = None

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
            jobfiles={name: bytes(data) for name, data in self._jobfiles.items()},
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

    def _open_jobfile(self, member: Member, parts: Parts) -> None:
        if len(parts) > 1 or parts[0] not in JOBFILES or member.kind is Kind.FOLDER:
            return
        if member.kind is not Kind.FILE:
            raise refuse_member(
                member.name, "is a link: the worker reads this file, so pack its contents"
            )
        if member.size > _MAX_JOBFILE:
            raise refuse_member(
                member.name, f"is over {_MAX_JOBFILE:,} bytes: shorten it", Refusal.TOO_LARGE
            )
        self._jobfile = self._jobfiles[parts[0].decode()] = bytearray()


def _check_root(member: Member) -> None:
    if member.kind is not Kind.FOLDER:
        raise refuse_member(member.name, "names the root but is no folder: pack the tree again")


def _mode(member: Member) -> int:
    if member.kind is Kind.SYMLINK:
        return 0o777
    return 0o755 if member.kind is Kind.FOLDER or member.mode & 0o111 else 0o644

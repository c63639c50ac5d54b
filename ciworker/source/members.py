"""The rules that every member keeps, whatever format it came in. Pure: no I/O, no clock.

Names are bytes throughout, exactly as they came: Linux asks for nothing else.
"""

import re
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from unicodedata import normalize

from ciworker.source.archive import ArchiveRefused, Limits, Refusal, refuse_member

PREFIX = b"src/"
"""The folder of the workspace in which the tree lies."""

_MAX_COMPONENT = 255
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SPECIAL_BITS = 0o7000


class Kind(Enum):
    """What a clean tar may hold."""

    FOLDER = "folder"
    FILE = "file"
    SYMLINK = "symlink"
    HARDLINK = "hard link"


@dataclass(frozen=True, slots=True)
class Member:
    """A member as its archive describes it, nothing checked yet.

    `size` is in bytes, `mtime` in seconds, `target` what a link points to.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    size: int = 0
    mtime: int = 0
    target: bytes = b""


Parts = tuple[bytes, ...]


def parts_of(name: bytes, limits: Limits) -> Parts:
    """The components of a member's name, none for the root itself.

    `.` components, doubled and trailing slashes are dropped. Raises `ArchiveRefused`.
    """
    if not name:
        raise ArchiveRefused("a member has no name: pack the tree again")
    _check_text(name, name, "has control characters in its name: rename it")
    if name.startswith(b"/"):
        raise refuse_member(name, "is an absolute path: pack with names relative to the tree")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise refuse_member(name, "has '..' in its name: pack from the root of the tree")
    if any(len(part) > _MAX_COMPONENT for part in parts):
        raise refuse_member(name, f"has a component of over {_MAX_COMPONENT} bytes: shorten it")
    if len(PREFIX) + sum(map(len, parts)) + len(parts) > limits.max_path:
        raise refuse_member(name, f"is a path of over {limits.max_path:,} bytes: shorten it")
    return parts


def check_mode(member: Member) -> None:
    """Raise `ArchiveRefused` for a setuid, setgid or sticky file.

    On folders the bits are common (a setgid folder hands its group down) and simply not kept.
    """
    if member.kind in (Kind.FILE, Kind.HARDLINK) and member.mode & _SPECIAL_BITS:
        raise refuse_member(member.name, "is setuid, setgid or sticky: chmod u-s,g-s,-t it")


def check_symlink(member: Member, parts: Parts, limits: Limits) -> None:
    """Raise `ArchiveRefused` unless the link points, lexically, to within the tree."""
    target = member.target
    if not target:
        raise refuse_member(member.name, "is a symlink to nothing: leave it out")
    _check_text(target, member.name, "is a symlink with control characters: leave it out")
    if len(target) >= limits.max_path:
        raise refuse_member(member.name, "is a symlink with too long a target: leave it out")
    if target.startswith(b"/"):
        raise refuse_member(
            member.name, "is a symlink to an absolute path: make it relative or leave it out"
        )
    depth = len(parts) - 1
    for part in target.split(b"/"):
        depth += {b"": 0, b".": 0, b"..": -1}.get(part, 1)
        if depth < 0:
            raise refuse_member(
                member.name, "is a symlink that leads out of the tree: leave it out"
            )


def _check_text(text: bytes, name: bytes, sentence: str) -> None:
    if _CONTROL.search(text.decode("utf-8", "surrogateescape")):
        raise refuse_member(name, sentence)


class Tree:
    """Remembers every name that was seen, to find those that can't stand side by side.

    It holds 16-byte digests, not names: a path of 4 KB costs no more than a short one, some
    150-300 bytes in all. A digest is chained from its parent's, component by component, so a
    path costs as many steps as it has components.
    """

    def __init__(self, max_members: int) -> None:
        self._max_members = max_members
        # None: a folder that is only implied so far, by the name of something that lies in it.
        self._kinds: dict[bytes, Kind | None] = {}
        self._spellings: dict[bytes, bytes] = {}

    def add(self, member: Member, parts: Parts) -> None:
        """Take the member in. Raises `ArchiveRefused` if what came before forbids it."""
        *parents, key = self._keys(member, parts)
        for parent in parents:
            self._enter(parent, member)
        known = self._kinds.get(key)
        if known is not None:
            raise refuse_member(member.name, "is in the archive twice: pack it once")
        if key in self._kinds and member.kind is not Kind.FOLDER:
            raise refuse_member(member.name, "is a folder and something else: pack one of them")
        self._put(key, member.kind)

    def has_file(self, parts: Parts) -> bool:
        """Whether an earlier member of that name is a regular file or a hard link to one."""
        key = b""
        for part in parts:
            key = _digest(key, part)
        return self._kinds.get(key) in (Kind.FILE, Kind.HARDLINK)

    def _keys(self, member: Member, parts: Parts) -> list[bytes]:
        keys = []
        key = folded = b""
        for part in parts:
            spelling = _fold(part)
            same = key == folded and spelling == part
            key, parent = _digest(key, part), folded
            folded = key if same else _digest(parent, spelling)
            if self._spellings.setdefault(folded, key) != key:
                raise refuse_member(
                    member.name,
                    "differs from an earlier name only in case or in how its accents are "
                    "written: rename one of them",
                )
            keys.append(key)
        return keys

    def _enter(self, parent: bytes, member: Member) -> None:
        if parent not in self._kinds:
            self._put(parent, None)
            return
        if self._kinds[parent] not in (None, Kind.FOLDER):
            raise refuse_member(member.name, "lies below a file or a link: leave one of them out")

    def _put(self, key: bytes, kind: Kind | None) -> None:
        self._kinds[key] = kind
        if len(self._kinds) > self._max_members:
            raise ArchiveRefused(
                f"the archive has more than {self._max_members:,} files and folders: leave out "
                "what the tests don't need",
                Refusal.TOO_LARGE,
            )


def _digest(parent: bytes, part: bytes) -> bytes:
    return blake2b(parent + part, digest_size=16).digest()


def _fold(part: bytes) -> bytes:
    """The component as a file system that ignores case and normal form would compare it."""
    if part.isascii():
        return part.lower()
    text = normalize("NFD", part.decode("utf-8", "surrogateescape")).casefold()
    return normalize("NFC", text).encode("utf-8", "surrogateescape")

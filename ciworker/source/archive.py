"""What the parts of this room say to each other and to their callers about an archive.

The room takes what strangers send. Whatever it can't vouch for it refuses with a sentence that
names the member and says what to do. `intake` is the way in, `spool` the way out. The room
touches nothing but the spool file it was given, and the folder where `git` fetches; it knows
neither HTTP, store nor engine.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum

PIECE = 64 * 1024
"""Bytes that are worked on at a time: what is read, inflated and written in one step."""

_RATIO_FLOOR = 64 * 1024 * 1024
_SHOWN_LENGTH = 160


class Refusal(StrEnum):
    """Which kind of refusal: what was sent can't be used, or there is too much of it."""

    INVALID = "invalid"
    TOO_LARGE = "too_large"


class ArchiveRefused(Exception):
    """The archive can't be taken; the message is a sentence a person can act on."""

    def __init__(self, message: str, kind: Refusal = Refusal.INVALID) -> None:
        super().__init__(message)
        self.kind = kind


class SpoolCorrupt(Exception):
    """A stored workspace is missing, cut or damaged."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Caps on one upload; sizes are bytes.

    `max_packed` bounds what is received, `max_unpacked` the contents of all files, `max_members`
    the members together with the folders that only their names imply, `max_path` a name or a
    link's target, `max_header` the extended headers (pax, GNU long names) before one member.
    `max_ratio`, contents by what was received, counts only past 64 MiB of contents, so that a
    small tree may be as compressible as it likes.
    """

    max_packed: int
    max_unpacked: int
    max_members: int
    max_path: int = 4096
    max_header: int = 64 * 1024
    max_ratio: int = 200

    def check_ratio(self, packed: int, unpacked: int) -> None:
        """Raise `ArchiveRefused` if `packed` bytes unfold into suspiciously many."""
        if unpacked > _RATIO_FLOOR and unpacked > packed * self.max_ratio:
            raise ArchiveRefused(
                f"the archive unfolds to more than {self.max_ratio} times its size, like a "
                "decompression bomb: leave large generated files out",
                Refusal.TOO_LARGE,
            )


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace that is safely in its spool file.

    `tar_length` is the clean tar's length in bytes, without end-of-archive blocks; `members`
    counts its members, `files` the regular files among them (hard links are not counted) and
    `unpacked` the bytes in those. `names` are those of files and folders at the root of the tree,
    as far as they are UTF-8. Of the files there that a setup reads by default, and of the job
    files, `digests` has the SHA-256 (hex) and `contents` the bytes, those of at most 64 files of
    up to 1 MiB beside the job files.
    """

    tar_length: int
    members: int
    files: int
    unpacked: int
    names: Set[str]
    digests: Mapping[str, str]
    contents: Mapping[str, bytes]


def shown(name: bytes) -> str:
    """The name in quotes, of bounded length, fit for a terminal: no control, no bidi override."""
    text = repr(name.decode("utf-8", "surrogateescape"))
    if len(text) <= _SHOWN_LENGTH:
        return text
    half = _SHOWN_LENGTH // 2
    return f"{text[:half]}…{text[-half:]}"


def refuse_member(name: bytes, sentence: str, kind: Refusal = Refusal.INVALID) -> ArchiveRefused:
    """The refusal of one member: `sentence` says what is wrong with it and what to do."""
    return ArchiveRefused(f"{shown(name)} {sentence}", kind)

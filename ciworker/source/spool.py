"""Spool files: a clean tar without its end, zstd-compressed, written once and read often.

The only module of the room that creates, syncs or removes files. Headers are GNU's (long names
and targets by L and K members, no pax), so that GNU tar and busybox both read them.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from zstandard import ZstdCompressor

from ciworker.files import sync_folder
from ciworker.source.archive import PIECE, ArchiveRefused, SpoolCorrupt
from ciworker.source.inflate import Zstd
from ciworker.source.members import Kind

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
"""What ends a tar: two blocks of zeros."""

_LEVEL = 1
_NAME_FIELD = 100
_OCTAL_SIZES = 8**11
_TYPEFLAGS = {Kind.FILE: b"0", Kind.HARDLINK: b"1", Kind.SYMLINK: b"2", Kind.FOLDER: b"5"}


class SpoolWriter:
    """A spool file that is being written. It must not exist yet; only its owner may read it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._zstd = ZstdCompressor(level=_LEVEL, write_checksum=True).compressobj()
        self.length = 0

    def write(self, data: bytes) -> None:
        """Append to the clean tar."""
        self.length += len(data)
        self._file.write(self._zstd.compress(data))

    def commit(self) -> None:
        """Make it durable: after this a power cut loses neither the file nor its name."""
        self._file.write(self._zstd.flush())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sync_folder(self._path.parent)

    def discard(self) -> None:
        """Close and remove the file; also safe after `commit` and when called again."""
        with suppress(OSError):  # a full disk refuses to flush what is thrown away anyway
            self._file.close()
        self._path.unlink(missing_ok=True)


def clean_tar(path: Path) -> Iterator[bytes]:
    """The clean tar of a spool file, in pieces of at most 128 KiB, without end-of-archive blocks.

    Raises `SpoolCorrupt`, at any piece, when the file is missing, cut or damaged.
    """
    zstd = Zstd(max_streams=1)
    try:
        with path.open("rb") as file:
            while packed := file.read(PIECE):
                yield from zstd.feed(packed)
        zstd.finish()
    except (OSError, ArchiveRefused) as error:
        raise SpoolCorrupt(f"the stored workspace {path.name} can't be read: {error}") from error


def tar_member(name: str, data: bytes, mode: int, now: float) -> bytes:
    """A whole regular file as a tar member: header, contents, padding. `name` gets no prefix."""
    header = tar_header(name.encode(), Kind.FILE, mode=mode, size=len(data), mtime=int(now))
    return header + data + padding(len(data))


def padding(size: int) -> bytes:
    """The zeros that fill the last block of `size` bytes."""
    return bytes(-size % BLOCK)


def tar_header(
    name: bytes, kind: Kind, *, mode: int, size: int = 0, mtime: int, target: bytes = b""
) -> bytes:
    """The header blocks of one member, owned by 0/0; long names come as members before it."""
    return b"".join(
        (
            _long(b"K", target),
            _long(b"L", name),
            _block(name, _TYPEFLAGS[kind], mode=mode, size=size, mtime=mtime, target=target),
        )
    )


def _long(typeflag: bytes, text: bytes) -> bytes:
    if len(text) < _NAME_FIELD:
        return b""
    header = _block(b"././@LongLink", typeflag, mode=0o644, size=len(text) + 1, mtime=0)
    return header + text + b"\0" + padding(len(text) + 1)


def _block(
    name: bytes, typeflag: bytes, *, mode: int, size: int, mtime: int, target: bytes = b""
) -> bytes:
    before = b"%b%07o\0%07o\0%07o\0%b%011o\0" % (
        name[:_NAME_FIELD].ljust(_NAME_FIELD, b"\0"),
        mode,
        0,
        0,
        _size_field(size),
        mtime,
    )
    after = typeflag + target[:_NAME_FIELD].ljust(_NAME_FIELD, b"\0") + b"ustar  \0"
    checksum = sum(before) + sum(after) + 8 * ord(" ")
    return (before + b"%06o\0 " % checksum + after).ljust(BLOCK, b"\0")


def _size_field(size: int) -> bytes:
    if size < _OCTAL_SIZES:
        return b"%011o\0" % size
    return b"\x80" + size.to_bytes(11, "big")

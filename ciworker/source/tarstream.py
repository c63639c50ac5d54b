"""Reads a tar that is pushed in, in whatever pieces it arrives, and hands on its members.

Formats: V7, ustar, GNU and pax (POSIX.1-2008, pax; GNU tar's manual, "Basic Tar Format"). Of pax
headers path, linkpath, size and mtime are read; of global ones nothing, and they may not name.
"""

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ciworker.source.archive import PIECE, ArchiveRefused, Limits, Refusal, refuse_member, shown
from ciworker.source.members import Kind, Member
from ciworker.source.spool import BLOCK

NO_ARCHIVE = "what was sent is no archive: send a tar, tar.gz, tar.zst or zip"
_DAMAGED = "the archive is damaged ({}): pack and send it again"
_BASE_256 = 0x80
_OCTAL = b"01234567"
_ZEROS = bytes(BLOCK)

# What an archive may hold beside its members: padding at its end, and per member two blocks of
# pax headers with the times and owners that tar likes to note.
_SLACK = 4 * 1024 * 1024
_SLACK_PER_MEMBER = 2 * 1024

_KINDS = {
    b"0": Kind.FILE,
    b"\0": Kind.FILE,
    b"7": Kind.FILE,
    b"1": Kind.HARDLINK,
    b"2": Kind.SYMLINK,
    b"5": Kind.FOLDER,
}
_REFUSED = {
    b"3": "is a character device: leave it out",
    b"4": "is a block device: leave it out",
    b"6": "is a FIFO: leave it out",
    b"S": "is a sparse file: pack without --sparse",
    b"D": "is from an incremental archive: pack without --incremental",
    b"M": "is from a multi-volume archive: pack into one volume",
    b"V": "is a volume label: pack without --label",
}
_EXTENSIONS = b"xgLK"


class _Ask(NamedTuple):
    """How many bytes the parser wants next."""

    least: int
    most: int


_Reading = Generator[_Ask, bytes, bytes]


class Members(Protocol):
    """Takes what is parsed: `begin`, then as much `content` as the member said, then `end`."""

    def begin(self, member: Member) -> None: ...

    def content(self, piece: bytes) -> None: ...

    def end(self) -> None: ...


@dataclass(slots=True)
class _Extended:
    """What the headers before a member said about it."""

    size_of_headers: int = 0
    path: bytes | None = None
    linkpath: bytes | None = None
    size: int | None = None
    mtime: int | None = None


class TarParser:
    """Push parser: `feed` pieces of the tar, then `finish`. Both raise `ArchiveRefused`."""

    def __init__(self, members: Members, limits: Limits) -> None:
        self._members = members
        self._max_header = limits.max_header
        self._slack = _SLACK + _SLACK_PER_MEMBER * limits.max_members
        self._held = bytearray()
        self._began = False
        self._ended = False
        self._within: bytes | None = None
        self._parsing = self._archive()
        self._ask = next(self._parsing)

    def feed(self, data: bytes) -> None:
        """Parse what `data` completes; what it leaves incomplete is held: one block or header."""
        self._held += data
        start = 0
        with memoryview(self._held) as view:
            while len(view) - start >= self._ask.least:
                piece = bytes(view[start : start + self._ask.most])
                start += len(piece)
                self._ask = self._parsing.send(piece)
        del self._held[:start]

    def finish(self) -> None:
        """Raise `ArchiveRefused` unless the tar came to its end mark."""
        if self._ended:
            return
        if not self._began:
            raise ArchiveRefused(NO_ARCHIVE)
        where = f"in the middle of {shown(self._within)}" if self._within else "without an end mark"
        raise ArchiveRefused(f"the archive stops {where}: it was cut off on its way, send it again")

    def _archive(self) -> Generator[_Ask, bytes, None]:
        """The whole archive, as a coroutine that is sent the bytes it asks for."""
        extended = _Extended()
        while (block := (yield from _exactly(BLOCK))) != _ZEROS:
            self._check_block(block)
            typeflag = block[156:157]
            if typeflag in _EXTENSIONS:
                payload = yield from self._extension(block, extended)
                _note(extended, typeflag, payload)
                continue
            yield from self._member(_member(block, extended))
            extended = _Extended()
        yield from self._rest()

    def _check_block(self, block: bytes) -> None:
        if _is_header(block):
            self._began = True
            return
        if not self._began:
            raise ArchiveRefused(NO_ARCHIVE)
        raise ArchiveRefused(_DAMAGED.format("a header's checksum is wrong"))

    def _extension(self, block: bytes, extended: _Extended) -> _Reading:
        size = _size(block)
        extended.size_of_headers += BLOCK + size
        if extended.size_of_headers > BLOCK + self._max_header:
            raise refuse_member(
                _text(block[:100]),
                f"is an extended header of over {self._max_header:,} bytes: pack without extended "
                "attributes",
                Refusal.TOO_LARGE,
            )
        self._spend(BLOCK + size)
        payload = yield from _exactly(size)
        yield from _exactly(-size % BLOCK)
        return payload

    def _member(self, member: Member) -> Generator[_Ask, bytes, None]:
        self._members.begin(member)
        self._within = member.name
        missing = member.size
        while missing:
            piece = yield _Ask(1, min(missing, PIECE))
            self._members.content(piece)
            missing -= len(piece)
        yield from _exactly(-member.size % BLOCK)
        self._members.end()
        self._within = None

    def _rest(self) -> Generator[_Ask, bytes, None]:
        if (yield from _exactly(BLOCK)) != _ZEROS:
            raise ArchiveRefused(_DAMAGED.format("its end mark is not whole"))
        self._ended = True
        while True:
            piece = yield _Ask(1, PIECE)
            self._spend(len(piece))
            if piece.strip(b"\0"):
                raise ArchiveRefused("data follows the archive's end: pack it as one archive")

    def _spend(self, size: int) -> None:
        self._slack -= size
        if self._slack < 0:
            raise ArchiveRefused(
                "the archive is mostly headers and padding: pack it again", Refusal.TOO_LARGE
            )


def _is_header(block: bytes) -> bool:
    digits = block[148:156].strip(b" \0")
    if not digits or digits.strip(_OCTAL):
        return False
    return int(digits, 8) == sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _exactly(size: int) -> _Reading:
    if not size:
        return b""
    return (yield _Ask(size, size))


def _member(block: bytes, extended: _Extended) -> Member:
    name = _name(block) if extended.path is None else extended.path
    typeflag = block[156:157]
    if typeflag in _REFUSED:
        raise refuse_member(name, _REFUSED[typeflag])
    if typeflag not in _KINDS:
        raise refuse_member(name, f"is of an unknown type {shown(typeflag)}: leave it out")
    kind = _KINDS[typeflag]
    if kind is Kind.FILE and name.endswith(b"/"):
        kind = Kind.FOLDER  # as in V7, which had no type for them
    size = _size(block) if extended.size is None else extended.size
    mtime = _number(block[136:148]) if extended.mtime is None else extended.mtime
    target = _text(block[157:257]) if extended.linkpath is None else extended.linkpath
    return Member(
        name=name, kind=kind, mode=_number(block[100:108]), size=size, mtime=mtime, target=target
    )


def _name(block: bytes) -> bytes:
    name = _text(block[:100])
    if block[257:263] != b"ustar\0":  # GNU's format keeps times where ustar has the prefix
        return name
    prefix = _text(block[345:500])
    return prefix + b"/" + name if prefix else name


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _size(block: bytes) -> int:
    size = _number(block[124:136])
    if size < 0:
        raise refuse_member(_text(block[:100]), "has a negative size: pack and send it again")
    return size


def _number(field: bytes) -> int:
    """Octal digits, or, with the top bit set, two's complement of the rest (GNU's base-256)."""
    if field[0] & _BASE_256:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if field[0] & 0x40 else value
    digits = _text(field).strip(b" ")
    if digits.strip(_OCTAL):
        raise ArchiveRefused(_DAMAGED.format("a header holds no number where one belongs"))
    return int(digits or b"0", 8)


def _note(extended: _Extended, typeflag: bytes, payload: bytes) -> None:
    if typeflag == b"L":
        extended.path = payload.rstrip(b"\0")
    elif typeflag == b"K":
        extended.linkpath = payload.rstrip(b"\0")
    elif typeflag == b"x":
        _note_pax(extended, _pax_records(payload))
    elif _pax_records(payload).keys() & {b"path", b"linkpath", b"size"}:
        raise ArchiveRefused("a global pax header names members: pack with one header a member")


def _note_pax(extended: _Extended, records: dict[bytes, bytes]) -> None:
    extended.path = records.get(b"path") or extended.path
    extended.linkpath = records.get(b"linkpath") or extended.linkpath
    if size := records.get(b"size"):
        extended.size = _decimal(size, rb"(\d{1,20})")
    if mtime := records.get(b"mtime"):
        extended.mtime = _decimal(mtime, rb"(-?\d{1,20})(?:\.\d*)?")
    if any(key.startswith(b"GNU.sparse.") for key in records):
        name = records.get(b"GNU.sparse.name") or extended.path or b"a member"
        raise refuse_member(name, _REFUSED[b"S"])


def _decimal(value: bytes, pattern: bytes) -> int:
    match = re.fullmatch(pattern, value)
    if match is None:
        raise ArchiveRefused(_DAMAGED.format("a pax header holds no number where one belongs"))
    return int(match[1])


def _pax_records(payload: bytes) -> dict[bytes, bytes]:
    """Records are `length SP key=value LF`; the length is decimal and counts all of it."""
    records = {}
    start = 0
    while start < len(payload):
        digits, _, _ = payload[start : start + 8].partition(b" ")
        end = start + (int(digits) if digits.isdigit() else 0)
        key, is_record, value = payload[start + len(digits) + 1 : end - 1].partition(b"=")
        if not is_record or payload[end - 1 : end] != b"\n":
            raise ArchiveRefused(_DAMAGED.format("a pax header is malformed"))
        records[key] = value
        start = end
    return records

"""Reads a zip that lies in a file and hands on its members (PKWARE's APPNOTE, 6.3).

The central directory is read entry by entry, twice, and never held: `zipfile` makes an object of
about 600 bytes of each entry before anything can be checked. Held are 8 bytes an entry, where it
starts, because entries that share data are how a small zip becomes a large tree.
"""

import stat
import zlib
from array import array
from bisect import bisect_right
from calendar import timegm
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import IO

from ciworker.source.archive import PIECE, ArchiveRefused, Limits, Refusal, refuse_member
from ciworker.source.inflate import drawn
from ciworker.source.members import Kind, Member
from ciworker.source.rewrite import Rewriter

_CENTRAL = Struct("<4s6H3L5H2L")
_LOCAL = Struct("<4s5H3L2H")
_END = Struct("<4s4H2LH")
_END_64 = Struct("<4sQ2H2L4Q")
_LOCATOR_64 = Struct("<4sLQL")
_EXTRA = Struct("<2H")

_MAX_COMMENT = 0xFFFF
_IN_ZIP64 = 0xFFFFFFFF
_ZIP64_EXTRA = 1
_WIDE = 8
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_UTF8 = 1 << 11
_UNIX_SYSTEMS = (3, 19)

_DAMAGED = "the zip is damaged or was cut off ({}): pack and send it again"


@dataclass(frozen=True, slots=True)
class _Directory:
    start: int
    end: int
    count: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the central directory; `next` is where the entry after it stands there."""

    raw_name: bytes
    name: bytes
    kind: Kind
    mode: int
    mtime: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    next: int


class Zip:
    """A zip of `length` bytes that is random access."""

    def __init__(self, file: IO[bytes], length: int, limits: Limits) -> None:
        self._file = file
        self._length = length
        self._limits = limits

    def rewrite(self, rewriter: Rewriter) -> Iterator[None]:
        """Hand all members on; yields after each piece, so that one may stop in between.

        Raises `ArchiveRefused`.
        """
        directory = self._directory()
        starts = self._starts(directory)
        for entry in self._entries(directory):
            limit = starts[bisect_right(starts, entry.start)]
            pieces = self._pieces(entry, limit)
            yield from self._hand_on(entry, pieces, rewriter)

    def _hand_on(
        self, entry: _Entry, pieces: Iterator[bytes], rewriter: Rewriter
    ) -> Iterator[None]:
        is_link = entry.kind is Kind.SYMLINK
        if is_link and entry.size >= self._limits.max_path:
            raise refuse_member(entry.name, "is a symlink with too long a target: leave it out")
        member = Member(
            name=entry.name,
            kind=entry.kind,
            mode=entry.mode,
            size=0 if is_link else entry.size,
            mtime=entry.mtime,
            target=b"".join(pieces) if is_link else b"",
        )
        rewriter.begin(member)
        for piece in pieces:
            rewriter.content(piece)
            self._limits.check_ratio(self._length, rewriter.unpacked)
            yield
        rewriter.end()
        yield

    def _at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(size)
        if len(data) != size:
            raise ArchiveRefused(_DAMAGED.format("it is shorter than it says"))
        return data

    def _directory(self) -> _Directory:
        tail_start = max(0, self._length - _END.size - _MAX_COMMENT)
        tail = self._at(tail_start, self._length - tail_start)
        position = tail.rfind(b"PK\x05\x06")
        if position < 0 or len(tail) - position < _END.size:
            raise ArchiveRefused(_DAMAGED.format("its directory is missing"))
        end = tail_start + position
        _, disk, first_disk, here, count, size, start, comment = _END.unpack_from(tail, position)
        if end + _END.size + comment != self._length:
            raise ArchiveRefused(_DAMAGED.format("data follows its end"))
        end_64 = self._end_64(end)
        if end_64 is not None:
            end = end_64
            disk, first_disk, here, count, size, start = self._fields_64(end)
        if disk or first_disk or here != count:
            raise ArchiveRefused("the zip is one part of several: pack it into one file")
        if count > self._limits.max_members:
            raise ArchiveRefused(
                f"the zip has more than {self._limits.max_members:,} entries: leave out what the "
                "tests don't need",
                Refusal.TOO_LARGE,
            )
        if start + size > end:
            raise ArchiveRefused(_DAMAGED.format("its directory does not fit"))
        return _Directory(start, start + size, count)

    def _end_64(self, end: int) -> int | None:
        """Where the zip64 end record stands, if the locator before the end record names one."""
        if end < _LOCATOR_64.size:
            return None
        locator = self._at(end - _LOCATOR_64.size, _LOCATOR_64.size)
        mark, _, offset, _ = _LOCATOR_64.unpack(locator)
        return min(offset, self._length) if mark == b"PK\x06\x07" else None

    def _fields_64(self, offset: int) -> tuple[int, int, int, int, int, int]:
        fields = _END_64.unpack(self._at(offset, _END_64.size))
        if fields[0] != b"PK\x06\x06":
            raise ArchiveRefused(_DAMAGED.format("its directory is missing"))
        disk, first_disk, here, count, size, start = fields[4:]
        return disk, first_disk, here, count, size, start

    def _starts(self, directory: _Directory) -> "array[int]":
        """Where each entry starts, in order, and the directory as an end for the last of them."""
        starts = array("Q", sorted(entry.start for entry in self._entries(directory)))
        if any(first == second for first, second in pairwise(starts)):
            raise ArchiveRefused("entries of the zip share their data: pack and send it again")
        if starts and starts[-1] >= directory.start:
            raise ArchiveRefused(_DAMAGED.format("an entry is not where it should be"))
        starts.append(directory.start)
        return starts

    def _entries(self, directory: _Directory) -> Iterator[_Entry]:
        offset = directory.start
        for _ in range(directory.count):
            entry = self._entry(offset)
            offset = entry.next
            if offset > directory.end:
                raise ArchiveRefused(_DAMAGED.format("its directory does not fit"))
            yield entry
        if offset != directory.end:
            raise ArchiveRefused(_DAMAGED.format("its directory does not fit"))

    def _entry(self, offset: int) -> _Entry:
        fields = _CENTRAL.unpack(self._at(offset, _CENTRAL.size))
        mark, made_by, _, flags, method, time, date, crc = fields[:8]
        packed, size, name_size, extra_size, comment_size, _, _, attributes, start = fields[8:]
        if mark != b"PK\x01\x02":
            raise ArchiveRefused(_DAMAGED.format("an entry of its directory is missing"))
        variable = self._at(offset + _CENTRAL.size, name_size + extra_size)
        raw_name = variable[:name_size]
        name = raw_name if flags & _UTF8 else raw_name.decode("cp437").encode()
        size, packed, start = _widened(variable[name_size:], size, packed, start)
        mode = attributes >> 16 if made_by >> 8 in _UNIX_SYSTEMS else 0
        return _Entry(
            raw_name=raw_name,
            name=name,
            kind=_kind(name, mode),
            mode=stat.S_IMODE(mode),
            mtime=_mtime(date, time),
            flags=flags,
            method=method,
            crc=crc,
            packed=packed,
            size=size,
            start=start,
            next=offset + _CENTRAL.size + name_size + extra_size + comment_size,
        )

    def _pieces(self, entry: _Entry, limit: int) -> Iterator[bytes]:
        """The entry's contents, checked against its size and CRC; all of it lies before `limit`."""
        start = self._data_start(entry)
        if start + entry.packed > limit:
            raise refuse_member(entry.name, "shares its data with another: pack and send it again")
        missing, crc = entry.size, 0
        for piece in self._inflated(entry, start):
            missing -= len(piece)
            crc = zlib.crc32(piece, crc)
            if missing < 0:
                break
            yield piece
        if missing or crc != entry.crc:
            raise refuse_member(
                entry.name, "is not what the zip says it is: pack and send it again"
            )

    def _data_start(self, entry: _Entry) -> int:
        if entry.flags & _ENCRYPTED:
            raise refuse_member(entry.name, "is encrypted: pack without a password")
        if entry.method not in (_STORED, _DEFLATED):
            raise refuse_member(
                entry.name, "is packed by another method than deflate: pack with zip's default"
            )
        local = _LOCAL.unpack(self._at(entry.start, _LOCAL.size))
        mark: bytes = local[0]
        name_size: int = local[-2]
        extra_size: int = local[-1]
        name = self._file.read(name_size)
        if mark != b"PK\x03\x04" or name != entry.raw_name:
            raise refuse_member(entry.name, "has another name at its data: pack and send it again")
        return entry.start + _LOCAL.size + name_size + extra_size

    def _inflated(self, entry: _Entry, start: int) -> Iterator[bytes]:
        packed = self._packed(start, entry.packed)
        if entry.method == _STORED:
            yield from packed
            return
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for data in packed:
                yield from drawn(stream, data)
        except zlib.error as error:
            raise refuse_member(
                entry.name, f"is damaged ({error}): pack and send it again"
            ) from error
        if not stream.eof or stream.unused_data:
            raise refuse_member(entry.name, "is damaged: pack and send it again")

    def _packed(self, start: int, size: int) -> Iterator[bytes]:
        for offset in range(start, start + size, PIECE):
            yield self._at(offset, min(PIECE, start + size - offset))


def _widened(extra: bytes, *values: int) -> Iterator[int]:
    """The sizes and offset of an entry, where need be from its zip64 field, in the same order."""
    field = _zip64_field(extra) if _IN_ZIP64 in values else b""
    for value in values:
        if value != _IN_ZIP64:
            yield value
            continue
        if len(field) < _WIDE:
            raise ArchiveRefused(_DAMAGED.format("a size is missing"))
        yield int.from_bytes(field[:_WIDE], "little")
        field = field[_WIDE:]


def _zip64_field(extra: bytes) -> bytes:
    position = 0
    while position + _EXTRA.size <= len(extra):
        number, size = _EXTRA.unpack_from(extra, position)
        position += _EXTRA.size
        if number == _ZIP64_EXTRA:
            return extra[position : position + size]
        position += size
    return b""


def _kind(name: bytes, mode: int) -> Kind:
    form = stat.S_IFMT(mode)
    if form == stat.S_IFLNK:
        return Kind.SYMLINK
    if form == stat.S_IFDIR or name.endswith(b"/"):
        return Kind.FOLDER
    if form not in (0, stat.S_IFREG):
        raise refuse_member(name, "is a device, FIFO or socket: leave it out")
    return Kind.FILE


def _mtime(date: int, time: int) -> int:
    """DOS's date and time, taken as UTC for want of a zone; a missing month or day is the first."""
    year, month, day = 1980 + (date >> 9), date >> 5 & 15, date & 31
    hour, minute, second = time >> 11, time >> 5 & 63, 2 * (time & 31)
    return timegm((year, min(max(month, 1), 12), max(day, 1), hour, minute, second))

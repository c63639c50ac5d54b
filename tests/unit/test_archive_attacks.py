"""What must never become a workspace is refused by name, with the mend, and leaves nothing."""

import asyncio
import gzip
import io
import random
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
import zstandard

from ciworker.source.archive import ArchiveRefused, Limits, Refusal, Workspace
from ciworker.source.intake import Intake
from ciworker.source.spool import END_OF_ARCHIVE

LIMITS = Limits(max_packed=8 << 20, max_unpacked=8 << 20, max_members=100)
INVALID, TOO_LARGE = Refusal.INVALID, Refusal.TOO_LARGE

Info = tarfile.TarInfo


def take(packed: bytes, target: Path, limits: Limits = LIMITS, pieces: int = 1) -> Workspace:
    async def upload() -> Workspace:
        intake = Intake(target, limits, now=2_000_000_000.0, batch=4)
        size = len(packed) // pieces + 1
        for start in range(0, len(packed), size):
            await intake.feed(packed[start : start + size])
        return await intake.finish()

    return asyncio.run(upload())


def refused(packed: bytes, folder: Path, limits: Limits = LIMITS) -> ArchiveRefused:
    """The refusal, the same whether the archive comes whole or in pieces, and nothing is left."""
    refusals = []
    for pieces in (1, 13):
        with pytest.raises(ArchiveRefused) as caught:
            take(packed, folder / "spool", limits, pieces)
        assert list(folder.iterdir()) == []
        refusals.append(caught.value)
    assert str(refusals[0]) == str(refusals[1])
    assert str(refusals[0]).isprintable()
    return refusals[0]


def member(name: str, type_: bytes = tarfile.REGTYPE, target: str = "", mode: int = 0o644) -> Info:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = type_, target, mode
    return info


def folder(name: str) -> Info:
    return member(name, tarfile.DIRTYPE)


def symlink(name: str, target: str) -> Info:
    return member(name, tarfile.SYMTYPE, target)


def hardlink(name: str, target: str) -> Info:
    return member(name, tarfile.LNKTYPE, target)


def tar(*members: Info, fmt: int = tarfile.GNU_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=fmt) as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return packed.getvalue()


def sized(info: Info, size: int) -> Info:
    claiming = copy(info)
    claiming.size = size
    return claiming


def blocks(*members: Info) -> bytes:
    """Headers alone, with whatever sizes they claim."""
    return b"".join(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") for info in members)


def edited(block: bytes, offset: int, value: bytes) -> bytes:
    """A header with a field replaced and its checksum mended."""
    data = bytearray(block)
    data[offset : offset + len(value)] = value
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


def extended(payload: bytes, typeflag: bytes = tarfile.XHDTYPE) -> bytes:
    info = sized(member("extended"), len(payload))
    return edited(blocks(info), 156, typeflag) + payload + bytes(-len(payload) % 512)


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    while len(str(size)) + len(key) + len(value) + 3 != size:
        size += 1
    return b"%d %b=%b\n" % (size, key, value)


FILE = member("file")
END = END_OF_ARCHIVE

BAD_MEMBERS: dict[str, tuple[bytes, str]] = {
    "a parent folder": (tar(member("a/../../b")), "'a/../../b' has '..' in its name"),
    "an absolute path": (tar(member("/etc/passwd")), "'/etc/passwd' is an absolute path"),
    "no name": (tar(member("")), "a member has no name"),
    "a root that is a file": (tar(member(".")), "names the root"),
    "a terminal escape": (
        tar(member("a\x1b]0;owned\x07b")),
        r"'a\x1b]0;owned\x07b' has control characters",
    ),
    "a C1 control": (tar(member("a\x9b2Jb")), r"'a\x9b2Jb' has control characters"),
    "a newline": (tar(member("a\nb")), r"'a\nb' has control characters"),
    "a NUL in a pax path": (
        extended(record(b"path", b"a\0b")) + blocks(FILE) + END,
        r"'a\x00b' has control characters",
    ),
    "a NUL in a long name": (
        extended(b"a\0b\0", tarfile.GNUTYPE_LONGNAME) + blocks(FILE) + END,
        r"'a\x00b' has control characters",
    ),
    "a long component": (tar(member("a" * 256)), "has a component of over 255 bytes"),
    "a long path": (tar(member("a/" * 2100 + "b")), "is a path of over 4,096 bytes"),
    "a bidi override in a bad name": (tar(member("../a\u202eb")), r"'../a\u202eb' has '..'"),
    "a character device": (tar(member("tty", tarfile.CHRTYPE)), "'tty' is a character device"),
    "a block device": (tar(member("disk", tarfile.BLKTYPE)), "'disk' is a block device"),
    "a FIFO": (tar(member("pipe", tarfile.FIFOTYPE)), "'pipe' is a FIFO"),
    "a sparse file": (
        edited(blocks(FILE), 156, tarfile.GNUTYPE_SPARSE) + END,
        "'file' is a sparse file: pack without --sparse",
    ),
    "a pax sparse file": (
        extended(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.name", b"hole"))
        + blocks(FILE)
        + END,
        "'hole' is a sparse file",
    ),
    "a second volume": (edited(blocks(FILE), 156, b"M") + END, "'file' is from a multi-volume"),
    "a volume label": (edited(blocks(FILE), 156, b"V") + END, "'file' is a volume label"),
    "an incremental folder": (edited(blocks(FILE), 156, b"D") + END, "from an incremental archive"),
    "an unknown type": (edited(blocks(FILE), 156, b"\x1b") + END, r"of an unknown type '\x1b'"),
    "a setuid file": (tar(member("su", mode=0o4755)), "'su' is setuid, setgid or sticky"),
    "a setgid file": (tar(member("sg", mode=0o2755)), "'sg' is setuid, setgid or sticky"),
    "a sticky file": (tar(member("st", mode=0o1755)), "'st' is setuid, setgid or sticky"),
    "an absolute symlink": (tar(symlink("s", "/etc")), "'s' is a symlink to an absolute path"),
    "a symlink out": (tar(symlink("s", "..")), "'s' is a symlink that leads out of the tree"),
    "a symlink out and in again": (
        tar(symlink("a/s", "../../src/b")),
        "'a/s' is a symlink that leads out of the tree",
    ),
    "a symlink out by a detour": (tar(symlink("a/s", "b/../../..")), "leads out of the tree"),
    "a symlink to nothing": (tar(symlink("s", "")), "'s' is a symlink to nothing"),
    "a symlink with an escape": (tar(symlink("s", "\x1b[2J")), "'s' is a symlink with control"),
    "a symlink to far too much": (tar(symlink("s", "a/" * 2048)), "with too long a target"),
    "a member below a symlink": (
        tar(symlink("a", "b"), member("a/c")),
        "'a/c' lies below a file or a link",
    ),
    "a member below a file": (tar(member("a"), member("a/c")), "'a/c' lies below a file or a link"),
    "a symlink over a folder": (
        tar(member("a/c"), symlink("a", "b")),
        "'a' is a folder and something else",
    ),
    "a hard link to nothing": (tar(hardlink("h", "gone")), "'h' is a hard link to no earlier file"),
    "a hard link out": (tar(hardlink("h", "../x")), "'../x' has '..' in its name"),
    "an absolute hard link": (tar(hardlink("h", "/etc/shadow")), "'/etc/shadow' is an absolute"),
    "a hard link to a symlink": (
        tar(symlink("s", "x"), hardlink("h", "s")),
        "'h' is a hard link to no earlier file",
    ),
    "a hard link to a folder": (tar(folder("d"), hardlink("h", "d")), "to no earlier file"),
    "a hard link to itself": (tar(hardlink("h", "h")), "'h' is a hard link to no earlier file"),
    "a hard link with data": (
        edited(blocks(sized(FILE, 9)), 156, b"1") + END,
        "'file' is a hard link that carries data",
    ),
    "a folder with data": (
        edited(blocks(sized(FILE, 9)), 156, b"5") + END,
        "'file' is a folder that carries data",
    ),
    "a duplicate": (tar(FILE, member("./file")), "'./file' is in the archive twice"),
    "a folder twice": (tar(folder("a"), folder("a/")), "is in the archive twice"),
    "names that clash by case": (tar(member("a"), member("A")), "'A' differs from an earlier name"),
    "names that clash by accents": (
        tar(member("caf\u00e9"), member("cafe\u0301")),
        "differs from an earlier name only in case or in how its accents are written",
    ),
    "names that clash by a sharp s": (tar(member("stra\u00dfe"), member("STRASSE")), "'STRASSE'"),
    "folders that clash by case": (
        tar(member("a/b/one"), member("a/B/two")),
        "'a/B/two' differs from an earlier name",
    ),
    "a job file that is a link": (
        tar(FILE, symlink(".ciworker.toml", "file")),
        "'.ciworker.toml' is a link: the worker reads this file",
    ),
    "a job file that is a hard link": (
        tar(FILE, hardlink("pyproject.toml", "file")),
        "'pyproject.toml' is a link: the worker reads this file",
    ),
}


@pytest.mark.parametrize(("packed", "sentence"), BAD_MEMBERS.values(), ids=BAD_MEMBERS)
@pytest.mark.attacks(32)
def test_a_member_that_breaks_the_rules_is_refused_by_name(
    tmp_path: Path, packed: bytes, sentence: str
) -> None:
    refusal = refused(packed, tmp_path)
    assert sentence in str(refusal)
    assert refusal.kind is INVALID
    assert ": " in str(refusal), "says what to do"


def torn(packed: bytes) -> bytes:
    return packed[:-700]


def flipped(packed: bytes, offset: int) -> bytes:
    return packed[:offset] + bytes([packed[offset] ^ 0xFF]) + packed[offset + 1 :]


WHOLE = tar(sized(member("file"), 20_000))
ZIPPED = gzip.compress(WHOLE)
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(WHOLE)
LONG_WINDOW = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters.from_level(3, window_log=24)
).compressobj()
LONG_WINDOW_STREAM = LONG_WINDOW.compress(WHOLE) + LONG_WINDOW.flush()
NOISE = random.Random(1).randbytes(3000)

DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "the archive is empty, 0 bytes: send a tar"),
    "one byte": (b"x", "is no archive: send a tar, tar.gz, tar.zst or zip"),
    "text": (b"hello\n" * 500, "is no archive: send a tar"),
    "noise": (NOISE, "is no archive: send a tar"),
    "gzipped text": (gzip.compress(b"hello\n" * 500), "is no archive"),
    "a gzip in a gzip": (gzip.compress(ZIPPED), "is no archive"),
    "a bzip2": (b"BZh91AY&SY", "this is bzip2: send a tar"),
    "an xz": (b"\xfd7zXZ\0\0", "this is xz: send a tar"),
    "an end mark alone": (END, "holds no files: pack the root of your tree"),
    "folders alone": (tar(folder("a"), symlink("b", "a")), "holds no files"),
    "an empty zip": (b"PK\x05\x06" + bytes(18), "holds no files"),
    "a tar cut in a file": (WHOLE[:9000], "stops in the middle of 'file': it was cut off"),
    "a tar cut at a member": (tar(FILE)[:512], "stops without an end mark: it was cut off"),
    "a tar cut in its end": (tar(FILE)[: 3 * 512 - 1], "stops without an end mark"),
    "half an end mark": (tar(FILE)[:1024] + blocks(FILE), "its end mark is not whole"),
    "data behind the end": (tar(FILE) + tar(FILE), "data follows the archive's end"),
    "a wrong checksum": (flipped(tar(FILE, member("b")), 600), "a header's checksum is wrong"),
    "a negative size": (
        edited(blocks(FILE), 124, b"\xff" * 12) + END,
        "'file' has a negative size",
    ),
    "a size that is no number": (
        edited(blocks(FILE), 124, b"-0000000001\0") + END,
        "a header holds no number where one belongs",
    ),
    "a pax size that is no number": (
        extended(record(b"size", b"-1")) + blocks(FILE) + END,
        "a pax header holds no number",
    ),
    "a pax record without an end": (extended(b"99 path=a\n") + blocks(FILE) + END, "is malformed"),
    "a pax record of no length": (extended(b"0 path=a\n") + blocks(FILE) + END, "is malformed"),
    "a pax record of a wrong length": (extended(b"8 path=a\n") + blocks(FILE) + END, "malformed"),
    "a global pax path": (
        extended(record(b"path", b"a"), tarfile.XGLTYPE) + blocks(FILE) + END,
        "a global pax header names members",
    ),
    "a gzip cut": (torn(ZIPPED + bytes(690)), "the gzip stream ends early"),
    "a gzip with a wrong CRC": (flipped(ZIPPED, -8), "incorrect data check"),
    "a gzip with a wrong length": (flipped(ZIPPED, -4), "incorrect length check"),
    "garbage behind a gzip": (ZIPPED + b"garbage", "the gzip stream is damaged or followed"),
    "zeros behind a gzip": (ZIPPED + bytes(512), "the gzip stream is damaged or followed"),
    "a zstd cut": (ZSTD[:-5], "the zstd stream ends early"),
    "a zstd cut before its checksum": (ZSTD[:-4], "the zstd stream ends early"),
    "a zstd with a wrong checksum": (flipped(ZSTD, -1), "doesn't match checksum"),
    "garbage behind a zstd": (ZSTD + b"garbage", "the zstd stream is damaged or followed"),
    "a little garbage behind a zstd": (ZSTD + b"\0", "the zstd stream ends early"),
    "a zstd window of 16 MiB": (LONG_WINDOW_STREAM, "asks for a window of over 8 MiB"),
    "a zstd of tiny blocks": (
        b"\x28\xb5\x2f\xfd\x00\x58\x00\x10\x00"
        + blocks(sized(FILE, 5000))
        + b"\x08\x00\x00a" * 2000,
        "is made of tiny blocks: compress it in one go",
    ),
}


@pytest.mark.parametrize(("packed", "sentence"), DAMAGED.values(), ids=DAMAGED)
@pytest.mark.attacks(34)
def test_what_is_no_whole_archive_is_refused(tmp_path: Path, packed: bytes, sentence: str) -> None:
    refusal = refused(packed, tmp_path)
    assert sentence in str(refusal)
    assert refusal.kind is INVALID


@pytest.mark.parametrize("packed", [WHOLE, ZIPPED, ZSTD], ids=["tar", "gzip", "zstd"])
@pytest.mark.attacks(34)
def test_no_prefix_of_an_archive_is_taken_for_the_whole(tmp_path: Path, packed: bytes) -> None:
    needed = 512 + 20_480 + 1024 if packed is WHOLE else len(packed)
    for length in random.Random(3).sample(range(needed), k=min(needed, 25)):
        refused(packed[:length], tmp_path)


def zipped(
    *entries: tuple[str, bytes], mode: int = 0o100644, method: int = zipfile.ZIP_DEFLATED
) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = method
            archive.writestr(info, data)
    return packed.getvalue()


ZIP = zipped(("file", b"contents" * 100))


def patched(packed: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    start = packed.index(mark) + offset
    return packed[:start] + value + packed[start + len(value) :]


def both_patched(packed: bytes, offset: int, value: bytes) -> bytes:
    """The same field of the first entry in its local and its central header."""
    local = patched(packed, b"PK\x03\x04", offset, value)
    return patched(local, b"PK\x01\x02", offset + 2, value)


def overlapping() -> bytes:
    """Two entries of the directory with the same data, as overlap bombs have thousands."""
    packed = zipped(("one", bytes(5000)), ("two", bytes(5000)))
    return packed.replace(
        struct.pack("<L", packed.rindex(b"PK\x03\x04")) + b"two", bytes(4) + b"two"
    )


def padded() -> bytes:
    """An entry with a byte behind its stream."""
    start = ZIP.index(b"PK\x01\x02")
    packed = ZIP[:start] + b"x" + ZIP[start:]
    size = ZIP[start + 20] + 1
    longer = patched(packed, b"PK\x01\x02", 20, bytes([size]))
    return patched(longer, b"PK\x05\x06", 16, struct.pack("<L", start + 1))


def nested() -> bytes:
    """An entry whose data is another entry, local header and all."""
    inner = zipped(("in", b"data"), method=zipfile.ZIP_STORED)
    outer = zipped(("out", inner), method=zipfile.ZIP_STORED)
    central_inner = inner[inner.index(b"PK\x01\x02") : inner.index(b"PK\x05\x06")]
    offset = struct.pack("<L", outer.index(b"PK\x03\x04", 4))
    start, end = outer.rindex(b"PK\x01\x02"), outer.rindex(b"PK\x05\x06")
    directory = outer[start:end] + central_inner[:42] + offset + central_inner[46:]
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), start, 0)
    return outer[:start] + directory + tail


BAD_ZIPS: dict[str, tuple[bytes, str]] = {
    "a parent folder": (zipped(("../a", b"")), "'../a' has '..' in its name"),
    "an absolute path": (zipped(("/a", b"")), "'/a' is an absolute path"),
    "an escape in a name": (zipped(("a\x1bb", b"")), r"'a\x1bb' has control characters"),
    "a symlink out": (zipped(("s", b"../x"), mode=0o120777), "'s' is a symlink that leads out"),
    "a long symlink": (zipped(("s", b"a/" * 5000), mode=0o120777), "with too long a target"),
    "a FIFO": (zipped(("pipe", b""), mode=0o010644), "'pipe' is a device, FIFO or socket"),
    "a device": (zipped(("tty", b""), mode=0o020644), "'tty' is a device, FIFO or socket"),
    "a setuid file": (zipped(("su", b""), mode=0o104755), "'su' is setuid, setgid or sticky"),
    "a folder with data": (zipped(("a/", b"data")), "'a/' is a folder that carries data"),
    "a duplicate": (zipped(("a", b""), ("./a", b"")), "'./a' is in the archive twice"),
    "an encrypted file": (both_patched(ZIP, 6, b"\1"), "'file' is encrypted"),
    "an odd method": (zipped(("a", b"x"), method=zipfile.ZIP_LZMA), "'a' is packed by another"),
    "entries that share data": (overlapping(), "entries of the zip share their data"),
    "an entry within another": (nested(), "shares its data with another"),
    "an entry that reaches into the directory": (
        both_patched(zipped(("a", b"x" * 50), method=zipfile.ZIP_STORED), 18, b"\x40"),
        "'a' shares its data with another",
    ),
    "an entry behind the end": (
        patched(ZIP, b"PK\x01\x02", 42, b"\xff\xff"),
        "an entry is not where it should be",
    ),
    "another name at the data": (patched(ZIP, b"file", 0, b"liar"), "'file' has another name"),
    "a wrong CRC": (patched(ZIP, b"PK\x01\x02", 16, bytes(4)), "'file' is not what the zip says"),
    "more than it says": (patched(ZIP, b"PK\x01\x02", 24, b"\x01"), "'file' is not what"),
    "less than it says": (patched(ZIP, b"PK\x01\x02", 24, b"\xff"), "'file' is not what"),
    "a broken stream": (patched(ZIP, b"PK\x03\x04", 34, b"\xff\xff"), "'file' is damaged (Error"),
    "a stream that does not end": (
        patched(ZIP, b"PK\x01\x02", 20, b"\x05"),
        "'file' is damaged: pack",
    ),
    "a byte behind a stream": (padded(), "'file' is damaged: pack"),
    "a directory elsewhere": (patched(ZIP, b"PK\x05\x06", 16, b"\x01"), "its directory"),
    "a directory of another size": (patched(ZIP, b"PK\x05\x06", 12, b"\x01"), "its directory"),
    "a count too small": (
        patched(zipped(("a", b""), ("b", b"")), b"PK\x05\x06", 8, b"\1\0\1\0"),
        "its directory does not fit",
    ),
    "one part of several": (patched(ZIP, b"PK\x05\x06", 4, b"\1"), "is one part of several"),
    "a cut end": (ZIP[:-1], "its directory is missing"),
    "a cut": (ZIP[:40], "its directory is missing"),
    "garbage behind it": (ZIP + b"garbage", "data follows its end"),
    "a size in a missing zip64 field": (
        patched(ZIP, b"PK\x01\x02", 24, b"\xff" * 4),
        "a size is missing",
    ),
    "a zip64 locator to nowhere": (
        ZIP[:-22] + b"PK\x06\x07" + b"\xff" * 16 + ZIP[-22:],
        "it is shorter than it says",
    ),
}


@pytest.mark.parametrize(("packed", "sentence"), BAD_ZIPS.values(), ids=BAD_ZIPS)
@pytest.mark.attacks(32)
def test_a_zip_that_breaks_the_rules_is_refused(
    tmp_path: Path, packed: bytes, sentence: str
) -> None:
    refusal = refused(packed, tmp_path)
    assert sentence in str(refusal)
    assert refusal.kind is INVALID


MANY = tar(*(member(f"f{number}") for number in range(101)))
DEEP = tar(member("/".join(f"d{number}" for number in range(101))))
BIG = tar(sized(member("a"), 5 << 20), sized(member("b"), 5 << 20))

TOO_MUCH: dict[str, tuple[bytes, str]] = {
    "members": (MANY, "more than 100 files and folders"),
    "implied folders": (DEEP, "more than 100 files and folders"),
    "entries of a zip": (zipped(*((f"f{n}", b"") for n in range(101))), "more than 100 entries"),
    "bytes in all": (gzip.compress(BIG, 1), "'b' takes the files to over 8,388,608 bytes"),
    "bytes in a zip": (zipped(("a", bytes(9 << 20))), "'a' takes the files to over 8,388,608"),
    "a size by base 256": (blocks(sized(member("a"), 1 << 50)), "'a' takes the files to over"),
    "a size by pax": (
        extended(record(b"size", b"9" * 20)) + blocks(FILE),
        "'file' takes the files to over",
    ),
    "a pax header": (blocks(sized(member("x", tarfile.XHDTYPE), 300 << 20)), "an extended header"),
    "a long name": (
        blocks(sized(member("x", tarfile.GNUTYPE_LONGNAME), 300 << 20)),
        "an extended header of over 65,536 bytes",
    ),
    "extended headers in a row": (
        extended(record(b"comment", b"c" * 900)) * 60,
        "an extended header of over 65,536 bytes",
    ),
    "empty extended headers in a row": (extended(b"") * 200, "an extended header of over 65,536"),
    "headers in all": (
        b"".join(
            extended(record(b"comment", b"c" * 60_000)) + blocks(member(f"f{number}"))
            for number in range(90)
        ),
        "is mostly headers and padding",
    ),
    "padding": (gzip.compress(tar(FILE) + bytes(6 << 20), 1), "is mostly headers and padding"),
    "gzip members": (gzip.compress(b"") * 200, "is made of too many gzip streams"),
    "zstd frames": (zstandard.compress(b"") * 200, "is made of too many zstd streams"),
    "a job file": (
        tar(sized(member("pyproject.toml"), (1 << 20) + 1)),
        "'pyproject.toml' is over 1,048,576 bytes",
    ),
}


@pytest.mark.parametrize(("packed", "sentence"), TOO_MUCH.values(), ids=TOO_MUCH)
@pytest.mark.attacks(33)
def test_too_much_of_anything_is_refused_at_its_cap(
    tmp_path: Path, packed: bytes, sentence: str
) -> None:
    refusal = refused(packed, tmp_path)
    assert sentence in str(refusal)
    assert refusal.kind is (INVALID if "streams" in sentence else TOO_LARGE)


@pytest.mark.attacks(33)
def test_too_much_is_refused_before_it_is_looked_at(tmp_path: Path) -> None:
    refusal = refused(WHOLE, tmp_path, Limits(max_packed=1000, max_unpacked=1, max_members=1))
    assert str(refusal) == "the archive is over 1,000 bytes: leave out what the tests don't need"
    assert refusal.kind is TOO_LARGE


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.attacks(33)
def test_a_ratio_counts_past_64_mib_alone(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    limits = Limits(max_packed=8 << 20, max_unpacked=1 << 30, max_members=100)
    honest = pack(tar(sized(member("zeros"), 60 << 20)))
    assert take(honest, tmp_path / "spool", limits).unpacked == 60 << 20
    (tmp_path / "spool").unlink()
    refusal = refused(pack(tar(sized(member("zeros"), 70 << 20))), tmp_path, limits)
    assert "more than 200 times its size" in str(refusal)
    assert refusal.kind is TOO_LARGE


@pytest.mark.attacks(33)
def test_a_ratio_counts_in_a_zip_too(tmp_path: Path) -> None:
    limits = Limits(max_packed=8 << 20, max_unpacked=1 << 30, max_members=100)
    refusal = refused(zipped(("zeros", bytes(70 << 20))), tmp_path, limits)
    assert "more than 200 times its size" in str(refusal)
    assert refusal.kind is TOO_LARGE


def test_a_very_long_name_is_shortened_in_the_sentence(tmp_path: Path) -> None:
    refusal = refused(tar(member("../" + "x" * 60_000)), tmp_path)
    assert re.fullmatch(r"'\.\./x+…x+' has '\.\.' in its name: .*", str(refusal))
    assert len(str(refusal)) < 300


@pytest.mark.attacks(34)
def test_random_damage_is_refused_or_harmless_and_never_an_error_of_another_kind(
    tmp_path: Path,
) -> None:
    dice = random.Random(5)
    samples = [
        tar(FILE, symlink("s", "file"), hardlink("h", "file"), fmt=tarfile.PAX_FORMAT),
        extended(record(b"path", b"p") + record(b"mtime", b"1.5")) + blocks(FILE) + END,
        zipped(("a", b"x" * 300), ("b/", b"")),
        ZSTD,
        ZIPPED,
    ]
    for _ in range(250):
        packed = bytearray(dice.choice(samples))
        for _ in range(dice.choice((1, 1, 4))):
            packed[dice.randrange(min(len(packed), 2000))] = dice.randrange(256)
        sentence = sentence_on(bytes(packed), tmp_path / "spool")
        assert sentence.isprintable()
        assert (tmp_path / "spool").exists() is (not sentence)
        (tmp_path / "spool").unlink(missing_ok=True)


def sentence_on(packed: bytes, target: Path) -> str:
    try:
        take(packed, target)
    except ArchiveRefused as refusal:
        return str(refusal)
    return ""


SCENARIOS = {
    "a pax header of 300 MB": "refused",
    "a gigabyte of zeros in a gzip": "refused",
    "a gigabyte of zeros in a zstd": "refused",
    "an honest file of 300 MB": "taken",
    "a zip of 20,000 entries": "taken",
}

SCRIPT = """
import asyncio, io, itertools, re, sys, tarfile, zipfile, zlib
from pathlib import Path
from ciworker.source.archive import ArchiveRefused, Limits
from ciworker.source.intake import Intake

MB = 1 << 20

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

def header(size, type_=tarfile.REGTYPE):
    info = tarfile.TarInfo("big")
    info.size, info.type = size, type_
    return info.tobuf(tarfile.GNU_FORMAT)

def gzipped(start, megabytes):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    yield zeros * megabytes

def zstd_of_zeros(start, megabytes):
    raw = (len(start) << 3).to_bytes(3, "little") + start
    rle = (MB // 8 << 3 | 2).to_bytes(3, "little") + bytes(1)
    yield bytes.fromhex("28b52ffd0058") + raw + rle * 8 * megabytes

def honest(megabytes):
    import random
    noise = random.Random(1).randbytes(MB)
    return itertools.chain([header(megabytes * MB)], [noise] * megabytes, [bytes(1024)])

def entries(count):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(count):
            archive.writestr(zipfile.ZipInfo(f"{number % 300}/{number}"), b"")
    Path(sys.argv[2], "zip").write_bytes(packed.getvalue())

async def upload(chunks):
    limits = Limits(2 << 30, 2 << 30, 100_000)
    before = peak()
    intake = Intake(Path(sys.argv[2], "spool"), limits, 2e9)
    try:
        for chunk in chunks:
            await intake.feed(chunk)
        await intake.finish()
    except ArchiveRefused:
        return "refused", peak() - before
    return "taken", peak() - before

def pieces(path):
    with path.open("rb") as file:
        while data := file.read(65536):
            yield data

CHUNKS = {
    "a pax header of 300 MB": lambda: gzipped(header(300 * MB, tarfile.XHDTYPE), 300),
    "a gigabyte of zeros in a gzip": lambda: gzipped(header(1024 * MB), 1024),
    "a gigabyte of zeros in a zstd": lambda: zstd_of_zeros(header(1024 * MB), 1024),
    "an honest file of 300 MB": lambda: honest(300),
    "a zip of 20,000 entries": lambda: pieces(Path(sys.argv[2], "zip")),
}
if sys.argv[1] == "make":
    entries(20_000)
else:
    print(*asyncio.run(upload(CHUNKS[sys.argv[1]]())))
"""


def in_a_process(scenario: str, folder: Path) -> str:
    script = [sys.executable, "-c", SCRIPT, scenario, str(folder)]
    return subprocess.run(script, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.parametrize(("scenario", "outcome"), SCENARIOS.items(), ids=SCENARIOS)
@pytest.mark.attacks(33)
def test_memory_stays_flat(tmp_path: Path, scenario: str, outcome: str) -> None:
    if "zip of" in scenario:
        in_a_process("make", tmp_path)
    measured, megabytes = in_a_process(scenario, tmp_path).split()
    assert measured == outcome
    assert int(megabytes) < 40

"""Any archive is refused in words and leaves nothing, or unpacks into its own folder alone.

The judge of what was taken is the `tar` that containers unpack it with, run on a folder between
canaries.
"""

import gzip
import io
import stat
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciworker.source.spool import clean_tar
from tests.conftest import Attack
from tests.unit.test_archive_attacks import sentence_on

pytestmark = [pytest.mark.fuzz, pytest.mark.attacks(32)]

FEW, MANY = 150, 6000
bounded = settings(
    max_examples=FEW,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
long_bounded = settings(bounded, max_examples=MANY, derandomize=False)

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
# Mostly what is fine, so that some archives are: what follows a bad member is not looked at.
PARTS = st.sampled_from(
    [*("a", "b", "c", "d.py", "link", "folder") * 16,
     "..", ".", "", "A", "canary", "src", "\x1b]0;x\x07", "a\nb", "\x9b2J", "\\", "C:", "e\u0301",
     "\u00e9", ".git", ".ciworker", "run", "-x", "x" * 300, "\udcff", "\u202e"]
)  # fmt: skip
NAMES = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
TYPES = st.sampled_from(
    [*(tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE) * 8,
     tarfile.AREGTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
     tarfile.GNUTYPE_SPARSE, b"Z"]
)  # fmt: skip
MODES = st.sampled_from(
    [*(0o644, 0o755, 0o600) * 8, 0o000, 0o4755, 0o2755, 0o7777, 0o20644, 0o120777, 0o60600]
)


class Member(NamedTuple):
    name: str
    type: bytes
    target: str
    mode: int
    content: bytes


MEMBERS = st.lists(
    st.builds(Member, NAMES, TYPES, NAMES, MODES, st.binary(max_size=40)), max_size=6
)
DAMAGE = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=3)


def tar_of(members: Iterable[Member], fmt: int) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=fmt, errors="surrogateescape") as archive:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname, info.mode = member.type, member.target, member.mode
            info.size = len(member.content) if member.type in tarfile.REGULAR_TYPES else 0
            try:
                archive.addfile(info, io.BytesIO(member.content))
            except ValueError:  # a name that this format cannot hold
                continue
    return packed.getvalue()


def zip_of(members: Iterable[Member], method: int) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "w", method) as archive:
        warnings.simplefilter("ignore", UserWarning)  # of a name that is there twice
        for member in members:
            name = member.name.encode(errors="surrogateescape").decode("cp437")
            info = zipfile.ZipInfo(name + "/" * (member.type == tarfile.DIRTYPE))
            kind = stat.S_IFLNK if member.type == tarfile.SYMTYPE else stat.S_IFMT(member.mode)
            info.external_attr = (kind | stat.S_IMODE(member.mode)) << 16
            info.compress_type = method
            link = member.type == tarfile.SYMTYPE
            content = member.target.encode(errors="surrogateescape") if link else member.content
            archive.writestr(info, content)
    return packed.getvalue()


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """A tar or zip of hostile members, as it is, packed again, cut, or damaged."""
    members = draw(MEMBERS)
    tar = tar_of(members, draw(st.sampled_from(FORMATS)))
    kind = draw(st.sampled_from(["tar", "gzip", "zstd", "stored", "deflated"]))
    packed = _packed(kind, tar, members)
    harm = draw(st.sampled_from(["none", "none", "cut", "damage"]))
    if harm == "cut":
        return packed[: draw(st.integers(0, len(packed)))]
    damaged = bytearray(packed)
    for place, value in draw(DAMAGE) if harm == "damage" else []:
        damaged[place % len(damaged)] = value
    return bytes(damaged)


def _packed(kind: str, tar: bytes, members: Sequence[Member]) -> bytes:
    if kind == "gzip":
        return gzip.compress(tar, 1)
    if kind == "zstd":
        return zstandard.compress(tar, 1)
    if kind == "tar":
        return tar
    return zip_of(members, zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)


def came_of(packed: bytes, folder: Path) -> bool:
    """Whether it was taken; fails if it did harm, or was refused without a word."""
    spool = folder / "spool"
    if refused := sentence_on(packed, spool):
        assert refused.isprintable()
        assert not spool.exists()
        return False
    try:
        unpacked_harmlessly(b"".join(clean_tar(spool)) + bytes(1024), folder)
    finally:
        spool.unlink()
    return True


def unpacked_harmlessly(tar: bytes, folder: Path) -> None:
    inside = folder / "in"
    inside.mkdir()
    for canary in (folder / "canary", inside / "canary"):
        canary.write_text("untouched")
    words: list[str | Path] = ["tar", "-xf", "-", "--warning=no-timestamp", "-C", inside]
    done = subprocess.run(words, input=tar, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    try:
        assert {path.name for path in folder.iterdir()} == {"spool", "in", "canary"}
        assert {path.name for path in inside.iterdir()} <= {"src", "canary"}
        for canary in (folder / "canary", inside / "canary"):
            assert canary.read_text() == "untouched"
        assert list(strange_ones(inside / "src")) == []
    finally:
        subprocess.run(["rm", "-rf", inside, folder / "canary"], check=True)


def strange_ones(tree: Path) -> Iterator[str]:
    """What a workspace may not hold."""
    for path in sorted(tree.rglob("*")):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            yield f"{path} is no file, folder or link"
        elif stat.S_ISREG(mode) and path.lstat().st_nlink > 1 and not links_inside(path, tree):
            yield f"{path} is a file of somewhere else"
        elif not stat.S_ISLNK(mode) and mode & 0o7000:
            yield f"{path} has mode {mode:o}"
        elif stat.S_ISLNK(mode) and not _leads_inside(path, tree):
            yield f"{path} leads to {path.readlink()}"


def links_inside(path: Path, tree: Path) -> bool:
    """Whether all names of its file are in the tree."""
    own = path.lstat()
    found = [other for other in tree.rglob("*") if other.lstat().st_ino == own.st_ino]
    return len(found) == own.st_nlink


def _leads_inside(path: Path, tree: Path) -> bool:
    try:
        return path.resolve().is_relative_to(tree.resolve())
    except RuntimeError:  # of links that lead to each other
        return True


@bounded
@given(archives())
def test_any_archive_is_refused_in_words_or_stays_in_its_folder(
    tmp_path: Path, packed: bytes
) -> None:
    came_of(packed, tmp_path)


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_thousands_of_archives_are_refused_in_words_or_stay_in_their_folder(
    tmp_path: Path, attack: Attack
) -> None:
    outcomes: list[bool] = []

    @long_bounded
    @given(archives())
    def try_(packed: bytes) -> None:
        outcomes.append(came_of(packed, tmp_path))

    try_()
    assert len(outcomes) / 100 < sum(outcomes) < len(outcomes), "both happen"
    attack(32, tried=len(outcomes))

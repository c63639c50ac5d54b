"""What comes out of an intake is the tree that went in, and a spool file is whole or refused."""

import asyncio
import gzip
import io
import os
import random
import resource
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from unicodedata import normalize

import pytest
import zstandard
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from ciworker.source.archive import Limits, SpoolCorrupt, Workspace
from ciworker.source.intake import Intake
from ciworker.source.members import Kind
from ciworker.source.rewrite import JOBFILES, as_text, reads_by_default
from ciworker.source.spool import END_OF_ARCHIVE, clean_tar, tar_header, tar_member

NOW = 2_000_000_000.0
LIMITS = Limits(max_packed=64 << 20, max_unpacked=64 << 20, max_members=1000)


def halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


def streamed_zstd(data: bytes) -> bytes:
    packer = zstandard.ZstdCompressor(write_checksum=False).compressobj()
    return packer.compress(data) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) + packer.flush()


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, 1),
    "zstd": zstandard.compress,
    "several gzip members": lambda data: b"".join(map(gzip.compress, halves(data))),
    "several zstd frames": lambda data: b"".join(map(zstandard.compress, halves(data))),
    "zstd without sizes and checksums": streamed_zstd,
}
TAR_FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}


@dataclass(frozen=True)
class Node:
    """What a tree holds under a name; `data` is a file's contents or a link's target."""

    kind: Kind
    data: bytes = field(default=b"", repr=False)
    executable: bool = False


Tree = dict[bytes, Node]
READ = [b"pyproject.toml", b".ciworker.toml", b"requirements.txt", b"uv.lock"]


def take(packed: bytes, target: Path, limits: Limits = LIMITS, seed: int = 0) -> Workspace:
    """Feed an archive in chunks of random sizes."""
    cuts = random.Random(seed)

    async def upload() -> Workspace:
        intake = Intake(target, limits, NOW, batch=cuts.choice((4, 10_000, 256 * 1024)))
        start = 0
        while start < len(packed):
            size = cuts.choice((1, 7, 511, 4096, 100_000, 400_000))
            await intake.feed(packed[start : start + size])
            start += size
        return await intake.finish()

    return asyncio.run(upload())


def read_back(target: Path) -> Tree:
    """The tree in a spool file, as the standard library reads its tar."""
    tree = {}
    clean = b"".join(clean_tar(target)) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(clean)) as tar:
        for info in tar:
            assert (info.uid, info.gid, info.uname, info.gname) == (0, 0, "", "")
            assert 0 <= info.mtime <= NOW
            assert info.name.startswith("src/")
            assert info.mode == (0o777 if info.issym() else info.mode & 0o755)
            tree[os.fsencode(info.name.removeprefix("src/"))] = node_of(tar, info)
    return tree


def node_of(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Node:
    if info.isdir():
        return Node(Kind.FOLDER)
    if info.issym():
        return Node(Kind.SYMLINK, os.fsencode(info.linkname))
    if info.islnk():
        return Node(Kind.HARDLINK, os.fsencode(info.linkname.removeprefix("src/")))
    contents = tar.extractfile(info)
    assert contents is not None
    return Node(Kind.FILE, contents.read(), bool(info.mode & 0o100))


def tar_of(tree: Tree, fmt: int = tarfile.PAX_FORMAT) -> bytes:
    types = {
        Kind.FILE: tarfile.REGTYPE,
        Kind.FOLDER: tarfile.DIRTYPE,
        Kind.SYMLINK: tarfile.SYMTYPE,
        Kind.HARDLINK: tarfile.LNKTYPE,
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=fmt) as tar:
        for name, node in tree.items():
            info = tarfile.TarInfo("./" + os.fsdecode(name))
            info.type = types[node.kind]
            info.mode = 0o2775 if node.kind is Kind.FOLDER else 0o700 if node.executable else 0o600
            info.mtime = -1.5 if fmt == tarfile.PAX_FORMAT else int(NOW) + 9
            info.uid, info.uname = 501, "somebody"
            if node.kind is Kind.FILE:
                info.size = len(node.data)
                tar.addfile(info, io.BytesIO(node.data))
                continue
            info.linkname = os.fsdecode(node.data)
            tar.addfile(info)
    return packed.getvalue()


def zip_of(tree: Tree, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    modes = {Kind.FILE: 0o100644, Kind.FOLDER: 0o040755, Kind.SYMLINK: 0o120777}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, node in tree.items():
            info = zipfile.ZipInfo(name.decode() + ("/" if node.kind is Kind.FOLDER else ""))
            mode = modes[node.kind] | (0o111 if node.executable else 0)
            info.external_attr = mode << 16
            info.compress_type = method
            archive.writestr(info, node.data)
    return packed.getvalue()


def is_name(name: bytes) -> bool:
    text = name.decode("utf-8", "surrogateescape")
    if name in (b"", b".", b"..") or len(name) > 255 or b"/" in name:
        return False
    return not any(char < " " or "\x7f" <= char <= "\x9f" for char in text)


def folded(name: bytes) -> str:
    text = normalize("NFD", name.decode("utf-8", "surrogateescape")).casefold()
    return normalize("NFC", text)


UTF8_NAMES = st.one_of(
    st.sampled_from([b"a", b"README.md", *READ, b"x" * 99, b"y" * 255]),
    st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20).map(str.encode),
).filter(is_name)
NAMES = st.one_of(UTF8_NAMES, st.binary(min_size=1, max_size=8).filter(is_name))


def folders(names: st.SearchStrategy[bytes]) -> st.SearchStrategy[dict[bytes, Node]]:
    sizes = st.integers(60_000, 400_000)
    nodes = st.one_of(
        st.builds(Node, st.just(Kind.FILE), st.binary(max_size=2000), st.booleans()),
        st.builds(lambda size: Node(Kind.FILE, b"0123456789" * (size // 10)), sizes),
        st.builds(lambda name: Node(Kind.SYMLINK, b"./" + name), names),
    )
    return st.dictionaries(names, nodes, min_size=1, max_size=4).map(unclashing)


def unclashing(folder: dict[bytes, Node]) -> dict[bytes, Node]:
    return {name: folder[name] for name in {folded(name): name for name in folder}.values()}


@st.composite
def trees(draw: st.DrawFn, names: st.SearchStrategy[bytes]) -> Tree:
    """Files at the root and in folders of two levels, announced or not, with links."""
    files = folders(names)
    tree = {
        name: Node(Kind.FILE, node.data) if name.decode("utf-8", "replace") in JOBFILES else node
        for name, node in draw(files).items()
    }
    for depth in draw(st.lists(st.integers(1, 3), max_size=2)):
        folder = b"/".join([b"folder %d" % depth] + [draw(names)] * (depth - 1))
        if draw(st.booleans()):
            tree[folder] = Node(Kind.FOLDER)
        tree |= {folder + b"/" + name: node for name, node in draw(files).items()}
        tree[folder + b"/up"] = Node(Kind.SYMLINK, b"../" * depth + b"anchor")
    return tree | {b"anchor": Node(Kind.FILE, b"always there")}


def read_files(tree: Tree) -> dict[str, bytes]:
    """The files at the root that the worker reads."""
    files = {as_text(name): node.data for name, node in tree.items() if node.kind is Kind.FILE}
    return {
        name: data
        for name, data in files.items()
        if name is not None and (name in JOBFILES or reads_by_default(name))
    }


def root_names(tree: Tree) -> set[str]:
    names = {name.partition(b"/")[0].decode("utf-8", "replace") for name in tree}
    return {name for name in names if "\N{REPLACEMENT CHARACTER}" not in name}


def check(tree: Tree, packed: bytes, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "spool")
        workspace = take(packed, target, seed=seed)
        files = [node.data for node in tree.values() if node.kind is Kind.FILE]
        assert read_back(target) == tree
        assert workspace == Workspace(
            tar_length=sum(map(len, clean_tar(target))),
            members=len(tree),
            files=len(files),
            unpacked=sum(map(len, files)),
            names=root_names(tree),
            digests={name: sha256(data).hexdigest() for name, data in read_files(tree).items()},
            contents=read_files(tree),
        )
        assert list(Path(folder).iterdir()) == [target]


@pytest.mark.parametrize("packer", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("fmt", TAR_FORMATS.values(), ids=TAR_FORMATS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(NAMES), seed=st.integers(0, 1000))
def test_a_tree_in_any_tar_comes_out_as_it_went_in(
    fmt: int, packer: Callable[[bytes], bytes], tree: Tree, seed: int
) -> None:
    tree = tree | {b"twin": Node(Kind.HARDLINK, b"anchor")}
    try:
        packed = tar_of(tree, fmt)
    except ValueError:  # a name that ustar can't split
        reject()
    check(tree, packer(packed), seed)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees(UTF8_NAMES), seed=st.integers(0, 1000))
def test_a_tree_in_a_zip_comes_out_as_it_went_in(method: int, tree: Tree, seed: int) -> None:
    check(tree, zip_of(tree, method), seed)


def test_the_tar_command_unpacks_a_clean_tar_with_a_last_member_of_the_callers(
    tmp_path: Path,
) -> None:
    long = b"d" * 120 + b"/" + b"f" * 200
    tree = {
        b"run.sh": Node(Kind.FILE, b"echo", executable=True),
        b"caf\xc3\xa9/plain": Node(Kind.FILE, b"1" * 700),
        b"link": Node(Kind.SYMLINK, long),
        long: Node(Kind.FILE, b"long"),
        b"same": Node(Kind.HARDLINK, long),
    }
    take(gzip.compress(tar_of(tree)), tmp_path / "spool")
    last = tar_member(".ciworker/run", b"exec true", 0o644, NOW)
    unpacked = tmp_path / "workspace"
    unpacked.mkdir()
    stream = b"".join(clean_tar(tmp_path / "spool")) + last + END_OF_ARCHIVE

    subprocess.run(["tar", "-xf", "-"], input=stream, cwd=unpacked, check=True, timeout=10)

    assert (unpacked / ".ciworker/run").read_bytes() == b"exec true"
    source = unpacked / "src"
    names = ["café", "d" * 120, "link", "run.sh", "same"]
    assert sorted(path.name for path in source.iterdir()) == names
    assert (source / "run.sh").stat().st_mode & 0o777 == 0o755
    assert (source / "café/plain").stat().st_mode & 0o777 == 0o644
    assert (source / "link").read_bytes() == b"long"
    assert (source / "same").samefile(source / os.fsdecode(long))


def test_sizes_past_eight_gigabytes_are_written_as_tar_reads_them() -> None:
    header = tar_header(b"src/huge", Kind.FILE, mode=0o644, size=1 << 40, mtime=1)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == 1 << 40


def test_leading_dots_doubled_slashes_and_the_root_itself_are_normalised(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("./", ".", "././a//b/./c/"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        tar.addfile(tarfile.TarInfo("./a//b/./c//file"))
    take(packed.getvalue(), tmp_path / "spool")
    assert list(read_back(tmp_path / "spool")) == [b"a/b/c", b"a/b/c/file"]


def test_a_folder_of_v7_and_a_global_pax_comment_are_understood(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(
        fileobj=packed, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c0ffee"}
    ) as tar:
        folder = tarfile.TarInfo("old/")
        folder.type = tarfile.AREGTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("old/file"))
    take(packed.getvalue(), tmp_path / "spool")
    assert read_back(tmp_path / "spool") == {
        b"old": Node(Kind.FOLDER),
        b"old/file": Node(Kind.FILE),
    }


def test_a_zip64_of_unknown_length_and_names_of_code_page_437_are_read(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(zipfile.ZipInfo("large"), "w", force_zip64=True) as file:
            file.write(b"contents")
        archive.writestr("caf\N{LATIN SMALL LETTER E WITH ACUTE}", b"")
    old = packed.getvalue().replace("café".encode(), b"caf\x82!")
    old = clear_utf8_flags(old)
    take(old, tmp_path / "spool")
    assert read_back(tmp_path / "spool") == {
        b"large": Node(Kind.FILE, b"contents"),
        "café!".encode(): Node(Kind.FILE),
    }


def clear_utf8_flags(packed: bytes) -> bytes:
    data = bytearray(packed)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = -1
        while (start := data.find(mark, start + 1)) >= 0:
            data[start + offset + 1] &= ~0x08 & 0xFF
    return bytes(data)


@pytest.mark.parametrize("name", ["pyproject.toml", ".ciworker.toml"])
def test_job_files_are_captured_at_the_root_alone(tmp_path: Path, name: str) -> None:
    tree = {
        name.encode(): Node(Kind.FILE, b"[tool]" * 30_000),
        b"below/" + name.encode(): Node(Kind.FILE, b"not this"),
    }
    workspace = take(zstandard.compress(tar_of(tree)), tmp_path / "spool")
    assert workspace.contents == {name: b"[tool]" * 30_000}


def test_a_spool_file_is_its_owners_alone_and_never_replaces_another(tmp_path: Path) -> None:
    packed = tar_of({b"a": Node(Kind.FILE, b"first")})
    take(packed, tmp_path / "spool")
    with pytest.raises(FileExistsError):
        take(packed, tmp_path / "spool")
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o600
    assert read_back(tmp_path / "spool")[b"a"].data == b"first"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data + data,
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: b"x" + data[1:],
    ],
    ids=["cut by one", "cut in half", "emptied", "doubled", "a flipped bit", "another magic"],
)
def test_a_damaged_spool_file_is_never_read_as_a_whole_one(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    target = tmp_path / "spool"
    take(tar_of({b"a": Node(Kind.FILE, random.Random(1).randbytes(300_000))}), target)
    target.write_bytes(spoil(target.read_bytes()))
    with pytest.raises(SpoolCorrupt, match="the stored workspace spool can't be read"):
        list(clean_tar(target))


def test_a_missing_spool_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SpoolCorrupt, match="No such file"):
        list(clean_tar(tmp_path / "spool"))


async def test_an_abort_leaves_nothing_whenever_it_comes(tmp_path: Path) -> None:
    tree = {b"a": Node(Kind.FILE, random.Random(2).randbytes(3_000_000))}
    for packed in (tar_of(tree), zip_of(tree)):
        for chunks in range(4):
            intake = Intake(tmp_path / "spool", LIMITS, NOW)
            for start in range(0, chunks * 1_000_000, 1_000_000):
                await intake.feed(packed[start : start + 1_000_000])
            intake.abort()
            intake.abort()
            assert list(tmp_path.iterdir()) == []
            with pytest.raises(RuntimeError, match="aborted"):
                await intake.finish()
            assert list(tmp_path.iterdir()) == []


async def test_an_abort_after_the_end_removes_the_spool_file(tmp_path: Path) -> None:
    intake = Intake(tmp_path / "spool", LIMITS, NOW)
    await intake.feed(tar_of({b"a": Node(Kind.FILE)}))
    await intake.finish()
    assert (tmp_path / "spool").exists()
    intake.abort()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pack", [zip_of, lambda tree: gzip.compress(tar_of(tree))])
async def test_an_abort_while_a_thread_is_at_work_stops_it_and_leaves_nothing(
    tmp_path: Path, pack: Callable[[Tree], bytes]
) -> None:
    packed = pack({b"zeros": Node(Kind.FILE, bytes(60_000_000))})
    intake = Intake(tmp_path / "spool", LIMITS, NOW)
    await intake.feed(packed)
    finishing = asyncio.create_task(intake.finish())
    async with asyncio.timeout(10):
        while not (tmp_path / "spool").exists():
            await asyncio.sleep(0)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    intake.abort()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_on_the_disk_before_the_workspace_is_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    take(tar_of({b"a": Node(Kind.FILE)}), tmp_path / "spool")
    assert synced == [str(tmp_path / "spool"), str(tmp_path)]


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_a_disk_that_takes_no_more_is_told_and_left_clean(
    tmp_path: Path, pack: Callable[[Tree], bytes]
) -> None:
    packed = pack({b"a": Node(Kind.FILE, random.Random(6).randbytes(3_000_000))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            take(packed, tmp_path / "spool")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []

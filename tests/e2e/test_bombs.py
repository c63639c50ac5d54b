"""Uploads that are small on the wire and large when they are unpacked: the worker's memory is flat,
its disk as before, and each is refused at a cap, or is never unpacked at all.
"""

import asyncio
import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import pytest
import pytest_asyncio

from tests.driver import Worker, tree
from tests.e2e.conftest import spooled
from tests.e2e.raw import FORM, Answer, ask, form
from tests.e2e.test_limits import MIB, watched

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

FLAT = 96 * MIB  # what a submit may take; the bombs unpack to 300 MiB and more
GIB = 2**30


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def warm(shared: Worker) -> Worker:
    """A worker with the limits that are the default, that has taken uploads before."""
    for _ in range(3):
        job = await shared.submit("true", {"noise": bytes(n * n % 251 for n in range(2_000_000))})
        await shared.wait(job)
    return shared


def zeros(size: int) -> bytes:
    """A deflated stream of so many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join([*(packer.compress(bytes(MIB)) for _ in range(size // MIB)), packer.flush()])


def header(name: bytes, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name.decode())
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


def ratio() -> bytes:
    """A gigabyte of zeros in a gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [packer.compress(header(b"zeros", GIB))]
    pieces += [packer.compress(bytes(MIB)) for _ in range(GIB // MIB)]
    return b"".join([*pieces, packer.flush()])


def many_headers() -> Iterator[bytes]:
    """Of files called 0000000/a/b/c and so on, four inodes each, a thousand at a time."""
    blank = bytearray(header(b"0000000/a/b/c"))
    base = sum(blank[:148]) + sum(blank[156:]) + 8 * ord(" ")
    for thousand in range(250):
        rows = []
        for n in range(thousand * 1000, thousand * 1000 + 1000):
            name = b"%07d" % n
            blank[:7] = name
            blank[148:155] = b"%06o\0" % (base + sum(name) - 7 * ord("0"))
            rows.append(bytes(blank))
        yield b"".join(rows)


def inodes() -> bytes:
    """A million empty files and the folders they are in."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(rows) for rows in many_headers()), packer.flush()])


def zip_of_zeros() -> bytes:
    """A gigabyte of zeros in a zip, that says so."""
    return zip_of([("zeros", 0, GIB)], zeros(GIB), GIB)


def lying_zip() -> bytes:
    """The same, that says it is a kilobyte."""
    return zip_of([("zeros", 0, 1024)], zeros(GIB), 1024)


def overlapping() -> bytes:
    """Two thousand files that are the same bytes of the zip (CVE-2024-0450)."""
    names = [(f"f{n}", 0, 16 * MIB) for n in range(2000)]
    return zip_of(names, zeros(16 * MIB), 16 * MIB)


def zip_of(entries: list[tuple[str, int, int]], packed: bytes, size: int) -> bytes:
    """One local file; the directory's entries are name, offset and size."""
    sizes = struct.pack("<LLL", zlib.crc32(b""), len(packed), size)
    local = b"PK\3\4" + struct.pack("<HHHHH", 20, 0, 8, 0, 0x21) + sizes
    local += struct.pack("<HH", len(entries[0][0]), 0) + entries[0][0].encode() + packed
    directory = b""
    for name, offset, told in entries:
        own = struct.pack("<LLL", zlib.crc32(b""), len(packed), told)
        directory += b"PK\1\2" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0x21) + own
        directory += struct.pack("<HHHHHLL", len(name), 0, 0, 0, 0, 0, offset) + name.encode()
    end = struct.pack("<HHHHLLH", 0, 0, *[len(entries)] * 2, len(directory), len(local), 0)
    return local + directory + b"PK\5\6" + end


BOMBS: dict[str, tuple[Callable[[], bytes], tuple[int, ...]]] = {
    "a gigabyte of zeros": (ratio, (413,)),
    "a million inodes": (inodes, (413,)),
    "a zip of a gigabyte": (zip_of_zeros, (413,)),
    "a zip that lies about it": (lying_zip, (413, 422)),
    "a zip whose files overlap": (overlapping, (413, 422)),
}


async def send(worker: Worker, archive: bytes) -> Answer:
    headers = worker.headers | {"Content-Type": FORM}
    return await ask(worker, "POST", "/api/v1/jobs", headers, form(archive))


async def nothing_is_new(worker: Worker, before: object) -> None:
    async with asyncio.timeout(60):
        while spooled(worker) != before:
            await asyncio.sleep(0.01)


@pytest.mark.attacks(33)
@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_refused_memory_stays_flat_and_nothing_is_left(
    warm: Worker, name: str
) -> None:
    make, statuses = BOMBS[name]
    bomb = await asyncio.to_thread(make)
    assert len(bomb) < 64 * MIB
    before, (_, jobs) = spooled(warm), await warm.call("GET", "/jobs")
    async with watched(warm) as samples:
        answers = [await send(warm, bomb) for _ in range(3)]
    for answer in answers:
        assert answer.status in statuses, answer.body
        assert len(answer.problem) < 400
    assert max(samples) - samples[0] < FLAT
    await nothing_is_new(warm, before)
    assert (await warm.call("GET", "/jobs"))[1] == jobs


@pytest.mark.attacks(33)
async def test_an_archive_within_an_archive_is_a_file_like_others(warm: Worker) -> None:
    """What is in a tree is the job's: the worker unpacks no member."""
    inner, bomb = io.BytesIO(), zip_of([("zeros", 0, 300 * MIB)], zeros(300 * MIB), 300 * MIB)
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_STORED) as nest:
        for n in range(16):
            nest.writestr(f"{n}.zip", bomb)
    packed = gzip.compress(tree({"nest.zip": inner.getvalue()}), 1)
    async with watched(warm) as samples:
        status, job = await warm.post(packed, {"run": "wc -c nest.zip"})
        assert (status, job["source"]["bytes"]) == (201, len(inner.getvalue()))
        ended = await warm.wait(job["id"])
    assert (ended["reason"], max(samples) - samples[0] < FLAT) == ("passed", True)
    assert await warm.text(job["id"]) == b"%d nest.zip\n" % len(inner.getvalue())


@pytest.mark.attacks(33)
@pytest.mark.parametrize(
    ("method", "path", "content_type"),
    [
        ("POST", "/api/v1/jobs", FORM),
        ("POST", "/api/v1/tokens", "application/json"),
        ("POST", "/api/v1/login-codes", "application/json"),
        ("POST", "/login", "application/x-www-form-urlencoded"),
        ("POST", "/api/v1/resync", "application/json"),
    ],
)
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br, gzip"])
async def test_a_compressed_body_is_inflated_nowhere(
    warm: Worker, method: str, path: str, content_type: str, encoding: str
) -> None:
    """292 kB that aiohttp would make 300 MB of (engine-facts, rule 23)."""
    body = (
        gzip.compress(bytes(300 * MIB)) if "gzip" in encoding else zlib.compress(bytes(300 * MIB))
    )
    own = {"Origin": f"http://127.0.0.1:{warm.port}", "Content-Encoding": encoding}
    headers = warm.headers | own | {"Content-Type": content_type}
    before = spooled(warm)
    async with watched(warm) as samples:
        answer = await ask(warm, method, path, headers, body)
    assert answer.status in ((200,) if path.endswith("resync") else (400, 403, 413, 415, 422))
    assert max(samples) - samples[0] < FLAT
    await nothing_is_new(warm, before)

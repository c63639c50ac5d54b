"""Submits that are refused: a sentence for the sender, and nothing left behind."""

import asyncio
import base64
import gzip
import io
import json
import socket
import sqlite3
import struct
import time
import zipfile
from typing import Any

import pytest
import zstandard

from ciworker import app
from ciworker.web import upload
from tests.driver import Worker, tree
from tests.e2e.conftest import spooled
from tests.e2e.raw import BOUNDARY, END, FORM, Answer, ask, form, part

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "max_upload": "600k",
    "max_unpacked": "2m",
    "max_members": "50",
    "allowed_images": json.dumps(["python:3.1?-slim"]),
}
HASTE = {
    "ciworker.web.upload.READ_TIMEOUT": 0.5,
    "ciworker.web.upload.SLOWEST": 1e9,
    "ciworker.app.IDLE_TIMEOUT": 0.5,
}

GOOD = tree({"a.txt": "a" * 5000, "b.txt": "b"})
NOISE = bytes(i * i * 7919 >> 3 & 255 for i in range(400_000))


async def send(worker: Worker, body: bytes, **headers: str) -> Answer:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return await ask(
        worker, "POST", "/api/v1/jobs", worker.headers | {"Content-Type": FORM} | fields, body
    )


async def nothing_is_left(worker: Worker) -> None:
    """No file, no row, no container. Files go right after the answer, if not before."""
    async with asyncio.timeout(5):
        while spooled(worker):
            await asyncio.sleep(0.01)
    assert await worker.call("GET", "/jobs") == (200, {"items": [], "next": None})
    assert await worker.containers() == []


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def jobfile(text: str) -> bytes:
    return form(tree({".ciworker.toml": text}))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        pytest.param(form(b""), 422, "empty", id="0 bytes"),
        pytest.param(form(bytes(1024)), 422, "", id="a tar without members"),
        pytest.param(form(zipped({})), 422, "", id="a zip without members"),
        pytest.param(form(b"hello, I am no archive\n" * 99), 422, "", id="no archive"),
        pytest.param(form(b"\0"), 422, "", id="one byte"),
        pytest.param(form(b"BZh9..."), 422, "bzip2", id="bzip2"),
        pytest.param(form(GOOD[:3000]), 422, "", id="a tar cut in a file"),
        pytest.param(form(gzip.compress(GOOD)[:-9]), 422, "cut off", id="a gzip cut"),
        pytest.param(form(zstandard.compress(GOOD)[:-5]), 422, "", id="a zstd cut"),
        pytest.param(form(zipped({"a": b"a"})[:-9]), 422, "", id="a zip cut"),
        pytest.param(form(base64.b64encode(GOOD)), 422, "", id="base64"),
        pytest.param(form(tree({"../x": "x"})), 422, "'../x'", id="a way out"),
        pytest.param(form(tree({"n": NOISE, "m": NOISE})), 413, "614,400", id="over max_upload"),
        pytest.param(form(gzip.compress(tree({"z": bytes(3 << 20)}))), 413, "", id="a gzip bomb"),
        pytest.param(form(zstandard.compress(tree({"z": bytes(3 << 20)}))), 413, "", id="zstd"),
        pytest.param(form(zipped({"z": bytes(3 << 20)})), 413, "", id="a zip bomb"),
        pytest.param(form(tree({f"f{n}": "" for n in range(60)})), 413, "", id="many members"),
        pytest.param(jobfile("immage = 'x'"), 422, "did you mean 'image'", id="unknown key"),
        pytest.param(jobfile("timeout = 'soon'"), 422, "10m", id="no duration"),
        pytest.param(jobfile("timeout = '9h'"), 422, "max_job_timeout", id="too long"),
        pytest.param(jobfile("memory = '999g'"), 422, "max_job_memory", id="too much memory"),
        pytest.param(jobfile("cpus = 9999"), 422, "max_job_cpus", id="too many cores"),
        pytest.param(jobfile("image = 'evil:1'"), 422, "allowed_images", id="a foreign image"),
        pytest.param(jobfile("image = "), 422, "TOML", id="no TOML"),
        pytest.param(jobfile("network = 'yes'"), 422, "true or false", id="no boolean"),
        pytest.param(
            form(tree({"pyproject.toml": "[tool.ciworker]\nrum = 'x'"})),
            422,
            "did you mean 'run'",
            id="unknown key in pyproject",
        ),
        # the form
        pytest.param(b"", 422, "boundary", id="no body"),
        pytest.param(b"hello", 422, "boundary", id="no form"),
        pytest.param(END, 422, "'spec' is missing", id="no parts"),
        pytest.param(part("archive", GOOD) + END, 422, "'spec' is missing", id="no spec"),
        pytest.param(part("spec", b"{}") + END, 422, "'archive' is missing", id="no archive part"),
        pytest.param(
            part("archive", GOOD) + part("spec", b"{}") + END, 422, "'spec'", id="wrong order"
        ),
        pytest.param(
            part("spec", b"{}") + part("spec", b"{}") + part("archive", GOOD) + END,
            422,
            "'archive' is missing",
            id="spec twice",
        ),
        pytest.param(
            part("spec", b"{}") + part("archive", GOOD) + part("archive", GOOD) + END,
            422,
            "follows",
            id="archive twice",
        ),
        pytest.param(
            part("spec", b"{}") + part("archive", GOOD), 422, "cannot be read", id="no last line"
        ),
        pytest.param(form(GOOD)[: -len(END) - 2], 422, "cannot be read", id="no line end either"),
        pytest.param(
            part("spec", b"{}", {"Content-Type": "multipart/mixed; boundary=x"}) + END,
            422,
            "'spec'",
            id="a form within",
        ),
        pytest.param(
            part("spec", b"{}", {"Content-Type": "multipart/mixed"}) + END, 422, "", id="and worse"
        ),
        pytest.param(
            part("spec", b"{}", {f"X-{n}": "x" for n in range(300)}) + END, 422, "", id="headers"
        ),
        pytest.param(
            part("spec", b"{}", {"X": "x" * 20_000}) + END, 422, "", id="a part's header too long"
        ),
        pytest.param(part("_charset_", b"x" * 40) + END, 422, "", id="a charset too long"),
        pytest.param(
            b'--%b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n' % BOUNDARY.encode()
            + END,
            422,
            "'spec' is missing",
            id="a name that is no text",
        ),
        pytest.param(form(GOOD, b"{"), 422, "JSON", id="bad JSON"),
        pytest.param(form(GOOD, b""), 422, "JSON", id="empty JSON"),
        pytest.param(form(GOOD, b"[]"), 422, "object", id="a list"),
        pytest.param(form(GOOD, b"\xff"), 422, "JSON", id="JSON that is no text"),
        pytest.param(form(GOOD, b"[" * 100_000), 422, "JSON", id="deep JSON"),
        pytest.param(form(GOOD, b'{"run": "\\ud800"}'), 422, "JSON", id="half a character"),
        pytest.param(form(GOOD, b'"' + b"x" * 300_000), 413, "`spec`", id="a large spec"),
        pytest.param(form(GOOD, {"runn": "x"}), 422, "did you mean 'run'", id="spec's unknown"),
        pytest.param(form(GOOD, {"x\n\0": 1}), 422, "unknown key", id="a key of controls"),
        pytest.param(form(GOOD, {"timeout": "soon"}), 422, "10m", id="spec's duration"),
        pytest.param(form(GOOD, {"timeout": 0}), 422, "more than 0", id="no time"),
        pytest.param(form(GOOD, {"timeout": True}), 422, "timeout", id="true is no time"),
        pytest.param(form(GOOD, {"timeout": 10**40}), 422, "duration", id="an age"),
        pytest.param(form(GOOD, b'{"timeout": 1e999}'), 422, "JSON", id="for ever"),
        pytest.param(form(GOOD, {"memory": 10**30}), 422, "memory in the part", id="much memory"),
        pytest.param(form(GOOD, {"memory": "-1"}), 422, "size", id="negative memory"),
        pytest.param(form(GOOD, {"cpus": "nan"}), 422, "cores", id="no number"),
        pytest.param(form(GOOD, {"network": "yes"}), 422, "network", id="yes is no boolean"),
        pytest.param(form(GOOD, {"priority": 10**30}), 422, "priority", id="a high priority"),
        pytest.param(form(GOOD, {"priority": "1"}), 422, "priority", id="priority as text"),
        pytest.param(form(GOOD, {"env": {"A": 1}}), 422, "env", id="env of numbers"),
        pytest.param(form(GOOD, {"env": {"A B": "x"}}), 422, "'A B'", id="env's name"),
        pytest.param(form(GOOD, {"run": "a\0b"}), 422, "NUL", id="NUL"),
        pytest.param(form(GOOD, {"command": []}), 422, "list of words", id="an empty command"),
        pytest.param(form(GOOD, {"command": "pytest"}), 422, "command", id="a command as text"),
        pytest.param(form(GOOD, {"image": "evil:1"}), 422, "allowed_images", id="spec's image"),
        pytest.param(form(GOOD, {"image": "-v"}), 422, "image", id="an image like an option"),
        pytest.param(form(GOOD, {"vcs": {"comit": "x"}}), 422, "'commit'", id="vcs's unknown key"),
        pytest.param(form(GOOD, {"vcs": {"dirty": "no"}}), 422, "vcs", id="dirty as text"),
    ],
)
@pytest.mark.attacks(34)
async def test_what_is_refused_leaves_nothing(
    shared: Worker, body: bytes, status: int, words: str
) -> None:
    answer = await send(shared, body)
    detail = answer.problem
    assert (answer.status, words in detail) == (status, True), (answer.status, detail)
    await nothing_is_left(shared)


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "application/x-tar", "multipart/mixed; boundary=x", "text/plain", "/"],
)
@pytest.mark.attacks(34)
async def test_another_content_type_is_415(shared: Worker, content_type: str) -> None:
    answer = await send(shared, form(GOOD), Content_Type=content_type)
    assert (answer.status, "multipart/form-data" in answer.problem) == (415, True)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=" + "x" * 71,
        "multipart/form-data; boundary=other",
    ],
)
@pytest.mark.attacks(34)
async def test_a_boundary_that_is_none_is_422(shared: Worker, content_type: str) -> None:
    answer = await send(shared, form(GOOD), Content_Type=content_type)
    assert (answer.status, bool(answer.problem)) == (422, True)
    await nothing_is_left(shared)


@pytest.mark.attacks(33)
async def test_a_compressed_body_is_not_inflated(shared: Worker) -> None:
    bomb = gzip.compress(form(bytes(100 << 20)), 9)
    before = await memory(shared)
    for encoding in ("gzip", "GZIP", "deflate", "br"):
        answer = await send(shared, bomb, Content_Encoding=encoding)
        assert (answer.status, "compressed" in answer.problem) == (415, True)
    await nothing_is_left(shared)
    assert await memory(shared) - before < 20 << 20


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "deflate"},
        {"Content-Transfer-Encoding": "base64"},
        {"Content-Transfer-Encoding": "quoted-printable"},
        {"Content-Length": "7"},
    ],
)
async def test_a_part_is_taken_as_it_is_whatever_it_says_of_itself(
    shared: Worker, headers: dict[str, str]
) -> None:
    packed = gzip.compress(bytes(100 << 20), 9)
    before = await memory(shared)
    answer = await send(shared, part("spec", b"{}") + part("archive", packed, headers) + END)
    assert answer.status in (413, 422)
    assert answer.problem
    await nothing_is_left(shared)
    assert await memory(shared) - before < 20 << 20


async def memory(worker: Worker) -> int:
    """Bytes resident in the worker's process."""
    assert worker.process is not None
    with open(f"/proc/{worker.process.pid}/statm") as file:  # noqa: PTH123 # no blocking file
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize("key", ["", "x" * 201, b"\xff\xfe", "tab\tkey"])
async def test_an_idempotency_key_that_is_none_is_422(shared: Worker, key: Any) -> None:
    headers = shared.headers | {"Content-Type": FORM, "Idempotency-Key": key}
    answer = await ask(shared, "POST", "/api/v1/jobs", headers, form(GOOD))
    assert (answer.status, "Idempotency-Key" in answer.problem) == (422, True)
    await nothing_is_left(shared)


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.attacks(34)
async def test_a_client_that_vanishes_in_mid_upload_leaves_nothing(
    shared: Worker, abruptly: bool
) -> None:
    reader, writer = await begun(shared)
    await spool_file_appears(shared)
    if abruptly:
        handle: socket.socket = writer.get_extra_info("socket")
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    await nothing_is_left(shared)
    assert reader.at_eof() or not abruptly


async def begun(worker: Worker) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A submit of which 300 kB are sent and as many are not."""
    body = form(tree({"n": NOISE, "m": NOISE[:150_000]}))
    head = "POST /api/v1/jobs HTTP/1.1\r\n"
    fields = worker.headers | {"Content-Type": FORM, "Content-Length": str(len(body))}
    fields |= {"Host": f"127.0.0.1:{worker.port}"}
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port)
    writer.write(head.encode() + b"\r\n" + body[:300_000])
    await writer.drain()
    return reader, writer


async def spool_file_appears(worker: Worker) -> None:
    async with asyncio.timeout(5):
        while not spooled(worker):
            await asyncio.sleep(0.01)


@pytest.mark.attacks(31)
async def test_an_upload_that_stalls_is_closed_and_leaves_nothing(hasty: Worker) -> None:
    began = time.monotonic()
    reader, writer = await begun(hasty)
    await spool_file_appears(hasty)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert 0.4 < time.monotonic() - began < 3
    await nothing_is_left(hasty)
    writer.close()


@pytest.mark.attacks(31)
async def test_an_upload_that_trickles_is_closed_too(hasty: Worker) -> None:
    began = time.monotonic()
    reader, writer = await begun(hasty)
    answer = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    while not answer.done() and time.monotonic() - began < 5:
        writer.write(b"x" * 100)
        await asyncio.sleep(0.1)
    assert (await answer).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 3
    await nothing_is_left(hasty)
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nX: "])
@pytest.mark.attacks(31)
async def test_a_connection_that_never_asks_is_closed(hasty: Worker, sent: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
    writer.write(sent)
    async with asyncio.timeout(3):
        assert await reader.read() == b""
    writer.close()


async def test_the_deadlines_that_were_shortened_here_are_half_a_minute_and_a_minute() -> None:
    assert (upload.READ_TIMEOUT, upload.SLOWEST, app.IDLE_TIMEOUT) == (30, 4096, 60)


async def test_while_the_store_is_locked_a_submit_is_503_and_reading_goes_on(
    shared: Worker,
) -> None:
    lock = sqlite3.connect(shared.data_dir / "ciworker.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        submitting = asyncio.ensure_future(send(shared, form(GOOD)))
        await spool_file_appears(shared)
        async with asyncio.timeout(1):
            assert (await shared.call("GET", "/jobs"))[0] == 200
        answer = await submitting
    finally:
        lock.execute("ROLLBACK")
        lock.close()
    assert (answer.status, "database" in answer.problem) == (503, True)
    await nothing_is_left(shared)


async def test_while_the_disk_does_not_take_it_a_submit_is_503(shared: Worker) -> None:
    spool = shared.data_dir / "spool"
    aside = spool.rename(spool.with_name("aside"))
    spool.symlink_to("/proc/self/fdinfo")  # a folder in which nobody can create a file
    try:
        answer = await send(shared, form(GOOD))
    finally:
        spool.unlink()
        aside.rename(spool)
    assert (answer.status, "disk" in answer.problem) == (503, True)
    await nothing_is_left(shared)

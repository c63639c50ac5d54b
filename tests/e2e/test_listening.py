"""Where the worker listens: a Unix socket, or a port with TLS; who waits too long is let go."""

import asyncio
import contextlib
import json
import re
import shutil
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import aiohttp
import pytest

from ciworker.web import listening
from tests.conftest import Attack
from tests.driver import DEADLINE, Worker, command
from tests.e2e.certificates import Certificate, certificate, trusting
from tests.e2e.conftest import Tuned, spooled
from tests.e2e.raw import FORM, Answer, parsed, part

HASTE = {
    "ciworker.app.IDLE_TIMEOUT": 0.5,
    "ciworker.web.listening.HANDSHAKE_TIMEOUT": 0.5,
    "ciworker.web.upload.READ_TIMEOUT": 0.5,
    "ciworker.web.upload.SLOWEST": 1e9,
}


class OnSocket(Tuned):
    """A worker that listens on a Unix socket."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.path = folder / "ciworker.sock"
        super().__init__(folder, {"host": f"unix:{self.path}", **settings})
        self.url = f"unix:{self.path}"

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self.path), limit=0)
            self._session = aiohttp.ClientSession("http://localhost", connector=connector)
        return self._session

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(str(self.path))


class OverTls(Tuned):
    """A worker that speaks TLS."""

    def __init__(self, folder: Path, made: Certificate, settings: Mapping[str, str]) -> None:
        super().__init__(folder, {**made.settings, **settings})
        self.made = made
        self.url = f"https://127.0.0.1:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.made.cert)

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ssl=self.trust)
            self._session = aiohttp.ClientSession(self.url, connector=connector)
        return self._session

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=self.trust)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short one: a socket's path has 107 bytes at most."""
    made = Path(tempfile.mkdtemp(prefix="ciw-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def on_socket(folder: Path, image: str) -> AsyncIterator[OnSocket]:
    worker = OnSocket(folder / "worker", {"default_image": image})
    yield worker
    await worker.destroy()


@pytest.fixture
async def over_tls(folder: Path, image: str) -> AsyncIterator[OverTls]:
    made = certificate(folder, "ci.example.org")
    worker = OverTls(folder / "worker", made, {"default_image": image})
    yield worker
    await worker.destroy()


async def asked(worker: OnSocket | OverTls, host: str, path: str = "/healthz") -> Answer:
    reader, writer = await worker.open()
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
    writer.write(f"{head}Authorization: Bearer {worker.token}\r\n\r\n".encode())
    async with asyncio.timeout(DEADLINE):
        answer = parsed(await reader.read())
    writer.close()
    return answer


async def follows(worker: Worker, env: Mapping[str, str]) -> None:
    """Submit and follow with the client; it says what the job did, live."""
    tree = worker.data_dir.parent / "tree"
    tree.mkdir()
    (tree / "x").write_text("x")
    spell = "for n in 1 2 3; do echo line $n; done; exit 3"
    code, out, err = await command(
        "ciclient", "submit", str(tree), "--", "sh", "-c", spell, env=env
    )
    assert (code, out) == (1, b"line 1\nline 2\nline 3\n"), err
    listed = await command("ciclient", "list", "--json", env=env)
    assert (listed[0], json.loads(listed[1])["items"][0]["exit_code"]) == (0, 3)


# a Unix socket


async def test_client_and_operator_talk_to_a_unix_socket(on_socket: OnSocket) -> None:
    await on_socket.start()
    assert stat.S_IMODE(on_socket.path.stat().st_mode) == 0o660
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", on_socket.port)) != 0
    await follows(on_socket, on_socket.client_environment)
    env = on_socket.environment
    assert (await command("ciworker", "resync", env=env))[0] == 0
    code, out, _ = await command("ciworker", "doctor", "--json", env=env)
    findings = {each["check"]: each for each in json.loads(out)}
    assert findings["worker"]["ok"], out
    assert findings["firewall"]["detail"].startswith(str(on_socket.path))
    assert f"unix:{on_socket.path}" in findings["store"]["detail"]
    code, out, _ = await command("ciworker", "audit", "--json", env=env)
    assert {item["address"] for item in json.loads(out)} == {"unix", "local"}
    code, out, _ = await command("ciclient", "doctor", env=on_socket.client_environment)
    assert code == 0, out


@pytest.mark.attacks(38)
async def test_at_a_socket_too_only_our_own_hosts_open_anything(on_socket: OnSocket) -> None:
    on_socket.set(public_url="https://ci.example.org")
    await on_socket.start()
    for host in ("localhost", "ci.example.org"):
        assert (await asked(on_socket, host)).status == 200
    for host in ("evil.example", "localhost.evil.example", f"localhost:{on_socket.port}", ""):
        answer = await asked(on_socket, host)
        assert (answer.status, "Host" in answer.problem) == (403, True), host


async def test_a_socket_alone_has_no_link_for_a_browser_and_says_so(on_socket: OnSocket) -> None:
    await on_socket.start()
    code, out, err = await command("ciworker", "token", "link", env=on_socket.environment)
    assert (code, out) == (2, b"")
    assert b"set public_url" in err
    assert "set public_url" in on_socket.log.read_text()
    await on_socket.stop()
    on_socket.set(public_url="https://ci.example.org")
    await on_socket.start()
    code, out, _ = await command("ciworker", "token", "link", env=on_socket.environment)
    assert (code, out.startswith(b"https://ci.example.org/login?code=")) == (0, True)


async def test_a_proxy_at_the_socket_says_who_asks_if_it_is_trusted(on_socket: OnSocket) -> None:
    on_socket.set(trusted_proxies='["unix"]')
    await on_socket.start()
    headers = {"X-Forwarded-For": "198.51.100.1"}
    assert (await on_socket.call("POST", "/resync", headers=headers))[0] == 200
    _, page = await on_socket.call("GET", "/audit?limit=1")
    assert page["items"][0]["address"] == "198.51.100.1"


async def test_who_comes_by_the_socket_does_not_choose_an_address(
    on_socket: OnSocket, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is shown the path that a client bound its own end to."""
    on_socket.set(trusted_proxies='["198.51.100.0/24"]')
    await on_socket.start()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mine:
        mine.bind("198.51.100.1")
        mine.connect(str(on_socket.path))
        mine.settimeout(DEADLINE)
        own = f"Authorization: Bearer {on_socket.token}\r\nX-Forwarded-For: 203.0.113.9\r\n"
        head = f"POST /api/v1/resync HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{own}\r\n"
        mine.sendall(head.encode())
        assert parsed(mine.makefile("rb").read()).status == 200
    _, page = await on_socket.call("GET", "/audit?limit=1")
    assert (page["items"][0]["action"], page["items"][0]["address"]) == ("resync", "unix")


async def test_a_socket_that_a_killed_worker_left_is_taken_over(on_socket: OnSocket) -> None:
    await on_socket.start()
    await on_socket.kill()
    assert on_socket.path.is_socket()
    await on_socket.start()
    assert (await on_socket.call("GET", "/jobs"))[0] == 200


async def test_a_socket_that_somebody_listens_on_is_left_alone(
    on_socket: OnSocket, folder: Path
) -> None:
    await on_socket.start()
    second = {**on_socket.environment, "CIWORKER_DATA_DIR": str(folder / "other")}
    code, _, err = await command("ciworker", "serve", env=second)
    assert (code, b"somebody listens on" in err) == (2, True), err
    assert (await on_socket.call("GET", "/jobs"))[0] == 200


async def test_a_second_worker_of_the_same_store_is_refused_before_it_makes_a_socket(
    on_socket: OnSocket, folder: Path
) -> None:
    await on_socket.start()
    other = folder / "other.sock"
    for host in (f"unix:{other}", f"unix:{on_socket.path}"):
        second = {**on_socket.environment, "CIWORKER_HOST": host}
        code, _, err = await command("ciworker", "serve", env=second)
        assert (code, f"in use by the worker on unix:{on_socket.path}" in err.decode()) == (2, True)
    assert not other.exists()
    assert (await on_socket.call("GET", "/jobs"))[0] == 200


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
async def test_what_is_no_socket_is_left_alone(on_socket: OnSocket, kind: str) -> None:
    if kind == "file":
        on_socket.path.write_text("mine")
    elif kind == "folder":
        on_socket.path.mkdir()
    else:
        on_socket.path.symlink_to("/dev/null")
    before = on_socket.path.lstat()
    code, _, err = await command("ciworker", "serve", env=on_socket.environment)
    assert (code, b"is no socket" in err) == (2, True), err
    assert on_socket.path.lstat() == before


async def test_a_socket_in_a_folder_that_is_not_there_is_told(on_socket: OnSocket) -> None:
    on_socket.set(host=f"unix:{on_socket.path.parent}/nowhere/x.sock")
    code, _, err = await command("ciworker", "serve", env=on_socket.environment)
    assert (code, b"make its folder" in err, b"Errno" in err) == (2, True, False), err
    code, out, _ = await command("ciworker", "doctor", "--json", env=on_socket.environment)
    (port,) = [each for each in json.loads(out) if each["check"] == "port"]
    assert (port["ok"], port["mend"].startswith("mkdir -p ")) == (False, True)


# TLS


async def test_client_and_operator_talk_tls(over_tls: OverTls) -> None:
    await over_tls.start()
    await follows(over_tls, trusting(over_tls, over_tls.made))
    env = over_tls.environment
    assert (await command("ciworker", "resync", env=env))[0] == 0
    code, out, _ = await command("ciworker", "token", "link", env=env)
    assert (code, out.startswith(f"https://127.0.0.1:{over_tls.port}/login?".encode())) == (0, True)
    code, out, _ = await command("ciworker", "doctor", "--json", env=env)
    assert {each["check"]: each["ok"] for each in json.loads(out)}["worker"]
    code, _, err = await command("ciclient", "list", env=over_tls.client_environment)
    assert (code, b"is not trusted here: name the file of its CA" in err) == (5, True), err


async def test_who_asks_a_tls_port_without_tls_is_told_the_scheme(over_tls: OverTls) -> None:
    await over_tls.start()
    server = over_tls.url.replace("https", "http")
    env = trusting(over_tls, over_tls.made) | {"CICLIENT_SERVER": server}
    for words in (["list"], ["submit", "--detach"]):
        code, _, err = await command("ciclient", *words, env=env)
        said = f"error: {server} seems to speak TLS there: try {over_tls.url}\n"
        assert (code, err.decode().endswith(said)) == (5, True), err


async def test_a_name_that_is_not_in_the_certificate_is_told(over_tls: OverTls) -> None:
    await over_tls.start()
    server = f"https://127.1:{over_tls.port}"  # the same address, spelled otherwise
    env = trusting(over_tls, over_tls.made) | {"CICLIENT_SERVER": server}
    code, _, err = await command("ciclient", "list", env=env)
    assert code == 5
    assert f"the certificate of {server} is refused (Hostname mismatch" in err.decode()
    assert "name the server as its certificate does" in err.decode()
    assert "_ssl.c" not in err.decode()


async def test_over_tls_the_session_is_for_tls_alone(over_tls: OverTls) -> None:
    await over_tls.start()
    status, link = await over_tls.call("POST", "/login-codes", json={})
    assert status == 201
    assert link["url"].startswith(over_tls.url)
    code = link["url"].partition("code=")[2]
    async with over_tls.session.post(
        "/login", data={"code": code}, headers={"Origin": over_tls.url}, allow_redirects=False
    ) as answer:
        assert answer.status == 303
        assert "; secure" in answer.headers["Set-Cookie"].lower()


async def test_without_tls_nothing_is_said_on_that_port(over_tls: OverTls) -> None:
    await over_tls.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", over_tls.port)
    writer.write(f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:{over_tls.port}\r\n\r\n".encode())
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 2" not in await reader.read()
    writer.close()
    assert (await over_tls.call("GET", "/jobs"))[0] == 200
    assert "Traceback" not in over_tls.log.read_text()


async def subject(over_tls: OverTls) -> str:
    """The name in the certificate that a new connection is shown."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection("127.0.0.1", over_tls.port, ssl=trust)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    assert reader is not None
    return next(name for name in ("ci.example.org", "renewed", "third") if name.encode() in der)


async def test_a_renewed_certificate_is_taken_up_and_open_streams_go_on(
    over_tls: OverTls, folder: Path
) -> None:
    await over_tls.start()
    job = await over_tls.submit("echo begun; sleep 3600", timeout="2h")
    await over_tls.wait(job, "running")
    async with over_tls.events(f"/jobs/{job}/events") as events:
        assert (await anext(events)).event == "status"
        assert await subject(over_tls) == "ci.example.org"
        over_tls.made.replace(certificate(folder, "renewed"))
        assert await subject(over_tls) == "renewed"
        # one half of a pair, as it is for a moment in any renewal
        third = certificate(folder, "third")
        third.cert.replace(over_tls.made.cert)
        assert await subject(over_tls) == "renewed"
        assert "the renewed certificate cannot be used" in over_tls.log.read_text()
        third.key.replace(over_tls.made.key)
        assert await subject(over_tls) == "third"
        over_tls.made.key.chmod(0o644)
        over_tls.made.key.touch()
        assert await subject(over_tls) == "third"
        assert "run chmod 600" in over_tls.log.read_text()
        _, answer = await cancelled(over_tls, job)
        assert answer["id"] == job
        async with asyncio.timeout(DEADLINE):
            assert [frame.event async for frame in events][-1] == "end"


async def cancelled(over_tls: OverTls, job: str) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession(
        over_tls.url, connector=aiohttp.TCPConnector(ssl=over_tls.trust)
    ) as session:
        path = f"/api/v1/jobs/{job}/cancel"
        async with session.post(path, headers=over_tls.headers) as answer:
            return answer.status, await answer.json()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("open key", b"run chmod 600"),
        ("key of another", b"cannot be used"),
        ("key with a password", b"without a password"),
        ("no key", b"cannot be read"),
        ("no certificate", b"cannot be used"),
        ("not PEM", b"give PEM files"),
    ],
)
async def test_a_pair_that_cannot_be_used_is_told_at_the_start(
    over_tls: OverTls, folder: Path, wrong: str, sentence: bytes
) -> None:
    cert, key = over_tls.made.cert, over_tls.made.key
    if wrong == "open key":
        key.chmod(0o644)
    elif wrong == "key of another":
        certificate(folder, "renewed").key.replace(key)
    elif wrong == "key with a password":
        over_tls.made.replace(certificate(folder, "renewed", password="tea and milk"))
    elif wrong == "not PEM":
        cert.write_bytes(b"\x30\x82")
    else:
        (key if wrong == "no key" else cert).unlink()
    code, _, err = await command("ciworker", "serve", env=over_tls.environment)
    assert (code, sentence in err) == (2, True), err
    assert b"Traceback" not in err


async def test_doctor_tells_how_long_the_certificate_is_good_and_what_is_wrong_with_it(
    over_tls: OverTls, folder: Path
) -> None:
    await over_tls.start()
    await over_tls.stop()

    async def seen(*before: str) -> Mapping[str, tuple[bool, str]]:
        process = await asyncio.create_subprocess_exec(
            *before, sys.executable, "-m", "ciworker", "doctor", "--json",
            env=over_tls.environment, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        return {each["check"]: (each["ok"], each["detail"]) for each in json.loads(out)}

    async def found(*before: str) -> tuple[bool, str]:
        return (await seen(*before))["certificate"]

    ok, told = await found()
    assert (ok, re.search(r"is good for (89|90) days", told) is not None) == (True, True), told
    over_tls.made.replace(certificate(folder, "renewed", days=10))
    ok, told = await found()
    assert (ok, re.search(r"is good for (9|10) days", told) is not None) == (False, True), told
    ok, told = await found("faketime", "-f", "+11d")
    assert (ok, "expired" in told) == (False, True), told
    over_tls.made.key.chmod(0o644)
    ok, told = await found()
    assert (ok, "run chmod 600" in told) == (False, True), told
    over_tls.made.key.chmod(0o600)
    over_tls.made.cert.unlink()
    both = await seen()
    for ok, told in (both["certificate"], both["worker"]):
        assert (ok, f"tls_cert {over_tls.made.cert}" in told) == (False, True), told
    code, out, err = await command("ciworker", "resync", env=over_tls.environment)
    assert (code, out, f"tls_cert {over_tls.made.cert}".encode() in err) == (3, b"", True), err


async def test_a_key_that_its_group_may_read_is_used(over_tls: OverTls) -> None:
    over_tls.made.key.chmod(0o640)
    await over_tls.start()


# who waits too long


class OnPort(Tuned):
    """A worker that listens on a port, without TLS."""

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


Hasty = OnPort | OnSocket | OverTls


@pytest.fixture(params=["port", "socket", "tls"])
async def hurried(request: pytest.FixtureRequest, folder: Path, image: str) -> AsyncIterator[Hasty]:
    """One of each kind, with short deadlines."""
    settings, at = {"default_image": image}, folder / "hurried"
    worker: Hasty
    if request.param == "port":
        worker = OnPort(at, settings)
    elif request.param == "socket":
        worker = OnSocket(at, settings)
    else:
        worker = OverTls(at, certificate(folder, "ci.example.org"), settings)
    worker.constants = HASTE
    try:
        await worker.start()
        yield worker
    finally:
        await worker.destroy()


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What comes until the worker closes, which it has to; it may be a write that fails of it."""
    came = b""
    async with asyncio.timeout(DEADLINE):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(2**16):
                came += data
    return came


async def trickle(writer: asyncio.StreamWriter, piece: bytes) -> None:
    """Send it again and again, for ever."""
    with contextlib.suppress(ConnectionError):
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.05)


async def test_open_streams_end_in_time_when_the_worker_stops(hurried: Hasty) -> None:
    job = await hurried.submit("echo begun; sleep 3600", timeout="2h")
    await hurried.wait_for_text(job, b"begun")
    async with contextlib.AsyncExitStack() as streams:
        opened = [
            await streams.enter_async_context(hurried.events(path))
            for path in ["/events", f"/jobs/{job}/events"] * 10
        ]
        for events in opened[1::2]:
            assert (await anext(events)).event == "status"
        assert await hurried.stop() < 10  # TLS would wait 30 s for each client's last word
        for events in opened:
            assert "end" not in [frame.event async for frame in events]
    await hurried.start()
    await hurried.call("POST", f"/jobs/{job}/cancel")
    await hurried.wait(job)


@pytest.mark.attacks(31)
async def test_who_is_silent_or_slow_is_let_go_and_costs_no_other(
    hurried: Hasty, attack: Attack
) -> None:
    """All at once: half-sent and trickling headers, stalled and trickling bodies, idle sockets."""
    host = "localhost" if isinstance(hurried, OnSocket) else f"127.0.0.1:{hurried.port}"
    begun = f"POST /api/v1/jobs HTTP/1.1\r\nHost: {host}\r\n".encode()
    own = f"Authorization: Bearer {hurried.token}\r\nContent-Type: {FORM}\r\n".encode()
    upload = begun + own + b"Content-Length: 1000000\r\n\r\n" + part("spec", b"{}")
    small = upload.replace(b"/jobs", b"/tokens").replace(FORM.encode(), b"application/json")
    chunked = upload.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked")
    form = begun.replace(b"/api/v1/jobs", b"/login") + b"Content-Length: 99\r\n"
    form += f"Origin: {'http' if host == 'localhost' else hurried.url[:5].rstrip(':')}".encode()
    form += f"://{host}\r\n\r\n".encode()
    idle = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    attempts: list[tuple[bytes, bytes]] = [
        (b"", b""),
        (b"GET /heal", b""),
        (begun, b""),
        (begun, b"X: y\r\n"),
        (b"", b"G"),
        (begun + b"X: ", b"y"),
        (upload, b""),
        (upload, b"x"),
        (small, b""),
        (small, b"x"),
        (chunked, b""),
        (chunked, b"1\r\nx\r\n"),
        (form, b""),
        (form, b"x"),
        (idle, b""),
        (idle, b"\r\n"),
    ]

    async def attempt(first: bytes, again: bytes) -> None:
        reader, writer = await hurried.open()
        writer.write(first)
        trickling = asyncio.create_task(trickle(writer, again) if again else writer.drain())
        try:
            came = await closed(reader)
        finally:
            trickling.cancel()
            writer.close()
        assert b"HTTP/1.1 2" not in came or first == idle, came

    async with asyncio.TaskGroup() as tasks:
        for first, again in attempts * 5:
            tasks.create_task(attempt(first, again))
        for _ in range(20):
            assert (await hurried.call("GET", "/jobs"))[0] == 200
    assert spooled(hurried) == []
    assert "Traceback" not in hurried.log.read_text()
    attack(31, tried=5 * len(attempts))


@pytest.mark.attacks(31)
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01\x02\x00\x01\x00"])
async def test_a_handshake_that_does_not_go_on_is_closed(over_tls: OverTls, sent: bytes) -> None:
    over_tls.constants = HASTE
    await over_tls.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", over_tls.port)
    writer.write(sent)
    async with asyncio.timeout(DEADLINE / 2):  # asyncio's own deadline is as long as ours
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    assert (await over_tls.call("GET", "/jobs"))[0] == 200


def test_the_deadline_that_was_shortened_here_is_ten_seconds() -> None:
    assert listening.HANDSHAKE_TIMEOUT == 10

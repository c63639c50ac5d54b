"""Servers of git repositories, over https and ssh, and a certificate authority of their own.

They serve the bare repositories of a folder: `NAME.git` to everyone, `private/NAME.git` to who has
the password. Over https `moved/…` redirects, and `once/…` answers only while the server is not at
rest.
"""

import asyncio
import getpass
import os
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import BasicAuth, web

from tests.driver import free_port

PATIENCE = 20.0
USERNAME = "x-access-token"


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL, capture_output=True)


@dataclass(frozen=True)
class Authority:
    """A certificate authority, and the certificate that it gave to localhost."""

    folder: Path

    @classmethod
    def made(cls, folder: Path) -> "Authority":
        folder.mkdir()
        run(
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/CN=tests", "-keyout", folder / "ca.key", "-out", folder / "ca.pem",
        )  # fmt: skip
        run(
            "openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost",
            "-keyout", folder / "key.pem", "-out", folder / "request.pem",
        )  # fmt: skip
        names = folder / "names"
        names.write_text("subjectAltName=DNS:localhost,DNS:tea.example,IP:127.0.0.1\n")
        run(
            "openssl", "x509", "-req", "-days", "2", "-in", folder / "request.pem",
            "-CA", folder / "ca.pem", "-CAkey", folder / "ca.key", "-CAcreateserial",
            "-extfile", names, "-out", folder / "cert.pem",
        )  # fmt: skip
        return cls(folder)

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context


@dataclass
class Https:
    """A server of repositories; `asked` holds the path and the password of each request.

    says: lines to whoever has a wrong password.
    """

    root: Path
    port: int
    password: str
    target: str = ""
    says: Sequence[str] = ()
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    _stalled: asyncio.Event = field(default_factory=asyncio.Event)
    _goes: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def place(self) -> str:
        return f"localhost:{self.port}"

    def url(self, name: str) -> str:
        return f"https://{self.place}/{name}"

    def rest(self) -> None:
        """From now on `once/…` is not answered."""
        self._stalled.clear()
        self._goes.clear()

    async def is_stalled(self) -> None:
        """Until somebody waits for an answer."""
        async with asyncio.timeout(PATIENCE):
            await self._stalled.wait()

    def go_on(self) -> None:
        self._goes.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization")
        password = BasicAuth.decode(given).password if given else None
        self.asked.append((request.path, password))
        kind = request.path.split("/")[1]
        if kind == "moved":
            raise web.HTTPFound(self.target + request.path_qs.removeprefix("/moved"))
        if kind == "once" and not self._goes.is_set():
            self._stalled.set()
            await self._goes.wait()
        if kind == "private" and password != self.password:
            said = "\n".join([f"fatal: {password} is no password", *self.says, ""])
            headers = {"WWW-Authenticate": 'Basic realm="git"'}
            return web.Response(status=401, headers=headers, text=said)
        return await self._by_git(request, request.path.removeprefix("/once"))

    async def _by_git(self, request: web.Request, path: str) -> web.StreamResponse:
        body = await request.read()
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        }
        process = await asyncio.create_subprocess_exec(
            "git", "http-backend", env=environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate(body)
        head, _, rest = out.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split()[0])
        return web.Response(status=status, headers=headers, body=rest)


@asynccontextmanager
async def https(root: Path, authority: Authority, password: str) -> AsyncIterator[Https]:
    server = Https(root, free_port(), password)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", server.port, ssl_context=authority.context).start()
        yield server
    finally:
        server.go_on()
        await runner.cleanup()


@dataclass(frozen=True)
class Ssh:
    """An sshd on a port of its own, and an agent that has the key which it takes."""

    root: Path
    port: int
    host_key: str
    agent: Path

    @property
    def place(self) -> str:
        return f"localhost:{self.port}"

    def url(self, name: str) -> str:
        return f"ssh://{getpass.getuser()}@{self.place}{self.root}/{name}"


@asynccontextmanager
async def ssh(root: Path, folder: Path) -> AsyncIterator[Ssh]:
    folder.mkdir()
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    port, agent = free_port(), folder / "agent"
    lines = {
        "Port": port, "ListenAddress": "127.0.0.1", "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized", "PidFile": "none", "StrictModes": "no",
        "UsePAM": "no", "PasswordAuthentication": "no", "PermitRootLogin": "prohibit-password",
    }  # fmt: skip
    config = folder / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
    Path("/run/sshd").mkdir(exist_ok=True)  # it wants that folder, as its package makes it at boot
    async with (
        _running("/usr/sbin/sshd", "-D", "-e", "-f", str(config)),
        _running("ssh-agent", "-D", "-a", str(agent)),
    ):
        await _listens(port)
        await _exists(agent)
        subprocess.run(
            ["ssh-add", "-q", folder / "user"],
            env=os.environ | {"SSH_AUTH_SOCK": str(agent)}, check=True, capture_output=True,
        )  # fmt: skip
        yield Ssh(root, port, (folder / "host.pub").read_text(), agent)


@asynccontextmanager
async def _running(*words: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def _listens(port: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def _exists(path: Path) -> None:
    async with asyncio.timeout(PATIENCE):
        while not path.exists():
            await asyncio.sleep(0.02)

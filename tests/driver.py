"""Drives a real worker process over its real port: start, stop, kill, submit, wait.

Nothing here knows the inside of ciworker; what it says is what any client could say.
"""

import asyncio
import io
import json
import os
import signal
import socket
import sys
import tarfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

DEADLINE = 60.0
TERMINAL = ("completed", "cancelled", "failed")


def tree(files: Mapping[str, str | bytes]) -> bytes:
    """A tar of these files; names ending in `.sh` are executable."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755 if name.endswith(".sh") else 0o644
            member.mtime = int(time.time())
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@dataclass(frozen=True)
class Frame:
    """One server-sent event. data: its `data:` lines."""

    event: str
    id: str | None
    data: Sequence[str]

    @property
    def json(self) -> Any:
        return json.loads(self.data[0])

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.data]


class Worker:
    """One worker: its data folder, its port, and its process while it runs."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        folder.mkdir(parents=True)
        self.data_dir = folder / "data"
        self.log = folder / "worker.log"
        self.instance = f"test-{os.urandom(6).hex()}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: asyncio.subprocess.Process | None = None
        self._settings = {
            "data_dir": str(self.data_dir),
            "port": str(self.port),
            "instance": self.instance,
            "log_format": "json",
            "submit_rate": "off",  # tests submit faster than people do
            **settings,
        }
        self._session: aiohttp.ClientSession | None = None

    @property
    def settings(self) -> Mapping[str, str]:
        return self._settings

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the worker's process, and of operator's commands for it."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CIWORKER_", "CICLIENT_"))}
        return kept | {f"CIWORKER_{name.upper()}": text for name, text in self._settings.items()}

    @property
    def client_environment(self) -> dict[str, str]:
        """The environment of `ciclient` on the worker's machine, with a home of its own."""
        home = str(self.data_dir.parent)
        return self.environment | {
            "CICLIENT_SERVER": self.url,
            "HOME": home,
            "XDG_STATE_HOME": f"{home}/state",
            "XDG_CONFIG_HOME": f"{home}/config",
        }

    @property
    def token(self) -> str:
        return (self.data_dir / "admin.token").read_text().strip()

    def set(self, **settings: str) -> None:
        """Change settings for the next start."""
        self._settings.update(settings)

    # the process

    async def start(self) -> None:
        """Start the process and wait until it is ready."""
        await self.spawn()
        await self.ready()

    async def spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ciworker", "serve",
                env=self.environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

    async def ready(self) -> None:
        async with asyncio.timeout(DEADLINE):
            while True:
                assert self.process is not None
                assert self.process.returncode is None, self.log.read_text()
                try:
                    async with self.session.get("/readyz") as answer:
                        if answer.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(0.02)

    async def stop(self, signum: int = signal.SIGTERM) -> float:
        """Send a signal and wait for the end: the seconds that took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signum)
        async with asyncio.timeout(DEADLINE):
            await self.process.wait()
        self.process = None
        return time.monotonic() - began

    async def kill(self) -> None:
        await self.stop(signal.SIGKILL)

    async def destroy(self) -> None:
        """End the process, remove what it left in Docker, close the connections."""
        if self.process is not None and self.process.returncode is None:
            await self.stop(signal.SIGKILL)
        if self._session is not None:
            await self._session.close()
        async with asyncio.timeout(DEADLINE):
            while names := await self.containers():
                await self.docker("rm", "-f", "-v", *names, check=False)  # some are being removed
            while images := await self.images():
                await self.docker("rmi", "-f", *images, check=False)

    # the API

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                self.url,
                connector=aiohttp.TCPConnector(limit=0),  # each stream takes a connection
                read_bufsize=2**21,  # long lines
            )
        return self._session

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    async def call(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        """Status and body (JSON where it is JSON) of a call under /api/v1."""
        headers = self.headers | more.pop("headers", {})
        async with self.session.request(
            method, f"/api/v1{path}", headers=headers, **more
        ) as answer:
            body = await answer.read()
            return answer.status, json.loads(body) if "json" in answer.content_type else body

    async def post(self, archive: bytes, spec: Mapping[str, Any] | None = None) -> tuple[int, Any]:
        """Submit an archive as it is."""
        form = aiohttp.FormData()
        form.add_field("spec", json.dumps(spec or {}), content_type="application/json")
        form.add_field(
            "archive",
            io.BytesIO(archive),
            filename="a",
            content_type="application/octet-stream",
        )
        return await self.call("POST", "/jobs", data=form)

    async def submit(
        self, run: str, files: Mapping[str, str | bytes] | None = None, **spec: Any
    ) -> str:
        """Submit a small tree whose job runs `run`; the job's id."""
        status, job = await self.post(tree(files or {"x": "x"}), {"run": run, **spec})
        assert status == 201, job
        return str(job["id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        status, job = await self.call("GET", f"/jobs/{job_id}")
        assert status == 200, job
        found: dict[str, Any] = job
        return found

    async def wait(self, job_id: str, *statuses: str, within: float = DEADLINE) -> dict[str, Any]:
        """The job once it has one of `statuses`, any terminal one if none is named."""
        async with asyncio.timeout(within):
            while (job := await self.job(job_id))["status"] not in (statuses or TERMINAL):
                await asyncio.sleep(0.02)
        return job

    async def run(
        self, run: str, files: Mapping[str, str | bytes] | None = None, **spec: Any
    ) -> dict[str, Any]:
        """Submit and wait for the end."""
        return await self.wait(await self.submit(run, files, **spec))

    async def text(self, job_id: str, query: str = "") -> bytes:
        """The stored log so far."""
        status, body = await self.call("GET", f"/jobs/{job_id}/log{query}")
        assert status == 200, body
        assert isinstance(body, bytes)
        return body

    async def wait_for_text(self, job_id: str, text: bytes) -> bytes:
        async with asyncio.timeout(DEADLINE):
            while text not in (log := await self.text(job_id)):
                await asyncio.sleep(0.02)
        return log

    @asynccontextmanager
    async def events(
        self, path: str, last_id: str | None = None
    ) -> AsyncIterator[AsyncIterator[Frame]]:
        """An open event stream under /api/v1."""
        headers = self.headers | ({"Last-Event-ID": last_id} if last_id is not None else {})
        async with self.session.get(
            f"/api/v1{path}", headers=headers, timeout=aiohttp.ClientTimeout(total=None)
        ) as answer:
            assert answer.status == 200, (answer.status, await answer.text())
            yield frames(answer.content)

    # Docker

    async def docker(self, *words: str, check: bool = True) -> bytes:
        """On the engine that runs its containers."""
        return await docker(*words, check=check)

    async def containers(self) -> list[str]:
        """Names of the containers that carry this worker's instance label."""
        listed = await self.docker(
            "ps", "-a", "--filter", f"label=ciworker.instance={self.instance}",
            "--format", "{{.Names}}",
        )  # fmt: skip
        return listed.decode().split()

    async def images(self) -> list[str]:
        """Ids of the images that carry this worker's instance label, those without a name too."""
        listed = await self.docker(
            "images", "--no-trunc", "--filter", f"label=ciworker.instance={self.instance}",
            "--format", "{{.ID}}",
        )  # fmt: skip
        return sorted(set(listed.decode().split()))

    async def container(self, job_id: str) -> str:
        """The name of the container that runs this job."""
        found = [name for name in await self.containers() if job_id.lower() in name]
        assert len(found) == 1, found
        return found[0]

    async def nothing_left(self) -> None:
        """Wait until no container of this worker is there."""
        async with asyncio.timeout(DEADLINE):
            while await self.containers():
                await asyncio.sleep(0.05)


async def frames(content: AsyncIterable[bytes]) -> AsyncIterator[Frame]:
    """Parse server-sent events as they arrive; comments are left out."""
    event, event_id = "message", None
    data: list[str] = []
    async for raw in content:
        line = raw.decode().rstrip("\n")
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Frame(event, event_id, data)
            event, event_id, data = "message", None, []
        elif name == "event":
            event = value
        elif name == "id":
            event_id = value
        elif name == "data":
            data.append(value)


async def docker(*words: str, check: bool = True) -> bytes:
    """The docker command line: what an operator would type."""
    process = await asyncio.create_subprocess_exec(
        "docker", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert not check or process.returncode == 0, (words, err.decode())
    return out


async def touch(container: str, path: str = "/workspace/go") -> None:
    """Make a file that a container waits for."""
    await inside(container, "touch", path)


async def inside(container: str, *words: str) -> None:
    """Run a command in a container, which may end of that, and take the command with it."""
    process = await asyncio.create_subprocess_exec(
        "docker", "exec", container, *words, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode in {0, 128 + signal.SIGKILL}, err.decode()


async def command(
    *words: str, env: Mapping[str, str], stdin: bytes = b"", cwd: Path | None = None
) -> tuple[int, bytes, bytes]:
    """Run one of our commands (`ciclient …`, `ciworker …`): exit code, stdout, stderr."""
    program = Path(sys.executable).parent / words[0]
    process = await asyncio.create_subprocess_exec(
        program, *words[1:], env=dict(env), cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate(stdin)
    assert process.returncode is not None
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

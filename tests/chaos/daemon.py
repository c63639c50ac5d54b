"""A second Docker daemon, to be stopped, killed and frozen; it leaves the machine's own one alone.

It lives in a network and a mount namespace of its own and has no bridge but the one that jobs with
the network are on, which leads nowhere else.
Its /run is kept over restarts, for containerd finds the shims of living containers there.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.driver import DEADLINE, docker
from tests.e2e.conftest import Tuned
from tests.namespaces import Namespace

BOOT = 60.0


class Daemon:
    """One private daemon; see `private_daemon`."""

    def __init__(self, home: Path, data: Path | None = None) -> None:
        self._home, self._name = home, home.name
        self._data = data or home / "data"
        self._process: asyncio.subprocess.Process | None = None
        self.socket = home / "docker.sock"

    @property
    def namespace(self) -> Namespace:
        """Where its containers' networks lead to."""
        return Namespace(self._name)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    async def prepare(self) -> None:
        """Make its network namespace, with nothing but a loopback."""
        (self._home / "run").mkdir()
        await _done("ip", "netns", "add", self._name)
        await _done("ip", "-n", self._name, "link", "set", "lo", "up")

    async def start(self, *, live_restore: bool = False) -> None:
        """Boot it; returns when it answers."""
        # Pid files of before: a number that another process has by now reads as alive.
        (self._home / "pid").unlink(missing_ok=True)
        (self._home / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        words = [
            "dockerd", "--bridge=none", "--data-root", str(self._data),
            "--exec-root", f"{self._home}/exec", "--pidfile", f"{self._home}/pid", "-H", self.url,
        ]  # fmt: skip
        words += ["--live-restore"] if live_restore else []
        mounted = f'mount --bind {self._home}/run /run; exec "$@"'
        with (self._home / "log").open("ab") as log:
            # nsenter, not `ip netns exec`, which mounts /sys anew and hides the cgroups
            self._process = await asyncio.create_subprocess_exec(
                "nsenter", f"--net=/var/run/netns/{self._name}",
                "unshare", "-m", "sh", "-c", mounted, "sh", *words,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(BOOT):
            while not await self._answers():
                assert self._process.returncode is None, (self._home / "log").read_text()[-2000:]
                await asyncio.sleep(0.1)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket)
        except OSError:
            return False
        writer.write(b"GET /_ping HTTP/1.0\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return b"200 OK" in answer

    def signal(self, signum: int) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    async def ended(self) -> None:
        """Wait until it is gone."""
        assert self._process is not None
        async with asyncio.timeout(BOOT):
            await self._process.wait()
        self._process = None

    async def stop(self, signum: int) -> None:
        self.signal(signum)
        await self.ended()

    async def docker(self, *words: str, check: bool = True) -> bytes:
        return await docker("-H", self.url, *words, check=check)

    async def load(self, image: str) -> None:
        """Bring an image of the machine's own daemon in."""
        reading, writing = os.pipe()
        saving = await asyncio.create_subprocess_exec("docker", "save", image, stdout=writing)
        os.close(writing)
        loading = await asyncio.create_subprocess_exec(
            "docker", "-H", self.url, "load", "-q", stdin=reading
        )
        os.close(reading)
        async with asyncio.timeout(DEADLINE):
            assert (await saving.wait(), await loading.wait()) == (0, 0)

    async def destroy(self) -> None:
        """End it and everything that it started."""
        if self._process is not None:
            self.signal(signal.SIGCONT)
            await self.stop(signal.SIGKILL)
        for pid in await asyncio.to_thread(_pids_with, f"{self._home}/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(DEADLINE):
            while await asyncio.to_thread(_pids_with, f"{self._home}/"):
                await asyncio.sleep(0.05)
        await _done("ip", "netns", "del", self._name)
        await asyncio.to_thread(shutil.rmtree, self._home)


class Elsewhere(Tuned):
    """A worker whose containers a private daemon runs."""

    def __init__(self, folder: Path, settings: Mapping[str, str], daemon: Daemon) -> None:
        super().__init__(folder, {"docker_host": daemon.url, **settings})
        self.daemon = daemon

    async def docker(self, *words: str, check: bool = True) -> bytes:
        return await self.daemon.docker(*words, check=check)


def _pids_with(text: str) -> list[int]:
    """Processes of the daemon's own: its name is on their command line."""
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in line.read_bytes():
                found.append(int(line.parent.name))
    return [pid for pid in found if pid != os.getpid()]


async def _done(*words: str) -> None:
    process = await asyncio.create_subprocess_exec(*words)
    assert await process.wait() == 0, words


@asynccontextmanager
async def private_daemon(image: str, data: Path | None = None) -> AsyncIterator[Daemon]:
    """One that is up and has the image; afterwards nothing of it is left, but for `data`."""
    home = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ciw-docker-"))
    daemon = Daemon(home, data)
    await daemon.prepare()
    try:
        await daemon.start()
        await daemon.load(image)
        yield daemon
    finally:
        await daemon.destroy()
